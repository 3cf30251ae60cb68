//! Events between nodes: the driver of `gemba_log::core::replicate` (specs/log-replication.md).
//!
//! A task of its own, beside the loop: it owns the core, a stream a peer, and waits for nobody. Reading and verifying happens on the tasks of
//! the streams, the disk on threads that may block. What peers send is bounded by bytes over all of them, taken as they come.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use cid::Cid;
use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use gemba_gossip::{Delivery, Topic};
use gemba_log::core::reconcile::Tip;
use gemba_log::core::replicate::{Config, Event, Input, NotAppended, Output, Peer, Replicate};
use gemba_log::wire::{Announce, MAX_MESSAGE_BYTES, MAX_PATTERNS, Message, PROTOCOL, Run};
use gemba_log::{Batch, FeedId, Loaded, Pattern, Seq, UnverifiedBatch};
use libp2p_identity::PeerId;
use libp2p_swarm::{Stream, StreamProtocol};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Command, Handle};
use crate::log::Events;

/// Where feeds that grew are told to those who are not connected.
pub(crate) const TOPIC: &str = "/gemba/log/heads/1";
/// Facts that may wait for the task; streams wait beyond it.
const FACTS: usize = 64;
/// Messages that may wait for a peer; one that is slower is cut off, and found again by the next comparison.
const OUTBOX: usize = 64;
/// Bytes of messages of all peers that are being received or handled.
const RECEIVE_BYTES: usize = 16 << 20;
/// They are taken in steps of so many.
const STEP: usize = 64 << 10;
/// A message that has begun goes on within this time.
const STALL: Duration = Duration::from_secs(20);
/// A stream that broke is opened again after a pause that doubles, up to the second of these.
const PAUSE: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// One that the peer does not speak after so many of these.
const UNSUPPORTED: u32 = 10;
/// Heads go over gossip so often: whoever is connected has them long before, and a plant has hundreds of nodes that tell theirs.
const HEADS: Duration = Duration::from_millis(250);
/// Feeds whose heads wait for that; with more, the next comparison tells those that find no room.
const MAX_HEADS: usize = 4096;
/// Appends are told together that come within so short a time.
const GAP: Duration = Duration::from_millis(2);
/// A look at the log takes at most one part in so many of the time, however many feeds there are.
const LOOK_SHARE: u32 = 10;
/// Pieces of work on the log at a time; more wait without a thread.
const THREADS: usize = 8;
/// How often those of the fast class are written.
const FAST: Duration = Duration::from_millis(50);
/// How often retention looks.
const RETAIN: Duration = Duration::from_secs(60);
/// Heads of one message over gossip.
const TIPS_A_MESSAGE: usize = 512;

/// Who is connected, as the loop knows it.
#[derive(Clone, Default)]
pub(super) struct Connections {
    peers: Arc<Mutex<HashSet<PeerId>>>,
    changed: Arc<Notify>,
}

impl Connections {
    /// A peer came.
    pub(super) fn add(&self, peer: PeerId) {
        self.change(|peers| peers.insert(peer));
    }

    /// Its last connection is gone.
    pub(super) fn remove(&self, peer: &PeerId) {
        self.change(|peers| peers.remove(peer));
    }

    fn change(&self, change: impl FnOnce(&mut HashSet<PeerId>) -> bool) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if change(&mut peers) {
            self.changed.notify_one();
        }
    }

    fn now(&self) -> HashSet<PeerId> {
        self.peers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }
}

/// What the tasks of streams and the disk tell.
enum Fact {
    /// A stream is there.
    Opened(PeerId, Stream),
    /// It could not be opened; false: the peer does not speak this.
    NotOpened(PeerId, bool),
    /// Something was read.
    Read(Peer, Input, Option<OwnedSemaphorePermit>),
    /// A stream ended.
    Ended(Peer),
    /// The disk answers.
    Done(Input),
}

/// A peer with a stream.
struct Open {
    peer: Peer,
    outbox: mpsc::Sender<Bytes>,
    over: CancellationToken,
}

