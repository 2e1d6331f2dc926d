//! Steps that try the guest driver in guests with an unmodified kernel.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use super::tally::{Count, Tally};
use crate::base::process::last_lines;
use crate::base::workspace::Workspace;
use crate::install;
use crate::kernel::kmod;
use crate::kernel::{self, Kernel};
use crate::lab::accel::Accel;
use crate::lab::image::Image;
use crate::lab::region::Region;
use crate::lab::{Lab, PAYLOAD, Plan, Sharing};
use crate::mpi::guest_mpi::{self, Job};
use crate::mpi::host_mpi::Layer;

const LIMIT: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_secs(15);

/// Where the module lies in the payload.
const MODULE: &str = "driver/vmshm.ko";
/// Times that the module is loaded and unloaded.
const LOADS: usize = 50;
/// Random calls in each guest.
const CALLS: u64 = 20_000;
/// Rings in each direction.
const RINGS: u64 = 10_000;
/// Processes that are killed.
const DEATHS: u32 = 100;

/// What the guests are made of.
#[derive(Debug)]
pub struct Parts {
    stage: PathBuf,
    image: Image,
    accel: Accel,
    kernel: Kernel,
}

/// What the guests are made of, or why there can be none.
pub type Ground = Result<Parts, String>;

/// Fetches the kernel, builds the driver for it and lays it beside everything else in `stage`.
pub fn prepare(
    workspace: &Workspace,
    stage: &Path,
    image: &Image,
    accel: Accel,
    logs: &Path,
) -> Result<Parts> {
    let kernel = kernel::stock(workspace, logs)?;
    let module = kmod::module(workspace, logs)?;
    ensure!(
        module.release == kernel.release,
        "the driver is for {}, the guests run {}",
        module.release,
        kernel.release
    );
    install::place(&module.file, &stage.join(MODULE), 0o644)?;
    Ok(Parts { stage: stage.to_owned(), image: kernel.under(image), accel, kernel })
}

/// Two guests with doorbells, booted by the first step which needs them.
#[derive(Debug)]
struct Pair<'a> {
    ground: &'a Ground,
    lab: Option<Result<Lab, String>>,
}

impl Pair<'_> {
    fn lab(&mut self, logs: &Path) -> Result<&mut Lab> {
        let lab = self.lab.get_or_insert_with(|| {
            let sharing = Sharing { doorbell: true, spare: 1, ..Sharing::default() };
            start(self.ground, 2, &sharing, logs).map_err(|error| format!("{error:#}"))
        });
        lab.as_mut().map_err(|why| anyhow::anyhow!("there are no guests: {why}"))
    }

    fn release(&self) -> Result<String> {
        self.ground.as_ref().map(|parts| parts.kernel.release.clone()).map_err(|why| anyhow::anyhow!("{why}"))
    }
}

fn start(ground: &Ground, guests: usize, sharing: &Sharing, logs: &Path) -> Result<Lab> {
    let parts = ground.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let plan = Plan { image: &parts.image, payload: &parts.stage, accel: parts.accel, guests, log_dir: logs };
    let mut lab = Lab::sharing(&plan, sharing)?;
    for guest in 0..guests {
        // What a distribution does at boot: here with the rule that we install.
        must(
            &mut lab,
            guest,
            &format!(
                "set -e\n\
                 mount -t debugfs debugfs /sys/kernel/debug\n\
                 mount -t tracefs tracefs /sys/kernel/tracing\n\
                 mkdir -p /run/udev/rules.d\n\
                 cp {PAYLOAD}/lib/udev/rules.d/60-vmshm.rules /run/udev/rules.d\n\
                 /lib/systemd/systemd-udevd --daemon\n\
                 insmod {PAYLOAD}/{MODULE}\n\
                 udevadm settle --timeout=30\n"
            ),
            LIMIT,
        )
        .context("the driver cannot be loaded")?;
    }
    Ok(lab)
}

