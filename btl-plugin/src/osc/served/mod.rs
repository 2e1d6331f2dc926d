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
//!
//! Of a dynamic window, only the target knows which addresses may be accessed: it looks when it is asked, and counts what it
//! has refused. The origin hears of that when it next waits for the target.

mod access;
mod attached;
mod epochs;
mod locks;
mod request;

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};

use vmshm_messaging::Refused;
use vmshm_transport::abi::EndpointName;
use vmshm_transport::{Peer, copy_from_shared, copy_to_shared};
use zerocopy::IntoBytes;

use super::calls;
use super::epochs::{Groups, Locked, pause, rest};
use super::members::{self, Member, Members, OUT_OF_RANGE, Wanted};
use super::numbers::Number;
use super::others;
use super::window::of;
use crate::ompi::{self, ompi_communicator_t, ompi_osc_base_module_t, ompi_win_t};
use crate::process::{INSTANCE, Lock, loss};
use attached::{Attached, NOT_ATTACHED};
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

/// Words of operands for which no memory is allocated.
const FEW: usize = 8;

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
    /// Those of the requests done that were for memory that is not attached.
    Refused = 32,
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
    /// Of a dynamic window, our memory.
    attached: Option<RefCell<Attached>>,
}

/// The window's own functions.
const FUNCTIONS: ompi_osc_base_module_t = ompi_osc_base_module_t {
    osc_win_attach: Some(attach),
    osc_win_detach: Some(detach),
    ..calls::functions::<Served>()
};

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The memory is not attached, which who asks cannot know.
    NotAttached,
    /// Nobody who keeps to the rules asks for this.
    Nonsense,
}

