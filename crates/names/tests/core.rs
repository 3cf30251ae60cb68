//! The book, device by device (specs/names.md §3–§5).
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    key, name, wall,
    world::{Device, peer, signed, version},
};
use gemba_names::{
    Alarm, Command, Config, Core, Done, Event, Input, MAX_SEQUENCE, Meta, Output, Publish, Record,
    Refused, ResolveError, RowError, Source, Unsigned, Verdict, Version,
};
use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

fn changed(events: &[Event]) -> Vec<u64> {
    let told = events.iter().filter_map(|event| match event {
        Event::Changed { now, .. } => Some(now.version.sequence),
        _ => None,
    });
    told.collect()
}

fn announced(outputs: &[Output]) -> Vec<u64> {
    let records = outputs.iter().filter_map(|output| match output {
        Output::Announce(record) => Some(record.sequence()),
        _ => None,
    });
    records.collect()
}

fn pushed(outputs: &[Output]) -> Vec<u64> {
    let messages = outputs.iter().filter_map(|output| match output {
        Output::Send { message, .. } => Some(&message.records),
        _ => None,
    });
    messages
        .flatten()
        .map(|(name, bytes)| Record::open(*name, bytes).unwrap().sequence())
        .collect()
}

/// S0.27: no network at all, and the publication is durable; the numbers are Kubo's: 0 first, one more when the value changes.
#[test]
fn s0_27_na_16_publishing_needs_no_peer_and_the_number_rises_with_the_value() {
    let mut device = Device::publisher();
    assert_eq!(device.publish("/ipfs/bafkqaaa"), Ok(0));
    assert_eq!(device.publish("/ipfs/bafkqaaa/b"), Ok(1));
    device.pass(HOUR);
    // The same once more only lives longer.
    assert_eq!(device.publish("/ipfs/bafkqaaa/b"), Ok(1));
    assert_eq!(
        device.core.record(&name(1)).unwrap().validity(),
        wall("2027-06-01T01:00:00Z")
    );
    device.restart();
    assert_eq!(
        (device.sequence(), device.value().as_deref()),
        (Some(1), Some("/ipfs/bafkqaaa/b"))
    );
    assert_eq!(device.publish("/ipfs/bafkqaaa/c"), Ok(2));
    let mut asked = Publish::new(name(1), "/ipfs/bafkqaaa/d");
    asked.sequence = Some(2);
    let refused = device.command(Command::Publish(asked.clone())).unwrap_err();
    assert!(
        matches!(refused, Refused::SequenceNotAbove { current: 2, .. }),
        "{refused}"
    );
    asked.sequence = Some(700);
    assert_eq!(
        device.command(Command::Publish(asked)),
        Ok(Some(Done::Published { sequence: 700 }))
    );
    assert_eq!(device.publish("/ipfs/bafkqaaa/e"), Ok(701));
    // Other metadata is another version too.
    let mut with_meta = Publish::new(name(1), "/ipfs/bafkqaaa/e");
    with_meta
        .metadata
        .insert("_v".to_owned(), Meta::Text("1.2".to_owned()));
    assert_eq!(
        device.command(Command::Publish(with_meta)),
        Ok(Some(Done::Published { sequence: 702 }))
    );
    assert_eq!(
        device.core.inspect(&name(1), device.now).unwrap().metadata["_v"],
        Meta::Text("1.2".to_owned())
    );
}

#[test]
fn what_a_name_cannot_point_to_and_whose_key_is_not_here_is_refused() {
    let mut device = Device::publisher();
    for value in ["", "bafkqaaa", "/ipfs/", "/other/x", "http://x"] {
        let refused = device.publish(value).unwrap_err();
        assert!(matches!(refused, Refused::Value(_)), "{value}: {refused}");
    }
    let cid: gemba_names::Cid = "bafkreifzjut3te7nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e"
        .parse()
        .unwrap();
    assert!(
        device
            .command(Command::Publish(Publish::new(name(1), cid.to_bytes())))
            .is_ok()
    );
    let foreign = Command::Publish(Publish::new(name(2), "/ipfs/bafkqaaa"));
    assert_eq!(
        device.command(foreign).unwrap_err(),
        Refused::NotOwn(name(2))
    );
    assert_eq!(
        device.command(Command::Unfollow(name(3))).unwrap_err(),
        Refused::Unknown(name(3))
    );
}

/// S0.28: a thousand updates offline; after a restart the last resolves; to the peer that comes then, one record travels.
#[test]
fn s0_28_na_17_of_a_thousand_offline_updates_only_the_last_travels() {
    let mut device = Device::publisher();
    for n in 0..1_000u64 {
        assert_eq!(device.publish(&format!("/ipfs/bafkqaaa/{n}")), Ok(n));
    }
    assert_eq!(pushed(&device.drain()), []);
    device.restart();
    assert_eq!(device.value().as_deref(), Some("/ipfs/bafkqaaa/999"));
    device.drain();
    let mut other = Device::follower();
    connect(&mut device, 1, &mut other, 2);
    let sent = exchange(&mut device, 1, &mut other, 2);
    assert_eq!(sent, [999]);
    assert_eq!(other.sequence(), Some(999));
    // On a topic too: the neighbour that joins hears of one.
    device.feed(Input::TopicPeer {
        name: name(1),
        peer: peer(9),
        joined: true,
    });
    device.pass(HOUR);
    let said = announced(&device.drain());
    assert!(
        !said.is_empty() && said.iter().all(|n| *n == 999),
        "{said:?}"
    );
}

/// Pipelined publications share writes, and each is acknowledged only when it, or a later one, is durable.
#[test]
fn s0_28_publications_that_wait_share_a_write() {
    let mut device = Device::publisher();
    device.automatic = false;
    let before = device.persisted;
    for id in 0..100u64 {
        let command = Command::Publish(Publish::new(name(1), format!("/ipfs/bafkqaaa/{id}")));
        device.feed(Input::Command {
            id: 1_000 + id,
            command,
        });
    }
    while device.step() {}
    assert!(
        device.persisted - before <= 3,
        "{}",
        device.persisted - before
    );
    let done: Vec<u64> = device
        .drain()
        .iter()
        .filter_map(|output| match output {
            Output::Done {
                result: Ok(Done::Published { sequence }),
                ..
            } => Some(*sequence),
            _ => None,
        })
        .collect();
    assert_eq!(done, (0..100).collect::<Vec<_>>());
    device.restart();
    assert_eq!(device.sequence(), Some(99));
}

