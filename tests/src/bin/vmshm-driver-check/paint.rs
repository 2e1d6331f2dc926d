//! Patterns that one VM writes into its section and another reads.

use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Context, Result};
use vmshm_tests::payload::Key;

use crate::layout::Layout;
use crate::mapping::{Map, PAGE};

const LEN: usize = 256 << 10;

/// Where the patterns lie in a section: in its middle, and near its end, whose last page other checks write.
fn places(len: u64) -> [u64; 2] {
    [len - (LEN + 16 * PAGE) as u64, (len / 2).next_multiple_of(PAGE as u64)]
}

/// Writes the pattern into the own section.
pub fn paint(path: &Path, seed: u64) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let own = layout.own()?;
    for place in places(own.len) {
        let map = Map::shared(&device, own.offset + place, LEN, libc::PROT_READ | libc::PROT_WRITE)?;
        let bytes = Key::new(seed, &[layout.info.section.into(), place]).bytes(LEN);
        for (at, word) in bytes.chunks_exact(8).enumerate() {
            map.word(at * 8).store(u64::from_ne_bytes(word.try_into()?), Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Compares another VM's section with what it has written.
pub fn compare(path: &Path, section: u32, seed: u64) -> Result<()> {
    let (device, layout) = Layout::open(path)?;
    let entry = layout.sections.get(section as usize).context("there is no such section")?;
    for place in places(entry.len) {
        let map = Map::shared(&device, entry.offset + place, LEN, libc::PROT_READ)?;
        Key::new(seed, &[section.into(), place])
            .compare(&map.bytes(0, LEN))
            .map_err(|wrong| anyhow::anyhow!("at {place:#x} of section {section}: {wrong}"))?;
    }
    Ok(())
}
