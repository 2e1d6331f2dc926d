//! Virtio devices on the PCI bus (virtio 1.2, the modern kind only): registers, queues, and a thread for each device.

use std::any::Any;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use parking_lot::Mutex;
use virtio_queue::{DescriptorChain, Queue, QueueT};
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::interrupts::Interrupts;
use crate::msix::{self, Msix};
use crate::pci::{BarKind, Config, Function, Identity};
use crate::space::Space;
use crate::thread;
use crate::vhost::Vhost;

/// The most entries of a queue.
const QUEUE_SIZE: u16 = 256;
const VENDOR: u16 = 0x1af4;
/// Device ids of the modern kind: this plus the device's type.
const DEVICE: u16 = 0x1040;
const VERSION_1: u64 = 1 << 32;

const STATUS_DRIVER_OK: u8 = 4;
const STATUS_FEATURES_OK: u8 = 8;
/// No vector.
const NO_VECTOR: u16 = 0xffff;

const REGISTERS_BAR: usize = 0;
const TABLE_BAR: usize = 1;
/// Parts of BAR 0, a page each.
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE_CONFIG: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
const REGISTERS_LEN: u64 = 0x4000;
const COMMON_LEN: usize = 0x38;

/// Backend: a device's own part, which works on its queues.
pub(crate) trait Backend: Send + 'static {
    /// The device's type, as the standard numbers it.
    const TYPE: u16;
    /// Class and subclass of the PCI function.
    const CLASS: u16;
    /// Number of queues.
    const QUEUES: usize;
    /// The name of its thread.
    const NAME: &'static str;
    /// Features beyond the modern interface itself.
    fn features(&self) -> u64;
    /// The device's own configuration space.
    fn config(&self) -> Vec<u8>;
    /// Something from outside that makes work for queue 0 when it can be read.
    fn source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    /// Sees to what waits in a queue. Every value there comes from the guest, which may be hostile.
    fn process(&mut self, index: usize, queue: &mut Queue, memory: &GuestMemoryMmap) -> Done;
}

/// Outcome of a look at a queue.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Done {
    /// Whether buffers went back to the guest.
    pub(crate) used: bool,
    /// Whether the guest has to give buffers before more can be taken from outside.
    pub(crate) starved: bool,
}

/// Gives every buffer of a queue back, with as many bytes written as `serve` says.
pub(crate) fn serve_all<'m>(
    queue: &mut Queue,
    memory: &'m GuestMemoryMmap,
    mut serve: impl FnMut(DescriptorChain<&'m GuestMemoryMmap>) -> u32,
) -> Done {
    let mut done = Done::default();
    while let Some(chain) = queue.pop_descriptor_chain(memory) {
        let head = chain.head_index();
        let len = serve(chain);
        done.used |= queue.add_used(memory, head, len).is_ok();
    }
    done
}

/// Interrupt vectors of a device: one per queue, and one for changes of its configuration, without which drivers do not
/// start though it never comes.
const fn vectors(queues: usize) -> u32 {
    queues as u32 + 1
}

struct Slot {
    queue: Queue,
    vector: u16,
}

struct State {
    features: u64,
    offered: u64,
    status: u8,
    device_select: u32,
    driver_select: u32,
    queue_select: u16,
    config_vector: u16,
    slots: Vec<Slot>,
}

impl State {
    fn new(offered: u64, queues: usize) -> Self {
        let slot = || Slot { queue: Queue::new(QUEUE_SIZE).expect("a power of two"), vector: NO_VECTOR };
        Self {
            features: 0,
            offered,
            status: 0,
            device_select: 0,
            driver_select: 0,
            queue_select: 0,
            config_vector: NO_VECTOR,
            slots: (0..queues).map(|_| slot()).collect(),
        }
    }

    fn reset(&mut self) {
        *self = Self::new(self.offered, self.slots.len());
    }

    fn half(word: u64, select: u32) -> u32 {
        match select {
            0 => word as u32,
            1 => (word >> 32) as u32,
            _ => 0,
        }
    }

