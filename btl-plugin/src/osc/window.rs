//! What we know of a window, beside what Open MPI's own component does.

use std::sync::atomic::{AtomicIsize, Ordering};

use vmshm_transport::Peer;

use crate::lock::Lock;
use crate::mpool;
use crate::ompi::ompi_osc_base_module_t;

/// All windows. The lock is never held while anything of Open MPI's is called.
#[allow(clippy::vec_box, reason = "the functions below have to stay where they are")]
pub static WINDOWS: Lock<Vec<Box<Window>>> = Lock::new(Vec::new());

/// How many there are.
static COUNT: AtomicIsize = AtomicIsize::new(0);

/// Whether there are windows, whose accesses may wait for this process.
pub fn is_used() -> bool {
    COUNT.load(Ordering::Relaxed) > 0
}

/// One more of them, or one less.
pub fn count(change: isize) {
    COUNT.fetch_add(change, Ordering::Relaxed);
}

/// The functions that a window had.
pub type Below = *const ompi_osc_base_module_t;

/// A window.
pub struct Window {
    /// Open MPI's module, by which the window is known.
    module: *mut ompi_osc_base_module_t,
    /// The functions that it had.
    below: ompi_osc_base_module_t,
    /// Memory of the section, given back in the end; or NULL.
    memory: *mut u8,
    /// Each process.
    pub targets: Vec<Target>,
    /// A fence has opened an epoch for all.
    pub is_fenced: bool,
    /// All are locked.
    pub is_locked: bool,
    /// Flushes that found nothing to do.
    pub idle: u32,
}

// SAFETY: module and memory may be used by any thread.
unsafe impl Send for Window {}

/// A process of the window.
#[derive(Default)]
pub struct Target {
    /// Where its memory is, if it can be read in place.
    pub remote: Option<Remote>,
    /// It is locked, or said to be: the lock may still be under way.
    pub is_locked: bool,
    /// The lock is had.
    pub is_granted: bool,
    /// Something is under way that a flush has to wait for.
    pub is_busy: bool,
}

/// Memory of another process.
#[derive(Debug, Clone, Copy)]
pub struct Remote {
    /// Whose it is.
    pub peer: Peer,
    /// Offset in the region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Bytes that displacements count in.
    pub unit: u64,
}

/// How to go about an access.
#[derive(Debug, Clone, Copy)]
pub enum Way {
    /// In place: the peer and the offset in the region.
    Direct(Peer, u64),
    /// By messages; then the lock is had if a flush succeeds too.
    Lock,
    /// By messages.
    Messages,
}

impl Window {
    /// A window that Open MPI has just made.
    ///
    /// # Safety
    /// `module` is the window's.
    pub unsafe fn new(
        module: *mut ompi_osc_base_module_t,
        remotes: Vec<Option<Remote>>,
        memory: *mut u8,
    ) -> Self {
        // SAFETY: the caller vouches for it; the struct holds functions only.
        let below = unsafe { module.read() };
        count(1);
        let targets = remotes.into_iter().map(|remote| Target { remote, ..Target::default() }).collect();
        Self { module, below, memory, targets, is_fenced: false, is_locked: false, idle: 0 }
    }

    /// The window behind a module.
    #[inline]
    pub fn of(windows: &mut [Box<Self>], module: *mut ompi_osc_base_module_t) -> Option<&mut Self> {
        windows.iter_mut().find(|window| window.module == module).map(|window| &mut **window)
    }

    /// The functions that it had, which stay until it is freed.
    #[inline]
    pub fn below(&self) -> Below {
        &raw const self.below
    }

    /// Whether the window is the module's.
    pub fn is_of(&self, module: *mut ompi_osc_base_module_t) -> bool {
        self.module == module
    }

    /// How to reach `len` bytes of a target, at a displacement.
    #[inline]
    pub fn way(&mut self, target: usize, displacement: isize, len: usize) -> Way {
        let is_open = self.is_fenced;
        let is_locked = self.is_locked;
        let Some(known) = self.targets.get_mut(target) else { return Way::Messages };
        let at = known.remote.and_then(|remote| {
            let at = u64::try_from(displacement).ok()?.checked_mul(remote.unit)?;
            let fits = at.checked_add(len as u64)? <= remote.len;
            fits.then_some((remote.peer, remote.offset.checked_add(at)?))
        });
        match at {
            Some((peer, at)) if known.is_granted => Way::Direct(peer, at),
            Some(_) if known.is_locked || is_locked => {
                known.is_busy = true;
                Way::Lock
            }
            Some((peer, at)) if is_open => Way::Direct(peer, at),
            _ => {
                known.is_busy = true;
                Way::Messages
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        count(-1);
        mpool::give_back(self.memory);
    }
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;
    use std::ptr;

    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::attach::{Options, open_endpoint};

    use super::*;

    #[test]
    fn a_target_is_read_in_place_only_in_an_epoch_and_within_its_memory() {
        // SAFETY: the struct holds optional functions, for which zero is a value.
        let mut module: ompi_osc_base_module_t = unsafe { MaybeUninit::zeroed().assume_init() };
        let directory = TempDir::new().unwrap();
        let registry = Registry::at(directory.path());
        let region =
            registry.create(&RegionName::new("window").unwrap(), &CreateOptions::new(16 << 20)).unwrap();
        let open = |section| {
            let device = Some(region.path().display().to_string());
            open_endpoint(&Options { device, section: Some(section), ..Options::default() }).unwrap()
        };
        let (mut here, there) = (open(0), open(1));
        let peer = here.connect(&there.name()).unwrap();
        let remote = Remote { peer, offset: 4096, len: 80, unit: 8 };
        // SAFETY: the module is there.
        let mut window = unsafe { Window::new(&mut module, vec![Some(remote), None], ptr::null_mut()) };
        let is_direct = |window: &mut Window, target, at, len| match window.way(target, at, len) {
            Way::Direct(_, offset) => Some(offset),
            Way::Lock | Way::Messages => None,
        };
        assert_eq!(is_direct(&mut window, 0, 0, 8), None, "no epoch");
        window.is_fenced = true;
        assert_eq!(is_direct(&mut window, 0, 1, 8), Some(4104));
        assert_eq!(is_direct(&mut window, 0, 9, 8), Some(4168));
        for (at, len) in [(9, 9), (10, 8), (-1, 8), (isize::MAX, 8), (0, usize::MAX)] {
            assert_eq!(is_direct(&mut window, 0, at, len), None, "{len} bytes at {at}");
        }
        assert_eq!(is_direct(&mut window, 1, 0, 8), None, "not in the section");
        assert_eq!(is_direct(&mut window, 2, 0, 8), None, "no such rank");
        window.is_fenced = false;
        window.targets[0].is_locked = true;
        assert!(matches!(window.way(0, 0, 8), Way::Lock));
        window.targets[0].is_granted = true;
        assert_eq!(is_direct(&mut window, 0, 0, 8), Some(4096));
    }
}
