//! The end of a process, in good order or by a crash, is noticed; the others go on; it can come back.

mod common;

use common::{Room, until};
use vmshm_host::inspect;

#[test]
fn a_killed_process_is_noticed_and_the_others_go_on() {
    let room = Room::with(16 << 20, 3, 4);
    let [mut a, mut b, c] = room.three([0, 1, 2]);
    a.hears(&c, 50);
    b.hears(&c, 50);
    let dead = c.id();
    c.kill();
    assert_eq!(a.mourns(dead), "its process has died");
    assert_eq!(b.mourns(dead), "its process has died");
    a.hears(&b, 300);
    b.hears(&a, 300);
    assert_eq!(a.about(dead).wrong, 0);
}

#[test]
fn a_killed_process_comes_back_in_a_new_life() {
    let room = Room::with(16 << 20, 2, 1);
    let mut a = room.process(0);
    let mut lives = Vec::new();
    for _ in 0..5 {
        let mut b = room.process(1);
        a.meet(&mut b);
        a.hears(&b, 50);
        b.hears(&a, 50);
        lives.push(a.about(b.id()).incarnation);
        let old = b.name().to_string();
        let dead = b.id();
        b.kill();
        a.mourns(dead);
        assert!(a.try_meet(&old).is_err(), "the dead process can be met");
    }
    // One slot, so each life was the same endpoint with another incarnation.
    assert!(lives.is_sorted_by(|earlier, later| earlier < later), "{lives:?}");
}

#[test]
fn processes_that_die_again_and_again_leave_no_memory_behind() {
    let room = Room::with(2 << 20, 2, 2);
    let mut a = room.process(0);
    for _ in 0..20 {
        // Killed in the middle of its traffic, with fragments under way in both directions.
        let mut b = room.process(1);
        a.meet(&mut b);
        a.hears(&b, 20);
        let dead = b.id();
        b.kill();
        a.mourns(dead);
    }
    let mut b = room.process(1);
    a.meet(&mut b);
    a.hears(&b, 200);
    b.hears(&a, 200);
}

#[test]
fn the_host_sees_who_lives() {
    let room = Room::with(16 << 20, 2, 4);
    let count = || {
        let inspection = inspect(&room.region).expect("a sound region");
        inspection.sections.iter().map(|section| section.endpoints.len()).collect::<Vec<_>>()
    };
    let (a, b) = (room.process(0), room.process(1));
    until("sight of both", || (count() == [1, 1]).then_some(()));
    a.quit();
    until("sight of one", || (count() == [0, 1]).then_some(()));
    b.quit();
    until("sight of none", || (count() == [0, 0]).then_some(()));
}
