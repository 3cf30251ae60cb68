//! What is small and transactional: the pins, the book of names and what is followed, in `meta/meta.redb`.
//!
//! Every commit is two-phase and carries what redb needs for a quick repair, so that an unclean stop costs neither a pin nor a long start.
//!
//! redb trusts its file: where bytes were changed by a disk or a person it may panic instead of failing. Every call into it is marked
//! (`marked`), so that the program can end with the cause and the way out ([`fail_of_panic`]) instead of a stack trace.

mod pins;

use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use gemba_store::ScrubPoint;
use redb::backends::InMemoryBackend;
use redb::{
    Database, DatabaseError, ReadOnlyDatabase, ReadableDatabase as _, ReadableTable as _,
    StorageBackend as _, TableDefinition, TableError,
};

use crate::error::{Code, Fail};
use crate::repo::Access;

#[cfg(test)]
pub(crate) use pins::bucket;
pub use pins::{Edited, PinEdit, PinRows, PinState, pin_fail};

const FILE: &str = "meta.redb";
const PINS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("pins");
/// The book of names: rows of specs/names.md §4.
const NAMES: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("names");
/// What is followed, and which versions are kept: a row a name, in JSON.
const FOLLOWS: TableDefinition<'static, &[u8], &[u8]> = TableDefinition::new("follows");
/// Numbers that are compared at the next start.
const FACTS: TableDefinition<'static, &str, u64> = TableDefinition::new("facts");
/// How many packs the store had.
const PACKS: &str = "packs";
/// When the round of the scrub began, where it is (as far as the store tells it: pack, offset), and whether it is over.
const SCRUB: [&str; 4] = ["scrub_begun", "scrub_pack", "scrub_offset", "scrub_done"];
/// redb's page cache, in bytes (DESIGN §7).
const CACHE_BYTES: usize = 16 * 1024 * 1024;
/// Largest database that a reader repairs in memory, in bytes: about two million pins.
const MAX_IN_MEMORY: u64 = 256 * 1024 * 1024;

/// How far the scrub is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubNote {
    /// When this round began, in seconds since 1970; 0 before the first one.
    pub begun_s: u64,
    /// Everything before was read.
    pub point: ScrubPoint,
    /// The round is over.
    pub done: bool,
}

/// A table of rows that other modules know the form of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// The book of names.
    Names,
    /// What is followed.
    Follows,
}

/// Key and value of a row.
pub type Stored = (Vec<u8>, Vec<u8>);

/// A row to be written, or removed where it has no value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Where.
    pub table: Table,
    /// Its key.
    pub key: Vec<u8>,
    /// Its value.
    pub value: Option<Vec<u8>>,
}

impl Table {
    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        match self {
            Self::Names => NAMES,
            Self::Follows => FOLLOWS,
        }
    }
}

/// The metadata of one repository.
pub struct Meta {
    path: PathBuf,
    db: Db,
    /// Opens the file to write, at the start and after a failed write; tests have another disk below it.
    open: Open,
}

type Open = Box<dyn Fn(&Path) -> Result<Database, DatabaseError> + Send + Sync>;

enum Db {
    /// `None` after a failed write: redb takes no more of them then, so the file is opened anew for the next one.
    Write {
        /// Behind an `Arc`, so that nobody who begins to read waits for a write to end.
        held: Mutex<Option<Arc<Database>>>,
        /// One writer at a time: when a write failed, nobody else has the old database.
        writing: Mutex<()>,
    },
    Read(ReadOnlyDatabase),
    /// A reader's copy, repaired in memory: the file is the business of the next writer.
    Copy(Database),
    /// Being dropped.
    Closed,
}

