//! Names: the book between the disk, the peers, the topics and those who ask. The core decides (`gemba_names`); this carries.
//!
//! Rows go to the disk on one thread at a time, all that wait together in one transaction; signatures are checked on blocking threads.
//! What the book tells leaves through a broadcast that may lag: whoever lagged asks for what he missed by its number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Weak};
use std::time::Duration;

use gemba_gossip::{Buffer, Full, Mode, Subscription, Ticket, Topic, TopicOptions};
use gemba_names::kad::{Dht, Event as DhtEvent};
use gemba_names::wire::fetch::Answer;
use gemba_names::{
    Alarm, Behaviour as Carrier, BehaviourEvent, Change, Command, Core, Done, Event, Input,
    Inspection, Keypair, Name, Output, Record, Refused, ResolveError, Resolved, Source, Verdict,
};
use libp2p_identity::PeerId;
use tokio::sync::{broadcast, mpsc, oneshot};

use crate::api::types::Trouble;
use crate::config::Names as Settings;
use crate::daemon::command::Reply;
use crate::error::{Code, Fail};
use crate::keystore::Keystore;
use crate::meta::{Meta, Row, Stored, Table};
use crate::metrics::Figures;
use crate::names::{self, Marks};
use crate::repo::Layout;

/// Changes that wait for those who watch; beyond it they ask by number.
const TOLD: usize = 256;
/// Commands that may wait for the book.
const WAITING: usize = 1024;
/// How often the book hears what the wall clock shows.
const CLOCK: Duration = Duration::from_secs(10);
/// A record that nobody takes on its topic in this time is said again in its turn.
const ANNOUNCE: Duration = Duration::from_secs(5);
/// Between two tries to write the book after the disk refused it.
const TRY_DISK: Duration = Duration::from_secs(10);
/// Rows that are written for such a try.
const PROBE: usize = 16;
/// Most alarms that `status` shows, one a name; the one known longest goes.
const ALARMS: usize = 64;

/// What comes back from threads.
pub enum Fact {
    /// For the book.
    Input(Input),
    /// Rows are durable, or the disk refused them.
    Written(Vec<After>, Result<(), Fail>),
    /// The disk takes writes again, and this is the book on it; or it does not.
    Reread(Result<Vec<Stored>, Fail>),
}

/// Who waits for a row to be durable.
pub enum After {
    /// The book, by its ticket.
    Book(u64),
    /// Another flow.
    Flow(oneshot::Sender<Result<(), Fail>>),
}

/// What can be asked of the book.
pub enum Ask {
    /// A command.
    Run(Command, Reply<Result<Done, Fail>>),
    /// What a name points to; looked for where it is not known.
    Resolve(Name, Reply<Result<Resolved, Fail>>),
    /// The same from the book alone.
    Known(Name, Reply<Option<Resolved>>),
    /// The version that is whole here.
    Complete(Name, Reply<Option<Resolved>>),
    /// All that is known of a name.
    Inspect(Name, Reply<Option<Box<Inspection>>>),
    /// Its record.
    Record(Name, Reply<Option<Vec<u8>>>),
    /// All names.
    List(Reply<Vec<Inspection>>),
    /// What changed after that number, and what changes from now on, of one name or of all. One that nobody follows is followed as long as it is watched.
    Watch(Option<Name>, Option<u64>, Reply<Watch>),
    /// A key came to the keystore.
    KeyCame(Keypair),
    /// A key was removed from it.
    KeyGone(Name),
}

/// What a command waits for.
enum Waiter {
    Done(Reply<Result<Done, Fail>>),
    Resolved(Reply<Result<Resolved, Fail>>),
}

/// Where the outputs of the book go.
pub struct Routes<'a> {
    /// Peers of our own protocol and of Kubo's fetch.
    pub carrier: &'a mut Carrier,
    /// Topics, if pubsub is on.
    pub gossip: Option<&'a mut gemba_gossip::Behaviour>,
    /// The DHT, if this node takes part.
    pub dht: Option<&'a mut Dht>,
}

/// `names.push`, `names.pubsub` and `names.dht`: by which routes names are told and looked for. What others ask is answered all the same.
#[derive(Clone, Copy)]
struct By {
    push: bool,
    pubsub: bool,
    dht: bool,
}

