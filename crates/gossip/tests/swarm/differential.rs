//! The same bytes to this engine and to libp2p-gossipsub: what each delivers, and why they differ where they do.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::rig::raw::{field as bytes_field, framed};
use crate::rig::{Over, topic};
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::wire::SIGN_PREFIX;
use gemba_gossip::{Behaviour, BehaviourEvent, Config};
use libp2p_gossipsub as stock;
use libp2p_identity::Keypair;
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};

const V1_1: StreamProtocol = StreamProtocol::new("/meshsub/1.1.0");
const TOPIC: &str = "line-1/alarms";

/// What the engines are to do with one RPC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Expect {
    Both,
    Neither,
    /// The stock engine alone, for this reason.
    StockOnly(&'static str),
}
use Expect::{Both, Neither, StockOnly};

#[tokio::test]
async fn the_same_bytes_are_delivered_by_both_engines_but_for_what_is_explained() {
    let script = script(&Keypair::generate_ed25519());
    let ours = through_ours(&script).await;
    let theirs = through_stock(&script).await;
    let count = |got: &[Vec<u8>], name: &str| got.iter().filter(|d| *d == name.as_bytes()).count();
    let mut seen = BTreeSet::new();
    for (name, expect, _) in &script {
        if !seen.insert(*name) {
            continue;
        }
        let want = match expect {
            Both => (1, 1),
            Neither => (0, 0),
            StockOnly(_) => (0, 1),
        };
        assert_eq!(
            (count(&ours, name), count(&theirs, name)),
            want,
            "{name}: {expect:?}"
        );
    }
    let names: BTreeMap<_, _> = script
        .iter()
        .map(|(name, expect, _)| (*name, expect))
        .collect();
    assert!(names.len() > 12);
}

/// Name, which is the payload too, what is expected, and the RPC.
fn script(author: &Keypair) -> Vec<(&'static str, Expect, Vec<u8>)> {
    let message = |n: u64, name: &str| Message::new(author, n, name);
    let rpc = |message: Vec<u8>| bytes_field(2, &message);
    let signed = |n: u64, name: &str| rpc(message(n, name).sign(author).encode());

    let first = signed(1000, "signed");
    let mut forged = message(1001, "signature of another payload").sign(author);
    forged.signature[5] ^= 1;
    let mut nobody = message(1002, "without an author").sign(author);
    nobody.from.clear();
    let mut numberless = message(1003, "without a number").sign(author);
    numberless.seqno.clear();
    let mut bare = message(1004, "without a signature");
    bare.signature.clear();
    let mut keyed = message(1005, "with the key that its author's id holds").sign(author);
    keyed.key = author.public().encode_protobuf();
    let mut other_key = message(1006, "with another key").sign(author);
    other_key.key = Keypair::generate_ed25519().public().encode_protobuf();
    let mut elsewhere = message(1007, "a topic that nobody reads");
    elsewhere.topic = "line-2/alarms".into();
    let elsewhere = elsewhere.sign(author);
    let reordered = {
        let m = message(1008, "fields out of order").sign(author);
        [
            bytes_field(2, &m.data),
            bytes_field(1, &m.from),
            bytes_field(3, &m.seqno),
            bytes_field(4, m.topic.as_bytes()),
            bytes_field(5, &m.signature),
        ]
        .concat()
    };
    let extended = {
        let mut bytes = message(1009, "an unknown field in the message")
            .sign(author)
            .encode();
        bytes.extend(bytes_field(9, b"more"));
        bytes
    };
    let padded = {
        let body = message(1010, "a length written longer than needed")
            .sign(author)
            .encode();
        let len = body.len();
        let mut bytes = vec![2 << 3 | 2, len as u8 | 0x80, (len >> 7) as u8 | 0x80, 0];
        bytes.extend(body);
        bytes
    };
    let two = [signed(1011, "first of two"), signed(1012, "second of two")].concat();
    vec![
        ("signed", Both, first.clone()),
        ("signed", Both, first),
        (
            "signature of another payload",
            Neither,
            rpc(forged.encode()),
        ),
        ("without an author", Neither, rpc(nobody.encode())),
        ("without a number", Neither, rpc(numberless.encode())),
        ("without a signature", Neither, rpc(bare.encode())),
        (
            "with the key that its author's id holds",
            StockOnly("GO-4: the same message in other bytes would be verified again everywhere"),
            rpc(keyed.encode()),
        ),
        ("with another key", Neither, rpc(other_key.encode())),
        (
            "a topic that nobody reads",
            Neither,
            rpc(elsewhere.encode()),
        ),
        (
            "fields out of order",
            StockOnly(
                "GO-4: the stock engine writes it anew before it verifies, and so sends on other bytes than it got",
            ),
            rpc(reordered),
        ),
        (
            "an unknown field in the message",
            StockOnly("GO-4: the stock engine cuts it off and sends on other bytes than it got"),
            rpc(extended),
        ),
        ("a length written longer than needed", Both, padded),
        ("first of two", Both, two.clone()),
        ("second of two", Both, two),
        (
            "an unknown field in the RPC",
            Both,
            [
                signed(1013, "an unknown field in the RPC"),
                bytes_field(90, b"more"),
            ]
            .concat(),
        ),
        (
            "a lower number that was not used",
            Both,
            signed(900, "a lower number that was not used"),
        ),
        ("", Both, signed(1014, "")),
        ("end", Both, signed(1015, "end")),
    ]
}

