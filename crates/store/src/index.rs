//! Where every block is: an open-addressing table in memory, at most 60 bytes a block, rebuilt from the packs' footers when the
//! store opens (specs/store.md §4).
//!
//! A block is known by a fingerprint of 128 bits of its multihash under a key that is new in every process, so nobody can
//! make two blocks that are taken for one. Reads compare the whole multihash all the same.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hash, Hasher};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::guard::Guards;

/// Tables that are locked and grow one by one: growing copies a sixteenth of the index at a time.
const SHARDS: usize = 16;
/// Slots of the smallest table.
const SMALLEST: usize = 16;
/// Largest share of slots in use, in tenths.
const MAX_LOAD: usize = 8;
/// Bits of `Slot::len`: two flags, eight bits of last use, and the payload's length.
const DYING: u32 = 1 << 31;
const BAD: u32 = 1 << 30;
const USED_SHIFT: u32 = 22;
const USED: u32 = 0xff << USED_SHIFT;
const LEN: u32 = (1 << USED_SHIFT) - 1;
/// Bit of `Slot::stamp`: reachable, as far as the collection that is under way knows.
const MARKED: u32 = 1 << 31;
/// Longest payload that the index can name: a little under 4 MiB, twice what a block may have.
pub(crate) const MAX_LEN: u32 = LEN;
/// `Slot::place` of an empty slot: no pack has this number.
const EMPTY: u64 = u64::MAX;

/// Offsets have 40 bits.
pub(crate) const MAX_OFFSET: u64 = 1 << 40;

/// A block's fingerprint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Fingerprint(u64, u64);

impl Hash for Fingerprint {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.0);
    }
}

/// For maps of fingerprints, which are keyed hashes already: hashing them again gains nothing.
pub(crate) type AlreadyHashed = BuildHasherDefault<FirstWord>;

/// Takes the one word that [`Fingerprint`] gives it.
#[derive(Debug, Default)]
pub(crate) struct FirstWord(u64);

impl Hasher for FirstWord {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, word: u64) {
        self.0 = word;
    }
}

/// Where a frame is: pack number in the upper 24 bits, offset in the lower 40.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

impl Place {
    pub(crate) fn new(pack: u32, offset: u64) -> Self {
        debug_assert!(pack <= crate::format::MAX_PACK_NUMBER && offset < MAX_OFFSET);
        Self(u64::from(pack) << 40 | offset)
    }

    /// As one number: places in the order of the disk are numbers in order.
    pub(crate) fn raw(self) -> u64 {
        self.0
    }

    pub(crate) fn pack(self) -> u32 {
        (self.0 >> 40) as u32
    }

    pub(crate) fn offset(self) -> u64 {
        self.0 & (MAX_OFFSET - 1)
    }
}

/// What the index says about a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Located {
    pub(crate) place: Place,
    pub(crate) len: u32,
    /// Known to be damaged on disk.
    pub(crate) bad: bool,
    /// A deletion of it is being written.
    pub(crate) dying: bool,
    /// The tick of its last use.
    pub(crate) used: u8,
    /// When it was put, touched or read under a guard last.
    pub(crate) stamp: u32,
    /// Marked as reachable.
    pub(crate) marked: bool,
}

/// Whether a put may leave a block as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Renewed {
    /// It is there, and its guard was renewed.
    Present,
    /// It is absent, being deleted, or damaged: it has to be written.
    Needed,
}

/// What a collection found when it marked a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Mark {
    /// The block is not there.
    Absent,
    /// It was not marked before: its links have to be followed.
    Fresh,
    /// It was marked before.
    Again,
}

/// Whose deletion it is, and so what keeps a block from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Reason {
    /// Somebody named the block: only guards count.
    Asked,
    /// A collection: what is marked stays too.
    Collected,
}

/// What a deletion found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deleting {
    Absent,
    /// Somebody holds a guard since before it was put, read or touched last; or it is marked.
    Guarded,
    /// It is marked; whoever puts it from now on writes it again.
    Begun(Located),
}

