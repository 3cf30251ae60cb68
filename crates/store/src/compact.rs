//! Compaction: space of deleted blocks comes back, in steps that somebody else drives (specs/store.md §7).
//!
//! A pack of which little is alive is copied into the pack that is written to, and removed when the copies are durable. In a
//! pack that is worth keeping, large dead blocks are punched out. There is no thread and no clock here: [`Store::compact_step`]
//! does a bounded amount of work, and writes go through the same groups as everybody's, so puts never wait for more than one
//! small group. Everything may be repeated: a step that failed, or that a crash cut off, is begun anew.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use gemba_segment::{DiskFile, Entry, Frame, Mode, ReadError, is_unreadable};

use crate::error::StoreError;
use crate::format::{BLOCK, TOMBSTONE};
use crate::index::{AlreadyHashed, Fingerprint, Place};
use crate::log::{Moving, Op, World};
use crate::packs::Pack;
use crate::pages::Pages;
use crate::store::{RAW, Store};
use crate::verify::CorruptBlock;

/// Most bytes copied by one group: what a put may have to wait for besides its own flush.
const GROUP_BYTES: u64 = 64 << 10;
/// Most frames copied by one group.
const GROUP_FRAMES: usize = 64;
/// Tombstones of a pack that are looked for in older packs, 24 bytes each; what is over is copied without a look.
const TOMBSTONES: usize = 64 << 10;
/// File systems give space back in pages of this size.
const PAGE: u64 = 4096;
/// What a punched hole counts for in a budget: a write of metadata.
const PUNCH_COST: u64 = 16 << 10;
/// A pack with less than this percentage of its length alive is copied even if holes already gave its space back.
const REMNANT: u64 = 5;
/// A pack with less than this percentage alive is copied without punching it first.
const NOT_WORTH_PUNCHING: u64 = 20;

/// What a step of compaction may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Aim {
    budget: u64,
    below: u8,
    damaged: bool,
}

impl Default for Aim {
    /// Steps of 1 MiB over packs of which less than half is alive.
    fn default() -> Self {
        Self {
            budget: 1 << 20,
            below: 50,
            damaged: false,
        }
    }
}

impl Aim {
    /// Bytes that a step reads and writes before it returns, about; 1 MiB by default. A step is never interrupted inside a
    /// group of at most 64 KiB and one block.
    #[must_use]
    pub fn budget(mut self, bytes: u64) -> Self {
        self.budget = bytes.max(1);
        self
    }

    /// Packs are copied if less than this percentage of them is alive; 50 by default, at most 90. A store that copies at 50
    /// writes at most one byte for each that it gains, and takes at most twice what is alive; at 90 it is nine for one, and
    /// a ninth.
    #[must_use]
    pub fn below(mut self, percent: u8) -> Self {
        self.below = percent.min(90);
        self
    }

    /// Also packs with damage that was reported. Their damage is then no longer reported, so repair first. Not by default.
    #[must_use]
    pub fn with_damaged_packs(mut self) -> Self {
        self.damaged = true;
        self
    }
}

/// What a step of compaction did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct CompactStep {
    /// Bytes read, about.
    pub read: u64,
    /// Bytes copied.
    pub copied: u64,
    /// Blocks copied.
    pub moved: u64,
    /// Bytes of packs that were removed.
    pub removed: u64,
    /// Bytes that holes gave back.
    pub punched: u64,
    /// Damaged blocks that were found on the way. They count as absent from now on, so that a put repairs them.
    pub corrupt: Vec<CorruptBlock>,
    /// There was nothing left to do.
    pub idle: bool,
    holes: u64,
}

impl CompactStep {
    fn cost(&self) -> u64 {
        self.read + self.copied + self.holes * PUNCH_COST
    }
}

/// What a compaction is doing between steps.
#[derive(Debug, Default)]
pub(crate) struct Compactor {
    work: Option<Work>,
    cannot_punch: bool,
}

#[derive(Debug)]
enum Work {
    Copy(Box<Job>),
    Punch(Box<Punching>),
    /// The file is unlinked, or about to be; done when the folder is synced. Nothing else goes on before.
    Remove(u32),
}

impl Work {
    fn pack(&self) -> u32 {
        match self {
            Self::Copy(job) => job.pack,
            Self::Punch(punching) => punching.pack,
            Self::Remove(pack) => *pack,
        }
    }
}

