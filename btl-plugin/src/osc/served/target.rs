//! The target's side: what others ask for is done to this process's memory, and counted.

use std::ptr;

use vmshm_transport::{Peer, copy_from_shared, copy_to_shared};
use zerocopy::IntoBytes;

use super::block::{Block, REPLY_LEN, Word};
use super::request::{Kind, Request};
use super::window::{Served, WINDOWS};
use crate::ompi::Count;
use crate::osc::datatype::Number;

/// Words of operands for which no memory is allocated.
const FEW: usize = 8;

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// The memory is not attached, which the origin cannot know.
    NotAttached,
    /// The request is none that a process of the same program sends.
    Nonsense,
}

/// Does what a peer asks for; false if it may not.
///
/// # Safety
/// `len` bytes can be read at `bytes`; the peer may change them meanwhile.
pub unsafe fn accept(peer: Peer, bytes: *const u8, len: usize) -> bool {
    // SAFETY: the caller vouches for it.
    let Some((request, data, len)) = (unsafe { Request::read(bytes, len) }) else { return false };
    let found = WINDOWS.lock().iter().find_map(|listed| {
        // SAFETY: listed windows have not been freed.
        let window = unsafe { &*listed.0 };
        (window.name == request.window).then_some(window)
    });
    let Some(window) = found else { return false };
    let Some(rank) = window.sides.iter().position(|side| side.peer == Some(peer)) else { return false };
    // SAFETY: the caller vouches for the bytes, of which these are the last `len`.
    unsafe { window.serve(rank, &request, data, len) != Err(Refusal::Nonsense) }
}

impl Served {
    /// Does what process `rank` asks for.
    ///
    /// # Errors
    /// The request is refused.
    ///
    /// # Safety
    /// `len` bytes can be read at `data`; the process may change them meanwhile.
    pub unsafe fn serve(
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
                    sound(self.locks.borrow_mut().request(rank, request.kind() == Some(Kind::LockAlone)))
                }
                Some(Kind::Unlock) => sound(self.locks.borrow_mut().release(rank)),
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
    /// Some of the bytes are outside the memory, or not attached.
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
    /// The bytes are outside the memory, or more than a reply holds.
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
    /// The numbers are outside the memory, or the operation is not defined for them.
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
        let count = Count::try_from(request.count).map_err(|_| Refusal::Nonsense)?;
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
            // The origin may change them meanwhile.
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
    /// The number is outside the memory, or longer than any is.
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
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;
    use crate::osc::epochs::Groups;
    use crate::osc::members::{Member, Members};
    use crate::osc::served::block::{BLOCK, REPLY};
    use crate::osc::served::window::{FUNCTIONS, Side};

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
        let mut side = |number: usize| Side::new(member, None, block(number), block(2 + number));
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
