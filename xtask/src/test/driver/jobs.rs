//! Doorbells, and MPI jobs between guests that have the driver.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::guest::{LIMIT, SHORT, check, check_in, must, seed};
use crate::base::process::last_lines;
use crate::lab::{Lab, PAYLOAD};
use crate::mpi::guest_mpi::{self, Job};
use crate::mpi::host_mpi::Layer;
use crate::test::tally::Count;

/// Rings in each direction.
pub const RINGS: u64 = 10_000;

pub fn doorbell(lab: &mut Lab, rings: u64, logs: &Path) -> Result<Count> {
    let run = seed();
    let arguments = |guest: usize| {
        let first = if guest == 0 { "--first" } else { "" };
        format!("bell --peer {} --rounds {rings} --run {run} {first}", 1 - guest)
    };
    let (mut count, text) = check_in(lab, &[0, 1], arguments, logs, LIMIT * 2)?;
    let slowest =
        text.lines().filter_map(|line| line.split("slowest turn ").nth(1)).collect::<Vec<_>>().join(", ");
    count.note = format!("{rings} rings in each direction, slowest turns {slowest}");
    Ok(count)
}

pub fn mpi(lab: &mut Lab, all: bool, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-check --quick");
    let mut sum = Count::default();
    let jobs = [(4, Layer::Vmshm), (4, Layer::VmshmAndVader), (2, Layer::Vmshm)];
    // The step with a heap has two ranks as well.
    for (ranks, layer) in jobs.into_iter().take(if all { 3 } else { 2 }) {
        let job = Job { layer, as_user: true, ..Job::new(ranks, &program) };
        let log = logs.join(format!("check-{ranks}-{}.log", layer.name().replace(' ', "-")));
        let text = guest_mpi::run_job(lab, &job, &log, LIMIT * 2)?;
        let count = Count::of_checker(&text)
            .with_context(|| format!("vmshm-mpi-check printed no closing line; log: {}", log.display()))?;
        sum.add(&count);
        // vader's words for memory that the kernel can't read for another process.
        check(&mut sum, !text.contains("Read -1"), || {
            format!("vader was given memory of the device:\n{text}")
        });
    }
    sum.note = format!("by the user {} through /dev/vmshm0", guest_mpi::USER);
    Ok(sum)
}

/// The same with the programs' large allocations in the region, and windows that are read in place.
pub fn heap(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let arguments = format!(
        "-x LD_PRELOAD={PAYLOAD}/lib/libvmshm_heap.so -x VMSHM_HEAP=1 --mca osc vmshm,pt2pt -x OMPI_MCA_osc=vmshm,pt2pt"
    );
    let program = format!("{PAYLOAD}/bin/vmshm-heap-check --rounds 200");
    let job = Job { as_user: true, arguments: &arguments, ..Job::new(2, &program) };
    guest_mpi::run_job(lab, &job, &logs.join("heap.log"), LIMIT * 2)?;
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-check --quick");
    let job = Job { as_user: true, arguments: &arguments, ..Job::new(2, &program) };
    let log = logs.join("check.log");
    let text = guest_mpi::run_job(lab, &job, &log, LIMIT * 2)?;
    Count::of_checker(&text)
        .with_context(|| format!("vmshm-mpi-check printed no closing line; log: {}", log.display()))
}

/// Figures of the waiting rank of `vmshm-mpi-wait`: seconds that it waited, and of its processor time.
pub fn waiting(text: &str) -> Result<(f64, f64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("waited "));
    let (waited, used) =
        line.and_then(|line| line.split_once(" s, processor time ")).context("no figures")?;
    Ok((waited.parse()?, used.trim_end_matches(" s").parse()?))
}

pub fn sleep(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 5 --rounds 100");
    let mut figures = Vec::new();
    for (name, arguments) in [("spinning", ""), ("sleeping", "--mca btl_vmshm_sleep_after 1000")] {
        let job = Job { as_user: true, arguments, ..Job::new(2, &program) };
        let text = guest_mpi::run_job(lab, &job, &logs.join(format!("{name}.log")), LIMIT)?;
        ensure!(text.contains("exchanged 100 messages in each direction"), "{name}: {text}");
        figures.push(waiting(&text).with_context(|| format!("{name}: {text}"))?);
    }
    let share = |(waited, used): (f64, f64)| used / waited;
    let (spinning, sleeping) = (share(figures[0]), share(figures[1]));
    let mut count = Count { passed: 2, ..Count::default() };
    check(&mut count, sleeping < spinning / 4.0, || {
        format!("a sleeping rank used {sleeping:.3} of a processor, a spinning one {spinning:.3}")
    });
    count.note = format!(
        "processor time of a wait of {:.1} s: {:.2} s asleep, {:.2} s spinning",
        figures[1].0, figures[1].1, figures[0].1
    );
    Ok(count)
}

/// Starts a job in guest 0 that goes on while we do something else; `name` is that of its files in /tmp there.
pub fn in_background(lab: &mut Lab, name: &str, job: &Job<'_>) -> Result<()> {
    let script = job.script(lab.size());
    let text = format!(
        "cat > /tmp/{name}.sh <<'BACKGROUND'\n{script}BACKGROUND\n\
         rm -f /tmp/{name}.code\n\
         (setsid sh -c 'sh /tmp/{name}.sh > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code' &) < /dev/null\n"
    );
    must(lab, 0, &text, SHORT).map(drop)
}

/// Waits until a shell condition holds in a guest.
pub fn wait_for(
    lab: &mut Lab,
    guest: usize,
    condition: &str,
    limit: Duration,
    what: &str,
) -> Result<Duration> {
    let begin = Instant::now();
    let seconds = limit.as_secs();
    let script = format!(
        "end=$(($(date +%s) + {seconds}))\nuntil {condition}; do\n[ $(date +%s) -lt $end ] || exit 1\nsleep 0.1\ndone"
    );
    let answer = lab.run(guest, &script, limit * 2)?;
    ensure!(answer.code == 0, "{what} within {seconds} s of the guest's time");
    Ok(begin.elapsed())
}

/// Waits until a job in the background has ended; its exit code and what it printed.
pub fn background_end(lab: &mut Lab, name: &str, logs: &Path) -> Result<(i32, String)> {
    let waited = wait_for(lab, 0, &format!("[ -s /tmp/{name}.code ]"), LIMIT, "the job did not end");
    let text = must(lab, 0, &format!("cat /tmp/{name}.log"), SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join(format!("{name}.log")), &text)?;
    waited.with_context(|| last_lines(&text, 15))?;
    Ok((must(lab, 0, &format!("cat /tmp/{name}.code"), SHORT)?.trim().parse()?, text))
}
