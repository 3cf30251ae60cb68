#![doc = include_str!("../README.md")]

mod config;
mod desired;
mod error;
mod format;
#[doc(hidden)]
pub mod fuzz;
#[doc(hidden)]
pub mod suite;
mod tracker;
mod walk;

pub use cid::Cid;
pub use config::WalkConfig;
pub use desired::{Add, Change, DesiredSet, Edit, Kind, Name, Pin, Size};
pub use error::{MissingCause, NameError, PinError, RecordError, StaleChange, WalkError};
pub use format::{RECORD_VERSION, decode_key, decode_record, encode_key, encode_record};
pub use tracker::{
    Begun, Connector, Counts, Input, Move, OpId, OpKind, Operation, Outlook, Output, Phase, Source,
    Status, Target, Ticket, Time, TrackError, Tracker, TrackerConfig, Union,
};
pub use walk::{Progress, State, Walk};
