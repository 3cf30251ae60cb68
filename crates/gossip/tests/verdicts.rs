//! What the application says of messages: in any order, late, twice, never (GO-24); and what is kept of authors over a restart (GO-9).
#![allow(clippy::unwrap_used)]

mod common;

use common::{Bench, GOOD, millis, peer_id, secs, signed};
use gemba_gossip::{AuthorNumber, Config, Input, Ticket, TopicOptions, Verdict};
use gemba_testkit::Rng;

fn judged() -> (Bench, libp2p_identity::PeerId, libp2p_identity::PeerId) {
    let mut b = Bench::new(Config::default());
    b.subscribe_with("t", TopicOptions::default().with_validate(true));
    let (a, c) = (b.subscriber("t"), b.subscriber("t"));
    b.forget_sent();
    (b, a, c)
}

fn say(b: &mut Bench, ticket: Ticket, verdict: Verdict) {
    b.handle(Input::Validated { ticket, verdict });
}

fn send(b: &mut Bench, from: libp2p_identity::PeerId, author: u64, n: u8) {
    b.send(from, &signed(peer_id(author), n.into(), "t", &[n], GOOD));
}

fn tickets(b: &mut Bench) -> Vec<Ticket> {
    b.validations.drain(..).map(|(ticket, _)| ticket).collect()
}

fn numbers(b: &mut Bench) -> Vec<u8> {
    b.deliveries().iter().map(|data| data[0]).collect()
}

#[test]
fn go_24_verdicts_in_any_order_deliver_and_send_on_in_the_authors_order() {
    let mut rng = Rng::new(7);
    for _ in 0..50 {
        let (mut b, a, c) = judged();
        for n in 1..=20 {
            send(&mut b, a, 100, n);
        }
        let mut asked: Vec<_> = tickets(&mut b).into_iter().zip(1..=20_u8).collect();
        while !asked.is_empty() {
            let (ticket, n) = asked.swap_remove(rng.index(asked.len()));
            let verdict = match n % 5 {
                0 => Verdict::Ignore,
                _ => Verdict::Accept,
            };
            say(&mut b, ticket, verdict);
        }
        let wanted: Vec<u8> = (1..=20).filter(|n| n % 5 != 0).collect();
        assert_eq!(numbers(&mut b), wanted);
        let sent: Vec<u8> = b.heard(c).messages.iter().map(|m| m.data()[0]).collect();
        assert_eq!(sent, wanted);
        assert_eq!(b.core.load(&b.seen).pipeline_messages, 0);
    }
}

#[test]
fn go_24_a_verdict_that_does_not_come_holds_up_its_author_for_a_while_and_others_not_at_all() {
    let (mut b, a, _) = judged();
    for n in 1..=3 {
        send(&mut b, a, 100, n);
    }
    send(&mut b, a, 200, 9);
    let asked = tickets(&mut b);
    for ticket in &asked[1..] {
        say(&mut b, *ticket, Verdict::Accept);
    }
    assert_eq!(numbers(&mut b), [9], "another author's");
    b.pass(millis(700));
    assert!(numbers(&mut b).is_empty());
    // A quarter of their second is left: they go, and what they overtake is given up.
    b.pass(millis(120));
    assert_eq!(numbers(&mut b), [2, 3]);
    say(&mut b, asked[0], Verdict::Accept);
    b.pass(secs(2));
    assert!(numbers(&mut b).is_empty());
    let counters = b.core.counters();
    assert_eq!((counters.validated_late, counters.delivered), (1, 3));
}

#[test]
fn go_24_a_late_or_a_second_verdict_delivers_nothing_and_reorders_nothing() {
    let (mut b, a, c) = judged();
    let first = signed(peer_id(100), 1, "t", &[1], GOOD);
    b.send(a, &first);
    let late = tickets(&mut b)[0];
    b.pass(millis(1100));
    for n in 2..=3 {
        send(&mut b, a, 100, n);
        let ticket = tickets(&mut b)[0];
        say(&mut b, ticket, Verdict::Accept);
        // The first word counts.
        say(&mut b, ticket, Verdict::Accept);
        say(&mut b, ticket, Verdict::Reject);
    }
    say(&mut b, late, Verdict::Accept);
    // Its copies do not bring it back either.
    b.send(c, &first);
    assert!(tickets(&mut b).is_empty());
    b.pass(secs(3));
    assert_eq!(numbers(&mut b), [2, 3]);
    assert_eq!(b.core.why(&a).unwrap().strikes, 0);
    assert_eq!(b.heard(c).messages.len(), 2);
}

/// Accepted twice while it waits for one before it: the second word, whatever it is, changes nothing.
#[test]
fn go_24_an_accepted_message_that_waits_is_not_rejected_any_more() {
    let (mut b, a, _) = judged();
    send(&mut b, a, 100, 1);
    send(&mut b, a, 100, 2);
    let asked = tickets(&mut b);
    say(&mut b, asked[1], Verdict::Accept);
    say(&mut b, asked[1], Verdict::Reject);
    say(&mut b, asked[0], Verdict::Reject);
    assert_eq!(numbers(&mut b), [2]);
    assert_eq!(b.core.why(&a).unwrap().strikes, 1);
}

/// A node that is started again does not deliver what its neighbours still echo, and takes what is new.
#[test]
fn go_9_what_is_kept_of_authors_forbids_echoes_after_a_restart() {
    let mut kept: Vec<AuthorNumber> = Vec::new();
    let echo: Vec<_> = (1..=50)
        .map(|n| signed(peer_id(100), 1000 + n, "t", &[n as u8], GOOD))
        .collect();
    for start in 0..3_u8 {
        let mut b = Bench::new(Config::default());
        b.core.handle(
            &mut b.seen,
            Input::AuthorsLoaded {
                stored: kept.clone(),
            },
            b.now,
        );
        b.subscribe("t");
        let a = b.subscriber("t");
        for message in &echo {
            b.send(a, message);
        }
        let new = signed(
            peer_id(100),
            2000 + u64::from(start),
            "t",
            &[200 + start],
            GOOD,
        );
        b.send(a, &new);
        let mut wanted = vec![200 + start];
        if start == 0 {
            wanted = (1..=50).chain(wanted).collect();
        }
        assert_eq!(numbers(&mut b), wanted);
        assert_eq!(b.verified, wanted.len() as u64, "and costs no signature");
        let told = b.core.take_grown();
        let author = peer_id(100).to_bytes().into();
        let highest = 2000 + u64::from(start);
        assert_eq!(told, [AuthorNumber { author, highest }]);
        kept = told;
    }
}
