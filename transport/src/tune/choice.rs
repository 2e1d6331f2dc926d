//! How copies are made: by the table of what was measured on some machines, or by a measurement on this one.

use super::machine::{Machine, Vendor};
use super::way::{Row, SHORT, Way};
use crate::memory::copy::BLOCK;

/// Sizes of a first and second level cache where nobody tells them, bytes: nearly every server has these or more.
const LEVEL1: u64 = 32 << 10;
const LEVEL2: u64 = 1 << 20;

/// From this many bytes on, a copy to memory of another node passes by the caches: published for 64 KiB, 0.61 of the time.
const FAR: usize = 16 << 10;

/// A way that is to replace the table's takes at most this part of its time: less is within a measurement's spread.
const SURELY: f64 = 0.95;

/// How copies are made. All lengths are bytes; `usize::MAX` is never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Choice {
    /// From this length on, `rep movsb` copies into shared memory.
    pub string_into: usize,
    /// From this length on, `rep movsb` copies out of shared memory, but for what goes by four pages.
    pub string_out_of: usize,
    /// From this length on, copies out of shared memory read from four pages at a time.
    pub four_pages: usize,
    /// From this length on, copies to memory of another NUMA node pass by the caches.
    pub nontemporal: usize,
    /// Lines to be written are owned ahead.
    pub owns_ahead: bool,
    /// Lines whose content is dead are owned ahead by storing zeros.
    pub stores_ahead: bool,
    /// Lines just written are demoted to the shared cache.
    pub demotes: bool,
    /// Chunk of a rendezvous message in ordinary memory.
    pub chunk_size: usize,
    /// Memory that the chunks of a single message take in rotation.
    pub rotation: usize,
    /// A sender that waits with this much just written for others evicts it from its first level cache.
    pub evict_from: usize,
}

/// The sizes of the first and second level cache, or usual ones.
pub(super) fn caches(machine: &Machine) -> (u64, u64) {
    let or = |size: u64, default| if size == 0 { default } else { size };
    (or(machine.level1, LEVEL1), or(machine.level2, LEVEL2))
}

/// The memory that the chunks of many messages take in rotation, bytes. Beyond four second level caches nothing is gained.
pub(super) fn window(machine: &Machine) -> u64 {
    let (_, level2) = caches(machine);
    // The third level cache is for all cores.
    let most = if machine.level3 == 0 { 2 * level2 } else { (machine.level3 / 8).max(level2) };
    level2.saturating_mul(4).min(most).clamp(1 << 20, 16 << 20)
}

/// A piece about as long as the first level cache, bytes: longer costs latency, shorter costs more than it gains.
pub(super) fn cache_piece(machine: &Machine) -> u64 {
    caches(machine).0.next_power_of_two().clamp(32 << 10, 128 << 10)
}

impl Choice {
    /// The table's choice for a machine.
    ///
    /// Memory that is used again at once lies in the receiver's cache and is slow to get back, so that the chunks of even a
    /// single message rotate through a part of the second level cache: a quarter of it on Sapphire Rapids. AMD's hand on what
    /// they evict to the third, which is faster than taking it from another core: through twice the second level cache, a
    /// Zen 4 passes 64 KiB in 0.65 of the time that once the cache takes, 128 KiB in 0.79, longer ones in 0.93 to 1.0.
    pub fn of(machine: &Machine) -> Self {
        let (level1, level2) = caches(machine);
        let window = window(machine);
        let (chunk_size, rotation) = match machine.vendor {
            // Of a message of 64 KiB nothing has to be requested: 0.96 of the time with 32 KiB, and 0.6 where the cores are far
            // apart; a stream of 64 KiB and more has 1.05 to 1.15 of the bandwidth.
            Vendor::Amd => (64 << 10, level2.saturating_mul(2).clamp(512 << 10, window)),
            Vendor::Other => (cache_piece(machine), window / 16),
        };
        // `rep movsb` takes its time to start; on Zen it is never the faster, and crawls where both sides lie at nearly the
        // same offset in their pages.
        let is_slow = !machine.fast_strings || machine.vendor == Vendor::Amd;
        let string = if is_slow { usize::MAX } else { 1 << 10 };
        // Within these bounds the casts lose nothing.
        Self {
            string_into: string,
            string_out_of: string,
            four_pages: if machine.avx { BLOCK } else { usize::MAX },
            nontemporal: FAR,
            owns_ahead: true,
            // Over MPI on Zen 4, against `prefetchw`: latency of 128 B to 512 B 0.75 to 0.84, of 2 and 4 KiB 0.75 and 0.68 of the time,
            // 4 KiB in a stream 1.32 of the rate. Sapphire Rapids owns by `prefetchw`: twice as many zeros ahead took 1.12 of the time
            // of 128 B there.
            stores_ahead: machine.vendor == Vendor::Amd,
            demotes: machine.demotes,
            chunk_size: chunk_size as usize,
            rotation: rotation.max(chunk_size) as usize,
            // Evicting less takes longer than its readers save.
            evict_from: (level1 / 3 * 2).clamp(8 << 10, 256 << 10) as usize,
        }
    }

