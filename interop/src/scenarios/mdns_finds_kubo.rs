//! Two hosts on one Ethernet segment, a Kubo and a gemba, nothing configured but the key: gemba finds Kubo and fetches from it.

use crate::failure::{Outcome, ensure};
use crate::rig::netns::Segment;
use crate::rig::{gemba, kubo, root, tree};
use crate::scenario::{Scenario, Stage, key};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "mdns_finds_kubo",
    about: "S0.19: two hosts on one segment, no configuration: gemba finds Kubo by mDNS within 5 s and fetches from it",
    limit: Duration::from_secs(40),
    play,
};

const AIM: Duration = Duration::from_secs(5);

fn play(stage: &Stage) -> Outcome<String> {
    let segment = Segment::new(2)?;
    let kubo = stage.kubo_with(
        "kubo",
        &kubo::Options {
            listen: "/ip4/0.0.0.0/tcp/4001",
            mdns: true,
            netns: Some(segment.host(0).into()),
            ..kubo::Options::new(&key())
        },
    )?;
    let folder = stage.path("folder");
    tree::many_files(&folder, 20, 1024, stage.seed)?;
    let entries = kubo.add(&folder, &[])?;
    let gemba = stage.gemba_with(
        "gemba",
        &gemba::Options {
            listen: "/ip4/0.0.0.0/tcp/0",
            mdns: true,
            netns: Some(segment.host(1).into()),
            ..gemba::Options::new(&key())
        },
    )?;
    let begun = Instant::now();
    stage.step("waiting for discovery");
    gemba.wait_for_peer(&kubo.id, Duration::from_secs(20))?;
    let took = begun.elapsed();
    gemba.pin(root(&entries))?;
    let out = stage.path("out");
    gemba.get(root(&entries), &out)?;
    tree::same(&folder, &out)?;
    ensure!(
        took < AIM,
        "discovery took {:.1} s after the start of the daemon",
        took.as_secs_f64()
    );
    Ok(format!(
        "connected {} ms after the start of the daemon",
        took.as_millis()
    ))
}
