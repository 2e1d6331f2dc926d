//! The parts of a region: its table, and in each section the endpoint slots and the chunks of the heap.

pub mod arena;
pub mod chunks;
pub mod rotation;
pub mod slot;
mod table;

pub use table::{Region, Section};