#[derive(Debug)]
pub(crate) struct Index {
    shards: Vec<RwLock<Table>>,
    keys: [RandomState; 2],
    /// The current tick, for marks of last use: 0 to 255. It only goes back when all marks do (see [`Index::tick`]).
    now: AtomicU8,
}

/// Blocks and bytes by the tick of their last use.
pub(crate) type Uses = [(u64, u64); 256];

impl Index {
    pub(crate) fn new() -> Self {
        Self {
            shards: (0..SHARDS).map(|_| RwLock::new(Table::new())).collect(),
            keys: [RandomState::new(), RandomState::new()],
            now: AtomicU8::new(0),
        }
    }

    /// The current tick.
    pub(crate) fn now(&self) -> u8 {
        self.now.load(Ordering::Relaxed)
    }

    /// Begins with this tick. Before anything is in the index.
    pub(crate) fn set_now(&self, now: u8) {
        self.now.store(now, Ordering::Relaxed);
    }

    /// Lets a unit of time pass. At the end of the scale all marks are halved: old differences get coarser, the order stays.
    pub(crate) fn tick(&self) {
        let now = self.now();
        if now < u8::MAX {
            self.now.store(now + 1, Ordering::Relaxed);
            return;
        }
        self.now.store(u8::MAX / 2 + 1, Ordering::Relaxed);
        for shard in &self.shards {
            let mut table = shard.write().unwrap_or_else(PoisonError::into_inner);
            for slot in &mut table.slots {
                slot.set_used(slot.used() / 2);
            }
        }
    }

    /// The fingerprint of a multihash.
    pub(crate) fn fingerprint(&self, key: &[u8]) -> Fingerprint {
        Fingerprint(self.keys[0].hash_one(key), self.keys[1].hash_one(key))
    }

    pub(crate) fn locate(&self, fp: Fingerprint) -> Option<Located> {
        self.read(fp).find(fp).map(Slot::located)
    }

    /// As [`Self::locate`], and counts as a use: once a tick that costs a lock for writing. Under a guard it renews the guard of
    /// the block too, once a guard, and a block that is being deleted is absent: nothing could protect it any more.
    pub(crate) fn locate_for_use(&self, fp: Fingerprint, guards: &Guards) -> Option<Located> {
        let located = self.locate(fp)?;
        let now = self.now();
        let guarded = guards.any();
        let is_old = guarded && (located.stamp < guards.now() || located.dying);
        if located.used == now && !is_old {
            return Some(located);
        }
        let mut table = self.write(fp);
        let slot = table.find_mut(fp)?;
        if guarded {
            if slot.len & DYING != 0 {
                return None;
            }
            slot.set_stamp(guards.now());
        }
        slot.set_used(now);
        Some(slot.located())
    }

    /// Marks a block as reachable. Neither a use nor a renewal of its guard.
    pub(crate) fn mark(&self, fp: Fingerprint) -> Mark {
        match self.locate(fp) {
            None => return Mark::Absent,
            Some(located) if located.marked => return Mark::Again,
            Some(_) => {}
        }
        match self.write(fp).find_mut(fp) {
            None => Mark::Absent,
            Some(slot) if slot.stamp & MARKED != 0 => Mark::Again,
            Some(slot) => {
                slot.stamp |= MARKED;
                Mark::Fresh
            }
        }
    }

    /// Takes all marks away, a sixteenth under one lock.
    pub(crate) fn unmark(&self) {
        for shard in &self.shards {
            let mut table = shard.write().unwrap_or_else(PoisonError::into_inner);
            for slot in &mut table.slots {
                slot.stamp &= !MARKED;
            }
        }
    }

    /// Renews the guard of a block that is there, in the same critical section in which it is found.
    pub(crate) fn renew(&self, fp: Fingerprint, guards: &Guards) -> Renewed {
        let mut table = self.write(fp);
        match table.find_mut(fp) {
            Some(slot) if slot.len & (DYING | BAD) == 0 => {
                slot.set_stamp(guards.now());
                slot.set_used(self.now());
                Renewed::Present
            }
            _ => Renewed::Needed,
        }
    }

