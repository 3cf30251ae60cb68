//! Retention: whole segments go, oldest first, and none that a consumer or a replica still needs (specs/log.md §10).

use crate::error::LogError;
use crate::feed::{FeedId, FeedKey, Seq};
use crate::index::{Index, Segment};
use crate::log::Log;
use crate::state::State;

/// Feeds that a report names as holding back a segment.
const MAX_HELD: usize = 16;

/// Answers how far everybody who needs a feed has come: places before it are needed by nobody, `None` for all of them.
pub type LowWater<'a> = &'a dyn Fn(&FeedId) -> Option<Seq>;

/// What may go. A segment goes if it is beyond one of the limits and nobody needs any of it.
#[derive(Clone, Copy)]
pub struct Retention<'a> {
    /// Bytes that the log shall take at most; `None` for no such limit.
    pub max_bytes: Option<u64>,
    /// Events whose wall-clock time is before this one may go, in milliseconds since 1970; `None` for no such limit. A segment goes when its
    /// latest event may.
    pub before: Option<i64>,
    /// How far consumers and replicas are.
    pub low_water: LowWater<'a>,
    /// Beyond `max_bytes` also what is still needed goes. Dangerous: consumers and replicas lose events.
    pub danger_drop_needed: bool,
}

impl std::fmt::Debug for Retention<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Retention")
            .field("max_bytes", &self.max_bytes)
            .field("before", &self.before)
            .field("danger_drop_needed", &self.danger_drop_needed)
            .finish_non_exhaustive()
    }
}

/// What retention did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Retained {
    /// Segments that went.
    pub segments: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Events that went although somebody needed them: only with [`Retention::danger_drop_needed`].
    pub needed_events: u64,
    /// Feeds somebody still needs events of, so that a segment beyond the limits stayed. At most 16 are named.
    pub held_by: Vec<FeedId>,
}

impl Log {
    /// Removes what may go. Feeds keep their ends: they go on where they were.
    ///
    /// # Errors
    /// What the disk answers; what went before is gone.
    pub fn retain(&self, retention: &Retention<'_>) -> Result<Retained, LogError> {
        let mut done = Retained::default();
        // Nobody writes, and nobody else removes.
        let pen = self.pen();
        if let Some(refusal) = self.refusal() {
            return Err(refusal);
        }
        while let Some(number) = self.next_to_go(retention, &mut done) {
            let path = self.layout().segment(number);
            self.disk().unlink(&path).map_err(LogError::io)?;
            // One after the other for sure, so that a crash leaves no hole between segments.
            self.disk()
                .sync_dir(&self.layout().dir)
                .map_err(LogError::io)?;
            let mut state = self.state_mut();
            state.segments.remove(&number);
            done.bytes += state.sizes.remove(&number).unwrap_or(0);
            done.segments += 1;
            state.bad.retain(|(segment, _)| *segment != number);
            state.recount();
            drop(state);
            self.forget_file(number);
        }
        drop(pen);
        if done.segments > 0 {
            self.has_changed();
        }
        Ok(done)
    }

    /// The oldest segment, if it may go.
    fn next_to_go(&self, retention: &Retention<'_>, done: &mut Retained) -> Option<u32> {
        let state = self.state();
        // The last one with an index says all that must be known of those before.
        let is_indexed = |segment: &Segment| matches!(segment.index, Index::Paged(_));
        let last = state
            .segments
            .values()
            .rev()
            .find(|segment| is_indexed(segment))?
            .number;
        let segment = state
            .segments
            .values()
            .next()
            .filter(|segment| segment.number < last)?;
        let spans = segment.spans();
        let is_over = retention.max_bytes.is_some_and(|max| state.bytes() > max);
        let is_old = retention
            .before
            .is_some_and(|before| spans.iter().all(|span| span.time < before));
        if !is_over && !is_old {
            return None;
        }
        let mut needed = 0;
        for span in &spans {
            let more = self.needed(&state, span.key, span.first, span.end, retention.low_water);
            if more > 0
                && let Some(feed) = state.feeds.get(&span.key)
                && done.held_by.len() < MAX_HELD
                && !done.held_by.contains(&feed.tip.id)
            {
                done.held_by.push(feed.tip.id.clone());
            }
            needed += more;
        }
        if needed > 0 && !(is_over && retention.danger_drop_needed) {
            return None;
        }
        done.needed_events += needed;
        Some(segment.number)
    }

    /// How many events of a stretch somebody still needs.
    fn needed(&self, state: &State, key: FeedKey, first: Seq, end: Seq, low: LowWater<'_>) -> u64 {
        let Some(feed) = state.feeds.get(&key) else {
            return 0;
        };
        match low(&feed.tip.id) {
            Some(low) => end.saturating_sub(low.max(first)),
            None => 0,
        }
    }
}
