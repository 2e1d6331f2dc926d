//! `vmshm doctor`: what is there, what is missing, and how to mend it.

mod cgroup;
mod check;
mod denial;
mod devices;
mod driver;
mod guest;
mod guest_pat;
mod host;
mod memory_type;
mod numa_balancing;
mod ompi_info;
mod openmpi;
mod passthrough;
mod pml;
mod remove_ipc;

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use vmshm_host::Region;

use crate::installed::Series;
use check::Verdict;
pub use ompi_info::release;

/// Options of `vmshm doctor`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every line begins with ok, warning or missing; the next one says how to mend it. Exit code 1 if anything is missing.

As root it sees more: what AppArmor or SELinux denied to VMs, and in a VM without the guest driver the region itself.")]
pub struct Args {
    /// Check what a host needs. Default: unless this machine has an ivshmem device
    #[arg(long)]
    host: bool,
    /// Check what a VM needs. Default: if this machine has an ivshmem device
    #[arg(long)]
    guest: bool,
    /// Where vmshm is installed. Default: where this program lies
    #[arg(long, value_name = "DIR")]
    prefix: Option<PathBuf>,
}

/// Obstacles between an MPI job and what `vmshm env` has just set up, each in a line with its cure: for processes that find
/// the plugin by `component_path` and these UCX transports, and that use this region of the host, or else the machine's device.
pub fn obstacles(
    component_path: &str,
    region: Option<&Region>,
    transports: &[(Series, PathBuf)],
) -> Vec<String> {
    let mut checks = Vec::new();
    if pml::is_doubtful() {
        checks.extend(pml::check(Some(component_path), transports));
    }
    match region {
        Some(region) => {
            let header = region.header();
            checks.extend(remove_ipc::check(region.path()));
            checks.extend(cgroup::checks(&[(region.name(), header.region_len, header.page_len)]));
        }
        None => checks.extend(devices::look()),
    }
    checks.retain(|check| check.verdict != Verdict::Ok);
    checks
        .into_iter()
        .map(|check| format!("{}; cure: {}", check.what, check.cure.unwrap_or_default()))
        .collect()
}

impl Args {
    /// Prints all checks; fails if anything is missing.
    pub fn run(&self) -> anyhow::Result<ExitCode> {
        let devices = vmshm_transport::attach::pci_devices();
        let mut chapters = Vec::new();
        let chosen = self.host || self.guest;
        if self.host || (!chosen && devices.is_empty()) {
            chapters.push(("this machine as a host of VMs", host::checks()));
        }
        if self.guest || (!chosen && !devices.is_empty()) {
            chapters.push(("this machine as a VM", guest::checks(&devices)));
        }
        chapters.push(("Open MPI", openmpi::checks(self.prefix.as_deref())));

        let mut out = std::io::stdout().lock();
        let mut missing = 0;
        for (title, checks) in chapters {
            writeln!(out, "{title}")?;
            for check in checks {
                let verdict = match check.verdict {
                    Verdict::Ok => "ok",
                    Verdict::Warning => "warning",
                    Verdict::Missing => "missing",
                };
                missing += usize::from(check.verdict == Verdict::Missing);
                writeln!(out, "  {verdict:<8} {}", check.what)?;
                if let Some(cure) = check.cure {
                    writeln!(out, "           cure: {cure}")?;
                }
            }
        }
        Ok(if missing == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}
