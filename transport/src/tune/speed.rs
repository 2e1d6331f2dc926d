//! Speed of messages between two cores, by which others compare them with messages on other ways.

use super::choice::Choice;
use super::way::{Row, SHORT, Way};

/// Speed of messages between two cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speed {
    /// Nanoseconds of a short message, one way.
    pub latency: u32,
    /// Megabytes (10^6 bytes) a second of a long message between ordinary buffers, cut as was chosen.
    pub bandwidth: u32,
}

impl Speed {
    /// The speed that a measurement has found, with the choice that follows from it; `None` where it has not measured both.
    pub fn measured(rows: &[Row], choice: &Choice) -> Option<Self> {
        let cut = Way::Cut { chunk: choice.chunk_size, rotation: choice.rotation };
        let row =
            |way, is_length: fn(usize) -> bool| rows.iter().find(|row| row.way == way && is_length(row.len));
        let (short, long) = (row(Way::Vectors, |len| len == SHORT[0])?, row(cut, |_| true)?);
        // The casts end at the greatest number.
        let speed = Self {
            latency: short.time.ceil() as u32,
            bandwidth: (long.len as f64 / long.time * 1000.0) as u32,
        };
        (speed.latency > 0 && speed.bandwidth > 0).then_some(speed)
    }
}

#[cfg(test)]
mod tests {
    use super::super::choice::tests::ZEN4;
    use super::*;

    #[test]
    fn a_measurement_has_a_speed_where_it_has_a_short_message_and_a_long_one() {
        let choice = Choice::of(&ZEN4);
        let cut = Way::Cut { chunk: choice.chunk_size, rotation: choice.rotation };
        let rows = [(Way::Vectors, 256, 210.4), (Way::Vectors, 512, 300.0), (cut, 256 << 10, 26214.4)]
            .map(|(way, len, time)| Row { way, len, time });
        assert_eq!(Speed::measured(&rows, &choice), Some(Speed { latency: 211, bandwidth: 10000 }));
        assert_eq!(Speed::measured(&rows[1..], &choice), None);
        assert_eq!(Speed::measured(&rows[..2], &choice), None);
        let other = Choice { rotation: 2 * choice.rotation, ..choice };
        assert_eq!(Speed::measured(&rows, &other), None);
        let broken = rows.map(|row| Row { time: 0.0, ..row });
        assert_eq!(Speed::measured(&broken, &choice), None);
    }
}
