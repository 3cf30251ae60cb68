//! S4.3: a batch of events is a block like any other. A Kubo that knows nothing of the event log asks the swarm for it by its CID, gets it from a
//! gemba, checks its hash, and reads author, stream and events as fields; it goes on to the batch before by the link that the batch has.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{Gemba, field};
use crate::rig::key::base64;
use crate::rig::kubo::Kubo;
use crate::scenario::{Scenario, Stage};
use serde_json::{Value, json};
use std::fs;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "events_seen_by_kubo",
    about: "S4.3: a Kubo fetches batches of events by CID from gemba's log, and reads author, stream, events and links as fields",
    limit: Duration::from_secs(60),
    play,
};

const STREAM: &str = "hall-1/line-3/press-7/count";
/// What compresses is compressed: a Kubo sees its bytes alone.
const LARGE: usize = 100_000;

fn play(stage: &Stage) -> Outcome<String> {
    let (gemba, kubo) = stage.pair()?;
    let author = json!({"/": {"bytes": unpadded(&public_key(&gemba.id)?)}});

    stage.step("gemba appends, Kubo reads the batch by its CID");
    let first = append(
        &gemba,
        &["17 pieces", "--producer", "plc-7", "--producer-seq", "41"],
    )?;
    let batch = read(&kubo, &first)?;
    for (name, expected) in [
        ("v", json!(1)),
        ("author", author.clone()),
        ("stream", json!(STREAM)),
        ("epoch", json!(0)),
        ("batch", json!(0)),
        ("first", json!(0)),
        ("count", json!(1)),
    ] {
        ensure!(
            batch[name] == expected,
            "{name} is {} to Kubo, not {expected}: {batch}",
            batch[name]
        );
    }
    let event = &batch["events"][0];
    ensure!(
        event[1] == bytes(b"17 pieces"),
        "the payload is {} to Kubo",
        event[1]
    );
    ensure!(
        event[0].as_i64().is_some_and(|ms| ms > 1_600_000_000_000),
        "the time is {} to Kubo",
        event[0]
    );
    ensure!(
        event[2]["producer"] == json!(["plc-7", 41]),
        "the headers are {} to Kubo",
        event[2]
    );
    let signature = batch["signature"]["/"]["bytes"].as_str();
    ensure!(
        signature.is_some_and(|text| text.len() == unpadded(&[0; 64]).len()),
        "the signature is {signature:?} to Kubo"
    );

    stage.step("Kubo goes from a batch to the one before");
    let second = append(&gemba, &["18 pieces"])?;
    let linked = kubo.cli(&["dag", "get", &second])?;
    let linked: Value = serde_json::from_str(&linked)?;
    ensure!(
        linked["prev"] == json!({"/": first}),
        "the link is {} to Kubo, not {first}",
        linked["prev"]
    );
    let payload = read(&kubo, &format!("{second}/prev/events/0/1"))?;
    ensure!(payload == bytes(b"17 pieces"), "Kubo found {payload}");

    stage.step("a batch that is compressed");
    let file = stage.path("large");
    fs::write(&file, "piece ".repeat(LARGE / 6))?;
    let acked = gemba.cli_reading(&["log", "append", STREAM, "--whole", "--json"], &file)?;
    let acked: Value = serde_json::from_str(acked.ok()?.trim())?;
    let third = field(&acked, "cid")?;
    let batch = read(&kubo, &third)?;
    ensure!(
        batch["events"].is_null()
            && batch["lz4"]["/"]["bytes"].is_string()
            && batch["size"]
                .as_u64()
                .is_some_and(|size| size > LARGE as u64 / 2)
            && batch["author"] == author
            && batch["stream"] == STREAM,
        "a compressed batch is to Kubo: {batch}"
    );

    stage.step(
        "nothing else serves them: the store of gemba is empty, and Kubo has what it asked for",
    );
    let status = gemba.json(&["status"])?;
    ensure!(
        status["repo"]["blocks"] == 0,
        "the store has blocks of its own: {status}"
    );
    let mut sizes = Vec::new();
    for cid in [&first, &second, &third] {
        let theirs = kubo.cli_bytes(&["block", "get", cid])?;
        let ours = gemba.cli_bytes(&["block", "get", cid])?;
        ensure!(theirs == ours, "Kubo has other bytes of {cid}");
        sizes.push(theirs.len());
    }
    Ok(format!("batches of {sizes:?} bytes"))
}

/// Appends one event; the CID of its batch.
fn append(gemba: &Gemba, args: &[&str]) -> Outcome<String> {
    field(
        &gemba.json(&[&["log", "append", STREAM], args].concat())?,
        "cid",
    )
}

fn read(kubo: &Kubo, path: &str) -> Outcome<Value> {
    let text = kubo.cli(&["dag", "get", path])?;
    serde_json::from_str(&text).context(|| format!("Kubo's `dag get {path}` gave {text:?}"))
}

/// Bytes as dag-json has them.
fn bytes(bytes: &[u8]) -> Value {
    json!({"/": {"bytes": unpadded(bytes)}})
}

fn unpadded(bytes: &[u8]) -> String {
    base64(bytes).trim_end_matches('=').to_owned()
}

/// The Ed25519 key in a peer id, which holds it as it is: base58 of two bytes of multihash, four of protobuf, and the 32 of the key.
fn public_key(id: &str) -> Outcome<Vec<u8>> {
    const ALPHABET: &str = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
    // Least significant first.
    let mut number: Vec<u8> = Vec::new();
    for letter in id.chars() {
        let digit = ALPHABET.find(letter);
        let mut carry = digit.context(|| format!("{id:?} is no base58"))?;
        for byte in &mut number {
            carry += usize::from(*byte) * 58;
            *byte = (carry & 0xff) as u8;
            carry >>= 8;
        }
        if carry > 0 {
            number.push(carry as u8);
        }
    }
    number.reverse();
    // The first byte of the multihash is zero, and a number has no leading zeros.
    ensure!(
        number.len() == 37 && number.starts_with(&[0x24, 0x08, 0x01, 0x12, 0x20]),
        "{id} is no peer id with an Ed25519 key: {number:?}"
    );
    Ok(number.split_off(5))
}
