//! One-sided communication: windows and epochs.

use std::ffi::c_int;
use std::marker::PhantomData;
use std::ptr::NonNull;

use mpi::ffi;

use crate::buffer::Buffer;
use crate::collective::{Number, Op};
use crate::comm::{Comm, Rank};
use crate::datatype::{Datatype, aint};
use crate::universe::{SUCCESS, int, succeed};

/// Memory that all members of a communicator may reach; offsets are in bytes.
#[derive(Debug)]
pub struct Window {
    raw: ffi::MPI_Win,
    base: NonNull<u8>,
    length: usize,
    /// Where each process's memory begins, if displacements are addresses.
    starts: Vec<usize>,
    /// The memory, where it is not MPI's own.
    _memory: Option<Buffer>,
}

impl Window {
    /// A window over heap memory (`MPI_Win_create`).
    ///
    /// # Errors
    /// MPI's text, if no component for windows can be used.
    pub fn over_heap(comm: &Comm, length: usize) -> Result<Window, String> {
        let mut memory = Buffer::new(length);
        let base: NonNull<u8> = NonNull::from(memory.payload_mut()).cast();
        let raw = create(comm, |new| {
            let start = base.as_ptr().cast();
            // SAFETY: the memory lives as long as the window.
            unsafe {
                let (size, info) = (aint(length), ffi::RSMPI_INFO_NULL);
                ffi::MPI_Win_create(start, size, 1, info, comm.raw(), new)
            }
        })?;
        Ok(Window { raw, base, length, starts: Vec::new(), _memory: Some(memory) })
    }

    /// A window over heap memory that each process attaches (`MPI_Win_create_dynamic`).
    ///
    /// # Errors
    /// MPI's text, if no component for windows can be used.
    pub fn dynamic(comm: &Comm, length: usize) -> Result<Window, String> {
        let raw = create(comm, |new| {
            // SAFETY: MPI writes the window.
            unsafe { ffi::MPI_Win_create_dynamic(ffi::RSMPI_INFO_NULL, comm.raw(), new) }
        })?;
        let mut memory = Buffer::new(length);
        let base: NonNull<u8> = NonNull::from(memory.payload_mut()).cast();
        let mut window = Window { raw, base, length, starts: Vec::new(), _memory: Some(memory) };
        succeed(window.attach(base.as_ptr(), length));
        let all = comm.all_gather(&base.as_ptr().expose_provenance().to_ne_bytes());
        let words = all.chunks_exact(8).map(|word| word.try_into().expect("8 bytes"));
        window.starts = words.map(usize::from_ne_bytes).collect();
        Ok(window)
    }

    /// `MPI_Win_attach`: MPI's code. The memory is detached before it is freed.
    pub fn attach(&self, start: *mut u8, length: usize) -> c_int {
        // SAFETY: the window is valid, and only accesses of these tests reach the memory.
        unsafe { ffi::MPI_Win_attach(self.raw, start.cast(), aint(length)) }
    }

    /// `MPI_Win_detach`: MPI's code.
    pub fn detach(&self, start: *const u8) -> c_int {
        // SAFETY: the window is valid.
        unsafe { ffi::MPI_Win_detach(self.raw, start.cast()) }
    }

    /// The displacement, in MPI's terms, of an offset in `target`'s memory. In a dynamic window, offset 0 belongs to the member
    /// that has attached the memory of [`Window::dynamic`]; any other place is told by its address, see [`Window::by_address`].
    fn place(&self, target: Rank, offset: usize) -> ffi::MPI_Aint {
        let start = usize::try_from(target).ok().and_then(|target| self.starts.get(target));
        aint(start.unwrap_or(&0).wrapping_add(offset))
    }

    /// From now on offsets are addresses.
    pub fn by_address(&mut self) {
        self.starts.clear();
    }

    /// A window over memory that MPI chooses (`MPI_Win_allocate`).
    ///
    /// # Errors
    /// MPI's text, if no component for windows can be used.
    pub fn allocate(comm: &Comm, length: usize) -> Result<Window, String> {
        let mut base: *mut u8 = std::ptr::null_mut();
        let raw = create(comm, |new| {
            let out = (&raw mut base).cast();
            // SAFETY: MPI writes the base address through the pointer to `base`.
            unsafe {
                let (size, info) = (aint(length), ffi::RSMPI_INFO_NULL);
                ffi::MPI_Win_allocate(size, 1, info, comm.raw(), out, new)
            }
        })?;
        let base = NonNull::new(base).unwrap_or(NonNull::dangling());
        // SAFETY: MPI gave `length` bytes at `base`; nobody else reaches them before the barrier
        // below.
        unsafe { base.write_bytes(0, length) };
        comm.barrier();
        Ok(Window { raw, base, length, starts: Vec::new(), _memory: None })
    }

