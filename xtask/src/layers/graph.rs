//! Files and arrows between them: circles and chains.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::{Path, PathBuf};

use super::modules::Tree;

/// The files of a crate, by their paths below the checkout, and for each what it uses: where, and by which name.
#[derive(Debug, Default)]
pub struct Graph {
    arrows: BTreeMap<PathBuf, BTreeMap<PathBuf, String>>,
}

impl Graph {
    /// Adds the files below one root of a crate.
    pub fn add(&mut self, root: &Path, tree: &Tree) {
        let short = |file: usize| tree.files[file].strip_prefix(root).unwrap_or(&tree.files[file]).to_owned();
        for file in 0..tree.files.len() {
            self.arrows.entry(short(file)).or_default();
        }
        for arrow in tree.arrows() {
            let tie = format!("{}:{} ({})", short(arrow.from).display(), arrow.line, arrow.name);
            self.arrows.entry(short(arrow.from)).or_default().entry(short(arrow.to)).or_insert(tie);
        }
    }

    /// All files.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.arrows.keys().map(PathBuf::as_path)
    }

    /// One chain for each set of files that all use each other, however indirectly: the shortest from its first file.
    pub fn circles(&self) -> Vec<String> {
        let mut seen = BTreeSet::new();
        let mut circles = Vec::new();
        for file in self.arrows.keys() {
            if seen.contains(file) {
                continue;
            }
            let Some(chain) = self.way(file, file) else { continue };
            let all: Vec<_> = self
                .arrows
                .keys()
                .filter(|other| self.way(file, other).is_some() && self.way(other, file).is_some())
                .collect();
            let ties: Vec<&str> =
                chain.windows(2).map(|pair| self.arrows[pair[0]][pair[1]].as_str()).collect();
            let more = match all.len() - ties.len() {
                0 => String::new(),
                more => format!("; {more} more files hang in it"),
            };
            circles.push(format!("circle: {} ─► {}{more}", ties.join(" ─► "), file.display()));
            seen.extend(all);
        }
        circles
    }

    /// The shortest chain of arrows, from one file to another or back to itself.
    fn way<'a>(&'a self, from: &'a Path, to: &'a Path) -> Option<Vec<&'a Path>> {
        let mut before: BTreeMap<&Path, &Path> = BTreeMap::new();
        let mut next = VecDeque::from([from]);
        while let Some(file) = next.pop_front() {
            for other in self.arrows[file].keys().map(PathBuf::as_path) {
                if before.contains_key(other) {
                    continue;
                }
                before.insert(other, file);
                if other == to {
                    let mut chain = vec![to];
                    while chain.len() == 1 || chain.last() != Some(&from) {
                        chain.push(before[chain.last()?]);
                    }
                    chain.reverse();
                    return Some(chain);
                }
                next.push_back(other);
            }
        }
        None
    }

    /// How many files, and the longest chain of them. Without circles only.
    pub fn summary(&self) -> String {
        let mut longest: BTreeMap<&Path, Vec<&Path>> = BTreeMap::new();
        for file in self.arrows.keys() {
            self.longest(file, &mut longest);
        }
        let chain = longest.into_values().max_by_key(Vec::len).unwrap_or_default();
        let names: Vec<String> = chain.iter().map(|file| short_name(file)).collect();
        let files = self.arrows.len();
        if names.len() < 2 {
            return format!("{files} files that use none of each other");
        }
        format!("{files} files, at the most {} in a chain: {}", names.len(), names.join(" ─► "))
    }

    fn longest<'a>(&'a self, file: &'a Path, known: &mut BTreeMap<&'a Path, Vec<&'a Path>>) -> Vec<&'a Path> {
        if let Some(chain) = known.get(file) {
            return chain.clone();
        }
        let deepest = self.arrows[file]
            .keys()
            .map(|other| self.longest(other, known))
            .max_by_key(Vec::len)
            .unwrap_or_default();
        let chain = [vec![file], deepest].concat();
        known.insert(file, chain.clone());
        chain
    }
}

/// Path below `src`, without the ending.
fn short_name(file: &Path) -> String {
    let text = file.with_extension("").to_string_lossy().into_owned();
    text.split_once("/src/").map_or(text.clone(), |(_, name)| name.to_owned())
}
