//! From outside: what neighbours that mean harm can make a node spend, remember, forget or miss. Nothing here knows how the core does it.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{BAD, Bench, GOOD, body, millis, pb, peer_id, secs, signed};
use gemba_gossip::wire::{MAX_FRAME_BYTES, Reader, read_length};
use gemba_gossip::{CloseCause, Config, Input, Seen, Time};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{Rng, check, sim_scale};
use libp2p_identity::PeerId;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

const TOPIC: &str = "plant/alarms";

fn besieged(config: Config) -> Bench {
    let mut b = Bench::new(config);
    b.subscribe(TOPIC);
    b
}

/// What a hostile neighbour says next: anything that the protocol has, at its worst.
fn malice(rng: &mut Rng, me: PeerId, honest: PeerId, real: &[Bytes]) -> Bytes {
    let name = |rng: &mut Rng| match rng.below(3) {
        0 => TOPIC.to_string(),
        _ => format!("junk {}", rng.below(1 << 40)),
    };
    let ids = |rng: &mut Rng, number: u64| -> Vec<u8> {
        (0..rng.length(3000))
            .flat_map(|_| {
                let id = match rng.below(4) {
                    // Of a message that an honest peer may send yet.
                    0 => [&honest.to_bytes()[..], &rng.below(400).to_be_bytes()].concat(),
                    1 => rng.bytes(256),
                    2 => rng.bytes(300),
                    _ => rng.bytes(46),
                };
                pb::bytes(number, &id)
            })
            .collect()
    };
    match rng.below(12) {
        0 => {
            // Forged under the name of an honest peer, or of this node.
            let from = *rng.pick(&[honest, me]);
            signed(from, rng.below(400), TOPIC, &rng.bytes(20), BAD)
        }
        1 => signed(
            peer_id(rng.below(1 << 30) + 1000),
            rng.next_u64(),
            TOPIC,
            b"junk",
            GOOD,
        ),
        2 => (0..rng.length(3000))
            .flat_map(|_| {
                let words = [
                    pb::number(1, rng.below(2)),
                    pb::bytes(2, name(rng).as_bytes()),
                    pb::number(100, rng.next_u64()),
                ];
                pb::bytes(1, &words.concat())
            })
            .collect::<Vec<u8>>()
            .into(),
        3 => {
            let ihave = [pb::bytes(1, name(rng).as_bytes()), ids(rng, 2)].concat();
            pb::bytes(3, &pb::bytes(1, &ihave)).into()
        }
        4 => pb::bytes(3, &pb::bytes(2, &ids(rng, 1))).into(),
        5 => pb::bytes(3, &pb::bytes(5, &ids(rng, 1))).into(),
        6 => {
            let grafts = (0..rng.length(800)).flat_map(|_| {
                let graft = pb::bytes(1, name(rng).as_bytes());
                match rng.coin() {
                    true => pb::bytes(3, &graft),
                    false => pb::bytes(4, &[graft, pb::number(3, rng.next_u64())].concat()),
                }
            });
            pb::bytes(3, &grafts.collect::<Vec<u8>>()).into()
        }
        7 => pb::number(101, rng.next_u64()).into(),
        8 => pb::number(102, rng.next_u64()).into(),
        9 if !real.is_empty() => {
            // A real message with a bit turned, which its author did not sign: behind the 64 bytes of the signature come 38 of the key.
            let mut field = rng.pick(real).to_vec();
            let at = rng.index(field.len());
            field[at] ^= 1 << rng.below(8);
            let signature = field.len() - 38 - 64;
            field[signature] = BAD;
            field.into()
        }
        10 if !real.is_empty() => {
            // Bombs of one message: as often as a frame holds it.
            let one = rng.pick(real);
            one.repeat((8 << 10) / one.len() + 1).into()
        }
        _ => {
            let len = rng.length(4000) as usize;
            rng.bytes(len).into()
        }
    }
}

/// As a connection reads: what cannot be read ends the stream, and the peer opens another.
fn hear(b: &mut Bench, peer: PeerId, rpc: &Bytes) -> bool {
    let mut reader = Reader::new(b.seen.digester());
    if reader.scan(rpc).is_err() {
        b.handle(Input::Malformed { peer });
        return false;
    }
    let source = b.seen.join(peer);
    if b.seen.admits(source) {
        b.receive(peer, rpc.clone());
    }
    true
}

