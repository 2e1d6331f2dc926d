//! `vmshm qemu-args`.

use std::io::Write;

use crate::device::{DeviceArgs, escape};
use crate::shell::quote;

/// Options of `vmshm qemu-args`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  qemu-system-x86_64 -m 4G disk.img $(vmshm qemu-args job --section 0)

The section is kept for the VM until `vmshm region release`. The VM finds it by its SMBIOS UUID, which is why \
`-uuid` is among the arguments.")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
}

impl Args {
    /// Assigns the section and prints one line of arguments.
    pub fn run(&self) -> anyhow::Result<()> {
        let device = self.device.assign()?;
        let (backend, model) = match &device.doorbell {
            Some((socket, vectors)) => (
                ["-chardev".to_owned(), format!("socket,id=vmshm,path={}", escape(socket))],
                format!("ivshmem-doorbell,chardev=vmshm,vectors={vectors}"),
            ),
            None => (["-object".to_owned(), device.memory()], "ivshmem-plain,memdev=vmshm".to_owned()),
        };
        let uuid = device.uuid.to_string();
        let arguments = backend.into_iter().chain(["-device".to_owned(), model, "-uuid".to_owned(), uuid]);
        let line: Vec<_> = arguments.map(|word| quote(&word)).collect();
        writeln!(std::io::stdout(), "{}", line.join(" "))?;

        if let Some(node) = device.node {
            writeln!(
                std::io::stderr(),
                "vmshm: section {} lies on NUMA node {node}: start QEMU with `numactl --cpunodebind={node} --membind={node}`",
                device.section
            )?;
        }
        Ok(())
    }
}
