//! What the store promises, promise by promise; names carry the rows of the threat table.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Barrier};

use gemba_block::{Block, Cid, MhCode, codec};
use gemba_segment::{Disk, Mode};
use gemba_store::{Config, OpenError, PutReport, Store, StoreError, VerifyOnRead};
use gemba_testkit::disk::errno::{EDQUOT, EIO, EMFILE, ENOSPC, EROFS};
use gemba_testkit::disk::{Call, SimDisk};
use gemba_testkit::{Rng, sim_scale};

const DIR: &str = common::DIR;

fn open(sim: &SimDisk, config: Config) -> Result<Store, OpenError> {
    Store::open_on(Arc::new(sim.clone()), DIR, config)
}

fn blocks(seed: u64, count: usize, len: usize) -> Vec<Block> {
    let mut rng = Rng::new(seed);
    (0..count)
        .map(|_| Block::raw(rng.bytes(len)).unwrap())
        .collect()
}

fn cids(store: &Store) -> BTreeSet<Cid> {
    let mut all = BTreeSet::new();
    store
        .for_each_cid(|cid, _| {
            assert!(all.insert(cid), "{cid} is listed twice");
            ControlFlow::Continue(())
        })
        .unwrap();
    all
}

#[test]
fn puts_are_counted_deduplicated_and_read_back() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config()).unwrap();
    let all = blocks(1, 40, 900);
    let mut batch = all.clone();
    batch.push(all[3].clone());
    let report = store.put_many(&batch).unwrap();
    assert_eq!(
        report,
        PutReport {
            new: 40,
            present: 1,
            bytes: 36_000
        }
    );
    assert_eq!(store.put_many(&all).unwrap().present, 40);
    for block in &all {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        assert_eq!(store.size(block.cid()), Some(900));
    }
    assert_eq!(cids(&store), all.iter().map(|b| *b.cid()).collect());
    let absent = Block::raw("absent").unwrap();
    assert!(!store.has(absent.cid()));
    assert_eq!(store.get(absent.cid()).unwrap(), None);
    let stat = store.stat();
    assert_eq!((stat.blocks, stat.bytes, stat.flushes), (40, 36_000, 1));
}

#[test]
fn an_identity_block_is_its_own_name_and_takes_no_room() {
    let store = open(&SimDisk::new(1), common::config()).unwrap();
    let block = Block::encode(codec::RAW, MhCode::Identity, "tiny").unwrap();
    assert_eq!(
        store
            .put_many(std::slice::from_ref(&block))
            .unwrap()
            .present,
        1
    );
    assert_eq!(store.get(block.cid()).unwrap().unwrap(), "tiny");
    assert!(store.has(block.cid()));
    assert_eq!(store.stat().blocks, 0);
}

/// S4.23: version and codec of a CID are not part of the key.
#[test]
fn s4_23_key_is_the_multihash() {
    let store = open(&SimDisk::new(1), common::config()).unwrap();
    let v0 = Block::v0(vec![0x0a, 0x02, 0x08, 0x01]).unwrap();
    let v1 = Block::dag_pb(vec![0x0a, 0x02, 0x08, 0x01]).unwrap();
    let raw = Block::raw(vec![0x0a, 0x02, 0x08, 0x01]).unwrap();
    assert_eq!(store.put_many(&[v0.clone(), v1.clone()]).unwrap().new, 1);
    assert_eq!(
        store.put_many(std::slice::from_ref(&raw)).unwrap().present,
        1
    );
    for cid in [v0.cid(), v1.cid(), raw.cid()] {
        assert_eq!(store.get(cid).unwrap().as_ref(), Some(v0.data()));
    }
    let other_hash =
        Block::encode(codec::RAW, MhCode::Blake3, vec![0x0a, 0x02, 0x08, 0x01]).unwrap();
    assert!(!store.has(other_hash.cid()));
    assert_eq!(cids(&store), BTreeSet::from([*raw.cid()]));
}