impl Meta {
    /// Makes an empty database; what an interrupted `init` left is thrown away.
    ///
    /// # Errors
    /// The file system refuses.
    pub(crate) fn create(dir: &Path) -> Result<(), Fail> {
        let path = dir.join(FILE);
        match std::fs::remove_file(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
            Err(e) => return Err(Fail::io(&path, &e)),
        }
        let meta = Self {
            db: Db::write(builder().create(&path).map_err(|e| broken(&path, e))?),
            path,
            open: Box::new(open_file),
        };
        meta.transact(|transaction| {
            transaction
                .open_table(PINS)
                .map(drop)
                .map_err(|e| meta.fail(e))
        })?;
        meta.list_pins()?;
        crate::files::sync_parent(&meta.path)
    }

    /// Opens the database below `dir`. With [`Access::Read`] nothing is written: after an unclean stop that redb cannot read through, the
    /// reader repairs a copy in memory.
    ///
    /// # Errors
    /// [`Code::Integrity`] for damage, [`Code::Conflict`] for a newer format.
    pub fn open(dir: &Path, access: Access) -> Result<Self, Fail> {
        let path = dir.join(FILE);
        let db = marked(&path, || open_db(&path, access))?;
        let meta = Self {
            path,
            db,
            open: Box::new(open_file),
        };
        if access == Access::Write {
            meta.list_pins()?;
        }
        Ok(meta)
    }

    /// As [`Meta::open`] to write, over whatever holds its bytes; an empty one is made a database.
    ///
    /// # Errors
    /// As [`Meta::open`].
    #[cfg(test)]
    pub(crate) fn over<B: redb::StorageBackend>(
        backend: impl Fn() -> B + Send + Sync + 'static,
    ) -> Result<Self, Fail> {
        let path = PathBuf::from(FILE);
        let open: Open = Box::new(move |_| builder().create_with_backend(backend()));
        let db = marked(&path, || open(&path).map_err(|e| broken(&path, e)))?;
        let meta = Self {
            path,
            db: Db::write(db),
            open,
        };
        meta.transact(|transaction| {
            let made = transaction.open_table(PINS).map(drop);
            made.map_err(|e| meta.fail(e))
        })?;
        meta.list_pins()?;
        Ok(meta)
    }

    /// All rows of a table: key and value.
    ///
    /// # Errors
    /// The disk refuses, or the file is damaged.
    pub fn rows(&self, table: Table) -> Result<Vec<Stored>, Fail> {
        marked(&self.path, || {
            let table = match self.begin_read()?.open_table(table.definition()) {
                Ok(table) => table,
                Err(TableError::TableDoesNotExist(_)) => return Ok(Vec::new()),
                Err(e) => return Err(self.fail(e)),
            };
            let rows = table.iter().map_err(|e| self.fail(e))?;
            rows.map(|row| {
                let (key, value) = row.map_err(|e| self.fail(e))?;
                Ok((key.value().to_vec(), value.value().to_vec()))
            })
            .collect()
        })
    }

    /// Writes rows in their order, all of them or none; durable when this returns.
    ///
    /// # Errors
    /// As [`Meta::edit`].
    pub fn write_rows(&self, rows: &[Row]) -> Result<(), Fail> {
        self.transact(|transaction| {
            for row in rows {
                let mut table = transaction
                    .open_table(row.table.definition())
                    .map_err(|e| self.fail(e))?;
                match &row.value {
                    Some(value) => table.insert(row.key.as_slice(), value.as_slice()).map(drop),
                    None => table.remove(row.key.as_slice()).map(drop),
                }
                .map_err(|e| self.fail(e))?;
            }
            Ok(())
        })
    }

