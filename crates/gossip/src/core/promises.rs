//! What was asked for and has not come yet (specs/gossip.md GO-16).
//!
//! An id that a neighbour advertises is asked of that neighbour only. If it does not come in time it is asked of another one that has it,
//! one that lately sent something new first. Who did not has less time to answer, and may break its word less often, before it is not asked
//! for a while. Nobody is asked for more than there is room for with others.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::{Core, PeerKey, Time};
use crate::hash::Keyed;
use crate::message::MessageId;
use crate::seen::Seen;
use crate::wire::IHave;

/// Ids that are asked for at a time; what is above is not asked for.
const MAX_PROMISES: usize = 16_384;
/// Others who have the same message, remembered for the case that the first does not send it.
const MAX_OTHERS: usize = 8;
/// RPCs of one peer with IHAVE between two heartbeats, and ids in them that are asked for (Kubo's numbers). What Kubo has it tells at each
/// heartbeat in one RPC, with an entry for each topic.
const MAX_IHAVE_RPCS: u32 = 10;
const MAX_IHAVE_IDS: u32 = 5000;
/// Who broke its word so often lately is not asked: one that lately sent something new, and any other.
const MAX_BROKEN: u32 = 64;
const MAX_BROKEN_UNKNOWN: u32 = 8;
/// Who sent nothing new lately is given this share of the time to answer; the rest when it has begun to send.
const IMPATIENCE: u32 = 10;
/// Ids that came too late or were not wanted: not asked for, for a while. Direct copies of them are not affected.
const MAX_SPURNED: usize = 4096;
const SPURNED_FOR: Time = Time::from_secs(15);

struct Promise {
    id: MessageId,
    from: PeerKey,
    until: Time,
    /// When it is too late for this one, however useful.
    last: Time,
    /// When it was asked for first: nobody keeps it for ever.
    begun: Time,
    others: Vec<PeerKey>,
}

/// All that is asked for.
pub(super) struct Promises {
    all: HashMap<u64, Promise, Keyed>,
    due: BTreeSet<(Time, u64)>,
    spurned: HashMap<u64, Time, Keyed>,
    spurned_order: VecDeque<(Time, u64)>,
}

impl Promises {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self {
            all: HashMap::with_hasher(keyed),
            due: BTreeSet::new(),
            spurned: HashMap::with_hasher(keyed),
            spurned_order: VecDeque::new(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// It is not worth asking for.
    pub(super) fn spurn(&mut self, hash: u64, now: Time) {
        let until = now + SPURNED_FOR;
        if self.spurned.insert(hash, until).is_none() {
            self.spurned_order.push_back((until, hash));
        }
        if self.spurned_order.len() > MAX_SPURNED {
            self.pop_spurned();
        }
    }

    fn pop_spurned(&mut self) {
        if let Some((_, hash)) = self.spurned_order.pop_front() {
            self.spurned.remove(&hash);
        }
    }

    fn is_spurned(&self, hash: u64, now: Time) -> bool {
        self.spurned.get(&hash).is_some_and(|until| *until > now)
    }

    pub(super) fn clear(&mut self) {
        self.all.clear();
        self.due.clear();
        self.spurned.clear();
        self.spurned_order.clear();
    }
}

impl Core {
    /// A peer says what it has.
    pub(super) fn on_ihave(&mut self, seen: &Seen, peer: PeerKey, ihave: Vec<IHave>) {
        let accepted = self.accepted();
        let Some(state) = self.peers.get_mut(&peer).filter(|_| !ihave.is_empty()) else {
            return;
        };
        state.budget.ihave_rpcs += 1;
        for IHave { topic, ids } in ihave {
            self.counters.ihave_in += ids.len() as u64;
            let wanted = self
                .topics
                .named(topic.as_str())
                .is_some_and(super::topics::TopicState::is_wanted);
            let Some(state) = self.peers.get(&peer) else {
                return;
            };
            let budget = &state.budget;
            let most = match budget.is_useful(accepted) {
                true => MAX_BROKEN,
                false => MAX_BROKEN_UNKNOWN,
            };
            if !wanted || budget.ihave_rpcs > MAX_IHAVE_RPCS || budget.broken >= most {
                self.counters.control_dropped += u64::from(wanted);
                continue;
            }
            for id in ids {
                self.on_advertised(seen, peer, id);
            }
        }
    }