/// S4.35, threats G3, G4, G6, G12: whatever eight of ten neighbours say, all that the honest ones send is delivered, once; memory is what the
/// configuration says; and when the eight are gone nothing of them is left.
#[test]
fn s4_35_g6_whatever_hostile_neighbours_say_honest_messages_are_delivered_once() {
    check!(sim_scale(200), |rng| {
        let mut b = besieged(Config::default());
        let honest = [b.subscriber(TOPIC), b.subscriber(TOPIC)];
        b.pass(secs(1));
        let me = b.me;
        let mut hostile: Vec<PeerId> = (0..8).map(|_| b.connect(rng.coin())).collect();
        let mut real: Vec<Bytes> = Vec::new();
        let (mut sent, mut said) = (BTreeMap::new(), 0);
        for n in 0..200_u64 {
            for _ in 0..rng.below(12) {
                let who = rng.index(hostile.len());
                let rpc = malice(rng, me, honest[0], &real);
                said += rpc.len();
                hear(&mut b, hostile[who], &rpc);
                // Banned ones are closed and come back under another name: the key of the swarm is all that it takes.
                let closed: Vec<_> = b.closed.drain(..).collect();
                for (peer, cause) in closed {
                    assert!(!honest.contains(&peer), "{cause:?}");
                    assert!(matches!(cause, CloseCause::Banned { .. }), "{cause:?}");
                    let at = hostile.iter().position(|p| *p == peer).unwrap();
                    b.disconnect(peer);
                    hostile[at] = b.connect(false);
                }
            }
            if rng.chance(1, 2) {
                let from = honest[rng.index(2)];
                let field = signed(from, n, TOPIC, format!("real {n}").as_bytes(), GOOD);
                // A hostile one may have it, too, and be first or last.
                let path = match rng.coin() {
                    true => from,
                    false => honest[usize::from(from == honest[0])],
                };
                b.send(path, &field);
                real.push(field);
                sent.insert(format!("real {n}"), 0);
            }
            b.pass(millis(rng.below(300)));
            let load = b.core.load(&b.seen);
            assert!(
                load.promises <= 16_384 && load.pipeline_messages <= 8192,
                "{load:?}"
            );
            assert!(load.topics <= 1 + 10 * 256, "{load:?}");
        }
        for message in b.delivered.drain(..) {
            if let Some(count) = sent.get_mut(&String::from_utf8_lossy(&message.data).into_owned())
            {
                *count += 1;
            }
        }
        let lost: Vec<_> = sent.iter().filter(|(_, count)| **count != 1).collect();
        assert!(
            lost.is_empty(),
            "{lost:?} of {} after {said} bytes of malice",
            sent.len()
        );
        for peer in hostile {
            b.disconnect(peer);
        }
        b.pass(secs(20));
        let load = b.core.load(&b.seen);
        assert_eq!(
            (load.peers, load.topics, load.promises),
            (2, 1, 0),
            "{load:?}"
        );
        // What is left to say was said: our one topic, to two.
        assert_eq!(
            (load.lane_messages, load.lane_words, load.unneeded),
            (0, 2, 0),
            "{load:?}"
        );
    });
}

