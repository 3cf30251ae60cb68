//! Where a consumer's offsets live: in the transaction that holds what it did (S3.22, S3.43).
//!
//! A store of the user's own implements two small traits, and what a handler does in its transaction becomes durable together with the
//! offset, or not at all. Here are two implementations: [`MemoryStore`] for tests, and `RedbStore` (feature `redb`), one file.
//!
//! Transactions of one store follow each other: the next begins when the one before ended. So a count that is read, raised and written back is
//! never lost to another worker.

mod memory;
mod overlay;
#[cfg(feature = "redb")]
mod redb;

pub use memory::{MemoryStore, MemoryTx};
#[cfg(feature = "redb")]
pub use redb::{RedbStore, RedbTx};

/// A store failed. The consumer that used it stops, since nobody knows what is durable; open it again.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StateError {
    /// The store's own error.
    #[error("the state store failed: {0}")]
    Store(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A value is not what the caller took it for.
    #[error("{what} of the state store is damaged")]
    Damaged {
        /// Which one.
        what: String,
    },
}

impl StateError {
    /// Wraps the error of a store.
    pub fn store(error: impl std::error::Error + Send + Sync + 'static) -> Self {
        Self::Store(Box::new(error))
    }
}

/// Rows of gemba and of the user in one transactional store.
pub trait StateStore: Send + Sync {
    /// Its transaction.
    type Tx<'a>: Transaction
    where
        Self: 'a;

    /// Begins a transaction; waits while another one lasts.
    ///
    /// # Errors
    /// [`StateError`].
    fn begin(&self) -> Result<Self::Tx<'_>, StateError>;
}

impl<T: StateStore> StateStore for std::sync::Arc<T> {
    type Tx<'a>
        = T::Tx<'a>
    where
        Self: 'a;

    fn begin(&self) -> Result<Self::Tx<'_>, StateError> {
        (**self).begin()
    }
}

/// Key and value.
pub type Row = (Vec<u8>, Vec<u8>);

/// A transaction. Dropped without [`commit`](Self::commit), it never was.
///
/// Rows are gemba's: a table or a column family of their own, keys and values are bytes (keys up to 1 KiB, values up to 2 MiB).
pub trait Transaction {
    /// The row of this key, as this transaction sees it.
    ///
    /// # Errors
    /// [`StateError`].
    fn row(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Writes a row, or deletes it.
    ///
    /// # Errors
    /// [`StateError`].
    fn put_row(&mut self, key: &[u8], value: Option<&[u8]>) -> Result<(), StateError>;

    /// Up to `limit` rows whose keys begin with `prefix` and come after `after`, in the order of keys.
    ///
    /// # Errors
    /// [`StateError`].
    fn rows(
        &mut self,
        prefix: &[u8],
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Vec<Row>, StateError>;

    /// A place to return to: what the handler does from here on is one event's work. Replaces the place before.
    ///
    /// # Errors
    /// [`StateError`].
    fn savepoint(&mut self) -> Result<(), StateError>;

    /// Returns to the savepoint: the event was refused, what it did is undone, what others did before stays.
    ///
    /// # Errors
    /// [`StateError`].
    fn rollback(&mut self) -> Result<(), StateError>;

    /// Makes it durable. When it returns, neither a crash nor a power cut takes anything back.
    ///
    /// # Errors
    /// [`StateError`]; it is not known then whether the transaction was done.
    fn commit(self) -> Result<(), StateError>;
}

/// A transaction in which a handler keeps values under keys.
pub trait KeyValue: Transaction {
    /// The value of this key.
    ///
    /// # Errors
    /// [`StateError`].
    fn get(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, StateError>;

    /// Sets it.
    ///
    /// # Errors
    /// [`StateError`].
    fn put(&mut self, key: &[u8], value: &[u8]) -> Result<(), StateError>;

    /// Deletes it.
    ///
    /// # Errors
    /// [`StateError`].
    fn remove(&mut self, key: &[u8]) -> Result<(), StateError>;

    /// The number under this key; 0 if there is none.
    ///
    /// # Errors
    /// [`StateError::Damaged`] if the value has not 8 bytes.
    fn count(&mut self, key: &[u8]) -> Result<u64, StateError> {
        match self.get(key)? {
            None => Ok(0),
            Some(value) => match value.try_into() {
                Ok(bytes) => Ok(u64::from_be_bytes(bytes)),
                Err(_) => Err(StateError::Damaged {
                    what: format!("the count {:?}", String::from_utf8_lossy(key)),
                }),
            },
        }
    }

    /// Adds to the number under this key, and returns the sum.
    ///
    /// # Errors
    /// As [`count`](Self::count).
    fn add(&mut self, key: &[u8], n: u64) -> Result<u64, StateError> {
        let sum = self.count(key)?.saturating_add(n);
        self.put(key, &sum.to_be_bytes())?;
        Ok(sum)
    }
}
