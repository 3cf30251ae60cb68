//! Everything that has connections or transports: one program, since each of them would contain all of libp2p.
#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod dialer;
mod flood;
mod hostile;
mod liveness;
mod mutations;
mod muxer;
mod reflection;
mod secrets;
mod wall;
mod wire;