    /// The common configuration as bytes.
    fn image(&self) -> [u8; COMMON_LEN] {
        let mut image = [0; COMMON_LEN];
        let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x00, &self.device_select.to_le_bytes());
        put(0x04, &Self::half(self.offered, self.device_select).to_le_bytes());
        put(0x08, &self.driver_select.to_le_bytes());
        put(0x0c, &Self::half(self.features, self.driver_select).to_le_bytes());
        put(0x10, &self.config_vector.to_le_bytes());
        put(0x12, &(self.slots.len() as u16).to_le_bytes());
        put(0x14, &[self.status, 0]);
        put(0x16, &self.queue_select.to_le_bytes());
        let Some(slot) = self.slots.get(usize::from(self.queue_select)) else {
            put(0x1a, &NO_VECTOR.to_le_bytes());
            return image;
        };
        put(0x18, &slot.queue.size().to_le_bytes());
        put(0x1a, &slot.vector.to_le_bytes());
        put(0x1c, &u16::from(slot.queue.ready()).to_le_bytes());
        put(0x1e, &self.queue_select.to_le_bytes());
        put(0x20, &slot.queue.desc_table().to_le_bytes());
        put(0x28, &slot.queue.avail_ring().to_le_bytes());
        put(0x30, &slot.queue.used_ring().to_le_bytes());
        image
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let value = data.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        let vector = if value < u64::from(vectors(self.slots.len())) { value as u16 } else { NO_VECTOR };
        match (offset, data.len()) {
            (0x00, 4) => self.device_select = value as u32,
            (0x08, 4) => self.driver_select = value as u32,
            (0x0c, 4) if self.status & STATUS_FEATURES_OK == 0 => {
                let shift = if self.driver_select == 1 { 32 } else { 0 };
                if self.driver_select <= 1 {
                    self.features = self.features & !(0xffff_ffff << shift) | value << shift;
                }
            }
            (0x10, 2) => self.config_vector = vector,
            (0x14, 1) if value == 0 => self.reset(),
            (0x14, 1) => {
                let mut status = value as u8;
                // A driver that wants what was not offered, or not the modern interface, is told so.
                if self.features & !self.offered != 0 || self.features & VERSION_1 == 0 {
                    status &= !STATUS_FEATURES_OK;
                }
                self.status = status;
            }
            (0x16, 2) => self.queue_select = value as u16,
            _ => self.write_queue(offset, data.len(), value, vector),
        }
    }

    fn write_queue(&mut self, offset: u64, len: usize, value: u64, vector: u16) {
        let running = self.status & STATUS_DRIVER_OK != 0;
        let Some(slot) = self.slots.get_mut(usize::from(self.queue_select)) else { return };
        let (low, high) = (Some(value as u32), Some((value >> 32) as u32));
        if (offset, len) == (0x1a, 2) {
            slot.vector = vector;
            return;
        }
        // A queue that is in use stays where it is.
        if slot.queue.ready() || running {
            return;
        }
        let queue = &mut slot.queue;
        match (offset, len) {
            (0x18, 2) => queue.set_size(value as u16),
            (0x1c, 2) => queue.set_ready(value == 1),
            (0x20, 8) => queue.set_desc_table_address(low, high),
            (0x20, 4) => queue.set_desc_table_address(low, None),
            (0x24, 4) => queue.set_desc_table_address(None, low),
            (0x28, 8) => queue.set_avail_ring_address(low, high),
            (0x28, 4) => queue.set_avail_ring_address(low, None),
            (0x2c, 4) => queue.set_avail_ring_address(None, low),
            (0x30, 8) => queue.set_used_ring_address(low, high),
            (0x30, 4) => queue.set_used_ring_address(low, None),
            (0x34, 4) => queue.set_used_ring_address(None, low),
            _ => {}
        }
    }
}

/// The PCI function of a device.
pub(crate) struct Virtio {
    config: Mutex<Config>,
    capability: usize,
    msix: Mutex<Msix>,
    state: Arc<Mutex<State>>,
    device_config: Vec<u8>,
    /// One per queue: the guest has put something into it.
    kicks: Vec<EventFd>,
    /// vhost: sees to the queues where no thread of this process does.
    kernel: Option<Kernel>,
}

