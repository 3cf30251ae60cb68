//! Durable puts in batches of 64, beside what the same disk gives a program that only writes and syncs the same bytes; and what
//! opening a million blocks costs after a kill, with the lists at the ends of packs and without, in time and memory: in processes of
//! their own, which really die; and how long puts take while garbage is collected.
//!
//! Ends with an error when a bound of docs/limits, or of the rows S10 and S12, is passed.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group};
use gemba_store::{Aim, Config, Key, Pace, Store};

const BATCH: usize = 64;

/// Bounds that were passed.
static BROKEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes what is not so.
fn must(holds: bool, what: impl FnOnce() -> String) {
    if !holds {
        let mut broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
        broken.push(what());
    }
}

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

/// How long opening may take: as a kill leaves the store, and when every pack has to be walked.
const OPENS_WITHIN: Duration = Duration::from_secs(2);
const WALKED_WITHIN: Duration = Duration::from_secs(60);
/// What a process with the open store may hold, in KiB, and an entry of the index, in bytes.
const MOST_MEMORY: u64 = 128 << 10;
const MOST_INDEX: u64 = 64;

/// Small blocks, so that all of them stand in few packs and the most has to be read.
fn opens(c: &mut Criterion) {
    let mut group = c.benchmark_group("open 1 M blocks after a kill");
    group.sample_size(10);
    for size in [128, 1024] {
        let dir = tempfile::tempdir().unwrap();
        child("fill", dir.path(), size);
        let mut all = Vec::new();
        group.bench_function(format!("{size} bytes each"), |b| {
            b.iter_custom(|times| {
                let opened = (0..times).map(|_| child("open", dir.path(), size));
                let opened: Vec<Opened> = opened.collect();
                let took = opened.iter().map(|opened| opened.took).sum();
                all.extend(opened);
                took
            });
        });
        told(&format!("{size} bytes each"), &mut all, OPENS_WITHIN);
        let mut walked: Vec<Opened> = (0..3)
            .map(|_| {
                spoil_lists(dir.path());
                child("open", dir.path(), size)
            })
            .collect();
        told(
            &format!("{size} bytes each, every pack walked"),
            &mut walked,
            WALKED_WITHIN,
        );
    }
    group.finish();
}

/// Tells what opening took, and holds it against its bounds.
fn told(which: &str, all: &mut [Opened], within: Duration) {
    if all.is_empty() {
        return; // another bench was asked for
    }
    all.sort_by_key(|opened| opened.took);
    let (median, slowest) = (all[all.len() / 2].took, all[all.len() - 1].took);
    let peak = all.iter().map(|opened| opened.peak).max().unwrap_or(0);
    let index = all[0].index as f64 / MANY as f64;
    println!(
        "{which}: opened in {median:?}, at most {slowest:?}; at most {peak} KiB resident, {index:.1} bytes of index a block\n"
    );
    must(slowest <= within, || {
        format!("{which}: opened in {slowest:?}, not within {within:?}")
    });
    must(peak <= MOST_MEMORY, || {
        format!("{which}: {peak} KiB resident, not {MOST_MEMORY}")
    });
    must(all[0].index <= MOST_INDEX * MANY, || {
        format!("{which}: {index:.1} bytes of index a block")
    });
}

/// Turns the last byte of each pack that has a list of its blocks at its end, so that it is none, and the pack has to be walked. The last
/// pack has none yet, and ends with a block.
fn spoil_lists(dir: &Path) {
    let entries = std::fs::read_dir(dir).unwrap();
    let mut packs: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    packs.retain(|path| path.extension().is_some_and(|end| end == "pack"));
    packs.sort();
    packs.pop();
    for path in packs {
        let file = OpenOptions::new().read(true).write(true).open(&path);
        let file = file.unwrap();
        let at = file.metadata().unwrap().len() - 1;
        let mut last = [0];
        file.read_exact_at(&mut last, at).unwrap();
        file.write_all_at(&[!last[0]], at).unwrap();
    }
}

/// What a process told that opened the store.
struct Opened {
    took: Duration,
    /// The most memory it held, in KiB.
    peak: u64,
    /// Bytes of its index.
    index: u64,
}

/// Runs a process that fills or opens the store and dies.
fn child(what: &str, dir: &Path, size: usize) -> Opened {
    let output = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, format!("{what} {size} {}", dir.display()))
        .stderr(Stdio::inherit())
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let mut numbers = text.split_whitespace().map(|n| n.parse::<u64>().unwrap());
    let mut next = || numbers.next().unwrap();
    Opened {
        took: Duration::from_nanos(next()),
        peak: next(),
        index: next(),
    }
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
    let stat = store.stat();
    assert_eq!(stat.blocks, MANY);
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let peak = peak.map_or("0", |rest| rest.trim().trim_end_matches(" kB"));
    println!("{} {peak} {}", took.as_nanos(), stat.index_bytes);
    // Nothing is closed in order, as with a kill.
    std::process::abort();
}

