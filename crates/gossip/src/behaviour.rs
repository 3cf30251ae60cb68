//! The driver: joins the [`Core`] to the swarm. It decides nothing.

use std::collections::{HashMap, HashSet, VecDeque};
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures::FutureExt;
use futures::channel::oneshot;
use libp2p_core::transport::PortUse;
use libp2p_core::{Endpoint, Multiaddr};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::behaviour::{ConnectionClosed, ConnectionEstablished, FromSwarm};
use libp2p_swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
};

use crate::config::{Config, TopicOptions};
use crate::core::{
    CloseCause, Core, Event, Health, Input, Load, Mode, Output, PeerReport, PublishId, Receipt,
    Ticket, Time, Verdict,
};
use crate::error::{PublishError, SubscribeError};
use crate::handler::{
    Clock, Epoch, Fact, HandClock, Handler, News, Outbox, ReceivePool, Shared, Sleep, lock,
};
use crate::message::{Message, Topic};
use crate::metrics::Counters;
use crate::seen::{Seen, SeenCounters};
use crate::sequence::{AuthorNumber, MemorySequence, ReplayStore, SequenceStore};
use crate::subscription::{Bell, Buffer, Publishing, Sender, Subscription, channel};
use crate::verify::{Done, Pool};
use crate::wire::Author;

type Action = ToSwarm<BehaviourEvent, Infallible>;

/// Gossip of one node, mounted in a swarm.
///
/// ```
/// use std::time::Duration;
/// use gemba_gossip::{Behaviour, Buffer, Config, Mode, Topic};
/// use libp2p_identity::Keypair;
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let mut gossip = Behaviour::new(Keypair::generate_ed25519(), Config::default())?;
/// let topic = Topic::new("line-1/alarms")?;
/// let mut alarms = gossip.subscribe(&topic, Buffer::default())?;
/// // Kept until a neighbour subscribes. The future, if one wants to wait for it, says what became of the message.
/// let hold = Mode::Hold(Duration::from_secs(60));
/// gossip.publish(&topic, "pressure low", hold)?.detach();
/// // And now into a swarm, whose polling makes things happen.
/// assert!(alarms.try_next().is_none());
/// # Ok(())
/// # }
/// ```
pub struct Behaviour {
    core: Core,
    seen: Arc<Mutex<Seen>>,
    key: Option<Arc<Keypair>>,
    clock: Clock,
    receive: Arc<ReceivePool>,
    links: HashMap<PeerId, Link>,
    /// Peers that are not let in before then. At most [`MAX_SHUT_OUT`].
    shut_out: HashMap<PeerId, Time>,
    /// Where direct peers, and those that stalled, are found. At most [`MAX_ADDRESSES`] each.
    places: HashMap<PeerId, Vec<Multiaddr>>,
    readers: HashMap<Topic, Readers>,
    validators: HashMap<Topic, Validator>,
    /// Who wants to know what became of an own message. Bounded by [`Config::own_messages`].
    publishing: HashMap<PublishId, oneshot::Sender<Result<Receipt, PublishError>>>,
    bell: Arc<Bell>,
    pool: Pool,
    sequence: Place,
    /// Where numbers of others are kept; away while something is saved, or if none is.
    authors: Option<Box<dyn ReplayStore>>,
    /// What is saved next. At most [`Config::authors`].
    grown: HashMap<Box<[u8]>, u64>,
    /// Whether the store was asked what it holds, and whether it answered.
    started: bool,
    loaded: bool,
    /// Connections to be made again, and news of the sequence store. Bounded by the number of peers.
    actions: VecDeque<Action>,
    lagged: u64,
    timer: Option<(Time, Sleep)>,
    waker: Option<Waker>,
    /// When what is done once a second was done.
    marked: Time,
}

