//! Gossip as a value that is driven: no clock, no socket, no lock, no task, no random source.
//!
//! ```text
//! handle(seen, input, now)   one fact from the network     subscribe, publish …   commands of the owner
//! poll()                     what is to be done next       deadline(), expire(seen, now)   time
//! ```
//! What it leaves out: connections and streams, which the driver opens and writes; the cache of seen messages, which lies outside, shared
//! with the connections; signatures, which are checked and made elsewhere ([`Output::Verify`], [`Output::Sign`]); where sequence numbers
//! are kept; whom to connect to.
//!
//! One mechanism a file. A message comes in through `pipeline` (budgets, `replay`, verification, validation), is kept in `history`, and
//! leaves through the `lanes` of the peers that `mesh` and `relay` choose. `publish` and `hold` do the same for one's own. `heartbeat` keeps
//! house; `link` keeps the streams alive; `health` says how each topic fares, and repairs.

mod budget;
mod fanout;
mod health;
mod heartbeat;
mod history;
mod lanes;
mod link;
mod mesh;
mod peers;
mod pipeline;
mod promises;
mod publish;
mod relay;
mod replay;
mod reports;
mod topics;
mod verdicts;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::config::{Config, TopicOptions};
use crate::error::{PublishError, SubscribeError};
use crate::hash::{Dice, Keyed};
use crate::message::{Message, MessageId, Topic};
use crate::metrics::Counters;
use crate::seen::{Pressure, Seen};
use crate::sequence::{AuthorNumber, Sequence};
use crate::wire::{
    Author, Frame, OwnMessage, Received, SignJob, VerifyJob, VerifyOutcome, Version,
};
pub use reports::{Health, Load, PeerReport, StreamReport, Trouble};

use budget::Bans;
use history::History;
use peers::Peer;
use pipeline::Pipeline;
use promises::Promises;
use publish::Own;
use replay::Replay;
use topics::Topics;

/// Time since start. Never the wall clock.
pub type Time = Duration;

/// Least time between two rounds of looking for what is due.
const TICK: Duration = Duration::from_millis(50);

/// Gossip of one node. See the module's text for how it is driven.
pub struct Core {
    config: Config,
    author: Option<Author>,
    now: Time,
    dice: Dice,
    keyed: Keyed,
    /// Connected peers. Keys are never used twice, so what a gone peer left behind is never taken for another's.
    peers: BTreeMap<PeerKey, Peer>,
    by_peer: HashMap<PeerId, PeerKey, Keyed>,
    next_peer: u32,
    topics: Topics,
    pipeline: Pipeline,
    replay: Replay,
    history: History,
    promises: Promises,
    /// Bytes that the relay may still spend before the next heartbeat.
    relay_left: usize,
    /// Bytes that it spent before their time, at most one message.
    relay_debt: usize,
    /// When entries of the cache last had to go early, and how old they were.
    pressed: Option<(Time, Time)>,
    /// Peers that are missing: direct ones, and some that stalled.
    wanted: BTreeMap<PeerId, health::Wanted>,
    /// Who was connected to anew for saying nothing; until then not again.
    mute: BTreeMap<PeerId, Time>,
    own: Own,
    sequence: Sequence,
    bans: Bans,
    /// Peers whose lanes may have something to write.
    ready: BTreeSet<PeerKey>,
    /// When something that is timed more finely than the heartbeat is due.
    tick_at: Option<Time>,
    ticked: Time,
    heartbeat_at: Option<Time>,
    counters: Counters,
    /// Bounded: jobs by their limits, deliveries by one input, reports by peers and topics.
    out: VecDeque<Output>,
}

