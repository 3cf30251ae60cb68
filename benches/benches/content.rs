//! Hashing, the wire of links, and whole imports on one and on two threads.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use gemba_block::{Block, MhCode, links};
use gemba_unixfs::{Profile, import_reader};

const MIB: usize = 1024 * 1024;

fn hashing(c: &mut Criterion) {
    let data = gemba_benches::bytes(MIB);
    let mut group = c.benchmark_group("hash 1 MiB");
    group.throughput(Throughput::Bytes(MIB as u64));
    for (name, code) in [("sha2-256", MhCode::Sha2_256), ("blake3", MhCode::Blake3)] {
        group.bench_function(name, |b| b.iter(|| code.digest(&data)));
    }
    group.finish();
}

fn importing(c: &mut Criterion) {
    let data = gemba_benches::bytes(64 * MIB);
    let mut group = c.benchmark_group("import 64 MiB, blocks dropped");
    group
        .throughput(Throughput::Bytes(data.len() as u64))
        .sample_size(10);
    for workers in [1, 2] {
        group.bench_function(format!("{workers} threads"), |b| {
            b.iter(|| {
                import_reader(
                    data.as_slice(),
                    &Profile::unixfs_v1_2025(),
                    workers,
                    &mut |_: Vec<Block>| Ok(()),
                )
                .unwrap()
            });
        });
    }
    group.finish();
}

fn reading_links(c: &mut Criterion) {
    let data = gemba_benches::bytes(64 * MIB);
    let mut nodes = Vec::new();
    let profile = Profile::unixfs_v1_2025().chunk_size(64 * 1024).unwrap();
    import_reader(data.as_slice(), &profile, 1, &mut |blocks: Vec<Block>| {
        nodes.extend(
            blocks
                .into_iter()
                .filter(|block| block.cid().codec() == gemba_block::codec::DAG_PB),
        );
        Ok(())
    })
    .unwrap();
    let node = nodes.into_iter().max_by_key(Block::len).unwrap();
    c.bench_function(
        &format!("links of a {}-byte dag-pb node", node.len()),
        |b| b.iter(|| links(&node).unwrap()),
    );
}

criterion_group!(benches, hashing, importing, reading_links);
criterion_main!(benches);
