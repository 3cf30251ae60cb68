//! The one writer: a group of appends is planned, signed, written and flushed at once, and only then shown (specs/log.md §5).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use cid::Cid;
use gemba_segment::{FILE_HEADER, Frame, Mode, WriteError, Writer};

use crate::batch::{Batch, Draft, Sealer, cid_of};
use crate::epoch::{is_drawn, unused_epoch};
use crate::error::LogError;
use crate::event::EventList;
use crate::feed::{Epoch, FeedId, FeedKey, MAX_NUMBER, Seq};
use crate::format::{
    BATCH, DOUBT, MAX_SEGMENT, NAMES, PAGE, SPANS, STATE, TRAILER, Tag, Trailer, identity,
    put_doubt,
};
use crate::index::{Index, Paged, Resident, Segment, frame_bytes};
use crate::log::Log;
use crate::producers::{Known, Numbers, ProducerKey};
use crate::read::Found;
use crate::reserve::Reserve;
use crate::state::{Closed, State, Tip, branch_key};
use crate::stream::StreamName;

/// Batches after which a segment is full, however few bytes they have: what its index costs in memory until then, 4 MiB.
const SEGMENT_BATCHES: u32 = 64 << 10;
/// What is around the events of a batch on disk, at most.
const AROUND: usize = 4096;

/// What a caller brings to a group.
#[derive(Debug)]
pub(crate) enum Op {
    /// Events of our own.
    Own(StreamName, EventList),
    /// A batch of another author, or of ours that others kept; the second says whether a feed may begin in its middle.
    Replica(Box<Batch>, bool),
}

/// What became of an append.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Appended {
    /// The feed that the events stand in.
    pub feed: FeedId,
    /// Place of the first event; the others follow, but for those that are [repeated](Self::repeated).
    pub first_seq: Seq,
    /// The batch that holds the first event. `None` only where that is a repeated one whose batch was removed.
    pub cid: Option<Cid>,
    /// Events that had been appended before, under the same number of the same producer: where they stand.
    pub repeated: Vec<Repeated>,
    /// Everything was here before: nothing was written.
    pub present: bool,
}

/// An event that had been appended before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repeated {
    /// Which of the events of the call, from 0.
    pub index: u32,
    /// Epoch of the feed it stands in.
    pub epoch: Epoch,
    /// Its place there.
    pub seq: Seq,
}

impl Appended {
    /// Epoch and place of the event that was at this index of the call.
    #[must_use]
    pub fn place(&self, index: u32) -> (Epoch, Seq) {
        let before = self.repeated.iter().filter(|one| one.index < index).count() as u64;
        match self.repeated.iter().find(|one| one.index == index) {
            Some(one) => (one.epoch, one.seq),
            None => (self.feed.epoch, self.first_seq + u64::from(index) - before),
        }
    }
}

/// What the writer keeps from group to group.
pub(crate) struct Pen {
    pub(crate) active: Option<(u32, Writer)>,
    pub(crate) last_number: u32,
    /// A write failed: what is left of it behind this offset of that segment is cut off before the next one.
    pub(crate) doubt: Option<(u32, u64)>,
    /// The end of own feeds is in doubt, and that is not written down in a segment yet.
    pub(crate) note: bool,
    /// A file says so until then.
    pub(crate) marker: bool,
    pub(crate) reserve: Reserve,
    pub(crate) is_full: bool,
    pub(crate) sealer: Sealer,
}

impl std::fmt::Debug for Pen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let active = self.active.as_ref().map(|(number, _)| number);
        f.debug_struct("Pen")
            .field("active", &active)
            .finish_non_exhaustive()
    }
}

/// What a group will write, in the order of the file.
enum Effect {
    /// A batch; with its feed if that is new.
    Batch {
        tag: Tag,
        len: u32,
        new: Option<Box<Tip>>,
    },
    /// Own feeds are closed, and none of an epoch below this one is begun.
    Close(Closed, u64),
}

/// Events of one stream that become a batch.
struct Pending {
    stream: StreamName,
    list: EventList,
    first: Seq,
    digest: [u8; 32],
}

/// What is known of an append before its group is written.
enum Answer {
    Now(Result<Appended, LogError>),
    /// Holds if the group is written.
    Then(Appended),
    /// As `Then`; the CID is that of a batch that is not signed yet.
    Batch(Appended, usize),
}

