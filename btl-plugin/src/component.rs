//! What Open MPI calls once: parameters, init, progress.

use std::cell::UnsafeCell;
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::fmt::Display;
use std::ptr;
use std::time::Duration;

use vmshm_transport::attach::{self, Options, Source};
use vmshm_transport::tune::Tuning;
use vmshm_transport::{Event, Inbox, MAX_INLINE, Peer, copy_from_shared};

use crate::descriptor::Descriptor;
use crate::fabric::{FABRIC, Fabric, Held};
use crate::help::{self, Topic};
use crate::idle::Rest;
use crate::module;
use crate::nearest;
use crate::ompi::{self, MODULE, mca_base_component_t, mca_btl_base_module_t, mca_btl_vmshm_component};
use crate::osc;
use crate::sleep::{self, Sleep};
use crate::stage::{self, Cut};

/// Longest message that goes through the ring by itself, bytes: all that can. In interleaved runs on a quiet machine 512
/// bytes took 0.70 µs that way and 0.80 µs in a fragment; around 900 the two are even.
const DEFAULT_INLINE: usize = MAX_INLINE;

/// Most messages that one call of progress handles.
const BATCH: usize = 32;

/// Most events in all. Fragments that come back are not counted as messages: were a sender to get back fewer than it sends
/// between two calls, it would take new memory for ever, and pay for the kernel's pages instead of copies.
const EVENTS: usize = 1024;

/// A larger fragment than this would not fit the transport's smaller sections more than a few times.
const MAX_SEND_SIZE: usize = 1 << 20;

/// All chunks of a process together are at most this part of its section.
const CHUNKS_PART: u64 = 64;

/// What the user can set, beside what all BTLs have. Open MPI writes it while the component registers.
struct Parameters {
    device: UnsafeCell<*mut c_char>,
    section: UnsafeCell<c_int>,
    max_inline: UnsafeCell<usize>,
    chunk_size: UnsafeCell<usize>,
    chunks: UnsafeCell<c_uint>,
    leave: UnsafeCell<usize>,
    patience: UnsafeCell<c_uint>,
    sleep_after: UnsafeCell<c_uint>,
}

// SAFETY: written by Open MPI only while it registers and closes the component, on one thread.
unsafe impl Sync for Parameters {}

static PARAMETERS: Parameters = Parameters {
    device: UnsafeCell::new(ptr::null_mut()),
    section: UnsafeCell::new(-1),
    max_inline: UnsafeCell::new(DEFAULT_INLINE),
    chunk_size: UnsafeCell::new(0),
    chunks: UnsafeCell::new(0),
    leave: UnsafeCell::new(0),
    patience: UnsafeCell::new(30),
    sleep_after: UnsafeCell::new(0),
};

fn version() -> *mut mca_base_component_t {
    // SAFETY: the static outlives everything; no reference is made.
    unsafe { &raw mut (*mca_btl_vmshm_component.get()).btl_version }
}

