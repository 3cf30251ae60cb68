//! Which record is taken: from the bytes a route brings to the row that is persisted.

use super::{Core, Time, entry::Effect, is_remote};
use crate::{
    error::{RecordError, Refused},
    io::{Alarm, Done, Event, Output, Source, Verdict, Version},
    name::Name,
    record::{Candidate, Record},
    row::Held,
    wall::Wall,
};

/// A record whose signature is being checked.
#[derive(Debug)]
pub(super) struct Verifying {
    name: Name,
    /// To tell copies apart while the first is being checked.
    candidate: Candidate,
    source: Source,
    token: Option<u64>,
}

impl Verifying {
    pub(super) fn is_of(&self, name: Name) -> bool {
        self.name == name
    }
}

/// What is to be done with a record, judged by what it says.
enum Worth {
    /// It is newer than all.
    Newer,
    /// It is the same.
    Known,
    /// It is older, or loses among equals.
    Older,
    /// Its life has ended, and what is held is better than that.
    Expired,
}

impl Core {
    pub(super) fn on_record(
        &mut self,
        name: Name,
        bytes: &[u8],
        source: Source,
        token: Option<u64>,
        now: Time,
    ) {
        self.counters.records += 1;
        if self.broken.is_some() {
            return self.say(token, Verdict::Ignore);
        }
        let Some(entry) = self
            .entries
            .get(&name)
            .filter(|entry| entry.is_name() || self.lookups.contains_key(&name))
        else {
            self.counters.unknown += 1;
            return self.say(token, Verdict::Ignore);
        };
        // A copy of what is durable, byte for byte, is not even parsed.
        if entry.record().is_some_and(|record| record.bytes() == bytes) && !entry.wish.unsure {
            self.on_known(name, source, now);
            return self.say(token, Verdict::Ignore);
        }
        if !self.may_cost(source, now) {
            self.counters.over_budget += 1;
            return self.say(token, Verdict::Ignore);
        }
        match Candidate::decode(name, bytes) {
            Ok(candidate) => self.on_candidate(candidate, source, token, now),
            Err(cause) => self.on_invalid(name, source, token, cause, now),
        }
    }

    fn on_candidate(
        &mut self,
        candidate: Candidate,
        source: Source,
        token: Option<u64>,
        now: Time,
    ) {
        let name = candidate.name();
        self.note_answer(&candidate, source);
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let contradiction = entry
            .newest()
            .is_some_and(|best| best.contradicts(&candidate));
        let is_new_evidence = contradiction
            && entry
                .wish
                .other
                .as_ref()
                .is_none_or(|other| !other.is_same_version(&candidate));
        let heals = entry.wish.unsure && is_remote(source);
        match self.worth(&candidate, now) {
            Worth::Newer => {}
            // What loses is verified only where its mere existence matters.
            Worth::Older if is_new_evidence || heals => {}
            Worth::Known if heals => {}
            worth => {
                self.on_worthless(&worth, &candidate, source, now);
                return self.say(token, Verdict::Ignore);
            }
        }
        let is_copy = |v: &Verifying| v.candidate.bytes() == candidate.bytes();
        if self.verifying.values().any(is_copy) {
            self.counters.duplicates += 1;
            return self.say(token, Verdict::Ignore);
        }
        if self.verifying.len() >= self.config.max_verifying {
            self.counters.overflow += 1;
            return self.say(token, Verdict::Ignore);
        }
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        self.verifying.insert(
            ticket,
            Verifying {
                name,
                candidate: candidate.clone(),
                source,
                token,
            },
        );
        self.outputs.push_back(Output::Verify { ticket, candidate });
    }

    pub(super) fn on_verified(
        &mut self,
        ticket: u64,
        result: Result<Record, RecordError>,
        now: Time,
    ) {
        let Some(waited) = self.verifying.remove(&ticket) else {
            return;
        };
        self.counters.verified += 1;
        match result {
            // Whoever verifies hands back what he was given.
            Ok(record) if record.bytes() == waited.candidate.bytes() => {
                self.on_good(record, waited.source, waited.token, now);
            }
            Ok(_) => self.say(waited.token, Verdict::Ignore),
            Err(cause) => self.on_invalid(waited.name, waited.source, waited.token, cause, now),
        }
        self.on_settled(waited.name, now);
        self.arm(waited.name, now);
    }

