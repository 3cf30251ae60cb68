//! What it costs to work through events with effect once, how long an event takes from its publication until it is handled, and how fast a new
//! device catches up.
//!
//! `cargo bench -p gemba-benches --bench log` measures all of it, `-- effect`, `-- handled`, `-- catchup` a part. The last two need the release program
//! beside it (`cargo build --release --bin gemba`) or one named by `GEMBA_BIN`. Appends and replay of the crate alone are measured by its
//! example `appends`.
//!
//! - `effect`: a consumer counts 200,000 events of 200 bytes on a real disk, in memory of its own (at least once) and in the transaction of its
//!   offset (effect once), in turns; then with an acknowledgement for each event instead of one for a thousand.
//! - `handled`: an event is posted to a daemon, and a worker of a consumer, which waits in a claim, has it: at the same daemon that knows nobody,
//!   and at another one on loopback.
//! - `catchup`: a daemon that was never there before meets one with a million events.
//!
//! Ends with an error when a bound of docs/limits is passed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::collections::HashMap;
use std::io::Write as _;
use std::path::Path;
use std::process::{ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use data_encoding::BASE64;
use gemba_benches::daemon::{Daemon, binary};
use gemba_benches::{Bound, percentile, scenario};
use gemba_log::consume::{Consumer, Step, Takeover};
use gemba_log::core::consumer::{Config as ConsumerConfig, ConsumerName, Worker};
use gemba_log::store::{KeyValue as _, RedbStore, StateStore as _};
use gemba_log::{Config, Log, MemorySigner, NewEvent, StreamName};
use gemba_pnet::SwarmKey;
use gemba_segment::RealDisk;
use serde_json::{Value, json};

const EVENT: usize = 200;
const MACHINES: u64 = 40;
const COUNTED: u64 = 200_000;
/// Acknowledged one by one: fewer, since each takes a flush.
const ONE_BY_ONE: u64 = 2_000;
const TURNS: usize = 5;
const TOGETHER: u64 = 1_000;
const MOST_EFFECT_ONCE: f64 = 1.2;
const LEAST_FOR_A_THOUSAND: f64 = 5.0;
const ROUNDS: u64 = 1_000;
const PAUSE: Duration = Duration::from_millis(10);
const MOST_HANDLED_HERE: Duration = Duration::from_millis(10);
const MOST_HANDLED_THERE: Duration = Duration::from_millis(20);
const CAUGHT_UP: u64 = 1_000_000;
const LEAST_CATCH_UP: f64 = 200_000.0;
const STREAM: &str = "hamburg/line-1/press";
/// [`STREAM`] as a part of a path.
const ENCODED: &str = "hamburg%2Fline-1%2Fpress";

fn main() -> ExitCode {
    scenario(
        Path::to_owned,
        &[
            ("effect", |home| effect(home)),
            ("handled", |home| handled(home)),
            ("catchup", |home| caught_up(home)),
        ],
    )
}

// --- effect once

/// Where a worker keeps what it counts.
#[derive(Clone, Copy, PartialEq)]
enum Effect {
    /// In its memory: what was handled and not acknowledged is counted again after a crash.
    Memory,
    /// In the transaction of its offset.
    Transaction,
}

fn effect(home: &Path) -> Vec<Bound> {
    let log = filled(&home.join("counted"), COUNTED);
    let (mut least, mut once) = (Vec::new(), Vec::new());
    for turn in 0..TURNS {
        for (effect, times) in [
            (Effect::Memory, &mut least),
            (Effect::Transaction, &mut once),
        ] {
            let file = home.join(format!("{turn}-{}", effect as u8));
            times.push(count(&log, &file, effect, TOGETHER as u32, COUNTED));
        }
    }
    let short = filled(&home.join("one-by-one"), ONE_BY_ONE);
    let mut single: Vec<Duration> = (0..TURNS)
        .map(|turn| {
            let file = home.join(format!("single-{turn}"));
            count(&short, &file, Effect::Transaction, 1, ONE_BY_ONE)
        })
        .collect();
    let cost = percentile(&mut once, 50).as_secs_f64() / percentile(&mut least, 50).as_secs_f64();
    let thousand = COUNTED as f64 / percentile(&mut once, 50).as_secs_f64();
    let one = ONE_BY_ONE as f64 / percentile(&mut single, 50).as_secs_f64();
    println!(
        "{COUNTED} events counted, {TOGETHER} an acknowledgement: at least once {:?}, effect once {:?}: {cost:.3} of it ({TURNS} turns, the middle ones)",
        percentile(&mut least, 50),
        percentile(&mut once, 50)
    );
    println!(
        "effect once, {TOGETHER} an acknowledgement: {thousand:.0}/s; one an acknowledgement: {one:.0}/s; {:.1} times as many",
        thousand / one
    );
    vec![
        (
            cost < MOST_EFFECT_ONCE,
            "effect once costs 20 % or more over at least once",
        ),
        (
            thousand / one >= LEAST_FOR_A_THOUSAND,
            "an acknowledgement for a thousand is less than 5 times as fast as one for each",
        ),
    ]
}

fn filled(dir: &Path, events: u64) -> Arc<Log> {
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let (log, _) = Log::open(Arc::new(RealDisk), dir, Config::default(), signer).unwrap();
    let stream: StreamName = STREAM.parse().unwrap();
    for first in (0..events).step_by(TOGETHER as usize) {
        let last = (first + TOGETHER).min(events);
        let list: Vec<_> = (first..last)
            .map(|i| NewEvent::new(0, payload(i).into_bytes()))
            .collect();
        log.append(&stream, &list).unwrap();
    }
    Arc::new(log)
}

/// How long one worker takes for all events, from the start.
fn count(log: &Arc<Log>, file: &Path, effect: Effect, batch: u32, events: u64) -> Duration {
    let mut config = ConsumerConfig::new(
        ConsumerName::new("counter").unwrap(),
        vec![STREAM.parse().unwrap()],
    );
    config.batch = batch;
    let store = RedbStore::open(file).unwrap();
    let begun = Instant::now();
    let consumer = Consumer::open(
        Arc::clone(log),
        store,
        log.author(),
        config,
        Takeover::Continue,
        begun.elapsed(),
    )
    .unwrap();
    let mut counted: HashMap<Vec<u8>, u64> = HashMap::new();
    while consumer.behind() > 0 {
        let step = consumer.step(Worker(1), begun.elapsed(), |delivery, tx| {
            // The machine's name, which is what is counted by.
            let machine = &delivery.event.payload[25..33];
            match effect {
                Effect::Memory => *counted.entry(machine.to_vec()).or_default() += 1,
                Effect::Transaction => drop(tx.add(machine, 1)?),
            }
            Ok(())
        });
        if let Step::Idle(until) = step.unwrap() {
            panic!(
                "{} events are behind, and nothing to do until {until:?}",
                consumer.behind()
            );
        }
    }
    let took = begun.elapsed();
    let mut tx = consumer.store().begin().unwrap();
    let total: u64 = match effect {
        Effect::Memory => counted.values().sum(),
        Effect::Transaction => (0..MACHINES)
            .map(|n| tx.count(format!("press-{n:02}").as_bytes()).unwrap())
            .sum(),
    };
    assert_eq!(total, events, "each event once");
    took
}

/// 200 bytes as machines write them: half of it a text that repeats, half of it noise.
fn payload(i: u64) -> String {
    let mut text = format!(
        "{{\"line\":\"h-1\",\"machine\":\"press-{:02}\",\"count\":{i},\"id\":\"",
        i % MACHINES
    );
    let mut noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while text.len() < EVENT - 2 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        text.push(char::from(b'a' + (noise % 26) as u8));
    }
    text.push_str("\"}");
    text
}

