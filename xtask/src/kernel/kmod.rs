//! `cargo xtask kmod`: builds and checks the guest driver for Debian's unmodified kernels.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::Args;

use crate::base::process::{self, Finished, last_lines};
use crate::base::progress;
use crate::base::workspace::Workspace;
use crate::debian::apt::Index;
use crate::debian::chroot::{Chroot, KERNEL_TOOLS};
use crate::install;
use crate::kernel::release::{KernelRelease, SERIES, SUITE};
use crate::kernel::tree::KernelTree;

/// The directory of the driver below the checkout.
const DRIVER: &str = "guest-kmod";
const LIMIT: Duration = Duration::from_secs(600);

/// Kernels to build the driver for.
#[derive(Debug, Default, Args)]
pub struct Options {
    /// Build for this kernel series only, as 7.2, instead of all that the driver is written for
    #[arg(long, value_name = "SERIES", value_parser = SERIES.to_vec())]
    kernel: Option<String>,
}

/// A driver that was built.
#[derive(Debug)]
pub struct Module {
    /// The kernel that loads it: what `uname -r` says there.
    pub release: String,
    /// `vmshm.ko`.
    pub file: PathBuf,
}

/// Builds the driver for each wanted kernel, after rustfmt and clippy found it as kernel code should be.
///
/// A series that Debian does not have any more, or not yet, is left out, unless it was asked for by name.
pub fn check(workspace: &Workspace, options: &Options, log_dir: &Path) -> Result<Vec<Module>> {
    let index = Index::shared(workspace, SUITE, log_dir)?;
    let releases = match &options.kernel {
        Some(series) => vec![KernelRelease::of(index, series)?],
        None => KernelRelease::all(index)?,
    };
    check_for(workspace, index, &releases, log_dir)
}

/// As [`check`], for the one kernel that the test guests run.
pub fn check_stock(workspace: &Workspace, log_dir: &Path) -> Result<Vec<Module>> {
    let index = Index::shared(workspace, SUITE, log_dir)?;
    check_for(workspace, index, &[KernelRelease::stock(index)?], log_dir)
}

fn check_for(
    workspace: &Workspace,
    index: &Index,
    releases: &[KernelRelease],
    log_dir: &Path,
) -> Result<Vec<Module>> {
    let mut modules = Vec::new();
    for release in releases {
        let tree = tree(workspace, index, release, log_dir)?;
        check_format(workspace, &tree, log_dir)?;
        clippy(workspace, &tree, release, log_dir)?;
        modules.push(build(workspace, &tree, release, log_dir)?);
    }
    Ok(modules)
}

/// Builds the driver for the kernel that [`crate::kernel::stock`] returns.
pub fn module(workspace: &Workspace, log_dir: &Path) -> Result<Module> {
    let index = Index::shared(workspace, SUITE, log_dir)?;
    let release = KernelRelease::stock(index)?;
    let tree = tree(workspace, index, &release, log_dir)?;
    build(workspace, &tree, &release, log_dir)
}

fn tree(workspace: &Workspace, index: &Index, release: &KernelRelease, log_dir: &Path) -> Result<KernelTree> {
    let chroot = Chroot::ensure(workspace, index, &KERNEL_TOOLS, log_dir)?;
    KernelTree::ensure(workspace, index, &chroot, release, log_dir)
}

/// Where a kernel's results go.
fn results(workspace: &Workspace, release: &KernelRelease) -> PathBuf {
    workspace.target.join("kmod").join(release.name())
}

fn build(
    workspace: &Workspace,
    tree: &KernelTree,
    release: &KernelRelease,
    log_dir: &Path,
) -> Result<Module> {
    let name = release.name();
    let dir = results(workspace, release);
    let made = dir.join("build");
    progress::during(&format!("guest driver for Linux {name}"), |_| {
        make(workspace, tree, &made, &[], &log_dir.join(format!("build-{name}.log")))
    })?;
    let file = dir.join("vmshm.ko");
    install::place(&made.join("vmshm.ko"), &file, 0o644)?;
    Ok(Module { release: name, file })
}

fn clippy(workspace: &Workspace, tree: &KernelTree, release: &KernelRelease, log_dir: &Path) -> Result<()> {
    let name = release.name();
    // Always from nothing, since make takes what it once compiled for checked.
    let dir = results(workspace, release);
    fs::create_dir_all(&dir)?;
    let made = tempfile::Builder::new().prefix("clippy-").tempdir_in(&dir)?;
    progress::during(&format!("clippy for Linux {name}"), |_| {
        make(workspace, tree, made.path(), &["CLIPPY=1"], &log_dir.join(format!("clippy-{name}.log")))
    })
}

fn make(workspace: &Workspace, tree: &KernelTree, out: &Path, arguments: &[&str], log: &Path) -> Result<()> {
    fs::create_dir_all(out).with_context(|| format!("cannot create {}", out.display()))?;
    let mut command = tree.make(&[(&workspace.root, "/source"), (out, "/out")], DRIVER);
    command.arg("KRUSTFLAGS=-Dwarnings").args(arguments);
    let finished = process::run(command, "make", log, LIMIT)?;
    if finished.text.to_lowercase().contains("warning") {
        bail!(
            "the driver compiles, but not without warnings; log: {}\n{}",
            log.display(),
            last_lines(&finished.text, 20)
        );
    }
    Ok(())
}

/// Asks the kernel's rustfmt about each file of the driver. Those of `abi` are formatted as the workspace is.
fn check_format(workspace: &Workspace, tree: &KernelTree, log_dir: &Path) -> Result<()> {
    let driver = workspace.root.join(DRIVER);
    let script = format!(
        // Read from its standard input, rustfmt does not go on to the modules that a file names.
        "cd /source/{DRIVER} && for file in $(find . -name '*.rs'); do \
         rustfmt --check --edition 2021 --config-path {}/.rustfmt.toml < $file || {{ echo \"in $file\"; failed=1; }}; \
         done; exit ${{failed:-0}}",
        tree.common()
    );
    let mut command = tree.command(&[(&workspace.root, "/source")], "sh");
    command.args(["-c", &script]);
    let log = log_dir.join("rustfmt.log");
    let Finished { status, text, .. } = process::Running::start(command, "rustfmt", &log)?.wait(LIMIT)?;
    if !status.success() {
        bail!("files of {} are not formatted as kernel code:\n{}", driver.display(), last_lines(&text, 30));
    }
    Ok(())
}
