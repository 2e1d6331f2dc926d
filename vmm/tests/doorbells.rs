//! Two bare-metal guests with doorbell devices at one server: each rings the other.

mod common;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;

use common::{LIMIT, Place, kvm, machine, rings};
use nix::sys::eventfd::EventFd;
use vmshm_host::{CreateOptions, PageSize, Server, ServerOptions, section_socket};
use vmshm_vmm::{Attachment, End, Error, Host, Machine, RamOptions, layout};

const VECTORS: u32 = 2;
/// Where the first device's parts lie.
const CONFIG: u64 = layout::ECAM + (1 << 15);
const REGISTERS: u64 = layout::BARS_32;
const TABLE: u64 = layout::BARS_32 + 0x1_0000;

fn start(
    host: &Host,
    place: &Place,
    socket: &Path,
    section: u32,
    peer: u32,
    waits: bool,
) -> Result<Machine, Error> {
    let region = place.region();
    let len = region.header().region_len;
    let bar = layout::place_64(&[len], host.address_bits(), 2 << 20).unwrap()[0];
    let own = bar + region.entry(section).unwrap().offset;
    let arguments = [CONFIG, REGISTERS, TABLE, u64::from(peer) << 16, own, u64::from(waits)];
    let region = Attachment::Doorbell { socket: section_socket(socket, section), vectors: VECTORS };
    machine(host, rings(), arguments, 1, RamOptions::anywhere(2 << 20, PageSize::Base), region)
}

#[test]
fn doorbells_ring_both_ways_and_a_section_has_one_vm() {
    let Some(host) = kvm() else { return };
    let place = Place::new(&CreateOptions::new(1 << 20));
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("job.sock");
    match start(&host, &place, &socket, 0, 1, false) {
        Err(Error::NoServer { .. }) => {}
        other => panic!("{other:?}"),
    }

    let options =
        ServerOptions { socket: Some(socket.clone()), vectors: VECTORS, ..ServerOptions::default() };
    let mut server = Server::new(place.region(), &options).unwrap();
    let stop = EventFd::new().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| server.run(stop.as_fd()).unwrap());
        let guests = || {
            let waits = start(&host, &place, &socket, 1, 0, true).unwrap();
            match start(&host, &place, &socket, 1, 0, true) {
                Err(Error::TurnedAway { .. }) => {}
                other => panic!("{other:?}"),
            }
            let rings = start(&host, &place, &socket, 0, 1, false).unwrap();
            for (section, guest) in [(0, rings), (1, waits)] {
                assert_eq!(guest.running.wait(LIMIT), Some(End::PowerOff), "section {section}");
                let own = place.region().entry(section).unwrap().offset;
                assert_eq!((place.word(own), place.word(own + 8)), (2, u64::from(section)));
            }
        };
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(guests));
        stop.write(1).unwrap();
        // A server that ends leaves nobody waiting.
        drop(UnixStream::connect(&socket));
        result.unwrap();
    });
}
