//! S4.44 (pubsub): messages by topic go from Kubo to gemba and from gemba to Kubo, and after a restart of gemba with its clock in 1970
//! Kubo still takes them, though it drops what does not have a higher number than before. When Kubo is restarted, they go on without a
//! restart of gemba.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::Kubo;
use crate::rig::process::{command, run};
use crate::rig::until;
use crate::scenario::{Scenario, Stage, key};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_both_ways",
    about: "pubsub with a real Kubo: both ways, every message once and in order, after a restart with the clock in 1970, and of Kubo",
    limit: Duration::from_secs(90),
    play,
};

pub(super) const TOPIC: &str = "line-1/alarms";
/// Kubo verifies in parallel and then drops what was overtaken, so messages to it keep a distance.
const PACE: Duration = Duration::from_millis(50);
const COUNT: usize = 30;
const SOON: Duration = Duration::from_secs(20);

fn play(stage: &Stage) -> Outcome<String> {
    let mut kubo = stage.kubo_with_pubsub()?;
    kubo.keep_port()?;
    let mut gemba = stage.gemba_with(
        "gemba",
        &gemba::Options {
            bootstrap: vec![kubo.address()?],
            ..gemba::Options::new(&key())
        },
    )?;
    gemba.wait_for_peer(&kubo.id, SOON)?;

    stage.step("Kubo publishes");
    let count = COUNT.to_string();
    let reader = gemba.cli_start(&["pubsub", "sub", TOPIC, "--count", &count, "--json"])?;
    until_kubo_knows(&kubo, &gemba)?;
    for n in 0..COUNT {
        let file = stage.path("message");
        fs::write(&file, text("kubo", n))?;
        kubo.cli(&["pubsub", "pub", TOPIC, path(&file)?])?;
    }
    let came = reader.finish(SOON)?.ok()?;
    let came: Vec<Value> = came
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for (n, message) in came.iter().enumerate() {
        ensure!(
            message["from"] == kubo.id.as_str() && message["topic"] == TOPIC,
            "not a message of Kubo: {message}"
        );
        let data = message["data"].as_str().unwrap_or_default();
        ensure!(
            data == base64(&text("kubo", n), STANDARD),
            "message {n} has other content: {message}"
        );
    }
    ensure!(
        came.len() == COUNT,
        "{} of {COUNT} messages came",
        came.len()
    );

    stage.step("gemba publishes");
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    let mut lines = BufReader::new(body).lines();
    let mut last = 0;
    publish_to_kubo(&gemba, &mut lines, "gemba", &mut last)?;

    stage.step("gemba is killed and comes back with its clock in 1970");
    gemba.kill()?;
    gemba.preload(clock_in_1970(stage)?);
    gemba.up()?;
    gemba.wait_for_peer(&kubo.id, SOON)?;
    publish_to_kubo(&gemba, &mut lines, "1970", &mut last)?;
    ensure!(
        gemba.log()?.contains("1970-"),
        "gemba's log does not show that its clock was set back"
    );

    stage.step("Kubo is killed and comes back");
    drop(lines);
    kubo.kill()?;
    kubo.up()?;
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    let mut lines = BufReader::new(body).lines();
    gemba.wait_for_peer(&kubo.id, SOON)?;
    publish_to_kubo(&gemba, &mut lines, "gemba to the new Kubo", &mut last)?;
    Ok(format!(
        "{COUNT} messages from Kubo, {} to Kubo: at first, after a restart in 1970, after a restart of Kubo",
        3 * COUNT
    ))
}

/// Publishes at Kubo's pace, and reads what Kubo's subscriber gets. Numbers have to grow.
fn publish_to_kubo(
    gemba: &Gemba,
    lines: &mut impl Iterator<Item = std::io::Result<String>>,
    word: &str,
    last: &mut u64,
) -> Outcome {
    for n in 0..COUNT {
        let text = text(word, n);
        let sent = gemba.json(&["pubsub", "pub", TOPIC, &text, "--timeout", "20s"])?;
        let number: u64 = gemba::field(&sent, "seqno")?.parse()?;
        ensure!(
            number > *last,
            "message {n} has the number {number}, and {last} was used before"
        );
        *last = number;
        let line = lines
            .next()
            .context(|| "Kubo's stream of messages ended".into())??;
        let message: Value = serde_json::from_str(&line)?;
        ensure!(
            message["from"] == gemba.id.as_str(),
            "not a message of gemba: {message}"
        );
        ensure!(
            message["data"] == format!("u{}", base64(&text, URL)).as_str(),
            "message {n} of {word} has other content: {message}"
        );
        std::thread::sleep(PACE);
    }
    Ok(())
}

pub(super) fn until_kubo_knows(kubo: &Kubo, gemba: &Gemba) -> Outcome {
    let knows = || {
        let peers = kubo.rpc("pubsub/peers", &[&multibase(TOPIC)])?;
        let listed = peers["Strings"].as_array().cloned().unwrap_or_default();
        Ok(listed
            .iter()
            .any(|peer| *peer == gemba.id.as_str())
            .then_some(()))
    };
    until("Kubo knows that gemba reads the topic", SOON, knows).map(drop)
}

/// A library that has the clock of a program begin in 1970 when the program begins.
fn clock_in_1970(stage: &Stage) -> Outcome<PathBuf> {
    const SOURCE: &str = "#define _GNU_SOURCE\n#include <time.h>\n#include <unistd.h>\n#include <sys/syscall.h>\n\
        int clock_gettime(clockid_t id, struct timespec *t) {\n\
            return syscall(SYS_clock_gettime, id == CLOCK_REALTIME ? CLOCK_MONOTONIC : id, t);\n}\n";
    let (source, library) = (stage.path("clock.c"), stage.path("clock.so"));
    fs::write(&source, SOURCE)?;
    let mut cc = command(Path::new("cc"), None);
    cc.args([
        "-shared",
        "-fPIC",
        "-O2",
        "-o",
        path(&library)?,
        path(&source)?,
    ]);
    run(&mut cc, SOON)?.ok()?;
    Ok(library)
}

fn text(word: &str, n: usize) -> String {
    format!("message {n} of {word}")
}

fn path(path: &Path) -> Outcome<&str> {
    path.to_str().context(|| "path is not UTF-8".into())
}

const STANDARD: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
const URL: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";

/// Padded in the standard alphabet only, as gemba and Kubo have it.
fn base64(text: &str, alphabet: &[u8; 64]) -> String {
    let mut out = String::new();
    for chunk in text.as_bytes().chunks(3) {
        let byte = |n: usize| u32::from(chunk.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        for n in 0..=chunk.len() {
            out.push(char::from(alphabet[(bits >> (18 - 6 * n) & 63) as usize]));
        }
        if alphabet == STANDARD {
            out.extend(std::iter::repeat_n('=', 3 - chunk.len()));
        }
    }
    out
}

/// As Kubo's RPC wants a topic.
pub(super) fn multibase(topic: &str) -> String {
    format!("u{}", base64(topic, URL))
}