/// Runs all of them. Returns how many boots were repeated.
pub fn steps(ground: &Ground, tally: &mut Tally) -> Result<usize> {
    let mut pair = Pair { ground, lab: None };
    let release = pair.release();
    tally.step("guests-driver-load", |logs| {
        let release = release?;
        checked(pair.lab(logs)?, logs, |lab| load(lab, &release, logs))
    })?;
    tally.step("guests-driver-mmap", |logs| checked(pair.lab(logs)?, logs, |lab| mmap(lab, logs)))?;
    tally.step("guests-driver-calls", |logs| checked(pair.lab(logs)?, logs, |lab| calls(lab, logs)))?;
    tally.step("guests-driver-fuzz", |logs| checked(pair.lab(logs)?, logs, |lab| fuzz(lab, logs)))?;
    tally.step("guests-driver-unbind", |logs| checked(pair.lab(logs)?, logs, |lab| unbind(lab, logs)))?;
    tally.step("guests-driver-doorbell", |logs| {
        checked(pair.lab(logs)?, logs, |lab| doorbell(lab, RINGS, logs))
    })?;
    let all = tally.all();
    tally.step("guests-driver-mpi", |logs| checked(pair.lab(logs)?, logs, |lab| mpi(lab, all, logs)))?;
    tally.step("guests-driver-heap", |logs| checked(pair.lab(logs)?, logs, |lab| heap(lab, logs)))?;
    tally.step("guests-driver-sleep", |logs| checked(pair.lab(logs)?, logs, |lab| sleep(lab, logs)))?;
    tally.step("guests-driver-death", |logs| checked(pair.lab(logs)?, logs, |lab| death(lab, logs)))?;
    tally.step("guests-driver-suspend", |logs| checked(pair.lab(logs)?, logs, |lab| suspend(lab, logs)))?;
    tally.step("guests-driver-unplug", |logs| checked(pair.lab(logs)?, logs, |lab| unplug(lab, logs)))?;
    // The last one: it ends a guest.
    tally.step("guests-driver-vm-end", |logs| vm_end(pair.lab(logs)?, logs))?;
    let mut repeated = pair.lab.iter().flatten().map(|lab| lab.repeated_boots).sum();
    // Their memory and processors are for the next lab.
    drop(pair);
    tally.step("guests-driver-plain", |logs| {
        let (count, boots) = plain(ground, logs)?;
        repeated += boots;
        Ok(count)
    })?;
    Ok(repeated)
}

/// Runs a script that must succeed; returns what it printed.
fn must(lab: &mut Lab, guest: usize, script: &str, limit: Duration) -> Result<String> {
    let answer = lab.run(guest, script, limit)?;
    if answer.code != 0 {
        bail!(
            "in guest {guest} this ended with exit code {}: {}\n{}",
            answer.code,
            script.trim(),
            last_lines(&answer.text, 15)
        );
    }
    Ok(answer.text)
}

/// Runs the checker in some guests at once, its arguments depending on the guest, and adds up what it counts.
fn check_in(
    lab: &mut Lab,
    guests: &[usize],
    arguments: impl Fn(usize) -> String,
    logs: &Path,
    limit: Duration,
) -> Result<(Count, String)> {
    fs::create_dir_all(logs)?;
    for &guest in guests {
        lab.send(guest, &format!("{PAYLOAD}/bin/vmshm-driver-check {}", arguments(guest)))?;
    }
    let mut sum = Count::default();
    let mut texts = String::new();
    let mut trouble = None;
    for &guest in guests {
        let arguments = arguments(guest);
        // All are waited for, so that the guests obey afterwards.
        match lab.receive(guest, limit) {
            Err(error) => trouble = trouble.or(Some(error)),
            Ok(answer) => {
                texts += &format!("guest {guest}: vmshm-driver-check {arguments}\n{}\n", answer.text);
                match Count::of_checker(&answer.text) {
                    Some(count) => sum.add(&count),
                    None => {
                        let text = last_lines(&answer.text, 15);
                        let error = anyhow::anyhow!("{arguments} in guest {guest} did not close:\n{text}");
                        trouble = trouble.or(Some(error));
                    }
                }
            }
        }
    }
    let name = arguments(guests[0]).split_whitespace().next().unwrap_or("check").to_owned();
    fs::write(logs.join(format!("{name}.log")), &texts)?;
    if let Some(error) = trouble {
        return Err(error);
    }
    for line in texts.lines().filter(|line| line.starts_with("FAILED")) {
        println!("{line}");
    }
    Ok((sum, texts))
}

