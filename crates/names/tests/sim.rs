//! Many devices, many orders, many power cuts: no reader ever sees a name go back. A twentieth in `cargo test`, in full with `GEMBA_SIM=full`.
#![allow(clippy::unwrap_used)]

mod common;

use common::{
    key, name, repository,
    world::{Device, peer, signed, version},
};
use gemba_names::{
    Command, Config, Core, Event, Input, Output, Publish, Record, Source, Time, Wall,
};
use gemba_testkit::{Faults, Rng, check, sim_scale};
use std::{collections::BTreeMap, time::Duration};

/// What one reader has seen of the name, and what one listener was told, each by itself: an event may wait in a queue while a reader looks.
#[derive(Default)]
struct Reader {
    shown: Option<u64>,
    told: Option<u64>,
}

impl Reader {
    fn look(&mut self, device: &Device) {
        let shown = device.sequence();
        assert!(shown >= self.shown, "{shown:?} after {:?}", self.shown);
        self.shown = shown;
    }

    fn hear(&mut self, device: &mut Device) {
        for event in device.events() {
            if let Event::Changed { now, .. } = event {
                let told = Some(now.version.sequence);
                assert!(told > self.told, "told {told:?} after {:?}", self.told);
                assert!(told <= device.sequence(), "told {told:?} and shown less");
                self.told = told;
            }
        }
    }
}

fn any_source(rng: &mut Rng) -> Source {
    let from = peer(2 + rng.below(40) as u8);
    match rng.below(4) {
        0 => Source::Peer(from),
        1 => Source::Topic(from),
        2 => Source::Fetch(from),
        _ => Source::Dht(from),
    }
}

/// R9, S0.21: records of a name in any order, duplicated, by any route, with answers of disk and verifier in between in any order of
/// progress, and a power cut now and then. 10^6 deliveries in full.
#[test]
fn s0_21_n1_no_reader_sees_a_regression_in_a_million_reorderings() {
    let records: Vec<Vec<u8>> = (0..64).map(version).collect();
    let deliveries = sim_scale(1_000_000);
    let (rounds, each) = (deliveries / 500, 500);
    let mut faults = Faults::default();
    check!(rounds, |rng| {
        // Verifying is what costs: the sooner a high number comes, the fewer are verified.
        let mut device = Device::follower();
        let mut reader = Reader::default();
        device.automatic = false;
        for _ in 0..each {
            let sequence = rng.index(records.len());
            device.record(&records[sequence], any_source(rng));
            while rng.coin() && device.step() {}
            device.pass(Duration::from_millis(rng.below(400)));
            reader.look(&device);
            reader.hear(&mut device);
            if rng.chance(1, 150) {
                device.cut(rng.below(3) as usize);
                device.automatic = false;
                faults.hit("power cut");
                reader.look(&device);
            }
        }
        device.automatic = true;
        while device.step() {}
        device.record(&records[63], Source::Fetch(peer(200)));
        assert_eq!(device.sequence(), Some(63));
        reader.look(&device);
    });
    faults.assert_fired(&["power cut"], 10);
}

/// N3: clocks that jump by up to twenty years either way every ten seconds, for a day, at the publisher and at the follower, who is cut off,
/// restarted and served late. Nobody sees a regression, and when the clocks are right again the newest version is there, valid.
#[test]
fn n3_clock_chaos_for_a_day_shows_no_regression() {
    let hours = sim_scale(24).max(2) as u64;
    check!(sim_scale(20).max(2), |rng| {
        let right: i64 = 1_780_000_000;
        let mut publisher = Device::publisher();
        let mut follower = Device::follower();
        let mut reader = Reader::default();
        let mut published = 0;
        for step in 0..hours * 360 {
            let jump = |rng: &mut Rng| {
                Wall::from_unix(right + rng.below(2 * 631_152_000) as i64 - 631_152_000, 0)
            };
            publisher.feed(Input::Clock(jump(rng)));
            follower.feed(Input::Clock(jump(rng)));
            if rng.chance(1, 4) {
                let sequence = publisher
                    .publish(&format!("/ipfs/bafkqaaa/{step}"))
                    .unwrap();
                assert!(
                    step == 0 || sequence >= published,
                    "{sequence} after {published}"
                );
                published = sequence;
            }
            if rng.coin()
                && let Some(record) = publisher.core.record(&name(1))
            {
                let bytes = record.bytes().to_vec();
                follower.record(&bytes, any_source(rng));
            }
            if rng.chance(1, 50) {
                follower.restart();
            }
            publisher.drain();
            publisher.pass(Duration::from_secs(10));
            follower.pass(Duration::from_secs(10));
            reader.look(&follower);
            reader.hear(&mut follower);
        }
        publisher.feed(Input::Clock(Wall::from_unix(right, 0)));
        follower.feed(Input::Clock(Wall::from_unix(right, 0)));
        let last = publisher.publish("/ipfs/bafkqaaa/end").unwrap();
        let bytes = publisher.core.record(&name(1)).unwrap().bytes().to_vec();
        follower.pass(Duration::from_secs(60));
        follower.record(&bytes, Source::Peer(peer(200)));
        let resolved = follower.core.resolve(&name(1), follower.now).unwrap();
        assert_eq!((resolved.version.sequence, resolved.stale), (last, false));
        reader.look(&follower);
    });
}

