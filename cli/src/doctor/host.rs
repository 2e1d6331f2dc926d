//! Checks of a host.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, Group, access, geteuid};
use vmshm_host::{
    Error, Listed, Region, Registry, State, available_memory, format_bytes, inspect, nodes, pools, run_dir,
};

use vmshm_vmm::vfio;

use super::check::Check;
use super::{cgroup, denial, guest_pat, numa_balancing, passthrough, remove_ipc};

/// All checks of a host.
pub fn checks() -> Vec<Check> {
    let registry = Registry::from_env();
    let listed = registry.list();
    let sound =
        listed.iter().flatten().filter_map(|entry| Some((&entry.name[..], entry.region.as_ref().ok()?)));
    let sound: Vec<(&str, &Region)> = sound.collect();
    let (dirs, sizes) = (dirs(&sound), sizes(&sound));
    let mut checks = vec![kvm(), qemu()];
    checks.extend(directory(registry.dir()));
    checks.push(group());
    checks.extend(memory());
    checks.extend(regions(listed));
    checks.extend(cgroup::checks(&sizes));
    checks.extend(guest_pat::checks());
    checks.extend(passthrough::checks(Path::new("/"), vfio::memlock()));
    checks.extend(sockets(&run_dir()));
    checks.extend(denial::checks(&dirs, &run_dir()));
    checks
}

fn kvm() -> Check {
    match File::options().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Check::ok("/dev/kvm can be used"),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => Check::warning(
            "/dev/kvm may not be opened by this user",
            "sudo usermod -aG kvm $USER, then log in again",
        ),
        Err(_) => Check::warning(
            "/dev/kvm is not there: VMs would be emulated, which is slow",
            "switch virtualization on in the firmware, then: sudo modprobe kvm_intel (or kvm_amd)",
        ),
    }
}

fn qemu() -> Check {
    let output = Command::new("qemu-system-x86_64").arg("--version").stdin(Stdio::null()).output();
    match output.ok().and_then(|o| String::from_utf8(o.stdout).ok()?.lines().next().map(str::to_owned)) {
        Some(version) => Check::ok(version),
        None => Check::warning(
            "qemu-system-x86_64 is not in the PATH",
            "sudo apt-get install qemu-system-x86 (Debian), sudo dnf install qemu-kvm (Fedora)",
        ),
    }
}

fn directory(dir: &Path) -> Vec<Check> {
    // It is made with the first region.
    let there = dir.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let mut checks = Vec::new();
    checks.push(match access(there, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if there == dir => Check::ok(format!("regions live in {}", dir.display())),
        Ok(()) => Check::ok(format!("regions will live in {}, made with the first one", dir.display())),
        Err(_) => Check::missing(
            format!("this user may not write to {}, where regions live", there.display()),
            "create regions as root, or let VMSHM_DIR name a directory of yours on tmpfs",
        ),
    });
    if statfs(there).is_ok_and(|fs| fs.filesystem_type() != TMPFS_MAGIC) {
        checks.push(Check::warning(
            format!("{} is no tmpfs: the kernel would write shared memory to a disk", there.display()),
            "let VMSHM_DIR name a directory on tmpfs, such as /dev/shm/vmshm",
        ));
    }
    if let Some(owner) = fs::metadata(dir).ok().map(|meta| meta.uid())
        && owner != 0
        && owner != geteuid().as_raw()
    {
        checks.push(Check::warning(
            format!("{} belongs to the user with id {owner}, who can take regions away", dir.display()),
            format!("sudo chown root: {}", dir.display()),
        ));
    }
    if let Ok(fs) = statvfs(there) {
        let bytes = |blocks: u64| format_bytes(blocks.saturating_mul(fs.fragment_size()));
        let (total, free) = (fs.blocks(), fs.blocks_available());
        let text = format!("{}: {} of {} left", there.display(), bytes(free), bytes(total));
        if total != 0 && free == 0 {
            let cure = format!("sudo mount -o remount,size=75% $(stat -c %m {})", there.display());
            checks.push(Check::missing(text, cure));
        } else if total != 0 {
            checks.push(Check::ok(text));
        }
    }
    checks
}

fn group() -> Check {
    match Group::from_name("vmshm") {
        Ok(Some(_)) => Check::ok("group vmshm exists: its members may use regions that root or they create"),
        _ => Check::warning(
            "there is no group vmshm: regions and sockets belong to their creator's own group",
            "where several users share regions: sudo groupadd vmshm && sudo usermod -aG vmshm USER",
        ),
    }
}

