//! How many connections: presets, counting, and the libp2p driver.

#[cfg(feature = "swarm")]
mod behaviour;
mod count;
mod turned_away;

#[cfg(feature = "swarm")]
pub use self::behaviour::Behaviour;
pub use self::count::{Count, LimitExceeded, LimitKind, Limits};
