//! The server: what each peer wants of us, in which order it is loaded and sent.
//!
//! A want is queued, looked up by the owner, answered, forgotten; or remembered as missing while the peer is connected
//! and answered when the block arrives. Loads go round the peers by bytes; within a peer the highest priority is first.

mod wants;

use std::collections::{BTreeMap, HashMap, VecDeque};

use bytes::Bytes;
use gemba_block::{Block, Cid};
use libp2p_identity::PeerId;

use super::{LoadId, LoadKind, Loaded, PeerKey};
use crate::config::Config;
use crate::metrics::Counters;
use crate::wire::{Entry, Message, Presence, WantKind};
use wants::{State, Taken, Wants};

/// A want-have for a block up to this size is answered with the block (boxo `WantHaveReplaceSize`).
pub(crate) const REPLACE_HAVE: u64 = 1024;
/// Bytes that one peer may load before the next has its turn.
const QUANTUM: usize = 256 * 1024;
/// Size assumed for a block that was not loaded yet, before any was sent to the peer.
const FIRST_ESTIMATE: usize = 64 * 1024;
/// What an answer without a block weighs.
const PRESENCE_BYTES: usize = 64;
/// Answers without blocks in one message: they stay far below the message limit.
const MESSAGE_PRESENCES: usize = 8192;

pub(super) struct Server {
    config: Config,
    peers: BTreeMap<PeerKey, Peer>,
    /// Who wants a block, in any state, so that `stored` finds them.
    wanted_by: HashMap<Cid, Vec<PeerKey>>,
    loads: BTreeMap<LoadId, Load>,
    /// Block loads by CID: several peers wait for one load.
    loading: HashMap<Cid, LoadId>,
    next_load: u64,
    /// Peers with queued wants and credit, in turn.
    turn: VecDeque<PeerKey>,
    /// Peers that may have something to send.
    sendable: VecDeque<PeerKey>,
    /// Loads started and not yet handed out by `next_load`.
    new_loads: VecDeque<(LoadId, Cid, LoadKind)>,
    /// Bytes of all peers: loading (estimated), ready and on their way.
    bytes: usize,
}

struct Peer {
    id: PeerId,
    wants: Wants,
    presences: VecDeque<(Cid, Presence)>,
    ready: VecDeque<Block>,
    ready_bytes: usize,
    /// Estimated bytes of loads that run for this peer.
    loading_bytes: usize,
    /// Messages and bytes handed out by `next_response` and not yet written.
    flying: usize,
    flying_bytes: usize,
    estimate: usize,
    in_turn: bool,
    in_sendable: bool,
}

struct Load {
    cid: Cid,
    kind: LoadKind,
    waiting: Vec<(PeerKey, usize)>,
}

impl Server {
    pub(super) fn new(config: Config) -> Self {
        Self {
            config,
            peers: BTreeMap::new(),
            wanted_by: HashMap::new(),
            loads: BTreeMap::new(),
            loading: HashMap::new(),
            next_load: 0,
            turn: VecDeque::new(),
            sendable: VecDeque::new(),
            new_loads: VecDeque::new(),
            bytes: 0,
        }
    }

    pub(super) fn connected(&mut self, key: PeerKey, id: PeerId) {
        let peer = Peer {
            id,
            wants: Wants::new(self.config.served_wants),
            presences: VecDeque::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            loading_bytes: 0,
            flying: 0,
            flying_bytes: 0,
            estimate: FIRST_ESTIMATE,
            in_turn: false,
            in_sendable: false,
        };
        self.peers.insert(key, peer);
    }

    /// Frees everything at once (X1). Running loads stay until answered, without a receiver.
    pub(super) fn disconnected(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.remove(&key) else {
            return;
        };
        self.bytes -= peer.loading_bytes + peer.ready_bytes + peer.flying_bytes;
        for cid in peer.wants.cids() {
            unlink(&mut self.wanted_by, cid, key);
        }
        for load in self.loads.values_mut() {
            load.waiting.retain(|(waiting, _)| *waiting != key);
        }
        self.turn.retain(|k| *k != key);
        self.sendable.retain(|k| *k != key);
    }

    /// A wantlist message.
    pub(super) fn wantlist(
        &mut self,
        key: PeerKey,
        full: bool,
        entries: &[Entry],
        counters: &mut Counters,
    ) {
        if full {
            self.forget_all(key);
        }
        for entry in entries {
            if entry.cancel {
                counters.cancels_in += 1;
                self.cancel(key, &entry.cid);
            } else {
                counters.wants_in += 1;
                self.want(key, entry, counters);
            }
        }
        self.give_turn(key);
        self.mark_sendable(key);
    }

    /// Blocks were stored: answers those who wait, and repeats lookups that were under way when they came.
    pub(super) fn stored(&mut self, cids: &[Cid], counters: &mut Counters) {
        for cid in cids {
            let Some(keys) = self.wanted_by.get(cid) else {
                continue;
            };
            for key in keys.clone() {
                let Some(peer) = self.peers.get_mut(&key) else {
                    continue;
                };
                if peer.wants.arrived(cid) {
                    counters.pushes += 1;
                }
                self.give_turn(key);
            }
        }
    }

