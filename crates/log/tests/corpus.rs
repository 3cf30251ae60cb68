//! The fuzz targets on stable: every file of each corpus, mutations of them, and random bytes.
#![allow(clippy::unwrap_used)]

#[path = "common/recovery.rs"]
#[allow(unreachable_pub, reason = "the fuzz target shares it")]
mod recovery;

use std::path::Path;

use gemba_testkit::{check, sim_scale};

fn seeds(target: &str) -> Vec<Vec<u8>> {
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
        .map(|file| std::fs::read(file).unwrap())
        .collect()
}

fn replay(target: &str, rounds: usize, run: impl Fn(&[u8])) {
    let seeds = seeds(target);
    seeds.iter().for_each(|bytes| run(bytes));
    check!(rounds, |rng| {
        let mut bytes = if rng.chance(9, 10) {
            rng.pick(&seeds).clone()
        } else {
            Vec::new()
        };
        for _ in 0..rng.below(4) {
            if !bytes.is_empty() {
                let at = rng.index(bytes.len());
                bytes[at] = rng.next_u64() as u8;
            }
        }
        let more = rng.index(30);
        if rng.chance(1, 3) {
            bytes.extend(rng.bytes(more));
        }
        run(&bytes);
    });
}

#[test]
fn log_11_batches() {
    replay("log_batch", sim_scale(200_000), gemba_log::fuzz::batch);
    // Some of the seeds are batches, or none of this would prove anything.
    let whole = seeds("log_batch")
        .into_iter()
        .filter(|bytes| gemba_log::Batch::decode(bytes.clone().into()).is_ok());
    assert!(whole.count() >= 3);
}

#[test]
fn log_1_names_patterns_and_descriptions() {
    replay("log_texts", sim_scale(200_000), gemba_log::fuzz::texts);
}

#[test]
fn log_40_segment_recovery_scripts() {
    replay(
        "log_segment_recover",
        sim_scale(2_000),
        recovery::log_segment_recover,
    );
}
