//! Reading: where a place stands, batches in order, and all feeds merged into the one order (specs/log.md §9).

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_segment::Reader;

use crate::batch::{Batch, UnverifiedBatch, cid_of};
use crate::cbor::digest_of;
use crate::config::ReadCheck;
use crate::error::{FrameError, LogError};
use crate::event::Event;
use crate::feed::{FeedId, FeedKey, OrderKey, Seq};
use crate::format::{Place, Tag};
use crate::index::{Segment, read_places, tag_at};
use crate::log::Log;
use crate::state::{State, branch_key, is_good};

/// Bytes that a cursor reads at a time.
const AHEAD: u64 = 256 << 10;
/// Least bytes that each cursor of a merge reads at a time.
const LEAST_AHEAD: u64 = 8 << 10;

/// What stands at a place.
#[derive(Debug)]
pub(crate) enum Found {
    /// A batch, and those of the same segment that follow it without a hole.
    Run(Arc<Segment>, Vec<Place>),
    /// Nothing that can be read, up to there.
    Hole { end: Seq },
    /// The feed ends before.
    End,
}

/// A batch that was looked up by its digest.
#[derive(Debug)]
pub(crate) struct FoundBatch {
    pub(crate) segment: u32,
    pub(crate) at: u32,
    pub(crate) is_good: bool,
    /// What its frame says, where that can be read.
    pub(crate) tag: Option<Tag>,
    pub(crate) len: u32,
    pub(crate) key: Option<FeedKey>,
}

/// Batches for a replica.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The batches, in order, as blocks; the first holds the event that was asked for.
    pub blocks: Vec<Block>,
    /// The place behind the last of them: ask for it next.
    pub next: Seq,
    /// Whether that is the end of the feed here.
    pub is_end: bool,
}

impl Log {
    /// Where a place of a feed stands.
    pub(crate) fn find(&self, state: &State, key: FeedKey, seq: Seq) -> Result<Found, LogError> {
        let Some(feed) = state.feeds.get(&key) else {
            return Ok(Found::End);
        };
        if seq >= feed.tip.next {
            return Ok(Found::End);
        }
        let mut end = feed.tip.next;
        // What was repaired stands in a later segment than what was damaged.
        for segment in state.segments.values().rev() {
            let Some(span) = segment.span(key).filter(|span| span.end > seq) else {
                continue;
            };
            if span.first > seq {
                end = end.min(span.first);
                continue;
            }
            let (segment, run) = self.run(segment, key, seq)?;
            // What was repaired may also stand beside what was damaged.
            let good = |place: &&Place| is_good(&state.bad, segment.number, place);
            let here = run.iter().take_while(|place| place.first <= seq);
            let Some(from) = here.clone().position(|place| good(&place)) else {
                let ends = here.map(Place::end);
                let next = run
                    .iter()
                    .map(|place| place.first)
                    .find(|first| *first > seq);
                end = ends.chain(next).fold(end, Seq::min);
                continue;
            };
            let run = &run[from..];
            let first = &run[0];
            let mut next = first.first;
            let follows = |place: &&Place| {
                let follows = place.first == next && good(place);
                next = place.end();
                follows
            };
            let run = run.iter().take_while(follows).copied().collect();
            return Ok(Found::Run(segment, run));
        }
        Ok(Found::Hole { end })
    }

    /// Places of a feed in a segment. Where the index of the segment is damaged, it is made anew from the frames.
    fn run(
        &self,
        segment: &Arc<Segment>,
        key: FeedKey,
        seq: Seq,
    ) -> Result<(Arc<Segment>, Vec<Place>), LogError> {
        let segment = self.rebuilt(segment);
        let reader = self.reader(segment.number)?;
        match segment.run(&reader, key, seq) {
            Ok(run) => Ok((segment, run)),
            Err(FrameError::Io(e)) => Err(LogError::io(e)),
            Err(FrameError::Damaged) => {
                let segment = self.rebuild(segment.number)?;
                let run = segment.run(&reader, key, seq);
                Ok((segment, run.unwrap_or_default()))
            }
        }
    }

