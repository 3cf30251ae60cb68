//! Bitswap between two nodes whose stores are maps in memory: wants on one side, loads on the other.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;

use futures::StreamExt as _;
use gemba_block::{Block, Bytes, Cid};
use gemba_exchange::{Behaviour, Config, Event, SessionOptions};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::Keypair;
use libp2p_swarm::{Swarm, SwarmEvent};

type Failure = Box<dyn std::error::Error>;

fn node(key: &SwarmKey) -> Result<Swarm<Behaviour>, Failure> {
    let keypair = Keypair::generate_ed25519();
    let transport = gemba_pnet::transport(
        &keypair,
        &Network::Private(key.clone()),
        &TransportConfig::default(),
    )?;
    let config = libp2p_swarm::Config::with_tokio_executor();
    Ok(Swarm::new(
        transport,
        Behaviour::new(Config::default()),
        keypair.public().to_peer_id(),
        config,
    ))
}

/// Answers what others want from a map.
async fn serve(mut swarm: Swarm<Behaviour>, store: HashMap<Cid, Bytes>) {
    loop {
        if let SwarmEvent::Behaviour(Event::Load { id, cid, .. }) = swarm.select_next_some().await {
            swarm.behaviour_mut().loaded(id, store.get(&cid).cloned());
        }
    }
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let key = SwarmKey::generate()?;
    let blocks: Vec<Block> = (0..100_u32)
        .map(|n| Block::raw(vec![n as u8; 10_000]))
        .collect::<Result<_, _>>()?;
    let cids: Vec<Cid> = blocks.iter().map(|block| *block.cid()).collect();

    let mut origin = node(&key)?;
    origin.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = origin.select_next_some().await {
            break address;
        }
    };
    tokio::spawn(serve(
        origin,
        blocks.into_iter().map(Block::into_parts).collect(),
    ));

    let mut device = node(&key)?;
    device.dial(address)?;
    let session = device
        .behaviour_mut()
        .open_session(SessionOptions::default())?;
    device.behaviour_mut().want(session, cids.iter().copied())?;
    let mut store = HashMap::new();
    while store.len() < cids.len() {
        if let SwarmEvent::Behaviour(Event::Found { block, from, .. }) =
            device.select_next_some().await
        {
            if store.is_empty() {
                println!("first block {} from {from}", block.cid());
            }
            // Its bytes left the exchange's budget; what others wait for can be served from here, too.
            device.behaviour_mut().release(block.len());
            device.behaviour_mut().stored(&[*block.cid()]);
            let (cid, data) = block.into_parts();
            store.insert(cid, data);
        }
    }
    println!(
        "all {} blocks are here, each with its hash checked",
        store.len()
    );
    Ok(())
}
