//! Steps that try the guest driver in guests with an unmodified kernel.

mod access;
mod guest;
mod jobs;
mod loss;
mod plain;
mod setup;
mod ucx;

use anyhow::Result;

use super::tally::Tally;
use access::{calls, fuzz, load, mmap, unbind};
use jobs::{RINGS, doorbell, heap, mpi, sleep};
use loss::{death, suspend, unplug, vm_end};
use plain::plain;

pub use guest::{checked, must};
pub use jobs::wait_for;
pub use setup::{Pair, Parts, Prepared, prepare};

/// Runs all of them. Returns how many boots were repeated.
pub fn steps(prepared: &Prepared, tally: &mut Tally) -> Result<usize> {
    let mut pair = Pair::new(prepared);
    let release = pair.release();
    tally.step("guests-driver-load", |logs| {
        let release = release?;
        checked(pair.lab(logs)?, logs, |lab| load(lab, &release, logs))
    })?;
    tally.step("guests-driver-mmap", |logs| checked(pair.lab(logs)?, logs, |lab| mmap(lab, logs)))?;
    tally.step("guests-driver-calls", |logs| checked(pair.lab(logs)?, logs, |lab| calls(lab, logs)))?;
    tally.step("guests-driver-fuzz", |logs| checked(pair.lab(logs)?, logs, |lab| fuzz(lab, logs)))?;
    tally.step("guests-driver-unbind", |logs| checked(pair.lab(logs)?, logs, |lab| unbind(lab, logs)))?;
    tally.step("guests-driver-doorbell", |logs| {
        checked(pair.lab(logs)?, logs, |lab| doorbell(lab, RINGS, logs))
    })?;
    let all = tally.all();
    tally.step("guests-driver-mpi", |logs| checked(pair.lab(logs)?, logs, |lab| mpi(lab, all, logs)))?;
    tally.step("guests-driver-heap", |logs| checked(pair.lab(logs)?, logs, |lab| heap(lab, logs)))?;
    tally.step("guests-driver-sleep", |logs| checked(pair.lab(logs)?, logs, |lab| sleep(lab, logs)))?;
    tally.step("guests-driver-ucx-sleep", |logs| {
        checked(pair.lab(logs)?, logs, |lab| ucx::sleep(lab, logs))
    })?;
    tally.step("guests-driver-death", |logs| checked(pair.lab(logs)?, logs, |lab| death(lab, logs)))?;
    tally.step("guests-driver-suspend", |logs| checked(pair.lab(logs)?, logs, |lab| suspend(lab, logs)))?;
    tally.step("guests-driver-unplug", |logs| checked(pair.lab(logs)?, logs, |lab| unplug(lab, logs)))?;
    // The last one: it ends a guest.
    tally.step("guests-driver-vm-end", |logs| vm_end(pair.lab(logs)?, logs))?;
    let mut repeated = pair.repeated_boots();
    // Their memory and processors are for the next lab.
    drop(pair);
    tally.step("guests-driver-plain", |logs| {
        let (count, boots) = plain(prepared, logs)?;
        repeated += boots;
        Ok(count)
    })?;
    Ok(repeated)
}
