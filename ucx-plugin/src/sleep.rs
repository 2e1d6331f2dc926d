//! Programs that sleep until the doorbell rings.
//!
//! UCX waits for our descriptor among others, without end, once all of its interfaces have said that they have nothing to do. So
//! an interface says so only where whatever comes next rings.

use std::ffi::{c_int, c_uint};
use std::os::fd::AsRawFd;
use std::time::Duration;

use crate::iface;
use crate::ucx::*;

/// Descriptor that the doorbell makes readable.
pub unsafe extern "C" fn descriptor(iface: uct_iface_h, descriptor: *mut c_int) -> ucs_status_t {
    // SAFETY: the interface is ours.
    let Some(sleeper) = (unsafe { &iface::of(iface).sleeper }) else { return UCS_ERR_UNSUPPORTED };
    // SAFETY: UCX gives room for the answer.
    unsafe { *descriptor = sleeper.descriptor().as_raw_fd() };
    UCS_OK
}

/// Has peers ring for the next that they send, of whatever kind; busy where there is something to do first.
pub unsafe extern "C" fn arm(iface: uct_iface_h, _: c_uint) -> ucs_status_t {
    // SAFETY: the interface is ours.
    let iface = unsafe { iface::of(iface) };
    let Some(sleeper) = &iface.sleeper else { return UCS_ERR_UNSUPPORTED };
    // Takes the rings so far, without a wait. The look below sees what they were for.
    sleeper.wait(Duration::ZERO);
    let mut state = iface.port.lock();
    let state = &mut *state;
    // The inbox is away while another thread makes progress.
    let is_idle = !state.is_due() && state.inbox.as_ref().is_some_and(|inbox| state.engine.arm(inbox));
    state.is_armed |= is_idle;
    if is_idle {
        UCS_OK
    } else if state.connections.is_empty() {
        // A new worker of UCX does nothing else until it has armed its interfaces: no stranger may keep it there.
        sleeper.ring_self();
        UCS_OK
    } else {
        UCS_ERR_BUSY
    }
}

#[cfg(test)]
mod tests {
    use crate::tests::{beside_others, uct::Interface};
    use crate::ucx::*;

    #[test]
    fn nothing_is_promised_where_nobody_rings() {
        let _use = beside_others();
        let interface = Interface::new();
        let (handle, mut fd) = (interface.handle, 0);
        // SAFETY: the interface is open, and there is room for the answers; all zero is a value of them.
        unsafe {
            let mut attributes: uct_iface_attr_t = std::mem::zeroed();
            assert_eq!(crate::iface::query(handle, &mut attributes), UCS_OK);
            assert_eq!(attributes.cap.event_flags, 0);
            assert_eq!(super::descriptor(handle, &mut fd), UCS_ERR_UNSUPPORTED);
            assert_eq!(super::arm(handle, 0), UCS_ERR_UNSUPPORTED);
        }
    }
}
