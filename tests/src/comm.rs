//! Communicators and point-to-point messages.

use std::ffi::{CString, c_int, c_void};

use mpi::ffi;

use crate::buffer::Buffer;
use crate::datatype::Datatype;
use crate::request::{Pending, Persistent, Status, blank_status};
use crate::universe::{SUCCESS, int, succeed};

pub use crate::universe::{Rank, Tag};

/// Matches any sender.
pub const ANY_SOURCE: Rank = ffi::MPI_ANY_SOURCE;
/// Matches any tag.
pub const ANY_TAG: Tag = ffi::MPI_ANY_TAG;

/// How to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// `MPI_Send`.
    Standard,
    /// `MPI_Ssend`: ends only once the receive has begun.
    Synchronous,
    /// `MPI_Bsend`: goes through the attached buffer.
    Buffered,
    /// `MPI_Rsend`: the receive has been posted already.
    Ready,
}

/// All modes of sending.
pub const MODES: [Mode; 4] = [Mode::Standard, Mode::Synchronous, Mode::Buffered, Mode::Ready];

/// A communicator; freed on drop unless it is predefined.
#[derive(Debug)]
pub struct Comm {
    raw: ffi::MPI_Comm,
    rank: Rank,
    size: usize,
    remote: usize,
    predefined: bool,
}

// SAFETY: programs that share a communicator between threads ask for MPI_THREAD_MULTIPLE first.
unsafe impl Send for Comm {}
// SAFETY: programs that share a communicator between threads ask for MPI_THREAD_MULTIPLE first.
unsafe impl Sync for Comm {}

impl Comm {
    /// All processes of the job.
    pub fn world() -> Comm {
        // SAFETY: a constant of the MPI library.
        Comm::over(unsafe { ffi::RSMPI_COMM_WORLD }, true)
    }

    /// This process alone.
    pub fn alone() -> Comm {
        // SAFETY: a constant of the MPI library.
        Comm::over(unsafe { ffi::RSMPI_COMM_SELF }, true)
    }

    /// The intercommunicator to the process that spawned this one, if one did.
    pub fn parent() -> Option<Comm> {
        // SAFETY: a constant of the MPI library; MPI writes the handle.
        unsafe {
            let mut raw = ffi::RSMPI_COMM_NULL;
            succeed(ffi::MPI_Comm_get_parent(&raw mut raw));
            (raw != ffi::RSMPI_COMM_NULL).then(|| Comm::over(raw, false))
        }
    }

    fn over(raw: ffi::MPI_Comm, predefined: bool) -> Comm {
        let (mut rank, mut size, mut inter, mut remote) = (0, 0, 0, 0);
        // SAFETY: `raw` is a valid communicator; MPI writes the numbers.
        unsafe {
            succeed(ffi::MPI_Comm_rank(raw, &raw mut rank));
            succeed(ffi::MPI_Comm_size(raw, &raw mut size));
            succeed(ffi::MPI_Comm_test_inter(raw, &raw mut inter));
            if inter != 0 {
                succeed(ffi::MPI_Comm_remote_size(raw, &raw mut remote));
            } else {
                remote = size;
            }
            succeed(ffi::MPI_Comm_set_errhandler(raw, ffi::RSMPI_ERRORS_RETURN));
        }
        let count = |n: c_int| usize::try_from(n).expect("a communicator has a size");
        Comm { raw, rank, size: count(size), remote: count(remote), predefined }
    }

    pub(crate) fn made(make: impl FnOnce(*mut ffi::MPI_Comm) -> c_int) -> Comm {
        // SAFETY: a constant of the MPI library.
        let mut raw = unsafe { ffi::RSMPI_COMM_NULL };
        succeed(make(&raw mut raw));
        Comm::over(raw, false)
    }

    /// A communicator with the same members, whose messages never mix with this one's.
    pub fn duplicate(&self) -> Comm {
        // SAFETY: the communicator is valid, MPI writes `new`.
        Comm::made(|new| unsafe { ffi::MPI_Comm_dup(self.raw, new) })
    }

