//! What a log does in a second, and what it takes: prints one JSON object. Events have 200 bytes.
//!
//! `cargo run --release -p gemba-log --example appends [--only PART]… [--rounds N] [events] [folder]`; by default ten million events in a
//! temporary folder, which needs about 3 GB. Parts are `appends`, `large`, `fast` and `compression`, all without `--only`; `--rounds` is how
//! often appends are measured, twice without it. The program starts itself again for the figures of a start: one child is killed while it
//! writes, the next opens the log. `interop/log-beside` measures parts of it in turns with others.
#![allow(
    clippy::print_stdout,
    clippy::disallowed_methods,
    reason = "a program that measures"
)]

use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use gemba_log::{Bytes, Config, EventList, Log, MemorySigner, NewEvent, ReadCheck, StreamName};
use gemba_segment::RealDisk;
use serde_json::{Value, json};

type Failure = Box<dyn std::error::Error>;

const EVENT: usize = 200;
/// How long each rate is measured.
const TIME: Duration = Duration::from_secs(4);

fn main() -> Result<(), Failure> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.first().map(String::as_str) {
        Some("--write-until-killed") => return write_until_killed(Path::new(&arguments[1])),
        Some("--open") => return open_and_tell(Path::new(&arguments[1])),
        _ => {}
    }
    let Arguments {
        only,
        rounds,
        events,
        folder,
    } = Arguments::parse(arguments)?;
    let temporary = tempfile::tempdir()?;
    let dir = folder.unwrap_or_else(|| temporary.path().to_path_buf());
    let mut figures = json!({ "event_bytes": EVENT });
    for part in PARTS {
        if !only.is_empty() && !only.iter().any(|name| name == part) {
            continue;
        }
        let dir = dir.join(part);
        figures[part] = match part {
            "appends" => appends(&dir, rounds)?,
            "large" => large(&dir, events)?,
            "fast" => fast(&dir)?,
            _ => compression(&dir)?,
        };
    }
    println!("{figures:#}");
    Ok(())
}

/// What is measured, in this order.
const PARTS: [&str; 4] = ["appends", "large", "fast", "compression"];

struct Arguments {
    /// All parts if it is empty.
    only: Vec<String>,
    rounds: usize,
    events: u64,
    folder: Option<PathBuf>,
}

impl Arguments {
    fn parse(given: Vec<String>) -> Result<Self, Failure> {
        let mut parsed = Self {
            only: Vec::new(),
            rounds: 2,
            events: 10_000_000,
            folder: None,
        };
        let mut places = Vec::new();
        let mut given = given.into_iter();
        while let Some(word) = given.next() {
            let mut value = || given.next().ok_or(format!("{word} wants a value"));
            match word.as_str() {
                "--only" => parsed.only.push(value()?),
                "--rounds" => parsed.rounds = value()?.parse()?,
                flag if flag.starts_with('-') => return Err(format!("{flag} is not known").into()),
                _ => places.push(word),
            }
        }
        if let Some(name) = parsed.only.iter().find(|n| !PARTS.contains(&n.as_str())) {
            return Err(format!("{name} is no part: {}", PARTS.join(", ")).into());
        }
        let mut places = places.into_iter();
        if let Some(events) = places.next() {
            parsed.events = events.parse()?;
        }
        parsed.folder = places.next().map(PathBuf::from);
        match places.next() {
            Some(word) => Err(format!("{word} is one word too many").into()),
            None => Ok(parsed),
        }
    }
}

fn open(dir: &Path, config: Config) -> Result<Log, Failure> {
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    Ok(Log::open(Arc::new(RealDisk), dir, config, signer)?.0)
}

fn config() -> Config {
    Config::default().max_bytes(64 << 30)
}