    /// The batch with this digest, a whole one if there is one.
    pub(crate) fn find_digest(
        &self,
        state: &State,
        digest: &[u8; 32],
    ) -> Result<Option<FoundBatch>, LogError> {
        let mut damaged = None;
        for segment in state.segments.values().rev() {
            let segment = self.rebuilt(segment);
            let reader = self.reader(segment.number)?;
            let named = match segment.named(&reader, digest) {
                Ok(named) => named,
                Err(FrameError::Io(e)) => return Err(LogError::io(e)),
                Err(FrameError::Damaged) => {
                    let segment = self.rebuild(segment.number)?;
                    segment.named(&reader, digest).unwrap_or_default()
                }
            };
            for at in named {
                let tag = match tag_at(&reader, at) {
                    Ok(tag) => Some(tag),
                    Err(FrameError::Damaged) => None,
                    Err(FrameError::Io(e)) => return Err(LogError::io(e)),
                };
                if tag.is_some_and(|(tag, _)| tag.digest != *digest) {
                    continue;
                }
                let is_good = tag.is_some() && !state.bad.contains(&(segment.number, at));
                let found = FoundBatch {
                    segment: segment.number,
                    at,
                    is_good,
                    tag: tag.map(|(tag, _)| tag),
                    len: tag.map_or(0, |(_, len)| len),
                    key: tag.map(|(tag, _)| tag.key),
                };
                if is_good {
                    return Ok(Some(found));
                }
                damaged = Some(found);
            }
        }
        Ok(damaged)
    }

    /// The tag of the batch that holds a place.
    pub(crate) fn tag_of_place(
        &self,
        state: &State,
        key: FeedKey,
        seq: Seq,
    ) -> Result<Option<Tag>, LogError> {
        let Found::Run(segment, run) = self.find(state, key, seq)? else {
            return Ok(None);
        };
        let reader = self.reader(segment.number)?;
        match tag_at(&reader, run[0].at) {
            Ok((tag, _)) => Ok(Some(tag)),
            Err(FrameError::Damaged) => Ok(None),
            Err(FrameError::Io(e)) => Err(LogError::io(e)),
        }
    }

    /// The batch that holds a place, if it can be read.
    pub(crate) fn batch_of_place(
        &self,
        state: &State,
        key: FeedKey,
        seq: Seq,
    ) -> Result<Option<Batch>, LogError> {
        let Found::Run(segment, run) = self.find(state, key, seq)? else {
            return Ok(None);
        };
        let reader = self.reader(segment.number)?;
        let mut found = None;
        read_places(&reader, &run[..1], 0, &mut |_, read| found = Some(read));
        match found {
            Some(Ok((tag, bytes))) => Ok(self.take_stored(&tag, bytes).ok()),
            Some(Err(FrameError::Io(e))) => Err(LogError::io(e)),
            _ => Ok(None),
        }
    }

    /// The CID of the batch that holds a place.
    pub(crate) fn cid_at(&self, feed: &FeedId, seq: Seq) -> Option<Cid> {
        let state = self.state();
        let tag = self.tag_of_place(&state, feed.key(), seq).ok()?;
        tag.map(|tag| cid_of(&tag.digest))
    }

    /// A batch from our own disk, checked as the settings say.
    pub(crate) fn take_stored(&self, tag: &Tag, bytes: Bytes) -> Result<Batch, FrameError> {
        let batch = match self.config().check {
            ReadCheck::Crc => Batch::from_disk(bytes, tag.digest),
            check => UnverifiedBatch::decode(bytes).and_then(|batch| {
                if *batch.digest() != tag.digest {
                    return Err(crate::BatchError::WrongCid);
                }
                match check {
                    ReadCheck::Signature => batch.verify(),
                    _ => Ok(batch.trust()),
                }
            }),
        };
        let batch = batch.map_err(|_| FrameError::Damaged)?;
        let is_it = batch.first() == tag.first && batch.count() == tag.count;
        if is_it {
            Ok(batch)
        } else {
            Err(FrameError::Damaged)
        }
    }

