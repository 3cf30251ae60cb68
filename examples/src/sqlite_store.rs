//! A state store in a database of SQLite: gemba's rows lie in a table beside the user's own, and one transaction writes both.
//!
//! What a handler does with `tx.execute(…)` is durable together with the offset, or not at all. This is all that a database has to have for that:
//! transactions with savepoints, and a commit that is on the disk when it returns.

use gemba_log::store::{Row, StateError, StateStore, Transaction};
use rusqlite::{Connection, OptionalExtension as _, params};
use std::{
    ops::Deref,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// A commit is flushed: without that, a power cut would take back what the consumer has acknowledged.
const SET_UP: &str = "
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    CREATE TABLE IF NOT EXISTS gemba_rows (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;";
/// Whoever else reads or writes the database may hold it for so long.
const WAIT: Duration = Duration::from_secs(10);

/// A database with gemba's rows in it.
pub(crate) struct SqliteStore(Mutex<Connection>);

impl SqliteStore {
    /// Opens or creates the file; `tables` makes the user's own tables where they are absent.
    pub(crate) fn open(path: &Path, tables: &str) -> Result<Self, StateError> {
        let database = Connection::open(path).map_err(StateError::store)?;
        database.busy_timeout(WAIT).map_err(StateError::store)?;
        for statements in [SET_UP, tables] {
            database
                .execute_batch(statements)
                .map_err(StateError::store)?;
        }
        Ok(Self(Mutex::new(database)))
    }
}

/// A transaction of a [`SqliteStore`]. It is the connection, too: a handler uses it as it uses any database.
pub(crate) struct SqliteTx<'a> {
    database: MutexGuard<'a, Connection>,
    has_savepoint: bool,
}

impl StateStore for SqliteStore {
    type Tx<'a> = SqliteTx<'a>;

    fn begin(&self) -> Result<SqliteTx<'_>, StateError> {
        // A handler that panicked left a transaction, which was rolled back.
        let database = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // It has the right to write from its beginning: who comes second waits, instead of failing at its first row.
        let begun = database.execute_batch("BEGIN IMMEDIATE");
        begun.map_err(StateError::store)?;
        Ok(SqliteTx {
            database,
            has_savepoint: false,
        })
    }
}

impl SqliteTx<'_> {
    fn run(&self, statements: &str) -> Result<(), StateError> {
        self.database
            .execute_batch(statements)
            .map_err(StateError::store)
    }
}

impl Deref for SqliteTx<'_> {
    type Target = Connection;
    fn deref(&self) -> &Connection {
        &self.database
    }
}

impl Drop for SqliteTx<'_> {
    fn drop(&mut self) {
        // After a commit there is none. If it cannot be rolled back, the next one cannot begin, and that is told.
        if !self.database.is_autocommit() {
            let _ = self.database.execute_batch("ROLLBACK");
        }
    }
}

