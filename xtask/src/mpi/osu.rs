//! Programs with OSU's output format: ours, or the user's own build where `OSU_DIR` names one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// One figure for each message size in bytes.
pub type Points = Vec<(u64, f64)>;

/// Reads a table of OSU's: lines of a size and a figure, among comments and other text. The one figure of an operation
/// without data counts as that of size 0.
pub fn parse(text: &str) -> Result<Points> {
    let mut points: Points = text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let size = words.next()?.parse().ok()?;
            let figure = words.next()?.parse().ok()?;
            Some((size, figure))
        })
        .filter(|(_, figure): &(u64, f64)| figure.is_finite() && *figure > 0.0)
        .collect();
    if points.is_empty() {
        let mut lines = text.lines().skip_while(|line| line.trim() != "# Avg Latency(us)");
        points.extend(lines.nth(1).and_then(|line| line.trim().parse().ok()).map(|figure| (0, figure)));
    }
    if points.is_empty() {
        bail!(
            "no table of sizes and figures in this output:\n{}",
            crate::base::process::last_lines(text, 10)
        );
    }
    Ok(points)
}

/// The figure for one size, if it was measured.
pub fn at(points: &[(u64, f64)], size: u64) -> Option<f64> {
    points.iter().find(|p| p.0 == size).map(|p| p.1)
}

/// Where the program `name` is: below `OSU_DIR` if that is set, else in `ours`.
pub fn find(name: &str, ours: &Path) -> Result<PathBuf> {
    let Some(dir) = std::env::var_os("OSU_DIR") else {
        return Ok(ours.join(name));
    };
    let dir = PathBuf::from(dir);
    search(&dir, name, 6).with_context(|| {
        format!(
            "OSU_DIR is {}, but there is no program {name} in it; name a directory with a build of the \
             OSU micro-benchmarks, or unset OSU_DIR to use vmshm's own",
            dir.display()
        )
    })
}

fn search(dir: &Path, name: &str, depth: usize) -> Option<PathBuf> {
    let here = dir.join(name);
    if here.is_file() {
        return Some(here);
    }
    if depth == 0 {
        return None;
    }
    fs::read_dir(dir)
        .ok()?
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir()))
        .find_map(|entry| search(&entry.path(), name, depth - 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_read_among_other_text() -> Result<()> {
        let text = "[vm0] note\n# OSU MPI Latency Test\n# Size  Latency (us)\n0   1.5\n8 2.25\n1024\t3\n";
        assert_eq!(parse(text)?, vec![(0, 1.5), (8, 2.25), (1024, 3.0)]);
        Ok(())
    }

    #[test]
    fn an_operation_without_data_has_one_figure() -> Result<()> {
        let text = "# OSU MPI Barrier Latency Test v7\n# Avg Latency(us)\n             1.25\n";
        assert_eq!(parse(text)?, vec![(0, 1.25)]);
        Ok(())
    }

    #[test]
    fn output_without_a_table_is_an_error() {
        assert!(parse("# Size Latency\nmpirun: no such file\n8 nan\n").is_err());
    }
}
