//! Who is told of a version, and who tells: peers of `/gemba/names/1`, topics, the DHT. Each works without the others.
//!
//! Nothing is queued but the fact that something is owed: what is sent is always the newest, so a thousand updates made offline travel as one.

use super::{Core, Time, budget::Bucket, is_remote};
use crate::{
    dht,
    error::RecordError,
    io::{Output, Source},
    name::Name,
    record::{Candidate, Record},
    wall::Wall,
    wire::{Interest, Message},
};
use libp2p_identity::PeerId;
use std::{collections::BTreeMap, time::Duration};

/// Interests in one message, so that it stays far below its limit.
const INTERESTS_A_MESSAGE: usize = 256;
/// Names that are not in the book and that a peer may be interested in.
const UNKNOWN_INTERESTS: usize = 64;
/// Neighbours of a topic that are remembered.
const MAX_NEIGHBOURS: usize = 64;
/// Answers of one query of the DHT that are remembered; Kubo collects 16.
const MAX_ANSWERS: usize = 64;
/// After the DHT came or grew, what is kept is put or looked for within this time: by then more servers are known.
const DHT_SOON: Duration = Duration::from_secs(60);
/// Records that are no records, until a peer is not listened to.
const STRIKES: u32 = 4;
/// For how long, the first time; it doubles.
const MUTED: Duration = Duration::from_secs(600);
/// Others that said the same, so that this device need not.
const ENOUGH_HEARD: u32 = 2;
/// Peers that a name is compared with at each pull.
const PULLED: usize = 2;
/// A peer that says again and again that he has nothing is sent the record this often.
const SEND_AGAIN: Duration = Duration::from_secs(5);

/// A peer of `/gemba/names/1`, or one that brings records by another route.
#[derive(Debug)]
pub(super) struct Peer {
    /// Names he wants to be told of, and what he has.
    wants: BTreeMap<Name, Want>,
    connected: bool,
    budget: Bucket,
    messages: Bucket,
    strikes: u32,
    bans: u32,
    muted_until: Time,
}

/// A query of the DHT, and who answered what. It is over when all that came of it is judged and durable.
#[derive(Debug, Default)]
pub(super) struct Query {
    answers: Vec<(PeerId, Option<Candidate>)>,
    ended: bool,
    /// Whether it also looks if enough servers have the record.
    tends: bool,
}

#[derive(Debug, Default, Clone, Copy)]
struct Want {
    has: Option<(u64, Wall)>,
    sent: Option<((u64, Wall), Time)>,
}

impl Core {
    pub(super) fn on_connected(&mut self, peer: PeerId) {
        let Some(entry) = self.peer_mut(peer) else {
            self.counters.interests_dropped += 1;
            return;
        };
        entry.connected = true;
        let interests: Vec<Interest> = self
            .entries
            .values()
            .filter(|entry| entry.joined)
            .map(|entry| interest(entry.name, entry.record()))
            .collect();
        for part in interests.chunks(INTERESTS_A_MESSAGE) {
            let message = Message {
                interests: part.to_vec(),
                ..Message::default()
            };
            self.send(peer, message);
        }
        self.ask_peer_for_lookups();
    }

    /// What the peer caused is gone, but for a ban, which he would otherwise shake off by coming again.
    pub(super) fn on_disconnected(&mut self, peer: &PeerId, now: Time) {
        let Some(entry) = self.peers.get_mut(peer) else {
            return;
        };
        entry.connected = false;
        entry.wants.clear();
        if entry.muted_until <= now {
            self.peers.remove(peer);
        }
    }

    pub(super) fn on_message(&mut self, peer: PeerId, message: Message, now: Time) {
        let Some(entry) = self.peers.get_mut(&peer).filter(|entry| entry.connected) else {
            return;
        };
        if entry.muted_until > now || !entry.messages.take(now) {
            self.counters.over_budget += 1;
            return;
        }
        for name in message.gone {
            entry.wants.remove(&name);
        }
        for interest in message.interests {
            self.on_interest(peer, interest, now);
        }
        for (name, bytes) in message.records {
            self.on_record(name, &bytes, Source::Peer(peer), None, now);
        }
    }

    fn on_interest(&mut self, peer: PeerId, interest: Interest, now: Time) {
        // What is not in the book is remembered for a few names only: it may be followed here later.
        let limit = if self.entries.contains_key(&interest.name) {
            self.config.max_interests
        } else {
            UNKNOWN_INTERESTS.min(self.config.max_interests)
        };
        let Some(entry) = self.peers.get_mut(&peer) else {
            return;
        };
        if !entry.wants.contains_key(&interest.name) && entry.wants.len() >= limit {
            self.counters.interests_dropped += 1;
            return;
        }
        entry.wants.entry(interest.name).or_default().has = interest.has;
        self.push_to(peer, interest.name, now);
        self.ask_if_behind(peer, interest);
    }

