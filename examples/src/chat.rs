//! Chat in a private swarm: three people, two of whom know only the third, and what everybody reads.
#![allow(clippy::print_stdout)]

use std::collections::HashSet;
use std::time::Duration;

use futures::StreamExt as _;
use gemba_gossip::{Behaviour, Buffer, Config, Delivery, Mode, PublishError, Subscription, Topic};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::oneshot;

type Failure = Box<dyn std::error::Error>;

/// A node that is in the room.
fn enter(key: &SwarmKey, room: &Topic) -> Result<(Swarm<Behaviour>, Subscription), Failure> {
    let keypair = Keypair::generate_ed25519();
    let transport = gemba_pnet::transport(
        &keypair,
        &Network::Private(key.clone()),
        &TransportConfig::default(),
    )?;
    let mut gossip = Behaviour::new(keypair.clone(), Config::default())?;
    let room = gossip.subscribe(room, Buffer::default())?;
    let swarm = Swarm::new(
        transport,
        gossip,
        keypair.public().to_peer_id(),
        libp2p_swarm::Config::with_tokio_executor(),
    );
    Ok((swarm, room))
}

/// Says hello until everybody was heard, and a moment longer, so that everybody hears it.
async fn talk(
    name: &str,
    key: SwarmKey,
    room: Topic,
    known: Option<Multiaddr>,
    mut tell: Option<oneshot::Sender<Multiaddr>>,
) -> Result<(), Failure> {
    let (mut swarm, mut messages) = enter(&key, &room)?;
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    if let Some(known) = known {
        swarm.dial(known)?;
    }
    let mut again = tokio::time::interval(Duration::from_millis(250));
    let mut heard = HashSet::new();
    let (mut more, mut left) = (8, 120);
    while more > 0 && left > 0 {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::NewListenAddr { address, .. } = event
                    && let Some(tell) = tell.take()
                {
                    let _ = tell.send(address);
                }
            }
            Some(delivery) = messages.recv() => match delivery {
                Delivery::Message(message) => {
                    if heard.insert(message.source) {
                        println!("[{name}] {}", String::from_utf8_lossy(&message.data));
                    }
                }
                Delivery::Lagged(n) => println!("[{name}] {n} messages missed"),
            },
            _ = again.tick() => {
                left -= 1;
                more -= i32::from(heard.len() == 2);
                match swarm.behaviour_mut().publish(&room, format!("{name}: hello"), Mode::Try) {
                    Ok(publishing) => publishing.detach(),
                    // Nobody is there yet.
                    Err(PublishError::NoPeers) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
    }
    match heard.len() {
        2 => Ok(()),
        _ => Err(format!("{name} did not hear everybody").into()),
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let key = SwarmKey::generate()?;
    let room = Topic::new("line-1/chat")?;
    let (tell, told) = oneshot::channel();
    let first = talk("Ada", key.clone(), room.clone(), None, Some(tell));
    let others = async {
        let address = told.await?;
        tokio::try_join!(
            talk(
                "Ben",
                key.clone(),
                room.clone(),
                Some(address.clone()),
                None
            ),
            talk("Eve", key.clone(), room.clone(), Some(address), None),
        )
    };
    tokio::try_join!(first, others)?;
    Ok(())
}
