//! What the log promises, promise by promise; names carry the demands.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod common;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Barrier, Mutex};

use common::{DIR, Other, config, open, open_on, served, signer, stream};
use gemba_log::{
    Batch, Class, Config, Description, EventList, FeedId, Headers, Log, LogError, NewEvent, Origin,
    Pattern, ReadCheck, Retention, Signer,
};
use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing};
use gemba_testkit::Rng;
use gemba_testkit::disk::{Call, SimDisk};

fn event(text: &str) -> NewEvent {
    NewEvent::new(1_700_000_000_000, text.to_owned())
}

fn texts(log: &Log, feed: &FeedId) -> Vec<String> {
    let events = log.read(feed, 0, 100_000).unwrap();
    events
        .iter()
        .map(|event| String::from_utf8(event.payload.to_vec()).unwrap())
        .collect()
}

/// S3.40: an append is acknowledged after the flush that covers it, and not before.
#[test]
fn s3_40_an_append_returns_after_its_flush() {
    #[derive(Debug, Default)]
    struct Seen {
        dirty: bool,
        flushes: u64,
    }
    #[derive(Debug)]
    struct Watching(SimDisk, Arc<Mutex<Seen>>);
    #[derive(Debug)]
    struct WatchingFile(Arc<dyn DiskFile>, Arc<Mutex<Seen>>);
    impl Disk for Watching {
        fn open(&self, path: &Path, mode: Mode) -> std::io::Result<Arc<dyn DiskFile>> {
            let file = self.0.open(path, mode)?;
            Ok(Arc::new(WatchingFile(file, Arc::clone(&self.1))))
        }
        fn create_dir(&self, path: &Path) -> std::io::Result<()> {
            self.0.create_dir(path)
        }
        fn list(&self, dir: &Path) -> std::io::Result<Vec<String>> {
            self.0.list(dir)
        }
        fn rename(&self, from: &Path, to: &Path) -> std::io::Result<()> {
            self.0.rename(from, to)
        }
        fn unlink(&self, path: &Path) -> std::io::Result<()> {
            self.0.unlink(path)
        }
        fn sync_dir(&self, dir: &Path) -> std::io::Result<()> {
            self.0.sync_dir(dir)
        }
        fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
            self.0.lock(path, sharing)
        }
    }
    impl DiskFile for WatchingFile {
        fn read_at(&self, buf: &mut [u8], at: u64) -> std::io::Result<usize> {
            self.0.read_at(buf, at)
        }
        fn write_at(&self, bufs: &[std::io::IoSlice<'_>], at: u64) -> std::io::Result<usize> {
            self.1.lock().unwrap().dirty = true;
            self.0.write_at(bufs, at)
        }
        fn set_len(&self, len: u64) -> std::io::Result<()> {
            self.0.set_len(len)
        }
        fn sync_data(&self) -> std::io::Result<()> {
            let done = self.0.sync_data();
            let mut seen = self.1.lock().unwrap();
            seen.dirty = false;
            seen.flushes += 1;
            done
        }
        fn len(&self) -> std::io::Result<u64> {
            self.0.len()
        }
    }
    let seen = Arc::new(Mutex::new(Seen::default()));
    let disk = Watching(SimDisk::new(1), Arc::clone(&seen));
    let log = open_on(Arc::new(disk), config()).unwrap();
    for i in 0..50 {
        let before = seen.lock().unwrap().flushes;
        log.append(&stream("a"), &[event(&i.to_string())]).unwrap();
        let seen = seen.lock().unwrap();
        assert!(!seen.dirty && seen.flushes > before, "append {i}");
    }
}

/// S3.26: bytes before the acknowledged end never change.
#[test]
fn s3_26_segments_are_append_only() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let path = |number: u32| Path::new(DIR).join(format!("{number:08}.seg"));
    let mut before: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
    for i in 0..120 {
        log.append(&stream("a"), &[event(&"x".repeat(i * 7 % 400))])
            .unwrap();
        let ends = log.stat().disk_bytes;
        let mut sum = 0;
        for number in 1.. {
            let Some(bytes) = sim.bytes(&path(number)) else {
                break;
            };
            // What is behind the end is length that was set ahead.
            let len = bytes
                .iter()
                .rposition(|byte| *byte != 0)
                .map_or(0, |last| last + 1);
            let bytes = bytes[..len].to_vec();
            if let Some(old) = before.get(&number) {
                assert!(bytes.starts_with(old), "segment {number} after append {i}");
            }
            sum += bytes.len() as u64;
            before.insert(number, bytes);
        }
        assert!(ends >= sum - 8, "{ends} {sum}");
    }
    assert!(before.len() > 2);
}

/// S3.41: places rise by one within author and stream, however many threads append.
#[test]
fn s3_41_places_are_strict_and_appends_share_flushes() {
    let sim = SimDisk::new(1);
    let log = Arc::new(open(&sim, config()));
    let start = Arc::new(Barrier::new(8));
    let threads: Vec<_> = (0..8)
        .map(|t| {
            let (log, start) = (Arc::clone(&log), Arc::clone(&start));
            std::thread::spawn(move || {
                start.wait();
                let mut last = None;
                for i in 0..50 {
                    let done = log
                        .append(&stream("a"), &[event(&format!("{t} {i}"))])
                        .unwrap();
                    assert!(last < Some(done.first_seq));
                    last = Some(done.first_seq);
                    assert_eq!(
                        texts(&log, &done.feed)[done.first_seq as usize],
                        format!("{t} {i}")
                    );
                }
            })
        })
        .collect();
    threads
        .into_iter()
        .for_each(|thread| thread.join().unwrap());
    let head = log.heads().remove(0);
    assert_eq!((head.next, head.low), (400, 0));
    let stat = log.stat();
    assert_eq!(stat.events, 400);
    assert!(stat.flushes <= 400 && stat.batches == stat.flushes);
}

