//! S4.44 (names): IPNS over pubsub goes both ways between Kubo and gemba, with the DHT beside it and without. gemba follows a name of Kubo until its content is whole, and is told of the next
//! version without asking; Kubo resolves a name of gemba, and its next version. Both inspect the same record in the same words, and hold it byte for byte.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::until;
use crate::scenario::{Scenario, Stage, key};
use serde_json::Value;
use std::fs;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "names_both_ways",
    about: "IPNS over pubsub with a real Kubo, with the DHT and without: follow a name of Kubo, Kubo resolves one of gemba, `name inspect` agrees field by field (S0.22, S4.44)",
    limit: Duration::from_secs(240),
    play,
};

const SOON: Duration = Duration::from_secs(20);

fn play(stage: &Stage) -> Outcome<String> {
    let mut told = Vec::new();
    for routes in ["pubsub and DHT", "pubsub alone"] {
        let (kubo, gemba) = pair(stage, routes)?;
        let first = follow_kubo(stage, &kubo, &gemba)?;
        let second = resolve_at_kubo(stage, &kubo, &gemba)?;
        told.push(format!("by {routes} {first} of Kubo and {second} of gemba"));
    }
    Ok(format!("{}; records equal byte for byte", told.join(", ")))
}

/// Both nodes, connected, with these routes of names (the DHT alone is `names_by_dht`).
fn pair(stage: &Stage, routes: &str) -> Outcome<(Kubo, Gemba)> {
    let (at_kubo, at_gemba) = match routes {
        "pubsub alone" => ("none", "off"),
        _ => ("dht", "server"),
    };
    stage.step(&format!("starting both with {routes}"));
    let name = |node: &str| format!("{node}-{at_gemba}");
    let options = kubo::Options::new(&key());
    let mut kubo = Kubo::init(&stage.kubo, &stage.dir, &name("kubo"), &options)?;
    kubo.cli(&["config", "--json", "Ipns.UsePubsub", "true"])?;
    kubo.cli(&["config", "Routing.Type", at_kubo])?;
    kubo.up()?;
    let options = gemba::Options {
        bootstrap: vec![kubo.address()?],
        ..gemba::Options::new(&key())
    };
    let mut gemba = Gemba::init(&stage.gemba, &stage.dir, &name("gemba"), &options)?;
    gemba.cli(&["config", "set", "network.dht", at_gemba])?;
    gemba.up()?;
    gemba.wait_for_peer(&kubo.id, SOON)?;
    Ok((kubo, gemba))
}

/// Kubo publishes, gemba follows. Returns how many versions came.
fn follow_kubo(stage: &Stage, kubo: &Kubo, gemba: &Gemba) -> Outcome<usize> {
    stage.step("gemba follows a name of Kubo");
    let name = self_name(kubo)?;
    let versions = [version(stage, kubo, 1)?, version(stage, kubo, 2)?];
    gemba.json(&["name", "follow", "add", &name])?;
    let watch = gemba.cli_start(&["name", "watch", &name, "--count", "4", "--json"])?;
    for (number, root) in versions.iter().enumerate() {
        kubo.cli(&[
            "name",
            "publish",
            "--allow-offline",
            &format!("/ipfs/{root}"),
        ])?;
        let whole = || {
            let resolved = gemba.json(&["name", "resolve", "--complete", &name]);
            let is = |resolved: &Value| resolved["value"] == format!("/ipfs/{root}").as_str();
            Ok(resolved.ok().filter(is))
        };
        until(
            &format!("version {number} of Kubo is whole at gemba"),
            SOON,
            whole,
        )?;
    }
    let told = watch.finish(SOON)?.ok()?;
    let told: Vec<Value> = told
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    let events: Vec<(&Value, &Value)> = told
        .iter()
        .map(|line| (&line["event"], &line["sequence"]))
        .collect();
    // Number 0 is the empty folder that `ipfs init` published.
    let wanted = [
        ("changed", 1),
        ("complete", 1),
        ("changed", 2),
        ("complete", 2),
    ];
    ensure!(
        events.len() == wanted.len()
            && events
                .iter()
                .zip(wanted)
                .all(|(told, wanted)| *told.0 == wanted.0 && *told.1 == wanted.1),
        "other events than were to be: {told:?}"
    );
    same_record(stage, kubo, gemba, &name)?;
    Ok(versions.len())
}