/// Row S3: whichever bit of an orderly closed pack turns, no read gives wrong bytes, and no loss is silent.
#[test]
fn s3_every_flipped_byte_is_found() {
    let config = || Config::default();
    let sim = SimDisk::new(1);
    let all: Vec<_> = (0..6)
        .flat_map(|i| blocks(i, 1, 20 + 30 * i as usize))
        .collect();
    // Two groups, so that there are acknowledged frames before and in the last one.
    let store = open(&sim, config()).unwrap();
    store.put_many(&all[..3]).unwrap();
    store.put_many(&all[3..]).unwrap();
    drop(store);
    let path = common::pack(1);
    let len = sim.bytes(&path).unwrap().len() as u64;
    let mut rng = Rng::new(9);
    for at in 0..len {
        let hurt = sim.kill();
        hurt.flip_bit(&path, at * 8 + rng.below(8));
        let store = open(&hurt, config()).unwrap();
        let mut lost = 0;
        for block in &all {
            match store.get(block.cid()) {
                Ok(Some(bytes)) => assert_eq!(bytes, block.data(), "wrong bytes at {at}"),
                Ok(None) => lost += 1,
                Err(StoreError::Corrupt { .. }) => {
                    assert!(!store.has(block.cid()), "a put would be skipped");
                }
                Err(other) => panic!("byte {at}: {other}"),
            }
        }
        let told = !store.open_report().damage.is_empty();
        assert!(lost == 0 || told, "byte {at}: {lost} blocks lost silently");
        // A repair is a put, and all is there again.
        store.put_many(&all).unwrap();
        for block in &all {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
    }
}

/// Row S3: the scrub names pack and offset of what it finds, and stops when told.
#[test]
fn s3_verify_finds_damage_and_can_be_stopped() {
    let sim = SimDisk::new(1);
    let all = blocks(4, 200, 300);
    let store = open(&sim, Config::default()).unwrap();
    store.put_many(&all).unwrap();
    let clean = store.verify(|_| ControlFlow::Continue(())).unwrap();
    assert_eq!(
        (clean.checked, clean.bytes, clean.corrupt.len()),
        (200, 60_000, 0)
    );
    let pack = sim.bytes(&common::pack(1)).unwrap();
    let victim = &all[100];
    let payload = pack
        .windows(300)
        .position(|w| w == &victim.data()[..])
        .unwrap();
    sim.flip_bit(&common::pack(1), payload as u64 * 8);
    let mut told = 0;
    let found = store
        .verify(|progress| {
            told += 1;
            assert_eq!(progress.total_blocks, 200);
            ControlFlow::Continue(())
        })
        .unwrap();
    assert!(told >= 3);
    assert_eq!(found.corrupt.len(), 1);
    let corrupt = &found.corrupt[0];
    assert_eq!((corrupt.cid, corrupt.pack), (Some(*victim.cid()), 1));
    assert!(corrupt.offset < payload as u64 && payload as u64 - corrupt.offset < 100);
    let stopped = store.verify(|_| ControlFlow::Break(())).unwrap();
    assert!(stopped.stopped && stopped.checked < 200);
    // Found damaged, so fetched again, put again, whole again.
    assert!(!store.has(victim.cid()));
    assert_eq!(store.put_many(std::slice::from_ref(victim)).unwrap().new, 1);
    assert_eq!(
        store.get(victim.cid()).unwrap().as_ref(),
        Some(victim.data())
    );
}

/// `verify_on_read`: a checksum finds what a disk does; only the hash finds what somebody wrote with a right checksum.
#[test]
fn s3_reads_check_what_they_are_told_to() {
    for (verify, found) in [
        (VerifyOnRead::Crc, true),
        (VerifyOnRead::Hash, true),
        (VerifyOnRead::Off, false),
    ] {
        let sim = SimDisk::new(1);
        let store = open(&sim, Config::default().verify_on_read(verify)).unwrap();
        let block = &blocks(5, 1, 64)[0];
        store.put_many(std::slice::from_ref(block)).unwrap();
        let end = store.stat().disk_bytes;
        sim.flip_bit(&common::pack(1), end * 8 - 1);
        assert_eq!(store.get(block.cid()).is_err(), found, "{verify:?}");
    }
}

/// A medium that gives no data, and a pack that somebody took away: the block counts as absent, and putting it again repairs it.
#[test]
fn what_cannot_be_read_is_absent_and_can_be_put_again() {
    let sim = SimDisk::new(1);
    let config = Config::default().pack_bytes(4 << 10).open_packs(1);
    let store = open(&sim, config).unwrap();
    let all = blocks(6, 4, 3000);
    for block in &all {
        store.put_many(std::slice::from_ref(block)).unwrap();
    }
    assert!(store.stat().packs > 1);
    let repair = |block: &Block, cause: &str| {
        match store.get(block.cid()) {
            Err(StoreError::Corrupt { what, .. }) => assert_eq!(what, cause),
            other => panic!("{other:?}"),
        }
        assert!(!store.has(block.cid()));
        assert_eq!(store.put_many(std::slice::from_ref(block)).unwrap().new, 1);
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    };
    // Only the file that was read last is open.
    store.get(all[3].cid()).unwrap();
    sim.unlink(&common::pack(1)).unwrap();
    repair(&all[0], "its pack is gone");
    store.get(all[2].cid()).unwrap();
    sim.fail(Call::Read, 1, 1);
    repair(&all[2], "the disk cannot read it");
}

/// A forged block (the caller lied about its hash) is refused by a reader that hashes.
#[test]
fn s3_a_forged_block_is_found_by_hash() {
    let sim = SimDisk::new(1);
    let name = *Block::raw("true").unwrap().cid();
    let forged = Block::danger_unchecked(name, "lies");
    let store = open(&sim, Config::default().verify_on_read(VerifyOnRead::Hash)).unwrap();
    store.put_many(&[forged]).unwrap();
    assert!(matches!(
        store.get(&name),
        Err(StoreError::Corrupt { pack: 1, .. })
    ));
}

/// Row S4: one writer or several readers, and the error names the lock file and the holder.
#[test]
fn s4_two_processes_are_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    for second in [
        Store::open(dir.path(), Config::default()),
        Store::open_read_only(dir.path(), Config::default()),
    ] {
        let error = second.unwrap_err();
        let text = error.to_string();
        assert!(text.contains("lock") && text.contains(&std::process::id().to_string()));
        assert!(
            matches!(error, OpenError::LockHeld { pid: Some(pid), .. } if pid == std::process::id())
        );
    }
    let block = &blocks(1, 1, 10)[0];
    store.put_many(std::slice::from_ref(block)).unwrap();
    let twin = store.clone();
    drop(store);
    assert!(Store::open(dir.path(), Config::default()).is_err());
    drop(twin);
    let one = Store::open_read_only(dir.path(), Config::default()).unwrap();
    let two = Store::open_read_only(dir.path(), Config::default()).unwrap();
    assert!(one.has(block.cid()) && two.has(block.cid()) && two.is_read_only());
    assert!(matches!(
        Store::open(dir.path(), Config::default()),
        Err(OpenError::LockHeld { .. })
    ));
    assert!(matches!(
        one.put_many(std::slice::from_ref(block)),
        Err(StoreError::ReadOnly)
    ));
    assert!(matches!(
        one.delete_many(&[*block.cid()]),
        Err(StoreError::ReadOnly)
    ));
}

