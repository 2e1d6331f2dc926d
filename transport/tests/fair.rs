//! Who streams short messages keeps nobody else waiting for long.

mod common;

use common::Region;
use vmshm_transport::{Event, Inbox};

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