/// Registers the parameters; the first of our code that runs. Refuses an Open MPI of another version.
pub unsafe extern "C" fn register() -> c_int {
    match ompi::running() {
        Ok(found) if found == ompi::BUILT_FOR => {}
        Ok((major, minor, release)) => return refuse(&format!("{major}.{minor}.{release}")),
        Err(text) => return refuse(&text),
    }
    // SAFETY: all pointers are to statics; Open MPI copies the texts.
    unsafe {
        ompi::mca_base_var_group_component_register(
            version(),
            c"Shared memory between virtual machines (vmshm)".as_ptr(),
        );
        register_variable(
            version(),
            c"device",
            c"Where the shared region is: a device of the guest driver (/dev/vmshm0), a PCI address (0000:00:04.0), a region \
              file or its name. Empty: the environment's VMSHM_DEVICE, else the first one found.",
            ompi::MCA_BASE_VAR_TYPE_STRING,
            ompi::OPAL_INFO_LVL_2,
            PARAMETERS.device.get().cast(),
        );
        register_variable(
            version(),
            c"section",
            c"Which section of the region this process writes; only on the host, where no device says it. -1: the \
              environment's VMSHM_SECTION, else the first one free.",
            ompi::MCA_BASE_VAR_TYPE_INT,
            ompi::OPAL_INFO_LVL_4,
            PARAMETERS.section.get().cast(),
        );
        register_variable(
            version(),
            c"max_inline",
            c"Maximum size (in bytes, including header) of messages that travel in the ring itself rather than in a \
              fragment beside it.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.max_inline.get().cast(),
        );
        register_variable(
            version(),
            c"chunk_size",
            c"Bytes that a long message from ordinary memory is cut into, so that the receiver copies one piece while the \
              sender copies the next. 0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.chunk_size.get().cast(),
        );
        register_variable(
            version(),
            c"chunks",
            c"How many such pieces are under way at most; a peer that has none may always get two. 0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_5,
            PARAMETERS.chunks.get().cast(),
        );
        register_variable(
            version(),
            c"leave",
            c"From so many bytes on that it has just written for others to read, a process that waits for them fills its \
              nearest cache with something else, since others read that cache slowly; more than the longest message: never. \
              0: what suits this machine, as shown by `vmshm tune`.",
            ompi::MCA_BASE_VAR_TYPE_SIZE_T,
            ompi::OPAL_INFO_LVL_6,
            PARAMETERS.leave.get().cast(),
        );
        register_variable(
            version(),
            c"patience",
            c"Seconds without a heartbeat after which the processes of another machine are taken for dead (must be >= 1).",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_4,
            PARAMETERS.patience.get().cast(),
        );
        register_variable(
            version(),
            c"sleep_after",
            c"Microseconds of waiting in vain after which a process stops polling and sleeps until its doorbell rings, which \
              frees its CPU and costs latency. It polls for the first half of that time, and yields in the second. A loop of \
              MPI_Test sleeps too, unless it computes for half a millisecond in between. Needs the guest driver and a device with doorbells (vmshm serve); elsewhere a process yields. 0: never.",
            ompi::MCA_BASE_VAR_TYPE_UNSIGNED_INT,
            ompi::OPAL_INFO_LVL_3,
            PARAMETERS.sleep_after.get().cast(),
        );
        let module = MODULE.get();
        module::fill(module);
        ompi::mca_btl_base_param_register(version(), module)
    }
}

/// Registers a parameter of a component.
///
/// # Safety
/// `storage` must be a static of the type that `kind` says.
pub unsafe fn register_variable(
    component: *const mca_base_component_t,
    name: &CStr,
    description: &CStr,
    kind: ompi::mca_base_var_type_t,
    level: ompi::mca_base_var_info_lvl_t,
    storage: *mut c_void,
) {
    // SAFETY: the texts are NUL-terminated and copied; the caller vouches for the storage.
    unsafe {
        ompi::mca_base_component_var_register(
            component,
            name.as_ptr(),
            description.as_ptr(),
            kind,
            ptr::null_mut(),
            0,
            0,
            level,
            ompi::MCA_BASE_VAR_SCOPE_READONLY,
            storage,
        );
    }
}

fn refuse(running: &str) -> c_int {
    let (major, minor, release) = ompi::BUILT_FOR;
    help::show(
        Topic::Version,
        &format!("it was built for Open MPI {major}.{minor}.{release}, but this is Open MPI {running}."),
    );
    ompi::OPAL_ERR_NOT_AVAILABLE as c_int
}

/// Opens the component; there is nothing to do before `init`.
pub unsafe extern "C" fn open() -> c_int {
    ompi::OPAL_SUCCESS as c_int
}

/// Closes the component, after the module was finalized, or when there never was one.
pub unsafe extern "C" fn close() -> c_int {
    module::leave();
    ompi::OPAL_SUCCESS as c_int
}

