//! What is being done to make the desired set true, and nothing else.
//!
//! The tracker holds operations that are in flight: queued, running, or failed and to be tried again. What a root's state is follows from its
//! operation, else from the desired set ([`Status::of`]); no map of states is kept anywhere, so none can go stale. It is driven: commands and facts go
//! in by [`handle`](Tracker::handle), [`poll`](Tracker::poll) says what to do, [`deadline`](Tracker::deadline) when to call
//! [`expire`](Tracker::expire). It reads no set, store or clock and knows no peer: its owner does, and gives each answer with the
//! [`Ticket`] of the operation it was for. An answer for an operation that is no more changes nothing.
//!
//! Whoever has more than one source of wishes (a set shared by many devices, say) answers [`Output::Draw`] from all of them, and tells
//! what one of them adds or takes away by [`Input::Wanted`] and [`Input::Gone`]: the tracker does not ask where a wish is from.
//! [`Source`] is what such an owner reads.

mod config;
mod connector;
mod draw;
mod op;
mod queue;
mod source;
mod status;
mod steps;

pub use config::TrackerConfig;
pub use connector::{Begun, Connector};
pub use op::{Move, OpId, OpKind, Operation, Phase, Ticket};
pub use source::{Source, Union};
pub use status::Status;

use crate::{desired::Kind, walk::Progress};
use cid::Cid;
use draw::Draw;
use queue::{Place, Queue};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Time since the owner began to count.
pub type Time = Duration;

/// A pin that is desired and not whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The root.
    pub cid: Cid,
    /// The pin's id.
    pub id: u64,
    /// How far it reaches.
    pub reach: Kind,
}

/// What keeps a walk that stands still.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outlook {
    /// Everybody who could be asked said no, or there is nobody.
    Denied,
    /// Nobody sends anything.
    Silent,
    /// Bytes arrive, of other blocks.
    Busy,
}

/// A command or a fact.
#[derive(Debug, Clone)]
pub enum Input {
    /// A wish to pin this root was accepted; its record is on its way to the disk. A removal that could not be recorded before is given up.
    Pin(Cid),
    /// It is durable that this is desired, and it is not whole. `recent`: somebody waits for it.
    Wanted {
        /// The pin.
        target: Target,
        /// Whether it goes before the others.
        recent: bool,
    },
    /// It is wanted no longer: what runs for it ends at once, and the removal is to be recorded.
    Unpin(Cid),
    /// Whatever is being done about it ends: a pin is given up as by [`Input::Unpin`], a removal that waits is forgotten.
    Cancel(Cid),
    /// It is not desired any more, by whatever way: nothing is to be done about it.
    Gone(Cid),
    /// How far a walk is.
    Progress(Ticket, Progress),
    /// A walk stands still; why, and for want of what.
    Standing {
        /// The operation.
        ticket: Ticket,
        /// What keeps it.
        outlook: Outlook,
        /// In an operator's words.
        cause: String,
        /// The block.
        lacks: Option<Cid>,
    },
    /// The last block of a walk is durable.
    Whole(Ticket, Progress),
    /// This DAG can never be whole, or not as it is. It is tried again only when somebody asks.
    Refused(Ticket, String),
    /// The try ended.
    Failed {
        /// The operation.
        ticket: Ticket,
        /// Why.
        cause: String,
        /// For want of which block.
        lacks: Option<Cid>,
    },
    /// It could not be begun. With a cause it is told so. Not an attempt.
    NotNow(Ticket, Option<String>),
    /// Nothing can be stored: whatever runs ends and is tried again soon. No attempt.
    Rest(String),
    /// The answer to [`Output::Complete`] and [`Output::Remove`]: durable, or why not.
    Recorded(Ticket, Result<(), String>),
    /// Failed operations of this root, or all of them, are tried now.
    Recover(Option<Cid>),
    /// Circumstances changed: what failed and would be tried again some time is tried now.
    Nudge,
    /// These blocks came by another way: what failed for want of one is tried now.
    Here(Vec<Cid>),
    /// The answer to [`Output::Draw`].
    Drawn {
        /// In the order of their CIDs.
        targets: Vec<Target>,
        /// Whether there are others behind them.
        more: bool,
    },
    /// The desired set could not be read.
    NotDrawn,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    /// Begin a walk.
    Start(Ticket, Target),
    /// End it: session, reads, guards. Its answers are void.
    Stop(Ticket),
    /// Record that the pin is whole.
    Complete(Ticket, u64),
    /// Record that it is wanted no longer.
    Remove(Ticket),
    /// Read pins that are not whole, behind this one, at most so many. In the order of the records that are being written: what was wanted before must be seen.
    Draw(Option<Cid>, usize),
    /// An operation is in another phase.
    Changed(Cid),
    /// An operation is over, and this is the last that is known of it: its phase is done, or what it was when it was given up.
    Ended(Box<Operation>),
}

/// A command that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TrackError {
    /// Caller: nothing is being done about this root.
    #[error("no operation of {0} is under way")]
    NoOperation(Cid),
    /// Caller: its removal is on its way to the disk and cannot be called back.
    #[error("{0} is being unpinned at this moment; pin it again instead")]
    TooLate(Cid),
    /// Environment: as many operations as may be are under way, none of which can give way.
    #[error("{0} operations are under way already; try again when some have ended")]
    Full(usize),
}