/// What the kernel says when something is wrong with it.
const COMPLAINTS: &[&str] = &[
    "Oops",
    "WARNING:",
    "BUG:",
    "Call Trace",
    "unable to handle",
    "refcount_t",
    "general protection",
    "Kernel panic",
    "possible recursive locking",
    "circular locking",
    "inconsistent lock state",
    "held lock",
    "blocked for more than",
    "soft lockup",
    "x86/PAT: vmshm",
    "rust_kernel: panicked",
    "nobody cared",
];

/// Does something in the guests, then looks for complaints of their kernels, which make it a failure.
fn checked(lab: &mut Lab, logs: &Path, work: impl FnOnce(&mut Lab) -> Result<Count>) -> Result<Count> {
    let result = work(lab);
    let mut complaints = String::new();
    for guest in 0..lab.size() {
        complaints += &complaints_of(lab, guest, logs)?;
    }
    match (result, complaints.is_empty()) {
        (Ok(mut count), true) => {
            count.passed += 1;
            Ok(count)
        }
        (Ok(_), false) => bail!("the kernel complains:\n{complaints}"),
        (Err(error), true) => Err(error),
        (Err(error), false) => Err(error.context(format!("the kernel complains:\n{complaints}"))),
    }
}

/// The lines in which a guest's kernel complains, since the last time. Everything that it says goes to the logs.
fn complaints_of(lab: &mut Lab, guest: usize, logs: &Path) -> Result<String> {
    let text = must(lab, guest, "dmesg --read-clear", SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join(format!("vm{guest}-dmesg.log")), &text)?;
    let bad = |line: &&str| COMPLAINTS.iter().any(|complaint| line.contains(complaint));
    let lines: Vec<&str> = text.lines().filter(bad).take(5).collect();
    Ok(lines.iter().map(|line| format!("vm{guest}: {line}\n")).collect())
}

/// Counts checks that are made here.
fn check(count: &mut Count, holds: bool, what: impl FnOnce() -> String) {
    if holds {
        count.passed += 1;
    } else {
        count.failed += 1;
        println!("FAILED  {}", what());
    }
}

/// An attribute of a device.
fn attribute(lab: &mut Lab, guest: usize, device: &str, name: &str) -> Result<String> {
    Ok(must(lab, guest, &format!("cat /sys/class/misc/{device}/{name}"), SHORT)?.trim().to_owned())
}

