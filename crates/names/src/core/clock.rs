//! What time it certainly is at least (clause NA-14).
//!
//! A device's clock may stand at 1970 or 2099. The life of a record is judged with the greatest of three: the clock, the day this program was
//! built, and the latest moment that was seen in something signed. Nothing else asks for the time of day.

use super::Time;
use crate::wall::Wall;
use std::time::Duration;

#[derive(Debug)]
pub(super) struct Clock {
    set: Option<(Wall, Time)>,
    seen: Option<(Wall, Time)>,
    build: Wall,
    horizon: Duration,
}

impl Clock {
    pub(super) fn new(build: Wall, horizon: Duration) -> Self {
        Self {
            set: None,
            seen: None,
            build,
            horizon,
        }
    }

    pub(super) fn set(&mut self, wall: Wall, now: Time) {
        self.set = Some((wall, now));
    }

    /// Takes the moment in unless it is not credible; returns whether it is.
    pub(super) fn see(&mut self, wall: Wall, now: Time) -> bool {
        if wall > self.build.plus(self.horizon) {
            return false;
        }
        if self.seen.is_none_or(|seen| wall > at(seen, now)) {
            self.seen = Some((wall, now));
        }
        true
    }

    pub(super) fn wall(&self, now: Time) -> Wall {
        [self.set, self.seen]
            .into_iter()
            .flatten()
            .map(|moment| at(moment, now))
            .fold(self.build, Wall::max)
    }
}

fn at((wall, then): (Wall, Time), now: Time) -> Wall {
    wall.plus(now.saturating_sub(then))
}
