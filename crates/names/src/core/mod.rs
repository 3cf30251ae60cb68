//! The book of names as a value that is driven: inputs in, outputs out, deadlines between.
//!
//! One file a mechanism: `book` (which record is taken), `publish` (own names), `routes` (who is told, and who tells), `resolve` (names that are
//! not known), `read` (what can be asked at any moment), `clock` and `budget`. Here are the frame and the one way by which anything changes: [`Core::change`].

mod book;
pub(crate) mod budget;
mod clock;
mod entry;
mod publish;
mod read;
mod resolve;
mod routes;

pub use read::{Change, Inspection, KeyKind};

use self::{
    book::Verifying,
    budget::{Bucket, Spread},
    clock::Clock,
    entry::{Effect, Entry, Flight},
    publish::Signing,
    resolve::Lookup,
    routes::Peer,
};
use crate::{
    config::Config,
    error::{Refused, RowError},
    io::{Alarm, Command, Done, Event, Input, Output, Source},
    name::Name,
    row::Row,
    wall::Wall,
};
use libp2p_identity::PeerId;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::Duration,
};

/// Time since start; it only goes forward.
pub type Time = Duration;

/// What was dropped, saved and repaired, for metrics. Numbers only grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Records that came in by any route.
    pub records: u64,
    /// Signatures that were checked.
    pub verified: u64,
    /// Records that were the newest.
    pub taken: u64,
    /// Copies of what is known, told apart without a look at the signature.
    pub duplicates: u64,
    /// Older ones.
    pub older: u64,
    /// Past their end of life.
    pub expired: u64,
    /// Malformed, of another key, or with a bad signature.
    pub invalid: u64,
    /// For names that nobody here asked for.
    pub unknown: u64,
    /// Beyond what a peer may send, or of a peer that misbehaved.
    pub over_budget: u64,
    /// Beyond `max_verifying`.
    pub overflow: u64,
    /// Interests and peers beyond their bounds.
    pub interests_dropped: u64,
    /// Resolved names that gave way to others.
    pub evicted: u64,
    /// Numbers that were forgotten because there were too many.
    pub floors_forgotten: u64,
    /// Records that were sent to peers and said on topics.
    pub announced: u64,
    /// Announcements that were left out because others made them.
    pub suppressed: u64,
    /// Moments that were not credible.
    pub incredible: u64,
    /// Names for which two values came under one number.
    pub equivocations: u64,
}

/// What [`Core::load`] could not use. The names are kept, marked unsure: nothing is published under them until a peer was heard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damaged {
    /// Key of the row.
    pub key: Vec<u8>,
    /// What is wrong with it.
    pub error: RowError,
}

/// The book of names. See the crate's documentation for how it is driven.
#[derive(Debug)]
pub struct Core {
    config: Config,
    clock: Clock,
    spread: Spread,
    entries: BTreeMap<Name, Entry>,
    due: BTreeSet<(Time, Name)>,
    flights: BTreeMap<u64, Name>,
    verifying: BTreeMap<u64, Verifying>,
    signing: BTreeMap<u64, Signing>,
    lookups: BTreeMap<Name, Lookup>,
    queries: BTreeMap<Name, routes::Query>,
    peers: BTreeMap<PeerId, Peer>,
    strangers: Bucket,
    dht: bool,
    outputs: VecDeque<Output>,
    next_ticket: u64,
    revision: u64,
    broken: Option<String>,
    counters: Counters,
}

impl Core {
    /// An empty book.
    pub fn new(config: Config) -> Self {
        Self {
            clock: Clock::new(config.build, config.horizon),
            spread: Spread::new(config.seed),
            strangers: Bucket::per_second(config.peer_burst, config.peer_per_second),
            config,
            entries: BTreeMap::new(),
            due: BTreeSet::new(),
            flights: BTreeMap::new(),
            verifying: BTreeMap::new(),
            signing: BTreeMap::new(),
            lookups: BTreeMap::new(),
            queries: BTreeMap::new(),
            peers: BTreeMap::new(),
            dht: false,
            outputs: VecDeque::new(),
            next_ticket: 0,
            revision: 0,
            broken: None,
            counters: Counters::default(),
        }
    }

