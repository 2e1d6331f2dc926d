//! A VM: KVM's object with its memory slots, buses and vCPUs, and the same when it runs.

use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::{
    KVM_CAP_X86_DISABLE_EXITS, KVM_X86_DISABLE_EXITS_HLT, KVM_X86_DISABLE_EXITS_MWAIT,
    KVM_X86_DISABLE_EXITS_PAUSE, kvm_enable_cap,
};
use kvm_ioctls::{VcpuFd, VmFd};
use parking_lot::Mutex;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

use crate::beginning::{Beginning, settle};
use crate::bus::Bus;
use crate::control::{Control, End};
use crate::counters::Counters;
use crate::error::Error;
use crate::host::Host;
use crate::layout;
use crate::memory::Ram;
use crate::shared::Shared;
use crate::space::Space;
use crate::thread;
use crate::topology::Topology;
use crate::vcpu::{self, Parts};

/// A kick can fall between a vCPU's look at the state and its entry into the guest, so it is repeated.
const KICK_AGAIN: Duration = Duration::from_millis(2);

/// A VM that does not run yet.
///
/// The order matters: vCPUs and buses go before the memory.
#[derive(Debug)]
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    topology: Topology,
    quiet: bool,
    /// Ways of waiting that do not leave the guest, as KVM's flags.
    stays: u32,
    memory_bus: Bus,
    port_bus: Bus,
    space: Arc<Space>,
    control: Arc<Control>,
}

impl Vm {
    /// Makes a VM with this RAM, these regions, an interrupt controller in KVM, and these vCPUs.
    ///
    /// With `quiet`, vCPUs that wait (HLT, MWAIT, PAUSE) stay in the guest, as far as KVM can let them: for vCPUs that
    /// each have a CPU of their own.
    ///
    /// # Errors
    /// KVM refuses, or has no such number of vCPUs.
    pub fn new(
        host: &Host,
        ram: Ram,
        shared: Vec<Shared>,
        topology: Topology,
        quiet: bool,
    ) -> Result<Self, Error> {
        let vcpus = topology.len();
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
        let stays = if quiet { stay(&fd) } else { 0 };
        let mut space = Space::new(fd, ram)?;
        for shared in shared {
            space.add(shared)?;
        }
        // KVM's number of a vCPU is its APIC id.
        let vcpus = topology.ids().iter().enumerate().map(|(number, &id)| {
            space.fd().create_vcpu(id.into()).map_err(Error::kvm(format!("create vCPU {number}")))
        });
        Ok(Self {
            vcpus: vcpus.collect::<Result<_, _>>()?,
            topology,
            quiet,
            stays,
            memory_bus: Bus::default(),
            port_bus: Bus::default(),
            space: Arc::new(space),
            control: Arc::default(),
        })
    }

    /// Shows region number `index` to the guest at a guest-physical address, a multiple of the region's length.
    ///
    /// # Errors
    /// Other memory lies there.
    pub fn place(&self, index: usize, address: u64) -> Result<(), Error> {
        self.space.place(index, Some(address))
    }

    /// The guest's memory.
    pub(crate) fn space(&self) -> &Arc<Space> {
        &self.space
    }

    /// The RAM.
    pub fn ram(&self) -> &Ram {
        self.space.ram()
    }

    /// The vCPUs, for whoever sets their registers.
    pub(crate) fn vcpus(&self) -> &[VcpuFd] {
        &self.vcpus
    }

    /// Topology of the vCPUs: what they share.
    pub(crate) fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Whether each vCPU has a CPU of its own.
    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether MWAIT does not leave the guest.
    pub(crate) fn mwait_stays(&self) -> bool {
        self.stays & KVM_X86_DISABLE_EXITS_MWAIT != 0
    }

    /// Devices by guest-physical address.
    pub fn memory_bus(&self) -> &Bus {
        &self.memory_bus
    }

