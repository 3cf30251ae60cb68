//! Durable puts in batches of 64, beside what the same disk gives a program that only writes and syncs the same bytes; and what
//! opening a million blocks costs after a kill, in time and memory: in processes of their own, which really die; and how long puts
//! take while garbage is collected.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use gemba_store::{Aim, Config, Key, Store};

const BATCH: usize = 64;

fn puts(c: &mut Criterion) {
    for size in [256 * 1024, 1024] {
        let mut group = c.benchmark_group(format!("durable batch of {BATCH} × {size} bytes"));
        group
            .throughput(Throughput::Bytes((BATCH * size) as u64))
            .sample_size(30);
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), Config::default()).unwrap();
        let mut salt = 0;
        group.bench_function("gemba-store", |b| {
            let fresh = || {
                salt += 1;
                gemba_benches::blocks(BATCH, size, salt)
            };
            b.iter_batched(
                fresh,
                |blocks| store.put_many(&blocks).unwrap(),
                BatchSize::LargeInput,
            );
        });
        let mut raw = OpenOptions::new()
            .create(true)
            .append(true)
            .open(dir.path().join("raw"))
            .unwrap();
        let bytes = gemba_benches::bytes(BATCH * size);
        group.bench_function("raw write and fdatasync", |b| {
            b.iter(|| {
                raw.write_all(&bytes).unwrap();
                raw.sync_data().unwrap();
            });
        });
        group.finish();
    }
}

/// Blocks of the large store.
const MANY: u64 = 1_000_000;
/// Tells a process of this program that it is one of those that die, and in which folder.
const CHILD: &str = "GEMBA_BENCH_STORE";

/// Small blocks, so that all of them stand in few packs and the most has to be read; goals 2 s and 128 MiB.
fn opens(c: &mut Criterion) {
    let mut group = c.benchmark_group("open 1 M blocks after a kill");
    group.sample_size(10);
    for size in [128, 1024] {
        let dir = tempfile::tempdir().unwrap();
        child("fill", dir.path(), size);
        let mut peak = 0;
        group.bench_function(format!("{size} bytes each"), |b| {
            b.iter_custom(|times| {
                let mut total = Duration::ZERO;
                for _ in 0..times {
                    let (took, rss) = child("open", dir.path(), size);
                    total += took;
                    peak = peak.max(rss);
                }
                total
            });
        });
        println!("{size} bytes each: at most {peak} KiB resident\n");
    }
    group.finish();
}

/// Runs a process that fills or opens the store and dies; how long that took, and the most memory it held, in KiB.
fn child(what: &str, dir: &Path, size: usize) -> (Duration, u64) {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{what} {size} {}", dir.display()))
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap());
    let nanos = numbers.next().unwrap();
    (Duration::from_nanos(nanos), numbers.next().unwrap())
}

/// What such a process does.
fn live_and_die(order: &str) -> ! {
    let mut words = order.splitn(3, ' ');
    let (what, size) = (words.next().unwrap(), words.next().unwrap());
    let (size, dir) = (size.parse().unwrap(), words.next().unwrap());
    let started = Instant::now();
    let store = Store::open(dir, Config::default()).unwrap();
    if what == "fill" {
        for salt in 0..MANY / 10_000 {
            store
                .put_many(&gemba_benches::blocks(10_000, size, salt))
                .unwrap();
        }
    }
    let took = started.elapsed();
    assert_eq!(store.stat().blocks, MANY);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.map_or("0", |rest| rest.trim().trim_end_matches(" kB"));
    println!("{} {peak}", took.as_nanos());
    // Nothing is closed in order, as with a kill.
    std::process::abort();
}

/// Blocks before a collection; half of them are garbage, in every pack.
const BEFORE: u64 = 200_000;

/// How long a durable put of one small block takes while nothing else goes on, while garbage is collected, and while packs are copied
/// for its space; goal for the 99th of a hundred: twice the first. Both go on without a pause here, which no owner would ask for.
fn collections(_: &mut Criterion) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default().pack_bytes(16 << 20)).unwrap();
    for salt in 0..BEFORE / 10_000 {
        store
            .put_many(&gemba_benches::blocks(10_000, 1024, salt))
            .unwrap();
    }
    let idle = put_for(&store, 1 << 32, || true, 3000);
    println!("put of 1 KiB: 99 of 100 within {idle:?} beside nothing");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let collector = scope.spawn(|| {
            let started = Instant::now();
            let collection = store.collect().unwrap();
            let mut keys = store.keys();
            while let Some(page) = keys.next_page(1000).unwrap() {
                let even = |key: &&Key| key.cid.hash().digest()[0] % 2 == 0;
                for key in page.iter().filter(even) {
                    collection.mark(&key.cid);
                }
            }
            let mut sweep = collection.sweep();
            while !sweep.step(512).unwrap().done {}
            drop(sweep);
            over.store(true, Ordering::SeqCst);
            started.elapsed()
        });
        let busy = put_for(&store, 2 << 32, || !over.load(Ordering::SeqCst), usize::MAX);
        let took = collector.join().unwrap();
        println!("… within {busy:?} while half of {BEFORE} blocks are collected, in {took:?}");
        over.store(false, Ordering::SeqCst);
        let compactor = scope.spawn(|| {
            let started = Instant::now();
            let aim = Aim::default().budget(256 << 10).below(60);
            while !store.compact_step(&aim).unwrap().idle {}
            over.store(true, Ordering::SeqCst);
            started.elapsed()
        });
        let busy = put_for(&store, 3 << 32, || !over.load(Ordering::SeqCst), usize::MAX);
        let took = compactor.join().unwrap();
        println!("… within {busy:?} while they are compacted, in {took:?}\n");
    });
}

/// Puts single blocks as long as told to; what 99 of 100 took at most.
fn put_for(store: &Store, salt: u64, go_on: impl Fn() -> bool, most: usize) -> Duration {
    let mut times = Vec::new();
    while go_on() && times.len() < most {
        let block = gemba_benches::blocks(1, 1024, salt + times.len() as u64);
        let started = Instant::now();
        store.put_many(&block).unwrap();
        times.push(started.elapsed());
    }
    times.sort_unstable();
    times
        .get(times.len() * 99 / 100)
        .copied()
        .unwrap_or_default()
}

criterion_group!(benches, puts, opens, collections);

fn main() {
    match std::env::var(CHILD) {
        Ok(order) => live_and_die(&order),
        Err(_) => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