/// What there is between this process and another one of the window, or itself.
struct Side {
    member: Member,
    /// None for itself.
    peer: Option<Peer>,
    /// Our block for it.
    ours: Block,
    /// Its block for us.
    theirs: Block,
    /// Requests that we have sent, and refusals that we have heard of.
    sent: Cell<u64>,
    refused: Cell<u64>,
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
    let (Some(mut members), Some(peers)) = (met, peers) else { return Ok(false) };
    let is_dynamic = wanted.flavor == ompi::MPI_WIN_FLAVOR_DYNAMIC;
    if is_dynamic {
        members.all.iter_mut().for_each(Member::becomes_dynamic);
    }
    let me = members.me;
    let side = |((rank, member), peer): ((usize, &Member), Option<Peer>)| Side {
        member: *member,
        peer,
        ours: Block(members.all[me].words.wrapping_add(rank * BLOCK)),
        theirs: Block(member.words.wrapping_add(me * BLOCK)),
        sent: Cell::new(0),
        refused: Cell::new(0),
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
            attached: is_dynamic.then(RefCell::default),
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
    let mut instance = INSTANCE.lock();
    let instance = instance.as_mut()?;
    // SAFETY: the caller vouches for it.
    let (me, process) = unsafe {
        let me = usize::try_from(ompi::vmshm_coll_rank(comm)).ok()?;
        (me, |rank| ompi::vmshm_coll_proc(comm, rank as c_int))
    };
    let peer = |(rank, name): (usize, &EndpointName)| match rank == me {
        true => Some(None),
        // Its loss is reported even if messages go another way.
        false => instance.connect(name, process(rank)).ok().map(Some),
    };
    names.iter().enumerate().map(peer).collect()
}

/// `MPI_Win_attach`.
unsafe extern "C" fn attach(win: *mut ompi_win_t, start: *mut c_void, len: usize) -> c_int {
    // SAFETY: Open MPI gives a window.
    let Some(attached) = &unsafe { of::<Served>(win) }.attached else { return NOT_ATTACHED };
    members::code(attached.borrow_mut().attach(start.expose_provenance(), len))
}

/// `MPI_Win_detach`.
unsafe extern "C" fn detach(win: *mut ompi_win_t, start: *const c_void) -> c_int {
    // SAFETY: Open MPI gives a window.
    let Some(attached) = &unsafe { of::<Served>(win) }.attached else { return NOT_ATTACHED };
    members::code(attached.borrow_mut().detach(start.addr()))
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
pub unsafe fn accept(peer: Peer, bytes: *const u8, len: usize) -> bool {
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
    unsafe { window.serve(rank, &request, data, len) != Err(Refusal::Nonsense) }
}

impl Served {
    /// A process by its rank.
    ///
    /// # Errors
    /// There is none.
    fn side(&self, rank: c_int) -> Result<&Side, c_int> {
        Ok(&self.sides[self.members.index(rank)?])
    }

    /// Does what process `rank` asks for.
    ///
    /// # Errors
    /// It may not.
    ///
    /// # Safety
    /// `len` bytes can be read at `data`; the process may change them meanwhile.
    unsafe fn serve(
        &self,
        rank: usize,
        request: &Request,
        data: *const u8,
        len: usize,
    ) -> Result<(), Refusal> {
        let ours = self.sides[rank].ours;
        let sound = |is_sound: bool| if is_sound { Ok(()) } else { Err(Refusal::Nonsense) };
        // SAFETY: the caller vouches for it.
        let result = unsafe {
            match request.kind() {
                Some(Kind::Put) => self.place(request.offset, len).map(|to| copy_from_shared(data, to, len)),
                Some(Kind::Read) => self.read(request, ours),
                Some(Kind::Change | Kind::Fetch) => self.change(request, data, len, ours),
                Some(Kind::Swap) => self.swap(request, data, len, ours),
                Some(Kind::Lock | Kind::LockAlone) => {
                    sound(self.locks.borrow_mut().ask(rank, request.kind() == Some(Kind::LockAlone)))
                }
                Some(Kind::Unlock) => sound(self.locks.borrow_mut().give_back(rank)),
                None => Err(Refusal::Nonsense),
            }
        };
        while let Some(rank) = self.locks.borrow_mut().grant() {
            self.sides[rank].ours.count(Word::Granted);
        }
        if result == Err(Refusal::NotAttached) {
            ours.count(Word::Refused);
        }
        ours.count(Word::Done);
        result
    }

    /// So many bytes of our memory.
    ///
    /// # Errors
    /// They are not all ours to give.
    fn place(&self, offset: u64, len: usize) -> Result<*mut u8, Refusal> {
        let offset = usize::try_from(offset).map_err(|_| Refusal::Nonsense)?;
        if let Some(attached) = &self.attached {
            let has_all = attached.borrow().has(offset, len);
            return if has_all {
                Ok(ptr::with_exposed_provenance_mut(offset))
            } else {
                Err(Refusal::NotAttached)
            };
        }
        let mine = &self.members.all[self.members.me];
        let fits = offset <= mine.len && len <= mine.len - offset;
        if fits { Ok(mine.base.wrapping_add(offset)) } else { Err(Refusal::Nonsense) }
    }

    /// Says what bytes of ours are.
    ///
    /// # Errors
    /// They may not be asked for, or not so many.
    fn read(&self, request: &Request, ours: Block) -> Result<(), Refusal> {
        let len = request.count as usize;
        if len > REPLY_LEN {
            return Err(Refusal::Nonsense);
        }
        let from = self.place(request.offset, len)?;
        // SAFETY: the bytes are there, for the reply too.
        unsafe { copy_to_shared(from, ours.reply(), len) };
        Ok(())
    }

    /// Changes numbers of ours, and says what they were if that is wanted.
    ///
    /// # Errors
    /// They may not be asked for, or not for this.
    ///
    /// # Safety
    /// As [`Served::serve`].
    unsafe fn change(
        &self,
        request: &Request,
        data: *const u8,
        len: usize,
        ours: Block,
    ) -> Result<(), Refusal> {
        let number = Number::called(request.number).ok_or(Refusal::Nonsense)?;
        let count = c_int::try_from(request.count).map_err(|_| Refusal::Nonsense)?;
        let span = number.span(request.count as usize).ok_or(Refusal::Nonsense)?;
        let size = number.size * request.count as usize;
        let is_fetched = request.kind() == Some(Kind::Fetch);
        // An operation that leaves what there is needs no operands.
        let has_operands = len == size || len == 0 && is_fetched;
        if size == 0 || !has_operands || is_fetched && size > REPLY_LEN {
            return Err(Refusal::Nonsense);
        }
        let at = self.place(request.offset, span)?;
        // SAFETY: the numbers are there, and so are the operands and the reply.
        unsafe {
            if is_fetched && number.has_gaps() {
                copy_to_shared(number.pack(at, count).as_ptr(), ours.reply(), size);
            } else if is_fetched {
                copy_to_shared(at, ours.reply(), size);
            }
            if len == 0 {
                return Ok(());
            }
            // Whoever asks may change them meanwhile.
            let mut few = [0u128; FEW];
            let mut many = Vec::new();
            let operands = match few.get_mut(..len.div_ceil(size_of::<u128>())) {
                Some(few) => few,
                None => {
                    many.resize(len.div_ceil(size_of::<u128>()), 0u128);
                    &mut many[..]
                }
            };
            copy_from_shared(data, operands.as_mut_ptr().cast(), len);
            let operands = &operands.as_bytes()[..len];
            let is_done = number.apply(request.op.cast_signed(), operands, at, count);
            if is_done { Ok(()) } else { Err(Refusal::Nonsense) }
        }
    }

    /// Replaces a number of ours, and says what it was.
    ///
    /// # Errors
    /// It may not be asked for.
    ///
    /// # Safety
    /// As [`Served::serve`].
    unsafe fn swap(
        &self,
        request: &Request,
        data: *const u8,
        len: usize,
        ours: Block,
    ) -> Result<(), Refusal> {
        let mut given = [0u8; 64];
        let size = len / 2;
        if len == 0 || len != size * 2 || len > given.len() {
            return Err(Refusal::Nonsense);
        }
        let at = self.place(request.offset, size)?;
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
        Ok(())
    }

    /// Asks a process for something once it can be asked, and waits for its reply, which fills `to`.
    ///
    /// # Errors
    /// It is gone, or has refused this or what it was asked for before.
    fn fetch(&self, side: &Side, request: &Request, data: &[u8], to: &mut [u8]) -> Result<(), c_int> {
        self.ask(side, request, data)?;
        side.flush()?;
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
            let result = unsafe { self.serve(self.members.me, request, data.as_ptr(), data.len()) };
            return if result == Err(Refusal::Nonsense) { Err(OUT_OF_RANGE) } else { Ok(()) };
        };
        loop {
            match send(peer, request.as_bytes(), data) {
                Ok(()) => break,
                Err(Refused::Full) => pause(),
                Err(Refused::Lost) => {
                    loss::report(&mut INSTANCE.lock(), peer);
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
    ///
    /// # Errors
    /// It has refused some of it.
    fn flush(&self) -> Result<(), c_int> {
        self.await_word(Word::Done, self.sent.get());
        let refused = self.theirs.load(Word::Refused);
        if self.refused.replace(refused) == refused { Ok(()) } else { Err(OUT_OF_RANGE) }
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
    let mut instance = INSTANCE.lock();
    let engine = &mut instance.as_mut().ok_or(Refused::Lost)?.engine;
    let len = request.len() + data.len();
    if len <= SHORT {
        return engine.try_send(peer.index(), TAG, &[request, data]);
    }
    if !engine.is_free(peer) {
        return Err(Refused::Full);
    }
    let bounce = engine.bounce(peer, len).ok_or(Refused::Full)?;
    // SAFETY: there is room for both.
    unsafe {
        copy_to_shared(request.as_ptr(), bounce.ptr(), request.len());
        copy_to_shared(data.as_ptr(), bounce.ptr().add(request.len()), data.len());
    }
    engine.send_bounce(peer, TAG, bounce, len)
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
            refused: Cell::new(0),
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
            attached: None,
        }
    }

    #[test]
    fn what_leaves_the_memory_or_makes_no_sense_is_refused() {
        let mut memory = [7u64; 8];
        let mut blocks = [[0; BLOCK / 8]; 4];
        let window = window(&mut memory, &mut blocks);
        let data = [9u8; 256];
        // SAFETY: the data are there.
        let serve = |request: &Request, len| unsafe { window.serve(1, request, data.as_ptr(), len) }.is_ok();
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
            let done = unsafe { window.serve(rank, &request, data.as_ptr().cast(), size_of_val(data)) };
            assert_eq!(done, Ok(()));
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
        assert_eq!(unsafe { window.serve(1, &request, ptr::null(), 0) }, Ok(()));
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
            let done = unsafe { window.serve(1, &request, ptr::null(), 0) };
            done.is_ok()
        };
        assert!(serve(REPLY_LEN));
        assert!(!serve(REPLY_LEN + 1));
    }

    #[test]
    fn only_attached_memory_is_given_and_refusals_are_counted() {
        let mut memory = [7u64; 8];
        let mut blocks = [[0; BLOCK / 8]; 4];
        let (start, len) = (memory.as_mut_ptr().expose_provenance(), size_of_val(&memory));
        let mut window = window(&mut memory, &mut blocks);
        window.attached = Some(RefCell::default());
        let data = [9u8; 64];
        let serve = |request: Request, len| {
            // SAFETY: the data are there.
            unsafe { window.serve(1, &request, data.as_ptr(), len) }
        };
        let attached = window.attached.as_ref().unwrap();
        attached.borrow_mut().attach(start + 8, len - 8).unwrap();
        let requests = |at: usize| {
            let number = 47; // MPI_LONG
            [
                (Request::new(5, Kind::Put, at), 16),
                (Request { count: 16, ..Request::new(5, Kind::Read, at) }, 0),
                (Request { count: 2, number, op: 3, ..Request::new(5, Kind::Change, at) }, 16),
                (Request { count: 2, number, ..Request::new(5, Kind::Fetch, at) }, 0),
                (Request::new(5, Kind::Swap, at), 32),
            ]
        };
        let mut refused = 0;
        for at in [0, 8, start - 8, start, start + len - 8, start + len, usize::MAX - 7] {
            for (request, len) in requests(at) {
                assert_eq!(serve(request, len), Err(Refusal::NotAttached), "{request:?}");
                refused += 1;
                assert_eq!(window.sides[1].ours.load(Word::Refused), refused);
            }
        }
        assert_eq!(serve(Request::new(5, Kind::Put, start + 8), 16), Ok(()));
        attached.borrow_mut().detach(start + 8).unwrap();
        assert_eq!(serve(Request::new(5, Kind::Put, start + 8), 16), Err(Refusal::NotAttached));
        assert_eq!(serve(Request::new(5, Kind::Unlock, 0), 0), Err(Refusal::Nonsense));
        assert_eq!(window.sides[1].ours.load(Word::Done), refused + 3, "all are counted");
        assert_eq!(memory[..4], [7, 0x0909_0909_0909_0909, 0x0909_0909_0909_0909, 7]);
    }
}
