//! The ivshmem PCI device and its server's protocol, as in QEMU's `docs/specs/ivshmem-spec.rst`.

/// PCI vendor.
pub const VENDOR: u16 = 0x1af4;
/// PCI device.
pub const DEVICE: u16 = 0x1110;

/// BAR with the registers.
pub const REGISTERS_BAR: u32 = 0;
/// BAR with the shared memory.
pub const MEMORY_BAR: u32 = 2;

/// Bytes of the register BAR.
pub const REGISTERS_LEN: u64 = 256;
/// Register: interrupt mask (unused with MSI-X).
pub const REG_INTR_MASK: u64 = 0;
/// Register: interrupt status (unused with MSI-X).
pub const REG_INTR_STATUS: u64 = 4;
/// Register: the id that the server gave this device; a device without server reads as 0 there.
pub const REG_IV_POSITION: u64 = 8;
/// Register: writing `peer << 16 | vector` rings that peer.
pub const REG_DOORBELL: u64 = 12;

/// Version of the server's protocol: the first message, a little-endian `i64` as all.
pub const PROTOCOL_VERSION: i64 = 0;
/// The message that carries the shared memory's file descriptor.
pub const MSG_SHARED_MEMORY: i64 = -1;
