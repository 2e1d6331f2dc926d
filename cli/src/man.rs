//! `vmshm man`: the man pages, made from the very definitions that `--help` prints.

use std::path::PathBuf;

use anyhow::Context;
use clap::CommandFactory;

/// Options of `vmshm man`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  vmshm man /usr/local/share/man/man1 && man vmshm-region-create")]
pub struct Args {
    /// The directory; it is made if it is missing
    dir: PathBuf,
}

impl Args {
    /// Writes one page for each command.
    pub fn run<C: CommandFactory>(&self) -> anyhow::Result<()> {
        std::fs::create_dir_all(&self.dir)
            .with_context(|| format!("cannot create the directory {}", self.dir.display()))?;
        clap_mangen::generate_to(C::command(), &self.dir)
            .with_context(|| format!("cannot write man pages to {}", self.dir.display()))?;
        Ok(())
    }
}
