//! Descriptors: messages on their way from Open MPI to the engine, each the completion of its send.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use vmshm_transport::{Fragment, MAX_INLINE, Peer};

use crate::ompi::{
    self, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t, mca_btl_base_module_t, mca_btl_base_segment_t,
};

/// Open MPI's descriptor, and behind it the part that sending needs.
///
/// From [`Descriptor::hand_out`] to [`Descriptor::take_back`] it belongs to C, so it is only touched through its pointer.
#[repr(C)]
pub struct Descriptor {
    /// The part that Open MPI sees; it must come first.
    base: mca_btl_base_descriptor_t,
    segment: mca_btl_base_segment_t,
    /// Where it goes.
    peer: Option<Peer>,
    /// The memory of a message that is too long for `inline`.
    fragment: Option<Fragment>,
    inline: [MaybeUninit<u8>; MAX_INLINE],
}

impl Descriptor {
    /// An empty descriptor.
    pub fn new() -> Box<Self> {
        // SAFETY: base and segment hold numbers, pointers and optional functions, for all of which zero is a value.
        let (base, segment) =
            unsafe { (MaybeUninit::zeroed().assume_init(), MaybeUninit::zeroed().assume_init()) };
        Box::new(Self {
            base,
            segment,
            peer: None,
            fragment: None,
            inline: [MaybeUninit::uninit(); MAX_INLINE],
        })
    }

    /// Gives a descriptor of a message with `len` bytes to C, with room for them in `fragment` or, without one, in the
    /// descriptor itself.
    pub fn hand_out(
        mut self: Box<Self>,
        peer: Peer,
        len: usize,
        fragment: Option<Fragment>,
        order: u8,
        flags: u32,
    ) -> *mut Self {
        debug_assert!(len <= fragment.as_ref().map_or(MAX_INLINE, Fragment::capacity));
        self.peer = Some(peer);
        self.fragment = fragment;
        self.base.des_flags = flags;
        self.base.order = order;
        self.base.des_cbfunc = None;
        self.base.des_segment_count = 1;
        self.segment.seg_len = len as u64;
        let this = Box::into_raw(self);
        // SAFETY: the pointer comes from a box just now. No references: these pointers must outlive this function.
        unsafe {
            let data = match &(*this).fragment {
                Some(fragment) => fragment.ptr().cast::<c_void>(),
                None => (&raw mut (*this).inline).cast::<c_void>(),
            };
            (*this).segment.seg_addr.pval = data;
            (*this).base.des_segments = &raw mut (*this).segment;
        }
        this
    }

    /// Takes a descriptor back from C, and the fragment out of it.
    ///
    /// # Safety
    /// `this` came from [`Descriptor::hand_out`], and neither C nor the transport holds it any more.
    pub unsafe fn take_back(this: *mut Self) -> (Box<Self>, Option<Fragment>) {
        // SAFETY: the caller vouches for it.
        let mut this = unsafe { Box::from_raw(this) };
        let fragment = this.fragment.take();
        (this, fragment)
    }

    /// The pointer that C knows.
    pub fn to_c(this: *mut Self) -> *mut mca_btl_base_descriptor_t {
        this.cast()
    }

    /// The descriptor behind C's pointer.
    pub fn from_c(pointer: *mut mca_btl_base_descriptor_t) -> *mut Self {
        pointer.cast()
    }

    /// Where the message's bytes are, and how many.
    ///
    /// # Safety
    /// `this` came from [`Descriptor::hand_out`] and was not taken back.
    pub unsafe fn payload(this: *const Self) -> (*mut u8, usize) {
        // SAFETY: the caller vouches for `this`. C may have made the message shorter, never longer.
        unsafe { ((*this).segment.seg_addr.pval.cast(), (*this).segment.seg_len as usize) }
    }

    /// Notes that the message turned out shorter.
    ///
    /// # Safety
    /// As [`Descriptor::payload`].
    pub unsafe fn shorten(this: *mut Self, len: usize) {
        // SAFETY: the caller vouches for `this`.
        unsafe { (*this).segment.seg_len = len as u64 }
    }

    /// Takes the fragment that holds the message, if it is not inline: the engine has it while it is sent.
    ///
    /// # Safety
    /// As [`Descriptor::payload`].
    pub unsafe fn take_fragment(this: *mut Self) -> Option<Fragment> {
        // SAFETY: the caller vouches for `this`; C does not know the field.
        unsafe { (*this).fragment.take() }
    }

    /// Puts back what [`Descriptor::take_fragment`] took.
    ///
    /// # Safety
    /// As [`Descriptor::payload`].
    pub unsafe fn put_fragment(this: *mut Self, fragment: Option<Fragment>) {
        // SAFETY: the caller vouches for `this`; C does not know the field.
        unsafe { (*this).fragment = fragment }
    }

    /// Whether the message lies in a fragment.
    ///
    /// # Safety
    /// As [`Descriptor::payload`].
    pub unsafe fn has_fragment(this: *const Self) -> bool {
        // SAFETY: the caller vouches for `this`; C does not know the field.
        unsafe { (*this).fragment.is_some() }
    }

    /// Asks for a callback in any case.
    ///
    /// # Safety
    /// As [`Descriptor::payload`].
    pub unsafe fn always_call_back(this: *mut Self) {
        // SAFETY: the caller vouches for `this`.
        unsafe { (*this).base.des_flags |= ompi::MCA_BTL_DES_SEND_ALWAYS_CALLBACK }
    }

    /// Tells Open MPI what became of the message, if it wants to know, and says whether the descriptor is ours to free.
    ///
    /// # Safety
    /// As [`Descriptor::payload`]. No lock may be held: Open MPI will send more. Unless this returns true, the descriptor
    /// may be gone afterwards.
    pub unsafe fn call_back(this: *mut Self, module: *mut mca_btl_base_module_t, status: c_int) -> bool {
        // SAFETY: the caller vouches for `this`. The flags are read before the callback, which may free the descriptor.
        unsafe {
            let flags = (*this).base.des_flags;
            let endpoint = (*this).peer.map_or(ptr::null_mut(), to_endpoint);
            if flags & ompi::MCA_BTL_DES_SEND_ALWAYS_CALLBACK != 0
                && let Some(callback) = (*this).base.des_cbfunc
            {
                callback(module, endpoint, Self::to_c(this), status);
            }
            flags & ompi::MCA_BTL_DES_FLAGS_BTL_OWNERSHIP != 0
        }
    }
}

/// Open MPI's endpoint of a peer: the peer's number plus 1, so that it is never NULL. Nothing is behind the pointer.
pub fn to_endpoint(peer: Peer) -> *mut mca_btl_base_endpoint_t {
    ptr::without_provenance_mut(peer.index() + 1)
}

/// The number of the peer that Open MPI means, see [`to_endpoint`].
pub fn from_endpoint(endpoint: *const mca_btl_base_endpoint_t) -> usize {
    endpoint.addr().wrapping_sub(1)
}
