//! A named consumer: which event is given to which worker, what is durable of it, and what happens to an event that cannot be processed.
//!
//! It reads no event. It says from where to read ([`Grant`]), is told what was done ([`Ack`]) or refused, and says which row is to become
//! durable ([`Output::Persist`]): in the transaction that holds what the worker did, and the effect happens once; after the work, and it
//! happens at least once. Who drives it: [`consume`](crate::consume), or a node for workers behind HTTP.
//!
//! A feed is leased to one worker at a time, so its events are processed in order. A lease is proven by a token; when it runs out, the token
//! is worth nothing. What was in a worker's hands when it died is given again in smaller portions, until an event that kills its worker is
//! alone and its failures count (`consumer/position.rs`).

mod config;
mod io;
mod planted;
mod position;

pub use config::{BadName, Config, ConsumerName, Order, Start};
pub use io::{Ack, Event, Grant, Input, Output, Refused, Token, Work, Worker};
#[doc(hidden)]
pub use planted::Planted;
pub use position::{Aside, Given, MAX_POSITION_BYTES, Mark, POSITION_VERSION, Position, RowError};

use crate::{
    core::{Time, dead::cut_cause},
    feed::{EventHash, FeedId, Seq},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// What was done, dropped and repaired. Numbers only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Portions of work given.
    pub grants: u64,
    /// Events acknowledged.
    pub acked: u64,
    /// Events refused by workers.
    pub nacked: u64,
    /// Workers that died or were silent beyond their lease.
    pub lost: u64,
    /// Commands under a lease that was over.
    pub stale: u64,
    /// Dead letters.
    pub dead: u64,
    /// Of these, because too many waited for another attempt.
    pub dead_by_room: u64,
    /// Offsets that did not fit the log.
    pub rewound: u64,
    /// Events that retention took before they were consumed.
    pub missed: u64,
    /// Feeds beyond `max_feeds`.
    pub too_many: u64,
}

/// How far one feed is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lag {
    /// The feed.
    pub feed: FeedId,
    /// The first event that is not acknowledged.
    pub next: Seq,
    /// One behind the last event of the log.
    pub head: Seq,
    /// Refused events that wait for another attempt.
    pub aside: usize,
    /// Who works on it.
    pub worker: Option<Worker>,
}

/// A consumer. See the module for how it is driven.
#[derive(Debug)]
pub struct Consumer {
    config: Config,
    generation: u64,
    fenced: Option<u64>,
    broken: Option<String>,
    forgotten: bool,
    /// Whether it has been here before: then a feed without a row is a new one, and read from its first event.
    existed: bool,
    feeds: BTreeMap<FeedId, Feed>,
    /// Feeds with work, each once, first come first served.
    queue: VecDeque<FeedId>,
    waiting: VecDeque<Worker>,
    leases: BTreeMap<Token, FeedId>,
    holders: BTreeMap<Worker, Token>,
    tickets: BTreeMap<u64, Ticket>,
    due: BTreeSet<(Time, FeedId)>,
    outputs: VecDeque<Output>,
    next_number: u64,
    counters: Counters,
}

#[derive(Debug)]
struct Feed {
    /// What is on disk.
    durable: Position,
    /// What ought to be.
    wish: Position,
    /// What the log holds.
    span: (Seq, Seq),
    fit: Fit,
    lease: Option<Lease>,
    /// The write under way.
    flight: Option<u64>,
    not_before: Time,
    is_queued: bool,
    due: Option<Time>,
    /// While there are new events, those set aside wait until then: they are given together, now and then, and the flow is not held up.
    asides_from: Time,
    /// Of events that failed, while they wait.
    trouble: BTreeMap<Seq, Trouble>,
    /// Set aside, then buried, and the row does not say so yet; at most `max_aside`.
    buried: BTreeSet<Seq>,
}

/// Whether the offset fits the log's history.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fit {
    /// Not known.
    Open,
    /// The log was asked.
    Asked,
    /// It does.
    Fits,
    /// The log is shorter.
    Ahead,
    /// The row is damaged.
    Damaged,
}

#[derive(Debug)]
struct Lease {
    worker: Worker,
    token: Token,
    until: Time,
    /// One behind the last event given.
    given_to: Seq,
    /// Those set aside that it has.
    asides: Vec<Seq>,
    /// The worker waits for a portion that is granted when the row is durable.
    owed: Option<Owed>,
    /// It ran out while a write was under way.
    is_over: bool,
}

#[derive(Debug, Clone)]
enum Owed {
    Main,
    Asides(Vec<Seq>),
}

/// What a worker that claims under its lease finds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hold {
    /// A write is under way, by which it is decided.
    Busy,
    /// All that it was given is done: it goes back into the queue.
    Done,
    /// There is more behind what it was given.
    ReadsOn,
    /// There is not, or it may not have it before it has acknowledged.
    Unfinished,
}

/// Most events that were set aside and are given together.
const MAX_ASIDES_GIVEN: usize = 64;

#[derive(Debug, Clone)]
struct Trouble {
    cause: String,
    /// When its time was counted last.
    counted: Time,
    due: Time,
    is_burying: bool,
}

#[derive(Debug)]
enum Ticket {
    Write {
        feed: FeedId,
        position: Position,
        then: Then,
    },
    Bury {
        feed: FeedId,
        seq: Seq,
    },
}

#[derive(Debug, Clone)]
enum Then {
    Grant,
    Through(u64),
    /// Number, and whether it was a letter.
    Settled(Vec<(Seq, bool)>),
    Sought,
    Nothing,
}

impl Consumer {
    /// The consumer of these rows, as generation `generation`. `existed` says that it has run before, with or without rows. A row that cannot be read
    /// stops its feed, and is told.
    pub fn load(
        config: Config,
        generation: u64,
        existed: bool,
        rows: impl IntoIterator<Item = (FeedId, Vec<u8>)>,
        now: Time,
    ) -> Self {
        let mut core = Self {
            config,
            generation,
            fenced: None,
            broken: None,
            forgotten: false,
            existed,
            feeds: BTreeMap::new(),
            queue: VecDeque::new(),
            waiting: VecDeque::new(),
            leases: BTreeMap::new(),
            holders: BTreeMap::new(),
            tickets: BTreeMap::new(),
            due: BTreeSet::new(),
            outputs: VecDeque::new(),
            next_number: 0,
            counters: Counters::default(),
        };
        for (id, row) in rows {
            core.load_row(id, &row, now);
        }
        core
    }

