//! What the application says of messages, kept in order (specs/gossip.md GO-24).
//!
//! Verdicts come in any order, messages of one author in one topic are delivered in theirs: what is accepted waits for those before it that
//! are still out, until a quarter of the time that it has is left. Then it goes, and a verdict on what it overtook is too late.

use std::collections::BTreeSet;

use super::pipeline::Job;
use super::topics::TopicKey;
use super::{Core, Ticket, Time};
use crate::seen::Seen;

impl Core {
    /// Until when an accepted message waits for those before it.
    fn held_until(&self, job: &Job) -> Time {
        let topic = self.topics.get(job.topic);
        let rest = topic.map_or(Time::ZERO, |topic| topic.validation / 4);
        job.deadline.saturating_sub(rest)
    }

    /// Lets accepted messages go that wait for nothing.
    pub(super) fn release_judged(&mut self, seen: &mut Seen) {
        let mut out: BTreeSet<(TopicKey, &[u8])> = BTreeSet::new();
        let mut free: Vec<Ticket> = Vec::new();
        for (ticket, job) in &self.pipeline.validating {
            let line = (job.topic, job.message.from());
            if !job.accepted {
                out.insert(line);
            } else if !out.contains(&line) {
                free.push(*ticket);
            }
        }
        for ticket in free {
            let Some(job) = self.pipeline.validating.remove(&ticket) else {
                continue;
            };
            if job.deadline <= self.now {
                self.counters.validated_late += 1;
                self.end_stale(seen, &job);
            } else if seen.knows_hash(job.hash, self.now) {
                self.counters.variants += 1;
                self.end_ignored(seen, &job);
            } else {
                self.accept(seen, job);
            }
        }
        let waiting = self.pipeline.validating.values().filter(|j| j.accepted);
        if let Some(at) = waiting.map(|job| self.held_until(job)).min() {
            self.wake(at);
        }
    }

    /// Gives up verdicts that accepted messages have waited for long enough.
    pub(super) fn press_judged(&mut self, seen: &mut Seen) {
        let mut pressed: BTreeSet<(TopicKey, &[u8])> = BTreeSet::new();
        let mut late: Vec<Ticket> = Vec::new();
        for (ticket, job) in self.pipeline.validating.iter().rev() {
            let line = (job.topic, job.message.from());
            if job.accepted && self.held_until(job) <= self.now {
                pressed.insert(line);
            } else if !job.accepted && pressed.contains(&line) {
                late.push(*ticket);
            }
        }
        for ticket in late {
            if let Some(job) = self.pipeline.validating.remove(&ticket) {
                self.counters.validated_late += 1;
                self.end_stale(seen, &job);
            }
        }
        self.release_judged(seen);
    }
}
