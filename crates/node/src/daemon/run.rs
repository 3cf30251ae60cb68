//! The loop that composes the node: the next action of a closed list, one `apply`, then `settle` restores what must always
//! hold. Nothing is awaited while an action is applied. The price is that work of several steps is written as state
//! (`flow`); the gain is that any order of events can be thought through.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use gemba_exchange::{Event as ExchangeEvent, LoadKind, Loaded, Why};
use gemba_pnet::{DialCause, DiscoveryEvent, ListenCause, LivenessEvent};
use gemba_store::Store;
use libp2p_core::ConnectedPoint;
use libp2p_core::transport::{ListenerId, TransportError};
use libp2p_identity::PeerId;
use libp2p_swarm::{ConnectionId, Swarm, SwarmEvent};
use multiaddr::{Multiaddr, Protocol};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, MissedTickBehavior};

use super::call::Wait;
use super::command::{Command, Reply};
use super::flow::disk::Disk;
use super::flow::peers::Peers;
use super::flow::pins::{Persisted, Pins};
use super::flow::readers::Readers;
use super::flow::repair::Repair;
use super::flow::why::{self, Around};
use super::flow::{Arriving, Ctx};
use super::ping::Pinger;
use super::swarm::{AGENT, Behaviour, BehaviourEvent, Views};
use super::work::{Done, Read, Refusal, StoredBlock, Workers};
use crate::api::types::{Connected, Id, Receiving, RepoSize, Status, Transfer, Trouble, Waits};
use crate::error::{Code, Fail};
use crate::meta::Meta;
use crate::metrics::{Figures, resident_memory};

/// Answers of the disk threads that may wait for the loop; the threads wait beyond it.
const ANSWERS: usize = 1024;
/// How often what stands still is looked at.
const TICK: Duration = Duration::from_secs(1);
/// `gemba connect` calls that may wait at the same time.
const CONNECTING: usize = 64;
/// A listen address that does not come about in this time does not.
const LISTEN: Duration = Duration::from_secs(5);
/// One that stands for all of its kind has them at once, or there are none.
const LISTEN_ANYWHERE: Duration = Duration::from_secs(1);

/// Everything that can happen to the node.
enum Action {
    Swarm(SwarmEvent<BehaviourEvent>),
    Done(Done),
    Persisted(Persisted),
    Command(Command),
    Tick,
    Stop,
}

/// The node, as one value.
pub(super) struct Node {
    swarm: Swarm<Behaviour>,
    store: Store,
    workers: Workers,
    pins: Pins,
    readers: Readers,
    repair: Repair,
    peers: Peers,
    arriving: Arriving,
    disk: Disk,
    connecting: Vec<Connecting>,
    views: Views,
    meta: Arc<Meta>,
    packs: u64,
    fingerprint: Option<String>,
    kept: Arc<super::keeper::Figures>,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    done: mpsc::Receiver<Done>,
    persisted: mpsc::Receiver<Persisted>,
    busy: bool,
    unserved: u64,
}

/// A caller who waits for a dial.
struct Connecting {
    connection: ConnectionId,
    address: Multiaddr,
    reply: Reply<Result<Connected, Fail>>,
}

