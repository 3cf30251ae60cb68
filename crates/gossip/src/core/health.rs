//! How each topic fares, and what is done when it fares badly (specs/gossip.md §8).
//!
//! Silence is no fault: an idle topic is silent. A fault is that nobody subscribes, that nothing can be written, that nobody takes us into
//! the mesh, or that this machine does not keep up. Repair climbs a ladder: graft others (every heartbeat), open streams anew, close
//! connections that do not help so that they are dialled again, ask for other peers, raise an alarm. Nothing ever needs a restart.

use std::time::Duration;

use libp2p_identity::PeerId;

use super::link::Status;
use super::reports::Trouble;
use super::topics::TopicKey;
use super::{Core, DegradedCause, Event, PeerKey, Time};

/// What passes within this is no trouble.
const GRACE: Duration = Duration::from_secs(3);
/// Rungs of the ladder: how long the trouble has lasted.
const REOPEN: Duration = Duration::from_secs(5);
const CLOSE: Duration = Duration::from_secs(15);
const WANT_PEERS: Duration = Duration::from_secs(20);
const ALARM: Duration = Duration::from_secs(60);
/// Others are asked for so often.
const WANT_AGAIN: Duration = Duration::from_secs(30);
/// A peer that is missing, direct or closed because it stalled, is asked for after pauses that grow from the first to the last.
const FIRST_WANT: Duration = Duration::from_secs(5);
const LAST_WANT: Duration = Duration::from_secs(300);
/// One that stalled is asked for so often, a quarter of an hour about; a direct peer for ever.
const STALLED_WANTS: u32 = 8;
/// Those that stalled and are missing; more are left to who finds peers.
const MAX_STALLED: usize = 256;

/// When a peer that is missing is asked for again, and how often it was.
pub(super) type Wanted = (Time, u32);

/// What is noted of one topic.
pub(super) struct HealthState {
    pub(super) last_received: Option<Time>,
    pub(super) last_sent: Option<Time>,
    pub(super) received: u64,
    pub(super) shed: u64,
    pub(super) stale: u64,
    /// What was told.
    pub(super) trouble: Option<Trouble>,
    /// What is found and since when, told or not.
    found: Option<(Trouble, Time)>,
    /// When it was well last.
    well: Time,
    wanted_peers: Option<Time>,
    reopened: bool,
    closed: bool,
    alarmed: bool,
    /// Figures at the last heartbeat.
    last: (u64, u64),
}

impl HealthState {
    pub(super) fn new(now: Time) -> Self {
        Self {
            last_received: None,
            last_sent: None,
            received: 0,
            shed: 0,
            stale: 0,
            trouble: None,
            found: None,
            well: now,
            wanted_peers: None,
            reopened: false,
            closed: false,
            alarmed: false,
            last: (0, 0),
        }
    }
}

