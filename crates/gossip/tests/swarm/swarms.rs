//! Nodes in real swarms: what an application sees.

use std::sync::Arc;
use std::time::Duration;

use crate::rig::{Node, Over, join, over_each_transport, run_until, run_with, topic};
use futures::AsyncWriteExt;
use gemba_gossip::{
    Behaviour, Buffer, Config, Delivery, FileReplay, FileSequence, Full, Mode, PublishError,
    RelayPolicy, TopicOptions, Verdict, WaitCause,
};
use libp2p_identity::Keypair;

const MINUTE: Duration = Duration::from_secs(60);

over_each_transport! {
    #[tokio::test]
    async fn a_message_arrives_from_the_first_moment_both_ways;
    #[tokio::test]
    async fn a_publisher_waits_as_long_as_it_says;
    #[tokio::test]
    async fn what_is_held_goes_to_the_first_subscriber;
    #[tokio::test]
    async fn a_slow_reader_is_told_what_it_lost_and_holds_up_nobody;
    #[tokio::test]
    async fn with_the_last_subscription_the_topic_is_left;
    #[tokio::test]
    async fn validators_judge_on_workers_and_by_events;
    #[tokio::test]
    async fn a_second_connection_takes_over_when_the_first_goes;
    #[tokio::test]
    async fn frames_of_every_size_arrive_as_they_were;
    #[tokio::test]
    async fn g8_s0_31_a_line_of_which_only_the_ends_read_delivers_everything;
}

/// Threat G8: lines of three and of five over real connections. Those between read nothing and carry everything.
async fn g8_s0_31_a_line_of_which_only_the_ends_read_delivers_everything(over: Over) {
    const EACH: usize = 500;
    let alarms = topic("line-1/alarms");
    let relay = RelayPolicy::Bridge { max_topics: 4 };
    for len in [3, 5] {
        let mut line = Vec::new();
        for _ in 0..len {
            let config = Config::builder().relay(relay.clone()).build().unwrap();
            let mut node = Node::new(over, config).await;
            if let Some(before) = line.last() {
                let before: &Node = before;
                node.swarm.dial(before.address.clone()).unwrap();
            }
            line.push(node);
        }
        line[0].subscribe(&alarms);
        line[len - 1].subscribe(&alarms);
        let beside = [line[1].id(), line[len - 2].id()];
        let mut all: Vec<&mut Node> = line.iter_mut().collect();
        run_until(&mut all, |n| {
            n[0].knows(&alarms, beside[0]) && n[len - 1].knows(&alarms, beside[1])
        })
        .await;
        for n in 0..EACH as u32 {
            for end in [0, len - 1] {
                let data = n.to_be_bytes().to_vec();
                let wait = Mode::Wait(MINUTE);
                let publishing = all[end].gossip_mut().publish(&alarms, data, wait).unwrap();
                run_with(&mut all, publishing).await.unwrap();
            }
        }
        run_until(&mut all, |n| {
            n[0].got.len() == EACH && n[len - 1].got.len() == EACH
        })
        .await;
        for end in [0, len - 1] {
            let got: Vec<Vec<u8>> = all[end].data();
            let wanted: Vec<Vec<u8>> = (0..EACH as u32).map(|n| n.to_be_bytes().to_vec()).collect();
            assert_eq!(got, wanted, "in order, all of them");
        }
        for between in &all[1..len - 1] {
            assert_eq!(between.got.len(), 0);
            assert_eq!(between.gossip().counters().relayed, 2 * EACH as u64);
            let tables = between.gossip().tables();
            assert!(tables > 100_000, "two authors write much: {tables} bytes");
        }
    }
}

async fn a_message_arrives_from_the_first_moment_both_ways(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    a.subscribe(&alarms);
    b.gossip_mut().listen(&alarms).unwrap();
    join(&mut a, &mut b, &alarms).await;
    let sent = a
        .gossip_mut()
        .publish(&alarms, "low", Mode::Wait(MINUTE))
        .unwrap();
    let receipt = run_with(&mut [&mut a, &mut b], sent).await.unwrap();
    assert_eq!((receipt.queued_to, receipt.refused_by), (1, 0));
    run_until(&mut [&mut a, &mut b], |n| !n[1].got.is_empty()).await;
    b.gossip_mut()
        .publish(&alarms, "seen", Mode::Wait(MINUTE))
        .unwrap()
        .detach();
    run_until(&mut [&mut a, &mut b], |n| !n[0].got.is_empty()).await;

    let message = &b.got[0];
    assert_eq!(message.data, "low");
    assert_eq!(
        (message.source, message.received_from),
        (Some(a.id()), Some(a.id()))
    );
    assert_eq!((&message.id, message.seqno), (&receipt.id, receipt.seqno));
    assert_eq!(a.data(), [b"seen"]);
    assert_eq!(a.gossip().counters().verified, 1);
    assert_eq!(b.gossip().counters().verified, 1);
}

