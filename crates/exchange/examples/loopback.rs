//! Measures one transfer between two swarms over TCP, noise and yamux on loopback, stores in memory.
//!
//! `cargo run --release -p gemba-exchange --example loopback -- [blocks] [bytes of a block] [window]`
//! prints seconds, MiB/s and blocks/s. `window` is how many wants the fetcher keeps in its session, as a DAG walk does.
#![allow(clippy::print_stdout)]

use std::collections::HashMap;
use std::error::Error;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt;
use gemba_block::{Block, Bytes, Cid};
use gemba_exchange::{Behaviour, Config, Event, LoadKind, Loaded, SessionOptions};
use libp2p_core::Transport;
use libp2p_core::upgrade::Version;
use libp2p_identity::Keypair;
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::Multiaddr;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let mut number = |default| arguments.next().map_or(Ok(default), |a| a.parse::<usize>());
    let (count, size, window) = (number(1024)?, number(1 << 20)?, number(1024)?);

    // A few different buffers are enough: only their CIDs must differ.
    let blocks: Vec<Block> = (0..count)
        .map(|n| {
            let mut data = vec![(n % 251) as u8; size];
            let stamp = (n as u64).to_le_bytes();
            let head = stamp.len().min(size);
            data[..head].copy_from_slice(&stamp[..head]);
            Block::raw(data)
        })
        .collect::<Result<_, _>>()?;
    let cids: Vec<Cid> = blocks.iter().map(|b| *b.cid()).collect();
    let store: HashMap<Cid, Bytes> = blocks.into_iter().map(Block::into_parts).collect();

    let (mut origin, address) = listening().await?;
    let server = tokio::spawn(async move {
        loop {
            if let SwarmEvent::Behaviour(Event::Load { id, cid, kind }) =
                origin.select_next_some().await
            {
                let answer = match (kind, store.get(&cid)) {
                    (LoadKind::Have, Some(data)) => Loaded::Size(data.len() as u64),
                    (_, data) => data.cloned().into(),
                };
                origin.behaviour_mut().loaded(id, answer);
            }
        }
    });

    let (mut device, _) = listening().await?;
    device.dial(address)?;
    while !matches!(
        device.select_next_some().await,
        SwarmEvent::ConnectionEstablished { .. }
    ) {}

    let start = Instant::now();
    let session = device
        .behaviour_mut()
        .open_session(SessionOptions::default())?;
    let mut wanted = cids.into_iter();
    device
        .behaviour_mut()
        .want(session, wanted.by_ref().take(window))?;
    let mut found = 0;
    while found < count {
        if let SwarmEvent::Behaviour(Event::Found { block, .. }) = device.select_next_some().await {
            found += 1;
            let exchange = device.behaviour_mut();
            exchange.stored(&[*block.cid()]);
            exchange.release(block.len());
            exchange.want(session, wanted.next())?;
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    let mib = (count * size) as f64 / 1_048_576.0;
    println!(
        "{count} blocks of {size} bytes: {seconds:.3} s, {:.0} MiB/s, {:.0} blocks/s",
        mib / seconds,
        count as f64 / seconds
    );
    for (name, value) in device.behaviour().counters().iter() {
        if value > 0 {
            println!("  {name} {value}");
        }
    }
    server.abort();
    Ok(())
}

async fn listening() -> Result<(Swarm<Behaviour>, Multiaddr), Box<dyn Error>> {
    let key = Keypair::generate_ed25519();
    let transport = libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(libp2p_noise::Config::new(&key)?)
        .multiplex(libp2p_yamux::Config::default())
        .boxed();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    let worker = Arc::new(|job: Box<dyn FnOnce() + Send>| drop(tokio::task::spawn_blocking(job)));
    let mut swarm = Swarm::new(
        transport,
        Behaviour::new(Config::default()).with_worker(worker),
        key.public().to_peer_id(),
        config,
    );
    swarm.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return Ok((swarm, address));
        }
    }
}
