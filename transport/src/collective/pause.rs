//! Waiting, which is the caller's.

use super::error::CollError;

/// A rank's work while it waits.
pub trait Pause {
    /// Called again and again while `rank` has not yet published or finished what is waited for.
    ///
    /// # Errors
    ///
    /// The end of the waiting, usually [`CollError::PeerLost`].
    fn pause(&mut self, rank: usize) -> Result<(), CollError>;

    /// Backs off for some tens of nanoseconds. Called once after something was published, when others are likely to be publishing
    /// too: a look at a line that is just being written takes it away from its writer.
    fn back_off(&self) {}

    /// Called once when `len` bytes were exposed, and there is nothing to do until others have read them.
    fn exposed(&self, _len: usize) {}

    /// Number of looks before each pause, where `usual` is the group's own.
    fn spins(&self, usual: u32) -> u32 {
        usual
    }
}