fn connect(a: &mut Device, id_a: u8, b: &mut Device, id_b: u8) {
    a.feed(Input::Connected(peer(id_b)));
    b.feed(Input::Connected(peer(id_a)));
}

/// Carries messages both ways until nobody says anything; returns the sequences of the records that travelled.
fn exchange(a: &mut Device, id_a: u8, b: &mut Device, id_b: u8) -> Vec<u64> {
    let mut travelled = Vec::new();
    for _ in 0..20 {
        let (from_a, from_b) = (a.drain(), b.drain());
        travelled.extend(pushed(&from_a));
        travelled.extend(pushed(&from_b));
        let mut any = false;
        for (outputs, to, from) in [(from_a, &mut *b, id_a), (from_b, &mut *a, id_b)] {
            for output in outputs {
                if let Output::Send { message, .. } = output {
                    any = true;
                    // As it is read from the wire.
                    let message = gemba_names::wire::Message::decode(&message.encode()).unwrap();
                    to.feed(Input::Message {
                        peer: peer(from),
                        message,
                    });
                }
            }
        }
        if !any {
            break;
        }
    }
    travelled
}

/// S0.23: told by push, as soon as it is durable; nothing is asked in between.
#[test]
fn s0_23_na_20_a_follower_is_told_by_push_and_polls_nobody() {
    let (mut a, mut b) = (Device::publisher(), Device::follower());
    connect(&mut a, 1, &mut b, 2);
    exchange(&mut a, 1, &mut b, 2);
    for n in 0..3 {
        a.publish(&format!("/ipfs/bafkqaaa/{n}")).unwrap();
        let outputs = a.drain();
        assert_eq!(pushed(&outputs), [n]);
        for output in outputs {
            if let Output::Send { message, .. } = output {
                b.feed(Input::Message {
                    peer: peer(1),
                    message,
                });
            }
        }
        let outputs = b.drain();
        let quiet = outputs
            .iter()
            .all(|output| matches!(output, Output::Event(_)));
        assert!(quiet, "{outputs:?}");
        let events: Vec<Event> = outputs
            .into_iter()
            .filter_map(|o| match o {
                Output::Event(e) => Some(e),
                _ => None,
            })
            .collect();
        assert_eq!(changed(&events), [n]);
        a.pass(Duration::from_secs(1));
        b.pass(Duration::from_secs(1));
    }
    assert_eq!(b.core.changes_after(0, b.now).len(), 1);
    let change = b.core.changes_after(0, b.now).remove(0);
    assert_eq!((change.now.version.sequence, change.completed), (2, false));
    assert_eq!(b.core.revision(), change.revision);
    assert!(b.core.changes_after(change.revision, b.now).is_empty());
}

/// A burst while connected is spread at first, then at the pace of the budget, and ends with the newest.
#[test]
fn na_17_a_burst_is_paced_and_the_newest_always_travels() {
    let (mut a, mut b) = (Device::publisher(), Device::follower());
    connect(&mut a, 1, &mut b, 2);
    exchange(&mut a, 1, &mut b, 2);
    for n in 0..500 {
        a.publish(&format!("/ipfs/bafkqaaa/{n}")).unwrap();
        a.pass(Duration::from_millis(1));
    }
    a.pass(Duration::from_secs(1));
    let sent = pushed(&a.drain());
    assert!(sent.len() <= 8, "{sent:?}");
    assert_eq!(sent.last(), Some(&499));
}

/// NA-10: while the row is not durable, nobody is told: no event, no reader, no neighbour.
#[test]
fn na_10_n1_nobody_is_told_before_it_is_durable() {
    let mut device = Device::follower();
    device.record(&version(5), Source::Peer(peer(2)));
    device.drain();
    device.automatic = false;
    device.feed(Input::TopicPeer {
        name: name(1),
        peer: peer(4),
        joined: true,
    });
    device.drain();
    assert_eq!(device.on_topic(&version(6), peer(3)), None);
    let verify = device.waiting.pop_front().unwrap();
    device.answer(verify);
    assert!(matches!(
        device.waiting.front(),
        Some(Output::Persist { .. })
    ));
    assert_eq!(device.drain(), []);
    assert_eq!(device.sequence(), Some(5));
    device.step();
    assert_eq!(device.verdict(), Some(Verdict::Accept));
    assert_eq!(changed(&device.events()), [6]);
    assert_eq!(device.sequence(), Some(6));
}

/// S0.21: what is old never comes back, by no route, and costs no signature check.
#[test]
fn s0_21_n1_an_old_record_is_refused_by_every_route() {
    let mut device = Device::follower();
    device.record(&version(9), Source::Peer(peer(2)));
    device.drain();
    let verified = device.verified;
    for source in [
        Source::Peer(peer(2)),
        Source::Topic(peer(3)),
        Source::Fetch(peer(4)),
        Source::Dht(peer(5)),
    ] {
        for sequence in 0..9 {
            device.record(&version(sequence), source);
            device.pass(Duration::from_secs(1));
        }
    }
    assert_eq!(device.on_topic(&version(3), peer(3)), Some(Verdict::Ignore));
    let refused = device
        .command(Command::Put {
            name: name(1),
            bytes: version(8),
        })
        .unwrap_err();
    assert!(
        matches!(
            refused,
            Refused::Older {
                current: 9,
                offered: 8,
                ..
            }
        ),
        "{refused}"
    );
    assert_eq!(changed(&device.events()), []);
    assert_eq!((device.sequence(), device.verified), (Some(9), verified));
    assert_eq!(device.core.counters().older, 37);
}

/// A resolved name that gave way leaves its number behind: an older record is not taken when it is asked for again.
#[test]
fn s0_21_na_12_the_number_outlives_the_record() {
    let mut device = Device::with(Config {
        max_names: 2,
        ..Config::default()
    });
    device.own(2);
    let id = device.resolve(name(1));
    device.record(&version(9), Source::Peer(peer(2)));
    assert_eq!(device.answer_of(id).unwrap().unwrap().version.sequence, 9);
    // Another name takes the place.
    device.resolve(name(3));
    assert_eq!(device.sequence(), None);
    assert_eq!(device.core.counters().evicted, 1);
    device.pass(Duration::from_secs(60));
    for _ in 0..2 {
        let id = device.resolve(name(1));
        device.record(&version(8), Source::Peer(peer(2)));
        device.pass(Duration::from_secs(60));
        assert!(matches!(
            device.answer_of(id).unwrap(),
            Err(ResolveError::NotFound { .. })
        ));
        device.restart();
    }
    let id = device.resolve(name(1));
    device.record(&version(9), Source::Peer(peer(2)));
    assert_eq!(device.answer_of(id).unwrap().unwrap().version.sequence, 9);
    // Own and followed names do not give way.
    device.command(Command::Follow(name(1))).unwrap();
    let refused = device.command(Command::Follow(name(4))).unwrap_err();
    assert!(
        matches!(refused, Refused::Full { limit: 2, .. }),
        "{refused}"
    );
}

