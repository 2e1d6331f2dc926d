//! MPI jobs on this host and in guests, and the programs that they run.

pub mod guest_mpi;
pub mod host_mpi;
pub mod hpcc;
pub mod mpi4py;
pub mod mpich;
pub mod osu;
pub mod other_debian;
pub mod traffic;
pub mod two_hosts;
