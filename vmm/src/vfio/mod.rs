//! Passthrough: functions of this host's PCI devices as the guest's own, each below a root port.
//!
//! The guest reaches most of a function's registers without the VMM: what the kernel maps of its BARs becomes memory
//! slots. The header, the MSI-X table and its switch are the VMM's; all other configuration space goes to the kernel,
//! which checks stores to it. Interrupts go from the kernel to the guest by events, without this process.

mod device;
mod dma;
pub(crate) mod function;
mod plan;
mod shape;

use std::path::Path;
use std::sync::Arc;

use crate::error::Error;
pub use crate::host_device::{Address, Found, Refusal, bound, look, memlock};
use crate::interrupts::Interrupts;
use crate::numa::virtual_node;
use crate::port::{Port, Room, RootBus};
use crate::space::Space;
use crate::{layout, pci};
use device::Device;
use function::Passed;
use plan::plan;
use shape::Shape;

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

/// Opened devices: ports with their root bus, in order, and root buses besides bus 0.
pub(crate) type Opened = (Vec<(u8, Arc<Port>)>, Vec<RootBus>);

/// Opens devices, lets them reach all memory of the guest, and puts each below a root port. The first port on bus 0 is
/// device number `device` there; bus numbers end before `buses`. `nodes` are those of the host that are the guest's, if it
/// has several.
///
/// # Errors
/// The kernel refuses, or the BARs find no room.
pub(crate) fn open(
    found: &[Found],
    nodes: &[u32],
    space: &Arc<Space>,
    interrupts: &Arc<dyn Interrupts>,
    room: Room,
    device: usize,
    buses: u8,
) -> Result<Opened, Error> {
    if found.is_empty() {
        return Ok(Opened::default());
    }
    let dma = Dma::new(found, space.vfio()?)?;
    let opened = found.iter().map(|found| {
        let device = Device::open(found, &dma)?;
        let shape = Shape::read(&device, &found.address)?;
        Ok((device, shape))
    });
    let opened = opened.collect::<Result<Vec<_>, Refusal>>()?;
    space.allow_dma(Box::new(dma))?;

    let functions = found.iter().zip(&opened);
    let functions =
        functions.map(|(found, (_, shape))| (virtual_node(nodes, found.node), shape.bars.clone()));
    let (places, roots) = plan(&functions.collect::<Vec<_>>(), room, device, buses)?;
    let mut ports = Vec::new();
    for (((physical, shape), found), place) in opened.into_iter().zip(found).zip(places) {
        let mut memory = Vec::new();
        for &(bar, address) in &place.bars {
            let parts = physical.memory(bar, &shape.trapped(bar), space)?;
            let what = format!("BAR {bar} of {}", found.address);
            memory.push((bar, address, pci::follow(what, move |address| parts.place(address))));
        }
        let pin = layout::line(place.port.1 as u32);
        let passed = Passed::new(Box::new(physical), &shape, memory, room, Arc::clone(interrupts), pin)?;
        tracing::info!(
            device = %found.address, id = found.id, node = found.node, "passed through below a root port"
        );
        let [low, high] = place.windows;
        ports.push((place.port.0, Arc::new(Port::new(place.bus, low, high, Arc::new(passed)))));
    }
    // As they are numbered on their buses.
    ports.sort_by_key(|(bus, _)| *bus);
    Ok((ports, roots))
}
