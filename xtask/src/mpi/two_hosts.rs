//! Two hosts' names for processes of this one, for the launcher of Open MPI 5.0 and later.

use std::path::Path;

use anyhow::{Context, Result};

use crate::install;

/// A shell in place of ssh: another host is another name.
const AGENT: &str = "#!/bin/sh\nhost=$1; shift; exec unshare --uts sh -c \"hostname $host; $*\"\n";

/// The hosts' names.
pub const NAMES: [&str; 2] = ["vma", "vmb"];

/// Options by which mpirun starts up to `each` processes under each name, as root. Its shell is kept in `dir`, which the job must
/// see.
pub fn mpirun_args(each: usize, dir: &Path) -> Result<Vec<String>> {
    let agent = dir.join("agent");
    install::write(AGENT.as_bytes(), &agent, 0o755)?;
    let agent = agent.to_str().with_context(|| format!("{} is not UTF-8", agent.display()))?.to_owned();
    let hosts = NAMES.map(|name| format!("{name}:{each}")).join(",");
    Ok(vec!["--host".into(), hosts, "--prtemca".into(), "plm_ssh_agent".into(), agent])
}
