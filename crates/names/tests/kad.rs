//! The route over the DHT between real swarms, below the private network's wall, against a plain `libp2p-kad` as well (specs/names.md §8).
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::time::Duration;

use common::{key, name, wall};
use futures::StreamExt as _;
use gemba_names::kad::{Config, Dht, Event, Failed, Mode};
use gemba_names::{Keypair, PeerId, Record, Unsigned};
use gemba_pnet::{Network, SwarmKey, TransportConfig};
use libp2p_core::Transport as _;
use libp2p_core::transport::MemoryTransport;
use libp2p_kad as kad;
use libp2p_kad::store::{MemoryStore, RecordStore as _};
use libp2p_swarm::behaviour::toggle::Toggle;
use libp2p_swarm::{NetworkBehaviour, StreamProtocol, Swarm, SwarmEvent};
use multiaddr::Multiaddr;

/// Nothing here waits for anything but the other end.
const LIMIT: Duration = Duration::from_secs(60);
const LAN: StreamProtocol = StreamProtocol::new("/ipfs/lan/kad/1.0.0");
const NOW: &str = "2027-01-01T00:00:00Z";

/// A gemba, or a plain `libp2p-kad` that checks nothing.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p_swarm::derive_prelude")]
struct Node {
    dht: Toggle<Dht>,
    raw: Toggle<kad::Behaviour<MemoryStore>>,
}

struct World {
    swarms: Vec<Swarm<Node>>,
}

async fn swarm(make: impl FnOnce(PeerId) -> Node) -> Swarm<Node> {
    let keypair = Keypair::generate_ed25519();
    let network = Network::Private(SwarmKey::from_bytes([1; 32]));
    let carrier = MemoryTransport::new()
        .map_err(|error| io::Error::new(io::ErrorKind::ConnectionRefused, error));
    let transport =
        gemba_pnet::transport_over(carrier, &keypair, &network, &TransportConfig::default())
            .unwrap();
    let config = libp2p_swarm::Config::with_tokio_executor()
        .with_idle_connection_timeout(Duration::from_secs(600));
    let id = keypair.public().to_peer_id();
    let mut swarm = Swarm::new(transport, make(id), id, config);
    swarm.listen_on("/memory/0".parse().unwrap()).unwrap();
    loop {
        if let SwarmEvent::NewListenAddr { .. } = swarm.select_next_some().await {
            return swarm;
        }
    }
}

fn gemba(config: Config) -> impl FnOnce(PeerId) -> Node {
    move |id| {
        let mut dht = Dht::new(id, config);
        dht.set_wall(wall(NOW));
        Node {
            dht: Some(dht).into(),
            raw: None.into(),
        }
    }
}

fn plain(id: PeerId) -> Node {
    let mut settings = kad::Config::new(LAN);
    settings.set_query_timeout(LIMIT);
    let mut raw = kad::Behaviour::with_config(id, MemoryStore::new(id), settings);
    raw.set_mode(Some(kad::Mode::Server));
    Node {
        dht: None.into(),
        raw: Some(raw).into(),
    }
}

impl World {
    /// So many servers; all but the first know the first alone, which knows all.
    async fn star(count: usize) -> Self {
        let mut world = Self { swarms: Vec::new() };
        for _ in 0..count {
            world.add(gemba(Config::default())).await;
        }
        for at in 1..count {
            world.connect(at, 0).await;
        }
        world
    }

    async fn add(&mut self, make: impl FnOnce(PeerId) -> Node) -> usize {
        self.swarms.push(swarm(make).await);
        self.swarms.len() - 1
    }

    fn id(&self, at: usize) -> PeerId {
        *self.swarms[at].local_peer_id()
    }

    fn addresses(&self, at: usize) -> Vec<Multiaddr> {
        self.swarms[at].listeners().cloned().collect()
    }

    fn dht(&mut self, at: usize) -> &mut Dht {
        self.swarms[at].behaviour_mut().dht.as_mut().unwrap()
    }

    fn raw(&mut self, at: usize) -> &mut kad::Behaviour<MemoryStore> {
        self.swarms[at].behaviour_mut().raw.as_mut().unwrap()
    }

