//! What the client knows of one connected peer: how much it owes, how fast it is, how far it is believed.

use std::collections::VecDeque;
use std::time::Duration;

use gemba_block::Cid;
use libp2p_identity::PeerId;

use super::remote::Remote;
use super::spare::Spare;
use crate::config::{Config, Line};
use crate::core::Time;

pub(super) struct Peer {
    pub(super) id: PeerId,
    pub(super) lan: bool,
    pub(super) remote: Remote,
    pub(super) spare: Spare,
    /// Asks for blocks and for presences in order of time. Settled ones are skipped when they come to the front.
    pub(super) block_asks: VecDeque<OpenAsk>,
    pub(super) have_asks: VecDeque<OpenAsk>,
    /// Blocks owed, and their estimated bytes.
    pub(super) blocks: usize,
    pub(super) bytes: usize,
    /// Presences owed.
    pub(super) haves: usize,
    /// Whether the last thing that is known of it as a source is a block that it was asked for: not so before the first one, nor after it
    /// let a want down. Who is unproven is tried with one block (EX-22).
    pub(super) proven: bool,
    /// Since when it owes blocks without a pause.
    owes_since: Time,
    /// When the last block came that it was asked for.
    pub(super) last_block: Time,
    /// From asking for that one until it came.
    took: Duration,
    /// When the last byte of a block came that was asked for.
    pub(super) progress: Time,
    /// Bytes of large messages that came since it owes blocks, without those that are complete.
    pub(super) partial: usize,
    /// When it last answered whether it has a block. Says nothing of the blocks that it owes: who says HAVE now and then and sends none would
    /// keep them from the others.
    pub(super) heard: Time,
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
/// Nobody is called silent before: a tablet that has other things to do may take as long to begin (guess).
const PATIENCE: Duration = Duration::from_millis(250);
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
            spare: Spare::default(),
            block_asks: VecDeque::new(),
            have_asks: VecDeque::new(),
            blocks: 0,
            bytes: 0,
            haves: 0,
            proven: false,
            owes_since: now,
            last_block: now,
            took: Duration::ZERO,
            progress: now,
            partial: 0,
            heard: now,
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

    pub(super) fn line(&self) -> Line {
        match self.lan {
            true => Line::Near,
            false => Line::Far,
        }
    }

    /// When anything came that was asked for.
    pub(super) fn last_word(&self) -> Time {
        self.progress.max(self.heard)
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

    /// Room for one more block of about `estimate` bytes. Two blocks are always allowed, and one only to who is unproven.
    pub(super) fn has_block_room(&self, estimate: usize, config: &Config) -> bool {
        let window = || self.blocks < 2 || self.bytes + estimate <= self.window(estimate, config);
        self.has_entry_room(config) && (self.blocks < 1 || self.proven && window())
    }

    /// Time until a block asked for now would be here, times the tries that it takes.
    pub(super) fn cost(&self, estimate: usize) -> Duration {
        let transfer = (self.bytes + estimate) as u64 * 1_000_000 / self.rate_or_guess();
        let latency = u64::try_from(self.latency.as_micros()).unwrap_or(u64::MAX / RELIABLE);
        let once = transfer.saturating_add(latency);
        Duration::from_micros(once.saturating_mul(RELIABLE) / self.reliability.max(1))
    }

    /// Time until a block asked for now would be here; as long as its rate is not known, not less than the last one took.
    pub(super) fn needs(&self, estimate: usize) -> Duration {
        match self.rate {
            0 => self.cost(estimate).max(self.took),
            _ => self.cost(estimate),
        }
    }

    /// The first byte of a block is here in this time, from who answers presences as it did: a few of its answers' latencies, since a block
    /// has to be read.
    pub(super) fn first_byte(&self) -> Duration {
        self.latency.saturating_mul(4).max(PATIENCE)
    }

    /// Of what was asked for at `at` nothing came, or so little that nobody should wait for the rest.
    pub(super) fn is_idle(&self, at: Time, now: Time) -> bool {
        let waited = now.saturating_sub(at).as_millis();
        self.progress <= at || self.partial as u128 * 1000 < waited * u128::from(FLOOR_RATE)
    }

    /// Unproven, and idle for longer than an honest peer that is not busy would be.
    pub(super) fn is_mute(&self, now: Time) -> bool {
        !self.proven
            && self.blocks > 0
            && self.is_idle(self.owes_since, now)
            && now >= self.owes_since.saturating_add(self.first_byte())
    }

    /// Since when no block that was asked for came, though some are owed.
    pub(super) fn without_block_since(&self) -> Time {
        self.owes_since.max(self.last_block)
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
        self.proven = false;
    }

    /// Latest time for a block asked for now: its share of what is owed at a fraction of the measured rate.
    pub(super) fn latest(&self, estimate: usize, now: Time, config: &Config) -> Time {
        let rate = (self.rate / 8).max(FLOOR_RATE);
        let share = Duration::from_millis((self.bytes + estimate) as u64 * 1000 / rate);
        now.saturating_add(config.stall).saturating_add(share)
    }

    pub(super) fn owe(&mut self, ask: OpenAsk, estimate: usize) {
        if self.blocks == 0 {
            self.owes_since = ask.at;
            self.partial = 0;
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

    /// A wanted block came: rate, forgiveness, and trust if it was `asked` for (number and time).
    pub(super) fn delivered(&mut self, asked: Option<(u64, Time)>, len: usize, now: Time) {
        if let Some((number, at)) = asked {
            self.delivered = self.delivered.max(number);
            self.proven = true;
            self.last_block = now;
            self.took = now.saturating_sub(at);
        }
        // Not forgotten at once: who trickles delivers now and then, and each try of it costs a copy.
        self.stalls = self.stalls.saturating_sub(1);
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
        let time = self.latency.saturating_mul(2).saturating_add(SLACK);
        let wish = match self.rate {
            // One block took longer than what the window is measured by: two are enough, as they are at a rate that is known.
            0 if self.took > time => 0,
            0 => FIRST_WINDOW,
            rate => {
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
