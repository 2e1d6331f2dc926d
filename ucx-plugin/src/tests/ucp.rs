//! UCP, as far as the tests use it. One worker may be used by several threads.

#[allow(
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    non_upper_case_globals,
    dead_code,
    unused_imports,
    unsafe_op_in_unsafe_fn,
    unnecessary_transmutes,
    clippy::all,
    clippy::ptr_as_ptr,
    clippy::undocumented_unsafe_blocks,
    clippy::missing_safety_doc,
    reason = "bindgen made it"
)]
mod bindings {
    include!(concat!(env!("OUT_DIR"), "/programs.rs"));
}

use std::ffi::c_void;
use std::mem::zeroed;
use std::ptr::{self, null, null_mut};
use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::time::{Duration, Instant};

use bindings::*;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);

/// UCX's number of an error.
pub type Status = i32;

fn check(status: ucs_status_t, what: &str) {
    assert_eq!(i32::from(status), 0, "{what}");
}

/// A context. Each of its interfaces lies in a section that is free, if there is one.
pub struct Context(ucp_context_h);

// SAFETY: it was asked for workers in several threads.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    pub fn new() -> Arc<Self> {
        super::find_region();
        let (mut config, mut context) = (null_mut(), null_mut());
        // SAFETY: UCX reads what outlives the calls, and has room for its answers; all zero is a value of its parameters.
        unsafe {
            check(ucp_config_read(null(), null(), &mut config), "configuration");
            let settings =
                [(c"TLS", c"vmshm,self"), (c"KEEPALIVE_INTERVAL", c"1s"), (c"ALLOC_PRIO", c"md:vmshm")];
            for (name, value) in settings {
                check(ucp_config_modify(config, name.as_ptr(), value.as_ptr()), "setting");
            }
            let mut params: ucp_params_t = zeroed();
            params.field_mask = u64::from(UCP_PARAM_FIELD_FEATURES | UCP_PARAM_FIELD_MT_WORKERS_SHARED);
            params.features =
                u64::from(UCP_FEATURE_TAG | UCP_FEATURE_RMA | UCP_FEATURE_AMO32 | UCP_FEATURE_AMO64);
            params.mt_workers_shared = 1;
            let status = ucp_init_version(UCP_API_MAJOR, UCP_API_MINOR, &params, config, &mut context);
            check(status, "context");
            ucp_config_release(config);
        }
        Arc::new(Self(context))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: its workers are gone, each of which holds it.
        unsafe { ucp_cleanup(self.0) };
    }
}

/// A worker.
pub struct Worker {
    handle: ucp_worker_h,
    _context: Arc<Context>,
}

// SAFETY: it was made for several threads.
unsafe impl Send for Worker {}
// SAFETY: as above.
unsafe impl Sync for Worker {}

impl Worker {
    pub fn new(context: &Arc<Context>) -> Arc<Self> {
        let mut handle = null_mut();
        // SAFETY: as in `Context::new`.
        unsafe {
            let mut params: ucp_worker_params_t = zeroed();
            params.field_mask = u64::from(UCP_WORKER_PARAM_FIELD_THREAD_MODE);
            params.thread_mode = UCS_THREAD_MODE_MULTI;
            check(ucp_worker_create(context.0, &params, &mut handle), "worker");
        }
        Arc::new(Self { handle, _context: Arc::clone(context) })
    }

    pub fn address(&self) -> Vec<u8> {
        let (mut address, mut len) = (null_mut(), 0);
        // SAFETY: UCX has room for its answers, and keeps the address until it is released.
        unsafe {
            check(ucp_worker_get_address(self.handle, &mut address, &mut len), "address");
            let bytes = slice::from_raw_parts(address.cast::<u8>(), len).to_vec();
            ucp_worker_release_address(self.handle, address);
            bytes
        }
    }

    pub fn progress(&self) {
        // SAFETY: a call of the worker.
        unsafe { ucp_worker_progress(self.handle) };
    }

