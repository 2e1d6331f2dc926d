//! Waiting for other members: spinning, backing off, and Open MPI's progress.

use std::hint::spin_loop;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Instant;

use vmshm_messaging::Evictor;
use vmshm_transport::collective::{CollError, Pause};

use crate::{ompi, osc};

/// Looks at another member's step before Open MPI makes progress: some microseconds.
const SPINS: u32 = 1000;

/// The same where processes share processors: the awaited member may need ours.
const SPINS_SHARED: u32 = 10;

/// Back-off before a look at another member's step, nanoseconds: less than a line takes between two processors. Measured as in
/// docs/analysis.md; twice as long is still better than none, where members come together.
const BACK_OFF: u128 = 36;

/// The processor's pauses that last about [`BACK_OFF`]: one takes from 3 to 45 ns, by the processor's make.
static BACK_OFF_PAUSES: LazyLock<u32> = LazyLock::new(|| {
    const MANY: u32 = 64;
    let measure = || {
        let began = Instant::now();
        (0..MANY).for_each(|_| spin_loop());
        began.elapsed().as_nanos()
    };
    // The fastest: others may have been interrupted.
    let all = (0..8).map(|_| measure()).min().unwrap_or(0).max(1);
    ((BACK_OFF * u128::from(MANY) + all / 2) / all).clamp(1, 16) as u32
});

/// Looks at another member's step before [`Pause::pause`].
pub fn spins(is_crowded: bool) -> u32 {
    if is_crowded { SPINS_SHARED } else { SPINS }
}

/// A wait for members, while Open MPI makes progress.
pub struct Waiting {
    yields: bool,
    back_off: u32,
    evictor: Arc<Evictor>,
}

impl Waiting {
    /// A wait that leaves the processor to other processes if it `yields`, and after copies evicts lines by `evictor`.
    pub fn new(yields: bool, evictor: Arc<Evictor>) -> Self {
        Self { yields, back_off: *BACK_OFF_PAUSES, evictor }
    }
}

impl Pause for Waiting {
    #[cold]
    fn pause(&mut self, _: usize) -> Result<(), CollError> {
        // SAFETY: we hold no lock, and are called by Open MPI outside of its own.
        unsafe { ompi::opal_progress() };
        if self.yields {
            thread::yield_now();
        }
        Ok(())
    }

    #[inline]
    fn back_off(&self) {
        (0..self.back_off).for_each(|_| spin_loop());
    }

    fn exposed(&self, len: usize) {
        self.evictor.evict(len);
    }

    fn spins(&self, usual: u32) -> u32 {
        // Origins may wait for accesses to our window, which only our progress does.
        if osc::is_used() { usual.min(SPINS_SHARED) } else { usual }
    }
}
