//! What is desired and not whole and not in memory: drawn from the desired set in batches, in the order of the CIDs, round after round
//! until a round left nothing behind; and then now and then once more, for what nobody told.

use super::Time;
use cid::Cid;

/// Where the rounds are.
#[derive(Debug)]
pub(super) struct Draw {
    state: State,
    /// Something that is not whole was left in the set, or put back to it, since this round began.
    left_behind: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The next batch begins behind this one.
    Open(Option<Cid>),
    /// A batch was asked for.
    Asked(Option<Cid>),
    /// The round is over.
    Over {
        /// The next one, if there is need, not before this time.
        needed: Time,
        /// And if nobody knows of any.
        compare: Time,
    },
}

impl Draw {
    /// At the start everything that is not whole is in the set alone.
    pub(super) fn new() -> Self {
        Self {
            state: State::Open(None),
            left_behind: false,
        }
    }

    /// Another round is needed.
    pub(super) fn leave_behind(&mut self) {
        self.left_behind = true;
    }

    /// The next batch, if one should be asked for.
    pub(super) fn ask(&mut self, now: Time) -> Option<Option<Cid>> {
        if self.next_round().is_some_and(|next| next <= now) {
            self.left_behind = false;
            self.state = State::Open(None);
        }
        let State::Open(after) = self.state else {
            return None;
        };
        self.state = State::Asked(after);
        Some(after)
    }

    /// A batch came and was taken up to this one; `more`: there is more behind it. Else the round is over, and the next one begins as told: where
    /// there is need, and where nobody knows of any.
    pub(super) fn on_drawn(
        &mut self,
        taken: Option<Cid>,
        more: bool,
        (needed, compare): (Time, Time),
    ) {
        if let State::Asked(after) = self.state {
            self.state = if more {
                State::Open(taken.or(after))
            } else {
                State::Over { needed, compare }
            };
        }
    }

    /// The set could not be read: once more, from the same place, as a new round.
    pub(super) fn on_failed(&mut self, needed: Time) {
        if matches!(self.state, State::Asked(_)) {
            let compare = needed;
            self.state = State::Over { needed, compare };
            self.left_behind = true;
        }
    }

    /// When the next round is due. None: never, or one is under way.
    pub(super) fn next_round(&self) -> Option<Time> {
        let next = match self.state {
            State::Over { needed, .. } if self.left_behind => needed,
            State::Over { compare, .. } => compare,
            State::Open(_) | State::Asked(_) => return None,
        };
        (next < Time::MAX).then_some(next)
    }

    /// Whether everything that is not whole is in memory.
    pub(super) fn is_drained(&self) -> bool {
        matches!(self.state, State::Over { .. }) && !self.left_behind
    }
}
