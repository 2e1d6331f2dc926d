//! The transport's calls, a thousand times each, in one process and without MPI: for callgrind, which counts their instructions.
//! docs/analysis.md says how. No time is measured, and nothing is waited for, so that the counts repeat exactly.

use std::hint::black_box;

use vmshm_benches::fixture::{Fixture, Node};
use vmshm_transport::{Event, Fragment};

const TURNS: usize = 1000;
const TAG: u8 = 1;

/// Functions of their own for each size, which differ in the length that they expect: callgrind counts by function.
macro_rules! inline_messages {
    ($send:ident, $receive:ident, $size:literal) => {
        #[inline(never)]
        fn $send(node: &mut Node, bytes: &[u8]) {
            assert!(bytes.len() == $size);
            let peer = node.peer();
            node.endpoint.send(peer, TAG, &[bytes]).expect("room in the ring");
        }

        #[inline(never)]
        fn $receive(node: &mut Node) {
            loop {
                if let Some(Event::Message { len, .. }) = node.endpoint.poll(&mut node.inbox) {
                    assert!(len == $size);
                    black_box(node.inbox.bytes(len));
                    return;
                }
            }
        }
    };
}

inline_messages!(send_8_bytes, receive_8_bytes, 8);
inline_messages!(send_1_kib, receive_1_kib, 1024);

#[inline(never)]
fn send_4_kib(node: &mut Node, bytes: &[u8]) -> Fragment {
    let peer = node.peer();
    let fragment = node.endpoint.fragment(bytes.len()).expect("room in the section");
    // SAFETY: the fragment has room for as many bytes as it was asked for, and no peer knows it yet.
    unsafe { fragment.ptr().copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    node.endpoint.send_fragment(peer, TAG, &fragment, bytes.len(), 0).expect("room in the ring");
    fragment
}

#[inline(never)]
fn receive_4_kib(node: &mut Node, to: &mut [u8]) {
    loop {
        if let Some(Event::Fragment { peer, offset, len, .. }) = node.endpoint.poll(&mut node.inbox) {
            assert!(len == to.len());
            // SAFETY: `to` has as many bytes.
            unsafe { node.endpoint.get(peer, offset, to.as_mut_ptr(), len) }.expect("the peer is there");
            return node.endpoint.consume(peer).expect("the peer is there");
        }
    }
}

#[inline(never)]
fn free_4_kib(node: &mut Node, fragment: Fragment) {
    while !matches!(node.endpoint.poll(&mut node.inbox), Some(Event::Sent { .. })) {}
    node.endpoint.free(fragment);
}

#[inline(never)]
fn poll_empty(node: &mut Node) {
    black_box(node.endpoint.poll(&mut node.inbox));
}

#[inline(never)]
fn get_64_kib(node: &mut Node, offset: u64, to: &mut [u8]) {
    let peer = node.peer();
    // SAFETY: `to` has as many bytes.
    unsafe { node.endpoint.get(peer, offset, to.as_mut_ptr(), to.len()) }.expect("the peer is there");
}

fn main() {
    let mut fixture = Fixture::new(2, 4);
    let (mut one, mut other) = (fixture.node(0), fixture.node(1));
    one.meet(&other);
    other.meet(&one);
    let bytes = vec![7; 4096];
    let mut landing = vec![0; 64 << 10];
    for _ in 0..TURNS {
        send_8_bytes(&mut one, &bytes[..8]);
        receive_8_bytes(&mut other);
        send_8_bytes(&mut other, &bytes[..8]);
        receive_8_bytes(&mut one);
    }
    for _ in 0..TURNS {
        send_1_kib(&mut one, &bytes[..1024]);
        receive_1_kib(&mut other);
        send_1_kib(&mut other, &bytes[..1024]);
        receive_1_kib(&mut one);
    }
    for _ in 0..TURNS {
        let fragment = send_4_kib(&mut one, &bytes);
        receive_4_kib(&mut other, &mut landing[..4096]);
        free_4_kib(&mut one, fragment);
    }
    for _ in 0..TURNS {
        poll_empty(&mut other);
    }
    let exposed = other.endpoint.fragment(64 << 10).expect("room in the section");
    for _ in 0..TURNS {
        get_64_kib(&mut one, exposed.offset(), &mut landing);
    }
}
