//! Starting and ending MPI, and the check of its return codes.

use std::ffi::c_int;

use mpi::ffi;

/// A process's number in a communicator.
pub type Rank = c_int;
/// A message's tag.
pub type Tag = c_int;

/// MPI while it is initialised; finalized on drop.
#[derive(Debug)]
pub struct Universe {
    threads: bool,
}

impl Universe {
    /// Initialises MPI, with `MPI_THREAD_MULTIPLE` if `threads` is true.
    ///
    /// # Errors
    /// The installed MPI does not offer the thread level.
    pub fn start(threads: bool) -> Result<Universe, String> {
        let (wanted, name) = if threads {
            (level(ffi::MPI_THREAD_MULTIPLE), "MPI_THREAD_MULTIPLE")
        } else {
            (level(ffi::MPI_THREAD_FUNNELED), "MPI_THREAD_FUNNELED")
        };
        prefer_windows_over_messages();
        let mut provided: c_int = -1;
        let no_arguments = std::ptr::null_mut();
        let no_count = std::ptr::null_mut();
        // SAFETY: null for argc and argv is allowed; MPI writes `provided`.
        let code = unsafe { ffi::MPI_Init_thread(no_count, no_arguments, wanted, &raw mut provided) };
        if code != SUCCESS {
            return Err(format!("MPI_Init_thread failed with code {code}"));
        }
        // From here on a failed call comes back as a code, which `succeed` turns into a report.
        // SAFETY: both handles are predefined.
        succeed(unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_WORLD, ffi::RSMPI_ERRORS_RETURN) });
        // SAFETY: both handles are predefined.
        succeed(unsafe { ffi::MPI_Comm_set_errhandler(ffi::RSMPI_COMM_SELF, ffi::RSMPI_ERRORS_RETURN) });
        if provided < wanted {
            return Err(format!(
                "this MPI does not offer {name} (it offers level {provided}, {wanted} is needed)"
            ));
        }
        Ok(Universe { threads })
    }

    /// Whether several threads may call MPI at once.
    pub fn is_threaded(&self) -> bool {
        self.threads
    }
}

/// Chooses Open MPI 4's one-sided component `pt2pt`, unless the user has chosen one.
///
/// It sends its data through the same transport as messages, which is what these tests are about.
/// Left alone, 4.1.4 takes `rdma` where a transport offers put and get (and its compare-and-swap
/// crashes over `vader`), `ucx`, which goes another way, or none at all.
fn prefer_windows_over_messages() {
    const NAME: &str = "OMPI_MCA_osc";
    let mut text = [0_u8; ffi::MPI_MAX_LIBRARY_VERSION_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: allowed before MPI_Init; `text` has the size that MPI asks for.
    succeed(unsafe { ffi::MPI_Get_library_version(text.as_mut_ptr().cast(), &raw mut length) });
    let open_mpi_4 = String::from_utf8_lossy(&text).starts_with("Open MPI v4.");
    if open_mpi_4 && std::env::var_os(NAME).is_none() {
        // SAFETY: MPI has not been started, and programs start it before any thread.
        unsafe { std::env::set_var(NAME, "pt2pt") };
    }
}

impl Drop for Universe {
    fn drop(&mut self) {
        // SAFETY: MPI was initialised by `start` and is finalized once.
        succeed(unsafe { ffi::MPI_Finalize() });
    }
}

/// Ends all processes of the job with `code`.
pub fn abort(code: c_int) -> ! {
    let mut initialized = 0;
    let mut finalized = 0;
    // SAFETY: these calls are allowed at any time; MPI_Abort only between init and finalize.
    unsafe {
        ffi::MPI_Initialized(&raw mut initialized);
        ffi::MPI_Finalized(&raw mut finalized);
        if initialized != 0 && finalized == 0 {
            ffi::MPI_Abort(ffi::RSMPI_COMM_WORLD, code);
        }
    }
    std::process::exit(code)
}

/// Makes a panic of any thread end the whole job: the others would wait for ever.
pub fn abort_on_panic(describe: impl Fn(&str) + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let message = match panic.payload().downcast_ref::<String>() {
            Some(text) => text.as_str(),
            None => panic.payload().downcast_ref().copied().unwrap_or("a panic without a message"),
        };
        match panic.location() {
            Some(at) => describe(&format!("{message} ({}:{})", at.file(), at.line())),
            None => describe(message),
        }
        abort(2);
    }));
}

/// The return value of MPI functions that worked.
pub const SUCCESS: c_int = 0;

/// Panics with MPI's own text if `code` is an error.
///
/// # Panics
/// If `code` is not `MPI_SUCCESS`.
#[track_caller]
pub fn succeed(code: c_int) {
    if code != SUCCESS {
        panic!("MPI reports an error: {}", explain(code));
    }
}

/// MPI's text for an error code.
pub fn explain(code: c_int) -> String {
    let mut text = [0_u8; ffi::MPI_MAX_ERROR_STRING as usize];
    let mut length: c_int = 0;
    // SAFETY: `text` has the size that MPI asks for.
    unsafe { ffi::MPI_Error_string(code, text.as_mut_ptr().cast(), &raw mut length) };
    let length = usize::try_from(length).unwrap_or(0).min(text.len());
    if length == 0 {
        return format!("error {code}, for which MPI has no text");
    }
    String::from_utf8_lossy(&text[..length]).into_owned()
}

/// The error class of an error code, as `MPI_ERR_TRUNCATE`.
pub fn class(code: c_int) -> u32 {
    let mut class: c_int = 0;
    // SAFETY: MPI writes `class`.
    succeed(unsafe { ffi::MPI_Error_class(code, &raw mut class) });
    u32::try_from(class).unwrap_or(u32::MAX)
}

/// A count, rank or displacement as MPI's `int`.
///
/// # Panics
/// If the value does not fit: a mistake of the calling test.
#[track_caller]
pub fn int(value: usize) -> c_int {
    c_int::try_from(value).expect("MPI counts are 32-bit")
}

/// A distance that MPI gave, in bytes.
#[allow(clippy::unnecessary_cast, reason = "MPI_Aint is isize in Open MPI, i64 in MPICH")]
pub fn distance(given: ffi::MPI_Aint) -> isize {
    given as isize
}

fn level(constant: u32) -> c_int {
    c_int::try_from(constant).expect("thread levels are small")
}
