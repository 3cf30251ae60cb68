//! Three gemba and two Kubo in one swarm: a folder of a Kubo gets to all of them, then a changed one of a gemba, with the
//! first origin gone.

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::Gemba;
use crate::rig::kubo::Kubo;
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

pub(super) const SCENARIO: Scenario = Scenario {
    name: "five_nodes_share_a_folder",
    about: "3 gemba and 2 Kubo: a folder gets to all, then a change of it from another node with the origin gone",
    limit: Duration::from_secs(75),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let folder = stage.path("folder");
    tree::many_files(&folder, 300, 2000, stage.seed)?;
    tree::big_file(&folder.join("big.bin"), 16 << 20, stage.seed)?;
    let (mut origin, other) = (stage.kubo("kubo-a")?, stage.kubo("kubo-b")?);
    let gembas = ["gemba-a", "gemba-b", "gemba-c"]
        .into_iter()
        .map(|name| stage.gemba(name))
        .collect::<Outcome<Vec<_>>>()?;
    connect_all(stage, [&origin, &other], &gembas)?;

    stage.step("the folder of a Kubo gets to all others");
    let entries = origin.add(&folder, &[])?;
    let first = pin_everywhere(root(&entries), &[&other], &gembas)?;
    verify(stage, "first", root(&entries), &folder, &[&other], &gembas)?;

    stage.step("a change made at a gemba, while the origin is gone");
    origin.kill()?;
    let changed = stage.path("changed").join("folder");
    tree::copy_files(&folder, &changed)?;
    tree::change_a_byte(&changed.join("part-00123.bin"))?;
    let entries = gembas[2].add(&changed, &[])?;
    let second = pin_everywhere(root(&entries), &[&other], &gembas)?;
    verify(
        stage,
        "second",
        root(&entries),
        &changed,
        &[&other],
        &gembas,
    )?;
    Ok(format!(
        "17 MiB at the last: {first}; one changed file: {second}"
    ))
}

/// Everybody with everybody.
fn connect_all(stage: &Stage, kubos: [&Kubo; 2], gembas: &[Gemba]) -> Outcome {
    stage.step("connecting everybody with everybody");
    kubos[1].connect(&kubos[0].address()?)?;
    for (n, gemba) in gembas.iter().enumerate() {
        for kubo in kubos {
            gemba.connect(&kubo.address()?)?;
        }
        for earlier in &gembas[..n] {
            gemba.connect(&earlier.address()?)?;
        }
    }
    for gemba in gembas {
        let peers = gemba.peers()?;
        ensure!(
            peers.len() == 4,
            "{} has {} peers in place of 4",
            gemba.name,
            peers.len()
        );
    }
    Ok(())
}

/// All at the same time; how long the slowest gemba and the slowest Kubo took.
fn pin_everywhere(cid: &str, kubos: &[&Kubo], gembas: &[Gemba]) -> Outcome<String> {
    let begun = Instant::now();
    thread::scope(|scope| {
        let timed = |done: Outcome| done.map(|()| begun.elapsed());
        let kubos: Vec<_> = kubos
            .iter()
            .map(|kubo| scope.spawn(move || timed(kubo.pin(cid))))
            .collect();
        let gembas: Vec<_> = gembas
            .iter()
            .map(|gemba| scope.spawn(move || timed(gemba.pin(cid))))
            .collect();
        Ok(format!(
            "gemba {} ms, Kubo {} ms",
            slowest(gembas)?,
            slowest(kubos)?
        ))
    })
}

fn slowest(pins: Vec<thread::ScopedJoinHandle<'_, Outcome<Duration>>>) -> Outcome<u128> {
    let mut slowest = Duration::ZERO;
    for pin in pins {
        slowest = slowest.max(
            pin.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
        );
    }
    Ok(slowest.as_millis())
}

fn verify(
    stage: &Stage,
    round: &str,
    cid: &str,
    folder: &Path,
    kubos: &[&Kubo],
    gembas: &[Gemba],
) -> Outcome {
    for (n, kubo) in kubos.iter().enumerate() {
        let out = stage.path(&format!("{round}-kubo-{n}"));
        kubo.get(cid, &out)?;
        tree::same(folder, &out)?;
    }
    for gemba in gembas {
        let out = stage.path(&format!("{round}-{}", gemba.name));
        gemba.get(cid, &out)?;
        tree::same(folder, &out)?;
        ensure!(
            gemba.is_pinned(cid)?,
            "{} does not list {cid} among its pins",
            gemba.name
        );
    }
    Ok(())
}
