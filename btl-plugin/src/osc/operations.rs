//! The functions of a window that we stand before.

use std::ffi::{c_int, c_void};

use super::window::{Below, WINDOWS, Way, Window};
use crate::fabric::FABRIC;
use crate::ompi::{
    self, ompi_datatype_t, ompi_group_t, ompi_op_t, ompi_osc_base_module_t, ompi_request_t, ompi_win_t,
};

const SUCCESS: c_int = ompi::OPAL_SUCCESS as c_int;

/// After so many flushes that found nothing to do, messages are looked for all the same: others may wait for them.
const IDLE: u32 = 32;

/// Puts our functions in place of a module's; the window knows what was there.
///
/// # Safety
/// `module` is that of a window, and nobody uses it yet.
pub unsafe fn replace(module: *mut ompi_osc_base_module_t) {
    // SAFETY: the caller vouches for it.
    let module = unsafe { &mut *module };
    module.osc_free = Some(free);
    module.osc_put = Some(put);
    module.osc_get = Some(get);
    module.osc_accumulate = Some(accumulate);
    module.osc_compare_and_swap = Some(compare_and_swap);
    module.osc_fetch_and_op = Some(fetch_and_op);
    module.osc_get_accumulate = Some(get_accumulate);
    module.osc_rput = Some(rput);
    module.osc_rget = Some(rget);
    module.osc_raccumulate = Some(raccumulate);
    module.osc_rget_accumulate = Some(rget_accumulate);
    module.osc_fence = Some(fence);
    module.osc_start = Some(start);
    module.osc_lock = Some(lock);
    module.osc_unlock = Some(unlock);
    module.osc_lock_all = Some(lock_all);
    module.osc_unlock_all = Some(unlock_all);
    module.osc_flush = Some(flush);
    module.osc_flush_all = Some(flush_all);
    module.osc_flush_local = Some(flush_local);
    module.osc_flush_local_all = Some(flush_local_all);
}

/// Looks a window up, changes what we know of it, and returns the functions below.
#[inline]
fn on<T>(win: *mut ompi_win_t, work: impl FnOnce(&mut Window) -> T) -> Option<(T, Below)> {
    // SAFETY: Open MPI gives one of its windows.
    let module = unsafe { ompi::vmshm_osc_module(win) };
    let mut windows = WINDOWS.lock();
    let window = Window::of(&mut windows, module)?;
    Some((work(window), window.below()))
}

/// Notes that something is under way to a target, and returns the functions below.
fn busy(win: *mut ompi_win_t, target: c_int) -> Option<Below> {
    let mark = |window: &mut Window| {
        if let Some(target) = usize::try_from(target).ok().and_then(|target| window.targets.get_mut(target)) {
            target.is_busy = true;
        }
    };
    on(win, mark).map(|((), below)| below)
}

/// Calls a function below.
macro_rules! below {
    ($below:expr, $function:ident($($argument:expr),* $(,)?)) => {
        // SAFETY: the functions stay until the window is freed, which nobody does while it is used.
        match $below.and_then(|below| unsafe { (*below).$function }) {
            // SAFETY: Open MPI's arguments are handed on to where they would have gone without us.
            Some(function) => unsafe { function($($argument),*) },
            None => ompi::OPAL_ERR_NOT_SUPPORTED,
        }
    };
}

/// How many bytes are accessed, if they lie as they are on both sides, from the first on.
///
/// # Safety
/// The datatypes are Open MPI's.
#[inline]
unsafe fn plain(
    count: c_int,
    datatype: *mut ompi_datatype_t,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
) -> Option<usize> {
    // SAFETY: the caller vouches for them.
    let bytes = unsafe { ompi::vmshm_osc_plain(count, datatype, target_count, target_type) };
    usize::try_from(bytes).ok()
}

unsafe extern "C" fn get(
    origin: *mut c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    // SAFETY: Open MPI gives datatypes.
    let len = unsafe { plain(origin_count, origin_type, target_count, target_type) };
    let Some((way, below)) = on(win, |window| way(window, target, displacement, len)) else {
        return ompi::OPAL_ERR_NOT_SUPPORTED;
    };
    if let (Way::Direct(peer, at), Some(len)) = (way, len) {
        let mut fabric = FABRIC.lock();
        // SAFETY: Open MPI gives room for len bytes.
        let done = fabric.as_mut().map(|fabric| unsafe { fabric.endpoint.get(peer, at, origin.cast(), len) });
        return if matches!(done, Some(Ok(()))) { SUCCESS } else { ompi::OPAL_ERR_UNREACH };
    }
    let code = below!(
        Some(below),
        osc_get(origin, origin_count, origin_type, target, displacement, target_count, target_type, win)
    );
    granted(code, way, below, target, win)
}

