//! What the client knows of one connected peer: how much it owes, how fast it is, how far it is believed.

use std::collections::VecDeque;
use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::remote::Remote;
use crate::config::Config;
use crate::core::Time;

pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) lan: bool,
    pub(super) remote: Remote,
    /// Asks for blocks and for presences in order of time. Settled ones are skipped when they come to the front.
    pub(super) block_asks: VecDeque<OpenAsk>,
    pub(super) have_asks: VecDeque<OpenAsk>,
    /// Blocks owed, and their estimated bytes.
    pub(super) blocks: usize,
    pub(super) bytes: usize,
    /// Presences owed.
    pub(super) haves: usize,
    /// When the last useful byte came.
    pub(super) progress: Time,
    /// The newest ask that was delivered: a server works in order, give or take.
    pub(super) delivered: u64,
    /// Bytes a second while it owed something; 0 before the first measure.
    rate: u64,
    /// From asking to the answer, the best of late. Zero before the first answer.
    latency: Duration,
    /// How often what it was asked for came, 0 to 256.
    reliability: u64,
    meter: Option<Meter>,
    stalls: u32,
    wrong: u32,
    suspect_until: Time,
    distrusted_until: Time,
    pub(super) unsupported: bool,
}

/// An ask that may still be open.
#[derive(Clone, Copy)]
pub(super) struct OpenAsk {
    pub(super) cid: Cid,
    pub(super) number: u64,
    pub(super) at: Time,
    /// Not later than this, even if other bytes trickle in.
    pub(super) latest: Time,
}

/// Bytes that came in (`since`, `until`].
struct Meter {
    bytes: usize,
    since: Time,
    until: Time,
}

impl Meter {
    fn from(since: Time) -> Self {
        Self {
            bytes: 0,
            since,
            until: since,
        }
    }
}

/// Bytes expected from a peer before its rate is known.
const FIRST_WINDOW: usize = 1024 * 1024;
/// A peer is asked for what it delivers in twice its latency and this time: enough to keep a line filled whose rate
/// doubles or whose answers come in bursts, and little enough that the rest can still go to others.
const SLACK: Duration = Duration::from_millis(500);
/// Every ask came.
const RELIABLE: u64 = 256;
/// Assumed before the first measure, bytes a second: fast enough to be tried.
const FIRST_RATE: u64 = 10 * 1024 * 1024;
/// Slowest delivery that is waited for, bytes a second (boxo's 100 kbit/s and some patience).
const FLOOR_RATE: u64 = 8 * 1024;
/// A measure needs this long.
const METER: Duration = Duration::from_millis(50);
/// Wrong blocks before a peer is not asked any more. Blocks of wants cancelled long ago look the same, so not one.
const WRONG: u32 = 3;

impl Peer {
    pub(super) fn new(id: PeerId, lan: bool, now: Time) -> Self {
        Self {
            id,
            lan,
            remote: Remote::default(),
            block_asks: VecDeque::new(),
            have_asks: VecDeque::new(),
            blocks: 0,
            bytes: 0,
            haves: 0,
            progress: now,
            delivered: 0,
            rate: 0,
            latency: Duration::ZERO,
            reliability: RELIABLE,
            meter: None,
            stalls: 0,
            wrong: 0,
            suspect_until: Time::ZERO,
            distrusted_until: Time::ZERO,
            unsupported: false,
        }
    }

    /// May be asked at all.
    pub(super) fn is_usable(&self, now: Time) -> bool {
        !self.unsupported && self.distrusted_until <= now
    }

    /// Asked only when nobody better is left.
    pub(super) fn is_suspect(&self, now: Time) -> bool {
        self.suspect_until > now
    }

    /// Room for one more entry on the wantlist there.
    pub(super) fn has_entry_room(&self, config: &Config) -> bool {
        self.remote.len() < config.peer_wants
    }

    /// Room for one more block of about `estimate` bytes. Two blocks are always allowed.
    pub(super) fn has_block_room(&self, estimate: usize, config: &Config) -> bool {
        self.has_entry_room(config)
            && (self.blocks < 2 || self.bytes + estimate <= self.window(estimate, config))
    }

