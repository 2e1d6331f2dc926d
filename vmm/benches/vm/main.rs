//! The transport between two VMs of ours, two of QEMU's, and two processes: the bench guest on this host's KVM, round by round.
//!
//! Prints `round NUMBER WAY NAME FIGURE`: nanoseconds one way (`line` and bytes, each with `-p50`, `-p90`, `-p99`) and messages
//! per second in streams, their median (`stream-BYTES`). `skipped: why` where it cannot be measured here, `without QEMU: why`
//! where QEMU cannot. `cargo xtask bench --vm` shows it as tables.

mod twins;

use std::process::ExitCode;

use twins::{MAX_TURNS, Round, SIZES, Way};
use vmshm_host::PageSize;
use vmshm_vmm::Host;

fn main() -> ExitCode {
    let number = |name: &str, default: u64| {
        let mut words = std::env::args().skip_while(|word| word != name).skip(1);
        words.next().map_or(Some(default), |word| word.parse().ok())
    };
    let (Some(rounds), Some(turns @ 1..=MAX_TURNS)) = (number("--rounds", 7), number("--turns", 20_000))
    else {
        eprintln!("--rounds and --turns want a number, the latter up to {MAX_TURNS}");
        return ExitCode::FAILURE;
    };
    match measure(rounds, turns) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
    }
}

fn measure(rounds: u64, turns: u64) -> Result<(), String> {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            println!("skipped: {error}");
            return Ok(());
        }
    };
    let Some(cpus) = twins::two_cpus() else {
        println!("skipped: this process may use one core only, and each side needs one");
        return Ok(());
    };
    if let Err(why) = twins::probe(&host) {
        println!("skipped: {why}");
        return Ok(());
    }
    let image = twins::image(&std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-guest"))?;
    let pages = twins::pages();
    println!("pages {}", if pages == PageSize::Base { "4 KiB" } else { "2 MiB" });
    let rate = twins::ticks_per_nanosecond();
    let mut ways = vec![(Way::Vm, "vm"), (Way::Process, "process")];
    // A try, so that what QEMU lacks here costs no round.
    match twins::run(&host, &image, Way::Qemu, 1, cpus, pages) {
        Ok(_) => ways.push((Way::Qemu, "qemu")),
        Err(why) => println!("without QEMU: {}", why.replace('\n', " ")),
    }
    // The first round warms up.
    for round in 0..=rounds {
        ways.rotate_left(1);
        for &(way, name) in &ways {
            let measured = twins::run(&host, &image, way, turns, cpus, pages)?;
            if measured.wrong > 0 || measured.checked != twins::to_check() {
                return Err(format!("{name}: {} of {} bytes were wrong", measured.wrong, measured.checked));
            }
            if round > 0 {
                show(round, name, &measured, turns, rate);
            }
        }
    }
    Ok(())
}

fn show(round: u64, way: &str, measured: &Round, turns: u64, rate: f64) {
    let times = |name: &str, samples: &[u32]| {
        let mut sorted = samples.to_vec();
        sorted.sort_unstable();
        for percent in [50, 90, 99] {
            let at = (sorted.len() * percent / 100).min(sorted.len() - 1);
            println!("round {round} {way} {name}-p{percent} {:.2}", f64::from(sorted[at]) / 2.0 / rate);
        }
    };
    let [before, after] = &measured.lines;
    times("line", before);
    times("line-after", after);
    for ((size, samples), ticks) in SIZES.into_iter().zip(&measured.turns).zip(&measured.streams) {
        times(&size.to_string(), samples);
        let mut sorted = *ticks;
        sorted.sort_unstable();
        let seconds = sorted[sorted.len() / 2] as f64 / rate / 1e9;
        let count = twins::stream_of(size, turns) as f64;
        println!("round {round} {way} stream-{size} {:.1}", count / seconds);
    }
}
