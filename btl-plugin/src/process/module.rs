//! The BTL's module, as Open MPI knows it.

use std::mem::MaybeUninit;

use crate::ompi::{self, Global, mca_btl_base_module_t};

/// The one module of the BTL. All zero until the component registers its parameters.
// SAFETY: the struct holds numbers, pointers and optional functions, for all of which zero is a value.
pub static MODULE: Global<mca_btl_base_module_t> =
    Global::new(unsafe { MaybeUninit::zeroed().assume_init() });

/// Whether some other transport of this process has hardware read memory that is sent, or the kernel where `kernel_reads`
/// says that it can't.
pub fn others_read(kernel_reads: bool) -> bool {
    // SAFETY: it is that module.
    unsafe { ompi::others_read(MODULE.get(), kernel_reads) }
}
