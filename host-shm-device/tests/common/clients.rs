//! Clients that do anything to a server, as bytes say: libFuzzer calls this (`fuzz/`), and a test does with its finds.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use vmshm_host::section_socket;

use super::common::{Client, Host, receive};

const SECTIONS: u8 = 3;
const VECTORS: u32 = 2;
/// Most steps of one run.
const STEPS: usize = 24;

/// Panics where the server does not give a section to an honest client afterwards.
pub fn clients(data: &[u8]) {
    let host = Host::new();
    host.create("r", SECTIONS.into());
    let server = host.serve("r", VECTORS);
    let mut open: Vec<UnixStream> = Vec::new();
    let mut bells = Vec::new();
    for step in data.chunks_exact(2).take(STEPS) {
        let (what, which) = (step[0], step[1]);
        if what % 8 < 2 {
            let door = (which % 4).checked_sub(1).map(u32::from);
            let path = door.map_or_else(|| host.socket(), |door| section_socket(&host.socket(), door));
            let socket = UnixStream::connect(path).expect("a server listens");
            socket.set_nonblocking(true).expect("a socket");
            open.push(socket);
            continue;
        }
        let Some(i) = usize::from(which).checked_rem(open.len()) else { continue };
        let mut socket = &open[i];
        match what % 8 {
            2 => drop(socket.write(&data[..data.len().min(usize::from(what))])),
            3 => drop(
                socket.shutdown([Shutdown::Read, Shutdown::Write, Shutdown::Both][usize::from(what / 8 % 3)]),
            ),
            4 => drop(open.remove(i)),
            // Takes descriptors in, or leaves them where they are.
            5 => {
                while let Ok((_, fd)) = receive(socket) {
                    bells.extend(fd);
                }
            }
            6 => drop(socket.read(&mut [0; 13])),
            // A doorbell that is full, and on which whoever writes waits.
            _ => {
                if let Some(j) = usize::from(what / 8).checked_rem(bells.len()) {
                    let mut bell = &bells[j];
                    let _ = bell.write(&(u64::MAX - 1).to_ne_bytes());
                    let _ = fcntl(bell, FcntlArg::F_SETFL(OFlag::empty()));
                }
            }
        }
    }
    drop(open);
    // The server may not have noticed yet that they left.
    let client = (0..200).find_map(|_| {
        let joined = Client::join(&host.socket(), VECTORS as usize).ok();
        if joined.is_none() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        joined
    });
    assert!(client.expect("all sections are free").id >= 0);
    drop(server);
}
