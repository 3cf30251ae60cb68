//! S4.20: gossip goes on however often a node connects anew with the same identity: a thousand times, and each time a message goes to Kubo and one
//! comes back. Every tenth time it is a node that was started anew.
//!
//! A Kubo that finds the end of an earlier connection late forgets, for a moment, who reads what (GO-26), and what it publishes in that moment it sends to
//! nobody. So a round that has no answer after three seconds says its word again, and few may need that. And after five such moments it opens no stream
//! at all until the connection is made anew, which gemba does by itself (GO-27).

use super::pubsub_both_ways::{TOPIC, multibase};
use crate::failure::{Context, Outcome, ensure, fail};
use crate::rig::kubo::Kubo;
use crate::scenario::{Scenario, Stage};
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
const SOON: Duration = Duration::from_secs(20);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo_with_pubsub()?;
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    stage.step("reconnecting");
    let address = kubo.address()?;
    let peer = stage.peer_start("reconnect", (&address, TOPIC), COUNT, &[])?;
    let heard = answer(&kubo, BufReader::new(body).lines());
    // Where one side waits in vain the other one knows more.
    let told = peer.finish(if heard.is_ok() { LIMIT } else { SOON })?;
    if let Err(error) = heard {
        fail!("{error}; the peer: {}", told.stderr.trim());
    }
    let told: Value = serde_json::from_str(told.ok()?.trim())?;
    let again = told["said_again"].as_u64().unwrap_or(u64::MAX);
    ensure!(
        told["rounds"] == COUNT && again <= COUNT as u64 / 100,
        "{told}"
    );
    Ok(format!(
        "{COUNT} reconnects in {} s, {} of them of a node started anew; {again} words said again; slowest round {} ms",
        told["took_ms"].as_u64().unwrap_or_default() / 1000,
        told["started_anew"],
        told["slowest_ms"]
    ))
}

/// Answers `round N` with `echo N`, until `end` is said.
fn answer(kubo: &Kubo, lines: impl Iterator<Item = std::io::Result<String>>) -> Outcome {
    let mut round = 0;
    for line in lines {
        let message: Value =
            serde_json::from_str(&line.context(|| format!("no message in round {round}"))?)?;
        let data = message["data"].as_str().unwrap_or_default();
        if data == multibase("end") {
            return Ok(());
        }
        round += usize::from(data == multibase(&format!("round {}", round + 1)));
        if data == multibase(&format!("round {round}")) {
            kubo.publish(&multibase(TOPIC), format!("echo {round}").as_bytes())?;
        }
    }
    fail!("Kubo's stream of messages ended in round {round}")
}
