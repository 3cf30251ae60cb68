//! Consuming: a handler for each event, whose work and offset become durable together.
//!
//! ```text
//! consumer.step(worker, now, |event, tx| { tx.add(b"pieces", 1)?; Ok(()) })
//! ```
//!
//! One step takes a portion of events of one feed, runs the handler for each in one transaction of the user's [`StateStore`], adds the
//! offset and commits: two flushes for a thousand events, and no retry code in the handler. A handler that refuses an event has its work
//! undone, for this event alone; the event comes again later and in the end becomes a dead letter. A process that dies anywhere leaves either
//! all of a step or nothing.
//!
//! What a handler appends to the log ([`Scope::emit`]) waits in the same transaction and reaches the log once, with the idempotence of
//! producers (S3.16). What a handler does elsewhere (a request, a lamp) happens at least once.
//!
//! This module drives [`core::consumer`](crate::core::consumer) and blocks on log and store. It starts nothing and reads no clock.

mod forget;
mod remote;

pub use forget::forget;
pub use remote::{Receipt, Taken};

use crate::{
    cbor::Reader,
    core::{
        Time,
        consumer::{
            Ack, Config, Consumer as Core, ConsumerName, Counters, Event as Told, Grant, Input,
            Lag, Order, Output, Planted, Position, Refused, Start, Token, Work, Worker,
        },
        dead::{self, Letter, Record},
    },
    event::{Event, NewEvent},
    feed::{Author, Epoch, EventHash, EventId, FeedId, Seq},
    headers::{self, Headers, HeadersError},
    store::{StateError, StateStore, Transaction},
    stream::StreamName,
    varint::{bytes, put_bytes, put_varint, varint},
};
use std::{
    collections::{BTreeMap, VecDeque},
    ops::{Deref, DerefMut},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// Most bytes of events read for one portion, and one event.
const MAX_PORTION_BYTES: usize = 4 << 20;
/// Events told and not asked for; older ones give way.
const MAX_TOLD: usize = 1_024;
/// The first level of the streams in which nodes say which consumers they run.
pub const CLAIMS: &str = "$consumer";
/// Dead letters written together.
const MAX_LETTERS: usize = 256;
/// Rows read at once.
const PAGE: usize = 256;

/// What the log has of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The feed.
    pub feed: FeedId,
    /// The first event that is there.
    pub first: Seq,
    /// One behind the last.
    pub next: Seq,
}

/// A portion of a feed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Portion {
    /// Its events, in order, without a gap.
    pub events: Vec<Event>,
    /// The hash of the last one.
    pub hash: EventHash,
}

/// The log as a consumer reads it.
pub trait LogSource: Send + Sync {
    /// All feeds.
    ///
    /// # Errors
    /// [`SourceError`].
    fn spans(&self) -> Result<Vec<Span>, SourceError>;

    /// Those of them that changed behind `mark`, and the mark behind which the next changes stand: 0 at first, and then what the last call gave. A source
    /// that keeps no account of changes tells all feeds.
    ///
    /// # Errors
    /// [`SourceError`].
    fn spans_since(&self, mark: u64) -> Result<(u64, Vec<Span>), SourceError> {
        Ok((mark, self.spans()?))
    }

    /// Events from `from` on: at least one if the log holds it, at most `most`, and no more once they have `bytes` ([`Event::weight`]).
    ///
    /// # Errors
    /// [`SourceError`].
    fn read(
        &self,
        feed: &FeedId,
        from: Seq,
        most: usize,
        bytes: usize,
    ) -> Result<Option<Portion>, SourceError>;

    /// The hash of an event, if the log holds it.
    ///
    /// # Errors
    /// [`SourceError`].
    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError>;

    /// The first event of the feed whose wall-clock time is not before `time`, in milliseconds since 1970; the end of the feed if there is none.
    ///
    /// # Errors
    /// [`SourceError`].
    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError>;
}

/// The log as a consumer writes it: its dead letters, and what handlers emit.
pub trait LogSink: Send + Sync {
    /// Appends, durably when it returns. An event with a producer that was appended before is not appended again.
    ///
    /// # Errors
    /// [`SourceError`].
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError>;

    /// What the clock on the wall says, in milliseconds since 1970: for what a consumer writes of its own accord (that it runs here, that a letter is done or
    /// dropped), which is the time of no event. Shown to people and asked by retention; it orders nothing.
    fn wall_ms(&self) -> i64;
}

/// A log in a reference, an `Arc` or a `Box`.
impl<P: Deref<Target: LogSource> + Send + Sync> LogSource for P {
    fn spans(&self) -> Result<Vec<Span>, SourceError> {
        (**self).spans()
    }
    fn spans_since(&self, mark: u64) -> Result<(u64, Vec<Span>), SourceError> {
        (**self).spans_since(mark)
    }
    fn read(
        &self,
        feed: &FeedId,
        from: Seq,
        most: usize,
        bytes: usize,
    ) -> Result<Option<Portion>, SourceError> {
        (**self).read(feed, from, most, bytes)
    }
    fn hash(&self, feed: &FeedId, seq: Seq) -> Result<Option<EventHash>, SourceError> {
        (**self).hash(feed, seq)
    }
    fn at_time(&self, feed: &FeedId, time: i64) -> Result<Seq, SourceError> {
        (**self).at_time(feed, time)
    }
}

impl<P: Deref<Target: LogSink> + Send + Sync> LogSink for P {
    fn append(&self, stream: &StreamName, events: Vec<NewEvent>) -> Result<(), SourceError> {
        (**self).append(stream, events)
    }
    fn wall_ms(&self) -> i64 {
        (**self).wall_ms()
    }
}

