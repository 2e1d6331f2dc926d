//! `vmshm region destroy`.

use vmshm_host::Registry;

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
        Registry::from_env().destroy(&self.name, self.force)?;
        Ok(())
    }
}