/// A pack that is copied elsewhere.
#[derive(Debug)]
struct Job {
    pack: u32,
    phase: Phase,
    /// Tombstones of the pack whose blocks are not there, and whether an older pack still holds a frame of that block.
    tombstones: HashMap<Fingerprint, Tombstone, AlreadyHashed>,
    /// Bytes of tombstones that there was no room to remember.
    unseen: u64,
    /// Blocks that had to stay.
    stuck: u64,
}

#[derive(Clone, Copy, Debug)]
struct Tombstone {
    frame_len: u32,
    needed: bool,
}

#[derive(Debug)]
enum Phase {
    /// Which tombstones there are.
    Tombstones(Pages),
    /// Which of them are still needed.
    Older(Vec<u32>, Option<Pages>),
    /// Frames are written once more.
    Copy(Pages, VecDeque<Entry>),
}

/// A pack whose large dead blocks are punched out.
#[derive(Debug)]
struct Punching {
    pack: u32,
    dead: u64,
    file: Arc<dyn DiskFile>,
    pages: Pages,
    entries: VecDeque<Entry>,
}

impl Store {
    /// Gives space of deleted blocks back, one bounded step at a time; the owner calls it as often as it likes, from one place.
    /// Never makes a put or a get wait longer than one group of about 64 KiB takes.
    ///
    /// # Errors
    /// See [`StoreError`]. Nothing is lost by a failed step, and the next one begins anew.
    pub fn compact_step(&self, aim: &Aim) -> Result<CompactStep, StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        let mut compactor = self
            .compactor()
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut step = CompactStep::default();
        while step.cost() < aim.budget {
            let Some(work) = compactor.next_work(self, aim, &mut step)? else {
                step.idle = true;
                break;
            };
            // A failed step leaves no work behind, except a removal, which has to end before anything else begins.
            let (pack, removing) = (work.pack(), matches!(work, Work::Remove(_)));
            match self.work_on(work, aim, &mut step, &mut compactor.cannot_punch) {
                Ok(next) => compactor.work = next,
                Err(e) if removing => {
                    compactor.work = Some(Work::Remove(pack));
                    return Err(e);
                }
                Err(e) => self.give_up(pack, e, &mut step)?,
            }
        }
        Ok(step)
    }

    /// What cannot be read stays as it is, and does not keep the other packs from being compacted.
    fn give_up(&self, pack: u32, e: StoreError, step: &mut CompactStep) -> Result<(), StoreError> {
        let StoreError::Unlisted { pack: unlisted, .. } = e else {
            return Err(e);
        };
        self.world()
            .packs
            .note(pack, |pack| pack.stuck_at = Some(pack.live));
        step.corrupt.push(CorruptBlock::unlisted(unlisted));
        Ok(())
    }

    /// One piece of work; gives what is to be done next.
    fn work_on(
        &self,
        work: Work,
        aim: &Aim,
        step: &mut CompactStep,
        cannot_punch: &mut bool,
    ) -> Result<Option<Work>, StoreError> {
        match work {
            Work::Copy(job) => self.copy_on(job, aim, step),
            Work::Punch(punching) => self.punch_on(punching, step, cannot_punch),
            Work::Remove(pack) => {
                self.remove_pack(pack, step)?;
                Ok(None)
            }
        }
    }

    fn copy_on(
        &self,
        mut job: Box<Job>,
        aim: &Aim,
        step: &mut CompactStep,
    ) -> Result<Option<Work>, StoreError> {
        let world = self.world();
        match &mut job.phase {
            Phase::Tombstones(pages) => match pages.next_page()? {
                Some(page) => {
                    step.read += page.cost;
                    job.note_tombstones(&page.entries, world);
                }
                None => {
                    // What stands in a pack that cannot be read may have to be buried for ever (STO-24).
                    if world.packs.is_any_aside_before(job.pack) {
                        for tombstone in job.tombstones.values_mut() {
                            tombstone.needed = true;
                        }
                    }
                    let older = world.packs.all().into_iter();
                    let older =
                        older.filter(|(number, pack)| *number < job.pack && pack.dead() > 0);
                    let older = if job.tombstones.is_empty() {
                        Vec::new()
                    } else {
                        older.map(|(number, _)| number).collect()
                    };
                    job.phase = Phase::Older(older, None);
                }
            },
            Phase::Older(older, pages) => {
                let page = match pages {
                    Some(pages) => pages.next_page()?,
                    None => None,
                };
                if let Some(page) = page {
                    step.read += page.cost;
                    for entry in page.entries.iter().filter(|entry| entry.kind == BLOCK) {
                        let fp = world.index.fingerprint(&entry.tag);
                        if let Some(tombstone) = job.tombstones.get_mut(&fp) {
                            tombstone.needed = true;
                        }
                    }
                } else if let Some(next) = older.pop() {
                    *pages = world.packs.pages(next)?;
                } else if job.is_worth_it(aim, world) {
                    let pages = world.packs.pages(job.pack)?;
                    let Some(pages) = pages else { return Ok(None) };
                    job.phase = Phase::Copy(pages, VecDeque::new());
                } else {
                    job.leave(world);
                    return Ok(None);
                }
            }
            Phase::Copy(pages, entries) => {
                if entries.is_empty() {
                    let Some(page) = pages.next_page()? else {
                        return Ok(job.end(world));
                    };
                    step.read += page.cost;
                    entries.extend(page.entries);
                }
                let left = aim.budget.saturating_sub(step.cost());
                let group = read_group(self, &mut job, left.clamp(1, GROUP_BYTES), step)?;
                if !group.is_empty() {
                    let blocks = group.iter().filter(|moving| moving.from.is_some()).count() as u64;
                    let outcome = self.submit(Op::Move(group))?;
                    job.stuck += outcome.stuck;
                    step.copied += outcome.bytes;
                    step.moved += blocks.min(outcome.done);
                }
            }
        }
        Ok(Some(Work::Copy(job)))
    }

    /// The pack's frames are all dead, and what they were stands elsewhere, durable.
    fn remove_pack(&self, pack: u32, step: &mut CompactStep) -> Result<(), StoreError> {
        let world = self.world();
        let disk = world.packs.disk();
        let used = world.packs.get(pack).map_or(0, |pack| pack.used());
        match disk.unlink(&world.packs.path(pack)) {
            // An earlier step came so far and no further.
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(StoreError::io(e)),
            _ => {}
        }
        // A later removal may rest on this one: a tombstone that goes because the block it buries is nowhere any more.
        disk.sync_dir(&world.packs.layout().dir)
            .map_err(StoreError::io)?;
        world.packs.forget(pack);
        for number in world.packs.numbers() {
            world.packs.note(number, |pack| pack.stuck_at = None);
        }
        world
            .counters
            .freed
            .fetch_add(used, std::sync::atomic::Ordering::Relaxed);
        step.removed += used;
        Ok(())
    }

    fn punch_on(
        &self,
        mut punching: Box<Punching>,
        step: &mut CompactStep,
        cannot_punch: &mut bool,
    ) -> Result<Option<Work>, StoreError> {
        let world = self.world();
        let Some(entry) = punching.entries.pop_front() else {
            let Some(page) = punching.pages.next_page()? else {
                punching.end(world, step)?;
                return Ok(None);
            };
            step.read += page.cost;
            punching.entries.extend(page.entries);
            return Ok(Some(Work::Punch(punching)));
        };
        let Some((at, len)) = inner_pages(&entry, self.config().punch_from) else {
            return Ok(Some(Work::Punch(punching)));
        };
        let place = Place::new(punching.pack, entry.at);
        let located = world.index.locate(world.index.fingerprint(&entry.tag));
        if located.is_some_and(|located| located.place == place) {
            return Ok(Some(Work::Punch(punching)));
        }
        // What made the frame dead is durable, or the index would not show it.
        match punching.file.punch(at, len) {
            Ok(()) => step.holes += 1,
            Err(e) if e.kind() == io::ErrorKind::Unsupported => {
                *cannot_punch = true;
                return Ok(None);
            }
            Err(e) => return Err(StoreError::io(e)),
        }
        Ok(Some(Work::Punch(punching)))
    }
}

