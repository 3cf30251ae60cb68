//! What waits to be written to one peer, in three lanes: control first, then messages, then gossip (specs/gossip.md §4).
//!
//! Control keeps the last word on each topic only, so it is bounded by the number of topics. Messages share their bytes with the lanes of
//! other peers and with the history; the lane is bounded in bytes and count, and what is too old goes. Gossip is a bounded list of ids.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::heartbeat::Unneeded;
use super::link::InFlight;
use super::{Core, Output, PeerKey, Time};
use crate::message::{MessageId, Topic};
use crate::metrics::Counters;
use crate::wire::{FrameBuilder, PACK_BYTES, Version};

/// Most ids of each kind that wait for a peer; what is above is dropped, it will be advertised again.
const MAX_IDS: usize = 5000;

/// What a peer is told about the mesh of a topic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum MeshWord {
    Graft,
    Prune { seconds: u64 },
}

/// One message that waits.
#[derive(Clone, Debug)]
pub(super) struct Item {
    pub(super) field: Bytes,
    /// Keyed hash of its id.
    pub(super) id: u64,
    pub(super) expires: Time,
}

/// Why a lane did not take a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Full;

/// The lanes of one peer.
#[derive(Default)]
pub(super) struct Lane {
    /// What the peer was told on this stream: hops to a real subscriber.
    announced: BTreeMap<Topic, u8>,
    /// What it is to be told; none is "not any more".
    subscriptions: BTreeMap<Topic, Option<u8>>,
    mesh: BTreeMap<Topic, MeshWord>,
    pub(super) ping: Option<u64>,
    pub(super) pong: Option<u64>,
    idontwant: VecDeque<MessageId>,
    iwant: VecDeque<MessageId>,
    data: VecDeque<Item>,
    data_bytes: usize,
    ihave: VecDeque<(Topic, Vec<MessageId>)>,
    ihave_ids: usize,
}

impl Lane {
    /// Sets the word on a topic; returns whether there is something to say.
    pub(super) fn announce(&mut self, topic: &Topic, word: Option<u8>) -> bool {
        if self.announced.get(topic).copied() == word {
            self.subscriptions.remove(topic);
            return false;
        }
        self.subscriptions.insert(topic.clone(), word);
        true
    }

    /// A new stream: the peer was told nothing on it.
    pub(super) fn begin(&mut self) {
        self.announced.clear();
        self.subscriptions.clear();
        self.mesh.clear();
        (self.ping, self.pong) = (None, None);
    }

    /// What the peer was told is to be told again. Words that it was not told yet stay.
    pub(super) fn forget_announced(&mut self) {
        self.announced.clear();
    }

    pub(super) fn say(&mut self, topic: &Topic, word: MeshWord) {
        self.mesh.insert(topic.clone(), word);
    }

    /// Adds a message of others: the oldest make room. Returns how many had to.
    pub(super) fn push(&mut self, item: Item, max_bytes: usize, max_messages: usize) -> usize {
        let mut dropped = 0;
        while !self.data.is_empty()
            && (self.data_bytes + item.field.len() > max_bytes || self.data.len() >= max_messages)
        {
            self.pop_data();
            dropped += 1;
        }
        self.data_bytes += item.field.len();
        self.data.push_back(item);
        dropped
    }

    /// Adds one's own message, if there is room.
    pub(super) fn push_own(
        &mut self,
        item: Item,
        max_bytes: usize,
        max_messages: usize,
    ) -> Result<(), Full> {
        if !self.has_room(item.field.len(), max_bytes, max_messages) {
            return Err(Full);
        }
        self.data_bytes += item.field.len();
        self.data.push_back(item);
        Ok(())
    }

    pub(super) fn has_room(&self, len: usize, max_bytes: usize, max_messages: usize) -> bool {
        self.data.is_empty()
            || (self.data_bytes + len <= max_bytes && self.data.len() < max_messages)
    }