/// S3.18: a retry under the same number is answered with the first result, also after a restart, also when the first is in the same group,
/// and also when a full segment lies between.
#[test]
fn s3_18_a_retry_returns_the_first_result() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let number =
        |n: u64| event(&format!("event {n}")).with(Headers::default().produced_by("plc", n));
    let mut places = Vec::new();
    for n in 0..60 {
        let done = log
            .append(&stream("a"), &[number(n), event(&"x".repeat(200))])
            .unwrap();
        places.push(done.place(0));
        assert!(!done.present);
    }
    assert!(log.stat().segments > 2);
    // Every number is a run of its own here, and sixteen of them are remembered.
    let old = log.append(&stream("a"), &[number(0)]);
    assert!(
        matches!(old, Err(LogError::OldProducer { known: 44, .. })),
        "{old:?}"
    );
    let recent = |log: &Log| {
        (44..60).for_each(|n| {
            let done = log.append(&stream("a"), &[number(n)]).unwrap();
            assert_eq!((done.place(0), done.present), (places[n as usize], true));
            assert!(done.cid.is_some());
        });
    };
    recent(&log);
    drop(log);
    let log = open(&sim.kill(), config());
    recent(&log);
    // Half of a list was there already.
    let done = log
        .append(
            &stream("a"),
            &[number(58), event("new"), number(60), number(59)],
        )
        .unwrap();
    assert_eq!(done.place(0), places[58]);
    assert_eq!(done.place(3), places[59]);
    assert_eq!((done.place(1).1, done.place(2).1), (120, 121));
    // Twice in one group.
    let twice = [number(61), number(61)];
    let lists = twice.iter().map(|event| {
        (
            stream("a"),
            EventList::of(std::slice::from_ref(event)).unwrap(),
        )
    });
    let results: Vec<_> = log
        .append_many(lists.collect())
        .into_iter()
        .map(Result::unwrap)
        .collect();
    assert_eq!(results[0].place(0), results[1].place(0));
    assert!(!results[0].present && results[1].present);
}

/// S3.54: the fast class never waits for a disk, drops its oldest under overload and counts; the durable class loses nothing.
#[test]
fn s3_54_overload_drops_the_fast_class_alone() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config().fast(10, 1 << 20));
    let (mut dropped, before) = (0, sim.calls(Call::Sync));
    for i in 0..25 {
        dropped += log
            .offer(&stream("fast"), &event(&format!("f{i}")))
            .unwrap();
    }
    assert_eq!(dropped, 15);
    assert_eq!(sim.calls(Call::Sync), before);
    let done = log.append(&stream("a"), &[event("durable")]).unwrap();
    let stat = log.stat();
    assert_eq!(
        (
            stat.fast,
            stat.fast_dropped,
            stat.fast_waiting,
            stat.events,
            stat.flushes
        ),
        (25, 15, 0, 11, 1)
    );
    assert_eq!(texts(&log, &done.feed), ["durable"]);
    let fast = log.feeds(&Pattern::new("fast").unwrap()).remove(0);
    let want: Vec<_> = (15..25).map(|i| format!("f{i}")).collect();
    assert_eq!(texts(&log, &fast), want);
    // Bytes are a limit too.
    let small = open(&SimDisk::new(2), config().fast(1_000, 100));
    for i in 0..50 {
        small
            .offer(&stream("fast"), &event(&format!("{i:020}")))
            .unwrap();
    }
    assert!(small.stat().fast_waiting <= 4 && small.stat().fast_dropped >= 46);
    small.flush_fast().unwrap();
    assert_eq!(small.stat().fast_waiting, 0);
}

/// S3.44: from a place, from a time, from the tail.
#[test]
fn s3_44_reading_begins_anywhere() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let mut feed = None;
    for i in 0..200_i64 {
        let pair = [
            NewEvent::new(i * 10, format!("{}", 2 * i)),
            NewEvent::new(i * 10 + 5, format!("{}", 2 * i + 1)),
        ];
        feed = Some(log.append(&stream("a"), &pair).unwrap().feed);
    }
    let feed = feed.unwrap();
    assert!(log.stat().segments > 2);
    for from in [0, 1, 2, 77, 200, 398, 399] {
        let events = log.read(&feed, from, 3).unwrap();
        assert_eq!(events[0].payload, from.to_string());
        assert_eq!(events.len(), 3.min(400 - from as usize));
        let mut cursor = log.cursor(&feed, from);
        let batch = cursor.next_batch().unwrap().unwrap();
        assert!(batch.first() <= from && from < batch.end());
    }
    assert_eq!(log.read(&feed, 400, 3).unwrap().len(), 0);
    for (time, seq) in [
        (0, 0),
        (1, 1),
        (5, 1),
        (6, 2),
        (1_000, 200),
        (1_995, 399),
        (1_996, 400),
    ] {
        assert_eq!(log.seq_at_time(&feed, time).unwrap(), seq, "time {time}");
    }
    let tail = log.head(&feed).unwrap().next.saturating_sub(5);
    assert_eq!(log.read(&feed, tail, 100).unwrap().len(), 5);
    // Chunks for replicas, without decoding.
    let (mut next, mut batches) = (0, 0);
    loop {
        let chunk = log.range(&feed, next, 2_000).unwrap();
        assert!(
            chunk
                .blocks
                .iter()
                .map(gemba_block::Block::len)
                .sum::<usize>()
                <= 2_000
        );
        batches += chunk.blocks.len();
        next = chunk.next;
        if chunk.is_end {
            break;
        }
    }
    assert_eq!((next, batches), (400, 200));
    assert_eq!(log.range(&feed, 7, 1).unwrap().blocks.len(), 1);
    let unknown = FeedId {
        epoch: gemba_log::Epoch(9),
        ..feed
    };
    assert!(matches!(log.read(&unknown, 0, 1), Err(LogError::NoFeed(_))));
}