/// What a group will do, on top of the state.
struct Plan<'a> {
    log: &'a Log,
    state: &'a State,
    sealer: &'a mut Sealer,
    tips: BTreeMap<FeedKey, Tip>,
    /// Which of them are new.
    fresh: BTreeSet<FeedKey>,
    own: BTreeMap<StreamName, FeedKey>,
    producers: BTreeMap<ProducerKey, Numbers>,
    clock: u64,
    pendings: Vec<Pending>,
    open: BTreeMap<StreamName, usize>,
    frames: Vec<Frame<Bytes>>,
    effects: Vec<Effect>,
    /// Bytes of the frames, and an estimate of those to come.
    bytes: u64,
    /// Own feeds that were closed in this group.
    closed: Closed,
    least_epoch: u64,
}

impl Log {
    /// Carries out a group: one result for each operation of each caller.
    pub(crate) fn flush(&self, groups: Vec<Vec<Op>>) -> Vec<Vec<Result<Appended, LogError>>> {
        let mut pen = self.pen();
        let refused = self.refusal().or_else(|| {
            let error = pen.settle(self).err()?;
            self.set_failing(Some(error.clone()));
            Some(error)
        });
        if let Some(error) = refused {
            let refuse = |group: &Vec<Op>| group.iter().map(|_| Err(error.clone())).collect();
            return groups.iter().map(refuse).collect();
        }
        let fast = self.ring().take();
        let fast_events: u64 = fast.iter().map(|(_, list)| list.len() as u64).sum();
        let state = self.state();
        let mut sealer = std::mem::take(&mut pen.sealer);
        let mut plan = Plan::new(self, &state, &mut sealer);
        if pen.note {
            plan.close(Closed::All);
        }
        let mut answers: Vec<Vec<Answer>> = Vec::with_capacity(groups.len());
        for group in groups {
            answers.push(group.into_iter().map(|op| plan.take(op)).collect());
        }
        let lost = fast.into_iter().map(|(stream, list)| {
            let events = list.len() as u64;
            match plan.append(stream, list) {
                Answer::Now(Err(_)) => events,
                _ => 0,
            }
        });
        let mut lost: u64 = lost.sum();
        plan.seal_all();
        let Plan {
            frames,
            effects,
            pendings,
            producers,
            clock,
            ..
        } = plan;
        drop(state);
        pen.sealer = sealer;
        let written = if frames.is_empty() {
            Ok(())
        } else {
            let written = pen.write(self, &frames);
            self.set_failing(written.as_ref().err().cloned());
            written.map(|(segment, offsets)| {
                pen.noted(self);
                self.show(segment, &offsets, effects, producers, clock);
                self.has_changed();
            })
        };
        if written.is_err() {
            lost = fast_events;
        }
        if lost > 0 {
            self.ring().lose(lost);
        }
        let finish = |answer| self.finish(answer, &written, &pendings);
        answers
            .into_iter()
            .map(|group| group.into_iter().map(finish).collect())
            .collect()
    }

    /// Shows what is durable now.
    fn show(
        &self,
        segment: u32,
        offsets: &[u64],
        effects: Vec<Effect>,
        producers: BTreeMap<ProducerKey, Numbers>,
        clock: u64,
    ) {
        let mut state = self.state_mut();
        for (effect, at) in effects.into_iter().zip(offsets) {
            match effect {
                Effect::Batch { tag, len, new } => {
                    state.index(segment, &tag, *at as u32, len);
                    state.apply(&tag, len, new.as_deref());
                    self.counters.batches.fetch_add(1, Ordering::Relaxed);
                    self.counters
                        .events
                        .fetch_add(u64::from(tag.count), Ordering::Relaxed);
                    self.counters
                        .bytes
                        .fetch_add(frame_bytes(len), Ordering::Relaxed);
                }
                Effect::Close(closed, least) => {
                    state.close_own(closed);
                    state.least_epoch = state.least_epoch.max(least);
                }
            }
        }
        for (key, numbers) in producers {
            state.producers.put(key, numbers);
        }
        state.clock = state.clock.max(clock);
        self.counters.groups.fetch_add(1, Ordering::Relaxed);
    }