    /// Reads batches of a feed in order, from the one that holds `from` on. It sees what is appended while it is read.
    #[must_use]
    pub fn cursor(&self, feed: &FeedId, from: Seq) -> Cursor<'_> {
        Cursor::new(self, feed.clone(), feed.key(), from)
    }

    /// As [`Self::cursor`], over a branch that the author of the feed forked off: [`crate::Head::branch`].
    #[must_use]
    pub fn branch_cursor(&self, feed: &FeedId, branch: &Cid, from: Seq) -> Cursor<'_> {
        let key = digest_of(branch).map_or(feed.key(), |first| branch_key(feed, &first));
        Cursor::new(self, feed.clone(), key, from)
    }

    /// At most `limit` events of a feed from `from` on; fewer only at its end. Bounded by 4 MiB of batches, and at least one event.
    ///
    /// # Errors
    /// [`LogError::NoFeed`], [`LogError::Trimmed`] or [`LogError::Damaged`] for `from`; what comes behind is told when it is asked for.
    pub fn read(&self, feed: &FeedId, from: Seq, limit: usize) -> Result<Vec<Event>, LogError> {
        const MOST: usize = 4 << 20;
        let mut cursor = self.cursor(feed, from);
        let mut events = Vec::new();
        let mut bytes = 0;
        while events.len() < limit && bytes < MOST {
            let batch = match cursor.next_batch() {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(_) if !events.is_empty() => break,
                Err(e) => return Err(e),
            };
            bytes += batch.bytes().len();
            let room = limit - events.len();
            let wanted = batch.events().filter(|event| event.seq >= from);
            events.extend(wanted.take(room).map(|event| batch.own(&event)));
        }
        Ok(events)
    }

    /// Batches of a feed as blocks, from the one that holds `from` on: at most `max_bytes`, and at least one. Nothing is decoded.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn range(&self, feed: &FeedId, from: Seq, max_bytes: u64) -> Result<Chunk, LogError> {
        self.chunk(feed, feed.key(), from, max_bytes)
    }

    /// As [`Self::range`], of a branch.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn branch_range(
        &self,
        feed: &FeedId,
        branch: &Cid,
        from: Seq,
        max_bytes: u64,
    ) -> Result<Chunk, LogError> {
        let key = digest_of(branch).map_or(feed.key(), |first| branch_key(feed, &first));
        self.chunk(feed, key, from, max_bytes)
    }

    fn chunk(
        &self,
        feed: &FeedId,
        key: FeedKey,
        from: Seq,
        max_bytes: u64,
    ) -> Result<Chunk, LogError> {
        let mut chunk = Chunk {
            blocks: Vec::new(),
            next: from,
            is_end: false,
        };
        let mut bytes = 0;
        loop {
            let left = max_bytes.saturating_sub(bytes);
            if left == 0 && !chunk.blocks.is_empty() {
                return Ok(chunk);
            }
            let read = match self.read_on(feed, key, chunk.next, left) {
                Err(_) if !chunk.blocks.is_empty() => return Ok(chunk),
                read => read?,
            };
            let Some(read) = read else {
                chunk.is_end = true;
                return Ok(chunk);
            };
            for (tag, data) in read {
                // The first of a later step is read whatever its size.
                if !chunk.blocks.is_empty() && bytes + data.len() as u64 > max_bytes {
                    return Ok(chunk);
                }
                bytes += data.len() as u64;
                chunk.next = tag.end();
                chunk
                    .blocks
                    .push(Block::danger_unchecked(cid_of(&tag.digest), data));
            }
        }
    }

    /// Stored batches from a place on, at most `upto` bytes and at least one; `None` at the end. Only whole ones: an error only for the first.
    fn read_on(
        &self,
        feed: &FeedId,
        key: FeedKey,
        from: Seq,
        upto: u64,
    ) -> Result<Option<Vec<(Tag, Bytes)>>, LogError> {
        loop {
            let found = {
                let state = self.state();
                let Some(known) = state.feeds.get(&key) else {
                    return Err(LogError::NoFeed(feed.clone()));
                };
                if from < known.low {
                    return Err(LogError::Trimmed {
                        feed: feed.clone(),
                        low: known.low,
                    });
                }
                match self.find(&state, key, from)? {
                    Found::Run(segment, run) => (segment, run),
                    Found::End => return Ok(None),
                    Found::Hole { end } => {
                        return Err(LogError::Damaged {
                            feed: feed.clone(),
                            from,
                            to: end,
                        });
                    }
                }
            };
            let (segment, run) = found;
            let reader = self.reader(segment.number)?;
            if let Some(read) = self.read_run(&reader, &segment, &run, upto)? {
                return Ok(Some(read));
            }
        }
    }

    /// The whole batches at the beginning of a run. `None` if not even the first is: that is noted.
    fn read_run(
        &self,
        reader: &Reader,
        segment: &Segment,
        run: &[Place],
        upto: u64,
    ) -> Result<Option<Vec<(Tag, Bytes)>>, LogError> {
        let mut whole = Vec::new();
        let mut failed = None;
        read_places(reader, run, upto, &mut |place, read| {
            let is_it = |tag: &Tag| tag.first == place.first && tag.count == place.count;
            match read {
                _ if failed.is_some() => {}
                Ok((tag, bytes)) if is_it(&tag) => whole.push((tag, bytes)),
                Ok(_) => failed = Some((place.at, FrameError::Damaged)),
                Err(e) => failed = Some((place.at, e)),
            }
        });
        match failed {
            Some((_, FrameError::Io(e))) if whole.is_empty() => return Err(LogError::io(e)),
            Some((at, FrameError::Damaged)) => {
                self.state_mut().mark_bad(segment.number, at);
                if whole.is_empty() {
                    return Ok(None);
                }
            }
            _ => {}
        }
        Ok(Some(whole))
    }

    /// The block of a batch, whatever feed it belongs to; `None` if it is not here.
    ///
    /// # Errors
    /// What the disk answers. A damaged batch is not here.
    pub fn block(&self, cid: &Cid) -> Result<Option<Block>, LogError> {
        let Some(digest) = digest_of(cid) else {
            return Ok(None);
        };
        let state = self.state();
        let Some(found) = self
            .find_digest(&state, &digest)?
            .filter(|found| found.is_good)
        else {
            return Ok(None);
        };
        drop(state);
        let Some(tag) = found.tag else {
            return Ok(None);
        };
        let place = Place {
            first: tag.first,
            count: tag.count,
            at: found.at,
            len: found.len,
            time: tag.time,
        };
        let reader = self.reader(found.segment)?;
        let mut read = None;
        read_places(&reader, &[place], 0, &mut |_, batch| read = Some(batch));
        match read {
            Some(Ok((_, bytes))) => Ok(Some(Block::danger_unchecked(*cid, bytes))),
            Some(Err(FrameError::Io(e))) => Err(LogError::io(e)),
            _ => {
                self.state_mut().mark_bad(found.segment, found.at);
                Ok(None)
            }
        }
    }

    /// The first place of a feed whose event has this wall-clock time or a later one; its end if there is none. Wall clocks jump: what lies
    /// behind may be earlier.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn seq_at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, LogError> {
        self.place_at_time(feed, feed.key(), time)
    }

    /// As [`Self::seq_at_time`], in a branch too.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn part_at_time(&self, part: &Part, time: i64) -> Result<Seq, LogError> {
        self.place_at_time(&part.feed, part.key(), time)
    }

    fn place_at_time(&self, feed: &FeedId, key: FeedKey, time: i64) -> Result<Seq, LogError> {
        let (segments, next) = {
            let state = self.state();
            let known = state
                .feeds
                .get(&key)
                .ok_or_else(|| LogError::NoFeed(feed.clone()))?;
            let segments: Vec<_> = state.segments.values().map(Arc::clone).collect();
            (segments, known.tip.next)
        };
        for segment in segments {
            let Some(span) = segment.span(key).filter(|span| span.time >= time) else {
                continue;
            };
            let mut from = span.first;
            while from < span.end {
                let (_, run) = self.run(&segment, key, from)?;
                let Some(last) = run.last() else { break };
                if let Some(place) = run.iter().find(|place| place.time >= time) {
                    // The last event of the batch is late enough, so the first that is stands in it or in an earlier one's end.
                    let mut cursor = Cursor::new(self, feed.clone(), key, place.first);
                    let batch = cursor.next_batch()?;
                    let found = batch
                        .iter()
                        .flat_map(Batch::events)
                        .find(|event| event.time >= time);
                    return Ok(found.map_or(place.first, |event| event.seq));
                }
                from = last.end();
            }
        }
        Ok(next)
    }

    /// Reads feeds in the one order over all of them, each from its place on. What is appended meanwhile may come too late for its place in
    /// the order, and is then left out.
    ///
    /// # Errors
    /// As [`Self::read`], of the first batch of each feed.
    pub fn merge(&self, starts: &[(FeedId, Seq)]) -> Result<Merge<'_>, LogError> {
        let mut cursors = Vec::new();
        let state = self.state();
        for (feed, from) in starts {
            cursors.push(self.cursor(feed, *from));
            for (key, branch) in state.branches(feed) {
                let from = (*from).max(branch.low);
                cursors.push(Cursor::new(self, feed.clone(), *key, from));
            }
        }
        drop(state);
        let mut merge = Merge::of(cursors);
        match merge.failed.pop_front() {
            Some((_, error)) => Err(error),
            None => Ok(merge),
        }
    }

    /// As [`Self::merge`], where each branch of a forked feed has a place of its own. What cannot be read is told by [`Merge::next_of`], also of the
    /// first batches.
    #[must_use]
    pub fn merge_parts(&self, starts: &[(Part, Seq)]) -> Merge<'_> {
        let cursor =
            |(part, from): &(Part, Seq)| Cursor::new(self, part.feed.clone(), part.key(), *from);
        Merge::of(starts.iter().map(cursor).collect())
    }

    /// As [`Self::merge_parts`], for a reader who takes a page now and then of very many feeds: of each part it is told where the batch of its place stands in
    /// the order, by [`Self::order_at`] or by [`Merge::orders`] of the page before, and opens those whose turn comes.
    #[must_use]
    pub fn merge_known(&self, starts: &[(Part, Seq, OrderKey)]) -> Merge<'_> {
        let cursor =
            |(part, from, _): &_| Cursor::new(self, Part::clone(part).feed, part.key(), *from);
        let mut merge = Merge::unopened(starts.iter().map(cursor).collect());
        let known = starts.iter().enumerate();
        merge.heap = known
            .map(|(cursor, (.., order))| {
                Reverse(Next {
                    order: order.clone(),
                    batch: None,
                    cursor,
                })
            })
            .collect();
        merge
    }

    /// Where the batch that holds a place stands in the order over all feeds. `None`: the part ends before, or the batch cannot be read.
    ///
    /// # Errors
    /// What the disk answers.
    pub fn order_at(&self, part: &Part, seq: Seq) -> Result<Option<OrderKey>, LogError> {
        let state = self.state();
        let tag = self.tag_of_place(&state, part.key(), seq)?;
        Ok(tag.map(|tag| OrderKey {
            lamport: tag.lamport,
            feed: part.feed.clone(),
            batch: tag.digest,
            seq: tag.first,
        }))
    }
}

