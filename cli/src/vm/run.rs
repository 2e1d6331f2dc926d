//! `vmshm vm run`.

use std::io::{IsTerminal, Write};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use uuid::Uuid;
use vmshm_host::{DEFAULT_VECTORS, PageSize, Region, Registry, format_bytes, nodes, section_socket, socket};
use vmshm_vmm::boot::Linux;
use vmshm_vmm::place::{self, Placement};
use vmshm_vmm::{
    Attachment, Disk, End, Error, Guest, Host, Hvc, Machine, Net, Plan, RamOptions, layout, thread, vfio,
};

use super::monitor;
use super::stop;
use super::terminal::{self, Raw};
use crate::{log, signals, size};

/// Options of `vmshm vm run`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Example:
  vmshm region create job --size 8G --sections 2 --nodes 0,1
  vmshm vm run --kernel /boot/vmlinuz --initrd image.cpio --cpus 8 \\
      --memory 16G --numa-node 0 --region job:0
  vmshm vm run --kernel /boot/vmlinuz --initrd image.cpio --cpus 8 \\
      --memory 16G --numa-node 1 --region job:1

The same options in a file, job.toml, for `vmshm vm run job.toml`:
  kernel = \"/boot/vmlinuz\"
  numa-node = 0
  region = [\"job:0\"]

A private copy of a disk lies in the directory that TMPDIR names, else in /tmp.

The guest's serial console is the terminal: Ctrl-A X stops the VM, Ctrl-A Ctrl-A sends one Ctrl-A. SIGTERM stops it as \
well. Both press the VM's power button, so that the guest shuts itself down; the second time, after 60 seconds, or where \
no kernel listens to the button, they stop the VM at once. The VM can write its own section only, unless the region is an open one.

Logs go to standard error; VMSHM_LOG=debug shows more.")]
pub struct Args {
    /// The kernel, a bzImage or the vmlinux that it was made from
    #[arg(long, value_name = "FILE")]
    kernel: PathBuf,
    /// The initial file system
    #[arg(long, value_name = "FILE")]
    initrd: Option<PathBuf>,
    /// The kernel's command line
    #[arg(long, default_value = "console=ttyS0", value_name = "TEXT", allow_hyphen_values = true)]
    append: String,
    /// Number of vCPUs
    #[arg(long, default_value_t = 1, value_name = "N")]
    cpus: usize,
    /// Memory, such as 4G
    #[arg(long, default_value = "1G", value_parser = size::parse, value_name = "SIZE")]
    memory: u64,
    /// Pages of the memory; 4K takes transparent huge pages where the kernel allows those
    #[arg(long, default_value = "4K", value_parser = size::pages, value_name = "4K|2M|1G")]
    pages: PageSize,
    /// Confine the VM to this NUMA node: a CPU of its own for each vCPU, and all memory from there. `auto` takes the
    /// section's node, or else the one with the most free memory
    #[arg(long, value_parser = node, value_name = "NODE|auto", group = "where")]
    numa_node: Option<Node>,
    /// Give the VM the NUMA nodes of this host: vCPUs and memory in equal parts from each, as nodes of its own, with the
    /// host's distances, cores and caches
    #[arg(long, group = "where")]
    numa_map: bool,
    /// CPUs and memory that a node lacks are an error, or come from elsewhere with a warning
    #[arg(long, default_value = "require", value_parser = placement, value_name = "require|prefer", requires = "where")]
    placement: Placement,
    /// A region and which section of it the VM gets; may be given several times
    #[arg(long = "region", value_parser = wanted, value_name = "NAME:K")]
    regions: Vec<Wanted>,
    /// Devices with doorbells, by way of `vmshm serve`, which must run
    #[arg(long)]
    doorbell: bool,
    /// With --doorbell: interrupt vectors, as many as the server has
    #[arg(long, default_value_t = DEFAULT_VECTORS, value_name = "N", requires = "doorbell")]
    vectors: u32,
    /// A disk with a raw image, or a block device. The guest writes to a private copy, which is gone with the VM; with `,ro` not at all
    #[arg(long = "disk", value_name = "FILE[,ro]")]
    disks: Vec<String>,
    /// A network card: `dgram:LOCAL,REMOTE` for two unix datagram sockets, as QEMU's `-netdev dgram` has them;
    /// `stream:FILE,server` and `stream:FILE` for the two ends of a unix stream socket, as of `-netdev stream`; `tap:NAME`
    /// for a tap device that exists, by way of vhost-net where the host has it
    #[arg(long = "net", value_parser = link, value_name = "LINK")]
    nets: Vec<Link>,
    /// A PCI device that the VM gets for itself, below a root port of its own: vfio:0000:3b:00.2. It must belong to
    /// vfio-pci; may be given several times
    #[arg(long = "device", value_parser = device, value_name = "vfio:ADDRESS")]
    devices: Vec<vfio::Address>,
    /// A second console, `hvc0` in the guest: a unix socket of this name, for one client at a time, as
    /// `socat -,raw,echo=0 FILE`
    #[arg(long, value_name = "FILE")]
    console: Option<PathBuf>,
    /// The VM's UUID. Default: its first section's
    #[arg(long)]
    uuid: Option<Uuid>,
    /// Filters for the system calls of each thread: `on` ends the VM where a thread makes another call, `log` has the
    /// kernel note it instead, `off` is without
    #[arg(long, value_parser = seccomp, default_value = "on", value_name = "on|log|off")]
    seccomp: thread::Seccomp,
    /// End where the guest resets itself, rather than starting it again
    #[arg(long)]
    no_reboot: bool,
    /// With root's rights: run as this user once all is set up. Without, root keeps its files, but no capability
    #[arg(long, value_name = "USER[:GROUP]")]
    user: Option<String>,
    /// Print where memory and threads would go, and do nothing
    #[arg(long)]
    dry_run: bool,
}

#[derive(Debug, Clone, Copy)]
enum Node {
    Auto,
    Number(u32),
}

fn node(text: &str) -> Result<Node, String> {
    if text == "auto" {
        return Ok(Node::Auto);
    }
    text.parse().map(Node::Number).map_err(|_| "give a node's number, or auto".into())
}

fn placement(text: &str) -> Result<Placement, String> {
    match text {
        "require" => Ok(Placement::Require),
        "prefer" => Ok(Placement::Prefer),
        _ => Err("give require or prefer".into()),
    }
}

fn seccomp(text: &str) -> Result<thread::Seccomp, String> {
    match text {
        "on" => Ok(thread::Seccomp::On),
        "log" => Ok(thread::Seccomp::Log),
        "off" => Ok(thread::Seccomp::Off),
        _ => Err("give on, log or off".into()),
    }
}

/// A region's name or path, and a section.
#[derive(Debug, Clone)]
struct Wanted {
    name: String,
    section: u32,
}

fn wanted(text: &str) -> Result<Wanted, String> {
    let (name, section) =
        text.rsplit_once(':').ok_or("give the region's name, a colon and a section: job:0")?;
    let section =
        section.parse().map_err(|_| format!("{section:?} is no section: give a number, as in job:0"))?;
    Ok(Wanted { name: name.to_owned(), section })
}

/// The other end of a network card.
#[derive(Debug, Clone)]
enum Link {
    Socket(PathBuf, PathBuf),
    Listen(PathBuf),
    Connect(PathBuf),
    Tap(String),
}

fn link(text: &str) -> Result<Link, String> {
    match text.split_once(':') {
        Some(("tap", name)) => Ok(Link::Tap(name.to_owned())),
        Some(("dgram", paths)) => match paths.split_once(',') {
            Some((local, remote)) => Ok(Link::Socket(local.into(), remote.into())),
            None => Err("give two paths: dgram:LOCAL,REMOTE".into()),
        },
        Some(("stream", path)) => Ok(match path.strip_suffix(",server") {
            Some(path) => Link::Listen(path.into()),
            None => Link::Connect(path.into()),
        }),
        _ => Err("give dgram:LOCAL,REMOTE, stream:FILE,server, stream:FILE or tap:NAME".into()),
    }
}

fn device(text: &str) -> Result<vfio::Address, String> {
    let address = text.strip_prefix("vfio:").ok_or("give vfio: and an address, as in vfio:0000:3b:00.2")?;
    address.parse()
}

impl Link {
    fn open(&self, mac: [u8; 6]) -> Result<Net, Error> {
        match self {
            Self::Socket(local, remote) => Net::socket(local, remote, mac),
            Self::Listen(path) => Net::listen(path, mac),
            Self::Connect(path) => Net::connect(path, mac),
            Self::Tap(name) => Net::tap(name, mac),
        }
    }
}

fn open_disk(text: &str) -> Result<Disk, Error> {
    match text.strip_suffix(",ro") {
        Some(path) => Disk::open(path.as_ref(), None),
        None => Disk::open(text.as_ref(), Some(&std::env::temp_dir())),
    }
}

/// A locally administered address of the VM's own, for each of its cards.
fn mac(uuid: &Uuid, card: usize) -> [u8; 6] {
    let [a, b, c, d, ..] = *uuid.as_bytes();
    [0x52, a, b, c, d, card as u8]
}

impl Args {
    /// Runs the VM until it ends.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        log::begin();
        let regions = self.open()?;
        let uuid = match (self.uuid, regions.first()) {
            (Some(uuid), _) => uuid,
            (None, Some((region, section))) => Uuid::from_bytes(region.entry(*section)?.vm_uuid),
            (None, None) => Uuid::new_v4(),
        };
        let home = regions.first().map(|(region, section)| region.entry(*section)).transpose()?;
        let home = home.and_then(|entry| u32::try_from(entry.node).ok());
        let nodes = match self.numa_node {
            None if self.numa_map => place::all()?,
            None => Vec::new(),
            Some(Node::Number(node)) => vec![node],
            Some(Node::Auto) => vec![place::auto(home)?],
        };
        let ram =
            RamOptions { len: self.memory, pages: self.pages, nodes: &nodes, placement: self.placement };
        let cpus = match nodes[..] {
            [] => Vec::new(),
            _ => place::cpus(&nodes, self.cpus, self.placement)?,
        };
        if self.dry_run {
            self.describe(&regions, &ram, &cpus)?;
            return Ok(ExitCode::SUCCESS);
        }
        if let Some(home) = home
            && !nodes.is_empty()
            && !nodes.contains(&home)
        {
            tracing::warn!(?nodes, section_node = home, "the section lies on another NUMA node than the VM");
        }

        let host = Host::open()?;
        self.seccomp.choose()?;
        let user = self.user.as_deref().map(thread::User::find).transpose()?;
        if let Some(user) = user.clone() {
            user.choose()?;
        }
        // Blocked before any thread exists, so that the signal wakes nobody but the one that waits for it.
        let signals = signals::block()?;
        if !place::leave(&cpus)? {
            tracing::warn!("no CPU is left for the VMM's other threads: they disturb the vCPUs");
        }
        // Nor on those of other VMs, where there are more.
        place::leave(&place::taken())?;
        let plan = Plan {
            guest: Guest::Linux(Linux {
                kernel: &self.kernel,
                initrd: self.initrd.as_deref(),
                command_line: &self.append,
            }),
            uuid,
            vcpus: self.cpus,
            ram,
            regions: self.attach(regions),
            disks: self.disks.iter().map(|disk| open_disk(disk)).collect::<Result<_, _>>()?,
            nets: self
                .nets
                .iter()
                .enumerate()
                .map(|(card, link)| link.open(mac(&uuid, card)))
                .collect::<Result<_, _>>()?,
            devices: self.devices.clone(),
            console: self.console.as_deref().map(Hvc::listen).transpose()?,
            cpus,
        };
        if let Some((uid, gid)) = user.as_ref().map(thread::User::ids) {
            // The VM at the other end may be that user's as well.
            for socket in self.sockets() {
                chown(socket, Some(uid), Some(gid)).context("cannot give a socket to the user")?;
            }
        }
        let asked = monitor::listen().context("cannot listen to `vmshm vm stats`")?;
        let machine = Machine::start(&host, plan, Box::new(std::io::stdout()), progress)?;
        let raw = Raw::new();
        terminal::pass(&machine, raw.is_terminal()).context("cannot read the terminal")?;
        stop::upon(signals, &machine).context("cannot wait for signals")?;
        let names = self.regions.iter().map(|wanted| format!("{}:{}", wanted.name, wanted.section));
        monitor::serve(asked, &machine, names.collect()).context("cannot answer `vmshm vm stats`")?;
        let parents: Vec<_> = self.sockets().filter_map(|socket| Some(socket.parent()?.join("."))).collect();
        thread::confine(thread::Kind::Main, &parents);
        let end = loop {
            match machine.running.wait(Duration::MAX) {
                Some(End::Reset) if !self.no_reboot => {
                    tracing::info!("the guest reset itself, and is started again");
                    machine.reset()?;
                }
                end => break end.unwrap_or(End::Stopped),
            }
        };
        drop(raw);
        let stats = machine.running.stats();
        drop(machine);
        tracing::info!(exits = stats.exits, dropped_stores = stats.dropped, "{end}");
        Ok(if matches!(end, End::Failed(_)) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
    }

    /// Sockets with names, which go with the VM.
    fn sockets(&self) -> impl Iterator<Item = &Path> {
        let nets = self.nets.iter().filter_map(|link| match link {
            Link::Socket(local, _) | Link::Listen(local) => Some(local.as_path()),
            Link::Connect(_) | Link::Tap(_) => None,
        });
        nets.chain(self.console.as_deref())
    }

    fn open(&self) -> anyhow::Result<Vec<(Region, u32)>> {
        for (i, wanted) in self.regions.iter().enumerate() {
            let same = |other: &&Wanted| (&other.name, other.section) == (&wanted.name, wanted.section);
            if self.regions[..i].iter().find(same).is_some() {
                bail!("--region {}:{} is given twice: a VM has a section once", wanted.name, wanted.section);
            }
        }
        let registry = Registry::from_env();
        let open = |wanted: &Wanted| Ok((registry.open(&wanted.name)?, wanted.section));
        self.regions.iter().map(open).collect()
    }

    fn attach(&self, regions: Vec<(Region, u32)>) -> Vec<Attachment> {
        let attach = |(region, section)| {
            if !self.doorbell {
                return Attachment::Plain { region: Box::new(region), section };
            }
            let socket = section_socket(&socket(&region), section);
            Attachment::Doorbell { socket, vectors: self.vectors }
        };
        regions.into_iter().map(attach).collect()
    }

    /// Prints where all of the VM would go.
    fn describe(
        &self,
        regions: &[(Region, u32)],
        ram: &RamOptions<'_>,
        cpus: &[usize],
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        let virtual_node = |node: usize| match ram.nodes.len() {
            0 | 1 => String::new(),
            _ => format!(", virtual node {node}"),
        };
        for (part, start, len) in ram.ranges() {
            let size = format_bytes(len);
            let Some(&node) = ram.nodes.get(part) else {
                writeln!(out, "memory    {size} at {start:#x}, wherever the kernel takes it from")?;
                continue;
            };
            let free = nodes().iter().find(|found| found.id == node).map_or(0, |node| node.free);
            writeln!(
                out,
                "memory    {size} on NUMA node {node}, where {} are free, at {start:#x}{}",
                format_bytes(free),
                virtual_node(part)
            )?;
        }
        let shares = layout::shares(self.cpus as u64, ram.nodes.len().max(1), 1);
        let mut of_node = shares.iter().enumerate().flat_map(|(node, &share)| (0..share).map(move |_| node));
        for (number, cpu) in cpus.iter().enumerate() {
            let node = virtual_node(of_node.next().unwrap_or(0));
            writeln!(out, "vCPU {number:<4} on CPU {cpu}{node}")?;
        }
        if cpus.is_empty() {
            writeln!(
                out,
                "vCPUs     {} wherever the kernel runs them (--numa-node and --numa-map place them)",
                self.cpus
            )?;
        }
        writeln!(out, "pages     {}", format_bytes(self.pages.bytes()))?;
        let lens: Vec<_> = regions.iter().map(|(region, _)| region.header().region_len).collect();
        let bits = Host::open()?.address_bits();
        let places = layout::place_64(&lens, bits, self.memory)?;
        for ((region, section), place) in regions.iter().zip(places) {
            let entry = region.entry(*section)?;
            let node = u32::try_from(entry.node)
                .map_or("no node in particular".to_owned(), |n| format!("NUMA node {n}"));
            let writable = if region.header().is_open() { "all sections" } else { "its own section" };
            writeln!(
                out,
                "region    {}, section {section} ({} on {node}), at guest address {place:#x}, {writable} writable",
                region.name(),
                format_bytes(entry.len)
            )?;
        }
        for address in &self.devices {
            let found = vfio::look(Path::new("/"), address)?;
            let node =
                found.node.map_or("no node in particular".to_owned(), |node| format!("NUMA node {node}"));
            writeln!(
                out,
                "device    {address} ({}) on {node}, IOMMU group {}; it reaches memory and regions as the guest does",
                found.id, found.group
            )?;
        }
        Ok(())
    }
}

/// Shows how much of the memory is touched.
fn progress(done: u64, all: u64) {
    if std::io::stderr().is_terminal() && all > 1 << 30 {
        let end = if done == all { "\n" } else { "" };
        let _ = write!(std::io::stderr(), "\rtouching memory: {} %{end}", done * 100 / all);
    }
}
