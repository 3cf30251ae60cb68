//! Replays the fuzz corpora on stable and tries mutations of each seed.
#![allow(clippy::unwrap_used)]

use std::path::Path;

/// A small generator: the crate's tests need no more than repeatable noise.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../fuzz/corpus")
        .join(target);
    let mut noise = Noise(0x9e37_79b9_7f4a_7c15);
    let mut seeds = 0;
    for entry in std::fs::read_dir(&folder).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        run(&seed);
        for _ in 0..20_000 {
            let mut bytes = seed.clone();
            for _ in 0..=noise.next() % 4 {
                let at = noise.next() as usize % (bytes.len() + 1);
                match noise.next() % 4 {
                    0 if at < bytes.len() => bytes[at] = noise.next() as u8,
                    1 if at < bytes.len() => bytes[at] ^= 1 << (noise.next() % 8),
                    2 => bytes.insert(at, noise.next() as u8),
                    _ => bytes.truncate(at),
                }
            }
            run(&bytes);
        }
    }
    assert!(seeds > 0, "no seeds in {}", folder.display());
}

#[test]
fn cid_corpus() {
    replay("cid", gemba_block::fuzz::cid);
}

#[test]
fn dag_cbor_corpus() {
    replay("dag_cbor", gemba_block::fuzz::dag_cbor);
}
