//! Collection as the node does it: what the pins reach is marked, the rest is swept, and its space is given back to the disk.
//!
//! The order is what keeps pins whole. The collection begins, and with it its guard; only then the desired set is read. A pin that
//! is not in it is made of blocks that were put, read or touched since, and those the guard protects. Pins under way count as the
//! others: what is here of them stays. A block of a whole pin that is missing or cannot be read hides what it links to, so it ends
//! the collection before anything is deleted.
//!
//! Memory, beside the marks in the index: 10 to 20 bytes for each block that has links or may have, and the CIDs that are found and
//! not walked yet, packed.

use std::collections::HashSet;
use std::hash::{BuildHasher as _, BuildHasherDefault, Hasher, RandomState};

use cid::Cid;
use gemba_block::{Block, codec, links};
use gemba_pins::{Kind, Pin};
use gemba_store::{Aim, Collection, Mark, Store, StoreError};

use crate::api::types::{CollectPhase, Collected};
use crate::error::{Code, Fail};
use crate::meta::PinRows;
use crate::repo::store_fail;

/// Blocks that are read for their links between two looks at who else wants something.
const WALKED: usize = 16;
/// Blocks that a step of a sweep looks at: a few groups of deletions.
const SWEPT: usize = 256;
/// A compaction ends after it has moved the whole store so often, whatever others write meanwhile.
const ROUNDS: u64 = 3;
/// What a step of compaction counts for at least, so that the bound holds for steps that find little.
const LEAST_STEP: u64 = 64 << 10;

/// What is worth copying for somebody who asked for the space: packs of which less than three quarters are alive.
#[must_use]
pub fn thorough() -> Aim {
    Aim::default().below(75)
}

/// How much a collection takes away.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Extent {
    /// Nothing: it only tells.
    Nothing,
    /// Whatever no pin holds.
    All,
    /// About so many bytes of it, least recently used first.
    Bytes(u64),
}

/// What is done between two small steps: tell of progress, wait for others, or end it with a failure. Told what was found and done so
/// far, and about how many bytes the step has read and written.
pub type Between<'a> = dyn FnMut(&Collected, u64) -> Result<(), Fail> + 'a;

/// Why a collection did not come to its end.
#[derive(Debug)]
pub enum Stop {
    /// A block of a pin is missing or cannot be read. Nothing was deleted.
    Broken {
        /// The pin.
        root: Box<Cid>,
        /// What is wrong, for people.
        fail: Fail,
    },
    /// Anything else. What was deleted until then is gone, and was held by nobody.
    Failed(Fail),
}

impl Stop {
    /// What a person is told.
    #[must_use]
    pub fn into_fail(self) -> Fail {
        match self {
            Self::Broken { fail, .. } | Self::Failed(fail) => fail,
        }
    }
}

impl From<Fail> for Stop {
    fn from(fail: Fail) -> Self {
        Self::Failed(fail)
    }
}

/// Collects once. `pins` is asked for the desired set when the collection protects what is pinned from then on.
///
/// # Errors
/// See [`Stop`]; the failure of `between` ends it, too.
pub fn collect(
    store: &Store,
    pins: impl FnOnce() -> Result<PinRows, Fail>,
    extent: Extent,
    between: &mut Between<'_>,
) -> Result<Collected, Stop> {
    let collection = store.collect().map_err(|e| store_fail(&e))?;
    let pins = pins()?;
    let mut report = Collected {
        phase: CollectPhase::Mark,
        dry_run: extent == Extent::Nothing,
        pins: pins.count()?,
        ..Collected::default()
    };
    mark(&collection, &pins, &mut report, between)?;
    drop(pins);
    let garbage = collection.garbage();
    report.kept_blocks = garbage.marked_blocks;
    report.kept_bytes = garbage.marked_bytes;
    report.guarded_blocks = garbage.guarded_blocks;
    report.guarded_bytes = garbage.guarded_bytes;
    let mut sweep = match extent {
        Extent::Nothing => {
            report.blocks = garbage.blocks;
            report.bytes = garbage.bytes;
            return Ok(report);
        }
        Extent::All => collection.sweep(),
        Extent::Bytes(bytes) => collection.sweep_bytes(bytes),
    };
    report.phase = CollectPhase::Sweep;
    loop {
        let step = sweep.step(SWEPT).map_err(|e| store_fail(&e))?;
        report.blocks += step.removed;
        report.bytes += step.bytes;
        between(&report, step.removed * 64)?;
        if step.done {
            return Ok(report);
        }
    }
}

