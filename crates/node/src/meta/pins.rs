//! The pins in their table: looked up and listed there, never held in memory as a whole, and changed by edits that are planned where they are
//! written, in one transaction with whatever waits beside them.
//!
//! Beside the records are two lists that follow from them and are written with them: the pins that are not whole, which is what the tracker draws
//! from, and the pins by name.

mod plan;

use cid::Cid;
use gemba_pins::{
    Add, DesiredSet, Edit, Name, Pin, PinError, Size, decode_key, decode_record, encode_key,
};
use redb::{
    ReadOnlyTable, ReadableTable as _, ReadableTableMetadata as _, TableDefinition, TableError,
    WriteTransaction,
};

use std::path::{Path, PathBuf};

use super::{FACTS, Meta, PINS, marked, record_fail, redb_fail};
use crate::error::{Code, Fail};
use plan::Records;

/// The roots of pins that are not whole.
const OPEN: TableDefinition<'static, &[u8], ()> = TableDefinition::new("pins_open");
/// Name, a zero byte, root; and the length of the name, since names may hold zeros.
const NAMED: TableDefinition<'static, &[u8], u8> = TableDefinition::new("pins_named");
/// The largest id that was given.
const LAST_ID: &str = "pin_id";
/// The two lists are there.
const LISTED: &str = "pins_listed";
/// Rows that are read at once.
const PAGE: usize = 1024;

type Rows = ReadOnlyTable<&'static [u8], &'static [u8]>;

/// The pins as they are at one moment, whatever is written meanwhile. Nothing is read when the [`Meta`] they are from is gone.
pub struct PinRows(From);

#[expect(clippy::large_enum_variant, reason = "a reader has one of them")]
enum From {
    Table {
        rows: Rows,
        open: Option<ReadOnlyTable<&'static [u8], ()>>,
        named: Option<ReadOnlyTable<&'static [u8], u8>>,
        path: PathBuf,
    },
    Memory(DesiredSet),
}

/// A change of one pin. What it comes to is decided where it is written.
#[derive(Clone, Debug)]
pub enum PinEdit {
    /// As [`Edit`] has it.
    Plain(Cid, Edit),
    /// Somebody's own wish. If a follow wanted it already, it is his from now on.
    Own(Add),
    /// A follow's wish; one that somebody pinned already keeps its name.
    Followed(Add),
    /// From a list: what is there stays as it is, or becomes more.
    Listed(Add),
    /// Somebody's own wish for what is known to be whole.
    Whole(Add, Option<Size>),
    /// A pin that is whole was counted.
    Measured(Cid, u64, Size),
    /// Somebody's own wish is taken back. With the label of a follow that needs it, it stays under that.
    Release(Cid, Option<String>),
    /// The first is released, if the second is whole.
    Replace(Cid, Cid, Option<String>),
}

/// What an edit came to.
#[derive(Clone, Debug)]
pub struct Edited {
    /// The root.
    pub cid: Cid,
    /// As it was.
    pub before: Option<Pin>,
    /// As it is.
    pub after: Option<Pin>,
}

/// Where the pins of a device are kept: the one table of the daemon ([`Meta`]), or whatever an owner has (S4.22). What a change means is not decided here
/// (`meta/pins/plan.rs`), so every state means the same by it.
pub trait PinState: Send + Sync {
    /// The pins as they are now.
    ///
    /// # Errors
    /// The disk refuses, or what is on it is damaged.
    fn pins(&self) -> Result<PinRows, Fail>;

    /// Makes changes, all of them durable when this returns. Those that cannot be are refused one by one.
    ///
    /// # Errors
    /// The disk refuses: none of them is there then.
    fn edit(&self, edits: &[PinEdit]) -> Result<Vec<Result<Edited, Fail>>, Fail>;

    /// One change.
    ///
    /// # Errors
    /// It cannot be, or the disk refuses.
    fn edit_one(&self, edit: PinEdit) -> Result<Edited, Fail> {
        let outcome = self.edit(&[edit])?.pop();
        outcome.unwrap_or_else(|| Err(Fail::internal("an edit without an outcome")))
    }
}

