//! Swarms on loopback or in memory, driven until something is seen.
#![allow(
    dead_code,
    unreachable_pub,
    unused_macros,
    unused_imports,
    clippy::unwrap_used
)]

pub mod insider;
pub mod lan;
mod over;
pub mod strangers;

use std::time::Duration;

use futures::{StreamExt, future};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{Config, NetworkBehaviour, Swarm, SwarmEvent, dummy};
use multiaddr::Multiaddr;
pub use over::{From, Link, Over, RawListener, RawSocket, connect_from, multiaddr, socket};

/// Nothing in these tests waits this long unless it fails.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn key(byte: u8) -> SwarmKey {
    SwarmKey::from_bytes([byte; 32])
}

pub fn private(byte: u8) -> Network {
    Network::Private(key(byte))
}

pub fn public() -> Network {
    let force = gemba_pnet::Policy::default().force().unwrap();
    Network::Public(gemba_pnet::PublicNetwork::asked_for(&force).unwrap())
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

pub fn swarm_with<B: NetworkBehaviour>(
    over: Over,
    network: &Network,
    config: &TransportConfig,
    behaviour: impl FnOnce(&Keypair) -> B,
) -> Swarm<B> {
    let keypair = Keypair::generate_ed25519();
    let transport = over.transport(&keypair, network, config);
    let behaviour = behaviour(&keypair);
    Swarm::new(
        transport,
        behaviour,
        keypair.public().to_peer_id(),
        Config::with_tokio_executor().with_idle_connection_timeout(Duration::from_secs(60)),
    )
}

pub fn swarm(over: Over, network: &Network) -> Swarm<dummy::Behaviour> {
    swarm_with(over, network, &TransportConfig::default(), |_| {
        dummy::Behaviour
    })
}

/// Listens on a free loopback port, or a free place in memory, and returns its address.
pub async fn listen<B: NetworkBehaviour>(over: Over, swarm: &mut Swarm<B>) -> Multiaddr {
    swarm.listen_on(over.anywhere()).unwrap();
    until(swarm, |event| match event {
        SwarmEvent::NewListenAddr { address, .. } => Some(address.clone()),
        _ => None,
    })
    .await
}

/// Drives one swarm until `pick` picks something.
pub async fn until<B: NetworkBehaviour, T>(
    swarm: &mut Swarm<B>,
    mut pick: impl FnMut(&SwarmEvent<B::ToSwarm>) -> Option<T>,
) -> T {
    let seen = async {
        loop {
            if let Some(picked) = pick(&swarm.select_next_some().await) {
                return picked;
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("seen in time")
}

/// Drives two swarms until both pickers have picked.
pub async fn until_both<A: NetworkBehaviour, B: NetworkBehaviour, T, U>(
    a: &mut Swarm<A>,
    b: &mut Swarm<B>,
    mut pick_a: impl FnMut(&SwarmEvent<A::ToSwarm>) -> Option<T>,
    mut pick_b: impl FnMut(&SwarmEvent<B::ToSwarm>) -> Option<U>,
) -> (T, U) {
    let (mut picked_a, mut picked_b) = (None, None);
    let seen = async {
        while picked_a.is_none() || picked_b.is_none() {
            let next = future::select(a.select_next_some(), b.select_next_some()).await;
            match next {
                future::Either::Left((event, _)) => {
                    picked_a = picked_a.take().or_else(|| pick_a(&event));
                }
                future::Either::Right((event, _)) => {
                    picked_b = picked_b.take().or_else(|| pick_b(&event));
                }
            }
        }
    };
    tokio::time::timeout(PATIENCE, seen)
        .await
        .expect("both seen in time");
    (picked_a.unwrap(), picked_b.unwrap())
}
