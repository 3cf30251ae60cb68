//! Room for what is to be stored: a store at its limit takes blocks again as soon as a collection has taken away what no pin holds.
//!
//! Whoever writes does it through [`Puts`]. When the store refuses for want of room, [`MakeRoom`] is asked: in the daemon its keeper, in a
//! command without one the command itself. The write is tried again when there is room, and refused with all figures when a collection
//! of everything that may go was not enough.

use std::fmt;
use std::sync::Arc;

use gemba_block::Block;
use gemba_store::{Aim, PutReport, Store, StoreError};

use super::collect::{Between, Extent, Stop, collect, compact, thorough};
use crate::api::types::Collected;
use crate::error::{Code, Fail};
use crate::meta::{Meta, PinRows, PinState as _};
use crate::repo::store_fail;
use crate::text;

/// How often room is made for one write. Others write beside it and may take what was made; each time somebody went on.
const ATTEMPTS: usize = 16;
/// Percent of the limit that a collection for want of room leaves, so that the next write need not wait for another one.
const LEAVE: u64 = 80;

/// A write that found no room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Short {
    /// Bytes that it needs on the disk.
    pub needed: u64,
    /// Bytes that the store takes.
    pub used: u64,
    /// Bytes that it may take.
    pub limit: u64,
}

/// What was done to make room.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Made {
    /// Given back to the disk.
    pub freed_bytes: u64,
    /// What pins hold.
    pub pinned_bytes: u64,
    /// What is protected because it is being added, read or fetched.
    pub guarded_bytes: u64,
    /// What kept it from going on.
    pub cause: Option<String>,
}

/// Somebody who can collect.
pub trait MakeRoom: Send + Sync {
    /// Waits until there is room for this, or until it is clear that there will be none.
    ///
    /// # Errors
    /// [`refused`], and why the caller waits no longer.
    fn make_room(&self, short: Short) -> Result<(), Fail>;
}

/// Why a batch was not stored.
#[derive(Clone, Debug)]
pub struct Refusal {
    /// For people.
    pub fail: Fail,
    /// For want of room.
    pub full: bool,
}

/// The writing side of a store.
#[derive(Clone)]
pub struct Puts {
    store: Store,
    room: Option<Arc<dyn MakeRoom>>,
}

impl fmt::Debug for Puts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Puts").finish_non_exhaustive()
    }
}

impl Puts {
    /// Refuses when the store does.
    #[must_use]
    pub fn new(store: Store) -> Self {
        Self { store, room: None }
    }

    /// Waits for room.
    #[must_use]
    pub fn with_room(store: Store, room: Arc<dyn MakeRoom>) -> Self {
        Self {
            store,
            room: Some(room),
        }
    }

    /// Stores blocks. When it returns they are durable.
    ///
    /// # Errors
    /// The disk's, and those of [`MakeRoom`].
    pub fn put_many(&self, blocks: &[Block]) -> Result<PutReport, Refusal> {
        let mut attempts = ATTEMPTS;
        loop {
            let error = match self.store.put_many(blocks) {
                Ok(report) => return Ok(report),
                Err(error) => error,
            };
            let (
                Some(room),
                1..,
                StoreError::NoSpace {
                    needed,
                    used,
                    limit,
                },
            ) = (&self.room, attempts, &error)
            else {
                return Err(refusal(&error));
            };
            attempts -= 1;
            let short = Short {
                needed: *needed,
                used: *used,
                limit: *limit,
            };
            room.make_room(short)
                .map_err(|fail| Refusal { fail, full: true })?;
        }
    }
}

fn refusal(error: &StoreError) -> Refusal {
    Refusal {
        fail: store_fail(error),
        full: matches!(error, StoreError::Full(_) | StoreError::NoSpace { .. }),
    }
}

/// The failure for a write that finds no room, whatever is collected.
#[must_use]
pub fn refused(short: Short, made: &Made) -> Fail {
    let Made {
        freed_bytes,
        pinned_bytes,
        guarded_bytes,
        cause,
    } = made;
    let stopped = cause.as_ref().map_or(String::new(), |cause| {
        format!(", and then could not go on: {cause}")
    });
    let Short {
        needed,
        used,
        limit,
    } = short;
    Fail::new(
        Code::Failure,
        format!(
            "no room for {} more: the store may take {} and takes {}, of which {} are pinned and {} are being added, read or fetched; a collection gave back {}{stopped}",
            text::bytes(needed),
            text::bytes(limit),
            text::bytes(used),
            text::bytes(*pinned_bytes),
            text::bytes(*guarded_bytes),
            text::bytes(*freed_bytes),
        ),
    )
    .hint("give up a pin (`gemba pin ls`, `gemba pin rm`), or raise the limit (`gemba config set store.max_size …`)")
}

