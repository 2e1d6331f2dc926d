//! The Open MPI of another Debian release than this machine's, in a root directory of that: programs are built for it on this
//! machine, and run there.

use std::env::consts::ARCH;
use std::path::{Path, PathBuf};

use anyhow::Result;

use super::host_mpi::Inside;
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::debian::chroot::{Chroot, OPEN_MPI};
use crate::install::build_tree::Programs;
use crate::install::other_mpi::OtherMpi;
use crate::install::{self, build_tree};

/// Such an Open MPI, with the plugin and some programs for it.
#[derive(Debug)]
pub struct OtherDebian {
    /// The root directory.
    pub inside: Inside,
    /// As `5.0.7`.
    pub release: String,
    /// Where the programs are.
    pub programs: PathBuf,
}

impl OtherDebian {
    /// Builds plugin and programs for the Open MPI of `suite`, and puts the plugin to its folder below `stage`. Its jobs see both,
    /// and what is in `seen`.
    pub fn prepare(
        workspace: &Workspace,
        suite: &'static str,
        stage: &Path,
        programs: Programs,
        seen: &[&Path],
        logs: &Path,
    ) -> Result<Self> {
        let chroot = Chroot::ensure(workspace, Index::shared(workspace, suite, logs)?, &OPEN_MPI, logs)?;
        let mpi = OtherMpi::at(&chroot.root().join(format!("usr/lib/{ARCH}-linux-gnu/openmpi")))?;
        let programs = build_tree::for_other(workspace, &mpi, chroot.root(), programs, logs)?;
        install::plugin(&programs, stage, &mpi.plugin_folder())?;
        let inside = Inside::new(chroot, &[&[stage, &programs], seen].concat())?;
        Ok(Self { inside, release: mpi.release, programs })
    }
}