impl PinState for Meta {
    fn pins(&self) -> Result<PinRows, Fail> {
        marked(&self.path, || {
            let read = self.begin_read()?;
            let rows = match read.open_table(PINS) {
                Ok(rows) => rows,
                Err(TableError::TableDoesNotExist(_)) => {
                    return Ok(PinRows(From::Memory(DesiredSet::new())));
                }
                Err(e) => return Err(self.fail(e)),
            };
            // Not there in a file that was never opened to write since the lists came.
            Ok(PinRows(From::Table {
                rows,
                open: read.open_table(OPEN).ok(),
                named: read.open_table(NAMED).ok(),
                path: self.path.clone(),
            }))
        })
    }

    fn edit(&self, edits: &[PinEdit]) -> Result<Vec<Result<Edited, Fail>>, Fail> {
        self.transact(|transaction| {
            let mut tables = Tables::open(transaction, &self.path)?;
            let outcomes = edits.iter().map(|edit| plan::edit(&mut tables, edit));
            outcomes.collect::<Result<Vec<_>, Fail>>()
        })
    }
}

impl Meta {
    /// Writes the lists that follow from the records, if an older program wrote the file.
    ///
    /// # Errors
    /// The disk refuses, or a record cannot be read.
    pub(super) fn list_pins(&self) -> Result<(), Fail> {
        let [listed] = marked(&self.path, || self.facts([LISTED]))?;
        if listed != 0 {
            return Ok(());
        }
        let pins = self.pins()?;
        self.transact(|transaction| {
            let mut tables = Tables::open(transaction, &self.path)?;
            for pin in pins.iter() {
                let pin = pin?;
                tables.last_id = tables.last_id.max(pin.id);
                tables.list(None, Some(&pin))?;
            }
            tables.note(LISTED, 1)?;
            tables.note(LAST_ID, tables.last_id)
        })
    }
}

impl PinRows {
    /// How many there are.
    ///
    /// # Errors
    /// The disk's.
    pub fn count(&self) -> Result<u64, Fail> {
        match &self.0 {
            From::Table { rows, path, .. } => {
                marked(path, || rows.len().map_err(|e| redb_fail(path, &e.into())))
            }
            From::Memory(set) => Ok(set.len() as u64),
        }
    }

    /// How many are not whole.
    ///
    /// # Errors
    /// The disk's.
    pub fn open_len(&self) -> Result<u64, Fail> {
        match &self.0 {
            From::Table {
                open: Some(open),
                path,
                ..
            } => marked(path, || open.len().map_err(|e| redb_fail(path, &e.into()))),
            _ => self
                .iter()
                .try_fold(0, |open, pin| Ok(open + u64::from(!pin?.complete))),
        }
    }

    /// The pin of this root.
    ///
    /// # Errors
    /// The disk's, or a record that cannot be read.
    pub fn get(&self, cid: &Cid) -> Result<Option<Pin>, Fail> {
        match &self.0 {
            From::Table { rows, path, .. } => marked(path, || {
                let row = rows.get(encode_key(cid).as_slice());
                let row = row.map_err(|e| redb_fail(path, &e.into()))?;
                let pin = row.map(|row| decode_record(*cid, row.value()));
                pin.transpose().map_err(|e| record_fail(path, &e))
            }),
            From::Memory(set) => Ok(set.get(cid).cloned()),
        }
    }

    /// At most so many behind this one, in the order of the table.
    ///
    /// # Errors
    /// As [`PinRows::get`]. Nothing is skipped: a pin that is overlooked is a pin whose blocks are collected.
    pub fn page(&self, after: Option<&Cid>, at_most: usize) -> Result<Vec<Pin>, Fail> {
        match &self.0 {
            From::Table { rows, path, .. } => marked(path, || {
                let from = after.map(encode_key);
                let rows = match &from {
                    Some(from) => rows.range::<&[u8]>(behind(from)),
                    None => rows.range::<&[u8]>(..),
                };
                let rows = rows.map_err(|e| redb_fail(path, &e.into()))?;
                rows.take(at_most)
                    .map(|row| {
                        let (key, value) = row.map_err(|e| redb_fail(path, &e.into()))?;
                        let cid = decode_key(key.value()).map_err(|e| record_fail(path, &e))?;
                        decode_record(cid, value.value()).map_err(|e| record_fail(path, &e))
                    })
                    .collect()
            }),
            From::Memory(set) => Ok(set.iter_after(after).take(at_most).cloned().collect()),
        }
    }

