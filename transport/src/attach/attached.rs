//! An endpoint in this machine's region, kept alive and watched over.

use std::fs::{self, File};
use std::io;
use std::mem::ManuallyDrop;
use std::ops::{Deref, DerefMut};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use vmshm_abi::driver::UNCACHED;
use vmshm_abi::region::RegionHeader;
use vmshm_abi::section::STATE_FREE;

use super::error::AttachError;
use super::find::find;
use super::lease::SlotLease;
use super::liveness::monitor::{Kernel, Monitor, MonitorOptions};
use super::lock;
use super::section::{choose_section, parse_uuid};
use super::sleeper::Sleeper;
use super::source::{Source, look, map, open};
use crate::endpoint::{Endpoint, Fragment, Process};
use crate::error::AttachError as SectionError;
use crate::memory::{Mapping, Memory};
use crate::region::slot;
use crate::tune;

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

/// Longest time that [`Attached`] waits at the end for peers to consume their messages.
const DRAIN: Duration = Duration::from_secs(1);

/// Options of attaching.
#[derive(Debug, Clone)]
pub struct Options {
    /// A region's name or file, a device of the guest driver (`/dev/vmshm0`), or the address of a PCI device
    /// (`0000:00:04.0`); none to search.
    pub device: Option<String>,
    /// The section, on a region file: one that no virtual machine has. On a device the host decides, and any other number is
    /// refused.
    pub section: Option<u32>,
    /// Longest pause of another machine's heartbeat before its processes are taken for dead.
    pub patience: Duration,
    /// The process wants to sleep while it waits, where the device has doorbells: see [`Attached::sleeper`].
    pub sleep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { device: None, section: None, patience: Duration::from_secs(30), sleep: false }
    }
}

impl Options {
    /// Options from `VMSHM_DEVICE` and `VMSHM_SECTION`.
    ///
    /// # Errors
    ///
    /// A section that is no number.
    pub fn from_env() -> Result<Self, AttachError> {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let section = match set("VMSHM_SECTION") {
            None => None,
            Some(value) => Some(value.parse().map_err(|_| AttachError::SectionNumber(value))?),
        };
        Ok(Self { device: set("VMSHM_DEVICE"), section, ..Self::default() })
    }
}

/// An endpoint in this machine's region, kept alive and watched over; it detaches when it is dropped.
#[derive(Debug)]
pub struct Attached {
    // Dropped in this order: first the endpoint leaves, then the process is not seen to live any more.
    endpoint: ManuallyDrop<Endpoint<Arc<Mapping>>>,
    monitor: Option<Monitor>,
    source: Source,
    lease: SlotLease,
    sleeper: Option<Sleeper>,
    is_uncached: bool,
    /// The process that attached: a forked child has a copy of this value, but not the endpoint.
    pid: u32,
}

/// Attaches to the region that the options name, or the one that is found.
///
/// No thread of the program may block SIGBUS while it uses the region: see [`Mapping::of_file`].
///
/// # Errors
///
/// No region, no permission, a foreign or damaged region, no section, no room: each says what to do.
pub fn open_endpoint(options: &Options) -> Result<Attached, AttachError> {
    let source = find(options.device.as_deref())?;
    let opened = open(&source)?;
    let region = look(&source, &opened)?;
    // Through sysfs too, where the processor honours the guest's memory type.
    let is_uncached = matches!(source, Source::Pci(_))
        || opened.device.as_ref().is_some_and(|device| device.memory_type == UNCACHED);
    tune::apply(is_uncached);
    let number = choose_section(&source, &region, &opened, options.section)?;
    let section = region.sections()[number as usize];
    let writable = match region.is_open() {
        true => region.header().table_end..region.header().region_len,
        false => section.entry.offset..section.entry.offset + section.entry.len,
    };
    let mapping = Arc::new(map(&source, opened, writable)?);
    let rings = mapping.has_doorbells();
    let boot_id = match boot_id() {
        Ok(id) => id,
        // Without it siblings would take this process for one of an earlier boot, and reap it.
        Err(error) if matches!(source, Source::Driver(_)) => {
            return Err(AttachError::BootId { path: BOOT_ID.into(), error });
        }
        Err(_) => unlike_others(),
    };
    let (lease, kernel) = match source {
        Source::File(_) => (SlotLease::Locks, Kernel::Host),
        Source::Pci(_) => (SlotLease::Locks, Kernel::Guest),
        Source::Driver(_) => (SlotLease::Driver, Kernel::Driver),
    };
    let slots = section.layout.endpoints;
    for slot in 0..slots {
        if !lease.take(mapping.file(), &section, slot).map_err(source.error())? {
            continue;
        }
        let state = slot::state(&mapping, &section, slot);
        if lease.is_owned_elsewhere(state.state, slot::boot_id(&mapping, &section, slot), boot_id) {
            lease.release(mapping.file(), &section, slot).map_err(source.error())?;
            continue;
        }
        // The lease is ours, so that the slot's former process is dead, whatever the slot says.
        if state.state != STATE_FREE {
            slot::reap(&mapping, &section, slot, state, true);
        }
        let Some(incarnation) = slot::claim(&mapping, &section, slot) else {
            let _ = lease.release(mapping.file(), &section, slot);
            continue;
        };
        let pid = std::process::id();
        let may_sleep = options.sleep && rings;
        let process = Process { pid: pid.into(), boot_id, may_sleep, rings };
        // The process must be seen alive before its endpoint can be found.
        let path = (lease == SlotLease::Locks).then(|| source.path());
        let mut monitor = Monitor::start(&mapping, section, slot, path).map_err(|error| {
            let attaching = slot::state(&mapping, &section, slot);
            slot::reap(&mapping, &section, slot, attaching, false);
            source.error()(error)
        })?;
        let endpoint = Endpoint::take(Arc::clone(&mapping), region, number, slot, incarnation, &process)?;
        let sleeper = may_sleep.then(|| Sleeper::new(mapping, number, slot));
        let patience = options.patience;
        monitor.watch(&endpoint, MonitorOptions { boot_id, patience, kernel, sleeper: sleeper.clone() });
        return Ok(Attached {
            monitor: Some(monitor),
            endpoint: ManuallyDrop::new(endpoint),
            source,
            lease,
            sleeper,
            is_uncached,
            pid,
        });
    }
    Err(SectionError::NoSlot { section: number, slots }.into())
}