    /// The owner's answer.
    pub(super) fn loaded(&mut self, id: LoadId, answer: Loaded, counters: &mut Counters) {
        let Some(load) = self.loads.remove(&id) else {
            return;
        };
        if self.loading.get(&load.cid) == Some(&id) {
            self.loading.remove(&load.cid);
        }
        if load.waiting.is_empty() {
            counters.late_loads += 1;
        }
        for (key, estimate) in load.waiting {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.loading_bytes -= estimate;
            self.bytes -= estimate;
            self.answer(key, load.cid, load.kind, &answer, counters);
            self.mark_sendable(key);
            self.give_turn(key);
        }
    }

    /// Bytes were written or given up: the peer has credit again.
    pub(super) fn sent(&mut self, key: PeerKey, bytes: usize) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let bytes = bytes.min(peer.flying_bytes);
        peer.flying = peer.flying.saturating_sub(1);
        peer.flying_bytes -= bytes;
        self.bytes -= bytes;
        self.mark_sendable(key);
        self.give_turn(key);
    }

    /// The next load to ask of the owner.
    pub(super) fn next_load(&mut self, counters: &mut Counters) -> Option<(LoadId, Cid, LoadKind)> {
        while self.new_loads.is_empty() {
            if self.loads.len() >= self.config.loads || self.bytes >= self.config.served_node_bytes
            {
                return None;
            }
            let key = self.turn.pop_front()?;
            self.take_turn(key);
        }
        counters.loads += 1;
        self.new_loads.pop_front()
    }

    /// The next message to write.
    pub(super) fn next_response(&mut self, counters: &mut Counters) -> Option<(PeerId, Message)> {
        while let Some(key) = self.sendable.pop_front() {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.in_sendable = false;
            let before = peer.ready_bytes + peer.flying_bytes;
            let Some(message) = peer.pack(self.config.message_bytes, counters) else {
                continue;
            };
            debug_assert_eq!(before, peer.ready_bytes + peer.flying_bytes);
            for block in &message.blocks {
                peer.wants.remove(block.cid());
                unlink(&mut self.wanted_by, block.cid(), key);
            }
            let id = peer.id;
            self.mark_sendable(key);
            return Some((id, message));
        }
        None
    }

    pub(super) fn is_busy(&self, key: PeerKey) -> bool {
        self.peers.get(&key).is_some_and(|p| {
            p.flying > 0 || p.loading_bytes > 0 || !p.ready.is_empty() || !p.presences.is_empty()
        })
    }

    pub(super) fn wants(&self) -> usize {
        self.peers.values().map(|p| p.wants.len()).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn loads(&self) -> usize {
        self.loads.len()
    }

    fn want(&mut self, key: PeerKey, entry: &Entry, counters: &mut Counters) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !self.config.serve {
            if entry.send_dont_have {
                peer.say(entry.cid, Presence::DontHave, &self.config, counters);
            }
            return;
        }
        match peer.wants.take(entry) {
            Taken::New => link(&mut self.wanted_by, entry.cid, key),
            Taken::Merged => {}
            Taken::Replaced(victim) => {
                counters.replaced_wants += 1;
                unlink(&mut self.wanted_by, &victim, key);
                link(&mut self.wanted_by, entry.cid, key);
            }
            Taken::Refused => counters.dropped_wants += 1,
        }
    }

    fn cancel(&mut self, key: PeerKey, cid: &Cid) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.wants.remove(cid) == Some(State::Ready)
            && let Some(at) = peer.ready.iter().position(|b| b.cid() == cid)
            && let Some(block) = peer.ready.remove(at)
        {
            peer.ready_bytes -= block.len();
            self.bytes -= block.len();
        }
        unlink(&mut self.wanted_by, cid, key);
    }

    /// A full wantlist replaces everything, what is loaded already included.
    fn forget_all(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        for cid in peer.wants.clear() {
            unlink(&mut self.wanted_by, &cid, key);
        }
        self.bytes -= peer.ready_bytes;
        peer.ready_bytes = 0;
        peer.ready.clear();
        peer.presences.clear();
    }

    /// Lets one peer start loads worth a quantum, highest priority first.
    fn take_turn(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.in_turn = false;
        let mut quantum = QUANTUM;
        while quantum > 0 && peer.has_credit(&self.config) && self.loads.len() < self.config.loads {
            let Some((cid, kind)) = peer.wants.start_next() else {
                return;
            };
            let (load_kind, estimate) = match kind {
                WantKind::Have => (LoadKind::Have, PRESENCE_BYTES),
                WantKind::Block => (LoadKind::Block, peer.estimate),
            };
            quantum = quantum.saturating_sub(estimate);
            peer.loading_bytes += estimate;
            self.bytes += estimate;
            if load_kind == LoadKind::Block
                && let Some(load) = self.loading.get(&cid).and_then(|id| self.loads.get_mut(id))
            {
                load.waiting.push((key, estimate));
                continue;
            }
            let id = LoadId(self.next_load);
            self.next_load += 1;
            if load_kind == LoadKind::Block {
                self.loading.insert(cid, id);
            }
            self.loads.insert(
                id,
                Load {
                    cid,
                    kind: load_kind,
                    waiting: vec![(key, estimate)],
                },
            );
            self.new_loads.push_back((id, cid, load_kind));
        }
        self.give_turn(key);
    }

    /// Applies a lookup to the want it was made for, if that is still there.
    fn answer(
        &mut self,
        key: PeerKey,
        cid: Cid,
        asked: LoadKind,
        answer: &Loaded,
        counters: &mut Counters,
    ) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(want) = peer.wants.loading(&cid) else {
            counters.late_loads += 1;
            return;
        };
        match answer {
            Loaded::Missing if want.arrived_meanwhile => peer.wants.requeue(&cid),
            Loaded::Missing => {
                if want.send_dont_have {
                    peer.say(cid, Presence::DontHave, &self.config, counters);
                }
                peer.wants.missing(&cid);
            }
            Loaded::Block(data)
                if want.kind == WantKind::Block || data.len() as u64 <= REPLACE_HAVE =>
            {
                peer.wants.ready(&cid);
                self.bytes += data.len();
                peer.take_block(cid, data.clone());
            }
            Loaded::Size(size) if want.kind == WantKind::Block || *size <= REPLACE_HAVE => {
                // The bytes are needed after all. An owner that answers a block load with a size has lost the bytes.
                if asked == LoadKind::Block {
                    peer.wants.missing(&cid);
                } else {
                    peer.wants.requeue_as_block(&cid);
                }
            }
            Loaded::Block(_) | Loaded::Size(_) => {
                peer.say(cid, Presence::Have, &self.config, counters);
                peer.wants.remove(&cid);
                unlink(&mut self.wanted_by, &cid, key);
            }
        }
    }

    fn give_turn(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !peer.in_turn
            && peer.wants.has_queued()
            && peer.has_credit(&self.config)
        {
            peer.in_turn = true;
            self.turn.push_back(key);
        }
    }

    fn mark_sendable(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key)
            && !peer.in_sendable
            && peer.wants_to_send(self.config.message_bytes)
        {
            peer.in_sendable = true;
            self.sendable.push_back(key);
        }
    }
}

