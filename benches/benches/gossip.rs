//! What messages of others cost their receiver, over PSK, Noise and Yamux: gossip, libp2p-gossipsub, and the floor, which is a program that
//! only reads and digests the same bytes. Prints JSON. `-- copies`, `-- forged` or `-- memory` runs one part.
//!
//! The sender is a process of its own. Counted is the processor time of the receiver's process.
//!
//! - *copies*: one peer sends 2,000 signed messages 20 times each on one stream, in writes as large as they get, which is the hardest case:
//!   the transport costs least and the engine counts most. The first round is what a unique message costs, the other 19 what a copy does.
//!   The receivers take turns, and a receiver's rounds are compared with the floor's of the same turn; the middle one counts.
//! - *forged*: messages with a bad signature, as many as get through; thrown out, the forger comes back after a second, or at once, which is a
//!   storm of handshakes. Two seconds for the receiver to find out, then five that count.
//! - *memory*: 1,000 messages 1,000 times each, and a cache for 2^17 messages that is filled.
#![allow(missing_docs, clippy::print_stdout, clippy::unwrap_used)]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::wire::{FrameBuilder, SIGN_PREFIX, read_length};
use gemba_gossip::{Behaviour, Class, Config, Seen, SeenConfig, Sight, Source, State, Topic};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_gossipsub as stock;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use serde_json::{Value, json};

const PROTOCOL: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");
const TOPIC: &str = "bench";
const TURNS: usize = 7;
const LONGEST: Duration = Duration::from_secs(150);

/// What the sender sends: messages of a size, each so many times.
#[derive(Clone, Copy)]
struct Flood {
    bytes: usize,
    messages: usize,
    rounds: usize,
}

const RECEIVERS: [Receiver; 3] = [Receiver::Floor, Receiver::Gossip, Receiver::Stock];

#[derive(Clone, Copy, PartialEq)]
enum Receiver {
    Floor,
    Gossip,
    Stock,
}

impl Receiver {
    fn name(self) -> &'static str {
        match self {
            Self::Floor => "floor",
            Self::Gossip => "gossip",
            Self::Stock => "libp2p-gossipsub",
        }
    }
}

fn main() {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let args: Vec<String> = std::env::args().collect();
    if let Some(at) = args.iter().position(|a| a == "flood") {
        let number = |i: usize| args[at + i].parse().unwrap();
        let flood = Flood {
            bytes: number(2),
            messages: number(3),
            rounds: number(4),
        };
        return runtime.block_on(send(&args[at + 1], flood));
    }
    if let Some(at) = args.iter().position(|a| a == "forge") {
        let pause = Duration::from_millis(args[at + 2].parse().unwrap());
        return runtime.block_on(forge(&args[at + 1], pause));
    }
    let wanted = |part: &str| {
        let parts = ["copies", "forged", "memory"];
        !parts.iter().any(|p| args.iter().any(|a| a == p)) || args.iter().any(|a| a == part)
    };
    let mut out = serde_json::Map::new();
    if wanted("copies") {
        out.insert("copies".into(), copies(&runtime));
    }
    if wanted("forged") {
        out.insert("forged".into(), forged(&runtime));
    }
    if wanted("memory") {
        out.insert("memory".into(), memory(&runtime));
    }
    println!("{}", serde_json::to_string_pretty(&out).unwrap());
}

fn copies(runtime: &tokio::runtime::Runtime) -> Value {
    let mut rows = Vec::new();
    for bytes in [100, 1024] {
        let flood = Flood {
            bytes,
            messages: 2000,
            rounds: 20,
        };
        let mut turns: Vec<[Figures; 3]> = Vec::new();
        for _ in 0..TURNS {
            turns.push(RECEIVERS.map(|receiver| run(runtime, receive(receiver, flood))));
        }
        for (n, receiver) in RECEIVERS.into_iter().enumerate() {
            let of = |figure: &dyn Fn(&[Figures; 3]) -> f64| -> (f64, f64, f64) {
                let mut all: Vec<f64> = turns.iter().map(figure).collect();
                all.sort_by(f64::total_cmp);
                (all[0], all[all.len() / 2], all[all.len() - 1])
            };
            let times = of(&|turn| turn[n].copy_us / turn[0].copy_us);
            let copy = of(&|turn| turn[n].copy_us);
            let unique = of(&|turn| turn[n].unique_us);
            rows.push(json!({
                "receiver": receiver.name(),
                "bytes": bytes,
                "us_per_copy": round(copy.1),
                "us_per_copy_best": round(copy.0),
                "times_floor": round(times.1),
                "times_floor_best_worst": [round(times.0), round(times.2)],
                "us_per_unique_message": round(unique.1),
                "us_per_unique_message_best": round(unique.0),
                "verified": turns[0][n].verified,
                "unique_messages": flood.messages + 1,
            }));
        }
    }
    rows.into()
}

