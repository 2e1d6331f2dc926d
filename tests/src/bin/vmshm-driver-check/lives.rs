//! The lives of endpoint slots: a process that ends without a word is marked as died by the driver, in whatever way it
//! ended; one that left in good order is not.
//!
//! The checks write slots as a library would. No real endpoint may be in the section meanwhile.

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result, ensure};
use vmshm_transport::abi::section::{
    EndpointSlot, STATE_ATTACHING, STATE_FREE, STATE_GONE, STATE_LIVE, SlotState,
};

use crate::device::Device;
use crate::layout::Layout;
use crate::map::in_child;
use crate::mapping::{Map, PAGE};
use crate::report::Report;

const SLOT: u32 = 5;

/// A slot of the own section, mapped.
struct Slot {
    page: Map,
    at: usize,
}

impl Slot {
    fn map(device: &Device, layout: &Layout, slot: u32) -> Result<Self> {
        let offset = layout.slot(slot)?;
        let at = offset as usize % PAGE;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        Ok(Self { page: Map::shared(device, offset - at as u64, PAGE, protection)?, at })
    }

    fn state(&self) -> &AtomicU64 {
        self.page.word(self.at)
    }

    fn died(&self) -> u64 {
        self.page.word(self.at + std::mem::offset_of!(EndpointSlot, died)).load(Ordering::SeqCst)
    }

    /// Begins a life as a library does; returns which.
    fn begin(&self, state: u8) -> u64 {
        let incarnation = SlotState::unpack(self.state().load(Ordering::SeqCst)).incarnation + 1;
        self.state().store(SlotState { incarnation, state }.pack(), Ordering::SeqCst);
        incarnation
    }

    /// Ends what a check has left.
    fn clear(&self) {
        let state = SlotState::unpack(self.state().load(Ordering::SeqCst));
        self.state().store(SlotState { state: STATE_FREE, ..state }.pack(), Ordering::SeqCst);
    }

    fn expect(&self, incarnation: u64, state: u8, died: bool) -> Result<()> {
        let seen = SlotState::unpack(self.state().load(Ordering::SeqCst));
        ensure!(
            seen == SlotState { incarnation, state },
            "the slot is {seen:?}, not life {incarnation} in state {state}"
        );
        ensure!((self.died() == incarnation) == died, "life {} was found dead", self.died());
        Ok(())
    }
}

/// Waits a little until the slot is as expected: what another process has to do takes its time.
fn soon(slot: &Slot, incarnation: u64, state: u8, died: bool) -> Result<()> {
    for _ in 0..500 {
        if slot.expect(incarnation, state, died).is_ok() {
            break;
        }
        std::thread::sleep(std::time::Duration::from_millis(10));
    }
    slot.expect(incarnation, state, died)
}

