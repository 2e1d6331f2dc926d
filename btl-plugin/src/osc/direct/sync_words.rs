//! The words by which processes of a direct window wait for each other.
//!
//! Each process has some in its section, which all others write too: such windows are only where all may. Every process
//! takes part in turn, as with numbered tickets, so that nobody waits for ever where many want the same lock.

use std::sync::atomic::{AtomicU64, Ordering};

/// Words that are written by different processes at the same time lie so far apart, bytes.
const LINE: usize = 128;

/// Looks at the guard before a process lets others run, which may be the one that has it.
const LOOKS: u32 = 1 << 8;

/// The words of one process.
#[derive(Debug, Clone, Copy)]
pub struct SyncWords(*mut u8);

/// Where each word lies, bytes.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// Tickets for the lock that were drawn.
    Drawn = 0,
    /// The ticket that may read next: all with lower ones read, or have been.
    Read = 8,
    /// The ticket that may write next: all with lower ones have been.
    Write = 16,
    /// 1 while somebody changes elements.
    Guard = LINE as isize,
    /// Processes that have completed their accesses since this one posted.
    Completed = 2 * LINE as isize,
    /// Processes that have posted for this one, a bit each; as many words as there have to be.
    Posts = 3 * LINE as isize,
}

impl SyncWords {
    /// How many bytes a process of a window needs, of `count` in all.
    pub fn len(count: usize) -> usize {
        Word::Posts as usize + count.div_ceil(64) * 8
    }

    /// The words at an address.
    ///
    /// # Safety
    /// [`SyncWords::len`] bytes are mapped there to be written, as long as this or a copy of it is used, are aligned to 8
    /// bytes, and were all zero before anyone used them.
    pub unsafe fn new(at: *mut u8) -> Self {
        Self(at)
    }

