//! A pack that the disk does not give back: the store opens without it, serves the rest, writes on, and leaves it as it is.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::io::{self, IoSlice};
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::{compact, config, pack};
use gemba_block::{Block, Cid};
use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing};
use gemba_store::{Aim, Store};
use gemba_testkit::Rng;
use gemba_testkit::disk::{Call, SimDisk};

/// A disk with a bad stretch in one file: whoever reads any of it is told EIO.
#[derive(Debug)]
struct BadSectors {
    sim: SimDisk,
    path: PathBuf,
    bad: Range<u64>,
}

#[derive(Debug)]
struct BadFile {
    file: Arc<dyn DiskFile>,
    bad: Range<u64>,
}

impl Disk for BadSectors {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let file = self.sim.open(path, mode)?;
        let bad = if path == self.path {
            self.bad.clone()
        } else {
            0..0
        };
        Ok(Arc::new(BadFile { file, bad }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.sim.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.sim.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.sim.sync_dir(dir)
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        self.sim.lock(path, sharing)
    }
}

impl DiskFile for BadFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        const EIO: i32 = 5;
        let read = at..at + buf.len() as u64;
        if read.start < self.bad.end && self.bad.start < read.end && !buf.is_empty() {
            // What stands before the bad stretch is given, as a kernel does.
            let whole = self.bad.start.saturating_sub(read.start) as usize;
            return match whole {
                0 => Err(io::Error::from_raw_os_error(EIO)),
                whole => self.file.read_at(&mut buf[..whole], at),
            };
        }
        self.file.read_at(buf, at)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.file.write_at(bufs, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.file.punch(at, len)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}

/// Ten packs and more.
fn filled(sim: &SimDisk) -> Vec<Block> {
    let store = Store::open_on(Arc::new(sim.clone()), common::DIR, config()).unwrap();
    let mut rng = Rng::new(3);
    let blocks: Vec<_> = (0..200)
        .map(|_| Block::raw(rng.bytes(900)).unwrap())
        .collect();
    for batch in blocks.chunks(10) {
        store.put_many(batch).unwrap();
    }
    blocks
}

/// Those of the blocks that stand in a pack.
fn blocks_of<'a>(sim: &SimDisk, number: u32, blocks: &'a [Block]) -> Vec<&'a Block> {
    let bytes = sim.bytes(&pack(number)).unwrap();
    let stands = |block: &&Block| {
        let data = block.data();
        bytes.windows(data.len()).any(|window| window == &data[..])
    };
    blocks.iter().filter(stands).collect()
}

fn listed(store: &Store) -> Vec<Cid> {
    let mut shown = Vec::new();
    store
        .for_each_cid(|cid, _| {
            shown.push(cid);
            ControlFlow::Continue(())
        })
        .unwrap();
    shown
}