/// A fact from the network or from one of the helpers.
#[derive(Debug)]
#[non_exhaustive]
pub enum Input {
    /// The first connection to a peer stands.
    Connected {
        /// Who.
        peer: PeerId,
        /// Whether we dialled.
        outbound: bool,
    },
    /// The last connection to a peer is gone, and with it its stream and frames.
    Disconnected {
        /// Who.
        peer: PeerId,
    },
    /// The peer speaks no gossipsub. It is not asked again while it is connected.
    Unsupported {
        /// Who.
        peer: PeerId,
    },
    /// Our stream stands ([`Output::OpenStream`]).
    StreamOpened {
        /// To whom.
        peer: PeerId,
        /// What was agreed on.
        version: Version,
    },
    /// The peer opened a stream to us: it may be one that has forgotten us, see GO-26.
    PeerOpened {
        /// Who.
        peer: PeerId,
    },
    /// Our stream broke, or could not be opened. Frames that were not written are dropped; nothing is said about them.
    StreamLost {
        /// To whom.
        peer: PeerId,
    },
    /// An RPC came in, see [`crate::wire::Reader`]. Leave out those that are [`Received::is_empty`].
    Received {
        /// From whom.
        peer: PeerId,
        /// What.
        received: Box<Received>,
        /// When its last byte was read: deadlines count from there.
        at: Time,
    },
    /// An RPC could not be read; its stream was reset.
    Malformed {
        /// From whom.
        peer: PeerId,
    },
    /// The oldest frame is written completely.
    Written {
        /// To whom.
        peer: PeerId,
    },
    /// Some bytes of the oldest frame were written: a large one on a slow line. At most one a second is needed.
    Progress {
        /// To whom.
        peer: PeerId,
    },
    /// The oldest frame had expired before its first byte was written, and was dropped.
    Expired {
        /// To whom.
        peer: PeerId,
    },
    /// A signature was checked ([`Output::Verify`]).
    Verified {
        /// Which.
        ticket: Ticket,
        /// With what result.
        outcome: VerifyOutcome,
    },
    /// The application has judged ([`Output::Validate`]).
    Validated {
        /// Which.
        ticket: Ticket,
        /// How.
        verdict: Verdict,
    },
    /// An own message was written and signed ([`Output::Sign`]).
    Signed {
        /// Which.
        publish: PublishId,
        /// The message.
        result: Result<OwnMessage, PublishError>,
    },
    /// What [`crate::SequenceStore::load`] gave, and the wall clock. Once, at start; before it nothing signed is published.
    SequenceLoaded {
        /// The first number never reserved.
        stored: Option<u64>,
        /// Nanoseconds since 1970, however wrong.
        wall_nanos: u64,
    },
    /// [`Output::Reserve`] is durable.
    SequenceReserved {
        /// Up to where.
        upto: u64,
    },
    /// [`Output::Reserve`] failed. It is asked for again after a second.
    SequenceFailed,
    /// What [`crate::ReplayStore::load`] gave. Before the first peer; from then on [`Core::take_grown`] tells what is to be kept.
    AuthorsLoaded {
        /// The highest number of each author.
        stored: Vec<AuthorNumber>,
    },
}

/// What is to be done.
#[derive(Debug)]
#[non_exhaustive]
pub enum Output {
    /// Open a stream to the peer, on any of its connections. Answer with [`Input::StreamOpened`], [`Input::StreamLost`] or
    /// [`Input::Unsupported`].
    OpenStream {
        /// To whom.
        peer: PeerId,
    },
    /// Reset our stream to the peer and drop its frames; nothing is to be answered. It will be opened again.
    ResetStream {
        /// To whom.
        peer: PeerId,
    },
    /// Close all connections to the peer.
    Close {
        /// To whom.
        peer: PeerId,
        /// Why.
        cause: CloseCause,
    },
    /// Write a frame, in order. At most two are out at a time. Answer each with [`Input::Written`] or [`Input::Expired`], in order.
    Write {
        /// To whom.
        peer: PeerId,
        /// What.
        frame: Frame,
    },
    /// Check a signature on a worker. At most [`Config::verify_running`] are out. Answer each with [`Input::Verified`].
    Verify {
        /// To be given back.
        ticket: Ticket,
        /// The work.
        job: VerifyJob,
    },
    /// Ask the application. At most [`Config::validations`] are out. Answer with [`Input::Validated`]; after the deadline it is too late.
    Validate {
        /// To be given back.
        ticket: Ticket,
        /// What.
        message: Message,
        /// Until when.
        deadline: Time,
    },
    /// Write an own message and sign it, unless it goes without, on a worker. Answer with [`Input::Signed`].
    Sign {
        /// To be given back.
        publish: PublishId,
        /// The work.
        job: SignJob,
    },
    /// Make a reservation of sequence numbers durable. Answer with [`Input::SequenceReserved`] or [`Input::SequenceFailed`].
    Reserve {
        /// Up to where.
        upto: u64,
    },
    /// A message for the subscriptions of its topic: verified, never delivered before.
    Deliver {
        /// The message.
        message: Message,
    },
    /// What became of an own message. Exactly one for each [`Core::publish`] that gave an id.
    Published {
        /// Which.
        publish: PublishId,
        /// What.
        result: Result<Receipt, PublishError>,
    },
    /// Something that an operator may want to know.
    Event(Event),
}

