//! An application written for libp2p-gossipsub that uses gemba-gossip instead. The lines that changed say what stood there before.
#![allow(clippy::print_stdout)]

use futures::StreamExt as _;
use gemba_gossip as gossipsub; // 1: use libp2p::gossipsub;
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent};

type Failure = Box<dyn std::error::Error>;

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct App {
    gossipsub: gossipsub::Behaviour,
}

fn node(swarm_key: &SwarmKey, topic: &gossipsub::Topic) -> Result<Swarm<App>, Failure> {
    let key = Keypair::generate_ed25519();
    let network = Network::Private(swarm_key.clone());
    let transport = gemba_pnet::transport(&key, &network, &TransportConfig::default())?;
    // 2: gossipsub::Behaviour::new(gossipsub::MessageAuthenticity::Signed(key), gossipsub::Config::default())?;
    let mut gossipsub = gossipsub::Behaviour::new(key.clone(), gossipsub::Config::default())?;
    // 3: gossipsub.subscribe(topic)?;
    gossipsub.listen(topic)?;
    Ok(Swarm::new(
        transport,
        App { gossipsub },
        key.public().to_peer_id(),
        libp2p_swarm::Config::with_tokio_executor(),
    ))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let swarm_key = SwarmKey::generate()?;
    let topic = gossipsub::Topic::new("line-1/alarms")?;
    let mut sender = node(&swarm_key, &topic)?;
    let mut receiver = node(&swarm_key, &topic)?;
    receiver.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    // It waits for a subscriber, so that the application need not try again.
    let wait = gossipsub::Mode::Hold(std::time::Duration::from_secs(30));
    // 4: sender.behaviour_mut().gossipsub.publish(topic, "pressure low")?;
    let gossip = &mut sender.behaviour_mut().gossipsub;
    gossip.publish(&topic, "pressure low", wait)?.detach();
    loop {
        tokio::select! {
            _ = sender.select_next_some() => {}
            event = receiver.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => sender.dial(address)?,
                // 5: AppEvent::Gossipsub(gossipsub::Event::Message { message, .. })
                SwarmEvent::Behaviour(AppEvent::Gossipsub(gossipsub::BehaviourEvent::Message(message))) => {
                    println!("{}: {}", message.topic, String::from_utf8_lossy(&message.data));
                    return Ok(());
                }
                _ => {}
            },
        }
    }
}
