//! Debian's packages and suites: what this machine is given, and what images and kernels are made of.

pub mod apt;
pub mod cache;
pub mod chroot;
pub mod packages;
