//! The wire: vectors, prost as an oracle, limits before memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use bytes::Bytes;
use common::{decode, pb, peer_id, signed, topic, unframe, unsigned};
use gemba_gossip::wire::{
    Author, FrameBuilder, MAX_FRAME_BYTES, Reader, Received, VerifyJob, VerifyOutcome, Version,
    WireError, parse, read_length,
};
use gemba_gossip::{
    Class, Config, Core, Input, MessageId, Mode, Output, RawMessage, Seen, SeenConfig, Sight,
    State, Time,
};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{check, sim_scale};
use libp2p_identity::Keypair;
use prost::Message as _;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// What prost makes of the schema: the oracle.
#[path = "rig/schema.rs"]
mod oracle;

fn vector() -> BTreeMap<String, Vec<u8>> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../specs/vectors/gossip/signed.txt"
    );
    let text = std::fs::read_to_string(path).unwrap();
    let hex = |text: &str| data_encoding::HEXLOWER.decode(text.as_bytes()).unwrap();
    text.lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, value)| (name.to_owned(), hex(value)))
        .collect()
}

fn keypair() -> Keypair {
    Keypair::ed25519_from_bytes(vector()["seed"].clone()).unwrap()
}

/// What a core with this key and number makes of a publish.
fn publish(key: &Keypair, number: u64, name: &str, data: &[u8]) -> RawMessage {
    let config = Config::default();
    let mut seen = Seen::new(config.seen(), [1; 32]);
    let mut core = Core::new(config, Some(Author::new(&key.public())), 1);
    let peer = peer_id(1);
    let now = Time::ZERO;
    let loaded = Input::SequenceLoaded {
        stored: Some(number),
        wall_nanos: 0,
    };
    core.handle(&mut seen, loaded, now);
    core.handle(
        &mut seen,
        Input::Connected {
            peer,
            outbound: true,
        },
        now,
    );
    let received = Box::new(decode(
        &pb::bytes(
            1,
            &[pb::number(1, 1), pb::bytes(2, name.as_bytes())].concat(),
        )
        .into(),
    ));
    core.handle(
        &mut seen,
        Input::Received {
            peer,
            received,
            at: now,
        },
        now,
    );
    let wait = Mode::Wait(Time::from_secs(1));
    core.publish(
        &mut seen,
        &topic(name),
        Bytes::copy_from_slice(data),
        wait,
        now,
    )
    .unwrap();
    while let Some(output) = core.poll() {
        match output {
            Output::Reserve { upto } => {
                core.handle(&mut seen, Input::SequenceReserved { upto }, now);
            }
            Output::Sign { job, .. } => return job.run(key).unwrap().message,
            _ => {}
        }
    }
    panic!("nothing to sign");
}

#[test]
fn go_5_the_signed_vector_is_made_and_verified() {
    let vector = vector();
    let message = publish(&keypair(), 1, "t1", b"hi");
    assert_eq!(message.signed_bytes(), vector["unsigned"]);
    assert_eq!(message.signature(), vector["signature"]);
    assert_eq!(message.id().as_bytes(), vector["id"]);
    assert_eq!(
        message.seqno().unwrap().to_be_bytes().to_vec(),
        vector["seqno"]
    );
    assert_eq!(message.key(), b"", "an Ed25519 id holds its key");
    let verify = |message: RawMessage| VerifyJob { message }.run();
    assert_eq!(verify(message.clone()), VerifyOutcome::Good);
    // Every bit that is signed counts, and every bit of the signature.
    let bytes = message.bytes().to_vec();
    for bit in (0..bytes.len() * 8).step_by(7) {
        let mut other = bytes.clone();
        other[bit / 8] ^= 1 << (bit % 8);
        if let Ok(message) = parse(other.into(), 0) {
            assert_ne!(verify(message), VerifyOutcome::Good, "bit {bit}");
        }
    }
}

