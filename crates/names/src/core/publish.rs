//! Own names: the next number, the signature, and the renewal in time. Works without a single peer.

use super::{
    Core, Time,
    entry::{Effect, Entry},
};
use crate::{
    error::{Refused, SignError},
    io::{Alarm, Done, Event, Output, Publish, Source},
    name::Name,
    record::{MAX_SEQUENCE, Record, Unsigned},
    wall::Wall,
};
use std::time::Duration;

/// The last number that is published: what is left is for whoever has to overtake a thief.
const LAST_SEQUENCE: u64 = MAX_SEQUENCE - (1 << 16);
/// From here on it is an alarm.
const NEAR_END: u64 = MAX_SEQUENCE - (1 << 32);
/// How far beyond what is known the first number after a fork lies: above what was published since a backup, unless that was more.
const FORK_STEP: u64 = 1 << 16;
/// After a signature that failed.
const SIGN_AGAIN: Duration = Duration::from_secs(60);

/// A record that is being signed.
#[derive(Debug)]
pub(super) struct Signing {
    /// The command, or `None` for a renewal.
    id: Option<u64>,
    name: Name,
    unsigned: Unsigned,
    lifetime_s: u64,
}

impl Core {
    pub(super) fn publish(&mut self, id: u64, wish: Publish, now: Time) -> Result<(), Refused> {
        let name = wish.name;
        let wall = self.wall(now);
        check_value(&wish.value)?;
        let entry = self
            .entries
            .get(&name)
            .filter(|entry| entry.wish.own)
            .ok_or(Refused::NotOwn(name))?;
        if entry.wish.unsure {
            return Err(Refused::RestoredBackup {
                name,
                known: entry.wish.floor.unwrap_or_default(),
                published: entry.reached().unwrap_or_default(),
            });
        }
        if self.signing.len() >= self.config.max_commands {
            return Err(Refused::Full {
                what: "the queue of commands that wait for a signature",
                limit: self.config.max_commands,
                instead: "wait for the answers to the earlier ones",
            });
        }
        let mut unsigned = Unsigned {
            value: wish.value,
            sequence: 0,
            validity: wall.plus(wish.lifetime),
            ttl_ns: u64::try_from(wish.ttl.as_nanos()).unwrap_or(u64::MAX),
            metadata: wish.metadata,
            v1: wish.v1,
        };
        unsigned.sequence = next_sequence(entry, &unsigned, wish.sequence)?;
        self.sign(Some(id), name, unsigned, wish.lifetime.as_secs());
        Ok(())
    }

    fn sign(&mut self, id: Option<u64>, name: Name, unsigned: Unsigned, lifetime_s: u64) {
        self.next_ticket += 1;
        let ticket = self.next_ticket;
        if let Some(entry) = self.entries.get_mut(&name) {
            entry.issued = entry.issued.max(Some(unsigned.sequence));
        }
        self.signing.insert(
            ticket,
            Signing {
                id,
                name,
                unsigned: unsigned.clone(),
                lifetime_s,
            },
        );
        self.outputs.push_back(Output::Sign {
            ticket,
            name,
            unsigned,
        });
    }

