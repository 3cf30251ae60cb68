//! The consumers of this node: opened when somebody first works through them, kept open, found again after a restart.
//!
//! Their offsets lie in `consumers.redb`, in transactions of their own; what a worker outside this process does with an event happens at least once
//! (specs/log.md), unless it keeps offsets in its own transaction.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use gemba_log::consume::{
    ConsumeError, Consumer, LogSource as _, Receipt, SourceError, Taken, Takeover, forget, runner,
};
use gemba_log::core::consumer::{Config, ConsumerName, Refused, Start, Worker};
use gemba_log::core::dead::{self, Letters, Record};
use gemba_log::store::{
    KeyValue as _, RedbStore, RedbTx, StateError, StateStore as _, Transaction as _,
};
use gemba_log::{EventId, FeedId, Log, LogError, MAX_NUMBER, Pattern, Seq};
use libp2p_identity::PeerId;
use serde::{Deserialize, Serialize};

use super::waiting::{Waiters, Waiting};
use super::wire::{
    AckRequest, ClaimRequest, Claimed, ClaimedEvent, ConsumerFeed, ConsumerView, DeadLetter,
};
use super::{author_text, parse_author, parse_pattern, parse_stream, wire, within};
use crate::error::{Code, Fail};

/// Most consumers of a node.
const MOST: usize = 256;
/// Most patterns of a consumer: all are kept together, and written whenever a consumer is made.
const MOST_STREAMS: u64 = 1024;
/// Most claims that are not acknowledged; one more ends the oldest, whose events are given again.
const MOST_CLAIMS: usize = 4096;
/// The shortest and the longest lease.
const LEASE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3600));
/// Most dead letters of a stream that are looked through.
const MOST_LETTERS: usize = 100_000;
/// Most bytes of what a worker keeps with its acknowledgements.
const MOST_STATE: usize = 64 << 10;
/// Where settings lie in the state store.
const SETTINGS: &[u8] = b"node/consumers";

/// A consumer of this node.
type Open = Consumer<Arc<Log>, Arc<RedbStore>>;

/// What a consumer was opened with the first time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Settings {
    streams: Vec<String>,
    #[serde(default)]
    tail: bool,
    #[serde(default)]
    attempts: Option<u32>,
    #[serde(default)]
    batch: Option<u32>,
    #[serde(default)]
    lease_ms: Option<u64>,
}

/// All of them.
pub struct Consumers {
    log: Arc<Log>,
    store: Arc<RedbStore>,
    started: Instant,
    known: Mutex<BTreeMap<String, Settings>>,
    open: Mutex<BTreeMap<String, Arc<Open>>>,
    /// One opens at a time; those that are open go on meanwhile.
    opening: Mutex<()>,
    /// By token, which rise: the first is the oldest.
    claims: Mutex<BTreeMap<u64, Claim>>,
    next_token: AtomicU64,
    /// Who claims at this moment, by consumer and worker: what it was given and has no token of yet is not in `claims`.
    claiming: Mutex<BTreeSet<(String, u64)>>,
    /// One of them has ended.
    claimed_one: Condvar,
    /// Workers that wait for events.
    waiters: Waiters,
    /// How many letters of a consumer are open, and what its letters' feeds held when they were counted.
    counted: Mutex<BTreeMap<String, (Held, u64)>>,
}

/// Which events of each feed are here, as the first and the one behind the last.
type Held = Vec<(FeedId, Seq, Seq)>;

/// What describes a consumer is kept for as long as it lives, and a number that means something else than was asked for would not be seen again: it is refused.
/// A most that is above what there is is none of those: who asks for 5,000 events at most gets no more than he asked for (specs/log-http.md §5).
fn check(request: &ClaimRequest) -> Result<(), Fail> {
    let streams = request.streams.len() as u64;
    within("the number of streams", Some(streams), (0, MOST_STREAMS))?;
    let ms = |lease: Duration| u64::try_from(lease.as_millis()).unwrap_or(u64::MAX);
    within("worker", Some(request.worker), (0, MAX_NUMBER))?;
    within(
        "attempts",
        request.attempts.map(u64::from),
        (1, u64::from(u32::MAX)),
    )?;
    within("lease_ms", request.lease_ms, (ms(LEASE.0), ms(LEASE.1)))?;
    within(
        "batch",
        request.batch.map(u64::from),
        (1, u64::from(u32::MAX)),
    )
}

/// What a worker has not acknowledged. Its token is no number of the consumer's own: these begin anew when it is opened again, and a worker from
/// before would acknowledge what another one has.
#[derive(Clone)]
struct Claim {
    name: String,
    worker: u64,
    consumer: Arc<Open>,
    receipt: Receipt,
}

/// A claim of a worker is under way, as long as this lives.
struct Alone<'a> {
    consumers: &'a Consumers,
    worker: (String, u64),
}

impl Drop for Alone<'_> {
    fn drop(&mut self) {
        lock(&self.consumers.claiming).remove(&self.worker);
        self.consumers.claimed_one.notify_all();
    }
}

/// A write to the same feed, or a claim of the same worker, is under way: it is waited for, this long.
const PATIENCE: Duration = Duration::from_secs(5);
/// So often it is looked whether it has ended.
const LOOK: Duration = Duration::from_millis(2);
/// Feeds that cannot be read are passed over by a claim, so many.
const UNREADABLE: usize = 16;

impl Consumers {
    /// Opens the state of all consumers.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn open(log: Arc<Log>, path: PathBuf) -> Result<Self, Fail> {
        let store = RedbStore::open(&path).map_err(|e| state_fail(&e))?;
        let known = {
            let mut tx = store.begin().map_err(|e| state_fail(&e))?;
            tx.get(SETTINGS).map_err(|e| state_fail(&e))?
        };
        let known = match known {
            Some(bytes) => serde_json::from_slice(&bytes).map_err(|e| {
                Fail::new(
                    Code::Integrity,
                    format!(
                        "the list of consumers in {} is damaged: {e}",
                        path.display()
                    ),
                )
            })?,
            None => BTreeMap::new(),
        };
        Ok(Self {
            log,
            store: Arc::new(store),
            started: Instant::now(),
            known: Mutex::new(known),
            open: Mutex::default(),
            opening: Mutex::default(),
            claims: Mutex::default(),
            next_token: AtomicU64::new(first_token()?),
            claiming: Mutex::default(),
            claimed_one: Condvar::new(),
            waiters: Waiters::default(),
            counted: Mutex::default(),
        })
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// The next portion for a worker, if there is one now. What it had before and has not acknowledged is given again: it may never have come to
    /// it, and an acknowledgement of what comes now would be one of that, too. Unless it reads on: then it says by its token that it has come.
    ///
    /// # Errors
    /// A consumer of other streams has this name; it runs on another node; the log's or the disk's.
    pub fn claim(&self, name: &str, request: &ClaimRequest) -> Result<Option<Claimed>, Fail> {
        let claimed = self.claim_now(name, request);
        // With its claim a worker may have given back what it had, or written down what another one waits for.
        self.waiters.ring(name);
        claimed
    }