/// What was counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Operations that began.
    pub begun: u64,
    /// That came to their end.
    pub done: u64,
    /// That were given up before.
    pub cancelled: u64,
    /// Tries that ended with a cause.
    pub failed: u64,
    /// Operations that gave way to others, and wait in the desired set.
    pub put_back: u64,
    /// Answers for operations that were no more.
    pub late: u64,
}

/// See the module's text.
#[derive(Debug)]
pub struct Tracker {
    config: TrackerConfig,
    ops: BTreeMap<Cid, Entry>,
    queue: Queue,
    /// Failed ones by the time of their next try.
    waits: BTreeSet<(Time, Cid)>,
    /// Walks that run.
    walks: BTreeSet<Cid>,
    draw: Draw,
    /// Nothing is started before.
    held: Option<Time>,
    outputs: VecDeque<Output>,
    next_op: u64,
    counts: Counts,
}

#[derive(Debug)]
struct Entry {
    op: Operation,
    place: Option<Place>,
    /// For a removal that is on its way to the disk: a newer wish follows it there.
    overtaken: bool,
    /// Blocks of this try.
    walked: u64,
    /// It stood still and gave its turn to another.
    yielded: bool,
    outlook: Option<Outlook>,
}

impl Tracker {
    /// A tracker that asks for everything that is not whole.
    pub fn new(config: TrackerConfig) -> Self {
        let mut tracker = Self {
            config,
            ops: BTreeMap::new(),
            queue: Queue::default(),
            waits: BTreeSet::new(),
            walks: BTreeSet::new(),
            draw: Draw::new(),
            held: None,
            outputs: VecDeque::new(),
            next_op: 0,
            counts: Counts::default(),
        };
        tracker.fill(Time::ZERO);
        tracker
    }

    /// Takes a command or a fact.
    ///
    /// # Errors
    /// For commands alone: [`TrackError`].
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), TrackError> {
        let outcome = self.take(input, now);
        self.fill(now);
        outcome
    }

    /// The next thing to do. Drain it after each [`handle`](Self::handle) and [`expire`](Self::expire): at most three outputs an operation.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// The next [`Output::Remove`] alone, before its turn. Whoever writes the record of a wish takes these first: a removal that was asked for before the
    /// wish must get to the disk before it.
    pub fn poll_removal(&mut self) -> Option<Ticket> {
        let is_removal = |output: &Output| matches!(output, Output::Remove(_));
        let at = self.outputs.iter().position(is_removal)?;
        match self.outputs.remove(at)? {
            Output::Remove(ticket) => Some(ticket),
            _ => None,
        }
    }

    /// When to call [`expire`](Self::expire) next.
    pub fn deadline(&self) -> Option<Time> {
        let stalls = self.walks.iter().filter_map(|cid| self.stalls_at(cid));
        // Of interest only to those who wait for their turn.
        let waiting = self.walks.iter().filter(|_| self.queue.len() > 0);
        let yields = waiting.filter_map(|cid| self.next_yield(cid));
        let waits = self.waits.first().map(|(at, _)| *at);
        let waits = waits.filter(|at| *at < Time::MAX);
        let all = [waits, self.held, self.draw.next_round()];
        all.into_iter().flatten().chain(stalls).chain(yields).min()
    }

    /// Ends what stood still for too long, tries again what waited.
    pub fn expire(&mut self, now: Time) {
        let is_due = |cid: &&Cid| self.stalls_at(cid).is_some_and(|at| at <= now);
        let still: Vec<Cid> = self.walks.iter().filter(is_due).copied().collect();
        for cid in still {
            self.on_stalled(cid, now);
        }
        while let Some((at, cid)) = self.waits.first().copied()
            && at <= now
        {
            self.waits.remove(&(at, cid));
            self.enqueue(cid, Move::Retry, now);
        }
        if self.held.is_some_and(|until| until <= now) {
            self.held = None;
        }
        for cid in &self.walks {
            let yields = self.yields_at(cid).is_some_and(|at| at <= now);
            if let Some(entry) = self.ops.get_mut(cid) {
                entry.yielded |= yields;
            }
        }
        self.fill(now);
    }

    /// The operation of a root.
    pub fn operation(&self, cid: &Cid) -> Option<&Operation> {
        self.ops.get(cid).map(|entry| &entry.op)
    }

    /// All operations, in the order of their roots.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.ops.values().map(|entry| &entry.op)
    }

    /// Those behind this one, for lists in pages.
    pub fn operations_after(&self, after: Option<&Cid>) -> impl Iterator<Item = &Operation> {
        use std::ops::Bound;
        let from = after.map_or(Bound::Unbounded, |cid| Bound::Excluded(*cid));
        let range = self.ops.range((from, Bound::Unbounded));
        range.map(|(_, entry)| &entry.op)
    }

    /// Whether nothing is in flight, and nothing that is not whole is left in the desired set, as far as it was told.
    pub fn is_idle(&self) -> bool {
        self.ops.is_empty() && self.draw.is_drained()
    }

    /// How many operations are in memory.
    pub fn len(&self) -> usize {
        self.ops.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.ops.is_empty()
    }

    /// What was counted.
    pub fn counts(&self) -> Counts {
        self.counts
    }
}
