//! What goes into a consumer and what comes out.

use crate::{
    core::Time,
    feed::{EventHash, FeedId, Seq},
};
use std::time::Duration;

/// A worker, named by whoever drives it; one call at a time each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Worker(pub u64);

/// Proof of a lease; never given twice by one value of [`Consumer`](super::Consumer).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// A fact or a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The log holds the events `first..next` of a feed. Feeds of other streams are passed over.
    Head {
        /// The feed.
        feed: FeedId,
        /// The first event that is still there.
        first: Seq,
        /// One behind the last.
        next: Seq,
    },
    /// All feeds that the log holds at the start were told.
    Listed,
    /// The log holds another history of this feed than before (a fork was settled): offsets are checked anew.
    Changed(FeedId),
    /// The answer to [`Output::Check`]: the hash of each event, if the log holds it.
    Hashes {
        /// The feed.
        feed: FeedId,
        /// Number and hash.
        found: Vec<(Seq, Option<EventHash>)>,
    },
    /// The answer to [`Output::Persist`].
    Persisted {
        /// Its ticket.
        ticket: u64,
        /// Why it is not durable; the consumer stops then, since nobody knows what is on the disk.
        result: Result<(), String>,
    },
    /// The answer to [`Output::Bury`]: the hash of the event whose letter is durable.
    Buried {
        /// Its ticket.
        ticket: u64,
        /// Why it is not; it is tried again after a pause.
        result: Result<EventHash, String>,
    },
    /// A worker wants work. It gets one [`Output::Grant`], now or later.
    Claim {
        /// The worker.
        worker: Worker,
    },
    /// A worker wants what is behind the events that it has under its lease, before it acknowledges them. It gets one [`Output::Grant`] under the same token, now,
    /// or is refused: nothing of another lease is ever given for it.
    ReadOn {
        /// Its lease.
        token: Token,
    },
    /// A worker ends in order: what it did not acknowledge goes to others, and no failure is counted.
    Leave {
        /// The worker.
        worker: Worker,
    },
    /// A worker is busy and alive.
    Renew {
        /// Its lease.
        token: Token,
    },
    /// Work is done. It is durable with the [`Output::Persist`] that follows.
    Ack {
        /// Its lease.
        token: Token,
        /// What is done.
        ack: Ack,
    },
    /// An event was refused.
    Nack {
        /// The lease.
        token: Token,
        /// The event.
        seq: Seq,
        /// Why, for the dead letter; cut to [`MAX_CAUSE_BYTES`](crate::core::dead::MAX_CAUSE_BYTES).
        cause: String,
    },
    /// Go on at `to`. Leases of the feed end. Events that were set aside stay if they lie before.
    Seek {
        /// The feed.
        feed: FeedId,
        /// The next event.
        to: Seq,
        /// Hash of the event before it; none at 0, or where the log no longer holds it.
        hash: Option<EventHash>,
    },
    /// Try an event of a dead letter again, beside the others.
    Retry {
        /// The feed.
        feed: FeedId,
        /// The event.
        seq: Seq,
    },
    /// Somebody holds this generation of the consumer. A higher one than ours ends us.
    Generation(u64),
    /// The consumer is to be forgotten: it gives and writes nothing any more.
    Forget {
        /// Also while workers hold events; their leases are over then.
        held: bool,
    },
}

/// What is done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ack {
    /// All events of the feed before `next`, but for those that were refused.
    Through {
        /// The first that is not done.
        next: Seq,
        /// Hash of the event before it.
        hash: EventHash,
    },
    /// These of a grant of events that were set aside; the others of it were refused before.
    Asides(Vec<Seq>),
}

/// What is to be done. Drain after every `handle` and `expire`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Look up the hashes of these events.
    Check {
        /// The feed.
        feed: FeedId,
        /// Their numbers.
        seqs: Vec<Seq>,
    },
    /// Make this row durable under the feed: with `token` in the transaction that holds what the worker did, else alone.
    Persist {
        /// For the answer.
        ticket: u64,
        /// The lease whose work goes with it.
        token: Option<Token>,
        /// The feed.
        feed: FeedId,
        /// The bytes, see specs/log-replication.md §2.
        row: Vec<u8>,
    },
    /// Work for a worker.
    Grant(Grant),
    /// Write a dead letter for this event, durably.
    Bury {
        /// For the answer.
        ticket: u64,
        /// The feed.
        feed: FeedId,
        /// The event.
        seq: Seq,
        /// How often it was tried.
        attempts: u32,
        /// For how long.
        held: Duration,
        /// Why it failed last.
        cause: String,
    },
    /// Something to tell.
    Event(Event),
}

