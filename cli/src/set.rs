//! Sets of VMs that one command starts and another ends: `vmshm up`, `down` and `ps`.

pub mod down;
mod member;
mod network;
pub mod ps;
mod state;
pub mod up;