    /// How many packs the store had when it was last noted; 0 if it never was.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn packs(&self) -> Result<u64, Fail> {
        marked(&self.path, || self.read_packs())
    }

    fn read_packs(&self) -> Result<u64, Fail> {
        let [packs] = self.facts([PACKS])?;
        Ok(packs)
    }

    /// Numbers by name; 0 for what was never noted.
    fn facts<const N: usize>(&self, names: [&str; N]) -> Result<[u64; N], Fail> {
        let mut numbers = [0; N];
        let table = match self.begin_read()?.open_table(FACTS) {
            Ok(table) => table,
            Err(TableError::TableDoesNotExist(_)) => return Ok(numbers),
            Err(e) => return Err(self.fail(e)),
        };
        for (number, name) in numbers.iter_mut().zip(names) {
            let noted = table.get(name).map_err(|e| self.fail(e))?;
            *number = noted.map_or(0, |noted| noted.value());
        }
        Ok(numbers)
    }

    /// Where the scrub was when it was last noted.
    ///
    /// # Errors
    /// The disk refuses.
    pub fn scrub(&self) -> Result<ScrubNote, Fail> {
        let [begun_s, pack, offset, done] = marked(&self.path, || self.facts(SCRUB))?;
        Ok(ScrubNote {
            begun_s,
            // What is no place begins anew.
            point: format!("{pack}:{offset}").parse().unwrap_or_default(),
            done: done != 0,
        })
    }

    /// Notes where the scrub is.
    ///
    /// # Errors
    /// As [`Meta::edit`].
    pub fn note_scrub(&self, note: &ScrubNote) -> Result<(), Fail> {
        let point = note.point.to_string();
        let (pack, offset) = point.split_once(':').unwrap_or((&point, "0"));
        let number = |text: &str| text.parse().unwrap_or(0);
        let numbers = [
            note.begun_s,
            number(pack),
            number(offset),
            u64::from(note.done),
        ];
        self.transact(|transaction| {
            let mut table = transaction.open_table(FACTS).map_err(|e| self.fail(e))?;
            for (name, number) in SCRUB.into_iter().zip(numbers) {
                table.insert(name, number).map_err(|e| self.fail(e))?;
            }
            Ok(())
        })
    }

    /// Notes how many packs the store has, so that the next start knows whether some are gone.
    ///
    /// # Errors
    /// As [`Meta::edit`].
    pub fn note_packs(&self, packs: u64) -> Result<(), Fail> {
        self.transact(|transaction| {
            let mut table = transaction.open_table(FACTS).map_err(|e| self.fail(e))?;
            table.insert(PACKS, packs).map_err(|e| self.fail(e))?;
            Ok(())
        })
    }

    /// All of `edit` or nothing of it, durable when it returns.
    fn transact<T>(
        &self,
        edit: impl FnOnce(&redb::WriteTransaction) -> Result<T, Fail>,
    ) -> Result<T, Fail> {
        let Db::Write { held, writing } = &self.db else {
            return Err(Fail::new(Code::Failure, "the metadata was opened to read"));
        };
        marked(&self.path, || {
            let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let written = self.opened(held).and_then(|db| {
                let mut transaction = db.begin_write().map_err(|e| self.fail(e))?;
                transaction.set_two_phase_commit(true);
                transaction.set_quick_repair(true);
                let outcome = edit(&transaction)?;
                transaction.commit().map_err(|e| self.fail(e))?;
                Ok(outcome)
            });
            if written.is_err() {
                *held.lock().unwrap_or_else(PoisonError::into_inner) = None;
            }
            written
        })
    }

    /// Only inside of [`marked`].
    fn begin_read(&self) -> Result<redb::ReadTransaction, Fail> {
        match &self.db {
            Db::Write { held, .. } => self.opened(held)?.begin_read(),
            Db::Copy(db) => db.begin_read(),
            Db::Read(db) => db.begin_read(),
            Db::Closed => return Err(Fail::internal("the metadata is closed")),
        }
        .map_err(|e| self.fail(e))
    }

    /// The database, opened anew if the last write failed.
    fn opened(&self, held: &Mutex<Option<Arc<Database>>>) -> Result<Arc<Database>, Fail> {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(db) = held.as_ref() {
            return Ok(Arc::clone(db));
        }
        let opened = (self.open)(&self.path);
        let db = Arc::new(opened.map_err(|e| broken(&self.path, e))?);
        *held = Some(Arc::clone(&db));
        Ok(db)
    }

    fn fail(&self, error: impl Into<redb::Error>) -> Fail {
        redb_fail(&self.path, &error.into())
    }
}

