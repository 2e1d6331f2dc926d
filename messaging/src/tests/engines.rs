//! Several engines in one process.

use super::*;

#[test]
fn engines_of_one_process_work_beside_each_other() {
    let (region, other) = (TestRegion::new(), TestRegion::new());
    // Three in one section, one in the other, and two in a region of their own.
    let mut engines: Vec<Engine<usize, usize>> =
        [region.open(0), region.open(0), region.open(0), region.open(1), other.open(0), other.open(1)]
            .into_iter()
            .map(|endpoint| Engine::new(endpoint, params(4096, 4)).unwrap())
            .collect();
    let names: Vec<_> = engines.iter().map(|engine| engine.endpoint().name()).collect();
    let pairs = |from: usize, to: usize| from != to && (from < 4) == (to < 4);
    let mut peers = vec![vec![None; 6]; 6];
    for (from, engine) in engines.iter_mut().enumerate() {
        for (to, name) in names.iter().enumerate() {
            peers[from][to] = engine.connect(name).ok();
            assert_eq!(peers[from][to].is_some(), pairs(from, to), "{from} to {to}");
        }
    }
    // Each tells each other a number, and gives it a long message.
    let sources: Vec<_> = (0..6).map(|from| bytes(50_000, from)).collect();
    let mut targets = vec![vec![vec![0; 50_000]; 6]; 6];
    for from in 0..6 {
        for to in 0..6 {
            if let (Some(peer), Some(back)) = (peers[from][to], peers[to][from]) {
                engines[from].try_send(peer.index(), TAG, &[&[from as u8, to as u8]]).unwrap();
                // SAFETY: sources and targets outlive the engines' work.
                let (source, prefix) = unsafe { engines[from].expose(peer, sources[from].as_ptr(), 50_000) };
                engines[from].fill();
                let local = targets[to][from].as_mut_ptr();
                let get = Get { source, key: None, offset: 0, prefix, local, len: 50_000, done: from };
                // SAFETY: the target outlives the engines' work.
                assert!(unsafe { engines[to].get(back, get) }.unwrap().is_none());
            }
        }
    }
    let (mut messages, mut gets) = (0, 0);
    let mut inboxes: Vec<_> = (0..6).map(|_| Inbox::new()).collect();
    while (messages, gets) != (14, 14) {
        for (me, (engine, inbox)) in engines.iter_mut().zip(&mut inboxes).enumerate() {
            engine.advance();
            match engine.poll(inbox) {
                Some(Upcall::Message { peer, tag: TAG, len }) => {
                    let from = usize::from(inbox.bytes(len)[0]);
                    assert_eq!((inbox.bytes(len)[1], peers[me][from]), (me as u8, Some(peer)));
                    messages += 1;
                }
                Some(Upcall::Piece(piece)) => {
                    piece.copy();
                    gets += usize::from(engine.landed(&piece).is_some());
                }
                Some(Upcall::Handled) | None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
    }
    for (to, targets) in targets.iter().enumerate() {
        for (from, (target, source)) in targets.iter().zip(&sources).enumerate() {
            assert!(target == source || !pairs(from, to), "{from} to {to}");
        }
    }
    // The end of one is the loss of its peers, and of nobody else.
    drop(engines.remove(0));
    inboxes.remove(0);
    let (mut lost, since) = (0, std::time::Instant::now());
    while lost < 3 {
        assert!(since.elapsed().as_secs() < 60, "nobody noticed");
        for (index, (engine, inbox)) in engines.iter_mut().zip(&mut inboxes).enumerate() {
            match engine.poll(inbox) {
                Some(Upcall::Lost { peer, .. }) => {
                    assert_eq!(Some(peer), peers[index + 1][0]);
                    lost += 1;
                }
                Some(Upcall::Handled) | None => {}
                Some(other) => panic!("{other:?}"),
            }
        }
    }
    for index in 0..5 {
        let last = if index < 3 { 2 } else { 4 };
        let to = if index == last { last - 1 } else { last };
        let peer = peers[index + 1][to + 1].unwrap();
        engines[index].try_send(peer.index(), TAG, &[&[1]]).unwrap();
    }
}

#[test]
fn an_engine_that_finds_no_memory_says_so() {
    let region = TestRegion::new();
    let params = Params { reserve: 1 << 30, ..params(4096, 4) };
    let refused = Engine::<(), ()>::new(region.open(0), params).unwrap_err();
    assert!(refused.to_string().contains("1073741824 bytes"), "{refused}");
}

#[test]
fn a_process_that_must_not_sleep_yields_and_has_not_been_idle_after_it() {
    let region = TestRegion::new();
    let params = Params { sleep_after: Some(std::time::Duration::from_millis(1)), ..params(4096, 4) };
    let mut engine = Engine::<(), ()>::new(region.open(0), params).unwrap();
    while engine.idle(false, true) == crate::IdleAction::Spin {}
    assert_eq!(engine.idle(false, false), crate::IdleAction::Yield);
    assert_eq!(engine.idle(false, true), crate::IdleAction::Spin);
    // A region's file has no doorbell.
    assert!(engine.waker().is_none() && engine.fall_asleep(&Inbox::new()).is_none());
}