impl Node {
    /// Starts the disk threads and loads the pins.
    pub(super) fn new(
        (swarm, views): (Swarm<Behaviour>, Views),
        store: Store,
        meta: Arc<Meta>,
        (fingerprint, kept): (Option<String>, Arc<super::keeper::Figures>),
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, Fail> {
        let (done_sender, done) = mpsc::channel(ANSWERS);
        let (persisted_sender, persisted) = mpsc::channel(ANSWERS);
        let workers = Workers::start(&store, &done_sender)?;
        let mut visited_key = [0; 16];
        getrandom::fill(&mut visited_key)
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
        let pins = Pins::new(
            meta.pins()?,
            Arc::clone(&meta),
            persisted_sender,
            visited_key,
        );
        Ok(Self {
            swarm,
            store,
            workers,
            pins,
            readers: Readers::default(),
            repair: Repair::default(),
            peers: Peers::default(),
            arriving: Arriving::default(),
            disk: Disk::default(),
            connecting: Vec::new(),
            views,
            packs: meta.packs()?,
            meta,
            fingerprint,
            kept,
            started: Instant::now(),
            commands,
            done,
            persisted,
            busy: true,
            unserved: 0,
        })
    }

    /// Listens on all addresses and waits until each does. Returns the real ones, each with `/p2p/…`.
    pub(super) async fn listen(&mut self, addresses: &[Multiaddr]) -> Result<Vec<String>, Fail> {
        if addresses.is_empty() {
            return Err(Fail::new(Code::Usage, "no listen address")
                .hint("give one with --listen, such as /ip4/0.0.0.0/tcp/4001"));
        }
        // All of them before the first listens: a plain socket on `::` takes IPv4 too and would meet our own on `0.0.0.0`.
        addresses.iter().try_for_each(refuse_taken_port)?;
        for address in addresses {
            let id = self
                .swarm
                .listen_on(address.clone())
                .map_err(|e| listen_fail(address, &ListenCause::of(address, &e)))?;
            let patience = if is_wildcard(address) {
                LISTEN_ANYWHERE
            } else {
                LISTEN
            };
            match tokio::time::timeout(patience, self.until_listening(id, address)).await {
                Ok(listening) => listening?,
                // Without IPv6 on the machine nothing ever comes of `::`, and the defaults name it.
                Err(_) if is_wildcard(address) => tracing::warn!(
                    %address,
                    "this machine has no address of that kind; listening there begins when it gets one"
                ),
                Err(_) => return Err(never_listened(address, patience)),
            }
        }
        match self.id().addresses {
            none if none.is_empty() => Err(never_listened(&addresses[0], LISTEN_ANYWHERE)),
            listening => Ok(listening),
        }
    }

    async fn until_listening(
        &mut self,
        listener: ListenerId,
        address: &Multiaddr,
    ) -> Result<(), Fail> {
        loop {
            match self.swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { listener_id, .. } if listener_id == listener => {
                    return Ok(());
                }
                SwarmEvent::ListenerClosed {
                    listener_id,
                    reason: Err(e),
                    ..
                } if listener_id == listener => {
                    return Err(listen_fail(
                        address,
                        &ListenCause::of(address, &TransportError::Other(e)),
                    ));
                }
                SwarmEvent::ListenerError { listener_id, error } if listener_id == listener => {
                    return Err(listen_fail(
                        address,
                        &ListenCause::of(address, &TransportError::Other(error)),
                    ));
                }
                other => self.on_swarm(other),
            }
        }
    }

