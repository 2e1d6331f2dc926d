//! A VM with several nodes: the device of a region lies on a root bus of its own, from which kernels learn of its node.

mod common;

use common::{LIMIT, Place, asks, kvm, machine};
use vmshm_host::{CreateOptions, PageSize};
use vmshm_vmm::{Attachment, End, RamOptions, layout};

/// Configuration space of device 0 on the last bus, as the port for addresses takes it.
const LAST_BUS: u64 = 1 << 31 | (layout::BUSES as u64 - 1) << 16;

#[test]
fn a_region_is_found_on_the_root_bus_of_its_node() {
    let Some(host) = kvm() else { return };
    let Some(node) = vmshm_host::nodes().into_iter().find(|node| node.has_memory) else { return };
    let place = Place::new(&CreateOptions { nodes: vec![node.id], ..CreateOptions::new(1 << 20) });
    let region = place.region();
    let bar = layout::place_64(&[region.header().region_len], host.address_bits(), 4 << 20).unwrap()[0];
    let own = region.entry(1).unwrap().offset;
    // Two nodes of the guest, both from one of the host's.
    let nodes = [node.id, node.id];
    let ram = RamOptions { nodes: &nodes, ..RamOptions::anywhere(4 << 20, PageSize::Base) };
    let region = Attachment::Plain { region: Box::new(region), section: 1 };
    let machine = machine(&host, asks(), [LAST_BUS, bar + own, 0, 0, 0, 0], 2, ram, region).unwrap();
    assert_eq!(machine.running.wait(LIMIT), Some(End::PowerOff));
    assert_eq!(place.word(own), 0x1110_1af4, "the device");
    assert_eq!(place.word(own + 8), bar & 0xffff_ffff | 0xc, "its memory BAR's lower half");
}