    /// A peer says that he has a newer one: he is told what is here, and sends it. Nobody answers to that, so it ends there.
    fn ask_if_behind(&mut self, peer: PeerId, theirs: Interest) {
        let Some(entry) = self.entries.get(&theirs.name).filter(|entry| entry.joined) else {
            return;
        };
        let ours = interest(theirs.name, entry.record());
        if theirs.has > ours.has {
            let message = Message {
                interests: vec![ours],
                ..Message::default()
            };
            self.send(peer, message);
        }
    }

    /// Sends the durable record to a peer that wants it and has none or an older one.
    fn push_to(&mut self, peer: PeerId, name: Name, now: Time) {
        let wall = self.wall(now);
        let Some(record) = self
            .entries
            .get(&name)
            .and_then(|entry| entry.record())
            .filter(|record| !record.is_expired(wall))
            .cloned()
        else {
            return;
        };
        let rank = rank(&record);
        let Some(want) = self
            .peers
            .get_mut(&peer)
            .filter(|peer| peer.connected)
            .and_then(|peer| peer.wants.get_mut(&name))
        else {
            return;
        };
        let has_it = want.has.is_some_and(|has| has >= rank);
        let was_sent = want
            .sent
            .is_some_and(|(sent, at)| sent >= rank && now < at + SEND_AGAIN);
        if has_it || was_sent {
            return;
        }
        want.sent = Some((rank, now));
        self.counters.announced += 1;
        let message = Message {
            records: vec![(name, record.bytes().to_vec())],
            ..Message::default()
        };
        self.send(peer, message);
    }

    fn send(&mut self, peer: PeerId, message: Message) {
        self.outputs.push_back(Output::Send { peer, message });
    }

    /// What everybody connected is told at once: an interest, or that it has gone.
    fn send_to_all(&mut self, message: &Message) {
        let connected: Vec<PeerId> = self.connected().collect();
        for peer in connected {
            self.send(peer, message.clone());
        }
    }

    fn connected(&self) -> impl Iterator<Item = PeerId> {
        self.peers
            .iter()
            .filter(|(_, peer)| peer.connected)
            .map(|(id, _)| *id)
    }

    pub(super) fn connected_count(&self) -> usize {
        self.connected().count()
    }

    fn peer_mut(&mut self, peer: PeerId) -> Option<&mut Peer> {
        if !self.peers.contains_key(&peer) && self.peers.len() >= self.config.max_peers {
            let idle = self
                .peers
                .iter()
                .find(|(_, peer)| !peer.connected)
                .map(|(id, _)| *id)?;
            self.peers.remove(&idle);
        }
        let (burst, per_second) = (self.config.peer_burst, self.config.peer_per_second);
        Some(self.peers.entry(peer).or_insert_with(|| Peer {
            wants: BTreeMap::new(),
            connected: false,
            budget: Bucket::per_second(burst, per_second),
            messages: Bucket::per_second(burst.saturating_mul(2), per_second),
            strikes: 0,
            bans: 0,
            muted_until: Time::ZERO,
        }))
    }

    /// Whether a record of this origin may cost a signature. Those for whom there is no place in the table share one budget.
    pub(super) fn may_cost(&mut self, source: Source, now: Time) -> bool {
        let Some(peer) = source.peer() else {
            return true;
        };
        match self.peer_mut(peer) {
            Some(peer) => peer.muted_until <= now && peer.budget.take(now),
            None => self.strangers.take(now),
        }
    }

    /// A record that nobody honest sends. A neighbour on a topic and a server of the DHT only pass on what they were given, so they are not blamed.
    pub(super) fn strike(&mut self, source: Source, cause: RecordError, now: Time) {
        let (Source::Peer(id) | Source::Fetch(id)) = source else {
            return;
        };
        let Some(peer) = self.peer_mut(id) else {
            return;
        };
        peer.strikes += 1;
        if peer.strikes >= STRIKES {
            peer.strikes = 0;
            peer.muted_until = now + MUTED * 2u32.pow(peer.bans.min(10));
            peer.bans += 1;
            self.outputs
                .push_back(Output::Misbehaved { peer: id, cause });
        }
    }