/// STO-27, row S3: whichever pack it is and wherever it cannot be read, the others are served, it is told, nothing of it is changed by
/// anything that is done, what stood in it is put again into another pack, and when the disk gives it back all is as before.
#[test]
fn s3_a_pack_that_cannot_be_read_is_set_aside_and_left_as_it_is() {
    let all = {
        let sim = SimDisk::new(1);
        filled(&sim);
        Store::open_on(Arc::new(sim.clone()), common::DIR, config())
            .unwrap()
            .stat()
            .packs as u32
    };
    for (number, bad) in [
        // The first sector, the footer, the middle of a pack that is not sealed, and the last sector of it.
        (3, 0..512),
        (4, u64::MAX - 1..u64::MAX),
        (all, 600..1200),
        (all, 0..64),
    ] {
        let sim = SimDisk::new(1);
        let blocks = filled(&sim);
        let path = pack(number);
        let before = sim.bytes(&path).unwrap();
        let bad = match bad.end {
            u64::MAX => before.len() as u64 - 200..before.len() as u64,
            _ => bad,
        };
        let told = format!("pack {number}, {bad:?}");
        let lost = blocks_of(&sim, number, &blocks);
        assert!(
            !lost.is_empty() && lost.len() < 60,
            "{told}: {}",
            lost.len()
        );
        let disk = Arc::new(BadSectors {
            sim: sim.clone(),
            path: path.clone(),
            bad: bad.clone(),
        });
        let store = Store::open_on(disk.clone(), common::DIR, config()).unwrap();

        // It is told.
        let report = store.open_report();
        assert_eq!(report.unreadable.len(), 1, "{told}");
        assert_eq!(
            (report.unreadable[0].pack, &report.unreadable[0].path),
            (number, &path)
        );
        assert_eq!(store.stat().unreadable_packs, 1);
        let verified = store.verify(|_| ControlFlow::Continue(())).unwrap();
        assert!(
            verified.corrupt.iter().any(|place| place.pack == number
                && place.cid.is_none()
                && place.cause.contains("set aside")),
            "{told}: {:?}",
            verified.corrupt
        );

        // The rest is served and listed; of the pack itself what can be read is given, and nothing counts as there.
        let names: BTreeSet<Cid> = listed(&store).into_iter().collect();
        for block in &blocks {
            let is_lost = lost.contains(&block);
            assert_eq!(store.has(block.cid()), !is_lost, "{told}");
            assert_eq!(names.contains(block.cid()), !is_lost, "{told}");
            match store.get(block.cid()) {
                Ok(Some(data)) => assert_eq!(&data, block.data()),
                Ok(None) | Err(_) => assert!(is_lost, "{told}"),
            }
        }

        // Whatever is done, the file stays as it is.
        // Two of its blocks are deleted for good, and what buries them outlives every compaction.
        let (buried, again) = lost.split_at(2);
        let again: Vec<Block> = again.iter().map(|block| (*block).clone()).collect();
        let (first, rest) = again.split_at(again.len() / 2);
        assert_eq!(store.put_many(first).unwrap().new, first.len() as u64);
        let gone: Vec<Cid> = blocks.iter().step_by(3).map(|block| *block.cid()).collect();
        store.delete_many(&gone).unwrap();
        let buried: Vec<Cid> = buried.iter().map(|block| *block.cid()).collect();
        store
            .put_many(
                &buried
                    .iter()
                    .map(|cid| of(&blocks, cid))
                    .collect::<Vec<_>>(),
            )
            .unwrap();
        store.delete_many(&buried).unwrap();
        let kept: Vec<&Block> = blocks
            .iter()
            .filter(|block| !buried.contains(block.cid()))
            .collect();
        let gone: Vec<Cid> = gone
            .into_iter()
            .filter(|cid| !buried.contains(cid))
            .collect();
        compact(&store, Aim::default().below(90).with_damaged_packs());
        store.put_many(rest).unwrap();
        store
            .put_many(&gone.iter().map(|cid| of(&blocks, cid)).collect::<Vec<_>>())
            .unwrap();
        compact(&store, Aim::default().below(90).with_damaged_packs());
        for block in &kept {
            assert!(store.has(block.cid()), "{told}");
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
        drop(store);
        assert_eq!(sim.bytes(&path).as_ref(), Some(&before), "{told}");

        // What was acknowledged while it was away survives a power cut, with the pack still away …
        let cut = sim.power_cut(&mut Rng::new(9));
        let disk = Arc::new(BadSectors {
            sim: cut.clone(),
            path,
            bad,
        });
        let store = Store::open_on(disk, common::DIR, config()).unwrap();
        assert!(kept.iter().all(|block| store.has(block.cid())), "{told}");
        for cid in &buried {
            assert_eq!(store.get(cid).unwrap(), None, "{told}");
        }
        drop(store);
        // … and when the disk gives it back everything is there once.
        let store = Store::open_on(Arc::new(cut), common::DIR, config()).unwrap();
        assert!(store.open_report().unreadable.is_empty());
        let names = listed(&store);
        assert_eq!(names.len(), kept.len(), "{told}");
        assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), kept.len());
        assert_eq!(store.stat().blocks, kept.len() as u64, "{told}");
        let verified = store.verify(|_| ControlFlow::Continue(())).unwrap();
        assert!(
            verified.corrupt.is_empty(),
            "{told}: {:?}",
            verified.corrupt
        );
    }
}

