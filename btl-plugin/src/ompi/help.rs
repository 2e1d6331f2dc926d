//! How a problem is told to the user: by a text from our help file, rendered as Open MPI renders its own.

use std::ffi::{CStr, OsStr, c_void};
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use crate::ompi;

/// The file with the texts, see `install`.
const FILE: &CStr = c"help-mpi-btl-vmshm.txt";

/// The texts of the help file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Topic {
    /// Built for another Open MPI than the one that runs.
    Version,
    /// No region could be attached.
    Unavailable,
    /// A parameter makes no sense.
    Parameter,
    /// All is well, but could be better.
    Advice,
    /// A peer is gone or broke the rules.
    PeerLost,
    /// The device with the shared memory is gone.
    DeviceLost,
    /// No component makes a window.
    Window,
    /// A message waits for memory.
    Memory,
}

impl Topic {
    const fn key(self) -> &'static CStr {
        match self {
            Self::Version => c"version",
            Self::Unavailable => c"unavailable",
            Self::Parameter => c"parameter",
            Self::Advice => c"advice",
            Self::PeerLost => c"peer lost",
            Self::DeviceLost => c"device lost",
            Self::Window => c"window",
            Self::Memory => c"memory",
        }
    }
}

/// Shows a topic, whose text gets the host's name and `text`: once on each host of a job.
///
/// The text is rendered by Open MPI but written here: what a process of Open MPI 4.1.4 gives to show_help travels to
/// `mpirun` by PMIx's log, and is lost on the way every other time.
pub fn show(topic: Topic, text: &str) {
    if !is_first(topic, text) {
        return;
    }
    let rendered = render(topic, text).unwrap_or_else(|| {
        // SAFETY: the name is NUL-terminated and stays.
        let host = unsafe { CStr::from_ptr(ompi::vmshm_ompi_this_host()) }.to_string_lossy();
        format!("[{host}] btl vmshm: {text}\n")
    });
    // Where standard error is closed, nobody wants to know.
    let _ = std::io::stderr().write_all(rendered.as_bytes());
}

fn render(topic: Topic, text: &str) -> Option<String> {
    if !has_file() {
        return None;
    }
    let text = ompi::c_text(text);
    // SAFETY: all three are NUL-terminated and outlive the call, whose result is NUL-terminated and ours to free.
    unsafe {
        let rendered = ompi::vmshm_ompi_help_text(FILE.as_ptr(), topic.key().as_ptr(), text.as_ptr());
        if rendered.is_null() {
            return None;
        }
        let copy = CStr::from_ptr(rendered).to_string_lossy().into_owned();
        libc::free(rendered.cast::<c_void>());
        Some(copy)
    }
}

/// A directory that the job's processes on this host have in common, until they end.
pub fn job_directory() -> Option<PathBuf> {
    // SAFETY: the name is NULL or NUL-terminated, and stays.
    unsafe {
        let directory = ompi::vmshm_ompi_job_directory();
        (!directory.is_null()).then(|| OsStr::from_bytes(CStr::from_ptr(directory).to_bytes()).into())
    }
}

/// Whether no other process of this job has shown this on this host: who makes a file in the job's directory is first.
fn is_first(topic: Topic, text: &str) -> bool {
    let Some(directory) = job_directory() else { return true };
    let mut hasher = DefaultHasher::new();
    (topic.key(), text).hash(&mut hasher);
    let file = directory.join(format!("vmshm-help-{:016x}", hasher.finish()));
    let made = OpenOptions::new().write(true).create_new(true).open(file);
    !made.is_err_and(|error| error.kind() == ErrorKind::AlreadyExists)
}

/// Tells those who ask for it with `--mca btl_base_verbose 10`.
pub fn verbose(text: &str) {
    let line = ompi::c_text(&format!("btl vmshm: {text}"));
    // SAFETY: the line is NUL-terminated and outlives the call.
    unsafe { ompi::vmshm_ompi_verbose(line.as_ptr()) };
}

/// Makes Open MPI look for our help file where we were installed, and says whether the file is there.
fn has_file() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let Some(directory) = own_path().as_deref().and_then(help_directory) else { return false };
        let directory = ompi::c_text(&directory.to_string_lossy());
        // SAFETY: the text is NUL-terminated; Open MPI copies it.
        unsafe { ompi::opal_show_help_add_dir(directory.as_ptr()) };
        true
    })
}

/// From `PREFIX/lib/openmpi/mca_btl_vmshm.so` to `PREFIX/share/openmpi`, if the help file is there.
fn help_directory(plugin: &Path) -> Option<PathBuf> {
    let file = OsStr::from_bytes(FILE.to_bytes());
    plugin
        .ancestors()
        .skip(1)
        .take(5)
        .map(|prefix| prefix.join("share/openmpi"))
        .find(|directory| directory.join(file).is_file())
}

/// Where this plugin was loaded from.
pub fn own_path() -> Option<PathBuf> {
    let mut info = MaybeUninit::<libc::Dl_info>::zeroed();
    let inside: fn() -> Option<PathBuf> = own_path;
    // SAFETY: dladdr fills info where it returns non-zero; the file's name is NUL-terminated.
    let path = unsafe {
        if libc::dladdr(inside as *const c_void, info.as_mut_ptr()) == 0 {
            return None;
        }
        CStr::from_ptr(info.assume_init().dli_fname).to_bytes()
    };
    std::fs::canonicalize(OsStr::from_bytes(path)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = include_str!("../../help-mpi-btl-vmshm.txt");

    #[test]
    fn every_topic_has_a_text_that_takes_two_strings() {
        let topics = [
            Topic::Version,
            Topic::Unavailable,
            Topic::Parameter,
            Topic::Advice,
            Topic::PeerLost,
            Topic::DeviceLost,
            Topic::Window,
            Topic::Memory,
        ];
        for topic in topics {
            let head = format!("[{}]\n", topic.key().to_str().unwrap());
            let body = TEXT.split_once(&head).map(|(_, rest)| rest.split("\n[").next().unwrap());
            let body = body.unwrap_or_else(|| panic!("no text for {topic:?}"));
            let body: String = body.lines().filter(|line| !line.starts_with('#')).collect();
            assert_eq!(body.matches('%').count(), 2, "{topic:?}");
            assert_eq!(body.matches("%s").count(), 2, "{topic:?}");
        }
    }

    #[test]
    fn the_help_file_is_found_beside_any_library_directory() {
        let prefix = std::env::temp_dir().join(format!("vmshm-help-{}", std::process::id()));
        let share = prefix.join("share/openmpi");
        std::fs::create_dir_all(&share).unwrap();
        std::fs::write(share.join("help-mpi-btl-vmshm.txt"), TEXT).unwrap();
        for library in ["lib/openmpi", "lib/x86_64-linux-gnu/openmpi/lib"] {
            assert_eq!(help_directory(&prefix.join(library).join("mca_btl_vmshm.so")), Some(share.clone()));
        }
        assert_eq!(help_directory(Path::new("/nowhere/lib/openmpi/mca_btl_vmshm.so")), None);
        std::fs::remove_dir_all(&prefix).unwrap();
    }
}