/// A feed, or a branch that its author forked off: what has places of its own.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    /// The feed.
    pub feed: FeedId,
    /// Of a branch, its first batch; see [`crate::Head::branch`].
    pub branch: Option<Cid>,
}

impl Part {
    fn key(&self) -> FeedKey {
        match self.branch.as_ref().and_then(digest_of) {
            Some(first) => branch_key(&self.feed, &first),
            None => self.feed.key(),
        }
    }
}

impl From<FeedId> for Part {
    fn from(feed: FeedId) -> Self {
        Self { feed, branch: None }
    }
}

/// Reads batches of one feed in order.
#[derive(Debug)]
pub struct Cursor<'a> {
    log: &'a Log,
    feed: FeedId,
    key: FeedKey,
    next: Seq,
    ahead: u64,
    queue: VecDeque<(Tag, Bytes)>,
}

impl<'a> Cursor<'a> {
    fn new(log: &'a Log, feed: FeedId, key: FeedKey, from: Seq) -> Self {
        Self {
            log,
            feed,
            key,
            next: from,
            ahead: AHEAD,
            queue: VecDeque::new(),
        }
    }

    /// The place behind the last batch.
    #[must_use]
    pub fn position(&self) -> Seq {
        self.next
    }

    /// Goes on elsewhere.
    pub fn seek(&mut self, to: Seq) {
        self.queue.clear();
        self.next = to;
    }

