//! The transport below UCX itself: this program registers it as the library does, and then is a program that uses UCX.

mod hostile;
mod killed_peer;
mod one_sided;
mod threads;
mod ucp;
mod uct;

use std::env;
use std::os::fd::AsRawFd;
use std::process;
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};

use vmshm_host::{CreateOptions, Region, RegionName, create_memfd};

const SECTIONS: u32 = 4;

/// The region of all tests, which nothing but this process and its children reaches.
static REGION: LazyLock<Region> = LazyLock::new(|| {
    let options =
        CreateOptions { sections: SECTIONS, open: true, sparse: true, ..CreateOptions::new(256 << 20) };
    let region = create_memfd(&RegionName::new("test").unwrap(), &options).unwrap();
    let device = format!("/proc/{}/fd/{}", process::id(), region.file().as_raw_fd());
    // SAFETY: every test comes here before its first call of UCX, which is what reads the environment; Rust's own readers are
    // locked out.
    unsafe { env::set_var("VMSHM_DEVICE", device) };
    region
});

/// The turn of a test. They share the region, and with it the sections where none is free: beside one that attacks or kills a peer
/// on two busy cores, others lost peers in one run of twelve.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Makes the environment such that UCX finds the region: the one of the parent, if this process is a child.
fn find_region() {
    if env::var_os(killed_peer::ROLE).is_none() {
        LazyLock::force(&REGION);
    }
}
