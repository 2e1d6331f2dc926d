//! Operations on a peer's registered memory, as Open MPI's one-sided components and ob1's RGET use them.

use std::convert::identity;
use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::{Peer, PeerError, copy_from_shared};

use crate::component;
use crate::descriptor::from_endpoint;
use crate::fabric::{FABRIC, Fabric, Held, Refused};
use crate::help;
use crate::lead::Lead;
use crate::ompi::{
    self, MODULE, mca_btl_base_endpoint_t, mca_btl_base_module_t, mca_btl_base_rdma_completion_fn_t,
    mca_btl_base_registration_handle_t,
};
use crate::stage::Pull;

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// What a peer must know to reach registered memory. It travels in Open MPI's headers.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// Address in the process that registered it.
    base: u64,
    /// Offset in the region of that address, or [`LOCAL`].
    offset: u64,
    /// Bytes.
    len: u64,
    /// What of a stage need not be asked for.
    lead: Lead,
}

/// The memory can only be used by the process that registered it.
const LOCAL: u64 = u64::MAX;

/// Added to the id of a stage. No region is so large that these could be offsets.
const STAGED: u64 = 1 << 63;

impl Handle {
    /// Which stage `len` bytes at the owner's `address` belong to, and where in it they begin.
    fn staged(&self, address: u64, len: u64) -> Option<(u64, u64)> {
        let skip = address.checked_sub(self.base)?;
        let fits = skip.checked_add(len)? <= self.len;
        (self.offset != LOCAL && fits).then_some((self.offset.checked_sub(STAGED)?, skip))
    }

    /// Offset in the region of `len` bytes at the owner's `address`, if they are registered for others.
    fn resolve(&self, address: u64, len: u64) -> Option<u64> {
        let skip = address.checked_sub(self.base)?;
        let fits = skip.checked_add(len)? <= self.len;
        if self.offset >= STAGED || !fits { None } else { self.offset.checked_add(skip) }
    }
}

/// Registers memory. Others can only reach what lies in our section; for ourselves all memory will do. One peer that will
/// only read it can also have it staged, see [`crate::stage`]: that is how ob1 asks for a long message.
pub unsafe extern "C" fn register_mem(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    base: *mut c_void,
    size: usize,
    flags: u32,
) -> *mut mca_btl_base_registration_handle_t {
    let mut lead = Lead::default();
    let offset = FABRIC.lock().as_mut().and_then(|fabric| {
        let offset = fabric.endpoint.expose(base.cast::<u8>(), size as u64);
        if flags != ompi::MCA_BTL_REG_FLAG_REMOTE_READ {
            return offset;
        }
        if offset.is_some() {
            fabric.exposed.push(size);
            return offset;
        }
        let peer = fabric.peer(from_endpoint(endpoint))?;
        let (id, promised) = fabric.stage(peer, base.cast::<u8>(), size);
        lead = promised;
        Some(STAGED | id)
    });
    let for_others = ompi::MCA_BTL_REG_FLAG_REMOTE_READ | ompi::MCA_BTL_REG_FLAG_REMOTE_ATOMIC;
    if offset.is_none() && flags & for_others != 0 {
        return ptr::null_mut();
    }
    let handle = Handle { base: base.addr() as u64, offset: offset.unwrap_or(LOCAL), len: size as u64, lead };
    Box::into_raw(Box::new(handle)).cast()
}

/// Ends what [`register_mem`] began.
pub unsafe extern "C" fn deregister_mem(
    _: *mut mca_btl_base_module_t,
    handle: *mut mca_btl_base_registration_handle_t,
) -> c_int {
    if !handle.is_null() {
        // SAFETY: Open MPI gives back what register_mem gave it.
        let handle = unsafe { Box::from_raw(handle.cast::<Handle>()) };
        if let Some((id, _)) = handle.staged(handle.base, 0)
            && let Some(fabric) = FABRIC.lock().as_mut()
        {
            fabric.unstage(id);
        }
    }
    SUCCESS
}

