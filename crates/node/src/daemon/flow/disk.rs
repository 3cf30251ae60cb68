//! Whether the disk takes blocks. When it does not, fetching for it is a waste of everybody's line: pins rest, with the cause, until
//! it does again.
//!
//! One refused batch is enough to stop. Then the disk is looked at every few seconds; when it has room (or when nobody can tell), one
//! pin goes on as a trial, a few blocks at a time, and its first stored batch brings the others back. That a smaller batch still found
//! room right after a larger one was refused says nothing.

use std::path::Path;
use std::time::Duration;

use cid::Cid;

use crate::api::types::Trouble;
use crate::content::room::Refusal;

/// Blocks that a trial asks for at once: what is fetched in vain if the disk still refuses.
pub const TRIAL_WINDOW: usize = 4;
/// Bytes that must be free before anything is fetched for a disk that was full: a batch, and what metadata takes.
pub const ROOM: u64 = 16 * 1024 * 1024;
/// How often a full disk is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// First pause between two trials; doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_secs(5);
/// Longest pause between two trials.
const LONGEST_PAUSE: Duration = Duration::from_secs(300);
/// A trouble that comes back within this time is the same one.
const SAME: Duration = Duration::from_secs(60);

/// What is known of the disk.
#[derive(Debug, Default)]
pub struct Disk {
    refusal: Option<Refused>,
    /// When the last trouble was over, and the pause it had come to: what comes back soon goes on there.
    over: Option<(Duration, Duration)>,
    /// Batches that were refused since the daemon started.
    pub refused_batches: u64,
}

#[derive(Debug)]
struct Refused {
    cause: String,
    full: bool,
    count: u64,
    last: Duration,
    /// No trial before.
    trial_at: Duration,
    pause: Duration,
    /// The pin that tries at the moment.
    trial: Option<Cid>,
    /// When the disk is asked for room the next time.
    look_at: Duration,
    /// What it answered; a disk that refuses for other reasons than room is tried without asking.
    has_room: bool,
}

impl Refused {
    /// Whether it is time for a trial.
    fn may_try(&self, now: Duration) -> bool {
        self.has_room && now >= self.trial_at
    }
}

/// What a pin that wants to fetch may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// The disk takes blocks.
    Go,
    /// This one alone, a few blocks at a time.
    Try,
    /// Not now.
    Wait,
}

impl Disk {
    /// A batch was not stored.
    pub fn on_refused(&mut self, refusal: &Refusal, now: Duration) {
        self.refused_batches += 1;
        let Some(known) = &mut self.refusal else {
            tracing::error!(cause = %refusal.fail.cause, "the disk takes no blocks; fetching rests until it does");
            let pause = match self.over {
                Some((at, pause)) if now < at.saturating_add(SAME) => {
                    pause.saturating_mul(2).min(LONGEST_PAUSE)
                }
                _ => FIRST_PAUSE,
            };
            self.refusal = Some(Refused {
                cause: refusal.fail.cause.clone(),
                full: refusal.full,
                count: 1,
                last: now,
                trial_at: now.saturating_add(pause),
                pause,
                trial: None,
                look_at: now + LOOK,
                has_room: !refusal.full,
            });
            return;
        };
        known.cause.clone_from(&refusal.fail.cause);
        known.count += 1;
        known.last = now;
        // The batches that were under way with the first one are no trials.
        if known.trial.take().is_some() {
            known.pause = known.pause.saturating_mul(2).min(LONGEST_PAUSE);
            known.trial_at = now + known.pause;
        }
        known.full = refusal.full;
        known.has_room = !refusal.full;
    }

    /// Blocks were stored. If it was a trial, or could have been one, whatever it was is over: true.
    pub fn on_stored(&mut self, now: Duration) -> bool {
        let Some(known) = &self.refusal else {
            return false;
        };
        let proves = known.trial.is_some() || known.may_try(now);
        if proves {
            self.end(now);
        }
        proves
    }