impl Db {
    fn write(db: Database) -> Self {
        Self::Write {
            held: Mutex::new(Some(Arc::new(db))),
            writing: Mutex::default(),
        }
    }
}

impl Drop for Meta {
    /// redb writes and checks when it is closed, too.
    fn drop(&mut self) {
        marked(&self.path, || {
            drop(std::mem::replace(&mut self.db, Db::Closed));
        });
    }
}

fn open_db(path: &Path, access: Access) -> Result<Db, Fail> {
    let fail = |e| broken(path, e);
    Ok(match access {
        Access::Write => Db::write(open_file(path).map_err(fail)?),
        Access::Read => match builder().open_read_only(path) {
            Ok(db) => Db::Read(db),
            Err(DatabaseError::RepairAborted) => Db::Copy(repaired_copy(path)?),
            Err(e) => return Err(fail(e)),
        },
    })
}

fn open_file(path: &Path) -> Result<Database, DatabaseError> {
    builder().open(path)
}

fn builder() -> redb::Builder {
    let mut builder = Database::builder();
    builder.set_cache_size(CACHE_BYTES);
    builder
}

fn repaired_copy(path: &Path) -> Result<Database, Fail> {
    let length = std::fs::metadata(path)
        .map_err(|e| Fail::io(path, &e))?
        .len();
    if length > MAX_IN_MEMORY {
        return Err(Fail::new(
            Code::Conflict,
            format!(
                "{} was not closed cleanly and is too large to repair in memory",
                path.display()
            ),
        )
        .hint("start the daemon once: it repairs the file"));
    }
    let bytes = std::fs::read(path).map_err(|e| Fail::io(path, &e))?;
    let memory = InMemoryBackend::new();
    memory
        .set_len(length)
        .and_then(|()| memory.write(0, &bytes))
        .map_err(|e| Fail::io(path, &e))?;
    builder()
        .create_with_backend(memory)
        .map_err(|e| broken(path, e))
}

fn broken(path: &Path, error: DatabaseError) -> Fail {
    redb_fail(path, &error.into())
}

fn redb_fail(path: &Path, error: &redb::Error) -> Fail {
    use std::io::ErrorKind as Kind;
    let at = |code| Fail::new(code, format!("{}: {error}", path.display()));
    match error {
        redb::Error::DatabaseAlreadyOpen => at(Code::Conflict).hint("another process has it open"),
        redb::Error::UpgradeRequired(_) => {
            at(Code::Conflict).hint("it was written by another version of gemba: run that one")
        }
        // The repository is there and this file belongs to it: that it is missing, empty or something else is damage.
        redb::Error::Io(e)
            if matches!(
                e.kind(),
                Kind::NotFound | Kind::InvalidData | Kind::InvalidInput | Kind::UnexpectedEof
            ) =>
        {
            damaged(path, e)
        }
        redb::Error::Io(e) => Fail::io(path, e),
        redb::Error::Corrupted(_)
        | redb::Error::TableTypeMismatch { .. }
        | redb::Error::TableIsMultimap(_)
        | redb::Error::TypeDefinitionChanged { .. }
        | redb::Error::RepairAborted => damaged(path, error),
        _ => at(Code::Failure),
    }
}

/// The list of pins cannot be read. The blocks are somewhere else, and so is all that cannot be had again.
fn damaged(path: &Path, cause: &dyn std::fmt::Display) -> Fail {
    let version = path
        .ancestors()
        .nth(2)
        .unwrap_or(Path::new(""))
        .join("version");
    Fail::new(
        Code::Integrity,
        format!("{} is damaged: {cause}", path.display()),
    )
    .hint(format!(
        "it holds only which roots are pinned and what names point to; keys, settings and blocks are not affected. Put a copy of it back, or begin a new list: \
         stop the daemon, move {} away, delete {}, run `gemba init`, which finishes what is missing, and pin and follow again (`gemba pin add CID`, `gemba name follow add NAME`)",
        path.display(),
        version.display()
    ))
}

