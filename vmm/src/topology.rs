//! Which vCPUs share a core, caches and a package. The guest learns of it by [CPUID](crate::cpuid).
//!
//! vCPUs that are pinned are to each other what their CPUs are. An APIC id is made of numbers, one per level: the package,
//! its third-level cache, the second-level cache in that, the core, the thread. So what two vCPUs share is seen from the
//! upper bits of their ids, as processors have it.

use std::collections::BTreeMap;
use std::fs;

use crate::sysfs::{list, siblings};

/// Levels of what processors share, from the outermost on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    Package,
    L3,
    L2,
    Core,
    Thread,
}

impl Level {
    pub(crate) const ALL: [Self; LEVELS] = [Self::Package, Self::L3, Self::L2, Self::Core, Self::Thread];

    /// Those that share a cache of this level, as CPUID numbers these.
    pub(crate) fn sharing(cache: u32) -> Self {
        match cache {
            1 => Self::Core,
            2 => Self::L2,
            _ => Self::L3,
        }
    }
}

const LEVELS: usize = Level::Thread as usize + 1;

/// A cache, as CPUID describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cache {
    pub(crate) shared: Level,
    /// 1 for data, 2 for instructions, 3 for both.
    pub(crate) kind: u32,
    /// Bytes of a line.
    pub(crate) line: u32,
    pub(crate) ways: u32,
    pub(crate) sets: u32,
}

/// The groups that a processor belongs to, by level. A number names a group only inside that of the level above.
pub(crate) type Groups = [usize; LEVELS];

/// The guest's processors by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topology {
    ids: Vec<u32>,
    /// Bits of an id that each level has.
    widths: [u32; LEVELS],
}

impl Topology {
    /// One package with that many cores of one thread each, for vCPUs that run anywhere.
    pub fn flat(vcpus: usize) -> Self {
        Self::of((0..vcpus).map(|number| [0, 0, number, number, number]).collect())
    }

    /// As these CPUs of the host are, one for each vCPU.
    pub fn like(cpus: &[usize]) -> Self {
        let groups = |(number, &cpu)| {
            let [package, l3, l2, core] = host_groups(cpu);
            [package, l3, l2, core, number]
        };
        Self::of(cpus.iter().enumerate().map(groups).collect())
    }

    pub(crate) fn of(groups: Vec<Groups>) -> Self {
        let mut ids = vec![0; groups.len()];
        let mut widths = [0; LEVELS];
        for level in 0..LEVELS {
            // Numbered as vCPUs come, so that vCPU 0, with which a machine starts, has the id 0.
            let mut numbers: BTreeMap<&[usize], usize> = BTreeMap::new();
            let mut counts: BTreeMap<&[usize], usize> = BTreeMap::new();
            for groups in &groups {
                numbers.entry(&groups[..=level]).or_insert_with(|| {
                    let count = counts.entry(&groups[..level]).or_default();
                    *count += 1;
                    *count - 1
                });
            }
            let most = counts.into_values().max().unwrap_or(1);
            widths[level] = most.next_power_of_two().trailing_zeros();
            for (id, groups) in ids.iter_mut().zip(&groups) {
                *id = *id << widths[level] | numbers[&groups[..=level]] as u32;
            }
        }
        Self { ids, widths }
    }

    /// Number of vCPUs.
    pub fn len(&self) -> usize {
        self.ids.len()
    }

    /// Whether there is no vCPU.
    pub fn is_empty(&self) -> bool {
        self.ids.is_empty()
    }

    /// APIC ids by number of the vCPU. The first is 0.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Bits of an id below those that name a group of this level.
    pub(crate) fn shift(&self, level: Level) -> u32 {
        self.widths[level as usize + 1..].iter().sum()
    }

    /// vCPUs in the largest group of this level.
    pub(crate) fn most(&self, level: Level) -> u32 {
        let mut counts: BTreeMap<u32, u32> = BTreeMap::new();
        for id in &self.ids {
            *counts.entry(id >> self.shift(level)).or_default() += 1;
        }
        counts.into_values().max().unwrap_or(0)
    }
}

/// The groups of a CPU of this host down to its core, each named by the first CPU in it. A level that the kernel does not
/// tell of is taken for shared by the package, or for the core's own.
fn host_groups(cpu: usize) -> [usize; Level::Thread as usize] {
    let dir = format!("/sys/devices/system/cpu/cpu{cpu}");
    let read = |path: String| fs::read_to_string(format!("{dir}/{path}")).ok();
    let first = |path: String| list(&read(path)?).first().copied();
    let cache = |level: &str| {
        (0..8).find_map(|index| {
            let found = read(format!("cache/index{index}/level"))?;
            first(format!("cache/index{index}/shared_cpu_list")).filter(|_| found.trim() == level)
        })
    };
    let package = first("topology/core_siblings_list".into()).unwrap_or(0);
    let core = siblings(cpu).first().copied().unwrap_or(cpu);
    [package, cache("3").unwrap_or(package), cache("2").unwrap_or(core), core]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cores_without_more_are_numbered_through() {
        let topology = Topology::flat(5);
        assert_eq!(topology.ids(), [0, 1, 2, 3, 4]);
        let shifts = [Level::Package, Level::L3, Level::L2, Level::Core].map(|level| topology.shift(level));
        assert_eq!(shifts, [3, 3, 0, 0]);
        assert_eq!((topology.most(Level::Core), topology.most(Level::Package)), (1, 5));
    }

    /// Two packages with two third-level caches each, under each of them three cores of two threads: first threads come
    /// first, as the VMM takes CPUs.
    #[test]
    fn what_vcpus_share_is_seen_from_the_upper_bits() {
        let mut groups = Vec::new();
        for package in [40, 0] {
            for thread in 0..2 {
                for core in 0..6 {
                    groups.push([package, package + core / 3, core, core, 2 * core + thread]);
                }
            }
        }
        let topology = Topology::of(groups);
        let shifts = [Level::Package, Level::L3, Level::L2, Level::Core, Level::Thread]
            .map(|level| topology.shift(level));
        assert_eq!(shifts, [4, 3, 1, 1, 0]);
        assert_eq!(topology.ids()[..12], [0, 2, 4, 8, 10, 12, 1, 3, 5, 9, 11, 13]);
        assert_eq!(topology.ids()[12..14], [16, 18]);
        let most = [Level::Package, Level::L3, Level::Core].map(|level| topology.most(level));
        assert_eq!(most, [12, 6, 2]);
    }

    #[test]
    fn a_cache_that_several_cores_share_stands_between_them_and_the_next() {
        let topology = Topology::of((0..8).map(|core| [0, 0, core / 4, core, core]).collect());
        let shifts = [Level::Package, Level::L3, Level::L2, Level::Core].map(|level| topology.shift(level));
        assert_eq!(shifts, [3, 3, 2, 0]);
    }

    #[test]
    fn each_vcpu_has_an_id_of_its_own_like_this_host_s_cpus() {
        let topology = Topology::like(&[0, 0, 0]);
        assert_eq!(topology.ids(), [0, 1, 2], "even where they share a CPU");
        assert_eq!(topology.most(Level::Core), 3);
    }
}
