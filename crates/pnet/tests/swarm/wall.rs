//! The wall seen from outside: who gets in, and what the others are told.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::common::{lan::Lan, strangers::strangers, *};
use futures::{
    AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt,
    io::{ReadHalf, WriteHalf},
};
use gemba_pnet::{
    Crowd, DialCause, IncomingFailure, LimitKind, Limits, Network, TransportConfig,
    handshake::{HEADER, NONCE_LEN},
    limits, transport_over,
};
use gemba_testkit::Rng;
use libp2p_core::{Endpoint, transport::PortUse};
use libp2p_identity::{Keypair, PeerId};
use libp2p_swarm::{
    ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, Swarm, SwarmEvent,
    THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use multiaddr::Multiaddr;
use tokio::{task::JoinSet, time::Instant};
use tokio_util::compat::TokioAsyncReadCompatExt;

fn established<E>(event: &SwarmEvent<E>) -> Option<PeerId> {
    match event {
        SwarmEvent::ConnectionEstablished { peer_id, .. } => Some(*peer_id),
        _ => None,
    }
}

fn refused_in<E>(event: &SwarmEvent<E>) -> Option<DialCause> {
    match event {
        SwarmEvent::IncomingConnectionError { error, .. } => Some(DialCause::of_incoming(error)),
        SwarmEvent::ConnectionEstablished { .. } => panic!("connected"),
        _ => None,
    }
}

fn refused_out<E>(event: &SwarmEvent<E>) -> Option<DialCause> {
    match event {
        SwarmEvent::OutgoingConnectionError { error, .. } => Some(DialCause::of(error)),
        SwarmEvent::ConnectionEstablished { .. } => panic!("connected"),
        _ => None,
    }
}

fn stock_swarm(over: Over, psk: Option<[u8; 32]>) -> Swarm<dummy::Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(
        over.stock(&keypair, psk),
        dummy::Behaviour,
        keypair.public().to_peer_id(),
        config,
    )
}

over_each_transport! {
    #[tokio::test]
    async fn s0_8_same_key_connects_both_ways_with_ours_and_with_stock_libp2p;
    #[tokio::test]
    async fn s0_56_different_keys_are_named_on_both_sides;
    #[tokio::test]
    async fn s2_41_stock_peers_with_another_key_are_named_too;
    #[tokio::test]
    async fn s2_39_a_silent_stock_listener_with_another_key_is_told_from_an_unreachable_one;
    #[tokio::test]
    async fn s0_61_a_peer_without_key_gets_no_stream_and_is_named;
    #[tokio::test]
    async fn a_private_node_does_not_get_into_the_public_one_either;
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t1_floods_without_the_key_let_nobody_in_and_keep_nobody_out;
    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn t3_a_changed_bit_anywhere_in_the_handshake_is_never_accepted;
    #[tokio::test]
    async fn s0_56_status_of_both_sides_names_the_mismatch;
}

async fn s0_8_same_key_connects_both_ways_with_ours_and_with_stock_libp2p(over: Over) {
    for (mut a, mut b) in [
        (swarm(over, &private(1)), swarm(over, &private(1))),
        (swarm(over, &private(1)), stock_swarm(over, Some([1; 32]))),
        (stock_swarm(over, Some([1; 32])), swarm(over, &private(1))),
        (swarm(over, &public()), stock_swarm(over, None)),
    ] {
        let address = listen(over, &mut a).await;
        b.dial(address).unwrap();
        let seen = until_both(&mut a, &mut b, established, established).await;
        assert_eq!(seen, (*b.local_peer_id(), *a.local_peer_id()));
    }
}

#[tokio::test]
async fn names_are_resolved_by_the_system() {
    let over = Over::Tcp;
    let (mut a, mut b) = (swarm(over, &private(1)), swarm(over, &private(1)));
    let port = socket(&listen(over, &mut a).await).port();
    b.dial(
        format!("/dns4/localhost/tcp/{port}")
            .parse::<Multiaddr>()
            .unwrap(),
    )
    .unwrap();
    until_both(&mut a, &mut b, established, established).await;
}

