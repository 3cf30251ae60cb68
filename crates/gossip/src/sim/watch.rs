//! What must hold at every moment, checked against what the simulator knows and no node does.
//!
//! A breach is noted, not thrown: the report tells which rule, how often, and the first time.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use super::node::{Honest, NEVER};
use super::plan::Break;
use crate::Time;
use crate::config::{Config, Signing, TopicOptions};
use crate::core::Load;
use crate::hash::Keyed;
use crate::message::MessageId;

/// A rule that must not be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Rule {
    /// A message is delivered once, unless nothing was heard of it for its time-to-live on a topic without replay window.
    DeliveredOnce,
    /// Nothing is delivered after its validation deadline.
    DeliveredInTime,
    /// Nothing is sent on that was not delivered, nor after validation deadline and lane age.
    SentOnInTime,
    /// A signature is checked once.
    CheckedOnce,
    /// Bad signatures are checked sixteen times for each sender, then it is banned.
    BadChecksBounded,
    /// A real message that came from an honest neighbour is delivered, or dropped by a bound that is counted.
    NotSilenced,
    /// Every queue is within its bound.
    Bounded,
    /// Of a peer that left nothing is kept.
    GoneIsGone,
    /// A stream that was lost stands again.
    Reopened,
    /// What is asked for ends: when all is quiet nothing waits.
    Settled,
}

/// How often a rule was broken, and the first time in words.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[non_exhaustive]
pub struct Breach {
    /// Which.
    pub rule: Rule,
    /// How often.
    pub times: u64,
    /// The first time.
    pub first: String,
}

/// A message that an honest node published.
pub(super) struct Sent {
    pub(super) at: Time,
    pub(super) origin: u32,
    pub(super) topic: usize,
    /// When it was handed to somebody, and its author had its receipt.
    pub(super) left: Option<Time>,
}

/// What holds for the messages of a topic.
pub(super) struct Terms {
    ttl: Duration,
    replay: bool,
    validation: Duration,
    lane: Duration,
    /// How long what is asked for is there.
    kept: Duration,
}

impl Terms {
    pub(super) fn new(config: &Config, options: &TopicOptions) -> Self {
        let (validation, lane) = config.deadlines(options);
        Self {
            ttl: options.seen_ttl.unwrap_or(config.seen_ttl()),
            replay: options.replay_window && options.signing == Signing::Strict,
            validation,
            lane,
            kept: config.heartbeat() * (config.history_length() as u32 + 1),
        }
    }
}

/// A stream that was broken.
#[derive(Clone, Debug)]
pub(super) struct Broken {
    pub(super) at: Time,
    pub(super) link: u32,
    pub(super) end: usize,
    pub(super) how: Break,
    pub(super) epoch: u32,
    pub(super) found: Option<Time>,
    pub(super) healed: Option<Time>,
}

pub(super) struct Watch {
    pub(super) sent: Vec<Sent>,
    pub(super) ids: HashMap<MessageId, u32, Keyed>,
    terms: Vec<Terms>,
    breaches: BTreeMap<Rule, Breach>,
    pub(super) broken: Vec<Broken>,
    /// When a node banned another first, and when hostile nodes began.
    pub(super) bans: BTreeMap<(u32, u32), Time>,
    pub(super) hostile_since: Option<Time>,
    /// Copies of messages that honest nodes read.
    pub(super) copies: u64,
    /// Deliveries of messages that no honest node published.
    pub(super) invented: u64,
    pub(super) redelivered: u64,
    pub(super) stale_forwards: u64,
    /// The oldest message that was sent on, since its publication.
    pub(super) oldest: Duration,
}

impl Watch {
    pub(super) fn new(terms: Vec<Terms>, seed: u64) -> Self {
        Self {
            sent: Vec::new(),
            ids: HashMap::with_hasher(Keyed::new(seed)),
            terms,
            breaches: BTreeMap::new(),
            broken: Vec::new(),
            bans: BTreeMap::new(),
            hostile_since: None,
            copies: 0,
            invented: 0,
            redelivered: 0,
            stale_forwards: 0,
            oldest: Duration::ZERO,
        }
    }

    pub(super) fn breaches(&self) -> Vec<Breach> {
        self.breaches.values().cloned().collect()
    }

