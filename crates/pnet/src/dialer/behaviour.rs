//! Driver: the dialer as a `NetworkBehaviour`. Put it *first* in the derived struct, so that nothing dials past it.
//!
//! libp2p has no back-off: whoever asks, dials. The only common gate is `handle_pending_outbound_connection`, so this behaviour
//! refuses there what failed a short while ago, and says why.

use std::{
    collections::{HashMap, VecDeque},
    net::IpAddr,
    pin::Pin,
    task::{Context, Poll, Waker},
};

use libp2p_core::{
    ConnectedPoint, Endpoint,
    transport::{ListenerId, PortUse},
};
use libp2p_identity::PeerId;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, DialError, DialFailure, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
    behaviour::{ConnectionClosed, ConnectionEstablished, ListenFailure},
    dial_opts::{DialOpts, PeerCondition},
    dummy,
};
use multiaddr::{Multiaddr, Protocol};
use tokio::time::{Instant, Sleep};

use super::{
    backoff::{Backoff, Class, Failure, Time},
    book::Book,
    config::DialerConfig,
    redial::{Redial, TargetState},
    spare::Spare,
};
use crate::awake::Awake;
use crate::cause::{BackoffActive, DialCause, IncomingFailure, ip_of};

/// After a sleep of this length nobody knows what network we are in.
const SLEEP: Time = Time::from_secs(5);

/// Who lacks neighbours may say so often; the addresses that nobody answers at are tried before their time this often at most, and half as
/// often each time as long as nobody is connected anew.
const LOOK_AGAIN: Time = Time::from_secs(30);
/// The longest of these pauses.
const LOOK_RARELY: Time = Time::from_secs(10 * 60);

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

/// Whom a dial troubles if no member lives there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Host {
    /// A SYN to this IP address.
    Tcp(IpAddr),
    /// Packets of another kind, if a transport sends such.
    Other(IpAddr),
    /// Somebody with a name. Names may all stand for one host, so they count as one.
    Named,
}

/// Why an address is not dialed now.
struct Held<'a> {
    until: Time,
    cause: &'a DialCause,
}

/// See the [module](super).
pub struct Dialer {
    config: DialerConfig,
    start: Instant,
    backoff: Backoff<Key, Reason>,
    spare: Spare<Host, Multiaddr>,
    book: Book<PeerId, Multiaddr>,
    redial: Redial<Target>,
    /// Our own dials under way: at most `parallel`.
    dialing: HashMap<ConnectionId, Target>,
    /// Dials that the operator ordered: they go through whatever the back-off says. Bounded by `MAX_ORDERS`.
    ordered: HashMap<ConnectionId, ()>,
    /// Dials under way to addresses that nobody vouches for: bounded as those dials are.
    tries: HashMap<ConnectionId, Vec<(Host, Multiaddr)>>,
    /// Where this machine can be reached, bounded by our listeners: knocking there troubles nobody else.
    listening: Vec<(ListenerId, Multiaddr)>,
    orders: VecDeque<DialOpts>,
    /// Open connections and the address target each serves: bounded by the swarm's limits.
    open: HashMap<ConnectionId, (PeerId, Option<Target>)>,
    incoming: VecDeque<IncomingFailure>,
    incoming_counts: HashMap<&'static str, u64>,
    events: VecDeque<DialerEvent>,
    lost_events: u64,
    awake: Awake,
    /// When neighbours were last looked for, and for how long not again.
    looked_again: Option<(Time, Time)>,
    timer: Option<(Time, Pin<Box<Sleep>>)>,
    waker: Option<Waker>,
}

