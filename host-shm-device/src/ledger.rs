//! The host's decisions about a region's sections, where no member can change them: a file for the region's owner alone,
//! `.NAME.host` beside the region `NAME`. The table in the region is published from it, and never read back.
//!
//! A process that may open the region can hold any lock on the region's file for as long as it likes. So the host's
//! own locks are here:
//!
//! | byte | exclusive lock of |
//! |---|---|
//! | 0 | the ivshmem server of the region |
//! | 1 | whoever changes the ledger, for the time of the change |
//! | a section's row | the VM that runs in the section without a server's help |

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, fchown};
use std::path::{Path, PathBuf};

use vmshm_abi::region::SectionEntry;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

use crate::dir::behind;
use crate::error::Error;
use crate::lock::{Lock, held};
use crate::state::State;

/// Held by the running server.
pub(crate) const SERVER_BYTE: u64 = 0;
/// Held while the ledger is changed.
const CHANGE_BYTE: u64 = 1;

/// Which file a ledger belongs to: a region that is made anew under an old name begins a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
struct Head {
    dev: u64,
    ino: u64,
    sections: u64,
}

/// Knowledge of the host about one section.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub(crate) struct Row {
    /// The row of the region's table.
    pub(crate) entry: SectionEntry,
    /// Not 0 if the section stays assigned, rather than free, when its VM leaves the server.
    pub(crate) kept: u64,
}

/// A region's open ledger, with what this process has locked there.
#[derive(Debug)]
pub struct Ledger {
    file: File,
    name: PathBuf,
}

impl Ledger {
    /// Ledger of the region at `path`, whose file is `region`. Where there is none, or one of an earlier region, it begins with
    /// the rows of the region's `table`.
    pub(crate) fn open(
        path: &Path,
        region: &File,
        sections: u32,
        table: impl Fn() -> Result<Vec<SectionEntry>, Error>,
    ) -> Result<Self, Error> {
        let Some(name) = name_of(path) else { return Self::anonymous(path, region, sections, table) };
        let doing = || {
            format!(
                "open {}, by which the region's owner, or root, decides whose its sections are",
                name.display()
            )
        };
        loop {
            let meta = region.metadata().map_err(Error::io(doing()))?;
            let file = match open(&name) {
                // A region that is destroyed meanwhile gets none.
                Err(error) if error.kind() == ErrorKind::NotFound && meta.nlink() > 0 => {
                    make(&name, meta.uid())
                }
                opened => opened,
            };
            let file = match file {
                Ok(file) => file,
                // Somebody else has just made it.
                Err(error) if error.kind() == ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io(doing())(error)),
            };
            check(&file, &name, meta.uid())?;
            let ledger = Self { file, name: name.clone() };
            let lock = ledger.lock()?;
            // A destruction may have removed it while we waited.
            if !ledger.has_its_name() {
                continue;
            }
            ledger.begin(region, sections, &table)?;
            drop(lock);
            return Ok(ledger);
        }
    }

    /// Ledger of the region at `path`, if there is one and this user may open it.
    pub(crate) fn existing(path: &Path) -> Option<Self> {
        let name = name_of(path)?;
        Some(Self { file: open(&name).ok()?, name })
    }

    /// Ledger of a region without a name, which lives in this process only; `path` is what messages call it.
    pub(crate) fn anonymous(
        path: &Path,
        region: &File,
        sections: u32,
        table: impl Fn() -> Result<Vec<SectionEntry>, Error>,
    ) -> Result<Self, Error> {
        // SAFETY: the name is a C string that outlives the call.
        let fd = unsafe { libc::memfd_create(c"vmshm-ledger".as_ptr(), libc::MFD_CLOEXEC) };
        if fd < 0 {
            return Err(Error::io("create a memfd")(io::Error::last_os_error()));
        }
        // SAFETY: the descriptor is new and nobody else's.
        let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
        let ledger = Self { file, name: path.to_owned() };
        ledger.begin(region, sections, table)?;
        Ok(ledger)
    }

    /// The ledger's file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Waits until nobody else changes it.
    pub(crate) fn lock(&self) -> Result<Lock<'_>, Error> {
        Lock::exclusive(&self.file, CHANGE_BYTE).map_err(Error::io(format!("lock {}", self.name.display())))
    }

    /// The row of a section.
    ///
    /// # Panics
    /// If the region has no such section.
    pub(crate) fn row(&self, section: u32) -> Result<Row, Error> {
        let mut row = Row::new_zeroed();
        self.file
            .read_exact_at(row.as_mut_bytes(), offset(section))
            .map_err(Error::io(format!("read {}", self.name.display())))?;
        Ok(row)
    }

    /// Notes what the host has decided about a section.
    pub(crate) fn write(&self, section: u32, row: &Row) -> Result<(), Error> {
        self.write_at(row.as_bytes(), offset(section))
    }

    /// Whether a VM other than that of this very ledger runs in a section without a server's help.
    pub(crate) fn is_occupied(&self, section: u32) -> bool {
        held(&self.file, occupied_byte(section))
    }

    fn has_its_name(&self) -> bool {
        let of = |meta: fs::Metadata| (meta.dev(), meta.ino());
        let named = fs::symlink_metadata(&self.name).map(of).ok();
        named.is_some() && named == self.file.metadata().map(of).ok()
    }

    /// Copies the region's table, unless this is that region's ledger already.
    fn begin(
        &self,
        region: &File,
        sections: u32,
        table: impl Fn() -> Result<Vec<SectionEntry>, Error>,
    ) -> Result<(), Error> {
        let meta = region.metadata().map_err(Error::io("look at the region's file"))?;
        let ours = Head { dev: meta.dev(), ino: meta.ino(), sections: sections.into() };
        let mut head = Head::new_zeroed();
        if self.file.read_exact_at(head.as_mut_bytes(), 0).is_ok() && head == ours {
            return Ok(());
        }
        for (entry, section) in table()?.into_iter().zip(0..) {
            // Whether the section of a VM that has joined was assigned is not known: then it stays that VM's.
            let kept = u64::from(State::of(&entry) != State::Free);
            self.write(section, &Row { entry, kept })?;
        }
        self.write_at(ours.as_bytes(), 0)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        self.file.write_all_at(bytes, offset).map_err(Error::io(format!("write {}", self.name.display())))
    }
}