/// N2: both records in the alarm, the same one taken whatever the order, once, and the evidence outlives a restart.
#[test]
fn n2_na_9_two_values_under_one_number_are_an_alarm_with_both() {
    let (x, y) = (
        signed(5, "/ipfs/bafkqaaa/x", "2027-06-01T00:00:00Z"),
        signed(5, "/ipfs/bafkqaaa/y", "2027-06-01T00:00:00Z"),
    );
    let mut values = Vec::new();
    for (first, second) in [(&x, &y), (&y, &x)] {
        let mut device = Device::follower();
        device.record(first, Source::Peer(peer(2)));
        device.record(second, Source::Topic(peer(3)));
        let alarms: Vec<Event> = device
            .events()
            .into_iter()
            .filter(|event| matches!(event, Event::Alarm(_)))
            .collect();
        let [Event::Alarm(Alarm::Equivocation { taken, other })] = alarms.as_slice() else {
            panic!("{alarms:?}");
        };
        assert!(taken.contradicts(other) && taken.order(other).is_gt());
        for again in [first, second, first] {
            device.record(again, Source::Peer(peer(4)));
        }
        assert!(
            device
                .events()
                .iter()
                .all(|event| !matches!(event, Event::Alarm(_)))
        );
        assert_eq!(device.core.counters().equivocations, 1);
        device.restart();
        let inspected = device.core.inspect(&name(1), device.now).unwrap();
        assert!(inspected.contradicted_by.unwrap().is_same_version(other));
        values.push(device.value());
        // A newer version ends it.
        device.record(&version(6), Source::Peer(peer(2)));
        assert_eq!(
            device
                .core
                .inspect(&name(1), device.now)
                .unwrap()
                .contradicted_by,
            None
        );
    }
    assert_eq!(values[0], values[1]);
}

/// N2: the holder of the key learns of the other one even when the numbers never meet.
#[test]
fn n2_na_9_a_foreign_publisher_under_an_own_name_is_an_alarm() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    device.drain();
    device.record(&version(7), Source::Peer(peer(2)));
    let events = device.events();
    assert!(
        events.iter().any(|event| matches!(
            event,
            Event::Alarm(Alarm::ForeignPublisher { known: Some(0), .. })
        )),
        "{events:?}"
    );
    // It is signed by the key all the same, so it counts, and one's own next is above it.
    assert_eq!(device.publish("/ipfs/bafkqaaa/mine"), Ok(8));
}

/// N4: near the end of the numbers it is an alarm, at the end it is refused, with what to do.
#[test]
fn n4_na_5_the_end_of_the_numbers_is_refused_and_announced() {
    let mut device = Device::publisher();
    let mut near = Publish::new(name(1), "/ipfs/bafkqaaa");
    near.sequence = Some(MAX_SEQUENCE - (1 << 16));
    device.command(Command::Publish(near)).unwrap();
    assert!(
        device
            .events()
            .iter()
            .any(|event| matches!(event, Event::Alarm(Alarm::SequenceNearEnd { .. })))
    );
    let refused = device.publish("/ipfs/bafkqaaa/b").unwrap_err();
    assert!(matches!(refused, Refused::SequenceEnd { .. }), "{refused}");
    assert!(refused.to_string().contains("make a new key"));
    // A stolen key at the very end: it is taken, since it is signed, and nothing overflows.
    device.record(&version(MAX_SEQUENCE), Source::Peer(peer(2)));
    assert_eq!(device.sequence(), Some(MAX_SEQUENCE));
    assert!(device.publish("/ipfs/bafkqaaa/c").is_err());
}

/// N8: a book that is older than what was published does not publish: found by the marks, or said by the owner.
#[test]
fn n8_na_18_after_a_restored_backup_publishing_waits_for_a_peer() {
    let mut device = Device::publisher();
    for n in 0..3 {
        device.publish(&format!("/ipfs/bafkqaaa/{n}")).unwrap();
    }
    let backup = device.disk.clone();
    for n in 3..10 {
        device.publish(&format!("/ipfs/bafkqaaa/{n}")).unwrap();
    }
    let newest = device.core.record(&name(1)).unwrap().bytes().to_vec();
    let marks = device.marks.clone();
    assert_eq!(marks[&name(1)], 9);
    for (marks, restored) in [
        (marks.clone(), false),
        (BTreeMap::new(), true),
        (marks, true),
    ] {
        let by_mark = !marks.is_empty();
        device.disk = backup.clone();
        device.marks = marks.clone();
        device.restart_with(marks, restored);
        let refused = device.publish("/ipfs/bafkqaaa/new").unwrap_err();
        let Refused::RestoredBackup {
            known: 2,
            published,
            ..
        } = refused
        else {
            panic!("{refused}");
        };
        assert_eq!(published, if by_mark { 9 } else { 2 });
        assert!(refused.to_string().contains("--accept-fork"));
        // It stays so over another restart, and what is held is told.
        device.restart();
        assert!(device.core.inspect(&name(1), device.now).unwrap().unsure);
        assert_eq!(device.sequence(), Some(2));
        assert!(device.publish("/ipfs/bafkqaaa/new").is_err());
        // A peer that knows the name says what it has: no alarm, and the next number is above it.
        device.drain();
        device.record(&newest, Source::Peer(peer(2)));
        let alarms = device
            .events()
            .into_iter()
            .filter(|event| matches!(event, Event::Alarm(_)))
            .count();
        assert_eq!((device.sequence(), alarms), (Some(9), 0));
        assert_eq!(device.publish("/ipfs/bafkqaaa/new"), Ok(10));
    }
    // A peer that has nothing newer, or nothing at all, is an answer as well.
    for heard in [true, false] {
        device.disk = backup.clone();
        device.restart_with(BTreeMap::new(), true);
        if heard {
            let held = device.core.record(&name(1)).unwrap().bytes().to_vec();
            device.record(&held, Source::Fetch(peer(2)));
        } else {
            device.feed(Input::NoRecord {
                name: name(1),
                source: Source::Fetch(peer(2)),
            });
        }
        assert_eq!(device.publish("/ipfs/bafkqaaa/new"), Ok(3));
    }
    // Nobody is left: the operator decides, and the next number leaps over what may have been published.
    device.disk = backup;
    device.marks.clear();
    device.restart_with(BTreeMap::new(), true);
    device.command(Command::AcceptFork(name(1))).unwrap();
    device.restart();
    let sequence = device.publish("/ipfs/bafkqaaa/new").unwrap();
    assert!(sequence > 60_000, "{sequence}");
}

