//! Does another device write with our identity *now*? What comes back from others may be old: a backup came back, and they have what was written after it. Or somebody
//! runs on a copy of the repository and goes on writing. Clocks do not tell the two apart: nobody knows how wrong they are.
//!
//! What tells is an answer. Each opening of the log draws a number. When something of ours comes back that was not here, it says its number in `$opened`, with the numbers
//! of other openings that it finds there. Whoever finds his own among those was heard by somebody who has our key, and since he opened the log: the number was not there before.
//! A backup that came back finds openings of before, which answer nobody. It costs an event for each opening that is in doubt, and one for each that it hears of.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use gemba_log::{Log, LogError, NewEvent, Part, Pattern, Seq, StreamName};
use serde::{Deserialize, Serialize};

use crate::error::{Code, Fail};

/// Where openings say that they are. All nodes keep it, whatever they subscribe to: the devices that run on one repository meet only by way of others.
pub const STREAM: &str = "$opened";
/// Numbers of others that one opening answers, and the last events of each feed that it looks at. More devices than that have other troubles.
const MOST: usize = 64;

/// What an opening says.
#[derive(Debug, Serialize, Deserialize)]
struct Said {
    /// Its number.
    opening: u64,
    /// Those of others that it has come upon, and had not said before.
    #[serde(default)]
    heard: Vec<u64>,
}

/// This opening, and what it knows of others.
pub(super) struct Openings {
    number: u64,
    known: Mutex<Known>,
}

#[derive(Default)]
struct Known {
    /// Which changes of the log were looked at.
    mark: u64,
    /// It has said its number.
    has_said: bool,
    /// The numbers that it has said to have heard.
    answered: BTreeSet<u64>,
    /// Somebody has heard this one.
    is_heard: bool,
}

impl Openings {
    /// An opening that nobody knows of.
    ///
    /// # Errors
    /// No randomness.
    pub(super) fn new() -> Result<Self, Fail> {
        let mut number = [0; 8];
        getrandom::fill(&mut number)
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
        Ok(Self {
            // Within what every JSON reader takes exactly.
            number: u64::from_le_bytes(number) >> 11,
            known: Mutex::default(),
        })
    }

    /// Whether somebody with our key has heard of this opening.
    pub(super) fn are_several(&self) -> bool {
        self.lock().is_heard
    }

    /// Reads what came, and says what there is to say.
    pub(super) fn look(&self, log: &Log, now_ms: i64) -> Result<(), Fail> {
        // Without a doubt nobody says anything.
        if log.stat().returned == 0 {
            return Ok(());
        }
        let stream = StreamName::new(STREAM).map_err(Fail::internal)?;
        let mut known = self.lock();
        let (mark, changed) = log.parts_since(known.mark, &Pattern::from(&stream));
        let own = changed
            .into_iter()
            .filter(|extent| extent.part.feed.author == log.author());
        let starts: Vec<(Part, Seq)> = own
            .map(|extent| {
                let last = extent.next.saturating_sub(MOST as u64);
                (extent.part, last.max(extent.low))
            })
            .collect();
        let mut others = BTreeSet::new();
        for said in said_in(log, &starts)? {
            if said.opening != self.number {
                others.insert(said.opening);
                known.is_heard |= said.heard.contains(&self.number);
            }
        }
        let room = MOST.saturating_sub(known.answered.len());
        let fresh = others.difference(&known.answered).copied();
        let heard: Vec<u64> = fresh.take(room).collect();
        if !known.has_said || !heard.is_empty() {
            let said = Said {
                opening: self.number,
                heard: heard.clone(),
            };
            let payload = serde_json::to_vec(&said).map_err(Fail::internal)?;
            let appended = log.append(&stream, &[NewEvent::new(now_ms, payload)]);
            appended.map_err(|e| super::fail(&e))?;
            known.has_said = true;
            known.answered.extend(heard);
        }
        known.mark = mark;
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was said from these places on. What cannot be read, or is none, is passed over: it answers nobody.
fn said_in(log: &Log, starts: &[(Part, Seq)]) -> Result<Vec<Said>, Fail> {
    let mut all = Vec::new();
    let mut merge = log.merge_parts(starts);
    loop {
        match merge.next_of() {
            Ok(Some((at, batch))) => {
                let events = batch.events().filter(|event| event.seq >= starts[at].1);
                let said = events.filter_map(|event| serde_json::from_slice(event.payload).ok());
                all.extend(said);
            }
            Ok(None) => return Ok(all),
            Err((_, LogError::Damaged { .. } | LogError::Trimmed { .. })) => {}
            Err((_, error)) => return Err(super::fail(&error)),
        }
    }
}
