//! A Kubo of another swarm dials gemba: gemba's operator reads at once that somebody came with another swarm key.

use crate::failure::{Outcome, ensure};
use crate::rig::kubo;
use crate::rig::until;
use crate::scenario::{Scenario, Stage, other_key};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "wrong_key_from_kubo",
    about: "Kubo with another key dials gemba: log or status of gemba names the swarm key within 1.5 s",
    limit: Duration::from_secs(40),
    play,
};

const AT_ONCE: Duration = Duration::from_millis(1500);

fn play(stage: &Stage) -> Outcome<String> {
    let gemba = stage.gemba("gemba")?;
    let stranger = stage.kubo_with("stranger", &kubo::Options::new(&other_key()))?;
    let address = gemba.address()?;
    // Kubo's command that dials, and ours that asks for the status.
    let allowance = super::allowance(stranger.cli_within(&["id"], super::PATIENCE))?
        + super::allowance(gemba.cli_within(&["id"], super::PATIENCE))?;
    let before = gemba.log()?.len();
    stage.step("the stranger connects");
    let begun = Instant::now();
    let mut dial = stranger.cli_start(&["swarm", "connect", &address])?;
    let said = || {
        let log = gemba.log()?;
        if let Some(line) = log[before..]
            .lines()
            .find(|line| super::names_the_swarm_key(line))
        {
            return Ok(Some(format!("log: {}", line.trim())));
        }
        let status = gemba.json(&["status"])?["troubles"].to_string();
        Ok(super::names_the_swarm_key(&status).then(|| format!("status: {status}")))
    };
    let (said, _) = until(
        "gemba names the swarm key in its log or status",
        Duration::from_secs(10),
        said,
    )?;
    let took = begun.elapsed();
    ensure!(
        took < AT_ONCE + allowance,
        "it took {} ms until \"{said}\"",
        took.as_millis()
    );
    stage.step("waiting for Kubo's own answer");
    let (_, _) = until("Kubo gives up", Duration::from_secs(20), || {
        Ok(dial.ended()?.then_some(()))
    })?;
    let kubo_took = begun.elapsed();
    ensure!(
        dial.finish(Duration::from_secs(1))?.code != Some(0),
        "Kubo says that it is connected"
    );
    ensure!(gemba.peers()?.is_empty(), "gemba lists the stranger");
    ensure!(stranger.peers()?.is_empty(), "the stranger lists a peer");
    Ok(format!(
        "{} ms (Kubo's own error: {} ms): {said}",
        took.as_millis(),
        kubo_took.as_millis()
    ))
}
