//! `vmshm tune`.

use std::io::Write;

use serde_json::json;
use vmshm_transport::MAX_INLINE;
use vmshm_transport::tune::{Machine, Speed, Tuning, measure};

/// Lengths of the copies that are measured, bytes: in the first, second and third level cache.
const LENGTHS: [usize; 4] = [512, 8 << 10, 256 << 10, 4 << 20];

/// Options of `vmshm tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The plugin takes the same sizes when an MPI program starts, and measures nothing then. To choose others:
  mpirun --mca btl_vmshm_eager_limit 8192 --mca btl_vmshm_chunk_size 32768 ...

`ompi_info --param btl vmshm --level 9` tells of each parameter.")]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Looks, measures and prints.
    pub fn run(&self) -> anyhow::Result<()> {
        let machine = Machine::read();
        let tuning = Tuning::of(&machine);
        let speeds = LENGTHS.map(measure);
        let mut out = std::io::stdout().lock();
        if self.json {
            let value = as_json(&machine, &tuning, &speeds);
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        } else {
            out.write_all(as_text(&machine, &tuning, &speeds).as_bytes())?;
        }
        Ok(())
    }
}

fn as_json(machine: &Machine, tuning: &Tuning, speeds: &[Speed]) -> serde_json::Value {
    let speeds: Vec<_> = speeds
        .iter()
        .map(|s| json!({ "len": s.len, "rep_movsb_bytes_per_second": s.string, "words_bytes_per_second": s.words }))
        .collect();
    json!({
        "machine": {
            "level1": machine.level1,
            "level2": machine.level2,
            "level3": machine.level3,
            "clock_mhz": machine.clock,
            "fast_strings": machine.fast_strings,
        },
        "copies": speeds,
        "sizes": {
            "max_inline": MAX_INLINE,
            "eager_limit": tuning.eager,
            "chunk_size": tuning.chunk,
            "chunks": tuning.ahead / tuning.chunk,
            "piece": tuning.piece,
            "ahead": tuning.ahead,
            "turn": tuning.turn,
        },
    })
}

fn as_text(machine: &Machine, tuning: &Tuning, speeds: &[Speed]) -> String {
    let known = |size: u64| if size == 0 { "unknown".to_owned() } else { bytes(size) };
    let mut text = format!(
        "Caches      {} first level, {} second, {} third\n",
        known(machine.level1),
        known(machine.level2),
        known(machine.level3)
    );
    if machine.clock > 0 {
        text += &format!("Clock       {} MHz\n", machine.clock);
    }
    text += &format!("rep movsb   {}\n", if machine.fast_strings { "fast (ERMS)" } else { "without ERMS" });
    text += &format!("\n{:<14}{:>12}{:>12}\n", "Copies, GB/s", "rep movsb", "words");
    for speed in speeds {
        let string = speed.string.map_or_else(|| "-".to_owned(), gigabytes);
        text += &format!("{:<14}{string:>12}{:>12}\n", bytes(speed.len as u64), gigabytes(speed.words));
    }
    let chunks = (tuning.ahead / tuning.chunk) as u64;
    let rows = [
        ("btl_vmshm_max_inline", MAX_INLINE as u64, "longest message in the ring itself"),
        (
            "btl_vmshm_eager_limit",
            tuning.eager as u64,
            "longest message that goes unasked; the limit counts the header too",
        ),
        ("btl_vmshm_chunk_size", tuning.chunk as u64, "chunk of a longer one, many under way"),
        ("", tuning.piece as u64, "chunk of one that is alone"),
        ("", tuning.turn as u64, "memory of chunks that one takes in turn"),
        ("", tuning.ahead as u64, "lead of the sender of many"),
    ];
    text += "\nSizes\n";
    for (name, size, what) in rows {
        text += &format!("{name:<24}{:>9}  {what}\n", bytes(size));
    }
    text + &format!("{:<24}{chunks:>9}  chunks for that lead, fewer in a small section\n", "btl_vmshm_chunks")
}

fn gigabytes(speed: f64) -> String {
    format!("{:.1}", speed / 1e9)
}

fn bytes(size: u64) -> String {
    match size {
        _ if size >= 1 << 20 && size.is_multiple_of(1 << 20) => format!("{} MiB", size >> 20),
        _ if size >= 1 << 10 && size.is_multiple_of(1 << 10) => format!("{} KiB", size >> 10),
        _ => format!("{size} B"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let machine =
            Machine { level1: 48 << 10, level2: 2 << 20, level3: 0, clock: 2100, fast_strings: true };
        let tuning = Tuning::of(&machine);
        let speeds = [Speed { len: 512, string: None, words: 12.34e9 }];
        let text = as_text(&machine, &tuning, &speeds);
        assert!(text.contains("48 KiB first level, 2 MiB second, unknown third"), "{text}");
        assert!(text.contains("512 B") && text.contains("12.3"), "{text}");
        assert!(text.contains(&bytes(tuning.chunk as u64)), "{text}");
        let value = as_json(&machine, &tuning, &speeds);
        assert_eq!(value["sizes"]["chunk_size"], tuning.chunk);
        assert_eq!(value["machine"]["level2"], 2 << 20);
        assert!(value["copies"][0]["rep_movsb_bytes_per_second"].is_null());
    }
}