/// See the module's text.
pub struct Names {
    core: Core,
    keys: BTreeMap<Name, Keypair>,
    meta: Arc<Meta>,
    facts: mpsc::Sender<Fact>,
    /// Rows that wait for the disk, with their tickets. Bounded by the names in the book: one row a name is under way.
    rows: Vec<(After, Row)>,
    marks: Arc<std::sync::Mutex<Marks>>,
    /// Numbers that are durable and not noted yet.
    noted: BTreeMap<Name, u64>,
    writing: bool,
    waiting: HashMap<u64, Waiter>,
    next_id: u64,
    told: broadcast::Sender<Change>,
    /// Names that somebody watches. Bounded by the subscriptions of the API.
    watched: HashMap<Name, Weak<()>>,
    /// Names that are followed for good.
    follows: BTreeSet<Name>,
    topics: HashMap<Name, Subscription>,
    tickets: HashMap<u64, Ticket>,
    next_token: u64,
    clock_at: Duration,
    /// Whether the DHT has to be told what time it is.
    clock_told: bool,
    /// Which routes are taken.
    by: By,
    alarms: Vec<(Name, String, Duration)>,
    /// When to try next whether the disk takes the book, while it does not.
    try_disk_at: Duration,
}

impl Names {
    /// The persisted book, and the keys of this device.
    ///
    /// # Errors
    /// The disk's; a key that cannot be read.
    pub fn new(
        (layout, settings): (&Layout, &Settings),
        meta: Arc<Meta>,
        follows: impl IntoIterator<Item = Name>,
        facts: mpsc::Sender<Fact>,
    ) -> Result<Self, Fail> {
        let (core, damaged) = names::load(layout, &meta, settings)?;
        for row in damaged {
            tracing::error!(error = %row.error, "a row of the book of names is damaged: the name is looked for anew, and nothing is published under it until a peer was heard");
        }
        let keys = Keystore::of(layout).keys()?;
        let mut names = Self {
            core,
            keys: keys
                .into_iter()
                .map(|(key, keypair)| (key.name, keypair))
                .collect(),
            meta,
            facts,
            rows: Vec::new(),
            marks: Arc::new(std::sync::Mutex::new(Marks::open(layout.names_marks()))),
            noted: BTreeMap::new(),
            writing: false,
            waiting: HashMap::new(),
            next_id: 0,
            told: broadcast::channel(TOLD).0,
            watched: HashMap::new(),
            follows: BTreeSet::new(),
            topics: HashMap::new(),
            tickets: HashMap::new(),
            next_token: 0,
            clock_at: Duration::ZERO,
            clock_told: false,
            by: By {
                push: settings.push,
                pubsub: settings.pubsub,
                dht: settings.dht,
            },
            alarms: Vec::new(),
            try_disk_at: Duration::ZERO,
        };
        names.feed(Input::Clock(names::wall_clock()), Duration::ZERO);
        names.give_up_names_without_keys();
        for name in follows {
            names.follow(name, Duration::ZERO);
        }
        Ok(names)
    }

    /// A key may have been removed while no daemon ran.
    fn give_up_names_without_keys(&mut self) {
        let own = self.core.names().filter(|(_, own, _)| *own);
        let gone: Vec<Name> = own
            .map(|(name, ..)| name)
            .filter(|name| !self.keys.contains_key(name))
            .collect();
        for name in gone {
            tracing::warn!(%name, "the key of a name is gone: nothing is published under it any more");
            self.command(Command::Disown(name), None, Duration::ZERO);
        }
    }

    fn feed(&mut self, input: Input, now: Duration) {
        // Facts are never refused.
        let _ = self.core.handle(input, now);
    }

    /// Gives the book a command; the waiter is answered when it is done.
    fn command(&mut self, command: Command, waiter: Option<Waiter>, now: Duration) {
        self.next_id += 1;
        let id = self.next_id;
        if self.waiting.len() >= WAITING {
            let fail = Fail::new(
                Code::Conflict,
                "too many commands wait for the book of names",
            );
            return answer(waiter, fail.hint("repeat the command in a moment"));
        }
        match self.core.handle(Input::Command { id, command }, now) {
            Ok(()) => drop(waiter.map(|waiter| self.waiting.insert(id, waiter))),
            Err(refusal) => answer(waiter, names::refused(&refusal)),
        }
    }

    /// Runs a command of the book.
    fn run(&mut self, command: Command, reply: Reply<Result<Done, Fail>>, now: Duration) {
        // The key may be here and its name not yet in the book.
        if let Command::Publish(publish) = &command
            && self.keys.contains_key(&publish.name)
        {
            self.command(Command::Own(publish.name), None, now);
        }
        self.command(command, Some(Waiter::Done(reply)), now);
    }

    /// Everything after that number, and then what comes.
    fn watch(&mut self, name: Option<Name>, after: Option<u64>, now: Duration) -> Watch {
        let receiver = self.told.subscribe();
        let revision = self.core.revision();
        // A cursor of another book, such as the one before a backup was put back, would hide all changes up to it: everything is told anew.
        let after = after.map(|after| if after > revision { 0 } else { after });
        Watch {
            _interest: name.map(|name| self.interest_in(name, now)),
            missed: after.map_or(Vec::new(), |after| self.core.changes_after(after, now)),
            after: after.unwrap_or(revision),
            receiver,
        }
    }

