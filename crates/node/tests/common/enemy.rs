//! A member of the swarm that does not behave: the right key, real connections, and Bitswap as an enemy speaks it.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use gemba_block::Block;
use gemba_exchange::wire::{self, Entry, Message, Presence, Version, WantKind};
use gemba_pnet::{KeyFile, TransportConfig};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Behaviour, Control};
use libp2p_swarm::{Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::mpsc;

const BITSWAP: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
/// How often a flooder sends its messages, and a leaver comes back.
const PAUSE: Duration = Duration::from_millis(50);
/// Orders to the swarm that may wait.
const ORDERS: usize = 64;

/// What is wrong with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Takes every message and answers none.
    Silent,
    /// Says that it has everything, and sends nothing.
    Liar,
    /// Says that it has everything, and sends other bytes.
    WrongBytes,
    /// Goes away whenever it is asked for something, and comes back.
    Leaver,
    /// Sends wants for blocks that nobody has, blocks that nobody asked for, and bytes that are no message, all the time.
    Flooder,
}

/// An enemy on a thread of its own, until it is dropped.
pub struct Enemy {
    over: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Enemy {
    /// Connects to these nodes with the swarm key of a repository.
    pub fn start(repo: &Path, nodes: &[String], fault: Fault) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let asked = Arc::new(AtomicU64::new(0));
        let (ended, heard) = (Arc::clone(&over), Arc::clone(&asked));
        let nodes: Vec<Multiaddr> = nodes.iter().map(|node| node.parse().unwrap()).collect();
        let key = KeyFile::in_repo(repo);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .unwrap();
            runtime.block_on(run(&key, &nodes, fault, ended, heard));
        });
        Self {
            over,
            asked,
            thread: Some(thread),
        }
    }

    /// Messages that were sent to it.
    pub fn asked(&self) -> u64 {
        self.asked.load(Ordering::Relaxed)
    }
}

