//! How this machine copies, and how messages are cut: from the sizes of its caches, or from a measurement.
//!
//! | file | what it has |
//! |---|---|
//! | `machine` | what the kernel tells of the processor |
//! | `way` | ways of passing a message, which are compared |
//! | `choice` | how copies are made: the table, and what follows from a measurement |
//! | `speed` | how fast messages are, by a measurement |
//! | `measure` | the measurement, between two cores |
//! | `kept` | the choice that a measurement has left here |

mod choice;
mod kept;
mod machine;
mod measure;
mod speed;
mod way;

use std::path::PathBuf;
use std::sync::{LazyLock, Once};

use crate::memory::{copy, copy::BLOCK, set_hints};

pub use choice::{Choice, ratios};
pub use kept::{directory, write as keep};
pub use machine::{Machine, Vendor};
pub use measure::{Measurement, Unmeasured, measure};
pub use speed::Speed;
pub use way::{Row, Way};

/// Pipeline parameters: how messages are cut. All sizes are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tuning {
    /// Eager limit: longer messages go by rendezvous, when their receiver asks for them.
    pub eager_limit: usize,
    /// Chunk of a rendezvous message in ordinary memory, with many in flight.
    pub chunk_size: usize,
    /// Chunk at the beginning and the end of a message that is alone: its receiver begins when the first is there, and reads it
    /// from four pages at a time.
    pub tail_size: usize,
    /// Window of a sender with many messages in flight: how far it runs ahead of the receivers.
    pub window: usize,
    /// Window of a single message: the memory that its chunks take in rotation.
    pub window_single: usize,
    /// Chunk of a collective operation: half of the first level cache, since both sides copy at the same time.
    pub coll_chunk_size: usize,
    /// Memory that the chunks of a collective operation take in rotation, between two ranks: less than `window`, since other
    /// ranks' caches hold only what they read.
    pub coll_rotation: usize,
    /// Longest operand that the root of a reduction reads in place.
    pub coll_zero_copy_limit: usize,
    /// Eviction size: two thirds of the first level cache.
    pub evict_size: usize,
    /// A sender that waits with this much just written for others evicts it from its first level cache; `usize::MAX`: never.
    pub evict_from: usize,
}

impl Tuning {
    /// Sizes that suit a machine, with a choice of how copies are made.
    ///
    /// Eager limit and collective operations follow from the processor alone, as all processes of a job need the same.
    pub fn of(machine: &Machine, choice: &Choice) -> Self {
        let (level1, level2) = choice::caches(machine);
        let piece = choice::cache_piece(machine) as usize;
        let window = choice::window(machine) as usize;
        // Within the bounds of `Choice` and `window` the casts lose nothing.
        Self {
            // On Zen 4 in the place of a rendezvous: 8 KiB 0.75 of the time and twice the rate, 16 KiB 0.84 and 1.06.
            eager_limit: if machine.vendor == Vendor::Amd { 16 << 10 } else { piece / 8 },
            chunk_size: choice.chunk_size,
            tail_size: choice.chunk_size.min(BLOCK),
            window: window.max(choice.rotation),
            window_single: choice.rotation,
            coll_chunk_size: piece / 2,
            coll_rotation: window / 4,
            // The operand, the root's own and the result fit the second level cache together.
            coll_zero_copy_limit: (level2 / 3) as usize & !4095,
            // Evicting less takes longer than its readers save.
            evict_size: (level1 / 3 * 2).clamp(8 << 10, 256 << 10) as usize,
            evict_from: choice.evict_from,
        }
    }

    /// Sizes that suit this machine, which is asked once.
    pub fn of_this_machine() -> &'static Self {
        &Here::get().tuning
    }
}

/// This machine, asked once in a process.
#[derive(Debug)]
pub struct Here {
    /// The processor.
    pub machine: Machine,
    /// How copies are made here.
    pub choice: Choice,
    /// How messages are cut here.
    pub tuning: Tuning,
    /// How fast they are, where that was kept.
    pub speed: Option<Speed>,
    /// The file that has the choice; the table's where there is none.
    pub kept: Option<PathBuf>,
    /// Why a file is ignored, for the user.
    pub ignored: Option<String>,
}

impl Here {
    /// Asks the kernel, and reads the choice that was kept.
    pub fn get() -> &'static Self {
        static HERE: LazyLock<Here> = LazyLock::new(|| {
            let machine = Machine::read();
            let (kept, ignored) = match kept::read(&machine) {
                Ok(kept) => (kept, None),
                Err(ignored) => (None, Some(ignored)),
            };
            let (choice, speed, kept) = match kept {
                Some((choice, speed, file)) => (choice, speed, Some(file)),
                None => (Choice::of(&machine), None, None),
            };
            Here { machine, choice, tuning: Tuning::of(&machine, &choice), speed, kept, ignored }
        });
        &HERE
    }
}

/// Makes the copies of this process as this machine's choice says. `rep movsb` never, once there is memory that is not cached
/// (`is_uncached`), where it moves bytes one by one.
pub fn apply(is_uncached: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let choice = &Here::get().choice;
        copy::set_strings(choice.string_into, choice.string_out_of);
        copy::set_four_pages(choice.four_pages);
        copy::set_nontemporal(choice.nontemporal);
        set_hints(choice.owns_ahead, choice.demotes, choice.stores_ahead);
    });
    if is_uncached {
        copy::set_strings(usize::MAX, usize::MAX);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_machine_gets_sizes_that_fit_each_other() {
        for vendor in [Vendor::Amd, Vendor::Other] {
            for level1 in [0, 16 << 10, 32 << 10, 48 << 10, 128 << 10, u64::MAX >> 1] {
                for level2 in [0, 256 << 10, 2 << 20, 1 << 40] {
                    for level3 in [0, 4 << 20, 260 << 20, u64::MAX] {
                        let machine = Machine { vendor, level1, level2, level3, ..choice::tests::INTEL };
                        let tuning = Tuning::of(&machine, &Choice::of(&machine));
                        assert!(
                            tuning.tail_size >= 4096
                                && tuning.tail_size <= tuning.chunk_size
                                && tuning.eager_limit <= 32 << 10
                        );
                        assert!(
                            tuning.chunk_size <= tuning.window_single
                                && tuning.window_single <= tuning.window,
                            "{machine:?} {tuning:?}"
                        );
                        assert!(tuning.window <= 16 << 20);
                    }
                }
            }
        }
    }

    #[test]
    fn memory_that_is_not_cached_never_gets_strings() {
        apply(false);
        assert!(copy::Kernel::all().any(|kernel| kernel == copy::Kernel::of(1 << 20)));
        apply(true);
        assert!(copy::Kernel::of(1 << 20) != copy::Kernel::String);
        apply(false);
        assert!(copy::Kernel::of(1 << 20) != copy::Kernel::String);
    }
}
