//! Driver: ping that closes what does not answer.
//!
//! libp2p's ping measures and reports but closes nothing, its first failure is silent, and the attempt after that may wait for 10 s
//! more. TCP alone takes a quarter of an hour to notice a pulled cable. So [`watch`](crate::watch) notes when each connection answered
//! last, and this driver closes those that are overdue; after a sleep of the machine that the others cannot have waited out
//! ([`wake`](crate::wake)), it closes all of them at once.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p_core::{Endpoint, transport::PortUse};
use libp2p_identity::PeerId;
use libp2p_ping as ping;
use libp2p_swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler,
    THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use multiaddr::Multiaddr;
use tokio::time::Sleep;

use crate::awake::Awake;
use crate::watch::{Time, Watch};

/// A shorter sleep is none: on a busy machine a second may take several.
const SHORTEST_SLEEP: Duration = Duration::from_secs(5);

/// How soon a dead connection is noticed, against one small packet an interval and connection.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct LivenessConfig {
    /// Between two pings of a healthy connection.
    pub interval: Duration,
    /// An answer must come within this time. One miss is forgiven: a connection is closed `interval + 2 × timeout` after its last
    /// answer, 15 s by default.
    pub timeout: Duration,
}

impl Default for LivenessConfig {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(5),
        }
    }
}

/// What was learnt about a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LivenessEvent {
    /// The peer answered.
    Rtt {
        /// Who.
        peer: PeerId,
        /// On which connection.
        connection: ConnectionId,
        /// There and back.
        rtt: Duration,
    },
    /// The peer has not answered for too long; the connection is being closed.
    Dead {
        /// Who.
        peer: PeerId,
        /// On which connection.
        connection: ConnectionId,
        /// Since its last answer, or since it was opened.
        silent_for: Duration,
    },
}

/// Ping, with consequences.
pub struct Liveness {
    ping: ping::Behaviour,
    start: Instant,
    patience: Duration,
    watch: Watch<ConnectionId>,
    awake: Awake,
    timer: Option<(Time, Pin<Box<Sleep>>)>,
    /// Open connections: bounded by the swarm's limits.
    open: HashMap<ConnectionId, PeerId>,
    /// Last round trip of each open connection: bounded by the connections.
    rtt: HashMap<ConnectionId, (PeerId, Duration)>,
    /// Closes to be ordered, each after its event was told: at most one for each connection.
    closing: VecDeque<(PeerId, ConnectionId)>,
    /// Told before anything else is polled: at most one for each connection.
    told: VecDeque<LivenessEvent>,
}

impl Liveness {
    /// Pings every connection from now on.
    pub fn new(config: &LivenessConfig) -> Self {
        let patience = config.interval + 2 * config.timeout;
        let ping = ping::Config::new()
            .with_interval(config.interval)
            .with_timeout(config.timeout);
        Self {
            ping: ping::Behaviour::new(ping),
            start: Instant::now(),
            patience,
            watch: Watch::new(patience),
            // The others have heard from us at most an interval before we fell asleep, and the radio takes about as long as an answer
            // may take until it carries again: what is left of their patience is one time-out.
            awake: Awake::new(config.timeout.max(SHORTEST_SLEEP)),
            timer: None,
            open: HashMap::new(),
            rtt: HashMap::new(),
            closing: VecDeque::new(),
            told: VecDeque::new(),
        }
    }

    /// The shortest of the last round trips over the connections with `peer`.
    pub fn rtt(&self, peer: &PeerId) -> Option<Duration> {
        let of_peer = self.rtt.values().filter(|(owner, _)| owner == peer);
        of_peer.map(|(_, rtt)| *rtt).min()
    }

