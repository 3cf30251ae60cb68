//! Replication: from the last batches that others have to batches in the log, and back (specs/log-replication.md §4).
//!
//! What a peer has that is not here becomes a *want*; wants of many feeds go into one request, answered by many batches at once: one round
//! trip however long the way. What differs is found when peers meet and now and then (`core/reconcile.rs`), and told by announcements in
//! between, over connections and, by the node, over gossip. Nothing here trusts an announcement: it costs at most one request to find out that it was a lie.
//!
//! Batches that come in here are checked (form, CID, signature); the chain is checked by whether the batch before is known, in the end by the
//! log itself. An author that wrote two histories has two last batches, told and fetched like those of two feeds.
//!
//! `fetch` (what is asked of whom), `serve` (what others ask), `compare` (comparisons), `announce`, `early` (batches that came before their turn).

mod announce;
mod compare;
mod config;
mod early;
mod fetch;
mod io;
mod serve;

pub use config::Config;
pub use io::{Event, Input, NotAppended, Output, Peer};

use self::{
    compare::Session,
    early::Early,
    fetch::{Asked, Wants},
    serve::Served,
};
use crate::{
    batch::Batch,
    core::{
        Time,
        reconcile::{Tip, Tips},
    },
    feed::FeedId,
    stream::Pattern,
    wire::{Message, patterns_hash},
};
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// What was done, dropped and saved. Numbers only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Batches appended.
    pub appended: u64,
    /// Batches that were here already.
    pub duplicates: u64,
    /// Requests sent.
    pub asked: u64,
    /// Requests that were not answered in time.
    pub unanswered: u64,
    /// Comparisons begun.
    pub comparisons: u64,
    /// Comparisons that were not answered in time.
    pub comparisons_lost: u64,
    /// Wants beyond `max_wants`, or of an author or peer beyond its share.
    pub wants_dropped: u64,
    /// Feeds of authors that have too many.
    pub feeds_refused: u64,
    /// Batches that came early and found no room, or gave way.
    pub early_dropped: u64,
    /// Batches that nobody asked for and that are for no stream of ours.
    pub unasked: u64,
    /// Requests answered with "busy".
    pub busy: u64,
    /// Bytes of batches sent to others.
    pub served_bytes: u64,
    /// Comparisons of others beyond what they may ask for.
    pub syncs_refused: u64,
    /// Announcements that a slow peer was not told: the next comparison tells it.
    pub announcements_dropped: u64,
    /// Messages and batches that were none.
    pub misbehaved: u64,
    /// Forks seen.
    pub forks: u64,
}

/// Replication of a node. See the module for how it is driven.
#[derive(Debug)]
pub struct Replicate {
    config: Config,
    tips: Tips,
    wants: Wants,
    early: Early,
    peers: BTreeMap<Peer, Remote>,
    appending: BTreeMap<u64, Appending>,
    /// Of each feed, the last batch that is on its way to the disk.
    tails: BTreeMap<FeedId, [u8; 32]>,
    serving: serve::Serving,
    lookups: BTreeMap<u64, Peer>,
    announce_at: Option<Time>,
    /// When wants that were not looked at are.
    pump_at: Option<Time>,
    /// The time of the last input.
    clock: Time,
    announced_until: Time,
    own_news: BTreeSet<FeedId>,
    outputs: VecDeque<Output>,
    next_number: u64,
    counters: Counters,
}

#[derive(Debug)]
struct Appending {
    feed: FeedId,
    /// Who sent it.
    from: Peer,
    count: usize,
    first: u64,
    /// Where the request led, if it was asked for.
    aim: Option<[u8; 32]>,
    last: [u8; 32],
    bytes: Option<bytes::Bytes>,
}

