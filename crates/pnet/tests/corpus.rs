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

/// 10,000,000 frames in full.
#[test]
fn t7_yamux_frame_scripts() {
    let seeds = corpus("yamux_frames");
    for bytes in &seeds {
        let _ = fuzz::yamux_frames(bytes);
    }
    let (mut scripts, mut frames) = (0, 0);
    check!(sim_scale(YAMUX_SCRIPTS), |rng| {
        let mut script = script(rng, &seeds);
        let more = rng.index(1_200);
        script.extend(rng.bytes(more));
        frames += fuzz::yamux_frames(&script);
        scripts += 1;
    });
    assert!(
        frames * 2 >= 25 * scripts,
        "{frames} frames in {scripts} scripts"
    );
}

/// Each is read until its first frame that ends the connection: about 13.
const YAMUX_SCRIPTS: usize = 800_000;

/// Lines and Noise frames below yamux, from a member.
#[test]
fn t7_multistream_and_noise_scripts() {
    let (mut scripts, mut frames) = (0, 0);
    check!(sim_scale(100_000), |rng| {
        let len = rng.index(400);
        frames += fuzz::set_up_frames(&rng.bytes(8 + len));
        scripts += 1;
    });
    assert!(frames >= scripts, "{frames} frames in {scripts} scripts");
}
