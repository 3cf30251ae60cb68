//! The event log of the node: the same code with a daemon and without one.
//!
//! `Events` is the log on this device with its consumers; `wire` is what the API and the command line say of events, `consumers` are those
//! who work through them, `about` is what streams say of themselves, `transfer` makes files of events. Everything here blocks on the disk and is called from threads that may.

pub mod about;
mod born;
pub mod consumers;
mod openings;
pub mod transfer;
pub mod waiting;
pub mod wire;

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

use gemba_log::{
    Author, Config as LogConfig, Event, EventList, Extent, FeedId, Head, Log, LogError,
    MAX_BATCH_BYTES, NameError, NewEvent, OpenError, OpenReport, OrderKey, Part, Pattern,
    Retention, Seq, Signer, StreamName, unused_epoch,
};
use gemba_segment::{Disk, RealDisk};
use libp2p_identity::{Keypair, PeerId, PublicKey};
use tokio::sync::watch;

use crate::api::types::{EventCounts, Trouble};
use crate::error::{Code, Fail};
use crate::repo::Repo;
use born::Born;
use consumers::Consumers;
use openings::Openings;

pub use openings::STREAM as OPENED;

/// Most events that one answer of a range holds in memory.
pub const PAGE: usize = 1024;
/// Bytes after which it is full, too: an event may have half a mebibyte of payload, and 16 KiB of headers.
const PAGE_BYTES: usize = 1 << 20;
/// What a page holds of an event beside the event: its place, its names as texts.
const LINE: usize = 512;

/// The log of this device. Cheap to clone.
#[derive(Clone)]
pub struct Events {
    log: Arc<Log>,
    consumers: Arc<Consumers>,
    /// Counts changes, for those who wait for more.
    changed: watch::Sender<u64>,
    dir: Arc<std::path::Path>,
    /// The files were copied since they were written last.
    is_copy: bool,
    /// Whether another device writes with our identity now.
    openings: Arc<Openings>,
}

/// The identity of the node signs its batches.
struct NodeSigner {
    keypair: Keypair,
    author: Author,
}

impl Signer for NodeSigner {
    fn author(&self) -> Author {
        self.author
    }

    fn sign(&self, message: &[u8]) -> [u8; 64] {
        // Both hold for every Ed25519 key, and `open` takes no other.
        let signature = self.keypair.sign(message).unwrap_or_default();
        signature.try_into().unwrap_or([0; 64])
    }
}

impl Events {
    /// Opens the log of a repository that may be written, or makes it.
    ///
    /// # Errors
    /// The disk's; another process has it; the identity is no Ed25519 key.
    pub fn open(repo: &Repo) -> Result<Self, Fail> {
        let keypair = repo.identity()?;
        let public = keypair.public().try_into_ed25519().map_err(|_| {
            Fail::new(
                Code::Conflict,
                "the identity of this node is no Ed25519 key, and events are signed with one",
            )
            .hint("make a repository with `gemba init`: its key is one")
        })?;
        let author = Author(public.to_bytes());
        let settings = &repo.config.events;
        let config = LogConfig::default()
            .max_bytes(settings.max_size)
            .compress(settings.compress);
        let dir = repo.layout.log();
        let signer = Arc::new(NodeSigner { keypair, author });
        Self::open_in(&dir, Arc::new(RealDisk), config, signer)
    }

    /// What lies in `dir`: the log in the folder `events`, and consumers beside it.
    fn open_in(
        dir: &std::path::Path,
        disk: Arc<dyn Disk>,
        config: LogConfig,
        signer: Arc<dyn Signer>,
    ) -> Result<Self, Fail> {
        let config = config.least_epoch(Born::read(dir).least_epoch());
        let opened = Log::open(disk, &dir.join("events"), config, signer);
        let (log, report) = opened.map_err(|e| open_fail(&e))?;
        tell_what_was_found(&report);
        let is_copy = begin_epochs_of_a_copy(&log, dir);
        let log = Arc::new(log);
        log.on_wall(crate::names::wall_ms);
        let changed = watch::Sender::new(0_u64);
        let bell = changed.clone();
        log.on_change(move || bell.send_modify(|count| *count = count.wrapping_add(1)));
        let consumers = Consumers::open(Arc::clone(&log), dir.join("consumers.redb"))?;
        Ok(Self {
            log,
            consumers: Arc::new(consumers),
            changed,
            dir: dir.into(),
            is_copy,
            openings: Arc::new(Openings::new()?),
        })
    }