    /// The next batch as a block, without decoding it; `None` at the end, where it may be asked again.
    ///
    /// # Errors
    /// [`LogError::Damaged`] where a batch cannot be read: go on behind it with [`Self::seek`], or fetch it from a replica.
    pub fn next_block(&mut self) -> Result<Option<Block>, LogError> {
        let next = self.next_stored()?;
        Ok(next.map(|(tag, bytes)| Block::danger_unchecked(cid_of(&tag.digest), bytes)))
    }

    /// The next batch; `None` at the end, where it may be asked again.
    ///
    /// # Errors
    /// [`LogError::Damaged`] where a batch cannot be read: go on behind it with [`Self::seek`], or fetch it from a replica.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, LogError> {
        let Some((tag, bytes)) = self.next_stored()? else {
            return Ok(None);
        };
        match self.log.take_stored(&tag, bytes) {
            Ok(batch) => Ok(Some(batch)),
            Err(_) => {
                self.queue.clear();
                self.next = tag.first;
                self.log.note_damage(&tag);
                Err(LogError::Damaged {
                    feed: self.feed.clone(),
                    from: tag.first,
                    to: tag.end(),
                })
            }
        }
    }

    fn next_stored(&mut self) -> Result<Option<(Tag, Bytes)>, LogError> {
        if self.queue.is_empty() {
            let read = self
                .log
                .read_on(&self.feed, self.key, self.next, self.ahead)?;
            self.queue.extend(read.into_iter().flatten());
        }
        let next = self.queue.pop_front();
        if let Some((tag, _)) = &next {
            self.next = tag.end();
        }
        Ok(next)
    }
}

