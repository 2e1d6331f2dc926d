//! Steps that run UCX's own programs and MPI programs over the UCX transport, as processes of this host.

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::host::checked;
use super::tally::{Count, Tally};
use crate::base::cleanup;
use crate::base::process::{self, Finished, Running, last_lines, mortal};
use crate::install::stage;
use crate::install::ucx::Ucx;
use crate::lab::region::Region;
use crate::mpi::host_mpi::{HostMpi, Layer};
use crate::mpi::hpcc;

pub const REGION: &str = "512M";
/// Of one program.
pub const LIMIT: Duration = Duration::from_secs(150);
const START: Duration = Duration::from_secs(10);

/// Of `ucx_perftest`: messages in the ring, in a piece of the section, and by rendezvous.
pub const TESTS: &[&[&str]] = &[
    &["-t", "am_lat", "-d", "lab", "-x", "vmshm", "-s", "8", "-D", "short"],
    &["-t", "am_lat", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "bcopy"],
    &["-t", "am_bw", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "zcopy"],
    &["-t", "tag_lat", "-s", "8"],
    &["-t", "tag_lat", "-s", "4096"],
    &["-t", "tag_lat", "-s", "300000"],
    &["-t", "tag_bw", "-s", "300000"],
    &["-t", "ucp_am_lat", "-s", "8"],
    &["-t", "ucp_am_bw", "-s", "300000"],
];

/// Of one-sided operations, in an open region.
const ONE_SIDED: &[&[&str]] = &[
    &["-t", "put_lat", "-d", "lab", "-x", "vmshm", "-s", "8", "-D", "short"],
    &["-t", "put_lat", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "bcopy"],
    &["-t", "put_bw", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "bcopy"],
    &["-t", "put_bw", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "zcopy"],
    &["-t", "get", "-d", "lab", "-x", "vmshm", "-s", "4096", "-D", "bcopy"],
    &["-t", "get", "-d", "lab", "-x", "vmshm", "-s", "65536", "-D", "zcopy"],
    &["-t", "add_lat", "-d", "lab", "-x", "vmshm", "-s", "8"],
    &["-t", "fadd", "-d", "lab", "-x", "vmshm", "-s", "4"],
    &["-t", "swap", "-d", "lab", "-x", "vmshm", "-s", "8"],
    &["-t", "cswap", "-d", "lab", "-x", "vmshm", "-s", "4"],
    &["-t", "ucp_put_lat", "-s", "8"],
    &["-t", "ucp_put_bw", "-s", "100000"],
    &["-t", "ucp_get", "-s", "4096"],
    &["-t", "ucp_add", "-s", "8"],
    &["-t", "ucp_fadd", "-s", "4"],
    &["-t", "ucp_swap", "-s", "8"],
    &["-t", "ucp_cswap", "-s", "8"],
];

/// Parts of the message checker; any-change, of windows, does not end over UCX's own shared memory either.
const PARTS: &[&str] = &[
    "sizes",
    "modes",
    "wildcards",
    "order",
    "datatypes",
    "communicators",
    "patterns",
    "probing",
    "truncation",
    "collectives",
    "any-collective",
    "pressure",
];
/// Determines what the checker sends, so that two runs of it can be compared.
pub const SEED: &str = "1796023396";

/// Runs all of them; `stage` is the built tree, or why there is none.
pub fn steps(stage: &Result<std::path::PathBuf, String>, tally: &mut Tally) -> Result<()> {
    let stage = || stage::built(stage);
    tally.step("ucx-other-version", |logs| other_version(stage()?, logs))?;
    tally.step("ucx-perftest", |logs| perftest(stage()?, logs))?;
    tally.step("ucx-oshmem", |logs| oshmem(stage()?, logs))?;
    tally.step("ucx-check-3", |logs| check(stage()?, logs))?;
    tally.step("ucx-check-20", |logs| crowd(stage()?, logs))?;
    tally.step("ucx-hpcc", |logs| {
        let region = Region::create(stage()?, REGION, 2, true)?;
        let mpi = HostMpi::new(region.environment()?)?;
        Ok(Count { passed: hpcc::run(&mpi, Layer::UcxVmshm, logs, LIMIT)?, ..Count::default() })
    })
}