    fn load_row(&mut self, id: FeedId, row: &[u8], now: Time) {
        match Position::decode(row) {
            Ok(position) => {
                let mut feed = Feed::new(position);
                let given = feed.durable.given;
                feed.wish.crash();
                for aside in &feed.wish.aside {
                    let pause = self.config.pause(aside.attempts.max(1));
                    let cause = "the process ended before the event was done".to_owned();
                    feed.trouble
                        .insert(aside.seq, Trouble::new(cause, now, now + pause));
                }
                if feed.wish.attempts > 0 {
                    feed.not_before = now + self.config.pause(feed.wish.attempts);
                }
                if given != Given::Nothing {
                    self.tell_lost(&id, &feed);
                }
                self.feeds.insert(id.clone(), feed);
                self.arm(&id, now);
            }
            Err(error) => {
                let mut feed = Feed::new(Position::at(0, None, self.config.batch));
                feed.fit = Fit::Damaged;
                self.feeds.insert(id.clone(), feed);
                self.tell(Event::Damaged {
                    feed: id,
                    cause: error.to_string(),
                });
            }
        }
    }

    /// Feeds one fact or command.
    ///
    /// # Errors
    /// [`Refused`] for a command that cannot be; facts are never refused.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), Refused> {
        match input {
            Input::Head { feed, first, next } => self.on_head(feed, first, next, now),
            Input::Listed => self.existed = true,
            Input::Changed(feed) => self.on_changed(&feed, now),
            Input::Hashes { feed, found } => self.on_hashes(&feed, &found, now),
            Input::Persisted { ticket, result } => self.on_persisted(ticket, result, now),
            Input::Buried { ticket, result } => self.on_buried(ticket, result, now),
            Input::Generation(theirs) => self.on_generation(theirs),
            Input::Leave { worker } => self.on_leave(worker, now),
            Input::Forget { held } => return self.on_forget(held),
            Input::Claim { worker } => return self.on_claim(worker, now),
            Input::ReadOn { token } => return self.on_read_on(token, now),
            Input::Renew { token } => return self.on_renew(token, now),
            Input::Ack { token, ack } => return self.on_ack(token, ack, now),
            Input::Nack { token, seq, cause } => return self.on_nack(token, seq, cause, now),
            Input::Seek { feed, to, hash } => return self.on_seek(&feed, to, hash, now),
            Input::Retry { feed, seq } => return self.on_retry(&feed, seq, now),
        }
        Ok(())
    }

    /// The next output; drain after every `handle` and `expire`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`expire`](Self::expire).
    pub fn deadline(&self) -> Option<Time> {
        self.due.first().map(|(time, _)| *time)
    }

    /// Does what is due: leases that ran out, pauses that end.
    pub fn expire(&mut self, now: Time) {
        while let Some((time, id)) = self.due.first().cloned() {
            if time > now {
                return;
            }
            self.due.pop_first();
            if let Some(feed) = self.feeds.get_mut(&id) {
                feed.due = None;
                if feed.lease.as_ref().is_some_and(|lease| lease.until <= now) {
                    self.on_silence(&id, now);
                }
            }
            self.settle(&id, now);
        }
    }

    /// Which of these workers would be given something if they claimed now, as places in the list: those who read on under their lease, or have a grant that
    /// they have not come for, and of the others as many as there are free feeds with work.
    pub fn ready(
        &self,
        waiting: &[Worker],
        is_granted: impl Fn(&Worker) -> bool,
        now: Time,
    ) -> Vec<usize> {
        if self.may_work().is_err() {
            return Vec::new();
        }
        let mut free = self
            .queue
            .iter()
            .filter(|id| self.work_of(id, now).is_some());
        let mut is_ready = |worker: &Worker| {
            let token = self.holders.get(worker);
            let held = token.and_then(|token| self.leases.get(token));
            match held.map(|id| (id, self.hold(id))) {
                _ if is_granted(worker) => true,
                Some((_, Some(Hold::ReadsOn))) => true,
                Some((_, Some(Hold::Busy | Hold::Unfinished))) => false,
                // It is free with the claim, and so is its feed.
                Some((id, Some(Hold::Done))) => {
                    self.work_in(id, now).is_some() || free.next().is_some()
                }
                Some((_, None)) | None => free.next().is_some(),
            }
        };
        let places = waiting.iter().enumerate();
        let ready = places.filter_map(|(at, worker)| is_ready(worker).then_some(at));
        ready.collect()
    }

    /// Whether a lease of this token is there.
    pub fn is_held(&self, token: Token) -> bool {
        let feed = self.leases.get(&token).and_then(|id| self.feeds.get(id));
        let lease = feed.and_then(|feed| feed.lease.as_ref());
        lease.is_some_and(|lease| lease.token == token)
    }

    /// How far each feed is.
    pub fn lag(&self) -> impl Iterator<Item = Lag> {
        self.feeds.iter().map(|(id, feed)| Lag {
            feed: id.clone(),
            next: feed.durable.next,
            head: feed.span.1,
            aside: feed.durable.aside.len(),
            worker: feed.lease.as_ref().map(|lease| lease.worker),
        })
    }

    /// Events that are not acknowledged yet, those that wait for another attempt among them.
    pub fn behind(&self) -> u64 {
        let of = |lag: Lag| lag.head.saturating_sub(lag.next) + lag.aside as u64;
        self.lag().map(of).sum()
    }

    /// The first event of a feed that this consumer may still need: what retention must keep (L11). None: the feed is not read.
    pub fn needs(&self, feed: &FeedId) -> Option<Seq> {
        let durable = &self.feeds.get(feed)?.durable;
        let aside = durable.aside.first().map(|aside| aside.seq);
        Some(aside.map_or(durable.next, |seq| seq.min(durable.next)))
    }

    /// A portion was shorter than it could have been, as bytes are bounded: what lies behind `next` was not given.
    pub fn was_given(&mut self, token: Token, next: Seq) {
        let id = self.leases.get(&token);
        let lease = id.and_then(|id| self.feeds.get_mut(id)?.lease.as_mut());
        if let Some(lease) = lease.filter(|lease| lease.token == token) {
            lease.given_to = lease.given_to.min(next);
        }
    }

    /// Which of the events set aside a worker still has under this token.
    pub fn asides_of(&self, token: Token) -> &[Seq] {
        let feed = self.leases.get(&token).and_then(|id| self.feeds.get(id));
        let lease = feed.and_then(|feed| feed.lease.as_ref());
        lease.map_or(&[], |lease| &lease.asides)
    }

    /// How far a feed is when everything before `next` is done: behind those that follow and were refused, of what this token was given.
    pub fn behind_refused(&self, token: Token, next: Seq) -> Seq {
        let feed = self.leases.get(&token).and_then(|id| self.feeds.get(id));
        let Some((feed, lease)) = feed.and_then(|feed| Some((feed, feed.lease.as_ref()?))) else {
            return next;
        };
        let is_refused = |seq: &Seq| {
            feed.wish.aside.iter().any(|aside| aside.seq == *seq) || feed.buried.contains(seq)
        };
        let open = (next..lease.given_to).find(|seq| !is_refused(seq));
        open.unwrap_or(lease.given_to.max(next))
    }

    /// The first event that a worker has under this token and that is not acknowledged.
    pub fn next_of(&self, token: Token) -> Option<Seq> {
        Some(self.feeds.get(self.leases.get(&token)?)?.wish.next)
    }

    /// The generation it runs as.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Whether it was neither taken over nor forgotten, and no write failed.
    pub fn is_running(&self) -> bool {
        self.may_work().is_ok()
    }

    /// How it works.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What was done, dropped and repaired.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    // The log.

    fn on_head(&mut self, id: FeedId, first: Seq, next: Seq, now: Time) {
        if !self.feeds.contains_key(&id) {
            if !self.config.patterns.iter().any(|p| p.matches(&id.stream)) {
                return;
            }
            if self.feeds.len() >= self.config.max_feeds {
                self.counters.too_many += 1;
                if self.counters.too_many == 1 {
                    self.tell(Event::TooMany { feed: id });
                }
                return;
            }
            let at_tail = self.config.start == Start::Tail && !self.existed;
            let start = if at_tail { next } else { first };
            let mut feed = Feed::new(Position::at(start, None, self.config.batch));
            if start == 0 {
                feed.fit = Fit::Fits;
            }
            self.feeds.insert(id.clone(), feed);
        }
        let Some(feed) = self.feeds.get_mut(&id) else {
            return;
        };
        feed.span = (first, next);
        match feed.fit {
            Fit::Open => self.check(&id),
            Fit::Ahead if next >= feed.wish.next => self.check(&id),
            Fit::Asked | Fit::Fits | Fit::Ahead | Fit::Damaged => {}
        }
        self.settle(&id, now);
    }

    fn on_changed(&mut self, id: &FeedId, now: Time) {
        if let Some(feed) = self.feeds.get_mut(id)
            && feed.fit != Fit::Damaged
        {
            feed.fit = Fit::Open;
            self.end_lease(id);
            self.check(id);
            self.settle(id, now);
        }
    }

    /// L8: an offset proves what it was taken from, or it is not believed.
    fn check(&mut self, id: &FeedId) {
        let batch = self.config.batch;
        let ignores = self.config.planted == Some(Planted::IgnoresHashes);
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        if feed.wish.next == 0 || ignores {
            feed.fit = Fit::Fits;
            return;
        }
        if feed.span.1 < feed.wish.next {
            if feed.fit != Fit::Ahead {
                feed.fit = Fit::Ahead;
                let event = Event::Ahead {
                    feed: id.clone(),
                    next: feed.wish.next,
                    log: feed.span.1,
                };
                self.tell(event);
            }
            return;
        }
        if feed.wish.next < feed.span.0 {
            return self.miss(id, batch);
        }
        feed.fit = Fit::Asked;
        let marks = feed.wish.marks.iter().map(|mark| mark.next - 1);
        let seqs = marks.chain([feed.wish.next - 1]).collect();
        self.outputs.push_back(Output::Check {
            feed: id.clone(),
            seqs,
        });
    }

    /// Retention was faster: nothing is to be done but to say so.
    fn miss(&mut self, id: &FeedId, batch: u32) {
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let (from, to) = (feed.wish.next, feed.span.0);
        let aside = std::mem::take(&mut feed.wish.aside);
        feed.wish = Position::at(to, None, batch);
        feed.wish.aside = aside;
        feed.fit = Fit::Fits;
        self.counters.missed += to - from;
        self.tell(Event::Missed {
            feed: id.clone(),
            from,
            to,
        });
    }

    fn on_hashes(&mut self, id: &FeedId, found: &[(Seq, Option<EventHash>)], now: Time) {
        let batch = self.config.batch;
        let Some(feed) = self.feeds.get_mut(id).filter(|f| f.fit == Fit::Asked) else {
            return;
        };
        let of = |next: Seq| {
            let found = found.iter().find(|(seq, _)| *seq + 1 == next);
            found.and_then(|(_, hash)| *hash)
        };
        feed.fit = Fit::Fits;
        let wish = &mut feed.wish;
        match (wish.hash, of(wish.next)) {
            (Some(ours), Some(theirs)) if ours == theirs => {}
            // A place that was given without a hash takes the log's. Where retention took the event before it, the first that is there is the
            // place; there is nothing to compare.
            (None, theirs) => wish.hash = theirs,
            (Some(_), None) if wish.next == feed.span.0 => {}
            _ => {
                let from = wish.next;
                let good = |mark: &&Mark| of(mark.next) == Some(mark.hash);
                let to = wish.marks.iter().rev().find(good).copied();
                let (next, hash) = to.map_or((feed.span.0, None), |m| (m.next, Some(m.hash)));
                let mut rewound = Position::at(next, hash, batch);
                rewound.marks = wish
                    .marks
                    .iter()
                    .filter(|m| m.next < next)
                    .copied()
                    .collect();
                rewound.aside = wish
                    .aside
                    .iter()
                    .filter(|a| a.seq < next)
                    .copied()
                    .collect();
                *wish = rewound;
                self.counters.rewound += 1;
                self.tell(Event::Rewound {
                    feed: id.clone(),
                    from,
                    to: next,
                });
            }
        }
        self.settle(id, now);
    }

    // Workers.

    fn on_claim(&mut self, worker: Worker, now: Time) -> Result<(), Refused> {
        self.may_work()?;
        if self.waiting.contains(&worker) {
            return Ok(());
        }
        if self.continue_lease(worker, now)? {
            return Ok(());
        }
        if self.waiting.len() + self.holders.len() >= self.config.max_workers {
            return Err(Refused::Full {
                what: "workers of one consumer",
                limit: self.config.max_workers,
            });
        }
        self.waiting.push_back(worker);
        self.match_up(now);
        Ok(())
    }

    /// A worker that claims again under its lease reads on, without an acknowledgement between (S3.29); when all it had is acknowledged, the feed
    /// goes to the end of the queue, so that one busy feed does not starve the others.
    fn continue_lease(&mut self, worker: Worker, now: Time) -> Result<bool, Refused> {
        let Some(id) = self
            .holders
            .get(&worker)
            .and_then(|t| self.leases.get(t))
            .cloned()
        else {
            return Ok(false);
        };
        match self.hold(&id) {
            None => return Ok(false),
            Some(Hold::Busy) => return Err(Refused::Busy),
            Some(Hold::Unfinished) => return Err(Refused::Unfinished),
            Some(Hold::Done) => {
                self.end_lease(&id);
                // Letters that became durable meanwhile.
                self.write_down(&id);
                self.settle(&id, now);
                return Ok(false);
            }
            Some(Hold::ReadsOn) => self.give_more(&id, now),
        }
        Ok(true)
    }

    /// A worker who says by its token what it has: it is told so if that is over, and gets nothing else instead.
    fn on_read_on(&mut self, token: Token, now: Time) -> Result<(), Refused> {
        self.may_work()?;
        let id = self.leased(token)?;
        match self.hold(&id) {
            None | Some(Hold::Done) => Err(Refused::Lease),
            Some(Hold::Busy) => Err(Refused::Busy),
            Some(Hold::Unfinished) => Err(Refused::Unfinished),
            Some(Hold::ReadsOn) => {
                self.give_more(&id, now);
                Ok(())
            }
        }
    }

    /// Gives what is behind the events that were given under a lease.
    fn give_more(&mut self, id: &FeedId, now: Time) {
        let lease = self.config.lease;
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let Some(held) = feed.lease.as_mut() else {
            return;
        };
        held.until = now + lease;
        let from = held.given_to;
        let most = portion(feed.wish.window, from, feed.span.1);
        let work = Work::Main {
            from,
            most,
            attempts: 0,
        };
        let grant = Grant {
            worker: held.worker,
            token: held.token,
            feed: id.clone(),
            work,
            until: held.until,
        };
        held.given_to = from + u64::from(most);
        self.give(grant);
        self.arm(id, now);
    }

    /// What a claim of the worker who has this feed would find.
    fn hold(&self, id: &FeedId) -> Option<Hold> {
        let is_strict = self.config.order == Order::Strict;
        let feed = self.feeds.get(id)?;
        let held = feed.lease.as_ref()?;
        if feed.flight.is_some() || held.owed.is_some() {
            return Some(Hold::Busy);
        }
        if held.given_to <= feed.wish.next && held.asides.is_empty() {
            return Some(Hold::Done);
        }
        let may_read_on = held.given_to < feed.span.1
            && held.asides.is_empty()
            && feed.wish.window >= 2
            && !(is_strict && feed.wish.attempts > 0);
        Some(match may_read_on {
            true => Hold::ReadsOn,
            false => Hold::Unfinished,
        })
    }

    fn on_renew(&mut self, token: Token, now: Time) -> Result<(), Refused> {
        let id = self.leased(token)?;
        let until = now + self.config.lease;
        if let Some(lease) = self.feeds.get_mut(&id).and_then(|f| f.lease.as_mut()) {
            lease.until = until;
        }
        self.arm(&id, now);
        Ok(())
    }

    fn on_leave(&mut self, worker: Worker, now: Time) {
        self.waiting.retain(|waiting| *waiting != worker);
        let Some(id) = self
            .holders
            .get(&worker)
            .and_then(|t| self.leases.get(t))
            .cloned()
        else {
            return;
        };
        if let Some(feed) = self.feeds.get_mut(&id)
            && feed.flight.is_none()
        {
            // What it had is given again as if it had never been given.
            feed.revert();
            feed.wish.take_back();
        }
        self.end_lease(&id);
        self.write_down(&id);
        self.settle(&id, now);
    }

    /// Gives feeds with work to workers that wait.
    fn match_up(&mut self, now: Time) {
        while !self.waiting.is_empty() && self.may_work().is_ok() {
            let Some(id) = self.queue.pop_front() else {
                return;
            };
            if let Some(feed) = self.feeds.get_mut(&id) {
                feed.is_queued = false;
            }
            if let Some(owed) = self.work_of(&id, now)
                && let Some(worker) = self.waiting.pop_front()
            {
                self.lease(&id, worker, owed, now);
            }
        }
    }

    /// What a free feed has to do now.
    fn work_of(&self, id: &FeedId, now: Time) -> Option<Owed> {
        let is_free = self.feeds.get(id)?.lease.is_none();
        is_free.then(|| self.work_in(id, now)).flatten()
    }

    /// What there is to do in a feed, whoever has it.
    fn work_in(&self, id: &FeedId, now: Time) -> Option<Owed> {
        let feed = self.feeds.get(id)?;
        if feed.flight.is_some() || feed.fit != Fit::Fits {
            return None;
        }
        let hopeless = self
            .config
            .is_hopeless(feed.wish.attempts, feed.wish.held_ms);
        if feed.wish.next < feed.span.1
            && feed.not_before <= now
            && !hopeless
            && feed.asides_from > now
        {
            return Some(Owed::Main);
        }
        let is_due = |aside: &&Aside| {
            feed.trouble
                .get(&aside.seq)
                .is_none_or(|t| t.due <= now && !t.is_burying)
                && !self.config.is_hopeless(aside.attempts, aside.held_ms)
        };
        let due = || feed.wish.aside.iter().filter(is_due);
        let alone = due().find(|aside| aside.alone).map(|aside| vec![aside.seq]);
        let asides = alone.unwrap_or_else(|| {
            due()
                .take(MAX_ASIDES_GIVEN)
                .map(|aside| aside.seq)
                .collect()
        });
        if !asides.is_empty() {
            return Some(Owed::Asides(asides));
        }
        let has_main = feed.wish.next < feed.span.1 && feed.not_before <= now && !hopeless;
        has_main.then_some(Owed::Main)
    }

    /// The feed is this worker's. It gets its portion when the disk knows that something was given.
    fn lease(&mut self, id: &FeedId, worker: Worker, owed: Owed, now: Time) {
        let token = Token(self.number());
        let until = now + self.config.lease;
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        feed.lease = Some(Lease {
            worker,
            token,
            until,
            given_to: feed.wish.next,
            asides: Vec::new(),
            owed: Some(owed.clone()),
            is_over: false,
        });
        feed.wish.take_back();
        match owed {
            Owed::Main => feed.wish.given = Given::Main,
            Owed::Asides(seqs) => {
                feed.wish.given = Given::Asides;
                for aside in &mut feed.wish.aside {
                    aside.given = seqs.contains(&aside.seq);
                }
            }
        }
        self.leases.insert(token, id.clone());
        self.holders.insert(worker, token);
        if feed.wish == feed.durable {
            self.grant(id, now);
        } else {
            self.persist(id, None, Then::Grant);
        }
        self.arm(id, now);
    }

    fn grant(&mut self, id: &FeedId, now: Time) {
        let (until, backoff) = (now + self.config.lease, self.config.backoff);
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let Some((lease, owed)) = feed.lease.as_mut().and_then(|lease| {
            let owed = lease.owed.take()?;
            Some((lease, owed))
        }) else {
            return;
        };
        lease.until = until;
        let work = match owed {
            Owed::Main => {
                let from = feed.wish.next;
                let most = portion(feed.wish.window, from, feed.span.1);
                lease.given_to = from + u64::from(most);
                Work::Main {
                    from,
                    most,
                    attempts: feed.wish.attempts,
                }
            }
            Owed::Asides(seqs) => {
                feed.asides_from = now + backoff;
                let attempts = |seq: &Seq| {
                    (
                        *seq,
                        feed.wish.aside_mut(*seq).map_or(0, |aside| aside.attempts),
                    )
                };
                let given = seqs.iter().map(attempts).collect();
                lease.asides = seqs;
                Work::Asides(given)
            }
        };
        let grant = Grant {
            worker: lease.worker,
            token: lease.token,
            feed: id.clone(),
            work,
            until,
        };
        self.give(grant);
    }

    fn give(&mut self, grant: Grant) {
        self.counters.grants += 1;
        self.outputs.push_back(Output::Grant(grant));
    }

    fn on_ack(&mut self, token: Token, ack: Ack, now: Time) -> Result<(), Refused> {
        self.may_work()?;
        let id = self.leased(token)?;
        let (lease, batch) = (self.config.lease, self.config.batch);
        let forgets = self.config.planted == Some(Planted::ForgetsAside);
        let Some(feed) = self.feeds.get_mut(&id) else {
            return Err(Refused::Unknown);
        };
        if feed.flight.is_some() {
            return Err(Refused::Busy);
        }
        let Some(held) = feed.lease.as_mut() else {
            return Err(Refused::Lease);
        };
        let then = match ack {
            Ack::Through { next, hash } => {
                if next > held.given_to || next == 0 {
                    return Err(Refused::NotGiven {
                        seq: next.saturating_sub(1),
                    });
                }
                let done = next.saturating_sub(feed.wish.next);
                if done > 0 {
                    feed.wish.advance(next, hash, batch);
                    feed.trouble
                        .retain(|seq, _| *seq >= next || feed.wish.aside_mut(*seq).is_some());
                }
                if forgets {
                    feed.wish.aside.clear();
                }
                Then::Through(done)
            }
            Ack::Asides(seqs) => {
                if let Some(seq) = seqs.iter().find(|seq| !held.asides.contains(seq)) {
                    return Err(Refused::NotGiven { seq: *seq });
                }
                held.asides.retain(|held| !seqs.contains(held));
                let mut settled = Vec::new();
                for seq in seqs {
                    feed.trouble.remove(&seq);
                    let aside = feed.wish.take_aside(seq);
                    settled.extend(aside.map(|aside| (seq, aside.letter)));
                }
                Then::Settled(settled)
            }
        };
        held.until = now + lease;
        // What comes next is most likely the next portion: said now, it needs no write of its own then.
        if held.asides.is_empty() {
            feed.wish.take_back();
            feed.wish.given = Given::Main;
        }
        for aside in &mut feed.wish.aside {
            aside.given = held.asides.contains(&aside.seq);
        }
        self.persist(&id, Some(token), then);
        self.arm(&id, now);
        Ok(())
    }

    fn on_nack(&mut self, token: Token, seq: Seq, cause: String, now: Time) -> Result<(), Refused> {
        self.may_work()?;
        let id = self.leased(token)?;
        let is_strict = self.config.order == Order::Strict;
        let Some(feed) = self.feeds.get_mut(&id) else {
            return Err(Refused::Unknown);
        };
        let Some(held) = feed.lease.as_mut() else {
            return Err(Refused::Lease);
        };
        if feed.flight.is_some() {
            return Err(Refused::Busy);
        }
        let is_aside = held.asides.contains(&seq);
        if !is_aside && !(feed.wish.next..held.given_to).contains(&seq) {
            return Err(Refused::NotGiven { seq });
        }
        if !is_aside && is_strict && seq != feed.wish.next {
            return Err(Refused::NotNext { seq });
        }
        self.counters.nacked += 1;
        let cause = cut_cause(cause);
        if is_aside || !is_strict {
            held.asides.retain(|held| *held != seq);
            self.set_aside(&id, seq, cause, now);
        } else {
            self.hold_feed(&id, cause, now);
        }
        if is_strict && !is_aside {
            self.end_lease(&id);
            self.settle(&id, now);
        }
        self.arm(&id, now);
        Ok(())
    }

    /// Loose order: the event leaves the flow and waits beside it.
    fn set_aside(&mut self, id: &FeedId, seq: Seq, cause: String, now: Time) {
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let mut aside = feed
            .wish
            .aside_mut(seq)
            .copied()
            .unwrap_or(Aside::new(seq, false));
        aside.attempts = aside.attempts.saturating_add(1);
        if let Some(before) = feed.trouble.get(&seq) {
            aside.held_ms = aside.held_ms.saturating_add(millis(now, before.counted));
        }
        feed.wish.put_aside(aside);
        let due = now + self.config.pause(aside.attempts);
        feed.trouble.insert(seq, Trouble::new(cause, now, due));
    }

    /// Strict order: the feed waits with it.
    fn hold_feed(&mut self, id: &FeedId, cause: String, now: Time) {
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let seq = feed.wish.next;
        feed.wish.attempts = feed.wish.attempts.saturating_add(1);
        if let Some(before) = feed.trouble.get(&seq) {
            let passed = millis(now, before.counted);
            feed.wish.held_ms = feed.wish.held_ms.saturating_add(passed);
        }
        feed.not_before = now + self.config.pause(feed.wish.attempts);
        feed.trouble
            .insert(seq, Trouble::new(cause, now, feed.not_before));
    }

    /// A lease ran out. A write that is under way decides first whether the work was done.
    fn on_silence(&mut self, id: &FeedId, now: Time) {
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let Some(lease) = feed.lease.as_mut() else {
            return;
        };
        if feed.flight.is_some() {
            lease.is_over = true;
            return;
        }
        let asides = std::mem::take(&mut lease.asides);
        let has_work = lease.given_to > feed.durable.next || !asides.is_empty();
        if has_work {
            feed.revert();
            feed.wish.take_back();
            feed.wish.given = if asides.is_empty() {
                Given::Main
            } else {
                Given::Asides
            };
            for aside in feed.wish.aside.iter_mut() {
                aside.given = asides.contains(&aside.seq);
            }
            feed.wish.crash();
            let cause = "its worker was silent until the lease ran out";
            for seq in asides {
                let attempts = feed.wish.aside_mut(seq).map_or(1, |a| a.attempts);
                let due = now + self.config.pause(attempts);
                feed.trouble
                    .insert(seq, Trouble::new(cause.to_owned(), now, due));
            }
            if feed.wish.attempts > 0 {
                feed.not_before = now + self.config.pause(feed.wish.attempts);
                let trouble = Trouble::new(cause.to_owned(), now, feed.not_before);
                feed.trouble.insert(feed.wish.next, trouble);
            }
            let (window, attempts) = (feed.wish.window, feed.wish.attempts);
            self.counters.lost += 1;
            self.tell(Event::Lost {
                feed: id.clone(),
                window,
                attempts,
            });
        }
        self.end_lease(id);
    }

    fn end_lease(&mut self, id: &FeedId) {
        if let Some(lease) = self.feeds.get_mut(id).and_then(|feed| feed.lease.take()) {
            if self.config.planted != Some(Planted::IgnoresTokens) {
                self.leases.remove(&lease.token);
            }
            if self.holders.get(&lease.worker) == Some(&lease.token) {
                self.holders.remove(&lease.worker);
            }
            // Who waited for a portion of it waits for another.
            if lease.owed.is_some() {
                self.waiting.push_back(lease.worker);
            }
        }
    }

    fn leased(&mut self, token: Token) -> Result<FeedId, Refused> {
        let planted = self.config.planted == Some(Planted::IgnoresTokens);
        let id = self.leases.get(&token).cloned();
        let is_held = id
            .as_ref()
            .and_then(|id| self.feeds.get_mut(id))
            .is_some_and(|feed| {
                if planted && let Some(lease) = feed.lease.as_mut() {
                    lease.given_to = lease.given_to.max(feed.span.1);
                    return true;
                }
                feed.lease
                    .as_ref()
                    .is_some_and(|lease| lease.token == token && !lease.is_over)
            });
        match id.filter(|_| is_held) {
            Some(id) => Ok(id),
            None => {
                self.counters.stale += 1;
                Err(Refused::Lease)
            }
        }
    }

    fn may_work(&self) -> Result<(), Refused> {
        if self.forgotten {
            return Err(Refused::Forgotten);
        }
        if let Some(theirs) = self.fenced {
            return Err(Refused::Fenced {
                ours: self.generation,
                theirs,
            });
        }
        match &self.broken {
            Some(cause) => Err(Refused::Broken(cause.clone())),
            None => Ok(()),
        }
    }

    fn on_generation(&mut self, theirs: u64) {
        if theirs <= self.generation
            || self.fenced.is_some()
            || self.config.planted == Some(Planted::IgnoresGeneration)
        {
            return;
        }
        self.fenced = Some(theirs);
        self.end_leases();
        self.tell(Event::Fenced { generation: theirs });
    }

    fn on_forget(&mut self, held: bool) -> Result<(), Refused> {
        // A lease of which all is acknowledged holds nothing: its worker may be gone.
        let holds = |id: &&FeedId| !matches!(self.hold(id), None | Some(Hold::Done));
        let workers = self.leases.values().filter(holds).count();
        if workers > 0 && !held {
            return Err(Refused::Held { workers });
        }
        self.forgotten = true;
        self.end_leases();
        Ok(())
    }

    fn end_leases(&mut self) {
        for id in self.leases.values().cloned().collect::<Vec<_>>() {
            self.end_lease(&id);
        }
        self.waiting.clear();
    }

    // The disk.

    /// Writes the wish down. One write a feed at a time.
    fn persist(&mut self, id: &FeedId, token: Option<Token>, then: Then) {
        let ticket = self.number();
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        feed.flight = Some(ticket);
        let position = feed.wish.clone();
        self.outputs.push_back(Output::Persist {
            ticket,
            token,
            feed: id.clone(),
            row: position.encode(),
        });
        let feed = id.clone();
        self.tickets.insert(
            ticket,
            Ticket::Write {
                feed,
                position,
                then,
            },
        );
    }

    /// Writes the wish down alone if it differs from what is durable.
    fn write_down(&mut self, id: &FeedId) {
        let differs = |feed: &Feed| feed.flight.is_none() && feed.wish != feed.durable;
        if self.may_work().is_ok() && self.feeds.get(id).is_some_and(differs) {
            self.persist(id, None, Then::Nothing);
        }
    }

    /// Several letters become durable at once; the row says so when the write before it has ended.
    fn write_buried(&mut self, id: &FeedId) {
        let owes = |feed: &Feed| feed.lease.is_none() && !feed.buried.is_empty();
        if self.feeds.get(id).is_some_and(owes) {
            self.write_down(id);
        }
    }

    fn on_persisted(&mut self, ticket: u64, result: Result<(), String>, now: Time) {
        let (id, position, then) = match self.tickets.remove(&ticket) {
            Some(Ticket::Write {
                feed,
                position,
                then,
            }) => (feed, position, then),
            Some(other) => {
                self.tickets.insert(ticket, other);
                return;
            }
            None => return,
        };
        if let Err(cause) = result {
            // Nobody knows what is on the disk now: it has to be read again.
            self.broken = Some(cause);
            return;
        }
        let Some(feed) = self.feeds.get_mut(&id) else {
            return;
        };
        feed.flight = None;
        feed.durable = position;
        let owed = |seq: &Seq| feed.durable.aside.iter().any(|aside| aside.seq == *seq);
        feed.buried.retain(owed);
        let next = feed.durable.next;
        match then {
            Then::Grant => self.grant(&id, now),
            Then::Through(done) => {
                self.counters.acked += done;
                let feed = id.clone();
                self.tell(Event::Acked { feed, next });
            }
            Then::Settled(seqs) => {
                for (seq, letter) in seqs {
                    self.counters.acked += 1;
                    let feed = id.clone();
                    self.tell(Event::Settled { feed, seq, letter });
                }
            }
            Then::Sought => {
                let feed = id.clone();
                self.tell(Event::Sought { feed, to: next });
            }
            Then::Nothing => {}
        }
        self.write_buried(&id);
        let is_over = |lease: &Lease| lease.is_over;
        let lease = self.feeds.get(&id).and_then(|feed| feed.lease.as_ref());
        if lease.is_some_and(is_over) {
            self.on_silence(&id, now);
        }
        self.settle(&id, now);
    }

    // Dead letters.

    /// Buries what is hopeless, puts the feed into the queue if it has work, and enters its next deadline.
    fn settle(&mut self, id: &FeedId, now: Time) {
        self.bury(id, now);
        let has_work = self.work_of(id, now).is_some();
        if let Some(feed) = self.feeds.get_mut(id)
            && has_work
            && !feed.is_queued
        {
            feed.is_queued = true;
            self.queue.push_back(id.clone());
        }
        self.match_up(now);
        self.arm(id, now);
    }

    fn bury(&mut self, id: &FeedId, now: Time) {
        if self.may_work().is_err() {
            return;
        }
        let Some(feed) = self.feeds.get(id).filter(|feed| feed.fit == Fit::Fits) else {
            return;
        };
        let wish = &feed.wish;
        let mut hopeless: Vec<(Seq, u32, u64)> = Vec::new();
        let is_free = feed.lease.is_none() && feed.flight.is_none();
        if is_free
            && wish.next < feed.span.1
            && self.config.is_hopeless(wish.attempts, wish.held_ms)
        {
            hopeless.push((wish.next, wish.attempts, wish.held_ms));
        }
        let in_hands = feed
            .lease
            .as_ref()
            .map(|lease| lease.asides.as_slice())
            .unwrap_or_default();
        let waiting = wish
            .aside
            .iter()
            .filter(|aside| !in_hands.contains(&aside.seq));
        let beyond = wish.aside.len().saturating_sub(self.config.max_aside);
        let mut by_attempts: Vec<&Aside> = waiting.clone().collect();
        by_attempts.sort_by_key(|aside| std::cmp::Reverse((aside.attempts, aside.held_ms)));
        let victims: BTreeSet<Seq> = by_attempts.iter().take(beyond).map(|a| a.seq).collect();
        for aside in waiting {
            if victims.contains(&aside.seq)
                || self.config.is_hopeless(aside.attempts, aside.held_ms)
            {
                hopeless.push((aside.seq, aside.attempts, aside.held_ms));
            }
        }
        for (seq, attempts, held_ms) in hopeless {
            let by_room = victims.contains(&seq) && !self.config.is_hopeless(attempts, held_ms);
            self.bury_one(id, seq, attempts, held_ms, by_room, now);
        }
    }

    fn bury_one(
        &mut self,
        id: &FeedId,
        seq: Seq,
        attempts: u32,
        held_ms: u64,
        by_room: bool,
        now: Time,
    ) {
        let ticket = self.number();
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let unknown = || {
            Trouble::new(
                "the process ended whenever it was given".to_owned(),
                now,
                now,
            )
        };
        let trouble = feed.trouble.entry(seq).or_insert_with(unknown);
        if trouble.is_burying || trouble.due > now && trouble.cause.is_empty() {
            return;
        }
        trouble.is_burying = true;
        let cause = trouble.cause.clone();
        self.counters.dead_by_room += u64::from(by_room);
        let feed = id.clone();
        self.outputs.push_back(Output::Bury {
            ticket,
            feed: feed.clone(),
            seq,
            attempts,
            held: Duration::from_millis(held_ms),
            cause,
        });
        self.tickets.insert(ticket, Ticket::Bury { feed, seq });
    }

    fn on_buried(&mut self, ticket: u64, result: Result<EventHash, String>, now: Time) {
        let (id, seq) = match self.tickets.remove(&ticket) {
            Some(Ticket::Bury { feed, seq }) => (feed, seq),
            Some(other) => {
                self.tickets.insert(ticket, other);
                return;
            }
            None => return,
        };
        let (batch, backoff) = (self.config.batch, self.config.max_backoff);
        let Some(feed) = self.feeds.get_mut(&id) else {
            return;
        };
        // The letter could not be written: the event stays where it is, and is tried meanwhile.
        let Ok(hash) = result else {
            if let Some(trouble) = feed.trouble.get_mut(&seq) {
                trouble.is_burying = false;
                trouble.due = now + backoff;
            }
            if seq == feed.wish.next {
                feed.wish.attempts = feed
                    .wish
                    .attempts
                    .min(self.config.attempts.saturating_sub(1));
                feed.wish.held_ms = 0;
                feed.not_before = now + backoff;
            } else if let Some(aside) = feed.wish.aside_mut(seq) {
                aside.attempts = aside.attempts.min(self.config.attempts.saturating_sub(1));
                aside.held_ms = 0;
            }
            return self.settle(&id, now);
        };
        feed.trouble.remove(&seq);
        if feed.wish.take_aside(seq).is_some() {
            feed.buried.insert(seq);
        } else if feed.wish.next == seq {
            feed.wish.advance(seq + 1, hash, batch);
            feed.wish.take_back();
        }
        self.counters.dead += 1;
        let event = Event::Dead {
            feed: id.clone(),
            seq,
        };
        self.tell(event);
        // Under a lease the row goes with the next acknowledgement; a crash before that buries the event again, and letters are counted by event.
        if self.feeds.get(&id).is_some_and(|feed| feed.lease.is_none()) {
            self.write_down(&id);
        }
        self.settle(&id, now);
    }

    fn on_seek(
        &mut self,
        id: &FeedId,
        to: Seq,
        hash: Option<EventHash>,
        now: Time,
    ) -> Result<(), Refused> {
        self.may_work()?;
        let batch = self.config.batch;
        let feed = self.feeds.get_mut(id).ok_or(Refused::Unknown)?;
        if feed.flight.is_some() {
            return Err(Refused::Busy);
        }
        let aside = feed
            .durable
            .aside
            .iter()
            .filter(|aside| aside.seq < to)
            .copied()
            .collect();
        feed.wish = Position::at(to, hash, batch);
        feed.wish.aside = aside;
        feed.fit = Fit::Open;
        feed.not_before = now;
        self.end_lease(id);
        self.check(id);
        self.persist(id, None, Then::Sought);
        self.arm(id, now);
        Ok(())
    }

    fn on_retry(&mut self, id: &FeedId, seq: Seq, now: Time) -> Result<(), Refused> {
        self.may_work()?;
        let limit = self.config.max_aside;
        let feed = self.feeds.get_mut(id).ok_or(Refused::Unknown)?;
        if seq >= feed.wish.next {
            return Err(Refused::NotGiven { seq });
        }
        if feed.wish.aside_mut(seq).is_some() {
            return Ok(());
        }
        if feed.wish.aside.len() >= limit {
            return Err(Refused::Full {
                what: "events of one feed that are tried again",
                limit,
            });
        }
        if feed.flight.is_some() {
            return Err(Refused::Busy);
        }
        feed.wish.put_aside(Aside::new(seq, true));
        if feed.lease.is_none() {
            self.write_down(id);
        }
        self.settle(id, now);
        Ok(())
    }

    // Small steps.

    fn arm(&mut self, id: &FeedId, now: Time) {
        let Some(feed) = self.feeds.get_mut(id) else {
            return;
        };
        let lease = feed
            .lease
            .as_ref()
            .filter(|lease| !lease.is_over)
            .map(|lease| lease.until);
        let pause =
            (feed.not_before > now && feed.wish.next < feed.span.1).then_some(feed.not_before);
        let asides = feed.trouble.iter().filter(|(seq, t)| {
            t.due > now && !t.is_burying && feed.wish.aside.iter().any(|a| a.seq == **seq)
        });
        let aside = asides.map(|(_, t)| t.due).min();
        let batched =
            (feed.asides_from > now && !feed.wish.aside.is_empty()).then_some(feed.asides_from);
        let due = [lease, pause, aside, batched].into_iter().flatten().min();
        if due != feed.due {
            if let Some(before) = feed.due {
                self.due.remove(&(before, id.clone()));
            }
            feed.due = due;
            if let Some(due) = due {
                self.due.insert((due, id.clone()));
            }
        }
    }

    fn tell_lost(&mut self, id: &FeedId, feed: &Feed) {
        self.counters.lost += 1;
        self.tell(Event::Lost {
            feed: id.clone(),
            window: feed.wish.window,
            attempts: feed.wish.attempts,
        });
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }
}

impl Feed {
    fn new(position: Position) -> Self {
        Self {
            durable: position.clone(),
            wish: position,
            span: (0, 0),
            fit: Fit::Open,
            lease: None,
            flight: None,
            not_before: Time::ZERO,
            is_queued: false,
            due: None,
            asides_from: Time::ZERO,
            trouble: BTreeMap::new(),
            buried: BTreeSet::new(),
        }
    }

    /// What was not acknowledged is as if it had not been, but for letters: these are durable.
    fn revert(&mut self) {
        self.wish = self.durable.clone();
        for seq in &self.buried {
            self.wish.take_aside(*seq);
        }
    }
}

impl Trouble {
    fn new(cause: String, now: Time, due: Time) -> Self {
        Self {
            cause,
            counted: now,
            due,
            is_burying: false,
        }
    }
}

/// No more than is known to be there: what came meanwhile is given in its turn.
fn portion(window: u32, from: Seq, end: Seq) -> u32 {
    window.min(u32::try_from(end.saturating_sub(from)).unwrap_or(u32::MAX))
}

fn millis(now: Time, since: Time) -> u64 {
    let passed = now.saturating_sub(since).as_millis();
    u64::try_from(passed).unwrap_or(u64::MAX)
}
