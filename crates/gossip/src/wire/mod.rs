//! The gossipsub RPC: what travels, in which form, within which limits (specs/gossip.md §2).
//!
//! Bytes become types here and nowhere else. [`Reader`] is what a connection's task uses: it walks the fields of a frame without
//! allocating for what was seen before, checks every limit before it takes memory, and takes messages in canonical form only.
//! [`FrameBuilder`] writes frames as lists of pieces, so that a payload is in memory once, whatever the number of peers.
//! [`VerifyJob`] and [`SignJob`] are the two pieces of heavy work, as values: they run wherever the driver wants them to. [`Tables`] make checks
//! of those who write much cheaper.

mod comb;
mod encode;
mod frame;
mod message;
mod pb;
mod rpc;
mod run;
mod sign;
mod tables;

pub use encode::{Frame, FrameBuilder};
pub use frame::{WireError, read_length};
pub(crate) use message::parse_again;
pub use message::{Refused, parse};
pub(crate) use pb::bytes_field_len;
#[cfg(feature = "sim")]
pub(crate) use pb::put_bytes as put_field;
pub use rpc::{Candidate, Control, IHave, Known, Prune, Reader, Received, Subscription};
#[cfg(feature = "sim")]
pub(crate) use sign::to_sign;
pub use sign::{Author, Keys, OwnMessage, SIGN_PREFIX, SignJob, VerifyJob, VerifyOutcome};
pub(crate) use sign::{signed, unsigned};
pub use tables::{Due, Making, Open, Table, Tables};

/// Longest RPC that is read or written, in bytes, without its length prefix: exactly what Kubo takes.
pub const MAX_FRAME_BYTES: usize = 1_048_576;

/// Most messages of one RPC. The shortest signed message has about 120 bytes, so that no honest frame holds more.
pub const MAX_MESSAGES: usize = 10_000;

/// Most ids of one kind (IHAVE, IWANT, IDONTWANT) that are taken of one RPC; Kubo sends up to 5,000. What is above is counted and dropped.
pub const MAX_IDS: usize = 10_000;

/// Most subscriptions that are taken of one RPC. What is above is counted and dropped.
pub const MAX_SUBSCRIPTIONS: usize = 4096;

/// Most GRAFT and PRUNE entries that are taken of one RPC, each. What is above is counted and dropped.
pub const MAX_GRAFTS: usize = 1024;

/// Control of one RPC of ours: rust-libp2p closes the stream above 16,384 bytes of control and subscriptions together.
pub const MAX_CONTROL_BYTES: usize = 14 * 1024;

/// Messages are packed into one frame up to this size; a larger one travels alone.
pub const PACK_BYTES: usize = 64 * 1024;

/// Of [`Subscription`], private: hops to a real subscriber. Kubo and rust-libp2p skip it.
const SUB_DISTANCE: u64 = 100;
/// Of an RPC, private: "are you there" and its answer.
const RPC_PING: u64 = 101;
const RPC_PONG: u64 = 102;

/// The protocol versions that are spoken, in order of preference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    /// `/meshsub/1.0.0`: no back-off in PRUNE.
    V1_0,
    /// `/meshsub/1.1.0`.
    V1_1,
    /// `/meshsub/1.2.0`: IDONTWANT.
    V1_2,
}

impl Version {
    /// All, the preferred first.
    pub const ALL: [Self; 3] = [Self::V1_2, Self::V1_1, Self::V1_0];

    /// Its name in the negotiation.
    #[must_use]
    pub const fn protocol(self) -> &'static str {
        match self {
            Self::V1_0 => "/meshsub/1.0.0",
            Self::V1_1 => "/meshsub/1.1.0",
            Self::V1_2 => "/meshsub/1.2.0",
        }
    }
}
