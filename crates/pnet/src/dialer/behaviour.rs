//! Driver: the dialer as a `NetworkBehaviour`. Put it *first* in the derived struct, so that nothing dials past it.
//!
//! libp2p has no back-off: whoever asks, dials. The only common gate is `handle_pending_outbound_connection`, so this behaviour
//! refuses there what failed a short while ago, and says why.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Instant,
};

use libp2p_core::{ConnectedPoint, Endpoint, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, DialError, DialFailure, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::{ConnectionClosed, ConnectionEstablished, ListenFailure},
    dial_opts::{DialOpts, PeerCondition},
    dummy,
};
use multiaddr::{Multiaddr, Protocol};
use tokio::time::Sleep;

use super::{
    backoff::{Backoff, Class, Failure, Time},
    book::Book,
    config::DialerConfig,
    redial::{Redial, TargetState},
};
use crate::cause::{BackoffActive, DialCause, IncomingFailure, ip_of};

/// Events not yet fetched by the swarm. The victim is the oldest; what it told is still in the tables.
const MAX_EVENTS: usize = 256;
/// Operator's dials not yet handed to the swarm. The victim is the newest, which is not made and counted.
const MAX_ORDERS: usize = 256;

/// What is to be connected.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A peer, at whatever address is known.
    Peer(PeerId),
    /// Whoever lives at an address.
    Address(Multiaddr),
}

/// One line of `status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetStatus {
    /// Whom.
    pub target: Target,
    /// What is being done about it.
    pub state: TargetState,
    /// Why it is not connected, for each address that failed.
    pub failures: Vec<FailedAddress>,
}

/// An address that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedAddress {
    /// Who was expected there.
    pub peer: Option<PeerId>,
    /// Where, without `/p2p`.
    pub address: Multiaddr,
    /// Why.
    pub cause: DialCause,
    /// How often in a row.
    pub count: u32,
    /// Until it may be tried again.
    pub retry_in: Time,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DialerEvent {
    /// A dial failed, whoever ordered it.
    Failed {
        /// Whom it was for, if known.
        peer: Option<PeerId>,
        /// Which dial.
        connection: ConnectionId,
        /// The cause that says most.
        cause: DialCause,
        /// The cause at each address.
        addresses: Vec<(Multiaddr, DialCause)>,
    },
    /// Somebody could not get in.
    Incoming(IncomingFailure),
}

/// What a failure is held against.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    /// An address, whoever is expected there: it is dead, or it belongs to another swarm. So a liar who names a thousand peers at one
    /// address causes no more dials to it than one (T11).
    Place(Multiaddr),
    /// A peer at an address: another one lives there, or it does not get through the handshake.
    Peer(PeerId, Multiaddr),
}

/// What is remembered of a failure.
#[derive(Clone, Debug)]
struct Reason {
    /// Who was expected.
    peer: Option<PeerId>,
    cause: DialCause,
}

/// See the [module](super).
pub struct Dialer {
    config: DialerConfig,
    start: Instant,
    backoff: Backoff<Key, Reason>,
    book: Book<PeerId, Multiaddr>,
    redial: Redial<Target>,
    /// Our own dials under way: at most `parallel`.
    dialing: HashMap<ConnectionId, Target>,
    /// Dials that the operator ordered: they go through whatever the back-off says. Bounded by `MAX_ORDERS`.
    ordered: HashMap<ConnectionId, ()>,
    orders: VecDeque<DialOpts>,
    /// Open connections and the address target each serves: bounded by the swarm's limits.
    open: HashMap<ConnectionId, (PeerId, Option<Target>)>,
    incoming: VecDeque<IncomingFailure>,
    incoming_counts: HashMap<&'static str, u64>,
    events: VecDeque<DialerEvent>,
    lost_events: u64,
    timer: Option<(Time, Pin<Box<Sleep>>)>,
    waker: Option<Waker>,
}

impl Dialer {
    /// Begins to dial the known peers with the first poll.
    pub fn new(config: DialerConfig) -> Self {
        let mut dialer = Self {
            start: Instant::now(),
            backoff: Backoff::new(config.backoff.clone()),
            book: Book::new(config.max_peers, config.max_addresses_per_peer),
            redial: Redial::new(config.parallel, config.max_peers),
            dialing: HashMap::new(),
            ordered: HashMap::new(),
            orders: VecDeque::new(),
            open: HashMap::new(),
            incoming: VecDeque::new(),
            incoming_counts: HashMap::new(),
            events: VecDeque::new(),
            lost_events: 0,
            timer: None,
            waker: None,
            config,
        };
        for address in dialer.config.known.clone() {
            dialer.keep_connected(address);
        }
        dialer
    }

