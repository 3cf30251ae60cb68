//! S1.3, S4.21: the tracker's suite of connectors over a real Kubo's RPC: what can be had becomes whole, what nobody has ends with its cause, what is ended, also in
//! the middle, is neither pinned nor looked for any more, several are told apart, and a pin that is there already keeps its name.

use super::pins_both_ways::pins_of;
use crate::failure::{Outcome, ensure};
use crate::rig::process::{command, run};
use crate::rig::{root, tree, until};
use crate::scenario::{Scenario, Stage};
use serde_json::Value;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pins_in_front_of_kubo",
    about: "S1.3, S4.21: the tracker of gemba-pins in front of a real Kubo passes the suite of connectors: pin, unpin, cancel in the middle, what nobody has",
    limit: Duration::from_secs(180),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let (gemba, kubo) = stage.pair()?;
    let folder = stage.path("folder");
    tree::many_files(&folder, 5, 3000, stage.seed)?;
    let there = kubo.add(&folder, &["--pin=false"])?;
    kubo.rpc("pin/add?name=theirs", &[root(&there)])?;

    stage.step("the suite of connectors");
    let program = std::env::current_exe()?.with_file_name("gemba-interop-connector");
    let mut suite = command(&program, None);
    suite.args(["--kubo", &kubo.rpc_url()?, "--there", root(&there)]);
    suite.arg("--gemba").arg(&stage.gemba);
    suite.arg("--repo").arg(stage.path(&gemba.name));
    let told = run(&mut suite, Duration::from_secs(120))?.ok()?;
    let told: Value = serde_json::from_str(&told)?;
    let made = |n: usize| told["roots"][n].as_str().unwrap_or_default();

    stage.step("what the Kubo holds in the end");
    let pins = pins_of(&kubo)?;
    let is_pinned = |cid: &str, name: &str| {
        pins.contains(&(cid.to_owned(), "recursive".to_owned(), name.to_owned()))
    };
    for n in [1, 2, 4, 5, 6, 7] {
        ensure!(is_pinned(made(n), ""), "{} ({n}) is not pinned", made(n));
    }
    for n in [3, 9] {
        let is_there = pins.iter().any(|(cid, ..)| cid == made(n));
        ensure!(!is_there, "{} ({n}) was ended and is pinned", made(n));
    }
    ensure!(
        is_pinned(root(&there), "theirs"),
        "the name is lost: {pins:?}"
    );
    let wants_nothing = || {
        let wanted = kubo.rpc("bitswap/wantlist", &[])?;
        let is_empty = wanted["Keys"].as_array().is_none_or(Vec::is_empty);
        Ok(is_empty.then_some(()))
    };
    let soon = Duration::from_secs(5);
    until("it looks for nothing any more", soon, wants_nothing)?;
    Ok("the suite passed, 6 pins made, 2 ended".into())
}