impl Core {
    pub(super) fn note_shed(&mut self, topic: TopicKey) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.health.shed += 1;
        }
    }

    pub(super) fn note_stale(&mut self, topic: TopicKey) {
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.health.stale += 1;
        }
    }

    pub(super) fn note_received(&mut self, topic: TopicKey) {
        let now = self.now;
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.health.received += 1;
            topic.health.last_received = Some(now);
        }
    }

    pub(super) fn note_sent(&mut self, topic: TopicKey) {
        let now = self.now;
        if let Some(topic) = self.topics.get_mut(topic) {
            topic.health.last_sent = Some(now);
        }
    }

    /// Every heartbeat: what is wrong, since when, and what is done about it.
    pub(super) fn look_after_topics(&mut self) {
        let keys: Vec<TopicKey> = self
            .topics
            .iter()
            .filter(|(_, topic)| topic.subscribed)
            .map(|(key, _)| key)
            .collect();
        for key in keys {
            let trouble = self.trouble(key);
            self.diagnose(key, trouble);
        }
        self.want_missing();
    }

    fn trouble(&mut self, key: TopicKey) -> Option<Trouble> {
        let (stall, degree, low) = (
            self.config.knobs.stall,
            self.config.knobs.degree,
            self.config.knobs.degree_low,
        );
        let overloaded = self.is_overloaded(key);
        let topic = self.topics.get(key)?;
        let links = || topic.neighbours.keys().filter_map(|k| self.peers.get(k));
        let open = links().filter(|p| p.link.is_open()).count();
        let moving = links()
            .filter(|p| p.link.is_proven() && !p.link.is_stuck(self.now, stall / 2))
            .count();
        if topic.neighbours.is_empty() {
            Some(Trouble::Isolated)
        } else if open == 0 {
            Some(Trouble::Degraded(DegradedCause::NoStream))
        } else if moving == 0 {
            Some(Trouble::Degraded(DegradedCause::Stalled))
        } else if topic.neighbours.len() > degree && topic.mesh.len() < low.min(open) {
            Some(Trouble::Degraded(DegradedCause::NoMesh))
        } else if overloaded {
            Some(Trouble::Degraded(DegradedCause::Overloaded))
        } else {
            None
        }
    }

    /// More is dropped than taken, since the last heartbeat.
    fn is_overloaded(&mut self, key: TopicKey) -> bool {
        let Some(topic) = self.topics.get_mut(key) else {
            return false;
        };
        let health = &mut topic.health;
        let now = (health.received, health.shed + health.stale);
        let before = std::mem::replace(&mut health.last, now);
        now.1 - before.1 > now.0 - before.0
    }

    fn diagnose(&mut self, key: TopicKey, trouble: Option<Trouble>) {
        let now = self.now;
        let Some(topic) = self.topics.get_mut(key) else {
            return;
        };
        let name = topic.name.clone();
        let health = &mut topic.health;
        let Some(trouble) = trouble else {
            let was = health.trouble.take();
            health.found = None;
            health.well = now;
            health.wanted_peers = None;
            (health.reopened, health.closed, health.alarmed) = (false, false, false);
            if was.is_some() {
                self.event(Event::Recovered { topic: name });
            }
            return;
        };
        let since = match health.found {
            Some((found, since)) if found == trouble => since,
            _ => now,
        };
        health.found = Some((trouble, since));
        if now.saturating_sub(health.well) < GRACE {
            return;
        }
        // One cause after the other is one trouble: the ladder is not begun anew.
        let lasted = now - health.well;
        if health.trouble != Some(trouble) && now >= since {
            health.trouble = Some(trouble);
            self.event(match trouble {
                Trouble::Isolated => Event::Isolated { topic: name },
                Trouble::Degraded(cause) => Event::Degraded { topic: name, cause },
            });
        }
        self.climb(key, trouble, lasted);
    }

    fn climb(&mut self, key: TopicKey, trouble: Trouble, lasted: Duration) {
        let now = self.now;
        let Some(topic) = self.topics.get_mut(key) else {
            return;
        };
        let health = &mut topic.health;
        let broken = matches!(
            trouble,
            Trouble::Degraded(DegradedCause::NoStream | DegradedCause::Stalled)
        );
        let reopen = broken && lasted >= REOPEN && !std::mem::replace(&mut health.reopened, true);
        let close = broken && lasted >= CLOSE && !std::mem::replace(&mut health.closed, true);
        let others = match trouble {
            Trouble::Isolated => true,
            Trouble::Degraded(DegradedCause::Overloaded) => false,
            Trouble::Degraded(_) => lasted >= WANT_PEERS,
        };
        let want = others && health.wanted_peers.is_none_or(|at| now - at >= WANT_AGAIN);
        if want {
            health.wanted_peers = Some(now);
        }
        let alarm = lasted >= ALARM && !std::mem::replace(&mut health.alarmed, true);
        let name = topic.name.clone();
        let neighbours: Vec<PeerKey> = topic.neighbours.keys().copied().collect();
        if reopen {
            for peer in &neighbours {
                self.reopen(*peer);
            }
        }
        if close {
            for peer in neighbours {
                self.give_up(peer);
            }
        }
        if want {
            self.event(Event::WantPeers {
                topic: name.clone(),
            });
        }
        if alarm {
            self.event(Event::Alarm { topic: name });
        }
    }

    /// Opens a stream that is paused now, resets one that is stuck.
    fn reopen(&mut self, key: PeerKey) {
        let (now, half) = (self.now, self.config.knobs.stall / 2);
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        match peer.link.status() {
            Status::Paused(_) => self.open_stream(key),
            Status::Open(_) if peer.link.is_stuck(now, half) => self.on_stalled(key),
            _ => {}
        }
    }

    /// Closes a connection whose stream does not work.
    fn give_up(&mut self, key: PeerKey) {
        let (now, half) = (self.now, self.config.knobs.stall / 2);
        let Some(peer) = self.peers.get(&key) else {
            return;
        };
        let stuck = match peer.link.status() {
            Status::Paused(_) | Status::Opening => true,
            Status::Open(_) => peer.link.is_stuck(now, half),
            Status::Unsupported | Status::Shut => false,
        };
        if stuck {
            self.close_stalled(key);
        }
    }

    /// A connection is closed because it stalled: its peer is asked for if it does not come back at once.
    pub(super) fn want_back(&mut self, peer: PeerId) {
        if self.wanted.len() < MAX_STALLED {
            let first = (self.now + FIRST_WANT, 0);
            self.wanted.entry(peer).or_insert(first);
        }
    }

    /// Connected, and not by a connection that is about to be closed.
    fn is_back(&self, peer: &PeerId) -> bool {
        let peer = self.by_peer.get(peer).and_then(|key| self.peers.get(key));
        peer.is_some_and(|peer| peer.link.status() != Status::Shut)
    }

    /// Direct peers, and those that stalled, are to be dialled when they are missing.
    fn want_missing(&mut self) {
        for peer in &self.config.direct {
            if !self.by_peer.contains_key(peer) {
                self.wanted.entry(*peer).or_default();
            }
        }
        let due: Vec<(PeerId, u32)> = self
            .wanted
            .iter()
            .filter(|(peer, (at, _))| *at <= self.now || self.is_back(peer))
            .map(|(peer, (_, times))| (*peer, *times))
            .collect();
        for (peer, times) in due {
            let given_up = times >= STALLED_WANTS && !self.config.direct.contains(&peer);
            if given_up || self.is_back(&peer) {
                self.wanted.remove(&peer);
                continue;
            }
            let pause = (FIRST_WANT * (1 << times.min(6))).min(LAST_WANT);
            // Jitter, so that a site that lost its anchor does not come back at once.
            let pause = pause / 1024 * (1024 - self.dice.below(256) as u32);
            self.wanted
                .insert(peer, (self.now + pause, times.saturating_add(1)));
            self.event(Event::WantPeer { peer });
        }
    }
}
