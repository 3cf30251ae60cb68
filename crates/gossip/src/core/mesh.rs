//! The mesh of each topic: the few neighbours to whom every message is sent at once (specs/gossip.md §4).
//!
//! As in gossipsub 1.1, without scores. Two things differ, both inside what the protocol allows: with at most D subscribed neighbours all
//! of them are sent to, so that a small swarm floods from the first moment; and a neighbour that subscribes is grafted at once while the
//! mesh is thin, not at the next heartbeat.

use std::time::Duration;

use super::lanes::MeshWord;
use super::topics::{TopicKey, TopicState};
use super::{Core, PeerKey};
use crate::message::Topic;
use crate::wire::{Prune, Version};

/// Longest back-off that a peer can ask for.
const MAX_BACKOFF: Duration = Duration::from_secs(3600);
/// GRAFT and PRUNE of one peer that are looked at between two heartbeats, beyond one for each topic that it may have here.
const SPARE_GRAFTS: usize = 64;

/// At least so many of a mesh were lately among the first to send something new, if there are such neighbours: a mesh of strangers that keep
/// everything back delivers nothing (threat G7).
pub(super) const USEFUL: usize = 3;

impl Core {
    /// GRAFT and PRUNE of a peer.
    pub(super) fn on_mesh_control(&mut self, peer: PeerKey, graft: Vec<Topic>, prune: Vec<Prune>) {
        let allowed = (self.topics.wanted() * 2 + SPARE_GRAFTS) as u32;
        for topic in graft {
            self.counters.grafts_in += 1;
            if self.within_graft_budget(peer, allowed) {
                self.on_graft(peer, &topic);
            }
        }
        for prune in prune {
            self.counters.prunes_in += 1;
            if self.within_graft_budget(peer, allowed) {
                self.on_prune(peer, &prune);
            }
        }
    }

    fn within_graft_budget(&mut self, peer: PeerKey, allowed: u32) -> bool {
        let Some(peer) = self.peers.get_mut(&peer) else {
            return false;
        };
        peer.budget.grafts = peer.budget.grafts.saturating_add(1);
        let within = peer.budget.grafts <= allowed;
        self.counters.control_dropped += u64::from(!within);
        within
    }

    fn on_graft(&mut self, key: PeerKey, name: &Topic) {
        let wanted = |topic: &&TopicState| topic.is_wanted();
        let (Some(topic), Some(peer)) = (
            self.topics.named(name.as_str()).filter(wanted),
            self.peers.get(&key),
        ) else {
            // Of no interest here. No answer: a PRUNE for each invented topic would serve a flood.
            return;
        };
        if topic.mesh.contains(&key) {
            return;
        }
        let in_backoff = topic
            .backoff
            .get(&key)
            .is_some_and(|until| *until > self.now);
        let welcome = peer.outbound || self.is_useful(key);
        let full = topic.mesh.len() >= self.config.knobs.degree_high && !welcome;
        if peer.direct || in_backoff || full {
            self.counters.grafts_refused += 1;
            let backoff = self.config.knobs.prune_backoff;
            return self.send_prune(key, name, backoff);
        }
        // Who grafts subscribes, whether we heard of it or not.
        let known = topic.neighbours.contains_key(&key);
        if !known {
            self.join(key, name, 0);
        }
        if let Some(topic) = self.topics.named_mut(name.as_str()) {
            topic.mesh.insert(key);
        }
    }

    fn on_prune(&mut self, key: PeerKey, prune: &Prune) {
        let default = self.config.knobs.prune_backoff;
        let now = self.now;
        // A topic that was never joined is none of the peer's business (GHSA-vrx6-jcp8-vm7m).
        let Some(topic) = self.topics.named_mut(prune.topic.as_str()) else {
            return;
        };
        if !topic.is_wanted() {
            return;
        }
        topic.mesh.remove(&key);
        let backoff = prune.backoff.map_or(default, Duration::from_secs);
        topic.back_off(key, now + backoff.min(MAX_BACKOFF));
    }

