//! The region header and its section table. Only the host writes them.

use core::mem::{offset_of, size_of};

#[cfg(feature = "zerocopy")]
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// First eight bytes of every region.
pub const MAGIC: u64 = u64::from_le_bytes(*b"VMSHMREG");

/// Version of the layout in this crate, and of what the processes of a job say to each other in it. Another version is
/// refused, never guessed at.
pub const VERSION: u32 = 7;

/// Region flag: every section may be written by every member, so that `put` and atomics work between VMs.
pub const FLAG_OPEN: u64 = 1;

/// Offset of the section table, in bytes from the start of the region.
pub const TABLE_OFFSET: u64 = 256;

/// Most sections that a region can have.
pub const MAX_SECTIONS: u32 = 1024;

/// Most endpoint slots that a section can have.
pub const MAX_ENDPOINTS: u32 = 1024;

/// Longest name of a region, in bytes.
pub const NAME_LEN: usize = 64;

/// The first 256 bytes of a region.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct RegionHeader {
    /// [`MAGIC`].
    pub magic: u64,
    /// [`VERSION`].
    pub version: u32,
    /// Bytes of this struct in the version that wrote it: 256.
    pub header_len: u32,
    /// Random 128-bit number. Two processes can talk over vmshm exactly if they see the same one.
    pub region_id: [u8; 16],
    /// Bytes of the whole region, a power of two (a PCI BAR can have no other size).
    pub region_len: u64,
    /// Bytes of a page of the backing memory: 4096, 2 MiB or 1 GiB. Sections start and end on such pages.
    pub page_len: u64,
    /// Number of sections.
    pub sections: u32,
    /// Endpoint slots in each section.
    pub endpoints: u32,
    /// [`FLAG_OPEN`] or 0.
    pub flags: u64,
    /// Bytes that header and table take, a multiple of `page_len`; section 0 starts here.
    pub table_end: u64,
    /// The region's name on its host, UTF-8, padded with zeros.
    pub name: [u8; NAME_LEN],
    /// Zero; room for later versions.
    pub reserved: [u64; 15],
}

const _: () = {
    assert!(size_of::<RegionHeader>() == TABLE_OFFSET as usize);
    assert!(offset_of!(RegionHeader, version) == 8);
    assert!(offset_of!(RegionHeader, header_len) == 12);
    assert!(offset_of!(RegionHeader, region_id) == 16);
    assert!(offset_of!(RegionHeader, region_len) == 32);
    assert!(offset_of!(RegionHeader, page_len) == 40);
    assert!(offset_of!(RegionHeader, sections) == 48);
    assert!(offset_of!(RegionHeader, endpoints) == 52);
    assert!(offset_of!(RegionHeader, flags) == 56);
    assert!(offset_of!(RegionHeader, table_end) == 64);
    assert!(offset_of!(RegionHeader, name) == 72);
    assert!(offset_of!(RegionHeader, reserved) == 136);
};

/// No NUMA node was asked for.
pub const ANY_NODE: i32 = -1;

/// A section that processes on the host may take.
pub const SECTION_FREE: u32 = 0;
/// A section that the host keeps for the VM with the entry's UUID.
pub const SECTION_ASSIGNED: u32 = 1;
/// A section whose VM is connected to the host's ivshmem server.
pub const SECTION_JOINED: u32 = 2;

/// One row of the section table, 128 bytes.
#[derive(Debug, Clone, Copy)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct SectionEntry {
    /// First byte of the section, from the start of the region.
    pub offset: u64,
    /// Bytes of the section.
    pub len: u64,
    /// Counts the members that the host has given this section to, one after the other.
    pub generation: u64,
    /// SMBIOS UUID of the VM that owns the section, as RFC 4122 bytes.
    pub vm_uuid: [u8; 16],
    /// NUMA node that the section's memory was bound to, or [`ANY_NODE`].
    pub node: i32,
    /// [`SECTION_FREE`], [`SECTION_ASSIGNED`] or [`SECTION_JOINED`].
    pub state: u32,
    /// Host process that holds the section over the ivshmem server, or 0.
    pub owner_pid: u32,
    /// The id that the ivshmem server gave the VM that has joined, plus one; 0 where no VM has joined.
    pub vm_id: u32,
    /// Start time of `owner_pid` in clock ticks since boot (`/proc/PID/stat`, field 22), against reuse of pids.
    pub owner_start: u64,
    /// Zero; room for later versions.
    pub reserved: [u64; 8],
}