/// Threat G6: a node reads what it is sent with memory in proportion, and without an allocation for each few bytes, whatever the bytes are.
#[test]
fn g6_reading_costs_memory_in_proportion_to_what_is_read() {
    check!(sim_scale(4000), |rng| {
        let honest = peer_id(1);
        let real = [signed(honest, 1, TOPIC, &[0; 300], GOOD)];
        let mut stream = Vec::new();
        for _ in 0..rng.below(40) {
            let rpc = malice(rng, peer_id(0), honest, &real);
            pb::varint(&mut stream, rpc.len() as u64);
            stream.extend_from_slice(&rpc);
        }
        for _ in 0..rng.below(3) {
            if !stream.is_empty() {
                let at = rng.index(stream.len());
                stream[at] = rng.next_u64() as u8;
            }
        }
        let mut seen = Seen::new(Config::default().seen(), [0; 32]);
        let source = seen.join(honest);
        let mut reader = Reader::new(seen.digester());
        let ((), used) = measure(|| {
            let mut at = 0;
            loop {
                let rest = &stream[at..];
                if reader.scan_run(rest) > 0 {
                    at += reader.sight_run(&mut seen, source, Time::ZERO);
                    reader.finish_run(rest);
                    continue;
                }
                let Ok(Some((len, start))) = read_length(rest) else {
                    return;
                };
                let Some(rpc) = rest.get(start..start + len) else {
                    return;
                };
                let rpc = Bytes::copy_from_slice(rpc);
                if reader.scan(&rpc).is_err() {
                    return;
                }
                reader.sight(&mut seen, source, Time::ZERO);
                reader.finish(&rpc);
                at += start + len;
            }
        });
        let bytes = stream.len() as u64;
        assert!(used.peak <= bytes * 24 + 16_384, "{used:?} of {bytes}");
        assert!(used.calls <= bytes + 64, "{used:?} of {bytes}");
    });
}

/// Threat G6: a message in a message in a message is bytes of a field that is skipped, not a stack of calls.
#[test]
fn g6_nothing_is_read_deeper_than_the_protocol_is() {
    let mut bomb = vec![0x0a, 0x00];
    while bomb.len() < MAX_FRAME_BYTES - 16 {
        let number = [1, 2, 3][bomb.len() % 3];
        let grown = pb::bytes(number, &bomb);
        // One byte of payload a level, until it is as long as a frame may be.
        bomb = if grown.len() > 60_000 {
            [grown, bomb].concat()
        } else {
            grown
        };
    }
    bomb.truncate(MAX_FRAME_BYTES);
    let mut reader = Reader::new(Seen::new(Config::default().seen(), [0; 32]).digester());
    let (_, used) = measure(|| reader.scan(&bomb.into()));
    assert!(used.peak <= 3 << 20, "{used:?}");
}

/// Threats G3, G4: one topic that is flooded by everybody but one does not starve another topic of the same node.
/// Threat G12 in bytes: a million names of topics, as long as they come, and as many that are left again.
#[test]
fn g12_a_million_topics_take_less_than_eight_mebibytes() {
    let (b, used) = measure(|| {
        let mut b = besieged(Config::default());
        let peers: Vec<PeerId> = (0..8).map(|_| b.connect(false)).collect();
        for batch in 0..250_u64 {
            let peer = peers[batch as usize % peers.len()];
            let mut rpc = Vec::new();
            for n in 0..4000_u64 {
                let name = format!("topic {batch} {n} of names that are a little longer than most");
                let word = u64::from(n % 3 != 0);
                rpc.extend(pb::bytes(
                    1,
                    &[pb::number(1, word), pb::bytes(2, name.as_bytes())].concat(),
                ));
            }
            assert!(hear(&mut b, peer, &rpc.into()));
        }
        (b.frames, b.sent, b.events) = Default::default();
        b
    });
    let bare = measure(|| besieged(Config::default())).1.left;
    let left = used.left - bare;
    assert!(left < 8 << 20, "{left} bytes are kept");
    let load = b.core.load(&b.seen);
    assert!(load.topics <= 8 * 256 + 1, "{}", load.topics);
}

#[test]
fn g3_a_flood_of_one_topic_leaves_room_for_another() {
    let mut b = besieged(Config::default());
    b.subscribe("flooded");
    let flood: Vec<PeerId> = (0..9).map(|_| b.subscriber("flooded")).collect();
    let honest = b.subscriber(TOPIC);
    b.slow = true;
    let mut got = 0;
    for n in 0..3000_u64 {
        for peer in &flood {
            b.send(*peer, &signed(*peer, n, "flooded", b"junk", GOOD));
        }
        if n % 100 == 0 {
            b.send(honest, &signed(honest, n, TOPIC, b"real", GOOD));
        }
        // The workers do some hundred a tick, a tenth of what arrives.
        if n % 70 == 69 {
            b.work();
            b.pass(millis(20));
            got += b.deliveries().iter().filter(|d| **d == "real").count();
        }
    }
    for _ in 0..4 {
        b.work();
    }
    got += b.deliveries().iter().filter(|d| **d == "real").count();
    assert_eq!(got, 30);
}

