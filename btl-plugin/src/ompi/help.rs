//! How a problem is told to the user: by a text of ours, in the form of Open MPI's own.

use std::ffi::{CStr, OsStr};
use std::fs::OpenOptions;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{ErrorKind, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use crate::ompi;

/// The texts: `[topic]`, the text, and a comment that ends it.
const TEXTS: &str = include_str!("help.txt");

/// What the texts are about.
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
    const fn key(self) -> &'static str {
        match self {
            Self::Version => "version",
            Self::Unavailable => "unavailable",
            Self::Parameter => "parameter",
            Self::Advice => "advice",
            Self::PeerLost => "peer lost",
            Self::DeviceLost => "device lost",
            Self::Window => "window",
            Self::Memory => "memory",
        }
    }
}

/// The line above and below a text, as Open MPI has one.
const LINE: &str = "--------------------------------------------------------------------------";

/// Shows a topic, whose text gets the host's name and `text`: once on each host of a job.
///
/// Written here: Open MPI 6.0 knows only texts that are compiled into it, and what a process of Open MPI 4.1.4 gives to
/// show_help travels to `mpirun` by PMIx's log, and is lost on the way every other time.
pub fn show(topic: Topic, text: &str) {
    if !is_first(topic, text) {
        return;
    }
    // SAFETY: the name is NUL-terminated and stays.
    let host = unsafe { CStr::from_ptr(ompi::vmshm_ompi_this_host()) }.to_string_lossy();
    // Where standard error is closed, nobody wants to know.
    let _ = std::io::stderr().write_all(render(topic, &host, text).as_bytes());
}

/// A topic's text with the host's name and what happened.
fn render(topic: Topic, host: &str, text: &str) -> String {
    let body = body(topic);
    let (before, rest) = body.split_once("%s").unwrap_or((body, ""));
    let (between, behind) = rest.split_once("%s").unwrap_or((rest, ""));
    format!("{LINE}\n{before}{host}{between}{text}{behind}{LINE}\n")
}

/// A topic's text, up to the comment behind it.
fn body(topic: Topic) -> &'static str {
    let head = format!("[{}]\n", topic.key());
    let body = TEXTS.split_once(&head).map_or("", |(_, rest)| rest);
    body.split_once("#\n").map_or(body, |(body, _)| body)
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

#[cfg(test)]
mod tests {
    use super::*;

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
            assert_eq!(body(topic).matches("%s").count(), 2, "{topic:?}");
            assert!(!body(topic).contains(['#', '[']), "{topic:?}");
        }
    }

    #[test]
    fn a_text_gets_its_strings() {
        let text = render(Topic::Advice, "node1", "a %s of its own");
        assert_eq!(
            text,
            format!(
                "{LINE}\nOn host node1, the vmshm transport (btl vmshm) works, but could be faster:\n\n  \
                 a %s of its own\n{LINE}\n"
            )
        );
    }
}
