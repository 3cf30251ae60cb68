//! Nodes in real swarms, below the private network's wall, over TCP or memory.
#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    clippy::unwrap_used,
    reason = "shared by several test programs"
)]

pub mod raw;
pub mod schema;

use std::io;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use gemba_gossip::{Behaviour, BehaviourEvent, Buffer, Config, Delivery, Event, Message, Topic};
use gemba_gossip::{Subscription, Validator};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_core::Transport as _;
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::{Boxed, MemoryTransport};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{ConnectionId, NetworkBehaviour, Swarm, SwarmEvent};
use multiaddr::Multiaddr;

/// One suite, any carrier, below the same wall, Noise and yamux.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Memory,
}

impl Over {
    /// The transport into the private network of the tests.
    pub fn transport(self, key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
        let network = Network::Private(SwarmKey::from_bytes([1; 32]));
        let config = TransportConfig::default();
        match self {
            Self::Tcp => gemba_pnet::transport(key, &network, &config),
            Self::Memory => {
                let refused = |error| io::Error::new(io::ErrorKind::ConnectionRefused, error);
                let carrier = MemoryTransport::new().map_err(refused);
                gemba_pnet::transport_over(carrier, key, &network, &config)
            }
        }
        .unwrap()
    }

    /// Where to listen to get a free place.
    pub fn anywhere(self) -> Multiaddr {
        match self {
            Self::Tcp => "/ip4/127.0.0.1/tcp/0",
            Self::Memory => "/memory/0",
        }
        .parse()
        .unwrap()
    }

    pub fn swarm_of<B: NetworkBehaviour>(self, key: &Keypair, behaviour: B) -> Swarm<B> {
        let config = libp2p_swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(60));
        let id = key.public().to_peer_id();
        let mut swarm = Swarm::new(self.transport(key), behaviour, id, config);
        swarm.listen_on(self.anywhere()).unwrap();
        swarm
    }

    /// A swarm that listens, and where.
    pub async fn swarm<B: NetworkBehaviour>(
        self,
        key: &Keypair,
        behaviour: B,
    ) -> (Swarm<B>, Multiaddr) {
        let mut swarm = self.swarm_of(key, behaviour);
        loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                return (swarm, address);
            }
        }
    }
}

