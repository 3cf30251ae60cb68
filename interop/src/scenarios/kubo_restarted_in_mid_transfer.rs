//! Kubo is killed in the middle of a transfer and comes back: the pin gets whole by itself, and what was there is not fetched
//! a second time.

use crate::failure::{Context, Outcome, ensure};
use crate::rig::proxy::Proxy;
use crate::rig::{gemba, root, tree, until};
use crate::scenario::{Scenario, Stage, key};
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "kubo_restarted_in_mid_transfer",
    about: "Kubo is killed in mid-transfer and restarted: the pin completes by itself, nothing is fetched twice",
    limit: Duration::from_secs(75),
    play,
};

const SIZE: u64 = 64 << 20;
const RATE: u64 = 16 << 20;
const KILL_AT: u64 = 24 << 20;
/// What may be fetched again: blocks that were under way when the connection broke.
const SLACK: u64 = 8 << 20;

fn play(stage: &Stage) -> Outcome<String> {
    let source = stage.path("file.bin");
    tree::big_file(&source, SIZE, stage.seed)?;
    let mut kubo = stage.kubo("kubo")?;
    kubo.keep_port()?;
    let proxy = Proxy::start(kubo.socket()?, RATE)?;
    let bootstrap = format!(
        "/ip4/127.0.0.1/tcp/{}/p2p/{}",
        proxy.address.port(),
        kubo.id
    );
    let mut gemba = stage.gemba_with(
        "gemba",
        &gemba::Options {
            bootstrap: vec![bootstrap],
            ..gemba::Options::new(&key())
        },
    )?;
    gemba.wait_for_peer(&kubo.id, Duration::from_secs(10))?;
    let entries = kubo.add(&source, &[])?;
    let cid = root(&entries);

    stage.step("gemba pins over a slow line");
    let mut pin = gemba.cli_start(&["pin", "add", cid])?;
    until("24 MiB are under way", Duration::from_secs(20), || {
        Ok((proxy.sent() > KILL_AT).then_some(()))
    })?;
    let status = gemba.json(&["pin", "status", cid])?;
    stage.step("kill -9 of Kubo");
    kubo.kill()?;
    let there = status["bytes_done"]
        .as_u64()
        .context(|| format!("no bytes_done in {status}"))?;
    ensure!(
        there > 0 && there < SIZE,
        "{there} bytes are done in mid-transfer: {status}"
    );
    std::thread::sleep(Duration::from_secs(2));
    ensure!(
        !pin.ended()?,
        "the pin ended while its only source was gone: {}",
        pin.finish(Duration::ZERO)?.stderr
    );

    stage.step("Kubo comes back");
    kubo.up()?;
    let back = Instant::now();
    pin.finish(Duration::from_secs(40))?
        .ok()
        .context(|| "the pin that was under way".into())?;
    let took = back.elapsed();
    let sent = kubo.bitswap("DataSent")?;
    ensure!(
        sent <= SIZE - there + SLACK,
        "Kubo sent {sent} bytes after its restart, though {there} of {SIZE} were there before it"
    );
    super::whole_after_kill(stage, &mut gemba, cid, &source)?;
    Ok(format!(
        "whole {:.1} s after the restart; {} MiB before, {} MiB after it",
        took.as_secs_f64(),
        there >> 20,
        sent >> 20
    ))
}