    /// Keeps the peer at `address` connected from now on, as if it had been configured.
    pub fn keep_connected(&mut self, address: Multiaddr) {
        let now = self.now();
        let target = match split(address) {
            (Some(peer), address) => {
                self.book.add(peer, address, true, now);
                Target::Peer(peer)
            }
            (None, address) => Target::Address(address),
        };
        self.redial.add(target, None, now, now);
        self.wake();
    }

    /// A peer was seen at `address` (mDNS): it is dialed unless it is connected or backing off, and tried again for a while.
    /// A *new* address of a peer is tried at once, whatever became of the old ones.
    pub fn discovered(&mut self, peer: PeerId, address: Multiaddr) {
        let now = self.now();
        let (_, address) = split(address);
        self.book.add(peer, address.clone(), false, now);
        let due = self
            .forbids(Some(peer), &address, now)
            .map_or(now, |failure| failure.retry_at);
        let target = Target::Peer(peer);
        let lifetime = self.config.discovered_lifetime;
        self.redial.add(target.clone(), Some(lifetime), due, now);
        if self.is_connected(&peer) {
            self.redial.on_connected(&target);
        }
        self.wake();
    }

    /// Dials now, on an operator's word: what was held against this address is forgotten. The result comes as an event with the
    /// returned connection. `None`: too many such orders wait.
    pub fn dial_now(&mut self, address: Multiaddr) -> Option<ConnectionId> {
        if self.orders.len() >= MAX_ORDERS || self.ordered.len() >= MAX_ORDERS {
            return None;
        }
        let (peer, bare) = split(address);
        self.backoff.reset(|key, _| match key {
            Key::Place(place) => *place == bare,
            Key::Peer(other, place) => Some(*other) == peer && *place == bare,
        });
        let options = match peer {
            Some(peer) => DialOpts::peer_id(peer)
                .condition(PeerCondition::Always)
                .addresses(vec![bare])
                .build(),
            None => DialOpts::unknown_peer_id().address(bare).build(),
        };
        let connection = options.connection_id();
        self.ordered.insert(connection, ());
        self.orders.push_back(options);
        self.wake();
        Some(connection)
    }

    /// Forgets all failures: everything may be tried at once. For a new swarm key, or on an operator's word.
    pub fn reset(&mut self) {
        self.forget(|_, _| true);
    }

    /// Forgets the failures of one peer and of its addresses.
    pub fn reset_peer(&mut self, peer: &PeerId) {
        let addresses = self.addresses(peer);
        self.forget(|key, _| match key {
            Key::Place(place) => addresses.contains(place),
            Key::Peer(other, _) => other == peer,
        });
    }

    /// Why `peer` is not connected: every address that failed, and when it is tried again.
    pub fn why(&self, peer: &PeerId) -> Vec<FailedAddress> {
        let now = self.now();
        let addresses = self.addresses(peer);
        let concerns = |key: &Key| match key {
            Key::Place(place) => addresses.contains(place),
            Key::Peer(other, _) => other == peer,
        };
        let failures = self.backoff.iter().filter(|(key, _)| concerns(key));
        failures
            .map(|(key, failure)| failed(key, failure, now))
            .collect()
    }

    /// Every address that failed last time.
    pub fn failures(&self) -> impl Iterator<Item = FailedAddress> {
        let now = self.now();
        self.backoff
            .iter()
            .map(move |(key, failure)| failed(key, failure, now))
    }

    /// Everything that is kept connected, and why it is not.
    pub fn targets(&self) -> Vec<TargetStatus> {
        let status = |(target, state): (&Target, TargetState)| TargetStatus {
            target: target.clone(),
            state,
            failures: match target {
                Target::Peer(peer) => self.why(peer),
                Target::Address(address) => self
                    .failures()
                    .filter(|failed| failed.address == *address)
                    .collect(),
            },
        };
        self.redial.iter().map(status).collect()
    }

