//! A VM: KVM's object with its memory slots, buses and vCPUs, and the same when it runs.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{Cap, VcpuFd, VmFd};
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::bus::Bus;
use crate::control::{Control, End};
use crate::error::Error;
use crate::host::Host;
use crate::layout;
use crate::memory::Ram;
use crate::shared::Shared;
use crate::vcpu;

/// A kick can fall between a vCPU's look at the state and its entry into the guest, so it is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(2);

/// What the threads of a VM use. The order matters: KVM's object goes first, then the memory whose addresses it has.
#[derive(Debug)]
pub(crate) struct Parts {
    fd: VmFd,
    pub(crate) memory_bus: Bus,
    pub(crate) port_bus: Bus,
    /// Shared BARs by guest-physical address.
    shared: Vec<(u64, Shared)>,
    ram: Ram,
}

impl Parts {
    /// A store that KVM did not carry out: to a device, or to a read-only part of a shared BAR.
    pub(crate) fn store(&self, address: u64, data: &[u8]) {
        let bar = self.shared.iter().find(|(start, bar)| (*start..start + bar.len()).contains(&address));
        match bar {
            Some((start, bar)) => bar.drop_store(address - start),
            None => self.memory_bus.write(address, data),
        }
    }
}

/// A VM that does not run yet.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    parts: Parts,
    slots: u32,
    control: Arc<Control>,
}

impl Vm {
    /// Makes a VM with this RAM, an interrupt controller in KVM, and that many vCPUs.
    ///
    /// # Errors
    /// KVM refuses, or has no such number of vCPUs.
    pub fn new(host: &Host, ram: Ram, vcpus: usize) -> Result<Self, Error> {
        if vcpus == 0 || vcpus > host.max_vcpus() {
            return Err(Error::Invalid {
                what: "the number of vCPUs",
                value: vcpus.to_string(),
                why: format!("is not possible here: give 1 to {}", host.max_vcpus()),
            });
        }
        let fd = host.kvm.create_vm().map_err(Error::kvm("create a VM"))?;
        fd.set_identity_map_address(layout::IDENTITY_MAP).map_err(Error::kvm("place KVM's identity map"))?;
        fd.set_tss_address(layout::TSS).map_err(Error::kvm("place KVM's task state segment"))?;
        fd.create_irq_chip().map_err(Error::kvm("create the interrupt controllers"))?;
        let parts =
            Parts { fd, memory_bus: Bus::default(), port_bus: Bus::default(), shared: Vec::new(), ram };
        let mut vm = Self { vcpus: Vec::new(), parts, slots: 0, control: Arc::default() };
        for (start, address, len) in vm.parts.ram.ranges().collect::<Vec<_>>() {
            // SAFETY: the RAM is dropped after KVM's object, and its length is the mapping's.
            unsafe { vm.add_slot(start, address.as_ptr().addr() as u64, len, true)? };
        }
        for number in 0..vcpus {
            let vcpu = vm.parts.fd.create_vcpu(number as u64);
            vm.vcpus.push(vcpu.map_err(Error::kvm(format!("create vCPU {number}")))?);
        }
        Ok(vm)
    }

    /// Shows a region to the guest at a guest-physical address, a multiple of the region's length.
    ///
    /// # Errors
    /// KVM has no slots left, or other memory lies there.
    pub fn share(&mut self, start: u64, shared: Shared) -> Result<(), Error> {
        let slots = self.parts.fd.check_extension_int(Cap::NrMemslots);
        if self.slots as usize + shared.parts().len() > usize::try_from(slots).unwrap_or(0) {
            return Err(Error::Capability {
                capability: "memory slots for one more region (KVM_CAP_NR_MEMSLOTS)",
                cure: "give the VM fewer regions",
            });
        }
        let slots: Vec<_> = shared.parts().iter().map(|part| (*part, shared.address(part))).collect();
        // Before KVM hears of the mapping, so that it lives as long as KVM's object whatever happens.
        self.parts.shared.push((start, shared));
        for (part, address) in slots {
            let address = address.as_ptr().addr() as u64;
            // SAFETY: `parts` drops the mapping after KVM's object, and the part lies inside the mapping.
            unsafe { self.add_slot(start + part.offset, address, part.len, part.writable)? };
        }
        Ok(())
    }

