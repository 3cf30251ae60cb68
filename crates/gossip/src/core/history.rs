//! Messages that can be asked for, and the advertising of their ids (specs/gossip.md §4).

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use libp2p_identity::PeerId;

use super::lanes::Item;
use super::topics::TopicKey;
use super::{Core, PeerKey};
use crate::hash::Keyed;
use crate::message::{MessageId, RawMessage};
use crate::seen::Seen;

/// A message is sent to one peer so many times at most, however often it asks (Kubo's number).
const MAX_SERVED: u8 = 3;
/// Ids that are advertised to one peer at a heartbeat, of one topic; Kubo takes no more.
const MAX_ADVERTISED: usize = 5000;
/// Ids that a peer may ask for between two heartbeats.
const MAX_ASKED: u32 = 5000;
/// Ids that a peer that came is told of, between two heartbeats.
const MAX_GREETING: usize = 5000;
/// Neighbours that are remembered to have a message.
const MAX_HAS: usize = 64;

struct Kept {
    id: MessageId,
    topic: TopicKey,
    field: Bytes,
    served: BTreeMap<PeerKey, u8>,
    /// Who sent it, or said that it has it: they need not be told.
    has: Vec<PeerKey>,
}

/// The last heartbeats' messages, the oldest leave first.
pub(super) struct History {
    all: HashMap<u64, Kept, Keyed>,
    /// In order, with the heartbeat at which each came.
    order: VecDeque<(u64, u64)>,
    beat: u64,
    bytes: usize,
    max_bytes: usize,
    max_messages: usize,
}

impl History {
    pub(super) fn new(max_bytes: usize, max_messages: usize, keyed: Keyed) -> Self {
        Self {
            all: HashMap::with_hasher(keyed),
            order: VecDeque::new(),
            beat: 0,
            bytes: 0,
            max_bytes,
            max_messages,
        }
    }

    pub(super) fn put(
        &mut self,
        hash: u64,
        id: MessageId,
        topic: TopicKey,
        field: Bytes,
        has: Vec<PeerKey>,
    ) {
        let len = field.len();
        let kept = Kept {
            id,
            topic,
            field,
            served: BTreeMap::new(),
            has,
        };
        if let Some(old) = self.all.insert(hash, kept) {
            self.bytes -= old.field.len();
            self.order.retain(|(_, other)| *other != hash);
        }
        self.bytes += len;
        self.order.push_back((self.beat, hash));
        let full = |history: &Self| {
            history.bytes > history.max_bytes || history.order.len() > history.max_messages
        };
        while full(self) && self.order.len() > 1 {
            self.pop();
        }
    }

    fn pop(&mut self) {
        if let Some((_, hash)) = self.order.pop_front()
            && let Some(old) = self.all.remove(&hash)
        {
            self.bytes -= old.field.len();
        }
    }

    /// A heartbeat passed.
    fn shift(&mut self, length: usize) {
        self.beat += 1;
        while self
            .order
            .front()
            .is_some_and(|(beat, _)| beat + length as u64 <= self.beat)
        {
            self.pop();
        }
    }

    /// What there is and when each came, by topic, the youngest first.
    fn recent(&self) -> BTreeMap<TopicKey, Vec<(u64, u64)>> {
        let mut recent: BTreeMap<TopicKey, Vec<(u64, u64)>> = BTreeMap::new();
        for (beat, hash) in self.order.iter().rev() {
            if let Some(kept) = self.all.get(hash) {
                recent.entry(kept.topic).or_default().push((*beat, *hash));
            }
        }
        recent
    }

    /// A peer says that it has the message.
    pub(super) fn note_has(&mut self, hash: u64, peer: PeerKey) {
        if let Some(kept) = self.all.get_mut(&hash)
            && kept.has.len() < MAX_HAS
            && !kept.has.contains(&peer)
        {
            kept.has.push(peer);
        }
    }

    /// The id, for a peer that is not known to have the message.
    fn news(&self, hash: u64, peer: PeerKey) -> Option<MessageId> {
        let kept = self.all.get(&hash)?;
        (!kept.has.contains(&peer)).then(|| kept.id.clone())
    }

    /// The message, if this peer may have it once more.
    fn serve(&self, hash: u64, peer: PeerKey) -> Option<(TopicKey, Bytes)> {
        let kept = self.all.get(&hash)?;
        let served = kept.served.get(&peer).copied().unwrap_or_default();
        (served < MAX_SERVED).then(|| (kept.topic, kept.field.clone()))
    }

    fn note_served(&mut self, hash: u64, peer: PeerKey) {
        if let Some(kept) = self.all.get_mut(&hash) {
            *kept.served.entry(peer).or_default() += 1;
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// What there is of an author, in the order in which it came.
    pub(super) fn of_author(&self, author: &[u8]) -> Vec<Bytes> {
        let all = self.order.iter().filter_map(|(_, hash)| self.all.get(hash));
        let of_author = all.filter(|kept| {
            let id = kept.id.as_bytes();
            id.len() == author.len() + 8 && id.starts_with(author)
        });
        of_author.map(|kept| kept.field.clone()).collect()
    }

    /// Nobody is there to ask.
    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.order.clear();
        self.bytes = 0;
    }

    pub(super) fn forget(&mut self, peer: PeerKey) {
        for kept in self.all.values_mut() {
            kept.served.remove(&peer);
            kept.has.retain(|other| *other != peer);
        }
    }
}

impl Core {
    /// Ids that a peer asks for.
    pub(super) fn on_iwant(&mut self, seen: &Seen, peer: PeerKey, ids: &[MessageId]) {
        self.counters.iwant_in += ids.len() as u64;
        for id in ids {
            let Some(state) = self.peers.get_mut(&peer) else {
                return;
            };
            if state.budget.iwant_ids >= MAX_ASKED {
                self.counters.control_dropped += 1;
                continue;
            }
            state.budget.iwant_ids += 1;
            let hash = seen.digester().id(id.as_bytes());
            let Some((topic, field)) = self.history.serve(hash, peer) else {
                continue;
            };
            if !self.spend(topic, field.len()) {
                self.note_missed(peer);
                continue;
            }
            self.history.note_served(hash, peer);
            let lane = self
                .topics
                .get(topic)
                .map_or(self.config.knobs.lane_age, |topic| topic.lane);
            let expires = self.now + lane;
            self.counters.iwant_served += 1;
            self.push(
                peer,
                Item {
                    field,
                    id: hash,
                    expires,
                },
            );
        }
    }

