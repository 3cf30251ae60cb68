//! gemba dials Kubo: both list each other, know each other's agent, and Kubo's pings are answered.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::until;
use crate::scenario::{Scenario, Stage};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "connect_gemba_to_kubo",
    about: "gemba dials Kubo; both sides list the other with its agent; ping; SIGTERM ends gemba with 0 (S0.52)",
    limit: Duration::from_secs(30),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let (kubo, mut gemba) = (stage.kubo("kubo")?, stage.gemba("gemba")?);
    let address = kubo.address()?;
    stage.step("gemba connects");
    let allowance = super::allowance(gemba.cli_within(&["id"], super::PATIENCE))?;
    let begun = Instant::now();
    gemba.connect(&address)?;
    let took = begun.elapsed();
    let mut peers = gemba.json_lines(&["peers"])?.into_iter();
    let peer = peers
        .find(|peer| peer["id"] == *kubo.id)
        .context(|| "gemba does not list Kubo".into())?;
    super::check_kubo_as_seen_by_gemba(&peer, "out")?;
    super::check_gemba_as_seen_by_kubo(&kubo, &gemba)?;
    ensure!(
        took < Duration::from_secs(2) + allowance,
        "connecting took {} ms",
        took.as_millis()
    );
    stage.step("gemba ends in order");
    let ended = gemba.stop()?;
    ensure!(ended.success(), "gemba ended SIGTERM with {ended}");
    let gone = || Ok(kubo.peers()?.is_empty().then_some(()));
    until("Kubo no longer lists gemba", super::PATIENCE, gone)?;
    Ok(format!("{} ms", took.as_millis()))
}
