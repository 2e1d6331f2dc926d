//! A region in this process's own memory, for tests of the core.
#![allow(dead_code)]

use std::mem::offset_of;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use vmshm_transport::abi::region::{FLAG_OPEN, RegionHeader};
use vmshm_transport::abi::section::EndpointSlot;
use vmshm_transport::{CacheHints, Device, Endpoint, Event, Inbox, Memory, Peer, Place, Window};
use zerocopy::IntoBytes;

/// Memory that outlives all windows on it.
#[derive(Debug)]
pub struct Region {
    base: *mut u8,
    header: RegionHeader,
    _words: Arc<Words>,
}

#[derive(Debug)]
struct Words(*mut [u64]);

// SAFETY: the words are only accessed through windows.
unsafe impl Send for Words {}
// SAFETY: the words are only accessed through windows.
unsafe impl Sync for Words {}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the pointer came from a box, and the last holder is going.
        drop(unsafe { Box::from_raw(self.0) });
    }
}

/// A window that keeps its memory, and counts the words that are loaded through it.
#[derive(Debug, Clone)]
pub struct View(Arc<(Window, Arc<Words>, AtomicU64)>);

impl View {
    pub fn loads(&self) -> u64 {
        self.0.2.load(Ordering::Relaxed)
    }
}

impl std::ops::Deref for View {
    type Target = Window;
    fn deref(&self) -> &Window {
        &self.0.0
    }
}

// SAFETY: a region only hands out windows on its words, which may be used by any thread.
unsafe impl Sync for Region {}

impl Region {
    pub fn new(len: u64, sections: u32, endpoints: u32) -> Self {
        Self::with_flags(len, sections, endpoints, 0)
    }

    pub fn open(len: u64, sections: u32, endpoints: u32) -> Self {
        Self::with_flags(len, sections, endpoints, FLAG_OPEN)
    }

    fn with_flags(len: u64, sections: u32, endpoints: u32, flags: u64) -> Self {
        let words = vec![0u64; (len / 8) as usize].into_boxed_slice();
        let words = Arc::new(Words(Box::into_raw(words)));
        let base = words.0.cast::<u8>();
        let mut header = RegionHeader::new(*b"0123456789abcdef", len, 4096, sections, endpoints);
        header.flags = flags;
        let region = Self { base, header, _words: words };
        let host = region.window(0..len);
        host.write(0, header.as_bytes());
        for number in 0..sections {
            host.write(RegionHeader::entry_offset(number), header.new_entry(number).as_bytes());
        }
        region
    }

    fn window(&self, writable: std::ops::Range<u64>) -> Window {
        // SAFETY: the words live as long as the view that keeps them, and nobody makes references to them.
        unsafe {
            Window::new(self.base, self.header.region_len, self.base.add(writable.start as usize), writable)
        }
    }

    /// The host's view: everything, writable.
    pub fn host(&self) -> View {
        View(Arc::new((self.window(0..self.header.region_len), Arc::clone(&self._words), AtomicU64::new(0))))
    }

    /// The view of a section's member.
    pub fn member(&self, section: u32) -> View {
        let entry = self.header.new_entry(section);
        let writable = match self.header.is_open() {
            true => self.header.table_end..self.header.region_len,
            false => entry.offset..entry.offset + entry.len,
        };
        View(Arc::new((self.window(writable), Arc::clone(&self._words), AtomicU64::new(0))))
    }

    pub fn endpoint(&self, section: u32) -> Endpoint<View> {
        Endpoint::attach(self.member(section), section).expect("attaches")
    }
}

