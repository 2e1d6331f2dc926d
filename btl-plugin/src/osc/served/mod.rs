//! Served windows: everyone writes its own memory only, and does so for others when they ask.
//!
//! ```text
//!     origin                                             target
//!     put, accumulate, lock ... ──── a request ────────► when it looks for messages: does so,
//!     flush: looks whether all ◄──── its words ───────── and says how many it has done
//!     get ◄───────────────────────── its memory, or where that is not in its section, a request too
//! ```
//!
//! A request travels as a message of the transport with a tag of its own. There are no answers: a process has a block of
//! words in its section for each other one, which that one reads. Nobody writes what another one owns, so that this works in
//! closed regions.

mod access;
mod epochs;
mod locks;
mod request;

use std::cell::{Cell, RefCell};
use std::ffi::c_int;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vmshm_transport::abi::EndpointName;
use vmshm_transport::{Fragment, Peer, copy_from_shared, copy_to_shared};
use zerocopy::IntoBytes;

use super::calls;
use super::epochs::{Groups, Locked, pause, rest};
use super::members::{self, Member, Members, OUT_OF_RANGE, Wanted};
use super::others;
use crate::component;
use crate::fabric::{FABRIC, Fabric, Outgoing, Posted, Refused};
use crate::lock::Lock;
use crate::ompi::{self, ompi_communicator_t, ompi_osc_base_module_t, ompi_win_t};
use locks::Locks;
use request::{Kind, Request};

pub use request::TAG;

/// Bytes that a process has for each other one.
const BLOCK: usize = 1024;

/// Where in a block what was fetched lies.
const REPLY: usize = 128;

/// Bytes that are fetched at a time.
const REPLY_LEN: usize = BLOCK - REPLY;

/// Most bytes of a request that go through the ring itself.
const SHORT: usize = 640;

/// Longer ones lie in memory that is used in turn.
const LONG: usize = 8 << 10;

/// Words of operands for which no memory is allocated.
const FEW: usize = 16;

/// Looks at another's words between two looks for messages.
const LOOKS: u32 = 32;

/// Which word of a block, by its place.
#[derive(Debug, Clone, Copy)]
enum Word {
    /// Requests of the other one that were done.
    Done = 0,
    /// Locks that it was given.
    Granted = 8,
    /// How often `MPI_Win_post` was called for it.
    Posted = 16,
    /// How often `MPI_Win_complete` was.
    Completed = 24,
}

/// A block of words.
#[derive(Debug, Clone, Copy)]
struct Block(*mut u8);

impl Block {
    fn word(&self, word: Word) -> &AtomicU64 {
        // SAFETY: blocks are only made where a process of the window has mapped one.
        unsafe { AtomicU64::from_ptr(self.0.add(word as usize).cast()) }
    }

    fn load(&self, word: Word) -> u64 {
        self.word(word).load(Ordering::Acquire)
    }

    /// Adds one, in a block of this process's.
    fn count(&self, word: Word) {
        let word = self.word(word);
        word.store(word.load(Ordering::Relaxed).wrapping_add(1), Ordering::Release);
    }

    fn reply(&self) -> *mut u8 {
        self.0.wrapping_add(REPLY)
    }
}

/// A served window.
#[repr(C)]
struct Served {
    /// What Open MPI calls: it takes the window for this.
    functions: ompi_osc_base_module_t,
    members: Members,
    sides: Vec<Side>,
    /// What all its processes call it.
    name: u32,
    /// Who has locked our memory.
    locks: RefCell<Locks>,
    /// Its epochs of groups.
    groups: Groups,
}

/// The window's own functions.
const FUNCTIONS: ompi_osc_base_module_t = calls::functions::<Served>();

/// What there is between this process and another one of the window, or itself.
struct Side {
    member: Member,
    /// None for itself.
    peer: Option<Peer>,
    /// Our block for it.
    ours: Block,
    /// Its block for us.
    theirs: Block,
    /// Requests that we have sent.
    sent: Cell<u64>,
    /// Locks that we have asked for.
    asked: Cell<u64>,
    /// Its posts and its completions that we have made use of.
    posts: Cell<u64>,
    completions: Cell<u64>,
    /// How we have locked it.
    lock: Cell<Option<Locked>>,
}

/// A window that requests may be for.
struct Known(*const Served);