    /// Microseconds until a block asked for now would be here, times the tries that it takes.
    pub(super) fn cost(&self, estimate: usize) -> u64 {
        let transfer = (self.bytes + estimate) as u64 * 1_000_000 / self.rate_or_guess();
        let latency = u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX / RELIABLE);
        transfer.saturating_add(latency).saturating_mul(RELIABLE) / self.reliability.max(1)
    }

    /// It answered what it was asked at `at`.
    pub(super) fn answered(&mut self, at: Time, now: Time) {
        let took = now.saturating_sub(at);
        self.latency = if self.latency.is_zero() || took < self.latency {
            took
        } else {
            // A queue there makes answers late, a longer way keeps them late.
            self.latency + (took - self.latency) / 16
        };
    }

    /// It did not deliver what it was asked for.
    fn failed(&mut self) {
        self.reliability -= self.reliability / 4;
    }

    /// Latest time for a block asked for now: its share of what is owed at a fraction of the measured rate.
    pub(super) fn latest(&self, estimate: usize, now: Time, config: &Config) -> Time {
        let rate = (self.rate / 8).max(FLOOR_RATE);
        let share = Duration::from_millis((self.bytes + estimate) as u64 * 1000 / rate);
        now.saturating_add(config.stall).saturating_add(share)
    }

    pub(super) fn owe(&mut self, ask: OpenAsk, estimate: usize) {
        if self.blocks == 0 {
            // The way there and back is not a part of its rate.
            self.meter = None;
        }
        self.blocks += 1;
        self.bytes += estimate;
        self.block_asks.push_back(ask);
    }

    pub(super) fn settle(&mut self, estimate: usize) {
        self.blocks = self.blocks.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(estimate);
    }

    /// Drops settled asks when they are many, so that the queues stay as long as what is owed.
    pub(super) fn trim(&mut self) {
        if self.blocks == 0 {
            self.block_asks.clear();
        }
        if self.haves == 0 {
            self.have_asks.clear();
        }
    }

    /// A wanted block came: rate, and forgiveness.
    pub(super) fn delivered(&mut self, number: Option<u64>, len: usize, now: Time) {
        self.delivered = self.delivered.max(number.unwrap_or(0));
        self.stalls = 0;
        self.suspect_until = Time::ZERO;
        self.reliability += (RELIABLE - self.reliability).div_ceil(16);
        self.measure(len, now);
    }

    /// Bytes that came after the first ones of a busy time.
    fn measure(&mut self, len: usize, now: Time) {
        let Some(meter) = &mut self.meter else {
            self.meter = Some(Meter::from(now));
            return;
        };
        let span = meter.until.saturating_sub(meter.since);
        if now > meter.until && span >= METER {
            let measured = meter.bytes as u64 * 1000 / (span.as_millis() as u64).max(1);
            self.rate = match self.rate {
                0 => measured.max(1),
                old => ((3 * old + measured) / 4).max(1),
            };
            *meter = Meter::from(meter.until);
        }
        // Several blocks come at one time, in one message.
        if now > meter.since {
            meter.bytes += len;
            meter.until = now;
        }
    }

    /// Wants timed out: asked last for a while that doubles.
    pub(super) fn stalled(&mut self, now: Time) {
        self.failed();
        self.stalls = (self.stalls + 1).min(6);
        self.suspect_until = now.saturating_add(Duration::from_secs(2 << self.stalls));
    }

    /// A block came that nobody asked for while others are owed. True if the peer is now distrusted.
    pub(super) fn sent_wrong(&mut self, now: Time, config: &Config) -> bool {
        self.failed();
        self.wrong += 1;
        self.suspect_until = now.saturating_add(config.distrust);
        if self.wrong < WRONG || self.distrusted_until > now {
            return false;
        }
        self.distrusted_until = now.saturating_add(config.distrust);
        self.wrong = 0;
        true
    }

    fn window(&self, estimate: usize, config: &Config) -> usize {
        let most = config.peer_bytes.max(2 * estimate);
        let wish = match self.rate {
            0 => FIRST_WINDOW,
            rate => {
                let time = self.latency.saturating_mul(2).saturating_add(SLACK);
                let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                usize::try_from(rate.saturating_mul(millis) / 1000).unwrap_or(usize::MAX)
            }
        };
        wish.clamp(most.min(2 * estimate), most)
    }

    fn rate_or_guess(&self) -> u64 {
        match self.rate {
            0 => FIRST_RATE,
            rate => rate.max(1),
        }
    }
}