impl Peer {
    fn has_credit(&self, config: &Config) -> bool {
        self.ready_bytes + self.loading_bytes + self.flying_bytes < config.served_peer_bytes
            // A peer that asks and does not read gets no more lookups either.
            && self.presences.len() < config.served_wants
    }

    /// The first message leaves at once; while one is on its way the next is filled.
    fn wants_to_send(&self, message_bytes: usize) -> bool {
        match self.flying {
            0 => !self.presences.is_empty() || !self.ready.is_empty(),
            1 => self.ready_bytes >= message_bytes / 2,
            _ => false,
        }
    }

    fn pack(&mut self, message_bytes: usize, counters: &mut Counters) -> Option<Message> {
        if !self.wants_to_send(message_bytes) {
            return None;
        }
        let mut message = Message::default();
        let presences = self.presences.len().min(MESSAGE_PRESENCES);
        message.presences = self.presences.drain(..presences).collect();
        for (_, presence) in &message.presences {
            match presence {
                Presence::Have => counters.haves_out += 1,
                Presence::DontHave => counters.dont_haves_out += 1,
            }
        }
        let mut bytes = 0;
        while let Some(block) = self.ready.front() {
            // One block always fits: 2 MiB and the presences stay below 4 MiB.
            if bytes > 0 && bytes + block.len() > message_bytes {
                break;
            }
            bytes += block.len().max(1);
            message.blocks.extend(self.ready.pop_front());
        }
        let block_bytes = message.block_bytes();
        self.ready_bytes -= block_bytes;
        self.flying += 1;
        self.flying_bytes += block_bytes;
        message.pending_bytes = i32::try_from(self.ready_bytes).unwrap_or(i32::MAX);
        Some(message)
    }

    fn take_block(&mut self, cid: Cid, data: Bytes) {
        self.estimate = (self.estimate * 3 + data.len().max(PRESENCE_BYTES)) / 4;
        self.ready_bytes += data.len();
        self.ready.push_back(Block::danger_unchecked(cid, data));
    }

    fn say(&mut self, cid: Cid, presence: Presence, config: &Config, counters: &mut Counters) {
        // The victim is the oldest: the asker has given up on it first.
        if self.presences.len() >= 2 * config.served_wants {
            self.presences.pop_front();
            counters.dropped_presences += 1;
        }
        self.presences.push_back((cid, presence));
    }
}

fn link(wanted_by: &mut HashMap<Cid, Vec<PeerKey>>, cid: Cid, key: PeerKey) {
    wanted_by.entry(cid).or_default().push(key);
}

fn unlink(wanted_by: &mut HashMap<Cid, Vec<PeerKey>>, cid: &Cid, key: PeerKey) {
    if let Some(keys) = wanted_by.get_mut(cid) {
        keys.retain(|k| *k != key);
        if keys.is_empty() {
            wanted_by.remove(cid);
        }
    }
}
