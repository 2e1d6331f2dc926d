//! `vmshm region destroy`.

use vmshm_host::{Error, Registry};

/// Options of `vmshm region destroy`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the region, or the path of its file
    name: String,
    /// Even if it is in use, or damaged, or no region at all
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Destroys the region.
    pub fn run(&self) -> anyhow::Result<()> {
        match Registry::from_env().destroy(&self.name, self.force) {
            Ok(()) => Ok(()),
            Err(error @ (Error::Header { .. } | Error::NotRegion { .. })) if !self.force => {
                Err(anyhow::anyhow!(
                    "{error}\nvmshm: to remove it from the list of regions nevertheless, repeat with --force"
                ))
            }
            Err(error) => Err(error.into()),
        }
    }
}
