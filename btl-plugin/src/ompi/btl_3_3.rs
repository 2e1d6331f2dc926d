//! Version 3.3 of the interface for byte transfer layers, which the series 5.0 and 6.0 have.

use std::ffi::{c_int, c_void};

use super::{
    BTL_VERSION, MCA_BTL_TAG_MAX, Observer, mca_btl_base_endpoint_t, mca_btl_base_module_t,
    mca_btl_base_receive_descriptor_t, mca_btl_base_segment_t,
};

// The interface that these numbers name; another one needs another look at every line of this crate.
const _: () = assert!(BTL_VERSION == 330 && MCA_BTL_TAG_MAX == 255);

/// The version of the interface for byte transfer layers.
pub const BTL: [c_int; 3] = [3, 3, 0];

/// The tags of messages about failed processes lie in the part of the table that was left to byte transfer layers, and is
/// the engine's. They travel under others, which Open MPI leaves to programs that have none.
const MOVED: u8 = 0xc0;

/// The first tag that has moved, and the last.
const FAILURES: (u8, u8) = (0x30, 0x31);

/// The tag under which a message of Open MPI's travels.
#[inline]
pub const fn to_wire(tag: u8) -> u8 {
    if tag >= FAILURES.0 && tag <= FAILURES.1 { tag | MOVED } else { tag }
}

/// The tag of Open MPI's under which a message was sent that has travelled under this one.
#[inline]
pub const fn from_wire(tag: u8) -> u8 {
    if tag >= FAILURES.0 | MOVED && tag <= FAILURES.1 | MOVED { tag & !MOVED } else { tag }
}

/// Entry that Open MPI registers for a tag.
pub type Callback =
    unsafe extern "C" fn(*mut mca_btl_base_module_t, *const mca_btl_base_receive_descriptor_t);

/// What a callback is given.
#[derive(Debug, Default)]
pub struct Received;

impl Received {
    /// Hands a message to what is registered for its tag.
    ///
    /// # Safety
    /// All of it is Open MPI's, and `data` what was registered with the callback.
    #[inline]
    pub unsafe fn give(
        &mut self,
        callback: Callback,
        data: *mut c_void,
        module: *mut mca_btl_base_module_t,
        endpoint: *mut mca_btl_base_endpoint_t,
        tag: u8,
        segments: &mut [mca_btl_base_segment_t],
    ) {
        let descriptor = mca_btl_base_receive_descriptor_t {
            endpoint,
            des_segments: segments.as_ptr(),
            des_segment_count: segments.len(),
            tag,
            cbdata: data,
        };
        // SAFETY: descriptor and segments outlive the call, which keeps none of them; the caller vouches for the rest.
        unsafe { callback(module, &raw const descriptor) }
    }
}

/// A callback that tells an observer.
///
/// # Safety
/// Open MPI calls it, where it is registered.
pub unsafe extern "C" fn observed<O: Observer>(
    module: *mut mca_btl_base_module_t,
    descriptor: *const mca_btl_base_receive_descriptor_t,
) {
    // SAFETY: Open MPI gives the arguments that the callback was registered for.
    unsafe {
        let (tag, data) = ((*descriptor).tag, (*descriptor).cbdata);
        O::see(tag, data, |callback| callback(module, descriptor));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_about_failures_travel_under_others() {
        for tag in 0..0xf0 {
            assert_eq!(to_wire(tag) != tag, tag == 0x30 || tag == 0x31);
            assert_eq!(from_wire(to_wire(tag)), tag);
        }
    }
}
