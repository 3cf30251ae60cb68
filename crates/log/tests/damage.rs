//! What a disk does to a log: flipped bytes, cuts, flushes that fail, and no room. Names carry the rows of the threat table.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::ops::{ControlFlow, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use common::lying::{Lie, Lying};
use common::{Model, check_open, config, open, open_on, served, stream};
use gemba_log::{Batch, Config, FeedId, Log, LogError, NewEvent, Seq};
use gemba_segment::Disk;
use gemba_testkit::disk::{Call, SimDisk};
use gemba_testkit::{Rng, sim_scale};

fn segment(number: u32) -> PathBuf {
    PathBuf::from(format!("{}/{number:08}.seg", common::DIR))
}

fn segments(sim: &SimDisk) -> Vec<PathBuf> {
    (1..)
        .map(segment)
        .take_while(|path| sim.bytes(path).is_some())
        .collect()
}

/// A log of about so many bytes in small batches, closed in order, and what it holds.
fn sealed(bytes: usize, config: &Config) -> (SimDisk, Model) {
    sealed_with(bytes, usize::MAX, config)
}

/// As [`sealed`], with small batches up to `small` bytes and large ones from there on.
fn sealed_with(bytes: usize, small: usize, config: &Config) -> (SimDisk, Model) {
    let sim = SimDisk::new(1);
    let mut model = Model::default();
    let mut rng = Rng::new(7);
    let log = open(&sim, config.clone());
    let mut written = 0;
    while written < bytes {
        let stream = stream(["a", "b/c"][rng.index(2)]);
        let most = if written < small { 5 } else { 100 };
        let events: Vec<_> = (0..1 + rng.below(most))
            .map(|i| {
                let len = 1 + rng.index(400);
                NewEvent::new(i as i64, rng.bytes(len))
            })
            .collect();
        model.submit(&stream, &events);
        model.ack(&log.append(&stream, &events).unwrap(), &events);
        written = log.stat().bytes as usize;
    }
    log.close().unwrap();
    (sim, model)
}

/// Row L3: whichever byte of a closed log of 1 MiB is flipped, it is found, no wrong event is served, and a replica heals it. Every byte in full,
/// every fourth by half, every eighth by a quarter, else one in 499; another one begins with each seed.
#[test]
fn l3_every_flipped_byte_is_found_served_never_and_healed() {
    const LEN: usize = 1 << 20;
    let every = match sim_scale(20) {
        20 => 1,
        10 => 4,
        5 => 8,
        _ => 499,
    };
    let mut rng = Rng::from_env_or(3);
    let flips = &Flips::new(LEN, LEN / 32, &config().segment_bytes(LEN as u64 / 16));
    let paths = &segments(&flips.sim);
    // Two threads, a segment each.
    let looked: u64 = std::thread::scope(|scope| {
        let halves = [0, 1].map(|half| {
            let mut rng = rng.fork();
            scope.spawn(move || {
                let paths = paths.iter().skip(half).step_by(2);
                paths
                    .map(|path| flips.flip_each(path, every, &mut rng))
                    .sum::<u64>()
            })
        });
        halves.into_iter().map(|half| half.join().unwrap()).sum()
    });
    assert!(looked >= (LEN / every) as u64, "{looked}");
}

/// A stretch of each feed that is looked at; the feeds as [`Flips::events`] numbers them.
type Span = Vec<Range<Seq>>;

/// A sealed log whose bytes are flipped one by one, and what is known of it.
struct Flips {
    sim: SimDisk,
    config: Config,
    /// The payloads of each feed from its first event on.
    events: Vec<(FeedId, Vec<Vec<u8>>)>,
    /// The batches that a replica has, by the places of their first events.
    replica: Vec<BTreeMap<Seq, Batch>>,
}