    #[inline]
    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: `new` says that there is one.
        unsafe { AtomicU64::from_ptr(self.0.add(word as usize).cast()) }
    }

    /// The word and the bit of a process that posts.
    fn post_of(&self, rank: usize) -> (&AtomicU64, u64) {
        // SAFETY: `new` says that there are words for all processes.
        let word = unsafe { AtomicU64::from_ptr(self.0.add(Word::Posts as usize + rank / 64 * 8).cast()) };
        (word, 1 << (rank % 64))
    }

    /// Locks against all others; calls `wait` between looks.
    pub fn lock_alone(&self, wait: impl Fn()) {
        let ticket = self.word(Word::Drawn).fetch_add(1, Ordering::Relaxed);
        while self.word(Word::Write).load(Ordering::Acquire) != ticket {
            wait();
        }
    }

    /// Locks against those that lock alone.
    pub fn lock_shared(&self, wait: impl Fn()) {
        let ticket = self.word(Word::Drawn).fetch_add(1, Ordering::Relaxed);
        while self.word(Word::Read).load(Ordering::Acquire) != ticket {
            wait();
        }
        self.word(Word::Read).fetch_add(1, Ordering::Release);
    }

    /// Ends [`SyncWords::lock_alone`].
    pub fn unlock_alone(&self) {
        self.word(Word::Write).fetch_add(1, Ordering::Release);
        self.word(Word::Read).fetch_add(1, Ordering::Release);
    }

    /// Ends [`SyncWords::lock_shared`].
    pub fn unlock_shared(&self) {
        self.word(Word::Write).fetch_add(1, Ordering::Release);
    }

    /// Does `work` while nobody else changes elements; calls `wait` now and then before.
    #[inline]
    pub fn guarded<T>(&self, wait: impl Fn(), work: impl FnOnce() -> T) -> T {
        let guard = self.word(Word::Guard);
        while guard.compare_exchange(0, 1, Ordering::Acquire, Ordering::Relaxed).is_err() {
            let mut looks = 0u32;
            while guard.load(Ordering::Relaxed) != 0 {
                std::hint::spin_loop();
                looks += 1;
                if looks.is_multiple_of(LOOKS) {
                    wait();
                }
            }
        }
        let result = work();
        guard.store(0, Ordering::Release);
        result
    }

    /// Process `rank` lets this one begin.
    pub fn post(&self, rank: usize) {
        let (word, bit) = self.post_of(rank);
        word.fetch_or(bit, Ordering::Release);
    }

    /// Waits until `rank` has posted, and forgets it.
    pub fn take_post(&self, rank: usize, wait: impl Fn()) {
        let (word, bit) = self.post_of(rank);
        while word.load(Ordering::Acquire) & bit == 0 {
            wait();
        }
        word.fetch_and(!bit, Ordering::Relaxed);
    }

    /// A process has completed its accesses.
    pub fn complete(&self) {
        self.word(Word::Completed).fetch_add(1, Ordering::Release);
    }

    /// Whether `count` processes have completed; then they are forgotten.
    pub fn take_completed(&self, count: u64) -> bool {
        let word = self.word(Word::Completed);
        let is_complete = word.load(Ordering::Acquire) >= count;
        if is_complete {
            word.fetch_sub(count, Ordering::Relaxed);
        }
        is_complete
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;
    use std::thread;

    use super::*;

    /// Words that threads share, as processes share those of a section.
    struct Shared {
        words: Box<[UnsafeCell<u64>]>,
        numbers: UnsafeCell<[u64; 2]>,
    }

    // SAFETY: the tests show that threads do not use the numbers at the same time.
    unsafe impl Sync for Shared {}

    impl Shared {
        fn new() -> Self {
            let words = (0..SyncWords::len(70).div_ceil(8)).map(|_| UnsafeCell::new(0)).collect();
            Self { words, numbers: UnsafeCell::new([0; 2]) }
        }

        fn sync(&self) -> SyncWords {
            // SAFETY: there are as many bytes for as long as this is borrowed, aligned and zero.
            unsafe { SyncWords::new(UnsafeCell::raw_get(self.words.as_ptr()).cast()) }
        }

        fn numbers(&self) -> [*mut u64; 2] {
            let first = self.numbers.get().cast::<u64>();
            [first, first.wrapping_add(1)]
        }

        /// Counts up twice, in a way that others would disturb.
        fn count(&self) {
            self.look();
            for number in self.numbers() {
                // SAFETY: nobody else uses the numbers.
                unsafe { number.write_volatile(number.read_volatile() + 1) };
                thread::yield_now();
            }
        }

        fn look(&self) {
            // SAFETY: nobody changes the numbers meanwhile.
            let [one, two] = self.numbers().map(|number| unsafe { number.read_volatile() });
            assert_eq!(one, two);
        }
    }

    #[test]
    fn who_locks_alone_is_alone_and_who_shares_sees_no_half_of_a_change() {
        let shared = Shared::new();
        thread::scope(|scope| {
            for number in 0..4 {
                let shared = &shared;
                scope.spawn(move || {
                    let sync = shared.sync();
                    for turn in 0..2000 {
                        if (turn + number) % 3 == 0 {
                            sync.lock_alone(thread::yield_now);
                            shared.count();
                            sync.unlock_alone();
                        } else {
                            sync.lock_shared(thread::yield_now);
                            shared.look();
                            sync.unlock_shared();
                        }
                    }
                });
            }
        });
        let counted =
            (0..4).flat_map(|number| (0..2000).filter(move |turn| (turn + number) % 3 == 0)).count();
        assert_eq!(shared.numbers.into_inner(), [counted as u64; 2]);
    }

    #[test]
    fn shared_locks_are_had_at_the_same_time() {
        let shared = Shared::new();
        let sync = shared.sync();
        let wait = || panic!("it waited");
        sync.lock_shared(wait);
        sync.lock_shared(wait);
        sync.unlock_shared();
        sync.unlock_shared();
        sync.lock_alone(wait);
        sync.unlock_alone();
        sync.lock_shared(wait);
    }

    #[test]
    fn guarded_work_is_not_disturbed() {
        let shared = Shared::new();
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..2000 {
                        shared.sync().guarded(thread::yield_now, || shared.count());
                    }
                });
            }
        });
        assert_eq!(shared.numbers.into_inner(), [8000; 2]);
    }

    #[test]
    fn posts_and_completions_are_counted_once() {
        let shared = Shared::new();
        let sync = shared.sync();
        sync.post(3);
        sync.post(69);
        sync.take_post(69, || panic!("it was posted"));
        sync.take_post(3, || panic!("it was posted"));
        // SAFETY: nobody else uses the words.
        assert!(shared.words.iter().all(|word| unsafe { *word.get() } == 0));
        assert!(!sync.take_completed(2));
        sync.complete();
        assert!(!sync.take_completed(2));
        sync.complete();
        assert!(sync.take_completed(2));
        assert!(!sync.take_completed(1));
    }
}
