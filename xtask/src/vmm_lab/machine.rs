//! The emulated host: this Debian's kernel and the guest image, on two NUMA nodes of two CPUs with SVM.
//!
//! Everything else that it needs is on a second drive, which it sees as [`PAYLOAD`]: the tool, scripts, and what VMs boot.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

use super::part::{PARTS, Part};
use crate::base::process::{self, mortal};
use crate::base::workspace::{Workspace, cargo};
use crate::debian::{cache, packages};
use crate::install::{self, stage};
use crate::kernel::{self, kmod};
use crate::lab::image;
use crate::lab::payload_drive;

/// The first program, which goes over to the root file system, and what runs there.
const INITRAMFS_INIT: &str = include_str!("../../vmm/initramfs-init");
const HOST: &str = include_str!("../../vmm/host");
/// The first program of VMs.
const GUEST_INIT: &str = include_str!("../../vmm/guest-init");
const LIMIT: Duration = Duration::from_secs(1200);

/// Modules that the host needs, and those that guests need.
const HOST_MODULES: &[&str] = &[
    "virtio",
    "virtio_ring",
    "virtio_pci_legacy_dev",
    "virtio_pci_modern_dev",
    "virtio_pci",
    "virtio_blk",
    "crc16",
    "crc32c_generic",
    "libcrc32c",
    "mbcache",
    "jbd2",
    "ext4",
    "overlay",
    "tun",
    "tap",
    "vhost_iotlb",
    "vhost",
    "vhost_net",
    "llc",
    "stp",
    "bridge",
    "irqbypass",
    "ccp",
    "kvm",
    "kvm-amd",
    "vfio",
    "vfio_iommu_type1",
    "vfio_virqfd",
    "vfio-pci-core",
    "vfio-pci",
];
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
    "virtio_console",
    "button",
    "evdev",
    "crc64",
    "crc64_rocksoft_generic",
    "crc64-rocksoft",
    "crct10dif_common",
    "crct10dif_generic",
    "crc-t10dif",
    "t10-pi",
    "nvme-core",
    "nvme",
];

/// An IOMMU, and NVMe controllers for a VM: one below a root port of node 1, and one whose interrupt line reaches the host.
const DEVICES: &[&str] = &[
    "intel-iommu,intremap=on,aw-bits=48",
    "pxb-pcie,id=node1,bus_nr=32,numa_node=1,bus=pcie.0",
    "pcie-root-port,id=root0,chassis=1,bus=node1",
    "nvme,drive=nvme,serial=vmshm,bus=root0",
    "nvme,drive=line,serial=line,bus=pcie.0",
];
/// The beginning of the controller's disk.
const DISK: &str = "vmshm passes it through";

/// Kernel, initramfs and drives of the emulated host.
#[derive(Debug)]
pub struct Machine {
    kernel: PathBuf,
    initramfs: PathBuf,
    root: PathBuf,
    payload: PathBuf,
    disk: PathBuf,
    _work: TempDir,
}

impl Machine {
    /// Builds and fetches all of it. With `mpi` there are MPI programs and the guest driver, too.
    pub fn prepare(workspace: &Workspace, mpi: bool, logs: &Path) -> Result<Self> {
        fs::create_dir_all(logs)?;
        packages::ensure(&[packages::GUESTS], logs)?;
        let image = image::ensure(workspace, logs)?;
        let kernel = kernel(workspace, logs)?;
        let work = tempfile::Builder::new().prefix("vmm-lab-").tempdir_in(&workspace.target)?;
        let tree = work.path().join("payload");
        if mpi {
            packages::ensure(&[packages::BUILD, packages::KERNEL], logs)?;
            let stage = stage::prepare(workspace, logs)?;
            let mut copy = Command::new("cp");
            process::capture(copy.args(["--archive", "--link"]).arg(stage).arg(&tree))?;
            let stock = kernel::stock(workspace, logs)?;
            let module = kmod::module(workspace, logs)?;
            ensure!(module.release == stock.release, "the driver is for {}", module.release);
            for (from, to) in [
                (&stock.vmlinuz, "images/driver-vmlinuz"),
                (&stock.initramfs, "images/driver-initramfs"),
                (&module.file, "driver/vmshm.ko"),
            ] {
                install::place(from, &tree.join(to), 0o644)?;
            }
        } else {
            let mut command = cargo();
            command.current_dir(&workspace.root).args(["build", "--release", "--package", "vmshm"]);
            process::run(command, "cargo build", &logs.join("build.log"), LIMIT)?;
            install::place(&workspace.target.join("release/vmshm"), &tree.join("bin/vmshm"), 0o755)?;
        }
        install::place(&kernel.join("vmlinuz"), &tree.join("images/vmlinuz"), 0o644)?;
        let guest = initramfs(&kernel, "guest", GUEST_INIT, work.path(), |tree| {
            scripts(&tree.join("parts"), |part| part.guest)
        })?;
        install::place(&guest, &tree.join("images/guest"), 0o644)?;
        let lab = tree.join("lab");
        scripts(&lab.join("parts"), |part| part.host)?;
        install::write(HOST.as_bytes(), &lab.join("host"), 0o755)?;
        let payload = payload_drive(&tree, work.path())?;
        let initramfs = initramfs(&kernel, "host", INITRAMFS_INIT, work.path(), |_| Ok(()))?;
        let disk = work.path().join("disk");
        fs::write(&disk, DISK)?;
        fs::File::options().write(true).open(&disk)?.set_len(1 << 20)?;
        let kernel = kernel.join("vmlinuz");
        Ok(Self { kernel, initramfs, root: image.root, payload, disk, _work: work })
    }

