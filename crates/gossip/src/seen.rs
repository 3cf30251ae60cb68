//! What was seen: copies by a keyed digest of their bytes, messages by their ids (specs/gossip.md §3).
//!
//! An entry begins as *pending* when bytes are seen for the first time. After the verdict it is *accepted*, *ignored* or *invalid*; the id
//! enters with *accepted* only, so that forged bytes never silence a real message. Every further copy of the same bytes is recognised
//! before it is parsed, counted, and makes the entry young again: what still goes round is not forgotten.
//!
//! It is bounded in entries and so in bytes. When it is full the entry with the least time left goes, but no source loses one while another
//! has more than twice as many: who floods pushes out its own. If what would go is younger than a message may be held anywhere
//! ([`SeenConfig::hold`]), new messages of sources above their fair share are refused instead, since what is forgotten too early goes
//! round again.
//!
//! It is shared: a driver keeps it behind a lock and looks up on the task of each connection. It has no clock; `now` comes in.

use std::collections::HashMap;
use std::time::Duration;

use libp2p_identity::PeerId;
use siphasher::sip::SipHasher13;
use siphasher::sip128::SipHasher13 as SipHasher128;

use crate::Time;
use crate::hash::{Dice, Keyed};

/// Shortest and longest time-to-live.
pub const MIN_TTL: Duration = Duration::from_secs(1);
/// See [`MIN_TTL`].
pub const MAX_TTL: Duration = Duration::from_secs(3600);
/// Most different times-to-live.
pub const MAX_CLASSES: usize = 64;
/// Most senders that are remembered of a message that is pending: the message is not sent back to them.
const MAX_SENDERS: usize = 12;

/// Size and times of a [`Seen`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SeenConfig {
    /// Most entries, 2^10 to 2^24. 56 bytes each: 2^17 are 7 MiB, 2^16 (the default) 3.5 MiB, 2^14 (for tablets) 0.9 MiB.
    pub entries: usize,
    /// How long an entry is kept after the last copy, where the topic says nothing else. Default 120 s, as Kubo.
    pub ttl: Duration,
    /// How long a message may be held by a node before it sends it on: validation deadline and lane age. Default 3 s.
    pub hold: Duration,
}

impl Default for SeenConfig {
    fn default() -> Self {
        Self {
            entries: 1 << 16,
            ttl: Duration::from_secs(120),
            hold: Duration::from_secs(3),
        }
    }
}

/// 128 bits of SipHash-1-3 under a secret key: whoever does not know the key cannot choose bytes that collide, nor bytes that crowd a
/// table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Digest(u64, u64);

/// Computes digests. Copy it to every connection: digests are made outside the lock.
#[derive(Clone, Copy)]
pub struct Digester {
    bytes: (u64, u64),
    id: (u64, u64),
}

impl std::fmt::Debug for Digester {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Digester(secret)")
    }
}

impl Digester {
    fn new(key: [u8; 32]) -> Self {
        let word = |i: usize| {
            key[i * 8..i * 8 + 8]
                .iter()
                .fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        Self {
            bytes: (word(0), word(1)),
            id: (word(2), word(3)),
        }
    }

    /// Of the bytes of a message.
    #[must_use]
    pub fn digest(&self, bytes: &[u8]) -> Digest {
        crate::hash::note(bytes.len());
        let hash = SipHasher128::new_with_keys(self.bytes.0, self.bytes.1).hash(bytes);
        Digest(hash.h1, hash.h2)
    }

    /// Of an id. Never 0.
    pub(crate) fn id(&self, id: &[u8]) -> u64 {
        SipHasher13::new_with_keys(self.id.0, self.id.1)
            .hash(id)
            .max(1)
    }
}

/// A peer as the cache knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source(u16);

impl Source {
    /// Ourselves, and all peers beyond 65,535.
    pub const LOCAL: Self = Self(0);
}

/// Names an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Mark(Digest);

impl Mark {
    pub(crate) fn new(digest: Digest) -> Self {
        Self(digest)
    }
}

/// A time-to-live, see [`Seen::class`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Class(u8);

impl Class {
    /// The one of [`SeenConfig::ttl`].
    pub const DEFAULT: Self = Self(0);
}

/// What is known of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Waits for its verdict.
    Pending,
    /// Good; its id is known.
    Accepted,
    /// Neither delivered nor sent on: too old, replayed, not wanted, or no verdict in time.
    Ignored,
    /// Bad bytes: form or signature.
    Invalid,
}