    /// A window over memory that all members may use as their own (`MPI_Win_allocate_shared`); in one piece unless `apart`.
    ///
    /// # Errors
    /// MPI's text, if no component for windows can be used.
    pub fn shared(comm: &Comm, length: usize, apart: bool) -> Result<Window, String> {
        let mut base: *mut u8 = std::ptr::null_mut();
        let raw = create(comm, |new| {
            let out = (&raw mut base).cast();
            // SAFETY: MPI writes the base address through the pointer to `base`, and the hints are freed.
            unsafe {
                let mut info = ffi::RSMPI_INFO_NULL;
                succeed(ffi::MPI_Info_create(&raw mut info));
                let value = if apart { c"true" } else { c"false" };
                succeed(ffi::MPI_Info_set(info, c"alloc_shared_noncontig".as_ptr(), value.as_ptr()));
                let code = ffi::MPI_Win_allocate_shared(aint(length), 1, info, comm.raw(), out, new);
                succeed(ffi::MPI_Info_free(&raw mut info));
                code
            }
        })?;
        let base = NonNull::new(base).unwrap_or(NonNull::dangling());
        // SAFETY: as in `allocate`.
        unsafe { base.write_bytes(0, length) };
        comm.barrier();
        Ok(Window { raw, base, length, starts: Vec::new(), _memory: None })
    }

    /// Where this process finds the memory of `target`, and its length in bytes; of a window made by [`Window::shared`].
    pub fn query(&self, target: Rank) -> (*mut u8, usize) {
        let (mut size, mut unit, mut base) = (0, 0, std::ptr::null_mut::<u8>());
        // SAFETY: MPI writes all three.
        unsafe {
            let out = (&raw mut base).cast();
            succeed(ffi::MPI_Win_shared_query(self.raw, target, &raw mut size, &raw mut unit, out));
        }
        assert_eq!(unit, 1, "what displacements count in");
        (base, usize::try_from(size).expect("a length"))
    }

    /// Makes what this process has written to shared memory seen by others, and theirs by this one.
    pub fn sync(&self) {
        // SAFETY: the window is valid and locked.
        succeed(unsafe { ffi::MPI_Win_sync(self.raw) });
    }

    /// Runs `work` on the memory of the ranks `to`, while the ranks `from` may do so on the own memory
    /// (`MPI_Win_post`, `MPI_Win_start`). Those must do the same.
    pub fn among<'d, R>(&self, to: &[Rank], from: &[Rank], work: impl FnOnce(&Epoch<'_, 'd>) -> R) -> R {
        // SAFETY: the window is valid; the groups are freed.
        unsafe {
            let mut all = ffi::RSMPI_GROUP_NULL;
            succeed(ffi::MPI_Win_get_group(self.raw, &raw mut all));
            let [mut origins, mut targets] = [from, to].map(|ranks| {
                let mut group = ffi::RSMPI_GROUP_NULL;
                succeed(ffi::MPI_Group_incl(all, int(ranks.len()), ranks.as_ptr(), &raw mut group));
                group
            });
            succeed(ffi::MPI_Win_post(origins, 0, self.raw));
            succeed(ffi::MPI_Win_start(targets, 0, self.raw));
            let result = work(&Epoch { window: self, data: PhantomData });
            succeed(ffi::MPI_Win_complete(self.raw));
            succeed(ffi::MPI_Win_wait(self.raw));
            for group in [&mut all, &mut origins, &mut targets] {
                succeed(ffi::MPI_Group_free(group));
            }
            result
        }
    }

    /// Reads the own memory at `offset`.
    pub fn read(&self, offset: usize, length: usize) -> Vec<u8> {
        assert!(offset + length <= self.length, "outside of the window");
        let mut bytes = vec![0; length];
        // SAFETY: the range lies in the window; copied through raw pointers because others may
        // write to it.
        unsafe {
            let from = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), length);
        }
        bytes
    }

    /// Writes to the own memory at `offset`.
    pub fn write(&self, offset: usize, bytes: &[u8]) {
        assert!(offset + bytes.len() <= self.length, "outside of the window");
        // SAFETY: as in `read`.
        unsafe {
            let to = self.base.as_ptr().add(offset);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), to, bytes.len());
        }
    }

    /// Runs `work` between two fences. All members do.
    pub fn fenced<'d, R>(&self, work: impl FnOnce(&Epoch<'_, 'd>) -> R) -> R {
        self.fence();
        let result = work(&Epoch { window: self, data: PhantomData });
        self.fence();
        result
    }

    fn fence(&self) {
        // SAFETY: the window is valid.
        succeed(unsafe { ffi::MPI_Win_fence(0, self.raw) });
    }

    /// Runs `work` while this process holds the lock on `target`'s memory.
    pub fn locked<'d, R>(&self, target: Rank, exclusive: bool, work: impl FnOnce(&Epoch<'_, 'd>) -> R) -> R {
        let kind = if exclusive { ffi::MPI_LOCK_EXCLUSIVE } else { ffi::MPI_LOCK_SHARED };
        let kind = c_int::try_from(kind).expect("a small constant");
        // SAFETY: the window is valid.
        succeed(unsafe { ffi::MPI_Win_lock(kind, target, 0, self.raw) });
        let result = work(&Epoch { window: self, data: PhantomData });
        // SAFETY: the lock is held.
        succeed(unsafe { ffi::MPI_Win_unlock(target, self.raw) });
        result
    }

    /// Runs `work` while this process holds a shared lock on everyone's memory.
    pub fn locked_all<'d, R>(&self, work: impl FnOnce(&Epoch<'_, 'd>) -> R) -> R {
        // SAFETY: the window is valid.
        succeed(unsafe { ffi::MPI_Win_lock_all(0, self.raw) });
        let result = work(&Epoch { window: self, data: PhantomData });
        // SAFETY: the locks are held.
        succeed(unsafe { ffi::MPI_Win_unlock_all(self.raw) });
        result
    }
}

