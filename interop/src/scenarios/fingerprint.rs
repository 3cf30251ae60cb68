//! One key, one fingerprint: gemba shows what Kubo shows, for every encoding of the key file, and for keys that gemba made.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba, field};
use crate::rig::{key, kubo};
use crate::scenario::{KEY, Scenario, Stage};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "fingerprint",
    about: "equal fingerprints for key files in every encoding, and for a key that gemba made (S0.52)",
    limit: Duration::from_secs(60),
    play,
};

/// Of 32 times `0xab`, as Kubo 0.42 prints it.
const KNOWN: &str = "fd957768903569d239aaec7c59b359e3";

fn play(stage: &Stage) -> Outcome<String> {
    for encoding in key::ENCODINGS {
        let bytes = key::file(&KEY, encoding);
        let shown = of_gemba(stage, &format!("gemba-{encoding:?}"), &bytes)?;
        ensure!(
            shown == KNOWN,
            "{encoding:?}: gemba shows {shown} in place of {KNOWN}"
        );
        let shown = of_kubo(stage, &format!("kubo-{encoding:?}"), &bytes)?;
        ensure!(
            shown == KNOWN,
            "{encoding:?}: Kubo shows {shown} in place of {KNOWN}"
        );
    }
    stage.step("a key made by gemba");
    let made = Gemba::init(
        &stage.gemba,
        &stage.dir,
        "gemba-new",
        &gemba::Options::new_key(),
    )?;
    let ours = fingerprint(&made)?;
    let theirs = of_kubo(stage, "kubo-new", &made.key_file()?)?;
    ensure!(
        ours == theirs,
        "a new key: gemba shows {ours}, Kubo shows {theirs}"
    );
    ensure!(ours != KNOWN, "a new key is the old one");
    Ok(format!("{} encodings and a new key", key::ENCODINGS.len()))
}

fn of_gemba(stage: &Stage, name: &str, bytes: &[u8]) -> Outcome<String> {
    stage.step(name);
    fingerprint(&Gemba::init(
        &stage.gemba,
        &stage.dir,
        name,
        &gemba::Options::new(bytes),
    )?)
}

fn fingerprint(node: &Gemba) -> Outcome<String> {
    field(&node.json(&["swarm-key", "show"])?, "fingerprint")
}

fn of_kubo(stage: &Stage, name: &str, bytes: &[u8]) -> Outcome<String> {
    let log = stage.kubo_with(name, &kubo::Options::new(bytes))?.log()?;
    let line = log
        .lines()
        .find_map(|line| line.strip_prefix("Swarm key fingerprint: "));
    line.map(|print| print.trim().into())
        .context(|| "Kubo's log shows no fingerprint".into())
}