    /// The choice that follows from a measurement: the table's, but for what was surely faster.
    pub fn measured(machine: &Machine, rows: &[Row]) -> Self {
        let table = Self::of(machine);
        let string = |way, usual| match machine.fast_strings {
            true => threshold(rows, way, usual),
            false => usize::MAX,
        };
        let (chunk_size, rotation) = cut(rows, (table.chunk_size, table.rotation));
        let evicts = pays(rows, Way::Evict, true);
        Self {
            string_into: string(Way::StringInto, table.string_into),
            string_out_of: string(Way::StringOutOf, table.string_out_of),
            four_pages: match machine.avx && pays(rows, Way::FourPages, table.four_pages != usize::MAX) {
                true => BLOCK,
                false => usize::MAX,
            },
            nontemporal: if pays(rows, Way::FarNonTemporal, true) { FAR } else { usize::MAX },
            owns_ahead: pays(rows, Way::OwnAhead, table.owns_ahead),
            // Its gain comes from what is done while an answer is waited for, which no single copy shows.
            stores_ahead: table.stores_ahead,
            demotes: machine.demotes && pays(rows, Way::Demote, table.demotes),
            chunk_size,
            rotation,
            evict_from: if evicts { table.evict_from } else { usize::MAX },
        }
    }
}

/// The ratios of a way's times to those of the way that it was measured beside, by length.
pub fn ratios(rows: &[Row], way: Way) -> impl Iterator<Item = (usize, f64)> + '_ {
    rows.iter().filter(move |row| row.way == way).filter_map(move |row| {
        let base = rows.iter().find(|base| base.way == way.base() && base.len == row.len)?;
        (base.time > 0.0).then(|| (row.len, row.time / base.time))
    })
}

/// Whether a way is worth it, over all lengths: as usual, unless it surely is not. Unmeasured: as usual.
fn pays(rows: &[Row], way: Way, usually: bool) -> bool {
    let all: Vec<f64> = ratios(rows, way).map(|(_, ratio)| ratio.ln()).collect();
    if all.is_empty() {
        return usually;
    }
    let mean = (all.iter().sum::<f64>() / all.len() as f64).exp();
    if usually { mean <= 1.0 / SURELY } else { mean < SURELY }
}

/// The length from which on a way is the faster: that which makes all lengths together fastest, or the usual one where that is
/// nearly as good.
fn threshold(rows: &[Row], way: Way, usual: usize) -> usize {
    let all: Vec<(usize, f64)> = ratios(rows, way).map(|(len, ratio)| (len, ratio.ln())).collect();
    if all.is_empty() {
        return usual;
    }
    let cost = |from: usize| {
        (all.iter().filter(|(len, _)| *len >= from).map(|(_, log)| log).sum::<f64>() / all.len() as f64).exp()
    };
    // Never is among them, and comes first: it wins where nothing is faster.
    let candidates = std::iter::once(usize::MAX).chain(SHORT);
    let best = candidates.fold(usize::MAX, |best, from| if cost(from) < cost(best) { from } else { best });
    if cost(best) < cost(usual) * SURELY { best } else { usual }
}