    fn claim_now(&self, name: &str, request: &ClaimRequest) -> Result<Option<Claimed>, Fail> {
        check(request)?;
        let consumer = self.consumer(name, Some(request))?;
        // Until it has its token.
        let until = Instant::now() + PATIENCE;
        let Some(_alone) = self.alone(name, request.worker, until) else {
            // The disk keeps the other one: the worker asks again.
            return Ok(None);
        };
        let taken = match request.read_on {
            Some(token) => self.read_on(name, request.worker, token)?,
            None => self.take(name, request.worker, &consumer)?,
        };
        let Some(taken) = taken else {
            return Ok(None);
        };
        let events = taken.deliveries.iter().map(|delivery| ClaimedEvent {
            attempts: delivery.attempts,
            event: wire::line_of(&delivery.id.feed, &delivery.event),
        });
        let events = events.collect();
        let feed = taken.receipt.feed.clone();
        let claim = Claim {
            name: name.to_owned(),
            worker: request.worker,
            consumer,
            receipt: taken.receipt,
        };
        let token = self.hold(claim, MOST_CLAIMS);
        Ok(Some(Claimed {
            token,
            state: self.state(name, &feed)?,
            events,
        }))
    }

    /// Whether the worker may claim now: no other claim of its own is under way, or it ends in time. A worker whose connection was lost comes again while its
    /// first claim still reads. That one has its lease and no token, so nothing would be given up for the second, which would read on: an acknowledgement of
    /// what that one gives would be one of what the first one gave to nobody.
    fn alone(&self, name: &str, worker: u64, until: Instant) -> Option<Alone<'_>> {
        let worker = (name.to_owned(), worker);
        let mut claiming = lock(&self.claiming);
        while !claiming.insert(worker.clone()) {
            let left = until.checked_duration_since(Instant::now())?;
            let waited = self.claimed_one.wait_timeout(claiming, left);
            claiming = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(claiming);
        Some(Alone {
            consumers: self,
            worker,
        })
    }

    /// Whether the worker was given something after this token. If the answer was lost it does not know, and an acknowledgement of what is behind that would
    /// pass over it.
    fn has_newer(&self, name: &str, worker: u64, token: u64) -> bool {
        let claims = lock(&self.claims);
        let mut newer = claims.range(token.saturating_add(1)..);
        newer.any(|(_, claim)| claim.name == name && claim.worker == worker)
    }

    /// What is behind the events that a worker has in hands by this token, which goes on living.
    fn read_on(&self, name: &str, worker: u64, token: u64) -> Result<Option<Taken>, Fail> {
        let claim = self.claimed(name, token)?;
        if claim.worker != worker || self.has_newer(name, worker, token) {
            return Err(claim_over());
        }
        match claim.consumer.read_on(&claim.receipt, self.now()) {
            // A write is under way, of which it depends: the worker asks again.
            Err(ConsumeError::Refused(Refused::Busy)) => Ok(None),
            Err(error) => {
                if matches!(error, ConsumeError::Refused(Refused::Lease)) {
                    lock(&self.claims).remove(&token);
                }
                Err(self.failed(name, &claim.consumer, &error))
            }
            Ok(taken) => Ok(taken),
        }
    }

    /// The next portion for a worker that gives up what it had.
    fn take(&self, name: &str, worker: u64, consumer: &Arc<Open>) -> Result<Option<Taken>, Fail> {
        if self.drop_claims(name, worker) {
            let left = consumer.leave(Worker(worker), self.now());
            left.map_err(|e| self.failed(name, consumer, &e))?;
        }
        let mut unreadable = None;
        loop {
            match consumer.take(Worker(worker), self.now()) {
                Ok(Some(taken)) => return Ok(Some(taken)),
                // A write is under way, of which the worker's next feed depends: it asks again.
                Err(ConsumeError::Refused(Refused::Busy)) => return Ok(None),
                // Others go on; who has nothing else is told.
                Err(error @ ConsumeError::Log(_)) => {
                    let tried = unreadable.map_or(1, |(tried, _)| tried + 1);
                    tracing::error!(consumer = name, %error, "events that a consumer needs cannot be read");
                    if tried >= UNREADABLE {
                        return Err(consume_fail(name, &error));
                    }
                    unreadable = Some((tried, error));
                }
                Ok(None) => match unreadable {
                    Some((_, error)) => return Err(consume_fail(name, &error)),
                    None => return Ok(None),
                },
                Err(error) => return Err(self.failed(name, consumer, &error)),
            }
        }
    }

    /// Takes a claim in, with a token of its own. With more than `most` the oldest end, and what they held is given back: their workers cannot acknowledge it any
    /// more, so that nobody is to wait for their leases.
    fn hold(&self, claim: Claim, most: usize) -> u64 {
        let (token, ended) = keep(&mut lock(&self.claims), &self.next_token, claim, most);
        for claim in ended {
            let Claim {
                name,
                worker,
                consumer,
                ..
            } = claim;
            tracing::warn!(
                consumer = name,
                worker,
                "{most} claims are open: the oldest one ends, and its events go to others"
            );
            if let Err(error) = consumer.leave(Worker(worker), self.now()) {
                // It is to be had again when its lease is over, as after a restart.
                tracing::warn!(consumer = name, %error, "the events of a claim could not be given back");
            }
            self.waiters.ring(&name);
        }
        token
    }

    /// Gives back what was claimed for somebody who went away before he was told.
    pub fn give_back(&self, name: &str, token: u64) {
        let Some(worker) = lock(&self.claims).get(&token).map(|claim| claim.worker) else {
            return;
        };
        // Its next claim finds no token and a lease between the two steps of this. One that is under way gives back by itself what it finds.
        let Some(alone) = self.alone(name, worker, Instant::now()) else {
            return;
        };
        let claim = lock(&self.claims).remove(&token);
        let Some(claim) = claim.filter(|claim| !claim.consumer.is_done(&claim.receipt)) else {
            return;
        };
        if let Err(error) = claim.consumer.leave(Worker(worker), self.now()) {
            tracing::debug!(consumer = name, %error, "events that nobody was told of could not be given back");
        }
        drop(alone);
        self.waiters.ring(name);
    }

