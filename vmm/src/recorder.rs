//! Interrupts for tests: remembers what KVM would have been told.

use std::sync::atomic::{AtomicU32, Ordering};

use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::interrupts::{Interrupts, Message};

/// Remembers what is connected, and where is listened.
#[derive(Default)]
pub(crate) struct Recorder {
    next: AtomicU32,
    pub(crate) connected: Mutex<Vec<(u32, Message)>>,
    pub(crate) listens: Mutex<Vec<(u64, u32)>>,
    pub(crate) lines: Mutex<Vec<u32>>,
}

impl Interrupts for Recorder {
    fn allocate(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
    fn connect(&self, number: u32, _: &EventFd, message: Message) -> Result<(), Error> {
        self.connected.lock().push((number, message));
        Ok(())
    }
    fn disconnect(&self, number: u32, _: &EventFd) {
        self.connected.lock().retain(|(other, _)| *other != number);
    }
    fn connect_line(&self, pin: u32, _: &EventFd, _: &EventFd) -> Result<(), Error> {
        self.lines.lock().push(pin);
        Ok(())
    }
    fn listen(&self, address: u64, word: u32, _: &EventFd) -> bool {
        self.listens.lock().push((address, word));
        true
    }
    fn unlisten(&self, address: u64, word: u32, _: &EventFd) {
        self.listens.lock().retain(|other| *other != (address, word));
    }
}
