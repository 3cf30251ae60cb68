//! The server: what each peer wants of us, in which order it is loaded and sent.
//!
//! A want is queued, looked up by the owner, answered, forgotten; or remembered as missing while the peer is connected
//! and answered when the block arrives. Loads go round the peers by bytes; within a peer the highest priority is first.

mod flow;
mod interest;
mod wants;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use gemba_block::{Block, Cid};
use libp2p_identity::PeerId;

use super::{LoadId, LoadKind, Loaded, PeerKey, Time};
use crate::config::Config;
use crate::metrics::Counters;
use crate::wire::{Entry, Message, Presence, WantKind};
use flow::{Flow, Standing};
use interest::{Interest, Name};
use wants::{State, Taken, Wants};

/// A want-have for a block up to this size is answered with the block (boxo `WantHaveReplaceSize`).
pub(crate) const REPLACE_HAVE: u64 = 1024;
/// Bytes that one peer may load before the next has its turn.
const QUANTUM: usize = 256 * 1024;
/// Size assumed for a block that was not loaded yet, before any was sent to the peer; the usual size, once strangers hold much.
const FIRST_ESTIMATE: usize = 64 * 1024;
/// What an answer without a block weighs in memory, its CID above all.
const PRESENCE_BYTES: usize = 128;
/// And on the wire.
const PRESENCE_WIRE_BYTES: usize = 40;
/// Answers without blocks in one message: they stay far below the message limit.
const MESSAGE_PRESENCES: usize = 1024;
/// While anything is on its way, late messages are looked for this often.
const TICK: Duration = Duration::from_secs(1);
/// A stream for answers is used for so long at least.
const RENEW: Duration = Duration::from_secs(1);
/// Wants of one peer that are remembered however many peers there are.
const LEAST_WANTS: usize = 64;

pub(super) struct Server {
    config: Config,
    peers: BTreeMap<PeerKey, Peer>,
    interest: Interest,
    loads: BTreeMap<LoadId, Load>,
    /// Block loads by CID: several peers wait for one load.
    loading: HashMap<Cid, LoadId>,
    next_load: u64,
    /// Peers with queued wants and credit, in turn; readers and those of whom it is not known take turns as well.
    readers: VecDeque<PeerKey>,
    unproven: VecDeque<PeerKey>,
    /// The same of those who took no answer yet, in the order they came.
    newcomers: BTreeSet<PeerKey>,
    /// The last place in [`STRANGERS`] that had a turn.
    stranger: usize,
    /// About what a block weighs that was loaded lately for anybody.
    usual: usize,
    reader_was_last: bool,
    /// Peers that may have something to send.
    sendable: VecDeque<PeerKey>,
    /// Loads started and not yet handed out by `next_load`.
    new_loads: VecDeque<(LoadId, Cid, LoadKind)>,
    memory: Memory,
    /// Peers whose messages the driver is to give up.
    given_up: VecDeque<PeerKey>,
    ticked: Time,
}

/// Strangers take turns in this order. The newest does not wait behind all who came and do not read; whoever newer ones keep coming
/// before is the oldest some time.
const STRANGERS: [Stranger; 3] = [Stranger::Newest, Stranger::Known, Stranger::Oldest];

#[derive(Clone, Copy)]
enum Stranger {
    Newest,
    Oldest,
    /// Not a newcomer any more.
    Known,
}

/// Bytes of peers: loading (estimated), ready and on their way.
#[derive(Default)]
struct Memory {
    newcomers: usize,
    unproven: usize,
    readers: usize,
    stuck: usize,
}