/// Blocks before a collection; half of them are garbage, in every pack.
const BEFORE: u64 = 200_000;
/// Bytes a second at which the daemon collects and compacts when it needs room, counted as it counts them.
const DAEMON: u64 = 64 << 20;
/// How often each is measured; the median counts.
const TIMES: usize = 5;

/// How long a durable put of one small block takes while nothing else goes on, while garbage is collected, and while packs are copied
/// for its space: at the rate of the daemon, which is held to twice the first for the 99th of a hundred, and without a pause, as when a
/// person asks for it.
fn collections(_: &mut Criterion) {
    // The argument of `cargo bench … -- gc` or of another bench.
    let only = std::env::args().skip(1).find(|word| !word.starts_with('-'));
    if only.is_some_and(|only| !"gc".contains(&only)) {
        return;
    }
    for (how, rate) in [
        ("at the rate of the daemon", DAEMON),
        ("without a pause", u64::MAX),
    ] {
        let all: Vec<Slower> = (0..TIMES).map(|_| collected_once(rate)).collect();
        let median = |figure: fn(&Slower) -> Duration| {
            let mut all: Vec<Duration> = all.iter().map(figure).collect();
            all.sort_unstable();
            all[all.len() / 2]
        };
        let idle = median(|once| once.idle);
        println!("put of 1 KiB: 99 of 100 within {idle:?} beside nothing");
        for (what, busy, took) in [
            (
                "half of the blocks are collected",
                median(|once| once.collecting.0),
                median(|once| once.collecting.1),
            ),
            (
                "they are compacted",
                median(|once| once.compacting.0),
                median(|once| once.compacting.1),
            ),
        ] {
            let times = busy.as_secs_f64() / idle.as_secs_f64();
            println!("… within {busy:?} while {what} {how}, in {took:?}: {times:.2} times as long");
            must(rate != DAEMON || times <= 2.0, || {
                format!("puts take {times:.2} times as long while {what} {how}")
            });
        }
        println!();
    }
}

/// What 99 of 100 puts took at most, beside nothing and beside others; and what those others took.
struct Slower {
    idle: Duration,
    collecting: (Duration, Duration),
    compacting: (Duration, Duration),
}

fn collected_once(rate: u64) -> Slower {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default().pack_bytes(16 << 20)).unwrap();
    for salt in 0..BEFORE / 10_000 {
        store
            .put_many(&gemba_benches::blocks(10_000, 1024, salt))
            .unwrap();
    }
    let idle = put_for(&store, 1 << 32, || true, 3000);
    let collecting = beside(&store, 2 << 32, || {
        let collection = store.collect().unwrap();
        let mut keys = store.keys();
        while let Some(page) = keys.next_page(1000).unwrap() {
            let even = |key: &&Key| key.cid.hash().digest()[0] % 2 == 0;
            for key in page.iter().filter(even) {
                collection.mark(&key.cid);
            }
        }
        let mut sweep = collection.sweep();
        let mut pace = Paced::new(rate);
        loop {
            let step = sweep.step(256).unwrap();
            pace.spend(step.removed * 64);
            if step.done {
                return;
            }
        }
    });
    let compacting = beside(&store, 3 << 32, || {
        let aim = Aim::default().budget(256 << 10).below(60);
        let mut pace = Paced::new(rate);
        loop {
            let step = store.compact_step(&aim).unwrap();
            pace.spend(step.read + step.copied);
            if step.idle {
                return;
            }
        }
    });
    Slower {
        idle,
        collecting,
        compacting,
    }
}

/// Puts while `work` goes on on another thread; what 99 of 100 took at most, and what the work took.
fn beside(store: &Store, salt: u64, work: impl FnOnce() + Send) -> (Duration, Duration) {
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let started = Instant::now();
            work();
            is_over.store(true, Ordering::SeqCst);
            started.elapsed()
        });
        let busy = put_for(store, salt, || !is_over.load(Ordering::SeqCst), usize::MAX);
        (busy, worker.join().unwrap())
    })
}

/// Sleeps as long as a rate wants.
struct Paced {
    pace: Pace,
    begun: Instant,
}

impl Paced {
    fn new(rate: u64) -> Self {
        Self {
            pace: Pace::new(rate),
            begun: Instant::now(),
        }
    }

    fn spend(&mut self, bytes: u64) {
        self.pace.spend(bytes, self.begun.elapsed());
        std::thread::sleep(self.pace.due().saturating_sub(self.begun.elapsed()));
    }
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

fn main() -> ExitCode {
    if let Ok(order) = std::env::var(CHILD) {
        live_and_die(&order);
    }
    benches();
    Criterion::default().configure_from_args().final_summary();
    let broken = BROKEN.lock().unwrap_or_else(PoisonError::into_inner);
    for what in broken.iter() {
        println!("BROKEN: {what}");
    }
    if broken.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
