//! The order of folders that `layers.txt` asks for.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Display, Formatter};

use anyhow::{Context, Result, bail};

use super::modules::Tree;

/// All lines of the file.
#[derive(Debug)]
pub struct Order {
    pub entries: Vec<Entry>,
}

/// One crate's line.
#[derive(Debug)]
pub struct Entry {
    /// Folder of the crate, or the file that is its root, below the checkout.
    pub place: String,
    pub ranks: Ranks,
}

/// Top-level modules from the bottom to the top; those of one rank do not use each other.
#[derive(Debug)]
pub struct Ranks(Vec<Vec<String>>);

impl Order {
    /// Reads lines of `place: lowest < higher also-higher < highest`; `#` begins a comment.
    pub fn parse(text: &str) -> Result<Self> {
        let mut entries: Vec<Entry> = Vec::new();
        for line in text.lines().map(|line| line.split('#').next().unwrap_or_default().trim()) {
            if line.is_empty() {
                continue;
            }
            let (place, names) = line.split_once(':').with_context(|| format!("'{line}' has no colon"))?;
            let ranks = names.split('<').map(|rank| rank.split_whitespace().map(str::to_owned).collect());
            if entries.iter().any(|entry| entry.place == place) {
                bail!("{place} has two lines");
            }
            entries.push(Entry { place: place.to_owned(), ranks: Ranks(ranks.collect()) });
        }
        Ok(Self { entries })
    }
}

impl Ranks {
    /// Arrows that run back, and folders without a place.
    pub fn faults(&self, tree: &Tree) -> Vec<String> {
        let rank: BTreeMap<&str, usize> = self
            .0
            .iter()
            .enumerate()
            .flat_map(|(rank, names)| names.iter().map(move |name| (name.as_str(), rank)))
            .collect();
        let mut faults = Vec::new();
        for &name in rank.keys() {
            if !tree.modules.iter().any(|module| module.top.as_deref() == Some(name)) {
                faults.push(format!("{name} is in the order, but not in the crate"));
            }
        }
        for name in tree.folders() {
            if !rank.contains_key(name) {
                faults.push(format!("the folder {name} has no place in the order"));
            }
        }
        let mut seen = BTreeSet::new();
        for arrow in tree.arrows() {
            let (Some(from), Some(to)) = (tree.top_of(arrow.from), tree.top_of(arrow.to)) else { continue };
            let (Some(low), Some(high)) = (rank.get(from), rank.get(to)) else { continue };
            // One name for each pair of files is enough to find the others.
            if from == to || low > high || !seen.insert((arrow.from, arrow.to)) {
                continue;
            }
            let why = if low == high {
                format!("neither of {from} and {to} may use the other")
            } else {
                format!("{to} comes behind {from}")
            };
            faults.push(format!(
                "{}:{}: {from} uses {} of {}, and {why}",
                tree.files[arrow.from].display(),
                arrow.line,
                arrow.name,
                tree.files[arrow.to].display()
            ));
        }
        faults
    }
}

impl Display for Ranks {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let ranks: Vec<String> =
            self.0.iter().filter(|rank| !rank.is_empty()).map(|rank| rank.join(", ")).collect();
        write!(f, "{}{}", ranks.join(" ◄─ "), if ranks.is_empty() { "" } else { "; " })
    }
}
