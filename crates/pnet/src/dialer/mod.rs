//! Dialing with memory: back-off that keeps its cause, known addresses, and redialing until connected.
//!
//! The mechanisms are values without clock or network ([`backoff`], [`book`], [`redial`], [`spare`]); [`Dialer`] drives them in a swarm.

pub mod backoff;
pub mod book;
pub mod redial;
pub mod spare;

#[cfg(feature = "swarm")]
mod behaviour;
#[cfg(feature = "swarm")]
mod config;

#[cfg(feature = "swarm")]
pub use self::{
    behaviour::{Dialer, DialerEvent, FailedAddress, Target, TargetStatus},
    config::DialerConfig,
};
