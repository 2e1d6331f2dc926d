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
        let (size, me, mut step) = (self.size(), self.me, self.step);
        // A stamp of a later step says as well that its member was here, so nobody misses one that is overwritten.
        if size <= FEW {
            self.vacate(step, 0, pause)?;
            self.publish(step, 0, Readers::Lenient);
            self.settle(step, 0, pause);
            for member in (0..size).filter(|member| *member != me) {
                self.reached(member, step, pause)?;
            }
            step += 1;
        } else {
            let mut distance = 1;
            while distance < size {
                self.vacate(step, 0, pause)?;
                self.publish(step, 0, Readers::Lenient);
                self.settle(step, 0, pause);
                self.reached((me + size - distance) % size, step, pause)?;
                distance *= 2;
                step += 1;
            }
        }
        self.end(step);
        Ok(())
    }
}