/// The log failed.
#[derive(Debug, thiserror::Error)]
#[error("the log failed: {0}")]
pub struct SourceError(#[source] pub Box<dyn std::error::Error + Send + Sync>);

/// A handler refuses an event: what it did for it is undone, and the event comes again, or becomes a dead letter with this cause.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal(String);

impl<E: std::fmt::Display> From<E> for Refusal {
    fn from(cause: E) -> Self {
        Self(cause.to_string())
    }
}

impl Refusal {
    /// The cause.
    pub fn cause(&self) -> &str {
        &self.0
    }
}

/// Why a consumer cannot go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConsumeError {
    /// The log.
    #[error(transparent)]
    Log(#[from] SourceError),
    /// The state store. The consumer has to be opened again.
    #[error(transparent)]
    State(#[from] StateError),
    /// It runs elsewhere, stopped, or a bound was reached.
    #[error(transparent)]
    Refused(#[from] Refused),
}

/// Who may open a consumer whose state is already owned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Takeover {
    /// Whoever ran it last on this node, or nobody did.
    Continue,
    /// Replace whoever runs it, explicitly: its generation is over, and what it had not committed never will be.
    Replace,
}

/// What a step did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// These many events were handled, refused ones among them.
    Worked(usize),
    /// There is nothing to do before this time, or before the log has more.
    Idle(Option<Time>),
}

/// An event as a handler sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Delivery {
    /// Which event it is: the same name for ever, and on every node.
    pub id: EventId,
    /// The event.
    pub event: Event,
    /// How often it failed before.
    pub attempts: u32,
}

/// The transaction that a handler works in.
#[derive(Debug)]
pub struct Scope<'a, Tx> {
    tx: &'a mut Tx,
    emitted: Vec<(StreamName, NewEvent)>,
}

impl<Tx> Scope<'_, Tx> {
    /// Appends an event to the log once the transaction is durable, exactly once. Its producer is the consumer.
    pub fn emit(&mut self, stream: StreamName, event: NewEvent) {
        self.emitted.push((stream, event));
    }
}

impl<Tx> Deref for Scope<'_, Tx> {
    type Target = Tx;
    fn deref(&self) -> &Tx {
        self.tx
    }
}

impl<Tx> DerefMut for Scope<'_, Tx> {
    fn deref_mut(&mut self) -> &mut Tx {
        self.tx
    }
}

/// A consumer on this node, shared by its workers.
#[derive(Debug)]
pub struct Consumer<L, S> {
    log: L,
    store: S,
    node: Author,
    keys: Keys,
    inner: Mutex<Inner>,
    /// Who appends emitted events, so that their numbers rise.
    emitting: Mutex<()>,
    /// What the core has heard of the log, as [`LogSource::spans_since`] counts: one looks at a time, so that nobody tells what is older than what
    /// another one has told.
    heard: Mutex<u64>,
    planted: Option<Planted>,
}

#[derive(Debug)]
struct Inner {
    core: Core,
    /// The last of what was told, [`MAX_TOLD`].
    told: VecDeque<Told>,
    /// At most one a worker.
    grants: VecDeque<Grant>,
    /// What the core wanted done while a transaction was open; done right after it.
    waiting: VecDeque<Output>,
    /// What the log could not say of offsets, at most one a feed: asked again with the next look at the log.
    unasked: Vec<Output>,
    emitted: Outbox,
}

impl Inner {
    /// The next output of the core. A grant is kept under the lock under which it comes, so that a worker who leaves leaves none behind.
    fn poll(&mut self) -> Option<Output> {
        loop {
            match self.core.poll()? {
                Output::Grant(grant) => {
                    self.grants.retain(|grant| self.core.is_held(grant.token));
                    self.grants.push_back(grant);
                }
                output => return Some(output),
            }
        }
    }

    /// What a worker was granted and still holds.
    fn granted(&mut self, worker: Worker) -> Option<Grant> {
        self.grant_of(|grant| grant.worker == worker)
    }

    fn grant_of(&mut self, is_it: impl Fn(&Grant) -> bool) -> Option<Grant> {
        self.grants.retain(|grant| self.core.is_held(grant.token));
        let at = self.grants.iter().position(is_it)?;
        self.grants.remove(at)
    }
}

