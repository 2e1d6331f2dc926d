//! Creates vmshm regions on chosen NUMA nodes, keeps their section tables, and serves them to virtual machines.
//!
//! A region is a file: on tmpfs, on hugetlbfs, or a memfd. Its layout is [`vmshm_abi`]'s. This crate is the only
//! writer of a region's header and section table; what it reads back, from there and from the sections, it
//! treats as written by a stranger, because every VM that maps the region can write to it.

#![cfg(target_os = "linux")]

mod create;
mod destroy;
mod error;
mod hugetlb;
mod inspect;
mod lock;
mod mapping;
mod memory;
mod name;
mod numa;
mod plan;
mod process;
mod protocol;
mod region;
mod registry;
mod server;
mod socket;
mod table;
mod users;

pub use create::{CreateOptions, create_memfd};
pub use error::Error;
pub use hugetlb::{HugePool, PageSize, mount_point, pools};
pub use inspect::{Endpoint, Inspection, Section, inspect};
pub use lock::{Lock, SERVER_BYTE, TABLE_BYTE};
pub use memory::{available as available_memory, format_bytes};
pub use name::RegionName;
pub use numa::{Node, nodes};
pub use plan::Plan;
pub use process::Process;
pub use region::Region;
pub use registry::{DEFAULT_DIR, Listed, Registry};
pub use server::{DEFAULT_VECTORS, Server, ServerOptions};
pub use socket::{DEFAULT_RUN_DIR, run_dir, section_socket, socket};
pub use table::State;
pub use users::{Users, users};
