//! The state in which vCPUs begin in long mode, with a kernel as with a bare-metal program: flat segments, memory that is
//! cached.

use kvm_bindings::{Msrs, kvm_msr_entry, kvm_segment, kvm_sregs};
use kvm_ioctls::{Error, VcpuFd};

pub(crate) const CR0: u64 = 0x8005_0033;
/// The MSR with the memory type of all that no range register names, and its value: write-back.
pub(crate) const WRITE_BACK: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// Makes all segments flat, with these selectors of code and data, for the privilege level `dpl`.
pub(crate) fn set_flat(sregs: &mut kvm_sregs, code: u16, data: u16, dpl: u8) {
    sregs.cs = flat(code, 0b1011, dpl, true);
    let data = flat(data, 0b0011, dpl, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

/// A segment over all addresses, of code (`long`) or data.
fn flat(selector: u16, type_: u8, dpl: u8, long: bool) -> kvm_segment {
    kvm_segment {
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        dpl,
        db: u8::from(!long),
        s: 1,
        l: u8::from(long),
        g: 1,
        ..kvm_segment::default()
    }
}

/// Sets a model-specific register, if KVM knows it.
pub(crate) fn set_msr(vcpu: &VcpuFd, (index, data): (u32, u64)) -> Result<(), Error> {
    let entry = kvm_msr_entry { index, data, ..kvm_msr_entry::default() };
    vcpu.set_msrs(&Msrs::from_entries(&[entry]).expect("one is not too many")).map(drop)
}