    /// Has the book follow a name as long as the result lives.
    fn interest_in(&mut self, name: Name, now: Duration) -> Arc<()> {
        if let Some(interest) = self.watched.get(&name).and_then(Weak::upgrade) {
            return interest;
        }
        let interest = Arc::new(());
        self.watched.insert(name, Arc::downgrade(&interest));
        if self.core.roles(&name) == (false, false) {
            self.command(Command::Follow(name), None, now);
        }
        interest
    }

    /// Names that are to be followed and are not: the book refused it when it had no room, too much to do, or no disk.
    fn follow_wanted(&mut self, now: Duration) {
        if self.core.disk_failure().is_some() {
            return;
        }
        let follows = self.follows.iter().filter(|name| !self.is_followed(name));
        let watched = self.watched.keys();
        let watched = watched.filter(|name| self.core.roles(name) == (false, false));
        let wanted: BTreeSet<Name> = follows.chain(watched).copied().collect();
        for name in wanted {
            self.command(Command::Follow(name), None, now);
        }
    }

    /// Names that are followed only because somebody watched them.
    fn give_up_unwatched(&mut self, now: Duration) {
        self.watched
            .retain(|_, interest| interest.strong_count() > 0);
        let followed = self.core.names().filter(|(.., followed)| *followed);
        let idle: Vec<Name> = followed
            .map(|(name, ..)| name)
            .filter(|name| !self.watched.contains_key(name) && !self.follows.contains(name))
            .collect();
        for name in idle {
            self.command(Command::Unfollow(name), None, now);
        }
    }

    /// Whether the key of a name is here, and the book knows it.
    #[must_use]
    pub fn is_own(&self, name: &Name) -> bool {
        self.core.roles(name).0
    }

    fn is_followed(&self, name: &Name) -> bool {
        self.core.roles(name).1
    }

    /// A key was removed from the keystore.
    fn on_key_gone(&mut self, name: &Name, now: Duration) {
        self.keys.remove(name);
        if self.is_own(name) {
            self.command(Command::Disown(*name), None, now);
        }
    }

    /// What a thread brought.
    pub fn on_fact(&mut self, fact: Fact, now: Duration) {
        match fact {
            Fact::Input(input) => self.feed(input, now),
            Fact::Written(waiting, outcome) => {
                self.writing = false;
                for after in waiting {
                    match after {
                        After::Book(ticket) => {
                            let result = outcome.clone().map_err(|fail| fail.cause);
                            self.feed(Input::Persisted { ticket, result }, now);
                        }
                        After::Flow(reply) => drop(reply.send(outcome.clone())),
                    }
                }
            }
            Fact::Reread(outcome) => {
                self.writing = false;
                match outcome {
                    Ok(rows) => self.on_reread(rows, now),
                    Err(fail) => {
                        tracing::debug!(error = %fail, "the book of names cannot be written yet");
                    }
                }
            }
        }
    }

    /// Tries whether the disk takes the book again, now and then while it does not.
    fn try_disk(&mut self, now: Duration) {
        let is_broken = self.core.disk_failure().is_some();
        if !is_broken || self.writing || !self.rows.is_empty() || now < self.try_disk_at {
            return;
        }
        self.try_disk_at = now + TRY_DISK;
        self.writing = true;
        let meta = Arc::clone(&self.meta);
        self.on_thread(move || Fact::Reread(reread(&meta)));
    }

    fn on_reread(&mut self, rows: Vec<Stored>, now: Duration) {
        self.feed(Input::Reread(rows), now);
        if self.core.disk_failure().is_some() {
            return tracing::error!(
                "what the disk holds of the book of names is not what was told: start the daemon again"
            );
        }
        tracing::info!("the disk takes the book of names again");
        // Wishes of meanwhile were refused.
        self.follow_wanted(now);
    }

    /// Has a row of another flow written, in its turn with those of the book.
    pub fn write(&mut self, row: Row) -> oneshot::Receiver<Result<(), Fail>> {
        let (reply, written) = oneshot::channel();
        self.rows.push((After::Flow(reply), row));
        written
    }

    /// Runs a command of the book for another flow.
    pub fn run_for(&mut self, command: Command, reply: Reply<Result<Done, Fail>>, now: Duration) {
        self.command(command, Some(Waiter::Done(reply)), now);
    }

    /// Follows a name for good.
    pub fn follow(&mut self, name: Name, now: Duration) {
        self.follows.insert(name);
        if !self.is_followed(&name) {
            self.command(Command::Follow(name), None, now);
        }
    }

    /// No longer; those who watch it are told on.
    pub fn unfollow(&mut self, name: Name, now: Duration) {
        self.follows.remove(&name);
        self.give_up_unwatched(now);
    }

    /// What a name points to, from the book.
    #[must_use]
    pub fn newest(&self, name: &Name, now: Duration) -> Option<Resolved> {
        self.core.resolve(name, now)
    }