#[test]
fn reading_a_store_that_is_not_there_says_so_and_makes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("none");
    let error = Store::open_read_only(&missing, Config::default()).unwrap_err();
    assert!(matches!(error, OpenError::Missing(path) if path == missing));
    assert!(!missing.exists());
}

/// Row S5: every kind of failing call at every index, with what a bad medium, a full disk, a quota, a read-only remount and too many open
/// files answer: a typed error, reads go on, nothing acknowledged is lost, the store takes blocks again once the disk does, and opens.
#[test]
fn s5_every_failing_call_at_every_index() {
    for (call, errno) in [
        (Call::Write, EIO),
        (Call::Write, EROFS),
        (Call::Write, EDQUOT),
        (Call::WriteFull, ENOSPC),
        (Call::WriteFull, EDQUOT),
        (Call::WriteShort, EIO),
        (Call::Sync, EIO),
        (Call::Sync, EROFS),
        (Call::Sync, EDQUOT),
        (Call::SyncLanded, EIO),
        (Call::SyncDir, EIO),
        (Call::SyncDir, EROFS),
        (Call::Create, ENOSPC),
        (Call::Create, EDQUOT),
        (Call::Create, EROFS),
        (Call::Create, EMFILE),
        (Call::SetLen, EIO),
    ] {
        let mut fired = 0;
        for nth in 1..=sim_scale(240) as u64 {
            let sim = SimDisk::new(nth);
            // Opening is not what fails here.
            let store = open(&sim, Config::default().pack_bytes(4 << 10)).unwrap();
            sim.fail_with(call, nth, 2, errno);
            let model = Arc::default();
            let mut failed = 0;
            for seed in 0..12 {
                let batch = blocks(seed, 3, 400);
                let before = store.stat().blocks;
                match store.put_many(&batch) {
                    Ok(report) => {
                        assert_eq!(report.new, 3);
                        common::put(&store, &batch, &model);
                    }
                    Err(error) => {
                        failed += 1;
                        let right = match (call, errno) {
                            // A quota may be noticed only when the bytes are written out.
                            (Call::Sync, EDQUOT) => {
                                matches!(error, StoreError::NotDurable(_) | StoreError::Full(_))
                            }
                            (Call::Sync | Call::SyncLanded | Call::SetLen, _) => {
                                matches!(error, StoreError::NotDurable(_) | StoreError::Io(_))
                            }
                            (_, ENOSPC | EDQUOT) => matches!(error, StoreError::Full(_)),
                            _ => matches!(error, StoreError::Io(_)),
                        };
                        assert!(right, "{call:?} {errno} {nth}: {error:?}");
                        assert_eq!(store.stat().blocks, before);
                    }
                }
                common::check_open(&store, &model.lock().unwrap()).unwrap();
            }
            fired += failed;
            sim.heal();
            let last = blocks(99, 2, 100);
            common::put(&store, &last, &model);
            assert!(model.lock().unwrap().put.contains_key(last[0].cid()));
            let model = model.lock().unwrap().clone();
            for after in [sim.kill(), sim.reopen()] {
                common::check(&after, &common::config(), &model)
                    .unwrap_or_else(|broken| panic!("{call:?} {errno} {nth}: {broken}"));
            }
        }
        let harmless = matches!(call, Call::WriteShort | Call::SetLen);
        assert!(fired > 0 || harmless, "{call:?} {errno} never failed");
    }
}

