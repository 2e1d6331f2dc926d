//! All processes of a new window meet: each allocates what the window needs of it, and learns where the others' memory is.

use std::ffi::{c_int, c_void};
use std::ptr;

use vmshm_transport::abi::{EndpointId, EndpointName};
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::members::{Member, Members, gather};
use super::memory::Memory;
use super::window::checked;
use crate::ompi::{self, Unit, ompi_communicator_t, opal_info_t};
use crate::process::INSTANCE;

/// A process's memory, as it tells the others.
#[repr(C)]
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable)]
struct Exposed {
    /// 1 where the memory is where it may be, and the process is ready.
    is_ready: u64,
    /// Offset in the region of the first byte, or [`ELSEWHERE`].
    offset: u64,
    /// Bytes, of the window and of all parts of it that lie in this memory.
    len: u64,
    held: u64,
    /// Offset in the region of its words.
    words: u64,
    /// Displacement unit, bytes.
    unit: u64,
}

/// The memory is not in the region.
const ELSEWHERE: u64 = u64::MAX;

/// A window as `MPI_Win_create` and its like ask for it.
pub struct Wanted {
    /// The communicator of the window's processes.
    pub comm: *mut ompi_communicator_t,
    /// Where the user's memory is, or is to be told; NULL for a dynamic window.
    pub base: *mut *mut c_void,
    /// Bytes.
    pub size: usize,
    /// Displacement unit, bytes.
    pub unit: Unit,
    /// `MPI_WIN_FLAVOR_...`
    pub flavor: u32,
    /// The user's hints.
    pub info: *mut opal_info_t,
}

/// Meets all processes, each with so many bytes of words, all zero; or nobody if some process is not `ready`, has no room for
/// its words, or has its memory outside its section and that is not to be `anywhere`.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
pub unsafe fn meet(
    wanted: &Wanted,
    names: &[EndpointName],
    words: usize,
    ready: bool,
    anywhere: bool,
) -> Result<Option<Members>, c_int> {
    // SAFETY: the caller vouches for all.
    let (me, parts, given) = unsafe {
        let me = usize::try_from(ompi::vmshm_coll_rank(wanted.comm)).unwrap_or(0);
        let parts = if wanted.flavor == ompi::MPI_WIN_FLAVOR_SHARED {
            let mine = [wanted.size as u64, ompi::vmshm_osc_is_apart(wanted.info).into()];
            gather(wanted.comm, &mine, names.len())?
        } else {
            Vec::new()
        };
        let given = match wanted.flavor {
            ompi::MPI_WIN_FLAVOR_CREATE => Some((*wanted.base).cast::<u8>()),
            // There is no base, nor room to tell one.
            ompi::MPI_WIN_FLAVOR_DYNAMIC => Some(ptr::null_mut()),
            _ => None,
        };
        (me, parts, given)
    };
    // The parts of a joint window follow each other, in the section of the first process. They are apart where all want that.
    let is_joint = parts.iter().any(|[_, is_apart]| *is_apart == 0);
    let held = if is_joint {
        let all = parts.iter().try_fold(0u64, |sum, [size, _]| sum.checked_add(*size));
        if me == 0 { all.and_then(|all| usize::try_from(all).ok()) } else { Some(0) }
    } else {
        Some(wanted.size)
    };
    let mut own_words = Memory::for_words(words);
    let mut memory = match held {
        Some(held) if given.is_none() && held > 0 => Memory::for_user(held, anywhere),
        _ => None,
    };
    let start = given.or_else(|| memory.as_mut().map(Memory::start));
    let expose = |address: *mut u8, len: usize| {
        INSTANCE.lock().as_ref()?.engine.endpoint().expose(address, len as u64)
    };
    let offset = match held {
        Some(0) => Some(0),
        Some(held) => start.and_then(|start| expose(start, held).or(anywhere.then_some(ELSEWHERE))),
        None => None,
    };
    let words_offset = own_words.as_mut().and_then(|taken| {
        // SAFETY: so many bytes were taken, and nobody knows of them.
        unsafe { taken.start().write_bytes(0, words) };
        expose(taken.start(), words)
    });
    let mine = Exposed {
        is_ready: u64::from(ready && offset.is_some() && words_offset.is_some()),
        offset: offset.unwrap_or(0),
        len: wanted.size as u64,
        held: held.unwrap_or(0) as u64,
        words: words_offset.unwrap_or(0),
        unit: wanted.unit.unsigned_abs() as u64,
    };
    // SAFETY: the caller vouches for the communicator, and that all its processes call this.
    let all: Vec<Exposed> = unsafe { gather(wanted.comm, &mine, names.len())? };
    if all.iter().any(|exposed| exposed.is_ready != 1) {
        return Ok(None);
    }
    let mut all = members(&all, names, is_joint, words, anywhere);
    if let (ELSEWHERE, Some(all), Some(start)) = (mine.offset, &mut all, start) {
        all[me] = Member { base: start, is_mapped: true, ..all[me] };
    }
    // All decline together if one finds something wrong with another one's memory.
    // SAFETY: the caller vouches for the communicator, and that all its processes call this.
    let agreed = unsafe { gather(wanted.comm, &u64::from(all.is_some()), names.len())? };
    let Some(all) = all.filter(|_| agreed.iter().all(|agreed| *agreed == 1)) else { return Ok(None) };
    let mut comm = ptr::null_mut();
    // SAFETY: the caller vouches for the communicator and for `base`, which has room unless the memory was `given`.
    unsafe {
        checked(ompi::vmshm_osc_dup(wanted.comm, &mut comm))?;
        if given.is_none() {
            *wanted.base = all[me].base.cast();
        }
    }
    let memory = own_words.into_iter().chain(memory).collect();
    Ok(Some(Members { comm, me, all, _memory: memory }))
}

/// All processes; None where some memory is not in its process's section, unless it may be `anywhere`.
fn members(
    all: &[Exposed],
    names: &[EndpointName],
    is_joint: bool,
    words: usize,
    anywhere: bool,
) -> Option<Vec<Member>> {
    let instance = INSTANCE.lock();
    let endpoint = instance.as_ref()?.engine.endpoint();
    let address = |rank: usize, offset: u64, len: u64| {
        let (section, _) = endpoint.region().place(EndpointId(names[rank].id))?;
        section.contains(offset, len).then(|| endpoint.address(offset, len))
    };
    let mut before = 0u64;
    let member = |(rank, exposed): (usize, &Exposed)| {
        let words = address(rank, exposed.words, words as u64).filter(|at| at.cast::<u64>().is_aligned())?;
        let is_mapped = !anywhere || exposed.offset != ELSEWHERE;
        let base = if is_joint {
            let offset = all[0].offset.checked_add(before)?;
            before = before.checked_add(exposed.len).filter(|end| *end <= all[0].held)?;
            if all[0].held == 0 { ptr::null_mut() } else { address(0, offset, exposed.len)? }
        } else if exposed.len == 0 || !is_mapped {
            ptr::null_mut()
        } else {
            address(rank, exposed.offset, exposed.len)?
        };
        Some(Member {
            base,
            is_mapped,
            len: usize::try_from(exposed.len).ok()?,
            unit: Unit::try_from(exposed.unit).ok()?,
            words,
        })
    };
    all.iter().enumerate().map(member).collect()
}