/// What is known of a connected peer.
#[derive(Default)]
struct Remote {
    open: Option<Open>,
    opening: bool,
    failures: u32,
    next_try: Option<Instant>,
}

/// The task.
pub(super) struct Replicator {
    core: Replicate,
    events: Events,
    handle: Handle,
    local: PeerId,
    control: libp2p_stream::Control,
    connections: Connections,
    remotes: HashMap<PeerId, Remote>,
    numbers: HashMap<Peer, PeerId>,
    next_number: u64,
    told: BTreeMap<FeedId, Vec<(Seq, [u8; 32])>>,
    /// What goes over gossip next.
    heads: BTreeMap<FeedId, Vec<Tip>>,
    started: Instant,
    facts: mpsc::Sender<Fact>,
    receive: Arc<Semaphore>,
    threads: Arc<Semaphore>,
    keep: Option<Duration>,
    speaks: bool,
    asked_topic: bool,
}

/// What a replicator is made of.
pub(super) struct Parts {
    /// The log.
    pub events: Events,
    /// The loop, for pubsub.
    pub handle: Handle,
    /// This node.
    pub local: PeerId,
    /// Streams.
    pub control: libp2p_stream::Control,
    /// Who is connected.
    pub connections: Connections,
    /// What is kept here, and for how long.
    pub settings: crate::config::Events,
}

impl Replicator {
    /// Runs until `ending`.
    pub(super) async fn run(parts: Parts, ending: CancellationToken) {
        let (facts, mut incoming) = mpsc::channel(FACTS);
        let settings = &parts.settings;
        let mut patterns: Vec<Pattern> = settings
            .subscribe
            .iter()
            .filter_map(|text| Pattern::new(text).ok())
            .collect();
        // Two devices with one identity hear of each other by way of third ones, whatever these subscribe to.
        if let Ok(opened) = Pattern::new(crate::log::OPENED)
            && patterns.len() < MAX_PATTERNS
        {
            patterns.push(opened);
        }
        let mut config = Config::new(patterns);
        config.announce_gap = GAP;
        config.patience = parts.settings.patience;
        config.sync_interval = parts.settings.compare;
        let mut this = Self {
            core: Replicate::new(config),
            events: parts.events,
            handle: parts.handle,
            local: parts.local,
            control: parts.control,
            connections: parts.connections,
            remotes: HashMap::new(),
            numbers: HashMap::new(),
            next_number: 0,
            told: BTreeMap::new(),
            heads: BTreeMap::new(),
            started: Instant::now(),
            facts,
            receive: Arc::new(Semaphore::new(RECEIVE_BYTES)),
            threads: Arc::new(Semaphore::new(THREADS)),
            keep: settings.keep,
            speaks: settings.replicate,
            asked_topic: false,
        };
        this.serve(&mut incoming, &ending).await;
    }