/// Bytes of a row of the section table.
pub const ENTRY_LEN: u64 = 128;

const _: () = {
    assert!(size_of::<SectionEntry>() as u64 == ENTRY_LEN);
    assert!(offset_of!(SectionEntry, len) == 8);
    assert!(offset_of!(SectionEntry, generation) == 16);
    assert!(offset_of!(SectionEntry, vm_uuid) == 24);
    assert!(offset_of!(SectionEntry, node) == 40);
    assert!(offset_of!(SectionEntry, state) == 44);
    assert!(offset_of!(SectionEntry, owner_pid) == 48);
    assert!(offset_of!(SectionEntry, vm_id) == 52);
    assert!(offset_of!(SectionEntry, owner_start) == 56);
    assert!(offset_of!(SectionEntry, reserved) == 64);
};

/// Fault of a region header, with the value found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeaderError {
    /// The first eight bytes are not [`MAGIC`].
    Magic(u64),
    /// The layout is of another version.
    Version(u32),
    /// The mapping has fewer bytes than the header says.
    Truncated {
        /// Bytes that the header promises.
        promised: u64,
        /// Bytes that are there.
        found: u64,
    },
    /// A number in the header makes no sense.
    Field {
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// A row of the section table makes no sense.
    Section {
        /// Which section.
        section: u32,
        /// Which field.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl core::fmt::Display for HeaderError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match *self {
            Self::Magic(found) => write!(
                f,
                "it does not begin with a vmshm header (first bytes {found:#018x}): it is no vmshm region; \
                 create one with `vmshm region create`"
            ),
            Self::Version(found) => write!(
                f,
                "its layout has version {found}, this vmshm speaks version {VERSION}: use the same vmshm \
                 release on the host and in all guests"
            ),
            Self::Truncated { promised, found } => write!(
                f,
                "its header promises {promised} bytes, but only {found} are there: it was truncated; \
                 destroy it and create it anew"
            ),
            Self::Field { field, value } => {
                write!(f, "its header is damaged ({field} = {value}): destroy it and create it anew")
            }
            Self::Section { section, field, value } => write!(
                f,
                "its table is damaged (section {section}: {field} = {value}): destroy it and create it anew"
            ),
        }
    }
}

impl core::error::Error for HeaderError {}

impl RegionHeader {
    /// The header of a new region of `region_len` bytes on pages of `page_len`, with room for its table.
    ///
    /// Nothing is checked: [`RegionHeader::check`] does.
    pub fn new(region_id: [u8; 16], region_len: u64, page_len: u64, sections: u32, endpoints: u32) -> Self {
        let table = TABLE_OFFSET + u64::from(sections) * ENTRY_LEN;
        Self {
            magic: MAGIC,
            version: VERSION,
            header_len: size_of::<Self>() as u32,
            region_id,
            region_len,
            page_len,
            sections,
            endpoints,
            flags: 0,
            table_end: table.next_multiple_of(page_len),
            name: [0; NAME_LEN],
            reserved: [0; 15],
        }
    }

    /// The row of section `number` in a new region: all sections are equal, free, and on any node.
    pub fn new_entry(&self, number: u32) -> SectionEntry {
        let pages = (self.region_len - self.table_end) / self.page_len;
        let len = pages / u64::from(self.sections) * self.page_len;
        SectionEntry {
            offset: self.table_end + u64::from(number) * len,
            len,
            generation: 0,
            vm_uuid: [0; 16],
            node: ANY_NODE,
            state: SECTION_FREE,
            owner_pid: 0,
            vm_id: 0,
            owner_start: 0,
            reserved: [0; 8],
        }
    }

