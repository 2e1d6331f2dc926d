//! UCX's own benchmark, as server and client on a core each.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::case::{Case, PERFTEST};
use super::way::Way;
use crate::base::cleanup;
use crate::base::process::{Running, last_lines, mortal};
use crate::mpi::host_mpi::Layer;
use crate::mpi::osu::Points;

const LIMIT: Duration = Duration::from_secs(120);
const START: Duration = Duration::from_secs(10);

/// The sizes of a case, how often each, and how often before that.
pub type Sizes = Vec<(u64, u32, u32)>;

/// Runs a case once over a way, with `settings` for both processes.
pub fn run(case: &Case, way: Way, sizes: &Sizes, settings: &[String], out: &Path) -> Result<Points> {
    let port = free_port()?.to_string();
    let batch = out.join("perftest.batch");
    let test = [case.ours, device(case, way)].concat().join(" ");
    let line = |(size, iterations, warmup): &(u64, u32, u32)| {
        format!("{size} {test} -s {size} -n {iterations} -w {warmup}\n")
    };
    std::fs::write(&batch, sizes.iter().map(line).collect::<String>())?;
    let side = |core: &str| {
        let mut command: Command = mortal("taskset");
        // Ordinary memory, unless the way says otherwise: each transport would give the benchmark its own.
        command
            .args(["-c", core, "env", "UCX_ALLOC_PRIO=mmap,heap"])
            .args(settings)
            .args(way.layer.ucx_setting());
        // What mpirun would give to its processes.
        command.args(way.args.iter().filter(|word| **word != "-x"));
        command.args(["stdbuf", "-oL", PERFTEST, "-p", &port, "-v", "-b"]).arg(&batch);
        command
    };
    let log = |side: &str| out.join(format!("{}-{}-{side}.log", case.name, way.name).replace(' ', "-"));
    let mut server = Running::start(side("0"), PERFTEST, &log("server"))?;
    wait_until_reachable(&mut server)?;
    let mut client = side("1");
    client.arg("127.0.0.1");
    let done = Running::start(client, PERFTEST, &log("client"))?.wait(LIMIT)?;
    server.wait(LIMIT)?;
    let points = read(&done.text, case.less_is_better());
    if points.len() != sizes.len() {
        bail!("{} over {} has not measured all:\n{}", case.name, way.name, last_lines(&done.text, 10));
    }
    Ok(points)
}

/// A port that nobody has had before, and that the system gives to no connection by itself: those of a run over TCP had one, else, that
/// was free a moment ago.
fn free_port() -> Result<u16> {
    static NEXT: AtomicU16 = AtomicU16::new(20_000);
    loop {
        let port = NEXT.fetch_add(1, Ordering::Relaxed);
        if port >= 32_000 {
            bail!("no port below 32000 is free for {PERFTEST}");
        }
        if TcpListener::bind(("0.0.0.0", port)).is_ok() {
            return Ok(port);
        }
    }
}

/// What a test of UCT is told of its transport; one of UCP finds it.
fn device(case: &Case, way: Way) -> &'static [&'static str] {
    match (case.ours[1].starts_with("am_"), way.layer) {
        (true, Layer::UcxVmshm) => &["-x", "vmshm", "-d", "lab"],
        (true, Layer::UcxPosix) => &["-x", "posix", "-d", "memory"],
        (true, Layer::UcxTcp) => &["-x", "tcp", "-d", "lo"],
        _ => &[],
    }
}

fn wait_until_reachable(server: &mut Running) -> Result<()> {
    let begin = Instant::now();
    while !server.text().contains("Waiting for connection") {
        cleanup::check()?;
        if server.poll()?.is_some() || begin.elapsed() > START {
            bail!("{PERFTEST} cannot be reached:\n{}", last_lines(&server.text(), 10));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Reads lines of size, iterations, the median, the average and the overall latency (µs), average and overall MB/s, average and
/// overall messages a second. The latency is the median, the bandwidth the overall one.
fn read(text: &str, is_latency: bool) -> Points {
    let point = |line: &str| {
        let fields: Vec<&str> = line.split(',').map(str::trim).collect();
        // Interim figures have the name of a thread here.
        fields.get(1)?.parse::<u32>().ok()?;
        let figure = fields.get(if is_latency { 2 } else { 6 })?.parse().ok()?;
        Some((fields[0].parse().ok()?, figure))
    };
    text.lines().filter_map(point).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_final_line_of_a_size_counts() {
        let text = "batch,iterations,50.0_percentile_lat,avg_lat,overall_lat,avg_bw,overall_bw,avg_mr,overall_mr\n\
                    8,2000,0.306,0.310,0.311,24.61,24.62,3225767,3225768\n\
                    64,[thread 0]  20,24594.162,1,1,0.00,0.00,37,37\n\
                    64,2000,0.556,23.799,290.501,2.56,0.21,42019,3442\n";
        assert_eq!(read(text, true), [(8, 0.306), (64, 0.556)]);
        assert_eq!(read(text, false), [(8, 24.62), (64, 0.21)]);
    }
}
