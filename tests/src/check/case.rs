//! A named case, and how it ends.

use super::context::Context;

/// How a case ended, if nothing was wrong.
#[derive(Debug)]
pub enum Outcome {
    /// Everything was checked.
    Done,
    /// The case can't run here, and why. All ranks come to the same conclusion.
    Skipped(String),
}

/// Conditions under which a case runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Any number of ranks.
    Nothing,
    /// At least two ranks.
    TwoRanks,
    /// The option `--threads` with more than one thread.
    Threads,
    /// The option `--huge`, and two ranks.
    Huge,
}

/// A named check.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// `group/name`.
    pub name: &'static str,
    /// Its subject, in one line.
    pub about: &'static str,
    pub(super) needs: Needs,
    pub(super) run: fn(&Context) -> Outcome,
}

impl Case {
    pub(super) const fn new(name: &'static str, about: &'static str, run: fn(&Context) -> Outcome) -> Case {
        Case { name, about, needs: Needs::Nothing, run }
    }

    pub(super) const fn needing(
        needs: Needs,
        name: &'static str,
        about: &'static str,
        run: fn(&Context) -> Outcome,
    ) -> Case {
        Case { name, about, needs, run }
    }
}