    fn finish(
        &self,
        answer: Answer,
        written: &Result<(), LogError>,
        pendings: &[Pending],
    ) -> Result<Appended, LogError> {
        let mut done = match answer {
            Answer::Now(result) => return result,
            Answer::Then(done) => {
                written.clone()?;
                done
            }
            Answer::Batch(mut done, pending) => {
                written.clone()?;
                done.cid = Some(cid_of(&pendings[pending].digest));
                done
            }
        };
        if done.cid.is_none() {
            done.cid = self.cid_at(&done.feed, done.first_seq);
        }
        Ok(done)
    }
}

impl<'a> Plan<'a> {
    fn new(log: &'a Log, state: &'a State, sealer: &'a mut Sealer) -> Self {
        Self {
            log,
            state,
            sealer,
            tips: BTreeMap::new(),
            fresh: BTreeSet::new(),
            own: BTreeMap::new(),
            producers: BTreeMap::new(),
            clock: state.clock,
            pendings: Vec::new(),
            open: BTreeMap::new(),
            frames: Vec::new(),
            effects: Vec::new(),
            bytes: 0,
            closed: Closed::None,
            least_epoch: state.least_epoch,
        }
    }

    fn take(&mut self, op: Op) -> Answer {
        match op {
            Op::Own(stream, list) => self.append(stream, list),
            Op::Replica(batch, may_begin) => match self.replicate(&batch, may_begin) {
                Ok(answer) => answer,
                Err(error) => Answer::Now(Err(error)),
            },
        }
    }

    fn append(&mut self, stream: StreamName, list: EventList) -> Answer {
        match self.try_append(stream, &list) {
            Ok(answer) => answer,
            Err(error) => Answer::Now(Err(error)),
        }
    }

    fn try_append(&mut self, stream: StreamName, list: &EventList) -> Result<Answer, LogError> {
        self.room(list.bytes() + AROUND)?;
        let key = self.own_feed(&stream)?;
        let open = self.open.get(&stream).copied();
        if let Some(open) = open
            && !self.pendings[open].list.fits(list.len(), list.bytes())
        {
            self.seal(open);
            self.open.remove(&stream);
        }
        let tip = &self.tips[&key];
        let base = match self.open.get(&stream) {
            Some(open) => self.pendings[*open].first + self.pendings[*open].list.len() as u64,
            None => tip.next,
        };
        if base + list.len() as u64 > MAX_NUMBER
            || self.clock + self.pendings.len() as u64 + 1 >= MAX_NUMBER
        {
            return Err(LogError::Exhausted);
        }
        let feed = tip.id.clone();
        let repeated = self.number(&stream, list, feed.epoch, base)?;
        if repeated.len() == list.len() {
            let first = repeated[0];
            let feed = FeedId {
                epoch: first.epoch,
                ..feed
            };
            return Ok(Answer::Then(Appended {
                feed,
                first_seq: first.seq,
                cid: None,
                repeated,
                present: true,
            }));
        }
        let index = match self.open.get(&stream) {
            Some(open) => *open,
            None => {
                self.pendings.push(Pending {
                    stream: stream.clone(),
                    list: EventList::default(),
                    first: base,
                    digest: [0; 32],
                });
                self.open.insert(stream, self.pendings.len() - 1);
                self.bytes += AROUND as u64;
                self.pendings.len() - 1
            }
        };
        self.bytes += list.bytes() as u64;
        let pending = &mut self.pendings[index];
        if repeated.is_empty() {
            pending.list.append(list);
        } else {
            let is_new = |i| repeated.iter().all(|one| one.index != i);
            pending.list.append(&list.retain(is_new));
        }
        let done = Appended {
            feed,
            first_seq: base,
            cid: None,
            repeated,
            present: false,
        };
        Ok(Answer::Batch(done, index))
    }

