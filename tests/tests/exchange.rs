//! Processes on one region exchange messages, within a section and across.

mod common;

use common::{Room, until};
use vmshm_host::inspect;

#[test]
fn three_processes_in_two_sections_talk_and_leave() {
    let room = Room::with(16 << 20, 2, 8);
    let [mut a, mut b, mut c] = room.three([0, 0, 1]);
    for _ in 0..3 {
        a.hears(&b, 300);
        b.hears(&c, 300);
        c.hears(&a, 300);
        b.hears(&a, 300);
    }
    let left = c.id();
    c.quit();
    assert_eq!(a.mourns(left), "it has left the region");
    assert_eq!(b.mourns(left), "it has left the region");
    a.hears(&b, 300);
}

#[test]
fn a_section_too_small_for_all_that_is_sent_slows_down_but_loses_nothing() {
    // Room for a few fragments only: senders wait for memory again and again.
    let room = Room::with(2 << 20, 4, 2);
    let mut all: Vec<_> = (0..4).map(|section| room.process(section)).collect();
    for first in 0..all.len() {
        let (one, others) = all[first..].split_first_mut().expect("not empty");
        others.iter_mut().for_each(|other| one.meet(other));
    }
    for receiver in 0..all.len() {
        let mut rest: Vec<_> = (0..all.len()).filter(|&other| other != receiver).collect();
        while let Some(sender) = rest.pop() {
            let (low, high) = all.split_at_mut(receiver.max(sender));
            let (one, other) = (&mut low[receiver.min(sender)], &mut high[0]);
            if receiver < sender { one.hears(other, 100) } else { other.hears(one, 100) }
        }
    }
}

#[test]
fn the_host_sees_which_way_messages_take() {
    let room = Room::with(16 << 20, 2, 8);
    let (mut a, mut b) = (room.process(0), room.process(1));
    a.meet(&mut b);
    a.hears(&b, 300);
    let received = a.about(b.id()).received;
    let seen = until("the traffic that was told", || {
        let mut seen = inspect(&room.region).expect("our own region");
        let traffic = seen.sections[0].endpoints.pop().expect("process a").traffic.pop()?;
        // Among the messages in the ring are those about memory that is offered.
        (traffic.inline + traffic.fragments >= received).then_some(traffic)
    });
    assert_eq!((seen.section, seen.slot), (1, 0));
    assert!(seen.inline > 0 && seen.fragments > 0 && seen.gets > 0, "{seen:?}");
    assert!(seen.inline_bytes >= seen.inline * 32 && seen.fragment_bytes > seen.fragments, "{seen:?}");
    assert_eq!((seen.puts, seen.put_bytes), (0, 0));
}