    /// The log itself.
    #[must_use]
    pub fn log(&self) -> &Arc<Log> {
        &self.log
    }

    /// Who works through it.
    #[must_use]
    pub fn consumers(&self) -> &Arc<Consumers> {
        &self.consumers
    }

    /// Appends events of our own, each by itself durable or refused; the answers come in order. One flush for all.
    #[must_use]
    pub fn append(
        &self,
        stream: &StreamName,
        events: &[NewEvent],
    ) -> Vec<Result<wire::EventAck, Fail>> {
        let lists: Vec<_> = events
            .iter()
            .map(|event| EventList::of(std::slice::from_ref(event)))
            .collect();
        let good = lists.iter().flatten();
        let appends = good.map(|list| (stream.clone(), list.clone())).collect();
        let mut appended = self.log.append_many(appends).into_iter();
        let acks = lists.iter().map(|list| {
            let appended = match list {
                Ok(_) => appended.next().unwrap_or(Err(LogError::WriterDied)),
                Err(e) => Err(LogError::Event(*e)),
            };
            appended
                .map(|appended| wire::ack(&appended))
                .map_err(|e| fail(&e))
        });
        acks.collect()
    }

    /// Takes events of the fast class: they are written soon, and lost in a crash. How many older ones gave way.
    ///
    /// # Errors
    /// An event that is none, or a log that ended.
    pub fn offer(&self, stream: &StreamName, events: &[NewEvent]) -> Result<u64, Fail> {
        let mut dropped = 0;
        for event in events {
            dropped += self.log.offer(stream, event).map_err(|e| fail(&e))?;
        }
        Ok(dropped)
    }

    /// Writes what waits of the fast class.
    pub fn flush_fast(&self) {
        if self.log.stat().fast_waiting == 0 {
            return;
        }
        if let Err(error) = self.log.flush_fast() {
            tracing::warn!(%error, "events of the fast class could not be written");
        }
    }

    /// Tells when there may be more.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The next events go into new epochs: this repository is a copy, or came back from a backup, and others may know more of it than it does.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin_epochs(&self) -> Result<(), Fail> {
        let born = Born::read(&self.dir);
        let least = unused_epoch(born.least_epoch());
        let begun = self.log.begin_epochs_at(least);
        begun.map_err(|e| fail(&e))?;
        born.note(least)
    }

    /// Looks whether another device writes with our identity, and lets it know of this one. Worth while when the log has changed.
    pub fn look_for_others(&self) {
        if let Err(fail) = self.openings.look(&self.log, crate::names::wall_ms()) {
            tracing::warn!(%fail, "it could not be looked for devices that have the identity of this one");
        }
    }

    /// Ends it in order.
    pub fn close(&self) {
        if let Err(error) = self.log.close() {
            tracing::warn!(%error, "the log did not end in order; what was acknowledged is on disk");
        }
    }
}

impl Events {
    /// Figures.
    #[must_use]
    pub fn counts(&self) -> EventCounts {
        let stat = self.log.stat();
        let streams = self.log.streams();
        let (consumers, lag) = self.consumers.counts();
        EventCounts {
            streams: streams.len() as u64,
            feeds: stat.feeds,
            forks: stat.forks,
            new_forks: stat.new_forks,
            returned: stat.returned,
            cloned: self.openings.are_several(),
            copied: self.is_copy,
            events: streams.iter().map(|info| info.events).sum(),
            bytes: stat.disk_bytes,
            damaged: stat.damaged,
            damaged_indexes: stat.damaged_indexes,
            failures: stat.failures,
            fast_dropped: stat.fast_dropped,
            consumers,
            lag,
            stopped: self.log.poisoned().is_some(),
            full: stat.disk_bytes + MAX_BATCH_BYTES as u64 > stat.limit,
        }
    }

