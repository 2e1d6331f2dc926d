//! `cargo xtask bench --mpi 5.0`: the series of Open MPI that another Debian release has.

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::case::{self, Case};
use super::measured::Measured;
use super::way::{BETWEEN_HOSTS, COLL_5, COLL_6};
use crate::base::workspace::Workspace;
use crate::debian::apt;
use crate::figures::table::{self, Table};
use crate::install::build_tree;
use crate::mpi::other_debian::OtherDebian;

/// A series of Open MPI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Series {
    /// Of Debian 13.
    #[value(name = "5.0")]
    V5,
    /// Of Debian's unstable release.
    #[value(name = "6.0")]
    V6,
}

impl Series {
    /// As the option has it.
    pub fn name(self) -> &'static str {
        match self {
            Series::V5 => "5.0",
            Series::V6 => "6.0",
        }
    }

    /// All cases.
    pub fn cases(self) -> Vec<Case> {
        match self {
            Series::V5 => case::of_other_mpi(COLL_5, BETWEEN_HOSTS),
            Series::V6 => case::of_other_mpi(COLL_6, &BETWEEN_HOSTS[..2]),
        }
    }

    /// Its release in Debian, with plugin and programs for it; jobs see `out`.
    pub fn prepare(self, workspace: &Workspace, stage: &Path, out: &Path) -> Result<OtherDebian> {
        if std::env::var_os("OSU_DIR").is_some() {
            bail!("OSU_DIR names programs for this machine's Open MPI: --mpi measures with vmshm's own");
        }
        let suite = match self {
            Series::V5 => "trixie",
            Series::V6 => apt::UNSTABLE,
        };
        OtherDebian::prepare(workspace, suite, stage, build_tree::BENCHES, &[out], out)
    }
}

/// The sizes of [`summary`]; a barrier has 0.
const SIZES: [u64; 5] = [0, 8, 1 << 10, 64 << 10, 1 << 20];

/// Explanation of [`summary`].
pub const HEADING: &str = "All in one table: vmshm's figure divided by each peer's, the median of the rounds' ratios (smallest..largest); less \
     than 1 is better but for bandwidth";

/// One line for each case and some of its sizes, one column for each peer of any case.
pub fn summary(cases: &[Measured]) -> Table {
    let mut peers: Vec<&str> = Vec::new();
    for (name, _) in cases.iter().flat_map(|case| &case.ways[1..]) {
        if !peers.contains(&name.as_str()) {
            peers.push(name);
        }
    }
    let mut table = Table::default();
    table.row(["", "size"].into_iter().chain(peers.iter().copied()));
    for case in cases {
        for size in SIZES.into_iter().filter(|size| case.sizes().contains(size)) {
            let ratio = |peer: &&str| {
                let way = case.ways.iter().position(|(name, _)| name == peer)?;
                let spread = case.ratio(way, size)?.spread;
                Some(format!("{:.2} ({:.2}..{:.2})", spread.median, spread.min, spread.max))
            };
            let size = if case.sizes().len() == 1 { "-".into() } else { table::size(size) };
            let cells = peers.iter().map(|peer| ratio(peer).unwrap_or_else(|| "-".into()));
            table.row([case.case.clone(), size].into_iter().chain(cells));
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_peer_has_a_column_and_each_case_the_sizes_that_it_was_measured_with() {
        let measured = |case: &str, peer: &str, sizes: &[u64]| {
            let way = |name: &str, figure| {
                (name.to_owned(), vec![sizes.iter().map(|size| (*size, figure)).collect()])
            };
            let ways = vec![way("vmshm", 1.0), way(peer, 2.0)];
            let (case, unit) = (case.to_owned(), "µs".to_owned());
            Measured { case, unit, less_is_better: true, ways, lines: Vec::new(), is_repeated: false }
        };
        let text = summary(&[measured("a", "x", &[0]), measured("b", "y", &[4, 8, 1024])]).render_markdown();
        let lines: Vec<Vec<&str>> =
            text.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
        assert_eq!(lines[0], ["", "size", "x", "y"]);
        assert_eq!(lines[2], ["a", "-", "0.50 (0.50..0.50)", "-"]);
        assert_eq!(lines[3], ["b", "8 B", "-", "0.50 (0.50..0.50)"]);
        assert_eq!(lines[4][..2], ["b", "1 KiB"]);
        assert_eq!(lines.len(), 5);
    }
}
