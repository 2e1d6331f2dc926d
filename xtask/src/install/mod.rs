//! Puts plugin, tool, driver sources, completions, man pages and system files where their users look for them.

pub mod build_tree;
pub mod other_mpi;
pub mod stage;
pub mod ucx;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::base::process;
use crate::base::workspace::Workspace;
use ucx::Ucx;

/// Completions: shell, and the file below the prefix that it reads.
const COMPLETIONS: &[(&str, &str)] = &[
    ("bash", "share/bash-completion/completions/vmshm"),
    ("zsh", "share/zsh/site-functions/_vmshm"),
    ("fish", "share/fish/vendor_completions.d/vmshm.fish"),
];

/// Files for systemd and udev: below `packaging`, and below the prefix.
const SYSTEM: &[(&str, &str)] = &[
    ("modules-load.d/vmshm.conf", "lib/modules-load.d/vmshm.conf"),
    ("systemd/vmshm-region@.service", "lib/systemd/system/vmshm-region@.service"),
    ("systemd/vmshm-serve@.service", "lib/systemd/system/vmshm-serve@.service"),
    ("systemd/vmshm-up@.service", "lib/systemd/system/vmshm-up@.service"),
    ("sysusers.d/vmshm.conf", "lib/sysusers.d/vmshm.conf"),
    ("tmpfiles.d/vmshm.conf", "lib/tmpfiles.d/vmshm.conf"),
    ("udev/60-vmshm.rules", "lib/udev/rules.d/60-vmshm.rules"),
];

/// The directory of the tool in the files of `packaging`.
const PACKAGED_BIN: &str = "/usr/bin/";

/// The folder of the plugin for the Open MPI that the build finds; that for another one has its release behind it.
pub const PLUGINS: &str = "lib/openmpi";

/// Where a prefix says what was installed there: one name a line, relative to the prefix. Directories that were not
/// there before end in a slash.
const LIST: &str = "share/vmshm/installed";

/// An installation being made.
struct Installation<'a> {
    prefix: &'a Path,
    /// Files that are there so far, relative to the prefix.
    files: Vec<String>,
}

impl Installation<'_> {
    fn place(&mut self, from: &Path, to: &str, mode: u32) -> Result<()> {
        self.note(to);
        place(from, &self.prefix.join(to), mode)
    }

    fn write(&mut self, text: &str, to: &str) -> Result<()> {
        self.note(to);
        write(text.as_bytes(), &self.prefix.join(to), 0o644)
    }

    fn link(&mut self, target: &str, at: &str) -> Result<()> {
        self.note(at);
        link(target, &self.prefix.join(at))
    }

    fn plugin(&mut self, built: &Path, folder: &str) -> Result<()> {
        const FILE: &str = "mca_btl_vmshm.so";
        self.place(&built.join("libmca_btl_vmshm.so"), &format!("{folder}/{FILE}"), 0o644)?;
        // One file, four components: a copy would be loaded a second time, and would not know the first one's region.
        for framework in ["mpool", "coll", "osc"] {
            self.link(FILE, &format!("{folder}/mca_{framework}_vmshm.so"))?;
        }
        Ok(())
    }

    fn transport(&mut self, built: &Path, ucx: &Ucx) -> Result<()> {
        self.place(&built.join("libuct_vmshm.so"), &ucx.transport(), 0o644)
    }

    /// Takes note of a file that is about to be made, and of the directories made for it.
    fn note(&mut self, name: &str) {
        let above = Path::new(name).ancestors().skip(1).filter(|dir| !dir.as_os_str().is_empty());
        let new: Vec<String> = above
            .filter(|dir| !self.prefix.join(dir).exists())
            .map(|dir| format!("{}/", dir.display()))
            .collect();
        self.files.extend(new);
        self.files.push(name.to_owned());
    }

    /// Writes down what was installed, and removes what an earlier version had and this one has not, but no plugin for
    /// another Open MPI than this installation's, and no transport for another UCX.
    fn finish(mut self) -> Result<()> {
        self.note(LIST);
        let (dirs, files): (Vec<_>, Vec<_>) =
            list(self.prefix)?.into_iter().partition(|name| name.ends_with('/'));
        let folder = |file: &str| Path::new(file).parent().map(Path::to_owned);
        let is_others = |file: &String| {
            [PLUGINS, ucx::TRANSPORTS].iter().any(|several| file.starts_with(several))
                && !self.files.iter().any(|own| folder(own) == folder(file))
        };
        let (others, rest): (Vec<_>, Vec<_>) = files.into_iter().partition(is_others);
        let old: Vec<String> = rest.into_iter().filter(|file| !self.files.contains(file)).collect();
        take_away(self.prefix, &old)?;
        self.files.extend(others);
        self.files.extend(dirs);
        write((self.files.join("\n") + "\n").as_bytes(), &self.prefix.join(LIST), 0o644)
    }
}

