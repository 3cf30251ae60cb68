//! The stage: a node of either engine, two peers that write and read raw RPCs, and how to know that an answer is complete.
//!
//! After each step the peer that acted sends a message of a topic that nobody else reads, and when the node has delivered it, each peer asks
//! for it, twice. A node takes what a peer writes in order, and what it answers leaves it in the order of its lanes: when the second copy is
//! here, all else is. So nothing is waited for by the clock.

use std::collections::BTreeSet;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::wire::read_length;
use gemba_gossip::{Behaviour, BehaviourEvent, Config, Topic};
use libp2p_gossipsub as stock;
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::IncomingStreams;
use libp2p_swarm::{NetworkBehaviour, Stream, StreamProtocol, Swarm, SwarmEvent};
use prost::Message as _;
use tokio::sync::mpsc;

use super::script::{
    ALARMS, FENCE, FENCES, LEFT, PEERS, PRUNED, Script, Seen, Setup, Step, TOPICS, VALUES, Who,
    Word,
};
use crate::rig::raw::{dial_and_accept, field, framed, signed};
use crate::rig::{Over, schema};

const NEVER: Duration = Duration::from_secs(3600);

/// An engine as the stage needs it.
pub trait Engine {
    type Node: NetworkBehaviour;
    fn node(key: &Keypair, setup: &Setup) -> Self::Node;
    fn read(node: &mut Self::Node, topic: &str);
    fn leave(node: &mut Self::Node, topic: &str);
    fn has_in_mesh(node: &Self::Node, topic: &str, peer: PeerId) -> bool;
    /// The payload, if it is a message.
    fn delivered(event: <Self::Node as NetworkBehaviour>::ToSwarm) -> Option<Vec<u8>>;
}

/// This crate.
pub struct Ours;

impl Engine for Ours {
    type Node = Behaviour;

    fn node(key: &Keypair, setup: &Setup) -> Behaviour {
        let (low, wanted, high) = setup.degrees;
        let minute = Duration::from_secs(60);
        let mut config = Config::builder()
            .degree_low(low)
            .degree(wanted)
            .degree_high(high)
            .degree_out(0)
            .heartbeat(setup.heartbeat.unwrap_or(NEVER))
            .history_length(60)
            .prune_backoff(Duration::from_secs(PRUNED))
            .unsubscribe_backoff(Duration::from_secs(LEFT))
            .idontwant_bytes(1024)
            // Nothing is dropped for being late, and who does not send what it has is not thought the less of.
            .seen_ttl(Duration::from_secs(3600))
            .validation_deadline(minute)
            .lane_age(minute)
            .stall(minute)
            .iwant_followup(NEVER);
        if setup.direct {
            config = config.direct([Who::A.key().public().to_peer_id()]);
        }
        Behaviour::new(key.clone(), config.build().unwrap()).unwrap()
    }

    fn read(node: &mut Behaviour, topic: &str) {
        node.listen(&Topic::new(topic).unwrap()).unwrap();
    }

    fn leave(node: &mut Behaviour, topic: &str) {
        node.unsubscribe(&Topic::new(topic).unwrap());
    }

    fn has_in_mesh(node: &Behaviour, topic: &str, peer: PeerId) -> bool {
        node.mesh(&Topic::new(topic).unwrap()).contains(&peer)
    }

    fn delivered(event: BehaviourEvent) -> Option<Vec<u8>> {
        match event {
            BehaviourEvent::Message(message) => Some(message.data.to_vec()),
            _ => None,
        }
    }
}

/// The libp2p-gossipsub of rust-libp2p.
pub struct Stock;

impl Engine for Stock {
    type Node = stock::Behaviour;

    fn node(key: &Keypair, setup: &Setup) -> stock::Behaviour {
        let (low, wanted, high) = setup.degrees;
        // Ids as Kubo makes them.
        let config = stock::ConfigBuilder::default()
            .validation_mode(stock::ValidationMode::Strict)
            .message_id_fn(|message| {
                let mut id = message.source.map(|s| s.to_bytes()).unwrap_or_default();
                id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
                id.into()
            })
            .mesh_n_low(low)
            .mesh_n(wanted)
            .mesh_n_high(high)
            .mesh_outbound_min(0)
            .heartbeat_initial_delay(setup.heartbeat.unwrap_or(NEVER))
            .heartbeat_interval(setup.heartbeat.unwrap_or(NEVER))
            .history_length(60)
            .prune_backoff(Duration::from_secs(PRUNED))
            .unsubscribe_backoff(Duration::from_secs(LEFT))
            .forward_queue_duration(Duration::from_secs(60))
            .build()
            .unwrap();
        let signed = stock::MessageAuthenticity::Signed(key.clone());
        let mut node: stock::Behaviour = stock::Behaviour::new(signed, config).unwrap();
        if setup.direct {
            node.add_explicit_peer(&Who::A.key().public().to_peer_id());
        }
        node
    }