/// A device's queues in the kernel.
struct Kernel {
    vhost: Vhost,
    /// One per vector: raises its interrupt.
    calls: Vec<EventFd>,
}

impl Kernel {
    fn start(&self, slots: &[Slot], kicks: &[EventFd]) {
        for (index, (slot, kick)) in
            slots.iter().zip(kicks).enumerate().filter(|(_, (slot, _))| slot.queue.ready())
        {
            let call = self.calls.get(usize::from(slot.vector));
            if let Err(why) = self.vhost.start(index, &slot.queue, kick, call) {
                tracing::warn!(index, why, "a queue of a network card stands still");
            }
            // Buffers that the driver put there before it was ready.
            let _ = kick.write(1);
        }
    }

    fn stop(&self, queues: usize) {
        (0..queues).for_each(|index| self.vhost.stop(index));
    }
}

/// The thread of a device; ends when dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    stop: EventFd,
    thread: Option<JoinHandle<Box<dyn Any + Send>>>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.stop.write(1);
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread of a device panicked");
        }
    }
}

impl Virtio {
    /// A device whose BARs begin at these addresses, and its thread.
    pub(crate) fn start<B: Backend>(
        backend: B,
        [registers, table]: [u64; 2],
        space: &Arc<Space>,
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<(Arc<Self>, Worker), Error> {
        let (device, engine, stop) = Self::pair(backend, [registers, table], interrupts)?;
        let space = Arc::clone(space);
        // Returned, so that the joining thread drops it all: that takes more than this thread may do.
        let work = move || Box::new((engine.run(space.ram().map()), space)) as Box<dyn Any + Send>;
        let thread = thread::spawn(thread::Kind::Device, B::NAME, work)
            .map_err(Error::io(format!("start the thread of {}", B::NAME)))?;
        Ok((Arc::new(device), Worker { stop, thread: Some(thread) }))
    }

    /// A device whose queues the kernel sees to.
    pub(crate) fn in_kernel<B: Backend>(
        backend: &B,
        vhost: Vhost,
        bars: [u64; 2],
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<Arc<Self>, Error> {
        let (mut device, calls) = Self::with_events(backend, bars, interrupts)?;
        device.kernel = Some(Kernel { vhost, calls });
        Ok(Arc::new(device))
    }

    /// A device, what sees to its queues, and the event that stops that.
    pub(crate) fn pair<B: Backend>(
        backend: B,
        bars: [u64; 2],
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<(Self, Engine<B>, EventFd), Error> {
        let (device, calls) = Self::with_events(&backend, bars, interrupts)?;
        let copy = |event: &EventFd| event.try_clone().map_err(making::<B>());
        let kicks = device.kicks.iter().map(copy).collect::<Result<_, _>>()?;
        let stop = event::<B>()?;
        let state = Arc::clone(&device.state);
        let engine = Engine { backend, state, kicks, calls, stop: copy(&stop)?, starved: false };
        Ok((device, engine, stop))
    }

    /// A device, and for each of its vectors what raises its interrupt.
    fn with_events<B: Backend>(
        backend: &B,
        bars: [u64; 2],
        interrupts: Arc<dyn Interrupts>,
    ) -> Result<(Self, Vec<EventFd>), Error> {
        let mut device = Self::new(backend, bars, interrupts);
        device.kicks = (0..B::QUEUES).map(|_| event::<B>()).collect::<Result<_, _>>()?;
        let mut calls = Vec::new();
        for _ in 0..vectors(B::QUEUES) {
            let call = event::<B>()?;
            device.msix.get_mut().add_event(call.try_clone().map_err(making::<B>())?);
            calls.push(call);
        }
        Ok((device, calls))
    }

    /// A device without a thread.
    pub(crate) fn new<B: Backend>(
        backend: &B,
        [registers, table]: [u64; 2],
        interrupts: Arc<dyn Interrupts>,
    ) -> Self {
        let mut config = Config::new(&Identity {
            id: (VENDOR, DEVICE + B::TYPE),
            subsystem: (VENDOR, 0x1100),
            class: B::CLASS,
            revision: 1,
        });
        let place = msix::Place::new(vectors(B::QUEUES));
        config.add_bar(REGISTERS_BAR, BarKind::Registers, REGISTERS_LEN, registers);
        config.add_bar(TABLE_BAR, BarKind::Registers, place.bar_len, table);
        let capability = msix::add_capability(&mut config, vectors(B::QUEUES), TABLE_BAR);
        let device_config = backend.config();
        let parts = [
            (1, COMMON, COMMON_LEN as u32, &[][..]),
            (2, NOTIFY, 0x1000, &[4, 0, 0, 0]),
            (3, ISR, 4, &[]),
            (4, DEVICE_CONFIG, (device_config.len() as u32).max(4), &[]),
        ];
        for (kind, offset, len, more) in parts {
            let mut body = vec![16 + more.len() as u8, kind, REGISTERS_BAR as u8, 0, 0, 0];
            body.extend((offset as u32).to_le_bytes());
            body.extend(len.to_le_bytes());
            body.extend(more);
            config.add_capability(9, &body, &vec![0; body.len()]);
        }
        Self {
            config: Mutex::new(config),
            capability,
            msix: Mutex::new(Msix::new(vectors(B::QUEUES), interrupts)),
            state: Arc::new(Mutex::new(State::new(VERSION_1 | backend.features(), B::QUEUES))),
            device_config,
            kicks: Vec::new(),
            kernel: None,
        }
    }
}

impl Function for Virtio {
    fn config(&self) -> &Mutex<Config> {
        &self.config
    }

    fn configured(&self) {
        let config = self.config.lock();
        self.msix.lock().set_control(config.word(self.capability + 2));
    }

    fn power_on(&self) {
        self.config.lock().reset();
        let mut state = self.state.lock();
        if let Some(kernel) = &self.kernel {
            kernel.stop(state.slots.len());
        }
        state.reset();
        self.msix.lock().reset();
    }

    fn read(&self, bar: usize, offset: u64, data: &mut [u8]) {
        if bar == TABLE_BAR {
            return self.msix.lock().read(offset, data);
        }
        data.fill(0);
        let image;
        let (part, from) = match offset {
            COMMON..ISR => {
                image = self.state.lock().image();
                (offset, &image[..])
            }
            DEVICE_CONFIG..NOTIFY => (offset - DEVICE_CONFIG, &self.device_config[..]),
            _ => return,
        };
        let from = from.get(part as usize..).unwrap_or_default();
        for (byte, from) in data.iter_mut().zip(from) {
            *byte = *from;
        }
    }

    fn write(&self, bar: usize, offset: u64, data: &[u8]) {
        if bar == TABLE_BAR {
            return self.msix.lock().write(offset, data);
        }
        match offset {
            COMMON..ISR => {
                let mut state = self.state.lock();
                let before = state.status & STATUS_DRIVER_OK;
                state.write(offset, data);
                match (before, state.status & STATUS_DRIVER_OK, &self.kernel) {
                    (0, 0, _) => {}
                    (0, _, Some(kernel)) => kernel.start(&state.slots, &self.kicks),
                    // Buffers that the driver put into queues before it was ready wait there.
                    (0, _, None) => self.kicks.iter().for_each(|kick| drop(kick.write(1))),
                    (_, 0, Some(kernel)) => kernel.stop(state.slots.len()),
                    _ => {}
                }
            }
            NOTIFY.. => {
                if let Some(kick) = self.kicks.get(((offset - NOTIFY) / 4) as usize) {
                    let _ = kick.write(1);
                }
            }
            _ => {}
        }
    }
}

/// State of a device's thread.
pub(crate) struct Engine<B> {
    backend: B,
    state: Arc<Mutex<State>>,
    kicks: Vec<EventFd>,
    /// One per vector: raises its interrupt.
    calls: Vec<EventFd>,
    stop: EventFd,
    /// Whether the guest must give buffers before the source is looked at again.
    starved: bool,
}

impl<B: Backend> Engine<B> {
    fn run(mut self, memory: &GuestMemoryMmap) -> B {
        loop {
            let mut work: Vec<usize> = Vec::new();
            {
                let events: Vec<_> = std::iter::once(&self.stop).chain(&self.kicks).map(borrow).collect();
                let source = self.backend.source().filter(|_| !self.starved);
                let mut fds: Vec<_> =
                    events.into_iter().chain(source).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                match poll(&mut fds, PollTimeout::NONE) {
                    Ok(_) => {}
                    Err(nix::Error::EINTR) => continue,
                    Err(error) => {
                        tracing::error!(%error, device = B::NAME, "the device stops");
                        return self.backend;
                    }
                }
                let ready = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
                if ready(&fds[0]) {
                    return self.backend;
                }
                work.extend(fds[1..].iter().enumerate().filter(|(_, fd)| ready(fd)).map(|(i, _)| i));
            }
            for i in work {
                if let Some(kick) = self.kicks.get(i) {
                    let _ = kick.read();
                }
                // Behind the kicks comes the source, which is queue 0's.
                self.process(if i < self.kicks.len() { i } else { 0 }, memory);
            }
        }
    }

    pub(crate) fn process(&mut self, index: usize, memory: &GuestMemoryMmap) {
        // Under the lock, so that a reset waits until no buffer is in use.
        let mut state = self.state.lock();
        let running = state.status & STATUS_DRIVER_OK != 0;
        let slot = &mut state.slots[index];
        if !running || !slot.queue.ready() {
            self.starved |= index == 0;
            return;
        }
        let done = self.backend.process(index, &mut slot.queue, memory);
        if index == 0 {
            self.starved = done.starved;
        }
        if done.used
            && slot.queue.needs_notification(memory).unwrap_or(true)
            && let Some(call) = self.calls.get(usize::from(slot.vector))
        {
            let _ = call.write(1);
        }
    }
}

fn making<B: Backend>() -> impl FnOnce(std::io::Error) -> Error {
    Error::io(format!("make the events of {}", B::NAME))
}

fn event<B: Backend>() -> Result<EventFd, Error> {
    EventFd::new(libc::EFD_CLOEXEC | libc::EFD_NONBLOCK).map_err(making::<B>())
}

fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the borrow ends with the event's.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::recorder::Recorder;

    struct Nothing;

    impl Backend for Nothing {
        const TYPE: u16 = 4;
        const CLASS: u16 = 0x00ff;
        const QUEUES: usize = 2;
        const NAME: &'static str = "nothing";
        fn features(&self) -> u64 {
            1 << 5
        }
        fn config(&self) -> Vec<u8> {
            vec![1, 2, 3, 4, 5, 6, 7, 8]
        }
        fn process(&mut self, _: usize, _: &mut Queue, _: &GuestMemoryMmap) -> Done {
            Done::default()
        }
    }

    fn device() -> Virtio {
        Virtio::new(&Nothing, [0xc000_0000, 0xc001_0000], Arc::new(Recorder::default()))
    }

    fn read(device: &Virtio, offset: u64) -> u32 {
        let mut data = [0; 4];
        device.read(0, offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn a_driver_agrees_on_features_and_sets_a_queue_up() {
        let device = device();
        let write = |offset, data: &[u8]| device.write(0, offset, data);
        assert_eq!(read(&device, 4), 1 << 5);
        write(0, &1u32.to_le_bytes());
        assert_eq!(read(&device, 4), 1, "the modern interface");
        write(0x14, &[STATUS_FEATURES_OK | 3]);
        assert_eq!(read(&device, 0x14) as u8, 3, "without the modern interface there is no agreement");
        write(8, &1u32.to_le_bytes());
        write(0xc, &1u32.to_le_bytes());
        write(0x14, &[STATUS_FEATURES_OK | 3]);
        assert_eq!(read(&device, 0x14) as u8, 11);
        write(0xc, &0u32.to_le_bytes());
        assert_eq!(read(&device, 0xc), 1, "what is agreed on stays");

        write(0x16, &1u16.to_le_bytes());
        write(0x18, &64u16.to_le_bytes());
        write(0x20, &0x1000u64.to_le_bytes());
        write(0x28, &0x2000u32.to_le_bytes());
        write(0x2c, &1u32.to_le_bytes());
        write(0x30, &0x3000u64.to_le_bytes());
        write(0x1a, &1u16.to_le_bytes());
        write(0x1c, &1u16.to_le_bytes());
        write(0x20, &0x9000u64.to_le_bytes());
        assert_eq!(read(&device, 0x18), 1 << 16 | 64);
        assert_eq!(read(&device, 0x1c), 1 << 16 | 1);
        assert_eq!((read(&device, 0x20), read(&device, 0x28), read(&device, 0x2c)), (0x1000, 0x2000, 1));
        write(0x1a, &3u16.to_le_bytes());
        assert_eq!(read(&device, 0x18) >> 16, u32::from(NO_VECTOR), "there are three vectors");
        write(0x14, &[0]);
        assert_eq!((read(&device, 0x14), read(&device, 0x18)), (0, 0xffff_0100), "a reset forgets all");
    }

    #[test]
    fn a_reset_of_the_machine_ends_interrupts_and_queues() {
        let recorder = Arc::new(Recorder::default());
        let mut device = Virtio::new(&Nothing, [0xc000_0000, 0xc001_0000], recorder.clone());
        device.msix.get_mut().add_event(EventFd::new(libc::EFD_NONBLOCK).unwrap());
        device.write(TABLE_BAR, 0, &0xfee0_0000u32.to_le_bytes());
        device.write(TABLE_BAR, 12, &[0; 4]);
        device.config.lock().write(device.capability + 2, &msix::ENABLE.to_le_bytes());
        device.config.lock().write(0x10, &0xd000_0000u32.to_le_bytes());
        device.configured();
        device.write(0, 0x14, &[3]);
        assert_eq!(recorder.connected.lock().len(), 1);
        device.power_on();
        assert_eq!(recorder.connected.lock().len(), 0);
        assert_eq!(read(&device, 0x14) as u8, 0);
        assert_eq!(device.config.lock().bar(0), Some(0xc000_0000));
        let mut control = [0; 4];
        device.read(TABLE_BAR, 12, &mut control);
        assert_eq!(control, [1, 0, 0, 0], "masked");
    }

    #[test]
    fn the_device_s_own_configuration_is_read_in_any_width() {
        let device = device();
        let mut data = [0; 2];
        device.read(0, DEVICE_CONFIG + 3, &mut data);
        assert_eq!(data, [4, 5]);
        assert_eq!(read(&device, DEVICE_CONFIG + 6), 0x0807);
        assert_eq!(read(&device, DEVICE_CONFIG + 100), 0);
    }

    #[test]
    fn no_access_of_any_size_at_any_offset_panics() {
        let device = device();
        for value in [0u8, 1, 0xff] {
            for offset in 0..REGISTERS_LEN {
                for len in [1, 2, 4, 8] {
                    device.write(0, offset, &vec![value; len]);
                    device.read(0, offset, &mut vec![0; len]);
                }
            }
        }
    }

    #[test]
    fn capabilities_say_where_the_parts_are() {
        let device = device();
        let config = device.config.lock();
        let mut at = usize::from(config.word(0x34) as u8);
        let mut kinds = Vec::new();
        while at != 0 {
            let mut cap = [0; 16];
            config.read(at, &mut cap);
            if cap[0] == 9 {
                kinds.push((cap[3], u32::from_le_bytes(cap[8..12].try_into().unwrap())));
            }
            at = usize::from(cap[1]);
        }
        assert_eq!(kinds, [(1, 0), (2, 0x3000), (3, 0x1000), (4, 0x2000)]);
    }
}