    async fn serve(&mut self, incoming: &mut mpsc::Receiver<Fact>, ending: &CancellationToken) {
        let mut accepted = self.control.accept(StreamProtocol::new(PROTOCOL)).ok();
        let mut heard = None;
        let mut changes = self.events.changes();
        let connections = self.connections.clone();
        let mut fast = tokio::time::interval(FAST);
        let mut retain = tokio::time::interval(RETAIN);
        let mut heads = tokio::time::interval(HEADS);
        for interval in [&mut fast, &mut retain, &mut heads] {
            interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        }
        self.look_at_log().await;
        self.look_at_peers();
        // What comes within the gap is told with it. Nothing else waits for it.
        let mut gap = GAP;
        let mut look: Option<Instant> = None;
        loop {
            self.drain();
            // The topic is read from the first peer on that has a log: with none, nobody would be there to hear.
            if heard.is_none() && !self.numbers.is_empty() && !self.asked_topic {
                self.asked_topic = true;
                heard = self.subscribe().await;
            }
            let due = self.due();
            tokio::select! {
                () = ending.cancelled() => return,
                Some(fact) = incoming.recv() => self.on_fact(fact),
                Some((peer, stream)) = next_of(&mut accepted), if self.speaks => self.on_stream(peer, stream),
                Some(delivery) = next_of(&mut heard) => self.on_gossip(delivery),
                Ok(()) = changes.changed(), if look.is_none() => look = Some(Instant::now() + gap),
                () = at(look) => {
                    look = None;
                    changes.borrow_and_update();
                    let began = Instant::now();
                    self.look_at_log().await;
                    gap = GAP.max(began.elapsed() * LOOK_SHARE);
                }
                () = connections.changed.notified() => self.look_at_peers(),
                () = tokio::time::sleep_until(due) => {
                    let now = self.now();
                    self.core.expire(now);
                    self.look_at_peers();
                }
                _ = heads.tick(), if !self.heads.is_empty() => self.tell_heads().await,
                _ = fast.tick() => self.write_fast(),
                _ = retain.tick() => self.retain(),
            }
        }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// When the core or a broken stream wants to be looked at.
    fn due(&self) -> Instant {
        let core = self.core.deadline().map(|at| self.started + at);
        let streams = self.remotes.values().filter_map(|remote| remote.next_try);
        let far = Instant::now() + Duration::from_secs(3600);
        streams.chain(core).min().unwrap_or(far)
    }

    async fn subscribe(&self) -> Option<gemba_gossip::Subscription> {
        if !self.speaks {
            return None;
        }
        let topic = Topic::new(TOPIC).ok()?;
        let asked = self
            .handle
            .ask(|reply| Command::Subscribe(topic, reply))
            .await;
        // Without pubsub connected peers tell each other all the same.
        asked.ok()?.ok()
    }

    fn write_fast(&self) {
        let events = self.events.clone();
        if events.log().stat().fast_waiting > 0 {
            tokio::task::spawn_blocking(move || events.flush_fast());
        }
    }

    fn retain(&self) {
        if self.keep.is_none() {
            return;
        }
        let (events, keep) = (self.events.clone(), self.keep);
        tokio::task::spawn_blocking(move || events.retain(keep, crate::names::wall_ms()));
    }

    // The log.

    /// Tells the core which feeds grew.
    async fn look_at_log(&mut self) {
        let events = self.events.clone();
        let looking = tokio::task::spawn_blocking(move || {
            events.look_for_others();
            events.log().all_tips()
        });
        let Ok(all) = looking.await else {
            return;
        };
        let mut tips: BTreeMap<FeedId, Vec<(Seq, [u8; 32])>> = BTreeMap::new();
        for tip in all {
            tips.entry(tip.feed)
                .or_default()
                .push((tip.next, tip.batch));
        }
        let own = self.events.log().author();
        for (feed, tips) in tips {
            if self.told.get(&feed) == Some(&tips) {
                continue;
            }
            self.told.insert(feed.clone(), tips.clone());
            let batch = match tips.as_slice() {
                [(_, digest)] if feed.author == own => self.last_batch(*digest),
                _ => None,
            };
            let now = self.now();
            self.core.handle(Input::Local { feed, tips, batch }, now);
        }
    }

    /// A batch that has just been written is in the page cache.
    fn last_batch(&self, digest: [u8; 32]) -> Option<Bytes> {
        let block = self.events.log().block(&cid_of(&digest)?).ok()??;
        Some(block.data().clone())
    }

    // Peers and their streams.

    fn look_at_peers(&mut self) {
        if !self.speaks {
            return;
        }
        let connected = self.connections.now();
        let gone: Vec<PeerId> = self
            .remotes
            .keys()
            .filter(|peer| !connected.contains(peer))
            .copied()
            .collect();
        for peer in gone {
            self.close(&peer);
            self.remotes.remove(&peer);
        }
        let now = Instant::now();
        for peer in connected {
            let remote = self.remotes.entry(peer).or_default();
            // One side opens: the one whose id is lower.
            let is_ours = self.local < peer;
            if !is_ours {
                // The other side comes. A time that is over and never used would wake the task for ever.
                remote.next_try = None;
                continue;
            }
            let is_due = remote.next_try.is_none_or(|at| at <= now);
            if remote.open.is_some() || remote.opening || !is_due {
                continue;
            }
            remote.opening = true;
            remote.next_try = None;
            let (mut control, facts) = (self.control.clone(), self.facts.clone());
            tokio::spawn(async move {
                let opened = control
                    .open_stream(peer, StreamProtocol::new(PROTOCOL))
                    .await;
                let fact = match opened {
                    Ok(stream) => Fact::Opened(peer, stream),
                    Err(error) => {
                        let speaks = !matches!(
                            error,
                            libp2p_stream::OpenStreamError::UnsupportedProtocol(_)
                        );
                        Fact::NotOpened(peer, speaks)
                    }
                };
                let _ending = facts.send(fact).await;
            });
        }
    }

    fn on_fact(&mut self, fact: Fact) {
        let now = self.now();
        match fact {
            Fact::Opened(peer, stream) => {
                if let Some(remote) = self.remotes.get_mut(&peer) {
                    remote.opening = false;
                }
                self.on_stream(peer, stream);
            }
            Fact::NotOpened(peer, speaks) => {
                if let Some(remote) = self.remotes.get_mut(&peer) {
                    remote.opening = false;
                    remote.failures = remote.failures.saturating_add(1);
                    // Kubo does not speak this; a node that is just starting will, and events would never come if it were not asked again.
                    let pause = match speaks {
                        true => pause(remote.failures),
                        false => pause(remote.failures) * UNSUPPORTED,
                    };
                    remote.next_try = Some(Instant::now() + pause);
                }
            }
            Fact::Read(peer, input, permit) => {
                if self.numbers.contains_key(&peer) {
                    self.core.handle(input, now);
                }
                drop(permit);
            }
            Fact::Ended(number) => {
                if let Some(peer) = self.numbers.get(&number).copied() {
                    self.close(&peer);
                    if let Some(remote) = self.remotes.get_mut(&peer) {
                        remote.failures = remote.failures.saturating_add(1);
                        remote.next_try = Some(Instant::now() + pause(remote.failures));
                    }
                }
            }
            Fact::Done(input) => self.core.handle(input, now),
        }
    }

    fn on_stream(&mut self, peer: PeerId, stream: Stream) {
        if !self.connections.now().contains(&peer) {
            return;
        }
        // A second one means that the other side gave the first one up.
        self.close(&peer);
        let number = Peer(self.next_number);
        self.next_number += 1;
        let (outbox, outgoing) = mpsc::channel(OUTBOX);
        let over = CancellationToken::new();
        let remote = self.remotes.entry(peer).or_default();
        remote.opening = false;
        remote.next_try = None;
        remote.open = Some(Open {
            peer: number,
            outbox,
            over: over.clone(),
        });
        self.numbers.insert(number, peer);
        let facts = self.facts.clone();
        let (reading, writing) = stream.split();
        let reader = Reader {
            stream: reading,
            peer: number,
            facts: facts.clone(),
            receive: Arc::clone(&self.receive),
        };
        tokio::spawn(async move {
            let ended = tokio::select! {
                () = over.cancelled() => return,
                ended = reader.run() => ended,
                ended = write(writing, outgoing) => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%peer, %error, "a stream of the log ended");
            }
            let _ending = facts.send(Fact::Ended(number)).await;
        });
        let begins = self.local < peer;
        let now = self.now();
        self.core.handle(
            Input::Connected {
                peer: number,
                begins,
            },
            now,
        );
    }

