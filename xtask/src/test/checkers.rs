//! Steps that check the source and its unit tests: format, lints, the driver's build, tests, models, sanitizers.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};

use super::tally::{Count, Tally};
use crate::base::process::{self, Running, last_lines};
use crate::base::workspace::{Workspace, cargo};
use crate::install::build_tree;
use crate::kernel::kmod;
use crate::layers;

const LIMIT: Duration = Duration::from_secs(1500);
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Runs all of them.
pub fn steps(workspace: &Workspace, tally: &mut Tally) -> Result<()> {
    tally.step("format", |logs| {
        let mut command = in_checkout(workspace);
        command.args(["fmt", "--all", "--check"]);
        process::run(command, "cargo fmt", &logs.join("fmt.log"), LIMIT)?;
        for (own, log) in [(BENCH_GUEST, "fmt-bench-guest.log"), ("fuzz", "fmt-fuzz.log")] {
            let mut command = in_workspace_at(workspace, own);
            command.args(["fmt", "--check"]);
            process::run(command, "cargo fmt", &logs.join(log), LIMIT)?;
        }
        Ok(Count::one())
    })?;
    tally.step("lints", |logs| {
        let mut command = in_checkout(workspace);
        command.args(["clippy", "--workspace", "--all-targets", "--color=never", "--", "-D", "warnings"]);
        process::run(command, "cargo clippy", &logs.join("clippy.log"), LIMIT)?;
        let mut command = in_workspace_at(workspace, BENCH_GUEST);
        command
            .args(["clippy", "--color=never", "--", "-D", "warnings"])
            .env("CARGO_TARGET_DIR", workspace.target.join("bench-guest"));
        process::run(command, "cargo clippy", &logs.join("clippy-bench-guest.log"), LIMIT)?;
        Ok(Count::one())
    })?;
    tally.step("layers", |logs| {
        let report = layers::check(&workspace.root)?;
        fs::create_dir_all(logs)?;
        fs::write(logs.join("layers.txt"), &report.text)?;
        Ok(Count { passed: report.clean, failed: report.broken, ..Count::default() })
    })?;
    let all = tally.all();
    tally.step("driver-source", |logs| {
        // A kernel's build tree takes minutes to make: all of them for a release, else the one that the guests run.
        let built = if all {
            kmod::check(workspace, &kmod::Options::default(), logs)?
        } else {
            kmod::check_stock(workspace, logs)?
        };
        let releases: Vec<&str> = built.iter().map(|module| module.release.as_str()).collect();
        Ok(Count { passed: built.len(), note: format!("for {}", releases.join(" and ")), ..Count::default() })
    })?;
    tally.step("unit-tests", |logs| {
        // Optimised: the dependencies are shared with the programs that the later steps run.
        let mut command = in_checkout(workspace);
        command.args(["test", "--release"]).args(build_tree::OPTIMISED);
        let mut count = cargo_test(command, &logs.join("test.log"))?;
        let mut command = in_checkout(workspace);
        command.args(["test", "--package", "xtask"]);
        count.add(&cargo_test(command, &logs.join("xtask.log"))?);
        Ok(count)
    })?;
    tally.step("loom", |logs| {
        let mut command = in_checkout(workspace);
        command
            .args(["test", "--package", "vmshm-transport", "--no-default-features"])
            .args(["--release", "--test", "loom", "--test", "loom_collective"])
            .env("RUSTFLAGS", "--cfg loom")
            .env("CARGO_TARGET_DIR", workspace.target.join("loom"));
        cargo_test(command, &logs.join("loom.log"))
    })?;
    tally.step("address-sanitizer", |logs| {
        let mut command = sanitized(workspace, "address");
        command.args(["test", "--package", "vmshm-abi", "--package", "vmshm-transport"]);
        command.args(["--target", TARGET, "--lib", "--tests"]);
        let mut count = cargo_test(command, &logs.join("asan.log"))?;
        let mut command = sanitized(workspace, "address");
        command.args(["test", "--package", "vmshm-ucx", "--target", TARGET, "--lib", "hostile"]);
        // UCX would write jumps into mmap and its like, which are the sanitizer's here.
        command.env("UCX_MEM_MMAP_HOOK_MODE", "none");
        count.add(&cargo_test(command, &logs.join("asan-ucx.log"))?);
        Ok(count)
    })?;
    tally.step("thread-sanitizer", |logs| {
        // Without std's part: std itself is not instrumented, and would give false alarms; what is left of these, the
        // suppressions name. Hostile peers are data races by design, so only honest ones are watched.
        let suppressions = workspace.root.join("transport/tests/tsan.supp");
        let mut command = sanitized(workspace, "thread");
        command
            .args(["test", "--package", "vmshm-transport", "--no-default-features"])
            .args(["--target", TARGET, "--test", "threads"])
            .env("TSAN_OPTIONS", format!("suppressions={}", suppressions.display()));
        cargo_test(command, &logs.join("tsan.log"))
    })?;
    tally.step("miri", |logs| {
        if !cargo().args(["miri", "--version"]).output().is_ok_and(|out| out.status.success()) {
            return Ok(Count::skip("this toolchain has no 'cargo miri'"));
        }
        let mut command = in_checkout(workspace);
        command
            .args(["miri", "test", "--package", "vmshm-abi", "--package", "vmshm-transport"])
            .args(["--no-default-features", "--lib"]);
        cargo_test(command, &logs.join("miri.log"))
    })
}

fn in_checkout(workspace: &Workspace) -> Command {
    let mut command = cargo();
    command.current_dir(&workspace.root).env("CARGO_TERM_COLOR", "never");
    command
}

/// The workspace of its own that the VMM's bench guest is.
const BENCH_GUEST: &str = "vmm/bench-guest";

/// In a workspace of its own below the checkout.
fn in_workspace_at(workspace: &Workspace, folder: &str) -> Command {
    let mut command = in_checkout(workspace);
    command.current_dir(workspace.root.join(folder));
    command
}

/// A cargo that builds with one of the compiler's sanitizers, which a stable compiler must be talked into.
fn sanitized(workspace: &Workspace, sanitizer: &str) -> Command {
    let mut command = in_checkout(workspace);
    let mut flags = format!("-Zsanitizer={sanitizer} --cfg vmshm_sanitize");
    if sanitizer == "thread" {
        // The precompiled std has no such instrumentation; the compiler wants to know that this is meant.
        flags += " -Cunsafe-allow-abi-mismatch=sanitizer";
    }
    command
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", flags)
        .env("CARGO_TARGET_DIR", workspace.target.join(format!("sanitize-{sanitizer}")));
    command
}

/// Runs `cargo test` and counts its tests. A build that fails, or a test that kills its process, is a failure.
fn cargo_test(mut command: Command, log: &Path) -> Result<Count> {
    command.arg("--no-fail-fast");
    let done = Running::start(command, "cargo test", log)?.wait(LIMIT)?;
    let count = Count::of_cargo_test(&done.text);
    if !done.status.success() && count.failed == 0 {
        bail!("cargo test ended with {}\n{}", done.status, last_lines(&done.text, 25));
    }
    Ok(count)
}
