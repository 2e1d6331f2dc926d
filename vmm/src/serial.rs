//! The serial port COM1: what the guest prints goes to a writer, what a person types goes to the guest.

use std::io::{self, Write};
use std::sync::Arc;

use parking_lot::{Condvar, Mutex};
use vm_superio::serial::SerialEvents;
use vm_superio::{Serial, Trigger};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::Device;
use crate::error::Error;
use crate::vm::Vm;

/// Its eight ports.
pub const PORT: u64 = 0x3f8;
/// Its interrupt, a pin of the I/O APIC.
pub const INTERRUPT: u32 = 4;

struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// Wakes whoever waits for room in the port's buffer.
#[derive(Default)]
struct Room(Arc<Condvar>);

impl SerialEvents for Room {
    fn buffer_read(&self) {
        self.0.notify_all();
    }
    fn out_byte(&self) {}
    fn tx_lost_byte(&self) {}
    fn in_buffer_empty(&self) {}
}

type Port = Serial<Line, Room, Box<dyn Write + Send>>;

/// A serial console.
pub struct Console {
    port: Mutex<Port>,
    room: Arc<Condvar>,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Console")
    }
}

impl Console {
    fn new(line: EventFd, out: Box<dyn Write + Send>) -> Self {
        let room = Room::default();
        let condvar = Arc::clone(&room.0);
        Self { port: Mutex::new(Serial::with_events(Line(line), room, out)), room: condvar }
    }

    /// Gives a VM a serial port that prints to `out`.
    ///
    /// # Errors
    /// No descriptor can be had for the interrupt, or another device has the ports.
    pub fn add(vm: &Vm, out: Box<dyn Write + Send>) -> Result<Arc<Self>, Error> {
        let doing = || "make the serial console's interrupt";
        let line = EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(Error::io(doing()))?;
        vm.space().fd().register_irqfd(&line, INTERRUPT).map_err(Error::kvm(doing()))?;
        let console = Arc::new(Self::new(line, out));
        vm.port_bus().insert(PORT, 8, Arc::clone(&console) as Arc<dyn Device>)?;
        Ok(console)
    }

    /// Puts the registers back to what they are at first. Typed bytes that were not read yet stay.
    pub(crate) fn reset(&self) {
        let mut port = self.port.lock();
        // Line control first: one of its bits turns the next register into another.
        for (register, value) in [(3, 0x03), (1, 0), (4, 0x08), (7, 0)] {
            let _ = port.write(register, value);
        }
        self.room.notify_all();
    }

    /// Types into the port; waits while its buffer is full and the guest does not read.
    pub fn input(&self, mut bytes: &[u8]) {
        let mut port = self.port.lock();
        while !bytes.is_empty() {
            if port.fifo_capacity() == 0 {
                self.room.wait(&mut port);
                continue;
            }
            match port.enqueue_raw_bytes(bytes) {
                // In loop mode the port takes nothing from outside.
                Ok(0) | Err(_) => return,
                Ok(taken) => bytes = &bytes[taken..],
            }
        }
    }
}

impl Device for Console {
    fn read(&self, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        // The registers are bytes; nothing wider answers.
        if let [byte] = data {
            *byte = self.port.lock().read(offset as u8);
        }
    }

    fn write(&self, offset: u64, data: &[u8]) {
        if let [byte] = data
            && let Err(error) = self.port.lock().write(offset as u8, *byte)
        {
            tracing::debug!(?error, "the serial console loses a byte");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Out(Arc<Mutex<Vec<u8>>>);

    impl Write for Out {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn console() -> (Arc<Console>, Out, EventFd) {
        let line = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        let out = Out::default();
        let console = Console::new(line.try_clone().unwrap(), Box::new(out.clone()));
        (Arc::new(console), out, line)
    }

    #[test]
    fn bytes_go_both_ways_and_an_interrupt_tells_of_input() {
        let (console, out, line) = console();
        for byte in b"hello" {
            console.write(0, &[*byte]);
        }
        console.write(0, b"wide");
        assert_eq!(*out.0.lock(), b"hello");
        assert!(line.read().is_err(), "no interrupt was asked for");
        console.write(1, &[1]);
        console.input(b"x");
        assert_eq!(line.read().unwrap(), 1);
        let mut byte = [0];
        console.read(0, &mut byte);
        assert_eq!(byte, *b"x");
    }

    #[test]
    fn more_input_than_fits_waits_for_the_guest() {
        let (console, _, _) = console();
        let text: Vec<u8> = (0..200).collect();
        let typist = std::thread::spawn({
            let (console, text) = (Arc::clone(&console), text.clone());
            move || console.input(&text)
        });
        let mut seen = Vec::new();
        while seen.len() < text.len() {
            let mut status = [0];
            console.read(5, &mut status);
            if status[0] & 1 == 1 {
                let mut byte = [0];
                console.read(0, &mut byte);
                seen.push(byte[0]);
            }
        }
        typist.join().unwrap();
        assert_eq!(seen, text);
    }
}
