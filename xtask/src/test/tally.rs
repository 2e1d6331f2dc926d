//! Test steps in order: one line for each, and one closing line for all.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;

use crate::base::cleanup;
use crate::base::process::last_lines;

/// How many tests of a step did what.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Count {
    /// Tests that passed.
    pub passed: usize,
    /// Tests that failed.
    pub failed: usize,
    /// Tests that were not run.
    pub skipped: usize,
    /// Remark for the step's line.
    pub note: String,
}

impl Count {
    /// One test that passed.
    pub fn one() -> Self {
        Self { passed: 1, ..Self::default() }
    }

    /// A step that cannot run here, and why.
    pub fn skip(why: impl Into<String>) -> Self {
        Self { skipped: 1, note: why.into(), ..Self::default() }
    }

    /// Adds what another part of the same step counted.
    pub fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
    }

    /// Sums the `test result:` lines of `cargo test`.
    pub fn of_cargo_test(text: &str) -> Self {
        let mut count = Self::default();
        for line in text.lines().filter_map(|line| line.trim().strip_prefix("test result: ")) {
            for part in line.split([';', '.']) {
                let mut words = part.split_whitespace();
                let (Some(number), Some(word)) = (words.next(), words.next()) else { continue };
                let Ok(number) = number.parse::<usize>() else { continue };
                match word {
                    "passed" => count.passed += number,
                    "failed" => count.failed += number,
                    "ignored" => count.skipped += number,
                    _ => {}
                }
            }
        }
        count
    }

    /// Reads the closing line of `vmshm-mpi-check`: `checks: 40 passed, 0 failed, 1 skipped`.
    pub fn of_checker(text: &str) -> Option<Self> {
        let line = text.lines().rev().find_map(|line| line.trim().strip_prefix("checks: "))?;
        let mut count = Self::default();
        for part in line.split(", ") {
            let (number, word) = part.split_once(' ')?;
            let number = number.parse().ok()?;
            match word {
                "passed" => count.passed = number,
                "failed" => count.failed = number,
                "skipped" => count.skipped = number,
                _ => return None,
            }
        }
        Some(count)
    }
}

/// Which steps run.
#[derive(Debug, Clone, Default)]
pub struct Choice {
    /// These alone, unless it is empty.
    pub only: Vec<String>,
    /// With what only a release needs, too.
    pub all: bool,
}

impl Choice {
    /// Whether a step whose name begins so may run.
    pub fn has(&self, prefix: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| name.starts_with(prefix))
    }
}

/// The running sum of all steps.
#[derive(Debug)]
pub struct Tally {
    sum: Count,
    log_dir: PathBuf,
    choice: Choice,
}

impl Tally {
    /// Writes the steps' logs below `log_dir`.
    pub fn new(log_dir: &Path, choice: &Choice) -> Self {
        Self { sum: Count::default(), log_dir: log_dir.to_owned(), choice: choice.clone() }
    }

    /// Whether what only a release needs is run, too.
    pub fn all(&self) -> bool {
        self.choice.all
    }

    /// Whether a step runs that only a release needs: with the others, or because it is named.
    pub fn for_release(&self, name: &str) -> bool {
        self.choice.all || self.choice.only.iter().any(|only| only == name)
    }

    /// Runs one step, if chosen, and prints its line. The step writes its logs below the directory that it is given.
    ///
    /// Fails only when the whole run is to end.
    pub fn step(&mut self, name: &str, work: impl FnOnce(&Path) -> Result<Count>) -> Result<()> {
        cleanup::check()?;
        let only = &self.choice.only;
        if !only.is_empty() && !only.iter().any(|only| only == name) {
            return Ok(());
        }
        let terminal = std::io::stdout().is_terminal();
        if terminal {
            print!("running  {name} ...");
            let _ = std::io::stdout().flush();
        }
        let begin = Instant::now();
        let dir = self.log_dir.join(name);
        let result = work(&dir);
        cleanup::check()?;
        let seconds = begin.elapsed().as_secs();
        if terminal {
            print!("\r\x1b[K");
        }
        let note = |text: &str| if text.is_empty() { String::new() } else { format!("; {text}") };
        match result {
            Ok(count) if count.failed > 0 => {
                println!(
                    "FAILED   {name}: {} of {}, {seconds} s{}; logs: {}",
                    count.failed,
                    count.failed + count.passed,
                    note(&count.note),
                    dir.display()
                );
                self.sum.add(&count);
            }
            Ok(count) if count.passed == 0 && count.skipped > 0 => {
                println!("skipped  {name}: {}", count.note);
                self.sum.add(&count);
            }
            Ok(count) if count.passed == 0 => {
                println!("FAILED   {name}: no test ran, {seconds} s; logs: {}", dir.display());
                self.sum.failed += 1;
            }
            Ok(count) => {
                let skipped =
                    if count.skipped > 0 { format!(", {} skipped", count.skipped) } else { String::new() };
                println!("ok       {name}: {}{skipped}, {seconds} s{}", count.passed, note(&count.note));
                self.sum.add(&count);
            }
            Err(error) => {
                println!("FAILED   {name}: {seconds} s; logs: {}", dir.display());
                println!("{}", last_lines(&format!("{error:#}"), 25));
                self.sum.failed += 1;
            }
        }
        Ok(())
    }

    /// Prints the closing line; true if nothing failed and something ran.
    pub fn close(&self) -> bool {
        let Count { passed, failed, skipped, .. } = &self.sum;
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        *failed == 0 && passed + skipped > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_of_cargo_test_are_summed() {
        let text = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
                    noise\n\
                    test result: FAILED. 2 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        let count = Count::of_cargo_test(text);
        assert_eq!((count.passed, count.failed, count.skipped), (14, 3, 1));
    }

    #[test]
    fn the_checkers_closing_line_is_read() {
        let count = Count::of_checker("x\nchecks: 40 passed, 1 failed, 2 skipped\n");
        assert_eq!(count.map(|c| (c.passed, c.failed, c.skipped)), Some((40, 1, 2)));
        let count = Count::of_checker("checks: 40 passed, 0 failed");
        assert_eq!(count.map(|c| (c.passed, c.failed, c.skipped)), Some((40, 0, 0)));
        assert_eq!(Count::of_checker("no closing line"), None);
    }

    #[test]
    fn a_step_without_tests_fails() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut tally = Tally::new(dir.path(), &Choice::default());
        tally.step("nothing", |_| Ok(Count::default()))?;
        assert!(!tally.close());
        Ok(())
    }

    #[test]
    fn only_the_chosen_steps_run() -> Result<()> {
        let dir = tempfile::tempdir()?;
        let mut tally = Tally::new(dir.path(), &Choice { only: vec!["b".into()], all: false });
        tally.step("a", |_| anyhow::bail!("must not run"))?;
        tally.step("b", |_| Ok(Count::one()))?;
        assert!(tally.close());
        Ok(())
    }

    #[test]
    fn what_only_a_release_needs_runs_where_it_is_named() {
        let runs = |only: &[&str], all| {
            let only = only.iter().map(|&name| name.to_owned()).collect();
            Tally::new(Path::new("logs"), &Choice { only, all }).for_release("long")
        };
        assert!(runs(&[], true) && runs(&["short", "long"], false));
        assert!(!runs(&[], false) && !runs(&["short"], false));
    }
}