    /// The addresses known of a peer.
    pub fn addresses(&self, peer: &PeerId) -> Vec<Multiaddr> {
        self.book.addresses(peer).cloned().collect()
    }

    /// The last ones who could not get in, oldest first.
    pub fn incoming_failures(&self) -> impl Iterator<Item = &IncomingFailure> {
        self.incoming.iter()
    }

    /// How many could not get in, by [`DialCause::code`].
    pub fn incoming_counts(&self) -> &HashMap<&'static str, u64> {
        &self.incoming_counts
    }

    /// What was dropped at a bound: events, failures, addresses, targets.
    pub fn dropped(&self) -> u64 {
        self.lost_events + self.backoff.evicted() + self.book.evicted() + self.redial.refused()
    }

    fn now(&self) -> Time {
        self.start.elapsed()
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    fn is_connected(&self, peer: &PeerId) -> bool {
        self.open.values().any(|(open, _)| open == peer)
    }

    fn forget(&mut self, which: impl FnMut(&Key, &Failure<Reason>) -> bool) {
        self.backoff.reset(which);
        let now = self.now();
        let waiting: Vec<Target> = self
            .redial
            .iter()
            .filter(|(_, state)| matches!(state, TargetState::Due(_)))
            .map(|(target, _)| target.clone())
            .collect();
        for target in waiting {
            let retry_at = self.retry_at(&target, now);
            self.redial.on_down(&target, retry_at, now);
        }
        self.wake();
    }

    /// What forbids to dial this now.
    fn forbids(
        &self,
        peer: Option<PeerId>,
        address: &Multiaddr,
        now: Time,
    ) -> Option<&Failure<Reason>> {
        let place = self.backoff.forbids(&Key::Place(address.clone()), now);
        let of_peer =
            peer.and_then(|peer| self.backoff.forbids(&Key::Peer(peer, address.clone()), now));
        place
            .into_iter()
            .chain(of_peer)
            .max_by_key(|failure| failure.retry_at)
    }

    /// Earliest time at which any address of the target may be tried.
    fn retry_at(&self, target: &Target, now: Time) -> Time {
        let of = |peer: Option<PeerId>, address: &Multiaddr| {
            self.forbids(peer, address, now)
                .map_or(now, |failure| failure.retry_at)
        };
        match target {
            Target::Address(address) => of(None, address),
            Target::Peer(peer) => {
                let addresses = self.book.addresses(peer);
                addresses
                    .map(|address| of(Some(*peer), address))
                    .min()
                    .unwrap_or(now)
            }
        }
    }

    fn dial(&mut self, target: Target) -> Option<DialOpts> {
        let now = self.now();
        let options = match &target {
            Target::Address(address) => {
                DialOpts::unknown_peer_id().address(address.clone()).build()
            }
            Target::Peer(peer) => {
                let ready = self.ready_addresses(peer, now);
                if ready.is_empty() {
                    // Waits for a new sighting or for the end of its lifetime if no address is left.
                    let retry_at = self
                        .retry_at(&target, now)
                        .max(now + self.config.backoff.first);
                    self.redial.on_down(&target, retry_at, now);
                    return None;
                }
                DialOpts::peer_id(*peer)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(ready)
                    .build()
            }
        };
        self.dialing.insert(options.connection_id(), target);
        Some(options)
    }

    fn ready_addresses(&self, peer: &PeerId, now: Time) -> Vec<Multiaddr> {
        self.book
            .addresses(peer)
            .filter(|address| self.forbids(Some(*peer), address, now).is_none())
            .cloned()
            .collect()
    }

    /// Whether somebody's dial may go on, and with which addresses of ours.
    fn gate(
        &self,
        peer: Option<PeerId>,
        asked: &[Multiaddr],
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let now = self.now();
        let known = peer
            .map(|peer| self.ready_addresses(&peer, now))
            .unwrap_or_default();
        let asked: Vec<Multiaddr> = match (peer, asked) {
            (Some(peer), []) => self.book.addresses(&peer).cloned().collect(),
            _ => asked
                .iter()
                .map(|address| split(address.clone()).1)
                .collect(),
        };
        let mut soonest: Option<&Failure<Reason>> = None;
        for address in asked {
            match self.forbids(peer, &address, now) {
                None => return Ok(known),
                Some(failure) => {
                    if soonest.is_none_or(|other| failure.retry_at < other.retry_at) {
                        soonest = Some(failure);
                    }
                }
            }
        }
        match soonest {
            // Nothing was asked and nothing is known: another behaviour may know an address.
            None => Ok(known),
            Some(failure) => Err(ConnectionDenied::new(BackoffActive {
                retry_in: failure.retry_at - now,
                because: failure.cause.cause.clone(),
            })),
        }
    }

    fn on_dial_failure(&mut self, failure: DialFailure<'_>) {
        let DialFailure {
            peer_id,
            error,
            connection_id,
        } = failure;
        let target = self.dialing.remove(&connection_id);
        let ordered = self.ordered.remove(&connection_id).is_some();
        let now = self.now();
        let addresses = DialCause::per_address(error);
        for (address, cause) in &addresses {
            self.note_failure(peer_id, address, cause, now);
        }
        if let Some(target) = &target {
            self.target_down(target, peer_id, error, now);
        }
        let cause = DialCause::of(error);
        let quiet = matches!(cause, DialCause::BackingOff { .. })
            || matches!(error, DialError::DialPeerConditionFalse(_));
        if !quiet || ordered {
            tracing::debug!(peer = ?peer_id, %cause, "dial failed");
            self.tell(DialerEvent::Failed {
                peer: peer_id,
                connection: connection_id,
                cause,
                addresses,
            });
        }
    }

    fn note_failure(
        &mut self,
        peer: Option<PeerId>,
        address: &Multiaddr,
        cause: &DialCause,
        now: Time,
    ) {
        let (named, address) = split(address.clone());
        let peer = peer.or(named);
        let key = match peer {
            Some(peer) if is_about_peer(cause, &address) => Key::Peer(peer, address),
            _ => Key::Place(address),
        };
        let reason = Reason {
            peer,
            cause: cause.clone(),
        };
        self.backoff
            .on_failure(key, cause.class(), reason, now, random());
    }

    fn target_down(&mut self, target: &Target, peer: Option<PeerId>, error: &DialError, now: Time) {
        if let (DialError::DialPeerConditionFalse(_), Some(peer)) = (error, peer)
            && self.is_connected(&peer)
        {
            self.redial.on_connected(target);
            return;
        }
        // A limit of ours does not go away at once, and a handshake that ends at one is wasted on both sides.
        let rest = match error {
            DialError::Denied { .. } => self.config.backoff.first.saturating_mul(16),
            _ => self.config.backoff.first,
        };
        self.redial
            .on_down(target, self.retry_at(target, now).max(now + rest), now);
    }

    fn on_established(&mut self, event: ConnectionEstablished<'_>) {
        let peer = event.peer_id;
        let served = self.dialing.remove(&event.connection_id);
        self.ordered.remove(&event.connection_id);
        match event.endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                let (_, address) = split(address.clone());
                self.backoff.on_success(&Key::Peer(peer, address.clone()));
                self.backoff.on_success(&Key::Place(address.clone()));
                let now = self.now();
                self.book.add(peer, address, false, now);
            }
            // It came in, so it has our key by now: what was held against it is out of date.
            ConnectedPoint::Listener { .. } => self.reset_peer(&peer),
        }
        self.redial.on_connected(&Target::Peer(peer));
        let served = served.filter(|target| matches!(target, Target::Address(_)));
        if let Some(target) = &served {
            self.redial.on_connected(target);
        }
        self.open.insert(event.connection_id, (peer, served));
    }

    fn on_closed(&mut self, event: ConnectionClosed<'_>) {
        let Some((peer, served)) = self.open.remove(&event.connection_id) else {
            return;
        };
        let now = self.now();
        // Spread over a second: when a switch reboots, all devices lose each other at the same moment.
        let retry_at = now + self.config.backoff.first.mul_f64(fraction());
        if let Some(target) = served {
            self.redial.on_down(&target, retry_at, now);
        }
        if event.remaining_established == 0 {
            self.redial.on_down(&Target::Peer(peer), retry_at, now);
        }
    }

    fn on_listen_failure(&mut self, event: ListenFailure<'_>) {
        let failure = IncomingFailure {
            from: event.send_back_addr.clone(),
            cause: DialCause::of_incoming(event.error),
        };
        tracing::debug!(from = %failure.from, cause = %failure.cause, "incoming connection failed");
        *self
            .incoming_counts
            .entry(failure.cause.code())
            .or_default() += 1;
        if self.incoming.len() >= self.config.incoming_failures {
            self.incoming.pop_front();
        }
        self.incoming.push_back(failure.clone());
        self.tell(DialerEvent::Incoming(failure));
    }

    /// The network has changed under us: what was unreachable may not be any more. Other swarms stay other swarms.
    fn on_network_change(&mut self) {
        self.forget(|_, failure| failure.class == Class::Transient);
    }

    fn tell(&mut self, event: DialerEvent) {
        if self.events.len() >= MAX_EVENTS {
            self.events.pop_front();
            self.lost_events += 1;
        }
        self.events.push_back(event);
    }

    /// Sleeps until the next target is due.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        let Some(deadline) = self.redial.deadline() else {
            self.timer = None;
            return;
        };
        if self.timer.as_ref().is_none_or(|(at, _)| *at != deadline) {
            let at = tokio::time::Instant::from_std(self.start + deadline);
            self.timer = Some((deadline, Box::pin(tokio::time::sleep_until(at))));
        }
        if let Some((_, sleep)) = &mut self.timer
            && sleep.as_mut().poll(cx).is_ready()
        {
            self.timer = None;
            cx.waker().wake_by_ref();
        }
    }
}