// --- from publication to its handling

fn handled(home: &Path) -> Vec<Bound> {
    let key = SwarmKey::from_bytes([7; 32]);
    let binary = binary();
    let here = Daemon::start(&binary, home, "here", &key);
    let mut alone = rounds(&here, &Claims::start(&here));
    let there = Daemon::start(&binary, home, "there", &key);
    there.gemba(&["connect", &here.address()]);
    let mut other = rounds(&here, &Claims::start(&there));
    let (alone_p99, other_p99) = (percentile(&mut alone, 99), percentile(&mut other, 99));
    println!(
        "posted until the worker has it, at a daemon that knows nobody: p50 {:?}, p99 {alone_p99:?}, at most {:?}; of {ROUNDS}",
        percentile(&mut alone, 50),
        alone[alone.len() - 1]
    );
    println!(
        "at another daemon on loopback: p50 {:?}, p99 {other_p99:?}, at most {:?}; of {ROUNDS}",
        percentile(&mut other, 50),
        other[other.len() - 1]
    );
    vec![
        (
            alone_p99 < MOST_HANDLED_HERE,
            "an event is handled on the same node later than 10 ms",
        ),
        (
            other_p99 < MOST_HANDLED_THERE,
            "an event is handled on another node later than 20 ms",
        ),
    ]
}

/// Posts one event after the other; how long each took until the worker had it. The first two are not counted: with them streams and feeds come to be.
fn rounds(publisher: &Daemon, claims: &Claims) -> Vec<Duration> {
    let mut took: Vec<Duration> = (0..ROUNDS + 2)
        .map(|round| {
            std::thread::sleep(PAUSE);
            let text = format!("{:?} {round}", claims.name);
            let begun = Instant::now();
            let answer = publisher.post(&format!("/v1/streams/{ENCODED}/events?whole=true"), &text);
            assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
            claims.until(&text) - begun
        })
        .collect();
    took.drain(..2);
    took
}

