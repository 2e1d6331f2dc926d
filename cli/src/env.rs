//! `vmshm env`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vmshm_host::Registry;

use crate::doctor::obstacles;
use crate::installed::{HEAP, component_path, own_prefix, plugin_dir};
use crate::shell::quote;

/// Options of `vmshm env`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  eval \"$(vmshm env)\" && mpirun -np 4 ./program
  eval \"$(vmshm env --region job)\"
  eval \"$(vmshm env --mpi 5.0.7)\"
  eval \"$(vmshm env --heap)\" && mpirun -np 4 -x LD_PRELOAD -x VMSHM_HEAP ./program

Open MPI then chooses by itself: shared memory inside a VM, vmshm between the VMs of a host, the network beyond. \
`--mca btl vmshm,self` on mpirun's command line allows nothing but vmshm.

What on this machine would keep vmshm from being used is said on standard error; `vmshm doctor` says more.

Without --region the processes find their region themselves: the guest driver's /dev/vmshmN, the ivshmem device of \
their VM, or the one region of the host they run on.

Processes that wait poll, which takes a CPU each. With `--mca btl_vmshm_sleep_after 1000` they sleep after so many \
microseconds of waiting, where the device has doorbells (`vmshm doctor` in the VM says so).")]
pub struct Args {
    /// The region for processes on this host: a name, or the path of its file. Not for processes in VMs
    #[arg(long, value_name = "NAME|PATH")]
    region: Option<String>,
    /// The release of Open MPI that the plugin was installed for with --with-mpi, as 5.0.7. Default: the plugin that was
    /// installed without
    #[arg(long, value_name = "RELEASE")]
    mpi: Option<String>,
    /// Place the program's own large allocations in the shared memory too, from where they are sent without a copy by the
    /// sender. Sets LD_PRELOAD and VMSHM_HEAP. VMSHM_HEAP=verbose says at the end what was placed, VMSHM_HEAP_MIN is the
    /// smallest allocation that is (bytes)
    #[arg(long)]
    heap: bool,
    /// Where vmshm is installed. Default: where this program lies
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

impl Args {
    /// Prints what a shell must evaluate.
    pub fn run(&self) -> anyhow::Result<()> {
        let Some(prefix) = self.prefix.clone().or_else(own_prefix) else {
            bail!(
                "this program lies in no PREFIX/bin, so the plugin cannot be found from there: \
                 install with `cargo xtask install --prefix DIR`, or name the place with --prefix DIR"
            );
        };
        let release = self.mpi.as_deref();
        let Some(dir) = plugin_dir(&prefix, release) else {
            let (folder, with) = match release {
                Some(release) => (format!("lib/openmpi-{release}"), " --with-mpi DIR"),
                None => ("lib/openmpi".to_owned(), ""),
            };
            bail!(
                "the plugin is not in {}: install it with `cargo xtask install --prefix {}{with}`",
                prefix.join(folder).display(),
                prefix.display()
            );
        };
        let dir = std::fs::canonicalize(&dir).with_context(|| format!("cannot find {}", dir.display()))?;
        let dir = dir.to_str().context("the path of the plugin is not UTF-8, which Open MPI needs")?;
        if dir.contains([':', ',']) {
            bail!("the path {dir:?} contains ':' or ',', at which Open MPI would cut it: install elsewhere");
        }
        let before = std::env::var("OMPI_MCA_mca_base_component_path").ok();
        let component_path = component_path(before.as_deref(), dir);
        let mut lines = vec![("OMPI_MCA_mca_base_component_path", component_path.clone())];
        if release.is_some_and(|release| !release.starts_with("4.")) {
            // From 5.0 on Open MPI hands its path to PMIx, which complains of components that are not its own.
            lines.push(("PMIX_MCA_mca_base_component_path", String::new()));
        }
        let region = self.region.as_ref().map(|region| Registry::from_env().open(region)).transpose()?;
        if let Some(region) = &region {
            let path = std::path::absolute(region.path())?;
            let path = path.to_str().context("the path of the region is not UTF-8, which Open MPI needs")?;
            lines.push(("OMPI_MCA_btl_vmshm_device", path.to_owned()));
            lines.push(("VMSHM_DEVICE", path.to_owned()));
        }
        if self.heap {
            let heap = Path::new(dir).with_file_name(HEAP);
            if !heap.is_file() {
                bail!("{} is not there: install vmshm anew", heap.display());
            }
            let before = std::env::var("LD_PRELOAD").ok();
            lines.push(("LD_PRELOAD", preload(before.as_deref(), &heap.display().to_string())?));
            // A user who has asked to be told keeps that.
            let is_verbose = std::env::var("VMSHM_HEAP").is_ok_and(|before| before == "verbose");
            lines.push(("VMSHM_HEAP", if is_verbose { "verbose" } else { "1" }.to_owned()));
        }
        let mut out = std::io::stdout().lock();
        for (name, value) in lines {
            writeln!(out, "export {name}={}", quote(&value))?;
        }
        for obstacle in obstacles(&component_path, region.as_ref()) {
            writeln!(std::io::stderr(), "vmshm: {obstacle}")?;
        }
        Ok(())
    }
}

/// The value of `LD_PRELOAD` that adds a library behind those named already: sanitizers insist on being the first.
fn preload(before: Option<&str>, library: &str) -> anyhow::Result<String> {
    let ends = |c: char| c == ':' || c.is_whitespace();
    if library.contains(ends) {
        bail!(
            "the path {library:?} contains a space or ':', at which LD_PRELOAD would be cut: install elsewhere"
        );
    }
    Ok(match before.filter(|list| !list.is_empty()) {
        None => library.to_owned(),
        Some(list) if list.split(ends).any(|part| part == library) => list.to_owned(),
        Some(list) => format!("{list}:{library}"),
    })
}

#[cfg(test)]
mod tests {
    use super::preload;

    #[test]
    fn a_library_is_preloaded_once_and_others_stay() {
        assert_eq!(preload(None, "/a/b.so").unwrap(), "/a/b.so");
        assert_eq!(preload(Some(""), "/a/b.so").unwrap(), "/a/b.so");
        assert_eq!(preload(Some("/x.so y.so"), "/a/b.so").unwrap(), "/x.so y.so:/a/b.so");
        assert_eq!(preload(Some("/x.so:/a/b.so"), "/a/b.so").unwrap(), "/x.so:/a/b.so");
        assert!(preload(None, "/a b.so").is_err());
    }
}