/// Gives the space of deleted blocks back, a step at a time, until there is nothing left to do or `enough` says so. What keeps it from
/// going on is in the report, for nothing is lost by it.
///
/// # Errors
/// That of `between`.
pub fn compact(
    store: &Store,
    aim: &Aim,
    report: &mut Collected,
    enough: impl Fn(&Store) -> bool,
    between: &mut Between<'_>,
) -> Result<(), Fail> {
    report.phase = CollectPhase::Compact;
    let most = ROUNDS
        .saturating_mul(store.stat().disk_bytes)
        .saturating_add(LEAST_STEP);
    let (mut gained, mut copied, mut cost) = (0_u64, 0_u64, 0_u64);
    let before = report.freed_bytes;
    while cost <= most && !enough(store) {
        let step = match store.compact_step(aim) {
            Ok(step) => step,
            Err(error) => {
                tracing::warn!(%error, "not all space could be given back");
                report.cause = Some(error.to_string());
                return Ok(());
            }
        };
        gained += step.removed + step.punched;
        copied += step.copied;
        report.freed_bytes = before + gained.saturating_sub(copied);
        let spent = step.read + step.copied;
        cost = cost.saturating_add(spent.max(LEAST_STEP));
        between(report, spent)?;
        if step.idle {
            break;
        }
    }
    Ok(())
}

fn mark(
    collection: &Collection,
    pins: &PinRows,
    report: &mut Collected,
    between: &mut Between<'_>,
) -> Result<(), Stop> {
    let mut marking = Marking {
        collection,
        met: HashSet::default(),
        keys: RandomState::new(),
        open: Open::default(),
        report,
        between,
    };
    // The whole ones first: what they share with others is asked for in earnest.
    for is_first in [true, false] {
        for pin in pins.iter() {
            let pin = pin?;
            if was_whole(&pin) == is_first {
                marking.pin(&pin)?;
            }
        }
    }
    Ok(())
}

/// The walk over what pins reach.
struct Marking<'a, 'b> {
    collection: &'a Collection,
    /// Those with links that were met, by CID: the store knows multihashes, and the same bytes may be met as raw first, and then
    /// under a codec that has links. The store's mark alone would hide these.
    met: HashSet<u64, BuildHasherDefault<Hashed>>,
    keys: RandomState,
    open: Open,
    report: &'a mut Collected,
    between: &'a mut Between<'b>,
}

impl Marking<'_, '_> {
    fn pin(&mut self, pin: &Pin) -> Result<(), Stop> {
        if pin.kind == Kind::Direct {
            return match self.collection.mark(&pin.cid) {
                Mark::Absent if was_whole(pin) => Err(missing(pin, &pin.cid)),
                _ => Ok(()),
            };
        }
        self.meet(&pin.cid, pin)?;
        loop {
            let mut read = 0;
            for _ in 0..WALKED {
                let Some(cid) = self.open.pop() else {
                    (self.between)(self.report, read)?;
                    return Ok(());
                };
                read += self.follow(&cid, pin)?;
            }
            (self.between)(self.report, read)?;
        }
    }

    /// Marks a block, and puts it on the list if its links have to be followed.
    fn meet(&mut self, cid: &Cid, pin: &Pin) -> Result<(), Stop> {
        let mark = self.collection.mark(cid);
        if mark == Mark::Absent {
            return if was_whole(pin) {
                Err(missing(pin, cid))
            } else {
                Ok(())
            };
        }
        if mark == Mark::Fresh {
            self.report.kept_blocks += 1;
        }
        if cid.codec() == codec::RAW {
            return Ok(());
        }
        let is_new = self.met.insert(self.keys.hash_one(cid));
        if is_new || mark == Mark::Fresh {
            self.open.push(cid);
        }
        Ok(())
    }

