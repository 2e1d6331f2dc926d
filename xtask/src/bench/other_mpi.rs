//! `cargo xtask bench --mpi 5.0`: the series of Open MPI that another Debian release has.

use std::path::Path;

use anyhow::{Result, bail};
use clap::ValueEnum;

use super::case::{self, Case};
use super::way::{BETWEEN_HOSTS, COLL_5, COLL_6};
use crate::base::workspace::Workspace;
use crate::debian::apt;
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
