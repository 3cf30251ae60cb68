//! How fast blocks become durable here: `cargo run --release -p gemba-store --example throughput [FOLDER]`.
//!
//! Prints durable puts in batches of 64, for blocks of 256 KiB and 1 KiB, with write amplification and flushes a batch, reads,
//! and the time to open; before each the same bytes as plain writes, each followed by a flush: what the disk can do at that
//! moment. The payload is made first and touched, so that fresh pages of a virtual machine do not count.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use gemba_block::Block;
use gemba_store::{Config, Store};
use gemba_testkit::Rng;

const BATCH: usize = 64;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let dir = std::env::args_os()
        .nth(1)
        .map_or_else(std::env::temp_dir, PathBuf::from)
        .join(format!("gemba-throughput-{}", std::process::id()));
    println!(
        "block × threads  put                  disk ÷ payload  flushes/batch  get                  open       index"
    );
    for (size, batches, threads) in [
        (256 << 10, 64, 1),
        (256 << 10, 64, 2),
        (1 << 10, 4096, 1),
        (1 << 10, 4096, 2),
    ] {
        run(&dir, size, batches, threads)?;
        std::fs::remove_dir_all(&dir)?;
    }
    Ok(())
}

fn run(
    dir: &Path,
    size: usize,
    batches: usize,
    threads: usize,
) -> Result<(), Box<dyn std::error::Error>> {
    let blocks = make_blocks(size, batches)?;
    println!(
        "{:>4} KiB plain     {}",
        size >> 10,
        rate(blocks.len(), size, plain(dir, &blocks)?)
    );
    let store = Store::open(dir, Config::default())?;
    let started = Instant::now();
    std::thread::scope(|scope| {
        let workers: Vec<_> = blocks
            .chunks(blocks.len() / threads)
            .map(|part| {
                let store = &store;
                scope.spawn(move || {
                    part.chunks(BATCH)
                        .try_for_each(|batch| store.put_many(batch).map(drop))
                })
            })
            .collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().expect("a writer does not panic"))
    })?;
    let put = started.elapsed();
    let stat = store.stat();
    let started = Instant::now();
    for block in &blocks {
        let bytes = store.get(block.cid())?;
        assert_eq!(bytes.as_ref().map(bytes::Bytes::len), Some(size));
    }
    let get = started.elapsed();
    drop(store);
    let started = Instant::now();
    let store = Store::open(dir, Config::default())?;
    let open = started.elapsed();
    println!(
        "{:>4} KiB × {threads}     {} {:>12.3} {:>14.2}      {} {:>7.1} ms {:>5.1} B/block",
        size >> 10,
        rate(blocks.len(), size, put),
        stat.disk_bytes as f64 / stat.bytes as f64,
        stat.flushes as f64 / (blocks.len() / BATCH) as f64,
        rate(blocks.len(), size, get),
        open.as_secs_f64() * 1e3,
        store.stat().index_bytes as f64 / stat.blocks as f64,
    );
    Ok(())
}

/// One plain write and one flush a batch.
fn plain(dir: &Path, blocks: &[Block]) -> std::io::Result<Duration> {
    std::fs::create_dir_all(dir)?;
    let path = dir.join("plain");
    let mut file = File::create(&path)?;
    let mut buffer = Vec::new();
    let started = Instant::now();
    for batch in blocks.chunks(BATCH) {
        buffer.clear();
        for block in batch {
            buffer.extend_from_slice(block.data());
        }
        file.write_all(&buffer)?;
        file.sync_data()?;
    }
    let took = started.elapsed();
    std::fs::remove_file(&path)?;
    Ok(took)
}

fn make_blocks(size: usize, batches: usize) -> Result<Vec<Block>, Box<dyn std::error::Error>> {
    let mut rng = Rng::new(size as u64);
    (0..batches * BATCH)
        .map(|_| Ok(Block::raw(rng.bytes(size))?))
        .collect()
}

fn rate(count: usize, size: usize, took: Duration) -> String {
    let seconds = took.as_secs_f64();
    let mib = (count * size) as f64 / f64::from(1 << 20) / seconds;
    let thousands = count as f64 / seconds / 1e3;
    format!("{mib:>5.0} MiB/s {thousands:>4.0} k/s")
}
