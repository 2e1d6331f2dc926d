//! Tests and files that the documents name exist.

use std::fs;
use std::path::{Path, PathBuf};

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).expect("a folder of the repository").flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() && name != "target" && !name.as_encoded_bytes().starts_with(b".") {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn every_test_and_file_of_the_threat_model_is_there() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the repository");
    let text = fs::read_to_string(root.join("docs/threat-model.md")).expect("the document");
    let mut files = Vec::new();
    sources(root, &mut files);
    let code: String = files.iter().map(|file| fs::read_to_string(file).expect("source text")).collect();
    let (mut tests, mut paths) = (0, 0);
    for name in text.split('`').skip(1).step_by(2) {
        let is_word =
            |sign: char| name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == sign);
        if name.matches('_').count() > 2 && is_word('_') {
            // Property tests have arguments.
            assert!(code.contains(&format!("fn {name}(")), "there is no test {name}");
            tests += 1;
        } else if name.starts_with("guests-") && is_word('-') && name != "guests-" {
            assert!(code.contains(&format!("\"{name}\"")), "there is no step {name}");
            tests += 1;
        } else if name.ends_with(".rs") {
            assert!(files.iter().any(|file| file.ends_with(name)), "there is no file {name}");
            paths += 1;
        }
    }
    assert!(tests > 25 && paths > 8, "{tests} tests and {paths} files: is it still written as it was?");
}
