//! Reductions of all kinds, and what each must give: computed here by `MPI_Reduce_local`, operand by operand.

use std::ffi::{CStr, c_int, c_void};
use std::mem::MaybeUninit;

use mpi::ffi;

use crate::datatype::Datatype;
use crate::payload::Random;
use crate::predefined::{OPERATIONS, PAIRS, Predefined, operation, symbol};
use crate::universe::{SUCCESS, distance, int, succeed};

/// Makes the packed bytes of one operand.
#[derive(Clone, Copy, Debug)]
enum Operand {
    By(fn(&mut Random) -> Vec<u8>),
    Of(Predefined),
}

/// An operation with a datatype that it is defined for, and operands on which the order of evaluation can't show.
#[derive(Debug)]
pub struct Reduction {
    /// For messages about it.
    pub name: String,
    /// The datatype of its operands.
    pub datatype: Datatype,
    op: ffi::MPI_Op,
    is_ours: bool,
    operand: Operand,
}

/// An element of the operation that does not commute: a linear map, x -> a x + b, of 32-bit numbers.
fn compose(left: u64, right: u64) -> u64 {
    let (a1, b1, a2, b2) = (left as u32, (left >> 32) as u32, right as u32, (right >> 32) as u32);
    u64::from(a1.wrapping_mul(a2)) | u64::from(a1.wrapping_mul(b2).wrapping_add(b1)) << 32
}

/// Applies `join` to 64-bit numbers, which lie at the datatype's first byte, and also 24 bytes behind that if it has two.
///
/// # Safety
/// MPI gives `count` elements of one of the datatypes of [`Reduction::random`].
unsafe fn each(
    left: *mut c_void,
    inout: *mut c_void,
    count: *mut c_int,
    datatype: *mut ffi::MPI_Datatype,
    join: fn(u64, u64) -> u64,
) {
    let (mut size, mut lower, mut extent) = (0, 0, 0);
    // SAFETY: MPI gives valid pointers, and elements as the datatype says.
    unsafe {
        succeed(ffi::MPI_Type_size(*datatype, &raw mut size));
        succeed(ffi::MPI_Type_get_extent(*datatype, &raw mut lower, &raw mut extent));
        let extent = distance(extent);
        for element in 0..*count as isize {
            for number in 0..size as isize / 8 {
                let at = element * extent + number * if extent == size as isize { 8 } else { 24 };
                let (left, inout) = (left.byte_offset(at).cast::<u64>(), inout.byte_offset(at).cast::<u64>());
                inout.write_unaligned(join(left.read_unaligned(), inout.read_unaligned()));
            }
        }
    }
}

unsafe extern "C" fn composed(l: *mut c_void, io: *mut c_void, n: *mut c_int, t: *mut ffi::MPI_Datatype) {
    // SAFETY: MPI keeps the contract.
    unsafe { each(l, io, n, t, compose) }
}

unsafe extern "C" fn mixed(l: *mut c_void, io: *mut c_void, n: *mut c_int, t: *mut ffi::MPI_Datatype) {
    // SAFETY: MPI keeps the contract.
    unsafe { each(l, io, n, t, |a, b| a.wrapping_add(b).wrapping_add(1)) }
}

/// `MPI_IN_PLACE`, which C has as a macro: it is 1 for Open MPI, and -1 for MPICH.
pub fn in_place() -> *mut c_void {
    let is_open_mpi = symbol(c"ompi_mpi_comm_world").is_some();
    std::ptr::without_provenance_mut(if is_open_mpi { 1 } else { usize::MAX })
}

fn word(random: &mut Random) -> Vec<u8> {
    random.next_u64().to_le_bytes().to_vec()
}

fn half_word(random: &mut Random) -> Vec<u8> {
    random.next_u64().to_le_bytes()[..4].to_vec()
}

fn exact_double(random: &mut Random) -> Vec<u8> {
    (random.below(4096) as f64 / 8.0 - 256.0).to_le_bytes().to_vec()
}

fn two_words(random: &mut Random) -> Vec<u8> {
    [word(random), word(random)].concat()
}

impl Reduction {
    /// One chosen at random.
    pub fn random(random: &mut Random) -> Reduction {
        let kind = random.below(16);
        Self::of_kind(kind, random)
    }

    /// One that `MPI_Accumulate` has too: on one of its own numbers, by one of its own operations. Open MPI's components have none
    /// on most pairs.
    pub fn of_numbers(random: &mut Random, with_pairs: bool) -> Reduction {
        match random.below(if with_pairs { 10 } else { 8 }) {
            kind if kind < 8 => Self::of_kind(kind, random),
            kind => Self::predefined(&PAIRS[random.below(PAIRS.len())], OPERATIONS[kind + 2]),
        }
    }

    /// One of MPI's operations on one of its datatypes.
    ///
    /// # Panics
    /// This is not Open MPI.
    pub fn predefined(of: &Predefined, op: &CStr) -> Reduction {
        let (datatype, op_name) = (of.datatype(), op.to_string_lossy());
        let name = format!("{op_name} of {}", of.name.to_string_lossy());
        Reduction { name, datatype, op: operation(op), is_ours: false, operand: Operand::Of(*of) }
    }

    /// Bytes of elements of which one comes each `stride` bytes, without those that mean nothing.
    pub fn meaning(&self, bytes: &[u8], stride: usize) -> Vec<u8> {
        let Operand::Of(of) = &self.operand else { return bytes.to_vec() };
        let padding = of.padding();
        let is_padding = |at: usize| padding.contains(&(at % stride));
        bytes.iter().enumerate().map(|(at, byte)| if is_padding(at) { 0 } else { *byte }).collect()
    }