/// Reads batches of many feeds in the one order over all of them.
#[derive(Debug)]
pub struct Merge<'a> {
    cursors: Vec<Cursor<'a>>,
    heap: BinaryHeap<Reverse<Next>>,
    /// Cursors behind which nothing can be read: told with the next calls.
    failed: VecDeque<(usize, LogError)>,
}

#[derive(Debug)]
struct Next {
    order: OrderKey,
    /// Nothing where it was not read yet.
    batch: Option<Batch>,
    cursor: usize,
}

impl PartialEq for Next {
    fn eq(&self, other: &Self) -> bool {
        self.order == other.order
    }
}

impl Eq for Next {}

impl PartialOrd for Next {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Next {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order.cmp(&other.order)
    }
}

impl<'a> Merge<'a> {
    fn of(cursors: Vec<Cursor<'a>>) -> Self {
        let mut merge = Self::unopened(cursors);
        for at in 0..merge.cursors.len() {
            merge.advance_or_note(at);
        }
        merge
    }

    fn unopened(mut cursors: Vec<Cursor<'a>>) -> Self {
        let ahead = (4 * AHEAD / cursors.len().max(1) as u64).clamp(LEAST_AHEAD, AHEAD);
        for cursor in &mut cursors {
            cursor.ahead = ahead;
        }
        Self {
            cursors,
            heap: BinaryHeap::new(),
            failed: VecDeque::new(),
        }
    }

    /// Where the next batch of each part stands in the order, of those that have one which can be read: by places in the list that the merge was given.
    pub fn orders(&self) -> impl Iterator<Item = (usize, &OrderKey)> {
        let next = self.heap.iter();
        next.map(|Reverse(next)| (next.cursor, &next.order))
    }

    /// The next batch. The first of each feed may hold events before the place that was asked for.
    ///
    /// # Errors
    /// As [`Cursor::next_batch`], once for each damaged stretch, when everything before it was given; the next call goes on behind it.
    pub fn next_batch(&mut self) -> Result<Option<Batch>, LogError> {
        let next = self.next_of().map_err(|(_, error)| error)?;
        Ok(next.map(|(_, batch)| batch))
    }

    /// As [`Self::next_batch`], with the place of its part in the list that was given to [`Log::merge_parts`]. What retention removed meanwhile is
    /// passed over as what is damaged is.
    ///
    /// # Errors
    /// As [`Self::next_batch`], with the same place.
    pub fn next_of(&mut self) -> Result<Option<(usize, Batch)>, (usize, LogError)> {
        loop {
            if let Some(failed) = self.failed.pop_front() {
                return Err(self.pass_over(failed));
            }
            let Some(Reverse(next)) = self.heap.pop() else {
                return Ok(None);
            };
            self.advance_or_note(next.cursor);
            if let Some(batch) = next.batch {
                return Ok(Some((next.cursor, batch)));
            }
        }
    }

    /// Goes on behind what could not be read.
    fn pass_over(&mut self, (at, error): (usize, LogError)) -> (usize, LogError) {
        let behind = match &error {
            LogError::Damaged { to, .. } => Some(*to),
            LogError::Trimmed { low, .. } => Some(*low),
            _ => None,
        };
        if let Some(behind) = behind.filter(|behind| *behind > self.cursors[at].position()) {
            self.cursors[at].seek(behind);
            self.advance_or_note(at);
        }
        (at, error)
    }

    fn advance_or_note(&mut self, cursor: usize) {
        if let Err(error) = self.advance(cursor) {
            self.failed.push_back((cursor, error));
        }
    }

    fn advance(&mut self, cursor: usize) -> Result<(), LogError> {
        if let Some(batch) = self.cursors[cursor].next_batch()? {
            self.heap.push(Reverse(Next {
                order: batch.order(batch.first()),
                batch: Some(batch),
                cursor,
            }));
        }
        Ok(())
    }
}

impl Log {
    /// A batch whose checksum is right and whose content is not: written by somebody else.
    fn note_damage(&self, tag: &Tag) {
        let found = {
            let state = self.state();
            self.find_digest(&state, &tag.digest)
        };
        if let Ok(Some(found)) = found {
            self.state_mut().mark_bad(found.segment, found.at);
        }
    }
}
