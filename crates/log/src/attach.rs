//! The log on disk as consumers and replication see it. Blocks; decides nothing.

use crate::{
    batch::Batch,
    cbor::digest_of,
    consume::{LogSink, LogSource, Portion, SourceError, Span},
    core::{reconcile::Tip, replicate::NotAppended},
    error::LogError,
    event::{MAX_EVENTS_BYTES, NewEvent},
    feed::{EventHash, FeedId, Seq},
    log::{Head, Log},
    state::Feed,
    stream::StreamName,
};
use bytes::Bytes;

/// What a list of events may take beside its payloads: room for headers, and for the other half of what a batch takes.
const MAX_APPEND: usize = MAX_EVENTS_BYTES / 2;

/// Batches for another node: see [`Output::Load`](crate::core::replicate::Output::Load).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Loaded {
    /// In order.
    pub batches: Vec<Bytes>,
    /// There is more on the way to the tip.
    pub more: bool,
    /// The first event that the log still holds of the feed.
    pub starts: Seq,
}

/// Events in lists that one append takes.
pub(crate) fn lists(events: Vec<NewEvent>) -> Vec<Vec<NewEvent>> {
    let (mut lists, mut size) = (Vec::new(), 0);
    for event in events {
        let pairs = event
            .headers
            .user
            .iter()
            .map(|(key, value)| key.len() + value.len());
        let takes = event.payload.len() + 256 + pairs.sum::<usize>();
        match lists.last_mut() {
            Some(list) if size + takes <= MAX_APPEND => {
                let list: &mut Vec<NewEvent> = list;
                list.push(event);
                size += takes;
            }
            _ => {
                lists.push(vec![event]);
                size = takes;
            }
        }
    }
    lists
}

impl Log {
    /// The last batches of a feed, one a branch: what replication is told of it.
    #[must_use]
    pub fn feed_tips(&self, feed: &FeedId) -> Vec<(Seq, [u8; 32])> {
        match self.head(feed) {
            Some(head) if !head.forked => tip_of(&head).into_iter().collect(),
            Some(_) => self
                .heads()
                .iter()
                .filter(|head| head.feed == *feed)
                .filter_map(tip_of)
                .collect(),
            None => Vec::new(),
        }
    }

    /// The last batches of all feeds: what replication is told at the start.
    #[must_use]
    pub fn all_tips(&self) -> Vec<Tip> {
        let tip = |head: &Head| {
            let (next, batch) = tip_of(head)?;
            let feed = head.feed.clone();
            Some(Tip { feed, next, batch })
        };
        self.heads().iter().filter_map(tip).collect()
    }

    /// Batches from the one that holds `from` on, towards the batch `tip`; towards the end of the feed if that one is no end here.
    ///
    /// # Errors
    /// As [`Log::range`].
    pub fn load_towards(
        &self,
        feed: &FeedId,
        from: Seq,
        tip: [u8; 32],
        bytes: u64,
    ) -> Result<Loaded, LogError> {
        let Some(head) = self.head(feed) else {
            return Ok(Loaded::default());
        };
        let from = from.max(head.low);
        let branch = match head.forked {
            true => self.branch_of(feed, tip)?,
            false => None,
        };
        let mut loaded = Loaded {
            starts: head.low,
            ..Loaded::default()
        };
        let Some((branch, first)) = branch else {
            let chunk = match from < head.next {
                true => self.range(feed, from, bytes)?,
                false => return Ok(loaded),
            };
            loaded.more = !chunk.is_end;
            loaded.batches = chunk
                .blocks
                .iter()
                .map(|block| block.data().clone())
                .collect();
            return Ok(loaded);
        };
        // What both branches have comes first.
        let mut left = bytes;
        if from < first {
            let mut next = from;
            for block in self.range(feed, from, bytes)?.blocks {
                let batch = Batch::decode(block.data().clone()).ok();
                let Some(batch) = batch.filter(|batch| batch.end() <= first) else {
                    break;
                };
                next = batch.end();
                left = left.saturating_sub(block.data().len() as u64);
                loaded.batches.push(block.data().clone());
            }
            if next < first || left == 0 {
                loaded.more = true;
                return Ok(loaded);
            }
        }
        let chunk = self.branch_range(feed, &branch, from.max(first), left)?;
        loaded.more = !chunk.is_end;
        loaded
            .batches
            .extend(chunk.blocks.iter().map(|block| block.data().clone()));
        Ok(loaded)
    }

    /// The branch that ends with this batch: the name and the place of its first batch.
    fn branch_of(&self, feed: &FeedId, tip: [u8; 32]) -> Result<Option<(cid::Cid, Seq)>, LogError> {
        let is_it = |head: &&Head| head.feed == *feed && digest_of(&head.cid) == Some(tip);
        let heads = self.heads();
        let Some(branch) = heads.iter().find(is_it).and_then(|head| head.branch) else {
            return Ok(None);
        };
        let block = self.block(&branch)?;
        let first = block.and_then(|block| Batch::decode(block.data().clone()).ok());
        Ok(first.map(|batch| (branch, batch.first())))
    }

