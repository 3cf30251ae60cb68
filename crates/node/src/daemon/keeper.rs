//! The daemon keeps its own house: it makes room before the store is full, gives the space of dead blocks back, compares what pins say with what is
//! here, and reads everything from time to time to find damage before somebody needs what is damaged.
//!
//! One thread, small steps, a rate for each kind of work; it gives way to a person who collects, and ends between two steps. What no
//! pin holds is a cache and stays while there is room: collection begins when 90 % of the limit are taken, and takes what was used
//! least recently until 80 % are.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use cid::Cid;
use gemba_pins::Pin;
use gemba_store::{Aim, Pace, Scrub, Store};

use super::room::{Next, Room};
use super::turn::Turns;
use super::work::free_bytes;
use super::{Command, Handle};
use crate::api::types::{CollectPhase, Collected, Kept, Trouble};
use crate::config;
use crate::content::collect::{Stop, compact};
use crate::content::compare::{Compare, Step};
use crate::content::room::{Made, make, relieve, room};
use crate::error::{Code, Fail};
use crate::meta::{Meta, PinRows, PinState as _, ScrubNote};
use crate::text;

/// How often usage is looked at: a few figures in memory, and one question to the file system.
const LOOK: Duration = Duration::from_millis(500);
/// Percent of the limit at which a collection begins.
const BEGIN: u64 = 90;
/// Percent of the limit that it leaves.
const LEAVE: u64 = 80;
/// Without a limit of its own the store takes so many percent of what the file system could give it.
const SHARE: u64 = 90;
/// A collection that did not help is repeated when the store has grown by so many percent of the limit, or at the next interval.
const GROWN: u64 = 2;
/// Bytes a second of marking, sweeping and compacting when room is needed.
const URGENT: u64 = 64 << 20;
/// Bytes a second of compacting when it is not.
const AT_EASE: u64 = 8 << 20;
/// Without need, packs are compacted when dead bytes are more than this part of what the store takes …
const DEAD_PART: u64 = 4;
/// … and at least so many.
const DEAD_BYTES: u64 = 64 << 20;
/// Bytes of a step of the scrub.
const SCRUB_STEP: u64 = 256 << 10;
/// Bytes a second of the scrub, at least and at most. In between a round takes half of its period.
const SCRUB_RATE: (u64, u64) = (256 << 10, 8 << 20);
/// Blocks of a step of the comparison of pins with what is here.
const COMPARED: usize = 512;
/// After a step of it at least so many times as long as the step took nothing is compared …
const BETWEEN_STEPS: u32 = 4;
/// … and after a round so many times as long as its steps took together: at most one percent of a core, whatever is pinned.
const BETWEEN_ROUNDS: u32 = 100;
/// How often the place of the scrub is noted.
const NOTE: Duration = Duration::from_secs(60);

/// What was done since the daemon started, and what is wrong.
#[derive(Debug, Default)]
pub struct Figures {
    runs: AtomicU64,
    collected_blocks: AtomicU64,
    collected_bytes: AtomicU64,
    freed_bytes: AtomicU64,
    scrubbed_bytes: AtomicU64,
    scrub_rounds: AtomicU64,
    damaged: AtomicU64,
    compare_rounds: AtomicU64,
    compare_struck: AtomicU64,
    limit_bytes: AtomicU64,
    trouble: Mutex<Option<(String, Instant, u64)>>,
}

impl Figures {
    /// A reading of them.
    pub fn read(&self) -> Kept {
        let load = |figure: &AtomicU64| figure.load(Ordering::Relaxed);
        Kept {
            limit_bytes: load(&self.limit_bytes),
            gc_runs: load(&self.runs),
            gc_blocks: load(&self.collected_blocks),
            gc_bytes: load(&self.collected_bytes),
            freed_bytes: load(&self.freed_bytes),
            scrubbed_bytes: load(&self.scrubbed_bytes),
            scrub_rounds: load(&self.scrub_rounds),
            scrub_damaged: load(&self.damaged),
            compare_rounds: load(&self.compare_rounds),
            compare_struck: load(&self.compare_struck),
        }
    }

    /// A collection ended, whoever began it.
    pub fn collected(&self, report: &Collected) {
        self.runs.fetch_add(1, Ordering::Relaxed);
        self.collected_blocks
            .fetch_add(report.blocks, Ordering::Relaxed);
        self.collected_bytes
            .fetch_add(report.bytes, Ordering::Relaxed);
        self.freed(report);
    }

