//! Firmware of a few instructions, by which QEMU's `microvm` gets a vCPU to where our own VMM lets it begin: the bare-metal
//! program, at privilege level 3, in the same page tables.
//!
//! Only what cannot be prepared in the RAM from outside is done here.

use std::arch::global_asm;

use vmshm_vmm::bare;

/// Bytes of the image, which QEMU shows to the guest right below 4 GiB.
const LEN: usize = 64 << 10;
const START: u64 = (1 << 32) - LEN as u64;
/// Where the ivshmem function's BAR 2 comes to lie: in the lower one of the `microvm`'s windows.
pub const BAR: u64 = 0xc000_0000;
/// The function's configuration space: device 1, in the `microvm`'s ECAM.
const FUNCTION: u64 = 0xe000_0000 + (1 << 15);
/// Where the descriptor table lies in the RAM.
pub const GDT: u64 = 0x2000;
const STACK_END: u64 = 0x7000;

/// 32-bit code, data, 64-bit code, nothing, data and 64-bit code of level 3, nothing, task state.
pub fn descriptors() -> Vec<u8> {
    let limit = u64::from(bare::TSS_LIMIT);
    let task = limit & 0xffff | bare::TSS << 16 | 0x89 << 40 | (limit >> 16) << 48;
    let code = 0x00af_9b00_0000_ffff;
    let table: [u64; 10] = [
        0,
        0x00cf_9b00_0000_ffff,
        0x00cf_9300_0000_ffff,
        code,
        0,
        0x00cf_f300_0000_ffff,
        code | 0x60 << 40,
        0,
        task,
        0,
    ];
    table.iter().flat_map(|word| word.to_le_bytes()).collect()
}

/// The range of addresses that must be mapped one to one while the firmware runs.
pub const MAPPED: (u64, u64) = (START, LEN as u64);

// Each instruction at privilege level 0 may be emulated, so there are few. RAM holds the page tables, the descriptors, the
// task state and the program already. AVX is switched on where it is there, as `bare::load` does, since the transport
// copies with it.
global_asm!(
    ".section .rodata.vmshm_firmware, \"a\"",
    "vmshm_firmware:",
    ".code16",
    "cli",
    "lgdtl %cs:(5f - vmshm_firmware)",
    "movl %cr0, %eax",
    "orl $1, %eax",
    "movl %eax, %cr0",
    "ljmpl $0x08, $({start} + (6f - vmshm_firmware))",
    "5: .word 79",
    ".long {gdt}",
    ".code32",
    "6: movl $0x10, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %ss",
    "movl ${function}, %ebx",
    "movl ${bar}, 0x18(%ebx)",
    "movl $0, 0x1c(%ebx)",
    "movw $2, 4(%ebx)",
    // As `bare::load`: MTRRs write back, PAE, SSE, XSAVE where it is there, long mode.
    "movl $0x2ff, %ecx",
    "movl $0x806, %eax",
    "xorl %edx, %edx",
    "wrmsr",
    "movl $0x620, %edi",
    "movl $1, %eax",
    "cpuid",
    "btl $26, %ecx",
    "jnc 7f",
    "orl $0x40000, %edi",
    "7: movl %edi, %cr4",
    "movl ${tables}, %eax",
    "movl %eax, %cr3",
    "movl $0xc0000080, %ecx",
    "movl $0x900, %eax",
    "xorl %edx, %edx",
    "wrmsr",
    "movl $0x80050033, %eax",
    "movl %eax, %cr0",
    "ljmpl $0x18, $({start} + (8f - vmshm_firmware))",
    ".code64",
    "8: btl $18, %edi",
    "jnc 9f",
    "movl $0xd, %eax",
    "xorl %ecx, %ecx",
    "cpuid",
    "andl $7, %eax",
    "xorl %edx, %edx",
    "xorl %ecx, %ecx",
    "xsetbv",
    "9: movl ${stack}, %esp",
    "movl $0x40, %eax",
    "ltr %ax",
    "movl $0x2b, %eax",
    "movl %eax, %ds",
    "movl %eax, %es",
    "movl %eax, %fs",
    "movl %eax, %gs",
    "pushq $0x2b",
    "pushq ${top}",
    "pushq $2",
    "pushq $0x33",
    "pushq ${code}",
    "iretq",
    "vmshm_firmware_end:",
    ".text",
    start = const START,
    gdt = const GDT,
    function = const FUNCTION,
    bar = const BAR,
    tables = const bare::TABLES,
    stack = const STACK_END,
    top = const bare::CODE - 8,
    code = const bare::CODE,
    options(att_syntax),
);

unsafe extern "C" {
    #[link_name = "vmshm_firmware"]
    static FIRST: u8;
    #[link_name = "vmshm_firmware_end"]
    static END: u8;
}

/// The image, for QEMU's `-bios`.
pub fn image() -> Vec<u8> {
    let (first, end) = (&raw const FIRST, &raw const END);
    // SAFETY: the assembler put the instructions between these two, and nothing writes there.
    let code = unsafe { std::slice::from_raw_parts(first, end.addr() - first.addr()) };
    let mut image = vec![0; LEN];
    image[..code.len()].copy_from_slice(code);
    // The processor begins 16 bytes below 4 GiB: jmp to the first byte of the image.
    image[LEN - 16..LEN - 13].copy_from_slice(&[0xe9, 0x0d, 0x00]);
    image
}
