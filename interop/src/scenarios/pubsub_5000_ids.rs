//! S4.44 (pubsub): IHAVE and IWANT of thousands of ids pass in both directions. Messages that nobody was sent are advertised, asked for, and
//! given: by Kubo to gemba's engine, by gemba's engine to Kubo, and to Kubo by a peer that puts 5,000 ids into one IHAVE, as Kubo does.

use super::pubsub_both_ways::{TOPIC, multibase};
use crate::failure::{Outcome, ensure};
use crate::scenario::{Scenario, Stage};
use serde_json::Value;
use std::io::{BufRead, BufReader};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "pubsub_5000_ids",
    about: "pubsub with a real Kubo: 5,000 messages by IHAVE and IWANT from Kubo, and 5,000 ids in one IHAVE to Kubo",
    limit: Duration::from_secs(240),
    play,
};

const COUNT: usize = 5000;
/// Kubo takes ten IHAVE of a peer in a second, and ours have some 300 ids each.
const OFFERED: usize = 2000;
const LIMIT: Duration = Duration::from_secs(90);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo_with_pubsub()?;
    let address = kubo.address()?;
    // Reads the topic, so that Kubo keeps what comes.
    let body = kubo.rpc_stream("pubsub/sub", &[&multibase(TOPIC)])?;
    let kept = Arc::new(AtomicUsize::new(0));
    let counted = kept.clone();
    std::thread::spawn(move || {
        for line in BufReader::new(body).lines().map_while(Result::ok) {
            // "kept " and a number, as Kubo writes it.
            counted.fetch_add(usize::from(line.contains("ua2VwdCA")), Ordering::Relaxed);
        }
    });

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

    stage.step("gemba's engine advertises, Kubo asks");
    let offered = stage.peer("offer", (&address, TOPIC), OFFERED, LIMIT)?;
    println!("{offered}");
    let served = number(&offered["counters"], "iwant_served");
    ensure!(
        number(&offered["counters"], "iwant_in") >= OFFERED && served >= OFFERED,
        "of {OFFERED} messages Kubo did not ask for all, or was not given them: {offered}"
    );
    // It verifies 32 at a time and drops what comes while these wait, with what is left of the step before: the reader has some, 38 of 2,000
    // on a busy machine.
    let begun = Instant::now();
    while kept.load(Ordering::Relaxed) == 0 && begun.elapsed() < Duration::from_secs(20) {
        std::thread::sleep(Duration::from_millis(100));
    }
    let taken = kept.load(Ordering::Relaxed);
    ensure!(
        taken > 0,
        "Kubo was given {served} messages, its reader has {taken}"
    );

    stage.step("5,000 ids in one IHAVE to Kubo");
    let raw = stage.peer("offer-raw", (&address, TOPIC), COUNT, LIMIT)?;
    println!("{raw}");
    ensure!(
        number(&raw, "asked") == COUNT,
        "Kubo asked for {} of {COUNT} ids: {raw}",
        raw["asked"]
    );
    Ok(format!(
        "{} of {COUNT} from Kubo (up to {} ids in one IHAVE), {served} of {OFFERED} to Kubo, of which its reader has {taken}, {COUNT} ids in one IHAVE of {} KB asked for",
        from_kubo.0,
        from_kubo.1,
        number(&raw, "ihave_bytes") / 1000
    ))
}
