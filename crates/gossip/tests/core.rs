//! The core, driven by hand: one mechanism a test.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;

use bytes::Bytes;
use common::*;
use gemba_gossip::wire::{FrameBuilder, Version};
use gemba_gossip::{
    CloseCause, Config, DegradedCause, Event, Input, MessageId, Mode, PublishError, RelayPolicy,
    StreamReport, SubscribeError, Time, TopicOptions, Trouble, Verdict, WaitCause,
};
use gemba_testkit::{check, sim_scale};

fn bench() -> Bench {
    Bench::new(Config::default())
}

fn receipt(b: &Bench) -> gemba_gossip::Receipt {
    b.published.values().last().unwrap().clone().unwrap()
}

fn ttl(seconds: u64) -> TopicOptions {
    TopicOptions::default().with_seen_ttl(secs(seconds))
}

// --- dedup and verification

#[test]
fn s4_37_copies_every_half_ttl_are_one_delivery_and_silence_ends_it_where_numbers_are_free() {
    for window in [true, false] {
        let mut b = bench();
        b.subscribe_with("t", ttl(10).with_replay_window(window));
        let (a, c) = (b.subscriber("t"), b.subscriber("t"));
        let message = signed(peer_id(100), 7, "t", b"x", GOOD);
        for _ in 0..20 {
            b.send(a, &message);
            b.pass(secs(5));
            b.send(c, &message);
        }
        assert_eq!(b.deliveries().len(), 1);
        assert_eq!(b.verified, 1);
        b.pass(secs(11));
        b.send(a, &message);
        // On signed topics the author's window remembers longer than the cache.
        assert_eq!(b.deliveries().len(), usize::from(!window));
    }
}

#[test]
fn s4_37_unsigned_topics_deliver_again_after_silence() {
    let mut b = bench();
    b.subscribe_with("/gemba/t", TopicOptions::unsigned().with_seen_ttl(secs(10)));
    let a = b.subscriber("/gemba/t");
    let message = unsigned("/gemba/t", b"x");
    for _ in 0..10 {
        b.send(a, &message);
        b.pass(secs(9));
    }
    assert_eq!(b.deliveries().len(), 1);
    b.pass(secs(2));
    b.send(a, &message);
    assert_eq!(b.deliveries().len(), 1);
    assert_eq!(b.verified, 0);
}

#[test]
fn s4_36_each_topic_has_its_own_ttl_from_a_second_to_an_hour() {
    let mut b = bench();
    let times = [1_u64, 2, 60, 3600];
    for t in times {
        b.subscribe_with(&format!("t{t}"), ttl(t).with_replay_window(false));
    }
    let a = b.subscriber("t1");
    for t in times {
        b.send(a, &signed(peer_id(100), t, &format!("t{t}"), b"x", GOOD));
    }
    assert_eq!(b.deliveries().len(), 4);
    let known = |b: &Bench, t: u64| {
        let id = MessageId::signed(&peer_id(100).to_bytes(), t);
        b.seen.knows(id.as_bytes(), b.now)
    };
    for t in times {
        b.pass(secs(t) - millis(1) - b.now);
        assert!(
            times.iter().all(|other| known(&b, *other) == (*other >= t)),
            "{t} s"
        );
        b.pass(millis(1));
        assert!(
            times.iter().all(|other| known(&b, *other) == (*other > t)),
            "{t} s"
        );
    }
    for (bad, want) in [(millis(999), true), (secs(3601), true), (secs(5), false)] {
        let options = TopicOptions::default().with_seen_ttl(bad);
        let refused = b
            .core
            .subscribe_with(&mut b.seen, &topic("x"), options, b.now)
            .is_err();
        assert_eq!(refused, want, "{bad:?}");
    }
}

#[test]
fn s4_36_a_copy_a_moment_before_the_end_is_known_and_a_moment_after_new() {
    for t in [1_u64, 7, 120, 3600] {
        let mut b = bench();
        b.subscribe_with("t", ttl(t).with_replay_window(false));
        let a = b.subscriber("t");
        let message = signed(peer_id(100), 1, "t", b"x", GOOD);
        b.send(a, &message);
        b.pass(secs(t) - millis(1));
        b.send(a, &message);
        assert_eq!(b.deliveries().len(), 1, "{t} s");
        b.pass(secs(t));
        b.send(a, &message);
        assert_eq!(b.deliveries().len(), 1, "{t} s");
    }
}

#[test]
fn s4_38_s4_39_what_is_known_is_neither_parsed_nor_verified() {
    let mut b = bench();
    b.subscribe("t");
    let senders: Vec<_> = (0..10).map(|_| b.subscriber("t")).collect();
    for n in 0..200 {
        let message = signed(peer_id(100), n, "t", &n.to_be_bytes(), GOOD);
        for sender in &senders {
            b.send(*sender, &message);
        }
    }
    assert_eq!(b.deliveries().len(), 200);
    assert_eq!(b.verified, 200);
    assert_eq!(b.core.counters().candidates, 200);
    assert_eq!(b.seen.counters().duplicates, 200 * 9);
}

#[test]
fn g1_copies_while_a_message_is_verified_are_not_verified_and_get_no_copy_back() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..4).map(|_| b.subscriber("t")).collect();
    b.slow = true;
    let message = signed(peer_id(100), 1, "t", b"x", GOOD);
    for peer in &all[..3] {
        b.send(*peer, &message);
    }
    b.forget_sent();
    b.work();
    assert_eq!((b.verified, b.deliveries().len()), (1, 1));
    for peer in &all[..3] {
        assert_eq!(b.heard(*peer).messages.len(), 0, "it sent the message");
    }
    let heard = b.heard(all[3]);
    assert_eq!(heard.data(), ["x"]);
    assert_eq!(heard.messages[0].field(), &message, "byte for byte");
}

#[test]
fn g1_a_message_is_not_sent_to_its_author() {
    let mut b = bench();
    b.subscribe("t");
    let (author, sender) = (b.subscriber("t"), b.subscriber("t"));
    b.send(sender, &signed(author, 1, "t", b"x", GOOD));
    assert_eq!(b.deliveries(), ["x"]);
    assert_eq!(b.heard(author).messages.len(), 0);
}

#[test]
fn s4_35_forged_bytes_never_silence_a_real_id() {
    let mut b = bench();
    b.subscribe("t");
    let (enemy, honest) = (b.subscriber("t"), b.subscriber("t"));
    let author = peer_id(100);
    // Before, while and after the real one is verified.
    b.send(enemy, &signed(author, 1, "t", b"forged", BAD));
    b.slow = true;
    b.send(enemy, &signed(author, 1, "t", b"forged again", BAD));
    b.send(honest, &signed(author, 1, "t", b"real", GOOD));
    b.send(enemy, &signed(author, 1, "t", b"and again", BAD));
    b.work();
    assert_eq!(b.deliveries(), ["real"]);
    assert_eq!(b.core.counters().verified_bad, 3);
    // Now the id is known: other bytes cost no check.
    let before = b.verified;
    b.send(enemy, &signed(author, 1, "t", b"too late", BAD));
    assert_eq!(b.verified, before);
    assert_eq!(b.core.counters().variants, 1);
    assert!(b.core.why(&enemy).unwrap().strikes >= 4);
    assert_eq!(b.core.why(&honest).unwrap().strikes, 0);
}

#[test]
fn s4_35_an_author_who_signs_two_messages_with_one_number_sets_no_honest_peers_against_each_other()
{
    let mut b = bench();
    b.subscribe("t");
    let (author, honest) = (b.subscriber("t"), b.subscriber("t"));
    for n in 0..40 {
        b.send(author, &signed(author, n, "t", b"one", GOOD));
        b.send(honest, &signed(author, n, "t", b"two", GOOD));
    }
    assert_eq!(b.deliveries().len(), 40);
    assert_eq!(b.closed, [], "who passes it on is not banned for it");
    for n in 40..60 {
        b.send(honest, &signed(author, n, "t", b"one", GOOD));
        b.send(author, &signed(author, n, "t", b"two", GOOD));
    }
    assert!(matches!(b.closed[..], [(peer, CloseCause::Banned { .. })] if peer == author));
}

#[test]
fn s4_35_other_forms_of_a_message_buy_no_work() {
    let mut b = bench();
    b.subscribe("t");
    let (enemy, honest) = (b.subscriber("t"), b.subscriber("t"));
    let good = body(peer_id(100), 1, "t", b"x", GOOD);
    let unknown = [&good[..], &pb::bytes(9, b"y")].concat();
    let twice = [&good[..], &pb::bytes(4, b"t")].concat();
    for form in [&unknown, &twice] {
        b.send(enemy, &pb::bytes(2, form).into());
    }
    assert_eq!((b.verified, b.core.counters().refused_form), (0, 2));
    b.send(honest, &pb::bytes(2, &good).into());
    assert_eq!(b.deliveries(), ["x"]);
    // Bad bytes again and again are recognised, and held against who sends them.
    for _ in 0..16 {
        b.send(enemy, &pb::bytes(2, &unknown).into());
    }
    assert_eq!(b.core.counters().refused_form, 2);
    assert!(matches!(b.closed[..], [(peer, CloseCause::Banned { .. })] if peer == enemy));
}