impl Compactor {
    /// What was begun, or what promises most; `None` if nothing does.
    fn next_work(
        &mut self,
        store: &Store,
        aim: &Aim,
        step: &mut CompactStep,
    ) -> Result<Option<Work>, StoreError> {
        if let Some(work) = self.work.take() {
            return Ok(Some(work));
        }
        loop {
            let Some((pack, begun)) = self.begin(store, aim) else {
                return Ok(None);
            };
            match begun {
                Ok(work) => return Ok(Some(work)),
                // It is not chosen again: that is what ends the loop.
                Err(e) => store.give_up(pack, e, step)?,
            }
        }
    }

    /// The pack that promises most, and the work on it.
    fn begin(&self, store: &Store, aim: &Aim) -> Option<(u32, Result<Work, StoreError>)> {
        let world = store.world();
        let packs = world.packs.all();
        if !self.cannot_punch
            && let Some((number, pack)) = packs.iter().find(|(_, pack)| wants_punching(pack))
        {
            return Some((*number, Punching::begin(*number, pack, world)));
        }
        let room = store
            .config()
            .limits()
            .all
            .saturating_sub(world.packs.disk_bytes());
        let roll_from = store.config().effective_pack_bytes() / 16;
        // A copy would stand behind the pack that was set aside: a block that is buried there would live again, and a tombstone would
        // take a block that was put there later.
        let aside = world.packs.last_aside();
        let sparsest = packs
            .iter()
            .filter(|(number, _)| *number > aside)
            .filter(|(_, pack)| wants_copying(pack, aim, roll_from) && pack.live <= room)
            .min_by_key(|(_, pack)| pack.live * 1000 / pack.weight().max(1));
        sparsest.map(|(number, _)| (*number, Job::begin(*number, store)))
    }
}