impl Flips {
    fn new(bytes: usize, small: usize, config: &Config) -> Self {
        let (sim, model) = sealed_with(bytes, small, config);
        let mut by_feed: BTreeMap<FeedId, Vec<Vec<u8>>> = BTreeMap::new();
        for ((feed, _), payload) in model.acked {
            by_feed.entry(feed).or_default().push(payload);
        }
        let log = open(&sim.kill(), config.clone());
        let batches = |feed: &FeedId| {
            let mut batches = BTreeMap::new();
            let mut next = 0;
            while let Some(block) = log.range(feed, next, 1).unwrap().blocks.first() {
                let batch = Batch::from_block(block).unwrap();
                next = batch.end();
                batches.insert(batch.first(), batch);
            }
            batches
        };
        let replica = by_feed.keys().map(batches).collect();
        Self {
            replica,
            events: by_feed.into_iter().collect(),
            config: config.clone(),
            sim,
        }
    }

    fn all(&self) -> Span {
        self.events
            .iter()
            .map(|(_, events)| 0..events.len() as Seq)
            .collect()
    }

    /// What cannot be read without some bytes of a segment, and a few events before and behind.
    fn held_by(&self, path: &Path, chunk: Range<usize>) -> Span {
        const BESIDE: Seq = 3;
        let gone = self.sim.kill();
        gone.edit(path, |bytes| bytes[chunk.clone()].fill(0));
        let missing = self
            .read(&open(&gone, self.config.clone()), &self.all())
            .unwrap();
        let around = self
            .events
            .iter()
            .zip(missing)
            .map(|((_, events), missing)| {
                let (Some(first), Some(last)) = (missing.first(), missing.last()) else {
                    return 0..0;
                };
                first.saturating_sub(BESIDE)..(last + 1 + BESIDE).min(events.len() as Seq)
            });
        around.collect()
    }

    /// Flips a bit of every so manieth byte of a segment, each on a disk of its own; how many that were.
    fn flip_each(&self, path: &Path, every: usize, rng: &mut Rng) -> u64 {
        /// Bytes of which is known what cannot be read without them: that is looked at after each flip.
        const CHUNK: usize = 4 << 10;
        let len = self.sim.bytes(path).unwrap().len();
        let mut held = (len, Span::new());
        let mut looked = 0_u64;
        for at in (rng.index(every)..len).step_by(every) {
            let chunk = at / CHUNK * CHUNK;
            if held.0 != chunk {
                held = (chunk, self.held_by(path, chunk..len.min(chunk + CHUNK)));
            }
            // All of the log now and then.
            let span = match looked.is_multiple_of(997) {
                true => &self.all(),
                false => &held.1,
            };
            let hurt = self.sim.kill();
            hurt.flip_bit(path, at as u64 * 8 + rng.below(8));
            self.judge(Arc::new(hurt), span)
                .unwrap_or_else(|e| panic!("byte {at} of {path:?}: {e}"));
            looked += 1;
        }
        looked
    }

    /// Whether a disk with one flipped bit is found to have it, when it is opened, read or verified; nothing wrong is served; and all is there
    /// again with what a replica has.
    fn judge(&self, hurt: Arc<dyn Disk>, span: &Span) -> Result<(), String> {
        let log = open_on(hurt, self.config.clone()).map_err(|e| format!("does not open: {e}"))?;
        let missing = self.read(&log, span)?;
        let is_found = !log.open_report().is_clean()
            || missing.iter().any(|places| !places.is_empty())
            || log.stat().damaged_indexes > 0
            || !self.verified_clean(&log)?;
        if !is_found {
            return Err("nobody says that it was flipped".to_owned());
        }
        self.heal(&log, &missing)?;
        match self.read(&log, span)?.iter().all(Vec::is_empty) {
            true => Ok(()),
            false => Err(format!("healed, and {missing:?} are not served")),
        }
    }

    fn verified_clean(&self, log: &Log) -> Result<bool, String> {
        let report = log.verify(|progress| match progress.damaged {
            0 => ControlFlow::Continue(()),
            _ => ControlFlow::Break(()),
        });
        Ok(report.map_err(|e| e.to_string())?.is_clean())
    }