    /// A command stored something on this device. That it did not fail is reason enough for a trial.
    pub fn on_put(&mut self, now: Duration) {
        if let Some(known) = &mut self.refusal {
            known.trial_at = now;
            known.look_at = now;
        }
    }

    /// Called on the loop's tick; `wanted`: whether a pin rests. If none does, no pin will try: room on the disk must do, or the pause that has passed. Whoever
    /// stores next is the trial then, a repair too; if it is refused soon, the pause is longer.
    pub fn expire(&mut self, wanted: bool, now: Duration) {
        let idle = |known: &Refused| !wanted && known.may_try(now);
        if self.refusal.as_ref().is_some_and(idle) {
            self.end(now);
        }
    }

    fn end(&mut self, now: Duration) {
        if let Some(known) = self.refusal.take() {
            self.over = Some((now, known.pause));
            tracing::info!("blocks are fetched for the disk again");
        }
    }

    /// Why it takes no blocks.
    pub fn refuses(&self) -> Option<&str> {
        self.refusal.as_ref().map(|known| known.cause.as_str())
    }

    /// Whether the disk is to be asked for its room now; the answer goes to [`Disk::on_room`].
    pub fn wants_look(&mut self, now: Duration) -> bool {
        let due = |known: &&mut Refused| known.full && !known.has_room && known.look_at <= now;
        let Some(known) = self.refusal.as_mut().filter(due) else {
            return false;
        };
        known.look_at = now + LOOK;
        true
    }

    /// So many bytes are free; `None`: nobody can tell, so a trial must.
    pub fn on_room(&mut self, free: Option<u64>) {
        if let Some(known) = &mut self.refusal {
            known.has_room = free.is_none_or(|free| free >= ROOM);
        }
    }

    /// Whether `pin` may fetch. `running`: whether a pin is under way.
    pub fn leave(&mut self, pin: Cid, running: impl Fn(&Cid) -> bool, now: Duration) -> Leave {
        let Some(known) = &mut self.refusal else {
            return Leave::Go;
        };
        let tried = known.trial.is_some_and(|trial| running(&trial));
        if tried || !known.may_try(now) {
            return Leave::Wait;
        }
        known.trial = Some(pin);
        Leave::Try
    }

    /// For `status`.
    pub fn trouble(&self, dir: &Path, now: Duration) -> Option<Trouble> {
        let known = self.refusal.as_ref()?;
        Some(Trouble {
            address: dir.display().to_string(),
            peer: None,
            direction: "local".to_owned(),
            kind: if known.full { "disk_full" } else { "disk" }.to_owned(),
            cause: self.words()?,
            age_s: now.saturating_sub(known.last).as_secs(),
            count: known.count,
            retry_in_s: known
                .has_room
                .then(|| known.trial_at.saturating_sub(now).as_secs()),
        })
    }