    fn on_advertised(&mut self, seen: &Seen, peer: PeerKey, id: MessageId) {
        let hash = seen.digester().id(id.as_bytes());
        if seen.knows_hash(hash, self.now) {
            return self.history.note_has(hash, peer);
        }
        if self.pipeline.holds(hash) || self.promises.is_spurned(hash, self.now) {
            return;
        }
        let useful = self.is_useful(peer);
        if let Some(promise) = self.promises.all.get_mut(&hash) {
            if promise.from != peer && !promise.others.contains(&peer) {
                // Those who lately sent something new are asked first.
                if useful {
                    promise.others.insert(0, peer);
                    promise.others.truncate(MAX_OTHERS);
                } else if promise.others.len() < MAX_OTHERS {
                    promise.others.push(peer);
                }
            }
            return;
        }
        let free = MAX_PROMISES - self.promises.all.len().min(MAX_PROMISES);
        let of_peer = self.peers.get(&peer).map_or(0, |p| p.budget.promised);
        if of_peer >= free {
            self.counters.control_dropped += 1;
            return;
        }
        // The id lies in a frame of the peer's choice: it is copied, so that the frame can go.
        let id = MessageId::new(bytes::Bytes::copy_from_slice(id.as_bytes()));
        self.ask(hash, id, peer, self.now, Vec::new());
    }

    /// It came, from whomever.
    pub(super) fn keep_promise(&mut self, hash: u64) {
        if let Some(promise) = self.promises.all.remove(&hash) {
            self.promises.due.remove(&(promise.until, hash));
            self.end_promise(promise.from);
        }
    }

    fn end_promise(&mut self, from: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&from) {
            peer.budget.promised = peer.budget.promised.saturating_sub(1);
        }
    }

    fn ask(&mut self, hash: u64, id: MessageId, from: PeerKey, begun: Time, others: Vec<PeerKey>) {
        let patience = self.config.knobs.iwant_followup;
        let last = self.now + patience;
        let until = match self.is_useful(from) {
            true => last,
            false => self.now + patience / IMPATIENCE,
        };
        #[cfg(feature = "sim")]
        let until = match self.has(crate::sim::Planted::PromiseForever) {
            true => Time::MAX / 2,
            false => until,
        };
        let Some(state) = self.peers.get_mut(&from) else {
            return;
        };
        if state.budget.ihave_ids >= MAX_IHAVE_IDS || !state.lane.add_iwant(id.clone()) {
            self.counters.control_dropped += 1;
            return;
        }
        state.budget.ihave_ids += 1;
        state.budget.promised += 1;
        self.counters.iwant_out += 1;
        self.ready.insert(from);
        self.promises.due.insert((until, hash));
        self.promises.all.insert(
            hash,
            Promise {
                id,
                from,
                until,
                last,
                begun,
                others,
            },
        );
        self.wake(until);
    }

    /// What did not come in time is asked of somebody else.
    pub(super) fn expire_promises(&mut self) {
        while let Some((until, hash)) = self.promises.due.first().copied() {
            if until > self.now {
                self.wake(until);
                break;
            }
            self.promises.due.pop_first();
            let from = self.promises.all.get(&hash).map(|promise| promise.from);
            let begun = from.is_some_and(|from| self.is_useful(from));
            if let Some(promise) = self.promises.all.get_mut(&hash)
                && begun
                && promise.until < promise.last
            {
                // It sends what it was asked for; this one has its turn yet.
                promise.until = promise.last;
                self.promises.due.insert((promise.until, hash));
                continue;
            }
            if let Some(promise) = self.promises.all.remove(&hash) {
                self.counters.promises_broken += 1;
                self.end_promise(promise.from);
                if let Some(peer) = self.peers.get_mut(&promise.from) {
                    peer.budget.broken += 1;
                }
                self.ask_another(hash, promise);
            }
        }
        while let Some((until, _)) = self.promises.spurned_order.front()
            && *until <= self.now
        {
            self.promises.pop_spurned();
        }
    }

    fn ask_another(&mut self, hash: u64, promise: Promise) {
        let mut others = promise.others;
        others.retain(|peer| self.peers.get(peer).is_some_and(|p| p.link.is_open()));
        // Longer than this nobody keeps a message.
        let kept = self.config.knobs.heartbeat * self.config.knobs.history_length as u32;
        if !others.is_empty() && self.now < promise.begun + kept {
            let next = others.remove(0);
            self.ask(hash, promise.id, next, promise.begun, others);
        }
    }

    /// A peer is gone: what it promised is asked of others at once.
    pub(super) fn drop_promises(&mut self, peer: PeerKey) {
        let mut broken: Vec<u64> = Vec::new();
        for (hash, promise) in &mut self.promises.all {
            promise.others.retain(|other| *other != peer);
            if promise.from == peer {
                broken.push(*hash);
            }
        }
        broken.sort_unstable();
        for hash in broken {
            if let Some(promise) = self.promises.all.remove(&hash) {
                self.promises.due.remove(&(promise.until, hash));
                self.ask_another(hash, promise);
            }
        }
    }
}