/// N7, R1: the power goes at every point of a life of publications, acknowledgements and remote records. No acknowledged publication is
/// lost, no number is given to two values that were told, and the book opens.
#[test]
fn n7_s0_28_a_power_cut_at_every_point_loses_no_acknowledged_publication() {
    let mut cuts = 0;
    check!(sim_scale(200), |rng| {
        let mut device = Device::publisher();
        device.automatic = false;
        // What was told to anybody: by number, the value.
        let mut told: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
        let mut acknowledged: Option<u64> = None;
        for id in 1_000..1_060 {
            let value = format!("/ipfs/bafkqaaa/{id}");
            let command = Command::Publish(Publish::new(name(1), value));
            device.feed(Input::Command { id, command });
            for _ in 0..rng.below(5) {
                device.step();
            }
            for output in device.drain() {
                let version = match output {
                    Output::Event(Event::Changed { now, .. }) => now.version,
                    Output::Done {
                        result: Ok(gemba_names::Done::Published { sequence }),
                        ..
                    } => {
                        acknowledged = acknowledged.max(Some(sequence));
                        continue;
                    }
                    _ => continue,
                };
                let before = told.insert(version.sequence, version.value.clone());
                assert!(
                    before.is_none_or(|before| before == version.value),
                    "two values under {}",
                    version.sequence
                );
            }
            if rng.chance(1, 3) {
                device.cut(rng.below(3) as usize);
                cuts += 1;
                device.automatic = false;
                assert!(
                    device.sequence() >= acknowledged,
                    "{:?} after {acknowledged:?}",
                    device.sequence()
                );
                if let Some(resolved) = device.core.resolve(&name(1), device.now) {
                    let version = resolved.version;
                    let before = told
                        .entry(version.sequence)
                        .or_insert_with(|| version.value.clone());
                    assert_eq!(
                        *before, version.value,
                        "two values under {}",
                        version.sequence
                    );
                }
                while device.step() {}
                device.drain();
            }
        }
    });
    assert!(cuts >= 100, "{cuts}");
}

/// N2: all devices that see both values of a number agree, whatever the order, and each of them has the alarm.
#[test]
fn n2_devices_agree_on_one_of_several_values_and_all_raise_the_alarm() {
    let rivals: Vec<Vec<u8>> = (0..5u8)
        .map(|n| signed(7, &format!("/ipfs/bafkqaaa/{n}"), "2027-06-01T00:00:00Z"))
        .collect();
    check!(sim_scale(200), |rng| {
        let mut values = Vec::new();
        for _ in 0..3 {
            let mut device = Device::follower();
            let mut order = rivals.clone();
            rng.shuffle(&mut order);
            for record in &order {
                device.record(record, any_source(rng));
            }
            let alarms = device
                .events()
                .iter()
                .filter(|event| matches!(event, Event::Alarm(_)))
                .count();
            assert!(alarms >= 1);
            values.push(device.value());
        }
        assert!(values.windows(2).all(|two| two[0] == two[1]), "{values:?}");
    });
}

