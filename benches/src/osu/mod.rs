//! What the OSU-like programs share.

mod buffer;
mod mpi;
mod options;
mod report;

pub use buffer::Buffer;
pub use mpi::{Mpi, Pending};
pub use options::{Measure, Options, Plan};
pub use report::Report;
