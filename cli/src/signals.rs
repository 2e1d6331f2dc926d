//! Signals by which users and service managers end a program.

use anyhow::Context;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// Blocks SIGTERM, SIGINT and SIGHUP in this thread and in those that it starts from now on.
pub fn block() -> anyhow::Result<SigSet> {
    let mut signals = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP].into_iter().for_each(|signal| signals.add(signal));
    signals.thread_block().context("cannot block signals")?;
    Ok(signals)
}

/// Blocks them, and makes a descriptor that can be read once one of them has come.
pub fn descriptor() -> anyhow::Result<SignalFd> {
    let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
    SignalFd::with_flags(&block()?, flags).context("cannot wait for signals")
}
