//! A peer that writes raw bytes, as Kubo does and as an enemy does, against a real node.

use std::time::Duration;

use crate::common::{Node, Over, blocks, over_each_transport, run_until};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_block::Block;
use gemba_exchange::wire::{self, Entry, Message, Presence, Version, WantKind};
use gemba_exchange::{Config, Counters, SessionOptions};
use gemba_pnet::{Network, PublicNetwork, SwarmKey};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Behaviour, Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::{mpsc, oneshot};

const V1_2: StreamProtocol = StreamProtocol::new("/ipfs/bitswap/1.2.0");
const BARE: StreamProtocol = StreamProtocol::new("/ipfs/bitswap");

over_each_transport! {
    #[tokio::test]
    async fn ex_9_answers_come_on_streams_of_their_own;
    #[tokio::test]
    async fn ex_8_three_hundred_streams_with_a_block_each;
    #[tokio::test]
    async fn ex_8_streams_above_the_limit_are_refused_and_counted;
    #[tokio::test]
    async fn x4_hostile_bytes_end_their_stream_and_nothing_else;
    #[tokio::test]
    async fn s4_34_a_request_stream_that_swallows_is_replaced;
    #[tokio::test]
    async fn s4_34_who_starts_anew_is_answered_on_a_new_stream;
    #[tokio::test]
    async fn ex_1_the_oldest_version_is_spoken;
    #[tokio::test]
    async fn x8_outsiders_get_no_have_and_no_answer_at_all;
    #[tokio::test]
    async fn x8_a_node_that_does_not_serve_says_have_to_nobody;
    #[tokio::test]
    async fn x5_a_peer_that_does_not_read_holds_one_window_and_others_are_served;
    #[tokio::test]
    async fn x1_who_owes_nothing_fills_no_more_than_strangers_may;
}

/// A node under test on a task of its own, and a raw peer connected to it.
struct Rig {
    node: PeerId,
    address: Multiaddr,
    control: Control,
    incoming: IncomingStreams,
    ask: mpsc::Sender<Ask>,
}

type Ask = Box<dyn FnOnce(&mut Node) + Send>;

impl Rig {
    async fn new(over: Over, config: Config, stored: Vec<Block>, protocol: StreamProtocol) -> Self {
        let mut node = Node::new(over, config).await;
        node.store(&stored);
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
        let behaviour = Behaviour::new();
        let mut control = behaviour.new_control();
        let incoming = control.accept(protocol).unwrap();
        let mut swarm = Swarm::new(
            over.transport(&key),
            behaviour,
            key.public().to_peer_id(),
            libp2p_swarm::Config::with_tokio_executor()
                .with_idle_connection_timeout(Duration::from_secs(60)),
        );
        swarm.dial(address.clone()).unwrap();
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
            address,
            control,
            incoming,
            ask,
        }
    }

    async fn open(&mut self, protocol: StreamProtocol) -> Stream {
        self.control.open_stream(self.node, protocol).await.unwrap()
    }

    async fn ask<T: Send + 'static>(&self, ask: impl FnOnce(&mut Node) -> T + Send + 'static) -> T {
        let (answer, answered) = oneshot::channel();
        let ask = move |node: &mut Node| drop(answer.send(ask(node)));
        self.ask.send(Box::new(ask)).await.ok().unwrap();
        answered.await.unwrap()
    }

    async fn counters(&self) -> Counters {
        self.ask(|node| node.exchange().counters()).await
    }

    /// Waits until the node counted what the test waits for.
    async fn until(&self, what: impl Fn(&Counters) -> bool) {
        for _ in 0..3000 {
            if what(&self.counters().await) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{:?}", self.counters().await);
    }

    /// The next message on the next stream that the node opens.
    async fn response(&mut self) -> (Stream, Message) {
        let (_, mut stream) = self.incoming.next().await.unwrap();
        let message = read(&mut stream).await;
        (stream, message)
    }
}

async fn read(stream: &mut Stream) -> Message {
    let mut prefix = Vec::new();
    let len = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        prefix.push(byte[0]);
        if let Some((len, _)) = wire::read_length(&prefix).unwrap() {
            break len;
        }
    };
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.unwrap();
    wire::decode(body.into()).unwrap()
}

