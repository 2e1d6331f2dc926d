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

/// The release of the Open MPI in the PATH, as `5.0.7`, if there is one.
pub fn release() -> Option<String> {
    release_in(&ompi_info(&["--version"], None)?.0)
}

/// The release in a line like `Open MPI v5.0.7`.
fn release_in(text: &str) -> Option<String> {
    let version = text.lines().find_map(|line| line.trim().strip_prefix("Open MPI v"))?;
    let release = version.split(|c: char| c.is_whitespace() || c == ',').next()?;
    release.starts_with(|c: char| c.is_ascii_digit()).then(|| release.to_owned())
}

#[cfg(test)]
mod tests {
    use super::release_in;

    #[test]
    fn a_release_is_read_from_what_ompi_info_says() {
        assert_eq!(release_in("Open MPI v5.0.7\n\nhttps://www.open-mpi.org\n").as_deref(), Some("5.0.7"));
        assert_eq!(release_in("Open MPI v6.0.0rc2, package: x\n").as_deref(), Some("6.0.0rc2"));
        assert_eq!(release_in("ompi_info: not found\n"), None);
    }
}