    /// Forgets what a worker has not acknowledged; whether there was something.
    fn drop_claims(&self, name: &str, worker: u64) -> bool {
        let mut claims = lock(&self.claims);
        let before = claims.len();
        claims.retain(|_, claim| claim.name != name || claim.worker != worker);
        claims.len() < before
    }

    /// The claim of this token, if its consumer has not been opened anew since.
    fn claimed(&self, name: &str, token: u64) -> Result<Claim, Fail> {
        let claim = lock(&self.claims).get(&token).cloned();
        let claim = claim.filter(|claim| claim.name == name);
        let claim = claim.ok_or_else(claim_over)?;
        let open = lock(&self.open).get(name).cloned();
        if open.is_some_and(|open| Arc::ptr_eq(&open, &claim.consumer)) {
            return Ok(claim);
        }
        lock(&self.claims).remove(&token);
        Err(claim_over())
    }

    /// A worker has done something of its claim, durably when this returns.
    ///
    /// # Errors
    /// The claim is over, or the disk refuses.
    pub fn acknowledge(&self, name: &str, request: AckRequest) -> Result<(), Fail> {
        // That there is no such consumer is something else than that a claim is over.
        self.settings(&consumer_name(name)?, None)?;
        let claim = self.claimed(name, request.token)?;
        let (consumer, taken) = (&claim.consumer, &claim.receipt);
        let state = request.state.as_ref().map(state_bytes).transpose()?;
        let until = Instant::now() + PATIENCE;
        loop {
            let now = self.now();
            let outcome = match (&request.refused, &state) {
                (Some(cause), _) => consumer.refuse_event(taken, request.seq, cause.clone(), now),
                (None, Some(state)) => {
                    let key = state_key(name, &taken.feed);
                    consumer.acknowledge_with(taken, request.seq, now, |tx| tx.put(&key, state))
                }
                (None, None) => consumer.acknowledge(taken, request.seq, now),
            };
            match outcome {
                Ok(()) => break,
                Err(ConsumeError::Refused(Refused::Busy)) if Instant::now() < until => {
                    std::thread::sleep(LOOK);
                }
                Err(error) => {
                    if matches!(error, ConsumeError::Refused(Refused::Lease)) {
                        lock(&self.claims).remove(&request.token);
                    }
                    return Err(self.failed(name, consumer, &error));
                }
            }
        }
        if consumer.is_done(taken) {
            lock(&self.claims).remove(&request.token);
        }
        self.waiters.ring(name);
        Ok(())
    }

    /// What workers keep for a feed.
    fn state(&self, name: &str, feed: &FeedId) -> Result<Option<serde_json::Value>, Fail> {
        let mut tx = self.store.begin().map_err(|e| state_fail(&e))?;
        let state = tx.get(&state_key(name, feed)).map_err(|e| state_fail(&e))?;
        let value = state.map(|bytes| serde_json::from_slice(&bytes));
        value.transpose().map_err(|e| {
            Fail::new(
                Code::Integrity,
                format!("the state of consumer {name} is damaged: {e}"),
            )
        })
    }

    /// A worker is busy with its claim and alive.
    ///
    /// # Errors
    /// The claim is over.
    pub fn renew(&self, name: &str, token: u64) -> Result<(), Fail> {
        let claim = self.claimed(name, token)?;
        let renewed = claim.consumer.renew(claim.receipt.token, self.now());
        renewed.map_err(|e| self.failed(name, &claim.consumer, &e))
    }

    /// A worker ends: what it did not acknowledge goes to others.
    ///
    /// # Errors
    /// The disk's.
    pub fn leave(&self, name: &str, worker: u64) -> Result<(), Fail> {
        let consumer = self.consumer(name, None)?;
        self.drop_claims(name, worker);
        let left = consumer.leave(Worker(worker), self.now());
        self.waiters.ring(name);
        left.map_err(|e| self.failed(name, &consumer, &e))
    }

    /// Goes on elsewhere in all feeds, or in those of one author.
    ///
    /// # Errors
    /// No such consumer; the disk's.
    pub fn seek(&self, name: &str, to: Goal) -> Result<(), Fail> {
        let consumer = self.consumer(name, None)?;
        let now = self.now();
        let sought = match to {
            Goal::Start => consumer.seek_start(now),
            Goal::Tail => consumer.seek_tail(now),
            Goal::Time(ms) => consumer.seek_time(ms, now),
            Goal::Event(id) => consumer.seek(id.feed, id.seq, now),
        };
        self.waiters.ring(name);
        sought.map_err(|e| self.failed(name, &consumer, &e))
    }

    /// All of them.
    ///
    /// # Errors
    /// The disk's.
    pub fn list(&self) -> Result<Vec<ConsumerView>, Fail> {
        let names: Vec<String> = lock(&self.known).keys().cloned().collect();
        let views = names.iter().map(|name| self.listed(name));
        // One may have been forgotten meanwhile.
        views
            .filter(|view| !view.as_ref().is_err_and(|e| e.code == Code::NotFound))
            .collect()
    }

    /// As [`Consumers::view`], and of one that was taken over, that it was: the others are to be seen all the same.
    fn listed(&self, name: &str) -> Result<ConsumerView, Fail> {
        let is_moved = |fail: &Fail| {
            let opened = self.consumer(name, None);
            fail.code == Code::Conflict && opened.is_err_and(|e| e.code == Code::Conflict)
        };
        match self.view(name) {
            Err(fail) if is_moved(&fail) => Ok(ConsumerView {
                consumer: name.to_owned(),
                streams: self.settings(&consumer_name(name)?, None)?.streams,
                generation: 0,
                lag: 0,
                dead: self.open_letters(&consumer_name(name)?)?,
                feeds: Vec::new(),
                elsewhere: true,
                runs_on: self.runs_on(name).map(|peer| peer.to_string()),
            }),
            other => other,
        }
    }

