//! Persistent operations that came with MPI 4: collective ones, and messages in partitions.

use std::ffi::{c_int, c_void};

use mpi::ffi;

use crate::buffer::Buffer;
use crate::collective::Op;
use crate::comm::Comm;
use crate::datatype::Datatype;
use crate::newer::find;
use crate::request::Persistent;
use crate::universe::{Rank, Tag, int, succeed};

type Broadcast = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    ffi::MPI_Datatype,
    c_int,
    ffi::MPI_Comm,
    ffi::MPI_Info,
    *mut ffi::MPI_Request,
) -> c_int;
type AllReduce = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    c_int,
    ffi::MPI_Datatype,
    ffi::MPI_Op,
    ffi::MPI_Comm,
    ffi::MPI_Info,
    *mut ffi::MPI_Request,
) -> c_int;
/// Of both ends: the sender's buffer is not changed.
type Partitioned = unsafe extern "C" fn(
    *mut c_void,
    c_int,
    ffi::MPI_Count,
    ffi::MPI_Datatype,
    c_int,
    c_int,
    ffi::MPI_Comm,
    ffi::MPI_Info,
    *mut ffi::MPI_Request,
) -> c_int;
type Ready = unsafe extern "C" fn(c_int, ffi::MPI_Request) -> c_int;
type Arrived = unsafe extern "C" fn(ffi::MPI_Request, c_int, *mut c_int) -> c_int;

impl Comm {
    /// Prepares a broadcast of the buffer.
    pub fn persistent_broadcast(&self, buffer: Buffer, root: Rank) -> Persistent {
        Persistent::set_up(buffer, |data, request| {
            let (start, count, byte) = (data.as_mut_ptr().cast(), int(data.len()), Datatype::byte());
            // SAFETY: this is its type; the buffer lives until the request is freed.
            unsafe {
                let call = find::<Broadcast>(c"MPI_Bcast_init");
                call(start, count, byte.raw(), root, self.raw(), ffi::RSMPI_INFO_NULL, request)
            }
        })
    }

    /// Prepares a reduction for all of the bytes at `from` to the buffer.
    pub fn persistent_all_reduce(&self, from: &'static [u8], buffer: Buffer, op: Op) -> Persistent {
        assert_eq!(from.len(), buffer.len());
        Persistent::set_up(buffer, |data, request| {
            let (from, to, count) = (from.as_ptr().cast(), data.as_mut_ptr().cast(), int(data.len()));
            // SAFETY: this is its type; both have so many bytes, and live until the request is freed.
            unsafe {
                let call = find::<AllReduce>(c"MPI_Allreduce_init");
                let (byte, none) = (ffi::RSMPI_UINT8_T, ffi::RSMPI_INFO_NULL);
                call(from, to, count, byte, op.raw(), self.raw(), none, request)
            }
        })
    }

    /// Prepares a message in so many partitions, which divide the buffer.
    pub fn partitioned_send(&self, buffer: Buffer, partitions: usize, to: Rank, tag: Tag) -> Persistent {
        // SAFETY: this is its type.
        self.partitioned(unsafe { find(c"MPI_Psend_init") }, buffer, partitions, to, tag)
    }

    /// Prepares to receive one.
    pub fn partitioned_receive(&self, buffer: Buffer, partitions: usize, from: Rank, tag: Tag) -> Persistent {
        // SAFETY: this is its type.
        self.partitioned(unsafe { find(c"MPI_Precv_init") }, buffer, partitions, from, tag)
    }

    fn partitioned(
        &self,
        call: Partitioned,
        buffer: Buffer,
        partitions: usize,
        peer: Rank,
        tag: Tag,
    ) -> Persistent {
        assert!(buffer.len().is_multiple_of(partitions), "partitions are all of one length");
        Persistent::set_up(buffer, |data, request| {
            let count = (data.len() / partitions) as ffi::MPI_Count;
            let (start, partitions, byte) = (data.as_mut_ptr().cast(), int(partitions), Datatype::byte());
            // SAFETY: the partitions lie inside the buffer, which lives until the request is freed.
            unsafe {
                let none = ffi::RSMPI_INFO_NULL;
                call(start, partitions, count, byte.raw(), peer, tag, self.raw(), none, request)
            }
        })
    }
}

impl Persistent {
    /// Has a partition of a started message sent.
    pub fn ready(&mut self, partition: usize) {
        // SAFETY: this is its type; the request is that of a partitioned message.
        succeed(unsafe { find::<Ready>(c"MPI_Pready")(int(partition), self.raw()) });
    }

    /// Whether a partition of a started message has come.
    pub fn has_come(&mut self, partition: usize) -> bool {
        let mut flag = 0;
        // SAFETY: as above; MPI writes the flag.
        succeed(unsafe { find::<Arrived>(c"MPI_Parrived")(self.raw(), int(partition), &raw mut flag) });
        flag != 0
    }
}
