//! A peer that does to a node what no daemon would: RPCs of a given size, thousands of ids at once, a thousand reconnects.
//!
//! ```text
//! gemba-interop-peer VERB --key FILE --to MULTIADDR --topic NAME [--count N]
//! ```
//! Scenarios start it, and judge the one line of JSON that it prints.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "one line of JSON is what this program is for"
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use gemba_gossip::wire::{FrameBuilder, Reader, Received, SIGN_PREFIX, read_length};
use gemba_gossip::{
    Behaviour, BehaviourEvent, Buffer, Config, Counters, Delivery, Mode, Seen, Subscription, Topic,
};
use gemba_names::{Name, Unsigned};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Control, IncomingStreams};
use libp2p_swarm::{NetworkBehaviour, Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::{Multiaddr, Protocol};
use serde_json::{Value, json};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Kubo's DHT in a private network.
const LAN_KAD: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");
const V1_2: StreamProtocol = StreamProtocol::new("/meshsub/1.2.0");
/// Between two times that one word is said.
const PATIENCE: Duration = Duration::from_secs(3);
/// For whatever the other side does.
const SOON: Duration = Duration::from_secs(20);

fn main() -> std::process::ExitCode {
    let play = || -> Outcome<Value> {
        let order = Order::parse(std::env::args().skip(1))?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        runtime.block_on(order.obey())
    };
    match play() {
        Ok(told) => {
            println!("{told}");
            std::process::ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("gemba-interop-peer: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}

/// What is to be done, with whom.
struct Order {
    verb: String,
    key: SwarmKey,
    to: Multiaddr,
    peer: PeerId,
    topic: Topic,
    count: usize,
}

impl Order {
    fn parse(from: impl Iterator<Item = String>) -> Outcome<Self> {
        let mut from = from.peekable();
        let verb = from.next().ok_or("which verb?")?;
        let mut given = BTreeMap::new();
        while let Some(name) = from.next() {
            given.insert(name, from.next().ok_or("an option needs a value")?);
        }
        let mut option = |name: &str| given.remove(name).ok_or(format!("{name} is missing"));
        let to: Multiaddr = option("--to")?.parse()?;
        let Some(Protocol::P2p(peer)) = to.iter().last() else {
            return Err("the address has no peer id".into());
        };
        Ok(Self {
            verb,
            key: SwarmKey::parse(&std::fs::read(option("--key")?)?)?,
            to,
            peer,
            topic: Topic::new(option("--topic")?.as_str())?,
            count: option("--count").map_or(Ok(1), |count| count.parse())?,
        })
    }

    async fn obey(&self) -> Outcome<Value> {
        match self.verb.as_str() {
            "frame" => self.frame().await,
            "numbers" => self.numbers().await,
            "offer-raw" => self.offer_raw().await,
            "ask" => self.ask().await,
            "offer" => self.offer().await,
            "reconnect" => self.reconnect().await,
            "put-records" => self.put_records().await,
            other => Err(format!("no such verb: {other}").into()),
        }
    }

    fn swarm<B: NetworkBehaviour>(&self, keypair: &Keypair, inner: B) -> Outcome<Swarm<Known<B>>> {
        let public = keypair.public();
        let config = libp2p_identify::Config::new("ipfs/0.1.0".to_owned(), public);
        let behaviour = Known {
            inner,
            identify: libp2p_identify::Behaviour::new(config),
        };
        let network = Network::Private(self.key.clone());
        let transport = gemba_pnet::transport(keypair, &network, &TransportConfig::default())?;
        let config = libp2p_swarm::Config::with_tokio_executor()
            .with_idle_connection_timeout(Duration::from_secs(3600));
        let id = keypair.public().to_peer_id();
        Ok(Swarm::new(transport, behaviour, id, config))
    }

    /// A node of gemba's gossip that reads the topic.
    fn gossip(&self, keypair: &Keypair, config: Config) -> Outcome<(Node, Subscription)> {
        let mut gossip = Behaviour::new(keypair.clone(), config)?;
        let buffer = Buffer {
            messages: 1 << 16,
            bytes: 64 << 20,
            ..Buffer::default()
        };
        let subscription = gossip.subscribe(&self.topic, buffer)?;
        Ok((self.swarm(keypair, gossip)?, subscription))
    }

    /// One message in an RPC of exactly `count` bytes. Tells whether the other side resets the stream for it.
    async fn frame(&self) -> Outcome<Value> {
        let keypair = Keypair::generate_ed25519();
        let mut raw = self.raw(&keypair).await?;
        let mut stream = raw.control.open_stream(self.peer, V1_2).await?;
        let around = signed(
            &keypair,
            1 << 60,
            self.topic.as_str(),
            &vec![0; self.count - 1000],
        );
        let around = around.len() - (self.count - 1000);
        let payload = vec![b'x'; self.count - around];
        let rpc = signed(&keypair, 1 << 60, self.topic.as_str(), &payload);
        if rpc.len() != self.count {
            return Err(format!("an RPC of {} bytes", rpc.len()).into());
        }
        let wrote = async {
            stream.write_all(&framed(&rpc)).await?;
            stream.flush().await
        };
        let wrote = tokio::time::timeout(SOON, wrote).await?;
        // Nothing is ever said on it: an answer is its end.
        let mut byte = [0];
        let end = tokio::time::timeout(Duration::from_secs(3), stream.read(&mut byte)).await;
        let reset = wrote.is_err() || end.is_ok();
        Ok(json!({ "bytes": rpc.len(), "payload": payload.len(), "reset": reset }))
    }

    /// Says 10, 9, 11, 1,000, 10 with one author's numbers, and 1 with another's.
    async fn numbers(&self) -> Outcome<Value> {
        let (author, other) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
        let mut raw = self.raw(&author).await?;
        let mut out = raw.control.open_stream(self.peer, V1_2).await?;
        out.write_all(&framed(&hello(&self.topic))).await?;
        out.flush().await?;
        // Whoever is read here is not asked for: that it reads the topic is enough.
        let _heard = Heard::begin(&mut raw, &self.topic).await?;
        let said = [10, 9, 11, 1000, 10];
        let said = said.map(|number| (&author, number)).into_iter();
        for (author, number) in said.chain([(&other, 1)]) {
            let text = format!("number {number}");
            let rpc = signed(author, number, self.topic.as_str(), text.as_bytes());
            out.write_all(&framed(&rpc)).await?;
            out.flush().await?;
            // Both verify several at a time.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        Ok(json!({ "said": 6 }))
    }

    /// Puts records of a name into the DHT at the other side, good and bad ones. Tells which were taken.
    async fn put_records(&self) -> Outcome<Value> {
        let key = Keypair::ed25519_from_bytes([0x5a; 32])?;
        let (name, other) = (
            Name::of(&key.public()),
            Name::of(&Keypair::generate_ed25519().public()),
        );
        // Of the newer form only, so that the value stands in it once, under the signature.
        let record = |sequence: u64, end: &str| -> Outcome<Vec<u8>> {
            let value = format!("/ipfs/bafkqaaa/{sequence}");
            let mut unsigned = Unsigned::new(value, sequence, end.parse()?);
            unsigned.v1 = false;
            Ok(unsigned.sign(&key)?.bytes().to_vec())
        };
        let end = "2100-01-01T00:00:00Z";
        let mut forged = record(9, end)?;
        let at = forged
            .windows(14)
            .position(|w| w == b"/ipfs/bafkqaaa")
            .ok_or("no value")?;
        forged[at + 13] = b'b';
        let puts = [
            ("good", name, record(5, end)?),
            ("forged", name, forged),
            ("lower", name, record(4, end)?),
            ("expired", name, record(8, "2020-01-01T00:00:00Z")?),
            ("other key", other, record(9, end)?),
            ("newer", name, record(6, end)?),
        ];
        let mut raw = self.raw(&Keypair::generate_ed25519()).await?;
        let mut taken = serde_json::Map::new();
        for (what, name, record) in puts {
            let stream = raw.control.open_stream(self.peer, LAN_KAD).await?;
            taken.insert(
                what.into(),
                put_record(stream, &name.routing_key(), &record)
                    .await?
                    .into(),
            );
        }
        Ok(json!({ "name": name.to_string(), "taken": taken }))
    }

    /// A peer without gossip of its own: streams of bytes.
    async fn raw(&self, keypair: &Keypair) -> Outcome<Raw> {
        self.raw_to(self.to.clone(), keypair).await
    }

    /// The same, connected to another.
    async fn raw_to(&self, to: Multiaddr, keypair: &Keypair) -> Outcome<Raw> {
        let streams = libp2p_stream::Behaviour::new();
        let control = streams.new_control();
        let incoming = streams.new_control().accept(V1_2)?;
        let mut swarm = self.swarm(keypair, streams)?;
        swarm.dial(to)?;
        loop {
            match swarm.select_next_some().await {
                SwarmEvent::ConnectionEstablished { .. } => break,
                SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.into()),
                _ => {}
            }
        }
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Ok(Raw { control, incoming })
    }

    /// Advertises `count` messages in one IHAVE, as Kubo would, and gives what is asked for.
    async fn offer_raw(&self) -> Outcome<Value> {
        let authors: Vec<_> = (0..250).map(|_| Keypair::generate_ed25519()).collect();
        let mut messages = HashMap::new();
        let mut order = Vec::new();
        let mut entry = field(1, self.topic.as_str().as_bytes());
        for n in 0..self.count {
            let author = &authors[n % authors.len()];
            let number = (1 << 60) + (n / authors.len()) as u64;
            let id = [
                author.public().to_peer_id().to_bytes(),
                number.to_be_bytes().to_vec(),
            ]
            .concat();
            let data = format!("offered {n}");
            let message = signed(author, number, self.topic.as_str(), data.as_bytes());
            entry.extend(field(2, &id));
            order.push(id.clone());
            messages.insert(id, message);
        }
        let advertisement = field(3, &field(1, &entry));
        let mut raw = self.raw(&Keypair::generate_ed25519()).await?;
        let mut out = raw.control.open_stream(self.peer, V1_2).await?;
        out.write_all(&framed(&hello(&self.topic))).await?;
        out.flush().await?;
        let mut heard = Heard::begin(&mut raw, &self.topic).await?;
        out.write_all(&framed(&advertisement)).await?;
        out.flush().await?;
        let mut asked = BTreeSet::new();
        let mut largest = 0;
        let end = Instant::now() + SOON;
        while asked.len() < self.count && Instant::now() < end {
            let Ok(received) = tokio::time::timeout(SOON, heard.next()).await? else {
                break;
            };
            for topic in &received.control.graft {
                let mut refusal = FrameBuilder::new();
                refusal.prune(topic, Some(60));
                out.write_all(&refusal.finish(Duration::MAX).to_bytes())
                    .await?;
            }
            largest = largest.max(received.control.iwant.len());
            asked.extend(
                received
                    .control
                    .iwant
                    .iter()
                    .map(|id| id.as_bytes().to_vec()),
            );
        }
        // In the order of their numbers and at Kubo's pace: it drops what was overtaken, and what comes while its queue of 32 is full.
        let mut sent = 0;
        for ids in order.chunks(25) {
            let mut rpc = Vec::new();
            for id in ids.iter().filter(|id| asked.contains(*id)) {
                rpc.extend_from_slice(&messages[id]);
                sent += 1;
            }
            out.write_all(&framed(&rpc)).await?;
            out.flush().await?;
            tokio::time::sleep(Duration::from_millis(15)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        let bytes = advertisement.len();
        Ok(
            json!({ "ihave_bytes": bytes, "asked": asked.len(), "largest_iwant": largest, "sent": sent }),
        )
    }

    /// A node of gemba's gossip hears `count` messages, and meets the other side only then: it tells of all of them, and gives what it is asked for.
    async fn offer(&self) -> Outcome<Value> {
        // All is kept until the other side has asked.
        let config = Config::builder().history_length(60).build()?;
        let (mut ours, _messages) = self.gossip(&Keypair::generate_ed25519(), config)?;
        let id = *ours.local_peer_id();
        ours.listen_on("/ip4/127.0.0.1/tcp/0".parse()?)?;
        let address = loop {
            if let SwarmEvent::NewListenAddr { address, .. } = ours.select_next_some().await {
                break address;
            }
        };
        let feeder = Keypair::generate_ed25519();
        let met = drive(&mut ours, |gossip| !gossip.peers().is_empty());
        let (met, feeder) = tokio::join!(met, self.raw_to(address, &feeder));
        met?;
        let mut feeder = feeder?;
        let (count, topic) = (self.count, self.topic.clone());
        let feed = tokio::spawn(async move {
            let mut out = feeder
                .control
                .open_stream(id, V1_2)
                .await
                .map_err(std::io::Error::other)?;
            let authors: Vec<_> = (0..250).map(|_| Keypair::generate_ed25519()).collect();
            for n in 0..count {
                let author = &authors[n % authors.len()];
                let number = (1 << 60) + (n / authors.len()) as u64;
                let data = format!("kept {n}");
                let rpc = signed(author, number, topic.as_str(), data.as_bytes());
                out.write_all(&framed(&rpc)).await?;
                if n % 25 == 24 {
                    out.flush().await?;
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
            }
            out.flush().await?;
            Ok::<_, std::io::Error>((feeder, out))
        });
        drive(&mut ours, |gossip| {
            gossip.counters().delivered >= count as u64
        })
        .await?;
        let _open = feed.await??;
        ours.dial(self.to.clone())?;
        let served = drive(&mut ours, |gossip| {
            gossip.counters().iwant_served >= count as u64
        });
        let served = tokio::time::timeout(SOON, served).await.is_ok();
        // On its way is not there.
        let rest = tokio::time::sleep(Duration::from_secs(2));
        tokio::pin!(rest);
        loop {
            tokio::select! {
                _ = ours.select_next_some() => {}
                () = &mut rest => break,
            }
        }
        let counters = ours.behaviour().inner.counters();
        Ok(json!({ "all_served": served, "counters": told(&counters) }))
    }

    /// Has the other side advertise `count` messages, and asks for all of them with gemba's own engine. A second peer, which takes nothing,
    /// tells how many ids came in one RPC.
    async fn ask(&self) -> Outcome<Value> {
        // A direct peer is in no mesh, so all that comes is what was asked for.
        let config = Config::builder().direct([self.peer]).build()?;
        let (mut ours, mut messages) = self.gossip(&Keypair::generate_ed25519(), config)?;
        ours.behaviour_mut()
            .inner
            .add_direct_address(self.peer, self.to.clone());
        let topic = self.topic.clone();
        drive(&mut ours, |gossip| {
            gossip.subscribers(&topic).contains(&self.peer)
        })
        .await?;
        let watcher = tokio::spawn(watch(
            self.raw(&Keypair::generate_ed25519()).await?,
            self.peer,
            topic.clone(),
        ));
        drive(&mut ours, |gossip| gossip.counters().grafts_refused > 0).await?;
        let authors: Vec<_> = (0..500).map(|_| Keypair::generate_ed25519()).collect();
        let mut feeder = self.raw(&Keypair::generate_ed25519()).await?;
        let mut out = feeder.control.open_stream(self.peer, V1_2).await?;
        // More than are asked for, since Kubo drops what comes while its queue of 32 is full. Each author counts by ones.
        let enough = Arc::new(AtomicBool::new(false));
        let (most, over) = (16 * self.count, enough.clone());
        let feed = async move {
            for begin in (0..most).step_by(25) {
                if over.load(Ordering::Relaxed) {
                    break;
                }
                let mut rpc = Vec::new();
                for n in begin..begin + 25 {
                    let author = &authors[n % authors.len()];
                    let number = (1 << 60) + (n / authors.len()) as u64;
                    let data = format!("fed {n}");
                    rpc.extend(signed(author, number, topic.as_str(), data.as_bytes()));
                }
                out.write_all(&framed(&rpc)).await?;
                out.flush().await?;
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            Ok::<_, std::io::Error>(out)
        };
        let feeding = tokio::spawn(feed);
        let mut came = BTreeSet::new();
        let end = tokio::time::sleep(3 * SOON);
        tokio::pin!(end);
        while came.len() < self.count {
            tokio::select! {
                _ = ours.select_next_some() => {}
                delivery = messages.recv() => if let Some(Delivery::Message(message)) = delivery {
                    came.insert(message.data);
                },
                () = &mut end => break,
            }
        }
        enough.store(true, Ordering::Relaxed);
        let _open = feeding.await??;
        watcher.abort();
        let largest = LARGEST.load(std::sync::atomic::Ordering::Relaxed);
        let counters = ours.behaviour().inner.counters();
        Ok(json!({ "came": came.len(), "largest_ihave": largest, "counters": told(&counters) }))
    }

    /// Connects `count` times with one identity. Each time the other side has to get a message, and to answer it (`echo N` for `round N`).
    async fn reconnect(&self) -> Outcome<Value> {
        let keypair = Keypair::generate_ed25519();
        let (mut swarm, mut messages) = self.gossip(&keypair, Config::default())?;
        let (mut slowest, begun) = (Duration::ZERO, Instant::now());
        let (mut anew, mut again) = (0, 0);
        for round in 0..self.count {
            // Every tenth time as a program that was started anew.
            if round % 10 == 9 {
                drop(messages);
                (swarm, messages) = self.gossip(&keypair, Config::default())?;
                anew += 1;
            }
            let start = Instant::now();
            swarm.dial(self.to.clone())?;
            let topic = self.topic.clone();
            let ready = |gossip: &Behaviour| gossip.subscribers(&topic).contains(&self.peer);
            drive(&mut swarm, ready)
                .await
                .map_err(|e| format!("round {round}: {e}"))?;
            let answer = format!("echo {round}");
            let word = format!("round {round}");
            let answered = async {
                let mut say = tokio::time::interval(PATIENCE);
                let mut said = 0;
                loop {
                    tokio::select! {
                        _ = swarm.select_next_some() => {}
                        _ = say.tick() => {
                            let gossip = &mut swarm.behaviour_mut().inner;
                            gossip.publish(&self.topic, word.clone(), Mode::Wait(SOON))?.detach();
                            said += 1;
                        }
                        delivery = messages.recv() => match delivery {
                            Some(Delivery::Message(message)) if message.data == answer.as_bytes() => {
                                return Outcome::Ok(said - 1);
                            }
                            _ => {}
                        },
                    }
                }
            };
            let Ok(said) = tokio::time::timeout(SOON, answered).await else {
                let counters = told(&swarm.behaviour().inner.counters());
                return Err(format!("round {round}: no answer came: {counters}").into());
            };
            again += said?;
            slowest = slowest.max(start.elapsed());
            if round + 1 == self.count {
                let end = Mode::Wait(SOON);
                let published = swarm
                    .behaviour_mut()
                    .inner
                    .publish(&self.topic, "end", end)?;
                tokio::pin!(published);
                loop {
                    tokio::select! {
                        _ = swarm.select_next_some() => {}
                        receipt = &mut published => break drop(receipt?),
                    }
                }
                // On its way is not there: what a connection holds goes with it.
                let linger = tokio::time::sleep(Duration::from_secs(1));
                tokio::pin!(linger);
                loop {
                    tokio::select! {
                        _ = swarm.select_next_some() => {}
                        () = &mut linger => break,
                    }
                }
            }
            let _ = swarm.disconnect_peer_id(self.peer);
            while swarm.is_connected(&self.peer) {
                swarm.select_next_some().await;
            }
        }
        let counters = swarm.behaviour().inner.counters();
        Ok(json!({
            "rounds": self.count, "started_anew": anew, "said_again": again, "slowest_ms": slowest.as_millis() as u64,
            "took_ms": begun.elapsed().as_millis() as u64, "stalls": counters.stalls,
        }))
    }
}

/// Kubo opens streams only to peers that told it what they speak.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Known<B: NetworkBehaviour> {
    inner: B,
    identify: libp2p_identify::Behaviour,
}

type Node = Swarm<Known<Behaviour>>;

struct Raw {
    control: Control,
    incoming: IncomingStreams,
}

/// Polls a node until it is as it is to be.
async fn drive(swarm: &mut Node, done: impl Fn(&Behaviour) -> bool) -> Outcome<()> {
    let until = async {
        let mut look = tokio::time::interval(Duration::from_millis(5));
        while !done(&swarm.behaviour().inner) {
            tokio::select! {
                event = swarm.select_next_some() => match event {
                    SwarmEvent::OutgoingConnectionError { error, .. } => return Err(error.to_string()),
                    SwarmEvent::Behaviour(KnownEvent::Inner(BehaviourEvent::SequenceFailed {
                        error, ..
                    })) => return Err(error.to_string()),
                    _ => {}
                },
                _ = look.tick() => {}
            }
        }
        Ok(())
    };
    Ok(tokio::time::timeout(3 * SOON, until)
        .await
        .map_err(|_| "the node does not come to what it waits for")??)
}

static LARGEST: std::sync::atomic::AtomicUsize = std::sync::atomic::AtomicUsize::new(0);

/// Reads the topic without taking anything: notes the largest IHAVE.
async fn watch(mut raw: Raw, peer: PeerId, topic: Topic) {
    let watching = async {
        let mut out = raw.control.open_stream(peer, V1_2).await?;
        out.write_all(&framed(&hello(&topic))).await?;
        out.flush().await?;
        let mut heard = Heard::begin(&mut raw, &topic).await?;
        loop {
            let received = heard.next().await?;
            for topic in &received.control.graft {
                let mut refusal = FrameBuilder::new();
                refusal.prune(topic, Some(60));
                out.write_all(&refusal.finish(Duration::MAX).to_bytes())
                    .await?;
                out.flush().await?;
            }
            for ihave in &received.control.ihave {
                LARGEST.fetch_max(ihave.ids.len(), std::sync::atomic::Ordering::Relaxed);
            }
        }
    };
    let ended: Outcome<()> = watching.await;
    if let Err(error) = ended {
        eprintln!("gemba-interop-peer: watching: {error}");
    }
}

/// RPCs of the other side.
struct Heard {
    stream: Stream,
    seen: Seen,
    buffer: Vec<u8>,
}

impl Heard {
    /// Waits for the other side's stream, and until it says that it reads the topic.
    async fn begin(raw: &mut Raw, topic: &Topic) -> Outcome<Self> {
        let incoming = tokio::time::timeout(SOON, raw.incoming.next()).await?;
        let (_, stream) = incoming.ok_or("no stream comes")?;
        let mut heard = Self {
            stream,
            seen: Seen::new(Config::default().seen(), [5; 32]),
            buffer: Vec::new(),
        };
        loop {
            let received = tokio::time::timeout(SOON, heard.next()).await??;
            let all = received.subscriptions.iter();
            if all.into_iter().any(|s| s.subscribe && s.topic == *topic) {
                return Ok(heard);
            }
        }
    }

    async fn next(&mut self) -> Outcome<Received> {
        loop {
            if let Some((len, at)) = read_length(&self.buffer)?
                && self.buffer.len() >= at + len
            {
                let frame = bytes::Bytes::copy_from_slice(&self.buffer[at..at + len]);
                self.buffer.drain(..at + len);
                let mut reader = Reader::new(self.seen.digester());
                reader.scan(&frame)?;
                return Ok(reader.finish(&frame));
            }
            let mut chunk = [0; 16 * 1024];
            match self.stream.read(&mut chunk).await? {
                0 => return Err("the stream ended".into()),
                n => self.buffer.extend_from_slice(&chunk[..n]),
            }
        }
    }
}

fn told(counters: &Counters) -> Value {
    counters
        .iter()
        .filter(|(_, value)| *value > 0)
        .map(|(name, value)| (name.to_owned(), Value::from(value)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn hello(topic: &Topic) -> Vec<u8> {
    let subscription = [&[1 << 3, 1][..], &field(2, topic.as_str().as_bytes())].concat();
    field(1, &subscription)
}

/// A whole message field, signed.
fn signed(author: &Keypair, number: u64, topic: &str, data: &[u8]) -> Vec<u8> {
    let mut body = [
        field(1, &author.public().to_peer_id().to_bytes()),
        field(2, data),
        field(3, &number.to_be_bytes()),
        field(4, topic.as_bytes()),
    ]
    .concat();
    let signature = author
        .sign(&[SIGN_PREFIX, &body].concat())
        .unwrap_or_default();
    body.extend(field(5, &signature));
    field(2, &body)
}

fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, u64::from(number) << 3 | 2);
    varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|window| window == part)
}

/// One PUT_VALUE. Whether it is taken.
async fn put_record(mut stream: Stream, key: &[u8], record: &[u8]) -> Outcome<bool> {
    let inner = [field(1, key), field(2, record)].concat();
    // Type 0, in so many words: a reader may want it.
    let message = [vec![0x08, 0x00], field(2, key), field(3, &inner)].concat();
    stream.write_all(&framed(&message)).await?;
    stream.flush().await?;
    // As Kubo reads it: only the record echoed is a yes; a reset, an end and any other answer are a no.
    let mut heard = Vec::new();
    loop {
        let mut part = [0; 4096];
        match tokio::time::timeout(SOON, stream.read(&mut part)).await? {
            Ok(read) if read > 0 => heard.extend_from_slice(&part[..read]),
            _ => return Ok(false),
        }
        if heard.len() >= heard[0].into() && heard[0] < 0x80 && !contains(&heard, record) {
            return Ok(false);
        }
        if contains(&heard, record) {
            return Ok(true);
        }
    }
}

fn framed(rpc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, rpc.len() as u64);
    out.extend_from_slice(rpc);
    out
}

fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