    /// How many there are, and what those that are open have not acknowledged.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        let open: Vec<_> = lock(&self.open).values().cloned().collect();
        let lag = open.iter().map(|consumer| consumer.behind()).sum();
        (lock(&self.known).len() as u64, lag)
    }

    /// A consumer that runs here, as far as the log has heard.
    fn running(&self, name: &str) -> Result<Arc<Open>, Fail> {
        let consumer = self.consumer(name, None)?;
        consumer
            .refresh(self.now())
            .map_err(|e| self.failed(name, &consumer, &e))?;
        if consumer.is_running() {
            return Ok(consumer);
        }
        // What was taken over and does not know it yet is told by opening it again.
        self.close(name, &consumer);
        self.consumer(name, None)
    }

    /// One of them.
    ///
    /// # Errors
    /// No such consumer; the disk's.
    pub fn view(&self, name: &str) -> Result<ConsumerView, Fail> {
        let consumer = self.running(name)?;
        let settings = lock(&self.known).get(name).cloned().unwrap_or_default();
        let feeds = consumer
            .lag()
            .into_iter()
            .map(|lag| -> Result<ConsumerFeed, Fail> {
                Ok(ConsumerFeed {
                    state: self.state(name, &lag.feed)?,
                    stream: lag.feed.stream.to_string(),
                    author: author_text(&lag.feed.author),
                    epoch: lag.feed.epoch.0,
                    next: lag.next,
                    lag: lag.head.saturating_sub(lag.next),
                    waiting: lag.aside as u64,
                })
            });
        Ok(ConsumerView {
            consumer: name.to_owned(),
            streams: settings.streams,
            generation: consumer.generation(),
            lag: consumer.behind(),
            dead: self.open_letters(&consumer_name(name)?)?,
            feeds: feeds.collect::<Result<_, Fail>>()?,
            elsewhere: false,
            runs_on: None,
        })
    }

    /// The dead letters of a consumer that are neither done nor dropped. Letters travel, so that those of a consumer that runs elsewhere, or is
    /// forgotten, are told as well.
    ///
    /// # Errors
    /// Nothing is known of such a consumer; the log's.
    pub fn dead(&self, name: &str) -> Result<Vec<DeadLetter>, Fail> {
        let checked = consumer_name(name)?;
        match self.consumer(name, None) {
            // Without a single letter it has to be one of ours, or nobody would ever be told that the name is wrong.
            Err(fail) if self.letter_feeds(&checked)?.is_empty() => return Err(fail),
            Err(fail) if !matches!(fail.code, Code::Conflict | Code::NotFound) => return Err(fail),
            _ => {}
        }
        let letters = self.letters(&checked)?;
        Ok(letters.iter().map(letter).collect())
    }

    fn letters(&self, of: &ConsumerName) -> Result<Vec<dead::Letter>, Fail> {
        let feeds = self.letter_feeds(of)?.into_iter();
        let starts: Vec<_> = feeds.map(|(feed, low, _)| (feed, low)).collect();
        let mut letters = Letters::new(MOST_LETTERS);
        let mut merge = self.log.merge(&starts).map_err(|e| super::fail(&e))?;
        while let Some(batch) = merge.next_batch().map_err(|e| super::fail(&e))? {
            for event in batch.owned_events() {
                match Record::decode(&event.payload) {
                    Ok(record) => letters.apply(record),
                    Err(error) => tracing::warn!(%error, "a dead letter cannot be read"),
                }
            }
        }
        Ok(letters
            .list(None, usize::MAX)
            .into_iter()
            .cloned()
            .collect())
    }

    /// The feeds that hold letters of a consumer.
    fn letter_feeds(&self, of: &ConsumerName) -> Result<Held, Fail> {
        let pattern = format!("{}/{}/#", dead::LEVEL, of.as_str());
        let feeds = self.log.feeds(&parse_pattern(&pattern)?).into_iter();
        Ok(feeds
            .filter_map(|feed| {
                let head = self.log.head(&feed)?;
                Some((feed, head.low, head.next))
            })
            .collect())
    }

    /// How many letters are open. They are read only when there are others than at the last time: whoever drains a consumer asks often.
    fn open_letters(&self, of: &ConsumerName) -> Result<u64, Fail> {
        let held = self.letter_feeds(of)?;
        if held.is_empty() {
            return Ok(0);
        }
        if let Some((then, count)) = lock(&self.counted).get(of.as_str())
            && *then == held
        {
            return Ok(*count);
        }
        let count = self.letters(of)?.len() as u64;
        lock(&self.counted).insert(of.as_str().to_owned(), (held, count));
        Ok(count)
    }

    /// Tries the event of a dead letter again.
    ///
    /// # Errors
    /// No such letter; the disk's.
    pub fn retry(&self, name: &str, which: Which<'_>) -> Result<(), Fail> {
        let consumer = self.running(name);
        let consumer = consumer.map_err(|fail| self.letter_fail(fail, "retry", name, which))?;
        let id = self.find_letter(name, which)?;
        let retried = consumer.retry(id, self.now());
        self.waiters.ring(name);
        retried.map_err(|e| self.failed(name, &consumer, &e))
    }

    /// Closes a dead letter.
    ///
    /// # Errors
    /// No such letter; the log's.
    pub fn drop_letter(&self, name: &str, which: Which<'_>) -> Result<(), Fail> {
        let consumer = self.running(name);
        let consumer = consumer.map_err(|fail| self.letter_fail(fail, "drop", name, which))?;
        let id = self.find_letter(name, which)?;
        consumer
            .drop_letter(id)
            .map_err(|e| self.failed(name, &consumer, &e))
    }

    fn find_letter(&self, name: &str, which: Which<'_>) -> Result<EventId, Fail> {
        let letters = self.letters(&consumer_name(name)?)?;
        let found = letters.into_iter().map(|letter| letter.id);
        let mut found =
            found.filter(|id| is_letter(which, &id.feed.stream.to_string(), &letter_id(id)));
        match (found.next(), found.next()) {
            (Some(id), None) => Ok(id),
            (Some(one), Some(other)) => Err(many_letters(
                name,
                which.0,
                &one.feed.stream,
                &other.feed.stream,
            )),
            (None, _) => Err(no_letter(name, which.0)),
        }
    }

    /// What the consumers of this node need of each feed, for retention: of all that are known, whether somebody works through them now or not.
    /// Asked before the log is locked, since they read it.
    #[must_use]
    pub fn needs(&self) -> Needs {
        let names: Vec<(String, Settings)> = {
            let known = lock(&self.known);
            let all = known
                .iter()
                .map(|(name, settings)| (name.clone(), settings.clone()));
            all.collect()
        };
        let mut needs = Vec::new();
        for (name, settings) in names {
            let consumer = self.consumer(&name, None).and_then(|consumer| {
                let looked = consumer.refresh(self.now());
                looked.map_err(|e| self.failed(&name, &consumer, &e))?;
                if consumer.is_running() {
                    return Ok(consumer);
                }
                // It was taken over, which opening it again tells, or a write failed.
                self.close(&name, &consumer);
                self.consumer(&name, None)
            });
            let consumer = match consumer {
                Ok(consumer) => Some(consumer),
                // It runs on another node, which keeps what it needs; or it was forgotten just now.
                Err(fail) if matches!(fail.code, Code::Conflict | Code::NotFound) => continue,
                Err(error) => {
                    tracing::warn!(consumer = name, %error, "a consumer cannot be asked what it needs: nothing of its streams is removed");
                    None
                }
            };
            let patterns = settings.streams.iter();
            let patterns = patterns.filter_map(|text| parse_pattern(text).ok());
            needs.push((patterns.collect(), consumer));
        }
        Needs(needs)
    }

    /// The consumer of this name, opened if it is known or `request` says what it reads.
    fn consumer(&self, name: &str, request: Option<&ClaimRequest>) -> Result<Arc<Open>, Fail> {
        let checked = consumer_name(name)?;
        let take_over = request.is_some_and(|request| request.take_over);
        let is_open = || {
            let open = lock(&self.open).get(name).cloned()?;
            // What runs here already is not taken over: its other workers would lose what they have in hands.
            let is_ours = !take_over || open.refresh(self.now()).is_ok() && open.is_running();
            is_ours.then_some(open)
        };
        let settings = self.settings(&checked, request)?;
        if let Some(consumer) = is_open() {
            return Ok(consumer);
        }
        let _one = lock(&self.opening);
        // Somebody may have been faster, with other streams.
        let settings = match self.settings(&checked, request) {
            Ok(now) if now == settings => settings,
            other => other?,
        };
        if let Some(consumer) = is_open() {
            return Ok(consumer);
        }
        let known = lock(&self.known);
        if known.len() >= MOST && !known.contains_key(name) {
            return Err(Fail::new(
                Code::Conflict,
                format!("this node has {MOST} consumers already"),
            )
            .hint("one consumer may have many workers: let those who do the same share a name"));
        }
        drop(known);
        let patterns: Result<Vec<Pattern>, Fail> = settings
            .streams
            .iter()
            .map(|text| parse_pattern(text))
            .collect();
        let mut config = Config::new(checked, patterns?);
        if settings.tail {
            config.start = Start::Tail;
        }
        config.attempts = settings.attempts.unwrap_or(config.attempts).max(1);
        config.batch = settings
            .batch
            .unwrap_or(config.batch)
            .clamp(1, super::PAGE as u32);
        if let Some(ms) = settings.lease_ms {
            config.lease = Duration::from_millis(ms).clamp(LEASE.0, LEASE.1);
        }
        let takeover = if take_over {
            Takeover::Replace
        } else {
            Takeover::Continue
        };
        let (log, store) = (Arc::clone(&self.log), Arc::clone(&self.store));
        let consumer = Consumer::open(log, store, self.log.author(), config, takeover, self.now());
        let consumer = Arc::new(consumer.map_err(|e| self.consume_fail(name, &e))?);
        self.remember(name, settings)?;
        lock(&self.claims).retain(|_, claim| claim.name != name);
        lock(&self.open).insert(name.to_owned(), Arc::clone(&consumer));
        Ok(consumer)
    }

    /// What a consumer was or is to be opened with.
    fn settings(
        &self,
        name: &ConsumerName,
        request: Option<&ClaimRequest>,
    ) -> Result<Settings, Fail> {
        let checked = name;
        let name = name.as_str();
        let known = lock(&self.known).get(name).cloned();
        let asked = request.filter(|request| !request.streams.is_empty());
        match (known, asked) {
            (Some(known), Some(request)) if known.streams != request.streams => Err(Fail::new(
                Code::Conflict,
                format!(
                    "consumer {name} reads {}, not {}",
                    known.streams.join(" "),
                    request.streams.join(" ")
                ),
            )
            .hint(
                "give the new consumer a name of its own: an offset means nothing in other streams",
            )),
            (Some(known), _) => Ok(known),
            (None, Some(request)) => Ok(Settings {
                streams: request.streams.clone(),
                tail: is_tail(request.start.as_deref())?,
                attempts: request.attempts,
                batch: request.batch,
                lease_ms: request.lease_ms,
            }),
            (None, None) => Err(self.absent(checked)),
        }
    }

    /// The node that runs a consumer, if that is another one and this one has heard of it: whoever runs one says so in the log.
    #[must_use]
    pub fn runs_on(&self, name: &str) -> Option<PeerId> {
        let name = ConsumerName::new(name).ok()?;
        let claim = runner(&*self.log, &name).ok()??;
        (claim.node != self.log.author())
            .then(|| super::peer_of(&claim.node))
            .flatten()
    }

    /// Nobody works under that name here.
    fn absent(&self, name: &ConsumerName) -> Fail {
        match self.runs_on(name.as_str()) {
            None => no_consumer(name.as_str()),
            Some(peer) => Fail::new(
                Code::NotFound,
                format!("there is no consumer {name} on this node: it runs on {peer}"),
            )
            .hint(format!(
                "run the command on that node; {}",
                taken_over(name.as_str())
            )),
        }
    }

    /// As [`consume_fail`]; of one that was taken over, by whom.
    fn consume_fail(&self, name: &str, error: &ConsumeError) -> Fail {
        let fail = consume_fail(name, error);
        match (error, self.runs_on(name)) {
            (ConsumeError::Refused(Refused::Fenced { .. }), Some(peer)) => fail.hint(format!(
                "it runs on {peer}: run the command there; {}",
                taken_over(name)
            )),
            _ => fail,
        }
    }

    /// What is to be done about a letter is done where its consumer runs: says where that is, and with which command.
    fn letter_fail(&self, fail: Fail, what: &str, name: &str, (id, stream): Which<'_>) -> Fail {
        let is_elsewhere = matches!(fail.code, Code::NotFound | Code::Conflict);
        let Some(peer) = self.runs_on(name).filter(|_| is_elsewhere) else {
            return fail;
        };
        let stream = stream.map(|stream| format!(" --stream {stream}"));
        let stream = stream.unwrap_or_default();
        fail.hint(format!(
            "on {peer} run `gemba log dead {what} {name} {id}{stream}`; {}",
            taken_over(name)
        ))
    }

    /// Notes that a worker waits for events.
    #[must_use]
    pub fn waits(self: &Arc<Self>, name: &str, worker: u64) -> Waiting {
        Waiting::new(Arc::clone(self), name, Worker(worker))
    }

    pub(super) fn waiters(&self) -> &Waiters {
        &self.waiters
    }

    /// Which of these workers would be given something if they claimed now, as places in the list.
    pub(super) fn ready(&self, name: &str, workers: &[Worker]) -> Result<Vec<usize>, Fail> {
        let consumer = lock(&self.open).get(name).cloned();
        // One that is not open is opened by whoever claims, or refused him with the cause.
        let Some(consumer) = consumer else {
            return Ok((0..workers.len()).collect());
        };
        let ready = consumer.look(workers, self.now());
        let ready = ready.map_err(|e| self.failed(name, &consumer, &e))?;
        match consumer.is_running() {
            true => Ok(ready),
            false => Ok((0..workers.len()).collect()),
        }
    }

    /// How long a worker of a consumer may be silent.
    pub fn lease(&self, name: &str) -> Option<Duration> {
        let consumer = lock(&self.open).get(name).cloned()?;
        Some(consumer.lease())
    }

    /// The feeds that changed behind a mark of the log, and the mark behind which the next ones stand.
    pub(super) fn feeds_since(&self, mark: u64) -> (u64, Vec<FeedId>) {
        // An open log tells that of itself; nothing is read.
        let (mark, changed) = self.log.spans_since(mark).unwrap_or_default();
        (mark, changed.into_iter().map(|span| span.feed).collect())
    }

    /// Whether one of these feeds concerns a consumer. One that is not open is opened by whoever claims, or refused him with the cause.
    pub(super) fn hears(&self, name: &str, feeds: &[FeedId]) -> bool {
        let consumer = lock(&self.open).get(name).cloned();
        consumer.is_none_or(|consumer| consumer.hears(feeds))
    }

    /// When a consumer may have something to do although nothing happens.
    pub(super) fn deadline(&self, name: &str) -> Option<Instant> {
        let consumer = lock(&self.open).get(name).cloned()?;
        Some(self.started + consumer.deadline()?)
    }

    /// Forgets a consumer: its places, and what its workers kept with them. It holds back no event any more, and one of its name begins anew. Its dead
    /// letters stay where they are. `force`: also while workers hold events or wait for them.
    ///
    /// # Errors
    /// No such consumer; it is in use; the disk's.
    pub fn forget(&self, name: &str, force: bool) -> Result<(), Fail> {
        let checked = consumer_name(name)?;
        // Nobody opens it meanwhile.
        let _one = lock(&self.opening);
        self.settings(&checked, None)?;
        let waiting = self.waiters.count(name);
        if waiting > 0 && !force {
            let what = format!("{waiting} of its workers wait for events");
            return Err(in_use(name, what));
        }
        let mut known = lock(&self.known).clone();
        known.remove(name);
        let settings = serde_json::to_vec(&known).map_err(Fail::internal)?;
        let work = |tx: &mut RedbTx, feeds: &[FeedId]| {
            let mut states = feeds.iter().map(|feed| state_key(name, feed));
            states.try_for_each(|key| tx.remove(&key))?;
            tx.put(SETTINGS, &settings)
        };
        let open = lock(&self.open).get(name).cloned();
        match open {
            Some(consumer) => {
                let forgotten = consumer.forget(force, self.now(), work);
                forgotten.map_err(|e| self.failed(name, &consumer, &e))?;
            }
            // Nobody holds anything of one that is not open. What it emits cannot be lost either: consumers of the node emit nothing.
            None => self
                .strike_out(&checked, work)
                .map_err(|e| state_fail(&e))?,
        }
        *lock(&self.known) = known;
        lock(&self.open).remove(name);
        lock(&self.counted).remove(name);
        lock(&self.claims).retain(|_, claim| claim.name != name);
        // Workers that wait learn of it.
        self.waiters.ring(name);
        Ok(())
    }

    fn strike_out(
        &self,
        name: &ConsumerName,
        work: impl FnOnce(&mut RedbTx, &[FeedId]) -> Result<(), StateError>,
    ) -> Result<(), StateError> {
        let mut tx = self.store.begin()?;
        let feeds = forget(&mut tx, name)?;
        work(&mut tx, &feeds)?;
        tx.commit()
    }

    fn remember(&self, name: &str, settings: Settings) -> Result<(), Fail> {
        let mut known = lock(&self.known).clone();
        if known.get(name) == Some(&settings) {
            return Ok(());
        }
        known.insert(name.to_owned(), settings);
        let bytes = serde_json::to_vec(&known).map_err(Fail::internal)?;
        let mut tx = self.store.begin().map_err(|e| state_fail(&e))?;
        tx.put(SETTINGS, &bytes).map_err(|e| state_fail(&e))?;
        tx.commit().map_err(|e| state_fail(&e))?;
        // Only one opens at a time, so nobody else has added one.
        *lock(&self.known) = known;
        Ok(())
    }

    /// After an error of the store a consumer has to be opened again, as one that does nothing any more; so it is closed here.
    fn failed(&self, name: &str, consumer: &Arc<Open>, error: &ConsumeError) -> Fail {
        let ends = match error {
            ConsumeError::State(_) | ConsumeError::Refused(Refused::Fenced { .. }) => true,
            _ => !consumer.is_running(),
        };
        if ends {
            self.close(name, consumer);
        }
        self.consume_fail(name, error)
    }

    fn close(&self, name: &str, consumer: &Arc<Open>) {
        let mut open = lock(&self.open);
        let is_it = |open: &Arc<Open>| Arc::ptr_eq(open, consumer);
        if open.get(name).is_some_and(is_it) {
            open.remove(name);
        }
        drop(open);
        // Those who wait for it are to be told why.
        self.waiters.ring(name);
    }
}

