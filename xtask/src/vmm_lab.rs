//! `cargo xtask vmm-lab`: our VMM under stock kernels, on the KVM of an emulated host with two NUMA nodes.
//!
//! The host is booted once and runs the parts one after another; see [`part`].
//!
//! No time that it shows means anything. Both the host's kernel and the guests' are this Debian's own.

mod part;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::base::process::{self, Running, last_lines, mortal};
use crate::base::workspace::{Workspace, cargo};
use crate::debian::cache;
use crate::debian::packages;
use part::{PARTS, Part};

const HOST_INIT: &str = include_str!("../vmm/host-init");
const GUEST_INIT: &str = include_str!("../vmm/guest-init");
const LIMIT: Duration = Duration::from_secs(900);

/// Modules that the host needs, and those that guests need.
const HOST_MODULES: &[&str] = &["irqbypass", "ccp", "kvm", "kvm-amd"];
const GUEST_MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "failover",
    "net_failover",
    "virtio_net",
    "rng-core",
    "virtio-rng",
];

/// The names of all parts.
pub fn names() -> Vec<&'static str> {
    PARTS.iter().map(|part| part.name).collect()
}

/// Runs parts of the lab, all of them where none is named; what fails once is tried once more. True if all that is wanted
/// was seen.
pub fn run(workspace: &Workspace, names: &[String]) -> Result<bool> {
    let logs = workspace.target.join("vmm-lab");
    let missing = parts(workspace, names, &logs)?;
    Ok(missing.is_empty())
}

/// As [`run`]; returns what was not seen.
fn parts(workspace: &Workspace, names: &[String], logs: &Path) -> Result<Vec<String>> {
    fs::create_dir_all(logs)?;
    let mut todo: Vec<&Part> = Vec::new();
    for part in PARTS {
        if names.is_empty() || names.iter().any(|name| name == part.name) {
            todo.push(part);
        }
    }
    packages::ensure(&[packages::GUESTS], logs)?;
    let kernel = kernel(workspace, logs)?;
    let mut command = cargo();
    command.current_dir(&workspace.root).args(["build", "--release", "--package", "vmshm"]);
    process::run(command, "cargo build", &logs.join("build.log"), LIMIT)?;
    let program = workspace.target.join("release/vmshm");
    let work = tempfile::tempdir()?;
    let guest = guest(&kernel, work.path())?;
    let host = host(&kernel, &program, &guest, work.path())?;
    let mut missing = Vec::new();
    for attempt in 1..=2 {
        let names: Vec<_> = todo.iter().map(|part| part.name).collect();
        println!("VMs on an emulated host, attempt {attempt} of at most 2: {} ...", names.join(", "));
        let log = logs.join(format!("console-{attempt}.log"));
        let text = boot(&kernel, &host, &names, &log)?;
        for line in text.lines().filter(|line| line.starts_with("vmm-lab: ") && line.contains(" took ")) {
            println!("  {}", line.trim_start_matches("vmm-lab: ").trim());
        }
        todo.retain(|part| !part.missing(&text).is_empty());
        missing = todo.iter().flat_map(|part| part.missing(&text)).collect();
        println!("{} checks are missing; console: {}", missing.len(), log.display());
        if missing.is_empty() {
            break;
        }
        println!("  {}\n{}", missing.join("\n  "), last_lines(&text, 10));
    }
    Ok(missing)
}

fn boot(kernel: &Path, host: &Path, parts: &[&str], log: &Path) -> Result<String> {
    let mut command = mortal("qemu-system-x86_64");
    let smp = "4,sockets=2,cores=2";
    command.args(["-M", "q35,hmat=on", "-accel", "tcg,thread=multi", "-cpu", "max", "-smp", smp, "-m", "2G"]);
    for node in 0..2 {
        let cpus = format!("{}-{}", 2 * node, 2 * node + 1);
        command.args(["-object", &format!("memory-backend-ram,id=m{node},size=1G")]);
        command.args(["-numa", &format!("node,nodeid={node},cpus={cpus},memdev=m{node},initiator={node}")]);
    }
    command.args(["-numa", "dist,src=0,dst=1,val=27"]);
    for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        let way = format!("hmat-lb,initiator={from},target={to},hierarchy=memory");
        let (latency, bandwidth) = if from == to { (90 + to, 200_000) } else { (140, 100_000) };
        command.args(["-numa", &format!("{way},data-type=access-latency,latency={latency}")]);
        command.args(["-numa", &format!("{way},data-type=access-bandwidth,bandwidth={bandwidth}M")]);
    }
    command.args(["-nodefaults", "-display", "none", "-no-reboot", "-serial", "stdio"]);
    command.arg("-kernel").arg(kernel.join("vmlinuz")).arg("-initrd").arg(host);
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet no_timer_check tsc=reliable mitigations=off panic=-1 lab.parts={}",
        parts.join(",")
    ));
    Ok(Running::start(command, "the emulated host", log)?.wait(LIMIT)?.text)
}