    fn read(node: &mut stock::Behaviour, topic: &str) {
        node.subscribe(&stock::IdentTopic::new(topic)).unwrap();
    }

    fn leave(node: &mut stock::Behaviour, topic: &str) {
        node.unsubscribe(&stock::IdentTopic::new(topic));
    }

    fn has_in_mesh(node: &stock::Behaviour, topic: &str, peer: PeerId) -> bool {
        let topic = stock::IdentTopic::new(topic).hash();
        node.mesh_peers(&topic).any(|other| *other == peer)
    }

    fn delivered(event: stock::Event) -> Option<Vec<u8>> {
        match event {
            stock::Event::Message { message, .. } => Some(message.data),
            _ => None,
        }
    }
}

/// What was answered: to the connection, then to each step.
pub async fn play<E: Engine>(script: &Script) -> Vec<Seen> {
    let mut stage = Stage::<E>::new(script).await;
    let mut answers = vec![stage.answers(Who::A).await];
    for (n, step) in script.steps.iter().enumerate() {
        let mut actor = Who::A;
        match step {
            Step::Rpc(who, acts) => {
                actor = *who;
                stage.write(actor, &script.rpc(acts)).await;
            }
            Step::Read(topic) => E::read(stage.swarm.behaviour_mut(), TOPICS[*topic]),
            Step::Leave(topic) => E::leave(stage.swarm.behaviour_mut(), TOPICS[*topic]),
            Step::Await(who, word) => {
                let told = |stage: &Stage<'_, E>| stage.peer(*who).words.contains(word);
                stage.until(told).await;
            }
        }
        answers.push(match script.steps.get(n + 1) {
            // It may come before the answer is complete.
            Some(Step::Await(..)) => Seen::new(),
            _ => stage.answers(actor).await,
        });
    }
    answers
}

struct Stage<'a, E: Engine> {
    script: &'a Script,
    swarm: Swarm<E::Node>,
    peers: Vec<Peer>,
    delivered: BTreeSet<Vec<u8>>,
    fences: u64,
}

/// A peer, with what it was told since the last step.
struct Peer {
    who: Who,
    stream: Stream,
    rpcs: mpsc::Receiver<schema::Rpc>,
    words: Vec<Word>,
    /// Copies of the last fence.
    fences: usize,
}

impl<'a, E: Engine> Stage<'a, E> {
    /// A node that reads two topics and has two peers that read nothing.
    async fn new(script: &'a Script) -> Self {
        let key = Keypair::generate_ed25519();
        let node = E::node(&key, &script.setup);
        let (mut swarm, address) = Over::Memory.swarm(&key, node).await;
        for topic in [TOPICS[ALARMS], TOPICS[VALUES], FENCE] {
            E::read(swarm.behaviour_mut(), topic);
        }
        let mut stage = Self {
            script,
            swarm,
            peers: Vec::new(),
            delivered: BTreeSet::new(),
            fences: FENCES,
        };
        let protocol = StreamProtocol::new(script.setup.version.protocol());
        let node = *stage.swarm.local_peer_id();
        for who in PEERS {
            let key = who.key();
            let join = async {
                let (mut control, incoming) =
                    dial_and_accept(Over::Memory, &key, &address, protocol.clone()).await;
                let stream = control.open_stream(node, protocol.clone()).await.unwrap();
                (incoming, stream)
            };
            let (incoming, stream) = stage.drive(join).await;
            let (say, rpcs) = mpsc::channel(1024);
            tokio::spawn(listen(incoming, say));
            stage.peers.push(Peer {
                who,
                stream,
                rpcs,
                words: Vec::new(),
                fences: 0,
            });
        }
        stage
    }

