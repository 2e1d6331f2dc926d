//! Owners of sections, as rows of the section table tell.

use vmshm_abi::region::{SECTION_ASSIGNED, SECTION_FREE, SECTION_JOINED, SectionEntry};

use crate::process::Process;

/// Owner of a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Processes on the host may take it.
    Free,
    /// Kept for the VM with the row's UUID.
    Assigned,
    /// Its VM is connected to the ivshmem server.
    Joined,
}

impl State {
    /// The state in a (checked) row.
    pub fn of(entry: &SectionEntry) -> Self {
        match entry.state {
            SECTION_ASSIGNED => Self::Assigned,
            SECTION_JOINED => Self::Joined,
            _ => Self::Free,
        }
    }

    pub(crate) const fn word(self) -> u32 {
        match self {
            Self::Free => SECTION_FREE,
            Self::Assigned => SECTION_ASSIGNED,
            Self::Joined => SECTION_JOINED,
        }
    }
}

impl std::fmt::Display for State {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Free => "free",
            Self::Assigned => "assigned",
            Self::Joined => "joined",
        })
    }
}

/// The host process in a row.
pub(crate) fn owner(entry: &SectionEntry) -> Process {
    Process { pid: entry.owner_pid, start: entry.owner_start }
}
