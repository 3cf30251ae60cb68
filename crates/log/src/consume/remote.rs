//! Workers outside of this process: a portion is taken, worked on, and acknowledged in calls of their own. What they do happens at least once: a
//! crash between the work and its acknowledgement gives the events again, to whoever asks next.

use super::{ConsumeError, Consumer, Delivery, Emitted, LogSink, LogSource, Task};
use crate::{
    core::{
        Time,
        consumer::{Ack, Input, Refused, Token, Work, Worker},
    },
    event::Event,
    feed::{EventHash, EventId, FeedId, Seq},
    store::{StateError, StateStore},
};

/// A portion in the hands of a worker elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// The events, of one feed, in order.
    pub deliveries: Vec<Delivery>,
    /// What is kept of it, to acknowledge with.
    pub receipt: Receipt,
}

/// What is kept of a portion until it is acknowledged: not its events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Receipt {
    /// The lease; over when its time is.
    pub token: Token,
    /// The feed.
    pub feed: FeedId,
    /// Its events.
    seqs: Vec<Seq>,
    /// The hash of the last one.
    hash: Option<EventHash>,
    /// They were refused before and come by themselves.
    is_aside: bool,
}

impl<L: LogSource + LogSink, S: StateStore> Consumer<L, S> {
    /// The next portion for this worker, if there is one now. It is given to nobody else until its lease ends.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn take(&self, worker: Worker, now: Time) -> Result<Option<Taken>, ConsumeError> {
        let Some(grant) = self.claim(worker, now)? else {
            return Ok(None);
        };
        let loaded = self.load(grant, now);
        if let Err(ConsumeError::Log(_)) = &loaded {
            // What cannot be read goes back at once, or its worker would get nothing of any feed until the lease is over.
            self.tell(Input::Leave { worker }, now)?;
        }
        Ok(loaded?.map(Taken::of))
    }

    /// What is behind the events that a worker has in hands, in the same feed and under the same lease, which is renewed. `None` while there is nothing, or
    /// while it has to acknowledge first. It never gets anything else: what it took before stays its own.
    ///
    /// # Errors
    /// [`Refused::Lease`] when the lease is over, [`Refused::Busy`] while a write decides; [`ConsumeError`]. If what is behind cannot be read, it goes on holding
    /// what it holds.
    pub fn read_on(&self, held: &Receipt, now: Time) -> Result<Option<Taken>, ConsumeError> {
        let token = held.token;
        self.renew(token, now)?;
        // Whoever holds something is told of no more than was known when it claimed.
        self.refresh(now)?;
        match self.tell(Input::ReadOn { token }, now) {
            Err(ConsumeError::Refused(Refused::Unfinished)) => return Ok(None),
            told => told?,
        }
        let Some(grant) = self.lock().grant_of(|grant| grant.token == token) else {
            return Ok(None);
        };
        let from = match &grant.work {
            Work::Main { from, .. } => Some(*from),
            Work::Asides(_) => None,
        };
        match self.load(grant, now) {
            Ok(Some(task)) => Ok(Some(Taken::of(task))),
            // The log has another history there now; what was held is void, too.
            Ok(None) => Err(Refused::Lease.into()),
            Err(error) => {
                if let Some(from) = from {
                    self.lock().core.was_given(token, from);
                }
                Err(error)
            }
        }
    }

    /// The event `seq` of a portion is done, and all of the portion before it that were not refused. Durable when it returns.
    ///
    /// # Errors
    /// [`Refused::Lease`] when the lease is over, [`Refused::NotGiven`] for an event of no such portion; [`ConsumeError`].
    pub fn acknowledge(&self, taken: &Receipt, seq: Seq, now: Time) -> Result<(), ConsumeError> {
        let ack = self.ack_of(taken, seq)?;
        let token = taken.token;
        self.tell(Input::Ack { token, ack }, now)
    }

    /// As [`acknowledge`](Self::acknowledge), with work of the caller's own in the same transaction: both become durable, or neither. Whoever keeps
    /// what it did in there has every event's effect once.
    ///
    /// # Errors
    /// As [`acknowledge`](Self::acknowledge); after an error of the store the consumer has to be opened again.
    pub fn acknowledge_with(
        &self,
        taken: &Receipt,
        seq: Seq,
        now: Time,
        work: impl FnOnce(&mut S::Tx<'_>) -> Result<(), StateError>,
    ) -> Result<(), ConsumeError> {
        let ack = self.ack_of(taken, seq)?;
        let mut tx = self.store.begin()?;
        self.check_owner(&mut tx)?;
        work(&mut tx)?;
        let outbox = self.lock().emitted;
        let emitted = Emitted::begin(&mut tx, &self.keys, outbox)?;
        emitted.end(&mut tx, &self.keys)?;
        self.commit(taken.token, ack, tx, emitted, now)
    }

    /// Whether nothing of a portion is left to do, or its lease is over.
    pub fn is_done(&self, taken: &Receipt) -> bool {
        let inner = self.lock();
        let next = inner.core.next_of(taken.token);
        if taken.is_aside {
            return inner.core.asides_of(taken.token).is_empty();
        }
        next.is_none_or(|next| taken.seqs.last().is_none_or(|last| *last < next))
    }

    fn ack_of(&self, taken: &Receipt, seq: Seq) -> Result<Ack, ConsumeError> {
        taken.holds(seq)?;
        if taken.is_aside {
            let inner = self.lock();
            let held = inner.core.asides_of(taken.token).iter().copied();
            return Ok(Ack::Asides(held.filter(|held| *held <= seq).collect()));
        }
        // What follows and was refused waits beside the flow already.
        let next = self.lock().core.behind_refused(taken.token, seq + 1);
        let hash = self.hash_of(taken, next - 1)?;
        Ok(Ack::Through { next, hash })
    }

    /// The event `seq` of a portion is refused, it alone: it comes again later, and in the end becomes a dead letter with this cause.
    ///
    /// # Errors
    /// As [`acknowledge`](Self::acknowledge).
    pub fn refuse_event(
        &self,
        taken: &Receipt,
        seq: Seq,
        cause: String,
        now: Time,
    ) -> Result<(), ConsumeError> {
        taken.holds(seq)?;
        let token = taken.token;
        self.tell(Input::Nack { token, seq, cause }, now)?;
        if taken.is_aside {
            return Ok(());
        }
        // Nothing but refused ones up to here: the feed goes on behind them. What is before it and neither done nor refused stays open.
        let behind = {
            let inner = self.lock();
            let next = inner.core.next_of(token);
            next.map(|next| (next, inner.core.behind_refused(token, next)))
        };
        match behind {
            Some((next, behind)) if behind > next => self.acknowledge(taken, behind - 1, now),
            _ => Ok(()),
        }
    }

    /// A worker is busy with its portion and alive.
    ///
    /// # Errors
    /// [`Refused::Lease`] when the lease is over.
    pub fn renew(&self, token: Token, now: Time) -> Result<(), ConsumeError> {
        self.tell(Input::Renew { token }, now)
    }

    fn hash_of(&self, taken: &Receipt, seq: Seq) -> Result<EventHash, ConsumeError> {
        let hash = match taken.hash {
            Some(hash) if taken.seqs.last() == Some(&seq) => Some(hash),
            _ => self.log.hash(&taken.feed, seq)?,
        };
        Ok(hash.ok_or(Refused::NotGiven { seq })?)
    }
}

impl Taken {
    fn of(task: Task) -> Self {
        let Task {
            token,
            feed,
            events,
            hash,
            is_aside,
        } = task;
        let delivery = |(attempts, event): (u32, Event)| Delivery {
            id: EventId {
                feed: feed.clone(),
                seq: event.seq,
            },
            event,
            attempts,
        };
        let seqs = events.iter().map(|(_, event)| event.seq).collect();
        let deliveries = events.into_iter().map(delivery).collect();
        Self {
            deliveries,
            receipt: Receipt {
                token,
                feed,
                seqs,
                hash,
                is_aside,
            },
        }
    }
}

impl Receipt {
    /// Whether this is its last event.
    pub fn is_last(&self, seq: Seq) -> bool {
        self.seqs.last() == Some(&seq)
    }

    fn holds(&self, seq: Seq) -> Result<(), Refused> {
        match self.seqs.binary_search(&seq) {
            Ok(_) => Ok(()),
            Err(_) => Err(Refused::NotGiven { seq }),
        }
    }
}
