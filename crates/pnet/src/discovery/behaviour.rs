//! Driver: libp2p-mdns on a thread of its own, behind the table.

use std::{
    collections::{HashMap, VecDeque},
    io,
    pin::Pin,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use libp2p_core::{
    Endpoint,
    transport::{ListenerId, PortUse},
};
use libp2p_identity::PeerId;
use libp2p_mdns as mdns;
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
    THandlerOutEvent, ToSwarm,
    behaviour::{ExpiredListenAddr, NewListenAddr},
    dummy,
};
use multiaddr::{Multiaddr, Protocol};
use tokio::{runtime::Runtime, time::Sleep};

use super::{
    restart::{Restart, RestartConfig},
    table::{Offer, Table, TableConfig, Time},
};
use crate::cause::ip_of;

/// Knobs of local discovery.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DiscoveryConfig {
    /// What is believed.
    pub table: TableConfig,
    /// How often mDNS is started anew.
    pub restart: RestartConfig,
    /// Between two queries. Any answer on the segment puts off everyone's next query, so there is about one query an interval in all,
    /// and one answer a node to each: 500 nodes and 20 s are 25 small packets a second.
    pub query_interval: Duration,
    /// How long others may believe our answers.
    pub ttl: Duration,
    /// IPv6 instead of IPv4 (the library speaks one of them).
    pub ipv6: bool,
}

