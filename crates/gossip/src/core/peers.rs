//! Connected peers: what is known of each, and what goes when it goes.

use std::collections::{BTreeMap, BTreeSet};

use libp2p_identity::PeerId;

use super::budget::Budget;
use super::heartbeat::Unneeded;
use super::lanes::Lane;
use super::link::Link;
use super::topics::TopicKey;
use super::{CloseCause, Core, Output, PeerKey, Time};
use crate::seen::Seen;
use crate::wire::Received;

/// One connected peer. Everything that it causes hangs here, and goes with it.
pub(super) struct Peer {
    pub(super) id: PeerId,
    /// The id as messages have it.
    pub(super) name: Box<[u8]>,
    /// We dialled it.
    pub(super) outbound: bool,
    /// Always sent to, never in a mesh.
    pub(super) direct: bool,
    pub(super) banned: bool,
    /// What it subscribes to.
    pub(super) topics: BTreeSet<TopicKey>,
    /// Bytes of those names.
    pub(super) topic_bytes: usize,
    pub(super) link: Link,
    pub(super) lane: Lane,
    pub(super) budget: Budget,
    /// Ids that it need not be sent.
    pub(super) unneeded: Unneeded,
    /// Something meant for it was lost: it is told what there is, in the mesh or not.
    pub(super) missed: bool,
    /// At which heartbeat it was told last what there is of a topic.
    pub(super) told: BTreeMap<TopicKey, u64>,
    pub(super) last_received: Option<Time>,
}

impl Core {
    pub(super) fn on_connected(&mut self, seen: &mut Seen, id: PeerId, outbound: bool) {
        if self.by_peer.contains_key(&id) {
            return;
        }
        let key = PeerKey(self.next_peer);
        self.next_peer = self.next_peer.wrapping_add(1);
        seen.join(id);
        let until = self.bans.until(&id, self.now);
        seen.set_banned(&id, until.is_some());
        let peer = Peer {
            id,
            name: id.to_bytes().into(),
            outbound,
            direct: self.config.direct.contains(&id),
            banned: until.is_some(),
            topics: BTreeSet::new(),
            topic_bytes: 0,
            link: Link::new(self.now),
            lane: Lane::default(),
            budget: Budget::default(),
            unneeded: Unneeded::new(self.keyed),
            missed: false,
            told: BTreeMap::new(),
            last_received: None,
        };
        self.by_peer.insert(id, key);
        self.peers.insert(key, peer);
        self.keep_house();
        match until {
            Some(until) => self.out.push_back(Output::Close {
                peer: id,
                cause: CloseCause::Banned { until },
            }),
            None => self.open_stream(key),
        }
    }

    pub(super) fn on_disconnected(&mut self, seen: &mut Seen, id: &PeerId) {
        let Some(key) = self.by_peer.remove(id) else {
            return;
        };
        self.drop_queue(seen, key);
        let topics: Vec<_> = match self.peers.get(&key) {
            Some(peer) => peer.topics.iter().copied().collect(),
            None => Vec::new(),
        };
        for topic in topics {
            self.leave(key, topic);
        }
        if let Some(peer) = self.peers.remove(&key) {
            self.counters.lane_lost += peer.lane.messages() as u64;
        }
        for topic in self.topics.iter_mut() {
            topic.backoff.remove(&key);
        }
        self.drop_promises(key);
        self.history.forget(key);
        self.ready.remove(&key);
        seen.leave(id);
    }

    pub(super) fn on_received(
        &mut self,
        seen: &mut Seen,
        key: PeerKey,
        received: Received,
        at: Time,
    ) {
        self.counters.rpcs_in += 1;
        self.counters.bytes_in += received.bytes as u64;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.banned {
            self.counters.banned_dropped += 1;
            return self.on_orphaned(seen, received, at);
        }
        peer.last_received = Some(self.now);
        peer.link.on_heard();
        self.counters.control_dropped += u64::from(received.ignored);
        self.on_subscriptions(key, received.subscriptions);
        self.on_bad_forms(seen, key, received.refused, received.known.invalid);
        let control = received.control;
        self.on_mesh_control(key, control.graft, control.prune);
        self.on_idontwant(seen, key, &control.idontwant);
        self.on_candidates(seen, key, received.candidates, at);
        self.on_ihave(seen, key, control.ihave);
        self.on_iwant(seen, key, &control.iwant);
        if let Some(nonce) = received.ping {
            self.on_ping(key, nonce);
        }
        if let Some(nonce) = received.pong {
            self.on_pong(key, nonce);
        }
    }

    /// What was read of a peer that is banned or gone by now. Its messages are those of others who sent the same bytes meanwhile.
    pub(super) fn on_orphaned(&mut self, seen: &mut Seen, received: Received, at: Time) {
        for (mark, _) in &received.refused {
            seen.forget(*mark);
        }
        for candidate in received.candidates {
            self.on_heirless(seen, candidate, at.min(self.now));
        }
    }
}