async fn a_publisher_waits_as_long_as_it_says(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    // Nobody is there.
    let refused = a.gossip_mut().publish(&alarms, "1", Mode::Try).unwrap_err();
    assert_eq!(refused, PublishError::NoPeers);
    let soon = Duration::from_millis(50);
    let waits = a
        .gossip_mut()
        .publish(&alarms, "2", Mode::Wait(soon))
        .unwrap();
    let cause = WaitCause::Peers;
    let given_up = run_with(&mut [&mut a], waits).await;
    assert_eq!(given_up, Err(PublishError::Expired { cause }));
    // Who loses interest takes the message along.
    let waits = a
        .gossip_mut()
        .publish(&alarms, "3", Mode::Wait(MINUTE))
        .unwrap();
    drop(waits);
    let kept = a
        .gossip_mut()
        .publish(&alarms, "4", Mode::Wait(MINUTE))
        .unwrap();
    let mut b = Node::new(over, Config::default()).await;
    b.subscribe(&alarms);
    b.swarm.dial(a.address.clone()).unwrap();
    run_with(&mut [&mut a, &mut b], kept).await.unwrap();
    run_until(&mut [&mut a, &mut b], |n| !n[1].got.is_empty()).await;
    assert_eq!(b.data(), [b"4"]);
}

async fn what_is_held_goes_to_the_first_subscriber(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    for n in ["1", "2", "3"] {
        a.gossip_mut()
            .publish(&alarms, n, Mode::Hold(MINUTE))
            .unwrap()
            .detach();
    }
    let mut b = Node::new(over, Config::default()).await;
    b.subscribe(&alarms);
    b.swarm.dial(a.address.clone()).unwrap();
    run_until(&mut [&mut a, &mut b], |n| n[1].got.len() == 3).await;
    assert_eq!(b.data(), [b"1", b"2", b"3"]);
}

async fn a_slow_reader_is_told_what_it_lost_and_holds_up_nobody(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    let buffer = |full| Buffer {
        messages: 10,
        full,
        ..Buffer::default()
    };
    let mut slow = b
        .gossip_mut()
        .subscribe(&alarms, buffer(Full::DropOldest))
        .unwrap();
    let mut first = b
        .gossip_mut()
        .subscribe(&alarms, buffer(Full::DropNewest))
        .unwrap();
    b.subscribe(&alarms);
    a.subscribe(&alarms);
    join(&mut a, &mut b, &alarms).await;
    for n in 0..100_u8 {
        a.gossip_mut()
            .publish(&alarms, vec![n], Mode::Wait(MINUTE))
            .unwrap()
            .detach();
    }
    run_until(&mut [&mut a, &mut b], |n| n[1].got.len() == 100).await;
    let order: Vec<_> = b.got.iter().map(|m| m.data[0]).collect();
    assert!(order.iter().copied().eq(0..100), "{order:?}");
    assert_eq!(b.lagged, 0);
    assert_eq!(slow.try_next(), Some(Delivery::Lagged(90)));
    assert!(matches!(slow.try_next(), Some(Delivery::Message(m)) if m.data[..] == [90]));
    assert!(matches!(first.try_next(), Some(Delivery::Message(m)) if m.data[..] == [0]));
    let rest: Vec<_> = std::iter::from_fn(|| first.try_next()).collect();
    assert_eq!((rest.len(), rest.last()), (10, Some(&Delivery::Lagged(90))));
    assert_eq!(b.gossip().lagged(), 180);
}

async fn with_the_last_subscription_the_topic_is_left(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    let b_id = b.id();
    a.subscribe(&alarms);
    b.subscribe(&alarms);
    b.subscribe(&alarms);
    join(&mut a, &mut b, &alarms).await;
    b.subscriptions.pop();
    run_until(&mut [&mut a, &mut b], |n| n[1].gossip().topics().len() == 1).await;
    b.subscriptions.pop();
    run_until(&mut [&mut a, &mut b], |n| !n[0].knows(&alarms, b_id)).await;
    assert!(b.gossip().topics().is_empty());
    let mut ended = a.subscriptions.pop().unwrap();
    assert!(a.gossip_mut().unsubscribe(&alarms));
    assert_eq!(run_with(&mut [&mut a], ended.recv()).await, None);
}

