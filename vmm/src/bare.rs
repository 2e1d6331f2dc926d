//! A bare-metal program as guest: no kernel, no firmware, 64-bit user mode from its first instruction on.
//!
//! A vCPU that starts at privilege level 3 runs natively even on a KVM in software, where kernels crawl. Ports are
//! open to the program, memory is mapped one to one, and there are no interrupt handlers: an exception ends the VM.

use kvm_bindings::{kvm_segment, kvm_xcrs};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, Bytes, GuestAddress};

use crate::error::Error;
use crate::host::Host;
use crate::long_mode::{CR0, WRITE_BACK, set_flat, set_msr};
use crate::memory::Ram;
use crate::vm::Vm;

/// Where a program lies in the guest.
pub const CODE: u64 = 0x10_0000;
/// Bytes of stack of each vCPU, which lie below [`CODE`].
pub const STACK: u64 = 0x8000;
/// Where the task state segment lies.
pub const TSS: u64 = 0x3000;
/// Task state segment and a bitmap in which all ports are open.
pub const TSS_LIMIT: u32 = 0x67 + 8193;
/// Where the page tables lie.
pub const TABLES: u64 = 0x8000;
const TABLES_END: u64 = 0x8_0000;
const HUGE: u64 = 2 << 20;

const PRESENT_WRITE_USER: u64 = 0b111;
const HUGE_PAGE: u64 = 1 << 7;
/// PAE, SSE, XSAVE.
const CR4: u64 = 1 << 5 | 1 << 9 | 1 << 10;
const CR4_OSXSAVE: u64 = 1 << 18;
/// Long mode, no-execute.
const EFER: u64 = 1 << 8 | 1 << 10 | 1 << 11;

/// Loads a program at [`CODE`], and lets each vCPU begin there with the values that `arguments` gives it in the
/// registers of the C calling convention (rdi, rsi, rdx, rcx, r8, r9).
///
/// `mapped` are ranges of guest-physical addresses besides the RAM that the program can reach: shared BARs, devices.
///
/// # Errors
/// RAM too small for the program, more to map than there is room for page tables, or KVM refuses.
pub fn load(
    host: &Host,
    vm: &Vm,
    code: &[u8],
    mapped: &[(u64, u64)],
    arguments: impl Fn(usize) -> [u64; 6],
) -> Result<(), Error> {
    let most = (CODE - TABLES_END) / STACK;
    if vm.vcpus().len() as u64 > most {
        return Err(Error::Invalid {
            what: "the number of vCPUs",
            value: vm.vcpus().len().to_string(),
            why: format!("is more than a bare-metal program has stacks for: give at most {most}"),
        });
    }
    fill(vm.ram(), code, mapped)?;
    for (number, vcpu) in vm.vcpus().iter().enumerate() {
        set_registers(host, vcpu, number, arguments(number))
            .map_err(Error::kvm(format!("set the registers of vCPU {number}")))?;
    }
    Ok(())
}

/// Writes to RAM all that lies there before the program runs.
pub(crate) fn fill(ram: &Ram, code: &[u8], mapped: &[(u64, u64)]) -> Result<(), Error> {
    let write = |bytes: &[u8], at: u64| {
        ram.map().write_slice(bytes, GuestAddress(at)).map_err(|error| Error::Invalid {
            what: "guest memory of",
            value: format!("{} bytes", ram.len()),
            why: format!("is too small for the program: {error}"),
        })
    };
    write(code, CODE)?;
    write(&task_state(), TSS)?;
    let ranges = crate::layout::ram(ram.len()).into_iter().chain(mapped.iter().copied());
    let ranges: Vec<_> = ranges.map(|(start, len)| (start, start, len)).collect();
    write(&page_tables(&ranges)?, TABLES)
}

/// The task state segment, with all ports open.
pub fn task_state() -> Vec<u8> {
    let mut tss = vec![0; TSS_LIMIT as usize + 1];
    tss[0x66..0x68].copy_from_slice(&0x68u16.to_le_bytes());
    *tss.last_mut().expect("a long segment") = 0xff;
    tss
}

