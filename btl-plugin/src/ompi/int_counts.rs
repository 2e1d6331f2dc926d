//! Numbers of elements as the series up to 5.0 give them: as `int`.

use std::ffi::c_int;

/// How many elements.
pub type Count = c_int;

/// A count for each member.
pub type Counts = *const c_int;

/// A place for each member, counted in elements.
pub type Places = *const c_int;

/// Bytes that a window's displacements count in.
pub type Unit = c_int;

/// How many elements, or none where the number makes no sense.
#[inline]
pub fn non_negative(count: Count) -> usize {
    usize::try_from(count).unwrap_or(0)
}

/// A member's count.
///
/// # Safety
/// There is one for the member.
#[inline]
pub unsafe fn count_of(counts: Counts, member: usize) -> Count {
    // SAFETY: the caller vouches for it.
    unsafe { *counts.add(member) }
}

/// A member's place.
///
/// # Safety
/// There is one for the member.
#[inline]
pub unsafe fn place_of(places: Places, member: usize) -> isize {
    // SAFETY: the caller vouches for it.
    unsafe { *places.add(member) as isize }
}
