//! Open-file-description locks on single bytes of a region's file.
//!
//! The kernel drops them when the last process that has the open file exits, however it exits. They tell which processes
//! of this kernel live; `vmshm-host` has the meaning of each byte.

use std::fs::File;
use std::io;

use nix::fcntl::{FcntlArg, fcntl};

fn byte(kind: i32, at: u64) -> io::Result<libc::flock> {
    let start = libc::off_t::try_from(at).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    Ok(libc::flock {
        l_type: i16::try_from(kind).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?,
        l_whence: 0,
        l_start: start,
        l_len: 1,
        l_pid: 0,
    })
}

fn set(file: &File, kind: i32, at: u64) -> io::Result<bool> {
    match fcntl(file, FcntlArg::F_OFD_SETLK(&byte(kind, at)?)) {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// Takes the byte for this open file alone; false if another holds it.
pub fn try_exclusive(file: &File, at: u64) -> io::Result<bool> {
    set(file, libc::F_WRLCK, at)
}

/// Takes the byte together with others; false if another holds it alone.
pub fn try_shared(file: &File, at: u64) -> io::Result<bool> {
    set(file, libc::F_RDLCK, at)
}

/// Gives the byte back.
pub fn release(file: &File, at: u64) -> io::Result<()> {
    set(file, libc::F_UNLCK, at).map(|_| ())
}

/// Whether any other open file holds the byte, alone or with others.
pub fn is_held_by_another(file: &File, at: u64) -> io::Result<bool> {
    let mut probe = byte(libc::F_WRLCK, at)?;
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut probe))?;
    Ok(i32::from(probe.l_type) != libc::F_UNLCK)
}
