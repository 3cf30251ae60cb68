//! Enriching, step by step: raw values of a PLC get a name, named values get a type and a unit. Two small services, each reading one stream and writing the next;
//! both are killed in the middle, and each value is in each stream once. What has no name becomes a dead letter, and the rest goes on.
#![allow(clippy::print_stdout)]

use gemba_log::{
    Config, Log, MemorySigner, NewEvent, Pattern, StreamName,
    consume::{Consumer, Refusal, Step, Takeover},
    core::{
        consumer::{Config as ConsumerConfig, ConsumerName, Worker},
        dead::{Letters, Record},
    },
    store::RedbStore,
};
use std::{error::Error, path::Path, sync::Arc, time::Instant};

/// From the stream and the text of an event: the stream and the text of the one that it becomes.
type Service = fn(&str, &str) -> Result<(StreamName, String), Refusal>;

/// Which word of the PLC is what. It comes from the plan of the machine.
fn name(_stream: &str, raw: &str) -> Result<(StreamName, String), Refusal> {
    let (address, value) = raw.split_once(' ').ok_or("a raw value is ADDRESS VALUE")?;
    let name = match address {
        "DB1.W4" => "temperature",
        "DB1.W6" => "speed",
        other => return Err(format!("{other} has no name").into()),
    };
    Ok((format!("named/press-7/{name}").parse()?, value.to_owned()))
}

/// What a name means.
fn typed(stream: &str, value: &str) -> Result<(StreamName, String), Refusal> {
    let value: f64 = value.parse()?;
    let (name, text) = match stream.rsplit('/').next() {
        Some("temperature") => ("temperature", format!("{:.1} °C", value / 10.0)),
        _ => ("speed", format!("{value} 1/min")),
    };
    Ok((format!("typed/press-7/{name}").parse()?, text))
}

/// One life of a service: some portions, then it is gone without a word. Whether there is more to do.
fn life(
    log: &Log,
    dir: &Path,
    of: (&str, &str, Service),
    portions: usize,
) -> Result<bool, Box<dyn Error>> {
    let (consumer, pattern, service) = of;
    let start = Instant::now();
    let mut config = ConsumerConfig::new(ConsumerName::new(consumer)?, vec![pattern.parse()?]);
    (config.batch, config.attempts) = (10, 1);
    let store = RedbStore::open(&dir.join(consumer))?;
    let takeover = Takeover::Continue;
    let consumer = Consumer::open(log, store, log.author(), config, takeover, start.elapsed())?;
    for _ in 0..portions {
        let step = consumer.step(Worker(1), start.elapsed(), |delivery, tx| {
            let text = std::str::from_utf8(&delivery.event.payload)?;
            let (stream, text) = service(delivery.id.feed.stream.as_str(), text)?;
            tx.emit(stream, NewEvent::new(delivery.event.time, text));
            Ok(())
        })?;
        if let Step::Idle(_) = step {
            return Ok(false);
        }
    }
    Ok(true)
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(gemba_segment::RealDisk);
    let (log, _) = Log::open(disk, &dir.path().join("log"), Config::default(), signer)?;
    let raw = (0..100).map(|n| match n % 10 {
        7 => format!("DB9.W0 {n}"),
        n if n % 2 == 0 => format!("DB1.W4 {}", 200 + n),
        n => format!("DB1.W6 {}", 1_000 + n),
    });
    let raw: Vec<NewEvent> = raw
        .zip(1_700_000_000_000..)
        .map(|(text, time)| NewEvent::new(time, text))
        .collect();
    log.append(&"raw/plc-7".parse()?, &raw)?;
    for of in [
        ("namer", "raw/#", name as Service),
        ("typer", "named/#", typed),
    ] {
        while life(&log, dir.path(), of, 3)? {}
    }
    for pattern in ["named/#", "typed/#"] {
        let pattern: Pattern = pattern.parse()?;
        for feed in log.feeds(&pattern) {
            let events = log.read(&feed, 0, 1_000)?;
            println!("{} events in {}", events.len(), feed.stream);
        }
    }
    // A service that was killed between a letter and its own place wrote the letter twice: they are counted by event.
    let mut letters = Letters::new(1_000);
    for feed in log.feeds(&"$dead/namer/#".parse()?) {
        for event in log.read(&feed, 0, 1_000)? {
            letters.apply(Record::decode(&event.payload)?);
        }
    }
    println!("{} dead letters of namer", letters.len());
    let last = log.feeds(&"typed/press-7/temperature".parse()?);
    let last = log
        .read(&last[0], 0, 1_000)?
        .pop()
        .ok_or("nothing came out")?;
    println!("{}", String::from_utf8_lossy(&last.payload));
    Ok(())
}