/// Row S5: too many files are open. Whichever file cannot be opened, that is an error of the moment and no damage: nothing is set aside, and
/// with the next call, or the next opening, everything is there.
#[test]
fn s5_a_file_that_cannot_be_opened_for_the_moment_is_no_damage() {
    let config = || Config::default().pack_bytes(4 << 10).open_packs(1);
    let (mut at_opening, mut at_reading) = (0, 0);
    for nth in 1..=sim_scale(600) as u64 {
        let sim = SimDisk::new(nth);
        let store = open(&sim, config()).unwrap();
        let all = blocks(nth, 60, 500);
        for batch in all.chunks(10) {
            store.put_many(batch).unwrap();
        }
        assert!(store.stat().packs > 3);
        drop(store);
        sim.fail(Call::Open, nth, 2);
        match open(&sim, config()) {
            Err(OpenError::Io { source, .. }) => {
                at_opening += 1;
                assert_eq!(source.raw_os_error(), Some(EMFILE), "{nth}");
            }
            Err(other) => panic!("{nth}: {other:?}"),
            Ok(store) => {
                assert_eq!(store.stat().unreadable_packs, 0, "{nth}");
                for block in all.iter().rev() {
                    match store.get(block.cid()) {
                        Ok(data) => assert_eq!(data.as_ref(), Some(block.data())),
                        Err(StoreError::Io(_)) => at_reading += 1,
                        Err(other) => panic!("{nth}: {other:?}"),
                    }
                }
                sim.heal();
                for block in &all {
                    assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
                }
            }
        }
        sim.heal();
        let store = open(&sim, config()).unwrap();
        assert_eq!(store.open_report().damage, [], "{nth}");
        for block in &all {
            assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
        }
    }
    assert!(
        at_opening > 0 && at_reading > 0,
        "{at_opening}, {at_reading}"
    );
}

