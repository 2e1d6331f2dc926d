//! Where things lie in the region behind a device, read from its header through the device.

use std::io;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vmshm_transport::abi::driver::{DeviceInfo, NO_SECTION};
use vmshm_transport::abi::region::{ENTRY_LEN, RegionHeader, SectionEntry};
use vmshm_transport::abi::section::SectionLayout;
use zerocopy::FromBytes;

use crate::device::Device;
use crate::mapping::{Map, PAGE};

/// The region behind a device.
#[derive(Debug)]
pub struct Layout {
    /// The device as the driver describes it.
    pub info: DeviceInfo,
    /// The region's header.
    pub header: RegionHeader,
    /// Its table.
    pub sections: Vec<SectionEntry>,
}

impl Layout {
    /// Reads it, and checks what driver and region say against each other.
    pub fn read(device: &Device) -> Result<Self> {
        let info = device.info().context("INFO")?;
        ensure!(info.version == vmshm_transport::abi::driver::VERSION, "interface version {}", info.version);
        let page = Map::shared(device, 0, PAGE, libc::PROT_READ).context("map the header")?;
        let header = RegionHeader::read_from_bytes(&page.bytes(0, size_of::<RegionHeader>()))
            .map_err(|_| io::Error::other("the header has another size"))?;
        header.check(info.region_len)?;
        ensure!(
            header.region_len == info.region_len,
            "the driver says {} bytes, the header {}",
            info.region_len,
            header.region_len
        );
        ensure!(info.section == NO_SECTION || info.section < header.sections, "own section {}", info.section);
        let table =
            Map::shared(device, 0, header.table_end as usize, libc::PROT_READ).context("map the table")?;
        let mut sections = Vec::new();
        for number in 0..header.sections {
            let at = RegionHeader::entry_offset(number) as usize;
            let entry = SectionEntry::read_from_bytes(&table.bytes(at, ENTRY_LEN as usize))
                .map_err(|_| io::Error::other("a row has another size"))?;
            entry.check(number, &header)?;
            sections.push(entry);
        }
        Ok(Self { info, header, sections })
    }

    /// Opens a device and reads the layout of its region.
    pub fn open(path: &Path) -> Result<(Device, Self)> {
        let device = Device::open(path).with_context(|| format!("open {}", path.display()))?;
        let layout = Self::read(&device)?;
        Ok((device, layout))
    }

    /// This VM's own section.
    pub fn own(&self) -> Result<SectionEntry> {
        self.sections.get(self.info.section as usize).copied().context("this VM has no section")
    }

    /// Offset in the region of an endpoint slot of this VM.
    pub fn slot(&self, slot: u32) -> Result<u64> {
        let own = self.own()?;
        let parts = SectionLayout::new(own.len, self.header.sections, self.header.endpoints)
            .context("the section is too small")?;
        Ok(own.offset + parts.slot(slot))
    }
}
