//! Power cuts at every call, with random survivors; and proof that the harness finds what it is made for.
#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use common::lying::{Lie, Lying};
use common::{Score, crash_everywhere};
use gemba_segment::Disk;
use gemba_testkit::disk::Call;
use gemba_testkit::{rng, sim_scale};

/// Rows L1 and L2, S3.17, S3.40, S3.42: whatever a power cut leaves, at whatever call, the log opens, all that was acknowledged is there, and
/// nothing is served that nobody handed in. 50,000 points in full.
#[test]
fn l1_l2_s3_17_s3_42_nothing_acknowledged_is_lost_at_any_call() {
    let mut total = Score::default();
    for seed in rng::seeds(sim_scale(100)) {
        let score = crash_everywhere(seed, 25, 5, |sim| Arc::new(sim));
        assert_eq!(score.broken, None, "seed {seed:#x}");
        total.add(&score);
    }
    assert!(total.points >= sim_scale(50_000) as u64, "{total:?}");
    assert!(total.second_order >= sim_scale(5_000) as u64, "{total:?}");
    assert!(total.new_epochs > 0, "{total:?}");
    total.faults.assert_fired(
        &["write kept", "write dropped", "write torn", "name lost"],
        sim_scale(100) as u64,
    );
}

/// The harness finds each planted mistake; without one it finds nothing. Flushes fail now and then here, which an honest log survives.
#[test]
fn planted_bugs_are_found() {
    for lie in [
        Lie::NoSync,
        Lie::NoSyncDir,
        Lie::RetrySync,
        Lie::NoRewrite,
        Lie::LateTail,
        Lie::CrcUnchecked,
    ] {
        let found = (1..=30).any(|seed| failing_flushes(seed, Some(lie)).broken.is_some());
        assert!(found, "{lie:?} was not found");
    }
    for seed in rng::seeds(sim_scale(20)) {
        assert_eq!(failing_flushes(seed, None).broken, None, "seed {seed:#x}");
    }
}

/// Row L4: a flush fails although all of it reached the disk, and the power goes at any later call.
#[test]
fn l4_a_flush_that_fails_and_reached_the_disk_is_believed_by_nobody() {
    for seed in rng::seeds(sim_scale(40)) {
        let first = Arc::new(AtomicBool::new(true));
        let score = crash_everywhere(seed, 25, 2, move |sim| {
            // Only in the run, not in the recoveries.
            if first.swap(false, Ordering::SeqCst) {
                for nth in [6, 17, 31] {
                    sim.fail(Call::SyncLanded, nth + seed % 7, 1);
                }
                sim.fail(Call::SetLen, 4 + seed % 11, seed % 2 * 12);
            }
            Arc::new(sim)
        });
        assert_eq!(score.broken, None, "seed {seed:#x}");
    }
}

/// A crash run in which flushes fail.
fn failing_flushes(seed: u64, lie: Option<Lie>) -> Score {
    let first = Arc::new(AtomicBool::new(true));
    crash_everywhere(seed, 14, 2, move |sim| {
        // Only in the run, not in the recoveries.
        if first.swap(false, Ordering::SeqCst) {
            sim.fail(Call::Sync, 7 + seed % 9, 1);
        }
        match lie {
            Some(lie) => Arc::new(Lying { sim, lie }) as Arc<dyn Disk>,
            None => Arc::new(sim),
        }
    })
}
