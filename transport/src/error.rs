//! Errors of an endpoint and of its peers.

use vmshm_abi::region::{HeaderError, VERSION};
use vmshm_abi::ring::MAX_INLINE;

/// Reason why an endpoint could not attach to a section.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum AttachError {
    /// The region's header is damaged, foreign or of another version.
    #[error("{0}")]
    Header(HeaderError),
    /// The region has no such section.
    #[error("section {section} does not exist: the region has sections 0 to {last}")]
    Section {
        /// The section asked for.
        section: u32,
        /// The last one there is.
        last: u32,
    },
    /// All endpoint slots of the section are taken.
    #[error(
        "all {slots} endpoint slots of section {section} are taken: run fewer processes in this machine, or create \
         the region with more `--endpoints`"
    )]
    NoSlot {
        /// The section.
        section: u32,
        /// Its slots.
        slots: u32,
    },
    /// The section's heap is full.
    #[error(
        "section {section} has no memory left for another endpoint ({bytes} bytes wanted): run fewer processes in \
         this machine, or create the region with more `--size` or fewer `--sections`"
    )]
    NoMemory {
        /// The section.
        section: u32,
        /// Bytes that were wanted.
        bytes: u64,
    },
}

/// Reason why a peer could not be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// The name belongs to another region.
    #[error("the peer lives in another region")]
    OtherRegion,
    /// The peer speaks another version of the layout.
    #[error("the peer speaks layout version {0}, we speak {VERSION}")]
    Version(u32),
    /// The name is our own.
    #[error("the peer is this endpoint itself")]
    Ourselves,
    /// The peer's life has ended.
    #[error("the peer is gone")]
    Gone,
    /// Our section has no memory for the connection.
    #[error("our section has no memory left for a connection")]
    Full,
}

/// Reason why a message was not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SendError {
    /// The ring is full: poll, then try again.
    #[error("the peer's ring is full")]
    Full,
    /// The peer is gone; [`Event::Gone`](crate::Event::Gone) has told the reason, or will.
    #[error("the peer is gone")]
    Gone,
    /// The message has more than [`MAX_INLINE`] bytes.
    #[error("{0} bytes are more than an inline message can have ({MAX_INLINE})")]
    TooLong(usize),
}

/// Reason why a peer is not listened to any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PeerError {
    /// Its process has detached.
    #[error("it has left the region")]
    Left,
    /// Its process has ended without detaching.
    #[error("its process has died")]
    Died,
    /// Its VM shows no sign of life.
    #[error("its virtual machine shows no sign of life (stopped, paused or crashed)")]
    Silent,
    /// The peer has closed the connection, as it does when it sees no sign of life from us for long.
    #[error("it has given this process up (it saw no sign of life for too long)")]
    Closed,
    /// The device that held the region is gone, or its file was made shorter.
    #[error("the shared memory is gone")]
    DeviceLost,
    /// The peer broke the protocol.
    #[error("it broke the protocol: {} {:#x}", .0.what, .0.value)]
    Protocol(Fault),
}

impl From<Fault> for PeerError {
    fn from(fault: Fault) -> Self {
        Self::Protocol(fault)
    }
}

/// Breach of the protocol: a word that no honest peer writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    /// The word that is wrong.
    pub what: &'static str,
    /// Its value.
    pub value: u64,
}