impl Attached {
    /// The source of the region.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Advice that would make the way faster, if there is any: one line for the user, to be shown once.
    pub fn advice(&self) -> Option<&'static str> {
        match self.source {
            Source::Pci(_) => Some(
                "the shared memory is mapped through sysfs, which is slow where the processor honours the guest's \
                 memory type; the vmshm guest driver maps it cached",
            ),
            Source::Driver(_) if self.is_uncached => Some(
                "the shared memory is mapped uncached, which is slow, because its PCI BAR lies where firmware forbids \
                 caching: on the host, create the region with --size 4G or more, so that the BAR lies above 4 GiB",
            ),
            Source::Driver(_) | Source::File(_) => None,
        }
    }

    /// The sleeper, which waits for the doorbell, if the options asked for sleep ([`Options::sleep`]) and the device has
    /// doorbells.
    ///
    /// To sleep: call [`Endpoint::fall_asleep`]; if it returns true, call [`Sleeper::wait`], for which the endpoint need not
    /// be borrowed; then call [`Endpoint::wake_up`] and go on polling.
    pub fn sleeper(&self) -> Option<Sleeper> {
        self.sleeper.clone()
    }

    /// Maps `len` bytes of a fragment, of zeros, once more at `address`, a multiple of the page size where nothing is mapped.
    /// Returns how many bytes that are, and their offset in the region. The fragment must be [`Mapping::ALIAS_ALIGNMENT`] longer.
    ///
    /// # Errors
    ///
    /// The error of `mmap`; a fragment that is too short.
    pub fn alias(&self, fragment: &Fragment, len: usize, address: usize) -> io::Result<(usize, u64)> {
        let skipped = address.wrapping_sub(fragment.offset() as usize) % Mapping::ALIAS_ALIGNMENT;
        let offset = fragment.offset() + skipped as u64;
        let len = self.memory().alias(offset, len, address)?;
        if skipped + len > fragment.capacity() {
            self.end_alias(address);
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.memory().zero(offset, len as u64);
        Ok((len, offset))
    }

    /// Ends the alias at an address, before its fragment is freed. Nothing may use it any more.
    pub fn end_alias(&self, address: usize) {
        self.memory().end_alias(address);
    }

    /// Leaves, as dropping does, but keeps memory of the section: chunks stay mapped and stay this process's until it ends. To be
    /// dropped next; nothing may be sent any more.
    pub fn withdraw(&mut self) {
        self.wait_until_drained();
        self.endpoint.withdraw();
        drop(self.monitor.take());
        // The open file holds the slot from now on, and so the memory: nothing is left for `drop`.
        self.pid = 0;
    }

    fn wait_until_drained(&mut self) {
        let end = Instant::now() + DRAIN;
        while !self.endpoint.is_drained() && Instant::now() < end {
            std::thread::yield_now();
        }
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // In a forked child, thread and slot are the parent's; after a withdrawal there is no thread.
            std::mem::forget(self.monitor.take());
            return;
        }
        self.wait_until_drained();
        let mapping = Arc::clone(self.endpoint.memory());
        let section = *self.endpoint.section();
        let slot = self.endpoint.slot();
        // SAFETY: `drop` runs once, nothing else drops the endpoint, and below only copies of its parts are used.
        unsafe { ManuallyDrop::drop(&mut self.endpoint) };
        drop(self.monitor.take());
        // Explicitly: a forked child that has the file open too would keep the lease.
        let _ = self.lease.release(mapping.file(), &section, slot);
        if self.lease == SlotLease::Locks {
            let _ = lock::release(mapping.file(), RegionHeader::entry_offset(section.number));
        }
    }
}

impl Deref for Attached {
    type Target = Endpoint<Arc<Mapping>>;

    fn deref(&self) -> &Self::Target {
        &self.endpoint
    }
}

impl DerefMut for Attached {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.endpoint
    }
}

/// The kernel's boot id: processes with the same one can see each other's locks.
fn boot_id() -> io::Result<[u64; 2]> {
    let text = fs::read_to_string(BOOT_ID)?;
    let id = parse_uuid(text.trim()).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidData, format!("{:?} is no boot id", text.trim()))
    })?;
    let number = u128::from_be_bytes(id);
    Ok([(number >> 64) as u64, number as u64])
}

/// A boot id unlike every other, for where the kernel does not tell its own: no process looks for our lock then.
fn unlike_others() -> [u64; 2] {
    let mut bytes = [0; 8];
    let read = File::open("/dev/urandom").and_then(|file| file.read_exact_at(&mut bytes, 0));
    [u64::from(std::process::id()), read.map_or(1, |()| u64::from_le_bytes(bytes))]
}