#[test]
fn g4_bad_signatures_end_in_a_ban_after_sixteen() {
    let mut b = bench();
    b.subscribe("t");
    let (enemy, honest) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..100_000_u64 {
        // A worker is done with one for each that comes.
        b.send(enemy, &signed(peer_id(100), n, "t", b"junk", BAD));
        if n % 8 == 0 {
            b.work();
        }
        if !b.closed.is_empty() && n % 1000 != 0 {
            continue;
        }
    }
    b.work();
    assert!(b.verified <= 16, "{}", b.verified);
    assert_eq!(b.core.counters().bans, 1);
    assert!(
        b.seen.len() < 64,
        "nothing of the flood is remembered: {:?}",
        b.seen
    );
    assert!(
        matches!(b.closed[..], [(peer, CloseCause::Banned { until })] if peer == enemy && until == secs(600))
    );
    b.slow = false;
    b.send(honest, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.deliveries(), ["x"]);
    assert!(!b.core.subscribers(&topic("t")).contains(&enemy));
    // It comes back: not let in before its time, and for twice as long the next time.
    b.disconnect(enemy);
    b.pass(secs(300));
    b.reconnect(enemy, false);
    assert!(
        matches!(b.closed[1], (peer, CloseCause::Banned { until }) if peer == enemy && until == secs(600))
    );
    b.disconnect(enemy);
    b.pass(secs(301));
    b.reconnect(enemy, false);
    assert_eq!(b.closed.len(), 2);
    b.joins(enemy, "t", 0);
    for n in 0..20 {
        b.send(enemy, &signed(peer_id(101), n, "t", b"junk", BAD));
    }
    let again = b.now + secs(1200);
    assert_eq!(b.closed[2], (enemy, CloseCause::Banned { until: again }));
}

#[test]
fn g4_strikes_are_forgiven_with_time() {
    let mut b = bench();
    b.subscribe("t");
    let peer = b.subscriber("t");
    for n in 0..60 {
        b.send(peer, &signed(peer_id(100), n, "t", b"junk", BAD));
        b.pass(secs(11));
    }
    assert_eq!(b.closed, []);
    assert_eq!(b.core.why(&peer).unwrap().strikes, 0);
}

#[test]
fn s4_53_what_is_too_old_is_dropped_before_it_is_verified() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..200 {
        b.send(a, &signed(peer_id(100), n, "t", &n.to_be_bytes(), GOOD));
    }
    // Sixteen are at the workers, who sleep.
    assert_eq!(b.verified, 16);
    b.pass(millis(1100));
    b.forget_sent();
    b.work();
    assert_eq!(b.verified, 16, "the rest is too old to be worth a check");
    assert_eq!(b.deliveries().len(), 0, "nor is what was checked too late");
    assert_eq!(b.heard(c).messages.len(), 0);
    assert_eq!(b.core.counters().stale, 200);
    // And its copies are known, now.
    b.send(c, &signed(peer_id(100), 3, "t", &3_u64.to_be_bytes(), GOOD));
    assert_eq!((b.verified, b.jobs.len()), (16, 0));
    b.slow = false;
    b.send(a, &signed(peer_id(100), 500, "t", b"new", GOOD));
    assert_eq!(b.deliveries(), ["new"]);
}

#[test]
fn s4_54_a_slow_neighbour_is_sent_nothing_old_and_one_that_sends_old_things_is_not_heard() {
    let mut b = bench();
    b.subscribe("t");
    let (a, slow) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(slow);
    b.send(a, &signed(peer_id(100), 1, "t", b"one", GOOD));
    b.send(a, &signed(peer_id(100), 2, "t", b"two", GOOD));
    b.send(a, &signed(peer_id(100), 3, "t", b"three", GOOD));
    assert_eq!(b.held.len(), 2);
    assert!(
        b.held
            .iter()
            .all(|(_, f)| f.messages == 0 || f.expires == secs(2))
    );
    // What is with the driver carries its end; what is here is dropped.
    b.pass(secs(3));
    assert_eq!(b.core.why(&slow).unwrap().queued_messages, 0);
    // Five minutes later it throws everything back.
    b.pass(secs(300));
    for (n, data) in [(1, "one"), (2, "two"), (3, "three")] {
        b.send(a, &signed(peer_id(100), n, "t", data.as_bytes(), GOOD));
    }
    assert_eq!(b.deliveries().len(), 3, "once each");
    assert_eq!(b.core.counters().replayed, 3);
}

#[test]
fn s4_54_the_frame_says_until_when_it_may_be_written() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.pass(secs(100));
    b.forget_sent();
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    let frame = &b.frames.iter().find(|(to, _)| *to == c).unwrap().1;
    assert_eq!((frame.messages, frame.expires), (1, secs(102)));
    // A topic that is forgotten early has less time.
    b.subscribe_with("short", ttl(1));
    b.joins(c, "short", 0);
    b.forget_sent();
    b.send(a, &signed(peer_id(100), 2, "short", b"x", GOOD));
    let frame = &b
        .frames
        .iter()
        .find(|(to, f)| *to == c && f.messages > 0)
        .unwrap()
        .1;
    assert!(frame.expires - b.now <= millis(250), "{:?}", frame.expires);
}

#[test]
fn a_driver_that_finds_a_frame_expired_gets_the_next_one() {
    let config = Config::builder().idontwant_bytes(1 << 20).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(c);
    let big = vec![0; 60_000];
    for n in 0..3 {
        b.send(a, &signed(peer_id(100), n, "t", &big, GOOD));
    }
    assert_eq!(b.held.len(), 2);
    b.pass(millis(1500));
    b.send(a, &signed(peer_id(100), 9, "t", b"young", GOOD));
    b.pass(millis(600));
    b.held.clear();
    b.handle(Input::Expired { peer: c });
    b.handle(Input::Expired { peer: c });
    assert_eq!(b.core.counters().stale_out, 3);
    let held = std::mem::take(&mut b.held);
    let young = decode(&unframe(&held[0].1));
    assert_eq!(young.candidates[0].message.data(), "young");
    b.stuck.clear();
    let mut told = 0;
    for (_, frame) in held {
        told += decode(&unframe(&frame))
            .control
            .ihave
            .iter()
            .map(|h| h.ids.len())
            .sum::<usize>();
        b.handle(Input::Written { peer: c });
    }
    // It missed something: it is told what there is.
    b.pass(secs(1));
    assert!(told + b.heard(c).advertised().len() >= 4);
}

// --- replay

#[test]
fn s4_37_numbers_of_an_author_that_overtake_each_other_are_all_delivered_once() {
    let mut b = bench();
    b.subscribe_with("t", ttl(2));
    let a = b.subscriber("t");
    let order: Vec<u64> = (0..200).map(|n| 1000 + (n * 77) % 200).collect();
    for round in 0..3 {
        for n in &order {
            b.send(a, &signed(peer_id(100), *n, "t", &n.to_be_bytes(), GOOD));
        }
        assert_eq!(b.deliveries().len(), if round == 0 { 200 } else { 0 });
        b.pass(secs(10));
    }
    assert_eq!(b.verified, 200, "a replay is seen before it is verified");
}

#[test]
fn g11_somebody_who_uses_our_key_is_told_of() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    b.publish("t", "mine", Mode::Try).unwrap();
    let number = b
        .published
        .values()
        .next()
        .unwrap()
        .as_ref()
        .unwrap()
        .seqno
        .unwrap();
    // Our own comes back: nothing.
    b.send(a, &signed(b.me, number, "t", b"mine", GOOD));
    b.send(a, &signed(b.me, number - 1, "t", b"older", GOOD));
    assert_eq!(
        b.events
            .iter()
            .filter(|e| matches!(e, Event::CloneDetected { .. }))
            .count(),
        0
    );
    // A forged number: nothing either.
    b.send(a, &signed(b.me, number + (1 << 40), "t", b"forged", BAD));
    b.send(a, &signed(b.me, number + 10, "t", b"theirs", GOOD));
    assert!(
        b.events
            .contains(&Event::CloneDetected { seqno: number + 10 })
    );
    assert_eq!(b.deliveries().len(), 0);
    b.publish("t", "next", Mode::Try).unwrap();
    let last = b.published.values().last().unwrap().as_ref().unwrap();
    // Ours go on behind it, so that Kubo hears us; and what Kubo took for old is said again.
    assert_eq!(last.seqno, Some(number + 12));
    let heard = b.heard(a);
    assert_eq!(heard.data(), ["mine", "mine", "next"]);
    assert_eq!(heard.messages[1].seqno(), Some(number + 11));
    // Once, whoever goes on.
    b.send(a, &signed(b.me, number + 50, "t", b"theirs", GOOD));
    assert_eq!(b.heard(a).messages.len(), 0);
    assert_eq!(
        (b.core.counters().said_again, b.core.counters().clones),
        (1, 2)
    );
    assert_eq!(b.published.len(), 2, "it is told of once");
}