/// The failure where nobody may collect.
#[must_use]
pub fn not_collected(short: Short) -> Fail {
    let Short {
        needed,
        used,
        limit,
    } = short;
    store_fail(&StoreError::NoSpace {
        needed,
        used,
        limit,
    })
    .hint("`store.gc` is off, so nothing is collected by itself: `gemba gc` removes what no pin holds; `store.max_size` is the limit")
}

/// Room that the store has for puts.
#[must_use]
pub fn room(store: &Store) -> u64 {
    store.stat().room_bytes.unwrap_or(u64::MAX)
}

/// Collects until the store takes no more than `target`: dead blocks first, then what was used least recently and no pin holds.
///
/// # Errors
/// See [`Stop`].
pub fn relieve(
    store: &Store,
    target: u64,
    pins: impl FnOnce() -> Result<PinRows, Fail>,
    between: &mut Between<'_>,
) -> Result<Collected, Stop> {
    let enough = |store: &Store| store.stat().disk_bytes <= target;
    let mut report = Collected::default();
    compact(store, &thorough(), &mut report, enough, between)?;
    let over = store.stat().disk_bytes.saturating_sub(target);
    if over == 0 {
        return Ok(report);
    }
    let freed = report.freed_bytes;
    let mut report = collect(store, pins, Extent::Bytes(over), between)?;
    report.freed_bytes = freed;
    compact(
        store,
        &Aim::default().below(90),
        &mut report,
        enough,
        between,
    )?;
    Ok(report)
}

/// Collects until there is room for so many bytes, and a little more; at last everything that may go. What it came to is in the answer.
///
/// # Errors
/// See [`Stop`].
pub fn make(
    store: &Store,
    needed: u64,
    pins: impl Fn() -> Result<PinRows, Fail>,
    between: &mut Between<'_>,
) -> Result<Collected, Stop> {
    let stat = store.stat();
    let Some(limit) = stat.max_bytes else {
        return Ok(Collected::default());
    };
    let short = needed.saturating_sub(stat.room_bytes.unwrap_or(u64::MAX));
    let target = stat
        .disk_bytes
        .saturating_sub(short)
        .min(limit / 100 * LEAVE);
    let mut report = relieve(store, target, &pins, between)?;
    if room(store) >= needed {
        return Ok(report);
    }
    let (freed, blocks, bytes) = (report.freed_bytes, report.blocks, report.bytes);
    report = collect(store, &pins, Extent::All, between)?;
    (report.freed_bytes, report.blocks, report.bytes) =
        (freed, report.blocks + blocks, report.bytes + bytes);
    let enough = |store: &Store| room(store) >= needed;
    compact(
        store,
        &Aim::default().below(90),
        &mut report,
        enough,
        between,
    )?;
    Ok(report)
}

impl From<&Collected> for Made {
    fn from(report: &Collected) -> Self {
        Self {
            freed_bytes: report.freed_bytes,
            pinned_bytes: report.kept_bytes,
            guarded_bytes: report.guarded_bytes,
            cause: report.cause.clone(),
        }
    }
}

/// For a command without a daemon: it has the repository for itself and collects in its own thread.
pub struct Here {
    /// The store.
    pub store: Store,
    /// The pins.
    pub meta: Arc<Meta>,
    /// Whether it may collect unasked (`store.gc`).
    pub collects: bool,
    /// Whether to go on, between two small steps.
    pub check: fn() -> Result<(), Fail>,
}

impl MakeRoom for Here {
    fn make_room(&self, short: Short) -> Result<(), Fail> {
        if !self.collects {
            return Err(not_collected(short));
        }
        let made = make(
            &self.store,
            short.needed,
            || self.meta.pins(),
            &mut |_, _| (self.check)(),
        );
        // Also after an interruption: packs that were removed are not lost.
        self.meta
            .note_packs(crate::repo::packs_to_note(&self.store))?;
        let made = Made::from(&made.map_err(Stop::into_fail)?);
        if room(&self.store) >= short.needed {
            Ok(())
        } else {
            Err(refused(now(&self.store, short), &made))
        }
    }
}

/// The same shortage with what the store takes now.
#[must_use]
pub fn now(store: &Store, short: Short) -> Short {
    Short {
        used: short.limit.saturating_sub(room(store)),
        ..short
    }
}