/// An event as machines write them: half of it a text that repeats, half of it noise.
fn event(i: u64) -> NewEvent {
    let mut payload = format!("{{\"line\":\"hamburg-1\",\"machine\":\"press-{:02}\",\"count\":{i},\"state\":\"running\",\"id\":\"", i % 40).into_bytes();
    let mut noise = i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while payload.len() < EVENT - 2 {
        noise ^= noise << 13;
        noise ^= noise >> 7;
        noise ^= noise << 17;
        payload.push(b'a' + (noise % 26) as u8);
    }
    payload.extend_from_slice(b"\"}");
    NewEvent::new(1_700_000_000_000 + i as i64, Bytes::from(payload))
}

/// Durable appends with 1 and with 1,024 in flight, beside appends to a bare file with a flush each; one after the other, more than once, so
/// that a disk whose speed changes shows.
fn appends(dir: &Path, times: usize) -> Result<Value, Failure> {
    let stream: StreamName = "hamburg/line-1/press".parse()?;
    let mut rounds = Vec::new();
    for round in 0..times {
        let raw = raw_flushes(&dir.join(format!("raw-{round}")))?;
        let log = open(&dir.join(format!("one-{round}")), config())?;
        let one = rate(|i| {
            log.append(&stream, &[event(i)])?;
            Ok(1)
        })?;
        let log = open(&dir.join(format!("many-{round}")), config())?;
        // What 1,024 callers hand in while the last flush runs; half of them in another stream.
        let other: StreamName = "hamburg/line-2/press".parse()?;
        let many = rate(|i| {
            let lists = (0..1024).map(|n| {
                let stream = if n % 2 == 0 { &stream } else { &other };
                Ok((stream.clone(), EventList::of(&[event(i * 1024 + n)])?))
            });
            let lists: Result<Vec<_>, Failure> = lists.collect();
            for done in log.append_many(lists?) {
                done?;
            }
            Ok(1024)
        })?;
        let log = Arc::new(open(&dir.join(format!("threads-{round}")), config())?);
        rounds.push(json!({
            "raw_fdatasync_per_s": raw,
            "one_in_flight_per_s": one,
            "one_of_raw": one / raw,
            "1024_in_flight_per_s": many,
            "1024_threads_per_s": threads(&log, &stream, 1024)?,
        }));
    }
    Ok(rounds.into())
}

/// So many threads that wait for each of their appends.
fn threads(log: &Arc<Log>, stream: &StreamName, threads: u64) -> Result<f64, Failure> {
    let start = Instant::now();
    let running: Vec<_> = (0..threads)
        .map(|t| {
            let (log, stream) = (Arc::clone(log), stream.clone());
            std::thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || {
                    let mut done = 0;
                    while start.elapsed() < TIME {
                        log.append(&stream, &[event(t << 32 | done)])?;
                        done += 1;
                    }
                    Ok::<u64, gemba_log::LogError>(done)
                })
        })
        .collect();
    let mut total = 0;
    for thread in running {
        total += thread?.join().map_err(|_| "a thread died")??;
    }
    Ok(total as f64 / start.elapsed().as_secs_f64())
}