impl<L: LogSource + LogSink, S: StateStore> Consumer<L, S> {
    /// Opens the consumer on this node: reads its rows, claims it with the next generation, durably and in the log, and asks the log what there is.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn open(
        log: L,
        store: S,
        node: Author,
        config: Config,
        takeover: Takeover,
        now: Time,
    ) -> Result<Self, ConsumeError> {
        let keys = Keys::new(&config.name);
        let planted = config.planted;
        let before = newest_claim(&log, &log.spans()?, &keys)?;
        let mut tx = store.begin()?;
        let (claim, existed) = claim(&mut tx, &keys, node, before, takeover)?;
        if !existed && config.start == Start::Tail {
            // The place is durable before the first event comes: a consumer that is opened again goes on there, whether it has had one or not.
            begin_at_tail(&log, &mut tx, &keys, &config)?;
        }
        let rows = positions(&mut tx, &keys)?;
        let outbox = Outbox::read(&mut tx, &keys)?;
        tx.put_row(&keys.owner(), Some(&claim.encode()))?;
        tx.commit()?;
        // All nodes learn of it; who ran it before stops as soon as it hears of it.
        let told = NewEvent::new(log.wall_ms(), claim.encode());
        log.append(&keys.claims, vec![told])?;
        let core = Core::load(config, claim.generation, existed, rows, now);
        let consumer = Self {
            log,
            store,
            node,
            keys,
            inner: Mutex::new(Inner {
                core,
                told: VecDeque::new(),
                grants: VecDeque::new(),
                waiting: VecDeque::new(),
                unasked: Vec::new(),
                emitted: outbox,
            }),
            emitting: Mutex::new(()),
            heard: Mutex::new(0),
            planted,
        };
        consumer.refresh(now)?;
        consumer.lock().core.handle(Input::Listed, now)?;
        consumer.flush_emitted()?;
        consumer.drive(now)?;
        Ok(consumer)
    }

    /// Handles a portion: up to [`Config::batch`] events of one feed, in order, in one transaction.
    ///
    /// # Errors
    /// [`ConsumeError`]: the step never was. After an error of the store the consumer has to be opened again.
    pub fn step<H>(&self, worker: Worker, now: Time, mut handler: H) -> Result<Step, ConsumeError>
    where
        H: FnMut(&Delivery, &mut Scope<'_, S::Tx<'_>>) -> Result<(), Refusal>,
    {
        let Some(grant) = self.claim(worker, now)? else {
            return Ok(Step::Idle(self.deadline()));
        };
        let Some(task) = self.load(grant, now)? else {
            return Ok(Step::Worked(0));
        };
        let count = task.events.len();
        if self.planted == Some(Planted::OffsetBeforeEffect) && !task.is_aside {
            self.work_wrongly(task, now, &mut handler)?;
        } else {
            self.work(task, now, &mut handler)?;
        }
        self.drive(now)?;
        self.flush_emitted()?;
        Ok(Step::Worked(count))
    }

    /// Tells what the log has now, as far as it has changed; [`step`](Self::step) does it whenever there is nothing to do.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn refresh(&self, now: Time) -> Result<(), ConsumeError> {
        {
            let mut heard = self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let (mark, spans) = self.log.spans_since(*heard)?;
            self.read_claims(&spans, now)?;
            let mut inner = self.lock();
            let again = std::mem::take(&mut inner.unasked);
            inner.waiting.extend(again);
            for Span { feed, first, next } in spans {
                inner.core.handle(Input::Head { feed, first, next }, now)?;
            }
            *heard = mark;
        }
        self.drive(now)
    }

    /// Which of these workers would be given something if they claimed now, as places in the list: those who read on, and of the others as many as there
    /// are feeds with work. For drivers whose workers wait: they look when the log has changed, after every call of another worker, and at the
    /// [`deadline`](Self::deadline).
    ///
    /// # Errors
    /// [`ConsumeError`]; the workers would be told of it, too.
    pub fn look(&self, waiting: &[Worker], now: Time) -> Result<Vec<usize>, ConsumeError> {
        self.lock().core.expire(now);
        self.refresh(now)?;
        let inner = self.lock();
        let is_granted = |worker: &Worker| inner.grants.iter().any(|g| g.worker == *worker);
        Ok(inner.core.ready(waiting, is_granted, now))
    }

    /// When there may be something to do although nobody calls and the log does not change: a lease runs out, or a pause ends.
    pub fn deadline(&self) -> Option<Time> {
        self.lock().core.deadline()
    }

    /// Goes on at the first event that is not before this wall-clock time, in every feed.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn seek_time(&self, time: i64, now: Time) -> Result<(), ConsumeError> {
        for span in self.log.spans()? {
            if self.reads(&span.feed) {
                let to = self.log.at_time(&span.feed, time)?;
                self.seek(span.feed, to, now)?;
            }
        }
        Ok(())
    }

    /// Goes on at the first event of every feed: everything is consumed again.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn seek_start(&self, now: Time) -> Result<(), ConsumeError> {
        self.seek_all(now, |span| span.first)
    }

    /// Goes on behind the last event of every feed: what is not consumed is passed over.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn seek_tail(&self, now: Time) -> Result<(), ConsumeError> {
        self.seek_all(now, |span| span.next)
    }

    fn seek_all(&self, now: Time, to: impl Fn(&Span) -> Seq) -> Result<(), ConsumeError> {
        for span in self.log.spans()? {
            if self.reads(&span.feed) {
                let to = to(&span);
                self.seek(span.feed, to, now)?;
            }
        }
        Ok(())
    }

    /// Goes on at this event of a feed.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn seek(&self, feed: FeedId, to: Seq, now: Time) -> Result<(), ConsumeError> {
        let hash = match to.checked_sub(1) {
            Some(before) => self.log.hash(&feed, before)?,
            None => None,
        };
        self.tell(Input::Seek { feed, to, hash }, now)
    }

    /// Tries the event of a dead letter again. When it is done, the letter is closed.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn retry(&self, id: EventId, now: Time) -> Result<(), ConsumeError> {
        let EventId { feed, seq } = id;
        self.tell(Input::Retry { feed, seq }, now)
    }

    /// Closes a dead letter: nobody needs it.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn drop_letter(&self, id: EventId) -> Result<(), ConsumeError> {
        let stream = self.dead_stream(&id.feed.stream)?;
        let dropped = Record::Dropped(id).to_event(self.log.wall_ms());
        self.log.append(&stream, vec![dropped])?;
        Ok(())
    }

    /// A worker ends in order.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn leave(&self, worker: Worker, now: Time) -> Result<(), ConsumeError> {
        self.tell(Input::Leave { worker }, now)
    }

    /// Feeds a fact or command to the core and does what follows: for drivers of workers elsewhere.
    ///
    /// # Errors
    /// [`ConsumeError`].
    pub fn tell(&self, input: Input, now: Time) -> Result<(), ConsumeError> {
        self.lock().core.handle(input, now)?;
        self.drive(now)
    }

    /// How far each feed is.
    pub fn lag(&self) -> Vec<Lag> {
        self.lock().core.lag().collect()
    }

    /// Whether a change in one of these feeds concerns it: it reads the stream, or other nodes say in it that they run the consumer. For drivers that
    /// [`look`](Self::look) at many consumers.
    pub fn hears(&self, feeds: &[FeedId]) -> bool {
        let mut feeds = feeds.iter();
        feeds.any(|feed| feed.stream == self.keys.claims || self.reads(feed))
    }

    /// Events that are not acknowledged yet.
    pub fn behind(&self) -> u64 {
        self.lock().core.behind()
    }

    /// The first event of a feed that retention must keep for this consumer.
    pub fn needs(&self, feed: &FeedId) -> Option<Seq> {
        self.lock().core.needs(feed)
    }

    /// The generation it runs as.
    pub fn generation(&self) -> u64 {
        self.lock().core.generation()
    }

    /// Whether it still works: it was not taken over, as far as it has heard, nor forgotten, and no write failed.
    pub fn is_running(&self) -> bool {
        self.lock().core.is_running()
    }

    /// How long a worker may be silent.
    pub fn lease(&self) -> Duration {
        self.lock().core.config().lease
    }

    /// What was done, dropped and repaired.
    pub fn counters(&self) -> Counters {
        self.lock().core.counters().clone()
    }

    /// What was told since the last call, alarms among it; the last 1,024.
    pub fn told(&self) -> Vec<Told> {
        self.lock().told.drain(..).collect()
    }

    /// The store, to read what was counted.
    pub fn store(&self) -> &S {
        &self.store
    }

    fn reads(&self, feed: &FeedId) -> bool {
        let inner = self.lock();
        inner
            .core
            .config()
            .patterns
            .iter()
            .any(|p| p.matches(&feed.stream))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing runs under this lock but the core, which leaves no half-done state behind.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A portion for this worker, if there is one now.
    fn claim(&self, worker: Worker, now: Time) -> Result<Option<Grant>, ConsumeError> {
        {
            let mut inner = self.lock();
            inner.core.expire(now);
            // What its last claim waited for was written down by another thread.
            if let Some(grant) = inner.granted(worker) {
                return Ok(Some(grant));
            }
            inner.core.handle(Input::Claim { worker }, now)?;
        }
        self.drive(now)?;
        if let Some(grant) = self.lock().granted(worker) {
            return Ok(Some(grant));
        }
        self.refresh(now)?;
        {
            let mut inner = self.lock();
            if let Some(grant) = inner.granted(worker) {
                return Ok(Some(grant));
            }
            // What was heard meanwhile may have ended us, and what it waits for may be in another thread's hands.
            inner.core.handle(Input::Claim { worker }, now)?;
            // It asks again; until then nobody holds a place for it, and nobody gives it something between these two.
            inner.core.handle(Input::Leave { worker }, now)?;
        }
        self.drive(now)?;
        Ok(None)
    }

    /// Does what the core wants done outside a worker's transaction.
    fn drive(&self, now: Time) -> Result<(), ConsumeError> {
        loop {
            let Some(output) = self.next_output() else {
                return Ok(());
            };
            let answer = match output {
                Output::Check { feed, seqs } => {
                    let found = seqs
                        .iter()
                        .map(|seq| Ok((*seq, self.log.hash(&feed, *seq)?)));
                    match found.collect::<Result<_, SourceError>>() {
                        Ok(found) => Input::Hashes { feed, found },
                        Err(_) => {
                            // It waits until it can be read; other feeds do not.
                            let again = Output::Check { feed, seqs };
                            self.lock().unasked.push(again);
                            continue;
                        }
                    }
                }
                Output::Persist {
                    ticket, feed, row, ..
                } => {
                    let result = self.persist_alone(&feed, &row);
                    let told = result.as_ref().map(|_| ()).map_err(ToString::to_string);
                    let input = Input::Persisted {
                        ticket,
                        result: told,
                    };
                    self.lock().core.handle(input, now)?;
                    result?;
                    continue;
                }
                Output::Bury { .. } => {
                    self.bury_all(output, now)?;
                    continue;
                }
                // Kept as it came: see `Inner::next`.
                Output::Grant(_) => continue,
                Output::Event(event) => {
                    self.on_told(event)?;
                    continue;
                }
            };
            self.lock().core.handle(answer, now)?;
        }
    }

    fn next_output(&self) -> Option<Output> {
        let mut inner = self.lock();
        match inner.waiting.pop_front() {
            Some(output) => Some(output),
            None => inner.poll(),
        }
    }

    fn on_told(&self, event: Told) -> Result<(), ConsumeError> {
        if let Told::Settled {
            feed,
            seq,
            letter: true,
        } = &event
        {
            let stream = self.dead_stream(&feed.stream)?;
            let (feed, seq) = (feed.clone(), *seq);
            let done = Record::Done(EventId { feed, seq });
            let done = done.to_event(self.log.wall_ms());
            self.log.append(&stream, vec![done])?;
        }
        let mut inner = self.lock();
        if inner.told.len() >= MAX_TOLD {
            inner.told.pop_front();
        }
        inner.told.push_back(event);
        Ok(())
    }

    fn persist_alone(&self, feed: &FeedId, row: &[u8]) -> Result<(), ConsumeError> {
        let mut tx = self.store.begin()?;
        self.check_owner(&mut tx)?;
        tx.put_row(&self.keys.position(feed), Some(row))?;
        Ok(tx.commit()?)
    }

    /// The store itself says who owns the consumer: a replaced owner commits nothing, whatever it believes.
    fn check_owner(&self, tx: &mut S::Tx<'_>) -> Result<(), ConsumeError> {
        let ours = self.generation();
        let owner = owner(tx, &self.keys)?;
        let theirs = owner.map_or(0, |claim| claim.generation);
        if theirs == ours || self.planted == Some(Planted::IgnoresGeneration) {
            return Ok(());
        }
        if owner.is_none() {
            return Err(Refused::Forgotten.into());
        }
        Err(Refused::Fenced { ours, theirs }.into())
    }

    /// Writes this letter and all that are due behind it, those of one stream together: one flush for many.
    fn bury_all(&self, first: Output, now: Time) -> Result<(), ConsumeError> {
        let mut outputs = vec![first];
        {
            let mut inner = self.lock();
            while outputs.len() < MAX_LETTERS
                && let Some(output) = inner.poll()
            {
                match output {
                    Output::Bury { .. } => outputs.push(output),
                    other => inner.waiting.push_back(other),
                }
            }
        }
        let mut letters: BTreeMap<StreamName, Vec<Burial>> = BTreeMap::new();
        for output in outputs {
            if let Output::Bury {
                ticket,
                feed,
                seq,
                attempts,
                held,
                cause,
            } = output
            {
                let stream = self.dead_stream(&feed.stream)?;
                let letter = self.letter(EventId { feed, seq }, attempts, held, cause);
                let (result, event) = match letter {
                    Ok((hash, event)) => (Ok(hash), Some(event)),
                    Err(error) => (Err(error.to_string()), None),
                };
                letters
                    .entry(stream)
                    .or_default()
                    .push((ticket, result, event));
            }
        }
        for (stream, mut letters) in letters {
            let events: Vec<NewEvent> = letters
                .iter_mut()
                .filter_map(|(.., event)| event.take())
                .collect();
            let written = match events.is_empty() {
                true => Ok(()),
                false => self.log.append(&stream, events),
            };
            for (ticket, result, _) in letters {
                let result = match &written {
                    Ok(()) => result,
                    Err(error) => Err(error.to_string()),
                };
                self.lock()
                    .core
                    .handle(Input::Buried { ticket, result }, now)?;
            }
            written?;
        }
        Ok(())
    }

    fn letter(
        &self,
        id: EventId,
        attempts: u32,
        held: Duration,
        cause: String,
    ) -> Result<(EventHash, NewEvent), ConsumeError> {
        let portion = self.log.read(&id.feed, id.seq, 1, 1)?;
        let found = portion.and_then(|p| Some((p.events.into_iter().next()?, p.hash)));
        let found = found.filter(|(event, _)| event.seq == id.seq);
        let consumer = self.lock().core.config().name.clone();
        // A letter stands at the time of its event; of one that is gone that is not known.
        let (time, hash) = match &found {
            Some((event, hash)) => (event.time, *hash),
            None => (self.log.wall_ms(), EventHash([0; 32])),
        };
        let event = found.map(|(event, _)| event);
        let letter = Letter::of(id, hash, event, consumer, cause, attempts, held);
        Ok((hash, Record::Letter(Box::new(letter)).to_event(time)))
    }

    fn dead_stream(&self, stream: &StreamName) -> Result<StreamName, ConsumeError> {
        let consumer = self.lock().core.config().name.clone();
        dead::stream_of(&consumer, stream).map_err(|e| ConsumeError::Log(SourceError(Box::new(e))))
    }

    /// Reads what was granted. None: the log does not hold what it said it holds; it was changed meanwhile.
    fn load(&self, grant: Grant, now: Time) -> Result<Option<Task>, ConsumeError> {
        let (token, worker, feed) = (grant.token, grant.worker, grant.feed);
        let mut task = Task {
            token,
            feed: feed.clone(),
            events: Vec::new(),
            hash: None,
            is_aside: false,
        };
        match grant.work {
            Work::Main {
                from,
                most,
                attempts,
            } => {
                let most = usize::try_from(most).unwrap_or(usize::MAX).max(1);
                if let Some(portion) = self.log.read(&feed, from, most, MAX_PORTION_BYTES)? {
                    task.hash = Some(portion.hash);
                    let attempts = |seq| if seq == from { attempts } else { 0 };
                    let events = portion.events.into_iter();
                    task.events = events.map(|event| (attempts(event.seq), event)).collect();
                }
            }
            Work::Asides(seqs) => {
                task.is_aside = true;
                for (seq, attempts) in seqs {
                    let portion = self.log.read(&feed, seq, 1, 1)?;
                    let event = portion.and_then(|portion| portion.events.into_iter().next());
                    // Gone by retention while it waited: it ends as a dead letter without a content, and says so.
                    match event.filter(|event| event.seq == seq) {
                        Some(event) => task.events.push((attempts, event)),
                        None => self.refuse(
                            token,
                            [(seq, "the log no longer holds the event".to_owned())],
                            now,
                        )?,
                    }
                }
                return Ok(Some(task));
            }
        }
        if let Some((_, last)) = task.events.last() {
            self.lock().core.was_given(token, last.seq + 1);
        }
        if task.events.is_empty() {
            self.tell(Input::Leave { worker }, now)?;
            self.tell(Input::Changed(feed), now)?;
            return Ok(None);
        }
        Ok(Some(task))
    }

    /// Runs the handler over a portion and commits.
    fn work<H>(&self, task: Task, now: Time, handler: &mut H) -> Result<(), ConsumeError>
    where
        H: FnMut(&Delivery, &mut Scope<'_, S::Tx<'_>>) -> Result<(), Refusal>,
    {
        let Task {
            token,
            feed,
            events,
            hash,
            is_aside,
        } = task;
        let stops = !is_aside && self.lock().core.config().order == Order::Strict;
        let outbox = self.lock().emitted;
        let mut tx = self.store.begin()?;
        self.check_owner(&mut tx)?;
        let mut emitted = Emitted::begin(&mut tx, &self.keys, outbox)?;
        let (mut done, mut refused) = (Vec::new(), Vec::new());
        let first = events.first().map(|(_, event)| event.seq);
        for (attempts, event) in events {
            let seq = event.seq;
            tx.savepoint()?;
            let id = EventId {
                feed: feed.clone(),
                seq,
            };
            let delivery = Delivery {
                id,
                event,
                attempts,
            };
            let mut scope = Scope {
                tx: &mut tx,
                emitted: Vec::new(),
            };
            let result = handler(&delivery, &mut scope);
            let new = scope.emitted;
            match result {
                Ok(()) => {
                    emitted.put(&mut tx, &self.keys, new)?;
                    done.push(seq);
                }
                Err(Refusal(cause)) => {
                    tx.rollback()?;
                    refused.push((seq, cause));
                    if stops {
                        break;
                    }
                }
            }
        }
        emitted.end(&mut tx, &self.keys)?;
        if is_aside {
            self.refuse(token, refused, now)?;
            return self.commit(token, Ack::Asides(done), tx, emitted, now);
        }
        let last = done.last().max(refused.last().map(|(seq, _)| seq)).copied();
        match refused.first() {
            Some((seq, cause)) if stops => {
                let nack = (*seq, cause.clone());
                if first < Some(*seq) {
                    // What was done before the refused event stays done.
                    let hash = self.log.hash(&feed, *seq - 1)?;
                    let hash = hash.ok_or(Refused::NotGiven { seq: *seq - 1 })?;
                    self.commit(token, Ack::Through { next: *seq, hash }, tx, emitted, now)?;
                } else {
                    drop(tx);
                }
                self.refuse(token, [nack], now)
            }
            _ => {
                self.refuse(token, refused, now)?;
                match (last, hash) {
                    (Some(last), Some(hash)) => {
                        let next = last + 1;
                        self.commit(token, Ack::Through { next, hash }, tx, emitted, now)
                    }
                    _ => Ok(()),
                }
            }
        }
    }

    /// Tells the core of refused events; what follows from it waits for [`drive`](Self::drive), since a transaction may be open.
    fn refuse(
        &self,
        token: Token,
        refused: impl IntoIterator<Item = (Seq, String)>,
        now: Time,
    ) -> Result<(), ConsumeError> {
        let mut inner = self.lock();
        for (seq, cause) in refused {
            inner.core.handle(Input::Nack { token, seq, cause }, now)?;
        }
        Ok(())
    }

    /// Acknowledges in the transaction that holds the work, and makes both durable.
    fn commit(
        &self,
        token: Token,
        ack: Ack,
        mut tx: S::Tx<'_>,
        emitted: Emitted,
        now: Time,
    ) -> Result<(), ConsumeError> {
        let (ticket, feed, row) = self.row_of(token, ack, now)?;
        let key = self.keys.position(&feed);
        let result = match self.planted {
            Some(Planted::EffectBeforeOffset) => tx.commit().and_then(|()| {
                let mut tx = self.store.begin()?;
                tx.put_row(&key, Some(&row))?;
                tx.commit()
            }),
            _ => tx.put_row(&key, Some(&row)).and_then(|()| tx.commit()),
        };
        let told = result.as_ref().copied().map_err(ToString::to_string);
        let persisted = Input::Persisted {
            ticket,
            result: told,
        };
        {
            let mut inner = self.lock();
            inner.core.handle(persisted, now)?;
            if result.is_ok() {
                inner.emitted.committed(&emitted);
            }
        }
        result?;
        self.drive(now)
    }

    /// The row that goes into the worker's transaction. Under one lock with the acknowledgement, so that no other thread takes it.
    fn row_of(
        &self,
        token: Token,
        ack: Ack,
        now: Time,
    ) -> Result<(u64, FeedId, Vec<u8>), ConsumeError> {
        let mut guard = self.lock();
        let inner = &mut *guard;
        inner.core.handle(Input::Ack { token, ack }, now)?;
        let mut found = None;
        while let Some(output) = inner.poll() {
            match output {
                Output::Persist {
                    ticket,
                    token: Some(of),
                    feed,
                    row,
                } if of == token => found = Some((ticket, feed, row)),
                other => inner.waiting.push_back(other),
            }
        }
        Ok(found.ok_or(Refused::Lease)?)
    }

    /// The planted bug: the offset first, the effect after it.
    fn work_wrongly<H>(&self, task: Task, now: Time, handler: &mut H) -> Result<(), ConsumeError>
    where
        H: FnMut(&Delivery, &mut Scope<'_, S::Tx<'_>>) -> Result<(), Refusal>,
    {
        if let (Some((_, last)), Some(hash)) = (task.events.last(), task.hash) {
            let next = last.seq + 1;
            let tx = self.store.begin()?;
            self.commit(
                task.token,
                Ack::Through { next, hash },
                tx,
                Emitted::default(),
                now,
            )?;
        }
        let mut tx = self.store.begin()?;
        for (attempts, event) in task.events {
            let id = EventId {
                feed: task.feed.clone(),
                seq: event.seq,
            };
            let mut scope = Scope {
                tx: &mut tx,
                emitted: Vec::new(),
            };
            let delivery = Delivery {
                id,
                event,
                attempts,
            };
            // This bug forgets refusals, too.
            let _refused = handler(&delivery, &mut scope);
        }
        Ok(tx.commit()?)
    }

    /// Appends what was emitted in committed transactions, in order; rows go with the next transaction.
    fn flush_emitted(&self) -> Result<(), ConsumeError> {
        let _one_at_a_time = self.emitting.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            let Outbox {
                appended,
                committed,
                ..
            } = self.lock().emitted;
            if appended >= committed {
                return Ok(());
            }
            let after = self.keys.emitted(appended.wrapping_sub(1));
            let rows = {
                let mut tx = self.store.begin()?;
                let after = (appended > 0).then_some(after.as_slice());
                tx.rows(&self.keys.emitted_prefix(), after, PAGE)?
            };
            if rows.is_empty() {
                self.lock().emitted.appended = committed;
                return Ok(());
            }
            for (key, row) in rows {
                let (number, stream, mut event) =
                    self.keys
                        .read_emitted(&key, &row)
                        .ok_or_else(|| StateError::Damaged {
                            what: "an emitted event".to_owned(),
                        })?;
                // The number makes a second attempt harmless.
                event.headers = event.headers.produced_by(self.keys.producer(), number);
                self.log.append(&stream, vec![event])?;
                self.lock().emitted.appended = number + 1;
            }
        }
    }

    /// Reads who claims the consumer elsewhere, in what is new.
    fn read_claims(&self, spans: &[Span], now: Time) -> Result<(), ConsumeError> {
        if let Some(claim) = newest_claim(&self.log, spans, &self.keys)? {
            let ours = Claim {
                generation: self.generation(),
                node: self.node,
            };
            if claim > ours {
                // Of two with one generation the greater key counts, on all nodes.
                let theirs = claim.generation.max(ours.generation + 1);
                self.lock().core.handle(Input::Generation(theirs), now)?;
            }
        }
        Ok(())
    }
}

