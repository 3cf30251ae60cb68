//! A libp2p application in a private swarm: who has the key is in, who has another one learns at once that it is the key.
#![allow(clippy::print_stdout)]

use futures::StreamExt as _;
use gemba_pnet::{Dialer, DialerConfig, DialerEvent, Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::Multiaddr;

type Failure = Box<dyn std::error::Error>;

/// A node of the swarm that this key makes.
fn node(key: &SwarmKey) -> Result<Swarm<Dialer>, Failure> {
    let keypair = Keypair::generate_ed25519();
    let transport = gemba_pnet::transport(
        &keypair,
        &Network::Private(key.clone()),
        &TransportConfig::default(),
    )?;
    let config = libp2p_swarm::Config::with_tokio_executor();
    Ok(Swarm::new(
        transport,
        Dialer::new(DialerConfig::default()),
        keypair.public().to_peer_id(),
        config,
    ))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let key = SwarmKey::generate()?;
    println!("swarm {}", key.fingerprint());
    let mut server = node(&key)?;
    server.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address: Multiaddr = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = server.select_next_some().await {
            break address;
        }
    };
    tokio::spawn(async move { while server.next().await.is_some() {} });

    for (who, key) in [("a member", key), ("a stranger", SwarmKey::generate()?)] {
        let mut device = node(&key)?;
        device.behaviour_mut().dial_now(address.clone());
        loop {
            match device.select_next_some().await {
                SwarmEvent::ConnectionEstablished { peer_id, .. } => {
                    break println!("{who} is connected with {peer_id}");
                }
                SwarmEvent::Behaviour(DialerEvent::Failed { cause, .. }) => {
                    break println!("{who} is kept out: {cause}");
                }
                _ => {}
            }
        }
    }
    Ok(())
}