    /// Begins to keep a name alive, or to look for it: says so to everybody.
    pub(super) fn begin(&mut self, name: Name, now: Time) {
        let (pull, reannounce) = (self.config.pull, self.config.reannounce);
        let (pull_at, announce_at, dht_at) = (
            now + self.spread.around(pull),
            now + self.spread.around(reannounce),
            now + self.spread.around(DHT_SOON),
        );
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        if entry.is_kept() {
            entry.pull_at.get_or_insert(pull_at);
            entry.announce_at.get_or_insert(announce_at);
            entry.dht_at.get_or_insert(dht_at);
        }
        if !entry.joined {
            entry.joined = true;
            // Whoever is asked what he has is told of nothing, so that he answers.
            let known = entry.record().filter(|_| !self.lookups.contains_key(&name));
            let has = interest(name, known);
            self.outputs.push_back(Output::Join(name));
            let message = Message {
                interests: vec![has],
                ..Message::default()
            };
            self.send_to_all(&message);
        }
        if self.is_missing(name) {
            self.ask_dht(name);
        }
        self.arm(name, now);
    }

    /// Asks everybody connected for his record, whatever is known here.
    pub(super) fn ask_again(&mut self, name: Name) {
        let message = Message {
            interests: vec![interest(name, None)],
            ..Message::default()
        };
        self.send_to_all(&message);
    }

    /// The reverse, if nobody here wants the name any more. Its record stays as one that was resolved.
    pub(super) fn give_up(&mut self, name: Name, now: Time) {
        if self
            .entries
            .get(&name)
            .is_some_and(|entry| !entry.is_kept())
        {
            self.leave(name);
            self.arm(name, now);
        }
    }

