//! MSI-X: a table in a BAR by which the guest says which message each vector sends, and masks vectors.

use std::sync::Arc;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::os::fd::{AsRawFd, BorrowedFd};
use vmm_sys_util::eventfd::EventFd;

use crate::interrupts::{Interrupts, Message};
use crate::pci::Config;

/// Capability id.
pub(crate) const CAPABILITY: u8 = 0x11;
/// Message control, in the capability: all is switched on; all is masked.
pub(crate) const ENABLE: u16 = 1 << 15;
pub(crate) const MASK_ALL: u16 = 1 << 14;
/// The bits of message control's upper byte that the guest may change.
pub(crate) const WRITABLE: u8 = ((ENABLE | MASK_ALL) >> 8) as u8;
const ENTRY: u64 = 16;
const MASKED: u32 = 1;

/// Bytes of a table.
pub(crate) fn table_len(vectors: u32) -> u64 {
    u64::from(vectors) * ENTRY
}

/// Bytes of the pending bits.
pub(crate) fn pending_len(vectors: u32) -> u64 {
    u64::from(vectors).next_multiple_of(64) / 8
}

/// Where the parts lie in a BAR of their own, as QEMU lays them out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) pending: u64,
    pub(crate) bar_len: u64,
}

impl Place {
    pub(crate) fn new(vectors: u32) -> Self {
        let pending = table_len(vectors).max(0x800);
        Self { pending, bar_len: (pending + pending_len(vectors)).next_power_of_two().max(0x1000) }
    }
}

/// Adds the capability to a function whose table lies in a BAR of its own. Returns its offset.
pub(crate) fn add_capability(config: &mut Config, vectors: u32, bar: usize) -> usize {
    let mut body = Vec::new();
    body.extend(((vectors - 1) as u16).to_le_bytes());
    body.extend((bar as u32).to_le_bytes());
    body.extend((Place::new(vectors).pending as u32 | bar as u32).to_le_bytes());
    let mut writable = [0; 10];
    writable[1] = WRITABLE;
    config.add_capability(CAPABILITY, &body, &writable)
}

struct Vector {
    message: Message,
    control: u32,
    /// Rung by peers; there once the server has sent it.
    event: Option<EventFd>,
    number: u32,
    connected: Option<Message>,
}

/// The vectors of a device.
pub(crate) struct Msix {
    interrupts: Arc<dyn Interrupts>,
    vectors: Vec<Vector>,
    place: Place,
    /// Message control.
    control: u16,
    /// Whether the log has it that an interrupt could not be connected.
    told: bool,
}

impl std::fmt::Debug for Msix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Msix({} vectors)", self.vectors.len())
    }
}

impl Msix {
    pub(crate) fn new(vectors: u32, interrupts: Arc<dyn Interrupts>) -> Self {
        let vector = |_| Vector {
            message: Message::default(),
            control: MASKED,
            event: None,
            number: interrupts.allocate(),
            connected: None,
        };
        let vectors: Vec<_> = (0..vectors).map(vector).collect();
        let place = Place::new(vectors.len() as u32);
        Self { interrupts, vectors, place, control: 0, told: false }
    }

    /// The event that raises the next vector that has none; `false` where all have.
    pub(crate) fn add_event(&mut self, event: EventFd) -> bool {
        let Some(i) = self.vectors.iter().position(|vector| vector.event.is_none()) else { return false };
        self.vectors[i].event = Some(event);
        self.update(i);
        true
    }

    /// Forgets all events: those that come next are for the first vectors again.
    pub(crate) fn forget_events(&mut self) {
        for vector in &mut self.vectors {
            if let Some(event) = vector.event.take()
                && vector.connected.take().is_some()
            {
                self.interrupts.disconnect(vector.number, &event);
            }
        }
    }

    /// The events of all vectors that have one, in order.
    pub(crate) fn events(&self) -> impl Iterator<Item = &EventFd> {
        self.vectors.iter().filter_map(|vector| vector.event.as_ref())
    }

    /// Takes a new value of message control.
    pub(crate) fn set_control(&mut self, control: u16) {
        if self.control != control {
            self.control = control;
            (0..self.vectors.len()).for_each(|i| self.update(i));
        }
    }

    /// Masks all vectors and forgets their messages; the events stay.
    pub(crate) fn reset(&mut self) {
        self.control = 0;
        for index in 0..self.vectors.len() {
            (self.vectors[index].message, self.vectors[index].control) = (Message::default(), MASKED);
            self.update(index);
        }
    }

    pub(crate) fn read(&self, offset: u64, data: &mut [u8]) {
        // Registers have four bytes; a load of eight sees two of them.
        for (i, chunk) in data.chunks_mut(4).enumerate() {
            let at = offset + 4 * i as u64;
            let word = if at >= self.place.pending { self.pending(at) } else { self.register(at) };
            let shift = (at % 4) as usize;
            let bytes = word.to_le_bytes();
            for (byte, from) in chunk.iter_mut().zip(bytes.iter().skip(shift).chain(std::iter::repeat(&0))) {
                *byte = *from;
            }
        }
    }

