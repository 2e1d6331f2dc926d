//! Reductions of elements whose data begin far from the buffer's address, as those of absolute addresses do.

use std::ffi::{c_int, c_void};
use std::mem::MaybeUninit;

use mpi::ffi;

use crate::check::{Case, Context, Outcome};
use crate::reduction::in_place;
use crate::universe::{distance, int, succeed};

pub(super) const CASES: &[Case] =
    &[Case::new("collectives/far", "operands that begin up to 2^47 bytes from the buffer's address", far)];

/// Bytes from one number to the next, which have no gap of their own there.
const EXTENT: isize = 8;

unsafe extern "C" fn add(left: *mut c_void, inout: *mut c_void, n: *mut c_int, t: *mut ffi::MPI_Datatype) {
    let (mut lower, mut extent, mut first, mut len) = (0, 0, 0, 0);
    // SAFETY: MPI gives `n` elements of a datatype, each of which is a number.
    unsafe {
        succeed(ffi::MPI_Type_get_extent(*t, &raw mut lower, &raw mut extent));
        succeed(ffi::MPI_Type_get_true_extent(*t, &raw mut first, &raw mut len));
        for element in 0..*n as isize {
            let at = element * distance(extent) + distance(first);
            let number = |operand: *mut c_void| operand.wrapping_byte_offset(at).cast::<c_int>();
            *number(inout) += *number(left);
        }
    }
}

/// Numbers that begin so many bytes behind the buffer.
fn numbers(gap: isize, extent: isize) -> ffi::MPI_Datatype {
    let (mut raw, mut new) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: MPI writes the datatypes, or `succeed` does not return; the arrays have an entry.
    unsafe {
        succeed(ffi::MPI_Type_create_hindexed(
            1,
            &1,
            &(gap as ffi::MPI_Aint),
            ffi::RSMPI_INT32_T,
            raw.as_mut_ptr(),
        ));
        let mut raw = raw.assume_init();
        let lower = if extent == EXTENT { gap as ffi::MPI_Aint } else { 0 };
        succeed(ffi::MPI_Type_create_resized(raw, lower, extent as ffi::MPI_Aint, new.as_mut_ptr()));
        succeed(ffi::MPI_Type_free(&raw mut raw));
        let mut new = new.assume_init();
        succeed(ffi::MPI_Type_commit(&raw mut new));
        new
    }
}

fn far(ctx: &Context) -> Outcome {
    // SAFETY: MPI writes the operation, or `succeed` does not return.
    let mut op = unsafe {
        let mut op = MaybeUninit::uninit();
        succeed(ffi::MPI_Op_create(Some(add), 1, op.as_mut_ptr()));
        op.assume_init()
    };
    let (size, me) = (int(ctx.comm.size()), ctx.comm.rank());
    // Longer ones end Open MPI's own components with a signal.
    for count in [1, 2, 16, 500] {
        let mut cells = vec![0 as c_int; 2 * count];
        // Not quite MPI_BOTTOM, which is NULL: where the result goes there, Open MPI's own components lose it.
        let absolute = cells.as_ptr().addr() as isize - 64;
        for gap in [absolute, -2345 * 8, 1 << 20, 1 << 40] {
            // The gap between elements is nothing, or, for a single one, more than there is memory.
            let extents = [EXTENT, 1 << 46];
            for extent in extents.into_iter().take(if count == 1 { 2 } else { 1 }) {
                let mut kind = numbers(gap, extent);
                for root in ctx.comm.ranks().map(Some).chain([None]) {
                    (0..count).for_each(|i| cells[2 * i] = me + int(i));
                    let buffer = cells.as_mut_ptr().cast::<c_void>().wrapping_byte_offset(-gap);
                    let gets = root.is_none_or(|root| root == me);
                    let from = if gets { in_place() } else { buffer };
                    // SAFETY: the buffer has `count` numbers where the datatype says.
                    succeed(unsafe {
                        match root {
                            Some(root) => {
                                ffi::MPI_Reduce(from, buffer, int(count), kind, op, root, ctx.comm.raw())
                            }
                            None => ffi::MPI_Allreduce(from, buffer, int(count), kind, op, ctx.comm.raw()),
                        }
                    });
                    let is_right = |i: usize| cells[2 * i] == size * (size - 1) / 2 + size * int(i);
                    ctx.ensure(!gets || (0..count).all(is_right), || {
                        format!("{count} numbers {gap} bytes behind the buffer, extent {extent}, root {root:?}: {cells:?}")
                    });
                }
                // SAFETY: the datatype was made here.
                succeed(unsafe { ffi::MPI_Type_free(&raw mut kind) });
            }
        }
    }
    // SAFETY: the operation was made here.
    succeed(unsafe { ffi::MPI_Op_free(&raw mut op) });
    Outcome::Done
}
