//! Gossip and libp2p-gossipsub as swarms of one process, each over its own driver and the same PSK, Noise, Yamux and TCP on the loopback. Prints
//! JSON. `-- line`, `-- mesh` or `-- stalled` runs one part.
//!
//! - *line*: a – b – c, all subscribe; a publishes messages of 200 bytes, at most 512 ahead of what c has.
//! - *mesh*: 20 nodes, each connected to each; they publish in turns, 64 ahead. Copies and bytes are compared with flooding, where every node sends
//!   every message to all but its author and the one it came from.
//! - *stalled*: a node with a neighbour that reads and one that does not publishes 1 KiB 1,000 times a second. How long does a call take; and
//!   where only the neighbour that does not read subscribes, how much later than asked does the answer come?
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncWriteExt, StreamExt};
use gemba_gossip::wire::FrameBuilder;
use gemba_gossip::{Behaviour, BehaviourEvent, Config, Mode, Topic};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_gossipsub as stock;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

const TOPIC: &str = "bench";
const LONELY: &str = "lonely";
const BYTES: usize = 200;

/// What both engines have.
trait Engine: NetworkBehaviour<ToSwarm: Send> + Send {
    const NAME: &'static str;
    fn make(key: &Keypair) -> Self;
    /// False if there is no room now.
    fn say(&mut self, data: Vec<u8>) -> bool;
    fn is_message(event: &Self::ToSwarm) -> bool;
    /// Where the engine counts it.
    fn traffic(&self) -> Option<Traffic>;
}

impl Engine for Behaviour {
    const NAME: &'static str = "gossip";

    fn make(key: &Keypair) -> Self {
        let mut gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
        gossip.listen(&Topic::new(TOPIC).unwrap()).unwrap();
        gossip
    }

    fn say(&mut self, data: Vec<u8>) -> bool {
        let topic = Topic::new(TOPIC).unwrap();
        self.publish(&topic, data, Mode::Try)
            .map(|p| p.detach())
            .is_ok()
    }

    fn is_message(event: &BehaviourEvent) -> bool {
        matches!(event, BehaviourEvent::Message(_))
    }

    fn traffic(&self) -> Option<Traffic> {
        Some(Traffic {
            came: self.seen_counters().sightings,
            sent: self.counters().bytes_out,
            mesh: self.mesh(&Topic::new(TOPIC).unwrap()).len(),
        })
    }
}

impl Engine for stock::Behaviour {
    const NAME: &'static str = "libp2p-gossipsub";

    fn make(key: &Keypair) -> Self {
        let config = stock::ConfigBuilder::default()
            .validation_mode(stock::ValidationMode::Strict)
            .build()
            .unwrap();
        let signed = stock::MessageAuthenticity::Signed(key.clone());
        let mut behaviour = Self::new(signed, config).unwrap();
        behaviour.subscribe(&stock::IdentTopic::new(TOPIC)).unwrap();
        behaviour
    }

    fn say(&mut self, data: Vec<u8>) -> bool {
        self.publish(stock::IdentTopic::new(TOPIC), data).is_ok()
    }

    fn is_message(event: &stock::Event) -> bool {
        matches!(event, stock::Event::Message { .. })
    }

    fn traffic(&self) -> Option<Traffic> {
        None
    }
}

/// Messages that came in, copies among them, bytes that were written, and neighbours in the mesh.
#[derive(Clone, Copy, Default)]
struct Traffic {
    came: u64,
    sent: u64,
    mesh: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let wanted = |part: &str| {
        let parts = ["line", "mesh", "stalled"];
        !parts.iter().any(|p| args.iter().any(|a| a == p)) || args.iter().any(|a| a == part)
    };
    let mut out = serde_json::Map::new();
    if wanted("line") {
        let rows = [
            compare(|| swarms::<Behaviour>(3, &[(0, 1), (1, 2)], Load::line())),
            compare(|| swarms::<stock::Behaviour>(3, &[(0, 1), (1, 2)], Load::line())),
        ];
        out.insert("line".into(), ratio(rows));
    }
    if wanted("mesh") {
        let all: Vec<(usize, usize)> = (0..20).flat_map(|a| (0..a).map(move |b| (a, b))).collect();
        let rows = [
            compare(|| swarms::<Behaviour>(20, &all, Load::mesh())),
            compare(|| swarms::<stock::Behaviour>(20, &all, Load::mesh())),
        ];
        out.insert("mesh".into(), ratio(rows));
    }
    if wanted("stalled") {
        let rows = [
            with_runtime(stalled::<Behaviour>()),
            with_runtime(stalled::<stock::Behaviour>()),
        ];
        out.insert("stalled".into(), rows.to_vec().into());
        out.insert("late".into(), with_runtime(late()));
    }
    println!("{}", serde_json::to_string_pretty(&out).unwrap());
}

