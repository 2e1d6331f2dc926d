//! `vmshm down`.

use std::time::Duration;

use super::state::Set;

/// Options of `vmshm down`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Name of the set
    name: String,
    /// Seconds that the VMs may take to shut down; what runs then is stopped
    #[arg(long, default_value_t = 60, value_name = "SECONDS")]
    timeout: u64,
}

impl Args {
    /// Ends the set.
    pub fn run(&self) -> anyhow::Result<()> {
        Set::open(&self.name)?.end(Duration::from_secs(self.timeout))
    }
}
