//! The collective component `vmshm`: barrier, broadcast, reductions and exchanges among the processes of one region.
//!
//! It is a component of its own for Open MPI, found as `mca_coll_vmshm.so`; that must be a link to `mca_btl_vmshm.so`, so
//! that both share one attached endpoint. The common work of a communicator's members is
//! [`vmshm_transport::collective`]; here is the translation:
//!
//! - `component`: what Open MPI calls once, and for each new communicator; `names`: what processes have published.
//! - `state`: a communicator's module; `meet`: its group, made at the first operation; `group`: that group and its memory;
//!   `waiting`: how it waits for members.
//! - `functions`: what a module takes over; `run`: an operation's way.
//! - `barrier`, `bcast`, `reduce`, `allreduce`, `allgather`, `gather`, `scatter`, `alltoall`: the operations.
//! - `vector`: the exchange of parts of any lengths, for gatherv, scatterv and alltoallv.
//! - `datatype`: buffers of any datatype as bytes; `op`: Open MPI's operations on those.
//! - `hierarchy`: operations in two levels, for members of several regions or virtual machines, where the user wants that.
//!
//! Whether an operation is ours is decided alike by all members, from what all know:
//!
//! - The communicator: all members in one region (several: `hierarchy`), more than one, of one job, none of which sleeps.
//! - The size: payloads of more than 4 KiB need memory for chunks from every member's section; elements of an operation must
//!   fit half a chunk, and the parts of a scatter or alltoall a chunk together.
//!
//! All else is handed to the component below us. With a processor for each member, that component over the BTL `vmshm` was
//! faster at no size (2 members; broadcasts of 1 MiB are equal). Where 4 members share 2 processors it is faster at
//! broadcasts up to 4 KiB (2 to 3 times, as long as it does the barriers between them as well), at nothing else. These stay
//! ours: handed over alone, they took half as long again. `coll_vmshm_priority` hands over everything.
//!
//! Members of one VM and those of another are one level; this is argued, not measured, since it takes two nodes of many cores.
//! A line that all read crosses between the VMs' nodes once, if the first reader brings it to a cache that its node shares. A
//! leader that copied it to a line of its own would save no crossing, and add one more way from core to core and a copy to
//! everyone's time. A word that each member says by itself, as in a barrier or an allreduce, does cross for each of them where two
//! leaders would need two crossings; but these are under way at the same time, while levels would put two more ways between
//! cores one after the other. That can pay only for many members a VM; barriers of more than eight go in rounds instead.
//! A user of such machines can try it (`coll_vmshm_levels` 2). With 4 and 8 members on 2 cores it takes 1.1 to 4 times as long.

mod allgather;
mod allreduce;
mod alltoall;
mod barrier;
mod bcast;
mod component;
mod datatype;
mod functions;
mod gather;
mod group;
mod hierarchy;
mod meet;

mod names;
mod op;
mod reduce;
mod run;
mod scatter;
mod state;
mod vector;
mod waiting;

pub use component::{comm_query, init_query, register};
pub use state::close;