async fn write(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// Whether the node closes or resets the stream without a word on it.
async fn ends_silently(stream: &mut Stream) -> bool {
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_secs(20), stream.read(&mut byte)).await;
    matches!(read, Ok(Ok(0) | Err(_)))
}

fn asking(block: &Block, kind: WantKind) -> Vec<u8> {
    let entry = Entry {
        cid: *block.cid(),
        priority: 1,
        cancel: false,
        kind,
        send_dont_have: true,
    };
    let message = Message {
        entries: vec![entry],
        ..Message::default()
    };
    wire::encode(&message, Version::V1_2).unwrap().to_vec()
}

fn sending(block: &Block) -> Vec<u8> {
    let message = Message {
        blocks: vec![block.clone()],
        ..Message::default()
    };
    wire::encode(&message, Version::V1_2).unwrap().to_vec()
}

fn hex(text: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap()
}

/// Specs/exchange.md §4: answers never come on the stream that asks, and that stream takes any number of messages.
async fn ex_9_answers_come_on_streams_of_their_own(over: Over) {
    let hello = Block::raw(&b"hello world"[..]).unwrap();
    let mut rig = Rig::new(over, Config::default(), vec![hello.clone()], V1_2).await;
    let mut request = rig.open(V1_2).await;
    // Kubo's own bytes: want-block for "hello world".
    let kubo = hex(
        "2e0a2c0a2a0a2401551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde910012801",
    );
    write(&mut request, &kubo).await;
    let (mut kept, first) = rig.response().await;
    assert_eq!(first.blocks, std::slice::from_ref(&hello));
    write(&mut request, &kubo).await;
    let second = read(&mut kept).await;
    assert_eq!(second.blocks, [hello]);
    let missing = Block::raw(&b"nobody has this"[..]).unwrap();
    write(&mut request, &asking(&missing, WantKind::Block)).await;
    let third = read(&mut kept).await;
    assert_eq!(third.presences, [(*missing.cid(), Presence::DontHave)]);
    let mut byte = [0];
    let silent = tokio::time::timeout(Duration::from_millis(100), request.read(&mut byte)).await;
    assert!(silent.is_err(), "the request stream stays silent");
}

