//! Performance variables of the MPI library, as tools read them (MPI_T).

use std::ffi::{CStr, c_char, c_int, c_ulonglong};
use std::ptr;

use mpi::ffi;

use crate::comm::Comm;
use crate::universe::{SUCCESS, succeed};

/// Longest name that is read, bytes.
const NAME: usize = 256;

/// Variables that have a value for each process of a communicator, and are always counted. MPI must outlive them.
#[derive(Debug)]
pub struct Variables {
    session: ffi::MPI_T_pvar_session,
    list: Vec<Variable>,
}

#[derive(Debug)]
struct Variable {
    name: String,
    handle: ffi::MPI_T_pvar_handle,
    values: usize,
}

impl Variables {
    /// All whose names begin so. A variable that counts begins to count anew.
    pub fn of(comm: &Comm, beginning: &str) -> Variables {
        let (mut provided, mut count) = (0, 0);
        let mut session = ptr::null_mut();
        let wanted = c_int::try_from(ffi::MPI_THREAD_SINGLE).expect("thread levels are small");
        // SAFETY: MPI writes all three.
        unsafe {
            succeed(ffi::MPI_T_init_thread(wanted, &raw mut provided));
            succeed(ffi::MPI_T_pvar_session_create(&raw mut session));
            succeed(ffi::MPI_T_pvar_get_num(&raw mut count));
        }
        let found = (0..count).filter_map(|index| Some((index, name(index)?)));
        let list = found
            .filter(|(_, name)| name.starts_with(beginning))
            .map(|(index, name)| {
                let (mut raw, mut handle, mut values) = (comm.raw(), ptr::null_mut(), 0);
                // SAFETY: the communicator is valid, and its handle is read here; MPI writes handle and number.
                succeed(unsafe {
                    let object = (&raw mut raw).cast();
                    ffi::MPI_T_pvar_handle_alloc(session, index, object, &raw mut handle, &raw mut values)
                });
                let values = usize::try_from(values).expect("a number of values");
                assert_eq!(values, comm.size(), "{name} has a value for each process");
                Variable { name, handle, values }
            })
            .collect();
        Variables { session, list }
    }

    /// Their names and values, by rank.
    pub fn read(&self) -> Vec<(&str, Vec<u64>)> {
        let read = |variable: &Variable| {
            let mut values: Vec<c_ulonglong> = vec![0; variable.values];
            // SAFETY: session and handle are valid; there is room for all values, whose type `name` has looked at.
            succeed(unsafe {
                ffi::MPI_T_pvar_read(self.session, variable.handle, values.as_mut_ptr().cast())
            });
            values
        };
        self.list.iter().map(|variable| (variable.name.as_str(), read(variable))).collect()
    }
}

impl Drop for Variables {
    fn drop(&mut self) {
        // SAFETY: session and handles are valid, and not used any more.
        unsafe {
            for variable in &mut self.list {
                succeed(ffi::MPI_T_pvar_handle_free(self.session, &raw mut variable.handle));
            }
            succeed(ffi::MPI_T_pvar_session_free(&raw mut self.session));
            succeed(ffi::MPI_T_finalize());
        }
    }
}

/// The name of a variable that is bound to communicators and has numbers of the type that is read here.
fn name(index: c_int) -> Option<String> {
    let mut text = [0 as c_char; NAME];
    let (mut len, mut no_text) = (NAME as c_int, 0);
    let (mut verbosity, mut class, mut binding) = (0, 0, 0);
    let (mut read_only, mut continuous, mut atomic) = (0, 0, 0);
    let mut enumeration = ptr::null_mut();
    // SAFETY: constants of the MPI library; MPI writes the numbers, and at most `len` bytes of text.
    let is_number = unsafe {
        let mut datatype = ffi::RSMPI_DATATYPE_NULL;
        let code = ffi::MPI_T_pvar_get_info(
            index,
            text.as_mut_ptr(),
            &raw mut len,
            &raw mut verbosity,
            &raw mut class,
            &raw mut datatype,
            &raw mut enumeration,
            ptr::null_mut(),
            &raw mut no_text,
            &raw mut binding,
            &raw mut read_only,
            &raw mut continuous,
            &raw mut atomic,
        );
        code == SUCCESS && size(datatype) == size_of::<c_ulonglong>()
    };
    let is_bound = binding == BIND_MPI_COMM;
    // SAFETY: MPI ends the text with NUL.
    (is_number && is_bound && continuous != 0)
        .then(|| unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().into_owned())
}

/// Open MPI's number for `MPI_T_BIND_MPI_COMM`. The variables are our plugin's, so that no other MPI has them, and bindings of MPICH
/// have no such name.
const BIND_MPI_COMM: c_int = 1;

/// Bytes of one of MPI's own datatypes.
fn size(datatype: ffi::MPI_Datatype) -> usize {
    let mut size = 0;
    // SAFETY: the datatype is valid; MPI writes the number.
    succeed(unsafe { ffi::MPI_Type_size(datatype, &raw mut size) });
    size as usize
}
