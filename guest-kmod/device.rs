// SPDX-License-Identifier: GPL-2.0

//! A device, which all its open files share.

use core::ops::Range;
use kernel::{
    pci,
    prelude::*,
    revocable::Revocable,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{Acquire, Atomic, Relaxed, Release},
        new_mutex, Arc, Mutex, MutexGuard,
    },
};

use crate::{
    abi::{driver::NO_SECTION, region::RegionHeader},
    bars::Bars,
    doorbell::{self, Doorbells},
    section::{Identity, Section},
    sys::{Frames, Interrupts, ShareLock},
    waiter::Waiter,
};

/// The facts that do not change.
pub(crate) struct Facts {
    pub(crate) header: RegionHeader,
    pub(crate) identity: Identity,
    pub(crate) frames: Frames,
    /// As in `DeviceInfo`.
    pub(crate) memory_type: u32,
}

/// A device, which may be gone: it lives until the last file is closed.
#[pin_data]
pub(crate) struct Device {
    name: CString,
    pdev: ARef<pci::Device>,
    facts: Facts,
    /// For those who must not wait for the state; set while it is locked.
    gone: Atomic<bool>,
    /// The number of our section, or `NO_SECTION`; as above.
    ours: Atomic<u32>,
    #[pin]
    state: Mutex<State>,
    /// Whether pages may be filled in. A lock of its own, which faults share: the page tables that
    /// they fill in have theirs, and a fault may have to wait for memory.
    #[pin]
    filling: ShareLock<bool>,
    /// Revoked once the device is gone.
    #[pin]
    pub(crate) bars: Revocable<Bars>,
    #[pin]
    doorbells: Doorbells,
}

/// Most files that can be open at a time: one for each endpoint, as many to look around, and some.
/// Each interrupt looks at all of them.
fn max_files(header: &RegionHeader) -> usize {
    2 * header.endpoints as usize + 64
}

/// Section, open files and their slots, under a lock that comes after the lock of a process's
/// mappings.
pub(crate) struct State {
    section: Option<Section>,
    /// Has room for all that can be, and never grows.
    files: KVVec<Entry>,
}

/// An open file, and what it holds.
struct Entry {
    file: Arc<Waiter>,
    claim: Option<Claim>,
}

/// A slot, held by an open file for a process.
#[derive(Clone, Copy)]
struct Claim {
    slot: u32,
    /// The process's number as the kernel counts, whatever namespace it is in.
    process: i32,
}

impl Device {
    /// A device that nobody can open yet.
    pub(crate) fn new(
        name: CString,
        pdev: &pci::Device,
        facts: Facts,
        bars: Bars,
    ) -> Result<Arc<Self>> {
        let section = Section::find(&bars.memory, &facts.header, facts.identity);
        let max_files = max_files(&facts.header);
        let files = KVVec::with_capacity(max_files, GFP_KERNEL)?;
        Arc::pin_init(
            try_pin_init!(Self {
                name,
                pdev: pdev.into(),
                facts,
                gone: Atomic::new(false),
                ours: Atomic::new(number(&section)),
                state <- new_mutex!(State { section, files }, "vmshm"),
                filling <- ShareLock::new(true, c"vmshm_filling", kernel::static_lock_class!()),
                bars <- Revocable::new(Ok::<_, Error>(bars)),
                doorbells <- Doorbells::new(max_files),
            }),
            GFP_KERNEL,
        )
    }

    /// `vmshmN`.
    pub(crate) fn name(&self) -> &CStr {
        &self.name
    }

    /// For messages, and what sysfs tells of it.
    pub(crate) fn pdev(&self) -> &pci::Device {
        &self.pdev
    }

    /// A checked copy, made when the device came.
    pub(crate) fn header(&self) -> &RegionHeader {
        &self.facts.header
    }

    /// As in `DeviceInfo`.
    pub(crate) fn memory_type(&self) -> u32 {
        self.facts.memory_type
    }

    /// Number of doorbells; 0 if it has none.
    pub(crate) fn vectors(&self) -> u32 {
        self.doorbells.vectors()
    }

    /// Says how many doorbells it has, when all of them have a handler.
    pub(crate) fn set_vectors(&self, vectors: u32) {
        self.doorbells.set_vectors(vectors);
    }

