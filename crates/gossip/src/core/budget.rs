//! What a peer may cost: strikes for what no honest peer sends, allowances for control (specs/gossip.md §6).
//!
//! There is no score. A strike is for bytes that only an enemy or a broken machine sends; one decays in ten heartbeats; sixteen are a ban.

use std::collections::HashMap;
use std::collections::VecDeque;
use std::time::Duration;

use libp2p_identity::PeerId;

use super::topics::TopicKey;
use super::{CloseCause, Core, Event, Output, PeerKey, Time};
use crate::seen::{Class, Mark, Seen, State};
use crate::wire::Refused;

/// One strike, in hundredths.
pub(super) const STRIKE: u32 = 100;
/// So many are a ban.
const BAN_AT: u32 = 16 * STRIKE;
/// What a heartbeat forgives.
const DECAY: u32 = STRIKE / 10;
/// Other bytes under an accepted id can be the work of an author who signs two messages with one number, and what the application rejects that
/// of an author whom relays and others who do not judge take for honest: honest neighbours pass both on. They alone ban nobody but that
/// author.
const PASSED_ON_AT_MOST: u32 = BAN_AT / 2;
/// Bans that are remembered; the oldest leaves first.
const MAX_BANS: usize = 1024;
const LONGEST_BAN: Duration = Duration::from_secs(86_400);

/// Messages of topics of no interest that a peer may send a heartbeat without a strike: what was under way when we left.
const UNWANTED: u32 = 256;

/// A peer is useful for so many messages after the last one that it was among the first to send. Guess.
const LATELY: u64 = 256;

/// What one peer used up.
#[derive(Default)]
pub(super) struct Budget {
    strikes: u32,
    /// Messages whose signature was good.
    pub(super) good: u64,
    /// How many messages the node had accepted when this peer was last among the first to send one.
    useful_at: Option<u64>,
    /// Ids that it was told of because it came.
    pub(super) greeted: usize,
    /// Ids that were asked of it and have not come yet.
    pub(super) promised: usize,
    /// Since the last heartbeat.
    pub(super) unwanted: u32,
    pub(super) ihave_rpcs: u32,
    pub(super) ihave_ids: u32,
    pub(super) iwant_ids: u32,
    pub(super) idontwant_ids: u32,
    pub(super) grafts: u32,
    /// Promises that it broke lately.
    pub(super) broken: u32,
}

impl Budget {
    /// How many of its messages may be at the workers at a time: few for one that sent bad ones, so that a flood costs few checks before it
    /// ends in a ban; more for one that proved itself.
    pub(super) fn checks(&self) -> usize {
        let left = BAN_AT.saturating_sub(self.strikes) / STRIKE;
        let proven = if self.strikes >= STRIKE {
            0
        } else {
            self.good / 16
        };
        (left as usize).max(1) + proven.min(48) as usize
    }

    /// Whether the peer was among the first to send one of the last messages: what no hostile one does for long.
    pub(super) fn is_useful(&self, accepted: u64) -> bool {
        self.useful_at.is_some_and(|at| at + LATELY > accepted)
    }

    pub(super) fn strikes(&self) -> u32 {
        self.strikes / STRIKE
    }
}

/// Peers that are shut out.
#[derive(Default)]
pub(super) struct Bans {
    /// Until when, and how often so far.
    all: HashMap<PeerId, (Time, u32)>,
    order: VecDeque<PeerId>,
}

impl Bans {
    pub(super) fn until(&self, peer: &PeerId, now: Time) -> Option<Time> {
        self.all
            .get(peer)
            .map(|(until, _)| *until)
            .filter(|until| *until > now)
    }

    fn add(&mut self, peer: PeerId, first: Duration, now: Time) -> Time {
        let times = self.all.get(&peer).map_or(0, |(_, times)| *times);
        let time = first.saturating_mul(1 << times.min(16)).min(LONGEST_BAN);
        let until = now + time;
        if self.all.insert(peer, (until, times + 1)).is_none() {
            self.order.push_back(peer);
        }
        if self.order.len() > MAX_BANS
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
        }
        until
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }
}