impl Dialer {
    /// Begins to dial the known peers with the first poll.
    pub fn new(config: DialerConfig) -> Self {
        let mut dialer = Self {
            start: Instant::now(),
            backoff: Backoff::new(config.backoff.clone()),
            spare: Spare::new(config.spare.clone()),
            book: Book::new(config.max_peers, config.max_addresses_per_peer),
            redial: Redial::new(config.parallel, config.max_peers),
            dialing: HashMap::new(),
            ordered: HashMap::new(),
            tries: HashMap::new(),
            listening: Vec::new(),
            orders: VecDeque::new(),
            open: HashMap::new(),
            incoming: VecDeque::new(),
            incoming_counts: HashMap::new(),
            events: VecDeque::new(),
            lost_events: 0,
            awake: Awake::new(SLEEP),
            looked_again: None,
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
    /// A *new* address of a peer is tried at once, whatever became of the old ones, unless its host was tried in vain within the last
    /// minute.
    pub fn discovered(&mut self, peer: PeerId, address: Multiaddr) {
        let now = self.now();
        let (_, address) = split(address);
        self.book.add(peer, address.clone(), false, now);
        let held = self.held(Some(peer), &address, now);
        let due = held.map_or(now, |held| held.until);
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
        self.spare.forget_tries();
        self.forget(|_, _| true);
    }

    /// Neighbours are lacking: what failed for reasons that pass may be tried at once, at most every 30 s however often this is called, and
    /// more and more rarely while nobody is connected anew. Other swarms stay other swarms. Returns whether it was time.
    pub fn look_again(&mut self) -> bool {
        let now = self.now();
        let pause = match self.looked_again {
            Some((at, pause)) if now < at.saturating_add(pause) => return false,
            Some((_, pause)) => pause.saturating_mul(2).min(LOOK_RARELY),
            None => LOOK_AGAIN,
        };
        self.looked_again = Some((now, pause));
        self.on_network_change();
        true
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
        let mut why: Vec<_> = failures
            .map(|(key, failure)| self.failed(key, failure, now))
            .collect();
        for address in addresses {
            let known = why.iter().any(|failed| failed.address == address);
            if !known && let Some(held) = self.held(Some(*peer), &address, now) {
                why.push(FailedAddress {
                    peer: Some(*peer),
                    cause: held.cause.clone(),
                    count: 0,
                    retry_in: held.until - now,
                    address,
                });
            }
        }
        why
    }

    /// Every address that failed last time.
    pub fn failures(&self) -> impl Iterator<Item = FailedAddress> {
        let now = self.now();
        self.backoff
            .iter()
            .map(move |(key, failure)| self.failed(key, failure, now))
    }

    /// In how long `address` is dialed again by itself, after it failed. `None`: it is not kept connected, or is being dialed.
    pub fn next_try(&self, peer: Option<PeerId>, address: &Multiaddr) -> Option<Time> {
        let (named, bare) = split(address.clone());
        let now = self.now();
        let due = |target: Target| match self.redial.state(&target)? {
            TargetState::Due(at) => Some(at),
            TargetState::Dialing | TargetState::Connected => None,
        };
        let peer = peer.or(named);
        let due = peer
            .and_then(|peer| due(Target::Peer(peer)))
            .or_else(|| due(Target::Address(bare.clone())))?;
        // The target may be due for another of its addresses first.
        let held = self.held(peer, &bare, now);
        let at = held.map_or(due, |held| held.until.max(due));
        Some(at.saturating_sub(now))
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
        self.lost_events
            + self.backoff.evicted()
            + self.book.evicted()
            + self.redial.refused()
            + self.spare.refused()
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
        self.reschedule();
    }

    /// Looks anew when each waiting target may be dialed.
    fn reschedule(&mut self) {
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

    /// What keeps this from being dialed now, failures or a host that is spared.
    fn held(&self, peer: Option<PeerId>, address: &Multiaddr, now: Time) -> Option<Held<'_>> {
        let failure = self.forbids(peer, address, now).map(|failure| Held {
            until: failure.retry_at,
            cause: &failure.cause.cause,
        });
        let spared = self
            .spared_host(peer, address)
            .and_then(|host| self.spare.spared(&host, address, now));
        let Some(until) = spared else {
            return failure;
        };
        if let Some(failure) = failure {
            let until = failure.until.max(until);
            return Some(Held { until, ..failure });
        }
        let last = self.backoff.last(&Key::Place(address.clone()));
        let last = last.or_else(|| self.backoff.last(&Key::Peer(peer?, address.clone())));
        let cause = last.map_or(&DialCause::HostSpared, |failure| &failure.cause.cause);
        Some(Held { until, cause })
    }

    /// Whom a dial of this address may trouble for nothing. `None`: the operator gave it, or it is this machine.
    fn spared_host(&self, peer: Option<PeerId>, address: &Multiaddr) -> Option<Host> {
        // Addresses without a peer are the operator's.
        let peer = peer?;
        let host = host_of(address)?;
        let ours = match host {
            Host::Tcp(ip) | Host::Other(ip) => {
                ip.is_loopback() || self.listening.iter().any(|(_, own)| is_at(own, ip))
            }
            Host::Named => false,
        };
        (!ours && !self.book.is_pinned(&peer, address)).then_some(host)
    }

    fn failed(&self, key: &Key, failure: &Failure<Reason>, now: Time) -> FailedAddress {
        let (Key::Place(address) | Key::Peer(_, address)) = key;
        let peer = failure.cause.peer;
        let spared = self
            .spared_host(peer, address)
            .and_then(|host| self.spare.spared(&host, address, now));
        let retry_at = failure.retry_at.max(spared.unwrap_or(Time::ZERO));
        FailedAddress {
            peer,
            address: address.clone(),
            cause: failure.cause.cause.clone(),
            count: failure.count,
            retry_in: retry_at.saturating_sub(now),
        }
    }

    /// Earliest time at which any address of the target may be tried.
    fn retry_at(&self, target: &Target, now: Time) -> Time {
        let of = |peer: Option<PeerId>, address: &Multiaddr| {
            self.held(peer, address, now).map_or(now, |held| held.until)
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
                let (ready, tries) = self.ready_addresses(peer, now);
                if ready.is_empty() {
                    // Waits for a new sighting or for the end of its lifetime if no address is left. Who waits for one host waits in no
                    // order that anybody could choose, and not all of them look at it at the same moment.
                    let first = self.config.backoff.first;
                    let retry_at = self
                        .retry_at(&target, now)
                        .max(now + first)
                        .saturating_add(first.mul_f64(8.0 * fraction()));
                    self.redial.on_down(&target, retry_at, now);
                    return None;
                }
                let options = DialOpts::peer_id(*peer)
                    .condition(PeerCondition::DisconnectedAndNotDialing)
                    .addresses(ready)
                    .build();
                self.note_tries(options.connection_id(), tries);
                options
            }
        };
        self.dialing.insert(options.connection_id(), target);
        Some(options)
    }

    /// The addresses of a peer that may be dialed now. Those that nobody vouches for are noted as tried, and returned once more.
    fn ready_addresses(
        &mut self,
        peer: &PeerId,
        now: Time,
    ) -> (Vec<Multiaddr>, Vec<(Host, Multiaddr)>) {
        let (mut ready, mut tries) = (Vec::new(), Vec::new());
        for address in self.addresses(peer) {
            if self.held(Some(*peer), &address, now).is_some() {
                continue;
            }
            if let Some(host) = self.spared_host(Some(*peer), &address) {
                if !self.spare.try_now(&host, &address, now) {
                    continue;
                }
                tries.push((host, address.clone()));
            }
            ready.push(address);
        }
        (ready, tries)
    }

    fn note_tries(&mut self, connection: ConnectionId, tries: Vec<(Host, Multiaddr)>) {
        if !tries.is_empty() {
            self.tries.insert(connection, tries);
        }
    }

    /// Whether somebody's dial may go on, and with which addresses of ours.
    fn gate(
        &mut self,
        connection: ConnectionId,
        peer: Option<PeerId>,
        asked: &[Multiaddr],
    ) -> Result<Vec<Multiaddr>, ConnectionDenied> {
        let now = self.now();
        if let Some(held) = self.all_held(peer, asked, now) {
            return Err(ConnectionDenied::new(BackoffActive {
                retry_in: held.until - now,
                because: held.cause.clone(),
            }));
        }
        let Some(peer) = peer else {
            return Ok(Vec::new());
        };
        let (known, tries) = self.ready_addresses(&peer, now);
        self.note_tries(connection, tries);
        Ok(known)
    }

    /// What keeps every address of somebody's dial from being tried, of several the one that ends first. Addresses that were handed in are
    /// his own word, as good as the operator's; only failures speak against them.
    fn all_held(&self, peer: Option<PeerId>, asked: &[Multiaddr], now: Time) -> Option<Held<'_>> {
        let mut soonest: Option<Held<'_>> = None;
        let known = peer.filter(|_| asked.is_empty());
        let known = known.into_iter().flat_map(|peer| self.addresses(&peer));
        let known = known.map(|address| self.held(peer, &address, now));
        let handed = asked.iter().map(|address| {
            let (_, address) = split(address.clone());
            self.forbids(peer, &address, now).map(|failure| Held {
                until: failure.retry_at,
                cause: &failure.cause.cause,
            })
        });
        for held in known.chain(handed) {
            let held = held?;
            if soonest
                .as_ref()
                .is_none_or(|other| held.until < other.until)
            {
                soonest = Some(held);
            }
        }
        // Nothing was asked and nothing is known: another behaviour may know an address.
        soonest
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
        self.on_tries_failed(connection_id, error, &addresses);
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

    /// What becomes of hosts that were tried: who was found, and who was not troubled after all.
    fn on_tries_failed(
        &mut self,
        connection: ConnectionId,
        error: &DialError,
        addresses: &[(Multiaddr, DialCause)],
    ) {
        let tries = self.tries.remove(&connection).unwrap_or_default();
        let at = |tried: &Multiaddr| {
            let mut causes = addresses.iter();
            causes.find(|(address, _)| split(address.clone()).1 == *tried)
        };
        for (host, address) in tries {
            let unsent = match at(&address) {
                Some((_, cause)) => {
                    matches!(cause, DialCause::Malformed(_) | DialCause::NoSuchHost(_))
                }
                // Refused by somebody before any transport saw it.
                None => !matches!(
                    error,
                    DialError::Transport(_) | DialError::WrongPeerId { .. }
                ),
            };
            if unsent && self.spare.on_untried(&host, &address) {
                self.reschedule();
            }
        }
        for (address, cause) in addresses {
            // Another one than was said, but one of us.
            if let DialCause::WrongPeer { .. } = cause {
                self.on_reached(split(address.clone()).1);
            }
        }
    }

    fn on_reached(&mut self, address: Multiaddr) {
        if let Some(host) = host_of(&address) {
            // Others at that host wait for the end of a minute that is over.
            if self.spare.on_reached(&host, &address) {
                self.reschedule();
            }
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
        self.tries.remove(&event.connection_id);
        if let Some((_, pause)) = &mut self.looked_again {
            *pause = LOOK_AGAIN;
        }
        match event.endpoint {
            ConnectedPoint::Dialer { address, .. } => {
                let (_, address) = split(address.clone());
                self.on_reached(address.clone());
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

    /// The network has changed under us, or we slept: what was unreachable may not be any more. Other swarms stay other swarms.
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
            let at = self.start + deadline;
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
        self.gate(connection, peer, addresses)
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
            FromSwarm::NewListenAddr(event) => {
                let new = (event.listener_id, event.addr.clone());
                if !self.listening.contains(&new) {
                    self.listening.push(new);
                }
                if !is_loopback(event.addr) {
                    self.on_network_change();
                }
            }
            FromSwarm::ExpiredListenAddr(event) => {
                let gone = (event.listener_id, event.addr.clone());
                self.listening.retain(|listening| *listening != gone);
            }
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
        while self.awake.poll(cx).is_ready() {
            self.on_network_change();
        }
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

/// Addresses of this process (memory) trouble nobody.
fn host_of(address: &Multiaddr) -> Option<Host> {
    let mut parts = address.iter();
    let first = match parts.next()? {
        // The address follows the interface.
        Protocol::Ip6zone(_) => parts.next()?,
        first => first,
    };
    let ip = match first {
        Protocol::Ip4(ip) => IpAddr::from(ip),
        Protocol::Ip6(ip) => IpAddr::from(ip).to_canonical(),
        Protocol::Dns(_) | Protocol::Dns4(_) | Protocol::Dns6(_) | Protocol::Dnsaddr(_) => {
            return Some(Host::Named);
        }
        _ => return None,
    };
    // Kubo names the same port for Websockets as well, which TCP by itself does not dial: it must not stand in the way.
    match (parts.next(), parts.next()) {
        (Some(Protocol::Tcp(_)), None) => Some(Host::Tcp(ip)),
        _ => Some(Host::Other(ip)),
    }
}

fn is_at(address: &Multiaddr, ip: IpAddr) -> bool {
    ip_of(address).is_some_and(|own| own.to_canonical() == ip)
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