    /// The places of a span that are not served, by feed; an error where a wrong event is.
    fn read(&self, log: &Log, span: &Span) -> Result<Vec<Vec<Seq>>, String> {
        let each = self.events.iter().zip(span);
        each.map(|((feed, events), places)| read(log, feed, events, places))
            .collect()
    }

    /// Hands in the batches of all missing places, as a replica sends them.
    fn heal(&self, log: &Log, missing: &[Vec<Seq>]) -> Result<(), String> {
        for (batches, missing) in self.replica.iter().zip(missing) {
            let mut healed = 0;
            for place in missing {
                if *place < healed {
                    continue;
                }
                let (_, batch) = batches.range(..=place).next_back().unwrap();
                healed = batch.end();
                let done = log.append_replica(batch.clone());
                done.map_err(|e| format!("{place} is not healed: {e}"))?;
            }
        }
        Ok(())
    }
}

/// Reads a stretch of a feed; gives the places that are not served.
fn read(
    log: &Log,
    feed: &FeedId,
    right: &[Vec<u8>],
    places: &Range<Seq>,
) -> Result<Vec<Seq>, String> {
    let (mut missing, mut next) = (Vec::new(), places.start);
    let mut cursor = log.cursor(feed, next);
    while next < places.end {
        match cursor.next_batch() {
            Ok(Some(batch)) => {
                for event in batch.events() {
                    if right.get(event.seq as usize).map(Vec::as_slice) != Some(event.payload) {
                        return Err(format!("{feed:?} {} is wrong", event.seq));
                    }
                    missing.extend(next..event.seq.min(places.end));
                    next = next.max(event.seq + 1);
                }
            }
            Ok(None) => {
                missing.extend(next..places.end);
                break;
            }
            Err(LogError::Damaged { to, .. } | LogError::Trimmed { low: to, .. }) => {
                missing.extend(next..to.min(places.end));
                next = to;
                cursor.seek(to);
            }
            Err(e) => return Err(e.to_string()),
        }
    }
    Ok(missing)
}

/// The same finds an engine that does not look at checksums.
#[test]
fn l3_an_engine_that_checks_no_checksum_is_found() {
    let flips = Flips::new(20_000, usize::MAX, &config());
    let mut rng = Rng::new(5);
    let mut wrong = 0;
    for _ in 0..60 {
        let hurt = flips.sim.kill();
        let path = segment(1 + rng.below(2) as u32);
        let len = flips.sim.bytes(&path).unwrap().len() as u64;
        hurt.flip_bit(&path, rng.below(len * 8));
        let lying = Arc::new(Lying {
            sim: hurt,
            lie: Lie::CrcUnchecked,
        });
        wrong += u32::from(flips.judge(lying, &flips.all()).is_err());
    }
    assert!(wrong > 5, "{wrong}");
}

/// Row L3: what is damaged here and whole at a replica is repaired by it, wherever it is. Every byte in full, of a log of 30 kB.
#[test]
fn l3_a_replica_heals_what_is_damaged() {
    let config = config();
    let is_full = sim_scale(2) == 2;
    let (sim, model) = sealed(if is_full { 30_000 } else { 60_000 }, &config);
    let replica = open(&sim.kill(), config.clone());
    let mut rng = Rng::new(8);
    let mut healed = 0;
    for path in segments(&sim) {
        let len = sim.bytes(&path).unwrap().len() as u64;
        for at in 0..if is_full { len } else { 20 } {
            let hurt = sim.kill();
            let at = if is_full { at } else { rng.below(len) };
            hurt.flip_bit(&path, at * 8 + rng.below(8));
            let log = open(&hurt, config.clone());
            log.verify(|_| ControlFlow::Continue(())).unwrap();
            for head in replica.heads() {
                let mut next = log
                    .head(&head.feed)
                    .map_or(0, |head| head.low.min(head.next));
                // All that is missing, wherever it is: as a replica would send it.
                while next < head.next {
                    let is_here = log
                        .read(&head.feed, next, 1)
                        .is_ok_and(|events| !events.is_empty());
                    if is_here {
                        next += 1;
                        continue;
                    }
                    let chunk = replica.range(&head.feed, next, 1).unwrap();
                    let batch = Batch::from_block(&chunk.blocks[0]).unwrap();
                    log.append_replica(batch).unwrap();
                    healed += 1;
                    next = chunk.next;
                }
            }
            assert_eq!(served(&log).unwrap(), model.acked);
            drop(log);
            // And it stays so.
            assert_eq!(served(&open(&hurt, config.clone())).unwrap(), model.acked);
        }
    }
    assert!(healed > 20, "{healed}");
}