/// N9: half of all pushes are lost and gossip is down altogether; comparing with peers makes up for it: a follower is behind for at most
/// two intervals (p99).
#[test]
fn n9_a_follower_that_misses_the_push_catches_up_within_two_pulls() {
    let pull = Config::default().pull;
    let mut lags = Vec::new();
    let mut faults = Faults::default();
    check!(sim_scale(400), |rng| {
        let mut publisher = Device::publisher();
        let mut follower = Device::with(Config {
            seed: rng.next_u64(),
            ..Config::default()
        });
        follower.command(Command::Follow(name(1))).unwrap();
        publisher.feed(Input::Connected(peer(2)));
        follower.feed(Input::Connected(peer(1)));
        carry(&mut publisher, &mut follower);
        let mut behind: Option<Time> = None;
        let mut last = None;
        for second in 0..3_600u64 {
            if rng.chance(1, 400) {
                last = Some(
                    publisher
                        .publish(&format!("/ipfs/bafkqaaa/{second}"))
                        .unwrap(),
                );
                behind.get_or_insert(follower.now);
                if rng.coin() {
                    publisher.drain();
                    faults.hit("push lost");
                }
            }
            carry(&mut publisher, &mut follower);
            if follower.sequence() == last
                && let Some(since) = behind.take()
            {
                lags.push(follower.now.saturating_sub(since));
            }
            publisher.pass(Duration::from_secs(1));
            follower.pass(Duration::from_secs(1));
        }
    });
    faults.assert_fired(&["push lost"], 50);
    lags.sort();
    let p99 = lags[(lags.len() - 1) * 99 / 100];
    assert!(
        lags.len() >= 80 && p99 <= 2 * pull,
        "{} lags, p99 {p99:?}",
        lags.len()
    );
}

/// Carries what both say until nobody says anything.
fn carry(publisher: &mut Device, follower: &mut Device) {
    for _ in 0..8 {
        let (from_publisher, from_follower) = (publisher.drain(), follower.drain());
        if from_publisher.is_empty() && from_follower.is_empty() {
            return;
        }
        for output in from_publisher {
            if let Output::Send { message, .. } = output {
                follower.feed(Input::Message {
                    peer: peer(1),
                    message,
                });
            }
        }
        for output in from_follower {
            if let Output::Send { message, .. } = output {
                publisher.feed(Input::Message {
                    peer: peer(2),
                    message,
                });
            }
        }
    }
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let mut paths: Vec<_> = std::fs::read_dir(repository("fuzz/corpus").join(target))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    paths.sort();
    paths
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..=rng.below(4) {
        let at = rng.index(bytes.len() + 1);
        match rng.below(4) {
            0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, rng.next_u64() as u8),
            _ => bytes.truncate(at.max(1)),
        }
    }
}

/// N5: the corpus of the fuzz target of decoders, and mutations of it.
#[test]
fn n5_ipns_record_corpus_and_mutations() {
    let seeds = corpus("ipns_record");
    assert!(seeds.len() >= 10);
    for seed in &seeds {
        gemba_names::fuzz::record(seed);
    }
    check!(sim_scale(100_000), |rng| {
        let mut bytes = rng.pick(&seeds).clone();
        mutate(rng, &mut bytes);
        gemba_names::fuzz::record(&bytes);
    });
}

/// N1, N4: scripts against the book.
#[test]
fn n1_ipns_merge_corpus_and_random_scripts() {
    for seed in corpus("ipns_merge") {
        gemba_names::fuzz::merge(&seed);
    }
    check!(sim_scale(2_000), |rng| {
        let len = rng.below(90);
        gemba_names::fuzz::merge(&rng.bytes(len as usize));
    });
}

/// Rows are read back as they were written, and no part of one is a row.
#[test]
fn na_26_a_row_has_one_form() {
    let mut device = Device::publisher();
    device.publish("/ipfs/bafkqaaa").unwrap();
    let row = device.disk[&name(1).to_bytes()].clone();
    for cut in 0..row.len() {
        let rows = [(name(1).to_bytes(), &row[..cut])];
        let (_, damaged) = Core::load(Config::default(), rows, [], false, Time::ZERO).unwrap();
        assert_eq!(damaged.len(), 1, "{cut}");
    }
    let longer = [row.as_slice(), &[0]].concat();
    let (_, damaged) = Core::load(
        Config::default(),
        [(name(1).to_bytes(), longer)],
        [],
        false,
        Time::ZERO,
    )
    .unwrap();
    assert_eq!(damaged.len(), 1);
    let record = Record::open(
        name(1),
        gemba_names::fuzz::reopen(name(1), &row).unwrap().bytes(),
    )
    .unwrap();
    assert_eq!(record.key(), &key(1).public());
}
