//! The besiegers: a process of their own, in which each is a member of the swarm with an identity of its own.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_block::{Block, Cid};
use gemba_exchange::wire::{self, Entry, Message, Presence, Version, WantKind};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use gemba_testkit::Rng;
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Behaviour, Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::{mpsc, watch};

const BITSWAP: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
/// How often a besieger does what it does.
const PACE: Duration = Duration::from_secs(2);
/// Tells a process of this program that it is the besiegers.
const CHILD: &str = "GEMBA_BENCH_SIEGE";

/// At whom they are, and so what they do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Serving,
    Reading,
    Fetching,
}

impl Kind {
    pub(crate) const ALL: [Self; 3] = [Self::Serving, Self::Reading, Self::Fetching];

    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Serving => "serving",
            Self::Reading => "reading",
            Self::Fetching => "fetching",
        }
    }
}

/// Whether this process is to be the besiegers.
pub(crate) fn are_we() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// The process of the besiegers, until it is ended.
pub(crate) struct Siege {
    child: Child,
    orders: ChildStdin,
    done: Arc<AtomicU64>,
}

impl Siege {
    pub(crate) fn begin(kind: Kind, count: usize, address: &str, known: &[Cid]) -> Self {
        let mut child = Command::new("nice")
            .args(["-n", "19"])
            .arg(std::env::current_exe().unwrap())
            .env(CHILD, "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut orders = child.stdin.take().unwrap();
        writeln!(orders, "{}\n{count}\n{address}", kind.name()).unwrap();
        for cid in known {
            writeln!(orders, "{cid}").unwrap();
        }
        writeln!(orders).unwrap();
        orders.flush().unwrap();
        let done = Arc::new(AtomicU64::new(0));
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let there = lines.next().expect("the besiegers are there").unwrap();
        assert_eq!(there, "0");
        let counts = Arc::clone(&done);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                counts.store(line.parse().unwrap(), Ordering::Relaxed);
            }
        });
        Self {
            child,
            orders,
            done,
        }
    }

    /// The process.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// How many things they did so far.
    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Relaxed)
    }

    /// How many they do a second.
    pub(crate) fn done_in(&self, time: Duration) -> f64 {
        let before = self.done();
        std::thread::sleep(time);
        (self.done() - before) as f64 / time.as_secs_f64()
    }

    pub(crate) fn end(mut self) {
        drop(self.orders);
        self.child.wait().unwrap();
    }
}

/// What that process does: it is told whom to besiege, and then goes on until its standard input ends.
pub(crate) fn besiege_until_told(key: &SwarmKey) {
    let mut lines = std::io::stdin().lines().map(Result::unwrap);
    let kind = Kind::named(&lines.next().unwrap()).unwrap();
    let count: usize = lines.next().unwrap().parse().unwrap();
    let address = lines.next().unwrap().parse().unwrap();
    let known = lines.by_ref().take_while(|line| !line.is_empty());
    let target = Target {
        kind,
        address,
        key: key.clone(),
        known: Arc::new(known.map(|cid| cid.parse().unwrap()).collect()),
        done: Arc::default(),
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let (end, ended) = watch::channel(false);
    let mut tasks = Vec::new();
    for n in 0..count {
        tasks.push(runtime.spawn(besiege(n, target.clone(), ended.clone())));
        std::thread::sleep(Duration::from_millis(4));
    }
    println!("0");
    let done = Arc::clone(&target.done);
    std::thread::spawn(move || {
        let mut out = std::io::stdout();
        while writeln!(out, "{}", done.load(Ordering::Relaxed)).is_ok() {
            std::thread::sleep(Duration::from_millis(50));
        }
    });
    lines.for_each(drop);
    let _ = end.send(true);
    for task in tasks {
        let _ = runtime.block_on(task);
    }
}

#[derive(Clone)]
struct Target {
    kind: Kind,
    address: Multiaddr,
    key: SwarmKey,
    known: Arc<Vec<Cid>>,
    done: Arc<AtomicU64>,
}

/// One hostile peer, until the end.
async fn besiege(n: usize, target: Target, mut end: watch::Receiver<bool>) {
    let work = async {
        loop {
            // Refused or thrown out: it comes again.
            let _ = attack(n, &target).await;
            tokio::time::sleep(PACE).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = end.wait_for(|end| *end) => {}
    }
}

async fn attack(n: usize, target: &Target) -> Option<()> {
    let key = Keypair::generate_ed25519();
    let network = Network::Private(target.key.clone());
    let transport = gemba_pnet::transport(&key, &network, &TransportConfig::default()).ok()?;
    let behaviour = Behaviour::new();
    let mut control = behaviour.new_control();
    let incoming = control.accept(BITSWAP).ok()?;
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(3600));
    let mut swarm = Swarm::new(transport, behaviour, key.public().to_peer_id(), config);
    swarm.dial(target.address.clone()).ok()?;
    let node = loop {
        match swarm.select_next_some().await {
            SwarmEvent::ConnectionEstablished { peer_id, .. } => break peer_id,
            SwarmEvent::OutgoingConnectionError { .. } => return None,
            _ => {}
        }
    };
    let closed = async {
        loop {
            if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                return None;
            }
        }
    };
    let attack = async {
        let peer = Besieger {
            node,
            control,
            done: &target.done,
        };
        let salt = n as u64;
        match (target.kind, n % 5, n % 6) {
            (Kind::Serving, 0, _) | (Kind::Fetching, _, 4) => peer.flood(salt).await,
            (Kind::Serving, 1, _) => peer.never_read(incoming, &target.known).await,
            (Kind::Serving, 2, _) => peer.trickle().await,
            (Kind::Serving, 3, _) => peer.silent_streams().await,
            (Kind::Serving, _, _) => peer.push(salt).await,
            (Kind::Reading, _, _) => peer.read_by_the_byte(incoming, &target.known).await,
            (Kind::Fetching, _, 0) => peer.provide(incoming, Provider::Silent, salt).await,
            (Kind::Fetching, _, 1) => peer.provide(incoming, Provider::Liar, salt).await,
            (Kind::Fetching, _, 2) => peer.provide(incoming, Provider::Trickler, salt).await,
            (Kind::Fetching, _, 3) => peer.provide(incoming, Provider::Corrupter, salt).await,
            (Kind::Fetching, _, _) => peer.provide(incoming, Provider::Talker, salt).await,
        }
    };
    tokio::select! {
        end = closed => end,
        end = attack => end,
    }
}