async fn validators_judge_on_workers_and_by_events(over: Over) {
    let config = Config::builder()
        .topic("v/*", TopicOptions::default().with_validate(true))
        .build()
        .unwrap();
    let (worker, event) = (topic("v/worker"), topic("v/event"));
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, config).await;
    for topic in [&worker, &event] {
        a.subscribe(topic);
        b.subscribe(topic);
    }
    let judge = |bad: &'static [u8]| -> gemba_gossip::Validator {
        Arc::new(move |message| match message.data == bad {
            true => Verdict::Ignore,
            false => Verdict::Accept,
        })
    };
    b.gossip_mut().set_validator(&worker, Some(judge(b"1")));
    b.judge = Some(judge(b"2"));
    join(&mut a, &mut b, &worker).await;
    join(&mut a, &mut b, &event).await;
    for topic in [&worker, &event] {
        for n in ["1", "2", "3"] {
            a.gossip_mut()
                .publish(topic, n, Mode::Wait(MINUTE))
                .unwrap()
                .detach();
        }
    }
    run_until(&mut [&mut a, &mut b], |n| n[1].got.len() == 4).await;
    let mut got: Vec<_> = b
        .got
        .iter()
        .map(|m| (m.topic.as_str(), &m.data[..]))
        .collect();
    got.sort_unstable();
    let want: [(&str, &[u8]); 4] = [
        ("v/event", b"1"),
        ("v/event", b"3"),
        ("v/worker", b"2"),
        ("v/worker", b"3"),
    ];
    assert_eq!(got, want);
    assert_eq!(b.gossip().counters().validated_ignore, 2);
}

async fn a_second_connection_takes_over_when_the_first_goes(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    let (a_id, b_id) = (a.id(), b.id());
    a.subscribe(&alarms);
    b.subscribe(&alarms);
    join(&mut a, &mut b, &alarms).await;
    let first = a.open.clone();
    let again = libp2p_swarm::dial_opts::DialOpts::unknown_peer_id();
    b.swarm
        .dial(again.address(a.address.clone()).build())
        .unwrap();
    run_until(&mut [&mut a, &mut b], |n| {
        n.iter().all(|n| {
            n.swarm
                .network_info()
                .connection_counters()
                .num_established()
                == 2
        })
    })
    .await;
    assert_eq!(first.len(), 1);
    assert!(a.swarm.close_connection(first[0]));
    run_until(&mut [&mut a, &mut b], |n| {
        n.iter().all(|n| {
            n.swarm
                .network_info()
                .connection_counters()
                .num_established()
                == 1
        })
    })
    .await;
    assert_eq!(a.gossip().peers(), [b_id]);
    assert_eq!(b.gossip().peers(), [a_id]);
    for n in 0..10_u8 {
        a.gossip_mut()
            .publish(&alarms, vec![n], Mode::Wait(MINUTE))
            .unwrap()
            .detach();
        b.gossip_mut()
            .publish(&alarms, vec![n], Mode::Wait(MINUTE))
            .unwrap()
            .detach();
    }
    run_until(&mut [&mut a, &mut b], |n| {
        n.iter().all(|n| n.got.len() == 10)
    })
    .await;
}

async fn frames_of_every_size_arrive_as_they_were(over: Over) {
    let alarms = topic("line-1/alarms");
    let mut a = Node::new(over, Config::default()).await;
    let mut b = Node::new(over, Config::default()).await;
    a.subscribe(&alarms);
    b.subscribe(&alarms);
    join(&mut a, &mut b, &alarms).await;
    let too_large = a.gossip_mut().publish(&alarms, vec![0; 1 << 20], Mode::Try);
    let Err(PublishError::TooLarge { max, .. }) = too_large else {
        panic!("{too_large:?}");
    };
    // An RPC of 1,048,576 bytes: headers, author, number, topic and signature are all that is not payload.
    assert_eq!(max, (1 << 20) - (4 + 40 + 4 + 10 + 15 + 66));
    let sizes = [
        0, 1, 100, 8_000, 16_200, 16_384, 20_000, 65_536, 300_000, max,
    ];
    for (n, size) in sizes.into_iter().enumerate() {
        let data = vec![n as u8; size];
        a.gossip_mut()
            .publish(&alarms, data, Mode::Wait(MINUTE))
            .unwrap()
            .detach();
    }
    let one_more = a.gossip_mut().publish(&alarms, vec![0; max + 1], Mode::Try);
    assert!(matches!(one_more, Err(PublishError::TooLarge { .. })));
    run_until(&mut [&mut a, &mut b], |n| n[1].got.len() == sizes.len()).await;
    for (n, size) in sizes.into_iter().enumerate() {
        assert_eq!(b.got[n].data, vec![n as u8; size], "{size}");
    }
}

