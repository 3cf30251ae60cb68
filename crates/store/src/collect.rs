//! Collection: what nothing holds any more is deleted, in steps that somebody else drives (specs/store.md §8).
//!
//! What is reachable only the caller can tell. It begins a collection, marks every block that its pins reach, and lets the rest be
//! swept, oldest use first if only so much room is wanted. Marks are a bit in the index: they cost no memory, and they serve the
//! caller's walk as the set of what it has visited. The collection holds a guard from its beginning, so that whatever is put,
//! read or touched while it runs stays, and a deletion looks at mark and guard in the critical section in which it begins.
//!
//! There is nothing on disk of a collection but the deletions: one that a crash cut off is begun anew.

use std::sync::atomic::Ordering;

use bytes::Bytes;
use cid::Cid;

use crate::error::StoreError;
use crate::guard::Guard;
use crate::index::{Fingerprint, Mark, Reason};
use crate::keys::Keys;
use crate::log::Op;
use crate::store::{Store, is_identity};

/// Most blocks that one group deletes: below 4 KiB of tombstones, which a segment writes with a cheap flush (specs/segment.md §7), so
/// that a put which waits for them hardly waits longer.
const GROUP: usize = 64;

/// A collection that marks. Dropping it ends it; nothing was deleted then.
#[derive(Debug)]
pub struct Collection {
    under_way: UnderWay,
}

/// A collection that deletes. Dropping it ends it; what it deleted so far is gone.
#[derive(Debug)]
pub struct Sweep {
    under_way: UnderWay,
    keys: Keys,
    aim: Uses,
}

/// What a collection holds on to.
#[derive(Debug)]
struct UnderWay {
    store: Store,
    _guard: Guard,
}

/// What the marks of a collection mean so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Garbage {
    /// Blocks that a sweep would delete now.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that are not marked and stay all the same, because a [`Guard`] protects them, that of the collection included.
    pub guarded_blocks: u64,
    /// Their bytes.
    pub guarded_bytes: u64,
    /// Blocks that are marked.
    pub marked_blocks: u64,
    /// Their bytes.
    pub marked_bytes: u64,
}

/// What a step of a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct SweepStep {
    /// Blocks that were looked at.
    pub looked: u64,
    /// Blocks that are gone now, durable.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that stay because they were put, read, touched or marked in the last moment.
    pub guarded: u64,
    /// There is nothing left to do.
    pub done: bool,
}

/// Which garbage goes: all that was used before a tick, and some of what was used in it.
#[derive(Clone, Copy, Debug)]
struct Uses {
    before: u16,
    /// Bytes that may still go of what was used in the tick `before`.
    more: u64,
    /// Bytes that may still go in all. Marks of last use may change meanwhile; this does not.
    left: u64,
}

impl Uses {
    const ALL: Self = Self {
        before: 256,
        more: 0,
        left: u64::MAX,
    };
}

impl Store {
    /// Begins a collection; there is one at a time. Takes marks of an earlier one away, and a guard.
    ///
    /// Mark all that has to stay with [`Collection::mark`], then [`Collection::sweep`]. Whoever pins a block while a collection is
    /// under way reads or puts all of its DAG under a [`Guard`] that is held until the pin is recorded; then the order of the two
    /// does not matter.
    ///
    /// # Errors
    /// [`StoreError::Collecting`] if another one is under way.
    pub fn collect(&self) -> Result<Collection, StoreError> {
        if self.collecting().swap(true, Ordering::SeqCst) {
            return Err(StoreError::Collecting);
        }
        let under_way = UnderWay {
            store: self.clone(),
            _guard: self.world().guards.take_over(),
        };
        self.world().index.unmark();
        Ok(Collection { under_way })
    }
}

impl Collection {
    /// Marks a block as reachable. Its links have to be followed if the answer is [`Mark::Fresh`]; a block that names itself
    /// (identity) always is.
    ///
    /// A block that is there and cannot be read hides what it links to: whoever goes on to [`Self::sweep`] then deletes blocks
    /// that are reachable through it alone. So end the collection instead, and repair first.
    pub fn mark(&self, cid: &Cid) -> Mark {
        mark(&self.under_way.store, cid)
    }

    /// As [`Store::get`], for the walk over what is reachable: it is no use of the block, and renews no guard.
    ///
    /// # Errors
    /// As [`Store::get`].
    pub fn read(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        let store = &self.under_way.store;
        if is_identity(cid) {
            return store.get(cid);
        }
        let key = cid.hash().to_bytes();
        let index = &store.world().index;
        store.get_at(cid, &key, index.locate(index.fingerprint(&key)))
    }