async fn s0_56_different_keys_are_named_on_both_sides(over: Over) {
    let (mut a, mut b) = (swarm(over, &private(1)), swarm(over, &private(2)));
    let address = listen(over, &mut a).await;
    for _ in 0..20 {
        b.dial(address.clone()).unwrap();
        let (listener, dialer) = until_both(&mut a, &mut b, refused_in, refused_out).await;
        assert_eq!(
            listener,
            DialCause::WrongSwarmKey {
                ours: key(1).fingerprint()
            }
        );
        assert_eq!(
            dialer,
            DialCause::WrongSwarmKey {
                ours: key(2).fingerprint()
            }
        );
        assert!(
            dialer
                .to_string()
                .contains(&key(2).fingerprint().to_string())
        );
    }
}

/// Incident: "message too large" in the log of a node with another swarm's key. Stock libp2p says that, or nothing for 10 s.
async fn s2_41_stock_peers_with_another_key_are_named_too(over: Over) {
    let (mut ours, mut stock) = (swarm(over, &private(1)), stock_swarm(over, Some([2; 32])));
    let address = listen(over, &mut ours).await;
    for _ in 0..20 {
        stock.dial(address.clone()).unwrap();
        let (cause, _) = until_both(&mut ours, &mut stock, refused_in, refused_out).await;
        assert_eq!(
            cause,
            DialCause::WrongSwarmKey {
                ours: key(1).fingerprint()
            }
        );
    }
}

/// A stock listener with another key says nothing before it is spoken to in its language, so the dialer has only the silence.
async fn s2_39_a_silent_stock_listener_with_another_key_is_told_from_an_unreachable_one(
    over: Over,
) {
    let mut config = TransportConfig::default();
    config.security = Duration::from_millis(500);
    let mut ours = swarm_with(over, &private(1), &config, |_| dummy::Behaviour);
    let mut stock = stock_swarm(over, Some([2; 32]));
    let address = listen(over, &mut stock).await;
    for _ in 0..10 {
        ours.dial(address.clone()).unwrap();
        let (_, cause) = until_both(&mut stock, &mut ours, |_| Some(()), refused_out).await;
        assert!(
            matches!(cause, DialCause::ProbablyWrongSwarmKey { .. }),
            "{cause}"
        );
    }
}

async fn s0_61_a_peer_without_key_gets_no_stream_and_is_named(over: Over) {
    // It dials us.
    let (mut ours, mut open) = (swarm(over, &private(1)), stock_swarm(over, None));
    let address = listen(over, &mut ours).await;
    open.dial(address).unwrap();
    let (cause, _) = until_both(&mut ours, &mut open, refused_in, refused_out).await;
    assert_eq!(cause, DialCause::NotPrivate);
    // We dial it, and it greets first as Kubo does.
    let mut listener = RawListener::new(over).await;
    ours.dial(listener.address()).unwrap();
    let greet = async {
        let mut socket = listener.accept().await;
        socket.write_all(&HEADER).await.unwrap();
        socket.flush().await.unwrap();
        socket
    };
    let (_socket, cause) = futures::join!(greet, until(&mut ours, refused_out));
    assert_eq!(cause, DialCause::NotPrivate);
    // We dial it, and it waits for us as rust-libp2p does: then only the missing nonce shows.
    let address = listen(over, &mut open).await;
    ours.dial(address).unwrap();
    let (_, cause) = until_both(&mut open, &mut ours, |_| Some(()), refused_out).await;
    assert!(matches!(cause, DialCause::NoNonce(_)), "{cause}");
}

async fn a_private_node_does_not_get_into_the_public_one_either(over: Over) {
    let (mut open, mut ours) = (swarm(over, &public()), swarm(over, &private(1)));
    let address = listen(over, &mut open).await;
    ours.dial(address).unwrap();
    until_both(&mut open, &mut ours, refused_in, refused_out).await;
}