// --- policies

#[test]
fn s4_57_authors_that_a_topic_does_not_allow_are_ignored_before_they_are_verified() {
    let mut b = bench();
    b.subscribe_with("t", TopicOptions::default().with_authors([peer_id(100)]));
    let a = b.subscriber("t");
    for n in 0..50 {
        b.send(a, &signed(peer_id(101), n, "t", b"spam", GOOD));
    }
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!((b.verified, b.core.counters().refused_author), (1, 50));
    assert_eq!(b.deliveries(), ["x"]);
}

#[test]
fn s0_36_unsigned_messages_travel_on_our_own_topics_only() {
    let mut b = bench();
    let refused = b.core.subscribe_with(
        &mut b.seen,
        &topic("t"),
        TopicOptions::unsigned(),
        Time::ZERO,
    );
    assert_eq!(refused, Err(SubscribeError::UnsignedForeign));
    assert!(
        Config::builder()
            .topic("t*", TopicOptions::unsigned())
            .build()
            .is_err()
    );
    b.subscribe("t");
    b.subscribe_with("/gemba/u", TopicOptions::unsigned());
    let (a, c) = (b.subscriber("t"), b.subscriber("/gemba/u"));
    b.send(a, &unsigned("t", b"x"));
    b.send(a, &signed(peer_id(100), 1, "/gemba/u", b"x", GOOD));
    assert_eq!(b.deliveries().len(), 0);
    assert_eq!(b.core.counters().refused_signing, 2);
    b.send(a, &unsigned("/gemba/u", b"x"));
    assert_eq!(b.heard(c).data(), ["x"]);
    let id = b.publish("/gemba/u", "y", Mode::Try).unwrap();
    let receipt = b.published[&id].clone().unwrap();
    assert_eq!(receipt.id, MessageId::unsigned("/gemba/u", b"y"));
    assert_eq!(receipt.seqno, None);
    // Its id is made by the worker that writes it.
    let again = b.publish("/gemba/u", "y", Mode::Try).unwrap();
    assert_eq!(b.published[&again], Err(PublishError::Duplicate));
}

#[test]
fn the_application_judges_within_a_deadline() {
    let mut b = bench();
    b.subscribe_with("t", TopicOptions::default().with_validate(true));
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    for (n, verdict) in [
        (1, Verdict::Accept),
        (2, Verdict::Ignore),
        (3, Verdict::Reject),
    ] {
        let message = signed(peer_id(100), n, "t", &[n as u8], GOOD);
        b.send(a, &message);
        b.forget_sent();
        b.validate(verdict);
        let passed = usize::from(verdict == Verdict::Accept);
        assert_eq!(b.deliveries().len(), passed);
        assert_eq!(b.heard(c).messages.len(), passed);
        b.send(c, &message);
        assert_eq!(b.validations.len(), 0, "judged once");
    }
    assert_eq!(b.core.why(&a).unwrap().strikes, 1);
    // Too late is no.
    b.send(a, &signed(peer_id(100), 4, "t", b"late", GOOD));
    let ticket = b.validations[0].0;
    b.pass(millis(1001));
    b.handle(Input::Validated {
        ticket,
        verdict: Verdict::Accept,
    });
    assert_eq!(b.deliveries().len(), 0);
    assert_eq!(b.core.counters().validated_late, 1);
}

// --- publishing

#[test]
fn s0_33_a_small_swarm_floods_from_the_first_moment() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..6).map(|_| b.subscriber("t")).collect();
    assert_eq!(b.now, Time::ZERO);
    b.publish("t", "mine", Mode::Try).unwrap();
    b.send(all[0], &signed(peer_id(100), 1, "t", b"theirs", GOOD));
    for (i, peer) in all.iter().enumerate() {
        let want: &[&str] = if i == 0 {
            &["mine"]
        } else {
            &["mine", "theirs"]
        };
        assert_eq!(b.heard(*peer).data(), want);
    }
}

#[test]
fn s0_33_what_is_sent_before_the_stream_stands_is_not_lost() {
    let mut b = bench();
    b.subscribe("t");
    b.version = None;
    let late = b.subscriber("t");
    b.publish("t", "x", Mode::Try).unwrap();
    assert_eq!(b.heard(late).messages.len(), 0);
    b.pass(millis(500));
    b.handle(Input::StreamOpened {
        peer: late,
        version: Version::V1_1,
    });
    let heard = b.heard(late);
    assert_eq!(heard.data(), ["x"]);
    assert_eq!(heard.subscriptions.len(), 1);
}

/// A Kubo that takes the end of an earlier connection for that of this one forgets who we are, and opens a stream.
#[test]
fn s4_17_who_opens_a_stream_is_told_again_what_is_read_once_a_heartbeat() {
    let mut b = bench();
    b.subscribe("t");
    b.subscribe("u");
    let kubo = b.subscriber("t");
    let first = b.heard(kubo);
    assert_eq!(first.subscriptions.len(), 2);
    b.pass(secs(5));
    b.heard(kubo);
    let opened = || Input::PeerOpened { peer: kubo };
    b.handle(opened());
    let again = b.heard(kubo);
    assert_eq!(again.subscriptions.len(), 2);
    assert!(again.subscriptions.iter().all(|s| s.subscribe));
    assert_eq!(again.control.graft, [topic("t")], "and in whose mesh it is");
    // However often it does so.
    for _ in 0..1000 {
        b.handle(opened());
    }
    assert_eq!(b.heard(kubo).subscriptions.len(), 0);
    b.pass(secs(2));
    assert_eq!(b.heard(kubo).subscriptions.len(), 2);
    // What it was not told yet is told once.
    b.unsubscribe("u");
    b.handle(opened());
    b.pass(secs(2));
    let last = b.heard(kubo).subscriptions;
    assert_eq!(last.iter().filter(|s| !s.subscribe).count(), 1);
}

#[test]
fn go_27_a_peer_that_says_nothing_is_connected_to_anew_once_in_ten_minutes() {
    let mut b = bench();
    b.subscribe("t");
    let closes = |b: &mut Bench| std::mem::take(&mut b.closed).len();
    let (mute, hears) = (b.connect(true), b.connect(true));
    b.handle(Input::PeerOpened { peer: hears });
    b.pass(secs(19));
    assert_eq!(closes(&mut b), 0);
    b.pass(secs(3));
    assert_eq!(b.closed, [(mute, CloseCause::Stalled)]);
    closes(&mut b);
    b.disconnect(mute);
    b.pass(secs(10));
    let wanted = |event: &Event| matches!(event, Event::WantPeer { peer } if *peer == mute);
    assert!(b.events.iter().any(wanted));
    b.reconnect(mute, true);
    b.pass(secs(500));
    assert_eq!(closes(&mut b), 0, "once is enough for a while");
    b.pass(secs(120));
    assert_eq!(b.closed, [(mute, CloseCause::Stalled)]);
}

#[test]
fn g10_a_publisher_faster_than_its_neighbours_is_told_at_once() {
    let config = Config::builder().lane_bytes(1 << 16).build().unwrap();
    let mut b = Bench::new(config);
    let a = b.subscriber("t");
    b.stuck.insert(a);
    let mut refused = 0;
    for _ in 0..1000 {
        match b.publish("t", vec![0; 1000], Mode::Try) {
            Err(PublishError::Backpressure { queued_bytes }) => {
                assert!(queued_bytes <= 1 << 16);
                refused += 1;
            }
            Ok(id) => assert!(b.published[&id].is_ok()),
            Err(error) => panic!("{error}"),
        }
        assert!(b.core.load(&b.seen).lane_bytes <= 1 << 16);
    }
    assert!(refused > 800, "{refused}");
    // With patience it leaves as soon as there is room.
    let id = b.publish("t", vec![7; 3000], Mode::Wait(secs(30))).unwrap();
    assert!(!b.published.contains_key(&id));
    b.pass(secs(1));
    b.stuck.remove(&a);
    for _ in 0..std::mem::take(&mut b.held).len() {
        b.handle(Input::Written { peer: a });
    }
    assert!(b.published[&id].is_ok());
    assert_eq!(b.heard(a).data().last().unwrap()[..], [7; 3000]);
}