    /// Records a block; gives what was recorded before.
    pub(crate) fn insert(
        &self,
        fp: Fingerprint,
        place: Place,
        len: u32,
        stamp: u32,
        used: u8,
    ) -> Option<Located> {
        debug_assert!(len <= LEN);
        self.write(fp).insert(Slot {
            fp,
            place: place.0,
            len: len | u32::from(used) << USED_SHIFT,
            stamp,
        })
    }

    /// A block stands elsewhere from now on; whether it still stood where it was copied from. Its marks stay.
    pub(crate) fn relocate(&self, fp: Fingerprint, from: Place, to: Place) -> bool {
        match self.write(fp).find_mut(fp) {
            Some(slot) if slot.place == from.0 => {
                slot.place = to.0;
                true
            }
            _ => false,
        }
    }

    /// How much was used last in which tick. Looks at every slot, a sixteenth under one lock.
    pub(crate) fn uses(&self) -> Box<Uses> {
        let mut uses = Box::new([(0, 0); 256]);
        self.for_each(|slot| {
            let (blocks, bytes) = &mut uses[slot.used() as usize];
            *blocks += 1;
            *bytes += u64::from(slot.len & LEN);
        });
        uses
    }

    /// Places of all blocks that were used after tick 0, with their ticks, in the order of the disk.
    pub(crate) fn used_places(&self) -> Vec<(Place, u8)> {
        let mut all = Vec::new();
        self.for_each(|slot| {
            if slot.used() > 0 {
                all.push((Place(slot.place), slot.used()));
            }
        });
        all.sort_unstable_by_key(|(place, _)| place.0);
        all
    }

    /// Shows every block, a sixteenth under one lock.
    pub(crate) fn show(&self, mut visit: impl FnMut(Located)) {
        self.for_each(|slot| visit(slot.located()));
    }

    fn for_each(&self, mut visit: impl FnMut(&Slot)) {
        for shard in &self.shards {
            let table = shard.read().unwrap_or_else(PoisonError::into_inner);
            let slots = table.slots.iter();
            slots
                .filter(|slot| slot.place != EMPTY)
                .for_each(&mut visit);
        }
    }

    /// Begins to delete a block unless a guard protects it, or a mark where that counts.
    pub(crate) fn begin_delete(&self, fp: Fingerprint, guards: &Guards, why: Reason) -> Deleting {
        let mut table = self.write(fp);
        let Some(slot) = table.find_mut(fp) else {
            return Deleting::Absent;
        };
        // Asked under the lock of the slot: a guard that was taken before the block was touched is seen here.
        let located = slot.located();
        let is_kept = why == Reason::Collected && located.marked;
        if is_kept || guards.protects(located.stamp) {
            return Deleting::Guarded;
        }
        slot.len |= DYING;
        Deleting::Begun(slot.located())
    }

    /// The deletion was not written: the block stays.
    pub(crate) fn cancel_delete(&self, fp: Fingerprint) {
        if let Some(slot) = self.write(fp).find_mut(fp) {
            slot.len &= !DYING;
        }
    }

    pub(crate) fn remove(&self, fp: Fingerprint) -> Option<Located> {
        self.write(fp).remove(fp)
    }

    /// Remembers that a block is damaged at this place, so that the next put writes it again; whether that is news.
    pub(crate) fn mark_bad(&self, fp: Fingerprint, place: Place) -> bool {
        match self.write(fp).find_mut(fp) {
            Some(slot) if slot.place == place.0 && slot.len & BAD == 0 => {
                slot.len |= BAD;
                true
            }
            _ => false,
        }
    }

    /// Bytes that the tables take.
    pub(crate) fn memory(&self) -> usize {
        self.shards
            .iter()
            .map(|shard| {
                let table = shard.read().unwrap_or_else(PoisonError::into_inner);
                table.slots.capacity() * size_of::<Slot>()
            })
            .sum()
    }