    fn pop_data(&mut self) -> Option<Item> {
        let item = self.data.pop_front()?;
        self.data_bytes -= item.field.len();
        Some(item)
    }

    /// Takes out what is too old at the front, where the oldest are; returns how many.
    pub(super) fn drop_stale(&mut self, now: Time) -> usize {
        let before = self.data.len();
        while self.data.front().is_some_and(|item| item.expires <= now) {
            self.pop_data();
        }
        before - self.data.len()
    }

    /// Takes out copies of messages that the peer does not need; returns how many.
    pub(super) fn remove(&mut self, unneeded: impl Fn(u64) -> bool) -> usize {
        let before = self.data.len();
        self.data.retain(|item| !unneeded(item.id));
        self.recount();
        before - self.data.len()
    }

    fn recount(&mut self) {
        self.data_bytes = self.data.iter().map(|item| item.field.len()).sum();
    }

    pub(super) fn messages(&self) -> usize {
        self.data.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.data_bytes
    }

    /// Ids that wait, of all kinds, and words.
    pub(super) fn words(&self) -> usize {
        self.ihave_ids
            + self.iwant.len()
            + self.idontwant.len()
            + self.mesh.len()
            + self.subscriptions.len()
            + self.announced.len()
    }

    pub(super) fn first_expiry(&self) -> Option<Time> {
        self.data.front().map(|item| item.expires)
    }

    pub(super) fn add_iwant(&mut self, id: MessageId) -> bool {
        let room = self.iwant.len() < MAX_IDS;
        if room {
            self.iwant.push_back(id);
        }
        room
    }

    pub(super) fn add_idontwant(&mut self, id: MessageId) -> bool {
        let room = self.idontwant.len() < MAX_IDS;
        if room {
            self.idontwant.push_back(id);
        }
        room
    }

    /// Adds what is to be advertised of a topic, as much as there is room for; returns how many ids.
    pub(super) fn add_ihave(&mut self, topic: &Topic, mut ids: Vec<MessageId>) -> usize {
        ids.truncate(MAX_IDS.saturating_sub(self.ihave_ids));
        self.ihave_ids += ids.len();
        let taken = ids.len();
        if taken > 0 {
            self.ihave.push_back((topic.clone(), ids));
        }
        taken
    }

    pub(super) fn is_empty(&self) -> bool {
        self.data.is_empty() && self.ihave.is_empty() && !self.has_control()
    }

    fn has_control(&self) -> bool {
        !self.subscriptions.is_empty()
            || !self.mesh.is_empty()
            || !self.idontwant.is_empty()
            || !self.iwant.is_empty()
            || self.ping.is_some()
            || self.pong.is_some()
    }

    /// Control that fits into one frame.
    fn pop_control(&mut self, version: Version) -> Option<FrameBuilder> {
        /// A word on one topic is shorter than this.
        const WORD: usize = crate::message::MAX_TOPIC_BYTES + 32;
        if !self.has_control() {
            return None;
        }
        let mut frame = FrameBuilder::new();
        let room =
            |frame: &FrameBuilder| frame.control_bytes() + WORD <= crate::wire::MAX_CONTROL_BYTES;
        if let Some(nonce) = self.ping.take() {
            frame.ping(nonce);
        }
        if let Some(nonce) = self.pong.take() {
            frame.pong(nonce);
        }
        while room(&frame)
            && let Some((topic, word)) = self.subscriptions.pop_first()
        {
            frame.subscription(&topic, word.is_some(), word.unwrap_or(0));
            match word {
                Some(distance) => self.announced.insert(topic, distance),
                None => self.announced.remove(&topic),
            };
        }
        while room(&frame)
            && let Some((topic, word)) = self.mesh.pop_first()
        {
            match word {
                MeshWord::Graft => frame.graft(&topic),
                MeshWord::Prune { seconds } => {
                    let backoff = (version > Version::V1_0).then_some(seconds);
                    frame.prune(&topic, backoff);
                }
            }
        }
        if version >= Version::V1_2 {
            let taken = frame.idontwant(self.idontwant.make_contiguous());
            self.idontwant.drain(..taken);
        } else {
            self.idontwant.clear();
        }
        let taken = frame.iwant(self.iwant.make_contiguous());
        self.iwant.drain(..taken);
        (!frame.is_empty()).then_some(frame)
    }

