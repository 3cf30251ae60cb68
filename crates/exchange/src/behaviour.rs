//! The driver: joins the [`Core`] to the swarm. It decides nothing.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures::FutureExt;
use futures_timer::Delay;
use gemba_block::{Block, Cid};
use libp2p_core::transport::PortUse;
use libp2p_core::{Endpoint, Multiaddr};
use libp2p_identity::PeerId;
use libp2p_swarm::behaviour::{ConnectionClosed, ConnectionEstablished, FromSwarm};
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, NetworkBehaviour, THandler, THandlerInEvent, THandlerOutEvent,
    ToSwarm,
};
use multiaddr::Protocol;

use crate::carrier::SiteEvent;
use crate::config::{Config, Line, LineBudget};
use crate::core::{
    AskPolicy, Asked, Core, Input, Load, LoadId, LoadKind, Loaded, Output, PeerLedger, SessionId,
    SessionOptions, Time, Why,
};
use crate::error::{TooManySessions, WantError};
use crate::handler::{
    Account, Budget, Clock, Fact, Gate, Handler, Meter, Outbox, Pace, Pool, ReceivedMessage,
    Shared, Worker,
};
use crate::metrics::Counters;
use crate::wire::SiteMessage;

/// Bitswap client and server of one swarm.
pub struct Behaviour {
    core: Core,
    config: Config,
    clock: Clock,
    links: HashMap<PeerId, Link>,
    gate: Arc<Gate>,
    pace: Arc<Pace>,
    pool: Arc<Pool>,
    timer: Option<(Time, Delay)>,
    waker: Option<Waker>,
    worker: Option<Worker>,
    /// Peers of whom something was heard or to whom something was said since it was looked whether they are busy.
    touched: HashSet<PeerId>,
    /// When that was looked up for all.
    marked: Time,
}

/// How often all peers are looked at, whether touched or not.
const MARK_ALL: Duration = Duration::from_secs(1);

/// A connected peer.
#[derive(Default)]
struct Link {
    outbox: Arc<Outbox>,
    /// Receive memory.
    account: Arc<Account>,
    /// The first writes.
    connections: Vec<ConnectionId>,
    /// Got a handler, but another behaviour may still refuse them.
    pending: Vec<ConnectionId>,
}

/// What the owner of the behaviour is told.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event {
    /// A wanted block arrived, hash checked. Call [`Behaviour::release`] with its length when it left memory.
    Found {
        /// Who wanted it.
        session: SessionId,
        /// The block.
        block: Block,
        /// Who sent it.
        from: PeerId,
    },
    /// A block is looked for: answer with [`Behaviour::loaded`], also when it is not there.
    Load {
        /// To be given back.
        id: LoadId,
        /// Which block.
        cid: Cid,
        /// Whether the bytes are needed.
        kind: LoadKind,
    },
    /// Everybody was asked and has it not. A status, not an end.
    Unavailable {
        /// Who wants it.
        session: SessionId,
        /// Which block.
        cid: Cid,
        /// Who was asked and what was answered. Empty: nobody is connected that may be asked.
        asked: Vec<Asked>,
    },
    /// A peer made no progress in time and its wants were moved.
    Stalled {
        /// Who.
        peer: PeerId,
        /// How many wants.
        moved: usize,
    },
    /// A peer sent wrong bytes and is not asked for a while.
    Distrusted {
        /// Who.
        peer: PeerId,
    },
    /// Something about the site is to be told: [`SiteCarrier::send`](crate::SiteCarrier::send).
    Site {
        /// Whom.
        peer: PeerId,
        /// What.
        message: SiteMessage,
    },
}

impl Behaviour {
    /// An exchange without peers. Time starts now.
    #[must_use]
    pub fn new(config: Config) -> Self {
        let clock = Clock::start();
        Self {
            pace: Arc::new(Pace::new(&config, clock)),
            core: Core::new(&config),
            pool: Pool::new(config.receive_node_bytes),
            config,
            clock,
            links: HashMap::new(),
            touched: HashSet::new(),
            marked: Time::ZERO,
            gate: Arc::default(),
            timer: None,
            waker: None,
            worker: None,
        }
    }

    /// Decodes and hashes large messages on `worker` instead of on the task of their connection, so that one core
    /// decrypts while another hashes. With tokio: `Arc::new(|job| drop(tokio::task::spawn_blocking(job)))`. At most
    /// two jobs a stream and [`Config::receive_bytes`] a connection are under way.
    #[must_use]
    pub fn with_worker(mut self, worker: Worker) -> Self {
        self.worker = Some(worker);
        self
    }

