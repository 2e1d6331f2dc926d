//! Kernels of a few instructions, which run even where a KVM in software crawls.

use std::fs;
use std::path::PathBuf;

use super::Host;

/// Whether tests can run here; says so where not.
pub fn kvm() -> bool {
    let open = fs::File::options().read(true).write(true).open("/dev/kvm");
    open.inspect_err(|error| eprintln!("skipped: /dev/kvm cannot be opened: {error}")).is_ok()
}

/// Writes a file that is a kernel as far as the boot protocol goes; `code` is its 64-bit entry.
pub fn kernel(host: &Host, code: &[u8]) -> PathBuf {
    let mut image = vec![0; 1024 + 0x200];
    image[0x1f1] = 1;
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x20fu16.to_le_bytes());
    image[0x211] = 1;
    image[0x214..0x218].copy_from_slice(&0x10_0000u32.to_le_bytes());
    image[0x22c..0x230].copy_from_slice(&0x7fff_ffffu32.to_le_bytes());
    image[0x236] = 1;
    image[0x238..0x23c].copy_from_slice(&2047u32.to_le_bytes());
    image.extend(code);
    image.resize(4096, 0);
    let path = host.dir.path().join("kernel");
    fs::write(&path, image).unwrap();
    path
}

/// Writes an ELF file of one segment at 16 MiB, as a vmlinux has several; `code` is its entry.
pub fn vmlinux(host: &Host, code: &[u8]) -> PathBuf {
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    let start = 0x100_0000u64;
    // A program for x86-64 with one program header of 56 bytes behind this one of 64, and no sections.
    image.extend([2u16, 62, 1, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend([start, 64, 0].iter().flat_map(|word| word.to_le_bytes()));
    image.extend([0u16, 0, 64, 56, 1, 0, 0, 0].iter().flat_map(|word| word.to_le_bytes()));
    // It is to be loaded, from 4096 on, and has as much memory again.
    let len = code.len() as u64;
    image.extend([1u32, 5].iter().flat_map(|word| word.to_le_bytes()));
    image.extend([4096, 0, start, len, 2 * len, 4096].iter().flat_map(|word| word.to_le_bytes()));
    image.resize(4096, 0);
    image.extend(code);
    let path = host.dir.path().join("vmlinux");
    fs::write(&path, image).unwrap();
    path
}

/// mov dx, 0x3f8; mov al, C; out dx, al - for each; then mov dx, 0x600; mov al, 0x34; out dx, al; jmp here.
pub fn prints_and_switches_off(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    code.extend([0x66, 0xba, 0x00, 0x06, 0xb0, 0x34, 0xee, 0xeb, 0xfe]);
    code
}

/// The same, then for ever: hlt; jmp back.
pub fn prints_and_waits(text: &str) -> Vec<u8> {
    let mut code = vec![0x66, 0xba, 0xf8, 0x03];
    code.extend(text.bytes().flat_map(|byte| [0xb0, byte, 0xee]));
    code.extend([0xf4, 0xeb, 0xfd]);
    code
}

/// Prints a dot, then for ever what it reads from the serial port: mov dx, 0x3f8; mov al, '.'; out dx, al; again:
/// mov dl, 0xfd; in al, dx; test al, 1; jz again; mov dl, 0xf8; in al, dx; out dx, al; jmp again.
pub const ECHOES: [u8; 20] = [
    0x66, 0xba, 0xf8, 0x03, 0xb0, b'.', 0xee, 0xb2, 0xfd, 0xec, 0xa8, 0x01, 0x74, 0xf9, 0xb2, 0xf8, 0xec,
    0xee, 0xeb, 0xf3,
];
