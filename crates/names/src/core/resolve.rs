//! Names that are asked for and not known, or not known well enough: all routes are asked, the first good answer that is durable is the answer.

use super::{Core, Time};
use crate::{
    error::{Refused, ResolveError},
    io::{Output, Resolved},
    name::Name,
    wall::Wall,
};
use std::time::Duration;

/// Names that are looked for at the same time.
const MAX_LOOKUPS: usize = 256;
/// Commands that wait for one name.
const MAX_WAITING: usize = 64;

/// A name that is looked for.
#[derive(Debug)]
pub(super) struct Lookup {
    waiting: Vec<u64>,
    asked: u32,
    answers: u32,
    expired: Option<Wall>,
    since: Time,
    pub(super) until: Time,
}

impl Core {
    pub(super) fn resolve_for(&mut self, id: u64, name: Name, now: Time) -> Result<(), Refused> {
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.used = now;
        }
        if self.is_fresh(name, now)
            && let Some(resolved) = self.resolve(&name, now)
        {
            let result = Ok(resolved);
            self.outputs.push_back(Output::Resolved { id, result });
            return Ok(());
        }
        self.look_for(id, name, now)
    }

    /// Own and followed names are told by push; others are as fresh as their time to live says.
    fn is_fresh(&self, name: Name, now: Time) -> bool {
        self.entries.get(&name).is_some_and(|entry| {
            let ttl = entry
                .record()
                .map(|record| Duration::from_nanos(record.ttl_ns()));
            let is_within = entry
                .confirmed
                .zip(ttl)
                .is_some_and(|(at, ttl)| now < at.saturating_add(ttl));
            entry.record().is_some() && (entry.is_kept() || is_within) && !entry.stale
        })
    }

    fn look_for(&mut self, id: u64, name: Name, now: Time) -> Result<(), Refused> {
        if let Some(lookup) = self.lookups.get_mut(&name) {
            if lookup.waiting.len() >= MAX_WAITING {
                return Err(too_many(MAX_WAITING));
            }
            lookup.waiting.push(id);
            return Ok(());
        }
        if self.lookups.len() >= MAX_LOOKUPS {
            return Err(too_many(MAX_LOOKUPS));
        }
        self.enter(name, now)?;
        self.lookups.insert(
            name,
            Lookup {
                waiting: vec![id],
                asked: u32::try_from(self.connected_count()).unwrap_or(u32::MAX),
                answers: 0,
                expired: None,
                since: now,
                until: now + self.config.resolve_timeout,
            },
        );
        let known: Vec<_> = self
            .entries
            .get(&name)
            .map(|entry| entry.neighbours.iter().copied().take(4).collect())
            .unwrap_or_default();
        let is_joined = self.entries.get(&name).is_some_and(|entry| entry.joined);
        self.begin(name, now);
        if is_joined {
            self.ask_again(name);
        }
        for peer in known {
            self.note_asked(name, 1);
            self.outputs.push_back(Output::Fetch { name, peer });
        }
        self.ask_dht(name);
        self.arm(name, now);
        Ok(())
    }

    /// Something durable is there: it is the answer to all who wait.
    pub(super) fn answer_lookup(&mut self, name: Name, now: Time) {
        if !self.lookups.contains_key(&name) {
            return;
        }
        let Some(resolved) = self.resolve(&name, now) else {
            return;
        };
        if let Some(lookup) = self.lookups.remove(&name) {
            self.answer_all(lookup.waiting, &Ok(resolved));
        }
        self.give_up(name, now);
        self.arm(name, now);
    }

    fn answer_all(&mut self, waiting: Vec<u64>, result: &Result<Resolved, ResolveError>) {
        for id in waiting {
            let result = result.clone();
            self.outputs.push_back(Output::Resolved { id, result });
        }
    }

    pub(super) fn on_lookup_due(&mut self, name: Name, now: Time) {
        if self
            .lookups
            .get(&name)
            .is_some_and(|lookup| lookup.until <= now)
        {
            self.end_lookup(name, now);
        }
    }

    /// Nobody had anything newer: what is held is the answer, or there is none.
    fn end_lookup(&mut self, name: Name, now: Time) {
        let held = self.resolve(&name, now);
        let Some(lookup) = self.lookups.remove(&name) else {
            return;
        };
        let result = held.ok_or_else(|| match lookup.expired {
            Some(eol) => ResolveError::Expired { name, eol },
            None => ResolveError::NotFound {
                name,
                asked: lookup.asked,
                answers: lookup.answers,
                waited: now.saturating_sub(lookup.since),
            },
        });
        self.answer_all(lookup.waiting, &result);
        self.give_up(name, now);
        self.sweep(name);
        self.arm(name, now);
    }

    pub(super) fn note_asked(&mut self, name: Name, more: u32) {
        if let Some(lookup) = self.lookups.get_mut(&name) {
            lookup.asked = lookup.asked.saturating_add(more);
        }
    }

    /// One of those who were asked has nothing. When all have said so, nobody need wait any longer.
    pub(super) fn note_answered(&mut self, name: Name, now: Time) {
        let Some(lookup) = self.lookups.get_mut(&name) else {
            return;
        };
        lookup.answers = lookup.answers.saturating_add(1);
        self.end_lookup_if_answered(name, now);
    }

    /// What is being judged or written may still be the answer.
    pub(super) fn end_lookup_if_answered(&mut self, name: Name, now: Time) {
        let all_answered = self
            .lookups
            .get(&name)
            .is_some_and(|lookup| lookup.answers > 0 && lookup.answers >= lookup.asked);
        if all_answered && !self.is_unsettled(name) {
            self.end_lookup(name, now);
        }
    }

    pub(super) fn note_expired(&mut self, name: Name, end: Wall) {
        if let Some(lookup) = self.lookups.get_mut(&name) {
            lookup.expired = lookup.expired.max(Some(end));
        }
    }

    /// A peer that came while names are looked for was told of them with the other interests.
    pub(super) fn ask_peer_for_lookups(&mut self) {
        for lookup in self.lookups.values_mut() {
            lookup.asked = lookup.asked.saturating_add(1);
        }
    }
}

fn too_many(limit: usize) -> Refused {
    Refused::Full {
        what: "the list of names that are looked for",
        limit,
        instead: "wait for the answers to the earlier ones",
    }
}
