//! What goes into replication and what comes out.

use crate::{
    batch::Batch,
    core::reconcile::Tip,
    feed::{FeedId, Seq},
    wire::{Message, Run},
};
use bytes::Bytes;

/// A connected peer, by a number that is given once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Peer(pub u64);

/// A fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Input {
    /// The last batches of a feed in the log, one a branch; durable. Sent for each feed at the start and at each change of ours. Where it is one
    /// batch that was appended here, its bytes may come along, to be pushed.
    Local {
        /// The feed.
        feed: FeedId,
        /// Place behind, and digest.
        tips: Vec<(Seq, [u8; 32])>,
        /// The batch.
        batch: Option<Bytes>,
    },
    /// A peer that speaks `/gemba/log/1`.
    Connected {
        /// The peer.
        peer: Peer,
        /// Whether it is on this side to begin comparisons; exactly one side does.
        begins: bool,
    },
    /// It is gone, and with it what it caused.
    Disconnected(Peer),
    /// It says something. Batches come as [`Input::Batches`] and [`Input::Pushed`].
    Message {
        /// The peer.
        peer: Peer,
        /// What.
        message: Message,
    },
    /// It answers with batches whose form, CID and signature were checked.
    Batches {
        /// The peer.
        peer: Peer,
        /// Of the request.
        id: u64,
        /// The runs.
        runs: Vec<Run<Batch>>,
        /// It has no time now.
        busy_ms: Option<u64>,
    },
    /// Last batches heard over gossip, from whomever; `peer` is the neighbour that may be asked, if it is connected.
    Heard {
        /// The neighbour.
        peer: Option<Peer>,
        /// The last batches.
        tips: Vec<Tip>,
    },
    /// A batch came with its announcement. It was checked.
    Pushed {
        /// The peer.
        peer: Peer,
        /// The batch.
        batch: Batch,
    },
    /// A peer sent what is none of the protocol, or a batch with a bad signature.
    Misbehaved(Peer),
    /// The answer to [`Output::Append`]; at success with the last batches of the feed now.
    Appended {
        /// Its ticket.
        ticket: u64,
        /// How it went.
        result: Result<Vec<(Seq, [u8; 32])>, NotAppended>,
    },
    /// The answer to [`Output::Load`].
    Loaded {
        /// Its ticket.
        ticket: u64,
        /// Batches in order.
        batches: Vec<Bytes>,
        /// There is more on the way to the tip.
        more: bool,
        /// The first event that the log still holds of the feed.
        starts: Seq,
    },
    /// The answer to [`Output::Lookup`]: which of these batches the log does not hold.
    Unknown {
        /// Its ticket.
        ticket: u64,
        /// Them.
        tips: Vec<Tip>,
    },
}

/// Why batches were not appended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NotAppended {
    /// The batch before the first one is not here: it is asked for.
    Gap,
    /// They contradict the form of a feed: whoever sent them is to blame.
    Invalid,
    /// The author has used up what it may store here.
    Quota,
    /// The disk: tried again later.
    Disk,
}

/// What is to be done. Drain after every `handle` and `expire`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Send to a peer.
    Send {
        /// The peer.
        peer: Peer,
        /// What.
        message: Message,
    },
    /// Append batches of one feed, in order. What the log holds already is no error. Forks are kept.
    Append {
        /// For the answer.
        ticket: u64,
        /// Them.
        batches: Vec<Batch>,
        /// Nobody has what was before the first of them any more: the feed begins with it here.
        begins: bool,
    },
    /// Read batches from the one that holds `from` on, on the way to the batch `tip` (or to the longest branch, if that one is unknown).
    Load {
        /// For the answer.
        ticket: u64,
        /// The feed.
        feed: FeedId,
        /// The first event that is needed.
        from: Seq,
        /// Where it leads.
        tip: [u8; 32],
        /// At most so many bytes; one batch comes whatever its size.
        bytes: u64,
    },
    /// Look up which of these batches the log does not hold.
    Lookup {
        /// For the answer.
        ticket: u64,
        /// Them.
        tips: Vec<Tip>,
    },
    /// Say over gossip that these feeds of ours grew.
    Announce(Vec<Tip>),
    /// Something to tell.
    Event(Event),
}

/// What is worth telling; alarms among it.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// Alarm: the author of the feed has written two histories. Both are kept, on all nodes (L5).
    Fork {
        /// The feed.
        feed: FeedId,
        /// How many branches there are now.
        branches: usize,
    },
    /// A comparison ended; both sides know what they lack.
    Compared {
        /// With whom.
        peer: Peer,
        /// Messages it took.
        rounds: u32,
    },
    /// Alarm: events of a feed are gone everywhere it was asked for, by retention.
    Trimmed {
        /// The feed.
        feed: FeedId,
        /// The first that is missing.
        from: Seq,
        /// The first that is there.
        to: Seq,
    },
    /// An author has used up what it may store here.
    Quota {
        /// The feed that was refused.
        feed: FeedId,
    },
    /// A peer did what none does, too often: it is not asked for a while.
    Shunned {
        /// The peer.
        peer: Peer,
    },
}