/// Why a connection is to be closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum CloseCause {
    /// Its streams stalled twice: dial it again.
    Stalled,
    /// It sent bad signatures or the like: do not let it in before.
    Banned {
        /// Until when.
        until: Time,
    },
}

/// What happened, for operators and for those who find peers.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// No neighbour subscribes to a topic that is subscribed to here.
    Isolated {
        /// Which.
        topic: Topic,
    },
    /// A topic works, but not as it should.
    Degraded {
        /// Which.
        topic: Topic,
        /// Why.
        cause: DegradedCause,
    },
    /// A topic works again.
    Recovered {
        /// Which.
        topic: Topic,
    },
    /// Connect to somebody who subscribes to the topic: repair came to its end with those that are connected.
    WantPeers {
        /// Which.
        topic: Topic,
    },
    /// Repair did not help for a long time.
    Alarm {
        /// Which.
        topic: Topic,
    },
    /// Nothing could be written to a peer for [`Config::stall`], or a probe was not answered; the stream is reset.
    PeerStalled {
        /// Who.
        peer: PeerId,
    },
    /// A stream that was lost stands again.
    StreamReopened {
        /// To whom.
        peer: PeerId,
    },
    /// The cache of seen messages is too small for what arrives.
    SeenPressure(Pressure),
    /// Somebody publishes with our key: a clone of this device, or this device was restored from an old backup.
    CloneDetected {
        /// A number that we did not use.
        seqno: u64,
    },
    /// Connect to a peer that is missing: a direct one of the configuration, or one whose connection was closed because it stalled. Said
    /// again after pauses that grow from 5 s to 5 min. [`crate::Behaviour`] dials it by itself.
    WantPeer {
        /// Who.
        peer: PeerId,
    },
    /// A peer is banned.
    Banned {
        /// Who.
        peer: PeerId,
        /// Until when.
        until: Time,
    },
    /// A neighbour subscribes to a topic of ours.
    Joined {
        /// Who.
        peer: PeerId,
        /// Which.
        topic: Topic,
    },
    /// A neighbour does not subscribe to a topic of ours any more.
    Left {
        /// Who.
        peer: PeerId,
        /// Which.
        topic: Topic,
    },
}

/// What is wrong with a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    feature = "serde",
    derive(serde::Serialize),
    serde(rename_all = "snake_case")
)]
#[non_exhaustive]
pub enum DegradedCause {
    /// Neighbours subscribe, but there is a stream to none of them.
    NoStream,
    /// All neighbours with a stream take nothing.
    Stalled,
    /// More neighbours subscribe than the mesh takes in, and they refuse to be in it.
    NoMesh,
    /// Messages are dropped because this machine does not verify them in time.
    Overloaded,
}

impl fmt::Display for DegradedCause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoStream => "neighbours subscribe, but no stream to them can be opened",
            Self::Stalled => "the neighbours that subscribe take nothing",
            Self::NoMesh => "the neighbours that subscribe refuse to be in the mesh",
            Self::Overloaded => "this machine does not verify messages in time",
        })
    }
}

/// What the application thinks of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Deliver and send on.
    Accept,
    /// Drop, and hold it against the neighbour that sent it.
    Reject,
    /// Drop.
    Ignore,
}

/// How long a publisher is patient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Now or never: refused if nobody subscribes or all lanes are full.
    Try,
    /// Until then (time since start) for a subscriber with room.
    Wait(Time),
    /// Kept for so long until somebody subscribes: an offline start.
    Hold(Duration),
}

/// An own message was handed to neighbours.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Receipt {
    /// Its id.
    pub id: MessageId,
    /// Its number; none if unsigned.
    pub seqno: Option<u64>,
    /// Neighbours whose lanes took it, at least one.
    pub queued_to: usize,
    /// Neighbours whose lanes were full.
    pub refused_by: usize,
}

/// Names a message on its way through verification and validation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(pub(crate) u64);

/// Names an own message that is on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublishId(pub(crate) u64);

/// A connected peer, for the time of its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct PeerKey(u32);

