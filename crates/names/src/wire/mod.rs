//! The two small protocols that carry records from peer to peer: ours, and Kubo's fetch.

pub mod fetch;
mod push;

pub use push::{Interest, MAX_MESSAGE_BYTES, Message, PROTOCOL};
