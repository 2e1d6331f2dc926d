//! A hostile peer: messages and keys of random and of crafted bytes, beside two that are honest.
//!
//! Nobody crashes, reads or writes what is not his, and the honest two go on.

mod silent;

use std::ffi::{c_uint, c_void};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use vmshm_messaging::{BY_KEY, Engine, Params, Upcall};
use vmshm_transport::attach::{Options, open_endpoint};
use vmshm_transport::{Inbox, MAX_INLINE, Peer};
use zerocopy::IntoBytes;

use super::uct::{self, Interface};
use crate::asked::{ANSWER, Answer, CHANGE, Change, PUT, Put, Update};
use crate::endpoint::{self, AM_IDS};
use crate::memory::Handle;
use crate::ucx::*;
use crate::{domain, remote};

const LENGTH: Duration = Duration::from_millis(1500);

/// The kind of the honest two's messages.
const HONEST: u8 = 7;

/// The engine's tag for requests of memory.
const REQUEST: u8 = 0x20;

/// Bytes of registered memory, and around it.
const SIZE: usize = 256;

/// What has arrived of the honest.
#[derive(Default)]
struct Arrived {
    honest: AtomicU64,
    /// Whatever others send is read.
    sum: AtomicU64,
}

unsafe extern "C" fn take_honest(
    arrived: *mut c_void,
    data: *mut c_void,
    len: usize,
    _: c_uint,
) -> ucs_status_t {
    // SAFETY: the test gave it for this; so many bytes are there.
    unsafe {
        assert_eq!(len, 8);
        let number = (*arrived.cast::<Arrived>()).honest.fetch_add(1, Ordering::Relaxed);
        assert_eq!(data.cast::<u64>().read_unaligned(), number);
    }
    UCS_OK
}

unsafe extern "C" fn take_any(
    arrived: *mut c_void,
    data: *mut c_void,
    len: usize,
    _: c_uint,
) -> ucs_status_t {
    // SAFETY: the test gave it for this; so many bytes are there.
    unsafe {
        let bytes = std::slice::from_raw_parts(data.cast::<u8>(), len);
        let sum = bytes.iter().map(|byte| u64::from(*byte)).sum();
        (*arrived.cast::<Arrived>()).sum.fetch_add(sum, Ordering::Relaxed);
    }
    UCS_OK
}

fn bytes(rng: &mut SmallRng, most: usize) -> Vec<u8> {
    let mut bytes = vec![0; rng.random_range(0..=most)];
    rng.fill(&mut bytes[..]);
    bytes
}

/// A number near an edge of the memory or of all numbers, or any.
fn edge(rng: &mut SmallRng) -> u64 {
    let edges = [0, 1, 4, 8, SIZE as u64, 1 << 32, 1 << 63, u64::MAX];
    match rng.random_range(0..4) {
        0 => rng.random(),
        _ => edges[rng.random_range(0..edges.len())].wrapping_add(rng.random_range(0..17)).wrapping_sub(8),
    }
}

/// A peer that has the keys of the victim's memory: of some that may be written, and of some that may not.
struct Hostile {
    engine: Engine<(), ()>,
    inbox: Box<Inbox>,
    peer: Peer,
    keys: [u64; 2],
    is_refused: bool,
}

impl Hostile {
    fn new(victim: &Interface, keys: [u64; 2]) -> Self {
        let attached = open_endpoint(&Options::from_env().unwrap()).unwrap();
        let params = Params::of_this_machine(attached.section().entry.len);
        let mut engine = Engine::new(attached, params).unwrap();
        let peer = engine.connect(&victim.name()).unwrap();
        Self { engine, inbox: Box::default(), peer, keys, is_refused: false }
    }

