//! Cases: programs with their options, sizes and ways.

use super::way::{
    CMA, OSC_PEERS, SM, TCP, TWO_COPIES, UCX, UCX_CMA, UCX_SECTION, UCX_TCP, UCX_VMSHM, VMSHM, Way,
};

/// UCX's own benchmark.
pub const PERFTEST: &str = "ucx_perftest";

/// How often, for the sizes from the first to the last.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Smallest message, bytes.
    pub least: u64,
    /// Largest message, bytes.
    pub most: u64,
    /// Iterations that are timed.
    pub iterations: u32,
    /// Iterations before that.
    pub warmup: u32,
}

/// One program with its options, over several ways.
#[derive(Debug, Clone)]
pub struct Case {
    /// Its name in tables and files.
    pub name: String,
    /// The program.
    pub program: &'static str,
    /// Options of ours that OSU's programs do not have.
    pub ours: &'static [&'static str],
    /// Its sizes; none for a program without.
    pub parts: &'static [Part],
    /// The columns; the first is ours.
    pub ways: Vec<Way>,
    /// Unit and meaning of the figures.
    pub unit: &'static str,
    /// Ours works in an open region, where members write each other's memory.
    pub is_open: bool,
    /// Its processes have two hosts' names, as those of two virtual machines have.
    pub between_hosts: bool,
}

/// Remark on a case in an open region.
pub const OPEN: &str = "(open region)";

/// Messages that have no target.
const MORE_MESSAGES: &[&str] = &["osu_bibw", "osu_multi_lat"];

/// Collective operations that have no target.
const MORE_COLLECTIVES: &[&str] =
    &["osu_gather", "osu_scatter", "osu_alltoall", "osu_gatherv", "osu_scatterv", "osu_alltoallv"];

/// Whether a program is measured only when it is asked for.
pub fn is_extra(program: &str) -> bool {
    MORE_MESSAGES.contains(&program) || MORE_COLLECTIVES.contains(&program)
}

const POINT_TO_POINT: [Way; 6] = [VMSHM, TWO_COPIES, CMA, UCX, UCX_CMA, TCP];
const COPYING: [Way; 3] = [VMSHM, TWO_COPIES, CMA];
const ALLOCATED: [Way; 3] = [VMSHM, CMA, UCX_CMA];

const VARY: &[&str] = &["--vary"];
const ALLOC: &[&str] = &["--alloc-mem"];
const ALLOC_VARY: &[&str] = &["--alloc-mem", "--vary"];
const WORDS: &[&str] = &["--words"];

const fn part(least: u64, most: u64, iterations: u32, warmup: u32) -> Part {
    Part { least, most, iterations, warmup }
}

// The warm-up of large messages touches the memory that they go through, some MiB, in every way: the first touch of each page is
// not what is measured.
const LATENCY: &[Part] =
    &[part(0, 8192, 5000, 200), part(16_384, 256 << 10, 300, 200), part(512 << 10, 4 << 20, 100, 20)];
const LATENCY_LARGE: &[Part] = &[part(16_384, 256 << 10, 300, 200), part(512 << 10, 4 << 20, 100, 20)];
const BANDWIDTH: &[Part] = &[part(1, 8192, 500, 20), part(16_384, 4 << 20, 10, 8)];
const BANDWIDTH_LARGE: &[Part] = &[part(16_384, 4 << 20, 10, 8)];
const RATE: &[Part] = &[part(1, 64, 1000, 50)];
const COLLECTIVE: &[Part] = &[part(4, 4096, 3000, 200), part(65_536, 1 << 20, 100, 10)];
const COLLECTIVE_LARGE: &[Part] = &[part(65_536, 1 << 20, 100, 10)];
const ONCE: &[Part] = &[part(0, 0, 10_000, 500)];
const ONE_SIDED: &[Part] = &[part(8, 4096, 5000, 200)];