fn with_runtime<T>(what: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(what)
}

/// The best of three: what else runs on the machine only takes away.
fn compare<F: Future<Output = Value>>(run: impl Fn() -> F) -> Value {
    let rate = |row: &Value| row["messages_per_second"].as_f64().unwrap_or_default();
    (0..3)
        .map(|_| with_runtime(run()))
        .max_by(|a, b| rate(a).total_cmp(&rate(b)))
        .unwrap()
}

fn ratio(rows: [Value; 2]) -> Value {
    let rate = |row: &Value| row["messages_per_second"].as_f64().unwrap();
    json!({
        "times_libp2p_gossipsub": round(rate(&rows[0]) / rate(&rows[1])),
        "rows": rows,
    })
}

fn round(x: f64) -> f64 {
    (x * 100.0).round() / 100.0
}

/// Processor time of this process.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// What is published: how many, by the first so many nodes in turns, so many ahead of the slowest on average.
#[derive(Clone, Copy)]
struct Load {
    messages: usize,
    publishers: usize,
    ahead: usize,
}

impl Load {
    fn line() -> Self {
        Self {
            messages: 20_000,
            publishers: 1,
            ahead: 512,
        }
    }

    fn mesh() -> Self {
        Self {
            messages: 2000,
            publishers: 20,
            ahead: 64,
        }
    }
}

/// What a node is asked.
enum Ask {
    Say(Vec<u8>),
    Traffic(oneshot::Sender<Option<Traffic>>),
}

