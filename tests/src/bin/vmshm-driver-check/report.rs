//! Named checks: one line for each, and a closing line that xtask reads.

use anyhow::Result;

/// How many checks did what.
#[derive(Debug, Default)]
pub struct Report {
    passed: usize,
    failed: usize,
}

impl Report {
    /// Runs one check and prints its line.
    pub fn check(&mut self, name: &str, check: impl FnOnce() -> Result<()>) {
        match check() {
            Ok(()) => {
                self.passed += 1;
                println!("ok      {name}");
            }
            Err(error) => {
                self.failed += 1;
                println!("FAILED  {name}: {error:#}");
            }
        }
    }

    /// Prints the closing line; true if nothing failed and something passed.
    pub fn close(&self) -> bool {
        println!("checks: {} passed, {} failed, 0 skipped", self.passed, self.failed);
        self.failed == 0 && self.passed > 0
    }
}