fn wants_punching(pack: &Pack) -> bool {
    let dead = pack.dead();
    pack.sealed
        && !pack.strange
        && pack.live * 100 >= pack.len * NOT_WORTH_PUNCHING
        && dead.saturating_sub(pack.holes) * 8 >= pack.used()
        && dead >= pack.punched_at + pack.len / 16
}

fn wants_copying(pack: &Pack, aim: &Aim, roll_from: u64) -> bool {
    is_sparse(pack, pack.live, aim)
        && !pack.strange
        && (aim.damaged || !pack.damaged)
        && pack.stuck_at != Some(pack.live)
        // A pack that never held anything keeps its number from being used twice.
        && pack.len > gemba_segment::FILE_HEADER as u64
        // The pack that is written to is ended for it only if that is worth a new file.
        && (pack.closed || pack.weight() - pack.live.min(pack.weight()) >= roll_from.max(1))
}

/// Whether a pack is worth copying if so much of it has to be. What is copied is smaller by a tenth or has no holes any more,
/// so copying ends.
fn is_sparse(pack: &Pack, copied: u64, aim: &Aim) -> bool {
    let weight = pack.weight();
    copied * 100 < weight * u64::from(aim.below)
        || (pack.holes > 0 && copied <= weight && pack.live * 100 < pack.len * REMNANT)
        // Nothing is in it.
        || (pack.closed && copied == 0)
}

impl Job {
    fn begin(number: u32, store: &Store) -> Result<Work, StoreError> {
        // Nothing may be written to it any more, and another pack must have a larger number: numbers are not used twice.
        if store.world().packs.last() == Some(number)
            || !store
                .world()
                .packs
                .get(number)
                .is_some_and(|pack| pack.closed)
        {
            store.roll(number)?;
        }
        let pages = store.world().packs.pages(number)?;
        let Some(pages) = pages else {
            return Ok(Work::Remove(number));
        };
        Ok(Work::Copy(Box::new(Self {
            pack: number,
            phase: Phase::Tombstones(pages),
            tombstones: HashMap::default(),
            unseen: 0,
            stuck: 0,
        })))
    }

    fn note_tombstones(&mut self, entries: &[Entry], world: &World) {
        for entry in entries.iter().filter(|entry| entry.kind == TOMBSTONE) {
            let fp = world.index.fingerprint(&entry.tag);
            if world.index.locate(fp).is_some() {
                // A later frame brought the block back.
                continue;
            }
            if self.tombstones.len() >= TOMBSTONES && !self.tombstones.contains_key(&fp) {
                self.unseen += entry.frame_len();
                continue;
            }
            let tombstone = Tombstone {
                frame_len: entry.frame_len() as u32,
                needed: false,
            };
            self.tombstones.insert(fp, tombstone);
        }
    }

    /// With the tombstones that have to be copied too. What is not worth it now may be when other packs are gone.
    fn is_worth_it(&self, aim: &Aim, world: &World) -> bool {
        let Some(pack) = world.packs.get(self.pack) else {
            return false;
        };
        let needed = self.tombstones.values().filter(|t| t.needed);
        let needed: u64 = needed.map(|t| u64::from(t.frame_len)).sum();
        is_sparse(&pack, pack.live + needed + self.unseen, aim)
    }

    fn leave(&self, world: &World) {
        world
            .packs
            .note(self.pack, |pack| pack.stuck_at = Some(pack.live));
    }