impl Memory for View {
    fn len(&self) -> u64 {
        (**self).len()
    }
    fn load(&self, offset: u64, order: std::sync::atomic::Ordering) -> u64 {
        self.0.2.fetch_add(1, Ordering::Relaxed);
        (**self).load(offset, order)
    }
    fn load_peer(&self, offset: u64, order: std::sync::atomic::Ordering) -> u64 {
        (**self).load_peer(offset, order)
    }
    fn store(&self, offset: u64, value: u64, order: std::sync::atomic::Ordering) {
        (**self).store(offset, value, order);
    }
    fn fetch_add(&self, offset: u64, value: u64, order: std::sync::atomic::Ordering) -> u64 {
        (**self).fetch_add(offset, value, order)
    }
    fn compare_exchange(&self, offset: u64, current: u64, new: u64) -> Result<u64, u64> {
        (**self).compare_exchange(offset, current, new)
    }
    fn fence(&self, order: std::sync::atomic::Ordering) {
        (**self).fence(order);
    }
    unsafe fn copy_out(&self, offset: u64, to: *mut u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { (**self).copy_out(offset, to, len) }
    }
    unsafe fn copy_in(&self, offset: u64, from: *const u8, len: usize) {
        // SAFETY: the caller keeps the contract.
        unsafe { (**self).copy_in(offset, from, len) }
    }
    fn store_slot<const ZERO: u64>(&self, offset: u64, first: u64, words: [u64; 3], owned: u64) {
        (**self).store_slot::<ZERO>(offset, first, words, owned);
    }
    fn place(&self, offset: u64, len: u64) -> Place {
        (**self).place(offset, len)
    }
    unsafe fn load_placed(&self, place: Place, at: u64, order: std::sync::atomic::Ordering) -> u64 {
        // SAFETY: the caller keeps the contract.
        unsafe { (**self).load_placed(place, at, order) }
    }
    fn address(&self, offset: u64, len: u64) -> *mut u8 {
        (**self).address(offset, len)
    }
    fn offset_of(&self, address: *const u8, len: u64) -> Option<u64> {
        (**self).offset_of(address, len)
    }
}

impl CacheHints for View {
    fn prefetch_write(&self, offset: u64, len: u64) {
        (**self).prefetch_write(offset, len);
    }
    fn demote(&self, offset: u64, len: u64) {
        (**self).demote(offset, len);
    }
    fn prefetch(&self, offset: u64) {
        (**self).prefetch(offset);
    }
}

impl Device for View {}

/// Fills bytes so that any shift or mix-up of messages shows.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

/// Polls until something happens, and gives up after very many polls.
pub fn wait(endpoint: &mut Endpoint<View>, inbox: &mut Inbox) -> Event {
    for _ in 0..10_000_000u64 {
        if let Some(event) = endpoint.poll(inbox) {
            return event;
        }
        std::hint::spin_loop();
    }
    panic!("nothing arrived");
}

/// Sends `bytes` inline or as a fragment, whichever fits; a fragment's token is its address in `kept`.
pub fn send(
    from: &mut Endpoint<View>,
    to: Peer,
    tag: u8,
    bytes: &[u8],
) -> Result<Option<vmshm_transport::Fragment>, vmshm_transport::SendError> {
    if bytes.len() <= vmshm_transport::MAX_INLINE {
        return from.send(to, tag, &[bytes]).map(|()| None);
    }
    let fragment = from.fragment(bytes.len()).ok_or(vmshm_transport::SendError::Full)?;
    from.memory().write(fragment.offset(), bytes);
    match from.send_fragment(to, tag, &fragment, bytes.len(), fragment.offset()) {
        Ok(()) => Ok(Some(fragment)),
        Err(error) => {
            from.free(fragment);
            Err(error)
        }
    }
}

/// Where an endpoint's connection with a peer lies.
pub fn connection(host: &View, of: &Endpoint<View>, with: &Endpoint<View>) -> u64 {
    let section = of.section();
    let word = |at: u64| host.load(section.entry.offset + at, Ordering::Relaxed);
    let directory = word(section.layout.slot(of.slot()) + offset_of!(EndpointSlot, directory) as u64);
    section.entry.offset + word(directory + u64::from(with.name().id) * 8)
}