    /// Which events were appended before; the others get their places noted. All or nothing.
    fn number(
        &mut self,
        stream: &StreamName,
        list: &EventList,
        epoch: Epoch,
        base: Seq,
    ) -> Result<Vec<Repeated>, LogError> {
        let mut repeated: Vec<Repeated> = Vec::new();
        if list.producers().is_empty() {
            return Ok(repeated);
        }
        let mut touched: BTreeMap<ProducerKey, Numbers> = BTreeMap::new();
        for (index, producer) in list.producers() {
            let key = (stream.clone(), producer.id.clone());
            if !touched.contains_key(&key) {
                let known = self.producers.get(&key).cloned();
                let known = known.unwrap_or_else(|| self.state.producers.of(&key));
                touched.insert(key.clone(), known);
            }
            let Some(numbers) = touched.get_mut(&key) else {
                continue;
            };
            match numbers.find(producer.seq) {
                Known::New => {
                    let before = repeated.len() as u64;
                    numbers.note(producer.seq, epoch, base + u64::from(*index) - before);
                }
                Known::At(epoch, seq) => repeated.push(Repeated {
                    index: *index,
                    epoch,
                    seq,
                }),
                Known::Old(known) => {
                    return Err(LogError::OldProducer {
                        id: producer.id.clone(),
                        seq: producer.seq,
                        known,
                    });
                }
            }
        }
        self.producers.extend(touched);
        Ok(repeated)
    }

    /// The feed that events of ours in this stream go to now.
    fn own_feed(&mut self, stream: &StreamName) -> Result<FeedKey, LogError> {
        if let Some(key) = self.own.get(stream) {
            return Ok(*key);
        }
        let known = self.state.own_tip(stream, self.closed);
        let (key, tip) = known.unwrap_or_else(|| {
            let others = self.tips.values().map(|tip| &tip.id);
            self.state.next_epoch(stream, others, self.least_epoch)
        });
        if tip.id.epoch.0 > MAX_NUMBER {
            return Err(LogError::Exhausted);
        }
        if !self.state.feeds.contains_key(&key) && !self.tips.contains_key(&key) {
            self.add_feed(&tip.id)?;
            self.fresh.insert(key);
        }
        self.tips.entry(key).or_insert(tip);
        self.own.insert(stream.clone(), key);
        Ok(key)
    }

    fn add_feed(&self, id: &FeedId) -> Result<(), LogError> {
        let quota = |what| {
            Err(LogError::Quota {
                feed: id.clone(),
                what,
            })
        };
        let config = self.log.config();
        if self.state.feeds.len() + self.fresh.len() >= config.max_feeds {
            return quota("share of the feeds that this log may have");
        }
        if id.author != self.state.me {
            let fresh = self
                .fresh
                .iter()
                .filter(|key| self.tips[*key].id.author == id.author);
            if self.state.used_by(&id.author).0 + fresh.count() >= config.author_feeds {
                return quota("feeds");
            }
        }
        Ok(())
    }

    fn room(&self, more: usize) -> Result<(), LogError> {
        let used = self.state.bytes() + self.bytes;
        let (needed, limit) = (more as u64, self.log.config().max_bytes);
        if used + needed > limit {
            return Err(LogError::NoSpace {
                needed,
                used,
                limit,
            });
        }
        Ok(())
    }

    fn seal_all(&mut self) {
        let open: Vec<_> = std::mem::take(&mut self.open).into_values().collect();
        open.into_iter().for_each(|pending| self.seal(pending));
    }

    /// Signs the events that were gathered for a stream.
    fn seal(&mut self, index: usize) {
        let pending = &mut self.pendings[index];
        let list = std::mem::take(&mut pending.list);
        let Some(key) = self.own.get(&pending.stream).copied() else {
            return;
        };
        let Some(tip) = self.tips.get_mut(&key) else {
            return;
        };
        self.clock += 1;
        let spine = tip.spine.get_or_insert_default();
        let draft = Draft {
            feed: &tip.id,
            number: tip.number,
            first: tip.next,
            lamport: self.clock,
            prev: tip.head.as_ref().map(cid_of),
            skip: spine.links(tip.number),
            events: &list,
            compress: self.log.config().compress,
        };
        let batch = draft.seal(self.log.signer(), self.sealer);
        pending.digest = *batch.digest();
        let tag = Tag {
            has_producers: !list.producers().is_empty(),
            ..tag_of(&batch, key, list.last_time())
        };
        self.push(&batch, tag);
    }

    /// Puts a batch behind what the group has, and at the end of its feed.
    fn push(&mut self, batch: &Batch, tag: Tag) {
        let new = if self.fresh.remove(&tag.key) {
            self.tips.get(&tag.key).cloned().map(Box::new)
        } else {
            None
        };
        if let Some(tip) = self.tips.get_mut(&tag.key)
            && tag.first >= tip.next
        {
            tip.push(&tag);
        }
        let Ok(frame) = Frame::new(BATCH, tag.encode(), batch.bytes().clone()) else {
            unreachable!("a batch and its tag are smaller than a frame may be");
        };
        self.frames.push(frame);
        let len = batch.bytes().len() as u32;
        self.effects.push(Effect::Batch { tag, len, new });
    }