/// A row that rotted is reported, and the name behind it is unsure rather than begun anew at 0.
#[test]
fn na_18_a_damaged_row_is_reported_and_its_name_unsure() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    let key = name(1).to_bytes();
    let good = device.disk[&key].clone();
    for at in 0..good.len() {
        let mut rotten = good.clone();
        rotten[at] ^= 0x40;
        let rows = [(key.clone(), rotten)];
        let loaded = Core::load(
            Config::default(),
            rows,
            device.marks.clone(),
            false,
            device.now,
        );
        match loaded {
            Err(error) => assert!(
                at == 0 && matches!(error, RowError::Newer { .. }),
                "{at}: {error}"
            ),
            Ok((core, damaged)) if damaged.is_empty() => {
                // A bit that no signature covers: what it says is the same.
                assert!(
                    core.record(&name(1))
                        .is_none_or(|record| record.sequence() == 0),
                    "{at}"
                );
            }
            Ok((mut core, damaged)) => {
                assert_eq!(damaged[0].key, key);
                let own = Input::Command {
                    id: 1,
                    command: Command::Own(name(1)),
                };
                core.handle(own, device.now).unwrap();
                let publish = Command::Publish(Publish::new(name(1), "/ipfs/bafkqaaa/b"));
                let refused = core
                    .handle(
                        Input::Command {
                            id: 2,
                            command: publish,
                        },
                        device.now,
                    )
                    .unwrap_err();
                assert!(
                    matches!(refused, Refused::RestoredBackup { .. }),
                    "{at}: {refused}"
                );
            }
        }
    }
    for version in [2u8, 200] {
        let mut newer = good.clone();
        newer[0] = version;
        let error = Core::load(
            Config::default(),
            [(key.clone(), newer)],
            [],
            false,
            device.now,
        )
        .unwrap_err();
        assert_eq!(error, RowError::Newer { found: version });
        assert!(error.to_string().contains("run the newer gemba"));
    }
}

/// N7, in one step: the write fails, the command is refused, what was told stays, nothing more is accepted.
#[test]
fn n7_na_13_after_a_failed_write_nothing_is_accepted_and_nothing_told_is_lost() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    device.drain();
    device.disk_fails = Some("no space left on device".to_owned());
    let refused = device.publish("/ipfs/bafkqaaa/b").unwrap_err();
    assert!(refused.to_string().contains("no space left"), "{refused}");
    assert_eq!(device.sequence(), Some(0));
    let events = device.events();
    assert!(
        events
            .iter()
            .any(|event| matches!(event, Event::Alarm(Alarm::Disk(_)))),
        "{events:?}"
    );
    device.disk_fails = None;
    assert!(matches!(
        device.publish("/ipfs/bafkqaaa/c").unwrap_err(),
        Refused::Disk(_)
    ));
    assert_eq!(device.on_topic(&version(4), peer(2)), Some(Verdict::Ignore));
    assert_eq!(device.sequence(), Some(0));
    device.restart();
    assert_eq!(device.publish("/ipfs/bafkqaaa/d"), Ok(1));
}

/// N7, NA-13: when the disk takes writes again and holds all that was told, the book goes on with what it holds, which may be more than was told. On a disk that
/// lost some of it nothing changes.
#[test]
fn n7_na_13_when_the_disk_takes_writes_again_the_book_goes_on() {
    let rows = |device: &Device| Vec::from_iter(device.disk.clone());
    for refused_is_there in [false, true] {
        let mut device = Device::publisher();
        device.publish("/ipfs/bafkqaaa").unwrap();
        let older = rows(&device);
        device.publish("/ipfs/bafkqaaa/a").unwrap();
        device.drain();
        device.disk_fails = Some("no space left on device".to_owned());
        device.publish("/ipfs/bafkqaaa/b").unwrap_err();
        device.disk_fails = None;
        for lost in [Vec::new(), older] {
            device.feed(Input::Reread(lost));
            assert!(device.core.disk_failure().is_some());
        }
        if refused_is_there {
            let mut twin = Device::publisher();
            twin.disk = device.disk.clone();
            twin.restart();
            assert_eq!(twin.publish("/ipfs/bafkqaaa/b"), Ok(2));
            device.disk = twin.disk;
        }
        device.drain();
        let held = rows(&device);
        device.feed(Input::Reread(held));
        assert_eq!(device.core.disk_failure(), None);
        let changes = device.events();
        let is_change = |event: &Event| matches!(event, Event::Changed { .. });
        assert_eq!(
            changes.iter().any(is_change),
            refused_is_there,
            "{changes:?}"
        );
        assert_eq!(device.sequence(), Some(1 + u64::from(refused_is_there)));
        // The number that was refused went out to be signed: it is given to nothing else.
        assert_eq!(device.publish("/ipfs/bafkqaaa/c"), Ok(3));
        device.restart();
        assert_eq!(device.sequence(), Some(3));
    }
}

