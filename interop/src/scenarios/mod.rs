//! The scenarios, one file each.

mod car_both_ways;
mod connect_gemba_to_kubo;
mod connect_kubo_to_gemba;
mod control_two_kubos;
mod events_seen_by_kubo;
mod fingerprint;
mod five_nodes_share_a_folder;
mod gemba_killed_in_mid_transfer;
mod kubo_restarted_in_mid_transfer;
mod mdns_finds_kubo;
mod names_both_ways;
mod names_by_dht;
mod once_from_kubo;
mod pin_from_gemba_2000_files;
mod pin_from_gemba_256_mib;
mod pin_from_kubo_2000_files;
mod pin_from_kubo_256_mib;
mod pins_both_ways;
mod pins_in_front_of_kubo;
mod pubsub_5000_ids;
mod pubsub_both_ways;
mod pubsub_limits;
mod pubsub_numbers;
mod pubsub_reconnects;
mod same_cids_200_trees;
mod two_keys_on_one_segment;
mod want_nobody_has_ends_with_cause;
mod wrong_key_from_gemba;
mod wrong_key_from_kubo;

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::Gemba;
use crate::rig::kubo::Kubo;
use crate::rig::process::Finished;
use crate::rig::{tree, until};
use crate::scenario::{Scenario, Stage};
use serde_json::Value;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

/// For what only has to happen; what has to be fast is measured by the scenario itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// What a demand on a command is given in addition: three times what this machine takes for one that has nothing to do.
fn allowance(idle: Outcome<Finished>) -> Outcome<Duration> {
    let idle = idle?;
    ensure!(idle.succeeded(), "`id` failed: {}", idle.stderr.trim());
    Ok(3 * idle.wall)
}

/// All scenarios in the order they are played: the first one that fails is then most likely the cause of the others.
pub(crate) static ALL: &[Scenario] = &[
    control_two_kubos::SCENARIO,
    fingerprint::SCENARIO,
    connect_gemba_to_kubo::SCENARIO,
    connect_kubo_to_gemba::SCENARIO,
    wrong_key_from_gemba::SCENARIO,
    wrong_key_from_kubo::SCENARIO,
    pin_from_kubo_2000_files::SCENARIO,
    pin_from_kubo_256_mib::SCENARIO,
    pin_from_gemba_2000_files::SCENARIO,
    pin_from_gemba_256_mib::SCENARIO,
    same_cids_200_trees::SCENARIO,
    want_nobody_has_ends_with_cause::SCENARIO,
    kubo_restarted_in_mid_transfer::SCENARIO,
    gemba_killed_in_mid_transfer::SCENARIO,
    car_both_ways::SCENARIO,
    pins_both_ways::SCENARIO,
    pins_in_front_of_kubo::SCENARIO,
    pubsub_both_ways::SCENARIO,
    pubsub_limits::SCENARIO,
    pubsub_numbers::SCENARIO,
    pubsub_5000_ids::SCENARIO,
    pubsub_reconnects::SCENARIO,
    names_both_ways::SCENARIO,
    names_by_dht::SCENARIO,
    events_seen_by_kubo::SCENARIO,
    five_nodes_share_a_folder::SCENARIO,
    once_from_kubo::SCENARIO,
    mdns_finds_kubo::SCENARIO,
    two_keys_on_one_segment::SCENARIO,
];

/// After `pin add` has returned, the power goes. The pin and every byte have to be there without a daemon and without a peer.
fn whole_after_kill(stage: &Stage, gemba: &mut Gemba, cid: &str, source: &Path) -> Outcome {
    stage.step("kill -9 of gemba, then reading everything without a daemon");
    gemba.kill()?;
    ensure!(
        gemba.is_pinned(cid)?,
        "{cid} is not among the pins after a kill"
    );
    let out = stage.path("out-of-gemba");
    gemba.get(cid, &out)?;
    tree::same(source, &out)
}

/// Whether an operator who reads this knows what to look at.
fn names_the_swarm_key(text: &str) -> bool {
    text.to_lowercase().contains("swarm key")
}

fn check_kubo_as_seen_by_gemba(peer: &Value, direction: &str) -> Outcome {
    let agent = peer["agent"].as_str().unwrap_or_default();
    ensure!(
        agent.starts_with("kubo/0.42"),
        "gemba takes Kubo's agent for {agent:?}"
    );
    ensure!(
        peer["address"]
            .as_str()
            .is_some_and(|a| a.contains("/tcp/")),
        "gemba lists Kubo without its address: {peer}"
    );
    ensure!(
        peer["direction"] == direction,
        "gemba takes the direction for another than {direction:?}: {peer}"
    );
    Ok(())
}

fn check_gemba_as_seen_by_kubo(kubo: &Kubo, gemba: &Gemba) -> Outcome {
    kubo.wait_for_peer(&gemba.id, PATIENCE)?;
    let known = || {
        let known = kubo.rpc("id", &[&gemba.id])?;
        Ok(known["AgentVersion"]
            .as_str()
            .is_some_and(|agent| agent.starts_with("gemba/"))
            .then_some(known))
    };
    let (known, _) = until("Kubo knows gemba's agent", PATIENCE, known)?;
    let speaks = |protocol: &str| {
        known["Protocols"]
            .as_array()
            .is_some_and(|all| all.iter().any(|p| p == protocol))
    };
    for protocol in ["/ipfs/bitswap/1.2.0", "/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"] {
        ensure!(
            speaks(protocol),
            "Kubo sees no {protocol} at gemba: {}",
            known["Protocols"]
        );
    }
    let mut pongs = String::new();
    kubo.rpc_stream("ping?count=2", &[&gemba.id])?
        .read_to_string(&mut pongs)?;
    let pongs = pongs
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let answered = pongs
        .filter(|pong| pong["Success"] == true && pong["Time"].as_u64().is_some_and(|ns| ns > 0))
        .count();
    ensure!(
        answered == 2,
        "gemba answered {answered} of 2 pings of Kubo"
    );
    Ok(())
}