    /// Whether the operation is defined for the datatype.
    pub fn is_defined(&self) -> bool {
        let (from, mut to) = (vec![0_u8; self.datatype.span(1)], vec![0_u8; self.datatype.span(1)]);
        // SAFETY: both have room for an element.
        let code = unsafe {
            let (from, to) = (from.as_ptr().cast(), to.as_mut_ptr().cast());
            ffi::MPI_Reduce_local(from, to, 1, self.datatype.raw(), self.op)
        };
        code == SUCCESS
    }

    fn of_kind(kind: usize, random: &mut Random) -> Reduction {
        // SAFETY: constants of the MPI library.
        let (name, op, datatype, operand): (&str, ffi::MPI_Op, Datatype, fn(&mut Random) -> _) = unsafe {
            match kind {
                0 => ("sum of i32", ffi::RSMPI_SUM, Datatype::i32(), half_word),
                1 => ("product of i64", ffi::RSMPI_PROD, Datatype::i64(), word),
                2 => ("maximum of i32", ffi::RSMPI_MAX, Datatype::i32(), half_word),
                3 => ("minimum of f64", ffi::RSMPI_MIN, Datatype::f64(), exact_double),
                4 => ("sum of f64", ffi::RSMPI_SUM, Datatype::f64(), exact_double),
                5 => {
                    ("exclusive or of bytes", ffi::RSMPI_BXOR, Datatype::byte(), |r| vec![r.next_u64() as u8])
                }
                6 => ("or of i64", ffi::RSMPI_BOR, Datatype::i64(), word),
                7 => ("logical and of i32", ffi::RSMPI_LAND, Datatype::i32(), |r| {
                    int(r.below(2)).to_le_bytes().to_vec()
                }),
                8 | 9 if symbol(OPERATIONS[0]).is_some() => {
                    return Self::predefined(&PAIRS[4], OPERATIONS[kind + 2]);
                }
                8 | 9 => return Self::random(random),
                _ => return Self::of_ours(random),
            }
        };
        Reduction { name: name.into(), datatype, op, is_ours: false, operand: Operand::By(operand) }
    }

    /// A function of ours, on words that may have gaps between them.
    fn of_ours(random: &mut Random) -> Reduction {
        let commutes = random.below(3) == 0;
        let word_type = Datatype::i64();
        let (shape, datatype, operand): (&str, Datatype, fn(&mut Random) -> _) = match random.below(5) {
            0 => ("words", word_type, word),
            1 => ("pairs of words", Datatype::contiguous(2, &word_type), two_words),
            2 => ("words with gaps", Datatype::resized(24, &word_type), word),
            3 => ("pairs with a gap within", Datatype::vector(2, 1, 3, &word_type), two_words),
            _ => {
                let fields = [(0, 1, &word_type), (24, 1, &word_type)];
                ("records", Datatype::record(&fields, 40), two_words)
            }
        };
        let function: ffi::MPI_User_function = Some(if commutes { mixed } else { composed });
        let mut op = MaybeUninit::uninit();
        // SAFETY: MPI writes the operation, or `succeed` does not return.
        let op = unsafe {
            succeed(ffi::MPI_Op_create(function, c_int::from(commutes), op.as_mut_ptr()));
            op.assume_init()
        };
        let name = format!("{} {shape}", if commutes { "mix of" } else { "composition of" });
        Reduction { name, datatype, op, is_ours: true, operand: Operand::By(operand) }
    }

    /// MPI's handle.
    pub fn raw(&self) -> ffi::MPI_Op {
        self.op
    }

    /// The operation that puts an operand in place of what was there, or that leaves it.
    ///
    /// # Panics
    /// This is not Open MPI.
    pub fn replacing(&self, is_no_op: bool) -> ffi::MPI_Op {
        operation(if is_no_op { c"ompi_mpi_op_no_op" } else { c"ompi_mpi_op_replace" })
    }

    /// The packed bytes of so many operands.
    pub fn operands(&self, random: &mut Random, count: usize) -> Vec<u8> {
        let one = |random: &mut Random| match self.operand {
            Operand::By(make) => make(random),
            Operand::Of(datatype) => datatype.operand(random),
        };
        (0..count).flat_map(|_| one(random)).collect()
    }

    /// So many operands as they lie in memory.
    pub fn in_memory(&self, random: &mut Random, count: usize) -> Vec<u8> {
        let mut memory = vec![0; count * self.datatype.extent()];
        self.datatype.unpack(count, &self.operands(random, count), &mut memory);
        memory
    }

    /// Joins packed operands of all ranks in their order; packed again.
    pub fn joined(&self, operands: &[Vec<u8>], count: usize) -> Vec<u8> {
        let memory = |packed: &[u8]| {
            let mut memory = vec![0; self.datatype.span(count)];
            self.datatype.unpack(count, packed, &mut memory);
            memory
        };
        let mut result = memory(operands.last().expect("a rank"));
        for left in operands.iter().rev().skip(1) {
            let left = memory(left);
            let (from, to) = (left.as_ptr().cast(), result.as_mut_ptr().cast());
            // SAFETY: both have room for `count` elements.
            succeed(unsafe { ffi::MPI_Reduce_local(from, to, int(count), self.datatype.raw(), self.op) });
        }
        self.datatype.pack(count, &result)
    }
}

impl Drop for Reduction {
    fn drop(&mut self) {
        if self.is_ours {
            // SAFETY: the operation was created here.
            succeed(unsafe { ffi::MPI_Op_free(&raw mut self.op) });
        }
    }
}