    /// Whether the device is gone: then only closing is left.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Acquire)
    }

    /// The number of the section that this machine may write.
    pub(crate) fn ours(&self) -> Option<u32> {
        Some(self.ours.load(Relaxed)).filter(|&number| number != NO_SECTION)
    }

    /// Has `fill` fill in a page, unless the device is gone: it can't go away meanwhile.
    pub(crate) fn fill<T>(&self, fill: impl FnOnce(Frames) -> T) -> Option<T> {
        self.filling
            .read(|filling| filling.then(|| fill(self.facts.frames)))
    }

    /// Locks the state.
    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Looks once more which section is ours, if none was found so far: the host may have given us
    /// one since.
    pub(crate) fn look_for_section(&self) {
        let mut state = self.state();
        if state.section.is_some() {
            return;
        }
        let facts = &self.facts;
        let found = self
            .bars
            .try_access_with(|bars| Section::find(&bars.memory, &facts.header, facts.identity));
        state.section = found.flatten();
        self.ours.store(number(&state.section), Relaxed);
        if let Some(section) = state.section {
            dev_info!(
                self.pdev,
                "section {} of the region is ours now\n",
                section.number
            );
        }
    }

    /// Has `file` hold slot `slot` for the calling process. Errors as for `CLAIM`.
    pub(crate) fn claim(&self, file: &Waiter, slot: u32) -> Result {
        let mut state = self.state();
        if self.is_gone() {
            return Err(ENODEV);
        }
        if state.section.is_none() {
            return Err(ENXIO);
        }
        if slot >= self.header().endpoints {
            return Err(EINVAL);
        }
        if state.entry(file).ok_or(ENODEV)?.claim.is_some() {
            return Err(EEXIST);
        }
        if state
            .files
            .iter()
            .any(|entry| entry.claim.is_some_and(|claim| claim.slot == slot))
        {
            return Err(EBUSY);
        }
        let claim = Claim {
            slot,
            process: current_process(),
        };
        state.entry(file).ok_or(ENODEV)?.claim = Some(claim);
        file.listen_to(Some(slot));
        Ok(())
    }

    /// Takes the slot from `file`, as it asks, and leaves it as it is: it may turn out to be somebody
    /// else's, who maps the region without this driver. Errors as for `UNCLAIM`.
    pub(crate) fn unclaim(&self, file: &Waiter) -> Result {
        let mut state = self.state();
        if self.is_gone() {
            return Err(ENODEV);
        }
        state
            .entry(file)
            .and_then(|entry| entry.claim.take())
            .ok_or(ENOENT)?;
        file.listen_to(None);
        Ok(())
    }

    /// Ends what `file` holds, if it holds it for the calling process.
    pub(crate) fn process_closes(&self, file: &Waiter) {
        let mut state = self.state();
        let process = current_process();
        let Some(entry) = state.entry(file) else {
            return;
        };
        let Some(claim) = entry.claim.take_if(|claim| claim.process == process) else {
            return;
        };
        file.listen_to(None);
        let died = self.end_life(&state, claim);
        drop(state);
        if died {
            self.tell_all();
        }
    }

    /// Makes `file` one of the device's.
    pub(crate) fn add(&self, file: &Arc<Waiter>) -> Result {
        let mut state = self.state();
        if self.is_gone() {
            return Err(ENODEV);
        }
        let entry = Entry {
            file: file.clone(),
            claim: None,
        };
        if state.files.push_within_capacity(entry).is_err() {
            return Err(ENFILE);
        }
        // Never refused: a listener goes when its file does.
        self.doorbells.add(file).inspect_err(|_| {
            let _ = state.files.pop();
        })
    }

    /// Forgets `file`, and ends what it holds.
    pub(crate) fn remove(&self, file: &Waiter) {
        let mut state = self.state();
        let index = state.files.iter().position(|entry| entry.file.is(file));
        let entry = index.and_then(|index| state.files.remove(index).ok());
        let died = match entry.as_ref().and_then(|entry| entry.claim) {
            Some(claim) => self.end_life(&state, claim),
            None => false,
        };
        drop(state);
        self.doorbells.remove(file);
        if died {
            self.tell_all();
        }
    }

    /// Notes in the section that the life in a slot has ended; says whether it had not left in good
    /// order.
    fn end_life(&self, state: &State, claim: Claim) -> bool {
        let Some(section) = state.section else {
            return false;
        };
        let ended = self
            .bars
            .try_access_with(|bars| section.end_life(&bars.memory, claim.slot));
        matches!(ended, Some(Ok(true)))
    }

    /// Rings an endpoint. Errors as for `RING`.
    pub(crate) fn ring(&self, section: u32, slot: u32) -> Result {
        if self.is_gone() {
            return Err(ENODEV);
        }
        let vector = self.doorbells.vector(slot).ok_or(ENXIO)?;
        let header = self.header();
        if section >= header.sections || slot >= header.endpoints {
            return Err(EINVAL);
        }
        if self.ours() == Some(section) {
            self.doorbells.signal(vector, |theirs| theirs == slot);
            return Ok(());
        }
        let rung = self
            .bars
            .try_access_with(|bars| doorbell::ring(bars, header, section, vector));
        rung.ok_or(ENODEV)?
    }

    /// Has all endpoints of all machines look at the region: an endpoint of ours has died.
    fn tell_all(&self) {
        let vectors = self.vectors();
        if vectors == 0 {
            return;
        }
        self.doorbells.signal_all();
        let ours = self.ours();
        for number in (0..self.header().sections).filter(|&number| Some(number) != ours) {
            // One at a time, since nobody can sleep meanwhile.
            let _ = self
                .bars
                .try_access_with(|bars| doorbell::ring_all(bars, self.header(), number, vectors));
        }
    }

    /// Has an eventfd signalled by the interrupts of a vector, or none. Errors as for `EVENTFD`.
    pub(crate) fn set_eventfd(&self, file: &Waiter, fd: i32, vector: u32) -> Result {
        if self.is_gone() {
            return Err(ENODEV);
        }
        self.doorbells.set_eventfd(file, fd, vector)?;
        // The device may have been lost meanwhile: then nobody would ever signal it.
        if self.is_gone() {
            return Err(ENODEV);
        }
        Ok(())
    }

    /// Takes the device from all who use it. When this returns, no process accesses its memory any
    /// more, and nothing else begins to.
    ///
    /// The caller then sees to it that nobody opens it any more, and frees the interrupts, before
    /// the bars are revoked.
    pub(crate) fn lose(&self) {
        let mut state = self.state();
        self.gone.store(true, Release);
        // A fault that fills in a page has done so when the lock is ours; from then on none does.
        self.filling.replace(false);
        // All mappings that were made through one inode go at once.
        for (index, entry) in state.files.iter().enumerate() {
            let mut earlier = state.files.iter().take(index);
            if !earlier.any(|earlier| earlier.file.shares_inode(&entry.file)) {
                entry.file.unmap();
            }
        }
        // Nobody can write the section any more, so that the lives in it have ended.
        let files = state.files.len();
        let mut died = false;
        for index in 0..state.files.len() {
            let claim = state
                .files
                .get_mut(index)
                .and_then(|entry| entry.claim.take());
            died |= claim.is_some_and(|claim| self.end_life(&state, claim));
        }
        drop(state);
        if died {
            self.tell_all();
        }
        self.doorbells.hang_up();
        if files != 0 {
            dev_warn!(
                self.pdev,
                "/dev/{} was taken from {files} open files: their processes get SIGBUS and ENODEV\n",
                self.name()
            );
        }
    }
}

impl Interrupts for Device {
    fn interrupt(&self, vector: u32) {
        let is_meant = |slot| self.doorbells.vector(slot) == Some(vector);
        self.doorbells.signal(vector, is_meant);
    }
}

impl State {
    /// The section that this machine may write.
    pub(crate) fn section(&self) -> Option<&Section> {
        self.section.as_ref()
    }

    /// The bytes of the region that this machine may write.
    pub(crate) fn writable(&self, header: &RegionHeader) -> Option<Range<u64>> {
        if header.is_open() {
            return Some(header.table_end..header.region_len);
        }
        self.section
            .map(|section| section.offset..section.offset + section.len)
    }

    fn entry(&mut self, file: &Waiter) -> Option<&mut Entry> {
        self.files.iter_mut().find(|entry| entry.file.is(file))
    }
}

/// As in `DeviceInfo`.
fn number(section: &Option<Section>) -> u32 {
    section
        .as_ref()
        .map_or(NO_SECTION, |section| section.number)
}

/// The number of the calling process.
fn current_process() -> i32 {
    current!().group_leader().pid()
}