/// Work: events of one feed, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    /// For whom.
    pub worker: Worker,
    /// To acknowledge with.
    pub token: Token,
    /// The feed.
    pub feed: FeedId,
    /// Which events.
    pub work: Work,
    /// Until when the worker must have said something.
    pub until: Time,
}

/// Which events of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Work {
    /// The next ones; the worker may claim more of them before it acknowledges.
    Main {
        /// The first.
        from: Seq,
        /// How many at most.
        most: u32,
        /// How often the first failed so far.
        attempts: u32,
    },
    /// Some that were refused before: number, and how often.
    Asides(Vec<(Seq, u32)>),
}

/// What is worth telling; alarms among it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// All before `next` is done, durably.
    Acked {
        /// The feed.
        feed: FeedId,
        /// The first that is not.
        next: Seq,
    },
    /// An event that was refused before is done, durably.
    Settled {
        /// The feed.
        feed: FeedId,
        /// The event.
        seq: Seq,
        /// Whether it had been a dead letter.
        letter: bool,
    },
    /// The consumer is where it was told to be, durably.
    Sought {
        /// The feed.
        feed: FeedId,
        /// The next event.
        to: Seq,
    },
    /// An event became a dead letter, and the flow goes on.
    Dead {
        /// The feed.
        feed: FeedId,
        /// The event.
        seq: Seq,
    },
    /// A worker was gone in the middle of its work: the process died, or its lease ran out.
    Lost {
        /// The feed.
        feed: FeedId,
        /// How many events are given at once from here on; after 1 the failures of the event count.
        window: u32,
        /// How often the next event failed so.
        attempts: u32,
    },
    /// Alarm: the log holds another history than the one that was consumed. What lies between was consumed in a form that is no longer there.
    Rewound {
        /// The feed.
        feed: FeedId,
        /// Where the consumer was.
        from: Seq,
        /// Where it goes on: the last place that both histories have.
        to: Seq,
    },
    /// Alarm: the log is shorter than what was consumed, as after a restore. The feed waits until the log holds it again.
    Ahead {
        /// The feed.
        feed: FeedId,
        /// Where the consumer is.
        next: Seq,
        /// Where the log ends.
        log: Seq,
    },
    /// Alarm: events went by retention before they were consumed.
    Missed {
        /// The feed.
        feed: FeedId,
        /// The first that is missing.
        from: Seq,
        /// The first that is there.
        to: Seq,
    },
    /// Alarm: the row of the feed cannot be read. The feed waits until it is sought.
    Damaged {
        /// The feed.
        feed: FeedId,
        /// What is wrong.
        cause: String,
    },
    /// The consumer was taken over by the holder of this generation.
    Fenced {
        /// That generation.
        generation: u64,
    },
    /// There are more feeds than `max_feeds`.
    TooMany {
        /// One that is not read.
        feed: FeedId,
    },
}

/// A command that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// The lease ran out or ended; what was done under it must not become durable.
    #[error(
        "the lease is over: roll back, and claim again; renew it while work takes longer than the lease"
    )]
    Lease,
    /// Workers hold events of a consumer that is to be forgotten: not all of them are acknowledged.
    #[error("{workers} of its workers hold events: stop them, or wait until their leases are over")]
    Held {
        /// How many do.
        workers: usize,
    },
    /// The consumer was forgotten.
    #[error("the consumer was forgotten: nothing is kept of it any more")]
    Forgotten,
    /// Another holds a newer generation.
    #[error(
        "generation {theirs} of this consumer runs elsewhere, this one is {ours}: take it over explicitly, or stop this one"
    )]
    Fenced {
        /// Ours.
        ours: u64,
        /// Theirs.
        theirs: u64,
    },
    /// An acknowledgement beyond what was given, or an event that is not the lease's.
    #[error("event {seq} was not given under this lease")]
    NotGiven {
        /// The event.
        seq: Seq,
    },
    /// An answer of the same feed is still awaited.
    #[error("a write of this feed is under way: wait for its end")]
    Busy,
    /// A worker claims more while it holds work, and there is no more to read.
    #[error("acknowledge or refuse what was given, or leave, before more is claimed")]
    Unfinished,
    /// With strict order an event is refused when all before it are acknowledged.
    #[error("acknowledge the events before {seq} first")]
    NotNext {
        /// The event.
        seq: Seq,
    },
    /// No such feed.
    #[error("the consumer does not read this feed")]
    Unknown,
    /// Beyond a bound.
    #[error("{what}: the limit is {limit}")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How many may be.
        limit: usize,
    },
    /// A write failed.
    #[error("the consumer stopped: {0}; open it again")]
    Broken(String),
}
