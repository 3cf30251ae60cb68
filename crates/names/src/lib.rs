#![doc = include_str!("../README.md")]

#[cfg(feature = "swarm")]
mod behaviour;
mod config;
mod core;
pub mod dht;
mod error;
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "swarm")]
mod handler;
mod io;
#[cfg(feature = "kad")]
pub mod kad;
mod name;
mod record;
mod row;
mod wall;
pub mod wire;

pub use self::core::{Change, Core, Counters, Damaged, Inspection, KeyKind, Time};
#[cfg(feature = "swarm")]
pub use behaviour::{Behaviour, BehaviourCounters, BehaviourEvent, Reply};
pub use cid::Cid;
pub use config::Config;
pub use error::{NameError, RecordError, Refused, ResolveError, RowError, SignError};
pub use io::{
    Alarm, Command, Done, Event, Input, Output, Publish, Resolved, Source, Verdict, Version,
};
pub use libp2p_identity::{Keypair, PeerId, PublicKey};
pub use name::Name;
pub use record::{
    Candidate, Content, DEFAULT_LIFETIME, DEFAULT_TTL, MAX_RECORD_BYTES, MAX_SEQUENCE, Meta,
    Record, Unsigned,
};
pub use row::ROW_VERSION;
pub use wall::{NotRfc3339, Wall};
