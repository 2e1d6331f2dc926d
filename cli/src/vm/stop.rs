//! Stopping a VM: first the guest is asked to switch itself off.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};
use vmshm_vmm::{Machine, thread};

/// How long a guest may take to switch itself off.
const PATIENCE: Duration = Duration::from_secs(60);

/// Stops a VM upon these signals, which are blocked in all threads: the first one presses the power button; the second
/// one, or the end of [`PATIENCE`], stops the VM at once.
pub fn upon(signals: SigSet, machine: &Machine) -> io::Result<()> {
    let (stopper, button) = (machine.running.stopper(), Arc::clone(&machine.button));
    thread::spawn(thread::Kind::Signals, "signals", move || {
        let Ok(signal) = signals.wait() else { return };
        if !button.press() {
            tracing::info!(%signal, "stopping the VM at once, since no kernel in it listens to its power button");
        } else {
            tracing::info!(
                %signal,
                "pressed the VM's power button; a second signal, Ctrl-A X, or {} seconds stop it at once",
                PATIENCE.as_secs()
            );
            match wait(&signals, PATIENCE) {
                Some(signal) => tracing::info!(%signal, "stopping the VM at once"),
                None => tracing::warn!("stopping the VM, which did not switch itself off"),
            }
        }
        stopper.stop();
    })?;
    Ok(())
}

/// The next of these signals, unless none comes in time.
fn wait(signals: &SigSet, limit: Duration) -> Option<Signal> {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let left = libc::timespec { tv_sec: left.as_secs() as _, tv_nsec: left.subsec_nanos().into() };
        // SAFETY: the set and the time live through the call, which writes nowhere.
        let signal = unsafe { libc::sigtimedwait(signals.as_ref(), std::ptr::null_mut(), &raw const left) };
        match Signal::try_from(signal) {
            Ok(signal) => return Some(signal),
            Err(_) if io::Error::last_os_error().kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::signal::raise;

    use super::*;

    #[test]
    fn a_signal_is_waited_for_and_not_for_ever() {
        std::thread::spawn(|| {
            let mut signals = SigSet::empty();
            signals.add(Signal::SIGUSR2);
            signals.thread_block().unwrap();
            assert_eq!(wait(&signals, Duration::from_millis(1)), None);
            raise(Signal::SIGUSR2).unwrap();
            assert_eq!(wait(&signals, Duration::from_secs(60)), Some(Signal::SIGUSR2));
        })
        .join()
        .unwrap();
    }
}
