//! The driver between real swarms below the private network's wall, and against a peer that sends what nobody honest sends.
#![allow(clippy::unwrap_used)]

use std::io;
use std::time::Duration;

use futures::{AsyncReadExt as _, AsyncWriteExt as _, StreamExt as _};
use gemba_names::wire::{Interest, Message, fetch};
use gemba_names::{Behaviour, BehaviourEvent, Keypair, Name, PeerId};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_core::Transport as _;
use libp2p_core::transport::MemoryTransport;
use libp2p_swarm::{NetworkBehaviour, Stream, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;

/// Nothing here waits for anything but the other end.
const LIMIT: Duration = Duration::from_secs(30);

async fn swarm<B: NetworkBehaviour>(behaviour: B) -> (Swarm<B>, Multiaddr) {
    let key = Keypair::generate_ed25519();
    let network = Network::Private(SwarmKey::from_bytes([1; 32]));
    let carrier = MemoryTransport::new()
        .map_err(|error| io::Error::new(io::ErrorKind::ConnectionRefused, error));
    let transport =
        gemba_pnet::transport_over(carrier, &key, &network, &TransportConfig::default()).unwrap();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    let id = key.public().to_peer_id();
    let mut swarm = Swarm::new(transport, behaviour, id, config);
    swarm.listen_on("/memory/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { address, .. } = swarm.select_next_some().await {
            return (swarm, address);
        }
    }
}

fn a_name() -> Name {
    Name::of(&Keypair::generate_ed25519().public())
}

/// Drives all swarms until one of them tells something that is looked for.
async fn until<T>(
    swarms: &mut [Swarm<Behaviour>],
    mut wanted: impl FnMut(usize, BehaviourEvent) -> Option<T>,
) -> T {
    let looking = std::future::poll_fn(|cx| {
        loop {
            let mut idle = true;
            for (number, swarm) in swarms.iter_mut().enumerate() {
                while let std::task::Poll::Ready(Some(event)) = swarm.poll_next_unpin(cx) {
                    idle = false;
                    if let SwarmEvent::Behaviour(event) = event
                        && let Some(found) = wanted(number, event)
                    {
                        return std::task::Poll::Ready(found);
                    }
                }
            }
            if idle {
                return std::task::Poll::Pending;
            }
        }
    });
    tokio::time::timeout(LIMIT, looking).await.unwrap()
}

async fn two() -> Vec<Swarm<Behaviour>> {
    let ((one, _), (mut two, _)) = (swarm(Behaviour::new()).await, swarm(Behaviour::new()).await);
    let address = one.listeners().next().unwrap().clone();
    two.dial(address).unwrap();
    let mut swarms = vec![one, two];
    let mut connected = [false; 2];
    until(&mut swarms, |number, event| {
        connected[number] |= matches!(event, BehaviourEvent::Connected(_));
        (connected == [true; 2]).then_some(())
    })
    .await;
    swarms
}

#[tokio::test]
async fn messages_and_questions_travel_both_ways() {
    let mut swarms = two().await;
    let ids: Vec<PeerId> = swarms.iter().map(|swarm| *swarm.local_peer_id()).collect();
    let (name, record) = (a_name(), vec![7; 9_000]);
    for (number, other) in [(0, 1), (1, 0)] {
        let message = Message {
            interests: vec![Interest { name, has: None }],
            records: vec![(name, record.clone())],
            ..Message::default()
        };
        swarms[number].behaviour_mut().send(ids[other], &message);
        let came = until(&mut swarms, |at, event| match event {
            BehaviourEvent::Message { peer, message } if at == other => Some((peer, message)),
            _ => None,
        });
        assert_eq!(came.await, (ids[number], message));

        swarms[number].behaviour_mut().fetch(ids[other], name);
        let mut answers = vec![Some(record.clone()), None];
        for wanted in [
            fetch::Answer::Record(record.clone()),
            fetch::Answer::NotFound,
        ] {
            let answer = until(&mut swarms, |_, event| match event {
                BehaviourEvent::Asked {
                    name: asked, reply, ..
                } => {
                    assert_eq!(asked, name);
                    reply.send(answers.remove(0));
                    None
                }
                BehaviourEvent::Fetched { peer, answer, .. } => Some((peer, answer)),
                _ => None,
            });
            assert_eq!(answer.await, (ids[other], wanted));
            swarms[number].behaviour_mut().fetch(ids[other], name);
        }
        // The last question is answered by nobody: the reply is dropped.
        let answer = until(&mut swarms, |_, event| match event {
            BehaviourEvent::Fetched { answer, .. } => Some(answer),
            _ => None,
        });
        assert_eq!(answer.await, fetch::Answer::NotFound);
    }
    let nobody = PeerId::random();
    swarms[0].behaviour_mut().fetch(nobody, name);
    let answer = until(&mut swarms, |_, event| match event {
        BehaviourEvent::Fetched { peer, answer, .. } => Some((peer, answer)),
        _ => None,
    });
    assert_eq!(answer.await, (nobody, fetch::Answer::Error));
}

