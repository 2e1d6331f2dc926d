//! The state of this process, once it is attached to a region, and what all components share.
//!
//! - `params`: what the user can set, of all components.
//! - `module`: the BTL's module. `lock`: the lock around the instance.
//! - `descriptor`, `completion`: what completes a send, and a get.
//! - `left_groups`: memory of groups that were left.
//! - `other_traffic`: messages that come by other transports.
//! - `instance`: the engine, and what hangs on it.
//! - `sleep`: how this process waits.
//! - `loss`: how the loss of a peer is told.

mod completion;
mod descriptor;
mod instance;
mod left_groups;
mod lock;
pub mod loss;
mod module;
mod other_traffic;
pub mod params;
pub mod sleep;

pub use completion::Completion;
pub use descriptor::{Descriptor, from_endpoint, to_endpoint};
pub use instance::{Engine, Held, INSTANCE, Instance, Posted, at_rest, briefly, is_wanted, quick};
pub use lock::Lock;
pub use module::{MODULE, others_read};
