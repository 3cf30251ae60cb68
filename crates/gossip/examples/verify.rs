//! What it costs to check a signature, with a table of its author and without, alone and eight at a time; to make a table; and to sign. Prints
//! microseconds, the best of several rounds: what else runs on the machine only takes away. Figures are in docs/decisions/016.
//!
//! `cargo run --release -p gemba-gossip --example verify`
#![allow(clippy::print_stdout)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use bytes::Bytes;
use gemba_gossip::wire::{Author, Keys, Open, Tables, VerifyJob, VerifyOutcome};
use gemba_gossip::{Config, Core, Input, Mode, Output, Seen, Topic};
use libp2p_identity::Keypair;

const ROUNDS: usize = 60;
const MESSAGES: usize = 256;

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let key = Keypair::generate_ed25519();
    let mut sign = Vec::new();
    for payload in [100, 1024] {
        let jobs = messages(&key, payload, &mut sign)?;
        println!("payload of {payload} bytes");
        let mut keys = Keys::default();
        assert!(
            jobs.iter()
                .all(|job| job.run_with(&mut keys) == VerifyOutcome::Good)
        );
        let due = keys.take_due().ok_or("nobody is due")?;
        let mut tables = Tables::default();
        let making = tables.reserve(due).ok_or("no place")?;
        let table = making.make().ok_or("no table")?;
        show("  without", MESSAGES, || {
            for job in &jobs {
                black_box(job.run_with(&mut keys));
            }
        });
        show("  by a table, alone", MESSAGES, || {
            for job in &jobs {
                let open = job.open(&table);
                black_box(open.map(|open| Open::close(&[open])));
            }
        });
        show("  by a table, eight together", MESSAGES, || {
            for eight in jobs.chunks(8) {
                let open: Vec<Open> = eight.iter().filter_map(|job| job.open(&table)).collect();
                black_box(Open::close(&open));
            }
        });
        show("  signed", MESSAGES, || {
            for job in &sign {
                let _ = black_box(job.run(&key));
            }
        });
        show("  a table, and that of the base", 1, || {
            black_box(making.make());
        });
        tables.fill(&making, Some(table));
        println!("  {} bytes of tables", tables.memory());
    }
    Ok(())
}

fn show(what: &str, count: usize, mut run: impl FnMut()) {
    let mut best = Duration::MAX;
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        run();
        best = best.min(begun.elapsed());
    }
    let micros = best.as_secs_f64() * 1e6 / count as f64;
    println!("{what:34} {micros:8.2} us");
}

/// Messages as an author publishes them.
fn messages(
    key: &Keypair,
    payload: usize,
    sign: &mut Vec<gemba_gossip::wire::SignJob>,
) -> Result<Vec<VerifyJob>, Failure> {
    let config = Config::default();
    let mut seen = Seen::new(config.seen(), [1; 32]);
    let mut core = Core::new(config, Some(Author::new(&key.public())), 1);
    let (topic, now) = (Topic::new("bench")?, Duration::ZERO);
    let (stored, wall_nanos) = (None, 1);
    core.handle(&mut seen, Input::SequenceLoaded { stored, wall_nanos }, now);
    let peer = Keypair::generate_ed25519().public().to_peer_id();
    let outbound = true;
    core.handle(&mut seen, Input::Connected { peer, outbound }, now);
    let mut reader = gemba_gossip::wire::Reader::new(seen.digester());
    let mut hello = gemba_gossip::wire::FrameBuilder::new();
    hello.subscription(&topic, true, 0);
    let hello = hello.finish(Duration::MAX).to_bytes();
    let (_, at) = gemba_gossip::wire::read_length(&hello)?.ok_or("short")?;
    let hello = hello.slice(at..);
    reader.scan(&hello)?;
    let source = seen.join(peer);
    reader.sight(&mut seen, source, now);
    let received = Box::new(reader.finish(&hello));
    let at = now;
    core.handle(&mut seen, Input::Received { peer, received, at }, now);
    sign.clear();
    let mut jobs = Vec::new();
    for n in 0..MESSAGES {
        let mut data = vec![7; payload];
        data[..8].copy_from_slice(&n.to_be_bytes());
        let wait = Mode::Hold(Duration::from_secs(60));
        core.publish(&mut seen, &topic, Bytes::from(data), wait, now)?;
        while let Some(output) = core.poll() {
            match output {
                Output::Reserve { upto } => {
                    core.handle(&mut seen, Input::SequenceReserved { upto }, now);
                }
                Output::Sign { publish, job } => {
                    let made = job.run(key)?;
                    jobs.push(VerifyJob {
                        message: made.message.clone(),
                    });
                    let result = Ok(made);
                    core.handle(&mut seen, Input::Signed { publish, result }, now);
                    sign.push(job);
                }
                _ => {}
            }
        }
    }
    match jobs.len() {
        MESSAGES => Ok(jobs),
        _ => Err("some were not signed".into()),
    }
}
