//! The stream to one peer: opened, watched, reset when nothing moves, opened again, for ever (specs/gossip.md GO-14).
//!
//! A stream that stands and takes nothing is worse than none. What was written and not confirmed for [`crate::Config::stall`] is a stall:
//! the stream is reset and opened again, with a pause that grows and without a last attempt. A second stall closes the connection. A peer
//! that answers probes is also asked now and then whether it reads; others are trusted as long as bytes leave.

use std::collections::VecDeque;
use std::time::Duration;

use super::peers::Peer;
use super::{CloseCause, Core, Event, Output, PeerKey, Time};
use crate::wire::Version;

/// Frames that the driver holds of one peer.
const CREDIT: usize = 2;
/// Pauses between two attempts to open a stream.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(60);
/// A peer is connected to anew for saying nothing once in this time, and so many at a time are remembered.
const MUTE_PAUSE: Duration = Duration::from_secs(600);
const MAX_MUTE: usize = 1024;
/// A stream that worked for so long starts anew with its pauses and stalls.
const PROVEN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Status {
    /// Asked for.
    Opening,
    Open(Version),
    /// Asked for again at that time.
    Paused(Time),
    /// The peer speaks another language.
    Unsupported,
    /// Nothing is wanted of it: banned, or to be closed.
    Shut,
}

/// A frame at the driver.
#[derive(Clone, Copy, Debug)]
pub(super) struct InFlight {
    pub(super) bytes: usize,
    pub(super) messages: usize,
    pub(super) at: Time,
}

/// The stream of one peer.
pub(super) struct Link {
    state: Status,
    since: Time,
    attempts: u32,
    was_lost: bool,
    /// A stream stood before: the peer speaks gossipsub.
    stood: bool,
    stalls: u32,
    last_stall: Option<Time>,
    in_flight: VecDeque<InFlight>,
    /// When bytes left, or when there were none to leave.
    progress: Time,
    pub(super) last_written: Option<Time>,
    /// When the peer answered a probe last; one that never did is not asked.
    answered: Option<Time>,
    asked: Option<Time>,
    /// It said something, or opened a stream to do so.
    heard: bool,
    /// When its subscriptions were told again last, and whether they are to be.
    retold: Option<Time>,
    retell: bool,
}

impl Link {
    pub(super) fn new(now: Time) -> Self {
        Self {
            state: Status::Shut,
            since: now,
            attempts: 0,
            was_lost: false,
            stood: false,
            stalls: 0,
            last_stall: None,
            in_flight: VecDeque::new(),
            progress: now,
            last_written: None,
            answered: None,
            asked: None,
            heard: false,
            retold: None,
            retell: false,
        }
    }

    pub(super) fn status(&self) -> Status {
        self.state
    }

    pub(super) fn stalls(&self) -> u32 {
        self.stalls
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, Status::Open(_))
    }

    pub(super) fn version(&self) -> Option<Version> {
        match self.state {
            Status::Open(version) => Some(version),
            _ => None,
        }
    }

    /// The version, if there is credit for another frame.
    pub(super) fn writable(&self) -> Option<Version> {
        self.version().filter(|_| self.in_flight.len() < CREDIT)
    }

    pub(super) fn sent(&mut self, frame: InFlight) {
        if self.in_flight.is_empty() {
            self.progress = frame.at;
        }
        self.in_flight.push_back(frame);
    }

    pub(super) fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// Something is out and did not move for `time`.
    pub(super) fn is_stuck(&self, now: Time, time: Duration) -> bool {
        !self.in_flight.is_empty() && now.saturating_sub(self.progress) >= time
    }

    /// It stands, and took what was written to it so far.
    pub(super) fn is_proven(&self) -> bool {
        self.is_open()
            && (self.in_flight.is_empty() || self.last_written.is_some_and(|at| at >= self.since))
    }

    pub(super) fn on_heard(&mut self) {
        self.heard = true;
    }

    fn lost(&mut self) {
        self.in_flight.clear();
        self.asked = None;
        self.was_lost = true;
    }

    /// Bytes move.
    fn moved(&mut self, now: Time) {
        self.progress = now;
        if now.saturating_sub(self.since) >= PROVEN
            && self
                .last_stall
                .is_none_or(|at| now.saturating_sub(at) >= PROVEN)
        {
            (self.attempts, self.stalls) = (0, 0);
        }
    }
}

impl Core {
    pub(super) fn open_stream(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        (peer.link.state, peer.link.since) = (Status::Opening, self.now);
        let peer = peer.id;
        self.out.push_back(Output::OpenStream { peer });
        let stall = self.now + self.config.knobs.stall * 2;
        self.wake(stall);
    }

