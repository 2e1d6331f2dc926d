//! The ways that messages can go, which are compared with one another.

use crate::mpi::host_mpi::Layer;

/// A layer with the settings of its column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// The heading of its column.
    pub name: &'static str,
    /// Layer that carries the messages.
    pub layer: Layer,
    /// Further options of mpirun.
    pub args: &'static [&'static str],
}

const fn plain(layer: Layer) -> Way {
    Way { name: layer.name(), layer, args: &[] }
}

/// Ours.
pub const VMSHM: Way = plain(Layer::Vmshm);
/// Open MPI's shared memory with a copy in and a copy out.
pub const TWO_COPIES: Way = plain(Layer::VaderTwoCopies);
/// Open MPI's shared memory, the receiver reading the sender's memory.
pub const CMA: Way = plain(Layer::VaderCma);
/// As [`TWO_COPIES`] and [`CMA`], by the names of Open MPI 5.0 and later; collective operations are then `tuned`'s.
pub const SM: [Way; 2] = [Way { name: "sm 2-copy", ..TWO_COPIES }, Way { name: "sm CMA", ..CMA }];
/// Components for collective operations that Open MPI 5.0 does not take of itself, given the highest priority.
pub const COLL_5: &[Way] = &[above("coll/sm", &["--mca", "coll_sm_priority", "100"])];
/// The same of 6.0.
pub const COLL_6: &[Way] = &[
    above("coll/xhc", &["--mca", "coll_xhc_priority", "100"]),
    above("coll/acoll", &["--mca", "coll_acoll_priority", "100"]),
];
/// Processes of two hosts, as of two virtual machines: ours, and `han`'s collective operations over ours and without. Open MPI 6.0
/// has no TCP between two names of one host: the last is for 5.0.
pub const BETWEEN_HOSTS: &[Way] = &[
    Way { name: "vmshm", layer: Layer::VmshmAndVader, args: &[] },
    Way { name: "han over vmshm", layer: Layer::VmshmAndVader, args: &["--mca", "coll", "^vmshm"] },
    Way { name: "han over tcp", layer: Layer::VaderAndTcp, args: &[] },
];
/// Ours under UCX.
pub const UCX_VMSHM: Way = plain(Layer::UcxVmshm);
/// The same, of memory that UCX takes from our section.
pub const UCX_SECTION: Way = Way { args: &["-x", "UCX_ALLOC_PRIO=md:vmshm,mmap,heap"], ..UCX_VMSHM };
/// UCX with a copy in and a copy out.
pub const UCX: Way = plain(Layer::UcxPosix);
/// UCX, the receiver reading the sender's memory.
pub const UCX_CMA: Way = plain(Layer::UcxCma);
/// UCX over the loopback device.
pub const UCX_TCP: Way = plain(Layer::UcxTcp);
/// The loopback device.
pub const TCP: Way = plain(Layer::Tcp);

const fn above(name: &'static str, args: &'static [&'static str]) -> Way {
    Way { name, args, ..CMA }
}

const RDMA: &[&str] = &["--mca", "osc", "rdma"];
const PT2PT: &[&str] = &["--mca", "osc", "pt2pt"];

/// One-sided operations over ours: the first of these that runs is what there is between virtual machines.
pub const OSC_OURS: [Way; 3] = [
    // Built upon pt2pt, which it must be able to find.
    Way { name: "vmshm osc/vmshm", layer: Layer::Vmshm, args: &["--mca", "osc", "vmshm,pt2pt"] },
    Way { name: "vmshm osc/rdma", layer: Layer::Vmshm, args: RDMA },
    Way { name: "vmshm osc/pt2pt", layer: Layer::Vmshm, args: PT2PT },
];
/// One-sided operations over Open MPI's shared memory, `osc/sm` being what it takes by itself within a host.
pub const OSC_PEERS: [Way; 4] = [
    Way { name: "vader CMA osc/rdma", layer: Layer::VaderCma, args: RDMA },
    Way { name: "vader 2-copy osc/pt2pt", layer: Layer::VaderTwoCopies, args: PT2PT },
    Way { name: "vader CMA osc/pt2pt", layer: Layer::VaderCma, args: PT2PT },
    Way { name: "osc/sm", layer: Layer::VaderTwoCopies, args: &["--mca", "osc", "sm"] },
];

impl Way {
    /// Whether this is ours.
    pub fn is_ours(&self) -> bool {
        matches!(self.layer, Layer::Vmshm | Layer::VmshmAndVader | Layer::UcxVmshm)
    }
}