/// What Open MPI is told when an operation is over.
pub struct Completion {
    /// The peer.
    pub endpoint: *mut mca_btl_base_endpoint_t,
    /// Where the bytes are or come to, here.
    pub local: *mut c_void,
    /// What [`register_mem`] has given for that memory, or NULL.
    pub local_handle: *mut mca_btl_base_registration_handle_t,
    /// What is called, with the two that follow.
    pub callback: mca_btl_base_rdma_completion_fn_t,
    pub context: *mut c_void,
    pub data: *mut c_void,
}

impl Completion {
    /// Tells Open MPI that the operation is over, or will never be.
    ///
    /// # Safety
    /// The fields are those that Open MPI gave for one operation. No lock may be held.
    pub unsafe fn call_back(self, status: c_int) {
        let Some(callback) = self.callback else { return };
        let Self { endpoint, local, local_handle, context, data, .. } = self;
        // SAFETY: the caller vouches for all of them.
        unsafe { callback(MODULE.get(), endpoint, local, local_handle, context, data, status) };
    }

    /// Tells Open MPI that an operation is over, and whether the peer could be reached; the code for its function, which
    /// is that of success.
    ///
    /// # Safety
    /// As [`Completion::call_back`].
    pub unsafe fn done<T>(self, result: Result<T, PeerError>) -> c_int {
        let status = if result.is_ok() { SUCCESS } else { ompi::OPAL_ERR_UNREACH as c_int };
        // SAFETY: the caller vouches for it.
        unsafe { self.call_back(status) };
        SUCCESS
    }
}

/// The copy of a peer's handle that Open MPI has; None for NULL.
///
/// # Safety
/// There is one, if not NULL.
unsafe fn read(handle: *const mca_btl_base_registration_handle_t) -> Option<Handle> {
    // SAFETY: the caller vouches for it; Open MPI's copy may lie anywhere.
    (!handle.is_null()).then(|| unsafe { handle.cast::<Handle>().read_unaligned() })
}

/// Does `work` on `len` bytes of a peer's memory, under the lock.
///
/// # Errors
/// Open MPI's code, where there is no such memory.
///
/// # Safety
/// `handle` is a copy of a peer's handle, or NULL.
pub unsafe fn at_remote<T>(
    endpoint: *const mca_btl_base_endpoint_t,
    address: u64,
    handle: *const mca_btl_base_registration_handle_t,
    len: u64,
    work: impl FnOnce(&mut Fabric, Peer, u64) -> T,
) -> Result<T, c_int> {
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut().ok_or(ompi::OPAL_ERR_UNREACH as c_int)?;
    let peer = fabric.peer(from_endpoint(endpoint));
    // SAFETY: the caller vouches for it.
    let offset = unsafe { read(handle) }.and_then(|handle| handle.resolve(address, len));
    let (peer, offset) = peer.zip(offset).ok_or(ompi::OPAL_ERR_BAD_PARAM as c_int)?;
    Ok(work(fabric, peer, offset))
}

