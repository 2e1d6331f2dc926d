//! The device by which QEMU gives a section to a VM, for `vmshm qemu-args` and `vmshm libvirt-xml`.

use std::path::Path;

use anyhow::Context;
use uuid::Uuid;
use vmshm_host::{DEFAULT_VECTORS, Registry, section_socket, socket};

/// Which section a VM gets, and how.
#[derive(Debug, clap::Args)]
pub struct DeviceArgs {
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

/// A section that is kept for a VM.
pub struct Device {
    /// Its number.
    pub section: u32,
    /// The VM's.
    pub uuid: Uuid,
    /// The region's file.
    pub path: String,
    /// Bytes of it.
    pub size: u64,
    /// For a device with doorbells: the server's socket, and interrupt vectors.
    pub doorbell: Option<(String, u32)>,
    /// The NUMA node that the section lies on, if it was bound to one.
    pub node: Option<u32>,
}

impl DeviceArgs {
    /// Keeps the section for the VM.
    pub fn assign(&self) -> anyhow::Result<Device> {
        let region = Registry::from_env().open(&self.name)?;
        let uuid = region.assign(self.section, self.uuid)?;
        let path = std::fs::canonicalize(region.path())
            .with_context(|| format!("cannot find {}", region.path().display()))?;
        let socket = section_socket(&socket(&region), self.section);
        let doorbell = if self.doorbell { Some((text(&socket)?, self.vectors)) } else { None };
        let node = region.entry(self.section)?.node;
        Ok(Device {
            section: self.section,
            uuid,
            path: text(&path)?,
            size: region.header().region_len,
            doorbell,
            node: u32::try_from(node).ok(),
        })
    }
}

fn text(path: &Path) -> anyhow::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.with_context(|| format!("the path {} is not UTF-8, which QEMU needs", path.display()))
}

impl Device {
    /// QEMU's `-object` for the region's memory.
    pub fn memory(&self) -> String {
        let path = escape(&self.path);
        format!("memory-backend-file,id=vmshm,mem-path={path},size={},share=on", self.size)
    }
}

/// A value as QEMU's option parser reads it back.
pub fn escape(value: &str) -> String {
    value.replace(',', ",,")
}
