//! What a server of the DHT keeps: records of names, each verified before it is stored, and who provides what content. Both within bounds.
//!
//! `libp2p-kad` asks before it answers: what is refused here is told so to whoever put it, so that no publisher counts a refusal as a
//! success. That is why the signature is checked here and not on a worker; each peer has a budget of checks.

use crate::{
    core::{Time, budget::Bucket},
    error::RecordError,
    name::Name,
    record::{Candidate, MAX_RECORD_BYTES, Record},
    wall::Wall,
};
use libp2p_identity::PeerId;
use libp2p_kad::{
    ProviderRecord, Record as Raw, RecordKey,
    store::{Error, RecordStore, Result},
};
use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Longest key of a provider record, as Kubo.
const MAX_PROVIDER_KEY: usize = 80;
/// Addresses of one provider that are kept.
const MAX_PROVIDER_ADDRESSES: usize = 8;
/// Peers with a budget of their own; those beyond it share one.
const MAX_BUDGETS: usize = 512;
/// Records that wait for the owner to be told of; the oldest goes, as the book looks for its names by itself.
const MAX_TAKEN: usize = 64;

/// Bounds of what a server keeps. Worst case of memory: `max_bytes`, and 600 bytes a provider record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreLimits {
    /// Records of names. The oldest record of the peer that put most gives way. Default 2,048.
    pub max_records: usize,
    /// Their bytes together. Default 4 MiB.
    pub max_bytes: usize,
    /// Provider records: who has what content. The one that ends first gives way. Default 2,048.
    pub max_providers: usize,
    /// Of one peer; what he says beyond it is refused. Default 512.
    pub max_providers_of_peer: usize,
    /// For one key, as Kademlia's k. Default 20.
    pub max_providers_of_key: usize,
    /// Signatures that one peer may have checked at once, and a second later: 32 and 8.
    pub peer_burst: u32,
    /// See `peer_burst`.
    pub peer_per_second: u32,
}

impl Default for StoreLimits {
    fn default() -> Self {
        Self {
            max_records: 2_048,
            max_bytes: 4 << 20,
            max_providers: 2_048,
            max_providers_of_peer: 512,
            max_providers_of_key: 20,
            peer_burst: 32,
            peer_per_second: 8,
        }
    }
}

/// What others put here and what became of it. Numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct StoreCounters {
    /// Records that were stored.
    pub stored: u64,
    /// Copies of what is stored; they live on from now.
    pub renewed: u64,
    /// Under keys that are not those of names.
    pub foreign: u64,
    /// Too long, malformed, of another key, or badly signed.
    pub invalid: u64,
    /// Past their end of life.
    pub expired: u64,
    /// Older than what is stored.
    pub older: u64,
    /// Beyond what a peer may have checked.
    pub over_budget: u64,
    /// Records that gave way to others.
    pub evicted: u64,
    /// Provider records that were refused or gave way.
    pub providers_dropped: u64,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kept {
    /// Records of names.
    pub records: usize,
    /// Their bytes.
    pub bytes: usize,
    /// Provider records.
    pub providers: usize,
}

/// Why a record was not stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Unfit {
    Foreign,
    Invalid(RecordError),
    Expired,
    Older,
    OverBudget,
    TooLong,
}

#[derive(Debug)]
struct Held {
    raw: Raw,
    record: Record,
    by: PeerId,
    /// Greater is newer here.
    turn: u64,
}

#[derive(Debug)]
pub(super) struct Records {
    local: PeerId,
    limits: StoreLimits,
    held: BTreeMap<Name, Held>,
    bytes: usize,
    providers: HashMap<RecordKey, Vec<ProviderRecord>>,
    provider_count: usize,
    /// Whose message is being handled; `None`: this device's own.
    from: Option<PeerId>,
    wall: Wall,
    now: Time,
    budgets: HashMap<PeerId, Bucket>,
    strangers: Bucket,
    turn: u64,
    taken: VecDeque<(PeerId, Record)>,
    counters: StoreCounters,
}