fn forged(runtime: &tokio::runtime::Runtime) -> Value {
    let sieges = [
        (Receiver::Gossip, 1000),
        (Receiver::Gossip, 0),
        (Receiver::Stock, 1000),
    ];
    let rows = sieges.map(|(receiver, pause)| {
        let (early, late, checked) = run(runtime, besieged(receiver, pause));
        json!({
            "receiver": receiver.name(),
            "thrown_out_the_forger_comes_back_after_ms": pause,
            "percent_of_a_core_first_two_seconds": round(early * 100.0),
            "percent_of_a_core_after": round(late * 100.0),
            "signatures_checked": checked,
        })
    });
    rows.to_vec().into()
}

fn memory(runtime: &tokio::runtime::Runtime) -> Value {
    let mut rows = Vec::new();
    for (receiver, bytes) in [
        (Receiver::Gossip, 100),
        (Receiver::Gossip, 1024),
        (Receiver::Stock, 100),
    ] {
        let flood = Flood {
            bytes,
            messages: 1000,
            rounds: 1001,
        };
        let figures = run(runtime, receive(receiver, flood));
        rows.push(json!({
            "receiver": receiver.name(),
            "bytes": bytes,
            "copies": flood.messages * (flood.rounds - 1),
            "resident_mib_more": round(figures.grown as f64 / f64::from(1 << 20)),
            "us_per_copy": round(figures.copy_us),
        }));
    }
    let (entries, counted, resident) = cache();
    rows.push(json!({
        "cache_entries": entries,
        "counted_mib": round(counted as f64 / f64::from(1 << 20)),
        "resident_mib_more": round(resident as f64 / f64::from(1 << 20)),
    }));
    rows.into()
}

/// A cache of 2^17 messages, each with its id: entries, bytes by its own count, and resident ones.
fn cache() -> (usize, usize, i64) {
    let before = resident();
    let config = SeenConfig {
        entries: 1 << 17,
        ..Config::default().seen()
    };
    let mut seen = Seen::new(config, [1; 32]);
    for n in 0..1_u64 << 17 {
        let digest = seen.digester().digest(&n.to_le_bytes());
        let Sight::New(mark) = seen.sight(digest, Source::LOCAL, Duration::ZERO) else {
            panic!("new");
        };
        let id = n.to_be_bytes();
        seen.settle(
            mark,
            State::Accepted,
            Some(&id),
            Class::DEFAULT,
            Duration::ZERO,
        );
    }
    let grown = resident() - before;
    (seen.len(), seen.memory(), grown)
}

fn run<T>(runtime: &tokio::runtime::Runtime, what: impl Future<Output = T>) -> T {
    runtime
        .block_on(async { tokio::time::timeout(LONGEST, what).await })
        .expect("all messages arrive")
}

fn round(us: f64) -> f64 {
    (us * 100.0).round() / 100.0
}

struct Figures {
    copy_us: f64,
    unique_us: f64,
    /// Bytes that became resident after the first round.
    grown: i64,
    /// Where the engine counts it.
    verified: Option<u64>,
}

/// Processor time of this process, all its threads.
fn cpu() -> Duration {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let nanos = tasks.filter_map(|task| {
        let text = std::fs::read_to_string(task.ok()?.path().join("schedstat")).ok()?;
        text.split(' ').next()?.parse::<u64>().ok()
    });
    Duration::from_nanos(nanos.sum())
}

/// Resident bytes of this process.
fn resident() -> i64 {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: i64 = text.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}

fn swarm<B: NetworkBehaviour>(key: &Keypair, behaviour: B) -> Swarm<B> {
    let network = Network::Private(SwarmKey::from_bytes([1; 32]));
    let transport = gemba_pnet::transport(key, &network, &TransportConfig::default()).unwrap();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(600));
    Swarm::new(transport, behaviour, key.public().to_peer_id(), config)
}