/// Open MPI's OpenSHMEM, which is one-sided operations of UCX, in an open region: with symmetric heaps of ordinary memory, and in the
/// sections.
fn oshmem(stage: &Path, logs: &Path) -> Result<Count> {
    let region = Region::create_open(stage, REGION, 2)?;
    let mpi = HostMpi::new(region.environment()?)?;
    fs::create_dir_all(logs)?;
    let (source, program) = (logs.join("oshmem.c"), logs.join("oshmem"));
    fs::write(&source, include_str!("oshmem.c"))?;
    let mut command = Command::new("oshcc");
    command.arg("-o").args([&program, &source]);
    process::run(command, "oshcc", &logs.join("oshcc.log"), LIMIT)?;
    let mut count = Count::default();
    for (memory, file) in [("mmap", "no file".into()), ("md:vmshm", region.file().display().to_string())] {
        let mut command = mpi.mpirun(3, Layer::UcxPosix);
        command.args(["env", "UCX_TLS=vmshm,self", &format!("LD_PRELOAD={}", library(stage)?)]);
        command.args([&format!("UCX_ALLOC_PRIO={memory}"), "SHMEM_SYMMETRIC_HEAP_SIZE=32M"]).arg(&program);
        let text = mpi.run(command, "oshmem", &logs.join(format!("{memory}.log")), LIMIT)?.text;
        // By these lines: Debian's shmem_finalize ends in SIGSEGV, over UCX's own shared memory too.
        let says = |element: usize, what: &str| text.contains(&format!("element {element}: {what}\n"));
        if !(0..3).all(|element| says(element, "0 wrong") && says(element, &format!("heap in {file}"))) {
            bail!("OpenSHMEM over vmshm, its heap from {memory}:\n{}", last_lines(&text, 25));
        }
        count.passed += 1;
    }
    Ok(count)
}

/// A UCX of another series: the library says so in one line, and is none of its transports.
fn other_version(stage: &Path, logs: &Path) -> Result<Count> {
    let region = Region::create(stage, REGION, 2, true)?;
    fs::create_dir_all(logs)?;
    let (source, other) = (logs.join("other.c"), logs.join("other.so"));
    fs::write(
        &source,
        "void ucp_get_version(unsigned *a, unsigned *b, unsigned *c) { *a = 1; *b = 99; *c = 7; }\n",
    )?;
    let mut command = Command::new("cc");
    command.args(["-shared", "-fPIC", "-o"]).args([&other, &source]);
    process::run(command, "cc", &logs.join("cc.log"), LIMIT)?;
    let lines = |name: &str, preload: String| {
        let mut command = Command::new("ucx_info");
        command.arg("-d").env("LD_PRELOAD", preload).env("VMSHM_DEVICE", region.file());
        let text = process::run(command, "ucx_info", &logs.join(format!("{name}.log")), LIMIT)?.text;
        let of_ours = text.lines().filter(|line| line.contains("vmshm"));
        Ok::<_, anyhow::Error>(of_ours.map(str::to_owned).collect::<Vec<_>>())
    };
    let own = lines("own", library(stage)?)?;
    if !own.iter().any(|line| line.contains("Transport: vmshm")) {
        bail!("ucx_info has no transport vmshm: {own:?}");
    }
    let declined = lines("other", format!("{} {}", other.display(), library(stage)?))?;
    match &declined[..] {
        [line] if line.contains("and 1.99.7 is running: it stays out") => Ok(Count::one()),
        _ => bail!("with another UCX, ucx_info says of vmshm: {declined:?}"),
    }
}

/// The transport, as it is installed.
fn library(stage: &Path) -> Result<String> {
    Ok(stage.join(Ucx::found()?.transport()).display().to_string())
}

/// UCX's own program as server and client, each in a section of its own.
struct Pair<'a> {
    stage: &'a Path,
    region: &'a Region,
    port: String,
}

impl<'a> Pair<'a> {
    fn new(stage: &'a Path, region: &'a Region) -> Result<Self> {
        let port = TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port().to_string();
        Ok(Self { stage, region, port })
    }

    fn program(&self, section: &str) -> Result<Command> {
        // Lines at once: the server's say when it can be reached.
        let mut command = mortal("stdbuf");
        command.args(["-oL", "ucx_perftest"]).env("LD_PRELOAD", library(self.stage)?);
        command.env("VMSHM_DEVICE", self.region.file()).env("VMSHM_SECTION", section);
        command.env("UCX_TLS", "vmshm,self").args(["-p", &self.port]);
        Ok(command)
    }

    fn server(&self, arguments: &[&str], log: &Path) -> Result<Running> {
        let mut command = self.program("0")?;
        command.args(arguments);
        let mut server = Running::start(command, "ucx_perftest", log)?;
        wait_for(&mut server, "Waiting for connection")?;
        Ok(server)
    }

    fn client(&self, arguments: &[&str]) -> Result<Command> {
        let mut command = self.program("1")?;
        command.arg("127.0.0.1").args(arguments);
        Ok(command)
    }
}

