//! The fuzz targets on stable: every file of the corpora, mutations of it, and random scripts.
#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use gemba_gossip::fuzz;
use gemba_testkit::{Rng, check, sim_scale};

fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
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
        .into_iter()
        .map(|path| {
            let bytes = std::fs::read(&path).unwrap();
            (path, bytes)
        })
        .collect()
}

/// Flips, cuts, doubles and overwrites.
fn mutate(rng: &mut Rng, bytes: &mut Vec<u8>) {
    for _ in 0..1 + rng.index(4) {
        if bytes.is_empty() {
            bytes.push(rng.next_u64() as u8);
        }
        let at = rng.index(bytes.len());
        match rng.index(5) {
            0 => bytes[at] ^= 1 << rng.index(8),
            1 => bytes[at] = rng.next_u64() as u8,
            2 => bytes.truncate(at),
            3 => {
                let piece = bytes[at..].to_vec();
                bytes.extend(piece.into_iter().take(64));
            }
            _ => bytes.insert(at, rng.next_u64() as u8),
        }
    }
}

#[test]
fn gossip_rpc_corpus_and_mutations() {
    let seeds = corpus("gossip_rpc");
    for (_, bytes) in &seeds {
        fuzz::gossip_rpc(bytes);
    }
    check!(sim_scale(20_000), |rng| {
        let (_, bytes) = rng.pick(&seeds);
        let mut bytes = bytes.clone();
        mutate(rng, &mut bytes);
        fuzz::gossip_rpc(&bytes);
        // With a right length prefix the mutation reaches the decoder.
        let body = bytes.split_off(bytes.len().min(2));
        let mut framed = Vec::new();
        let mut len = body.len();
        while len >= 0x80 {
            framed.push(len as u8 | 0x80);
            len >>= 7;
        }
        framed.push(len as u8);
        framed.extend(body);
        fuzz::gossip_rpc(&framed);
    });
}

#[test]
fn control_state_scripts() {
    for (_, bytes) in corpus("gossip_control_state") {
        fuzz::gossip_control_state(&bytes);
    }
    check!(sim_scale(6_000), |rng| {
        let len = rng.index(1600);
        // Each script prefers some operations, so that rare states are reached.
        let mut bytes = rng.bytes(len);
        let (favourite, share) = (rng.next_u64() as u8, rng.range(0..4));
        for pair in bytes.chunks_mut(2) {
            if rng.chance(share, 8) {
                pair[0] = favourite;
            }
        }
        fuzz::gossip_control_state(&bytes);
    });
}
