//! Two hundred random trees, among them two that are just wide enough for sharded directories, get equal CIDs from gemba and
//! Kubo in every entry, under both import profiles.
//!
//! They lie in one folder, so that four processes do the work.

use crate::failure::{Outcome, ensure, fail};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo::{self, Kubo};
use crate::rig::{Entry, tree};
use crate::scenario::{Scenario, Stage, key};
use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "same_cids_200_trees",
    about: "U8: equal CIDs of every entry of 200 random trees, under unixfs-v1-2025 and unixfs-v0-2015",
    limit: Duration::from_secs(90),
    play,
};

const TREES: usize = 200;
const PROFILES: [&str; 2] = ["unixfs-v1-2025", "unixfs-v0-2015"];

fn play(stage: &Stage) -> Outcome<String> {
    stage.step("making the trees");
    let trees = stage.path("trees");
    make(&trees, stage)?;
    let mut compared = 0;
    for profile in PROFILES {
        stage.step(&format!("{profile}: Kubo adds"));
        let options = kubo::Options {
            profile: Some(profile),
            ..kubo::Options::new(&key())
        };
        let kubo = Kubo::init(
            &stage.kubo,
            &stage.dir,
            &format!("kubo-{profile}"),
            &options,
        )?;
        let theirs = kubo.add(&trees, &["--only-hash"])?;
        stage.step(&format!("{profile}: gemba adds"));
        let gemba = Gemba::init(
            &stage.gemba,
            &stage.dir,
            &format!("gemba-{profile}"),
            &gemba::Options::new(&key()),
        )?;
        let ours = gemba.add(&trees, &["--profile", profile])?;
        compared += compare(profile, &theirs, &ours)?;
    }
    Ok(format!("{compared} entries equal"))
}

fn make(trees: &Path, stage: &Stage) -> Outcome {
    let mut rng = stage.rng();
    for n in 0..TREES - 2 {
        tree::random_tree(&trees.join(format!("tree-{n:03}")), &mut rng, 3)?;
    }
    // 4,096 names of 30 bytes fill a directory of CIDv0 links to the brim (256 KiB); one more shards it. With 28 bytes the
    // exact size of the block, which unixfs-v1-2025 looks at, is over the same limit at 4,096 already.
    tree::wide_folder(&trees.join(format!("tree-{:03}", TREES - 2)), 4097, 30)?;
    tree::wide_folder(&trees.join(format!("tree-{:03}", TREES - 1)), 4096, 28)
}

/// The number of entries, if all are equal; the first difference by name otherwise, which is the deepest place to look at.
fn compare(profile: &str, theirs: &[Entry], ours: &[Entry]) -> Outcome<usize> {
    let index = |entries: &[Entry]| {
        entries
            .iter()
            .map(|e| (e.name.clone(), e.cid.clone()))
            .collect::<BTreeMap<_, _>>()
    };
    let (their_index, our_index) = (index(theirs), index(ours));
    ensure!(
        their_index.len() > 2 * TREES,
        "{profile}: only {} entries",
        their_index.len()
    );
    let mut differ = Vec::new();
    for name in their_index.keys().chain(our_index.keys()) {
        match (their_index.get(name), our_index.get(name)) {
            (Some(a), Some(b)) if a == b => {}
            (Some(a), Some(b)) => differ.push(format!("{name}: Kubo {a}, gemba {b}")),
            (Some(_), None) => fail!("{profile}: gemba does not list {name:?}"),
            (None, _) => fail!("{profile}: gemba lists {name:?}, Kubo does not"),
        }
    }
    // The longest name is the innermost entry: folders above it differ because of it.
    differ.sort_by_key(|line| std::cmp::Reverse(line.matches('/').count()));
    ensure!(
        differ.is_empty(),
        "{profile}: {} entries differ, such as {}",
        differ.len(),
        differ[0]
    );
    let (their_root, our_root) = (theirs.last(), ours.last());
    ensure!(
        their_root == our_root,
        "{profile}: the last line is {our_root:?} in place of {their_root:?}"
    );
    Ok(their_index.len())
}