/// Threat G11: numbers grow over restarts, also where the clock does not.
#[tokio::test]
async fn g11_a_restarted_node_goes_on_behind_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sequence");
    let key = Keypair::generate_ed25519();
    let alarms = topic("line-1/alarms");
    let mut b = Node::new(Over::Memory, Config::default()).await;
    b.subscribe(&alarms);
    for n in 1..=3 {
        let gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
        let gossip = gossip.with_sequence(FileSequence::new(&path));
        let mut a = Node::with_behaviour(Over::Memory, gossip, &key).await;
        a.subscribe(&alarms);
        join(&mut b, &mut a, &alarms).await;
        a.gossip_mut()
            .publish(&alarms, "on", Mode::Wait(MINUTE))
            .unwrap()
            .detach();
        run_until(&mut [&mut a, &mut b], |nodes| nodes[1].got.len() == n).await;
    }
    let numbers: Vec<_> = b.got.iter().map(|m| m.seqno.unwrap()).collect();
    assert!(
        numbers.windows(2).all(|w| w[1] > w[0] + (1 << 19)),
        "{numbers:?}"
    );
}

/// GO-9: a node that is started again does not deliver what its neighbours send again: here the author itself, whose history answers for a
/// while, and a neighbour that echoes everything.
#[tokio::test]
async fn go_9_a_restarted_node_does_not_deliver_what_is_echoed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("authors");
    let (key, author) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let alarms = topic("line-1/alarms");
    let echo: Vec<_> = (1..=100_u64)
        .map(|n| crate::rig::raw::signed(&author, n, alarms.as_str(), &n.to_be_bytes()))
        .collect();
    for start in 1..=3_u64 {
        let gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
        let gossip = gossip.with_replay(FileReplay::new(&path, 1024)).unwrap();
        let mut node = Node::with_behaviour(Over::Memory, gossip, &key).await;
        node.subscribe(&alarms);
        let node = crate::rig::raw::Running::start(node);
        let peer = Keypair::generate_ed25519();
        let mut control = crate::rig::raw::dial(Over::Memory, &peer, &node.address).await;
        let mut stream = control
            .open_stream(node.id, crate::rig::raw::V1_2)
            .await
            .unwrap();
        let new = crate::rig::raw::signed(&author, 100 + start, alarms.as_str(), b"new");
        for message in echo.iter().chain([&new]) {
            stream
                .write_all(&crate::rig::raw::framed(message))
                .await
                .unwrap();
        }
        stream.flush().await.unwrap();
        node.until(|node| {
            node.turn(&mut std::task::Context::from_waker(std::task::Waker::noop()));
            node.got.iter().any(|m| m.data == "new")
        })
        .await;
        let came = node.ask(|node| node.got.len()).await;
        assert_eq!(came, if start == 1 { 101 } else { 1 }, "start {start}");
        // Ends in an orderly way.
        node.stop().await;
    }
}

#[tokio::test]
async fn a_damaged_store_is_said_and_nothing_is_published() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("sequence");
    std::fs::write(&path, "nonsense").unwrap();
    let key = Keypair::generate_ed25519();
    let gossip = Behaviour::new(key.clone(), Config::default()).unwrap();
    let gossip = gossip.with_sequence(FileSequence::new(&path));
    let mut a = Node::with_behaviour(Over::Memory, gossip, &key).await;
    let mut b = Node::new(Over::Memory, Config::default()).await;
    let alarms = topic("line-1/alarms");
    b.subscribe(&alarms);
    a.subscribe(&alarms);
    join(&mut a, &mut b, &alarms).await;
    let soon = Duration::from_millis(100);
    let waits = a
        .gossip_mut()
        .publish(&alarms, "1", Mode::Wait(soon))
        .unwrap();
    let given_up = run_with(&mut [&mut a, &mut b], waits).await;
    let cause = WaitCause::Sequence;
    assert_eq!(given_up, Err(PublishError::Expired { cause }));
    assert!(a.failed.as_ref().unwrap().to_string().contains("sequence"));
}
