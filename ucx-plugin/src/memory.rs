//! Memory that programs have registered or taken from the section, and the keys by which others get it.
//!
//! A memory domain is open before any interface and outlives them. Registered memory gets a random key when UCX first wants one for a
//! peer, as for most it never does; the engine of an interface learns of it when a peer first shows the key. Memory of the section needs no help of its owner: its place goes
//! with the key, and is read in place.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use vmshm_transport::attach::{AttachError, Attached, Options, open_endpoint};
use vmshm_transport::{Fragment, Mapping, Purpose};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

use crate::ucx;

/// The place of memory that does not lie in a section.
const NOWHERE: u64 = u64::MAX;

/// A remote key, as it travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RemoteKey {
    /// Shown to the owner; 0 as long as none was wanted.
    pub key: u64,
    /// Address of the memory in its owner.
    base: u64,
    /// Bytes.
    len: u64,
    /// Offset in the region, or [`NOWHERE`].
    offset: u64,
}

/// Where a range of remote memory is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// At this offset of the region.
    Section(u64),
    /// By its owner, from this offset of the memory with the key on.
    Owner(u64),
}

impl RemoteKey {
    /// Where bytes at an address of the owner are; `None` where they leave the memory. The key may be a stranger's.
    pub fn place(&self, address: u64, len: u64) -> Option<Place> {
        let from = address.checked_sub(self.base)?;
        if from.checked_add(len)? > self.len {
            return None;
        }
        match self.offset {
            NOWHERE => Some(Place::Owner(from)),
            offset => Some(Place::Section(offset.checked_add(from)?)),
        }
    }
}

// As UCX has been told.
const _: () = assert!(size_of::<RemoteKey>() == ucx::VMSHM_KEY_LEN as usize);

/// Memory that UCX has a handle of. The key comes first, from where it is copied for peers.
#[derive(Debug)]
#[repr(C)]
pub struct Handle {
    pub remote: RemoteKey,
    /// What peers may do, in UCX's flags.
    access: u32,
    /// Memory of the section, taken for the program, and where the program wanted it, if it did.
    fragment: Option<(Fragment, Option<usize>)>,
}

impl Handle {
    /// Bytes of the memory.
    pub fn len(&self) -> usize {
        self.remote.len as usize
    }
}

/// An interface's side of a memory domain: forgets memory at once.
pub trait Forget: Send + Sync {
    /// The memory with this key is not read any more when this returns.
    fn forget(&self, key: u64);
}

/// All memory of a domain.
#[derive(Default)]
pub struct Registry {
    /// Base, length, and what peers may do, in UCX's flags; by the key.
    known: Mutex<HashMap<u64, (usize, usize, u32)>>,
    readers: Mutex<Vec<Weak<dyn Forget>>>,
    /// For memory of the section; attached when the first is taken.
    section: Mutex<Option<Attached>>,
    /// Number of the section: all of a domain lies in one.
    number: Mutex<Option<u32>>,
}

impl Registry {
    /// An interface that will read memory of the domain for its peers.
    pub fn add_reader(&self, reader: &Arc<impl Forget + 'static>) {
        let mut readers = self.readers.lock();
        readers.retain(|reader| reader.strong_count() > 0);
        let reader: Weak<dyn Forget> = Arc::downgrade(reader) as Weak<dyn Forget>;
        readers.push(reader);
    }

    /// Attaches once more, in the section of the first time.
    pub fn attach(&self, options: &Options) -> Result<Attached, AttachError> {
        let mut number = self.number.lock();
        let attached = open_endpoint(&Options { section: options.section.or(*number), ..options.clone() })?;
        *number = Some(attached.section().number);
        Ok(attached)
    }

    /// Memory with a key: its base and length, and what peers may do.
    pub fn find(&self, key: u64) -> Option<(usize, usize, u32)> {
        self.known.lock().get(&key).copied()
    }

    /// Registers ordinary memory, or memory that lies in the section. `access` are UCX's flags.
    pub fn register(&self, address: usize, len: usize, access: u32) -> Handle {
        let place = |attached: &Attached| attached.expose(std::ptr::without_provenance(address), len as u64);
        let offset = self.section.lock().as_ref().and_then(place).unwrap_or(NOWHERE);
        let remote = RemoteKey { key: 0, base: address as u64, len: len as u64, offset };
        Handle { remote, access, fragment: None }
    }