impl Records {
    pub(super) fn new(local: PeerId, limits: StoreLimits) -> Self {
        Self {
            local,
            strangers: Bucket::per_second(limits.peer_burst, limits.peer_per_second),
            limits,
            held: BTreeMap::new(),
            bytes: 0,
            providers: HashMap::new(),
            provider_count: 0,
            from: None,
            wall: Wall::from_unix(0, 0),
            now: Time::ZERO,
            budgets: HashMap::new(),
            turn: 0,
            taken: VecDeque::new(),
            counters: StoreCounters::default(),
        }
    }

    /// What is put from now on comes from that peer, at that time.
    pub(super) fn hear(&mut self, from: Option<PeerId>, wall: Wall, now: Time) {
        self.from = from;
        self.wall = wall;
        self.now = now;
    }

    /// What a peer may have checked is forgotten with the peer, unless he could get a new budget by coming again at once.
    pub(super) fn forget(&mut self, peer: &PeerId) {
        if let Some(budget) = self.budgets.get_mut(peer)
            && budget.is_full(self.now)
        {
            self.budgets.remove(peer);
        }
    }

    /// The record of a name, unless its life has ended.
    pub(super) fn of(&self, name: &Name) -> Option<&Record> {
        let held = self.held.get(name)?;
        (!held.record.is_expired(self.wall)).then_some(&held.record)
    }

    /// What was put by others and the owner was not told of yet.
    pub(super) fn next_taken(&mut self) -> Option<(PeerId, Record)> {
        self.taken.pop_front()
    }

    pub(super) fn counters(&self) -> StoreCounters {
        self.counters
    }

    pub(super) fn kept(&self) -> Kept {
        Kept {
            records: self.held.len(),
            bytes: self.bytes,
            providers: self.provider_count,
        }
    }

    /// Lets go what has ended; `libp2p-kad` does so only where it is asked for.
    pub(super) fn prune(&mut self, now: Instant) {
        let wall = self.wall;
        let ended = |held: &Held| held.raw.is_expired(now) || held.record.is_expired(wall);
        let gone: Vec<Name> = self
            .held
            .iter()
            .filter(|(_, held)| ended(held))
            .map(|(name, _)| *name)
            .collect();
        for name in gone {
            self.drop_record(&name);
        }
        for of_key in self.providers.values_mut() {
            of_key.retain(|provider| !provider.is_expired(now));
        }
        self.providers.retain(|_, of_key| !of_key.is_empty());
        self.provider_count = self.providers.values().map(Vec::len).sum();
    }

    /// Stores the record if it is one of the name, newest and alive. What costs least is looked at first, the signature last.
    pub(super) fn offer(&mut self, raw: Raw) -> std::result::Result<(), Unfit> {
        let outcome = self.judge(&raw);
        match &outcome {
            Ok(Some(record)) => self.insert(record.clone(), raw),
            Ok(None) => self.renew(raw),
            Err(unfit) => self.count(unfit),
        }
        outcome.map(|_| ())
    }

    /// The record if it is to be stored, nothing if the stored one is the same version.
    fn judge(&mut self, raw: &Raw) -> std::result::Result<Option<Record>, Unfit> {
        let name = Name::from_routing_key(raw.key.as_ref()).map_err(|_| Unfit::Foreign)?;
        if raw.value.len() > MAX_RECORD_BYTES {
            return Err(Unfit::TooLong);
        }
        let held = self.of(&name).cloned();
        if held.as_ref().is_some_and(|held| held.bytes() == raw.value) {
            return Ok(None);
        }
        let candidate = Candidate::decode(name, &raw.value).map_err(Unfit::Invalid)?;
        if candidate.is_expired(self.wall) {
            return Err(Unfit::Expired);
        }
        match held {
            // Around the signed data anything may stand: what is held stays (clause NA-8).
            Some(held) if candidate.is_same_version(&held) => return Ok(None),
            Some(held) if candidate.order(&held).is_lt() => return Err(Unfit::Older),
            _ => {}
        }
        if !self.may_cost() {
            return Err(Unfit::OverBudget);
        }
        candidate.verify().map(Some).map_err(Unfit::Invalid)
    }