/// A connected peer.
#[derive(Debug)]
struct Remote {
    begins: bool,
    /// What it subscribes to, once it has said so.
    patterns: Option<Vec<Pattern>>,
    session: Option<Session>,
    next_sync: Time,
    asked: BTreeMap<u64, Asked>,
    quiet_until: Time,
    strikes: u32,
    served: Served,
    /// Feeds that grew and of which it was not told.
    news: BTreeSet<FeedId>,
    sync_credit: (u32, Time),
}

/// Feeds that a peer waits to be told of; more, and the next comparison tells it.
const MAX_NEWS: usize = 4_096;

impl Replicate {
    /// A node that knows nothing yet.
    pub fn new(config: Config) -> Self {
        Self {
            wants: Wants::default(),
            early: Early::default(),
            tips: Tips::default(),
            peers: BTreeMap::new(),
            appending: BTreeMap::new(),
            tails: BTreeMap::new(),
            serving: serve::Serving::default(),
            lookups: BTreeMap::new(),
            announce_at: None,
            pump_at: None,
            clock: Time::ZERO,
            announced_until: Time::ZERO,
            own_news: BTreeSet::new(),
            outputs: VecDeque::new(),
            next_number: 0,
            counters: Counters::default(),
            config,
        }
    }

    /// Feeds one fact. What a peer should not have said is counted.
    pub fn handle(&mut self, input: Input, now: Time) {
        self.clock = now;
        match input {
            Input::Local { feed, tips, batch } => self.on_local(&feed, &tips, batch, now),
            Input::Connected { peer, begins } => self.on_connected(peer, begins, now),
            Input::Disconnected(peer) => self.on_disconnected(peer, now),
            Input::Message { peer, message } => self.on_message(peer, message, now),
            Input::Batches {
                peer,
                id,
                runs,
                busy_ms,
            } => self.on_batches(peer, id, runs, busy_ms, now),
            Input::Heard { peer, tips } => self.on_tips(peer, tips, now),
            Input::Pushed { peer, batch } => self.on_pushed(peer, batch, now),
            Input::Misbehaved(peer) => self.strike(peer, now),
            Input::Appended { ticket, result } => self.on_appended(ticket, result, now),
            Input::Loaded {
                ticket,
                batches,
                more,
                starts,
            } => self.on_loaded(ticket, batches, more, starts, now),
            Input::Unknown { ticket, tips } => self.on_unknown(ticket, tips),
        }
        self.pump(now);
    }

    /// The next output; drain after every `handle` and `expire`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`expire`](Self::expire).
    pub fn deadline(&self) -> Option<Time> {
        let waits = self.wants.has_ready();
        let peers = self.peers.values().flat_map(|remote| {
            let asked = remote.asked.values().map(|asked| asked.until).min();
            let quiet = (waits && remote.quiet_until > self.clock).then_some(remote.quiet_until);
            [remote.sync_due(), asked, quiet].into_iter().flatten()
        });
        let paused = self.wants.next_pause();
        let served = self.serving.deadline();
        let own = [paused, served, self.announce_at, self.pump_at];
        peers.chain(own.into_iter().flatten()).min()
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Time) {
        self.clock = now;
        for peer in self.peers.keys().copied().collect::<Vec<_>>() {
            self.give_up_requests(peer, now);
            self.sync_if_due(peer, now);
        }
        self.announce_if_due(now);
        self.wants.wake(now);
        self.serve(now);
        self.pump(now);
    }

    /// What was done, dropped and saved.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// The last batches that are here.
    pub fn tips(&self) -> &Tips {
        &self.tips
    }

    /// Feeds that are longer elsewhere, as far as is known.
    pub fn missing(&self) -> usize {
        self.wants.len()
    }

    /// Bytes of batches that wait for the one before them.
    pub fn early_bytes(&self) -> usize {
        self.early.bytes()
    }

    fn on_local(
        &mut self,
        feed: &FeedId,
        tips: &[(u64, [u8; 32])],
        batch: Option<bytes::Bytes>,
        now: Time,
    ) {
        if self.set_tips(feed, tips) {
            self.own_news.insert(feed.clone());
            self.spread(feed, None, batch, now);
        }
    }