    /// What names of this device point to and is not told to be whole here.
    pub fn own_incomplete(&self, now: Duration) -> Vec<Resolved> {
        let own = self.core.names().filter(|(_, own, _)| *own);
        own.filter_map(|(name, ..)| self.core.resolve(&name, now))
            .filter(|newest| !newest.complete)
            .collect()
    }

    /// The version that is whole here.
    #[must_use]
    pub fn complete(&self, name: &Name, now: Duration) -> Option<Resolved> {
        self.core.resolve_complete(name, now)
    }

    /// What peers said.
    pub fn on_carried(&mut self, event: BehaviourEvent, now: Duration) {
        match event {
            BehaviourEvent::Connected(_)
            | BehaviourEvent::Disconnected(_)
            | BehaviourEvent::Message { .. }
                if !self.by.push => {}
            BehaviourEvent::Connected(peer) => self.feed(Input::Connected(peer), now),
            BehaviourEvent::Disconnected(peer) => self.feed(Input::Disconnected(peer), now),
            BehaviourEvent::Message { peer, message } => {
                self.feed(Input::Message { peer, message }, now);
            }
            BehaviourEvent::Asked { name, reply, .. } => {
                let record = self.core.serve(&name.routing_key(), now);
                reply.send(record.map(|record| record.bytes().to_vec()));
            }
            BehaviourEvent::Fetched { peer, name, answer } => {
                let source = Source::Fetch(peer);
                match answer {
                    Answer::Record(bytes) => self.feed(
                        Input::Record {
                            name,
                            bytes,
                            source,
                            token: None,
                        },
                        now,
                    ),
                    Answer::NotFound => self.feed(Input::NoRecord { name, source }, now),
                    // Nobody was heard: that is no answer (specs/names.md NA-18).
                    Answer::Error => {}
                }
            }
            _ => {}
        }
    }

    /// What the DHT brought. A record that a peer put here is taken like an answer: its name may be followed.
    pub fn on_dht(&mut self, event: DhtEvent, now: Duration) {
        match event {
            _ if !self.by.dht => {}
            DhtEvent::Servers(0) => self.feed(Input::Dht(false), now),
            DhtEvent::Servers(count) => {
                tracing::debug!(servers = count, "the DHT has more servers");
                self.feed(Input::Dht(true), now);
                self.feed(Input::DhtGrew, now);
            }
            DhtEvent::Answer { name, peer, record } => {
                let source = Source::Dht(peer);
                let input = match record {
                    Some(bytes) => Input::Record {
                        name,
                        bytes,
                        source,
                        token: None,
                    },
                    None => Input::NoRecord { name, source },
                };
                self.feed(input, now);
            }
            DhtEvent::Got { name, outcome } => {
                if let Err(cause) = outcome {
                    tracing::debug!(%name, %cause, "the DHT was asked for a name");
                }
                self.feed(Input::DhtDone { name }, now);
            }
            DhtEvent::Put { record, outcome } => match outcome {
                Ok(servers) => {
                    tracing::debug!(name = %record.name(), sequence = record.sequence(), servers, "a record is in the DHT");
                }
                // It is put again in its turn, and when more servers are known.
                Err(cause) => {
                    tracing::info!(name = %record.name(), sequence = record.sequence(), %cause, "a record could not be put into the DHT");
                }
            },
            DhtEvent::Stored { peer, record } => self.feed(
                Input::Record {
                    name: record.name(),
                    bytes: record.bytes().to_vec(),
                    source: Source::Dht(peer),
                    token: None,
                },
                now,
            ),
            _ => {}
        }
    }

    /// A message of a topic waits for a verdict. Returns the ticket if it is none that the book reads.
    pub fn on_validate(
        &mut self,
        ticket: Ticket,
        message: &gemba_gossip::Message,
        now: Duration,
    ) -> Option<Ticket> {
        let (Ok(name), Some(peer)) = (
            Name::from_topic(message.topic.as_str()),
            message.received_from,
        ) else {
            return Some(ticket);
        };
        // Somebody on this device reads the topic for himself.
        if !self.topics.contains_key(&name) {
            return Some(ticket);
        }
        self.next_token += 1;
        self.tickets.insert(self.next_token, ticket);
        self.feed(
            Input::Record {
                name,
                bytes: message.data.to_vec(),
                source: Source::Topic(peer),
                token: Some(self.next_token),
            },
            now,
        );
        None
    }

    /// A neighbour reads a topic, or no longer.
    pub fn on_topic_peer(&mut self, topic: &Topic, peer: PeerId, joined: bool, now: Duration) {
        if let (true, Ok(name)) = (self.by.pubsub, Name::from_topic(topic.as_str())) {
            self.feed(Input::TopicPeer { name, peer, joined }, now);
        }
    }

    /// When to call [`Names::expire`] next.
    pub fn deadline(&self) -> Duration {
        let clock = self.clock_at + CLOCK;
        self.core.deadline().map_or(clock, |due| due.min(clock))
    }

