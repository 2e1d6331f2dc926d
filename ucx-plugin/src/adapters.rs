//! Network adapters that UCX has transports for.

use std::fs;
use std::path::Path;

/// Where the kernel lists them.
pub const DIRECTORY: &str = "/sys/class/infiniband";

/// Bytes a second of the fastest port of all adapters; none where there is no adapter.
pub fn fastest(directory: &Path) -> Option<f64> {
    let entries = |directory: &Path| fs::read_dir(directory).into_iter().flatten().flatten();
    let ports = entries(directory).flat_map(|adapter| entries(&adapter.path().join("ports")));
    let rates = ports.filter_map(|port| rate(&fs::read_to_string(port.path().join("rate")).ok()?));
    rates.max_by(f64::total_cmp)
}

/// Bytes a second, of a text like `100 Gb/sec (4X EDR)`.
fn rate(text: &str) -> Option<f64> {
    let (number, unit) = text.split_once(' ')?;
    let gigabits: f64 = number.parse().ok()?;
    (unit.starts_with("Gb/sec") && gigabits.is_finite()).then_some(gigabits * 1e9 / 8.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_port_counts() {
        let directory = tempfile::tempdir().unwrap();
        assert_eq!(fastest(directory.path()), None);
        for (port, text) in
            [("mlx5_0/ports/1", "100 Gb/sec (4X EDR)\n"), ("rxe0/ports/1", "2.5 Gb/sec (1X SDR)\n")]
        {
            let port = directory.path().join(port);
            fs::create_dir_all(&port).unwrap();
            fs::write(port.join("rate"), text).unwrap();
        }
        fs::create_dir_all(directory.path().join("odd/ports/1")).unwrap();
        assert_eq!(fastest(directory.path()), Some(12.5e9));
        assert_eq!(rate("fast"), None);
    }
}