async fn t1_floods_without_the_key_let_nobody_in_and_keep_nobody_out(over: Over) {
    let mut config = TransportConfig::default();
    config.nonce = Duration::from_secs(1);
    config.security = Duration::from_secs(1);
    let mut ours = swarm_with(over, &private(1), &config, |_| {
        limits::Behaviour::new(Limits::pc())
    });
    let address = listen(over, &mut ours).await;
    let visits = gemba_testkit::sim_scale(10_000);
    let flood = tokio::spawn(strangers(over, address.clone(), visits, 32, 1));
    let mut failed = 0;
    while failed < visits {
        let cause = until(&mut ours, refused_in).await;
        failed += 1;
        assert!(
            !matches!(cause, DialCause::SecurityFailed(_)),
            "nothing above the wall ran: {cause}"
        );
    }
    flood.await.unwrap();
    assert_eq!(ours.behaviour().count().established(), 0);
    assert_eq!(ours.behaviour().count().pending_incoming(), 0);
    let mut member = swarm(over, &private(1));
    member.dial(address).unwrap();
    until_both(&mut ours, &mut member, established, established).await;
}

/// T1 with the deadlines as they are by default, in virtual time: strangers that say something now and then, each just before it would be
/// too late, are closed five seconds after they came all the same.
#[tokio::test(start_paused = true)]
async fn t1_every_stranger_is_closed_within_five_seconds() {
    let lan = Lan::new(|_| async { Err(std::io::ErrorKind::ConnectionRefused.into()) }.boxed());
    let us = SocketAddr::from(([10, 0, 0, 1], 4001));
    let mut ours = lan.swarm(us.ip(), &TransportConfig::default(), |_| {
        limits::Behaviour::new(Limits::pc())
    });
    ours.listen_on(multiaddr(us)).unwrap();
    let drive = tokio::spawn(async move {
        loop {
            let event = ours.select_next_some().await;
            assert!(!matches!(event, SwarmEvent::ConnectionEstablished { .. }));
        }
    });
    let mut rng = Rng::from_env_or(1);
    let mut visits = JoinSet::new();
    for visit in 0..gemba_testkit::sim_scale(10_000) as u32 {
        let lan = lan.clone();
        let from = SocketAddr::from(([10, 1, (visit / 250) as u8, (visit % 250) as u8], 9000));
        let mut rng = Rng::new(rng.next_u64());
        visits.spawn(async move {
            let socket = lan.connect(from, us).await.unwrap();
            let begun = Instant::now();
            let (mut read, mut write) = socket.split();
            let talk = async {
                let mut said = 0;
                // Up to the last byte before the verdict, in pieces that nearly come too late.
                while said < NONCE_LEN + HEADER.len() - 1 {
                    let piece = 1 + rng.index(NONCE_LEN);
                    let piece = piece.min(NONCE_LEN + HEADER.len() - 1 - said);
                    if write.write_all(&rng.bytes(piece)).await.is_err() {
                        break;
                    }
                    said += piece;
                    tokio::time::sleep(Duration::from_millis(rng.below(4_990))).await;
                }
                std::future::pending::<()>().await;
            };
            let mut answer = Vec::new();
            tokio::select! {
                _ = read.read_to_end(&mut answer) => {}
                () = talk => {}
            }
            assert!(answer.len() <= NONCE_LEN + HEADER.len());
            begun.elapsed()
        });
        // About as many as there are places come at once.
        if visit % 40 == 0 {
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
    }
    let mut longest = Duration::ZERO;
    while let Some(closed_after) = visits.join_next().await {
        longest = longest.max(closed_after.unwrap());
    }
    assert!(longest <= Duration::from_secs(5), "{longest:?}");
    assert!(longest > Duration::from_secs(4), "some waited: {longest:?}");
    assert!(!drive.is_finished(), "nobody got in");
}

/// Slowloris: 24 bytes that look like a nonce, then nothing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn t2_stalled_sockets_of_one_source_are_closed_in_time_and_an_honest_dial_gets_through_meanwhile()
 {
    let over = Over::Tcp;
    let mut limits = Limits::pc();
    limits.pending_incoming_loopback = limits.pending_incoming_per_ip;
    let mut config = TransportConfig::default();
    config.security = Duration::from_secs(6);
    let mut ours = swarm_with(over, &private(1), &config, |_| {
        limits::Behaviour::new(limits)
    });
    let address = listen(over, &mut ours).await;
    let target = socket(&address);
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let attacker = connect_from([127, 0, 0, 2], target).await.unwrap();
        let mut attacker = attacker.compat();
        attacker.write_all(&[7; NONCE_LEN]).await.unwrap();
        stalled.push(attacker);
    }
    for _ in 0..92 {
        let cause = until(&mut ours, refused_in).await;
        assert_eq!(cause, DialCause::Limit(LimitKind::PendingIncomingPerIp));
    }
    // The first eight hold their places. From another source there is room.
    assert_eq!(ours.behaviour().count().pending_incoming(), 8);
    let mut honest = swarm(over, &private(1));
    honest.dial(address).unwrap();
    until_both(&mut ours, &mut honest, established, established).await;
    assert_eq!(
        ours.behaviour().count().pending_incoming(),
        8,
        "the honest one got in beside them"
    );
    // And they are closed by us.
    let drive = async {
        loop {
            ours.select_next_some().await;
        }
    };
    let closed = async {
        for mut attacker in stalled {
            let mut answer = Vec::new();
            let _ = attacker.read_to_end(&mut answer).await;
            assert!(answer.len() <= NONCE_LEN);
        }
    };
    tokio::select! {
        () = drive => {}
        closed = tokio::time::timeout(PATIENCE, closed) => closed.expect("closed in time"),
    }
}

