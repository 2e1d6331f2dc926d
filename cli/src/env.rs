//! `vmshm env`.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use vmshm_host::Registry;

use crate::doctor::{obstacles, release};
use crate::installed::{HEAP, Series, component_path, own_prefix, plugin_dir, plugin_dir_for, transports};
use crate::shell::quote;

/// Options of `vmshm env`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  eval \"$(vmshm env)\" && mpirun -np 4 ./program
  eval \"$(vmshm env --region job)\"
  eval \"$(vmshm env --mpi 5.0.7)\"
  eval \"$(vmshm env --heap)\" && mpirun -np 4 -x LD_PRELOAD -x VMSHM_HEAP ./program
  eval \"$(vmshm env --ucx)\" && mpiexec -n 4 ./program-of-MPICH

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
    /// The release of Open MPI that will run, as 5.0.7. Default: that of the ompi_info in the PATH. Its plugin is the one that was
    /// installed for it with --with-mpi, or else, by default, the one that was installed without
    #[arg(long, value_name = "RELEASE")]
    mpi: Option<String>,
    /// Place the program's own large allocations in the shared memory too, from where they are sent without a copy by the
    /// sender. Sets LD_PRELOAD and VMSHM_HEAP. VMSHM_HEAP=verbose says at the end what was placed, VMSHM_HEAP_MIN is the
    /// smallest allocation that is (bytes)
    #[arg(long)]
    heap: bool,
    /// Have programs that use UCX without Open MPI take the UCX transport, as MPICH does; the plugin for Open MPI brings it to
    /// pml/ucx by itself. SERIES is that of their UCX, as 1.18; default: the only one there is a transport for. Sets LD_PRELOAD,
    /// from UCX 1.22 on UCX_PLUGIN_PATH
    #[arg(long, value_name = "SERIES", num_args = 0..=1, default_missing_value = "")]
    ucx: Option<String>,
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
        let running = self.mpi.clone().or_else(release);
        let dir = match &self.mpi {
            Some(release) => plugin_dir(&prefix, Some(release)),
            None => plugin_dir_for(&prefix, running.as_deref()),
        };
        let Some(dir) = dir else {
            let (folder, with) = match &self.mpi {
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
        let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        // A user may know better.
        let below =
            running.as_deref().map_or(&[][..], below_han).iter().filter(|(name, _)| set(name).is_none());
        lines.extend(below.map(|(name, value)| (*name, (*value).to_owned())));
        if running.is_some_and(|release| !release.starts_with("4.")) {
            // From 5.0 on Open MPI hands its path to PMIx, which complains of components that are not its own. A list without
            // entries: where the value is empty, mpirun of 5.0.7 ends with SIGSEGV before it starts processes of other hosts.
            lines.push(("PMIX_MCA_mca_base_component_path", ":".to_owned()));
        }
        let region = self.region.as_ref().map(|region| Registry::from_env().open(region)).transpose()?;
        if let Some(region) = &region {
            let path = std::path::absolute(region.path())?;
            let path = path.to_str().context("the path of the region is not UTF-8, which Open MPI needs")?;
            lines.push(("OMPI_MCA_btl_vmshm_device", path.to_owned()));
            lines.push(("VMSHM_DEVICE", path.to_owned()));
        }
        let mut preloaded = None;
        if self.heap {
            let heap = Path::new(dir).with_file_name(HEAP);
            if !heap.is_file() {
                bail!("{} is not there: install vmshm anew", heap.display());
            }
            preloaded = Some(added(set("LD_PRELOAD"), "LD_PRELOAD", &heap.display().to_string())?);
            // A user who has asked to be told keeps that.
            let is_verbose = std::env::var("VMSHM_HEAP").is_ok_and(|before| before == "verbose");
            lines.push(("VMSHM_HEAP", if is_verbose { "verbose" } else { "1" }.to_owned()));
        }
        let transports = transports(&prefix);
        if let Some(series) = &self.ucx {
            let (series, file) = choose(&transports, series, &prefix)?;
            if *series < PLUGIN_PATH {
                let before = preloaded.or_else(|| set("LD_PRELOAD"));
                preloaded = Some(added(before, "LD_PRELOAD", &file.display().to_string())?);
            } else {
                let folder = file.parent().unwrap_or(file).display().to_string();
                lines.push(("UCX_PLUGIN_PATH", added(set("UCX_PLUGIN_PATH"), "UCX_PLUGIN_PATH", &folder)?));
            }
        }
        lines.extend(preloaded.map(|list| ("LD_PRELOAD", list)));
        let mut out = std::io::stdout().lock();
        for (name, value) in lines {
            writeln!(out, "export {name}={}", quote(&value))?;
        }
        for obstacle in obstacles(&component_path, region.as_ref(), &transports) {
            writeln!(std::io::stderr(), "vmshm: {obstacle}")?;
        }
        Ok(())
    }
}

