//! A peer that writes raw bytes, as an enemy does and as a broken line does, against a real node.

use std::time::Duration;

use crate::rig::raw::Parser;
use crate::rig::{Node, Over, over_each_transport, topic};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::wire::{self, Author, Frame, FrameBuilder, Reader, Version};
use gemba_gossip::{
    Config, Core, Counters, Event, Input, Mode, Output, RawMessage, Receipt, Seen, SeenCounters,
    Topic,
};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, SwarmEvent};
use tokio::sync::{mpsc, oneshot};

const V1_2: StreamProtocol = StreamProtocol::new("/meshsub/1.2.0");
const MINUTE: Duration = Duration::from_secs(60);

over_each_transport! {
    #[tokio::test]
    async fn g1_of_many_copies_one_is_verified;
    #[tokio::test]
    async fn g4_a_flood_of_bad_signatures_ends_with_the_connection;
    #[tokio::test]
    async fn a_mebibyte_passes_and_one_byte_more_does_not;
    #[tokio::test]
    async fn s4_17_a_stream_that_is_reset_without_a_word_is_opened_again;
    #[tokio::test]
    async fn a_peer_that_begins_anew_is_heard;
    #[tokio::test]
    async fn go_26_a_peer_that_opens_a_stream_late_is_told_again_what_is_read;
    #[tokio::test]
    async fn g10_a_peer_that_does_not_read_holds_up_no_publisher;
}

/// A node under test on a task of its own, and a raw peer connected to it.
struct Rig {
    node: PeerId,
    key: Keypair,
    control: Control,
    incoming: IncomingStreams,
    ask: mpsc::Sender<Ask>,
}

type Ask = Box<dyn FnOnce(&mut Node) + Send>;

impl Rig {
    async fn new(over: Over, config: Config, topics: &[Topic]) -> Self {
        let mut node = Node::new(over, config).await;
        for topic in topics {
            node.subscribe(topic);
        }
        let (id, address) = (node.id(), node.address.clone());
        let (ask, mut asks) = mpsc::channel::<Ask>(8);
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    event = node.swarm.select_next_some() => node.on_event(event),
                    ask = asks.recv() => match ask {
                        Some(ask) => ask(&mut node),
                        None => return,
                    },
                }
            }
        });
        let key = Keypair::generate_ed25519();
        let behaviour = libp2p_stream::Behaviour::new();
        let mut control = behaviour.new_control();
        let incoming = control.accept(V1_2).unwrap();
        let (mut swarm, _) = over.swarm(&key, behaviour).await;
        swarm.dial(address).unwrap();
        while !matches!(
            swarm.select_next_some().await,
            SwarmEvent::ConnectionEstablished { .. }
        ) {}
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        Self {
            node: id,
            key,
            control,
            incoming,
            ask,
        }
    }

    async fn open(&mut self) -> Stream {
        self.control.open_stream(self.node, V1_2).await.unwrap()
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&mut Node) -> T + Send + 'static) -> T {
        let (answer, answered) = oneshot::channel();
        let ask = move |node: &mut Node| drop(answer.send(ask(node)));
        self.ask.send(Box::new(ask)).await.ok().unwrap();
        answered.await.unwrap()
    }

    async fn counters(&self) -> (Counters, SeenCounters) {
        let ask = |node: &mut Node| (node.gossip().counters(), node.gossip().seen_counters());
        self.ask(ask).await
    }

    /// Waits until the node counted what the test waits for.
    async fn until(&self, what: impl Fn(&Counters, &SeenCounters) -> bool) -> Counters {
        for _ in 0..4000 {
            let (counters, seen) = self.counters().await;
            if what(&counters, &seen) {
                return counters;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.counters().await);
    }
}