    fn close(&mut self, peer: &PeerId) {
        let Some(open) = self
            .remotes
            .get_mut(peer)
            .and_then(|remote| remote.open.take())
        else {
            return;
        };
        open.over.cancel();
        self.numbers.remove(&open.peer);
        let now = self.now();
        self.core.handle(Input::Disconnected(open.peer), now);
    }

    fn on_gossip(&mut self, delivery: Delivery) {
        let Delivery::Message(message) = delivery else {
            return;
        };
        let Ok(Message::Announce(Announce { tips, .. })) = Message::decode(&message.data) else {
            return;
        };
        let source = message
            .source
            .and_then(|peer| self.remotes.get(&peer)?.open.as_ref());
        let peer = source.map(|open| open.peer);
        let now = self.now();
        self.core.handle(Input::Heard { peer, tips }, now);
    }

    // What the core wants.

    fn drain(&mut self) {
        while let Some(output) = self.core.poll() {
            match output {
                Output::Send { peer, message } => self.send(peer, &message),
                Output::Append {
                    ticket,
                    batches,
                    begins,
                } => self.append(ticket, batches, begins),
                Output::Load {
                    ticket,
                    feed,
                    from,
                    tip,
                    bytes,
                } => self.load(ticket, feed, from, tip, bytes),
                Output::Lookup { ticket, tips } => self.look_up(ticket, tips),
                Output::Announce(tips) => self.note_heads(tips),
                Output::Event(event) => tell(&event),
            }
        }
    }

