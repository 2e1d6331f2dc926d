//! The UCX transport, put into the process where `pml/ucx` may run: UCX takes the transports that are there when it starts.

use std::ffi::{CStr, OsStr, c_uint, c_void};
use std::mem::{self, MaybeUninit};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::ompi;
use crate::ompi::help::{self, Topic};

/// The transport's file; its name as a library is the same.
const FILE: &CStr = c"libuct_vmshm.so.0";

/// Loads the transport if `pml/ucx` is there and the user's choice of a pml lets it in.
///
/// Memory pools are opened before the pml, so that neither `pml/ucx` nor UCX need be in the process yet. They are loaded first, as
/// Open MPI is about to do: the transport must find the same UCX, wherever that lies.
pub fn load() {
    if ompi::may_run_pml("ucx") {
        // SAFETY: the name ends in NUL, and nobody holds a lock that the function takes.
        unsafe { ompi::vmshm_ompi_with_pml(c"ucx".as_ptr(), Some(load_for_running)) };
    }
}

/// Loads the transport for the series of UCX in this process, if it is installed beside this plugin.
unsafe extern "C" fn load_for_running() {
    let Some(file) = own_path().zip(series()).and_then(|(plugin, series)| transport(&plugin, series)) else {
        return;
    };
    let path = ompi::c_text(&file.to_string_lossy());
    // SAFETY: both names end in NUL; the transport's constructor only registers it. The text is this thread's until the next error.
    unsafe {
        // A transport that the user has preloaded is there already, under the same name.
        let loaded = libc::dlopen(FILE.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if loaded.is_null() && libc::dlopen(path.as_ptr(), libc::RTLD_LAZY | libc::RTLD_NODELETE).is_null() {
            let why = CStr::from_ptr(libc::dlerror()).to_string_lossy();
            help::show(Topic::Unavailable, &format!("Its transport for pml/ucx does not load: {why}"));
        }
    }
}

/// The series of the UCX in this process: major and minor number.
fn series() -> Option<(u32, u32)> {
    // SAFETY: the names end in NUL, and the function of every UCX has this type. The library stays, since others have loaded it.
    unsafe {
        let library = libc::dlopen(c"libucp.so.0".as_ptr(), libc::RTLD_LAZY | libc::RTLD_NOLOAD);
        if library.is_null() {
            return None;
        }
        let function = libc::dlsym(library, c"ucp_get_version".as_ptr());
        let (mut major, mut minor, mut release) = (0, 0, 0);
        if !function.is_null() {
            type GetVersion = unsafe extern "C" fn(*mut c_uint, *mut c_uint, *mut c_uint);
            mem::transmute::<*mut c_void, GetVersion>(function)(&mut major, &mut minor, &mut release);
        }
        libc::dlclose(library);
        (!function.is_null()).then_some((major, minor))
    }
}

/// From `PREFIX/lib/openmpi/mca_btl_vmshm.so` to `PREFIX/lib/ucx-1.13/libuct_vmshm.so.0`, if that is there.
fn transport(plugin: &Path, (major, minor): (u32, u32)) -> Option<PathBuf> {
    let libraries = plugin.parent()?.parent()?;
    let file = libraries.join(format!("ucx-{major}.{minor}")).join(OsStr::from_bytes(FILE.to_bytes()));
    file.is_file().then_some(file)
}

/// Where this plugin was loaded from.
fn own_path() -> Option<PathBuf> {
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
    use std::fs;

    use super::*;

    #[test]
    fn the_transport_is_that_of_the_running_series() {
        let prefix = tempfile::tempdir().unwrap();
        let libraries = prefix.path().join("lib");
        let plugin = libraries.join("openmpi-5.0.7/mca_btl_vmshm.so");
        assert_eq!(transport(&plugin, (1, 18)), None);
        for series in ["ucx-1.13", "ucx-1.18"] {
            fs::create_dir_all(libraries.join(series)).unwrap();
            fs::write(libraries.join(series).join("libuct_vmshm.so.0"), "").unwrap();
        }
        assert_eq!(transport(&plugin, (1, 18)), Some(libraries.join("ucx-1.18/libuct_vmshm.so.0")));
        assert_eq!(transport(&plugin, (1, 19)), None);
    }
}
