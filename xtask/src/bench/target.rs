//! Targets that vmshm must reach beside its peers, and whether it does.

use std::ops::RangeInclusive;

use super::case::{COLLECTIVES, OPEN, PML_UCX};
use super::measured::{Measured, Ratio};
use super::raw::Raw;
use crate::figures::statistics::Spread;
use crate::figures::table::{self, Table};

/// Which peers a target speaks of.
#[derive(Debug, Clone, Copy)]
enum Peers {
    /// Open MPI's shared memory, with two copies or with CMA.
    Vader,
    TwoCopies,
    Cma,
    /// UCX's shared memory, with two copies.
    Posix,
    PosixCma,
    /// One-sided operations as Open MPI does them within a host.
    OscSm,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    AtMost(f64),
    Below(f64),
    AtLeast(f64),
    Above(f64),
}

#[derive(Debug)]
struct Target {
    what: String,
    program: &'static str,
    /// Options of the measurement besides `--vary`: the program's, and [`OPEN`].
    ours: &'static str,
    sizes: RangeInclusive<u64>,
    peers: Peers,
    bound: Bound,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

impl Bound {
    fn is_met(self, ratio: f64) -> bool {
        match self {
            Bound::AtMost(bound) => ratio <= bound,
            Bound::Below(bound) => ratio < bound,
            Bound::AtLeast(bound) => ratio >= bound,
            Bound::Above(bound) => ratio > bound,
        }
    }

    fn text(self) -> String {
        match self {
            Bound::AtMost(bound) => format!("≤ {bound}"),
            Bound::Below(bound) => format!("< {bound}"),
            Bound::AtLeast(bound) => format!("≥ {bound}"),
            Bound::Above(bound) => format!("> {bound}"),
        }
    }
}

impl Peers {
    fn text(self) -> &'static str {
        match self {
            Peers::Vader => "vader",
            Peers::TwoCopies => "vader 2-copy",
            Peers::Cma => "vader CMA",
            Peers::Posix => "ucx posix",
            Peers::PosixCma => "ucx posix+cma",
            Peers::OscSm => "osc/sm",
        }
    }

    fn has(self, name: &str) -> bool {
        match self {
            Peers::Vader => name.starts_with("vader"),
            one => name == one.text(),
        }
    }
}