/// How often it is looked which connections are worth keeping, and what is to be saved.
const MARK: Duration = Duration::from_secs(1);
/// So long a new connection is kept, whatever its peer reads: it has to say so first.
const GRACE: Duration = Duration::from_secs(10);
/// Addresses of a direct peer; the one known longest leaves.
const MAX_ADDRESSES: usize = 8;
/// Peers whose addresses are kept; beyond that only those of direct ones.
const MAX_PLACES: usize = 256;
/// Banned peers that are refused at the door; others are closed again by the core.
const MAX_SHUT_OUT: usize = 4096;

/// Judges messages of a topic, on a worker; see [`Behaviour::set_validator`].
pub type Validator = Arc<dyn Fn(&Message) -> Verdict + Send + Sync>;

/// Where the sequence store is.
enum Place {
    Here(Box<dyn SequenceStore>),
    /// On a thread that loads or reserves.
    Away,
    /// Not readable: nothing signed is published.
    Lost,
}

/// A connected peer.
#[derive(Default)]
struct Link {
    outbox: Arc<Outbox>,
    /// The first has the stream.
    connections: Vec<ConnectionId>,
    /// Got a handler, but another behaviour may still refuse them.
    pending: Vec<ConnectionId>,
    /// When the first was made.
    since: Time,
    /// The present stream, asked for or open.
    epoch: Option<Epoch>,
    /// Where we reached it.
    address: Option<Multiaddr>,
    /// Its connections are being closed because it stalled: connect again after that.
    redial: bool,
}

/// Who reads a topic.
#[derive(Default)]
struct Readers {
    senders: Vec<Sender>,
    /// Messages come as events, too.
    events: bool,
}

/// What the owner of the behaviour is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum BehaviourEvent {
    /// A message of a topic that is listened to ([`Behaviour::listen`]).
    Message(Message),
    /// A message of a topic with [`TopicOptions::validate`] and without a validator: answer with [`Behaviour::validated`].
    Validate {
        /// To be given back.
        ticket: Ticket,
        /// What.
        message: Message,
        /// After this the answer is too late.
        deadline: Duration,
    },
    /// What happened, for operators and for those who find peers.
    Report(Event),
    /// The store of sequence numbers failed. If it could not be read, nothing signed is published until the program is started with one
    /// that can; a reservation is tried again by itself.
    SequenceFailed {
        /// What the store said.
        error: io::Error,
        /// Whether it is tried again.
        again: bool,
    },
}

impl Behaviour {
    /// Gossip without peers, signed with `key`. Time starts now. Sequence numbers begin at the clock and are forgotten with the process:
    /// see [`with_sequence`](Self::with_sequence).
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn new(key: Keypair, config: Config) -> io::Result<Self> {
        Self::make(Some(key), config)
    }

    /// Gossip that publishes on unsigned topics only.
    ///
    /// # Errors
    /// If the operating system has no randomness.
    pub fn keyless(config: Config) -> io::Result<Self> {
        Self::make(None, config)
    }

