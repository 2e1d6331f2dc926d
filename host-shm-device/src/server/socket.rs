//! Sockets that the server listens at.

use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, UnixAddr, bind, listen};
use nix::unistd::Group;

use crate::error::Error;
use crate::region::Region;

/// Where servers listen unless `VMSHM_RUN_DIR` says otherwise.
pub const DEFAULT_RUN_DIR: &str = "/run/vmshm";

/// The directory of the servers' sockets.
pub fn run_dir() -> PathBuf {
    std::env::var_os("VMSHM_RUN_DIR").filter(|dir| !dir.is_empty()).unwrap_or(DEFAULT_RUN_DIR.into()).into()
}

/// The socket that gives a VM any free section of a region.
pub fn socket(region: &Region) -> PathBuf {
    // The file's name rather than the header's, which any VM may have changed.
    let name = region.path().file_name().unwrap_or_default().to_string_lossy().into_owned();
    run_dir().join(format!("{name}.sock"))
}

/// The socket beside `socket` that gives a VM exactly that section.
pub fn section_socket(socket: &Path, section: u32) -> PathBuf {
    let name = socket.file_name().unwrap_or_default().to_string_lossy();
    let stem = name.strip_suffix(".sock").unwrap_or(&name);
    socket.with_file_name(format!("{stem}.{section}.sock"))
}

/// A listening socket whose file goes when it is dropped.
#[derive(Debug)]
pub(crate) struct Listener {
    pub(crate) socket: UnixListener,
    path: PathBuf,
    file: Option<(u64, u64)>,
}

impl Listener {
    /// Listens at `path`. A file that a dead server left there is replaced; anything else is not.
    pub(crate) fn bind(path: &Path, mode: u32, group: Option<&str>) -> Result<Self, Error> {
        let doing = || format!("listen at {}", path.display());
        let address = UnixAddr::new(path).map_err(|_| Error::Invalid {
            what: "the socket path",
            value: path.display().to_string(),
            why: "is longer than the 107 bytes that a socket address holds: choose a shorter --socket or \
                  VMSHM_RUN_DIR"
                .into(),
        })?;
        make_way(path)?;
        let socket = nix::sys::socket::socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            None,
        )
        .map_err(Error::sys(doing()))?;
        // The file gets this mode when it appears, so that nobody slips in before its real one is set.
        let socket = File::from(socket);
        socket.set_permissions(Permissions::from_mode(0o600)).map_err(Error::io(doing()))?;
        bind(socket.as_raw_fd(), &address).map_err(Error::sys(doing()))?;
        let mut listener = Self {
            socket: UnixListener::from(std::os::fd::OwnedFd::from(socket)),
            path: path.to_owned(),
            file: None,
        };
        let meta = fs::symlink_metadata(path).map_err(Error::io(doing()))?;
        listener.file = Some((meta.dev(), meta.ino()));
        listen(&listener.socket, Backlog::new(64).expect("a small backlog")).map_err(Error::sys(doing()))?;
        permit(path, mode, group)?;
        Ok(listener)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let now = fs::symlink_metadata(&self.path).map(|meta| (meta.dev(), meta.ino())).ok();
        if now.is_some() && now == self.file {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Permissions of a socket's file. Without a group asked for, the socket gets the group `vmshm` where there is one.
fn permit(path: &Path, mode: u32, group: Option<&str>) -> Result<(), Error> {
    let doing = || format!("set the permissions of {}", path.display());
    let known = Group::from_name(group.unwrap_or("vmshm")).map_err(Error::sys(doing()))?;
    match (known, group) {
        (Some(known), _) => {
            let changed = chown(path, None, Some(known.gid.as_raw()));
            if group.is_some() {
                changed.map_err(Error::io(doing()))?;
            }
        }
        (None, Some(group)) => {
            return Err(Error::Invalid {
                what: "the group",
                value: group.to_owned(),
                why: "does not exist: `getent group` lists those there are".into(),
            });
        }
        (None, None) => {}
    }
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(Error::io(doing()))
}

/// Removes a socket file on which nobody answers.
fn make_way(path: &Path) -> Result<(), Error> {
    let doing = || format!("listen at {}", path.display());
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::io(doing())(error)),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(Error::Invalid {
                what: "the socket path",
                value: path.display().to_string(),
                why: "exists and is no socket: choose another --socket, or remove it".into(),
            });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(Error::io(doing()))
        }
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        _ => Err(Error::io(doing())(io::Error::new(
            ErrorKind::AddrInUse,
            "another program answers there: choose another --socket, or end that program",
        ))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_sections_lie_beside_the_region_s() {
        assert_eq!(section_socket(Path::new("/run/vmshm/job.sock"), 3), Path::new("/run/vmshm/job.3.sock"));
        assert_eq!(section_socket(Path::new("/tmp/s"), 0), Path::new("/tmp/s.0.sock"));
    }

    #[test]
    fn a_dead_server_s_socket_is_replaced_and_a_living_one_s_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let listener = Listener::bind(&path, 0o660, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert!(
            Listener::bind(&path, 0o660, None).unwrap_err().to_string().contains("another program answers")
        );
        drop(listener);
        assert!(!path.exists());
        fs::write(&path, "mine").unwrap();
        assert!(Listener::bind(&path, 0o660, None).unwrap_err().to_string().contains("is no socket"));
        assert_eq!(fs::read(&path).unwrap(), b"mine");
    }
}
