//! From the log into a table of SQLite, each event once: rows and the place in the log are one transaction of the database. Kill it whenever you like and
//! start it again; nothing here tries anything again, and the table has no unique key that would hide a second row.
//!
//! `sqlite-sink [FOLDER [READINGS]]`: a PLC writes readings to the log while the sink runs; it ends when the table has so many.
#![allow(clippy::print_stdout)]

mod sqlite_store;

use gemba_log::{
    Config, Headers, Log, MemorySigner, NewEvent, Pattern, StreamName,
    consume::{Consumer, Step, Takeover},
    core::consumer::{Config as ConsumerConfig, ConsumerName, Worker},
    store::{StateError, StateStore as _},
};
use rusqlite::params;
use sqlite_store::SqliteStore;
use std::{
    error::Error,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

type Failure = Box<dyn Error + Send + Sync>;

const STREAM: &str = "hall-1/press-7/temperature";
const TABLE: &str = "CREATE TABLE IF NOT EXISTS readings
    (author BLOB, stream TEXT, epoch INTEGER, seq INTEGER, time_ms INTEGER, value INTEGER)";
const INSERT: &str = "INSERT INTO readings VALUES (?1, ?2, ?3, ?4, ?5, ?6)";

/// Rows in the table, as far as they are committed.
fn rows(store: &SqliteStore) -> Result<u64, StateError> {
    let tx = store.begin()?;
    let count = tx.query_row("SELECT count(*) FROM readings", [], |row| {
        row.get::<_, i64>(0)
    });
    Ok(count.map_err(StateError::store)?.unsigned_abs())
}

fn sink(log: &Log, dir: &Path, readings: u64) -> Result<(), Failure> {
    let start = Instant::now();
    let mut config = ConsumerConfig::new(ConsumerName::new("table")?, vec!["hall-1/#".parse()?]);
    config.batch = 50;
    let store = SqliteStore::open(&dir.join("readings.db"), TABLE)?;
    let takeover = Takeover::Continue;
    let consumer = Consumer::open(log, store, log.author(), config, takeover, start.elapsed())?;
    while rows(consumer.store())? < readings {
        let step = consumer.step(Worker(1), start.elapsed(), |delivery, tx| {
            let (feed, event) = (&delivery.id.feed, &delivery.event);
            let value: i64 = std::str::from_utf8(&event.payload)?.parse()?;
            let (epoch, seq) = (i64::try_from(feed.epoch.0)?, i64::try_from(event.seq)?);
            let (author, stream) = (feed.author.0, feed.stream.as_str());
            tx.execute(
                INSERT,
                params![author, stream, epoch, seq, event.time, value],
            )?;
            Ok(())
        })?;
        match step {
            Step::Worked(_) => println!("{} rows", rows(consumer.store())?),
            // The PLC has nothing new.
            Step::Idle(_) => thread::sleep(Duration::from_millis(1)),
        }
    }
    Ok(())
}

/// The reading that comes next: behind the last one that the log holds.
fn next_reading(log: &Log) -> Result<u64, Failure> {
    let mut next = 0;
    for feed in log.feeds(&Pattern::new(STREAM)?) {
        let end = log.head(&feed).map_or(0, |head| head.next);
        if let Some(last) = log.read(&feed, end.saturating_sub(1), 1)?.pop() {
            next = next.max(std::str::from_utf8(&last.payload)?.parse::<u64>()? + 1);
        }
    }
    Ok(next)
}

/// A PLC: the readings 0, 1, 2, … up to here, some at a time.
fn produce(log: &Log, readings: u64) -> Result<(), Failure> {
    let stream: StreamName = STREAM.parse()?;
    let mut next = next_reading(log)?;
    while next < readings {
        let end = readings.min(next + 8);
        let reading = |n: u64| {
            let headers = Headers::default().produced_by("plc-7", n);
            NewEvent::new(1_700_000_000_000, n.to_string()).with(headers)
        };
        log.append(&stream, &(next..end).map(reading).collect::<Vec<_>>())?;
        next = end;
    }
    Ok(())
}

fn main() -> Result<(), Failure> {
    let mut args = std::env::args().skip(1);
    let folder = tempfile::tempdir()?;
    let dir = args
        .next()
        .map_or_else(|| folder.path().to_owned(), PathBuf::from);
    let readings = args.next().map_or(Ok(1_000), |text| text.parse())?;
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(gemba_segment::RealDisk);
    let (log, _) = Log::open(disk, &dir.join("log"), Config::default(), signer)?;
    thread::scope(|scope| {
        let plc = scope.spawn(|| produce(&log, readings));
        sink(&log, &dir, readings)?;
        plc.join().map_err(|_| "the PLC died")?
    })
}
