#![doc = include_str!("../README.md")]

mod batch;
mod cbor;
pub mod consume;
pub mod core;
mod event;
mod feed;
mod headers;
#[cfg(feature = "sim")]
pub mod sim;
pub mod skip;
pub mod state;
mod stream;
mod varint;
pub mod wire;

pub use batch::{Batch, BatchError, Draft, FORMAT, MAX_BATCH_BYTES, Sealer, UnverifiedBatch};
pub use bytes::Bytes;
pub use cbor::Malformed;
pub use cid::Cid;
pub use event::{
    Event, EventError, EventList, EventRef, Events, MAX_EVENTS, MAX_EVENTS_BYTES, MAX_PAYLOAD,
    NewEvent,
};
pub use feed::{
    Author, Epoch, EventHash, EventId, FeedId, MAX_NUMBER, MemorySigner, OrderKey, Seq, Signer,
};
pub use headers::{
    Headers, HeadersError, MAX_HEADERS, MAX_LABEL, MAX_USER_PAIRS, Origin, Producer, Trace,
};
pub use stream::{MAX_LEVEL, MAX_LEVELS, MAX_NAME, NameError, Pattern, StreamName};
