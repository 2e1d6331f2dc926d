//! Base of every command: where things lie, running programs, telling how far they are, tidying up.

pub mod cleanup;
pub mod process;
pub mod progress;
pub mod workspace;