    fn may_cost(&mut self) -> bool {
        let Some(peer) = self.from else {
            return true;
        };
        let limits = &self.limits;
        if !self.budgets.contains_key(&peer) && self.budgets.len() >= MAX_BUDGETS {
            let now = self.now;
            self.budgets.retain(|_, budget| !budget.is_full(now));
        }
        if !self.budgets.contains_key(&peer) && self.budgets.len() >= MAX_BUDGETS {
            return self.strangers.take(self.now);
        }
        let budget = self
            .budgets
            .entry(peer)
            .or_insert_with(|| Bucket::per_second(limits.peer_burst, limits.peer_per_second));
        budget.take(self.now)
    }

    fn insert(&mut self, record: Record, raw: Raw) {
        let name = record.name();
        self.drop_record(&name);
        while self.held.len() >= self.limits.max_records
            || self.bytes + record.bytes().len() > self.limits.max_bytes
        {
            let Some(victim) = self.victim() else {
                break;
            };
            self.drop_record(&victim);
            self.counters.evicted += 1;
        }
        self.counters.stored += 1;
        self.bytes += record.bytes().len();
        self.turn += 1;
        let by = self.from.unwrap_or(self.local);
        if self.from.is_some() {
            if self.taken.len() >= MAX_TAKEN {
                self.taken.pop_front();
            }
            self.taken.push_back((by, record.clone()));
        }
        let turn = self.turn;
        self.held.insert(
            name,
            Held {
                raw,
                record,
                by,
                turn,
            },
        );
    }

    /// The oldest record of whoever put most: a flood of one peer drives out his own. Own ones go last.
    fn victim(&self) -> Option<Name> {
        let mut counts: HashMap<PeerId, usize> = HashMap::new();
        for held in self.held.values() {
            *counts.entry(held.by).or_default() += 1;
        }
        let busiest = counts
            .into_iter()
            .max_by_key(|(peer, count)| (*peer != self.local, *count, *peer))
            .map(|(peer, _)| peer)?;
        let of_busiest = self.held.iter().filter(|(_, held)| held.by == busiest);
        of_busiest
            .min_by_key(|(_, held)| held.turn)
            .map(|(name, _)| *name)
    }

    fn drop_record(&mut self, name: &Name) {
        if let Some(held) = self.held.remove(name) {
            self.bytes -= held.record.bytes().len();
        }
    }

    fn renew(&mut self, raw: Raw) {
        self.counters.renewed += 1;
        let held = Name::from_routing_key(raw.key.as_ref())
            .ok()
            .and_then(|name| self.held.get_mut(&name));
        if let Some(held) = held {
            held.raw.expires = held.raw.expires.max(raw.expires);
        }
    }

    fn count(&mut self, unfit: &Unfit) {
        let counter = match unfit {
            Unfit::Foreign => &mut self.counters.foreign,
            Unfit::Invalid(_) | Unfit::TooLong => &mut self.counters.invalid,
            Unfit::Expired => &mut self.counters.expired,
            Unfit::Older => &mut self.counters.older,
            Unfit::OverBudget => &mut self.counters.over_budget,
        };
        *counter += 1;
    }

    fn provide(&mut self, mut record: ProviderRecord) -> bool {
        record.addresses.truncate(MAX_PROVIDER_ADDRESSES);
        let key = record.key.clone();
        if key.as_ref().is_empty() || key.as_ref().len() > MAX_PROVIDER_KEY {
            return false;
        }
        let of_key = self.providers.entry(key.clone()).or_default();
        if let Some(known) = of_key
            .iter_mut()
            .find(|known| known.provider == record.provider)
        {
            *known = record;
            return true;
        }
        let is_room = of_key.len() < self.limits.max_providers_of_key;
        let all = self.providers.values().flatten();
        let of_peer = all
            .filter(|known| known.provider == record.provider)
            .count();
        if !is_room || of_peer >= self.limits.max_providers_of_peer {
            self.providers.retain(|_, of_key| !of_key.is_empty());
            return false;
        }
        if self.provider_count >= self.limits.max_providers {
            self.drop_first_to_end();
        }
        self.providers.entry(key).or_default().push(record);
        self.provider_count += 1;
        true
    }