/// T2: 2,000 sockets of five hosts that say a nonce and then nothing, all the while that honest devices come one after the other: every
/// one of them is let in at its first try, and the node's descriptors stay below what its limits say.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_two_thousand_stalled_sockets_cost_no_honest_device_a_try() {
    const HONEST: usize = 100;
    /// Open at one time on the attackers' side.
    const AT_ONCE: usize = 400;
    let mut limits = Limits::pc();
    limits.pending_incoming_loopback = limits.pending_incoming_per_ip;
    let places = limits.pending_incoming;
    let mut config = TransportConfig::default();
    config.crowd = Crowd::new(places * 3 / 4, Duration::from_secs(1));
    let mut ours = swarm_with(Over::Tcp, &private(1), &config, |_| {
        limits::Behaviour::new(limits)
    });
    let address = listen(Over::Tcp, &mut ours).await;
    let target = socket(&address);
    let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = descriptors();
    let (held, stalled) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let flood = {
        let (held, stalled) = (held.clone(), stalled.clone());
        tokio::spawn(async move {
            let mut sockets = JoinSet::new();
            for n in 0_usize.. {
                while sockets.len() >= AT_ONCE {
                    sockets.join_next().await;
                }
                held.fetch_add(1, Ordering::SeqCst);
                let (held, stalled) = (held.clone(), stalled.clone());
                sockets.spawn(async move {
                    let source = [127, 0, 1, 1 + (n % 5) as u8];
                    if let Ok(socket) = connect_from(source, target).await {
                        let mut socket = socket.compat();
                        let _ = socket.write_all(&[7; NONCE_LEN]).await;
                        stalled.fetch_add(1, Ordering::SeqCst);
                        let mut answer = Vec::new();
                        let _ = socket.read_to_end(&mut answer).await;
                    }
                    // Refused ones come again, but leave the processor to others.
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    held.fetch_sub(1, Ordering::SeqCst);
                });
            }
        })
    };
    let enough = gemba_testkit::sim_scale(2_000).max(400);
    let (mut took, mut most, mut events) = (Vec::new(), 0, 0_usize);
    let mut device = swarm(Over::Tcp, &private(1));
    let mut dialed = None;
    let drive = async {
        while took.len() < HONEST || stalled.load(Ordering::SeqCst) < enough {
            if dialed.is_none() && stalled.load(Ordering::SeqCst) >= 100 {
                device.dial(address.clone()).unwrap();
                dialed = Some(Instant::now());
            }
            tokio::select! {
                _ = ours.select_next_some() => {
                    assert!(ours.behaviour().count().pending_incoming() <= places);
                    // To list them takes longer than all else here.
                    if events.is_multiple_of(16) {
                        let attackers = held.load(Ordering::SeqCst);
                        most = most.max(descriptors().saturating_sub(before + attackers));
                    }
                    events += 1;
                }
                event = device.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        took.push(dialed.take().unwrap().elapsed());
                        device = swarm(Over::Tcp, &private(1));
                    }
                    SwarmEvent::OutgoingConnectionError { error, .. } => {
                        panic!("an honest device was turned away: {}", DialCause::of(&error));
                    }
                    _ => {}
                },
            }
        }
    };
    tokio::time::timeout(9 * PATIENCE, drive).await.unwrap();
    flood.abort();
    // Those being set up, some that were accepted and are refused at this moment, and the honest one on both sides.
    assert!(most <= 2 * places + HONEST, "{most} descriptors");
    took.sort_unstable();
    let p99 = took[took.len() * 99 / 100];
    println!(
        "T2: {} honest dials beside {} stalled sockets, median {:?}, p99 {p99:?}",
        took.len(),
        stalled.load(Ordering::SeqCst),
        took[took.len() / 2],
    );
}