    /// What is wrong with the log.
    #[must_use]
    pub fn troubles(&self, counts: &EventCounts) -> Vec<Trouble> {
        let trouble = |kind: &str, count, cause: String| Trouble {
            address: self.dir.display().to_string(),
            peer: None,
            direction: "local".to_owned(),
            kind: kind.to_owned(),
            cause,
            age_s: 0,
            count,
            retry_in_s: None,
        };
        let stopped = self.log.poisoned().map(|kind| {
            let cause = format!("no event is written any more, since the disk refused one ({kind}): what was acknowledged is safe; look at the disk (`dmesg`) and start the daemon again");
            trouble("events_stopped", 1, cause)
        });
        let damaged = (counts.damaged > 0).then(|| {
            let cause = format!("{} batches of events are damaged on this disk, and passed over by readers: devices that have them are asked for them; `gemba log verify` names the places", counts.damaged);
            trouble("events_damaged", counts.damaged, cause)
        });
        let rotten = (counts.damaged_indexes > 0).then(|| {
            let indexes = crate::text::count(counts.damaged_indexes, "index", "indexes");
            let cause = format!("{indexes} of events on this disk were damaged, and made anew: no event is missing, but the disk changes what it holds; look at it (`dmesg`, its SMART data), and let `gemba log verify` look at the events");
            trouble("events_index_damaged", counts.damaged_indexes, cause)
        });
        let failing = self.log.failing().filter(|_| stopped.is_none());
        let failing = failing.map(|error| {
            let hint = fail(&error).hint;
            let cause = format!("the last events that came could not be written: {error}; {hint}");
            trouble("events_refused", counts.failures.max(1), cause)
        });
        let full = counts.full.then(|| {
            let cause = format!("events take {} bytes, which is all that events.max_size allows: appends are refused, and nothing comes from others; raise it, or keep less (events.keep)", counts.bytes);
            trouble("events_over_limit", 1, cause)
        });
        let cloned = counts.cloned.then(|| {
            let batches = crate::text::count(counts.returned, "batch", "batches");
            let cause = format!("another device writes events with the identity of this node now: {batches} came that were not written here, and it has heard of this start. It runs on a copy of this repository. Both go on in epochs of their own, so that no event is lost or given another's number, but who reads cannot tell them apart: stop one of the two, move its repository away and give it one of its own (`gemba init`)");
            trouble("events_cloned", counts.returned, cause)
        });
        let returned = (counts.returned > 0 && !counts.cloned).then(|| {
            let batches = crate::text::count(counts.returned, "batch", "batches");
            let cause = format!("{batches} of events of this node came back from others, not having been here: the repository was restored from a backup, or another device runs on a copy of it; events go on in new epochs, so that none is lost. If that device still runs, give one of the two a repository of its own");
            trouble("events_returned", counts.returned, cause)
        });
        let copied = counts.copied.then(|| {
            let cause = "the files of the event log were copied since they were written last, by a backup that came back or onto another device: events go on in new epochs. If the device that they came from still runs, give one of the two a repository of its own; else this is over with the next start".to_owned();
            trouble("events_copied", 1, cause)
        });
        let forked = (counts.new_forks > 0).then(|| {
            let times = crate::text::count(counts.new_forks, "time", "times");
            let all = self.branches();
            let one = all.last().map(|one| {
                let wire::BranchView { stream, author, epoch, from, .. } = one;
                format!(" ({author} in {stream}, epoch {epoch}, from event {from} on)")
            });
            let one = one.unwrap_or_default();
            let cause = format!("{times} since this start an author was found to have written a second history of a feed{one}, on a cloned device or after a backup came back: both are kept and read, consumers are given the first (`gemba log verify` names all). If two devices run with that identity, stop one, move its repository away and give it one of its own (`gemba init`); if it was a backup, nothing is left to do");
            trouble("events_forked", counts.new_forks, cause)
        });
        let all = [
            stopped, failing, full, damaged, rotten, cloned, returned, copied, forked,
        ];
        all.into_iter().flatten().collect()
    }
}

/// A copy of a log may be older than what others have of it: it goes on in new epochs, also where it has no event of its own yet. Whether it is one whose events
/// go on elsewhere than they would have.
fn begin_epochs_of_a_copy(log: &Log, dir: &std::path::Path) -> bool {
    let born = Born::read(dir);
    let own = log.author();
    let is_copy = born.is_copy() && log.heads().iter().any(|head| head.feed.author == own);
    if is_copy {
        tracing::warn!(
            "the event log was copied since it was written last: events go on in new epochs"
        );
    }
    let mut least = 0;
    if born.is_copy() {
        // The first one may have begun the epochs that come next by number, and another copy knows the least one of this.
        least = unused_epoch(born.least_epoch());
        if let Err(error) = log.begin_epochs_at(least) {
            // It is so for this opening all the same, and the next one finds it out again.
            tracing::warn!(%error, "that events go on in new epochs could not be written down");
            return is_copy;
        }
    }
    if let Err(error) = born.note(least) {
        tracing::warn!(%error, "it could not be noted when the event log was made");
    }
    is_copy
}

