//! What is known of feeds, and how it is written down at the end of each full segment (specs/log.md §6.4).

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ring::digest::{SHA256, digest};

use crate::epoch::{is_drawn, unused_epoch};
use crate::feed::{Author, Epoch, FeedId, FeedKey, MAX_NUMBER, Seq};
use crate::format::{Place, Tag, Take, put_feed, take_feed};
use crate::index::{Index, Resident, Segment, frame_bytes};
use crate::producers::Producers;
use crate::skip::Spine;
use crate::stream::StreamName;

/// How far one batch may set the logical clock forward: a hostile author needs 2^21 batches to bring it to its end.
const MAX_LEAP: u64 = 1 << 32;
/// Damaged batches that are remembered until they are repaired; a scrub finds the others again.
const MAX_BAD: usize = 65_536;

/// Which feeds of ours are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closed {
    /// None.
    None,
    /// Those to which somebody else may write, too: [`State::sole`] says which are not.
    Shared,
    /// All.
    All,
}

/// The end of a feed, as the next batch must know it.
#[derive(Clone, Debug)]
pub(crate) struct Tip {
    pub(crate) id: FeedId,
    /// The first batch of a branch that its author forked off; `None` for the feed itself.
    pub(crate) branch: Option<[u8; 32]>,
    pub(crate) next: Seq,
    /// Number of the next batch.
    pub(crate) number: u64,
    /// The last batch; `None` if there never was one.
    pub(crate) head: Option<[u8; 32]>,
    pub(crate) lamport: u64,
    pub(crate) time: i64,
    /// Of feeds that are written here.
    pub(crate) spine: Option<Spine>,
    /// Own feed that is not written to any more: its end was in doubt, or others know more of it.
    pub(crate) closed: bool,
}

/// A feed.
#[derive(Clone, Debug)]
pub(crate) struct Feed {
    pub(crate) tip: Tip,
    /// First place that is here; `next` if nothing is.
    pub(crate) low: Seq,
    /// Bytes of its batches on disk.
    pub(crate) bytes: u64,
    /// When it changed last: see [`State::changes`].
    pub(crate) changed: u64,
}

impl Tip {
    pub(crate) fn new(id: FeedId, is_own: bool) -> Self {
        Self {
            id,
            branch: None,
            next: 0,
            number: 0,
            head: None,
            lamport: 0,
            time: 0,
            spine: is_own.then(Spine::default),
            closed: false,
        }
    }

    /// The same feed with this batch at its end.
    pub(crate) fn push(&mut self, tag: &Tag) {
        if tag.number != self.number && self.spine.take().is_some() {
            // A batch of ours is damaged: nobody here knows what later skip links would name.
            self.closed = true;
        }
        if let Some(spine) = &mut self.spine {
            spine.push(tag.number, tag.digest);
        }
        self.next = tag.end();
        self.number = tag.number + 1;
        self.head = Some(tag.digest);
        self.lamport = tag.lamport;
        self.time = tag.time;
    }
}

/// The key of a branch that begins with this batch.
pub(crate) fn branch_key(id: &FeedId, first: &[u8; 32]) -> FeedKey {
    let mut bytes = b"gemba log fork 1".to_vec();
    bytes.extend_from_slice(first);
    id.put(&mut bytes);
    let hash = digest(&SHA256, &bytes);
    let mut key = [0; 16];
    key.copy_from_slice(&hash.as_ref()[..16]);
    FeedKey(key)
}

