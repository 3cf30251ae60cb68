//! S0.11: four gemba of one site pin a folder of a Kubo at the same time, and the Kubo sends about one copy. It needs nothing for that. Small blocks
//! are among them: a Kubo answers a want-have for one with the block, so nobody may ask whose turn it is not.

use crate::failure::{Outcome, ensure};
use crate::rig::{root, tree, until};
use crate::scenario::{Scenario, Stage};
use std::thread;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "once_from_kubo",
    about: "S0.11: four gemba of one site pin a folder of a Kubo, which sends about one copy",
    limit: Duration::from_secs(60),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let folder = stage.path("folder");
    tree::many_files(&folder, 300, 600, stage.seed)?;
    tree::big_file(&folder.join("big.bin"), 32 << 20, stage.seed)?;
    let origin = stage.kubo("kubo")?;
    let gembas = ["gemba-a", "gemba-b", "gemba-c", "gemba-d"]
        .into_iter()
        .map(|name| stage.gemba(name))
        .collect::<Outcome<Vec<_>>>()?;
    for (n, gemba) in gembas.iter().enumerate() {
        gemba.connect(&origin.address()?)?;
        for earlier in &gembas[..n] {
            gemba.connect(&earlier.address()?)?;
        }
    }
    for gemba in &gembas {
        until("mates know each other", Duration::from_secs(10), || {
            let status = gemba.json(&["status"])?;
            Ok((status["site"]["mates"] == 3).then_some(()))
        })?;
    }
    let entries = origin.add(&folder, &[])?;
    let cid = root(&entries);
    stage.step("all pin it at the same time");
    thread::scope(|scope| {
        let pins: Vec<_> = gembas
            .iter()
            .map(|gemba| scope.spawn(move || gemba.pin(cid)))
            .collect();
        pins.into_iter().try_for_each(|pin| {
            pin.join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    })?;
    for gemba in &gembas {
        let out = stage.path(&format!("out-{}", gemba.name));
        gemba.get(cid, &out)?;
        tree::same(&folder, &out)?;
    }
    let bytes = gembas[0].json(&["status"])?["repo"]["bytes"]
        .as_u64()
        .unwrap_or(1);
    let (sent, blocks) = (origin.bitswap("DataSent")?, origin.bitswap("BlocksSent")?);
    let ratio = sent as f64 / bytes as f64;
    ensure!(
        (1.0..=1.10).contains(&ratio),
        "the Kubo sent {ratio:.3} copies ({blocks} blocks)"
    );
    Ok(format!(
        "the Kubo sent {ratio:.3} copies to four, {blocks} blocks"
    ))
}