    fn send_prune(&mut self, key: PeerKey, name: &Topic, backoff: Duration) {
        let until = self.now + backoff;
        if let Some(topic) = self.topics.named_mut(name.as_str()) {
            topic.mesh.remove(&key);
            topic.back_off(key, until);
        }
        let seconds = backoff.as_secs();
        self.say(key, name, MeshWord::Prune { seconds });
    }

    /// Takes up to `count` more neighbours into the mesh, chosen at random among those that `may`.
    pub(super) fn graft(
        &mut self,
        key: TopicKey,
        count: usize,
        may: impl Fn(&super::peers::Peer) -> bool,
    ) {
        let Some(topic) = self.topics.get(key).filter(|t| t.is_wanted()) else {
            return;
        };
        // A heartbeat of slack, for clocks that differ.
        let slack = self.config.knobs.heartbeat;
        let mut chosen: Vec<PeerKey> = topic
            .neighbours
            .keys()
            .copied()
            .filter(|peer| !topic.mesh.contains(peer))
            .filter(|peer| {
                topic
                    .backoff
                    .get(peer)
                    .is_none_or(|until| *until + slack <= self.now)
            })
            .filter(|peer| {
                self.peers
                    .get(peer)
                    .is_some_and(|p| p.link.is_open() && !p.direct && may(p))
            })
            // A relay grafts only whom it told that it wants the topic.
            .filter(|peer| self.word(topic, *peer).is_some())
            .collect();
        self.dice.choose(&mut chosen, count);
        let name = topic.name.clone();
        if let Some(topic) = self.topics.get_mut(key) {
            topic.mesh.extend(&chosen);
        }
        for peer in chosen {
            self.say(peer, &name, MeshWord::Graft);
        }
    }

    /// A neighbour came, or its stream: it is taken in at once while the mesh is thin. Others do the same, so that it grows by itself from
    /// there.
    pub(super) fn thicken(&mut self, key: TopicKey, peer: PeerKey) {
        let low = self.config.knobs.degree_low;
        let Some(topic) = self.topics.get(key) else {
            return;
        };
        if topic.mesh.len() >= low || topic.mesh.contains(&peer) {
            return;
        }
        let Some(id) = self.peers.get(&peer).map(|p| p.id) else {
            return;
        };
        self.graft(key, 1, |p| p.id == id);
    }

    /// Leaves the mesh of a topic.
    pub(super) fn dissolve(&mut self, key: TopicKey) {
        let backoff = self.config.knobs.unsubscribe_backoff;
        let Some(topic) = self.topics.get_mut(key) else {
            return;
        };
        let (mesh, name) = (std::mem::take(&mut topic.mesh), topic.name.clone());
        for peer in mesh {
            self.send_prune(peer, &name, backoff);
        }
    }

    /// A fresh stream: the peer is told again in whose mesh it is.
    pub(super) fn regraft(&mut self, peer: PeerKey) {
        let Some(state) = self.peers.get(&peer) else {
            return;
        };
        let topics: Vec<TopicKey> = state.topics.iter().copied().collect();
        for key in topics {
            let Some(topic) = self.topics.get(key).filter(|t| t.is_wanted()) else {
                continue;
            };
            if topic.mesh.contains(&peer) {
                let name = topic.name.clone();
                self.say(peer, &name, MeshWord::Graft);
            } else {
                self.thicken(key, peer);
            }
            self.greet(key, peer);
        }
    }