impl Drop for Enemy {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

/// What the enemy's tasks ask of its swarm.
enum Order {
    Dial(Multiaddr),
    Leave(PeerId),
}

async fn run(
    key: &KeyFile,
    nodes: &[Multiaddr],
    fault: Fault,
    over: Arc<AtomicBool>,
    asked: Arc<AtomicU64>,
) {
    let (swarm, mut control) = swarm(key);
    let mut incoming = control.accept(BITSWAP).unwrap();
    let (order, orders) = mpsc::channel(ORDERS);
    tokio::spawn(drive(swarm, orders, order.clone(), fault, control.clone()));
    for node in nodes {
        order.send(Order::Dial(node.clone())).await.ok();
    }
    let ends = async {
        while !over.load(Ordering::Relaxed) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let answers = async {
        while let Some((peer, stream)) = incoming.next().await {
            let (control, order, asked) = (control.clone(), order.clone(), Arc::clone(&asked));
            tokio::spawn(hear(peer, stream, fault, control, order, asked));
        }
    };
    tokio::select! {
        () = ends => {}
        () = answers => {}
    }
}

fn swarm(key: &KeyFile) -> (Swarm<Behaviour>, Control) {
    let network = key.policy_without_environment().decide().unwrap();
    let identity = Keypair::generate_ed25519();
    let transport =
        gemba_pnet::transport(&identity, &network, &TransportConfig::default()).unwrap();
    let behaviour = Behaviour::new();
    let control = behaviour.new_control();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(600));
    let id = identity.public().to_peer_id();
    (Swarm::new(transport, behaviour, id, config), control)
}

/// Keeps the connections, whatever the others do about them.
async fn drive(
    mut swarm: Swarm<Behaviour>,
    mut orders: mpsc::Receiver<Order>,
    again: mpsc::Sender<Order>,
    fault: Fault,
    control: Control,
) {
    loop {
        tokio::select! {
            event = swarm.select_next_some() => match event {
                SwarmEvent::ConnectionEstablished { peer_id, .. } if fault == Fault::Flooder => {
                    tokio::spawn(flood(peer_id, control.clone()));
                }
                SwarmEvent::ConnectionClosed { endpoint, .. } => {
                    let (again, address) = (again.clone(), endpoint.get_remote_address().clone());
                    tokio::spawn(async move {
                        tokio::time::sleep(PAUSE).await;
                        again.send(Order::Dial(address)).await.ok();
                    });
                }
                _ => {}
            },
            order = orders.recv() => match order {
                Some(Order::Dial(address)) => drop(swarm.dial(address)),
                Some(Order::Leave(peer)) => drop(swarm.disconnect_peer_id(peer)),
                None => return,
            },
        }
    }
}

/// Reads what one stream of a node brings, and does what this enemy does about it.
async fn hear(
    peer: PeerId,
    mut stream: Stream,
    fault: Fault,
    mut control: Control,
    order: mpsc::Sender<Order>,
    asked: Arc<AtomicU64>,
) {
    while let Some(message) = read(&mut stream).await {
        asked.fetch_add(1, Ordering::Relaxed);
        let wanted = message.entries.iter().filter(|entry| !entry.cancel);
        let answer = match fault {
            Fault::Silent | Fault::Flooder => continue,
            Fault::Leaver if wanted.clone().next().is_some() => {
                order.send(Order::Leave(peer)).await.ok();
                return;
            }
            Fault::Leaver => continue,
            Fault::Liar => has(wanted.map(|entry| entry.cid)),
            Fault::WrongBytes => {
                let (whether, blocks): (Vec<&Entry>, Vec<&Entry>) =
                    wanted.partition(|entry| entry.kind == WantKind::Have);
                Message {
                    blocks: blocks.iter().map(|_| wrong(&asked)).collect(),
                    ..has(whether.iter().map(|entry| entry.cid))
                }
            }
        };
        send(peer, &mut control, &answer).await;
    }
}

fn has(cids: impl Iterator<Item = cid::Cid>) -> Message {
    Message {
        presences: cids.map(|cid| (cid, Presence::Have)).collect(),
        ..Message::default()
    }
}

/// A block that nobody asked for, another one each time.
fn wrong(count: &AtomicU64) -> Block {
    let seed = count.fetch_add(1, Ordering::Relaxed);
    Block::raw(gemba_testkit::Rng::new(seed).bytes(2000)).unwrap()
}

/// Wants, blocks and garbage, as fast as the pause lets it.
async fn flood(peer: PeerId, mut control: Control) {
    let count = AtomicU64::new(u64::from(peer.to_bytes()[10]) << 32);
    loop {
        let entries = (0..500).map(|_| Entry {
            cid: *wrong(&count).cid(),
            priority: i32::MAX,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: true,
        });
        let message = Message {
            entries: entries.collect(),
            blocks: (0..20).map(|_| wrong(&count)).collect(),
            ..Message::default()
        };
        if !send(peer, &mut control, &message).await {
            return;
        }
        if let Ok(mut stream) = control.open_stream(peer, BITSWAP).await {
            let garbage = gemba_testkit::Rng::new(count.load(Ordering::Relaxed)).bytes(1000);
            stream.write_all(&garbage).await.ok();
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Sends one message on a stream of its own; whether that went.
pub async fn send(peer: PeerId, control: &mut Control, message: &Message) -> bool {
    let Some(frame) = wire::encode(message, Version::V1_2) else {
        return true;
    };
    let sent = async {
        let mut stream = control.open_stream(peer, BITSWAP).await.ok()?;
        stream.write_all(&frame.to_vec()).await.ok()?;
        stream.close().await.ok()
    };
    tokio::time::timeout(Duration::from_secs(5), sent)
        .await
        .is_ok_and(|sent| sent.is_some())
}

/// The next message of a stream; nothing at its end.
pub async fn read(stream: &mut Stream) -> Option<Message> {
    let mut prefix = Vec::new();
    let len = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.ok()?;
        prefix.push(byte[0]);
        if let Some((len, _)) = wire::read_length(&prefix).ok()? {
            break len;
        }
    };
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.ok()?;
    wire::decode(body.into()).ok()
}
