//! The wall seen from outside: who gets in, and what the others are told.
#![allow(clippy::unwrap_used)]

mod common;

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use common::*;
use futures::StreamExt;
use gemba_pnet::{
    DialCause, IncomingFailure, LimitKind, Limits, Network, TransportConfig,
    handshake::{HEADER, NONCE_LEN},
    limits,
};
use gemba_testkit::Rng;
use libp2p_core::{Transport, muxing::StreamMuxerBox, upgrade::Version};
use libp2p_identity::{Keypair, PeerId};
use libp2p_pnet::{PnetConfig, PreSharedKey};
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent, dummy};
use multiaddr::{Multiaddr, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpSocket, TcpStream},
    task::JoinSet,
};

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

fn socket(address: &Multiaddr) -> SocketAddr {
    let mut parts = address.iter();
    match (parts.next(), parts.next()) {
        (Some(Protocol::Ip4(ip)), Some(Protocol::Tcp(port))) => (ip, port).into(),
        other => panic!("{other:?}"),
    }
}

fn multiaddr(socket: SocketAddr) -> Multiaddr {
    format!("/ip4/{}/tcp/{}", socket.ip(), socket.port())
        .parse()
        .unwrap()
}

/// The transport as everybody else builds it: libp2p-pnet, Noise, yamux, no key check.
fn stock_swarm(psk: Option<[u8; 32]>) -> Swarm<dummy::Behaviour> {
    let keypair = Keypair::generate_ed25519();
    let noise = libp2p_noise::Config::new(&keypair).unwrap();
    let tcp = libp2p_tcp::tokio::Transport::new(libp2p_tcp::Config::new());
    let transport = match psk {
        Some(psk) => tcp
            .and_then(move |socket, _| PnetConfig::new(PreSharedKey::new(psk)).handshake(socket))
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(libp2p_yamux::Config::default())
            .boxed(),
        None => tcp
            .upgrade(Version::V1)
            .authenticate(noise)
            .multiplex(libp2p_yamux::Config::default())
            .boxed(),
    };
    let transport = Transport::map(transport, |(peer, muxer), _| {
        (peer, StreamMuxerBox::new(muxer))
    })
    .boxed();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(60));
    Swarm::new(
        transport,
        dummy::Behaviour,
        keypair.public().to_peer_id(),
        config,
    )
}

#[tokio::test]
async fn same_key_connects_both_ways_with_ours_and_with_stock_libp2p() {
    for (mut a, mut b) in [
        (swarm(&private(1)), swarm(&private(1))),
        (swarm(&private(1)), stock_swarm(Some([1; 32]))),
        (stock_swarm(Some([1; 32])), swarm(&private(1))),
        (swarm(&public()), stock_swarm(None)),
    ] {
        let address = listen(&mut a).await;
        b.dial(address).unwrap();
        let seen = until_both(&mut a, &mut b, established, established).await;
        assert_eq!(seen, (*b.local_peer_id(), *a.local_peer_id()));
    }
}

#[tokio::test]
async fn names_are_resolved_by_the_system() {
    let (mut a, mut b) = (swarm(&private(1)), swarm(&private(1)));
    let port = socket(&listen(&mut a).await).port();
    b.dial(
        format!("/dns4/localhost/tcp/{port}")
            .parse::<Multiaddr>()
            .unwrap(),
    )
    .unwrap();
    until_both(&mut a, &mut b, established, established).await;
}

