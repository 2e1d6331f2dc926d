// SPDX-License-Identifier: GPL-2.0

//! A PCI device comes and goes.
//!
//! Suspend and resume need no code of ours: for a driver without such callbacks the PCI core
//! disables the device, and afterwards restores its configuration, message-signalled interrupts and
//! bus mastering. The memory is the host's, and nothing of it is lost meanwhile.

use kernel::{device::Core, pci, prelude::*, str::CString, sync::Arc};

use crate::{
    abi::{
        driver::{NAME, UNCACHED},
        ivshmem::{DEVICE, MEMORY_BAR, REGISTERS_BAR, REG_DOORBELL, REG_IV_POSITION, VENDOR},
        region::{HeaderError, RegionHeader},
    },
    attributes::GROUPS,
    bars::Bars,
    device::{Device, Facts},
    file::OpenFile,
    section::Identity,
    sys::{self, Enabled, Frames, Irq, Memory, Number, Region, Registers, Registration, Vectors},
};

/// The driver for ivshmem devices that show a region of ours.
pub(crate) struct Driver;

// Red Hat has lent its number to QEMU's virtual devices.
const ID: pci::DeviceId = pci::DeviceId::from_id(pci::Vendor::REDHAT_QUMRANET, DEVICE as u32);

#[cfg(not(linux_7_3))]
kernel::pci_device_table!(TABLE, MODULE_TABLE, (), [(ID, ())]);
#[cfg(linux_7_3)]
kernel::pci_device_table!(TABLE, (), [(ID, ())]);

#[cfg(not(linux_7_3))]
type IdInfo<'a> = &'a ();
#[cfg(linux_7_3)]
type IdInfo<'a> = Option<&'a ()>;

const _: () = assert!(pci::Vendor::REDHAT_QUMRANET.as_raw() == VENDOR);

impl pci::Driver for Driver {
    type IdInfo = ();
    type Data<'bound> = Bound;

    const ID_TABLE: pci::IdTable<Self::IdInfo> = &TABLE;

    fn probe<'bound>(
        pdev: &'bound pci::Device<Core<'_>>,
        _info: IdInfo<'bound>,
    ) -> impl PinInit<Self::Data<'bound>, Error> + 'bound {
        Bound::new(pdev)
    }
}

/// Resources of a device while it is ours.
///
/// After [`Bound::drop`], the rest is given back in the order of the fields.
pub(crate) struct Bound {
    device: Arc<Device>,
    registration: Option<Registration<Device>>,
    irqs: KVec<Irq<Device>>,
    vectors: Option<Vectors>,
    _enabled: Enabled,
    _registers_bar: Option<Region>,
    _memory_bar: Region,
    _number: Number,
}

impl Bound {
    fn new(pdev: &pci::Device<Core<'_>>) -> Result<Self> {
        let number = Number::take().inspect_err(|_| {
            dev_err!(
                pdev,
                "no number is free for another device: detach one that is not needed\n"
            )
        })?;
        let name = CString::try_from_fmt(fmt!("{NAME}{}", number.get()))?;

        let len = sys::memory_len(pdev, MEMORY_BAR)?;
        if len == 0 {
            dev_info!(
                pdev,
                "left alone: it has no memory in BAR {}, so it shows no vmshm region\n",
                MEMORY_BAR
            );
            return Err(ENODEV);
        }
        let enabled = Enabled::new(pdev)?;
        let memory_bar = request(pdev, MEMORY_BAR)?;
        let memory = Memory::map(pdev.resource_start(MEMORY_BAR)?, len).inspect_err(|_| {
            dev_err!(
                pdev,
                "cannot map {len} bytes of BAR {}: is memory short?\n",
                MEMORY_BAR
            )
        })?;
        let header = check(pdev, &memory)?;

        let (vectors, registers_bar, registers) = doorbells(pdev)?;
        let facts = Facts {
            header,
            identity: identity(pdev, registers.as_ref())?,
            frames: Frames::of(&memory),
            memory_type: memory.memory_type(),
        };
        if facts.memory_type == UNCACHED {
            dev_warn!(
                pdev,
                "the region is not cached, and slow, since firmware has marked the address of BAR {} (below 4 GiB?) as \
                 uncacheable: use a region of 4 GiB or more, so that it is placed above, or a firmware that places it there\n",
                MEMORY_BAR
            );
        }
        let device = Device::new(name, pdev, facts, Bars { memory, registers })?;

        let mut bound = Self {
            device,
            registration: None,
            irqs: KVec::new(),
            vectors,
            _enabled: enabled,
            _registers_bar: registers_bar,
            _memory_bar: memory_bar,
            _number: number,
        };
        bound.start(pdev)?;
        Ok(bound)
    }

