//! The fuzz targets on stable: every file of the corpora, mutations of it, and random scripts.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use gemba_pnet::fuzz;
use gemba_testkit::{Rng, check, sim_scale};

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    files
        .iter()
        .map(|path| std::fs::read(path).unwrap())
        .collect()
}

/// A file of the corpus with some bytes changed and random ones behind it, or nothing but random ones.
fn script(rng: &mut Rng, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = match rng.chance(2, 3) {
        true => rng.pick(seeds).clone(),
        false => Vec::new(),
    };
    for _ in 0..rng.index(6) {
        if !bytes.is_empty() {
            let at = rng.index(bytes.len());
            bytes[at] = rng.next_u64() as u8;
        }
    }
    let more = rng.index(600);
    bytes.extend(rng.bytes(more));
    bytes
}

#[test]
fn t3_psk_stream_scripts() {
    let seeds = corpus("psk_stream");
    seeds.iter().for_each(|bytes| fuzz::psk_stream(bytes));
    check!(sim_scale(40_000), |rng| fuzz::psk_stream(&script(
        rng, &seeds
    )));
}

#[test]
fn t7_yamux_frame_scripts() {
    let seeds = corpus("yamux_frames");
    seeds.iter().for_each(|bytes| fuzz::yamux_frames(bytes));
    check!(sim_scale(100_000), |rng| fuzz::yamux_frames(&script(
        rng, &seeds
    )));
}
