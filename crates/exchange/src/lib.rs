//! Bitswap 1.2, 1.1 and 1.0: the client that fetches blocks from several peers at once and the server that hands them
//! out, both bounded, both able to say why something takes time.
//!
//! - [`wire`]: messages, with every limit checked before memory is taken.
//! - [`Core`]: the exchange as a value that is driven; no clock, socket, task or random source.
//! - [`Behaviour`] (feature `swarm`): the driver for a libp2p swarm; [`SiteCarrier`] beside it, if devices of a site share what they fetch.
//!
//! It stores nothing (the owner answers [`Event::Load`] and takes [`Event::Found`]), walks no DAG (the owner wants
//! block after block), looks for no providers and dials nobody. The wire and its rules are in `specs/exchange.md`.
//!
//! Two cores, joined by hand instead of by a network:
//!
//! ```
//! use std::time::Duration;
//! use gemba_block::Block;
//! use gemba_exchange::{Config, Core, Input, Lane, Output, SessionOptions};
//! use libp2p_identity::PeerId;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let now = Duration::ZERO;
//! let block = Block::raw(&b"torque: 12 Nm"[..])?;
//! let (alice, bob) = (PeerId::random(), PeerId::random());
//! let mut at_alice = Core::new(&Config::default());
//! let mut at_bob = Core::new(&Config::default());
//! at_alice.handle(Input::Connected { peer: bob, lan: true }, now);
//! at_bob.handle(Input::Connected { peer: alice, lan: true }, now);
//!
//! let session = at_alice.open_session(SessionOptions::default())?;
//! at_alice.want(session, [*block.cid()], now)?;
//!
//! let mut found = None;
//! while found.is_none() {
//!     while let Some(output) = at_alice.poll(now) {
//!         match output {
//!             Output::Send { message, lane: Lane::Request, .. } => {
//!                 at_bob.handle(Input::Received { peer: alice, message }, now);
//!                 at_alice.handle(Input::RequestSent { peer: bob, bytes: 0 }, now);
//!             }
//!             Output::Found { block, .. } => found = Some(block),
//!             _ => {}
//!         }
//!     }
//!     while let Some(output) = at_bob.poll(now) {
//!         match output {
//!             // The owner looks into its store.
//!             Output::Load { id, .. } => at_bob.loaded(id, Some(block.data().clone())),
//!             Output::Send { message, lane: Lane::Response, .. } => {
//!                 at_alice.handle(Input::Received { peer: bob, message }, now);
//!             }
//!             _ => {}
//!         }
//!     }
//! }
//! assert_eq!(found, Some(block));
//! # Ok(())
//! # }
//! ```

#[cfg(feature = "swarm")]
mod behaviour;
#[cfg(feature = "swarm")]
mod carrier;
mod config;
mod core;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod generated;
#[cfg(feature = "swarm")]
mod handler;
mod metrics;
pub mod wire;

#[doc = include_str!("../README.md")]
#[cfg(all(doctest, feature = "swarm"))]
struct Readme;

pub use crate::core::{
    Answer, AskPolicy, AskTest, Asked, Core, Input, Lane, Load, LoadId, LoadKind, Loaded, Output,
    PeerLedger, SessionId, SessionOptions, SiteFact, SpareStream, Time, WaitingFor, Why,
};
#[cfg(feature = "swarm")]
pub use behaviour::{Behaviour, Event};
#[cfg(feature = "swarm")]
pub use carrier::{SiteCarrier, SiteEvent};
pub use config::{Config, LEAST_RATE, Line, LineBudget, SiteConfig};
pub use error::{TooManySessions, WantError};
#[cfg(feature = "swarm")]
pub use handler::{Carried, Meter, Worker};
pub use metrics::Counters;

#[cfg(feature = "serde")]
fn display<T: std::fmt::Display, S: serde::Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}

#[cfg(feature = "serde")]
fn display_some<T: std::fmt::Display, S: serde::Serializer>(
    value: &Option<T>,
    s: S,
) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => s.collect_str(value),
        None => s.serialize_none(),
    }
}

#[cfg(feature = "serde")]
fn display_all<T: std::fmt::Display, S: serde::Serializer>(
    values: &[T],
    s: S,
) -> Result<S::Ok, S::Error> {
    s.collect_seq(values.iter().map(ToString::to_string))
}