    /// The book that was persisted, from key and value of each row. `marks` are the numbers of [`Output::Mark`] as far as they were kept; where
    /// one is above the row, the book is older than what was published, and the name is unsure. `restored` says that the owner knows
    /// the whole book to come from a backup.
    ///
    /// Every record is verified anew, some 30 µs each.
    ///
    /// # Errors
    /// [`RowError::Newer`]: a newer program wrote it; nothing is touched. Other damage is returned beside the book.
    pub fn load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        config: Config,
        rows: impl IntoIterator<Item = (K, V)>,
        marks: impl IntoIterator<Item = (Name, u64)>,
        restored: bool,
        now: Time,
    ) -> Result<(Self, Vec<Damaged>), RowError> {
        let mut core = Self::new(config);
        let mut damaged = Vec::new();
        let marks: BTreeMap<Name, u64> = marks.into_iter().collect();
        for (key, value) in rows {
            let key = key.as_ref();
            let name = match Name::from_bytes(key) {
                Ok(name) => name,
                Err(error) => {
                    damaged.push(Damaged {
                        key: key.to_vec(),
                        error: RowError::Key(error),
                    });
                    continue;
                }
            };
            let row = match Row::decode(name, value.as_ref()) {
                Ok(row) => row,
                Err(error @ RowError::Newer { .. }) => return Err(error),
                Err(error) => {
                    damaged.push(Damaged {
                        key: key.to_vec(),
                        error,
                    });
                    Row {
                        unsure: true,
                        ..Row::default()
                    }
                }
            };
            core.revision = core.revision.max(row.revision());
            core.insert(name, row, now);
        }
        for name in marks.keys() {
            if !core.entries.contains_key(name) {
                core.insert(*name, Row::default(), now);
            }
        }
        for name in core.entries.keys().copied().collect::<Vec<_>>() {
            core.recall(name, marks.get(&name).copied(), restored, now);
        }
        Ok((core, damaged))
    }

    /// Feeds one fact or command.
    ///
    /// # Errors
    /// [`Refused`] for a command that cannot be. Other input is never an error: what a peer should not have sent is counted.
    pub fn handle(&mut self, input: Input, now: Time) -> Result<(), Refused> {
        match input {
            Input::Command { id, command } => return self.on_command(id, command, now),
            Input::Signed { ticket, result } => self.on_signed(ticket, result, now),
            Input::Verified { ticket, result } => self.on_verified(ticket, result, now),
            Input::Persisted { ticket, result } => self.on_persisted(ticket, result, now),
            Input::Reread(rows) => self.on_reread(rows, now),
            Input::Clock(wall) => {
                self.clock.set(wall, now);
                self.judge_all(now);
            }
            Input::Seen(wall) => {
                if self.clock.see(wall, now) {
                    self.judge_all(now);
                } else {
                    self.counters.incredible += 1;
                }
            }
            Input::Connected(peer) => self.on_connected(peer),
            Input::Disconnected(peer) => self.on_disconnected(&peer, now),
            Input::Message { peer, message } => self.on_message(peer, message, now),
            Input::Record {
                name,
                bytes,
                source,
                token,
            } => self.on_record(name, &bytes, source, token, now),
            Input::NoRecord { name, source } => self.on_no_record(name, source, now),
            Input::TopicPeer { name, peer, joined } => self.on_neighbour(name, peer, joined, now),
            Input::Dht(ready) => self.on_dht(ready, now),
            Input::DhtGrew => self.on_dht_grew(now),
            Input::DhtDone { name } => self.on_dht_done(name, now),
        }
        Ok(())
    }

    /// The next output; drain after every `handle` and `expire`.
    pub fn poll(&mut self) -> Option<Output> {
        self.outputs.pop_front()
    }

    /// When to call [`Core::expire`].
    pub fn deadline(&self) -> Option<Time> {
        self.due.first().map(|(time, _)| *time)
    }

    /// Does what is due.
    pub fn expire(&mut self, now: Time) {
        while let Some(&(time, name)) = self.due.first() {
            if time > now {
                return;
            }
            self.due.pop_first();
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.due = None;
            }
            self.on_due(name, now);
            self.arm(name, now);
        }
    }

    /// What was dropped, saved and repaired.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn on_command(&mut self, id: u64, command: Command, now: Time) -> Result<(), Refused> {
        if let Some(cause) = &self.broken
            && !matches!(command, Command::Resolve(_))
        {
            return Err(Refused::Disk(cause.clone()));
        }
        match command {
            Command::Own(name) => self.set_role(id, name, |row| row.own = true, now),
            Command::Disown(name) => self.drop_role(id, name, |row| row.own = false, now),
            Command::Follow(name) => self.set_role(id, name, |row| row.followed = true, now),
            Command::Unfollow(name) => self.drop_role(id, name, |row| row.followed = false, now),
            Command::Publish(publish) => self.publish(id, publish, now),
            Command::AcceptFork(name) => self.accept_fork(id, name, now),
            Command::Put { name, bytes } => self.put(id, name, &bytes, now),
            Command::Complete {
                name,
                version,
                rollback,
            } => self.complete(id, name, version, rollback, now),
            Command::Resolve(name) => self.resolve_for(id, name, now),
        }
    }

    fn set_role(
        &mut self,
        id: u64,
        name: Name,
        edit: impl FnOnce(&mut Row),
        now: Time,
    ) -> Result<(), Refused> {
        self.enter(name, now)?;
        self.change(name, edit, [Effect::Done(id, Done::Ok)], now);
        self.begin(name, now);
        Ok(())
    }

    fn drop_role(
        &mut self,
        id: u64,
        name: Name,
        edit: impl FnOnce(&mut Row),
        now: Time,
    ) -> Result<(), Refused> {
        if !self.entries.contains_key(&name) {
            return Err(Refused::Unknown(name));
        }
        self.change(name, edit, [Effect::Done(id, Done::Ok)], now);
        self.give_up(name, now);
        Ok(())
    }

    /// Makes room for a name that is to be remembered, and enters it.
    fn enter(&mut self, name: Name, now: Time) -> Result<(), Refused> {
        let known = self.entries.get(&name).is_some_and(Entry::is_name);
        let names = || self.entries.values().filter(|entry| entry.is_name());
        if !known && names().count() >= self.config.max_names {
            let victim = names()
                .filter(|entry| !entry.is_kept() && !self.lookups.contains_key(&entry.name))
                .min_by_key(|entry| entry.used)
                .map(|entry| entry.name);
            let Some(victim) = victim else {
                return Err(Refused::Full {
                    what: "the book of names",
                    limit: self.config.max_names,
                    instead: "unfollow a name that is no longer needed",
                });
            };
            self.counters.evicted += 1;
            self.forget_record(victim, now);
        }
        if !self.entries.contains_key(&name) {
            self.insert(name, Row::default(), now);
        }
        Ok(())
    }

    fn insert(&mut self, name: Name, row: Row, now: Time) {
        let budget = Bucket::new(self.config.announce_burst, self.config.announce_gap);
        self.entries
            .insert(name, Entry::new(name, row, budget, now));
    }

    /// After a start: what the book says of a name, against what is known from elsewhere.
    fn recall(&mut self, name: Name, mark: Option<u64>, restored: bool, now: Time) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        entry.issued = mark;
        // Whether the topic heard of it before the start is not known.
        entry.owed = entry.told.own && entry.told.best.is_some();
        if mark > entry.told.floor || restored && entry.told.own {
            self.change(name, |row| row.unsure = true, [], now);
        }
        self.judge(name, now);
        if self.entries.get(&name).is_some_and(Entry::is_kept) {
            self.begin(name, now);
        }
        self.arm(name, now);
    }

    /// The one way by which anything durable changes: `edit` makes the wish, the wish is persisted, and only then `effects` happen.
    fn change(
        &mut self,
        name: Name,
        edit: impl FnOnce(&mut Row),
        effects: impl IntoIterator<Item = Effect>,
        now: Time,
    ) {
        if self.broken.is_some() {
            return;
        }
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let before = entry.wish.clone();
        edit(&mut entry.wish);
        if entry.wish != before {
            // A record that says the same for longer is no change to those who watch.
            let says = |row: &Row| {
                let record = row.best.as_ref().map(|held| &held.record);
                record.map(|record| (record.sequence(), record.value().to_vec()))
            };
            if says(&entry.wish) != says(&before) {
                self.revision += 1;
                entry.wish.changed = self.revision;
            }
            if entry.wish.complete != before.complete {
                self.revision += 1;
                entry.wish.completed = self.revision;
            }
            let sequence = entry.newest().map(|record| record.sequence());
            entry.wish.floor = entry.wish.floor.max(sequence);
            entry.version += 1;
        }
        let version = entry.version;
        entry
            .effects
            .extend(effects.into_iter().map(|effect| (version, effect)));
        self.flush(name, now);
    }

    /// Persists the wish unless a write of this name is under way: what waits for that one goes together.
    fn flush(&mut self, name: Name, now: Time) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        if entry.flight.is_some() {
            return;
        }
        if entry.wish == entry.told {
            self.settle(name, u64::MAX, now);
            return;
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        let row = entry.wish.clone();
        let value = (!row.is_empty()).then(|| row.encode());
        entry.flight = Some(Flight {
            ticket,
            version: entry.version,
            row,
        });
        self.flights.insert(ticket, name);
        self.outputs.push_back(Output::Persist {
            ticket,
            key: name.to_bytes(),
            value,
        });
    }

    fn on_persisted(&mut self, ticket: u64, result: Result<(), String>, now: Time) {
        let Some(name) = self.flights.remove(&ticket) else {
            return;
        };
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let Some(flight) = entry.flight.take_if(|flight| flight.ticket == ticket) else {
            return;
        };
        if let Err(cause) = result {
            self.on_disk_failed(cause);
            return;
        }
        let first_time = entry.told.floor < flight.row.floor;
        entry.told = flight.row;
        if self.broken.is_some() {
            // It was under way when another write failed. It is durable, and the last that was asked for.
            entry.wish = entry.told.clone();
            return;
        }
        let (own, floor) = (entry.told.own, entry.told.floor);
        if let (true, true, Some(sequence)) = (own, first_time, floor) {
            self.outputs.push_back(Output::Mark { name, sequence });
        }
        self.settle(name, flight.version, now);
        self.judge(name, now);
        self.flush(name, now);
        self.on_settled(name, now);
        self.sweep(name);
        self.arm(name, now);
    }

    /// After a failed write nobody knows what the disk holds: a second one that succeeds would prove nothing. What was told stays true.
    fn on_disk_failed(&mut self, cause: String) {
        if self.broken.is_none() {
            self.outputs
                .push_back(Output::Event(Event::Alarm(Alarm::Disk(cause.clone()))));
        }
        let cause = self.broken.get_or_insert(cause).clone();
        for entry in self.entries.values_mut() {
            entry.wish = entry.told.clone();
            for (_, effect) in entry.effects.drain(..) {
                match effect {
                    Effect::Done(id, _) => self.outputs.push_back(Output::Done {
                        id,
                        result: Err(Refused::Disk(cause.clone())),
                    }),
                    Effect::Verdict(token, _) => self.outputs.push_back(Output::Verdict {
                        token,
                        verdict: crate::io::Verdict::Ignore,
                    }),
                    _ => {}
                }
            }
        }
    }

    /// The disk was opened anew and read, so nobody has to guess what it holds. All that was told must be there, or it is another disk, and nothing changes.
    fn on_reread(&mut self, rows: Vec<(Vec<u8>, Vec<u8>)>, now: Time) {
        if self.broken.is_none() || !self.flights.is_empty() {
            return;
        }
        let read = |(key, value): (Vec<u8>, Vec<u8>)| {
            let name = Name::from_bytes(&key).ok()?;
            Some((name, Row::decode(name, &value).ok()?))
        };
        let held: BTreeMap<Name, Row> = rows.into_iter().filter_map(read).collect();
        let is_there = |entry: &Entry| {
            let row = held.get(&entry.name);
            let (floor, revision) = row.map_or((None, 0), |row| (row.floor, row.revision()));
            floor >= entry.told.floor && revision >= entry.told.revision()
        };
        if !self.entries.values().all(is_there) {
            return;
        }
        self.broken = None;
        for (name, row) in held {
            self.revision = self.revision.max(row.revision());
            let Some(entry) = self.entries.get(&name) else {
                continue;
            };
            // What was refused may be there all the same: it is told as what is written now.
            let changed = (row.best != entry.told.best).then_some(Effect::Changed);
            let completed = (row.complete != entry.told.complete).then_some(Effect::Completed);
            let effects = changed.into_iter().chain(completed);
            self.change(name, |wish| *wish = row, effects, now);
        }
        for name in self.entries.keys().copied().collect::<Vec<_>>() {
            // What came meanwhile was not taken: it is asked for now.
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.pull_at = entry.pull_at.map(|_| now);
            }
            self.judge(name, now);
            self.arm(name, now);
        }
    }

    /// Whether something of the name is being judged or written, so that what is known of it may change at once.
    fn is_unsettled(&self, name: Name) -> bool {
        self.verifying.values().any(|v| v.is_of(name))
            || self
                .entries
                .get(&name)
                .is_some_and(|entry| entry.flight.is_some())
    }

    /// A record was judged, or a row is durable: what waited for that to end goes on.
    fn on_settled(&mut self, name: Name, now: Time) {
        self.end_lookup_if_answered(name, now);
        self.finish_query(name, now);
    }

    /// Lets happen what waited for `version` to be durable.
    fn settle(&mut self, name: Name, version: u64, now: Time) {
        while let Some(entry) = self.entries.get_mut(&name) {
            let is_ready = entry.effects.front().is_some_and(|(v, _)| *v <= version);
            if !is_ready {
                return;
            }
            if let Some((_, effect)) = entry.effects.pop_front() {
                self.apply(name, effect, now);
            }
        }
    }

    fn apply(&mut self, name: Name, effect: Effect, now: Time) {
        match effect {
            Effect::Tell(event) => self.outputs.push_back(Output::Event(event)),
            Effect::Changed => self.tell_changed(name, now),
            Effect::Completed => self.tell_complete(name),
            Effect::Done(id, done) => self.outputs.push_back(Output::Done {
                id,
                result: Ok(done),
            }),
            Effect::Verdict(token, verdict) => {
                self.outputs.push_back(Output::Verdict { token, verdict });
            }
            Effect::Spread(except) => self.spread_out(name, except, now),
        }
    }

    fn tell_changed(&mut self, name: Name, now: Time) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let Some(held) = entry.told.best.clone() else {
            return;
        };
        let said = entry.said.replace(held.record.clone());
        // The same value signed again, to live longer, is no change to those who watch.
        let same = said.as_ref().is_some_and(|said| {
            (said.sequence(), said.value()) == (held.record.sequence(), held.record.value())
        });
        let revision = entry.told.changed;
        self.answer_lookup(name, now);
        if !same && let Some(resolved) = self.resolve(&name, now) {
            self.outputs.push_back(Output::Event(Event::Changed {
                now: resolved,
                before: said.map(|said| said.sequence()),
                source: held.source,
                revision,
            }));
        }
    }

    fn tell_complete(&mut self, name: Name) {
        let complete = self
            .entries
            .get(&name)
            .and_then(|entry| Some((entry.told.complete.clone()?, entry.told.completed)));
        if let Some((version, revision)) = complete {
            self.outputs.push_back(Output::Event(Event::Complete {
                name,
                version,
                revision,
            }));
        }
    }

    /// Removes the record of a name that nobody keeps; its number stays, so that no reader is ever told an older one.
    fn forget_record(&mut self, name: Name, now: Time) {
        self.change(
            name,
            |row| {
                row.best = None;
                row.other = None;
                row.complete = None;
            },
            [],
            now,
        );
        self.leave(name);
        let floors = || self.entries.values().filter(|entry| !entry.is_name());
        if floors().count() > self.config.max_floors {
            let oldest = floors()
                .filter(|entry| entry.flight.is_none() && entry.name != name)
                .min_by_key(|entry| entry.told.revision())
                .map(|entry| entry.name);
            if let Some(oldest) = oldest {
                self.counters.floors_forgotten += 1;
                self.change(oldest, |row| *row = Row::default(), [], now);
            }
        }
    }

    /// Drops an entry that holds nothing, in memory and on disk.
    fn sweep(&mut self, name: Name) {
        let idle = self.entries.get(&name).is_some_and(|entry| {
            entry.told.is_empty() && entry.wish.is_empty() && entry.flight.is_none()
        });
        if idle && !self.lookups.contains_key(&name) {
            self.leave(name);
            if let Some(due) = self.entries.remove(&name).and_then(|entry| entry.due) {
                self.due.remove(&(due, name));
            }
        }
    }

    fn wall(&self, now: Time) -> Wall {
        self.clock.wall(now)
    }

    fn judge_all(&mut self, now: Time) {
        for name in self.entries.keys().copied().collect::<Vec<_>>() {
            self.judge(name, now);
            self.arm(name, now);
        }
    }

    /// Tells when a record passed its end of life or is valid again, and signs own ones anew in time.
    fn judge(&mut self, name: Name, now: Time) {
        let wall = self.wall(now);
        if let Some(entry) = self.entries.get_mut(&name) {
            let stale = entry.record().is_some_and(|record| record.is_expired(wall));
            if stale != entry.stale {
                entry.stale = stale;
                self.outputs
                    .push_back(Output::Event(Event::Stale { name, stale }));
            }
        }
        self.sign_anew_if_needed(name, now);
    }

    /// Enters the next moment at which something of this name is due.
    fn arm(&mut self, name: Name, now: Time) {
        let wall = self.wall(now);
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let in_wall = |end: Wall| {
            let left = end.since(wall);
            // A moment beyond what a sleep can be: the end of life is looked at once a month at least.
            now + left.min(MONTH) + Duration::from_nanos(1)
        };
        let end_of_life = entry
            .record()
            .filter(|_| !entry.stale)
            .map(|record| in_wall(record.validity()));
        let renewal = self.renewal_at(entry, wall).map(|at| {
            let at = in_wall(at);
            at.max(entry.resign_after)
        });
        let lookup = self.lookups.get(&name).map(|lookup| lookup.until);
        let due = [
            entry.owed_at,
            entry.announce_at,
            entry.pull_at,
            entry.dht_at,
            end_of_life,
            renewal,
            lookup,
        ]
        .into_iter()
        .flatten()
        .min();
        if due != entry.due {
            let before = entry.due;
            if let Some(before) = before {
                self.due.remove(&(before, name));
            }
            if let Some(due) = due {
                self.due.insert((due, name));
            }
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.due = due;
            }
        }
    }

    fn on_due(&mut self, name: Name, now: Time) {
        self.judge(name, now);
        self.on_routes_due(name, now);
        self.on_lookup_due(name, now);
    }
}

/// The longest that a look at a validity is put off.
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whether a route's answer says something about what is out there, which a restored book needs to know.
fn is_remote(source: Source) -> bool {
    source.peer().is_some()
}
