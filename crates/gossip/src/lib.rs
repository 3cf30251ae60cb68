//! Gossipsub 1.2, 1.1 and 1.0 for private swarms: messages that arrive, copies that cost nothing, nodes that never go deaf.
//!
//! - [`wire`]: RPCs, with every limit checked before memory is taken; signatures as pure functions.
//! - [`Seen`]: what was seen, shared with the connections, so that a copy is dropped before it is parsed.
//! - [`Core`]: gossip as a value that is driven; no clock, socket, lock, task or random source.
//!
//! It promises no delivery (an event log does that), encrypts nothing (the swarm does), finds nobody and dials nobody. The wire and its
//! rules are in `specs/gossip.md`.
//!
//! Two cores, joined by hand instead of by a network:
//!
//! ```
//! use std::time::Duration;
//! use bytes::Bytes;
//! use gemba_gossip::wire::{Author, Reader, Version, read_length};
//! use gemba_gossip::{Config, Core, Input, Mode, Output, Seen, Topic};
//! use libp2p_identity::{Keypair, PeerId};
//!
//! struct Node { core: Core, seen: Seen, key: Keypair }
//!
//! impl Node {
//!     fn new(seed: u8) -> Self {
//!         let (config, key) = (Config::default(), Keypair::generate_ed25519());
//!         let seen = Seen::new(config.seen(), [seed; 32]);
//!         let author = Author::new(&key.public());
//!         Self { core: Core::new(config, Some(author), seed.into()), seen, key }
//!     }
//!     fn handle(&mut self, input: Input) {
//!         self.core.handle(&mut self.seen, input, Duration::ZERO);
//!     }
//!     /// What a connection's task does with a frame.
//!     fn receive(&mut self, from: PeerId, bytes: &Bytes) -> Result<(), Box<dyn std::error::Error>> {
//!         let (len, at) = read_length(bytes)?.ok_or("short")?;
//!         let frame = bytes.slice(at..at + len);
//!         let mut reader = Reader::new(self.seen.digester());
//!         reader.scan(&frame)?;
//!         let source = self.seen.join(from);
//!         reader.sight(&mut self.seen, source, Duration::ZERO);
//!         let received = Box::new(reader.finish(&frame));
//!         self.handle(Input::Received { peer: from, received, at: Duration::ZERO });
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let topic = Topic::new("line-1/alarms")?;
//! let mut nodes = [Node::new(1), Node::new(2)];
//! let ids = [nodes[0].key.public().to_peer_id(), nodes[1].key.public().to_peer_id()];
//! for (i, node) in nodes.iter_mut().enumerate() {
//!     node.handle(Input::SequenceLoaded { stored: None, wall_nanos: 1 });
//!     node.handle(Input::Connected { peer: ids[1 - i], outbound: i == 0 });
//!     node.core.subscribe(&mut node.seen, &topic, Duration::ZERO)?;
//! }
//! let wait = Mode::Wait(Duration::from_secs(1));
//! let Node { core, seen, .. } = &mut nodes[0];
//! core.publish(seen, &topic, "pressure low".into(), wait, Duration::ZERO)?;
//!
//! let mut delivered = None;
//! while delivered.is_none() {
//!     for i in [0, 1] {
//!         while let Some(output) = nodes[i].core.poll() {
//!             let peer = ids[1 - i];
//!             match output {
//!                 Output::OpenStream { .. } => nodes[i].handle(Input::StreamOpened { peer, version: Version::V1_2 }),
//!                 Output::Reserve { upto } => nodes[i].handle(Input::SequenceReserved { upto }),
//!                 Output::Sign { publish, job } => {
//!                     let result = job.run(&nodes[i].key);
//!                     nodes[i].handle(Input::Signed { publish, result });
//!                 }
//!                 Output::Verify { ticket, job } => nodes[i].handle(Input::Verified { ticket, outcome: job.run() }),
//!                 Output::Write { frame, .. } => {
//!                     nodes[1 - i].receive(ids[i], &frame.to_bytes())?;
//!                     nodes[i].handle(Input::Written { peer });
//!                 }
//!                 Output::Deliver { message } => delivered = Some(message),
//!                 _ => {}
//!             }
//!         }
//!     }
//! }
//! assert_eq!(delivered.map(|m| m.data), Some(Bytes::from("pressure low")));
//! # Ok(())
//! # }
//! ```

#![cfg_attr(test, allow(clippy::unwrap_used))]

#[cfg(feature = "swarm")]
mod behaviour;
mod config;
mod core;
#[cfg(feature = "swarm")]
mod disk;
mod error;
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "swarm")]
mod handler;
mod hash;
mod message;
mod metrics;
mod seen;
mod sequence;
#[cfg(feature = "sim")]
pub mod sim;
#[cfg(feature = "swarm")]
mod subscription;
#[cfg(feature = "swarm")]
mod verify;
pub mod wire;

#[doc = include_str!("../README.md")]
#[cfg(doctest)]
struct Readme;

pub use crate::core::{
    CloseCause, Core, DegradedCause, Event, Health, Input, Load, Mode, Output, PeerReport,
    PublishId, Receipt, StreamReport, Ticket, Time, Trouble, Verdict,
};
#[cfg(feature = "swarm")]
pub use behaviour::{Behaviour, BehaviourEvent, Validator};
pub use config::{Config, ConfigBuilder, Pattern, RelayPolicy, Signing, TopicOptions};
#[cfg(feature = "swarm")]
pub use disk::{FileReplay, FileSequence};
pub use error::{ConfigError, PublishError, SubscribeError, TopicError, WaitCause};
#[cfg(feature = "swarm")]
#[doc(hidden)]
pub use handler::HandClock;
#[cfg(feature = "sim")]
#[doc(hidden)]
pub use hash::hashed;
pub use message::{MAX_TOPIC_BYTES, Message, MessageId, OWN_PREFIX, RawMessage, Topic};
pub use metrics::Counters;
pub use seen::{
    Class, Digest, Digester, MAX_CLASSES, MAX_TTL, MIN_TTL, Mark, Pressure, Refusal, Seen,
    SeenConfig, SeenCounters, Sight, Source, State,
};
pub use sequence::{AuthorNumber, BLOCK, MemorySequence, ReplayStore, Sequence, SequenceStore};
#[cfg(feature = "swarm")]
pub use subscription::{Buffer, Delivery, Full, Publishing, Subscription};

#[cfg(feature = "serde")]
fn display<T: std::fmt::Display, S: serde::Serializer>(value: &T, s: S) -> Result<S::Ok, S::Error> {
    s.collect_str(value)
}