/// N3: past its end a record is stale, not gone; a remote one past its end never replaces a valid one, and goes nowhere.
#[test]
fn n3_na_15_past_its_end_it_is_stale_and_no_remote_one_replaces_a_valid_one() {
    let mut device = Device::follower();
    device.record(&version(5), Source::Peer(peer(2)));
    device.drain();
    let expired = signed(9, "/ipfs/bafkqaaa/old", "2026-05-31T23:59:59Z");
    assert_eq!(device.on_topic(&expired, peer(3)), Some(Verdict::Ignore));
    let refused = device
        .command(Command::Put {
            name: name(1),
            bytes: expired.clone(),
        })
        .unwrap_err();
    assert!(matches!(refused, Refused::Expired(_)), "{refused}");
    assert_eq!(
        (device.sequence(), device.core.counters().expired),
        (Some(5), 1)
    );
    // A year passes by itself, without a clock being set.
    device.pass(366 * DAY);
    let events = device.events();
    assert!(
        events.contains(&Event::Stale {
            name: name(1),
            stale: true
        }),
        "{events:?}"
    );
    let resolved = device.core.resolve(&name(1), device.now).unwrap();
    assert_eq!(
        (resolved.version.sequence, resolved.stale, resolved.ttl_ns),
        (5, true, 0)
    );
    assert!(
        device
            .core
            .serve(&name(1).routing_key(), device.now)
            .is_none()
    );
    // A neighbour and a peer are not given it.
    device.feed(Input::TopicPeer {
        name: name(1),
        peer: peer(4),
        joined: true,
    });
    device.feed(Input::Dht(true));
    device.feed(Input::DhtDone { name: name(1) });
    device.pass(2 * DAY);
    let out = device.drain();
    assert!(
        announced(&out).is_empty() && out.iter().all(|o| !matches!(o, Output::DhtPut { .. })),
        "{out:?}"
    );
    // Where the held one is past its end, too, a newer one is taken, though stale: a clock in the future stops no roll-out.
    device.record(&expired, Source::Peer(peer(2)));
    assert_eq!(device.sequence(), Some(9));
    // And the clock is set right.
    device.restart();
    device.clock("2026-05-01T00:00:00Z");
    let resolved = device.core.resolve(&name(1), device.now).unwrap();
    assert_eq!((resolved.version.sequence, resolved.stale), (9, false));
}

#[test]
fn n3_na_14_a_clock_before_the_build_is_not_believed_and_one_far_beyond_is_not_seen() {
    let mut device = Device::publisher();
    device.clock("1970-01-01T00:00:00Z");
    assert_eq!(device.core.wall_clock(device.now), Config::default().build);
    assert_eq!(device.publish("/ipfs/bafkqaaa"), Ok(0));
    assert_eq!(
        device.core.record(&name(1)).unwrap().validity(),
        wall("2027-01-01T00:00:00Z")
    );
    // What was signed elsewhere has certainly passed.
    device.feed(Input::Seen(wall("2026-09-01T00:00:00Z")));
    assert_eq!(
        device.core.wall_clock(device.now),
        wall("2026-09-01T00:00:00Z")
    );
    device.feed(Input::Seen(wall("2099-01-01T00:00:00Z")));
    assert_eq!(device.core.counters().incredible, 1);
    assert_eq!(
        device.core.wall_clock(device.now),
        wall("2026-09-01T00:00:00Z")
    );
    // A publisher under a clock of 2099 that is set back: the next version is above, with an end that is earlier, and is taken.
    device.clock("2099-01-01T00:00:00Z");
    assert_eq!(device.publish("/ipfs/bafkqaaa/2099"), Ok(1));
    device.clock("2026-09-02T00:00:00Z");
    assert_eq!(device.publish("/ipfs/bafkqaaa/2099"), Ok(2));
    assert_eq!(
        device.core.record(&name(1)).unwrap().validity(),
        wall("2027-09-02T00:00:00Z")
    );
}

/// The record is signed anew at half of its life, under the same number, and goes into the DHT every 22 hours.
#[test]
fn na_21_own_records_are_renewed_and_put_in_time() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    device.feed(Input::Dht(true));
    device.pass(Duration::from_secs(1));
    let puts = |outputs: &[Output]| {
        outputs
            .iter()
            .filter(|o| matches!(o, Output::DhtPut { peers: None, .. }))
            .count()
    };
    assert_eq!(puts(&device.drain()), 1);
    for _ in 0..10 {
        device.pass(28 * HOUR);
        assert!((1..=2).contains(&puts(&device.drain())));
    }
    device.pass(180 * DAY);
    let events = device.events();
    assert_eq!(
        changed(&events),
        [],
        "the same value signed anew is no change"
    );
    let record = device.core.record(&name(1)).unwrap();
    assert_eq!(record.sequence(), 0);
    assert!(
        record.validity() > wall("2027-11-01T00:00:00Z"),
        "{}",
        record.validity()
    );
    // Years without a publisher's hand.
    device.pass(5 * 365 * DAY);
    assert!(!device.core.resolve(&name(1), device.now).unwrap().stale);
    assert_eq!(device.sequence(), Some(0));
}

/// S0.29: the publisher is gone; the follower tells newcomers, says it on the topic, serves it, and puts it where the DHT forgot it.
#[test]
fn s0_29_na_22_a_follower_keeps_the_name_alive_after_its_publisher_is_gone() {
    let (mut a, mut b) = (Device::publisher(), Device::follower());
    a.publish("/ipfs/bafkqaaa").unwrap();
    connect(&mut a, 1, &mut b, 2);
    exchange(&mut a, 1, &mut b, 2);
    b.feed(Input::Disconnected(peer(1)));
    drop(a);
    b.restart();
    b.pass(30 * DAY);
    b.drain();
    // By push.
    let mut c = Device::follower();
    connect(&mut b, 2, &mut c, 3);
    exchange(&mut b, 2, &mut c, 3);
    assert_eq!(c.sequence(), Some(0));
    // By the topic, again and again, as long as nobody else does.
    b.feed(Input::TopicPeer {
        name: name(1),
        peer: peer(9),
        joined: true,
    });
    b.drain();
    b.pass(HOUR);
    let said = announced(&b.drain());
    assert!((4..=9).contains(&said.len()), "{said:?}");
    // By fetch.
    let bytes = b
        .core
        .serve(&name(1).routing_key(), b.now)
        .unwrap()
        .bytes()
        .to_vec();
    assert_eq!(b.core.record(&name(1)).unwrap().bytes(), bytes);
    // In the DHT: few have it.
    b.feed(Input::Dht(true));
    b.pass(DAY);
    assert!(b.drain().iter().any(|o| matches!(o, Output::DhtGet(_))));
    b.feed(Input::NoRecord {
        name: name(1),
        source: Source::Dht(peer(20)),
    });
    b.feed(Input::DhtDone { name: name(1) });
    assert!(
        b.drain()
            .iter()
            .any(|o| matches!(o, Output::DhtPut { peers: None, .. }))
    );
    // Many have it, two do not: these are repaired, and nothing is put.
    b.pass(DAY);
    b.drain();
    for number in 20..26 {
        b.record(&bytes, Source::Dht(peer(number)));
    }
    b.feed(Input::NoRecord {
        name: name(1),
        source: Source::Dht(peer(30)),
    });
    b.feed(Input::DhtDone { name: name(1) });
    let puts: Vec<Output> = b
        .drain()
        .into_iter()
        .filter(|o| matches!(o, Output::DhtPut { .. }))
        .collect();
    let [
        Output::DhtPut {
            peers: Some(repaired),
            ..
        },
    ] = puts.as_slice()
    else {
        panic!("{puts:?}")
    };
    assert_eq!(repaired, &[peer(30)]);
}

