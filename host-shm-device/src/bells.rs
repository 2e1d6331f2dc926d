//! Ringing doorbells without ever waiting.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;

use crate::error::Error;

/// As in `linux/aio_abi.h`.
const IOCB_CMD_PREAD: u16 = 0;
const IOCB_FLAG_RESFD: u32 = 1;

/// Rings eventfds that others hold too. A write(2) to one can wait for ever: a client can fill the counter, and can make the
/// descriptor, which is the same open file as ours, a blocking one, at any moment. So an operation is begun that ends at once
/// and has the kernel signal the eventfd at its end, for which it never waits.
#[derive(Debug)]
pub struct Bells {
    context: libc::c_ulong,
    /// File of which no byte is read, so that an operation ends.
    nothing: File,
}

impl Bells {
    /// A queue of the kernel's for it.
    ///
    /// # Errors
    /// The host's limit of such queues is reached (`/proc/sys/fs/aio-max-nr`).
    pub fn new() -> Result<Self, Error> {
        let doing = "make a queue for doorbells (see /proc/sys/fs/aio-max-nr)";
        let nothing = File::open("/dev/null").map_err(Error::io(doing))?;
        let mut context: libc::c_ulong = 0;
        // SAFETY: the kernel writes one word, which is valid for that and 0, as it asks for.
        let done = unsafe { libc::syscall(libc::SYS_io_setup, 1, &raw mut context) };
        match done {
            0 => Ok(Self { context, nothing }),
            _ => Err(Error::io(doing)(io::Error::last_os_error())),
        }
    }

    /// Adds 1 to an eventfd; a counter that is full stays so.
    pub fn ring(&self, bell: &impl AsRawFd) {
        // SAFETY: all zeros is a valid iocb.
        let mut read: libc::iocb = unsafe { std::mem::zeroed() };
        read.aio_lio_opcode = IOCB_CMD_PREAD;
        read.aio_fildes = self.nothing.as_raw_fd() as u32;
        read.aio_flags = IOCB_FLAG_RESFD;
        read.aio_resfd = bell.as_raw_fd() as u32;
        let mut list = [&raw mut read];
        // SAFETY: one control block, which lives until the call returns: the read of no bytes has ended by then.
        unsafe { libc::syscall(libc::SYS_io_submit, self.context, 1 as libc::c_long, list.as_mut_ptr()) };
        // struct io_event: four words.
        let mut event = [0u64; 4];
        let now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: room for one event, and a time to wait of none.
        unsafe {
            libc::syscall(
                libc::SYS_io_getevents,
                self.context,
                0 as libc::c_long,
                1 as libc::c_long,
                event.as_mut_ptr(),
                &raw const now,
            )
        };
    }
}

impl Drop for Bells {
    fn drop(&mut self) {
        // SAFETY: our own queue, which nobody uses any more.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.context) };
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::OwnedFd;

    use nix::sys::eventfd::{EfdFlags, EventFd};

    use super::*;

    #[test]
    fn a_blocking_eventfd_is_rung_and_a_full_one_makes_nobody_wait() {
        let bells = Bells::new().unwrap();
        let bell = OwnedFd::from(EventFd::from_flags(EfdFlags::EFD_CLOEXEC).unwrap());
        for _ in 0..100 {
            bells.ring(&bell);
        }
        let take = || {
            let mut count = [0; 8];
            File::from(bell.try_clone().unwrap()).read_exact(&mut count).unwrap();
            u64::from_ne_bytes(count)
        };
        assert_eq!(take(), 100);
        nix::unistd::write(&bell, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        for _ in 0..100 {
            bells.ring(&bell);
        }
        assert!(take() >= u64::MAX - 1);
        bells.ring(&bell);
        assert_eq!(take(), 1);
    }
}
