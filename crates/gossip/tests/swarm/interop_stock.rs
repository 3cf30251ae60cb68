//! The stock engine, libp2p-gossipsub, as the other side.

use std::task::{Context, Poll};
use std::time::Duration;

use crate::rig::{Node, Over, over_each_transport, topic};
use futures::StreamExt;
use gemba_gossip::{Behaviour, Config, HandClock, MessageId, Mode, Topic};
use libp2p_gossipsub as stock;
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::Multiaddr;

const MINUTE: Duration = Duration::from_secs(60);

over_each_transport! {
    #[tokio::test]
    async fn s4_20_both_ways_with_the_stock_engine_and_the_same_ids;
    #[tokio::test]
    async fn s4_20_either_side_restarts_with_the_same_identity;
    #[tokio::test]
    async fn s4_20_a_thousand_reconnects_with_the_same_identity;
    #[tokio::test]
    async fn our_mesh_and_theirs_join;
    #[tokio::test]
    async fn g9_a_stock_engine_of_its_default_limit_is_heard_and_hears_though_large_messages_close_its_streams;
}

/// A node of the stock engine.
struct Stock {
    swarm: Swarm<stock::Behaviour>,
    address: Multiaddr,
    got: Vec<(stock::MessageId, stock::Message)>,
}

impl Stock {
    async fn new(over: Over, key: &Keypair) -> Self {
        Self::with_limit(over, key, 1 << 20).await
    }

    async fn with_limit(over: Over, key: &Keypair, bytes: usize) -> Self {
        // Ids as Kubo makes them.
        let config = stock::ConfigBuilder::default()
            .validation_mode(stock::ValidationMode::Strict)
            .heartbeat_interval(Duration::from_millis(200))
            .message_id_fn(|message| {
                let mut id = message.source.map(|s| s.to_bytes()).unwrap_or_default();
                id.extend(message.sequence_number.unwrap_or_default().to_be_bytes());
                id.into()
            })
            .max_transmit_size(bytes)
            .build()
            .unwrap();
        let signed = stock::MessageAuthenticity::Signed(key.clone());
        let behaviour = stock::Behaviour::new(signed, config).unwrap();
        let (swarm, address) = over.swarm(key, behaviour).await;
        Self {
            swarm,
            address,
            got: Vec::new(),
        }
    }

    fn id(&self) -> PeerId {
        *self.swarm.local_peer_id()
    }

    fn subscribe(&mut self, topic: &Topic) {
        let topic = stock::IdentTopic::new(topic.as_str());
        self.swarm.behaviour_mut().subscribe(&topic).unwrap();
    }

    fn publish(&mut self, topic: &Topic, data: &[u8]) -> stock::MessageId {
        let topic = stock::IdentTopic::new(topic.as_str());
        self.swarm.behaviour_mut().publish(topic, data).unwrap()
    }

    fn knows(&self, topic: &Topic, peer: PeerId) -> bool {
        let hash = stock::IdentTopic::new(topic.as_str()).hash();
        let mut all = self.swarm.behaviour().all_peers();
        all.any(|(id, topics)| *id == peer && topics.contains(&&hash))
    }

    fn in_mesh(&self, topic: &Topic, peer: PeerId) -> bool {
        let hash = stock::IdentTopic::new(topic.as_str()).hash();
        self.swarm.behaviour().mesh_peers(&hash).any(|p| *p == peer)
    }

    fn turn(&mut self, cx: &mut Context<'_>) -> bool {
        let mut any = false;
        while let Poll::Ready(Some(event)) = self.swarm.poll_next_unpin(cx) {
            any = true;
            if let SwarmEvent::Behaviour(stock::Event::Message {
                message_id,
                message,
                ..
            }) = event
            {
                self.got.push((message_id, message));
            }
        }
        any
    }
}

