//! A section in which all places are taken refuses clearly, and harms nobody.

mod common;

use common::Room;

#[test]
fn one_process_too_many_is_told_why_and_the_others_go_on() {
    let room = Room::with(16 << 20, 2, 2);
    let (mut a, mut b, mut c) = (room.process(0), room.process(0), room.process(1));
    a.meet(&mut b);
    a.meet(&mut c);
    let error = room.try_process(0).err().expect("the section is full");
    assert!(error.contains("2 endpoint slots of section 0 are taken"), "{error}");
    assert!(error.contains("--endpoints"), "no cure in: {error}");
    a.hears(&b, 200);
    c.hears(&a, 200);
    // A crash makes room.
    let dead = b.id();
    b.kill();
    let mut d = room.process(0);
    a.mourns(dead);
    a.meet(&mut d);
    a.hears(&d, 200);
    d.hears(&a, 200);
}

#[test]
fn a_section_that_does_not_exist_is_refused() {
    let room = Room::with(16 << 20, 2, 2);
    let error = room.try_process(2).err().expect("there are two sections");
    assert!(error.contains("section 2 does not exist"), "{error}");
}
