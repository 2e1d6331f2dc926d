//! The command line, as OSU's.

use clap::Parser;

use super::buffer::Origin;

/// Messages larger than this count as large: fewer iterations.
const LARGE: usize = 8192;

/// Subject of a program; it decides the defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// Time of one message.
    Latency,
    /// Bytes a second.
    Bandwidth,
    /// Time of a collective operation on buffers of whole numbers of so many bytes.
    Collective(usize),
    /// Time of an operation on another process's memory.
    OneSided,
}

/// Options of OSU's programs.
#[derive(Clone, Debug, Parser)]
#[command(version)]
pub struct Options {
    /// Message sizes in bytes, as MIN:MAX, MIN: or MAX; powers of two in between
    #[arg(short = 'm', long = "message-size", value_name = "MIN:MAX", value_parser = sizes)]
    sizes: Option<(usize, usize)>,
    /// Iterations for each size; larger messages than 8192 bytes take fewer, unless this is given
    #[arg(short = 'i', long, value_name = "ITER", value_parser = clap::value_parser!(u32).range(1..))]
    iterations: Option<u32>,
    /// Iterations before the clock starts
    #[arg(short = 'x', long, value_name = "ITER")]
    warmup: Option<u32>,
    /// Messages under way at a time (bandwidth)
    #[arg(short = 'W', long, value_name = "SIZE", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=4096))]
    window_size: u32,
    /// Number of pairs (osu_mbw_mr) [default: half of the ranks]
    #[arg(short = 'p', long, value_name = "PAIRS", value_parser = clap::value_parser!(u32).range(1..))]
    pairs: Option<u32>,
    /// Writes the buffers anew before each message (or window of messages) and reads and checks all of
    /// them after it, so that data comes from the other core and not from an unchanged cache. Both are
    /// part of the time, but for collectives, where only the reading is
    #[arg(long)]
    vary: bool,
    /// Takes the buffers from MPI_Alloc_mem instead of from the heap
    #[arg(long)]
    alloc_mem: bool,
    /// Accumulates numbers of 64 bits instead of OSU's bytes (osu_acc_latency)
    #[arg(long)]
    words: bool,
}

/// How to measure one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Bytes of a message.
    pub size: usize,
    /// Iterations that are timed.
    pub iterations: u32,
    /// Iterations before that.
    pub warmup: u32,
}

impl Plan {
    /// All iterations.
    pub fn all(&self) -> u32 {
        self.warmup + self.iterations
    }
}

impl Options {
    /// Messages under way at a time.
    pub fn window(&self) -> usize {
        self.window_size as usize
    }

    /// Number of pairs, if it was given.
    pub fn pairs(&self) -> Option<usize> {
        self.pairs.map(|pairs| pairs as usize)
    }

    /// Whether the buffers are to be changed.
    pub fn vary(&self) -> bool {
        self.vary
    }

    /// Where the buffers come from.
    pub fn origin(&self) -> Origin {
        if self.alloc_mem { Origin::Mpi } else { Origin::Heap }
    }

    /// Whether numbers of 64 bits are to be accumulated.
    pub fn words(&self) -> bool {
        self.words
    }

    /// The largest message.
    pub fn largest(&self, measure: Measure) -> usize {
        self.plans(measure).last().map_or(0, |plan| plan.size)
    }

    /// The sizes, each with its number of iterations.
    pub fn plans(&self, measure: Measure) -> Vec<Plan> {
        // OSU's defaults: latency begins at 0 bytes, all else with one piece of data; collectives end at 1 MiB.
        let (smallest, largest) = match measure {
            Measure::Latency => (0, 4 << 20),
            Measure::Bandwidth | Measure::OneSided => (1, 4 << 20),
            Measure::Collective(unit) => (unit, 1 << 20),
        };
        let (least, most) = self.sizes.unwrap_or((smallest, largest));
        let least = least.max(smallest).next_multiple_of(smallest.max(1));
        let mut plans = Vec::new();
        let mut size = least;
        while size <= most {
            plans.push(self.plan(measure, size));
            size = if size == 0 { 1 } else { size * 2 };
        }
        plans
    }

