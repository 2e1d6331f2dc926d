//! Starting a Linux kernel (bzImage, or the ELF file `vmlinux`) by its 64-bit boot protocol, without firmware.

use std::fs::File;
use std::io::{self, Seek};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use kvm_ioctls::{Cap, VcpuFd};
use linux_loader::bootparam::{boot_e820_entry, boot_params, setup_header};
use linux_loader::loader::elf::{self, Elf};
use linux_loader::loader::{self, BzImage, KernelLoader};
use uuid::Uuid;
use vm_memory::{Bytes, GuestAddress};

use crate::error::Error;
use crate::host::Host;
use crate::long_mode::{CR0, WRITE_BACK, set_flat, set_msr};
use crate::memory::Ram;
use crate::numa::Numa;
use crate::port::RootBus;
use crate::vm::Vm;
use crate::{acpi, cpuid, layout, power, smbios};

const GDT: u64 = 0x1000;
const BOOT_PARAMS: u64 = 0x7000;
const PAGE_TABLES: u64 = 0x9000;
const COMMAND_LINE: u64 = 0x2_0000;
/// Kernels take at most so many bytes of command line, with the zero at its end.
const COMMAND_LINE_MOST: usize = 2048;
/// RAM below 1 MiB that a kernel may use.
const LOW_RAM: u64 = 0x9_fc00;
/// From the start of a bzImage's 64-bit kernel to where it is entered.
const ENTRY: u64 = 0x200;

const E820_RAM: u32 = 1;
const E820_RESERVED: u32 = 2;
/// The setup header says that there is a 64-bit entry.
const XLF_KERNEL_64: u16 = 1;
/// Beginnings of an ELF file, and of one with a 64-bit program that is not moved, for x86-64, from its byte 16 on.
const ELF: &[u8] = b"\x7fELF";
const ELF_64: &[u8] = b"\x7fELF\x02\x01\x01";
const ELF_PROGRAM: &[u8] = &[2, 0, 62, 0];
/// A boot loader without a number of its own.
const LOADER_UNKNOWN: u8 = 0xff;

const CR4_PAE: u64 = 1 << 5;
const EFER: u64 = 1 << 8 | 1 << 10;
const MSR_MISC_ENABLE: u32 = 0x1a0;
const FAST_STRINGS: u64 = 1;
/// KVM shows MONITOR and MWAIT only where this is set.
const ENABLE_MONITOR: u64 = 1 << 18;

/// Kernel, initial file system and command line.
#[derive(Debug, Clone, Copy)]
pub struct Linux<'a> {
    /// The kernel, a bzImage or `vmlinux`.
    pub kernel: &'a Path,
    /// The initial file system.
    pub initrd: Option<&'a Path>,
    /// The kernel's command line.
    pub command_line: &'a str,
}

/// Contents of the RAM before a kernel runs. The files stay open, so that a reset finds the same ones.
#[derive(Debug)]
pub(crate) struct Image {
    kernel: Opened,
    initrd: Option<Opened>,
    command_line: String,
    uuid: Uuid,
    /// ACPI tables by address.
    tables: Vec<(u64, Vec<u8>)>,
}

#[derive(Debug)]
struct Opened {
    path: PathBuf,
    file: File,
    len: u64,
}

impl Opened {
    fn new(what: &'static str, path: &Path) -> Result<Self, Error> {
        let doing = || format!("open {what} {}", path.display());
        let file = File::open(path).map_err(Error::io(doing()))?;
        let meta = file.metadata().map_err(Error::io(doing()))?;
        if !meta.is_file() || meta.len() == 0 {
            return Err(Error::Invalid {
                what,
                value: path.display().to_string(),
                why: format!("is {}: give a file", if meta.is_file() { "empty" } else { "no regular file" }),
            });
        }
        Ok(Self { path: path.to_owned(), file, len: meta.len() })
    }

    /// The file, to be read from its beginning.
    fn rewound(&self) -> io::Result<&File> {
        (&self.file).rewind().map(|()| &self.file)
    }
}