#[test]
fn publishing_waits_holds_and_gives_up_as_it_is_told() {
    let mut b = bench();
    assert_eq!(b.publish("t", "x", Mode::Try), Err(PublishError::NoPeers));
    let hold = b.publish("t", "held", Mode::Hold(secs(3600))).unwrap();
    let wait = b.publish("t", "waits", Mode::Wait(secs(10))).unwrap();
    let gone = b.publish("t", "withdrawn", Mode::Hold(secs(3600))).unwrap();
    assert!(b.core.withdraw(gone));
    assert!(!b.core.withdraw(gone));
    b.pass(secs(11));
    let expired = PublishError::Expired {
        cause: WaitCause::Peers,
    };
    assert_eq!(b.published[&wait], Err(expired));
    b.pass(secs(1000));
    assert!(!b.published.contains_key(&hold));
    let a = b.subscriber("t");
    assert_eq!(b.published[&hold].as_ref().unwrap().queued_to, 1);
    assert_eq!(b.heard(a).data(), ["held"]);
    let max = match b.publish("t", vec![0; 1 << 20], Mode::Try) {
        Err(PublishError::TooLarge { max, .. }) => max,
        other => panic!("{other:?}"),
    };
    b.publish("t", vec![0; max], Mode::Try).unwrap();
    let frame = &b.frames.last().unwrap().1;
    // An RPC of 1,048,576 bytes exactly, behind its length of three.
    assert_eq!(frame.bytes, gemba_gossip::wire::MAX_FRAME_BYTES + 3);
    let load = b.core.load(&b.seen);
    assert_eq!((load.own_messages, load.own_bytes), (0, 0));
}

#[test]
fn own_messages_leave_in_the_order_of_their_numbers_whoever_signs_them() {
    let mut b = bench();
    let a = b.subscriber("t");
    // The workers are done in another order.
    let mut ids = Vec::new();
    let mut jobs = Vec::new();
    for n in 0..5_u8 {
        let t = topic("t");
        let id = b
            .core
            .publish(&mut b.seen, &t, vec![n].into(), Mode::Try, b.now);
        ids.push(id.unwrap());
        while let Some(output) = b.core.poll() {
            match output {
                gemba_gossip::Output::Sign { publish, job } => jobs.push((publish, job)),
                other => panic!("{other:?}"),
            }
        }
    }
    for (publish, job) in jobs.into_iter().rev() {
        assert!(b.published.is_empty());
        let result = job.attach(&[GOOD; 64]);
        b.handle(Input::Signed { publish, result });
    }
    let numbers: Vec<_> = b
        .heard(a)
        .messages
        .iter()
        .map(|m| m.seqno().unwrap())
        .collect();
    assert_eq!(numbers.len(), 5);
    assert!(numbers.windows(2).all(|w| w[0] < w[1]), "{numbers:?}");
}

/// A signature that fails, of a worker that panics for one, ends its message at once; what is behind it leaves.
#[test]
fn a_signature_that_fails_is_told_at_once_and_holds_up_nobody() {
    let mut b = bench();
    let a = b.subscriber("t");
    let mut jobs = Vec::new();
    for n in 0..2_u8 {
        let t = topic("t");
        let wait = Mode::Hold(secs(600));
        b.core
            .publish(&mut b.seen, &t, vec![n].into(), wait, b.now)
            .unwrap();
        while let Some(output) = b.core.poll() {
            match output {
                gemba_gossip::Output::Sign { publish, job } => jobs.push((publish, job)),
                other => panic!("{other:?}"),
            }
        }
    }
    let (second, job) = jobs.pop().unwrap();
    let result = job.attach(&[GOOD; 64]);
    b.handle(Input::Signed {
        publish: second,
        result,
    });
    assert_eq!(
        b.heard(a).messages.len(),
        0,
        "the first has the lower number"
    );
    let (first, _) = jobs.pop().unwrap();
    let failed = PublishError::Signing("the worker panicked".into());
    b.handle(Input::Signed {
        publish: first,
        result: Err(failed.clone()),
    });
    assert_eq!(b.published[&first], Err(failed));
    assert!(b.published[&second].is_ok());
    assert_eq!(b.heard(a).messages.len(), 1);
}

#[test]
fn g11_nothing_signed_leaves_before_its_number_is_reserved() {
    let mut b = bench();
    let a = b.subscriber("t");
    b.handle(Input::SequenceLoaded {
        stored: Some(500),
        wall_nanos: 3,
    });
    let id = b.publish("t", "x", Mode::Try).unwrap();
    assert!(b.published[&id].as_ref().unwrap().seqno >= Some(500));
    assert_eq!(b.heard(a).messages.len(), 1);
}

#[test]
fn s0_34_a_message_of_ours_adds_less_than_200_bytes() {
    let mut b = bench();
    let a = b.subscriber("t");
    b.publish("t", vec![0; 100], Mode::Try).unwrap();
    let frame = b
        .frames
        .iter()
        .find(|(to, f)| *to == a && f.messages == 1)
        .unwrap();
    assert!(frame.1.bytes < 300, "{}", frame.1.bytes);
}

// --- lanes and streams

#[test]
fn the_payload_is_in_memory_once_whatever_the_number_of_peers() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    for _ in 0..5 {
        b.subscriber("t");
    }
    b.forget_sent();
    b.send(a, &signed(peer_id(100), 1, "t", &[7; 50_000], GOOD));
    let pieces: BTreeSet<_> = b
        .frames
        .iter()
        .filter(|(_, f)| f.messages == 1)
        .map(|(_, f)| f.parts[1].as_ptr())
        .collect();
    assert_eq!(b.frames.iter().filter(|(_, f)| f.messages == 1).count(), 5);
    assert_eq!(pieces.len(), 1);
    let delivered = b.delivered[0].data.as_ptr() as usize;
    let frame = *pieces.first().unwrap() as usize;
    assert!(
        (frame..frame + 60_000).contains(&delivered),
        "and what is delivered is the same memory"
    );
}

#[test]
fn small_messages_share_a_frame_and_do_not_hold_the_one_they_came_in() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(c);
    let mut frame = FrameBuilder::new();
    for n in 0..100 {
        frame.message(signed(peer_id(100), n, "t", &[0; 100], GOOD));
    }
    b.say(a, frame);
    b.stuck.remove(&c);
    b.frames.clear();
    for _ in 0..std::mem::take(&mut b.held).len() {
        b.handle(Input::Written { peer: c });
    }
    let frames: Vec<_> = b.frames.iter().filter(|(to, _)| *to == c).collect();
    assert!(frames.len() <= 2, "{}", frames.len());
    assert!(frames.iter().all(|(_, f)| f.bytes <= 64 * 1024 + 300));
}

#[test]
fn g10_lanes_are_bounded_and_the_oldest_go() {
    let config = Config::builder()
        .lane_bytes(1 << 16)
        .lane_messages(32)
        .build()
        .unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(c);
    for n in 0..300 {
        b.send(a, &signed(peer_id(100), n, "t", &n.to_be_bytes(), GOOD));
        let why = b.core.why(&c).unwrap();
        assert!(why.queued_messages <= 32 && why.queued_bytes <= 1 << 16);
    }
    assert!(b.core.counters().lane_dropped > 250);
    b.stuck.remove(&c);
    for _ in 0..std::mem::take(&mut b.held).len() {
        b.handle(Input::Written { peer: c });
    }
    assert_eq!(b.heard(c).data().last().unwrap()[..], 299_u64.to_be_bytes());
}

#[test]
fn idontwant_takes_back_what_waits_and_is_sent_for_large_messages_only_after_they_are_verified() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c, old) = (b.subscriber("t"), b.subscriber("t"), peer_id(77));
    b.version = Some(Version::V1_1);
    b.reconnect(old, false);
    b.joins(old, "t", 0);
    b.slow = true;
    let large = signed(peer_id(100), 1, "t", &[0; 5000], GOOD);
    b.send(a, &large);
    assert_eq!(b.heard(c).control.idontwant.len(), 0, "not proven yet");
    b.work();
    b.slow = false;
    let id = MessageId::signed(&peer_id(100).to_bytes(), 1);
    assert_eq!(b.heard(c).control.idontwant, [id]);
    assert_eq!(b.heard(old).control.idontwant, [], "1.1 does not know it");
    b.send(a, &signed(peer_id(100), 2, "t", &[0; 20], GOOD));
    assert_eq!(b.heard(c).control.idontwant, []);
    // The other way round: two frames are out, the third message waits and is taken back.
    b.stuck.insert(c);
    for n in 3..6 {
        b.send(a, &signed(peer_id(100), n, "t", &[0; 65_000], GOOD));
    }
    let mut frame = FrameBuilder::new();
    let ids: Vec<_> = (3..8)
        .map(|n| MessageId::signed(&peer_id(100).to_bytes(), n))
        .collect();
    assert_eq!(frame.idontwant(&ids), 5);
    b.say(c, frame);
    assert!(b.core.counters().lane_unneeded >= 1);
    b.send(a, &signed(peer_id(100), 7, "t", &[0; 65_000], GOOD));
    assert_eq!(b.core.why(&c).unwrap().queued_messages, 0);
    // For three heartbeats.
    b.pass(secs(4));
    assert_eq!(b.core.load(&b.seen).unneeded, 0);
}