    /// Writes down that own feeds go on in new epochs.
    fn close(&mut self, closed: Closed) {
        self.seal_all();
        let own = std::mem::take(&mut self.own).into_iter();
        self.own = own
            .filter(|(_, key)| closed == Closed::Shared && self.is_sole(key))
            .collect();
        self.closed = self.closed.max(closed);
        let Ok(frame) = Frame::new(DOUBT, put_doubt(self.least_epoch), Bytes::new()) else {
            unreachable!("a frame may have a tag of eight bytes");
        };
        self.frames.push(frame);
        self.effects.push(Effect::Close(closed, self.least_epoch));
    }

    /// Whether nobody but this log writes to a feed of ours; it may be one of this group.
    fn is_sole(&self, key: &FeedKey) -> bool {
        let is_new = |tip: &Tip| tip.spine.is_some() && is_drawn(tip.id.epoch.0);
        match self.state.feeds.contains_key(key) {
            true => self.state.sole.contains(key),
            false => self.tips.get(key).is_some_and(is_new),
        }
    }

    /// A batch of ours came from elsewhere.
    fn on_returned(&mut self, was_closed: bool, all: bool, is_repair: bool) {
        // Who has our key counts epochs up as we do, so that they are drawn from now on, also after a restart.
        let draws = is_repair || is_drawn(self.least_epoch);
        let mut open = self.own.values().chain(self.state.own.values());
        if was_closed && draws && open.all(|key| self.is_sole(key)) {
            return;
        }
        if !draws {
            self.least_epoch = unused_epoch(self.least_epoch);
        }
        self.close(match all {
            true => Closed::All,
            false => Closed::Shared,
        });
    }

    fn tip(&self, key: FeedKey) -> Option<Tip> {
        let known = || self.state.feeds.get(&key).map(|feed| feed.tip.clone());
        self.tips.get(&key).cloned().or_else(known)
    }

    /// Takes a batch that was written elsewhere.
    fn replicate(&mut self, batch: &Batch, may_begin: bool) -> Result<Answer, LogError> {
        let id = batch.feed().clone();
        let done = |present| Appended {
            feed: id.clone(),
            first_seq: batch.first(),
            cid: Some(batch.cid()),
            repeated: Vec::new(),
            present,
        };
        let is_mine = id.author == self.state.me;
        if is_mine {
            // It may follow what this very group appends.
            self.seal_all();
        }
        let Some((key, mut tip, is_new)) = self.where_to(batch, may_begin)? else {
            return Ok(Answer::Then(done(true)));
        };
        let (was_closed, was_sole) = (tip.closed, is_mine && self.is_sole(&id.key()));
        // Nobody here writes on behind what another one wrote.
        tip.closed |= is_mine && !was_sole;
        let is_repair = tip.branch.is_none() && batch.first() < tip.next;
        let size = frame_bytes(batch.bytes().len() as u32);
        self.room(size as usize)?;
        if !is_mine {
            let (_, used) = self.state.used_by(&id.author);
            let quota = self.log.config().author_bytes;
            let mine = self.effects.iter().filter_map(|effect| match effect {
                Effect::Batch { tag, len, .. }
                    if self
                        .tips
                        .get(&tag.key)
                        .is_some_and(|tip| tip.id.author == id.author) =>
                {
                    Some(frame_bytes(*len))
                }
                _ => None,
            });
            if used + mine.sum::<u64>() + size > quota {
                return Err(LogError::Quota {
                    feed: id,
                    what: "bytes",
                });
            }
        }
        if is_new {
            self.add_feed(&id)?;
            self.fresh.insert(key);
        }
        self.tips.insert(key, tip);
        self.bytes += size;
        State::observe(&mut self.clock, batch.lamport());
        let time = batch.events().last().map_or(0, |event| event.time);
        self.push(batch, tag_of(batch, key, time));
        if is_mine {
            self.on_returned(was_closed, was_sole || is_repair, is_repair);
            let returned = u64::from(!is_repair);
            let counters = &self.log.counters;
            counters.returned.fetch_add(returned, Ordering::Relaxed);
        }
        Ok(Answer::Then(done(false)))
    }