/// As Kubo answers: a stream for each message.
async fn ex_8_three_hundred_streams_with_a_block_each(over: Over) {
    let many = blocks(1, 300, 2000);
    let mut rig = Rig::new(over, Config::default(), Vec::new(), V1_2).await;
    let wanted = many.clone();
    rig.ask(move |node| node.want(&wanted)).await;
    let (_request, _wants) = rig.response().await;
    for block in &many {
        let mut stream = rig.open(V1_2).await;
        write(&mut stream, &sending(block)).await;
        stream.close().await.unwrap();
    }
    let wanted = many.clone();
    for _ in 0..3000 {
        let wanted = wanted.clone();
        if rig.ask(move |node| node.has(&wanted)).await {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{:?}", rig.counters().await);
}

async fn ex_8_streams_above_the_limit_are_refused_and_counted(over: Over) {
    let config = Config::default().with_inbound_streams(4);
    let mut rig = Rig::new(over, config, blocks(2, 1, 100), V1_2).await;
    let mut open = Vec::new();
    for _ in 0..4 {
        let mut stream = rig.open(V1_2).await;
        write(&mut stream, &[0]).await;
        open.push(stream);
    }
    rig.until(|c| c.messages_in >= 4).await;
    let mut fifth = rig.open(V1_2).await;
    let _reset = fifth.write_all(&[0]).await;
    assert!(ends_silently(&mut fifth).await);
    rig.until(|c| c.refused_streams == 1).await;
    // The others go on working.
    let stored = blocks(2, 1, 100);
    write(&mut open[3], &asking(&stored[0], WantKind::Block)).await;
    assert_eq!(rig.response().await.1.blocks, stored);
}

async fn x4_hostile_bytes_end_their_stream_and_nothing_else(over: Over) {
    let stored = blocks(3, 1, 5000);
    let mut rig = Rig::new(over, Config::default(), stored.clone(), V1_2).await;
    let mut bomb_after_message = vec![0];
    bomb_after_message.extend(hex("81808002"));
    let huge = gemba_block::MAX_BLOCK_BYTES + 1;
    let mut large_block = Vec::new();
    let body = huge + 1 + 4 + 6;
    for (field, len) in [(None, body + 5), (Some(0x1a), body)] {
        large_block.extend(field);
        let mut len = len;
        while len >= 0x80 {
            large_block.push(len as u8 | 0x80);
            len >>= 7;
        }
        large_block.push(len as u8);
    }
    large_block.extend(hex("0a0401551220"));
    large_block.push(0x12);
    let mut len = huge;
    while len >= 0x80 {
        large_block.push(len as u8 | 0x80);
        len >>= 7;
    }
    large_block.push(len as u8);
    large_block.resize(large_block.len() + huge, 7);
    let hostile = [
        ("length bomb of 4 MiB and 1", hex("81808002")),
        ("endless length", vec![0xff; 20]),
        ("bomb behind a good message", bomb_after_message),
        ("broken CID", hex("0a0a080a060a0401551220")),
        ("unknown hash", hex("0c1a0a0a0401557f20120201ff")),
        ("group", hex("0133")),
        ("entry without CID", hex("060a040a000a00")),
        ("block of 2 MiB and 1", large_block),
    ];
    for (at, (name, bytes)) in hostile.into_iter().enumerate() {
        let mut stream = rig.open(V1_2).await;
        // The node may reset before everything is written.
        let _reset = stream.write_all(&bytes).await;
        let _reset = stream.flush().await;
        assert!(ends_silently(&mut stream).await, "{name}");
        rig.until(|c| c.malformed > at as u64).await;
    }
    // Half a message, then the end.
    let mut stream = rig.open(V1_2).await;
    write(&mut stream, &hex("2e0a2c0a2a")).await;
    stream.close().await.unwrap();
    assert!(ends_silently(&mut stream).await);
    let mut request = rig.open(V1_2).await;
    write(&mut request, &asking(&stored[0], WantKind::Block)).await;
    assert_eq!(rig.response().await.1.blocks, stored);
    assert_eq!(rig.counters().await.malformed, 8);
}

/// A peer of Bitswap 1.0 gets blocks without prefix and is spared HAVE and DONT_HAVE.
async fn ex_1_the_oldest_version_is_spoken(over: Over) {
    let old = Block::v0(&b"any bytes, they are not parsed here"[..]).unwrap();
    let mut rig = Rig::new(over, Config::default(), vec![old.clone()], BARE).await;
    let mut request = rig.open(BARE).await;
    let missing = Block::raw(&b"nobody has this"[..]).unwrap();
    write(&mut request, &asking(&missing, WantKind::Block)).await;
    write(&mut request, &asking(&old, WantKind::Block)).await;
    let (_, mut stream) = rig.incoming.next().await.unwrap();
    let mut bytes = vec![0; 3 + 2 + old.len()];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes[..5], &[2 + 2 + 35, 0x0a, 0, 0x12, 35]);
    assert_eq!(&bytes[5..], &old.data()[..]);
}

/// X5: somebody who asks for much and never reads.
async fn x5_a_peer_that_does_not_read_holds_one_window_and_others_are_served(over: Over) {
    let many = blocks(4, 200, 100_000);
    let mut rig = Rig::new(over, Config::default(), many.clone(), V1_2).await;
    let mut request = rig.open(V1_2).await;
    for block in &many {
        write(&mut request, &asking(block, WantKind::Block)).await;
    }
    let (_unread, _first) = rig.response().await;
    rig.until(|c| c.wants_in >= 200).await;
    // Somebody else wants the same, and gets it.
    let mut other = Node::new(over, Config::default()).await;
    other.want(&many);
    other.swarm.dial(rig.address.clone()).unwrap();
    run_until(&mut [&mut other], |nodes| nodes[0].has(&many)).await;
    assert_eq!(other.exchange().counters().duplicates, 0);
    let node = other.id();
    let held = rig
        .ask(move |rig| {
            let ledger = rig.exchange().peers();
            let served = ledger.iter().find(|line| line.peer == node);
            assert!(served.is_some_and(|line| line.blocks_out == 200));
            rig.exchange().load().served_bytes
        })
        .await;
    assert!(held <= 2 * 1024 * 1024, "{held} bytes");
}

/// EX-23: members asked for a block, so that the node owed them an answer, and announced messages that they never sent: that counted as if
/// they had been asked for them, and took all the memory in which answers are received.
async fn x1_who_owes_nothing_fills_no_more_than_strangers_may(over: Over) {
    const MIB: usize = 1024 * 1024;
    let [stored, wanted] = [blocks(10, 1, 1000), blocks(11, 1, MIB)];
    let config = Config::default().with_receive_bytes(64 * MIB);
    let mut rig = Rig::new(over, config, stored.clone(), V1_2).await;
    rig.ask(|node| node.mute = true).await;
    let mut request = rig.open(V1_2).await;
    write(&mut request, &asking(&stored[0], WantKind::Block)).await;
    rig.until(|c| c.loads == 1).await;
    let mut announced = Vec::new();
    for _ in 0..10 {
        let mut stream = rig.open(V1_2).await;
        let mut start = Vec::new();
        prost::encoding::encode_varint(3 * MIB as u64, &mut start);
        start.push(0);
        write(&mut stream, &start).await;
        announced.push(stream);
    }
    // What is written later on the same connection was read.
    let before = rig.counters().await.messages_in;
    write(&mut request, &asking(&stored[0], WantKind::Block)).await;
    rig.until(|c| c.messages_in > before).await;
    let holds = |node: &mut Node| node.exchange().receiving_bytes();
    assert_eq!(rig.ask(holds).await, 6 * MIB);
    // What the node asks for has room all the same.
    let mut holder = Node::new(over, Config::default()).await;
    holder.store(&wanted);
    holder.swarm.dial(rig.address.clone()).unwrap();
    let content = wanted.clone();
    rig.ask(move |node| node.want(&content)).await;
    run_until(&mut [&mut holder], |nodes| {
        nodes[0].exchange().counters().blocks_out == 1
    })
    .await;
    rig.until(|c| c.found == 1).await;
}

/// S4.34: a peer whose connection lives and whose end of our stream does not: it takes what we write and never acts upon it. Another stream is
/// opened and everything said again there; the first is let go.
async fn s4_34_a_request_stream_that_swallows_is_replaced(over: Over) {
    let wanted = blocks(8, 3, 1000);
    let config = Config::default().with_stall(Duration::from_millis(400));
    let mut rig = Rig::new(over, config, Vec::new(), V1_2).await;
    let content = wanted.clone();
    rig.ask(move |node| node.want(&content)).await;
    let (mut dead, first) = rig.response().await;
    assert!(first.entries.iter().all(|e| e.kind == WantKind::Have));
    // It goes on to take whatever comes, until the stream ends.
    let swallow = tokio::spawn(async move {
        let mut rest = Vec::new();
        let _reset = dead.read_to_end(&mut rest).await;
    });
    let (_alive, again) = rig.response().await;
    assert!(again.full);
    let mut cids: Vec<_> = again.entries.iter().map(|e| e.cid).collect();
    let mut all: Vec<_> = wanted.iter().map(|b| *b.cid()).collect();
    cids.sort();
    all.sort();
    assert_eq!(cids, all);
    swallow.await.unwrap();
    for block in &wanted {
        let mut stream = rig.open(V1_2).await;
        write(&mut stream, &sending(block)).await;
        stream.close().await.unwrap();
    }
    rig.until(|c| c.found == 3).await;
    let counters = rig.counters().await;
    assert_eq!(
        (counters.replaced_streams, counters.resent_wantlists),
        (1, 1)
    );
    assert_eq!((counters.duplicates, counters.unwanted), (0, 0));
}

/// S4.34: what we answer vanishes. The peer notices, says everything again, and the answers to that take another way.
async fn s4_34_who_starts_anew_is_answered_on_a_new_stream(over: Over) {
    let stored = blocks(9, 2, 1000);
    let mut rig = Rig::new(over, Config::default(), stored.clone(), V1_2).await;
    let mut request = rig.open(V1_2).await;
    write(&mut request, &asking(&stored[0], WantKind::Block)).await;
    let (mut dead, _) = rig.response().await;
    // A stream that is used for less than a second is not thought dead.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    let mut entries = Vec::new();
    for block in &stored {
        entries.push(Entry {
            cid: *block.cid(),
            priority: 1,
            cancel: false,
            kind: WantKind::Block,
            send_dont_have: true,
        });
    }
    let anew = Message {
        entries,
        full: true,
        ..Message::default()
    };
    let bytes = wire::encode(&anew, Version::V1_2).unwrap().to_vec();
    write(&mut request, &bytes).await;
    let (mut kept, mut answer) = rig.response().await;
    while answer.blocks.len() < 2 {
        answer.blocks.extend(read(&mut kept).await.blocks);
    }
    assert!(stored.iter().all(|b| answer.blocks.contains(b)));
    // The old one is closed, not reset: what was written on it can still be read.
    let mut byte = [0];
    assert_eq!(dead.read(&mut byte).await.unwrap(), 0);
}

/// X8: whoever is not of the swarm, with another key or none, learns of no block whether it is here: there is nobody to ask.
async fn x8_outsiders_get_no_have_and_no_answer_at_all(over: Over) {
    let stored = blocks(5, 3, 1000);
    let mut node = Node::new(over, Config::default()).await;
    node.store(&stored);
    let force = gemba_pnet::Policy::default().force().unwrap();
    let public = PublicNetwork::asked_for(&force).unwrap();
    for network in [
        Network::Private(SwarmKey::from_bytes([2; 32])),
        Network::Public(public),
    ] {
        for _ in 0..10 {
            let key = Keypair::generate_ed25519();
            let mut outsider = Swarm::new(
                over.transport_into(&key, &network),
                gemba_exchange::Behaviour::new(Config::default()),
                key.public().to_peer_id(),
                libp2p_swarm::Config::with_tokio_executor(),
            );
            let behaviour = outsider.behaviour_mut();
            let session = behaviour.open_session(SessionOptions::default()).unwrap();
            behaviour
                .want(session, stored.iter().map(|b| *b.cid()))
                .unwrap();
            outsider.dial(node.address.clone()).unwrap();
            let refused = async {
                loop {
                    tokio::select! {
                        event = node.swarm.select_next_some() => {
                            assert!(!matches!(event, SwarmEvent::ConnectionEstablished { .. }));
                        }
                        event = outsider.select_next_some() => match event {
                            SwarmEvent::OutgoingConnectionError { .. } => return,
                            SwarmEvent::ConnectionEstablished { .. } => panic!("let in"),
                            _ => {}
                        },
                    }
                }
            };
            tokio::time::timeout(Duration::from_secs(20), refused)
                .await
                .unwrap();
        }
    }
    let counters = node.exchange().counters();
    assert_eq!((counters.wants_in, counters.loads), (0, 0));
    assert_eq!((counters.haves_out, counters.blocks_out), (0, 0));
    assert_eq!(counters.messages_out, 0);
}

/// X8: a node that is told not to serve answers its members too as if it had nothing, and does not even look.
async fn x8_a_node_that_does_not_serve_says_have_to_nobody(over: Over) {
    let stored = blocks(6, 3, 1000);
    let config = Config::default().with_serve(false);
    let mut rig = Rig::new(over, config, stored.clone(), V1_2).await;
    let mut request = rig.open(V1_2).await;
    write(&mut request, &asking(&stored[0], WantKind::Have)).await;
    let (mut answers, first) = rig.response().await;
    assert_eq!(first.presences, [(*stored[0].cid(), Presence::DontHave)]);
    write(&mut request, &asking(&stored[1], WantKind::Block)).await;
    let second = read(&mut answers).await;
    assert_eq!(second.presences, [(*stored[1].cid(), Presence::DontHave)]);
    assert!(first.blocks.is_empty() && second.blocks.is_empty());
    let counters = rig.counters().await;
    assert_eq!((counters.haves_out, counters.loads), (0, 0));
}