/// A place in every feed of some streams, and in every branch of a forked one: where a reader goes on.
#[derive(Clone, Debug, Default)]
pub struct Cursor {
    /// The next event of each; those that are not named begin at `from`.
    next: BTreeMap<Part, Seq>,
    from: Seq,
    /// Of which changes of the log this place knows, as [`Log::parts_since`] counts them.
    heard: u64,
    /// The feeds and branches of which there are events behind this place.
    more: BTreeMap<Part, More>,
}

/// What is behind a place in a feed.
#[derive(Clone, Debug, Default)]
struct More {
    /// One behind the last event.
    end: Seq,
    /// Where the batch of the next event stands in the order over all feeds, once that was looked up: a page opens the feeds whose turn comes, not all of them.
    order: Option<OrderKey>,
}

impl Cursor {
    /// The last event before the cursor of each part that has one, which is where somebody else goes on.
    pub fn places(&self) -> impl Iterator<Item = (&Part, Seq)> {
        let places = self.next.iter();
        places.filter_map(|(part, next)| Some((part, next.checked_sub(1)?)))
    }
}

fn part_of(head: &Head) -> Part {
    Part {
        feed: head.feed.clone(),
        branch: head.branch,
    }
}

/// What is read.
#[derive(Clone, Debug)]
pub struct Query {
    /// Which streams.
    pub pattern: Pattern,
    /// Only this author.
    pub author: Option<Author>,
    /// Where each feed begins.
    pub from: Seq,
    /// Only what is not older, by the authors' clocks, in milliseconds since 1970.
    pub since: Option<i64>,
}

impl Query {
    fn takes(&self, feed: &FeedId) -> bool {
        self.author.is_none_or(|author| author == feed.author)
    }
}

impl Events {
    /// Where a query begins.
    ///
    /// # Errors
    /// The disk's.
    pub fn begin(&self, query: &Query) -> Result<Cursor, Fail> {
        let mut cursor = Cursor {
            from: query.from,
            ..Cursor::default()
        };
        if let Some(since) = query.since {
            for head in self.heads(query) {
                let part = part_of(&head);
                let at = self.log.part_at_time(&part, since).map_err(|e| fail(&e))?;
                cursor.next.insert(part, at.max(query.from));
            }
        }
        Ok(cursor)
    }

    /// Behind everything that is here, or `last` events before that.
    #[must_use]
    pub fn tail(&self, query: &Query, last: u64) -> Cursor {
        let mut cursor = Cursor::default();
        // The newest events of all feeds together are among the newest of each.
        let mut newest = Vec::new();
        for head in self.heads(query) {
            let part = part_of(&head);
            let from = head.next.saturating_sub(last).max(head.low);
            cursor.next.insert(part.clone(), head.next);
            if last > 0 {
                newest.push((part, from));
            }
        }
        if last > 0 {
            self.step_back(&mut cursor, &newest, last);
        }
        cursor
    }

    fn step_back(&self, cursor: &mut Cursor, newest: &[(Part, Seq)], last: u64) {
        // Stretches of one part each, the newest events at the end; no more of them than hold `last`.
        let mut kept: std::collections::VecDeque<(usize, Seq, Seq)> = Default::default();
        let mut count = 0;
        let mut merge = self.log.merge_parts(newest);
        loop {
            let (at, batch) = match merge.next_of() {
                Ok(Some(next)) => next,
                Ok(None) => break,
                Err((_, LogError::Damaged { .. } | LogError::Trimmed { .. })) => continue,
                Err(_) => return,
            };
            let from = batch.first().max(newest[at].1);
            count += batch.end().saturating_sub(from);
            match kept.back_mut() {
                Some((part, _, end)) if *part == at && *end == from => *end = batch.end(),
                _ => kept.push_back((at, from, batch.end())),
            }
            while let Some((_, from, end)) = kept.front_mut()
                && count > last
            {
                let gone = (count - last).min(*end - *from);
                *from += gone;
                count -= gone;
                if from == end {
                    kept.pop_front();
                }
            }
        }
        for (at, seq, _) in kept {
            let next = cursor.next.entry(newest[at].0.clone()).or_insert(seq);
            *next = seq.min(*next);
        }
    }