/// Loads a kernel with all it needs to find the machine, and lets vCPU 0 begin there. The guest sees `uuid` as its own.
///
/// # Errors
/// A file that cannot be read or is no 64-bit kernel, RAM too small for it, or KVM refuses.
pub(crate) fn load(
    host: &Host,
    vm: &Vm,
    linux: &Linux<'_>,
    uuid: Uuid,
    roots: &[RootBus],
) -> Result<Image, Error> {
    let processors = vm.topology();
    let vcpus = processors.len();
    if processors.ids().iter().any(|&id| id > acpi::LAST_ID) {
        return Err(Error::Invalid {
            what: "the number of vCPUs",
            value: vcpus.to_string(),
            why: format!(
                "needs APIC ids beyond {}, the last that this VMM's tables hold, since the ids tell cores, caches and \
                 packages apart: give fewer",
                acpi::LAST_ID
            ),
        });
    }
    let numa = Numa::new(vm.ram(), vcpus);
    let caches = cpuid::caches(&host.cpuid);
    let bars_64 = layout::bars_64(host.address_bits());
    let image = Image {
        kernel: Opened::new("the kernel", linux.kernel)?,
        initrd: linux.initrd.map(|path| Opened::new("the initial file system", path)).transpose()?,
        command_line: linux.command_line.to_owned(),
        uuid,
        tables: acpi::tables(&acpi::Platform {
            processors,
            caches: &caches,
            numa: numa.as_ref(),
            bars_64,
            roots,
        }),
    };
    let kernel = image.fill(vm.ram())?;
    let extras = cpuid::Extras {
        tsc_deadline: host.kvm.check_extension(Cap::TscDeadlineTimer),
        own_cpu: vm.is_quiet(),
        mwait: vm.mwait_stays(),
    };
    for (number, vcpu) in vm.vcpus().iter().enumerate() {
        let cpuid = cpuid::of(&host.cpuid, processors, number, extras);
        let doing = || format!("set the registers of vCPU {number}");
        vcpu.set_cpuid2(&cpuid).map_err(Error::kvm(doing()))?;
        set_msrs(vcpu, extras.mwait).map_err(Error::kvm(doing()))?;
        if number == 0 {
            enter(vcpu, kernel).map_err(Error::kvm(doing()))?;
        }
    }
    Ok(image)
}