    /// What the marks mean so far: a dry run, if everything is marked. Looks at the whole index, some ten milliseconds for a
    /// million blocks, and at nothing else.
    #[must_use]
    pub fn garbage(&self) -> Garbage {
        let world = self.under_way.store.world();
        let oldest = world.guards.oldest();
        let mut garbage = Garbage::default();
        world.index.show(|located| {
            let bytes = u64::from(located.len);
            let (blocks, sum) = if located.marked {
                (&mut garbage.marked_blocks, &mut garbage.marked_bytes)
            } else if oldest.is_some_and(|oldest| located.stamp >= oldest) {
                (&mut garbage.guarded_blocks, &mut garbage.guarded_bytes)
            } else {
                (&mut garbage.blocks, &mut garbage.bytes)
            };
            *blocks += 1;
            *sum += bytes;
        });
        garbage
    }

    /// Everything that has to stay is marked: the rest may go.
    #[must_use]
    pub fn sweep(self) -> Sweep {
        self.into_sweep(Uses::ALL)
    }

    /// As [`Self::sweep`], but only until about so many bytes of blocks are gone: those go first that were used least recently, as
    /// far as marks of last use tell (see [`Store::tick`]); among equals, those that lie first on the disk.
    #[must_use]
    pub fn sweep_bytes(self, bytes: u64) -> Sweep {
        let aim = self.oldest(bytes);
        self.into_sweep(aim)
    }

    fn into_sweep(self, aim: Uses) -> Sweep {
        Sweep {
            keys: self.under_way.store.keys(),
            under_way: self.under_way,
            aim,
        }
    }

    /// Up to which tick garbage has to go so that these bytes come together.
    fn oldest(&self, bytes: u64) -> Uses {
        let world = self.under_way.store.world();
        let oldest = world.guards.oldest();
        let mut by_tick = Box::new([0_u64; 256]);
        world.index.show(|located| {
            if !located.marked && oldest.is_none_or(|oldest| located.stamp < oldest) {
                by_tick[located.used as usize] += u64::from(located.len);
            }
        });
        let mut left = bytes;
        for (tick, sum) in (0..).zip(by_tick.iter()) {
            if *sum > left {
                return Uses {
                    before: tick,
                    more: left,
                    left: bytes,
                };
            }
            left -= sum;
        }
        Uses {
            left: bytes,
            ..Uses::ALL
        }
    }
}

impl Sweep {
    /// As [`Collection::mark`], for what is pinned meanwhile without a guard. What was swept before is gone.
    pub fn mark(&self, cid: &Cid) -> Mark {
        mark(&self.under_way.store, cid)
    }

    /// Looks at most at `limit` blocks (and at least at one), in the order of the disk, and deletes what may go, in groups of 64
    /// that puts can share. Space comes back by [`Store::compact_step`].
    ///
    /// # Errors
    /// See [`StoreError`]. The step that failed has deleted nothing, or only whole groups; what it looked at comes no more in this
    /// sweep.
    pub fn step(&mut self, limit: usize) -> Result<SweepStep, StoreError> {
        let mut step = SweepStep::default();
        let mut victims = Vec::new();
        while step.looked < limit.max(1) as u64 {
            let next = if self.aim.left > 0 {
                self.keys.next_block()?
            } else {
                None
            };
            let Some((key, located)) = next else {
                step.done = true;
                break;
            };
            step.looked += 1;
            if !located.marked && self.goes(located.used, located.len) {
                let index = &self.under_way.store.world().index;
                victims.push((index.fingerprint(&key), key));
            }
            if victims.len() == GROUP {
                self.delete(std::mem::take(&mut victims), &mut step)?;
            }
        }
        self.delete(victims, &mut step)?;
        Ok(step)
    }

    /// Whether a block that nothing holds goes by its last use.
    fn goes(&mut self, used: u8, len: u32) -> bool {
        let (used, len) = (u16::from(used), u64::from(len));
        let goes = used < self.aim.before || (used == self.aim.before && self.aim.more > 0);
        if goes {
            self.aim.left = self.aim.left.saturating_sub(len);
            if used == self.aim.before {
                self.aim.more = self.aim.more.saturating_sub(len);
            }
        }
        goes
    }

    fn delete(
        &self,
        victims: Vec<(Fingerprint, Vec<u8>)>,
        step: &mut SweepStep,
    ) -> Result<(), StoreError> {
        if victims.is_empty() {
            return Ok(());
        }
        let store = &self.under_way.store;
        let outcome = store.submit(Op::Delete(Reason::Collected, victims))?;
        step.removed += outcome.done;
        step.bytes += outcome.bytes;
        step.guarded += outcome.guarded;
        let counters = &store.world().counters;
        counters
            .collected
            .fetch_add(outcome.done, Ordering::Relaxed);
        counters
            .collected_bytes
            .fetch_add(outcome.bytes, Ordering::Relaxed);
        Ok(())
    }
}

fn mark(store: &Store, cid: &Cid) -> Mark {
    if is_identity(cid) {
        return Mark::Fresh;
    }
    let index = &store.world().index;
    index.mark(index.fingerprint(&cid.hash().to_bytes()))
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.store.collecting().store(false, Ordering::SeqCst);
    }
}