/// Runs all checks of lives.
pub fn checks(path: &Path, report: &mut Report) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let slot = Slot::map(&device, &layout, SLOT)?;
    // In the child: a file of its own that holds the slot, and stays open until the process ends.
    let hold = || std::mem::forget(Device::open(path).and_then(|device| device.claim(SLOT).map(|()| device)));
    let live = SlotState::unpack(slot.state().load(Ordering::SeqCst));
    ensure!(
        live.state == STATE_FREE || live.state == STATE_GONE,
        "slot {SLOT} is in use ({live:?}): run this while no job runs"
    );

    for (name, state) in [("living", STATE_LIVE), ("attaching", STATE_ATTACHING)] {
        report.check(&format!("the slot of a {name} process that exits is marked"), || {
            let life = slot.state().load(Ordering::SeqCst) >> 8;
            let status = in_child(|| {
                hold();
                slot.begin(state);
            })?;
            ensure!(status == 0, "status {status:#x}");
            slot.expect(life + 1, STATE_GONE, true)
        });
        report.check(&format!("the slot of a {name} process that is killed is marked"), || {
            let life = slot.state().load(Ordering::SeqCst) >> 8;
            let status = in_child(|| {
                hold();
                slot.begin(state);
                // SAFETY: it kills itself.
                unsafe { libc::raise(libc::SIGKILL) };
            })?;
            ensure!(libc::WTERMSIG(status) == libc::SIGKILL, "status {status:#x}");
            slot.expect(life + 1, STATE_GONE, true)
        });
    }
    report.check("a slot that was left in good order is not marked", || {
        let life = slot.state().load(Ordering::SeqCst) >> 8;
        in_child(|| {
            hold();
            slot.begin(STATE_LIVE);
            slot.clear();
        })?;
        slot.expect(life + 1, STATE_FREE, false)
    });
    report.check("a slot that was given back is not marked", || {
        let life = slot.state().load(Ordering::SeqCst) >> 8;
        in_child(|| {
            if let Ok(device) = Device::open(path) {
                let _ = device.claim(SLOT);
                slot.begin(STATE_LIVE);
                let _ = device.unclaim();
            }
        })?;
        slot.expect(life + 1, STATE_LIVE, false)?;
        slot.clear();
        Ok(())
    });
    report.check("a slot is marked when its file is closed, though the mapping remains", || {
        let file = Device::open(path)?;
        file.claim(SLOT)?;
        let mapped = Slot::map(&file, &layout, SLOT)?;
        let life = mapped.begin(STATE_LIVE);
        drop(file);
        mapped.expect(life, STATE_GONE, true)?;
        Device::open(path)?.claim(SLOT).context("the slot is still held")
    });
    report.check("a child that keeps the file open does not keep the slot", || {
        let life = slot.state().load(Ordering::SeqCst) >> 8;
        let mut pipe = [0; 2];
        // SAFETY: room for two descriptors.
        ensure!(unsafe { libc::pipe(pipe.as_mut_ptr()) } == 0, "pipe");
        let status = in_child(|| {
            hold();
            slot.begin(STATE_LIVE);
            // SAFETY: the grandchild only waits until the pipe is closed, then ends.
            if unsafe { libc::fork() } == 0 {
                // SAFETY: descriptors of our own, and one byte of room.
                unsafe {
                    libc::close(pipe[1]);
                    let mut byte = 0_u8;
                    libc::read(pipe[0], (&raw mut byte).cast(), 1);
                }
            }
        })?;
        ensure!(status == 0, "status {status:#x}");
        let seen = soon(&slot, life + 1, STATE_GONE, true);
        let again = Device::open(path)?.claim(SLOT);
        // SAFETY: descriptors of our own.
        unsafe {
            libc::close(pipe[0]);
            libc::close(pipe[1]);
        }
        seen?;
        again.context("the slot is still held")
    });
    report.check("a child that closes its copy of the file does not end its parent's life", || {
        let file = Device::open(path)?;
        file.claim(SLOT)?;
        let life = slot.begin(STATE_LIVE);
        // SAFETY: the child's own copy of the descriptor.
        in_child(|| {
            // SAFETY: the child closes its own copy of the descriptor.
            unsafe { libc::close(file.fd()) };
        })?;
        in_child(|| ())?;
        slot.expect(life, STATE_LIVE, false)?;
        slot.clear();
        Ok(())
    });
    report.check("a duplicate of the descriptor may be closed", || {
        // The C library's or a program's own dup and close say nothing about the end of the process; but the driver
        // sees no difference between them and the last close, so this only shows that nothing breaks.
        let file = Device::open(path)?;
        file.claim(SLOT)?;
        let life = slot.begin(STATE_LIVE);
        // SAFETY: a descriptor of our own.
        unsafe { libc::close(libc::dup(file.fd())) };
        let seen = SlotState::unpack(slot.state().load(Ordering::SeqCst));
        ensure!(seen.incarnation == life, "{seen:?}");
        slot.clear();
        Ok(())
    });
    Ok(())
}