    /// Meets the worker with this address. An end of that one fails the endpoint.
    pub fn connect(self: &Arc<Self>, address: &[u8]) -> Endpoint {
        let failure = Box::new(AtomicI32::new(0));
        let mut handle = null_mut();
        // SAFETY: as in `Context::new`; the failure outlives the endpoint.
        unsafe {
            let mut params: ucp_ep_params_t = zeroed();
            let fields = UCP_EP_PARAM_FIELD_REMOTE_ADDRESS
                | UCP_EP_PARAM_FIELD_ERR_HANDLING_MODE
                | UCP_EP_PARAM_FIELD_ERR_HANDLER;
            params.field_mask = u64::from(fields);
            params.address = address.as_ptr().cast();
            params.err_mode = UCP_ERR_HANDLING_MODE_PEER;
            params.err_handler.cb = Some(fail);
            params.err_handler.arg = (&raw const *failure).cast_mut().cast();
            check(ucp_ep_create(self.handle, &params, &mut handle), "endpoint");
        }
        Endpoint { handle, failure, worker: Arc::clone(self) }
    }

    /// Receives a message of at most so many bytes.
    pub fn receive(self: &Arc<Self>, tag: u64, len: usize) -> Request {
        let mut buffer = vec![0; len];
        // SAFETY: the request keeps the buffer until it is over.
        let request = unsafe {
            let params: ucp_request_param_t = zeroed();
            ucp_tag_recv_nbx(self.handle, buffer.as_mut_ptr().cast(), len, tag, u64::MAX, &params)
        };
        Request { pointer: request, buffer, worker: Arc::clone(self) }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // SAFETY: its endpoints and requests are gone, each of which holds it.
        unsafe { ucp_worker_destroy(self.handle) };
    }
}

unsafe extern "C" fn fail(failure: *mut c_void, _: ucp_ep_h, status: ucs_status_t) {
    // SAFETY: the endpoint holds the number.
    unsafe { &*failure.cast::<AtomicI32>() }.store(status.into(), Ordering::Relaxed);
}

/// An endpoint.
pub struct Endpoint {
    handle: ucp_ep_h,
    failure: Box<AtomicI32>,
    pub worker: Arc<Worker>,
}

// SAFETY: its worker was made for several threads.
unsafe impl Send for Endpoint {}

impl Endpoint {
    /// Error that UCX has called the handler with; 0 for none.
    pub fn failure(&self) -> Status {
        self.failure.load(Ordering::Relaxed)
    }

    pub fn send(&self, tag: u64, buffer: Vec<u8>) -> Request {
        // SAFETY: the request keeps the buffer until it is over.
        let request = unsafe {
            let params: ucp_request_param_t = zeroed();
            ucp_tag_send_nbx(self.handle, buffer.as_ptr().cast(), buffer.len(), tag, &params)
        };
        Request { pointer: request, buffer, worker: Arc::clone(&self.worker) }
    }
}

/// Operations on words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Add,
    And,
    Or,
    Xor,
    Swap,
    /// If the word is this.
    CompareAndSwap(u64),
}

impl Endpoint {
    /// Waits until all that was begun is done. The peer's worker makes progress too, if it is given.
    pub fn flush(&self, peer: Option<&Worker>) {
        // SAFETY: a call of the endpoint.
        let request = unsafe {
            let params: ucp_request_param_t = zeroed();
            ucp_ep_flush_nbx(self.handle, &params)
        };
        self.request(request, Vec::new()).wait_with(|| peer.into_iter().for_each(Worker::progress)).unwrap();
    }

    pub fn put(&self, bytes: Vec<u8>, remote: u64, key: &Key) -> Request {
        // SAFETY: the request keeps the bytes until it is over.
        let request = unsafe {
            let params: ucp_request_param_t = zeroed();
            ucp_put_nbx(self.handle, bytes.as_ptr().cast(), bytes.len(), remote, key.0, &params)
        };
        self.request(request, bytes)
    }

    pub fn get(&self, len: usize, remote: u64, key: &Key) -> Request {
        let mut bytes = vec![0; len];
        // SAFETY: the request keeps the bytes until it is over.
        let request = unsafe {
            let params: ucp_request_param_t = zeroed();
            ucp_get_nbx(self.handle, bytes.as_mut_ptr().cast(), len, remote, key.0, &params)
        };
        self.request(request, bytes)
    }

