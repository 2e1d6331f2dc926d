//! Puts plugin, tool, completions, man pages and system files where Open MPI, shells, `man` and systemd look for them.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::build_tree;
use crate::process;
use crate::workspace::Workspace;

/// Completions: shell, and the file below the prefix that it reads.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/vmshm"),
    ("zsh", "share/zsh/site-functions/_vmshm"),
    ("fish", "share/fish/vendor_completions.d/vmshm.fish"),
];

/// Files for systemd: below `packaging`, and below the prefix.
const SYSTEM: &[(&str, &str)] = &[
    ("systemd/vmshm-region@.service", "lib/systemd/system/vmshm-region@.service"),
    ("systemd/vmshm-serve@.service", "lib/systemd/system/vmshm-serve@.service"),
    ("sysusers.d/vmshm.conf", "lib/sysusers.d/vmshm.conf"),
    ("tmpfiles.d/vmshm.conf", "lib/tmpfiles.d/vmshm.conf"),
];

/// The directory of the tool in the files of `packaging`.
const PACKAGED_BIN: &str = "/usr/bin/";

/// Installs what [`build_tree::product`] built, below `prefix`.
///
/// Each file is written beside its place and then renamed, so that a running program never sees half of one.
pub fn product(workspace: &Workspace, built: &Path, prefix: &Path) -> Result<()> {
    let tool = prefix.join("bin/vmshm");
    place(&built.join("vmshm"), &tool, 0o755)?;
    place(&built.join("libmca_btl_vmshm.so"), &prefix.join("lib/openmpi/mca_btl_vmshm.so"), 0o644)?;
    // One file, two components: a copy would be loaded a second time, and would not know the first one's region.
    link("mca_btl_vmshm.so", &prefix.join("lib/openmpi/mca_mpool_vmshm.so"))?;
    place(
        &workspace.root.join("btl-plugin/help-mpi-btl-vmshm.txt"),
        &prefix.join("share/openmpi/help-mpi-btl-vmshm.txt"),
        0o644,
    )?;
    for (shell, file) in COMPLETIONS {
        let text = process::capture(Command::new(&tool).args(["completions", shell]))
            .with_context(|| format!("cannot make the completion for {shell}"))?;
        write(text.as_bytes(), &prefix.join(file), 0o644)?;
    }
    for (from, to) in SYSTEM {
        let from = workspace.root.join("packaging").join(from);
        let text = fs::read_to_string(&from).with_context(|| format!("cannot read {}", from.display()))?;
        let text = text.replace(PACKAGED_BIN, &format!("{}/", prefix.join("bin").display()));
        write(text.as_bytes(), &prefix.join(to), 0o644)?;
    }
    let pages = prefix.join("share/man/man1");
    fs::create_dir_all(&pages).with_context(|| format!("cannot create {}", pages.display()))?;
    process::capture(Command::new(&tool).arg("man").arg(&pages)).context("cannot make the man pages")?;
    Ok(())
}

/// Installs the MPI programs of the tests and benches into `prefix/bin`.
pub fn programs(built: &Path, prefix: &Path) -> Result<()> {
    for name in build_tree::MPI_PROGRAMS {
        place(&built.join(name), &prefix.join("bin").join(name), 0o755)?;
    }
    Ok(())
}

/// Copies one file to its place.
pub fn place(from: &Path, to: &Path, mode: u32) -> Result<()> {
    let bytes = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    write(&bytes, to, mode)
}

/// Makes a symbolic link, in place of what was there.
fn link(to: &str, at: &Path) -> Result<()> {
    let beside = at.with_extension("new");
    let _ = fs::remove_file(&beside);
    std::os::unix::fs::symlink(to, &beside)
        .and_then(|()| fs::rename(&beside, at))
        .with_context(|| format!("cannot make the link {}", at.display()))
}

fn write(bytes: &[u8], to: &Path, mode: u32) -> Result<()> {
    let Some(dir) = to.parent() else {
        bail!("{} is no place for a file", to.display());
    };
    fs::create_dir_all(dir).with_context(|| {
        format!("cannot create {}; choose a prefix that you may write to, or run this as root", dir.display())
    })?;
    let mut file = tempfile::NamedTempFile::new_in(dir).with_context(|| {
        format!(
            "cannot write to {}; choose a prefix that you may write to, or run this as root",
            dir.display()
        )
    })?;
    std::io::Write::write_all(&mut file, bytes).with_context(|| format!("cannot write {}", to.display()))?;
    file.as_file().set_permissions(fs::Permissions::from_mode(mode))?;
    file.persist(to).with_context(|| format!("cannot write {}", to.display()))?;
    Ok(())
}