/// Row S5: a disk that is full to the last byte. Reads work, the store opens, and room lets it go on.
#[test]
fn s5_a_full_disk_opens_and_reads() {
    let sim = SimDisk::new(3);
    let store = open(&sim, common::config()).unwrap();
    let all = blocks(1, 30, 700);
    store.put_many(&all).unwrap();
    sim.set_capacity(sim.used());
    let more = blocks(2, 1, 50_000);
    assert!(matches!(store.put_many(&more), Err(StoreError::Full(_))));
    drop(store);
    let store = open(&sim, common::config()).unwrap();
    for block in &all {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    assert!(matches!(store.put_many(&more), Err(StoreError::Full(_))));
    sim.heal();
    assert_eq!(store.put_many(&more).unwrap().new, 1);
}

/// Row S5, the worst case: a flush fails, the process dies before it can cut the file, the next one says that the block is
/// present, and then the power goes.
#[test]
fn s5_what_a_failed_flush_left_in_the_cache_is_not_believed() {
    for seed in 0..40 {
        let sim = SimDisk::new(seed);
        let store = open(&sim, Config::default()).unwrap();
        let block = blocks(seed, 1, 600);
        store.put_many(&blocks(100 + seed, 1, 50)).unwrap();
        sim.fail(Call::Sync, 1, 1);
        sim.fail(Call::SetLen, 1, 1);
        assert!(store.put_many(&block).is_err());
        sim.faults().assert_fired(&["eio sync", "eio set_len"], 1);
        let sim = sim.kill();
        let store = open(&sim, Config::default()).unwrap();
        store.put_many(&block).unwrap();
        let sim = sim.power_cut(&mut Rng::new(seed));
        let store = open(&sim, Config::default()).unwrap();
        assert_eq!(
            store.get(block[0].cid()).unwrap().as_ref(),
            Some(block[0].data())
        );
    }
}

/// Row S5: a flush fails although the tombstone reached the disk. The deletion is told to have failed, the block is put again and acknowledged
/// as present, the power goes, and the tombstone took the block.
#[test]
fn s5_a_deletion_that_failed_and_reached_the_disk_takes_no_block_that_is_put_later() {
    let mut refused = 0;
    for seed in 0..80 {
        let sim = SimDisk::new(seed);
        let store = open(&sim, Config::default()).unwrap();
        let block = blocks(seed, 1, 600);
        store.put_many(&block).unwrap();
        let cids = [*block[0].cid()];
        sim.fail(Call::SyncLanded, 1, 1);
        // Nor can the pack be cut, in every other run.
        sim.fail(Call::SetLen, 1, seed % 2 * 4);
        assert!(store.delete_many(&cids).is_err());
        sim.faults().assert_fired(&["eio sync, bytes landed"], 1);
        assert_eq!(store.get(&cids[0]).unwrap().as_ref(), Some(block[0].data()));
        if store.put_many(&block).is_err() {
            refused += 1;
            sim.heal();
            store.put_many(&block).unwrap();
        }
        let sim = sim.power_cut(&mut Rng::new(seed));
        let store = open(&sim, Config::default()).unwrap();
        let found = store.get(&cids[0]).unwrap();
        assert_eq!(found.as_ref(), Some(block[0].data()), "seed {seed}");
    }
    assert_eq!(refused, 40);
}

/// Row S5, the other way round: a put fails and reaches the disk, then its block is deleted, which is nothing to do since it is not there.
#[test]
fn s5_a_put_that_failed_and_reached_the_disk_does_not_outlive_a_deletion() {
    for seed in 0..40 {
        let sim = SimDisk::new(seed);
        let store = open(&sim, Config::default()).unwrap();
        store.put_many(&blocks(100 + seed, 1, 50)).unwrap();
        let block = blocks(seed, 1, 600);
        sim.fail(Call::SyncLanded, 1, 1);
        assert!(store.put_many(&block).is_err());
        store.delete_many(&[*block[0].cid()]).unwrap();
        let sim = sim.power_cut(&mut Rng::new(seed));
        let store = open(&sim, Config::default()).unwrap();
        assert!(!store.has(block[0].cid()), "seed {seed}");
    }
}

/// Row S10: the index is nothing but what the packs say; footers or not, it is the same.
#[test]
fn s10_the_index_is_rebuilt_from_the_packs() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config()).unwrap();
    let all = blocks(1, 150, 500);
    for batch in all.chunks(10) {
        store.put_many(batch).unwrap();
    }
    let gone: Vec<_> = all[20..50].iter().map(|b| *b.cid()).collect();
    assert_eq!(store.delete_many(&gone).unwrap().removed, 30);
    store.put_many(&all[30..35]).unwrap();
    let (listed, stat) = (cids(&store), store.stat());
    assert!(stat.packs > 4 && stat.dead_bytes > 15_000);
    drop(store);
    let store = open(&sim, common::config()).unwrap();
    assert_eq!(cids(&store), listed);
    let again = store.stat();
    assert_eq!((again.blocks, again.bytes), (stat.blocks, stat.bytes));
    drop(store);
    // Without their footers the packs are walked.
    for number in 1..stat.packs as u32 {
        sim.edit(&common::pack(number), |bytes| {
            let len = bytes.len();
            bytes[len - 1] ^= 1;
        });
    }
    let store = open(&sim, common::config()).unwrap();
    assert_eq!(cids(&store), listed);
}

