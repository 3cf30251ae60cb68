//! gemba dials a Kubo of another swarm: at once, an error that names the swarm key.

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::{self, error_object};
use crate::scenario::{Scenario, Stage, other_key};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "wrong_key_from_gemba",
    about: "gemba with another key dials Kubo: the error names the swarm key, exit code 6, within 1.5 s",
    limit: Duration::from_secs(30),
    play,
};

const AT_ONCE: Duration = Duration::from_millis(1500);

fn play(stage: &Stage) -> Outcome<String> {
    let kubo = stage.kubo("kubo")?;
    let stranger = stage.gemba_with("stranger", &gemba::Options::new(&other_key()))?;
    let allowance = super::allowance(stranger.cli_within(&["id"], super::PATIENCE))?;
    stage.step("the stranger connects");
    let address = kubo.address()?;
    let finished = stranger.cli_within(&["connect", &address, "--json"], super::PATIENCE)?;
    let error = error_object(&finished)?;
    ensure!(
        super::names_the_swarm_key(&error.to_string()),
        "the error does not name the swarm key: {error}"
    );
    ensure!(
        finished.code == Some(6),
        "exit code {:?} in place of 6 (authentication): {error}",
        finished.code
    );
    ensure!(
        finished.wall < AT_ONCE + allowance,
        "the error took {} ms",
        finished.wall.as_millis()
    );
    ensure!(stranger.peers()?.is_empty(), "the stranger lists a peer");
    ensure!(kubo.peers()?.is_empty(), "Kubo lists the stranger");
    Ok(format!(
        "{} ms: {}",
        finished.wall.as_millis(),
        error["cause"].as_str().unwrap_or_default()
    ))
}
