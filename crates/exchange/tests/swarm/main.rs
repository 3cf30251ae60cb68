//! Everything that has connections: one program, since each of them would contain all of libp2p.
#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod raw;
mod swarms;
