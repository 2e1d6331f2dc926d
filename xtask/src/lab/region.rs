//! A region made by `vmshm region create` for one run, destroyed when no longer wanted.

use std::path::{Path, PathBuf};
use std::process::Command;

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::base::cleanup;
use crate::base::process::{self, Running, last_lines};

/// A region on this host, in a directory of its own, so that runs do not meet.
#[derive(Debug)]
pub struct Region {
    tool: PathBuf,
    dir: TempDir,
}

const NAME: &str = "lab";

impl Region {
    /// Creates a region of `size` (as `8G`) with so many sections. `sparse` takes memory only as it is used.
    pub fn create(prefix: &Path, size: &str, sections: usize, sparse: bool) -> Result<Self> {
        Self::create_with(prefix, size, sections, if sparse { &["--sparse"] } else { &[] })
    }

    /// Creates a sparse one in which every member may write everywhere.
    pub fn create_open(prefix: &Path, size: &str, sections: usize) -> Result<Self> {
        Self::create_with(prefix, size, sections, &["--sparse", "--open"])
    }

    fn create_with(prefix: &Path, size: &str, sections: usize, flags: &[&str]) -> Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix("vmshm-region-")
            .tempdir_in("/dev/shm")
            .context("cannot create a directory in /dev/shm")?;
        let tool = prefix.join("bin/vmshm");
        let mut command = vmshm(&tool, dir.path());
        command.args(["region", "create", NAME, "--size", size]);
        command.args(["--sections", &sections.to_string()]).args(flags);
        process::capture(&mut command).context("cannot create a region")?;
        Ok(Self { tool, dir })
    }

    /// QEMU's arguments that give a guest this region, with section `section` as its own; with `doorbell` by way of
    /// the server, see [`Region::serve`].
    pub fn qemu_args(&self, section: usize, doorbell: bool) -> Result<Vec<String>> {
        let section = section.to_string();
        let mut command = vmshm(&self.tool, self.dir.path());
        command.args(["qemu-args", NAME, "--section", &section]);
        if doorbell {
            command.arg("--doorbell");
        }
        let text = process::capture(&mut command)?;
        Ok(text.split_whitespace().map(str::to_owned).collect())
    }

    /// Starts the region's server and waits until guests can connect to it.
    pub fn serve(&self, log: &Path) -> Result<Running> {
        let mut command = process::mortal(&self.tool);
        point_to(&mut command, self.dir.path()).args(["serve", NAME]);
        let mut server = Running::start(command, "vmshm serve", log)?;
        let begin = Instant::now();
        while !run_dir(self.dir.path()).join(format!("{NAME}.sock")).exists() {
            cleanup::check()?;
            if let Some(status) = server.poll()? {
                bail!("vmshm serve ended with {status}: {}", last_lines(&server.text(), 5));
            }
            if begin.elapsed() > Duration::from_secs(10) {
                bail!("vmshm serve opened no socket within 10 s; log: {}", log.display());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// The region's file.
    pub fn file(&self) -> PathBuf {
        self.dir.path().join(NAME)
    }

    /// Output of `vmshm region inspect` about the region, as JSON.
    pub fn inspect(&self) -> Result<serde_json::Value> {
        let mut command = vmshm(&self.tool, self.dir.path());
        let text = process::capture(command.args(["region", "inspect", NAME, "--json"]))?;
        Ok(serde_json::from_str(&text)?)
    }

    /// Environment by which a process on this host finds plugin and region, as `vmshm env` says.
    pub fn environment(&self) -> Result<Vec<(String, String)>> {
        self.environment_with(&[])
    }

    /// The same, with further arguments for `vmshm env`.
    pub fn environment_with(&self, arguments: &[&str]) -> Result<Vec<(String, String)>> {
        let mut command = vmshm(&self.tool, self.dir.path());
        let text = process::capture(command.args(["env", "--region", NAME]).args(arguments))?;
        let mut settings = parse_exports(&text);
        settings.push(("VMSHM_DIR".into(), self.dir.path().display().to_string()));
        Ok(settings)
    }
}

/// The tool, which looks for regions only in `dir`.
fn vmshm(tool: &Path, dir: &Path) -> Command {
    let mut command = Command::new(tool);
    point_to(&mut command, dir);
    command
}

fn point_to<'a>(command: &'a mut Command, dir: &Path) -> &'a mut Command {
    command
        .env("VMSHM_DIR", dir)
        .env("VMSHM_RUN_DIR", run_dir(dir))
        .env_remove("OMPI_MCA_mca_base_component_path")
}

/// Where the server's sockets lie.
fn run_dir(dir: &Path) -> PathBuf {
    dir.join("run")
}

/// Reads lines like `export NAME='value'` or `export NAME=value`.
fn parse_exports(text: &str) -> Vec<(String, String)> {
    text.lines()
        .filter_map(|line| {
            let line = line.trim().strip_prefix("export ")?.trim_end_matches(';');
            let (name, value) = line.split_once('=')?;
            let value = value.trim_matches(|c| c == '\'' || c == '"');
            Some((name.to_owned(), value.to_owned()))
        })
        .collect()
}

impl Drop for Region {
    fn drop(&mut self) {
        let mut command = vmshm(&self.tool, self.dir.path());
        if let Err(error) = process::capture(command.args(["region", "destroy", NAME])) {
            eprintln!("could not destroy the region of this run: {error:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exports_are_read_with_and_without_quotes() {
        let got = parse_exports("# note\nexport A=1\nexport B='x:y'\nexport C=\"z\";\nD=4\n");
        let want = [("A", "1"), ("B", "x:y"), ("C", "z")];
        assert_eq!(got.len(), want.len());
        for ((name, value), (n, v)) in got.iter().zip(want) {
            assert_eq!((name.as_str(), value.as_str()), (n, v));
        }
    }
}