impl Default for DiscoveryConfig {
    fn default() -> Self {
        Self {
            table: TableConfig::default(),
            restart: RestartConfig::default(),
            query_interval: Duration::from_secs(20),
            ttl: Duration::from_secs(6 * 60),
            ipv6: false,
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum DiscoveryEvent {
    /// A peer at an address: hand it to [`Dialer::discovered`](crate::Dialer::discovered). It comes again with every restart of mDNS.
    Discovered {
        /// Who.
        peer: PeerId,
        /// Where, without `/p2p`.
        address: Multiaddr,
    },
    /// Not seen for a lifetime.
    Expired {
        /// Who.
        peer: PeerId,
        /// Where it was.
        address: Multiaddr,
    },
}

/// mDNS with bounds. It finds Kubo nodes and gemba nodes of *any* swarm: the key decides when they are dialed.
pub struct Discovery {
    config: DiscoveryConfig,
    local: PeerId,
    start: Instant,
    table: Table<PeerId, Multiaddr>,
    restart: Restart,
    /// `None` while it cannot be started, or was stopped because it was flooded.
    mdns: Option<Running>,
    /// The library learns our addresses from events, so a fresh one must be told again. Bounded by our listeners.
    listening: Vec<(ListenerId, Multiaddr)>,
    /// Drained before the library is polled again: bounded by what one poll yields.
    events: VecDeque<DiscoveryEvent>,
    /// `None`: to be set anew, because a deadline may have moved.
    timer: Option<Pin<Box<Sleep>>>,
    restarts: u64,
    last_error: Option<String>,
}

/// A running mDNS.
///
/// Its interface tasks are spawned where it is polled and outlive it, so it gets a runtime that ends with it: one thread, which also keeps
/// a flood of packets away from the swarm.
struct Running {
    /// `Some` until dropped.
    behaviour: Option<mdns::tokio::Behaviour>,
    runtime: Option<Runtime>,
}

impl Discovery {
    /// Starts mDNS for `local` with the first poll.
    pub fn new(config: DiscoveryConfig, local: PeerId) -> Self {
        let mut discovery = Self {
            table: Table::new(config.table.clone()),
            restart: Restart::new(config.restart.clone(), Time::ZERO),
            config,
            local,
            start: Instant::now(),
            mdns: None,
            listening: Vec::new(),
            events: VecDeque::new(),
            timer: None,
            restarts: 0,
            last_error: None,
        };
        discovery.start_mdns();
        discovery
    }

    /// What is believed now.
    pub fn seen(&self) -> impl Iterator<Item = &(PeerId, Multiaddr)> {
        self.table.iter()
    }

    /// How often each verdict fell on a sighting.
    pub fn counts(&self) -> HashMap<Offer, u64> {
        self.table
            .counts()
            .iter()
            .map(|(offer, count)| (*offer, *count))
            .collect()
    }

    /// How often mDNS was started anew.
    pub fn restarts(&self) -> u64 {
        self.restarts
    }

    /// Why mDNS does not run, if it does not.
    pub fn last_error(&self) -> Option<&str> {
        self.last_error.as_deref()
    }

    /// Starts mDNS anew at the next chance: it asks at once and finds who is there.
    pub fn look_again(&mut self) {
        let now = self.now();
        self.restart.on_disturbance(now);
        self.timer = None;
    }

    fn now(&self) -> Time {
        self.start.elapsed()
    }

    fn start_mdns(&mut self) {
        // The old one goes first: both would answer.
        self.mdns = None;
        let config = mdns::Config {
            ttl: self.config.ttl,
            query_interval: self.config.query_interval,
            enable_ipv6: self.config.ipv6,
        };
        match Running::start(config, self.local) {
            Ok(mut running) => {
                for (listener_id, addr) in &self.listening {
                    running.on_swarm_event(FromSwarm::NewListenAddr(NewListenAddr {
                        listener_id: *listener_id,
                        addr,
                    }));
                }
                self.mdns = Some(running);
                self.last_error = None;
            }
            Err(error) => {
                tracing::warn!(%error, "mDNS does not start; trying again");
                self.last_error = Some(error.to_string());
            }
        }
    }

    fn expire(&mut self, now: Time) {
        for (peer, address) in self.table.expire(now) {
            self.events
                .push_back(DiscoveryEvent::Expired { peer, address });
        }
        if self.restart.deadline() <= now {
            self.start_mdns();
            self.restarts += 1;
            self.restart.on_started(now);
        }
    }

    fn on_answers(&mut self, answers: Vec<(PeerId, Multiaddr)>) {
        let now = self.now();
        for (peer, address) in answers {
            let address = without_peer(address);
            let Some(ip) = ip_of(&address).filter(|_| peer != self.local) else {
                continue;
            };
            match self.table.offer(peer, address.clone(), ip, now) {
                Offer::New | Offer::Renewed => {
                    self.events
                        .push_back(DiscoveryEvent::Discovered { peer, address });
                }
                refused => tracing::debug!(%peer, %address, ?refused, "mDNS answer not believed"),
            }
        }
        // A new sighting may expire before anything else does.
        self.timer = None;
        // The library remembers every answer for as long as the answer says. More of them than we would ever believe is a flood: silence
        // until the next restart.
        let remembered = self.mdns.as_ref().map_or(0, Running::remembered);
        if remembered > 2 * self.config.table.max_sightings {
            tracing::warn!(
                remembered,
                "flood of mDNS answers: not listening until the next restart"
            );
            self.last_error = Some("stopped because of a flood of answers".into());
            self.mdns = None;
            self.restart.on_disturbance(now);
            self.timer = None;
        }
    }

    /// Expiry and restart, when it is time for one of them.
    fn poll_timer(&mut self, cx: &mut Context<'_>) {
        loop {
            let sleep = match &mut self.timer {
                Some(sleep) => sleep,
                None => {
                    let restart = self.restart.deadline();
                    let deadline = self.table.deadline().map_or(restart, |at| at.min(restart));
                    let at = tokio::time::Instant::from_std(self.start + deadline);
                    self.timer.insert(Box::pin(tokio::time::sleep_until(at)))
                }
            };
            if sleep.as_mut().poll(cx).is_pending() {
                return;
            }
            self.timer = None;
            let now = self.now();
            self.expire(now);
        }
    }
}

impl Running {
    fn start(config: mdns::Config, local: PeerId) -> io::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(1)
            .thread_name("gemba-mdns")
            .enable_all()
            .build()?;
        let behaviour = {
            let _entered = runtime.enter();
            mdns::tokio::Behaviour::new(config, local)
        };
        let mut running = Self {
            behaviour: None,
            runtime: Some(runtime),
        };
        running.behaviour = Some(behaviour?);
        Ok(running)
    }

    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let Some(behaviour) = &mut self.behaviour {
            behaviour.on_swarm_event(event);
        }
    }

    fn remembered(&self) -> usize {
        self.behaviour
            .as_ref()
            .map_or(0, |behaviour| behaviour.discovered_nodes().len())
    }

    /// The next answers, or what else the library says.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Vec<(PeerId, Multiaddr)>>> {
        let (Some(behaviour), Some(runtime)) = (&mut self.behaviour, &self.runtime) else {
            return Poll::Pending;
        };
        let _entered = runtime.enter();
        behaviour.poll(cx).map(|said| match said {
            ToSwarm::GenerateEvent(mdns::Event::Discovered(answers)) => Some(answers),
            // Expiry is the table's business. Addresses for other behaviours (`NewExternalAddrOfPeer`) would go past it.
            _ => None,
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.behaviour = None;
        if let Some(runtime) = self.runtime.take() {
            // Not by plain drop, which waits and may not do so inside another runtime.
            runtime.shutdown_background();
        }
    }
}

impl NetworkBehaviour for Discovery {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = DiscoveryEvent;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    // `handle_pending_outbound_connection` is the default one, which adds no address: see the module.

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
        match &event {
            FromSwarm::NewListenAddr(NewListenAddr { listener_id, addr }) => {
                self.listening.push((*listener_id, (*addr).clone()));
                self.look_again();
            }
            FromSwarm::ExpiredListenAddr(ExpiredListenAddr { listener_id, addr }) => {
                let gone = (*listener_id, (*addr).clone());
                self.listening.retain(|listening| *listening != gone);
                self.look_again();
            }
            _ => {}
        }
        if let Some(mdns) = &mut self.mdns {
            mdns.on_swarm_event(event);
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
        loop {
            self.poll_timer(cx);
            if let Some(event) = self.events.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(event));
            }
            match self.mdns.as_mut().map(|mdns| mdns.poll(cx)) {
                Some(Poll::Ready(Some(answers))) => self.on_answers(answers),
                Some(Poll::Ready(None)) => {}
                Some(Poll::Pending) | None => return Poll::Pending,
            }
        }
    }
}

fn without_peer(mut address: Multiaddr) -> Multiaddr {
    if let Some(Protocol::P2p(_)) = address.iter().last() {
        address.pop();
    }
    address
}