#[test]
fn g9_a_stream_that_takes_nothing_is_reset_opened_again_and_the_second_time_its_connection_closed()
{
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(c);
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    b.pass(secs(9));
    assert_eq!(b.reset, []);
    b.pass(secs(2));
    assert_eq!(b.reset, [c]);
    assert!(b.events.contains(&Event::PeerStalled { peer: c }));
    b.pass(secs(2));
    assert_eq!(b.opened.iter().filter(|p| **p == c).count(), 2);
    assert!(b.events.contains(&Event::StreamReopened { peer: c }));
    b.pass(secs(12));
    assert_eq!(b.closed, [(c, CloseCause::Stalled)]);
    assert_eq!(b.core.why(&c).unwrap().stream, StreamReport::Shut);
    b.disconnect(c);
    b.stuck.clear();
    b.reconnect(c, false);
    b.joins(c, "t", 0);
    b.send(a, &signed(peer_id(100), 2, "t", b"y", GOOD));
    assert_eq!(b.heard(c).data(), ["y"]);
}

#[test]
fn g9_a_stream_is_opened_again_without_a_last_attempt() {
    let mut b = bench();
    b.version = None;
    let a = b.connect(true);
    let mut attempts = Vec::new();
    let hours = secs(2 * 3600);
    while b.now < hours {
        let before = b.opened.len();
        b.handle(Input::StreamLost { peer: a });
        while b.opened.len() == before {
            b.pass(millis(100));
        }
        attempts.push(b.now);
    }
    assert!(attempts.len() > 100, "{}", attempts.len());
    let pauses: Vec<_> = attempts.windows(2).map(|w| w[1] - w[0]).collect();
    assert!(pauses.iter().all(|p| *p >= secs(1) && *p <= secs(61)));
    assert!(
        pauses[10..].iter().all(|p| *p >= secs(30)),
        "it does not storm"
    );
}

#[test]
fn g9_s4_17_a_thousand_streams_that_die_silently_are_found_in_30_s_and_healed_in_60_s() {
    check!(sim_scale(1000), |rng| {
        let mut b = bench();
        b.subscribe("t");
        let (a, c) = (b.subscriber("t"), b.subscriber("t"));
        for peer in [a, c] {
            let mut frame = FrameBuilder::new();
            frame.pong(1);
            b.say(peer, frame);
        }
        for _ in 0..rng.below(60) {
            b.pass(millis(500 + rng.below(700)));
            answer_probes(&mut b, &[a, c]);
        }
        // From now on nothing comes through: either bytes leave and nobody reads them, or none leave.
        let fault = b.now;
        let busy = rng.coin();
        if rng.coin() {
            b.stuck.insert(c);
        }
        let (mut found, mut healed, mut number) = (None, None, 0);
        while healed.is_none() && b.now < fault + secs(120) {
            b.pass(millis(500));
            let answering = if found.is_some() { vec![a, c] } else { vec![a] };
            answer_probes(&mut b, &answering);
            if busy {
                number += 1;
                b.send(a, &signed(peer_id(100), number, "t", b"traffic", GOOD));
            }
            let stalled = b.events.contains(&Event::PeerStalled { peer: c });
            if stalled && found.is_none() {
                found = Some(b.now);
                b.stuck.clear();
                b.forget_sent();
            }
            if found.is_some() && b.events.contains(&Event::StreamReopened { peer: c }) {
                b.forget_sent();
                b.send(a, &signed(peer_id(101), 1, "t", b"healed", GOOD));
                if b.heard(c).data().contains(&Bytes::from("healed")) {
                    healed = Some(b.now);
                }
            }
        }
        assert!(
            found.is_some_and(|at| at <= fault + secs(30)),
            "{found:?} after {fault:?}"
        );
        assert!(
            healed.is_some_and(|at| at <= fault + secs(60)),
            "{healed:?} after {fault:?}"
        );
    });
}

fn answer_probes(b: &mut Bench, peers: &[libp2p_identity::PeerId]) {
    for peer in peers {
        for nonce in b.heard(*peer).pings {
            let mut frame = FrameBuilder::new();
            frame.pong(nonce);
            b.say(*peer, frame);
        }
    }
}

#[test]
fn g9_progress_of_a_large_frame_on_a_slow_line_is_no_stall() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.stuck.insert(c);
    b.send(a, &signed(peer_id(100), 1, "t", &[0; 900_000], GOOD));
    for _ in 0..30 {
        b.pass(secs(3));
        b.handle(Input::Progress { peer: c });
    }
    assert_eq!(b.reset, []);
}

#[test]
fn s4_18_an_idle_stream_is_probed_if_its_peer_answers_probes() {
    let mut b = bench();
    b.subscribe("t");
    let (ours, kubo) = (b.subscriber("t"), b.subscriber("t"));
    assert_eq!(b.heard(ours).pings.len(), 1);
    let mut frame = FrameBuilder::new();
    frame.pong(1);
    b.say(ours, frame);
    // Two hours of silence, answered.
    for _ in 0..1440 {
        b.pass(secs(5));
        let heard = b.heard(ours);
        if !heard.pings.is_empty() {
            let mut frame = FrameBuilder::new();
            frame.pong(heard.pings[0]);
            b.say(ours, frame);
        }
    }
    assert_eq!((b.reset.len(), b.closed.len()), (0, 0));
    assert!(b.core.counters().probes_out > 100);
    b.send(kubo, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(
        b.heard(ours).data(),
        ["x"],
        "the first message after that arrives"
    );
    // Its side dies silently: found within half a minute. Kubo, which never answered, is left alone.
    b.pass(secs(30));
    assert_eq!(b.reset, [ours]);
    let mut frame = FrameBuilder::new();
    frame.ping(77);
    b.say(kubo, frame);
    assert_eq!(b.heard(kubo).pongs, [77]);
}

#[test]
fn everything_of_a_peer_goes_with_it() {
    let mut b = bench();
    b.subscribe("t");
    let keep = b.subscriber("t");
    let before = b.core.load(&b.seen);
    for _ in 0..50 {
        let peer = b.subscriber("t");
        b.stuck.insert(peer);
        b.joins(peer, "other", 0);
        let mut frame = FrameBuilder::new();
        frame.graft(&topic("t"));
        frame.ihave(&topic("t"), &[MessageId::new(&b"nothing"[..])]);
        frame.idontwant(&[MessageId::new(&b"nothing"[..])]);
        b.say(peer, frame);
        b.publish("t", vec![0; 1000], Mode::Try).unwrap();
        b.slow = true;
        b.send(peer, &signed(peer, 1, "t", b"x", GOOD));
        b.disconnect(peer);
        b.work();
        b.slow = false;
    }
    b.pass(secs(130));
    let after = b.core.load(&b.seen);
    assert_eq!((after.peers, after.topics), (before.peers, before.topics));
    assert_eq!((after.lane_messages, after.lane_bytes), (0, 0));
    assert_eq!((after.promises, after.unneeded), (0, 0));
    assert_eq!((after.pipeline_messages, after.seen_entries), (0, 0));
    assert_eq!(b.core.subscribers(&topic("t")), [keep]);
}

// --- mesh

#[test]
fn a_large_swarm_is_a_mesh_of_a_few_and_a_message_is_sent_to_no_more() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..40).map(|_| b.subscriber("t")).collect();
    // D low: those who come later graft as well.
    assert_eq!(b.core.mesh(&topic("t")).len(), 5);
    let grafted: Vec<_> = all
        .iter()
        .filter(|p| !b.heard(**p).control.graft.is_empty())
        .collect();
    assert_eq!(grafted.len(), 5);
    b.forget_sent();
    b.publish("t", "first", Mode::Try).unwrap();
    assert_eq!(receipt(&b).queued_to, 5);
    let outside = all
        .iter()
        .find(|p| !b.core.mesh(&topic("t")).contains(p))
        .unwrap();
    b.send(*outside, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.core.counters().forwarded, 5);
    let config = Config::builder().flood_publish(usize::MAX).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    for _ in 0..40 {
        b.subscriber("t");
    }
    b.publish("t", "mine", Mode::Try).unwrap();
    assert_eq!(receipt(&b).queued_to, 40);
}

/// Found by the simulator with four hostile peers for each honest one: a mesh of strangers that keep everything back.
#[test]
fn g7_a_mesh_that_brings_nothing_is_not_relied_on_and_takes_in_those_who_bring_something() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..40).map(|_| b.subscriber("t")).collect();
    let mesh = b.core.mesh(&topic("t"));
    let outside: Vec<_> = all.iter().filter(|p| !mesh.contains(p)).collect();
    for (n, peer) in (1..).zip(&outside[..3]) {
        b.send(**peer, &signed(peer_id(100), n, "t", b"x", GOOD));
    }
    b.publish("t", "mine", Mode::Try).unwrap();
    assert_eq!(receipt(&b).queued_to, 40, "none of the mesh brought any");
    b.pass(secs(2));
    let mesh = b.core.mesh(&topic("t"));
    assert_eq!(mesh.len(), 8);
    assert!(outside[..3].iter().all(|p| mesh.contains(p)));
    b.publish("t", "mine again", Mode::Try).unwrap();
    assert_eq!(receipt(&b).queued_to, 8);
    // Strangers fill the mesh: who brings something is let in all the same, and stays when it is thinned out.
    for peer in &all[..30] {
        let mut frame = FrameBuilder::new();
        frame.graft(&topic("t"));
        b.say(*peer, frame);
    }
    b.send(all[39], &signed(peer_id(100), 9, "t", b"x", GOOD));
    let mut frame = FrameBuilder::new();
    frame.graft(&topic("t"));
    b.say(all[39], frame);
    assert!(b.core.mesh(&topic("t")).len() > 12);
    b.pass(secs(2));
    let mesh = b.core.mesh(&topic("t"));
    assert_eq!(mesh.len(), 6);
    assert!(mesh.contains(&all[39]) && outside[..3].iter().all(|p| mesh.contains(p)));
    // What they brought is long ago: they count no more than others.
    for n in 0..300 {
        b.send(all[38], &signed(peer_id(101), 1 + n, "t", b"y", GOOD));
    }
    b.publish("t", "later", Mode::Try).unwrap();
    assert_eq!(receipt(&b).queued_to, 40);
}

