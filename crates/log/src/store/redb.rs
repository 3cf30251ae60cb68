//! A store in one file of redb: one table of gemba's rows, one of the user's values.
//!
//! Commits are durable when they return and use redb's two-phase form: a file that somebody else wrote to while the power went is never
//! taken for a good one. One commit costs two flushes, which is why a whole portion of events is one transaction.

use super::{
    KeyValue, StateError, StateStore, Transaction,
    overlay::{Overlay, merged},
};
use redb::{
    Database, Durability, ReadableTable, StorageBackend, TableDefinition, WriteTransaction,
};
use std::{fmt, path::Path};

const ROWS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("gemba_consumers_1");
const STATE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("gemba_state_1");
/// Page cache of redb, in bytes: a consumer touches few pages.
const CACHE_BYTES: usize = 1 << 20;

/// A redb file. It is locked: a second process that opens it is refused, which is the first fence of a consumer.
pub struct RedbStore(Database);

impl RedbStore {
    /// Opens or creates the file.
    ///
    /// # Errors
    /// [`StateError`]: it is open elsewhere, damaged, or the disk failed.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        Self::prepare(builder.create(path).map_err(StateError::store)?)
    }

    /// On another medium; for tests on a disk that forgets.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn on(backend: impl StorageBackend) -> Result<Self, StateError> {
        let mut builder = Database::builder();
        builder.set_cache_size(CACHE_BYTES);
        let database = builder.create_with_backend(backend);
        Self::prepare(database.map_err(StateError::store)?)
    }

    fn prepare(database: Database) -> Result<Self, StateError> {
        let store = Self(database);
        let tx = store.write()?;
        tx.open_table(ROWS).map_err(StateError::store)?;
        tx.open_table(STATE).map_err(StateError::store)?;
        tx.commit().map_err(StateError::store)?;
        Ok(store)
    }

    fn write(&self) -> Result<WriteTransaction, StateError> {
        let mut tx = self.0.begin_write().map_err(StateError::store)?;
        tx.set_durability(Durability::Immediate)
            .map_err(StateError::store)?;
        tx.set_two_phase_commit(true);
        Ok(tx)
    }
}

impl fmt::Debug for RedbStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedbStore")
    }
}

/// A transaction of a [`RedbStore`].
pub struct RedbTx {
    tx: WriteTransaction,
    rows: Overlay,
    state: Overlay,
}

impl fmt::Debug for RedbTx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RedbTx")
    }
}

impl StateStore for RedbStore {
    type Tx<'a> = RedbTx;

    fn begin(&self) -> Result<RedbTx, StateError> {
        Ok(RedbTx {
            tx: self.write()?,
            rows: Overlay::default(),
            state: Overlay::default(),
        })
    }
}

impl RedbTx {
    fn read(
        &self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        key: &[u8],
    ) -> Result<Option<Vec<u8>>, StateError> {
        let table = self.tx.open_table(table).map_err(StateError::store)?;
        let value = table.get(key).map_err(StateError::store)?;
        Ok(value.map(|value| value.value().to_vec()))
    }

    fn write(
        &self,
        table: TableDefinition<'_, &'static [u8], &'static [u8]>,
        changes: Overlay,
    ) -> Result<(), StateError> {
        let mut table = self.tx.open_table(table).map_err(StateError::store)?;
        for (key, value) in changes.into_changes() {
            match value {
                Some(value) => drop(
                    table
                        .insert(key.as_slice(), value.as_slice())
                        .map_err(StateError::store)?,
                ),
                None => drop(table.remove(key.as_slice()).map_err(StateError::store)?),
            }
        }
        Ok(())
    }
}

impl Transaction for RedbTx {
    fn row(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.rows.get(key) {
            Some(change) => Ok(change.cloned()),
            None => self.read(ROWS, key),
        }
    }

    fn put_row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StateError> {
        self.rows.put(key, value);
        Ok(())
    }

    fn rows(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<(Vec<u8>, Vec<u8>)>, StateError> {
        let table = self.tx.open_table(ROWS).map_err(StateError::store)?;
        let mut base = std::collections::BTreeMap::new();
        let first = after.unwrap_or(prefix);
        for entry in table.range(first..).map_err(StateError::store)? {
            let (key, value) = entry.map_err(StateError::store)?;
            if !key.value().starts_with(prefix) {
                break;
            }
            if after.is_none_or(|after| key.value() > after) {
                base.insert(key.value().to_vec(), value.value().to_vec());
            }
        }
        Ok(merged(base, &self.rows, prefix, after, limit))
    }

    fn savepoint(&mut self) -> Result<(), StateError> {
        self.rows.savepoint();
        self.state.savepoint();
        Ok(())
    }

    fn rollback(&mut self) -> Result<(), StateError> {
        self.rows.rollback();
        self.state.rollback();
        Ok(())
    }

    fn commit(mut self) -> Result<(), StateError> {
        let (rows, state) = (
            std::mem::take(&mut self.rows),
            std::mem::take(&mut self.state),
        );
        self.write(ROWS, rows)?;
        self.write(STATE, state)?;
        self.tx.commit().map_err(StateError::store)
    }
}

impl KeyValue for RedbTx {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        match self.state.get(key) {
            Some(change) => Ok(change.cloned()),
            None => self.read(STATE, key),
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError> {
        self.state.put(key, Some(value));
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), StateError> {
        self.state.put(key, None);
        Ok(())
    }
}
