//! Open MPI's operations on bytes.

use std::ffi::c_void;
use std::ptr;

use vmshm_transport::collective::Combine;
use vmshm_transport::copy_from_shared;

use super::datatype::Shape;
use crate::ompi::{self, Count, ompi_op_t};

/// An operation on elements of a datatype.
pub struct Operation<'a> {
    op: *mut ompi_op_t,
    shape: &'a Shape,
    /// Whether it is one of MPI's own on numbers, once that was asked: a member that only gives an operand need not know.
    is_intrinsic: Option<bool>,
    /// Private copies of operands.
    left: Room,
    right: Room,
}

impl<'a> Operation<'a> {
    /// # Safety
    /// `op` is an operation of Open MPI that is defined for elements of this shape, and outlives this value.
    #[inline]
    pub unsafe fn new(op: *mut ompi_op_t, shape: &'a Shape) -> Self {
        Self { op, shape, is_intrinsic: None, left: Room::default(), right: Room::default() }
    }

    /// Whether operands may be looked at where they lie.
    #[inline]
    fn is_intrinsic(&mut self) -> bool {
        let (op, shape) = (self.op, self.shape);
        *self.is_intrinsic.get_or_insert_with(|| {
            // SAFETY: the caller of `new` vouches for both.
            shape.is_contiguous() && unsafe { ompi::vmshm_coll_is_intrinsic(op, shape.datatype()) }
        })
    }

    /// So many elements.
    ///
    /// # Safety
    /// Always sound: the datatype is the shape's.
    fn elements(&self, len: usize) -> (usize, Shape) {
        let count = len / self.shape.element();
        // SAFETY: the shape's datatype is one of Open MPI.
        (count, unsafe { Shape::new(self.shape.datatype(), count as Count) })
    }

    /// Makes room for private copies of `most` bytes.
    #[cold]
    fn reserve(&mut self, most: usize) -> bool {
        let (_, shape) = self.elements(most);
        self.left.reserve(&shape) && (self.shape.is_contiguous() || self.right.reserve(&shape))
    }

    /// Calls the operation on elements that lie in memory as the datatype says.
    ///
    /// # Safety
    /// Both operands have `count` elements of the datatype.
    unsafe fn call(&self, left: *const c_void, inout: *mut c_void, count: usize) {
        // SAFETY: the caller vouches for the operands, `new` for the rest.
        unsafe { ompi::vmshm_coll_join(self.op, left, inout, count, self.shape.datatype()) }
    }
}

/// Memory for elements of a shape, wherever the shape says that their data begin.
#[derive(Default)]
pub(super) struct Room {
    words: Vec<u128>,
    /// Where the first byte of data lies in it.
    first: usize,
}

impl Room {
    /// Makes room for all elements of a shape; false where there is not so much memory.
    pub(super) fn reserve(&mut self, shape: &Shape) -> bool {
        const WORD: usize = size_of::<u128>();
        let (gap, extent, span) = (shape.layout().gap, shape.layout().extent.unsigned_abs(), shape.span());
        // A function may copy its elements whole, with the padding on both sides; but none copies more than there is memory.
        [extent, 0].into_iter().any(|padding| {
            let place = || {
                // As aligned as the program's own.
                let first = padding.checked_next_multiple_of(WORD)? + gap.rem_euclid(WORD as isize) as usize;
                Some((first, first.checked_add(span)?.checked_add(padding)?))
            };
            place().is_some_and(|(first, bytes)| {
                self.first = first;
                self.words.try_reserve_exact(bytes.div_ceil(WORD)).is_ok()
            })
        })
    }

    /// Where the first byte of data lies.
    fn first(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast::<u8>().wrapping_add(self.first)
    }

    /// The address of the buffer whose data lie here: it may itself be far outside, and is never looked at.
    pub(super) fn buffer(&mut self, shape: &Shape) -> *mut c_void {
        self.first().wrapping_offset(shape.layout().gap.wrapping_neg()).cast()
    }
}

impl Combine for Operation<'_> {
    #[inline]
    fn element(&self) -> usize {
        self.shape.element()
    }

    #[inline]
    fn get_ready(&mut self, most: usize) -> bool {
        self.is_intrinsic() || self.reserve(most)
    }

    #[inline]
    unsafe fn join(&mut self, left: *const u8, inout: *mut u8, len: usize) {
        if self.is_intrinsic() {
            // SAFETY: the operands have whole elements that lie one after another.
            return unsafe { self.call(left.cast(), inout.cast(), len / self.shape.element()) };
        }
        let (count, shape) = self.elements(len);
        // SAFETY: the buffers have room for what is put there, and the operands have `len` bytes.
        unsafe {
            // A user's function may look twice, and must see the same.
            // Asked of the whole operation's shape, whose result is where `inout` lies: a single element is always called
            // contiguous, be it padded or not, and packed ones have no room for their padding.
            if self.shape.is_contiguous() {
                copy_from_shared(left, self.left.first(), len);
                let gap = shape.layout().gap;
                let (one, other) = (self.left.buffer(&shape), inout.wrapping_offset(gap.wrapping_neg()));
                self.call(one, other.cast(), count);
                return;
            }
            let (one, other) = (self.left.buffer(&shape), self.right.buffer(&shape));
            // These fail only where the lengths do not agree.
            let _ = shape.unpack(one, left);
            let _ = shape.unpack(other, inout);
            self.call(one, other, count);
            let _ = shape.pack(other, inout);
        }
    }

    #[inline]
    unsafe fn join_to(&mut self, left: *const u8, right: *const u8, out: *mut u8, len: usize) {
        if self.is_intrinsic() {
            let count = len / self.shape.element();
            // SAFETY: the operands have whole elements that lie one after another.
            return unsafe {
                let (left, right, out) = (left.cast(), right.cast(), out.cast());
                ompi::vmshm_coll_join_to(self.op, left, right, out, count, self.shape.datatype());
            };
        }
        // SAFETY: the caller vouches for the operands.
        unsafe {
            if !ptr::eq(right, out) {
                copy_from_shared(right, out, len);
            }
            self.join(left, out, len);
        }
    }
}
