//! A block that no peer has: `pin add --timeout` ends in time, with an exit code and a cause, and `why` names who was asked.

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::error_object;
use crate::rig::root;
use crate::scenario::{Scenario, Stage};
use std::fs;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "want_nobody_has_ends_with_cause",
    about: "a want that nobody has ends in time with a cause, exit code 3 or 4; `why` names the asked Kubo",
    limit: Duration::from_secs(40),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let (gemba, kubo) = stage.pair()?;
    let file = stage.path("nowhere");
    fs::write(&file, format!("seed {}", stage.seed))?;
    let entries = kubo.add(&file, &["--only-hash"])?;
    let cid = root(&entries);
    stage.step("gemba pins what nobody has");
    let mut pin = gemba.cli_start(&["pin", "add", cid, "--timeout", "3s", "--json"])?;
    std::thread::sleep(Duration::from_secs(2));
    ensure!(!pin.ended()?, "it gave up before its time");
    let why = gemba.cli(&["why", cid])?;
    ensure!(
        why.contains(&kubo.id),
        "`why` does not name the peer that was asked: {why}"
    );
    let finished = pin.finish(Duration::from_secs(10))?;
    ensure!(
        matches!(finished.code, Some(3 | 4)),
        "exit code {:?} in place of 3 or 4: {}",
        finished.code,
        finished.stderr
    );
    let error = error_object(&finished)?;
    let cause = error["cause"].as_str().unwrap_or_default();
    ensure!(!cause.is_empty(), "the error has no cause: {error}");
    ensure!(
        finished.wall < Duration::from_secs(6),
        "a time-out of 3 s took {} ms",
        finished.wall.as_millis()
    );
    stage.step("looking for the block");
    let stat = gemba.cli_within(
        &["block", "stat", cid, "--timeout", "1s"],
        Duration::from_secs(10),
    )?;
    ensure!(!stat.succeeded(), "the block is there after all");
    Ok(format!(
        "exit code {} after {} ms: {cause}",
        finished.code.unwrap_or_default(),
        finished.wall.as_millis()
    ))
}
