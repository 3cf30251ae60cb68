//! The set that ought to be on this device.
//!
//! Every operation *plans*: it looks at the set and returns the [`Change`] to persist, without touching anything. The owner writes the change,
//! waits until it is durable, and then calls [`DesiredSet::apply`]. So the set in memory never says more than the disk, and a crash between the
//! two steps leaves the older truth. Each plan is a function of the one pin it concerns ([`Edit`]), so that an owner with more pins than memory can
//! run the same rules against his table.

use crate::{
    error::{NameError, PinError, RecordError, StaleChange},
    format::{decode_key, decode_record, encode_key, encode_record},
};
use cid::Cid;
use std::{collections::BTreeMap, fmt, ops::Bound};

/// What one root means to this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pin {
    /// The root.
    pub cid: Cid,
    /// Whether the blocks below the root belong to the pin.
    pub kind: Kind,
    /// A label for people and scripts; several pins may share one.
    pub name: Option<Name>,
    /// Every block of the pin was durable on this device when this was written. Struck out by scrub or removal.
    pub complete: bool,
    /// It was complete once and was struck out since. What is below a block that it lacks cannot be told from what nobody wants, so
    /// nothing is collected until it is complete again, or removed.
    pub lacks: bool,
    /// Distinguishes this pin from an earlier one of the same root: results of work are accepted only for the id they were started for.
    /// Unique among the pins there are, and never given twice by one process.
    pub id: u64,
    /// Wall clock at the time of adding, in milliseconds since 1970: for display, never for order.
    pub since_ms: u64,
    /// How large it was found to be when it became complete, if that was told: so nobody has to walk it again to know.
    pub size: Option<Size>,
}

/// What a complete pin holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Distinct blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// How far a pin reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// The root and everything it links to.
    Recursive,
    /// The root's block alone.
    Direct,
}

/// A pin's label: 1 to 255 bytes of UTF-8, the limit of Kubo and of the Pinning Service API.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<str>);

/// A wish to pin.
#[derive(Debug, Clone)]
pub struct Add {
    /// The root.
    pub cid: Cid,
    /// How far.
    pub kind: Kind,
    /// `None` keeps the name of a pin that is there.
    pub name: Option<Name>,
    /// Wall clock now, in milliseconds since 1970.
    pub now_ms: u64,
}

/// One thing that may be done to one pin.
#[derive(Debug, Clone)]
pub enum Edit {
    /// Want it, or widen it, or rename it.
    Add(Add),
    /// Want it no longer.
    Remove,
    /// Every block of pin `id` is durable.
    Complete {
        /// The pin the work was started for.
        id: u64,
        /// How large it is, if that was counted.
        size: Option<Size>,
    },
    /// A block of it is no longer there, or is damaged.
    Incomplete,
    /// Name it anew, or take its name away.
    Rename(Option<Name>),
}

/// A planned change: what to persist, and what must still be true when it is applied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    cid: Cid,
    before: Option<Pin>,
    after: Option<Pin>,
}

/// The desired set, in memory.
#[derive(Debug, Clone, Default)]
pub struct DesiredSet {
    pins: BTreeMap<Cid, Pin>,
    next_id: u64,
}

impl DesiredSet {
    /// A set of nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// The set that was persisted, from the key and value of each record.
    ///
    /// # Errors
    /// The first record that cannot be read; above all one of a newer version. Nothing is skipped: a pin that is overlooked is a pin whose
    /// blocks are collected.
    pub fn load<K: AsRef<[u8]>, V: AsRef<[u8]>>(
        records: impl IntoIterator<Item = (K, V)>,
    ) -> Result<Self, RecordError> {
        let mut set = Self::new();
        for (key, value) in records {
            let pin = decode_record(decode_key(key.as_ref())?, value.as_ref())?;
            let cid = pin.cid;
            set.next_id = set.next_id.max(pin.id);
            if set.pins.insert(cid, pin).is_some() {
                return Err(RecordError::Duplicate(cid));
            }
        }
        Ok(set)
    }

