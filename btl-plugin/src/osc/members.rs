//! The processes of a window, and where their memory is.

use std::ffi::c_int;
use std::ptr;

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::memory::Memory;
use super::window::checked;
use crate::ompi::{self, Count, Unit, ompi_communicator_t, ompi_datatype_t};

/// All processes of a window.
pub struct Members {
    /// A duplicate of the user's communicator, freed when this is dropped.
    pub comm: *mut ompi_communicator_t,
    /// Which of them this one is.
    pub me: usize,
    /// Each of them.
    pub all: Vec<Member>,
    /// Memory that the window allocated, given back when this is dropped.
    pub _memory: Vec<Memory>,
}

impl Drop for Members {
    fn drop(&mut self) {
        if !self.comm.is_null() {
            // SAFETY: the communicator is ours, and no longer used.
            unsafe { ompi::vmshm_osc_end(self.comm) };
        }
    }
}

/// An allgather of one value of each process.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// `comm` is a communicator of Open MPI with `count` processes, all of which do the same.
pub unsafe fn gather<T: FromBytes + IntoBytes + Immutable + Clone>(
    comm: *mut ompi_communicator_t,
    mine: &T,
    count: usize,
) -> Result<Vec<T>, c_int> {
    let mut all = vec![T::new_zeroed(); count];
    // SAFETY: the caller vouches for the communicator; there is room for what each process sends.
    let code = unsafe {
        let len = size_of::<T>() as c_int;
        ompi::vmshm_osc_exchange(comm, mine.as_bytes().as_ptr().cast(), all.as_mut_ptr().cast(), len)
    };
    checked(code)?;
    Ok(all)
}

#[cfg(test)]
impl Members {
    /// Processes without a communicator; this one is the first.
    pub fn over(all: Vec<Member>) -> Self {
        Self { comm: ptr::null_mut(), me: 0, all, _memory: Vec::new() }
    }
}

impl Members {
    /// The place of a process among all, from its rank.
    ///
    /// # Errors
    /// There is none.
    #[inline]
    pub fn index(&self, rank: c_int) -> Result<usize, c_int> {
        let index = usize::try_from(rank).ok().filter(|index| *index < self.all.len());
        index.ok_or(ompi::OPAL_ERR_BAD_PARAM)
    }
}

/// A process of a window.
#[derive(Debug, Clone, Copy)]
pub struct Member {
    /// Its memory; NULL where there is none, or only it can access it.
    pub base: *mut u8,
    /// Whether this process can read the memory.
    pub is_mapped: bool,
    /// Bytes.
    pub len: usize,
    /// Bytes that displacements count in.
    pub unit: Unit,
    /// Words of its own in its section, for the others.
    pub words: *mut u8,
}

impl Member {
    /// Takes displacements for addresses, which only the process itself knows to be right.
    pub fn becomes_dynamic(&mut self) {
        *self = Self { base: ptr::null_mut(), is_mapped: false, len: usize::MAX, unit: 1, ..*self };
    }

    /// Where a displacement leads, if the bytes from `first` on, counted from there, are the window's.
    #[inline]
    pub fn at(&self, displacement: isize, first: isize, len: usize) -> Result<*mut u8, c_int> {
        #[allow(clippy::unnecessary_cast, reason = "in Open MPI 6.0 the unit has this type")]
        let unit = self.unit as isize;
        let at = displacement.checked_mul(unit).ok_or(OUT_OF_RANGE)?;
        let start =
            at.checked_add(first).and_then(|start| usize::try_from(start).ok()).ok_or(OUT_OF_RANGE)?;
        let fits = start <= self.len && len <= self.len - start;
        if fits || len == 0 { Ok(self.base.wrapping_offset(at)) } else { Err(OUT_OF_RANGE) }
    }

    /// Where elements of a datatype are.
    ///
    /// # Safety
    /// The datatype is Open MPI's.
    #[inline]
    pub unsafe fn elements(
        &self,
        displacement: isize,
        count: Count,
        datatype: *mut ompi_datatype_t,
    ) -> Result<*mut u8, c_int> {
        let mut first = 0;
        // SAFETY: the caller vouches for it.
        let len = unsafe { ompi::vmshm_osc_span(count, datatype, &mut first) };
        self.at(displacement, first, len)
    }
}

/// The access leaves the window.
pub const OUT_OF_RANGE: c_int = ompi::OMPI_ERR_RMA_RANGE as c_int;
