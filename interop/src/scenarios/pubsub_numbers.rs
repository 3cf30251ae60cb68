//! S4.44 (pubsub): Kubo's rule of sequence numbers. Of one author it delivers only what has a higher number than all before; gemba delivers each number
//! once, in whatever order. One peer says the same to both: 10, 9, 11, 1,000, and 10 again.

use super::pubsub_both_ways::{TOPIC, multibase};
use super::pubsub_limits::until_reading;
use crate::failure::{Context, Outcome, ensure};
use crate::scenario::{Scenario, Stage};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_numbers",
    about: "pubsub with a real Kubo: of the numbers 10, 9, 11, 1,000, 10 of one author Kubo delivers the rising ones, gemba each once",
    limit: Duration::from_secs(90),
    play,
};

const SOON: Duration = Duration::from_secs(20);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo_with_pubsub()?;
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    let mut lines = BufReader::new(body).lines();
    stage.step("numbers to Kubo");
    stage.peer("numbers", (&kubo.address()?, TOPIC), 1, SOON)?;
    // The marker of another author comes last: what is not there by then was dropped.
    let mut at_kubo = Vec::new();
    while at_kubo.last() != Some(&END) {
        let line = lines.next().context(|| "Kubo's stream ended".into())??;
        let message: Value = serde_json::from_str(&line)?;
        at_kubo.push(number(message["seqno"].as_str().unwrap_or_default(), URL)?);
    }
    ensure!(
        at_kubo == [10, 11, 1000, END],
        "Kubo delivers {at_kubo:?}: its rule is another one than what gemba was built for"
    );

    stage.step("numbers to gemba");
    let gemba = stage.gemba("gemba")?;
    let reader = gemba.cli_start(&["pubsub", "sub", TOPIC, "--count", "5", "--json"])?;
    until_reading(&gemba)?;
    stage.peer("numbers", (&gemba.address()?, TOPIC), 1, SOON)?;
    let came = reader.finish(SOON)?.ok()?;
    let at_gemba = came
        .lines()
        .map(|line| {
            let message: Value = serde_json::from_str(line)?;
            let number = message["seqno"].as_str().unwrap_or_default();
            Ok(number.parse::<u64>()?)
        })
        .collect::<Outcome<Vec<_>>>()?;
    ensure!(
        at_gemba == [10, 9, 11, 1000, END],
        "gemba delivers {at_gemba:?}"
    );
    Ok("Kubo: 10, 11, 1000; gemba: 10, 9, 11, 1000".to_owned())
}

/// What the second author says.
const END: u64 = 1;
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// A sequence number as Kubo's RPC shows it: multibase of its bytes.
fn number(text: &str, alphabet: &[u8; 64]) -> Outcome<u64> {
    let digits = text
        .strip_prefix('u')
        .context(|| format!("{text} is no number in base64url"))?;
    let mut bits: u128 = 0;
    for digit in digits.bytes() {
        let value = alphabet.iter().position(|d| *d == digit);
        let value = value.context(|| format!("{text} is no number in base64url"))?;
        bits = bits << 6 | value as u128;
    }
    // 8 bytes are 11 digits: two bits are over.
    Ok(u64::try_from(bits >> 2)?)
}