    fn shard(&self, fp: Fingerprint) -> &RwLock<Table> {
        &self.shards[fp.1 as usize % SHARDS]
    }

    fn read(&self, fp: Fingerprint) -> RwLockReadGuard<'_, Table> {
        self.shard(fp)
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, fp: Fingerprint) -> RwLockWriteGuard<'_, Table> {
        self.shard(fp)
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    fp: Fingerprint,
    place: u64,
    /// Payload bytes, tick of the last use, and the two flags.
    len: u32,
    /// When the block was put, touched or read under a guard last (see [`Guards`]), and the mark.
    stamp: u32,
}

const NOTHING: Slot = Slot {
    fp: Fingerprint(0, 0),
    place: EMPTY,
    len: 0,
    stamp: 0,
};

impl Slot {
    fn located(&self) -> Located {
        Located {
            place: Place(self.place),
            len: self.len & LEN,
            bad: self.len & BAD != 0,
            dying: self.len & DYING != 0,
            used: self.used(),
            stamp: self.stamp & !MARKED,
            marked: self.stamp & MARKED != 0,
        }
    }

    /// Leaves the mark as it is.
    fn set_stamp(&mut self, stamp: u32) {
        self.stamp = self.stamp & MARKED | stamp;
    }

    fn used(&self) -> u8 {
        ((self.len & USED) >> USED_SHIFT) as u8
    }

    fn set_used(&mut self, tick: u8) {
        self.len = self.len & !USED | u32::from(tick) << USED_SHIFT;
    }
}

/// Linear probing; a removal moves later slots back, so there are no tombstones and a table never gets slow.
#[derive(Debug)]
struct Table {
    slots: Vec<Slot>,
    used: usize,
}

impl Table {
    fn new() -> Self {
        Self {
            slots: Vec::new(),
            used: 0,
        }
    }

    /// The slot in which the search for a fingerprint begins.
    fn home(&self, fp: Fingerprint) -> usize {
        ((u128::from(fp.0) * self.slots.len() as u128) >> 64) as usize
    }

    fn after(&self, at: usize) -> usize {
        if at + 1 == self.slots.len() {
            0
        } else {
            at + 1
        }
    }

    /// Where the fingerprint is, or the empty slot that ends the search for it. The table has an empty slot.
    fn probe(&self, fp: Fingerprint) -> usize {
        let mut at = self.home(fp);
        while self.slots[at].place != EMPTY && self.slots[at].fp != fp {
            at = self.after(at);
        }
        at
    }

    fn position(&self, fp: Fingerprint) -> Option<usize> {
        if self.slots.is_empty() {
            return None;
        }
        let at = self.probe(fp);
        (self.slots[at].place != EMPTY).then_some(at)
    }

    fn find(&self, fp: Fingerprint) -> Option<&Slot> {
        self.position(fp).map(|at| &self.slots[at])
    }

    fn find_mut(&mut self, fp: Fingerprint) -> Option<&mut Slot> {
        self.position(fp).map(|at| &mut self.slots[at])
    }

    fn insert(&mut self, slot: Slot) -> Option<Located> {
        if (self.used + 1) * 10 > self.slots.len() * MAX_LOAD {
            self.grow();
        }
        let at = self.probe(slot.fp);
        let before = self.slots[at];
        self.slots[at] = slot;
        if before.place == EMPTY {
            self.used += 1;
            return None;
        }
        Some(before.located())
    }

    /// By half, not by double: the emptiest table still uses 32 / (0.8 / 1.5) = 60 bytes a block.
    fn grow(&mut self) {
        let larger = (self.slots.len() + self.slots.len() / 2).max(SMALLEST);
        let old = std::mem::replace(&mut self.slots, vec![NOTHING; larger]);
        for slot in old.into_iter().filter(|slot| slot.place != EMPTY) {
            let at = self.probe(slot.fp);
            self.slots[at] = slot;
        }
    }