    /// Changes a word of `len` bytes. If it is to be fetched, the request's memory begins with what it was.
    pub fn change(&self, op: Op, len: usize, value: u64, fetches: bool, remote: u64, key: &Key) -> Request {
        let (number, compare) = match op {
            Op::Add => (UCP_ATOMIC_OP_ADD, 0),
            Op::And => (UCP_ATOMIC_OP_AND, 0),
            Op::Or => (UCP_ATOMIC_OP_OR, 0),
            Op::Xor => (UCP_ATOMIC_OP_XOR, 0),
            Op::Swap => (UCP_ATOMIC_OP_SWAP, 0),
            Op::CompareAndSwap(compare) => (UCP_ATOMIC_OP_CSWAP, compare),
        };
        // UCX takes the value to compare with first, and the one to swap in from where the reply goes.
        let (first, second) = if compare == 0 { (value, 0) } else { (compare, value) };
        let mut words = [second.to_ne_bytes(), first.to_ne_bytes()].concat();
        // SAFETY: the request keeps both words until it is over.
        let request = unsafe {
            let mut params: ucp_request_param_t = zeroed();
            params.op_attr_mask = UCP_OP_ATTR_FIELD_DATATYPE;
            params.datatype = (len as u64) << UCP_DATATYPE_SHIFT;
            if fetches {
                params.op_attr_mask |= UCP_OP_ATTR_FIELD_REPLY_BUFFER;
                params.reply_buffer = words.as_mut_ptr().cast();
            }
            ucp_atomic_op_nbx(self.handle, number, words.as_ptr().add(8).cast(), 1, remote, key.0, &params)
        };
        self.request(request, words)
    }

    /// Reads a key of the peer's memory.
    pub fn unpack(&self, packed: &[u8]) -> Key {
        let mut key = null_mut();
        // SAFETY: a key that UCX has packed.
        unsafe { check(ucp_ep_rkey_unpack(self.handle, packed.as_ptr().cast(), &mut key), "key") };
        Key(key)
    }

    fn request(&self, pointer: ucs_status_ptr_t, buffer: Vec<u8>) -> Request {
        Request { pointer, buffer, worker: Arc::clone(&self.worker) }
    }
}

/// A key of a peer's memory.
pub struct Key(ucp_rkey_h);

impl Drop for Key {
    fn drop(&mut self) {
        // SAFETY: nothing uses it any more.
        unsafe { ucp_rkey_destroy(self.0) };
    }
}

/// Memory that peers may read and write.
pub struct Memory {
    handle: ucp_mem_h,
    context: Arc<Context>,
    address: *mut u8,
    /// The memory, if it is not UCX's.
    _own: Vec<u64>,
}

