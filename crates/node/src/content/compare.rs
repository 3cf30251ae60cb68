//! What pins say against what is here: each pin that says it is whole is walked over the blocks that are here, a few blocks at a time, and the first
//! one that it lacks is named.
//!
//! Blocks with links are read, and thereby checked. Of the others, which are nearly all the bytes, the store is only asked whether it has them: what is
//! in them is the scrub's to read. So a round over a hundred gigabytes reads some megabytes.

use cid::Cid;
use gemba_pins::{Pin, Walk, WalkConfig};
use gemba_store::Store;

use super::pins::{Look, visit};
use crate::error::{Code, Fail};
use crate::meta::PinRows;

/// Pins that are read from the table at once.
const PAGE: usize = 256;

/// One round over all pins. It keeps nothing of the table between two steps, so the table may change meanwhile.
pub struct Compare {
    key: [u8; 16],
    after: Option<Cid>,
    page: std::vec::IntoIter<Pin>,
    read_all: bool,
    walking: Option<(Pin, Walk)>,
}

/// What a step came to.
#[derive(Debug, Default)]
pub struct Step {
    /// A pin that says it is whole, and a block of it that is not here.
    pub lacking: Option<(Pin, Cid)>,
    /// Pins that were looked at, those included that say themselves that they are not whole.
    pub pins: u64,
    /// The round is over.
    pub done: bool,
}

impl Compare {
    /// A round from the beginning.
    ///
    /// # Errors
    /// The operating system gives no randomness.
    pub fn begin() -> Result<Self, Fail> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)
            .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
        Ok(Self {
            key,
            after: None,
            page: Vec::new().into_iter(),
            read_all: false,
            walking: None,
        })
    }

    /// Looks at so many blocks, or fewer: until one is missing, or the round is over. `rows` is asked for the pins as they are now.
    ///
    /// # Errors
    /// The pins or the store cannot be read. A DAG that nobody can walk is passed over: its pin never was whole.
    pub fn step(
        &mut self,
        store: &Store,
        rows: &dyn Fn() -> Result<PinRows, Fail>,
        blocks: usize,
    ) -> Result<Step, Fail> {
        let mut step = Step::default();
        for _ in 0..blocks {
            let Some((_, walk)) = &mut self.walking else {
                match self.next_pin(rows)? {
                    None => {
                        step.done = true;
                        return Ok(step);
                    }
                    Some(pin) => {
                        step.pins += 1;
                        self.begin_walk(pin);
                        continue;
                    }
                }
            };
            let Some(cid) = walk.next_need() else {
                self.walking = None;
                continue;
            };
            match visit(store, walk, &cid, Look::Only) {
                Ok(_) => {}
                Err(fail) if fail.code == Code::Integrity => {
                    self.walking = None;
                    continue;
                }
                Err(fail) => return Err(fail),
            }
            let missing = walk.missing().next().map(|(cid, _)| *cid);
            if let Some(missing) = missing {
                step.lacking = self.walking.take().map(|(pin, _)| (pin, missing));
                return Ok(step);
            }
        }
        Ok(step)
    }

    /// One that is not whole says so itself.
    fn begin_walk(&mut self, pin: Pin) {
        if pin.complete {
            let config = WalkConfig::default().window(1).visited_key(self.key);
            let walk = Walk::of_kind(pin.cid, pin.kind, config);
            self.walking = Some((pin, walk));
        }
    }

    fn next_pin(&mut self, rows: &dyn Fn() -> Result<PinRows, Fail>) -> Result<Option<Pin>, Fail> {
        if self.page.len() == 0 && !self.read_all {
            let page = rows()?.page(self.after.as_ref(), PAGE)?;
            self.read_all = page.len() < PAGE;
            self.after = page.last().map(|pin| pin.cid).or(self.after);
            self.page = page.into_iter();
        }
        Ok(self.page.next())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use gemba_block::Block;
    use gemba_pins::{Add, DesiredSet, Kind};
    use gemba_testkit::disk::SimDisk;

    use super::*;

    fn folder(store: &Store, leaves: &[Block]) -> Cid {
        let links = leaves
            .iter()
            .map(|leaf| gemba_unixfs::dagpb::Link::new(*leaf.cid(), b"", leaf.len() as u64));
        let root = Block::dag_pb(gemba_unixfs::dagpb::encode(links, None)).unwrap();
        store.put_many(leaves).unwrap();
        store.put_many(std::slice::from_ref(&root)).unwrap();
        *root.cid()
    }

    fn pinned(set: &mut DesiredSet, cid: Cid, is_whole: bool) {
        let (kind, name, now_ms) = (Kind::Recursive, None, 0);
        let add = Add {
            cid,
            kind,
            name,
            now_ms,
        };
        let change = set.add(add).unwrap().unwrap();
        set.apply(change).unwrap();
        if is_whole {
            let id = set.get(&cid).unwrap().id;
            let change = set.complete(&cid, id).unwrap().unwrap();
            set.apply(change).unwrap();
        }
    }

    /// Whatever block of whichever pin is gone, a round finds it, in steps of any size; and finds nothing where nothing is gone.
    #[test]
    fn s2_34_a_round_finds_every_pin_that_lacks_a_block() {
        for steps in [1, 2, 7, 10_000] {
            let store =
                Store::open_on(Arc::new(SimDisk::new(1)), "/blocks", Default::default()).unwrap();
            let mut set = DesiredSet::new();
            let mut trees = Vec::new();
            // More than a page of them.
            for n in 0..300_u32 {
                let leaf = |part: u32| Block::raw(format!("{n} {part}").into_bytes()).unwrap();
                let leaves = [leaf(0), leaf(1), leaf(2)];
                let root = folder(&store, &leaves);
                pinned(&mut set, root, n % 5 != 0);
                trees.push((root, leaves));
            }
            let round = |set: &DesiredSet| {
                let mut compare = Compare::begin().unwrap();
                let (mut lacking, mut pins) = (Vec::new(), 0);
                loop {
                    let rows = || Ok(PinRows::from(set.clone()));
                    let step = compare.step(&store, &rows, steps).unwrap();
                    pins += step.pins;
                    lacking.extend(step.lacking.map(|(pin, cid)| (pin.cid, cid)));
                    if step.done {
                        return (lacking, pins);
                    }
                }
            };
            assert_eq!(round(&set), (Vec::new(), 300));
            // A leaf of one, the root of another, and a leaf of one that says itself that it is not whole.
            let (first, second, open) = (&trees[1], &trees[299], &trees[5]);
            let gone = [*first.1[2].cid(), second.0, *open.1[0].cid()];
            assert_eq!(store.delete_many(&gone).unwrap().removed, 3);
            let (mut found, pins) = round(&set);
            found.sort();
            let mut expected = vec![(first.0, gone[0]), (second.0, gone[1])];
            expected.sort();
            assert_eq!((found, pins), (expected, 300));
            // Struck out they are not told again.
            for root in [first.0, second.0] {
                let change = set.incomplete(&root).unwrap().unwrap();
                set.apply(change).unwrap();
            }
            assert_eq!(round(&set).0, Vec::new());
        }
    }
}
