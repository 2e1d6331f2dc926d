//! The layout of a vmshm region: the words that the host, the guests, the transport and the drivers share.
//!
//! Everything here is little-endian, made of 64-bit words, and written down once. Nothing allocates,
//! nothing knows of Open MPI, UCX, QEMU or Linux.
//!
//! ```text
//! region   ┌────────────────────┬───────────┬───────────┬─────┬───────────┐
//!          │ header + table     │ section 0 │ section 1 │  …  │ section n │
//!          └────────────────────┴───────────┴───────────┴─────┴───────────┘
//! writer     the host            member 0     member 1          member n
//!
//! section  ┌────────┬────────────────┬────────────────┬────────┬─────────────────────────┐
//!          │ unused │ endpoint slots │ activity lines │ owners │ heap, in chunks         │
//!          └────────┴────────────────┴────────────────┴────────┴─────────────────────────┘
//! use                 one a process    one a receiver   one a    directories, connections,
//!                                                       chunk    payload fragments, user memory
//!
//! connection, in the section of endpoint E, about its peer P
//!          ┌────────────┬──────────────────┬──────────────────────────────────────────┐
//!          │ header     │ acknowledgement  │ ring of 32-byte slots                    │
//!          └────────────┴──────────────────┴──────────────────────────────────────────┘
//! says       for whom     how much of P→E    the messages E→P
//!                         E has consumed
//! ```
//!
//! *Single writer:* every byte of a section is written only by the member that owns the section (and by the host before it
//! assigns the section to a VM). Everyone may read all of it.
//!
//! The guest driver compiles these very files, without the feature `zerocopy` and with its kernel's older compiler; so
//! they name each other by `super::`, and use nothing newer than Rust 1.85.
#![no_std]
#![warn(missing_docs)]

#[cfg(not(all(target_pointer_width = "64", target_endian = "little")))]
compile_error!("vmshm regions hold 64-bit little-endian words; this target is not supported");

pub mod driver;
pub mod heap;
pub mod ivshmem;
pub mod line;
pub mod region;
pub mod ring;
pub mod section;

pub use line::{LINE, LINE_PAIR};
pub use region::{EndpointId, EndpointName, RegionHeader, SectionEntry};