    /// Lets time pass.
    pub fn expire(&mut self, now: Duration) {
        if now >= self.clock_at + CLOCK {
            self.clock_at = now;
            self.clock_told = false;
            self.feed(Input::Clock(names::wall_clock()), now);
        }
        self.core.expire(now);
    }

    /// What is done on the loop's tick.
    pub fn tick(&mut self, now: Duration) {
        self.expire(now);
        self.try_disk(now);
        self.give_up_unwatched(now);
        self.follow_wanted(now);
        self.note_marks();
    }

    /// Answers what can be asked, or passes it on to the book.
    pub fn on_ask(&mut self, ask: Ask, now: Duration) {
        match ask {
            Ask::Run(command, reply) => self.run(command, reply, now),
            Ask::Resolve(name, reply) => {
                self.command(Command::Resolve(name), Some(Waiter::Resolved(reply)), now);
            }
            Ask::Known(name, reply) => drop(reply.send(self.core.resolve(&name, now))),
            Ask::Complete(name, reply) => drop(reply.send(self.core.resolve_complete(&name, now))),
            Ask::Inspect(name, reply) => {
                drop(reply.send(self.core.inspect(&name, now).map(Box::new)));
            }
            Ask::Record(name, reply) => {
                let record = self.core.record(&name);
                let _gone = reply.send(record.map(|record| record.bytes().to_vec()));
            }
            Ask::List(reply) => drop(reply.send(self.list(now))),
            Ask::Watch(name, after, reply) => drop(reply.send(self.watch(name, after, now))),
            Ask::KeyCame(keypair) => drop(self.keys.insert(Name::of(&keypair.public()), keypair)),
            Ask::KeyGone(name) => self.on_key_gone(&name, now),
        }
    }

    /// The names of which something is known, as they are.
    fn list(&self, now: Duration) -> Vec<Inspection> {
        let names = self.core.names();
        names
            .filter_map(|(name, ..)| self.core.inspect(&name, now))
            .collect()
    }

    /// Carries out what the book wants. Called after every action.
    pub fn settle(&mut self, routes: &mut Routes<'_>, now: Duration) -> Vec<Event> {
        let mut events = Vec::new();
        if let (false, Some(dht)) = (self.clock_told, routes.dht.as_mut()) {
            self.clock_told = true;
            dht.set_wall(self.core.wall_clock(now));
        }
        while let Some(output) = self.core.poll() {
            if let Some(event) = self.carry_out(output, routes, now) {
                events.push(event);
            }
        }
        self.write_next();
        events
    }

    fn carry_out(
        &mut self,
        output: Output,
        routes: &mut Routes<'_>,
        now: Duration,
    ) -> Option<Event> {
        match output {
            Output::Sign {
                ticket,
                name,
                unsigned,
            } => {
                // Some 20 µs, for a command of this device.
                let result = self
                    .keys
                    .get(&name)
                    .ok_or_else(|| "its key is not on this device".to_owned())
                    .and_then(|key| unsigned.sign(key).map_err(|e| e.to_string()));
                self.feed(Input::Signed { ticket, result }, now);
            }
            Output::Verify { ticket, candidate } => self.on_thread(move || {
                let result = candidate.verify();
                Fact::Input(Input::Verified { ticket, result })
            }),
            Output::Persist { ticket, key, value } => {
                let table = Table::Names;
                self.rows
                    .push((After::Book(ticket), Row { table, key, value }));
            }
            Output::Mark { name, sequence } => drop(self.noted.insert(name, sequence)),
            Output::Done { id, result } => {
                if let Some(Waiter::Done(reply)) = self.waiting.remove(&id) {
                    let _gone = reply.send(result.map_err(|e: Refused| names::refused(&e)));
                }
            }
            Output::Resolved { id, result } => {
                if let Some(Waiter::Resolved(reply)) = self.waiting.remove(&id) {
                    let _gone = reply.send(result.map_err(|e: ResolveError| names::unresolved(&e)));
                }
            }
            Output::Event(event) => {
                self.tell(&event, now);
                return Some(event);
            }
            Output::Send { peer, message } => routes.carrier.send(peer, &message),
            Output::Fetch { name, peer } => routes.carrier.fetch(peer, name),
            Output::Join(name) => self.join(name, routes, now),
            Output::Leave(name) => drop(self.topics.remove(&name)),
            Output::Announce(record) => announce(&record, routes),
            Output::DhtGet(name) => match routes.dht.as_mut() {
                Some(dht) => dht.get(name),
                None => self.feed(Input::DhtDone { name }, now),
            },
            Output::DhtPut { record, peers } => {
                if let Some(dht) = routes.dht.as_mut() {
                    dht.put(record, peers);
                }
            }
            Output::Verdict { token, verdict } => {
                if let (Some(ticket), Some(gossip)) =
                    (self.tickets.remove(&token), routes.gossip.as_mut())
                {
                    gossip.validated(ticket, verdict_of(verdict));
                }
            }
            Output::Misbehaved { peer, cause } => {
                tracing::warn!(%peer, %cause, "a peer sends records that are none, and is not listened to for a while");
            }
        }
        None
    }