/// What a look at the cache gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sight {
    /// Never seen, or forgotten: entered as pending.
    New(Mark),
    /// Seen; refreshed and counted.
    Known(State),
    /// Not entered.
    Refused(Refusal),
}

/// Why an entry was not made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The source is banned.
    Banned,
    /// More of this source than its share waits for a verdict.
    Pending,
    /// The cache is full of young entries and the source has more than its fair share of them.
    Pressure,
}

/// The cache forgets earlier than it should.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct Pressure {
    /// The youngest age at which an entry had to go.
    pub effective_ttl: Duration,
    /// Entries that went before their time.
    pub evicted: u64,
    /// New messages refused instead.
    pub refused: u64,
}

/// What the cache counted since start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[non_exhaustive]
pub struct SeenCounters {
    /// Messages looked at.
    pub sightings: u64,
    /// Copies of what was pending, accepted or ignored.
    pub duplicates: u64,
    /// Copies of bad bytes.
    pub invalid_duplicates: u64,
    /// Messages that were new.
    pub entered: u64,
    /// Of banned sources.
    pub refused_banned: u64,
    /// Of sources with too much that waits for a verdict.
    pub refused_pending: u64,
    /// Under pressure.
    pub refused_pressure: u64,
    /// Entries that went before their time.
    pub evicted: u64,
    /// Entries that went at their time.
    pub expired: u64,
}

const NONE: u32 = u32::MAX;
/// Entries that are looked at for one of a source that has many: whoever has half of the cache is missed by one search of 65,536.
const LOOKS: usize = 16;

/// 40 bytes.
struct Entry {
    digest: Digest,
    /// Keyed hash of the id; 0 while there is none.
    id: u64,
    prev: u32,
    next: u32,
    /// Milliseconds since start, modulo 2^32: 49 days, while no entry outlives an hour.
    last: u32,
    source: Source,
    state: State,
    class: Class,
}

/// Entries of one time-to-live in the order in which they were last seen.
struct List {
    ttl: u32,
    head: u32,
    tail: u32,
}

#[derive(Clone)]
struct Slot {
    peer: PeerId,
    connected: bool,
    banned: bool,
    entries: u32,
    pending: u32,
}

/// The cache.
pub struct Seen {
    config: SeenConfig,
    digester: Digester,
    latest: Time,
    slab: Vec<Entry>,
    /// Head of the list of free places in the slab, linked by `next`.
    free: u32,
    len: usize,
    by_digest: Index,
    by_id: Index,
    lists: Vec<List>,
    /// Further senders of what is pending.
    senders: HashMap<u32, Vec<Source>, Keyed>,
    pending: usize,
    slots: Vec<Option<Slot>>,
    free_slots: Vec<u16>,
    by_peer: HashMap<PeerId, Source, Keyed>,
    /// Entries of [`Source::LOCAL`].
    local: u32,
    /// Sources with entries.
    active: usize,
    /// Where in the slab it is looked for somebody's entry.
    dice: Dice,
    counters: SeenCounters,
    pressure: Pressure,
    /// A bug for the simulator to find: copies do not make an entry young again.
    #[cfg(feature = "sim")]
    first_seen: bool,
}

impl Seen {
    /// An empty cache. The key must be random and secret.
    ///
    /// Sizes and times outside what [`SeenConfig`] allows are brought to its limits; [`crate::ConfigBuilder::build`] refuses them.
    #[must_use]
    pub fn new(mut config: SeenConfig, key: [u8; 32]) -> Self {
        config.entries = config.entries.clamp(1 << 10, 1 << 24);
        config.ttl = config.ttl.clamp(MIN_TTL, MAX_TTL);
        let digester = Digester::new(key);
        let keyed = Keyed::new(digester.id.0 ^ digester.bytes.1);
        Self {
            config,
            digester,
            latest: Time::ZERO,
            slab: Vec::with_capacity(config.entries),
            free: NONE,
            len: 0,
            by_digest: Index::new(config.entries),
            by_id: Index::new(config.entries),
            lists: vec![List::new(config.ttl)],
            senders: HashMap::with_hasher(keyed),
            pending: 0,
            slots: vec![None],
            free_slots: Vec::new(),
            by_peer: HashMap::with_hasher(keyed),
            local: 0,
            active: 0,
            dice: Dice::new(digester.id.1),
            counters: SeenCounters::default(),
            pressure: Pressure::default(),
            #[cfg(feature = "sim")]
            first_seen: false,
        }
    }

