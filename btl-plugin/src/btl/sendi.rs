//! sendi: a message without a descriptor.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;
use std::ptr;

use vmshm_messaging::Refused;
use vmshm_transport::{MAX_INLINE, MEDIUM};

use super::prepare::{alloc, pack};
use crate::ompi::{
    self, mca_btl_base_descriptor_t, mca_btl_base_endpoint_t, mca_btl_base_module_t, opal_convertor_t,
};
use crate::process::{Engine, INSTANCE, Instance, briefly, from_endpoint, loss, params, quick};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// Longest payload of a message that one slot of the ring holds with its header, and of one that three slots hold with any.
const SLOT: usize = 8;
const FEW: usize = 72;

/// Longest message of those, bytes with their header: where fewer may go through the ring, [`send_any`] takes the place of [`sendi`].
pub const LONGEST_FEW: usize = 16 + FEW;

/// A function with the arguments of [`sendi`], which tries one of the engine's quick ways, and then another function.
macro_rules! way {
    ($(#[$comment:meta])* $name:ident, $try_send:expr, or $other:ident) => {
        $(#[$comment])*
        ///
        /// # Safety
        /// The arguments are Open MPI's.
        #[inline(never)]
        unsafe extern "C" fn $name(
            module: *mut mca_btl_base_module_t,
            endpoint: *mut mca_btl_base_endpoint_t,
            convertor: *mut opal_convertor_t,
            header: *mut c_void,
            header_size: usize,
            payload_size: usize,
            order: u8,
            flags: u32,
            tag: u8,
            descriptor: *mut *mut mca_btl_base_descriptor_t,
        ) -> c_int {
            let (to, first) = ((endpoint, convertor), (header.cast_const(), header_size));
            // SAFETY: the arguments are Open MPI's.
            unsafe {
                match send_contiguous(to, first, payload_size, tag, $try_send) {
                    Some(true) => SUCCESS,
                    Some(false) => tell(endpoint),
                    None => $other(
                        module,
                        endpoint,
                        convertor,
                        header,
                        header_size,
                        payload_size,
                        order,
                        flags,
                        tag,
                        descriptor,
                    ),
                }
            }
        }
    };
}

way! {
    /// As [`sendi`], of a payload that a slot holds with its header.
    send_slot,
    Engine::try_send_slot,
    or send_any
}

way! {
    /// As [`sendi`], of a payload that a few slots hold with its header.
    send_few,
    Engine::try_send_few,
    or send_long
}

way! {
    /// As [`sendi`], of a payload that may take many slots, or a place of its own.
    send_long,
    |engine, index, tag, header, payload| {
        engine.try_send_long(index, tag, header, payload, params::max_inline())
    },
    or send_any
}

/// A function with the arguments of [`sendi`], which jumps to one of two others by the payload's size.
macro_rules! by_size {
    ($(#[$comment:meta])* $visible:vis $name:ident, $most:ident, $short:ident, $long:ident) => {
        $(#[$comment])*
        ///
        /// # Safety
        /// The arguments are Open MPI's.
        $visible unsafe extern "C" fn $name(
            module: *mut mca_btl_base_module_t,
            endpoint: *mut mca_btl_base_endpoint_t,
            convertor: *mut opal_convertor_t,
            header: *mut c_void,
            header_size: usize,
            payload_size: usize,
            order: u8,
            flags: u32,
            tag: u8,
            descriptor: *mut *mut mca_btl_base_descriptor_t,
        ) -> c_int {
            // A choice without branches, behind which the arguments stay where they are.
            let send = if payload_size <= $most { $short } else { $long };
            // SAFETY: the arguments are Open MPI's.
            unsafe {
                send(
                    module,
                    endpoint,
                    convertor,
                    header,
                    header_size,
                    payload_size,
                    order,
                    flags,
                    tag,
                    descriptor,
                )
            }
        }
    };
}

by_size! {
    /// Sends a message at once, or says that it can't.
    pub sendi, SLOT, send_slot, send_longer
}

by_size! {
    /// As [`sendi`], of a payload that no slot holds.
    send_longer, FEW, send_few, send_long
}

/// Sends a message whose payload is sent as it lies, by one of the engine's quick ways, without the lock; as
/// these, none if it was not sent.
///
/// # Safety
/// All but the last argument are Open MPI's.
#[inline(always)]
unsafe fn send_contiguous(
    (endpoint, convertor): (*mut mca_btl_base_endpoint_t, *mut opal_convertor_t),
    (header, header_size): (*const c_void, usize),
    payload_size: usize,
    tag: u8,
    try_send: impl FnOnce(&mut Engine, usize, u8, &[u8], &[u8]) -> Option<bool>,
) -> Option<bool> {
    // SAFETY: Open MPI gives header_size bytes, and a convertor with payload_size bytes, all of which are sent as they lie. The
    // instance is used for nothing else meanwhile.
    unsafe {
        let data = start(convertor, payload_size)?;
        let Instance { engine, .. } = quick()?;
        let header = std::slice::from_raw_parts(header.cast::<u8>(), header_size);
        let payload = std::slice::from_raw_parts(data, payload_size);
        try_send(engine, from_endpoint(endpoint), ompi::to_wire(tag), header, payload)
    }
}

/// Where `len` bytes lie that are sent as they are; none where they may have to be packed.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes, if that is not 0.
#[inline(always)]
unsafe fn start(convertor: *const opal_convertor_t, len: usize) -> Option<*const u8> {
    if len == 0 {
        return Some(ptr::NonNull::dangling().as_ptr());
    }
    // SAFETY: the caller vouches for it.
    unsafe { ompi::start_without_gaps(convertor) }
}

/// Tells a peer of what was just sent to it.
#[inline(never)]
fn tell(endpoint: *mut mca_btl_base_endpoint_t) -> c_int {
    briefly(|Instance { engine, .. }| engine.tell(from_endpoint(endpoint)));
    SUCCESS
}

/// As [`sendi`], of any message.
///
/// # Safety
/// The arguments are Open MPI's.
#[inline(never)]
pub unsafe extern "C" fn send_any(
    module: *mut mca_btl_base_module_t,
    endpoint: *mut mca_btl_base_endpoint_t,
    convertor: *mut opal_convertor_t,
    header: *mut c_void,
    header_size: usize,
    payload_size: usize,
    order: u8,
    flags: u32,
    tag: u8,
    descriptor: *mut *mut mca_btl_base_descriptor_t,
) -> c_int {
    let (number, tag) = (from_endpoint(endpoint), ompi::to_wire(tag));
    let len = header_size.saturating_add(payload_size);
    // SAFETY: Open MPI gives header_size bytes, and a convertor with payload_size bytes.
    let sent = unsafe {
        let header = std::slice::from_raw_parts(header.cast::<u8>(), header_size);
        if len <= params::max_inline() && fits(number, len) {
            send_inline(number, tag, header, convertor, payload_size)
        } else {
            send_packed(number, tag, header, convertor, payload_size)
        }
    };
    match sent {
        Ok(()) => SUCCESS,
        Err(Refused::Full) => {
            if !descriptor.is_null() {
                // SAFETY: Open MPI gives NULL or a valid pointer, and a convertor that it resets itself.
                unsafe { *descriptor = alloc(module, endpoint, order, len, flags) };
            }
            ompi::OPAL_ERR_OUT_OF_RESOURCE as c_int
        }
        Err(Refused::Lost) => {
            let mut guard = INSTANCE.lock();
            if let Some(peer) = guard.as_ref().and_then(|instance| instance.engine.peer(number)) {
                loss::report(&mut guard, peer);
            }
            if !descriptor.is_null() {
                // SAFETY: Open MPI gives NULL, which this is not, or a valid pointer.
                unsafe { *descriptor = ptr::null_mut() };
            }
            ompi::OPAL_ERR_UNREACH as c_int
        }
    }
}

/// Whether a message should go through the ring itself: a short one always, a longer one while the ring is nearly empty.
/// In a stream of them, fragments let the sender run further ahead.
#[inline]
fn fits(number: usize, len: usize) -> bool {
    len <= MEDIUM
        || briefly(|Instance { engine, .. }| {
            engine.peer(number).is_none_or(|peer| engine.endpoint_mut().is_spacious(peer, len))
        }) == Some(true)
}

/// Sends a message in the ring itself, without any allocation.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes; the header's and these are at most `MAX_INLINE`.
#[inline]
unsafe fn send_inline(
    number: usize,
    tag: u8,
    header: &[u8],
    convertor: *mut opal_convertor_t,
    len: usize,
) -> Result<(), Refused> {
    let mut packed = MaybeUninit::<[u8; MAX_INLINE]>::uninit();
    let payload: &[u8] = if len == 0 {
        &[]
    } else {
        let mut data = ptr::null_mut();
        // SAFETY: the caller vouches for the convertor; len is at most MAX_INLINE, and all of it is packed or sent as
        // it lies.
        unsafe {
            if ompi::vmshm_ompi_contiguous(convertor, &mut data) {
                std::slice::from_raw_parts(data.cast::<u8>(), len)
            } else {
                let to = packed.as_mut_ptr().cast::<u8>();
                let mut done = len;
                if ompi::vmshm_ompi_pack(convertor, to.cast(), &mut done) < 0 || done != len {
                    return Err(Refused::Full);
                }
                std::slice::from_raw_parts(to, len)
            }
        }
    };
    // Where it fails, the lock is taken again.
    briefly(|Instance { engine, .. }| engine.try_send(number, tag, &[header, payload]))
        .ok_or(Refused::Lost)?
}

/// Sends a message in a fragment of our section.
///
/// # Safety
/// `convertor` is Open MPI's and has `len` bytes.
unsafe fn send_packed(
    number: usize,
    tag: u8,
    header: &[u8],
    convertor: *mut opal_convertor_t,
    len: usize,
) -> Result<(), Refused> {
    let (peer, fragment) = {
        let mut instance = INSTANCE.lock();
        let engine = &mut instance.as_mut().ok_or(Refused::Lost)?.engine;
        let peer = engine.peer(number).ok_or(Refused::Lost)?;
        // Something waits already: let Open MPI wait as well.
        if !engine.is_free(peer) || header.len() + len > engine.params().max_message {
            return Err(Refused::Full);
        }
        (peer, engine.fragment(header.len() + len).ok_or(Refused::Full)?)
    };
    let to = fragment.ptr();
    // SAFETY: the fragment has room for both.
    let packed = unsafe {
        ptr::copy_nonoverlapping(header.as_ptr(), to, header.len());
        pack(convertor, to.add(header.len()), len)
    };
    let mut instance = INSTANCE.lock();
    let engine = &mut instance.as_mut().ok_or(Refused::Lost)?.engine;
    if packed != Some(len) {
        engine.free(fragment);
        return Err(Refused::Full);
    }
    engine.send_fragment(peer, tag, fragment, header.len() + len, None).map_err(|unsent| {
        engine.free(unsent.fragment);
        unsent.why
    })
}