#[test]
fn go_5_a_key_that_came_along_is_taken_in_its_one_form_and_for_its_id_only() {
    let key = keypair();
    let encoded = key.public().encode_protobuf();
    // The id is a hash, as of an RSA key: the key must come along.
    let hashed = [
        &[0x12, 0x20][..],
        &data_encoding::HEXLOWER
            .decode(b"83b3b64c93f8c5a0b6a8c3e2d1f00112233445566778899aabbccddeeff00112")
            .unwrap(),
    ]
    .concat();
    let sign = |from: &[u8], key_field: &[u8]| {
        let signed = [
            pb::bytes(1, from),
            pb::bytes(2, b"x"),
            pb::bytes(3, &[0; 8]),
            pb::bytes(4, b"t"),
        ]
        .concat();
        let signature = key
            .sign(&[b"libp2p-pubsub:", &signed[..]].concat())
            .unwrap();
        let mut all = [signed, pb::bytes(5, &signature)].concat();
        if !key_field.is_empty() {
            all.extend(pb::bytes(6, key_field));
        }
        parse(all.into(), 0).map(|message| VerifyJob { message }.run())
    };
    let id = key.public().to_peer_id().to_bytes();
    assert_eq!(sign(&id, b""), Ok(VerifyOutcome::Good));
    assert!(sign(&id, &encoded).is_err(), "redundant");
    assert_eq!(
        sign(&hashed, &encoded),
        Ok(VerifyOutcome::Bad),
        "of another id"
    );
    assert_eq!(sign(&hashed, b""), Ok(VerifyOutcome::Bad), "no key");
    assert_eq!(sign(&hashed, b"junk"), Ok(VerifyOutcome::Bad));
    assert_eq!(sign(b"no id", b""), Ok(VerifyOutcome::Bad));
    // A kind of key that this build does not know is nobody's fault.
    let rsa = [&[0x08, 0x00, 0x12, 0x04][..], &[1, 2, 3, 4]].concat();
    assert_eq!(sign(&hashed, &rsa), Ok(VerifyOutcome::Unknown));
}

#[test]
fn prost_reads_what_is_written_and_the_other_way_round() {
    let ids: Vec<MessageId> = (0..5).map(|n| MessageId::signed(b"author", n)).collect();
    let message = signed(peer_id(1), 7, "t", b"data", 1);
    let mut frame = FrameBuilder::new();
    frame.subscription(&topic("a"), true, 0);
    frame.subscription(&topic("b"), false, 0);
    frame.subscription(&topic("c"), true, 3);
    frame.graft(&topic("a"));
    frame.prune(&topic("b"), Some(60));
    frame.prune(&topic("c"), None);
    assert_eq!(frame.ihave(&topic("a"), &ids), 5);
    assert_eq!(frame.iwant(&ids[1..3]), 2);
    assert_eq!(frame.iwant(&ids[4..]), 1);
    assert_eq!(frame.idontwant(&ids[..1]), 1);
    frame.ping(1);
    frame.pong(2);
    frame.message(message.clone());
    frame.message(unsigned("t", b"x"));
    let bytes = unframe(&frame.finish(Time::MAX));
    let rpc = oracle::Rpc::decode(&bytes[..]).unwrap();
    let topics: Vec<_> = rpc
        .subscriptions
        .iter()
        .map(|s| (s.topic.clone().unwrap(), s.subscribe.unwrap()))
        .collect();
    assert_eq!(
        topics,
        [("a".into(), true), ("b".into(), false), ("c".into(), true)]
    );
    assert_eq!(rpc.publish.len(), 2);
    assert_eq!(
        rpc.publish[0].seqno.as_deref(),
        Some(&7_u64.to_be_bytes()[..])
    );
    let control = rpc.control.clone().unwrap();
    assert_eq!(control.ihave[0].ids.len(), 5);
    assert_eq!(control.iwant[0].ids.len(), 3);
    assert_eq!(control.idontwant[0].ids, [ids[0].as_bytes()]);
    assert_eq!(control.prune[0].backoff, Some(60));
    assert_eq!(control.prune[1].backoff, None);
    // What prost writes is read the same.
    let again = decode(&rpc.encode_to_vec().into());
    let ours = decode(&bytes);
    assert_eq!(again.control, ours.control);
    assert_eq!(again.candidates[0].message, ours.candidates[0].message);
    assert_eq!((ours.ping, ours.pong), (Some(1), Some(2)));
    let distances: Vec<_> = ours.subscriptions.iter().map(|s| s.distance).collect();
    assert_eq!(distances, [0, 0, 3]);
    assert_eq!(ours.candidates[0].message.field(), &message);
}

#[test]
fn a_message_whose_header_is_longer_than_needed_is_sent_on_with_a_short_one() {
    let body = common::body(peer_id(1), 7, "t", b"data", 1);
    let long = [
        &[0x92, 0x00, body.len() as u8 | 0x80, 0x81, 0x00][..],
        &body,
    ]
    .concat();
    let long = [
        &long[..3],
        &[0x80 | (body.len() >> 7) as u8, 0x00][..],
        &body,
    ]
    .concat();
    let received = decode(&long.into());
    assert_eq!(
        received.candidates[0].message.field()[..],
        pb::bytes(2, &body)[..]
    );
}