impl Transaction for SqliteTx<'_> {
    fn row(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let mut found = self
            .prepare_cached("SELECT value FROM gemba_rows WHERE key = ?1")
            .map_err(StateError::store)?;
        let value = found.query_row(params![key], |row| row.get(0)).optional();
        value.map_err(StateError::store)
    }

    fn put_row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StateError> {
        let done = match value {
            Some(value) => self.execute(
                "INSERT OR REPLACE INTO gemba_rows (key, value) VALUES (?1, ?2)",
                params![key, value],
            ),
            None => self.execute("DELETE FROM gemba_rows WHERE key = ?1", params![key]),
        };
        done.map(drop).map_err(StateError::store)
    }

    fn rows(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StateError> {
        let of_prefix = "SELECT key, value FROM gemba_rows
            WHERE key >= ?1 AND substr(key, 1, length(?1)) = ?1 AND (?2 IS NULL OR key > ?2) ORDER BY key LIMIT ?3";
        let limit = i64::try_from(limit).unwrap_or(i64::MAX);
        let mut found = self.prepare_cached(of_prefix).map_err(StateError::store)?;
        let rows = found.query_map(params![prefix, after, limit], |row| {
            Ok((row.get(0)?, row.get(1)?))
        });
        let rows: Result<Vec<Row>, _> = rows.map_err(StateError::store)?.collect();
        rows.map_err(StateError::store)
    }

    fn savepoint(&mut self) -> Result<(), StateError> {
        // SQLite ends a transaction by itself when the disk is full or fails. A savepoint would begin another one then, with half of the work.
        if self.is_autocommit() {
            let ended = std::io::Error::other("SQLite has rolled the transaction back");
            return Err(StateError::store(ended));
        }
        if self.has_savepoint {
            self.run("RELEASE one_event")?;
        }
        self.has_savepoint = true;
        self.run("SAVEPOINT one_event")
    }

    fn rollback(&mut self) -> Result<(), StateError> {
        self.run("ROLLBACK TO one_event")
    }

    fn commit(self) -> Result<(), StateError> {
        self.run("COMMIT")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn store(dir: &tempfile::TempDir) -> SqliteStore {
        SqliteStore::open(
            &dir.path().join("x.db"),
            "CREATE TABLE IF NOT EXISTS t (n INTEGER)",
        )
        .unwrap()
    }

    fn sum(store: &SqliteStore) -> i64 {
        let sum = "SELECT coalesce(sum(n), 0) FROM t";
        let tx = store.begin().unwrap();
        tx.query_row(sum, [], |row| row.get(0)).unwrap()
    }

    #[test]
    fn a_rollback_undoes_one_event_in_both_tables_and_nothing_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tx = store.begin().unwrap();
        for (n, is_refused) in [(1, false), (2, true), (4, false), (8, true)] {
            tx.savepoint().unwrap();
            tx.execute("INSERT INTO t VALUES (?1)", [n]).unwrap();
            tx.put_row(b"n", Some(&[n])).unwrap();
            if is_refused {
                tx.rollback().unwrap();
            }
        }
        assert_eq!(tx.row(b"n").unwrap(), Some(vec![4]));
        tx.commit().unwrap();
        assert_eq!(sum(&store), 5);
        // Dropped, it never was.
        let tx = store.begin().unwrap();
        tx.execute("INSERT INTO t VALUES (100)", []).unwrap();
        drop(tx);
        assert_eq!(sum(&store), 5);
    }

    #[test]
    fn rows_come_in_the_order_of_their_keys_by_prefix_and_page() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tx = store.begin().unwrap();
        for key in [
            &b"a"[..],
            b"p\x00",
            b"p\x00\x01",
            b"p\x00\xff\xff",
            b"p\x01",
            b"q",
        ] {
            tx.put_row(key, Some(key)).unwrap();
        }
        let keys = |rows: Vec<Row>| rows.into_iter().map(|(key, _)| key).collect::<Vec<_>>();
        let page = keys(tx.rows(b"p\x00", None, 2).unwrap());
        assert_eq!(page, [&b"p\x00"[..], b"p\x00\x01"]);
        let page = keys(tx.rows(b"p\x00", Some(b"p\x00\x01"), 2).unwrap());
        assert_eq!(page, [b"p\x00\xff\xff"]);
        tx.put_row(b"p\x00", None).unwrap();
        assert_eq!(tx.rows(b"p\x00", None, 9).unwrap().len(), 2);
    }

    #[test]
    fn a_transaction_that_sqlite_ended_does_nothing_more() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir);
        let mut tx = store.begin().unwrap();
        tx.savepoint().unwrap();
        tx.execute("INSERT INTO t VALUES (1)", []).unwrap();
        tx.execute_batch("ROLLBACK").unwrap();
        assert!(tx.savepoint().is_err());
        assert!(tx.rollback().is_err());
        assert!(tx.commit().is_err());
        assert_eq!(sum(&store), 0);
    }
}