async fn through_ours(script: &[(&str, Expect, Vec<u8>)]) -> Vec<Vec<u8>> {
    let key = Keypair::generate_ed25519();
    let mut gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
    gossip.listen(&topic(TOPIC)).unwrap();
    run(&key, gossip, script, |event| match event {
        BehaviourEvent::Message(message) => Some(message.data.to_vec()),
        _ => None,
    })
    .await
}

async fn through_stock(script: &[(&str, Expect, Vec<u8>)]) -> Vec<Vec<u8>> {
    let key = Keypair::generate_ed25519();
    let config = stock::ConfigBuilder::default()
        .validation_mode(stock::ValidationMode::Strict)
        .build()
        .unwrap();
    let signed = stock::MessageAuthenticity::Signed(key.clone());
    let mut behaviour: stock::Behaviour = stock::Behaviour::new(signed, config).unwrap();
    behaviour.subscribe(&stock::IdentTopic::new(TOPIC)).unwrap();
    run(&key, behaviour, script, |event| match event {
        stock::Event::Message { message, .. } => Some(message.data),
        _ => None,
    })
    .await
}

/// Writes the script to a node and gathers what it delivers, until the payload `end`.
async fn run<B: NetworkBehaviour>(
    key: &Keypair,
    behaviour: B,
    script: &[(&str, Expect, Vec<u8>)],
    delivered: impl Fn(B::ToSwarm) -> Option<Vec<u8>>,
) -> Vec<Vec<u8>> {
    let (mut node, address) = Over::Memory.swarm(key, behaviour).await;
    let node_id = *node.local_peer_id();
    let streams = libp2p_stream::Behaviour::new();
    let mut control = streams.new_control();
    let mut incoming = control.accept(V1_1).unwrap();
    let (mut raw, _) = Over::Memory
        .swarm(&Keypair::generate_ed25519(), streams)
        .await;
    raw.dial(address).unwrap();
    let bytes: Vec<u8> = script.iter().flat_map(|(_, _, rpc)| framed(rpc)).collect();
    let writes = async move {
        let mut stream = control.open_stream(node_id, V1_1).await.unwrap();
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
        // Kept open until the end.
        std::future::pending::<()>().await;
        drop(stream);
    };
    let reads = async move {
        while let Some((_, mut stream)) = incoming.next().await {
            let mut sink = [0; 1024];
            while stream.read(&mut sink).await.is_ok_and(|n| n > 0) {}
        }
    };
    let mut got = Vec::new();
    let gather = async {
        wait_for_connection(&mut raw, &mut node).await;
        let (mut writes, mut reads) = (std::pin::pin!(writes), std::pin::pin!(reads));
        loop {
            tokio::select! {
                () = &mut writes => {}
                () = &mut reads => {}
                _ = raw.select_next_some() => {}
                event = node.select_next_some() => {
                    if let SwarmEvent::Behaviour(event) = event
                        && let Some(data) = delivered(event)
                    {
                        got.push(data);
                        if got.last().is_some_and(|d| d == b"end") {
                            break;
                        }
                    }
                }
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gather)
        .await
        .expect("the last message of the script is delivered");
    got
}

async fn wait_for_connection<A: NetworkBehaviour, B: NetworkBehaviour>(
    raw: &mut Swarm<A>,
    node: &mut Swarm<B>,
) {
    loop {
        tokio::select! {
            event = raw.select_next_some() => {
                if matches!(event, SwarmEvent::ConnectionEstablished { .. }) {
                    return;
                }
            }
            _ = node.select_next_some() => {}
        }
    }
}

/// A message by its fields.
struct Message {
    from: Vec<u8>,
    data: Vec<u8>,
    seqno: Vec<u8>,
    topic: String,
    signature: Vec<u8>,
    key: Vec<u8>,
}

impl Message {
    fn new(author: &Keypair, number: u64, data: &str) -> Self {
        Self {
            from: author.public().to_peer_id().to_bytes(),
            data: data.into(),
            seqno: number.to_be_bytes().into(),
            topic: TOPIC.into(),
            signature: Vec::new(),
            key: Vec::new(),
        }
    }

    fn sign(mut self, author: &Keypair) -> Self {
        self.signature = author
            .sign(&[SIGN_PREFIX, &self.encode()].concat())
            .unwrap();
        self
    }

    fn encode(&self) -> Vec<u8> {
        let fields: [(u8, &[u8]); 6] = [
            (1, &self.from),
            (2, &self.data),
            (3, &self.seqno),
            (4, self.topic.as_bytes()),
            (5, &self.signature),
            (6, &self.key),
        ];
        fields
            .into_iter()
            // Go and Rust write empty data, and leave out what is absent.
            .filter(|(number, bytes)| *number == 2 || !bytes.is_empty())
            .flat_map(|(number, bytes)| bytes_field(number, bytes))
            .collect()
    }
}