    /// The loop. Ends when told to.
    pub(super) async fn run(&mut self, mut stop: oneshot::Receiver<()>) -> Result<(), Fail> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let action = self.next(&mut tick, &mut stop).await;
            if matches!(action, Action::Stop | Action::Command(Command::Shutdown)) {
                tracing::info!("ending");
                return Ok(());
            }
            self.apply(action);
            self.settle();
        }
    }

    /// Local work before remote work: what is done frees memory, what arrives takes it.
    async fn next(
        &mut self,
        tick: &mut tokio::time::Interval,
        stop: &mut oneshot::Receiver<()>,
    ) -> Action {
        let busy = self.busy;
        tokio::select! {
            biased;
            _ = stop => Action::Stop,
            _ = tick.tick() => Action::Tick,
            Some(done) = self.done.recv() => Action::Done(done),
            Some(persisted) = self.persisted.recv() => Action::Persisted(persisted),
            Some(command) = self.commands.recv() => Action::Command(command),
            event = self.swarm.select_next_some() => Action::Swarm(event),
            // Last: a walk over blocks that are here goes on when nothing else waits.
            () = std::future::ready(()), if busy => Action::Tick,
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Swarm(event) => self.on_swarm(event),
            Action::Done(done) => self.on_done(done),
            Action::Persisted(persisted) => {
                self.with_pins(|pins, ctx| pins.on_persisted(persisted, ctx));
            }
            Action::Command(command) => self.on_command(command),
            Action::Tick => self.on_tick(),
            Action::Stop => {}
        }
    }

    fn on_tick(&mut self) {
        let now = self.now();
        // A full queue of reads is no reason to ask the disk for its room: it is asked again on a later tick.
        if self.disk.wants_look(now) {
            let _asked = self.workers.read(Read::Room);
        }
        self.disk.expire(self.pins.rests(), now);
        self.with_pins(Pins::expire);
        self.with_readers(Readers::expire);
        self.with_repair(|repair, ctx| {
            // By whoever read them: the scrub, a compaction, a collection.
            for place in ctx.store.take_damaged() {
                if let Some(cid) = place.cid {
                    repair.on_damaged(cid, place.cause, ctx);
                }
            }
            repair.expire(ctx);
        });
        self.note_packs();
    }

    /// How many packs there are is noted beside the pins: if there are fewer at the next start, the disk has lost some. Those that a
    /// compaction removed are not lost.
    fn note_packs(&mut self) {
        let packs = self.store.stat().packs;
        if packs == self.packs {
            return;
        }
        self.packs = packs;
        let meta = Arc::clone(&self.meta);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = meta.note_packs(packs) {
                tracing::warn!(%error, "the number of packs could not be noted");
            }
        });
    }

    fn settle(&mut self) {
        self.busy = self.with_pins(Pins::settle);
        self.connecting.retain(|waiting| !waiting.reply.is_closed());
    }

    /// Ends everything but the disk threads, at once: connections, and with their other ends all who wait for an answer.
    pub(super) fn end(self) -> Ending {
        let Self { workers, done, .. } = self;
        Ending { workers, done }
    }

    fn now(&self) -> Duration {
        self.started.elapsed()
    }

    fn with_pins<T>(&mut self, run: impl FnOnce(&mut Pins, &mut Ctx<'_>) -> T) -> T {
        self.with(|pins, _, _, ctx| run(pins, ctx))
    }

    fn with_readers<T>(&mut self, run: impl FnOnce(&mut Readers, &mut Ctx<'_>) -> T) -> T {
        self.with(|_, readers, _, ctx| run(readers, ctx))
    }

    fn with_repair<T>(&mut self, run: impl FnOnce(&mut Repair, &mut Ctx<'_>) -> T) -> T {
        self.with(|_, _, repair, ctx| run(repair, ctx))
    }

    /// The flows, with what they may touch.
    fn with<T>(
        &mut self,
        run: impl FnOnce(&mut Pins, &mut Readers, &mut Repair, &mut Ctx<'_>) -> T,
    ) -> T {
        let now = self.now();
        let mut ctx = Ctx {
            now,
            exchange: &mut self.swarm.behaviour_mut().exchange,
            store: &self.store,
            workers: &self.workers,
            arriving: &mut self.arriving,
            peers: self.peers.connected(),
            known: &self.peers,
            disk: &mut self.disk,
        };
        run(
            &mut self.pins,
            &mut self.readers,
            &mut self.repair,
            &mut ctx,
        )
    }

    // What the disk threads answer.

    fn on_done(&mut self, done: Done) {
        match done {
            Done::Stored(blocks, outcome) => self.on_written(&blocks, outcome),
            Done::Loaded(id, data) => self.swarm.behaviour_mut().exchange.loaded(id, data),
            Done::Links(id, cid, answer) => {
                self.with_pins(|pins, ctx| pins.on_links(id, &cid, answer, ctx));
            }
            Done::Damaged(cid, cause) => {
                self.with_repair(|repair, ctx| repair.on_damaged(cid, cause, ctx));
            }
            Done::Room(free) => self.disk.on_room(free),
        }
    }

    /// A batch of blocks from the network is durable, or the disk refused it.
    fn on_written(&mut self, blocks: &[StoredBlock], outcome: Result<(), Refusal>) {
        let exchange = &mut self.swarm.behaviour_mut().exchange;
        for block in blocks {
            self.arriving.settled(&block.cid, exchange);
        }
        match outcome {
            Ok(()) => {
                let cids: Vec<_> = blocks.iter().map(|block| block.cid).collect();
                exchange.stored(&cids);
                let now = self.now();
                self.pins.on_stored(blocks, now);
                self.with_repair(|repair, ctx| repair.on_stored(cids.iter(), ctx));
                if self.disk.on_stored(now) {
                    self.pins.on_disk_takes();
                }
            }
            Err(refusal) => {
                tracing::debug!(error = %refusal.fail, blocks = blocks.len(), "blocks could not be stored");
                let now = self.now();
                self.disk.on_refused(&refusal, now);
                self.with_pins(Pins::on_disk_refused);
            }
        }
    }

    /// Blocks were put by the API, past the loop.
    fn on_put(&mut self, cids: &[cid::Cid]) {
        self.swarm.behaviour_mut().exchange.stored(cids);
        self.with(|pins, readers, repair, ctx| {
            pins.on_put(cids, ctx);
            readers.on_put(cids, ctx);
            repair.on_stored(cids.iter(), ctx);
        });
        let now = self.now();
        self.disk.on_put(now);
    }

    // What the swarm says.

    fn on_swarm(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.on_behaviour(event),
            SwarmEvent::ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            } => self.on_connected(peer_id, connection_id, &endpoint),
            SwarmEvent::ConnectionClosed {
                peer_id,
                connection_id,
                cause,
                ..
            } if self.peers.on_closed(&peer_id, connection_id) => {
                let cause = cause.map_or_else(|| "closed".to_owned(), |e| e.to_string());
                tracing::info!(peer = %peer_id, cause, "peer disconnected");
            }
            SwarmEvent::OutgoingConnectionError {
                connection_id,
                peer_id,
                error,
            } => self.on_dial_failed(connection_id, peer_id, &error),
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                peer_id,
                ..
            } => {
                let cause = DialCause::of_incoming(&error);
                tracing::info!(from = %send_back_addr, cause = %cause, "an incoming connection failed");
                let now = self.now();
                self.peers.note(&send_back_addr, peer_id, true, &cause, now);
            }
            SwarmEvent::NewListenAddr { address, .. } => tracing::info!(%address, "listening"),
            SwarmEvent::ListenerError { error, .. } => tracing::warn!(%error, "a listener failed"),
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => tracing::warn!(?addresses, ?reason, "a listener closed"),
            _ => {}
        }
    }

    fn on_connected(&mut self, peer: PeerId, connection: ConnectionId, endpoint: &ConnectedPoint) {
        let (address, dialed) = match endpoint {
            ConnectedPoint::Dialer { address, .. } => (address.clone(), true),
            ConnectedPoint::Listener { send_back_addr, .. } => (send_back_addr.clone(), false),
        };
        let now = self.now();
        if self
            .peers
            .on_connected(peer, connection, address.clone(), dialed, now)
        {
            tracing::info!(%peer, %address, dialed, "peer connected");
            self.swarm
                .behaviour_mut()
                .exchange
                .set_lan(peer, is_local(&address));
            self.pins.try_again();
        }
        for waiting in self
            .connecting
            .extract_if(.., |waiting| waiting.connection == connection)
        {
            let _gone = waiting.reply.send(Ok(Connected {
                id: peer.to_string(),
                address: address.to_string(),
                requested: waiting.address.to_string(),
                already: false,
                tried: true,
            }));
            // Asked for in person and in the swarm: it is kept connected from now on.
            self.swarm
                .behaviour_mut()
                .dialer
                .keep_connected(waiting.address);
        }
    }

    fn on_dial_failed(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        error: &libp2p_swarm::DialError,
    ) {
        let cause = DialCause::of(error);
        let now = self.now();
        for (address, cause) in DialCause::per_address(error) {
            tracing::info!(%address, cause = %cause, "a dial failed");
            self.peers.note(&address, peer, false, &cause, now);
        }
        for waiting in self
            .connecting
            .extract_if(.., |waiting| waiting.connection == connection)
        {
            let _gone = waiting.reply.send(Err(dial_fail(&cause)));
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Exchange(event) => self.on_exchange(event),
            BehaviourEvent::Liveness(LivenessEvent::Rtt { peer, rtt, .. }) => {
                self.peers.on_rtt(&peer, rtt);
            }
            BehaviourEvent::Liveness(event) => tracing::info!(?event, "liveness"),
            BehaviourEvent::Identify(libp2p_identify::Event::Received {
                peer_id, info, ..
            }) => {
                self.peers.on_agent(&peer_id, &info.agent_version);
            }
            BehaviourEvent::Mdns(event) => self.on_discovery(event),
            _ => {}
        }
    }

    fn on_exchange(&mut self, event: ExchangeEvent) {
        match event {
            ExchangeEvent::Found { session, block, .. } => {
                self.readers.on_found(session, &block);
                self.arriving.take(
                    block,
                    &mut self.swarm.behaviour_mut().exchange,
                    &self.workers,
                );
            }
            ExchangeEvent::Load {
                id,
                cid,
                kind: LoadKind::Have,
            } => {
                let answer = self.store.size(&cid).map_or(Loaded::Missing, Loaded::Size);
                self.swarm.behaviour_mut().exchange.loaded(id, answer);
            }
            ExchangeEvent::Load {
                id,
                cid,
                kind: LoadKind::Block,
            } => {
                if !self.store.has(&cid) {
                    self.swarm
                        .behaviour_mut()
                        .exchange
                        .loaded(id, Loaded::Missing);
                } else if !self.workers.read(Read::Serve(id, cid)) {
                    self.unserved += 1;
                    self.swarm
                        .behaviour_mut()
                        .exchange
                        .loaded(id, Loaded::Missing);
                }
            }
            ExchangeEvent::Unavailable {
                session,
                cid,
                asked,
            } => {
                self.pins.on_unavailable(session, cid, asked.len());
                self.readers.on_unavailable(session, cid);
            }
            ExchangeEvent::Stalled { peer, moved } => {
                tracing::info!(%peer, moved, "a peer made no progress; its wants were moved to others");
            }
            ExchangeEvent::Distrusted { peer } => {
                tracing::warn!(%peer, "a peer sent bytes that do not hash to what was asked for; it is not asked for a while");
            }
            _ => {}
        }
    }

    // What the API asks.

    fn on_command(&mut self, command: Command) {
        match command {
            Command::Id(reply) => drop(reply.send(self.id())),
            Command::Peers(reply) => {
                let ledger = self.swarm.behaviour().exchange.peers();
                let bytes = |peer: &PeerId| {
                    ledger
                        .iter()
                        .find(|entry| entry.peer == *peer)
                        .map_or((0, 0), |entry| (entry.bytes_in, entry.bytes_out))
                };
                let _gone = reply.send(self.peers.list(self.now(), bytes));
            }
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Metrics(reply) => drop(reply.send(self.figures())),
            Command::Connect(address, reply) => self.connect(address, reply),
            Command::Pinger(peer, reply) => drop(reply.send(self.pinger(peer))),
            Command::Why(cid, reply) => drop(reply.send(self.why(&cid))),
            Command::Pin {
                cid,
                kind,
                name,
                reply,
            } => self.pins.pin(cid, kind, name, reply),
            Command::Unpin(cid, reply) => self.with_pins(|pins, ctx| pins.unpin(cid, reply, ctx)),
            Command::Waits(wait, reply) => drop(reply.send(self.waits(&wait))),
            Command::Pins(after, reply) => drop(reply.send(self.pins.list(after.as_ref()))),
            Command::Struck(roots, reply) => self.pins.strike_out(roots, reply),
            Command::Scrubbed(roots, reply) => {
                self.with_repair(Repair::on_scrubbed);
                self.pins.strike_out(roots, reply);
            }
            Command::DesiredSet(reply) => drop(reply.send(self.pins.desired().clone())),
            Command::PinStatus(cid, reply) => drop(reply.send(self.pins.status(&cid))),
            Command::OpenReader(patience, reply) => {
                let opened = self.with_readers(|readers, ctx| readers.open(patience, ctx));
                let _gone = reply.send(opened);
            }
            Command::Prefetch(id, cids) => {
                self.with_readers(|readers, ctx| readers.prefetch(id, cids, ctx));
            }
            Command::Fetch(id, cid, reply) => {
                self.with_readers(|readers, ctx| readers.fetch(id, cid, reply, ctx));
            }
            Command::CloseReader(id) => self.with_readers(|readers, ctx| readers.close(id, ctx)),
            Command::Stored(cids) => self.on_put(&cids),
            Command::Damaged(cid, cause) => {
                self.with_repair(|repair, ctx| repair.on_damaged(cid, cause, ctx));
            }
            Command::Shutdown => {}
        }
    }

    fn id(&self) -> Id {
        let id = *self.swarm.local_peer_id();
        let mut addresses: Vec<String> = self
            .swarm
            .listeners()
            .map(|address| address.clone().with(Protocol::P2p(id)).to_string())
            .collect();
        addresses.sort();
        Id {
            id: id.to_string(),
            addresses,
            agent: AGENT.to_owned(),
            protocols: Vec::new(),
        }
    }

    fn connect(&mut self, address: Multiaddr, reply: Reply<Result<Connected, Fail>>) {
        if self.connecting.len() >= CONNECTING {
            return drop(
                reply.send(Err(Fail::new(
                    Code::Conflict,
                    "too many dials wait already",
                )
                .hint("try again in a moment"))),
            );
        }
        let expected = address.iter().find_map(|part| match part {
            Protocol::P2p(peer) => Some(peer),
            _ => None,
        });
        if let Some(peer) = expected
            && let Some(known) = self.peers.address_of(&peer, &address)
        {
            // A second connection would bring nothing; but the address was not tried, and the answer must not look as if.
            return drop(reply.send(Ok(Connected {
                id: peer.to_string(),
                address: known.to_string(),
                requested: address.to_string(),
                already: true,
                tried: false,
            })));
        }
        if self.is_own(&address) {
            let fail = Fail::new(Code::Usage, format!("{address} is this node's own address"));
            return drop(reply.send(Err(
                fail.hint("`gemba id` on the other node prints its addresses"),
            )));
        }
        if expected.is_none()
            && let Some(peer) = self.peers.at(&address)
        {
            return drop(reply.send(Ok(Connected {
                id: peer.to_string(),
                address: address.to_string(),
                requested: address.to_string(),
                already: true,
                tried: false,
            })));
        }
        match self.swarm.behaviour_mut().dialer.dial_now(address.clone()) {
            Some(connection) => self.connecting.push(Connecting {
                connection,
                address,
                reply,
            }),
            None => drop(
                reply.send(Err(Fail::new(
                    Code::Conflict,
                    "too many dials wait already",
                )
                .hint("try again in a moment"))),
            ),
        }
    }

    fn is_own(&self, address: &Multiaddr) -> bool {
        let own = *self.swarm.local_peer_id();
        let bare: Multiaddr = address
            .iter()
            .filter(|part| !matches!(part, Protocol::P2p(_)))
            .collect();
        address.iter().any(|part| part == Protocol::P2p(own))
            || self.swarm.listeners().any(|listener| *listener == bare)
    }

    fn on_discovery(&mut self, event: DiscoveryEvent) {
        match event {
            DiscoveryEvent::Discovered { peer, address } => {
                self.swarm.behaviour_mut().dialer.discovered(peer, address);
            }
            other => tracing::info!(event = ?other, "discovery"),
        }
    }

    fn pinger(&self, peer: PeerId) -> Result<Pinger, Fail> {
        if peer == *self.swarm.local_peer_id() {
            return Err(Fail::new(Code::Usage, "this is the node itself")
                .hint("`gemba peers` lists the others"));
        }
        if !self.peers.contains(&peer) {
            let known = self
                .peers
                .troubles(self.now())
                .into_iter()
                .find(|trouble| trouble.peer.as_deref() == Some(&peer.to_string()));
            let cause = known.map_or(String::new(), |trouble| format!(": {}", trouble.cause));
            return Err(
                Fail::new(Code::NotFound, format!("{peer} is not connected{cause}")).hint(
                    "`gemba connect MULTIADDR` first; `gemba peers` lists the connected ones",
                ),
            );
        }
        Ok(Pinger::new(
            self.swarm.behaviour().streams.new_control(),
            peer,
        ))
    }

    /// What a request waits for, and what is known of it.
    fn waits(&self, wait: &Wait) -> Waits {
        match wait {
            Wait::Block(cid) => self.waits_for_block(cid),
            Wait::Pin(root) => match (self.disk.words(), self.pins.lacks(root)) {
                (None, Some(cid)) => self.waits_for_block(&cid),
                (disk, _) => Waits {
                    what: "pin".to_owned(),
                    name: root.to_string(),
                    cause: disk.unwrap_or_else(|| format!("the pin of {root} waits for its turn, or for the disk")),
                    hint: format!("`gemba pin status {root}` tells how far it is"),
                    waited_s: 0.0,
                    code: Code::Timeout,
                },
            },
            Wait::Dial(address) => Waits {
                what: "dial".to_owned(),
                name: address.to_string(),
                cause: format!("dialing {address}: {}", self.dial_state(address)),
                hint: "`gemba status` shows how it ends; a longer --timeout waits for it"
                    .to_owned(),
                waited_s: 0.0,
                code: Code::Timeout,
            },
            Wait::Ping(peer) => Waits {
                what: "ping".to_owned(),
                name: peer.to_string(),
                cause: match self.peers.described(peer) {
                    Some(known) => format!("{peer} {known} and has not answered the ping"),
                    None => format!("{peer} is not connected any more"),
                },
                hint: "nothing comes back over a connection that is there: look at the device or the line".to_owned(),
                waited_s: 0.0,
                code: Code::Timeout,
            },
        }
    }

    fn waits_for_block(&self, cid: &cid::Cid) -> Waits {
        let why = self.swarm.behaviour().exchange.why(cid);
        let (code, here) = match self.repair.damage(cid) {
            Some(damage) => (
                Code::Integrity,
                format!("which is damaged on this device ({damage})"),
            ),
            None => (Code::Timeout, "which is not on this device".to_owned()),
        };
        Waits {
            what: "block".to_owned(),
            name: cid.to_string(),
            cause: format!(
                "waiting for block {cid}, {here}: {}",
                self.why_not_here(why.as_ref())
            ),
            hint: why::hint(cid, self.peers.connected()),
            waited_s: 0.0,
            code,
        }
    }

    fn why_not_here(&self, why: Option<&Why>) -> String {
        why::block(&Around {
            why,
            peers: self.peers.connected(),
            now: self.swarm.behaviour().exchange.now(),
            troubles: &self.peers.troubles(self.now()),
        })
    }

    /// Where a dial stands: in its own words if it is under way, else why the last one failed.
    fn dial_state(&self, address: &Multiaddr) -> String {
        if let Some(stage) = self.views.stages.of(address) {
            return stage.to_string();
        }
        let bare = super::flow::peers::bare(address);
        let mut failures = self.swarm.behaviour().dialer.failures();
        match failures.find(|failed| failed.address == bare) {
            Some(failed) => failed.cause.to_string(),
            None => "it waits for its turn".to_owned(),
        }
    }

    fn why(&self, cid: &cid::Cid) -> serde_json::Value {
        let here = self.store.size(cid);
        let wanted = self.swarm.behaviour().exchange.why(cid);
        let pin = self.pins.status(cid);
        let summary = match (&here, &wanted, &pin) {
            (Some(bytes), _, _) => format!("the block is on this device ({bytes} bytes)"),
            (None, Some(why), _) => {
                format!("the block is wanted: {}", self.why_not_here(Some(why)))
            }
            (None, None, Some(pin)) => format!(
                "the root is pinned and {}: {}",
                pin.status,
                pin.cause.as_deref().unwrap_or("in progress")
            ),
            (None, None, None) => {
                "the block is not here and nobody on this device wants it".to_owned()
            }
        };
        serde_json::json!({
            "cid": cid.to_string(),
            "here": here.is_some(),
            "bytes": here,
            "summary": summary,
            "wanted": wanted.is_some(),
            "why": wanted.map(|why| crate::why::with_ages(&why, self.swarm.behaviour().exchange.now())),
            "pin": pin,
            "peers": self.peers.connected(),
            "troubles": self.peers.troubles(self.now()),
        })
    }

    fn transfer(&self) -> Transfer {
        let counters = self.swarm.behaviour().exchange.counters();
        Transfer {
            bytes_in: counters.block_bytes_in,
            bytes_out: counters.block_bytes_out,
            blocks_in: counters.blocks_in,
            blocks_out: counters.blocks_out,
            duplicates: counters.duplicates,
        }
    }

    /// What is wrong: on this device first, then on the way to others.
    fn troubles(&self) -> Vec<Trouble> {
        let now = self.now();
        let mut troubles: Vec<Trouble> = self
            .disk
            .trouble(self.store.dir(), now)
            .into_iter()
            .collect();
        troubles.extend(self.repair.trouble(now));
        troubles.extend(self.kept.trouble(self.store.dir()));
        troubles.extend(self.pins.troubles(now));
        troubles.extend(self.peers.troubles(now));
        troubles
    }

    fn status(&self) -> Status {
        let stat = self.store.stat();
        let (rss_bytes, rss_max_bytes) = resident_memory();
        let pins = self.pins.counts();
        let is_hurt = self.disk.refuses().is_some() || self.repair.open() > 0;
        let health = match (self.peers.connected(), pins.error) {
            _ if is_hurt => "degraded",
            (0, _) => "alone",
            (_, 0) => "ok",
            _ => "degraded",
        };
        Status {
            id: self.swarm.local_peer_id().to_string(),
            peers: self.peers.connected() as u64,
            private: self.fingerprint.is_some(),
            fingerprint: self.fingerprint.clone(),
            repo: RepoSize {
                blocks: stat.blocks,
                bytes: stat.bytes,
                disk_bytes: stat.disk_bytes,
            },
            transfer: self.transfer(),
            health: health.to_owned(),
            daemon: true,
            uptime_s: self.now().as_secs(),
            troubles: self.troubles(),
            pins,
            rss_bytes,
            rss_max_bytes,
            kept: self.kept.read(),
            receiving: Receiving {
                unread_bytes: self.views.receive.used() as u64,
                unread_limit_bytes: self.views.receive.limit() as u64,
                exchange_bytes: self.swarm.behaviour().exchange.receiving_bytes() as u64,
                arriving_bytes: self.arriving.bytes() as u64,
            },
        }
    }

    fn figures(&self) -> Figures {
        use prometheus_client::registry::Unit::{Bytes, Seconds};
        let status = self.status();
        let counters = self.swarm.behaviour().exchange.counters();
        let gauge = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let mut figures = Figures {
            gauges: vec![
                ("peers", "Connected peers", None, gauge(status.peers)),
                (
                    "uptime",
                    "Since the daemon started",
                    Some(Seconds),
                    gauge(status.uptime_s),
                ),
                (
                    "resident_memory",
                    "Resident memory of this process",
                    Some(Bytes),
                    gauge(status.rss_bytes),
                ),
                (
                    "store_blocks",
                    "Blocks held",
                    None,
                    gauge(status.repo.blocks),
                ),
                (
                    "store_payload",
                    "Payload of the blocks held",
                    Some(Bytes),
                    gauge(status.repo.bytes),
                ),
                (
                    "store_disk",
                    "Disk space of the blocks held",
                    Some(Bytes),
                    gauge(status.repo.disk_bytes),
                ),
                (
                    "pins_whole",
                    "Pins that are whole on this device",
                    None,
                    gauge(status.pins.pinned),
                ),
                (
                    "pins_in_flight",
                    "Pins being fetched",
                    None,
                    gauge(status.pins.pinning),
                ),
                (
                    "pins_queued",
                    "Pins that wait for their turn",
                    None,
                    gauge(status.pins.queued),
                ),
                (
                    "pins_failed",
                    "Pins that stand still and are tried again later",
                    None,
                    gauge(status.pins.error),
                ),
                (
                    "damaged_blocks",
                    "Blocks that are damaged on disk and wanted from the swarm",
                    None,
                    gauge(self.repair.open() as u64),
                ),
                (
                    "arriving_blocks",
                    "Blocks between network and disk",
                    None,
                    gauge(self.arriving.len() as u64),
                ),
                (
                    "arriving",
                    "Blocks between network and disk",
                    Some(Bytes),
                    gauge(status.receiving.arriving_bytes),
                ),
                (
                    "receive_unread",
                    "Received on all connections and not read yet",
                    Some(Bytes),
                    gauge(status.receiving.unread_bytes),
                ),
                (
                    "receive_unread_limit",
                    "Where connections that lag behind are not read any more",
                    Some(Bytes),
                    gauge(status.receiving.unread_limit_bytes),
                ),
                (
                    "receive_exchange",
                    "Messages of the block exchange being received or handled",
                    Some(Bytes),
                    gauge(status.receiving.exchange_bytes),
                ),
            ],
            counters: vec![
                (
                    "write_queue_overflows".into(),
                    "Blocks refused because the write queue was full",
                    None,
                    self.arriving.overflows,
                ),
                (
                    "refused_batches".into(),
                    "Batches of blocks that the disk did not take",
                    None,
                    self.disk.refused_batches,
                ),
                (
                    "repaired_blocks".into(),
                    "Blocks that were damaged on disk and fetched again",
                    None,
                    self.repair.repaired,
                ),
                (
                    "repair_overflows".into(),
                    "Damaged blocks not wanted at once because the list was full",
                    None,
                    self.repair.overflows,
                ),
                (
                    "gc_runs".into(),
                    "Collections that came to their end",
                    None,
                    status.kept.gc_runs,
                ),
                (
                    "gc_blocks".into(),
                    "Blocks that collections removed",
                    None,
                    status.kept.gc_blocks,
                ),
                (
                    "gc".into(),
                    "Payload that collections removed",
                    Some(Bytes),
                    status.kept.gc_bytes,
                ),
                (
                    "store_freed".into(),
                    "Given back to the disk",
                    Some(Bytes),
                    status.kept.freed_bytes,
                ),
                (
                    "scrubbed".into(),
                    "Payload that the scrub has read",
                    Some(Bytes),
                    status.kept.scrubbed_bytes,
                ),
                (
                    "scrub_damaged".into(),
                    "Damaged places that the scrub has found",
                    None,
                    status.kept.scrub_damaged,
                ),
                (
                    "read_queue_overflows".into(),
                    "Requests not served because the read queue was full",
                    None,
                    self.unserved,
                ),
            ],
        };
        figures
            .counters
            .extend(counters.iter().map(|(name, value)| {
                (
                    format!("exchange_{name}"),
                    "Counted by the block exchange",
                    None,
                    value,
                )
            }));
        figures
    }
}

