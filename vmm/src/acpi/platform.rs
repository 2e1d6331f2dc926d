//! Platform: what the tables are made from.

use crate::numa::Numa;
use crate::port::RootBus;
use crate::topology::{Cache, Topology};

/// Platform, as the tables tell of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Platform<'a> {
    /// vCPUs, whose ids end with [`LAST_ID`](super::LAST_ID).
    pub(crate) processors: &'a Topology,
    /// Caches, of which each group of vCPUs that shares one has one.
    pub(crate) caches: &'a [Cache],
    /// NUMA nodes, where there are several.
    pub(crate) numa: Option<&'a Numa>,
    /// 64-bit BARs: first address and length.
    pub(crate) bars_64: (u64, u64),
    /// Root buses besides bus 0.
    pub(crate) roots: &'a [RootBus],
}