/// S3.5, S3.52: an event carries author, stream, place, device, site and time, and all of it is signed.
#[test]
fn s3_5_s3_52_an_event_says_where_it_comes_from() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config().check(ReadCheck::Signature));
    let headers = Headers {
        origin: Some(Origin {
            site: "Hamburg 2".into(),
            device: "press-07".into(),
            service: "plc-gateway".into(),
        }),
        trace: Some(gemba_log::Trace {
            trace: [1; 16],
            span: [2; 8],
            flags: 1,
        }),
        ..Headers::default()
    }
    .pair("attempt", "2");
    let done = log
        .append(&stream("hh/press"), &[event("17").with(headers.clone())])
        .unwrap();
    let read = log.read(&done.feed, 0, 1).unwrap().remove(0);
    assert_eq!(
        (read.headers, read.time, read.seq),
        (headers, 1_700_000_000_000, 0)
    );
    assert_eq!(done.feed.author, signer(1).author());
    let block = log.block(&done.cid.unwrap()).unwrap().unwrap();
    assert!(Batch::from_block(&block).is_ok());
}

/// S4.3: a batch is found by its CID wherever it stands, and links and skip links lead to batches that are there.
#[test]
fn s4_3_every_link_leads_to_a_batch() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    for i in 0..150 {
        log.append(&stream("a"), &[event(&"x".repeat(i))]).unwrap();
    }
    drop(log);
    let log = open(&sim.kill(), config());
    for i in 0..50 {
        log.append(&stream("a"), &[event(&"y".repeat(i))]).unwrap();
    }
    let head = log.heads().remove(0);
    let mut cursor = log.cursor(&head.feed, 0);
    let mut by_number = Vec::new();
    while let Some(batch) = cursor.next_batch().unwrap() {
        let block = log.block(&batch.cid()).unwrap().unwrap();
        assert_eq!(block.data(), batch.bytes());
        for (i, link) in batch.skips().enumerate() {
            let target = gemba_log::skip::target(batch.number(), i);
            assert_eq!(link, by_number[target as usize]);
        }
        assert_eq!(batch.prev(), by_number.last().copied());
        by_number.push(batch.cid());
    }
    assert_eq!(by_number.len(), 200);
    let absent = gemba_block::Block::encode(0x71, gemba_block::MhCode::Sha2_256, "x").unwrap();
    assert_eq!(log.block(absent.cid()).unwrap(), None);
    assert_eq!(
        log.block(gemba_block::Block::raw("x").unwrap().cid())
            .unwrap(),
        None
    );
}

/// L5: an author who writes two histories is found, both are kept and flagged, and nodes agree on all of it whatever came first.
#[test]
fn l5_a_fork_is_found_kept_and_flagged_and_nodes_agree() {
    let mut other = Other::new(2, "a");
    let common: Vec<_> = (0..5)
        .map(|i| other.next(&[event(&format!("c{i}")), event("more")]))
        .collect();
    let mut evil = other.fork();
    let left: Vec<_> = (0..4)
        .map(|i| other.next(&[event(&format!("left {i}"))]))
        .collect();
    let right: Vec<_> = (0..3)
        .map(|i| evil.next(&[event(&format!("right {i}")), event("x")]))
        .collect();
    let nodes: Vec<_> = [[&left, &right], [&right, &left]]
        .into_iter()
        .enumerate()
        .map(|(i, orders)| {
            let log = open(&SimDisk::new(i as u64), config());
            for batch in &common {
                assert!(!log.append_replica(batch.clone()).unwrap().present);
            }
            assert!(!log.heads()[0].forked);
            for batch in orders.into_iter().flatten() {
                assert!(!log.append_replica(batch.clone()).unwrap().present);
                assert!(log.append_replica(batch.clone()).unwrap().present);
            }
            log
        })
        .collect();
    let heads = |log: &Log| -> Vec<_> {
        let heads = log.heads().into_iter();
        heads
            .map(|head| (head.feed, head.next, head.cid, head.lamport, head.forked))
            .collect()
    };
    assert_eq!(heads(&nodes[0]), heads(&nodes[1]));
    assert_eq!(nodes[0].heads().len(), 2);
    assert!(nodes[0].heads().iter().all(|head| head.forked));
    let merged = |log: &Log| -> Vec<_> {
        let mut merge = log.merge(&[(other.feed.clone(), 0)]).unwrap();
        let mut all = Vec::new();
        while let Some(batch) = merge.next_batch().unwrap() {
            all.push(batch.cid());
        }
        all
    };
    assert_eq!(merged(&nodes[0]), merged(&nodes[1]));
    assert_eq!(merged(&nodes[0]).len(), 12);
    assert_eq!(nodes[0].stat().forks, 1);
    let branch = nodes[1]
        .heads()
        .into_iter()
        .find_map(|head| head.branch)
        .unwrap();
    assert_eq!(branch, left[0].cid());
    let chunk = nodes[1]
        .branch_range(&other.feed, &branch, 10, 1 << 20)
        .unwrap();
    assert_eq!(
        chunk
            .blocks
            .iter()
            .map(|block| *block.cid())
            .collect::<Vec<_>>(),
        left.iter().map(Batch::cid).collect::<Vec<_>>()
    );
}

