//! The loop that composes the node: the next action of a closed list, one `apply`, then `settle` restores what must always
//! hold. Nothing is awaited while an action is applied. The price is that work of several steps is written as state
//! (`flow`); the gain is that any order of events can be thought through.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use gemba_exchange::{Answer, Asked, Event as ExchangeEvent, Line, LoadKind, Loaded, Why};
use gemba_gossip::{BehaviourEvent as GossipEvent, Topic};
use gemba_log::Log;
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
use super::command::{Command, PAGE, Reply};
use super::dial;
use super::flow::dht;
use super::flow::disk::Disk;
use super::flow::follow::Follows;
use super::flow::names::{self, Names, Routes};
use super::flow::peers::Peers;
use super::flow::pins::{Persisted, Pins};
use super::flow::pubsub::{self, Pubsub};
use super::flow::readers::Readers;
use super::flow::repair::Repair;
use super::flow::why::{self, Around};
use super::flow::{Arriving, Ctx};
use super::listen;
use super::ping::Pinger;
use super::replicate::Connections;
use super::room::{Room, Waiter};
use super::swarm::{AGENT, Behaviour, BehaviourEvent, Views};
use super::work::{Done, Read, StoredBlock, Workers};
use crate::api::types::{
    Connected, Id, LineView, Receiving, RepoSize, SiteView, Status, Transfer, Trouble, Waits,
};
use crate::config::{Bandwidth, Config};
use crate::content::room::{Puts, Refusal};
use crate::error::{Code, Fail};
use crate::lines::Uplink;
use crate::meta::{Meta, PinEdit, PinState};
use crate::metrics::{Figures, resident_memory};
use crate::names::follows;
use crate::repo::{Layout, packs_to_note};

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
    Swarm(Box<SwarmEvent<BehaviourEvent>>),
    Done(Done),
    Persisted(Persisted),
    Names(names::Fact),
    Due,
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
    pubsub: Pubsub,
    names: Names,
    follows: Follows,
    peers: Peers,
    connections: Connections,
    arriving: Arriving,
    disk: Disk,
    connecting: Vec<Connecting>,
    views: Views,
    meta: Arc<Meta>,
    packs: u64,
    fingerprint: Option<String>,
    site: String,
    bandwidth: Bandwidth,
    kept: Arc<super::keeper::Figures>,
    room: Arc<Room>,
    started: Instant,
    commands: mpsc::Receiver<Command>,
    done: mpsc::Receiver<Done>,
    persisted: mpsc::Receiver<Persisted>,
    facts: mpsc::Receiver<names::Fact>,
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
    /// Starts the disk threads and loads the pins and the book of names.
    pub(super) fn new(
        ((swarm, views), connections): ((Swarm<Behaviour>, Views), Connections),
        (store, log): (Store, Arc<Log>),
        (layout, config, meta): (&Layout, &Config, Arc<Meta>),
        fingerprint: Option<String>,
        (kept, room): (Arc<super::keeper::Figures>, Arc<Room>),
        commands: mpsc::Receiver<Command>,
    ) -> Result<Self, Fail> {
        let (done_sender, done) = mpsc::channel(ANSWERS);
        let (persisted_sender, persisted) = mpsc::channel(ANSWERS);
        let (facts_sender, facts) = mpsc::channel(ANSWERS);
        let follows = Follows::new(crate::names::follows::load(&meta)?);
        let names = Names::new(
            (layout, &config.names),
            Arc::clone(&meta),
            follows.names(),
            facts_sender,
        )?;
        let puts = Waiter {
            room: Arc::clone(&room),
            store: store.clone(),
            call: None,
        };
        let puts = Puts::with_room(store.clone(), Arc::new(puts));
        let workers = Workers::start(&store, &log, &puts, &done_sender)?;
        let mut visited_key = [0; 16];
        getrandom::fill(&mut visited_key)
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
        let pins = Pins::new(
            Arc::clone(&meta) as Arc<dyn PinState>,
            persisted_sender,
            visited_key,
            config.pins.tracker(),
        );
        Ok(Self {
            swarm,
            store,
            workers,
            pins,
            readers: Readers::new(config.reads),
            repair: Repair::default(),
            pubsub: Pubsub::default(),
            names,
            follows,
            peers: Peers::default(),
            connections,
            arriving: Arriving::default(),
            disk: Disk::default(),
            connecting: Vec::new(),
            views,
            packs: meta.packs()?,
            meta,
            fingerprint,
            site: config.network.site.clone(),
            bandwidth: config.bandwidth.clone(),
            kept,
            room,
            started: Instant::now(),
            commands,
            done,
            persisted,
            facts,
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
        addresses.iter().try_for_each(listen::refuse_taken_port)?;
        for address in addresses {
            let id = self
                .swarm
                .listen_on(address.clone())
                .map_err(|e| listen::fail(address, &ListenCause::of(address, &e)))?;
            let patience = if listen::is_wildcard(address) {
                LISTEN_ANYWHERE
            } else {
                LISTEN
            };
            match tokio::time::timeout(patience, self.until_listening(id, address)).await {
                Ok(listening) => listening?,
                // Without IPv6 on the machine nothing ever comes of `::`, and the defaults name it.
                Err(_) if listen::is_wildcard(address) => tracing::warn!(
                    %address,
                    "this machine has no address of that kind; listening there begins when it gets one"
                ),
                Err(_) => return Err(listen::never(address, patience)),
            }
        }
        match self.id().addresses {
            none if none.is_empty() => Err(listen::never(&addresses[0], LISTEN_ANYWHERE)),
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
                    return Err(listen::fail(
                        address,
                        &ListenCause::of(address, &TransportError::Other(e)),
                    ));
                }
                SwarmEvent::ListenerError { listener_id, error } if listener_id == listener => {
                    return Err(listen::fail(
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
        let due = self.started + self.names.deadline();
        tokio::select! {
            biased;
            _ = stop => Action::Stop,
            _ = tick.tick() => Action::Tick,
            Some(done) = self.done.recv() => Action::Done(done),
            Some(persisted) = self.persisted.recv() => Action::Persisted(persisted),
            Some(fact) = self.facts.recv() => Action::Names(fact),
            () = tokio::time::sleep_until(due) => Action::Due,
            Some(command) = self.commands.recv() => Action::Command(command),
            event = self.swarm.select_next_some() => Action::Swarm(Box::new(event)),
            // Last: a walk over blocks that are here goes on when nothing else waits.
            () = std::future::ready(()), if busy => Action::Tick,
        }
    }

    fn apply(&mut self, action: Action) {
        match action {
            Action::Swarm(event) => self.on_swarm(*event),
            Action::Done(done) => self.on_done(done),
            Action::Persisted(persisted) => {
                let now = self.now();
                self.pins.on_persisted(persisted, now);
            }
            Action::Names(fact) => {
                let now = self.now();
                self.names.on_fact(fact, now);
            }
            Action::Due => {
                let now = self.now();
                self.names.expire(now);
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
        self.names.tick(now);
        self.note_packs();
    }

    /// How many packs there are is noted beside the pins: if there are fewer at the next start, the disk has lost some. Those that a
    /// compaction removed are not lost.
    fn note_packs(&mut self) {
        let packs = packs_to_note(&self.store);
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

    /// Names may want pins, and a pin that became whole may be what a follow waits for: until neither moves the other.
    fn settle(&mut self) {
        self.settle_names();
        loop {
            self.busy = self.with_pins(Pins::settle);
            if !self.settle_names() {
                break;
            }
        }
        self.connecting.retain(|waiting| !waiting.reply.is_closed());
    }

    /// The book first, which tells what changed; then whoever follows it, who may ask the book for more. True: something was asked of book or pins.
    fn settle_names(&mut self) -> bool {
        let mut any = false;
        loop {
            let now = self.now();
            let behaviour = self.swarm.behaviour_mut();
            let mut routes = Routes {
                carrier: &mut behaviour.names,
                gossip: behaviour.gossip.as_mut(),
                dht: behaviour.dht.as_mut(),
            };
            let mut moved = false;
            let mut newest = Vec::new();
            for event in self.names.settle(&mut routes, now) {
                self.follows.on_event(&event);
                if let gemba_names::Event::Changed { now, .. } = event {
                    newest.push(now);
                }
            }
            // A root may be published before it is whole.
            if self.pins.take_whole() {
                newest.extend(self.names.own_incomplete(now));
            }
            for newest in newest {
                moved |= self.complete_own(newest, now);
            }
            moved |= self.follows.settle(&mut self.names, &mut self.pins, now);
            if !moved {
                return any;
            }
            any = true;
        }
    }

    /// What is published here and pinned whole here is complete: nobody has to follow an own name for that (specs/names.md NA-19).
    fn complete_own(&mut self, newest: gemba_names::Resolved, now: Duration) -> bool {
        let is_whole = |root| {
            let pin = self.pins.rows().and_then(|rows| rows.get(&root));
            pin.is_ok_and(|pin| pin.is_some_and(|pin| crate::names::is_whole(&pin)))
        };
        if !self.names.is_own(&newest.name)
            || self.follows.contains(&newest.name)
            || !crate::names::root_of(&newest.version.value).is_ok_and(is_whole)
        {
            return false;
        }
        let command = gemba_names::Command::Complete {
            name: newest.name,
            version: newest.version,
            rollback: false,
        };
        // A version that is older than the complete one is refused, which is right.
        let (reply, _nobody) = oneshot::channel();
        self.names.run_for(command, reply, now);
        true
    }

    /// Pins what somebody wants. If a follow wanted it already it is his from now on, and stays when the follow releases it.
    fn pin(
        &mut self,
        cid: cid::Cid,
        kind: gemba_pins::Kind,
        name: Option<String>,
        reply: Reply<Result<super::flow::pins::View, Fail>>,
    ) {
        if let Some(Err(fail)) = name.as_deref().map(crate::names::follows::check_pin_name) {
            return drop(reply.send(Err(fail)));
        }
        let now = self.now();
        self.pins.pin((cid, kind), name, reply, now);
    }

    /// Unpins what somebody pinned; what a follow needs stays under the label of that follow.
    fn unpin(&mut self, cid: cid::Cid, reply: Reply<Result<(), Fail>>) {
        let now = self.now();
        match self.holder(&cid) {
            None => self.pins.unpin(cid, reply, now),
            holder => self.pins.change(PinEdit::Release(cid, holder), reply, now),
        }
    }

    /// Ends what is being done about a root; what a follow needs is not given up that way.
    fn cancel(&mut self, cid: cid::Cid, reply: Reply<Result<(), Fail>>) {
        let now = self.now();
        match self.holder(&cid) {
            None => self.pins.cancel(cid, reply, now),
            Some(label) => drop(reply.send(Err(follows::held(&cid, &label)))),
        }
    }

    /// Releases the older one of two pins, if the newer one is whole.
    fn replace(&mut self, old: cid::Cid, new: cid::Cid, reply: Reply<Result<(), Fail>>) {
        let (now, holder) = (self.now(), self.holder(&old));
        let edit = PinEdit::Replace(old, new, holder);
        self.pins.change(edit, reply, now);
    }

    /// The label of the follow that needs a root, if one does.
    fn holder(&self, cid: &cid::Cid) -> Option<String> {
        self.follows.holder(cid).map(|name| follows::label(&name))
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
            Done::Has(id, has) => self.swarm.behaviour_mut().exchange.loaded(id, has),
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
                    self.pins.on_disk_takes(now);
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
                self.connections.remove(&peer_id);
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
            self.connections.add(peer);
            let near = self.bandwidth.near.line(&address) == Line::Near;
            self.swarm.behaviour_mut().exchange.set_lan(peer, near);
            self.pins.try_again(now);
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
            let next = self.swarm.behaviour().dialer.next_try(peer, &address);
            self.peers
                .on_next_try(&address, next.map(|after| now + after));
        }
        for waiting in self
            .connecting
            .extract_if(.., |waiting| waiting.connection == connection)
        {
            let _gone = waiting
                .reply
                .send(Err(dial::fail(&waiting.address, &cause)));
        }
    }

    fn on_behaviour(&mut self, event: BehaviourEvent) {
        match event {
            BehaviourEvent::Exchange(event) => self.on_exchange(event),
            BehaviourEvent::Site(event) => self.swarm.behaviour_mut().exchange.on_site(event),
            BehaviourEvent::Liveness(LivenessEvent::Rtt { peer, rtt, .. }) => {
                self.peers.on_rtt(&peer, rtt);
            }
            BehaviourEvent::Liveness(event) => tracing::info!(?event, "liveness"),
            BehaviourEvent::Identify(libp2p_identify::Event::Received {
                peer_id, info, ..
            }) => {
                self.peers.on_agent(&peer_id, &info.agent_version);
                if let Some(dht) = self.swarm.behaviour_mut().dht.as_mut() {
                    dht.identified(peer_id, &info.protocols, &info.listen_addrs);
                }
            }
            BehaviourEvent::Dht(event) => {
                let now = self.now();
                self.names.on_dht(event, now);
            }
            BehaviourEvent::Mdns(event) => self.on_discovery(event),
            BehaviourEvent::Gossip(event) => self.on_gossip(event),
            BehaviourEvent::Names(event) => {
                let now = self.now();
                self.names.on_carried(event, now);
            }
            _ => {}
        }
    }

    fn on_gossip(&mut self, event: GossipEvent) {
        use gemba_gossip::{Event, Verdict};
        let now = self.now();
        match event {
            GossipEvent::Validate {
                ticket, message, ..
            } => {
                let unjudged = self.names.on_validate(ticket, &message, now);
                let gossip = self.swarm.behaviour_mut().gossip.as_mut();
                if let (Some(ticket), Some(gossip)) = (unjudged, gossip) {
                    gossip.validated(ticket, Verdict::Accept);
                }
            }
            GossipEvent::Report(Event::Joined { peer, topic }) => {
                self.names.on_topic_peer(&topic, peer, true, now);
            }
            GossipEvent::Report(Event::Left { peer, topic }) => {
                self.names.on_topic_peer(&topic, peer, false, now);
            }
            GossipEvent::Report(Event::WantPeers { topic }) => self.look_for_peers(&topic),
            event => self.pubsub.on_event(event, now),
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
            } => match self.store.size(&cid) {
                Some(size) => self
                    .swarm
                    .behaviour_mut()
                    .exchange
                    .loaded(id, Loaded::Size(size)),
                None => self.serve_event(Read::HasEvent(id, cid), id, &cid),
            },
            ExchangeEvent::Load {
                id,
                cid,
                kind: LoadKind::Block,
            } => {
                if !self.store.has(&cid) {
                    self.serve_event(Read::Event(id, cid), id, &cid);
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
                // Silence is no answer: whoever is slow may have the block, and the rules for a standstill apply.
                let denied =
                    |asked: &Asked| matches!(asked.answer, Answer::DontHave | Answer::WrongBytes);
                if asked.iter().all(denied) {
                    self.pins.on_unavailable(session, cid, asked.len());
                    self.readers.on_unavailable(session, cid);
                }
            }
            ExchangeEvent::Site { peer, message } => {
                if let Some(site) = self.swarm.behaviour_mut().site.as_mut() {
                    site.send(peer, &message);
                }
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
                let mates = self.swarm.behaviour().exchange.mates();
                let is_mate = |peer: &PeerId| mates.contains(peer);
                let _gone = reply.send(self.peers.list(self.now(), bytes, is_mate));
            }
            Command::Status(reply) => drop(reply.send(self.status())),
            Command::Uplink(uplink, reply) => {
                self.set_uplink(uplink);
                drop(reply.send(self.lines()));
            }
            Command::Metrics(reply) => drop(reply.send(self.figures())),
            Command::Connect(address, reply) => self.connect(address, reply),
            Command::Pinger(peer, reply) => drop(reply.send(self.pinger(peer))),
            Command::Why(cid, reply) => drop(reply.send(self.why(&cid))),
            Command::Pin {
                cid,
                kind,
                name,
                reply,
            } => self.pin(cid, kind, name, reply),
            Command::Unpin(cid, reply) => self.unpin(cid, reply),
            Command::Waits(wait, reply) => drop(reply.send(self.waits(&wait))),
            Command::Cancel(cid, reply) => self.cancel(cid, reply),
            Command::Replace(old, new, reply) => self.replace(old, new, reply),
            Command::Import(adds, reply) => {
                let now = self.now();
                self.pins.import(adds, reply, now);
            }
            Command::Recover(one, reply) => {
                let now = self.now();
                let _gone = reply.send(self.pins.recover(one, now));
            }
            Command::EndUnwanted(cid, reply) => {
                let now = self.now();
                let _gone = reply.send(self.pins.end_unwanted(&cid, now));
            }
            Command::WatchPin(cid, reply) => drop(reply.send(self.pins.watch(&cid))),
            Command::Ops(after, reply) => {
                let ops = self.pins.ops(after.as_ref(), PAGE);
                let _gone = reply.send((ops, self.now()));
            }
            Command::Measured(cid, id, size, reply) => {
                let now = self.now();
                let edit = PinEdit::Measured(cid, id, size);
                self.pins.change(edit, reply, now);
            }
            Command::OpsOf(cids, reply) => {
                let ops = cids.iter().map(|cid| self.pins.op(cid).cloned());
                let _gone = reply.send(ops.collect());
            }
            Command::Struck(roots, reply) => {
                let now = self.now();
                self.pins.strike_out(roots, reply, now);
            }
            Command::Scrubbed(roots, reply) => {
                self.with_repair(Repair::on_scrubbed);
                let now = self.now();
                self.pins.strike_out(roots, reply, now);
            }
            Command::DesiredSet(reply) => drop(reply.send(self.pins.rows())),
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
            Command::Subscribe(topic, reply) => {
                let gossip = self.swarm.behaviour_mut().gossip.as_mut();
                let _gone = reply.send(pubsub::subscribe(gossip, &topic));
            }
            Command::Publish {
                topic,
                data,
                patience,
                reply,
            } => {
                let gossip = self.swarm.behaviour_mut().gossip.as_mut();
                let publishing = self.pubsub.publish(gossip, &topic, data, patience);
                let _gone = reply.send(publishing);
            }
            Command::PubsubPeers(topic, reply) => {
                let gossip = self.swarm.behaviour().gossip.as_ref();
                let _gone = reply.send(pubsub::peers(gossip, topic.as_ref()));
            }
            Command::PubsubWhy(topic, reply) => {
                let now = self.now();
                let gossip = self.swarm.behaviour().gossip.as_ref();
                let troubles = self.peers.troubles(now);
                let _gone = reply.send(self.pubsub.why(gossip, &topic, troubles, now));
            }
            Command::PubsubHealth(reply) => {
                let gossip = self.swarm.behaviour().gossip.as_ref();
                let _gone = reply.send(pubsub::health(gossip));
            }
            Command::Follow(ask) => {
                let now = self.now();
                self.follows.on_ask(ask, &mut self.names, now);
            }
            Command::Names(ask) => {
                let now = self.now();
                self.names.on_ask(ask, now);
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

    /// A topic that is read or relayed here lacks neighbours: the addresses that are known are dialed before their time, and the segment is asked again.
    fn look_for_peers(&mut self, topic: &Topic) {
        let behaviour = self.swarm.behaviour_mut();
        if behaviour.dialer.look_again() {
            tracing::info!(%topic, "a topic lacks neighbours: known addresses are tried now");
            if let Some(mdns) = behaviour.mdns.as_mut() {
                mdns.look_again();
            }
        }
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
            let cause = known.map_or(String::new(), |trouble| {
                format!(": {}{}", trouble.cause, why::next_try(&trouble))
            });
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
            Wait::Name(name) => Waits {
                what: "name".to_owned(),
                name: name.to_string(),
                cause: match self.peers.connected() {
                    0 => format!("waiting for a record of {name}: no peer is connected"),
                    n => format!(
                        "waiting for a record of {name}: {} asked, and none has sent one yet",
                        crate::text::count(n as u64, "peer was", "peers were")
                    ),
                },
                hint: "is its publisher, or somebody who follows it, connected? `gemba peers` lists who is".to_owned(),
                waited_s: 0.0,
                code: Code::Timeout,
            },
            Wait::Change(name) => Waits {
                what: "change".to_owned(),
                name: name.map_or(String::new(), |name| name.to_string()),
                cause: match name {
                    Some(name) => format!("waiting for a change of {name}"),
                    None => "waiting for a change of any name that this device knows".to_owned(),
                },
                hint: "without --timeout it waits as long as it takes".to_owned(),
                waited_s: 0.0,
                code: Code::Timeout,
            },
            Wait::Room => Waits {
                what: "room".to_owned(),
                name: self.store.dir().display().to_string(),
                cause: format!("the store is full and makes room: {}", self.room.doing()),
                hint: "a longer --timeout waits for it; `gemba pin rm` gives up what need not be here".to_owned(),
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

    /// What the store does not have may be a batch of events, which exists once, in the log.
    fn serve_event(&mut self, read: Read, id: gemba_exchange::LoadId, cid: &cid::Cid) {
        if cid.codec() == gemba_block::codec::DAG_CBOR && self.workers.read(read) {
            return;
        }
        let exchange = &mut self.swarm.behaviour_mut().exchange;
        exchange.loaded(id, Loaded::Missing);
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
        troubles.extend(crate::repo::unreadable_packs(&self.store));
        troubles.extend(self.repair.trouble(now));
        troubles.extend(self.kept.trouble(self.store.dir()));
        troubles.extend(self.pins.troubles(now));
        troubles.extend(
            self.pubsub
                .troubles(self.swarm.behaviour().gossip.as_ref(), now),
        );
        troubles.extend(self.names.troubles(now));
        troubles.extend(self.follows.troubles(now));
        troubles.extend(self.peers.troubles(now));
        troubles
    }

    fn status(&self) -> Status {
        let stat = self.store.stat();
        let (rss_bytes, rss_max_bytes) = resident_memory();
        let pins = self.pins.counts();
        let is_hurt = self.disk.refuses().is_some()
            || self.repair.open() > 0
            || stat.unreadable_packs > 0
            || !self.names.is_writable();
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
            pubsub: pubsub::counts(self.swarm.behaviour().gossip.as_ref()),
            dht: dht::view(self.swarm.behaviour().dht.as_ref()),
            lines: self.lines(),
            // The API adds what the log tells: the loop does not wait for its disk.
            events: Default::default(),
            site: SiteView {
                label: self.site.clone(),
                mates: self.swarm.behaviour().exchange.mates().len() as u64,
            },
        }
    }

    /// Another budget holds for the uplink from now on.
    fn set_uplink(&mut self, uplink: Uplink) {
        self.bandwidth.uplink = uplink;
        let budget = self.bandwidth.of(uplink);
        let exchange = &mut self.swarm.behaviour_mut().exchange;
        exchange.set_budget(Line::Far, budget);
        tracing::info!(%uplink, "the uplink is of another kind");
    }

    fn lines(&self) -> Vec<LineView> {
        let uplink = self.bandwidth.uplink;
        let far = (uplink.to_string(), Line::Far, self.bandwidth.of(uplink));
        let near = ("lan".to_owned(), Line::Near, self.bandwidth.lan);
        [near, far]
            .into_iter()
            .map(|(name, line, budget)| {
                let carried = self.views.meters.carried(line);
                LineView {
                    line: name,
                    up_limit: budget.up,
                    down_limit: budget.down,
                    bytes_in: carried.read,
                    bytes_out: carried.written,
                }
            })
            .collect()
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
                    "unreadable_packs",
                    "Packs that the disk could not read, and that were set aside",
                    None,
                    gauge(self.store.stat().unreadable_packs),
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
        let tracked = self.pins.tracked();
        figures.counters.extend(
            [
                ("begun", "Operations of pins that began", tracked.begun),
                ("done", "That came to their end", tracked.done),
                ("cancelled", "That were given up before", tracked.cancelled),
                ("failed", "Tries that ended with a cause", tracked.failed),
                (
                    "put_back",
                    "That gave way to others and wait in the desired set",
                    tracked.put_back,
                ),
            ]
            .map(|(name, what, count)| (format!("pin_operations_{name}"), what, None, count)),
        );
        let refused = self.swarm.behaviour().limits.count();
        figures
            .counters
            .extend(gemba_pnet::limits::LimitKind::ALL.map(|kind| {
                (
                    format!("connections_refused_{}", kind.code()),
                    "Connections turned away because a limit was reached",
                    None,
                    refused.refused(kind),
                )
            }));
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
        if let Some(gossip) = self.swarm.behaviour().gossip.as_ref() {
            pubsub::figures(gossip, &mut figures);
        }
        names::figures(&self.names, &self.swarm.behaviour().names, &mut figures);
        if let Some(dht) = self.swarm.behaviour().dht.as_ref() {
            dht::figures(dht, &mut figures);
        }
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