/// A hundred followers say a name about as often as a few: who hears it twice is silent.
#[test]
fn na_22_who_hears_it_from_others_is_silent() {
    let mut device = Device::follower();
    device.record(&version(3), Source::Peer(peer(2)));
    device.feed(Input::TopicPeer {
        name: name(1),
        peer: peer(9),
        joined: true,
    });
    device.drain();
    for _ in 0..60 {
        device.pass(Duration::from_secs(200));
        device.on_topic(&version(3), peer(9));
        device.on_topic(&version(3), peer(8));
    }
    assert_eq!(announced(&device.drain()), []);
    assert!(device.core.counters().suppressed >= 10);
    // An old one goes round: it is put right soon.
    device.on_topic(&version(2), peer(9));
    device.pass(Duration::from_secs(5));
    assert_eq!(announced(&device.drain()), [3]);
}

/// S0.26: during the transfer the old one, after it the new one; it never goes back by itself, and survives a restart.
#[test]
fn s0_26_na_19_the_complete_version_moves_only_when_it_is_whole() {
    let mut device = Device::follower();
    let whole = |device: &Device| {
        device
            .core
            .resolve_complete(&name(1), device.now)
            .map(|r| r.version.sequence)
    };
    let complete = |sequence: u64, rollback: bool| Command::Complete {
        name: name(1),
        version: Version {
            sequence,
            value: format!("/ipfs/bafkqaaa/{sequence}").into_bytes(),
        },
        rollback,
    };
    assert!(matches!(
        device.command(complete(1, false)).unwrap_err(),
        Refused::NeverTold { .. }
    ));
    device.record(&version(1), Source::Peer(peer(2)));
    assert_eq!((device.sequence(), whole(&device)), (Some(1), None));
    device.command(complete(1, false)).unwrap();
    assert!(device.core.resolve(&name(1), device.now).unwrap().complete);
    device.record(&version(2), Source::Peer(peer(2)));
    device.drain();
    assert_eq!((device.sequence(), whole(&device)), (Some(2), Some(1)));
    assert!(!device.core.resolve(&name(1), device.now).unwrap().complete);
    // Durable before it is told.
    device.automatic = false;
    device.feed(Input::Command {
        id: 77,
        command: complete(2, false),
    });
    assert_eq!((whole(&device), device.drain()), (Some(1), vec![]));
    device.step();
    let events = device.events();
    assert!(
        matches!(
            events.as_slice(),
            [Event::Complete {
                version: Version { sequence: 2, .. },
                ..
            }]
        ),
        "{events:?}"
    );
    device.automatic = true;
    device.restart();
    assert_eq!(whole(&device), Some(2));
    assert!(matches!(
        device.command(complete(1, false)).unwrap_err(),
        Refused::Backwards {
            complete: 2,
            offered: 1,
            ..
        }
    ));
    device.command(complete(1, true)).unwrap();
    assert_eq!((device.sequence(), whole(&device)), (Some(2), Some(1)));
    // A version nobody was told of cannot be whole.
    assert!(matches!(
        device.command(complete(3, false)).unwrap_err(),
        Refused::NeverTold { .. }
    ));
    let other = Command::Complete {
        name: name(1),
        version: Version {
            sequence: 2,
            value: b"/ipfs/other".to_vec(),
        },
        rollback: false,
    };
    assert!(matches!(
        device.command(other).unwrap_err(),
        Refused::NeverTold { .. }
    ));
}

/// S0.22: the fields of Kubo's `name inspect`, and ours.
#[test]
fn s0_22_inspect_tells_all_there_is() {
    let mut device = Device::follower();
    device.record(&version(4), Source::Peer(peer(2)));
    device.pass(Duration::from_secs(90));
    let seen = device.core.inspect(&name(1), device.now).unwrap();
    assert_eq!(
        (seen.value.as_str(), seen.sequence, seen.ttl_ns),
        ("/ipfs/bafkqaaa/4", 4, 300_000_000_000)
    );
    assert_eq!(
        (seen.validity, seen.signature_type, seen.key.as_str()),
        (wall("2027-06-01T00:00:00Z"), "V1+V2", "Ed25519")
    );
    assert_eq!(
        (seen.source, seen.source.as_str(), seen.age),
        (Source::Peer(peer(2)), "peer", Duration::from_secs(90))
    );
    assert_eq!(
        (seen.own, seen.followed, seen.stale, seen.unsure),
        (false, true, false, false)
    );
    assert_eq!(seen.bytes, version(4).len());
    device.restart();
    assert_eq!(
        device.core.inspect(&name(1), device.now).unwrap().source,
        Source::Peer(peer(2))
    );
}

/// Resolving what is not known asks every route, and each answers by itself.
#[test]
fn s0_20_resolving_asks_all_routes_and_the_book_answers_at_once() {
    for route in [
        Source::Peer(peer(2)),
        Source::Topic(peer(2)),
        Source::Fetch(peer(2)),
        Source::Dht(peer(2)),
    ] {
        let mut device = Device::new();
        device.feed(Input::Connected(peer(2)));
        device.feed(Input::Dht(true));
        device.drain();
        let id = device.resolve(name(1));
        let asked = device.drain();
        assert!(asked.contains(&Output::Join(name(1))) && asked.contains(&Output::DhtGet(name(1))));
        assert!(
            asked
                .iter()
                .any(|o| matches!(o, Output::Send { message, .. } if message.interests.len() == 1))
        );
        device.feed(Input::TopicPeer {
            name: name(1),
            peer: peer(3),
            joined: true,
        });
        assert!(device.drain().contains(&Output::Fetch {
            name: name(1),
            peer: peer(3)
        }));
        assert_eq!(device.answer_of(id), None);
        device.record(&version(4), route);
        assert_eq!(
            device.answer_of(id).unwrap().unwrap().version.sequence,
            4,
            "{route:?}"
        );
        // Within the time to live from the book, asking nobody; after it anew.
        device.drain();
        let id = device.resolve(name(1));
        assert!(device.answer_of(id).is_some());
        assert_eq!(device.drain(), []);
        device.pass(Duration::from_secs(301));
        let id = device.resolve(name(1));
        assert_eq!(device.answer_of(id), None);
        device.pass(Duration::from_secs(10));
        assert_eq!(device.answer_of(id).unwrap().unwrap().version.sequence, 4);
    }
    // Nobody is there: said so, with the numbers; and what was found was too old.
    let mut device = Device::new();
    let id = device.resolve(name(1));
    device.pass(Duration::from_secs(11));
    let error = device.answer_of(id).unwrap().unwrap_err();
    assert!(
        error
            .to_string()
            .contains("no peer that could be asked is connected"),
        "{error}"
    );
    let id = device.resolve(name(1));
    device.record(
        &signed(3, "/ipfs/bafkqaaa", "2020-01-01T00:00:00Z"),
        Source::Fetch(peer(2)),
    );
    device.pass(Duration::from_secs(11));
    let error = device.answer_of(id).unwrap().unwrap_err();
    assert!(matches!(error, ResolveError::Expired { .. }), "{error}");
    // All who were asked have nothing: no need to wait.
    device.feed(Input::Dht(true));
    let id = device.resolve(name(5));
    device.feed(Input::DhtDone { name: name(5) });
    assert!(matches!(
        device.answer_of(id).unwrap(),
        Err(ResolveError::NotFound {
            asked: 1,
            answers: 1,
            ..
        })
    ));
}