/// Row L2: a log that ends anywhere opens, serves a beginning of every feed, and says that something was cut off; an orderly end is missing.
#[test]
fn l2_every_cut_of_the_last_64_kib_opens_and_is_told() {
    let config = config().segment_bytes(1 << 20);
    let (sim, model) = sealed(80_000, &config);
    let path = segment(1);
    let len = sim.bytes(&path).unwrap().len();
    assert!(len > 64 << 10 && sim.bytes(&segment(2)).is_none());
    let full = sim_scale(2) == 2;
    let cuts = if full { 64 << 10 } else { 400 };
    let mut rng = Rng::from_env_or(4);
    for i in 0..cuts {
        let cut = if full { i + 1 } else { 1 + rng.index(64 << 10) };
        let hurt = sim.kill();
        hurt.edit(&path, |bytes| bytes.truncate(len - cut));
        let log = open(&hurt, config.clone());
        let served = served(&log).unwrap();
        for (place, payload) in &served {
            assert_eq!(model.acked.get(place), Some(payload), "cut by {cut}");
        }
        // What is left ends with a whole batch, or that is reported and own feeds are not continued.
        let lost = served.len() < model.acked.len();
        let is_told = log.open_report().new_epochs && !log.open_report().cut.is_empty();
        let ends_whole = hurt.bytes(&path).unwrap().len() == len - cut;
        assert!(!lost || is_told || ends_whole, "cut by {cut}");
        let done = log
            .append(&stream("a"), &[NewEvent::new(0, "more")])
            .unwrap();
        assert!(!is_told || done.feed.epoch.0 == 1, "cut by {cut}");
    }
}

/// Row L4: whichever flush fails, whoever waited is told, nothing is written any more, reads go on, and the next opening tells what is there.
#[test]
fn l4_a_flush_that_fails_at_any_call_loses_nothing_acknowledged() {
    for call in [Call::Sync, Call::SyncLanded] {
        for nth in 1.. {
            let sim = SimDisk::new(nth);
            let config = config().segment_bytes(4 << 10);
            let mut model = Model::default();
            sim.fail(call, nth, 1);
            let Ok(log) = open_on(Arc::new(sim.clone()), config.clone()) else {
                continue;
            };
            let mut failed = false;
            for i in 0..30 {
                let stream = stream("a");
                let events = [NewEvent::new(i, vec![i as u8; 300])];
                model.submit(&stream, &events);
                match log.append(&stream, &events) {
                    Ok(done) => {
                        assert!(
                            log.poisoned().is_none(),
                            "nothing is acknowledged after a failed flush"
                        );
                        model.ack(&done, &events);
                    }
                    Err(LogError::Poisoned(_)) => {
                        failed = true;
                        assert!(log.poisoned().is_some());
                        assert!(log.append(&stream, &events).is_err());
                    }
                    Err(LogError::Io(_)) => failed = true,
                    Err(e) => panic!("{e}"),
                }
            }
            assert!(served(&log).unwrap().len() >= model.acked.len());
            drop(log);
            for after in [sim.kill(), sim.power_cut(&mut Rng::new(nth))] {
                check_open(&open(&after, config.clone()), &model)
                    .unwrap_or_else(|e| panic!("{call:?} {nth}: {e}"));
            }
            if !failed {
                assert!(nth > 20, "{nth}");
                break;
            }
        }
    }
}

