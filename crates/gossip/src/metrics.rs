//! What was counted. Every drop that gossip decides has a line here.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// A snapshot of all counters since start.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[cfg_attr(feature = "serde", derive(serde::Serialize))]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// The sums of two.
            #[cfg(feature = "sim")]
            pub(crate) fn plus(&self, other: &Self) -> Self {
                Self { $($name: self.$name + other.$name,)* }
            }

            /// Name and value of each counter, for an exporter.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
                [$((stringify!($name), self.$name),)*].into_iter()
            }
        }
    };
}

counters! {
    /// RPCs of peers with something for the core in them.
    rpcs_in,
    /// Bytes of those.
    bytes_in,
    /// Frames handed to connections.
    frames_out,
    /// Bytes of frames that were written.
    bytes_out,
    /// Messages in frames that were written.
    messages_out,
    /// New messages that came to the core.
    candidates,
    /// Messages that were delivered to subscriptions.
    delivered,
    /// Copies of delivered or relayed messages that were queued for neighbours.
    forwarded,
    /// Messages that were accepted for relay only.
    relayed,
    /// Signatures checked.
    verified,
    /// Of those: good.
    verified_good,
    /// Of those: bad.
    verified_bad,
    /// Of those: signed with a kind of key that this build does not know.
    verified_unknown,
    /// Messages that were not in canonical form.
    refused_form,
    /// Messages that were not signed where they must be, or signed where they must not be.
    refused_signing,
    /// Copies of bad bytes, which no honest peer sends.
    repeated_bad,
    /// Other bytes under an id that was accepted.
    variants,
    /// Messages of topics that are neither subscribed to nor relayed.
    unwanted,
    /// Messages of authors that a topic does not allow.
    refused_author,
    /// Messages whose author's number was used before, or lies too far back.
    replayed,
    /// Messages larger than the topic allows.
    refused_size,
    /// Messages dropped because the queue for verification was full or its sender had its share of it.
    shed,
    /// Messages dropped by the byte budget of the relay.
    shed_relay,
    /// Messages that were older than their deadline before, during or after verification.
    stale,
    /// Queued copies that were older than their deadline before they were written.
    stale_out,
    /// Queued copies dropped because a neighbour's lane was full.
    lane_dropped,
    /// Queued copies dropped because the neighbour has the message already.
    lane_unneeded,
    /// Queued copies dropped because the neighbour's stream or the neighbour was gone.
    lane_lost,
    /// Messages handed to the application for validation.
    validations,
    /// Of those: rejected.
    validated_reject,
    /// Of those: ignored.
    validated_ignore,
    /// Of those: no answer in time.
    validated_late,
    /// Own messages sent.
    published,
    /// Own messages refused.
    publish_refused,
    /// Own messages that found nobody in time.
    publish_expired,
    /// GRAFT received.
    grafts_in,
    /// GRAFT sent.
    grafts_out,
    /// PRUNE received.
    prunes_in,
    /// PRUNE sent.
    prunes_out,
    /// Of the received GRAFT: answered by PRUNE.
    grafts_refused,
    /// Ids in IHAVE received.
    ihave_in,
    /// Ids in IHAVE sent.
    ihave_out,
    /// Ids in IWANT received.
    iwant_in,
    /// Ids in IWANT sent.
    iwant_out,
    /// Messages sent in answer to IWANT.
    iwant_served,
    /// Promises that were not kept in time.
    promises_broken,
    /// Ids in IDONTWANT received.
    idontwant_in,
    /// Ids in IDONTWANT sent.
    idontwant_out,
    /// Control entries above a peer's budget, dropped.
    control_dropped,
    /// Subscriptions above a peer's limit, dropped.
    subscriptions_dropped,
    /// RPCs that could not be decoded; their stream was reset.
    malformed,
    /// RPCs of banned peers, dropped.
    banned_dropped,
    /// Times that a peer was banned.
    bans,
    /// Times that a stream made no progress and was reset.
    stalls,
    /// Streams asked for again after one was lost.
    reopened,
    /// Times that a connection was to be closed because its streams stalled again.
    closed_stalled,
    /// Probes sent.
    probes_out,
    /// Answers to probes received.
    probes_answered,
    /// Times that somebody else was heard to use our key.
    clones,
    /// Own messages said again because their numbers had been used before.
    said_again,
}