fn record_fail(path: &Path, error: &gemba_pins::RecordError) -> Fail {
    match error {
        gemba_pins::RecordError::Newer { .. } => Fail::new(Code::Conflict, error),
        _ => damaged(path, error),
    }
}

thread_local! {
    /// The database that this thread is in a call of.
    static INSIDE: RefCell<Option<PathBuf>> = const { RefCell::new(None) };
}

/// Runs a call into redb.
fn marked<T>(path: &Path, call: impl FnOnce() -> T) -> T {
    /// Also when the call panics.
    struct Back(Option<PathBuf>);
    impl Drop for Back {
        fn drop(&mut self) {
            INSIDE.set(self.0.take());
        }
    }
    let _back = Back(INSIDE.replace(Some(path.to_owned())));
    call()
}

/// For a panic hook: the failure to end the program with, if the panic is redb's over a damaged file.
#[must_use]
pub fn fail_of_panic(cause: &str) -> Option<Fail> {
    INSIDE.with_borrow(|inside| inside.as_ref().map(|path| damaged(path, &cause)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemba_pins::{Add, Kind};

    fn add(meta: &Meta, content: &'static str) -> cid::Cid {
        let cid = *gemba_block::Block::raw(content).unwrap().cid();
        let add = Add {
            cid,
            kind: Kind::Recursive,
            name: None,
            now_ms: 5,
        };
        meta.edit_one(PinEdit::Own(add)).unwrap();
        cid
    }

    fn roots(meta: &Meta) -> Vec<cid::Cid> {
        let pins = meta.pins().unwrap();
        pins.iter().map(|pin| pin.unwrap().cid).collect()
    }

    #[test]
    fn pins_survive_reopening_and_readers_share() {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        let (a, b) = (add(&meta, "a"), add(&meta, "b"));
        let gone = PinEdit::Release(b, None);
        meta.edit_one(gone.clone()).unwrap();
        drop(meta);
        let one = Meta::open(dir.path(), Access::Read).unwrap();
        let two = Meta::open(dir.path(), Access::Read).unwrap();
        for meta in [&one, &two] {
            assert_eq!(roots(meta), [a]);
        }
        assert_eq!(one.edit_one(gone).unwrap_err().code, Code::Failure);
    }

    #[test]
    fn the_place_of_the_scrub_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let note = ScrubNote {
            begun_s: 1_700_000_000,
            point: "12:4096".parse().unwrap(),
            done: true,
        };
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        assert_eq!(meta.scrub().unwrap(), ScrubNote::default());
        meta.note_scrub(&note).unwrap();
        meta.note_packs(3).unwrap();
        drop(meta);
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        assert_eq!((meta.scrub().unwrap(), meta.packs().unwrap()), (note, 3));
    }

    #[test]
    fn the_number_of_packs_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        assert_eq!(meta.packs().unwrap(), 0);
        meta.note_packs(7).unwrap();
        drop(meta);
        let meta = Meta::open(dir.path(), Access::Read).unwrap();
        assert_eq!(meta.packs().unwrap(), 7);
        assert!(meta.note_packs(8).is_err());
    }

    /// A copy of the file while it is open is what a killed process leaves.
    #[test]
    fn s0_5_readers_see_the_pins_after_an_unclean_stop() {
        let dir = tempfile::tempdir().unwrap();
        Meta::create(dir.path()).unwrap();
        let meta = Meta::open(dir.path(), Access::Write).unwrap();
        let pinned = add(&meta, "a");
        let after = tempfile::tempdir().unwrap();
        std::fs::copy(dir.path().join(FILE), after.path().join(FILE)).unwrap();
        drop(meta);
        for access in [Access::Read, Access::Write] {
            assert_eq!(roots(&Meta::open(after.path(), access).unwrap()), [pinned]);
        }
    }
}