/// Waits until a program has said `words`.
pub fn wait_for(program: &mut Running, words: &str) -> Result<()> {
    let begin = Instant::now();
    while !program.text().contains(words) {
        cleanup::check()?;
        if program.poll()?.is_some() || begin.elapsed() > START {
            bail!("ucx_perftest does not say '{words}':\n{}", last_lines(&program.text(), 10));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// `ucx_perftest` of each kind of message. It does not look at the data: the checker does.
fn perftest(stage: &Path, logs: &Path) -> Result<Count> {
    let closed = Region::create(stage, REGION, 2, true)?;
    let open = Region::create_open(stage, REGION, 2)?;
    let mut count = Count::default();
    let tests = TESTS.iter().map(|test| (&closed, test)).chain(ONE_SIDED.iter().map(|test| (&open, test)));
    for (number, (region, test)) in tests.enumerate() {
        let pair = Pair::new(stage, region)?;
        let log = |side: &str| logs.join(format!("{number}-{}-{side}.log", test[1]));
        let server = pair.server(&[], &log("server"))?;
        let mut client = pair.client(test)?;
        client.args(["-n", "2000", "-w", "100", "-f"]);
        let what = format!("ucx_perftest {}", test.join(" "));
        let text = process::run(client, &what, &log("client"), LIMIT)?.text;
        server.wait(LIMIT)?.expect_success(&what)?;
        if text.contains(" ERROR ") || text.contains(" WARN ") {
            bail!("{what}:\n{}", last_lines(&text, 10));
        }
        count.passed += 1;
    }
    Ok(count)
}

/// The message checker over pml/ucx: each part must end as it does over UCX's own shared memory. pml/ucx leaves a buffer as it
/// was where a message is too long for it, which the checker calls wrong over either.
fn check(stage: &Path, logs: &Path) -> Result<Count> {
    let region = Region::create(stage, REGION, 2, true)?;
    let mpi = HostMpi::new(region.environment()?)?;
    compare(|name, transports| {
        let mut command: Command = mpi.mpirun(3, Layer::UcxPosix);
        command.arg("env").arg(transports).arg(stage.join("bin/vmshm-mpi-check")).args(arguments());
        mpi.run(command, name, &logs.join(format!("{name}.log")), LIMIT)
    })
}

/// The checker with ten times as many processes as two cores: pml/ucx passes these parts.
fn crowd(stage: &Path, logs: &Path) -> Result<Count> {
    let region = Region::create(stage, REGION, 2, true)?;
    let mpi = HostMpi::new(region.environment()?)?;
    let mut command = mpi.mpirun(20, Layer::UcxVmshm);
    command.arg(stage.join("bin/vmshm-mpi-check")).args(["--quick", "--timeout", "120"]);
    command.args(["wildcards", "order", "patterns", "pressure"].iter().flat_map(|part| ["--only", part]));
    checked(mpi.run(command, "vmshm-mpi-check", &logs.join("check.log"), LIMIT)?)
}

/// What the message checker is told.
pub fn arguments() -> impl Iterator<Item = &'static str> {
    let parts = PARTS.iter().flat_map(|part| ["--only", *part]);
    ["--quick", "--seed", SEED, "--timeout", "60"].into_iter().chain(parts)
}

/// Runs the checker over UCX's own shared memory and over ours, by a name and a setting for UCX: each part must end alike.
pub fn compare(run: impl Fn(&str, &str) -> Result<Finished>) -> Result<Count> {
    let run = |name: &str, transports: &str| {
        let text = run(name, transports)?.text;
        let count = Count::of_checker(&text)
            .with_context(|| format!("over {name} no closing line:\n{}", last_lines(&text, 25)))?;
        Ok::<_, anyhow::Error>((verdicts(&text), count))
    };
    let (wanted, _) = run("posix", "UCX_TLS=posix,self")?;
    // With this choice, UCX does not start where the plugin's memory pool has not loaded ours.
    let (got, count) = run("vmshm", "UCX_TLS=vmshm,self")?;
    let differ: Vec<&String> = wanted.keys().filter(|part| wanted.get(*part) != got.get(*part)).collect();
    if !differ.is_empty() || wanted.len() != got.len() || count.passed == 0 {
        bail!("over posix and over vmshm, different: {differ:?}");
    }
    let note = format!("{} fail over UCX's posix too", count.failed);
    Ok(Count { passed: count.passed, skipped: count.skipped, note, ..Count::default() })
}

/// How each part of the checker has ended.
fn verdicts(text: &str) -> BTreeMap<String, String> {
    let of_line = |line: &str| {
        let mut words = line.split_whitespace();
        let verdict = words.next().filter(|word| ["ok", "FAIL", "skip"].contains(word))?;
        Some((words.next()?.to_owned(), verdict.to_owned()))
    };
    text.lines().filter_map(of_line).collect()
}