async fn swarms<E: Engine>(nodes: usize, lines: &[(usize, usize)], load: Load) -> Value {
    let mut swarms = Vec::new();
    for _ in 0..nodes {
        let key = Keypair::generate_ed25519();
        let mut swarm = swarm(&key, E::make(&key));
        let address = listen(&mut swarm).await;
        swarms.push((swarm, address));
    }
    let addresses: Vec<Multiaddr> = swarms.iter().map(|(_, a)| a.clone()).collect();
    for (from, to) in lines {
        swarms[*from].0.dial(addresses[*to].clone()).unwrap();
    }
    let delivered: Vec<Arc<AtomicUsize>> = (0..nodes).map(|_| Arc::default()).collect();
    let mut asks = Vec::new();
    for ((swarm, _), delivered) in swarms.into_iter().zip(&delivered) {
        let (ask, asked) = mpsc::channel(1024);
        tokio::spawn(node(swarm, asked, delivered.clone()));
        asks.push(ask);
    }
    // Subscriptions are told and meshes grafted.
    tokio::time::sleep(Duration::from_secs(3)).await;
    let got = || -> usize { delivered.iter().map(|d| d.load(Ordering::Relaxed)).sum() };
    let whole = load.messages * (nodes - 1);
    let (before, begun) = (traffic(&asks).await, Instant::now());
    let (used, mut progress) = (cpu(), (0, Instant::now()));
    let mut said = 0;
    while got() < whole {
        // The slowest counts on a line, which is the last one.
        let slowest = match load.publishers {
            1 => delivered[nodes - 1].load(Ordering::Relaxed),
            _ => got() / (nodes - 1),
        };
        if said < load.messages && said < slowest + load.ahead {
            let mut data = vec![7; BYTES];
            data[..8].copy_from_slice(&said.to_be_bytes());
            let _ = asks[said % load.publishers].send(Ask::Say(data)).await;
            said += 1;
            continue;
        }
        if got() > progress.0 {
            progress = (got(), Instant::now());
        }
        if progress.1.elapsed() > Duration::from_secs(3) {
            // The rest was lost.
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let time = progress
        .1
        .max(begun)
        .duration_since(begun)
        .max(Duration::from_millis(1));
    let time = if got() < whole { time } else { begun.elapsed() };
    let (used, arrived) = (cpu() - used, got());
    let mut row = json!({
        "engine": E::NAME,
        "nodes": nodes,
        "messages": load.messages,
        "delivered_percent": round(arrived as f64 * 100.0 / whole as f64),
        "messages_per_second": (arrived as f64 / (nodes - 1) as f64 / time.as_secs_f64()).round(),
        "cpu_us_per_delivery": round(used.as_secs_f64() * 1e6 / arrived as f64),
    });
    // Gossip of the last second belongs to the bytes.
    tokio::time::sleep(Duration::from_secs(1)).await;
    if let (Some(after), Some(before)) = (traffic(&asks).await, before) {
        let copies = (after.came - before.came) as f64 / whole as f64;
        let degree = after.mesh as f64 / nodes as f64;
        // The author to all others, each of those to all but the author and the one it came from.
        let others = nodes - 1;
        let flooded = match load.publishers {
            1 => others,
            _ => others + others * (others - 1),
        };
        let bytes = (after.sent - before.sent) as f64 / load.messages as f64;
        row["copies_per_receiver"] = round(copies).into();
        row["mesh_degree"] = round(degree).into();
        row["copies_per_mesh_degree"] = round(copies / degree).into();
        row["bytes_sent_per_message"] = bytes.round().into();
        row["percent_of_flooding"] = round(bytes * 100.0 / (flooded * wire_len()) as f64).into();
    }
    row
}

/// Bytes of a message of this bench in a frame of its own.
fn wire_len() -> usize {
    let author = Keypair::generate_ed25519().public().to_peer_id().to_bytes();
    // Five headers of fields, that of 200 bytes is one longer; the number, the signature; header of the message, length of the frame.
    author.len() + BYTES + 8 + TOPIC.len() + 64 + 11 + 3 + 2
}

async fn traffic(asks: &[mpsc::Sender<Ask>]) -> Option<Traffic> {
    let mut sum = Traffic::default();
    for ask in asks {
        let (tell, told) = oneshot::channel();
        let _ = ask.send(Ask::Traffic(tell)).await;
        let of = told.await.unwrap()?;
        sum.came += of.came;
        sum.sent += of.sent;
        sum.mesh += of.mesh;
    }
    Some(sum)
}

async fn node<E: Engine>(
    mut swarm: Swarm<E>,
    mut asked: mpsc::Receiver<Ask>,
    delivered: Arc<AtomicUsize>,
) {
    let mut unsaid: Option<Vec<u8>> = None;
    loop {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::Behaviour(event) = event && E::is_message(&event) {
                    delivered.fetch_add(1, Ordering::Relaxed);
                }
            }
            () = tokio::time::sleep(Duration::from_millis(1)), if unsaid.is_some() => {}
            ask = asked.recv(), if unsaid.is_none() => match ask {
                Some(Ask::Say(data)) => unsaid = Some(data),
                Some(Ask::Traffic(tell)) => {
                    let _ = tell.send(swarm.behaviour().traffic());
                }
                None => return,
            },
        }
        if let Some(data) = unsaid.take()
            && !swarm.behaviour_mut().say(data.clone())
        {
            unsaid = Some(data);
        }
    }
}

/// How long calls of publish take.
async fn stalled<E: Engine>() -> Value {
    let key = Keypair::generate_ed25519();
    let mut swarm = swarm(&key, E::make(&key));
    let address = listen(&mut swarm).await;
    let reader = Keypair::generate_ed25519();
    let mut reader = self::swarm(&reader, E::make(&reader));
    reader.dial(address.clone()).unwrap();
    tokio::spawn(async move {
        loop {
            reader.select_next_some().await;
        }
    });
    let deaf = deaf(address, TOPIC);
    let (mut calls, mut refused) = (Vec::new(), 0);
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let (begun, mut number) = (Instant::now(), 0_u64);
    while begun.elapsed() < Duration::from_secs(10) {
        tokio::select! {
            _ = swarm.select_next_some() => {}
            _ = ticks.tick() => {
                // Everybody is there and known.
                if begun.elapsed() < Duration::from_secs(3) {
                    continue;
                }
                number += 1;
                let mut data = vec![7; 1024];
                data[..8].copy_from_slice(&number.to_be_bytes());
                let call = Instant::now();
                let said = swarm.behaviour_mut().say(data);
                calls.push(call.elapsed());
                refused += usize::from(!said);
            }
        }
    }
    deaf.abort();
    json!({
        "engine": E::NAME,
        "calls": calls.len(),
        "refused": refused,
        "call_us": spread(calls),
    })
}

