#![doc = include_str!("../README.md")]

mod attach;
mod batch;
mod cbor;
mod config;
pub mod consume;
pub mod core;
mod description;
mod epoch;
mod error;
mod event;
mod fast;
mod feed;
mod format;
#[doc(hidden)]
pub mod fuzz;
mod headers;
mod index;
mod log;
mod open;
mod producers;
mod read;
mod reserve;
mod retain;
#[cfg(feature = "sim")]
pub mod sim;
pub mod skip;
mod state;
pub mod store;
mod stream;
mod transfer;
mod varint;
mod verify;
pub mod wire;
mod writer;

pub use attach::Loaded;
pub use batch::{Batch, BatchError, Draft, FORMAT, MAX_BATCH_BYTES, Sealer, UnverifiedBatch};
pub use bytes::Bytes;
pub use cbor::Malformed;
pub use cid::Cid;
pub use config::{Config, ReadCheck};
pub use description::{ABOUT, Class, DescribeError, Description};
pub use epoch::unused_epoch;
pub use error::{LogError, OpenError};
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
pub use log::{Extent, Head, Log, Stat, StreamInfo};
pub use open::{OpenReport, SegmentGap};
pub use read::{Chunk, Cursor, Merge, Part};
pub use retain::{LowWater, Retained, Retention};
pub use stream::{MAX_LEVEL, MAX_LEVELS, MAX_NAME, NameError, Pattern, StreamName};
pub use transfer::{Exported, Imported, TransferError};
pub use verify::{DamagedPlace, Progress, VerifyReport};
pub use writer::{Appended, Repeated};