/// A peer of any protocol, by hand.
struct Raw {
    control: libp2p_stream::Control,
    node: PeerId,
}

impl Raw {
    /// Connects to a node, and drives both from then on.
    async fn to(node: Swarm<Behaviour>) -> (Self, tokio::sync::mpsc::Receiver<BehaviourEvent>) {
        let (tell, told) = tokio::sync::mpsc::channel(64);
        let (id, address) = (
            *node.local_peer_id(),
            node.listeners().next().unwrap().clone(),
        );
        let mut node = node;
        tokio::spawn(async move {
            loop {
                if let SwarmEvent::Behaviour(event) = node.select_next_some().await
                    && tell.send(event).await.is_err()
                {
                    return;
                }
            }
        });
        let (mut raw, _) = swarm(libp2p_stream::Behaviour::new()).await;
        raw.dial(address).unwrap();
        let control = raw.behaviour().new_control();
        while !matches!(
            raw.select_next_some().await,
            SwarmEvent::ConnectionEstablished { .. }
        ) {}
        tokio::spawn(async move {
            loop {
                raw.select_next_some().await;
            }
        });
        (Self { control, node: id }, told)
    }

    async fn open(&mut self, protocol: &'static str) -> Stream {
        let protocol = StreamProtocol::new(protocol);
        self.control.open_stream(self.node, protocol).await.unwrap()
    }
}

/// Lengths beyond the limit, bodies that are none, streams that end in the middle: the stream ends, and the next one is heard.
#[tokio::test]
async fn what_nobody_honest_sends_ends_its_stream_and_nothing_else() {
    let (node, _) = swarm(Behaviour::new()).await;
    let (mut raw, mut told) = Raw::to(node).await;
    for bad in [
        &[0xff, 0xff, 0xff, 0xff, 0x7f][..],
        // One byte beyond the limit.
        &[0x81, 0x80, 0x04, 0, 0, 0],
        &[3, 0xff, 0xff, 0xff],
        &[100, 1, 2],
    ] {
        let mut stream = raw.open(gemba_names::wire::PROTOCOL).await;
        stream.write_all(bad).await.unwrap();
        let _ = stream.close().await;
        let mut rest = Vec::new();
        // Reset, or ended.
        let _ = tokio::time::timeout(LIMIT, stream.read_to_end(&mut rest))
            .await
            .unwrap();
    }
    let message = Message {
        gone: vec![a_name()],
        ..Message::default()
    };
    let body = message.encode();
    let mut stream = raw.open(gemba_names::wire::PROTOCOL).await;
    stream.write_all(&[body.len() as u8]).await.unwrap();
    stream.write_all(&body).await.unwrap();
    stream.flush().await.unwrap();
    let came = tokio::time::timeout(LIMIT, async {
        loop {
            if let BehaviourEvent::Message { message, .. } = told.recv().await.unwrap() {
                return message;
            }
        }
    });
    assert_eq!(came.await.unwrap(), message);

    // What is no name is not found, and a question that is none is not answered.
    let mut stream = raw.open(fetch::PROTOCOL).await;
    stream
        .write_all(&[5, 0x0a, 3, b'/', b'p', b'k'])
        .await
        .unwrap();
    stream.close().await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    assert_eq!(
        fetch::decode_answer(&answer[1..]),
        Ok(fetch::Answer::NotFound)
    );
}