    pub(super) fn breach(&mut self, rule: Rule, what: impl FnOnce() -> String) {
        let breach = self.breaches.entry(rule).or_insert_with(|| Breach {
            rule,
            times: 0,
            first: what(),
        });
        breach.times += 1;
    }

    /// A copy was read by a node. Those of hostile neighbours are heard of, but prove nothing.
    pub(super) fn on_read(&mut self, node: &mut Honest, message: u32, honest: bool, now: Time) {
        let ttl = self.terms[self.sent[message as usize].topic].ttl;
        let now = millis(now);
        let noted = node.noted(message);
        if noted.last != NEVER && u128::from(now - noted.last) >= ttl.as_millis() {
            noted.forgotten = true;
        }
        noted.last = now;
        if noted.read == NEVER && honest {
            noted.read = now;
        }
        self.copies += 1;
    }

    pub(super) fn on_checked(&mut self, n: u32, node: &mut Honest, key: u64, message: Option<u32>) {
        let first = node.checked.insert(key);
        let forgotten = message.is_some_and(|m| node.noted(m).forgotten);
        if !first && !forgotten {
            self.breach(Rule::CheckedOnce, || {
                format!("node {n} checked message {message:?} again")
            });
        }
    }

    pub(super) fn on_delivered(&mut self, n: u32, node: &mut Honest, message: u32, now: Time) {
        let sent = &self.sent[message as usize];
        let terms = &self.terms[sent.topic];
        let (replay, validation) = (terms.replay, terms.validation);
        let latency = now.saturating_sub(sent.at);
        let noted = node.noted(message);
        let again = noted.delivered != NEVER && (replay || !noted.forgotten);
        let (last, forgotten) = (noted.last, noted.forgotten);
        noted.delivered = millis(now);
        if !replay {
            noted.forgotten = false;
        }
        if noted.latency == NEVER {
            noted.latency = latency.as_micros().min(u128::from(NEVER - 1)) as u32;
        }
        if again {
            self.redelivered += 1;
            self.breach(Rule::DeliveredOnce, || {
                format!("node {n} delivered message {message} again after {latency:?}")
            });
        }
        // The deadline counts from the copy that is verified, which is the last one at the latest. Times are noted in whole milliseconds.
        let deadline = u128::from(last) + validation.as_millis() + 1;
        if last != NEVER && !again && !forgotten && now.as_millis() > deadline {
            self.breach(Rule::DeliveredInTime, || {
                format!("node {n} read message {message} at {last} ms and delivered it at {now:?}")
            });
        }
    }

    /// A node puts a message on a stream.
    pub(super) fn on_sent_on(
        &mut self,
        n: u32,
        node: &mut Honest,
        message: u32,
        to: u32,
        now: Time,
    ) {
        let sent = &self.sent[message as usize];
        if sent.origin == n {
            return;
        }
        let terms = &self.terms[sent.topic];
        let (validation, lane, kept) = (terms.validation, terms.lane, terms.kept);
        let age = now.saturating_sub(sent.at);
        self.oldest = self.oldest.max(age);
        let asked = node.asked.contains(&(to, message));
        let subscribes = node.subscribes;
        let noted = *node.noted(message);
        // A relay delivers nothing: there the copies count.
        let (since, most) = match subscribes {
            true => (noted.delivered, lane),
            false => (noted.last, validation + lane),
        };
        let most = most + if asked { kept } else { Duration::ZERO };
        let late = since != NEVER && now.as_millis() > u128::from(since) + most.as_millis() + 1;
        let dropped = subscribes && noted.delivered == NEVER;
        if late || dropped {
            self.stale_forwards += 1;
            self.breach(Rule::SentOnInTime, || {
                let why = if dropped {
                    "never delivered"
                } else {
                    "too late"
                };
                format!("node {n} sent on message {message} at {now:?}, {why}: {noted:?}")
            });
        }
    }

    /// Something happened to a stream that its writer can see.
    pub(super) fn found(&mut self, who: impl Fn(&Broken) -> bool, now: Time) {
        for broken in &mut self.broken {
            if broken.found.is_none() && who(broken) {
                broken.found = Some(now);
            }
        }
    }

    /// Bytes arrive on a stream.
    pub(super) fn healed(&mut self, link: u32, end: usize, epoch: u32, now: Time) {
        for broken in &mut self.broken {
            let here = broken.link == link && broken.end == end;
            if here && broken.healed.is_none() && epoch > broken.epoch {
                broken.healed = Some(now);
                broken.found.get_or_insert(now);
            }
        }
    }