// SAFETY: peers change it at any time, and it is read as such.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps memory of the heap, or lets UCX take some from the section.
    pub fn new(context: &Arc<Context>, len: usize, in_section: bool) -> Self {
        Self::at(context, len, in_section, 0)
    }

    /// Lets UCX take some from the section, and map it at this address.
    pub fn fixed(context: &Arc<Context>, len: usize, address: usize) -> Self {
        Self::at(context, len, true, address)
    }

    fn at(context: &Arc<Context>, len: usize, in_section: bool, address: usize) -> Self {
        let mut own = vec![0u64; if in_section { 0 } else { len / 8 }];
        let mut handle = null_mut();
        // SAFETY: UCX reads what outlives the calls, and has room for its answers; all zero is a value of its parameters. The
        // memory outlives the handle.
        unsafe {
            let mut params: ucp_mem_map_params_t = zeroed();
            params.field_mask = u64::from(UCP_MEM_MAP_PARAM_FIELD_LENGTH);
            params.length = len;
            if in_section {
                params.field_mask |= u64::from(UCP_MEM_MAP_PARAM_FIELD_FLAGS);
                params.flags = UCP_MEM_MAP_ALLOCATE;
                if address != 0 {
                    params.field_mask |= u64::from(UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
                    params.flags |= UCP_MEM_MAP_FIXED;
                    params.address = ptr::without_provenance_mut(address);
                }
            } else {
                params.field_mask |= u64::from(UCP_MEM_MAP_PARAM_FIELD_ADDRESS);
                params.address = own.as_mut_ptr().cast();
            }
            check(ucp_mem_map(context.0, &params, &mut handle), "memory");
            let mut attributes: ucp_mem_attr_t = zeroed();
            attributes.field_mask = u64::from(UCP_MEM_ATTR_FIELD_ADDRESS);
            check(ucp_mem_query(handle, &mut attributes), "its address");
            let (context, address) = (Arc::clone(context), attributes.address.cast::<u8>());
            // Of the section, it may be somebody's that is gone.
            (0..len).for_each(|at| address.add(at).write_volatile(0));
            Self { handle, context, address, _own: own }
        }
    }

    pub fn address(&self) -> u64 {
        self.address.addr() as u64
    }

    /// The key that peers need.
    pub fn pack(&self) -> Vec<u8> {
        let (mut packed, mut len) = (null_mut(), 0);
        // SAFETY: UCX has room for its answers, and keeps the key until it is released.
        unsafe {
            check(ucp_rkey_pack(self.context.0, self.handle, &mut packed, &mut len), "key");
            let bytes = slice::from_raw_parts(packed.cast::<u8>(), len).to_vec();
            ucp_rkey_buffer_release(packed);
            bytes
        }
    }

    /// Bytes of it, now.
    pub fn read(&self, at: usize, len: usize) -> Vec<u8> {
        // SAFETY: the tests read what is there; peers may write it.
        (at..at + len).map(|at| unsafe { self.address.add(at).read_volatile() }).collect()
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: no peer uses it any more.
        unsafe { ucp_mem_unmap(self.context.0, self.handle) };
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        // SAFETY: nothing uses it any more.
        let request = unsafe {
            let mut params: ucp_request_param_t = zeroed();
            params.op_attr_mask = UCP_OP_ATTR_FIELD_FLAGS;
            params.flags = UCP_EP_CLOSE_FLAG_FORCE;
            ucp_ep_close_nbx(self.handle, &params)
        };
        let request = Request { pointer: request, buffer: Vec::new(), worker: Arc::clone(&self.worker) };
        let _ = request.wait();
    }
}

/// An operation under way, with its memory.
pub struct Request {
    pointer: ucs_status_ptr_t,
    buffer: Vec<u8>,
    worker: Arc<Worker>,
}

impl Request {
    /// The error that it has ended with, `Ok` if it was successful; none if it goes on.
    fn result(&self) -> Option<Result<(), Status>> {
        let number = self.pointer.addr().cast_signed();
        let status = match number {
            -100..=0 => number as Status,
            // SAFETY: a request of UCX's that was not freed.
            _ => unsafe { ucp_request_check_status(self.pointer) }.into(),
        };
        match status {
            0 => Some(Ok(())),
            1 => None,
            error => Some(Err(error)),
        }
    }

    /// Waits for the end; the memory.
    pub fn wait(self) -> Result<Vec<u8>, Status> {
        self.wait_with(|| ())
    }

    /// Waits for the end, while `other` is called again and again.
    pub fn wait_with(mut self, other: impl Fn()) -> Result<Vec<u8>, Status> {
        let end = Instant::now() + PATIENCE;
        let result = loop {
            if let Some(result) = self.result() {
                break result;
            }
            assert!(Instant::now() < end, "an operation does not end");
            self.worker.progress();
            other();
        };
        if self.pointer.addr().cast_signed() > 0 {
            // SAFETY: it is over.
            unsafe { ucp_request_free(self.pointer) };
        }
        self.pointer = ptr::null_mut();
        result.map(|()| std::mem::take(&mut self.buffer))
    }

    /// The first byte of its memory, now.
    pub fn first_byte(&self) -> u8 {
        // SAFETY: there is one; the peer may write it.
        unsafe { self.buffer.as_ptr().read_volatile() }
    }
}

impl Drop for Request {
    fn drop(&mut self) {
        // UCX goes on with what was not waited for.
        if !self.pointer.is_null() {
            std::mem::forget(std::mem::take(&mut self.buffer));
        }
    }
}

/// Makes progress until something holds.
pub fn wait_until(worker: &Worker, what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        worker.progress();
    }
}
