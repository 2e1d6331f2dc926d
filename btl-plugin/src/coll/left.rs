//! Memory of groups that we have left, which their other members may still read.

use std::mem;
use std::sync::Arc;

use vmshm_transport::Fragment;
use vmshm_transport::collective::PendingRelease;

use crate::fabric::Fabric;

/// Calls of progress between two looks whether readers have finished: these take their words away from them.
const SELDOM: u32 = 256;

/// All groups that still have readers.
#[derive(Default)]
pub struct LeftGroups {
    groups: Vec<(PendingRelease, Vec<Fragment>)>,
    turns: u32,
}

impl LeftGroups {
    /// Whether there are none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// A group that was left, and its memory.
    pub fn add(&mut self, pending: PendingRelease, fragments: Vec<Fragment>) {
        self.groups.push((pending, fragments));
    }
}

impl Fabric {
    /// Gives back the memory of groups that nobody reads any more.
    pub fn tidy(&mut self) {
        let memory = Arc::clone(self.endpoint.memory());
        for (mut pending, fragments) in mem::take(&mut self.left.groups) {
            if pending.is_released(&memory) {
                fragments.into_iter().for_each(|fragment| self.endpoint.free(fragment));
            } else {
                self.left.add(pending, fragments);
            }
        }
    }

    /// The same, called often.
    #[cold]
    pub fn tidy_seldom(&mut self) {
        self.left.turns = self.left.turns.wrapping_add(1);
        if self.left.turns.is_multiple_of(SELDOM) {
            self.tidy();
        }
    }
}

#[cfg(test)]
mod tests {
    use vmshm_transport::Purpose;
    use vmshm_transport::collective::{BLOCK, CollError, Group, Pause, Rank};

    use super::*;
    use crate::fabric::tests::pair;

    struct NoPause;

    impl Pause for NoPause {
        fn pause(&mut self, member: usize) -> Result<(), CollError> {
            Err(CollError::PeerLost(member))
        }
    }

    #[test]
    fn memory_of_a_left_group_comes_back_once_it_was_read() {
        let ([(mut a, _), (mut b, _)], _directory) = pair();
        let blocks = [&mut a, &mut b].map(|fabric| {
            let block = fabric.endpoint.fragment_for(BLOCK, Purpose::Small).expect("room");
            Group::prepare(fabric.endpoint.memory(), block.offset(), 1);
            block
        });
        let member = |fabric: &Fabric, block: &Fragment| {
            let (section, slot) = (*fabric.endpoint.section(), fabric.endpoint.slot());
            let incarnation = fabric.endpoint.name().incarnation;
            Rank { section, block: block.offset(), tag: 1, slot: section.slot(slot), incarnation }
        };
        let members = vec![member(&a, &blocks[0]), member(&b, &blocks[1])];
        let new = |fabric: &Fabric, me| {
            Group::new(Arc::clone(fabric.endpoint.memory()), me, members.clone(), 1).expect("sound blocks")
        };
        let (mut ours, mut theirs) = (new(&a, 0), new(&b, 1));
        let [block, _] = blocks;
        let offset = block.offset();
        let mut value = 7u64;
        // SAFETY: a word has eight bytes.
        unsafe { ours.broadcast(0, (&raw mut value).cast(), 8, &mut NoPause).expect("nobody to wait for") };
        a.left.add(ours.leave(), vec![block]);
        (0..2 * SELDOM).for_each(|_| a.tidy_seldom());
        assert!(!a.left.is_empty(), "it was not read yet");
        // SAFETY: as above.
        unsafe { theirs.broadcast(0, (&raw mut value).cast(), 8, &mut NoPause).expect("it is there") };
        (0..SELDOM).for_each(|_| a.tidy_seldom());
        assert!(a.left.is_empty());
        let again = a.endpoint.fragment_for(BLOCK, Purpose::Small).expect("room");
        assert_eq!(again.offset(), offset);
    }
}