/// S4.35: an id that is promised by a crowd that never delivers, refused by it, and forged by it, is delivered when its message comes.
#[test]
fn s4_35_a_real_id_is_not_silenced_by_promises_refusals_or_forgeries() {
    let mut b = besieged(Config::default());
    let honest = b.subscriber(TOPIC);
    let hostile: Vec<PeerId> = (0..20).map(|_| b.subscriber(TOPIC)).collect();
    b.pass(secs(1));
    for n in 0..50_u64 {
        let id = [&honest.to_bytes()[..], &n.to_be_bytes()].concat();
        for peer in &hostile {
            let ihave = [pb::bytes(1, TOPIC.as_bytes()), pb::bytes(2, &id)].concat();
            hear(&mut b, *peer, &pb::bytes(3, &pb::bytes(1, &ihave)).into());
            let refusal = pb::bytes(3, &pb::bytes(5, &pb::bytes(1, &id)));
            hear(&mut b, *peer, &refusal.into());
        }
        let forged = signed(honest, n, TOPIC, b"forged", BAD);
        hear(&mut b, hostile[n as usize % 20], &forged);
        b.pass(millis(100));
        b.send(honest, &signed(honest, n, TOPIC, &n.to_be_bytes(), GOOD));
        assert_eq!(b.deliveries(), [&n.to_be_bytes()[..]], "{n}");
        b.pass(millis(100));
    }
    assert!(b.closed.iter().all(|(peer, _)| *peer != honest));
}

/// Threat G6: what one word of a neighbour makes this node say is bounded: an id is sent to it three times, a topic is refused once a word.
#[test]
fn g6_a_neighbour_cannot_make_a_node_say_more_than_it_says_itself() {
    let mut b = besieged(Config::default());
    let honest = b.subscriber(TOPIC);
    let greedy = b.subscriber(TOPIC);
    b.pass(secs(1));
    let large = vec![7; 100_000];
    for n in 0..20_u64 {
        b.send(honest, &signed(honest, n, TOPIC, &large, GOOD));
    }
    b.heard(greedy);
    let ids: Vec<u8> = (0..20_u64)
        .flat_map(|n| pb::bytes(1, &[&honest.to_bytes()[..], &n.to_be_bytes()].concat()))
        .collect();
    let iwant = pb::bytes(3, &pb::bytes(2, &ids));
    for _ in 0..500 {
        hear(&mut b, greedy, &iwant.clone().into());
        b.pass(millis(5));
    }
    let heard = b.heard(greedy);
    assert!(heard.messages.len() <= 3 * 20, "{}", heard.messages.len());
    let grafts: Vec<u8> = (0..1000)
        .flat_map(|n| pb::bytes(3, &pb::bytes(1, format!("topic {n}").as_bytes())))
        .collect();
    for _ in 0..50 {
        hear(&mut b, greedy, &pb::bytes(3, &grafts).into());
    }
    b.pass(secs(2));
    let heard = b.heard(greedy);
    assert!(
        heard.control.prune.len() <= 300,
        "{}",
        heard.control.prune.len()
    );
    b.send(honest, &signed(honest, 99, TOPIC, b"last", GOOD));
    assert_eq!(b.deliveries().last().unwrap(), "last");
}

/// GO-4: of one message there is one form; no other one of its bytes costs a check, whichever bit is turned.
#[test]
fn go_4_no_bit_of_a_known_message_buys_a_check() {
    let honest = peer_id(7);
    let real = body(honest, 7, TOPIC, b"data", GOOD);
    let mut bought = 0;
    for at in 0..real.len() {
        for bit in 0..8 {
            let mut other = real.clone();
            other[at] ^= 1 << bit;
            let mut b = besieged(Config::default());
            let peer = b.subscriber(TOPIC);
            b.send(peer, &pb::bytes(2, &real).into());
            assert_eq!(b.verified, 1);
            b.send(peer, &pb::bytes(2, &other).into());
            bought += b.verified - 1;
        }
    }
    // Another author or number is another message, whose check is honest work.
    assert!(bought <= (34 + 8) * 8, "{bought}");
}