/// This Debian's kernel with the modules that the lab needs, and busybox.
fn kernel(workspace: &Workspace, logs: &Path) -> Result<PathBuf> {
    let text = process::capture(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .context("apt knows no linux-image-amd64; run 'apt-get update' as root")?
        .to_owned();
    let key = cache::key(HOST_MODULES.iter().chain(GUEST_MODULES).copied());
    cache::ensure(
        &workspace.cache,
        &format!("vmmlab-{package}-{key}"),
        &["vmlinuz", "busybox"],
        &format!("Linux {package} for the VMM's lab"),
        |dir, bar| {
            bar.set_message("download");
            let mut download = Command::new("apt-get");
            download.args(["--quiet", "download", &format!("linux-image-{package}"), "busybox-static"]);
            let debs = tempfile::tempdir_in(dir)?;
            download.current_dir(debs.path());
            process::run(download, "apt-get download", &logs.join("download.log"), LIMIT)?;
            let root = debs.path().join("root");
            for entry in fs::read_dir(debs.path())? {
                process::capture(Command::new("dpkg-deb").arg("--extract").arg(entry?.path()).arg(&root))?;
            }
            fs::copy(root.join("boot").join(format!("vmlinuz-{package}")), dir.join("vmlinuz"))?;
            fs::copy(root.join("bin/busybox"), dir.join("busybox"))?;
            for (folder, names) in [("host", HOST_MODULES), ("guest", GUEST_MODULES)] {
                let to = dir.join(folder);
                fs::create_dir(&to)?;
                for name in names {
                    module(&root, name, &to)?;
                }
            }
            Ok(())
        },
    )
}

/// Copies a module, uncompressed. One that the kernel has built in is not there, which is as well.
fn module(root: &Path, name: &str, to: &Path) -> Result<()> {
    let mut find = Command::new("find");
    find.arg(root).args(["-name", &format!("{name}.ko*")]);
    let found = process::capture(&mut find)?;
    let Some(file) = found.lines().next() else { return Ok(()) };
    fs::copy(file, to.join(Path::new(file).file_name().context("a file has a name")?))?;
    if file.ends_with(".xz") {
        process::capture(Command::new("xz").arg("--decompress").arg(to.join(format!("{name}.ko.xz"))))?;
    }
    Ok(())
}

/// An initramfs with busybox, modules, and what `fill` adds.
fn initramfs(
    kernel: &Path,
    kind: &str,
    init: &str,
    work: &Path,
    fill: impl FnOnce(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let tree = work.join(format!("{kind}-tree"));
    for folder in ["bin", "proc", "sys", "dev", "modules"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(kernel.join("busybox"), tree.join("bin/busybox"))?;
    for entry in fs::read_dir(kernel.join(kind))? {
        let entry = entry?;
        fs::copy(entry.path(), tree.join("modules").join(entry.file_name()))?;
    }
    fs::write(tree.join("init"), init)?;
    process::capture(Command::new("chmod").arg("755").arg(tree.join("init")))?;
    fill(&tree)?;
    let file = work.join(kind);
    let script = "cd \"$1\" && find . | \"$2\" cpio -o -H newc -R 0:0 > \"$3\"";
    let mut pack = Command::new("sh");
    pack.args(["-c", script, "sh"]).arg(&tree).arg(kernel.join("busybox")).arg(&file);
    process::capture(&mut pack)?;
    Ok(file)
}

/// Puts the parts' scripts of one kind where the first program looks for them.
fn scripts(tree: &Path, script: impl Fn(&Part) -> &'static str) -> Result<()> {
    fs::create_dir(tree.join("parts"))?;
    for part in PARTS {
        fs::write(tree.join("parts").join(part.name), script(part))?;
    }
    Ok(())
}

fn guest(kernel: &Path, work: &Path) -> Result<PathBuf> {
    initramfs(kernel, "guest", GUEST_INIT, work, |tree| scripts(tree, |part| part.guest))
}

fn host(kernel: &Path, program: &Path, guest: &Path, work: &Path) -> Result<PathBuf> {
    initramfs(kernel, "host", HOST_INIT, work, |tree| {
        scripts(tree, |part| part.host)?;
        fs::create_dir(tree.join("images"))?;
        fs::copy(kernel.join("vmlinuz"), tree.join("images/vmlinuz"))?;
        fs::copy(guest, tree.join("images/guest"))?;
        let mut strip = Command::new("strip");
        process::capture(strip.arg("-o").arg(tree.join("bin/vmshm")).arg(program))?;
        let linked = process::capture(Command::new("ldd").arg(program))?;
        let libraries = linked.split_whitespace().filter(|word| word.starts_with('/'));
        for library in libraries {
            let to = tree.join(library.trim_start_matches('/'));
            fs::create_dir_all(to.parent().context("a library lies in a folder")?)?;
            fs::copy(library, to)?;
        }
        if !tree.join("lib64").exists() {
            bail!("ldd names no loader for {}: {linked}", program.display());
        }
        Ok(())
    })
}