    fn freed(&self, report: &Collected) {
        self.freed_bytes
            .fetch_add(report.freed_bytes, Ordering::Relaxed);
    }

    fn hold(&self) -> std::sync::MutexGuard<'_, Option<(String, Instant, u64)>> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn well(&self) {
        *self.hold() = None;
    }

    fn failed(&self, cause: String) {
        let mut held = self.hold();
        let count = held.as_ref().map_or(0, |(_, _, count)| *count);
        *held = Some((cause, Instant::now(), count + 1));
    }

    /// For `status`.
    pub fn trouble(&self, dir: &std::path::Path) -> Option<Trouble> {
        let held = self.hold();
        let (cause, at, count) = held.as_ref()?;
        Some(Trouble {
            address: dir.display().to_string(),
            peer: None,
            direction: "local".to_owned(),
            kind: "gc".to_owned(),
            cause: cause.clone(),
            age_s: at.elapsed().as_secs(),
            count: *count,
            retry_in_s: None,
        })
    }
}

/// The thread, as its owner holds it.
pub(crate) struct Keeper {
    over: Arc<AtomicBool>,
    room: Arc<Room>,
    thread: std::thread::JoinHandle<()>,
}

impl Keeper {
    /// Starts it.
    ///
    /// # Errors
    /// The operating system gives no thread.
    pub(crate) fn start(
        store: Store,
        meta: Arc<Meta>,
        handle: Handle,
        (turns, room): (Arc<Turns>, Arc<Room>),
        (settings, compare): (config::Store, Option<Duration>),
        figures: Arc<Figures>,
    ) -> Result<Self, Fail> {
        let over = Arc::new(AtomicBool::new(false));
        let begun = Instant::now();
        let mut house = House {
            next_tick: settings.gc_interval,
            scrubbing: Scrubbing::begin(&store, &meta)?,
            comparing: compare.map(Comparing::new),
            store,
            meta,
            handle,
            turns,
            room: Arc::clone(&room),
            settings,
            figures,
            over: Arc::clone(&over),
            begun,
            last: None,
        };
        let thread = std::thread::Builder::new()
            .name("keeper".into())
            .spawn(move || house.run())
            .map_err(|e| Fail::resources("threads", &e))?;
        Ok(Self { over, room, thread })
    }

    /// Ends it after the step that it is at. Blocks until then.
    pub(crate) fn finish(self) {
        self.over.store(true, Ordering::Relaxed);
        self.room.end();
        if self.thread.join().is_err() {
            tracing::error!("the thread that keeps the store in order panicked");
        }
    }
}

struct House {
    store: Store,
    meta: Arc<Meta>,
    handle: Handle,
    turns: Arc<Turns>,
    room: Arc<Room>,
    settings: config::Store,
    figures: Arc<Figures>,
    over: Arc<AtomicBool>,
    begun: Instant,
    next_tick: Duration,
    /// When room was made last, and how much was taken after it.
    last: Option<(Duration, u64)>,
    scrubbing: Scrubbing,
    comparing: Option<Comparing>,
}

impl House {
    fn run(&mut self) {
        let mut wait = LOOK;
        loop {
            match self.room.next(wait) {
                Next::Over => break,
                Next::Make(needed) => self.serve(needed),
                Next::Idle => {}
            }
            let ticked = self.tick();
            if self.settings.gc {
                self.make_room(ticked);
            }
            wait = self.scrub().min(self.compare()).min(LOOK);
        }
        self.scrubbing.note(&self.meta);
    }

    fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Marks of last use go on, and are kept over an unclean stop, once an interval.
    fn tick(&mut self) -> bool {
        if self.now() < self.next_tick {
            return false;
        }
        self.next_tick = self.now() + self.settings.gc_interval;
        self.store.tick();
        if let Err(error) = self.store.save_uses() {
            tracing::warn!(%error, "marks of last use could not be written down");
        }
        true
    }

    /// What the store may take.
    fn limit(&self) -> Option<u64> {
        let limit = self.settings.max_size.or_else(|| {
            let free = free_bytes(self.store.dir())?;
            Some((self.store.stat().disk_bytes.saturating_add(free) / 100).saturating_mul(SHARE))
        });
        self.figures
            .limit_bytes
            .store(limit.unwrap_or(0), Ordering::Relaxed);
        limit
    }