/// A letter that is to be written: its ticket, the hash of its event, and the event that carries it.
type Burial = (u64, Result<EventHash, String>, Option<NewEvent>);

/// A portion that was read.
struct Task {
    token: Token,
    feed: FeedId,
    /// How often each failed before, and the event.
    events: Vec<(u32, Event)>,
    /// Of the last one, unless they were set aside.
    hash: Option<EventHash>,
    is_aside: bool,
}

/// The next claim, and whether the consumer was here before.
fn claim(
    tx: &mut impl Transaction,
    keys: &Keys,
    node: Author,
    told: Option<Claim>,
    takeover: Takeover,
) -> Result<(Claim, bool), ConsumeError> {
    let here = owner(tx, keys)?;
    let newest = here.max(told);
    if let Some(newest) = newest
        && newest.node != node
        && takeover == Takeover::Continue
    {
        return Err(Refused::Fenced {
            ours: here.map_or(0, |claim| claim.generation),
            theirs: newest.generation,
        }
        .into());
    }
    let generation = newest.map_or(0, |claim| claim.generation) + 1;
    Ok((Claim { generation, node }, here.is_some()))
}

fn begin_at_tail(
    log: &impl LogSource,
    tx: &mut impl Transaction,
    keys: &Keys,
    config: &Config,
) -> Result<(), ConsumeError> {
    for span in log.spans()? {
        let Span { feed, next, .. } = span;
        let is_read = config.patterns.iter().any(|p| p.matches(&feed.stream));
        if is_read && next > 0 {
            let hash = log.hash(&feed, next - 1)?;
            let row = Position::at(next, hash, config.batch).encode();
            tx.put_row(&keys.position(&feed), Some(&row))?;
        }
    }
    Ok(())
}