    /// Connects two and tells each of the other what identify would.
    async fn connect(&mut self, from: usize, to: usize) {
        let (target, address) = (self.id(to), self.addresses(to).remove(0));
        self.swarms[from].dial(address).unwrap();
        self.until(|at, event| {
            let is_it = |peer: &PeerId| at == from && *peer == target;
            matches!(event, SwarmEvent::ConnectionEstablished { peer_id, .. } if is_it(&peer_id))
                .then_some(())
        })
        .await;
        self.introduce(from, to);
        self.introduce(to, from);
    }

    /// What `of` says of itself reaches `to`.
    fn introduce(&mut self, to: usize, of: usize) {
        let (id, addresses) = (self.id(of), self.addresses(of));
        let serves = match self.swarms[of].behaviour().dht.as_ref() {
            Some(dht) => dht.mode() == Mode::Server,
            None => true,
        };
        let protocols: &[StreamProtocol] = if serves { &[LAN] } else { &[] };
        let behaviour = self.swarms[to].behaviour_mut();
        if let Some(dht) = behaviour.dht.as_mut() {
            dht.identified(id, protocols, &addresses);
        } else if let (Some(raw), true) = (behaviour.raw.as_mut(), serves) {
            raw.add_address(&id, addresses[0].clone());
        }
    }

