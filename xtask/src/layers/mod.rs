//! `cargo xtask layers`: imports within each crate run one way, between folders and between files.
//!
//! Cargo forbids circles between crates; this does it for what lies inside one. `xtask/layers.txt` holds the order.

mod graph;
mod modules;
mod order;
mod paths;
mod resolve;

use std::fmt::Write;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use graph::Graph;
use modules::Tree;
use order::{Entry, Order};

/// Where the order is kept, below the root of the checkout.
const ORDER: &str = "xtask/layers.txt";
/// A file of more lines than this is listed: it may have more than one subject.
const LONG: usize = 500;

/// Findings on all crates.
#[derive(Debug, Default)]
pub struct Report {
    /// For people: a chain for each crate, what runs back, and long files.
    pub text: String,
    /// Crates whose arrows all run one way.
    pub clean: usize,
    /// Crates with a circle or with an arrow that runs back.
    pub broken: usize,
}

/// Checks every crate of the checkout at `root`. Fails where the sources or the order cannot be read.
pub fn check(root: &Path) -> Result<Report> {
    let order =
        Order::parse(&fs::read_to_string(root.join(ORDER)).with_context(|| format!("cannot read {ORDER}"))?)?;
    for name in crates(root)? {
        if !order.entries.iter().any(|entry| entry.place.split('/').next() == Some(&name)) {
            bail!("{ORDER} has no line for {name}; 'name:' alone asks only that it has no circles of files");
        }
    }
    let mut report = Report::default();
    let mut long = Vec::new();
    for entry in &order.entries {
        check_crate(root, entry, &mut report, &mut long).with_context(|| entry.place.clone())?;
    }
    long.sort_by(|a: &(usize, PathBuf), b| b.cmp(a));
    if !long.is_empty() {
        writeln!(report.text, "\nFiles of over {LONG} lines:")?;
    }
    for (lines, file) in long {
        writeln!(report.text, "{lines:6}  {}", file.display())?;
    }
    Ok(report)
}

fn check_crate(
    root: &Path,
    entry: &Entry,
    report: &mut Report,
    long: &mut Vec<(usize, PathBuf)>,
) -> Result<()> {
    let mut graph = Graph::default();
    let mut faults = Vec::new();
    for (file, is_ranked) in roots(root, &entry.place)? {
        let tree = Tree::read(&file)?;
        graph.add(root, &tree);
        if is_ranked {
            faults.extend(
                entry
                    .ranks
                    .faults(&tree)
                    .into_iter()
                    .map(|fault| fault.replace(&format!("{}/", root.display()), "")),
            );
        }
    }
    for file in graph.files() {
        let lines = fs::read_to_string(root.join(file))?.lines().count();
        if lines > LONG && !long.iter().any(|(_, known)| known == file) {
            long.push((lines, file.to_owned()));
        }
    }
    faults.extend(graph.circles());
    if faults.is_empty() {
        report.clean += 1;
        writeln!(report.text, "{}: {}{}", entry.place, entry.ranks, graph.summary())?;
    } else {
        report.broken += 1;
        for fault in faults {
            writeln!(report.text, "{}: {fault}", entry.place)?;
        }
    }
    Ok(())
}