fn positions(tx: &mut impl Transaction, keys: &Keys) -> Result<Vec<(FeedId, Vec<u8>)>, StateError> {
    let prefix = keys.of(b'p', &[]);
    let mut found = Vec::new();
    let mut after: Option<Vec<u8>> = None;
    loop {
        let page = tx.rows(&prefix, after.as_deref(), PAGE)?;
        let Some((last, _)) = page.last() else {
            return Ok(found);
        };
        after = Some(last.clone());
        for (key, row) in page {
            let feed = keys
                .read_position(&key)
                .ok_or_else(|| StateError::Damaged {
                    what: "the key of an offset".to_owned(),
                })?;
            found.push((feed, row));
        }
    }
}

/// Who runs a consumer. The newest claim is the one with the highest generation, then the greater key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    /// It rises with each opening.
    pub generation: u64,
    /// The node.
    pub node: Author,
}

impl Claim {
    /// The bytes: in the row of the owner, and in the stream of claims.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![1];
        put_varint(&mut out, self.generation);
        out.extend(self.node.0);
        out
    }

    /// Reads a claim.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&[1])?;
        let generation = varint(&mut rest)?;
        let node = Author(rest.try_into().ok()?);
        Some(Self { generation, node })
    }
}

/// Who runs a consumer, as far as this log has heard: the newest claim in its stream. `None`: nobody has told of such a consumer, or retention took it.
///
/// # Errors
/// [`SourceError`].
pub fn runner(log: &impl LogSource, name: &ConsumerName) -> Result<Option<Claim>, SourceError> {
    newest_claim(log, &log.spans()?, &Keys::new(name))
}

