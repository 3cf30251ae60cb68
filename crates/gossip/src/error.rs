//! What a caller of gossip can do wrong, and what the surroundings may refuse.

use std::time::Duration;

use crate::message::{MAX_TOPIC_BYTES, OWN_PREFIX};

/// Why a text is no topic.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TopicError {
    /// Nothing.
    #[error("a topic has a name: this one is empty")]
    Empty,
    /// Longer than [`MAX_TOPIC_BYTES`].
    #[error(
        "a topic has at most {MAX_TOPIC_BYTES} bytes, this one has {0}: shorten it, or hash it"
    )]
    TooLong(usize),
}

/// Why a topic was not subscribed to or not configured.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SubscribeError {
    /// Unsigned messages are allowed on our own topics only: Kubo drops them.
    #[error(
        "unsigned messages travel on topics below {OWN_PREFIX} only: Kubo drops them elsewhere"
    )]
    UnsignedForeign,
    /// As many topics as [`crate::Config::topics`] allows.
    #[error(
        "{0} topics are subscribed to, more are not allowed: leave one, or raise Config::topics"
    )]
    TooManyTopics(usize),
    /// A time-to-live outside 1 s to 1 h.
    #[error("a message is remembered for 1 s to 1 h, not for {0:?}")]
    SeenTtl(Duration),
    /// More different times-to-live than the cache keeps apart.
    #[error("{0} different times-to-live are in use, more are not kept apart: use one of them")]
    TooManyTtls(usize),
}

/// Why a message was not published, or not yet.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PublishError {
    /// No neighbour subscribes to the topic.
    #[error("no connected peer subscribes to the topic: wait for one, or publish with Mode::Hold")]
    NoPeers,
    /// Every neighbour's lane, or the queue of own messages, is full.
    #[error("{queued_bytes} bytes wait to be sent: publish slower, or with Mode::Wait")]
    Backpressure {
        /// Bytes that wait.
        queued_bytes: usize,
    },
    /// The payload does not fit into an RPC that every peer takes.
    #[error(
        "{len} bytes are too much for one message, at most {max} are taken: publish a link to a block"
    )]
    TooLarge {
        /// Of the payload.
        len: usize,
        /// Of a payload, with this topic.
        max: usize,
    },
    /// The deadline of [`crate::Mode::Wait`] or the time of [`crate::Mode::Hold`] passed.
    #[error("nobody took the message in time: {cause}")]
    Expired {
        /// What was waited for.
        cause: WaitCause,
    },
    /// The node signs nothing: it was made without a key.
    #[error(
        "this node has no key to sign with: give it one, or publish on an unsigned topic below {OWN_PREFIX}"
    )]
    NoKey,
    /// The same content was published on an unsigned topic within the time-to-live.
    #[error(
        "the same content was seen on this unsigned topic before and would be dropped as a copy: add a counter to it"
    )]
    Duplicate,
    /// The signature could not be made.
    #[error("the message could not be signed: {0}")]
    Signing(String),
    /// The driver is gone.
    #[error("gossip has ended")]
    Closed,
}

/// What a message of one's own waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WaitCause {
    /// A subscribed neighbour.
    #[error("no connected peer subscribes to the topic")]
    Peers,
    /// Room in a lane.
    #[error("the peers that subscribe do not read fast enough")]
    Room,
    /// Numbers reserved on disk.
    #[error("no sequence number is reserved on disk; see the log for what the disk said")]
    Sequence,
    /// The signature.
    #[error("the signature was not made in time; the machine is overloaded")]
    Signature,
}

/// Why a configuration contradicts itself.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A slow node could send on what others have forgotten.
    #[error(
        "validation_deadline ({validation:?}) and lane_age ({lane:?}) together may be a quarter of seen_ttl ({ttl:?}) at most, else a slow \
         node sends on what others have forgotten"
    )]
    Hold {
        /// [`crate::Config::validation_deadline`].
        validation: Duration,
        /// [`crate::Config::lane_age`].
        lane: Duration,
        /// [`crate::Config::seen_ttl`].
        ttl: Duration,
    },
    /// A time-to-live outside 1 s to 1 h.
    #[error("seen_ttl is 1 s to 1 h, not {0:?}")]
    SeenTtl(Duration),
    /// The degrees of the mesh are out of order.
    #[error(
        "the mesh needs degree_out < degree_low <= degree <= degree_high, and degree_out <= degree / 2"
    )]
    Degrees,
    /// A limit is too small to work with.
    #[error("{name} is {value}, at least {min} is needed")]
    TooSmall {
        /// Of the field.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The least.
        min: usize,
    },
    /// A limit is larger than others take.
    #[error("{name} is {value}, at most {max} is possible")]
    TooLarge {
        /// Of the field.
        name: &'static str,
        /// Its value.
        value: usize,
        /// The most.
        max: usize,
    },
    /// A time is too short to work with, or longer than a day.
    #[error("{name} is {min:?} to a day, not {value:?}")]
    Time {
        /// Of the field.
        name: &'static str,
        /// Its value.
        value: Duration,
        /// The least.
        min: Duration,
    },
    /// A topic's own settings.
    #[error("topic pattern {pattern:?}: {source}")]
    Topic {
        /// Which.
        pattern: String,
        /// What is wrong.
        #[source]
        source: SubscribeError,
    },
}
