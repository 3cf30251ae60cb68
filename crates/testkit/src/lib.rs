//! What gemba's tests stand on: a seeded world in which time, links and disks are values.
//!
//! Never published; a dev-dependency of the other crates. Nothing here reads a clock or a random source: one seed gives one run, bit for bit, and
//! [`sim::Sim::trace_hash`] proves it. A failing run prints the line that repeats it.
//!
//! - [`rng`]: seeded random, `GEMBA_SEED`, [`check!`] (a property over many seeds), the replay line
//! - [`clock`]: monotone time, and a wall clock that may jump by decades
//! - [`net`]: ordered byte streams that stall, slow down, reset at any byte or die silently in one direction; datagrams that are lost, doubled,
//!   reordered
//! - [`sim`]: the loop that drives sans-io nodes over `net`
//! - [`dag`]: folders and DAGs to feed them
//! - [`disk`]: a disk that forgets what was not synced, and fails on demand
//! - [`faults`]: counters that prove a fault was really injected
//! - [`alloc`]: an allocator that counts
//!
//! `GEMBA_SIM=full` runs simulations in full, `half` half of them, `quarter` a quarter; otherwise [`sim_scale`] gives a twentieth.

pub mod alloc;
pub mod clock;
pub mod dag;
pub mod disk;
pub mod faults;
pub mod names;
pub mod net;
pub mod rng;
pub mod sim;

pub use clock::Clock;
pub use dag::{Dag, Tree};
pub use faults::Faults;
pub use net::Net;
pub use rng::{Replay, Rng};

/// How many rounds to run: all of them under `GEMBA_SIM=full`, half of them under `half`, a quarter under `quarter`, else a twentieth, at least one.
pub fn sim_scale(full: usize) -> usize {
    match std::env::var("GEMBA_SIM").as_deref() {
        Ok("full") => full,
        Ok("half") => full.div_ceil(2),
        Ok("quarter") => full.div_ceil(4),
        _ => (full / 20).max(1),
    }
}
