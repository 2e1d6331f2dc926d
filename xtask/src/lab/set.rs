//! Guests under our own VMM, started by `vmshm up` as a user would.

use std::fs;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;

use super::guest::Answer;
use super::image::Image;
use super::{Guests, MEMORY, PROCESSORS, payload_drive};
use crate::base::process;
use crate::debian::packages;

const NAME: &str = "demo";
const REGION: &str = "1G";
const LIMIT: Duration = Duration::from_secs(180);

/// A running set. It is ended when this value is dropped.
#[derive(Debug)]
pub struct Set {
    tool: PathBuf,
    size: usize,
    /// Region, sockets and what the set's folder holds.
    dir: TempDir,
    /// Drives and the key of the guests.
    files: TempDir,
}

impl Set {
    /// Boots so many guests; `payload` is the built tree, as for [`super::Plan`].
    pub fn start(image: &Image, payload: &Path, size: usize, log_dir: &Path) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("vmshm-set-").tempdir_in("/dev/shm")?;
        let files = tempfile::Builder::new().prefix("vmshm-set-").tempdir()?;
        let drive = payload_drive(payload, files.path())?;
        let set = Self { tool: payload.join("bin/vmshm"), size, dir, files };
        // The guests let each other in by this key, and its owner.
        let key = set.key();
        let mut dump = process::administrative("debugfs");
        dump.arg("-R").arg(format!("dump /root/.ssh/id_ed25519 {}", key.display())).arg(&image.root);
        process::capture(&mut dump)?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        let mut up = set.vmshm("up");
        up.args(["--vms", &size.to_string(), "--cpus", &PROCESSORS.to_string()]);
        up.args(["--memory", &format!("{MEMORY}M"), "--region", REGION, "--timeout", "120"]);
        up.arg("--kernel").arg(&image.kernel).arg("--initrd").arg(&image.initramfs);
        up.arg("--disk").arg(&image.root).arg("--disk").arg(format!("{},ro", drive.display()));
        up.args(["--append", "quiet panic=-1"]);
        process::run(up, "vmshm up", &log_dir.join("up.log"), LIMIT)?;
        Ok(set)
    }

    /// A command of the tool for this set, as root, who may make its network.
    fn vmshm(&self, command: &str) -> Command {
        let mut vmshm = packages::as_root("env");
        let dir = self.dir.path();
        vmshm.arg(format!("VMSHM_DIR={}", dir.join("regions").display()));
        vmshm.arg(format!("VMSHM_RUN_DIR={}", dir.join("run").display()));
        vmshm.arg(&self.tool).args([command, NAME]);
        vmshm
    }

    fn key(&self) -> PathBuf {
        self.files.path().join("key")
    }
}

impl Guests for Set {
    fn size(&self) -> usize {
        self.size
    }

    fn run(&mut self, guest: usize, script: &str, limit: Duration) -> Result<Answer> {
        let file = self.files.path().join("script");
        fs::File::create(&file)?.write_all(script.as_bytes())?;
        let mut ssh = Command::new("timeout");
        ssh.arg(limit.as_secs().to_string()).arg("ssh").arg("-i").arg(self.key());
        ssh.arg("-F").arg(self.dir.path().join("run").join(NAME).join("ssh_config"));
        ssh.arg(format!("root@vm{guest}")).arg("sh -s 2>&1").stdin(Stdio::from(fs::File::open(&file)?));
        let output = ssh.output().context("cannot start ssh")?;
        let code = output.status.code().with_context(|| format!("ssh to vm{guest} was killed"))?;
        Ok(Answer { code, text: String::from_utf8_lossy(&output.stdout).into_owned() })
    }
}

impl Drop for Set {
    fn drop(&mut self) {
        let is_there = self.dir.path().join("run").join(NAME).exists();
        if !is_there {
            return;
        }
        if let Err(error) = process::capture(self.vmshm("down").args(["--timeout", "10"])) {
            eprintln!("The guests under our VMM were not ended in order: {error:#}");
        }
    }
}