    /// A communicator of all who gave the same `color`, ordered by `key`.
    pub fn split(&self, color: usize, key: Rank) -> Comm {
        // SAFETY: the communicator is valid, MPI writes `new`.
        Comm::made(|new| unsafe { ffi::MPI_Comm_split(self.raw, int(color), key, new) })
    }

    /// An intercommunicator from this group (led by `leader`) to the group whose leader is
    /// `remote_leader` in `both`.
    pub fn bridge(&self, leader: Rank, both: &Comm, remote_leader: Rank, tag: Tag) -> Comm {
        Comm::made(|new| {
            // SAFETY: both communicators are valid, MPI writes `new`.
            unsafe { ffi::MPI_Intercomm_create(self.raw, leader, both.raw, remote_leader, tag, new) }
        })
    }

    /// One communicator of both groups of this intercommunicator; the group that says `high` comes
    /// last.
    pub fn merge(&self, high: bool) -> Comm {
        // SAFETY: this is an intercommunicator, MPI writes `new`.
        Comm::made(|new| unsafe { ffi::MPI_Intercomm_merge(self.raw, c_int::from(high), new) })
    }

    /// Starts `count` processes of `program` with `arguments` and gives the way to them.
    ///
    /// # Errors
    /// MPI's error code, or an argument that holds a zero byte.
    pub fn spawn(
        &self,
        program: &str,
        arguments: &[&str],
        count: usize,
    ) -> Result<Comm, Box<dyn std::error::Error>> {
        let program = CString::new(program)?;
        let arguments = arguments.iter().map(|text| CString::new(*text)).collect::<Result<Vec<_>, _>>()?;
        let mut argv: Vec<_> = arguments.iter().map(|text| text.as_ptr().cast_mut()).collect();
        argv.push(std::ptr::null_mut());
        let mut codes = vec![SUCCESS; count];
        // SAFETY: a constant of the MPI library.
        let mut raw = unsafe { ffi::RSMPI_COMM_NULL };
        let (program, argv) = (program.as_ptr(), argv.as_mut_ptr());
        let codes_out = codes.as_mut_ptr();
        // SAFETY: the strings outlive the call, `argv` ends with null, `codes` has `count` entries.
        let code = unsafe {
            let (info, new) = (ffi::RSMPI_INFO_NULL, &raw mut raw);
            ffi::MPI_Comm_spawn(program, argv, int(count), info, 0, self.raw, new, codes_out)
        };
        match codes.into_iter().chain([code]).find(|&code| code != SUCCESS) {
            Some(code) => Err(crate::universe::explain(code).into()),
            None => Ok(Comm::over(raw, false)),
        }
    }

    /// Waits for all messages on this communicator and leaves it.
    pub fn disconnect(mut self) {
        // SAFETY: the communicator is ours and not predefined.
        succeed(unsafe { ffi::MPI_Comm_disconnect(&raw mut self.raw) });
        self.predefined = true;
    }

    /// This process's rank.
    pub fn rank(&self) -> Rank {
        self.rank
    }

    /// Number of members (of the own group, if this is an intercommunicator).
    pub fn size(&self) -> usize {
        self.size
    }

    /// Number of members that messages go to: the other group's, if this is an intercommunicator.
    pub fn remote_size(&self) -> usize {
        self.remote
    }

    /// The rank `distance` after this one, around the end.
    pub fn after(&self, distance: usize) -> Rank {
        int((self.rank as usize + distance) % self.size)
    }

    /// The rank `distance` before this one, around the end.
    pub fn before(&self, distance: usize) -> Rank {
        self.after(self.size - distance % self.size)
    }

    /// All ranks that messages can go to.
    pub fn ranks(&self) -> std::ops::Range<Rank> {
        0..int(self.remote)
    }

    /// MPI's handle, valid while this value lives.
    pub fn raw(&self) -> ffi::MPI_Comm {
        self.raw
    }

    /// Sends bytes.
    pub fn send(&self, mode: Mode, data: &[u8], to: Rank, tag: Tag) {
        self.send_typed(mode, data, (data.len(), &Datatype::byte()), to, tag);
    }

