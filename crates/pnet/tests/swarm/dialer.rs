//! What an operator is told about a dial that failed, and what the dialer does next.

use std::{collections::HashSet, time::Duration};

use crate::common::*;
use futures::AsyncWriteExt;
use gemba_pnet::{
    DialCause, Dialer, DialerConfig, DialerEvent, LimitKind, Limits, ListenCause, OtherProtocol,
    Silence, Stage, TransportConfig,
    dialer::{Target, redial::TargetState},
    limits,
};
use libp2p_identity::PeerId;
use libp2p_swarm::{DialError, NetworkBehaviour, Swarm, SwarmEvent, dial_opts::DialOpts, dummy};
use multiaddr::{Multiaddr, Protocol};
use tokio::net::{TcpListener, TcpStream};

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct App {
    dialer: Dialer,
    limits: limits::Behaviour,
}

fn app(over: Over, config: DialerConfig, transport: &TransportConfig) -> Swarm<App> {
    swarm_with(over, &private(1), transport, |_| App {
        dialer: Dialer::new(config),
        limits: limits::Behaviour::new(Limits::tablet()),
    })
}

fn node(over: Over) -> Swarm<App> {
    app(over, DialerConfig::default(), &TransportConfig::default())
}

fn knows(over: Over, known: Vec<Multiaddr>) -> Swarm<App> {
    let mut config = DialerConfig::default();
    config.known = known;
    app(over, config, &TransportConfig::default())
}

fn failure(event: &SwarmEvent<AppEvent>) -> Option<DialCause> {
    match event {
        SwarmEvent::Behaviour(AppEvent::Dialer(DialerEvent::Failed { cause, .. })) => {
            Some(cause.clone())
        }
        _ => None,
    }
}

fn established(event: &SwarmEvent<AppEvent>) -> Option<PeerId> {
    match event {
        SwarmEvent::ConnectionEstablished { peer_id, .. } => Some(*peer_id),
        _ => None,
    }
}

over_each_transport! {
    #[tokio::test]
    async fn s2_38_refused_means_not_running_or_wrong_port;
    #[tokio::test]
    async fn s2_37_another_peer_at_the_address_is_named_with_both_ids;
    #[tokio::test]
    async fn s2_40_while_backing_off_the_original_cause_and_the_next_try_are_shown;
    #[tokio::test]
    async fn reset_makes_everything_dialable_at_once;
    #[tokio::test]
    async fn who_lacks_neighbours_has_failed_addresses_tried_before_their_time_but_not_all_the_time;
    #[tokio::test]
    async fn known_peers_are_dialed_until_connected_and_again_when_lost;
    #[tokio::test]
    async fn a_known_peer_with_its_id_is_not_dialed_when_it_has_connected_by_itself;
    #[tokio::test]
    async fn a_discovered_peer_is_dialed_once_and_not_again_for_each_answer;
    #[tokio::test]
    async fn two_swarms_on_one_segment_do_not_spam;
    #[tokio::test]
    async fn a_new_address_of_a_peer_is_tried_at_once_whatever_became_of_the_old_one;
    #[tokio::test]
    async fn a_dial_by_peer_id_uses_the_known_addresses;
    #[tokio::test]
    async fn t8_the_connections_of_one_peer_are_limited_and_the_limit_is_named;
    #[tokio::test]
    async fn s0_58_a_dial_under_way_tells_what_it_waits_for;
}

async fn s2_38_refused_means_not_running_or_wrong_port(over: Over) {
    let mut node = node(over);
    node.dial(over.nowhere().await).unwrap();
    let cause = until(&mut node, failure).await;
    assert_eq!(cause, DialCause::Refused);
    assert!(cause.to_string().contains("is the node running"));
}

async fn s2_37_another_peer_at_the_address_is_named_with_both_ids(over: Over) {
    let (mut a, mut b) = (node(over), node(over));
    let address = listen(over, &mut a).await;
    let expected = PeerId::random();
    b.dial(address.with(Protocol::P2p(expected))).unwrap();
    let (_, cause) = until_both(&mut a, &mut b, established, failure).await;
    assert_eq!(
        cause,
        DialCause::WrongPeer {
            expected: Some(expected),
            obtained: *a.local_peer_id()
        }
    );
    let text = cause.to_string();
    assert!(text.contains(&expected.to_string()) && text.contains(&a.local_peer_id().to_string()));
}