    /// At most so many that are not whole, behind this one, and whether there are more.
    ///
    /// # Errors
    /// As [`PinRows::get`].
    pub fn open_page(&self, after: Option<&Cid>, at_most: usize) -> Result<(Vec<Pin>, bool), Fail> {
        let From::Table {
            open: Some(open),
            path,
            ..
        } = &self.0
        else {
            let open = self
                .iter()
                .filter(|pin| !matches!(pin, Ok(pin) if pin.complete));
            return Ok((open.collect::<Result<_, _>>()?, false));
        };
        let mut roots = marked(path, || {
            let from = after.map(encode_key);
            let rows = match &from {
                Some(from) => open.range::<&[u8]>(behind(from)),
                None => open.range::<&[u8]>(..),
            };
            let rows = rows.map_err(|e| redb_fail(path, &e.into()))?;
            rows.take(at_most + 1)
                .map(|row| {
                    let (key, ()) = row
                        .map(|(key, _)| (key, ()))
                        .map_err(|e| redb_fail(path, &e.into()))?;
                    decode_key(key.value()).map_err(|e| record_fail(path, &e))
                })
                .collect::<Result<Vec<Cid>, Fail>>()
        })?;
        let more = roots.len() > at_most;
        roots.truncate(at_most);
        let pins = roots.iter().map(|cid| self.get(cid));
        let pins = pins.filter_map(Result::transpose);
        Ok((pins.collect::<Result<_, _>>()?, more))
    }

    /// The roots of pins of this name.
    ///
    /// # Errors
    /// As [`PinRows::get`].
    pub fn named(&self, name: &str) -> Result<Vec<Cid>, Fail> {
        // With the zero behind it only longer names with a zero in them are met beside.
        let beginning = match &self.0 {
            From::Table { named: Some(_), .. } => format!("{name}\0"),
            _ => name.to_owned(),
        };
        let found = self.named_like(&beginning)?.into_iter();
        Ok(found
            .filter(|(own, _)| own == name)
            .map(|(_, root)| root)
            .collect())
    }

    /// The roots of pins whose names begin so.
    ///
    /// # Errors
    /// As [`PinRows::get`].
    pub fn named_like(&self, beginning: &str) -> Result<Vec<(String, Cid)>, Fail> {
        let From::Table {
            named: Some(named),
            path,
            ..
        } = &self.0
        else {
            let mut found = Vec::new();
            for pin in self.iter() {
                let pin = pin?;
                if let Some(name) = pin.name.filter(|name| name.as_str().starts_with(beginning)) {
                    found.push((name.as_str().to_owned(), pin.cid));
                }
            }
            return Ok(found);
        };
        marked(path, || {
            let rows = named.range::<&[u8]>(beginning.as_bytes()..);
            let rows = rows.map_err(|e| redb_fail(path, &e.into()))?;
            let mut found = Vec::new();
            for row in rows {
                let (key, length) = row.map_err(|e| redb_fail(path, &e.into()))?;
                if !key.value().starts_with(beginning.as_bytes()) {
                    break;
                }
                found.extend(name_and_root(key.value(), length.value()));
            }
            Ok(found)
        })
    }

    /// All of them, a page in memory at a time.
    pub fn iter(&self) -> impl Iterator<Item = Result<Pin, Fail>> + '_ {
        let (mut page, mut after, mut over) = (Vec::new().into_iter(), None, false);
        std::iter::from_fn(move || {
            loop {
                if let Some(pin) = page.next() {
                    return Some(Ok(pin));
                }
                if over {
                    return None;
                }
                match self.page(after.as_ref(), PAGE) {
                    Ok(pins) => {
                        over = pins.len() < PAGE;
                        after = pins.last().map(|pin: &Pin| pin.cid);
                        page = pins.into_iter();
                    }
                    Err(fail) => {
                        over = true;
                        return Some(Err(fail));
                    }
                }
            }
        })
    }
}

impl std::convert::From<DesiredSet> for PinRows {
    fn from(set: DesiredSet) -> Self {
        Self(From::Memory(set))
    }
}

/// The tables of one transaction.
struct Tables<'t> {
    pins: redb::Table<'t, &'static [u8], &'static [u8]>,
    open: redb::Table<'t, &'static [u8], ()>,
    named: redb::Table<'t, &'static [u8], u8>,
    facts: redb::Table<'t, &'static str, u64>,
    last_id: u64,
    path: &'t Path,
}