    /// Plans to pin. `None`: the set already says so, and there is nothing to persist.
    ///
    /// A direct pin becomes recursive under a new id and is incomplete again; a name replaces the older one; a pin that is there and is added
    /// once more keeps id, time and completeness.
    ///
    /// # Errors
    /// [`PinError::AlreadyRecursive`] for a direct pin of a root that is pinned recursively.
    pub fn add(&mut self, add: Add) -> Result<Option<Change>, PinError> {
        self.plan(add.cid, Edit::Add(add))
    }

    /// Plans to unpin. The blocks are not touched: what nothing holds any more is the collector's.
    ///
    /// # Errors
    /// [`PinError::NotPinned`].
    pub fn remove(&mut self, cid: &Cid) -> Result<Change, PinError> {
        self.plan(*cid, Edit::Remove)
            .map(|change| change.expect("removing a pin that is there is a change"))
    }

    /// Plans to record that every block of pin `id` is durable. `None`: it is recorded already.
    ///
    /// Call it only after the store has said that the last block is durable: this record is the fact that `complete` is read from for ever after.
    ///
    /// # Errors
    /// [`PinError::NotPinned`] and [`PinError::Superseded`]: the pin was removed or replaced meanwhile, and the result is void.
    pub fn complete(&mut self, cid: &Cid, id: u64) -> Result<Option<Change>, PinError> {
        self.plan(*cid, Edit::Complete { id, size: None })
    }

    /// Plans to strike out completeness, because a block was found damaged or was removed by force. `None`: it was not complete.
    ///
    /// # Errors
    /// [`PinError::NotPinned`].
    pub fn incomplete(&mut self, cid: &Cid) -> Result<Option<Change>, PinError> {
        self.plan(*cid, Edit::Incomplete)
    }

    /// Plans a new name, or none. `None`: that is its name.
    ///
    /// # Errors
    /// [`PinError::NotPinned`].
    pub fn rename(&mut self, cid: &Cid, name: Option<Name>) -> Result<Option<Change>, PinError> {
        self.plan(*cid, Edit::Rename(name))
    }

    /// Takes over a change that is now durable.
    ///
    /// # Errors
    /// [`StaleChange`] if the pin is no longer what the change was planned on: two changes of one pin were planned before the first was applied.
    /// The disk then holds the later write; an owner that plans, persists and applies one change of a pin at a time never sees this.
    pub fn apply(&mut self, change: Change) -> Result<(), StaleChange> {
        if self.pins.get(&change.cid) != change.before.as_ref() {
            return Err(StaleChange(change.cid));
        }
        match change.after {
            Some(pin) => self.pins.insert(change.cid, pin),
            None => self.pins.remove(&change.cid),
        };
        Ok(())
    }

    /// The pin of this root.
    pub fn get(&self, cid: &Cid) -> Option<&Pin> {
        self.pins.get(cid)
    }

    /// All pins, in the order of their CIDs.
    pub fn iter(&self) -> impl Iterator<Item = &Pin> {
        self.pins.values()
    }

    /// The pins behind `after` in the same order, or all: for lists that are told in pages.
    pub fn iter_after(&self, after: Option<&Cid>) -> impl Iterator<Item = &Pin> {
        let from = after.map_or(Bound::Unbounded, |cid| Bound::Excluded(*cid));
        self.pins
            .range((from, Bound::Unbounded))
            .map(|(_, pin)| pin)
    }

    /// Pins with this name.
    pub fn named<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a Pin> {
        self.iter()
            .filter(move |pin| pin.name.as_ref().is_some_and(|n| n.as_str() == name))
    }

    /// Pins whose blocks are not all known to be here: the work to do after a start.
    pub fn incomplete_pins(&self) -> impl Iterator<Item = &Pin> {
        self.iter().filter(|pin| !pin.complete)
    }

    /// How many pins there are.
    pub fn len(&self) -> usize {
        self.pins.len()
    }

    /// Whether nothing is pinned.
    pub fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    fn plan(&mut self, cid: Cid, edit: Edit) -> Result<Option<Change>, PinError> {
        // An id is used up by planning, applied or not: no two plans ever share one.
        let fresh = match self.next_id.checked_add(1) {
            Some(fresh) => fresh,
            // Only a damaged record can hold the last id there is. Nothing but an addition takes one.
            None if matches!(edit, Edit::Add(_)) => return Err(PinError::IdsUsedUp),
            None => self.next_id,
        };
        let change = edit.plan(cid, self.pins.get(&cid), fresh)?;
        if change
            .as_ref()
            .and_then(Change::after)
            .is_some_and(|pin| pin.id == fresh)
        {
            self.next_id = fresh;
        }
        Ok(change)
    }
}

