//! A simulator: nodes that write, replicate and consume, in virtual time, with the code that real nodes run.
//!
//! Messages are encoded and decoded as on the wire, batches are signed and verified. Messages are lost, doubled and overtake each other, links are
//! slow and are cut, nodes and consumers die at any operation of their store or log and come back. The log of a node is a model in
//! memory ([`MemoryLog`]): what it acknowledged it keeps. Disks that forget are another test's business.
//!
//! One seed is one run. While it runs, each handler checks that it is given every event once and in order; at the end
//! [`World::disagreements`] says what differs between nodes.

mod fuse;
mod log;
mod rng;
mod world;

pub use fuse::{Fuse, FusedLog, FusedStore};
pub use log::MemoryLog;
pub use rng::Rng;
pub use world::{Fault, Links, Plan, Report, World};