    /// Sends `what.0` elements of type `what.1` from the start of `data`.
    pub fn send_typed(&self, mode: Mode, data: &[u8], what: (usize, &Datatype), to: Rank, tag: Tag) {
        let (count, datatype) = what;
        datatype.must_fit(count, data.len());
        let call = match mode {
            Mode::Standard => ffi::MPI_Send,
            Mode::Synchronous => ffi::MPI_Ssend,
            Mode::Buffered => ffi::MPI_Bsend,
            Mode::Ready => ffi::MPI_Rsend,
        };
        // SAFETY: the elements lie inside `data`, checked above.
        succeed(unsafe { call(data.as_ptr().cast(), int(count), datatype.raw(), to, tag, self.raw) });
    }

    /// Starts to send the whole of `buffer`.
    pub fn start_send(&self, mode: Mode, buffer: Buffer, to: Rank, tag: Tag) -> Pending {
        let count = buffer.len();
        self.start_send_typed(mode, buffer, (count, &Datatype::byte()), to, tag)
    }

    /// Starts to send `what.0` elements of type `what.1` from the start of `buffer`.
    pub fn start_send_typed(
        &self,
        mode: Mode,
        buffer: Buffer,
        what: (usize, &Datatype),
        to: Rank,
        tag: Tag,
    ) -> Pending {
        let (count, datatype) = what;
        datatype.must_fit(count, buffer.len());
        let call = match mode {
            Mode::Standard => ffi::MPI_Isend,
            Mode::Synchronous => ffi::MPI_Issend,
            Mode::Buffered => ffi::MPI_Ibsend,
            Mode::Ready => ffi::MPI_Irsend,
        };
        Pending::start(buffer, |data, request| {
            let (data, count) = (data.as_ptr().cast(), int(count));
            // SAFETY: the elements lie inside the buffer, which lives until the request is done.
            unsafe { call(data, count, datatype.raw(), to, tag, self.raw, request) }
        })
    }

    /// Prepares a persistent send of the whole of `buffer`.
    pub fn persistent_send(&self, mode: Mode, buffer: Buffer, to: Rank, tag: Tag) -> Persistent {
        let call = match mode {
            Mode::Standard => ffi::MPI_Send_init,
            Mode::Synchronous => ffi::MPI_Ssend_init,
            Mode::Buffered => ffi::MPI_Bsend_init,
            Mode::Ready => ffi::MPI_Rsend_init,
        };
        Persistent::set_up(buffer, |data, request| {
            let (start, count, byte) = (data.as_ptr().cast(), int(data.len()), Datatype::byte());
            // SAFETY: the buffer lives until the request is freed.
            unsafe { call(start, count, byte.raw(), to, tag, self.raw, request) }
        })
    }

    /// Receives bytes into the whole of `buffer` or its beginning.
    pub fn receive(&self, buffer: &mut Buffer, from: Rank, tag: Tag) -> Status {
        let count = buffer.len();
        self.receive_typed(buffer, (count, &Datatype::byte()), from, tag)
    }

    /// Receives up to `what.0` elements of type `what.1` to the start of `buffer`.
    pub fn receive_typed(
        &self,
        buffer: &mut Buffer,
        what: (usize, &Datatype),
        from: Rank,
        tag: Tag,
    ) -> Status {
        match self.try_receive(buffer, what, from, tag) {
            (status, SUCCESS) => status,
            (_, code) => panic!("MPI_Recv from {from} with tag {tag}: {}", crate::universe::explain(code)),
        }
    }

    /// Receives like [`Comm::receive_typed`], and gives MPI's error code instead of panicking if it failed.
    pub fn try_receive(
        &self,
        buffer: &mut Buffer,
        what: (usize, &Datatype),
        from: Rank,
        tag: Tag,
    ) -> (Status, c_int) {
        let (count, datatype) = what;
        datatype.must_fit(count, buffer.len());
        let mut status = blank_status();
        let to = buffer.payload_mut().as_mut_ptr().cast();
        let (count, datatype) = (int(count), datatype.raw());
        // SAFETY: the elements lie inside the buffer.
        let code = unsafe { ffi::MPI_Recv(to, count, datatype, from, tag, self.raw, &raw mut status) };
        (Status::from_raw(&status), code)
    }