    pub(super) fn on_signed(&mut self, ticket: u64, result: Result<Record, String>, now: Time) {
        let Some(waited) = self.signing.remove(&ticket) else {
            return;
        };
        let name = waited.name;
        let is_answer = |record: &Record| {
            record.name() == name
                && record.sequence() == waited.unsigned.sequence
                && record.value() == waited.unsigned.value
        };
        let outcome = match result {
            Ok(record) if is_answer(&record) => self.on_own_record(&waited, record, now),
            Ok(_) => Err(Refused::Sign(
                SignError::Key("another record was signed than was asked for".to_owned())
                    .to_string(),
            )),
            Err(cause) => Err(Refused::Sign(cause)),
        };
        if let Err(cause) = outcome {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.resign_after = now + SIGN_AGAIN;
            }
            self.refuse(waited.id, cause);
        }
        self.arm(name, now);
    }

    fn on_own_record(
        &mut self,
        waited: &Signing,
        record: Record,
        now: Time,
    ) -> Result<(), Refused> {
        let name = waited.name;
        if let Some(cause) = &self.broken {
            return Err(Refused::Disk(cause.clone()));
        }
        let entry = self
            .entries
            .get(&name)
            .filter(|entry| entry.wish.own)
            .ok_or(Refused::GivenUp(name))?;
        let sequence = record.sequence();
        let done = waited
            .id
            .map(|id| Effect::Done(id, Done::Published { sequence }));
        let is_near_end = sequence >= NEAR_END && !entry.near_end_told;
        let newest = entry.wish.best.as_ref();
        match newest {
            Some(best) if record.order(&best.record).is_le() => {
                // A later one of our own came back from the signer first: both are durable when that one is.
                if best.source != Source::Own || best.record.contradicts(&record) {
                    return Err(Refused::Overtaken(name));
                }
                self.change(name, |_| {}, done, now);
            }
            _ => {
                self.take(record, Source::Own, done, now);
                let lifetime_s = waited.lifetime_s;
                self.change(name, |row| row.lifetime_s = lifetime_s, [], now);
            }
        }
        if is_near_end {
            if let Some(entry) = self.entries.get_mut(&name) {
                entry.near_end_told = true;
            }
            let alarm = Alarm::SequenceNearEnd { name, sequence };
            self.outputs.push_back(Output::Event(Event::Alarm(alarm)));
        }
        Ok(())
    }

    fn refuse(&mut self, id: Option<u64>, cause: Refused) {
        if let Some(id) = id {
            self.outputs.push_back(Output::Done {
                id,
                result: Err(cause),
            });
        }
    }

    /// Somebody out there said what he has under the name: the book knows again where it stands (clause NA-18).
    pub(super) fn on_heard(&mut self, name: Name, now: Time) {
        if self
            .entries
            .get(&name)
            .is_some_and(|entry| entry.wish.unsure)
        {
            self.change(name, |row| row.unsure = false, [], now);
        }
    }

    pub(super) fn accept_fork(&mut self, id: u64, name: Name, now: Time) -> Result<(), Refused> {
        let entry = self
            .entries
            .get_mut(&name)
            .filter(|entry| entry.wish.own)
            .ok_or(Refused::NotOwn(name))?;
        let reached = entry.reached();
        if entry.wish.unsure {
            let leap = reached.unwrap_or_default().saturating_add(FORK_STEP);
            entry.issued = Some(leap.min(LAST_SEQUENCE));
        }
        // The leap is durable too: a crash before the next publication does not take it back.
        let floor = entry.issued;
        self.change(
            name,
            |row| {
                row.unsure = false;
                row.floor = row.floor.max(floor);
            },
            [Effect::Done(id, Done::Ok)],
            now,
        );
        Ok(())
    }

    /// When an own record is to be signed anew: when half of its life is over. `None`: never, or not now.
    pub(super) fn renewal_at(&self, entry: &Entry, wall: Wall) -> Option<Wall> {
        let record = entry.newest()?;
        let is_signing = self
            .signing
            .values()
            .any(|waited| waited.name == entry.name);
        let can = entry.wish.own && !entry.wish.unsure && !is_signing && self.broken.is_none();
        let half = Duration::from_secs(entry.wish.lifetime_s / 2);
        // At the end of the calendar there is no later end.
        let is_last = record.validity() == Wall::MAX;
        if !can || half.is_zero() || is_last {
            return None;
        }
        // The half of what is left of a later end is later, too: a record made under a clock of 2099 is not renewed until then.
        let left = record.validity().since(wall);
        Some(wall.plus(left.saturating_sub(half)))
    }

    pub(super) fn sign_anew_if_needed(&mut self, name: Name, now: Time) {
        let wall = self.wall(now);
        let Some(entry) = self.entries.get(&name) else {
            return;
        };
        let is_due = self.renewal_at(entry, wall).is_some_and(|at| at <= wall);
        if !is_due || now < entry.resign_after {
            return;
        }
        let Some(record) = entry.newest() else {
            return;
        };
        let lifetime_s = entry.wish.lifetime_s;
        let validity = wall.plus(Duration::from_secs(lifetime_s));
        if validity <= record.validity() {
            return;
        }
        let metadata = record.metadata().clone();
        let unsigned = Unsigned {
            value: record.value().to_vec(),
            sequence: record.sequence(),
            validity,
            ttl_ns: record.ttl_ns(),
            metadata,
            v1: record.signature_type() != "V2",
        };
        self.sign(None, name, unsigned, lifetime_s);
    }
}

fn check_value(value: &[u8]) -> Result<(), Refused> {
    let text = String::from_utf8_lossy(value);
    let is_path = ["/ipfs/", "/ipns/"].iter().any(|prefix| {
        text.strip_prefix(prefix)
            .is_some_and(|rest| !rest.is_empty())
    });
    let is_text = std::str::from_utf8(value).is_ok();
    let is_cid = value.first().is_some_and(|first| *first != b'/')
        && cid::Cid::try_from(value).is_ok_and(|cid| cid.to_bytes() == value);
    if is_path && is_text || is_cid {
        Ok(())
    } else {
        Err(Refused::Value(text.chars().take(100).collect()))
    }
}

/// Kubo's rule: the number rises when what is said changes, and stays when the same is said for longer. Where a clock went back, so that the new end is not
/// later, it rises too, or nobody would take the record (clause NA-16).
fn next_sequence(entry: &Entry, unsigned: &Unsigned, asked: Option<u64>) -> Result<u64, Refused> {
    let name = entry.name;
    let Some(reached) = entry.reached() else {
        return Ok(asked.unwrap_or(0)).and_then(|sequence| within(name, sequence));
    };
    if let Some(asked) = asked {
        if asked <= reached {
            return Err(Refused::SequenceNotAbove {
                name,
                asked,
                current: reached,
            });
        }
        return within(name, asked);
    }
    let says_the_same = entry.newest().is_some_and(|record| {
        record.sequence() == reached
            && record.value() == unsigned.value
            && record.ttl_ns() == unsigned.ttl_ns
            && record.metadata() == &unsigned.metadata
            && record.validity() < unsigned.validity
    });
    if says_the_same {
        Ok(reached)
    } else {
        within(name, reached.saturating_add(1))
    }
}

fn within(name: Name, sequence: u64) -> Result<u64, Refused> {
    if sequence > LAST_SEQUENCE {
        Err(Refused::SequenceEnd { name, sequence })
    } else {
        Ok(sequence)
    }
}
