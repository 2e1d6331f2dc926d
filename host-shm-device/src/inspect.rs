//! Everything that can be said of a region, for people and for programs.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use uuid::Uuid;
use vmshm_abi::region::{ANY_NODE, SectionEntry};
use vmshm_abi::section::{EndpointSlot, MAY_SLEEP, SLOTS_OFFSET, STATE_FREE, SlotState};
use zerocopy::FromBytes;

use crate::error::Error;
use crate::ledger::{SERVER_BYTE, occupied_byte};
use crate::lock::held;
use crate::mapping::Mapping;
use crate::numa;
use crate::region::Region;
use crate::state::{State, owner};
use crate::traffic::{self, Traffic};
use crate::users::{FileId, users};

/// Pages of a section that are asked for their node.
const SAMPLES: u64 = 16;

/// A region as it is now.
#[derive(Debug, serde::Serialize)]
pub struct Inspection {
    /// Name in the header.
    pub name: String,
    /// Where it was found.
    pub path: PathBuf,
    /// The region's id.
    pub id: Uuid,
    /// Version of the layout.
    pub version: u32,
    /// Bytes of the region.
    pub size: u64,
    /// Bytes of a page.
    pub page_len: u64,
    /// Bytes of memory that it has now.
    pub allocated: u64,
    /// Whether every member may write every section.
    pub open: bool,
    /// Endpoint slots of a section.
    pub endpoints_per_section: u32,
    /// Whether an ivshmem server serves it; only the region's owner, and root, are told.
    pub served: Option<bool>,
    /// Pids of the host processes that have it open or mapped, QEMUs among them.
    pub users: Vec<u32>,
    /// How many processes could not be looked into, for want of permission.
    pub hidden_processes: usize,
    /// The sections.
    pub sections: Vec<Section>,
}

