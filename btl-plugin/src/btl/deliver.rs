//! Delivery of messages to Open MPI's functions for their tags.

use std::mem::MaybeUninit;

use vmshm_messaging::Params;
use vmshm_transport::copy_from_shared;

use crate::ompi::{
    self, Received, mca_btl_active_message_callback_t, mca_btl_base_endpoint_t, mca_btl_base_segment_t,
    opal_ptr_t,
};
use crate::process::MODULE;

/// Bytes at the start of a fragment that are copied before anyone looks at them: no header is longer.
pub const HEADER: usize = 256;

/// Bytes of a page: addresses that are equal modulo it look to the processor as if accesses overlapped.
const PAGE: usize = 4096;

/// The tag of ob1's messages that need no rendezvous: `MCA_PML_OB1_HDR_TYPE_MATCH` of its `pml_ob1_hdr.h`.
const OB1_MATCH: u32 = ompi::MCA_BTL_TAG_PML + 1;

/// Hands a message, whose bytes lie in `segments`, to the function that is registered for its tag; false if none is.
///
/// # Safety
/// `received` and the segments are valid until this returns, and nobody else uses them.
#[inline(always)]
pub unsafe fn hand_on(
    received: *mut Received,
    from: *mut mca_btl_base_endpoint_t,
    tag: u8,
    segments: &mut [mca_btl_base_segment_t],
) -> bool {
    let tag = ompi::from_wire(tag);
    if u32::from(tag) >= ompi::MCA_BTL_TAG_MAX {
        return false;
    }
    let table =
        (&raw const ompi::mca_btl_base_active_message_trigger).cast::<mca_btl_active_message_callback_t>();
    // SAFETY: the table has MCA_BTL_TAG_MAX rows, filled before messages come.
    let entry = unsafe { *table.add(usize::from(tag)) };
    let Some(callback) = entry.cbfunc else { return false };
    // SAFETY: the callback and its data are those of the table; the module is ours, and the caller vouches for the rest.
    unsafe { (*received).give(callback, entry.cbdata, MODULE.get(), from, tag, segments) };
    true
}

/// A segment of `len` bytes.
#[inline(always)]
pub fn segment(start: *mut u8, len: usize) -> mca_btl_base_segment_t {
    mca_btl_base_segment_t { seg_addr: opal_ptr_t { pval: start.cast() }, seg_len: len as u64 }
}

/// Hands a message to the function that is registered for its tag; false if none is. `rest` is what follows the first part.
pub fn deliver(
    from: *mut mca_btl_base_endpoint_t,
    tag: u8,
    first: *mut u8,
    len: usize,
    rest: Option<(*mut u8, usize)>,
) -> bool {
    let first = segment(first, len);
    // SAFETY: all of it is on the stack.
    unsafe {
        match rest {
            None => hand_on(&mut Received::default(), from, tag, &mut [first]),
            Some((rest, len)) => {
                hand_on(&mut Received::default(), from, tag, &mut [first, segment(rest, len)])
            }
        }
    }
}

/// Whether a message that lies in the sender's section, where the sender can still change it, is copied as a whole before
/// it is handed on: for tags whose headers we do not know, and for whole messages of ob1, which takes a second segment for
/// a single byte when it looks whether a message is too long.
pub fn is_copied(tag: u8, len: usize) -> bool {
    let is_pml = (ompi::MCA_BTL_TAG_PML..ompi::MCA_BTL_TAG_OSC_RDMA).contains(&u32::from(tag));
    (!is_pml || u32::from(tag) == OB1_MATCH) && len <= Params::MAX_MESSAGE
}

/// Copies a message to `landing`, which grows as needed, and returns where it is. It is never shorter than a header: nobody
/// reads one beyond its end.
///
/// It begins in the middle of a page. Open MPI copies it from there with `memcpy`, which on AMD's Zen crawls where it writes
/// up to 64 bytes behind where it reads, modulo a page; users' buffers begin at the start of one, or where `malloc` does.
///
/// # Safety
/// `payload` is valid for reads of `len` bytes.
pub unsafe fn land(payload: *const u8, len: usize, landing: &mut Vec<u64>) -> *mut u8 {
    let words = (len.max(HEADER) + PAGE).div_ceil(8);
    if landing.len() < words {
        landing.resize(words, 0);
    }
    let start = landing.as_mut_ptr().cast::<u8>();
    let place = start.wrapping_add((PAGE / 2).wrapping_sub(start.addr()) % PAGE);
    // SAFETY: the caller vouches for payload; landing has room for it and a page before it.
    unsafe { copy_from_shared(payload, place, len) };
    place
}

/// Hands on a message of ob1 whose bytes lie in the sender's section: its header is copied first, its payload is read in
/// place. The transport has checked that `len` bytes lie at `payload`.
pub fn deliver_in_place(from: *mut mca_btl_base_endpoint_t, tag: u8, payload: *mut u8, len: usize) -> bool {
    // Nobody may send more, see `check`; only a hostile peer does.
    if len > Params::MAX_MESSAGE {
        return false;
    }
    let mut first = MaybeUninit::<[u64; HEADER / 8]>::uninit();
    let first = first.as_mut_ptr().cast::<u8>();
    let copied = len.min(HEADER);
    // SAFETY: len bytes lie at payload, HEADER bytes lie at first.
    unsafe { copy_from_shared(payload, first, copied) };
    let rest = (len > copied).then(|| (payload.wrapping_add(copied), len - copied));
    deliver(from, tag, first, copied, rest)
}

#[cfg(test)]
mod tests {
    use std::ptr;

    use super::*;

    #[test]
    fn a_message_lands_whole_in_the_middle_of_a_page() {
        let payload: Vec<u8> = (0..10_000).map(|i| (i % 251) as u8).collect();
        let mut landing = Vec::new();
        for len in [1, 100, 4110, 10_000, 14] {
            // SAFETY: the payload is longer.
            let place = unsafe { land(payload.as_ptr(), len, &mut landing) };
            assert_eq!(place.addr() % PAGE, PAGE / 2);
            // Up to the longest header.
            let end = place.addr() + len.max(HEADER) - landing.as_ptr().addr();
            assert!(place.addr() >= landing.as_ptr().addr() && end <= landing.len() * 8);
            // SAFETY: it was just copied there.
            assert!(unsafe { std::slice::from_raw_parts(place, len) } == &payload[..len]);
        }
    }

    #[test]
    fn tags_that_nobody_asked_for_are_refused() {
        let mut byte = 0;
        assert!(!deliver(ptr::null_mut(), 255, &mut byte, 1, None));
        assert!(!deliver(ptr::null_mut(), 0x9f, &mut byte, 1, None));
    }
}
