//! The log on standard error of commands that run until they are stopped.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Begins it; VMSHM_LOG says what it shows.
pub fn begin() {
    // The library of virtio queues has an error for each thing that a guest does wrong, as often as the guest does it.
    let default = || EnvFilter::new("info,virtio_queue=off");
    let filter = EnvFilter::try_from_env("VMSHM_LOG").unwrap_or_else(|_| default());
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
