//! `vmshm tune`.

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, anyhow};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use serde_json::json;
use vmshm_transport::MAX_INLINE;
use vmshm_transport::tune::{
    Choice, Here, Machine, Measurement, Speed, Tuning, Way, directory, keep, measure, ratios,
};

/// Part of a median that half of the rounds may lie apart. A measurement that is noisier is repeated, and never kept.
const NOISY: f64 = 0.2;

/// Measurements before a machine is said to be busy.
const TRIES: usize = 8;

/// Options of `vmshm tune`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The plugin takes the same sizes when an MPI program starts. --measure keeps what was surely faster than the table for this kind \
of machine, as root for all users (/var/cache/vmshm), else for you ($XDG_CACHE_HOME or ~/.cache). To choose other sizes:
  mpirun --mca btl_vmshm_eager_limit 8192 --mca btl_vmshm_chunk_size 32768 ...

`ompi_info --param btl vmshm --level 9`, and the same with coll, tell of each parameter.")]
pub struct Args {
    /// Measure copies between two cores, which should be idle for a moment, and keep what follows
    #[arg(long)]
    measure: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Looks, measures and prints.
    pub fn run(&self) -> anyhow::Result<()> {
        let here = Here::get();
        let mut state = State {
            machine: here.machine,
            choice: here.choice,
            speed: here.speed,
            measured: None,
            note: note(here),
        };
        if self.measure {
            let directory = directory().context("no place to keep it: HOME is not set")?;
            let _lock = lock(&directory)?;
            let measured = quietest(&here.machine)?;
            if measured.spread > NOISY {
                state.note = format!(
                    "nothing: half of the rounds lay up to {:.0} % apart, so that other work is measured here; the choice stays",
                    measured.spread * 100.0
                );
            } else {
                state.choice = Choice::measured(&here.machine, &measured.rows);
                state.speed = Speed::measured(&measured.rows, &state.choice);
                let file = keep(&directory, &here.machine, &state.choice, state.speed)
                    .with_context(|| format!("cannot keep it in {}", directory.display()))?;
                state.note = format!("in {}", file.display());
            }
            state.measured = Some(measured);
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&state.as_json())?)?;
        } else {
            out.write_all(state.as_text().as_bytes())?;
        }
        Ok(())
    }
}

/// Where the choice comes from.
fn note(here: &Here) -> String {
    match (&here.kept, &here.ignored) {
        (Some(file), _) => format!("in {}", file.display()),
        (None, Some(ignored)) => format!("nothing: {ignored}"),
        (None, None) => {
            "nothing: the table's choice for this processor; --measure finds this machine's own".into()
        }
    }
}

/// Lock of the measurement, of which there is one at a time. It is not waited for.
fn lock(directory: &Path) -> anyhow::Result<Flock<File>> {
    fs::create_dir_all(directory).with_context(|| format!("cannot make {}", directory.display()))?;
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| match error {
        Errno::EWOULDBLOCK => {
            anyhow!("another 'vmshm tune --measure' is measuring: try again when it has ended")
        }
        error => anyhow!(error).context("cannot lock the measurement"),
    })
}

/// The quietest of some measurements.
fn quietest(machine: &Machine) -> anyhow::Result<Measurement> {
    let mut quietest = measure(machine)?;
    for _ in 1..TRIES {
        if quietest.spread <= NOISY {
            break;
        }
        let other = measure(machine)?;
        if other.spread < quietest.spread {
            quietest = other;
        }
    }
    Ok(quietest)
}

/// Content of the output.
struct State {
    machine: Machine,
    choice: Choice,
    speed: Option<Speed>,
    measured: Option<Measurement>,
    /// Where the choice is kept, or why not.
    note: String,
}

/// Name of a way, and what it is compared with.
fn name(way: Way) -> String {
    match way {
        Way::Vectors => "vectors".into(),
        Way::StringInto => "rep movsb into the section".into(),
        Way::StringOutOf => "rep movsb out of the section".into(),
        Way::FourPages => "out of four pages at a time".into(),
        Way::OwnAhead => "lines owned ahead (prefetchw)".into(),
        Way::Demote => "lines demoted (cldemote)".into(),
        Way::Evict => "evicted from the first level".into(),
        Way::Far => "vectors, other last-level cache".into(),
        Way::FarNonTemporal => "non-temporal, other last-level cache".into(),
        Way::Cut { chunk, rotation } => {
            format!("chunks of {} in {} of memory", bytes(chunk as u64), bytes(rotation as u64))
        }
    }
}

/// The ways that are compared with another one.
const COMPARED: [Way; 7] = [
    Way::StringInto,
    Way::StringOutOf,
    Way::FourPages,
    Way::OwnAhead,
    Way::Demote,
    Way::Evict,
    Way::FarNonTemporal,
];