fn offset(section: u32) -> u64 {
    (size_of::<Head>() + section as usize * size_of::<Row>()) as u64
}

/// Held by the VM that runs in a section without a server's help.
pub(crate) fn occupied_byte(section: u32) -> u64 {
    offset(section)
}

/// Where the ledger of the region at `path` lies.
pub(crate) fn name_of(path: &Path) -> Option<PathBuf> {
    // A link of the user's own leads to the same region, and so to the same ledger.
    let path = if path.is_symlink() && behind(path) == path { &fs::canonicalize(path).ok()? } else { path };
    let mut name = OsString::from(".");
    name.push(path.file_name()?);
    name.push(".host");
    Some(path.with_file_name(name))
}

fn open(name: &Path) -> io::Result<File> {
    // No link is followed, and without O_NONBLOCK a FIFO would make us wait for ever.
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY;
    File::options().read(true).write(true).custom_flags(flags).open(name)
}

fn make(name: &Path, owner: u32) -> io::Result<File> {
    let file = File::options().read(true).write(true).create_new(true).mode(0o600).open(name)?;
    // Root may make it for the region's owner.
    if file.metadata()?.uid() != owner {
        fchown(&file, Some(owner), None)?;
    }
    Ok(file)
}

/// Refuses a file that somebody else has put in the ledger's place.
fn check(file: &File, name: &Path, owner: u32) -> Result<(), Error> {
    let meta = file.metadata().map_err(Error::io(format!("look at {}", name.display())))?;
    let trusted = [0, owner].contains(&meta.uid());
    if meta.is_file() && meta.nlink() <= 1 && trusted && meta.mode() & 0o077 == 0 {
        return Ok(());
    }
    Err(Error::Invalid {
        what: "the file",
        value: name.display().to_string(),
        why: format!(
            "is not the owner's alone (mode {:o}, user {}), so that it says nothing of whose the sections are: remove it",
            meta.mode() & 0o7777,
            meta.uid()
        ),
    })
}