impl<'t> Tables<'t> {
    fn open(transaction: &'t WriteTransaction, path: &'t Path) -> Result<Self, Fail> {
        let fail = |e: TableError| redb_fail(path, &e.into());
        let facts = transaction.open_table(FACTS).map_err(fail)?;
        let last_id = facts.get(LAST_ID).map_err(|e| redb_fail(path, &e.into()))?;
        let last_id = last_id.map_or(0, |id| id.value());
        Ok(Self {
            pins: transaction.open_table(PINS).map_err(fail)?,
            open: transaction.open_table(OPEN).map_err(fail)?,
            named: transaction.open_table(NAMED).map_err(fail)?,
            facts,
            last_id,
            path,
        })
    }

    /// The lists follow the record.
    fn list(&mut self, before: Option<&Pin>, after: Option<&Pin>) -> Result<(), Fail> {
        let fail = |e: redb::StorageError| redb_fail(self.path, &e.into());
        let open = |pin: Option<&Pin>| {
            pin.filter(|pin| !pin.complete)
                .map(|pin| encode_key(&pin.cid))
        };
        match (open(before), open(after)) {
            (_, Some(key)) => self
                .open
                .insert(key.as_slice(), ())
                .map(drop)
                .map_err(fail)?,
            (Some(key), None) => self.open.remove(key.as_slice()).map(drop).map_err(fail)?,
            (None, None) => {}
        }
        let named = |pin: Option<&Pin>| pin.and_then(|pin| Some((pin.cid, pin.name.clone()?)));
        let (old, new) = (named(before), named(after));
        if old == new {
            return Ok(());
        }
        if let Some((cid, name)) = old {
            let key = name_key(&name, &cid);
            self.named.remove(key.as_slice()).map(drop).map_err(fail)?;
        }
        if let Some((cid, name)) = new {
            // At most 255.
            let length = name.as_str().len() as u8;
            let key = name_key(&name, &cid);
            self.named
                .insert(key.as_slice(), length)
                .map(drop)
                .map_err(fail)?;
        }
        Ok(())
    }

    fn note(&mut self, fact: &'static str, number: u64) -> Result<(), Fail> {
        let noted = self.facts.insert(fact, number).map(drop);
        noted.map_err(|e| redb_fail(self.path, &e.into()))
    }
}

impl Records for Tables<'_> {
    fn get(&self, cid: &Cid) -> Result<Option<Pin>, Fail> {
        let row = self.pins.get(encode_key(cid).as_slice());
        let row = row.map_err(|e| redb_fail(self.path, &e.into()))?;
        let pin = row.map(|row| decode_record(*cid, row.value()));
        pin.transpose().map_err(|e| record_fail(self.path, &e))
    }

    fn put(&mut self, cid: &Cid, before: Option<&Pin>, after: Option<&Pin>) -> Result<(), Fail> {
        let key = encode_key(cid);
        let written = match after.map(gemba_pins::encode_record) {
            Some(record) => self
                .pins
                .insert(key.as_slice(), record.as_slice())
                .map(drop),
            None => self.pins.remove(key.as_slice()).map(drop),
        };
        written.map_err(|e| redb_fail(self.path, &e.into()))?;
        self.list(before, after)?;
        self.note(LAST_ID, self.last_id)?;
        self.note(LISTED, 1)
    }

    fn last_id(&self) -> u64 {
        self.last_id
    }

    fn set_last_id(&mut self, id: u64) {
        self.last_id = id;
    }
}

fn behind(key: &[u8]) -> (std::ops::Bound<&[u8]>, std::ops::Bound<&[u8]>) {
    (std::ops::Bound::Excluded(key), std::ops::Bound::Unbounded)
}

fn name_key(name: &Name, cid: &Cid) -> Vec<u8> {
    let mut key = name.as_str().as_bytes().to_vec();
    key.push(0);
    key.extend(encode_key(cid));
    key
}

fn name_and_root(key: &[u8], length: u8) -> Option<(String, Cid)> {
    let (name, root) = key.split_at_checked(usize::from(length))?;
    let name = std::str::from_utf8(name).ok()?.to_owned();
    Some((name, decode_key(root.get(1..)?).ok()?))
}

/// A change that cannot be.
pub fn pin_fail(error: PinError) -> Fail {
    match error {
        PinError::NotPinned(_) => {
            Fail::new(Code::NotFound, error).hint("`gemba pin ls` lists the pins")
        }
        _ => Fail::new(Code::Conflict, error),
    }
}

