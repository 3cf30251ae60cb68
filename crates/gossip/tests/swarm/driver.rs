//! The driver under what networks do: streams that die without a word, peers that hold memory, peers that come back, those that may not.
//! Time is turned by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::rig::raw::{Fault, Raw, Running, V1_2, dial, framed, signed};
use crate::rig::{Node, Over, topic};
use bytes::Bytes;
use futures::{AsyncReadExt, AsyncWriteExt, StreamExt};
use gemba_gossip::{Behaviour, Config, Event, HandClock, Mode, StreamReport};
use libp2p_identity::Keypair;
use libp2p_swarm::{Stream, Swarm, SwarmEvent};
use multiaddr::Multiaddr;

const TOPIC: &str = "line-1/alarms";
const QUARTER: Duration = Duration::from_millis(250);
const FRAME: usize = 1 << 20;

fn secs(n: u64) -> Duration {
    Duration::from_secs(n)
}

/// Lets everything happen that follows from what happened. One thread drives all tasks, so that a pass gives each of them its turn.
async fn settle() {
    for _ in 0..80 {
        tokio::task::yield_now().await;
    }
}

async fn pass(clock: &HandClock, time: Duration) {
    let end = clock.now() + time;
    while clock.now() < end {
        clock.turn(QUARTER);
        settle().await;
    }
}

async fn node_with(config: Config, key: &Keypair) -> (Running, HandClock) {
    let clock = HandClock::default();
    let behaviour = Behaviour::new(key.clone(), config).unwrap();
    let behaviour = behaviour.with_clock(clock.clone());
    let mut node = Node::with_behaviour(Over::Memory, behaviour, key).await;
    node.subscribe(&topic(TOPIC));
    (Running::start(node), clock)
}

async fn node(config: Config) -> (Running, HandClock) {
    node_with(config, &Keypair::generate_ed25519()).await
}