async fn write(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// Whether the node resets the stream, without a word on it.
async fn ends_silently(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(MINUTE, stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

/// Signs messages as a node of its own would.
struct Signer {
    key: Keypair,
    core: Core,
    seen: Seen,
}

impl Signer {
    fn new(topic: &Topic) -> Self {
        let key = Keypair::generate_ed25519();
        let config = Config::default();
        let mut seen = Seen::new(config.seen(), [7; 32]);
        let author = Author::new(&key.public());
        let mut core = Core::new(config, Some(author), 7);
        let start = Input::SequenceLoaded {
            stored: None,
            wall_nanos: 1,
        };
        core.handle(&mut seen, start, Duration::ZERO);
        core.handle(
            &mut seen,
            Input::SequenceReserved { upto: 1 << 40 },
            Duration::ZERO,
        );
        // Somebody must be there to take messages.
        let peer = PeerId::random();
        let outbound = true;
        core.handle(
            &mut seen,
            Input::Connected { peer, outbound },
            Duration::ZERO,
        );
        let version = Version::V1_2;
        core.handle(
            &mut seen,
            Input::StreamOpened { peer, version },
            Duration::ZERO,
        );
        let mut hello = FrameBuilder::new();
        hello.subscription(topic, true, 0);
        let received = Box::new(read(&mut seen, peer, &hello.finish(Duration::MAX)));
        let at = Duration::ZERO;
        core.handle(
            &mut seen,
            Input::Received { peer, received, at },
            Duration::ZERO,
        );
        Self { key, core, seen }
    }

    fn sign(&mut self, topic: &Topic, data: &[u8]) -> RawMessage {
        let data = Bytes::copy_from_slice(data);
        let now = Duration::ZERO;
        let wait = Mode::Hold(MINUTE);
        self.core
            .publish(&mut self.seen, topic, data, wait, now)
            .unwrap();
        let mut signed = None;
        while let Some(output) = self.core.poll() {
            match output {
                Output::Sign { publish, job } => {
                    let own = job.run(&self.key).unwrap();
                    signed = Some(own.message.clone());
                    let result = Ok(own);
                    self.core
                        .handle(&mut self.seen, Input::Signed { publish, result }, now);
                }
                Output::Write { peer, .. } => {
                    self.core
                        .handle(&mut self.seen, Input::Written { peer }, now);
                }
                _ => {}
            }
        }
        signed.unwrap()
    }
}

fn read(seen: &mut Seen, peer: PeerId, frame: &Frame) -> wire::Received {
    let bytes = frame.to_bytes();
    let (len, at) = wire::read_length(&bytes).unwrap().unwrap();
    let frame = bytes.slice(at..at + len);
    let mut reader = Reader::new(seen.digester());
    reader.scan(&frame).unwrap();
    let source = seen.join(peer);
    reader.sight(seen, source, Duration::ZERO);
    reader.finish(&frame)
}

fn framed(messages: impl IntoIterator<Item = Bytes>) -> Bytes {
    let mut frame = FrameBuilder::new();
    for message in messages {
        frame.message(message);
    }
    frame.finish(Duration::MAX).to_bytes()
}

fn hello(topic: &Topic) -> Bytes {
    let mut frame = FrameBuilder::new();
    frame.subscription(topic, true, 0);
    frame.finish(Duration::MAX).to_bytes()
}

/// 100 messages 50 times each: 100 verifications, 100 deliveries, whatever frames they come in.
async fn g1_of_many_copies_one_is_verified(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut rig = Rig::new(over, Config::default(), std::slice::from_ref(&alarms)).await;
    let mut signer = Signer::new(&alarms);
    let messages: Vec<_> = (0..100_u8)
        .map(|n| signer.sign(&alarms, &[n; 100]))
        .collect();
    let mut stream = rig.open().await;
    for round in 1..=50 {
        let fields = messages.iter().map(|m| m.field().clone());
        let bytes = match round % 2 {
            0 => framed(fields),
            _ => fields.flat_map(|f| framed([f])).collect(),
        };
        write(&mut stream, &bytes).await;
    }
    let counters = rig.until(|_, seen| seen.sightings == 5000).await;
    let counters = match counters.delivered {
        100 => counters,
        _ => rig.until(|c, _| c.delivered == 100).await,
    };
    let (_, seen) = rig.counters().await;
    assert_eq!((counters.verified, counters.verified_good), (100, 100));
    assert_eq!((seen.entered, seen.duplicates), (100, 4900));
}

async fn g4_a_flood_of_bad_signatures_ends_with_the_connection(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut rig = Rig::new(over, Config::default(), std::slice::from_ref(&alarms)).await;
    let mut signer = Signer::new(&alarms);
    let good = signer.sign(&alarms, b"good");
    let mut stream = rig.open().await;
    let mut sent = 0_u32;
    // The signature is of another payload.
    while sent < 100_000 {
        let mut bytes = Vec::new();
        for _ in 0..50 {
            let mut field = good.field().to_vec();
            let at = field.windows(4).position(|w| w == b"good").unwrap();
            field[at..at + 4].copy_from_slice(&sent.to_be_bytes());
            bytes.extend_from_slice(&framed([Bytes::from(field)]));
            sent += 1;
        }
        if stream.write_all(&bytes).await.is_err() || stream.flush().await.is_err() {
            break;
        }
    }
    assert!(sent < 100_000, "the connection ends");
    let peer = rig.key.public().to_peer_id();
    let counters = rig.until(|c, _| c.bans == 1).await;
    assert!(counters.verified < 2000, "{}", counters.verified);
    assert_eq!(counters.delivered, 0);
    // And is not made again before its time.
    let again = rig
        .ask(move |node| node.gossip().peers().contains(&peer))
        .await;
    assert!(!again);
}

async fn a_mebibyte_passes_and_one_byte_more_does_not(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut rig = Rig::new(over, Config::default(), std::slice::from_ref(&alarms)).await;
    let mut signer = Signer::new(&alarms);
    let message = signer.sign(&alarms, &vec![7; 1_047_000]);
    // What is unknown is skipped, so that a frame can be made as long as needed: field 90, bytes.
    let exactly = |len: usize| {
        let mut frame = message.field().to_vec();
        let room = len - frame.len();
        // A header of 2 + 2 bytes.
        frame.extend_from_slice(&[0xd2, 0x05]);
        let rest = room - 4;
        frame.extend_from_slice(&[rest as u8 & 0x7f | 0x80, (rest >> 7) as u8]);
        frame.resize(len, 0);
        let mut bytes = Vec::new();
        let mut n = len;
        while n >= 0x80 {
            bytes.push(n as u8 | 0x80);
            n >>= 7;
        }
        bytes.push(n as u8);
        bytes.extend_from_slice(&frame);
        bytes
    };
    let mut stream = rig.open().await;
    write(&mut stream, &exactly(1_048_576)).await;
    rig.until(|c, _| c.delivered == 1).await;
    let mut stream = rig.open().await;
    let large = exactly(1_048_577);
    // It is refused by its length.
    let _ = stream.write_all(&large[..3]).await;
    let _ = stream.flush().await;
    assert!(ends_silently(&mut stream).await);
    rig.until(|c, _| c.malformed == 1).await;
}

async fn s4_17_a_stream_that_is_reset_without_a_word_is_opened_again(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut rig = Rig::new(over, Config::default(), std::slice::from_ref(&alarms)).await;
    for _ in 0..3 {
        let (_, mut theirs) = rig.incoming.next().await.unwrap();
        let mut byte = [0];
        theirs.read_exact(&mut byte).await.unwrap();
        drop(theirs);
    }
    let (_, theirs) = rig.incoming.next().await.unwrap();
    rig.until(|c, _| c.reopened >= 3).await;
    drop(theirs);
}

/// As a Kubo that forgot, with the end of an earlier connection, what it was told on this one.
async fn go_26_a_peer_that_opens_a_stream_late_is_told_again_what_is_read(over: Over) {
    let mut rig = Rig::new(over, Config::default(), &[topic("t")]).await;
    let (_, mut from_node) = rig.incoming.next().await.unwrap();
    let mut parser = Parser::new();
    let mut hellos = 0;
    let mut stream = None;
    let mut bytes = vec![0; 4096];
    while hellos < 2 {
        let read = tokio::time::timeout(MINUTE, from_node.read(&mut bytes));
        let read = read.await.unwrap().unwrap();
        assert!(read > 0);
        let all = parser.push(&bytes[..read]);
        hellos += all.iter().map(|rpc| rpc.subscriptions.len()).sum::<usize>();
        if hellos == 1 && stream.is_none() {
            let mut opened = rig.open().await;
            // Negotiated is a stream only with its first bytes.
            write(&mut opened, &[0]).await;
            stream = Some(opened);
        }
    }
}

async fn a_peer_that_begins_anew_is_heard(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut rig = Rig::new(over, Config::default(), std::slice::from_ref(&alarms)).await;
    let mut signer = Signer::new(&alarms);
    let mut kept = Vec::new();
    for n in 1..=20_u8 {
        let mut stream = rig.open().await;
        let message = signer.sign(&alarms, &[n]);
        write(&mut stream, &hello(&alarms)).await;
        write(&mut stream, &framed([message.field().clone()])).await;
        rig.until(|c, _| c.delivered == u64::from(n)).await;
        // Half of them are left open.
        if n % 2 == 0 {
            kept.push(stream);
        }
    }
}

/// The peer subscribes, accepts the stream and never reads from it.
async fn g10_a_peer_that_does_not_read_holds_up_no_publisher(over: Over) {
    let alarms = topic("line-1/alarms");
    let config = Config::builder()
        .stall(Duration::from_secs(1))
        .build()
        .unwrap();
    let mut rig = Rig::new(over, config, std::slice::from_ref(&alarms)).await;
    let mut stream = rig.open().await;
    write(&mut stream, &hello(&alarms)).await;
    let (_, theirs) = rig.incoming.next().await.unwrap();
    let peer = rig.key.public().to_peer_id();
    let there = alarms.clone();
    while !rig
        .ask({
            let there = there.clone();
            move |node| node.knows(&there, peer)
        })
        .await
    {
        tokio::task::yield_now().await;
    }
    let mut results: Vec<Result<Receipt, _>> = Vec::new();
    for n in 0..200_u32 {
        let topic = alarms.clone();
        let publishing = rig
            .ask(move |node| {
                let mut data = vec![0; 60_000];
                data[..4].copy_from_slice(&n.to_be_bytes());
                // The first one has a worker to be started for it, on whatever machine.
                let wait = if n == 0 {
                    MINUTE
                } else {
                    Duration::from_millis(20)
                };
                node.gossip_mut().publish(&topic, data, Mode::Wait(wait))
            })
            .await;
        match publishing {
            Ok(publishing) => results.push(publishing.await),
            Err(error) => results.push(Err(error)),
        }
    }
    assert!(results[0].is_ok(), "{:?}", results[0]);
    assert!(results.iter().any(Result::is_err), "lanes have an end");
    rig.until(|c, _| c.stalls >= 1).await;
    let stalled = rig
        .ask(move |node| node.events.contains(&Event::PeerStalled { peer }))
        .await;
    assert!(stalled);
    drop(theirs);
}
