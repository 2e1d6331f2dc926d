//! Memory that others change at any time: accessors, cache hints, mappings, its loss (SIGBUS), copies.

mod access;
mod cache;
pub mod copy;
mod device;
mod window;

#[cfg(feature = "std")]
pub mod driver;
#[cfg(feature = "std")]
mod mapping;
#[cfg(feature = "std")]
mod pages;
#[cfg(feature = "std")]
mod sigbus;

pub use access::{Memory, Place};
pub use cache::CacheHints;
#[cfg(feature = "std")]
pub(crate) use cache::{demote, prefetch_write, set_hints};
pub use copy::likely_word;
pub(crate) use copy::short_word;
pub use device::Device;
#[cfg(feature = "std")]
pub use mapping::{MappedFile, Mapping};
pub use window::Window;
