//! One name in memory: what is durable, what is to be, and what is told once it is.

use super::{Time, budget::Bucket};
use crate::{
    io::{Done, Event, Verdict},
    name::Name,
    record::Record,
    row::Row,
};
use libp2p_identity::PeerId;
use std::collections::{BTreeSet, VecDeque};

/// What happens when a change is durable, and not before (clause NA-10).
#[derive(Debug)]
pub(super) enum Effect {
    Tell(Event),
    /// The best record is another one. Built when it happens: of several changes in one flush only the newest is told.
    Changed,
    Completed,
    Done(u64, Done),
    Verdict(u64, Verdict),
    /// Spread it, but not to where it came from.
    Spread(Option<PeerId>),
}

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) name: Name,
    /// What is durable. Readers see nothing else.
    pub(super) told: Row,
    /// What is to be durable.
    pub(super) wish: Row,
    /// Counts the changes of `wish`.
    pub(super) version: u64,
    pub(super) flight: Option<Flight>,
    pub(super) effects: VecDeque<(u64, Effect)>,
    /// The version whose change was told last.
    pub(super) said: Option<Record>,
    /// The highest sequence that went out to be signed.
    pub(super) issued: Option<u64>,
    pub(super) joined: bool,
    pub(super) neighbours: BTreeSet<PeerId>,
    /// What the topic has not been told yet.
    pub(super) owed: bool,
    pub(super) owed_at: Option<Time>,
    pub(super) budget: Bucket,
    /// How often others said the same since this device last did.
    pub(super) heard: u32,
    pub(super) announce_at: Option<Time>,
    pub(super) pull_at: Option<Time>,
    pub(super) dht_at: Option<Time>,
    pub(super) resign_after: Time,
    /// When a remote last said the same or newer.
    pub(super) confirmed: Option<Time>,
    pub(super) used: Time,
    pub(super) stale: bool,
    pub(super) near_end_told: bool,
    pub(super) foreign_told: Option<u64>,
    pub(super) due: Option<Time>,
}

#[derive(Debug)]
pub(super) struct Flight {
    pub(super) ticket: u64,
    pub(super) version: u64,
    pub(super) row: Row,
}

impl Entry {
    pub(super) fn new(name: Name, row: Row, budget: Bucket, now: Time) -> Self {
        Self {
            name,
            said: row.best.as_ref().map(|held| held.record.clone()),
            wish: row.clone(),
            told: row,
            version: 0,
            flight: None,
            effects: VecDeque::new(),
            issued: None,
            joined: false,
            neighbours: BTreeSet::new(),
            owed: false,
            owed_at: None,
            budget,
            heard: 0,
            announce_at: None,
            pull_at: None,
            dht_at: None,
            resign_after: Time::ZERO,
            confirmed: None,
            used: now,
            stale: false,
            near_end_told: false,
            foreign_told: None,
            due: None,
        }
    }

    /// The durable record.
    pub(super) fn record(&self) -> Option<&Record> {
        self.told.best.as_ref().map(|held| &held.record)
    }

    /// The record that is to be durable.
    pub(super) fn newest(&self) -> Option<&Record> {
        self.wish.best.as_ref().map(|held| &held.record)
    }

    /// The highest number that ever was, or may be, told.
    pub(super) fn reached(&self) -> Option<u64> {
        let newest = self.newest().map(|record| record.sequence());
        newest.max(self.wish.floor).max(self.issued)
    }

    /// Somebody on this device wants it kept.
    pub(super) fn is_kept(&self) -> bool {
        self.wish.own || self.wish.followed
    }

    /// Has a record, or is kept: what `max_names` counts.
    pub(super) fn is_name(&self) -> bool {
        self.is_kept() || self.wish.best.is_some()
    }
}