    fn send(&mut self, number: Peer, message: &Message) {
        let Some(peer) = self.numbers.get(&number).copied() else {
            return;
        };
        let open = self
            .remotes
            .get(&peer)
            .and_then(|remote| remote.open.as_ref());
        let bytes = Bytes::from(message.encode());
        if open.is_none_or(|open| open.outbox.try_send(bytes).is_ok()) {
            return;
        }
        tracing::debug!(%peer, "a peer takes the log's messages too slowly: its stream is closed and opened anew");
        self.close(&peer);
        if let Some(remote) = self.remotes.get_mut(&peer) {
            remote.failures = remote.failures.saturating_add(1);
            remote.next_try = Some(Instant::now() + pause(remote.failures));
        }
    }

    /// Runs work on a thread that may block, and hands its answer back. Who waits, for a thread or for the task, holds no thread: the task itself
    /// needs one to look at the log. `or` is the answer of work that died.
    fn work(&self, or: Input, work: impl FnOnce(&Events) -> Input + Send + 'static) {
        let (events, facts) = (self.events.clone(), self.facts.clone());
        let threads = Arc::clone(&self.threads);
        tokio::spawn(async move {
            let Ok(_thread) = threads.acquire_owned().await else {
                return;
            };
            let done = answered(or, move || work(&events)).await;
            let _ending = facts.send(Fact::Done(done)).await;
        });
    }

    fn append(&self, ticket: u64, batches: Vec<Batch>, begins: bool) {
        let or = Input::Appended {
            ticket,
            result: Err(NotAppended::Disk),
        };
        self.work(or, move |events| {
            let result = events.log().append_run(batches, begins);
            Input::Appended { ticket, result }
        });
    }

    fn load(&self, ticket: u64, feed: FeedId, from: Seq, tip: [u8; 32], bytes: u64) {
        let or = Input::Loaded {
            ticket,
            batches: Vec::new(),
            more: false,
            starts: 0,
        };
        self.work(or, move |events| {
            let loaded = events.log().load_towards(&feed, from, tip, bytes);
            let loaded = loaded.unwrap_or_else(|error| {
                tracing::debug!(?feed, %error, "events that a peer wants cannot be read");
                Loaded::default()
            });
            Input::Loaded {
                ticket,
                batches: loaded.batches,
                more: loaded.more,
                starts: loaded.starts,
            }
        });
    }

    fn look_up(&self, ticket: u64, tips: Vec<Tip>) {
        let or = Input::Unknown {
            ticket,
            tips: Vec::new(),
        };
        self.work(or, move |events| {
            let unknown = events.log().unknown_tips(tips);
            let tips = unknown.unwrap_or_else(|error| {
                tracing::debug!(%error, "it cannot be told which events are here");
                Vec::new()
            });
            Input::Unknown { ticket, tips }
        });
    }

    /// Notes what is to go over gossip; of each feed the newest.
    fn note_heads(&mut self, tips: Vec<Tip>) {
        let mut of: BTreeMap<FeedId, Vec<Tip>> = BTreeMap::new();
        for tip in tips {
            of.entry(tip.feed.clone()).or_default().push(tip);
        }
        for (feed, tips) in of {
            if self.heads.len() < MAX_HEADS || self.heads.contains_key(&feed) {
                self.heads.insert(feed, tips);
            }
        }
    }

