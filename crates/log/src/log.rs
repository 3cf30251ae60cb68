//! The log: what callers see, and what its parts share.

use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{
    Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
};

use cid::Cid;
use gemba_segment::{Disk, GroupCommit, LockGuard, Mode, Reader, Step};

use crate::batch::{Batch, cid_of};
use crate::config::Config;
use crate::error::{LogError, OpenError};
use crate::event::{EventList, NewEvent};
use crate::fast::Ring;
use crate::feed::{Author, FeedId, MAX_NUMBER, Seq, Signer};
use crate::format::{BATCH, Layout, Tag, identity};
use crate::index::{Index, Resident, Segment};
use crate::open::{OpenReport, Parts};
use crate::read::Part;
use crate::state::{Feed, State};
use crate::stream::{Pattern, StreamName};
use crate::writer::{Appended, Op, Pen};

/// Callers of one group: bounds the memory of a write.
const GROUP: usize = 1024;

/// An open log. All calls may be made from any thread and block it until they are done.
///
/// Dropping it ends it in order, as [`Log::close`] does, but cannot say whether that went well.
pub struct Log {
    disk: Arc<dyn Disk>,
    layout: Layout,
    salt: u64,
    config: Config,
    signer: Arc<dyn Signer>,
    state: RwLock<State>,
    pen: Mutex<Pen>,
    commit: GroupCommit<Vec<Op>, Vec<Result<Appended, LogError>>>,
    ring: Mutex<Ring>,
    files: Mutex<VecDeque<(u32, Reader)>>,
    rebuilt: Mutex<Rebuilt>,
    ended: Mutex<Ended>,
    pub(crate) counters: Counters,
    report: OpenReport,
    lock: Mutex<Option<Box<dyn LockGuard>>>,
    bell: OnceLock<Box<dyn Fn() + Send + Sync>>,
    wall: OnceLock<Box<dyn Fn() -> i64 + Send + Sync>>,
}

/// Indexes that were made anew from the frames, because those on disk are damaged.
#[derive(Debug, Default)]
struct Rebuilt {
    /// The last few.
    kept: VecDeque<Arc<Segment>>,
    /// All segments whose index was found damaged since the opening.
    found: BTreeSet<u32>,
}

/// Why nothing is written any more.
#[derive(Debug, Default)]
struct Ended {
    poisoned: Option<io::ErrorKind>,
    closed: bool,
    /// The last write failed so.
    failing: Option<LogError>,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) groups: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) events: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) forks: AtomicU64,
    pub(crate) returned: AtomicU64,
    pub(crate) fast: AtomicU64,
}

/// Figures of a log. Those of writing count from its opening.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// Bytes of all segments.
    pub disk_bytes: u64,
    /// Segments.
    pub segments: u64,
    /// Feeds, branches of forked ones included.
    pub feeds: u64,
    /// Branches that authors forked off.
    pub forks: u64,
    /// Of those: since the opening.
    pub new_forks: u64,
    /// Batches of our own author that came from others and were not here: this log is a copy, or another one has our key.
    pub returned: u64,
    /// Bytes that the log may take.
    pub limit: u64,
    /// Writes, each with one flush.
    pub flushes: u64,
    /// Batches written.
    pub batches: u64,
    /// Events written.
    pub events: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Writes or flushes that failed.
    pub failures: u64,
    /// Events of the fast class that were taken.
    pub fast: u64,
    /// Events of the fast class that were dropped.
    pub fast_dropped: u64,
    /// Events of the fast class that wait now.
    pub fast_waiting: u64,
    /// Producers whose numbers were forgotten.
    pub producers_forgotten: u64,
    /// Batches that are known to be damaged.
    pub damaged: u64,
    /// Segments whose index was found damaged since the opening. It is made anew from the frames, so that no event is missing; the medium rots.
    pub damaged_indexes: u64,
}