    /// A message of a kind, the same for all its life: what breaks the rules ends that.
    fn message(&self, kind: u32, rng: &mut SmallRng) -> (u8, Vec<u8>) {
        let key = self.keys[rng.random_range(0..2)];
        let (offset, number) = (edge(rng), rng.random_range(0..20));
        match kind {
            0 => (rng.random_range(AM_IDS as u8..=u8::MAX), bytes(rng, MAX_INLINE)),
            1 | 2 => {
                let header = Put { key: if kind == 1 { key } else { rng.random() }, offset, number };
                (PUT, [header.as_bytes(), &bytes(rng, MAX_INLINE - size_of::<Put>())].concat())
            }
            3 => {
                let (op, len) = (rng.random_range(0..8), [0, 1, 4, 8, 9, u32::MAX][rng.random_range(0..6)]);
                let update = Update { operand: rng.random(), compare: rng.random(), op, len };
                (CHANGE, Change { key, offset, number, update }.as_bytes().to_vec())
            }
            4 => (ANSWER, Answer { number, found: rng.random() }.as_bytes().to_vec()),
            5 => {
                let source = if rng.random() { BY_KEY } else { edge(rng) };
                let request = [source, offset, edge(rng), key];
                (REQUEST, request.as_bytes()[..[24, 32][rng.random_range(0..2)]].to_vec())
            }
            _ => ([PUT, CHANGE, ANSWER, REQUEST][rng.random_range(0..4)], bytes(rng, 60)),
        }
    }

    fn attack(&mut self, kind: u32, rng: &mut SmallRng) {
        let mut id = rng.random_range(0..AM_IDS as u8);
        if id == HONEST {
            id += 1;
        }
        let (tag, message) = match rng.random_range(0..4) {
            0 => self.message(kind, rng),
            _ => (id, bytes(rng, MAX_INLINE)),
        };
        // In the ring, or in a piece of the section with more behind it.
        if rng.random() {
            let _ = self.engine.try_send(self.peer.index(), tag, &[&message]);
        } else if let Some(fragment) = self.engine.fragment(16 << 10) {
            let len = message.len() + rng.random_range(0..10_000);
            // SAFETY: the fragment has room for it.
            unsafe { ptr::copy_nonoverlapping(message.as_ptr(), fragment.ptr(), message.len()) };
            if let Err(unsent) = self.engine.try_send_fragment(self.peer, tag, fragment, len, None) {
                self.engine.free(unsent.fragment);
            }
        }
        self.engine.advance();
        while let Some(upcall) = self.engine.poll(&mut self.inbox) {
            match upcall {
                Upcall::Lost { .. } => self.is_refused = true,
                Upcall::Fragment { peer, .. } => {
                    let _ = self.engine.consume(peer);
                }
                Upcall::Piece(piece) => panic!("{piece:?}, which nobody asked for"),
                _ => {}
            }
        }
    }
}

unsafe extern "C" fn unpack(to: *mut c_void, data: *const c_void, len: usize) {
    // SAFETY: the test gave room for len bytes.
    unsafe { ptr::copy_nonoverlapping(data.cast::<u8>(), to.cast(), len) };
}

unsafe extern "C" fn pack(to: *mut c_void, len: *mut c_void) -> usize {
    // SAFETY: UCX's room for a message holds that many.
    unsafe {
        let len = *len.cast::<usize>();
        ptr::write_bytes(to.cast::<u8>(), 1, len);
        len
    }
}

/// Does all that can be done with a key that came from a peer. What gets bytes keeps its memory in `kept`.
fn use_key(to: uct_ep_h, packed: [u64; 4], kept: &mut Vec<Vec<u64>>, rng: &mut SmallRng) {
    let near = |rng: &mut SmallRng| packed[1].wrapping_add(edge(rng));
    let len = [0, 1, 8, 64, 5000][rng.random_range(0..5)];
    let mut room = vec![0u64; 625];
    let mut rkey = 0;
    // SAFETY: UCX's calls, with memory that outlives the operations.
    unsafe {
        let status =
            domain::rkey_unpack(ptr::null_mut(), packed.as_ptr().cast(), &mut rkey, &mut ptr::null_mut());
        assert_eq!(status, UCS_OK);
        let place = room.as_mut_ptr();
        let mut piece: uct_iov_t = std::mem::zeroed();
        (piece.buffer, piece.length, piece.count) = (place.cast(), len, 1);
        let mut size = len;
        let status = match rng.random_range(0..7) {
            0 => remote::put_short(to, place.cast(), len.min(1000) as u32, near(rng), rkey).into(),
            1 => remote::put_bcopy(to, Some(pack), (&raw mut size).cast(), near(rng), rkey),
            2 => remote::get_bcopy(to, Some(unpack), place.cast(), len, near(rng), rkey, ptr::null_mut())
                .into(),
            3 => remote::get_zcopy(to, &piece, 1, near(rng), rkey, ptr::null_mut()).into(),
            4 => remote::atomic64_post(to, rng.random_range(0..8), 1, near(rng), rkey).into(),
            5 => remote::atomic32_fetch(to, 0, 1, place.cast(), near(rng), rkey, ptr::null_mut()).into(),
            _ => remote::atomic_cswap64(to, 0, 1, near(rng), rkey, place, ptr::null_mut()).into(),
        };
        // Whatever it is: the peer has lied, or is gone.
        assert!((UCS_ERR_LAST as isize..=len as isize).contains(&status) || status == UCS_INPROGRESS.into());
        domain::rkey_release(ptr::null_mut(), rkey, ptr::null_mut());
    }
    kept.push(room);
}