/// L6: gaps, wrong links, wrong times and too much of one author are refused, each by name.
#[test]
fn l6_a_hostile_author_is_bounded() {
    let log = open(&SimDisk::new(1), config().quota(4_000, 3));
    let mut other = Other::new(2, "a");
    let batches: Vec<_> = (0..40)
        .map(|i| other.next(&[event(&format!("{i}{}", "x".repeat(100)))]))
        .collect();
    assert!(matches!(
        log.append_replica(batches[1].clone()),
        Err(LogError::Gap {
            want: 0,
            got: 1,
            ..
        })
    ));
    log.append_replica(batches[0].clone()).unwrap();
    assert!(matches!(
        log.append_replica(batches[2].clone()),
        Err(LogError::Gap {
            want: 1,
            got: 2,
            ..
        })
    ));
    // The same predecessor, and a logical time that does not rise.
    let mut late = Other::new(3, "a");
    log.append_replica(late.next_at(&[event("0")], 9)).unwrap();
    assert!(matches!(
        log.append_replica(late.next_at(&[event("1")], 9)),
        Err(LogError::BadChain { .. })
    ));
    let mut took = 1;
    let error = loop {
        match log.append_replica(batches[took].clone()) {
            Ok(_) => took += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, LogError::Quota { what: "bytes", .. }),
        "{error}"
    );
    assert!(took < 20);
    let mut refused = 0;
    for i in 0..10 {
        let mut many = Other::new(4, &format!("s{i}"));
        refused += u32::from(log.append_replica(many.next(&[event("x")])).is_err());
    }
    assert_eq!(refused, 7);
    // Nobody else is hindered.
    log.append(&stream("a"), &[event("own")]).unwrap();
}

/// L12: what is written after something was seen is later than it, also in another stream, whatever clocks say; a leap is bounded.
#[test]
fn l12_order_follows_what_was_seen_and_not_clocks() {
    let log = open(&SimDisk::new(1), config());
    let mut other = Other::new(2, "a");
    log.append_replica(other.next_at(&[NewEvent::new(i64::from(u32::MAX), "seen")], 1_000))
        .unwrap();
    let done = log
        .append(&stream("z"), &[NewEvent::new(-5, "answer")])
        .unwrap();
    let mut merge = log
        .merge(&[(done.feed.clone(), 0), (other.feed.clone(), 0)])
        .unwrap();
    let order: Vec<_> = std::iter::from_fn(|| merge.next_batch().unwrap())
        .map(|batch| batch.lamport())
        .collect();
    assert_eq!(order, [1_000, 1_001]);
    log.append_replica(other.next_at(&[event("far")], gemba_log::MAX_NUMBER))
        .unwrap();
    let done = log.append(&stream("z"), &[event("near")]).unwrap();
    let lamport = log.head(&done.feed).unwrap().lamport;
    assert!(lamport > 1_001 && lamport < 1 << 34, "{lamport}");
}

/// LOG-5: a log that was shortened or restored from a copy goes on in a new epoch, as soon as others show what it has lost.
#[test]
fn log_5_a_restored_log_opens_a_new_epoch() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    for i in 0..10 {
        log.append(&stream("a"), &[event(&i.to_string())]).unwrap();
    }
    log.close().unwrap();
    let backup = sim.kill();
    drop(log);
    let log = open(&sim, config());
    let feed = log.append(&stream("a"), &[event("10")]).unwrap().feed;
    let replica = log.range(&feed, 10, 1 << 20).unwrap();
    drop(log);
    // The copy comes back to life, and a peer shows what it knows.
    let restored = open(&backup, config());
    assert_eq!(restored.head(&feed).unwrap().next, 10);
    for block in &replica.blocks {
        restored
            .append_replica(Batch::from_block(block).unwrap())
            .unwrap();
    }
    let done = restored.append(&stream("a"), &[event("new life")]).unwrap();
    // Drawn: if the other one lives, it may begin the next by number.
    let drawn = done.feed.epoch.0;
    assert!(drawn >= 1 << 50 && done.first_seq == 0, "{done:?}");
    assert_eq!(texts(&restored, &feed).len(), 11);
    // Also across a crash right behind.
    drop(restored);
    let disk = backup.kill();
    let again = open(&disk, config());
    let done = again.append(&stream("a"), &[event("more")]).unwrap();
    assert_eq!((done.feed.epoch.0, done.first_seq), (drawn, 1));
    // And by hand.
    again.begin_epochs().unwrap();
    let epoch_of = |log: &Log, name: &str| {
        let done = log.append(&stream(name), &[event("x")]).unwrap();
        done.feed.epoch.0
    };
    let by_hand = epoch_of(&again, "a");
    assert!(by_hand > drawn);
    // A copy begins epochs that the first one will not, also in streams that it is the first to write to, and after a restart.
    let least = gemba_log::unused_epoch(by_hand);
    again.begin_epochs_at(least).unwrap();
    let after = epoch_of(&again, "a");
    assert!(after > least);
    assert!(epoch_of(&again, "b") > least);
    drop(again);
    let again = open(&disk, config());
    assert_eq!(epoch_of(&again, "a"), after);
    assert!(epoch_of(&again, "c") > least);
}

