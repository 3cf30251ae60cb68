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
use gemba_segment::{Disk as _, DiskFile, Mode};
use gemba_testkit::{Rng, disk::SimDisk, sim_scale};
use std::{
    io::{self, IoSlice},
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

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

/// redb's file on a disk that forgets.
#[derive(Debug)]
struct File(Arc<dyn DiskFile>);

impl redb::StorageBackend for File {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        match self.0.read_at(out, offset)? == out.len() {
            true => Ok(()),
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut done = 0;
        while done < data.len() {
            let rest = IoSlice::new(&data[done..]);
            done += self.0.write_at(&[rest], offset + done as u64)?;
        }
        Ok(())
    }
}

fn store_on(disk: &SimDisk) -> RedbStore {
    let file = disk.open(Path::new("/state.redb"), Mode::Create).unwrap();
    RedbStore::on(File(file)).unwrap()
}

fn open_on<'a>(log: &'a MemoryLog, disk: &SimDisk) -> Consumer<&'a MemoryLog, RedbStore> {
    let mut config = config();
    config.batch = 10;
    let (store, author) = (store_on(disk), log.author());
    Consumer::open(log, store, author, config, Takeover::Continue, NOW).unwrap()
}

/// Counts the next portion; whether there was one, and the total that is committed now.
fn count_some(consumer: &Consumer<&MemoryLog, RedbStore>) -> (bool, u64) {
    let step = consumer.step(Worker(1), NOW, |_, tx| {
        tx.add(b"count", 1)?;
        Ok(())
    });
    let worked = matches!(step.unwrap(), Step::Worked(_));
    let total = consumer.store().begin().unwrap().count(b"count").unwrap();
    (worked, total)
}

/// S3.25: what the engine of offsets and totals was chosen by. The power goes at every call that it makes, with whatever the disk then keeps: the file opens, what
/// was committed is there, and total and offset agree, so that the count ends exact.
#[test]
fn s3_25_s3_22_a_power_cut_at_any_call_leaves_total_and_offset_as_one() {
    const ALL: usize = 60;
    let log = MemoryLog::new([1; 32]);
    let stream: StreamName = "line/1".parse().unwrap();
    let events = vec![NewEvent::new(0, &b"1"[..]); ALL];
    log.append(&stream, events).unwrap();
    let sim = SimDisk::new(25);
    drop(store_on(&sim));
    sim.sync_dir(Path::new("/")).unwrap();

    let (committed, left) = (
        Arc::new(AtomicU64::new(0)),
        Arc::new(Mutex::new(Vec::new())),
    );
    let observer = (Arc::clone(&committed), Arc::clone(&left));
    let (mut rng, survivors) = (Rng::from_env_or(25), sim_scale(60));
    sim.observe(move |moment| {
        let committed = observer.0.load(Ordering::Relaxed);
        for _ in 0..survivors {
            let disk = moment.power_cut(&mut rng);
            observer.1.lock().unwrap().push((committed, disk));
        }
    });
    let consumer = open_on(&log, &sim);
    loop {
        let (worked, total) = count_some(&consumer);
        committed.store(total, Ordering::Relaxed);
        if !worked {
            break;
        }
    }
    sim.stop_observing();
    let left = std::mem::take(&mut *left.lock().unwrap());
    assert!(
        left.len() > 40 * survivors,
        "{} moments",
        left.len() / survivors
    );
    for (committed, disk) in left {
        let log = log.cloned([1; 32]);
        let consumer = open_on(&log, &disk);
        let total = consumer.store().begin().unwrap().count(b"count").unwrap();
        assert!(
            total >= committed,
            "{total} of {committed} that were committed"
        );
        while count_some(&consumer).0 {}
        assert_eq!(count_some(&consumer).1, ALL as u64);
    }
}