    /// Plants the bug that copies do not make an entry young again.
    #[cfg(feature = "sim")]
    pub(crate) fn plant_first_seen(&mut self) {
        self.first_seen = true;
    }

    /// What a planted bug does: the id counts as known before its signature was checked.
    #[cfg(feature = "sim")]
    pub(crate) fn name_unverified(&mut self, mark: Mark, id: u64) {
        if let Some(at) = self.find(mark.0) {
            self.name(at, id);
        }
    }

    /// Makes digests, outside the lock.
    #[must_use]
    pub fn digester(&self) -> Digester {
        self.digester
    }

    /// Makes a peer known as a source; the same one until it left and nothing of it is remembered.
    pub fn join(&mut self, peer: PeerId) -> Source {
        if let Some(source) = self.by_peer.get(&peer).copied() {
            if let Some(slot) = self.slot(source) {
                slot.connected = true;
            }
            return source;
        }
        let source = match self.free_slots.pop() {
            Some(free) => Source(free),
            None if self.slots.len() <= usize::from(u16::MAX) => {
                self.slots.push(None);
                Source((self.slots.len() - 1) as u16)
            }
            None => return Source::LOCAL,
        };
        self.slots[usize::from(source.0)] = Some(Slot {
            peer,
            connected: true,
            banned: false,
            entries: 0,
            pending: 0,
        });
        self.by_peer.insert(peer, source);
        source
    }

    /// The peer is gone. What it sent stays seen.
    pub fn leave(&mut self, peer: &PeerId) {
        let Some(source) = self.by_peer.get(peer).copied() else {
            return;
        };
        for senders in self.senders.values_mut() {
            senders.retain(|s| *s != source);
        }
        if let Some(slot) = self.slot(source) {
            slot.connected = false;
        }
        self.free_if_gone(source);
    }

    /// Shuts a source out, or lets it in again: nothing new of a banned one is entered.
    pub fn set_banned(&mut self, peer: &PeerId, banned: bool) {
        if let Some(source) = self.by_peer.get(peer).copied()
            && let Some(slot) = self.slot(source)
        {
            slot.banned = banned;
        }
    }

    /// Whether frames of the source are worth reading: not while it is banned.
    #[must_use]
    pub fn admits(&self, source: Source) -> bool {
        !self
            .slots
            .get(usize::from(source.0))
            .and_then(Option::as_ref)
            .is_some_and(|slot| slot.banned)
    }

    /// How many more messages of the source may wait for a verdict. A connection that finds none should pause its reading, for at most
    /// 250 ms: control shares the stream.
    #[must_use]
    pub fn room(&self, source: Source) -> usize {
        let free = self.max_pending().saturating_sub(self.pending);
        let mine = self
            .slots
            .get(usize::from(source.0))
            .and_then(Option::as_ref)
            .map_or(0, |slot| slot.pending as usize);
        free.saturating_sub(mine)
    }

    /// The peer behind a source, while it is connected.
    #[must_use]
    pub fn peer(&self, source: Source) -> Option<PeerId> {
        self.slots
            .get(usize::from(source.0))
            .and_then(Option::as_ref)
            .filter(|slot| slot.connected)
            .map(|slot| slot.peer)
    }

