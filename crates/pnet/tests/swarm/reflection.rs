//! T11: whoever says that peers live at a printer's address would like all nodes of the swarm to knock there. In virtual time.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    time::Duration,
};

use crate::common::{
    lan::{Lan, Socket, pipe},
    multiaddr,
};
use futures::{AsyncReadExt, AsyncWriteExt, FutureExt, StreamExt, future::BoxFuture};
use gemba_pnet::{DialCause, Dialer, DialerConfig, Limits, TransportConfig, limits};
use gemba_testkit::Rng;
use libp2p_identity::PeerId;
use libp2p_swarm::{NetworkBehaviour, Swarm, SwarmEvent, dummy};
use tokio::time::{Instant, sleep, sleep_until};

const MINUTE: Duration = Duration::from_secs(60);
const US: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct App {
    dialer: Dialer,
    limits: limits::Behaviour,
}

fn node(lan: &Lan, config: DialerConfig) -> Swarm<App> {
    lan.swarm(US, &TransportConfig::default(), |_| App {
        dialer: Dialer::new(config),
        limits: limits::Behaviour::new(Limits::pc()),
    })
}

fn victim(number: usize) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 0, 66, number as u8))
}

/// What printers and controllers do when somebody knocks: some refuse, some do not answer, some speak of other things.
fn printer(at: SocketAddr) -> BoxFuture<'static, io::Result<Socket>> {
    let IpAddr::V4(ip) = at.ip() else { panic!() };
    let manner = (ip.octets()[3] as u16 + at.port()) % 5;
    async move {
        let (near, mut far) = pipe();
        match manner {
            0 => return Err(io::ErrorKind::ConnectionRefused.into()),
            1 => sleep(Duration::from_secs(3600)).await,
            2 => {
                tokio::spawn(
                    async move { far.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await },
                );
            }
            3 => {
                tokio::spawn(async move {
                    let mut sink = Vec::new();
                    let _ = far.read_to_end(&mut sink).await;
                });
            }
            _ => drop(far),
        }
        Ok(near)
    }
    .boxed()
}

/// A member that lies about where it lives, and goes and comes back every second, so that everything that is held against its addresses
/// is forgotten and it is dialed anew.
fn insider(lan: &Lan, number: u8) -> PeerId {
    let ip = Ipv4Addr::new(10, 0, 1, number);
    let mut swarm = lan.swarm(ip, &TransportConfig::default(), |_| dummy::Behaviour);
    let peer = *swarm.local_peer_id();
    tokio::spawn(async move {
        loop {
            swarm.dial(multiaddr((US, 4001).into())).unwrap();
            let until = sleep(Duration::from_secs(1));
            let mut until = std::pin::pin!(until);
            loop {
                tokio::select! {
                    event = swarm.select_next_some() => {
                        if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                            swarm.disconnect_peer_id(peer_id).unwrap();
                        }
                    }
                    () = &mut until => break,
                }
            }
        }
    });
    peer
}

/// Drives the node for so long, and hands every event to `on`.
async fn run(node: &mut Swarm<App>, length: Duration, mut on: impl FnMut(&SwarmEvent<AppEvent>)) {
    let end = Instant::now() + length;
    loop {
        tokio::select! {
            event = node.select_next_some() => on(&event),
            () = sleep_until(end) => return,
        }
    }
}

/// Five nodes on one host, all of them discovered at this moment.
fn five_devices(lan: &Lan, node: &mut Swarm<App>) -> Vec<PeerId> {
    let start = |port| {
        let ip = Ipv4Addr::new(10, 0, 2, 2);
        let mut device = lan.swarm(ip, &TransportConfig::default(), |_| dummy::Behaviour);
        let at = multiaddr((ip, port).into());
        device.listen_on(at.clone()).unwrap();
        let peer = *device.local_peer_id();
        tokio::spawn(async move {
            loop {
                device.select_next_some().await;
            }
        });
        node.behaviour_mut().dialer.discovered(peer, at);
        peer
    };
    (4001..4006).map(start).collect()
}

