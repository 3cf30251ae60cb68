//! A peer that is gone without a word is noticed.
#![allow(clippy::unwrap_used)]

mod common;

use std::{sync::Arc, time::Duration};

use common::*;
use gemba_pnet::{Liveness, LivenessConfig, LivenessEvent, TransportConfig};
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::{Multiaddr, Protocol};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::Notify,
};

fn node(millis: u64) -> Swarm<Liveness> {
    let mut config = LivenessConfig::default();
    config.interval = Duration::from_millis(millis);
    config.timeout = Duration::from_millis(millis);
    swarm_with(&private(1), &TransportConfig::default(), |_| {
        Liveness::new(&config)
    })
}

/// Passes bytes on until `cable` is pulled; then it keeps both sockets open and passes nothing.
async fn cable(target: Multiaddr, cable: Arc<Notify>) -> Multiaddr {
    let port = target.iter().find_map(|part| match part {
        Protocol::Tcp(port) => Some(port),
        _ => None,
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!(
        "/ip4/127.0.0.1/tcp/{}",
        listener.local_addr().unwrap().port()
    );
    tokio::spawn(async move {
        let (near, _) = listener.accept().await.unwrap();
        let far = TcpStream::connect(("127.0.0.1", port.unwrap()))
            .await
            .unwrap();
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) =
            (near.into_split(), far.into_split());
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                () = cable.notified() => std::future::pending::<()>().await,
                count = near_in.read(&mut up) => far_out.write_all(&up[..count.unwrap()]).await.unwrap(),
                count = far_in.read(&mut down) => near_out.write_all(&down[..count.unwrap()]).await.unwrap(),
            }
        }
    });
    address.parse().unwrap()
}

#[tokio::test]
async fn s0_57_the_round_trip_is_measured() {
    let (mut a, mut b) = (node(1000), node(1000));
    let address = listen(&mut a).await;
    b.dial(address).unwrap();
    let (_, rtt) = until_both(
        &mut a,
        &mut b,
        |_| Some(()),
        |event| match event {
            SwarmEvent::Behaviour(LivenessEvent::Rtt { rtt, .. }) => Some(*rtt),
            _ => None,
        },
    )
    .await;
    assert_eq!(b.behaviour().rtt(a.local_peer_id()), Some(rtt));
}

#[tokio::test]
async fn pnet_l2_a_pulled_cable_is_noticed_and_the_connection_closed() {
    let pulled = Arc::new(Notify::new());
    let (mut a, mut b) = (node(300), node(300));
    let address = listen(&mut a).await;
    b.dial(cable(address, pulled.clone()).await).unwrap();
    let answered = |event: &SwarmEvent<LivenessEvent>| {
        matches!(event, SwarmEvent::Behaviour(LivenessEvent::Rtt { .. })).then_some(())
    };
    until_both(&mut a, &mut b, answered, answered).await;
    pulled.notify_one();
    let peer = *a.local_peer_id();
    let dead = until(&mut b, |event| match event {
        SwarmEvent::Behaviour(LivenessEvent::Dead { peer, .. }) => Some(*peer),
        SwarmEvent::ConnectionClosed { .. } => panic!("closed by somebody else"),
        _ => None,
    })
    .await;
    assert_eq!(dead, peer);
    until(&mut b, |event| {
        matches!(event, SwarmEvent::ConnectionClosed { .. }).then_some(())
    })
    .await;
    assert_eq!(b.behaviour().rtt(&peer), None);
}

#[tokio::test]
async fn a_peer_that_does_not_speak_ping_is_left_alone() {
    let (mut mute, mut b) = (swarm(&private(1)), node(100));
    let address = listen(&mut mute).await;
    b.dial(address).unwrap();
    let stays = async {
        until_both(
            &mut mute,
            &mut b,
            |_| None::<()>,
            |event| match event {
                SwarmEvent::ConnectionClosed { .. } => Some(()),
                _ => None,
            },
        )
        .await
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(2), stays)
            .await
            .is_err()
    );
}