fn targets() -> Vec<Target> {
    let target = |what: &str, program, ours, sizes, peers, bound| Target {
        what: what.to_owned(),
        program,
        ours,
        sizes,
        peers,
        bound,
    };
    let (latency, bandwidth) = ("osu_latency", "osu_bw");
    let large = 64 * KIB..=4 * MIB;
    let allocated = 16 * KIB..=4 * MIB;
    let mut all = vec![
        target("latency, 0-64 B", latency, "", 0..=64, Peers::Vader, Bound::AtMost(0.75)),
        target("latency, 1-4 KiB", latency, "", KIB..=4 * KIB, Peers::Vader, Bound::AtMost(0.75)),
        target("latency, 64 KiB-4 MiB", latency, "", large.clone(), Peers::TwoCopies, Bound::AtMost(0.8)),
        target(
            "bandwidth, 64 KiB-4 MiB",
            bandwidth,
            "",
            large.clone(),
            Peers::TwoCopies,
            Bound::AtLeast(1.3),
        ),
        target("bandwidth, 64 KiB-4 MiB", bandwidth, "", large, Peers::Cma, Bound::AtLeast(0.9)),
        target(
            "latency, MPI_Alloc_mem",
            latency,
            "--alloc-mem",
            allocated.clone(),
            Peers::Cma,
            Bound::Below(1.0),
        ),
        target(
            "bandwidth, MPI_Alloc_mem",
            bandwidth,
            "--alloc-mem",
            allocated,
            Peers::Cma,
            Bound::Above(1.0),
        ),
        target("message rate, osu_mbw_mr 8 B", "osu_mbw_mr", "", 8..=8, Peers::Vader, Bound::AtLeast(1.5)),
        target("message rate, osu_bw 8 B", bandwidth, "", 8..=8, Peers::Vader, Bound::AtLeast(1.5)),
        target("barrier", "osu_barrier", "", 0..=0, Peers::Vader, Bound::AtMost(0.5)),
    ];
    let (perftest, posix) = ("ucx_perftest", Peers::Posix);
    let large = 64 * KIB..=MIB;
    for (program, ours) in
        [(perftest, "tag_lat"), (perftest, "ucp_am_lat"), (perftest, "am_lat short"), (latency, PML_UCX)]
    {
        all.push(target(
            &format!("{program} {ours}, 0-64 B"),
            program,
            ours,
            0..=64,
            posix,
            Bound::AtMost(0.85),
        ));
    }
    for (program, ours) in [(perftest, "tag_bw"), (perftest, "ucp_am_bw"), (bandwidth, PML_UCX)] {
        let what = format!("{program} {ours}, 64 KiB-1 MiB");
        all.push(target(&what, program, ours, large.clone(), posix, Bound::AtLeast(1.0)));
    }
    let what = "ucx_perftest tag_bw of a section, 64 KiB-1 MiB";
    let section = "tag_bw (section)";
    all.push(target(what, perftest, section, large, Peers::PosixCma, Bound::AtLeast(1.2)));
    for (program, ours) in
        [(perftest, "tag_bw"), (perftest, "ucp_am_bw"), (perftest, "am_bw short"), ("osu_mbw_mr", PML_UCX)]
    {
        let what = format!("message rate, {program} {ours}, 8 B");
        all.push(target(&what, program, ours, 8..=8, posix, Bound::AtLeast(1.2)));
    }
    for program in COLLECTIVES {
        let name = program.trim_start_matches("osu_");
        let (small, large) = (format!("{name}, to 4 KiB"), format!("{name}, 64 KiB-1 MiB"));
        let (sizes, bound) = (64 * KIB..=MIB, Bound::AtMost(0.7));
        all.push(target(&small, program, "", 0..=4 * KIB, Peers::Vader, Bound::AtMost(0.5)));
        all.push(target(&large, program, "", sizes.clone(), Peers::Vader, bound));
        let allocated = format!("{large}, MPI_Alloc_mem");
        all.push(target(&allocated, program, "--alloc-mem", sizes, Peers::Vader, bound));
    }
    for (what, program, ours) in [
        ("MPI_Put", "osu_put_latency", ["", OPEN]),
        ("MPI_Get", "osu_get_latency", ["", OPEN]),
        ("MPI_Accumulate of bytes", "osu_acc_latency", ["", OPEN]),
        ("MPI_Accumulate of a word", "osu_acc_latency", ["--words", "--words (open region)"]),
    ] {
        for ours in ours {
            for peers in [Peers::Vader, Peers::OscSm] {
                let place = ours.trim_start_matches("--words").trim_start();
                let what = format!("{what}, 8 B {place}");
                all.push(target(what.trim_end(), program, ours, 8..=8, peers, Bound::AtMost(1.0)));
            }
        }
    }
    all
}

fn cell(ratio: &Ratio, bound: Bound, ranged: bool) -> [String; 2] {
    let Ratio { spread, peer, size } = ratio;
    let place = if ranged { format!(", {}", table::size(*size)) } else { String::new() };
    let text = format!("{} {peer}{place}", spread_text(spread));
    [text, if bound.is_met(spread.median) { "met".into() } else { "MISSED".into() }]
}

fn spread_text(spread: &Spread) -> String {
    let Spread { min, median, max } = spread;
    format!("{median:.2} ({min:.2}..{max:.2})")
}