impl NetworkBehaviour for Dialer {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = DialerEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn handle_pending_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        addresses: &[Multiaddr],
        role: Endpoint,
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let ours = self.dialing.contains_key(&connection) || self.ordered.contains_key(&connection);
        // A simultaneous open (hole punch) must happen at its moment or not at all.
        if ours || role == Endpoint::Listener {
            return Ok(Vec::new());
        }
        self.gate(peer, addresses)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match event {
            FromSwarm::ConnectionEstablished(event) => self.on_established(event),
            FromSwarm::ConnectionClosed(event) => self.on_closed(event),
            FromSwarm::DialFailure(event) => self.on_dial_failure(event),
            FromSwarm::ListenFailure(event) => self.on_listen_failure(event),
            FromSwarm::NewListenAddr(event) if !is_loopback(event.addr) => self.on_network_change(),
            FromSwarm::NewExternalAddrOfPeer(event) => {
                let now = self.now();
                let (_, address) = split(event.addr.clone());
                self.book.add(event.peer_id, address, false, now);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(ToSwarm::GenerateEvent(event));
        }
        if let Some(opts) = self.orders.pop_front() {
            return Poll::Ready(ToSwarm::Dial { opts });
        }
        let now = self.now();
        while let Some(target) = self.redial.poll(now) {
            if let Some(opts) = self.dial(target) {
                return Poll::Ready(ToSwarm::Dial { opts });
            }
        }
        self.poll_timer(cx);
        self.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}

/// Whether a failure says something about the peer rather than about the place. Behind a relay all peers share one address.
fn is_about_peer(cause: &DialCause, address: &Multiaddr) -> bool {
    let relayed = address.iter().any(|part| part == Protocol::P2pCircuit);
    relayed
        || matches!(
            cause,
            DialCause::WrongPeer { .. } | DialCause::SecurityFailed(_)
        )
}

fn failed(key: &Key, failure: &Failure<Reason>, now: Time) -> FailedAddress {
    let (Key::Place(address) | Key::Peer(_, address)) = key;
    FailedAddress {
        peer: failure.cause.peer,
        address: address.clone(),
        cause: failure.cause.cause.clone(),
        count: failure.count,
        retry_in: failure.retry_at.saturating_sub(now),
    }
}

/// The peer an address names at its end, and the address without it.
fn split(mut address: Multiaddr) -> (Option<PeerId>, Multiaddr) {
    match address.iter().last() {
        Some(Protocol::P2p(peer)) => {
            address.pop();
            (Some(peer), address)
        }
        _ => (None, address),
    }
}

fn is_loopback(address: &Multiaddr) -> bool {
    ip_of(address).is_some_and(|ip| ip.is_loopback())
}

/// Without randomness the waits are merely in step: no reason to fail.
fn random() -> u64 {
    let mut bytes = [0; 8];
    let _ = getrandom::fill(&mut bytes);
    u64::from_le_bytes(bytes)
}

fn fraction() -> f64 {
    f64::from((random() >> 32) as u32) / f64::from(u32::MAX)
}
