//! The component's functions, each called once: register, open, init, close.

use std::ffi::c_int;
use std::ptr;

use vmshm_transport::attach;
use vmshm_transport::tune::Here;

use super::{finalize, module, traffic};
use crate::ompi::help::{self, Topic};
use crate::ompi::{self, mca_btl_base_module_t};
use crate::osc;
use crate::process::{INSTANCE, Instance, MODULE, params};

/// Registers the parameters; the first of our code that runs. Refuses an Open MPI of another version.
pub unsafe extern "C" fn register() -> c_int {
    if !ompi::is_built_for_this() {
        let (built_for, running) = (ompi::built_for(), ompi::running());
        help::show(
            Topic::Version,
            &format!("it was built for Open MPI {built_for}, but this is Open MPI {running}."),
        );
        return ompi::OPAL_ERR_NOT_AVAILABLE as c_int;
    }
    params::register_btl();
    traffic::register();
    let module = MODULE.get();
    // SAFETY: the module is ours, and nobody uses it before the component is registered.
    unsafe {
        module::fill(module);
        ompi::mca_btl_base_param_register(ompi::btl_version().cast_mut(), module)
    }
}

/// Opens the component; there is nothing to do before `init`.
pub unsafe extern "C" fn open() -> c_int {
    ompi::OPAL_SUCCESS as c_int
}

/// Closes the component, after the module was finalized, or when there never was one.
pub unsafe extern "C" fn close() -> c_int {
    finalize::leave();
    ompi::OPAL_SUCCESS as c_int
}

/// Attaches to the region and publishes the endpoint's name. Returns no module when that is not possible, and says why
/// when the user asked for vmshm.
pub unsafe extern "C" fn init(count: *mut c_int, _: bool, threads: bool) -> *mut *mut mca_btl_base_module_t {
    // SAFETY: Open MPI gives a valid pointer.
    unsafe { *count = 0 };
    if threads || ompi::has_threads() {
        // SAFETY: before init returns, nobody else knows this module.
        unsafe { INSTANCE.raw().share() };
    }
    let module = MODULE.get();
    match attach(module) {
        Ok(instance) => {
            if instance.traffic.is_some() {
                // A process that sleeps has more to do in each progress than the quick way does.
                // SAFETY: as above, nobody else knows this module yet.
                unsafe { INSTANCE.raw().share() };
            }
            osc::publish(threads);
            *INSTANCE.lock() = Some(instance);
        }
        Err((topic, message)) => {
            if is_wanted() {
                help::show(topic, &message);
            } else {
                help::verbose(&message);
            }
            return ptr::null_mut();
        }
    }
    // SAFETY: malloc takes any size; Open MPI frees what it gave.
    let modules =
        unsafe { libc::malloc(size_of::<*mut mca_btl_base_module_t>()) }.cast::<*mut mca_btl_base_module_t>();
    if modules.is_null() {
        drop(INSTANCE.lock().take());
        return ptr::null_mut();
    }
    // SAFETY: there is room for one pointer; count is valid.
    unsafe {
        *modules = module;
        *count = 1;
    }
    modules
}

/// Whether the user asked for vmshm: in the list of BTLs, or by naming a device.
fn is_wanted() -> bool {
    ompi::is_selected()
        || params::options().is_ok_and(|options| options.device.is_some() || options.section.is_some())
        || std::env::var_os("VMSHM_SECTION").is_some()
}

fn attach(module: *mut mca_btl_base_module_t) -> Result<Instance, (Topic, String)> {
    // SAFETY: Open MPI does not change the module meanwhile.
    let max_send = unsafe {
        module::check(module).map_err(|message| (Topic::Parameter, message))?;
        (*module).btl_max_send_size
    };
    params::check().map_err(|message| (Topic::Parameter, message))?;
    let unavailable = |message: String| (Topic::Unavailable, message);
    let endpoint = params::options()
        .and_then(|options| attach::open_endpoint(&options))
        .map_err(|error| unavailable(format!("{error}.")))?;
    if let Some(advice) = endpoint.advice() {
        help::show(Topic::Advice, &format!("{advice}."));
    }
    if let Some(ignored) = &Here::get().ignored {
        help::show(Topic::Advice, ignored);
    }
    let is_open = endpoint.region().is_open();
    let name = endpoint.name();
    let tuning = params::engine(max_send, endpoint.section().entry.len);
    let sleep_after = tuning.sleep_after;
    let engine = vmshm_messaging::Engine::new(endpoint, tuning).map_err(|_| {
        unavailable(format!(
            "its section has no memory left for another process (three messages of {max_send} bytes wanted): run fewer \
             processes in this machine, or create the region with more --size."
        ))
    })?;
    if let (Some(sleep_after), None) = (sleep_after, engine.waker()) {
        help::verbose(&format!(
            "btl_vmshm_sleep_after is {}, but {} has no doorbells: processes that wait yield, and do not sleep. Doorbells \
             need the guest driver, and a VM started with `vmshm qemu-args --doorbell`.",
            sleep_after.as_micros(),
            engine.endpoint().source().path().display()
        ));
    }
    ompi::publish(&name)
        .map_err(|code| unavailable(format!("Open MPI could not publish its name (error {code}).")))?;
    // SAFETY: nobody uses the module before init returns it.
    unsafe { module::restrict(module, is_open) };
    Ok(Instance::new(engine))
}
