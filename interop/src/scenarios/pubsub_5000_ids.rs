//! S4.44 (pubsub): IHAVE and IWANT of thousands of ids pass in both directions. Messages that nobody was sent are advertised, asked for, and
//! given: by Kubo to gemba's engine, and to Kubo by a peer that puts 5,000 ids into one IHAVE, as Kubo does.

use super::pubsub_both_ways::{TOPIC, multibase};
use crate::failure::{Outcome, ensure};
use crate::scenario::{Scenario, Stage};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_5000_ids",
    about: "pubsub with a real Kubo: 5,000 messages by IHAVE and IWANT from Kubo, and 5,000 ids in one IHAVE to Kubo",
    limit: Duration::from_secs(240),
    play,
};

const COUNT: usize = 5000;
const LIMIT: Duration = Duration::from_secs(90);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo_with_pubsub()?;
    let address = kubo.address()?;
    // Reads the topic, so that Kubo keeps what comes; its messages are not looked at.
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    std::thread::spawn(move || for _line in BufReader::new(body).lines() {});

    stage.step("Kubo advertises, gemba's engine asks");
    let asked = stage.peer("ask", (&address, TOPIC), COUNT, LIMIT)?;
    println!("{asked}");
    let number = |told: &Value, name: &str| told[name].as_u64().unwrap_or_default() as usize;
    let counters = &asked["counters"];
    ensure!(
        // How many are in one IHAVE depends on how many Kubo verifies in three seconds; on a quiet machine it is 5,000.
        number(&asked, "came") >= COUNT && number(&asked, "largest_ihave") * 10 >= COUNT,
        "Kubo advertised {COUNT} messages, and {asked} came"
    );
    ensure!(
        number(counters, "iwant_out") >= number(&asked, "came"),
        "they came without having been asked for: {asked}"
    );
    let from_kubo = (number(&asked, "came"), number(&asked, "largest_ihave"));

    stage.step("5,000 ids in one IHAVE to Kubo");
    let raw = stage.peer("offer-raw", (&address, TOPIC), COUNT, LIMIT)?;
    println!("{raw}");
    ensure!(
        number(&raw, "asked") == COUNT,
        "Kubo asked for {} of {COUNT} ids: {raw}",
        raw["asked"]
    );
    Ok(format!(
        "{} of {COUNT} from Kubo (up to {} ids in one IHAVE), {COUNT} ids in one IHAVE of {} KB asked for",
        from_kubo.0,
        from_kubo.1,
        number(&raw, "ihave_bytes") / 1000
    ))
}
