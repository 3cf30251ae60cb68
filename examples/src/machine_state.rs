//! Machine state from raw signals: a consumer turns what a PLC says (`light`, `motor`, `fault`) into the states of the machine, and writes each change to a
//! stream of its own. State, place and what is written are one transaction: however often the program is killed, every change is there once.
#![allow(clippy::print_stdout)]

use gemba_log::{
    Config, Log, MemorySigner, NewEvent, StreamName,
    consume::{Consumer, Step, Takeover},
    core::consumer::{Config as ConsumerConfig, ConsumerName, Worker},
    store::{KeyValue as _, RedbStore},
};
use std::{error::Error, path::Path, sync::Arc, time::Instant};

/// The states, from the last signal of each kind.
fn state(motor: bool, fault: bool) -> &'static str {
    match (motor, fault) {
        (_, true) => "fault",
        (true, false) => "running",
        (false, false) => "idle",
    }
}

/// One life of the program: it works through some portions, and is gone without a word.
fn life(log: &Log, dir: &Path, portions: usize) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut config = ConsumerConfig::new(ConsumerName::new("state")?, vec!["+/+/signals".parse()?]);
    config.batch = 16;
    let store = RedbStore::open(&dir.join("state.redb"))?;
    let takeover = Takeover::Continue;
    let consumer = Consumer::open(log, store, log.author(), config, takeover, start.elapsed())?;
    for _ in 0..portions {
        let step = consumer.step(Worker(1), start.elapsed(), |delivery, tx| {
            let machine = delivery
                .id
                .feed
                .stream
                .as_str()
                .trim_end_matches("/signals");
            let text = std::str::from_utf8(&delivery.event.payload)?;
            let (signal, value) = text.split_once('=').ok_or("a signal is name=0 or name=1")?;
            tx.put(format!("{machine} {signal}").as_bytes(), value.as_bytes())?;
            let mut is_on = |signal: &str| {
                let value = tx.get(format!("{machine} {signal}").as_bytes())?;
                Ok::<_, gemba_log::store::StateError>(value.as_deref() == Some(b"1"))
            };
            let now = state(is_on("motor")?, is_on("fault")?);
            let before = tx.get(machine.as_bytes())?;
            if before.as_deref() != Some(now.as_bytes()) {
                tx.put(machine.as_bytes(), now.as_bytes())?;
                let stream: StreamName = format!("{machine}/state").parse()?;
                tx.emit(stream, NewEvent::new(delivery.event.time, now));
            }
            Ok(())
        })?;
        if let Step::Idle(_) = step {
            break;
        }
    }
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    let dir = tempfile::tempdir()?;
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(gemba_segment::RealDisk);
    let (log, _) = Log::open(disk, &dir.path().join("log"), Config::default(), signer)?;
    // Ten shifts of a press: it starts, has a fault, is mended, goes on, and stops; the light barrier says nothing of states.
    let shift = [
        "motor=1", "light=1", "light=0", "fault=1", "light=1", "fault=0", "motor=0",
    ];
    let signals: Vec<NewEvent> = (0..10)
        .flat_map(|_| shift)
        .zip(1_700_000_000_000..)
        .map(|(signal, time)| NewEvent::new(time, signal))
        .collect();
    log.append(&"hall-1/press-7/signals".parse()?, &signals)?;
    for portions in [1, 2, 1, 100] {
        life(&log, dir.path(), portions)?;
    }
    let states = log.feeds(&"hall-1/press-7/state".parse()?);
    for event in log.read(&states[0], 0, 1_000)? {
        println!("{}", String::from_utf8_lossy(&event.payload));
    }
    Ok(())
}
