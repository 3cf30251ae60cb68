//! Kubo dials gemba: the same as the other way round.

use crate::failure::{Context, Outcome};
use crate::scenario::{Scenario, Stage};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "connect_kubo_to_gemba",
    about: "Kubo dials gemba; both sides list the other with its agent; ping (S0.52)",
    limit: Duration::from_secs(30),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let (kubo, gemba) = (stage.kubo("kubo")?, stage.gemba("gemba")?);
    let address = gemba.address()?;
    stage.step("Kubo connects");
    let begun = Instant::now();
    kubo.connect(&address)?;
    let took = begun.elapsed();
    gemba.wait_for_peer(&kubo.id, super::PATIENCE)?;
    super::check_gemba_as_seen_by_kubo(&kubo, &gemba)?;
    // Identify may still be under way on our side when Kubo's is done.
    let listed = || {
        let peers = gemba.json_lines(&["peers"])?;
        Ok(peers
            .into_iter()
            .find(|peer| peer["id"] == *kubo.id && peer["agent"] != ""))
    };
    let (peer, _) = crate::rig::until("gemba knows Kubo's agent", super::PATIENCE, listed)
        .context(|| "gemba does not list Kubo with its agent".into())?;
    super::check_kubo_as_seen_by_gemba(&peer, "in")?;
    Ok(format!("{} ms", took.as_millis()))
}
