//! How much of our memory one peer may fill: more while it takes what it asked for, little while it does not, nothing for a
//! while after it was given up.
//!
//! Answers that a peer does not read stay in memory. Without a measure a few hundred such peers fill the budget that all peers
//! share, and nobody is served any more (X5).

use std::collections::VecDeque;
use std::time::Duration;

use crate::core::Time;

pub(super) struct Flow {
    /// Bytes that may be loading, ready and on their way.
    credit: usize,
    most: usize,
    /// Messages handed to the driver and not yet written, oldest first.
    flights: VecDeque<Flight>,
    /// Since when nothing that is on its way was written in time.
    stuck: Option<Time>,
    /// Nothing was written yet, or late.
    new: bool,
    giving_up: bool,
    /// Bytes that it took promptly, since it last did not.
    taken: usize,
    /// Times in a row that it was given up.
    given_up: u32,
    rests_until: Time,
}

/// What is known of a peer's reading. Memory is counted apart for each, so that those who do not read, and strangers of whom
/// nothing is known, cannot keep the others from being served.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// Its first answer was not written yet, and is not late.
    Newcomer,
    /// It took little yet.
    Unproven,
    /// It takes what it asks for.
    Reader,
    /// It does not take what is on its way.
    Stuck,
}

struct Flight {
    since: Time,
    /// In memory.
    bytes: usize,
    /// To be written, about.
    wire: usize,
}

/// Before the peer took anything, and after it was given up: one block, or some small ones.
const LEAST_CREDIT: usize = 64 * 1024;
/// A message written within this doubles the credit.
const PROMPT: Duration = Duration::from_secs(1);
/// A message is late after this and its size at [`FLOOR_RATE`].
const LATE: Duration = Duration::from_secs(2);
/// Who took this many bytes is a reader: more than streams and sockets hold for one who is not.
const PROOF: usize = 1024 * 1024;
/// Bytes a second.
const FLOOR_RATE: u64 = 128 * 1024;
/// First pause after a peer was given up; doubles each time, up to 32 times that.
const REST: Duration = Duration::from_secs(4);

impl Flow {
    pub(super) fn new(most: usize) -> Self {
        Self {
            credit: LEAST_CREDIT.min(most),
            most,
            flights: VecDeque::new(),
            stuck: None,
            new: true,
            giving_up: false,
            taken: 0,
            given_up: 0,
            rests_until: Time::ZERO,
        }
    }

    /// It took something, and nothing is late.
    pub(super) fn reads(&self) -> bool {
        self.taken > 0
    }

    /// Messages on their way.
    pub(super) fn flying(&self) -> usize {
        self.flights.len()
    }

    pub(super) fn flying_bytes(&self) -> usize {
        self.flights.iter().map(|flight| flight.bytes).sum()
    }

    /// Whether a peer that holds `bytes` may hold more.
    pub(super) fn has_credit(&self, bytes: usize) -> bool {
        self.stuck.is_none() && self.rests_until.is_zero() && bytes < self.credit
    }

    pub(super) fn stuck_since(&self) -> Option<Time> {
        self.stuck.filter(|_| !self.giving_up)
    }

    pub(super) fn standing(&self) -> Standing {
        match self.stuck {
            Some(_) => Standing::Stuck,
            None if self.new => Standing::Newcomer,
            None if self.taken < PROOF => Standing::Unproven,
            None => Standing::Reader,
        }
    }

    pub(super) fn handed(&mut self, bytes: usize, wire: usize, now: Time) {
        let since = now;
        self.flights.push_back(Flight { since, bytes, wire });
    }

    /// The oldest message was written, or given up.
    pub(super) fn landed(&mut self, written: bool, now: Time) {
        let Some(flight) = self.flights.pop_front() else {
            return;
        };
        self.stuck = None;
        self.new = false;
        let took = now.saturating_sub(flight.since);
        if !written {
            self.credit = LEAST_CREDIT.min(self.most);
            self.rests_until = now.saturating_add(REST * (1 << self.given_up));
            self.given_up = (self.given_up + 1).min(5);
        } else if took <= PROMPT {
            self.given_up = 0;
            self.taken = self.taken.saturating_add(flight.wire);
            self.credit = self.credit.saturating_mul(2).min(self.most);
        } else if took > LATE {
            self.credit = (self.credit / 2).max(LEAST_CREDIT.min(self.most));
        }
        // It may have been written just before it was to be given up.
        self.giving_up &= !self.flights.is_empty();
        // What waits behind it has its own time.
        if let Some(next) = self.flights.front_mut() {
            next.since = next.since.max(now);
        }
    }

