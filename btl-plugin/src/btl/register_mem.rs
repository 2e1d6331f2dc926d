//! register_mem, deregister_mem: memory that peers may reach.

use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_messaging::Prefix;

use crate::ompi::{self, mca_btl_base_endpoint_t, mca_btl_base_module_t, mca_btl_base_registration_handle_t};
use crate::process::{INSTANCE, Instance, from_endpoint};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Key by which a peer reaches registered memory; it travels in Open MPI's headers.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handle {
    /// Address in the process that registered it.
    base: u64,
    /// Offset in the region of that address, or [`LOCAL`].
    offset: u64,
    /// Bytes.
    len: u64,
    /// The prefix of a source.
    pub prefix: Prefix,
}

/// The memory can only be used by the process that registered it.
const LOCAL: u64 = u64::MAX;

/// Added to the number of a rendezvous source. No region is so large that these could be offsets.
const SOURCE: u64 = 1 << 63;

impl Handle {
    /// The source that `len` bytes at the owner's `address` belong to, and where in it they begin.
    pub fn source(&self, address: u64, len: u64) -> Option<(u64, u64)> {
        let skip = address.checked_sub(self.base)?;
        let fits = skip.checked_add(len)? <= self.len;
        (self.offset != LOCAL && fits).then_some((self.offset.checked_sub(SOURCE)?, skip))
    }

    /// Offset in the region of `len` bytes at the owner's `address`, if they are registered for others.
    pub fn resolve(&self, address: u64, len: u64) -> Option<u64> {
        let skip = address.checked_sub(self.base)?;
        let fits = skip.checked_add(len)? <= self.len;
        if self.offset >= SOURCE || !fits { None } else { self.offset.checked_add(skip) }
    }
}

/// The copy of a peer's handle that Open MPI has; none for NULL.
///
/// # Safety
/// There is one, if not NULL.
pub unsafe fn read(handle: *const mca_btl_base_registration_handle_t) -> Option<Handle> {
    // SAFETY: the caller vouches for it; Open MPI's copy may lie anywhere.
    (!handle.is_null()).then(|| unsafe { handle.cast::<Handle>().read_unaligned() })
}

/// Registers memory. Others can only reach what lies in our section; for ourselves all memory will do. To one peer that will
/// only read it, other memory can also be exposed by rendezvous: that is how ob1 asks for a long message.
pub unsafe extern "C" fn register_mem(
    _: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    base: *mut c_void,
    size: usize,
    flags: u32,
) -> *mut mca_btl_base_registration_handle_t {
    let mut prefix = Prefix::default();
    let offset = INSTANCE.lock().as_mut().and_then(|Instance { engine, .. }| {
        let offset = engine.endpoint().expose(base.cast::<u8>(), size as u64);
        if flags != ompi::MCA_BTL_REG_FLAG_REMOTE_READ {
            return offset;
        }
        if offset.is_some() {
            engine.read_in_place(size);
            return offset;
        }
        let peer = engine.peer(from_endpoint(endpoint))?;
        // SAFETY: Open MPI keeps the memory until it deregisters it.
        let (source, promised) = unsafe { engine.expose(peer, base.cast::<u8>(), size) };
        prefix = promised;
        Some(SOURCE | source)
    });
    let for_others = ompi::MCA_BTL_REG_FLAG_REMOTE_READ | ompi::MCA_BTL_REG_FLAG_REMOTE_ATOMIC;
    if offset.is_none() && flags & for_others != 0 {
        return ptr::null_mut();
    }
    let handle =
        Handle { base: base.addr() as u64, offset: offset.unwrap_or(LOCAL), len: size as u64, prefix };
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
        if let Some((source, _)) = handle.source(handle.base, 0)
            && let Some(instance) = INSTANCE.lock().as_mut()
        {
            instance.engine.unexpose(source);
        }
    }
    SUCCESS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_resolves_only_what_lies_in_it() {
        let handle = Handle { base: 0x1000, offset: 0x80, len: 0x100, prefix: Prefix::default() };
        assert_eq!(handle.resolve(0x1000, 0x100), Some(0x80));
        assert_eq!(handle.resolve(0x1010, 0xf0), Some(0x90));
        assert_eq!(handle.resolve(0x1010, 0xf1), None);
        assert_eq!(handle.resolve(0xfff, 1), None);
        assert_eq!(handle.resolve(0x1010, u64::MAX), None);
        assert_eq!(Handle { offset: LOCAL, ..handle }.resolve(0x1000, 1), None);
    }
}