impl Image {
    /// Writes all of it to RAM. Returns where the kernel is entered.
    pub(crate) fn fill(&self, ram: &Ram) -> Result<u64, Error> {
        let kernel = load_kernel(ram, self)?;
        for (at, table) in &self.tables {
            write(ram, table, *at)?;
        }
        write(ram, &smbios::tables(self.uuid), smbios::START)?;
        write(ram, &power::FIRMWARE, power::FIRMWARE_START)?;

        // Page tables for the first 4 GiB, one to one, on pages of 2 MiB; the kernel makes its own soon.
        let mut tables = vec![0u64; 512 * 6];
        tables[0] = (PAGE_TABLES + 0x1000) | 3;
        for i in 0..4 {
            tables[512 + i] = (PAGE_TABLES + 0x2000 + 0x1000 * i as u64) | 3;
        }
        for i in 0..2048 {
            tables[1024 + i] = ((i as u64) << 21) | 0x83;
        }
        write(ram, &words(&tables), PAGE_TABLES)?;
        // Null, none, code and data as the boot protocol numbers them.
        write(ram, &words(&[0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff]), GDT)?;
        Ok(kernel)
    }
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn write(ram: &Ram, bytes: &[u8], at: u64) -> Result<(), Error> {
    ram.map().write_slice(bytes, GuestAddress(at)).map_err(|error| too_small(ram, &error))
}

fn too_small(ram: &Ram, error: &dyn std::fmt::Display) -> Error {
    Error::Invalid {
        what: "memory of",
        value: format!("{} MiB", ram.len() >> 20),
        why: format!("is too small for this kernel ({error}): give at least 256 MiB"),
    }
}

/// Loads the kernel, its initial file system and its parameters. Returns where the kernel is entered.
fn load_kernel(memory: &Ram, image: &Image) -> Result<u64, Error> {
    let path = image.kernel.path.display();
    let wrong = |why: &str| Error::Invalid {
        what: "the kernel",
        value: path.to_string(),
        why: format!("{why}: give a bzImage for x86-64, such as /boot/vmlinuz-..., or its vmlinux"),
    };
    let mut file = image.kernel.rewound().map_err(Error::io(format!("read the kernel {path}")))?;
    if let Some(kind) = other_kind(file) {
        return Err(wrong(&format!("is {kind}")));
    }
    let len = image.kernel.len;
    let is_elf = begins(file, 0, ELF);
    // Of a bzImage all is loaded, of an ELF file what its program headers say.
    if !is_elf && layout::HIGH_RAM + len > memory.len() {
        return Err(too_small(memory, &format!("it has {len} bytes")));
    }
    let (ram, first) = (memory.map(), Some(GuestAddress(layout::HIGH_RAM)));
    let loaded = match is_elf {
        true => Elf::load(ram, None, &mut file, first),
        false => BzImage::load(ram, None, &mut file, first),
    };
    let loaded = loaded.map_err(|error| match error {
        loader::Error::Elf(elf::Error::ReadKernelImage) => too_small(memory, &error),
        _ => {
            tracing::debug!(%error, "the loader gives up");
            wrong("is no kernel with Linux's boot protocol")
        }
    })?;
    if loaded.kernel_end > memory.len().min(layout::LOW_RAM_END) {
        return Err(too_small(memory, &format!("it ends at {:#x}", loaded.kernel_end)));
    }
    let entry = loaded.kernel_load.0 + if is_elf { 0 } else { ENTRY };
    if !(layout::HIGH_RAM..loaded.kernel_end).contains(&entry) {
        return Err(wrong("is no Linux kernel: its entry lies outside of it"));
    }
    let header = if is_elf { Some(elf_header()) } else { loaded.setup_header };
    let mut header = header.ok_or_else(|| wrong("has no setup header"))?;
    if header.xloadflags & XLF_KERNEL_64 == 0 {
        return Err(wrong("has no 64-bit entry"));
    }
    let (version, limit) = (header.version, header.cmdline_size);
    if version < 0x206 || image.command_line.len() >= COMMAND_LINE_MOST.min(limit as usize) {
        return Err(Error::Invalid {
            what: "the command line",
            value: format!("of {} bytes", image.command_line.len()),
            why: format!("is too long: this kernel takes {limit}, this VMM {}", COMMAND_LINE_MOST - 1),
        });
    }
    let mut line = image.command_line.as_bytes().to_vec();
    line.push(0);
    write(memory, &line, COMMAND_LINE)?;
    header.type_of_loader = LOADER_UNKNOWN;
    header.cmd_line_ptr = COMMAND_LINE as u32;
    if let Some(initrd) = &image.initrd {
        // The kernel unpacks itself at its preferred address and needs so much room there.
        let (preferred, room) = (header.pref_address, u64::from(header.init_size));
        let below = loaded.kernel_end.max(preferred.saturating_add(room));
        let (at, len) = load_initrd(memory, initrd, below, u64::from(header.initrd_addr_max))?;
        (header.ramdisk_image, header.ramdisk_size) = (at, len);
    }

    let mut params = boot_params { hdr: header, ..boot_params::default() };
    for (i, (start, end, kind)) in memory_map(memory.len()).into_iter().enumerate() {
        params.e820_table[i] = boot_e820_entry { addr: start, size: end - start, r#type: kind };
        params.e820_entries = i as u8 + 1;
    }
    ram.write_obj(params, GuestAddress(BOOT_PARAMS)).map_err(|error| too_small(memory, &error))?;
    Ok(entry)
}

/// The setup header of a kernel without one: what the first part of a bzImage would say.
fn elf_header() -> setup_header {
    setup_header {
        boot_flag: 0xaa55,
        header: u32::from_le_bytes(*b"HdrS"),
        version: 0x20f,
        xloadflags: XLF_KERNEL_64,
        cmdline_size: COMMAND_LINE_MOST as u32 - 1,
        initrd_addr_max: 0x7fff_ffff,
        kernel_alignment: 1 << 24,
        ..setup_header::default()
    }
}

/// Whether a file has these bytes there.
fn begins(file: &File, at: u64, bytes: &[u8]) -> bool {
    let mut found = vec![0; bytes.len()];
    file.read_exact_at(&mut found, at).is_ok() && found == bytes
}

/// Kind of a file that people take for a kernel, as its first bytes tell; none where it may be a kernel.
fn other_kind(file: &File) -> Option<&'static str> {
    if begins(file, 0, ELF) && !(begins(file, 0, ELF_64) && begins(file, 16, ELF_PROGRAM)) {
        return Some("an ELF file, but not of a kernel for x86-64");
    }
    let kinds: [(u64, &[u8], &str); 5] = [
        (0, b"\x1f\x8b", "compressed by gzip, or a kernel for another processor"),
        (0, b"\xfd7zXZ", "compressed by xz"),
        (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
        (0x38, b"ARM\x64", "a kernel for 64-bit ARM"),
        (0, b"070701", "an initial file system"),
    ];
    kinds.into_iter().find(|(at, magic, _)| begins(file, *at, magic)).map(|(_, _, kind)| kind)
}

/// Loads the initial file system as high as the kernel can reach. Returns its address and length.
fn load_initrd(ram: &Ram, initrd: &Opened, below: u64, most: u64) -> Result<(u32, u32), Error> {
    let doing = || format!("load the initial file system {}", initrd.path.display());
    let mut file = initrd.rewound().map_err(Error::io(doing()))?;
    let len = initrd.len;
    let end = ram.len().min(layout::LOW_RAM_END).min(most.saturating_add(1)) & !0xfff;
    let start = end.checked_sub(len).map(|start| start & !0xfff).filter(|&start| start >= below);
    let Some(start) = start.filter(|_| len > 0) else {
        return Err(Error::Invalid {
            what: "the initial file system",
            value: initrd.path.display().to_string(),
            why: format!("has {len} bytes, which do not fit behind the kernel: give the VM more memory"),
        });
    };
    ram.map()
        .read_exact_volatile_from(GuestAddress(start), &mut file, len as usize)
        .map_err(|error| Error::io(doing())(io::Error::other(error)))?;
    Ok((start as u32, len as u32))
}

/// Memory as a kernel is told of it: start, end and kind.
fn memory_map(ram: u64) -> Vec<(u64, u64, u32)> {
    let ecam = (layout::ECAM, layout::ECAM + (u64::from(layout::BUSES) << 20));
    let mut map = vec![(0, LOW_RAM, E820_RAM), (LOW_RAM, layout::HIGH_RAM, E820_RESERVED)];
    for (start, len) in layout::ram(ram) {
        map.push((start.max(layout::HIGH_RAM), start + len, E820_RAM));
    }
    map.insert(3, (ecam.0, ecam.1, E820_RESERVED));
    map
}

fn set_msrs(vcpu: &VcpuFd, mwait: bool) -> Result<(), kvm_ioctls::Error> {
    let misc = FAST_STRINGS | if mwait { ENABLE_MONITOR } else { 0 };
    [WRITE_BACK, (MSR_MISC_ENABLE, misc)].into_iter().try_for_each(|msr| set_msr(vcpu, msr))
}

/// Long mode at privilege level 0, interrupts off, the parameters' address in rsi: as the boot protocol wants it.
fn enter(vcpu: &VcpuFd, rip: u64) -> Result<(), kvm_ioctls::Error> {
    let mut sregs = vcpu.get_sregs()?;
    set_flat(&mut sregs, 0x10, 0x18, 0);
    (sregs.gdt.base, sregs.gdt.limit) = (GDT, 31);
    (sregs.idt.base, sregs.idt.limit) = (0, 0);
    sregs.cr0 = CR0;
    sregs.cr3 = PAGE_TABLES;
    sregs.cr4 = CR4_PAE;
    sregs.efer = EFER;
    vcpu.set_sregs(&sregs)?;
    let mut regs = vcpu.get_regs()?;
    regs.rip = rip;
    regs.rsi = BOOT_PARAMS;
    regs.rflags = 2;
    vcpu.set_regs(&regs)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_memory_map_has_no_overlap_and_names_all_ram() {
        for len in [256 << 20, 3 << 30, 64 << 30] {
            let map = memory_map(len);
            for pair in map.windows(2) {
                assert!(pair[0].1 <= pair[1].0, "{map:x?}");
            }
            let ram: u64 = map.iter().filter(|e| e.2 == E820_RAM).map(|e| e.1 - e.0).sum();
            assert_eq!(ram, len - (layout::HIGH_RAM - LOW_RAM));
        }
    }
}
