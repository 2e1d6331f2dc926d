//! One measurement of messages of one size: a turn that is checked, turns to warm up, and those that count.

use super::mpi::Mpi;
use super::options::Plan;

/// Repetition of the same exchange. A turn's data is told from other turns' by its number.
pub trait Turns {
    /// Takes away what has arrived.
    fn clear(&self);
    /// Passes messages; with `vary` on data written for this turn and checked after it.
    fn pass(&mut self, turn: u32, vary: bool);
    /// Ends the job if what has arrived is not the data of this turn.
    fn check(&self, turn: u32);
}

/// Seconds that the turns of this process take, or 0 if it has none: all processes of the job must take part in this.
pub fn measure(mpi: &Mpi, plan: &Plan, vary: bool, mut turns: Option<impl Turns>) -> f64 {
    if let Some(turns) = &turns {
        turns.clear();
    }
    mpi.barrier();
    if let Some(turns) = &mut turns {
        turns.pass(u32::MAX, true);
    }
    mpi.barrier();
    let mut began = 0.0;
    for turn in 0..plan.all() {
        if turn == plan.warmup {
            // All pairs start together.
            mpi.barrier();
            began = mpi.now();
        }
        if let Some(turns) = &mut turns {
            turns.pass(turn, vary);
        }
    }
    let seconds = mpi.now() - began;
    match turns {
        Some(turns) => {
            turns.check(if vary { plan.all() - 1 } else { u32::MAX });
            seconds
        }
        None => 0.0,
    }
}
