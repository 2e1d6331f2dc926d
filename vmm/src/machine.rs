//! A whole machine: VM, devices and kernel put together, from what a user wants.

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use vmshm_host::Region;

use crate::beginning::Beginning;
use crate::boot::{self, Linux};
use crate::client::{self, Client, Connection};
use crate::disk::Disk;
use crate::error::Error;
use crate::host::Host;
use crate::hvc::Hvc;
use crate::interrupts::{Interrupts, KvmInterrupts};
use crate::ivshmem::{Addresses, Ivshmem};
use crate::memory::{Ram, RamOptions};
use crate::net::Net;
use crate::numa::virtual_node;
use crate::pci::{Ecam, MOST, PORTS, Ports, Root, Window};
use crate::port::RootBus;
use crate::power::Button;
use crate::random::Random;
use crate::serial::Console;
use crate::shared::Shared;
use crate::topology::Topology;
use crate::virtio::{Virtio, Worker};
use crate::vm::{Running, Vm};
use crate::{bare, layout, pci, place, power, rights, vfio};

/// Room for the registers of a device, and as much again for its MSI-X table, which has at most 64 KiB.
const REGISTERS_ROOM: u64 = 0x1_0000;

/// Room for those of all devices on the root bus. Behind it lie the windows of root ports.
const REGISTERS: u64 = 2 * REGISTERS_ROOM * MOST as u64;

/// Addresses of the registers, and of the MSI-X table, of the device of that number.
fn registers(device: usize) -> [u64; 2] {
    let registers = layout::BARS_32 + 2 * REGISTERS_ROOM * device as u64;
    [registers, registers + REGISTERS_ROOM]
}

/// Where devices answer, for programs: configuration space of the first bus, registers, local APIC.
const DEVICES: [(u64, u64); 3] =
    [(layout::ECAM, 1 << 20), (layout::BARS_32, REGISTERS), (layout::LAPIC, 0x1000)];

/// How a VM gets a section.
#[derive(Debug)]
pub enum Attachment {
    /// By itself, without doorbells.
    Plain {
        /// The region.
        region: Box<Region>,
        /// The section.
        section: u32,
    },
    /// From the region's server, with doorbells.
    Doorbell {
        /// The server's socket for the section, or for any.
        socket: PathBuf,
        /// Interrupt vectors, as many as the server has; 1 to 2048.
        vectors: u32,
    },
}

/// Software that runs in a machine.
#[derive(Debug, Clone, Copy)]
pub enum Guest<'a> {
    /// A kernel.
    Linux(Linux<'a>),
    /// A bare-metal program, which finds devices and regions at their addresses.
    Program {
        /// Its code.
        code: &'a [u8],
        /// Arguments with which each of its vCPUs begins.
        arguments: [u64; 6],
    },
}

/// Plan of a machine.
#[derive(Debug)]
pub struct Plan<'a> {
    /// Software that runs in it.
    pub guest: Guest<'a>,
    /// The UUID that the guest sees as its own, and by which it finds a section without doorbells.
    pub uuid: Uuid,
    /// Number of vCPUs.
    pub vcpus: usize,
    /// RAM.
    pub ram: RamOptions<'a>,
    /// Regions, in the order of their devices.
    pub regions: Vec<Attachment>,
    /// Disks.
    pub disks: Vec<Disk>,
    /// Network cards.
    pub nets: Vec<Net>,
    /// Functions of this host's PCI devices that become the VM's own.
    pub devices: Vec<vfio::Address>,
    /// A second console.
    pub console: Option<Hvc>,
    /// A CPU for each vCPU, or none at all.
    pub cpus: Vec<usize>,
}

/// A machine that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Machine {
    /// The VM. Goes first: its section is given back only when no vCPU runs any more.
    pub running: Running,
    /// Its serial port.
    pub console: Arc<Console>,
    /// Its power button.
    pub button: Arc<Button>,
    root: Arc<Root>,
    beginning: Beginning,
    contents: Contents,
    _clients: Vec<Client>,
    _workers: Vec<Worker>,
}

/// Contents of the RAM before the guest runs.
#[derive(Debug)]
enum Contents {
    Linux(boot::Image),
    Program { code: Vec<u8>, mapped: Vec<(u64, u64)> },
}

impl Contents {
    fn fill(&self, ram: &Ram) -> Result<(), Error> {
        match self {
            Self::Linux(image) => image.fill(ram).map(drop),
            Self::Program { code, mapped } => bare::fill(ram, code, mapped),
        }
    }
}