    /// The feeds that a query is about, and their branches.
    fn heads(&self, query: &Query) -> Vec<Head> {
        let mut heads = self.log.heads_of(&query.pattern);
        heads.retain(|head| query.takes(&head.feed));
        heads
    }

    /// Hands on events behind the cursor, in the one order over all feeds, at most `limit`, and none behind the one with which there is a mebibyte of
    /// them; moves the cursor. Whether there may be more now.
    ///
    /// What is damaged is told in the node's log and passed over: it comes from others later, and a reader is not held up by it. Of a forked feed all
    /// histories are read, each with places of its own.
    ///
    /// # Errors
    /// The disk's, or that of `each`.
    pub fn read(
        &self,
        query: &Query,
        cursor: &mut Cursor,
        limit: usize,
        mut each: impl FnMut(&Part, &Event) -> Result<(), Fail>,
    ) -> Result<bool, Fail> {
        self.hear(query, cursor);
        if cursor.more.is_empty() {
            return Ok(false);
        }
        let starts = self.turns(cursor, limit)?;
        let is_all = starts.len() == cursor.more.len();
        let mut merge = self.log.merge_known(&starts);
        let (mut count, mut bytes, mut passed) = (0, 0, 0);
        let mut half_read = None;
        // Each step gives an event at least, or passes something over; so what is beyond the feeds chosen does not come to its turn.
        let outcome = loop {
            if count + passed >= limit || bytes >= PAGE_BYTES {
                break Ok(true);
            }
            let (at, batch) = match merge.next_of() {
                Ok(Some(next)) => next,
                Ok(None) => break Ok(!is_all),
                Err((at, error)) => {
                    passed += 1;
                    match pass_over(cursor, &starts[at].0, error) {
                        Ok(()) => continue,
                        Err(fail) => break Err(fail),
                    }
                }
            };
            let part = &starts[at].0;
            let next = cursor.next.entry(part.clone()).or_insert(starts[at].1);
            let from = *next;
            let mut events = batch.events().filter(|event| event.seq >= from);
            let taken = loop {
                if count == limit || bytes >= PAGE_BYTES {
                    break Ok(());
                }
                let Some(event) = events.next() else {
                    break Ok(());
                };
                let event = batch.own(&event);
                bytes += event.weight() + LINE;
                if let Err(fail) = each(part, &event) {
                    break Err(fail);
                }
                *next = event.seq + 1;
                count += 1;
            };
            if *next < batch.end() {
                half_read = Some((at, batch.order(batch.first())));
            }
            if let Err(fail) = taken {
                break Err(fail);
            }
        };
        let orders = merge.orders().map(|(at, order)| (at, order.clone()));
        cursor.keep(&starts, orders.chain(half_read));
        outcome
    }

    /// Takes in what the log has of a query that the cursor does not know of.
    fn hear(&self, query: &Query, cursor: &mut Cursor) {
        let (heard, changed) = self.log.parts_since(cursor.heard, &query.pattern);
        cursor.heard = heard;
        for extent in changed {
            let Extent {
                part,
                low,
                next: end,
            } = extent;
            if !query.takes(&part.feed) {
                continue;
            }
            let next = cursor.next.entry(part.clone()).or_insert(cursor.from);
            let is_gone = *next < low;
            *next = (*next).max(low);
            if *next >= end {
                cursor.more.remove(&part);
                continue;
            }
            let more = cursor.more.entry(part).or_default();
            more.end = end;
            if is_gone {
                more.order = None;
            }
        }
    }

    /// The feeds that may have a turn among the next `limit` steps: those whose next batches come first.
    fn turns(&self, cursor: &mut Cursor, limit: usize) -> Result<Vec<(Part, Seq, OrderKey)>, Fail> {
        for (part, more) in &mut cursor.more {
            if more.order.is_none() {
                let next = cursor.next.get(part).copied().unwrap_or(cursor.from);
                more.order = self.log.order_at(part, next).map_err(|e| fail(&e))?;
            }
        }
        let mut turns: Vec<_> = cursor.more.iter().collect();
        if turns.len() > limit && limit > 0 {
            // What cannot be read is before all others, and is told at once.
            turns.select_nth_unstable_by(limit - 1, |a, b| a.1.order.cmp(&b.1.order));
            turns.truncate(limit);
        }
        let turn = |(part, more): (&Part, &More)| {
            let next = cursor.next.get(part).copied().unwrap_or(cursor.from);
            let order = more.order.clone().unwrap_or_else(|| before_all(part));
            (part.clone(), next, order)
        };
        Ok(turns.into_iter().map(turn).collect())
    }
}