/// The fastest chunk and rotation, or the table's.
fn cut(rows: &[Row], table: (usize, usize)) -> (usize, usize) {
    let time_of = |row: &Row| match row.way {
        Way::Cut { chunk, rotation } => Some(((chunk, rotation), row.time)),
        _ => None,
    };
    let cuts = || rows.iter().filter_map(time_of);
    let usual = cuts().find(|(cut, _)| *cut == table);
    let best = cuts().min_by(|(_, one), (_, other)| one.total_cmp(other));
    match (usual, best) {
        (Some((_, usual)), Some((cut, best))) if best < usual * SURELY => cut,
        _ => table,
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub const INTEL: Machine = Machine {
        vendor: Vendor::Other,
        level1: 48 << 10,
        level2: 2 << 20,
        level3: 260 << 20,
        clock: 2100,
        avx: true,
        fast_strings: true,
        demotes: true,
    };

    pub const ZEN4: Machine = Machine {
        vendor: Vendor::Amd,
        level1: 32 << 10,
        level2: 1 << 20,
        level3: 32 << 20,
        clock: 2600,
        avx: true,
        fast_strings: true,
        demotes: false,
    };

    /// Rows of a way whose times are these parts of the other's.
    fn rows(way: Way, ratios: &[(usize, f64)]) -> Vec<Row> {
        let base = |len| Row { way: way.base(), len, time: 1000.0 };
        ratios
            .iter()
            .flat_map(|(len, ratio)| [base(*len), Row { way, len: *len, time: 1000.0 * ratio }])
            .collect()
    }

    #[test]
    fn the_table_has_something_for_every_processor() {
        let intel = Choice::of(&INTEL);
        assert_eq!((intel.string_into, intel.four_pages, intel.demotes), (1 << 10, BLOCK, true));
        assert!(!intel.stores_ahead && Choice::of(&ZEN4).stores_ahead);
        assert_eq!((intel.chunk_size, intel.rotation, intel.evict_from), (64 << 10, 512 << 10, 32 << 10));
        let zen4 = Choice::of(&ZEN4);
        assert_eq!((zen4.string_into, zen4.string_out_of, zen4.demotes), (usize::MAX, usize::MAX, false));
        assert_eq!((zen4.chunk_size, zen4.rotation), (64 << 10, 2 << 20));
        let zen3 = Choice::of(&Machine { level2: 512 << 10, ..ZEN4 });
        assert_eq!((zen3.rotation, zen3.evict_from), (1 << 20, 21844), "{zen3:?}");
        let cases = [
            (Machine { avx: false, ..INTEL }, usize::MAX, 1 << 10),
            (Machine { fast_strings: false, ..INTEL }, BLOCK, usize::MAX),
            (Machine { avx: false, fast_strings: false, ..ZEN4 }, usize::MAX, usize::MAX),
        ];
        for (machine, four_pages, string) in cases {
            let choice = Choice::of(&machine);
            assert_eq!(
                (choice.four_pages, choice.string_into, choice.string_out_of),
                (four_pages, string, string)
            );
        }
        for level2 in [256 << 10, 512 << 10] {
            for vendor in [Vendor::Amd, Vendor::Other] {
                let choice = Choice::of(&Machine { vendor, level2, level3: 0, ..INTEL });
                assert!(
                    choice.chunk_size <= choice.rotation && choice.rotation <= 1 << 20,
                    "{level2}: {choice:?}"
                );
            }
        }
    }

    #[test]
    fn nothing_measured_is_the_table() {
        for machine in [INTEL, ZEN4, Machine { avx: false, fast_strings: false, ..ZEN4 }] {
            assert_eq!(Choice::measured(&machine, &[]), Choice::of(&machine));
        }
    }

    #[test]
    fn strings_are_taken_from_where_they_are_surely_faster() {
        let into = |machine: &Machine, ratios: &[(usize, f64)]| {
            Choice::measured(machine, &rows(Way::StringInto, ratios)).string_into
        };
        let faster = [(256, 1.3), (512, 1.1), (1 << 10, 0.8), (4 << 10, 0.7), (64 << 10, 0.6)];
        assert_eq!(into(&ZEN4, &faster), 1 << 10);
        assert_eq!(into(&Machine { fast_strings: false, ..ZEN4 }, &faster), usize::MAX, "there are none");
        let slower = [(256, 2.0), (1 << 10, 1.5), (4 << 10, 5.0), (64 << 10, 1.2)];
        assert_eq!(into(&INTEL, &slower), usize::MAX);
        let same = [(256, 1.02), (1 << 10, 0.98), (4 << 10, 1.01), (64 << 10, 0.99)];
        assert_eq!((into(&INTEL, &same), into(&ZEN4, &same)), (1 << 10, usize::MAX), "as the table has it");
        let out = Choice::measured(&ZEN4, &rows(Way::StringOutOf, &faster));
        assert_eq!((out.string_into, out.string_out_of), (usize::MAX, 1 << 10), "each way by itself");
    }

    #[test]
    fn hints_stay_unless_they_surely_cost() {
        let of = |way, ratio| Choice::measured(&INTEL, &rows(way, &[(2048, ratio), (4096, ratio)]));
        assert!(of(Way::OwnAhead, 1.04).owns_ahead && !of(Way::OwnAhead, 1.2).owns_ahead);
        assert!(of(Way::Demote, 0.9).demotes && !of(Way::Demote, 1.3).demotes);
        assert_eq!(of(Way::Evict, 1.0).evict_from, 32 << 10);
        assert_eq!(of(Way::Evict, 1.2).evict_from, usize::MAX);
        assert_eq!(of(Way::FourPages, 1.1).four_pages, usize::MAX);
        assert_eq!(
            (of(Way::FarNonTemporal, 0.6).nontemporal, of(Way::FarNonTemporal, 1.5).nontemporal),
            (FAR, usize::MAX)
        );
        let no_vectors = Machine { avx: false, demotes: false, ..INTEL };
        let rows = [rows(Way::FourPages, &[(65536, 0.5)]), rows(Way::Demote, &[(4096, 0.5)])].concat();
        let choice = Choice::measured(&no_vectors, &rows);
        assert!(choice.four_pages == usize::MAX && !choice.demotes, "the processor has neither");
    }

    #[test]
    fn the_cut_is_the_fastest_one_where_it_is_surely_faster() {
        let cut = |chunk: usize, rotation: usize, time| Row {
            way: Way::Cut { chunk: chunk << 10, rotation: rotation << 10 },
            len: 256 << 10,
            time,
        };
        let of = |rows: &[Row]| {
            let choice = Choice::measured(&ZEN4, rows);
            (choice.chunk_size >> 10, choice.rotation >> 10)
        };
        assert_eq!(of(&[cut(64, 2048, 100.0), cut(16, 256, 99.0)]), (64, 2048), "within the spread");
        assert_eq!(of(&[cut(64, 2048, 100.0), cut(16, 4096, 80.0), cut(64, 512, 300.0)]), (16, 4096));
        assert_eq!(of(&[cut(16, 4096, 80.0)]), (64, 2048), "not beside the table's");
    }
}
