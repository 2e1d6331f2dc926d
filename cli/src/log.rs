//! The log on standard error of commands that run until they are stopped.

use std::io::{self, IsTerminal};

use tracing_subscriber::EnvFilter;

/// Begins it; VMSHM_LOG says what it shows.
pub fn begin() {
    let filter = EnvFilter::try_from_env("VMSHM_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .init();
}