/// A section as it is now.
#[derive(Debug, serde::Serialize)]
pub struct Section {
    /// Its number.
    pub section: u32,
    /// First byte, from the start of the region.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
    /// Its owner.
    pub state: State,
    /// Counts the members that had it.
    pub generation: u64,
    /// By which its VM finds it.
    pub vm_uuid: Uuid,
    /// NUMA node that was asked for.
    pub node: Option<i32>,
    /// NUMA nodes on which sampled pages really lie, ascending; none where nothing is allocated.
    pub nodes_found: Vec<i32>,
    /// Process that joined over the ivshmem server, or that runs a VM there without one (which the owner sees, and root).
    pub owner_pid: Option<u32>,
    /// Whether that process still runs.
    pub owner_alive: Option<bool>,
    /// The id that the ivshmem server gave the VM.
    pub vm_id: Option<u32>,
    /// Host processes that use the section.
    pub host_users: Vec<u32>,
    /// Endpoint slots that are not free.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint as it describes itself. A member can write anything there.
#[derive(Debug, serde::Serialize)]
pub struct Endpoint {
    /// Its slot.
    pub slot: u32,
    /// `attaching`, `live`, `gone`, or a number that means nothing.
    pub state: String,
    /// Which life of the slot.
    pub incarnation: u64,
    /// Pid in its own kernel.
    pub pid: u64,
    /// Whether that kernel is this host's.
    pub on_host: bool,
    /// For endpoints on this host: whether the process still holds its lock.
    pub alive: Option<bool>,
    /// Counts up while it lives.
    pub heartbeat: u64,
    /// Whether it sleeps when it has nothing to do, until its doorbell is rung.
    pub may_sleep: bool,
    /// Whether it sleeps now.
    pub sleeping: bool,
    /// Peers that it has heard of, and traffic from these.
    pub traffic: Vec<Traffic>,
}

/// Looks at a region and at who uses it.
pub fn inspect(region: &Region) -> Result<Inspection, Error> {
    let header = region.header();
    let ledger = region.existing_ledger();
    let vms = ledger.as_ref().map(|ledger| Ok::<_, Error>(users(&FileId::of(ledger.file())?))).transpose()?;
    let users = users(&region.file_id()?);
    let mapping = Mapping::new(region.file(), header.region_len, false)?;
    let boot_id = boot_id();
    let mut sections = Vec::new();
    for (entry, section) in region.entries()?.iter().zip(0..) {
        let state = State::of(entry);
        let owner = owner(entry);
        let joined = state == State::Joined;
        let alone = vms.as_ref().and_then(|vms| vms.holding(occupied_byte(section)).first().copied());
        sections.push(Section {
            section,
            offset: entry.offset,
            len: entry.len,
            state,
            generation: entry.generation,
            vm_uuid: Uuid::from_bytes(entry.vm_uuid),
            node: (entry.node != ANY_NODE).then_some(entry.node),
            nodes_found: sample_nodes(region, &mapping, entry),
            owner_pid: joined.then_some(owner.pid).or(alone),
            owner_alive: joined.then(|| owner.is_alive()).or(alone.map(|_| true)),
            vm_id: if joined { entry.vm_id.checked_sub(1) } else { None },
            host_users: users.holding(vmshm_abi::RegionHeader::entry_offset(section)),
            endpoints: endpoints(region, entry, boot_id)?,
        });
    }
    Ok(Inspection {
        name: region.name(),
        path: region.path().to_owned(),
        id: region.id(),
        version: header.version,
        size: header.region_len,
        page_len: header.page_len,
        allocated: region.allocated(),
        open: header.is_open(),
        endpoints_per_section: header.endpoints,
        served: ledger.map(|ledger| held(ledger.file(), SERVER_BYTE)),
        users: users.pids.iter().copied().collect(),
        hidden_processes: users.hidden,
        sections,
    })
}

/// This kernel's boot id as the words that endpoints write: the high half first.
fn boot_id() -> Option<[u64; 2]> {
    let text = fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    let (high, low) = Uuid::parse_str(text.trim()).ok()?.as_u64_pair();
    Some([high, low])
}

fn endpoints(
    region: &Region,
    entry: &SectionEntry,
    boot_id: Option<[u64; 2]>,
) -> Result<Vec<Endpoint>, Error> {
    let Some(layout) = region.layout(entry) else { return Ok(Vec::new()) };
    let mut bytes = vec![0; layout.endpoints as usize * size_of::<EndpointSlot>()];
    region.read(&mut bytes, entry.offset + SLOTS_OFFSET)?;
    let mut endpoints = Vec::new();
    for (slot, row) in (0..).zip(bytes.chunks_exact(size_of::<EndpointSlot>())) {
        let told = EndpointSlot::read_from_bytes(row).expect("a chunk has the size of a slot");
        let state = SlotState::unpack(told.state);
        if state.state == STATE_FREE {
            continue;
        }
        let on_host = boot_id == Some(told.boot_id);
        endpoints.push(Endpoint {
            slot,
            state: match state.state {
                vmshm_abi::section::STATE_ATTACHING => "attaching".to_owned(),
                vmshm_abi::section::STATE_LIVE => "live".to_owned(),
                vmshm_abi::section::STATE_GONE => "gone".to_owned(),
                other => other.to_string(),
            },
            incarnation: state.incarnation,
            pid: told.pid,
            on_host,
            alive: on_host.then(|| held(region.file(), entry.offset + layout.slot(slot))),
            heartbeat: told.heartbeat,
            may_sleep: told.doorbell & MAY_SLEEP != 0,
            sleeping: told.doorbell & MAY_SLEEP != 0 && told.sleeping != 0,
            traffic: traffic::of(region, entry, &layout, &told, state.incarnation)?,
        });
    }
    Ok(endpoints)
}

/// The nodes of some pages of a section. Looks only at pages that are allocated: a look would allocate others.
fn sample_nodes(region: &Region, mapping: &Mapping, entry: &SectionEntry) -> Vec<i32> {
    let page = region.header().page_len;
    let pages = entry.len / page;
    let full = region.allocated() >= region.header().region_len;
    let mut found = Vec::new();
    for i in 0..SAMPLES.min(pages) {
        let offset = entry.offset + pages * i / SAMPLES.min(pages) * page;
        if !full && !has_data(region, offset, page) {
            continue;
        }
        if mapping.populate(offset, page.min(4096), false).is_ok() {
            found.extend(numa::node_of(mapping, offset));
        }
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn has_data(region: &Region, offset: u64, page: u64) -> bool {
    // hugetlbfs calls holes data.
    if page != 4096 {
        return false;
    }
    // SAFETY: plain integers; the descriptor is open, and its position is used by nobody.
    let data = unsafe { libc::lseek(region.file().as_raw_fd(), offset as libc::off_t, libc::SEEK_DATA) };
    data == offset as libc::off_t
}
