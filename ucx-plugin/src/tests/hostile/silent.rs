//! Peers that do not answer: one that takes all requests, and one that answers when its endpoint is gone.

use std::ptr::{self, null_mut};

use vmshm_messaging::{Engine, Params};
use vmshm_transport::Inbox;
use vmshm_transport::attach::{Options, open_endpoint};
use zerocopy::IntoBytes;

use crate::asked::MOST;
use crate::memory::{Handle, RemoteKey};
use crate::tests::beside_others;
use crate::tests::uct::{self, Interface};
use crate::ucx::*;
use crate::{domain, endpoint, remote};

/// Memory of one word that peers may change.
fn register(owner: &Interface, word: &mut u64) -> Handle {
    let address = ptr::from_mut(word).expose_provenance();
    uct::register(owner, address, 8, UCT_MD_MEM_ACCESS_REMOTE_ATOMIC)
}

/// The key as a peer unpacks it.
fn unpack(remote: &RemoteKey) -> uct_rkey_t {
    let mut rkey = 0;
    // SAFETY: a key, and room for the answers.
    let status = unsafe {
        domain::rkey_unpack(null_mut(), remote.as_bytes().as_ptr().cast(), &mut rkey, &mut null_mut())
    };
    assert_eq!(status, UCS_OK);
    rkey
}

/// Adds one to the word at the beginning of memory with a key.
fn add(to: uct_ep_h, address: u64, rkey: uct_rkey_t) -> ucs_status_t {
    // SAFETY: an endpoint and a key of the test.
    unsafe { remote::atomic64_post(to, UCT_ATOMIC_OP_ADD, 1, address, rkey) }
}

#[test]
fn a_peer_that_answers_nothing_keeps_nobody_from_others() {
    let _use = beside_others();
    let (asker, friend) = (Interface::new(), Interface::new());
    let attached = open_endpoint(&Options::from_env().unwrap()).unwrap();
    let params = Params::of_this_machine(attached.section().entry.len);
    let mut silent: Engine<(), ()> = Engine::new(attached, params).unwrap();
    let (to_silent, to_friend) =
        (asker.connect(&silent.endpoint().name()).unwrap(), asker.connect(&friend.name()).unwrap());
    let mut word = 0u64;
    let handle = register(&friend, &mut word);
    let (address, rkey) = (ptr::from_ref(&word).addr() as u64, unpack(&handle.remote));

    // It takes what it is asked for, which is no more than it may be asked for at once.
    let (mut inbox, mut asked) = (Box::<Inbox>::default(), 0);
    for _ in 0..4 * MOST {
        asked += usize::from(add(to_silent, address, rkey) == UCS_OK);
        while silent.poll(&mut inbox).is_some() {}
        asker.progress();
    }
    assert_eq!(asked, MOST);
    for _ in 0..10 {
        assert_eq!(add(to_friend, address, rkey), UCS_OK);
    }
    for _ in 0..100 {
        friend.progress();
        asker.progress();
    }
    // SAFETY: the word is the test's; nobody changes it any more.
    assert_eq!(unsafe { (&raw const word).read_volatile() }, 10);
    // SAFETY: nothing uses them any more.
    unsafe {
        endpoint::destroy(to_silent);
        endpoint::destroy(to_friend);
        domain::rkey_release(null_mut(), rkey, null_mut());
    }
    friend.get().registry.deregister(&handle);
}

unsafe extern "C" fn never(_: *mut uct_completion_t) {
    panic!("the endpoint was gone");
}

#[test]
fn an_answer_for_an_endpoint_that_is_gone_touches_nothing() {
    let _use = beside_others();
    let (asker, owner) = (Interface::new(), Interface::new());
    let to_owner = asker.connect(&owner.name()).unwrap();
    let mut word = 5u64;
    let handle = register(&owner, &mut word);
    let (address, rkey) = (ptr::from_ref(&word).addr() as u64, unpack(&handle.remote));
    let mut found = 77u64;
    // SAFETY: all zero is a value; the word and the completion outlive the operation.
    unsafe {
        let mut completion: uct_completion_t = std::mem::zeroed();
        completion.func = Some(never);
        completion.count = 1;
        let status = remote::atomic64_fetch(
            to_owner,
            UCT_ATOMIC_OP_ADD,
            1,
            &mut found,
            address,
            rkey,
            &mut completion,
        );
        assert_eq!(status, UCS_INPROGRESS);
        endpoint::destroy(to_owner);
        for _ in 0..100 {
            owner.progress();
            asker.progress();
        }
        assert_eq!(((&raw const word).read_volatile(), (&raw const found).read_volatile()), (6, 77));
        assert_eq!((&raw const completion.count).read_volatile(), 1);
        domain::rkey_release(null_mut(), rkey, null_mut());
    }
    owner.get().registry.deregister(&handle);
}
