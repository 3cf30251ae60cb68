//! The figures of a run.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Breach;
use super::plan::Break;
use crate::core::Load;
use crate::metrics::Counters;

/// What a run came to. All of honest nodes, unless it says otherwise.
#[derive(Clone, Debug, serde::Serialize)]
#[non_exhaustive]
pub struct Report {
    /// The plan's name.
    pub scenario: String,
    /// Its seed: it gives the same report again.
    pub seed: u64,
    /// Nodes that run the core.
    pub honest: usize,
    /// Nodes that do not.
    pub hostile: usize,
    /// Virtual time of the run.
    pub seconds: f64,
    /// Things that happened: arrivals, timers, checks.
    pub steps: u64,
    /// Messages that were published and left their author.
    pub published: u64,
    /// Pairs of a message and a subscriber that was connected when it was published; those left out whose author's process ended within a
    /// second.
    pub due: u64,
    /// Of those: delivered.
    pub delivered: u64,
    /// Of those: within the time of the plan.
    pub in_time: u64,
    /// `in_time ÷ due`.
    pub delivery: f64,
    /// From the publication to the delivery.
    pub latency: Latency,
    /// The same at the slow node only, if there is one; it is left out above then.
    pub latency_of_slow: Option<Latency>,
    /// From the publication to its receipt.
    pub receipts: Latency,
    /// Pairs of an honest node and one that it banned.
    pub banned: u64,
    /// From the first deed of any hostile node until the last of those pairs, in s.
    pub banned_within_s: Option<f64>,
    /// Copies that were read ÷ messages that were delivered or relayed: 1 is no redundancy.
    pub copies: f64,
    /// Members of the mesh, in the mean.
    pub mesh: f64,
    /// Bytes that were sent, all nodes, framing of our own included, that of TCP and muxer not.
    pub bytes: Bytes,
    /// Signatures that were checked and good; each message once.
    pub checked_good: u64,
    /// Bad ones.
    pub checked_bad: u64,
    /// Dropped because a queue was full.
    pub shed: u64,
    /// Dropped because it was too old.
    pub stale: u64,
    /// Sent on although it was dropped or too old.
    pub stale_forwards: u64,
    /// Since its publication, the oldest that was sent on, in ms.
    pub oldest_forward_ms: f64,
    /// Delivered a second time where that is forbidden.
    pub redelivered: u64,
    /// Delivered though no honest node published it (validly signed by its author).
    pub invented: u64,
    /// Streams that were broken, by how.
    pub breaks: BTreeMap<Break, BreakFigures>,
    /// The most that any node held of each component.
    pub memory: Load,
    /// All counters of all nodes together.
    pub counters: Counters,
    /// Rules that were broken; empty if gossip works.
    pub breaches: Vec<Breach>,
}

/// Milliseconds.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Latency {
    /// The middle one.
    pub p50: f64,
    /// One of a hundred took longer.
    pub p99: f64,
    /// One of a thousand took longer.
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// What was sent.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct Bytes {
    /// A node, in the mean.
    pub per_node: f64,
    /// The node that sent most.
    pub most: u64,
    /// Of all: messages.
    pub messages: f64,
    /// Of all: control, ids, probes and lengths.
    pub control: f64,
    /// ÷ those of the same run with flooding, while messages are published, if the plan compares.
    pub of_flooding: Option<f64>,
}

/// Streams that were broken in one way.
#[derive(Clone, Copy, Debug, Default, serde::Serialize)]
#[non_exhaustive]
pub struct BreakFigures {
    /// How many.
    pub count: u64,
    /// Found by their writer.
    pub found: u64,
    /// The longest until one was found, in s.
    pub found_max: f64,
    /// Worked again.
    pub healed: u64,
    /// The longest until one worked, in s.
    pub healed_max: f64,
}

impl Latency {
    /// Of latencies in microseconds.
    pub(super) fn of(mut all: Vec<u32>) -> Self {
        all.sort_unstable();
        let at = |share: f64| {
            let at = (all.len() as f64 * share) as usize;
            let micros = all.get(at.min(all.len().saturating_sub(1))).copied();
            f64::from(micros.unwrap_or_default()) / 1000.0
        };
        Self {
            p50: at(0.5),
            p99: at(0.99),
            p999: at(0.999),
            max: at(1.0),
        }
    }
}

impl BreakFigures {
    pub(super) fn add(&mut self, found: Option<Duration>, healed: Option<Duration>) {
        self.count += 1;
        if let Some(found) = found {
            self.found += 1;
            self.found_max = self.found_max.max(found.as_secs_f64());
        }
        if let Some(healed) = healed {
            self.healed += 1;
            self.healed_max = self.healed_max.max(healed.as_secs_f64());
        }
    }
}