    /// Why a pin rests, in an operator's words.
    pub fn words(&self) -> Option<String> {
        let known = self.refusal.as_ref()?;
        Some(if known.full {
            format!(
                "blocks cannot be stored: {}; nothing more is fetched until {} MiB are free, then it goes on by itself",
                known.cause,
                ROOM / (1024 * 1024)
            )
        } else {
            format!(
                "blocks cannot be stored: {}; it is tried again from time to time",
                known.cause
            )
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;
    use crate::error::{Code, Fail};

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn refusal(full: bool) -> Refusal {
        Refusal {
            fail: Fail::new(Code::Failure, "the disk is full"),
            full,
        }
    }

    fn pin(byte: u8) -> Cid {
        *gemba_block::Block::raw(vec![byte]).unwrap().cid()
    }

    #[test]
    fn a_full_disk_holds_everybody_until_there_is_room_and_then_one_tries() {
        let mut disk = Disk::default();
        assert_eq!(disk.leave(pin(1), |_| false, at(0)), Leave::Go);
        disk.on_refused(&refusal(true), at(0));
        disk.on_refused(&refusal(true), at(0));
        assert!(!disk.wants_look(at(1)) && disk.wants_look(at(2)) && !disk.wants_look(at(3)));
        disk.on_room(Some(ROOM - 1));
        assert_eq!(disk.leave(pin(1), |_| false, at(100)), Leave::Wait);
        disk.on_room(Some(ROOM));
        assert_eq!(disk.leave(pin(1), |_| false, at(4)), Leave::Wait);
        assert_eq!(disk.leave(pin(1), |_| false, at(5)), Leave::Try);
        assert_eq!(disk.leave(pin(2), |p| *p == pin(1), at(5)), Leave::Wait);
        // It was not enough: asked for room again, and a longer pause.
        disk.on_refused(&refusal(true), at(6));
        assert!(disk.wants_look(at(6)));
        disk.on_room(None);
        assert_eq!(disk.leave(pin(1), |_| false, at(15)), Leave::Wait);
        assert_eq!(disk.leave(pin(1), |_| false, at(16)), Leave::Try);
        assert!(disk.on_stored(at(17)) && !disk.on_stored(at(17)));
        assert_eq!(disk.leave(pin(2), |_| true, at(17)), Leave::Go);
        // It comes back soon: the pause is longer yet.
        disk.on_refused(&refusal(false), at(20));
        assert_eq!(disk.leave(pin(2), |_| false, at(39)), Leave::Wait);
        assert_eq!(disk.leave(pin(2), |_| false, at(40)), Leave::Try);
    }

    #[test]
    fn a_smaller_batch_that_still_finds_room_proves_nothing() {
        let mut disk = Disk::default();
        disk.on_refused(&refusal(true), at(0));
        assert!(!disk.on_stored(at(0)) && disk.refuses().is_some());
        disk.on_room(Some(ROOM));
        assert!(!disk.on_stored(at(1)));
        // What a command could store is reason for a trial, and a block that a reader fetched is one.
        disk.on_put(at(2));
        assert!(disk.on_stored(at(2)));
    }

    #[test]
    fn a_disk_that_nobody_tries_is_well_when_it_has_room() {
        let mut disk = Disk::default();
        disk.on_refused(&refusal(true), at(0));
        disk.expire(false, at(60));
        assert!(disk.refuses().is_some());
        disk.on_room(Some(ROOM));
        disk.expire(true, at(60));
        assert!(disk.refuses().is_some());
        disk.expire(false, at(60));
        assert!(disk.refuses().is_none());
    }

    #[test]
    fn a_disk_that_refuses_for_another_reason_is_tried_after_a_pause() {
        let mut disk = Disk::default();
        disk.on_refused(&refusal(false), at(0));
        assert!(!disk.wants_look(at(60)));
        assert_eq!(disk.leave(pin(1), |_| false, at(5)), Leave::Try);
        // The trial ended without a word of the disk: the next one may try.
        assert_eq!(disk.leave(pin(2), |_| false, at(6)), Leave::Try);
        let told = disk.trouble(Path::new("/srv/blocks"), at(7)).unwrap();
        assert_eq!((told.kind.as_str(), told.count), ("disk", 1));
    }

    /// No pin rests, and a repair wants nothing of a disk that refuses: it must not wait for a pin to try.
    #[test]
    fn p9_a_disk_that_no_pin_tries_is_left_to_the_next_who_stores() {
        let mut disk = Disk::default();
        disk.on_refused(&refusal(false), at(0));
        disk.expire(false, at(4));
        disk.expire(true, at(5));
        assert!(disk.refuses().is_some());
        disk.expire(false, at(5));
        assert!(disk.refuses().is_none());
        // Refused again: twice the pause.
        disk.on_refused(&refusal(false), at(6));
        disk.expire(false, at(15));
        assert!(disk.refuses().is_some());
        disk.expire(false, at(16));
        assert!(disk.refuses().is_none());
    }
}
