//! Nobody shares the fate of a neighbour: what one peer does, or what becomes of it, costs no other peer its messages, its good name or its
//! room.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Bench, GOOD, pb, peer_id, secs, signed, topic, unsigned};
use gemba_gossip::wire::{FrameBuilder, Version};
use gemba_gossip::{
    CloseCause, Config, ConfigBuilder, Event, Input, MessageId, Mode, RelayPolicy, TopicOptions,
    Verdict,
};

fn bench() -> Bench {
    Bench::new(Config::default())
}

/// Messages without topic, each of its own.
fn malformed(numbers: std::ops::Range<u64>) -> Bytes {
    let one = |n: u64| pb::bytes(2, &pb::bytes(2, &n.to_be_bytes()));
    numbers.flat_map(one).collect::<Vec<u8>>().into()
}

/// Sixteen bad messages are a ban. What the connection had read before it heard of that stayed pending for two minutes: a few identities took
/// all the room that there is, and every new message of anybody was refused.
#[test]
fn g3_what_was_read_before_a_ban_or_an_end_was_heard_of_waits_for_no_verdict() {
    let mut b = bench();
    b.subscribe("t");
    let honest = b.subscriber("t");
    for n in 0..20 {
        let enemy = b.subscriber("t");
        let at = n * 10_000;
        let first = b.read(enemy, &malformed(at..at + 16));
        let second = b.read(enemy, &malformed(at + 16..at + 3000));
        b.tell(enemy, first);
        b.tell(enemy, second);
        assert_eq!(b.closed.len() as u64, n + 1, "banned");
        assert_eq!(b.seen.pending(), 0, "after {} bans", n + 1);
    }
    let gone = b.connect(false);
    let last = b.read(gone, &malformed(900_000..903_000));
    b.disconnect(gone);
    b.tell(gone, last);
    assert_eq!(b.seen.pending(), 0, "after an end");
    b.send(honest, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.deliveries(), ["x"]);
}

/// A stock peer of the default limit closes its stream at each large message and takes no sixth: the peer was never written to again, and its
/// connection was kept.
#[test]
fn g9_a_peer_that_takes_no_more_streams_is_connected_to_anew() {
    let mut b = bench();
    b.subscribe("t");
    let (peer, _) = (b.subscriber("t"), b.subscriber("t"));
    for attempt in 0..5 {
        b.version = (attempt < 4).then_some(Version::V1_2);
        b.handle(Input::StreamLost { peer });
        let opened = b.opened.len();
        while b.opened.len() == opened {
            b.pass(secs(1));
        }
    }
    assert_eq!(b.closed, []);
    b.handle(Input::Unsupported { peer });
    assert_eq!(b.closed, [(peer, CloseCause::Stalled)]);
    // Who never had a stream speaks another language.
    let other = b.connect(false);
    b.handle(Input::Unsupported { peer: other });
    assert_eq!(b.closed.len(), 1);
    b.disconnect(peer);
    b.version = Some(Version::V1_2);
    b.reconnect(peer, true);
    b.joins(peer, "t", 0);
    b.publish("t", "x", Mode::Try).unwrap();
    assert_eq!(b.heard(peer).data(), ["x"]);
}

// --- copies of others

/// A neighbour fills its queue, sends a message that another one sends as well, and is gone: so was the message.
#[test]
fn a_message_outlives_the_neighbour_that_sent_it_first() {
    let mut b = bench();
    b.subscribe("t");
    let (first, honest) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..40 {
        b.send(first, &signed(peer_id(100), n, "t", b"much", GOOD));
    }
    let message = signed(peer_id(101), 1, "t", b"x", GOOD);
    b.send(first, &message);
    b.send(honest, &message);
    b.disconnect(first);
    b.slow = false;
    b.work();
    assert!(b.deliveries().contains(&"x".into()));
    assert_eq!(b.core.load(&b.seen).pipeline_messages, 0);
    assert_eq!(b.seen.pending(), 0);
}

#[test]
fn a_message_that_its_first_sender_has_no_room_for_takes_that_of_another() {
    let config = Config::builder().verify_messages(16).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let (first, honest) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..40 {
        b.send(first, &signed(peer_id(100), n, "t", b"much", GOOD));
    }
    let message = signed(peer_id(101), 1, "t", b"x", GOOD);
    let (one, two) = (b.read(first, &message), b.read(honest, &message));
    b.tell(first, one);
    b.tell(honest, two);
    b.slow = false;
    b.work();
    assert!(b.deliveries().contains(&"x".into()));
    assert_eq!(b.seen.pending(), 0);
}

