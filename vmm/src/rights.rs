//! Rights that threads give up for good once they are set up, besides system calls: the user that started them, capabilities,
//! files.

use std::io;
use std::path::PathBuf;
use std::sync::{Once, OnceLock};

use caps::CapSet;
use landlock::{
    ABI, Access, AccessFs, AccessNet, PathBeneath, PathFd, Ruleset, RulesetAttr, RulesetCreatedAttr,
    RulesetStatus, Scope,
};
use nix::sys::resource::{Resource, setrlimit};
use nix::unistd::{Gid, Group, Uid, User as Account, geteuid, getgrouplist};

use crate::error::Error;

/// The user that threads become.
static USER: OnceLock<User> = OnceLock::new();

/// As whom a VM's threads run once they are set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
}

impl User {
    /// Finds `NAME` or `NAME:GROUP`, each a name or a number. Without a group, those of the user.
    ///
    /// # Errors
    /// There is no such user or group.
    pub fn find(text: &str) -> Result<Self, Error> {
        let (name, group) = text.split_once(':').map_or((text, None), |(name, group)| (name, Some(group)));
        let unknown = |what: &'static str, value: &str| Error::Invalid {
            what,
            value: value.to_owned(),
            why: "does not exist: `getent passwd` and `getent group` list those there are".into(),
        };
        let account = match name.parse().map(Uid::from_raw) {
            Ok(uid) => Account::from_uid(uid),
            Err(_) => Account::from_name(name),
        };
        let account = account.ok().flatten().ok_or_else(|| unknown("the user", name))?;
        let mut user = Self { uid: account.uid.as_raw(), gid: account.gid.as_raw(), groups: Vec::new() };
        if let Some(group) = group {
            let found = match group.parse().map(Gid::from_raw) {
                Ok(gid) => Group::from_gid(gid),
                Err(_) => Group::from_name(group),
            };
            user.gid = found.ok().flatten().ok_or_else(|| unknown("the group", group))?.gid.as_raw();
        } else if let Ok(name) = std::ffi::CString::new(account.name) {
            let groups = getgrouplist(&name, account.gid).unwrap_or_default();
            user.groups = groups.into_iter().map(Gid::as_raw).collect();
        }
        Ok(user)
    }

    /// The user's and the group's numbers.
    pub fn ids(&self) -> (u32, u32) {
        (self.uid, self.gid)
    }

    /// Lets all threads of this process become this user once they are set up.
    ///
    /// # Errors
    /// This process is not root's.
    pub fn choose(self) -> Result<(), Error> {
        if !geteuid().is_root() {
            return Err(Error::Invalid {
                what: "the user",
                value: self.uid.to_string(),
                why: "can be chosen by root only: start as root, or leave --user out".into(),
            });
        }
        let _ = USER.set(self);
        Ok(())
    }

    /// Makes the calling thread this user's. The C library's functions would change all threads at once, and those that are
    /// confined already may make no such call.
    fn take_over(&self) -> io::Result<()> {
        let done = |rc: libc::c_long| if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) };
        // SAFETY: the kernel reads as many numbers as it is told.
        done(unsafe { libc::syscall(libc::SYS_setgroups, self.groups.len(), self.groups.as_ptr()) })?;
        // SAFETY: plain integers.
        done(unsafe { libc::syscall(libc::SYS_setresgid, self.gid, self.gid, self.gid) })?;
        // SAFETY: plain integers.
        done(unsafe { libc::syscall(libc::SYS_setresuid, self.uid, self.uid, self.uid) })
    }
}

/// Lets this process lock memory without limit, if it has the right to now: passed-through devices reach memory that is locked,
/// also when the guest has moved it, and by then the right is given up.
pub(crate) fn lock_memory() {
    let _ = setrlimit(Resource::RLIMIT_MEMLOCK, libc::RLIM_INFINITY, libc::RLIM_INFINITY);
}

/// Takes the calling thread's rights away: it becomes the chosen user, has no capability, can open no file, and remove
/// files from these directories only.
pub(crate) fn give_up(directories: &[PathBuf]) -> io::Result<()> {
    // Before the user changes, who may not look into them.
    let directories: Vec<_> = directories.iter().filter_map(|dir| PathFd::new(dir).ok()).collect();
    if let Some(user) = USER.get() {
        user.take_over()?;
    }
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set).map_err(io::Error::other)?;
    }
    let status = forbid_files(directories).map_err(io::Error::other)?;
    static TOLD: Once = Once::new();
    if status == RulesetStatus::NotEnforced {
        TOLD.call_once(|| {
            tracing::info!("this kernel has no Landlock: that nothing is opened rests on seccomp alone")
        });
    }
    Ok(())
}

/// As far as this kernel can.
fn forbid_files(directories: Vec<PathFd>) -> Result<RulesetStatus, landlock::RulesetError> {
    // Signals are left to seccomp: threads confined one by one could not send each other any.
    let removable = |dir| Ok::<_, landlock::RulesetError>(PathBeneath::new(dir, AccessFs::RemoveFile));
    let status = Ruleset::default()
        .handle_access(AccessFs::from_all(ABI::V6))?
        .handle_access(AccessNet::from_all(ABI::V6))?
        .scope(Scope::AbstractUnixSocket)?
        .create()?
        .add_rules(directories.into_iter().map(removable))?
        .restrict_self()?;
    Ok(status.ruleset)
}
