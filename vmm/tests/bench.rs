//! The bench guest's program between two VMs of ours, two of QEMU's, and two processes: what it sends arrives.

mod common;
#[path = "../benches/vm/twins.rs"]
#[allow(dead_code, unused_imports, reason = "the benchmark uses all of it")]
mod twins;

use std::path::Path;
use std::process::Command;

use twins::{SIZES, Way};

#[test]
fn all_bytes_of_all_sizes_arrive_between_vms_and_between_processes() {
    let Some(host) = common::kvm() else { return };
    let Some(cpus) = twins::two_cpus() else {
        eprintln!("skipped: this process may use one core only");
        return;
    };
    let image = twins::image(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("bench-guest")).unwrap();
    let has_qemu = Command::new(twins::qemu::PROGRAM).arg("--version").output().is_ok();
    if !has_qemu {
        eprintln!("skipped between QEMU's VMs: there is no {}", twins::qemu::PROGRAM);
    }
    let ways = [Way::Vm, Way::Process, Way::Qemu];
    for way in ways.into_iter().filter(|way| *way != Way::Qemu || has_qemu) {
        let round = twins::run(&host, &image, way, 20, cpus, vmshm_host::PageSize::Base).unwrap();
        assert_eq!((round.checked, round.wrong), (twins::to_check(), 0), "{way:?}");
        assert_eq!(round.turns.len(), SIZES.len());
        assert!(round.lines.iter().chain(&round.turns).flatten().all(|ticks| *ticks > 0), "{way:?}");
        assert!(round.streams.iter().flatten().all(|ticks| *ticks > 0), "{way:?}");
    }
}
