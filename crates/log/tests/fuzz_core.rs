//! The fuzz targets of consumers and replication, over seeded random bytes and mutated samples; libFuzzer runs the same functions.
#![allow(clippy::unwrap_used)]

use gemba_log::core::fuzz;
use gemba_testkit::{Rng, check, sim_scale};

#[test]
fn scripts_against_a_consumer_pass_over_nothing() {
    check!(sim_scale(20_000), |rng| {
        let len = rng.length(600) as usize;
        fuzz::consumer(&rng.bytes(len));
    });
}

#[test]
fn comparisons_of_any_two_sets_end_in_the_truth() {
    check!(sim_scale(2_000), |rng| {
        let len = rng.length(4_000) as usize;
        let mut data = rng.bytes(len);
        // Mostly equal sets, over few or many authors.
        let mask = [1, 7, 255][rng.index(3)];
        for entry in data.chunks_exact_mut(4) {
            entry[0] &= mask;
            if rng.chance(7, 8) {
                entry[3] = 3;
            }
        }
        fuzz::reconcile(&data);
    });
}

#[test]
fn mutated_rows_and_messages_never_panic() {
    let replay = gemba_testkit::Replay::new(env!("CARGO_PKG_NAME"), 77);
    let mut rng: Rng = replay.rng();
    let samples: Vec<Vec<u8>> = samples();
    for _ in 0..sim_scale(200_000) {
        let mut data = rng.pick(&samples).clone();
        for _ in 0..rng.below(4) {
            let at = rng.index(data.len());
            data[at] ^= 1 << rng.below(8);
        }
        if rng.chance(1, 4) {
            data.truncate(rng.index(data.len() + 1));
        }
        fuzz::wire(&data);
        for kind in 0..4 {
            let mut row = vec![kind];
            row.extend(&data);
            fuzz::rows(&row);
        }
    }
}

/// The folder of a corpus, and what it is fed to.
type Corpus = (&'static str, fn(&[u8]));

/// Every file of each corpus; those of messages and rows are the samples above.
#[test]
fn corpora_are_replayed() {
    let corpora: [Corpus; 4] = [
        ("log_wire", fuzz::wire),
        ("log_rows", fuzz::rows),
        ("log_consumer", fuzz::consumer),
        ("log_reconcile", fuzz::reconcile),
    ];
    for (target, run) in corpora {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../fuzz/corpus")
            .join(target);
        let files: Vec<_> = std::fs::read_dir(&folder)
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        assert!(!files.is_empty(), "{target}");
        for file in files {
            run(&std::fs::read(file).unwrap());
        }
    }
}

/// Messages, rows, letters: the seeds of the corpora.
fn samples() -> Vec<Vec<u8>> {
    use gemba_log::{
        Author, Epoch, EventHash, EventId, FeedId,
        core::{
            consumer::{Aside, Given, Position},
            dead::Record,
            reconcile::Tips,
        },
        wire::{Fetch, Message, Sync, Want},
    };
    let feed = |n: u8| FeedId {
        author: Author([n; 32]),
        stream: "s/1".parse().unwrap(),
        epoch: Epoch(0),
    };
    let mut tips = Tips::default();
    for n in 0..100 {
        tips.set(&feed(n), &[(1, [n; 32])]);
    }
    let all = |_: &FeedId| true;
    let (lists, _) = Tips::default().answer(&tips.begin(&all), &all);
    let sync = |round, ranges| {
        Message::Sync(Sync {
            session: 1,
            round,
            patterns: vec!["#".parse().unwrap()],
            assumed: gemba_log::wire::patterns_hash(&["#".parse().unwrap()]),
            ranges,
        })
    };
    let want = Want {
        feed: feed(3),
        from: 0,
        tip: [3; 32],
    };
    let fetch = Fetch {
        id: 1,
        max_bytes: 99,
        wants: vec![want],
    };
    let mut position = Position::at(9, Some(EventHash([1; 32])), 8);
    position.given = Given::Asides;
    position.aside.push(Aside {
        seq: 3,
        attempts: 2,
        held_ms: 5,
        letter: false,
        given: true,
        alone: false,
    });
    let row = position.encode();
    vec![
        sync(0, tips.begin(&all)).encode(),
        sync(1, lists.clone()).encode(),
        sync(2, tips.answer(&lists, &all).0).encode(),
        Message::Fetch(fetch).encode(),
        row[..row.len() - 4].to_vec(),
        row,
        Record::Dropped(EventId {
            feed: feed(1),
            seq: 3,
        })
        .encode(),
    ]
}