/// The table of all targets that were measured, if any were.
pub fn summary(all: &[Measured], raw: Option<&Raw>) -> Option<Table> {
    let mut table = Table::default();
    table.row(["what", "target", "of", "unchanged buffers", "", "varied data", ""]);
    let mut is_empty = true;
    for target in targets() {
        let found = |vary: bool| {
            let words = [target.program, target.ours, if vary { "--vary" } else { "" }];
            let name = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
            let measured = all.iter().find(|measured| measured.case == name)?;
            let ratio = measured.worst(target.sizes.clone(), |peer| target.peers.has(peer))?;
            Some(cell(&ratio, target.bound, target.sizes.start() != target.sizes.end()))
        };
        let (unchanged, varied) = (found(false), found(true));
        if unchanged.is_none() && varied.is_none() {
            continue;
        }
        let none = || ["-".to_owned(), String::new()];
        let mut cells = vec![target.what, target.bound.text(), target.peers.text().to_owned()];
        cells.extend(unchanged.unwrap_or_else(none));
        cells.extend(varied.unwrap_or_else(none));
        table.row(cells);
        is_empty = false;
    }
    for (what, text, of, figure, met) in raw.map(raw_rows).unwrap_or_default() {
        let verdict = if met { "met" } else { "MISSED" };
        table.row([what, text, of, figure, verdict.into(), "-".into(), String::new()]);
        is_empty = false;
    }
    (!is_empty).then_some(table)
}

/// Explanation of the figures of [`summary`].
pub const HEADING: &str = "Targets: vmshm divided by the best of the peers named; the median of the rounds' ratios \
     (smallest..largest), which peer, and the size at which vmshm stands worst";

/// Peers of the one-sided operations, if these are measured.
pub fn one_sided(all: &[Measured]) -> Option<String> {
    let osc = all.iter().find(|measured| measured.case == "osu_put_latency")?;
    let ours = &osc.ways[0].0;
    Some(format!(
        "One-sided operations: {ours}; vader is osc/rdma or osc/pt2pt, whichever is faster; osc/sm is what Open MPI takes \
         within one host."
    ))
}

type Row = (String, String, String, String, bool);

fn raw_rows(raw: &Raw) -> Vec<Row> {
    let ratio = |what: &str, of: &str, ours, theirs, bound: f64| {
        let spread = raw.ratio(ours, theirs)?;
        let text = format!("≤ {bound}");
        Some((what.to_owned(), text, of.to_owned(), spread_text(&spread), spread.median <= bound))
    };
    let once = |what: &str, prefix: &str, unit: &str, bound: f64| {
        let (name, value) = raw.once.iter().find(|(name, _)| name.starts_with(prefix))?;
        let text = if unit == "B" { format!("≤ {bound} {unit}") } else { format!("< {bound} {unit}") };
        Some((what.to_owned(), text, name.clone(), format!("{value} {unit}"), *value <= bound))
    };
    [
        ratio("raw transport, 8 B one way", "bare cache line", "transport", "line", 1.25),
        ratio("63 silent peers of one VM, 8 B", "none silent", "silent-one-vm", "transport", 1.05),
        ratio("63 silent peers, a VM each, 8 B", "none silent", "silent-vm-each", "transport", 1.05),
        once("attach of 256 endpoints", "attach-", "s", 1.0),
        once("memory of a pair, both ways", "pair-bytes", "B", 8192.0),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missed_target_says_so_and_names_the_size() {
        let way = |name: &str, figure: f64| (name.to_owned(), vec![vec![(8, 1.0), (16, figure)]]);
        let ways = vec![way("vmshm", 0.9), way("vader 2-copy", 1.0), way("vader CMA", 3.0), way("tcp", 0.1)];
        let (case, unit) = ("osu_latency".into(), "µs".into());
        let one = Measured { case, unit, less_is_better: true, ways, lines: Vec::new(), is_repeated: false };
        let text = summary(&[one], None).unwrap().render_left();
        assert!(text.contains(" 1.00 (1.00..1.00) vader 2-copy, 8 B  "), "{text}");
        assert!(text.contains("MISSED") && !text.contains("met"), "{text}");
        assert!(summary(&[], None).is_none());
    }
}
