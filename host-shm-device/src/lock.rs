//! Locks on single bytes of a file. They belong to the open file description, so the kernel drops them when their holder
//! dies. Those on a region's file say which host processes use it, no more: any member can hold them for ever. Facts that the host
//! itself needs is locked in its [ledger](crate::ledger).
//!
//! | byte of the region's file | lock | holder |
//! |---|---|---|
//! | a row of the section table | shared | host processes that use the section |
//! | an endpoint's slot | exclusive | that endpoint, where it is a host process, with its forked children |
//! | the byte behind it | exclusive | that process alone |

use std::fs::File;
use std::io;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

fn flock(kind: libc::c_int, start: u64, len: u64) -> libc::flock {
    libc::flock {
        l_type: kind as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: start as libc::off_t,
        l_len: len as libc::off_t,
        l_pid: 0,
    }
}

/// An exclusive lock, dropped with the value.
#[derive(Debug)]
pub struct Lock<'a> {
    file: &'a File,
    start: u64,
    len: u64,
}

impl<'a> Lock<'a> {
    /// Takes the lock on a byte, or says `None` where somebody holds it.
    pub fn try_exclusive(file: &'a File, byte: u64) -> io::Result<Option<Self>> {
        Self::take(file, byte, 1)
    }

    /// Takes the locks on all bytes of the file at once, or says `None` where somebody holds any.
    pub(crate) fn try_whole(file: &'a File) -> io::Result<Option<Self>> {
        Self::take(file, 0, 0)
    }

    /// Waits for the lock on a byte; for those that are never held long.
    pub(crate) fn exclusive(file: &'a File, byte: u64) -> io::Result<Self> {
        loop {
            match fcntl(file, FcntlArg::F_OFD_SETLKW(&flock(libc::F_WRLCK, byte, 1))) {
                Ok(_) => return Ok(Self { file, start: byte, len: 1 }),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn take(file: &'a File, start: u64, len: u64) -> io::Result<Option<Self>> {
        match fcntl(file, FcntlArg::F_OFD_SETLK(&flock(libc::F_WRLCK, start, len))) {
            Ok(_) => Ok(Some(Self { file, start, len })),
            Err(Errno::EAGAIN | Errno::EACCES) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Keeps the lock until the file is closed.
    pub(crate) fn keep(self) {
        std::mem::forget(self);
    }
}

impl Drop for Lock<'_> {
    fn drop(&mut self) {
        let _ = fcntl(self.file, FcntlArg::F_OFD_SETLK(&flock(libc::F_UNLCK, self.start, self.len)));
    }
}

/// Gives up a lock that was [kept](Lock::keep), for all who have the open file.
pub(crate) fn release(file: &File, byte: u64) {
    drop(Lock { file, start: byte, len: 1 });
}

/// Whether any other open file description holds a lock on the byte.
pub(crate) fn held(file: &File, byte: u64) -> bool {
    any_held(file, byte, 1)
}

/// The same for any of some bytes; a length of 0 means all that follow.
pub(crate) fn any_held(file: &File, first: u64, len: u64) -> bool {
    let mut probe = flock(libc::F_WRLCK, first, len);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe)).is_ok() && i32::from(probe.l_type) != libc::F_UNLCK
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_byte_is_held_by_one_description_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        let open =
            || File::options().read(true).write(true).create(true).truncate(false).open(&path).unwrap();
        let (a, b) = (open(), open());
        let lock = Lock::try_exclusive(&a, 7).unwrap().unwrap();
        assert!(held(&b, 7) && !held(&b, 8) && !held(&a, 7));
        assert!(Lock::try_exclusive(&b, 7).unwrap().is_none());
        assert!(Lock::try_whole(&b).unwrap().is_none());
        drop(lock);
        assert!(!held(&b, 7));
        Lock::try_whole(&b).unwrap().unwrap().keep();
        assert!(held(&a, 7));
        drop(b);
        assert!(!held(&a, 7));
    }
}