#[cfg(test)]
pub(crate) mod bucket;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::bucket::Bucket;
    use super::*;
    use crate::repo::Access;
    use gemba_pins::Kind;

    fn cid(text: &str) -> Cid {
        *gemba_block::Block::raw(text.as_bytes().to_vec())
            .unwrap()
            .cid()
    }

    fn add(text: &str, kind: Kind, name: Option<&str>) -> Add {
        Add {
            cid: cid(text),
            kind,
            name: name.map(|name| Name::new(name).unwrap()),
            now_ms: 7,
        }
    }

    fn meta() -> (tempfile::TempDir, Meta) {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        (dir, meta)
    }

    /// A state, and how the same is opened again.
    struct Kept {
        state: Box<dyn PinState>,
        reopen: Box<dyn Fn() -> Box<dyn PinState>>,
    }

    impl Kept {
        fn again(self) -> Self {
            drop(self.state);
            let state = (self.reopen)();
            Self { state, ..self }
        }
    }

    /// The table of the daemon, and objects in a bucket: the suite runs over each.
    fn both() -> [Kept; 2] {
        let (dir, meta) = meta();
        let bucket = Bucket::default();
        [
            Kept {
                state: Box::new(meta),
                reopen: Box::new(move || Box::new(Meta::open(dir.path(), Access::Write).unwrap())),
            },
            Kept {
                state: Box::new(bucket.clone()),
                reopen: Box::new(move || Box::new(bucket.clone())),
            },
        ]
    }

    /// The two lists say what the records say, whatever was done.
    fn check(meta: &dyn PinState) {
        let rows = meta.pins().unwrap();
        let pins: Vec<Pin> = rows.iter().map(Result::unwrap).collect();
        let open: Vec<Cid> = pins.iter().filter(|p| !p.complete).map(|p| p.cid).collect();
        let (listed, more) = rows.open_page(None, 1000).unwrap();
        assert_eq!(listed.iter().map(|p| p.cid).collect::<Vec<_>>(), open);
        assert!(!more && rows.open_len().unwrap() == open.len() as u64);
        let mut named: Vec<(String, Cid)> = pins
            .iter()
            .filter_map(|p| Some((p.name.as_ref()?.as_str().to_owned(), p.cid)))
            .collect();
        let mut listed = rows.named_like("").unwrap();
        named.sort();
        listed.sort();
        assert_eq!(listed, named);
        assert_eq!(rows.count().unwrap(), pins.len() as u64);
    }

    #[test]
    fn s1_33_s4_22_pins_are_found_by_name_and_the_lists_follow_the_records() {
        for kept in both() {
            found_by_name(kept);
        }
    }

    fn found_by_name(kept: Kept) {
        let meta = &*kept.state;
        let own = |text, name| PinEdit::Own(add(text, Kind::Recursive, name));
        meta.edit(&[
            own("a", Some("app")),
            own("b", Some("app\0x")),
            own("c", None),
        ])
        .unwrap();
        check(meta);
        let edited = meta
            .edit_one(PinEdit::Whole(add("a", Kind::Recursive, Some("b")), None))
            .unwrap();
        assert!(edited.after.unwrap().complete && !edited.before.unwrap().complete);
        check(meta);
        let named = meta.pins().unwrap().named_like("app").unwrap();
        assert_eq!(named, [("app\0x".to_owned(), cid("b"))]);
        let rows = meta.pins().unwrap();
        assert_eq!(rows.named("app\0x").unwrap(), [cid("b")]);
        assert!(rows.named("app").unwrap().is_empty() && rows.named("x").unwrap().is_empty());
        let struck = PinEdit::Plain(cid("a"), Edit::Incomplete);
        meta.edit(&[struck, PinEdit::Release(cid("b"), None)])
            .unwrap();
        check(meta);
        let gone = meta.edit(&[PinEdit::Release(cid("b"), None)]).unwrap();
        assert_eq!(gone[0].as_ref().unwrap_err().code, Code::NotFound);
        drop(rows);
        check(&*kept.again().state);
    }

    #[test]
    fn s4_22_a_count_that_comes_late_makes_nothing_whole() {
        for kept in both() {
            late_count(&*kept.state);
        }
    }

    fn late_count(meta: &dyn PinState) {
        let whole = PinEdit::Whole(add("a", Kind::Recursive, None), None);
        let id = meta.edit_one(whole).unwrap().after.unwrap().id;
        let size = Size {
            blocks: 1,
            bytes: 1,
        };
        let measured = PinEdit::Measured(cid("a"), id, size);
        let counted = meta.edit_one(measured.clone()).unwrap().after.unwrap();
        assert_eq!((counted.size, counted.complete), (Some(size), true));
        meta.edit_one(PinEdit::Plain(cid("a"), Edit::Incomplete))
            .unwrap();
        let late = meta.edit_one(measured).unwrap().after.unwrap();
        assert!(!late.complete && late.size.is_none());
        let unknown = PinEdit::Measured(cid("b"), id, size);
        assert!(meta.edit_one(unknown).unwrap().after.is_none());
    }

    #[test]
    fn s4_22_ids_are_never_given_twice_whatever_was_removed() {
        for kept in both() {
            let own = PinEdit::Own(add("a", Kind::Recursive, None));
            let first = kept.state.edit_one(own.clone()).unwrap();
            let released = PinEdit::Release(cid("a"), None);
            kept.state.edit_one(released).unwrap();
            let kept = kept.again();
            let second = kept.state.edit_one(own).unwrap();
            assert!(second.after.unwrap().id > first.after.unwrap().id);
        }
    }

    #[test]
    fn s4_22_what_comes_from_a_list_takes_nothing_away() {
        for kept in both() {
            from_a_list(&*kept.state);
        }
    }

    fn from_a_list(meta: &dyn PinState) {
        let whole = PinEdit::Whole(add("a", Kind::Recursive, Some("mine")), None);
        meta.edit_one(whole).unwrap();
        let kept = meta.edit_one(PinEdit::Listed(add("a", Kind::Direct, Some("theirs"))));
        let kept = kept.unwrap();
        assert_eq!(kept.before, kept.after);
        meta.edit_one(PinEdit::Own(add("b", Kind::Direct, None)))
            .unwrap();
        let widened = meta.edit_one(PinEdit::Listed(add("b", Kind::Recursive, Some("theirs"))));
        let widened = widened.unwrap().after.unwrap();
        assert_eq!(
            (widened.kind, widened.name.unwrap().as_str()),
            (Kind::Recursive, "theirs")
        );
    }

    #[test]
    fn s4_22_the_old_one_is_released_only_when_the_new_one_is_whole() {
        for kept in both() {
            released_last(&*kept.state);
        }
    }

    fn released_last(meta: &dyn PinState) {
        meta.edit_one(PinEdit::Whole(add("old", Kind::Recursive, None), None))
            .unwrap();
        let wish = meta
            .edit_one(PinEdit::Own(add("new", Kind::Recursive, None)))
            .unwrap();
        let replace = PinEdit::Replace(cid("old"), cid("new"), None);
        let refused = meta.edit_one(replace.clone()).unwrap_err();
        assert_eq!(refused.code, Code::Conflict);
        assert!(meta.pins().unwrap().get(&cid("old")).unwrap().is_some());
        let id = wish.after.unwrap().id;
        meta.edit_one(PinEdit::Plain(
            cid("new"),
            Edit::Complete { id, size: None },
        ))
        .unwrap();
        meta.edit_one(replace).unwrap();
        assert!(meta.pins().unwrap().get(&cid("old")).unwrap().is_none());
    }

    /// A file that was written before there were lists.
    #[test]
    fn the_lists_are_made_for_an_older_file() {
        let (dir, meta) = meta();
        let own = |text, name| PinEdit::Own(add(text, Kind::Recursive, name));
        meta.edit(&[own("a", Some("app")), own("b", None)]).unwrap();
        meta.transact(|transaction| {
            transaction.delete_table(OPEN).unwrap();
            transaction.delete_table(NAMED).unwrap();
            let mut facts = transaction.open_table(FACTS).unwrap();
            facts.remove(LISTED).unwrap();
            facts.remove(LAST_ID).unwrap();
            Ok(())
        })
        .unwrap();
        drop(meta);
        let reader = Meta::open(dir.path(), Access::Read).unwrap();
        check(&reader);
        drop(reader);
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        check(&meta);
        assert_eq!(meta.edit_one(own("c", None)).unwrap().after.unwrap().id, 3);
    }
}