#[test]
fn unknown_fields_of_an_rpc_are_skipped_and_wrong_types_end_the_stream() {
    let known = pb::bytes(
        1,
        &[
            pb::number(1, 1),
            pb::bytes(2, b"t"),
            pb::bytes(3, b"?"),
            pb::number(4, 1),
        ]
        .concat(),
    );
    let partial = pb::bytes(10, b"partial messages of 1.3");
    let extensions = pb::bytes(3, &pb::bytes(6, &pb::number(10, 1)));
    let fixed = [0x79, 1, 2, 3, 4, 5, 6, 7, 8, 0x7d, 1, 2, 3, 4];
    let rpc: Bytes = [&partial[..], &known, &extensions, &fixed].concat().into();
    assert_eq!(decode(&rpc).subscriptions.len(), 1);
    let mut reader = Reader::new(Seen::new(Config::default().seen(), [0; 32]).digester());
    for (bad, error) in [
        (pb::number(2, 1), WireError::BadType(2)),
        (pb::number(1, 1), WireError::BadType(1)),
        (pb::bytes(1, &pb::number(2, 1)), WireError::BadType(2)),
        (pb::bytes(3, &pb::number(1, 1)), WireError::BadType(1)),
        (
            pb::bytes(3, &pb::bytes(4, &pb::bytes(3, b""))),
            WireError::BadType(3),
        ),
        (vec![0x0a, 5, 1], WireError::Truncated),
        (vec![0x0b], WireError::BadField),
        (vec![0xff; 11], WireError::BadNumber),
    ] {
        assert_eq!(reader.scan(&bad.into()), Err(error));
    }
    assert_eq!(
        reader.scan(&pb::bytes(2, b"").repeat(10_001).into()),
        Err(WireError::TooManyMessages)
    );
}

#[test]
fn a_frame_of_exactly_one_mebibyte_passes() {
    let overhead = signed(peer_id(1), 1, "t", &vec![0; 1 << 19], 1).len() - (1 << 19);
    let message = signed(peer_id(1), 1, "t", &vec![0; MAX_FRAME_BYTES - overhead], 1);
    assert_eq!(message.len(), MAX_FRAME_BYTES);
    let mut frame = FrameBuilder::new();
    assert!(frame.fits(message.len()));
    frame.message(message);
    assert!(!frame.fits(1));
    let frame = frame.finish(Time::MAX).to_bytes();
    assert_eq!(read_length(&frame), Ok(Some((MAX_FRAME_BYTES, 3))));
    assert_eq!(decode(&frame.slice(3..)).candidates.len(), 1);
}

/// The worst that a MiB can hold of each kind: memory stays in proportion, and what is above the limits is counted.
#[test]
fn g6_limits_are_checked_before_memory_is_taken() {
    let fill = |piece: Vec<u8>, wrap: &dyn Fn(Vec<u8>) -> Vec<u8>| -> Bytes {
        let count = (MAX_FRAME_BYTES - 64) / piece.len();
        wrap(piece.repeat(count)).into()
    };
    let plain = |b: Vec<u8>| b;
    let control = |b: Vec<u8>| pb::bytes(3, &b);
    let ids = |number: u64| move |b: Vec<u8>| pb::bytes(3, &pb::bytes(number, &b));
    let frames: Vec<Bytes> = vec![
        fill(pb::bytes(1, b""), &plain),
        fill(
            pb::bytes(1, &[pb::number(1, 1), pb::bytes(2, b"t")].concat()),
            &plain,
        ),
        fill(pb::bytes(1, b""), &ids(1)),
        fill(pb::bytes(2, b"i"), &|b| {
            pb::bytes(3, &pb::bytes(1, &[pb::bytes(1, b"t"), b].concat()))
        }),
        fill(
            pb::bytes(1, &[pb::bytes(1, b"t"), pb::bytes(2, b"i")].concat()),
            &control,
        ),
        fill(pb::bytes(1, b"i"), &ids(2)),
        fill(pb::bytes(1, b"i"), &ids(5)),
        fill(pb::bytes(2, &pb::bytes(1, b"i")), &control),
        fill(pb::bytes(3, &pb::bytes(1, b"t")), &control),
        fill(pb::bytes(4, &pb::bytes(1, b"t")), &control),
        fill(
            pb::bytes(4, &[pb::bytes(1, b"t"), pb::bytes(2, &[0; 300])].concat()),
            &control,
        ),
        fill(pb::bytes(200, b"unknown"), &plain),
        pb::bytes(2, b"").repeat(10_000).into(),
    ];
    let digester = Seen::new(Config::default().seen(), [0; 32]).digester();
    for (i, frame) in frames.iter().enumerate() {
        let mut reader = Reader::new(digester);
        let (received, used) = measure(|| -> Received {
            reader.scan(frame).unwrap();
            reader.finish(frame)
        });
        assert!(used.peak <= 3 << 20, "frame {i}: {} bytes", used.peak);
        let control = &received.control;
        assert!(received.subscriptions.len() <= 4096);
        assert!(control.iwant.len() <= 10_000 && control.idontwant.len() <= 10_000);
        assert!(control.ihave.iter().map(|h| h.ids.len()).sum::<usize>() <= 10_000);
        assert!(control.graft.len() <= 1024 && control.prune.len() <= 1024);
    }
}

