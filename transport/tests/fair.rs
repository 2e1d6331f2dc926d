//! A stream of short messages keeps nobody else waiting for long.

mod common;

use std::mem::offset_of;
use std::sync::atomic::Ordering;

use common::{Region, View, connection};
use vmshm_transport::abi::ring::{ConnectionHeader, POLLED};
use vmshm_transport::{Endpoint, Event, Inbox, Memory};

/// Most messages of the stream before something else is noticed: a few turns of all rings and fragments.
const MOST: u32 = 500;

#[test]
fn a_stream_holds_up_neither_fragments_nor_strangers() {
    let region = Region::new(64 << 20, 16, 2);
    let (mut receiver, mut busy, mut far) = (region.endpoint(0), region.endpoint(1), region.endpoint(2));
    let to_receiver = busy.connect(&receiver.name()).unwrap();
    receiver.connect(&busy.name()).unwrap();
    let to_far = receiver.connect(&far.name()).unwrap();
    far.connect(&receiver.name()).unwrap();
    let (mut inbox, mut other) = (Inbox::new(), Inbox::new());
    let mut found = false;
    // As progress does: more is looked for where there was a message.
    let mut step = |receiver: &mut vmshm_transport::Endpoint<_>| {
        while busy.send(to_receiver, 1, &[b"12345678"]).is_ok() {}
        let event = if found { receiver.poll_more(&mut inbox) } else { receiver.poll(&mut inbox) };
        found = matches!(event, Some(Event::Message { .. }));
        event
    };
    for _ in 0..5000 {
        step(&mut receiver);
    }
    for round in 0..50 {
        for token in 0..8 {
            let fragment = receiver.fragment(2048).unwrap();
            receiver.send_fragment(to_far, 1, &fragment, 8, token).unwrap();
        }
        let mut consumed = 0;
        while consumed < 8 {
            if let Some(Event::Fragment { peer, .. }) = far.poll(&mut other) {
                far.consume(peer).unwrap();
                consumed += 1;
            }
        }
        let (mut between, mut back) = (0, 0);
        while back < 8 {
            match step(&mut receiver) {
                Some(Event::Message { .. }) => between += 1,
                Some(Event::Sent { .. }) => back += 1,
                _ => {}
            }
            assert!(between < MOST, "{back} of 8 fragments after {between} messages");
        }

        let mut stranger = region.endpoint(3 + round % 13);
        let to = stranger.connect(&receiver.name()).unwrap();
        stranger.send(to, 9, &[b"x"]).unwrap();
        let mut before = 0;
        while !matches!(step(&mut receiver), Some(Event::Message { tag: 9, .. })) {
            before += 1;
            assert!(before < MOST, "a stranger is not heard after {before} steps");
        }
    }
}

/// Whether a message is found soon.
fn hears(receiver: &mut Endpoint<View>) -> bool {
    let mut inbox = Inbox::new();
    (0..50).any(|_| matches!(receiver.poll(&mut inbox), Some(Event::Message { .. })))
}

