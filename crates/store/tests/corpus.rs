//! The fuzz target on stable: every file of the corpus, mutations of it, and random scripts.
#![allow(clippy::unwrap_used)]

#[path = "common/recovery.rs"]
#[allow(unreachable_pub, reason = "the fuzz target shares it")]
mod recovery;

use std::path::Path;

use gemba_testkit::{check, sim_scale};
use recovery::pack_recovery;

#[test]
fn s10_pack_recovery_scripts() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/pack_recovery");
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty());
    let seeds: Vec<Vec<u8>> = files.iter().map(|f| std::fs::read(f).unwrap()).collect();
    seeds.iter().for_each(|bytes| pack_recovery(bytes));
    check!(sim_scale(20_000), |rng| {
        let mut bytes = match rng.coin() {
            true => rng.pick(&seeds).clone(),
            false => Vec::new(),
        };
        let more = rng.index(60);
        bytes.extend(rng.bytes(more));
        pack_recovery(&bytes);
    });
}