/// Drives both until `done`.
async fn run(
    ours: &mut Node,
    theirs: &mut Stock,
    mut done: impl FnMut(&mut Node, &mut Stock) -> bool,
) {
    let run = std::future::poll_fn(|cx| {
        loop {
            if done(ours, theirs) {
                return Poll::Ready(());
            }
            if !(ours.turn(cx) | theirs.turn(cx)) {
                return Poll::Pending;
            }
        }
    });
    tokio::time::timeout(MINUTE, run)
        .await
        .expect("both sides reach the state that the test waits for");
}

async fn join(ours: &mut Node, theirs: &mut Stock, topic: &Topic) {
    let (us, them) = (ours.id(), theirs.id());
    ours.swarm.dial(theirs.address.clone()).unwrap();
    run(ours, theirs, |ours, theirs| {
        ours.knows(topic, them) && theirs.knows(topic, us)
    })
    .await;
}

async fn s4_20_both_ways_with_the_stock_engine_and_the_same_ids(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut ours = Node::new(over, Config::default()).await;
    let mut theirs = Stock::new(over, &Keypair::generate_ed25519()).await;
    ours.subscribe(&alarms);
    theirs.subscribe(&alarms);
    join(&mut ours, &mut theirs, &alarms).await;
    let mut sent = ours
        .gossip_mut()
        .publish(&alarms, "from us", Mode::Wait(MINUTE))
        .unwrap();
    let mut receipt = None;
    run(&mut ours, &mut theirs, |_, theirs| {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if receipt.is_none()
            && let Poll::Ready(result) = std::pin::Pin::new(&mut sent).poll(&mut cx)
        {
            receipt = Some(result.unwrap());
        }
        receipt.is_some() && !theirs.got.is_empty()
    })
    .await;
    let id = theirs.publish(&alarms, b"from them");
    run(&mut ours, &mut theirs, |ours, _| !ours.got.is_empty()).await;

    let (id_there, there) = &theirs.got[0];
    assert_eq!(
        (&there.data[..], there.source),
        (&b"from us"[..], Some(ours.id()))
    );
    assert_eq!(id_there.0, receipt.unwrap().id.as_bytes());
    let here = &ours.got[0];
    assert_eq!(
        (&here.data[..], here.source),
        (&b"from them"[..], Some(theirs.id()))
    );
    assert_eq!(here.id, MessageId::new(id.0));
}

async fn s4_20_either_side_restarts_with_the_same_identity(over: Over) {
    let alarms = topic("line-1/alarms");
    let (our_key, their_key) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let mut ours = Node::with_key(over, Config::default(), &our_key).await;
    let mut theirs = Stock::new(over, &their_key).await;
    ours.subscribe(&alarms);
    theirs.subscribe(&alarms);
    for round in 0..8_u8 {
        if round % 2 == 1 {
            ours = Node::with_key(over, Config::default(), &our_key).await;
            ours.subscribe(&alarms);
        } else if round > 0 {
            theirs = Stock::new(over, &their_key).await;
            theirs.subscribe(&alarms);
        }
        join(&mut ours, &mut theirs, &alarms).await;
        let publish = ours
            .gossip_mut()
            .publish(&alarms, vec![round], Mode::Wait(MINUTE));
        publish.unwrap().detach();
        theirs.publish(&alarms, &[100 + round]);
        run(&mut ours, &mut theirs, |ours, theirs| {
            theirs.got.iter().any(|(_, m)| m.data == [round])
                && ours.got.iter().any(|m| m.data[..] == [100 + round])
        })
        .await;
    }
}

