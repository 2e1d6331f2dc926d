//! Sending, queues, completions and losses.

use super::*;

#[test]
fn a_full_ring_keeps_the_order_of_messages_and_loses_none() {
    let ([mut a, mut b], _region) = pair();
    let (mut sent, mut later) = (Vec::new(), 0);
    // Short ones, long ones and fragments, many more than the ring holds.
    for i in 0..400usize {
        let (len, byte) = ([1, 500, 3000][i % 3], i as u8);
        match a.send(len, byte) {
            Some(posted) => {
                later += usize::from(!posted.unwrap());
                sent.push((len, byte));
            }
            // Only fragments are refused, and only when many messages wait.
            None => assert_eq!(len, 3000),
        }
    }
    assert!(a.engine.queued > 0 && later > 0);
    while b.received.len() < sent.len() || a.sent.len() < later {
        a.progress();
        b.progress();
    }
    assert_eq!(b.received, sent);
    assert_eq!(a.sent.len(), later);
    assert_eq!(a.engine.queued, 0);
    assert!(a.engine.peers[a.peer.index()].queue.bytes.is_empty());
}

#[test]
fn what_is_tried_in_vain_is_not_kept() {
    let ([mut a, mut b], _region) = pair();
    let mut sent = 0;
    while a.engine.try_send(a.peer.index(), TAG, &[&[1], &[2]]).is_ok() {
        sent += 1;
    }
    let fragment = a.engine.fragment(3000).unwrap();
    let offset = fragment.offset();
    let unsent = a.engine.try_send_fragment(a.peer, TAG, fragment, 3000, Some(7)).unwrap_err();
    assert_eq!((unsent.why, unsent.done, unsent.fragment.offset()), (Refused::Full, Some(7), offset));
    assert_eq!(a.engine.try_send(a.peer.index(), TAG, &[&[1]]), Err(Refused::Full));
    for _ in 0..1000 {
        a.progress();
        b.progress();
    }
    assert_eq!(b.received, vec![(2, 1); sent]);
    a.engine.try_send_fragment(a.peer, TAG, unsent.fragment, 3000, Some(8)).unwrap();
    // Messages in the queue are not overtaken.
    a.engine.queued += 1;
    let waiting = crate::peer::Waiting::Inline { tag: TAG, len: 0, done: None };
    a.engine.peers[a.peer.index()].queue.messages.push_back(waiting);
    assert_eq!(a.engine.try_send(a.peer.index(), TAG, &[&[1]]), Err(Refused::Full));
    assert_eq!(a.engine.try_send(99, TAG, &[&[1]]), Err(Refused::Lost));
}

#[test]
fn what_was_in_flight_to_a_lost_peer_comes_back() {
    let ([mut a, b], _region) = pair();
    let mut later = 0;
    while let Some(posted) = a.send(3000, 1) {
        assert_eq!(posted, Ok(false));
        later += 1;
    }
    assert!(a.engine.take_loss(a.peer).is_none());
    // Leaving with messages unread is no crime of the one that leaves, but they are lost.
    drop(b);
    a.await_loss();
    assert_eq!((a.unsent.len(), a.sent.len()), (later, 0));
    assert_eq!((a.engine.queued, &a.lost[..]), (0, &[(a.peer, PeerError::Left)][..]));
    assert_eq!(a.engine.take_loss(a.peer), Some(PeerError::Left));
    assert!(a.engine.take_loss(a.peer).is_none(), "a loss is told once");
    assert_eq!(a.engine.try_send(a.peer.index(), TAG, &[&[1]]), Err(Refused::Lost));
    assert_eq!(a.send(8, 1), Some(Err(Refused::Lost)));
    assert_eq!(a.send(3000, 1), Some(Err(Refused::Lost)));
}

#[test]
fn a_peer_that_leaves_with_nothing_unsaid_is_no_loss() {
    let ([mut a, mut b], _region) = pair();
    assert_eq!(a.send(8, 1), Some(Ok(true)));
    while b.received.is_empty() {
        b.progress();
    }
    drop(b);
    a.await_loss();
    assert!(a.engine.take_loss(a.peer).is_none());
}

#[test]
fn lost_strangers_leave_nothing_behind() {
    let ([mut a, mut b], region) = pair();
    let peers = a.engine.peers.len();
    for _ in 0..10 {
        let mut stranger = region.open(1);
        let to_a = stranger.connect(&a.engine.endpoint().name()).unwrap();
        stranger.send(to_a, TAG, &[b"hello"]).unwrap();
        let (mut stranger, since) = (Some(stranger), std::time::Instant::now());
        while a.lost.is_empty() {
            assert!(since.elapsed().as_secs() < 60, "nobody noticed");
            a.progress();
            if !a.received.is_empty() {
                drop(stranger.take());
            }
        }
        let (peer, _) = a.lost.pop().unwrap();
        assert!(a.engine.take_loss(peer).is_none() && a.unsent.is_empty());
        a.received.clear();
    }
    assert_eq!(a.engine.peers.len(), peers + 1);
    assert_eq!(a.send(8, 1), Some(Ok(true)), "a peer that was connected to is not forgotten");
    b.progress();
}

#[test]
fn completions_of_an_engine_that_ends_are_not_lost() {
    let ([mut a, _b], _region) = pair();
    let mut later = 0;
    for i in 0..200usize {
        later += usize::from(a.send([8, 3000][i % 2], 1).is_some_and(|posted| posted == Ok(false)));
    }
    let mut left: Vec<_> = a.engine.abandon().into_iter().map(|(done, _)| done).collect();
    left.sort_unstable();
    left.dedup();
    assert_eq!(left.len(), later);
    assert!(a.engine.abandon().is_empty());
}

#[test]
fn memory_used_in_turn_bounces_long_messages() {
    let ([mut a, mut b], _region) = pair_with(&params(16 << 10, 4));
    for round in 0..20u8 {
        for len in [100, 9000, 16 << 10, 20_000] {
            let bounce = loop {
                match a.engine.bounce(a.peer, len) {
                    Some(bounce) => break bounce,
                    None => {
                        a.progress();
                        b.progress();
                    }
                }
            };
            // SAFETY: there is room for len bytes.
            unsafe { bounce.ptr().write_bytes(round, len) };
            a.engine.send_bounce(a.peer, TAG, bounce, len).unwrap();
        }
    }
    while b.received.len() < 80 {
        a.progress();
        b.progress();
    }
    while a.progress() || b.progress() {}
    assert_eq!(b.received.iter().filter(|(len, byte)| (*len, *byte) == (9000, 7)).count(), 1);
    assert_eq!(a.engine.chunks.in_flight, 0);
    assert!(a.sent.is_empty(), "nobody waits for these");
}
