//! Parts that the OSU-like programs share.

mod buffer;
mod collective;
mod mpi;
mod one_sided;
mod options;
mod ping_pong;
mod report;
mod shared;
mod stream;
mod turns;

pub use buffer::{Buffer, Origin, Wrong, seed};
pub use collective::{Collective, run as run_collective};
pub use mpi::{Mpi, Pending};
pub use one_sided::{OneSided, run as run_one_sided};
pub use options::{Measure, Options, Plan};
pub use ping_pong::PingPong;
pub use report::Report;
pub use shared::SharedCount;
pub use stream::{End, Stream};
pub use turns::{Turns, measure};