impl State {
    fn tuning(&self) -> Tuning {
        Tuning::of(&self.machine, &self.choice)
    }

    /// Choice for a way.
    fn chosen(&self, way: Way) -> String {
        let choice = &self.choice;
        let from = |len: usize| match len {
            usize::MAX => "never".to_owned(),
            len => format!("from {}", bytes(len as u64)),
        };
        let is = |yes: bool| if yes { "yes" } else { "no" }.to_owned();
        match way {
            Way::StringInto => from(choice.string_into),
            Way::StringOutOf => from(choice.string_out_of),
            Way::FourPages => from(choice.four_pages),
            Way::OwnAhead => is(choice.owns_ahead),
            Way::Demote => is(choice.demotes),
            Way::Evict => from(choice.evict_from),
            Way::FarNonTemporal => format!("{}, to another NUMA node", from(choice.nontemporal)),
            Way::Cut { chunk, rotation } => is((chunk, rotation) == (choice.chunk_size, choice.rotation)),
            Way::Vectors | Way::Far => String::new(),
        }
    }

    fn as_json(&self) -> serde_json::Value {
        let (machine, choice, tuning) = (&self.machine, &self.choice, self.tuning());
        let from = |len: usize| (len != usize::MAX).then_some(len);
        let measured = self.measured.as_ref().map(|measured| {
            let rows: Vec<_> = measured
                .rows
                .iter()
                .map(|row| json!({ "way": name(row.way), "len": row.len, "nanoseconds": row.time }))
                .collect();
            json!({ "cpus": measured.cpus, "far": measured.far, "spread": measured.spread, "rows": rows })
        });
        json!({
            "machine": {
                "kind": machine.kind(),
                "level1": machine.level1,
                "level2": machine.level2,
                "level3": machine.level3,
                "clock_mhz": machine.clock,
                "avx": machine.avx,
                "fast_strings": machine.fast_strings,
                "cldemote": machine.demotes,
            },
            "kept": self.note,
            "speed": self.speed.map(|speed| json!({ "latency_ns": speed.latency, "bandwidth_mbs": speed.bandwidth })),
            "measured": measured,
            "copies": {
                "rep_movsb_into_from": from(choice.string_into),
                "rep_movsb_out_of_from": from(choice.string_out_of),
                "four_pages_from": from(choice.four_pages),
                "nontemporal_from": from(choice.nontemporal),
                "owns_ahead": choice.owns_ahead,
                "stores_ahead": choice.stores_ahead,
                "demotes": choice.demotes,
                "evict_from": from(choice.evict_from),
            },
            "sizes": {
                "max_inline": MAX_INLINE,
                "eager_limit": tuning.eager_limit,
                "chunk_size": tuning.chunk_size,
                "chunks": tuning.window / tuning.chunk_size,
                "piece": tuning.tail_size,
                "ahead": tuning.window,
                "turn": tuning.window_single,
                "leave": from(tuning.evict_from),
                "coll_chunk": tuning.coll_chunk_size,
                "coll_turn": tuning.coll_rotation,
                "coll_lend": tuning.coll_zero_copy_limit,
            },
        })
    }

    fn as_text(&self) -> String {
        let machine = &self.machine;
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
        let has = |yes: bool, what: &str| if yes { what.to_owned() } else { format!("no {what}") };
        text += &format!(
            "Processor   {}, {}, {}\n",
            has(machine.avx, "AVX"),
            has(machine.fast_strings, "fast rep movsb (ERMS)"),
            has(machine.demotes, "CLDEMOTE")
        );
        text += &format!("Kept        {}\n", self.note);
        if let Some(Speed { latency, bandwidth }) = self.speed {
            text += &format!(
                "Speed       {latency} ns one way, {bandwidth} MB/s: by this UCX compares vmshm with networks\n"
            );
        }
        text += &self.copies();
        text + &self.sizes()
    }

    /// The ways of copying: what was chosen, and the times that say why.
    fn copies(&self) -> String {
        let mut text = String::from("\nCopies\n");
        for way in COMPARED {
            text += &format!("{:<38}{}\n", name(way), self.chosen(way));
        }
        let Some(measured) = &self.measured else { return text };
        let rows = &measured.rows;
        text += &format!(
            "\nTimes between CPUs {} and {}, divided by those of vectors; half of the rounds lay up to {:.0} % apart\n",
            measured.cpus[0],
            measured.cpus[1],
            measured.spread * 100.0
        );
        for way in COMPARED {
            let all: Vec<String> =
                ratios(rows, way).map(|(len, ratio)| format!("{} {ratio:.2}", bytes(len as u64))).collect();
            let all = if all.is_empty() { "not here".to_owned() } else { all.join(", ") };
            text += &format!("{:<38}{all}\n", name(way));
        }
        let is_cut = |way: Way| matches!(way, Way::Cut { .. });
        let cuts: Vec<_> = rows.iter().filter(|row| is_cut(row.way)).collect();
        let table = Choice::of(&self.machine);
        let usual = Way::Cut { chunk: table.chunk_size, rotation: table.rotation };
        if let Some(usual) = cuts.iter().find(|row| row.way == usual) {
            text += &format!(
                "\nTimes of {}, divided by those of the table's {}\n",
                bytes(usual.len as u64),
                name(usual.way)
            );
            for row in &cuts {
                let mark = if self.chosen(row.way) == "yes" { "  *" } else { "" };
                text += &format!("{:<38}{:.2}{mark}\n", name(row.way), row.time / usual.time);
            }
            text += "* is how messages are cut.\n";
        }
        text
    }