/// T11: 10,000 addresses at 50 victims, said of 400 peers over and over by neighbours (mDNS) and members (identify), for twenty minutes,
/// or four of them. Each victim gets one connect a minute, whatever the ports and the peers, whoever comes and goes. Devices that are
/// there are found meanwhile, five of them on one host.
#[tokio::test(start_paused = true)]
async fn t11_ten_thousand_poisoned_addresses_cost_a_victim_one_connect_a_minute() {
    const VICTIMS: usize = 50;
    const POISONED: usize = 10_000;
    let lan = Lan::new(printer);
    let mut rng = Rng::from_env_or(11);
    let mut node = node(&lan, DialerConfig::default());
    node.listen_on(multiaddr((US, 4001).into())).unwrap();
    let insiders: Vec<PeerId> = (0..8).map(|number| insider(&lan, number)).collect();
    let peers: Vec<PeerId> = (0..392)
        .map(|_| PeerId::random())
        .chain(insiders.iter().copied())
        .collect();
    let poisoned: Vec<(PeerId, SocketAddr)> = (0..POISONED)
        .map(|n| {
            let port = 1 + (n / VICTIMS) as u16;
            (*rng.pick(&peers), (victim(n % VICTIMS), port).into())
        })
        .collect();
    let mut honest = Vec::new();
    let (mut met, mut connected) = (0, BTreeMap::new());
    let minutes = gemba_testkit::sim_scale(20).max(4);
    for second in 0..60 * minutes {
        for _ in 0..20 {
            let (peer, address) = *rng.pick(&poisoned);
            match rng.coin() {
                true => node
                    .behaviour_mut()
                    .dialer
                    .discovered(peer, multiaddr(address)),
                false => node.add_peer_address(peer, multiaddr(address)),
            }
        }
        if second == 60 {
            honest = five_devices(&lan, &mut node);
        }
        let start = Instant::now();
        run(&mut node, Duration::from_secs(1), |event| {
            if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
                met += usize::from(insiders.contains(peer_id));
                connected.entry(*peer_id).or_insert(second);
            }
        })
        .await;
        assert!(start.elapsed() < Duration::from_secs(2));
    }
    let mut connects: BTreeMap<IpAddr, Vec<Duration>> = BTreeMap::new();
    for (to, at) in lan.dials() {
        connects.entry(to.ip()).or_default().push(at);
    }
    for number in 0..VICTIMS {
        let times = &connects[&victim(number)];
        assert!(times.len() >= minutes / 3, "{} to {number}", times.len());
        let least = times
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .min()
            .unwrap();
        assert!(least >= MINUTE, "twice within {least:?} to {number}");
    }
    assert!(met > 60 * minutes, "the insiders came and went: {met}");
    for peer in &honest {
        let took = connected[peer] - 60;
        assert!(took <= 10, "found after {took} s");
    }
    // Whoever asks is told.
    let why = peers
        .iter()
        .flat_map(|peer| node.behaviour().dialer.why(peer));
    let spared: Vec<_> = why
        .filter(|failed| failed.cause == DialCause::HostSpared)
        .collect();
    assert!(!spared.is_empty());
    for failed in spared {
        assert!(failed.count == 0 && failed.retry_in <= MINUTE, "{failed:?}");
    }
}

/// What the operator says, and where a member was once found, is tried at the pace of the back-off, poisoned or not.
#[tokio::test(start_paused = true)]
async fn known_peers_and_members_once_found_are_dialed_sooner() {
    let lan = Lan::new(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) }.boxed());
    let (known, heard) = (victim(1), victim(2));
    let mut config = DialerConfig::default();
    config.known = vec![multiaddr((known, 4001).into())];
    let mut node = node(&lan, config);
    for port in 4001..4010 {
        node.behaviour_mut()
            .dialer
            .discovered(PeerId::random(), multiaddr((heard, port).into()));
    }
    run(&mut node, MINUTE - Duration::from_secs(1), |_| {}).await;
    let to = |ip: IpAddr| lan.dials().iter().filter(|(to, _)| to.ip() == ip).count();
    assert!((6..=9).contains(&to(known)), "{}", to(known));
    assert_eq!(to(heard), 1);

    // A member at the host that was only heard of: found within the next minutes, lost again, and dialed at once from then on.
    let mut device = lan.swarm(heard, &TransportConfig::default(), |_| dummy::Behaviour);
    let at = multiaddr((heard, 5001).into());
    let peer = *device.local_peer_id();
    device.listen_on(at.clone()).unwrap();
    let task = tokio::spawn(async move {
        loop {
            device.select_next_some().await;
        }
    });
    let mut connected = false;
    let mut minutes = 0;
    while !connected {
        minutes += 1;
        assert!(minutes <= 12, "one of ten addresses a minute");
        node.behaviour_mut().dialer.discovered(peer, at.clone());
        run(&mut node, MINUTE, |event| {
            connected |= matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if *peer_id == peer);
        })
        .await;
    }
    task.abort();
    let before = to(heard);
    run(&mut node, Duration::from_secs(30), |_| {}).await;
    let again = lan.dials();
    let again = again.iter().filter(|(to, _)| *to == (heard, 5001).into());
    assert!(again.count() >= 4 && to(heard) >= before + 3);
}

/// A host with several nodes is not taken for a victim: each that is found makes way for the next one.
#[tokio::test(start_paused = true)]
async fn nodes_that_share_a_host_are_found_at_once() {
    let lan = Lan::new(|_| async { Err(io::ErrorKind::ConnectionRefused.into()) }.boxed());
    let mut node = node(&lan, DialerConfig::default());
    let devices = five_devices(&lan, &mut node);
    let mut found = Vec::new();
    run(&mut node, Duration::from_secs(3), |event| {
        if let SwarmEvent::ConnectionEstablished { peer_id, .. } = event {
            found.push(*peer_id);
        }
    })
    .await;
    assert_eq!(found.len(), 5);
    assert!(devices.iter().all(|peer| found.contains(peer)));
}