/// A node whose loop has ended: what is left to do on disk.
pub(super) struct Ending {
    workers: Workers,
    done: mpsc::Receiver<Done>,
}

impl Ending {
    /// Lets the disk threads finish what they hold.
    pub(super) async fn finish(self) {
        let Self { workers, mut done } = self;
        let finishing = tokio::task::spawn_blocking(move || workers.finish());
        while done.recv().await.is_some() {}
        if finishing.await.is_err() {
            tracing::error!("the disk threads did not end cleanly");
        }
    }
}

/// libp2p's sockets share their port with any other that does, so a second daemon would quietly take half of the first one's
/// connections. A plain socket is refused where another one listens.
fn refuse_taken_port(address: &Multiaddr) -> Result<(), Fail> {
    let mut parts = address.iter();
    let ip: std::net::IpAddr = match parts.next() {
        Some(Protocol::Ip4(ip)) => ip.into(),
        Some(Protocol::Ip6(ip)) => ip.into(),
        _ => return Ok(()),
    };
    let Some(Protocol::Tcp(port)) = parts.next().filter(|part| *part != Protocol::Tcp(0)) else {
        return Ok(());
    };
    match std::net::TcpListener::bind((ip, port)) {
        Ok(_free) => Ok(()),
        Err(e) => Err(listen_fail(
            address,
            &ListenCause::of(address, &TransportError::Other(e)),
        )),
    }
}

