//! Creates vmshm regions on chosen NUMA nodes, keeps their section tables, and serves them to virtual machines.
//!
//! A region is a file: on tmpfs, on hugetlbfs, or a memfd. Its layout is [`vmshm_abi`]'s. This crate is the only
//! writer of a region's header and section table, but every VM that maps the region can write there too. So what the host has
//! decided stands in a file of its own, for the region's owner alone, and what is read from the region is treated as a
//! stranger's.

#![cfg(target_os = "linux")]

mod bells;
mod clear;
mod create;
mod destroy;
mod dir;
mod error;
mod hugetlb;
mod inspect;
mod ledger;
mod lock;
mod mapping;
mod memory;
mod name;
mod numa;
mod plan;
mod process;
mod region;
mod registry;
mod server;
mod state;
mod table;
mod traffic;
mod users;

pub use bells::Bells;
pub use create::{CreateOptions, create_memfd};
pub use dir::prepare_dir;
pub use error::Error;
pub use hugetlb::{HugePool, PageSize, mount_point, pools};
pub use inspect::{Endpoint, Inspection, Section, inspect};
pub use ledger::Ledger;
pub use lock::Lock;
pub use memory::{available as available_memory, format_bytes};
pub use name::RegionName;
pub use numa::{Node, nodes, parse_list};
pub use plan::Plan;
pub use process::Process;
pub use region::Region;
pub use registry::{DEFAULT_DIR, Listed, Registry};
pub use server::{
    CALL_TAKEN, DEFAULT_RUN_DIR, DEFAULT_VECTORS, Server, ServerOptions, call_address, run_dir,
    section_socket, socket,
};
pub use state::State;
pub use traffic::Traffic;
pub use users::{Users, users};