    /// Meets what a block links to; the bytes that were read.
    fn follow(&mut self, cid: &Cid, pin: &Pin) -> Result<u64, Stop> {
        let data = match self.collection.read(cid) {
            Ok(Some(data)) => data,
            Ok(None) if was_whole(pin) => return Err(missing(pin, cid)),
            Ok(None) => return Ok(0),
            Err(e @ StoreError::Corrupt { .. }) => return Err(broken(pin, e)),
            Err(e) => return Err(store_fail(&e).into()),
        };
        let read = data.len() as u64;
        // Hashed, however reads are checked: wrong links would take blocks away for good.
        let block = Block::new(*cid, data)
            .map_err(|e| broken(pin, format!("block {cid} is damaged on disk: {e}")))?;
        match links(&block) {
            Ok(links) => links.iter().try_for_each(|link| self.meet(link, pin))?,
            Err(e) if was_whole(pin) => return Err(broken(pin, format!("block {cid}: {e}"))),
            // Nobody can ever tell what is below it, so the pin is refused and never whole; that must not stop all collections.
            Err(_) => {}
        }
        Ok(read)
    }
}

/// Blocks below what such a pin lacks may be the last ones there are, and nobody can tell which they are.
fn was_whole(pin: &Pin) -> bool {
    pin.complete || pin.lacks
}

fn missing(pin: &Pin, cid: &Cid) -> Stop {
    broken(pin, format!("block {cid} is not on this device"))
}

fn broken(pin: &Pin, cause: impl std::fmt::Display) -> Stop {
    Stop::Broken {
        root: Box::new(pin.cid),
        fail: Fail::new(
            Code::Integrity,
            format!(
                "nothing was collected: the pin {} cannot be followed to its end: {cause}",
                pin.cid
            ),
        )
        .hint("a running daemon fetches the block again, then collect once more; `gemba repo verify` finds all damage, and `gemba pin rm` gives a pin up that nobody can repair"),
    }
}

/// CIDs that wait, one behind the other as bytes: a third of what they take as values.
#[derive(Default)]
struct Open(Vec<u8>);

impl Open {
    fn push(&mut self, cid: &Cid) {
        let from = self.0.len();
        // A vector takes any bytes.
        let _written = cid.write_bytes(&mut self.0);
        let len = self.0.len() - from;
        // At most 64 bytes of digest and four numbers before it.
        debug_assert!(len <= usize::from(u8::MAX));
        self.0.push(len as u8);
    }

    fn pop(&mut self) -> Option<Cid> {
        let len = usize::from(self.0.pop()?);
        let from = self.0.len() - len;
        let cid = Cid::read_bytes(&self.0[from..]).ok();
        self.0.truncate(from);
        debug_assert!(cid.is_some());
        cid
    }
}

/// Takes numbers that are hashes already.
#[derive(Default)]
struct Hashed(u64);

impl Hasher for Hashed {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use gemba_pins::{Add, DesiredSet};