/// The token of a claim that was taken in, and the claims that had to end for it to find room, `most` being kept. Of one lease there are several claims where its
/// worker reads on: the last of them is the one that is needed, and whoever reads on and on pushes out nobody but himself.
fn keep(
    claims: &mut BTreeMap<u64, Claim>,
    next: &AtomicU64,
    claim: Claim,
    most: usize,
) -> (u64, Vec<Claim>) {
    let token = next.fetch_add(1, Ordering::Relaxed);
    claims.insert(token, claim);
    let mut ended = Vec::new();
    if claims.len() <= most {
        return (token, ended);
    }
    claims.retain(|_, claim| !claim.consumer.is_done(&claim.receipt));
    if claims.len() > most {
        // From the newest on: those behind which no other of their lease stands.
        let mut leases = std::collections::HashSet::new();
        let mut last = Vec::new();
        for (token, claim) in claims.iter().rev() {
            if leases.insert((claim.name.clone(), claim.worker)) {
                last.push(*token);
            }
        }
        let is_last = |token: &u64| last.binary_search_by(|at| token.cmp(at)).is_ok();
        claims.retain(|token, _| is_last(token));
    }
    while claims.len() > most {
        ended.extend(claims.pop_first().map(|(_, claim)| claim));
    }
    (token, ended)
}

