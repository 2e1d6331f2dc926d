//! Numbers of elements as the series 6.0 gives them: as `size_t`, and arrays of them as the program has them, which may be of
//! `int`.

use std::ffi::c_int;
use std::ptr;

/// How many elements.
pub type Count = usize;

/// A count for each member: the array's address, with the lowest bit set where it is one of `int`.
pub type Counts = isize;

/// A place for each member, counted in elements: as [`Counts`], else of `ptrdiff_t`.
pub type Places = isize;

/// Bytes that a window's displacements count in.
pub type Unit = isize;

/// How many elements.
#[inline]
pub fn non_negative(count: Count) -> usize {
    count
}

/// A member's count.
///
/// # Safety
/// There is one for the member.
#[inline]
pub unsafe fn count_of(counts: Counts, member: usize) -> Count {
    // SAFETY: the caller vouches for it. Both kinds of numbers take up as many bytes as the signed ones.
    unsafe { number(counts, member).cast_unsigned() }
}

/// A member's place.
///
/// # Safety
/// There is one for the member.
#[inline]
pub unsafe fn place_of(places: Places, member: usize) -> isize {
    // SAFETY: the caller vouches for it.
    unsafe { number(places, member) }
}

/// # Safety
/// There is one for the member.
#[inline]
unsafe fn number(array: isize, member: usize) -> isize {
    let at = array.cast_unsigned();
    // SAFETY: the caller vouches for it.
    unsafe {
        match at & 1 {
            0 => *ptr::with_exposed_provenance::<isize>(at).add(member),
            _ => *ptr::with_exposed_provenance::<c_int>(at & !1).add(member) as isize,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_of_both_kinds_are_read() {
        let (ints, words): ([c_int; 2], [isize; 2]) = ([7, -3], [1 << 40, -(1 << 40)]);
        let of_ints = (ints.as_ptr().expose_provenance() | 1).cast_signed();
        let of_words = words.as_ptr().expose_provenance().cast_signed();
        // SAFETY: both arrays have two numbers.
        unsafe {
            assert_eq!((count_of(of_ints, 0), place_of(of_ints, 1)), (7, -3));
            assert_eq!((count_of(of_words, 0), place_of(of_words, 1)), (1 << 40, -(1 << 40)));
        }
    }
}
