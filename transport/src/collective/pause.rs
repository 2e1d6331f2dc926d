//! Waiting, which is the caller's.

use super::error::CollError;

/// What a rank does while it waits.
pub trait Pause {
    /// Called again and again while `rank` has not yet published or finished what is waited for.
    ///
    /// # Errors
    ///
    /// What ends the waiting, usually [`CollError::PeerLost`].
    fn pause(&mut self, rank: usize) -> Result<(), CollError>;

    /// Called once after something was published, when others are likely to be publishing too: lets a moment pass, some
    /// tens of nanoseconds. Who looks at a line that is just being written takes it away from its writer.
    fn back_off(&self) {}

    /// Called once when memory of this many bytes was exposed, and there is nothing to do until others have read it.
    fn exposed(&self, _len: usize) {}

    /// How often to look before each pause, where `usual` is what the group was made with.
    fn spins(&self, usual: u32) -> u32 {
        usual
    }
}