    /// Every frame was looked at.
    fn end(&self, world: &World) -> Option<Work> {
        let live = world.packs.get(self.pack)?.live;
        if self.stuck > 0 || live > 0 {
            self.leave(world);
            return None;
        }
        Some(Work::Remove(self.pack))
    }
}

/// Reads the next frames that have to be written once more.
fn read_group(
    store: &Store,
    job: &mut Job,
    bytes: u64,
    step: &mut CompactStep,
) -> Result<Vec<Moving>, StoreError> {
    let Phase::Copy(_, entries) = &mut job.phase else {
        return Ok(Vec::new());
    };
    let world = store.world();
    let reader = world.packs.reader(job.pack).map_err(StoreError::io)?;
    let mut group = Vec::new();
    let mut read = 0;
    while read < bytes
        && group.len() < GROUP_FRAMES
        && let Some(entry) = entries.pop_front()
    {
        let fp = world.index.fingerprint(&entry.tag);
        let place = Place::new(job.pack, entry.at);
        let from = match entry.kind {
            BLOCK => match world.index.locate(fp) {
                Some(located) if located.place == place => Some(place),
                _ => continue,
            },
            TOMBSTONE => {
                if let Some(tombstone) = job.tombstones.get_mut(&fp)
                    && !std::mem::take(&mut tombstone.needed)
                {
                    // Not needed, or copied already: a pack holds two of a key if a copy was cut off and begun again.
                    continue;
                }
                None
            }
            _ => continue,
        };
        read += entry.frame_len();
        match reader.read(entry.at, entry.tag.len(), entry.len as usize, true) {
            Ok(frame) if frame.kind == entry.kind && frame.tag() == entry.tag => {
                let (bytes, at) = frame.into_bytes();
                let frame = Frame::new(entry.kind, entry.tag, Bytes::from(bytes).slice(at..))?;
                group.push(Moving { fp, frame, from });
            }
            Err(ReadError::Io(e)) if !is_unreadable(&e) => return Err(StoreError::io(e)),
            // A tombstone needs no more than its name, which the footer has too.
            _ if from.is_none() => {
                let frame = Frame::new(TOMBSTONE, entry.tag, Bytes::new())?;
                group.push(Moving { fp, frame, from });
            }
            _ => {
                job.stuck += 1;
                let block = CorruptBlock {
                    cid: Multihash::from_bytes(&entry.tag)
                        .ok()
                        .map(|hash| Cid::new_v1(RAW, hash)),
                    pack: job.pack,
                    offset: entry.at,
                    cause: "found damaged while it was copied".to_owned(),
                };
                store.found_damaged(fp, place, block.clone());
                step.corrupt.push(block);
            }
        }
    }
    step.read += read;
    Ok(group)
}

impl Punching {
    fn begin(number: u32, pack: &Pack, world: &World) -> Result<Work, StoreError> {
        let file = world
            .packs
            .disk()
            .open(&world.packs.path(number), Mode::Write)
            .map_err(StoreError::io)?;
        // Tried now, whatever comes of it: not again before more is dead.
        world
            .packs
            .note(number, |known| known.punched_at = pack.dead());
        let pages = world.packs.pages(number)?;
        let Some(pages) = pages else {
            return Ok(Work::Remove(number));
        };
        Ok(Work::Punch(Box::new(Self {
            pack: number,
            dead: pack.dead(),
            file,
            pages,
            entries: VecDeque::new(),
        })))
    }

    /// Asks the file system what came of it.
    fn end(&self, world: &World, step: &mut CompactStep) -> Result<(), StoreError> {
        let allocated = self.file.allocated().map_err(StoreError::io)?;
        world.packs.note(self.pack, |pack| {
            let holes = pack.len.saturating_sub(allocated);
            step.punched += holes.saturating_sub(pack.holes);
            pack.holes = holes;
            pack.punched_at = self.dead;
        });
        Ok(())
    }
}

/// The pages that lie wholly inside a block's payload, if they are worth a hole. Header and tag stay: the frame is still one.
fn inner_pages(entry: &Entry, least: u64) -> Option<(u64, u64)> {
    if entry.kind != BLOCK {
        return None;
    }
    let payload = entry.end() - u64::from(entry.len);
    let (from, to) = (payload.next_multiple_of(PAGE), entry.end() / PAGE * PAGE);
    (to >= from + least.max(PAGE)).then(|| (from, to - from))
}