    /// Devices by port.
    pub fn port_bus(&self) -> &Bus {
        &self.port_bus
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
        let Self { vcpus, memory_bus, port_bus, space, control, .. } = self;
        let parts = Parts { space, memory_bus, port_bus };
        let ready = Arc::new(ready);
        let counters = Arc::new(Counters::new(parts.space.fd(), vcpus.iter()));
        let vcpus = vcpus.into_iter().map(|vcpu| Arc::new(Mutex::new(vcpu))).collect();
        let mut running = Running { threads: Vec::new(), vcpus, parts: Arc::new(parts), control, counters };
        for (number, vcpu) in running.vcpus.iter().enumerate() {
            let (parts, control) = (Arc::clone(&running.parts), Arc::clone(&running.control));
            let (vcpu, ready) = (Arc::clone(vcpu), Arc::clone(&ready));
            let thread = thread::spawn_after(
                thread::Kind::Vcpu,
                format!("vcpu{number}"),
                move || ready(number),
                move || vcpu::run(&vcpu, number, &parts, &control),
            );
            running.threads.push(thread.map_err(Error::io(format!("start a thread for vCPU {number}")))?);
        }
        Ok(running)
    }
}

/// Lets vCPUs that wait stay in the guest, and returns which ways of waiting do. Before there are any vCPUs; KVM takes no
/// change later.
fn stay(fd: &VmFd) -> u32 {
    let wanted = KVM_X86_DISABLE_EXITS_HLT | KVM_X86_DISABLE_EXITS_MWAIT | KVM_X86_DISABLE_EXITS_PAUSE;
    let offered = u32::try_from(fd.check_extension_raw(KVM_CAP_X86_DISABLE_EXITS.into())).unwrap_or(0);
    let mut cap = kvm_enable_cap { cap: KVM_CAP_X86_DISABLE_EXITS, ..kvm_enable_cap::default() };
    cap.args[0] = u64::from(wanted & offered);
    let refused = if wanted & offered == 0 { None } else { fd.enable_cap(&cap).err() };
    if wanted & !offered != 0 || refused.is_some() {
        tracing::info!(offered, ?refused, "this KVM takes vCPUs that wait out of the guest");
    }
    if refused.is_some() { 0 } else { wanted & offered }
}

/// Figures of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Stats {
    /// Times that a vCPU came back from KVM to the VMM.
    pub exits: u64,
    /// Stores to memory of others that were dropped.
    pub dropped: u64,
}

/// Stops a VM from any thread.
#[derive(Debug, Clone)]
pub struct Stopper(Arc<Control>);

impl Stopper {
    /// Ends the VM, unless it has ended: whoever waits for its end wakes up.
    pub fn stop(&self) {
        self.0.end(End::Stopped);
    }
}

/// A VM that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Running {
    threads: Vec<JoinHandle<()>>,
    /// Each locked by its thread while it runs guest code.
    vcpus: Vec<Arc<Mutex<VcpuFd>>>,
    parts: Arc<Parts>,
    control: Arc<Control>,
    counters: Arc<Counters>,
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

    /// A handle by which other threads stop the VM.
    pub fn stopper(&self) -> Stopper {
        Stopper(Arc::clone(&self.control))
    }

    /// The RAM, in which a guest may have left something.
    pub fn ram(&self) -> &Ram {
        self.parts.space.ram()
    }

    /// Makes all vCPUs rest; returns when they do.
    pub fn pause(&self) {
        self.control.pause(true);
        self.rest();
    }

    /// Waits until all vCPUs rest, which they have been told to.
    fn rest(&self) {
        while !self.control.rests(self.threads.len()) {
            self.kick();
            std::thread::sleep(KICK_AGAIN);
        }
    }

    /// Lets vCPUs that rest go on.
    pub fn resume(&self) {
        self.control.pause(false);
    }

    /// Takes all vCPUs back to the beginning after [`End::Reset`]; `prepare` sees to memory and devices while they rest.
    pub(crate) fn reset(
        &self,
        beginning: &Beginning,
        prepare: impl FnOnce() -> Result<(), Error>,
    ) -> Result<(), Error> {
        self.rest();
        let mut vcpus: Vec<_> = self.vcpus.iter().map(|vcpu| vcpu.lock()).collect();
        vcpus.iter_mut().for_each(|vcpu| settle(vcpu));
        prepare()?;
        let fd = self.parts.space.fd();
        beginning.restore(fd, vcpus.iter().map(|vcpu| &**vcpu)).map_err(Error::kvm("reset the vCPUs"))?;
        drop(vcpus);
        self.control.begin_anew();
        Ok(())
    }

    /// KVM's counters.
    pub fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.counters)
    }

    /// Figures so far.
    pub fn stats(&self) -> Stats {
        Stats {
            exits: self.control.exits.load(Ordering::Relaxed),
            dropped: self.parts.space.shared().map(Shared::dropped).sum(),
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