/// Row L13: a disk that is full at any write refuses by name, keeps what was acknowledged, reads on, closes, and goes on when there is room.
#[test]
fn l13_a_full_disk_at_any_write_refuses_reads_on_and_recovers() {
    for nth in 1.. {
        let sim = SimDisk::new(nth);
        let config = config().segment_bytes(4 << 10).reserve(64 << 10);
        let mut model = Model::default();
        let log = open(&sim, config.clone());
        let before = sim.calls(Call::WriteFull);
        sim.fail(Call::WriteFull, before + nth, 3);
        let mut refused = 0;
        for i in 0..40 {
            let stream = stream("a");
            let events = [NewEvent::new(i, vec![i as u8; 300])];
            model.submit(&stream, &events);
            match log.append(&stream, &events) {
                Ok(done) => model.ack(&done, &events),
                Err(LogError::Full(_)) => refused += 1,
                Err(e) => panic!("{e}"),
            }
            let all = served(&log).unwrap();
            assert!(
                model
                    .acked
                    .iter()
                    .all(|(place, payload)| all.get(place) == Some(payload))
            );
        }
        sim.heal();
        log.close().unwrap();
        drop(log);
        check_open(
            &open(&sim.power_cut(&mut Rng::new(nth)), config.clone()),
            &model,
        )
        .unwrap_or_else(|e| panic!("{nth}: {e}"));
        assert!(refused <= 3);
        if nth > 45 {
            break;
        }
    }
}

/// Row L13: that new epochs begin cannot be written down on a full disk: that is the cause that is told, and they begin when there is room.
#[test]
fn l13_log_5_a_full_disk_is_told_to_whoever_begins_epochs() {
    let sim = SimDisk::new(1);
    let log = open(&sim, config());
    let events = [NewEvent::new(0, "x")];
    let before = log.append(&stream("a"), &events).unwrap().feed;
    sim.fail(Call::WriteFull, 1, 3);
    let refused = log.begin_epochs();
    assert!(matches!(refused, Err(LogError::Full(_))), "{refused:?}");
    sim.heal();
    let feed = log.append(&stream("a"), &events).unwrap().feed;
    assert!(feed.epoch > before.epoch);
    log.begin_epochs().unwrap();
}

/// Row L13: the log's own limit is an error of its own, reads go on, and retention makes room.
#[test]
fn l13_s3_34_the_limit_of_the_log_is_told() {
    let sim = SimDisk::new(1);
    let config = config().segment_bytes(4 << 10).max_bytes(40_000);
    let log = open(&sim, config);
    let events = [NewEvent::new(0, vec![1; 500])];
    let mut took = 0;
    let error = loop {
        match log.append(&stream("a"), &events) {
            Ok(_) => took += 1,
            Err(error) => break error,
        }
    };
    assert!(
        matches!(error, LogError::NoSpace { limit: 40_000, .. }),
        "{error}"
    );
    assert!(took > 20);
    let head = log.heads().remove(0);
    assert_eq!(log.read(&head.feed, 0, 1_000).unwrap().len(), took);
    let all = |_: &gemba_log::FeedId| None;
    let retention = gemba_log::Retention {
        max_bytes: Some(10_000),
        before: None,
        low_water: &all,
        danger_drop_needed: false,
    };
    assert!(log.retain(&retention).unwrap().segments > 0);
    assert_eq!(
        log.append(&stream("a"), &events).unwrap().first_seq,
        took as u64
    );
}