/// The fast class: 300 devices offer as fast as two threads can speak for them, while a third writes every millisecond what there is. What the disk cannot
/// take is dropped; all three rates are told, and making an event is in them. Memory is that of the program: the fast class has it to itself with `--only fast`.
fn fast(dir: &Path) -> Result<Value, Failure> {
    const DEVICES: u64 = 300;
    let log = open(dir, config())?;
    let streams: Result<Vec<StreamName>, _> = (0..DEVICES)
        .map(|n| format!("hamburg/device-{n}/state").parse())
        .collect();
    let streams = streams?;
    let start = Instant::now();
    let speak = || {
        let mut i = 0;
        while start.elapsed() < TIME {
            for stream in &streams {
                log.offer(stream, &event(i))?;
                i += 1;
            }
        }
        Ok::<(), gemba_log::LogError>(())
    };
    let write = || {
        while start.elapsed() < TIME {
            log.flush_fast()?;
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok::<(), gemba_log::LogError>(())
    };
    std::thread::scope(|scope| {
        let threads = [scope.spawn(write), scope.spawn(speak), scope.spawn(speak)];
        for thread in threads {
            thread.join().map_err(|_| "a thread died")??;
        }
        Ok::<(), Failure>(())
    })?;
    log.flush_fast()?;
    let (stat, seconds) = (log.stat(), start.elapsed().as_secs_f64());
    Ok(json!({
        "devices": DEVICES,
        "offered_per_s": stat.fast as f64 / seconds,
        "stored_per_s": (stat.fast - stat.fast_dropped) as f64 / seconds,
        "dropped_per_s": stat.fast_dropped as f64 / seconds,
        "rss_kib": rss_kib(),
    }))
}

fn raw_flushes(path: &Path) -> Result<f64, Failure> {
    if let Some(above) = path.parent() {
        std::fs::create_dir_all(above)?;
    }
    let mut file = std::fs::File::create(path)?;
    let bytes = vec![7; EVENT];
    rate(|_| {
        file.write_all(&bytes)?;
        file.sync_data()?;
        Ok(1)
    })
}

/// Events a second.
fn rate(mut step: impl FnMut(u64) -> Result<u64, Failure>) -> Result<f64, Failure> {
    let start = Instant::now();
    let (mut done, mut i) = (0, 0);
    while start.elapsed() < TIME {
        done += step(i)?;
        i += 1;
    }
    Ok(done as f64 / start.elapsed().as_secs_f64())
}

/// A large log: filling it, reading it cold, memory, and the start after a kill.
fn large(dir: &Path, events: u64) -> Result<Value, Failure> {
    const TOGETHER: u64 = 1024;
    let stream: StreamName = "hamburg/line-1/press".parse()?;
    let log = open(dir, config())?;
    let (start, before) = (Instant::now(), cpu_seconds());
    let mut i = 0;
    while i < events {
        let list: Vec<_> = (i..(i + TOGETHER).min(events)).map(event).collect();
        log.append(&stream, &list)?;
        i += list.len() as u64;
    }
    let filled = i as f64 / start.elapsed().as_secs_f64();
    let filled_cpu = i as f64 / (cpu_seconds() - before);
    let disk = log.stat().disk_bytes;
    let feed = log.heads().remove(0).feed;
    drop(log);
    forget_cache(dir)?;
    let log = open(dir, config())?;
    let raw = read_all(|| {
        let mut cursor = log.cursor(&feed, 0);
        let mut bytes = 0;
        while let Some(block) = cursor.next_block()? {
            bytes += block.len() as u64;
        }
        Ok(bytes)
    })?;
    drop(log);
    let mut decoded = Vec::new();
    for check in [ReadCheck::Crc, ReadCheck::Hash, ReadCheck::Signature] {
        forget_cache(dir)?;
        let log = open(dir, config().check(check))?;
        let (seconds, on_cpu, sum) = read_all(|| {
            let mut cursor = log.cursor(&feed, 0);
            let mut sum = 0;
            while let Some(batch) = cursor.next_batch()? {
                for event in batch.events() {
                    sum += event.payload.len() as u64;
                }
            }
            Ok(sum)
        })?;
        if sum != events * EVENT as u64 {
            return Err("not all events were read".into());
        }
        let row = json!({
            "per_s": events as f64 / seconds,
            "per_cpu_s": events as f64 / on_cpu,
        });
        decoded.push((format!("{check:?}"), row));
    }
    let killed = kill_a_writer(dir)?;
    forget_cache(dir)?;
    let start = start_of(dir)?;
    Ok(json!({
        "events": events,
        "filled_per_s": filled,
        "filled_per_cpu_s": filled_cpu,
        "disk_bytes": disk,
        "disk_of_payload": disk as f64 / (events * EVENT as u64) as f64,
        "replay_raw": { "per_s": events as f64 / raw.0, "per_cpu_s": events as f64 / raw.1 },
        "replay_decoded": decoded.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
        "events_when_killed": killed,
        "start_after_kill": start,
    }))
}

/// Seconds by the clock, seconds on a processor, and what was read.
fn read_all(read: impl FnOnce() -> Result<u64, Failure>) -> Result<(f64, f64, u64), Failure> {
    let (start, before) = (Instant::now(), cpu_seconds());
    let sum = read()?;
    Ok((start.elapsed().as_secs_f64(), cpu_seconds() - before, sum))
}

/// Seconds that this thread had a processor, as the kernel counts them: what a busy machine does not change. Not a number where it does not
/// tell.
fn cpu_seconds() -> f64 {
    let text = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    let first = text.split_whitespace().next();
    first
        .and_then(|text| text.parse::<f64>().ok())
        .map_or(f64::NAN, |ns| ns / 1e9)
}

/// Asks the kernel to forget what it has of the files, so that reading is cold; needs no rights.
fn forget_cache(dir: &Path) -> Result<(), Failure> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let _done = Command::new("dd")
            .arg(format!("if={}", path.display()))
            .args(["iflag=nocache", "count=0"])
            .stderr(Stdio::null())
            .status();
    }
    Ok(())
}

