//! `vmshm tune`.

use std::io::Write;

use serde_json::json;
use vmshm_transport::MAX_INLINE;
use vmshm_transport::copy::{Kernel, calibrate, measure, string_from};
use vmshm_transport::tune::{Machine, Tuning};

/// Lengths of the copies that are measured, bytes: short messages, and copies in the second and third level cache.
const LENGTHS: [usize; 8] = [64, 256, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 256 << 10, 4 << 20];

/// How fast each way of copying was, bytes per second.
type Speeds = Vec<(Kernel, f64)>;

/// Options of `vmshm tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The plugin takes the same sizes when an MPI program starts. As here, it measures then how long a copy must be for `rep movsb` to \
be faster than vectors, in less than a tenth of a millisecond. To choose other sizes:
  mpirun --mca btl_vmshm_eager_limit 8192 --mca btl_vmshm_chunk_size 32768 ...

`ompi_info --param btl vmshm --level 9`, and the same with coll, tell of each parameter.")]
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
        calibrate(false);
        let copies =
            Copies { string_from: string_from(), speeds: LENGTHS.map(|len| (len, measure(len))).into() };
        let mut out = std::io::stdout().lock();
        if self.json {
            let value = as_json(&machine, &tuning, &copies);
            writeln!(out, "{}", serde_json::to_string_pretty(&value)?)?;
        } else {
            out.write_all(as_text(&machine, &tuning, &copies).as_bytes())?;
        }
        Ok(())
    }
}

/// Findings on the ways of copying.
struct Copies {
    /// The length from which on `rep movsb` is taken, bytes; the largest number where never.
    string_from: usize,
    /// The speeds of each length.
    speeds: Vec<(usize, Speeds)>,
}

fn name(kernel: Kernel) -> &'static str {
    match kernel {
        Kernel::Words => "words",
        Kernel::Sse2 => "sse2",
        Kernel::Avx => "avx",
        Kernel::String => "rep_movsb",
    }
}

fn as_json(machine: &Machine, tuning: &Tuning, copies: &Copies) -> serde_json::Value {
    let speeds: Vec<_> = copies
        .speeds
        .iter()
        .map(|(len, speeds)| {
            let speeds: serde_json::Map<_, _> =
                speeds.iter().map(|(kernel, speed)| (name(*kernel).to_owned(), json!(speed))).collect();
            json!({ "len": len, "chosen": name(Kernel::of(*len)), "bytes_per_second": speeds })
        })
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
        "rep_movsb_from": (copies.string_from != usize::MAX).then_some(copies.string_from),
        "sizes": {
            "max_inline": MAX_INLINE,
            "eager_limit": tuning.eager_limit,
            "chunk_size": tuning.chunk_size,
            "chunks": tuning.window / tuning.chunk_size,
            "piece": tuning.tail_size,
            "ahead": tuning.window,
            "turn": tuning.window_single,
            "leave": tuning.evict_size,
            "coll_chunk": tuning.coll_chunk_size,
            "coll_turn": tuning.coll_rotation,
            "coll_lend": tuning.coll_zero_copy_limit,
        },
    })
}

fn as_text(machine: &Machine, tuning: &Tuning, copies: &Copies) -> String {
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
    text += "\nCopies, GB/s  ";
    for (kernel, _) in copies.speeds.iter().flat_map(|(_, speeds)| speeds).take(copies.speeds[0].1.len()) {
        text += &format!("{:>12}", name(*kernel));
    }
    text += "\n";
    for (len, speeds) in &copies.speeds {
        text += &format!("{:<14}", bytes(*len as u64));
        for (kernel, speed) in speeds {
            let mark = if *kernel == Kernel::of(*len) { "*" } else { "" };
            text += &format!("{:>12}", format!("{mark}{}", gigabytes(*speed)));
        }
        text += "\n";
    }
    text += "* is what copies of this length are by.\n";
    let chunks = (tuning.window / tuning.chunk_size) as u64;
    let rows = [
        ("btl_vmshm_max_inline", MAX_INLINE as u64, "longest message in the ring itself"),
        (
            "btl_vmshm_eager_limit",
            tuning.eager_limit as u64,
            "longest message that goes unasked; the limit counts the header too",
        ),
        ("btl_vmshm_chunk_size", tuning.chunk_size as u64, "chunk of a longer one, many under way"),
        ("", tuning.tail_size as u64, "chunk of one that is alone"),
        ("", tuning.window_single as u64, "memory of chunks that one takes in turn"),
        ("", tuning.window as u64, "lead of the sender of many"),
        ("btl_vmshm_leave", tuning.evict_size as u64, "just written for others: leaves the nearest cache"),
        ("coll_vmshm_chunk", tuning.coll_chunk_size as u64, "chunk of a collective operation"),
        ("coll_vmshm_turn", tuning.coll_rotation as u64, "memory of chunks that two members take in turn"),
        (
            "",
            tuning.coll_zero_copy_limit as u64,
            "longest operand in the section that a reduction's root reads there",
        ),
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
        let copies = Copies { string_from: usize::MAX, speeds: vec![(512, vec![(Kernel::Words, 12.34e9)])] };
        let text = as_text(&machine, &tuning, &copies);
        assert!(text.contains("48 KiB first level, 2 MiB second, unknown third"), "{text}");
        assert!(text.contains("512 B") && text.contains("12.3"), "{text}");
        assert!(text.contains(&bytes(tuning.chunk_size as u64)), "{text}");
        let value = as_json(&machine, &tuning, &copies);
        assert_eq!(value["sizes"]["chunk_size"], tuning.chunk_size);
        assert_eq!(value["machine"]["level2"], 2 << 20);
        assert_eq!(value["copies"][0]["bytes_per_second"]["words"], 12.34e9);
        assert!(value["rep_movsb_from"].is_null());
    }
}
