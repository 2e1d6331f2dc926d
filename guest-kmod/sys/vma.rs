// SPDX-License-Identifier: GPL-2.0

//! Mappings in processes, and the faults that fill them with pages.

use core::marker::PhantomData;
use kernel::{
    bindings,
    mm::virt::{flags, VmaNew},
    page::PAGE_SHIFT,
    prelude::*,
};

use super::{memory::Memory, private_data::of_mapping};

/// The page frames of a device's memory.
///
/// # Invariants
///
/// They are those of a BAR: no memory of the kernel's is among them.
#[derive(Clone, Copy)]
pub(crate) struct Frames {
    first: u64,
    count: u64,
}

impl Frames {
    /// Those of a BAR that the caller has mapped.
    pub(crate) fn of(memory: &Memory) -> Self {
        // INVARIANT: `Memory` is a BAR.
        Self {
            first: memory.first_frame(),
            count: memory.len() >> PAGE_SHIFT,
        }
    }
}

/// A mapping that is being made.
///
/// # Invariants
///
/// The pointer is valid for `'a`, and nobody else knows the mapping yet.
pub(crate) struct NewVma<'a, F: ?Sized> {
    vma: *mut bindings::vm_area_struct,
    lifetime: PhantomData<&'a VmaNew>,
    file: PhantomData<fn(&F)>,
}

impl<F: FillsPages> NewVma<'_, F> {
    /// # Safety
    ///
    /// `vma` was given to the operation `mmap` of [`super::files`], which lasts as long as this
    /// lives, for a file that is an `F`.
    pub(super) unsafe fn from_raw(vma: *mut bindings::vm_area_struct) -> Self {
        // INVARIANT: By this function's contract.
        Self {
            vma,
            lifetime: PhantomData,
            file: PhantomData,
        }
    }

    fn vma(&self) -> &VmaNew {
        // SAFETY: By the type's invariants.
        unsafe { VmaNew::from_raw(self.vma) }
    }

    /// Bytes that are to be mapped; not 0.
    pub(crate) fn len(&self) -> u64 {
        (self.vma().end() - self.vma().start()) as u64
    }

    /// First byte of the file that is to be mapped; `EINVAL` if it has no number.
    pub(crate) fn offset(&self) -> Result<u64> {
        // SAFETY: By the type's invariants.
        let page = unsafe { (*self.vma).vm_pgoff };
        (page as u64).checked_mul(1 << PAGE_SHIFT).ok_or(EINVAL)
    }

    /// Whether what is written is to be seen by others (`MAP_SHARED`).
    pub(crate) fn is_shared(&self) -> bool {
        // From `linux/mm.h`; what the Rust bindings of Linux 7.2 call by this name is another flag
        // (`VM_MAYEXEC`). And `VM_SHARED` is absent where the file was opened for reading only.
        const VM_MAYSHARE: usize = 0x80;
        self.vma().flags() & VM_MAYSHARE != 0
    }

    /// Whether it is to be written.
    pub(crate) fn is_writable(&self) -> bool {
        self.vma().writable()
    }

    /// Whether it is to be executed.
    pub(crate) fn is_executable(&self) -> bool {
        self.vma().executable()
    }

    /// Makes it a mapping of page frames, which `F` fills in. Never to be
    /// executable, and never to be made writable later unless `may_write`.
    ///
    /// `EINVAL` if it is not shared.
    pub(crate) fn finish(self, may_write: bool) -> Result {
        if !self.is_shared() {
            // A private copy of a page frame can't be had; the kernel stops on faults that ask for
            // one.
            return Err(EINVAL);
        }
        let vma = self.vma();
        vma.try_clear_mayexec()?;
        if !may_write {
            vma.try_clear_maywrite()?;
        }
        vma.set_io();
        vma.set_dontexpand();
        vma.set_dontdump();
        // SAFETY: Nobody else knows the mapping yet. It is shared, as a mapping of page frames has
        // to be, and has no pages. The operations are static.
        unsafe {
            (*self.vma).__bindgen_anon_2.vm_flags |= flags::PFNMAP;
            (*self.vma).vm_ops = &Table::<F>::OPERATIONS;
        }
        Ok(())
    }
}

/// An open file whose mappings get their pages when they are touched.
pub(crate) trait FillsPages: Sized + Sync + 'static {
    /// Fills in a page.
    fn fault(&self, fault: &Fault) -> Outcome;
}

struct Table<F>(PhantomData<F>);

impl<F: FillsPages> Table<F> {
    const OPERATIONS: bindings::vm_operations_struct = bindings::vm_operations_struct {
        fault: Some(fault::<F>),
        huge_fault: Some(huge_fault::<F>),
        ..pin_init::zeroed()
    };
}

/// How a fault ends.
#[derive(Clone, Copy)]
pub(crate) struct Outcome(bindings::vm_fault_t);

