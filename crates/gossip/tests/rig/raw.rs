//! Peers that speak the wire byte by byte, and nodes that run on tasks of their own while tests look at them.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::wire::{FrameBuilder, Reader, Received, SIGN_PREFIX, read_length};
use gemba_gossip::{Config, Seen, Topic};
use libp2p_identity::{Keypair, PeerId};
use libp2p_stream::{Control, IncomingStreams};
use libp2p_swarm::{Stream, StreamProtocol, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::{Notify, mpsc, oneshot};

use super::{Node, Over};

pub const V1_2: StreamProtocol = StreamProtocol::new("/meshsub/1.2.0");

/// A node on a task of its own.
pub struct Running {
    pub id: PeerId,
    pub address: Multiaddr,
    ask: mpsc::Sender<Ask>,
    task: tokio::task::JoinHandle<()>,
}

type Ask = Box<dyn FnOnce(&mut Node) + Send>;

impl Running {
    pub fn start(mut node: Node) -> Self {
        let (id, address) = (node.id(), node.address.clone());
        let (ask, mut asks) = mpsc::channel::<Ask>(8);
        let task = tokio::spawn(async move {
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
        Self {
            id,
            address,
            ask,
            task,
        }
    }

    /// Ends the node, and waits until it is gone.
    pub async fn stop(self) {
        drop(self.ask);
        self.task.await.unwrap();
    }

    pub async fn ask<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&mut Node) -> T + Send + 'static,
    ) -> T {
        let (answer, answered) = oneshot::channel();
        let ask = move |node: &mut Node| drop(answer.send(ask(node)));
        self.ask.send(Box::new(ask)).await.ok().unwrap();
        answered.await.unwrap()
    }

    /// Waits for real until the node is as the test wants it.
    pub async fn until(&self, what: impl Fn(&mut Node) -> bool + Clone + Send + 'static) {
        for _ in 0..6000 {
            if self.ask(what.clone()).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("the node does not come to what the test waits for");
    }
}

/// What a peer does to the stream that it reads from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Reads on, and does nothing with it, as a connection into nowhere does.
    Swallow,
    /// Reads no more.
    Deaf,
    /// Resets it.
    Reset,
}

/// A peer that reads a topic, answers when it is asked whether it reads, and fails when it is told to.
pub struct Raw {
    pub id: PeerId,
    pub address: Multiaddr,
    pub control: Control,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    /// Streams that the node opened so far.
    streams: u64,
    /// Of the present one.
    fault: Option<Fault>,
    /// Payloads that came on it.
    got: BTreeSet<Bytes>,
}

impl Raw {
    /// Listens, and reads `topic`.
    pub async fn new(over: Over, node: PeerId, topic: &Topic) -> Self {
        let key = Keypair::generate_ed25519();
        let behaviour = libp2p_stream::Behaviour::new();
        let control = behaviour.new_control();
        let mut incoming = behaviour.new_control().accept(V1_2).unwrap();
        let (mut swarm, address) = over.swarm(&key, behaviour).await;
        let id = *swarm.local_peer_id();
        tokio::spawn(async move {
            loop {
                swarm.select_next_some().await;
            }
        });
        let shared = Arc::new(Shared::default());
        let (say, said) = mpsc::channel(64);
        tokio::spawn(speak(control.clone(), node, said));
        let (topic, here) = (topic.clone(), shared.clone());
        tokio::spawn(async move {
            while let Some((_, stream)) = incoming.next().await {
                let number = {
                    let mut state = here.state.lock().unwrap();
                    state.streams += 1;
                    (state.fault, state.got) = (None, BTreeSet::new());
                    state.streams
                };
                here.changed.notify_waiters();
                let mut hello = FrameBuilder::new();
                hello.subscription(&topic, true, 0);
                say.send(hello.finish(Duration::MAX).to_bytes()).await.ok();
                tokio::spawn(listen(stream, number, here.clone(), say.clone()));
            }
        });
        Self {
            id,
            address,
            control,
            shared,
        }
    }

    /// From now on the present stream fails.
    pub fn fail(&self, fault: Fault) {
        self.shared.state.lock().unwrap().fault = Some(fault);
        self.shared.changed.notify_waiters();
    }

    /// Whether this came on the present stream.
    pub fn got(&self, payload: &Bytes) -> bool {
        self.shared.state.lock().unwrap().got.contains(payload)
    }

    pub fn streams(&self) -> u64 {
        self.shared.state.lock().unwrap().streams
    }
}

/// Writes what is to be said on a stream of its own, opened anew when it is lost.
async fn speak(mut control: Control, node: PeerId, mut said: mpsc::Receiver<Bytes>) {
    let mut stream: Option<Stream> = None;
    while let Some(bytes) = said.recv().await {
        for _ in 0..3 {
            let Some(open) = &mut stream else {
                stream = control.open_stream(node, V1_2).await.ok();
                continue;
            };
            if open.write_all(&bytes).await.is_ok() && open.flush().await.is_ok() {
                break;
            }
            stream = None;
        }
    }
}

async fn listen(mut stream: Stream, number: u64, shared: Arc<Shared>, say: mpsc::Sender<Bytes>) {
    let mut parser = Parser::new();
    let mut chunk = [0; 4096];
    loop {
        let changed = shared.changed.notified();
        let (fault, present) = {
            let state = shared.state.lock().unwrap();
            (state.fault, state.streams == number)
        };
        if !present || fault == Some(Fault::Reset) {
            return;
        }
        if fault == Some(Fault::Deaf) {
            changed.await;
            continue;
        }
        let n = tokio::select! {
            read = stream.read(&mut chunk) => match read {
                Ok(n @ 1..) => n,
                _ => return,
            },
            () = changed => continue,
        };
        if fault == Some(Fault::Swallow) {
            continue;
        }
        for received in parser.push(&chunk[..n]) {
            if let Some(nonce) = received.ping {
                let mut answer = FrameBuilder::new();
                answer.pong(nonce);
                say.send(answer.finish(Duration::MAX).to_bytes()).await.ok();
            }
            let payloads = received.candidates.iter().map(|c| c.message.data());
            shared.state.lock().unwrap().got.extend(payloads);
        }
    }
}

/// Makes RPCs of bytes.
pub struct Parser {
    seen: Seen,
    buffer: Vec<u8>,
}

impl Parser {
    pub fn new() -> Self {
        Self {
            seen: Seen::new(Config::default().seen(), [3; 32]),
            buffer: Vec::new(),
        }
    }

    pub fn push(&mut self, bytes: &[u8]) -> Vec<Received> {
        self.buffer.extend_from_slice(bytes);
        let mut all = Vec::new();
        while let Some((len, at)) = read_length(&self.buffer).unwrap() {
            if self.buffer.len() < at + len {
                break;
            }
            let frame = Bytes::copy_from_slice(&self.buffer[at..at + len]);
            self.buffer.drain(..at + len);
            let mut reader = Reader::new(self.seen.digester());
            reader.scan(&frame).unwrap();
            let source = self.seen.join(PeerId::random());
            reader.sight(&mut self.seen, source, Duration::ZERO);
            all.push(reader.finish(&frame));
        }
        all
    }
}

/// A connection of a peer with an identity of its own to a node.
pub async fn dial(over: Over, key: &Keypair, to: &Multiaddr) -> Control {
    let behaviour = libp2p_stream::Behaviour::new();
    let control = behaviour.new_control();
    connect(over, key, behaviour, to).await;
    control
}

/// The same; streams of `protocol` that the node opens are taken.
pub async fn dial_and_accept(
    over: Over,
    key: &Keypair,
    to: &Multiaddr,
    protocol: StreamProtocol,
) -> (Control, IncomingStreams) {
    let behaviour = libp2p_stream::Behaviour::new();
    let mut control = behaviour.new_control();
    let incoming = control.accept(protocol).unwrap();
    connect(over, key, behaviour, to).await;
    (control, incoming)
}

/// Connects, and goes on in a task of its own.
async fn connect(over: Over, key: &Keypair, behaviour: libp2p_stream::Behaviour, to: &Multiaddr) {
    let (mut swarm, _) = over.swarm(key, behaviour).await;
    swarm.dial(to.clone()).unwrap();
    while !matches!(
        swarm.select_next_some().await,
        SwarmEvent::ConnectionEstablished { .. }
    ) {}
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
}

/// A whole message field, signed.
pub fn signed(author: &Keypair, number: u64, topic: &str, data: &[u8]) -> Vec<u8> {
    let mut body = [
        field(1, &author.public().to_peer_id().to_bytes()),
        field(2, data),
        field(3, &number.to_be_bytes()),
        field(4, topic.as_bytes()),
    ]
    .concat();
    let signature = author.sign(&[SIGN_PREFIX, &body].concat()).unwrap();
    body.extend(field(5, &signature));
    field(2, &body)
}

/// A field of bytes.
pub fn field(number: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, u64::from(number) << 3 | 2);
    varint(&mut out, bytes.len() as u64);
    out.extend_from_slice(bytes);
    out
}

/// With its length in front.
pub fn framed(rpc: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    varint(&mut out, rpc.len() as u64);
    out.extend_from_slice(rpc);
    out
}

pub fn varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}
