//! Whose word counts for the memory type in a VM: where KVM honours the guest's, a guest without our driver has the region
//! uncached.
//!
//! KVM on AMD always honours it. On Intel it takes everything for write-back, until a device is passed through or QEMU is
//! told `-accel kvm,honor-guest-pat=on`.

use std::fs;
use std::path::Path;

use super::check::Check;

/// The cure where a guest's memory type counts.
const CURE: &str =
    "load the guest driver in its VMs, where their kernels can have it: see guest-kmod/README.md";

/// Whether guests' memory types count on this host, and for the VMs that run on it.
pub fn checks() -> Vec<Check> {
    checks_under(Path::new("/"))
}

fn checks_under(root: &Path) -> Vec<Check> {
    let processor = fs::read_to_string(root.join("proc/cpuinfo")).unwrap_or_default();
    let vendor = processor.lines().find_map(|line| line.strip_prefix("vendor_id")?.split_once(':'));
    let vendor = vendor.map_or("", |(_, vendor)| vendor.trim());
    if matches!(vendor, "AuthenticAMD" | "HygonGenuine") {
        return vec![Check::warning(
            format!(
                "KVM honours the memory types of guests on this processor ({vendor}): without the guest driver they map the region uncached, which is slow"
            ),
            CURE,
        )];
    }
    let mut checks = Vec::new();
    for (process, words) in machines(root) {
        let has = |text: &str| words.iter().any(|word| word.contains(text));
        let why = match (has("honor-guest-pat=on"), has("vfio-pci")) {
            (true, _) => "QEMU's honor-guest-pat=on",
            (false, true) => "a device passed through by vfio-pci",
            (false, false) => continue,
        };
        let honours = match why.starts_with("QEMU") {
            true => "honours",
            // Only where its DMA does not snoop caches.
            false => "may honour",
        };
        checks.push(Check::warning(
            format!("KVM {honours} the memory types of the VM of process {process} ({why}): without the guest driver it maps the region uncached, which is slow"),
            CURE,
        ));
    }
    checks
}

/// The QEMU processes with an ivshmem device, and the words of their command lines.
fn machines(root: &Path) -> Vec<(u32, Vec<String>)> {
    let entries = fs::read_dir(root.join("proc")).into_iter().flatten().flatten();
    let mut found: Vec<_> = entries
        .filter_map(|entry| {
            let process = entry.file_name().to_str()?.parse().ok()?;
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<String> = line
                .split(|&byte| byte == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .collect();
            let is_qemu = Path::new(words.first()?).file_name()?.to_string_lossy().starts_with("qemu");
            (is_qemu && words.iter().any(|word| word.contains("ivshmem"))).then_some((process, words))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(vendor: &str, lines: &[(u32, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        let proc = root.path().join("proc");
        fs::create_dir(&proc).unwrap();
        fs::write(proc.join("cpuinfo"), format!("processor\t: 0\nvendor_id\t: {vendor}\n")).unwrap();
        for (process, line) in lines {
            let dir = proc.join(process.to_string());
            fs::create_dir(&dir).unwrap();
            fs::write(dir.join("cmdline"), line.replace(' ', "\0")).unwrap();
        }
        root
    }

    #[test]
    fn on_amd_the_guest_s_word_always_counts() {
        let found = checks_under(host("AuthenticAMD", &[]).path());
        assert!(found.len() == 1 && found[0].what.contains("AuthenticAMD"), "{found:?}");
    }

    #[test]
    fn on_intel_it_counts_for_some_vms() {
        let ours = "-device ivshmem-plain,memdev=vmshm";
        let lines = [
            (10, format!("/usr/bin/qemu-system-x86_64 -accel kvm {ours}")),
            (11, format!("/usr/bin/qemu-system-x86_64 -accel kvm,honor-guest-pat=on {ours}")),
            (12, format!("/usr/libexec/qemu-kvm -device vfio-pci,host=81:00.2 {ours}")),
            (13, "/usr/bin/qemu-system-x86_64 -accel kvm,honor-guest-pat=on".to_owned()),
            (14, format!("grep honor-guest-pat=on {ours}")),
        ];
        let lines: Vec<_> = lines.iter().map(|(process, line)| (*process, line.as_str())).collect();
        let found = checks_under(host("GenuineIntel", &lines).path());
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].what.contains("process 11 (QEMU's honor-guest-pat=on)"), "{found:?}");
        assert!(found[1].what.contains("may honour") && found[1].what.contains("process 12"), "{found:?}");
    }
}