    fn sizes(&self) -> String {
        let tuning = self.tuning();
        let chunks = (tuning.window / tuning.chunk_size) as u64;
        let rows = [
            ("btl_vmshm_max_inline", MAX_INLINE, "longest message in the ring itself"),
            (
                "btl_vmshm_eager_limit",
                tuning.eager_limit,
                "longest message that goes unasked; the limit counts the header too",
            ),
            ("btl_vmshm_chunk_size", tuning.chunk_size, "chunk of a longer one, many under way"),
            ("", tuning.tail_size, "chunk of one that is alone"),
            ("", tuning.window_single, "memory of chunks that one takes in turn"),
            ("", tuning.window, "lead of the sender of many"),
            ("btl_vmshm_leave", tuning.evict_from, "just written for others: leaves the nearest cache"),
            ("coll_vmshm_chunk", tuning.coll_chunk_size, "chunk of a collective operation"),
            ("coll_vmshm_turn", tuning.coll_rotation, "memory of chunks that two members take in turn"),
            (
                "",
                tuning.coll_zero_copy_limit,
                "longest operand in the section that a reduction's root reads there",
            ),
        ];
        let mut text = String::from("\nSizes\n");
        for (name, size, what) in rows {
            let size = if size == usize::MAX { "never".to_owned() } else { bytes(size as u64) };
            text += &format!("{name:<24}{size:>9}  {what}\n");
        }
        text + &format!(
            "{:<24}{chunks:>9}  chunks for that lead, fewer in a small section\n",
            "btl_vmshm_chunks"
        )
    }
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
    use vmshm_transport::tune::{Row, Vendor};

    #[test]
    fn text_and_json_say_the_same() {
        let machine = Machine {
            vendor: Vendor::Amd,
            level1: 32 << 10,
            level2: 1 << 20,
            level3: 0,
            clock: 2100,
            avx: true,
            fast_strings: true,
            demotes: false,
        };
        let table = Choice::of(&machine);
        let usual = Way::Cut { chunk: table.chunk_size, rotation: table.rotation };
        let other = Way::Cut { chunk: 16 << 10, rotation: 512 << 10 };
        let rows = [
            (Way::Vectors, 4096, 1000.0),
            (Way::OwnAhead, 4096, 1500.0),
            (usual, 256 << 10, 2000.0),
            (other, 256 << 10, 1000.0),
        ]
        .map(|(way, len, time)| Row { way, len, time });
        let choice = Choice::measured(&machine, &rows);
        let measured = Measurement { cpus: [3, 5], far: None, rows: rows.into(), spread: 0.07 };
        let speed = Some(Speed { latency: 240, bandwidth: 9000 });
        let state = State { machine, choice, speed, measured: Some(measured), note: "in a file".into() };
        let (text, value) = (state.as_text(), state.as_json());
        assert!(text.contains("32 KiB first level, 1 MiB second, unknown third"), "{text}");
        assert!(text.contains("Kept        in a file") && text.contains("CPUs 3 and 5"), "{text}");
        assert!(text.contains("lines owned ahead (prefetchw)         no\n"), "{text}");
        assert!(text.contains("lines owned ahead (prefetchw)         4 KiB 1.50\n"), "{text}");
        assert!(text.contains("chunks of 16 KiB in 512 KiB of memory 0.50  *\n"), "{text}");
        assert!(text.contains("rep movsb into the section            never\n"), "{text}");
        assert!(text.contains("Speed       240 ns one way, 9000 MB/s"), "{text}");
        assert_eq!(value["speed"]["bandwidth_mbs"], 9000);
        assert_eq!(value["machine"]["level2"], 1 << 20);
        assert_eq!(value["sizes"]["chunk_size"], 16 << 10);
        assert_eq!(value["copies"]["owns_ahead"], false);
        assert!(value["copies"]["rep_movsb_into_from"].is_null());
        assert_eq!(value["measured"]["rows"][1]["nanoseconds"], 1500.0);
    }
}