impl Edit {
    /// The change this edit makes to the pin of `cid` as it is now, or `None` if it makes none. `fresh_id` is used for a new or widened pin
    /// and must be larger than every id given before.
    ///
    /// # Errors
    /// As the methods of [`DesiredSet`].
    pub fn plan(
        self,
        cid: Cid,
        current: Option<&Pin>,
        fresh_id: u64,
    ) -> Result<Option<Change>, PinError> {
        let there = || current.ok_or(PinError::NotPinned(cid));
        let after = match self {
            Self::Add(add) => Some(added(cid, add, current, fresh_id)?),
            Self::Remove => {
                there()?;
                None
            }
            Self::Complete { id, size } => {
                let pin = there()?;
                if pin.id != id {
                    return Err(PinError::Superseded {
                        cid,
                        id,
                        current: pin.id,
                    });
                }
                Some(Pin {
                    complete: true,
                    lacks: false,
                    size: size.or(pin.size),
                    ..pin.clone()
                })
            }
            Self::Incomplete => {
                let pin = there()?;
                Some(Pin {
                    complete: false,
                    size: None,
                    lacks: pin.complete || pin.lacks,
                    ..pin.clone()
                })
            }
            Self::Rename(name) => Some(Pin {
                name,
                ..there()?.clone()
            }),
        };
        let before = current.cloned();
        Ok((before != after).then_some(Change { cid, before, after }))
    }
}

fn added(cid: Cid, add: Add, current: Option<&Pin>, fresh_id: u64) -> Result<Pin, PinError> {
    let Some(pin) = current else {
        return Ok(Pin {
            cid,
            kind: add.kind,
            name: add.name,
            complete: false,
            lacks: false,
            id: fresh_id,
            since_ms: add.now_ms,
            size: None,
        });
    };
    let name = add.name.or_else(|| pin.name.clone());
    match (pin.kind, add.kind) {
        (Kind::Recursive, Kind::Direct) => Err(PinError::AlreadyRecursive(cid)),
        (Kind::Direct, Kind::Recursive) => Ok(Pin {
            cid,
            kind: Kind::Recursive,
            name,
            complete: false,
            lacks: false,
            id: fresh_id,
            since_ms: add.now_ms,
            size: None,
        }),
        (Kind::Recursive, Kind::Recursive) | (Kind::Direct, Kind::Direct) => Ok(Pin {
            name,
            ..pin.clone()
        }),
    }
}

impl Change {
    /// The root it concerns.
    pub fn cid(&self) -> &Cid {
        &self.cid
    }

    /// Key of the record to write or delete.
    pub fn key(&self) -> Vec<u8> {
        encode_key(&self.cid)
    }

    /// Value of the record to write, or `None`: delete it.
    pub fn record(&self) -> Option<Vec<u8>> {
        self.after.as_ref().map(encode_record)
    }

    /// The pin as it was.
    pub fn before(&self) -> Option<&Pin> {
        self.before.as_ref()
    }

    /// The pin as it will be; `None` if it is removed.
    pub fn after(&self) -> Option<&Pin> {
        self.after.as_ref()
    }
}

impl Name {
    /// Checks the limits.
    ///
    /// # Errors
    /// [`NameError`]: empty, or more than 255 bytes.
    pub fn new(text: impl Into<Box<str>>) -> Result<Self, NameError> {
        let text = text.into();
        match text.len() {
            0 => Err(NameError::Empty),
            1..=Self::MAX_BYTES => Ok(Self(text)),
            n => Err(NameError::TooLong(n)),
        }
    }

    /// Longest name, in bytes.
    pub const MAX_BYTES: usize = 255;

    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl std::str::FromStr for Name {
    type Err = NameError;

    fn from_str(text: &str) -> Result<Self, NameError> {
        Self::new(text)
    }
}

impl Kind {
    /// The word for people and JSON, as Kubo's `pin ls` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recursive => "recursive",
            Self::Direct => "direct",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
