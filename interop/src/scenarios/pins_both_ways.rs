//! S4.21: the pins of a Kubo are taken over by gemba by that Kubo's RPC, with what they hold, and made at a second Kubo, which has it from gemba alone:
//! roots, kinds and names are the same at both ends.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage, key};
use serde_json::Value;
use std::collections::BTreeSet;
use std::io::Read;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pins_both_ways",
    about: "S4.21: pins go from a Kubo to gemba and on to another Kubo by RPC; the sets are equal",
    limit: Duration::from_secs(60),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let folder = stage.path("folder");
    tree::many_files(&folder, 50, 3000, stage.seed)?;
    tree::big_file(&folder.join("big.bin"), 3 << 20, stage.seed)?;
    let start = |name| Kubo::start(&stage.kubo, &stage.dir, name, &kubo::Options::new(&key()));
    let (from, to) = (start("kubo-a")?, start("kubo-b")?);
    let options = gemba::Options::new(&key());
    let gemba = Gemba::start(&stage.gemba, &stage.dir, "gemba", &options)?;
    for kubo in [&from, &to] {
        gemba.connect(&kubo.address()?)?;
    }

    stage.step("pins of every kind at the first Kubo");
    let entries = from.add(&folder, &["--pin=false"])?;
    let file = &entries.first().context(|| "nothing was added".into())?.cid;
    from.rpc("pin/add?name=app%20%C3%A4%26b", &[root(&entries)])?;
    from.rpc("pin/add?recursive=false&name=one", &[file])?;
    let pins = pins_of(&from)?;
    ensure!(pins.len() >= 2, "the first Kubo has only {pins:?}");

    stage.step("to gemba, and on");
    let taken = gemba.json(&["pin", "import", "--kubo", &from.rpc_url()?])?;
    ensure!(taken["added"] == pins.len() as u64, "{taken} of {pins:?}");
    for (cid, ..) in &pins {
        gemba.cli(&["pin", "wait", cid, "--timeout", "30s"])?;
    }
    let made = gemba.json(&["pin", "export", "--kubo", &to.rpc_url()?])?;
    let there = pins_of(&to)?;
    ensure!(there == pins, "{there:?} is not {pins:?}: {made}");
    let out = stage.path("out");
    to.get(root(&entries), &out)?;
    tree::same(&folder, &out)?;

    stage.step("once more: nothing to do");
    let again = gemba.json(&["pin", "export", "--kubo", &to.rpc_url()?])?;
    ensure!(
        again["added"] == 0 && again["kept"] == pins.len() as u64,
        "{again}"
    );

    stage.step("what is pinned there directly becomes recursive, and keeps its name");
    to.rpc("pin/rm", &[root(&entries)])?;
    to.rpc("pin/add?recursive=false&name=theirs", &[root(&entries)])?;
    let widened = gemba.json(&["pin", "export", "--kubo", &to.rpc_url()?])?;
    ensure!(widened["widened"] == 1, "{widened}");
    let there = pins_of(&to)?;
    let pin = (root(&entries).into(), "recursive".into(), "theirs".into());
    ensure!(there.contains(&pin), "{pin:?} is not among {there:?}");
    Ok(format!("{} pins", pins.len()))
}

/// Roots, kinds and names.
pub(super) fn pins_of(kubo: &Kubo) -> Outcome<BTreeSet<(String, String, String)>> {
    let mut pins = BTreeSet::new();
    for kind in ["recursive", "direct"] {
        let mut listed = String::new();
        kubo.rpc_stream(&format!("pin/ls?type={kind}&names=true&stream=true"), &[])?
            .read_to_string(&mut listed)?;
        for line in listed.lines().filter(|line| !line.trim().is_empty()) {
            let pin: Value = serde_json::from_str(line)?;
            let text = |field: &str| pin[field].as_str().unwrap_or_default().to_string();
            pins.insert((text("Cid"), text("Type"), text("Name")));
        }
    }
    Ok(pins)
}