impl Core {
    /// A node without peers. Without an `author` it publishes on unsigned topics only. The seed must be random: it decides who is grafted,
    /// and must not be guessed.
    #[must_use]
    pub fn new(config: Config, author: Option<Author>, seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let keyed = Keyed::new(dice.next_u64());
        Self {
            author,
            now: Time::ZERO,
            dice,
            keyed,
            peers: BTreeMap::new(),
            by_peer: HashMap::with_hasher(keyed),
            next_peer: 0,
            topics: Topics::new(keyed),
            pipeline: Pipeline::new(&config, keyed),
            replay: Replay::new(config.knobs.authors, keyed),
            // What the cache has forgotten need not be kept.
            history: History::new(config.knobs.history_bytes, config.knobs.seen_entries, keyed),
            promises: Promises::new(keyed),
            relay_left: config.knobs.relay_bytes,
            relay_debt: 0,
            pressed: None,
            wanted: BTreeMap::new(),
            mute: BTreeMap::new(),
            own: Own::default(),
            sequence: Sequence::new(),
            bans: Bans::default(),
            ready: BTreeSet::new(),
            tick_at: None,
            ticked: Time::ZERO,
            // Direct peers are looked for from the start.
            heartbeat_at: (!config.direct.is_empty()).then_some(config.knobs.heartbeat / 10),
            counters: Counters::default(),
            out: VecDeque::new(),
            config,
        }
    }

    /// Takes one fact. Facts about peers that are not connected are ignored: a connection may end while its last facts are on their way
    /// here.
    pub fn handle(&mut self, seen: &mut Seen, input: Input, now: Time) {
        self.at(now);
        match input {
            Input::Connected { peer, outbound } => self.on_connected(seen, peer, outbound),
            Input::Disconnected { peer } => self.on_disconnected(seen, &peer),
            Input::Unsupported { peer } => self.with(&peer, Self::on_unsupported),
            Input::StreamOpened { peer, version } => {
                self.with(&peer, |core, key| core.on_stream_opened(key, version));
            }
            Input::StreamLost { peer } => self.with(&peer, Self::on_stream_lost),
            Input::Received { peer, received, at } => match self.by_peer.get(&peer).copied() {
                Some(key) => self.on_received(seen, key, *received, at),
                None => self.on_orphaned(seen, *received, at),
            },
            Input::Malformed { peer } => {
                if let Some(key) = self.by_peer.get(&peer).copied() {
                    self.counters.malformed += 1;
                    self.strike(seen, key, budget::STRIKE);
                }
            }
            Input::PeerOpened { peer } => self.with(&peer, Self::on_peer_opened),
            Input::Written { peer } => self.with(&peer, Self::on_written),
            Input::Progress { peer } => self.with(&peer, Self::on_progress),
            Input::Expired { peer } => self.with(&peer, Self::on_frame_expired),
            Input::Verified { ticket, outcome } => self.on_verified(seen, ticket, outcome),
            Input::Validated { ticket, verdict } => self.on_validated(seen, ticket, verdict),
            Input::Signed { publish, result } => self.on_signed(publish, result),
            Input::SequenceLoaded { stored, wall_nanos } => {
                self.sequence.start(stored, wall_nanos);
                self.reserve();
            }
            Input::SequenceReserved { upto } => {
                self.sequence.reserved(upto);
                self.own.stir = true;
                self.reserve();
            }
            Input::AuthorsLoaded { stored } => self.replay.load(stored),
            Input::SequenceFailed => {
                self.sequence.failed();
                self.wake(self.now + Duration::from_secs(1));
            }
        }
        self.pump(seen);
    }

    /// Subscribes to a topic, with what [`Config`] says of it. Announced to all peers at once.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing is changed then.
    pub fn subscribe(
        &mut self,
        seen: &mut Seen,
        topic: &Topic,
        now: Time,
    ) -> Result<(), SubscribeError> {
        let options = self.config.options(topic.as_str());
        self.subscribe_with(seen, topic, options, now)
    }

    /// Subscribes to a topic with settings of its own. For one that is subscribed to already, changes the settings.
    ///
    /// # Errors
    /// [`SubscribeError`]; nothing is changed then.
    pub fn subscribe_with(
        &mut self,
        seen: &mut Seen,
        topic: &Topic,
        options: TopicOptions,
        now: Time,
    ) -> Result<(), SubscribeError> {
        self.at(now);
        let subscribed = self.on_subscribe(seen, topic, options);
        self.pump(seen);
        subscribed
    }