    /// The class of a time-to-live, made if it is new. `None` if it is outside [`MIN_TTL`] to [`MAX_TTL`], or there are [`MAX_CLASSES`].
    pub fn class(&mut self, ttl: Duration) -> Option<Class> {
        if !(MIN_TTL..=MAX_TTL).contains(&ttl) {
            return None;
        }
        let millis = ttl.as_millis() as u32;
        if let Some(at) = self.lists.iter().position(|list| list.ttl == millis) {
            return Some(Class(at as u8));
        }
        if self.lists.len() == MAX_CLASSES {
            return None;
        }
        self.lists.push(List::new(ttl));
        Some(Class((self.lists.len() - 1) as u8))
    }

    /// Looks a message up by the digest of its bytes: refreshes and counts what is known, enters what is new as pending.
    pub fn sight(&mut self, digest: Digest, from: Source, now: Time) -> Sight {
        let now = self.tick(now);
        self.counters.sightings += 1;
        if !self.admits(from) {
            self.counters.refused_banned += 1;
            return Sight::Refused(Refusal::Banned);
        }
        if let Some(at) = self.find(digest) {
            if self.is_over(at, now) {
                self.counters.expired += 1;
                self.remove(at);
            } else {
                return Sight::Known(self.again(at, from, now));
            }
        }
        if self.room(from) == 0 {
            self.counters.refused_pending += 1;
            return Sight::Refused(Refusal::Pending);
        }
        if !self.make_room(Some(from), now) {
            return Sight::Refused(Refusal::Pressure);
        }
        self.counters.entered += 1;
        self.insert(digest, State::Pending, Class::DEFAULT, from, now);
        Sight::New(Mark(digest))
    }

    /// Gives a pending entry its verdict, its time-to-live and, if accepted, its id. Returns who else sent the same bytes meanwhile.
    pub fn settle(
        &mut self,
        mark: Mark,
        state: State,
        id: Option<&[u8]>,
        class: Class,
        now: Time,
    ) -> Vec<Source> {
        let now = self.tick(now);
        let (at, senders) = match self.find(mark.0) {
            Some(at) => {
                let senders = self.senders.remove(&at).unwrap_or_default();
                self.unlink(at);
                let entry = &mut self.slab[at as usize];
                let before = std::mem::replace(&mut entry.state, state);
                entry.class = class;
                let source = entry.source;
                self.link(at, now);
                let change =
                    i32::from(state == State::Pending) - i32::from(before == State::Pending);
                self.count_pending(source, change);
                (at, senders)
            }
            None => {
                self.make_room(None, now);
                let at = self.insert(mark.0, state, class, Source::LOCAL, now);
                (at, Vec::new())
            }
        };
        if let Some(id) = id.filter(|_| state == State::Accepted) {
            self.name(at, self.digester.id(id));
        }
        senders
    }

    /// Takes a pending entry back: the next copy is new again.
    pub fn forget(&mut self, mark: Mark) {
        if let Some(at) = self.find(mark.0)
            && self.slab[at as usize].state == State::Pending
        {
            self.remove(at);
        }
    }

    /// Hands a pending entry on to the next source that sent the same bytes. Without one it is forgotten.
    pub(crate) fn hand_on(&mut self, mark: Mark) -> Option<Source> {
        let at = self.find(mark.0)?;
        let entry = &self.slab[at as usize];
        if entry.state != State::Pending {
            return None;
        }
        let before = entry.source;
        let Some(heir) = self.next_sender(at) else {
            self.remove(at);
            return None;
        };
        self.count_pending(before, -1);
        self.count_entries(before, -1);
        self.slab[at as usize].source = heir;
        self.count_entries(heir, 1);
        self.count_pending(heir, 1);
        Some(heir)
    }

    fn next_sender(&mut self, at: u32) -> Option<Source> {
        let senders = self.senders.get_mut(&at)?;
        let next = (!senders.is_empty()).then(|| senders.remove(0));
        if senders.is_empty() {
            self.senders.remove(&at);
        }
        next
    }

    /// Whether a message with this id was accepted and is not forgotten. Does not refresh.
    #[must_use]
    pub fn knows(&self, id: &[u8], now: Time) -> bool {
        self.knows_hash(self.digester.id(id), now)
    }