/// All of it.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) me: Author,
    pub(crate) feeds: BTreeMap<FeedKey, Feed>,
    /// Feeds in the order in which they changed last, each once: who asks again is told of those behind the last that it was told of.
    changes: BTreeMap<u64, FeedKey>,
    /// The number of the next change.
    next_change: u64,
    /// The feed that is written to, of each stream.
    pub(crate) own: BTreeMap<StreamName, FeedKey>,
    pub(crate) producers: Producers,
    /// Feeds of ours that were begun since the opening, in epochs that were drawn: nobody but this log writes to them, and who writes with our key elsewhere
    /// is no reason to leave them.
    pub(crate) sole: BTreeSet<FeedKey>,
    /// The logical clock: no batch that was seen has a later time, within the limit of leaps.
    pub(crate) clock: u64,
    pub(crate) segments: BTreeMap<u32, Arc<Segment>>,
    /// Their bytes.
    pub(crate) sizes: BTreeMap<u32, u64>,
    /// Batches that were found damaged: segment and offset.
    pub(crate) bad: BTreeSet<(u32, u32)>,
    /// No new feed of ours has an epoch below this one. Where it is one that was drawn, each that follows is (LOG-5).
    pub(crate) least_epoch: u64,
}

impl State {
    pub(crate) fn new(me: Author, max_producers: usize) -> Self {
        Self {
            me,
            feeds: BTreeMap::new(),
            changes: BTreeMap::new(),
            next_change: 1,
            own: BTreeMap::new(),
            producers: Producers::new(max_producers),
            sole: BTreeSet::new(),
            clock: 0,
            segments: BTreeMap::new(),
            sizes: BTreeMap::new(),
            bad: BTreeSet::new(),
            least_epoch: 0,
        }
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sizes.values().sum()
    }

    /// The tip of the feed that the next events of a stream go to, if that is open after `closed`.
    pub(crate) fn own_tip(&self, stream: &StreamName, closed: Closed) -> Option<(FeedKey, Tip)> {
        let key = self.own.get(stream)?;
        let is_open = match closed {
            Closed::None => true,
            Closed::Shared => self.sole.contains(key),
            Closed::All => false,
        };
        let feed = self.feeds.get(key).filter(|feed| !feed.tip.closed)?;
        is_open.then(|| (*key, feed.tip.clone()))
    }