    fn drop_first_to_end(&mut self) {
        let first = self
            .providers
            .values()
            .flatten()
            .min_by_key(|known| known.expires)
            .map(|known| (known.key.clone(), known.provider));
        if let Some((key, provider)) = first {
            self.counters.providers_dropped += 1;
            self.withdraw(&key, &provider);
        }
    }

    fn withdraw(&mut self, key: &RecordKey, provider: &PeerId) {
        if let Some(of_key) = self.providers.get_mut(key) {
            let before = of_key.len();
            of_key.retain(|known| known.provider != *provider);
            self.provider_count -= before - of_key.len();
            if of_key.is_empty() {
                self.providers.remove(key);
            }
        }
    }
}

/// One store for both tables, as Kubo has it.
#[derive(Debug, Clone)]
pub struct Shared(Arc<Mutex<Records>>);

impl Shared {
    pub(super) fn new(records: Records) -> Self {
        Self(Arc::new(Mutex::new(records)))
    }

    /// Held for a moment, by the swarm's task alone.
    pub(super) fn lock(&self) -> MutexGuard<'_, Records> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl RecordStore for Shared {
    // Only jobs that publish again walk over these, and those are off.
    type RecordsIter<'a> = std::iter::Empty<Cow<'a, Raw>>;
    type ProvidedIter<'a> = std::iter::Empty<Cow<'a, ProviderRecord>>;