    /// A record of the name's key: taken if it is newer than all, by now.
    fn on_good(&mut self, record: Record, source: Source, token: Option<u64>, now: Time) {
        let name = record.name();
        if self.broken.is_some() || !self.entries.contains_key(&name) {
            return self.say(token, Verdict::Ignore);
        }
        self.alarm_of_contradiction(&record, now);
        match self.worth(&record, now) {
            Worth::Newer => {
                let verdict = token.map(|token| Effect::Verdict(token, Verdict::Accept));
                self.take(record, source, verdict, now);
            }
            worth => {
                self.on_worthless(&worth, &record, source, now);
                self.say(token, Verdict::Ignore);
            }
        }
        // After it was taken: what is learned from others after a restore is no other publisher's.
        if is_remote(source) {
            self.on_heard(name, now);
        }
    }

    /// The record becomes the wish; it is told, and passed on, when it is durable.
    pub(super) fn take(
        &mut self,
        record: Record,
        source: Source,
        effects: impl IntoIterator<Item = Effect>,
        now: Time,
    ) {
        let name = record.name();
        let received = self.wall(now);
        self.counters.taken += 1;
        self.alarm_of_foreign_publisher(&record, source);
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.confirmed = is_remote(source).then_some(now).or(entry.confirmed);
        }
        let all = [Effect::Changed, Effect::Spread(source.peer())]
            .into_iter()
            .chain(effects);
        self.change(
            name,
            |row| {
                let is_evidence_of_older = row
                    .other
                    .as_ref()
                    .is_some_and(|other| other.sequence() != record.sequence());
                if is_evidence_of_older {
                    row.other = None;
                }
                row.best = Some(Held {
                    record,
                    source,
                    received,
                });
            },
            all,
            now,
        );
    }

    /// Clauses NA-7, NA-11 and NA-15.
    fn worth(&self, record: &crate::Content, now: Time) -> Worth {
        let wall = self.wall(now);
        let Some(entry) = self.entries.get(&record.name()) else {
            return Worth::Older;
        };
        let held = match entry.newest() {
            // The number outlives the record.
            None if entry
                .wish
                .floor
                .is_some_and(|floor| record.sequence() < floor) =>
            {
                return Worth::Older;
            }
            None => None,
            Some(held) if record.is_same_version(held) => return Worth::Known,
            Some(held) if record.order(held).is_lt() => return Worth::Older,
            Some(held) => Some(held),
        };
        let is_better_than_held = held.is_some_and(|held| held.is_expired(wall));
        if record.is_expired(wall) && !is_better_than_held {
            Worth::Expired
        } else {
            Worth::Newer
        }
    }

    fn on_worthless(&mut self, worth: &Worth, record: &crate::Content, source: Source, now: Time) {
        let name = record.name();
        match worth {
            Worth::Known => self.on_known(name, source, now),
            Worth::Older => {
                self.counters.older += 1;
                self.on_behind(name, source, now);
            }
            Worth::Expired => {
                self.counters.expired += 1;
                self.note_expired(name, record.validity());
            }
            Worth::Newer => {}
        }
    }

    fn on_known(&mut self, name: Name, source: Source, now: Time) {
        self.counters.duplicates += 1;
        if let Some(entry) = self.entries.get_mut(&name).filter(|_| is_remote(source)) {
            entry.confirmed = Some(now);
            entry.heard += u32::from(matches!(source, Source::Topic(_)));
        }
        self.note_known(name, source);
        if is_remote(source) {
            self.answer_lookup(name, now);
        }
    }

    fn on_invalid(
        &mut self,
        name: Name,
        source: Source,
        token: Option<u64>,
        cause: RecordError,
        now: Time,
    ) {
        self.counters.invalid += 1;
        self.note(name, source, None);
        self.strike(source, cause, now);
        self.say(token, Verdict::Reject);
    }

    /// Two values under one number: an alarm with both, once for each other value; the evidence is kept in the row.
    fn alarm_of_contradiction(&mut self, record: &Record, now: Time) {
        let name = record.name();
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let Some(best) = entry
            .newest()
            .filter(|best| best.contradicts(record))
            .cloned()
        else {
            return;
        };
        let is_told =
            |other: &Record| other.is_same_version(record) || best.is_same_version(record);
        if entry.wish.other.as_ref().is_some_and(is_told) {
            return;
        }
        self.counters.equivocations += 1;
        let (taken, other) = if record.order(&best).is_gt() {
            (record.clone(), best)
        } else {
            (best, record.clone())
        };
        let evidence = other.clone();
        let alarm = Event::Alarm(Alarm::Equivocation { taken, other });
        self.change(
            name,
            |row| row.other = Some(evidence),
            [Effect::Tell(alarm)],
            now,
        );
    }

    fn alarm_of_foreign_publisher(&mut self, record: &Record, source: Source) {
        let Some(entry) = self.entries.get_mut(&record.name()) else {
            return;
        };
        let known = entry.reached();
        let is_foreign = entry.wish.own
            && !entry.wish.unsure
            && !matches!(source, Source::Own | Source::Local)
            && known.is_none_or(|known| record.sequence() > known)
            && entry
                .foreign_told
                .is_none_or(|told| record.sequence() > told);
        if is_foreign {
            entry.foreign_told = Some(record.sequence());
            let record = record.clone();
            self.outputs
                .push_back(Output::Event(Event::Alarm(Alarm::ForeignPublisher {
                    record,
                    known,
                })));
        }
    }

    /// A record that somebody on this device brought. Verified here and now: one command, one signature.
    pub(super) fn put(
        &mut self,
        id: u64,
        name: Name,
        bytes: &[u8],
        now: Time,
    ) -> Result<(), Refused> {
        let record = Record::open(name, bytes).map_err(Refused::Record)?;
        let wall: Wall = self.wall(now);
        if record.is_expired(wall) {
            return Err(Refused::Expired(record.validity()));
        }
        self.enter(name, now)?;
        self.alarm_of_contradiction(&record, now);
        match self.worth(&record, now) {
            Worth::Newer => self.take(record, Source::Local, [Effect::Done(id, Done::Ok)], now),
            Worth::Known => self.change(name, |_| {}, [Effect::Done(id, Done::Ok)], now),
            Worth::Older | Worth::Expired => {
                let current = self.entries.get(&name).and_then(|entry| entry.wish.floor);
                return Err(Refused::Older {
                    name,
                    current: current.unwrap_or_default(),
                    offered: record.sequence(),
                });
            }
        }
        Ok(())
    }

    /// Clause NA-19: the complete version never goes back by itself, and is one that was told.
    pub(super) fn complete(
        &mut self,
        id: u64,
        name: Name,
        version: Version,
        rollback: bool,
        now: Time,
    ) -> Result<(), Refused> {
        let entry = self.entries.get(&name).ok_or(Refused::Unknown(name))?;
        let told = entry.told.best.as_ref().map(|held| &held.record);
        let was_told = match told {
            Some(best) if best.sequence() == version.sequence => best.value() == version.value,
            _ => entry
                .told
                .floor
                .is_some_and(|floor| version.sequence <= floor),
        };
        if !was_told {
            return Err(Refused::NeverTold {
                name,
                sequence: version.sequence,
            });
        }
        if let Some(complete) = &entry.wish.complete
            && complete.sequence > version.sequence
            && !rollback
        {
            return Err(Refused::Backwards {
                name,
                complete: complete.sequence,
                offered: version.sequence,
            });
        }
        let is_new = entry.wish.complete.as_ref() != Some(&version);
        let tell = is_new.then_some(Effect::Completed);
        let effects = tell.into_iter().chain([Effect::Done(id, Done::Ok)]);
        self.change(name, |row| row.complete = Some(version), effects, now);
        Ok(())
    }

    pub(super) fn say(&mut self, token: Option<u64>, verdict: Verdict) {
        if let Some(token) = token {
            self.outputs.push_back(Output::Verdict { token, verdict });
        }
    }
}
