//! `vmshm qemu-args`.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;
use uuid::Uuid;
use vmshm_abi::region::ANY_NODE;
use vmshm_host::{DEFAULT_VECTORS, Registry, State, section_socket, socket};

use crate::shell::quote;

/// Options of `vmshm qemu-args`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  qemu-system-x86_64 -m 4G disk.img $(vmshm qemu-args job --section 0)

The section is kept for the VM until `vmshm region release`. The VM finds it by its SMBIOS UUID, which is why
`-uuid` is among the arguments.")]
pub struct Args {
    /// Name of the region, or the path of its file
    name: String,
    /// Which section the VM gets
    #[arg(long, value_name = "K")]
    section: u32,
    /// For a VM that has a UUID already: the UUID
    #[arg(long)]
    uuid: Option<Uuid>,
    /// A device with doorbells, by way of `vmshm serve`, which must run when the VM starts
    #[arg(long)]
    doorbell: bool,
    /// With --doorbell: interrupt vectors, as many as the server has
    #[arg(long, default_value_t = DEFAULT_VECTORS, value_name = "N", requires = "doorbell")]
    vectors: u32,
}

impl Args {
    /// Assigns the section and prints one line of arguments.
    pub fn run(&self) -> anyhow::Result<()> {
        let region = Registry::from_env().open(&self.name)?;
        let uuid = region.assign(self.section, self.uuid)?;
        let path: PathBuf = std::fs::canonicalize(region.path())
            .with_context(|| format!("cannot find {}", region.path().display()))?;
        let path = path.to_str().context("the path of the region is not UTF-8, which QEMU needs")?;
        let (backend, device) = if self.doorbell {
            let socket = section_socket(&socket(&region), self.section);
            let socket = socket.to_str().context("the path of the socket is not UTF-8, which QEMU needs")?;
            (
                ["-chardev".to_owned(), format!("socket,id=vmshm,path={}", escape(socket))],
                format!("ivshmem-doorbell,chardev=vmshm,vectors={}", self.vectors),
            )
        } else {
            let size = region.header().region_len;
            let path = escape(path);
            (
                [
                    "-object".to_owned(),
                    format!("memory-backend-file,id=vmshm,mem-path={path},size={size},share=on"),
                ],
                "ivshmem-plain,memdev=vmshm".to_owned(),
            )
        };
        let arguments =
            backend.into_iter().chain(["-device".to_owned(), device, "-uuid".to_owned(), uuid.to_string()]);
        let line: Vec<_> = arguments.map(|word| quote(&word)).collect();
        writeln!(std::io::stdout(), "{}", line.join(" "))?;

        let entry = region.entry(self.section)?;
        debug_assert_eq!(State::of(&entry), State::Assigned);
        if entry.node != ANY_NODE {
            let node = entry.node;
            writeln!(
                std::io::stderr(),
                "vmshm: section {} lies on NUMA node {node}: start QEMU with `numactl --cpunodebind={node} --membind={node}`",
                self.section
            )?;
        }
        Ok(())
    }
}

/// A value as QEMU's option parser reads it back.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
