//! The vectors of specs/vectors/log/messages.txt: messages of `/gemba/log/1` byte by byte, and what must be refused.
//! `GEMBA_LOG_WRITE_VECTORS=1` writes them anew.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::Path;

use common::Other;
use gemba_log::core::reconcile::{Content, Range, Tip};
use gemba_log::wire::{Announce, Batches, Fetch, Message, Run, Sync, Want, patterns_hash};
use gemba_log::{Batch, FeedId, NewEvent, Pattern};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

/// The feeds of two authors, in order, and the one batch of the first.
fn feeds() -> (FeedId, FeedId, Batch) {
    let mut one = Other::new(7, "hall-1/press-7/count");
    let batch = one.next(&[NewEvent::new(1_700_000_000_000, "17")]);
    let two = Other::new(8, "hall-1/press-8/count").feed;
    let (mut first, mut second) = (one.feed, two);
    if second < first {
        std::mem::swap(&mut first, &mut second);
    }
    (first, second, batch)
}

fn tip(feed: &FeedId, next: u64, batch: u8) -> Tip {
    Tip {
        feed: feed.clone(),
        next,
        batch: [batch; 32],
    }
}

/// Messages and what they are.
fn good() -> Vec<(&'static str, Message)> {
    let (first, second, batch) = feeds();
    let patterns: Vec<Pattern> = ["#", "$about/#"].map(|text| text.parse().unwrap()).into();
    let sync = |round, ranges| {
        Message::Sync(Sync {
            session: 300,
            round,
            patterns: patterns.clone(),
            assumed: patterns_hash(&patterns),
            ranges,
        })
    };
    let range = |lower: Option<&FeedId>, upper: Option<&FeedId>, content| Range {
        lower: lower.cloned(),
        upper: upper.cloned(),
        content,
    };
    let all = range(None, None, Content::Fingerprint([0xab; 16]));
    let answered = vec![
        range(
            None,
            Some(&second),
            Content::Tips {
                tips: vec![tip(&first, 3, 1), tip(&first, 5, 2)],
                answer: true,
            },
        ),
        range(Some(&second), None, Content::Fingerprint([0xcd; 16])),
    ];
    let last = range(
        Some(&first),
        Some(&second),
        Content::Tips {
            tips: Vec::new(),
            answer: false,
        },
    );
    let announced = Announce {
        tips: vec![Tip {
            feed: batch.feed().clone(),
            next: 1,
            batch: batch.cid().hash().digest().try_into().unwrap(),
        }],
        batch: Some(batch.bytes().clone()),
    };
    let want = |feed: &FeedId, from, tip| Want {
        feed: feed.clone(),
        from,
        tip: [tip; 32],
    };
    vec![
        ("a comparison begins", sync(0, vec![all])),
        (
            "the answer: a list, and a fingerprint behind it",
            sync(1, answered),
        ),
        ("an answer to a list: nothing", sync(2, vec![last])),
        ("a feed grew, with its batch", Message::Announce(announced)),
        (
            "two feeds are asked for",
            Message::Fetch(Fetch {
                id: 1,
                max_bytes: 1 << 20,
                wants: vec![want(&first, 0, 3), want(&second, (1 << 53) - 1, 4)],
            }),
        ),
        (
            "batches of the first",
            Message::Batches(Batches {
                id: 1,
                runs: vec![Run {
                    want: 0,
                    batches: vec![batch.bytes().clone()],
                    more: true,
                    starts: 0,
                }],
                busy_ms: None,
            }),
        ),
        (
            "busy",
            Message::Batches(Batches {
                id: 2,
                runs: Vec::new(),
                busy_ms: Some(500),
            }),
        ),
    ]
}

fn number(field: u8, number: u64) -> Vec<u8> {
    let mut out = vec![field << 3];
    let mut left = number;
    while left >= 0x80 {
        out.push(left as u8 | 0x80);
        left >>= 7;
    }
    out.push(left as u8);
    out
}

fn bytes(field: u8, bytes: &[u8]) -> Vec<u8> {
    let mut out = number(field, bytes.len() as u64);
    out[0] |= 2;
    out.extend_from_slice(bytes);
    out
}

fn feed_bytes(author: u8, epoch: u64, stream: &str) -> Vec<u8> {
    [&[author; 32][..], &epoch.to_be_bytes(), stream.as_bytes()].concat()
}

fn tip_bytes(author: u8, next: u64) -> Vec<u8> {
    let feed = bytes(1, &feed_bytes(author, 0, "a"));
    [feed, number(2, next), bytes(3, &[9; 32])].concat()
}