/// Folders right below `root` that hold a crate.
fn crates(root: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        if entry.path().join("Cargo.toml").is_file() {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(names)
}

/// Crate roots at a place, each with whether the folders' order is meant for it: the library's or the only program's.
fn roots(root: &Path, place: &str) -> Result<Vec<(PathBuf, bool)>> {
    let place = root.join(place);
    if place.is_file() {
        return Ok(vec![(place, true)]);
    }
    let source = place.join("src");
    let mut found: Vec<_> = ["lib.rs", "main.rs"]
        .iter()
        .map(|name| (source.join(name), true))
        .filter(|(file, _)| file.is_file())
        .collect();
    if let Ok(programs) = fs::read_dir(source.join("bin")) {
        for program in programs {
            let path = program?.path();
            let main = path.join("main.rs");
            if path.extension().is_some_and(|extension| extension == "rs") {
                found.push((path, false));
            } else if main.is_file() {
                found.push((main, false));
            }
        }
    }
    if found.is_empty() {
        bail!("there is no crate: neither src/lib.rs nor src/main.rs nor src/bin/");
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A checkout with one crate, whose files and order are given.
    fn checked(order: &str, files: &[(&str, &str)]) -> Result<Report> {
        let dir = tempfile::tempdir()?;
        let mut all = vec![(ORDER, order), ("one/Cargo.toml", "")];
        all.extend(files);
        for (name, text) in all {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, text)?;
        }
        check(dir.path())
    }

    #[track_caller]
    fn assert_clean(order: &str, files: &[(&str, &str)]) {
        let report = checked(order, files).unwrap();
        assert_eq!((report.clean, report.broken), (1, 0), "{}", report.text);
    }

    #[track_caller]
    fn assert_broken(order: &str, files: &[(&str, &str)], message: &str) {
        let report = checked(order, files).unwrap();
        assert_eq!((report.clean, report.broken), (0, 1), "{}", report.text);
        assert!(report.text.contains(message), "{}", report.text);
    }

    #[test]
    fn an_arrow_that_runs_back_between_folders_is_named_with_its_line() {
        let files = [
            ("one/src/lib.rs", "mod low;\nmod high;\n"),
            ("one/src/low/mod.rs", "mod a;\nmod b;\n"),
            ("one/src/low/a.rs", "//! A.\n\nuse crate::high::deep::Top;\n\npub struct A(Top);\n"),
            ("one/src/low/b.rs", ""),
            ("one/src/high/mod.rs", "pub mod deep;\n"),
            ("one/src/high/deep.rs", "pub struct Top;\n"),
        ];
        assert_clean("one: high < low", &files);
        assert_broken(
            "one: low < high",
            &files,
            "one/src/low/a.rs:3: low uses high::deep::Top of one/src/high/deep.rs, and high comes behind low",
        );
        assert_broken("one: low high", &files, "and neither of low and high may use the other");
    }

    #[test]
    fn a_circle_of_files_is_shown_as_a_chain() {
        assert_broken(
            "one:",
            &[
                ("one/src/lib.rs", "mod a;\nmod b;\nmod c;\n"),
                ("one/src/a.rs", "use crate::b::B;\npub struct A(B);\n"),
                ("one/src/b.rs", "pub struct B(c::C);\nuse crate::c;\n"),
                ("one/src/c.rs", "pub struct C;\nfn f() { let _: Option<super::a::A> = None; }\n"),
            ],
            "circle: one/src/a.rs:1 (b::B) ─► one/src/b.rs:1 (c::C) ─► one/src/c.rs:2 (a::A) ─► one/src/a.rs",
        );
    }

    #[test]
    fn what_a_crate_hands_on_is_followed_to_where_it_is_defined() {
        // `A` is used through the root; the root uses neither, it only hands on.
        let root = "mod a;\nmod b;\npub use a::A;\npub use b::*;\n";
        let files = [
            ("one/src/lib.rs", root),
            ("one/src/a.rs", "pub struct A;\n"),
            ("one/src/b.rs", "use crate::A;\npub struct B(A);\n"),
        ];
        assert_clean("one:", &files);
        let circle = [files[0], ("one/src/a.rs", "pub struct A(crate::B);\n"), files[2]];
        assert_broken("one:", &circle, "circle: one/src/a.rs:1 (B) ─► one/src/b.rs:1 (A) ─► one/src/a.rs");
    }

    #[test]
    fn a_parent_that_uses_its_child_and_is_used_by_it_is_a_circle() {
        let parent = "mod child;\npub struct Parent;\nfn f() { child::g() }\n";
        assert_broken(
            "one:",
            &[
                ("one/src/lib.rs", parent),
                ("one/src/child.rs", "use super::Parent;\npub fn g() -> Parent { Parent }\n"),
            ],
            "circle: one/src/child.rs:1 (Parent) ─► one/src/lib.rs:3 (child::g) ─► one/src/child.rs",
        );
    }

    #[test]
    fn paths_in_macros_and_macros_by_name_count() {
        assert_broken(
            "one:",
            &[
                ("one/src/lib.rs", "#[macro_use]\nmod a;\nmod b;\n"),
                (
                    "one/src/a.rs",
                    "macro_rules! say { () => {} }\nfn f() { println!(\"{}\", crate::b::X); }\n",
                ),
                ("one/src/b.rs", "pub const X: u8 = 1;\nfn f() { say!(); }\n"),
            ],
            "circle: one/src/a.rs:2 (b::X) ─► one/src/b.rs:2 (say!) ─► one/src/a.rs",
        );
    }

    #[test]
    fn tests_may_use_what_they_like() {
        assert_clean(
            "one:",
            &[
                ("one/src/lib.rs", "mod a;\nmod b;\n#[cfg(test)]\nmod hostile;\n"),
                ("one/src/a.rs", "pub struct A;\n#[cfg(test)]\nmod tests { use crate::b::B; }\n"),
                ("one/src/b.rs", "pub struct B(crate::a::A);\n"),
            ],
        );
    }

    #[test]
    fn programs_beside_a_library_are_checked_for_circles() {
        assert_broken(
            "one:",
            &[
                ("one/src/lib.rs", ""),
                ("one/src/bin/tool/main.rs", "mod a;\nfn main() { a::f() }\npub const N: u8 = 1;\n"),
                ("one/src/bin/tool/a.rs", "pub fn f() { crate::N; }\n"),
            ],
            "circle:",
        );
    }

    #[test]
    fn the_order_must_name_every_folder_and_no_other() {
        let files =
            [("one/src/lib.rs", "mod a;\n"), ("one/src/a.rs", "mod inner;\n"), ("one/src/a/inner.rs", "")];
        assert_broken("one:", &files, "the folder a has no place in the order");
        assert_broken("one: a < gone", &files, "gone is in the order, but not in the crate");
        assert_clean("one: a", &files);
    }

    #[test]
    fn a_crate_without_a_line_is_an_error() {
        let error = checked("# none", &[("one/src/lib.rs", "")]).unwrap_err();
        assert!(format!("{error:#}").contains("no line for one"), "{error:#}");
    }

    #[test]
    fn long_files_are_listed() {
        let long = "//\n".repeat(LONG + 1);
        let report = checked("one:", &[("one/src/lib.rs", "mod a;\n"), ("one/src/a.rs", &long)]).unwrap();
        assert!(report.text.contains("   501  one/src/a.rs"), "{}", report.text);
        assert_eq!((report.clean, report.broken), (1, 0));
    }
}
