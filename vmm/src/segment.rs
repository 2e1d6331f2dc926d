//! The flat segments with which a vCPU begins in long mode.

use kvm_bindings::kvm_segment;

/// A segment over all addresses, of code (`long`) or data, for the privilege level `dpl`.
pub(crate) fn flat(selector: u16, type_: u8, dpl: u8, long: bool) -> kvm_segment {
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