    /// Counts against the budgets of the lines (PA-4) whatever goes over them, and not only what the exchange itself sends and receives.
    #[must_use]
    pub fn with_meter(mut self, meter: Meter) -> Self {
        self.pace = self.pace.with_meter(&self.config, meter);
        self
    }

    /// Changes what a line may carry ([`Config::near`], [`Config::far`]), at once.
    pub fn set_budget(&mut self, line: Line, budget: LineBudget) {
        let now = self.clock.now();
        self.wake();
        self.pace.set(line, budget.up);
        self.core.set_budget(line, budget, now);
    }

    /// Opens a session: wants that belong together and are probably found at the same peers.
    ///
    /// # Errors
    /// [`TooManySessions`].
    pub fn open_session(&mut self, options: SessionOptions) -> Result<SessionId, TooManySessions> {
        self.core.open_session(options)
    }

    /// Wants blocks, in this order. [`Event::Found`] brings each once.
    ///
    /// # Errors
    /// See [`WantError`].
    pub fn want(
        &mut self,
        session: SessionId,
        cids: impl IntoIterator<Item = Cid>,
    ) -> Result<(), WantError> {
        let now = self.clock.now();
        self.wake();
        self.core.want(session, cids, now)
    }

    /// How many more wants the session takes.
    #[must_use]
    pub fn room(&self, session: SessionId) -> usize {
        self.core.room(session)
    }

    /// Withdraws wants of a session.
    pub fn cancel(&mut self, session: SessionId, cids: &[Cid]) {
        let now = self.clock.now();
        self.wake();
        self.core.cancel(session, cids, now);
    }

    /// Changes who may be asked for the wants of a session.
    pub fn set_policy(&mut self, session: SessionId, policy: AskPolicy) {
        let now = self.clock.now();
        self.wake();
        self.core.set_policy(session, policy, now);
    }

    /// Ends a session and withdraws its wants.
    pub fn close_session(&mut self, session: SessionId) {
        let now = self.clock.now();
        self.wake();
        self.core.close_session(session, now);
    }

    /// Says that blocks are now in the store: peers that wait for them are served.
    pub fn stored(&mut self, cids: &[Cid]) {
        self.wake();
        self.core.stored(cids);
    }

    /// Answers [`Event::Load`]. Unknown ids are ignored.
    pub fn loaded(&mut self, id: LoadId, answer: impl Into<Loaded>) {
        self.wake();
        self.core.loaded(id, answer);
    }

    /// Says that `bytes` of found blocks left memory. Without it no more blocks are asked for after
    /// [`Config::node_bytes`].
    pub fn release(&mut self, bytes: usize) {
        let now = self.clock.now();
        self.wake();
        self.core.release(bytes, now);
    }

    /// Tells whether a peer is reached without the uplink. Without a word from the owner private, link-local and
    /// loopback addresses are.
    pub fn set_lan(&mut self, peer: PeerId, lan: bool) {
        let now = self.clock.now();
        if let Some(link) = self.links.get(&peer) {
            link.outbox.set_line(line(lan));
        }
        self.core.handle(Input::Lan { peer, lan }, now);
    }

    /// Takes what [`SiteCarrier`](crate::SiteCarrier) tells.
    pub fn on_site(&mut self, event: SiteEvent) {
        let SiteEvent { peer, fact } = event;
        let now = self.clock.now();
        self.wake();
        self.core.handle(Input::Site { peer, fact }, now);
    }

    /// The connected peers that belong to the same site.
    #[must_use]
    pub fn mates(&self) -> Vec<PeerId> {
        self.core.mates()
    }

    /// Who was asked for a block, what was answered, what is waited for.
    #[must_use]
    pub fn why(&self, cid: &Cid) -> Option<Why> {
        self.core.why(cid)
    }

    /// For how long no peer has sent a byte of an exchange message; `None` if none ever did.
    #[must_use]
    pub fn silence(&self) -> Option<Time> {
        let heard = self
            .links
            .values()
            .map(|link| link.outbox.read_at())
            .max()?;
        (heard > Time::ZERO).then(|| self.clock.now().saturating_sub(heard))
    }

