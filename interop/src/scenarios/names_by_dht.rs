//! S4.44 (names): the DHT alone carries names both ways between Kubo and gemba; pubsub is off on both, and so is gemba's own push. gemba follows a name of
//! Kubo until its content is whole; a client that came later resolves it from the DHT; Kubo resolves a name of gemba, and its next version. A peer that puts
//! records with a wrong signature, a lower number, or past their end is refused by both alike.

use super::names_both_ways::{same_record, self_name, version};
use crate::failure::{Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::until;
use crate::scenario::{Scenario, Stage, key};
use serde_json::{Value, json};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "names_by_dht",
    about: "names by the DHT alone with a real Kubo: follow there and here, resolve as a late client, bad records refused by both (S0.22, S4.44)",
    limit: Duration::from_secs(240),
    play,
};

const SOON: Duration = Duration::from_secs(30);

fn play(stage: &Stage) -> Outcome<String> {
    stage.step("starting kubo without pubsub");
    let kubo = Kubo::start(&stage.kubo, &stage.dir, "kubo", &kubo::Options::new(&key()))?;
    let gemba = by_dht_alone(stage, "gemba", "server", &[kubo.address()?])?;
    gemba.wait_for_peer(&kubo.id, SOON)?;
    knows_servers(&gemba, 1)?;

    let (name, last) = follow_kubo(stage, &kubo, &gemba)?;
    let late = by_dht_alone(stage, "late", "client", &[kubo.address()?])?;
    resolve_late(stage, &late, &name, &last)?;
    resolve_at_kubo(stage, &kubo, &gemba)?;
    refused_by_both(stage, &kubo, &gemba)?;
    Ok("2 versions of Kubo followed, one resolved by a late client, 2 of gemba resolved at Kubo, 3 kinds of bad records refused by both".into())
}

/// A daemon that knows no other way to a name.
fn by_dht_alone(stage: &Stage, name: &str, mode: &str, bootstrap: &[String]) -> Outcome<Gemba> {
    stage.step(&format!(
        "starting {name}, a {mode} of the DHT, without pubsub and push"
    ));
    let options = gemba::Options {
        bootstrap: bootstrap.to_vec(),
        ..gemba::Options::new(&key())
    };
    let mut gemba = Gemba::init(&stage.gemba, &stage.dir, name, &options)?;
    for (setting, value) in [
        ("pubsub.enabled", "false"),
        ("names.pubsub", "false"),
        ("names.push", "false"),
        ("network.dht", mode),
    ] {
        gemba.cli(&["config", "set", setting, value])?;
    }
    gemba.up()?;
    Ok(gemba)
}

fn knows_servers(gemba: &Gemba, count: u64) -> Outcome {
    let knows = || {
        let status = gemba.json(&["status"])?;
        let servers = status["dht"]["servers"].as_u64();
        Ok(servers.is_some_and(|known| known >= count).then_some(()))
    };
    until("gemba knows a server of the DHT", SOON, knows)?;
    Ok(())
}

/// Kubo publishes twice, gemba follows. Returns the name and its last value.
fn follow_kubo(stage: &Stage, kubo: &Kubo, gemba: &Gemba) -> Outcome<(String, String)> {
    stage.step("gemba follows a name of Kubo");
    let name = self_name(kubo)?;
    gemba.json(&["name", "follow", "add", &name])?;
    let mut value = String::new();
    for number in 1..=2 {
        value = format!("/ipfs/{}", version(stage, kubo, number)?);
        publish(kubo, &value)?;
        let whole = || {
            let resolved = gemba.json(&["name", "resolve", "--complete", &name]);
            Ok(resolved
                .ok()
                .filter(|resolved| resolved["value"] == value.as_str()))
        };
        until(
            &format!("version {number} of Kubo is whole at gemba"),
            SOON,
            whole,
        )?;
    }
    let inspected = gemba.json(&["name", "inspect", &name])?;
    ensure!(
        inspected["source"] == "dht",
        "it came by another route: {inspected}"
    );
    same_record(stage, kubo, gemba, &name)?;
    Ok((name, value))
}

/// Kubo puts into the DHT only what it has somebody for; until then it says that nobody is known.
fn publish(kubo: &Kubo, value: &str) -> Outcome {
    let published = || {
        let said = kubo.cli_within(&["name", "publish", value], 2 * SOON)?;
        Ok(said.ok().ok())
    };
    until("Kubo publishes", 2 * SOON, published)?;
    Ok(())
}

/// A client that was not there when the name was published asks for it.
fn resolve_late(stage: &Stage, late: &Gemba, name: &str, value: &str) -> Outcome {
    stage.step("a late client resolves the name");
    knows_servers(late, 1)?;
    let resolved = late.json(&["name", "resolve", name])?;
    ensure!(
        resolved["value"] == value,
        "another version than {value}: {resolved}"
    );
    let inspected = late.json(&["name", "inspect", name])?;
    ensure!(
        inspected["source"] == "dht",
        "it came by another route: {inspected}"
    );
    Ok(())
}

/// gemba publishes twice, Kubo resolves.
fn resolve_at_kubo(stage: &Stage, kubo: &Kubo, gemba: &Gemba) -> Outcome {
    stage.step("Kubo resolves a name of gemba");
    let root = version(stage, kubo, 3)?;
    let mut name = String::new();
    for value in [format!("/ipfs/{root}"), format!("/ipfs/{root}/version")] {
        let published = gemba.json(&["name", "publish", &value])?;
        name = gemba::field(&published, "name")?;
        let resolved = || {
            let said = kubo.cli_within(
                &["name", "resolve", "--nocache", "--dht-timeout=5s", &name],
                SOON,
            )?;
            Ok(said.ok().ok().filter(|said| said.trim() == value))
        };
        until(&format!("{value} of gemba at Kubo"), 2 * SOON, resolved)?;
    }
    same_record(stage, kubo, gemba, &name)
}

/// The same records are put at both by a peer that checks nothing; both take and refuse the same, and both still have the newest good one.
fn refused_by_both(stage: &Stage, kubo: &Kubo, gemba: &Gemba) -> Outcome {
    let wanted = json!({
        "good": true, "forged": false, "lower": false, "expired": false, "other key": false, "newer": true,
    });
    let mut name = Value::Null;
    for (who, address) in [("kubo", kubo.address()?), ("gemba", gemba.address()?)] {
        stage.step(&format!("a peer puts bad records at {who}"));
        let told = stage.peer("put-records", (&address, "none"), 1, SOON)?;
        ensure!(
            told["taken"] == wanted,
            "{who} took others than it should: {told}"
        );
        name = told["name"].clone();
    }
    let name = name.as_str().unwrap_or_default().to_owned();
    let resolved = gemba.json(&["name", "resolve", &name])?;
    ensure!(
        resolved["sequence"] == 6,
        "gemba has another than the newest good one: {resolved}"
    );
    let at_kubo = kubo.cli(&["name", "resolve", "--nocache", "--dht-timeout=5s", &name])?;
    ensure!(
        resolved["value"] == at_kubo.trim(),
        "gemba resolves {resolved}, Kubo {at_kubo}"
    );
    Ok(())
}