    /// Every heartbeat: brings each mesh to its size, with enough peers of our own choice.
    pub(super) fn tend_meshes(&mut self) {
        let keys: Vec<TopicKey> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.is_wanted())
            .map(|(key, _)| key)
            .collect();
        let knobs = &self.config.knobs;
        let (low, degree, high, out) = (
            knobs.degree_low,
            knobs.degree,
            knobs.degree_high,
            knobs.degree_out,
        );
        for key in keys {
            let now = self.now;
            let Some(topic) = self.topics.get_mut(key) else {
                continue;
            };
            topic.backoff.retain(|_, until| *until > now);
            let size = topic.mesh.len();
            if size < low {
                self.graft(key, degree - size, |_| true);
            } else if size > high {
                self.thin(key, degree, out);
            }
            let outbound = self.outbound_in_mesh(key);
            if outbound < out && self.topics.get(key).is_some_and(|t| t.mesh.len() >= low) {
                self.graft(key, out - outbound, |peer| peer.outbound);
            }
            let useful = self.useful_in_mesh(key);
            if useful < USEFUL {
                let accepted = self.accepted();
                let may = |peer: &super::peers::Peer| peer.budget.is_useful(accepted);
                self.graft(key, USEFUL - useful, may);
            }
        }
    }

    pub(super) fn useful_in_mesh(&self, key: TopicKey) -> usize {
        let mesh = self.topics.get(key).into_iter().flat_map(|t| &t.mesh);
        mesh.filter(|peer| self.is_useful(**peer)).count()
    }

    fn outbound_in_mesh(&self, key: TopicKey) -> usize {
        let Some(topic) = self.topics.get(key) else {
            return 0;
        };
        let outbound = |peer: &&PeerKey| self.peers.get(peer).is_some_and(|p| p.outbound);
        topic.mesh.iter().filter(outbound).count()
    }

    /// Prunes down to `degree`: keeps `out` peers that we dialled, then those that lately sent something new, then others, at random.
    fn thin(&mut self, key: TopicKey, degree: usize, out: usize) {
        let Some(topic) = self.topics.get(key) else {
            return;
        };
        let name = topic.name.clone();
        let mut all: Vec<PeerKey> = topic.mesh.iter().copied().collect();
        let size = all.len();
        self.dice.choose(&mut all, size);
        all.sort_by_key(|peer| !self.is_useful(*peer));
        let (mut mine, others): (Vec<PeerKey>, Vec<PeerKey>) = all
            .into_iter()
            .partition(|peer| self.peers.get(peer).is_some_and(|p| p.outbound));
        let rest = mine.split_off(out.min(mine.len()));
        let keep = degree.saturating_sub(mine.len());
        let mut others: Vec<PeerKey> = rest.into_iter().chain(others).collect();
        others.sort_by_key(|peer| !self.is_useful(*peer));
        let leave = others.split_off(keep.min(others.len()));
        let backoff = self.config.knobs.prune_backoff;
        for peer in leave {
            self.send_prune(peer, &name, backoff);
        }
    }

    /// Who gets what is sent on: the mesh and the direct peers; everybody who subscribes where that is no more than a mesh.
    pub(super) fn targets(&self, key: TopicKey) -> Vec<PeerKey> {
        let Some(topic) = self.topics.get(key) else {
            return Vec::new();
        };
        if topic.neighbours.len() <= self.config.knobs.degree {
            return topic.neighbours.keys().copied().collect();
        }
        let direct = |peer: &&PeerKey| self.peers.get(peer).is_some_and(|p| p.direct);
        let direct = topic.neighbours.keys().filter(direct);
        topic.mesh.iter().chain(direct).copied().collect()
    }

    /// Says that others need not send what is here now.
    pub(super) fn refuse_copies(&mut self, key: TopicKey, id: &crate::MessageId, had: &[PeerKey]) {
        let targets = self.targets(key);
        for peer in targets.into_iter().filter(|peer| !had.contains(peer)) {
            if let Some(state) = self.peers.get_mut(&peer)
                && state.link.version() == Some(Version::V1_2)
                && state.lane.add_idontwant(id.clone())
            {
                self.counters.idontwant_out += 1;
                self.ready.insert(peer);
            }
        }
    }
}