/// All cases, of which `osc` is ours for one-sided operations.
pub fn all(osc: Option<Way>) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |program, ours: &'static [&str], parts, ways: &[Way], unit| {
        let name = [&[program], ours].concat().join(" ");
        cases.push(Case { ways: ways.to_vec(), ..Case::new(name, program, ours, parts, unit) });
    };
    add("osu_latency", &[], LATENCY, &POINT_TO_POINT, MICROSECONDS);
    add("osu_latency", VARY, LATENCY, &COPYING, MICROSECONDS);
    add("osu_latency", ALLOC, LATENCY_LARGE, &ALLOCATED, MICROSECONDS);
    add("osu_latency", ALLOC_VARY, LATENCY_LARGE, &ALLOCATED, MICROSECONDS);
    add("osu_bw", &[], BANDWIDTH, &POINT_TO_POINT, MEGABYTES);
    add("osu_bw", VARY, BANDWIDTH, &COPYING, MEGABYTES);
    add("osu_bw", ALLOC, BANDWIDTH_LARGE, &ALLOCATED, MEGABYTES);
    add("osu_bw", ALLOC_VARY, BANDWIDTH_LARGE, &ALLOCATED, MEGABYTES);
    add("osu_mbw_mr", &[], RATE, &POINT_TO_POINT, MEGABYTES);
    add("osu_mbw_mr", VARY, RATE, &COPYING, MEGABYTES);
    add("osu_bibw", &[], BANDWIDTH, &POINT_TO_POINT, MEGABYTES);
    add("osu_multi_lat", &[], LATENCY, &POINT_TO_POINT, MICROSECONDS);
    add("osu_barrier", &[], ONCE, &COPYING, MICROSECONDS);
    for program in COLLECTIVES.iter().chain(MORE_COLLECTIVES) {
        add(program, &[], COLLECTIVE, &COPYING, MICROSECONDS);
        add(program, VARY, COLLECTIVE, &COPYING, MICROSECONDS);
    }
    for program in COLLECTIVES {
        add(program, ALLOC, COLLECTIVE_LARGE, &COPYING, MICROSECONDS);
        add(program, ALLOC_VARY, COLLECTIVE_LARGE, &COPYING, MICROSECONDS);
    }
    if let Some(osc) = osc {
        let ways = [&[osc], &OSC_PEERS[..]].concat();
        for program in ONE_SIDED_PROGRAMS {
            add(program, &[], ONE_SIDED, &ways, MICROSECONDS);
        }
        add("osu_acc_latency", WORDS, ONE_SIDED, &ways, MICROSECONDS);
        let one_sided = cases.iter().filter(|case| ONE_SIDED_PROGRAMS.contains(&case.program));
        let open: Vec<Case> = one_sided
            .map(|case| Case { name: format!("{} {OPEN}", case.name), is_open: true, ..case.clone() })
            .collect();
        cases.extend(open);
    }
    cases
}

/// Remark on a case over Open MPI's pml/ucx.
pub const PML_UCX: &str = "(pml/ucx)";

/// Remark on a case whose messages lie in our section.
pub const SECTION: &str = "(section)";

const UNDER_UCX: [Way; 4] = [UCX_VMSHM, UCX, UCX_CMA, UCX_TCP];

const PERF_LATENCY: &[Part] =
    &[part(8, 64, 20_000, 1000), part(1024, 8192, 5000, 200), part(65_536, 1 << 20, 300, 20)];
const PERF_BANDWIDTH: &[Part] =
    &[part(8, 64, 50_000, 1000), part(1024, 8192, 10_000, 200), part(65_536, 1 << 20, 1000, 50)];
const PERF_SECTION: &[Part] = &[part(65_536, 1 << 20, 1000, 50)];
const PERF_SHORT: &[Part] = &[part(8, 32, 20_000, 1000)];
const PERF_COPIED: &[Part] = &[part(256, 4096, 10_000, 500)];

/// All cases under UCX: its own benchmark of UCP and of UCT, and programs over pml/ucx.
pub fn under_ucx() -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |program, ours: &'static [&str], remark: &str, parts, ways: &[Way], unit| {
        // A benchmark is known by its test and its way of copying.
        let words = ours.iter().copied().filter(|word| !word.starts_with('-'));
        let words = [program].into_iter().chain(words).chain(Some(remark)).filter(|word| !word.is_empty());
        let name = words.collect::<Vec<_>>().join(" ");
        cases.push(Case { ways: ways.to_vec(), ..Case::new(name, program, ours, parts, unit) });
    };
    add(PERFTEST, &["-t", "tag_lat"], "", PERF_LATENCY, &UNDER_UCX, MICROSECONDS);
    add(PERFTEST, &["-t", "ucp_am_lat"], "", PERF_LATENCY, &UNDER_UCX, MICROSECONDS);
    add(PERFTEST, &["-t", "tag_bw"], "", PERF_BANDWIDTH, &UNDER_UCX, MEGABYTES);
    add(PERFTEST, &["-t", "ucp_am_bw"], "", PERF_BANDWIDTH, &UNDER_UCX, MEGABYTES);
    add(PERFTEST, &["-t", "tag_bw"], SECTION, PERF_SECTION, &[UCX_SECTION, UCX, UCX_CMA], MEGABYTES);
    // No active messages by CMA.
    let ways = [UCX_VMSHM, UCX, UCX_TCP];
    add(PERFTEST, &["-t", "am_lat", "-D", "short"], "", PERF_SHORT, &ways, MICROSECONDS);
    add(PERFTEST, &["-t", "am_bw", "-D", "short"], "", PERF_SHORT, &ways, MEGABYTES);
    add(PERFTEST, &["-t", "am_lat", "-D", "bcopy"], "", PERF_COPIED, &ways, MICROSECONDS);
    add(PERFTEST, &["-t", "am_bw", "-D", "bcopy"], "", PERF_COPIED, &ways, MEGABYTES);
    add("osu_latency", &[], PML_UCX, LATENCY, &UNDER_UCX, MICROSECONDS);
    add("osu_bw", &[], PML_UCX, BANDWIDTH, &UNDER_UCX, MEGABYTES);
    add("osu_mbw_mr", &[], PML_UCX, RATE, &UNDER_UCX, MEGABYTES);
    cases
}