fn create(comm: &Comm, make: impl FnOnce(*mut ffi::MPI_Win) -> c_int) -> Result<ffi::MPI_Win, String> {
    // SAFETY: a constant of the MPI library.
    let mut raw = unsafe { ffi::RSMPI_WIN_NULL };
    comm.barrier();
    let code = make(&raw mut raw);
    if code != SUCCESS {
        return Err(crate::universe::explain(code));
    }
    // SAFETY: the window was just made.
    succeed(unsafe { ffi::MPI_Win_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN) });
    Ok(raw)
}

impl Drop for Window {
    fn drop(&mut self) {
        // SAFETY: the window is ours and no epoch is open.
        succeed(unsafe { ffi::MPI_Win_free(&raw mut self.raw) });
    }
}

/// The time in which operations on a window may be started; `'d` is how long their data lives.
#[derive(Debug)]
pub struct Epoch<'w, 'd> {
    window: &'w Window,
    data: PhantomData<&'d mut [u8]>,
}

/// Elements of a datatype in memory.
#[derive(Debug)]
pub struct Elements {
    /// Their datatype.
    pub datatype: Datatype,
    /// How many.
    pub count: usize,
    /// Where they are; as long as they span.
    pub memory: Vec<u8>,
}

/// A function that changes elements of another process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `MPI_Accumulate`.
    Accumulate,
    /// `MPI_Raccumulate`, and its request waited for.
    Requested,
    /// `MPI_Get_accumulate`.
    Fetch,
    /// `MPI_Rget_accumulate`, and its request waited for.
    FetchRequested,
    /// `MPI_Fetch_and_op`, which takes a single number.
    One,
}

/// An operation of [`Epoch::touch`].
#[derive(Clone, Copy, Debug)]
pub enum Touch {
    /// `MPI_Put`.
    Put,
    /// `MPI_Get`.
    Get,
    /// `MPI_Accumulate`.
    Add,
    /// `MPI_Fetch_and_op`.
    FetchAndAdd,
    /// `MPI_Compare_and_swap`.
    Swap,
}

/// An operation of [`Epoch::give`].
#[derive(Clone, Copy, Debug)]
pub enum Unequal {
    /// `MPI_Put`.
    Put,
    /// `MPI_Accumulate`.
    Add,
    /// `MPI_Get_accumulate`.
    FetchAndAdd,
}

