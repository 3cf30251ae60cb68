//! Kubo adds a file of 256 MiB, gemba pins it, and it is whole on disk when the pin is acknowledged.

use crate::failure::Outcome;
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pin_from_kubo_256_mib",
    about: "Kubo adds a file of 256 MiB, gemba pins it, durable when acknowledged (S4.44)",
    limit: Duration::from_secs(90),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let source = stage.path("file.bin");
    tree::big_file(&source, 256 << 20, stage.seed)?;
    let (mut gemba, kubo) = stage.pair()?;
    stage.step("Kubo adds");
    let entries = kubo.add(&source, &[])?;
    let cid = root(&entries);
    stage.step("gemba pins");
    let begun = Instant::now();
    gemba.pin(cid)?;
    let took = begun.elapsed();
    super::whole_after_kill(stage, &mut gemba, cid, &source)?;
    Ok(format!("pinned in {} ms", took.as_millis()))
}
