//! One line for each thing that takes a while: a spinner on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};

/// Does `work` under a heading and tells how long it took, or that it failed.
pub fn during<T>(heading: &str, work: impl FnOnce(&ProgressBar) -> Result<T>) -> Result<T> {
    let terminal = std::io::stderr().is_terminal();
    let bar = if terminal {
        let bar = ProgressBar::new_spinner().with_style(
            ProgressStyle::with_template("{spinner} {prefix} [{elapsed}] {msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        bar.set_prefix(heading.to_owned());
        bar.enable_steady_tick(Duration::from_millis(200));
        bar
    } else {
        eprintln!("- {heading} ...");
        ProgressBar::hidden()
    };
    let begin = Instant::now();
    let result = work(&bar);
    bar.finish_and_clear();
    let seconds = begin.elapsed().as_secs_f64();
    match &result {
        Ok(_) => eprintln!("- {heading}: done in {seconds:.1} s"),
        Err(_) => eprintln!("- {heading}: FAILED after {seconds:.1} s"),
    }
    result
}
