//! Six crates in 60 lines behind their names: a folder becomes blocks (unixfs, block) on a disk (store) and is announced as a signed event (log); a device that knows
//! nothing but the CID of the event gets both over a private swarm (pnet, exchange), in which each block is checked.
#![allow(clippy::print_stdout)]

use futures::StreamExt as _;
use gemba_block::{Block, Cid, links};
use gemba_exchange::{Behaviour, Config, Event as Said};
use gemba_log::{Batch, Event, Log, MemorySigner, NewEvent};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use gemba_segment::RealDisk;
use gemba_store::Store;
use gemba_unixfs::fs::{ImportOptions, import};
use libp2p_swarm::{Swarm, SwarmEvent};
use std::{collections::HashSet, fs, sync::Arc};

type Failure = Box<dyn std::error::Error>;

fn node(key: &SwarmKey) -> Result<Swarm<Behaviour>, Failure> {
    let keypair = libp2p_identity::Keypair::generate_ed25519();
    let private = Network::Private(key.clone());
    let transport = gemba_pnet::transport(&keypair, &private, &TransportConfig::default())?;
    let (behaviour, id) = (Behaviour::new(Config::default()), keypair.public().into());
    let config = libp2p_swarm::Config::with_tokio_executor();
    Ok(Swarm::new(transport, behaviour, id, config))
}

/// What an announcement announces.
fn named_in(block: &Block) -> Result<Vec<Cid>, Failure> {
    let cid = |event: Event| Ok(String::from_utf8(event.payload.to_vec())?.parse()?);
    Batch::from_block(block)?.owned_events().map(cid).collect()
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("app"))?;
    fs::write(at("app/video.bin"), vec![7; 3_000_000])?;
    let store = Store::open(at("blocks"), gemba_store::Config::default())?;
    let mut sink = |blocks: Vec<Block>| Ok(store.put_many(&blocks).map(drop)?);
    let profile = gemba_unixfs::Profile::unixfs_v1_2025();
    let root = import(&at("app"), &profile, &ImportOptions::default(), &mut sink)?.cid;
    let (disk, signer) = (Arc::new(RealDisk), MemorySigner::from_seed(&[7; 32]));
    let config = gemba_log::Config::default();
    let (log, _) = Log::open(disk, &at("log"), config, Arc::new(signer))?;
    let release = NewEvent::new(1_700_000_000_000, root.to_string());
    let announced = log.append(&"app/releases".parse()?, &[release])?;

    let key = SwarmKey::generate()?;
    let mut origin = node(&key)?;
    origin.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
    let mut device = node(&key)?;
    let has = Store::open(at("device"), gemba_store::Config::default())?;
    let session = device.behaviour_mut().open_session(Default::default())?;
    device.behaviour_mut().want(session, announced.cid)?;
    let (mut wanted, mut found) = (HashSet::<_>::from_iter(announced.cid), 0);
    while found < wanted.len() {
        tokio::select! {
            event = origin.select_next_some() => match event {
                SwarmEvent::NewListenAddr { address, .. } => device.dial(address)?,
                SwarmEvent::Behaviour(Said::Load { id, cid, .. }) => {
                    let event = || log.block(&cid).ok()?.map(|batch| batch.data().clone());
                    let data = store.get(&cid)?.or_else(event);
                    origin.behaviour_mut().loaded(id, data);
                }
                _ => {}
            },
            event = device.select_next_some() => if let SwarmEvent::Behaviour(Said::Found { block, .. }) = event {
                found += 1;
                device.behaviour_mut().release(block.len());
                let below = named_in(&block).or_else(|_| Ok::<_, Failure>(links(&block)?))?;
                has.put_many(&[block])?;
                let new = below.into_iter().filter(|cid| wanted.insert(*cid));
                device.behaviour_mut().want(session, new)?;
            }
        }
    }
    println!("{root} and its announcement: {found} blocks");
    Ok(())
}
