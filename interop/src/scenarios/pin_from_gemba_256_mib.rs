//! gemba adds a file of 256 MiB, Kubo pins it, and Kubo's own copy is the same.

use crate::failure::Outcome;
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pin_from_gemba_256_mib",
    about: "gemba adds a file of 256 MiB, Kubo pins it, its own copy is the same (S4.44)",
    limit: Duration::from_secs(90),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let source = stage.path("file.bin");
    tree::big_file(&source, 256 << 20, stage.seed)?;
    let (mut gemba, kubo) = stage.pair()?;
    stage.step("gemba adds");
    let entries = gemba.add(&source, &[])?;
    let cid = root(&entries);
    stage.step("Kubo pins");
    let begun = Instant::now();
    kubo.pin(cid)?;
    let took = begun.elapsed();
    stage.step("reading Kubo's copy while gemba is gone");
    gemba.kill()?;
    let out = stage.path("out-of-kubo");
    kubo.get(cid, &out)?;
    tree::same(&source, &out)?;
    Ok(format!("pinned in {} ms", took.as_millis()))
}