/// Whoever closes the connection, and however often: a message goes each way after each time.
async fn s4_20_a_thousand_reconnects_with_the_same_identity(over: Over) {
    let alarms = topic("line-1/alarms");
    let (our_key, their_key) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let mut ours = Node::with_key(over, Config::default(), &our_key).await;
    let mut theirs = Stock::new(over, &their_key).await;
    let (us, them) = (ours.id(), theirs.id());
    ours.subscribe(&alarms);
    theirs.subscribe(&alarms);
    for round in 0..1000_u32 {
        // Every tenth time as a program that was started anew.
        if round % 10 == 9 {
            ours = Node::with_key(over, Config::default(), &our_key).await;
            ours.subscribe(&alarms);
        }
        join(&mut ours, &mut theirs, &alarms).await;
        let data = round.to_be_bytes();
        let publish = ours
            .gossip_mut()
            .publish(&alarms, data.to_vec(), Mode::Wait(MINUTE));
        publish.unwrap().detach();
        theirs.publish(&alarms, &[&data[..], b"!"].concat());
        run(&mut ours, &mut theirs, |ours, theirs| {
            theirs.got.iter().any(|(_, m)| m.data == data)
                && ours.got.iter().any(|m| m.data[..4] == data)
        })
        .await;
        (ours.got, theirs.got) = (Vec::new(), Vec::new());
        let closed = match round % 2 {
            0 => ours.swarm.disconnect_peer_id(them),
            _ => theirs.swarm.disconnect_peer_id(us),
        };
        assert!(closed.is_ok());
        run(&mut ours, &mut theirs, |ours, theirs| {
            !ours.swarm.is_connected(&them) && !theirs.swarm.is_connected(&us)
        })
        .await;
    }
    let counters = ours.gossip().counters();
    assert_eq!(
        (counters.stalls, counters.malformed, counters.bans),
        (0, 0, 0)
    );
}

async fn our_mesh_and_theirs_join(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut ours = Node::new(over, Config::default()).await;
    let mut theirs = Stock::new(over, &Keypair::generate_ed25519()).await;
    let (us, them) = (ours.id(), theirs.id());
    ours.subscribe(&alarms);
    theirs.subscribe(&alarms);
    join(&mut ours, &mut theirs, &alarms).await;
    run(&mut ours, &mut theirs, |ours, theirs| {
        theirs.in_mesh(&alarms, us) && ours.gossip().mesh(&alarms).contains(&them)
    })
    .await;
}

/// It closes its stream at each message above 64 KiB, and takes no sixth stream on one connection: nothing was ever sent to it again.
async fn g9_a_stock_engine_of_its_default_limit_is_heard_and_hears_though_large_messages_close_its_streams(
    over: Over,
) {
    let alarms = topic("line-1/alarms");
    let key = Keypair::generate_ed25519();
    let clock = HandClock::default();
    let behaviour = Behaviour::new(key.clone(), Config::default()).unwrap();
    let mut ours = Node::with_behaviour(over, behaviour.with_clock(clock.clone()), &key).await;
    let mut theirs = Stock::with_limit(over, &Keypair::generate_ed25519(), 1 << 16).await;
    ours.subscribe(&alarms);
    theirs.subscribe(&alarms);
    join(&mut ours, &mut theirs, &alarms).await;
    // Its heartbeat goes by the real clock, ours ten times as fast.
    let turns = tokio::spawn(async move {
        let mut often = tokio::time::interval(Duration::from_millis(10));
        loop {
            often.tick().await;
            clock.turn(Duration::from_millis(100));
        }
    });
    let (mut last, mut sent) = (Duration::ZERO, 0_u32);
    run(&mut ours, &mut theirs, |ours, theirs| {
        let gossip = ours.gossip_mut();
        if gossip.now() >= last + Duration::from_millis(500) {
            last = gossip.now();
            sent += 1;
            let mut data = sent.to_be_bytes().to_vec();
            let large = gossip.counters().closed_stalled == 0;
            data.resize(if large { 100_000 } else { 4 }, 0);
            if let Ok(publish) = gossip.publish(&alarms, data, Mode::Try) {
                publish.detach();
            }
        }
        !theirs.got.is_empty()
    })
    .await;
    turns.abort();
    assert!(theirs.got.iter().all(|(_, m)| m.data.len() == 4));
}