/// Row S12: what has to be walked after a kill is bounded by the number of frames too, not only by bytes.
#[test]
fn s12_a_pack_of_tiny_blocks_is_sealed_by_their_number() {
    let sim = SimDisk::new(1);
    let store = open(&sim, Config::default()).unwrap();
    let all: Vec<_> = (0..80_000_u32)
        .map(|i| Block::raw(i.to_le_bytes().to_vec()).unwrap())
        .collect();
    for batch in all.chunks(10_000) {
        store.put_many(batch).unwrap();
    }
    assert_eq!(store.stat().packs, 2);
    let killed = sim.kill();
    let store = open(&killed, Config::default()).unwrap();
    assert_eq!((store.stat().packs, store.stat().blocks), (2, 80_000));
    assert!(store.stat().index_bytes <= 64 * 80_000);
}

/// Row S11: a newer store is not touched, and the text says what to run.
#[test]
fn s11_a_newer_format_is_refused() {
    let sim = SimDisk::new(1);
    drop(open(&sim, common::config()).unwrap());
    let version = Path::new(DIR).join("version");
    sim.edit(&version, |bytes| {
        *bytes = b"gemba-store 3\nsomething else\n".to_vec();
    });
    let ops = sim.ops();
    let error = open(&sim, common::config()).unwrap_err();
    assert!(matches!(
        error,
        OpenError::NewerFormat {
            found: 3,
            known: 2,
            ..
        }
    ));
    assert!(error.to_string().contains("gemba repo migrate"));
    assert_eq!(sim.ops(), ops, "something was written");
}

/// A `version` file that is lost or damaged is written anew from the packs; without packs there is nothing to lose.
#[test]
fn s11_a_lost_version_file_is_not_the_end() {
    let version = Path::new(DIR).join("version");
    for damage in [&b""[..], b"rubbish", b"\xff\xfe"] {
        let sim = SimDisk::new(1);
        let store = open(&sim, common::config()).unwrap();
        let block = blocks(1, 1, 10);
        store.put_many(&block).unwrap();
        drop(store);
        sim.edit(&version, |bytes| *bytes = damage.to_vec());
        let store = open(&sim, common::config()).unwrap();
        assert!(store.has(block[0].cid()));
        drop(store);
        assert!(sim.bytes(&version).unwrap().starts_with(b"gemba-store 2\n"));
    }
}

