//! Threat G6: every number of the protocol at 0, 1 and its greatest value, in every order.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bench, GOOD, pb, peer_id, secs, signed};
use gemba_gossip::{Config, RelayPolicy};
use gemba_testkit::{Rng, check, sim_scale};

const NUMBERS: [u64; 9] = [
    0,
    1,
    2,
    127,
    128,
    u32::MAX as u64,
    1 << 63,
    u64::MAX - 1,
    u64::MAX,
];

fn topic(rng: &mut Rng) -> Vec<u8> {
    match rng.below(12) {
        0 => vec![],
        1 => vec![b'x'; 1024],
        2 => vec![b'x'; 1025],
        3 => vec![0xff, 0xfe],
        4 => b"/gemba/u".to_vec(),
        5..=8 => b"t".to_vec(),
        n => vec![b'a' + n as u8],
    }
}

fn id(rng: &mut Rng) -> Vec<u8> {
    match rng.below(6) {
        0 => vec![],
        1 => vec![0; 256],
        2 => vec![0; 257],
        3 => vec![7],
        _ => [
            peer_id(100).to_bytes(),
            rng.below(20).to_be_bytes().to_vec(),
        ]
        .concat(),
    }
}

fn number(rng: &mut Rng, field: u64) -> Vec<u8> {
    pb::number(field, *rng.pick(&NUMBERS))
}

fn control(rng: &mut Rng) -> Vec<u8> {
    let topic = pb::bytes(1, &topic(rng));
    let entry = match rng.below(7) {
        0 => pb::bytes(
            1,
            &[topic, pb::bytes(2, &id(rng)), pb::bytes(2, &id(rng))].concat(),
        ),
        1 => pb::bytes(
            2,
            &[pb::bytes(1, &id(rng)), pb::bytes(1, &id(rng))].concat(),
        ),
        2 => pb::bytes(3, &topic),
        3 => pb::bytes(4, &[topic, number(rng, 3)].concat()),
        4 => pb::bytes(4, &[topic, pb::bytes(2, &pb::bytes(1, &id(rng)))].concat()),
        5 => pb::bytes(5, &pb::bytes(1, &id(rng))),
        _ => pb::bytes(6, &number(rng, 10)),
    };
    pb::bytes(3, &entry)
}

fn rpc(rng: &mut Rng) -> Vec<u8> {
    let mut rpc = Vec::new();
    for _ in 0..1 + rng.index(3) {
        rpc.extend(match rng.below(10) {
            0 | 1 => pb::bytes(
                1,
                &[
                    number(rng, 1),
                    pb::bytes(2, &topic(rng)),
                    number(rng, 100),
                    number(rng, 3),
                ]
                .concat(),
            ),
            2 => {
                let number = *rng.pick(&NUMBERS);
                let author = peer_id(100 + rng.below(2));
                signed(author, number, "t", &[number as u8], GOOD).to_vec()
            }
            3 => number(rng, 101),
            4 => number(rng, 102),
            5 => number(rng, 77),
            _ => control(rng),
        });
    }
    rpc
}

#[test]
fn g6_no_value_of_any_control_field_panics_or_grows_anything() {
    // Each round sends a thousand RPCs.
    check!(sim_scale(5_000), |rng| {
        let relay = RelayPolicy::Bridge { max_topics: 2 };
        let mut b = Bench::new(Config::builder().relay(relay).build().unwrap());
        b.subscribe("t");
        let peers: Vec<_> = (0..4).map(|_| b.connect(rng.coin())).collect();
        for _ in 0..1000 {
            let peer = *rng.pick(&peers);
            let rpc = rpc(rng);
            if b.core.why(&peer).is_some() {
                b.receive(peer, rpc.into());
            }
            if rng.chance(1, 30) {
                b.pass(secs(rng.below(4)));
            }
            b.forget_sent();
        }
        let load = b.core.load(&b.seen);
        assert!(load.topics <= 12, "{load:?}");
        assert!(load.promises <= 64 && load.unneeded <= 200, "{load:?}");
        for peer in peers {
            b.disconnect(peer);
        }
        b.unsubscribe("t");
        b.pass(secs(300));
        let load = b.core.load(&b.seen);
        assert_eq!((load.peers, load.topics, load.promises), (0, 0, 0));
        assert_eq!(b.core.deadline(), None);
    });
}