    async fn tell_heads(&mut self) {
        let Ok(topic) = Topic::new(TOPIC) else { return };
        let heads = std::mem::take(&mut self.heads);
        let tips: Vec<Tip> = heads.into_values().flatten().collect();
        for tips in tips.chunks(TIPS_A_MESSAGE) {
            let message = Message::Announce(Announce {
                tips: tips.to_vec(),
                batch: None,
            });
            let data = Bytes::from(message.encode());
            let topic = topic.clone();
            let asked = self.handle.ask(|reply| Command::Publish {
                topic,
                data,
                patience: Duration::ZERO,
                reply,
            });
            // Nobody waits for it, and it waits for nobody. If its future were dropped, it would be taken back before it is signed.
            if let Ok(Ok(publishing)) = asked.await {
                publishing.detach();
            }
        }
    }
}

/// The answer of work on a thread that may block. The core keeps a place for each answer, so there is one also where the work died.
async fn answered(or: Input, work: impl FnOnce() -> Input + Send + 'static) -> Input {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|error| {
        tracing::error!(%error, "work on the log did not end");
        or
    })
}

/// When it is time, if it ever is.
async fn at(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// The next item of something that may not be there.
async fn next_of<S: futures::Stream + Unpin>(stream: &mut Option<S>) -> Option<S::Item> {
    match stream {
        Some(stream) => stream.next().await,
        None => std::future::pending().await,
    }
}

fn pause(failures: u32) -> Duration {
    PAUSE
        .0
        .saturating_mul(1 << failures.saturating_sub(1).min(10))
        .min(PAUSE.1)
}

/// The CID of a batch: dag-cbor, SHA2-256.
fn cid_of(digest: &[u8; 32]) -> Option<Cid> {
    let hash = cid::multihash::Multihash::wrap(0x12, digest).ok()?;
    Some(Cid::new_v1(gemba_block::codec::DAG_CBOR, hash))
}

fn tell(event: &Event) {
    match event {
        Event::Fork { feed, branches } => tracing::error!(
            ?feed,
            branches,
            "an author wrote two histories: a cloned device, or a restored backup; both are kept"
        ),
        Event::Trimmed { feed, from, to } => {
            tracing::warn!(?feed, from, to, "events are gone everywhere");
        }
        Event::Quota { feed } => {
            tracing::warn!(?feed, "an author has used up what it may store here");
        }
        other => tracing::debug!(?other, "replication"),
    }
}

/// Reads a stream's messages, and verifies what is in them.
struct Reader {
    stream: futures::io::ReadHalf<Stream>,
    peer: Peer,
    facts: mpsc::Sender<Fact>,
    receive: Arc<Semaphore>,
}

impl Reader {
    async fn run(mut self) -> io::Result<()> {
        loop {
            let Some(length) = self.length().await? else {
                return Ok(());
            };
            let (bytes, permit) = self.body(length).await?;
            let peer = self.peer;
            // Signatures take some 50 µs a batch, and there may be thousands.
            let read = tokio::task::spawn_blocking(move || understood(peer, &bytes)).await;
            let inputs = read.map_err(io::Error::other)?;
            let mut permit = Some(permit);
            for input in inputs {
                let fact = Fact::Read(peer, input, permit.take());
                if self.facts.send(fact).await.is_err() {
                    return Ok(());
                }
            }
        }
    }

    /// The varint in front of a message; nothing at the end of the stream.
    async fn length(&mut self) -> io::Result<Option<usize>> {
        let mut length = 0_usize;
        for place in 0..4 {
            let mut byte = [0];
            if self.stream.read(&mut byte).await? == 0 {
                return match place {
                    0 => Ok(None),
                    _ => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
            length |= usize::from(byte[0] & 0x7f) << (7 * place);
            if byte[0] & 0x80 == 0 {
                return match length {
                    0 => Err(wrong("a message of nothing")),
                    length if length > MAX_MESSAGE_BYTES => {
                        Err(wrong("a message that is too long"))
                    }
                    length => Ok(Some(length)),
                };
            }
        }
        Err(wrong("a length that is none"))
    }

    /// The message, with room taken for as much of it as has come.
    async fn body(&mut self, length: usize) -> io::Result<(Bytes, OwnedSemaphorePermit)> {
        let mut bytes = Vec::new();
        let mut permit = self.room(0).await?;
        while bytes.len() < length {
            let step = STEP.min(length - bytes.len());
            permit.merge(self.room(step).await?);
            let at = bytes.len();
            bytes.resize(at + step, 0);
            let read = tokio::time::timeout(STALL, self.stream.read_exact(&mut bytes[at..])).await;
            read.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
        }
        Ok((bytes.into(), permit))
    }

    /// A peer waits for others only so long: with its stream its room is given back.
    async fn room(&self, bytes: usize) -> io::Result<OwnedSemaphorePermit> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let room = Arc::clone(&self.receive).acquire_many_owned(bytes);
        let room = tokio::time::timeout(STALL, room).await;
        room.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
            .map_err(io::Error::other)
    }
}

fn wrong(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// What a message means for the core.
fn understood(peer: Peer, bytes: &Bytes) -> Vec<Input> {
    match Message::decode(bytes) {
        Err(error) => {
            tracing::debug!(%error, "a peer sent what is no message of the log");
            vec![Input::Misbehaved(peer)]
        }
        Ok(Message::Batches(batches)) => match verified(batches.runs) {
            Some(runs) => vec![Input::Batches {
                peer,
                id: batches.id,
                runs,
                busy_ms: batches.busy_ms,
            }],
            None => vec![Input::Misbehaved(peer)],
        },
        Ok(Message::Announce(Announce { tips, batch })) => {
            let pushed = match batch.map(batch_of) {
                Some(None) => return vec![Input::Misbehaved(peer)],
                Some(Some(batch)) => Some(Input::Pushed { peer, batch }),
                None => None,
            };
            let message = Message::Announce(Announce { tips, batch: None });
            // The batch first: what it tells is then here already.
            pushed
                .into_iter()
                .chain([Input::Message { peer, message }])
                .collect()
        }
        Ok(message) => vec![Input::Message { peer, message }],
    }
}

fn batch_of(bytes: Bytes) -> Option<Batch> {
    UnverifiedBatch::decode(bytes).ok()?.verify().ok()
}

fn verified(runs: Vec<Run<Bytes>>) -> Option<Vec<Run<Batch>>> {
    let verified = runs.into_iter().map(|run| {
        let batches = run
            .batches
            .into_iter()
            .map(batch_of)
            .collect::<Option<_>>()?;
        Some(Run {
            want: run.want,
            batches,
            more: run.more,
            starts: run.starts,
        })
    });
    verified.collect()
}

/// Writes what is in the outbox, each message behind its length.
async fn write(
    mut stream: futures::io::WriteHalf<Stream>,
    mut outgoing: mpsc::Receiver<Bytes>,
) -> io::Result<()> {
    while let Some(message) = outgoing.recv().await {
        let mut head = Vec::with_capacity(4);
        let mut length = message.len();
        while length >= 0x80 {
            head.push((length & 0x7f) as u8 | 0x80);
            length >>= 7;
        }
        head.push(length as u8);
        stream.write_all(&head).await?;
        stream.write_all(&message).await?;
        if outgoing.is_empty() {
            stream.flush().await?;
        }
    }
    stream.close().await
}

#[cfg(test)]
mod tests {
    #![allow(clippy::panic)]
    use super::*;

    /// A thread that dies in the middle of its work answers all the same: else the feed would never be asked for again.
    #[tokio::test]
    async fn work_that_dies_is_answered() {
        let or = || Input::Appended {
            ticket: 7,
            result: Err(NotAppended::Disk),
        };
        assert_eq!(answered(or(), || panic!("a planted one")).await, or());
        let done = || Input::Unknown {
            ticket: 8,
            tips: Vec::new(),
        };
        assert_eq!(answered(or(), done).await, done());
    }
}
