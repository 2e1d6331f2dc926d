//! `vmshm region create`.

use std::io::Write;

use clap::ValueEnum;
use vmshm_host::{CreateOptions, PageSize, RegionName, Registry, format_bytes};

use crate::size;

/// Options of `vmshm region create`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vmshm region create job --size 8G                            two VMs
  vmshm region create job --size 16G --sections 4 --nodes 0,0,1,1 --pages 1G")]
pub struct Args {
    /// Name of the region: 1 to 63 bytes, no '/', no '.' at its start
    name: String,
    /// Size of the whole region, a power of two: 512M, 8G, 1T. Guests map it fastest from 4G up
    #[arg(long, value_parser = size::parse)]
    size: u64,
    /// Number of sections: one for each VM, and one for each group of processes on the host
    #[arg(long, default_value_t = 2, value_name = "N")]
    sections: u32,
    /// NUMA nodes of the sections: one for all, or one for each, as 0,1
    #[arg(long, value_delimiter = ',', value_name = "LIST")]
    nodes: Vec<u32>,
    /// Size of the pages; 2M and 1G come from hugetlbfs
    #[arg(long, value_enum, default_value_t = Pages::Base)]
    pages: Pages,
    /// Endpoint slots of each section: MPI processes that a VM can run at a time. Default: 256, fewer if small
    #[arg(long, value_name = "N")]
    endpoints: Option<u32>,
    /// Let every member write every section: faster one-sided operations, no isolation between members
    #[arg(long)]
    open: bool,
    /// Allocate memory only when it is touched. Programs are killed by SIGBUS if none is left then
    #[arg(long)]
    sparse: bool,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Pages {
    #[value(name = "4K")]
    Base,
    #[value(name = "2M")]
    Huge2M,
    #[value(name = "1G")]
    Huge1G,
}

impl Args {
    /// Creates the region and says what it got.
    pub fn run(&self) -> anyhow::Result<()> {
        let name = RegionName::new(&self.name)?;
        let options = CreateOptions {
            size: self.size,
            sections: self.sections,
            endpoints: self.endpoints,
            nodes: self.nodes.clone(),
            pages: match self.pages {
                Pages::Base => PageSize::Base,
                Pages::Huge2M => PageSize::Huge2M,
                Pages::Huge1G => PageSize::Huge1G,
            },
            open: self.open,
            sparse: self.sparse,
        };
        let region = Registry::from_env().create(&name, &options)?;
        let header = region.header();
        writeln!(
            std::io::stdout(),
            "{}: {} in {}, {} sections of {} with {} endpoints each",
            name,
            format_bytes(header.region_len),
            region.path().display(),
            header.sections,
            format_bytes(region.entry(0)?.len),
            header.endpoints,
        )?;
        Ok(())
    }
}
