//! Addresses at which devices answer: one bus for memory, one for ports.

use std::sync::Arc;

use parking_lot::RwLock;

use crate::error::Error;

/// Something that answers at addresses. Every value comes from the guest, which may be hostile.
pub trait Device: Send + Sync {
    /// Fills `data` with what a load at `offset` sees.
    fn read(&self, offset: u64, data: &mut [u8]);
    /// Takes a store at `offset`.
    fn write(&self, offset: u64, data: &[u8]);
}

struct Entry {
    start: u64,
    len: u64,
    device: Arc<dyn Device>,
}

/// Devices by address.
#[derive(Default)]
pub struct Bus(RwLock<Vec<Entry>>);

impl std::fmt::Debug for Bus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.0.read().iter().map(|entry| (entry.start, entry.len))).finish()
    }
}

impl Bus {
    /// Lets a device answer at `[start, start + len)`.
    ///
    /// # Errors
    /// Another device answers there.
    pub fn insert(&self, start: u64, len: u64, device: Arc<dyn Device>) -> Result<(), Error> {
        let mut entries = self.0.write();
        let at = entries.partition_point(|entry| entry.start < start);
        let before = at.checked_sub(1).map(|i| &entries[i]).is_some_and(|e| e.start + e.len > start);
        let after = entries.get(at).is_some_and(|e| e.start < start.saturating_add(len));
        if len == 0 || start.checked_add(len).is_none() || before || after {
            let value = format!("{start:#x}, {len:#x} bytes,");
            return Err(Error::Invalid { what: "the address", value, why: "is taken".into() });
        }
        entries.insert(at, Entry { start, len, device });
        Ok(())
    }

    /// Takes away what begins at `start`.
    pub fn remove(&self, start: u64) {
        self.0.write().retain(|entry| entry.start != start);
    }

    /// Loads; all bits are one where no device answers.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address, data.len()) {
            Some((device, offset)) => device.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// Stores; nothing happens where no device answers.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((device, offset)) = self.find(address, data.len()) {
            device.write(offset, data);
        }
    }

    /// The device is called without the lock, since it may change the bus.
    fn find(&self, address: u64, len: usize) -> Option<(Arc<dyn Device>, u64)> {
        let entries = self.0.read();
        let entry = &entries[entries.partition_point(|entry| entry.start <= address).checked_sub(1)?];
        let offset = address - entry.start;
        let inside = offset.checked_add(len as u64)? <= entry.len;
        inside.then(|| (Arc::clone(&entry.device), offset))
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl Device for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }
        fn write(&self, offset: u64, data: &[u8]) {
            self.0.lock().push((offset, data.to_vec()));
        }
    }

    #[test]
    fn accesses_reach_the_device_whole_or_not_at_all() {
        let bus = Bus::default();
        let device = Arc::new(Recorder::default());
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        bus.write(0x1004, &[1, 2]);
        bus.write(0xfff, &[3, 3]);
        bus.write(0x100f, &[4, 4]);
        bus.write(u64::MAX, &[5, 5]);
        assert_eq!(*device.0.lock(), [(4, vec![1, 2])]);
        let mut data = [0; 2];
        bus.read(0x1003, &mut data);
        assert_eq!(data, [3, 3]);
        bus.read(0x100f, &mut data);
        assert_eq!(data, [0xff, 0xff]);
    }

    #[test]
    fn devices_do_not_overlap() {
        let bus = Bus::default();
        let device: Arc<dyn Device> = Arc::new(Recorder::default());
        bus.insert(0x1000, 0x10, device.clone()).unwrap();
        for (start, len) in [(0xff8, 9), (0x100f, 1), (0x1000, 0x10), (0x2000, 0), (u64::MAX, 2)] {
            assert!(bus.insert(start, len, device.clone()).is_err(), "{start:#x}");
        }
        bus.insert(0x1010, 8, device.clone()).unwrap();
        bus.remove(0x1000);
        bus.insert(0xff8, 0x18, device).unwrap();
    }
}
