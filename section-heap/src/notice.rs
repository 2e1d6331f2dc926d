//! Notices to the user where nothing can be called that allocates or locks: in a fork's handlers, and in a child.

use std::ffi::CString;
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// The notices.
#[derive(Debug, Clone, Copy)]
pub enum News {
    /// A fork's child has no copy.
    Fork,
    /// Nor has one that was not made by fork.
    Clone,
    /// A child could not use its copy.
    Mapping,
}

static TOLD: [AtomicBool; 3] = [const { AtomicBool::new(false) }; 3];

/// The files by whose making one process of the job on this host is the one that tells.
static FILES: OnceLock<[Option<CString>; 3]> = OnceLock::new();

/// The name under which is told.
static LABEL: OnceLock<&str> = OnceLock::new();

/// Makes [`once`] tell once for each job and host, not for each process: `directory` is what the job's processes on this host
/// have in common. Each line begins with `label`.
pub fn prepare(label: &'static str, directory: Option<&Path>) {
    let file = |news: News| {
        let file = directory?.join(format!("vmshm-heap-{news:?}"));
        CString::new(file.into_os_string().into_vec()).ok()
    };
    LABEL.get_or_init(|| label);
    FILES.get_or_init(|| [News::Fork, News::Clone, News::Mapping].map(file));
}

/// Writes one line to standard error, if nobody has. Leaves `errno` as it was.
pub fn once(news: News, text: fmt::Arguments) {
    if TOLD[news as usize].swap(true, Ordering::Relaxed) {
        return;
    }
    // SAFETY: the thread's own variable.
    let (errno, before) = unsafe { (libc::__errno_location(), *libc::__errno_location()) };
    if is_first(news) {
        let mut line = Line { bytes: [0; 1024], len: 0 };
        // SAFETY: a plain question.
        let process = unsafe { libc::getpid() };
        // A longer text is cut.
        let _ = write!(line, "[{process}] {}: {text}", LABEL.get().unwrap_or(&"vmshm"));
        line.bytes[line.len] = b'\n';
        // SAFETY: so many bytes are there. Where standard error is closed, nobody wants to know.
        unsafe { libc::write(libc::STDERR_FILENO, line.bytes.as_ptr().cast(), line.len + 1) };
    }
    // SAFETY: the thread's own variable.
    unsafe { *errno = before };
}

fn is_first(news: News) -> bool {
    let Some(file) = FILES.get().and_then(|files| files[news as usize].as_ref()) else { return true };
    let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL | libc::O_CLOEXEC;
    // SAFETY: the path is NUL-terminated; what is opened is closed.
    unsafe {
        let made = libc::open(file.as_ptr(), flags, 0o600);
        if made >= 0 {
            libc::close(made);
        }
        made >= 0 || *libc::__errno_location() != libc::EEXIST
    }
}

/// A line, and room for its end.
struct Line {
    bytes: [u8; 1024],
    len: usize,
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = self.bytes.len() - 1 - self.len;
        let taken = text.len().min(room);
        self.bytes[self.len..self.len + taken].copy_from_slice(&text.as_bytes()[..taken]);
        self.len += taken;
        if taken < text.len() { Err(fmt::Error) } else { Ok(()) }
    }
}
