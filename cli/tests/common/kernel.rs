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