// SAFETY: windows are made and used by one thread at a time, see `component::query`.
unsafe impl Send for Known {}

static KNOWN: Lock<Vec<Known>> = Lock::new(Vec::new());

/// Makes a served window, or returns false if some process has no room for its words, or has its memory outside its section
/// and that is not to be `anywhere`.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
pub unsafe fn make(
    win: *mut ompi_win_t,
    wanted: &Wanted,
    names: &[EndpointName],
    anywhere: bool,
) -> Result<bool, c_int> {
    // SAFETY: the caller vouches for all.
    let peers = unsafe { connect(wanted.comm, names) };
    // SAFETY: as above.
    let met = unsafe { members::meet(wanted, names, names.len() * BLOCK, peers.is_some(), anywhere)? };
    let (Some(members), Some(peers)) = (met, peers) else { return Ok(false) };
    let me = members.me;
    let side = |((rank, member), peer): ((usize, &Member), Option<Peer>)| Side {
        member: *member,
        peer,
        ours: Block(members.all[me].words.wrapping_add(rank * BLOCK)),
        theirs: Block(member.words.wrapping_add(me * BLOCK)),
        sent: Cell::new(0),
        asked: Cell::new(0),
        posts: Cell::new(0),
        completions: Cell::new(0),
        lock: Cell::new(None),
    };
    let sides = members.all.iter().enumerate().zip(peers).map(side).collect();
    let comm = members.comm;
    // SAFETY: as above; the communicator is ours.
    unsafe {
        let window = Box::into_raw(Box::new(Served {
            functions: FUNCTIONS,
            members,
            sides,
            name: ompi::vmshm_osc_name(comm),
            locks: RefCell::default(),
            groups: Groups::default(),
        }));
        ompi::vmshm_osc_set_module(win, window.cast());
        KNOWN.lock().push(Known(window));
        others::count(1);
        // Nobody sends requests before all know the window.
        let code = ompi::vmshm_osc_barrier(comm);
        if code == ompi::OPAL_SUCCESS as c_int {
            return Ok(true);
        }
        forget(window);
        drop(Box::from_raw(window));
        Err(code)
    }
}

/// All processes of a communicator as peers, and none for this one; None if one of them cannot be reached.
///
/// # Safety
/// `comm` is a communicator of Open MPI, whose processes have these names.
unsafe fn connect(comm: *mut ompi_communicator_t, names: &[EndpointName]) -> Option<Vec<Option<Peer>>> {
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut()?;
    // SAFETY: the caller vouches for it.
    let (me, process) = unsafe {
        let me = usize::try_from(ompi::vmshm_coll_rank(comm)).ok()?;
        (me, |rank| ompi::vmshm_coll_proc(comm, rank as c_int))
    };
    let peer = |(rank, name): (usize, &EndpointName)| match rank == me {
        true => Some(None),
        // Its loss is reported even if messages go another way.
        false => fabric.add(name, process(rank)).ok().map(Some),
    };
    names.iter().enumerate().map(peer).collect()
}

/// Takes no more requests for a window.
fn forget(window: *const Served) {
    KNOWN.lock().retain(|known| !ptr::eq(known.0, window));
    others::count(-1);
}

/// Does what a peer asks for; false if it may not.
///
/// # Safety
/// `len` bytes can be read at `bytes`; the peer may change them meanwhile.
pub unsafe fn heard(peer: Peer, bytes: *const u8, len: usize) -> bool {
    // SAFETY: the caller vouches for it.
    let Some((request, data, len)) = (unsafe { Request::read(bytes, len) }) else { return false };
    let found = KNOWN.lock().iter().find_map(|known| {
        // SAFETY: known windows have not been freed.
        let window = unsafe { &*known.0 };
        (window.name == request.window).then_some(window)
    });
    let Some(window) = found else { return false };
    let Some(rank) = window.sides.iter().position(|side| side.peer == Some(peer)) else { return false };
    // SAFETY: as above.
    unsafe { window.serve(rank, &request, data, len) }
}

impl Served {
    /// A process by its rank.
    ///
    /// # Errors
    /// There is none.
    fn side(&self, rank: c_int) -> Result<&Side, c_int> {
        Ok(&self.sides[self.members.index(rank)?])
    }