/// Copies a peer's memory to our own: as much as there is room for, since ob1 asks for all of a message that is longer than
/// its receiver's buffer, and tells the receiver so afterwards.
pub unsafe extern "C" fn get(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    local: *mut c_void,
    address: u64,
    local_handle: *mut mca_btl_base_registration_handle_t,
    remote_handle: *mut mca_btl_base_registration_handle_t,
    size: usize,
    _: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    let mut guard = FABRIC.lock();
    let Some(fabric) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    let number = from_endpoint(endpoint);
    let Some((peer, proc)) = fabric.peer(number).zip(fabric.process(number)) else {
        return ompi::OPAL_ERR_BAD_PARAM as c_int;
    };
    let mut len = size;
    // SAFETY: Open MPI's process lives until del_procs; context and data are the caller's, which says what they are.
    let caller = unsafe { ompi::vmshm_ompi_room(proc, context, data, local, size, &mut len) };
    if caller == ompi::VMSHM_OMPI_ROOM_UNKNOWN {
        drop(guard);
        help::verbose(
            "this ob1 does not show how much room a receiver has: it sends a long message in pieces",
        );
        // SAFETY: Open MPI gave all of it for this, and the lock is not held. To ob1 it says: have it sent, not read.
        unsafe { completion.call_back(ompi::OPAL_ERROR) };
        return SUCCESS;
    }
    let len = len.min(size);
    if len == 0 {
        drop(guard);
        // SAFETY: as above.
        return unsafe { completion.done(Ok(())) };
    }
    // SAFETY: Open MPI gives the handle that the peer sent, or NULL.
    let Some(handle) = (unsafe { read(remote_handle) }) else { return ompi::OPAL_ERR_BAD_PARAM as c_int };
    if let Some((stage, offset)) = handle.staged(address, len as u64) {
        // Only ob1 asks for stages, whatever a peer says.
        return match caller {
            ompi::VMSHM_OMPI_ROOM_KNOWN => {
                pull_staged(guard, peer, Pull { stage, offset, lead: handle.lead, len, completion })
            }
            _ => ompi::OPAL_ERR_BAD_PARAM as c_int,
        };
    }
    let Some(offset) = handle.resolve(address, len as u64) else { return ompi::OPAL_ERR_BAD_PARAM as c_int };
    let mut done = fabric.endpoint.check_remote(peer, offset, len as u64);
    if done.is_ok() {
        let from = fabric.endpoint.address(offset, len as u64);
        // A long copy keeps no other thread from sending.
        // SAFETY: len bytes lie in the peer's section, and Open MPI gives room for as many.
        Held::unlocked(&mut guard, || unsafe { copy_from_shared(from, local.cast(), len) });
        done = guard.as_mut().map_or(Err(PeerError::Left), |fabric| fabric.endpoint.confirm(peer));
    }
    drop(guard);
    // SAFETY: as above.
    unsafe { completion.done(done) }
}

/// Asks for what a peer has staged for us; the callback comes when it is there.
fn pull_staged(mut guard: Held, peer: Peer, pull: Pull) -> c_int {
    let Some(fabric) = guard.as_mut() else { return ompi::OPAL_ERR_UNREACH as c_int };
    match fabric.begin(peer, pull) {
        Ok(None) => SUCCESS,
        Ok(Some(pull)) => {
            drop(guard);
            // SAFETY: Open MPI gave all of it for this, and the lock is not held.
            unsafe { pull.completion.call_back(SUCCESS) };
            SUCCESS
        }
        Err(Refused::Busy) => ompi::OPAL_ERR_OUT_OF_RESOURCE as c_int,
        Err(Refused::Lost) => {
            component::report(&mut guard, peer);
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}

/// Copies our own memory to a peer's.
pub unsafe extern "C" fn put(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    local: *mut c_void,
    address: u64,
    local_handle: *mut mca_btl_base_registration_handle_t,
    remote_handle: *mut mca_btl_base_registration_handle_t,
    size: usize,
    _: c_int,
    _: c_int,
    callback: mca_btl_base_rdma_completion_fn_t,
    context: *mut c_void,
    data: *mut c_void,
) -> c_int {
    let work = |fabric: &mut Fabric, peer, offset| {
        // SAFETY: Open MPI gives size bytes.
        unsafe { fabric.endpoint.put(peer, offset, local.cast(), size) }
    };
    let completion = Completion { endpoint, local, local_handle, callback, context, data };
    // SAFETY: Open MPI gives the handle that the peer sent; the callback gets what was given for it.
    unsafe {
        at_remote(endpoint, address, remote_handle, size as u64, work)
            .map_or_else(identity, |done| completion.done(done))
    }
}

/// Waits for all operations on peers' memory; each is over when its function returns.
pub unsafe extern "C" fn flush(_: *mut mca_btl_base_module_t, _: *mut mca_btl_base_endpoint_t) -> c_int {
    SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_resolves_only_what_lies_in_it() {
        let handle = Handle { base: 0x1000, offset: 0x80, len: 0x100, lead: Lead::default() };
        assert_eq!(handle.resolve(0x1000, 0x100), Some(0x80));
        assert_eq!(handle.resolve(0x1010, 0xf0), Some(0x90));
        assert_eq!(handle.resolve(0x1010, 0xf1), None);
        assert_eq!(handle.resolve(0xfff, 1), None);
        assert_eq!(handle.resolve(0x1010, u64::MAX), None);
        assert_eq!(Handle { offset: LOCAL, ..handle }.resolve(0x1000, 1), None);
    }
}
