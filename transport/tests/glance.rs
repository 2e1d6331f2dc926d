//! The quick ways of short messages, into the ring and out of it, beside the others.

mod common;

use common::{Region, View, pattern};
use proptest::prelude::*;
use vmshm_transport::{Endpoint, Event, Glance, Inbox, MAX_EAGER, MAX_INLINE, Memory, Peer, SendError};

/// Sends a message, the quick way where there is one.
fn send(endpoint: &mut Endpoint<View>, to: Peer, tag: u8, bytes: &[u8]) -> Result<(), SendError> {
    let (header, payload) = bytes.split_at(bytes.len().min(14));
    let sent = match payload.len() {
        ..=8 => endpoint.send_slot(to.index(), tag, header, payload),
        9..=72 => endpoint
            .send_few(to.index(), tag, header, payload)
            .or_else(|| endpoint.send_long(to.index(), tag, header, payload, MAX_INLINE)),
        _ => endpoint.send_long(to.index(), tag, header, payload, MAX_INLINE),
    };
    match sent {
        Some(is_told) => {
            if !is_told {
                endpoint.tell(to.index());
            }
            Ok(())
        }
        None if bytes.len() > MAX_INLINE => Err(SendError::Full),
        None => endpoint.send(to, tag, &[header, payload]),
    }
}

/// Takes what there is, at a glance where it is to be had so, and counts what is.
fn take(endpoint: &mut Endpoint<View>, inbox: &mut Inbox, quick: &mut usize) -> Vec<(u8, Vec<u8>)> {
    let mut found = Vec::new();
    let seen = if endpoint.is_quiet(inbox) { endpoint.glance(inbox) } else { Glance::More };
    let event = match seen {
        Glance::Nothing => None,
        Glance::Consumed => {
            endpoint.flush();
            None
        }
        Glance::Short(_, count) => {
            for at in 0..count {
                let (tag, bytes) = inbox.seen(at).unwrap();
                found.push((tag, bytes.to_vec()));
                *quick += 1;
            }
            None
        }
        Glance::Around => match endpoint.look_around() {
            true => None,
            false => endpoint.poll(inbox),
        },
        Glance::Long => match endpoint.take_long(inbox, |_, len| len % 5 != 0) {
            Some((_, count, _)) => {
                let mut place = 0;
                for _ in 0..count {
                    let (tag, bytes) = inbox.seen(place).unwrap();
                    found.push((tag, bytes.to_vec()));
                    place += Inbox::slots_of(bytes.len()) as u32;
                }
                None
            }
            None => endpoint.poll(inbox),
        },
        Glance::More => endpoint.poll(inbox),
    };
    match event {
        Some(Event::Message { tag, len, .. }) => found.push((tag, inbox.bytes(len).to_vec())),
        Some(Event::Fragment { peer, tag, offset, len }) => {
            let mut bytes = vec![0; len];
            endpoint.memory().read(offset, &mut bytes);
            endpoint.consume(peer).unwrap();
            found.push((tag, bytes));
        }
        _ => {}
    }
    found
}

/// Waits for something, with an end.
fn wait<T>(mut look: impl FnMut() -> Option<T>) -> T {
    (0..1_000_000).find_map(|_| look()).expect("it comes")
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Bursts of messages of all lengths, of which some fill the ring, arrive whole and in order.
    #[test]
    fn messages_of_all_lengths_keep_their_order(
        bursts in prop::collection::vec((1usize..200, 0usize..4), 1..60),
        lens in prop::collection::vec(prop_oneof![8 => 9usize..23, 1 => 0usize..9, 4 => 23usize..100, 1 => 100usize..1000, 1 => 1000usize..MAX_EAGER], 1..50),
    ) {
        let region = Region::new(8 << 20, 2, 2);
        let (mut a, mut b) = (region.endpoint(0), region.endpoint(1));
        let to_b = a.connect(&b.name()).unwrap();
        b.connect(&a.name()).unwrap();
        a.reserve_eager(128 << 10);
        let mut inbox = Inbox::new();
        let (mut sent, mut received, mut quick) = (0u64, 0u64, 0);
        let bytes = |n: u64| pattern(n, lens[n as usize % lens.len()]);
        for (burst, idle) in bursts {
            for _ in 0..burst {
                match send(&mut a, to_b, sent as u8, &bytes(sent)) {
                    Ok(()) => sent += 1,
                    Err(why) => {
                        prop_assert_eq!(why, SendError::Full);
                        break;
                    }
                }
            }
            for _ in 0..burst / 2 + idle * 40 {
                for (tag, found) in take(&mut b, &mut inbox, &mut quick) {
                    prop_assert_eq!((tag, found), (received as u8, bytes(received)));
                    received += 1;
                }
            }
            // The sender looks for acknowledgements and announcements.
            prop_assert_eq!(a.poll(&mut Inbox::new()), None);
        }
        let mut polls = 0;
        while received < sent {
            for (tag, found) in take(&mut b, &mut inbox, &mut quick) {
                prop_assert_eq!((tag, found), (received as u8, bytes(received)));
                received += 1;
            }
            polls += 1;
            prop_assert!(polls < 100_000);
        }
    }
}

