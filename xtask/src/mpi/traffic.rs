//! Traffic over vmshm as the processes of a job count it: the performance variables that `vmshm-mpi-traffic` prints.

use std::collections::BTreeMap;

/// Values by rank, its peer's rank, and the variable's name without `btl_vmshm_`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Traffic(BTreeMap<(usize, usize, String), u64>);

impl Traffic {
    /// Reads what the job has printed.
    pub fn parse(text: &str) -> Self {
        let value = |line: &str| {
            let [rank, peer, name, value] =
                line.strip_prefix("traffic ")?.split_whitespace().collect::<Vec<_>>().try_into().ok()?;
            let name = str::strip_prefix(name, "btl_vmshm_")?.to_owned();
            Some(((str::parse(rank).ok()?, str::parse(peer).ok()?, name), str::parse(value).ok()?))
        };
        Self(text.lines().filter_map(value).collect())
    }

    /// What a rank has counted of its traffic with another.
    pub fn of(&self, rank: usize, peer: usize, name: &str) -> u64 {
        self.0.get(&(rank, peer, name.to_owned())).copied().unwrap_or(0)
    }

    /// Bytes that a rank has received from another, whichever way.
    pub fn received(&self, rank: usize, peer: usize) -> u64 {
        let ways = ["inline_received_bytes", "fragments_received_bytes", "get_bytes"];
        ways.iter().map(|way| self.of(rank, peer, way)).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_a_job_are_read_among_others() {
        let text = "# a line\ntraffic 0 1 btl_vmshm_gets 3\ntraffic 0 1 btl_vmshm_get_bytes 300\ntraffic 0 1 pml_x 9\n\
                    traffic 1 0 btl_vmshm_inline_received_bytes 64\n";
        let traffic = Traffic::parse(text);
        assert_eq!((traffic.of(0, 1, "gets"), traffic.of(0, 1, "puts"), traffic.of(1, 0, "gets")), (3, 0, 0));
        assert_eq!((traffic.received(0, 1), traffic.received(1, 0), traffic.received(0, 2)), (300, 64, 0));
    }
}