/// Whether an address stands for all of its kind that the machine has.
fn is_wildcard(address: &Multiaddr) -> bool {
    match address.iter().next() {
        Some(Protocol::Ip4(ip)) => ip.is_unspecified(),
        Some(Protocol::Ip6(ip)) => ip.is_unspecified(),
        _ => false,
    }
}

fn never_listened(address: &Multiaddr, patience: Duration) -> Fail {
    Fail::new(
        Code::Timeout,
        format!(
            "listening on {address} did not come about in {} s",
            patience.as_secs()
        ),
    )
    .hint("does this machine have such an address? Another one is given with --listen, as /ip4/0.0.0.0/tcp/4001")
}

fn listen_fail(address: &Multiaddr, cause: &ListenCause) -> Fail {
    let fail = Fail::new(
        Code::Conflict,
        format!("cannot listen on {address}: {cause}"),
    );
    fail.hint("give another address with --listen, or port 0 for any free one")
}

/// What became of a dial, with the exit code that fits.
fn dial_fail(cause: &DialCause) -> Fail {
    let code = match cause {
        DialCause::WrongSwarmKey { .. }
        | DialCause::ProbablyWrongSwarmKey { .. }
        | DialCause::NotPrivate => Code::Permission,
        DialCause::Unreachable | DialCause::NoNonce(_) | DialCause::BackingOff { .. } => {
            Code::Timeout
        }
        DialCause::WrongPeer { .. } => Code::Conflict,
        DialCause::Malformed(_) | DialCause::Ourselves => Code::Usage,
        DialCause::NoSuchHost(_) | DialCause::NoAddress => Code::NotFound,
        _ => Code::Failure,
    };
    Fail::new(code, cause)
}

/// Whether an address is on this machine or in a network of one's own, so that reaching it costs no uplink.
fn is_local(address: &Multiaddr) -> bool {
    address.iter().any(|part| match part {
        Protocol::Ip4(ip) => ip.is_loopback() || ip.is_private() || ip.is_link_local(),
        Protocol::Ip6(ip) => ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local(),
        _ => false,
    })
}