    /// Does what process `rank` asks for; false if it may not.
    ///
    /// # Safety
    /// `len` bytes can be read at `data`; the process may change them meanwhile.
    unsafe fn serve(&self, rank: usize, request: &Request, data: *const u8, len: usize) -> bool {
        let ours = self.sides[rank].ours;
        // SAFETY: the caller vouches for it.
        let is_done = unsafe {
            match request.kind() {
                Some(Kind::Put) => self.place(request.offset, len).is_some_and(|to| {
                    copy_from_shared(data, to, len);
                    true
                }),
                Some(Kind::Read) => {
                    let len = request.count as usize;
                    self.place(request.offset, len).filter(|_| len <= REPLY_LEN).is_some_and(|from| {
                        copy_to_shared(from, ours.reply(), len);
                        true
                    })
                }
                Some(Kind::Change | Kind::Fetch) => self.change(request, data, len, ours),
                Some(Kind::Swap) => self.swap(request, data, len, ours),
                Some(Kind::Lock | Kind::LockAlone) => {
                    self.locks.borrow_mut().ask(rank, request.kind() == Some(Kind::LockAlone))
                }
                Some(Kind::Unlock) => self.locks.borrow_mut().give_back(rank),
                None => false,
            }
        };
        while let Some(rank) = self.locks.borrow_mut().grant() {
            self.sides[rank].ours.count(Word::Granted);
        }
        ours.count(Word::Done);
        is_done
    }

    /// So many bytes of our memory.
    fn place(&self, offset: u64, len: usize) -> Option<*mut u8> {
        let mine = &self.members.all[self.members.me];
        let offset = usize::try_from(offset).ok()?;
        let fits = offset <= mine.len && len <= mine.len - offset;
        fits.then(|| mine.base.wrapping_add(offset))
    }

    /// Changes numbers of ours, and says what they were if that is wanted.
    ///
    /// # Safety
    /// As [`Served::serve`].
    unsafe fn change(&self, request: &Request, data: *const u8, len: usize, ours: Block) -> bool {
        // SAFETY: any number may be asked for.
        let extent = unsafe { ompi::vmshm_osc_extent(request.number.into()) };
        let size = extent.checked_mul(request.count as usize);
        let (Some(size), Ok(count)) = (size.filter(|size| *size > 0), c_int::try_from(request.count)) else {
            return false;
        };
        let Some(at) = self.place(request.offset, size) else { return false };
        // An operation that leaves what there is needs no operands.
        if len != size && !(len == 0 && request.kind() == Some(Kind::Fetch)) {
            return false;
        }
        // SAFETY: the bytes are there; the reply's are if they are not too many.
        unsafe {
            if request.kind() == Some(Kind::Fetch) {
                if size > REPLY_LEN {
                    return false;
                }
                copy_to_shared(at, ours.reply(), size);
            }
            if len == 0 {
                return true;
            }
            // Whoever asks may change them meanwhile.
            let mut few = [0u64; FEW];
            let mut many = Vec::new();
            let operands = match few.get_mut(..len.div_ceil(8)) {
                Some(few) => few,
                None => {
                    many.resize(len.div_ceil(8), 0u64);
                    &mut many[..]
                }
            };
            copy_from_shared(data, operands.as_mut_ptr().cast(), len);
            ompi::vmshm_osc_apply(
                request.op.cast_signed(),
                request.number.into(),
                operands.as_ptr().cast(),
                at.cast(),
                count,
            )
        }
    }

    /// Replaces a number of ours, and says what it was.
    ///
    /// # Safety
    /// As [`Served::serve`].
    unsafe fn swap(&self, request: &Request, data: *const u8, len: usize, ours: Block) -> bool {
        let mut given = [0u8; 64];
        let size = len / 2;
        if len == 0 || len != size * 2 || len > given.len() {
            return false;
        }
        let Some(at) = self.place(request.offset, size) else { return false };
        // SAFETY: the bytes are there, for the reply too.
        unsafe {
            copy_from_shared(data, given.as_mut_ptr(), len);
            let (compare, new) = given[..len].split_at(size);
            let mut found = [0u8; 32];
            copy_from_shared(at, found.as_mut_ptr(), size);
            copy_to_shared(found.as_ptr(), ours.reply(), size);
            if found[..size] == *compare {
                copy_to_shared(new.as_ptr(), at, size);
            }
        }
        true
    }