    /// Which feed or branch a batch belongs to, and whether that is new; `None` if it is here already.
    fn where_to(
        &self,
        batch: &Batch,
        may_begin: bool,
    ) -> Result<Option<(FeedKey, Tip, bool)>, LogError> {
        let id = batch.feed();
        let key = id.key();
        let bad = |why| {
            Err(LogError::BadChain {
                feed: id.clone(),
                why,
            })
        };
        let Some(tip) = self.tip(key) else {
            let mut tip = Tip::new(id.clone(), false);
            if batch.number() > 0 {
                if !may_begin {
                    return Err(self.gap(batch, 0));
                }
                tip.next = batch.first();
                tip.number = batch.number();
            }
            return Ok(Some((key, tip, true)));
        };
        if batch.first() == tip.next && batch.prev_digest() == tip.head.as_ref() {
            if batch.number() != tip.number {
                return bad("its number is not the next one");
            }
            if tip.head.is_some() && batch.lamport() <= tip.lamport {
                return bad("its logical time is not later than that of the batch before");
            }
            return Ok(Some((key, tip, false)));
        }
        let is_there = |effect: &Effect| matches!(effect, Effect::Batch { tag, .. } if tag.digest == *batch.digest());
        if self.effects.iter().any(is_there) || self.log.has_digest(self.state, batch.digest())? {
            return Ok(None);
        }
        for (key, branch) in self.branches(id) {
            if branch.head.as_ref() == batch.prev_digest() && branch.next == batch.first() {
                if batch.number() != branch.number || batch.lamport() <= branch.lamport {
                    return bad("its number or logical time does not follow the batch before");
                }
                return Ok(Some((key, branch, false)));
            }
        }
        self.older(batch, key, tip)
    }

    /// A batch that begins before the end of its feed: one that was damaged here, or the first of a branch.
    fn older(
        &self,
        batch: &Batch,
        key: FeedKey,
        tip: Tip,
    ) -> Result<Option<(FeedKey, Tip, bool)>, LogError> {
        let id = batch.feed();
        let low = self.state.feeds.get(&key).map_or(tip.next, |feed| feed.low);
        if batch.first() > tip.next {
            return Err(self.gap(batch, tip.next));
        }
        if batch.end() <= low {
            return Err(LogError::Trimmed {
                feed: id.clone(),
                low,
            });
        }
        if self.log.mends(self.state, key, batch)? {
            return Ok(Some((key, tip, false)));
        }
        // Its predecessor decides: it is a sibling of what stands there, or of another history.
        let parent = match batch.number() {
            0 => true,
            _ => self.log.ends_with(self.state, id, batch)?,
        };
        if !parent {
            return Err(LogError::BadChain {
                feed: id.clone(),
                why: "the batch before it is not here: fetch that first, its author may have forked the feed",
            });
        }
        let branch = Tip {
            branch: Some(*batch.digest()),
            next: batch.first(),
            number: batch.number(),
            head: batch.prev_digest().copied(),
            ..Tip::new(id.clone(), false)
        };
        self.log.counters.forks.fetch_add(1, Ordering::Relaxed);
        Ok(Some((branch_key(id, batch.digest()), branch, true)))
    }

    fn branches(&self, id: &FeedId) -> Vec<(FeedKey, Tip)> {
        let known = self.state.branches(id);
        let known = known.filter(|(key, _)| !self.tips.contains_key(*key));
        let known = known.map(|(key, feed)| (*key, feed.tip.clone()));
        let fresh = self
            .tips
            .iter()
            .filter(|(_, tip)| tip.branch.is_some() && tip.id == *id);
        known
            .chain(fresh.map(|(key, tip)| (*key, tip.clone())))
            .collect()
    }

    fn gap(&self, batch: &Batch, want: Seq) -> LogError {
        LogError::Gap {
            feed: batch.feed().clone(),
            want,
            got: batch.first(),
        }
    }
}

fn tag_of(batch: &Batch, key: FeedKey, time: i64) -> Tag {
    Tag {
        key,
        digest: *batch.digest(),
        first: batch.first(),
        count: batch.count(),
        number: batch.number(),
        lamport: batch.lamport(),
        time,
        has_producers: false,
    }
}

