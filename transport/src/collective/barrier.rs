//! Waiting for all ranks.

use super::error::CollError;
use super::group::{Group, Readers};
use super::pause::Pause;
use crate::memory::Memory;

/// Most ranks that look at each other's words one by one; more go through rounds (dissemination).
const MAX_FLAT: usize = 8;

impl<M: Memory> Group<M> {
    /// Waits until all ranks have come here.
    ///
    /// # Errors
    ///
    /// A rank that is gone.
    pub fn barrier(&mut self, pause: &mut impl Pause) -> Result<(), CollError> {
        // A stamp of a later step shows as well that its rank was here, so that an overwritten one is not missed.
        if self.size() > MAX_FLAT {
            return self.barrier_in_rounds(pause);
        }
        let step = self.step;
        self.publish_arrival(step, pause)?;
        for rank in 0..self.size() {
            if rank != self.me {
                self.reached(rank, step, pause)?;
                self.confirm(rank)?;
            }
        }
        self.end(step + 1);
        Ok(())
    }

    fn barrier_in_rounds(&mut self, pause: &mut impl Pause) -> Result<(), CollError> {
        let (size, me, mut step) = (self.size(), self.me, self.step);
        let mut distance = 1;
        while distance < size {
            self.publish_arrival(step, pause)?;
            let rank = (me + size - distance) % size;
            self.reached(rank, step, pause)?;
            self.confirm(rank)?;
            distance *= 2;
            step += 1;
        }
        self.end(step);
        Ok(())
    }

    /// Publishes our arrival at a step.
    #[inline(always)]
    fn publish_arrival(&mut self, step: u64, pause: &mut impl Pause) -> Result<(), CollError> {
        self.await_slot(step, 0, pause)?;
        self.publish(step, 0, Readers::Lenient);
        self.back_off(step, pause);
        Ok(())
    }
}