    pub(super) fn leave(&mut self, name: Name) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        entry.pull_at = None;
        entry.announce_at = None;
        entry.dht_at = None;
        entry.owed = false;
        entry.owed_at = None;
        entry.neighbours.clear();
        if entry.joined {
            entry.joined = false;
            self.outputs.push_back(Output::Leave(name));
            let message = Message {
                gone: vec![name],
                ..Message::default()
            };
            self.send_to_all(&message);
        }
    }

    /// A version is durable: everybody is to be told, but for whom it came from. Many at once travel as the newest.
    pub(super) fn spread_out(&mut self, name: Name, except: Option<PeerId>, now: Time) {
        let wall = self.wall(now);
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let Some(record) = entry.told.best.as_ref().map(|held| held.record.clone()) else {
            return;
        };
        if let Some(want) = except
            .and_then(|peer| self.peers.get_mut(&peer))
            .and_then(|peer| peer.wants.get_mut(&name))
        {
            want.has = want.has.max(Some(rank(&record)));
        }
        // A record past its end goes nowhere (clause NA-15).
        if record.is_expired(wall) {
            return;
        }
        entry.owed = true;
        if entry.budget.take(now) {
            self.pay(name, now);
        } else {
            entry.owed_at = Some(entry.budget.ready_at());
        }
        self.arm(name, now);
    }

    /// Sends what is owed. What came by the topic went on along it by the verdict, and is not said there again.
    fn pay(&mut self, name: Name, now: Time) {
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        entry.owed_at = None;
        let source = entry.told.best.as_ref().map(|held| held.source);
        let by_topic = matches!(source, Some(Source::Topic(_)));
        let puts = entry.told.own || source == Some(Source::Local);
        if by_topic {
            entry.owed = false;
        }
        let connected: Vec<PeerId> = self.connected().collect();
        for peer in connected {
            self.push_to(peer, name, now);
        }
        self.announce_if_owed(name, now);
        if puts && self.dht {
            self.put_into_dht(name, None, now);
        }
    }

    /// Publishes on the topic as soon as somebody reads it.
    fn announce_if_owed(&mut self, name: Name, now: Time) {
        let wall = self.wall(now);
        let reannounce = self.config.reannounce;
        let next = now + self.spread.around(reannounce);
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let record = entry.told.best.as_ref().map(|held| held.record.clone());
        let Some(record) = record.filter(|record| !record.is_expired(wall)) else {
            return;
        };
        if !entry.owed || entry.neighbours.is_empty() {
            return;
        }
        entry.owed = false;
        entry.heard = 0;
        entry.announce_at = entry.announce_at.map(|_| next);
        self.counters.announced += 1;
        self.outputs.push_back(Output::Announce(record));
    }

    /// Kubo asks a neighbour that joins for its record, and so does this.
    pub(super) fn on_neighbour(&mut self, name: Name, peer: PeerId, joined: bool, now: Time) {
        let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.joined) else {
            return;
        };
        if !joined {
            entry.neighbours.remove(&peer);
            return;
        }
        if entry.neighbours.len() >= MAX_NEIGHBOURS || !entry.neighbours.insert(peer) {
            return;
        }
        self.outputs.push_back(Output::Fetch { name, peer });
        self.note_asked(name, 1);
        self.announce_if_owed(name, now);
        self.arm(name, now);
    }

    pub(super) fn on_dht(&mut self, ready: bool, now: Time) {
        let came = ready && !self.dht;
        self.dht = ready;
        if !ready {
            self.queries.clear();
        }
        if !came {
            return;
        }
        for name in self.entries.keys().copied().collect::<Vec<_>>() {
            if self.lookups.contains_key(&name) || self.is_unsure(name) || self.is_missing(name) {
                self.ask_dht(name);
            }
            let soon = now + self.spread.around(DHT_SOON);
            if let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.is_kept()) {
                // Own records that were published while there was no DHT; what others published is looked for.
                entry.dht_at = Some(if entry.told.own { now } else { soon });
            }
            self.arm(name, now);
        }
    }

    /// What was put while there were few servers is put anew; what they did not have is looked for among the others.
    pub(super) fn on_dht_grew(&mut self, now: Time) {
        for name in self.entries.keys().copied().collect::<Vec<_>>() {
            if self.is_missing(name) {
                self.ask_dht(name);
            }
            let soon = now + self.spread.around(DHT_SOON);
            if let Some(entry) = self.entries.get_mut(&name).filter(|entry| entry.told.own) {
                entry.dht_at = Some(entry.dht_at.map_or(soon, |at| at.min(soon)));
            }
            self.arm(name, now);
        }
    }

    /// Kept, and nothing is known of it.
    fn is_missing(&self, name: Name) -> bool {
        let entry = self.entries.get(&name);
        entry.is_some_and(|entry| entry.is_kept() && entry.record().is_none())
    }

    fn is_unsure(&self, name: Name) -> bool {
        self.entries
            .get(&name)
            .is_some_and(|entry| entry.wish.own && entry.wish.unsure)
    }

    pub(super) fn ask_dht(&mut self, name: Name) {
        if !self.dht || self.queries.contains_key(&name) {
            return;
        }
        self.queries.insert(name, Query::default());
        self.note_asked(name, 1);
        self.outputs.push_back(Output::DhtGet(name));
    }

    /// What a server of the DHT answered, unverified: a hint about whom to repair.
    pub(super) fn note_answer(&mut self, candidate: &Candidate, source: Source) {
        self.note(candidate.name(), source, Some(candidate.clone()));
    }

    pub(super) fn note_known(&mut self, name: Name, source: Source) {
        let record = self.entries.get(&name).and_then(|entry| entry.record());
        let record = record.map(Record::to_candidate);
        self.note(name, source, record);
    }

    pub(super) fn note(&mut self, name: Name, source: Source, answer: Option<Candidate>) {
        let (Source::Dht(peer), Some(query)) = (source, self.queries.get_mut(&name)) else {
            return;
        };
        query.answers.retain(|(known, _)| *known != peer);
        if query.answers.len() < MAX_ANSWERS {
            query.answers.push((peer, answer));
        }
    }

    pub(super) fn on_no_record(&mut self, name: Name, source: Source, now: Time) {
        self.note(name, source, None);
        if is_remote(source) && self.broken.is_none() {
            self.on_heard(name, now);
        }
        // The DHT was asked as one, and answers with the end of the query.
        if !matches!(source, Source::Dht(_)) {
            self.note_answered(name, now);
        }
    }

    pub(super) fn on_dht_done(&mut self, name: Name, now: Time) {
        let Some(query) = self.queries.get_mut(&name) else {
            return;
        };
        query.ended = true;
        self.note_answered(name, now);
        self.finish_query(name, now);
    }

    /// The query has ended, and all that came of it is judged and durable: those with an older record, or none, are given the newest; a record
    /// that few have is put anew.
    pub(super) fn finish_query(&mut self, name: Name, now: Time) {
        let has_ended = self.queries.get(&name).is_some_and(|query| query.ended);
        if !has_ended || self.is_unsettled(name) {
            return;
        }
        let Some(Query { answers, tends, .. }) = self.queries.remove(&name) else {
            return;
        };
        let wall = self.wall(now);
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let Some(record) = entry.record().filter(|record| !record.is_expired(wall)) else {
            return;
        };
        let repaired = dht::repair(record, &answers);
        let holders = answers.len() - repaired.len();
        if tends && entry.is_kept() && holders < self.config.dht_enough {
            self.put_into_dht(name, None, now);
        } else if !repaired.is_empty() {
            self.put_into_dht(name, Some(repaired), now);
        }
    }

    fn put_into_dht(&mut self, name: Name, peers: Option<Vec<PeerId>>, now: Time) {
        let wall = self.wall(now);
        let interval = self.config.dht_put;
        let next = now + self.spread.around(interval);
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        let Some(record) = entry.told.best.as_ref().map(|held| held.record.clone()) else {
            return;
        };
        if record.is_expired(wall) {
            return;
        }
        if entry.told.own && peers.is_none() {
            entry.dht_at = Some(next);
        }
        self.outputs.push_back(Output::DhtPut { record, peers });
    }

    /// A remote has an older one: a peer is sent the newer; a topic where older ones go round is told soon.
    pub(super) fn on_behind(&mut self, name: Name, source: Source, now: Time) {
        match source {
            Source::Peer(peer) => {
                if let Some(want) = self
                    .peers
                    .get_mut(&peer)
                    .and_then(|peer| peer.wants.get_mut(&name))
                {
                    want.has = None;
                }
                self.push_to(peer, name, now);
            }
            Source::Topic(_) => {
                let soon = now + self.spread.around(Duration::from_secs(2));
                if let Some(entry) = self.entries.get_mut(&name) {
                    entry.heard = 0;
                    entry.announce_at = entry.announce_at.map(|at| at.min(soon));
                }
                self.arm(name, now);
            }
            _ => {}
        }
    }

    pub(super) fn on_routes_due(&mut self, name: Name, now: Time) {
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let is_due = |at: Option<Time>| at.is_some_and(|at| at <= now);
        let (owed, announce) = (is_due(entry.owed_at), is_due(entry.announce_at));
        let (pull, dht) = (is_due(entry.pull_at), is_due(entry.dht_at));
        if owed && let Some(entry) = self.entries.get_mut(&name) {
            entry.budget.take(now);
            self.pay(name, now);
        }
        if announce {
            self.reannounce(name, now);
        }
        if pull {
            self.pull(name, now);
        }
        if dht {
            self.tend_dht(name, now);
        }
    }

    /// Says the newest again, unless enough others did: so a followed name lives on when its publisher is gone, and a hundred followers say
    /// it about as often as two.
    fn reannounce(&mut self, name: Name, now: Time) {
        let interval = self.config.reannounce;
        let next = now + self.spread.around(interval);
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        entry.announce_at = Some(next);
        if entry.heard >= ENOUGH_HEARD {
            entry.heard = 0;
            self.counters.suppressed += 1;
            return;
        }
        entry.owed = true;
        self.announce_if_owed(name, now);
    }

    /// Compares the name with a few peers: whoever has less is sent the record, whoever has more sends it.
    fn pull(&mut self, name: Name, now: Time) {
        let interval = self.config.pull;
        let next = now + self.spread.around(interval);
        let connected: Vec<PeerId> = self.connected().collect();
        let first = self.spread.below(connected.len());
        let Some(entry) = self.entries.get_mut(&name) else {
            return;
        };
        entry.pull_at = Some(next);
        let has = interest(name, entry.record());
        let neighbour = entry.neighbours.iter().next().copied();
        for offset in 0..PULLED.min(connected.len()) {
            let peer = connected[(first + offset) % connected.len()];
            let message = Message {
                interests: vec![has],
                ..Message::default()
            };
            self.send(peer, message);
        }
        match neighbour {
            _ if !connected.is_empty() => {}
            Some(peer) => self.outputs.push_back(Output::Fetch { name, peer }),
            // Only the DHT is left.
            None => self.ask_dht(name),
        }
    }

    /// Own records are put in time, others' are looked for and put where few have them.
    fn tend_dht(&mut self, name: Name, now: Time) {
        let (tend, own) = (
            self.config.dht_tend,
            self.entries.get(&name).is_some_and(|entry| entry.told.own),
        );
        let next = now + self.spread.around(tend);
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.dht_at = Some(next);
        }
        if !self.dht {
            return;
        }
        if own && !self.is_unsure(name) {
            self.put_into_dht(name, None, now);
        } else {
            self.ask_dht(name);
            if let Some(query) = self.queries.get_mut(&name) {
                query.tends = true;
            }
        }
    }
}

fn rank(record: &Record) -> (u64, Wall) {
    (record.sequence(), record.validity())
}

fn interest(name: Name, record: Option<&Record>) -> Interest {
    Interest {
        name,
        has: record.map(rank),
    }
}
