//! `vmshm region release`.

use vmshm_host::Registry;

/// Options of `vmshm region release`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the region, or the path of its file
    name: String,
    /// The section
    #[arg(long, value_name = "K")]
    section: u32,
    /// Even if its VM seems to run
    #[arg(long)]
    force: bool,
}

impl Args {
    /// Marks the section free.
    pub fn run(&self) -> anyhow::Result<()> {
        Registry::from_env().open(&self.name)?.release(self.section, self.force)?;
        Ok(())
    }
}
