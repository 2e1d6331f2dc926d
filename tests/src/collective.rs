//! Collective operations on slices.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use crate::buffer::Buffer;
use crate::comm::{Comm, Rank};
use crate::datatype::Datatype;
use crate::request::Pending;
use crate::universe::{int, succeed};

/// A number type that MPI can reduce.
pub trait Number: Copy + Default + PartialEq + std::fmt::Debug {
    /// MPI's datatype for it.
    fn datatype() -> ffi::MPI_Datatype;
    /// A small number from random bits: sums of many stay exact.
    fn from_bits(bits: u64) -> Self;
    /// The result that MPI should compute for `a` and `b`.
    fn combine(op: Op, a: Self, b: Self) -> Self;
}

/// The reductions that these tests use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// `MPI_SUM`.
    Sum,
    /// `MPI_MAX`.
    Max,
    /// `MPI_MIN`.
    Min,
}

/// All reductions.
pub const OPS: [Op; 3] = [Op::Sum, Op::Max, Op::Min];

impl Op {
    /// MPI's handle.
    pub fn raw(self) -> ffi::MPI_Op {
        // SAFETY: constants of the MPI library.
        unsafe {
            match self {
                Op::Sum => ffi::RSMPI_SUM,
                Op::Max => ffi::RSMPI_MAX,
                Op::Min => ffi::RSMPI_MIN,
            }
        }
    }
}

macro_rules! number {
    ($type:ty, $handle:ident, $bits:ident => $from:expr) => {
        impl Number for $type {
            fn datatype() -> ffi::MPI_Datatype {
                // SAFETY: a constant of the MPI library.
                unsafe { ffi::$handle }
            }
            fn from_bits($bits: u64) -> Self {
                $from
            }
            fn combine(op: Op, a: Self, b: Self) -> Self {
                match op {
                    Op::Sum => a + b,
                    Op::Max => {
                        if a > b {
                            a
                        } else {
                            b
                        }
                    }
                    Op::Min => {
                        if a < b {
                            a
                        } else {
                            b
                        }
                    }
                }
            }
        }
    };
}

// 20 bits each, so that a sum over 64 ranks fits the smallest of them and is exact in a double.
number!(i32, RSMPI_INT32_T, bits => (bits & 0xf_ffff) as i32 - 0x8_0000);
number!(i64, RSMPI_INT64_T, bits => (bits & 0xf_ffff) as i64 - 0x8_0000);
number!(f64, RSMPI_DOUBLE, bits => (bits & 0xf_ffff) as f64 / 16.0 - 1000.0);

// The address of an empty slice may be any number, also the one that means MPI_IN_PLACE.

fn read<T>(data: &[T]) -> *const c_void {
    if data.is_empty() { std::ptr::null() } else { data.as_ptr().cast() }
}

fn write<T>(data: &mut [T]) -> *mut c_void {
    if data.is_empty() { std::ptr::null_mut() } else { data.as_mut_ptr().cast() }
}

fn byte() -> ffi::MPI_Datatype {
    // SAFETY: a constant of the MPI library.
    unsafe { ffi::RSMPI_UINT8_T }
}

/// Lengths of parts that lie one behind another, and where each begins, as MPI wants them.
fn layout(lengths: &[usize], all: usize) -> (Vec<c_int>, Vec<c_int>) {
    let mut end = 0;
    let starts = lengths
        .iter()
        .map(|length| {
            let start = int(end);
            end += length;
            start
        })
        .collect();
    assert!(end <= all, "parts of {end} bytes in a buffer of {all}");
    (lengths.iter().map(|&length| int(length)).collect(), starts)
}

impl Comm {
    /// Waits until all members have come here.
    pub fn barrier(&self) {
        // SAFETY: the communicator is valid.
        succeed(unsafe { ffi::MPI_Barrier(self.raw()) });
    }

    /// Starts a barrier.
    pub fn start_barrier(&self) -> Pending {
        Pending::start(Buffer::new(0), |_, request| {
            // SAFETY: the communicator is valid, MPI writes the request.
            unsafe { ffi::MPI_Ibarrier(self.raw(), request) }
        })
    }

    /// Copies `root`'s bytes to all.
    pub fn broadcast(&self, data: &mut [u8], root: Rank) {
        let count = int(data.len());
        // SAFETY: the bytes are `data`'s.
        succeed(unsafe { ffi::MPI_Bcast(write(data), count, byte(), root, self.raw()) });
    }

