//! Waiting for all members.

use super::group::{Broken, Group, Pause, Readers};
use crate::memory::Memory;

/// Up to so many members look at each other's words one by one; more pass the word on in rounds.
const FEW: usize = 8;

impl<M: Memory> Group<M> {
    /// Waits until all members have come here.
    ///
    /// # Errors
    ///
    /// A member that is gone.
    pub fn barrier(&mut self, pause: &mut impl Pause) -> Result<(), Broken> {
        // A stamp of a later step says as well that its member was here, so nobody misses one that is overwritten.
        if self.size() > FEW {
            return self.barrier_in_rounds(pause);
        }
        let step = self.step;
        self.say_here(step, pause)?;
        for member in 0..self.size() {
            if member != self.me {
                self.reached(member, step, pause)?;
                self.confirm(member)?;
            }
        }
        self.end(step + 1);
        Ok(())
    }

    fn barrier_in_rounds(&mut self, pause: &mut impl Pause) -> Result<(), Broken> {
        let (size, me, mut step) = (self.size(), self.me, self.step);
        let mut distance = 1;
        while distance < size {
            self.say_here(step, pause)?;
            let member = (me + size - distance) % size;
            self.reached(member, step, pause)?;
            self.confirm(member)?;
            distance *= 2;
            step += 1;
        }
        self.end(step);
        Ok(())
    }

    /// Says that we are at a step.
    #[inline(always)]
    fn say_here(&mut self, step: u64, pause: &mut impl Pause) -> Result<(), Broken> {
        self.vacate(step, 0, pause)?;
        self.publish(step, 0, Readers::Lenient);
        self.settle(step, pause);
        Ok(())
    }
}
