//! Offsets and state in a file of redb.
#![cfg(feature = "redb")]
#![allow(clippy::unwrap_used)]

use gemba_log::{
    NewEvent, StreamName,
    consume::{Consumer, LogSink, Step, Takeover},
    core::consumer::{Config, ConsumerName, Worker},
    sim::MemoryLog,
    store::{KeyValue, RedbStore, StateStore, Transaction},
};
use std::time::Duration;

const NOW: Duration = Duration::ZERO;

fn config() -> Config {
    Config::new(
        ConsumerName::new("counter").unwrap(),
        vec!["line/#".parse().unwrap()],
    )
}

#[test]
fn s3_22_the_total_and_the_offset_outlive_the_process() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.redb");
    let log = MemoryLog::new([1; 32]);
    let stream: StreamName = "line/1".parse().unwrap();
    let mut total = 0;
    for life in 1..=4 {
        log.append(&stream, vec![NewEvent::new(0, &b"1"[..]); 700])
            .unwrap();
        total += 700;
        let store = RedbStore::open(&file).unwrap();
        let consumer =
            Consumer::open(&log, store, log.author(), config(), Takeover::Continue, NOW).unwrap();
        assert_eq!(consumer.generation(), life);
        let work = || {
            consumer.step(Worker(1), NOW, |_, tx| {
                tx.add(b"count", 1)?;
                Ok(())
            })
        };
        while let Step::Worked(_) = work().unwrap() {}
        assert_eq!(
            consumer.store().begin().unwrap().count(b"count").unwrap(),
            total
        );
    }
}

#[test]
fn a_second_process_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("state.redb");
    let _first = RedbStore::open(&file).unwrap();
    assert!(RedbStore::open(&file).is_err());
}

#[test]
fn a_transaction_reads_what_it_wrote_and_is_nothing_until_its_commit() {
    let dir = tempfile::tempdir().unwrap();
    let store = RedbStore::open(&dir.path().join("state.redb")).unwrap();
    let mut tx = store.begin().unwrap();
    for i in 0..5u8 {
        tx.put_row(&[b'k', i], Some(&[i])).unwrap();
    }
    tx.put(b"a", b"1").unwrap();
    tx.commit().unwrap();
    let mut tx = store.begin().unwrap();
    tx.put_row(b"k\x02", None).unwrap();
    tx.put_row(b"k\x09", Some(b"9")).unwrap();
    let keys: Vec<u8> = tx
        .rows(b"k", Some(b"k\x00"), 3)
        .unwrap()
        .iter()
        .map(|(key, _)| key[1])
        .collect();
    assert_eq!(keys, [1, 3, 4]);
    tx.savepoint().unwrap();
    tx.remove(b"a").unwrap();
    assert_eq!(tx.get(b"a").unwrap(), None);
    tx.rollback().unwrap();
    assert_eq!(tx.get(b"a").unwrap(), Some(b"1".to_vec()));
    drop(tx);
    assert_eq!(store.begin().unwrap().row(b"k\x02").unwrap(), Some(vec![2]));
}

/// The example counts pieces exactly once, whatever crashes, and nothing in it tries anything again.
#[test]
fn s3_24_a_counter_that_loses_nothing_is_short() {
    let program = include_str!("../examples/counter.rs");
    assert!(program.lines().count() < 60, "{}", program.lines().count());
    assert!(!program.contains("retry") && !program.contains("loop {"));
}
