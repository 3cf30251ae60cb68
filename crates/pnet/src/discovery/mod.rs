//! Finding peers on the local network: libp2p's mDNS behind a filter.
//!
//! mDNS names carry no swarm key, packets carry no proof, and the library believes what it hears and remembers it. So its
//! answers pass a bounded table ([`table`]) before anyone dials, it is started anew now and then ([`restart`]), and it is never
//! asked for addresses. [`Discovery`] drives them.

pub mod restart;
pub mod table;

#[cfg(feature = "swarm")]
mod behaviour;

#[cfg(feature = "swarm")]
pub use self::behaviour::{Discovery, DiscoveryConfig, DiscoveryEvent};
