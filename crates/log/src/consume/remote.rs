//! Workers outside of this process: a portion is taken, worked on, and acknowledged in calls of their own. What they do happens at least once: a
//! crash between the work and its acknowledgement gives the events again, to whoever asks next.

use super::{ConsumeError, Consumer, Delivery, Emitted, LogSink, LogSource, Task};
use crate::{
    core::{
        Time,
        consumer::{Ack, Input, Refused, Token, Worker},
    },
    event::Event,
    feed::{EventHash, EventId, FeedId, Seq},
    store::{StateError, StateStore},
};

/// A portion in the hands of a worker elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Taken {
    /// To acknowledge with; over when its lease is.
    pub token: Token,
    /// The events, of one feed, in order.
    pub deliveries: Vec<Delivery>,
    /// The feed.
    pub feed: FeedId,
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
        let Some(task) = self.load(grant, now)? else {
            return Ok(None);
        };
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
        Ok(Some(Taken {
            token,
            deliveries: events.into_iter().map(delivery).collect(),
            feed,
            hash,
            is_aside,
        }))
    }

    /// The event `seq` of a portion is done, and all of the portion before it that were not refused. Durable when it returns.
    ///
    /// # Errors
    /// [`Refused::Lease`] when the lease is over, [`Refused::NotGiven`] for an event of no such portion; [`ConsumeError`].
    pub fn acknowledge(&self, taken: &Taken, seq: Seq, now: Time) -> Result<(), ConsumeError> {
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
        taken: &Taken,
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

    fn ack_of(&self, taken: &Taken, seq: Seq) -> Result<Ack, ConsumeError> {
        taken.holds(seq)?;
        if taken.is_aside {
            return Ok(Ack::Asides(vec![seq]));
        }
        let hash = self.hash_of(taken, seq)?;
        Ok(Ack::Through {
            next: seq + 1,
            hash,
        })
    }

    /// The event `seq` of a portion is refused, it alone: it comes again later, and in the end becomes a dead letter with this cause.
    ///
    /// # Errors
    /// As [`acknowledge`](Self::acknowledge).
    pub fn refuse_event(
        &self,
        taken: &Taken,
        seq: Seq,
        cause: String,
        now: Time,
    ) -> Result<(), ConsumeError> {
        taken.holds(seq)?;
        let token = taken.token;
        self.tell(Input::Nack { token, seq, cause }, now)?;
        let is_last = taken
            .deliveries
            .last()
            .is_some_and(|last| last.id.seq == seq);
        // With the last one of the portion nothing of it is left to do.
        if is_last && !taken.is_aside {
            return self.acknowledge(taken, seq, now);
        }
        Ok(())
    }

    /// A worker is busy with its portion and alive.
    ///
    /// # Errors
    /// [`Refused::Lease`] when the lease is over.
    pub fn renew(&self, token: Token, now: Time) -> Result<(), ConsumeError> {
        self.tell(Input::Renew { token }, now)
    }

    fn hash_of(&self, taken: &Taken, seq: Seq) -> Result<EventHash, ConsumeError> {
        let is_last = taken
            .deliveries
            .last()
            .is_some_and(|last| last.id.seq == seq);
        let hash = match taken.hash {
            Some(hash) if is_last => Some(hash),
            _ => self.log.hash(&taken.feed, seq)?,
        };
        Ok(hash.ok_or(Refused::NotGiven { seq })?)
    }
}

impl Taken {
    fn holds(&self, seq: Seq) -> Result<(), Refused> {
        let holds = self
            .deliveries
            .iter()
            .any(|delivery| delivery.id.seq == seq);
        if holds {
            Ok(())
        } else {
            Err(Refused::NotGiven { seq })
        }
    }
}