/// The name of Kubo's own key.
pub(super) fn self_name(kubo: &Kubo) -> Outcome<String> {
    let keys = kubo.cli(&["key", "list", "-l", "--ipns-base=base36"])?;
    keys.lines()
        .find_map(
            |line| match line.split_whitespace().collect::<Vec<_>>()[..] {
                [name, "self"] => Some(name.to_owned()),
                _ => None,
            },
        )
        .context(|| format!("Kubo lists no key `self`: {keys}"))
}

/// gemba publishes, Kubo resolves. Returns how many versions came.
fn resolve_at_kubo(stage: &Stage, kubo: &Kubo, gemba: &Gemba) -> Outcome<usize> {
    stage.step("Kubo resolves a name of gemba");
    let root = version(stage, kubo, 3)?;
    let mut name = String::new();
    for (number, value) in [format!("/ipfs/{root}"), format!("/ipfs/{root}/version")]
        .iter()
        .enumerate()
    {
        let published = gemba.json(&["name", "publish", value])?;
        name = gemba::field(&published, "name")?;
        let resolved = || {
            // The first try has Kubo read the topic, and may fail.
            let said = kubo.cli_within(
                &["name", "resolve", "--nocache", "--dht-timeout=2s", &name],
                SOON,
            )?;
            Ok(said.ok().ok().filter(|said| said.trim() == *value))
        };
        until(
            &format!("version {number} of gemba at Kubo"),
            2 * SOON,
            resolved,
        )?;
    }
    same_record(stage, kubo, gemba, &name)?;
    Ok(2)
}

/// Both hold the same bytes, and say the same of them.
pub(super) fn same_record(stage: &Stage, kubo: &Kubo, gemba: &Gemba, name: &str) -> Outcome {
    stage.step("both inspect the record");
    let (at_kubo, at_gemba) = (stage.path("kubo.record"), stage.path("gemba.record"));
    let text = |path: &std::path::Path| path.display().to_string();
    fs::write(&at_kubo, kubo.cli_bytes(&["name", "get", name])?)?;
    gemba.json(&["name", "get", name, "-o", &text(&at_gemba)])?;
    ensure!(
        fs::read(&at_kubo)? == fs::read(&at_gemba)?,
        "Kubo and gemba hold different records of {name}"
    );
    let theirs = kubo.cli(&[
        "name",
        "inspect",
        "--enc=json",
        "--verify",
        name,
        &text(&at_gemba),
    ])?;
    let theirs: Value = serde_json::from_str(&theirs)?;
    let ours = gemba.json(&["name", "inspect", name])?;
    println!("kubo {theirs}\ngemba {ours}");
    let entry = &theirs["Entry"];
    for (field, kubo, gemba) in [
        ("value", &entry["Value"], &ours["value"]),
        ("sequence", &entry["Sequence"], &ours["sequence"]),
        ("validity", &entry["Validity"], &ours["validity"]),
        ("ttl", &entry["TTL"], &ours["ttl_ns"]),
        ("size", &theirs["PbSize"], &ours["pb_size"]),
        (
            "signature type",
            &theirs["SignatureType"],
            &ours["signature_type"],
        ),
    ] {
        ensure!(
            kubo == gemba,
            "{field} of {name}: Kubo says {kubo}, gemba {gemba}"
        );
    }
    ensure!(
        theirs["Validation"]["Valid"] == true && ours["signature"] == "valid",
        "not valid: Kubo says {theirs}, gemba {ours}"
    );
    Ok(())
}

/// A small folder at Kubo; its root.
pub(super) fn version(stage: &Stage, kubo: &Kubo, number: usize) -> Outcome<String> {
    let folder = stage.path("app");
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("version"), format!("version {number}"))?;
    fs::write(folder.join("data"), vec![7; 100_000])?;
    let entries = kubo.add(&folder, &[])?;
    let root = entries.last().context(|| "nothing was added".into())?;
    Ok(root.cid.clone())
}