    /// Starts a broadcast.
    pub fn start_broadcast(&self, buffer: Buffer, root: Rank) -> Pending {
        Pending::start(buffer, |data, request| {
            let count = int(data.len());
            // SAFETY: the bytes are the buffer's, which lives until the request is done.
            unsafe { ffi::MPI_Ibcast(write(data), count, byte(), root, self.raw(), request) }
        })
    }

    /// Reduces `data` of all members to `root`'s result; the others get zeros.
    pub fn reduce<T: Number>(&self, data: &[T], op: Op, root: Rank) -> Vec<T> {
        let mut out = vec![T::default(); data.len()];
        let (to, count) = (write(&mut out), int(data.len()));
        // SAFETY: both slices have `count` numbers.
        succeed(unsafe { ffi::MPI_Reduce(read(data), to, count, T::datatype(), op.raw(), root, self.raw()) });
        out
    }

    /// Reduces `data` of all members for all.
    pub fn all_reduce<T: Number>(&self, data: &[T], op: Op) -> Vec<T> {
        let mut out = vec![T::default(); data.len()];
        let (to, count) = (write(&mut out), int(data.len()));
        // SAFETY: both slices have `count` numbers.
        succeed(unsafe { ffi::MPI_Allreduce(read(data), to, count, T::datatype(), op.raw(), self.raw()) });
        out
    }

    /// Reduces `data` of the members up to and including this one.
    pub fn scan<T: Number>(&self, data: &[T], op: Op) -> Vec<T> {
        let mut out = vec![T::default(); data.len()];
        let (to, count) = (write(&mut out), int(data.len()));
        // SAFETY: both slices have `count` numbers.
        succeed(unsafe { ffi::MPI_Scan(read(data), to, count, T::datatype(), op.raw(), self.raw()) });
        out
    }

    /// Reduces `data` of the members before this one; the first gets zeros.
    pub fn exclusive_scan<T: Number>(&self, data: &[T], op: Op) -> Vec<T> {
        let mut out = vec![T::default(); data.len()];
        let (to, count) = (write(&mut out), int(data.len()));
        // SAFETY: both slices have `count` numbers.
        succeed(unsafe { ffi::MPI_Exscan(read(data), to, count, T::datatype(), op.raw(), self.raw()) });
        if self.rank() == 0 { vec![T::default(); data.len()] } else { out }
    }

    /// Reduces `data`, one block a member, and gives each member its block.
    pub fn reduce_scatter<T: Number>(&self, data: &[T], op: Op) -> Vec<T> {
        let block = data.len() / self.size();
        let mut out = vec![T::default(); block];
        let (to, count) = (write(&mut out), int(block));
        // SAFETY: `data` has a block a member, `out` has one.
        succeed(unsafe {
            let (datatype, op) = (T::datatype(), op.raw());
            ffi::MPI_Reduce_scatter_block(read(data), to, count, datatype, op, self.raw())
        });
        out
    }

    /// Collects the same number of bytes from each member for all.
    pub fn all_gather(&self, data: &[u8]) -> Vec<u8> {
        let mut out = vec![0; data.len() * self.size()];
        let (to, count) = (write(&mut out), int(data.len()));
        // SAFETY: `out` has room for all members' bytes.
        succeed(unsafe { ffi::MPI_Allgather(read(data), count, byte(), to, count, byte(), self.raw()) });
        out
    }

    /// Collects `lengths[r]` bytes from each rank `r` for all.
    pub fn all_gather_varying(&self, data: &[u8], lengths: &[usize]) -> Vec<u8> {
        assert_eq!((lengths.len(), lengths[self.rank() as usize]), (self.size(), data.len()));
        let mut out = vec![0; lengths.iter().sum()];
        let (counts, starts) = layout(lengths, out.len());
        let (to, count) = (write(&mut out), int(data.len()));
        let (counts, starts) = (counts.as_ptr(), starts.as_ptr());
        // SAFETY: `layout` checked that all parts lie in `out`.
        succeed(unsafe {
            let from = read(data);
            ffi::MPI_Allgatherv(from, count, byte(), to, counts, starts, byte(), self.raw())
        });
        out
    }

    /// Collects `lengths[r]` bytes from each rank `r` at `root`; the others get nothing.
    pub fn gather(&self, data: &[u8], lengths: &[usize], root: Rank) -> Vec<u8> {
        assert_eq!((lengths.len(), lengths[self.rank() as usize]), (self.size(), data.len()));
        let mut out = if self.rank() == root { vec![0; lengths.iter().sum()] } else { vec![] };
        let (counts, starts) = layout(lengths, lengths.iter().sum());
        let (to, count) = (write(&mut out), int(data.len()));
        let (counts, starts) = (counts.as_ptr(), starts.as_ptr());
        // SAFETY: the root's `out` has room for all parts; the others' is not used.
        succeed(unsafe {
            let from = read(data);
            ffi::MPI_Gatherv(from, count, byte(), to, counts, starts, byte(), root, self.raw())
        });
        out
    }

