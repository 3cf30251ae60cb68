//! Replays the fuzz corpora on stable, tries mutations of each seed, and measures that hostile bytes cost no memory.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::Path;

use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::{Rng, sim_scale};
use gemba_unixfs::{Bytes, dagpb, fuzz};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut seeds: Vec<_> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (path.display().to_string(), std::fs::read(path).unwrap())
        })
        .collect();
    seeds.sort();
    assert!(!seeds.is_empty(), "no seeds in {}", folder.display());
    seeds
}

fn mutate(rng: &mut Rng, seed: &[u8]) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=rng.below(4) {
        let at = rng.index(bytes.len() + 1);
        match rng.below(5) {
            0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
            1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
            2 => bytes.insert(at, rng.next_u64() as u8),
            3 => {
                // A piece of the seed once more: doubled fields, shifted lengths.
                let end = at + rng.index(16).min(bytes.len() - at);
                let piece = bytes[at..end].to_vec();
                bytes.splice(at..at, piece);
            }
            _ => bytes.truncate(at),
        }
    }
    bytes
}

/// Every seed and `per_target` mutations; no run may take more than `factor` times its input and 64 KiB.
fn replay(target: &str, per_target: usize, factor: u64, run: fn(&[u8])) {
    let seeds = seeds(target);
    let mut rng = Rng::from_env_or(0x005e_ed0f);
    let rounds = sim_scale(per_target) / seeds.len() + 1;
    for (name, seed) in &seeds {
        run(seed);
        for _ in 0..rounds {
            let bytes = mutate(&mut rng, seed);
            let ((), used) = measure(|| run(&bytes));
            let limit = factor * bytes.len() as u64 + 64 * 1024;
            assert!(
                used.peak <= limit,
                "{name}: {} bytes for an input of {}",
                used.peak,
                bytes.len()
            );
        }
    }
}

#[test]
fn u9_dag_pb_corpus() {
    replay("dag_pb_unixfs", 1_000_000, 64, fuzz::dag_pb);
}

#[test]
fn u4_hamt_corpus() {
    replay("hamt_walk", 40_000, 64, fuzz::hamt);
}

#[test]
fn u3_reader_on_the_corpora_of_dag_pb_and_hamt() {
    replay("hamt_walk", 100_000, 64, fuzz::reader);
    replay("dag_pb_unixfs", 200_000, 64, |bytes| {
        let length = (bytes.len().min(0x7fff) as u16).to_be_bytes();
        fuzz::reader(
            &[
                &length[..],
                bytes,
                &[0x80, 1, b'x', 0x80, 3, b'a', b'b', b'c'],
            ]
            .concat(),
        );
    });
}

#[test]
fn u7_car_corpus() {
    replay("car_reader", 100_000, 64, fuzz::car);
}

/// Decoding is a view: the worst block for it takes less than its own size, whatever it repeats.
#[test]
fn u9_decoding_takes_less_memory_than_the_block() {
    // Smallest possible link: an identity CID of nothing.
    let links: Vec<u8> = [0x12, 6, 0x0a, 4, 1, 0x55, 0, 0].repeat(100_000);
    let sizes: Vec<u8> = [&[8, 2][..], &[0x20, 0].repeat(400_000)].concat();
    let packed: Vec<u8> = [&[8, 2, 0x22, 0x80, 0x80, 0x30][..], &[0; 0x30 << 14]].concat();
    for bytes in [links, sizes.clone(), packed.clone()] {
        let bytes = Bytes::from(bytes);
        let (_, used) = measure(|| dagpb::Node::decode(bytes.clone()).is_ok());
        assert!(
            used.peak <= 3 * bytes.len() as u64,
            "{used:?} for {}",
            bytes.len()
        );
    }
    for bytes in [sizes, packed] {
        let bytes = Bytes::from(bytes);
        let (decoded, used) = measure(|| dagpb::FsData::decode(&bytes).is_ok());
        assert!(decoded);
        assert!(
            used.peak <= 16 * bytes.len() as u64,
            "{used:?} for {}",
            bytes.len()
        );
    }
}
