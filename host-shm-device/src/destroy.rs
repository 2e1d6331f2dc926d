//! Taking a region away.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use crate::dir::behind;
use crate::error::Error;
use crate::ledger::{Ledger, name_of};
use crate::lock::{Lock, any_held};
use crate::region::Region;
use crate::registry::Registry;
use crate::users::{describe, users};

impl Registry {
    /// Destroys a region given by name or path: its header stops being one, so that nobody attaches any more,
    /// then its name goes. Its memory goes with the last process that maps it.
    ///
    /// Refuses while somebody uses the region, and what is no (sound) region, unless forced.
    pub fn destroy(&self, name_or_path: &str, force: bool) -> Result<(), Error> {
        let path = self.resolve(name_or_path)?;
        if path.is_symlink() && behind(&path) == path {
            // Not one of ours: what it leads to is not ours to destroy.
            return match force && path.parent() == Some(self.dir()) {
                true => remove(&path),
                false => Err(Error::NotRegion { path, why: "it is a link to a file elsewhere" }),
            };
        }
        match self.open(name_or_path) {
            Ok(region) => {
                // Not without the right to: before anything is harmed.
                let ledger = region.ledger()?;
                let used = in_use(&region, ledger)?;
                if let Some(users) = used.filter(|_| !force) {
                    return Err(Error::InUse { name: region.name(), users });
                }
                // A process that comes too late finds the lock; one that waits finds no header behind it.
                let lock =
                    Lock::try_whole(region.file()).map_err(Error::io(format!("lock {}", path.display())))?;
                if lock.is_none() && !force {
                    return Err(Error::InUse { name: region.name(), users: describe([]) });
                }
                region.write(&[0; 8], 0)?;
                remove(&path)?;
                remove_ledger(&path)
            }
            // Its content is not touched: it may be anything. Only what lies in the registry's own directory goes.
            Err(Error::Header { .. } | Error::NotRegion { .. })
                if force && path.parent() == Some(self.dir()) && !path.is_dir() =>
            {
                remove(&path)?;
                remove_ledger(&path)
            }
            Err(error) => Err(error),
        }
    }
}

/// Users of the region, if there are any.
fn in_use(region: &Region, ledger: &Ledger) -> Result<Option<String>, Error> {
    let users = users(&region.file_id()?);
    if !users.pids.is_empty() {
        return Ok(Some(describe(&users.pids)));
    }
    // A lock shows that there is somebody even where /proc hides who.
    let free = Lock::try_whole(region.file())
        .map_err(Error::io(format!("lock {}", region.path().display())))?
        .is_some();
    Ok((!free || any_held(ledger.file(), 0, 0)).then(|| describe([])))
}

/// Removes a name, and the file on hugetlbfs behind it if it is one of our links to there.
pub(crate) fn remove(path: &Path) -> Result<(), Error> {
    let target = behind(path);
    for path in [target.as_path(), path] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(Error::io(format!("remove {}", path.display()))(error));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the ledger of the region at `path`.
pub(crate) fn remove_ledger(path: &Path) -> Result<(), Error> {
    let Some(ledger) = name_of(path) else { return Ok(()) };
    match fs::remove_file(&ledger) {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            Err(Error::io(format!("remove {}", ledger.display()))(error))
        }
        _ => Ok(()),
    }
}
