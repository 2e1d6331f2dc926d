//! Assignment of sections, and their return to the host.

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;

use uuid::Uuid;
use vmshm_abi::region::{RegionHeader, SectionEntry};
use zerocopy::IntoBytes;

use crate::error::Error;
use crate::ledger::{Row, occupied_byte};
use crate::lock::Lock;
use crate::region::Region;
use crate::state::{State, owner};
use crate::users::{self, FileId, users, users_among};

impl Region {
    /// Keeps a section for a VM, and returns the UUID by which that VM finds it: `uuid`, or else the one that
    /// the section has. Assigning again changes nothing unless another UUID is given.
    ///
    /// The last member's data in the section is overwritten before. Refuses while host processes or another VM use the
    /// section.
    pub fn assign(&self, section: u32, uuid: Option<Uuid>) -> Result<Uuid, Error> {
        if uuid.is_some_and(|uuid| uuid.is_nil()) {
            return Err(Error::Invalid {
                what: "the UUID",
                value: Uuid::nil().to_string(),
                why: "is the one that a VM without any UUID shows: give another".into(),
            });
        }
        self.check_section(section)?;
        let ledger = self.ledger()?;
        let lock = ledger.lock()?;
        let mut row = ledger.row(section)?;
        let old = Uuid::from_bytes(row.entry.vm_uuid);
        let new = uuid.unwrap_or(old);
        for other in (0..self.header().sections).filter(|&other| other != section) {
            if ledger.row(other)?.entry.vm_uuid == *new.as_bytes() {
                return Err(Error::Invalid {
                    what: "the UUID",
                    value: new.to_string(),
                    why: format!("is section {other}'s already: a VM has one section, give another UUID"),
                });
            }
        }
        if State::of(&row.entry) == State::Assigned && new == old {
            return Ok(new);
        }
        self.check_left(section, &row.entry)?;
        let _host = self.lock_section(section)?;
        // Nobody's while it is emptied, which takes long: without the ledger's lock, for which others wait.
        row.kept = 0;
        self.decide(section, &row, State::Free)?;
        drop(lock);
        self.clear(section, &row.entry, &AtomicBool::new(false))?;
        let _lock = ledger.lock()?;
        row.kept = 1;
        row.entry.vm_uuid = new.into_bytes();
        row.entry.generation = row.entry.generation.wrapping_add(1);
        self.decide(section, &row, State::Assigned)?;
        Ok(new)
    }

    /// The row of a section as the host has decided it, whatever members have made of the region's table. Fails for all but the
    /// region's owner and root.
    pub fn decided(&self, section: u32) -> Result<SectionEntry, Error> {
        self.check_section(section)?;
        Ok(self.ledger()?.row(section)?.entry)
    }

    /// Gives a section back to the host's processes. Refuses while a VM still uses it, unless forced.
    pub fn release(&self, section: u32, force: bool) -> Result<(), Error> {
        self.check_section(section)?;
        let ledger = self.ledger()?;
        let _lock = ledger.lock()?;
        let mut row = ledger.row(section)?;
        if !force {
            self.check_left(section, &row.entry)?;
        }
        row.kept = 0;
        self.decide(section, &row, State::Free)
    }

    /// Assigns a section to the VM with this UUID, which this process runs without a server's help, and holds it until the
    /// region's ledger is closed: meanwhile nobody else gets it. The lock lies in the ledger, where no member can be in its
    /// way. Returns whether the section was free before.
    pub fn occupy(&self, section: u32, uuid: Uuid) -> Result<bool, Error> {
        self.check_section(section)?;
        let ledger = self.ledger()?;
        let lock = Lock::try_exclusive(ledger.file(), occupied_byte(section))
            .map_err(Error::io(format!("take section {section} of {}", self.path().display())))?;
        let Some(lock) = lock else { return Err(self.occupied(section)) };
        let was_free = State::of(&ledger.row(section)?.entry) == State::Free;
        self.assign(section, Some(uuid))?;
        lock.keep();
        Ok(was_free)
    }

    /// Error for a section that can't be given to others now.
    pub(crate) fn busy(&self, section: u32, why: String) -> Error {
        Error::SectionBusy { name: self.name(), section, why }
    }

    /// Error for a section whose VM runs, as these processes.
    fn has_vm<'a>(&self, section: u32, pids: impl IntoIterator<Item = &'a u32>) -> Error {
        let by = users::describe(pids);
        self.busy(section, format!("is in use by the VM of {by}: shut that down first"))
    }

    fn occupied(&self, section: u32) -> Error {
        let pids = self.ledger().and_then(|ledger| FileId::of(ledger.file()));
        let pids = pids.map(|file| users(&file).holding(occupied_byte(section))).unwrap_or_default();
        self.has_vm(section, &pids)
    }

    /// Refuses while a VM runs in the section without a server's help, other than this process's own.
    pub(crate) fn check_unoccupied(&self, section: u32) -> Result<(), Error> {
        if self.ledger()?.is_occupied(section) { Err(self.occupied(section)) } else { Ok(()) }
    }

    /// Refuses while the VM that a row speaks of lives, as far as this host can tell.
    fn check_left(&self, section: u32, entry: &SectionEntry) -> Result<(), Error> {
        self.check_unoccupied(section)?;
        let pids = match State::of(entry) {
            State::Free => BTreeSet::new(),
            State::Joined => {
                let owner = owner(entry);
                owner.is_alive().then_some(owner.pid).into_iter().collect()
            }
            State::Assigned => {
                let uuid = Uuid::from_bytes(entry.vm_uuid).to_string();
                users_among(&self.file_id()?, |pid| users::mentions(pid, &uuid)).pids
            }
        };
        if pids.is_empty() { Ok(()) } else { Err(self.has_vm(section, &pids)) }
    }

    /// Keeps host processes away from a section while its row changes; refuses where some use it.
    pub(crate) fn lock_section(&self, section: u32) -> Result<Lock<'_>, Error> {
        let byte = RegionHeader::entry_offset(section);
        let lock = Lock::try_exclusive(self.file(), byte)
            .map_err(Error::io(format!("lock section {section} of {}", self.path().display())))?;
        match lock {
            Some(lock) => Ok(lock),
            None => {
                let by = users::describe(&users(&self.file_id()?).holding(byte));
                let why = format!("is in use by host processes ({by}): end those, or choose another section");
                Err(self.busy(section, why))
            }
        }
    }

    /// Notes a row in the ledger, whose lock is held, and publishes it: the state last, so that whoever reads the new state can
    /// read the rest. Only the row of a VM that has joined names its process and its id.
    pub(crate) fn decide(&self, section: u32, row: &Row, state: State) -> Result<(), Error> {
        let ledger = self.ledger()?;
        let mut row = *row;
        if state != State::Joined {
            (row.entry.owner_pid, row.entry.owner_start, row.entry.vm_id) = (0, 0, 0);
        }
        row.entry.state = ledger.row(section)?.entry.state;
        let offset = RegionHeader::entry_offset(section);
        self.write(row.entry.as_bytes(), offset)?;
        row.entry.state = state.word();
        ledger.write(section, &row)?;
        self.write(row.entry.as_bytes(), offset)
    }
}
