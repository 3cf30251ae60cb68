//! One pin against the store, now: what its record says, what is here, and what follows from that (S2.35).

use cid::Cid;
use gemba_pins::{Edit, Pin, Size};
use gemba_store::Store;

use super::pins::{Presence, inspect};
use crate::api::types::PinSync;
use crate::error::{Code, Fail};
use crate::meta::{Meta, PinEdit, PinState as _};
use crate::text;

/// What is to be done about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heal {
    /// Record and store agree.
    Nothing,
    /// The record says it is whole, and it is not: it is struck out, and fetched again.
    StrikeOut,
    /// Everything is here, and the record does not say so.
    Record,
    /// The record says that something is missing, and that is so: it is tried now.
    TryAgain,
}

impl Heal {
    /// The word in JSON.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::StrikeOut => "struck_out",
            Self::Record => "recorded",
            Self::TryAgain => "tried_again",
        }
    }
}

/// What follows from a record and from what is here.
#[must_use]
pub fn heal(pin: &Pin, here: &Presence) -> Heal {
    match (pin.complete, here.is_whole()) {
        (true, true) => Heal::Nothing,
        (true, false) => Heal::StrikeOut,
        (false, true) => Heal::Record,
        (false, false) => Heal::TryAgain,
    }
}

/// What is told of it.
#[must_use]
pub fn told(pin: &Pin, here: &Presence, status: &str) -> PinSync {
    let missing = here.missing.len() as u64;
    let heal = heal(pin, here);
    let found = match heal {
        Heal::Nothing => "the record says that it is whole, and every block is here".to_owned(),
        Heal::StrikeOut => format!(
            "the record said that it is whole, and {} missing or damaged",
            text::count(missing, "block is", "blocks are")
        ),
        Heal::Record => "every block is here, and the record did not say so".to_owned(),
        Heal::TryAgain => format!(
            "the record says that it is not whole: {} missing or damaged",
            text::count(missing, "block is", "blocks are")
        ),
    };
    PinSync {
        cid: pin.cid.to_string(),
        found,
        done: heal.as_str().to_owned(),
        status: status.to_owned(),
        blocks_here: here.progress.blocks_done,
        bytes_here: here.progress.bytes_done,
        missing,
    }
}

/// What a pin that was looked at holds.
#[must_use]
pub fn size(here: &Presence) -> Size {
    Size {
        blocks: here.progress.blocks_done,
        bytes: here.progress.bytes_done,
    }
}

/// Somebody changed the pin while it was looked at.
#[must_use]
pub fn changed(cid: &Cid) -> Fail {
    Fail::new(
        Code::Conflict,
        format!("the pin of {cid} was changed while it was compared with the store"),
    )
    .hint("run the same command again")
}

/// A damaged block is no block: whoever brings it again has it written again. Another process would not know that it is damaged.
fn forget(store: &Store, here: &Presence) -> Result<(), Fail> {
    let is_damaged = |cid: &&Cid| here.damaged.is_some() && !store.has(cid);
    let damaged: Vec<Cid> = here.missing.iter().filter(is_damaged).copied().collect();
    let forgotten = store.delete_many(&damaged).map(drop);
    forgotten.map_err(|e| crate::repo::store_fail(&e))
}

/// Looks, and puts the record right, without a daemon: what is missing stays missing until one runs.
///
/// # Errors
/// [`Code::NotFound`] if it is not pinned; [`Code::Integrity`] for a DAG that nobody can walk; the disk's.
pub fn without_daemon(store: &Store, meta: &Meta, cid: &Cid) -> Result<PinSync, Fail> {
    let pin = meta.pins()?.get(cid)?;
    let pin = pin.ok_or_else(|| crate::meta::pin_fail(gemba_pins::PinError::NotPinned(*cid)))?;
    let here = inspect(store, cid, pin.kind, || Ok(()))?;
    forget(store, &here)?;
    let edit = match heal(&pin, &here) {
        Heal::Nothing | Heal::TryAgain => None,
        Heal::StrikeOut => Some(Edit::Incomplete),
        Heal::Record => Some(Edit::Complete {
            id: pin.id,
            size: Some(size(&here)),
        }),
    };
    let nothing = edit.is_none();
    if let Some(edit) = edit {
        meta.edit_one(PinEdit::Plain(*cid, edit))?;
    }
    let status = if here.is_whole() {
        "pinned"
    } else {
        "pin_queued"
    };
    let mut told = told(&pin, &here, status);
    if !here.is_whole() {
        told.found.push_str(", and no daemon runs to fetch them");
    }
    if nothing {
        told.done = Heal::Nothing.as_str().to_owned();
    }
    Ok(told)
}