/// A section that is taken.
struct Taken {
    shared: Shared,
    /// With doorbells: our id, vectors, and the server.
    server: Option<(u16, u32, Connection)>,
}

fn take(attachment: Attachment, uuid: Uuid) -> Result<Taken, Error> {
    match attachment {
        Attachment::Plain { region, section } => {
            let shared = Shared::take(*region, section, uuid)?;
            Ok(Taken { shared, server: None })
        }
        Attachment::Doorbell { socket, vectors } => {
            if !(1..=2048).contains(&vectors) {
                return Err(Error::Invalid {
                    what: "the number of vectors",
                    value: vectors.to_string(),
                    why: "is not possible: give 1 to 2048, as many as the server has".into(),
                });
            }
            let given = client::join(&socket)?;
            let section = u32::from(given.id) % given.region.header().sections;
            let shared = Shared::given(given.region, section)?;
            Ok(Taken { shared, server: Some((given.id, vectors, given.connection)) })
        }
    }
}

impl Machine {
    /// Builds a machine and starts it. The guest's output goes to `out`; `progress` hears how much of the RAM is
    /// touched.
    ///
    /// # Errors
    /// Something cannot be had: section, memory, CPUs, kernel, KVM.
    pub fn start(
        host: &Host,
        plan: Plan<'_>,
        out: Box<dyn Write + Send>,
        progress: impl FnMut(u64, u64),
    ) -> Result<Self, Error> {
        // With the host bridge and the source of random bytes.
        let devices = 2
            + plan.regions.len()
            + plan.disks.len()
            + plan.nets.len()
            + plan.devices.len()
            + usize::from(plan.console.is_some());
        if devices > MOST {
            return Err(Error::Invalid {
                what: "the number of regions, disks, network cards, consoles and devices",
                value: (devices - 2).to_string(),
                why: format!("is more than the bus has places for: give at most {}", MOST - 2),
            });
        }
        let taken = plan.regions.into_iter().map(|region| take(region, plan.uuid));
        let taken = taken.collect::<Result<Vec<_>, _>>()?;
        let lens: Vec<_> = taken.iter().map(|taken| taken.shared.len()).collect();
        let homes: Vec<_> = taken.iter().map(|taken| taken.shared.node()).collect();
        let places = layout::place_64(&lens, host.address_bits(), plan.ram.len)?;
        let found = vfio::check(&plan.devices, plan.ram.len + lens.iter().sum::<u64>())?;
        if !found.is_empty() {
            rights::lock_memory();
        }
        for device in &found {
            let nodes = plan.ram.nodes;
            if let Some(own) = device.node
                && !nodes.is_empty()
                && !nodes.contains(&own)
            {
                tracing::warn!(
                    device = %device.address, node = own, vm_nodes = ?nodes,
                    "a device is plugged into another NUMA node than the VM's: its memory accesses cross between them"
                );
            }
        }
        let ram = Ram::new(&plan.ram, progress)?;
        let (shared, servers): (Vec<_>, Vec<_>) =
            taken.into_iter().map(|taken| (taken.shared, taken.server)).unzip();
        let pinned = !plan.cpus.is_empty();
        let topology = if pinned { Topology::like(&plan.cpus) } else { Topology::flat(plan.vcpus) };
        // A vCPU that shares its CPU gives it up when it waits.
        let taken = place::taken();
        let quiet = pinned && !plan.cpus.iter().any(|cpu| taken.contains(cpu));
        let vm = Vm::new(host, ram, shared, topology, quiet)?;

        power::add(&vm)?;
        let button = Arc::new(Button::add(&vm)?);
        let console = Console::add(&vm, out)?;
        let interrupts: Arc<dyn Interrupts> = Arc::new(KvmInterrupts::new(Arc::clone(vm.space())));
        let mut root = Root::new();
        let mut roots = Vec::new();
        let ram_nodes = plan.ram.nodes;
        let mut clients = Vec::new();
        let mut mapped: Vec<_> = places.iter().copied().zip(lens.iter().copied()).collect();
        for (index, ((len, memory), server)) in lens.into_iter().zip(places).zip(servers).enumerate() {
            vm.place(index, memory)?;
            let [registers, table] = registers(index);
            let at = Addresses { registers, table, memory };
            let space = Arc::clone(vm.space());
            let place = pci::follow("a region".into(), move |address| space.place(index, address));
            let device = match server {
                None => Arc::new(Ivshmem::plain(len, &at, place)),
                Some((id, vectors, connection)) => {
                    let device = Ivshmem::doorbell(len, &at, place, id, vectors, Arc::clone(&interrupts));
                    let device = Arc::new(device);
                    clients.push(connection.serve(Arc::clone(&device))?);
                    device
                }
            };
            // Kernels learn of its node by its root bus, while there are buses left.
            let mut bus = 0;
            if let Some(node) = virtual_node(ram_nodes, homes[index])
                && roots.len() + 1 < usize::from(layout::BUSES)
            {
                bus = layout::BUSES - 1 - roots.len() as u8;
                let room = [(registers, 2 * REGISTERS_ROOM), (memory, len)];
                roots.push(RootBus { node, first: bus, last: bus, room });
            }
            root.add_to(bus, device).expect("the number of devices was checked");
        }
        let mut workers = Vec::new();
        // The queues of some devices are the kernel's.
        let mut add = |(device, worker): (Arc<Virtio>, Option<Worker>)| {
            root.add(device).expect("the number of devices was checked");
            workers.extend(worker);
        };
        let mut places = (mapped.len()..).map(registers);
        let mut next = || places.next().expect("numbers have no end");
        let (space, lines) = (vm.space(), &interrupts);
        let with_thread = |(device, worker)| (device, Some(worker));
        for disk in plan.disks {
            add(with_thread(Virtio::start(disk, next(), space, Arc::clone(lines))?));
        }
        for net in plan.nets {
            add(net.start(next(), space, Arc::clone(lines))?);
        }
        if let Some(console) = plan.console {
            add(with_thread(Virtio::start(console, next(), space, Arc::clone(lines))?));
        }
        add(with_thread(Virtio::start(Random::open()?, next(), space, Arc::clone(lines))?));
        let end = mapped.iter().map(|(start, len)| start + len).max();
        let (first, room) = layout::bars_64(host.address_bits());
        let high = end.unwrap_or(first);
        let room =
            [(layout::BARS_32 + REGISTERS, layout::BARS_32_LEN - REGISTERS), (high, first + room - high)];
        let first = devices - found.len() - roots.len();
        let buses = layout::BUSES - roots.len() as u8;
        let (ports, more) = vfio::open(&found, ram_nodes, space, lines, room, first, buses)?;
        roots.extend(more);
        let passed = !ports.is_empty();
        for (bus, port) in ports {
            root.add_to(bus, port).expect("the number of devices was checked");
        }
        let root = Arc::new(root);
        let bus = vm.memory_bus();
        vm.port_bus().insert(PORTS, 8, Arc::new(Ports::new(Arc::clone(&root))))?;
        let ecam = Ecam(Arc::clone(&root));
        bus.insert(layout::ECAM, u64::from(layout::BUSES) << 20, Arc::new(ecam))?;
        if passed {
            bus.insert(high, room[1].1, Arc::new(Window(Arc::clone(&root), high)))?;
        }
        bus.insert(
            layout::BARS_32,
            layout::BARS_32_LEN,
            Arc::new(Window(Arc::clone(&root), layout::BARS_32)),
        )?;
        let contents = match plan.guest {
            Guest::Linux(linux) => Contents::Linux(boot::load(host, &vm, &linux, plan.uuid, &roots)?),
            Guest::Program { code, arguments } => {
                mapped.extend(DEVICES);
                bare::load(host, &vm, code, &mapped, |_| arguments)?;
                Contents::Program { code: code.to_vec(), mapped }
            }
        };
        let beginning = Beginning::note(&host.kvm, vm.space().fd(), vm.vcpus().iter())
            .map_err(Error::kvm("note how the vCPUs begin"))?;

        let cpus = plan.cpus;
        let running = vm.start(move |number| {
            if let Some(&cpu) = cpus.get(number)
                && let Err(error) = place::pin(cpu)
            {
                tracing::warn!(number, %error, "a vCPU runs anywhere");
            }
        })?;
        let (_clients, _workers) = (clients, workers);
        Ok(Self { running, console, button, root, beginning, contents, _clients, _workers })
    }

    /// Starts a guest again that has [reset itself](crate::End::Reset): RAM as at its start, devices and vCPUs reset. The
    /// VM keeps its sections with all that lies there, its doorbells and its disks' private copies.
    ///
    /// # Errors
    /// KVM refuses, or the kernel's file cannot be read any more.
    pub fn reset(&self) -> Result<(), Error> {
        self.running.reset(&self.beginning, || {
            self.root.power_on();
            self.console.reset();
            let ram = self.running.ram();
            ram.clear();
            self.contents.fill(ram)
        })
    }
}