/// The highest claim in `$consumer/<name>`: one small feed a node that ever ran it, of which the last event counts.
fn newest_claim(
    log: &impl LogSource,
    spans: &[Span],
    keys: &Keys,
) -> Result<Option<Claim>, SourceError> {
    let mut newest = None;
    for span in spans {
        if span.feed.stream != keys.claims || span.next == span.first {
            continue;
        }
        if let Some(portion) = log.read(&span.feed, span.next - 1, 1, 1)? {
            let claims = portion
                .events
                .iter()
                .filter_map(|event| Claim::decode(&event.payload));
            // Only its author speaks for a node.
            let claims = claims.filter(|claim| claim.node == span.feed.author);
            newest = newest.max(claims.max());
        }
    }
    Ok(newest)
}

fn owner(tx: &mut impl Transaction, keys: &Keys) -> Result<Option<Claim>, StateError> {
    match tx.row(&keys.owner())? {
        None => Ok(None),
        Some(row) => match Claim::decode(&row) {
            Some(claim) => Ok(Some(claim)),
            None => Err(StateError::Damaged {
                what: "the owner of a consumer".to_owned(),
            }),
        },
    }
}

/// What is known of emitted events, by number: rows below `deleted` are gone, below `appended` in the log, below `committed` durable.
#[derive(Debug, Clone, Copy, Default)]
struct Outbox {
    deleted: u64,
    appended: u64,
    committed: u64,
}

