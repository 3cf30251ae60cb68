//! Durable puts in batches of 64, beside what the same disk gives a program that only writes and syncs the same bytes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::fs::OpenOptions;
use std::io::Write as _;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use gemba_store::{Config, Store};

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

criterion_group!(benches, puts);
criterion_main!(benches);