    /// Messages that go into one frame together, none of them too old, and when the first of them will be.
    fn pop_messages(
        &mut self,
        now: Time,
        unneeded: &Unneeded,
        counters: &mut Counters,
    ) -> Option<(FrameBuilder, Time)> {
        let mut frame = FrameBuilder::new();
        let mut expires = Time::MAX;
        while let Some(item) = self.data.front() {
            if item.expires <= now {
                counters.stale_out += 1;
            } else if unneeded.contains(item.id) {
                counters.lane_unneeded += 1;
            } else if !frame.is_empty() && frame.len() + item.field.len() > PACK_BYTES {
                break;
            } else {
                expires = expires.min(item.expires);
                frame.message(item.field.clone());
            }
            self.pop_data();
        }
        (!frame.is_empty()).then_some((frame, expires))
    }

    fn pop_ihave(&mut self) -> Option<FrameBuilder> {
        let mut frame = FrameBuilder::new();
        while let Some((topic, ids)) = self.ihave.front_mut() {
            let taken = frame.ihave(topic, ids);
            ids.drain(..taken);
            self.ihave_ids -= taken;
            if !ids.is_empty() {
                break;
            }
            self.ihave.pop_front();
        }
        (!frame.is_empty()).then_some(frame)
    }
}

impl Core {
    /// The next frame of a peer that has something to say and credit to say it.
    pub(super) fn next_frame(&mut self) -> Option<Output> {
        while let Some(key) = self.ready.first().copied() {
            if let Some(output) = self.frame_of(key) {
                return Some(output);
            }
            self.ready.remove(&key);
        }
        None
    }

    fn frame_of(&mut self, key: PeerKey) -> Option<Output> {
        let now = self.now;
        let peer = self.peers.get_mut(&key)?;
        let version = peer.link.writable()?;
        let waiting = peer.lane.messages();
        let (frame, expires) = if let Some(frame) = peer.lane.pop_control(version) {
            (frame, Time::MAX)
        } else if let Some(found) = peer
            .lane
            .pop_messages(now, &peer.unneeded, &mut self.counters)
        {
            found
        } else {
            // Nothing of it is written, so nothing else tells that there is room.
            self.own.stir |= peer.lane.messages() < waiting;
            (peer.lane.pop_ihave()?, Time::MAX)
        };
        let frame = frame.finish(expires);
        peer.link.sent(InFlight {
            bytes: frame.bytes,
            messages: frame.messages,
            at: now,
        });
        self.counters.frames_out += 1;
        let stall = now + self.config.knobs.stall;
        let peer = peer.id;
        self.wake(stall);
        Some(Output::Write { peer, frame })
    }

    /// Queues a copy of a message of others for a peer.
    pub(super) fn push(&mut self, key: PeerKey, item: Item) {
        let (bytes, messages) = (
            self.config.knobs.lane_bytes,
            self.config.knobs.lane_messages,
        );
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let expires = item.expires;
        let dropped = peer.lane.push(item, bytes, messages);
        peer.missed |= dropped > 0;
        self.counters.lane_dropped += dropped as u64;
        self.ready.insert(key);
        self.wake(expires);
    }

    /// Something was not sent to a peer that should have it: it is told at the next heartbeat, and can ask.
    pub(super) fn note_missed(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.missed = true;
        }
    }

    /// Says a word on the mesh of a topic.
    pub(super) fn say(&mut self, key: PeerKey, topic: &Topic, word: MeshWord) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.lane.say(topic, word);
            self.ready.insert(key);
            match word {
                MeshWord::Graft => self.counters.grafts_out += 1,
                MeshWord::Prune { .. } => self.counters.prunes_out += 1,
            }
        }
    }
}