/// A worker that claims and acknowledges, and says when it had which event.
struct Claims {
    name: String,
    had: Receiver<(Instant, String)>,
    end: Arc<AtomicBool>,
    worker: Option<JoinHandle<()>>,
}

impl Claims {
    fn start(daemon: &Daemon) -> Self {
        let name = format!("worker-at-{}", daemon.id());
        let (tell, had) = sync_channel(4096);
        let (client, path) = (daemon.client(), format!("/v1/consumers/{name}"));
        let end = Arc::new(AtomicBool::new(false));
        let ends = Arc::clone(&end);
        let worker = std::thread::spawn(move || {
            let claim =
                json!({ "worker": 1, "streams": [STREAM], "start": "tail", "wait_ms": 500 })
                    .to_string();
            while !ends.load(Ordering::Relaxed) {
                let answer = client.post(&format!("{path}/claim"), &claim);
                let now = Instant::now();
                let claimed = body(&answer);
                let events = claimed["events"].as_array().unwrap();
                for event in events {
                    let data = BASE64.decode(event["data"].as_str().unwrap().as_bytes());
                    let text = String::from_utf8(data.unwrap()).unwrap();
                    let _nobody_listens = tell.send((now, text));
                }
                if let Some(last) = events.last() {
                    let ack = json!({ "token": claimed["token"], "seq": last["seq"] });
                    let answer = client.post(&format!("{path}/ack"), &ack.to_string());
                    assert!(answer.starts_with(b"HTTP/1.1 200"), "{answer:?}");
                }
            }
        });
        // Until it waits at the tail.
        std::thread::sleep(Duration::from_secs(1));
        Self {
            name,
            had,
            end,
            worker: Some(worker),
        }
    }

    fn until(&self, text: &str) -> Instant {
        loop {
            let (at, had) = self.had.recv_timeout(Duration::from_secs(20)).unwrap();
            if had == text {
                return at;
            }
        }
    }
}

/// Ends before its daemon does.
impl Drop for Claims {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        let _ended = self.worker.take().map(JoinHandle::join);
    }
}

/// The JSON of an answer.
fn body(answer: &[u8]) -> Value {
    let text = String::from_utf8_lossy(answer);
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{text}");
    serde_json::from_str(body).unwrap()
}

// --- a new device

fn caught_up(home: &Path) -> Vec<Bound> {
    let key = SwarmKey::from_bytes([7; 32]);
    let binary = binary();
    let old = Daemon::start(&binary, home, "old", &key);
    append_many(&old);
    let new = Daemon::start(&binary, home, "new", &key);
    let (cpu_old, cpu_new) = (cpu_of(&old), cpu_of(&new));
    let begun = Instant::now();
    new.gemba(&["connect", &old.address()]);
    let give_up = begun + Duration::from_secs(300);
    while events_at(&new) < CAUGHT_UP {
        assert!(Instant::now() < give_up, "it does not catch up");
        std::thread::sleep(Duration::from_millis(20));
    }
    let took = begun.elapsed();
    let rate = CAUGHT_UP as f64 / took.as_secs_f64();
    println!(
        "{CAUGHT_UP} events of {EVENT} bytes, from the call that connects until the new device has them: {took:?}, {rate:.0}/s; processor time {:?} old, {:?} new; most memory {} and {} MiB",
        cpu_of(&old) - cpu_old,
        cpu_of(&new) - cpu_new,
        old.peak() >> 20,
        new.peak() >> 20
    );
    vec![(
        rate >= LEAST_CATCH_UP,
        "a new device catches up with fewer than 200,000 events a second",
    )]
}

fn append_many(daemon: &Daemon) {
    let mut append = daemon.command(&["log", "append", STREAM]);
    append.stdin(Stdio::piped()).stdout(Stdio::null());
    let mut append = append.spawn().unwrap();
    let mut input = std::io::BufWriter::new(append.stdin.take().unwrap());
    for i in 0..CAUGHT_UP {
        writeln!(input, "{}", payload(i)).unwrap();
    }
    drop(input);
    assert!(append.wait().unwrap().success());
    assert_eq!(events_at(daemon), CAUGHT_UP);
}

fn events_at(daemon: &Daemon) -> u64 {
    let answer = daemon.http("/v1/streams", 10_000);
    let text = String::from_utf8_lossy(&answer);
    let (_, lines) = text.split_once("\r\n\r\n").unwrap();
    let lines = lines.lines().filter(|line| line.starts_with('{'));
    let lines = lines.map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["stream"] == STREAM)
        .map(|line| line["events"].as_u64().unwrap())
        .sum()
}

fn cpu_of(daemon: &Daemon) -> Duration {
    gemba_benches::daemon::cpu(daemon.id())
}