/// What consumers need of feeds.
pub struct Needs(Vec<(Vec<Pattern>, Option<Arc<Open>>)>);

impl Needs {
    /// The first event of a feed that some consumer still needs. Of a feed that a consumer reads and has not seen yet, or that it cannot be asked
    /// about, it needs all.
    #[must_use]
    pub fn of(&self, feed: &FeedId) -> Option<Seq> {
        let reads = |patterns: &[Pattern]| patterns.iter().any(|p| p.matches(&feed.stream));
        let needs = self.0.iter().filter_map(|(patterns, consumer)| {
            let needs = consumer.as_ref().and_then(|consumer| consumer.needs(feed));
            needs.or_else(|| reads(patterns).then_some(0))
        });
        needs.min()
    }
}

fn first_token() -> Result<u64, Fail> {
    let mut token = [0; 8];
    getrandom::fill(&mut token)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    // Within what every JSON reader takes exactly, with room above.
    Ok(u64::from_le_bytes(token) >> 12)
}

/// Where a consumer is to go on.
#[derive(Clone, Debug)]
pub enum Goal {
    /// At the first event that is here.
    Start,
    /// Behind the last.
    Tail,
    /// At the first that is not before this wall-clock time, in milliseconds since 1970.
    Time(i64),
    /// At this event of one feed.
    Event(EventId),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn state_key(name: &str, feed: &FeedId) -> Vec<u8> {
    format!(
        "node/state/{name}/{}/{}:{}",
        feed.stream, feed.author, feed.epoch
    )
    .into_bytes()
}

fn state_bytes(state: &serde_json::Value) -> Result<Vec<u8>, Fail> {
    let bytes = serde_json::to_vec(state).map_err(Fail::internal)?;
    if bytes.len() > MOST_STATE {
        let cause = format!(
            "a worker may keep {MOST_STATE} bytes with an acknowledgement, not {}",
            bytes.len()
        );
        return Err(Fail::new(Code::Usage, cause).hint("keep it in a store of your own, with the place of the last event in the same transaction"));
    }
    Ok(bytes)
}

fn is_tail(start: Option<&str>) -> Result<bool, Fail> {
    match start {
        None | Some("beginning") => Ok(false),
        Some("tail") => Ok(true),
        Some(other) => Err(
            Fail::new(Code::Usage, format!("a consumer cannot start at {other:?}"))
                .hint("it starts at the beginning or at the tail"),
        ),
    }
}

fn consumer_name(name: &str) -> Result<ConsumerName, Fail> {
    ConsumerName::new(name).map_err(|e| {
        Fail::new(Code::Usage, format!("{name:?} is no consumer: {e}"))
            .hint("call it after what it does, such as pieces-per-hour")
    })
}

/// What is left to do where the node that runs a consumer is no more.
fn taken_over(name: &str) -> String {
    format!(
        "if it is gone for good, `gemba log consume STREAM --consumer {name} --exec CMD --take-over` makes it this one, with what this node knows of it"
    )
}

fn no_consumer(name: &str) -> Fail {
    Fail::new(
        Code::NotFound,
        format!("there is no consumer {name} on this node"),
    )
    .hint("`gemba log consume STREAM --consumer NAME --exec CMD` makes one")
}

fn in_use(name: &str, what: impl std::fmt::Display) -> Fail {
    Fail::new(
        Code::Conflict,
        format!("consumer {name} is in use: {what}"),
    )
    .hint("end its workers; with --force it is forgotten all the same, and what they have in hands is acknowledged by nobody")
}

fn claim_over() -> Fail {
    Fail::new(
        Code::Conflict,
        "this claim is over: its time ran out, or it is done",
    )
    .hint("claim again: what was not acknowledged comes again")
}

fn state_fail(error: &StateError) -> Fail {
    Fail::new(Code::Failure, error)
        .hint("look at the disk; offsets that were acknowledged are on it")
}

fn consume_fail(name: &str, error: &ConsumeError) -> Fail {
    // What to do about a log that is full, or a disk that fails, the log knows.
    if let ConsumeError::Log(SourceError(cause)) = error
        && let Some(cause) = cause.downcast_ref::<LogError>()
    {
        return Fail::new(Code::Failure, format!("consumer {name}: {error}"))
            .hint(super::fail(cause).hint);
    }
    match error {
        ConsumeError::State(error) => state_fail(error),
        ConsumeError::Refused(Refused::Lease) => claim_over(),
        ConsumeError::Refused(Refused::Forgotten) => no_consumer(name),
        ConsumeError::Refused(refused @ Refused::Held { .. }) => in_use(name, refused),
        ConsumeError::Refused(refused @ Refused::Fenced { .. }) => {
            Fail::new(Code::Conflict, format!("consumer {name}: {refused}"))
                .hint("one node runs a consumer at a time; --take-over makes it this one")
        }
        ConsumeError::Refused(refused @ (Refused::NotGiven { .. } | Refused::NotNext { .. })) => {
            Fail::new(Code::Usage, format!("consumer {name}: {refused}"))
                .hint("acknowledge and refuse only events of the claim whose token is sent")
        }
        ConsumeError::Refused(refused @ (Refused::Unfinished | Refused::Busy)) => {
            Fail::new(Code::Conflict, format!("consumer {name}: {refused}"))
                .hint("one worker does one thing at a time: those that work side by side take numbers of their own")
        }
        other => Fail::new(Code::Failure, format!("consumer {name}: {other}"))
            .hint("claim again; if it stays so, look at the daemon's log"),
    }
}

/// The id of a letter, and its stream where that is said: an author numbers the events of each stream, so that letters of two may have one id.
pub type Which<'a> = (&'a str, Option<&'a str>);

/// Whether it is this one.
#[must_use]
pub fn is_letter((id, of): Which<'_>, stream: &str, its: &str) -> bool {
    its == id && of.is_none_or(|of| of == stream)
}

/// No letter is called so.
#[must_use]
pub fn no_letter(consumer: &str, id: &str) -> Fail {
    Fail::new(
        Code::NotFound,
        format!("consumer {consumer} has no dead letter {id}"),
    )
    .hint(format!("`gemba log dead ls {consumer}` lists them"))
}

/// Letters of two streams are called so.
#[must_use]
pub fn many_letters(
    consumer: &str,
    id: &str,
    one: impl std::fmt::Display,
    other: impl std::fmt::Display,
) -> Fail {
    Fail::new(
        Code::Conflict,
        format!("consumer {consumer} has several dead letters {id}: of {one}, of {other}"),
    )
    .hint("say which: by --stream, or by `stream` beside the id")
}

fn letter_id(id: &EventId) -> String {
    format!(
        "{}:{}:{}",
        author_text(&id.feed.author),
        id.feed.epoch,
        id.seq
    )
}

/// Reads `AUTHOR:EPOCH:SEQ` of a stream.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_event(stream: &str, text: &str) -> Result<EventId, Fail> {
    let wrong = || {
        Fail::new(
            Code::Usage,
            format!("{text:?} is no event: AUTHOR:EPOCH:SEQ is"),
        )
        .hint("`gemba log read --json` shows author, epoch and seq of each")
    };
    let mut parts = text.rsplitn(3, ':');
    let seq = parts
        .next()
        .and_then(|seq| seq.parse().ok())
        .filter(|seq| *seq <= MAX_NUMBER)
        .ok_or_else(wrong)?;
    let epoch = parts
        .next()
        .and_then(|epoch| epoch.parse().ok())
        .filter(|epoch| *epoch <= MAX_NUMBER)
        .ok_or_else(wrong)?;
    let author = parse_author(parts.next().ok_or_else(wrong)?)?;
    Ok(EventId {
        feed: gemba_log::FeedId {
            author,
            stream: parse_stream(stream)?,
            epoch: gemba_log::Epoch(epoch),
        },
        seq,
    })
}

