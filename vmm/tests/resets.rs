//! A guest that resets itself is started again, in the same VM.

mod common;

use common::{LIMIT, Place, kvm, machine, resets};
use vmshm_host::{CreateOptions, PageSize};
use vmshm_vmm::{Attachment, End, RamOptions, layout};

/// Where the first device's configuration space lies.
const CONFIG: u64 = layout::ECAM + (1 << 15);

#[test]
fn a_reset_keeps_the_section_and_puts_devices_memory_and_vcpus_back() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&CreateOptions::new(1 << 20));
    let region = place.region();
    let len = region.header().region_len;
    let bar = layout::place_64(&[len], host.address_bits(), 2 << 20).unwrap()[0];
    let own = region.entry(1).unwrap().offset;
    let ram = RamOptions::anywhere(2 << 20, PageSize::Base);
    let region = Attachment::Plain { region: Box::new(region), section: 1 };
    let machine = machine(&host, resets(), [CONFIG, bar + own, 0, 0, 0, 0], 2, ram, region).unwrap();
    let mut lives = 1;
    loop {
        match machine.running.wait(LIMIT) {
            Some(End::Reset) => machine.reset().unwrap(),
            end => break assert_eq!(end, Some(End::PowerOff)),
        }
        lives += 1;
        assert!(place.take(1).is_err(), "the section is the VM's all the time");
    }
    assert!(lives > 2 && place.word(own) >= 20, "{lives} lives, of which {} are noted", place.word(own));
    assert_eq!(place.word(own + 8), 0, "lives that found something of the one before");
}
