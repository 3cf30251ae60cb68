//! Forgetting a consumer: its rows go, all or none, and with them what it holds back from retention.
//!
//! What it wrote into the log stays: its claims, its dead letters, what it emitted. So does one small row, the number of the next event that it
//! would emit: a consumer of the same name that comes later is the same producer, and the log takes each of its numbers once.

use super::{ConsumeError, Consumer, Keys, LogSink, LogSource, PAGE};
use crate::{
    core::{
        Time,
        consumer::{ConsumerName, Input},
    },
    feed::FeedId,
    store::{StateError, StateStore, Transaction},
};

/// Deletes the places of a consumer, whoever owns it and whether it can be read or not, in the caller's transaction; the feeds that it had a place in.
/// Of one that is open, use [`Consumer::forget`].
///
/// # Errors
/// [`StateError`].
pub fn forget(tx: &mut impl Transaction, name: &ConsumerName) -> Result<Vec<FeedId>, StateError> {
    let keys = Keys::new(name);
    let mut feeds = Vec::new();
    for kind in [b'p', b'e'] {
        let prefix = keys.of(kind, &[]);
        loop {
            // What was read is deleted, so that the next page begins where this one did.
            let page = tx.rows(&prefix, None, PAGE)?;
            for (key, _) in &page {
                feeds.extend(keys.read_position(key));
                tx.put_row(key, None)?;
            }
            if page.is_empty() {
                break;
            }
        }
    }
    tx.put_row(&keys.owner(), None)?;
    Ok(feeds)
}

impl<L: LogSource + LogSink, S: StateStore> Consumer<L, S> {
    /// Forgets the consumer, durably when it returns: its places and leases. It does nothing any more; one of the same name begins anew. `held` says
    /// that workers may lose what they have in hands. `work` is done in the same transaction, with the feeds that had a place.
    ///
    /// # Errors
    /// [`Refused::Held`](crate::core::consumer::Refused::Held) while a worker holds events, unless `held`; then nothing has changed. [`ConsumeError`]:
    /// after one of the log or the store the consumer has to be opened again.
    pub fn forget(
        &self,
        held: bool,
        now: Time,
        work: impl FnOnce(&mut S::Tx<'_>, &[FeedId]) -> Result<(), StateError>,
    ) -> Result<(), ConsumeError> {
        let name = {
            let mut inner = self.lock();
            inner.core.expire(now);
            inner.core.handle(Input::Forget { held }, now)?;
            inner.core.config().name.clone()
        };
        // What its transactions promised to the log is there before the rows go that say so.
        self.flush_emitted()?;
        let mut tx = self.store.begin()?;
        if !held {
            self.check_owner(&mut tx)?;
        }
        let feeds = forget(&mut tx, &name)?;
        work(&mut tx, &feeds)?;
        Ok(tx.commit()?)
    }
}
