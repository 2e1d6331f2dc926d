//! Denials of AppArmor or SELinux to the VMs' QEMU: libvirt confines each of them, and knows nothing of our regions.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::check::Check;

/// Denials of region files below `dirs` and of the server's sockets below `run`, as far as this user may read the logs.
pub fn checks(dirs: &[PathBuf], run: &Path) -> Vec<Check> {
    let audit = fs::read("/var/log/audit/audit.log").unwrap_or_default();
    let kernel = Command::new("dmesg").stdin(Stdio::null()).output().map(|output| output.stdout);
    let log = [audit, kernel.unwrap_or_default()].concat();
    checks_in(&String::from_utf8_lossy(&log), dirs, run)
}

/// One finding for each file that was denied.
fn checks_in(log: &str, dirs: &[PathBuf], run: &Path) -> Vec<Check> {
    let mut seen = Vec::new();
    for line in log.lines() {
        if let Some(found) = apparmor(line, dirs, run).or_else(|| selinux(line, dirs, run))
            && !seen.contains(&found)
        {
            seen.push(found);
        }
    }
    seen.into_iter().map(|(what, cure)| Check::warning(what, cure)).collect()
}

/// A field `name="value"` or `name=value` of a line.
fn field<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let rest = line.split_once(&format!(" {name}="))?.1;
    match rest.strip_prefix('"') {
        Some(quoted) => quoted.split('"').next(),
        None => rest.split_ascii_whitespace().next(),
    }
}

fn apparmor(line: &str, dirs: &[PathBuf], run: &Path) -> Option<(String, String)> {
    if !line.contains("apparmor=\"DENIED\"") {
        return None;
    }
    let (profile, name) = (field(line, "profile")?, field(line, "name")?);
    let path = Path::new(name);
    let is_ours = dirs.iter().any(|dir| path.starts_with(dir)) || path.starts_with(run);
    // libvirt's profiles are called by the domain's UUID.
    (is_ours && profile.starts_with("libvirt-")).then(|| {
        let rights = field(line, "denied_mask").or(field(line, "requested_mask")).unwrap_or("?");
        (
            format!("AppArmor denied QEMU {name} ({rights}; profile {profile})"),
            format!(
                "add the line  \"{}/*\" rwk,  to /etc/apparmor.d/local/abstractions/libvirt-qemu, then start the domain anew",
                path.parent().unwrap_or(path).display()
            ),
        )
    })
}

fn selinux(line: &str, dirs: &[PathBuf], run: &Path) -> Option<(String, String)> {
    let (_, rest) = line.split_once("avc:  denied  {").or(line.split_once("avc: denied {"))?;
    let (rights, _) = rest.split_once('}')?;
    let context = field(line, "scontext")?;
    // Each domain's QEMU runs as svirt_t, or svirt_tcg_t where it is emulated.
    if !context.split(':').any(|part| part.starts_with("svirt")) {
        return None;
    }
    // The kernel mostly knows a file's last name only.
    let name = field(line, "path").or(field(line, "name"))?;
    let file = Path::new(name).file_name()?;
    let place = dirs.iter().map(PathBuf::as_path).chain([run]).map(|dir| dir.join(file)).find(|path| {
        match name.contains('/') {
            true => path == Path::new(name),
            false => path.exists(),
        }
    })?;
    let label = field(line, "tcontext").unwrap_or("?");
    let is_connection = field(line, "tclass") == Some("unix_stream_socket");
    Some((
        format!("SELinux denied QEMU {} ({}; {context} to {label})", place.display(), rights.trim()),
        match is_connection {
            // The label in question is then the server's own.
            true => "sudo sh -c 'ausearch -m avc -c qemu-kvm --raw | audit2allow -M vmshm && semodule -i vmshm.pp'".to_owned(),
            false => format!("sudo chcon -t svirt_image_t {}", place.display()),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(log: &str, dir: &Path, run: &Path) -> Vec<String> {
        let checks = checks_in(log, &[dir.to_owned()], run);
        checks.into_iter().map(|check| check.what + "; " + &check.cure.unwrap_or_default()).collect()
    }

    #[test]
    fn apparmor_s_denials_are_found_once_and_only_ours() {
        let denied = |profile: &str, name: &str| {
            format!(
                "[  99.1] audit: type=1400 audit(1764.1:77): apparmor=\"DENIED\" operation=\"open\" profile=\"{profile}\" \
                 name=\"{name}\" pid=812 comm=\"qemu-system-x86\" requested_mask=\"wr\" denied_mask=\"wr\" fsuid=64055 ouid=0\n"
            )
        };
        let profile = "libvirt-0c4a6c1e-1f7e-4a3f-9a0e-5c1f5f8b8f11";
        let log = denied(profile, "/dev/shm/vmshm/job")
            + &denied(profile, "/dev/shm/vmshm/job")
            + &denied(profile, "/run/vmshm/job.0.sock")
            + &denied(profile, "/etc/shadow")
            + &denied("man_groff", "/dev/shm/vmshm/job")
            + "apparmor=\"ALLOWED\" profile=\"libvirt-1\" name=\"/dev/shm/vmshm/job\"\n";
        let found = found(&log, Path::new("/dev/shm/vmshm"), Path::new("/run/vmshm"));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("denied QEMU /dev/shm/vmshm/job (wr; profile libvirt-0c4a"), "{found:?}");
        assert!(found[0].contains("\"/dev/shm/vmshm/*\" rwk,"), "{found:?}");
        assert!(found[1].contains("\"/run/vmshm/*\" rwk,"), "{found:?}");
    }

    #[test]
    fn selinux_s_denials_are_found_by_the_file_s_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let (regions, run) = (dir.path().join("regions"), dir.path().join("run"));
        for file in [regions.join("job"), run.join("job.0.sock")] {
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, "").unwrap();
        }
        let denied = |rights: &str, what: &str, source: &str, class: &str| {
            format!(
                "type=AVC msg=audit(1764.2:91): avc:  denied  {{ {rights} }} for  pid=812 comm=\"qemu-kvm\" {what} dev=\"tmpfs\" \
                 ino=5 scontext=system_u:system_r:{source}:s0:c1,c2 tcontext=system_u:object_r:user_tmp_t:s0 tclass={class} permissive=0\n"
            )
        };
        let socket = format!("path=\"{}\"", run.join("job.0.sock").display());
        let log = denied("read write", "name=\"job\"", "svirt_t", "file")
            + &denied("connectto", &socket, "svirt_t", "unix_stream_socket")
            + &denied("read", "name=\"job\"", "httpd_t", "file")
            + &denied("read", "name=\"another\"", "svirt_t", "file");
        let found = found(&log, &regions, &run);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].contains("regions/job (read write; system_u:system_r:svirt_t"), "{found:?}");
        assert!(found[0].contains("chcon -t svirt_image_t"), "{found:?}");
        assert!(found[1].contains("connectto") && found[1].contains("audit2allow"), "{found:?}");
    }
}