fn write_until_killed(dir: &Path) -> Result<(), Failure> {
    let log = open(dir, config())?;
    let stream: StreamName = "hamburg/line-1/press".parse()?;
    for i in 0.. {
        log.append(
            &stream,
            &(0..100).map(|n| event(i * 100 + n)).collect::<Vec<_>>(),
        )?;
        if i == 50 {
            println!("written");
            std::io::stdout().flush()?;
        }
    }
    Ok(())
}

fn kill_a_writer(dir: &Path) -> Result<u64, Failure> {
    let mut child = Command::new(std::env::current_exe()?)
        .arg("--write-until-killed")
        .arg(dir)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut byte = [0];
    if let Some(stdout) = &mut child.stdout {
        stdout.read_exact(&mut byte)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    child.kill()?;
    child.wait()?;
    Ok(50 * 100)
}

fn start_of(dir: &Path) -> Result<Value, Failure> {
    let output = Command::new(std::env::current_exe()?)
        .arg("--open")
        .arg(dir)
        .output()?;
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn open_and_tell(dir: &Path) -> Result<(), Failure> {
    let start = Instant::now();
    let log = open(dir, config())?;
    let opened = start.elapsed();
    let rss = rss_kib();
    let heads = log.heads();
    // Random reads all over it, and one pass over a part, as a daemon does.
    for n in 0..2_000_u64 {
        for head in &heads {
            log.read(
                &head.feed,
                n.wrapping_mul(0x9e37_79b9_7f4a_7c15) % head.next,
                1,
            )?;
        }
    }
    let mut cursor = log.cursor(&heads[0].feed, 0);
    for _ in 0..2_000 {
        let _ = cursor.next_batch()?;
    }
    println!(
        "{}",
        json!({
            "open_s": opened.as_secs_f64(),
            "rss_kib_after_open": rss,
            "rss_kib_after_reads": rss_kib(),
            "events": heads.iter().map(|head| head.next).sum::<u64>(),
            "clean": log.open_report().is_clean(),
        })
    );
    Ok(())
}

/// Resident memory as the kernel counts it; `None` where it does not tell so.
fn rss_kib() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Bytes on disk for a byte of payload, by how many events share a batch.
fn compression(dir: &Path) -> Result<Value, Failure> {
    let stream: StreamName = "hamburg/line-1/press".parse()?;
    let mut rows = Vec::new();
    for together in [1, 10, 100, 1000] {
        let mut row = json!({ "events_a_batch": together });
        for compress in [true, false] {
            let log = open(
                &dir.join(format!("{together}-{compress}")),
                config().compress(compress),
            )?;
            for i in 0..(4_000 / together).max(20) {
                let events: Vec<_> = (0..together).map(|n| event(i * together + n)).collect();
                log.append(&stream, &events)?;
            }
            let stat = log.stat();
            let ratio = stat.bytes as f64 / (stat.events * EVENT as u64) as f64;
            row[if compress { "compressed" } else { "plain" }] = ratio.into();
        }
        rows.push(row);
    }
    Ok(rows.into())
}
