//! The device is taken from its driver and given back, again and again, while threads use it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libc::{ENODEV, POLLERR, POLLHUP};

use crate::device::{Device, refused};
use crate::layout::Layout;
use crate::mapping::{Map, PAGE};
use crate::report::Report;
use crate::sigbus;

const DRIVER: &str = "/sys/bus/pci/drivers/vmshm";

/// How the device is taken away.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// How often
    #[arg(long, default_value_t = 30)]
    cycles: u32,
    /// Threads that use it meanwhile
    #[arg(long, default_value_t = 6)]
    threads: u32,
}

/// The PCI device behind `/dev/vmshmN`.
struct Pci {
    address: String,
    node: PathBuf,
}

impl Pci {
    fn of(path: &Path) -> Result<Self> {
        let name = path.file_name().context("the device has no name")?;
        let link = Path::new("/sys/class/misc").join(name).join("device");
        let target = fs::canonicalize(&link).with_context(|| format!("cannot follow {}", link.display()))?;
        let address = target.file_name().context("no PCI address")?.to_string_lossy().into_owned();
        Ok(Self { address, node: path.into() })
    }

    fn tell(&self, what: &str) -> Result<()> {
        let file = Path::new(DRIVER).join(what);
        fs::write(&file, &self.address).with_context(|| format!("{} {}", file.display(), self.address))
    }

    fn unbind(&self) -> Result<()> {
        self.tell("unbind")
    }

    fn bind(&self) -> Result<()> {
        self.tell("bind")?;
        let begin = Instant::now();
        while !self.node.exists() {
            if begin.elapsed() > Duration::from_secs(10) {
                bail!("{} did not come back", self.node.display());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

/// Work that the threads have done.
#[derive(Debug, Default)]
struct Work {
    stop: AtomicBool,
    done: AtomicU64,
    refused: AtomicU64,
}

/// Runs the checks.
pub fn run(path: &Path, options: &Options, report: &mut Report) -> Result<()> {
    sigbus::catch()?;
    let pci = Pci::of(path)?;
    report.check("what was open when the device went is told so, for ever", || {
        let (device, layout) = Layout::open(path)?;
        let own = layout.own()?;
        let first = Map::shared(&device, 0, layout.header.region_len as usize, libc::PROT_READ)?;
        let second = Map::shared(&device, own.offset, PAGE, libc::PROT_READ | libc::PROT_WRITE)?;
        first.word(0).load(Ordering::SeqCst);
        let before = sigbus::count();
        pci.unbind()?;
        let gone = || {
            ensure!(!path.exists(), "{} is still there", path.display());
            refused(device.info(), ENODEV).context("INFO")?;
            refused(device.claim(1), ENODEV).context("CLAIM")?;
            refused(device.ring(0, 0), ENODEV).context("RING")?;
            refused(device.rings(), ENODEV).context("read")?;
            refused(Map::shared(&device, 0, PAGE, libc::PROT_READ), ENODEV).context("mmap")?;
            let events = device.wait(1000)?;
            ensure!(events & (POLLHUP | POLLERR) != 0, "poll says {events:#x}");
            Ok(())
        };
        let told = gone();
        first.word(0).load(Ordering::SeqCst);
        first.word(own.offset as usize).load(Ordering::SeqCst);
        second.word(0).store(1, Ordering::SeqCst);
        let faults = sigbus::count() - before;
        pci.bind()?;
        told?;
        ensure!(faults == 3, "{faults} of 3 accesses to what was mapped were refused");
        refused(device.info(), ENODEV).context("INFO of the old file after the device has come back")?;
        refused(Map::shared(&device, 0, PAGE, libc::PROT_READ), ENODEV).context("mmap of the old file")?;
        Layout::open(path).map(drop)
    });
    report.check("threads use the device while it goes and comes", || {
        let work = Work::default();
        let result = std::thread::scope(|scope| {
            for thread in 0..options.threads {
                let work = &work;
                scope.spawn(move || {
                    let mut round = u64::from(thread);
                    while !work.stop.load(Ordering::Relaxed) {
                        round += 1;
                        match turn(path, round) {
                            Ok(()) => work.done.fetch_add(1, Ordering::Relaxed),
                            Err(_) => {
                                // Not so often that nobody gets to use it while it is there.
                                std::thread::sleep(Duration::from_millis(1));
                                work.refused.fetch_add(1, Ordering::Relaxed)
                            }
                        };
                    }
                });
            }
            let result = cycles(&pci, options.cycles);
            work.stop.store(true, Ordering::Relaxed);
            result
        });
        let (done, refused) = (work.done.into_inner(), work.refused.into_inner());
        println!(
            "        {done} uses and {refused} refusals in {} cycles, {} revoked pages",
            options.cycles,
            sigbus::count()
        );
        result?;
        ensure!(done > 0 && refused > 0, "threads and cycles did not meet");
        Ok(())
    });
    report.check("the device works afterwards", || {
        let (device, layout) = Layout::open(path)?;
        let own = layout.own()?;
        let map = Map::shared(
            &device,
            own.offset + own.len - PAGE as u64,
            PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
        )?;
        map.word(0).store(17, Ordering::SeqCst);
        let faults = sigbus::count();
        ensure!(
            map.word(0).swap(0, Ordering::SeqCst) == 17 && sigbus::count() == faults,
            "it does not remember"
        );
        device.claim(0)?;
        Ok(())
    });
    Ok(())
}

fn cycles(pci: &Pci, count: u32) -> Result<()> {
    for cycle in 0..count {
        // Not always at the same moment of what the threads do.
        std::thread::sleep(Duration::from_millis(u64::from(cycle * 7 % 50)));
        pci.unbind().with_context(|| format!("cycle {cycle}"))?;
        std::thread::sleep(Duration::from_millis(u64::from(cycle * 5 % 11)));
        pci.bind().with_context(|| format!("cycle {cycle}"))?;
    }
    Ok(())
}

/// One use of the device, which may end anywhere.
fn turn(path: &Path, round: u64) -> Result<()> {
    let device = Device::open(path)?;
    let info = device.info()?;
    let _ = device.claim((round % 64) as u32);
    let map = Map::shared(&device, 0, info.region_len as usize, libc::PROT_READ)?;
    let page = PAGE as u64;
    for at in 0..16 {
        let place = (round * 31 + at * 977) * page % info.region_len;
        map.byte(place as usize).load(Ordering::Relaxed);
    }
    if let Ok(layout) = Layout::read(&device)
        && let Ok(own) = layout.own()
    {
        // The last pages of the section, in which nothing lies.
        let last = Map::shared(
            &device,
            own.offset + own.len - 16 * page,
            16 * PAGE,
            libc::PROT_READ | libc::PROT_WRITE,
        )?;
        for at in 0..16 {
            last.byte(at * PAGE).store(round as u8, Ordering::Relaxed);
        }
    }
    let _ = device.ring(info.section, 0);
    let _ = device.rings();
    device.wait(0)?;
    let event = crate::device::new_eventfd()?;
    let _ = device.eventfd(std::os::fd::AsRawFd::as_raw_fd(&event), 0);
    match round % 3 {
        0 => drop(map),
        1 => {
            drop(device);
            map.byte(0).load(Ordering::Relaxed);
        }
        _ => {
            device.wait(2)?;
        }
    }
    Ok(())
}