    fn set_tips(&mut self, feed: &FeedId, tips: &[(u64, [u8; 32])]) -> bool {
        let branches = self.tips.of(feed).count();
        let changed = self.tips.set(feed, tips);
        if tips.len() > 1 && tips.len() > branches {
            self.counters.forks += 1;
            self.tell(Event::Fork {
                feed: feed.clone(),
                branches: tips.len(),
            });
        }
        if changed {
            self.wants.settle(feed, &self.tips);
        }
        changed
    }

    fn on_connected(&mut self, peer: Peer, begins: bool, now: Time) {
        if self.peers.len() >= self.config.max_peers && !self.peers.contains_key(&peer) {
            self.counters.busy += 1;
            return;
        }
        let remote = Remote {
            begins,
            patterns: None,
            session: None,
            next_sync: now,
            asked: BTreeMap::new(),
            quiet_until: now,
            strikes: 0,
            served: Served::new(self.config.serve_burst, now),
            news: BTreeSet::new(),
            sync_credit: (self.config.sync_burst, now),
        };
        self.peers.insert(peer, remote);
        self.sync_if_due(peer, now);
    }

    fn on_disconnected(&mut self, peer: Peer, now: Time) {
        if let Some(remote) = self.peers.remove(&peer) {
            for (_, asked) in remote.asked {
                self.wants.take_back(&asked.wants, now);
            }
        }
        self.wants.forget_peer(peer);
        self.serving.forget(peer);
        self.lookups.retain(|_, of| *of != peer);
    }

    fn on_message(&mut self, peer: Peer, message: Message, now: Time) {
        if !self.peers.contains_key(&peer) {
            return;
        }
        match message {
            Message::Sync(sync) => self.on_sync(peer, sync, now),
            Message::Announce(announce) => self.on_tips(Some(peer), announce.tips, now),
            Message::Fetch(fetch) => self.on_fetch(peer, fetch, now),
            // These come as inputs of their own, checked.
            Message::Batches(_) => self.strike(peer, now),
        }
    }

    /// Somebody has these last batches.
    fn on_tips(&mut self, peer: Option<Peer>, tips: Vec<Tip>, _now: Time) {
        let mut doubtful = Vec::new();
        let mut tips = tips.into_iter().peekable();
        while let Some(tip) = tips.next() {
            // Who has two last batches of a feed has two histories of it.
            let is_branch = tips.peek().is_some_and(|next| next.feed == tip.feed);
            let is_coming = self.tails.get(&tip.feed) == Some(&tip.batch);
            if is_coming || !self.is_ours(&tip.feed) || self.tips.contains(&tip) {
                continue;
            }
            let longest = self.tips.of(&tip.feed).next_back();
            match longest {
                // Shorter than ours: an older state of the same history, or another history. The log knows.
                Some((next, _)) if tip.next <= next => doubtful.push(tip),
                None if !self.may_have_feed(&tip.feed) => self.counters.feeds_refused += 1,
                _ if is_branch => {
                    let from = tip.next - 1;
                    self.want(peer, tip, Some(from));
                }
                _ => self.want(peer, tip, None),
            }
        }
        if let (false, Some(peer)) = (doubtful.is_empty(), peer)
            && self.lookups.len() < MAX_LOOKUPS
        {
            let ticket = self.number();
            self.lookups.insert(ticket, peer);
            self.outputs.push_back(Output::Lookup {
                ticket,
                tips: doubtful,
            });
        }
    }

    fn on_unknown(&mut self, ticket: u64, tips: Vec<Tip>) {
        if let Some(peer) = self.lookups.remove(&ticket) {
            for tip in tips {
                // A branch that leaves our history somewhere at or before its end.
                let from = tip.next - 1;
                self.want(Some(peer), tip, Some(from));
            }
        }
    }

