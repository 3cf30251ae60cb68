//! What can be asked at any moment. Every answer about versions is from what is durable: nobody is told what a power cut could take back. Roles are those that
//! were commanded last, so that whoever commands sees what is left to command.

use super::{Core, Time};
use crate::{
    io::{Resolved, Source, Version},
    name::Name,
    record::{Meta, Record},
    wall::Wall,
};
use libp2p_identity::KeyType;
use std::{collections::BTreeMap, time::Duration};

/// All that is known of a name, for operators: as Kubo's `name inspect`, and ours.
#[derive(Debug, Clone, PartialEq)]
pub struct Inspection {
    /// The name.
    pub name: Name,
    /// What it points to, as a path if it is one.
    pub value: String,
    /// The number of the version.
    pub sequence: u64,
    /// End of life.
    pub validity: Wall,
    /// Time to live, in nanoseconds.
    pub ttl_ns: u64,
    /// Kind of the key.
    pub key: KeyKind,
    /// `V1+V2` or `V2`. The second is always verified: nothing else comes into the book.
    pub signature_type: &'static str,
    /// Size of the record, in bytes.
    pub bytes: usize,
    /// From where it came.
    pub source: Source,
    /// How long ago, by wall clock: zero if the clock went back.
    pub age: Duration,
    /// Past its end of life.
    pub stale: bool,
    /// The publisher's own keys.
    pub metadata: BTreeMap<String, Meta>,
    /// This device holds the key.
    pub own: bool,
    /// It is followed.
    pub followed: bool,
    /// The book was restored or damaged, so nothing is published under the name until a peer was heard.
    pub unsure: bool,
    /// The version that is whole on this device.
    pub complete: Option<Version>,
    /// A record that the key signed under the same number for another value.
    pub contradicted_by: Option<Record>,
    /// Number of its last change.
    pub revision: u64,
    /// Neighbours who read its topic.
    pub neighbours: usize,
}

/// A change that somebody who watches may have missed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Its number: the cursor of whoever has seen it.
    pub revision: u64,
    /// Whether it is the complete version that changed, and not the newest.
    pub completed: bool,
    /// That version.
    pub now: Resolved,
}

/// Kind of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyKind {
    /// The usual one.
    Ed25519,
    /// As in some other networks.
    Secp256k1,
    /// Of older nodes.
    Rsa,
    /// Another.
    Other,
}

impl Core {
    /// What a name points to, from the book; never waits, asks nobody.
    pub fn resolve(&self, name: &Name, now: Time) -> Option<Resolved> {
        let entry = self.entries.get(name)?;
        let record = entry.record()?;
        let version = Version {
            sequence: record.sequence(),
            value: record.value().to_vec(),
        };
        let stale = record.is_expired(self.wall(now));
        Some(Resolved {
            name: *name,
            complete: entry.told.complete.as_ref() == Some(&version),
            version,
            stale,
            ttl_ns: if stale { 0 } else { record.ttl_ns() },
        })
    }

    /// The version that is whole on this device, whatever newer one is known (S0.26).
    pub fn resolve_complete(&self, name: &Name, now: Time) -> Option<Resolved> {
        let entry = self.entries.get(name)?;
        let version = entry.told.complete.clone()?;
        let is_newest = |record: &&Record| {
            record.sequence() == version.sequence && record.value() == version.value
        };
        let wall = self.wall(now);
        let record = entry.record().filter(is_newest);
        let valid = record.filter(|record| !record.is_expired(wall));
        Some(Resolved {
            name: *name,
            version,
            complete: true,
            stale: record.is_some() && valid.is_none(),
            ttl_ns: valid.map_or(0, |record| record.ttl_ns()),
        })
    }

    /// The newest record itself, for `get` and for neighbours who fetch it.
    pub fn record(&self, name: &Name) -> Option<&Record> {
        self.entries.get(name)?.record()
    }

