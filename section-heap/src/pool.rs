//! Memory of the section for `MPI_Alloc_mem` and for windows: fragments by the addresses that the program knows.

use std::collections::HashMap;
use std::ptr;

use vmshm_transport::{Endpoint, Fragment, Memory, Purpose, copy_from_shared};

/// Fragments that a program has, by their addresses.
#[derive(Debug, Default)]
pub struct Pool(HashMap<usize, Fragment>);

impl Pool {
    /// Takes memory of the section, aligned to a power of two of at most a chunk; `None` where none is left for this purpose.
    pub fn take<M: Memory>(
        &mut self,
        endpoint: &mut Endpoint<M>,
        len: usize,
        align: usize,
        purpose: Purpose,
    ) -> Option<*mut u8> {
        let fragment = endpoint.fragment_for(len, purpose)?;
        let address = fragment.ptr();
        if address.align_offset(align.max(1)) != 0 {
            endpoint.free(fragment);
            return None;
        }
        self.0.insert(address.addr(), fragment);
        Some(address)
    }

    /// Bytes of the memory at an address, if it is the pool's.
    pub fn capacity(&self, address: *const u8) -> Option<usize> {
        self.0.get(&address.addr()).map(Fragment::capacity)
    }

    /// Gives back memory that the program has from here; nothing happens for other memory.
    pub fn give_back<M: Memory>(&mut self, endpoint: &mut Endpoint<M>, address: *const u8) {
        if let Some(fragment) = self.0.remove(&address.addr()) {
            endpoint.free(fragment);
        }
    }

    /// Copies what the program still has. After MPI_Finalize it may look at that memory, but the section is others' then.
    /// None where it has more than `limit` bytes.
    pub fn keep(&mut self, limit: usize) -> Option<Kept> {
        if self.0.values().map(Fragment::capacity).sum::<usize>() > limit {
            return None;
        }
        let copy = |fragment: Fragment| {
            let mut bytes = vec![0; fragment.capacity()];
            // SAFETY: the fragment has so many bytes, and the mapping is there. In an open region peers may write them
            // at the same time.
            unsafe { copy_from_shared(fragment.ptr(), bytes.as_mut_ptr(), bytes.len()) };
            (fragment.ptr(), bytes)
        };
        Some(Kept(self.0.drain().map(|(_, fragment)| copy(fragment)).collect()))
    }
}

/// Copies of memory that a program has not given back, by its address.
#[derive(Debug)]
pub struct Kept(Vec<(*mut u8, Vec<u8>)>);

impl Kept {
    /// Puts them back where the program knows the originals, as ordinary memory. To be called when the region is not mapped any
    /// more. Returns how many found something else in their place, and are lost.
    pub fn restore(mut self) -> usize {
        let mut lost = 0;
        // SAFETY: a plain question.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
        self.0.sort_unstable_by_key(|(address, _)| *address);
        // Two pieces may share a page: pages below this address are there already.
        let mut mapped = 0;
        for (address, bytes) in self.0 {
            let start = (address.addr() / page * page).max(mapped);
            let end = (address.addr() + bytes.len()).next_multiple_of(page);
            if start < end {
                if !map(address.with_addr(start), end - start) {
                    lost += 1;
                    continue;
                }
                mapped = end;
            }
            // SAFETY: all pages of this piece have just been mapped for it, and its content was moved away before.
            unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), address, bytes.len()) };
        }
        lost
    }
}

/// Maps fresh memory at an address where nothing is mapped; false if there is something.
fn map(address: *mut u8, len: usize) -> bool {
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE;
    // SAFETY: nothing that is mapped is replaced.
    let mapped = unsafe { libc::mmap(address.cast(), len, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0) };
    if mapped != libc::MAP_FAILED && mapped != address.cast() {
        // A kernel before 4.17 takes the address for a hint.
        // SAFETY: the mapping is new and nobody knows it.
        unsafe { libc::munmap(mapped, len) };
    }
    mapped == address.cast()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;
    use vmshm_host::{CreateOptions, RegionName, Registry};
    use vmshm_transport::attach::{Options, open_endpoint};

    use super::*;

    /// Set in the process that runs the test alone.
    const ALONE: &str = "VMSHM_TEST_ALONE";

    #[test]
    fn memory_that_a_program_keeps_is_its_own_when_the_section_is_left() {
        if std::env::var_os(ALONE).is_none() {
            // The threads of other tests would map what they need where the region was.
            let name = "pool::tests::memory_that_a_program_keeps_is_its_own_when_the_section_is_left";
            let mut command = std::process::Command::new(std::env::current_exe().unwrap());
            let output =
                command.args([name, "--exact", "--test-threads=1"]).env(ALONE, "1").output().unwrap();
            let text = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success() && text.contains("1 passed"), "{text}");
            return;
        }
        let directory = TempDir::new_in("/dev/shm").unwrap();
        let registry = Registry::at(directory.path());
        let region =
            registry.create(&RegionName::new("kept").unwrap(), &CreateOptions::new(16 << 20)).unwrap();
        let path = region.path().display().to_string();
        let open = || {
            let options = Options { device: Some(path.clone()), section: Some(0), ..Options::default() };
            open_endpoint(&options).unwrap()
        };
        let (mut endpoint, mut pool) = (open(), Pool::default());
        // Some share a page, some have many.
        let kept: Vec<_> = [100, 200, 5000, 300_000, 64]
            .into_iter()
            .enumerate()
            .map(|(i, len)| {
                let memory = pool.take(&mut endpoint, len, 16, Purpose::Large).unwrap();
                // SAFETY: there is room for len bytes.
                unsafe { memory.write_bytes(i as u8 + 1, len) };
                (memory, len, i as u8 + 1)
            })
            .collect();
        assert!(pool.keep(305_000).is_none());
        let copy = pool.keep(crate::available::copy_limit()).unwrap();
        drop(endpoint);
        assert_eq!(copy.restore(), 0);

        // A sibling takes the same memory of the section, and writes to all it gets.
        let mut sibling = open();
        while let Some(fragment) = sibling.fragment(64 << 10) {
            // SAFETY: the fragment has so many bytes.
            unsafe { fragment.ptr().write_bytes(0xff, 64 << 10) };
        }
        for (memory, len, byte) in &kept {
            // SAFETY: restored, with so many bytes; nobody else uses them.
            let bytes = unsafe { std::slice::from_raw_parts(*memory, *len) };
            assert!(bytes.iter().all(|found| found == byte));
        }
        drop(sibling);
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        assert!(!maps.contains(&path), "{maps}");
        for fd in std::fs::read_dir("/proc/self/fd").unwrap().flatten() {
            let is_open = std::fs::read_link(fd.path()).is_ok_and(|file| file.starts_with(&path));
            // The test's own `region` is one.
            assert!(!is_open || fd.file_name().to_str() == Some(&region_fd(&region)));
        }
        // A second time there is something at that address, and it stays.
        assert!(!map(kept[3].0.with_addr(kept[3].0.addr().next_multiple_of(4096)), 4096));
    }

    fn region_fd(region: &vmshm_host::Region) -> String {
        use std::os::fd::AsRawFd;
        region.file().as_raw_fd().to_string()
    }
}
