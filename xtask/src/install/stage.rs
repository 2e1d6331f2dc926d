//! One directory with everything of a run: what users install, and the MPI programs beside it.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow};

use super::build_tree;
use super::ucx::Ucx;
use crate::base::workspace::Workspace;
use crate::install;

/// Builds everything and lays it out as below a prefix. The guests see the same tree.
pub fn prepare(workspace: &Workspace, log_dir: &Path) -> Result<PathBuf> {
    let stage = workspace.target.join("vmshm-stage");
    if stage.exists() {
        fs::remove_dir_all(&stage)?;
    }
    let built = build_tree::everything(workspace, log_dir)?;
    install::product(workspace, &built, &stage, install::PLUGINS, Some(&Ucx::found()?))?;
    install::programs(&built, &stage)?;
    Ok(stage)
}

/// The stage, for steps that are counted as failed one by one where there is none.
///
/// # Errors
/// Why there is none.
pub fn built(stage: &Result<PathBuf, String>) -> Result<&Path> {
    stage.as_deref().map_err(|why| anyhow!("nothing to test was built: {why}"))
}