struct Peer {
    id: PeerId,
    wants: Wants,
    presences: VecDeque<(Name, Presence)>,
    ready: VecDeque<Block>,
    ready_bytes: usize,
    /// Estimated bytes of loads that run for this peer.
    loading_bytes: usize,
    flow: Flow,
    /// Since the stream to it is used; none before the first message.
    stream_since: Option<Time>,
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
            interest: Interest::default(),
            loads: BTreeMap::new(),
            loading: HashMap::new(),
            next_load: 0,
            readers: VecDeque::new(),
            unproven: VecDeque::new(),
            newcomers: BTreeSet::new(),
            stranger: 0,
            usual: FIRST_ESTIMATE,
            reader_was_last: false,
            sendable: VecDeque::new(),
            new_loads: VecDeque::new(),
            memory: Memory::default(),
            given_up: VecDeque::new(),
            ticked: Time::ZERO,
        }
    }

    pub(super) fn connected(&mut self, key: PeerKey, id: PeerId) {
        let peer = Peer {
            id,
            wants: Wants::default(),
            presences: VecDeque::new(),
            ready: VecDeque::new(),
            ready_bytes: 0,
            loading_bytes: 0,
            flow: Flow::new(self.config.served_peer_bytes),
            stream_since: None,
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
        *self.memory.of(peer.flow.standing()) -= peer.held();
        for cid in peer.wants.cids() {
            self.interest.unlink(cid, key);
        }
        for load in self.loads.values_mut() {
            load.waiting.retain(|(waiting, _)| *waiting != key);
        }
        self.readers.retain(|k| *k != key);
        self.unproven.retain(|k| *k != key);
        self.newcomers.remove(&key);
        self.sendable.retain(|k| *k != key);
    }

    /// Whether answers to a peer that starts anew go on another stream: the one used so far may be dead (S4.34). Not more often than
    /// [`RENEW`], or lists that say nothing would cost us streams.
    pub(super) fn renews(&mut self, key: PeerKey, now: Time) -> bool {
        let Some(since) = self
            .peers
            .get_mut(&key)
            .and_then(|peer| peer.stream_since.as_mut())
        else {
            return false;
        };
        let renews = now >= since.saturating_add(RENEW);
        if renews {
            *since = now;
        }
        renews
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
            for key in self.interest.of(cid) {
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
            self.counted(key, |peer| peer.loading_bytes -= estimate);
            self.answer(key, load.cid, load.kind, &answer, counters);
            self.mark_sendable(key);
            self.give_turn(key);
        }
    }

    /// The oldest message was written, or given up: the peer has credit again.
    pub(super) fn sent(&mut self, key: PeerKey, written: bool, now: Time) {
        self.counted(key, |peer| peer.flow.landed(written, now));
        self.mark_sendable(key);
        self.give_turn(key);
    }

    /// We did not write its oldest message for so long: that is not its fault.
    pub(super) fn held(&mut self, key: PeerKey, time: Time, now: Time) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.flow.held(time, now);
        }
    }

    // ---- time

    pub(super) fn deadline(&self) -> Option<Time> {
        self.peers
            .values()
            .any(|peer| peer.flow.waits())
            .then_some(self.ticked.saturating_add(TICK))
    }

    /// Peers that do not take their answers lose what is ready for them, and are given up, longest stuck first, while they fill more
    /// than their part of memory.
    pub(super) fn expire(&mut self, now: Time, counters: &mut Counters) {
        self.ticked = now;
        let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
        for key in keys {
            let passed = self.counted(key, |peer| {
                if peer.flow.gets_stuck(now) {
                    peer.unload();
                    return Passed::Stuck;
                }
                match peer.flow.gets_rested(now) {
                    true => Passed::Rested,
                    false => Passed::Nothing,
                }
            });
            match passed {
                Some(Passed::Stuck) => counters.stuck_peers += 1,
                Some(Passed::Rested) => {
                    self.mark_sendable(key);
                    self.give_turn(key);
                }
                _ => {}
            }
        }
        self.hurry(now, counters);
        self.give_up_some();
    }

    /// While somebody who did not have a chance waits for room, newcomers have less time for their first block, so that a quarter of what
    /// strangers may fill gets free.
    fn hurry(&mut self, now: Time, counters: &mut Counters) {
        let enough = self.strangers_part(3);
        if self.newcomers.is_empty() && !self.reading_stranger_waits() {
            return;
        }
        let mut slow: Vec<(Time, PeerKey)> = self
            .peers
            .iter()
            .filter_map(|(key, peer)| Some((peer.flow.first_is_slow_since(now)?, *key)))
            .collect();
        slow.sort_unstable();
        for (_, key) in slow {
            if self.memory.strangers() <= enough {
                return;
            }
            self.counted(key, |peer| {
                peer.flow.set_stuck(now);
                peer.unload();
            });
            counters.stuck_peers += 1;
        }
    }

    fn give_up_some(&mut self) {
        let mut stuck: Vec<(Time, PeerKey)> = self
            .peers
            .iter()
            .filter_map(|(key, peer)| Some((peer.flow.stuck_since()?, *key)))
            .collect();
        stuck.sort_unstable();
        let mut bytes = self.memory.stuck;
        for (_, key) in stuck {
            if bytes <= self.config.served_node_bytes / 2 {
                return;
            }
            if let Some(peer) = self.peers.get_mut(&key) {
                bytes -= peer.held();
                peer.flow.give_up();
                self.given_up.push_back(key);
            }
        }
    }

    /// A peer whose messages the driver is to drop.
    pub(super) fn next_given_up(&mut self, counters: &mut Counters) -> Option<PeerId> {
        while let Some(key) = self.given_up.pop_front() {
            if let Some(peer) = self.peers.get(&key) {
                counters.given_up_peers += 1;
                return Some(peer.id);
            }
        }
        None
    }

    /// Changes a peer and counts its bytes anew, where they belong afterwards.
    fn counted<T>(&mut self, key: PeerKey, change: impl FnOnce(&mut Peer) -> T) -> Option<T> {
        let peer = self.peers.get_mut(&key)?;
        *self.memory.of(peer.flow.standing()) -= peer.held();
        let result = change(peer);
        *self.memory.of(peer.flow.standing()) += peer.held();
        Some(result)
    }

    /// The next load to ask of the owner.
    pub(super) fn next_load(&mut self, counters: &mut Counters) -> Option<(LoadId, Cid, LoadKind)> {
        while self.new_loads.is_empty() {
            if self.loads.len() >= self.config.loads {
                return None;
            }
            let key = self.next_turn()?;
            self.take_turn(key);
        }
        counters.loads += 1;
        self.new_loads.pop_front()
    }

    /// Whose turn it is. Those who did not prove that they read fill no more than half of what all may fill; whatever they fill, the
    /// others may fill half.
    fn next_turn(&mut self) -> Option<PeerKey> {
        let most = self.config.served_node_bytes;
        let all = self.memory.strangers() + self.memory.readers;
        let may_reader = all < most || self.memory.readers < most.div_ceil(2);
        let stranger = match all < most {
            true => self.next_stranger(),
            false => None,
        };
        let reader = match (may_reader && !self.readers.is_empty(), stranger) {
            (true, Some(_)) => !self.reader_was_last,
            (true, None) => true,
            (false, Some(_)) => false,
            (false, None) => return None,
        };
        self.reader_was_last = reader;
        if reader {
            return self.readers.pop_front();
        }
        let place = stranger?;
        // Whoever is on its way to be a reader takes nobody's place.
        if !self.reading_stranger_may() {
            self.stranger = place;
        }
        match STRANGERS[place] {
            Stranger::Newest => self.newcomers.pop_last(),
            Stranger::Oldest => self.newcomers.pop_first(),
            Stranger::Known => self.unproven.pop_front(),
        }
    }

    /// The place in [`STRANGERS`] whose turn it is, of those that have room.
    fn next_stranger(&self) -> Option<usize> {
        if self.reading_stranger_may() {
            return STRANGERS
                .iter()
                .position(|stranger| matches!(stranger, Stranger::Known));
        }
        let may_newcomer = !self.newcomers.is_empty() && self.has_room(Standing::Newcomer, false);
        let may_known = !self.unproven.is_empty() && self.has_room(Standing::Unproven, false);
        (1..=STRANGERS.len())
            .map(|step| (self.stranger + step) % STRANGERS.len())
            .find(|place| match STRANGERS[*place] {
                Stranger::Known => may_known,
                Stranger::Newest | Stranger::Oldest => may_newcomer,
            })
    }

    fn reading_stranger_waits(&self) -> bool {
        self.unproven
            .front()
            .and_then(|key| self.peers.get(key))
            .is_some_and(|peer| peer.flow.reads())
    }

    fn reading_stranger_may(&self) -> bool {
        self.reading_stranger_waits() && self.has_room(Standing::Unproven, true)
    }

    /// Whether a peer may fill more, as far as those who did not prove that they read share a half. A quarter of that half is for the
    /// first answers of newcomers, and another for those and for peers that took something lately.
    fn has_room(&self, standing: Standing, reads: bool) -> bool {
        let known = match (standing, reads) {
            (Standing::Unproven, false) => self.strangers_part(2),
            (Standing::Unproven, true) => self.strangers_part(3),
            (Standing::Newcomer, _) => usize::MAX,
            (Standing::Reader | Standing::Stuck, _) => return true,
        };
        self.memory.strangers() < self.strangers_part(4) && self.memory.unproven < known
    }

    /// Quarters of what those who did not prove that they read may fill.
    fn strangers_part(&self, quarters: usize) -> usize {
        let half = self.config.served_node_bytes.div_ceil(2);
        // Never none: one block has room.
        (half / 4 * quarters + half % 4 * quarters / 4).max(1)
    }

    /// The next message to write.
    pub(super) fn next_response(
        &mut self,
        now: Time,
        counters: &mut Counters,
    ) -> Option<(PeerId, Message)> {
        while let Some(key) = self.sendable.pop_front() {
            let Some(peer) = self.peers.get_mut(&key) else {
                continue;
            };
            peer.in_sendable = false;
            let before = peer.held();
            let Some(message) = peer.pack(self.config.message_bytes, now, counters) else {
                continue;
            };
            debug_assert_eq!(before, peer.held());
            for block in &message.blocks {
                peer.wants.remove(block.cid());
                self.interest.unlink(block.cid(), key);
            }
            peer.stream_since.get_or_insert(now);
            let id = peer.id;
            self.mark_sendable(key);
            return Some((id, message));
        }
        None
    }

    pub(super) fn is_busy(&self, key: PeerKey) -> bool {
        self.peers.get(&key).is_some_and(|p| {
            p.flow.flying() > 0
                || p.loading_bytes > 0
                || !p.ready.is_empty()
                || !p.presences.is_empty()
        })
    }

    pub(super) fn wants(&self) -> usize {
        self.peers.values().map(|p| p.wants.len()).sum()
    }

    pub(super) fn bytes(&self) -> usize {
        self.memory.strangers() + self.memory.readers + self.memory.stuck
    }

    pub(super) fn loads(&self) -> usize {
        self.loads.len()
    }

    fn want(&mut self, key: PeerKey, entry: &Entry, counters: &mut Counters) {
        if !self.config.serve {
            if entry.send_dont_have {
                self.say(key, entry.cid, Presence::DontHave, counters);
            }
            return;
        }
        let limit = self.want_limit(key);
        let name = self.interest.name(&entry.cid);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        match peer.wants.take(entry, Name::clone(&name), limit) {
            Taken::New => self.interest.link(name, key),
            Taken::Merged => {}
            Taken::Replaced(victim) => {
                counters.replaced_wants += 1;
                self.interest.unlink(&victim, key);
                self.interest.link(name, key);
            }
            Taken::Refused => counters.dropped_wants += 1,
        }
    }

    /// How many wants of a peer are remembered. Few, once strangers filled half of what all may fill, or readers the rest. The few of each
    /// peer come on top: many strangers have no less of them than readers have room.
    fn want_limit(&self, key: PeerKey) -> usize {
        let (most, all) = (self.config.served_wants, self.config.served_node_wants);
        let taken = self.interest.pairs();
        let few = LEAST_WANTS.min(most);
        // One answer taken is no proof: a flood is answered, and what it does not read fits into windows and sockets for long.
        let reader = self
            .peers
            .get(&key)
            .is_some_and(|peer| peer.flow.standing() == Standing::Reader);
        match taken < all / 2 || (reader && taken < all + few * self.peers.len()) {
            true => most,
            false => few,
        }
    }

    fn say(&mut self, key: PeerKey, cid: Cid, presence: Presence, counters: &mut Counters) {
        // Once those of whom it is not known that they read fill half of what all may fill, each keeps few. Not so those who read: what they
        // are not told they wait for until they ask again.
        let standing = self.peers.get(&key).map(|peer| peer.flow.standing());
        let filled = match standing {
            Some(Standing::Reader) => self.memory.readers,
            _ => self.memory.strangers() + self.memory.stuck,
        };
        let most = match filled >= self.config.served_node_bytes / 2 {
            true => LEAST_WANTS.min(self.config.served_wants),
            false => 2 * self.config.served_wants,
        };
        let name = self.interest.name(&cid);
        self.counted(key, |peer| peer.say(name, presence, most, counters));
    }

    fn cancel(&mut self, key: PeerKey, cid: &Cid) {
        self.counted(key, |peer| peer.cancel(cid));
        self.interest.unlink(cid, key);
    }

    /// A full wantlist replaces everything, what is loaded already included.
    fn forget_all(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        for cid in peer.wants.clear() {
            self.interest.unlink(&cid, key);
        }
        self.counted(key, |peer| {
            peer.presences = VecDeque::new();
            peer.ready_bytes = 0;
            peer.ready = VecDeque::new();
        });
    }

    /// Lets one peer start loads worth a quantum, highest priority first.
    fn take_turn(&mut self, key: PeerKey) {
        let crowded = self.memory.strangers() >= self.strangers_part(2);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.in_turn = false;
        if crowded && peer.flow.standing() == Standing::Newcomer {
            peer.estimate = peer.estimate.max(self.usual);
        }
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
            *self.memory.of(peer.flow.standing()) += estimate;
            peer.loading_bytes += estimate;
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
        let Some(flow) = self.peers.get(&key).map(|peer| &peer.flow) else {
            return;
        };
        let has_room = self.has_room(flow.standing(), flow.reads());
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(want) = peer.wants.loading(&cid) else {
            counters.late_loads += 1;
            return;
        };
        match answer {
            // Many strangers may wait for one lookup, and what it finds is larger than it was taken for: those who find no room have it
            // looked up again when there is some.
            Loaded::Block(data)
                if want.kind == WantKind::Block && !has_room && data.len() > peer.estimate =>
            {
                peer.estimate = data.len();
                peer.wants.requeue(&cid);
            }
            Loaded::Missing if want.arrived_meanwhile => peer.wants.requeue(&cid),
            Loaded::Missing => {
                peer.wants.missing(&cid);
                if want.send_dont_have {
                    self.say(key, cid, Presence::DontHave, counters);
                }
            }
            Loaded::Block(data)
                if want.kind == WantKind::Block || data.len() as u64 <= REPLACE_HAVE =>
            {
                peer.wants.ready(&cid);
                *self.memory.of(peer.flow.standing()) += data.len();
                peer.take_block(cid, data.clone());
                self.usual = (self.usual * 3 + data.len()) / 4;
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
                peer.wants.remove(&cid);
                self.interest.unlink(&cid, key);
                self.say(key, cid, Presence::Have, counters);
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
            match peer.flow.standing() {
                Standing::Reader => self.readers.push_back(key),
                Standing::Newcomer => {
                    self.newcomers.insert(key);
                }
                // On its way to be one.
                _ if peer.flow.reads() => self.unproven.push_front(key),
                Standing::Unproven | Standing::Stuck => self.unproven.push_back(key),
            }
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

/// What time did to a peer.
enum Passed {
    Nothing,
    Stuck,
    Rested,
}

impl Memory {
    /// Of those of whom it is not known whether they read.
    fn strangers(&self) -> usize {
        self.newcomers + self.unproven
    }

    fn of(&mut self, standing: Standing) -> &mut usize {
        match standing {
            Standing::Newcomer => &mut self.newcomers,
            Standing::Unproven => &mut self.unproven,
            Standing::Reader => &mut self.readers,
            Standing::Stuck => &mut self.stuck,
        }
    }
}

impl Peer {
    fn held(&self) -> usize {
        let presences = self.presences.len() * PRESENCE_BYTES;
        self.ready_bytes + self.loading_bytes + self.flow.flying_bytes() + presences
    }

    fn cancel(&mut self, cid: &Cid) {
        if self.wants.remove(cid) == Some(State::Ready)
            && let Some(at) = self.ready.iter().position(|b| b.cid() == cid)
            && let Some(block) = self.ready.remove(at)
        {
            self.ready_bytes -= block.len();
        }
    }

    fn has_credit(&self, config: &Config) -> bool {
        self.flow.has_credit(self.held())
            // A peer that asks and does not read gets no more lookups either.
            && self.presences.len() < config.served_wants
    }

    /// The first message leaves at once; while one is on its way the next is filled.
    fn wants_to_send(&self, message_bytes: usize) -> bool {
        match self.flow.flying() {
            _ if self.flow.standing() == Standing::Stuck => false,
            0 => !self.presences.is_empty() || !self.ready.is_empty(),
            1 => self.ready_bytes >= message_bytes / 2,
            _ => false,
        }
    }

    fn pack(
        &mut self,
        message_bytes: usize,
        now: Time,
        counters: &mut Counters,
    ) -> Option<Message> {
        if !self.wants_to_send(message_bytes) {
            return None;
        }
        let mut message = Message::default();
        let presences = self.presences.len().min(MESSAGE_PRESENCES);
        let said = self.presences.drain(..presences);
        message.presences = said.map(|(name, presence)| (*name, presence)).collect();
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
        if self.presences.is_empty() {
            self.presences = VecDeque::new();
        }
        if self.ready.is_empty() {
            self.ready = VecDeque::new();
        }
        let block_bytes = message.block_bytes();
        self.ready_bytes -= block_bytes;
        let wire = block_bytes + presences * PRESENCE_WIRE_BYTES;
        self.flow
            .handed(block_bytes + presences * PRESENCE_BYTES, wire, now);
        message.pending_bytes = i32::try_from(self.ready_bytes).unwrap_or(i32::MAX);
        Some(message)
    }

    fn take_block(&mut self, cid: Cid, data: Bytes) {
        self.estimate = (self.estimate * 3 + data.len().max(PRESENCE_BYTES)) / 4;
        self.ready_bytes += data.len();
        self.ready.push_back(Block::danger_unchecked(cid, data));
    }

    /// Blocks in no message yet go back to where they came from, to be loaded again.
    fn unload(&mut self) {
        for block in std::mem::take(&mut self.ready) {
            self.wants.requeue(block.cid());
        }
        self.ready_bytes = 0;
    }

    fn say(&mut self, name: Name, presence: Presence, most: usize, counters: &mut Counters) {
        // The victim is the oldest: the asker has given up on it first.
        if self.presences.len() >= most {
            self.presences.pop_front();
            counters.dropped_presences += 1;
        }
        self.presences.push_back((name, presence));
    }
}