/// LOG-5: copies of one log know the same epochs and the same least one, and each begins others, in streams that were written to before and in new ones: copies of
/// a copy whose least epoch is as high as any that is drawn, and copies of which nothing tells that they are some.
#[test]
fn log_5_no_two_copies_of_a_copy_begin_the_same_epoch() {
    let least = (1 << 51) - 1;
    let first = SimDisk::new(1);
    let log = open(&first, config());
    log.append(&stream("a"), &[event("before")]).unwrap();
    log.begin_epochs_at(least).unwrap();
    log.append(&stream("a"), &[event("in the copy")]).unwrap();
    log.begin_epochs_at(least).unwrap();
    log.close().unwrap();
    let mut begun = std::collections::BTreeSet::new();
    for copy in 0..8 {
        let log = open(&first.kill(), config().least_epoch(least));
        if copy % 2 == 0 {
            let drawn = gemba_log::unused_epoch(least);
            log.begin_epochs_at(drawn).unwrap();
        }
        for name in ["a", "new"] {
            let feed = log.append(&stream(name), &[event("x")]).unwrap().feed;
            let epoch = feed.epoch.0;
            assert!(epoch > least && epoch < gemba_log::MAX_NUMBER, "{epoch}");
            assert!(begun.insert(feed), "{name} {epoch} was begun twice");
        }
    }
}

/// LOG-5: two logs with one key run in turn, never at the same time, and hear of each other by a third. From then on neither begins an epoch that the other one
/// begins, also after a restart, and when segments are full meanwhile.
#[test]
fn log_5_two_logs_that_run_in_turn_begin_different_epochs() {
    for fill in [0, 100] {
        let first = SimDisk::new(1);
        let log = open(&first, config());
        log.append(&stream("a"), &[event("before")]).unwrap();
        log.close().unwrap();
        let disks = [first.kill(), first.kill()];
        drop(log);
        let fork = |disk: &SimDisk, text: &str| {
            let log = open(disk, config());
            let done = log.append(&stream("a"), &[event(text)]).unwrap();
            let chunk = log.range(&done.feed, done.first_seq, 1).unwrap();
            Batch::from_block(&chunk.blocks[0]).unwrap()
        };
        let written = [fork(&disks[0], "one"), fork(&disks[1], "other")];
        for (disk, came) in disks.iter().zip([&written[1], &written[0]]) {
            let log = open(disk, config());
            log.append_replica(came.clone()).unwrap();
            let mut other = Other::new(5, "fill");
            for _ in 0..fill {
                let batch = other.next(&[event(&"x".repeat(400))]);
                log.append_replica(batch).unwrap();
            }
            log.close().unwrap();
        }
        let mut begun = std::collections::BTreeSet::new();
        for disk in &disks {
            let log = open(disk, config());
            for name in ["a", "new"] {
                let feed = log.append(&stream(name), &[event("x")]).unwrap().feed;
                assert!(begun.insert(feed.clone()), "{feed:?} was begun twice");
            }
        }
    }
}

/// LOG-4, LOG-5: somebody with our key has used the last epoch: the stream ends with a cause of its own, and no event gets a number that JSON does not hold.
#[test]
fn log_5_behind_the_last_epoch_a_stream_is_at_its_end() {
    let log = open(&SimDisk::new(1), config());
    let mut thief = Other::new(1, "a");
    thief.feed.epoch = gemba_log::Epoch(gemba_log::MAX_NUMBER);
    log.append_replica(thief.next(&[event("the last")]))
        .unwrap();
    let refused = log.append(&stream("a"), &[event("x")]);
    assert!(matches!(refused, Err(LogError::Exhausted)), "{refused:?}");
    log.append(&stream("b"), &[event("x")]).unwrap();
}

/// LOG-5: two logs with one key live and are given each other's batches, over and over, also of streams that only one writes to. Each begins one epoch a stream; a
/// start makes that one more at most. Neither gives a number that the other one has given.
#[test]
fn log_5_two_logs_with_one_key_begin_one_epoch_each() {
    let first = SimDisk::new(1);
    let log = open(&first, config());
    log.append(&stream("a"), &[event("before")]).unwrap();
    log.close().unwrap();
    let mut disks = [first.kill(), first.kill()];
    drop(log);
    let all = |log: &Log| -> Vec<Batch> {
        let batch = |head: gemba_log::Head| {
            let chunk = log.range(&head.feed, head.low, 1 << 20).unwrap();
            let blocks = chunk.blocks.into_iter();
            blocks.map(|block| Batch::from_block(&block).unwrap())
        };
        log.heads().into_iter().flat_map(batch).collect()
    };
    for start in 1..=3 {
        let logs = disks.each_ref().map(|disk| open(disk, config()));
        for round in 0..10 {
            let [from, to] = match round % 2 {
                0 => [&logs[0], &logs[1]],
                _ => [&logs[1], &logs[0]],
            };
            for name in ["a", "b"] {
                from.append(&stream(name), &[event("17")]).unwrap();
            }
            for result in to.append_replicas(all(from)) {
                result.unwrap();
            }
        }
        for result in logs[0].append_replicas(all(&logs[1])) {
            result.unwrap();
        }
        assert_eq!(logs[0].stat().forks, 0);
        let feeds = logs[0].stat().feeds;
        assert!(feeds <= 4 + 4 * start, "{feeds} feeds after {start} starts");
        let events: u64 = logs[0].streams().iter().map(|info| info.events).sum();
        assert_eq!(events, 1 + 20 * start);
        drop(logs);
        disks = disks.map(|disk| disk.kill());
    }
}

