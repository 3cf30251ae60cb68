#![cfg_attr(feature = "swarm", doc = include_str!("../README.md"))]
#![cfg_attr(
    not(feature = "swarm"),
    doc = "Private swarms: key file, policy and handshake check. See the README."
)]
#![deny(unsafe_code)]

pub mod cipher;
pub mod dialer;
pub mod discovery;
pub mod foreign;
pub mod handshake;
pub mod limits;
pub mod policy;
pub mod wake;
pub mod watch;

#[cfg(feature = "swarm")]
mod config;
mod error;
mod key;
mod keyfile;

#[cfg(feature = "swarm")]
mod awake;
#[cfg(feature = "swarm")]
mod cause;
#[cfg(feature = "swarm")]
mod connect;
#[cfg(feature = "swarm")]
mod crowd;
#[cfg(feature = "swarm")]
mod line;
#[cfg(feature = "swarm")]
mod listener_process;
#[cfg(feature = "swarm")]
mod liveness;
#[cfg(feature = "swarm")]
mod muxer;
#[cfg(feature = "swarm")]
mod stage;
#[cfg(feature = "swarm")]
mod stream;
#[cfg(feature = "swarm")]
mod transport;

pub use error::{PskError, Silence};
pub use foreign::OtherProtocol;
pub use key::{Fingerprint, KEY_LEN, KeyError, MAX_KEY_FILE_LEN, SwarmKey};
pub use keyfile::{KeyFile, KeyFileError, Replace, Written};
pub use limits::{LimitExceeded, LimitKind, Limits};
pub use policy::{KEY_FILE_NAME, Network, Policy, PolicyError, PublicNetwork};

#[cfg(feature = "swarm")]
pub use cause::{BackoffActive, DialCause, IncomingFailure, ListenCause};
#[cfg(feature = "swarm")]
pub use config::TransportConfig;
#[cfg(feature = "swarm")]
pub use crowd::Crowd;
#[cfg(feature = "swarm")]
pub use dialer::{Dialer, DialerConfig, DialerEvent};
#[cfg(feature = "swarm")]
pub use discovery::{Discovery, DiscoveryConfig, DiscoveryEvent};
#[cfg(feature = "swarm")]
pub use line::{Line, Lines, Meter};
#[cfg(feature = "swarm")]
pub use liveness::{Liveness, LivenessConfig, LivenessEvent};
#[cfg(feature = "swarm")]
pub use muxer::ReceiveBudget;
#[cfg(feature = "swarm")]
pub use stage::{Stage, Stages};
#[cfg(feature = "swarm")]
pub use stream::{KeyOutcome, PskStream, Side};
#[cfg(feature = "swarm")]
pub use transport::{BuildError, SetupError, transport, transport_over};

#[doc(hidden)]
pub mod fuzz;