    /// Starts to receive bytes into `buffer`.
    pub fn start_receive(&self, buffer: Buffer, from: Rank, tag: Tag) -> Pending {
        let count = buffer.len();
        self.start_receive_typed(buffer, (count, &Datatype::byte()), from, tag)
    }

    /// Starts to receive up to `what.0` elements of type `what.1` to the start of `buffer`.
    pub fn start_receive_typed(
        &self,
        buffer: Buffer,
        what: (usize, &Datatype),
        from: Rank,
        tag: Tag,
    ) -> Pending {
        let (count, datatype) = what;
        datatype.must_fit(count, buffer.len());
        Pending::start(buffer, |data, request| {
            let (data, count) = (data.as_mut_ptr().cast(), int(count));
            // SAFETY: the elements lie inside the buffer, which lives until the request is done.
            unsafe { ffi::MPI_Irecv(data, count, datatype.raw(), from, tag, self.raw, request) }
        })
    }

    /// Prepares a persistent receive into `buffer`.
    pub fn persistent_receive(&self, buffer: Buffer, from: Rank, tag: Tag) -> Persistent {
        let count = buffer.len();
        self.persistent_receive_typed(buffer, (count, &Datatype::byte()), from, tag)
    }

    /// Prepares a persistent receive of up to `what.0` elements of type `what.1` to the start of `buffer`.
    pub fn persistent_receive_typed(
        &self,
        buffer: Buffer,
        what: (usize, &Datatype),
        from: Rank,
        tag: Tag,
    ) -> Persistent {
        let (count, datatype) = what;
        datatype.must_fit(count, buffer.len());
        Persistent::set_up(buffer, |data, request| {
            let (to, count) = (data.as_mut_ptr().cast(), int(count));
            // SAFETY: the elements lie inside the buffer, which lives until the request is freed.
            unsafe { ffi::MPI_Recv_init(to, count, datatype.raw(), from, tag, self.raw, request) }
        })
    }

    /// Sends `data` to one rank and receives from another in one `MPI_Sendrecv`.
    pub fn exchange(&self, data: &[u8], to: Rank, buffer: &mut Buffer, from: Rank, tag: Tag) -> Status {
        let byte = Datatype::byte().raw();
        let mut status = blank_status();
        let room = int(buffer.len());
        let (source, landing) = (data.as_ptr().cast(), buffer.payload_mut().as_mut_ptr().cast());
        let count = int(data.len());
        // SAFETY: both byte ranges are valid and distinct.
        succeed(unsafe {
            ffi::MPI_Sendrecv(
                source,
                count,
                byte,
                to,
                tag,
                landing,
                room,
                byte,
                from,
                tag,
                self.raw,
                &raw mut status,
            )
        });
        Status::from_raw(&status)
    }

    /// Sends `buffer` to one rank and replaces its content by what another sends.
    pub fn replace(&self, buffer: &mut Buffer, to: Rank, from: Rank, tag: Tag) -> Status {
        let byte = Datatype::byte().raw();
        let mut status = blank_status();
        let count = int(buffer.len());
        let data: *mut c_void = buffer.payload_mut().as_mut_ptr().cast();
        let out = &raw mut status;
        // SAFETY: the bytes are the buffer's.
        succeed(unsafe { ffi::MPI_Sendrecv_replace(data, count, byte, to, tag, from, tag, self.raw, out) });
        Status::from_raw(&status)
    }

    /// Waits until a message could be received, and tells about it.
    pub fn probe(&self, from: Rank, tag: Tag) -> Status {
        let mut status = blank_status();
        // SAFETY: MPI writes the status.
        succeed(unsafe { ffi::MPI_Probe(from, tag, self.raw, &raw mut status) });
        Status::from_raw(&status)
    }

    /// Looks whether a message could be received.
    pub fn look(&self, from: Rank, tag: Tag) -> Option<Status> {
        let mut status = blank_status();
        let mut flag = 0;
        // SAFETY: MPI writes flag and status.
        succeed(unsafe { ffi::MPI_Iprobe(from, tag, self.raw, &raw mut flag, &raw mut status) });
        (flag != 0).then(|| Status::from_raw(&status))
    }

