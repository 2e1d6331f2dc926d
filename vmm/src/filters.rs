//! Which system calls each kind of thread may make once it is set up: seccomp filters as data.
//!
//! A thread's new duty adds its calls here, to that kind alone: `vmshm vm run --seccomp log` tells which.

use libc::c_long;

/// Kind of a thread, by its duty.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Runs guest code, and answers for devices.
    Vcpu,
    /// Sees to the queues of a device.
    Device,
    /// Listens to a region's server.
    Client,
    /// Passes on what a person types.
    Console,
    /// Waits for signals.
    Signals,
    /// Tells `vmshm vm stats` what is counted.
    Monitor,
    /// Waits for the VM's end, resets it, and gives back what it had. The process's first thread.
    Main,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Vcpu, Self::Device, Self::Client, Self::Console, Self::Signals, Self::Monitor, Self::Main];
}

/// A system call, and what of its arguments is looked at.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Call {
    /// Any arguments.
    Any(c_long),
    /// One of these requests, as the argument of that number (counted from 0).
    Request(c_long, u8, &'static [u32]),
    /// No memory that can be executed: argument 2 is its protection.
    NoExecute(c_long),
    /// Signals to threads of this process alone: argument 0 is the process.
    Own(c_long),
    /// Fails with EACCES rather than being forbidden: libraries try it and can do without.
    Refused(c_long),
}

use Call::{Any, NoExecute, Own, Refused, Request};

/// Calls of the language's runtime, in any thread: memory, locks, its own end, and a word on standard error.
const RUNTIME: &[Call] = &[
    Any(libc::SYS_brk),
    Any(libc::SYS_clock_gettime),
    Any(libc::SYS_clock_nanosleep),
    Any(libc::SYS_close),
    Any(libc::SYS_exit),
    Any(libc::SYS_exit_group),
    // A debug build looks whether what it closes is open.
    Request(libc::SYS_fcntl, 1, &[libc::F_GETFD as u32]),
    Any(libc::SYS_futex),
    // A panic that shows its backtrace wants this, and to find and open the program.
    Any(libc::SYS_getcwd),
    Any(libc::SYS_getpid),
    Any(libc::SYS_getrandom),
    Any(libc::SYS_gettid),
    Any(libc::SYS_madvise),
    NoExecute(libc::SYS_mmap),
    NoExecute(libc::SYS_mprotect),
    Any(libc::SYS_mremap),
    Any(libc::SYS_munmap),
    Any(libc::SYS_nanosleep),
    Refused(libc::SYS_openat),
    Refused(libc::SYS_readlink),
    Any(libc::SYS_poll),
    Request(libc::SYS_prctl, 0, &[libc::PR_GET_NAME as u32]),
    Any(libc::SYS_read),
    Any(libc::SYS_restart_syscall),
    Any(libc::SYS_rt_sigprocmask),
    Any(libc::SYS_rt_sigreturn),
    Any(libc::SYS_sched_yield),
    Any(libc::SYS_sigaltstack),
    // abort(3), and the signal that brings vCPUs out of the guest.
    Own(libc::SYS_tgkill),
    Any(libc::SYS_write),
];

const KVM_RUN: u32 = 0xae80;
const KVM_GET_REGS: u32 = 0x8090_ae81;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_GET_IRQCHIP: u32 = 0xc208_ae62;
const KVM_SET_GSI_ROUTING: u32 = 0x4008_ae6a;
const KVM_IRQFD: u32 = 0x4020_ae76;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;

const KVM_SET_IRQCHIP: u32 = 0x8208_ae63;
const KVM_SET_REGS: u32 = 0x4090_ae82;
const KVM_SET_SREGS: u32 = 0x4138_ae84;
const KVM_SET_LAPIC: u32 = 0x4400_ae8f;
const KVM_SET_XSAVE: u32 = 0x5000_aea5;
const KVM_SET_XCRS: u32 = 0x4188_aea7;
const KVM_GET_MSRS: u32 = 0xc008_ae88;
const KVM_SET_MSRS: u32 = 0x4008_ae89;
const KVM_SET_VCPU_EVENTS: u32 = 0x4040_aea0;
const KVM_SET_MP_STATE: u32 = 0x4004_ae99;
const KVM_SET_DEBUGREGS: u32 = 0x4080_aea2;
const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;

const TCGETS: u32 = libc::TCGETS as u32;
const TCSETS: u32 = libc::TCSETS as u32;
const TCSETSW: u32 = libc::TCSETSW as u32;
const TIOCGWINSZ: u32 = libc::TIOCGWINSZ as u32;

/// Of passed-through devices: interrupts, reset, and what memory they reach.
const VFIO_GROUP_UNSET_CONTAINER: u32 = 0x3b69;
const VFIO_DEVICE_DETACH_IOMMUFD_PT: u32 = 0x3b78;
const IOMMU_DESTROY: u32 = 0x3b80;
const VFIO_DEVICE_SET_IRQS: u32 = 0x3b6e;
const VFIO_DEVICE_RESET: u32 = 0x3b6f;
const VFIO_IOMMU_MAP_DMA: u32 = 0x3b71;
const VFIO_IOMMU_UNMAP_DMA: u32 = 0x3b72;
const IOMMU_IOAS_MAP: u32 = 0x3b85;
const IOMMU_IOAS_UNMAP: u32 = 0x3b86;

/// A guest sets queues up that the kernel sees to.
const VHOST_SET_VRING_NUM: u32 = 0x4008_af10;
const VHOST_SET_VRING_ADDR: u32 = 0x4028_af11;
const VHOST_SET_VRING_BASE: u32 = 0x4008_af12;
const VHOST_SET_VRING_KICK: u32 = 0x4008_af20;
const VHOST_SET_VRING_CALL: u32 = 0x4008_af21;
const VHOST_NET_SET_BACKEND: u32 = 0x4008_af30;

