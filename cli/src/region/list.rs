//! `vmshm region list`.

use std::io::Write;

use serde_json::json;
use vmshm_host::{Registry, State, format_bytes};

/// Options of `vmshm region list`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Prints one line for each region.
    pub fn run(&self) -> anyhow::Result<()> {
        let registry = Registry::from_env();
        let mut rows = Vec::new();
        for listed in registry.list()? {
            let path = registry.dir().join(&listed.name);
            rows.push(match listed.region.and_then(|region| Ok((region.entries()?, region))) {
                Ok((entries, region)) => {
                    let free = entries.iter().filter(|entry| State::of(entry) == State::Free).count();
                    json!({
                        "name": listed.name,
                        "path": path,
                        "id": region.id(),
                        "size": region.header().region_len,
                        "page_len": region.header().page_len,
                        "sections": region.header().sections,
                        "free_sections": free,
                        "endpoints_per_section": region.header().endpoints,
                        "open": region.header().is_open(),
                    })
                }
                Err(error) => json!({ "name": listed.name, "path": path, "error": error.to_string() }),
            });
        }
        let mut out = std::io::stdout().lock();
        if self.json {
            writeln!(out, "{}", serde_json::to_string_pretty(&rows)?)?;
            return Ok(());
        }
        if rows.is_empty() {
            writeln!(
                out,
                "no regions in {}; `vmshm region create NAME --size 8G` makes one",
                registry.dir().display()
            )?;
            return Ok(());
        }
        writeln!(out, "{:<24} {:>10} {:>8} {:>6} {:>6}  ID", "NAME", "SIZE", "SECTIONS", "FREE", "PAGES")?;
        for row in rows {
            let name = printable(row["name"].as_str().unwrap_or_default());
            if let Some(error) = row["error"].as_str() {
                writeln!(out, "{name:<24} {error}")?;
                continue;
            }
            let bytes = |key: &str| format_bytes(row[key].as_u64().unwrap_or(0));
            writeln!(
                out,
                "{:<24} {:>10} {:>8} {:>6} {:>6}  {}",
                name,
                bytes("size"),
                row["sections"].to_string(),
                row["free_sections"].to_string(),
                bytes("page_len"),
                row["id"].as_str().unwrap_or_default()
            )?;
        }
        Ok(())
    }
}

/// A file's name without what could garble a terminal.
fn printable(name: &str) -> String {
    name.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}
