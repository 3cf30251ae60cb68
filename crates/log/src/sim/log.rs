//! The log of a node as a model: batches in memory, with the rules that matter to consumers and replication. No disk, no retention.

use crate::{
    batch::{Batch, Draft, Sealer},
    consume::{LogSink, LogSource, Portion, SourceError, Span},
    core::{reconcile::Tip, replicate::NotAppended},
    event::{EventList, NewEvent},
    feed::{Author, Epoch, EventHash, FeedId, MemorySigner, OrderKey, Seq, Signer},
    skip::Spine,
    stream::StreamName,
};
use bytes::Bytes;
use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Last batches of a feed: place behind, and digest; one a branch.
type FeedTips = Vec<(Seq, [u8; 32])>;

/// A log in memory. Thread-safe; what an append returned for is kept.
#[derive(Debug)]
pub struct MemoryLog {
    signer: MemorySigner,
    model: Mutex<Model>,
}

#[derive(Debug, Default)]
struct Model {
    feeds: BTreeMap<FeedId, Feed>,
    producers: BTreeMap<(StreamName, String), u64>,
    lamport: u64,
    epoch: u64,
    quota: Option<usize>,
    by_author: BTreeMap<Author, usize>,
    /// Feeds that grew since they were asked for.
    grown: BTreeSet<FeedId>,
    /// Feeds whose main history is another one now.
    changed: BTreeSet<FeedId>,
}

#[derive(Debug, Default)]
struct Feed {
    batches: BTreeMap<[u8; 32], Batch>,
    /// The history that consumers read: where it branches, the smaller digest.
    main: Vec<[u8; 32]>,
    /// Last batches of all branches.
    tips: BTreeSet<(Seq, [u8; 32])>,
    /// For own feeds.
    spine: Spine,
}

impl MemoryLog {
    /// An empty log of the author with this secret.
    pub fn new(seed: [u8; 32]) -> Self {
        Self {
            signer: MemorySigner::from_seed(&seed),
            model: Mutex::default(),
        }
    }

    /// A copy, as a cloned device has one: it writes on in the same feeds.
    pub fn cloned(&self, seed: [u8; 32]) -> Self {
        let copy = Self::new(seed);
        {
            let (ours, mut theirs) = (self.lock(), copy.lock());
            for (id, feed) in &ours.feeds {
                let feed = Feed {
                    batches: feed.batches.clone(),
                    main: feed.main.clone(),
                    tips: feed.tips.clone(),
                    spine: feed.spine.clone(),
                };
                theirs.feeds.insert(id.clone(), feed);
            }
            theirs.lamport = ours.lamport;
        }
        copy
    }

    /// Bytes that each other author may store here.
    pub fn set_quota(&self, bytes: usize) {
        self.lock().quota = Some(bytes);
    }

    /// Goes on in a new epoch, as after a restore.
    pub fn set_epoch(&self, epoch: u64) {
        self.lock().epoch = epoch;
    }

    /// Forgets the batches of a feed from this place on, as a restored backup has.
    pub fn shorten(&self, feed: &FeedId, to: Seq) {
        let mut model = self.lock();
        if let Some(feed) = model.feeds.get_mut(feed) {
            feed.batches.retain(|_, batch| batch.end() <= to);
            feed.rebuild();
        }
    }

    /// Who writes.
    pub fn author(&self) -> Author {
        self.signer.author()
    }

    /// The feed of this author in a stream.
    pub fn own_feed(&self, stream: &StreamName) -> FeedId {
        FeedId {
            author: self.author(),
            stream: stream.clone(),
            epoch: Epoch(self.lock().epoch),
        }
    }

    /// Last batches of a feed.
    pub fn tips(&self, feed: &FeedId) -> FeedTips {
        let model = self.lock();
        let tips = model
            .feeds
            .get(feed)
            .map(|feed| feed.tips.iter().copied().collect());
        tips.unwrap_or_default()
    }

    /// Last batches of all feeds, sorted.
    pub fn all_tips(&self) -> Vec<Tip> {
        let model = self.lock();
        let of = |(id, feed): (&FeedId, &Feed)| {
            let tips = feed.tips.iter().map(|(next, batch)| Tip {
                feed: id.clone(),
                next: *next,
                batch: *batch,
            });
            tips.collect::<Vec<_>>()
        };
        model.feeds.iter().flat_map(of).collect()
    }

    /// The last batch of an own feed.
    pub fn last(&self, feed: &FeedId) -> Option<Bytes> {
        let model = self.lock();
        let feed = model.feeds.get(feed)?;
        let batch = feed.batches.get(feed.main.last()?)?;
        Some(batch.bytes().clone())
    }

    /// Feeds that grew since the last call.
    pub fn grown(&self) -> Vec<FeedId> {
        std::mem::take(&mut self.lock().grown).into_iter().collect()
    }

    /// Feeds whose history changed since the last call.
    pub fn changed(&self) -> Vec<FeedId> {
        std::mem::take(&mut self.lock().changed)
            .into_iter()
            .collect()
    }