/// S4.17, S4.19, threat G9: streams whose other end is silent, deaf or gone are found within 30 s and carry messages again within 60 s, whether
/// there is traffic or not, without anybody's help.
#[tokio::test]
async fn g9_s4_17_s4_19_a_thousand_streams_that_die_silently_are_found_in_30_s_and_healed_in_60() {
    const PEERS: usize = 10;
    let rounds = 100;
    let (node, clock) = node(Config::default()).await;
    let mut peers = Vec::new();
    for _ in 0..PEERS {
        let peer = Raw::new(Over::Memory, node.id, &topic(TOPIC)).await;
        let address = peer.address.clone();
        // Ours, so that what is closed is dialled again.
        node.ask(move |node| node.swarm.dial(address).unwrap())
            .await;
        peers.push(peer);
    }
    let all = |node: &mut Node| node.gossip().subscribers(&topic(TOPIC)).len() == PEERS;
    node.until(all).await;
    let (mut slowest_found, mut slowest_healed) = (Duration::ZERO, Duration::ZERO);
    let mut canary = 0_u64;
    for round in 0..rounds {
        // Long enough for an answer to be there; every fourth round follows at once, so that a stream fails twice.
        pass(&clock, secs(if round % 4 == 3 { 1 } else { 15 })).await;
        let begun = clock.now();
        for (n, peer) in peers.iter().enumerate() {
            peer.fail(match (n as u64 + round) % 3 {
                0 => Fault::Swallow,
                1 => Fault::Deaf,
                _ => Fault::Reset,
            });
        }
        let failed: Vec<_> = peers.iter().map(Raw::streams).collect();
        let (mut found, mut healed) = (vec![None; PEERS], vec![None; PEERS]);
        while healed.contains(&None) {
            let took = clock.now() - begun;
            assert!(took <= secs(60), "round {round}: healed {healed:?}");
            // In half of the rounds nothing is said until all are found.
            if round % 2 == 0 || !found.contains(&None) {
                canary += 1;
                let data = Bytes::from(canary.to_string());
                let sent = data.clone();
                let publish = move |node: &mut Node| {
                    let sending = node.gossip_mut().publish(&topic(TOPIC), sent, Mode::Try);
                    if let Ok(sending) = sending {
                        sending.detach();
                    }
                };
                node.ask(publish).await;
                // It is signed on a thread.
                for _ in 0..20 {
                    settle().await;
                    if peers.iter().any(|peer| peer.got(&data)) {
                        break;
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
                settle().await;
                for (n, peer) in peers.iter().enumerate() {
                    if healed[n].is_none() && peer.streams() > failed[n] && peer.got(&data) {
                        healed[n] = Some(took);
                    }
                }
            }
            let ids: Vec<_> = peers.iter().map(|peer| peer.id).collect();
            let broken = move |node: &mut Node| -> Vec<bool> {
                let open = |id| {
                    node.gossip()
                        .why(id)
                        .is_some_and(|w| w.stream == StreamReport::Open)
                };
                ids.iter().map(|id| !open(id)).collect()
            };
            for (n, broken) in node.ask(broken).await.into_iter().enumerate() {
                if found[n].is_none() && (broken || peers[n].streams() > failed[n]) {
                    found[n] = Some(took);
                    assert!(took <= secs(30), "round {round}: found {found:?}");
                }
            }
            pass(&clock, secs(1)).await;
        }
        slowest_found = slowest_found.max(found.into_iter().flatten().max().unwrap());
        slowest_healed = slowest_healed.max(healed.into_iter().flatten().max().unwrap());
    }
    let counters = node.ask(|node| node.gossip().counters()).await;
    println!(
        "{} faults: the last found after {slowest_found:?}, the last healed after {slowest_healed:?}; {} stalls, {} connections closed",
        rounds * PEERS as u64,
        counters.stalls,
        counters.closed_stalled
    );
    assert!(
        counters.stalls >= rounds * 3 && counters.closed_stalled > 0,
        "{counters:?}"
    );
}

/// Reads what is written until the node resets the stream or ends it.
async fn until_reset(stream: &mut Stream) {
    let mut byte = [0];
    while stream.read(&mut byte).await.is_ok_and(|n| n > 0) {}
}

async fn write(stream: &mut Stream, bytes: &[u8]) {
    stream.write_all(bytes).await.unwrap();
    stream.flush().await.unwrap();
}

/// A frame of one message that is about so long.
fn large(author: &Keypair, number: u64, len: usize) -> Vec<u8> {
    framed(&signed(author, number, TOPIC, &vec![7; len]))
}

/// GO-23: 500 peers that each send half of an RPC of 1 MiB hold what the pool holds and no more; a peer that is known to finish its RPCs,
/// and whoever sends small ones, does not notice; and those that stand still are given up, one after the other, while others wait.
#[tokio::test]
async fn go_23_500_peers_that_send_half_of_a_mebibyte_hold_8_mib_together() {
    const PEERS: usize = 500;
    let (node, clock) = node(Config::default()).await;
    let author = Keypair::generate_ed25519();
    let mut known = dial(Over::Memory, &Keypair::generate_ed25519(), &node.address).await;
    let mut known = known.open_stream(node.id, V1_2).await.unwrap();
    write(&mut known, &large(&author, 1, 1_000_000)).await;
    node.until(|node| node.gossip().counters().delivered == 1)
        .await;
    assert_eq!(node.ask(|node| node.gossip().receiving()).await, 0);

    let given_up = Arc::new(AtomicUsize::new(0));
    for n in 0..PEERS {
        let mut control = dial(Over::Memory, &Keypair::generate_ed25519(), &node.address).await;
        let (id, given_up) = (node.id, given_up.clone());
        tokio::spawn(async move {
            let stream = control.open_stream(id, V1_2).await.unwrap();
            let mut half = framed(&vec![0; FRAME]);
            half.truncate(FRAME / 2 + n);
            // Written as far as windows go.
            let (mut reads, mut writes) = stream.split();
            let write = async {
                let _ = writes.write_all(&half).await;
                let _ = writes.flush().await;
                std::future::pending::<()>().await;
            };
            let read = async {
                let mut byte = [0];
                while reads.read(&mut byte).await.is_ok_and(|n| n > 0) {}
            };
            futures::future::select(std::pin::pin!(write), std::pin::pin!(read)).await;
            given_up.fetch_add(1, Ordering::Relaxed);
        });
    }
    // Newcomers have half of the pool.
    node.until(|node| node.gossip().receiving() == 4 * FRAME)
        .await;
    settle().await;
    let held = node.ask(|node| node.gossip().receiving()).await;
    assert_eq!(held, 4 * FRAME);
    write(&mut known, &large(&author, 2, 1_000_000)).await;
    node.until(|node| node.gossip().counters().delivered == 2)
        .await;
    let mut small = dial(Over::Memory, &Keypair::generate_ed25519(), &node.address).await;
    let mut small = small.open_stream(node.id, V1_2).await.unwrap();
    write(&mut small, &large(&author, 3, 10_000)).await;
    node.until(|node| node.gossip().counters().delivered == 3)
        .await;

    assert_eq!(given_up.load(Ordering::Relaxed), 0);
    let begun = clock.now();
    while given_up.load(Ordering::Relaxed) < PEERS - 4 {
        assert!(clock.now() - begun < secs(600), "{given_up:?}");
        clock.turn(secs(2));
        settle().await;
        let held = node.ask(|node| node.gossip().receiving()).await;
        assert!(held <= 4 * FRAME, "{held}");
    }
    // The last ones wait for nobody: they may take as long as a slow line takes.
    for _ in 0..3 {
        clock.turn(secs(45));
        settle().await;
    }
    assert_eq!(given_up.load(Ordering::Relaxed), PEERS);
    assert_eq!(node.ask(|node| node.gossip().receiving()).await, 0);
}

/// Counts dials.
async fn dials(node: &Running) -> u64 {
    node.ask(|node| node.dials).await
}

/// A direct peer is dialled by itself: at the start, and after pauses that grow while it is away; and it is there again when it comes back.
#[tokio::test]
async fn g7_direct_peers_are_dialled_and_missed_ones_again_with_pauses_that_grow() {
    let anchor = Keypair::generate_ed25519();
    let anchor_id = anchor.public().to_peer_id();
    let config = Config::builder().direct([anchor_id]).build().unwrap();
    let places: [Multiaddr; 2] = ["/memory/4711", "/memory/4712"].map(|p| p.parse().unwrap());
    let (node, clock) = node(config).await;
    for place in places.clone() {
        let add = move |node: &mut Node| node.gossip_mut().add_direct_address(anchor_id, place);
        node.ask(add).await;
    }
    pass(&clock, secs(600)).await;
    // 5, 10, 20 … s, each a quarter shorter at most, and never more than 5 min.
    let while_away = dials(&node).await;
    assert!(
        (7..=10).contains(&while_away),
        "{while_away} dials in 10 min"
    );

    for place in places {
        let streams = libp2p_stream::Behaviour::new();
        let mut swarm: Swarm<_> = Over::Memory.swarm_of(&anchor, streams);
        swarm.listen_on(place).unwrap();
        let there = tokio::spawn(async move {
            loop {
                if let SwarmEvent::ConnectionClosed { .. } = swarm.select_next_some().await {
                    return;
                }
            }
        });
        pass(&clock, secs(300)).await;
        let connected = move |node: &mut Node| node.gossip().peers().contains(&anchor_id);
        assert!(node.ask(connected).await);
        let before = dials(&node).await;
        pass(&clock, secs(300)).await;
        assert_eq!(dials(&node).await, before, "it is connected");
        there.abort();
        drop(there.await);
        pass(&clock, secs(1)).await;
        assert!(!node.ask(connected).await);
    }
}

/// GO-14: the second stall closes the connection. It is dialled anew, by itself, also when the first attempts find nobody.
#[tokio::test]
async fn go_14_after_the_second_stall_the_connection_is_made_anew() {
    let (node, clock) = node(Config::default()).await;
    let peer = Raw::new(Over::Memory, node.id, &topic(TOPIC)).await;
    let (id, address) = (peer.id, peer.address.clone());
    node.ask(move |node| node.swarm.dial(address).unwrap())
        .await;
    node.until(move |node| node.knows(&topic(TOPIC), id)).await;
    pass(&clock, secs(12)).await;
    for stalls in 1..=2 {
        let streams = peer.streams();
        peer.fail(Fault::Deaf);
        pass(&clock, secs(25)).await;
        let counters = node.ask(|node| node.gossip().counters()).await;
        assert_eq!(
            (counters.stalls, counters.closed_stalled),
            (stalls, stalls / 2)
        );
        assert!(
            peer.streams() > streams,
            "it was opened again after stall {stalls}"
        );
    }
    node.until(move |node| node.knows(&topic(TOPIC), id)).await;
    let (dials, stalled) = node
        .ask(move |node| {
            let stalled = Event::PeerStalled { peer: id };
            (
                node.dials,
                node.events.iter().filter(|e| **e == stalled).count(),
            )
        })
        .await;
    // The first dial was not ours.
    assert_eq!((dials, stalled), (1, 2));
}

/// Threat G4: who is banned is not let in again before its time, whatever it tries, and then it is.
#[tokio::test]
async fn g4_a_banned_peer_is_refused_at_the_door_until_its_time_is_over() {
    let (node, clock) = node(Config::default()).await;
    let author = Keypair::generate_ed25519();
    let enemy = Keypair::generate_ed25519();
    let enemy_id = enemy.public().to_peer_id();
    let mut control = dial(Over::Memory, &enemy, &node.address).await;
    let mut stream = control.open_stream(node.id, V1_2).await.unwrap();
    for n in 0..16_u8 {
        let mut forged = signed(&author, n.into(), TOPIC, &[n; 100]);
        *forged.last_mut().unwrap() ^= 1;
        let _ = stream.write_all(&framed(&forged)).await;
    }
    let _ = stream.flush().await;
    node.until(move |node| node.gossip().counters().bans == 1 && node.gossip().peers().is_empty())
        .await;
    until_reset(&mut stream).await;
    let verified = node.ask(|node| node.gossip().counters().verified).await;
    assert_eq!(verified, 16);
    for _ in 0..5 {
        pass(&clock, secs(100)).await;
        let mut control = dial(Over::Memory, &enemy, &node.address).await;
        if let Ok(mut stream) = control.open_stream(node.id, V1_2).await {
            let _ = stream.write_all(&large(&author, 100, 100)).await;
            until_reset(&mut stream).await;
        }
        settle().await;
        let there = node
            .ask(move |node| node.gossip().peers().contains(&enemy_id))
            .await;
        assert!(!there);
    }
    let counters = node.ask(|node| node.gossip().counters()).await;
    assert_eq!(
        (counters.delivered, counters.verified, counters.bans),
        (0, 16, 1)
    );
    pass(&clock, secs(101)).await;
    let mut control = dial(Over::Memory, &enemy, &node.address).await;
    let mut stream = control.open_stream(node.id, V1_2).await.unwrap();
    write(&mut stream, &large(&author, 101, 100)).await;
    node.until(|node| node.gossip().counters().delivered == 1)
        .await;
}