/// STO-27, rows S2 and S9: a pack that comes back takes nothing that was acknowledged while it was away, and brings nothing back that was deleted
/// before or meanwhile. The pack is away because it cannot be read, or because its end could not be cut.
#[test]
fn s2_s9_a_pack_that_comes_back_changes_nothing_that_was_acknowledged_meanwhile() {
    for unreadable in [true, false] {
        let sim = SimDisk::new(5);
        let blocks = filled(&sim);
        let store = Store::open_on(Arc::new(sim.clone()), common::DIR, config()).unwrap();
        let all = store.stat().packs as u32;
        drop(store);
        // The last pack holds one tombstone for each old block that is named here, and then new blocks.
        let old = blocks_of(&sim, 2, &blocks);
        let (again, gone) = old.split_at(old.len() / 2);
        let cids = |blocks: &[&Block]| blocks.iter().map(|b| *b.cid()).collect::<Vec<_>>();
        let store = Store::open_on(Arc::new(sim.clone()), common::DIR, config()).unwrap();
        store.delete_many(&cids(&old)).unwrap();
        let late: Vec<Block> = (0..4_u8)
            .map(|n| Block::raw(vec![n; 900]).unwrap())
            .collect();
        store.put_many(&late).unwrap();
        // A kill: what was extended ahead has to be cut.
        let sim = sim.kill();
        drop(store);
        let last = (all..all + 2)
            .rev()
            .find(|number| sim.bytes(&pack(*number)).is_some())
            .unwrap();
        assert_eq!(blocks_of(&sim, last, &late).len(), late.len());
        let disk: Arc<dyn Disk> = if unreadable {
            Arc::new(BadSectors {
                sim: sim.clone(),
                path: pack(last),
                bad: 32..64,
            })
        } else {
            sim.fail(Call::SetLen, 1, 1);
            Arc::new(sim.clone())
        };
        let store = Store::open_on(disk, common::DIR, config()).unwrap();
        assert_eq!(store.open_report().unreadable[0].pack, last);
        // What is here is told as here, and read, until the pack that deleted it is back.
        for block in &old {
            assert!(store.has(block.cid()) && store.size(block.cid()) == Some(900));
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
        let put: Vec<Block> = again.iter().map(|block| (*block).clone()).collect();
        assert_eq!(store.put_many(&put).unwrap().new, put.len() as u64);
        // Once.
        assert_eq!(store.put_many(&put).unwrap().new, 0);
        store.delete_many(&cids(&[&late[0]])).unwrap();
        // Of the others most are gone too: worth copying, were nothing away.
        let more: Vec<Cid> = (3..last)
            .flat_map(|number| blocks_of(&sim, number, &blocks).into_iter().skip(2))
            .map(|block| *block.cid())
            .collect();
        store.delete_many(&more).unwrap();
        compact(&store, Aim::default().below(90).with_damaged_packs());
        let sim = sim.power_cut(&mut Rng::new(8));
        drop(store);

        let store = Store::open_on(Arc::new(sim), common::DIR, config()).unwrap();
        assert!(store.open_report().unreadable.is_empty());
        for block in again.iter().copied().chain(&late[1..]) {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
        let gone = cids(gone).into_iter().chain(more);
        for cid in gone.chain([*late[0].cid()]) {
            assert!(!store.has(&cid), "{unreadable}: {cid}");
        }
        // Nothing is away: the space comes back.
        assert!(compact(&store, Aim::default().below(90)).removed > 0);
    }
}

fn of(blocks: &[Block], cid: &Cid) -> Block {
    blocks
        .iter()
        .find(|block| block.cid() == cid)
        .unwrap()
        .clone()
}

/// A collection takes nothing out of it, and a disk that refuses one read at the opening costs one pack for that time, not the store.
#[test]
fn one_refused_read_costs_one_pack_until_the_next_opening() {
    let sim = SimDisk::new(2);
    let blocks = filled(&sim);
    for nth in [4, 9, 16, 23] {
        sim.fail(Call::Read, nth, 1);
        let opened = Store::open_on(Arc::new(sim.clone()), common::DIR, config());
        sim.heal();
        // The version, the lock and the marks are read as well; that is not this test's.
        let Ok(store) = opened else { continue };
        let there = blocks.iter().filter(|block| store.has(block.cid())).count();
        assert!(there > blocks.len() / 2, "{nth}: {there}");
        if there < blocks.len() {
            assert_eq!(store.stat().unreadable_packs, 1, "{nth}");
        }
        drop(store.collect().unwrap().sweep());
        drop(store);
        let store = Store::open_on(Arc::new(sim.clone()), common::DIR, config()).unwrap();
        assert!(blocks.iter().all(|block| store.has(block.cid())), "{nth}");
    }
}

/// A store that is only read does the same, and writes nothing.
#[test]
fn a_reader_sets_an_unreadable_pack_aside_too() {
    let sim = SimDisk::new(4);
    let blocks = filled(&sim);
    let lost = blocks_of(&sim, 2, &blocks);
    let disk = Arc::new(BadSectors {
        sim: sim.clone(),
        path: pack(2),
        bad: 0..512,
    });
    let ops = sim.ops();
    let store = Store::open_read_only_on(disk, common::DIR, config()).unwrap();
    assert_eq!(store.stat().unreadable_packs, 1);
    assert_eq!(
        blocks.iter().filter(|block| store.has(block.cid())).count(),
        blocks.len() - lost.len()
    );
    drop(store);
    assert_eq!(sim.ops(), ops);
}