    /// The total order of all batches; each stands for its events.
    pub fn order(&self) -> Vec<OrderKey> {
        let model = self.lock();
        let batches = model.feeds.values().flat_map(|feed| feed.batches.values());
        let mut keys: Vec<OrderKey> = batches.map(|batch| batch.order(batch.first())).collect();
        keys.sort();
        keys
    }

    /// Appends what others sent: batches of one feed that follow on each other.
    ///
    /// # Errors
    /// [`NotAppended`].
    pub fn append_replica(&self, batches: &[Batch]) -> Result<FeedTips, NotAppended> {
        let mut model = self.lock();
        let mut result = Ok(());
        let mut id = None;
        for batch in batches {
            id = Some(batch.feed().clone());
            result = model.take(batch);
            if result.is_err() {
                break;
            }
        }
        result?;
        let feed = id.as_ref().and_then(|id| model.feeds.get(id));
        Ok(feed
            .map(|feed| feed.tips.iter().copied().collect())
            .unwrap_or_default())
    }

    /// Batches from the one that holds `from` on, towards `tip`, and whether there are more.
    pub fn load(
        &self,
        feed: &FeedId,
        from: Seq,
        tip: [u8; 32],
        bytes: u64,
    ) -> (Vec<Bytes>, bool, Seq) {
        let model = self.lock();
        let Some(feed) = model.feeds.get(feed) else {
            return (Vec::new(), false, 0);
        };
        let path = feed.path(tip, from);
        let (mut found, mut size, total) = (Vec::new(), 0, path.len());
        for batch in path {
            let len = batch.bytes().len() as u64;
            if !found.is_empty() && size + len > bytes {
                break;
            }
            size += len;
            found.push(batch.bytes().clone());
        }
        let more = found.len() < total;
        (found, more, 0)
    }

