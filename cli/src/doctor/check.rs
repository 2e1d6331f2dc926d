//! The result of a check, and how to mend what it found.

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Ok,
    Warning,
    Missing,
}

/// The result of one check.
#[derive(Debug)]
pub struct Check {
    pub verdict: Verdict,
    /// The finding.
    pub what: String,
    /// How to mend it.
    pub cure: Option<String>,
}

impl Check {
    pub fn ok(what: impl Into<String>) -> Self {
        Self { verdict: Verdict::Ok, what: what.into(), cure: None }
    }

    pub fn warning(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { verdict: Verdict::Warning, what: what.into(), cure: Some(cure.into()) }
    }

    pub fn missing(what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { verdict: Verdict::Missing, what: what.into(), cure: Some(cure.into()) }
    }
}
