//! A number that all processes of the job see, besides MPI's messages.

use std::marker::PhantomData;
use std::sync::atomic::AtomicU64;

use mpi::ffi;

use super::mpi::Mpi;

/// A number in memory of `MPI_Win_allocate_shared`; the processes must be on one host. It begins with 0.
#[derive(Debug)]
pub struct SharedCount<'m> {
    raw: ffi::MPI_Win,
    number: *mut u64,
    mpi: PhantomData<&'m Mpi>,
}

impl<'m> SharedCount<'m> {
    /// Makes the number; all processes do.
    pub fn new(mpi: &'m Mpi) -> SharedCount<'m> {
        let (mut own, mut number): (*mut u64, *mut u64) = (std::ptr::null_mut(), std::ptr::null_mut());
        let bytes = ffi::MPI_Aint::try_from(size_of::<u64>()).expect("a small constant");
        // SAFETY: MPI writes addresses, sizes and the window through pointers to variables that outlive the calls; the
        // number is process 0's.
        let raw = unsafe {
            let mut raw = ffi::RSMPI_WIN_NULL;
            let (info, world) = (ffi::RSMPI_INFO_NULL, ffi::RSMPI_COMM_WORLD);
            ffi::MPI_Win_allocate_shared(bytes, 8, info, world, (&raw mut own).cast(), &raw mut raw);
            let (mut size, mut unit) = (0, 0);
            ffi::MPI_Win_shared_query(raw, 0, &raw mut size, &raw mut unit, (&raw mut number).cast());
            raw
        };
        assert!(!number.is_null(), "MPI gave no shared memory");
        let made = SharedCount { raw, number, mpi: PhantomData };
        if mpi.rank() == 0 {
            made.get().store(0, std::sync::atomic::Ordering::Release);
        }
        mpi.barrier();
        made
    }

    /// The number.
    pub fn get(&self) -> &AtomicU64 {
        // SAFETY: MPI gave the memory, aligned, for the life of the window, and all use it in this way alone.
        unsafe { AtomicU64::from_ptr(self.number) }
    }
}

impl Drop for SharedCount<'_> {
    fn drop(&mut self) {
        // SAFETY: the window is ours; all processes have ended using the number when this call returns.
        unsafe { ffi::MPI_Win_free(&raw mut self.raw) };
    }
}