/// A disk that is really full: no call has room, until something else is removed. The reserve closes the log in order.
#[test]
fn l13_a_disk_without_any_room_closes_in_order() {
    let sim = SimDisk::new(1);
    let config = config().segment_bytes(64 << 10).reserve(128 << 10);
    let log = open(&sim, config.clone());
    sim.set_capacity(sim.used() + 30_000);
    let mut model = Model::default();
    let mut refused = 0;
    for i in 0..200 {
        let stream = stream("a");
        let payload: Vec<u8> = Rng::new(i).bytes(400);
        let events = [NewEvent::new(i as i64, payload)];
        model.submit(&stream, &events);
        match log.append(&stream, &events) {
            Ok(done) => model.ack(&done, &events),
            Err(LogError::Full(_)) => refused += 1,
            Err(e) => panic!("{e}"),
        }
    }
    assert!(refused > 50 && model.acked.len() > 20);
    log.close().unwrap();
    drop(log);
    let log: Log = open(&sim.kill(), config);
    check_open(&log, &model).unwrap();
    assert!(log.open_report().is_clean(), "{:?}", log.open_report());
}

/// LOG-5: while a segment cannot be read, nobody knows which places are taken. What is appended then is beside what is there when it can be read again.
#[test]
fn l3_log_5_a_segment_that_cannot_be_read_makes_no_place_be_given_twice() {
    // Also in a copy, whose least epoch may be higher than what is drawn first.
    let copy = config().least_epoch((1 << 51) - 1);
    let mut set_aside = 0;
    for (nth, config) in (1..=24).flat_map(|nth| [(nth, config()), (nth, copy.clone())]) {
        let (sim, mut model) = sealed(20_000, &config);
        let sim = sim.kill();
        sim.fail(Call::Read, nth, 1_000);
        let Ok(log) = open_on(Arc::new(sim.clone()), config.clone()) else {
            continue;
        };
        if log.open_report().unreadable.is_empty() {
            continue;
        }
        set_aside += 1;
        for name in ["a", "b/c", "new", "a"] {
            let (stream, events) = (stream(name), [NewEvent::new(0, format!("{name} {nth}"))]);
            model.submit(&stream, &events);
            if let Ok(done) = log.append(&stream, &events) {
                let (epoch, seq) = done.place(0);
                let known = model.acked.contains_key(&(done.feed.clone(), seq));
                assert!(!known, "{name} {epoch} {seq} is given twice");
                model.ack(&done, &events);
            }
        }
        let back = sim.power_cut(&mut Rng::new(nth));
        drop(log);
        let log = open(&back, config.clone());
        assert!(log.open_report().unreadable.is_empty());
        assert_eq!(check_open(&log, &model), Ok(()), "{nth}");
        assert!(log.heads().iter().all(|head| !head.forked));
    }
    assert!(set_aside > 5, "{set_aside}");
}

/// A write that the disk refuses while a log is opened is no reason to go on without the segment: it says so, and opens when the disk takes it.
#[test]
fn l4_a_refused_write_at_opening_sets_no_segment_aside() {
    let config = config();
    let mut refused = 0;
    for call in [Call::SetLen, Call::Write, Call::Sync] {
        for nth in 1..=6 {
            let (sim, model) = sealed(3_000, &config);
            let log = open(&sim, config.clone());
            let events = [NewEvent::new(0, "late")];
            let mut model = model;
            model.submit(&stream("a"), &events);
            model.ack(&log.append(&stream("a"), &events).unwrap(), &events);
            // A kill: what was extended ahead has to be cut.
            let sim = sim.kill();
            drop(log);
            sim.fail(call, nth, 1);
            match open_on(Arc::new(sim.clone()), config.clone()) {
                Ok(log) => assert!(log.open_report().unreadable.is_empty()),
                Err(error) => {
                    refused += 1;
                    assert!(matches!(error, gemba_log::OpenError::Io { .. }), "{error}");
                }
            }
            let log = open(&sim.kill(), config.clone());
            assert_eq!(check_open(&log, &model), Ok(()), "{call:?} {nth}");
        }
    }
    assert!(refused > 2, "{refused}");
}