    fn want(&mut self, peer: Option<Peer>, tip: Tip, from: Option<u64>) {
        if !self.wants.add(peer, tip, from, &self.config) {
            self.counters.wants_dropped += 1;
        }
    }

    /// L6: one author cannot fill a node with feeds.
    fn may_have_feed(&self, feed: &FeedId) -> bool {
        self.wants.of_author(feed.author) < self.config.max_wants_per_author
            && self.tips.of_author(feed.author) < self.config.max_feeds_per_author
    }

    fn is_ours(&self, feed: &FeedId) -> bool {
        self.config
            .patterns
            .iter()
            .any(|pattern| pattern.matches(&feed.stream))
    }

    /// Appends batches of one feed that follow on each other.
    fn append(&mut self, from: Peer, batches: Vec<Batch>, aim: Option<[u8; 32]>, begins: bool) {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else {
            return;
        };
        let ticket = self.number();
        let appending = Appending {
            feed: first.feed().clone(),
            from,
            count: batches.len(),
            first: first.first(),
            aim,
            last: *last.digest(),
            bytes: (batches.len() == 1).then(|| last.bytes().clone()),
        };
        self.tails.insert(appending.feed.clone(), appending.last);
        self.wants.appending(&appending.feed, true);
        self.appending.insert(ticket, appending);
        self.outputs.push_back(Output::Append {
            ticket,
            batches,
            begins,
        });
    }

    fn on_appended(
        &mut self,
        ticket: u64,
        result: Result<Vec<(u64, [u8; 32])>, NotAppended>,
        now: Time,
    ) {
        let Some(done) = self.appending.remove(&ticket) else {
            return;
        };
        let feed = done.feed;
        if self.tails.get(&feed) == Some(&done.last) {
            self.tails.remove(&feed);
        }
        let is_idle = !self.appending.values().any(|other| other.feed == feed);
        if is_idle {
            self.wants.appending(&feed, false);
        }
        match result {
            Ok(tips) => {
                self.counters.appended += done.count as u64;
                if self.set_tips(&feed, &tips) {
                    self.spread(&feed, Some(done.from), done.bytes, now);
                } else {
                    self.counters.duplicates += done.count as u64;
                }
                self.wants.progress(&feed);
                self.append_early(&feed, now);
            }
            Err(NotAppended::Gap) => {
                if let Some(aim) = done.aim {
                    self.wants.step_back(&feed, aim, done.first);
                }
            }
            Err(NotAppended::Invalid) => {
                self.strike(done.from, now);
                self.wants.forget_source(&feed, done.from);
            }
            Err(NotAppended::Quota) => {
                self.wants.forget(&feed);
                self.tell(Event::Quota { feed });
            }
            Err(NotAppended::Disk) => self.wants.pause(&feed, now + DISK_PAUSE),
        }
    }

    /// Counts what a peer did wrong; a peer that does so often is not asked for a while.
    fn strike(&mut self, peer: Peer, now: Time) {
        self.counters.misbehaved += 1;
        let limit = self.config.strikes;
        let Some(remote) = self.peers.get_mut(&peer) else {
            return;
        };
        remote.strikes += 1;
        if remote.strikes >= limit {
            remote.strikes = 0;
            remote.quiet_until = now + SHUN;
            self.tell(Event::Shunned { peer });
        }
    }

    fn tell(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }

    fn send(&mut self, peer: Peer, message: Message) {
        self.outputs.push_back(Output::Send { peer, message });
    }

    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    fn own_hash(&self) -> u64 {
        patterns_hash(&self.config.patterns)
    }
}

/// Look-ups under way; more, and the next comparison finds the branch.
const MAX_LOOKUPS: usize = 256;
/// Until a disk that failed is tried again.
const DISK_PAUSE: Duration = Duration::from_secs(5);
/// For how long a peer that did wrong is not asked.
const SHUN: Duration = Duration::from_secs(60);
