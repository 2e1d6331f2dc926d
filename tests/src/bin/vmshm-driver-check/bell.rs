//! Rings between two VMs, in turn: each ring is awaited before the next is sent, so that none can hide another.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use libc::POLLIN;

use crate::checks::taken;
use crate::device::{Device, new_eventfd, wait};
use crate::layout::Layout;
use crate::mapping::{Map, PAGE};
use crate::report::Report;

/// Peer, slots and number of the rings.
#[derive(Debug, clap::Args)]
pub struct Options {
    /// The other VM's section
    #[arg(long)]
    peer: u32,
    /// Our slot, and the other's
    #[arg(long, default_value_t = 9)]
    slot: u32,
    /// Rings in each direction: half of them are awaited by poll and read, half by an eventfd
    #[arg(long, default_value_t = 10_000)]
    rounds: u32,
    /// A number that both sides are given, another one each time
    #[arg(long)]
    run: u64,
    /// Ring first
    #[arg(long)]
    first: bool,
}

/// A ring that takes longer is lost, milliseconds.
const LOST: i32 = 20_000;
const MEET: Duration = Duration::from_secs(120);

/// The words by which the two sides wait for each other: the first of the last page of each section.
struct Meeting {
    ours: Map,
    theirs: Map,
    run: u64,
    steps: u64,
}

impl Meeting {
    fn new(device: &Device, layout: &Layout, options: &Options) -> Result<Self> {
        let own = layout.own()?;
        let peer = layout.sections.get(options.peer as usize).context("there is no such section")?;
        let page = PAGE as u64;
        Ok(Self {
            ours: Map::shared(device, own.offset + own.len - page, PAGE, libc::PROT_READ | libc::PROT_WRITE)?,
            theirs: Map::shared(device, peer.offset + peer.len - page, PAGE, libc::PROT_READ)?,
            run: options.run << 8,
            steps: 0,
        })
    }

    /// Waits until the other side is here too.
    fn wait(&mut self) -> Result<()> {
        self.steps += 1;
        let here = self.run + self.steps;
        self.ours.word(0).store(here, Ordering::SeqCst);
        let begin = Instant::now();
        loop {
            let there = self.theirs.word(0).load(Ordering::SeqCst);
            // It may be one step ahead already.
            if there == here || there == here + 1 {
                return Ok(());
            }
            if begin.elapsed() > MEET {
                bail!("the other side did not come to step {here} ({there})");
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Runs both halves.
pub fn run(path: &Path, options: &Options, report: &mut Report) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    ensure!(layout.info.vectors > 0, "the device has no doorbells");
    device.claim(options.slot)?;
    let mut meeting = Meeting::new(&device, &layout, options)?;
    let half = options.rounds / 2;

    report.check("rings awaited by poll and read", || {
        // Rings from before, as the server's when a VM joins.
        device.rings()?;
        meeting.wait()?;
        turns(&device, options, half, || {
            ensure!(device.wait(LOST)? & POLLIN != 0, "it did not come");
            Ok(device.rings()?)
        })
    });
    report.check("rings awaited by an eventfd", || {
        let event = new_eventfd()?;
        device.eventfd(event.as_raw_fd(), options.slot % layout.info.vectors)?;
        meeting.wait()?;
        let result = turns(&device, options, options.rounds - half, || {
            ensure!(wait(event.as_raw_fd(), LOST)? & POLLIN != 0, "it did not come");
            taken(&event)
        });
        device.eventfd(-1, 0)?;
        result
    });
    // Nobody leaves before the other has heard its last ring.
    meeting.wait()
}

fn turns(
    device: &Device,
    options: &Options,
    rounds: u32,
    mut hear: impl FnMut() -> Result<u64>,
) -> Result<()> {
    let ring = |round| device.ring(options.peer, options.slot).with_context(|| format!("ring {round}"));
    let begin = Instant::now();
    let mut slowest = Duration::ZERO;
    for round in 1..=rounds {
        let sent = Instant::now();
        if options.first {
            ring(round)?;
        }
        let count = hear().with_context(|| format!("ring {round} of {rounds}"))?;
        ensure!(count == 1, "ring {round} of {rounds} was counted {count} times");
        slowest = slowest.max(sent.elapsed());
        if !options.first {
            ring(round)?;
        }
    }
    println!(
        "        {rounds} sent and {rounds} heard in {:.1} s, the slowest turn {:.1} ms",
        begin.elapsed().as_secs_f64(),
        slowest.as_secs_f64() * 1e3
    );
    Ok(())
}