    /// Copies `root`'s data to all; the members need not agree on their length. Returns MPI's code.
    pub fn try_broadcast(&self, data: &mut [u8], root: Rank) -> c_int {
        // SAFETY: the data have so many bytes.
        unsafe { ffi::MPI_Bcast(write(data), int(data.len()), byte(), root, self.raw()) }
    }

    /// Waits for all members. Returns MPI's code.
    pub fn try_barrier(&self) -> c_int {
        // SAFETY: the communicator is there.
        unsafe { ffi::MPI_Barrier(self.raw()) }
    }

    /// Collects a byte from each rank at rank 0, which gives itself two, one not right behind the other where they lie
    /// `apart`; `varying` says by which function. Returns MPI's code.
    pub fn try_gather_too_much(&self, varying: bool, apart: bool) -> c_int {
        let vector = Datatype::vector(2, 1, 2, &Datatype::byte());
        let (count, given) = match (self.rank(), apart) {
            (0, true) => (1, vector.raw()),
            (0, false) => (2, byte()),
            _ => (1, byte()),
        };
        let (data, mut out) = ([0; 4], vec![0; self.size()]);
        let (counts, starts) = layout(&vec![1; self.size()], self.size());
        let (to, counts, starts) = (write(&mut out), counts.as_ptr(), starts.as_ptr());
        // SAFETY: `data` has what is given, `out` a byte for each.
        unsafe {
            match varying {
                true => {
                    ffi::MPI_Gatherv(read(&data), count, given, to, counts, starts, byte(), 0, self.raw())
                }
                false => ffi::MPI_Gather(read(&data), count, given, to, 1, byte(), 0, self.raw()),
            }
        }
    }

    /// Deals `lengths[r]` bytes of `root`'s `data` to each rank `r`.
    pub fn scatter(&self, data: &[u8], lengths: &[usize], root: Rank) -> Vec<u8> {
        let total: usize = lengths.iter().sum();
        assert_eq!(lengths.len(), self.size());
        assert!(self.rank() != root || data.len() == total, "the root gives all parts");
        let mut out = vec![0; lengths[self.rank() as usize]];
        let (counts, starts) = layout(lengths, total);
        let (to, count) = (write(&mut out), int(out.len()));
        let (counts, starts) = (counts.as_ptr(), starts.as_ptr());
        // SAFETY: the root's `data` holds all parts; the others' is not used.
        succeed(unsafe {
            let from = read(data);
            ffi::MPI_Scatterv(from, counts, starts, byte(), to, count, byte(), root, self.raw())
        });
        out
    }

    /// Sends block `r` of `data` to each rank `r` and collects the blocks for this one.
    pub fn all_to_all(&self, data: &[u8]) -> Vec<u8> {
        let block = int(data.len() / self.size());
        let mut out = vec![0; data.len() / self.size() * self.size()];
        let to = write(&mut out);
        // SAFETY: both slices have a block a member.
        succeed(unsafe { ffi::MPI_Alltoall(read(data), block, byte(), to, block, byte(), self.raw()) });
        out
    }

    /// Sends `lengths[r]` bytes to each rank `r`, and collects `expected[r]` bytes from each.
    pub fn all_to_all_varying(&self, data: &[u8], lengths: &[usize], expected: &[usize]) -> Vec<u8> {
        let mut out = vec![0; expected.iter().sum()];
        succeed(self.try_all_to_all_varying(data, lengths, expected, &mut out));
        out
    }

    /// As [`Comm::all_to_all_varying`], to the beginning of `out`. Returns MPI's code.
    pub fn try_all_to_all_varying(
        &self,
        data: &[u8],
        lengths: &[usize],
        expected: &[usize],
        out: &mut [u8],
    ) -> c_int {
        assert_eq!((lengths.len(), expected.len()), (self.size(), self.size()));
        let (counts, starts) = layout(lengths, data.len());
        let (out_counts, out_starts) = layout(expected, out.len());
        let to = write(out);
        let (counts, starts) = (counts.as_ptr(), starts.as_ptr());
        let (takes, places) = (out_counts.as_ptr(), out_starts.as_ptr());
        // SAFETY: `layout` checked that all parts lie in their slices.
        unsafe {
            let (from, b) = (read(data), byte());
            ffi::MPI_Alltoallv(from, counts, starts, b, to, takes, places, b, self.raw())
        }
    }
}
