//! Making regions. Until the last step the file has no name, so that an interrupted creation leaves nothing.

use std::ffi::CString;
use std::fs::{self, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, fchown, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::fcntl::{AT_FDCWD, AtFlags, FallocateFlags, Flock, FlockArg, fallocate};
use nix::unistd::{Group, linkat};
use uuid::Uuid;
use vmshm_abi::region::{
    ANY_NODE, FLAG_OPEN, MAGIC, RegionHeader, SECTION_FREE, SectionEntry, TABLE_OFFSET, VERSION,
};
use zerocopy::{FromZeros, IntoBytes};

use crate::destroy::{remove, remove_ledger};
use crate::dir::{HUGE_DIR, behind, prepare_dir};
use crate::error::Error;
use crate::hugetlb::{self, PageSize};
use crate::mapping::Mapping;
use crate::memory::{self, format_bytes};
use crate::name::RegionName;
use crate::numa;
use crate::plan::Plan;
use crate::region::Region;
use crate::registry::Registry;

/// Allocate this much at once, so that a signal is answered soon.
const STEP: u64 = 256 << 20;

/// How often a creation looks whether another one has ended, 10 ms apart.
const LOCK_TRIES: u32 = 1000;

/// Size, sections and memory of a new region.
#[derive(Debug, Clone)]
pub struct CreateOptions {
    /// Bytes of the whole region, a power of two.
    pub size: u64,
    /// Number of sections.
    pub sections: u32,
    /// Endpoint slots of a section, or `None` to have them derived from its size.
    pub endpoints: Option<u32>,
    /// NUMA nodes: none, one for all sections, or one for each.
    pub nodes: Vec<u32>,
    /// Size of the pages.
    pub pages: PageSize,
    /// Whether every member may write every section.
    pub open: bool,
    /// Whether memory is allocated only when it is touched: whoever touches it when none is left is killed.
    pub sparse: bool,
}

impl CreateOptions {
    /// A region of `size` bytes with two sections, on 4 KiB pages, fully allocated.
    pub fn new(size: u64) -> Self {
        Self {
            size,
            sections: 2,
            endpoints: None,
            nodes: Vec::new(),
            pages: PageSize::Base,
            open: false,
            sparse: false,
        }
    }

    fn plan(&self) -> Result<Plan, Error> {
        let plan = Plan::new(self.size, self.pages.bytes(), self.sections, self.endpoints)?;
        for &node in &self.nodes {
            numa::check(node)?;
        }
        if self.nodes.len() > 1 && self.nodes.len() != self.sections as usize {
            return Err(Error::Invalid {
                what: "the list of nodes",
                value: self.nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
                why: format!(
                    "has {} entries for {} sections: give one node for all, or one for each section",
                    self.nodes.len(),
                    self.sections
                ),
            });
        }
        if self.sparse && self.pages != PageSize::Base && !self.nodes.is_empty() {
            return Err(Error::Invalid {
                what: "the list of nodes",
                value: self.nodes.iter().map(u32::to_string).collect::<Vec<_>>().join(","),
                why: "cannot be kept for huge pages that are allocated later: leave --sparse or --nodes out"
                    .into(),
            });
        }
        Ok(plan)
    }

    fn node(&self, section: u32) -> Option<u32> {
        if self.nodes.len() == 1 { Some(self.nodes[0]) } else { self.nodes.get(section as usize).copied() }
    }

    /// Refuses what would end with the kernel killing processes, while nothing has happened yet.
    fn check_room(&self, plan: &Plan, dir: &Path) -> Result<(), Error> {
        if self.sparse {
            return Ok(());
        }
        if self.pages == PageSize::Base {
            memory::check(plan.region_len, dir)?;
        } else if self.nodes.is_empty() {
            hugetlb::check_pool(plan.region_len, self.pages, None)?;
        }
        let mut nodes = self.nodes.clone();
        nodes.sort_unstable();
        nodes.dedup();
        for node in nodes {
            let sections = (0..plan.sections).filter(|&s| self.node(s) == Some(node)).count() as u64;
            let table = if self.node(0) == Some(node) { plan.table_end } else { 0 };
            numa::check_room(node, sections * plan.section_len + table, self.pages)?;
        }
        Ok(())
    }
}

impl Registry {
    /// Makes a region. The name appears when all is ready, and never replaces another.
    pub fn create(&self, name: &RegionName, options: &CreateOptions) -> Result<Region, Error> {
        let plan = options.plan()?;
        let dir = self.prepare()?;
        let path = self.path(name);
        if behind(&path).exists() {
            return Err(Error::Exists { name: name.to_string(), path });
        }
        let home = match options.pages {
            PageSize::Base => self.dir().to_owned(),
            pages => hugetlb::mount_point(pages)?.join(HUGE_DIR),
        };
        if options.pages != PageSize::Base {
            prepare_dir(&home, 0o1777)?;
        }
        options.check_room(&plan, &home)?;
        let file = File::options()
            .read(true)
            .write(true)
            .mode(0o660)
            .custom_flags(libc::O_TMPFILE)
            .open(&home)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EOPNOTSUPP | libc::EISDIR) => Error::Invalid {
                    what: "the directory",
                    value: home.display().to_string(),
                    why: "lies on a file system without unnamed files: let VMSHM_DIR name one on tmpfs"
                        .into(),
                },
                _ => Error::io(format!("create a file in {}", home.display()))(source),
            })?;
        permit(&file, &path)?;
        let header = fill(&file, &path, name, options, &plan)?;

        // From here on only names are made. The lock keeps two creations of one name apart.
        let _lock = lock(dir).map_err(Error::io(format!("lock {}", self.dir().display())))?;
        let exists = || Error::Exists { name: name.to_string(), path: path.clone() };
        if path.is_symlink() && !behind(&path).exists() {
            fs::remove_file(&path).map_err(Error::io(format!("remove the stale link {}", path.display())))?;
        }
        let named = if options.pages == PageSize::Base {
            path.clone()
        } else {
            let id = Uuid::from_bytes(header.region_id).simple().to_string();
            let target = home.join(format!("{name}.{}", &id[..12]));
            symlink(&target, &path).map_err(|error| match error.kind() {
                ErrorKind::AlreadyExists => exists(),
                _ => Error::io(format!("create the link {}", path.display()))(error),
            })?;
            target
        };
        let unnamed = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
        linkat(AT_FDCWD, &unnamed, AT_FDCWD, &named, AtFlags::AT_SYMLINK_FOLLOW).map_err(|errno| {
            if errno == nix::Error::EEXIST {
                exists()
            } else {
                Error::sys(format!("name {}", named.display()))(errno)
            }
        })?;
        let region = Region::from_file(file, path, true)?;
        // One of a region that was removed by other means says nothing of this one.
        if let Err(error) = remove_ledger(region.path()).and_then(|()| region.ledger().map(|_| ())) {
            let _ = remove(region.path());
            return Err(error);
        }
        Ok(region)
    }
}

