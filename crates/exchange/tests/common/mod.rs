//! A node with a store in memory, and what carries its bytes.
#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    clippy::unwrap_used
)]

use std::collections::{HashMap, HashSet};
use std::io;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt;
use gemba_block::{Block, Bytes, Cid};
use gemba_exchange::{Asked, Behaviour, Config, Event, LoadKind, SessionId, SessionOptions};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_core::muxing::StreamMuxerBox;
use libp2p_core::transport::{Boxed, MemoryTransport, Transport};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::dial_opts::DialOpts;
use libp2p_swarm::{ConnectionId, Swarm, SwarmEvent};
use multiaddr::Multiaddr;

/// One suite, any carrier, below the same wall, Noise and yamux. The next one (QUIC) is a third variant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    Tcp,
    Memory,
}

impl Over {
    /// The transport into the private network of the tests.
    pub fn transport(self, key: &Keypair) -> Boxed<(PeerId, StreamMuxerBox)> {
        self.transport_into(key, &Network::Private(SwarmKey::from_bytes([1; 32])))
    }

    /// The transport into another one.
    pub fn transport_into(
        self,
        key: &Keypair,
        network: &Network,
    ) -> Boxed<(PeerId, StreamMuxerBox)> {
        let config = TransportConfig::default();
        match self {
            Self::Tcp => gemba_pnet::transport(key, network, &config),
            Self::Memory => {
                let refused = |error| io::Error::new(io::ErrorKind::ConnectionRefused, error);
                let carrier = MemoryTransport::new().map_err(refused);
                gemba_pnet::transport_over(carrier, key, network, &config)
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
}

/// Makes of each named test, a function of what is [`Over`] it, one test a carrier: `name::tcp`, `name::memory`.
macro_rules! over_each_transport {
    ($($(#[$test:meta])+ async fn $name:ident;)+) => {
        $(
            mod $name {
                use crate::common::Over;

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

pub struct Node {
    pub swarm: Swarm<Behaviour>,
    pub blocks: HashMap<Cid, Bytes>,
    pub found: Vec<Cid>,
    pub unavailable: Vec<(Cid, Vec<Asked>)>,
    pub address: Multiaddr,
    session: Option<SessionId>,
    /// Answers no load: the peer looks asleep.
    pub mute: bool,
    /// Connections in the order of their opening.
    pub open: Vec<ConnectionId>,
}

impl Node {
    pub async fn new(over: Over, config: Config) -> Self {
        Self::with_idle_timeout(over, config, Duration::from_secs(60)).await
    }

    pub async fn with_idle_timeout(over: Over, config: Config, idle: Duration) -> Self {
        let key = Keypair::generate_ed25519();
        let mut swarm = Swarm::new(
            over.transport(&key),
            Behaviour::new(config),
            key.public().to_peer_id(),
            libp2p_swarm::Config::with_tokio_executor().with_idle_connection_timeout(idle),
        );
        swarm.listen_on(over.anywhere()).unwrap();
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
                break address;
            }
        };
        Self {
            swarm,
            blocks: HashMap::new(),
            found: Vec::new(),
            unavailable: Vec::new(),
            address,
            session: None,
            mute: false,
            open: Vec::new(),
        }
    }

    pub fn id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    pub fn exchange(&self) -> &Behaviour {
        self.swarm.behaviour()
    }

    pub fn exchange_mut(&mut self) -> &mut Behaviour {
        self.swarm.behaviour_mut()
    }

    pub fn connections(&self) -> u32 {
        self.swarm
            .network_info()
            .connection_counters()
            .num_established()
    }

    /// Opens one more connection to a connected peer.
    pub fn dial_again(&mut self, address: Multiaddr) {
        self.swarm
            .dial(DialOpts::unknown_peer_id().address(address).build())
            .unwrap();
    }

    pub fn store(&mut self, blocks: &[Block]) {
        let mut cids = Vec::new();
        for block in blocks {
            self.blocks.insert(*block.cid(), block.data().clone());
            cids.push(*block.cid());
        }
        self.exchange_mut().stored(&cids);
    }

    pub fn want(&mut self, blocks: &[Block]) {
        let session = match self.session {
            Some(session) => session,
            None => self
                .exchange_mut()
                .open_session(SessionOptions::default())
                .unwrap(),
        };
        self.session = Some(session);
        let cids: Vec<_> = blocks.iter().map(|b| *b.cid()).collect();
        self.exchange_mut().want(session, cids).unwrap();
    }

    pub fn has(&self, blocks: &[Block]) -> bool {
        blocks.iter().all(|b| self.blocks.contains_key(b.cid()))
    }

    pub fn on_event(&mut self, event: SwarmEvent<Event>) {
        let event = match event {
            SwarmEvent::Behaviour(event) => event,
            SwarmEvent::ConnectionEstablished { connection_id, .. } => {
                self.open.push(connection_id);
                return;
            }
            SwarmEvent::ConnectionClosed { connection_id, .. } => {
                self.open.retain(|c| *c != connection_id);
                return;
            }
            _ => return,
        };
        match event {
            Event::Found { block, .. } => {
                let len = block.len();
                self.found.push(*block.cid());
                self.store(&[block]);
                self.exchange_mut().release(len);
            }
            Event::Load { id, cid, kind } if !self.mute => {
                let data = self.blocks.get(&cid).cloned();
                match (kind, data) {
                    (LoadKind::Have, Some(data)) => {
                        let size = gemba_exchange::Loaded::Size(data.len() as u64);
                        self.exchange_mut().loaded(id, size);
                    }
                    (_, data) => self.exchange_mut().loaded(id, data),
                }
            }
            Event::Unavailable { cid, asked, .. } => self.unavailable.push((cid, asked)),
            _ => {}
        }
    }
}

/// Connects and waits until both know.
pub async fn connect(a: &mut Node, b: &mut Node) {
    let before = (a.connections(), b.connections());
    b.swarm.dial(a.address.clone()).unwrap();
    run_until(&mut [a, b], |nodes| {
        nodes[0].connections() > before.0 && nodes[1].connections() > before.1
    })
    .await;
}

/// Drives all nodes until `done`; a minute without that is a failure.
pub async fn run_until(nodes: &mut [&mut Node], mut done: impl FnMut(&[&mut Node]) -> bool) {
    let run = futures::future::poll_fn(|cx| {
        loop {
            if done(nodes) {
                return Poll::Ready(());
            }
            let mut any = false;
            for node in nodes.iter_mut() {
                if let Poll::Ready(Some(event)) = node.swarm.poll_next_unpin(cx) {
                    node.on_event(event);
                    any = true;
                }
            }
            if !any {
                return Poll::Pending;
            }
        }
    });
    tokio::time::timeout(Duration::from_secs(60), run)
        .await
        .expect("the nodes reach the state that the test waits for");
}

/// `count` different blocks of `size` bytes, the same for the same seed.
pub fn blocks(seed: u64, count: usize, size: usize) -> Vec<Block> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..count)
        .map(|_| {
            let mut data = Vec::with_capacity(size + 8);
            while data.len() < size {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                data.extend_from_slice(&state.to_le_bytes());
            }
            data.truncate(size);
            Block::raw(data).unwrap()
        })
        .collect()
}

pub fn ids(blocks: &[Block]) -> HashSet<Cid> {
    blocks.iter().map(|b| *b.cid()).collect()
}
