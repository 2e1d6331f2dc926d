//! An existing region: its file, its checked header, its section table.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use vmshm_abi::region::{HeaderError, RegionHeader, SectionEntry};
use vmshm_abi::section::SectionLayout;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use crate::dir::behind;
use crate::error::Error;
use crate::ledger::Ledger;
use crate::mapping::Mapping;
use crate::plan::table_len;

/// An open region whose header and table were sound when it was opened.
///
/// The copy of the header that is kept here is the one that was checked; rows of the table are read and checked
/// anew each time.
#[derive(Debug)]
pub struct Region {
    file: File,
    path: PathBuf,
    header: RegionHeader,
    writable: bool,
    /// Never had a name: a memfd.
    anonymous: bool,
    ledger: OnceLock<Ledger>,
}

impl Region {
    /// Opens the region in a file: for reading and writing where that is permitted, else for reading.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let target = behind(path);
        // Without O_NONBLOCK a FIFO in the place of a region would make us wait for ever.
        let open = |write| {
            File::options()
                .read(true)
                .write(write)
                .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
                .open(&target)
        };
        let (file, writable) = match open(true) {
            Ok(file) => (file, true),
            Err(error) if error.kind() == ErrorKind::IsADirectory => {
                return Err(Error::NotRegion { path: path.to_owned(), why: "it is a directory" });
            }
            Err(error)
                if matches!(error.kind(), ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem) =>
            {
                let open = open(false).map_err(|cause| Error::Io {
                    doing: format!(
                        "open {} (ask its owner, or root, to let you: its group may use it)",
                        path.display()
                    ),
                    cause,
                })?;
                (open, false)
            }
            Err(error) => return Err(Error::io(format!("open {}", path.display()))(error)),
        };
        Self::from_file(file, path.to_owned(), writable)
    }

    pub(crate) fn from_file(file: File, path: PathBuf, writable: bool) -> Result<Self, Error> {
        let meta = file.metadata().map_err(Error::io(format!("look at {}", path.display())))?;
        if !meta.is_file() {
            return Err(Error::NotRegion { path, why: "it is not a regular file" });
        }
        let mut header = RegionHeader::new_zeroed();
        read_at(&file, &path, header.as_mut_bytes(), 0, meta.len())?;
        header.check(meta.len()).map_err(|why| Error::Header { path: path.clone(), why })?;
        let region =
            Self { file, path, header, writable, anonymous: meta.nlink() == 0, ledger: OnceLock::new() };
        let mut end = header.table_end;
        for (i, entry) in region.entries()?.iter().enumerate() {
            // Sections that overlap would have two writers.
            if entry.offset < end {
                let why = HeaderError::Section { section: i as u32, field: "offset", value: entry.offset };
                return Err(Error::Header { path: region.path, why });
            }
            end = entry.offset + entry.len;
        }
        Ok(region)
    }

    /// The header, as it was checked when the region was opened.
    pub fn header(&self) -> &RegionHeader {
        &self.header
    }

    /// Where the region was found.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The region's file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Whether the file could be opened for writing.
    pub fn is_writable(&self) -> bool {
        self.writable
    }

    /// The name in the header, printable.
    pub fn name(&self) -> String {
        let bytes = self.header.name.split(|&b| b == 0).next().unwrap_or_default();
        String::from_utf8_lossy(bytes).chars().map(|c| if c.is_control() { '?' } else { c }).collect()
    }

    /// The region's id.
    pub fn id(&self) -> uuid::Uuid {
        uuid::Uuid::from_bytes(self.header.region_id)
    }

    /// Bytes of memory that the file has now; fewer than its length while it is sparse.
    pub fn allocated(&self) -> u64 {
        self.file.metadata().map_or(0, |meta| meta.blocks().saturating_mul(512))
    }

    /// Refuses a section that does not exist.
    pub(crate) fn check_section(&self, section: u32) -> Result<(), Error> {
        if section < self.header.sections {
            return Ok(());
        }
        Err(Error::Section { name: self.name(), section, last: self.header.sections - 1 })
    }

    /// A fresh copy of a row of the table, checked.
    pub fn entry(&self, section: u32) -> Result<SectionEntry, Error> {
        self.check_section(section)?;
        let mut entry = SectionEntry::new_zeroed();
        self.read(entry.as_mut_bytes(), RegionHeader::entry_offset(section))?;
        self.checked(entry, section)
    }

    /// Fresh copies of all rows of the table, checked.
    pub fn entries(&self) -> Result<Vec<SectionEntry>, Error> {
        let mut bytes = vec![0; self.header.sections as usize * size_of::<SectionEntry>()];
        self.read(&mut bytes, RegionHeader::entry_offset(0))?;
        bytes
            .chunks_exact(size_of::<SectionEntry>())
            .zip(0..)
            .map(|(row, section)| {
                let entry = SectionEntry::read_from_bytes(row).expect("a chunk has the size of a row");
                self.checked(entry, section)
            })
            .collect()
    }

    fn checked(&self, entry: SectionEntry, section: u32) -> Result<SectionEntry, Error> {
        match entry.check(section, &self.header) {
            Ok(()) => Ok(entry),
            Err(why) => Err(Error::Header { path: self.path.clone(), why }),
        }
    }

    /// Where the parts of a (checked) section lie, or `None` where it is too short to have any.
    pub fn layout(&self, entry: &SectionEntry) -> Option<SectionLayout> {
        SectionLayout::new(entry.len, self.header.sections, self.header.endpoints)
    }

    /// Copies bytes out of the region.
    pub fn read(&self, bytes: &mut [u8], offset: u64) -> Result<(), Error> {
        read_at(&self.file, &self.path, bytes, offset, self.header.region_len)
    }

    /// Whether the region's file has lost its name: no guest can bring that about, only the host.
    pub(crate) fn is_unlinked(&self) -> bool {
        !self.anonymous && self.file.metadata().is_ok_and(|meta| meta.nlink() == 0)
    }

    /// The ledger, where the host's decisions about the sections stand. Fails for all but the region's owner and root.
    pub(crate) fn ledger(&self) -> Result<&Ledger, Error> {
        if let Some(ledger) = self.ledger.get() {
            return Ok(ledger);
        }
        if !self.writable {
            return Err(Error::io(format!("change the section table of {}", self.path.display()))(
                ErrorKind::PermissionDenied.into(),
            ));
        }
        let (sections, table) = (self.header.sections, || self.entries());
        let ledger = match self.anonymous {
            true => Ledger::anonymous(&self.path, &self.file, sections, table)?,
            false => Ledger::open(&self.path, &self.file, sections, table)?,
        };
        Ok(self.ledger.get_or_init(|| ledger))
    }

    /// The ledger, if there is one and this user may read it.
    pub(crate) fn existing_ledger(&self) -> Option<Ledger> {
        if self.anonymous { None } else { Ledger::existing(&self.path) }
    }

    /// Closes the region's file, but not its ledger, nor what this process locked there.
    pub fn into_ledger(self) -> Option<Ledger> {
        self.ledger.into_inner()
    }

    /// Opens the same file once more, for somebody else: locks that we hold are not theirs.
    pub fn reopen(&self) -> Result<File, Error> {
        File::options()
            .read(true)
            .write(self.writable)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
            .map_err(Error::io(format!("open {} again", self.path.display())))
    }

    /// Writes words into header or table.
    pub(crate) fn write(&self, bytes: &[u8], offset: u64) -> Result<(), Error> {
        assert!(
            offset + bytes.len() as u64 <= self.header.table_end,
            "the host writes only header and table"
        );
        let doing = || format!("write to the header of {}", self.path.display());
        match self.file.write_all_at(bytes, offset) {
            Ok(()) => Ok(()),
            // hugetlbfs knows no write(2).
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let len = table_len(self.header.sections, self.header.page_len);
                Mapping::new(&self.file, len, true)?.write(offset, bytes).map_err(Error::io(doing()))
            }
            Err(error) if error.raw_os_error() == Some(libc::EBADF) => {
                Err(Error::io(doing())(ErrorKind::PermissionDenied.into()))
            }
            Err(error) => Err(Error::io(doing())(error)),
        }
    }
}

fn read_at(file: &File, path: &Path, bytes: &mut [u8], offset: u64, promised: u64) -> Result<(), Error> {
    file.read_exact_at(bytes, offset).map_err(|error: io::Error| {
        if error.kind() == ErrorKind::UnexpectedEof {
            if promised < size_of::<RegionHeader>() as u64 {
                return Error::NotRegion { path: path.to_owned(), why: "it is shorter than a header" };
            }
            let found = file.metadata().map_or(0, |meta| meta.len());
            let promised = promised.max(offset.saturating_add(bytes.len() as u64));
            return Error::Header { path: path.to_owned(), why: HeaderError::Truncated { promised, found } };
        }
        Error::io(format!("read {}", path.display()))(error)
    })
}