/// The end of a feed.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Head {
    /// The feed.
    pub feed: FeedId,
    /// The last batch.
    pub cid: Cid,
    /// Place behind the last event.
    pub next: Seq,
    /// First place that is here.
    pub low: Seq,
    /// Number of the last batch.
    pub number: u64,
    /// Logical time of the last batch.
    pub lamport: u64,
    /// The first batch of this branch, if it is one that its author forked off a feed which was here before. Which of two is the branch
    /// depends on which came first, and differs from node to node; that there are two does not.
    pub branch: Option<Cid>,
    /// Whether its author forked this feed: [`Head::branch`] of this or another one is there.
    pub forked: bool,
}

/// What is here of a feed or branch.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Extent {
    /// Which one.
    pub part: Part,
    /// First place that is here.
    pub low: Seq,
    /// Place behind the last event.
    pub next: Seq,
}

/// What a catalogue shows of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct StreamInfo {
    /// The stream.
    pub stream: StreamName,
    /// Who writes to it, sorted.
    pub authors: Vec<Author>,
    /// Events that are here.
    pub events: u64,
    /// Their bytes on disk.
    pub bytes: u64,
    /// Largest logical time.
    pub lamport: u64,
    /// Wall-clock time of the last event of any author, in milliseconds since 1970, as that author had it.
    pub last_time: i64,
    /// Whether some author forked its feed.
    pub forked: bool,
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.layout.dir)
            .finish_non_exhaustive()
    }
}