/// A comparison of these ranges.
fn sync_of(ranges: &[Vec<u8>]) -> Vec<u8> {
    let ranges: Vec<u8> = ranges.iter().flat_map(|range| bytes(5, range)).collect();
    bytes(1, &[bytes(3, b"#"), ranges].concat())
}

fn list_of(tips: &[Vec<u8>]) -> Vec<u8> {
    let tips: Vec<u8> = tips.iter().flat_map(|tip| bytes(5, tip)).collect();
    [number(4, 2), tips].concat()
}

/// What is no message, each for its own reason.
fn refused() -> Vec<(&'static str, Vec<u8>)> {
    let busy = bytes(4, &number(3, 500));
    let bound = |field, author| bytes(field, &feed_bytes(author, 0, "a"));
    let fingerprint = bytes(3, &[1; 16]);
    vec![
        ("nothing", Vec::new()),
        ("two messages", [busy.clone(), busy.clone()].concat()),
        ("of a kind that is not known", bytes(9, &[])),
        ("cut", busy[..busy.len() - 1].to_vec()),
        ("a number in a longer form", bytes(4, &[0x18, 0x81, 0x00])),
        ("a comparison without patterns", bytes(1, &number(1, 1))),
        ("a pattern that is none", bytes(1, &bytes(3, b"a//b"))),
        ("a fingerprint of 15 bytes", sync_of(&[bytes(3, &[1; 15])])),
        (
            "a range that is both",
            sync_of(&[[fingerprint.clone(), number(4, 1)].concat()]),
        ),
        (
            "a range that ends before it begins",
            sync_of(&[[bound(1, 2), bound(2, 1), fingerprint.clone()].concat()]),
        ),
        (
            "ranges that overlap",
            sync_of(&[
                [bound(2, 2), fingerprint.clone()].concat(),
                [bound(1, 1), fingerprint].concat(),
            ]),
        ),
        (
            "last batches out of order",
            sync_of(&[list_of(&[tip_bytes(2, 1), tip_bytes(1, 1)])]),
        ),
        (
            "a last batch at place 0",
            bytes(2, &bytes(1, &tip_bytes(1, 0))),
        ),
        (
            "a place beyond 2^53 - 1",
            bytes(2, &bytes(1, &tip_bytes(1, 1 << 53))),
        ),
        (
            "a feed without a stream",
            bytes(
                3,
                &bytes(
                    3,
                    &[bytes(1, &feed_bytes(1, 0, "")), bytes(3, &[9; 32])].concat(),
                ),
            ),
        ),
        (
            "an epoch beyond 2^53 - 1",
            bytes(
                3,
                &bytes(
                    3,
                    &[bytes(1, &feed_bytes(1, 1 << 53, "a")), bytes(3, &[9; 32])].concat(),
                ),
            ),
        ),
        (
            "a want without an aim",
            bytes(3, &bytes(3, &bytes(1, &feed_bytes(1, 0, "a")))),
        ),
        ("a run of no want", bytes(4, &bytes(2, &number(1, 256)))),
    ]
}

/// LR-18: each message has the bytes that stand in the file and means the same when it is read; what is refused there is refused here.
#[test]
fn lr_18_messages_between_nodes_have_these_bytes() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../specs/vectors/log/messages.txt");
    let good = good();
    let mut text = String::from(
        "# One a line: message in hex, without its length in front; meaning. See README.md.\n",
    );
    for (meaning, message) in &good {
        writeln!(text, "{} {meaning}", hex(&message.encode())).unwrap();
    }
    for (meaning, bytes) in refused() {
        // A line has a first field, also where there are no bytes.
        let bytes = if bytes.is_empty() {
            "-".to_owned()
        } else {
            hex(&bytes)
        };
        writeln!(text, "{bytes} refused: {meaning}").unwrap();
    }
    if std::env::var_os("GEMBA_LOG_WRITE_VECTORS").is_some() {
        std::fs::write(&path, &text).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    for (meaning, message) in &good {
        let encoded = message.encode();
        let read = Message::decode(&encoded.clone().into());
        assert_eq!(read.as_ref(), Ok(message), "{meaning}");
        // Who is newer may say more: it is passed over.
        let length = encoded[1..].iter().position(|byte| *byte < 0x80).unwrap() + 1;
        let body = &encoded[1 + length..];
        let longer = [body, &bytes(15, b"new"), &number(14, 7)].concat();
        let mut newer = bytes(1, &longer);
        newer[0] = encoded[0];
        let read = Message::decode(&newer.into());
        assert_eq!(read.as_ref(), Ok(message), "{meaning}");
    }
    for (meaning, bytes) in refused() {
        assert!(Message::decode(&bytes.into()).is_err(), "{meaning}");
    }
}