    /// QEMU; `words` are for the scripts, on the kernel's command line.
    pub fn command(&self, words: &str) -> Command {
        let mut command = mortal("qemu-system-x86_64");
        let smp = "4,sockets=2,cores=2";
        command.args([
            "-M",
            "q35,hmat=on",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            smp,
            "-m",
            "4G",
        ]);
        for node in 0..2 {
            let cpus = format!("{}-{}", 2 * node, 2 * node + 1);
            command.args(["-object", &format!("memory-backend-ram,id=m{node},size=2G")]);
            command
                .args(["-numa", &format!("node,nodeid={node},cpus={cpus},memdev=m{node},initiator={node}")]);
        }
        command.args(["-numa", "dist,src=0,dst=1,val=27"]);
        for (from, to) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            let way = format!("hmat-lb,initiator={from},target={to},hierarchy=memory");
            let (latency, bandwidth) = if from == to { (90 + to, 200_000) } else { (140, 100_000) };
            command.args(["-numa", &format!("{way},data-type=access-latency,latency={latency}")]);
            command.args(["-numa", &format!("{way},data-type=access-bandwidth,bandwidth={bandwidth}M")]);
        }
        command.args(["-nodefaults", "-display", "none", "-no-reboot"]);
        command.arg("-kernel").arg(&self.kernel).arg("-initrd").arg(&self.initramfs);
        let file = |path: &Path| path.display().to_string().replace(',', ",,");
        // With a bus that is named, since QEMU would take the one that has only room for bridges.
        for (name, drive) in [("root", &self.root), ("payload", &self.payload)] {
            let drive = format!("file={},format=raw,if=none,readonly=on,id={name}", file(drive));
            command.args(["-drive", &drive]);
            command.args(["-device", &format!("virtio-blk-pci,drive={name},bus=pcie.0")]);
        }
        command.arg("-drive").arg(format!("file={},format=raw,if=none,id=nvme", file(&self.disk)));
        command.arg("-drive").arg(format!(
            "file={},format=raw,if=none,id=line,snapshot=on,file.locking=off",
            file(&self.disk)
        ));
        for device in DEVICES {
            command.args(["-device", device]);
        }
        command.arg("-append").arg(format!(
            "console=ttyS0 quiet no_timer_check tsc=reliable mitigations=off panic=-1 intel_iommu=on {words}"
        ));
        command
    }
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
    for folder in ["bin", "proc", "sys", "dev", "modules", "root"] {
        fs::create_dir_all(tree.join(folder))?;
    }
    fs::copy(kernel.join("busybox"), tree.join("bin/busybox"))?;
    for entry in fs::read_dir(kernel.join(kind))? {
        let entry = entry?;
        fs::copy(entry.path(), tree.join("modules").join(entry.file_name()))?;
    }
    install::write(init.as_bytes(), &tree.join("init"), 0o755)?;
    fill(&tree)?;
    let file = work.join(kind);
    let script = "cd \"$1\" && find . | \"$2\" cpio -o -H newc -R 0:0 > \"$3\"";
    let mut pack = Command::new("sh");
    pack.args(["-c", script, "sh"]).arg(&tree).arg(kernel.join("busybox")).arg(&file);
    process::capture(&mut pack)?;
    Ok(file)
}

/// Puts the parts' scripts of one kind into a folder.
fn scripts(folder: &Path, script: impl Fn(&Part) -> &'static str) -> Result<()> {
    fs::create_dir_all(folder)?;
    for part in PARTS {
        fs::write(folder.join(part.name), script(part))?;
    }
    Ok(())
}