/// Locks a directory, which everybody can who may list it: so it is not waited for without end.
fn lock(mut dir: File) -> io::Result<Flock<File>> {
    for _ in 0..LOCK_TRIES {
        match Flock::lock(dir, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((back, nix::Error::EWOULDBLOCK | nix::Error::EINTR)) => dir = back,
            Err((_, errno)) => return Err(errno.into()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Err(io::Error::new(
        ErrorKind::WouldBlock,
        "another process keeps it locked: find it with `lslocks`, and end it",
    ))
}

/// Makes a region without a name; it lives as long as somebody has it open or mapped.
pub fn create_memfd(name: &RegionName, options: &CreateOptions) -> Result<Region, Error> {
    let plan = options.plan()?;
    options.check_room(&plan, Path::new("/dev/shm"))?;
    let flags = libc::MFD_CLOEXEC
        | libc::MFD_ALLOW_SEALING
        | match options.pages {
            PageSize::Base => 0,
            PageSize::Huge2M => libc::MFD_HUGETLB | libc::MFD_HUGE_2MB,
            PageSize::Huge1G => libc::MFD_HUGETLB | libc::MFD_HUGE_1GB,
        };
    let c_name = CString::new(name.as_str()).expect("names hold no control characters");
    // SAFETY: the name is a C string that outlives the call.
    let fd = unsafe { libc::memfd_create(c_name.as_ptr(), flags) };
    if fd < 0 {
        return Err(Error::io("create a memfd")(io::Error::last_os_error()));
    }
    // SAFETY: the descriptor is new and nobody else's.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let path = PathBuf::from(format!("memfd:{name}"));
    fill(&file, &path, name, options, &plan)?;
    // Nobody who is given the descriptor can make others meet SIGBUS.
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: plain integers; the kernel checks the descriptor.
    if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
        return Err(Error::io("seal the memfd")(io::Error::last_os_error()));
    }
    Region::from_file(file, path, true)
}

/// Owner and group may use the region; the group is `vmshm` where there is one.
fn permit(file: &File, path: &Path) -> Result<(), Error> {
    let doing = || format!("set the permissions of {}", path.display());
    if let Ok(Some(group)) = Group::from_name("vmshm") {
        // A user outside of the group can't give the file to it; then it stays with the user's own.
        match fchown(file, None, Some(group.gid.as_raw())) {
            Err(error) if error.kind() != ErrorKind::PermissionDenied => {
                return Err(Error::io(doing())(error));
            }
            _ => {}
        }
    }
    file.set_permissions(Permissions::from_mode(0o660)).map_err(Error::io(doing()))
}

/// Gives an empty file its memory, its header and its table.
fn fill(
    file: &File,
    path: &Path,
    name: &RegionName,
    options: &CreateOptions,
    plan: &Plan,
) -> Result<RegionHeader, Error> {
    let doing = || format!("give {} its {}", path.display(), format_bytes(plan.region_len));
    file.set_len(plan.region_len).map_err(Error::io(doing()))?;
    let mapping = Mapping::new(file, plan.region_len, true)?;
    let sections = (0..plan.sections).map(|s| (plan.section_offset(s), plan.section_len, options.node(s)));
    let parts: Vec<_> = std::iter::once((0, plan.table_end, options.node(0))).chain(sections).collect();
    // On tmpfs the binding belongs to the file. hugetlbfs keeps none: there it must be the policy of the thread that
    // allocates.
    if options.pages == PageSize::Base {
        for &(offset, len, node) in &parts {
            if let Some(node) = node {
                numa::bind(&mapping, offset, len, node)?;
            }
        }
    }
    let present = if options.sparse { plan.table_len() } else { plan.region_len };
    for &(offset, len, node) in parts.iter().take_while(|&&(offset, ..)| offset < present) {
        let node = node.filter(|_| options.pages != PageSize::Base);
        let len = len.min(present - offset);
        numa::on_node(node, || allocate(file, offset, len))?.map_err(Error::io(doing()))?;
    }
    match mapping.populate(0, present, true) {
        Ok(()) => {}
        // Before Linux 5.14. Memory that fallocate(2) has allocated needs no touching to be there.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
        Err(error) => return Err(Error::io(doing())(error)),
    }

    let header = RegionHeader {
        magic: MAGIC,
        version: VERSION,
        header_len: size_of::<RegionHeader>() as u32,
        region_id: rand::random(),
        region_len: plan.region_len,
        page_len: plan.page_len,
        sections: plan.sections,
        endpoints: plan.endpoints,
        flags: if options.open { FLAG_OPEN } else { 0 },
        table_end: plan.table_end,
        name: name.padded(),
        reserved: [0; 15],
    };
    for section in 0..plan.sections {
        let entry = SectionEntry {
            offset: plan.section_offset(section),
            len: plan.section_len,
            vm_uuid: new_uuid().into_bytes(),
            node: options.node(section).map_or(ANY_NODE, |node| node as i32),
            state: SECTION_FREE,
            ..SectionEntry::new_zeroed()
        };
        mapping.write_words(RegionHeader::entry_offset(section), entry.as_bytes());
    }
    debug_assert_eq!(RegionHeader::entry_offset(0), TABLE_OFFSET);
    mapping.write_words(0, header.as_bytes());
    Ok(header)
}

fn allocate(file: &File, offset: u64, len: u64) -> io::Result<()> {
    let mut done = 0;
    while done < len {
        let step = STEP.min(len - done);
        let start = (offset + done) as libc::off_t;
        match fallocate(file, FallocateFlags::empty(), start, step as libc::off_t) {
            Ok(()) => done += step,
            Err(nix::Error::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// A random (version 4) UUID.
pub(crate) fn new_uuid() -> Uuid {
    uuid::Builder::from_random_bytes(rand::random()).into_uuid()
}