/// Parameters by which `han`, which has communicators of several hosts, leaves operations within a host to the best component there,
/// which is ours, as it is for communicators of that host alone: it knows `tuned` and, in 5.0, `sm`, in 6.0 `xhc`, neither of which
/// is taken by itself, and takes the best where the one that it is told to take is missing.
fn below_han(release: &str) -> &'static [(&'static str, &'static str)] {
    match release.split('.').next() {
        Some("5") => &[
            ("OMPI_MCA_coll_sm_priority", "-1"),
            ("OMPI_MCA_coll_han_bcast_low_module", "1"),
            ("OMPI_MCA_coll_han_reduce_low_module", "1"),
            ("OMPI_MCA_coll_han_allreduce_low_module", "1"),
        ],
        Some("6") => &[
            ("OMPI_MCA_coll_xhc_priority", "-1"),
            ("OMPI_MCA_coll_han_bcast_low_module", "2"),
            ("OMPI_MCA_coll_han_reduce_low_module", "2"),
            ("OMPI_MCA_coll_han_allreduce_low_module", "2"),
        ],
        _ => &[],
    }
}

/// The first series that looks for transports where UCX_PLUGIN_PATH says.
const PLUGIN_PATH: Series = Series(1, 22);

/// The transport for a series, or the only one that there is.
fn choose<'a>(
    transports: &'a [(Series, PathBuf)],
    series: &str,
    prefix: &Path,
) -> anyhow::Result<&'a (Series, PathBuf)> {
    let install = || {
        format!(
            "with the headers of that UCX installed (Debian: libucx-dev), cargo xtask install --prefix {}",
            prefix.display()
        )
    };
    let all = || transports.iter().map(|(series, _)| series.to_string()).collect::<Vec<_>>().join(", ");
    match transports {
        [] => bail!("no UCX transport is installed in {}: {}", prefix.join("lib").display(), install()),
        [only] if series.is_empty() => Ok(only),
        several if series.is_empty() => {
            bail!("UCX transports are installed for {}: name one, as --ucx {}", all(), several[0].0)
        }
        _ => transports.iter().find(|(found, _)| Some(*found) == Series::parse(series)).with_context(|| {
            format!("no UCX transport is installed for {series}, but for {}: {}", all(), install())
        }),
    }
}

/// The value of a variable with a list of paths that adds one behind those named already: sanitizers insist on being the first.
fn added(before: Option<String>, variable: &str, path: &str) -> anyhow::Result<String> {
    let ends = |c: char| c == ':' || c.is_whitespace();
    if path.contains(ends) {
        bail!(
            "the path {path:?} contains a space or ':', at which {variable} would be cut: install elsewhere"
        );
    }
    Ok(match before.filter(|list| !list.is_empty()) {
        None => path.to_owned(),
        Some(list) if list.split(ends).any(|part| part == path) => list,
        Some(list) => format!("{list}:{path}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_preloaded_once_and_others_stay() {
        let preload = |before: &str, path| added(Some(before.to_owned()), "LD_PRELOAD", path);
        assert_eq!(added(None, "LD_PRELOAD", "/a/b.so").unwrap(), "/a/b.so");
        assert_eq!(preload("", "/a/b.so").unwrap(), "/a/b.so");
        assert_eq!(preload("/x.so y.so", "/a/b.so").unwrap(), "/x.so y.so:/a/b.so");
        assert_eq!(preload("/x.so:/a/b.so", "/a/b.so").unwrap(), "/x.so:/a/b.so");
        assert!(preload("", "/a b.so").is_err());
    }

    #[test]
    fn a_transport_is_chosen_where_there_is_one_to_choose() {
        let of = |series: Series| (series, PathBuf::from(format!("/lib/ucx-{series}/x.so")));
        let both = [of(Series(1, 13)), of(Series(1, 22))];
        let chosen = |transports, series| {
            choose(transports, series, Path::new("/p"))
                .map(|(series, _)| *series)
                .map_err(|error| error.to_string())
        };
        assert_eq!(chosen(&both[..1], ""), Ok(Series(1, 13)));
        assert_eq!(chosen(&both, "1.22.0"), Ok(Series(1, 22)));
        assert!(chosen(&both, "").unwrap_err().contains("--ucx 1.13"));
        assert!(chosen(&both, "1.18").unwrap_err().contains("1.13, 1.22"));
        assert!(chosen(&[], "").unwrap_err().contains("libucx-dev"));
    }
}