    /// Waits for a message and takes it out of matching (`MPI_Mprobe`).
    pub fn claim(&self, from: Rank, tag: Tag) -> (Message, Status) {
        let mut status = blank_status();
        // SAFETY: a constant of the MPI library.
        let mut raw = unsafe { ffi::RSMPI_MESSAGE_NULL };
        // SAFETY: MPI writes message and status.
        succeed(unsafe { ffi::MPI_Mprobe(from, tag, self.raw, &raw mut raw, &raw mut status) });
        (Message { raw }, Status::from_raw(&status))
    }

    /// Takes a message out of matching if there is one (`MPI_Improbe`).
    pub fn try_claim(&self, from: Rank, tag: Tag) -> Option<(Message, Status)> {
        let mut status = blank_status();
        // SAFETY: a constant of the MPI library.
        let mut raw = unsafe { ffi::RSMPI_MESSAGE_NULL };
        let mut flag = 0;
        let (flag_out, message) = (&raw mut flag, &raw mut raw);
        // SAFETY: MPI writes flag, message and status.
        succeed(unsafe { ffi::MPI_Improbe(from, tag, self.raw, flag_out, message, &raw mut status) });
        (flag != 0).then(|| (Message { raw }, Status::from_raw(&status)))
    }
}

impl Drop for Comm {
    fn drop(&mut self) {
        if !self.predefined {
            // SAFETY: the communicator is ours.
            succeed(unsafe { ffi::MPI_Comm_free(&raw mut self.raw) });
        }
    }
}

/// A message that was claimed and can be received only through this value.
#[derive(Debug)]
pub struct Message {
    raw: ffi::MPI_Message,
}

impl Message {
    /// Receives the message into `buffer`.
    pub fn receive(mut self, buffer: &mut Buffer) -> Status {
        let mut status = blank_status();
        let (count, byte) = (int(buffer.len()), Datatype::byte());
        let to = buffer.payload_mut().as_mut_ptr().cast();
        let message = &raw mut self.raw;
        // SAFETY: the bytes are the buffer's; the message is ours.
        succeed(unsafe { ffi::MPI_Mrecv(to, count, byte.raw(), message, &raw mut status) });
        Status::from_raw(&status)
    }

    /// Starts to receive the message into `buffer`.
    pub fn start_receive(self, buffer: Buffer) -> Pending {
        let count = buffer.len();
        self.start_receive_typed(buffer, (count, &Datatype::byte()))
    }

    /// Starts to receive the message as up to `what.0` elements of type `what.1` to the start of `buffer`.
    pub fn start_receive_typed(mut self, buffer: Buffer, what: (usize, &Datatype)) -> Pending {
        let (count, datatype) = what;
        datatype.must_fit(count, buffer.len());
        Pending::start(buffer, |data, request| {
            let (to, message) = (data.as_mut_ptr().cast(), &raw mut self.raw);
            // SAFETY: the elements lie inside the buffer, which lives until the request is done.
            unsafe { ffi::MPI_Imrecv(to, int(count), datatype.raw(), message, request) }
        })
    }
}

/// The buffer that `Mode::Buffered` copies messages to; detached on drop.
#[derive(Debug)]
pub struct Attached(Vec<u8>);

impl Attached {
    /// Room for `messages` messages of `size` bytes each at the same time.
    pub fn room_for(messages: usize, size: usize) -> Attached {
        let each = size + ffi::MPI_BSEND_OVERHEAD as usize + 64;
        let mut memory = vec![0; messages * each];
        // SAFETY: the memory stays until it is detached in `drop`.
        succeed(unsafe { ffi::MPI_Buffer_attach(memory.as_mut_ptr().cast(), int(memory.len())) });
        Attached(memory)
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let mut base: *mut c_void = self.0.as_mut_ptr().cast();
        let mut size = 0;
        // SAFETY: detaching waits until MPI no longer uses the memory.
        succeed(unsafe { ffi::MPI_Buffer_detach((&raw mut base).cast(), &raw mut size) });
    }
}