    /// Asks a process for something once it can be asked, and waits for its reply, which fills `to`.
    ///
    /// # Errors
    /// It is gone, or may not be asked for this.
    fn fetch(&self, side: &Side, request: &Request, data: &[u8], to: &mut [u8]) -> Result<(), c_int> {
        self.ask(side, request, data)?;
        side.flush();
        assert!(to.len() <= REPLY_LEN);
        // SAFETY: a reply has room for so many.
        unsafe { copy_from_shared(side.theirs.reply(), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// Asks a process for something once it can be asked.
    ///
    /// # Errors
    /// It is gone, or may not be asked for this.
    fn ask(&self, side: &Side, request: &Request, data: &[u8]) -> Result<(), c_int> {
        let Some(peer) = side.peer else {
            side.sent.set(side.sent.get() + 1);
            // SAFETY: the data are there.
            let is_done = unsafe { self.serve(self.members.me, request, data.as_ptr(), data.len()) };
            return if is_done { Ok(()) } else { Err(OUT_OF_RANGE) };
        };
        loop {
            match send(peer, request.as_bytes(), data) {
                Ok(()) => break,
                Err(Refused::Busy) => pause(),
                Err(Refused::Lost) => {
                    component::report(&mut FABRIC.lock(), peer);
                    return Err(ompi::OPAL_ERR_UNREACH);
                }
            }
        }
        side.sent.set(side.sent.get() + 1);
        Ok(())
    }
}

impl Side {
    /// Waits until the process has done all that it was asked for; orders as a fence does.
    fn flush(&self) {
        self.await_word(Word::Done, self.sent.get());
    }

    /// Waits until a word of the other's has reached a value; orders as a fence does.
    fn await_word(&self, word: Word, value: u64) {
        loop {
            for _ in 0..LOOKS {
                if self.theirs.load(word) >= value {
                    return rest();
                }
                std::hint::spin_loop();
            }
            pause();
        }
    }
}

/// Sends a request, if there is room for it now.
fn send(peer: Peer, request: &[u8], data: &[u8]) -> Result<(), Refused> {
    let mut fabric = FABRIC.lock();
    let fabric = fabric.as_mut().ok_or(Refused::Lost)?;
    let len = request.len() + data.len();
    if len <= SHORT {
        return fabric.send_now(peer.index(), TAG, &[request, data]);
    }
    if !fabric.is_free(peer) {
        return Err(Refused::Busy);
    }
    let (memory, is_chunk) = room(fabric, peer, len).ok_or(Refused::Busy)?;
    // SAFETY: there is room for both; there is no descriptor.
    let posted = unsafe {
        copy_to_shared(request.as_ptr(), memory.ptr(), request.len());
        copy_to_shared(data.as_ptr(), memory.ptr().add(request.len()), data.len());
        let message = if is_chunk { Outgoing::Chunk } else { Outgoing::Fragment };
        fabric.post(peer, message(memory, TAG, len))
    };
    if posted == Posted::Lost { Err(Refused::Lost) } else { Ok(()) }
}

/// Memory for a message, and whether it is a chunk: a piece of many is faster in memory that is used in turn, as in `stage`.
fn room(fabric: &mut Fabric, peer: Peer, len: usize) -> Option<(Fragment, bool)> {
    if len > LONG {
        match fabric.chunk(peer, fabric.cut.few) {
            Some(chunk) if chunk.capacity() >= len => return Some((chunk, true)),
            // The section is nearly full.
            Some(chunk) => fabric.chunks.put(chunk),
            None if fabric.endpoint.in_flight(peer) > 0 => return None,
            None => {}
        }
    }
    Some((fabric.fragment(len)?, false))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A window of this process and another one, over memory of the test.
    fn window(memory: &mut [u64], blocks: &mut [[u64; BLOCK / 8]; 4]) -> Served {
        let mut block = |number: usize| Block(blocks[number].as_mut_ptr().cast());
        let member = Member {
            base: memory.as_mut_ptr().cast(),
            is_mapped: true,
            len: size_of_val(memory),
            unit: 1,
            words: ptr::null_mut(),
        };
        let mut side = |number: usize| Side {
            member,
            peer: None,
            ours: block(number),
            theirs: block(2 + number),
            sent: Cell::new(0),
            asked: Cell::new(0),
            posts: Cell::new(0),
            completions: Cell::new(0),
            lock: Cell::new(None),
        };
        Served {
            functions: FUNCTIONS,
            sides: vec![side(0), side(1)],
            members: Members::over(vec![member, member]),
            name: 5,
            locks: RefCell::default(),
            groups: Groups::default(),
        }
    }

    #[test]
    fn what_leaves_the_memory_or_makes_no_sense_is_refused() {
        let mut memory = [7u64; 8];
        let mut blocks = [[0; BLOCK / 8]; 4];
        let window = window(&mut memory, &mut blocks);
        let data = [9u8; 256];
        // SAFETY: the data are there.
        let serve = |request: &Request, len| unsafe { window.serve(1, request, data.as_ptr(), len) };
        let at = |kind, offset| Request::new(5, kind, offset);
        for (kind, offset, len) in [
            (Kind::Put, 57, 8),
            (Kind::Put, 0, 65),
            (Kind::Put, usize::MAX, 8),
            (Kind::Swap, 57, 16),
            (Kind::Swap, 0, 15),
            (Kind::Swap, 0, 0),
            (Kind::Swap, 0, 66),
            (Kind::Unlock, 0, 0),
        ] {
            assert!(!serve(&at(kind, offset), len), "{kind:?} of {len} bytes at {offset}");
        }
        for (number, count, op, len) in
            [(9999, 1, 3, 8), (13, u32::MAX, 3, 8), (13, 1, u32::MAX, 8), (13, 0, 3, 0), (13, 1, 3, 0)]
        {
            let request = Request { number, count, op, ..at(Kind::Change, 0) };
            assert!(!serve(&request, len), "{request:?}");
        }
        for (offset, count) in [(0, 65), (57, 8), (0, u32::MAX)] {
            assert!(!serve(&Request { count, ..at(Kind::Read, offset) }, 0), "{count} bytes at {offset}");
        }
        assert_eq!(memory, [7; 8]);
        assert_eq!(blocks[1][0], 16, "all are counted, so that nobody waits for them");
    }

    #[test]
    fn requests_are_done_and_counted() {
        let mut memory = [7u64; 8];
        let mut blocks = [[0; BLOCK / 8]; 4];
        let window = window(&mut memory, &mut blocks);
        let serve = |rank, kind, offset, data: &[u64]| {
            let request = Request::new(5, kind, offset);
            // SAFETY: the data are there.
            assert!(unsafe { window.serve(rank, &request, data.as_ptr().cast(), size_of_val(data)) });
        };
        serve(1, Kind::Put, 8, &[1, 2]);
        serve(1, Kind::Swap, 16, &[3, 4]);
        serve(1, Kind::Swap, 56, &[7, 8]);
        serve(1, Kind::LockAlone, 0, &[]);
        serve(0, Kind::Lock, 0, &[]);
        assert_eq!(window.sides[1].ours.load(Word::Granted), 1);
        assert_eq!(window.sides[0].ours.load(Word::Granted), 0);
        serve(1, Kind::Unlock, 0, &[]);
        assert_eq!(window.sides[0].ours.load(Word::Granted), 1);
        assert_eq!(window.sides[1].ours.load(Word::Done), 5);
        assert_eq!(memory, [7, 1, 2, 7, 7, 7, 7, 8]);
        assert_eq!(blocks[1][REPLY / 8], 7);
        let request = Request { count: 16, ..Request::new(5, Kind::Read, 8) };
        // SAFETY: there are no data.
        assert!(unsafe { window.serve(1, &request, ptr::null(), 0) });
        assert_eq!(blocks[1][REPLY / 8..][..2], [1, 2]);
    }

    #[test]
    fn no_more_is_read_than_a_reply_holds() {
        let mut memory = [7u64; REPLY_LEN / 8 + 1];
        let mut blocks = [[0; BLOCK / 8]; 4];
        let window = window(&mut memory, &mut blocks);
        let serve = |count: usize| {
            let request = Request { count: count as u32, ..Request::new(5, Kind::Read, 0) };
            // SAFETY: there are no data.
            unsafe { window.serve(1, &request, ptr::null(), 0) }
        };
        assert!(serve(REPLY_LEN));
        assert!(!serve(REPLY_LEN + 1));
    }
}