unsafe extern "C" fn put(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
) -> c_int {
    let is_open = FABRIC.lock().as_ref().is_some_and(|fabric| fabric.endpoint.region().is_open());
    let mut len = None;
    if is_open {
        // SAFETY: Open MPI gives datatypes.
        len = unsafe { plain(origin_count, origin_type, target_count, target_type) };
    }
    let Some((way, below)) = on(win, |window| way(window, target, displacement, len)) else {
        return ompi::OPAL_ERR_NOT_SUPPORTED;
    };
    if let (Way::Direct(peer, at), Some(len)) = (way, len) {
        let mut fabric = FABRIC.lock();
        // SAFETY: Open MPI gives len bytes.
        let done = fabric
            .as_mut()
            .map(|fabric| unsafe { fabric.endpoint.put(peer, at, origin.cast::<u8>().cast_mut(), len) });
        return if matches!(done, Some(Ok(()))) { SUCCESS } else { ompi::OPAL_ERR_UNREACH };
    }
    let code = below!(
        Some(below),
        osc_put(origin, origin_count, origin_type, target, displacement, target_count, target_type, win)
    );
    granted(code, way, below, target, win)
}

/// How to reach a target; without a length by messages.
#[inline]
fn way(window: &mut Window, target: c_int, displacement: isize, len: Option<usize>) -> Way {
    let number = usize::try_from(target).unwrap_or(usize::MAX);
    match len {
        Some(len) => window.way(number, displacement, len),
        None => {
            if let Some(target) = window.targets.get_mut(number) {
                target.is_busy = true;
            }
            Way::Messages
        }
    }
}

/// After the first access under a lock, which went by messages: waits until it is over. Then the lock is had, and later
/// accesses go in place.
fn granted(code: c_int, way: Way, below: Below, target: c_int, win: *mut ompi_win_t) -> c_int {
    if code != SUCCESS || !matches!(way, Way::Lock) {
        return code;
    }
    let code = below!(Some(below), osc_flush(target, win));
    if code == SUCCESS {
        on(win, |window| {
            if let Some(target) = usize::try_from(target).ok().and_then(|at| window.targets.get_mut(at)) {
                target.is_granted = true;
                target.is_busy = false;
            }
        });
    }
    code
}

unsafe extern "C" fn accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_accumulate(
            origin,
            origin_count,
            origin_type,
            target,
            displacement,
            target_count,
            target_type,
            op,
            win
        )
    )
}

unsafe extern "C" fn compare_and_swap(
    origin: *const c_void,
    compare: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    win: *mut ompi_win_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_compare_and_swap(origin, compare, result, datatype, target, displacement, win)
    )
}

unsafe extern "C" fn fetch_and_op(
    origin: *const c_void,
    result: *mut c_void,
    datatype: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    below!(busy(win, target), osc_fetch_and_op(origin, result, datatype, target, displacement, op, win))
}

unsafe extern "C" fn get_accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    result: *mut c_void,
    result_count: c_int,
    result_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_get_accumulate(
            origin,
            origin_count,
            origin_type,
            result,
            result_count,
            result_type,
            target,
            displacement,
            target_count,
            target_type,
            op,
            win
        )
    )
}

unsafe extern "C" fn rput(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_rput(
            origin,
            origin_count,
            origin_type,
            target,
            displacement,
            target_count,
            target_type,
            win,
            request
        )
    )
}

unsafe extern "C" fn rget(
    origin: *mut c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_rget(
            origin,
            origin_count,
            origin_type,
            target,
            displacement,
            target_count,
            target_type,
            win,
            request
        )
    )
}

unsafe extern "C" fn raccumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_raccumulate(
            origin,
            origin_count,
            origin_type,
            target,
            displacement,
            target_count,
            target_type,
            op,
            win,
            request
        )
    )
}

unsafe extern "C" fn rget_accumulate(
    origin: *const c_void,
    origin_count: c_int,
    origin_type: *mut ompi_datatype_t,
    result: *mut c_void,
    result_count: c_int,
    result_type: *mut ompi_datatype_t,
    target: c_int,
    displacement: isize,
    target_count: c_int,
    target_type: *mut ompi_datatype_t,
    op: *mut ompi_op_t,
    win: *mut ompi_win_t,
    request: *mut *mut ompi_request_t,
) -> c_int {
    below!(
        busy(win, target),
        osc_rget_accumulate(
            origin,
            origin_count,
            origin_type,
            result,
            result_count,
            result_type,
            target,
            displacement,
            target_count,
            target_type,
            op,
            win,
            request
        )
    )
}

/// All that was under way is over; locks are as `locks` says.
fn settle(window: &mut Window, is_open: bool) {
    window.is_fenced = is_open;
    for target in &mut window.targets {
        target.is_busy = false;
    }
}

unsafe extern "C" fn fence(assert: c_int, win: *mut ompi_win_t) -> c_int {
    // Ends with a barrier, before which everyone has what was sent to it.
    let below = on(win, |window| window.is_fenced = false).map(|((), below)| below);
    let code = below!(below, osc_fence(assert, win));
    if code == SUCCESS {
        let is_open = assert.cast_unsigned() & ompi::MPI_MODE_NOSUCCEED == 0;
        on(win, |window| settle(window, is_open));
    }
    code
}