    /// Which of these batches are not here.
    pub fn unknown(&self, tips: Vec<Tip>) -> Vec<Tip> {
        let model = self.lock();
        let is_here = |tip: &Tip| {
            model
                .feeds
                .get(&tip.feed)
                .is_some_and(|feed| feed.batches.contains_key(&tip.batch))
        };
        tips.into_iter().filter(|tip| !is_here(tip)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Model {
    fn take(&mut self, batch: &Batch) -> Result<(), NotAppended> {
        let size = batch.bytes().len();
        let author = batch.feed().author;
        let used = self.by_author.get(&author).copied().unwrap_or(0);
        let feed = self.feeds.get(batch.feed());
        if feed.is_some_and(|feed| feed.batches.contains_key(batch.digest())) {
            return Ok(());
        }
        match batch.prev_digest() {
            None if batch.first() == 0 && batch.number() == 0 => {}
            None => return Err(NotAppended::Invalid),
            Some(prev) => {
                let before = feed
                    .and_then(|feed| feed.batches.get(prev))
                    .ok_or(NotAppended::Gap)?;
                let follows = before.end() == batch.first()
                    && before.number() + 1 == batch.number()
                    && before.lamport() < batch.lamport();
                if !follows {
                    return Err(NotAppended::Invalid);
                }
            }
        }
        if self.quota.is_some_and(|quota| used + size > quota) {
            return Err(NotAppended::Quota);
        }
        self.by_author.insert(author, used + size);
        self.lamport = self.lamport.max(batch.lamport());
        let feed = self.feeds.entry(batch.feed().clone()).or_default();
        if feed.put(batch.clone()) {
            self.changed.insert(batch.feed().clone());
        }
        self.grown.insert(batch.feed().clone());
        Ok(())
    }
}

impl Feed {
    /// Returns whether the main history is another one now.
    fn put(&mut self, batch: Batch) -> bool {
        let (digest, prev) = (*batch.digest(), batch.prev_digest().copied());
        let follows = self.main.last().copied() == prev;
        let is_fork = !follows
            && self
                .batches
                .values()
                .any(|other| other.prev_digest().copied() == prev);
        if let Some(prev) = prev {
            self.tips.retain(|(_, tip)| *tip != prev);
        }
        self.tips.insert((batch.end(), digest));
        self.batches.insert(digest, batch);
        if follows {
            self.main.push(digest);
            return false;
        }
        let before = self.main.clone();
        self.rebuild();
        is_fork && !self.main.starts_with(&before)
    }

    /// Finds tips and the main history anew.
    fn rebuild(&mut self) {
        let mut children: BTreeMap<Option<[u8; 32]>, Vec<[u8; 32]>> = BTreeMap::new();
        for (digest, batch) in &self.batches {
            children
                .entry(batch.prev_digest().copied())
                .or_default()
                .push(*digest);
        }
        self.tips = self
            .batches
            .iter()
            .filter(|(digest, _)| !children.contains_key(&Some(**digest)))
            .map(|(digest, batch)| (batch.end(), *digest))
            .collect();
        self.main.clear();
        let mut at = None;
        while let Some(next) = children.get(&at).and_then(|next| next.first()) {
            self.main.push(*next);
            at = Some(*next);
        }
        self.spine = Spine::default();
        for (number, digest) in (0..).zip(&self.main) {
            self.spine.push(number, *digest);
        }
    }

    fn next(&self) -> Seq {
        let last = self.main.last().and_then(|digest| self.batches.get(digest));
        last.map_or(0, Batch::end)
    }

    /// Place in the main history of the batch that holds an event.
    fn index(&self, seq: Seq) -> usize {
        self.main.partition_point(|digest| {
            self.batches
                .get(digest)
                .is_some_and(|batch| batch.end() <= seq)
        })
    }

    fn path(&self, tip: [u8; 32], from: Seq) -> Vec<&Batch> {
        let is_main = !self.batches.contains_key(&tip) || self.main.contains(&tip);
        if is_main {
            let from = self.index(from).min(self.main.len());
            return self.main[from..]
                .iter()
                .filter_map(|digest| self.batches.get(digest))
                .collect();
        }
        let mut path = Vec::new();
        let mut at = self.batches.get(&tip);
        while let Some(batch) = at.filter(|batch| batch.end() > from) {
            path.push(batch);
            at = batch.prev_digest().and_then(|prev| self.batches.get(prev));
        }
        path.reverse();
        path
    }
}

impl LogSource for MemoryLog {
    fn spans(&self) -> Result<Vec<Span>, SourceError> {
        let model = self.lock();
        let span = |(id, feed): (&FeedId, &Feed)| Span {
            feed: id.clone(),
            first: 0,
            next: feed.next(),
        };
        Ok(model.feeds.iter().map(span).collect())
    }

    fn read(
        &self,
        feed: &FeedId,
        from: Seq,
        most: usize,
        bytes: usize,
    ) -> Result<Option<Portion>, SourceError> {
        let model = self.lock();
        let Some(feed) = model.feeds.get(feed) else {
            return Ok(None);
        };
        let (mut events, mut size, mut last) = (Vec::new(), 0, None);
        let main = feed.main.get(feed.index(from)..).unwrap_or_default();
        'all: for batch in main.iter().filter_map(|digest| feed.batches.get(digest)) {
            for event in batch.events().filter(|event| event.seq >= from) {
                if events.len() >= most || size >= bytes && !events.is_empty() {
                    break 'all;
                }
                size += event.payload.len();
                last = Some((batch, event.seq));
                events.push(batch.own(&event));
            }
        }
        let hash = last.and_then(|(batch, seq)| batch.event_hash(seq));
        Ok(hash.map(|hash| Portion { events, hash }))
    }

    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError> {
        let model = self.lock();
        let hash = model.feeds.get(feed).and_then(|feed| {
            let batch = feed.batches.get(feed.main.get(feed.index(seq))?)?;
            batch.event_hash(seq)
        });
        Ok(hash)
    }

    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError> {
        let model = self.lock();
        let Some(feed) = model.feeds.get(feed) else {
            return Ok(0);
        };
        let batches = feed
            .main
            .iter()
            .filter_map(|digest| feed.batches.get(digest));
        let mut found = batches
            .flat_map(|batch| batch.events())
            .filter(|event| event.time >= time);
        Ok(found.next().map_or(feed.next(), |event| event.seq))
    }
}

impl LogSink for MemoryLog {
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        let lists = crate::attach::lists(events);
        lists
            .into_iter()
            .try_for_each(|list| self.append_list(stream, list))
    }

    /// A simulated log has no clock on a wall: what is written depends on the seed alone.
    fn wall_ms(&self) -> i64 {
        0
    }
}

impl MemoryLog {
    fn append_list(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        let wrong = |error| SourceError(Box::new(error));
        let mut guard = self.lock();
        let model = &mut *guard;
        let id = FeedId {
            author: self.signer.author(),
            stream: stream.clone(),
            epoch: Epoch(model.epoch),
        };
        let mut fresh = Vec::new();
        let next = model.feeds.get(&id).map_or(0, Feed::next);
        for event in events {
            if let Some(producer) = &event.headers.producer {
                let key = (stream.clone(), producer.id.clone());
                if model
                    .producers
                    .get(&key)
                    .is_some_and(|last| producer.seq <= *last)
                {
                    continue;
                }
                model.producers.insert(key, producer.seq);
            }
            fresh.push(event);
        }
        if fresh.is_empty() {
            return Ok(());
        }
        let list = EventList::of(&fresh).map_err(wrong)?;
        model.lamport += 1;
        let lamport = model.lamport;
        let feed = model.feeds.entry(id.clone()).or_default();
        let number = feed.main.len() as u64;
        let prev = feed
            .main
            .last()
            .and_then(|digest| feed.batches.get(digest))
            .map(Batch::cid);
        let draft = Draft {
            feed: &id,
            number,
            first: next,
            lamport,
            prev,
            skip: feed.spine.links(number),
            events: &list,
            compress: true,
        };
        let batch = draft.seal(&self.signer, &mut Sealer::default());
        feed.spine.push(number, *batch.digest());
        feed.put(batch);
        model.grown.insert(id.clone());
        Ok(())
    }
}
