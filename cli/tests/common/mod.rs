//! Runs `vmshm` with directories of its own.
#![allow(dead_code, reason = "each test program uses its own part of this")]

pub mod kernel;

use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

/// A host with no regions yet.
pub struct Host {
    pub dir: TempDir,
}

impl Host {
    pub fn new() -> Self {
        Self { dir: TempDir::new_in("/dev/shm").unwrap() }
    }

    pub fn regions(&self) -> PathBuf {
        self.dir.path().join("regions")
    }

    pub fn sockets(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vmshm"));
        command
            .args(arguments)
            .env("VMSHM_DIR", self.regions())
            .env("VMSHM_RUN_DIR", self.sockets())
            .env_remove("OMPI_MCA_mca_base_component_path")
            .stdin(Stdio::null());
        command
    }

    pub fn output(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that succeeds; returns what it printed.
    pub fn ok(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    /// Runs a command that fails without a panic; returns its message.
    pub fn fails(&self, arguments: &[&str]) -> String {
        let output = self.output(arguments);
        assert!(
            matches!(output.status.code(), Some(1 | 2)),
            "{arguments:?}: {} {}",
            output.status,
            String::from_utf8_lossy(&output.stdout)
        );
        String::from_utf8(output.stderr).unwrap()
    }

    /// Starts the server and waits until it listens.
    pub fn serve(&self, arguments: &[&str]) -> Child {
        let mut all = vec!["serve"];
        all.extend(arguments);
        let mut server = self.command(&all).stderr(Stdio::null()).spawn().unwrap();
        until("the server listens", || {
            assert!(server.try_wait().unwrap().is_none(), "the server ended");
            std::fs::read_dir(self.sockets()).is_ok_and(|mut dir| {
                dir.any(|entry| {
                    let listening = std::fs::read_to_string("/proc/net/unix").unwrap();
                    listening.contains(entry.unwrap().path().to_str().unwrap())
                })
            })
        });
        server
    }
}

/// Waits until something holds that another process brings about.
pub fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !holds() {
        assert!(std::time::Instant::now() < end, "waited in vain for: {what}");
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
}
