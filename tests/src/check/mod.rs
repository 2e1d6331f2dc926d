//! The named cases of `vmshm-mpi-check`, one file a group.

mod any_change;
mod any_collective;
mod case;
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

pub use case::{Case, Needs, Outcome};
pub use context::Context;
pub use run::{Options, Summary, run};

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