    /// Takes a store of four or eight aligned bytes; the standard allows no other.
    pub(crate) fn write(&mut self, offset: u64, data: &[u8]) {
        if !matches!(data.len(), 4 | 8) || !offset.is_multiple_of(data.len() as u64) {
            return;
        }
        for (i, chunk) in data.chunks_exact(4).enumerate() {
            let at = offset + 4 * i as u64;
            let word = u32::from_le_bytes(chunk.try_into().expect("four bytes"));
            let index = (at / ENTRY) as usize;
            let Some(vector) = self.vectors.get_mut(index) else { return };
            let address = vector.message.address;
            match at % ENTRY {
                0 => vector.message.address = address & !0xffff_ffff | u64::from(word & !3),
                4 => vector.message.address = address & 0xffff_ffff | u64::from(word) << 32,
                8 => vector.message.data = word,
                _ => vector.control = word & MASKED,
            }
            self.update(index);
        }
    }

    fn register(&self, at: u64) -> u32 {
        let Some(vector) = self.vectors.get((at / ENTRY) as usize) else { return 0 };
        match at % ENTRY / 4 {
            0 => vector.message.address as u32,
            1 => (vector.message.address >> 32) as u32,
            2 => vector.message.data,
            _ => vector.control,
        }
    }

    /// A word of the pending bits: a vector is pending while its event waits.
    fn pending(&self, at: u64) -> u32 {
        let first = ((at - self.place.pending) / 4 * 32) as usize;
        let vectors = self.vectors.iter().skip(first).take(32).enumerate();
        vectors.fold(0, |word, (i, vector)| word | u32::from(vector.waits()) << i)
    }

    /// Connects a vector's event if the guest wants its interrupts now, else not.
    fn update(&mut self, index: usize) {
        let on = self.control & (ENABLE | MASK_ALL) == ENABLE;
        let vector = &mut self.vectors[index];
        let wanted = (on && vector.control & MASKED == 0).then_some(vector.message);
        let Some(event) = &vector.event else { return };
        if wanted == vector.connected {
            return;
        }
        if vector.connected.take().is_some() {
            self.interrupts.disconnect(vector.number, event);
        }
        if let Some(message) = wanted {
            match self.interrupts.connect(vector.number, event, message) {
                Ok(()) => vector.connected = Some(message),
                // Once, since a guest can bring it about as often as it likes.
                Err(error) if !std::mem::replace(&mut self.told, true) => {
                    tracing::warn!(vector = index, %error, "an interrupt stays silent");
                }
                Err(_) => {}
            }
        }
    }
}

impl Vector {
    fn waits(&self) -> bool {
        let Some(event) = self.event.as_ref().filter(|_| self.connected.is_none()) else { return false };
        // SAFETY: the event outlives the call.
        let fd = unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) };
        poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO) == Ok(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::Recorder;

    fn event() -> EventFd {
        EventFd::new(libc::EFD_NONBLOCK).unwrap()
    }

    fn set_up(vectors: u32) -> (Msix, Arc<Recorder>) {
        let recorder = Arc::new(Recorder::default());
        (Msix::new(vectors, recorder.clone()), recorder)
    }

    #[test]
    fn the_parts_lie_where_qemu_has_them() {
        assert_eq!(Place::new(1), Place { pending: 0x800, bar_len: 0x1000 });
        assert_eq!(Place::new(128), Place { pending: 0x800, bar_len: 0x1000 });
        assert_eq!(Place::new(2048), Place { pending: 0x8000, bar_len: 0x1_0000 });
    }

    #[test]
    fn a_vector_is_connected_while_it_is_wanted_and_has_an_event() {
        let (mut msix, recorder) = set_up(2);
        msix.write(16, &0xfee0_1003u32.to_le_bytes());
        msix.write(24, &[0x41, 0, 0, 0, 0, 0, 0, 0]);
        msix.set_control(ENABLE);
        assert!(recorder.connected.lock().is_empty());
        assert!(msix.add_event(event()));
        assert!(recorder.connected.lock().is_empty(), "vector 0 is masked");
        assert!(msix.add_event(event()));
        let message = Message { address: 0xfee0_1000, data: 0x41 };
        assert_eq!(*recorder.connected.lock(), [(1, message)]);
        assert!(!msix.add_event(event()), "there are two");
        msix.set_control(ENABLE | MASK_ALL);
        assert!(recorder.connected.lock().is_empty());
        msix.set_control(ENABLE);
        msix.write(24, &0x42u64.to_le_bytes());
        assert_eq!(*recorder.connected.lock(), [(1, Message { data: 0x42, ..message })]);
        msix.write(28, &1u32.to_le_bytes());
        assert!(recorder.connected.lock().is_empty());
        let mut data = [0; 16];
        msix.read(16, &mut data);
        assert_eq!(data, [0, 0x10, 0xe0, 0xfe, 0, 0, 0, 0, 0x42, 0, 0, 0, 1, 0, 0, 0]);
    }

    #[test]
    fn an_event_that_waits_is_pending() {
        let (mut msix, _) = set_up(40);
        for i in 0..40 {
            let event = event();
            if i == 33 {
                event.write(1).unwrap();
            }
            msix.add_event(event);
        }
        let mut data = [0; 8];
        msix.read(0x800, &mut data);
        assert_eq!(u64::from_le_bytes(data), 1 << 33);
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_panics() {
        let (mut msix, _) = set_up(3);
        for offset in (0..0x1000).chain([u64::MAX - 16]) {
            for len in [1, 2, 3, 4, 8, 16] {
                msix.write(offset, &vec![0xa5; len]);
                if offset < 0x1000 {
                    msix.read(offset, &mut vec![0; len]);
                }
            }
        }
    }
}