/// A full accept queue drops connection requests silently, as a firewall does.
#[cfg(target_os = "linux")]
#[tokio::test]
async fn s2_39_unreachable_and_wrong_key_have_different_texts() {
    let over = Over::Tcp;
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let full = socket.listen(1).unwrap();
    let target = full.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(connected) =
        tokio::time::timeout(Duration::from_millis(200), TcpStream::connect(target)).await
    {
        queue.push(connected.unwrap());
        assert!(queue.len() < 100);
    }
    let mut config = TransportConfig::default();
    config.connect = Duration::from_millis(300);
    let mut node = app(over, DialerConfig::default(), &config);
    node.dial(
        format!("/ip4/127.0.0.1/tcp/{}", target.port())
            .parse::<Multiaddr>()
            .unwrap(),
    )
    .unwrap();
    let cause = until(&mut node, failure).await;
    assert_eq!(cause, DialCause::Unreachable);
    let wrong_key = DialCause::WrongSwarmKey {
        ours: key(1).fingerprint(),
    };
    assert!(cause.to_string().contains("no answer") && !cause.to_string().contains("key"));
    assert!(wrong_key.to_string().contains("swarm key"));
}

async fn s2_40_while_backing_off_the_original_cause_and_the_next_try_are_shown(over: Over) {
    let mut node = node(over);
    let address = over.nowhere().await;
    node.dial(address.clone()).unwrap();
    until(&mut node, failure).await;
    let denied = node.dial(address.clone()).unwrap_err();
    assert!(matches!(denied, DialError::Denied { .. }));
    let cause = DialCause::of(&denied);
    let DialCause::BackingOff { retry_in, because } = &cause else {
        panic!("{cause}")
    };
    assert_eq!(**because, DialCause::Refused);
    assert!(*retry_in <= Duration::from_secs(1));
    let text = cause.to_string();
    assert!(
        text.contains("connection refused") && text.contains("next attempt in 1 s"),
        "{text}"
    );
    // The operator's word goes before.
    let order = node.behaviour_mut().dialer.dial_now(address).unwrap();
    let ordered = until(&mut node, |event| match event {
        SwarmEvent::Behaviour(AppEvent::Dialer(DialerEvent::Failed {
            connection, cause, ..
        })) if *connection == order => Some(cause.clone()),
        _ => None,
    })
    .await;
    assert_eq!(ordered, DialCause::Refused);
}

async fn reset_makes_everything_dialable_at_once(over: Over) {
    let mut node = node(over);
    let address = over.nowhere().await;
    node.dial(address.clone()).unwrap();
    until(&mut node, failure).await;
    assert!(node.dial(address.clone()).is_err());
    assert_eq!(node.behaviour().dialer.failures().count(), 1);
    node.behaviour_mut().dialer.reset();
    assert_eq!(node.behaviour().dialer.failures().count(), 0);
    node.dial(address).unwrap();
    assert_eq!(until(&mut node, failure).await, DialCause::Refused);
}

async fn who_lacks_neighbours_has_failed_addresses_tried_before_their_time_but_not_all_the_time(
    over: Over,
) {
    let mut node = node(over);
    let address = over.nowhere().await;
    node.dial(address.clone()).unwrap();
    until(&mut node, failure).await;
    assert!(node.dial(address.clone()).is_err(), "it backs off");
    assert!(node.behaviour_mut().dialer.look_again());
    node.dial(address.clone()).unwrap();
    assert_eq!(until(&mut node, failure).await, DialCause::Refused);
    assert!(!node.behaviour_mut().dialer.look_again());
    assert!(node.dial(address).is_err(), "it backs off again");
}

async fn known_peers_are_dialed_until_connected_and_again_when_lost(over: Over) {
    let address = over.nowhere().await;
    let mut node = knows(over, vec![address.clone()]);
    assert_eq!(until(&mut node, failure).await, DialCause::Refused);
    let mut late = swarm(over, &private(1));
    let listener = late.listen_on(address.clone()).unwrap();
    until_both(&mut node, &mut late, established, |event| match event {
        SwarmEvent::ConnectionEstablished { .. } => Some(()),
        _ => None,
    })
    .await;
    assert_eq!(
        node.behaviour().dialer.targets()[0].state,
        TargetState::Connected
    );
    // It restarts.
    assert!(late.remove_listener(listener));
    drop(late);
    until(&mut node, |event| {
        matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(())
    })
    .await;
    let mut again = swarm(over, &private(1));
    again.listen_on(address).unwrap();
    until_both(&mut node, &mut again, established, |_| Some(())).await;
}