/// Processes of each of two hosts: of single ones, `han` makes no level.
pub const EACH: usize = 2;

/// Remark on a case between processes with two hosts' names.
pub const TWO_HOSTS: &str = "(two hosts)";

// Fewer parts than above, since to start a job takes longer there.
const LATENCY_OTHER: &[Part] = &[part(0, 8192, 5000, 200), part(16_384, 4 << 20, 100, 50)];
const BETWEEN: &[Part] = &[part(8, 65_536, 200, 20)];
const BETWEEN_ONCE: &[Part] = &[part(0, 0, 1000, 50)];

/// Cases for Open MPI 5.0 and later: messages, collective operations beside further components of its, and those of processes that
/// have two hosts' names.
pub fn of_other_mpi(components: &[Way], between_hosts: &[Way]) -> Vec<Case> {
    let mut cases = Vec::new();
    let messages = [&[VMSHM], &SM[..]].concat();
    let all = [&*messages, components].concat();
    let mut add = |program, ours: &'static [&str], parts, ways: &[Way], unit| {
        let name = [&[program], ours].concat().join(" ");
        cases.push(Case { ways: ways.to_vec(), ..Case::new(name, program, ours, parts, unit) });
    };
    add("osu_latency", VARY, LATENCY_OTHER, &messages, MICROSECONDS);
    add("osu_bw", VARY, BANDWIDTH, &messages, MEGABYTES);
    add("osu_barrier", &[], ONCE, &all, MICROSECONDS);
    for program in COLLECTIVES {
        add(program, VARY, COLLECTIVE, &all, MICROSECONDS);
    }
    for (program, ours, parts) in [
        ("osu_barrier", &[][..], BETWEEN_ONCE),
        ("osu_bcast", VARY, BETWEEN),
        ("osu_allreduce", VARY, BETWEEN),
    ] {
        let name = [&[program], ours, &[TWO_HOSTS]].concat().join(" ");
        let case = Case::new(name, program, ours, parts, MICROSECONDS);
        cases.push(Case { ways: between_hosts.to_vec(), between_hosts: true, ..case });
    }
    cases
}

/// Collective operations with data that have a target.
pub const COLLECTIVES: &[&str] = &["osu_bcast", "osu_reduce", "osu_allreduce", "osu_allgather"];

/// Operations on another process's memory.
pub const ONE_SIDED_PROGRAMS: &[&str] = &["osu_put_latency", "osu_get_latency", "osu_acc_latency"];

const MICROSECONDS: &str = "µs";
const MEGABYTES: &str = "MB/s";

impl Case {
    /// A case in a closed region, so far over no way.
    pub fn new(
        name: String,
        program: &'static str,
        ours: &'static [&'static str],
        parts: &'static [Part],
        unit: &'static str,
    ) -> Self {
        Self { name, program, ours, parts, ways: Vec::new(), unit, is_open: false, between_hosts: false }
    }

    /// Whether smaller figures are better.
    pub fn less_is_better(&self) -> bool {
        self.unit == MICROSECONDS
    }

    /// How many processes it has where there are so many cores.
    pub fn ranks(&self, cores: usize) -> usize {
        if self.between_hosts {
            return 2 * EACH;
        }
        // As many pairs as there are cores for; more would measure the scheduler.
        if matches!(self.program, "osu_multi_lat" | "osu_mbw_mr") { cores.min(16) / 2 * 2 } else { 2 }
    }
}
