//! `vmshm serve`.

use std::io;
use std::os::fd::AsFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::PathBuf;

use anyhow::Context;
use vmshm_host::{DEFAULT_VECTORS, Registry, Server, ServerOptions};

use crate::{log, signals};

/// Options of `vmshm serve`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
QEMU connects to the socket NAME.K.sock with `-chardev socket` and `-device ivshmem-doorbell`; `vmshm qemu-args NAME \
--section K --doorbell` prints the arguments. The socket NAME.sock gives a VM any free section.

A server that ends leaves the VMs their memory. Started again it hands out the same region, and keeps the sections \
of VMs that still run.

Logs go to standard error; VMSHM_LOG=debug shows more.")]
pub struct Args {
    /// Name of the region, or the path of its file
    name: String,
    /// The socket for any free section; those for single sections lie beside it. Default: /run/vmshm/NAME.sock,
    /// or in the directory that the environment variable VMSHM_RUN_DIR names
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// Interrupt vectors of each VM, on which its processes can sleep; QEMU's device needs as many
    #[arg(long, default_value_t = DEFAULT_VECTORS, value_name = "N")]
    vectors: u32,
    /// Permissions of the sockets, octal: who may write to them may join
    #[arg(long, default_value = "660", value_parser = octal)]
    mode: u32,
    /// Group of the sockets. Default: vmshm, where there is such a group
    #[arg(long)]
    group: Option<String>,
}

fn octal(text: &str) -> Result<u32, String> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|&mode| mode <= 0o777)
        .ok_or_else(|| "give three octal digits, such as 660".into())
}

impl Args {
    /// Serves until SIGTERM or SIGINT.
    pub fn run(&self) -> anyhow::Result<()> {
        log::begin();

        // Blocked before the sockets exist, so that no signal leaves them behind.
        let stop = signals::descriptor()?;

        let region = Registry::from_env().open(&self.name)?;
        let options = ServerOptions {
            socket: self.socket.clone(),
            vectors: self.vectors,
            mode: self.mode,
            group: self.group.clone(),
        };
        let mut server = Server::new(region, &options)?;
        tracing::info!(socket = %server.socket().display(), vectors = self.vectors, "serving");
        notify_ready().context("cannot tell the service manager that the sockets are there")?;
        server.run(stop.as_fd())?;
        Ok(())
    }
}

/// Tells systemd, if it started us and waits for that (`Type=notify`), that VMs can connect now.
fn notify_ready() -> io::Result<()> {
    let Some(path) = std::env::var_os("NOTIFY_SOCKET") else { return Ok(()) };
    let address = match path.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(&path)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1", &address).map(|_| ())
}
