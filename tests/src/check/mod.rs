//! The named cases of `vmshm-mpi-check`, one file a group.

mod any_change;
mod any_collective;
mod collectives;
mod communicators;
mod context;
mod datatypes;
mod dynamic;
mod far;
mod huge;
mod modes;
mod movement;
mod one_sided;
mod order;
mod patterns;
mod pressure;
mod probing;
mod run;
mod sizes;
mod threads;
mod truncation;
mod wildcards;

pub use context::Context;
pub use run::{Options, Summary, run};

/// How a case ended, if nothing was wrong.
#[derive(Debug)]
pub enum Outcome {
    /// Everything was checked.
    Done,
    /// The case can't run here, and why. All ranks come to the same conclusion.
    Skipped(String),
}

/// What a case wants before it runs.
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
    /// What it shows, in one line.
    pub about: &'static str,
    needs: Needs,
    run: fn(&Context) -> Outcome,
}

impl Case {
    const fn new(name: &'static str, about: &'static str, run: fn(&Context) -> Outcome) -> Case {
        Case { name, about, needs: Needs::Nothing, run }
    }

    const fn needing(
        needs: Needs,
        name: &'static str,
        about: &'static str,
        run: fn(&Context) -> Outcome,
    ) -> Case {
        Case { name, about, needs, run }
    }
}

/// All cases, in the order in which they run.
pub fn cases() -> Vec<Case> {
    [
        sizes::CASES,
        modes::CASES,
        wildcards::CASES,
        order::CASES,
        datatypes::CASES,
        communicators::CASES,
        patterns::CASES,
        probing::CASES,
        truncation::CASES,
        collectives::CASES,
        any_collective::CASES,
        far::CASES,
        one_sided::CASES,
        any_change::CASES,
        dynamic::CASES,
        pressure::CASES,
        threads::CASES,
        huge::CASES,
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_have_a_group() {
        let mut names: Vec<_> = cases().iter().map(|case| case.name).collect();
        assert!(names.iter().all(|name| name.split('/').count() == 2));
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