    fn on_ping(&mut self, event: ping::Event) -> Option<LivenessEvent> {
        let (peer, connection) = (event.peer, event.connection);
        match event.result {
            Ok(rtt) => {
                self.watch.on_answer(&connection, self.start.elapsed());
                if self.open.contains_key(&connection) {
                    self.rtt.insert(connection, (peer, rtt));
                }
                Some(LivenessEvent::Rtt {
                    peer,
                    connection,
                    rtt,
                })
            }
            // Not to speak ping is no reason to part.
            Err(ping::Failure::Unsupported) => {
                self.watch.forget(&connection);
                None
            }
            Err(failure) => {
                tracing::debug!(%peer, %failure, "ping failed");
                None
            }
        }
    }

    /// Nobody has heard of us for `slept`: what we hold are the remains of connections.
    fn on_wake(&mut self, slept: Duration) {
        tracing::info!(?slept, "the machine slept: connections are made anew");
        for connection in self.watch.on_wake() {
            if let Some(&peer) = self.open.get(&connection) {
                self.closing.push_back((peer, connection));
                self.told.push_back(LivenessEvent::Dead {
                    peer,
                    connection,
                    silent_for: slept,
                });
            }
        }
    }

    /// The next connection that is overdue.
    fn poll_overdue(&mut self, cx: &mut Context<'_>) -> Poll<LivenessEvent> {
        loop {
            let Some(deadline) = self.watch.deadline() else {
                self.timer = None;
                return Poll::Pending;
            };
            if self.timer.as_ref().is_none_or(|(at, _)| *at != deadline) {
                let at = tokio::time::Instant::from_std(self.start + deadline);
                self.timer = Some((deadline, Box::pin(tokio::time::sleep_until(at))));
            }
            if let Some((_, sleep)) = &mut self.timer
                && sleep.as_mut().poll(cx).is_pending()
            {
                return Poll::Pending;
            }
            // A timer of the runtime may fire within its millisecond before the deadline.
            let now = self.start.elapsed().max(deadline);
            if let Some(connection) = self.watch.expire(now)
                && let Some(&peer) = self.open.get(&connection)
            {
                self.closing.push_back((peer, connection));
                return Poll::Ready(LivenessEvent::Dead {
                    peer,
                    connection,
                    silent_for: self.patience,
                });
            }
        }
    }
}

impl NetworkBehaviour for Liveness {
    type ConnectionHandler = THandler<ping::Behaviour>;
    type ToSwarm = LivenessEvent;

    fn handle_established_inbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.ping
            .handle_established_inbound_connection(connection, peer, local, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        connection: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        role: Endpoint,
        port: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.ping
            .handle_established_outbound_connection(connection, peer, address, role, port)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        match &event {
            FromSwarm::ConnectionEstablished(opened) => {
                self.open.insert(opened.connection_id, opened.peer_id);
                self.watch
                    .on_alive(opened.connection_id, self.start.elapsed());
            }
            FromSwarm::ConnectionClosed(closed) => {
                self.open.remove(&closed.connection_id);
                self.rtt.remove(&closed.connection_id);
                self.watch.forget(&closed.connection_id);
            }
            _ => {}
        }
        self.ping.on_swarm_event(event);
    }

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        connection: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        self.ping
            .on_connection_handler_event(peer, connection, event);
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        while let Poll::Ready(slept) = self.awake.poll(cx) {
            self.on_wake(slept);
        }
        loop {
            if let Some(event) = self.told.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            if let Some((peer_id, connection)) = self.closing.pop_front() {
                return Poll::Ready(ToSwarm::CloseConnection {
                    peer_id,
                    connection: CloseConnection::One(connection),
                });
            }
            match self.ping.poll(cx) {
                Poll::Ready(ToSwarm::GenerateEvent(event)) => {
                    if let Some(event) = self.on_ping(event) {
                        return Poll::Ready(ToSwarm::GenerateEvent(event));
                    }
                }
                // Ping generates nothing else today; what it may come to ask for is passed on.
                Poll::Ready(other) => {
                    return Poll::Ready(other.map_out(|_| unreachable!("events were taken above")));
                }
                Poll::Pending => return self.poll_overdue(cx).map(ToSwarm::GenerateEvent),
            }
        }
    }
}
