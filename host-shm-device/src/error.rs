//! Errors, in words that tell the reader what to do.

use std::io;
use std::path::PathBuf;

use vmshm_abi::region::HeaderError;

/// Why something about a region could not be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An argument makes no sense.
    #[error("{what} {value:?} {why}")]
    Invalid {
        /// Which argument.
        what: &'static str,
        /// Its value.
        value: String,
        /// Reason, and a value that would do.
        why: String,
    },
    /// There is no region of that name.
    #[error(
        "there is no region {name:?} in {}: `vmshm region list` shows those there are, `vmshm region create` makes one",
        dir.display()
    )]
    NotFound {
        /// The name asked for.
        name: String,
        /// Where it was looked for.
        dir: PathBuf,
    },
    /// The name is taken.
    #[error(
        "{} exists already: take another name, or remove it with `vmshm region destroy {name}`",
        path.display()
    )]
    Exists {
        /// The name asked for.
        name: String,
        /// The file that has the name.
        path: PathBuf,
    },
    /// The file's header or table is not that of a usable region.
    #[error("{} cannot be used: {why}", path.display())]
    Header {
        /// The file.
        path: PathBuf,
        /// The fault.
        why: HeaderError,
    },
    /// The path leads to something that is no region.
    #[error("{} is no region: {why}", path.display())]
    NotRegion {
        /// The path.
        path: PathBuf,
        /// Its kind.
        why: &'static str,
    },
    /// Somebody uses the region.
    #[error("region {name:?} is in use by {users}: end that first, or repeat with --force")]
    InUse {
        /// The region.
        name: String,
        /// Its users.
        users: String,
    },
    /// The memory does not suffice.
    #[error("{needed} are needed, but {place} has only {free}: {cure}")]
    NoRoom {
        /// Bytes needed, formatted.
        needed: String,
        /// Bytes there are, formatted.
        free: String,
        /// Where.
        place: String,
        /// How to mend it.
        cure: String,
    },
    /// The NUMA node does not exist or has no memory.
    #[error("NUMA node {node} {why}; nodes with memory on this host: {nodes}")]
    Node {
        /// The node asked for.
        node: u32,
        /// The fault.
        why: &'static str,
        /// The nodes there are.
        nodes: String,
    },
    /// No hugetlbfs with such pages is mounted.
    #[error("no hugetlbfs with pages of {pages} is mounted: {cure}")]
    NoHugetlbfs {
        /// Page size, formatted.
        pages: String,
        /// The commands that mount one.
        cure: String,
    },
    /// The region has no such section.
    #[error("section {section} does not exist: region {name:?} has sections 0 to {last}")]
    Section {
        /// The region.
        name: String,
        /// The section asked for.
        section: u32,
        /// The last one there is.
        last: u32,
    },
    /// The section can't be given away or taken back now.
    #[error("section {section} of region {name:?} {why}")]
    SectionBusy {
        /// The region.
        name: String,
        /// The section.
        section: u32,
        /// Its owner, and how to get it.
        why: String,
    },
    /// Another server serves the region.
    #[error("region {name:?} is served already by {by}: one server serves all VMs of a region")]
    Served {
        /// The region.
        name: String,
        /// The process that serves it.
        by: String,
    },
    /// The operating system refused.
    #[error("cannot {doing}: {cause}")]
    Io {
        /// The attempt.
        doing: String,
        /// The answer.
        cause: io::Error,
    },
}

impl Error {
    /// Says what was tried when the operating system refused.
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |cause| Self::Io { doing, cause }
    }

    /// The same for errors of the crate `nix`.
    pub(crate) fn sys(doing: impl Into<String>) -> impl FnOnce(nix::Error) -> Self {
        let doing = doing.into();
        move |errno| Self::Io { doing, cause: errno.into() }
    }
}
