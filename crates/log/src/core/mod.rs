//! Consumers, dead letters and replication as values that are driven: inputs in, outputs out, deadlines between.
//!
//! - [`consumer`]: which event is given to which worker, and what is durable of it
//! - [`dead`]: what was set aside, with cause, origin and attempts
//! - [`reconcile`]: what differs between two sets of feeds, in a few messages
//! - [`replicate`]: from the heads of others to batches in the log, and back

pub mod consumer;
pub mod dead;
#[doc(hidden)]
pub mod fuzz;
pub mod reconcile;
pub mod replicate;

/// Time since start; it only goes forward.
pub type Time = std::time::Duration;
