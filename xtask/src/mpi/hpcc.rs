//! HPC Challenge with a small problem, and the checks that it makes itself.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::host_mpi::{HostMpi, Layer};

/// The input file `hpccinf.txt`: one matrix of `n` rows over a grid of `rows` x `columns` ranks.
pub fn input(n: usize, rows: usize, columns: usize) -> String {
    let mut text = String::from("two lines\nof title\n");
    // The values in the order in which HPL reads them; what follows a value is a comment.
    for (value, meaning) in [
        ("HPL.out".to_owned(), "output file"),
        ("8".into(), "output goes to the file"),
        ("1".into(), "number of problem sizes"),
        (n.to_string(), "problem size"),
        ("1".into(), "number of block sizes"),
        ("80".into(), "block size"),
        ("0".into(), "process mapping"),
        ("1".into(), "number of grids"),
        (rows.to_string(), "rows"),
        (columns.to_string(), "columns"),
        ("16.0".into(), "threshold of the residual"),
        ("1".into(), "number of panel factorisations"),
        ("2".into(), "right"),
        ("1".into(), "number of stopping criteria"),
        ("4".into(), "stopping criterion"),
        ("1".into(), "number of panels"),
        ("2".into(), "panels in recursion"),
        ("1".into(), "number of recursive factorisations"),
        ("1".into(), "Crout"),
        ("1".into(), "number of broadcasts"),
        ("1".into(), "ring, modified"),
        ("1".into(), "number of look-ahead depths"),
        ("1".into(), "look-ahead depth"),
        ("2".into(), "swapping: mix"),
        ("64".into(), "swapping threshold"),
        ("0".into(), "L1 transposed"),
        ("0".into(), "U transposed"),
        ("1".into(), "equilibration"),
        ("8".into(), "memory alignment"),
        ("#".into(), "separator"),
        ("0".into(), "additional problem sizes for PTRANS"),
        ("0".into(), "none"),
        ("0".into(), "additional block sizes for PTRANS"),
        ("0".into(), "none"),
    ] {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{value:12} {meaning}");
    }
    text
}

/// Runs it with two processes over a layer; returns how many of its own checks passed.
pub fn run(mpi: &HostMpi, layer: Layer, logs: &Path, limit: Duration) -> Result<usize> {
    let dir = tempfile::tempdir()?;
    fs::write(dir.path().join("hpccinf.txt"), input(400, 1, 2))?;
    let mut command = mpi.mpirun(2, layer);
    command.arg("hpcc").current_dir(dir.path());
    mpi.run(command, "hpcc", &logs.join("hpcc.log"), limit)?.expect_success("hpcc")?;
    let output = fs::read_to_string(dir.path().join("hpccoutf.txt")).context("hpcc wrote no output")?;
    fs::write(logs.join("hpccoutf.txt"), &output)?;
    verify(&output)
}

/// Looks at the output file `hpccoutf.txt`; returns how many of its own checks passed.
pub fn verify(output: &str) -> Result<usize> {
    let passed = output.matches("PASSED").count() + output.matches("(passed)").count();
    let bad = output.lines().find(|line| line.contains("FAILED") || line.contains("(failed)"));
    if let Some(line) = bad {
        bail!("hpcc found an error: {}", line.trim());
    }
    if !output.lines().any(|line| line.trim() == "Success=1") {
        bail!("hpcc did not report success");
    }
    if passed == 0 {
        bail!("hpcc made no check");
    }
    Ok(passed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_input_has_as_many_lines_as_hpcc_reads() {
        assert_eq!(input(100, 1, 2).lines().count(), 36);
    }

    #[test]
    fn failures_are_seen() {
        assert_eq!(verify("x PASSED\nFound 0 errors (passed).\nSuccess=1\n").ok(), Some(2));
        assert!(verify("x PASSED\n").is_err());
        assert!(verify("x PASSED\ny FAILED\nSuccess=1\n").is_err());
        assert!(verify("Success=1\n").is_err());
    }
}