/// Installs what [`build_tree::product`] built, below `prefix`, the plugin into its folder `plugins`. Plugins in others stay. The
/// transport is installed where it was built for a UCX, too.
///
/// Each file is written beside its place and then renamed, so that a running program never sees half of one.
pub fn product(
    workspace: &Workspace,
    built: &Path,
    prefix: &Path,
    plugins: &str,
    ucx: Option<&Ucx>,
) -> Result<()> {
    let mut to = Installation { prefix, files: Vec::new() };
    let tool = prefix.join("bin/vmshm");
    to.place(&built.join("vmshm"), "bin/vmshm", 0o755)?;
    to.plugin(built, plugins)?;
    if let Some(ucx) = ucx {
        to.transport(built, ucx)?;
    }
    to.place(&built.join("libvmshm_heap.so"), "lib/libvmshm_heap.so", 0o644)?;
    for (shell, file) in COMPLETIONS {
        let text = process::capture(Command::new(&tool).args(["completions", shell]))
            .with_context(|| format!("cannot make the completion for {shell}"))?;
        to.write(&text, file)?;
    }
    for (from, place) in SYSTEM {
        let text = read(&workspace.root.join("packaging").join(from))?;
        to.write(&text.replace(PACKAGED_BIN, &format!("{}/", prefix.join("bin").display())), place)?;
    }
    driver(workspace, &mut to)?;
    let pages = tempfile::tempdir()?;
    process::capture(Command::new(&tool).arg("man").arg(pages.path()))
        .context("cannot make the man pages")?;
    for page in fs::read_dir(pages.path())? {
        let page = page?;
        to.place(&page.path(), &format!("share/man/man1/{}", page.file_name().to_string_lossy()), 0o644)?;
    }
    to.finish()
}

/// Installs the plugin alone.
pub fn plugin(built: &Path, prefix: &Path, plugins: &str) -> Result<()> {
    Installation { prefix, files: Vec::new() }.plugin(built, plugins)
}

/// Installs the UCX transport alone.
pub fn transport(built: &Path, prefix: &Path, ucx: &Ucx) -> Result<()> {
    Installation { prefix, files: Vec::new() }.transport(built, ucx)
}

/// Installs the sources of the guest driver as DKMS wants them: one directory for each version.
fn driver(workspace: &Workspace, to: &mut Installation<'_>) -> Result<()> {
    let dir = driver_sources();
    let settings = read(&workspace.root.join("guest-kmod/dkms.conf"))?;
    to.write(&settings.replace("@VERSION@", env!("CARGO_PKG_VERSION")), &format!("{dir}/dkms.conf"))?;
    for part in ["guest-kmod", "abi/src"] {
        for file in files_below(&workspace.root.join(part))? {
            let name = file.strip_prefix(&workspace.root)?.to_string_lossy().into_owned();
            // Nothing that a build beside the sources left there.
            let wanted = name.ends_with(".rs") || name.ends_with("/Kbuild") || name.ends_with("/Makefile");
            if wanted {
                to.place(&file, &format!("{dir}/{name}"), 0o644)?;
            }
        }
    }
    Ok(())
}

/// The directory of the driver's sources below the prefix.
pub fn driver_sources() -> String {
    format!("src/vmshm-{}", env!("CARGO_PKG_VERSION"))
}

/// All files below a directory, in order.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files_below(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Removes what [`product`] installed below `prefix`, and returns how many files that were.
pub fn remove(prefix: &Path) -> Result<usize> {
    let names = list(prefix)?;
    if names.is_empty() {
        bail!(
            "{} is not there or empty: nothing that 'cargo xtask install' put below {} is known",
            prefix.join(LIST).display(),
            prefix.display()
        );
    }
    take_away(prefix, &names)?;
    Ok(names.iter().filter(|name| !name.ends_with('/')).count())
}