async fn a_known_peer_with_its_id_is_not_dialed_when_it_has_connected_by_itself(over: Over) {
    let mut a = node(over);
    let address = listen(over, &mut a).await;
    let peer = *a.local_peer_id();
    let mut b = knows(over, vec![over.nowhere().await.with(Protocol::P2p(peer))]);
    until(&mut b, failure).await;
    let at_b = listen(over, &mut b).await;
    let _ = address;
    a.dial(at_b).unwrap();
    until_both(&mut a, &mut b, established, established).await;
    let [target] = b.behaviour().dialer.targets().try_into().unwrap();
    assert_eq!(
        (target.target, target.state),
        (Target::Peer(peer), TargetState::Connected)
    );
    assert!(
        target.failures.is_empty(),
        "it came in with our key: nothing is held against it"
    );
}

async fn a_discovered_peer_is_dialed_once_and_not_again_for_each_answer(over: Over) {
    let (mut a, mut b) = (node(over), node(over));
    let address = listen(over, &mut a).await;
    let peer = *a.local_peer_id();
    for _ in 0..50 {
        b.behaviour_mut().dialer.discovered(peer, address.clone());
    }
    until_both(&mut a, &mut b, established, established).await;
    for _ in 0..50 {
        b.behaviour_mut().dialer.discovered(peer, address.clone());
    }
    let counters = b.network_info();
    assert_eq!(counters.connection_counters().num_connections(), 1);
    assert_eq!(b.behaviour().dialer.targets().len(), 1);
}

/// Two swarms with different keys on one segment see each other's answers all day.
async fn two_swarms_on_one_segment_do_not_spam(over: Over) {
    let mut foreign = swarm(over, &private(2));
    let address = listen(over, &mut foreign).await;
    let mut ours = node(over);
    let mut attempts = 0;
    for _ in 0..30 {
        ours.behaviour_mut()
            .dialer
            .discovered(*foreign.local_peer_id(), address.clone());
        // A liar names other peers at the same address.
        ours.behaviour_mut()
            .dialer
            .discovered(PeerId::random(), address.clone());
        let drive = async {
            loop {
                let next = futures::future::select(
                    futures::StreamExt::select_next_some(&mut foreign),
                    futures::StreamExt::select_next_some(&mut ours),
                );
                match next.await {
                    futures::future::Either::Left((SwarmEvent::IncomingConnection { .. }, _)) => {
                        attempts += 1;
                    }
                    futures::future::Either::Right((
                        SwarmEvent::ConnectionEstablished { .. },
                        _,
                    )) => panic!("connected"),
                    _ => {}
                }
            }
        };
        let _ = tokio::time::timeout(Duration::from_millis(50), drive).await;
    }
    assert!((1..=2).contains(&attempts), "{attempts} attempts");
    assert!(
        ours.behaviour()
            .dialer
            .failures()
            .all(|failed| failed.cause.is_foreign())
    );
}

async fn a_new_address_of_a_peer_is_tried_at_once_whatever_became_of_the_old_one(over: Over) {
    let (mut a, mut b) = (node(over), node(over));
    let peer = *a.local_peer_id();
    b.behaviour_mut()
        .dialer
        .discovered(peer, over.nowhere().await);
    until(&mut b, failure).await;
    let why = b.behaviour().dialer.why(&peer);
    assert_eq!(
        why.iter().map(|failed| &failed.cause).collect::<Vec<_>>(),
        [&DialCause::Refused]
    );
    let address = listen(over, &mut a).await;
    b.behaviour_mut().dialer.discovered(peer, address);
    until_both(&mut a, &mut b, established, established).await;
}

async fn a_dial_by_peer_id_uses_the_known_addresses(over: Over) {
    let (mut a, mut b) = (node(over), node(over));
    let peer = *a.local_peer_id();
    let address = listen(over, &mut a).await;
    assert!(matches!(
        DialCause::of(&b.dial(peer).unwrap_err()),
        DialCause::NoAddress
    ));
    b.add_peer_address(peer, address);
    b.dial(peer).unwrap();
    until_both(&mut a, &mut b, established, established).await;
    assert!(!b.behaviour().dialer.addresses(&peer).is_empty());
}

#[tokio::test]
async fn s2_27_malformed_unknown_and_unreachable_addresses_are_told_apart() {
    let over = Over::Tcp;
    let mut node = node(over);
    for (address, code) in [
        ("/ip4/127.0.0.1/udp/4001/quic-v1", "malformed"),
        (
            "/dnsaddr/bootstrap.example/p2p/12D3KooWEyoppNCUx8Yx66oV9fJnriXwCcXwDDUA2kj6vnc6iDEp",
            "malformed",
        ),
        ("/dns4/no-such-host.invalid/tcp/4001", "no_such_host"),
    ] {
        node.dial(address.parse::<Multiaddr>().unwrap()).unwrap();
        let cause = until(&mut node, failure).await;
        assert_eq!(cause.code(), code, "{address}: {cause}");
    }
}