/// What a stranger sends is bounded: per peer, altogether, and for names that nobody asked for (N10).
#[test]
fn n10_na_23_floods_cost_little_and_are_kept_nowhere() {
    let mut device = Device::follower();
    let rows = device.disk.clone();
    let strange = gemba_names::Unsigned::new("/ipfs/bafkqaaa", 1, wall("2027-01-01T00:00:00Z"))
        .sign(&common::key(5))
        .unwrap();
    for _ in 0..10_000 {
        device.feed(Input::Record {
            name: name(5),
            bytes: strange.bytes().to_vec(),
            source: Source::Peer(peer(3)),
            token: None,
        });
    }
    assert_eq!(
        (device.core.counters().unknown, device.verified),
        (10_000, 0)
    );
    assert_eq!(device.disk, rows);
    assert_eq!(device.core.names().count(), 1);
    // New versions without end from one peer.
    for sequence in 1..=1_000 {
        device.record(&version(sequence), Source::Topic(peer(3)));
    }
    assert!(
        device.verified <= 32 && device.core.counters().over_budget >= 900,
        "{}",
        device.verified
    );
    // Another peer is heard meanwhile.
    device.record(&version(5_000), Source::Peer(peer(4)));
    assert_eq!(device.sequence(), Some(5_000));
    // Junk mutes a peer that made it, and one that comes again stays muted.
    device.feed(Input::Connected(peer(6)));
    for n in 0..10u8 {
        let mut junk = version(6_000);
        let last = junk.len() - 60 - usize::from(n);
        junk[last] ^= 1;
        device.record(&junk, Source::Peer(peer(6)));
    }
    let blamed = device
        .drain()
        .iter()
        .filter(|o| matches!(o, Output::Misbehaved { peer: id, .. } if *id == peer(6)))
        .count();
    assert_eq!(blamed, 1);
    device.feed(Input::Disconnected(peer(6)));
    device.feed(Input::Connected(peer(6)));
    device.record(&version(7_000), Source::Peer(peer(6)));
    assert_eq!(device.sequence(), Some(5_000));
    device.pass(Duration::from_secs(700));
    device.record(&version(7_000), Source::Peer(peer(6)));
    assert_eq!(device.sequence(), Some(7_000));
    // A topic is told to reject junk.
    let mut junk = version(8_000);
    let last = junk.len() - 1;
    junk[last] ^= 1;
    assert_eq!(device.on_topic(&junk, peer(9)), Some(Verdict::Reject));
    // Interests are bounded as well.
    device.feed(Input::Connected(peer(7)));
    for n in 0..200u8 {
        let message = gemba_names::wire::Message {
            interests: (0..=n)
                .map(|k| gemba_names::wire::Interest {
                    name: name(k.max(2)),
                    has: None,
                })
                .collect(),
            ..Default::default()
        };
        device.feed(Input::Message {
            peer: peer(7),
            message,
        });
        device.pass(Duration::from_secs(1));
    }
    assert!(device.core.counters().interests_dropped > 0);
}

/// Copies are told apart without a signature check, also while the first is still being checked.
#[test]
fn na_23_a_copy_costs_no_signature() {
    let mut device = Device::follower();
    device.automatic = false;
    for number in 2..40 {
        device.record(&version(3), Source::Topic(peer(number)));
    }
    assert_eq!(device.waiting.len(), 1);
    device.automatic = true;
    while device.step() {}
    for number in 2..40 {
        device.record(&version(3), Source::Peer(peer(number)));
    }
    assert_eq!(device.verified, 1);
    assert_eq!(device.core.counters().duplicates, 75);
}

/// The DHT's server, as pure functions.
#[test]
fn na_25_a_dht_server_validates_chooses_and_repairs() {
    use gemba_names::dht;
    let now = wall("2026-06-01T00:00:00Z");
    let key = name(1).routing_key();
    let (old, new) = (version(1), version(2));
    let expired = signed(9, "/ipfs/bafkqaaa", "2026-05-01T00:00:00Z");
    assert!(dht::accept_put(&key, &old, None, now).is_ok());
    assert!(dht::accept_put(&key, &new, Some(&old), now).is_ok());
    assert!(dht::accept_put(&key, &new, Some(&new), now).is_ok());
    assert!(matches!(
        dht::accept_put(&key, &old, Some(&new), now),
        Err(Refused::Older {
            current: 2,
            offered: 1,
            ..
        })
    ));
    assert!(matches!(
        dht::accept_put(&key, &expired, Some(&old), now),
        Err(Refused::Expired(_))
    ));
    assert!(dht::accept_put(&key, &old, Some(&expired), now).is_ok());
    assert!(dht::accept_put(&key, &old, Some(b"junk"), now).is_ok());
    assert!(dht::validate(&name(2).routing_key(), &new, now).is_err());
    assert!(dht::validate(b"/pk/x", &new, now).is_err());
    let open = |bytes: &[u8]| Record::open(name(1), bytes).unwrap();
    assert_eq!(dht::select(&[open(&old), open(&new), open(&old)]), Some(1));
    assert_eq!(dht::select(&[]), None);
    let answers = [
        (peer(2), Some(open(&old))),
        (peer(3), Some(open(&new))),
        (peer(4), None),
    ];
    assert_eq!(dht::repair(&open(&new), &answers), [peer(2), peer(4)]);
}