    fn make_room(&mut self, ticked: bool) {
        let stat = self.store.stat();
        let limit = self.limit();
        let pressed = limit.is_some_and(|limit| {
            let grown = |(at, after): (Duration, u64)| {
                self.now() >= at + self.settings.gc_interval
                    || stat.disk_bytes >= after + limit / 100 * GROWN
            };
            stat.disk_bytes > limit / 100 * BEGIN && self.last.is_none_or(grown)
        });
        if limit.is_none_or(|limit| stat.disk_bytes <= limit / 100 * BEGIN) {
            self.figures.well();
        }
        let littered = ticked && stat.dead_bytes >= DEAD_BYTES.max(stat.disk_bytes / DEAD_PART);
        if !pressed && !littered {
            return;
        }
        let turns = Arc::clone(&self.turns);
        let Some(_turn) = turns.try_take() else {
            return;
        };
        let outcome = match limit {
            Some(limit) if pressed => self.relieve(limit / 100 * LEAVE),
            _ => self.tidy(),
        };
        match outcome {
            Ok(()) => self.tell_if_full(limit.filter(|_| pressed)),
            // It gave way, or the daemon ends: what is left is done later.
            Err(Stop::Failed(fail)) if fail.code == Code::Interrupted => return,
            Err(stop) => drop(self.on_stopped(stop)),
        }
        if pressed {
            self.last = Some((self.now(), self.store.stat().disk_bytes));
        }
    }

    /// Space of blocks that are dead already.
    fn tidy(&self) -> Result<(), Stop> {
        let mut report = Collected::default();
        let tidied = compact(
            &self.store,
            &Aim::default(),
            &mut report,
            |_| false,
            &mut self.between(AT_EASE),
        );
        self.figures.freed(&report);
        Ok(tidied?)
    }

    /// Until no more than that is taken.
    fn relieve(&self, target: u64) -> Result<(), Stop> {
        let report = relieve(
            &self.store,
            target,
            || self.handle.ask_blocking(Command::DesiredSet)?,
            &mut self.between(URGENT),
        )?;
        self.note(&report);
        Ok(())
    }

    /// Somebody writes and waits for so many bytes.
    fn serve(&mut self, needed: u64) {
        let made = loop {
            if self.over.load(Ordering::Relaxed) {
                return;
            }
            // Others wait for the same, or a person has made room meanwhile.
            if room(&self.store) >= needed {
                break Made::default();
            }
            let turns = Arc::clone(&self.turns);
            let Some(_turn) = turns.try_take() else {
                self.room
                    .tell("a collection is under way already".to_owned());
                std::thread::sleep(LOOK / 10);
                continue;
            };
            match self.make(needed) {
                Ok(report) => {
                    self.note(&report);
                    break Made::from(&report);
                }
                Err(Stop::Failed(fail)) if fail.code == Code::Interrupted => {}
                Err(stop) => {
                    let cause = self.on_stopped(stop);
                    break Made {
                        cause: Some(cause),
                        ..Made::default()
                    };
                }
            }
        };
        self.last = Some((self.now(), self.store.stat().disk_bytes));
        self.room.served(made);
    }

    fn make(&self, needed: u64) -> Result<Collected, Stop> {
        let pins = || self.handle.ask_blocking(Command::DesiredSet)?;
        let mut between = self.between(URGENT);
        make(&self.store, needed, pins, &mut |report, bytes| {
            self.room.tell(doing(report));
            between(report, bytes)
        })
    }

    fn note(&self, report: &Collected) {
        if report.pins == 0 && report.blocks == 0 {
            return self.figures.freed(report);
        }
        self.figures.collected(report);
        tracing::info!(
            blocks = report.blocks,
            bytes = report.bytes,
            freed_bytes = report.freed_bytes,
            "the store was nearly full: what no pin holds and was used least recently was removed"
        );
    }

    /// What pins hold stays, so a limit below it is never kept.
    fn tell_if_full(&self, limit: Option<u64>) {
        let used = self.store.stat().disk_bytes;
        let Some(limit) = limit.filter(|limit| used > limit / 100 * BEGIN) else {
            return;
        };
        self.figures.failed(format!(
            "the blocks take {used} of {limit} bytes, and what is left of them is pinned or in use: unpin something (`gemba pin rm`), free space on the disk, or raise store.max_size"
        ));
    }