    fn on_thread(&self, work: impl FnOnce() -> Fact + Send + 'static) {
        let facts = self.facts.clone();
        tokio::task::spawn_blocking(move || {
            let _loop_ended = facts.blocking_send(work());
        });
    }

    /// All rows that wait go to the disk together; those that come meanwhile are the next batch.
    fn write_next(&mut self) {
        if self.writing || self.rows.is_empty() {
            return;
        }
        self.writing = true;
        let (waiting, rows): (Vec<After>, Vec<Row>) =
            std::mem::take(&mut self.rows).into_iter().unzip();
        let meta = Arc::clone(&self.meta);
        self.on_thread(move || Fact::Written(waiting, meta.write_rows(&rows)));
    }

    /// Marks follow the rows, once a second at most: they may be lost.
    fn note_marks(&mut self) {
        if self.noted.is_empty() {
            return;
        }
        let (marks, noted) = (Arc::clone(&self.marks), std::mem::take(&mut self.noted));
        tokio::task::spawn_blocking(move || {
            let mut marks = marks
                .lock()
                .unwrap_or_else(std::sync::PoisonError::into_inner);
            if let Err(error) = marks.note(noted) {
                tracing::warn!(%error, "what was published is not noted beside the book");
            }
        });
    }

    /// Reads the topic of a name, so that its records are judged here and passed on; what is delivered nobody reads.
    fn join(&mut self, name: Name, routes: &mut Routes<'_>, now: Duration) {
        let Some(gossip) = routes.gossip.as_mut().filter(|_| self.by.pubsub) else {
            return;
        };
        let Ok(topic) = Topic::new(name.topic()) else {
            return;
        };
        let buffer = Buffer {
            messages: 1,
            bytes: 1,
            full: Full::DropOldest,
        };
        let joined = gossip.subscribe_with(&topic, options(), buffer);
        match joined {
            Ok(subscription) => drop(self.topics.insert(name, subscription)),
            Err(error) => {
                tracing::debug!(%name, %error, "the topic of a name is not read; peers tell it all the same");
                return;
            }
        }
        for peer in gossip.subscribers(&topic) {
            self.feed(
                Input::TopicPeer {
                    name,
                    peer,
                    joined: true,
                },
                now,
            );
        }
    }

    fn tell(&mut self, event: &Event, now: Duration) {
        match event {
            Event::Changed {
                now: resolved,
                revision,
                source,
                ..
            } => {
                tracing::info!(name = %resolved.name, sequence = resolved.version.sequence, source = source.as_str(), "a name changed");
                // Nobody may be watching.
                let _ = self.told.send(Change {
                    revision: *revision,
                    completed: false,
                    now: resolved.clone(),
                });
            }
            Event::Complete { name, revision, .. } => {
                if let Some(resolved) = self.core.resolve_complete(name, now) {
                    tracing::info!(%name, sequence = resolved.version.sequence, "a version is whole on this device");
                    let _ = self.told.send(Change {
                        revision: *revision,
                        completed: true,
                        now: resolved,
                    });
                }
            }
            Event::Stale { name, stale } => {
                tracing::info!(%name, stale, "the record of a name passed its end of life, or is valid again");
            }
            Event::Alarm(alarm) => self.alarm(alarm, now),
        }
    }

    fn alarm(&mut self, alarm: &Alarm, now: Duration) {
        let (name, cause) = match alarm {
            Alarm::Equivocation { taken, other } => (
                taken.name(),
                format!(
                    "its key signed two values under number {}: {} is taken, the other is {}. Two devices hold the key, or it is stolen",
                    taken.sequence(),
                    names::value_text(taken.value()),
                    names::value_text(other.value())
                ),
            ),
            Alarm::ForeignPublisher { record, .. } => (
                record.name(),
                format!(
                    "another device published number {} under this device's key: one of the two must give it up",
                    record.sequence()
                ),
            ),
            Alarm::SequenceNearEnd { name, sequence } => (
                *name,
                format!(
                    "its numbers are nearly used up ({sequence}): make a new key and tell the followers"
                ),
            ),
            Alarm::Disk(cause) => {
                tracing::error!(%cause, "the book of names could not be written");
                return;
            }
        };
        tracing::error!(%name, %cause, "an alarm of a name");
        self.alarms.retain(|(known, ..)| *known != name);
        if self.alarms.len() >= ALARMS {
            self.alarms.remove(0);
        }
        self.alarms.push((name, cause, now));
    }

