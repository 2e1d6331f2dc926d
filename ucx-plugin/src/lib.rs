//! The UCX transport `vmshm`: messages of UCX between virtual machines over one shared region.
//!
//! This crate is the translation between UCX's transport interface (UCT) and [`vmshm_messaging`]. It registers itself when it is
//! loaded. Each file uses only those before it:
//!
//! - `ucx`: all that depends on UCX's version: bindings, with a file for each series (`v1_13.h`) of what UCX does not install,
//!   and `shim.c` for what its headers have as macros only.
//! - `memory`: memory that programs register, and its keys; `domain`: the component and its memory domain.
//! - `adapters`: network adapters of the machine; `asked`: messages that ask the owner of memory to change it; `lock`, `state`: an
//!   interface's state, and its lock; `iface`: an interface, which has an engine of its own; `endpoint`: its endpoints, and what they send; `remote`: one-sided operations,
//!   and `serve`: the owner's part of them; `progress`: what arrives; `sleep`: waiting for it without polling; `transport`: the
//!   table of all that.
//!
//! UCX has it when it is in the process before UCX looks for its transports. Under Open MPI the plugin loads it in time; for other
//! programs:
//!
//! ```text
//! cargo build --release -p vmshm-ucx
//! LD_PRELOAD=target/release/libuct_vmshm.so ucx_info -d
//! ```
//!
//! No panic leaves this crate: every function that C calls is `extern "C"`, which aborts the process instead of unwinding into
//! UCX.

mod adapters;
mod asked;
mod domain;
mod endpoint;
mod iface;
mod lock;
mod memory;
mod progress;
mod remote;
mod serve;
mod sleep;
mod state;
#[cfg(test)]
mod tests;
mod transport;
mod ucx;

/// Registers the transport when the library is loaded.
#[used]
#[unsafe(link_section = ".init_array")]
static REGISTER: extern "C" fn() = register;

extern "C" fn register() {
    match ucx::check_running() {
        Ok(()) => transport::register(),
        Err(why) => ucx::warn(&why),
    }
}