    pub(crate) fn knows_hash(&self, hash: u64, now: Time) -> bool {
        let now = millis(now.max(self.latest));
        self.by_id
            .find(hash, |at| self.slab[at as usize].id == hash)
            .is_some_and(|at| !self.is_over(at, now))
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        let now = millis(self.latest);
        self.lists
            .iter()
            .filter(|list| list.head != NONE)
            .map(|list| {
                let age = now.wrapping_sub(self.slab[list.head as usize].last);
                let left = list.ttl.saturating_sub(age);
                self.latest + Duration::from_millis(u64::from(left))
            })
            .min()
    }

    /// Forgets what is over.
    pub fn expire(&mut self, now: Time) {
        let now = self.tick(now);
        self.drop_over(now);
    }

    fn drop_over(&mut self, now: u32) {
        for class in 0..self.lists.len() {
            loop {
                let head = self.lists[class].head;
                if head == NONE || !self.is_over(head, now) {
                    break;
                }
                self.counters.expired += 1;
                self.remove(head);
            }
        }
    }

    /// What was forgotten too early since the last call.
    pub fn take_pressure(&mut self) -> Option<Pressure> {
        let pressure = std::mem::take(&mut self.pressure);
        (pressure.evicted + pressure.refused > 0).then_some(pressure)
    }