    /// A feed of ours that nobody has written to, in this stream, and of no epoch below `least`; `others` are feeds that are not in the state yet.
    ///
    /// Epochs count up. Once one was drawn, in any stream, or `least` was, so is each that follows, anew: whoever else writes with our key would count up as
    /// well, and knows `least` if he has a copy of this log.
    pub(crate) fn next_epoch<'a>(
        &'a self,
        stream: &StreamName,
        others: impl Iterator<Item = &'a FeedId>,
        least: u64,
    ) -> (FeedKey, Tip) {
        let known = self.feeds.values().map(|feed| &feed.tip.id).chain(others);
        let (mut last, mut draws) = (None, is_drawn(least));
        for id in known.filter(|id| id.author == self.me) {
            draws |= is_drawn(id.epoch.0);
            if id.stream == *stream {
                last = last.max(Some(id.epoch.0));
            }
        }
        let epoch = match draws {
            true => unused_epoch(least.max(last.unwrap_or(0))),
            false => least.max(last.map_or(0, |last| last + 1)),
        };
        let id = FeedId {
            author: self.me,
            stream: stream.clone(),
            epoch: Epoch(epoch),
        };
        (id.key(), Tip::new(id, true))
    }

    fn has_changed(&mut self, key: FeedKey) {
        if let Some(feed) = self.feeds.get_mut(&key) {
            self.changes.remove(&feed.changed);
            feed.changed = self.next_change;
            self.changes.insert(self.next_change, key);
            self.next_change += 1;
        }
    }

    /// The feeds that changed behind a mark, all behind 0, and the mark behind which those stand that change from now on.
    pub(crate) fn changed_since(&self, mark: u64) -> (u64, impl Iterator<Item = &Feed>) {
        let changed = self.changes.range(mark.saturating_add(1)..);
        let feeds = changed.filter_map(|(_, key)| self.feeds.get(key));
        (self.next_change - 1, feeds)
    }

    /// Moves the clock so that what is written next is later than what was seen.
    pub(crate) fn observe(clock: &mut u64, lamport: u64) {
        let leap = clock.saturating_add(MAX_LEAP).min(MAX_NUMBER - 1);
        *clock = (*clock).max(lamport.min(leap));
    }

    /// Enters a batch at the end of its feed, or a repaired one into its middle. `tip` where the feed is new.
    pub(crate) fn apply(&mut self, tag: &Tag, len: u32, new: Option<&Tip>) -> bool {
        let feed = match self.feeds.entry(tag.key) {
            Entry::Occupied(feed) => feed.into_mut(),
            Entry::Vacant(place) => match new {
                Some(tip) => {
                    if tip.spine.is_some() && is_drawn(tip.id.epoch.0) {
                        self.sole.insert(tag.key);
                    }
                    place.insert(Feed {
                        tip: tip.clone(),
                        low: tag.first,
                        bytes: 0,
                        changed: 0,
                    })
                }
                None => return false,
            },
        };
        feed.bytes += frame_bytes(len);
        let is_next = tag.first >= feed.tip.next;
        if feed.low == feed.tip.next && is_next || tag.first < feed.low {
            feed.low = tag.first;
        }
        if is_next {
            feed.tip.push(tag);
            let (is_mine, id) = (feed.tip.id.author == self.me, feed.tip.id.clone());
            if is_mine && feed.tip.branch.is_none() && !feed.tip.closed {
                self.note_own(id.stream, tag.key);
            }
        }
        Self::observe(&mut self.clock, tag.lamport);
        self.has_changed(tag.key);
        true
    }

    fn note_own(&mut self, stream: StreamName, key: FeedKey) {
        let epoch = |key: &FeedKey| self.feeds.get(key).map(|feed| feed.tip.id.epoch);
        match self.own.get(&stream) {
            Some(known) if epoch(known) >= epoch(&key) => {}
            _ => {
                self.own.insert(stream, key);
            }
        }
    }

    /// The next events of every stream go into new epochs, but for those in feeds that stay open.
    pub(crate) fn close_own(&mut self, closed: Closed) {
        if closed == Closed::All {
            self.sole.clear();
        }
        let (me, sole) = (self.me, &self.sole);
        for (key, feed) in &mut self.feeds {
            if feed.tip.id.author == me && !sole.contains(key) {
                feed.tip.closed = true;
                feed.tip.spine = None;
            }
        }
        self.own.retain(|_, key| sole.contains(key));
    }

    pub(crate) fn mark_bad(&mut self, segment: u32, at: u32) {
        if self.bad.len() < MAX_BAD {
            self.bad.insert((segment, at));
        }
    }

    /// Enters a batch into the index of a segment that is in memory.
    pub(crate) fn index(&self, segment: u32, tag: &Tag, at: u32, len: u32) {
        if let Some(segment) = self.segments.get(&segment)
            && let Index::Resident(resident) = &segment.index
        {
            let mut resident: std::sync::RwLockWriteGuard<'_, Resident> = resident
                .write()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            resident.insert(tag, at, len);
        }
    }

    /// Bytes and lowest places follow from the segments that are there.
    pub(crate) fn recount(&mut self) {
        let mut found: BTreeMap<FeedKey, (Seq, u64)> = BTreeMap::new();
        for segment in self.segments.values() {
            for span in segment.spans() {
                let entry = found.entry(span.key).or_insert((span.first, 0));
                entry.0 = entry.0.min(span.first);
                entry.1 += span.bytes;
            }
        }
        let mut changed = Vec::new();
        for (key, feed) in &mut self.feeds {
            let (low, bytes) = found.get(key).copied().unwrap_or((feed.tip.next, 0));
            if feed.low != low {
                changed.push(*key);
            }
            feed.low = low;
            feed.bytes = bytes;
        }
        for key in changed {
            self.has_changed(key);
        }
    }

    /// Feeds and bytes of an author.
    pub(crate) fn used_by(&self, author: &Author) -> (usize, u64) {
        let feeds = self.feeds.values();
        let feeds = feeds.filter(|feed| feed.tip.id.author == *author);
        feeds.fold((0, 0), |(count, bytes), feed| {
            (count + 1, bytes + feed.bytes)
        })
    }

    /// The branches of a feed that its author forked off.
    pub(crate) fn branches<'a>(
        &'a self,
        id: &'a FeedId,
    ) -> impl Iterator<Item = (&'a FeedKey, &'a Feed)> {
        let feeds = self.feeds.iter();
        feeds.filter(move |(_, feed)| feed.tip.branch.is_some() && feed.tip.id == *id)
    }

    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.extend_from_slice(&self.me.0);
        out.extend_from_slice(&self.clock.to_le_bytes());
        out.extend_from_slice(&(self.feeds.len() as u32).to_le_bytes());
        for feed in self.feeds.values() {
            let tip = &feed.tip;
            put_feed(&tip.id, &mut out);
            put_digest(tip.branch.as_ref(), &mut out);
            put_digest(tip.head.as_ref(), &mut out);
            for number in [tip.next, tip.number, tip.lamport, tip.time as u64] {
                out.extend_from_slice(&number.to_le_bytes());
            }
            out.push(u8::from(tip.closed));
            let spine = tip.spine.as_ref().map_or(&[][..], Spine::digests);
            out.push(u8::from(tip.spine.is_some()));
            out.extend_from_slice(&(spine.len() as u32).to_le_bytes());
            spine
                .iter()
                .for_each(|digest| out.extend_from_slice(digest));
        }
        self.producers.encode(&mut out);
        out.extend_from_slice(&self.least_epoch.to_le_bytes());
        out
    }

    /// Takes over what was written down. `None` if it is not whole, which a checksum has ruled out.
    pub(crate) fn decode(&mut self, bytes: &[u8], max_producers: usize) -> Option<()> {
        let mut from = Take(bytes);
        let me = Author(from.array()?);
        let clock = from.u64()?;
        let mut feeds = BTreeMap::new();
        for _ in 0..from.u32()? {
            let id = take_feed(&mut from)?;
            let branch = take_digest(&mut from)?;
            let head = take_digest(&mut from)?;
            let next = from.u64()?;
            let number = from.u64()?;
            let lamport = from.u64()?;
            let time = from.u64()? as i64;
            let closed = from.flag()?;
            let has_spine = from.flag()?;
            let len = from.u32()?;
            let spine: Option<Vec<_>> = (0..len).map(|_| from.array()).collect();
            let spine = spine?;
            let key = match &branch {
                Some(first) => branch_key(&id, first),
                None => id.key(),
            };
            let tip = Tip {
                id,
                branch,
                next,
                number,
                head,
                lamport,
                time,
                spine: has_spine.then(|| Spine::from_digests(spine)),
                closed,
            };
            feeds.insert(
                key,
                Feed {
                    tip,
                    low: next,
                    bytes: 0,
                    changed: 0,
                },
            );
        }
        let producers = Producers::decode(&mut from, max_producers)?;
        let least_epoch = from.u64()?;
        if !from.0.is_empty() {
            return None;
        }
        self.feeds = feeds;
        self.least_epoch = self.least_epoch.max(least_epoch);
        self.clock = clock;
        self.producers = producers;
        self.own.clear();
        self.changes.clear();
        let keys: Vec<_> = self.feeds.keys().copied().collect();
        for key in keys {
            self.has_changed(key);
            let tip = &self.feeds[&key].tip;
            // A log whose node has a new key goes on: what was its own is another author's now.
            if tip.id.author == self.me && me == self.me && tip.branch.is_none() && !tip.closed {
                let stream = tip.id.stream.clone();
                self.note_own(stream, key);
            }
        }
        Some(())
    }
}

fn put_digest(digest: Option<&[u8; 32]>, out: &mut Vec<u8>) {
    out.push(u8::from(digest.is_some()));
    out.extend_from_slice(digest.unwrap_or(&[0; 32]));
}

fn take_digest(from: &mut Take<'_>) -> Option<Option<[u8; 32]>> {
    let is_there = from.flag()?;
    let digest = from.array()?;
    Some(is_there.then_some(digest))
}

/// Whether a place may be read.
pub(crate) fn is_good(bad: &BTreeSet<(u32, u32)>, segment: u32, place: &Place) -> bool {
    !bad.contains(&(segment, place.at))
}