    /// Checks a copy of a header against the number of bytes that are really there.
    pub fn check(&self, found: u64) -> Result<(), HeaderError> {
        let field = |field, value| Err(HeaderError::Field { field, value });
        if self.magic != MAGIC {
            return Err(HeaderError::Magic(self.magic));
        }
        if self.version != VERSION {
            return Err(HeaderError::Version(self.version));
        }
        if self.header_len as usize != size_of::<Self>() {
            return field("header_len", u64::from(self.header_len));
        }
        if !self.region_len.is_power_of_two() {
            return field("region_len", self.region_len);
        }
        if self.region_len > found {
            return Err(HeaderError::Truncated { promised: self.region_len, found });
        }
        if !self.page_len.is_power_of_two() || self.page_len < 4096 || self.page_len > self.region_len {
            return field("page_len", self.page_len);
        }
        if self.sections == 0 || self.sections > MAX_SECTIONS {
            return field("sections", u64::from(self.sections));
        }
        if self.endpoints == 0 || self.endpoints > MAX_ENDPOINTS {
            return field("endpoints", u64::from(self.endpoints));
        }
        if self.flags & !FLAG_OPEN != 0 {
            return field("flags", self.flags);
        }
        if self.table_end % self.page_len != 0
            || self.table_end < TABLE_OFFSET + u64::from(self.sections) * ENTRY_LEN
            || self.table_end > self.region_len
        {
            return field("table_end", self.table_end);
        }
        Ok(())
    }

    /// Offset of a row of the section table, in bytes from the start of the region.
    pub const fn entry_offset(section: u32) -> u64 {
        TABLE_OFFSET + section as u64 * ENTRY_LEN
    }

    /// Whether every member may write every section.
    pub const fn is_open(&self) -> bool {
        self.flags & FLAG_OPEN != 0
    }
}

impl SectionEntry {
    /// Checks a copy of row `section` against its (already checked) header.
    pub fn check(&self, section: u32, header: &RegionHeader) -> Result<(), HeaderError> {
        let field = |field, value| Err(HeaderError::Section { section, field, value });
        if self.offset % header.page_len != 0 || self.offset < header.table_end {
            return field("offset", self.offset);
        }
        if self.len == 0 || self.len % header.page_len != 0 {
            return field("len", self.len);
        }
        if self.offset.checked_add(self.len).is_none_or(|end| end > header.region_len) {
            return field("offset + len", self.offset.wrapping_add(self.len));
        }
        if self.state > SECTION_JOINED {
            return field("state", u64::from(self.state));
        }
        Ok(())
    }
}

/// Number of an endpoint in its region: section times endpoints per section, plus slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

impl core::fmt::Display for EndpointId {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "endpoint {}", self.0)
    }
}

/// Address that an endpoint tells others (in Open MPI's modex, say), so that they can find it. 32 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "zerocopy", derive(FromBytes, IntoBytes, Immutable, KnownLayout))]
#[repr(C)]
pub struct EndpointName {
    /// Region that the endpoint lives in.
    pub region_id: [u8; 16],
    /// The endpoint's number, see [`EndpointId`].
    pub id: u32,
    /// [`VERSION`] of the layout that the endpoint speaks.
    pub version: u32,
    /// Which of the slot's lives is meant; see [`super::section::EndpointSlot`].
    pub incarnation: u64,
}

const _: () = {
    assert!(size_of::<EndpointName>() == 32);
    assert!(offset_of!(EndpointName, id) == 16);
    assert!(offset_of!(EndpointName, version) == 20);
    assert!(offset_of!(EndpointName, incarnation) == 24);
};
