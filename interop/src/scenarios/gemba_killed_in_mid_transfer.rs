//! gemba is killed in the middle of a transfer and started again: the pin that was asked for before gets whole with no further
//! command, and Kubo sends hardly more than one copy in all.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::proxy::Proxy;
use crate::rig::{root, tree, until};
use crate::scenario::{Scenario, Stage, key};
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "gemba_killed_in_mid_transfer",
    about: "gemba is killed in mid-transfer and restarted: the pin completes by itself, nothing is fetched twice",
    limit: Duration::from_secs(75),
    play,
};

const SIZE: u64 = 64 << 20;
const RATE: u64 = 16 << 20;
const KILL_AT: u64 = 24 << 20;
/// What may be sent again: blocks that were under way or not yet acknowledged as durable when the process died.
const SLACK: u64 = 12 << 20;

fn play(stage: &Stage) -> Outcome<String> {
    let source = stage.path("file.bin");
    tree::big_file(&source, SIZE, stage.seed)?;
    let kubo = stage.kubo("kubo")?;
    let proxy = Proxy::start(kubo.socket()?, RATE)?;
    let bootstrap = format!(
        "/ip4/127.0.0.1/tcp/{}/p2p/{}",
        proxy.address.port(),
        kubo.id
    );
    let options = gemba::Options {
        bootstrap: vec![bootstrap],
        ..gemba::Options::new(&key())
    };
    let mut gemba = stage.gemba_with("gemba", &options)?;
    gemba.wait_for_peer(&kubo.id, Duration::from_secs(10))?;
    let entries = kubo.add(&source, &[])?;
    let cid = root(&entries);

    stage.step("gemba pins over a slow line");
    let pin = gemba.cli_start(&["pin", "add", cid])?;
    until("24 MiB are under way", Duration::from_secs(20), || {
        Ok((proxy.sent() > KILL_AT).then_some(()))
    })?;
    stage.step("kill -9 of gemba");
    gemba.kill()?;
    let left_alone = pin.finish(Duration::from_secs(10))?;
    ensure!(
        !left_alone.succeeded(),
        "`pin add` says that the pin is whole though its daemon was killed"
    );

    stage.step("gemba comes back");
    gemba.up()?;
    let whole = |gemba: &Gemba| {
        Ok((gemba.json(&["pin", "status", cid])?["status"] == "pinned").then_some(()))
    };
    let (_, took) = until("the pin is whole", Duration::from_secs(30), || {
        whole(&gemba)
    })
    .context(|| "after the restart".into())?;
    let sent = kubo.bitswap("DataSent")?;
    ensure!(
        sent <= SIZE + SLACK,
        "Kubo sent {sent} bytes for a file of {SIZE}"
    );
    super::whole_after_kill(stage, &mut gemba, cid, &source)?;
    Ok(format!(
        "whole {:.1} s after the restart; Kubo sent {} MiB for {} MiB",
        took.as_secs_f64(),
        sent >> 20,
        SIZE >> 20
    ))
}