impl Outcome {
    /// There is no such page: the process gets SIGBUS.
    pub(crate) const SIGBUS: Self = Self(bindings::vm_fault_reason_VM_FAULT_SIGBUS);
    /// Not with a page so large; the kernel tries again with a smaller one.
    pub(crate) const FALLBACK: Self = Self(bindings::vm_fault_reason_VM_FAULT_FALLBACK);
}

/// A process has touched a mapping where no page is.
///
/// # Invariants
///
/// The pointer is valid, the mapping was made by [`NewVma::finish`] and is kept from changing.
pub(crate) struct Fault {
    vmf: *mut bindings::vm_fault,
    order: u32,
}

impl Fault {
    /// A page of 2^`LARGE` small ones: one entry of the second level of the page table.
    ///
    /// Entries of the third level are never used: where a process unmaps or protects a part of such
    /// a page, Linux 7.2 takes the page for a table of the second level, and crashes.
    const LARGE: u32 = PAGE_SHIFT as u32 - 3;

    /// Maps the page that is asked for, of the size that is asked for, from `frames`: file offset 0
    /// is the first of them.
    ///
    /// The caller sees to it that the memory exists, and takes all mappings away before it ceases
    /// to.
    pub(crate) fn insert(&self, frames: Frames) -> Outcome {
        // SAFETY: By the type's invariants.
        let (fault, vma) = unsafe {
            let fault = (*self.vmf).__bindgen_anon_1;
            (fault, fault.vma)
        };
        // SAFETY: As above.
        let (start, end, first) = unsafe {
            let range = (*vma).__bindgen_anon_1.__bindgen_anon_1;
            (
                range.vm_start as u64,
                range.vm_end as u64,
                (*vma).vm_pgoff as u64,
            )
        };

        let pages = 1u64 << self.order;
        let bytes = pages << PAGE_SHIFT;
        let address = fault.address as u64 & !(bytes - 1);
        // The whole page has to lie in the mapping; all of it, since the rest may have been
        // unmapped or protected.
        if address < start || end - address < bytes {
            return Outcome::FALLBACK;
        }
        let page = first + ((address - start) >> PAGE_SHIFT);
        if page.checked_add(pages).is_none_or(|end| end > frames.count) {
            return if self.order == 0 {
                Outcome::SIGBUS
            } else {
                Outcome::FALLBACK
            };
        }
        let frame = frames.first + page;
        if frame % pages != 0 {
            return Outcome::FALLBACK;
        }

        self.insert_frame(vma, address as usize, frame as usize)
    }

    /// Maps one page. `insert` has checked that `vma` is the mapping that was touched and covers
    /// the whole page at `address`, and that `frame` and those that follow are of a BAR and aligned
    /// to the page.
    fn insert_frame(
        &self,
        vma: *mut bindings::vm_area_struct,
        address: usize,
        frame: usize,
    ) -> Outcome {
        #[cfg(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP)]
        if self.order == Self::LARGE {
            // SAFETY: The mapping is one of page frames and shared, by the type's invariants. It
            // covers the page.
            return Outcome(unsafe {
                bindings::vmf_insert_pfn_pmd(self.vmf, frame, self.writes())
            });
        }
        if self.order == 0 {
            // SAFETY: As above.
            return Outcome(unsafe { bindings::vmf_insert_pfn(vma, address, frame) });
        }
        Outcome::FALLBACK
    }

    /// Whether the page was touched to write it.
    #[cfg(CONFIG_ARCH_SUPPORTS_PMD_PFNMAP)]
    fn writes(&self) -> bool {
        // SAFETY: By the type's invariants.
        let flags = unsafe { (*self.vmf).flags };
        flags & bindings::fault_flag_FAULT_FLAG_WRITE != 0
    }
}

/// # Safety
///
/// Only called by the kernel, for a mapping that has the operations of [`Table`] for `F`.
unsafe extern "C" fn huge_fault<F: FillsPages>(
    vmf: *mut bindings::vm_fault,
    order: c_uint,
) -> bindings::vm_fault_t {
    if order > Fault::LARGE {
        return Outcome::FALLBACK.0;
    }
    // SAFETY: Such a mapping was made by `NewVma::finish`, hence of a file that is an `F`.
    let file = unsafe { of_mapping::<F>((*vmf).__bindgen_anon_1.vma) };
    // INVARIANT: As above.
    file.fault(&Fault { vmf, order }).0
}

/// # Safety
///
/// As for [`huge_fault`].
unsafe extern "C" fn fault<F: FillsPages>(
    vmf: *mut bindings::vm_fault,
) -> bindings::vm_fault_t {
    // SAFETY: By this function's contract.
    unsafe { huge_fault::<F>(vmf, 0) }
}