#[test]
fn a_hostile_peer_harms_nobody() {
    let _use = super::alone();
    let seed = rand::rng().random();
    println!("seed {seed}");
    let mut rng = SmallRng::seed_from_u64(seed);
    let (victim, friend) = (Interface::new(), Interface::new());
    let arrived = Arrived::default();
    for id in 0..AM_IDS as u8 {
        let handler: uct_am_callback_t = if id == HONEST { Some(take_honest) } else { Some(take_any) };
        victim.handle(id, handler, (&raw const arrived).cast_mut().cast());
    }
    let to_victim = friend.connect(&victim.name()).expect("the victim is there");

    // The middle of each may be read; of the first also written.
    let mut memory = [vec![0xaau8; 3 * SIZE], vec![0xaa; 3 * SIZE]];
    let mut register = |number: usize, access| -> Handle {
        let middle = memory[number][SIZE..].as_mut_ptr();
        uct::register(&victim, middle.expose_provenance(), SIZE, access)
    };
    let read = UCT_MD_MEM_ACCESS_REMOTE_GET;
    let handles = [
        register(0, read | UCT_MD_MEM_ACCESS_REMOTE_PUT | UCT_MD_MEM_ACCESS_REMOTE_ATOMIC),
        register(1, read),
    ];
    let keys = handles.each_ref().map(|handle| handle.remote.key);

    let (mut sent, mut refused, mut kept) = (0, 0, Vec::new());
    let end = Instant::now() + LENGTH;
    for kind in (0..7).cycle() {
        let mut hostile = Hostile::new(&victim, keys);
        let to_hostile = match victim.connect(&hostile.engine.endpoint().name()) {
            Ok(endpoint) => endpoint,
            // What an earlier one had written over its own slot made this one take a life for its own that the victim has given up.
            Err(UCS_ERR_UNREACHABLE) => continue,
            Err(status) => panic!("no endpoint: {status}"),
        };
        for _ in 0..200 {
            hostile.attack(kind, &mut rng);
            let inside = hostile.engine.endpoint().section().entry.offset + rng.random_range(0..100_000);
            let offset = [u64::MAX, inside, edge(&mut rng)][rng.random_range(0..3)];
            let packed = [rng.random(), edge(&mut rng), edge(&mut rng), offset];
            use_key(to_hostile, packed, &mut kept, &mut rng);
            // SAFETY: an endpoint of the test; no payload.
            let status = unsafe { endpoint::am_short(to_victim, HONEST, sent, ptr::null(), 0) };
            assert!(status == UCS_OK || status == UCS_ERR_NO_RESOURCE, "to an honest peer: {status}");
            sent += u64::from(status == UCS_OK);
            victim.progress();
            friend.progress();
            if hostile.is_refused {
                break;
            }
        }
        refused += u32::from(hostile.is_refused);
        drop(hostile);
        victim.progress();
        // SAFETY: nothing uses it any more.
        unsafe { endpoint::destroy(to_hostile) };
        kept.clear();
        if Instant::now() > end && kind == 6 {
            break;
        }
    }
    while arrived.honest.load(Ordering::Relaxed) < sent {
        victim.progress();
        friend.progress();
    }
    assert!(refused > 0, "nothing of all that was refused");
    // SAFETY: nothing uses it any more.
    unsafe { endpoint::destroy(to_victim) };
    handles.iter().for_each(|handle| victim.get().registry.deregister(handle));
    assert!(memory[0][..SIZE].iter().chain(&memory[0][2 * SIZE..]).all(|byte| *byte == 0xaa));
    assert!(memory[1].iter().all(|byte| *byte == 0xaa), "memory was written that may only be read");
}