fn gossip(key: &Keypair) -> Behaviour {
    let mut gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
    gossip.listen(&Topic::new(TOPIC).unwrap()).unwrap();
    gossip
}

fn gossipsub(key: &Keypair) -> stock::Behaviour {
    let config = stock::ConfigBuilder::default()
        .validation_mode(stock::ValidationMode::Strict)
        .build()
        .unwrap();
    let signed = stock::MessageAuthenticity::Signed(key.clone());
    let mut behaviour: stock::Behaviour = stock::Behaviour::new(signed, config).unwrap();
    behaviour.subscribe(&stock::IdentTopic::new(TOPIC)).unwrap();
    behaviour
}

/// The sender's process.
struct Sender {
    child: Child,
    stdin: ChildStdin,
}

impl Sender {
    fn start(args: &[String]) -> Self {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::inherit())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin }
    }

    fn flood(address: &str, flood: Flood) -> Self {
        let numbers = [flood.bytes, flood.messages, flood.rounds].map(|n| n.to_string());
        Self::start(&[&["flood".into(), address.into()][..], &numbers].concat())
    }

    fn go_on(&mut self) {
        writeln!(self.stdin).unwrap();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Two milestones: the first round has come, and the message behind all of them.
async fn receive(receiver: Receiver, flood: Flood) -> Figures {
    let key = Keypair::generate_ed25519();
    match receiver {
        Receiver::Floor => read_and_digest(&key, flood).await,
        Receiver::Gossip => {
            let mut swarm = swarm(&key, gossip(&key));
            let address = listen(&mut swarm).await;
            let mut sender = Sender::flood(&address, flood);
            let (mut watch, mut got) = (Watch::start(), 0);
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => watch = Watch::start(),
                    SwarmEvent::Behaviour(gemba_gossip::BehaviourEvent::Message(_)) => {
                        got += 1;
                        if got == flood.messages {
                            watch.lap(&mut sender);
                        }
                        if got == flood.messages + 1 {
                            let verified = swarm.behaviour().counters().verified;
                            return watch.end(flood, Some(verified));
                        }
                    }
                    _ => {}
                }
            }
        }
        Receiver::Stock => {
            let mut swarm = swarm(&key, gossipsub(&key));
            let address = listen(&mut swarm).await;
            let mut sender = Sender::flood(&address, flood);
            let (mut watch, mut got) = (Watch::start(), 0);
            loop {
                match swarm.select_next_some().await {
                    SwarmEvent::ConnectionEstablished { .. } => watch = Watch::start(),
                    SwarmEvent::Behaviour(stock::Event::Message { .. }) => {
                        got += 1;
                        if got == flood.messages {
                            watch.lap(&mut sender);
                        }
                        if got == flood.messages + 1 {
                            return watch.end(flood, None);
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}

async fn read_and_digest(key: &Keypair, flood: Flood) -> Figures {
    let behaviour = libp2p_stream::Behaviour::new();
    let mut incoming = behaviour.new_control().accept(PROTOCOL).unwrap();
    let digester = Seen::new(Config::default().seen(), [1; 32]).digester();
    let mut swarm = swarm(key, behaviour);
    let address = listen(&mut swarm).await;
    let mut sender = Sender::flood(&address, flood);
    let mut watch = Watch::start();
    let mut stream = loop {
        tokio::select! {
            event = swarm.select_next_some() => {
                if let SwarmEvent::ConnectionEstablished { .. } = event {
                    watch = Watch::start();
                }
            }
            Some((_, stream)) = incoming.next() => break stream,
        }
    };
    let (mut buffer, mut have, mut frames) = (vec![0; 256 << 10], 0, 0);
    loop {
        let n = tokio::select! {
            _ = swarm.select_next_some() => continue,
            n = stream.read(&mut buffer[have..]) => n.unwrap(),
        };
        assert!(n > 0, "the sender is there");
        have += n;
        let mut at = 0;
        while let Some((len, start)) = read_length(&buffer[at..have]).unwrap()
            && at + start + len <= have
        {
            std::hint::black_box(digester.digest(&buffer[at + start..at + start + len]));
            at += start + len;
            frames += 1;
        }
        buffer.copy_within(at..have, 0);
        have -= at;
        // The hello is a frame too.
        if frames == 1 + flood.messages && watch.first.is_none() {
            watch.lap(&mut sender);
        }
        if frames == 2 + flood.messages * flood.rounds {
            return watch.end(flood, None);
        }
    }
}

struct Watch {
    begun: Duration,
    /// Processor time of the first round, of all at its end, and what was resident then.
    first: Option<(Duration, Duration, i64)>,
}

impl Watch {
    fn start() -> Self {
        Self {
            begun: cpu(),
            first: None,
        }
    }

    fn lap(&mut self, sender: &mut Sender) {
        let unique = cpu() - self.begun;
        let resident = resident();
        sender.go_on();
        self.first = Some((unique, cpu(), resident));
    }

    fn end(&self, flood: Flood, verified: Option<u64>) -> Figures {
        let (unique, begun, before) = self.first.unwrap();
        let copies = (flood.messages * (flood.rounds - 1)) as f64;
        Figures {
            copy_us: (cpu() - begun).as_secs_f64() * 1e6 / copies,
            unique_us: unique.as_secs_f64() * 1e6 / flood.messages as f64,
            grown: resident() - before,
            verified,
        }
    }
}

/// Shares of a core in the first two seconds of a flood of bad signatures and in the five behind them, and signatures checked.
async fn besieged(receiver: Receiver, pause: u64) -> (f64, f64, Option<u64>) {
    let key = Keypair::generate_ed25519();
    if receiver == Receiver::Stock {
        let mut swarm = swarm(&key, gossipsub(&key));
        let (early, late) = watch_siege(&mut swarm, pause).await;
        return (early, late, None);
    }
    let mut swarm = swarm(&key, gossip(&key));
    let (early, late) = watch_siege(&mut swarm, pause).await;
    (early, late, Some(swarm.behaviour().counters().verified))
}

async fn watch_siege<B: NetworkBehaviour>(swarm: &mut Swarm<B>, pause: u64) -> (f64, f64) {
    let address = listen(swarm).await;
    let _sender = Sender::start(&["forge".into(), address, pause.to_string()]);
    while !matches!(
        swarm.select_next_some().await,
        SwarmEvent::ConnectionEstablished { .. }
    ) {}
    let mut shares = [0.0; 2];
    for (share, seconds) in shares.iter_mut().zip([2, 5]) {
        let (begun, from) = (Instant::now(), cpu());
        let end = tokio::time::sleep(Duration::from_secs(seconds));
        tokio::pin!(end);
        loop {
            tokio::select! {
                _ = swarm.select_next_some() => {}
                () = &mut end => break,
            }
        }
        *share = (cpu() - from).as_secs_f64() / begun.elapsed().as_secs_f64();
    }
    (shares[0], shares[1])
}

async fn listen<B: NetworkBehaviour>(swarm: &mut Swarm<B>) -> String {
    swarm
        .listen_on("/ip4/127.0.0.1/tcp/0".parse().unwrap())
        .unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return format!("{address}/p2p/{}", swarm.local_peer_id());
        }
    }
}

/// A connection of the sender's process, on which streams are opened.
struct Line {
    control: libp2p_stream::Control,
    swarm: Swarm<libp2p_stream::Behaviour>,
    peer: PeerId,
    address: Multiaddr,
}

impl Line {
    fn new(address: &str) -> Self {
        let address: Multiaddr = address.parse().unwrap();
        let peer = address
            .iter()
            .find_map(|part| match part {
                multiaddr::Protocol::P2p(peer) => Some(peer),
                _ => None,
            })
            .unwrap();
        let behaviour = libp2p_stream::Behaviour::new();
        let mut control = behaviour.new_control();
        // What the other side sends is read and dropped.
        let mut incoming = control.accept(PROTOCOL).unwrap();
        tokio::spawn(async move {
            while let Some((_, mut stream)) = incoming.next().await {
                tokio::spawn(async move {
                    let mut sink = vec![0; 4096];
                    while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
                });
            }
        });
        Self {
            control,
            swarm: swarm(&Keypair::generate_ed25519(), behaviour),
            peer,
            address,
        }
    }

    /// Whether it stands.
    async fn dial(&mut self) -> bool {
        if self.swarm.dial(self.address.clone()).is_err() {
            // The last one is not quite over.
            let _ = tokio::time::timeout(Duration::from_millis(1), self.swarm.next()).await;
            return false;
        }
        loop {
            match self.swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => return true,
                SwarmEvent::OutgoingConnectionError { .. } => return false,
                _ => {}
            }
        }
    }
}

fn hello() -> Vec<u8> {
    let mut hello = FrameBuilder::new();
    hello.subscription(&Topic::new(TOPIC).unwrap(), true, 0);
    hello.finish(Duration::MAX).to_bytes().to_vec()
}

/// The sender: a round, then what it is told to go on with, and one message more.
async fn send(address: &str, flood: Flood) {
    let author = Keypair::generate_ed25519();
    let frames: Vec<Vec<u8>> = (0..=flood.messages as u64)
        .map(|n| framed(message(&author, n + 1, flood.bytes, true)))
        .collect();
    let mut line = Line::new(address);
    assert!(line.dial().await);
    let (mut control, peer) = (line.control.clone(), line.peer);
    tokio::spawn(async move {
        loop {
            line.swarm.select_next_some().await;
        }
    });
    let mut stream = control.open_stream(peer, PROTOCOL).await.unwrap();
    stream.write_all(&hello()).await.unwrap();
    let round: Vec<u8> = frames[..flood.messages].concat();
    for piece in round.chunks(8 << 10) {
        stream.write_all(piece).await.unwrap();
    }
    stream.flush().await.unwrap();
    let go_on = tokio::task::spawn_blocking(|| {
        let mut line = String::new();
        BufReader::new(std::io::stdin()).read_line(&mut line)
    });
    go_on.await.unwrap().unwrap();
    for _ in 1..flood.rounds {
        stream.write_all(&round).await.unwrap();
    }
    stream.write_all(&frames[flood.messages]).await.unwrap();
    stream.flush().await.unwrap();
    // Ended by the receiver.
    tokio::time::sleep(LONGEST).await;
}

/// The forger: new messages whose signatures are wrong, without an end; thrown out, it comes back.
async fn forge(address: &str, pause: Duration) {
    let author = Keypair::generate_ed25519();
    let mut line = Line::new(address);
    let mut number = 0;
    let end = Instant::now() + LONGEST;
    while Instant::now() < end {
        if !line.dial().await {
            continue;
        }
        let mut control = line.control.clone();
        let (peer, from) = (line.peer, number);
        let author = author.clone();
        let writing = tokio::spawn(async move {
            let mut number = from;
            let Ok(mut stream) = control.open_stream(peer, PROTOCOL).await else {
                return number;
            };
            let mut piece = hello();
            loop {
                while piece.len() < 32 << 10 {
                    number += 1;
                    piece.extend(framed(message(&author, number, 100, false)));
                }
                if stream.write_all(&piece).await.is_err() {
                    return number;
                }
                piece.clear();
            }
        });
        tokio::pin!(writing);
        number = loop {
            tokio::select! {
                _ = line.swarm.select_next_some() => {}
                last = &mut writing => break last.unwrap(),
            }
        };
        tokio::time::sleep(pause).await;
    }
}

fn framed(field: Vec<u8>) -> Vec<u8> {
    let mut frame = FrameBuilder::new();
    frame.message(field.into());
    frame.finish(Duration::MAX).to_bytes().to_vec()
}

/// A message as a field of an RPC, signed as Kubo signs, or with a signature of something else.
fn message(author: &Keypair, number: u64, bytes: usize, good: bool) -> Vec<u8> {
    let mut body = Vec::new();
    put(&mut body, 1, &author.public().to_peer_id().to_bytes());
    put(&mut body, 2, &vec![number as u8; bytes]);
    put(&mut body, 3, &number.to_be_bytes());
    put(&mut body, 4, TOPIC.as_bytes());
    let signature = match good {
        true => author.sign(&[SIGN_PREFIX, &body].concat()).unwrap(),
        false => vec![7; 64],
    };
    put(&mut body, 5, &signature);
    let mut field = Vec::new();
    put(&mut field, 2, &body);
    field
}

fn put(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    out.push(number << 3 | 2);
    let mut len = bytes.len();
    while len >= 0x80 {
        out.push(len as u8 | 0x80);
        len >>= 7;
    }
    out.push(len as u8);
    out.extend_from_slice(bytes);
}