#[test]
fn a_duplicate_allocates_nothing() {
    let mut seen = Seen::new(Config::default().seen(), [0; 32]);
    let source = seen.join(peer_id(1));
    let mut reader = Reader::new(seen.digester());
    let frame: Bytes = (0..50)
        .flat_map(|n| signed(peer_id(1), n, "t", &[0; 1024], 1))
        .collect::<Vec<u8>>()
        .into();
    let mut read = || {
        reader.scan(&frame).unwrap();
        reader.sight(&mut seen, source, Time::ZERO);
        reader.finish(&frame)
    };
    assert_eq!(read().candidates.len(), 50);
    let (received, used) = measure(read);
    assert!(received.is_empty());
    assert_eq!(received.known.duplicates, 50);
    assert_eq!(used.calls, 0);
    let stream: Vec<u8> = (0..50)
        .flat_map(|n| prefixed(&signed(peer_id(1), n, "t", &[0; 1024], 1)))
        .collect();
    let mut read = || {
        assert_eq!(reader.scan_run(&stream), 50);
        assert_eq!(
            reader.sight_run(&mut seen, source, Time::ZERO),
            stream.len()
        );
        reader.finish_run(&stream)
    };
    let (received, used) = measure(&mut read);
    assert!(received.is_empty());
    assert_eq!(received.known.duplicates, 50);
    assert_eq!(used.calls, 0);
}

fn prefixed(frame: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    pb::varint(&mut out, frame.len() as u64);
    out.extend_from_slice(frame);
    out
}

/// What a stream gave: messages by their bytes, forms that were refused, what was known, bytes of the stream that were used.
#[derive(Debug, Default, PartialEq)]
struct Stream {
    messages: Vec<Vec<u8>>,
    refused: Vec<String>,
    known: gemba_gossip::wire::Known,
    grafts: usize,
    used: usize,
}

impl Stream {
    fn take(&mut self, received: &Received) {
        let messages = received
            .candidates
            .iter()
            .map(|c| c.message.field().to_vec());
        self.messages.extend(messages);
        let refused = received.refused.iter().map(|(_, why)| format!("{why:?}"));
        self.refused.extend(refused);
        self.known.duplicates += received.known.duplicates;
        self.known.invalid += received.known.invalid;
        self.known.shed += received.known.shed;
        self.grafts += received.control.graft.len();
    }
}

