//! Memory of collective groups that this process has left, which their other members may still read.

use std::mem;
use std::sync::Arc;

use vmshm_transport::Fragment;
use vmshm_transport::attach::Attached;
use vmshm_transport::collective::PendingRelease;

/// Calls of progress, without the quick ones, between two looks whether readers have finished: these take their words away
/// from them.
const SELDOM: u32 = 32;

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

impl LeftGroups {
    /// Gives back the memory of groups that nobody reads any more.
    pub fn tidy(&mut self, endpoint: &mut Attached) {
        let memory = Arc::clone(endpoint.memory());
        for (mut pending, fragments) in mem::take(&mut self.groups) {
            if pending.is_released(&memory) {
                fragments.into_iter().for_each(|fragment| endpoint.free(fragment));
            } else {
                self.add(pending, fragments);
            }
        }
    }

    /// The same, called often.
    #[cold]
    pub fn tidy_seldom(&mut self, endpoint: &mut Attached) {
        self.turns = self.turns.wrapping_add(1);
        if self.turns.is_multiple_of(SELDOM) {
            self.tidy(endpoint);
        }
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::Purpose;
    use vmshm_transport::attach::{Options, open_endpoint};
    use vmshm_transport::collective::{BLOCK, CollError, Group, Pause, Rank};

    use super::*;

    struct NoPause;

    impl Pause for NoPause {
        fn pause(&mut self, member: usize) -> Result<(), CollError> {
            Err(CollError::PeerLost(member))
        }
    }

    #[test]
    fn memory_of_a_left_group_comes_back_once_it_was_read() {
        let directory = TempDir::new().unwrap();
        let registry = Registry::at(directory.path());
        let name = RegionName::new("left").unwrap();
        let region = registry.create(&name, &CreateOptions::new(16 << 20)).unwrap();
        let open = |section| {
            let device = Some(region.path().display().to_string());
            open_endpoint(&Options { device, section: Some(section), ..Options::default() }).unwrap()
        };
        let (mut a, mut b) = (open(0), open(1));
        a.connect(&b.name()).unwrap();
        b.connect(&a.name()).unwrap();
        let mut left = LeftGroups::default();
        let blocks = [&mut a, &mut b].map(|endpoint| {
            let block = endpoint.fragment_for(BLOCK, Purpose::Small).expect("room");
            Group::prepare(endpoint.memory(), block.offset(), 1);
            block
        });
        let member = |endpoint: &Attached, block: &Fragment| {
            let (section, slot) = (*endpoint.section(), endpoint.slot());
            let incarnation = endpoint.name().incarnation;
            Rank { section, block: block.offset(), tag: 1, slot: section.slot(slot), incarnation }
        };
        let members = vec![member(&a, &blocks[0]), member(&b, &blocks[1])];
        let new = |endpoint: &Attached, me| {
            Group::new(Arc::clone(endpoint.memory()), me, members.clone(), 1).expect("sound blocks")
        };
        let (mut ours, mut theirs) = (new(&a, 0), new(&b, 1));
        let [block, _] = blocks;
        let offset = block.offset();
        let mut value = 7u64;
        // SAFETY: a word has eight bytes.
        unsafe { ours.broadcast(0, (&raw mut value).cast(), 8, &mut NoPause).expect("nobody to wait for") };
        left.add(ours.leave(), vec![block]);
        (0..2 * SELDOM).for_each(|_| left.tidy_seldom(&mut a));
        assert!(!left.is_empty(), "it was not read yet");
        // SAFETY: a word has eight bytes.
        unsafe { theirs.broadcast(0, (&raw mut value).cast(), 8, &mut NoPause).expect("it is there") };
        (0..SELDOM).for_each(|_| left.tidy_seldom(&mut a));
        assert!(left.is_empty());
        let again = a.fragment_for(BLOCK, Purpose::Small).expect("room");
        assert_eq!(again.offset(), offset);
    }
}