/// T2 from many addresses: 2,000 sockets that say a nonce and then nothing, kept open by their side, always as many as are let in.
/// Places and descriptors of this node stay bounded, and honest devices get in all the while.
#[cfg(target_os = "linux")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t2_stalled_sockets_of_many_sources_keep_nobody_out() {
    let over = Over::Tcp;
    let mut limits = Limits::pc();
    limits.pending_incoming_loopback = limits.pending_incoming_per_ip;
    let most = limits.pending_incoming;
    let mut config = TransportConfig::default();
    // Longer than an honest handshake takes on a busy machine.
    config.crowd = Crowd::new(most * 3 / 4, Duration::from_millis(1500));
    let mut ours = swarm_with(over, &private(1), &config, |_| {
        limits::Behaviour::new(limits)
    });
    let address = listen(over, &mut ours).await;
    let target = socket(&address);
    let count = gemba_testkit::sim_scale(2_000).max(200);
    let stalled = Arc::new(AtomicUsize::new(0));
    let flood = {
        let stalled = stalled.clone();
        tokio::spawn(async move {
            let mut sockets = JoinSet::new();
            for n in 0..count {
                // The wall's side is what is counted; ours keeps below the descriptors that a process may have.
                while sockets.len() >= 150 {
                    sockets.join_next().await;
                }
                let Ok(socket) = connect_from([127, 0, 1, (n % 40) as u8 + 1], target).await else {
                    continue;
                };
                let mut socket = socket.compat();
                let stalled = stalled.clone();
                sockets.spawn(async move {
                    let _ = socket.write_all(&[7; NONCE_LEN]).await;
                    stalled.fetch_add(1, Ordering::SeqCst);
                    let mut answer = Vec::new();
                    let _ = socket.read_to_end(&mut answer).await;
                });
            }
            while sockets.join_next().await.is_some() {}
        })
    };
    let (mut honest, mut tries, mut crowded) = (0, 0, 0);
    let mut device = swarm(over, &private(1));
    let drive = async {
        // Until the flood is over: an honest device comes, is let in, and another comes.
        while !flood.is_finished() || honest < 3 {
            tokio::select! {
                event = ours.select_next_some() => {
                    let pending = ours.behaviour().count().pending_incoming();
                    assert!(pending <= most && config.crowd.here() <= most + 2, "{pending}");
                    if let SwarmEvent::IncomingConnectionError { error, .. } = event {
                        let cause = DialCause::of_incoming(&error);
                        crowded += usize::from(cause == DialCause::Limit(LimitKind::PendingIncoming));
                    }
                }
                event = device.select_next_some() => match event {
                    SwarmEvent::ConnectionEstablished { .. } => {
                        honest += 1;
                        device = swarm(over, &private(1));
                    }
                    SwarmEvent::OutgoingConnectionError { .. } => {
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                    _ => {}
                },
                () = std::future::ready(()), if device.network_info().num_peers() == 0
                    && device.network_info().connection_counters().num_pending() == 0 => {
                    tries += 1;
                    device.dial(address.clone()).unwrap();
                }
            }
        }
    };
    tokio::time::timeout(9 * PATIENCE, drive).await.unwrap();
    assert!(stalled.load(Ordering::SeqCst) >= count / 2);
    // Without giving way it is three of a hundred.
    assert!(
        honest * 2 > tries && crowded > 0,
        "{honest} of {tries}, {crowded}"
    );
}

