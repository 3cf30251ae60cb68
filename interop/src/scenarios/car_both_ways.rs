//! Archives: what one exports the other imports, the content is the same, and both write the same bytes for the same DAG.

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::{root, tree};
use crate::scenario::{Scenario, Stage, key};
use std::fs;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "car_both_ways",
    about: "CAR files of Kubo are imported by gemba and the other way round; equal bytes for equal DAGs",
    limit: Duration::from_secs(40),
    play,
};

fn play(stage: &Stage) -> Outcome<String> {
    let folder = stage.path("folder");
    tree::many_files(&folder, 50, 3000, stage.seed)?;
    tree::big_file(&folder.join("big.bin"), 5 << 20, stage.seed)?;
    fs::create_dir(folder.join("empty"))?;
    // The same content twice: its blocks are in the archive once.
    tree::many_files(&folder.join("again"), 50, 3000, stage.seed)?;
    let init_kubo = |name| Kubo::init(&stage.kubo, &stage.dir, name, &kubo::Options::new(&key()));
    let init_gemba =
        |name| Gemba::init(&stage.gemba, &stage.dir, name, &gemba::Options::new(&key()));

    stage.step("Kubo to gemba");
    let (kubo_a, gemba_a) = (init_kubo("kubo-a")?, init_gemba("gemba-a")?);
    let entries = kubo_a.add(&folder, &[])?;
    let cid = root(&entries);
    let theirs = kubo_a.cli_bytes(&["dag", "export", "--progress=false", cid])?;
    let file = stage.path("kubo.car");
    fs::write(&file, &theirs)?;
    gemba_a.cli(&["dag", "import", &file.to_string_lossy()])?;
    gemba_a.get(cid, &stage.path("out-of-gemba"))?;
    tree::same(&folder, &stage.path("out-of-gemba"))?;
    let again = gemba_a.cli_bytes(&["dag", "export", cid])?;
    ensure!(
        again == theirs,
        "gemba's archive of {cid} has {} bytes, Kubo's has {}",
        again.len(),
        theirs.len()
    );

    stage.step("gemba to Kubo");
    let (kubo_b, gemba_b) = (init_kubo("kubo-b")?, init_gemba("gemba-b")?);
    let entries = gemba_b.add(&folder, &[])?;
    let cid = root(&entries);
    let ours = gemba_b.cli_bytes(&["dag", "export", cid])?;
    let file = stage.path("gemba.car");
    fs::write(&file, &ours)?;
    kubo_b.cli(&["dag", "import", &file.to_string_lossy()])?;
    kubo_b.get(cid, &stage.path("out-of-kubo"))?;
    tree::same(&folder, &stage.path("out-of-kubo"))?;

    stage.step("a cut archive");
    let cut = stage.path("cut.car");
    fs::write(&cut, &theirs[..theirs.len() - 1])?;
    let refused = init_gemba("gemba-c")?.cli_within(
        &["dag", "import", &cut.to_string_lossy()],
        Duration::from_secs(10),
    )?;
    ensure!(
        !refused.succeeded(),
        "gemba imports an archive that lacks its last byte"
    );
    Ok(format!("{} and {} bytes", theirs.len(), ours.len()))
}