fn letter(letter: &dead::Letter) -> DeadLetter {
    DeadLetter {
        id: letter_id(&letter.id),
        stream: letter.id.feed.stream.to_string(),
        author: author_text(&letter.id.feed.author),
        seq: letter.id.seq,
        cause: letter.cause.clone(),
        attempts: letter.attempts,
        held_s: letter.held.as_secs_f64(),
        // Of an event that was gone when its letter was written there is only the name.
        time: (letter.hash.0 != [0; 32]).then(|| wire::time_text(letter.time)),
        data: letter
            .event()
            .map(|event| data_encoding::BASE64.encode(&event.payload)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::log::tests::{append, open};

    fn claim_of(consumers: &Consumers, consumer: &Arc<Open>, worker: u64) -> Option<Claim> {
        let taken = consumer.take(Worker(worker), consumers.now()).unwrap();
        Some(Claim {
            name: "c".to_owned(),
            worker,
            consumer: Arc::clone(consumer),
            receipt: taken?.receipt,
        })
    }

    /// Where there is no room for another claim the oldest one ends, and its events are to be had at once: they were kept from everybody until its lease was over,
    /// for a worker who could not acknowledge them any more. Whoever reads on and on pushes out nobody but himself.
    #[test]
    fn s3_29_a_claim_that_finds_no_room_gives_back_what_it_holds() {
        let dir = tempfile::tempdir().unwrap();
        let events = open(dir.path(), gemba_log::Config::default());
        for stream in ["hall/a", "hall/b", "hall/c"] {
            append(&events, stream, (0..4).map(|n| vec![n]));
        }
        let consumers = events.consumers();
        let request = ClaimRequest {
            streams: vec!["hall/#".to_owned()],
            batch: Some(2),
            lease_ms: Some(3_600_000),
            ..ClaimRequest::default()
        };
        let consumer = consumers.consumer("c", Some(&request)).unwrap();
        let first = claim_of(consumers, &consumer, 1).unwrap();
        let feed = first.receipt.feed.clone();
        let first = consumers.hold(first, 2);
        let second = claim_of(consumers, &consumer, 2).unwrap();
        let read_on = consumer.read_on(&second.receipt, consumers.now()).unwrap();
        let receipt = read_on.unwrap().receipt;
        let more = Claim {
            receipt,
            ..second.clone()
        };
        consumers.hold(second, 2);
        let second = consumers.hold(more, 2);
        assert!(
            consumers.claimed("c", first).is_ok(),
            "pushed out by one who read on"
        );

        let third = claim_of(consumers, &consumer, 3).unwrap();
        let third = consumers.hold(third, 2);
        assert!(consumers.claimed("c", first).is_err());
        for token in [second, third] {
            assert!(consumers.claimed("c", token).is_ok());
        }
        let fourth = claim_of(consumers, &consumer, 4).expect("the events wait for a lease");
        assert_eq!(fourth.receipt.feed, feed);
    }

    /// A worker whose connection was lost claims again while its first claim still reads the disk: it gets what that one would have given, and not what is behind
    /// it under the same lease, where an acknowledgement would be one of events that nobody saw.
    #[test]
    fn l8_a_claim_that_is_repeated_while_the_first_is_under_way_passes_over_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let events = open(dir.path(), gemba_log::Config::default());
        append(&events, "hall/a", (0..20).map(|n| vec![n]));
        let consumers = events.consumers();
        let request = ClaimRequest {
            worker: 1,
            streams: vec!["hall/#".to_owned()],
            batch: Some(10),
            ..ClaimRequest::default()
        };
        let consumer = consumers.consumer("c", Some(&request)).unwrap();
        let alone = consumers.alone("c", 1, Instant::now()).unwrap();
        let first = claim_of(consumers, &consumer, 1).unwrap();
        std::thread::scope(|scope| {
            let again = scope.spawn(|| consumers.claim("c", &request));
            let until = Instant::now() + Duration::from_millis(200);
            while !again.is_finished() && Instant::now() < until {
                std::thread::sleep(LOOK);
            }
            let untold = consumers.hold(first, MOST_CLAIMS);
            drop(alone);
            consumers.give_back("c", untold);
            let again = again.join().unwrap().unwrap().expect("nothing came");
            let seqs = again.events.iter().map(|event| event.event.seq);
            assert_eq!(seqs.collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
            let ack = AckRequest {
                token: again.token,
                seq: 9,
                ..AckRequest::default()
            };
            consumers.acknowledge("c", ack).unwrap();
        });
        assert_eq!(consumers.view("c").unwrap().lag, 10);
        assert!(lock(&consumers.claiming).is_empty());
    }

    /// Who went away while the log was asked holds nothing: others need not wait for his lease.
    #[test]
    fn s3_27_what_nobody_was_told_of_goes_to_others_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let events = open(dir.path(), gemba_log::Config::default());
        append(&events, "hall/a", [b"1".to_vec()]);
        let consumers = events.consumers();
        let claim = |worker| {
            let request = ClaimRequest {
                worker,
                streams: vec!["hall/#".to_owned()],
                ..ClaimRequest::default()
            };
            consumers.claim("c", &request).unwrap()
        };
        let untold = claim(1).unwrap();
        assert!(claim(2).is_none());
        consumers.give_back("c", untold.token);
        let told = claim(2).expect("the events wait for a lease");
        // It is over for good, and harms nobody.
        consumers.give_back("c", untold.token);
        assert!(consumers.renew("c", told.token).is_ok());
    }
}