    /// Entries.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Entries that wait for their verdict.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.pending
    }

    /// What was counted.
    #[must_use]
    pub fn counters(&self) -> SeenCounters {
        self.counters
    }

    /// Memory that is taken, in bytes: all of it, whether used yet or not.
    #[must_use]
    pub fn memory(&self) -> usize {
        let senders: usize = self.senders.values().map(|s| s.capacity() * 2).sum();
        self.slab.capacity() * size_of::<Entry>()
            + self.by_digest.memory()
            + self.by_id.memory()
            + self.senders.capacity() * (size_of::<(u32, Vec<Source>)>() + 1)
            + senders
            + self.slots.capacity() * size_of::<Option<Slot>>()
            + self.by_peer.capacity() * (size_of::<(PeerId, Source)>() + 1)
            + self.free_slots.capacity() * 2
            + self.lists.capacity() * size_of::<List>()
    }

    /// Time never goes back, whichever task looks. After a pause longer than every time-to-live nothing is left.
    fn tick(&mut self, now: Time) -> u32 {
        if now > self.latest {
            if now - self.latest > MAX_TTL {
                self.clear();
            }
            self.latest = now;
        }
        millis(self.latest)
    }

    fn clear(&mut self) {
        for class in 0..self.lists.len() {
            while self.lists[class].head != NONE {
                self.counters.expired += 1;
                self.remove(self.lists[class].head);
            }
        }
    }

    fn max_pending(&self) -> usize {
        self.config.entries / 4
    }

    fn find(&self, digest: Digest) -> Option<u32> {
        self.by_digest
            .find(digest.0, |at| self.slab[at as usize].digest == digest)
    }

    fn is_over(&self, at: u32, now: u32) -> bool {
        let entry = &self.slab[at as usize];
        now.wrapping_sub(entry.last) >= self.lists[usize::from(entry.class.0)].ttl
    }

    fn again(&mut self, at: u32, from: Source, now: u32) -> State {
        #[cfg(feature = "sim")]
        let renews = !self.first_seen;
        #[cfg(not(feature = "sim"))]
        let renews = true;
        // Seen in this millisecond already: among those the order is of no account.
        if renews && self.slab[at as usize].last != now {
            self.unlink(at);
            self.link(at, now);
        }
        let entry = &self.slab[at as usize];
        if entry.state == State::Invalid {
            self.counters.invalid_duplicates += 1;
        } else {
            self.counters.duplicates += 1;
        }
        if entry.state == State::Pending && entry.source != from && from != Source::LOCAL {
            let senders = self.senders.entry(at).or_default();
            if senders.len() < MAX_SENDERS && !senders.contains(&from) {
                senders.push(from);
            }
        }
        entry.state
    }

    /// Makes room for one entry, of `from` if it may be refused.
    fn make_room(&mut self, from: Option<Source>, now: u32) -> bool {
        if self.len < self.config.entries {
            return true;
        }
        self.drop_over(now);
        if self.len < self.config.entries {
            return true;
        }
        let Some(oldest) = self.least_left(now) else {
            return true;
        };
        let victim = self.victim(oldest, now);
        let age = now.wrapping_sub(self.slab[victim as usize].last);
        let age = Duration::from_millis(u64::from(age));
        let first = self.pressure == Pressure::default();
        if first || age < self.pressure.effective_ttl {
            self.pressure.effective_ttl = age;
        }
        let share = self.config.entries / self.active.max(1);
        if age < self.config.hold && from.is_some_and(|from| self.entries_of(from) >= share) {
            self.pressure.refused += 1;
            self.counters.refused_pressure += 1;
            return false;
        }
        self.pressure.evicted += 1;
        self.counters.evicted += 1;
        self.remove(victim);
        true
    }

    /// The entry with the least time left.
    fn least_left(&self, now: u32) -> Option<u32> {
        let left = |list: &&List| {
            let age = now.wrapping_sub(self.slab[list.head as usize].last);
            list.ttl.saturating_sub(age)
        };
        let heads = self.lists.iter().filter(|list| list.head != NONE);
        heads.min_by_key(left).map(|list| list.head)
    }

    /// Who goes in a full cache: the oldest, unless another source has more than twice as many entries as its source. Then it is the oldest of
    /// some that are looked at, of the source with most.
    fn victim(&mut self, oldest: u32, now: u32) -> u32 {
        let of_oldest = self.entries_of(self.slab[oldest as usize].source);
        if of_oldest > self.len / 3 {
            return oldest;
        }
        let (mut victim, mut most) = (oldest, (2 * of_oldest, u32::MAX));
        for _ in 0..LOOKS {
            let at = self.dice.below(self.slab.len());
            let entry = &self.slab[at];
            let found = (self.entries_of(entry.source), now.wrapping_sub(entry.last));
            if found > most {
                (victim, most) = (at as u32, found);
            }
        }
        victim
    }

    fn entries_of(&self, source: Source) -> usize {
        if source == Source::LOCAL {
            return self.local as usize;
        }
        self.slots
            .get(usize::from(source.0))
            .and_then(Option::as_ref)
            .map_or(0, |slot| slot.entries as usize)
    }

    fn insert(
        &mut self,
        digest: Digest,
        state: State,
        class: Class,
        source: Source,
        now: u32,
    ) -> u32 {
        // A connection may still read what came before its end was told.
        let source = match self.slot(source) {
            Some(_) => source,
            None => Source::LOCAL,
        };
        let entry = Entry {
            digest,
            id: 0,
            prev: NONE,
            next: NONE,
            last: now,
            source,
            state,
            class,
        };
        let at = if self.free == NONE {
            self.slab.push(entry);
            (self.slab.len() - 1) as u32
        } else {
            let at = self.free;
            self.free = self.slab[at as usize].next;
            self.slab[at as usize] = entry;
            at
        };
        self.len += 1;
        self.link(at, now);
        self.by_digest.insert(digest.0, at);
        self.count_pending(source, i32::from(state == State::Pending));
        self.count_entries(source, 1);
        at
    }

    fn remove(&mut self, at: u32) {
        self.unlink(at);
        let entry = &mut self.slab[at as usize];
        let (digest, id, source) = (entry.digest, std::mem::take(&mut entry.id), entry.source);
        let pending = entry.state == State::Pending;
        entry.next = self.free;
        self.free = at;
        self.len -= 1;
        let slab = &self.slab;
        self.by_digest
            .remove(digest.0, at, |at| slab[at as usize].digest.0);
        if id != 0 {
            self.by_id.remove(id, at, |at| slab[at as usize].id);
        }
        if pending {
            self.count_pending(source, -1);
            self.senders.remove(&at);
        }
        self.count_entries(source, -1);
    }

    fn count_entries(&mut self, source: Source, change: i32) {
        let entries = match self.slot(source) {
            Some(slot) => &mut slot.entries,
            None => &mut self.local,
        };
        let before = *entries;
        *entries = before.saturating_add_signed(change);
        let after = *entries;
        match (before, after) {
            (0, 1..) => self.active += 1,
            (1.., 0) => {
                self.active -= 1;
                self.free_if_gone(source);
            }
            _ => {}
        }
    }

    fn count_pending(&mut self, source: Source, change: i32) {
        self.pending = self.pending.saturating_add_signed(change as isize);
        if let Some(slot) = self.slot(source) {
            slot.pending = slot.pending.saturating_add_signed(change);
        }
    }

    fn name(&mut self, at: u32, id: u64) {
        let slab = &self.slab;
        if self
            .by_id
            .find(id, |at| slab[at as usize].id == id)
            .is_none()
        {
            self.slab[at as usize].id = id;
            self.by_id.insert(id, at);
        }
    }

    /// Appends to the list of its class, as seen now.
    fn link(&mut self, at: u32, now: u32) {
        let list = &mut self.lists[usize::from(self.slab[at as usize].class.0)];
        let tail = std::mem::replace(&mut list.tail, at);
        if tail == NONE {
            list.head = at;
        } else {
            self.slab[tail as usize].next = at;
        }
        let entry = &mut self.slab[at as usize];
        (entry.prev, entry.next, entry.last) = (tail, NONE, now);
    }

    fn unlink(&mut self, at: u32) {
        let entry = &self.slab[at as usize];
        let (prev, next) = (entry.prev, entry.next);
        let list = &mut self.lists[usize::from(entry.class.0)];
        if prev == NONE {
            list.head = next;
        } else {
            self.slab[prev as usize].next = next;
        }
        if next == NONE {
            list.tail = prev;
        } else {
            self.slab[next as usize].prev = prev;
        }
    }

    fn slot(&mut self, source: Source) -> Option<&mut Slot> {
        self.slots.get_mut(usize::from(source.0))?.as_mut()
    }

    /// A source that left is remembered as long as one of its entries.
    fn free_if_gone(&mut self, source: Source) {
        let place = &mut self.slots[usize::from(source.0)];
        if let Some(slot) = place
            && !slot.connected
            && slot.entries == 0
        {
            self.by_peer.remove(&slot.peer);
            *place = None;
            self.free_slots.push(source.0);
        }
    }
}

