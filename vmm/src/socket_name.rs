//! The name of a unix socket in the file system, which goes with its owner.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// A name that is removed when dropped.
#[derive(Debug)]
pub(crate) struct SocketName(PathBuf);

impl SocketName {
    /// Binds a socket to a name. One that a killed VMM left is replaced; what is no socket is not.
    pub(crate) fn bind<S>(path: &Path, bind: impl FnOnce(&Path) -> io::Result<S>) -> io::Result<(S, Self)> {
        if fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            fs::remove_file(path)?;
        }
        Ok((bind(path)?, Self(path.to_owned())))
    }
}

impl Drop for SocketName {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}