#[test]
fn a_message_that_is_heard_of_after_its_first_sender_left_is_that_of_another() {
    let mut b = bench();
    b.subscribe("t");
    let (first, honest) = (b.subscriber("t"), b.subscriber("t"));
    let message = signed(peer_id(101), 1, "t", b"x", GOOD);
    let (one, two) = (b.read(first, &message), b.read(honest, &message));
    b.disconnect(first);
    b.tell(first, one);
    b.tell(honest, two);
    assert_eq!(b.deliveries(), ["x"]);
    assert_eq!(b.heard(honest).messages.len(), 0, "it sent the message");
    assert_eq!(b.seen.pending(), 0);
}

// --- relays

fn bridge(bytes: usize) -> Bench {
    let config = Config::builder()
        .relay(RelayPolicy::Bridge { max_topics: 10 })
        .relay_bytes(bytes);
    Bench::new(config.build().unwrap())
}

/// A bridge that was told nothing of a topic took its messages for unsigned ones where they must be signed, and banned who sent them.
#[test]
fn g4_a_bridge_bans_nobody_for_how_a_topic_that_it_does_not_read_is_signed() {
    let mut b = bridge(1 << 20);
    let (a, c) = (b.subscriber("/gemba/u"), b.subscriber("/gemba/u"));
    for n in 0..40_u8 {
        for peer in [a, c, a] {
            b.send(peer, &unsigned("/gemba/u", &[n]));
        }
    }
    assert_eq!(b.closed, []);
    for peer in [a, c] {
        assert_eq!(b.core.why(&peer).unwrap().strikes, 0);
    }
    assert_eq!(b.core.counters().refused_signing, 40);
}

/// A relay does not judge: a reader that rejected what a spammer had sent banned the relay.
#[test]
fn g4_who_passes_on_what_the_application_rejects_is_not_banned_but_its_author_is() {
    let mut b = bench();
    b.subscribe_with("t", TopicOptions::default().with_validate(true));
    let (relay, other, author) = (b.connect(false), b.subscriber("t"), b.subscriber("t"));
    b.joins(relay, "t", 1);
    for n in 0..40 {
        let spam = signed(author, n, "t", &n.to_be_bytes(), GOOD);
        b.send(relay, &spam);
        b.validate(Verdict::Reject);
        b.send(other, &spam);
    }
    assert_eq!(b.closed, []);
    assert_eq!(b.core.why(&other).unwrap().strikes, 0, "it brought copies");
    for n in 40..60 {
        b.send(author, &signed(author, n, "t", b"spam", GOOD));
        b.validate(Verdict::Reject);
    }
    assert!(matches!(b.closed[..], [(peer, CloseCause::Banned { .. })] if peer == author));
}

fn ask(b: &mut Bench, peer: libp2p_identity::PeerId, ids: &[MessageId]) {
    let mut frame = FrameBuilder::new();
    frame.iwant(ids);
    b.say(peer, frame);
}

/// What was sent to all at once had to fit into two seconds' worth of relaying: 800 KiB for three neighbours never did.
#[test]
fn s0_31_a_relay_sends_a_large_message_to_all() {
    let mut b = bridge(1 << 20);
    let a = b.subscriber("t");
    let mut others: Vec<_> = (0..3).map(|_| b.subscriber("t")).collect();
    b.forget_sent();
    b.send(a, &signed(peer_id(100), 1, "t", &vec![0; 800 << 10], GOOD));
    for _ in 0..5 {
        for peer in others.clone() {
            let heard = b.heard(peer);
            match heard.messages.is_empty() {
                true => ask(&mut b, peer, &heard.advertised()),
                false => others.retain(|other| *other != peer),
            }
            others.retain(|other| *other != peer || b.heard(peer).messages.is_empty());
        }
        b.pass(secs(1));
    }
    assert_eq!(others, [], "did not get it");
}

