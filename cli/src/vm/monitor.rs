//! The monitor of a running VM, which tells its user and root of it on an abstract unix socket: no file, no directory that
//! must be writable, and nothing left behind by a VMM that is killed.

use std::io::{self, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::time::Duration;

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use vmshm_vmm::{Counts, Machine, thread};

/// For the answer of a VMM, which comes at once unless the VMM is stopped.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answer.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Answer {
    /// Its regions and sections, as on the command line.
    pub regions: Vec<String>,
    /// Counts of KVM so far.
    pub counts: Counts,
}

fn address(pid: u32) -> io::Result<SocketAddr> {
    SocketAddr::from_abstract_name(format!("vmshm-vm-{pid}"))
}

/// Lets others ask, who wait until there is a machine.
pub fn listen() -> io::Result<UnixListener> {
    UnixListener::bind_addr(&address(std::process::id())?)
}

/// Answers, in a thread that ends with the process.
pub fn serve(listener: UnixListener, machine: &Machine, regions: Vec<String>) -> io::Result<()> {
    let (counters, own) = (machine.running.counters(), geteuid());
    thread::spawn(thread::Kind::Monitor, "monitor", move || {
        loop {
            let Ok((mut client, _)) = listener.accept() else {
                // Out of descriptors, most likely.
                std::thread::sleep(PATIENCE);
                continue;
            };
            let user = getsockopt(&client, PeerCredentials).map(|credentials| credentials.uid());
            if user.is_ok_and(|user| user == own.as_raw() || user == 0) {
                let answer = Answer { regions: regions.clone(), counts: counters.read() };
                let text = serde_json::to_vec(&answer).expect("maps of text and numbers");
                let _ = client.write_all(&text);
            }
        }
    })?;
    Ok(())
}

/// Asks the VM of a process; `None` where that is none, or ended, or belongs to another user.
pub fn ask(pid: u32) -> Option<Answer> {
    let mut server = UnixStream::connect_addr(&address(pid).ok()?).ok()?;
    // Anybody can have taken the name.
    if getsockopt(&server, PeerCredentials).ok()?.pid() != i32::try_from(pid).ok()? {
        return None;
    }
    server.set_read_timeout(Some(PATIENCE)).ok()?;
    let mut text = Vec::new();
    server.read_to_end(&mut text).ok()?;
    serde_json::from_slice(&text).ok()
}
