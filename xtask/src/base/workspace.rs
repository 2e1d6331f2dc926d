//! Where things lie: the checkout, cargo's target directory and the user's cache.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::process;

/// The places that xtask reads from and writes to.
#[derive(Debug, Clone)]
pub struct Workspace {
    /// The root of the checkout.
    pub root: PathBuf,
    /// Cargo's target directory for this checkout.
    pub target: PathBuf,
    /// Cache that is kept between runs and checkouts: `$XDG_CACHE_HOME/vmshm` or `~/.cache/vmshm`.
    pub cache: PathBuf,
}

/// The cargo that runs us, else the one from `PATH`.
pub fn cargo() -> Command {
    Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

impl Workspace {
    /// Finds the places; fails where cargo cannot read the workspace.
    pub fn find() -> Result<Self> {
        let crate_dir =
            std::env::var("CARGO_MANIFEST_DIR").unwrap_or_else(|_| env!("CARGO_MANIFEST_DIR").to_owned());
        let root = Path::new(&crate_dir)
            .parent()
            .context("the crate xtask must lie one level below the workspace")?
            .to_owned();
        let text = process::capture(
            cargo().args(["metadata", "--no-deps", "--format-version=1", "--offline"]).current_dir(&root),
        )
        .context("cargo cannot read the workspace")?;
        let metadata: serde_json::Value = serde_json::from_str(&text)?;
        let target =
            metadata["target_directory"].as_str().context("cargo metadata names no target_directory")?.into();
        let cache = std::env::var_os("XDG_CACHE_HOME")
            .map(PathBuf::from)
            .filter(|dir| dir.is_absolute())
            .or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")))
            .context("neither XDG_CACHE_HOME nor HOME is set: cannot tell where to keep the guest image")?
            .join("vmshm");
        Ok(Self { root, target, cache })
    }
}