#[test]
fn what_a_neighbour_has_is_not_advertised_to_it() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..12).map(|_| b.subscriber("t")).collect();
    let mesh = b.core.mesh(&topic("t"));
    let outside: Vec<_> = all.iter().filter(|p| !mesh.contains(p)).collect();
    b.send(all[0], &signed(peer_id(100), 1, "t", b"x", GOOD));
    let id = MessageId::signed(&peer_id(100).to_bytes(), 1);
    for peer in &outside {
        let mut frame = FrameBuilder::new();
        frame.ihave(&topic("t"), std::slice::from_ref(&id));
        b.say(**peer, frame);
    }
    b.forget_sent();
    b.pass(secs(4));
    assert!(all.iter().all(|p| b.heard(*p).advertised().is_empty()));
}

#[test]
fn the_mesh_is_kept_between_its_bounds() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..30).map(|_| b.subscriber("t")).collect();
    for peer in &all {
        let mut frame = FrameBuilder::new();
        frame.graft(&topic("t"));
        b.say(*peer, frame);
    }
    let mesh = b.core.mesh(&topic("t")).len();
    assert_eq!(mesh, 12, "strangers are refused above D high");
    assert!(b.core.counters().grafts_refused >= 17);
    // Those that we dialled are let in above, and then some are pruned, but not they.
    let mine: Vec<_> = (0..3).map(|_| b.connect(true)).collect();
    for peer in &mine {
        b.joins(*peer, "t", 0);
        let mut frame = FrameBuilder::new();
        frame.graft(&topic("t"));
        b.say(*peer, frame);
    }
    assert_eq!(b.core.mesh(&topic("t")).len(), 15);
    b.pass(secs(2));
    let mesh = b.core.mesh(&topic("t"));
    assert_eq!(mesh.len(), 6);
    assert!(mine.iter().filter(|p| mesh.contains(p)).count() >= 2);
    // All but one leave: the mesh is filled up from those that came back from back-off.
    for peer in &mesh[1..] {
        b.disconnect(*peer);
    }
    b.pass(secs(65));
    assert!(b.core.mesh(&topic("t")).len() >= 5);
}

#[test]
fn g7_the_mesh_holds_two_that_we_dialled_though_strangers_fill_it() {
    let mut b = bench();
    b.subscribe("t");
    for _ in 0..12 {
        let peer = b.subscriber("t");
        let mut frame = FrameBuilder::new();
        frame.graft(&topic("t"));
        b.say(peer, frame);
    }
    let mine: Vec<_> = (0..4).map(|_| b.connect(true)).collect();
    for peer in &mine {
        b.joins(*peer, "t", 0);
    }
    b.pass(secs(3));
    let mesh = b.core.mesh(&topic("t"));
    assert!(
        mine.iter().filter(|p| mesh.contains(p)).count() >= 2,
        "{mesh:?}"
    );
}

#[test]
fn g7_direct_peers_get_everything_and_are_never_in_a_mesh() {
    let anchor = peer_id(900);
    let config = Config::builder().direct([anchor]).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    b.pass(secs(1));
    assert!(b.events.contains(&Event::WantPeer { peer: anchor }));
    b.reconnect(anchor, true);
    b.joins(anchor, "t", 0);
    let all: Vec<_> = (0..20).map(|_| b.subscriber("t")).collect();
    b.pass(secs(3));
    assert!(!b.core.mesh(&topic("t")).contains(&anchor));
    let mut frame = FrameBuilder::new();
    frame.graft(&topic("t"));
    b.say(anchor, frame);
    assert_eq!(b.heard(anchor).control.prune.len(), 1);
    b.send(all[0], &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.heard(anchor).data(), ["x"]);
}

#[test]
fn pruned_neighbours_are_left_alone_for_as_long_as_they_say() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    assert_eq!(b.core.mesh(&topic("t")), [a]);
    for (seconds, pause) in [(Some(5), 5), (None, 60), (Some(u64::MAX), 3600)] {
        let mut frame = FrameBuilder::new();
        frame.prune(&topic("t"), seconds);
        b.say(a, frame);
        assert_eq!(b.core.mesh(&topic("t")), []);
        b.pass(secs(pause));
        assert_eq!(b.core.mesh(&topic("t")), [], "{seconds:?}");
        b.pass(secs(3));
        assert_eq!(b.core.mesh(&topic("t")), [a], "{seconds:?}");
    }
    // It grafts though we pruned it: it is told again.
    b.unsubscribe("t");
    let heard = b.heard(a);
    assert_eq!(heard.control.prune.last().unwrap().backoff, Some(10));
    assert!(heard.subscriptions.iter().any(|s| !s.subscribe));
    b.subscribe("t");
    let mut frame = FrameBuilder::new();
    frame.graft(&topic("t"));
    b.say(a, frame);
    assert_eq!(b.heard(a).control.prune.last().unwrap().backoff, Some(60));
    assert_eq!(b.core.mesh(&topic("t")), []);
}

#[test]
fn g6_prune_and_graft_of_topics_that_were_never_joined_have_no_effect() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    b.joins(a, "other", 0);
    let before = b.core.load(&b.seen);
    for n in 0..5000 {
        let mut frame = FrameBuilder::new();
        let name = if n == 0 {
            "other".into()
        } else {
            format!("invented {n}")
        };
        frame.prune(&topic(&name), Some(u64::MAX));
        frame.graft(&topic(&name));
        b.say(a, frame);
    }
    assert_eq!(b.core.load(&b.seen), before);
    assert_eq!(b.core.counters().prunes_out, 0);
    assert!(b.core.counters().control_dropped > 9000);
}

#[test]
fn who_does_not_subscribe_publishes_to_the_same_few() {
    let mut b = bench();
    let all: Vec<_> = (0..30).map(|_| b.subscriber("t")).collect();
    let mut chosen = BTreeSet::new();
    for n in 0..5_u8 {
        b.forget_sent();
        b.publish("t", vec![n], Mode::Try).unwrap();
        chosen.extend(
            all.iter()
                .filter(|p| !b.heard(**p).messages.is_empty())
                .copied(),
        );
        b.pass(secs(10));
    }
    assert_eq!(chosen.len(), 6);
    b.pass(secs(70));
    b.forget_sent();
    b.publish("t", "later", Mode::Try).unwrap();
    let later: BTreeSet<_> = all
        .iter()
        .filter(|p| !b.heard(**p).messages.is_empty())
        .copied()
        .collect();
    assert_eq!(later.len(), 6);
    assert_ne!(later, chosen, "others are chosen after a while");
}

// --- gossip

#[test]
fn neighbours_outside_the_mesh_are_told_what_there_is_and_can_ask_for_it_three_times() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..12).map(|_| b.subscriber("t")).collect();
    let message = signed(peer_id(100), 1, "t", b"x", GOOD);
    b.send(all[0], &message);
    b.forget_sent();
    b.pass(secs(1));
    let mesh = b.core.mesh(&topic("t"));
    let id = MessageId::signed(&peer_id(100).to_bytes(), 1);
    let mut told = Vec::new();
    for peer in &all {
        if b.heard(*peer).advertised().contains(&id) {
            assert!(!mesh.contains(peer));
            told.push(*peer);
        }
    }
    assert_eq!(told.len(), 6);
    for round in 0..5 {
        let mut frame = FrameBuilder::new();
        frame.iwant(&[id.clone(), MessageId::new(&b"unknown"[..])]);
        b.say(told[0], frame);
        assert_eq!(
            b.heard(told[0]).messages.len(),
            usize::from(round < 3),
            "{round}"
        );
    }
    // Advertised for three heartbeats, kept for five.
    b.pass(secs(3));
    b.forget_sent();
    b.pass(secs(1));
    assert!(all.iter().all(|p| b.heard(*p).advertised().is_empty()));
    let mut frame = FrameBuilder::new();
    frame.iwant(&[id]);
    b.say(told[1], frame);
    assert_eq!(b.heard(told[1]).messages.len(), 0);
    assert_eq!(b.core.load(&b.seen).history_bytes, 0);
}