    /// Gives memory its key; false where there is none to be had.
    ///
    /// # Safety
    ///
    /// The handle is valid, and nothing but its key is written meanwhile, by other threads in here.
    pub unsafe fn make_key(&self, handle: *mut Handle) -> bool {
        let mut known = self.known.lock();
        // SAFETY: the caller vouches for it, and others that write are locked out.
        unsafe {
            let (remote, access) = ((*handle).remote, (*handle).access);
            if remote.key == 0 {
                let Some(key) = random().filter(|key| *key != 0 && !known.contains_key(key)) else {
                    return false;
                };
                if remote.offset == NOWHERE {
                    known.insert(key, (remote.base as usize, remote.len as usize, access));
                }
                (*handle).remote.key = key;
            }
        }
        true
    }

    /// Ends a registration: nobody reads the memory for others any more.
    pub fn deregister(&self, handle: &Handle) {
        if handle.remote.key != 0 && self.known.lock().remove(&handle.remote.key).is_some() {
            let readers: Vec<_> = self.readers.lock().iter().filter_map(Weak::upgrade).collect();
            readers.iter().for_each(|reader| reader.forget(handle.remote.key));
        }
    }

    /// Takes memory of the section for the program, at a fixed address if one is given; `None` where there is none.
    pub fn allocate(&self, options: &Options, len: usize, at: Option<usize>) -> Option<(*mut u8, Handle)> {
        let mut section = self.section.lock();
        if section.is_none() {
            *section = self.attach(options).map_err(|error| ucx::tell(&format!("vmshm: {error}"))).ok();
        }
        let attached = section.as_mut()?;
        let room = if at.is_some() { Mapping::ALIAS_ALIGNMENT } else { 0 };
        let fragment = attached.fragment_for(len.checked_add(room)?, Purpose::Large)?;
        let (mut address, mut len, mut offset) = (fragment.ptr(), fragment.capacity(), fragment.offset());
        if let Some(at) = at {
            match attached.alias(&fragment, len - room, at) {
                Ok((mapped, from)) => {
                    (address, len, offset) = (std::ptr::with_exposed_provenance_mut(at), mapped, from);
                }
                Err(error) => {
                    ucx::tell(&format!("vmshm: no memory of the section at {at:#x}: {error}"));
                    attached.free(fragment);
                    return None;
                }
            }
        }
        let remote = RemoteKey { key: 0, base: address.addr() as u64, len: len as u64, offset };
        Some((address, Handle { remote, access: 0, fragment: Some((fragment, at)) }))
    }

    /// Gives memory of the section back.
    pub fn free(&self, handle: Handle) {
        if let (Some((fragment, at)), Some(attached)) = (handle.fragment, self.section.lock().as_mut()) {
            at.into_iter().for_each(|at| attached.end_alias(at));
            attached.free(fragment);
        }
    }
}

/// A number that nobody guesses.
fn random() -> Option<u64> {
    let mut bytes = [0; 8];
    // SAFETY: there is room for eight bytes.
    let read = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    (read == 8).then(|| u64::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_strangers_resolve_only_what_lies_in_them() {
        let key = RemoteKey { key: 1, base: 0x1000, len: 0x100, offset: NOWHERE };
        assert_eq!(key.place(0x1010, 0xf0), Some(Place::Owner(0x10)));
        assert_eq!(key.place(0x1010, 0xf1), None);
        assert_eq!(key.place(0xfff, 1), None);
        assert_eq!(key.place(0x1010, u64::MAX), None);
        assert_eq!(RemoteKey { offset: 64, ..key }.place(0x1010, 1), Some(Place::Section(80)));
        let wild = RemoteKey { key: 1, base: 0, len: u64::MAX, offset: u64::MAX - 1 };
        assert_eq!(wild.place(2, 1), None);
    }

    #[test]
    fn memory_is_known_until_it_is_deregistered() {
        struct Reader(Mutex<Vec<u64>>);
        impl Forget for Reader {
            fn forget(&self, key: u64) {
                self.0.lock().push(key);
            }
        }
        let (registry, reader) = (Registry::default(), Arc::new(Reader(Mutex::default())));
        registry.add_reader(&reader);
        let mut handle = registry.register(0x1000, 10, 3);
        // SAFETY: the handle is this thread's.
        assert!(handle.remote.key == 0 && unsafe { registry.make_key(&mut handle) });
        assert_eq!(registry.find(handle.remote.key), Some((0x1000, 10, 3)));
        assert_eq!(registry.find(handle.remote.key + 1), None);
        registry.deregister(&handle);
        assert_eq!(registry.find(handle.remote.key), None);
        assert_eq!(*reader.0.lock(), [handle.remote.key]);
    }
}