/// L11: retention removes nothing that a consumer or replica still needs, oldest first, and feeds keep their ends.
#[test]
fn l11_retention_keeps_what_is_needed() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let mut feeds = BTreeMap::new();
    for i in 0..300 {
        let name = if i % 10 == 0 { "slow" } else { "a" };
        let done = log
            .append(&stream(name), &[NewEvent::new(i, "x".repeat(200))])
            .unwrap();
        feeds.insert(name, done.feed);
    }
    let before = log.stat();
    let needs = |feed: &FeedId| (feed.stream.as_str() == "slow").then_some(7);
    let retention = |max_bytes, danger| Retention {
        max_bytes: Some(max_bytes),
        before: None,
        low_water: &needs,
        danger_drop_needed: danger,
    };
    assert_eq!(log.retain(&retention(1 << 40, false)).unwrap().segments, 0);
    let done = log.retain(&retention(1_000, false)).unwrap();
    assert!(done.segments > 0 && done.needed_events == 0);
    assert_eq!(done.held_by, [feeds["slow"].clone()]);
    let slow = log.head(&feeds["slow"]).unwrap();
    assert!(slow.low <= 7 && slow.next == 30);
    assert_eq!(log.read(&feeds["slow"], 7, 100).unwrap().len(), 23);
    let low = log.head(&feeds["a"]).unwrap().low;
    assert!(low > 0);
    assert!(
        matches!(log.read(&feeds["a"], 0, 1), Err(LogError::Trimmed { low: found, .. }) if found == low)
    );
    let done = log.retain(&retention(1_000, true)).unwrap();
    assert!(done.segments > 0 && done.needed_events > 0);
    let stat = log.stat();
    assert!(
        stat.segments >= 2 && stat.disk_bytes < before.disk_bytes / 3,
        "{stat:?}"
    );
    // By age: all that is old and that nobody needs.
    let none = |_: &FeedId| None;
    let old = Retention {
        max_bytes: None,
        before: Some(i64::MAX),
        low_water: &none,
        danger_drop_needed: false,
    };
    log.retain(&old).unwrap();
    drop(log);
    let log = open(&sim.kill(), config());
    assert_eq!(
        log.append(&stream("a"), &[event("x")]).unwrap().first_seq,
        270
    );
    assert_eq!(
        log.append(&stream("slow"), &[event("x")])
            .unwrap()
            .first_seq,
        30
    );
    assert!(log.open_report().is_clean());
}

/// S3.50, S4.7: two logs that exchanged all they have agree on heads and on the one order, also after export and import.
#[test]
fn s3_50_s4_7_logs_at_rest_agree() {
    let mut rng = Rng::new(4);
    let logs: Vec<_> = (1..=3)
        .map(|i| {
            let (log, _) = Log::open(
                Arc::new(SimDisk::new(i.into())),
                Path::new(DIR),
                config(),
                Arc::new(signer(i)),
            )
            .unwrap();
            log
        })
        .collect();
    for round in 0..40 {
        let at = rng.index(3);
        logs[at]
            .append(
                &stream(["a", "b"][rng.index(2)]),
                &[event(&format!("{round}"))],
            )
            .unwrap();
        if rng.coin() {
            copy(&logs[at], &logs[rng.index(3)]);
        }
    }
    for from in &logs {
        for to in &logs {
            copy(from, to);
        }
    }
    let orders: Vec<Vec<_>> = logs.iter().map(merged).collect();
    assert!(orders.iter().all(|order| *order == orders[0]) && orders[0].len() == 40);
    assert!(logs.iter().all(|log| log.heads() == logs[0].heads()));
    // Through a file, into a log of somebody else.
    let mut file = Vec::new();
    let feeds = logs[0].feeds(&Pattern::new("#").unwrap());
    let exported = logs[0].export(&feeds, &mut file).unwrap();
    assert_eq!((exported.batches, exported.bytes), (40, file.len() as u64));
    let fourth = Log::open(
        Arc::new(SimDisk::new(9)),
        Path::new(DIR),
        config(),
        Arc::new(signer(9)),
    )
    .unwrap()
    .0;
    let imported = fourth.import(&mut file.as_slice()).unwrap();
    assert_eq!(
        (imported.new, imported.refused, imported.foreign),
        (40, 0, 0)
    );
    assert_eq!(fourth.import(&mut file.as_slice()).unwrap().present, 40);
    // Of a file that is cut all before the cut is kept: it was as long as 64 batches, or all of it was lost.
    let fifth = Log::open(
        Arc::new(SimDisk::new(8)),
        Path::new(DIR),
        config(),
        Arc::new(signer(8)),
    )
    .unwrap()
    .0;
    assert!(fifth.import(&mut &file[..file.len() - 1]).is_err());
    let imported = fifth.import(&mut file.as_slice()).unwrap();
    assert_eq!((imported.new, imported.present), (1, 39));
    assert_eq!(merged(&fourth), orders[0]);
    // A damaged file: what came before the damage is kept, and nothing wrong is taken.
    for _ in 0..40 {
        let mut hurt = file.clone();
        let at = rng.index(hurt.len());
        hurt[at] ^= 1 << rng.below(8);
        let log = Log::open(
            Arc::new(SimDisk::new(9)),
            Path::new(DIR),
            config(),
            Arc::new(signer(9)),
        )
        .unwrap()
        .0;
        let _ = log.import(&mut hurt.as_slice());
        let verified = log.verify(|_| ControlFlow::Continue(())).unwrap();
        assert!(verified.is_clean() && verified.batches <= 40);
    }
}

