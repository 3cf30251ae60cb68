//! S4.20: gossip goes on however often a node connects anew with the same identity: a thousand times, and each time a message goes to Kubo and one
//! comes back. Every tenth time it is a node that was started anew.

use super::pubsub_both_ways::{TOPIC, multibase};
use crate::failure::{Context, Outcome, ensure};
use crate::rig::kubo::{self, Kubo};
use crate::scenario::{Scenario, Stage, key};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_reconnects",
    about: "pubsub with a real Kubo: 1,000 reconnects with one identity, a message each way after each",
    limit: Duration::from_secs(300),
    play,
};

const COUNT: usize = 1000;
const LIMIT: Duration = Duration::from_secs(280);

fn play(stage: &Stage) -> Outcome<String> {
    let mut kubo = Kubo::init(&stage.kubo, &stage.dir, "kubo", &kubo::Options::new(&key()))?;
    kubo.cli(&["config", "--json", "Pubsub.Enabled", "true"])?;
    stage.step("starting kubo with pubsub");
    kubo.up()?;
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    stage.step("reconnecting");
    let address = kubo.address()?;
    let peer = stage.peer_start("reconnect", (&address, TOPIC), COUNT, &[])?;
    // Kubo hears its own answers, too.
    let mut lines = BufReader::new(body).lines();
    let mut answered = 0;
    while answered < COUNT {
        let line = lines
            .next()
            .context(|| format!("Kubo's stream of messages ended after {answered} rounds"))??;
        let message: Value = serde_json::from_str(&line)?;
        if message["from"] != kubo.id.as_str() {
            kubo.publish(&multibase(TOPIC), format!("echo {answered}").as_bytes())?;
            answered += 1;
        }
    }
    let told: Value = serde_json::from_str(peer.finish(LIMIT)?.ok()?.trim())?;
    ensure!(told["rounds"] == COUNT, "{told}");
    Ok(format!(
        "{COUNT} reconnects in {} s, {} of them of a node started anew; slowest round {} ms",
        told["took_ms"].as_u64().unwrap_or_default() / 1000,
        told["started_anew"],
        told["slowest_ms"]
    ))
}
