//! S4.44 (pubsub): RPCs of exactly 1,048,576 bytes pass between gemba and Kubo in both directions, a larger one is refused by both; and a
//! burst that Kubo publishes without a pause arrives complete.

use super::pubsub_both_ways::{TOPIC, multibase, until_kubo_knows};
use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::until;
use crate::scenario::{Scenario, Stage, key};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_limits",
    about: "pubsub with a real Kubo: RPCs of exactly 1,048,576 bytes both ways, larger ones refused, a burst of 200 from Kubo complete",
    limit: Duration::from_secs(120),
    play,
};

const RPC: usize = 1_048_576;
/// What the largest message has besides its payload: the headers of message and payload, author, number, topic, signature.
const AROUND: usize = 4 + 4 + 40 + 10 + 2 + TOPIC.len() + 66;
const LARGEST: usize = RPC - AROUND;
const BURST: usize = 200;
const SOON: Duration = Duration::from_secs(20);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo_with_pubsub()?;
    let options = gemba::Options {
        bootstrap: vec![kubo.address()?],
        ..gemba::Options::new(&key())
    };
    let gemba = stage.gemba_with("gemba", &options)?;
    gemba.wait_for_peer(&kubo.id, SOON)?;

    stage.step("the largest message from Kubo");
    let reader = gemba.cli_start(&["pubsub", "sub", TOPIC, "--count", "1", "--json"])?;
    until_kubo_knows(&kubo, &gemba)?;
    kubo.publish(&multibase(TOPIC), &vec![b'k'; LARGEST])?;
    let came: Value = serde_json::from_str(reader.finish(SOON)?.ok()?.trim())?;
    ensure!(
        payload_len(&came) == LARGEST,
        "gemba got {} bytes of {LARGEST}",
        payload_len(&came)
    );

    stage.step("the largest message from gemba");
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    let mut lines = BufReader::new(body).lines();
    let file = stage.path("message");
    until_gemba_knows(&gemba, &kubo.id)?;
    fs::write(&file, vec![b'g'; LARGEST])?;
    let publish = ["pubsub", "pub", TOPIC, "--whole", "--timeout", "20s"];
    gemba.cli_reading(&publish, &file)?.ok()?;
    let message = next(&mut lines)?;
    ensure!(
        message["from"] == gemba.id.as_str() && kubo_payload_len(&message) == LARGEST,
        "Kubo got {} bytes from {}",
        kubo_payload_len(&message),
        message["from"]
    );
    fs::write(&file, vec![b'g'; LARGEST + 1])?;
    let refused = gemba.cli_reading(&publish, &file)?;
    ensure!(
        refused.code == Some(2) && refused.stderr.contains(&LARGEST.to_string()),
        "a message that is one byte too long ended with {:?}: {}",
        refused.code,
        refused.stderr
    );

    stage.step("RPCs of exactly 1 MiB, and of one byte more, to Kubo");
    let to_kubo = (kubo.address()?, TOPIC);
    let sent = stage.peer("frame", (&to_kubo.0, TOPIC), RPC, SOON)?;
    ensure!(sent["reset"] == false, "Kubo resets {sent}");
    let message = next(&mut lines)?;
    ensure!(
        kubo_payload_len(&message) == LARGEST,
        "Kubo got {} bytes",
        kubo_payload_len(&message)
    );
    let sent = stage.peer("frame", (&to_kubo.0, TOPIC), RPC + 1, SOON)?;
    ensure!(
        sent["reset"] == true,
        "Kubo takes what is more than 1 MiB, so gemba should: {sent}"
    );

    stage.step("the same to gemba");
    let address = gemba.address()?;
    let reader = gemba.cli_start(&["pubsub", "sub", TOPIC, "--count", "1", "--json"])?;
    until_reading(&gemba)?;
    let sent = stage.peer("frame", (&address, TOPIC), RPC, SOON)?;
    ensure!(sent["reset"] == false, "gemba resets {sent}");
    let came: Value = serde_json::from_str(reader.finish(SOON)?.ok()?.trim())?;
    ensure!(payload_len(&came) == LARGEST, "gemba got other bytes");
    let before = malformed(&gemba)?;
    let sent = stage.peer("frame", (&address, TOPIC), RPC + 1, SOON)?;
    ensure!(
        sent["reset"] == true && malformed(&gemba)? == before + 1,
        "gemba does not refuse {sent}"
    );

    stage.step("a burst from Kubo");
    let count = BURST.to_string();
    let reader = gemba.cli_start(&["pubsub", "sub", TOPIC, "--count", &count, "--json"])?;
    until_reading(&gemba)?;
    let begun = Instant::now();
    for n in 0..BURST {
        kubo.publish(&multibase(TOPIC), format!("burst {n}").as_bytes())?;
    }
    let took = begun.elapsed();
    let came = reader.finish(SOON)?.ok()?;
    let mut numbers: Vec<u64> = Vec::new();
    for line in came.lines() {
        let message: Value = serde_json::from_str(line)?;
        numbers.push(gemba::field(&message, "seqno")?.parse()?);
    }
    numbers.sort_unstable();
    numbers.dedup();
    ensure!(
        numbers.len() == BURST,
        "{} of {BURST} messages came",
        numbers.len()
    );
    Ok(format!(
        "{LARGEST} bytes of payload both ways in RPCs of {RPC}, one byte more refused by both; {BURST} of {BURST} messages that Kubo published in {} ms",
        took.as_millis()
    ))
}

fn next(lines: &mut impl Iterator<Item = std::io::Result<String>>) -> Outcome<Value> {
    let line = lines
        .next()
        .context(|| "Kubo's stream of messages ended".into())??;
    Ok(serde_json::from_str(&line)?)
}

/// Bytes of the payload that `pubsub sub --json` shows.
fn payload_len(message: &Value) -> usize {
    let text = message["data"].as_str().unwrap_or_default();
    text.len() / 4 * 3 - text.bytes().rev().take_while(|b| *b == b'=').count()
}

/// The same as Kubo shows it: `u`, and base64 without padding.
fn kubo_payload_len(message: &Value) -> usize {
    let text = message["data"].as_str().unwrap_or_default();
    text.len().saturating_sub(1) * 3 / 4
}

fn malformed(gemba: &Gemba) -> Outcome<u64> {
    let health = gemba.json(&["pubsub", "health"])?;
    health["counters"]["malformed"]
        .as_u64()
        .context(|| "health has no count of malformed RPCs".into())
}

/// Waits until the reader that was begun reads.
pub(super) fn until_reading(gemba: &Gemba) -> Outcome {
    let reading = || {
        let health = gemba.json(&["pubsub", "health"])?;
        Ok(health["readers"].as_u64().filter(|n| *n > 0))
    };
    until("gemba reads the topic", SOON, reading).map(drop)
}

pub(super) fn until_gemba_knows(gemba: &Gemba, kubo: &str) -> Outcome {
    let knows = || {
        let peers = gemba.json_lines(&["pubsub", "peers", TOPIC])?;
        Ok(peers.iter().any(|peer| peer["id"] == kubo).then_some(()))
    };
    until("gemba knows that Kubo reads the topic", SOON, knows).map(drop)
}