fn memory() -> Vec<Check> {
    let mut checks = Vec::new();
    if let Some(free) = available_memory() {
        checks.push(Check::ok(format!("{} of memory available", format_bytes(free))));
    }
    let nodes = nodes();
    if nodes.is_empty() {
        checks.push(Check::ok("no NUMA support in this kernel: --nodes cannot be used"));
    }
    checks.extend(numa_balancing::check(nodes.len()));
    for node in nodes {
        let mut text = format!("NUMA node {}: CPUs {}", node.id, node.cpus);
        if !node.has_memory {
            text.push_str(", no memory: no section can lie there");
            checks.push(Check::ok(text));
            continue;
        }
        text.push_str(&format!(", {} free", format_bytes(node.free)));
        for pool in pools(Some(node.id)).into_iter().filter(|pool| pool.total > 0) {
            let page = format_bytes(pool.page_len);
            text.push_str(&format!(", {} of {} pages of {page} free", pool.free, pool.total));
        }
        checks.push(Check::ok(text));
    }
    if pools(None).iter().all(|pool| pool.total == 0) {
        checks.push(Check::ok(
            "no huge pages are reserved: needed only for --pages 2M and 1G, which then says how",
        ));
    }
    checks
}

/// The folders in which regions have their memory, as QEMU is told them.
fn dirs(regions: &[(&str, &Region)]) -> Vec<PathBuf> {
    let files = regions.iter().filter_map(|(_, region)| fs::canonicalize(region.path()).ok());
    let mut dirs: Vec<_> = files.filter_map(|file| Some(file.parent()?.to_owned())).collect();
    dirs.sort();
    dirs.dedup();
    dirs
}

/// Name, bytes, and bytes of a page of each region.
fn sizes(regions: &[(&str, &Region)]) -> Vec<(String, u64, u64)> {
    let size = |&(name, region): &(&str, &Region)| {
        let header = region.header();
        (name.to_owned(), header.region_len, header.page_len)
    };
    regions.iter().map(size).collect()
}

fn regions(listed: Result<Vec<Listed>, Error>) -> Vec<Check> {
    let listed = match listed {
        Ok(listed) => listed,
        Err(error) => return vec![Check::missing(error.to_string(), "ask the directory's owner, or root")],
    };
    if listed.is_empty() {
        return vec![Check::warning("no regions", "vmshm region create NAME --size 8G")];
    }
    let mut checks = Vec::new();
    for entry in listed {
        let name = entry.name;
        match entry.region.and_then(|region| Ok((inspect(&region)?, region))) {
            Ok((seen, region)) => {
                let free = seen.sections.iter().filter(|s| s.state == State::Free).count();
                let size = format_bytes(seen.size);
                let text = format!("region {name}: {size}, {free} of {} sections free", seen.sections.len());
                checks.push(if region.is_writable() {
                    Check::ok(text)
                } else {
                    Check::warning(
                        format!("{text}, but this user may not write to it"),
                        format!("ask for membership in its group: ls -l {}", region.path().display()),
                    )
                });
                checks.extend(remove_ipc::check(region.path()));
                for section in &seen.sections {
                    if section.owner_alive == Some(false) {
                        let k = section.section;
                        checks.push(Check::warning(
                            format!("region {name}: the VM that joined section {k} has ended unseen"),
                            format!("vmshm serve {name}, or vmshm region release {name} --section {k}"),
                        ));
                    }
                    let away =
                        section.node.filter(|node| section.nodes_found.iter().any(|found| found != node));
                    if let Some(node) = away {
                        checks.push(Check::warning(
                            format!(
                                "region {name}: section {} was meant for NUMA node {node}, but lies on {:?}",
                                section.section, section.nodes_found
                            ),
                            "destroy the region and create it anew",
                        ));
                    }
                }
            }
            Err(error) => checks.push(Check::missing(
                format!("region {name}: {error}"),
                format!("vmshm region destroy --force {name}"),
            )),
        }
    }
    checks
}

/// Socket files, and whether anybody listens. Connecting would make us a member, so the kernel's list is asked.
fn sockets(dir: &Path) -> Vec<Check> {
    let Ok(entries) = fs::read_dir(dir) else {
        return vec![Check::ok("no ivshmem server has run here: needed only for devices with doorbells")];
    };
    let listening = fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let mut dead = Vec::new();
    let mut alive = 0;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.extension().is_none_or(|extension| extension != "sock") {
            continue;
        }
        if listening.lines().any(|line| line.ends_with(&format!(" {}", path.display()))) {
            alive += 1;
        } else {
            dead.push(path.display().to_string());
        }
    }
    let mut checks =
        vec![Check::ok(format!("{alive} sockets of running ivshmem servers in {}", dir.display()))];
    if !dead.is_empty() {
        checks.push(Check::warning(
            format!("sockets that a killed server left: {}", dead.join(", ")),
            "start `vmshm serve` for the region again, which replaces them, or remove them",
        ));
    }
    checks
}