impl Outbox {
    /// What may not be in the log yet begins with the first row.
    fn read(tx: &mut impl Transaction, keys: &Keys) -> Result<Self, StateError> {
        let committed = read_number(tx, keys)?;
        let first = tx.rows(&keys.emitted_prefix(), None, 1)?.pop();
        let first = first.and_then(|(key, row)| keys.read_emitted(&key, &row));
        let appended = first.map_or(committed, |(number, ..)| number);
        Ok(Self {
            deleted: appended,
            appended,
            committed,
        })
    }

    fn committed(&mut self, by: &Emitted) {
        self.committed = self.committed.max(by.next);
        self.deleted = self.deleted.max(by.deletes);
    }
}

/// Events that a transaction emits.
#[derive(Debug, Default)]
struct Emitted {
    next: u64,
    deletes: u64,
    first: u64,
}

impl Emitted {
    /// Reads the next number, and deletes the rows that are in the log by now.
    fn begin(tx: &mut impl Transaction, keys: &Keys, outbox: Outbox) -> Result<Self, StateError> {
        for number in outbox.deleted..outbox.appended {
            tx.put_row(&keys.emitted(number), None)?;
        }
        let next = read_number(tx, keys)?;
        Ok(Self {
            next,
            first: next,
            deletes: outbox.appended,
        })
    }

