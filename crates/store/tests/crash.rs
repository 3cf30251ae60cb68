//! Power cuts at every call, with random survivors; and proof that the harness finds what it is made for.
#![allow(clippy::unwrap_used)]

mod common;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::lying::{Lie, Lying};
use common::{Score, crash_everywhere, crash_workload};
use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, RealDisk, Sharing};
use gemba_testkit::disk::Call;
use gemba_testkit::{rng, sim_scale};

/// Rows S1 and S2: whatever a power cut leaves, at whatever call, the store opens, and all that was acknowledged is there.
/// 10,000 points in full.
#[test]
fn s1_s2_nothing_acknowledged_is_lost_at_any_call() {
    let mut total = Score::default();
    for seed in rng::seeds(sim_scale(20)) {
        let score = crash_everywhere(seed, 25, 5, |sim| Arc::new(sim));
        assert_eq!(score.broken, None, "seed {seed:#x}");
        total.points += score.points;
        total.second_order += score.second_order;
        total.faults.merge(&score.faults);
    }
    assert!(total.points >= sim_scale(10_000) as u64, "{total:?}");
    assert!(total.second_order >= sim_scale(1_000) as u64, "{total:?}");
    total.faults.assert_fired(
        &[
            "write kept",
            "write dropped",
            "write torn",
            "name lost",
            "length without data: zeros",
            "length without data: rubbish",
        ],
        sim_scale(60) as u64,
    );
}

/// Row S9, and S1 with collection, compaction and hole punching under way: a power cut at any call of them, recovery from it, compaction
/// to the end, and a second power cut. 10,000 points in full.
#[test]
fn s9_a_power_cut_during_collection_or_compaction_loses_nothing_and_brings_nothing_back() {
    let mut total = Score::default();
    for seed in rng::seeds(sim_scale(20)) {
        let score = crash_workload(seed, 60, 2, true, |sim| Arc::new(sim));
        assert_eq!(score.broken, None, "seed {seed:#x}");
        total.points += score.points;
        total.second_order += score.second_order;
        total.calls.merge(&score.calls);
    }
    assert!(total.points >= sim_scale(10_000) as u64, "{total:?}");
    assert!(total.second_order >= sim_scale(1_000) as u64, "{total:?}");
    total
        .calls
        .assert_fired(&["unlink", "punch", "rename"], sim_scale(40) as u64);
}

/// The harness finds each planted mistake; without one it finds nothing (the test above). Flushes fail now and then here,
/// which an honest engine survives.
#[test]
fn planted_bugs_are_found() {
    for lie in [
        Lie::NoSync,
        Lie::NoSyncDir,
        Lie::RetrySync,
        Lie::NoRewrite,
        Lie::NoSyncVersion,
        Lie::LateTail,
    ] {
        let found = (1..=30).any(|seed| failing_flushes(seed, Some(lie)).broken.is_some());
        assert!(found, "{lie:?} was not found");
    }
    for seed in rng::seeds(sim_scale(20)) {
        assert_eq!(failing_flushes(seed, None).broken, None, "seed {seed:#x}");
    }
}

/// Rows S2 and S5: a flush fails although all of it reached the disk, in some runs the pack cannot be cut after it either, and the power goes at
/// any later call. 30,000 points in full.
#[test]
fn s2_s5_a_flush_that_fails_and_reached_the_disk_is_believed_by_nobody() {
    let mut total = Score::default();
    for (n, seed) in (0..).zip(rng::seeds(sim_scale(60))) {
        let first = Arc::new(AtomicBool::new(true));
        let score = crash_workload(seed, 40, 2, n % 3 == 0, move |sim| {
            // Only in the run, not in the recoveries.
            if first.swap(false, Ordering::SeqCst) {
                for nth in [6, 17, 31] {
                    sim.fail(Call::SyncLanded, nth + seed % 7, 1);
                }
                sim.fail(Call::SetLen, 4 + seed % 11, n % 2 * 12);
            }
            Arc::new(sim)
        });
        assert_eq!(score.broken, None, "seed {seed:#x}");
        total.points += score.points;
        total.faults.merge(&score.faults);
    }
    assert!(total.points >= sim_scale(30_000) as u64, "{total:?}");
    total
        .faults
        .assert_fired(&["eio sync, bytes landed", "eio set_len"], 1);
}

/// Mistakes that show when packs are copied, punched and removed.
#[test]
fn planted_bugs_of_compaction_are_found() {
    for lie in [Lie::NoSync, Lie::NoSyncDir, Lie::WideHole] {
        let found = (1..=30).any(|seed| {
            let wrap = move |sim| Arc::new(Lying { sim, lie }) as Arc<dyn Disk>;
            crash_workload(seed, 30, 1, true, wrap).broken.is_some()
        });
        assert!(found, "{lie:?} was not found");
    }
}

/// A crash run in which flushes fail, and in which the process dies right after.
fn failing_flushes(seed: u64, lie: Option<Lie>) -> Score {
    let first = Arc::new(AtomicBool::new(true));
    crash_everywhere(seed, 12, 2, move |sim| {
        // Only in the run, not in the recoveries.
        if first.swap(false, Ordering::SeqCst) {
            sim.fail(Call::Sync, 5 + seed % 7, 1);
        }
        match lie {
            Some(lie) => Arc::new(Lying { sim, lie }),
            None => Arc::new(sim),
        }
    })
}

/// The real disk obeys the same contract as far as one process can see.
#[test]
fn the_real_disk_passes_the_workload_too() {
    let dir = tempfile::tempdir().unwrap();
    let model = Arc::default();
    let root = Rooted(dir.path().to_path_buf());
    let disk: Arc<dyn Disk> = Arc::new(root);
    common::workload(&disk, &common::config(), 11, 60, &model);
    let store = gemba_store::Store::open_on(disk, common::DIR, common::config()).unwrap();
    common::check_open(&store, &model.lock().unwrap()).unwrap();
    assert!(store.stat().packs > 2);
}

/// The real disk below a folder.
#[derive(Debug)]
struct Rooted(std::path::PathBuf);

impl Rooted {
    fn at(&self, path: &Path) -> std::path::PathBuf {
        self.0.join(path.strip_prefix("/").unwrap_or(path))
    }
}

impl Disk for Rooted {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        RealDisk.open(&self.at(path), mode)
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        RealDisk.create_dir(&self.at(path))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        RealDisk.list(&self.at(dir))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        RealDisk.rename(&self.at(from), &self.at(to))
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        RealDisk.unlink(&self.at(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        RealDisk.sync_dir(&self.at(dir))
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        RealDisk.lock(&self.at(path), sharing)
    }
}