#[test]
fn a_relay_that_is_asked_spends_no_more_than_one_that_sends() {
    let mut b = bridge(10_000);
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.forget_sent();
    let mut ids = Vec::new();
    for n in 0..20 {
        b.send(a, &signed(peer_id(100), n, "t", &[0; 1000], GOOD));
        ids.push(MessageId::signed(&peer_id(100).to_bytes(), n));
    }
    let sent = b.heard(c).messages.len();
    assert!((5..=12).contains(&sent), "{sent}");
    for _ in 0..3 {
        ask(&mut b, c, &ids);
    }
    assert_eq!(b.heard(c).messages.len(), 0, "it has spent what it may");
    b.pass(secs(1));
    ask(&mut b, c, &ids);
    let sent = b.heard(c).messages.len();
    assert!((5..=12).contains(&sent), "{sent}");
}

// --- room

/// All slots were for whoever came first, and what found none was known from then on: no copy of it counted.
#[test]
fn s4_57_nobody_takes_all_of_the_applications_attention_and_what_found_none_may_come_again() {
    let config = Config::builder().validations(16).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe_with("t", TopicOptions::default().with_validate(true));
    let (hog, honest) = (b.subscriber("t"), b.subscriber("t"));
    for n in 0..100 {
        b.send(hog, &signed(peer_id(100), n, "t", b"much", GOOD));
    }
    let asked = b.validations.len();
    assert!(asked < 16, "{asked}");
    b.send(honest, &signed(peer_id(101), 1, "t", b"x", GOOD));
    assert_eq!(b.validations.len(), asked + 1);
    b.send(honest, &signed(peer_id(100), 99, "t", b"much", GOOD));
    assert_eq!(b.validations.len(), asked + 2, "it was dropped, not judged");
}

/// 4,096 words of one RPC on one topic were 4,096 events, and as many rounds over all peers.
#[test]
fn g6_the_last_word_on_a_topic_in_an_rpc_counts() {
    let mut b = bench();
    b.subscribe("t");
    let peer = b.connect(false);
    let word = |n: u64| {
        let word = [pb::number(1, n % 2), pb::bytes(2, b"t")].concat();
        pb::bytes(1, &word)
    };
    let words =
        |range: std::ops::Range<u64>| -> Bytes { range.flat_map(word).collect::<Vec<u8>>().into() };
    b.receive(peer, words(1..4096));
    let joined = Event::Joined {
        peer,
        topic: topic("t"),
    };
    assert_eq!(b.events.len(), 1);
    assert_eq!(b.events[0], joined);
    b.receive(peer, words(0..4095));
    assert_eq!(b.events.len(), 2);
    assert!(b.core.subscribers(&topic("t")).is_empty());
}

/// Copies of others left the lane because they were old, or not needed: who waited for room was not told.
#[test]
fn who_waits_for_room_gets_it_however_it_came() {
    for told in [false, true] {
        let config = Config::builder().lane_bytes(1 << 16).build().unwrap();
        let mut b = Bench::new(config);
        b.subscribe("t");
        let (slow, other) = (b.subscriber("t"), b.connect(false));
        b.stuck.insert(slow);
        let mut ids = Vec::new();
        for n in 0..25 {
            b.send(other, &signed(peer_id(100), n, "t", &[0; 3000], GOOD));
            ids.push(MessageId::signed(&peer_id(100).to_bytes(), n));
        }
        let id = b.publish("t", vec![7; 5000], Mode::Wait(secs(30))).unwrap();
        assert!(!b.published.contains_key(&id));
        if told {
            let mut frame = FrameBuilder::new();
            frame.idontwant(&ids);
            b.say(slow, frame);
        } else {
            b.pass(secs(3));
        }
        assert!(b.published[&id].is_ok(), "{told}");
    }
}

#[test]
fn times_that_would_spin_or_overflow_are_refused() {
    type Set = fn(ConfigBuilder, Duration) -> ConfigBuilder;
    let all: [Set; 8] = [
        ConfigBuilder::heartbeat,
        ConfigBuilder::stall,
        ConfigBuilder::probe,
        ConfigBuilder::iwant_followup,
        ConfigBuilder::fanout_ttl,
        ConfigBuilder::prune_backoff,
        ConfigBuilder::unsubscribe_backoff,
        ConfigBuilder::ban,
    ];
    for (n, set) in all.into_iter().enumerate() {
        assert!(
            set(Config::builder(), Duration::MAX).build().is_err(),
            "{n}"
        );
        let zero = set(Config::builder(), Duration::ZERO).build();
        assert_eq!(zero.is_err(), n < 4, "{n}");
    }
}