    fn get(&self, key: &RecordKey) -> Option<Cow<'_, Raw>> {
        let records = self.lock();
        let name = Name::from_routing_key(key.as_ref()).ok()?;
        let held = records.held.get(&name)?;
        (!held.record.is_expired(records.wall)).then(|| Cow::Owned(held.raw.clone()))
    }

    fn put(&mut self, raw: Raw) -> Result<()> {
        // Either error is a no to whoever sent it; the cause is counted.
        self.lock().offer(raw).map_err(|unfit| match unfit {
            Unfit::TooLong => Error::ValueTooLarge,
            _ => Error::MaxRecords,
        })
    }

    fn remove(&mut self, key: &RecordKey) {
        if let Ok(name) = Name::from_routing_key(key.as_ref()) {
            self.lock().drop_record(&name);
        }
    }

    fn records(&self) -> Self::RecordsIter<'_> {
        std::iter::empty()
    }

    fn add_provider(&mut self, record: ProviderRecord) -> Result<()> {
        let mut records = self.lock();
        if records.provide(record) {
            return Ok(());
        }
        records.counters.providers_dropped += 1;
        Err(Error::MaxProvidedKeys)
    }

    fn providers(&self, key: &RecordKey) -> Vec<ProviderRecord> {
        self.lock().providers.get(key).cloned().unwrap_or_default()
    }

    fn provided(&self) -> Self::ProvidedIter<'_> {
        std::iter::empty()
    }

    fn remove_provider(&mut self, key: &RecordKey, provider: &PeerId) {
        self.lock().withdraw(key, provider);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::disallowed_methods)]
    use super::*;
    use crate::{Keypair, Unsigned};

    const NOW: i64 = 1_800_000_000;

    fn key(number: u16) -> Keypair {
        let mut seed = [9; 32];
        seed[..2].copy_from_slice(&number.to_be_bytes());
        Keypair::ed25519_from_bytes(seed).unwrap()
    }

    fn record(number: u16, sequence: u64, end: i64) -> Record {
        let unsigned = Unsigned::new(*b"/ipfs/bafkqaaa", sequence, Wall::from_unix(end, 0));
        unsigned.sign(&key(number)).unwrap()
    }

    fn raw(record: &Record) -> Raw {
        Raw::new(record.name().routing_key(), record.bytes().to_vec())
    }

    fn records(limits: StoreLimits) -> Records {
        let mut records = Records::new(PeerId::random(), limits);
        records.hear(None, Wall::from_unix(NOW, 0), Time::ZERO);
        records
    }

    fn from(records: &mut Records, peer: PeerId, wall: i64) {
        records.hear(Some(peer), Wall::from_unix(wall, 0), Time::ZERO);
    }

    #[test]
    fn na_29_what_is_not_a_valid_newer_record_is_refused_with_its_cause() {
        let mut records = records(StoreLimits::default());
        from(&mut records, PeerId::random(), NOW);
        let good = record(1, 5, NOW + 100);
        assert_eq!(records.offer(raw(&good)), Ok(()));
        let lower = record(1, 4, NOW + 1_000);
        assert_eq!(records.offer(raw(&lower)), Err(Unfit::Older));
        let ended = record(1, 6, NOW - 1);
        assert_eq!(records.offer(raw(&ended)), Err(Unfit::Expired));
        let mut unsigned = Unsigned::new(*b"/ipfs/bafkqaaa", 7, Wall::from_unix(NOW + 100, 0));
        // The value stands in it once, under the signature.
        unsigned.v1 = false;
        let mut forged = raw(&unsigned.sign(&key(1)).unwrap());
        let at = forged
            .value
            .windows(14)
            .position(|w| w == b"/ipfs/bafkqaaa")
            .unwrap();
        forged.value[at + 13] = b'b';
        assert_eq!(
            records.offer(forged),
            Err(Unfit::Invalid(RecordError::BadSignature(good.name())))
        );
        let of_another = Raw::new(
            record(2, 8, NOW).name().routing_key(),
            good.bytes().to_vec(),
        );
        assert!(matches!(records.offer(of_another), Err(Unfit::Invalid(_))));
        let foreign = Raw::new(b"/pk/abc".to_vec(), good.bytes().to_vec());
        assert_eq!(records.offer(foreign), Err(Unfit::Foreign));
        let long = Raw::new(good.name().routing_key(), vec![0; MAX_RECORD_BYTES + 1]);
        assert_eq!(records.offer(long), Err(Unfit::TooLong));
        assert_eq!(records.of(&good.name()), Some(&good));
        assert_eq!(records.kept().records, 1);
        let counted = records.counters();
        assert_eq!(
            (
                counted.stored,
                counted.older,
                counted.expired,
                counted.invalid,
                counted.foreign
            ),
            (1, 1, 1, 3, 1)
        );
    }

    #[test]
    fn na_29_a_record_past_its_end_is_not_served_and_gives_way_to_any() {
        let mut records = records(StoreLimits::default());
        let peer = PeerId::random();
        from(&mut records, peer, NOW);
        let ending = record(1, 5, NOW + 100);
        records.offer(raw(&ending)).unwrap();
        let shared = Shared::new(records);
        let key = RecordKey::from(ending.name().routing_key());
        assert!(shared.get(&key).is_some());
        from(&mut shared.lock(), peer, NOW + 101);
        assert!(shared.get(&key).is_none(), "its life has ended");
        let lower = record(1, 1, NOW + 1_000);
        assert_eq!(shared.lock().offer(raw(&lower)), Ok(()));
        assert_eq!(shared.get(&key).unwrap().value, lower.bytes());
        from(&mut shared.lock(), peer, NOW + 2_000);
        shared.lock().prune(Instant::now());
        assert_eq!(shared.lock().kept(), Kept::default());
    }

    /// A peer with any number of keys drives out his own records and nobody else's.
    #[test]
    fn na_29_a_flood_of_records_drives_out_its_own() {
        let limits = StoreLimits {
            max_records: 10,
            peer_burst: 1_000,
            ..StoreLimits::default()
        };
        let mut records = records(limits);
        let own = record(500, 1, NOW + 100);
        records.offer(raw(&own)).unwrap();
        let (quiet, flood) = (PeerId::random(), PeerId::random());
        from(&mut records, quiet, NOW);
        for number in 600..603 {
            records.offer(raw(&record(number, 1, NOW + 100))).unwrap();
        }
        from(&mut records, flood, NOW);
        for number in 0..100 {
            assert_eq!(records.offer(raw(&record(number, 1, NOW + 100))), Ok(()));
            assert!(records.kept().records <= 10);
        }
        assert_eq!(records.of(&own.name()), Some(&own));
        for number in 600..603 {
            assert!(records.of(&record(number, 1, NOW).name()).is_some());
        }
        assert!(
            records.of(&record(99, 1, NOW).name()).is_some(),
            "the newest of the flood"
        );
        assert_eq!(records.counters().evicted, 94);
        assert!(records.taken.len() <= MAX_TAKEN);
        let bytes: usize = records
            .held
            .values()
            .map(|held| held.record.bytes().len())
            .sum();
        assert_eq!(records.kept().bytes, bytes);
    }

    #[test]
    fn na_29_the_bytes_of_all_records_are_bounded() {
        let one = record(1, 1, NOW + 100).bytes().len();
        let limits = StoreLimits {
            max_bytes: 3 * one,
            ..StoreLimits::default()
        };
        let mut records = records(limits);
        for number in 0..20 {
            records.offer(raw(&record(number, 1, NOW + 100))).unwrap();
            assert!(records.kept().bytes <= 3 * one);
        }
        assert!(records.kept().records >= 2);
    }

    /// Signatures cost; a peer that sends many that are bad is told no before they are looked at, and others are not.
    #[test]
    fn na_29_each_peer_has_a_budget_of_signatures() {
        let mut records = records(StoreLimits::default());
        let (flood, other) = (PeerId::random(), PeerId::random());
        from(&mut records, flood, NOW);
        let outcomes: Vec<_> = (0..200)
            .map(|number| records.offer(raw(&record(number, 1, NOW + 100))))
            .collect();
        assert_eq!(
            outcomes.iter().filter(|outcome| outcome.is_ok()).count(),
            32
        );
        assert_eq!(outcomes[199], Err(Unfit::OverBudget));
        records.forget(&flood);
        from(&mut records, flood, NOW);
        assert_eq!(
            records.offer(raw(&record(300, 1, NOW + 100))),
            Err(Unfit::OverBudget),
            "it went and came again"
        );
        from(&mut records, other, NOW);
        assert_eq!(records.offer(raw(&record(300, 1, NOW + 100))), Ok(()));
        // Copies cost nothing.
        from(&mut records, flood, NOW);
        assert_eq!(records.offer(raw(&record(0, 1, NOW + 100))), Ok(()));
        assert_eq!(records.counters().renewed, 1);
    }

    #[test]
    fn na_29_provider_records_are_bounded_for_a_key_a_peer_and_in_all() {
        let limits = StoreLimits {
            max_providers: 10,
            max_providers_of_peer: 6,
            max_providers_of_key: 3,
            ..StoreLimits::default()
        };
        let mut shared = Shared::new(records(limits));
        let provider = |key: u8, peer: PeerId| {
            let address = "/ip4/192.168.1.1/tcp/1".parse().unwrap();
            ProviderRecord::new(vec![key; 34], peer, vec![address; 50])
        };
        let peers: Vec<PeerId> = (0..5).map(|_| PeerId::random()).collect();
        let of_one_key: Vec<bool> = peers
            .iter()
            .map(|peer| shared.add_provider(provider(0, *peer)).is_ok())
            .collect();
        assert_eq!(of_one_key, [true, true, true, false, false]);
        let of_one_peer = (1..20)
            .filter(|key| shared.add_provider(provider(*key, peers[4])).is_ok())
            .count();
        assert_eq!(of_one_peer, 6);
        for key in 30..40 {
            let _full = shared.add_provider(provider(key, PeerId::random()));
            assert!(shared.lock().kept().providers <= 10);
        }
        assert_eq!(shared.lock().kept().providers, 10);
        assert!(shared.add_provider(provider(39, peers[0])).is_ok());
        let known = shared.providers(&RecordKey::from(vec![39; 34]));
        assert!(
            known
                .iter()
                .all(|known| known.addresses.len() == MAX_PROVIDER_ADDRESSES)
        );
        assert!(
            shared
                .add_provider(ProviderRecord::new(vec![1; 81], peers[0], Vec::new()))
                .is_err()
        );
        shared.remove_provider(&RecordKey::from(vec![39; 34]), &peers[0]);
        let total: usize = shared.lock().providers.values().map(Vec::len).sum();
        assert_eq!(total, shared.lock().kept().providers);
    }
}