impl Pen {
    /// Cuts what a failed write left, and makes that durable. Nothing is written before.
    fn settle(&mut self, log: &Log) -> Result<(), LogError> {
        let Some((number, len)) = self.doubt else {
            return Ok(());
        };
        let file = log.disk().open(&log.layout().segment(number), Mode::Write);
        let cut = file.and_then(|file| file.set_len(len).and_then(|()| file.sync_data()));
        cut.map_err(LogError::io)?;
        self.doubt = None;
        Ok(())
    }

    /// A group was written, and with it what was in doubt.
    fn noted(&mut self, log: &Log) {
        if std::mem::take(&mut self.note) && std::mem::take(&mut self.marker) {
            // If the file stays, the next start opens new epochs once more: a waste, and no harm.
            let _ = log.disk().unlink(&log.layout().doubt());
            let _ = log.disk().sync_dir(&log.layout().dir);
        }
    }

    /// Writes and flushes frames into one segment; gives its number and the offset of each.
    fn write(&mut self, log: &Log, frames: &[Frame<Bytes>]) -> Result<(u32, Vec<u64>), LogError> {
        let size: u64 = frames.iter().map(Frame::frame_len).sum();
        if let Some((number, writer)) = &self.active {
            let has_room = writer.end() + size <= log.config().segment_bytes
                && log.entries(*number) < SEGMENT_BATCHES;
            if !has_room && writer.end() > FILE_HEADER as u64 {
                self.roll(log)?;
            }
        }
        let (number, mut writer) = match self.active.take() {
            Some(active) => active,
            None => self.begin(log)?,
        };
        let committed = writer.commit(frames);
        let end = writer.end();
        match committed {
            Ok(offsets) => {
                log.set_size(number, end);
                self.active = Some((number, writer));
                Ok((number, offsets))
            }
            Err(e) => {
                self.active = Some((number, writer));
                Err(self.failed(log, number, end, e))
            }
        }
    }

    fn failed(&mut self, log: &Log, number: u32, end: u64, error: WriteError) -> LogError {
        log.counters.failures.fetch_add(1, Ordering::Relaxed);
        match &error {
            WriteError::Poisoned(kind) => log.poison(*kind),
            WriteError::Full(_) => {
                self.is_full = true;
                self.doubt = Some((number, end));
            }
            _ => self.doubt = Some((number, end)),
        }
        error.into()
    }

    /// Gives the segment that is written to its index, and ends it.
    pub(crate) fn roll(&mut self, log: &Log) -> Result<(), LogError> {
        let Some((number, mut writer)) = self.active.take() else {
            return Ok(());
        };
        if self.is_full {
            self.reserve.give_up(log.disk().as_ref());
        }
        let at = writer.end();
        let (frames, paged) = match index_frames(log, number, at) {
            Ok(made) => made,
            Err(e) => {
                self.active = Some((number, writer));
                return Err(e.into());
            }
        };
        let mut appended = writer.append(&frames);
        if matches!(appended, Err(WriteError::Full(_))) {
            self.reserve.give_up(log.disk().as_ref());
            appended = writer.append(&frames);
        }
        if let Err(e) = appended {
            let end = writer.end();
            self.active = Some((number, writer));
            return Err(self.failed(log, number, end, e));
        }
        let mut end = writer.end();
        match writer.close() {
            Ok(()) => {
                // The mark of an orderly close.
                end += gemba_segment::frame_len(0, 0);
                let index = Index::Paged(paged);
                log.replace(number, Segment { number, index });
            }
            Err(WriteError::Poisoned(kind)) => {
                log.poison(kind);
                return Err(LogError::Poisoned(kind));
            }
            // All events of it are durable. Without the mark its index is not believed, and it is walked at the next start.
            Err(_) => {}
        }
        log.set_size(number, end);
        Ok(())
    }

