//! `vmshm region`: regions and their sections.

mod create;
mod destroy;
mod inspect;
mod list;
mod release;

use clap::Subcommand;

/// Commands of `vmshm region`.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Create a region
    Create(create::Args),
    /// List the regions of this host
    List(list::Args),
    /// Show a region: header, sections, NUMA placement, members
    Inspect(inspect::Args),
    /// Give a section that was kept for a VM back to the host's processes
    Release(release::Args),
    /// Destroy a region
    Destroy(destroy::Args),
}

impl Command {
    /// Runs the command.
    pub fn run(&self) -> anyhow::Result<()> {
        match self {
            Self::Create(args) => args.run(),
            Self::List(args) => args.run(),
            Self::Inspect(args) => args.run(),
            Self::Release(args) => args.run(),
            Self::Destroy(args) => args.run(),
        }
    }
}
