//! A second request stream to a peer that owes something and is silent.
//!
//! Wants are said on one kept stream. If that one is dead while its connection lives (half-open: who should read it hangs, or forgot it),
//! whatever is said on it again vanishes as well, and no write ever fails. So after half of the stall time another stream is opened. Its
//! negotiation is a word of the peer: links keep their order, so what was sent before it has come. If it stands and the peer owes still
//! at the stall time, the wantlist is said there in full. A line that stands still lets no stream be opened, and one that is slow brings
//! bytes: on neither anything is asked for twice.

use std::time::Duration;

use gemba_block::Cid;

use super::peer::OpenAsk;
use super::want::{Ask, Phase, is_open};
use super::{Answer, Client, Out};
use crate::core::{Output, PeerKey, SpareStream, Time};
use crate::metrics::Counters;

/// A spare stream that is not there after this will not come (the driver gives up after 10 s).
const OPENS_WITHIN: Duration = Duration::from_secs(15);
/// Pause between two spare streams to one peer; doubles up to 16 times that while nothing comes of them.
const PAUSE: Duration = Duration::from_secs(4);

/// The spare stream to one peer.
pub(super) struct Spare {
    state: State,
    next: Time,
    pause: Duration,
}

enum State {
    None,
    /// Asked for at `at`, because nothing came since `silent_since`.
    Opening {
        at: Time,
        silent_since: Time,
    },
    Open {
        silent_since: Time,
    },
}

impl Default for Spare {
    fn default() -> Self {
        Self {
            state: State::None,
            next: Time::ZERO,
            pause: PAUSE,
        }
    }
}

impl Spare {
    pub(super) fn is_none(&self) -> bool {
        matches!(self.state, State::None)
    }
}

impl Client {
    /// Opens a spare stream to a peer that was silent for half of the stall time.
    pub(super) fn open_spare(&mut self, key: PeerKey, now: Time, out: &mut Out) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if !peer.spare.is_none() || peer.spare.next > now {
            return;
        }
        let open = |ask: &&OpenAsk| is_open(&self.wants, key, ask);
        let block = peer.block_asks.iter().find(open).map(|ask| ask.at);
        let have = peer.have_asks.iter().find(open).map(|ask| ask.at);
        let Some(oldest) = block.into_iter().chain(have).min() else {
            return;
        };
        let silent_since = peer.last_word().max(oldest);
        if now < silent_since.saturating_add(self.config.stall / 2) {
            return;
        }
        peer.spare = Spare {
            state: State::Opening {
                at: now,
                silent_since,
            },
            next: now.saturating_add(peer.spare.pause),
            pause: peer.spare.pause.saturating_mul(2).min(16 * PAUSE),
        };
        let (peer, action) = (peer.id, SpareStream::Open);
        out.push_back(Output::Spare { peer, action });
    }

    /// The peer agreed to a spare stream. What came before that was told before.
    pub(in crate::core) fn spare_opened(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        if let Some(peer) = self.peers.get_mut(&key)
            && let State::Opening { silent_since, .. } = peer.spare.state
        {
            peer.spare.state = State::Open { silent_since };
            self.decide_spare(key, now, counters, out);
        }
    }

    /// Uses the spare stream, or lets it go.
    pub(super) fn decide_spare(
        &mut self,
        key: PeerKey,
        now: Time,
        counters: &mut Counters,
        out: &mut Out,
    ) {
        let stall = self.config.stall;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let action = match peer.spare.state {
            State::None => return,
            State::Opening { silent_since, .. } | State::Open { silent_since }
                if peer.last_word() > silent_since || peer.remote.is_empty() =>
            {
                peer.spare.pause = PAUSE;
                SpareStream::Drop
            }
            State::Opening { at, .. } if now >= at.saturating_add(OPENS_WITHIN) => {
                SpareStream::Drop
            }
            State::Open { silent_since } if now >= silent_since.saturating_add(stall) => {
                SpareStream::Use
            }
            State::Opening { .. } | State::Open { .. } => return,
        };
        peer.spare.state = State::None;
        out.push_back(Output::Spare {
            peer: peer.id,
            action,
        });
        if action == SpareStream::Use {
            counters.replaced_streams += 1;
            self.requests_lost(key, counters);
            self.owe_again_all(key, now, counters, out);
        }
    }

    /// The peer is told anew what it did not deliver: what nobody else is asked for counts as under way again.
    fn owe_again_all(&mut self, key: PeerKey, now: Time, counters: &mut Counters, out: &mut Out) {
        let open: Vec<Cid> = self.open.values().copied().collect();
        for cid in open {
            let Some(mut want) = self.wants.remove(&cid) else {
                continue;
            };
            let estimate = self.estimate_of(&want);
            let unavailable = want.phase == Phase::Unavailable;
            let again = unavailable
                && want
                    .asks
                    .iter_mut()
                    .filter(|ask| ask.peer == key && ask.answer == Answer::TimedOut)
                    .any(|ask| {
                        let again = self.owe_again(&cid, ask, estimate, now);
                        ask.at = if again { now } else { ask.at };
                        again
                    });
            if again {
                want.retry_at = None;
            }
            self.wants.insert(cid, want);
            if again {
                self.place(&cid, now, counters, out);
            }
        }
    }

    /// A peer that holds a want and did not deliver owes the block again. False without room for it.
    pub(super) fn owe_again(
        &mut self,
        cid: &Cid,
        ask: &mut Ask,
        estimate: usize,
        now: Time,
    ) -> bool {
        let room = self.peers.get(&ask.peer).is_some_and(|p| {
            p.remote.holds_block_want(cid) && self.has_room(&self.room_left(now), p, estimate)
        });
        let Some(peer) = self.peers.get_mut(&ask.peer).filter(|_| room) else {
            return false;
        };
        self.next += 1;
        *ask = Ask {
            number: self.next,
            answer: Answer::BlockPending,
            answered_at: None,
            charged: estimate,
            ..*ask
        };
        let open = OpenAsk {
            cid: *cid,
            number: ask.number,
            at: now,
            latest: peer.latest(estimate, now, &self.config),
        };
        peer.owe(open, estimate);
        self.expected += estimate;
        true
    }
}
