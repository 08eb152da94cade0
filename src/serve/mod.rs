//! Doors.
pub mod udp;
