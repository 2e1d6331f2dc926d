//! atomic_op, atomic_fop, atomic_cswap: words of a peer's memory, in open regions.

use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::attach::Attached;
use vmshm_transport::{Peer, PeerError};

use super::put::at_remote;

use crate::ompi::{
    self, mca_btl_base_atomic_op_t, mca_btl_base_endpoint_t, mca_btl_base_module_t,
    mca_btl_base_rdma_completion_fn_t, mca_btl_base_registration_handle_t,
};
use crate::process::Completion;

/// Atomic operations offered, on 64-bit words; the processor's own atomics on the same memory are atomic with them.
pub const SUPPORTED: u32 = ompi::MCA_BTL_ATOMIC_SUPPORTS_ADD
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_AND
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_OR
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_XOR
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_SWAP
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_MIN
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_MAX
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_CSWAP
    | ompi::MCA_BTL_ATOMIC_SUPPORTS_GLOB;

/// Tries of a compare-and-exchange before we call it contended: Open MPI then tries again later.
const TRIES: u32 = 1 << 12;

enum Failed {
    /// Others were quicker every time.
    Contended,
    /// The peer cannot be reached.
    Lost(PeerError),
}

impl From<PeerError> for Failed {
    fn from(error: PeerError) -> Self {
        Self::Lost(error)
    }
}

/// Result of an operation on a word, or None for one that we do not know.
fn apply(op: mca_btl_base_atomic_op_t, found: u64, operand: u64) -> Option<u64> {
    Some(match op {
        ompi::MCA_BTL_ATOMIC_ADD => found.wrapping_add(operand),
        ompi::MCA_BTL_ATOMIC_AND => found & operand,
        ompi::MCA_BTL_ATOMIC_OR => found | operand,
        ompi::MCA_BTL_ATOMIC_XOR => found ^ operand,
        ompi::MCA_BTL_ATOMIC_SWAP => operand,
        ompi::MCA_BTL_ATOMIC_MIN => found.cast_signed().min(operand.cast_signed()).cast_unsigned(),
        ompi::MCA_BTL_ATOMIC_MAX => found.cast_signed().max(operand.cast_signed()).cast_unsigned(),
        _ => return None,
    })
}

fn update(
    endpoint: &mut Attached,
    peer: Peer,
    offset: u64,
    op: mca_btl_base_atomic_op_t,
    operand: u64,
) -> Result<u64, Failed> {
    if op == ompi::MCA_BTL_ATOMIC_ADD {
        return Ok(endpoint.fetch_add(peer, offset, operand)?);
    }
    let mut current = endpoint.compare_exchange(peer, offset, 0, 0)?;
    for _ in 0..TRIES {
        let new = apply(op, current, operand).unwrap_or(current);
        let found = endpoint.compare_exchange(peer, offset, current, new)?;
        if found == current {
            return Ok(found);
        }
        current = found;
    }
    Err(Failed::Contended)
}

/// Does `work` on the word that Open MPI means, stores what it was if it is wanted, and calls back.
///
/// # Safety
/// The arguments are Open MPI's.
unsafe fn perform(
    completion: Completion,
    address: u64,
    handle: *mut mca_btl_base_registration_handle_t,
    flags: c_int,
    work: impl FnOnce(&mut Attached, Peer, u64) -> Result<u64, Failed>,
) -> c_int {
    // Words of 32 bits and floating point are not announced, and not done.
    if flags != 0 {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    // SAFETY: Open MPI gives the handle that the peer sent.
    let done = match unsafe { at_remote(completion.endpoint, address, handle, 8, work) } {
        Ok(Err(Failed::Contended)) => return ompi::OPAL_ERR_OUT_OF_RESOURCE as c_int,
        Ok(Err(Failed::Lost(error))) => Err(error),
        Ok(Ok(found)) => Ok(found),
        Err(code) => return code,
    };
    if let Ok(found) = done
        && !completion.local.is_null()
    {
        // SAFETY: Open MPI gives room for a word.
        unsafe { completion.local.cast::<u64>().write_unaligned(found) };
    }
    // SAFETY: the operation is over; the callback gets what was given for it.
    unsafe { completion.done(done) }
}

/// Changes a word.
///
/// # Safety
/// The arguments are Open MPI's.
unsafe fn change(
    completion: Completion,
    address: u64,
    handle: *mut mca_btl_base_registration_handle_t,
    flags: c_int,
    op: mca_btl_base_atomic_op_t,
    operand: u64,
) -> c_int {
    if apply(op, 0, 0).is_none() {
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    let work = |endpoint: &mut Attached, peer, offset| update(endpoint, peer, offset, op, operand);
    // SAFETY: the caller vouches for them.
    unsafe { perform(completion, address, handle, flags, work) }
}

/// Changes a word.
pub unsafe extern "C" fn op(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    address: u64,
    handle: *mut mca_btl_base_registration_handle_t,
    op: mca_btl_base_atomic_op_t,
    operand: u64,
    flags: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let (local, local_handle) = (ptr::null_mut(), ptr::null_mut());
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    // SAFETY: the arguments are Open MPI's; nothing is stored to NULL.
    unsafe { change(completion, address, handle, flags, op, operand) }
}

/// Changes a word and gets what it was.
pub unsafe extern "C" fn fetch_op(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    local: *mut c_void,
    address: u64,
    local_handle: *mut mca_btl_base_registration_handle_t,
    remote_handle: *mut mca_btl_base_registration_handle_t,
    op: mca_btl_base_atomic_op_t,
    operand: u64,
    flags: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    // SAFETY: the arguments are Open MPI's.
    unsafe { change(completion, address, remote_handle, flags, op, operand) }
}

/// Replaces a word if it is what the caller thinks, and gets what it was.
pub unsafe extern "C" fn compare_and_swap(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    local: *mut c_void,
    address: u64,
    local_handle: *mut mca_btl_base_registration_handle_t,
    remote_handle: *mut mca_btl_base_registration_handle_t,
    compare: u64,
    value: u64,
    flags: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let work =
        |endpoint: &mut Attached, peer, offset| Ok(endpoint.compare_exchange(peer, offset, compare, value)?);
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    // SAFETY: the arguments are Open MPI's.
    unsafe { perform(completion, address, remote_handle, flags, work) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_do_what_their_names_say() {
        let minus = (-5i64).cast_unsigned();
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_ADD, 7, minus), Some(2));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_AND, 6, 3), Some(2));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_OR, 6, 3), Some(7));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_XOR, 6, 3), Some(5));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_SWAP, 6, 3), Some(3));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_MIN, 6, minus), Some(minus));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_MAX, 6, minus), Some(6));
        assert_eq!(apply(ompi::MCA_BTL_ATOMIC_LAND, 6, 3), None);
    }
}