    /// Whether the disk takes the book.
    pub fn is_writable(&self) -> bool {
        self.core.disk_failure().is_none()
    }

    /// What an operator should look at.
    pub fn troubles(&self, now: Duration) -> Vec<Trouble> {
        let trouble = |address: String, kind: &str, cause: String, since: Duration| Trouble {
            address,
            peer: None,
            direction: "local".to_owned(),
            kind: kind.to_owned(),
            cause,
            age_s: now.saturating_sub(since).as_secs(),
            count: 1,
            retry_in_s: None,
        };
        let mut troubles: Vec<Trouble> = self
            .alarms
            .iter()
            .map(|(name, cause, since)| {
                trouble(format!("/ipns/{name}"), "name_alarm", cause.clone(), *since)
            })
            .collect();
        if let Some(cause) = self.core.disk_failure() {
            let cause = format!(
                "the book of names could not be written: {cause}; it is tried again every 10 s; free space, or look at the disk (`dmesg`)"
            );
            troubles.push(trouble(
                "names".to_owned(),
                "names_disk",
                cause,
                Duration::ZERO,
            ));
        }
        troubles
    }
}

/// Writes some of what the disk holds of the book, and reads all of it: after a failure the database is opened anew for that.
fn reread(meta: &Meta) -> Result<Vec<Stored>, Fail> {
    let rows = meta.rows(Table::Names)?;
    let some = rows.iter().take(PROBE).map(|(key, value)| Row {
        table: Table::Names,
        key: key.clone(),
        value: Some(value.clone()),
    });
    meta.write_rows(&some.collect::<Vec<_>>())?;
    meta.rows(Table::Names)
}

/// What `/metrics` shows of names.
pub fn figures(names: &Names, carrier: &Carrier, figures: &mut Figures) {
    let known = names.core.names().count() as u64;
    let gauge = i64::try_from(known).unwrap_or(i64::MAX);
    figures
        .gauges
        .push(("names_known", "Names in the book", None, gauge));
    let (book, carried) = (names.core.counters(), carrier.counters());
    let counted = [
        ("records", "Records that came by any route", book.records),
        (
            "verified",
            "Signatures of records that were checked",
            book.verified,
        ),
        ("taken", "Records that were the newest", book.taken),
        (
            "duplicates",
            "Copies of records that are known",
            book.duplicates,
        ),
        ("older", "Older records", book.older),
        ("expired", "Records past their end of life", book.expired),
        (
            "invalid",
            "Records that are none, or badly signed",
            book.invalid,
        ),
        (
            "unknown",
            "Records of names nobody here asked for",
            book.unknown,
        ),
        (
            "over_budget",
            "Records beyond what a peer may send",
            book.over_budget,
        ),
        (
            "overflow",
            "Records dropped because too many were being checked",
            book.overflow,
        ),
        (
            "announced",
            "Records sent to peers and said on topics",
            book.announced,
        ),
        (
            "suppressed",
            "Announcements left out because others made them",
            book.suppressed,
        ),
        (
            "equivocations",
            "Two values of a name under one number",
            book.equivocations,
        ),
        (
            "send_overflows",
            "Messages dropped because a peer did not take them",
            carried.overflows,
        ),
        (
            "malformed",
            "Messages of peers that were none",
            carried.malformed,
        ),
        (
            "streams_lost",
            "Streams to peers that broke off",
            carried.lost,
        ),
    ];
    let counted = counted.map(|(name, help, value)| (format!("names_{name}"), help, None, value));
    figures.counters.extend(counted);
}

impl Drop for Names {
    fn drop(&mut self) {
        let noted = std::mem::take(&mut self.noted);
        let mut marks = self
            .marks
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Err(error) = marks.note(noted) {
            tracing::warn!(%error, "what was published is not noted beside the book");
        }
    }
}

/// Changes from a number on: first those that were missed, then those that come.
pub struct Watch {
    /// What came before.
    pub missed: Vec<Change>,
    /// Everything up to here is known to whoever watches, once he has read `missed`.
    pub after: u64,
    /// What comes. Where it lags, [`Ask::Watch`] is asked again.
    pub receiver: broadcast::Receiver<Change>,
    _interest: Option<Arc<()>>,
}

/// For topics of names: every record is judged; Kubo says the same anew every minute.
#[must_use]
pub fn options() -> TopicOptions {
    TopicOptions::default()
        .with_validate(true)
        .with_max_bytes(gemba_names::MAX_RECORD_BYTES)
}

fn announce(record: &Record, routes: &mut Routes<'_>) {
    let Some(gossip) = routes.gossip.as_mut() else {
        return;
    };
    let Ok(topic) = Topic::new(record.name().topic()) else {
        return;
    };
    match gossip.publish(&topic, record.bytes().to_vec(), Mode::Wait(ANNOUNCE)) {
        Ok(publishing) => publishing.detach(),
        Err(error) => {
            tracing::debug!(name = %record.name(), %error, "a record was not said on its topic");
        }
    }
}