impl Core {
    /// Holds something against a peer; sixteen strikes are a ban.
    pub(super) fn strike(&mut self, seen: &mut Seen, key: PeerKey, weight: u32) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.budget.strikes = peer.budget.strikes.saturating_add(weight);
        if peer.budget.strikes >= BAN_AT && !peer.banned {
            self.ban(seen, key);
        }
    }

    /// Holds against a peer what its author is to blame for first of all.
    pub(super) fn strike_passed_on(&mut self, seen: &mut Seen, key: PeerKey, is_author: bool) {
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        if is_author {
            self.strike(seen, key, STRIKE);
        } else if peer.budget.strikes < PASSED_ON_AT_MOST {
            let weight = STRIKE.min(PASSED_ON_AT_MOST - peer.budget.strikes);
            self.strike(seen, key, weight);
        }
    }

    fn ban(&mut self, seen: &mut Seen, key: PeerKey) {
        let (now, first) = (self.now, self.config.knobs.ban);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.banned = true;
        let id = peer.id;
        let until = self.bans.add(id, first, now);
        let topics: Vec<_> = peer.topics.iter().copied().collect();
        seen.set_banned(&id, true);
        self.counters.bans += 1;
        self.drop_queue(seen, key);
        for topic in topics {
            self.leave(key, topic);
        }
        self.shut(key);
        self.out.push_back(Output::ResetStream { peer: id });
        self.out.push_back(Output::Close {
            peer: id,
            cause: CloseCause::Banned { until },
        });
        self.event(Event::Banned { peer: id, until });
    }

    /// Messages that were accepted, of all topics.
    pub(super) fn accepted(&self) -> u64 {
        self.counters.delivered + self.counters.relayed
    }

    /// These were the first to send a message that was accepted. Its author proves nothing by that.
    pub(super) fn note_useful(&mut self, topic: TopicKey, author: &[u8], peers: &[PeerKey]) {
        let accepted = self.accepted();
        for key in peers {
            let Some(peer) = self.peers.get_mut(key) else {
                continue;
            };
            if author.is_empty() || *peer.name != *author {
                peer.budget.useful_at = Some(accepted);
                if let Some(topic) = self.topics.get_mut(topic) {
                    topic.note_brought(*key);
                }
            }
        }
    }

    pub(super) fn is_useful(&self, key: PeerKey) -> bool {
        let accepted = self.accepted();
        self.peers
            .get(&key)
            .is_some_and(|peer| peer.budget.is_useful(accepted))
    }

    /// Messages that are not in canonical form, and repeated bad bytes.
    pub(super) fn on_bad_forms(
        &mut self,
        seen: &mut Seen,
        key: PeerKey,
        refused: Vec<(Mark, Refused)>,
        repeated: u32,
    ) {
        for (mark, _) in &refused {
            seen.settle(*mark, State::Invalid, None, Class::DEFAULT, self.now);
        }
        self.counters.refused_form += refused.len() as u64;
        self.counters.repeated_bad += u64::from(repeated);
        let bad = (refused.len() as u32).saturating_add(repeated).min(16);
        if bad > 0 {
            self.strike(seen, key, bad * STRIKE);
        }
    }

    /// A message of a topic of no interest.
    pub(super) fn on_unwanted(&mut self, seen: &mut Seen, key: PeerKey) {
        self.counters.unwanted += 1;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.budget.unwanted += 1;
        if peer.budget.unwanted % UNWANTED == 0 {
            self.strike(seen, key, STRIKE);
        }
    }

    /// A heartbeat passed: strikes decay, allowances begin anew.
    pub(super) fn decay_budgets(&mut self) {
        for peer in self.peers.values_mut() {
            let budget = &mut peer.budget;
            *budget = Budget {
                strikes: budget.strikes.saturating_sub(DECAY),
                good: budget.good,
                useful_at: budget.useful_at,
                promised: budget.promised,
                broken: budget.broken - budget.broken.div_ceil(8),
                ..Budget::default()
            };
        }
    }
}
