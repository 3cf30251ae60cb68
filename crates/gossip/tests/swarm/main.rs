//! Everything that has connections: one program, since each of them would contain all of libp2p.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

#[path = "../rig/mod.rs"]
mod rig;
#[path = "../side_by_side/mod.rs"]
mod side_by_side;

mod differential;
mod differential_control;
mod driver;
mod interop_stock;
mod raw;
mod swarms;