fn load(lab: &mut Lab, release: &str, logs: &Path) -> Result<Count> {
    let mut count = Count::default();
    let seen = lab.region().inspect()?;
    for guest in 0..lab.size() {
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        let sections = seen["sections"].as_array().map_or(0, Vec::len);
        let wanted = [
            ("region_id", text(&seen["id"])),
            ("size", text(&seen["size"])),
            ("sections", sections.to_string()),
            ("section", guest.to_string()),
            ("numa_node", "-1".to_owned()),
            ("memory_type", "write-back".to_owned()),
            ("vectors", "8".to_owned()),
        ];
        for (name, want) in wanted {
            let got = attribute(lab, guest, "vmshm0", name)?;
            check(&mut count, got == want, || format!("{name} of guest {guest} is {got}, not {want}"));
        }
        let rights = must(lab, guest, "stat -c '%U:%G %a' /dev/vmshm0", SHORT)?;
        check(&mut count, rights.trim() == "root:vmshm 660", || format!("/dev/vmshm0 is {rights}"));
        memory_type(lab, guest, &mut count)?;
    }

    let info = must(lab, 0, &format!("modinfo {PAYLOAD}/{MODULE}"), SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join("modinfo.log"), &info)?;
    let field = |name: &str| {
        let mut lines = info.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(key, _)| *key == name).map(|(_, value)| value.trim().to_owned()).unwrap_or_default()
    };
    for name in ["author", "description", "version"] {
        check(&mut count, !field(name).is_empty(), || format!("modinfo shows no {name}"));
    }
    for (name, want) in [
        ("name", "vmshm"),
        ("license", "GPL"),
        ("alias", "pci:v00001AF4d00001110sv*sd*bc*sc*i*"),
        ("vermagic", release),
    ] {
        let got = field(name);
        check(&mut count, got.split(' ').next() == Some(want), || format!("modinfo's {name} is {got:?}"));
    }

    // The shell opens the file before it becomes sleep; the module must be held all the time.
    let refused = lab.run(0, "exec 9< /dev/vmshm0\nrmmod vmshm\ncode=$?\nexec 9<&-\nexit $code", SHORT)?;
    check(&mut count, refused.code != 0 && refused.text.contains("in use"), || {
        format!("rmmod with an open file: exit code {}, {}", refused.code, refused.text)
    });
    let text = must(
        lab,
        0,
        &format!(
            "i=0\n\
             while [ $i -lt {LOADS} ]; do\n\
             rmmod vmshm || exit 1\n\
             [ ! -e /dev/vmshm0 ] || {{ echo \"round $i: the device is still there\"; exit 1; }}\n\
             insmod {PAYLOAD}/{MODULE} || exit 1\n\
             [ -c /dev/vmshm0 ] || {{ echo \"round $i: there is no device\"; exit 1; }}\n\
             i=$((i + 1))\n\
             done\n\
             udevadm settle --timeout=30\n\
             echo $i rounds"
        ),
        LIMIT,
    )?;
    check(&mut count, text.trim() == format!("{LOADS} rounds"), || text);
    count.note = format!("{LOADS} times loaded and unloaded");
    Ok(count)
}

/// What the kernel's own list says of the memory behind `/dev/vmshm0`.
fn memory_type(lab: &mut Lab, guest: usize, count: &mut Count) -> Result<()> {
    let text = must(
        lab,
        guest,
        "sed -n 3p /sys/class/misc/vmshm0/device/resource; cat /sys/kernel/debug/x86/pat_memtype_list",
        SHORT,
    )?;
    let mut lines = text.lines();
    let bar = lines.next().unwrap_or_default().to_owned();
    let mut numbers =
        bar.split_whitespace().filter_map(|word| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok());
    let (Some(start), Some(end)) = (numbers.next(), numbers.next()) else { bail!("BAR 2 is {bar:?}") };
    check(count, start >= 1 << 32, || format!("BAR 2 of guest {guest} is at {start:#x}, below 4 GiB"));
    let range = format!("[mem 0x{start:016x}-0x{:016x}]", end + 1);
    let found: Vec<&str> = lines.filter(|line| line.contains(&range)).collect();
    check(count, found.len() == 1 && found[0].contains("write-back"), || {
        format!("pat_memtype_list of guest {guest} says {found:?} of {range}:\n{text}")
    });
    Ok(())
}

fn seed() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(1, |time| time.as_secs())
}

/// Each guest writes a pattern, and each other reads it.
fn exchange(lab: &mut Lab, paint: bool, seed: u64, logs: &Path) -> Result<Count> {
    let guests: Vec<usize> = (0..lab.size()).collect();
    for &guest in guests.iter().filter(|_| paint) {
        let seed = seed + guest as u64;
        must(lab, guest, &format!("{PAYLOAD}/bin/vmshm-driver-check paint --seed {seed}"), SHORT)?;
    }
    let other = |guest: usize| (guest + 1) % guests.len();
    let arguments =
        |guest| format!("compare --section {} --seed {}", other(guest), seed + other(guest) as u64);
    Ok(check_in(lab, &guests, arguments, logs, SHORT)?.0)
}

