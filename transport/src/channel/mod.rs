//! The way from one endpoint to another: ring and acknowledgement, activity line, doorbell, and the connection of them all.

pub mod activity;
pub mod connection;
pub mod doorbell;
pub mod ring;
pub mod traffic;