unsafe extern "C" fn start(group: *mut ompi_group_t, assert: c_int, win: *mut ompi_win_t) -> c_int {
    // Whether the targets have posted is known below only.
    let below = on(win, |window| window.is_fenced = false).map(|((), below)| below);
    below!(below, osc_start(group, assert, win))
}

/// Notes that a target is locked or not any more.
fn set_lock(window: &mut Window, target: c_int, is_locked: bool) {
    if let Some(target) = usize::try_from(target).ok().and_then(|target| window.targets.get_mut(target)) {
        target.is_locked = is_locked;
        target.is_granted = false;
        target.is_busy = false;
    }
}

unsafe extern "C" fn lock(kind: c_int, target: c_int, assert: c_int, win: *mut ompi_win_t) -> c_int {
    let below = on(win, |window| window.is_fenced = false).map(|((), below)| below);
    let code = below!(below, osc_lock(kind, target, assert, win));
    if code == SUCCESS {
        on(win, |window| set_lock(window, target, true));
    }
    code
}

unsafe extern "C" fn unlock(target: c_int, win: *mut ompi_win_t) -> c_int {
    let below = on(win, |window| set_lock(window, target, false)).map(|((), below)| below);
    below!(below, osc_unlock(target, win))
}

unsafe extern "C" fn lock_all(assert: c_int, win: *mut ompi_win_t) -> c_int {
    let below = on(win, |window| window.is_fenced = false).map(|((), below)| below);
    let code = below!(below, osc_lock_all(assert, win));
    if code == SUCCESS {
        on(win, |window| window.is_locked = true);
    }
    code
}

unsafe extern "C" fn unlock_all(win: *mut ompi_win_t) -> c_int {
    let below = on(win, |window| {
        window.is_locked = false;
        for target in &mut window.targets {
            target.is_granted = target.is_granted && target.is_locked;
            target.is_busy = false;
        }
    });
    below!(below.map(|((), below)| below), osc_unlock_all(win))
}

/// Whether a flush has nothing to wait for: nothing but accesses in place since the last one.
fn is_settled(window: &mut Window, target: c_int) -> Option<u32> {
    let target = usize::try_from(target).ok().and_then(|target| window.targets.get(target))?;
    (target.is_granted && !target.is_busy).then(|| {
        window.idle = window.idle.wrapping_add(1);
        window.idle
    })
}

/// Now and then, looks for messages.
fn rest(idle: u32) -> c_int {
    if idle.is_multiple_of(IDLE) {
        // SAFETY: no lock of ours is held.
        unsafe { ompi::opal_progress() };
    }
    SUCCESS
}

unsafe extern "C" fn flush(target: c_int, win: *mut ompi_win_t) -> c_int {
    let Some((settled, below)) = on(win, |window| is_settled(window, target)) else {
        return ompi::OPAL_ERR_NOT_SUPPORTED;
    };
    if let Some(idle) = settled {
        return rest(idle);
    }
    let code = below!(Some(below), osc_flush(target, win));
    if code == SUCCESS {
        on(win, |window| {
            if let Some(target) = usize::try_from(target).ok().and_then(|at| window.targets.get_mut(at)) {
                target.is_busy = false;
            }
        });
    }
    code
}

unsafe extern "C" fn flush_local(target: c_int, win: *mut ompi_win_t) -> c_int {
    let Some((settled, below)) = on(win, |window| is_settled(window, target)) else {
        return ompi::OPAL_ERR_NOT_SUPPORTED;
    };
    match settled {
        Some(idle) => rest(idle),
        None => below!(Some(below), osc_flush_local(target, win)),
    }
}

unsafe extern "C" fn flush_all(win: *mut ompi_win_t) -> c_int {
    let below = on(win, |_| ()).map(|((), below)| below);
    let code = below!(below, osc_flush_all(win));
    if code == SUCCESS {
        on(win, |window| settle(window, window.is_fenced));
    }
    code
}

unsafe extern "C" fn flush_local_all(win: *mut ompi_win_t) -> c_int {
    let below = on(win, |_| ()).map(|((), below)| below);
    below!(below, osc_flush_local_all(win))
}

unsafe extern "C" fn free(win: *mut ompi_win_t) -> c_int {
    // SAFETY: Open MPI gives one of its windows.
    let module = unsafe { ompi::vmshm_osc_module(win) };
    let below = on(win, |_| ()).map(|((), below)| below);
    // Ends with a barrier: nobody reads our memory any more.
    let code = below!(below, osc_free(win));
    let window = {
        let mut windows = WINDOWS.lock();
        let at = windows.iter().position(|window| window.is_of(module));
        at.map(|at| windows.swap_remove(at))
    };
    drop(window);
    code
}