#[test]
fn a_promise_that_is_not_kept_is_asked_of_another() {
    let mut b = bench();
    b.subscribe("t");
    let (liar, honest) = (b.subscriber("t"), b.subscriber("t"));
    let id = MessageId::signed(&peer_id(100).to_bytes(), 1);
    for peer in [liar, honest] {
        let mut frame = FrameBuilder::new();
        frame.ihave(&topic("t"), std::slice::from_ref(&id));
        b.say(peer, frame);
    }
    assert_eq!(b.heard(liar).control.iwant, std::slice::from_ref(&id));
    assert_eq!(b.heard(honest).control.iwant, [], "asked once");
    // Three seconds for who sent something new lately, a tenth of it for others.
    b.pass(millis(250));
    assert_eq!(b.heard(honest).control.iwant, []);
    b.pass(millis(150));
    assert_eq!(b.heard(honest).control.iwant, std::slice::from_ref(&id));
    b.send(honest, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.deliveries(), ["x"]);
    assert_eq!(b.core.load(&b.seen).promises, 0);
    // What is here is not asked for.
    let mut frame = FrameBuilder::new();
    frame.ihave(&topic("t"), &[id]);
    b.say(liar, frame);
    assert_eq!(b.heard(liar).control.iwant, []);
    assert_eq!(b.core.counters().promises_broken, 1);
}

#[test]
fn what_a_gone_peer_promised_is_asked_of_another_at_once() {
    let mut b = bench();
    b.subscribe("t");
    let (first, second) = (b.subscriber("t"), b.subscriber("t"));
    let id = MessageId::new(&b"some id"[..]);
    for peer in [first, second] {
        let mut frame = FrameBuilder::new();
        frame.ihave(&topic("t"), std::slice::from_ref(&id));
        b.say(peer, frame);
    }
    b.disconnect(first);
    assert_eq!(b.heard(second).control.iwant, [id]);
    b.disconnect(second);
    assert_eq!(b.core.load(&b.seen).promises, 0);
}

#[test]
fn g6_who_advertises_what_does_not_exist_is_not_asked_for_long() {
    let mut b = bench();
    b.subscribe("t");
    let liar = b.subscriber("t");
    for n in 0..10_000_u64 {
        if n % 50 == 0 {
            b.pass(millis(100));
        }
        let mut frame = FrameBuilder::new();
        frame.ihave(&topic("t"), &[MessageId::new(n.to_be_bytes().to_vec())]);
        b.say(liar, frame);
    }
    b.pass(secs(60));
    assert!(
        b.core.counters().iwant_out < 500,
        "{}",
        b.core.counters().iwant_out
    );
    assert_eq!(b.core.load(&b.seen).promises, 0);
}

#[test]
fn an_ihave_and_an_iwant_of_5000_ids_as_kubo_sends_them_are_taken_and_ours_are_split() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    let ids: Vec<_> = (0..5000)
        .map(|n| MessageId::signed(&peer_id(100).to_bytes(), n))
        .collect();
    // Kubo's in one RPC of 240 KB.
    let entries: Vec<u8> = ids
        .iter()
        .flat_map(|id| pb::bytes(2, id.as_bytes()))
        .collect();
    let ihave = [pb::bytes(1, b"t"), entries].concat();
    let rpc = pb::bytes(3, &pb::bytes(1, &ihave));
    assert!(rpc.len() > 200_000);
    b.receive(a, rpc.into());
    let asked = b.heard(a).control.iwant;
    assert_eq!(asked.len(), 5000);
    assert!(
        b.frames.iter().all(|(_, f)| f.bytes <= 14 * 1024 + 8),
        "rust-libp2p takes 16 KiB"
    );
    // All of them are asked of us.
    let mut frame = FrameBuilder::new();
    for n in 0..500 {
        frame.message(signed(peer_id(100), n, "t", b"x", GOOD));
    }
    b.say(a, frame);
    let c = b.subscriber("t");
    let iwant: Vec<u8> = ids
        .iter()
        .flat_map(|id| pb::bytes(1, id.as_bytes()))
        .collect();
    b.receive(c, pb::bytes(3, &pb::bytes(2, &iwant)).into());
    assert_eq!(b.heard(c).messages.len(), 500);
}

#[test]
fn a_neighbour_whose_stream_broke_is_told_what_it_missed() {
    let mut b = bench();
    b.subscribe("t");
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.handle(Input::StreamLost { peer: c });
    b.version = None;
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    b.pass(millis(1900));
    b.forget_sent();
    b.handle(Input::StreamOpened {
        peer: c,
        version: Version::V1_2,
    });
    let heard = b.heard(c);
    assert_eq!(heard.subscriptions.len(), 1);
    assert_eq!(
        heard.control.graft.len(),
        1,
        "it is in the mesh, and told so again"
    );
    b.pass(secs(1));
    let id = MessageId::signed(&peer_id(100).to_bytes(), 1);
    let later = b.heard(c);
    assert!(heard.data() == ["x"] || later.advertised().contains(&id));
}

// --- relay

fn bridge() -> Bench {
    let relay = RelayPolicy::Bridge { max_topics: 10 };
    Bench::new(Config::builder().relay(relay).build().unwrap())
}

#[test]
fn s0_31_a_relay_carries_what_it_does_not_read() {
    let mut b = bridge();
    let a = b.subscriber("t");
    assert_eq!(b.heard(a).subscriptions, [], "nobody else wants it");
    let c = b.subscriber("t");
    for peer in [a, c] {
        let said = b.heard(peer).subscriptions;
        assert!(
            said.iter().any(|s| s.subscribe && s.distance == 1),
            "{said:?}"
        );
    }
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.heard(c).data(), ["x"]);
    assert_eq!(b.deliveries().len(), 0);
    assert_eq!((b.verified, b.core.counters().relayed), (1, 1));
    // The last but one leaves: so do we.
    b.leaves(c, "t");
    assert!(b.heard(a).subscriptions.iter().any(|s| !s.subscribe));
    b.leaves(a, "t");
    assert_eq!(b.core.load(&b.seen).topics, 0);
}

#[test]
fn g8_two_relays_do_not_keep_each_other_alive() {
    let mut b = bridge();
    let (subscriber, other) = (b.subscriber("t"), b.connect(false));
    // The other relay hears it from us, and says so to others, not to us.
    assert_eq!(b.heard(other).subscriptions[0].distance, 1);
    // A third, behind it, has a longer way.
    b.joins(other, "t", 3);
    assert_eq!(b.heard(subscriber).subscriptions[0].distance, 4);
    b.disconnect(subscriber);
    let said = b.heard(other).subscriptions;
    assert!(!said.last().unwrap().subscribe, "{said:?}");
    // Beyond the horizon nothing is carried.
    let far = b.connect(false);
    b.joins(far, "u", 8);
    let near = b.connect(false);
    assert_eq!(
        b.heard(near)
            .subscriptions
            .iter()
            .filter(|s| s.topic.as_str() == "u")
            .count(),
        0
    );
}

#[test]
fn relays_are_bounded_in_topics_and_bytes_and_off_by_default() {
    let mut b = bench();
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!((b.heard(c).messages.len(), b.verified), (0, 0));

    let relay = RelayPolicy::Bridge { max_topics: 10 };
    let config = Config::builder()
        .relay(relay)
        .relay_bytes(10_000)
        .build()
        .unwrap();
    let mut b = Bench::new(config);
    let (a, c) = (b.connect(false), b.connect(false));
    for n in 0..20 {
        b.joins(a, &format!("t{n}"), 0);
        b.joins(c, &format!("t{n}"), 0);
    }
    let relayed = b
        .heard(c)
        .subscriptions
        .iter()
        .filter(|s| s.subscribe)
        .count();
    assert_eq!(relayed, 10);
    for n in 0..200 {
        b.send(a, &signed(peer_id(100), n, "t0", &[0; 1000], GOOD));
    }
    let carried = b.heard(c).messages.len();
    assert!((5..=20).contains(&carried), "{carried}");
    assert!(b.core.counters().shed_relay > 150);
    b.pass(secs(2));
    b.send(a, &signed(peer_id(100), 500, "t0", b"later", GOOD));
    assert_eq!(b.heard(c).data(), ["later"]);

    let listed = RelayPolicy::Listed(vec![gemba_gossip::Pattern::new("plant/*")]);
    let mut b = Bench::new(Config::builder().relay(listed).build().unwrap());
    let (a, c) = (b.connect(false), b.connect(false));
    for name in ["plant/1", "other"] {
        b.joins(a, name, 0);
        b.joins(c, name, 0);
    }
    let said: BTreeSet<_> = b
        .heard(c)
        .subscriptions
        .iter()
        .map(|s| s.topic.to_string())
        .collect();
    assert_eq!(said, BTreeSet::from(["plant/1".to_owned()]));
}

#[test]
fn a_relay_that_begins_to_read_says_so_and_delivers() {
    let mut b = bridge();
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.forget_sent();
    b.subscribe("t");
    assert_eq!(b.heard(a).subscriptions[0].distance, 0);
    b.send(a, &signed(peer_id(100), 1, "t", b"x", GOOD));
    assert_eq!(b.deliveries(), ["x"]);
    b.unsubscribe("t");
    assert_eq!(
        b.heard(c).subscriptions.last().unwrap().distance,
        1,
        "and carries on as a relay"
    );
}