    /// # Safety
    /// `[address, address + len)` must be a mapping of this process that lives as long as the VM.
    unsafe fn add_slot(&mut self, start: u64, address: u64, len: u64, writable: bool) -> Result<(), Error> {
        let slot = kvm_userspace_memory_region {
            slot: self.slots,
            flags: if writable { 0 } else { KVM_MEM_READONLY },
            guest_phys_addr: start,
            memory_size: len,
            userspace_addr: address,
        };
        // SAFETY: what the caller promises.
        unsafe { self.parts.fd.set_user_memory_region(slot) }
            .map_err(Error::kvm(format!("give the guest {len:#x} bytes of memory at {start:#x}")))?;
        self.slots += 1;
        Ok(())
    }

    /// The RAM.
    pub fn ram(&self) -> &Ram {
        &self.parts.ram
    }

    /// The vCPUs, for whoever sets their registers.
    pub(crate) fn vcpus(&self) -> &[VcpuFd] {
        &self.vcpus
    }

    /// Devices by guest-physical address.
    pub fn memory_bus(&self) -> &Bus {
        &self.parts.memory_bus
    }

    /// Devices by port.
    pub fn port_bus(&self) -> &Bus {
        &self.parts.port_bus
    }

    /// A handle by which devices end the VM.
    pub(crate) fn control(&self) -> Arc<Control> {
        Arc::clone(&self.control)
    }

    /// Starts the vCPUs, each in its own thread; `ready` is called in each before any guest code runs, for pinning.
    ///
    /// # Errors
    /// No thread can be had.
    pub fn start(self, ready: impl Fn(usize) + Send + Sync + 'static) -> Result<Running, Error> {
        extern "C" fn woken(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
        register_signal_handler(SIGRTMIN(), woken)
            .map_err(|error| Error::io("prepare the signal that stops vCPUs")(error.into()))?;
        let Self { vcpus, parts, control, .. } = self;
        let ready = Arc::new(ready);
        let mut running = Running { threads: Vec::new(), parts: Arc::new(parts), control };
        for (number, mut vcpu) in vcpus.into_iter().enumerate() {
            let (parts, control) = (Arc::clone(&running.parts), Arc::clone(&running.control));
            let ready = Arc::clone(&ready);
            let thread = Builder::new().name(format!("vcpu{number}")).spawn(move || {
                ready(number);
                vcpu::run(&mut vcpu, number, &parts, &control);
            });
            running.threads.push(thread.map_err(Error::io(format!("start a thread for vCPU {number}")))?);
        }
        Ok(running)
    }
}

/// Figures of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Times that a vCPU came back from KVM to the VMM.
    pub exits: u64,
    /// Stores to memory of others that were dropped.
    pub dropped: u64,
}

/// A VM that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<()>>,
    parts: Arc<Parts>,
    control: Arc<Control>,
}

impl Running {
    /// How the VM ended, if it has.
    pub fn ended(&self) -> Option<End> {
        self.control.ended()
    }

    /// Waits until the VM ends, at most for `limit`.
    pub fn wait(&self, limit: Duration) -> Option<End> {
        self.control.wait(limit)
    }

    /// Makes all vCPUs rest; returns when they do.
    pub fn pause(&self) {
        self.control.pause(true);
        while !self.control.rests(self.threads.len()) {
            self.kick();
            std::thread::sleep(KICK_AGAIN);
        }
    }

    /// Lets vCPUs that rest go on.
    pub fn resume(&self) {
        self.control.pause(false);
    }

    /// Figures so far.
    pub fn stats(&self) -> Stats {
        Stats {
            exits: self.control.exits.load(Ordering::Relaxed),
            dropped: self.parts.shared.iter().map(|(_, shared)| shared.dropped()).sum(),
        }
    }

    /// Stops the VM unless it has ended, frees all it had, and says how it ended.
    pub fn stop(mut self) -> End {
        self.halt();
        self.control.ended().unwrap_or(End::Stopped)
    }

    fn halt(&mut self) {
        self.control.end(End::Stopped);
        while self.threads.iter().any(|thread| !thread.is_finished()) {
            self.kick();
            std::thread::sleep(KICK_AGAIN);
        }
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("the thread of a vCPU panicked");
            }
        }
    }

    /// Brings vCPUs out of the guest.
    fn kick(&self) {
        for thread in self.threads.iter().filter(|thread| !thread.is_finished()) {
            // SAFETY: the thread is not joined yet, so its id is its own; the signal's handler does nothing.
            unsafe { libc::pthread_kill(thread.as_pthread_t(), SIGRTMIN()) };
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.halt();
    }
}