    /// What a neighbour who fetches a routing key is given: the record, unless its life has ended.
    pub fn serve(&self, routing_key: &[u8], now: Time) -> Option<&Record> {
        let name = Name::from_routing_key(routing_key).ok()?;
        let wall = self.wall(now);
        self.record(&name).filter(|record| !record.is_expired(wall))
    }

    /// All that is known of a name.
    pub fn inspect(&self, name: &Name, now: Time) -> Option<Inspection> {
        let entry = self.entries.get(name)?;
        let row = &entry.told;
        let held = row.best.as_ref()?;
        let record = &held.record;
        let raw = || String::from_utf8_lossy(record.value()).into_owned();
        Some(Inspection {
            name: *name,
            value: record.path().unwrap_or_else(raw),
            sequence: record.sequence(),
            validity: record.validity(),
            ttl_ns: record.ttl_ns(),
            key: KeyKind::of(record.key().key_type()),
            signature_type: record.signature_type(),
            bytes: record.bytes().len(),
            source: held.source,
            age: self.wall(now).since(held.received),
            stale: record.is_expired(self.wall(now)),
            metadata: record.metadata().clone(),
            own: row.own,
            followed: row.followed,
            unsure: entry.wish.unsure,
            complete: row.complete.clone(),
            contradicted_by: row.other.clone(),
            revision: row.revision(),
            neighbours: entry.neighbours.len(),
        })
    }

    /// Names of which a record is held or wanted, with the roles that they are to have, durable or not: `(name, own, followed)`.
    pub fn names(&self) -> impl Iterator<Item = (Name, bool, bool)> {
        self.entries
            .values()
            .filter(|entry| entry.is_name())
            .map(|entry| (entry.name, entry.wish.own, entry.wish.followed))
    }

    /// The roles that a name is to have, as in [`Core::names`]: `(own, followed)`.
    pub fn roles(&self, name: &Name) -> (bool, bool) {
        let entry = self.entries.get(name);
        entry.map_or((false, false), |entry| {
            (entry.wish.own, entry.wish.followed)
        })
    }

    /// What changed after that revision, as it is now, in the order of the changes: for those who watch and were away. Of each name the newest version
    /// and the complete one are told once, if they are newer.
    pub fn changes_after(&self, revision: u64, now: Time) -> Vec<Change> {
        let mut changes: Vec<Change> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.told.revision() > revision)
            .flat_map(|(name, entry)| {
                let (changed, completed) = (entry.told.changed, entry.told.completed);
                let newest = self.resolve(name, now).map(|now| Change {
                    revision: changed,
                    completed: false,
                    now,
                });
                let complete = self.resolve_complete(name, now).map(|now| Change {
                    revision: completed,
                    completed: true,
                    now,
                });
                newest.into_iter().chain(complete)
            })
            .filter(|change| change.revision > revision)
            .collect();
        changes.sort_by_key(|change| change.revision);
        changes
    }

    /// The number of the last change that was told: a cursor behind everything that is known.
    pub fn revision(&self) -> u64 {
        let told = self.entries.values().map(|entry| entry.told.revision());
        told.max().unwrap_or_default()
    }

    /// The least that the time of day can be, as records are judged by it.
    pub fn wall_clock(&self, now: Time) -> Wall {
        self.wall(now)
    }

    /// Why nothing is accepted any more, if that is so.
    pub fn disk_failure(&self) -> Option<&str> {
        self.broken.as_deref()
    }
}

impl KeyKind {
    /// The kind of a public key.
    pub fn of(kind: KeyType) -> Self {
        match kind {
            KeyType::Ed25519 => Self::Ed25519,
            KeyType::Secp256k1 => Self::Secp256k1,
            KeyType::RSA => Self::Rsa,
            KeyType::Ecdsa => Self::Other,
        }
    }

    /// As Kubo writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Ed25519 => "Ed25519",
            Self::Secp256k1 => "Secp256k1",
            Self::Rsa => "RSA",
            Self::Other => "other",
        }
    }
}