// --- health

#[test]
fn s4_17_isolation_is_told_and_peers_are_asked_for() {
    let mut b = bench();
    b.subscribe("t");
    b.pass(secs(2));
    assert_eq!(b.events, []);
    b.pass(secs(3));
    let t = topic("t");
    assert_eq!(
        b.events,
        [
            Event::Isolated { topic: t.clone() },
            Event::WantPeers { topic: t.clone() }
        ]
    );
    b.pass(secs(60));
    assert!(b.events.contains(&Event::Alarm { topic: t.clone() }));
    assert!(
        b.events
            .iter()
            .filter(|e| matches!(e, Event::WantPeers { .. }))
            .count()
            >= 2
    );
    b.subscriber("t");
    b.pass(secs(2));
    assert_eq!(
        b.events.last(),
        Some(&Event::Recovered { topic: t.clone() })
    );
    let health = b.core.health(&t).unwrap();
    assert_eq!(
        (health.trouble, health.neighbours, health.reachable),
        (None, 1, 1)
    );
}

#[test]
fn s4_17_neighbours_that_take_nothing_are_found_repaired_and_at_last_dialled_anew() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    b.stuck.insert(a);
    b.publish("t", "x", Mode::Try).unwrap();
    b.pass(secs(15));
    let t = topic("t");
    let cause = DegradedCause::Stalled;
    assert!(b.events.contains(&Event::Degraded {
        topic: t.clone(),
        cause
    }));
    assert_eq!(
        b.core.health(&t).unwrap().trouble,
        Some(Trouble::Degraded(cause))
    );
    assert_eq!(b.reset, [a]);
    b.pass(secs(15));
    assert_eq!(b.closed, [(a, CloseCause::Stalled)], "within 30 s");
    b.disconnect(a);
    b.stuck.clear();
    b.reconnect(a, true);
    b.joins(a, "t", 0);
    b.pass(secs(2));
    assert_eq!(b.events.last(), Some(&Event::Recovered { topic: t }));
}

#[test]
fn s4_17_silence_alone_is_no_fault() {
    let mut b = bench();
    b.subscribe("t");
    b.subscriber("t");
    b.pass(secs(3600 * 24));
    let told: Vec<_> = b
        .events
        .iter()
        .filter(|e| !matches!(e, Event::Joined { .. }))
        .collect();
    assert_eq!(told, Vec::<&Event>::new());
    assert_eq!((b.reset.len(), b.closed.len()), (0, 0));
}

#[test]
fn a_mesh_that_everybody_refuses_is_told_of() {
    let mut b = bench();
    b.subscribe("t");
    let all: Vec<_> = (0..10).map(|_| b.subscriber("t")).collect();
    for _ in 0..30 {
        for peer in &all {
            let mut frame = FrameBuilder::new();
            frame.prune(&topic("t"), Some(60));
            b.say(*peer, frame);
        }
        b.pass(secs(1));
    }
    let cause = DegradedCause::NoMesh;
    assert!(b.events.contains(&Event::Degraded {
        topic: topic("t"),
        cause
    }));
    assert!(b.events.contains(&Event::WantPeers { topic: topic("t") }));
    b.pass(secs(70));
    assert_eq!(
        b.events.last(),
        Some(&Event::Recovered { topic: topic("t") })
    );
}

#[test]
fn overload_is_told_of() {
    let mut b = bench();
    b.subscribe("t");
    let a = b.subscriber("t");
    b.slow = true;
    for n in 0..10 {
        for i in 0..100 {
            b.send(a, &signed(peer_id(100), n * 100 + i, "t", b"x", GOOD));
        }
        b.pass(secs(1));
        b.work();
    }
    let cause = DegradedCause::Overloaded;
    assert!(b.events.contains(&Event::Degraded {
        topic: topic("t"),
        cause
    }));
    assert_eq!(b.deliveries().len(), 0);
    assert_eq!(b.core.health(&topic("t")).unwrap().stale, 1000);
}

// --- bounds

#[test]
fn g12_a_million_topics_of_a_peer_are_not_remembered() {
    let mut b = bench();
    b.subscribe("mine");
    let a = b.connect(false);
    for batch in 0..250 {
        let mut rpc = Vec::new();
        for n in 0..4000 {
            let name = format!("topic {batch} {n}");
            rpc.extend(pb::bytes(
                1,
                &[pb::number(1, 1), pb::bytes(2, name.as_bytes())].concat(),
            ));
        }
        b.receive(a, rpc.into());
    }
    assert_eq!(b.core.load(&b.seen).topics, 257);
    assert_eq!(b.core.counters().subscriptions_dropped, 1_000_000 - 256);
    // What is of interest here is always heard.
    b.joins(a, "mine", 0);
    assert_eq!(b.core.subscribers(&topic("mine")), [a]);
    b.disconnect(a);
    assert_eq!(b.core.load(&b.seen).topics, 1);
}

#[test]
fn g3_a_flood_of_unique_messages_leaves_room_for_the_others() {
    let config = Config::builder()
        .verify_messages(256)
        .seen_entries(1 << 12)
        .build()
        .unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let (flood, honest) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..20_000_u64 {
        b.send(flood, &signed(flood, n, "t", b"junk", GOOD));
        if n % 1000 == 0 {
            b.send(honest, &signed(honest, n, "t", b"real", GOOD));
        }
        if n % 100 == 99 {
            b.work();
            b.pass(millis(20));
        }
    }
    b.work();
    b.work();
    let real = b.deliveries().iter().filter(|d| **d == "real").count();
    assert_eq!(real, 20, "each turn is shared out by peer");
    assert!(b.core.counters().shed + b.seen.counters().refused_pending > 1000);
    assert!(b.seen.len() <= 1 << 12);
}

#[test]
fn a_flood_that_shuts_out_nobody_else_of_bytes() {
    let config = Config::builder().verify_bytes(1 << 20).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let (flood, honest) = (b.subscriber("t"), b.subscriber("t"));
    b.slow = true;
    for n in 0..100 {
        b.send(flood, &signed(flood, n, "t", &[0; 100_000], GOOD));
        assert!(b.core.load(&b.seen).pipeline_bytes <= 3 << 20);
    }
    b.send(honest, &signed(honest, 1, "t", &[1; 1000], GOOD));
    assert!(
        b.jobs
            .iter()
            .any(|(_, job)| job.message.data()[..] == [1; 1000])
    );
}

#[test]
fn s4_36_pressure_on_the_cache_is_told_of() {
    let config = Config::builder().seen_entries(1 << 10).build().unwrap();
    let mut b = Bench::new(config);
    b.subscribe("t");
    let all: Vec<_> = (0..4).map(|_| b.subscriber("t")).collect();
    for n in 0..3000_u64 {
        let peer = all[(n % 4) as usize];
        b.send(peer, &signed(peer, n, "t", b"x", GOOD));
        b.pass(millis(20));
    }
    let pressure: Vec<_> = b
        .events
        .iter()
        .filter_map(|e| match e {
            Event::SeenPressure(p) => Some(*p),
            _ => None,
        })
        .collect();
    assert!(!pressure.is_empty());
    assert!(
        pressure
            .iter()
            .all(|p| p.effective_ttl >= secs(19) && p.effective_ttl < secs(21)),
        "{pressure:?}"
    );
    assert_eq!(b.deliveries().len(), 3000);
    assert!(b.seen.len() <= 1 << 10);
}

#[test]
fn topics_and_ttls_are_bounded() {
    let config = Config::builder().topics(3).build().unwrap();
    let mut b = Bench::new(config);
    for name in ["a", "b", "c"] {
        b.subscribe(name);
    }
    let t = topic("d");
    assert_eq!(
        b.core.subscribe(&mut b.seen, &t, b.now),
        Err(SubscribeError::TooManyTopics(3))
    );
    b.unsubscribe("a");
    assert_eq!(b.core.subscribe(&mut b.seen, &t, b.now), Ok(()));
    let mut b = bench();
    for n in 1..64 {
        b.subscribe_with(&format!("t{n}"), ttl(n));
    }
    let refused = b
        .core
        .subscribe_with(&mut b.seen, &topic("x"), ttl(99), b.now);
    assert_eq!(refused, Err(SubscribeError::TooManyTtls(64)));
}

#[test]
fn a_core_without_peers_and_topics_sleeps() {
    let mut b = bench();
    assert_eq!(b.core.deadline(), None);
    b.subscribe("t");
    let a = b.subscriber("t");
    b.send(a, &signed(a, 1, "t", b"x", GOOD));
    b.disconnect(a);
    b.unsubscribe("t");
    b.pass(secs(200));
    assert_eq!(b.core.deadline(), None);
    let load = b.core.load(&b.seen);
    assert_eq!(
        (load.topics, load.history_bytes, load.pipeline_messages),
        (0, 0, 0)
    );
}
