//! Message-signalled interrupts: an eventfd becomes an interrupt of the guest inside the kernel, without this process.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KvmIrqRouting, kvm_irq_routing_entry,
    kvm_irq_routing_entry__bindgen_ty_1, kvm_irq_routing_irqchip, kvm_irq_routing_msi,
};
use kvm_ioctls::IoEventAddress;
use parking_lot::Mutex;
use vmm_sys_util::eventfd::EventFd;

use crate::error::Error;
use crate::space::Space;

/// Pins of the I/O APIC; messages have higher numbers.
const PINS: u32 = 24;

/// Message-signalled interrupt: the address and the word that a device writes to raise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Message {
    /// Address.
    pub address: u64,
    /// Word.
    pub data: u32,
}

/// Interrupt controller, which turns eventfds into interrupts.
pub trait Interrupts: Send + Sync {
    /// A number for a new interrupt.
    fn allocate(&self) -> u32;
    /// Makes each event an interrupt with this message. An event that waits already is one.
    ///
    /// # Errors
    /// KVM refuses.
    fn connect(&self, number: u32, event: &EventFd, message: Message) -> Result<(), Error>;
    /// Lets events wait.
    fn disconnect(&self, number: u32, event: &EventFd);
    /// Makes each event raise a pin of the I/O APIC. It stays up until the guest has seen to it, of which `seen` tells.
    ///
    /// # Errors
    /// KVM refuses.
    fn connect_line(&self, pin: u32, event: &EventFd, seen: &EventFd) -> Result<(), Error>;
    /// Makes a guest's store of this word at this address the event, without an exit to this process. `false` where
    /// that cannot be had: then the store comes here as any other.
    fn listen(&self, address: u64, word: u32, event: &EventFd) -> bool;
    /// Ends [`Self::listen`].
    fn unlisten(&self, address: u64, word: u32, event: &EventFd);
}

/// KVM's.
pub(crate) struct KvmInterrupts {
    space: Arc<Space>,
    next: AtomicU32,
    routes: Mutex<BTreeMap<u32, Message>>,
}

impl KvmInterrupts {
    pub(crate) fn new(space: Arc<Space>) -> Self {
        Self { space, next: AtomicU32::new(PINS), routes: Mutex::default() }
    }
}

impl Interrupts for KvmInterrupts {
    fn allocate(&self) -> u32 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    fn connect(&self, number: u32, event: &EventFd, message: Message) -> Result<(), Error> {
        let doing = || format!("give the guest interrupt {number}");
        let mut routes = self.routes.lock();
        routes.insert(number, message);
        // KVM takes all routes at once.
        let pins = (0..PINS).map(|pin| kvm_irq_routing_entry {
            gsi: pin,
            type_: KVM_IRQ_ROUTING_IRQCHIP,
            u: kvm_irq_routing_entry__bindgen_ty_1 {
                irqchip: kvm_irq_routing_irqchip { irqchip: KVM_IRQCHIP_IOAPIC, pin },
            },
            ..kvm_irq_routing_entry::default()
        });
        let messages = routes.iter().map(|(&gsi, message)| {
            let mut msi = kvm_irq_routing_msi {
                address_lo: message.address as u32,
                address_hi: (message.address >> 32) as u32,
                data: message.data,
                ..kvm_irq_routing_msi::default()
            };
            msi.__bindgen_anon_1.pad = 0;
            kvm_irq_routing_entry {
                gsi,
                type_: KVM_IRQ_ROUTING_MSI,
                u: kvm_irq_routing_entry__bindgen_ty_1 { msi },
                ..kvm_irq_routing_entry::default()
            }
        });
        let entries: Vec<_> = pins.chain(messages).collect();
        let table = KvmIrqRouting::from_entries(&entries)
            .map_err(|error| Error::io(doing())(std::io::Error::other(format!("{error:?}"))))?;
        self.space.fd().set_gsi_routing(&table).map_err(Error::kvm(doing()))?;
        self.space.fd().register_irqfd(event, number).map_err(Error::kvm(doing()))
    }

    fn disconnect(&self, number: u32, event: &EventFd) {
        if let Err(error) = self.space.fd().unregister_irqfd(event, number) {
            tracing::debug!(number, %error, "an interrupt was not connected");
        }
    }

    fn connect_line(&self, pin: u32, event: &EventFd, seen: &EventFd) -> Result<(), Error> {
        let doing = || format!("give the guest the interrupt line {pin}");
        self.space.fd().register_irqfd_with_resample(event, seen, pin).map_err(Error::kvm(doing()))
    }

    fn listen(&self, address: u64, word: u32, event: &EventFd) -> bool {
        let result = self.space.fd().register_ioevent(event, &IoEventAddress::Mmio(address), word);
        result.inspect_err(|error| tracing::debug!(word, %error, "a doorbell leaves the guest")).is_ok()
    }

    fn unlisten(&self, address: u64, word: u32, event: &EventFd) {
        if let Err(error) = self.space.fd().unregister_ioevent(event, &IoEventAddress::Mmio(address), word) {
            tracing::debug!(word, %error, "a doorbell was not listened to");
        }
    }
}