    fn peer(&self, who: Who) -> &Peer {
        self.peers.iter().find(|peer| peer.who == who).unwrap()
    }

    fn peer_mut(&mut self, who: Who) -> &mut Peer {
        self.peers.iter_mut().find(|peer| peer.who == who).unwrap()
    }

    async fn write(&mut self, who: Who, rpc: &[u8]) {
        let bytes = framed(rpc);
        // Windows are larger than any script.
        let stream = &mut self.peer_mut(who).stream;
        stream.write_all(&bytes).await.unwrap();
        stream.flush().await.unwrap();
    }

    /// Waits until the node has answered all that was written so far.
    async fn answers(&mut self, actor: Who) -> Seen {
        self.fences += 1;
        let number = self.fences;
        let (key, data) = (actor.key(), number.to_be_bytes());
        self.write(actor, &signed(&key, number, FENCE, &data)).await;
        self.until(|stage| stage.delivered.contains(&data[..]))
            .await;
        let id = [&key.public().to_peer_id().to_bytes()[..], &data].concat();
        let ask = field(3, &field(2, &field(1, &id)));
        for copies in 1..=2 {
            for who in PEERS {
                self.write(who, &ask).await;
            }
            self.until(|stage| stage.peers.iter().all(|peer| peer.fences == copies))
                .await;
        }
        let mut seen = Seen::new();
        for peer in &mut self.peers {
            peer.fences = 0;
            for word in peer.words.drain(..) {
                *seen.entry((peer.who, word)).or_default() += 1;
            }
            let id = peer.who.key().public().to_peer_id();
            for (topic, name) in TOPICS.iter().enumerate() {
                if E::has_in_mesh(self.swarm.behaviour(), name, id) {
                    seen.insert((peer.who, Word::Mesh(topic)), 1);
                }
            }
        }
        seen
    }

    /// Drives the node until `done`; a minute without that is a failure. It is looked after twenty times a second even when nothing comes:
    /// after a heartbeat the stock engine does not ask to be woken for the next one.
    async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        for _ in 0..1200 {
            let run = std::future::poll_fn(|cx| {
                loop {
                    if done(self) {
                        return Poll::Ready(());
                    }
                    if !self.turn(cx) {
                        return Poll::Pending;
                    }
                }
            });
            if tokio::time::timeout(Duration::from_millis(50), run)
                .await
                .is_ok()
            {
                return;
            }
        }
        panic!("the node does not come to what the script waits for");
    }

    /// Drives the node until the future is ready.
    async fn drive<T>(&mut self, future: impl Future<Output = T>) -> T {
        let mut future = std::pin::pin!(future);
        let run = std::future::poll_fn(|cx| {
            loop {
                if let Poll::Ready(done) = future.as_mut().poll(cx) {
                    return Poll::Ready(done);
                }
                if !self.turn(cx) {
                    return Poll::Pending;
                }
            }
        });
        tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .expect("the peers are connected")
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(event)) = self.swarm.poll_next_unpin(cx) {
            any = true;
            if let SwarmEvent::Behaviour(event) = event {
                self.delivered.extend(E::delivered(event));
            }
        }
        for peer in &mut self.peers {
            while let Poll::Ready(Some(rpc)) = peer.rpcs.poll_recv(cx) {
                any = true;
                let fence = self.fences.to_be_bytes();
                let data = |m: &schema::Message| m.data.as_deref() == Some(&fence[..]);
                peer.fences += rpc.publish.iter().filter(|m| data(m)).count();
                peer.words.extend(self.script.words(&rpc));
            }
        }
        any
    }
}

/// Reads RPCs from the streams that the node opens.
async fn listen(mut incoming: IncomingStreams, say: mpsc::Sender<schema::Rpc>) {
    while let Some((_, mut stream)) = incoming.next().await {
        let mut buffer = BytesMut::new();
        let mut chunk = vec![0; 16 * 1024];
        while let Ok(n @ 1..) = stream.read(&mut chunk).await {
            buffer.extend_from_slice(&chunk[..n]);
            while let Some((len, at)) = read_length(&buffer).unwrap()
                && buffer.len() >= at + len
            {
                let rpc = buffer.split_to(at + len).split_off(at);
                let rpc = schema::Rpc::decode(rpc.freeze()).unwrap();
                if say.send(rpc).await.is_err() {
                    return;
                }
            }
        }
    }
}