/// Requests that follow from a guest's stores to devices, or from their reset: BARs move, interrupts are connected, queues go to
/// the kernel and come back.
const CONFIGURES: Call = Request(
    libc::SYS_ioctl,
    1,
    &[
        KVM_SET_USER_MEMORY_REGION,
        KVM_SET_GSI_ROUTING,
        KVM_IRQFD,
        KVM_IOEVENTFD,
        VFIO_DEVICE_SET_IRQS,
        VFIO_DEVICE_RESET,
        VFIO_IOMMU_MAP_DMA,
        VFIO_IOMMU_UNMAP_DMA,
        IOMMU_IOAS_MAP,
        IOMMU_IOAS_UNMAP,
        VHOST_SET_VRING_NUM,
        VHOST_SET_VRING_ADDR,
        VHOST_SET_VRING_BASE,
        VHOST_SET_VRING_KICK,
        VHOST_SET_VRING_CALL,
        VHOST_NET_SET_BACKEND,
    ],
);

const VCPU: &[Call] = &[
    Request(libc::SYS_ioctl, 1, &[KVM_RUN, KVM_GET_REGS]),
    CONFIGURES,
    // Doorbells to which KVM does not listen.
    Any(libc::SYS_io_submit),
    Any(libc::SYS_io_getevents),
    // Registers of passed-through devices.
    Any(libc::SYS_pread64),
    Any(libc::SYS_pwrite64),
];

const DEVICE: &[Call] = &[
    // The next client of a console, or the next peer of a network's stream.
    Any(libc::SYS_accept4),
    Any(libc::SYS_pread64),
    Any(libc::SYS_pwrite64),
    Any(libc::SYS_recvfrom),
    Any(libc::SYS_sendto),
    Any(libc::SYS_fdatasync),
];

const CLIENT: &[Call] = &[
    Any(libc::SYS_recvmsg),
    // The call of a restarted server: by which user, and with which file.
    Any(libc::SYS_accept4),
    Any(libc::SYS_getsockopt),
    Any(libc::SYS_geteuid),
    Any(libc::SYS_sendto),
    Any(libc::SYS_fstat),
    Any(libc::SYS_statx),
    Request(libc::SYS_fcntl, 1, &[libc::F_DUPFD_CLOEXEC as u32]),
    Request(libc::SYS_ioctl, 1, &[KVM_SET_GSI_ROUTING, KVM_IRQFD, KVM_IOEVENTFD]),
];

const CONSOLE: &[Call] = &[
    // Ctrl-A X.
    Own(libc::SYS_kill),
    Request(libc::SYS_ioctl, 1, &[TCGETS, TCSETS, TCSETSW, TIOCGWINSZ]),
];

// The button is pressed only where the guest listens to it.
const SIGNALS: &[Call] = &[Any(libc::SYS_rt_sigtimedwait), Request(libc::SYS_ioctl, 1, &[KVM_GET_IRQCHIP])];

const MONITOR: &[Call] =
    &[Any(libc::SYS_accept4), Any(libc::SYS_getsockopt), Any(libc::SYS_pread64), Any(libc::SYS_sendto)];

const MAIN: &[Call] = &[
    // A reset: devices, vCPUs and interrupt controllers; the kernel's file is open.
    CONFIGURES,
    Request(
        libc::SYS_ioctl,
        1,
        &[
            KVM_RUN,
            KVM_SET_IRQCHIP,
            KVM_SET_REGS,
            KVM_SET_SREGS,
            KVM_SET_LAPIC,
            KVM_SET_XSAVE,
            KVM_SET_XCRS,
            KVM_GET_MSRS,
            KVM_SET_MSRS,
            KVM_SET_VCPU_EVENTS,
            KVM_SET_MP_STATE,
            KVM_SET_DEBUGREGS,
        ],
    ),
    // A device that goes back: sysfs has its group as a link.
    Any(libc::SYS_readlink),
    Any(libc::SYS_lseek),
    Any(libc::SYS_fstat),
    Any(libc::SYS_statx),
    // The end: devices and sections go back, the terminal becomes what it was.
    Request(
        libc::SYS_ioctl,
        1,
        &[
            VFIO_GROUP_UNSET_CONTAINER,
            VFIO_DEVICE_DETACH_IOMMUFD_PT,
            IOMMU_DESTROY,
            KVM_SET_DEVICE_ATTR,
            TCGETS,
            TCSETS,
            TCSETSW,
        ],
    ),
    Request(
        libc::SYS_fcntl,
        1,
        &[libc::F_OFD_SETLK as u32, libc::F_OFD_SETLKW as u32, libc::F_OFD_GETLK as u32],
    ),
    Any(libc::SYS_pread64),
    Any(libc::SYS_pwrite64),
    Any(libc::SYS_shutdown),
    // The sockets of network cards, as far as Landlock lets it.
    Any(libc::SYS_unlink),
];

/// Calls that a kind of thread may make.
pub(crate) fn calls(kind: Kind) -> impl Iterator<Item = Call> {
    let own = match kind {
        Kind::Vcpu => VCPU,
        Kind::Device => DEVICE,
        Kind::Client => CLIENT,
        Kind::Console => CONSOLE,
        Kind::Signals => SIGNALS,
        Kind::Monitor => MONITOR,
        Kind::Main => MAIN,
    };
    RUNTIME.iter().chain(own).copied()
}
