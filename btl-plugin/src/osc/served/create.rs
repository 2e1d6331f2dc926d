//! A new served window: its processes meet, and take requests for it from then on.

use std::cell::RefCell;
use std::ffi::c_int;

use vmshm_transport::Peer;
use vmshm_transport::abi::EndpointName;

use super::block::{BLOCK, Block};
use super::window::{FUNCTIONS, Served, Side, forget, remember};
use crate::ompi::{self, ompi_communicator_t, ompi_win_t};
use crate::osc::epochs::Groups;
use crate::osc::meet::{Wanted, meet};
use crate::osc::members::Member;
use crate::process::INSTANCE;

/// Makes a served window, or returns false if some process has no room for its words, or has its memory outside its section
/// and that is not to be `anywhere`.
///
/// # Errors
/// Open MPI's code.
///
/// # Safety
/// All of it is Open MPI's, for a new window. All processes call this with names of all of them.
pub unsafe fn create(
    win: *mut ompi_win_t,
    wanted: &Wanted,
    names: &[EndpointName],
    anywhere: bool,
) -> Result<bool, c_int> {
    // SAFETY: the caller vouches for all.
    let peers = unsafe { connect(wanted.comm, names) };
    // SAFETY: the caller vouches for the window, and that all processes call this.
    let met = unsafe { meet(wanted, names, names.len() * BLOCK, peers.is_some(), anywhere)? };
    let (Some(mut members), Some(peers)) = (met, peers) else { return Ok(false) };
    let is_dynamic = wanted.flavor == ompi::MPI_WIN_FLAVOR_DYNAMIC;
    if is_dynamic {
        members.all.iter_mut().for_each(Member::becomes_dynamic);
    }
    let me = members.me;
    let side = |((rank, member), peer): ((usize, &Member), Option<Peer>)| {
        let ours = members.all[me].words.wrapping_add(rank * BLOCK);
        let theirs = member.words.wrapping_add(me * BLOCK);
        Side::new(*member, peer, Block(ours), Block(theirs))
    };
    let sides = members.all.iter().enumerate().zip(peers).map(side).collect();
    let comm = members.comm;
    // SAFETY: the caller vouches for `win`; the box begins with the functions that Open MPI looks for there, and is freed only
    // once requests no longer find it. The communicator is the window's duplicate.
    unsafe {
        let window = Box::into_raw(Box::new(Served {
            functions: FUNCTIONS,
            members,
            sides,
            name: ompi::vmshm_osc_name(comm),
            locks: RefCell::default(),
            groups: Groups::default(),
            attached: is_dynamic.then(RefCell::default),
        }));
        ompi::vmshm_osc_set_module(win, window.cast());
        remember(window);
        // Nobody sends requests before all know the window.
        let code = ompi::vmshm_osc_barrier(comm);
        if code == ompi::OPAL_SUCCESS as c_int {
            return Ok(true);
        }
        forget(window);
        drop(Box::from_raw(window));
        Err(code)
    }
}

/// All processes of a communicator as peers, and none for this one; None if one of them cannot be reached.
///
/// # Safety
/// `comm` is a communicator of Open MPI, whose processes have these names.
unsafe fn connect(comm: *mut ompi_communicator_t, names: &[EndpointName]) -> Option<Vec<Option<Peer>>> {
    let mut instance = INSTANCE.lock();
    let instance = instance.as_mut()?;
    // SAFETY: the caller vouches for it.
    let (me, process) = unsafe {
        let me = usize::try_from(ompi::vmshm_coll_rank(comm)).ok()?;
        (me, |rank| ompi::vmshm_coll_proc(comm, rank as c_int))
    };
    let peer = |(rank, name): (usize, &EndpointName)| match rank == me {
        true => Some(None),
        // Its loss is reported even if messages go another way.
        false => instance.connect(name, process(rank)).ok().map(Some),
    };
    names.iter().enumerate().map(peer).collect()
}