    /// Drives all until one of them tells something that is looked for.
    async fn until<T>(
        &mut self,
        mut wanted: impl FnMut(usize, SwarmEvent<NodeEvent>) -> Option<T>,
    ) -> T {
        let swarms = &mut self.swarms;
        let looking = std::future::poll_fn(|cx| {
            loop {
                let mut idle = true;
                for (at, swarm) in swarms.iter_mut().enumerate() {
                    while let std::task::Poll::Ready(Some(event)) = swarm.poll_next_unpin(cx) {
                        idle = false;
                        if let Some(found) = wanted(at, event) {
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

    async fn until_dht<T>(&mut self, mut wanted: impl FnMut(usize, Event) -> Option<T>) -> T {
        self.until(|at, event| match event {
            SwarmEvent::Behaviour(NodeEvent::Dht(event)) => wanted(at, event),
            _ => None,
        })
        .await
    }

    /// Puts, and says how many took it.
    async fn put(
        &mut self,
        at: usize,
        record: &Record,
        peers: Option<Vec<PeerId>>,
    ) -> Result<usize, Failed> {
        self.dht(at).put(record.clone(), peers);
        self.until_dht(|told, event| match event {
            Event::Put {
                record: put,
                outcome,
            } if told == at && put == *record => Some(outcome),
            _ => None,
        })
        .await
    }

    /// Asks, and says what came, in order, and how it ended.
    async fn get(
        &mut self,
        at: usize,
        number: u8,
    ) -> (Vec<(PeerId, Option<Vec<u8>>)>, Result<usize, Failed>) {
        self.dht(at).get(name(number));
        let mut answers = Vec::new();
        let outcome = self
            .until_dht(|told, event| match event {
                Event::Answer {
                    name: of,
                    peer,
                    record,
                } if told == at && of == name(number) => {
                    answers.push((peer, record));
                    None
                }
                Event::Got { name: of, outcome } if told == at && of == name(number) => {
                    Some(outcome)
                }
                _ => None,
            })
            .await;
        (answers, outcome)
    }

    /// Has a plain `libp2p-kad` put bytes at somebody; whether he took them.
    async fn put_plain(&mut self, from: usize, to: usize, key: Vec<u8>, value: Vec<u8>) -> bool {
        let peer = self.id(to);
        let record = kad::Record::new(key, value);
        let query = self
            .raw(from)
            .put_record_to(record, std::iter::once(peer), kad::Quorum::One);
        self.until(|at, event| match event {
            SwarmEvent::Behaviour(NodeEvent::Raw(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::PutRecord(result),
                ..
            })) if at == from && id == query => Some(result.is_ok()),
            _ => None,
        })
        .await
    }
}

fn record(number: u8, sequence: u64) -> Record {
    ending(number, sequence, "2027-06-01T00:00:00Z")
}

fn ending(number: u8, sequence: u64, end: &str) -> Record {
    let value = format!("/ipfs/bafkqaaa/{sequence}");
    Unsigned::new(value, sequence, wall(end))
        .sign(&key(number))
        .unwrap()
}

/// Five servers, of which four know only the first: what one puts, another finds, and it is the same bytes.
#[tokio::test]
async fn s0_22_na_31_a_record_put_at_one_of_five_is_found_at_another() {
    let mut world = World::star(5).await;
    let put = record(1, 7);
    // He keeps it himself, and learns of the other three through the first.
    assert!(world.put(1, &put, None).await.unwrap() >= 1);
    for at in 2..5 {
        let (answers, outcome) = world.get(at, 1).await;
        assert!(outcome.unwrap() >= 1, "{answers:?}");
        let best = answers[0].1.as_deref();
        assert_eq!(best, Some(put.bytes()));
    }
    let keepers = (0..5)
        .filter(|at| world.dht(*at).kept_of(&name(1)).is_some())
        .count();
    assert_eq!(keepers, 5, "all of them are among the twenty closest");
    let (answers, outcome) = world.get(4, 2).await;
    assert_eq!(
        outcome,
        Ok(0),
        "nobody has it, and they said so: {answers:?}"
    );
    assert!(answers.iter().all(|(_, record)| record.is_none()) && !answers.is_empty());
}

/// A plain `libp2p-kad` is told no for what is not a valid newer record, so that its quorum counts no refusal as a success.
#[tokio::test]
async fn x2_na_29_a_server_refuses_what_is_forged_older_ended_or_no_name() {
    let mut world = World { swarms: Vec::new() };
    let server = world.add(gemba(Config::default())).await;
    let hostile = world.add(plain).await;
    world.connect(hostile, server).await;
    let routing_key = name(1).routing_key();
    let good = record(1, 5);
    assert!(
        world
            .put_plain(hostile, server, routing_key.clone(), good.bytes().to_vec())
            .await
    );
    let mut unsigned = Unsigned::new(*b"/ipfs/bafkqaaa", 9, wall("2027-06-01T00:00:00Z"));
    // The value stands in it once, under the signature.
    unsigned.v1 = false;
    let mut forged = unsigned.sign(&key(1)).unwrap().bytes().to_vec();
    let at = forged
        .windows(14)
        .position(|w| w == b"/ipfs/bafkqaaa")
        .unwrap();
    forged[at + 13] = b'b';
    let refused: [(&str, Vec<u8>, Vec<u8>); 5] = [
        ("forged", routing_key.clone(), forged),
        (
            "a lower sequence",
            routing_key.clone(),
            record(1, 4).bytes().to_vec(),
        ),
        (
            "past its end",
            routing_key.clone(),
            ending(1, 9, "2026-12-31T23:59:59Z").bytes().to_vec(),
        ),
        (
            "of another key",
            name(2).routing_key(),
            record(1, 9).bytes().to_vec(),
        ),
        ("no name", b"/app/anything".to_vec(), b"anything".to_vec()),
    ];
    for (what, key, value) in refused {
        assert!(
            !world.put_plain(hostile, server, key, value).await,
            "{what} was taken"
        );
    }
    assert_eq!(world.dht(server).kept_of(&name(1)), Some(good.clone()));
    let counted = world.dht(server).counters().1;
    assert_eq!(
        (
            counted.stored,
            counted.invalid,
            counted.older,
            counted.expired,
            counted.foreign
        ),
        (1, 2, 1, 1, 1)
    );
    // And it reads what is stored, as from any server.
    let query = world
        .raw(hostile)
        .get_record(kad::RecordKey::from(routing_key));
    let found = world
        .until(|at, event| match event {
            SwarmEvent::Behaviour(NodeEvent::Raw(kad::Event::OutboundQueryProgressed {
                id,
                result: kad::QueryResult::GetRecord(Ok(kad::GetRecordOk::FoundRecord(found))),
                ..
            })) if at == hostile && id == query => Some(found.record.value),
            _ => None,
        })
        .await;
    assert_eq!(found, good.bytes());
}

/// What a peer puts at a server that knows the name is told to its book at once.
#[tokio::test]
async fn na_31_what_is_put_at_a_server_is_told_to_its_owner() {
    let mut world = World { swarms: Vec::new() };
    let server = world.add(gemba(Config::default())).await;
    let putting = world.add(gemba(Config::default())).await;
    world.connect(putting, server).await;
    let put = record(1, 5);
    world.dht(putting).put(put.clone(), None);
    let (peer, told) = world
        .until_dht(|at, event| match event {
            Event::Stored { peer, record } if at == server => Some((peer, record)),
            _ => None,
        })
        .await;
    assert_eq!((peer, told), (world.id(putting), put));
}

/// Servers with an older record or none are given the best one that was found, and only they.
#[tokio::test]
async fn na_32_the_best_of_all_answers_comes_first_and_the_others_are_repaired() {
    let mut world = World::star(4).await;
    let (old, new) = (record(1, 3), record(1, 4));
    let ids: Vec<PeerId> = (0..4).map(|at| world.id(at)).collect();
    assert_eq!(world.put(0, &old, Some(vec![ids[1]])).await, Ok(1));
    assert_eq!(world.put(0, &new, Some(vec![ids[2]])).await, Ok(1));
    let (answers, outcome) = world.get(0, 1).await;
    assert_eq!(outcome, Ok(2));
    assert_eq!(
        answers[0],
        (ids[2], Some(new.bytes().to_vec())),
        "the best first"
    );
    assert_eq!(answers[1], (ids[1], Some(old.bytes().to_vec())));
    assert_eq!(answers[2..], [(ids[3], None)]);
    let decoded: Vec<(PeerId, Option<Record>)> = answers
        .into_iter()
        .map(|(peer, bytes)| {
            (
                peer,
                bytes.map(|bytes| Record::open(name(1), &bytes).unwrap()),
            )
        })
        .collect();
    let behind = gemba_names::dht::repair(&new, &decoded);
    assert_eq!(behind, [ids[1], ids[3]]);
    assert_eq!(world.put(0, &new, Some(behind)).await, Ok(2));
    for at in 1..4 {
        assert_eq!(
            world.dht(at).kept_of(&name(1)),
            Some(new.clone()),
            "server {at}"
        );
    }
    // Whoever would put the old one again is told no by all.
    assert_eq!(
        world.put(0, &old, Some(vec![ids[1], ids[3]])).await,
        Err(Failed::NoAnswer)
    );
}

/// A client asks and puts, is in nobody's table, and takes nothing.
#[tokio::test]
async fn s0_54_na_28_a_client_asks_and_is_not_asked() {
    let mut world = World::star(2).await;
    let client = world
        .add(gemba(Config {
            mode: Mode::Client,
            ..Config::default()
        }))
        .await;
    world.connect(client, 0).await;
    let put = record(1, 1);
    assert_eq!(world.put(1, &put, None).await.map(|_| ()), Ok(()));
    let (answers, _) = world.get(client, 1).await;
    assert_eq!(answers[0].1.as_deref(), Some(put.bytes()));
    let own = record(2, 1);
    assert!(world.put(client, &own, None).await.unwrap() >= 2);
    assert_eq!(world.dht(0).kept_of(&name(2)), Some(own));
    for server in 0..2 {
        assert_eq!(
            world.dht(server).servers(),
            1,
            "the client is in the table of {server}"
        );
    }
    let hostile = world.add(plain).await;
    world.connect(hostile, client).await;
    let taken = world
        .put_plain(
            hostile,
            client,
            name(3).routing_key(),
            record(3, 1).bytes().to_vec(),
        )
        .await;
    assert!(!taken && world.dht(client).kept_of(&name(3)).is_none());
}

/// Everything that asks ends, with a cause: nobody known, too many, nobody there any more.
#[tokio::test]
async fn na_30_every_query_ends_with_a_cause() {
    let mut world = World { swarms: Vec::new() };
    let config = Config {
        query_timeout: Duration::from_secs(2),
        max_waiting: 2,
        ..Config::default()
    };
    let asking = world.add(gemba(config)).await;
    assert_eq!(
        world.get(asking, 1).await,
        (Vec::new(), Err(Failed::NoServers))
    );
    assert_eq!(
        world.put(asking, &record(1, 1), None).await,
        Err(Failed::NoServers)
    );
    // It is a server: what it has itself it finds.
    let (answers, outcome) = world.get(asking, 1).await;
    assert_eq!((answers.len(), outcome), (1, Ok(1)));
    for number in 2..5 {
        world.dht(asking).get(name(number));
    }
    let (refused, outcome) = world
        .until_dht(|_, event| match event {
            Event::Got { name, outcome } => Some((name, outcome)),
            _ => None,
        })
        .await;
    assert_eq!((refused, outcome), (name(4), Err(Failed::Full(2))));
    // A server that is known and gone.
    let gone = world.add(gemba(Config::default())).await;
    world.connect(asking, gone).await;
    drop(world.swarms.pop());
    let (answers, outcome) = world.get(asking, 9).await;
    assert!(answers.is_empty());
    assert!(
        matches!(outcome, Err(Failed::NoAnswer | Failed::TimedOut(_))),
        "{outcome:?}"
    );
    assert_eq!(world.dht(asking).queries(), (0, 0));
}

/// Only who serves the DHT enters, with few addresses, and there is a bound for all of them together.
#[tokio::test]
async fn na_28_the_tables_are_bounded_and_only_servers_enter() {
    let mut world = World { swarms: Vec::new() };
    let at = world
        .add(gemba(Config {
            max_peers: 4,
            ..Config::default()
        }))
        .await;
    let addresses: Vec<Multiaddr> = (1..100)
        .map(|port| format!("/ip4/192.168.1.2/tcp/{port}").parse().unwrap())
        .collect();
    let peers: Vec<PeerId> = (0..50).map(|_| PeerId::random()).collect();
    world.dht(at).identified(
        peers[0],
        &[StreamProtocol::new("/ipfs/bitswap/1.2.0")],
        &addresses,
    );
    world.dht(at).identified(peers[0], &[LAN], &[]);
    for peer in &peers[1..] {
        world.dht(at).identified(*peer, &[LAN], &addresses);
        let told = world.until_dht(|_, event| match event {
            Event::Servers(count) => Some(count),
            _ => None,
        });
        // The table is updated as the swarm runs; only some of it is news.
        let _news = tokio::time::timeout(Duration::from_millis(5), told).await;
    }
    assert_eq!(world.dht(at).servers(), 4);
    assert_eq!(world.dht(at).counters().0.peers_refused, 45);
    let dialled = world.dht(at).handle_pending_outbound_connection(
        libp2p_swarm::ConnectionId::new_unchecked(7),
        Some(peers[1]),
        &[],
        libp2p_core::Endpoint::Dialer,
    );
    assert_eq!(dialled.unwrap().len(), 8);
    // A server that became a client leaves.
    world.dht(at).identified(peers[1], &[], &addresses);
    assert_eq!(world.dht(at).servers(), 3);
}

/// The records of a plain `libp2p-kad` are judged like any: it stores whatever it is given, and says so.
#[tokio::test]
async fn na_32_answers_of_a_server_that_lies_come_after_those_that_could_be_true() {
    let mut world = World { swarms: Vec::new() };
    let asking = world.add(gemba(Config::default())).await;
    let honest = world.add(gemba(Config::default())).await;
    let lying = world.add(plain).await;
    world.connect(asking, honest).await;
    world.connect(asking, lying).await;
    let good = record(1, 2);
    let ids = [world.id(honest), world.id(lying)];
    assert_eq!(world.put(asking, &good, Some(vec![ids[0]])).await, Ok(1));
    let junk = kad::Record::new(name(1).routing_key(), b"junk".to_vec());
    world.raw(lying).store_mut().put(junk).unwrap();
    let (answers, outcome) = world.get(asking, 1).await;
    assert_eq!(outcome, Ok(2));
    assert_eq!(answers[0], (ids[0], Some(good.bytes().to_vec())));
    assert_eq!(answers[1], (ids[1], Some(b"junk".to_vec())));
}
