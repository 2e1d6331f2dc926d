//! What copies cost on this processor: measured by each process, in less than a tenth of a millisecond, to choose between
//! vectors and `rep movsb`; and for people.

use std::sync::Once;
use std::time::{Duration, Instant};

use super::kernel::Kernel;
use super::native;

/// The lengths from which on `rep movsb` may be taken, bytes. Longer copies are always by it, as nothing is faster.
const STRINGS: [usize; 4] = [1 << 10, 2 << 10, 4 << 10, 8 << 10];

/// Bytes of a page.
const PAGE: usize = 4096;

/// Measures from which length on `rep movsb` is faster than vectors, and takes it from there on; once in a process. Never,
/// once there is memory that is not cached (`is_uncached`), where it moves bytes one by one.
pub fn calibrate(is_uncached: bool) {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| native::set_string_from(measure_strings()));
    if is_uncached {
        native::set_string_from(usize::MAX);
    }
}

fn measure_strings() -> usize {
    if !Kernel::all().any(|kernel| kernel == Kernel::String) {
        return usize::MAX;
    }
    let longest = STRINGS[STRINGS.len() - 1];
    // Half a page apart modulo a page: a load that seems to come from where a store before it went waits for that.
    let mut buffer = vec![1u8; PAGE + longest + PAGE / 2 + longest];
    let aligned = buffer.as_ptr().align_offset(PAGE);
    let (from, to) = buffer[aligned..].split_at_mut(longest + PAGE / 2);
    let mut time = |kernel: Kernel, len| {
        let run = |_| {
            let begin = Instant::now();
            for _ in 0..4 {
                // SAFETY: both have len bytes, and more than 32.
                unsafe { kernel.copy(from.as_ptr(), to.as_mut_ptr(), len) };
            }
            begin.elapsed()
        };
        (0..6).map(run).min()
    };
    // Whatever serves copies that are not by `rep movsb`.
    let vectors = Kernel::of(STRINGS[0] - 1);
    let is_faster = |len: &usize| time(Kernel::String, *len) < time(vectors, *len);
    STRINGS.into_iter().find(is_faster).unwrap_or(longest)
}

/// How fast each way of copying `len` bytes between the caches of this core is, bytes per second: a few milliseconds each.
pub fn measure(len: usize) -> Vec<(Kernel, f64)> {
    let from = vec![1u8; len];
    let mut to = vec![0u8; len];
    let mut run = |kernel: Kernel| {
        let mut best = 0f64;
        for _ in 0..5 {
            let (begin, mut bytes) = (Instant::now(), 0);
            while begin.elapsed() < Duration::from_micros(500) {
                for _ in 0..(64 << 10) / len.max(1) + 1 {
                    // SAFETY: both vectors have len bytes.
                    unsafe { kernel.copy(from.as_ptr(), to.as_mut_ptr(), len) };
                    bytes += len;
                }
            }
            best = best.max(bytes as f64 / begin.elapsed().as_secs_f64());
        }
        best
    };
    assert!(len >= 32, "copies of {len} bytes are too short to be measured");
    Kernel::all().map(|kernel| (kernel, run(kernel))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn copies_take_time() {
        for (kernel, speed) in measure(4096) {
            assert!(speed > 0.0, "{kernel:?}");
        }
        calibrate(false);
        assert!(Kernel::all().any(|kernel| kernel == Kernel::of(1 << 20)));
        calibrate(true);
        assert!(Kernel::of(1 << 20) != Kernel::String);
        calibrate(false);
        assert!(Kernel::of(1 << 20) != Kernel::String);
    }
}
