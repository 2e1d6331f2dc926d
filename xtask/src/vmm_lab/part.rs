//! Parts of the VMM's lab: a script for the host, one for its VMs, and the checks that both must pass together.
//!
//! A new part is a folder of `xtask/vmm` and an entry of [`PARTS`]. Its scripts see what `host` and `guest-init` define,
//! and call `check` for each thing that is wanted here.

/// One part.
#[derive(Debug)]
pub struct Part {
    /// Its name, with which all that it says begins.
    pub name: &'static str,
    /// The host's script.
    pub host: &'static str,
    /// The script of each VM that the part starts by `vm`.
    pub guest: &'static str,
    /// Whether it needs MPI programs and the guest driver.
    pub mpi: bool,
    /// Checks that must succeed: `vmm-lab: ok NAME-` and this must be seen. A VM's own begin with its name.
    pub wanted: &'static [&'static str],
}

/// All parts, in the order in which they run.
pub const PARTS: &[Part] = &[
    Part {
        name: "pair",
        host: include_str!("../../vmm/pair/host"),
        guest: include_str!("../../vmm/pair/guest"),
        mpi: false,
        wanted: &[
            "vm0-cpus",
            "vm0-uuid",
            "vm0-region",
            "vm0-disk",
            "vm0-disk-read-only",
            "vm0-disk-private-copy",
            "vm0-random",
            "vm0-section-of-peer",
            "vm0-section-of-peer-stays",
            "vm0-own-section",
            "vm0-ping",
            "vm1-cpus",
            "vm1-uuid",
            "vm1-region",
            "vm1-disk",
            "vm1-disk-read-only",
            "vm1-random",
            "vm1-section-of-peer",
            "vm1-section-of-peer-stays",
            "vm1-own-section",
            "vm1-ping",
            "vm0-memory-on-node",
            "vm0-section-on-node",
            "vm0-memory-is-bound",
            "vm0-switched-off",
            "vm0-store-is-told-once",
            "vm1-memory-on-node",
            "vm1-section-on-node",
            "vm1-memory-is-bound",
            "vm1-switched-off",
            "vm1-store-is-told-once",
            "image-stays",
            "sections-are-free",
            "region-is-gone",
        ],
    },
    Part {
        name: "numa",
        host: include_str!("../../vmm/numa/host"),
        guest: include_str!("../../vmm/numa/guest"),
        mpi: false,
        wanted: &[
            "map-nodes",
            "map-cpus",
            "map-memory",
            "map-distances",
            "map-access",
            "map-packages",
            "map-regions",
            "node0-is-bound",
            "node0-memory",
            "node0-status",
            "node1-is-bound",
            "node1-memory",
            "node1-status",
            "vcpu0",
            "vcpu1",
            "switched-off",
        ],
    },
    Part {
        name: "power",
        host: include_str!("../../vmm/power/host"),
        guest: include_str!("../../vmm/power/guest"),
        mpi: false,
        wanted: &[
            "vm0-section-is-kept",
            "vm0-console-typed",
            "vm0-button",
            "console-printed",
            "ping",
            "vhost-is-told",
            "vm0-switched-off",
            "button-is-told",
            "reset-is-told",
        ],
    },
    Part {
        name: "mpi",
        host: include_str!("../../vmm/mpi/host"),
        guest: "",
        mpi: true,
        wanted: &[
            "up",
            "vms-answer",
            "no-leakage",
            "vm0-section",
            "vm0-memory-type",
            "vm1-section",
            "vm1-memory-type",
            "job-ended",
            "job-checks",
            "job-uses-vmshm",
            "down",
            "region-is-gone",
            "network-is-gone",
        ],
    },
    Part {
        name: "passthrough",
        host: include_str!("../../vmm/passthrough/host"),
        guest: include_str!("../../vmm/passthrough/guest"),
        mpi: false,
        wanted: &[
            "cure-of-the-driver",
            "doctor",
            "dry-run",
            "cure-of-the-limit",
            "vm0-below-a-root-port",
            "vm0-on-its-node",
            "vm0-driver",
            "vm0-disk",
            "vm0-disk-written",
            "vm0-msi-x",
            "vm0-interrupts-came",
            "vm0-disk-by-line",
            "vm0-line-interrupts-came",
            "vm0-writes-own-section",
            "vm0-reads-another-s-memory",
            "vm0-what-it-read",
            "vm0-does-not-write-another-s-section",
            "in-use",
            "switched-off",
            "reaches-memory",
            "reaches-own-section",
            "reads-the-rest",
            "iommu-refused-a-store",
        ],
    },
];

impl Part {
    /// Checks of this part that a console does not show, each with what it says instead.
    pub fn missing(&self, console: &str) -> Vec<String> {
        let says = |what: &str| {
            let wanted = format!("vmm-lab: {what}");
            console
                .lines()
                .map(str::trim)
                .find(|line| line.ends_with(&wanted) || line.contains(&format!("{wanted}: ")))
        };
        let named = |check: &&&str| says(&format!("ok {}-{check}", self.name)).is_none();
        let why = |check: &&str| {
            let line = says(&format!("not ok {}-{check}", self.name));
            format!("{}-{check}: {}", self.name, line.unwrap_or("was not reached"))
        };
        self.wanted.iter().filter(named).map(why).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_with_what_was_seen() {
        let part = Part { name: "part", host: "", guest: "", mpi: false, wanted: &["a", "a-b", "c"] };
        let console = "[ 1.0] vmm-lab: ok part-a-b\r\nvmm-lab: not ok part-a: 1 instead of 2\n";
        let missing = part.missing(console);
        assert_eq!(missing.len(), 2);
        assert!(missing[0].starts_with("part-a: ") && missing[0].contains("1 instead of 2"), "{missing:?}");
        assert_eq!(missing[1], "part-c: was not reached");
        assert!(part.missing("vmm-lab: ok part-a\nvmm-lab: ok part-a-b\nvmm-lab: ok part-c").is_empty());
    }
}