    fn make(key: Option<Keypair>, config: Config) -> io::Result<Self> {
        let (mut secret, mut seed) = ([0; 32], [0; 8]);
        getrandom::fill(&mut secret)?;
        getrandom::fill(&mut seed)?;
        let author = key.as_ref().map(|key| Author::new(&key.public()));
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self {
            seen: Arc::new(Mutex::new(Seen::new(config.seen(), secret))),
            receive: ReceivePool::new(config.receive_bytes()),
            core: Core::new(config, author, u64::from_ne_bytes(seed)),
            key: key.map(Arc::new),
            clock: Clock::start(),
            links: HashMap::new(),
            shut_out: HashMap::new(),
            places: HashMap::new(),
            readers: HashMap::new(),
            validators: HashMap::new(),
            publishing: HashMap::new(),
            bell: Arc::default(),
            pool: Pool::new(threads),
            sequence: Place::Here(Box::new(MemorySequence::default())),
            authors: None,
            grown: HashMap::new(),
            started: false,
            loaded: false,
            actions: VecDeque::new(),
            lagged: 0,
            timer: None,
            waker: None,
            marked: Time::ZERO,
        })
    }

    /// Keeps sequence numbers in this store, so that they grow over restarts whatever the clock says. Before the first poll.
    #[must_use]
    pub fn with_sequence(mut self, store: impl SequenceStore + 'static) -> Self {
        self.sequence = Place::Here(Box::new(store));
        self
    }

    /// Keeps the highest numbers of authors in this store, so that a node that is started again does not deliver what its neighbours still
    /// echo. Before the first poll. Reads the store at once.
    ///
    /// What came within the last second before a kill or a power cut may be delivered once more. What is dropped in an orderly way saves
    /// everything.
    ///
    /// # Errors
    /// The store cannot be read.
    pub fn with_replay(mut self, mut store: impl ReplayStore + 'static) -> io::Result<Self> {
        let stored = store.load()?;
        self.handle(Input::AuthorsLoaded { stored });
        self.authors = Some(Box::new(store));
        Ok(self)
    }

    /// Verifies on at most so many threads. Default is the number of processors. Threads start when there is work.
    #[must_use]
    pub fn with_threads(mut self, threads: usize) -> Self {
        self.pool.set_most(threads);
        self
    }

    /// Says where a direct peer of the configuration is found; those of others are not kept. Direct peers that are not connected are dialled
    /// at once, and again after pauses that grow from 5 s to 5 min, here and wherever other behaviours of the swarm know them to be.
    pub fn add_direct_address(&mut self, peer: PeerId, address: Multiaddr) {
        if !self.core.config().direct().contains(&peer) {
            return;
        }
        let known = self.places.entry(peer).or_default();
        known.retain(|other| *other != address);
        known.push(address);
        if known.len() > MAX_ADDRESSES {
            known.remove(0);
        }
    }

    /// Goes by a clock that is turned by hand, for tests. Before the first poll.
    #[must_use]
    pub fn with_clock(mut self, clock: HandClock) -> Self {
        self.clock = Clock::Hand(clock);
        self
    }

    /// Subscribes, with what [`Config`] says of the topic. Any number of subscriptions of one topic may exist, each gets all messages.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn subscribe(
        &mut self,
        topic: &Topic,
        buffer: Buffer,
    ) -> Result<Subscription, SubscribeError> {
        self.join(topic, None)?;
        Ok(self.add_reader(topic, buffer))
    }

    /// Subscribes with settings of its own, which then hold for all subscriptions of the topic.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn subscribe_with(
        &mut self,
        topic: &Topic,
        options: TopicOptions,
        buffer: Buffer,
    ) -> Result<Subscription, SubscribeError> {
        self.join(topic, Some(options))?;
        Ok(self.add_reader(topic, buffer))
    }

    /// Subscribes, and has the messages come as [`BehaviourEvent::Message`], as libp2p-gossipsub does. Returns whether that is new.
    ///
    /// # Errors
    /// [`SubscribeError`].
    pub fn listen(&mut self, topic: &Topic) -> Result<bool, SubscribeError> {
        self.join(topic, None)?;
        let readers = self.readers.entry(topic.clone()).or_default();
        Ok(!std::mem::replace(&mut readers.events, true))
    }

    /// Leaves a topic: ends all its subscriptions. Returns whether there was one.
    pub fn unsubscribe(&mut self, topic: &Topic) -> bool {
        let there = self.readers.remove(topic).is_some();
        if there {
            let now = self.clock.now();
            self.core.unsubscribe(&mut lock(&self.seen), topic, now);
            self.wake();
        }
        there
    }

    /// Publishes. The time of [`Mode::Wait`] counts from this call. Never blocks; what becomes of the message is told by the future. If
    /// nobody wants to know, detach it: a message that waits is given up with its future.
    ///
    /// # Errors
    /// What is known at once, see [`PublishError`].
    pub fn publish(
        &mut self,
        topic: &Topic,
        data: impl Into<Bytes>,
        mode: Mode,
    ) -> Result<Publishing, PublishError> {
        let now = self.clock.now();
        let mode = match mode {
            Mode::Wait(time) => Mode::Wait(now.saturating_add(time)),
            other => other,
        };
        let mut seen = lock(&self.seen);
        let id = self
            .core
            .publish(&mut seen, topic, data.into(), mode, now)?;
        drop(seen);
        let (tell, answer) = oneshot::channel();
        self.publishing.insert(id, tell);
        self.wake();
        Ok(Publishing::new(id, answer, self.bell.clone()))
    }

    /// Judges messages of a topic with [`TopicOptions::validate`] by this function, on a worker. None: by [`BehaviourEvent::Validate`].
    pub fn set_validator(&mut self, topic: &Topic, validator: Option<Validator>) {
        match validator {
            Some(validator) => self.validators.insert(topic.clone(), validator),
            None => self.validators.remove(topic),
        };
    }

    /// Answers [`BehaviourEvent::Validate`].
    pub fn validated(&mut self, ticket: Ticket, verdict: Verdict) {
        self.handle(Input::Validated { ticket, verdict });
        self.wake();
    }

    /// Connected peers.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerId> {
        self.core.peers().collect()
    }

    /// Topics that are subscribed to.
    #[must_use]
    pub fn topics(&self) -> Vec<Topic> {
        self.core.subscriptions().collect()
    }

    /// Neighbours that subscribe to a topic.
    #[must_use]
    pub fn subscribers(&self, topic: &Topic) -> Vec<PeerId> {
        self.core.subscribers(topic)
    }

    /// Neighbours in the mesh of a topic.
    #[must_use]
    pub fn mesh(&self, topic: &Topic) -> Vec<PeerId> {
        self.core.mesh(topic)
    }

    /// How a topic fares; none for one that is of no interest here.
    #[must_use]
    pub fn health(&self, topic: &Topic) -> Option<Health> {
        self.core.health(topic)
    }

    /// What is known of a connected peer: why it is, or is not, written to.
    #[must_use]
    pub fn why(&self, peer: &PeerId) -> Option<PeerReport> {
        self.core.why(peer)
    }

    /// All counters but those of copies.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Counters of the cache, copies among them.
    #[must_use]
    pub fn seen_counters(&self) -> SeenCounters {
        lock(&self.seen).counters()
    }

    /// Messages that slow readers of subscriptions lost.
    #[must_use]
    pub fn lagged(&self) -> u64 {
        self.lagged
    }

    /// What is held in memory at the moment, by component, without what waits in subscriptions.
    #[must_use]
    pub fn load(&self) -> Load {
        self.core.load(&lock(&self.seen))
    }

    /// Messages and bytes that wait in subscriptions.
    #[must_use]
    pub fn waiting(&self) -> (usize, usize) {
        let senders = self.readers.values().flat_map(|r| &r.senders);
        senders.fold((0, 0), |(messages, bytes), sender| {
            let (m, b) = sender.load();
            (messages + m, bytes + b)
        })
    }

    /// Bytes that large RPCs hold on their way in, at most [`Config::receive_bytes`].
    #[must_use]
    pub fn receiving(&self) -> usize {
        self.receive.used()
    }

    /// Bytes of the tables by which the signatures of those who write much are checked, at most 2.5 MiB.
    #[must_use]
    pub fn tables(&self) -> usize {
        self.pool.tables()
    }

    /// Time since start, the scale of all reports.
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    fn join(&mut self, topic: &Topic, options: Option<TopicOptions>) -> Result<(), SubscribeError> {
        let now = self.clock.now();
        let mut seen = lock(&self.seen);
        match options {
            Some(options) => self.core.subscribe_with(&mut seen, topic, options, now)?,
            None if self.readers.contains_key(topic) => {}
            None => self.core.subscribe(&mut seen, topic, now)?,
        }
        drop(seen);
        self.wake();
        Ok(())
    }

    fn add_reader(&mut self, topic: &Topic, buffer: Buffer) -> Subscription {
        let (sender, subscription) = channel(topic.clone(), buffer, self.bell.clone());
        let readers = self.readers.entry(topic.clone()).or_default();
        readers.senders.push(sender);
        subscription
    }

    fn handle(&mut self, input: Input) {
        let now = self.clock.now();
        self.core.handle(&mut lock(&self.seen), input, now);
    }

    /// The swarm need not poll after a method was called; this makes it.
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
    ) -> Result<Handler, ConnectionDenied> {
        if let Some(until) = self.shut_out.get(&peer).copied() {
            if self.clock.now() < until {
                return Err(ConnectionDenied::new(Banned(peer)));
            }
            self.shut_out.remove(&peer);
        }
        let link = self.links.entry(peer).or_default();
        link.pending.push(connection);
        let shared = Shared {
            source: lock(&self.seen).join(peer),
            seen: self.seen.clone(),
            clock: self.clock.clone(),
            receive: self.receive.clone(),
            proven: Arc::default(),
        };
        Ok(Handler::new(connection, shared, link.outbox.clone()))
    }

    fn on_established(&mut self, peer: PeerId, established: &ConnectionEstablished<'_>) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let connection = established.connection_id;
        link.pending.retain(|c| *c != connection);
        link.connections.push(connection);
        let outbound = established.endpoint.is_dialer();
        let address = outbound.then(|| established.endpoint.get_remote_address().clone());
        if address.is_some() {
            link.address.clone_from(&address);
        }
        if link.connections.len() == 1 {
            link.redial = false;
            link.since = self.clock.now();
            self.handle(Input::Connected { peer, outbound });
        }
        if !self.core.config().direct().contains(&peer) {
            self.places.remove(&peer);
        } else if let Some(address) = address {
            self.add_direct_address(peer, address);
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let wrote = link.connections.first() == Some(&connection);
        link.connections.retain(|c| *c != connection);
        if link.connections.is_empty() {
            link.outbox.reset();
            link.epoch = None;
            if std::mem::take(&mut link.redial) {
                let addresses: Vec<_> = link.address.clone().into_iter().collect();
                if self.places.len() < MAX_PLACES {
                    self.places.entry(peer).or_insert_with(|| addresses.clone());
                }
                self.actions.push_back(dial(peer, addresses));
            }
            if link.pending.is_empty() {
                self.links.remove(&peer);
            }
            self.handle(Input::Disconnected { peer });
        } else if wrote && link.epoch.take().is_some() {
            link.outbox.reset();
            self.handle(Input::StreamLost { peer });
        }
    }

    /// A connection that has a handler was refused by another behaviour.
    fn on_refused(&mut self, connection: ConnectionId) {
        let mut gone = Vec::new();
        self.links.retain(|peer, link| {
            link.pending.retain(|c| *c != connection);
            let empty = link.pending.is_empty() && link.connections.is_empty();
            if empty {
                gone.push(*peer);
            }
            !empty
        });
        let mut seen = lock(&self.seen);
        for peer in gone {
            seen.leave(&peer);
        }
    }

    fn on_news(&mut self, peer: PeerId, epoch: Epoch, news: News) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        if link.epoch != Some(epoch) {
            return;
        }
        if matches!(news, News::Lost | News::Unsupported) {
            link.epoch = None;
            link.outbox.reset();
        }
        self.handle(match news {
            News::Opened(version) => Input::StreamOpened { peer, version },
            News::Lost => Input::StreamLost { peer },
            News::Unsupported => Input::Unsupported { peer },
            News::Written => Input::Written { peer },
            News::Expired => Input::Expired { peer },
            News::Progress => Input::Progress { peer },
        });
    }

    fn on_output(&mut self, output: Output) -> Option<Action> {
        match output {
            Output::OpenStream { peer } => {
                if let Some(link) = self.links.get_mut(&peer)
                    && let Some(first) = link.connections.first().copied()
                {
                    link.epoch = Some(link.outbox.open(first));
                }
            }
            Output::ResetStream { peer } => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.epoch = None;
                    link.outbox.reset();
                    // If there is another connection, the next stream goes there.
                    if !link.connections.is_empty() {
                        link.connections.rotate_left(1);
                    }
                }
            }
            Output::Close { peer, cause } => {
                self.on_close(peer, cause);
                return Some(ToSwarm::CloseConnection {
                    peer_id: peer,
                    connection: CloseConnection::All,
                });
            }
            Output::Write { peer, frame } => {
                if let Some(link) = self.links.get(&peer) {
                    link.outbox.push(frame);
                }
            }
            Output::Verify { ticket, job } => self.pool.check(ticket, job),
            Output::Validate {
                ticket,
                message,
                deadline,
            } => return self.on_validate(ticket, message, deadline),
            Output::Sign { publish, job } => self.pool.sign(publish, job, self.key.clone()),
            Output::Reserve { upto } => self.use_sequence(move |store| {
                let reserved = store.reserve(upto);
                reserved.map(|()| Input::SequenceReserved { upto })
            }),
            Output::Deliver { message } => return self.deliver(message),
            Output::Published { publish, result } => {
                if let Some(tell) = self.publishing.remove(&publish) {
                    // Nobody waits if the future was dropped.
                    let _ = tell.send(result);
                }
            }
            Output::Event(event) => {
                if let Event::WantPeer { peer } = &event {
                    let addresses = self.places.get(peer).cloned().unwrap_or_default();
                    self.actions.push_back(dial(*peer, addresses));
                }
                return Some(ToSwarm::GenerateEvent(BehaviourEvent::Report(event)));
            }
        }
        None
    }

    fn on_close(&mut self, peer: PeerId, cause: CloseCause) {
        match cause {
            CloseCause::Stalled => {
                if let Some(link) = self.links.get_mut(&peer) {
                    link.redial = true;
                }
            }
            CloseCause::Banned { until } => {
                let now = self.clock.now();
                if self.shut_out.len() >= MAX_SHUT_OUT {
                    self.shut_out.retain(|_, until| *until > now);
                }
                if self.shut_out.len() < MAX_SHUT_OUT {
                    self.shut_out.insert(peer, until);
                }
            }
        }
    }

    fn on_validate(&mut self, ticket: Ticket, message: Message, deadline: Time) -> Option<Action> {
        let Some(validator) = self.validators.get(&message.topic).cloned() else {
            return Some(ToSwarm::GenerateEvent(BehaviourEvent::Validate {
                ticket,
                message,
                deadline,
            }));
        };
        self.pool.push(Box::new(move || {
            let verdict = validator(&message);
            Done::Fact(Input::Validated { ticket, verdict })
        }));
        None
    }

    fn deliver(&mut self, message: Message) -> Option<Action> {
        let readers = self.readers.get(&message.topic)?;
        for sender in &readers.senders {
            self.lagged += sender.send(message.clone());
        }
        readers
            .events
            .then(|| ToSwarm::GenerateEvent(BehaviourEvent::Message(message)))
    }

    /// What applications dropped.
    fn listen_to_bell(&mut self, cx: &Context<'_>) {
        let Some(withdrawn) = self.bell.heard(cx.waker()) else {
            return;
        };
        for publish in withdrawn {
            if self.core.withdraw(publish) {
                self.publishing.remove(&publish);
            }
        }
        let now = self.clock.now();
        let (core, seen) = (&mut self.core, &self.seen);
        self.readers.retain(|topic, readers| {
            readers.senders.retain(|sender| !sender.is_gone());
            let read = readers.events || !readers.senders.is_empty();
            if !read {
                core.unsubscribe(&mut lock(seen), topic, now);
            }
            read
        });
    }

    /// What workers did.
    fn take_done(&mut self) {
        for done in self.pool.take() {
            match done {
                Done::Fact(input) => self.handle(input),
                Done::Sequence(store, result) => self.on_sequence(store, result),
                Done::Authors(store, unsaved) => {
                    self.authors = Some(store);
                    for AuthorNumber { author, highest } in unsaved {
                        self.grown.entry(author).or_insert(highest);
                    }
                }
            }
        }
    }

    /// Has the store read, on a thread of its own, when the behaviour is polled first.
    fn load_sequence(&mut self) {
        let wall = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        self.use_sequence(move |store| {
            let stored = store.load()?;
            Ok(Input::SequenceLoaded {
                stored,
                wall_nanos: wall,
            })
        });
    }

    fn use_sequence(
        &mut self,
        act: impl FnOnce(&mut dyn SequenceStore) -> io::Result<Input> + Send + 'static,
    ) {
        let Place::Here(store) = std::mem::replace(&mut self.sequence, Place::Away) else {
            return;
        };
        let shelf = Arc::new(Mutex::new(Some(store)));
        let job = {
            let shelf = shelf.clone();
            move || {
                let mut store = lock(&shelf).take()?;
                let result = act(store.as_mut());
                Some(Done::Sequence(store, result))
            }
        };
        if let Err(error) = self.pool.run_apart(job)
            && let Some(store) = lock(&shelf).take()
        {
            self.on_sequence(store, Err(error));
        }
    }

    fn on_sequence(&mut self, store: Box<dyn SequenceStore>, result: io::Result<Input>) {
        match result {
            Ok(input) => {
                self.sequence = Place::Here(store);
                self.loaded = true;
                self.handle(input);
            }
            Err(error) => {
                let again = self.loaded;
                tracing::warn!(%error, again, "sequence numbers");
                if again {
                    self.sequence = Place::Here(store);
                    self.handle(Input::SequenceFailed);
                } else {
                    self.sequence = Place::Lost;
                }
                let event = BehaviourEvent::SequenceFailed { error, again };
                self.actions.push_back(ToSwarm::GenerateEvent(event));
            }
        }
    }

    /// What is done once a second, whenever something else is.
    fn keep_house(&mut self) {
        let now = self.clock.now();
        if now < self.marked + MARK {
            return;
        }
        self.marked = now;
        self.mark_busy(now);
        let grown = self.core.take_grown();
        self.grown
            .extend(grown.into_iter().map(|g| (g.author, g.highest)));
        if !self.grown.is_empty() {
            self.save_authors();
        }
    }

    /// Has numbers of others saved, on a thread of its own. While one is at it, what comes waits for the next time.
    fn save_authors(&mut self) {
        let Some(store) = self.authors.take() else {
            return;
        };
        let grown = take_grown(&mut self.grown);
        let shelf = Arc::new(Mutex::new(Some((store, grown))));
        let job = {
            let shelf = shelf.clone();
            move || {
                let (mut store, grown) = lock(&shelf).take()?;
                let unsaved = match store.save(&grown) {
                    Ok(()) => Vec::new(),
                    Err(error) => {
                        tracing::warn!(%error, "numbers of authors");
                        grown
                    }
                };
                Some(Done::Authors(store, unsaved))
            }
        };
        if self.pool.run_apart(job).is_err()
            && let Some((store, grown)) = lock(&shelf).take()
        {
            self.authors = Some(store);
            self.grown
                .extend(grown.into_iter().map(|g| (g.author, g.highest)));
        }
    }

    /// Says which connections are worth keeping: those to neighbours with a topic in common.
    fn mark_busy(&self, now: Time) {
        let neighbours: HashSet<PeerId> = self
            .core
            .subscriptions()
            .flat_map(|topic| self.core.subscribers(&topic))
            .collect();
        for (peer, link) in &self.links {
            let fresh = now < link.since + GRACE;
            link.outbox.set_busy(fresh || neighbours.contains(peer));
        }
    }

    /// Lets time pass. Returns whether there is something to do, or else registers to be woken when there is.
    fn poll_time(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(deadline) = self.core.deadline() else {
            self.timer = None;
            return false;
        };
        let now = self.clock.now();
        if deadline <= now {
            self.core.expire(&mut lock(&self.seen), now);
            return true;
        }
        let timer = match &mut self.timer {
            Some((at, timer)) if *at == deadline => timer,
            timer => {
                let sleep = self.clock.sleep(deadline.saturating_sub(now));
                &mut timer.insert((deadline, sleep)).1
            }
        };
        if timer.poll_unpin(cx).is_pending() {
            return false;
        }
        self.timer = None;
        true
    }
}