impl Log {
    /// Opens the log in a folder, or makes one. The report says what was found besides events; it is kept, see [`Self::open_report`].
    ///
    /// # Errors
    /// See [`OpenError`]: never because of a crash or damage.
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: Config,
        signer: Arc<dyn Signer>,
    ) -> Result<(Self, OpenReport), OpenError> {
        let config = config.bounded();
        let parts = crate::open::open(&disk, dir, &config, signer.author())?;
        let Parts {
            state,
            pen,
            layout,
            salt,
            report,
            lock,
        } = parts;
        let log = Self {
            disk,
            layout,
            salt,
            ring: Mutex::new(Ring::new(config.fast_events, config.fast_bytes)),
            config,
            signer,
            state: RwLock::new(state),
            pen: Mutex::new(pen),
            commit: GroupCommit::new(GROUP),
            files: Mutex::default(),
            rebuilt: Mutex::default(),
            ended: Mutex::default(),
            counters: Counters::default(),
            report: report.clone(),
            lock: Mutex::new(lock),
            bell: OnceLock::new(),
            wall: OnceLock::new(),
        };
        if log.pen().note {
            // If it cannot be written now, it is with the first append, or that fails too.
            let _ = log.flush_fast();
        }
        Ok((log, report))
    }

    /// Calls `bell` whenever feeds have changed, by appends, by batches of others and by retention: with the change to be seen, and before whoever made it
    /// goes on. It is called by the one who writes, so it only tells somebody, and calls nothing of this log. One bell a log; a second one is not taken.
    pub fn on_change(&self, bell: impl Fn() + Send + Sync + 'static) {
        let _the_first_stays = self.bell.set(Box::new(bell));
    }

    /// Hands in the clock on the wall, in milliseconds since 1970, once: the time of what consumers write of their own accord (that they run here, that a dead letter
    /// is done or dropped). It is shown to people and asked by retention, and orders nothing. A log without one writes 1970.
    pub fn on_wall(&self, clock: impl Fn() -> i64 + Send + Sync + 'static) {
        let _the_first_stays = self.wall.set(Box::new(clock));
    }

    pub(crate) fn wall(&self) -> i64 {
        self.wall.get().map_or(0, |clock| clock())
    }

    pub(crate) fn has_changed(&self) {
        if let Some(bell) = self.bell.get() {
            bell();
        }
    }

    /// Who writes here.
    #[must_use]
    pub fn author(&self) -> Author {
        self.signer.author()
    }

    /// What opening found.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        &self.report
    }

    /// Appends events to our feed of a stream. When it returns, they survive a power cut. All of them stand in one batch, or none is stored.
    /// Events that have a producer and were appended before are not appended again.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn append(&self, stream: &StreamName, events: &[NewEvent]) -> Result<Appended, LogError> {
        let list = EventList::of(events)?;
        self.one(Op::Own(stream.clone(), list))
    }

    /// Appends many lists, with one flush for all; a result for each. This is how a caller keeps many appends in flight without a thread
    /// for each.
    #[must_use]
    pub fn append_many(
        &self,
        appends: Vec<(StreamName, EventList)>,
    ) -> Vec<Result<Appended, LogError>> {
        let ops = appends
            .into_iter()
            .map(|(stream, list)| Op::Own(stream, list));
        self.submit(ops.collect())
    }

    /// Takes a batch that was written elsewhere, of any author. Durable when it returns. A batch that is here already changes nothing; one
    /// that stands where ours is damaged repairs it; one that contradicts what is here begins a branch, and the feed counts as forked.
    ///
    /// A batch of our own author that is not here means that this log was shortened, or that somebody writes with our key: the next events
    /// of ours go into new epochs, which are drawn. Feeds that this log has begun in such epochs since it was opened go on: nobody else writes to them.
    ///
    /// # Errors
    /// [`LogError::Gap`] if batches between are missing; see [`LogError`].
    pub fn append_replica(&self, batch: Batch) -> Result<Appended, LogError> {
        self.one(Op::Replica(Box::new(batch), false))
    }

    /// As [`Self::append_replica`], for the first batch of a feed whose beginning is not there any more.
    ///
    /// # Errors
    /// As [`Self::append_replica`].
    pub fn begin_replica(&self, batch: Batch) -> Result<Appended, LogError> {
        self.one(Op::Replica(Box::new(batch), true))
    }

    /// As [`Self::append_replica`] for many, with one flush for all; a result for each.
    #[must_use]
    pub fn append_replicas(&self, batches: Vec<Batch>) -> Vec<Result<Appended, LogError>> {
        let ops = batches
            .into_iter()
            .map(|batch| Op::Replica(Box::new(batch), false));
        self.submit(ops.collect())
    }

    /// Takes an event of the fast class: it waits in memory for the next write and is lost in a crash. Gives how many older ones were dropped
    /// to make room; they are counted.
    ///
    /// # Errors
    /// [`LogError::Event`], [`LogError::Closed`] or [`LogError::Poisoned`].
    pub fn offer(&self, stream: &StreamName, event: &NewEvent) -> Result<u64, LogError> {
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        let list = EventList::of(std::slice::from_ref(event))?;
        self.counters.fast.fetch_add(1, Ordering::Relaxed);
        Ok(self.ring().push(stream.clone(), list))
    }

    /// Writes what waits of the fast class. Appends do so too.
    ///
    /// # Errors
    /// [`LogError::WriterDied`]; events that could not be written are counted as dropped.
    pub fn flush_fast(&self) -> Result<(), LogError> {
        self.commit
            .submit(Vec::new(), |groups| self.flush(groups))
            .map(drop)
            .map_err(|_| LogError::WriterDied)
    }

    pub(crate) fn submit(&self, ops: Vec<Op>) -> Vec<Result<Appended, LogError>> {
        let count = ops.len();
        if count == 0 {
            return Vec::new();
        }
        match self.commit.submit(ops, |groups| self.flush(groups)) {
            Ok(results) => results,
            Err(_) => {
                // What it left half done is not known: opening again tells.
                self.poison(io::ErrorKind::Other);
                (0..count).map(|_| Err(LogError::WriterDied)).collect()
            }
        }
    }

    fn one(&self, op: Op) -> Result<Appended, LogError> {
        self.submit(vec![op])
            .pop()
            .unwrap_or(Err(LogError::WriterDied))
    }

    /// The ends of all feeds, sorted; what two logs at rest have to agree on, but for [`Head::low`] and [`Head::branch`].
    #[must_use]
    pub fn heads(&self) -> Vec<Head> {
        self.heads_where(|_| true)
    }

    /// The ends of the feeds of streams that a pattern matches, and of their branches, sorted.
    #[must_use]
    pub fn heads_of(&self, pattern: &Pattern) -> Vec<Head> {
        self.heads_where(|feed| pattern.matches(&feed.stream))
    }

    /// The feeds and branches that changed behind a mark, of streams that a pattern matches, and the mark behind which the next changes stand: 0 at first, and
    /// then what the last call gave. A mark is one of this log as it was opened.
    #[must_use]
    pub fn parts_since(&self, mark: u64, pattern: &Pattern) -> (u64, Vec<Extent>) {
        let state = self.state();
        let (mark, changed) = state.changed_since(mark);
        let known = changed.filter(|feed| feed.tip.head.is_some());
        let named = known.filter(|feed| pattern.matches(&feed.tip.id.stream));
        let extent = |feed: &Feed| Extent {
            part: Part {
                feed: feed.tip.id.clone(),
                branch: feed.tip.branch.as_ref().map(cid_of),
            },
            low: feed.low,
            next: feed.tip.next,
        };
        (mark, named.map(extent).collect())
    }

    fn heads_where(&self, takes: impl Fn(&FeedId) -> bool) -> Vec<Head> {
        let state = self.state();
        let branches = state.feeds.values().map(|feed| &feed.tip);
        let branches = branches.filter(|tip| tip.branch.is_some());
        let forked: BTreeSet<&FeedId> = branches.map(|tip| &tip.id).collect();
        let feeds = state.feeds.values().filter(|feed| takes(&feed.tip.id));
        let mut heads: Vec<_> = feeds
            .filter_map(|feed| {
                let tip = &feed.tip;
                Some(Head {
                    feed: tip.id.clone(),
                    cid: cid_of(tip.head.as_ref()?),
                    next: tip.next,
                    low: feed.low,
                    number: tip.number.saturating_sub(1),
                    lamport: tip.lamport,
                    branch: tip.branch.as_ref().map(cid_of),
                    forked: forked.contains(&tip.id),
                })
            })
            .collect();
        heads.sort();
        heads
    }

    /// The end of one feed, without its branches.
    #[must_use]
    pub fn head(&self, feed: &FeedId) -> Option<Head> {
        let state = self.state();
        let known = state.feeds.get(&feed.key())?;
        Some(Head {
            feed: feed.clone(),
            cid: cid_of(known.tip.head.as_ref()?),
            next: known.tip.next,
            low: known.low,
            number: known.tip.number.saturating_sub(1),
            lamport: known.tip.lamport,
            branch: None,
            forked: state.branches(feed).next().is_some(),
        })
    }

    /// The feeds of streams that a pattern matches, sorted.
    #[must_use]
    pub fn feeds(&self, pattern: &Pattern) -> Vec<FeedId> {
        let state = self.state();
        let feeds = state.feeds.values().map(|feed| &feed.tip.id);
        let mut feeds: Vec<_> = feeds
            .filter(|id| pattern.matches(&id.stream))
            .cloned()
            .collect();
        feeds.sort();
        feeds.dedup();
        feeds
    }

    /// All streams, sorted by name.
    #[must_use]
    pub fn streams(&self) -> Vec<StreamInfo> {
        let state = self.state();
        let mut streams: std::collections::BTreeMap<StreamName, StreamInfo> =
            std::collections::BTreeMap::new();
        for feed in state.feeds.values() {
            let tip = &feed.tip;
            let info = streams
                .entry(tip.id.stream.clone())
                .or_insert_with(|| StreamInfo {
                    stream: tip.id.stream.clone(),
                    authors: Vec::new(),
                    events: 0,
                    bytes: 0,
                    lamport: 0,
                    last_time: i64::MIN,
                    forked: false,
                });
            if let Err(at) = info.authors.binary_search(&tip.id.author) {
                info.authors.insert(at, tip.id.author);
            }
            info.events += tip.next - feed.low;
            info.bytes += feed.bytes;
            info.forked |= tip.branch.is_some();
            info.last_time = info.last_time.max(tip.time);
            info.lamport = info.lamport.max(tip.lamport);
        }
        streams.into_values().collect()
    }

    /// Figures.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let state = self.state();
        let ring = self.ring();
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let branches = state
            .feeds
            .values()
            .filter(|feed| feed.tip.branch.is_some());
        Stat {
            disk_bytes: state.bytes(),
            segments: state.segments.len() as u64,
            feeds: state.feeds.len() as u64,
            forks: branches.count() as u64,
            new_forks: count(&self.counters.forks),
            returned: count(&self.counters.returned),
            limit: self.config.max_bytes,
            flushes: count(&self.counters.groups),
            batches: count(&self.counters.batches),
            events: count(&self.counters.events),
            bytes: count(&self.counters.bytes),
            failures: count(&self.counters.failures),
            fast: count(&self.counters.fast),
            fast_dropped: ring.dropped(),
            fast_waiting: ring.len() as u64,
            producers_forgotten: state.producers.forgotten,
            damaged: state.bad.len() as u64,
            damaged_indexes: self.all_rebuilt().found.len() as u64,
        }
    }

    /// Why nothing is written any more: a flush failed, with this.
    #[must_use]
    pub fn poisoned(&self) -> Option<io::ErrorKind> {
        self.ended().poisoned
    }

    /// Why the last write failed, if none has succeeded since: of a full disk, say. The next append tries again.
    #[must_use]
    pub fn failing(&self) -> Option<LogError> {
        self.ended().failing.clone()
    }

    pub(crate) fn set_failing(&self, error: Option<LogError>) {
        self.ended().failing = error;
    }

    /// The next events of ours go into new epochs. Durable when it returns.
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn begin_epochs(&self) -> Result<(), LogError> {
        self.begin_epochs_at(0)
    }

    /// As [`Self::begin_epochs`], with none below `least`: for a log that is a copy. The first one may have gone on, into the epochs that come next by
    /// number; so `least` is an [`unused_epoch`](crate::unused_epoch), and all that follow are drawn above it. That is durable when it returns; after an error it
    /// holds until the log is closed, and `least` is to be given to the next opening ([`Config::least_epoch`]).
    ///
    /// # Errors
    /// See [`LogError`].
    pub fn begin_epochs_at(&self, least: u64) -> Result<(), LogError> {
        let mut pen = self.pen();
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        {
            let mut state = self.state_mut();
            state.least_epoch = state.least_epoch.max(least.min(MAX_NUMBER));
        }
        pen.note = true;
        drop(pen);
        self.flush_fast()?;
        if self.pen().note {
            let why = self.refusal().or_else(|| self.failing());
            return Err(why.unwrap_or(LogError::WriterDied));
        }
        Ok(())
    }

    /// Ends it in order: what waits of the fast class is written, and the file says that all before is durable. Reads go on; appends do not.
    /// A second call changes nothing.
    ///
    /// # Errors
    /// See [`LogError`]; what was acknowledged is safe whatever this says.
    pub fn close(&self) -> Result<(), LogError> {
        if self.ended().closed {
            return Ok(());
        }
        let flushed = self.flush_fast();
        let mut pen = self.pen();
        if std::mem::replace(&mut self.ended().closed, true) {
            return Ok(());
        }
        if let Some(kind) = self.poisoned() {
            return Err(LogError::Poisoned(kind));
        }
        if pen.is_full {
            pen.reserve.give_up(self.disk.as_ref());
        }
        let closed = match pen.active.take() {
            Some((_, writer)) => writer.close().map_err(LogError::from),
            None => Ok(()),
        };
        drop(
            self.lock
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
        flushed.and(closed)
    }

    pub(crate) fn refusal(&self) -> Option<LogError> {
        let ended = self.ended();
        match ended.poisoned {
            Some(kind) => Some(LogError::Poisoned(kind)),
            None => ended.closed.then_some(LogError::Closed),
        }
    }

    pub(crate) fn poison(&self, kind: io::ErrorKind) {
        self.ended().poisoned.get_or_insert(kind);
    }

    fn ended(&self) -> MutexGuard<'_, Ended> {
        self.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn pen(&self) -> MutexGuard<'_, Pen> {
        self.pen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    pub(crate) fn signer(&self) -> &dyn Signer {
        self.signer.as_ref()
    }

    pub(crate) fn disk(&self) -> &Arc<dyn Disk> {
        &self.disk
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn salt(&self) -> u64 {
        self.salt
    }

    pub(crate) fn set_size(&self, segment: u32, bytes: u64) {
        self.state_mut().sizes.insert(segment, bytes);
    }

    pub(crate) fn replace(&self, number: u32, segment: Segment) {
        self.state_mut().segments.insert(number, Arc::new(segment));
    }

    /// Batches of a segment that is written to.
    pub(crate) fn entries(&self, number: u32) -> u32 {
        match self
            .state()
            .segments
            .get(&number)
            .map(|segment| &segment.index)
        {
            Some(Index::Resident(resident)) => resident
                .read()
                .unwrap_or_else(PoisonError::into_inner)
                .entries(),
            _ => 0,
        }
    }

    /// The reading side of a segment; a few files stay open.
    pub(crate) fn reader(&self, number: u32) -> Result<Reader, LogError> {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = files.iter().position(|(of, _)| *of == number)
            && let Some(found) = files.remove(at)
        {
            let reader = found.1.clone();
            files.push_back(found);
            return Ok(reader);
        }
        let file = self.disk.open(&self.layout.segment(number), Mode::Read);
        let reader = Reader::new(file.map_err(LogError::io)?, identity(self.salt, number));
        if files.len() >= self.config.open_files {
            files.pop_front();
        }
        files.push_back((number, reader.clone()));
        Ok(reader)
    }

    pub(crate) fn forget_file(&self, number: u32) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|(of, _)| *of != number);
    }

    /// The segment with an index that was made anew, if that was necessary.
    pub(crate) fn rebuilt(&self, segment: &Arc<Segment>) -> Arc<Segment> {
        let rebuilt = self.all_rebuilt();
        let mut kept = rebuilt.kept.iter();
        let found = kept.find(|other| other.number == segment.number);
        Arc::clone(found.unwrap_or(segment))
    }

    fn all_rebuilt(&self) -> MutexGuard<'_, Rebuilt> {
        self.rebuilt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the index of a segment from its frames. A few are kept.
    pub(crate) fn rebuild(&self, number: u32) -> Result<Arc<Segment>, LogError> {
        const KEEP: usize = 4;
        let reader = self.reader(number)?;
        let len = reader.file().len().map_err(LogError::io)?;
        let mut walk = reader.walk(len);
        let mut resident = Resident::default();
        while let Some(step) = walk.next_step().map_err(LogError::io)? {
            if let Step::Frame(entry, _) = step
                && entry.kind == BATCH
                && let Some(tag) = Tag::decode(&entry.tag)
                && let Ok(at) = u32::try_from(entry.at)
            {
                resident.insert(&tag, at, entry.len);
            }
        }
        let segment = Arc::new(Segment::resident(number, resident));
        let mut rebuilt = self.all_rebuilt();
        if rebuilt.kept.len() == KEEP {
            rebuilt.kept.pop_front();
        }
        rebuilt.kept.push_back(Arc::clone(&segment));
        rebuilt.found.insert(number);
        Ok(segment)
    }

    /// Where the log lies.
    #[must_use]
    pub fn dir(&self) -> PathBuf {
        self.layout.dir.clone()
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // Nobody is left to be told; what was acknowledged is safe.
        let _ = self.close();
    }
}