fn copy(from: &Log, to: &Log) {
    for head in from.heads() {
        let have = to.head(&head.feed).map_or(0, |head| head.next);
        if have < head.next && head.feed.author != to.author() {
            let chunk = from.range(&head.feed, have, 1 << 20).unwrap();
            let batches = chunk
                .blocks
                .iter()
                .map(|block| Batch::from_block(block).unwrap());
            to.append_replicas(batches.collect())
                .into_iter()
                .for_each(|done| drop(done.unwrap()));
        }
    }
}

fn merged(log: &Log) -> Vec<gemba_log::Cid> {
    let starts: Vec<_> = log.heads().into_iter().map(|head| (head.feed, 0)).collect();
    let mut merge = log.merge(&starts).unwrap();
    std::iter::from_fn(|| merge.next_batch().unwrap())
        .map(|batch| batch.cid())
        .collect()
}

/// S3.6, S3.14: what a stream means is said in the log itself, and the catalogue shows what there is.
#[test]
fn s3_6_s3_14_streams_are_described_and_listed() {
    let log = open(&SimDisk::new(1), config());
    let press = stream("hh/press");
    log.append(&press, &[event("1"), event("2")]).unwrap();
    assert_eq!(log.description(&press).unwrap(), None);
    let mut description = Description {
        meaning: "pieces that left the press".into(),
        unit: "pieces".into(),
        schema: String::new(),
        class: Class::Durable,
    };
    log.describe(&press, 1, &description).unwrap();
    description.class = Class::Fast;
    log.describe(&press, 2, &description).unwrap();
    assert_eq!(log.description(&press).unwrap(), Some(description));
    let streams = log.streams();
    let names: Vec<_> = streams.iter().map(|info| info.stream.as_str()).collect();
    assert_eq!(names, ["$about/hh/press", "hh/press"]);
    assert_eq!(
        (streams[1].events, streams[1].last_time),
        (2, 1_700_000_000_000)
    );
    assert_eq!(streams[1].authors, [signer(1).author()]);
}

/// S3.51: compression is on, the payload comes out as it went in, and what does not shrink is left as it is.
#[test]
fn s3_51_compression_is_on_by_default() {
    let size = |config: Config, payload: &dyn Fn(u64) -> Vec<u8>| {
        let log = open(&SimDisk::new(1), config);
        let events: Vec<_> = (0..400)
            .map(|i| NewEvent::new(i as i64, payload(i)))
            .collect();
        let done = log.append(&stream("a"), &events).unwrap();
        let read = log.read(&done.feed, 0, 400).unwrap();
        assert!(
            read.iter()
                .zip(&events)
                .all(|(read, event)| read.payload == event.payload)
        );
        log.stat().bytes
    };
    let texts =
        |i: u64| format!("{{\"line\":\"A\",\"count\":{i},\"state\":\"running\"}}").into_bytes();
    let noise = |i: u64| Rng::new(i).bytes(100);
    let config = Config::default().reserve(0);
    assert!(size(config.clone(), &texts) * 3 < size(config.clone().compress(false), &texts));
    assert_eq!(
        size(config.clone(), &noise),
        size(config.compress(false), &noise)
    );
}

/// S3.4: what was written is read from its beginning by whoever comes later; the writer knows nothing of them.
#[test]
fn s3_4_a_reader_that_comes_later_reads_from_the_start() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let feed = log.append(&stream("a"), &[event("first")]).unwrap().feed;
    let mut early = log.cursor(&feed, 0);
    assert_eq!(early.next_batch().unwrap().unwrap().count(), 1);
    assert_eq!(early.next_batch().unwrap(), None);
    log.append(&stream("a"), &[event("second")]).unwrap();
    assert_eq!(early.next_batch().unwrap().unwrap().first(), 1);
    assert_eq!(texts(&log, &feed), ["first", "second"]);
}

#[test]
fn two_openings_exclude_each_other_and_a_closed_log_says_so() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    assert!(matches!(
        open_on(Arc::new(sim.clone()), config()),
        Err(gemba_log::OpenError::LockHeld { .. })
    ));
    let feed = log.append(&stream("a"), &[event("x")]).unwrap().feed;
    log.close().unwrap();
    assert!(matches!(
        log.append(&stream("a"), &[event("x")]),
        Err(LogError::Closed)
    ));
    assert_eq!(texts(&log, &feed), ["x"]);
    let log = open(&sim, config());
    assert!(log.open_report().is_clean());
    assert_eq!(served(&log).unwrap().len(), 1);
}

/// L11 as a property: whatever is written, needed, and asked to go, in whatever order and over restarts, every needed event can be read.
#[test]
fn l11_no_retention_removes_what_somebody_needs() {
    let mut removed = 0;
    gemba_testkit::check!(gemba_testkit::sim_scale(400), |rng| {
        let sim = SimDisk::new(rng.next_u64());
        let mut log = open(&sim, config().segment_bytes(4 << 10));
        let names = ["a", "b", "c"];
        let mut low: BTreeMap<String, u64> = BTreeMap::new();
        let mut written: BTreeMap<String, u64> = BTreeMap::new();
        for i in 0..80 {
            let name = names[rng.index(3)];
            let len = rng.index(400);
            log.append(&stream(name), &[NewEvent::new(i, vec![7; len])])
                .unwrap();
            *written.entry(name.into()).or_default() += 1;
            if rng.chance(1, 6) {
                for (name, written) in &written {
                    let low = low.entry(name.clone()).or_default();
                    *low = (*low).max(rng.below(written + 1));
                }
                let needed = |feed: &FeedId| low.get(feed.stream.as_str()).copied();
                let retention = Retention {
                    max_bytes: rng.coin().then(|| rng.below(20_000)),
                    before: rng.coin().then(|| rng.below(i as u64 + 1) as i64),
                    low_water: &needed,
                    danger_drop_needed: false,
                };
                let done = log.retain(&retention).unwrap();
                assert_eq!(done.needed_events, 0);
                removed += done.segments;
            }
            if rng.chance(1, 20) {
                drop(log);
                log = open(&sim, config().segment_bytes(4 << 10));
            }
        }
        for head in log.heads() {
            let name = head.feed.stream.as_str();
            let from = low.get(name).copied().unwrap_or(0);
            assert_eq!(head.next, written[name]);
            let read = log.read(&head.feed, from, 1_000);
            let left = (written[name] - from) as usize;
            assert!(left == 0 || read.unwrap().len() == left);
        }
    });
    assert!(removed > 10, "{removed}");
}