fn verdict_of(verdict: Verdict) -> gemba_gossip::Verdict {
    match verdict {
        Verdict::Accept => gemba_gossip::Verdict::Accept,
        Verdict::Ignore => gemba_gossip::Verdict::Ignore,
        Verdict::Reject => gemba_gossip::Verdict::Reject,
    }
}

fn answer(waiter: Option<Waiter>, fail: Fail) {
    match waiter {
        Some(Waiter::Done(reply)) => drop(reply.send(Err(fail))),
        Some(Waiter::Resolved(reply)) => drop(reply.send(Err(fail))),
        None => tracing::debug!(error = %fail, "the book of names refused a command"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::repo::{Access, Repo};
    use gemba_names::{Unsigned, Wall};

    const NOW: Duration = Duration::from_secs(1);

    /// The flow over a repository of its own, whose threads bring what they bring when the test says so.
    struct Flow {
        names: Names,
        facts: mpsc::Receiver<Fact>,
        carrier: Carrier,
        key: Keypair,
        _dir: tempfile::TempDir,
    }

    impl Flow {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let layout = Layout::new(dir.path().join("repo"));
            drop(Repo::init(layout.root(), &Default::default()).unwrap());
            let state = dir.path().join("meta");
            std::fs::create_dir(&state).unwrap();
            Meta::create(&state).unwrap();
            let meta = Arc::new(Meta::open(&state, Access::Write).unwrap());
            let settings = Config::resolve("", []).unwrap().names;
            let (facts_in, facts) = mpsc::channel(16);
            Self {
                names: Names::new((&layout, &settings), meta, [], facts_in).unwrap(),
                facts,
                carrier: Carrier::new(),
                key: Keypair::ed25519_from_bytes([7; 32]).unwrap(),
                _dir: dir,
            }
        }

        fn name(&self) -> Name {
            Name::of(&self.key.public())
        }

        /// What the book wants is begun; what comes of it is not heard.
        fn begin(&mut self) {
            let mut routes = Routes {
                carrier: &mut self.carrier,
                gossip: None,
                dht: None,
            };
            self.names.settle(&mut routes, NOW);
        }

        /// Until nothing is on its way to the disk.
        async fn settle(&mut self) {
            self.begin();
            while self.names.writing {
                let fact = self.facts.recv().await.unwrap();
                self.names.on_fact(fact, NOW);
                self.begin();
            }
        }

        /// A peer tells a version, which is judged and written.
        async fn hear(&mut self) {
            let unsigned = Unsigned::new("/ipfs/bafkqaaa", 1, Wall::from_unix(4_000_000_000, 0));
            let record = unsigned.sign(&self.key).unwrap();
            let event = BehaviourEvent::Fetched {
                peer: PeerId::random(),
                name: self.name(),
                answer: Answer::Record(record.bytes().to_vec()),
            };
            self.names.on_carried(event, NOW);
            self.begin();
            let verified = self.facts.recv().await.unwrap();
            self.names.on_fact(verified, NOW);
            self.settle().await;
            assert!(self.names.newest(&self.name(), NOW).is_some());
        }
    }

    /// Whoever watched a name comes again before it is durable that nobody watches it: the name is followed, as the book is to have it and not as it still lies
    /// on the disk.
    #[tokio::test]
    async fn s0_23_who_watches_again_at_once_is_told_what_comes() {
        let mut flow = Flow::new();
        let name = flow.name();
        let watch = flow.names.watch(Some(name), None, NOW);
        flow.settle().await;
        flow.hear().await;
        drop(watch);
        flow.names.tick(NOW);
        flow.begin();
        assert!(flow.names.writing);
        let _again = flow.names.watch(Some(name), None, NOW);
        flow.settle().await;
        assert!(flow.names.is_followed(&name));
        flow.names.tick(NOW);
        flow.settle().await;
        assert!(flow.names.is_followed(&name));
    }

    /// A book that has too much to do refuses to follow a name; it follows it when it has time.
    #[tokio::test]
    async fn s0_23_what_the_book_refused_to_follow_it_follows_later() {
        let mut flow = Flow::new();
        let other = Keypair::ed25519_from_bytes([8; 32]).unwrap();
        let (name, other) = (flow.name(), Name::of(&other.public()));
        for id in 0..WAITING as u64 {
            let (reply, _nobody) = oneshot::channel();
            flow.names.waiting.insert(id, Waiter::Done(reply));
        }
        flow.names.follow(name, NOW);
        let _watch = flow.names.watch(Some(other), None, NOW);
        assert!(!flow.names.is_followed(&name));
        flow.names.waiting.clear();
        flow.names.tick(NOW);
        flow.settle().await;
        assert!(flow.names.is_followed(&name) && flow.names.is_followed(&other));
    }
}
