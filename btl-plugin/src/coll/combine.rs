//! Open MPI's operations on bytes.

use std::ffi::c_void;
use std::ptr;

use vmshm_transport::collective::Combine;
use vmshm_transport::copy_from_shared;

use super::data::Shape;
use crate::ompi::{self, ompi_op_t};

/// An operation on elements of a datatype.
pub struct Operation<'a> {
    op: *mut ompi_op_t,
    shape: &'a Shape,
    /// Whether it is one of MPI's own on numbers, once that was asked: who only gives an operand need not know.
    is_intrinsic: Option<bool>,
    /// Private copies of operands.
    left: Vec<u128>,
    right: Vec<u128>,
}

impl<'a> Operation<'a> {
    /// # Safety
    /// `op` is an operation of Open MPI that is defined for elements of this shape, and outlives this value.
    #[inline]
    pub unsafe fn new(op: *mut ompi_op_t, shape: &'a Shape) -> Self {
        Self { op, shape, is_intrinsic: None, left: Vec::new(), right: Vec::new() }
    }

    /// Whether operands may be looked at where they lie.
    #[inline]
    fn is_intrinsic(&mut self) -> bool {
        let (op, shape) = (self.op, self.shape);
        *self.is_intrinsic.get_or_insert_with(|| {
            // SAFETY: who made this vouches for both.
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
        (count, unsafe { Shape::new(self.shape.datatype(), count as i32) })
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

/// Room for elements of this shape, aligned for any number; returns where the first of them has its origin. There is room
/// for whole extents: a function may copy its last element with the padding behind it.
fn room(buffer: &mut Vec<u128>, shape: &Shape, count: usize) -> *mut c_void {
    const WORD: usize = size_of::<u128>();
    let layout = shape.layout();
    let before = layout.gap.min(0).unsigned_abs().next_multiple_of(WORD);
    let extents = layout.extent.unsigned_abs() * count;
    let behind = layout.gap.max(0).unsigned_abs() + shape.span().max(extents);
    let words = (before + behind).div_ceil(WORD);
    if buffer.len() < words {
        buffer.resize(words, 0);
    }
    buffer.as_mut_ptr().wrapping_byte_add(before).cast()
}

impl Combine for Operation<'_> {
    #[inline]
    fn element(&self) -> usize {
        self.shape.element()
    }

    #[inline]
    fn get_ready(&mut self) {
        self.is_intrinsic();
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
            let one = room(&mut self.left, &shape, count);
            // Asked of the whole operation's shape, whose result is where `inout` lies: a single element is always called
            // contiguous, be it padded or not, and packed ones have no room for their padding.
            if self.shape.is_contiguous() {
                let gap = shape.layout().gap;
                copy_from_shared(left, one.wrapping_byte_offset(gap).cast(), len);
                self.call(one, inout.wrapping_offset(-gap).cast(), count);
                return;
            }
            let other = room(&mut self.right, &shape, count);
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
