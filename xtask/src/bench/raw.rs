//! The transport without MPI: what `vmshm_raw` prints.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::process::{self, mortal};
use crate::progress;
use crate::statistics::{Spread, spread};
use crate::table::Table;

const LIMIT: Duration = Duration::from_secs(120);
/// One-way times, in this order in the table.
const NAMES: [&str; 4] = ["line", "transport", "silent-one-vm", "silent-vm-each"];

/// All rounds.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Raw {
    /// For each round, name and nanoseconds one way.
    pub rounds: Vec<Vec<(String, f64)>>,
    /// What is measured once.
    pub once: Vec<(String, f64)>,
}

impl Raw {
    /// Runs the program once for each round.
    pub fn measure(program: &Path, rounds: u16, out: &Path) -> Result<Raw> {
        let mut raw = Raw::default();
        progress::during(&format!("vmshm_raw, {rounds} rounds"), |_| {
            for round in 0..rounds {
                let mut command = mortal(program);
                // A process for each: how its memory happens to lie is a part of the spread.
                command.args(["--rounds", "1"]);
                if round > 0 {
                    command.args(["--endpoints", "2"]);
                }
                let log = out.join(format!("vmshm_raw-{}.log", round + 1));
                let done = process::run(command, "vmshm_raw", &log, LIMIT)?;
                raw.add(&done.text)?;
            }
            Ok(())
        })?;
        Ok(raw)
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

    /// What the figures are, the table of those of the rounds, and those that were measured once.
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
