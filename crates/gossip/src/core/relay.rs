//! Carrying topics for others that are not read here, so that a–b–c works with b not interested (specs/gossip.md §7).
//!
//! To receive a topic one must announce it. A relay does so with a private field: how many hops it is to a real subscriber, the shortest
//! way over anybody but the neighbour that is told. So a relay never tells a neighbour what it knows from that neighbour alone, and two
//! relays cannot keep each other alive; in a ring of relays the number grows with each round and ends at [`crate::Config::relay_hops`].

use super::topics::{TopicKey, TopicState};
use super::{Core, PeerKey};

impl Core {
    /// What a peer is to be told of a topic: the hops from us to a real subscriber, nothing if we want none of it.
    pub(super) fn word(&self, topic: &TopicState, peer: PeerKey) -> Option<u8> {
        if topic.subscribed {
            return Some(0);
        }
        if !topic.relayed {
            return None;
        }
        let nearest = topic
            .neighbours
            .iter()
            .filter(|(other, _)| **other != peer)
            .map(|(_, distance)| *distance)
            .min()?;
        let hops = usize::from(nearest) + 1;
        (hops <= self.config.knobs.relay_hops).then_some(hops as u8)
    }

    /// Somebody joined, left, or is nearer or farther: does this node carry the topic, and what does it say?
    pub(super) fn tend_relay(&mut self, key: TopicKey) {
        let relayed = self.topics.relayed();
        let Some(topic) = self.topics.get(key) else {
            return;
        };
        if topic.subscribed {
            return;
        }
        let was = topic.relayed;
        let hops = topic.neighbours.values().min().map(|d| usize::from(*d) + 1);
        let near = hops.is_some_and(|hops| hops <= self.config.knobs.relay_hops);
        let is = near && (was || self.config.relays(&topic.name, relayed));
        if !was && !is {
            return;
        }
        if let Some(topic) = self.topics.get_mut(key) {
            topic.relayed = is;
        }
        if was && !is {
            self.dissolve(key);
        }
        self.announce(key);
    }

    /// Whether the relay may send one copy of a message of a topic that is not read here. The last one may be larger than what is left, and is
    /// paid for later: else one larger than two heartbeats' allowance would never be sent.
    pub(super) fn spend(&mut self, key: TopicKey, bytes: usize) -> bool {
        if self.topics.get(key).is_none_or(|topic| topic.subscribed) {
            return true;
        }
        if self.relay_left == 0 {
            self.counters.shed_relay += 1;
            return false;
        }
        self.relay_debt += bytes.saturating_sub(self.relay_left);
        self.relay_left = self.relay_left.saturating_sub(bytes);
        true
    }

    /// Every heartbeat: what was not spent is kept for one more.
    pub(super) fn refill_relay(&mut self) {
        let rate = self.config.knobs.relay_bytes as f64;
        let more = (rate * self.config.knobs.heartbeat.as_secs_f64()) as usize;
        let paid = self.relay_debt.min(more);
        self.relay_debt -= paid;
        self.relay_left = (self.relay_left + more - paid).min(more * 2);
    }
}
