//! A peer that is gone without a word is noticed.

use std::{sync::Arc, time::Duration};

use crate::common::*;
use futures::{AsyncReadExt, AsyncWriteExt};
use gemba_pnet::{Liveness, LivenessConfig, LivenessEvent, TransportConfig};
use libp2p_swarm::{Swarm, SwarmEvent};
use multiaddr::Multiaddr;
use tokio::sync::Notify;

fn node(over: Over, millis: u64) -> Swarm<Liveness> {
    let mut config = LivenessConfig::default();
    config.interval = Duration::from_millis(millis);
    config.timeout = Duration::from_millis(millis);
    swarm_with(over, &private(1), &TransportConfig::default(), |_| {
        Liveness::new(&config)
    })
}

/// Passes bytes on until `cable` is pulled; then it keeps both sockets open and passes nothing.
async fn cable(over: Over, target: Multiaddr, cable: Arc<Notify>) -> Multiaddr {
    let mut listener = RawListener::new(over).await;
    let address = listener.address();
    tokio::spawn(async move {
        let near = listener.accept().await;
        let far = over.connect(&target).await.unwrap();
        let ((mut near_in, mut near_out), (mut far_in, mut far_out)) = (near.split(), far.split());
        let (mut up, mut down) = ([0; 4096], [0; 4096]);
        loop {
            tokio::select! {
                () = cable.notified() => std::future::pending::<()>().await,
                count = near_in.read(&mut up) => {
                    far_out.write_all(&up[..count.unwrap()]).await.unwrap();
                    far_out.flush().await.unwrap();
                }
                count = far_in.read(&mut down) => {
                    near_out.write_all(&down[..count.unwrap()]).await.unwrap();
                    near_out.flush().await.unwrap();
                }
            }
        }
    });
    address
}

over_each_transport! {
    #[tokio::test]
    async fn s0_57_the_round_trip_is_measured;
    #[tokio::test]
    async fn pnet_l2_a_pulled_cable_is_noticed_and_the_connection_closed;
    #[tokio::test]
    async fn a_peer_that_does_not_speak_ping_is_left_alone;
}

async fn s0_57_the_round_trip_is_measured(over: Over) {
    let (mut a, mut b) = (node(over, 1000), node(over, 1000));
    let address = listen(over, &mut a).await;
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

async fn pnet_l2_a_pulled_cable_is_noticed_and_the_connection_closed(over: Over) {
    let pulled = Arc::new(Notify::new());
    let (mut a, mut b) = (node(over, 300), node(over, 300));
    let address = listen(over, &mut a).await;
    b.dial(cable(over, address, pulled.clone()).await).unwrap();
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

async fn a_peer_that_does_not_speak_ping_is_left_alone(over: Over) {
    let (mut mute, mut b) = (swarm(over, &private(1)), node(over, 100));
    let address = listen(over, &mut mute).await;
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
