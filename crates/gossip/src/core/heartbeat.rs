//! Housekeeping, once a second: meshes, advertising, allowances, health.

use std::collections::HashMap;

use super::{Core, Event, PeerKey};
use crate::hash::Keyed;
use crate::message::MessageId;
use crate::seen::Seen;

/// Heartbeats for which a peer's IDONTWANT holds, and ids of it between two (Kubo's numbers).
const UNNEEDED_BEATS: u64 = 3;
const MAX_UNNEEDED: u32 = 1000;
/// A lane of so many messages is searched at once.
const SHORT: usize = 64;

/// Ids that a peer need not be sent.
pub(super) struct Unneeded {
    all: HashMap<u64, u64, Keyed>,
    beat: u64,
}

impl Unneeded {
    pub(super) fn new(keyed: Keyed) -> Self {
        Self {
            all: HashMap::with_hasher(keyed),
            beat: 0,
        }
    }

    pub(super) fn contains(&self, hash: u64) -> bool {
        !self.all.is_empty() && self.all.contains_key(&hash)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    fn shift(&mut self) {
        self.beat += 1;
        if !self.all.is_empty() {
            let beat = self.beat;
            self.all.retain(|_, from| *from + UNNEEDED_BEATS > beat);
        }
    }
}

impl Core {
    pub(super) fn heartbeat(&mut self, seen: &mut Seen) {
        seen.expire(self.now);
        if let Some(pressure) = seen.take_pressure() {
            self.pressed = Some((self.now, pressure.effective_ttl));
            self.event(Event::SeenPressure(pressure));
        }
        self.decay_budgets();
        for peer in self.peers.values_mut() {
            peer.unneeded.shift();
        }
        self.refill_relay();
        self.tell_all_again();
        self.tend_meshes();
        self.tend_fanout();
        self.advertise();
        self.probe();
        self.look_after_topics();
        self.close_mute();
        if self.is_idle() {
            self.heartbeat_at = None;
            self.history.clear();
            self.promises.clear();
        } else {
            self.heartbeat_at = Some(self.now + self.config.knobs.heartbeat);
        }
    }

    /// A peer has these already: copies that wait for it go, further ones are not queued.
    pub(super) fn on_idontwant(&mut self, seen: &Seen, peer: PeerKey, ids: &[MessageId]) {
        self.counters.idontwant_in += ids.len() as u64;
        let Some(state) = self.peers.get_mut(&peer) else {
            return;
        };
        let mut any = false;
        for id in ids {
            if state.budget.idontwant_ids >= MAX_UNNEEDED {
                self.counters.control_dropped += 1;
                continue;
            }
            state.budget.idontwant_ids += 1;
            let hash = seen.digester().id(id.as_bytes());
            state.unneeded.all.insert(hash, state.unneeded.beat);
            any = true;
        }
        // A long lane is not searched for each id: what is not needed is left out when its turn comes.
        if any && (1..=SHORT).contains(&state.lane.messages()) {
            let unneeded = &state.unneeded;
            let removed = state.lane.remove(|hash| unneeded.contains(hash));
            self.counters.lane_unneeded += removed as u64;
            self.own.stir |= removed > 0;
        }
    }
}