#[tokio::test]
async fn s2_24_a_taken_port_is_named_with_the_process_that_has_it() {
    let over = Over::Tcp;
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let address: Multiaddr = format!("/ip4/127.0.0.1/tcp/{port}").parse().unwrap();
    let mut node = node(over);
    let error = node.listen_on(address.clone()).unwrap_err();
    let cause = ListenCause::of(&address, &error);
    let ListenCause::AddressInUse {
        port: named,
        process,
    } = &cause
    else {
        panic!("{cause}")
    };
    assert_eq!(*named, port);
    if cfg!(target_os = "linux") {
        assert!(
            process
                .as_ref()
                .unwrap()
                .contains(&std::process::id().to_string()),
            "{cause}"
        );
    }
    let nowhere: Multiaddr = "/ip4/192.0.2.1/tcp/0".parse().unwrap();
    let cause = ListenCause::of(&nowhere, &node.listen_on(nowhere.clone()).unwrap_err());
    assert_eq!(
        cause,
        ListenCause::NotOurs {
            ip: Some("192.0.2.1".parse().unwrap())
        }
    );
}

async fn t8_the_connections_of_one_peer_are_limited_and_the_limit_is_named(over: Over) {
    let (mut a, mut b) = (node(over), node(over));
    let address = listen(over, &mut a).await;
    let peer = *a.local_peer_id();
    for _ in 0..Limits::tablet().established_per_peer {
        let options =
            DialOpts::peer_id(peer).condition(libp2p_swarm::dial_opts::PeerCondition::Always);
        b.dial(options.addresses(vec![address.clone()]).build())
            .unwrap();
        until_both(&mut a, &mut b, established, established).await;
    }
    b.dial(address).unwrap();
    let cause = until_both(&mut a, &mut b, |_| Some(()), failure).await.1;
    assert_eq!(cause, DialCause::Limit(LimitKind::EstablishedPerPeer));
}

#[test]
fn s0_58_each_cause_has_a_text_and_a_code_of_its_own() {
    let ours = key(1).fingerprint();
    let refused = Box::new(DialCause::Refused);
    let peer = PeerId::random();
    let causes = [
        DialCause::Refused,
        DialCause::Unreachable,
        DialCause::NoNonce(Silence::HungUp),
        DialCause::WrongSwarmKey { ours },
        DialCause::ProbablyWrongSwarmKey { ours },
        DialCause::NotPrivate,
        DialCause::NotLibp2p(OtherProtocol::Http),
        DialCause::SecurityFailed("x".into()),
        DialCause::WrongPeer {
            expected: Some(peer),
            obtained: peer,
        },
        DialCause::Ourselves,
        DialCause::BackingOff {
            retry_in: Duration::from_secs(200),
            because: refused,
        },
        DialCause::Limit(LimitKind::Established),
        DialCause::Malformed("x".into()),
        DialCause::NoSuchHost("x".into()),
        DialCause::NoAddress,
        DialCause::Other("x".into()),
    ];
    let texts: HashSet<String> = causes.iter().map(ToString::to_string).collect();
    let codes: HashSet<&str> = causes.iter().map(DialCause::code).collect();
    assert_eq!((texts.len(), codes.len()), (causes.len(), causes.len()));
    for text in &texts {
        assert!(
            !text.to_lowercase().contains("backoff") && !text.contains("deadline exceeded"),
            "{text}"
        );
    }
    assert!(causes[10].to_string().contains("4 min"), "{}", causes[10]);
}

/// Whoever does not want to wait for the end of a dial is told what it waits for.
async fn s0_58_a_dial_under_way_tells_what_it_waits_for(over: Over) {
    let mut listener = RawListener::new(over).await;
    let address = listener.address();
    let config = TransportConfig::default();
    let mut ours = swarm_with(over, &private(1), &config, |_| dummy::Behaviour);
    assert_eq!(config.stages.of(&address), None);
    ours.dial(address.clone()).unwrap();
    let drive = until(&mut ours, |event| match event {
        SwarmEvent::OutgoingConnectionError { error, .. } => Some(DialCause::of(error)),
        _ => None,
    });
    let watch = async {
        let mut socket = listener.accept().await;
        let seen = async |stage| {
            while config.stages.of(&address) != Some(stage) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        seen(Stage::Nonce).await;
        socket.write_all(&[7; 24]).await.unwrap();
        socket.flush().await.unwrap();
        seen(Stage::Secure).await;
    };
    let watch = async { tokio::time::timeout(PATIENCE, watch).await.unwrap() };
    let (cause, ()) = futures::join!(drive, watch);
    assert!(
        matches!(cause, DialCause::ProbablyWrongSwarmKey { .. }),
        "{cause}"
    );
    assert_eq!(config.stages.of(&address), None);
}