fn mmap(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let (mut count, _) = check_in(lab, &[0, 1], |_| "mmap".into(), logs, LIMIT)?;
    count.add(&check_in(lab, &[0], |_| "faults".into(), logs, LIMIT)?.0);
    count.add(&exchange(lab, true, seed(), logs)?);
    Ok(count)
}

fn calls(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let vacant = lab.size();
    // One after the other: they count each ring.
    let (mut count, _) = check_in(lab, &[0], |_| format!("calls --vacant {vacant}"), logs, LIMIT)?;
    count.add(&check_in(lab, &[0, 1], |_| "lives".into(), logs, LIMIT)?.0);
    Ok(count)
}

fn fuzz(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let seed = seed();
    let arguments = |guest| format!("fuzz --seed {} --calls {CALLS}", seed + guest as u64);
    let (mut count, _) = check_in(lab, &[0, 1], arguments, logs, LIMIT * 2)?;
    count.note = format!("{CALLS} calls in each guest, seeds {seed} and {}", seed + 1);
    Ok(count)
}

fn unbind(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let (mut count, _) = check_in(lab, &[0, 1], |_| "unbind".into(), logs, LIMIT * 2)?;
    for guest in 0..2 {
        must(lab, guest, "udevadm settle --timeout=30", LIMIT)?;
    }
    another_s_section(lab, &mut count)?;
    Ok(count)
}

/// A section whose row names another machine than this one is not this one's, whatever number its device was given.
fn another_s_section(lab: &mut Lab, count: &mut Count) -> Result<()> {
    // The word `vm_id` of row 0, see `abi/src/region.rs`.
    const VM_ID: u64 = 256 + 52;
    let file = fs::File::options().read(true).write(true).open(lab.region().file())?;
    let mut before = [0; 4];
    file.read_exact_at(&mut before, VM_ID)?;
    let bind_anew = "cd /sys/bus/pci/drivers/vmshm && device=$(echo 0000:*) && echo $device > unbind && \
                     echo $device > bind && udevadm settle --timeout=30";
    file.write_all_at(&(u32::from_ne_bytes(before) + 64).to_ne_bytes(), VM_ID)?;
    let rebound = must(lab, 0, bind_anew, LIMIT);
    file.write_all_at(&before, VM_ID)?;
    rebound?;
    let section = attribute(lab, 0, "vmshm0", "section")?;
    check(count, section == "none", || format!("guest 0 took section {section}, which was another's"));
    // To open the device is to look again.
    must(lab, 0, ": < /dev/vmshm0", SHORT)?;
    let section = attribute(lab, 0, "vmshm0", "section")?;
    check(count, section == "0", || format!("the section of guest 0 is {section}, not 0"));
    Ok(())
}