impl std::fmt::Debug for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Seen({} of {} entries, {} pending)",
            self.len, self.config.entries, self.pending
        )
    }
}

impl List {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl: ttl.as_millis() as u32,
            head: NONE,
            tail: NONE,
        }
    }
}

fn millis(time: Time) -> u32 {
    time.as_millis() as u32
}

/// A table of places in the slab, by hash: open, linear, at most half full. Hashes are keyed, so their low bits are as good as any.
struct Index {
    /// Place + 1; 0 is empty, so that fresh memory of the system needs not be touched.
    places: Vec<u32>,
    mask: usize,
}

impl Index {
    fn new(entries: usize) -> Self {
        let len = (entries * 2).next_power_of_two();
        Self {
            places: vec![0; len],
            mask: len - 1,
        }
    }

    fn memory(&self) -> usize {
        self.places.capacity() * size_of::<u32>()
    }

    #[inline]
    fn find(&self, hash: u64, is: impl Fn(u32) -> bool) -> Option<u32> {
        let mut i = hash as usize & self.mask;
        loop {
            match self.places[i] {
                0 => return None,
                place if is(place - 1) => return Some(place - 1),
                _ => i = (i + 1) & self.mask,
            }
        }
    }

    fn insert(&mut self, hash: u64, at: u32) {
        let mut i = hash as usize & self.mask;
        while self.places[i] != 0 {
            i = (i + 1) & self.mask;
        }
        self.places[i] = at + 1;
    }

    /// Takes out `at` and moves up what was pushed behind it.
    fn remove(&mut self, hash: u64, at: u32, hash_of: impl Fn(u32) -> u64) {
        let mut i = hash as usize & self.mask;
        while self.places[i] != at + 1 {
            if self.places[i] == 0 {
                return;
            }
            i = (i + 1) & self.mask;
        }
        let mut hole = i;
        loop {
            i = (i + 1) & self.mask;
            let place = self.places[i];
            if place == 0 {
                break;
            }
            let home = hash_of(place - 1) as usize & self.mask;
            if i.wrapping_sub(home) & self.mask >= i.wrapping_sub(hole) & self.mask {
                self.places[hole] = place;
                hole = i;
            }
        }
        self.places[hole] = 0;
    }
}