    /// Lets interrupts and processes in.
    fn start(&mut self, pdev: &pci::Device) -> Result {
        let device = &self.device;
        match self
            .vectors
            .as_ref()
            .map(|vectors| handlers(vectors, device))
        {
            Some(Ok(irqs)) => {
                device.set_vectors(irqs.len() as u32);
                self.irqs = irqs;
            }
            Some(Err(_)) => no_doorbells(pdev),
            None => (),
        }
        self.registration = Some(Registration::new(
            device.name(),
            device.clone(),
            pdev,
            sys::operations::<OpenFile>(),
            &GROUPS,
        )?);
        self.greet(pdev);
        Ok(())
    }

    fn greet(&self, pdev: &pci::Device) {
        let device = &self.device;
        let header = device.header();
        let (name, vectors) = (device.name(), device.vectors());
        match device.ours() {
            Some(number) => dev_info!(
                pdev,
                "/dev/{name}: a region of {} bytes; of its {} sections, number {number} is ours; {vectors} doorbells\n",
                header.region_len,
                header.sections
            ),
            None => dev_warn!(
                pdev,
                "/dev/{name}: no section of the region is assigned to this machine, so that no program can take part: start it with \
                 what `vmshm qemu-args` prints on the host, which gives it a UUID that the region's table knows\n"
            ),
        }
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        // Nobody opens the device any more ...
        self.registration = None;
        // ... no process accesses its memory any more ...
        self.device.lose();
        // ... no interrupt comes any more ...
        self.irqs.clear();
        // ... so that nobody needs our own mappings.
        self.device.bars.revoke();
    }
}

/// Takes a BAR.
fn request(pdev: &pci::Device, bar: u32) -> Result<Region> {
    Region::request(pdev, bar, c"vmshm").inspect_err(|_| {
        dev_err!(
            pdev,
            "BAR {bar} is taken by another driver (see /proc/iomem): unbind that one\n"
        )
    })
}

/// A checked copy of the region's header; `ENODEV` if it is none of ours.
fn check(pdev: &pci::Device, memory: &Memory) -> Result<RegionHeader> {
    let header: RegionHeader = memory.copy(0)?;
    match header.check(memory.len()) {
        Ok(()) => return Ok(header),
        // Somebody else's, who uses the same virtual device for something else.
        Err(error @ HeaderError::Magic(_)) => dev_info!(pdev, "left alone: {error}\n"),
        Err(error) => dev_err!(pdev, "left alone: {error}\n"),
    }
    Err(ENODEV)
}

/// The device's interrupts and registers, where it has such.
#[allow(clippy::type_complexity)]
fn doorbells(
    pdev: &pci::Device<Core<'_>>,
) -> Result<(Option<Vectors>, Option<Region>, Option<Registers>)> {
    let count = Vectors::available(pdev);
    if count == 0 || sys::memory_len(pdev, REGISTERS_BAR)? < REG_DOORBELL + 4 {
        return Ok((None, None, None));
    }
    let bar = request(pdev, REGISTERS_BAR)?;
    let registers = Registers::map(pdev, REGISTERS_BAR)?;
    // Or the device can't send message-signalled interrupts.
    pdev.set_master();
    // All or none: others reckon from the number of vectors which of them is to be rung.
    let vectors = Vectors::allocate(pdev, count).inspect_err(|_| no_doorbells(pdev));
    Ok((vectors.ok(), Some(bar), Some(registers)))
}

/// A handler for each of the vectors.
fn handlers(vectors: &Vectors, device: &Arc<Device>) -> Result<KVec<Irq<Device>>> {
    let mut irqs = KVec::new();
    for vector in 0..vectors.count() {
        let irq = Irq::request(vectors, vector, device.name(), device.clone())?;
        irqs.push(irq, GFP_KERNEL)?;
    }
    Ok(irqs)
}

fn no_doorbells(pdev: &pci::Device) {
    dev_warn!(
        pdev,
        "no doorbells, so that no process sleeps while it waits: there are not enough interrupt vectors; give this \
         machine more processors, or the host's server a smaller --vectors\n"
    );
}

/// By what the host knows this machine.
fn identity(pdev: &pci::Device, registers: Option<&Registers>) -> Result<Identity> {
    let Some(registers) = registers else {
        return Ok(Identity::Uuid);
    };
    let position = registers.read(REG_IV_POSITION)?;
    // Negative as long as the server has not given one.
    if i32::try_from(position).is_err() {
        dev_err!(pdev, "the host's server has not told who we are (yet): is `vmshm serve` running? Bind the device anew\n");
        return Err(ENXIO);
    }
    Ok(Identity::Position(position))
}