    /// For so long it was not tried to write the oldest message.
    pub(super) fn held(&mut self, time: Duration, now: Time) {
        if let Some(flight) = self.flights.front_mut() {
            flight.since = flight.since.saturating_add(time).min(now);
        }
    }

    /// Whether the oldest message just became late.
    pub(super) fn gets_stuck(&mut self, now: Time) -> bool {
        let late = self.flights.front().is_some_and(|flight| {
            let size = Duration::from_millis(flight.wire as u64 * 1000 / FLOOR_RATE);
            now >= flight.since.saturating_add(LATE).saturating_add(size)
        });
        if late && self.stuck.is_none() {
            self.set_stuck(now);
            return true;
        }
        false
    }

    pub(super) fn set_stuck(&mut self, now: Time) {
        self.stuck = Some(now);
        self.new = false;
        self.taken = 0;
    }

    /// Since when the first message is on its way, if that is long whatever its size.
    pub(super) fn first_is_slow_since(&self, now: Time) -> Option<Time> {
        let since = self.flights.front()?.since;
        (self.standing() == Standing::Newcomer && now >= since.saturating_add(LATE))
            .then_some(since)
    }

    /// The driver drops what is on its way and says so.
    pub(super) fn give_up(&mut self) {
        self.giving_up = true;
    }

    /// Whether a pause just ended.
    pub(super) fn gets_rested(&mut self, now: Time) -> bool {
        if self.rests_until.is_zero() || self.rests_until > now {
            return false;
        }
        self.rests_until = Time::ZERO;
        true
    }

    /// Something changes with time alone.
    pub(super) fn waits(&self) -> bool {
        !self.flights.is_empty() || !self.rests_until.is_zero()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MOST: usize = 1024 * 1024;

    #[test]
    fn credit_doubles_with_each_prompt_message_and_shrinks_with_a_slow_one() {
        let mut flow = Flow::new(MOST);
        assert!(flow.has_credit(LEAST_CREDIT - 1) && !flow.has_credit(LEAST_CREDIT));
        for _ in 0..9 {
            flow.handed(1000, 1000, SECOND);
            flow.landed(true, SECOND);
        }
        assert!(flow.has_credit(MOST - 1) && !flow.has_credit(MOST));
        flow.handed(1000, 1000, SECOND);
        flow.landed(true, 4 * SECOND);
        assert!(flow.has_credit(MOST / 2 - 1) && !flow.has_credit(MOST / 2));
    }

    #[test]
    fn a_message_that_was_written_just_before_it_was_given_up_leaves_nothing_behind() {
        let mut flow = Flow::new(MOST);
        flow.handed(1000, 1000, SECOND);
        assert!(flow.gets_stuck(4 * SECOND));
        flow.give_up();
        flow.landed(true, 5 * SECOND);
        flow.handed(1000, 1000, 6 * SECOND);
        assert!(flow.gets_stuck(9 * SECOND));
        assert_eq!(
            flow.stuck_since(),
            Some(9 * SECOND),
            "it can be given up again"
        );
    }

    /// PA-6: 512 KiB at 128 kbit/s take half a minute, and the peer that reads them is a reader.
    #[test]
    fn who_waits_for_our_budget_is_not_taken_for_one_that_does_not_read() {
        let mut flow = Flow::new(MOST);
        flow.handed(1000, 1000, SECOND);
        for second in 2..30 {
            flow.held(SECOND, second * SECOND);
            assert!(!flow.gets_stuck(second * SECOND));
        }
        flow.landed(true, 30 * SECOND);
        assert!(flow.has_credit(2 * LEAST_CREDIT - 1), "it was prompt");
        flow.handed(1000, 1000, 30 * SECOND);
        assert!(flow.gets_stuck(33 * SECOND), "what follows is its own");
    }

    #[test]
    fn x5_who_does_not_read_gets_no_more_and_rests_after_it_was_given_up() {
        let mut flow = Flow::new(MOST);
        flow.handed(0, FLOOR_RATE as usize, SECOND);
        assert!(!flow.gets_stuck(3 * SECOND), "its size takes a second");
        assert!(flow.gets_stuck(4 * SECOND));
        assert!(!flow.gets_stuck(5 * SECOND), "said once");
        assert!(!flow.has_credit(0) && flow.standing() == Standing::Stuck);
        flow.give_up();
        assert_eq!(flow.stuck_since(), None, "given up once");
        flow.landed(false, 10 * SECOND);
        assert!(!flow.has_credit(0) && flow.waits());
        assert!(!flow.gets_rested(13 * SECOND));
        assert!(flow.gets_rested(14 * SECOND));
        assert!(flow.has_credit(LEAST_CREDIT - 1) && !flow.has_credit(LEAST_CREDIT));
    }
}