/// A run is a shortcut: what it gives, and what it leaves in the cache, is what its frames give one by one.
#[test]
fn go_7_frames_of_a_run_are_what_each_of_them_is_for_itself() {
    check!(sim_scale(3000), |rng| {
        let pool: Vec<Bytes> = (0..12)
            .map(|n| match rng.below(8) {
                0 => pb::bytes(2, &rng.bytes(9)).into(),
                1 => unsigned("t", &vec![n as u8; 20_000]),
                2 => pb::bytes(2, &[]).into(),
                3 => {
                    let body = common::body(peer_id(1), n, "t", b"x", 1);
                    [
                        &[0x92, 0x00, body.len() as u8 | 0x80, (body.len() >> 7) as u8][..],
                        &body,
                    ]
                    .concat()
                    .into()
                }
                4 => pb::bytes(3, &pb::bytes(3, &pb::bytes(1, b"t"))).into(),
                _ => signed(peer_id(1), n, "t", &[7; 10], 1),
            })
            .collect();
        let stream: Vec<u8> = (0..rng.below(120))
            .flat_map(|_| {
                let of = (0..rng.below(4)).flat_map(|_| rng.pick(&pool).to_vec());
                prefixed(&of.collect::<Vec<u8>>())
            })
            .collect();
        let stream = &stream[..stream.len() - rng.index(stream.len().min(40) + 1)];
        let mut ends = Vec::new();
        for runs in [false, true] {
            let mut seen = Seen::new(Config::default().seen(), [0; 32]);
            let source = seen.join(peer_id(1));
            // One of them is known as bad, if its header is short.
            let digest = seen.digester().digest(&pool[0][2..]);
            if let Sight::New(mark) = seen.sight(digest, source, Time::ZERO) {
                seen.settle(mark, State::Invalid, None, Class::DEFAULT, Time::ZERO);
            }
            let mut reader = Reader::new(seen.digester());
            let mut all = Stream::default();
            loop {
                let rest = &stream[all.used..];
                if runs && reader.scan_run(rest) > 0 {
                    let used = reader.sight_run(&mut seen, source, Time::ZERO);
                    all.take(&reader.finish_run(rest));
                    all.used += used;
                    continue;
                }
                let Some((len, at)) = read_length(rest).unwrap() else {
                    break;
                };
                let Some(frame) = rest.get(at..at + len) else {
                    break;
                };
                let frame = Bytes::copy_from_slice(frame);
                reader.scan(&frame).unwrap();
                reader.sight(&mut seen, source, Time::ZERO);
                all.take(&reader.finish(&frame));
                all.used += at + len;
            }
            ends.push((all, seen.counters(), seen.len(), seen.pending()));
        }
        assert_eq!(ends[0], ends[1]);
    });
}

/// Whoever has as much waiting as it may is not read on: what comes behind keeps its chance.
#[test]
fn go_10_a_run_ends_where_its_sender_has_no_more_room() {
    let config = SeenConfig {
        entries: 1 << 10,
        ..Config::default().seen()
    };
    let mut seen = Seen::new(config, [0; 32]);
    let source = seen.join(peer_id(1));
    let mut reader = Reader::new(seen.digester());
    let stream: Vec<u8> = (0..300)
        .flat_map(|n| prefixed(&signed(peer_id(1), n, "t", b"x", 1)))
        .collect();
    for n in 0..50_u64 {
        let digest = seen.digester().digest(&n.to_le_bytes());
        assert!(matches!(
            seen.sight(digest, source, Time::ZERO),
            Sight::New(_)
        ));
    }
    let (mut at, mut new) = (0, 0);
    while seen.room(source) > 0 {
        assert!(reader.scan_run(&stream[at..]) > 0);
        let used = reader.sight_run(&mut seen, source, Time::ZERO);
        let received = reader.finish_run(&stream[at..]);
        assert_eq!(received.known.shed, 0);
        new += received.candidates.len();
        at += used;
    }
    assert_eq!((new, seen.counters().refused_pending), (78, 0));
    assert_eq!(stream.len() / 300 * new, at);
}

/// Frames of ours are what rust-libp2p takes by default, and what is written is read.
#[test]
fn control_is_split_to_what_others_take() {
    check!(sim_scale(200), |rng| {
        let mut frame = FrameBuilder::new();
        let ids: Vec<MessageId> = (0..rng.below(2000))
            .map(|_| {
                let len = 1 + rng.index(80);
                MessageId::new(rng.bytes(len))
            })
            .collect();
        let name = topic(&"n".repeat(1 + rng.index(1000)));
        let taken = [
            frame.ihave(&name, &ids),
            frame.iwant(&ids),
            frame.idontwant(&ids),
        ];
        assert!(frame.control_bytes() <= 14 * 1024);
        assert!(ids.is_empty() || taken[0] > 0);
        let len = frame.len();
        let bytes = unframe(&frame.finish(Time::MAX));
        assert_eq!(bytes.len(), len);
        let control = decode(&bytes).control;
        let first = control
            .ihave
            .first()
            .map(|h| h.ids.clone())
            .unwrap_or_default();
        assert_eq!(first, ids[..taken[0]]);
        assert_eq!(control.iwant, ids[..taken[1]]);
        assert_eq!(control.idontwant, ids[..taken[2]]);
    });
}

#[test]
fn versions_have_their_names() {
    assert_eq!(Version::ALL[0].protocol(), "/meshsub/1.2.0");
    assert!(Version::V1_1 > Version::V1_0);
}
