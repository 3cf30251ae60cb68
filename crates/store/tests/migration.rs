//! Stores of older formats: they open, whatever happens in between, and a backup of what was changed is kept.
#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use common::lying::{Lie, Lying};
use common::{DIR, Model};
use gemba_block::Block;
use gemba_segment::Disk;
use gemba_store::{Config, OpenError, Store};
use gemba_testkit::disk::{Call, Moment, SimDisk};
use gemba_testkit::{Rng, rng, sim_scale};

fn version() -> PathBuf {
    Path::new(DIR).join("version")
}

fn backup() -> PathBuf {
    Path::new(DIR).join("version.1")
}

fn open(disk: Arc<dyn Disk>) -> Result<Store, OpenError> {
    Store::open_on(disk, DIR, common::config())
}

/// A store of format 1 that was used for a while, and what is in it.
fn old_store(seed: u64) -> (SimDisk, Model, Vec<u8>) {
    let sim = SimDisk::new(seed);
    let model = Arc::default();
    let disk: Arc<dyn Disk> = Arc::new(sim.clone());
    common::workload(&disk, &common::config(), seed, 12, &model);
    drop(open(disk).unwrap());
    let text = String::from_utf8(sim.bytes(&version()).unwrap()).unwrap();
    let id = text.lines().nth(1).unwrap();
    let old = format!("gemba-store 1\n{id}\n").into_bytes();
    sim.install(&version(), old.clone());
    let model = model.lock().unwrap().clone();
    (sim, model, old)
}

/// What must be true of the files at every moment: the old format, or the new one and the backup.
fn check_files(sim: &SimDisk, old: &[u8]) -> Result<(), String> {
    let now = sim.bytes(&version()).ok_or("no version file")?;
    if now == old {
        return Ok(());
    }
    if !now.starts_with(b"gemba-store 2\n") {
        return Err(format!("a version file {now:?}"));
    }
    match sim.bytes(&backup()) {
        Some(bytes) if bytes == old => Ok(()),
        other => Err(format!("the new format with the backup {other:?}")),
    }
}

/// Opening after a crash: whole, and migrated.
fn check_store(after: &SimDisk, model: &Model, old: &[u8]) -> Result<(), String> {
    check_files(after, old)?;
    let store = open(Arc::new(after.clone())).map_err(|e| e.to_string())?;
    common::check_open(&store, model)?;
    drop(store);
    check_files(after, old)?;
    if after.bytes(&version()).as_deref() == Some(old) {
        return Err("not migrated".to_owned());
    }
    Ok(())
}

#[derive(Default)]
struct Score {
    points: usize,
    second_order: usize,
    broken: Option<String>,
}

/// Migrates on a disk that loses power at every call, `survivors` ways each; and at every call of the recovery, now and then.
fn crash_everywhere(seed: u64, survivors: usize, lie: Option<Lie>) -> Score {
    let (sim, model, old) = old_store(seed);
    let score = Arc::new(Mutex::new(Score::default()));
    let mut rng = Rng::new(seed ^ 0x5eed);
    let (shared, text) = (Arc::clone(&score), old.clone());
    sim.observe(move |moment: &Moment<'_>| {
        let cuts: Vec<_> = (0..survivors)
            .map(|_| moment.power_cut(&mut rng))
            .chain([moment.kill()])
            .collect();
        for after in cuts {
            if rng.chance(1, 5) {
                observe_recovery(&after, &model, &text, &shared, rng.next_u64());
            }
            let broken = check_store(&after, &model, &text).err();
            after.stop_observing();
            let mut score = shared.lock().unwrap();
            score.points += 1;
            score.broken = score.broken.take().or(broken);
        }
    });
    let disk: Arc<dyn Disk> = match lie {
        Some(lie) => Arc::new(Lying {
            sim: sim.clone(),
            lie,
        }),
        None => Arc::new(sim.clone()),
    };
    let store = open(disk).unwrap();
    sim.stop_observing();
    let migrated = store.open_report().migrated.clone().unwrap();
    assert_eq!((migrated.from, migrated.backup), (1, backup()));
    std::mem::take(&mut *score.lock().unwrap())
}