    fn remove(&mut self, fp: Fingerprint) -> Option<Located> {
        let mut hole = self.position(fp)?;
        let removed = self.slots[hole].located();
        let mut at = self.after(hole);
        while self.slots[at].place != EMPTY {
            let home = self.home(self.slots[at].fp);
            // The slot may move back into the hole unless its home lies between the hole (excluded) and itself.
            let stays = if hole <= at {
                hole < home && home <= at
            } else {
                hole < home || home <= at
            };
            if !stays {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
            at = self.after(at);
        }
        self.slots[hole] = NOTHING;
        self.used -= 1;
        Some(removed)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::HashMap;

    use super::*;

    fn place(i: u32) -> Place {
        Place::new(i % 1000 + 1, u64::from(i))
    }

    /// A long run of inserts and removals against a map; fingerprints are bad on purpose, so that runs collide and wrap.
    #[test]
    fn the_table_agrees_with_a_map() {
        let mut table = Table::new();
        let mut model = HashMap::new();
        let mut x = 7_u32;
        for _ in 0..60_000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = x >> 22;
            // Everything begins in the last sixteenth of the table.
            let fp = Fingerprint(u64::MAX - u64::from(key % 64), u64::from(key));
            if x & 0x10000 == 0 {
                let slot = Slot {
                    fp,
                    place: place(x >> 8).0,
                    len: key,
                    stamp: 0,
                };
                let before = table.insert(slot).map(|l| l.place.0);
                assert_eq!(before, model.insert(fp, slot.place));
            } else {
                assert_eq!(table.remove(fp).map(|l| l.place.0), model.remove(&fp));
            }
        }
        assert_eq!(table.used, model.len());
        for (fp, place) in &model {
            assert_eq!(table.find(*fp).unwrap().place, *place);
        }
    }

    /// Row S12, and issue 4's 64 bytes a block: held at every size, not only at lucky ones.
    #[test]
    fn s12_at_most_64_bytes_a_block() {
        let index = Index::new();
        for i in 0..200_000_u32 {
            let fp = index.fingerprint(&i.to_le_bytes());
            assert_eq!(index.insert(fp, place(i), 1, 0, 0), None);
            if i >= 10_000 && i % 1000 == 0 {
                let each = index.memory() / (i as usize + 1);
                assert!(each <= 64, "{each} bytes a block at {i} blocks");
            }
        }
        for i in 0..200_000_u32 {
            let found = index.locate(index.fingerprint(&i.to_le_bytes()));
            assert_eq!(found.unwrap().place, place(i));
        }
    }

    /// Marks of last use keep their order over any number of ticks, and touch neither length nor flags.
    #[test]
    fn marks_of_last_use_stay_in_order() {
        let index = Index::new();
        let fps: Vec<_> = (0..600_u32)
            .map(|i| {
                let fp = index.fingerprint(&i.to_le_bytes());
                index.insert(fp, place(i), MAX_LEN, 0, index.now());
                index.mark_bad(fp, place(i));
                index.tick();
                fp
            })
            .collect();
        let marks: Vec<_> = fps.iter().map(|fp| index.locate(*fp).unwrap()).collect();
        assert!(marks.is_sorted_by_key(|located| located.used));
        assert!(marks.iter().all(|l| l.bad && !l.dying && l.len == MAX_LEN));
        assert!(marks[599].used > marks[300].used);
        let read = index.locate_for_use(fps[0], &Guards::default());
        assert_eq!(read.unwrap().used, index.now());
        assert_eq!(index.locate(fps[0]).unwrap().used, index.now());
        assert_eq!(
            index.uses().iter().map(|(blocks, _)| blocks).sum::<u64>(),
            600
        );
    }

    #[test]
    fn a_block_that_moved_is_known_at_its_new_place_only() {
        let index = Index::new();
        let fp = index.fingerprint(b"block");
        index.insert(fp, place(1), 9, 4, 7);
        assert!(!index.relocate(fp, place(2), place(3)));
        assert!(index.relocate(fp, place(1), place(3)));
        let located = index.locate(fp).unwrap();
        assert_eq!((located.place, located.len, located.used), (place(3), 9, 7));
    }

    /// Marks against guards and deletions, in the critical section of each.
    #[test]
    fn a_mark_keeps_a_block_from_a_collection_only_and_moves_with_it() {
        let index = Index::new();
        let guards = std::sync::Arc::new(Guards::default());
        let fp = index.fingerprint(b"block");
        assert_eq!(index.mark(fp), Mark::Absent);
        index.insert(fp, place(1), 9, guards.now(), 5);
        assert_eq!(index.mark(fp), Mark::Fresh);
        assert_eq!(index.mark(fp), Mark::Again);
        assert!(index.relocate(fp, place(1), place(2)));
        assert_eq!(index.renew(fp, &guards), Renewed::Present);
        let located = index.locate(fp).unwrap();
        assert!(located.marked && located.stamp == guards.now());
        let collected = |index: &Index| index.begin_delete(fp, &guards, Reason::Collected);
        assert_eq!(collected(&index), Deleting::Guarded);
        assert!(matches!(
            index.begin_delete(fp, &guards, Reason::Asked),
            Deleting::Begun(_)
        ));
        index.cancel_delete(fp);
        index.unmark();
        assert!(matches!(collected(&index), Deleting::Begun(_)));
    }

    /// A read under a guard protects, unless the deletion came first: then the block is absent for the reader.
    #[test]
    fn a_read_under_a_guard_renews_or_finds_nothing() {
        let index = Index::new();
        let guards = std::sync::Arc::new(Guards::default());
        let fp = index.fingerprint(b"block");
        index.insert(fp, place(1), 9, guards.now(), 0);
        assert!(index.locate_for_use(fp, &guards).is_some());
        let begin = |index: &Index| index.begin_delete(fp, &guards, Reason::Asked);
        assert!(matches!(begin(&index), Deleting::Begun(_)));
        assert!(index.locate_for_use(fp, &guards).is_some());
        let _guard = guards.take();
        assert!(index.locate_for_use(fp, &guards).is_none());
        index.cancel_delete(fp);
        assert!(index.locate_for_use(fp, &guards).is_some());
        assert_eq!(begin(&index), Deleting::Guarded);
    }

    #[test]
    fn a_place_keeps_pack_and_offset() {
        let place = Place::new(crate::format::MAX_PACK_NUMBER, (1 << 40) - 2);
        assert_eq!(place.pack(), crate::format::MAX_PACK_NUMBER);
        assert_eq!(place.offset(), (1 << 40) - 2);
        assert_ne!(place.0, EMPTY);
    }

    /// The critical section of a put against that of a deletion, in every order of the two.
    #[test]
    fn a_put_renews_or_writes_but_never_loses_to_a_deletion() {
        let index = Index::new();
        let guards = std::sync::Arc::new(Guards::default());
        let fp = index.fingerprint(b"block");
        index.insert(fp, place(1), 9, guards.now(), 0);

        let guard = guards.take();
        assert_eq!(index.renew(fp, &guards), Renewed::Present);
        assert_eq!(
            index.begin_delete(fp, &guards, Reason::Asked),
            Deleting::Guarded
        );
        drop(guard);

        assert!(matches!(
            index.begin_delete(fp, &guards, Reason::Asked),
            Deleting::Begun(_)
        ));
        assert_eq!(index.renew(fp, &guards), Renewed::Needed);
        index.cancel_delete(fp);
        assert_eq!(index.renew(fp, &guards), Renewed::Present);

        index.mark_bad(fp, place(2));
        assert_eq!(index.renew(fp, &guards), Renewed::Present);
        index.mark_bad(fp, place(1));
        assert_eq!(index.renew(fp, &guards), Renewed::Needed);
        index.insert(fp, place(3), 9, guards.now(), 0);
        assert_eq!(index.renew(fp, &guards), Renewed::Present);
    }
}