/// How much later than asked a publisher that waits has its answer, where nobody takes anything any more.
async fn late() -> Value {
    let key = Keypair::generate_ed25519();
    let mut swarm = swarm(&key, Behaviour::make(&key));
    let address = listen(&mut swarm).await;
    let deaf = deaf(address, LONELY);
    let topic = Topic::new(LONELY).unwrap();
    let wait = Duration::from_millis(20);
    let (mut over, mut taken) = (Vec::new(), 0);
    let begun = Instant::now();
    // Long before the stall is found, which frees the lane.
    while begun.elapsed() < Duration::from_secs(9) {
        if begun.elapsed() < Duration::from_secs(2) {
            let _ = tokio::time::timeout(wait, swarm.next()).await;
            continue;
        }
        let asked = Instant::now();
        let Ok(publishing) =
            swarm
                .behaviour_mut()
                .publish(&topic, vec![7; 65_536], Mode::Wait(wait))
        else {
            let _ = tokio::time::timeout(Duration::from_millis(1), swarm.next()).await;
            continue;
        };
        tokio::pin!(publishing);
        let answer = loop {
            tokio::select! {
                _ = swarm.select_next_some() => {}
                answer = &mut publishing => break answer,
            }
        };
        match answer {
            Ok(_) => taken += 1,
            Err(_) => over.push(asked.elapsed().saturating_sub(wait)),
        }
    }
    deaf.abort();
    json!({ "asked_ms": wait.as_millis(), "taken": taken, "not_taken": over.len(), "later_than_asked_us": spread(over) })
}

fn spread(mut all: Vec<Duration>) -> Value {
    all.sort();
    let at = |part: f64| match all.len() {
        0 => 0.0,
        len => all[((len - 1) as f64 * part) as usize].as_secs_f64() * 1e6,
    };
    json!({ "median": round(at(0.5)), "p99": round(at(0.99)), "longest": round(at(1.0)) })
}

/// A neighbour that subscribes and reads nothing.
fn deaf(address: Multiaddr, topic: &'static str) -> tokio::task::JoinHandle<()> {
    const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");
    tokio::spawn(async move {
        let behaviour = libp2p_stream::Behaviour::new();
        let mut control = behaviour.new_control();
        let mut incoming = control.accept(PROTOCOL).unwrap();
        let mut swarm = swarm(&Keypair::generate_ed25519(), behaviour);
        swarm.dial(address).unwrap();
        let peer: PeerId = loop {
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } =
                swarm.select_next_some().await
            {
                break peer_id;
            }
        };
        let talk = async move {
            let mut stream = control.open_stream(peer, PROTOCOL).await.unwrap();
            let mut hello = FrameBuilder::new();
            hello.subscription(&Topic::new(topic).unwrap(), true, 0);
            let hello = hello.finish(Duration::MAX).to_bytes();
            stream.write_all(&hello).await.unwrap();
            stream.flush().await.unwrap();
            let mut held = Vec::new();
            while let Some((_, unread)) = incoming.next().await {
                held.push(unread);
            }
            drop((stream, held));
        };
        tokio::pin!(talk);
        loop {
            tokio::select! {
                _ = swarm.select_next_some() => {}
                () = &mut talk => return,
            }
        }
    })
}

fn swarm<B: NetworkBehaviour>(key: &Keypair, behaviour: B) -> Swarm<B> {
    let network = Network::Private(SwarmKey::from_bytes([1; 32]));
    let transport = gemba_pnet::transport(key, &network, &TransportConfig::default()).unwrap();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(600));
    Swarm::new(transport, behaviour, key.public().to_peer_id(), config)
}

async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> Multiaddr {
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return address.with_p2p(*swarm.local_peer_id()).unwrap();
        }
    }
}
