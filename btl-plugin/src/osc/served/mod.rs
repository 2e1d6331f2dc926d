//! Served windows: everyone writes its own memory only, and does so for others when they ask.
//!
//! ```text
//!     origin                                             target
//!     put, accumulate, lock ... ──── a request ────────► when it looks for messages: does so,
//!     flush: looks whether all ◄──── its words ───────── and says how many it has done
//!     get ◄───────────────────────── its memory, or where that is not in its section, a request too
//! ```
//!
//! A request travels as a message of the transport with a tag of its own. There are no answers: a process has a block of
//! words in its section for each other one, which that one reads. Nobody writes what another one owns, so that this works in
//! closed regions.
//!
//! Of a dynamic window, only the target knows which addresses may be accessed: it looks when it is asked, and counts what it
//! has refused. The origin hears of that when it next waits for the target.
//!
//! - `block`: a process's words for another one. `request`: what is asked for. `locks`, `attached`: of one process's memory.
//! - `window`: a served window, and what there is between its processes.
//! - `origin`: requests are sent, and their end is waited for; `target`: they are done.
//! - `access`, `epochs`: what Open MPI asks for, by these.
//! - `create`: new windows.

mod access;
mod attached;
mod block;
mod create;
mod epochs;
mod locks;
mod origin;
mod request;
mod target;
mod window;

pub use create::create;
pub use request::TAG;
pub use target::accept;