    use super::*;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path().join("blocks"), gemba_store::Config::default()).unwrap();
        (dir, store)
    }

    /// A dag-pb node with these links.
    fn node(links: &[Cid]) -> Block {
        let links: Vec<_> = links
            .iter()
            .map(|cid| gemba_unixfs::dagpb::Link::new(*cid, b"", 0))
            .collect();
        Block::dag_pb(gemba_unixfs::dagpb::encode(links.iter().copied(), None)).unwrap()
    }

    fn pinned(roots: &[(Cid, Kind, bool)]) -> DesiredSet {
        let mut set = DesiredSet::default();
        for (cid, kind, whole) in roots {
            let add = Add {
                cid: *cid,
                kind: *kind,
                name: None,
                now_ms: 0,
            };
            let change = set.add(add).unwrap().unwrap();
            set.apply(change).unwrap();
            if *whole {
                let id = set.get(cid).unwrap().id;
                let change = set.complete(cid, id).unwrap().unwrap();
                set.apply(change).unwrap();
            }
        }
        set
    }

    fn run(store: &Store, set: &DesiredSet, extent: Extent) -> Result<Collected, Stop> {
        collect(store, || Ok(set.clone().into()), extent, &mut |_, _| Ok(()))
    }

    /// The same bytes pinned as raw, and met as a node of another pin: the links count, whichever came first.
    #[test]
    fn s4_49_a_block_that_is_raw_to_one_pin_and_a_node_to_another_keeps_its_links() {
        let (_dir, store) = store();
        let leaf = Block::raw("leaf").unwrap();
        let inner = node(&[*leaf.cid()]);
        let root = node(&[*inner.cid()]);
        let as_raw = Cid::new_v1(codec::RAW, *inner.cid().hash());
        store
            .put_many(&[leaf.clone(), inner.clone(), root.clone()])
            .unwrap();
        for set in [
            pinned(&[
                (as_raw, Kind::Direct, true),
                (*root.cid(), Kind::Recursive, true),
            ]),
            pinned(&[
                (as_raw, Kind::Recursive, true),
                (*root.cid(), Kind::Recursive, false),
            ]),
        ] {
            let report = run(&store, &set, Extent::All).unwrap();
            assert_eq!((report.blocks, report.kept_blocks), (0, 3));
        }
        // A direct pin alone keeps its own block.
        let set = pinned(&[(*root.cid(), Kind::Direct, true)]);
        assert_eq!(run(&store, &set, Extent::Nothing).unwrap().blocks, 2);
        assert_eq!(run(&store, &set, Extent::All).unwrap().blocks, 2);
        assert!(store.has(root.cid()) && !store.has(leaf.cid()));
    }

    /// What is missing below a whole pin ends the collection; below one that is under way it is what is still to come.
    #[test]
    fn s4_49_what_a_whole_pin_lacks_ends_the_collection_before_anything_is_deleted() {
        let (_dir, store) = store();
        let (here, gone) = (Block::raw("here").unwrap(), Block::raw("gone").unwrap());
        let inner = node(&[*here.cid()]);
        let root = node(&[*gone.cid(), *inner.cid()]);
        let garbage = Block::raw("garbage").unwrap();
        let stored = [here.clone(), inner, root.clone(), garbage.clone()];
        store.put_many(&stored).unwrap();
        let whole = pinned(&[(*root.cid(), Kind::Recursive, true)]);
        for extent in [Extent::Nothing, Extent::All, Extent::Bytes(1)] {
            match run(&store, &whole, extent) {
                Err(Stop::Broken { root: told, fail }) => {
                    assert_eq!((*told, fail.code), (*root.cid(), Code::Integrity));
                    assert!(fail.cause.contains(&gone.cid().to_string()), "{fail}");
                }
                other => panic!("{other:?}"),
            }
        }
        assert!(store.has(garbage.cid()));
        // Struck out it is fetched again, and protects as much as before: what is below a missing node may be nowhere else.
        let mut lacking = whole.clone();
        let struck = lacking.incomplete(root.cid()).unwrap().unwrap();
        lacking.apply(struck).unwrap();
        let stopped = run(&store, &lacking, Extent::All);
        assert!(matches!(stopped, Err(Stop::Broken { .. })), "{stopped:?}");
        assert!(store.has(garbage.cid()) && store.has(here.cid()));
        let under_way = pinned(&[(*root.cid(), Kind::Recursive, false)]);
        let report = run(&store, &under_way, Extent::All).unwrap();
        assert_eq!((report.blocks, report.kept_blocks), (1, 3));
        assert!(store.has(here.cid()) && !store.has(garbage.cid()));
    }

    /// A pin that can never be whole, because nobody can read its links, does not stop the collection.
    #[test]
    fn a_refused_pin_keeps_its_root_and_stops_nothing() {
        let (_dir, store) = store();
        let bad = Block::dag_pb("no node").unwrap();
        store
            .put_many(&[bad.clone(), Block::raw("x").unwrap()])
            .unwrap();
        let set = pinned(&[(*bad.cid(), Kind::Recursive, false)]);
        let report = run(&store, &set, Extent::All).unwrap();
        assert_eq!((report.blocks, report.kept_blocks), (1, 1));
    }

    #[test]
    fn what_waits_comes_back_as_it_was() {
        let mut open = Open::default();
        let cids = [
            *Block::raw("a").unwrap().cid(),
            *Block::v0("b").unwrap().cid(),
            *Block::dag_pb("c").unwrap().cid(),
        ];
        cids.iter().for_each(|cid| open.push(cid));
        for cid in cids.iter().rev() {
            assert_eq!(open.pop().as_ref(), Some(cid));
        }
        assert_eq!(open.pop(), None);
    }
}
