//! Open MPI's own account of itself.

use std::process::{Command, Stdio};

/// Standard output and error of `ompi_info`.
pub fn ompi_info(arguments: &[&str], component_path: Option<&str>) -> Option<(String, String)> {
    let mut command = Command::new("ompi_info");
    command.args(arguments).stdin(Stdio::null());
    if let Some(path) = component_path {
        command.env("OMPI_MCA_mca_base_component_path", path);
    }
    let output = command.output().ok()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Some((text(&output.stdout), text(&output.stderr)))
}