    fn on_stopped(&self, stop: Stop) -> String {
        if let Stop::Broken { root, .. } = &stop {
            // It is not whole, so it is fetched again; the next collection finds it so.
            let struck = |reply| Command::Struck(vec![**root], reply);
            let _ending = self.handle.ask_blocking(struck);
        }
        let fail = stop.into_fail();
        tracing::error!(error = %fail, "no room could be made");
        self.figures.failed(fail.cause.clone());
        fail.cause
    }

    /// Sleeps as long as the rate wants, and ends the work when a person wants to collect, or the daemon ends.
    fn between(&self, rate: u64) -> impl FnMut(&Collected, u64) -> Result<(), Fail> {
        let (over, turns, begun) = (Arc::clone(&self.over), Arc::clone(&self.turns), self.begun);
        let mut pace = Pace::new(rate);
        move |_, bytes| {
            pace.spend(bytes, begun.elapsed());
            loop {
                if over.load(Ordering::Relaxed) || turns.is_wanted() {
                    return Err(Fail::new(Code::Interrupted, "somebody else goes before"));
                }
                let left = pace.due().saturating_sub(begun.elapsed());
                if left.is_zero() {
                    return Ok(());
                }
                std::thread::sleep(left.min(LOOK / 10));
            }
        }
    }

    /// A step of the scrub if it is time for one; when the next one may be.
    fn scrub(&mut self) -> Duration {
        let Some(period) = self.settings.scrub else {
            return LOOK;
        };
        let now = self.now();
        if !self.scrubbing.pace.is_due(now) {
            return self.scrubbing.pace.due() - now;
        }
        if self.scrubbing.rests(period) {
            return LOOK;
        }
        match self.scrubbing.scrub.step(SCRUB_STEP) {
            Ok(step) => {
                let add = |figure: &AtomicU64, n| figure.fetch_add(n, Ordering::Relaxed);
                add(&self.figures.scrubbed_bytes, step.bytes);
                // The loop asks the store for those with a name, and has them fetched again.
                add(&self.figures.damaged, step.corrupt.len() as u64);
                for place in step.corrupt {
                    tracing::error!(pack = place.pack, offset = place.offset, cause = %place.cause, "the scrub found damage");
                }
                let rate = self.store.stat().disk_bytes / (period.as_secs() / 2).max(1);
                let rate = rate.clamp(SCRUB_RATE.0, SCRUB_RATE.1);
                self.scrubbing.spend(step.bytes, rate, now);
                if step.done {
                    add(&self.figures.scrub_rounds, 1);
                    self.scrubbing.noted.done = true;
                    self.scrubbing.note(&self.meta);
                }
            }
            Err(error) => {
                tracing::warn!(%error, "the scrub cannot go on");
                self.scrubbing
                    .spend(SCRUB_RATE.0 * NOTE.as_secs(), SCRUB_RATE.0, now);
            }
        }
        if now.saturating_sub(self.scrubbing.noted_at) >= NOTE {
            self.scrubbing.noted_at = now;
            self.scrubbing.note(&self.meta);
        }
        self.scrubbing.pace.due().saturating_sub(self.now())
    }
}

impl House {
    /// A step of the comparison if it is time for one; when the next one may be.
    fn compare(&mut self) -> Duration {
        let now = self.now();
        let Some(comparing) = &mut self.comparing else {
            return LOOK;
        };
        if now < comparing.next {
            return comparing.next - now;
        }
        let meta = Arc::clone(&self.meta);
        match comparing.step(&self.store, &move || meta.pins()) {
            Ok(step) => {
                let rests = comparing.rests(step.done);
                let rounds = u64::from(step.done);
                self.figures
                    .compare_rounds
                    .fetch_add(rounds, Ordering::Relaxed);
                if let Some((pin, lacks)) = step.lacking {
                    self.on_drift(&pin, &lacks);
                }
                let next = self.now() + rests;
                if let Some(comparing) = &mut self.comparing {
                    comparing.next = next;
                }
                rests
            }
            Err(error) => {
                tracing::warn!(%error, "pins could not be compared with what is here");
                comparing.next = now + comparing.every;
                comparing.round = None;
                comparing.every
            }
        }
    }