/// T8: an insider floods with identities from a few hosts. Each host gets its share, all together what others may open; who was
/// connected before stays connected and is served, and devices that this node knows by address are reached all the same.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn t8_a_flood_of_identities_takes_its_share_and_no_honest_devices_place() {
    const SYBILS: usize = 80;
    let over = Over::Tcp;
    let mut limits = Limits::pc();
    (limits.established, limits.established_incoming) = (40, 30);
    limits.established_incoming_loopback = 7;
    let app = |known: Vec<Multiaddr>| {
        let mut config = gemba_pnet::DialerConfig::default();
        config.known = known;
        let mut liveness = gemba_pnet::LivenessConfig::default();
        liveness.interval = Duration::from_millis(100);
        Guarded {
            dialer: gemba_pnet::Dialer::new(config),
            limits: limits::Behaviour::new(limits.clone()),
            liveness: gemba_pnet::Liveness::new(&liveness),
        }
    };
    let config = TransportConfig::default();
    let mut ours = swarm_with(over, &private(1), &config, |_| app(Vec::new()));
    let address = listen(over, &mut ours).await;
    let mut before = swarm_with(over, &private(1), &config, |_| app(Vec::new()));
    let first = *before.local_peer_id();
    before.dial(address.clone()).unwrap();
    until_both(&mut ours, &mut before, established, established).await;
    let before = tokio::spawn(async move {
        loop {
            let event = before.select_next_some().await;
            assert!(!matches!(event, SwarmEvent::ConnectionClosed { .. }));
        }
    });
    let mut flood = JoinSet::new();
    for sybil in 0..SYBILS {
        let address = address.clone();
        flood.spawn(async move {
            let keypair = Keypair::generate_ed25519();
            let host = From([127, 0, 0, 2 + (sybil % 4) as u8]);
            let transport =
                transport_over(host, &keypair, &private(1), &TransportConfig::default()).unwrap();
            let mut sybil = Swarm::new(
                transport,
                dummy::Behaviour,
                keypair.public().to_peer_id(),
                libp2p_swarm::Config::with_tokio_executor()
                    .with_idle_connection_timeout(Duration::from_secs(60)),
            );
            sybil.dial(address).unwrap();
            loop {
                sybil.select_next_some().await;
            }
        });
    }
    let (mut seen, mut refused) = (0, 0);
    until(&mut ours, |event| {
        match event {
            SwarmEvent::ConnectionEstablished { .. } => seen += 1,
            SwarmEvent::ConnectionClosed { peer_id, .. } => assert_ne!(*peer_id, first),
            SwarmEvent::IncomingConnectionError { error, .. } => {
                let cause = DialCause::of_incoming(error);
                let of_ours = matches!(
                    cause,
                    DialCause::Limit(
                        LimitKind::EstablishedIncomingPerIp
                            | LimitKind::EstablishedIncoming
                            | LimitKind::PendingIncoming
                    )
                );
                assert!(of_ours, "{cause}");
                refused += 1;
            }
            _ => {}
        }
        (seen + refused == SYBILS).then_some(())
    })
    .await;
    let count = ours.behaviour().limits.count();
    assert!(count.established() <= 30, "{}", count.established());
    assert!(count.refused(LimitKind::EstablishedIncomingPerIp) > 0);
    assert!(refused >= SYBILS - 29, "{refused}");
    // Who was here before is answered.
    until(&mut ours, |event| match event {
        SwarmEvent::Behaviour(GuardedEvent::Liveness(gemba_pnet::LivenessEvent::Rtt {
            peer,
            ..
        })) => (*peer == first).then_some(()),
        _ => None,
    })
    .await;
    // And a device that this node knows is connected, whatever others opened.
    let mut known = swarm(over, &private(1));
    let there = listen(over, &mut known).await;
    let device = *known.local_peer_id();
    ours.behaviour_mut().dialer.keep_connected(there);
    let mine = |event: &SwarmEvent<GuardedEvent>| {
        established(event).filter(|peer| *peer == device).map(drop)
    };
    until_both(&mut ours, &mut known, mine, established).await;
    assert!(!before.is_finished(), "kept all the time");
    before.abort();
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Guarded {
    dialer: gemba_pnet::Dialer,
    limits: limits::Behaviour,
    liveness: gemba_pnet::Liveness,
}

