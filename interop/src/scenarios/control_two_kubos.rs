//! No gemba at all: two Kubo nodes of one private swarm exchange a folder. When this fails the rig is broken, not gemba.

use crate::failure::{Outcome, ensure};
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "control_two_kubos",
    about: "the rig alone: Kubo pins a folder of another Kubo in the private swarm",
    limit: Duration::from_secs(40),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let folder = stage.path("folder");
    tree::many_files(&folder, 200, 1024, stage.seed)?;
    let (mut a, b) = (stage.kubo("kubo-a")?, stage.kubo("kubo-b")?);
    stage.step("connecting and pinning");
    b.connect(&a.address()?)?;
    a.wait_for_peer(&b.id, Duration::from_secs(5))?;
    let entries = a.add(&folder, &[])?;
    ensure!(
        entries.len() == 201,
        "{} entries in place of 201",
        entries.len()
    );
    let begun = Instant::now();
    b.pin(root(&entries))?;
    let took = begun.elapsed();
    ensure!(a.stop()?.success(), "Kubo does not end with 0 on SIGTERM");
    let out = stage.path("out");
    b.get(root(&entries), &out)?;
    tree::same(&folder, &out)?;
    Ok(format!("200 files in {} ms", took.as_millis()))
}