fn observe_recovery(
    after: &SimDisk,
    model: &Model,
    old: &[u8],
    score: &Arc<Mutex<Score>>,
    seed: u64,
) {
    let (model, old, score) = (model.clone(), old.to_vec(), Arc::clone(score));
    let mut rng = Rng::new(seed);
    after.observe(move |moment: &Moment<'_>| {
        let broken = check_store(&moment.power_cut(&mut rng), &model, &old).err();
        let mut score = score.lock().unwrap();
        score.second_order += 1;
        score.broken = score.broken.take().or(broken);
    });
}

/// S1.32, and row M1: the power goes at every call of a migration, and at every call of the one that follows. 10,000 points in full.
#[test]
fn s1_32_a_migration_survives_a_power_cut_at_every_call() {
    let (mut points, mut second_order) = (0, 0);
    for seed in rng::seeds(sim_scale(60)) {
        let score = crash_everywhere(seed, 20, None);
        assert_eq!(score.broken, None, "seed {seed:#x}");
        points += score.points;
        second_order += score.second_order;
    }
    let found = (points, second_order);
    assert!(points >= sim_scale(10_000), "{found:?}");
    assert!(second_order >= sim_scale(1_000), "{found:?}");
}

/// The harness finds a migration that does not wait for the disk.
#[test]
fn planted_bugs_of_a_migration_are_found() {
    for lie in [Lie::NoSync, Lie::NoSyncDir, Lie::NoSyncVersion] {
        let found = (1..=10).any(|seed| crash_everywhere(seed, 10, Some(lie)).broken.is_some());
        assert!(found, "{lie:?} was not found");
    }
}

/// Row S5 for a migration: every failing call. The store does not open then, is as it was, and opens once the disk obeys.
#[test]
fn s5_a_migration_that_fails_changes_nothing() {
    let mut failed = 0;
    for call in [
        Call::Write,
        Call::WriteFull,
        Call::WriteShort,
        Call::Sync,
        Call::SyncDir,
        Call::Create,
        Call::SetLen,
        Call::Rename,
    ] {
        for (nth, seed) in (1..=4).zip(rng::seeds(4)) {
            let (sim, model, old) = old_store(seed);
            sim.fail(call, nth, 1);
            failed += usize::from(open(Arc::new(sim.clone())).is_err());
            sim.heal();
            for after in [sim.kill(), sim.power_cut(&mut Rng::new(seed))] {
                assert_eq!(
                    check_store(&after, &model, &old),
                    Ok(()),
                    "{call:?} {nth}, seed {seed:#x}"
                );
            }
        }
    }
    assert!(failed > 8, "{failed}");
}

/// A reader changes nothing, and reads an old store all the same. With the backup in its place the store has the old format again,
/// and is migrated once more.
#[test]
fn s1_32_readers_do_not_migrate_and_the_backup_leads_back() {
    let (sim, model, old) = old_store(7);
    let ops = sim.ops();
    let reader = Store::open_read_only_on(Arc::new(sim.clone()), DIR, Config::default()).unwrap();
    common::check_open(&reader, &model).unwrap();
    assert_eq!(reader.open_report().migrated, None);
    drop(reader);
    assert_eq!(sim.ops(), ops);
    for _ in 0..2 {
        let store = open(Arc::new(sim.clone())).unwrap();
        assert!(store.open_report().migrated.is_some());
        drop(store);
        let store = open(Arc::new(sim.clone())).unwrap();
        assert_eq!(store.open_report().migrated, None);
        drop(store);
        sim.rename(&backup(), &version()).unwrap();
        assert_eq!(sim.bytes(&version()).unwrap(), old);
    }
}

/// Format 1 could not tell that a bit of the store's name had turned, and the store did not open any more. The packs know better.
#[test]
fn a_damaged_name_in_format_1_is_corrected_by_the_packs() {
    let (sim, model, old) = old_store(3);
    let mut wrong = old.clone();
    let digit = &mut wrong["gemba-store 1\nid ".len()];
    *digit = if *digit == b'0' { b'1' } else { b'0' };
    sim.install(&version(), wrong.clone());
    let store = open(Arc::new(sim.clone())).unwrap();
    common::check_open(&store, &model).unwrap();
    store.put_many(&[Block::raw("more").unwrap()]).unwrap();
    drop(store);
    assert_eq!(sim.bytes(&backup()).unwrap(), wrong);
    let right = &old["gemba-store 1\n".len()..];
    let now = sim.bytes(&version()).unwrap();
    assert!(now.windows(right.len()).any(|text| text == right));
}
