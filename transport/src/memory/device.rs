//! The device behind a region's memory.

/// The device behind a region's memory: doorbells, and its removal. Ordinary memory has neither.
pub trait Device {
    /// Rings the doorbell of the endpoint in `slot` of `section`, if the device has doorbells.
    fn ring(&self, _section: u32, _slot: u32) {}

    /// Whether the device is gone: then every word of the region reads as zero.
    fn is_lost(&self) -> bool {
        false
    }
}

impl Device for () {}
