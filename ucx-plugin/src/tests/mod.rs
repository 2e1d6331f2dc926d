//! The transport below UCX itself: this program registers it as the library does, and then is a program that uses UCX.

mod hostile;
mod killed_peer;
mod one_sided;
mod threads;
mod ucp;
pub mod uct;

use std::env;
use std::os::fd::AsRawFd;
use std::process;
use std::sync::{LazyLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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

/// The right to use the region beside other tests. Where no section is free, their interfaces share one.
pub fn beside_others() -> RwLockReadGuard<'static, ()> {
    USE.read().unwrap_or_else(PoisonError::into_inner)
}

/// The right to use the region alone, for a test whose peer lets all of its section be written: in an open region nothing keeps that
/// from the slots of others in that section.
fn alone() -> RwLockWriteGuard<'static, ()> {
    USE.write().unwrap_or_else(PoisonError::into_inner)
}

static USE: RwLock<()> = RwLock::new(());

/// Makes the environment such that UCX finds the region: the one of the parent, if this process is a child.
fn find_region() {
    if env::var_os(killed_peer::ROLE).is_none() {
        LazyLock::force(&REGION);
    }
}