impl Drop for Behaviour {
    /// Saves what was heard since the last time.
    fn drop(&mut self) {
        let last = self.core.take_grown();
        self.grown
            .extend(last.into_iter().map(|g| (g.author, g.highest)));
        if let Some(store) = &mut self.authors
            && !self.grown.is_empty()
            && let Err(error) = store.save(&take_grown(&mut self.grown))
        {
            tracing::warn!(%error, "numbers of authors");
        }
    }
}

fn take_grown(grown: &mut HashMap<Box<[u8]>, u64>) -> Vec<AuthorNumber> {
    grown
        .drain()
        .map(|(author, highest)| AuthorNumber { author, highest })
        .collect()
}

/// An order to connect to a peer, at these addresses and at those that other behaviours know. Whoever keeps a back-off for the swarm refuses
/// it as any other.
fn dial(peer: PeerId, addresses: Vec<Multiaddr>) -> Action {
    let opts = DialOpts::peer_id(peer)
        .condition(PeerCondition::DisconnectedAndNotDialing)
        .addresses(addresses)
        .extend_addresses_through_behaviour()
        .build();
    ToSwarm::Dial { opts }
}

/// A connection of a peer that sent what no honest one sends.
#[derive(Debug, thiserror::Error)]
#[error("gossip of {0} is not let in for a while: it sent forged messages")]
struct Banned(PeerId);

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = BehaviourEvent;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, peer)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.handler(connection, peer)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(established) => {
                self.on_established(established.peer_id, &established);
            }
            FromSwarm::ConnectionClosed(ConnectionClosed {
                peer_id,
                connection_id,
                ..
            }) => self.on_closed(peer_id, connection_id),
            FromSwarm::DialFailure(failure) => self.on_refused(failure.connection_id),
            FromSwarm::ListenFailure(failure) => self.on_refused(failure.connection_id),
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        _connection: ConnectionId,
        fact: THandlerOutEvent<Self>,
    ) {
        match fact {
            Fact::Received {
                received,
                at,
                shares,
            } => {
                self.handle(Input::Received { peer, received, at });
                drop(shares);
            }
            Fact::Opened => self.handle(Input::PeerOpened { peer }),
            Fact::Malformed(cause) => {
                tracing::debug!(%peer, cause, "malformed gossip");
                self.handle(Input::Malformed { peer });
            }
            Fact::Stream { epoch, news } => self.on_news(peer, epoch, news),
        }
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if !std::mem::replace(&mut self.started, true) {
            self.load_sequence();
        }
        self.pool.register(cx.waker());
        loop {
            self.listen_to_bell(cx);
            self.take_done();
            if let Some(action) = self.actions.pop_front() {
                return Poll::Ready(action);
            }
            while let Some(output) = self.core.poll() {
                if let Some(action) = self.on_output(output) {
                    return Poll::Ready(action);
                }
            }
            if !self.poll_time(cx) && self.actions.is_empty() {
                break;
            }
        }
        self.keep_house();
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

impl std::fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Behaviour({:?})", self.core)
    }
}