impl Cursor {
    /// Notes where the feeds of a page have their next batches, or that they are at their end.
    fn keep(
        &mut self,
        starts: &[(Part, Seq, OrderKey)],
        orders: impl Iterator<Item = (usize, OrderKey)>,
    ) {
        for (part, ..) in starts {
            let next = self.next.get(part).copied().unwrap_or(self.from);
            match self.more.get_mut(part) {
                Some(more) if next < more.end => more.order = None,
                _ => drop(self.more.remove(part)),
            }
        }
        for (at, order) in orders {
            if let Some(more) = self.more.get_mut(&starts[at].0) {
                more.order = (order.lamport > 0).then_some(order);
            }
        }
    }
}

/// A place in the order that is before all others, for what cannot be read.
fn before_all(part: &Part) -> OrderKey {
    OrderKey {
        lamport: 0,
        feed: part.feed.clone(),
        batch: [0; 32],
        seq: 0,
    }
}

/// A reader goes on behind what is damaged.
fn pass_over(cursor: &mut Cursor, part: &Part, error: LogError) -> Result<(), Fail> {
    let to = match error {
        LogError::Damaged { feed, from, to } => {
            tracing::error!(
                ?feed,
                from,
                to,
                "events are damaged on this disk and passed over; peers are asked for them"
            );
            to
        }
        LogError::Trimmed { low, .. } => low,
        error => return Err(fail(&error)),
    };
    let next = cursor.next.entry(part.clone()).or_insert(to);
    *next = to.max(*next);
    Ok(())
}

/// The peer id of an author: the same key.
#[must_use]
pub fn peer_of(author: &Author) -> Option<PeerId> {
    let key = libp2p_identity::ed25519::PublicKey::try_from_bytes(&author.0).ok()?;
    Some(PublicKey::from(key).to_peer_id())
}

/// How people read an author.
#[must_use]
pub fn author_text(author: &Author) -> String {
    // Making it takes longer than all else of an event's line, for the key is checked to be one; and events of one author come in runs.
    thread_local! {
        static LAST: RefCell<(Author, String)> = RefCell::new((Author([0; 32]), made(&Author([0; 32]))));
    }
    fn made(author: &Author) -> String {
        peer_of(author).map_or_else(|| author.to_string(), |peer| peer.to_string())
    }
    LAST.with_borrow_mut(|(of, text)| {
        if of != author {
            (*of, *text) = (*author, made(author));
        }
        text.clone()
    })
}

/// The author that is called so: a peer id of an Ed25519 key.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_author(text: &str) -> Result<Author, Fail> {
    let wrong = || {
        Fail::new(Code::Usage, format!("{text:?} is no author")).hint(
            "authors are peer ids such as `gemba log read --json` and `gemba id` show: 12D3Koo…",
        )
    };
    let peer: PeerId = text.parse().map_err(|_| wrong())?;
    // Ed25519 keys stand in the peer id as they are: identity multihash of their protobuf form.
    let bytes = peer.to_bytes();
    let key = bytes
        .get(2..)
        .and_then(|key| PublicKey::try_decode_protobuf(key).ok());
    let key = key.and_then(|key| key.try_into_ed25519().ok());
    Ok(Author(key.ok_or_else(wrong)?.to_bytes()))
}

/// A number of a request, within its bounds; one that is not given is none.
///
/// # Errors
/// [`Code::Usage`], with the name of the field, what was given, and what may be.
pub fn within(field: &str, given: Option<u64>, (least, most): (u64, u64)) -> Result<(), Fail> {
    match given {
        Some(number) if !(least..=most).contains(&number) => Err(Fail::new(
            Code::Usage,
            format!("{field} is {number}, and may be from {least} to {most}"),
        )
        .hint("nothing was done; without it the default counts, which the documentation names")),
        _ => Ok(()),
    }
}

/// The stream of this name.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_stream(text: &str) -> Result<StreamName, Fail> {
    StreamName::new(text).map_err(|e| name_fail(text, &e))
}

/// The streams that a pattern names.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_pattern(text: &str) -> Result<Pattern, Fail> {
    Pattern::new(text).map_err(|e| name_fail(text, &e))
}

