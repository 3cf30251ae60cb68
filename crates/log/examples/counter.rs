//! Counts pieces, once each, whatever crashes: total and offset are one transaction. Nothing here tries anything again.
//!
//! `cargo run -p gemba-log --features redb,sim --example counter`

use gemba_log::{
    NewEvent, StreamName,
    consume::{Consumer, LogSink, Step, Takeover},
    core::consumer::{Config, ConsumerName, Worker},
    sim::MemoryLog,
    store::{KeyValue, RedbStore, StateStore},
};
use std::{error::Error, thread, time::Instant};

#[allow(clippy::print_stdout, reason = "it is a program for a terminal")]
fn main() -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let dir = tempfile::tempdir()?;

    // A log with a light barrier that writes to it; a real program takes the node's.
    let log = MemoryLog::new([7; 32]);
    let stream: StreamName = "hall/line-1/press/pieces".parse()?;
    log.append(&stream, vec![NewEvent::new(0, &b"1"[..]); 10_000])?;

    let config = Config::new(
        ConsumerName::new("counter")?,
        vec!["hall/+/press/pieces".parse()?],
    );
    let store = RedbStore::open(&dir.path().join("counter.redb"))?;
    let consumer = Consumer::open(
        &log,
        store,
        log.author(),
        config,
        Takeover::Continue,
        start.elapsed(),
    )?;
    while consumer.behind() > 0 {
        let step = consumer.step(Worker(1), start.elapsed(), |delivery, tx| {
            let pieces: u64 = std::str::from_utf8(&delivery.event.payload)?.parse()?;
            tx.add(b"pieces", pieces)?;
            Ok(())
        })?;
        if let Step::Idle(Some(until)) = step {
            thread::sleep(until.saturating_sub(start.elapsed()));
        }
    }
    println!("{} pieces", consumer.store().begin()?.count(b"pieces")?);
    Ok(())
}