    fn put(
        &mut self,
        tx: &mut impl Transaction,
        keys: &Keys,
        events: Vec<(StreamName, NewEvent)>,
    ) -> Result<(), StateError> {
        for (stream, event) in events {
            let row = keys
                .emitted_row(&stream, &event)
                .map_err(StateError::store)?;
            tx.put_row(&keys.emitted(self.next), Some(&row))?;
            self.next += 1;
        }
        Ok(())
    }

    fn end(&self, tx: &mut impl Transaction, keys: &Keys) -> Result<(), StateError> {
        if self.next > self.first {
            tx.put_row(&keys.number(), Some(&self.next.to_be_bytes()))?;
        }
        Ok(())
    }
}

fn read_number(tx: &mut impl Transaction, keys: &Keys) -> Result<u64, StateError> {
    match tx.row(&keys.number())? {
        None => Ok(0),
        Some(row) => row
            .try_into()
            .map(u64::from_be_bytes)
            .map_err(|_| StateError::Damaged {
                what: "the number of emitted events".to_owned(),
            }),
    }
}

/// The keys of a consumer's rows: a letter, its name, and a zero in front of what follows.
#[derive(Debug)]
struct Keys {
    name: String,
    claims: StreamName,
}

impl Keys {
    fn new(name: &ConsumerName) -> Self {
        let claims = StreamName::new(&format!("{CLAIMS}/{name}"));
        Self {
            name: name.to_string(),
            claims: claims.expect("the name of a consumer is a level of a stream's name"),
        }
    }

    fn of(&self, kind: u8, rest: &[u8]) -> Vec<u8> {
        [&[kind], self.name.as_bytes(), &[0], rest].concat()
    }

    fn owner(&self) -> Vec<u8> {
        self.of(b'o', &[])
    }

    fn number(&self) -> Vec<u8> {
        self.of(b'n', &[])
    }

    fn position(&self, feed: &FeedId) -> Vec<u8> {
        let mut id = Vec::with_capacity(64);
        feed.put(&mut id);
        self.of(b'p', &id)
    }

    fn read_position(&self, key: &[u8]) -> Option<FeedId> {
        let rest = key.strip_prefix(self.of(b'p', &[]).as_slice())?;
        let (author, rest) = rest.split_first_chunk::<32>()?;
        let (epoch, stream) = rest.split_first_chunk::<8>()?;
        Some(FeedId {
            author: Author(*author),
            stream: StreamName::new(std::str::from_utf8(stream).ok()?).ok()?,
            epoch: Epoch(u64::from_be_bytes(*epoch)),
        })
    }

    fn emitted_prefix(&self) -> Vec<u8> {
        self.of(b'e', &[])
    }

    fn emitted(&self, number: u64) -> Vec<u8> {
        self.of(b'e', &number.to_be_bytes())
    }

    fn producer(&self) -> String {
        format!("consumer/{}", self.name)
    }

    fn emitted_row(&self, stream: &StreamName, event: &NewEvent) -> Result<Vec<u8>, HeadersError> {
        let mut out = vec![1];
        put_bytes(&mut out, stream.as_str().as_bytes());
        out.extend(event.time.to_be_bytes());
        let mut headers = Vec::new();
        if !event.headers.is_empty() {
            event.headers.put(&mut headers)?;
        }
        put_bytes(&mut out, &headers);
        put_bytes(&mut out, &event.payload);
        Ok(out)
    }

    fn read_emitted(&self, key: &[u8], row: &[u8]) -> Option<(u64, StreamName, NewEvent)> {
        let number = key.strip_prefix(self.emitted_prefix().as_slice())?;
        let mut rest = row.strip_prefix(&[1])?;
        let stream = StreamName::new(std::str::from_utf8(bytes(&mut rest)?).ok()?).ok()?;
        let (time, tail) = rest.split_first_chunk::<8>()?;
        rest = tail;
        let mut found = Headers::default();
        let headers = bytes(&mut rest)?;
        if !headers.is_empty() {
            headers::read(&mut Reader::new(headers), Some(&mut found)).ok()?;
        }
        let payload = bytes(&mut rest)?.to_vec();
        let event = NewEvent::new(i64::from_be_bytes(*time), payload).with(found);
        let number = u64::from_be_bytes(number.try_into().ok()?);
        rest.is_empty().then_some((number, stream, event))
    }
}