fn name_fail(text: &str, error: &NameError) -> Fail {
    Fail::new(Code::Usage, format!("{text:?} is no stream: {error}"))
        .hint("streams are called like hall-1/line-3/press-7/count; `gemba log ls` lists them")
}

/// A stream of which nothing is here.
#[must_use]
pub fn no_stream(stream: &str) -> Fail {
    Fail::new(Code::NotFound, format!("no events of {stream} are on this device"))
        .hint("`gemba log ls` lists the streams; those of other devices come when they are connected and events.subscribe names them")
}

/// What a failure of the log means for whoever called.
#[must_use]
pub fn fail(error: &LogError) -> Fail {
    let code = match error {
        LogError::Event(_) => Code::Usage,
        LogError::NoFeed(_) | LogError::Trimmed { .. } => Code::NotFound,
        LogError::Damaged { .. } | LogError::BadChain { .. } => Code::Integrity,
        LogError::OldProducer { .. } | LogError::Quota { .. } => Code::Conflict,
        _ => Code::Failure,
    };
    let fail = Fail::new(code, error);
    match error {
        LogError::NoSpace { .. } => fail.hint("raise events.max_size, or keep less: events.keep"),
        LogError::Full(_) => fail.hint("what was acknowledged is safe; free some space and send the event again"),
        LogError::Poisoned(_) => fail.hint("look at the disk (`dmesg`) and start the daemon again: that tells what is there"),
        LogError::Damaged { .. } => fail.hint("`gemba log verify` tells what is damaged; connected devices that have it are asked for it"),
        LogError::Io(_) => fail.hint("the disk or its cable is at fault: look at the system's log (`dmesg`); what was acknowledged is not affected"),
        LogError::Closed => fail.hint("the daemon is ending: start it again, and send what was not acknowledged"),
        LogError::Event(_) => fail.hint("the other events are not affected; correct this one and send it again"),
        LogError::OldProducer { .. } => fail.hint("go on with the number behind the highest that was acknowledged; events of another origin take another producer"),
        LogError::Trimmed { .. } => fail.hint("read without a beginning: that starts with the first event that is here"),
        LogError::NoFeed(_) => fail.hint("`gemba log ls` lists the streams and their authors"),
        LogError::Quota { .. } => fail.hint("other authors are not affected; is that device to write so much?"),
        LogError::Exhausted => fail.hint("write to a stream of another name"),
        LogError::WriterDied => fail.hint("this is a mistake in gemba: report it with the daemon's log"),
        LogError::Gap { .. } | LogError::BadChain { .. } => fail.hint("nothing was stored; look at the device of that author (`gemba log ls --json` names forks)"),
        _ => fail.hint("look at the log of the daemon and of the system (`dmesg`)"),
    }
}

/// What a log that does not open means for whoever called.
#[must_use]
pub fn open_fail(error: &OpenError) -> Fail {
    match error {
        OpenError::LockHeld { .. } => Fail::new(Code::Conflict, error)
            .hint("one process has the log at a time: `gemba status` tells whether a daemon runs"),
        OpenError::NewerFormat { .. } => Fail::new(Code::Conflict, error)
            .hint("nothing was changed; compare `gemba --version` on both"),
        OpenError::Io { path, source } => Fail::io(path, source),
        OpenError::Foreign { .. } => Fail::new(Code::Integrity, error)
            .hint("nothing was changed; the file belongs to the log of another repository"),
        _ => Fail::new(Code::Integrity, error)
            .hint("put a copy of `log/events` back, or move the folder away: the events of others, and those of ours that they have, come back"),
    }
}

/// What opening found besides events goes into the node's own log.
fn tell_what_was_found(report: &OpenReport) {
    if report.is_clean() {
        return;
    }
    tracing::warn!(
        ?report,
        "the log was not closed in order, or its disk lost something; what was acknowledged and is whole is there"
    );
}

impl Events {
    /// The streams that a pattern names, by name; those of gemba's own only where the pattern says so.
    #[must_use]
    pub fn catalogue(&self, pattern: &Pattern, now_ms: i64) -> Vec<wire::StreamView> {
        let streams = self.log.streams().into_iter();
        let streams = streams.filter(|info| pattern.matches(&info.stream));
        streams
            .map(|info| wire::StreamView {
                stream: info.stream.to_string(),
                authors: info.authors.iter().map(author_text).collect(),
                events: info.events,
                bytes: info.bytes,
                rate: self.rate(&info.stream, now_ms),
                last: (info.last_time > i64::MIN).then(|| wire::time_text(info.last_time)),
                branches: match info.forked {
                    true => self.branches_of(&Pattern::from(&info.stream)),
                    false => Vec::new(),
                },
                forked: info.forked,
                about: self.about(&info.stream).ok().flatten(),
            })
            .collect()
    }