/// S3.36: a list of a thousand events costs one flush, so a rate of 20,000 in a second is that of twenty flushes. How many there are in a second is the
/// business of the disk and of `examples/appends.rs`.
#[test]
fn s3_36_a_list_costs_one_flush_whatever_its_length() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config().segment_bytes(16 << 20));
    log.append(&stream("a"), &[event("first")]).unwrap();
    let list: Vec<_> = (0..1_000).map(|_| event(&"x".repeat(200))).collect();
    let (flushes, syncs) = (log.stat().flushes, sim.calls(Call::Sync));
    for _ in 0..20 {
        log.append(&stream("a"), &list).unwrap();
    }
    assert_eq!(log.stat().events, 20_001);
    assert_eq!(log.stat().flushes - flushes, 20);
    assert_eq!(sim.calls(Call::Sync) - syncs, 20);
    // As many callers at once share a flush, too.
    let lists = (0..1_000).map(|_| (stream("b"), EventList::of(&list[..1]).unwrap()));
    let done = log.append_many(lists.collect());
    assert!(done.iter().all(Result::is_ok));
    assert_eq!(log.stat().flushes - flushes, 21);
}

/// S3.46: what hundreds of devices offer in the fast class shares a write; what the disk does not take in time is dropped, the oldest first, and counted to
/// the last event. The rate is told by `examples/appends.rs`.
#[test]
fn s3_46_what_many_devices_offer_is_stored_or_counted() {
    const DEVICES: u64 = 500;
    let sim = SimDisk::new(1);
    let log = open(&sim, config().segment_bytes(16 << 20).fast(2_000, 1 << 20));
    let of = |device: u64| stream(&format!("hall/device-{device}/state"));
    for round in 0..20_u64 {
        for device in 0..DEVICES {
            log.offer(&of(device), &event(&round.to_string())).unwrap();
        }
        // The disk is slower than they are: five rounds come before it has written one.
        if round % 5 == 4 {
            log.flush_fast().unwrap();
        }
    }
    let stat = log.stat();
    assert_eq!((stat.fast, stat.fast_dropped), (20 * DEVICES, 4 * DEVICES));
    assert_eq!(
        (stat.events, stat.fast_waiting),
        (stat.fast - stat.fast_dropped, 0)
    );
    assert!(
        stat.flushes <= 8,
        "{} flushes for 500 devices",
        stat.flushes
    );
    for device in 0..DEVICES {
        let feed = log.feeds(&Pattern::from(&of(device))).remove(0);
        let kept = texts(&log, &feed);
        assert_eq!(kept.len(), 16);
        assert_eq!(kept.last().map(String::as_str), Some("19"), "the newest");
    }
}

/// S4.4: identity and models are for those who build on it. Any key is an author, wherever it lies; any text is a link to a schema; any bytes of any type are
/// an event: the log has no opinion of them and passes them on as they are.
#[test]
fn s4_4_author_keys_and_schema_links_are_open() {
    /// A key that lies elsewhere: in a token, in a TPM, in another process.
    struct Elsewhere(gemba_log::MemorySigner, std::sync::atomic::AtomicU64);
    impl Signer for Elsewhere {
        fn author(&self) -> gemba_log::Author {
            self.0.author()
        }
        fn sign(&self, message: &[u8]) -> [u8; 64] {
            self.1.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            self.0.sign(message)
        }
    }
    let signer = Arc::new(Elsewhere(signer(9), 0.into()));
    let disk = Arc::new(SimDisk::new(1));
    let (log, _) = Log::open(disk, Path::new(DIR), config(), signer.clone()).unwrap();
    let replica = open(&SimDisk::new(2), config());
    let name = stream("press");
    for (n, schema) in [
        "/ipfs/bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy",
        "https://example.org/press.schema.json#/count",
        "urn:opcfoundation.org:UA:Boiler:ns=2;s=Count",
        "whatever people agree upon",
    ]
    .into_iter()
    .enumerate()
    {
        let description = Description {
            schema: schema.to_owned(),
            ..Description::default()
        };
        log.describe(&name, 0, &description).unwrap();
        let headers = Headers {
            content_type: Some(format!("application/x-model-{n}")),
            ..Headers::default()
        };
        let payload = Rng::new(n as u64).bytes(50);
        let bare = NewEvent::new(0, payload.clone()).with(headers.clone());
        let feed = log.append(&name, &[bare]).unwrap().feed;
        assert_eq!(feed.author, signer.0.author());
        copy(&log, &replica);
        for log in [&log, &replica] {
            assert_eq!(log.description(&name).unwrap(), Some(description.clone()));
            let read = log.read(&feed, n as u64, 1).unwrap().remove(0);
            assert_eq!(
                (read.payload.to_vec(), read.headers),
                (payload.clone(), headers.clone())
            );
        }
    }
    let signed = signer.1.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(signed, log.stat().batches);
}