#[tokio::test]
async fn s0_56_different_keys_are_named_on_both_sides() {
    let (mut a, mut b) = (swarm(&private(1)), swarm(&private(2)));
    let address = listen(&mut a).await;
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
#[tokio::test]
async fn s2_41_stock_peers_with_another_key_are_named_too() {
    let (mut ours, mut stock) = (swarm(&private(1)), stock_swarm(Some([2; 32])));
    let address = listen(&mut ours).await;
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
#[tokio::test]
async fn s2_39_a_silent_stock_listener_with_another_key_is_told_from_an_unreachable_one() {
    let mut config = TransportConfig::default();
    config.security = Duration::from_millis(500);
    let mut ours = swarm_with(&private(1), &config, |_| dummy::Behaviour);
    let mut stock = stock_swarm(Some([2; 32]));
    let address = listen(&mut stock).await;
    for _ in 0..10 {
        ours.dial(address.clone()).unwrap();
        let (_, cause) = until_both(&mut stock, &mut ours, |_| Some(()), refused_out).await;
        assert!(
            matches!(cause, DialCause::ProbablyWrongSwarmKey { .. }),
            "{cause}"
        );
    }
}

#[tokio::test]
async fn s0_61_a_peer_without_key_gets_no_stream_and_is_named() {
    // It dials us.
    let (mut ours, mut open) = (swarm(&private(1)), stock_swarm(None));
    let address = listen(&mut ours).await;
    open.dial(address).unwrap();
    let (cause, _) = until_both(&mut ours, &mut open, refused_in, refused_out).await;
    assert_eq!(cause, DialCause::NotPrivate);
    // We dial it, and it greets first as Kubo does.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    ours.dial(multiaddr(listener.local_addr().unwrap()))
        .unwrap();
    let greet = async {
        let (mut socket, _) = listener.accept().await.unwrap();
        socket.write_all(&HEADER).await.unwrap();
        socket
    };
    let (_socket, cause) = futures::join!(greet, until(&mut ours, refused_out));
    assert_eq!(cause, DialCause::NotPrivate);
    // We dial it, and it waits for us as rust-libp2p does: then only the missing nonce shows.
    let address = listen(&mut open).await;
    ours.dial(address).unwrap();
    let (_, cause) = until_both(&mut open, &mut ours, |_| Some(()), refused_out).await;
    assert!(matches!(cause, DialCause::NoNonce(_)), "{cause}");
}

#[tokio::test]
async fn a_private_node_does_not_get_into_the_public_one_either() {
    let (mut open, mut ours) = (swarm(&public()), swarm(&private(1)));
    let address = listen(&mut open).await;
    ours.dial(address).unwrap();
    until_both(&mut open, &mut ours, refused_in, refused_out).await;
}

/// What strangers do to a listener: nothing, garbage, plain libp2p, HTTP, another key.
async fn strangers(target: SocketAddr, count: usize, seed: u64) {
    let mut rng = Rng::new(seed);
    let mut visits = JoinSet::new();
    for visit in 0..count {
        let junk = rng.length(300) as usize;
        let opening = match visit % 5 {
            0 => [&HEADER[..], b"\x07/noise\n"].concat(),
            1 => b"GET / HTTP/1.1\r\nHost: gemba.invalid\r\nAccept: */*\r\n\r\n".to_vec(),
            2 => rng.bytes(NONCE_LEN + HEADER.len() + junk),
            3 => rng.bytes(junk % (NONCE_LEN + HEADER.len())),
            _ => [rng.bytes(NONCE_LEN), HEADER.to_vec()].concat(),
        };
        let stays = rng.coin();
        while visits.len() >= 32 {
            visits.join_next().await.unwrap().unwrap();
        }
        visits.spawn(async move {
            let Ok(mut socket) = TcpStream::connect(target).await else {
                return;
            };
            if socket.write_all(&opening).await.is_ok() && stays {
                let mut answer = Vec::new();
                let _ = socket.read_to_end(&mut answer).await;
                assert!(answer.len() <= NONCE_LEN + HEADER.len());
            }
        });
    }
    while let Some(visit) = visits.join_next().await {
        visit.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t1_floods_without_the_key_let_nobody_in_and_keep_nobody_out() {
    let mut config = TransportConfig::default();
    config.nonce = Duration::from_secs(1);
    config.security = Duration::from_secs(1);
    let mut ours = swarm_with(&private(1), &config, |_| {
        limits::Behaviour::new(Limits::pc())
    });
    let address = listen(&mut ours).await;
    let visits = gemba_testkit::sim_scale(10_000);
    let flood = tokio::spawn(strangers(socket(&address), visits, 1));
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
    let mut member = swarm(&private(1));
    member.dial(address).unwrap();
    until_both(&mut ours, &mut member, established, established).await;
}

/// Slowloris: 24 bytes that look like a nonce, then nothing.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn t2_stalled_sockets_of_one_source_are_closed_in_time_and_an_honest_dial_gets_through_meanwhile()
 {
    let mut limits = Limits::pc();
    limits.pending_incoming_loopback = limits.pending_incoming_per_ip;
    let mut config = TransportConfig::default();
    config.security = Duration::from_secs(6);
    let mut ours = swarm_with(&private(1), &config, |_| limits::Behaviour::new(limits));
    let address = listen(&mut ours).await;
    let target = socket(&address);
    let mut stalled = Vec::new();
    for _ in 0..100 {
        let attacker = TcpSocket::new_v4().unwrap();
        attacker.bind("127.0.0.2:0".parse().unwrap()).unwrap();
        let mut attacker = attacker.connect(target).await.unwrap();
        attacker.write_all(&[7; NONCE_LEN]).await.unwrap();
        stalled.push(attacker);
    }
    for _ in 0..92 {
        let cause = until(&mut ours, refused_in).await;
        assert_eq!(cause, DialCause::Limit(LimitKind::PendingIncomingPerIp));
    }
    // The first eight hold their places. From another source there is room.
    assert_eq!(ours.behaviour().count().pending_incoming(), 8);
    let mut honest = swarm(&private(1));
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

/// Between `b`, which dials the returned address, and `target`: changes one bit of one direction at the position in `at`.
async fn flipping_relay(
    target: SocketAddr,
    at: Arc<AtomicU64>,
    flipped: Arc<AtomicUsize>,
) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            let far = TcpStream::connect(target).await.unwrap();
            let position = at.load(Ordering::SeqCst);
            let ((near_read, near_write), (far_read, far_write)) =
                (near.into_split(), far.into_split());
            let up = position.is_multiple_of(2).then_some(position / 2);
            let down = (!position.is_multiple_of(2)).then_some(position / 2);
            tokio::spawn(copy(near_read, far_write, up, flipped.clone()));
            tokio::spawn(copy(far_read, near_write, down, flipped.clone()));
        }
    });
    address
}

async fn copy(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
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
        if to.write_all(&buffer[..count]).await.is_err() {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn t3_a_changed_bit_anywhere_in_the_handshake_is_never_accepted() {
    let mut config = TransportConfig::default();
    config.security = Duration::from_millis(400);
    config.nonce = Duration::from_millis(400);
    let (mut a, mut b) = (
        swarm_with(&private(1), &config, |_| dummy::Behaviour),
        swarm_with(&private(1), &config, |_| dummy::Behaviour),
    );
    let (at, flipped) = (
        Arc::new(AtomicU64::new(u64::MAX)),
        Arc::new(AtomicUsize::new(0)),
    );
    let target = socket(&listen(&mut a).await);
    let relay = multiaddr(flipping_relay(target, at.clone(), flipped.clone()).await);
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
    let (mut a, mut b) = (swarm(&private(1)), swarm(&private(1)));
    let target = socket(&listen(&mut a).await);
    let relay = multiaddr(flipping_relay(target, at, flipped.clone()).await);
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

#[tokio::test]
async fn s0_56_status_of_both_sides_names_the_mismatch() {
    let behaviour = |known: Vec<Multiaddr>| {
        let mut config = gemba_pnet::DialerConfig::default();
        config.known = known;
        Dialing {
            dialer: gemba_pnet::Dialer::new(config),
            limits: limits::Behaviour::new(Limits::tablet()),
        }
    };
    let mut a = swarm_with(&private(1), &TransportConfig::default(), |_| {
        behaviour(Vec::new())
    });
    let address = listen(&mut a).await;
    let mut b = swarm_with(&private(2), &TransportConfig::default(), |_| {
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