    pub(super) fn check_load(&mut self, n: u32, config: &Config, load: &Load, links: usize) {
        let knobs = &config.knobs;
        let words = 3 * 5000 + 3 * (knobs.topics + knobs.peer_topics);
        let bounds = [
            ("peers", load.peers, links),
            ("seen entries", load.seen_entries, knobs.seen_entries),
            (
                "messages in verification",
                load.pipeline_messages,
                knobs.verify_messages + knobs.verify_running + knobs.validations,
            ),
            (
                "bytes in verification",
                load.pipeline_bytes,
                knobs.verify_bytes + (knobs.verify_running + knobs.validations) * (1 << 20),
            ),
            (
                "messages in lanes",
                load.lane_messages,
                load.peers * knobs.lane_messages,
            ),
            (
                "bytes in lanes",
                load.lane_bytes,
                load.peers * (knobs.lane_bytes.max(1 << 20)),
            ),
            ("words in lanes", load.lane_words, load.peers * words),
            (
                "bytes of history",
                load.history_bytes,
                knobs.history_bytes.max(1 << 20),
            ),
            ("promises", load.promises, 16_384),
            ("unneeded ids", load.unneeded, load.peers * 3000),
            ("own messages", load.own_messages, knobs.own_messages),
            ("authors", load.authors, knobs.authors),
            ("bans", load.bans, 1024),
        ];
        for (what, is, most) in bounds {
            if is > most {
                self.breach(Rule::Bounded, || {
                    format!("node {n} holds {is} {what}, {most} at most")
                });
            }
        }
    }

    /// When nothing was published for a while.
    pub(super) fn check_quiet(&mut self, n: u32, load: &Load) {
        let waits = [
            ("messages in verification", load.pipeline_messages),
            ("messages in lanes", load.lane_messages),
            ("messages of history", load.history_messages),
            ("promises", load.promises),
            ("own messages", load.own_messages),
        ];
        for (what, is) in waits {
            if is > 0 {
                self.breach(Rule::Settled, || {
                    format!("node {n} still holds {is} {what}")
                });
            }
        }
    }

    /// Everybody left the topics, then everybody was disconnected.
    pub(super) fn check_gone(&mut self, n: u32, load: &Load) {
        let left = [
            ("peers", load.peers),
            ("topics", load.topics),
            ("messages in lanes", load.lane_messages),
            ("words in lanes", load.lane_words),
            ("messages in verification", load.pipeline_messages),
            ("promises", load.promises),
            ("unneeded ids", load.unneeded),
        ];
        for (what, is) in left {
            if is > 0 {
                self.breach(Rule::GoneIsGone, || {
                    format!("node {n} holds {is} {what} when everybody left")
                });
            }
        }
    }

    /// Real messages that came and were not delivered, against what was dropped by a bound.
    pub(super) fn check_silenced(&mut self, n: u32, node: &Honest, seconds: u64) {
        let counters = node.counters();
        let seen = node.seen_counters();
        if node.subscribes && node.life == 0 {
            let silenced = node
                .log
                .iter()
                .zip(&self.sent)
                .filter(|(noted, sent)| {
                    noted.read != NEVER && noted.delivered == NEVER && sent.origin != n
                })
                .count() as u64;
            let dropped = counters.stale
                + counters.shed
                + counters.shed_relay
                + counters.validated_late
                + seen.refused_pending
                + seen.refused_pressure;
            if silenced > dropped {
                self.breach(Rule::NotSilenced, || {
                    format!(
                        "node {n} did not deliver {silenced} messages that came, and counted {dropped}"
                    )
                });
            }
        }
        // Strikes are forgiven one in ten seconds; what is at the workers when the ban comes is checked.
        let bad = counters.verified_bad;
        let senders = node.most.peers as u64 + counters.bans;
        let most = senders * (17 + seconds / 10);
        if bad > most {
            self.breach(Rule::BadChecksBounded, || {
                format!("node {n} checked {bad} bad signatures, {most} at most")
            });
        }
    }
}

pub(super) fn millis(time: Time) -> u32 {
    time.as_millis().min(u128::from(NEVER - 1)) as u32
}
