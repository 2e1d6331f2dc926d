//! The thread of a vCPU: runs guest code, and sees to what KVM leaves to the VMM.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use kvm_ioctls::{VcpuExit, VcpuFd};
use parking_lot::Mutex;

use crate::bus::Bus;
use crate::control::{Control, End};
use crate::space::Space;

/// Why KVM gave up: an instruction that it cannot emulate.
const EMULATION: u32 = kvm_bindings::KVM_INTERNAL_ERROR_EMULATION;

/// Memory and buses, which the threads of a VM's vCPUs use.
#[derive(Debug)]
pub(crate) struct Parts {
    pub(crate) space: Arc<Space>,
    pub(crate) memory_bus: Bus,
    pub(crate) port_bus: Bus,
}

impl Parts {
    /// A store that KVM did not carry out: to a read-only part of a shared BAR, or to a device.
    fn store(&self, address: u64, data: &[u8]) {
        if !self.space.drop_store(address) {
            self.memory_bus.write(address, data);
        }
    }
}

/// Runs a vCPU until the VM ends.
pub(crate) fn run(vcpu: &Mutex<VcpuFd>, number: usize, vm: &Parts, control: &Arc<Control>) {
    while control.pass() {
        let vcpu = &mut *vcpu.lock();
        control.exits.fetch_add(1, Ordering::Relaxed);
        let end = match vcpu.run() {
            Ok(exit) => match exit {
                VcpuExit::MmioWrite(address, data) => {
                    vm.store(address, data);
                    continue;
                }
                VcpuExit::MmioRead(address, data) => {
                    vm.memory_bus.read(address, data);
                    continue;
                }
                VcpuExit::IoOut(port, data) => {
                    vm.port_bus.write(u64::from(port), data);
                    continue;
                }
                VcpuExit::IoIn(port, data) => {
                    vm.port_bus.read(u64::from(port), data);
                    continue;
                }
                VcpuExit::Intr | VcpuExit::IrqWindowOpen => continue,
                // Only without an interrupt chip in KVM, and then nothing would wake the vCPU.
                VcpuExit::Hlt => End::Failed(format!("vCPU {number} halted for ever")),
                VcpuExit::Shutdown => End::Failed(format!(
                    "vCPU {number} fell into a triple fault, an exception while it handled the exception of an exception: \
                     the guest's kernel is broken, or is not meant for such a machine"
                )),
                VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_SHUTDOWN, _) => End::PowerOff,
                VcpuExit::SystemEvent(kvm_bindings::KVM_SYSTEM_EVENT_RESET, _) => End::Reset,
                VcpuExit::FailEntry(reason, cpu) => End::Failed(format!(
                    "the processor refused to run vCPU {number} (reason {reason:#x} on CPU {cpu}): its registers make no \
                     sense, which is a fault of this VMM, or KVM has a restriction of its own; `dmesg` may say more"
                )),
                VcpuExit::MemoryFault { gpa, .. } => End::Failed(format!(
                    "vCPU {number} touched guest address {gpa:#x}, whose memory is gone: was the region's file truncated?"
                )),
                VcpuExit::InternalError => internal_error(vcpu, number),
                other => {
                    let what = format!("{other:?}");
                    End::Failed(format!("vCPU {number} stopped with an exit that no VM should make: {what}"))
                }
            },
            Err(error) => match error.errno() {
                libc::EINTR | libc::EAGAIN => continue,
                libc::EFAULT => End::Failed(format!(
                    "vCPU {number} touched memory that is gone: was the region's file truncated?"
                )),
                _ => End::Failed(format!("vCPU {number} cannot run: {error}")),
            },
        };
        control.end(end);
    }
}

/// The internal error by which KVM gave up.
fn internal_error(vcpu: &mut VcpuFd, number: usize) -> End {
    let rip = vcpu.get_regs().map_or(0, |regs| regs.rip);
    // SAFETY: KVM fills this member of the union for the exit that was just seen; all of its bits are integers.
    let internal = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.internal };
    if internal.suberror != EMULATION {
        let why = internal.suberror;
        return End::Failed(format!("KVM gave vCPU {number} up at {rip:#x} (internal error {why})"));
    }
    // SAFETY: KVM fills this member of the union for the suberror that was just seen; all of its bits are integers.
    let emulation = unsafe { vcpu.get_kvm_run().__bindgen_anon_1.emulation_failure };
    let mut code = String::new();
    if emulation.ndata >= 1 && emulation.flags & u64::from(INSTRUCTION_BYTES) != 0 {
        // SAFETY: the flag says that these were filled in; all of their bits are integers.
        let bytes = unsafe { emulation.__bindgen_anon_1.__bindgen_anon_1 };
        let len = usize::from(bytes.insn_size).min(bytes.insn_bytes.len());
        let words: Vec<_> = bytes.insn_bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect();
        code = format!(" (code {})", words.join(" "));
    }
    End::Failed(format!(
        "vCPU {number} ran an instruction at {rip:#x}{code} that KVM cannot carry out for it: most likely a vector or \
         16-byte store into another VM's section, which is read-only"
    ))
}

const INSTRUCTION_BYTES: u32 = kvm_bindings::KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES;