    /// Which of these batches are not here.
    ///
    /// # Errors
    /// As [`Log::block`].
    pub fn unknown_tips(&self, tips: Vec<Tip>) -> Result<Vec<Tip>, LogError> {
        let mut unknown = Vec::new();
        for tip in tips {
            if self.block(&crate::batch::cid_of(&tip.batch))?.is_none() {
                unknown.push(tip);
            }
        }
        Ok(unknown)
    }

    /// Appends what replication wants appended; `begins`: the first one begins the feed here, although it is not its first.
    ///
    /// # Errors
    /// [`NotAppended`], as replication takes it.
    pub fn append_run(
        &self,
        batches: Vec<Batch>,
        begins: bool,
    ) -> Result<Vec<(Seq, [u8; 32])>, NotAppended> {
        let mut batches = batches;
        let Some(first) = batches.first() else {
            return Ok(Vec::new());
        };
        let (feed, before) = (first.feed().clone(), first.prev());
        let appended = self.append_all(&mut batches, begins);
        appended.map_err(|error| self.why(error, before))?;
        Ok(self.feed_tips(&feed))
    }

    fn append_all(&self, batches: &mut Vec<Batch>, begins: bool) -> Result<(), LogError> {
        if begins {
            self.begin_replica(batches.remove(0))?;
        }
        let results = self.append_replicas(std::mem::take(batches));
        results.into_iter().try_for_each(|result| result.map(drop))
    }

    /// A batch of another history whose predecessor is not here yet is no fault of anybody: what is before it has to be fetched first.
    fn why(&self, error: LogError, before: Option<cid::Cid>) -> NotAppended {
        let is_here = |cid: &cid::Cid| matches!(self.block(cid), Ok(Some(_)));
        match error {
            LogError::Gap { .. } => NotAppended::Gap,
            LogError::BadChain { .. } if before.is_some_and(|cid| !is_here(&cid)) => {
                NotAppended::Gap
            }
            LogError::BadChain { .. } => NotAppended::Invalid,
            LogError::Quota { .. } => NotAppended::Quota,
            _ => NotAppended::Disk,
        }
    }
}

fn tip_of(head: &Head) -> Option<(Seq, [u8; 32])> {
    Some((head.next, digest_of(&head.cid)?))
}

fn failed(error: LogError) -> SourceError {
    SourceError(Box::new(error))
}

impl LogSource for Log {
    fn spans(&self) -> Result<Vec<Span>, SourceError> {
        let (_, mut spans) = self.spans_since(0)?;
        spans.sort_by(|a, b| a.feed.cmp(&b.feed));
        Ok(spans)
    }

    fn spans_since(&self, mark: u64) -> Result<(u64, Vec<Span>), SourceError> {
        let state = self.state();
        let (mark, feeds) = state.changed_since(mark);
        let main = feeds.filter(|feed| feed.tip.branch.is_none() && feed.tip.head.is_some());
        let span = |feed: &Feed| Span {
            feed: feed.tip.id.clone(),
            first: feed.low,
            next: feed.tip.next,
        };
        Ok((mark, main.map(span).collect()))
    }

    fn read(
        &self,
        feed: &FeedId,
        from: Seq,
        most: usize,
        bytes: usize,
    ) -> Result<Option<Portion>, SourceError> {
        let mut cursor = self.cursor(feed, from);
        let (mut events, mut size, mut hash) = (Vec::new(), 0, None);
        while events.len() < most && (size < bytes || events.is_empty()) {
            let batch = match cursor.next_batch() {
                Ok(Some(batch)) => batch,
                Ok(None) => break,
                Err(LogError::NoFeed(_) | LogError::Trimmed { .. }) if events.is_empty() => {
                    return Ok(None);
                }
                // What comes behind is told when it is asked for.
                Err(_) if !events.is_empty() => break,
                Err(error) => return Err(failed(error)),
            };
            for event in batch.events().filter(|event| event.seq >= from) {
                if events.len() >= most || size >= bytes && !events.is_empty() {
                    break;
                }
                let event = batch.own(&event);
                size += event.weight();
                events.push(event);
            }
            hash = events
                .last()
                .and_then(|event| batch.event_hash(event.seq))
                .or(hash);
        }
        Ok(hash.map(|hash| Portion { events, hash }))
    }

    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError> {
        match self.cursor(feed, seq).next_batch() {
            Ok(batch) => Ok(batch.and_then(|batch| batch.event_hash(seq))),
            Err(LogError::NoFeed(_) | LogError::Trimmed { .. }) => Ok(None),
            Err(error) => Err(failed(error)),
        }
    }

    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError> {
        match self.seq_at_time(feed, time) {
            Ok(seq) => Ok(seq),
            Err(LogError::NoFeed(_)) => Ok(0),
            Err(error) => Err(failed(error)),
        }
    }
}

impl LogSink for Log {
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        for list in lists(events) {
            match Log::append(self, stream, &list) {
                // It was appended so long ago that its place is not remembered.
                Ok(_) | Err(LogError::OldProducer { .. }) => {}
                Err(error) => return Err(failed(error)),
            }
        }
        Ok(())
    }

    fn wall_ms(&self) -> i64 {
        self.wall()
    }
}