    /// Every heartbeat: tells neighbours outside the mesh what there is, and those inside to whom something was not delivered.
    pub(super) fn advertise(&mut self) {
        let recent = self.history.recent();
        let beat = self.history.beat;
        let gossip = self.config.knobs.history_gossip as u64;
        for (key, mut ids) in recent {
            ids.truncate(MAX_ADVERTISED);
            let Some(name) = self.topics.get(key).map(|topic| topic.name.clone()) else {
                continue;
            };
            for peer in self.listeners(key) {
                let Some(state) = self.peers.get_mut(&peer) else {
                    continue;
                };
                // What it was told at an earlier heartbeat it knows. Who missed something is told of all that there is.
                let since = match (state.missed, state.told.insert(key, beat)) {
                    (true, _) => 0,
                    (false, told) => (beat + 1)
                        .saturating_sub(gossip)
                        .max(told.map_or(0, |told| told + 1)),
                };
                let news = ids
                    .iter()
                    .take_while(|(from, _)| *from >= since)
                    .filter_map(|(_, hash)| self.history.news(*hash, peer))
                    .collect();
                let taken = state.lane.add_ihave(&name, news);
                self.counters.ihave_out += taken as u64;
                self.ready.insert(peer);
            }
        }
        for peer in self.peers.values_mut() {
            peer.missed = false;
        }
        self.history.shift(self.config.knobs.history_length);
    }

    /// A neighbour came, or came back: it is told at once of all that there is, it may have missed it. Once in a heartbeat, whatever it says.
    pub(super) fn greet(&mut self, key: TopicKey, peer: PeerKey) {
        let (Some(topic), Some(state)) = (self.topics.get(key), self.peers.get_mut(&peer)) else {
            return;
        };
        let room = MAX_GREETING.saturating_sub(state.budget.greeted);
        if !topic.is_wanted() || !state.link.is_open() || room == 0 {
            return;
        }
        let history = &self.history;
        let all = history.order.iter().rev();
        let ids: Vec<MessageId> = all
            .filter(|(_, hash)| history.all.get(hash).is_some_and(|kept| kept.topic == key))
            .filter_map(|(_, hash)| history.news(*hash, peer))
            .take(room)
            .collect();
        let taken = state.lane.add_ihave(&topic.name, ids);
        state.budget.greeted += taken;
        // What comes from now on it is told at heartbeats, as others are.
        if let Some(before) = history.beat.checked_sub(1) {
            state.told.insert(key, before);
        }
        self.counters.ihave_out += taken as u64;
        self.ready.insert(peer);
    }

    /// Who surely has a message: those who sent it, and its author.
    pub(super) fn who_has(&self, message: &RawMessage, had: &[PeerKey]) -> Vec<PeerKey> {
        let author = PeerId::from_bytes(message.from()).ok();
        let author = author.and_then(|author| self.by_peer.get(&author));
        had.iter().chain(author).take(MAX_HAS).copied().collect()
    }

    /// Who is told: some of those outside the mesh, and all who missed something.
    fn listeners(&mut self, key: TopicKey) -> Vec<PeerKey> {
        let Some(topic) = self.topics.get(key) else {
            return Vec::new();
        };
        let open = |peer: &PeerKey| self.peers.get(peer).filter(|p| p.link.is_open());
        let few = topic.neighbours.len() <= self.config.knobs.degree;
        let mut outside: Vec<PeerKey> = topic
            .neighbours
            .keys()
            .copied()
            .filter(|peer| !few && !topic.mesh.contains(peer))
            .filter(|peer| open(peer).is_some_and(|p| !p.direct && !p.missed))
            .collect();
        let missed: Vec<PeerKey> = topic
            .neighbours
            .keys()
            .copied()
            .filter(|peer| open(peer).is_some_and(|p| p.missed))
            .collect();
        let knobs = &self.config.knobs;
        let share = outside.len() * knobs.gossip_percent / 100;
        let count = share.max(knobs.degree_lazy);
        self.dice.choose(&mut outside, count);
        outside.extend(missed);
        outside
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hash::Dice;
    use crate::message::Topic;
    use crate::{Config, Core};

    /// Small messages were many in 8 MiB, and each has its price besides its bytes.
    #[test]
    fn what_is_kept_to_be_asked_for_is_bounded_in_messages_too() {
        let mut core = Core::new(Config::default(), None, 7);
        let topic = core.topic(&Topic::new("t").expect("a name"));
        let mut history = History::new(1 << 20, 100, Keyed::new(Dice::new(1).next_u64()));
        for hash in 0..1000_u64 {
            let id = MessageId::new(hash.to_be_bytes().to_vec());
            history.put(hash, id, topic, Bytes::from_static(b"x"), Vec::new());
        }
        assert_eq!(
            (history.len(), history.order.len(), history.bytes()),
            (100, 100, 100)
        );
        assert!(history.all.contains_key(&999));
    }
}