/// A pack of another store is not mixed in, and is named.
#[test]
fn a_foreign_pack_is_named() {
    let (a, b) = (SimDisk::new(1), SimDisk::new(2));
    for sim in [&a, &b] {
        let store = open(sim, common::config()).unwrap();
        store.put_many(&blocks(1, 1, 10)).unwrap();
    }
    a.install(&common::pack(2), b.bytes(&common::pack(1)).unwrap());
    let error = open(&a, common::config()).unwrap_err();
    assert!(matches!(&error, OpenError::ForeignPack { path, .. } if *path == common::pack(2)));
}

/// Guards: what is put or touched under one stays, what is older goes.
#[test]
fn a_guard_keeps_what_was_put_or_touched_under_it() {
    let store = open(&SimDisk::new(1), common::config()).unwrap();
    let all = blocks(1, 4, 100);
    let ids: Vec<_> = all.iter().map(|b| *b.cid()).collect();
    store.put_many(&all[..3]).unwrap();
    let guard = store.guard();
    // Block 0 is only there; 1 is put again; 2 is touched; 3 is new.
    assert_eq!(store.put_many(&all[1..2]).unwrap().present, 1);
    assert!(store.touch(&ids[2]));
    store.put_many(&all[3..]).unwrap();
    let report = store.delete_many(&ids).unwrap();
    assert_eq!((report.removed, report.guarded), (1, 3));
    assert!(!store.has(&ids[0]));
    assert_eq!(store.stat().guards, 1);
    drop(guard);
    let report = store.delete_many(&ids).unwrap();
    assert_eq!((report.removed, report.absent, report.guarded), (3, 1, 0));
    assert_eq!(store.stat().blocks, 0);
}

/// Puts under a guard against deletions of the same blocks, on several threads: a put that returned is never undone.
#[test]
fn a_put_under_a_guard_is_never_undone_by_a_deletion() {
    let store = open(&SimDisk::new(1), Config::default()).unwrap();
    let all = blocks(1, 8, 64);
    let ids: Vec<_> = all.iter().map(|b| *b.cid()).collect();
    let start = Barrier::new(4);
    std::thread::scope(|scope| {
        for t in 0..2 {
            let (store, all, start) = (&store, &all, &start);
            scope.spawn(move || {
                start.wait();
                for i in 0..150 {
                    let guard = store.guard();
                    let mine = &all[(t * 3 + i) % 5..][..3];
                    store.put_many(mine).unwrap();
                    for block in mine {
                        let read = store.get(block.cid()).unwrap();
                        assert_eq!(read.as_ref(), Some(block.data()));
                    }
                    drop(guard);
                }
            });
        }
        for _ in 0..2 {
            let (store, ids, start) = (&store, &ids, &start);
            scope.spawn(move || {
                start.wait();
                for _ in 0..150 {
                    store.delete_many(ids).unwrap();
                }
            });
        }
    });
    let listed = cids(&store);
    assert_eq!(listed.len() as u64, store.stat().blocks);
}

/// Many threads share flushes, and a block that several of them bring is written once.
#[test]
fn callers_share_flushes_and_duplicates_are_written_once() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let common = blocks(0, 20, 2000);
    let start = Barrier::new(8);
    let new: u64 = std::thread::scope(|scope| {
        let threads: Vec<_> = (1..=8)
            .map(|t| {
                let (store, common, start) = (&store, &common, &start);
                scope.spawn(move || {
                    let own = blocks(t, 20, 500);
                    start.wait();
                    let mut new = 0;
                    for (own, shared) in own.iter().zip(common) {
                        let batch = [own.clone(), shared.clone()];
                        new += store.put_many(&batch).unwrap().new;
                    }
                    new
                })
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).sum()
    });
    assert_eq!(new, 8 * 20 + 20);
    let stat = store.stat();
    assert_eq!((stat.blocks, stat.dead_bytes < 1000), (180, true));
    assert!(stat.flushes < 160, "{} flushes for 160 calls", stat.flushes);
}