    /// A pin says it is whole and is not. It may have been released meanwhile, or the block have come; else it is fetched again.
    fn on_drift(&self, pin: &Pin, lacks: &Cid) {
        let is_meant = |now: &Pin| now.complete && now.id == pin.id;
        let now = self.meta.pins().and_then(|rows| rows.get(&pin.cid));
        match now {
            Ok(now) if !now.as_ref().is_some_and(is_meant) || self.store.has(lacks) => {}
            Ok(_) => {
                tracing::error!(root = %pin.cid, %lacks, "a pin that was whole lacks a block; it is fetched again");
                self.figures.compare_struck.fetch_add(1, Ordering::Relaxed);
                let struck = |reply| Command::Struck(vec![pin.cid], reply);
                let _ending = self.handle.ask_blocking(struck);
            }
            Err(error) => {
                tracing::warn!(%error, root = %pin.cid, "a pin that lacks a block could not be looked up");
            }
        }
    }
}

/// Where the comparison of pins with what is here is.
struct Comparing {
    every: Duration,
    round: Option<Compare>,
    next: Duration,
    /// What the round has taken so far, and its last step.
    work: Duration,
    last: Duration,
}

impl Comparing {
    /// The first round begins after a pause, too: at the start of the daemon others are in a hurry.
    fn new(every: Duration) -> Self {
        Self {
            every,
            round: None,
            next: every,
            work: Duration::ZERO,
            last: Duration::ZERO,
        }
    }

    fn step(
        &mut self,
        store: &Store,
        rows: &dyn Fn() -> Result<PinRows, Fail>,
    ) -> Result<Step, Fail> {
        let begun = Instant::now();
        let round = match &mut self.round {
            Some(round) => round,
            none => none.insert(Compare::begin()?),
        };
        let step = round.step(store, rows, COMPARED);
        self.last = begun.elapsed();
        self.work += self.last;
        step
    }

    /// How long nothing is compared after the step that was last.
    fn rests(&mut self, done: bool) -> Duration {
        if !done {
            return self.last * BETWEEN_STEPS;
        }
        self.round = None;
        let work = std::mem::take(&mut self.work);
        self.every.max(work.saturating_mul(BETWEEN_ROUNDS))
    }
}

/// Where the scrub is.
struct Scrubbing {
    scrub: Scrub,
    store: Store,
    noted: ScrubNote,
    noted_at: Duration,
    pace: Pace,
    /// What the pace owes when its rate changes.
    rate: u64,
}

impl Scrubbing {
    /// Goes on where an earlier process was.
    fn begin(store: &Store, meta: &Meta) -> Result<Self, Fail> {
        let noted = meta.scrub()?;
        Ok(Self {
            scrub: store.scrub(noted.point),
            store: store.clone(),
            noted,
            noted_at: Duration::ZERO,
            pace: Pace::new(SCRUB_RATE.0),
            rate: SCRUB_RATE.0,
        })
    }

    /// Whether everything was read in this period; begins the next round when the period is over.
    fn rests(&mut self, period: Duration) -> bool {
        let now = wall_clock_s();
        // A clock that went back is no reason to wait for it.
        let due =
            now >= self.noted.begun_s.saturating_add(period.as_secs()) || now < self.noted.begun_s;
        if self.noted.done && !due {
            return true;
        }
        if self.noted.done || self.noted.begun_s == 0 {
            self.noted = ScrubNote {
                begun_s: now,
                ..ScrubNote::default()
            };
            self.scrub = self.store.scrub(self.noted.point);
        }
        false
    }

    fn spend(&mut self, bytes: u64, rate: u64, now: Duration) {
        if rate != self.rate {
            self.rate = rate;
            self.pace = Pace::new(rate);
        }
        self.pace.spend(bytes.max(1), now);
    }

    fn note(&mut self, meta: &Meta) {
        self.noted.point = self.scrub.point();
        if let Err(error) = meta.note_scrub(&self.noted) {
            tracing::warn!(%error, "the place of the scrub could not be noted");
        }
    }
}

/// How far a collection is, for whoever waits for it.
fn doing(report: &Collected) -> String {
    let phase = match report.phase {
        CollectPhase::Mark => "looking for what pins hold",
        CollectPhase::Sweep => "removing what no pin holds",
        CollectPhase::Compact => "giving the space back",
    };
    let (removed, freed) = (text::bytes(report.bytes), text::bytes(report.freed_bytes));
    format!("{phase}; {removed} removed, {freed} given back so far")
}

/// For the period alone, never for order.
fn wall_clock_s() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
