//! What strangers can make a device remember (N10).
#![allow(clippy::unwrap_used)]

mod common;

use common::world::{Device, peer};
use gemba_names::{
    Input, Name, Source,
    wire::{Interest, Message},
};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::sim_scale;
use std::time::Duration;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// A name that holds a number instead of a key.
fn any_name(number: u64) -> Name {
    let mut bytes = vec![0x00, 36, 0x08, 0x01, 0x12, 0x20];
    bytes.extend(number.to_be_bytes());
    bytes.resize(38, 7);
    Name::from_bytes(&bytes).unwrap()
}

/// N10: a million names that nobody here asked for, as records by every route, as interests and as topics: below 8 MiB, and nothing on disk.
#[test]
fn n10_a_million_unknown_names_take_less_than_eight_mebibytes() {
    let names = sim_scale(1_000_000) as u64;
    let mut device = Device::follower();
    for number in 2..10 {
        device.feed(Input::Connected(peer(number)));
    }
    device.drain();
    let rows = device.disk.len();
    let ((), used) = measure(|| {
        for number in 0..names {
            let from = peer(2 + (number % 8) as u8);
            let name = any_name(number);
            for source in [Source::Peer(from), Source::Topic(from), Source::Dht(from)] {
                let bytes = vec![0x42; 200];
                device.feed(Input::Record {
                    name,
                    bytes,
                    source,
                    token: None,
                });
            }
            let interests = vec![Interest { name, has: None }];
            let message = Message {
                interests,
                ..Message::default()
            };
            device.feed(Input::Message {
                peer: from,
                message,
            });
            device.feed(Input::TopicPeer {
                name,
                peer: from,
                joined: true,
            });
            device.feed(Input::NoRecord {
                name,
                source: Source::Dht(from),
            });
            device.pass(Duration::from_millis(20));
            device.drain();
        }
    });
    assert!(used.peak < 8 << 20, "{used:?}");
    assert_eq!(device.disk.len(), rows);
    assert_eq!(device.core.counters().unknown, 3 * names);
    assert!(device.core.counters().interests_dropped > 0);
}

/// What a connected peer caused is gone when the peer is.
#[test]
fn na_23_a_peer_that_is_gone_left_nothing() {
    let mut device = Device::follower();
    device.feed(Input::Connected(peer(2)));
    device.feed(Input::Disconnected(peer(2)));
    device.drain();
    let ((), used) = measure(|| {
        for round in 0..200u64 {
            device.feed(Input::Connected(peer(3)));
            let interests = (0..60)
                .map(|n| Interest {
                    name: any_name(round * 60 + n),
                    has: None,
                })
                .collect();
            device.feed(Input::Message {
                peer: peer(3),
                message: Message {
                    interests,
                    ..Message::default()
                },
            });
            device.feed(Input::Disconnected(peer(3)));
            device.drain();
            device.pass(Duration::from_secs(1));
        }
    });
    assert!(used.left < 16 << 10, "{used:?}");
}
