//! The series 4.1.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

pub use super::int_counts::*;
use super::{
    BTL_VERSION, MCA_BTL_TAG_MAX, Observer, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t,
    mca_btl_base_module_t, mca_btl_base_segment_t,
};

// The interface that these numbers name; another one needs another look at every line of this crate.
const _: () = assert!(BTL_VERSION == 310 && MCA_BTL_TAG_MAX == 255);

/// The version of the interface for byte transfer layers.
pub const BTL: [c_int; 3] = [3, 1, 0];

/// The version of the interface for memory pools.
pub const MPOOL: [c_int; 3] = [3, 0, 0];

/// The version of the interface for collective operations.
pub const COLL: [c_int; 3] = [2, 0, 0];

/// The version of the interface for windows.
pub const OSC: [c_int; 3] = [3, 0, 0];

/// The tag under which a message of Open MPI's travels.
#[inline]
pub const fn to_wire(tag: u8) -> u8 {
    tag
}

/// The tag of Open MPI's under which a message was sent that has travelled under this one.
#[inline]
pub const fn from_wire(tag: u8) -> u8 {
    tag
}

/// Entry that Open MPI registers for a tag.
pub type Callback =
    unsafe extern "C" fn(*mut mca_btl_base_module_t, u8, *mut mca_btl_base_descriptor_t, *mut c_void);

/// What a callback is given. None keeps or changes it.
#[allow(missing_debug_implementations, reason = "a struct of C's")]
pub struct Received(mca_btl_base_descriptor_t);

impl Default for Received {
    fn default() -> Self {
        // SAFETY: the struct holds numbers, pointers and an optional function, for all of which zero is a value.
        Self(unsafe { MaybeUninit::zeroed().assume_init() })
    }
}

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
        _: *mut mca_btl_base_endpoint_t,
        tag: u8,
        segments: &mut [mca_btl_base_segment_t],
    ) {
        self.0.des_segments = segments.as_mut_ptr();
        self.0.des_segment_count = segments.len();
        // SAFETY: descriptor and segments outlive the call, which keeps none of them; the caller vouches for the rest.
        unsafe { callback(module, tag, &raw mut self.0, data) }
    }
}

/// A callback that tells an observer.
///
/// # Safety
/// Open MPI calls it, where it is registered.
pub unsafe extern "C" fn observed<O: Observer>(
    module: *mut mca_btl_base_module_t,
    tag: u8,
    descriptor: *mut mca_btl_base_descriptor_t,
    data: *mut c_void,
) {
    // SAFETY: Open MPI gives the arguments that the callback was registered for.
    O::see(tag, data, |callback| unsafe { callback(module, tag, descriptor, data) });
}