    fn begin(&mut self, log: &Log) -> Result<(u32, Writer), LogError> {
        loop {
            let number = self.last_number + 1;
            if number > MAX_SEGMENT {
                return Err(LogError::Exhausted);
            }
            let path = log.layout().segment(number);
            match gemba_segment::create(log.disk().as_ref(), &path, identity(log.salt(), number)) {
                Ok(writer) => {
                    self.last_number = number;
                    log.replace(number, Segment::resident(number, Resident::default()));
                    log.set_size(number, writer.end());
                    return Ok((number, writer));
                }
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
                    self.last_number = number;
                }
                Err(e) => {
                    self.is_full |= gemba_segment::is_full(&e);
                    return Err(LogError::io(e));
                }
            }
        }
    }
}

/// The index of a segment as frames, and what is kept of it.
type Indexed = (Vec<Frame<Vec<u8>>>, Paged);

/// The frames of a segment's index, which will stand at `at`.
fn index_frames(log: &Log, number: u32, at: u64) -> Result<Indexed, WriteError> {
    let state = log.state();
    let empty = Resident::default();
    let segment = state.segments.get(&number).map(Arc::clone);
    let (pages, names, spans) = match segment.as_deref().map(|segment| &segment.index) {
        Some(Index::Resident(resident)) => {
            let resident = resident
                .read()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            resident.pages()
        }
        _ => empty.pages(),
    };
    let entries = spans.iter().map(|span| span.entries).sum();
    let mut spans_bytes = Vec::new();
    spans.iter().for_each(|span| span.put(&mut spans_bytes));
    let state_bytes = state.encode();
    drop(state);
    let len = |pages: &[Vec<u8>]| -> u64 {
        let lens = pages
            .iter()
            .map(|page| gemba_segment::frame_len(0, page.len()));
        lens.sum()
    };
    let names_at = at + len(&pages);
    let trailer = Trailer {
        pages_at: at,
        names_at,
        entries,
        spans_len: spans_bytes.len() as u32,
        spans_at: names_at + len(&names),
        state_len: state_bytes.len() as u32,
    };
    let mut frames = Vec::new();
    for page in pages {
        frames.push(Frame::new(PAGE, Vec::new(), page)?);
    }
    for page in names {
        frames.push(Frame::new(NAMES, Vec::new(), page)?);
    }
    frames.push(Frame::new(SPANS, Vec::new(), spans_bytes)?);
    frames.push(Frame::new(STATE, Vec::new(), state_bytes)?);
    frames.push(Frame::new(TRAILER, Vec::new(), trailer.encode())?);
    Ok((frames, Paged { trailer, spans }))
}

/// Look-ups for a replica's batch.
impl Log {
    /// Whether a batch with this digest can be read here.
    fn has_digest(&self, state: &State, digest: &[u8; 32]) -> Result<bool, LogError> {
        Ok(matches!(self.find_digest(state, digest)?, Some(found) if found.is_good))
    }

    /// Whether a batch fills a place that is damaged here, and is the one that stood there.
    fn mends(&self, state: &State, key: FeedKey, batch: &Batch) -> Result<bool, LogError> {
        if let Some(found) = self.find_digest(state, batch.digest())? {
            // The index remembers the name of what is damaged.
            return Ok(!found.is_good && found.key.is_none_or(|found| found == key));
        }
        match self.find(state, key, batch.first())? {
            Found::Hole { end } if batch.end() <= end => {}
            _ => return Ok(false),
        }
        // Not even the index has it: its neighbours must.
        let before = match batch.first().checked_sub(1) {
            Some(last) => self.tag_of_place(state, key, last)?.map(|tag| tag.digest),
            None => None,
        };
        if before.is_some() {
            return Ok(before.as_ref() == batch.prev_digest());
        }
        let after = self.batch_of_place(state, key, batch.end())?;
        Ok(after.is_some_and(|after| after.prev_digest() == Some(batch.digest())))
    }

    /// Whether some batch of this feed or a branch of it ends where this one begins, and is its predecessor.
    fn ends_with(&self, state: &State, id: &FeedId, batch: &Batch) -> Result<bool, LogError> {
        let Some(prev) = batch.prev_digest() else {
            return Ok(false);
        };
        let Some(found) = self.find_digest(state, prev)? else {
            return Ok(false);
        };
        let Some(tag) = found.tag else {
            return Ok(false);
        };
        let is_of_feed = tag.key == id.key() || state.branches(id).any(|(key, _)| *key == tag.key);
        Ok(is_of_feed
            && tag.end() == batch.first()
            && tag.number + 1 == batch.number()
            && tag.lamport < batch.lamport())
    }
}