/// Files that are installed below a prefix.
fn list(prefix: &Path) -> Result<Vec<String>> {
    let file = prefix.join(LIST);
    let text = match fs::read_to_string(&file) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", file.display())),
    };
    let outside = |name: &str| !Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if let Some(name) = text.lines().find(|name| outside(name)) {
        bail!("{} names {name:?}, which lies outside of {}", file.display(), prefix.display());
    }
    Ok(text.lines().map(str::to_owned).collect())
}

/// Removes these files below a prefix, then those of these directories that are empty.
fn take_away(prefix: &Path, names: &[String]) -> Result<()> {
    let (mut dirs, files): (Vec<&String>, Vec<&String>) = names.iter().partition(|name| name.ends_with('/'));
    for name in files {
        let file = prefix.join(name);
        match fs::remove_file(&file) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", file.display()));
            }
            _ => {}
        }
    }
    // A directory comes before what it holds.
    dirs.sort();
    for dir in dirs.into_iter().rev() {
        let _ = fs::remove_dir(prefix.join(dir));
    }
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

fn read(file: &Path) -> Result<String> {
    fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))
}

/// Makes a symbolic link, in place of what was there.
fn link(to: &str, at: &Path) -> Result<()> {
    let beside = at.with_extension("new");
    let _ = fs::remove_file(&beside);
    std::os::unix::fs::symlink(to, &beside)
        .and_then(|()| fs::rename(&beside, at))
        .with_context(|| format!("cannot make the link {}", at.display()))
}

/// Writes a file with these permissions, as a whole, and makes the folders above it.
pub fn write(bytes: &[u8], to: &Path, mode: u32) -> Result<()> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_installed_goes_and_the_rest_stays() -> Result<()> {
        let prefix = tempfile::tempdir()?;
        let prefix = prefix.path();
        fs::create_dir(prefix.join("bin"))?;
        let mut first = Installation { prefix, files: Vec::new() };
        first.write("old", "share/vmshm/old/file")?;
        first.write("same", "bin/tool")?;
        first.link("tool", "bin/other")?;
        first.finish()?;
        let mut second = Installation { prefix, files: Vec::new() };
        second.write("new", "bin/tool")?;
        second.link("tool", "bin/other")?;
        second.finish()?;
        assert!(!prefix.join("share/vmshm/old/file").exists(), "what the new version lacks is gone");
        assert_eq!(fs::read(prefix.join("bin/other"))?, b"new");
        fs::write(prefix.join("share/foreign"), "")?;
        assert_eq!(remove(prefix)?, 3, "two files and the list");
        assert_eq!(fs::read_dir(prefix.join("bin"))?.count(), 0, "a directory that was there before stays");
        assert_eq!(fs::read_dir(prefix.join("share"))?.count(), 1, "and so does a foreign file");
        fs::remove_file(prefix.join("share/foreign"))?;
        assert!(remove(prefix).is_err());
        Ok(())
    }

    #[test]
    fn plugins_for_several_releases_stay_beside_each_other() -> Result<()> {
        let prefix = tempfile::tempdir()?;
        let prefix = prefix.path();
        let install = |names: &[&str]| {
            let mut to = Installation { prefix, files: Vec::new() };
            names.iter().try_for_each(|name| to.write("", name))?;
            to.finish()
        };
        install(&["lib/openmpi/mca_btl.so", "lib/openmpi/mca_old.so"])?;
        install(&["lib/openmpi-5.0.7/mca_btl.so"])?;
        assert!(
            prefix.join("lib/openmpi/mca_old.so").exists(),
            "this one's own installation has not been anew"
        );
        install(&["lib/openmpi/mca_btl.so"])?;
        assert!(!prefix.join("lib/openmpi/mca_old.so").exists());
        assert!(prefix.join("lib/openmpi-5.0.7/mca_btl.so").exists());
        assert_eq!(remove(prefix)?, 3, "both plugins and the list");
        Ok(())
    }

    #[test]
    fn a_list_that_leads_outside_is_refused() -> Result<()> {
        let prefix = tempfile::tempdir()?;
        for name in ["../etc/passwd", "/etc/passwd", "bin/../../x"] {
            write(name.as_bytes(), &prefix.path().join(LIST), 0o644)?;
            assert!(remove(prefix.path()).is_err_and(|e| e.to_string().contains("outside")));
        }
        Ok(())
    }
}
