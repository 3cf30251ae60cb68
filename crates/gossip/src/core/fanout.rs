//! Whom one's own messages go to (specs/gossip.md §4).
//!
//! Where few subscribe, to all of them. Where many do, to the mesh; who does not subscribe itself has none and keeps to a few chosen ones
//! while it goes on publishing.

use super::mesh::USEFUL;
use super::topics::TopicKey;
use super::{Core, PeerKey};
use crate::message::Topic;

impl Core {
    /// Who gets one's own messages.
    pub(super) fn publish_targets(&mut self, topic: &Topic) -> Vec<PeerKey> {
        let Some(key) = self.topics.key(topic.as_str()) else {
            return Vec::new();
        };
        let Some(state) = self.topics.get(key) else {
            return Vec::new();
        };
        let few = self
            .config
            .knobs
            .flood_publish
            .max(self.config.knobs.degree);
        if state.neighbours.len() <= few {
            return state.neighbours.keys().copied().collect();
        }
        // Others bring messages and the mesh brings next to none: it may keep ours back as well.
        if state.is_mesh_mute() && self.useful_in_mesh(key) < USEFUL {
            return state.neighbours.keys().copied().collect();
        }
        let mut targets = self.targets(key);
        if targets.len() < self.config.knobs.degree_low {
            let chosen = self.fan_out(key);
            targets.extend(
                chosen
                    .into_iter()
                    .filter(|peer| !self.is_target(key, *peer)),
            );
        }
        targets
    }

    fn is_target(&self, key: TopicKey, peer: PeerKey) -> bool {
        let mesh = self.topics.get(key).is_some_and(|t| t.mesh.contains(&peer));
        mesh || self.peers.get(&peer).is_some_and(|p| p.direct)
    }

    /// The chosen ones, filled up where some left.
    fn fan_out(&mut self, key: TopicKey) -> Vec<PeerKey> {
        let until = self.now + self.config.knobs.fanout_ttl;
        let degree = self.config.knobs.degree;
        let Some(topic) = self.topics.get_mut(key) else {
            return Vec::new();
        };
        topic.fanout_until = until;
        let mut others: Vec<PeerKey> = topic
            .neighbours
            .keys()
            .copied()
            .filter(|peer| !topic.fanout.contains(peer))
            .collect();
        let missing = degree.saturating_sub(topic.fanout.len());
        self.dice.choose(&mut others, missing);
        topic.fanout.extend(others);
        topic.fanout.iter().copied().collect()
    }

    /// Every heartbeat: forgets the chosen ones of topics that nothing was published on for a while.
    pub(super) fn tend_fanout(&mut self) {
        let now = self.now;
        for topic in self.topics.iter_mut() {
            if topic.fanout_until <= now {
                topic.fanout.clear();
            }
        }
    }
}