/// Attaches to the region and publishes the endpoint's name. Returns no module when that is not possible, and says why
/// when the user asked for vmshm.
pub unsafe extern "C" fn init(count: *mut c_int, _: bool, threads: bool) -> *mut *mut mca_btl_base_module_t {
    // SAFETY: Open MPI gives a valid pointer.
    unsafe { *count = 0 };
    if threads || ompi::has_threads() {
        // SAFETY: before init returns, nobody else knows this module.
        unsafe { FABRIC.raw().share() };
    }
    let module = MODULE.get();
    match attach(module) {
        Ok(fabric) => {
            osc::publish(threads);
            *FABRIC.lock() = Some(fabric);
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
        drop(FABRIC.lock().take());
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
        || options().is_ok_and(|options| options.device.is_some() || options.section.is_some())
        || std::env::var_os("VMSHM_SECTION").is_some()
}

fn options() -> Result<Options, attach::AttachError> {
    let mut options = Options::from_env()?;
    // SAFETY: Open MPI holds NULL or NUL-terminated text there, and a number; it does not change them meanwhile.
    unsafe {
        let device = *PARAMETERS.device.get();
        if !device.is_null() && *device != 0 {
            options.device = Some(CStr::from_ptr(device).to_string_lossy().into_owned());
        }
        if let Ok(section) = u32::try_from(*PARAMETERS.section.get()) {
            options.section = Some(section);
        }
        options.patience = Duration::from_secs(u64::from(*PARAMETERS.patience.get()));
        options.sleep = *PARAMETERS.sleep_after.get() > 0;
    }
    Ok(options)
}

fn attach(module: *mut mca_btl_base_module_t) -> Result<Fabric, (Topic, String)> {
    // SAFETY: Open MPI does not change the parameters nor the module meanwhile.
    let (section, max_inline, patience, sleep_after, max_send, chunk_size, chunks) = unsafe {
        module::check(module).map_err(|message| (Topic::Parameter, message))?;
        let parameters = &PARAMETERS;
        (
            *parameters.section.get(),
            *parameters.max_inline.get(),
            *parameters.patience.get(),
            *parameters.sleep_after.get(),
            (*module).btl_max_send_size,
            *parameters.chunk_size.get(),
            *parameters.chunks.get(),
        )
    };
    let wrong = |name, value: &dyn Display, range: &str| {
        Err((Topic::Parameter, format!("btl_vmshm_{name} is {value}: it must be {range}.")))
    };
    if section < -1 {
        return wrong("section", &section, "-1 or the number of a section");
    }
    if max_inline > MAX_INLINE {
        return wrong("max_inline", &max_inline, &format!("at most {MAX_INLINE} bytes"));
    }
    if patience == 0 {
        return wrong("patience", &patience, "1 second or more");
    }
    if chunk_size > MAX_SEND_SIZE {
        return wrong("chunk_size", &chunk_size, &format!("at most {MAX_SEND_SIZE} bytes"));
    }
    let unavailable = |message: String| (Topic::Unavailable, message);
    let endpoint = options()
        .and_then(|options| attach::open_endpoint(&options))
        .map_err(|error| unavailable(format!("{error}.")))?;
    if let Some(advice) = endpoint.advice() {
        help::show(Topic::Advice, &format!("{advice}."));
    }
    let is_open = endpoint.region().is_open();
    let name = endpoint.name();
    let mut fabric = Fabric::new(endpoint);
    fabric.cut = cut(chunk_size, chunks, fabric.endpoint.section().entry.len);
    nearest::prepare();
    if sleep_after > 0 {
        let sleep = Sleep::new(&fabric.endpoint, Duration::from_micros(sleep_after.into()));
        if !sleep.has_doorbell() {
            help::verbose(&format!(
                "btl_vmshm_sleep_after is {sleep_after}, but {} has no doorbells: processes that wait yield, and do not \
                 sleep. Doorbells need the guest driver, and a VM started with `vmshm qemu-args --doorbell`.",
                fabric.endpoint.source().path().display()
            ));
        }
        fabric.sleep = Some(sleep);
    }
    if !fabric.reserve(max_send) {
        return Err(unavailable(format!(
            "its section has no memory left for another process (three messages of {max_send} bytes wanted): run fewer \
             processes in this machine, or create the region with more --size."
        )));
    }
    fabric.keep_chunks();
    ompi::publish(&name)
        .map_err(|code| unavailable(format!("Open MPI could not publish its name (error {code}).")))?;
    // SAFETY: nobody uses the module before init returns it.
    unsafe { module::restrict(module, is_open) };
    Ok(fabric)
}

/// How long messages are cut, with defaults for zeros. The chunks of one process are a small part of its section, which it
/// shares with others.
fn cut(size: usize, count: c_uint, section: u64) -> Cut {
    let tuning = Tuning::of_this_machine();
    let size = if size == 0 { tuning.chunk_size } else { size };
    let count = if count == 0 { tuning.window / size } else { count as usize };
    let most = usize::try_from(section / CHUNKS_PART).unwrap_or(usize::MAX) / size;
    let count = count.min(most).max(2);
    let piece = size.min(tuning.tail_size);
    Cut { size, piece, count, few: (tuning.window_single / size).clamp(2, count) }
}

/// Largest message that travels inline.
pub fn max_inline() -> usize {
    // SAFETY: not changed after init.
    unsafe { *PARAMETERS.max_inline.get() }
}

/// From how many bytes on [`nearest`] is to do its work; 0: from what suits this machine.
pub fn leave() -> usize {
    // SAFETY: not changed after init.
    unsafe { *PARAMETERS.leave.get() }
}

/// Largest fragment that a user may ask for.
pub const fn max_send_size() -> usize {
    MAX_SEND_SIZE
}

/// Receives what has arrived and sends what waits. One thread at a time does so; the others return at once. After a long
/// wait for nothing it sleeps, if the user wants that.
pub unsafe extern "C" fn progress() -> c_int {
    let Some(mut fabric) = FABRIC.try_lock() else { return 0 };
    let Some(mut inbox) = fabric.as_mut().and_then(|fabric| fabric.inbox.take()) else { return 0 };
    let mut count = 0;
    if fabric.as_ref().is_some_and(Fabric::has_queued) {
        count += send_queued(&mut fabric);
    }
    if let Some(fabric) = fabric.as_mut().filter(|fabric| fabric.hungry) {
        fabric.feed_hungry();
    }
    if let Some(fabric) = fabric.as_mut().filter(|fabric| !fabric.exposed.is_empty()) {
        if let [len] = fabric.exposed[..] {
            // Who sends more than one at a time has more to do than to wait.
            nearest::leave(len);
        }
        fabric.exposed.clear();
    }
    if let Some(fabric) = fabric.as_mut().filter(|fabric| !fabric.left.is_empty()) {
        fabric.tidy_seldom();
    }
    while let Some(pull) = fabric.as_mut().and_then(Fabric::read_on) {
        count += 1;
        // SAFETY: Open MPI gave all of it for this.
        Held::unlocked(&mut fabric, || unsafe { pull.completion.call_back(ompi::OPAL_SUCCESS as c_int) });
    }
    let mut is_message = false;
    let mut messages = 0;
    for _ in 0..EVENTS {
        let found = fabric.as_mut().and_then(|fabric| match is_message {
            true => fabric.endpoint.poll_more(&mut inbox),
            false => fabric.endpoint.poll(&mut inbox),
        });
        let Some(event) = found else { break };
        is_message = matches!(event, Event::Message { .. });
        messages += usize::from(!matches!(event, Event::Sent { .. }));
        count += 1;
        match event {
            Event::Message { peer, tag, len } if !is_ours(tag) => {
                messages += deliver(&mut fabric, &mut inbox, peer, tag, len);
            }
            event => handle(&mut fabric, &mut inbox, event),
        }
        if messages >= BATCH {
            break;
        }
    }
    let mut may_sleep = false;
    let rest = fabric.as_mut().map_or(Rest::Spin, |fabric| {
        fabric.inbox = Some(inbox);
        may_sleep = fabric.sleep.as_ref().is_some_and(Sleep::has_doorbell);
        fabric.rest(count > 0)
    });
    match rest {
        Rest::Spin => drop(fabric),
        Rest::Yield => {
            drop(fabric);
            std::thread::yield_now();
        }
        Rest::Sleep(time) => sleep::sleep(fabric, time),
    }
    if count > 0 && may_sleep {
        // What was for another thread, which sleeps. Not where none does: it costs a full fence.
        sleep::rouse();
    }
    count
}

/// Whether messages with this tag are for this plugin itself.
#[inline(always)]
fn is_ours(tag: u8) -> bool {
    tag == stage::PULL || tag == osc::TAG
}

/// Hands on a message of Open MPI's, and those that came together with it. Returns how many of those there were.
#[inline(always)]
fn deliver(fabric: &mut Held, inbox: &mut Inbox, peer: Peer, mut tag: u8, mut len: usize) -> usize {
    let mut others = 0;
    let heard = Held::unlocked(fabric, || {
        while module::deliver(tag, inbox.bytes_mut(len).as_mut_ptr(), len, None) {
            let Some(next) = inbox.next_if(|tag| !is_ours(tag)) else { return true };
            (tag, len) = next;
            others += 1;
        }
        false
    });
    if !heard {
        reject(fabric, peer, tag);
    }
    others
}

/// Does what an event asks for, other than a message of Open MPI's in the inbox.
fn handle(fabric: &mut Held, inbox: &mut Inbox, event: Event) {
    match event {
        Event::Message { peer, tag: stage::PULL, len } => {
            if !fabric.as_mut().is_none_or(|fabric| fabric.serve(peer, inbox.bytes(len))) {
                reject(fabric, peer, stage::PULL);
            }
        }
        // Messages of Open MPI's do not come here.
        Event::Message { peer, len, .. } => {
            let bytes = inbox.bytes(len);
            // SAFETY: the bytes are there.
            if !Held::unlocked(fabric, || unsafe { osc::heard(peer, bytes.as_ptr(), len) }) {
                reject(fabric, peer, osc::TAG);
            }
        }
        Event::Fragment { peer, tag, offset, len } if stage::is_chunk(tag) => {
            let Some(open) = fabric.as_mut() else { return };
            let from = open.endpoint.address(offset, len as u64);
            let Some(to) = open.place(peer, tag, len) else {
                // Who is gone has not broken a rule.
                if open.endpoint.consume(peer).is_ok() {
                    reject(fabric, peer, tag);
                }
                return;
            };
            // SAFETY: the transport has checked that len bytes lie there, and Open MPI keeps room for them until it is
            // called back. Only the thread that makes progress places chunks.
            Held::unlocked(fabric, || unsafe { copy_from_shared(from, to, len) });
            let Some(open) = fabric.as_mut() else { return };
            // An error here is followed by Event::Gone.
            if open.endpoint.consume(peer).is_ok()
                && let Some(pull) = open.placed(peer, tag, len)
            {
                // SAFETY: Open MPI gave all of it for this.
                Held::unlocked(fabric, || unsafe { pull.completion.call_back(ompi::OPAL_SUCCESS as c_int) });
            }
        }
        Event::Fragment { peer, tag: osc::TAG, offset, len } => {
            let Some(open) = fabric.as_mut() else { return };
            let bytes = open.endpoint.address(offset, len as u64);
            // SAFETY: the transport has checked that len bytes lie there.
            let is_done = Held::unlocked(fabric, || unsafe { osc::heard(peer, bytes, len) });
            if let Some(fabric) = fabric.as_mut() {
                // An error here is followed by Event::Gone.
                let _ = fabric.endpoint.consume(peer);
            }
            if !is_done {
                reject(fabric, peer, osc::TAG);
            }
        }
        Event::Fragment { peer, tag, offset, len } if module::is_copied(tag, len) => {
            let Some(open) = fabric.as_mut() else { return };
            let payload = open.endpoint.address(offset, len as u64);
            let mut landing = std::mem::take(&mut open.landing);
            // SAFETY: the transport has checked that len bytes lie at payload.
            let place = unsafe { module::land(payload, len, &mut landing) };
            // The sender has its fragment back while Open MPI does its part. An error here is followed by Event::Gone.
            let is_sound = open.endpoint.consume(peer).is_ok();
            let heard = !is_sound || Held::unlocked(fabric, || module::deliver(tag, place, len, None));
            if let Some(fabric) = fabric.as_mut() {
                fabric.landing = landing;
            }
            if !heard {
                reject(fabric, peer, tag);
            }
        }
        Event::Fragment { peer, tag, offset, len } => {
            let Some(open) = fabric.as_mut() else { return };
            let payload = open.endpoint.address(offset, len as u64);
            let heard = Held::unlocked(fabric, || module::deliver_in_place(tag, payload, len));
            if let Some(fabric) = fabric.as_mut() {
                // An error here is followed by Event::Gone.
                let _ = fabric.endpoint.consume(peer);
            }
            if !heard {
                reject(fabric, peer, tag);
            }
        }
        Event::Sent { token, .. } => {
            let Some(open) = fabric.as_mut() else { return };
            let landed = open.landed(token);
            if open.hungry {
                open.feed_hungry();
            }
            if let Some(descriptor) = landed {
                complete(fabric, descriptor, ompi::OPAL_SUCCESS as c_int);
            }
        }
        Event::Unsent { peer, token } => {
            // Event::Gone follows. It is told first: for ob1 the failure of a single message is a crash without reason.
            if let Some(fabric) = fabric.as_mut() {
                fabric.crashed(peer, token);
            }
        }
        Event::Gone { peer, why } => {
            if let Some(fabric) = fabric.as_mut() {
                fabric.lose(peer, why);
            }
            report(fabric, peer);
            let unsent = fabric.as_mut().map(|fabric| fabric.take_unsent(peer)).unwrap_or_default();
            for descriptor in unsent {
                complete(fabric, descriptor, ompi::OPAL_ERR_UNREACH as c_int);
            }
            let pulls = fabric.as_mut().map(|fabric| fabric.take_pulls(peer)).unwrap_or_default();
            for pull in pulls {
                // SAFETY: Open MPI gave all of it for this.
                Held::unlocked(fabric, || unsafe {
                    pull.completion.call_back(ompi::OPAL_ERR_UNREACH as c_int)
                });
            }
            if let Some(fabric) = fabric.as_mut() {
                fabric.forget(peer);
            }
        }
        // This plugin makes no offers, so nobody has reason to send either.
        Event::Offer { peer, tag, .. } | Event::Done { peer, tag, .. } => reject(fabric, peer, tag),
    }
}

/// Calls back the sender of a message that is complete, and frees its descriptor.
fn complete(fabric: &mut Held, descriptor: *mut Descriptor, status: c_int) {
    // SAFETY: the transport has given the descriptor back; the lock is not held during the callback.
    let ours = Held::unlocked(fabric, || unsafe { Descriptor::call_back(descriptor, status) });
    if ours && let Some(fabric) = fabric.as_mut() {
        // SAFETY: call_back said that it is ours to free.
        unsafe { fabric.free(descriptor) };
    }
}

fn send_queued(fabric: &mut Held) -> c_int {
    let mut done = Vec::new();
    if let Some(fabric) = fabric.as_mut() {
        // SAFETY: queued descriptors belong to us until they are called back.
        unsafe { fabric.send_queued(&mut done) };
    }
    let count = done.len();
    for descriptor in done {
        complete(fabric, descriptor, ompi::OPAL_SUCCESS as c_int);
    }
    c_int::try_from(count).unwrap_or(c_int::MAX)
}

/// A message that nobody here has asked for: its sender does not keep to the rules.
fn reject(fabric: &mut Held, peer: Peer, tag: u8) {
    let number = peer.index();
    let proc = fabric.as_ref().and_then(|fabric| fabric.process(number));
    Held::unlocked(fabric, || {
        // SAFETY: Open MPI's process lives until del_procs.
        unsafe {
            module::report(
                proc,
                &format!("it sent a message with tag {tag:#x}, which nobody here has asked for"),
            )
        }
    });
}

/// Reports the loss of a peer, once, if it matters.
pub fn report(fabric: &mut Held, peer: Peer) {
    let Some(loss) = fabric.as_mut().and_then(|fabric| fabric.loss(peer)) else { return };
    report_lost_device(fabric);
    Held::unlocked(fabric, || {
        // SAFETY: Open MPI's process lives until del_procs.
        unsafe { module::report(Some(loss.proc), &loss.why.to_string()) }
    });
}

/// Reports the loss of the device, if it is lost.
pub fn report_lost_device(fabric: &mut Held) {
    let Some(open) = fabric.as_ref().filter(|fabric| fabric.endpoint.memory().is_lost()) else { return };
    let text = match open.endpoint.source() {
        Source::File(file) => {
            format!("The file {} was made shorter while it was in use.", file.display())
        }
        device => format!("The device {} is gone.", device.path().display()),
    };
    Held::unlocked(fabric, || help::show(Topic::DeviceLost, &text));
}