impl<'d> Epoch<'_, 'd> {
    /// Changes `count` elements of `datatype` at `offset` in `target`'s memory by `op` and `origin`; the functions that
    /// fetch store what they were in `result`.
    ///
    /// # Errors
    /// MPI's code.
    pub fn try_change(
        &self,
        how: Change,
        op: ffi::MPI_Op,
        origin: &'d Elements,
        result: &'d mut Elements,
        target: Rank,
        (offset, count, datatype): (usize, usize, &Datatype),
    ) -> Result<(), c_int> {
        let (from, n, kind) = (origin.memory.as_ptr().cast(), int(origin.count), origin.datatype.raw());
        let to = result.memory.as_mut_ptr().cast();
        let (result_count, result_kind) = (int(result.count), result.datatype.raw());
        let (at, count, other, win) =
            (self.window.place(target, offset), int(count), datatype.raw(), self.window.raw);
        // SAFETY: both live until the epoch has ended, the elements have the memory that they span; MPI keeps what it needs
        // of datatypes.
        unsafe {
            let mut request = ffi::RSMPI_REQUEST_NULL;
            let asked = &raw mut request;
            let code = match how {
                Change::Accumulate => ffi::MPI_Accumulate(from, n, kind, target, at, count, other, op, win),
                Change::Requested => {
                    ffi::MPI_Raccumulate(from, n, kind, target, at, count, other, op, win, asked)
                }
                Change::Fetch => ffi::MPI_Get_accumulate(
                    from,
                    n,
                    kind,
                    to,
                    result_count,
                    result_kind,
                    target,
                    at,
                    count,
                    other,
                    op,
                    win,
                ),
                Change::FetchRequested => ffi::MPI_Rget_accumulate(
                    from,
                    n,
                    kind,
                    to,
                    result_count,
                    result_kind,
                    target,
                    at,
                    count,
                    other,
                    op,
                    win,
                    asked,
                ),
                Change::One => ffi::MPI_Fetch_and_op(from, to, other, target, at, op, win),
            };
            if code != SUCCESS {
                return Err(code);
            }
            if matches!(how, Change::Requested | Change::FetchRequested) {
                succeed(ffi::MPI_Wait(asked, ffi::RSMPI_STATUS_IGNORE));
            }
            Ok(())
        }
    }

    /// The same, where it must work.
    pub fn change(
        &self,
        how: Change,
        op: ffi::MPI_Op,
        origin: &'d Elements,
        result: &'d mut Elements,
        target: Rank,
        place: (usize, usize, &Datatype),
    ) {
        succeed(self.try_change(how, op, origin, result, target, place).err().unwrap_or(SUCCESS));
    }

    /// Copies `data` to bytes at these addresses in `target`'s memory: by one datatype, from address 0 on.
    pub fn put_at_addresses(&self, data: &'d [u8], target: Rank, addresses: &[usize]) {
        let at: Vec<ffi::MPI_Aint> = addresses.iter().map(|address| aint(*address)).collect();
        let (n, from) = (int(data.len()), data.as_ptr().cast());
        assert_eq!(data.len(), at.len(), "one byte each");
        // SAFETY: `data` lives until the epoch has ended; MPI keeps what it needs of the datatype, and checks the addresses.
        unsafe {
            let (byte, win) = (ffi::RSMPI_UINT8_T, self.window.raw);
            let mut scattered = ffi::RSMPI_DATATYPE_NULL;
            succeed(ffi::MPI_Type_create_hindexed_block(n, 1, at.as_ptr(), byte, &raw mut scattered));
            succeed(ffi::MPI_Type_commit(&raw mut scattered));
            succeed(ffi::MPI_Put(from, n, byte, target, 0, 1, scattered, win));
            succeed(ffi::MPI_Type_free(&raw mut scattered));
        }
    }

    /// Does one access of 8 bytes at an address, and waits for it.
    ///
    /// # Errors
    /// MPI's code.
    pub fn touch(&self, how: Touch, target: Rank, address: usize) -> Result<(), c_int> {
        let (one, mut found) = (0_i64, 0_i64);
        let (from, to) = ((&raw const one).cast(), (&raw mut found).cast());
        let at = self.window.place(target, address);
        // SAFETY: both live until the flush has ended the access.
        unsafe {
            let (kind, op, win) = (ffi::RSMPI_INT64_T, ffi::RSMPI_SUM, self.window.raw);
            let code = match how {
                Touch::Put => ffi::MPI_Put(from, 1, kind, target, at, 1, kind, win),
                Touch::Get => ffi::MPI_Get(to, 1, kind, target, at, 1, kind, win),
                Touch::Add => ffi::MPI_Accumulate(from, 1, kind, target, at, 1, kind, op, win),
                Touch::FetchAndAdd => ffi::MPI_Fetch_and_op(from, to, kind, target, at, op, win),
                Touch::Swap => ffi::MPI_Compare_and_swap(from, from, to, kind, target, at, win),
            };
            let flushed = ffi::MPI_Win_flush(target, win);
            [code, flushed].into_iter().find(|code| *code != SUCCESS).map_or(Ok(()), Err)
        }
    }

    /// Writes `new` over a number of `datatype` at `offset` in `target`'s memory if it is `expected`; `before` becomes what it
    /// was, once this returns.
    pub fn swap_now(
        &self,
        datatype: &Datatype,
        expected: &[u8],
        new: &[u8],
        before: &mut [u8],
        target: Rank,
        offset: usize,
    ) {
        let size = datatype.size();
        assert!(expected.len() == size && new.len() == size && before.len() == size, "one number each");
        let (new, expected) = (new.as_ptr().cast(), expected.as_ptr().cast());
        // SAFETY: all have a number's length, and live until the flush has completed the operation.
        unsafe {
            let (kind, win, at) = (datatype.raw(), self.window.raw, self.window.place(target, offset));
            let out = before.as_mut_ptr().cast();
            succeed(ffi::MPI_Compare_and_swap(new, expected, out, kind, target, at, win));
            succeed(ffi::MPI_Win_flush(target, win));
        }
    }

    /// Copies `data` to `offset` in `target`'s memory.
    pub fn put(&self, data: &'d [u8], target: Rank, offset: usize) {
        let (n, from) = (int(data.len()), data.as_ptr().cast());
        // SAFETY: `data` lives until the epoch has ended; MPI checks the target's range.
        succeed(unsafe {
            let (byte, win) = (ffi::RSMPI_UINT8_T, self.window.raw);
            ffi::MPI_Put(from, n, byte, target, self.window.place(target, offset), n, byte, win)
        });
    }

    /// Copies from `offset` in `target`'s memory to `data`.
    pub fn get(&self, data: &'d mut [u8], target: Rank, offset: usize) {
        let (n, to) = (int(data.len()), data.as_mut_ptr().cast());
        // SAFETY: `data` is borrowed until the epoch has ended.
        succeed(unsafe {
            let (byte, win) = (ffi::RSMPI_UINT8_T, self.window.raw);
            ffi::MPI_Get(to, n, byte, target, self.window.place(target, offset), n, byte, win)
        });
    }

    /// Copies `length` bytes from `offset` in `target`'s memory and waits for them.
    pub fn read_now(&self, target: Rank, offset: usize, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        let (n, to) = (int(length), data.as_mut_ptr().cast());
        // SAFETY: `data` lives until the flush has completed the operation.
        unsafe {
            let (byte, win) = (ffi::RSMPI_UINT8_T, self.window.raw);
            succeed(ffi::MPI_Get(to, n, byte, target, self.window.place(target, offset), n, byte, win));
            succeed(ffi::MPI_Win_flush(target, win));
        }
        data
    }

    /// The number at `offset` in `target`'s memory, by `MPI_Rget` and its request alone.
    pub fn read_requested(&self, target: Rank, offset: usize) -> i64 {
        let mut number = 0_i64;
        let to = (&raw mut number).cast();
        // SAFETY: the number lives until the request has ended.
        unsafe {
            let (kind, win) = (ffi::RSMPI_INT64_T, self.window.raw);
            let mut request = ffi::RSMPI_REQUEST_NULL;
            succeed(ffi::MPI_Rget(
                to,
                1,
                kind,
                target,
                self.window.place(target, offset),
                1,
                kind,
                win,
                &raw mut request,
            ));
            succeed(ffi::MPI_Wait(&raw mut request, ffi::RSMPI_STATUS_IGNORE));
        }
        number
    }

    /// Copies `data` to `target`'s memory, the first number to `offset` and each other one before the one that it follows.
    pub fn put_downwards(&self, data: &'d [i64], target: Rank, offset: usize) {
        let (n, from) = (int(data.len()), data.as_ptr().cast());
        // SAFETY: `data` lives until the epoch has ended; MPI keeps what it needs of the datatype, and checks the range.
        unsafe {
            let (kind, win) = (ffi::RSMPI_INT64_T, self.window.raw);
            let mut downwards = ffi::RSMPI_DATATYPE_NULL;
            succeed(ffi::MPI_Type_create_resized(kind, 0, -8, &raw mut downwards));
            succeed(ffi::MPI_Type_commit(&raw mut downwards));
            succeed(ffi::MPI_Put(
                from,
                n,
                kind,
                target,
                self.window.place(target, offset),
                n,
                downwards,
                win,
            ));
            succeed(ffi::MPI_Type_free(&raw mut downwards));
        }
    }

    /// Gives all of `data` to `count` numbers at `offset` in `target`'s memory, be they as many or not: MPI's code for that.
    /// `before` has them as they were, when the epoch has ended, if that is asked for.
    pub fn give(
        &self,
        how: Unequal,
        data: &'d [i64],
        before: &'d mut [i64],
        target: Rank,
        (offset, count): (usize, usize),
    ) -> c_int {
        assert!(before.len() >= count, "no room for what they were");
        let (n, from, to) = (int(data.len()), data.as_ptr().cast(), before.as_mut_ptr().cast());
        let (at, count) = (self.window.place(target, offset), int(count));
        // SAFETY: both live until the epoch has ended, and there is room for all numbers.
        unsafe {
            let (kind, op, win) = (ffi::RSMPI_INT64_T, ffi::RSMPI_SUM, self.window.raw);
            match how {
                Unequal::Put => ffi::MPI_Put(from, n, kind, target, at, count, kind, win),
                Unequal::Add => ffi::MPI_Accumulate(from, n, kind, target, at, count, kind, op, win),
                Unequal::FetchAndAdd => {
                    ffi::MPI_Get_accumulate(from, n, kind, to, count, kind, target, at, count, kind, op, win)
                }
            }
        }
    }

    /// Copies `data` to `offset` in `target`'s memory and waits until it is there.
    pub fn write_now(&self, data: &[u8], target: Rank, offset: usize) {
        let (n, from) = (int(data.len()), data.as_ptr().cast());
        // SAFETY: `data` lives until the flush has completed the operation.
        unsafe {
            let (byte, win) = (ffi::RSMPI_UINT8_T, self.window.raw);
            succeed(ffi::MPI_Put(from, n, byte, target, self.window.place(target, offset), n, byte, win));
            succeed(ffi::MPI_Win_flush(target, win));
        }
    }

    /// Combines `data` with the numbers at `offset` in `target`'s memory.
    pub fn accumulate<T: Number>(&self, data: &'d [T], op: Op, target: Rank, offset: usize) {
        let (n, from, kind) = (int(data.len()), data.as_ptr().cast(), T::datatype());
        // SAFETY: `data` lives until the epoch has ended.
        succeed(unsafe {
            let (op, win) = (op.raw(), self.window.raw);
            ffi::MPI_Accumulate(from, n, kind, target, self.window.place(target, offset), n, kind, op, win)
        });
    }

    /// Adds `value` to the number at `offset` in `target`'s memory and gives what was there, once
    /// it has come back.
    pub fn fetch_and_add(&self, value: i64, target: Rank, offset: usize) -> i64 {
        let mut before = 0_i64;
        let (add, out) = ((&raw const value).cast(), (&raw mut before).cast());
        // SAFETY: both numbers live until the flush below has completed the operation.
        unsafe {
            let (kind, op, win) = (ffi::RSMPI_INT64_T, ffi::RSMPI_SUM, self.window.raw);
            succeed(ffi::MPI_Fetch_and_op(
                add,
                out,
                kind,
                target,
                self.window.place(target, offset),
                op,
                win,
            ));
            succeed(ffi::MPI_Win_flush(target, self.window.raw));
        }
        before
    }

    /// Writes `new` where `expected` stands at `offset` in `target`'s memory, and gives what was
    /// there.
    pub fn compare_and_swap(&self, expected: i64, new: i64, target: Rank, offset: usize) -> i64 {
        let mut before = 0_i64;
        let (new, expected) = ((&raw const new).cast(), (&raw const expected).cast());
        let out = (&raw mut before).cast();
        // SAFETY: all numbers live until the flush below has completed the operation.
        unsafe {
            let (kind, win) = (ffi::RSMPI_INT64_T, self.window.raw);
            let at = self.window.place(target, offset);
            succeed(ffi::MPI_Compare_and_swap(new, expected, out, kind, target, at, win));
            succeed(ffi::MPI_Win_flush(target, self.window.raw));
        }
        before
    }

    /// Waits until all operations of this process on `target` have been done there.
    pub fn flush(&self, target: Rank) {
        // SAFETY: the window is valid and locked.
        succeed(unsafe { ffi::MPI_Win_flush(target, self.window.raw) });
    }
}
