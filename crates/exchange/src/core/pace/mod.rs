//! Bytes a second on a line: what a budget leaves, and whose turn it is to send.

mod bucket;
#[cfg(any(feature = "swarm", test))]
mod turns;

pub(crate) use bucket::Bucket;
#[cfg(feature = "swarm")]
pub(crate) use turns::{Grant, Turns};
