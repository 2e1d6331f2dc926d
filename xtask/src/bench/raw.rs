//! The transport without MPI: what `vmshm_raw` prints.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::base::process::{self, mortal};
use crate::base::progress;
use crate::figures::statistics::{Spread, spread};
use crate::figures::table::{self, Table};

use super::measured::Measured;
use super::way::TWO_COPIES;

const LIMIT: Duration = Duration::from_secs(120);
/// One-way times, in this order in the table.
const NAMES: [&str; 4] = ["line", "transport", "silent-one-vm", "silent-vm-each"];

/// All rounds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Raw {
    /// For each round, name and nanoseconds one way.
    pub rounds: Vec<Vec<(String, f64)>>,
    /// Figures that are measured once.
    pub once: Vec<(String, f64)>,
}

impl Raw {
    /// Runs the program once for each round.
    pub fn measure(program: &Path, rounds: u16, out: &Path) -> Result<Raw> {
        let mut raw = Raw::default();
        progress::during(&format!("vmshm_raw, {rounds} rounds"), |_| {
            for round in 0..rounds {
                // A process for each: how its memory happens to lie is a part of the spread.
                let run = |what: &str, arguments: &[&str]| {
                    let mut command = mortal(program);
                    command.args(["--rounds", "1"]).args(arguments);
                    let log = out.join(format!("vmshm_raw-{what}{}.log", round + 1));
                    process::run(command, "vmshm_raw", &log, LIMIT)
                };
                let short = run("", if round > 0 { &["--endpoints", "2"] } else { &[] })?;
                let long = run("copies-", &["--copies"])?;
                raw.add(&[short.text, long.text].concat())?;
            }
            Ok(())
        })?;
        Ok(raw)
    }

    /// Nanoseconds that a bare cache line takes one way, now.
    pub fn line(program: &Path, out: &Path) -> Result<f64> {
        let mut command = mortal(program);
        command.args(["--line", "--rounds", "1"]);
        let done = process::run(command, "vmshm_raw", &out.join("vmshm_raw-line.log"), LIMIT)?;
        let mut raw = Raw::default();
        raw.add(&done.text)?;
        Self::at(&raw.rounds[0], NAMES[0]).context("vmshm_raw printed no line")
    }

    fn add(&mut self, text: &str) -> Result<()> {
        let mut round = Vec::new();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[..] {
                ["round", _, name, figure] => {
                    round.push((name.to_owned(), figure.parse().context("a figure")?))
                }
                ["once", name, figure] if self.rounds.is_empty() => {
                    self.once.push((name.to_owned(), figure.parse().context("a figure")?));
                }
                _ => {}
            }
        }
        if round.is_empty() {
            bail!("vmshm_raw printed no round:\n{}", process::last_lines(text, 10));
        }
        self.rounds.push(round);
        Ok(())
    }

    fn at(round: &[(String, f64)], name: &str) -> Option<f64> {
        round.iter().find(|(found, _)| found == name).map(|(_, figure)| *figure)
    }

    /// One time divided by another, round by round.
    pub fn ratio(&self, ours: &str, theirs: &str) -> Option<Spread> {
        let ratio = |round: &Vec<_>| Some(Self::at(round, ours)? / Self::at(round, theirs)?);
        spread(&self.rounds.iter().filter_map(ratio).collect::<Vec<_>>())
    }

    /// The median of a time, nanoseconds.
    fn median(&self, name: &str) -> Option<f64> {
        let figures: Vec<f64> = self.rounds.iter().filter_map(|round| Self::at(round, name)).collect();
        Some(spread(&figures)?.median)
    }

    /// Explanation of the figures, and the table of what two copies alone take beside the cases that move as much.
    pub fn copies(&self, cases: &[Measured]) -> Option<(String, Table)> {
        let mut table = Table::default();
        table.row(["", "copies alone", "vmshm", TWO_COPIES.name, "copies / 2-copy", "vmshm / copies"]);
        let mut is_empty = true;
        for (case, prefix) in [("osu_latency", "copies-"), ("osu_bw", "copies-stream-")] {
            let Some(measured) = cases.iter().find(|measured| measured.case == case) else { continue };
            let peer = measured.ways.iter().position(|(name, _)| name == TWO_COPIES.name);
            for size in measured.sizes() {
                let Some(nanoseconds) = self.median(&format!("{prefix}{size}")) else { continue };
                let alone = match measured.less_is_better {
                    true => nanoseconds / 1e3,
                    false => size as f64 / nanoseconds * 1e3,
                };
                let ours = measured.median(0, size);
                let theirs = peer.and_then(|way| measured.median(way, size));
                let mut cells = vec![format!("{case}, {}, {}", table::size(size), measured.unit)];
                let ratios = [theirs.map(|theirs| alone / theirs), ours.map(|ours| ours / alone)];
                cells.extend([Some(alone), ours, theirs].into_iter().chain(ratios).map(table::figure));
                table.row(cells);
                is_empty = false;
            }
        }
        let heading = "Long messages from ordinary memory: two copies that overlap, alone, without MPI; medians, not of the same \
             rounds"
            .to_owned();
        (!is_empty).then_some((heading, table))
    }

    /// Explanation of the figures, the table of those of the rounds, and those that were measured once.
    pub fn report(&self) -> (String, Table, String) {
        let mut table = Table::default();
        table.row(["8 B one way", "ns, median", "smallest..largest"]);
        for name in NAMES {
            let figures: Vec<f64> = self.rounds.iter().filter_map(|round| Self::at(round, name)).collect();
            let Some(Spread { min, median, max }) = spread(&figures) else { continue };
            table.row([name.to_owned(), format!("{median:.0}"), format!("{min:.0}..{max:.0}")]);
        }
        let rounds = self.rounds.len();
        let heading =
            format!("Raw transport, {rounds} rounds: two pinned processes; a bare cache line beside it");
        let once = self.once.iter().map(|(name, figure)| format!("{name}: {figure}\n")).collect();
        (heading, table, once)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_and_ratios_are_read() -> Result<()> {
        let mut raw = Raw::default();
        raw.add("round 1 line 100.0\nround 1 transport 120.0\nonce pair-bytes 8192\n")?;
        raw.add("round 1 line 100.0\nround 1 transport 110.0\nonce pair-bytes 1\n")?;
        let ratio = raw.ratio("transport", "line").context("a ratio")?;
        assert!((ratio.median - 1.15).abs() < 1e-9);
        assert_eq!(raw.once, [("pair-bytes".to_owned(), 8192.0)]);
        assert!(raw.add("nothing").is_err());
        Ok(())
    }
}