/// A batch is one flush, however large its blocks are (up to 32 MiB).
#[test]
fn a_batch_is_one_flush() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path(), Config::default()).unwrap();
    store.put_many(&blocks(1, 64, 64 << 10)).unwrap();
    store.put_many(&blocks(2, 64, 1 << 10)).unwrap();
    assert_eq!(store.stat().flushes, 2);
}

/// Few files are open at once, and reads do not care.
#[test]
fn open_files_are_bounded() {
    let config = Config::default().pack_bytes(4 << 10).open_packs(2);
    let store = open(&SimDisk::new(1), config).unwrap();
    let all = blocks(1, 60, 900);
    for block in &all {
        store.put_many(std::slice::from_ref(block)).unwrap();
    }
    assert!(store.stat().packs > 10);
    for block in &all {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    assert!(store.stat().pack_opens > 10);
}

#[test]
fn a_block_over_two_mebibytes_is_refused() {
    let store = open(&SimDisk::new(1), Config::default()).unwrap();
    let name = *Block::raw("x").unwrap().cid();
    let large = Block::danger_unchecked(name, vec![0; (2 << 20) + 1]);
    assert!(matches!(
        store.put_many(&[large]),
        Err(StoreError::TooLarge { .. })
    ));
    assert!(!store.has(&name));
}

/// Whatever stands in the files: opening never panics, never allocates without bound, and what is read is right.
#[test]
fn mutated_packs_never_panic_and_never_lie() {
    let sim = SimDisk::new(1);
    let store = open(&sim, common::config()).unwrap();
    let all = blocks(1, 60, 500);
    for batch in all.chunks(7) {
        store.put_many(batch).unwrap();
    }
    store.delete_many(&[*all[5].cid(), *all[6].cid()]).unwrap();
    drop(store);
    let mut rng = Rng::new(77);
    for round in 0..sim_scale(3_000) {
        let hurt = sim.kill();
        let number = 1 + rng.below(3) as u32;
        let (other, at) = (rng.next_u64(), rng.next_u64());
        let kind = rng.below(6);
        hurt.edit(&common::pack(number), |bytes| {
            mutate(bytes, kind, at, other);
        });
        let Ok(store) = open(&hurt, common::config()) else {
            panic!("round {round}: a damaged pack keeps the store closed");
        };
        for block in &all {
            if let Ok(Some(bytes)) = store.get(block.cid()) {
                assert_eq!(bytes, block.data(), "round {round}");
            }
        }
        store.put_many(&all).unwrap();
        store.verify(|_| ControlFlow::Continue(())).unwrap();
    }
}

fn mutate(bytes: &mut Vec<u8>, kind: u64, at: u64, other: u64) {
    let len = bytes.len() as u64;
    let at = (at % len) as usize;
    match kind {
        0 => bytes.truncate(at),
        1 => bytes[at] = other as u8,
        2 => bytes.extend_from_slice(&other.to_le_bytes()),
        3 => {
            // A length or an offset becomes huge.
            let end = (at + 8).min(bytes.len());
            bytes[at..end].fill(0xff);
        }
        4 => {
            let from = (other % len) as usize;
            let part = bytes[from..(from + 700).min(bytes.len())].to_vec();
            let end = (at + part.len()).min(bytes.len());
            bytes[at..end].copy_from_slice(&part[..end - at]);
        }
        _ => {
            let end = (at + 600).min(bytes.len());
            bytes.drain(at..end);
        }
    }
}

/// Packs named like packs that are none.
#[test]
fn files_that_are_no_packs_are_left_alone() {
    let sim = SimDisk::new(1);
    drop(open(&sim, common::config()).unwrap());
    let stranger = Path::new(DIR).join("notes.txt");
    sim.install(&stranger, b"keep".to_vec());
    sim.install(&common::pack(1), Vec::new());
    let store = open(&sim, common::config()).unwrap();
    store.put_many(&blocks(1, 1, 10)).unwrap();
    assert_eq!(sim.bytes(&stranger).unwrap(), b"keep");
    assert_eq!(store.stat().packs, 1);
    assert!(SimDisk::new(2).open(&stranger, Mode::Read).is_err());
}