    /// The second histories that authors wrote.
    fn branches(&self) -> Vec<wire::BranchView> {
        self.log.heads().iter().filter_map(wire::branch).collect()
    }

    /// Those of some streams.
    fn branches_of(&self, pattern: &Pattern) -> Vec<wire::BranchView> {
        let heads = self.log.heads_of(pattern).into_iter();
        heads.filter_map(|head| wire::branch(&head)).collect()
    }

    /// Events a second over the last minute, by the clocks of their authors.
    fn rate(&self, stream: &StreamName, now_ms: i64) -> f64 {
        const MINUTE_MS: i64 = 60_000;
        let feeds = self.log.feeds(&Pattern::from(stream));
        let recent = feeds.iter().filter_map(|feed| {
            let from = self.log.seq_at_time(feed, now_ms - MINUTE_MS).ok()?;
            Some(self.log.head(feed)?.next.saturating_sub(from))
        });
        recent.sum::<u64>() as f64 / 60.0
    }

    /// Says something more of a stream; what it says then.
    ///
    /// # Errors
    /// A text that is too long, or the log's.
    pub fn describe(
        &self,
        stream: &StreamName,
        newer: about::About,
        now_ms: i64,
    ) -> Result<about::About, Fail> {
        let now = self.about(stream)?.unwrap_or_default().changed(newer);
        let described = self.log.describe(stream, now_ms, &now.description()?);
        described.map_err(|e| about::describe_fail(&e))?;
        Ok(now)
    }

    /// What a stream says of itself.
    ///
    /// # Errors
    /// The disk's.
    pub fn about(&self, stream: &StreamName) -> Result<Option<about::About>, Fail> {
        let description = self.log.description(stream).map_err(|e| fail(&e))?;
        Ok(description.map(about::About::from))
    }

    /// Behind these places; feeds and branches that are not named begin at their first event.
    ///
    /// # Errors
    /// As [`Events::begin`].
    pub fn after(&self, query: &Query, places: &[(Part, Seq)]) -> Result<Cursor, Fail> {
        let mut cursor = self.begin(query)?;
        for (part, seq) in places {
            cursor.next.insert(part.clone(), seq.saturating_add(1));
        }
        Ok(cursor)
    }

    /// Reads every byte and checks it.
    ///
    /// # Errors
    /// The disk's.
    pub fn verify(&self) -> Result<wire::LogVerified, Fail> {
        let report = self
            .log
            .verify(|_| std::ops::ControlFlow::Continue(()))
            .map_err(|e| fail(&e))?;
        let damaged = report.places.iter().map(|place| {
            let at = format!(
                "segment {}, {} bytes at {}: {}",
                place.segment, place.len, place.offset, place.cause
            );
            match &place.events {
                Some((feed, from, to)) => format!("{at}; events {from} to {to} of {feed:?}"),
                None => at,
            }
        });
        Ok(wire::LogVerified {
            ok: report.is_clean(),
            batches: report.batches,
            events: report.events,
            damaged: damaged.collect(),
            branches: self.branches(),
        })
    }
}

impl Events {
    /// Removes what is older than `keep`, but for what a consumer of this node has not had.
    pub fn retain(&self, keep: Option<std::time::Duration>, now_ms: i64) {
        let Some(keep) = keep else { return };
        let keep_ms = i64::try_from(keep.as_millis()).unwrap_or(i64::MAX);
        let before = now_ms.saturating_sub(keep_ms);
        let needs = self.consumers.needs();
        let needs = |feed: &FeedId| needs.of(feed);
        let retention = Retention {
            max_bytes: None,
            before: Some(before),
            low_water: &needs,
            danger_drop_needed: false,
        };
        match self.log.retain(&retention) {
            Ok(done) if done.segments > 0 => {
                tracing::info!(bytes = done.bytes, "old events were removed");
            }
            Ok(done) if !done.held_by.is_empty() => {
                tracing::debug!(feeds = ?done.held_by, "old events stay, since a consumer has not had them");
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "old events could not be removed"),
        }
    }
}
