//! Passthrough: functions of this host's PCI devices as the guest's own, each below a root port.
//!
//! The guest reaches most of a function's registers without the VMM: what the kernel maps of its BARs becomes memory
//! slots. The header, the MSI-X table and its switch are the VMM's; all other configuration space goes to the kernel,
//! which checks stores to it. Interrupts go from the kernel to the guest by events, without this process.

mod device;
mod dma;
pub(crate) mod function;

use std::path::Path;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::error::Error;
pub use crate::host_device::{Address, Found, Refusal, bound, look, memlock};
use crate::interrupts::Interrupts;
use crate::layout;
use crate::pci::Function;
use crate::port::{Port, Room, WINDOW_UNIT, Window};
use crate::space::Space;
use device::Device;
use function::{Bar, Passed, Shape};

use dma::Dma;

/// Looks whether all devices can be had, before anything is made for them. `memory` bytes will be locked.
///
/// # Errors
/// A device that cannot be had, or too little memory that may be locked.
pub(crate) fn check(addresses: &[Address], memory: u64) -> Result<Vec<Found>, Refusal> {
    let found = addresses.iter().map(|address| look(Path::new("/"), address));
    let found = found.collect::<Result<Vec<_>, _>>()?;
    if !found.is_empty()
        && let Some(limit) = memlock().filter(|&limit| limit < memory)
    {
        return Err(Refusal::Memlock { wanted: memory, limit });
    }
    Ok(found)
}

/// Opens devices, lets them reach all memory of the guest, and puts each below a root port. The port of the first has
/// number `device` on the root bus.
///
/// # Errors
/// The kernel refuses, or the BARs find no room.
pub(crate) fn open(
    found: &[Found],
    space: &Arc<Space>,
    interrupts: &Arc<dyn Interrupts>,
    room: Room,
    device: usize,
) -> Result<Vec<Arc<Port>>, Error> {
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let dma = Dma::new(found, space.vfio()?)?;
    let opened = found.iter().map(|found| {
        let device = Device::open(found, &dma)?;
        let shape = Shape::read(&device, &found.address)?;
        Ok((device, shape))
    });
    let opened = opened.collect::<Result<Vec<_>, Refusal>>()?;
    space.allow_dma(Box::new(dma))?;

    // Windows whose length is a power of two, so that each BAR in them is aligned.
    let window = |wide: bool| {
        move |shape: &Shape| {
            let bytes: u64 = shape.bars.iter().filter(|bar| bar.wide == wide).map(Bar::room).sum();
            if bytes == 0 { 0 } else { bytes.next_power_of_two().max(WINDOW_UNIT) }
        }
    };
    let shapes = || opened.iter().map(|(_, shape)| shape);
    let low = place(shapes().map(window(false)).collect(), room[0], "32-bit BARs")?;
    let high = place(shapes().map(window(true)).collect(), room[1], "64-bit BARs")?;
    let mut ports = Vec::new();
    for (i, (((physical, shape), found), (low, high))) in
        opened.into_iter().zip(found).zip(low.into_iter().zip(high)).enumerate()
    {
        let mut places = Vec::new();
        for (wide, window) in [(false, low), (true, high)] {
            let bars: Vec<_> = shape.bars.iter().filter(|bar| bar.wide == wide).collect();
            let starts =
                place(bars.iter().map(|bar| bar.room()).collect(), window.unwrap_or((0, 0)), "BARs")?;
            places.extend(bars.iter().zip(starts).filter_map(|(bar, start)| Some((bar.index, start?.0))));
        }
        let mut memory = Vec::new();
        for &(bar, address) in &places {
            let parts = physical.memory(bar, &shape.trapped(bar), space)?;
            let told = Mutex::new(false);
            let name = found.address.clone();
            let place = move |address: Option<u64>| {
                if let Err(error) = parts.place(address)
                    && !std::mem::replace(&mut *told.lock(), true)
                {
                    tracing::warn!(device = %name, %error, "the guest moved BAR {bar} to where it cannot be");
                }
            };
            memory.push((bar, address, Box::new(place) as function::PlaceBar));
        }
        let pin = layout::line((device + i) as u32);
        let passed = Passed::new(Box::new(physical), &shape, memory, room, Arc::clone(interrupts), pin)?;
        tracing::info!(
            device = %found.address, id = found.id, node = found.node, "passed through below a root port"
        );
        ports.push(Arc::new(Port::new(1 + i as u8, low, high, Arc::new(passed) as Arc<dyn Function>)));
    }
    Ok(ports)
}

/// Gives each length that is not 0 its place.
fn place(lens: Vec<u64>, room: Window, what: &'static str) -> Result<Vec<Option<Window>>, Error> {
    let starts = layout::stack(&lens, room.0, room.1).ok_or_else(|| Error::Invalid {
        what,
        value: format!("of {:#x} bytes", lens.iter().sum::<u64>()),
        why: format!("do not fit into {:#x} bytes of addresses: pass fewer devices through", room.1),
    })?;
    Ok(lens.into_iter().zip(starts).map(|(len, start)| (len > 0).then_some((start, len))).collect())
}
