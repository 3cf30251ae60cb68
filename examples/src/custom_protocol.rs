//! A protocol of one's own beside the block exchange, in one private swarm: a device counts a light barrier and sends
//! the count to the line's panel, while the panel fetches the work instruction that belongs to it.
#![allow(clippy::print_stdout)]

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use gemba_block::Block;
use gemba_exchange::{Config, Event, SessionOptions};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};

type Failure = Box<dyn std::error::Error>;

/// Names of one's own carry one's own prefix, so that nobody else answers to them.
const LIGHT_BARRIER: StreamProtocol = StreamProtocol::new("/example/light-barrier/1.0.0");

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Behaviour {
    streams: libp2p_stream::Behaviour,
    exchange: gemba_exchange::Behaviour,
}

fn node(key: &SwarmKey) -> Result<Swarm<Behaviour>, Failure> {
    let keypair = Keypair::generate_ed25519();
    let transport = gemba_pnet::transport(
        &keypair,
        &Network::Private(key.clone()),
        &TransportConfig::default(),
    )?;
    let behaviour = Behaviour {
        streams: libp2p_stream::Behaviour::new(),
        exchange: gemba_exchange::Behaviour::new(Config::default()),
    };
    Ok(Swarm::new(
        transport,
        behaviour,
        keypair.public().to_peer_id(),
        libp2p_swarm::Config::with_tokio_executor(),
    ))
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let key = SwarmKey::generate()?;
    let instruction = Block::raw("Tighten both bolts to 12 Nm.")?;
    let cid = *instruction.cid();

    // The panel: takes counts, and wants the instruction.
    let mut panel = node(&key)?;
    panel.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = panel.select_next_some().await {
            break address;
        }
    };
    let panel_id = *panel.local_peer_id();
    let mut counts = panel
        .behaviour()
        .streams
        .new_control()
        .accept(LIGHT_BARRIER)?;
    let session = panel
        .behaviour_mut()
        .exchange
        .open_session(SessionOptions::default())?;
    panel.behaviour_mut().exchange.want(session, [cid])?;

    // The device at the line: has the instruction, sends the count.
    let mut device = node(&key)?;
    device.dial(address)?;
    let mut control = device.behaviour().streams.new_control();
    tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(BehaviourEvent::Exchange(Event::Load {
                id, cid, ..
            })) = device.select_next_some().await
            {
                let here = (cid == *instruction.cid()).then(|| instruction.data().clone());
                device.behaviour_mut().exchange.loaded(id, here);
            }
        }
    });
    let counting = tokio::spawn(async move {
        let mut stream = loop {
            match control.open_stream(panel_id, LIGHT_BARRIER).await {
                Ok(stream) => break stream,
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(20)).await,
            }
        };
        for count in 1..=3_u32 {
            stream.write_all(&count.to_be_bytes()).await?;
        }
        stream.close().await
    });

    // Streams are read beside the loop: the swarm must go on while bytes arrive.
    let mut reading = tokio::spawn(async move {
        let (peer, mut stream) = counts.next().await.ok_or("nobody counted")?;
        let mut bytes = Vec::new();
        stream
            .read_to_end(&mut bytes)
            .await
            .map_err(|e| e.to_string())?;
        println!(
            "light barrier of {peer}: {} counts, the last is {:?}",
            bytes.len() / 4,
            bytes.last()
        );
        Ok::<(), String>(())
    });
    let (mut got_count, mut got_instruction) = (false, false);
    while !(got_count && got_instruction) {
        tokio::select! {
            event = panel.select_next_some() => {
                if let SwarmEvent::Behaviour(BehaviourEvent::Exchange(Event::Found { block, .. })) = event {
                    println!("instruction: {}", String::from_utf8_lossy(block.data()));
                    panel.behaviour_mut().exchange.release(block.len());
                    got_instruction = true;
                }
            }
            read = &mut reading, if !got_count => {
                read??;
                got_count = true;
            }
        }
    }
    counting.await??;
    Ok(())
}