#[test]
fn a_ring_that_is_silent_while_another_is_not_is_looked_at_less_and_still_heard() {
    let region = Region::new(64 << 20, 3, 2);
    let host = region.host();
    let (mut receiver, mut one, mut other) = (region.endpoint(0), region.endpoint(1), region.endpoint(2));
    let [to_one, to_other] = [&mut one, &mut other].map(|sender| {
        receiver.connect(&sender.name()).unwrap();
        sender.connect(&receiver.name()).unwrap()
    });
    // Sends a message, and returns whether the sender had to say so because its ring is not looked at anyway.
    let says = |sender: &mut Endpoint<View>, to, receiver: &mut Endpoint<View>| {
        let section = sender.section();
        let line = section.entry.offset + section.layout.activity_line(receiver.name().id);
        let told = || -> u64 { (0..8).map(|word| host.load(line + 8 * word, Ordering::Acquire)).sum() };
        let before = told();
        sender.send(to, 1, &[b"12345678"]).unwrap();
        assert!(hears(receiver), "the message is not found");
        told() > before
    };
    let both = |one: &mut _, other: &mut _, receiver: &mut _| {
        (says(one, to_one, receiver), says(other, to_other, receiver))
    };
    assert_eq!(both(&mut one, &mut other, &mut receiver), (true, true), "nobody knows them");
    for sender in [&mut one, &mut other] {
        assert!(!hears(sender), "it only finds out where the receiver says what it looks at");
    }
    assert_eq!(both(&mut one, &mut other, &mut receiver), (false, false), "both rings are looked at");
    for _ in 0..40_000 {
        assert!(!says(&mut one, to_one, &mut receiver), "it was not silent");
    }
    assert_eq!(both(&mut one, &mut other, &mut receiver), (false, true), "the other one was silent");
    assert_eq!(both(&mut one, &mut other, &mut receiver), (false, false), "both rings are looked at again");
    for _ in 0..1000 {
        assert!(!hears(&mut receiver), "there is no message");
    }
    assert_eq!(both(&mut one, &mut other, &mut receiver), (false, false), "both were silent");
}

#[test]
fn a_burst_of_who_was_silent_takes_two_calls_of_progress() {
    let region = Region::new(64 << 20, 2, 2);
    let (mut receiver, mut sender) = (region.endpoint(0), region.endpoint(1));
    receiver.connect(&sender.name()).unwrap();
    let to_receiver = sender.connect(&receiver.name()).unwrap();
    for _ in 0..16 {
        sender.send(to_receiver, 1, &[b"12345678"]).unwrap();
    }
    let mut inbox = Inbox::new();
    // As progress does: more is looked for where there was a message.
    let mut progress = || {
        let first = receiver.poll(&mut inbox);
        let more = std::iter::from_fn(|| first.and_then(|_| receiver.poll_more(&mut inbox)));
        first.into_iter().chain(more).count()
    };
    let first = std::iter::repeat_with(&mut progress).take(50).find(|found| *found > 0);
    assert_eq!(
        (first, progress()),
        (Some(1), 15),
        "what is found by the call that finds the first, and by the next"
    );
}

#[test]
fn who_has_not_seen_that_it_is_polled_no_more_is_soon_heard() {
    let region = Region::new(64 << 20, 2, 64);
    let mut receiver = region.endpoint(0);
    let mut senders: Vec<_> = (0..63)
        .map(|_| {
            let mut sender = region.endpoint(1);
            receiver.connect(&sender.name()).unwrap();
            let to = sender.connect(&receiver.name()).unwrap();
            (sender, to)
        })
        .collect();
    let mut inbox = Inbox::new();
    let mut hear = |receiver: &mut Endpoint<View>| {
        let mut polls = 1;
        while !matches!(receiver.poll(&mut inbox), Some(Event::Message { .. })) {
            polls += 1;
            assert!(polls < 1_000_000);
        }
        polls
    };
    let host = region.host();
    let mut late = 0;
    for first in 0..40 {
        // Its ring is polled, until those of eight others take its place.
        for (sender, to) in &mut senders[first..first + 9] {
            sender.send(*to, 1, &[b"1"]).unwrap();
            hear(&mut receiver);
            // It gets to know where it is told that it is polled.
            for _ in 0..50 {
                assert_eq!(sender.poll(&mut Inbox::new()), None);
            }
        }
        for _ in 0..16 {
            assert_eq!(receiver.poll(&mut Inbox::new()), None);
        }
        // Its processor has not seen that yet.
        let (sender, to) = &mut senders[first];
        let hot = connection(&host, &receiver, sender) + offset_of!(ConnectionHeader, polled) as u64;
        host.store(hot, POLLED, Ordering::Relaxed);
        sender.send(*to, 2, &[b"2"]).unwrap();
        late += u32::from(hear(&mut receiver) > 200);
    }
    assert_eq!(late, 0, "so many of 40 messages waited until all links had had their turn");
}
