//! A store in memory, for tests and for state that may be lost: what was committed outlives the consumer, not the process.

use super::{
    KeyValue, StateError, StateStore, Transaction,
    overlay::{Overlay, merged},
};
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

#[derive(Debug, Default)]
struct Tables {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    state: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Committed rows and values; clones are one store. Unbounded.
#[derive(Debug, Clone, Default)]
pub struct MemoryStore(Arc<Mutex<Tables>>);

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// A copy of what is committed, as a backup is one.
    pub fn copy(&self) -> Self {
        let tables = self.lock();
        Self(Arc::new(Mutex::new(Tables {
            rows: tables.rows.clone(),
            state: tables.state.clone(),
        })))
    }

    fn lock(&self) -> MutexGuard<'_, Tables> {
        // A transaction changes nothing before its commit, which cannot panic half-way.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A transaction of a [`MemoryStore`].
#[derive(Debug)]
pub struct MemoryTx<'a> {
    tables: MutexGuard<'a, Tables>,
    rows: Overlay,
    state: Overlay,
}

impl StateStore for MemoryStore {
    type Tx<'a> = MemoryTx<'a>;

    fn begin(&self) -> Result<MemoryTx<'_>, StateError> {
        Ok(MemoryTx {
            tables: self.lock(),
            rows: Overlay::default(),
            state: Overlay::default(),
        })
    }
}

impl Transaction for MemoryTx<'_> {
    fn row(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let change = self.rows.get(key).map(|change| change.cloned());
        Ok(change.unwrap_or_else(|| self.tables.rows.get(key).cloned()))
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
        let base = self
            .tables
            .rows
            .range(after.unwrap_or(prefix).to_vec()..)
            .take_while(|(key, _)| key.starts_with(prefix))
            .filter(|(key, _)| after.is_none_or(|after| key.as_slice() > after))
            .map(|(key, value)| (key.clone(), value.clone()))
            .collect();
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

    fn commit(self) -> Result<(), StateError> {
        let Self {
            mut tables,
            rows,
            state,
        } = self;
        apply(&mut tables.rows, rows);
        apply(&mut tables.state, state);
        Ok(())
    }
}

impl KeyValue for MemoryTx<'_> {
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError> {
        let change = self.state.get(key).map(|change| change.cloned());
        Ok(change.unwrap_or_else(|| self.tables.state.get(key).cloned()))
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

fn apply(table: &mut BTreeMap<Vec<u8>, Vec<u8>>, overlay: Overlay) {
    for (key, value) in overlay.into_changes() {
        match value {
            Some(value) => drop(table.insert(key, value)),
            None => drop(table.remove(&key)),
        }
    }
}
