//! Epochs that are drawn (specs/log.md LOG-5).
//!
//! Epochs count up from 0 as long as nobody but this log can have begun the next one. Once somebody else can (a copy of the log, another device with our
//! key, a segment that nobody can read), each that follows is drawn, above all that are known: of two logs that know the same, each draws another one.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};

use crate::feed::MAX_NUMBER;

/// The first one is drawn from here on, and below twice this.
pub(crate) const DRAWN: u64 = 1 << 50;
/// The next one is one of so many above the last: two that draw from them do not meet.
const STEP: u64 = 1 << 40;
/// And of no more than such a part of what is left, so that there is always room for thousands.
const PART: u64 = 4096;

/// An epoch that was not used, as far as chance goes: above `known`, which is the last one that is known, or 0. It is drawn; nobody else draws the same.
#[must_use]
pub fn unused_epoch(known: u64) -> u64 {
    let chance = RandomState::new().build_hasher().finish();
    if known < DRAWN {
        return DRAWN + chance % DRAWN;
    }
    let room = MAX_NUMBER.saturating_sub(known);
    let step = (room / PART).clamp(1, STEP);
    known.saturating_add(1 + chance % step)
}

/// Whether somebody else may begin the epoch that comes next by number, so that it is drawn instead.
pub(crate) fn is_drawn(epoch: u64) -> bool {
    epoch >= DRAWN
}

#[cfg(test)]
mod tests {
    use super::*;

    /// LOG-4, LOG-5: each is above the last, two never the same, and after very many there is still room.
    #[test]
    fn log_5_epochs_that_are_drawn_rise_and_leave_room() {
        let mut known = 0;
        for _ in 0..20_000 {
            let (one, other) = (unused_epoch(known), unused_epoch(known));
            assert!(one > known && (DRAWN..MAX_NUMBER).contains(&one), "{one}");
            assert!(one != other, "two logs that know {known} drew {one}");
            known = one;
        }
        let lots = (0..10_000).map(|_| unused_epoch(known));
        let lots: std::collections::BTreeSet<u64> = lots.collect();
        assert!(lots.len() > 9_990, "{}", lots.len());
        // Whatever somebody wrote with our key, this ends in order.
        assert!(unused_epoch(MAX_NUMBER) > MAX_NUMBER);
        assert_eq!(unused_epoch(u64::MAX), u64::MAX);
    }
}