#[test]
fn a_silent_peer_holds_up_no_eager_messages_to_others() {
    let region = Region::new(8 << 20, 3, 2);
    let (mut a, mut b, c) = (region.endpoint(0), region.endpoint(1), region.endpoint(2));
    let (to_b, to_c) = (a.connect(&b.name()).unwrap(), a.connect(&c.name()).unwrap());
    b.connect(&a.name()).unwrap();
    assert_eq!(a.send_eager(to_b.index(), 1, &[0; 14], &[0; 2000]), None, "no memory was set aside");
    a.reserve_eager(256 << 10);
    a.send_eager(to_c.index(), 1, &[0; 14], &[0; 2000]).expect("there is room");
    let (mut at_a, mut at_b) = (Inbox::new(), Inbox::new());
    let (mut eager, mut quick) = (0, 0);
    for n in 0..1000 {
        let bytes = pattern(n, 2000);
        if a.send_eager(to_b.index(), 1, &bytes[..14], &bytes[14..]).is_some() {
            eager += 1;
            a.tell(to_b.index());
            assert_eq!(wait(|| take(&mut b, &mut at_b, &mut quick).pop()), (1, bytes));
        }
        (0..40).for_each(|_| _ = (a.poll(&mut at_a), take(&mut b, &mut at_b, &mut quick)));
    }
    assert_eq!(eager, 1000);
}

#[test]
fn in_a_dialogue_both_ways_are_quick() {
    let region = Region::new(8 << 20, 2, 2);
    let (mut a, mut b) = (region.endpoint(0), region.endpoint(1));
    let (to_b, to_a) = (a.connect(&b.name()).unwrap(), b.connect(&a.name()).unwrap());
    let (mut at_a, mut at_b) = (Inbox::new(), Inbox::new());
    let (mut sent, mut quick) = (0, 0);
    for n in 0..10_000u64 {
        let bytes = pattern(n, 22);
        for to_there in [true, false] {
            let (endpoint, peer, other, inbox) = match to_there {
                true => (&mut a, to_b, &mut b, &mut at_b),
                false => (&mut b, to_a, &mut a, &mut at_a),
            };
            match endpoint.send_slot(peer.index(), 1, &bytes[..14], &bytes[14..]) {
                Some(is_told) => {
                    sent += 1;
                    if !is_told {
                        endpoint.tell(peer.index());
                    }
                }
                None => endpoint.send(peer, 1, &[&bytes]).unwrap(),
            }
            let found = wait(|| take(other, inbox, &mut quick).pop());
            assert_eq!(found, (1, bytes.clone()));
        }
    }
    assert!(sent > 17_000, "{sent} of 20000 were sent the quick way");
    assert!(quick > 17_000, "{quick} of 20000 were found at a glance");
}

#[test]
fn who_waits_for_one_hears_strangers_and_sees_deaths() {
    let region = Region::new(8 << 20, 3, 2);
    let (mut a, mut b, mut c) = (region.endpoint(0), region.endpoint(1), region.endpoint(2));
    let to_a = b.connect(&a.name()).unwrap();
    a.connect(&b.name()).unwrap();
    b.send(to_a, 1, &[b"known"]).unwrap();
    let mut inbox = Inbox::new();
    let mut quick = 0;
    assert_eq!(wait(|| take(&mut a, &mut inbox, &mut quick).pop()), (1, b"known".to_vec()));
    assert_eq!(take(&mut a, &mut inbox, &mut quick), []);
    let from_c = c.connect(&a.name()).unwrap();
    c.send(from_c, 2, &[b"stranger"]).unwrap();
    assert_eq!(wait(|| take(&mut a, &mut inbox, &mut quick).pop()), (2, b"stranger".to_vec()));
    drop(b);
    let gone = wait(|| match a.glance(&mut inbox) {
        Glance::Around if !a.look_around() => a.poll(&mut inbox),
        Glance::More => a.poll(&mut inbox),
        _ => None,
    });
    assert!(matches!(gone, Event::Gone { .. }), "{gone:?}");
}
