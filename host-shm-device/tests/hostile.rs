//! A look at a region's file, whatever stands there, answers with data or an error, never with a panic.

#[path = "common/clients.rs"]
mod clients;
mod common;

use std::fs;
use std::os::unix::fs::FileExt;

use common::Host;
use proptest::prelude::*;
use vmshm_host::{Region, inspect};

/// Everything that reads or changes a region through its own words.
fn exercise(host: &Host) {
    for listed in host.registry.list().unwrap() {
        match listed.region {
            Ok(region) => use_all(&region),
            Err(error) => assert!(!error.to_string().is_empty()),
        }
    }
    let _ = host.registry.destroy("r", false);
    if host.registry.dir().join("r").exists() {
        host.registry.destroy("r", true).unwrap();
    }
}

fn use_all(region: &Region) {
    let _ = region.name();
    let _ = inspect(region).map(|seen| serde_json::to_string(&seen).unwrap());
    for section in [0, u32::MAX] {
        let _ = region.assign(section, None);
        let _ = region.release(section, false);
    }
}

#[test]
fn clients_that_once_did_harm_or_went_far_leave_a_server_that_serves() {
    let dir = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/clients");
    let mut count = 0;
    for seed in fs::read_dir(dir).unwrap() {
        clients::clients(&fs::read(seed.unwrap().path()).unwrap());
        count += 1;
    }
    assert!(count > 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn random_files_are_answered(bytes in prop::collection::vec(any::<u8>(), 0..8192)) {
        let host = Host::new();
        fs::create_dir_all(host.registry.dir()).unwrap();
        fs::write(host.registry.dir().join("r"), bytes).unwrap();
        exercise(&host);
    }

    #[test]
    fn regions_with_overwritten_words_are_answered(
        words in prop::collection::vec((0u64..96, prop_oneof![
            any::<u64>(),
            0u64..1 << 16,
            (0u32..64).prop_map(|shift| 1 << shift),
            (0u64..1 << 12).prop_map(|page| page << 12),
        ]), 1..6),
        cut in prop::option::of(0u64..5 << 20),
    ) {
        let host = Host::new();
        let region = host.create("r", 2);
        for (word, value) in words {
            region.file().write_all_at(&value.to_le_bytes(), word * 8).unwrap();
        }
        if let Some(len) = cut {
            region.file().set_len(len).unwrap();
        }
        // An open one as well as one that is opened now.
        use_all(&region);
        drop(region);
        exercise(&host);
    }

    #[test]
    fn clients_that_do_anything_leave_a_server_that_serves(
        bytes in prop::collection::vec(any::<u8>(), 0..64),
    ) {
        clients::clients(&bytes);
    }

    #[test]
    fn sections_full_of_rubbish_are_answered(seed in any::<[u8; 32]>()) {
        let host = Host::new();
        let region = host.create("r", 2);
        let rubbish: Vec<u8> = (0..region.header().region_len as usize - 4096)
            .map(|i| seed[i % 31] ^ (i / 31) as u8)
            .collect();
        region.file().write_all_at(&rubbish, 4096).unwrap();
        use_all(&region);
        drop(region);
        exercise(&host);
    }
}