    /// All counters.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.core.counters()
    }

    /// Bytes both ways for each peer.
    #[must_use]
    pub fn peers(&self) -> Vec<PeerLedger> {
        self.core.peers()
    }

    /// What is held in memory at the moment.
    #[must_use]
    pub fn load(&self) -> Load {
        self.core.load()
    }

    /// Bytes in receive buffers and decoded messages of all connections, beyond 64 KiB each.
    #[must_use]
    pub fn receiving_bytes(&self) -> usize {
        self.pool.used()
    }

    /// Time since start, the scale of [`Why`].
    #[must_use]
    pub fn now(&self) -> Time {
        self.clock.now()
    }

    /// The swarm need not poll after a method was called; this makes it.
    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn handler(&mut self, connection: ConnectionId, peer: PeerId) -> Handler {
        let link = self.links.entry(peer).or_default();
        link.pending.push(connection);
        let shared = Shared {
            budget: Budget::new(
                self.config.receive_bytes,
                self.pool.clone(),
                link.account.clone(),
            ),
            gate: self.gate.clone(),
            outbox: link.outbox.clone(),
            clock: self.clock,
            worker: self.worker.clone(),
        };
        let pace = Arc::clone(&self.pace);
        Handler::new(connection, shared, pace, self.config.inbound_streams)
    }

    fn on_established(&mut self, peer: PeerId, connection: ConnectionId, lan: bool) {
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        link.pending.retain(|c| *c != connection);
        link.connections.push(connection);
        if link.connections.len() == 1 {
            link.outbox.set_line(line(lan));
            link.outbox.set_writer(Some(connection));
            self.core
                .handle(Input::Connected { peer, lan }, self.clock.now());
        } else if lan {
            link.outbox.set_line(Line::Near);
            self.core.handle(Input::Lan { peer, lan }, self.clock.now());
        }
    }

    fn on_closed(&mut self, peer: PeerId, connection: ConnectionId) {
        let now = self.clock.now();
        let Some(link) = self.links.get_mut(&peer) else {
            return;
        };
        let wrote = link.connections.first() == Some(&connection);
        link.connections.retain(|c| *c != connection);
        match link.connections.first() {
            None => {
                if link.pending.is_empty() {
                    self.links.remove(&peer);
                } else {
                    link.outbox.clear();
                }
                self.core.handle(Input::Disconnected { peer }, now);
            }
            Some(next) if wrote => {
                link.outbox.set_writer(Some(*next));
                self.core.handle(Input::RequestsLost { peer }, now);
            }
            Some(_) => {}
        }
    }

    /// A connection that has a handler was refused by another behaviour.
    fn on_refused(&mut self, connection: ConnectionId) {
        for link in self.links.values_mut() {
            link.pending.retain(|c| *c != connection);
        }
        self.links
            .retain(|_, link| !(link.pending.is_empty() && link.connections.is_empty()));
    }

    fn on_fact(&mut self, peer: PeerId, fact: Fact) {
        let now = self.clock.now();
        self.touched.insert(peer);
        self.read_meter(now);
        let input = match fact {
            Fact::Received(ReceivedMessage(received)) => {
                // The share of receive memory is given back when the core has taken what it wants.
                let crate::handler::Received { message, share } = received;
                self.core.handle(Input::Received { peer, message }, now);
                drop(share);
                return;
            }
            Fact::Malformed(cause) => {
                tracing::debug!(%peer, cause, "malformed exchange message");
                Input::Malformed { peer }
            }
            Fact::TooSlow => Input::TooSlow { peer },
            Fact::RequestSent { bytes } => Input::RequestSent { peer, bytes },
            Fact::RequestsLost => Input::RequestsLost { peer },
            Fact::SpareOpened => {
                if let Some(link) = self.links.get(&peer) {
                    tell_progress(&mut self.core, peer, link, now);
                }
                Input::SpareOpened { peer }
            }
            Fact::ResponseSent {
                block_bytes,
                blocks,
                bytes,
            } => {
                if let Some(link) = self.links.get(&peer) {
                    tell_held(&mut self.core, peer, link, now);
                }
                Input::ResponseSent {
                    peer,
                    block_bytes,
                    blocks,
                    bytes,
                }
            }
            Fact::Unsupported => Input::Unsupported { peer },
            Fact::StreamRefused => {
                self.core.counters_mut().refused_streams += 1;
                return;
            }
            Fact::StreamFailed => {
                self.core.counters_mut().failed_streams += 1;
                return;
            }
            Fact::WriteTimedOut => {
                self.core.counters_mut().write_timeouts += 1;
                return;
            }
        };
        self.core.handle(input, now);
    }

    /// Tells the core what the connections read, then lets time pass.
    fn expire(&mut self, now: Time) {
        self.read_meter(now);
        for (peer, link) in &self.links {
            tell_progress(&mut self.core, *peer, link, now);
            tell_held(&mut self.core, *peer, link, now);
        }
        self.core.expire(now);
    }

    /// Tells the core what came over the lines.
    fn read_meter(&mut self, now: Time) {
        if let Some(meter) = self.pace.meter() {
            for line in [Line::Near, Line::Far] {
                let read = meter(line).read;
                self.core.handle(Input::Carried { line, read }, now);
            }
        }
    }

    fn on_output(&mut self, output: Output) -> Option<Event> {
        match output {
            Output::Send {
                peer,
                lane,
                message,
            } => {
                if let Some(link) = self.links.get(&peer) {
                    link.outbox.push(lane, message);
                    self.touched.insert(peer);
                }
                None
            }
            Output::GiveUp { peer } => {
                if let Some(link) = self.links.get(&peer) {
                    link.outbox.give_up_responses();
                }
                None
            }
            Output::Spare { peer, action } => {
                if let Some(link) = self.links.get(&peer) {
                    link.outbox.set_spare(action);
                }
                None
            }
            Output::Renew { peer } => {
                if let Some(link) = self.links.get(&peer) {
                    link.outbox.renew_responses();
                }
                None
            }
            Output::Pause(paused) => {
                self.gate.set(paused);
                None
            }
            Output::Load { id, cid, kind } => Some(Event::Load { id, cid, kind }),
            Output::Found {
                session,
                block,
                from,
            } => Some(Event::Found {
                session,
                block,
                from,
            }),
            Output::Unavailable {
                session,
                cid,
                asked,
            } => Some(Event::Unavailable {
                session,
                cid,
                asked,
            }),
            Output::Stalled { peer, moved } => Some(Event::Stalled { peer, moved }),
            Output::Distrusted { peer } => Some(Event::Distrusted { peer }),
            Output::Site { peer, message } => Some(Event::Site { peer, message }),
        }
    }

    /// Says which connections are worth keeping, and what is owed on them. Only called when there is nothing else to do, which is after every event: a look at
    /// each of 500 peers every time would cost more than serving them.
    fn mark_busy(&mut self, now: Time) {
        if now >= self.marked.saturating_add(MARK_ALL) {
            self.marked = now;
            self.touched.clear();
            for (peer, link) in &self.links {
                mark(&self.core, peer, link);
            }
        }
        for peer in self.touched.drain() {
            if let Some(link) = self.links.get(&peer) {
                mark(&self.core, &peer, link);
            }
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Event;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        _addr: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(self.handler(connection, peer))
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(ConnectionEstablished {
                peer_id,
                connection_id,
                endpoint,
                ..
            }) => {
                let lan = is_near(endpoint.get_remote_address());
                self.on_established(peer_id, connection_id, lan);
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
        self.on_fact(peer, fact);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        loop {
            while let Some(output) = self.core.poll(self.clock.now()) {
                if let Some(event) = self.on_output(output) {
                    return Poll::Ready(ToSwarm::GenerateEvent(event));
                }
            }
            let Some(deadline) = self.core.deadline() else {
                self.timer = None;
                break;
            };
            let now = self.clock.now();
            if deadline <= now {
                self.expire(now);
                continue;
            }
            let timer = match &mut self.timer {
                Some((at, timer)) if *at == deadline => timer,
                timer => {
                    let delay = Delay::new(deadline.saturating_sub(now));
                    &mut timer.insert((deadline, delay)).1
                }
            };
            if timer.poll_unpin(cx).is_pending() {
                break;
            }
            self.timer = None;
        }
        self.mark_busy(self.clock.now());
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Tells the connections to a peer what the core says of it.
fn mark(core: &Core, peer: &PeerId, link: &Link) {
    link.outbox.set_busy(core.is_busy(peer));
    link.account.set_owed(core.owed_bytes(peer));
}

/// Tells for how long a budget kept us from writing to a peer.
fn tell_held(core: &mut Core, peer: PeerId, link: &Link, now: Time) {
    let time = link.outbox.take_held(now);
    if !time.is_zero() {
        core.handle(Input::Held { peer, time }, now);
    }
}

fn line(lan: bool) -> Line {
    match lan {
        true => Line::Near,
        false => Line::Far,
    }
}

/// Tells what the connections to a peer read.
fn tell_progress(core: &mut Core, peer: PeerId, link: &Link, now: Time) {
    if let Some((at, bytes)) = link.outbox.take_read() {
        core.handle(Input::Progress { peer, at, bytes }, now);
    }
}

/// Private, link-local and loopback addresses, and those that are no IP address at all.
fn is_near(address: &Multiaddr) -> bool {
    for part in address {
        match part {
            Protocol::Ip4(ip) => return ip.is_private() || ip.is_loopback() || ip.is_link_local(),
            Protocol::Ip6(ip) => {
                return ip.is_loopback() || ip.is_unique_local() || ip.is_unicast_link_local();
            }
            Protocol::P2pCircuit => return false,
            _ => {}
        }
    }
    true
}
