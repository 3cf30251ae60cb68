//! An order of the ERP in, counts out: an order says how many pieces a press is to make; the light barrier counts them; when they are made, the ERP is told,
//! once. Pieces that come before their order are refused, and come again by themselves: nothing here waits or tries again.
#![allow(clippy::print_stdout)]

use gemba_log::{
    Config, Log, MemorySigner, NewEvent,
    consume::{Consumer, Step, Takeover},
    core::consumer::{Config as ConsumerConfig, ConsumerName, Worker},
    store::{KeyValue as _, RedbStore},
};
use std::{error::Error, sync::Arc, thread, time::Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let (start, dir) = (Instant::now(), tempfile::tempdir()?);
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(gemba_segment::RealDisk);
    let (log, _) = Log::open(disk, &dir.path().join("log"), Config::default(), signer)?;
    let event = |text: &str| NewEvent::new(1_700_000_000_000, text.to_owned());
    log.append(&"hall-1/press-7/pieces".parse()?, &vec![event("1"); 70])?;
    // The network to the ERP was away: the order is here when 70 pieces of it are made already.
    let orders = "erp/orders".parse()?;
    log.append(&orders, &[event("A-17 press-7 100")])?;

    let patterns = vec!["erp/orders".parse()?, "hall-1/+/pieces".parse()?];
    let config = ConsumerConfig::new(ConsumerName::new("orders")?, patterns);
    let store = RedbStore::open(&dir.path().join("orders.redb"))?;
    let (author, takeover) = (log.author(), Takeover::Continue);
    let consumer = Consumer::open(&log, store, author, config, takeover, start.elapsed())?;
    let mut late = Some(vec![event("1"); 35]);
    loop {
        let step = consumer.step(Worker(1), start.elapsed(), |delivery, tx| {
            let text = std::str::from_utf8(&delivery.event.payload)?;
            if delivery.id.feed.stream.as_str() == "erp/orders" {
                let [_, machine, _] = text.split(' ').collect::<Vec<_>>()[..] else {
                    return Err("an order is NUMBER MACHINE PIECES".into());
                };
                tx.put(machine.as_bytes(), text.as_bytes())?;
                return Ok(());
            }
            let machine = delivery.id.feed.stream.levels().nth(1).unwrap_or_default();
            let order = tx.get(machine.as_bytes())?.ok_or("there is no order yet")?;
            let order = String::from_utf8(order)?;
            let pieces: u64 = order.rsplit(' ').next().unwrap_or_default().parse()?;
            let made = tx.add(format!("made {order}").as_bytes(), text.parse()?)?;
            if made == pieces {
                tx.emit(
                    "erp/done".parse()?,
                    NewEvent::new(delivery.event.time, order),
                );
            }
            Ok(())
        })?;
        if let Step::Idle(until) = step {
            match (until, late.take()) {
                // Refused pieces come again at this time.
                (Some(until), some) if consumer.lag().iter().any(|lag| lag.aside > 0) => {
                    late = some;
                    thread::sleep(until.saturating_sub(start.elapsed()));
                }
                (_, Some(pieces)) => drop(log.append(&"hall-1/press-7/pieces".parse()?, &pieces)?),
                (_, None) => break,
            }
        }
    }
    for feed in log.feeds(&"erp/done".parse()?) {
        for event in log.read(&feed, 0, 10)? {
            println!("done: {}", String::from_utf8_lossy(&event.payload));
        }
    }
    Ok(())
}
