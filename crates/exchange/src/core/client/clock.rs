//! What time does: wants move on from those who do not deliver, and are looked for again.

use std::time::Duration;

use gemba_block::Cid;

use super::want::is_open;
use super::{Answer, Client, Out};
use crate::core::{Output, PeerKey, Time};
use crate::metrics::Counters;

/// While anything is owed, time-outs are looked for this often.
const TICK: Duration = Duration::from_millis(250);
/// A block is lost if the peer delivered so many that were asked for later.
const OVERTAKEN: u64 = 64;
/// A stalled peer that holds a want is asked again after so many stall times.
const PATIENCE: u32 = 10;

impl Client {
    pub(in crate::core) fn deadline(&self) -> Option<Time> {
        let tick = self
            .peers
            .values()
            .any(|p| p.blocks > 0 || p.haves > 0 || !p.spare.is_none())
            .then_some(self.ticked.saturating_add(TICK));
        let tick = tick.or_else(|| {
            self.waits_for_mates(self.ticked)
                .then_some(self.ticked.saturating_add(TICK))
        });
        let retry = self.retry.first().map(|(at, _)| *at);
        [tick, retry, self.turns_deadline(), self.budget_deadline()]
            .into_iter()
            .flatten()
            .min()
    }

    pub(in crate::core) fn expire(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        self.ticked = now;
        if !self.paused {
            let keys: Vec<PeerKey> = self.peers.keys().copied().collect();
            for key in keys {
                self.open_spare(key, now, out);
                self.time_out_blocks(key, now, counters, out);
                self.time_out_haves(key, now, counters, out);
                self.decide_spare(key, now, counters, out);
            }
        }
        self.start_rounds(now, counters, out);
        self.mind_mates(now, counters, out);
        self.stir_all();
        self.stir(now, counters, out);
        if !self.paused {
            self.relieve(now, counters, out);
        }
    }

    /// A want moves on if its peer made no progress for `stall`, if the peer delivered much that was asked for later,
    /// or if it trickles so slowly that nobody should wait.
    pub(super) fn time_out_blocks(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let mut late = Vec::new();
        let (stall, sharers) = self.line_to(key, now);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let silent = now >= peer.progress.saturating_add(stall);
        let delivered = peer.delivered;
        let wants = &self.wants;
        peer.block_asks.retain(|ask| {
            if !is_open(wants, key, ask) {
                return false;
            }
            let waited = now >= ask.at.saturating_add(self.config.stall);
            let overtaken = delivered > ask.number + OVERTAKEN;
            // Its rate may be that of a line that it had for itself.
            let most = ask.latest.saturating_sub(ask.at).saturating_mul(sharers);
            let trickles = now >= ask.at.saturating_add(most);
            if waited && (silent || overtaken || trickles) {
                late.push(*ask);
                return false;
            }
            true
        });
        if late.is_empty() {
            return;
        }
        peer.stalled(now);
        let id = peer.id;
        counters.timeouts += late.len() as u64;
        let mut moved = 0;
        for ask in late {
            if self.close_ask(key, &ask, Answer::TimedOut, now) {
                moved += 1;
                counters.moved += 1;
                self.probe(key, ask.cid);
                self.place(&ask.cid, now, counters, out);
            }
        }
        out.push_back(Output::Stalled { peer: id, moved });
    }

    /// Presences come at once, so only a peer that is busy delivering gets more time, and not for ever: it may deliver to keep the want.
    pub(super) fn time_out_haves(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let mut late = Vec::new();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let silent = now >= peer.last_word().saturating_add(self.config.stall);
        let wants = &self.wants;
        let stall = self.config.stall;
        peer.have_asks.retain(|ask| {
            if !is_open(wants, key, ask) {
                return false;
            }
            if (now >= ask.at.saturating_add(stall) && silent)
                || now >= ask.at.saturating_add(stall.saturating_mul(5) / 2)
            {
                late.push(*ask);
                return false;
            }
            true
        });
        counters.have_timeouts += late.len() as u64;
        if !late.is_empty()
            && let Some(site) = &mut self.site
        {
            site.tardy(key, now);
        }
        for ask in late {
            if self.close_ask(key, &ask, Answer::TimedOut, now) {
                self.probe(key, ask.cid);
                self.place(&ask.cid, now, counters, out);
            }
        }
    }

    /// A want or its answer may be lost, with a stream that was reset or by a peer that forgot it: asked again at once, without
    /// waiting for the next round (S4.34). Once a round: who says HAVE and sends nothing would keep the others from their turn.
    fn probe(&mut self, key: PeerKey, cid: Cid) {
        let Some(want) = self.wants.get_mut(&cid) else {
            return;
        };
        if !want.probed.contains(&key)
            && let Some(peer) = self.peers.get_mut(&key)
        {
            want.probed.push(key);
            peer.remote.probe(cid);
            self.changed.insert(key);
        }
    }

    /// Asks everybody again for what nobody had.
    pub(super) fn start_rounds(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        while let Some((at, seq)) = self.retry.first().copied()
            && at <= now
        {
            self.retry.pop_first();
            let Some(cid) = self.open.get(&seq).copied() else {
                continue;
            };
            let Some(want) = self.wants.get_mut(&cid) else {
                continue;
            };
            want.retry_at = None;
            counters.rebroadcasts += 1;
            self.forget_answers(&cid, now);
            self.place(&cid, now, counters, out);
        }
    }

    /// Before a want is looked for again: old answers go, so that everybody is asked again. Except of a peer that stalled
    /// with the want in hand: links are ordered, so the block comes when the link moves, and twice if it were asked for
    /// twice. It is waited for again once the peer moves, and asked again after [`PATIENCE`].
    pub(super) fn forget_answers(&mut self, cid: &Cid, now: Time) {
        let Some(mut want) = self.wants.remove(cid) else {
            return;
        };
        want.probed.clear();
        want.shared.lapsed.clear();
        let estimate = self.estimate_of(&want);
        let patience = self.config.stall.saturating_mul(PATIENCE);
        let mut asks = std::mem::take(&mut want.asks);
        asks.retain_mut(|ask| match ask.answer {
            Answer::HavePending | Answer::BlockPending => true,
            Answer::TimedOut => {
                let since = ask.answered_at.unwrap_or(ask.at);
                let Some(peer) = self.peers.get(&ask.peer) else {
                    return false;
                };
                if !peer.remote.holds_block_want(cid) {
                    return false;
                }
                if peer.progress <= since {
                    return now < since.saturating_add(patience);
                }
                // Without room it is still owed, and bytes do come: counted as such once there is room.
                self.owe_again(cid, ask, estimate, now) || now < since.saturating_add(patience)
            }
            _ => false,
        });
        want.asks = asks;
        self.wants.insert(*cid, want);
    }
}
