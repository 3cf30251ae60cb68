//! Liars are found out side by side (EX-22, X3).
//!
//! A peer that never delivered, or let a want down since, is *unproven*: it is tried with one block at a time, all of them together with half
//! of the node's budget. So a want of each one is known to be in danger, and few are. What an unproven peer is silent about goes to a proven
//! one that has nothing else to do, long before the stall time; as long as nobody is proven, it is asked of one more unproven peer, and of
//! one more, and the first that delivers ends it. The same proven peer takes over what others, proven or not, let trickle at a quarter of
//! its own rate and less.
//!
//! Who is relieved counts as stalled: it is tried again later, with pauses that grow. So the copies that come nevertheless, of blocks that
//! were on their way, are one for each of these tries.

use std::time::Duration;

use gemba_block::Cid;

use super::peer::{OpenAsk, Peer};
use super::place::{Among, Choice};
use super::want::{Want, is_open};
use super::{Answer, Client, Out};
use crate::core::{Output, PeerKey, Time};
use crate::metrics::Counters;

/// An idle peer is given this many times what the one that takes over needs.
const IDLE: u32 = 2;
/// The same for one of which enough bytes come.
const TRICKLES: u32 = 4;
/// What a near peer is given before a far one takes over: that one's line may be slow, and shared. Half of the default stall time.
const NEAR: Duration = Duration::from_secs(1);

/// What helps a want that takes long.
enum Relief {
    /// This peer is asked instead.
    By(PeerKey),
    /// This peer is asked as well.
    Beside(PeerKey),
}

impl Client {
    /// Takes from those who seem not to deliver what others can, who have room after all pending wants found theirs.
    pub(super) fn relieve(&mut self, now: Time, counters: &mut Counters, out: &mut Out) {
        let late: Vec<PeerKey> = self
            .peers
            .iter()
            .filter(|(_, peer)| peer.blocks > 0 && self.takes_long(peer, now))
            .map(|(key, _)| *key)
            .collect();
        for key in late {
            self.relieve_one(key, now, counters, out);
        }
    }

    fn takes_long(&self, peer: &Peer, now: Time) -> bool {
        let since = peer.without_block_since();
        peer.is_mute(now) || now >= since.saturating_add(self.config.stall)
    }

    fn relieve_one(&mut self, key: PeerKey, now: Time, counters: &mut Counters, out: &mut Out) {
        let mut moved = 0;
        for ask in self.in_danger(key, now) {
            let (other, instead) = match self.relief(key, &ask, now) {
                Some(Relief::By(other)) => (other, true),
                Some(Relief::Beside(other)) => (other, false),
                None => continue,
            };
            match instead {
                true => {
                    self.close_ask(key, &ask, Answer::TimedOut, now);
                    moved += 1;
                }
                false => counters.doubled += 1,
            }
            self.ask_too(&ask.cid, other, now);
        }
        if moved == 0 {
            return;
        }
        counters.moved += moved as u64;
        counters.relieved += moved as u64;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.stalled(now);
            let peer = peer.id;
            out.push_back(Output::Stalled { peer, moved });
        }
    }

    /// What a peer owes: first what is most urgent, or, if its bytes come, what it will come to last and can still be told not to send.
    fn in_danger(&self, key: PeerKey, now: Time) -> Vec<OpenAsk> {
        let Some(peer) = self.peers.get(&key) else {
            return Vec::new();
        };
        let open = |ask: &&OpenAsk| is_open(&self.wants, key, ask);
        let mut asks: Vec<OpenAsk> = peer.block_asks.iter().filter(open).copied().collect();
        if asks.first().is_some_and(|ask| !peer.is_idle(ask.at, now)) {
            asks.reverse();
        }
        asks
    }

    fn relief(&self, key: PeerKey, ask: &OpenAsk, now: Time) -> Option<Relief> {
        let (peer, want) = (self.peers.get(&key)?, self.wants.get(&ask.cid)?);
        let idle = !peer.proven && peer.is_idle(ask.at, now);
        match self.choose(&ask.cid, want, Among::Proven, now) {
            _ if self.is_relieved(key, want) => None,
            Choice::Peer(other) => {
                let other_peer = self.peers.get(&other)?;
                let needs = other_peer.needs(self.estimate_of(want));
                let (since, patience) = if idle {
                    let way = if peer.lan && !other_peer.lan {
                        NEAR
                    } else {
                        peer.first_byte()
                    };
                    let patience = way.max(needs.saturating_mul(IDLE));
                    (ask.at, patience.min(self.config.stall))
                } else {
                    let patience = needs.saturating_mul(TRICKLES);
                    (ask.at.max(peer.last_block), patience.max(self.config.stall))
                };
                (now >= since.saturating_add(patience)).then_some(Relief::By(other))
            }
            Choice::Nobody if idle && self.all_idle(want, now) => {
                match self.choose(&ask.cid, want, Among::Unsuspected, now) {
                    Choice::Peer(other) => Some(Relief::Beside(other)),
                    Choice::Full | Choice::Nobody => None,
                }
            }
            Choice::Full | Choice::Nobody => None,
        }
    }

    /// Whether a peer that delivers was asked meanwhile.
    fn is_relieved(&self, key: PeerKey, want: &Want) -> bool {
        let proven = |key| self.peers.get(key).is_some_and(|p| p.proven);
        want.pending()
            .any(|ask| ask.peer != key && proven(&ask.peer))
    }

    /// Whether all who were asked for a block, the last one too, had their time to begin and did not.
    fn all_idle(&self, want: &Want, now: Time) -> bool {
        want.pending().all(|ask| {
            self.peers.get(&ask.peer).is_none_or(|peer| {
                peer.is_idle(ask.at, now) && now >= ask.at.saturating_add(peer.first_byte())
            })
        })
    }

    fn ask_too(&mut self, cid: &Cid, key: PeerKey, now: Time) {
        if let Some(mut want) = self.wants.remove(cid) {
            self.ask_block(cid, &mut want, key, now);
            self.wants.insert(*cid, want);
        }
    }
}
