//! A view of running VMs: as JSON, as a table, or as one that is drawn anew again and again.

use std::io::Write;
use std::time::Duration;

use serde::Serialize;

/// Options of a view.
#[derive(Debug, clap::Args)]
pub struct View {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Look anew every so many seconds, rather than once
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", conflicts_with = "json")]
    watch: Option<u64>,
}

impl View {
    /// Shows what `look` sees, once or until somebody ends this program.
    pub fn show<T: Serialize>(
        &self,
        mut look: impl FnMut() -> Vec<T>,
        table: fn(&[T]) -> String,
    ) -> anyhow::Result<()> {
        let mut out = std::io::stdout();
        loop {
            let seen = look();
            if self.json {
                serde_json::to_writer_pretty(&mut out, &seen)?;
                writeln!(out)?;
                return Ok(());
            }
            // Home, and clear what is below.
            let begin = if self.watch.is_some() { "\x1b[H\x1b[J" } else { "" };
            write!(out, "{begin}{}", table(&seen))?;
            out.flush()?;
            if self.watch.is_none() {
                return Ok(());
            }
            self.pause();
        }
    }

    /// Waits as long as lies between two looks, a second unless the user says otherwise.
    pub fn pause(&self) {
        std::thread::sleep(Duration::from_secs(self.watch.unwrap_or(1).max(1)));
    }
}

/// The beginning of a VM's part of a table.
pub fn title(pid: u32, regions: &[String]) -> String {
    let regions = if regions.is_empty() { "no region".to_owned() } else { regions.join(", ") };
    format!("VM of pid {pid}, {regions}")
}