/// Turns every member away, as gossip does with those who forged messages.
struct Shut(usize);

#[derive(Debug, thiserror::Error)]
#[error("shut out")]
struct ShutOut;

impl NetworkBehaviour for Shut {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        self.0 += 1;
        Err(ConnectionDenied::new(ShutOut))
    }

    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<dummy::ConnectionHandler, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, _: FromSwarm<'_>) {}

    fn on_connection_handler_event(
        &mut self,
        _: PeerId,
        _: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        std::task::Poll::Pending
    }
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Forbidding {
    limits: limits::Behaviour,
    shut: Shut,
}

/// Who was turned away and dials again at once is heard four times, and then twice a second: the other handshakes are never made.
/// Only addresses with an IP are counted.
#[tokio::test]
async fn t8_who_is_turned_away_and_dials_again_at_once_costs_two_handshakes_a_second() {
    const DIALS: usize = 200;
    let over = Over::Tcp;
    let mut ours = swarm_with(over, &private(1), &TransportConfig::default(), |_| {
        Forbidding {
            limits: limits::Behaviour::new(Limits::pc()),
            shut: Shut(0),
        }
    });
    let address = listen(over, &mut ours).await;
    let begun = Instant::now();
    let forger = tokio::spawn(async move {
        let mut forger = swarm(over, &private(1));
        for _ in 0..DIALS {
            forger.dial(address.clone()).unwrap();
            until(&mut forger, |event| {
                matches!(
                    event,
                    SwarmEvent::ConnectionClosed { .. }
                        | SwarmEvent::OutgoingConnectionError { .. }
                )
                .then_some(())
            })
            .await;
        }
    });
    let mut refused = 0;
    until(&mut ours, |event| {
        refused += usize::from(matches!(event, SwarmEvent::IncomingConnectionError { .. }));
        (refused == DIALS).then_some(())
    })
    .await;
    let shut = &ours.behaviour().shut;
    let may = 4 + 2 * (begun.elapsed().as_secs() as usize + 1);
    assert!((4..=may).contains(&shut.0), "{} of at most {may}", shut.0);
    let unheard = ours
        .behaviour()
        .limits
        .count()
        .refused(LimitKind::TurnedAwayPerIp);
    assert_eq!(unheard as usize + shut.0, DIALS);
    forger.await.unwrap();
}

/// Between `b`, which dials the returned address, and `target`: changes one bit of one direction at the position in `at`.
async fn flipping_relay(
    over: Over,
    target: Multiaddr,
    at: Arc<AtomicU64>,
    flipped: Arc<AtomicUsize>,
) -> Multiaddr {
    let mut listener = RawListener::new(over).await;
    let address = listener.address();
    tokio::spawn(async move {
        loop {
            let near = listener.accept().await;
            let far = over.connect(&target).await.unwrap();
            let position = at.load(Ordering::SeqCst);
            let ((near_read, near_write), (far_read, far_write)) = (near.split(), far.split());
            let up = position.is_multiple_of(2).then_some(position / 2);
            let down = (!position.is_multiple_of(2)).then_some(position / 2);
            let up = copy(near_read, far_write, up, flipped.clone());
            let down = copy(far_read, near_write, down, flipped.clone());
            // Whoever ends first, ends both: not every carrier has half-closed connections.
            tokio::spawn(async move {
                tokio::select! {
                    () = up => {}
                    () = down => {}
                }
            });
        }
    });
    address
}