/// Page tables for [`TABLES`], on pages of 2 MiB, of ranges (virtual address, physical address, bytes).
///
/// # Errors
/// More to map than there is room for page tables.
pub fn page_tables(ranges: &[(u64, u64, u64)]) -> Result<Vec<u8>, Error> {
    let mut tables = Tables { next: TABLES + 0x1000, words: vec![0; 512] };
    for &(start, physical, len) in ranges {
        tables.map(start, physical, len)?;
    }
    Ok(tables.words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

struct Tables {
    next: u64,
    words: Vec<u64>,
}

impl Tables {
    fn map(&mut self, start: u64, physical: u64, len: u64) -> Result<(), Error> {
        let first = GuestAddress(start).mask(!(HUGE - 1));
        let mut at = first;
        while at < start + len {
            let mut table = TABLES;
            for shift in [39, 30] {
                table = self.below(table, at >> shift & 511)?;
            }
            let page = GuestAddress(physical).mask(!(HUGE - 1)) + (at - first);
            self.set(table, at >> 21 & 511, page | PRESENT_WRITE_USER | HUGE_PAGE);
            at += HUGE;
        }
        Ok(())
    }

    /// The table that an entry leads to, made where it is missing.
    fn below(&mut self, table: u64, index: u64) -> Result<u64, Error> {
        let entry = self.words[((table - TABLES) / 8 + index) as usize];
        if entry != 0 {
            return Ok(entry & !0xfff);
        }
        let new = self.next;
        if new >= TABLES_END {
            return Err(Error::Invalid {
                what: "memory to map for the program:",
                value: format!("more than {} GiB", (TABLES_END - TABLES) >> 12),
                why: "is more than there is room for page tables".into(),
            });
        }
        self.next += 0x1000;
        self.words.extend([0; 512]);
        self.set(table, index, new | PRESENT_WRITE_USER);
        Ok(new)
    }

    fn set(&mut self, table: u64, index: u64, entry: u64) {
        self.words[((table - TABLES) / 8 + index) as usize] = entry;
    }
}

fn set_registers(
    host: &Host,
    vcpu: &VcpuFd,
    number: usize,
    arguments: [u64; 6],
) -> Result<(), kvm_ioctls::Error> {
    vcpu.set_cpuid2(&host.cpuid)?;
    let mut sregs = vcpu.get_sregs()?;
    set_flat(&mut sregs, 0x33, 0x2b, 3);
    sregs.tr = kvm_segment {
        base: TSS,
        limit: TSS_LIMIT,
        selector: 0x40,
        type_: 0b1011,
        present: 1,
        ..kvm_segment::default()
    };
    (sregs.idt.limit, sregs.gdt.limit) = (0, 0);
    let xsave = host.cpuid.as_slice().iter().find(|leaf| leaf.function == 0xd && leaf.index == 0);
    let features = xsave.map_or(0, |leaf| leaf.eax & 0b111);
    sregs.cr0 = CR0;
    sregs.cr3 = TABLES;
    sregs.cr4 = CR4 | if features == 0 { 0 } else { CR4_OSXSAVE };
    sregs.efer = EFER;
    vcpu.set_sregs(&sregs)?;
    if features != 0 {
        let mut xcrs = kvm_xcrs { nr_xcrs: 1, ..kvm_xcrs::default() };
        xcrs.xcrs[0].value = u64::from(features);
        vcpu.set_xcrs(&xcrs)?;
    }
    set_msr(vcpu, WRITE_BACK)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = CODE;
    // As after a call: the stack's end is 8 less than a multiple of 16.
    regs.rsp = CODE - STACK * number as u64 - 8;
    regs.rflags = 2;
    [regs.rdi, regs.rsi, regs.rdx, regs.rcx, regs.r8, regs.r9] = arguments;
    vcpu.set_regs(&regs)
}