/// Makes of each named test, a function of what is [`Over`] it, one test a carrier: `name::tcp`, `name::memory`.
macro_rules! over_each_transport {
    ($($(#[$test:meta])+ async fn $name:ident;)+) => {
        $(
            mod $name {
                use crate::rig::Over;

                $(#[$test])+
                async fn tcp() {
                    super::$name(Over::Tcp).await;
                }

                $(#[$test])+
                async fn memory() {
                    super::$name(Over::Memory).await;
                }
            }
        )+
    };
}
pub(crate) use over_each_transport;

/// A node and what it was told.
pub struct Node {
    pub swarm: Swarm<Behaviour>,
    pub address: Multiaddr,
    pub events: Vec<Event>,
    pub subscriptions: Vec<Subscription>,
    pub got: Vec<Message>,
    pub lagged: u64,
    /// Judges [`BehaviourEvent::Validate`].
    pub judge: Option<Validator>,
    /// Connections in the order of their opening.
    pub open: Vec<ConnectionId>,
    /// What the store of sequence numbers said.
    pub failed: Option<io::Error>,
    /// Dials that were begun.
    pub dials: u64,
}

impl Node {
    pub async fn new(over: Over, config: Config) -> Self {
        Self::with_key(over, config, &Keypair::generate_ed25519()).await
    }

    pub async fn with_key(over: Over, config: Config, key: &Keypair) -> Self {
        let behaviour = Behaviour::new(key.clone(), config).unwrap();
        Self::with_behaviour(over, behaviour, key).await
    }

    pub async fn with_behaviour(over: Over, behaviour: Behaviour, key: &Keypair) -> Self {
        let mut node = Self {
            swarm: over.swarm_of(key, behaviour),
            address: Multiaddr::empty(),
            events: Vec::new(),
            subscriptions: Vec::new(),
            got: Vec::new(),
            lagged: 0,
            judge: None,
            open: Vec::new(),
            failed: None,
            dials: 0,
        };
        loop {
            match node.swarm.select_next_some().await {
                SwarmEvent::NewListenAddr { address, .. } => {
                    node.address = address;
                    return node;
                }
                event => node.on_event(event),
            }
        }
    }

    pub fn id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    pub fn gossip(&self) -> &Behaviour {
        self.swarm.behaviour()
    }

    pub fn gossip_mut(&mut self) -> &mut Behaviour {
        self.swarm.behaviour_mut()
    }

    pub fn subscribe(&mut self, topic: &Topic) {
        let subscription = self.gossip_mut().subscribe(topic, Buffer::default());
        self.subscriptions.push(subscription.unwrap());
    }

    pub fn knows(&self, topic: &Topic, peer: PeerId) -> bool {
        self.gossip().subscribers(topic).contains(&peer)
    }

    pub fn data(&self) -> Vec<Vec<u8>> {
        self.got.iter().map(|m| m.data.to_vec()).collect()
    }

    pub fn on_event(&mut self, event: SwarmEvent<BehaviourEvent>) {
        match event {
            SwarmEvent::Behaviour(BehaviourEvent::Message(message)) => self.got.push(message),
            SwarmEvent::Behaviour(BehaviourEvent::Report(event)) => self.events.push(event),
            SwarmEvent::Behaviour(BehaviourEvent::Validate {
                ticket, message, ..
            }) => {
                if let Some(judge) = self.judge.clone() {
                    self.gossip_mut().validated(ticket, judge(&message));
                }
            }
            SwarmEvent::Behaviour(BehaviourEvent::SequenceFailed { error, .. }) => {
                self.failed = Some(error);
            }
            SwarmEvent::Dialing { .. } => self.dials += 1,
            SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                self.open.push(connection_id);
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.open.retain(|c| *c != connection_id);
            }
            _ => {}
        }
    }

    /// Takes all that can be taken. Whether there was anything.
    pub fn turn(&mut self, cx: &mut std::task::Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(event)) = self.swarm.poll_next_unpin(cx) {
            self.on_event(event);
            any = true;
        }
        for subscription in &mut self.subscriptions {
            while let Some(delivery) = subscription.try_next() {
                match delivery {
                    Delivery::Message(message) => self.got.push(message),
                    Delivery::Lagged(n) => self.lagged += n,
                }
                any = true;
            }
        }
        any
    }
}

/// Drives all nodes until `done`; a minute without that is a failure.
pub async fn run_until(nodes: &mut [&mut Node], mut done: impl FnMut(&[&mut Node]) -> bool) {
    let run = std::future::poll_fn(|cx| {
        loop {
            if done(nodes) {
                return Poll::Ready(());
            }
            if !nodes
                .iter_mut()
                .fold(false, |any, node| node.turn(cx) | any)
            {
                return Poll::Pending;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .expect("the nodes reach the state that the test waits for");
}

/// Drives all nodes until the future is ready.
pub async fn run_with<T>(nodes: &mut [&mut Node], future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    let run = std::future::poll_fn(|cx| {
        loop {
            if let Poll::Ready(result) = future.as_mut().poll(cx) {
                return Poll::Ready(result);
            }
            if !nodes
                .iter_mut()
                .fold(false, |any, node| node.turn(cx) | any)
            {
                return Poll::Pending;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .expect("the future that the test waits for is ready")
}

/// Connects, and waits until both know what the other subscribes to.
pub async fn join(a: &mut Node, b: &mut Node, topic: &Topic) {
    let (a_id, b_id) = (a.id(), b.id());
    b.swarm.dial(a.address.clone()).unwrap();
    run_until(&mut [a, b], |nodes| {
        nodes[0].knows(topic, b_id) && nodes[1].knows(topic, a_id)
    })
    .await;
}

pub fn topic(name: &str) -> Topic {
    Topic::new(name).unwrap()
}