/// How whoever is asked for a block answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Provider {
    Silent,
    /// HAVE, and nothing follows.
    Liar,
    /// HAVE, and of the block 4 KiB a second.
    Trickler,
    /// HAVE, and other bytes.
    Corrupter,
    /// HAVE, and a thousand answers beside it.
    Talker,
}

/// Messages that were read and not answered yet; more wait in their streams.
const UNANSWERED: usize = 16;
/// What a trickler sends in half a second.
const TRICKLE: usize = 2048;

struct Besieger<'a> {
    node: PeerId,
    control: Control,
    done: &'a AtomicU64,
}

impl Besieger<'_> {
    async fn open(&mut self) -> Option<Stream> {
        self.control.open_stream(self.node, BITSWAP).await.ok()
    }

    async fn send(&self, stream: &mut Stream, bytes: &[u8]) -> Option<()> {
        stream.write_all(bytes).await.ok()?;
        stream.flush().await.ok()?;
        self.done.fetch_add(1, Ordering::Relaxed);
        Some(())
    }

    async fn flood(mut self, salt: u64) -> Option<()> {
        let mut rng = Rng::new(salt);
        let mut stream = self.open().await?;
        loop {
            let cids = (0..1000).map(|_| *Block::raw(rng.bytes(16)).unwrap().cid());
            self.send(&mut stream, &asking(cids)).await?;
            tokio::time::sleep(PACE).await;
        }
    }

    async fn never_read(mut self, mut incoming: IncomingStreams, known: &[Cid]) -> Option<()> {
        let mut stream = self.open().await?;
        self.send(&mut stream, &asking(known.iter().copied()))
            .await?;
        let mut held = Vec::new();
        loop {
            held.push(incoming.next().await?);
        }
    }

    async fn read_by_the_byte(
        mut self,
        mut incoming: IncomingStreams,
        known: &[Cid],
    ) -> Option<()> {
        let mut stream = self.open().await?;
        self.send(&mut stream, &asking(known.iter().copied()))
            .await?;
        let mut held = Vec::new();
        let mut second = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                next = incoming.next() => held.push(next?.1),
                _ = second.tick() => {
                    for stream in &mut held {
                        // Polled once: what did not come is read a second later.
                        let mut byte = [0];
                        let read = tokio::time::timeout(Duration::ZERO, stream.read(&mut byte));
                        if matches!(read.await, Ok(Ok(1))) {
                            self.done.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            }
        }
    }

    /// Answers what it is asked for, in its manner.
    async fn provide(
        mut self,
        mut incoming: IncomingStreams,
        manner: Provider,
        salt: u64,
    ) -> Option<()> {
        let mut rng = Rng::new(salt);
        let (heard, mut asked) = mpsc::channel(UNANSWERED);
        // Whoever is asked may be asked on several streams, the one after the other.
        let listen = async {
            while let Some((_, mut stream)) = incoming.next().await {
                let heard = heard.clone();
                tokio::spawn(async move {
                    while let Some(message) = read(&mut stream).await {
                        if heard.send(message).await.is_err() {
                            return;
                        }
                    }
                });
            }
        };
        let answer = async {
            let mut stream = self.open().await?;
            loop {
                let message = match manner {
                    Provider::Talker => match tokio::time::timeout(PACE / 4, asked.recv()).await {
                        Ok(message) => message?,
                        Err(_) => Message::default(),
                    },
                    _ => asked.recv().await?,
                };
                self.answer(&mut stream, manner, &message, &mut rng).await?;
            }
        };
        tokio::select! {
            () = listen => None,
            end = answer => end,
        }
    }

    async fn answer(
        &self,
        stream: &mut Stream,
        manner: Provider,
        asked: &Message,
        rng: &mut Rng,
    ) -> Option<()> {
        if manner == Provider::Silent {
            self.done.fetch_add(1, Ordering::Relaxed);
            return Some(());
        }
        let wanted = || asked.entries.iter().filter(|entry| !entry.cancel);
        let mut presences: Vec<(Cid, Presence)> = wanted()
            .filter(|entry| entry.kind == WantKind::Have || manner == Provider::Liar)
            .map(|entry| (entry.cid, Presence::Have))
            .collect();
        if manner == Provider::Talker {
            let cids = (0..1000).map(|_| *Block::raw(rng.bytes(16)).unwrap().cid());
            presences.extend(cids.map(|cid| (cid, Presence::Have)));
        }
        if !presences.is_empty() {
            let message = Message {
                presences,
                ..Message::default()
            };
            self.say(stream, &message).await?;
        }
        let blocks = wanted().filter(|entry| entry.kind == WantKind::Block);
        match manner {
            Provider::Corrupter => {
                for _ in blocks.take(8) {
                    let message = Message {
                        blocks: vec![Block::raw(rng.bytes(100_000)).unwrap()],
                        ..Message::default()
                    };
                    self.say(stream, &message).await?;
                }
            }
            Provider::Trickler if blocks.count() > 0 => {
                // The length of a message with one block, and then what could be its bytes.
                self.send(stream, &[0xff, 0xff, 0x0f]).await?;
                for _ in 0..0x3_ffff / TRICKLE {
                    self.send(stream, &[0; TRICKLE]).await?;
                    tokio::time::sleep(PACE / 4).await;
                }
                // It is not a message: the stream ends here, and the next answers are on another one.
                return None;
            }
            _ => {}
        }
        Some(())
    }

    async fn say(&self, stream: &mut Stream, message: &Message) -> Option<()> {
        let bytes = wire::encode(message, Version::V1_2).unwrap().to_vec();
        self.send(stream, &bytes).await
    }

    async fn trickle(mut self) -> Option<()> {
        let mut stream = self.open().await?;
        // A length of 4 MiB, and then a byte at a time.
        self.send(&mut stream, &[0x80, 0x80, 0x80, 0x02]).await?;
        loop {
            self.send(&mut stream, &[0x0a]).await?;
            tokio::time::sleep(PACE / 4).await;
        }
    }

    async fn silent_streams(mut self) -> Option<()> {
        let mut held = Vec::new();
        for _ in 0..64 {
            held.push(self.open().await?);
            self.done.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(PACE / 4).await;
        }
        std::future::pending().await
    }

    async fn push(mut self, salt: u64) -> Option<()> {
        let mut rng = Rng::new(salt);
        let mut stream = self.open().await?;
        loop {
            let blocks = vec![Block::raw(rng.bytes(100_000)).unwrap()];
            let message = Message {
                blocks,
                ..Message::default()
            };
            self.say(&mut stream, &message).await?;
            tokio::time::sleep(PACE).await;
        }
    }
}

fn asking(cids: impl Iterator<Item = Cid>) -> Vec<u8> {
    let entries = cids
        .map(|cid| Entry {
            cid,
            priority: 1,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: true,
        })
        .collect();
    let message = Message {
        entries,
        ..Message::default()
    };
    wire::encode(&message, Version::V1_2).unwrap().to_vec()
}

/// The next message of a stream; nothing at its end.
async fn read(stream: &mut Stream) -> Option<Message> {
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