fn doorbell(lab: &mut Lab, rings: u64, logs: &Path) -> Result<Count> {
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

fn mpi(lab: &mut Lab, all: bool, logs: &Path) -> Result<Count> {
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
fn heap(lab: &mut Lab, logs: &Path) -> Result<Count> {
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

/// What the waiting rank of `vmshm-mpi-wait` says: seconds that it waited, and of its processor time.
fn waiting(text: &str) -> Result<(f64, f64)> {
    let line = text.lines().find_map(|line| line.strip_prefix("waited "));
    let (waited, used) =
        line.and_then(|line| line.split_once(" s, processor time ")).context("no figures")?;
    Ok((waited.parse()?, used.trim_end_matches(" s").parse()?))
}

fn sleep(lab: &mut Lab, logs: &Path) -> Result<Count> {
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
fn in_background(lab: &mut Lab, name: &str, job: &Job<'_>) -> Result<()> {
    let script = job.script(lab.size());
    let text = format!(
        "cat > /tmp/{name}.sh <<'BACKGROUND'\n{script}BACKGROUND\n\
         rm -f /tmp/{name}.code\n\
         (setsid sh -c 'sh /tmp/{name}.sh > /tmp/{name}.log 2>&1; echo $? > /tmp/{name}.code' &) < /dev/null\n"
    );
    must(lab, 0, &text, SHORT).map(drop)
}

/// Waits until a shell condition holds in a guest.
fn wait_for(lab: &mut Lab, guest: usize, condition: &str, limit: Duration, what: &str) -> Result<Duration> {
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
fn background_end(lab: &mut Lab, name: &str, logs: &Path) -> Result<(i32, String)> {
    let waited = wait_for(lab, 0, &format!("[ -s /tmp/{name}.code ]"), LIMIT, "the job did not end");
    let text = must(lab, 0, &format!("cat /tmp/{name}.log"), SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join(format!("{name}.log")), &text)?;
    waited.with_context(|| last_lines(&text, 15))?;
    Ok((must(lab, 0, &format!("cat /tmp/{name}.code"), SHORT)?.trim().parse()?, text))
}

/// Endpoints that the region still holds, as the host sees them.
fn endpoints(lab: &Lab) -> Result<Vec<String>> {
    let seen = lab.region().inspect()?;
    let sections = seen["sections"].as_array().context("no sections")?;
    let endpoints = sections.iter().filter_map(|section| section["endpoints"].as_array()).flatten();
    Ok(endpoints.filter(|endpoint| endpoint["state"] != "gone").map(Value::to_string).collect())
}

fn no_endpoints(lab: &Lab, count: &mut Count) -> Result<()> {
    let left = endpoints(lab)?;
    check(count, left.is_empty(), || format!("endpoints that nobody has are left: {}", left.join(", ")));
    Ok(())
}

fn death(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let arguments = |guest| match guest {
        0 => format!("death connect --rounds {DEATHS}"),
        _ => "death serve".to_owned(),
    };
    let (mut count, text) = check_in(lab, &[0, 1], arguments, logs, LIMIT * 2)?;
    let reports: Vec<&str> =
        text.lines().filter_map(|line| line.split("the slowest report took ").nth(1)).collect();
    count.note = format!("{DEATHS} killed, slowest reports {}", reports.join(" and "));
    no_endpoints(lab, &mut count)?;

    // A rank of a running job, and the next job.
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 1000000 --pause 0");
    in_background(lab, "killed", &Job::new(4, &program))?;
    wait_for(lab, 0, "grep -q waited /tmp/killed.log", LIMIT, "the job did not begin")?;
    must(lab, 1, "kill -9 $(pgrep -n -x vmshm-mpi-wait)", SHORT)?;
    let (code, text) = background_end(lab, "killed", logs)?;
    check(&mut count, code != 0, || format!("a job with a killed rank ended with exit code {code}: {text}"));
    for guest in 0..2 {
        wait_for(lab, guest, "! pgrep -x vmshm-mpi-wait > /dev/null", LIMIT, "a rank was left")?;
    }
    no_endpoints(lab, &mut count)?;
    next_job(lab, &mut count, logs)?;
    Ok(count)
}

/// A job that must find everything clean.
fn next_job(lab: &mut Lab, count: &mut Count, logs: &Path) -> Result<()> {
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 50");
    let job = Job { as_user: true, ..Job::new(2, &program) };
    let text = guest_mpi::run_job(lab, &job, &logs.join("next-job.log"), LIMIT).context("the next job")?;
    check(count, text.contains("exchanged 50 messages"), || text);
    Ok(())
}

fn suspend(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let seed = seed();
    let mut count = exchange(lab, true, seed, logs)?;
    must(
        lab,
        0,
        "cd /sys/power\n\
         echo devices > pm_test || exit 1\n\
         for state in $(cat state); do [ $state = disk ] || echo $state > state || exit 1; done\n\
         echo none > pm_test\n",
        LIMIT,
    )?;
    count.add(&exchange(lab, false, seed, logs)?);
    count.add(&doorbell(lab, 200, logs)?);
    // To memory in earnest: the machine is off, all but its memory, until somebody wakes it.
    lab.send(0, "cd /sys/power && echo deep > mem_sleep && echo mem > state")?;
    let monitor = lab.monitor(0)?;
    monitor.wait_event("SUSPEND", None, LIMIT)?;
    monitor.execute("system_wakeup", json!({}))?;
    let answer = lab.receive(0, LIMIT)?;
    ensure!(answer.code == 0, "suspend to memory: exit code {}, {}", answer.code, answer.text);
    count.add(&exchange(lab, false, seed, logs)?);
    count.add(&doorbell(lab, 200, logs)?);
    Ok(count)
}

fn unplug(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let mut count = Count::default();
    let program = format!("{PAYLOAD}/bin/vmshm-mpi-wait --seconds 0 --rounds 100000000 --pause 0");
    in_background(lab, "unplugged", &Job::new(2, &program))?;
    wait_for(lab, 0, "grep -q waited /tmp/unplugged.log", LIMIT, "the job did not begin")?;
    lab.unplug(1)?;
    let (code, text) = background_end(lab, "unplugged", logs)?;
    check(&mut count, code != 0, || "a job whose device was unplugged ended as if nothing was".into());
    check(&mut count, text.contains("The device /dev/vmshm0 is gone."), || {
        format!("the job does not say what happened:\n{}", last_lines(&text, 20))
    });
    let gone = lab.run(1, "[ ! -e /dev/vmshm0 ]", SHORT)?;
    check(&mut count, gone.code == 0, || "/dev/vmshm0 is still there".into());
    for guest in 0..2 {
        wait_for(lab, guest, "! pgrep -x vmshm-mpi-wait > /dev/null", LIMIT, "a rank was left")?;
    }
    lab.plug(1)?;
    wait_for(lab, 1, "[ -c /dev/vmshm0 ]", LIMIT, "/dev/vmshm0 did not come back")?;
    must(lab, 1, "udevadm settle --timeout=30", LIMIT)?;
    next_job(lab, &mut count, logs)?;
    Ok(count)
}

/// A guest ends; the processes of the other are told.
fn vm_end(lab: &mut Lab, logs: &Path) -> Result<Count> {
    let check = format!("{PAYLOAD}/bin/vmshm-driver-check");
    must(lab, 1, &format!("(setsid {check} death serve > /tmp/serve.log 2>&1 &) < /dev/null"), SHORT)?;
    wait_for(lab, 1, "grep -q serving /tmp/serve.log", LIMIT, "it did not begin")?;
    must(
        lab,
        0,
        &format!("(setsid {check} death connect --until-gone > /tmp/connect.log 2>&1 &) < /dev/null"),
        SHORT,
    )?;
    wait_for(lab, 0, "grep -q talking /tmp/connect.log", LIMIT, "they did not talk")?;
    lab.kill(1);
    let waited = wait_for(lab, 0, "grep -q ^checks /tmp/connect.log", LIMIT, "nothing was reported");
    let text = must(lab, 0, "cat /tmp/connect.log", SHORT)?;
    fs::create_dir_all(logs)?;
    fs::write(logs.join("vm-end.log"), &text)?;
    let waited = waited.with_context(|| last_lines(&text, 10))?;
    let mut count = Count::of_checker(&text).with_context(|| last_lines(&text, 10))?;
    let complaints = complaints_of(lab, 0, logs)?;
    ensure!(complaints.is_empty(), "the kernel complains:\n{complaints}");
    count.note = format!("reported {:.1} s after the other guest was killed", waited.as_secs_f64());
    Ok(count)
}

/// One guest with devices that have no doorbells and lie below 4 GiB: its own, one that the host gave it nothing of,
/// and one that is somebody else's.
fn plain(ground: &Ground, logs: &Path) -> Result<(Count, usize)> {
    let parts = ground.as_ref().map_err(|why| anyhow::anyhow!("{why}"))?;
    let unassigned = Region::create(&parts.stage, "64M", 2, true)?;
    let file = unassigned.file().display().to_string().replace(',', ",,");
    let extra = [
        "-object",
        &format!("memory-backend-file,id=unassigned,mem-path={file},size=64M,share=on"),
        "-device",
        "ivshmem-plain,memdev=unassigned",
        "-object",
        "memory-backend-ram,id=foreign,size=1M,share=on",
        "-device",
        "ivshmem-plain,memdev=foreign",
    ];
    let sharing = Sharing {
        size: "256M",
        extra: extra.iter().map(|&word| word.to_owned()).collect(),
        ..Sharing::default()
    };
    let mut lab = start(ground, 1, &sharing, logs)?;
    let lab = &mut lab;
    let dmesg = must(lab, 0, "dmesg | grep -i vmshm", SHORT)?;
    let count = checked(lab, logs, |lab| {
        let mut count = Count::default();
        let id = |region: &Region| -> Result<String> {
            Ok(region.inspect()?["id"].as_str().context("no id")?.to_owned())
        };
        let (own, other) = (id(lab.region())?, id(&unassigned)?);
        let names = must(lab, 0, "ls /sys/class/misc | grep '^vmshm'", SHORT)?;
        let names: Vec<&str> = names.split_whitespace().collect();
        check(&mut count, names == ["vmshm0", "vmshm1"], || format!("the devices are {names:?}"));
        let mut devices = [String::new(), String::new()];
        for name in names {
            let id = attribute(lab, 0, name, "region_id")?;
            if let Some(at) = [&own, &other].iter().position(|known| **known == id) {
                devices[at] = name.to_owned();
            }
        }
        let [own, other] = devices;
        ensure!(!own.is_empty() && !other.is_empty(), "a region has no device:\n{dmesg}");

        for (device, section) in [(&own, "0"), (&other, "none")] {
            let wanted = [("section", section), ("memory_type", "uncached"), ("vectors", "0")];
            for (name, want) in wanted {
                let got = attribute(lab, 0, device, name)?;
                check(&mut count, got == want, || format!("{name} of {device} is {got}, not {want}"));
            }
        }
        // Each tells its story in one line.
        for (what, lines, cure) in [
            ("the foreign device", 1, "left alone"),
            ("the device without a section", 1, "vmshm qemu-args"),
            ("uncached memory", 2, "4 GiB or more"),
        ] {
            let found = dmesg.lines().filter(|line| line.contains(cure)).count();
            check(&mut count, found == lines, || {
                format!("{found} lines about {what}, not {lines}:\n{dmesg}")
            });
        }
        let bound = must(lab, 0, "ls -d /sys/bus/pci/drivers/vmshm/0000:* | wc -l", SHORT)?;
        check(&mut count, bound.trim() == "2", || format!("{} devices are bound", bound.trim()));
        let doctor = lab.run(0, &format!("{PAYLOAD}/bin/vmshm doctor"), SHORT)?;
        fs::create_dir_all(logs)?;
        fs::write(logs.join("doctor.log"), &doctor.text)?;
        check(
            &mut count,
            doctor.text.contains("mapped UNCACHED") && doctor.text.contains("--size 4G"),
            || format!("vmshm doctor does not tell of uncached memory:\n{}", doctor.text),
        );
        check(
            &mut count,
            doctor.text.contains("programs take none by themselves: /dev/vmshm0, /dev/vmshm1"),
            || format!("vmshm doctor does not tell that there is a choice:\n{}", doctor.text),
        );
        count.add(&check_in(lab, &[0], |_| format!("mmap --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("calls --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("lives --device /dev/{own}"), logs, LIMIT)?.0);
        count.add(&check_in(lab, &[0], |_| format!("read-only --device /dev/{other}"), logs, LIMIT)?.0);
        Ok(count)
    })?;
    Ok((count, lab.repeated_boots))
}