    /// How to measure one size.
    pub fn plan(&self, measure: Measure, size: usize) -> Plan {
        let (iterations, warmup) = match (measure, size > LARGE) {
            (Measure::Latency | Measure::OneSided, false) => (10_000, 100),
            (Measure::Latency | Measure::OneSided, true) => (1000, 10),
            (Measure::Collective(_), false) => (1000, 200),
            (Measure::Collective(_), true) => (100, 10),
            (Measure::Bandwidth, false) => (100, 10),
            (Measure::Bandwidth, true) => (20, 2),
        };
        Plan {
            size,
            iterations: self.iterations.unwrap_or(iterations),
            warmup: self.warmup.unwrap_or(warmup),
        }
    }
}

/// Reads `MIN:MAX`, `MIN:`, `:MAX` or `MAX`.
fn sizes(text: &str) -> Result<(usize, usize), String> {
    let number = |part: &str, default: usize| {
        if part.is_empty() {
            return Ok(default);
        }
        let parsed = part.parse();
        parsed.map_err(|_| format!("'{part}' is no number of bytes; give MIN:MAX as 1:4194304"))
    };
    let limit = 1 << 30;
    let (least, most) = match text.split_once(':') {
        Some((least, most)) => (number(least, 0)?, number(most, 4 << 20)?),
        None => (0, number(text, 0)?),
    };
    if least > most {
        return Err(format!("the smallest size {least} is larger than the largest, {most}"));
    }
    if most > limit {
        return Err(format!("{most} bytes are more than this program sends ({limit})"));
    }
    Ok((least, most))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plans(arguments: &[&str], measure: Measure) -> Vec<Plan> {
        let all = ["osu"].iter().chain(arguments);
        Options::try_parse_from(all).unwrap().plans(measure)
    }

    #[test]
    fn the_defaults_are_those_of_osu() {
        let latency = plans(&[], Measure::Latency);
        let sizes: Vec<usize> = latency.iter().map(|plan| plan.size).collect();
        assert_eq!(sizes[..4], [0, 1, 2, 4]);
        assert_eq!(sizes.last(), Some(&(4 << 20)));
        assert_eq!(latency[1], Plan { size: 1, iterations: 10_000, warmup: 100 });
        assert_eq!(latency.last().map(|plan| plan.iterations), Some(1000));
        let bandwidth = plans(&[], Measure::Bandwidth);
        assert_eq!(bandwidth[0], Plan { size: 1, iterations: 100, warmup: 10 });
        let floats = plans(&[], Measure::Collective(4));
        assert_eq!(floats[0], Plan { size: 4, iterations: 1000, warmup: 200 });
        assert_eq!(floats.last().map(|plan| plan.size), Some(1 << 20));
    }

    #[test]
    fn sizes_and_iterations_can_be_given() {
        let given = plans(&["-m", "8:32", "-i", "5", "-x", "1"], Measure::Latency);
        let expected = [8, 16, 32].map(|size| Plan { size, iterations: 5, warmup: 1 });
        assert_eq!(given, expected);
        let sizes: Vec<_> = plans(&["-m", "4"], Measure::Latency).iter().map(|p| p.size).collect();
        assert_eq!(sizes, [0, 1, 2, 4]);
    }

    #[test]
    fn nonsense_is_refused_with_the_value() {
        for (text, expected) in [("x", "'x'"), ("9:3", "9"), ("1:99999999999", "99999999999")] {
            let message = sizes(text).unwrap_err();
            assert!(message.contains(expected), "{message}");
        }
        assert!(Options::try_parse_from(["osu", "-i", "0"]).is_err());
        assert!(Options::try_parse_from(["osu", "-W", "0"]).is_err());
    }
}