    /// Leaves a topic.
    pub fn unsubscribe(&mut self, seen: &mut Seen, topic: &Topic, now: Time) {
        self.at(now);
        self.on_unsubscribe(topic);
        self.pump(seen);
    }

    /// Publishes. What becomes of it is told by one [`Output::Published`]; refusals that are known at once are errors.
    ///
    /// # Errors
    /// [`PublishError`].
    pub fn publish(
        &mut self,
        seen: &mut Seen,
        topic: &Topic,
        data: Bytes,
        mode: Mode,
        now: Time,
    ) -> Result<PublishId, PublishError> {
        self.at(now);
        let taken = self.on_publish(topic, data, mode);
        if taken.is_err() {
            self.counters.publish_refused += 1;
        }
        self.pump(seen);
        taken
    }

    /// Gives up an own message that still waits. No [`Output::Published`] follows. Too late for one that is being signed or sent.
    pub fn withdraw(&mut self, publish: PublishId) -> bool {
        self.on_withdraw(publish)
    }

    /// The next thing to do, until `None`.
    pub fn poll(&mut self) -> Option<Output> {
        if let Some(output) = self.out.pop_front() {
            return Some(output);
        }
        self.next_frame()
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        match (self.tick_at, self.heartbeat_at) {
            (Some(tick), Some(beat)) => Some(tick.min(beat)),
            (tick, beat) => tick.or(beat),
        }
    }

    /// Lets time pass.
    pub fn expire(&mut self, seen: &mut Seen, now: Time) {
        self.at(now);
        if self.tick_at.is_some_and(|at| at <= self.now) {
            (self.tick_at, self.ticked) = (None, self.now);
            self.tick(seen);
        }
        if self.heartbeat_at.is_some_and(|at| at <= self.now) {
            self.heartbeat(seen);
        }
        self.pump(seen);
    }

    /// The highest numbers of authors that grew since the last call, to be kept over a restart: to be asked for once a second or so, and at
    /// the end. Empty before [`Input::AuthorsLoaded`].
    pub fn take_grown(&mut self) -> Vec<AuthorNumber> {
        self.replay.take_grown()
    }

    /// All counters. Those of copies are in [`Seen::counters`].
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The configuration.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn at(&mut self, now: Time) {
        self.now = self.now.max(now);
    }

    /// Has [`expire`](Self::expire) called soon after `at`. Deadlines are looked at where they count, before something is sent or
    /// delivered; this is only for what nobody touches, so all that is due within a while is done together.
    fn wake(&mut self, at: Time) {
        self.wake_at(at.max(self.ticked + TICK));
    }

    /// Has [`expire`](Self::expire) called at `at`.
    fn wake_at(&mut self, at: Time) {
        self.tick_at = Some(self.tick_at.map_or(at, |tick| tick.min(at)));
    }

    fn with(&mut self, peer: &PeerId, act: impl FnOnce(&mut Self, PeerKey)) {
        if let Some(key) = self.by_peer.get(peer).copied() {
            act(self, key);
        }
    }

    /// What follows from what happened: work for idle workers, own messages that found room.
    fn pump(&mut self, seen: &mut Seen) {
        self.dispatch(seen);
        self.pump_own(seen);
    }

    /// What is due between heartbeats.
    fn tick(&mut self, seen: &mut Seen) {
        self.expire_jobs(seen);
        self.expire_own();
        self.expire_promises();
        self.tend_links();
        self.reserve();
    }

    /// Nobody is connected or to be found, nothing is subscribed to: there is nothing to keep house of.
    fn is_idle(&self) -> bool {
        self.peers.is_empty()
            && self.topics.is_empty()
            && self.own.is_empty()
            && self.config.direct.is_empty()
            && self.wanted.is_empty()
    }

    fn keep_house(&mut self) {
        if self.heartbeat_at.is_none() {
            // The first one comes early, as Kubo's.
            self.heartbeat_at = Some(self.now + self.config.knobs.heartbeat / 10);
        }
    }

    /// Whether a bug was planted, for the simulator to find.
    #[cfg(feature = "sim")]
    fn has(&self, bug: crate::sim::Planted) -> bool {
        self.config.planted == Some(bug)
    }

    fn event(&mut self, event: Event) {
        self.out.push_back(Output::Event(event));
    }
}

impl fmt::Debug for Core {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Core({} peers, {} topics)",
            self.peers.len(),
            self.topics.len()
        )
    }
}