async fn copy(
    mut from: ReadHalf<RawSocket>,
    mut to: WriteHalf<RawSocket>,
    flip_bit: Option<u64>,
    flipped: Arc<AtomicUsize>,
) {
    let mut passed = 0;
    let mut buffer = [0; 4096];
    while let Ok(count @ 1..) = from.read(&mut buffer).await {
        if let Some(bit) = flip_bit {
            let at = (bit / 8) as usize;
            if (passed..passed + count).contains(&at) {
                buffer[at - passed] ^= 1 << (bit % 8);
                flipped.fetch_add(1, Ordering::SeqCst);
            }
        }
        passed += count;
        if to.write_all(&buffer[..count]).await.is_err() || to.flush().await.is_err() {
            return;
        }
    }
}

async fn t3_a_changed_bit_anywhere_in_the_handshake_is_never_accepted(over: Over) {
    let mut config = TransportConfig::default();
    config.security = Duration::from_millis(400);
    config.nonce = Duration::from_millis(400);
    let (mut a, mut b) = (
        swarm_with(over, &private(1), &config, |_| dummy::Behaviour),
        swarm_with(over, &private(1), &config, |_| dummy::Behaviour),
    );
    let (at, flipped) = (
        Arc::new(AtomicU64::new(u64::MAX)),
        Arc::new(AtomicUsize::new(0)),
    );
    let target = listen(over, &mut a).await;
    let relay = flipping_relay(over, target, at.clone(), flipped.clone()).await;
    let mut rng = Rng::from_env_or(3);
    let rounds = gemba_testkit::sim_scale(4_000);
    for _ in 0..rounds {
        // Both directions carry more than 180 bytes before the connection is up: nonce 24, negotiation 28, Noise the rest.
        at.store(rng.below(180 * 8 * 2), Ordering::SeqCst);
        b.dial(relay.clone()).unwrap();
        until_both(&mut a, &mut b, refused_in, refused_out).await;
    }
    assert_eq!(
        flipped.load(Ordering::SeqCst),
        rounds,
        "each round changed one bit"
    );
    // The relay itself is harmless.
    at.store(u64::MAX, Ordering::SeqCst);
    let (mut a, mut b) = (swarm(over, &private(1)), swarm(over, &private(1)));
    let target = listen(over, &mut a).await;
    let relay = flipping_relay(over, target, at, flipped.clone()).await;
    b.dial(relay).unwrap();
    until_both(&mut a, &mut b, established, established).await;
    assert_eq!(flipped.load(Ordering::SeqCst), rounds);
}

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Dialing {
    dialer: gemba_pnet::Dialer,
    limits: limits::Behaviour,
}

async fn s0_56_status_of_both_sides_names_the_mismatch(over: Over) {
    let behaviour = |known: Vec<Multiaddr>| {
        let mut config = gemba_pnet::DialerConfig::default();
        config.known = known;
        Dialing {
            dialer: gemba_pnet::Dialer::new(config),
            limits: limits::Behaviour::new(Limits::tablet()),
        }
    };
    let mut a = swarm_with(over, &private(1), &TransportConfig::default(), |_| {
        behaviour(Vec::new())
    });
    let address = listen(over, &mut a).await;
    let mut b = swarm_with(over, &private(2), &TransportConfig::default(), |_| {
        behaviour(vec![address.clone()])
    });
    until_both(&mut a, &mut b, refused_in, refused_out).await;
    let [IncomingFailure { cause, .. }] = a
        .behaviour()
        .dialer
        .incoming_failures()
        .cloned()
        .collect::<Vec<_>>()
        .try_into()
        .unwrap();
    assert_eq!(
        cause,
        DialCause::WrongSwarmKey {
            ours: key(1).fingerprint()
        }
    );
    assert_eq!(a.behaviour().dialer.incoming_counts()["wrong_swarm_key"], 1);
    let [target] = b.behaviour().dialer.targets().try_into().unwrap();
    assert_eq!(
        target.failures[0].cause,
        DialCause::WrongSwarmKey {
            ours: key(2).fingerprint()
        }
    );
    assert!(
        target.failures[0].retry_in >= Duration::from_secs(800),
        "another swarm is left alone"
    );
}

#[test]
fn a_network_says_whether_it_is_private_and_never_what_the_key_is() {
    assert!(private(1).is_private() && !public().is_private());
    let Network::Private(key) = private(1) else {
        panic!()
    };
    assert!(format!("{:?}", private(1)).contains(&key.fingerprint().to_string()));
}
