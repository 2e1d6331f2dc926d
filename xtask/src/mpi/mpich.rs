//! Jobs under MPICH in which UCX carries messages: each message between processes of this host, and those between guests.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::mpi4py::{Kit, VERSION};
use crate::base::workspace::Workspace;
use crate::base::{cleanup, process};
use crate::lab::PAYLOAD;

/// MPICH's own names on Debian, where `mpirun` and `mpicc` are Open MPI's.
pub const MPIRUN: &str = "mpirun.mpich";
/// The compiler.
pub const MPICC: &str = "mpicc.mpich";

const LIMIT: Duration = Duration::from_secs(300);

/// Prepares a job whose UCX has these transports, as `posix,self`, with an environment; `command` starts [`MPIRUN`], and the caller
/// adds the program and its arguments.
pub fn mpirun(
    mut command: Command,
    ranks: usize,
    transports: &str,
    environment: &[(String, String)],
) -> Command {
    command.args(["-n", &ranks.to_string()]);
    let settings = [
        // Each process is a node of its own to MPICH, which else has shared memory beside UCX.
        ("MPIR_CVAR_NOLOCAL", "1"),
        ("UCX_TLS", transports),
        // Which transports an endpoint has.
        ("UCX_LOG_LEVEL", "info"),
    ];
    let environment = environment.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    command.args(settings.into_iter().chain(environment).flat_map(|(name, value)| ["-genv", name, value]));
    command
}

/// The shell script that starts a job in guest 0 of so many, as the documentation tells users to do it: `ranks` are dealt to the guests
/// in turn.
pub fn script(guests: usize, ranks: usize, series: &str, program: &str) -> String {
    let hosts: Vec<String> = (0..guests).map(|guest| format!("vm{guest}")).collect();
    format!(
        "settings=$({PAYLOAD}/bin/vmshm env --ucx {series}) || exit\neval \"$settings\"\ncd /tmp\n\
         {MPIRUN} -n {ranks} -hosts {} -genv UCX_LOG_LEVEL info {program}\n",
        hosts.join(",")
    )
}

/// Finds mpi4py for MPICH's ABI in the cache, or downloads it as it is published: returns what jobs set to load it instead of the
/// kit's own, or why it can't be had.
pub fn mpi4py(
    workspace: &Workspace,
    kit: &Kit,
    logs: &Path,
) -> Result<Result<Vec<(String, String)>, String>> {
    let dir = workspace.cache.join(format!("mpi4py-{VERSION}-mpich"));
    if !dir.exists() {
        let new = dir.with_extension("new");
        let mut install = Command::new(kit.python.with_file_name("pip"));
        install.args([
            "install",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--upgrade",
            "--target",
        ]);
        install.arg(&new).arg(format!("mpi4py=={VERSION}"));
        if let Err(error) = process::run(install, "pip install", &logs.join("install.log"), LIMIT) {
            cleanup::check()?;
            return Ok(Err(format!("pip has no mpi4py {VERSION} for MPICH: {error:#}")));
        }
        // Debian has given MPICH's library another name.
        let library = format!("/usr/lib/{}-linux-gnu/libmpich.so.12", std::env::consts::ARCH);
        symlink(&library, new.join("libmpi.so.12")).with_context(|| format!("cannot link {library}"))?;
        fs::rename(&new, &dir).with_context(|| format!("cannot make {}", dir.display()))?;
    }
    let dir = dir.display().to_string();
    let settings = [("PYTHONPATH", dir.as_str()), ("LD_LIBRARY_PATH", &dir), ("MPI4PY_MPIABI", "mpich")];
    Ok(Ok(settings.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec()))
}
