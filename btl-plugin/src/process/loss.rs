//! How the loss of a peer, or of the device, is told to the user and to Open MPI.

use std::ffi::{c_char, c_void};
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use vmshm_transport::Peer;
use vmshm_transport::attach::Source;

use super::instance::Held;
use super::module::MODULE;
use crate::ompi::help::{self, Topic};
use crate::ompi::{self, opal_proc_t};

/// Open MPI's function for a lost peer, or NULL.
static ERROR_CALLBACK: AtomicPtr<c_void> = AtomicPtr::new(ptr::null_mut());

/// Sets Open MPI's function for a lost peer, if there is one.
pub fn set_callback(callback: ompi::mca_btl_base_module_error_cb_fn_t) {
    let pointer = callback.map_or(ptr::null_mut(), |function| function as *mut c_void);
    ERROR_CALLBACK.store(pointer, Ordering::Relaxed);
}

/// Tells the user and Open MPI that a peer is lost. Under ob1 this ends the job, and does not return; but in a job of Open MPI
/// 5.0 that survives losses, ob1 marks the process as failed, whatever the flag says, and returns.
///
/// # Safety
/// `proc` is a process of Open MPI.
pub unsafe fn tell(proc: Option<*mut opal_proc_t>, why: &str) {
    let who = match proc {
        // SAFETY: the caller vouches for it.
        Some(proc) => unsafe { ompi::describe(proc) },
        None => "a process that this one does not know".into(),
    };
    let line = format!("{who}: {why}.");
    help::show(Topic::PeerLost, &line);
    let pointer = ERROR_CALLBACK.load(Ordering::Relaxed);
    if pointer.is_null() {
        return;
    }
    // SAFETY: only register_error stores there.
    let callback =
        unsafe { std::mem::transmute::<*mut c_void, ompi::mca_btl_base_module_error_cb_fn_t>(pointer) };
    if let Some(callback) = callback {
        // ob1 takes the text for a format.
        let text = ompi::c_text(&format!("btl vmshm: lost {line}").replace('%', "%%"));
        // SAFETY: module, process and text outlive the call, which does not change the text.
        unsafe {
            callback(
                MODULE.get(),
                ompi::MCA_BTL_ERROR_FLAGS_FATAL.cast_signed(),
                proc.unwrap_or(ptr::null_mut()),
                text.as_ptr().cast_mut().cast::<c_char>(),
            );
        }
    }
}

/// Reports the loss of a peer, once, if it matters.
pub fn report(held: &mut Held, peer: Peer) {
    let Some(instance) = held.as_mut() else { return };
    let Some(proc) = instance.process(peer) else { return };
    let Some(why) = instance.engine.take_loss(peer) else { return };
    report_lost_device(held);
    Held::unlocked(held, || {
        // SAFETY: Open MPI's process lives until del_procs.
        unsafe { tell(Some(proc), &why.to_string()) }
    });
}

/// Reports the loss of the device, if it is lost.
pub fn report_lost_device(held: &mut Held) {
    let Some(instance) = held.as_ref() else { return };
    let endpoint = instance.engine.endpoint();
    if !endpoint.memory().is_lost() {
        return;
    }
    let text = match endpoint.source() {
        Source::File(file) => {
            format!("The file {} was made shorter while it was in use.", file.display())
        }
        device => format!("The device {} is gone.", device.path().display()),
    };
    Held::unlocked(held, || help::show(Topic::DeviceLost, &text));
}