/// The fetch protocol, byte for byte (wire clause 06).
#[test]
fn na_24_fetch_is_kubos() {
    use gemba_names::wire::fetch::{
        Answer, decode_answer, decode_request, encode_answer, encode_request,
    };
    let request = encode_request(&name(1));
    assert_eq!(
        common::hex(&request),
        "0a2c2f69706e732f002408011220d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    );
    assert_eq!(decode_request(&request), Ok(name(1)));
    let answer = encode_answer(&Answer::Record(vec![1, 2, 3]));
    assert_eq!(answer, [0x12, 3, 1, 2, 3]);
    for answer in [
        Answer::Record(vec![7; 300]),
        Answer::NotFound,
        Answer::Error,
    ] {
        assert_eq!(decode_answer(&encode_answer(&answer)), Ok(answer));
    }
    assert_eq!(decode_answer(&[]), Ok(Answer::Record(vec![])));
    assert!(decode_answer(&[0x12, 9, 1]).is_err() && decode_request(&[0x0a, 1, 1]).is_err());
}

/// Well-formed, and changed after it was signed.
fn forged(sequence: u64) -> Vec<u8> {
    let mut unsigned = Unsigned::new(*b"/ipfs/bafkqaaa", sequence, wall("2027-06-01T00:00:00Z"));
    unsigned.v1 = false;
    let mut bytes = unsigned.sign(&key(1)).unwrap().bytes().to_vec();
    let at = bytes.windows(14).position(|w| w == b"/ipfs/bafkqaaa");
    bytes[at.unwrap() + 13] = b'b';
    bytes
}

/// What a query brings is judged on a worker and written to the disk; only then is it known whom to repair.
#[test]
fn na_25_read_repair_waits_for_what_the_query_brought() {
    let mut device = Device::follower();
    device.feed(Input::Dht(true));
    assert!(device.drain().contains(&Output::DhtGet(name(1))));
    device.automatic = false;
    let forged = forged(9);
    device.record(&version(3), Source::Dht(peer(2)));
    device.record(&version(5), Source::Dht(peer(3)));
    device.feed(Input::NoRecord {
        name: name(1),
        source: Source::Dht(peer(4)),
    });
    device.record(&forged, Source::Dht(peer(5)));
    device.feed(Input::DhtDone { name: name(1) });
    let is_put = |output: &Output| matches!(output, Output::DhtPut { .. });
    assert!(!device.drain().iter().any(is_put), "nothing is durable yet");
    device.automatic = true;
    while device.step() {}
    let puts: Vec<Output> = device.drain().into_iter().filter(is_put).collect();
    let [
        Output::DhtPut {
            record,
            peers: Some(peers),
        },
    ] = puts.as_slice()
    else {
        panic!("{puts:?}")
    };
    assert_eq!(record.sequence(), 5);
    assert_eq!(
        peers.iter().copied().collect::<BTreeSet<_>>(),
        BTreeSet::from([peer(2), peer(4), peer(5)])
    );
}

/// Many servers of the DHT that have nothing are one route that has nothing: the others are waited for.
#[test]
fn na_31_servers_without_the_record_do_not_end_the_search() {
    let mut device = Device::new();
    device.feed(Input::Connected(peer(2)));
    device.feed(Input::Dht(true));
    device.command(Command::Resolve(name(1))).unwrap();
    device.drain();
    for number in 3..12 {
        device.feed(Input::NoRecord {
            name: name(1),
            source: Source::Dht(peer(number)),
        });
    }
    device.feed(Input::DhtDone { name: name(1) });
    assert!(
        !device
            .drain()
            .iter()
            .any(|o| matches!(o, Output::Resolved { .. }))
    );
    device.record(&version(4), Source::Peer(peer(2)));
    assert!(device.drain().iter().any(|o| matches!(o, Output::Resolved { result: Ok(resolved), .. } if resolved.version.sequence == 4)));
}

/// When all that was asked has answered, a bad record among it included, nobody waits for the time to run out.
#[test]
fn na_31_a_search_ends_when_the_last_answer_was_judged() {
    let mut device = Device::new();
    device.feed(Input::Dht(true));
    device.command(Command::Resolve(name(1))).unwrap();
    device.drain();
    device.automatic = false;
    let forged = forged(9);
    device.record(&forged, Source::Dht(peer(2)));
    device.feed(Input::DhtDone { name: name(1) });
    assert!(
        !device
            .drain()
            .iter()
            .any(|o| matches!(o, Output::Resolved { .. }))
    );
    device.automatic = true;
    while device.step() {}
    assert!(
        device
            .drain()
            .iter()
            .any(|o| matches!(o, Output::Resolved { result: Err(_), .. }))
    );
}

/// What was put while one server was known is put anew when there are more; and a name that nobody had is looked for again.
#[test]
fn na_33_when_the_dht_grows_names_are_put_and_looked_for_anew() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    device.feed(Input::Dht(true));
    device.pass(Duration::from_secs(1));
    let is_put = |output: &Output| matches!(output, Output::DhtPut { peers: None, .. });
    assert!(device.drain().iter().any(is_put));
    device.pass(HOUR);
    assert!(!device.drain().iter().any(is_put));
    device.feed(Input::DhtGrew);
    device.pass(Duration::from_secs(120));
    assert_eq!(
        device
            .drain()
            .iter()
            .filter(|output| is_put(output))
            .count(),
        1
    );

    let mut follower = Device::follower();
    follower.feed(Input::Dht(true));
    follower.feed(Input::DhtDone { name: name(1) });
    follower.drain();
    follower.feed(Input::DhtGrew);
    assert!(follower.drain().contains(&Output::DhtGet(name(1))));
}

/// Whoever has neither peers nor neighbours compares a followed name with the DHT.
#[test]
fn na_33_where_no_other_route_is_left_the_dht_is_asked() {
    let mut device = Device::follower();
    device.feed(Input::Dht(true));
    device.record(&version(1), Source::Dht(peer(2)));
    device.feed(Input::DhtDone { name: name(1) });
    device.pass(Duration::from_secs(120));
    device.feed(Input::DhtDone { name: name(1) });
    device.drain();
    device.pass(Duration::from_secs(400));
    assert!(device.drain().contains(&Output::DhtGet(name(1))));
    device.feed(Input::Connected(peer(3)));
    device.feed(Input::DhtDone { name: name(1) });
    device.drain();
    device.pass(HOUR);
    assert!(
        !device.drain().contains(&Output::DhtGet(name(1))),
        "a peer is compared with"
    );
}