    pub(super) fn on_stream_opened(&mut self, key: PeerKey, version: Version) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.banned || peer.link.state == Status::Shut {
            return;
        }
        let link = &mut peer.link;
        (link.state, link.since) = (Status::Open(version), self.now);
        link.stood = true;
        link.in_flight.clear();
        link.progress = self.now;
        link.asked = None;
        if std::mem::take(&mut link.was_lost) {
            self.counters.reopened += 1;
            let peer = peer.id;
            self.event(Event::StreamReopened { peer });
        }
        self.say_hello(key);
        self.regraft(key);
        self.own.stir = true;
    }

    /// Tells a peer everything that it must know, on a fresh stream.
    fn say_hello(&mut self, key: PeerKey) {
        let nonce = self.dice.next_u64() >> 1;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.lane.begin();
        peer.told.clear();
        peer.link.retell = false;
        // Asks once: who answers can be asked again when it falls silent.
        peer.lane.ping = Some(nonce);
        self.counters.probes_out += 1;
        self.announce_all(key);
    }

    fn announce_all(&mut self, key: PeerKey) {
        let words: Vec<_> = self
            .topics
            .iter()
            .filter_map(|(_, topic)| Some((topic.name.clone(), self.word(topic, key)?)))
            .collect();
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        for (name, word) in words {
            peer.lane.announce(&name, Some(word));
        }
        self.ready.insert(key);
    }

    /// A peer that opens a stream may have forgotten what it was told on ours: a Kubo that finds the end of an earlier connection late takes it for that of
    /// the present one, drops all that it knows of the peer, and opens a new stream (GO-26).
    pub(super) fn on_peer_opened(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.link.heard = true;
            // A stream that is yet to be opened begins with all of it anyhow.
            peer.link.retell = peer.link.is_open();
            self.tell_again(key);
        }
    }

    /// Closes connections to peers that take our stream and open none of their own, so that nothing of theirs comes: a Kubo is so for as long as the connection stands when it
    /// has taken five of them for gone in ten minutes (GO-27). A new connection ends it.
    pub(super) fn close_mute(&mut self) {
        let (now, patience) = (self.now, self.config.knobs.stall * 2);
        self.mute.retain(|_, until| *until > now);
        let is_mute = |peer: &&Peer| {
            let link = &peer.link;
            let stands = link.is_open() && now >= link.since + patience;
            stands && !link.heard && !self.mute.contains_key(&peer.id)
        };
        let mute = self.peers.values().filter(is_mute).map(|peer| peer.id);
        let mute: Vec<_> = mute
            .take(MAX_MUTE.saturating_sub(self.mute.len()))
            .collect();
        for id in mute {
            self.mute.insert(id, now + MUTE_PAUSE);
            self.event(Event::PeerStalled { peer: id });
            self.with(&id, Self::close_stalled);
        }
    }

    /// Those who were to wait, at a heartbeat.
    pub(super) fn tell_all_again(&mut self) {
        let due = self.peers.iter().filter(|(_, peer)| peer.link.retell);
        let due: Vec<PeerKey> = due.map(|(key, _)| *key).collect();
        due.into_iter().for_each(|key| self.tell_again(key));
    }

    /// Subscriptions and meshes, once a heartbeat whatever the peer does.
    fn tell_again(&mut self, key: PeerKey) {
        let (now, beat) = (self.now, self.config.knobs.heartbeat);
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let link = &mut peer.link;
        let is_early = link.retold.is_some_and(|at| now.saturating_sub(at) < beat);
        if !link.retell || is_early || !link.is_open() {
            return;
        }
        (link.retell, link.retold) = (false, Some(now));
        peer.lane.forget_announced();
        self.announce_all(key);
        self.regraft(key);
    }

    pub(super) fn on_stream_lost(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if matches!(
            peer.link.state,
            Status::Shut | Status::Unsupported | Status::Paused(_)
        ) {
            return;
        }
        let lost: usize = peer.link.in_flight.iter().map(|f| f.messages).sum();
        self.counters.lane_lost += lost as u64;
        self.pause(key);
    }

    /// Opens the stream again after a while, with jitter, so that a hundred do not come back at once.
    fn pause(&mut self, key: PeerKey) {
        let jitter = self.dice.below(512) as u32;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.link.lost();
        peer.missed = true;
        let attempts = peer.link.attempts.min(6);
        peer.link.attempts = attempts + 1;
        let longest = (FIRST_PAUSE * (1 << attempts)).min(LAST_PAUSE);
        let pause = longest / 1024 * (1024 - jitter);
        let at = self.now + pause.max(FIRST_PAUSE);
        #[cfg(feature = "sim")]
        let at = match self.config.planted == Some(crate::sim::Planted::NeverReopens) {
            true => Time::MAX / 2,
            false => at,
        };
        peer.link.state = Status::Paused(at);
        self.wake(at);
    }

    /// Who had a stream before has not forgotten its language: libp2p-gossipsub takes no sixth stream on one connection. On a new one it does.
    pub(super) fn on_unsupported(&mut self, key: PeerKey) {
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if peer.link.state == Status::Shut {
            return;
        }
        if peer.link.stood {
            return self.close_stalled(key);
        }
        peer.link.lost();
        peer.link.state = Status::Unsupported;
    }

    /// Nothing is written to the peer any more.
    pub(super) fn shut(&mut self, key: PeerKey) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.link.lost();
            peer.link.state = Status::Shut;
        }
    }

    pub(super) fn on_written(&mut self, key: PeerKey) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        let Some(frame) = peer.link.in_flight.pop_front() else {
            return;
        };
        peer.link.moved(now);
        peer.link.last_written = Some(now);
        self.counters.bytes_out += frame.bytes as u64;
        self.counters.messages_out += frame.messages as u64;
        if !peer.lane.is_empty() {
            self.ready.insert(key);
        }
        self.own.stir = true;
    }

    pub(super) fn on_progress(&mut self, key: PeerKey) {
        let now = self.now;
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.link.moved(now);
        }
    }

    pub(super) fn on_frame_expired(&mut self, key: PeerKey) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        if let Some(frame) = peer.link.in_flight.pop_front() {
            peer.missed = true;
            self.counters.stale_out += frame.messages as u64;
            // What is behind it begins now.
            peer.link.progress = peer.link.progress.max(frame.at).min(now);
            self.ready.insert(key);
        }
    }

    pub(super) fn on_ping(&mut self, key: PeerKey, nonce: u64) {
        if let Some(peer) = self.peers.get_mut(&key) {
            peer.lane.pong = Some(nonce);
            self.ready.insert(key);
        }
    }

    pub(super) fn on_pong(&mut self, key: PeerKey, _nonce: u64) {
        if let Some(peer) = self.peers.get_mut(&key) {
            self.counters.probes_answered += 1;
            peer.link.answered = Some(self.now);
            peer.link.asked = None;
        }
    }

    /// Looks after all streams: opens what is due, resets what does not move, drops what grew old in the lanes.
    pub(super) fn tend_links(&mut self) {
        let (now, stall) = (self.now, self.config.knobs.stall);
        let mut next: Option<Time> = None;
        let mut due = |at: Time| next = Some(next.map_or(at, |n| n.min(at)));
        let (mut open, mut stalled) = (Vec::new(), Vec::new());
        for (key, peer) in &mut self.peers {
            let stale = peer.lane.drop_stale(now);
            self.counters.stale_out += stale as u64;
            peer.missed |= stale > 0;
            self.own.stir |= stale > 0;
            if let Some(at) = peer.lane.first_expiry() {
                due(at);
            }
            let link = &mut peer.link;
            match link.state {
                Status::Paused(at) if at <= now => open.push(*key),
                Status::Paused(at) => due(at),
                Status::Opening if now >= link.since + stall * 2 => stalled.push(*key),
                Status::Opening => due(link.since + stall * 2),
                Status::Open(_) => {
                    let unanswered = link.asked.is_some_and(|at| now >= at + stall);
                    let stuck = link.is_stuck(now, stall);
                    if unanswered || stuck {
                        stalled.push(*key);
                    } else {
                        if !link.in_flight.is_empty() {
                            due(link.progress + stall);
                        }
                        if let Some(at) = link.asked {
                            due(at + stall);
                        }
                    }
                }
                Status::Unsupported | Status::Shut => {}
            }
        }
        if let Some(at) = next {
            self.wake(at);
        }
        for key in open {
            self.open_stream(key);
        }
        for key in stalled {
            self.on_stalled(key);
        }
    }

    /// First the stream, then the connection.
    pub(super) fn on_stalled(&mut self, key: PeerKey) {
        let now = self.now;
        let Some(peer) = self.peers.get_mut(&key) else {
            return;
        };
        peer.link.stalls += 1;
        peer.link.last_stall = Some(now);
        let (id, again) = (peer.id, peer.link.stalls >= 2);
        let lost: usize = peer.link.in_flight.iter().map(|f| f.messages).sum();
        self.counters.lane_lost += lost as u64;
        self.counters.stalls += 1;
        self.event(Event::PeerStalled { peer: id });
        if again {
            self.close_stalled(key);
        } else {
            self.out.push_back(Output::ResetStream { peer: id });
            self.pause(key);
        }
    }

    /// The connection is to be closed and made anew.
    pub(super) fn close_stalled(&mut self, key: PeerKey) {
        self.shut(key);
        if let Some(peer) = self.peers.get(&key).map(|p| p.id) {
            self.counters.closed_stalled += 1;
            self.want_back(peer);
            self.out.push_back(Output::Close {
                peer,
                cause: CloseCause::Stalled,
            });
        }
    }

    /// Asks peers that answer whether they still read, whether there is traffic or not: bytes leave for a while though nobody reads them.
    pub(super) fn probe(&mut self) {
        let (now, probe) = (self.now, self.config.knobs.probe);
        let mut asked = Vec::new();
        for (key, peer) in &mut self.peers {
            let due = peer
                .link
                .answered
                .is_some_and(|at| now >= at.max(peer.link.since) + probe);
            if peer.link.is_open() && due && peer.link.asked.is_none() {
                peer.link.asked = Some(now);
                peer.lane.ping = Some(self.dice.next_u64() >> 1);
                asked.push(*key);
            }
        }
        self.counters.probes_out += asked.len() as u64;
        if !asked.is_empty() {
            let stall = now + self.config.knobs.stall;
            self.wake(stall);
        }
        self.ready.extend(asked);
    }
}
