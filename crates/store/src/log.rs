//! The writing end: one group at a time is planned, written, flushed, and only then shown in the index.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gemba_segment::{Frame, Mode, State, Writer};

use crate::ballast::Ballast;
use crate::config::Limits;
use crate::error::StoreError;
use crate::format::{MAX_PACK_NUMBER, TOMBSTONE};
use crate::guard::Guards;
use crate::index::{AlreadyHashed, Deleting, Fingerprint, Index, Located, Place, Reason, Renewed};
use crate::packs::Packs;

/// Frames after which a pack is sealed, however few bytes they have: what opening has to walk after a kill, where a footer
/// (which is the index up to there) does not name them. On an SD card of 20 MiB/s that is 3 s of 1 KiB blocks.
const PACK_FRAMES: u64 = 64 << 10;

/// A pack and its writing side.
pub(crate) type PackWriter = (u32, Writer);

/// What a caller brings to a group.
#[derive(Debug)]
pub(crate) enum Op {
    Put(Vec<Candidate>),
    Delete(Reason, Vec<(Fingerprint, Vec<u8>)>),
    /// Compaction: frames of a pack that is to go, written once more.
    Move(Vec<Moving>),
}

impl Op {
    /// Whether nobody waits for it: it may wait for others, with whom it shares a flush.
    pub(crate) fn is_patient(&self) -> bool {
        match self {
            Self::Put(_) | Self::Delete(Reason::Asked, _) => false,
            Self::Delete(Reason::Collected, _) | Self::Move(_) => true,
        }
    }
}

/// A frame that compaction has read from its old place.
#[derive(Debug)]
pub(crate) struct Moving {
    pub(crate) fp: Fingerprint,
    pub(crate) frame: Frame<Bytes>,
    /// Where a block stood; `None` for a tombstone.
    pub(crate) from: Option<Place>,
}

/// A block that was not found in the index when its caller looked.
#[derive(Debug)]
pub(crate) struct Candidate {
    pub(crate) fp: Fingerprint,
    pub(crate) frame: Frame<Bytes>,
}

/// What a caller gets back. Fields that do not belong to its operation are zero.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Blocks written, or deleted.
    pub(crate) done: u64,
    /// Their payload bytes.
    pub(crate) bytes: u64,
    /// Blocks that were there already, or that were absent.
    pub(crate) idle: u64,
    /// Blocks that a guard keeps from being deleted.
    pub(crate) guarded: u64,
    /// Blocks that could not be moved now, because a deletion of them is under way or they are damaged.
    pub(crate) stuck: u64,
}

/// Counters of the writing end, for `stat` and metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) groups: AtomicU64,
    pub(crate) written: AtomicU64,
    pub(crate) moved: AtomicU64,
    pub(crate) freed: AtomicU64,
    pub(crate) collected: AtomicU64,
    pub(crate) collected_bytes: AtomicU64,
    pub(crate) failures: AtomicU64,
    pub(crate) blocks: AtomicU64,
    pub(crate) bytes: AtomicU64,
}

/// The pack that is written to.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) writer: Option<PackWriter>,
    /// The largest number that a pack has or had.
    pub(crate) last_number: u32,
    pub(crate) pack_bytes: u64,
    pub(crate) limits: Limits,
    pub(crate) ballast: Ballast,
    pub(crate) doubt: Option<Doubt>,
}

/// A group failed, and frames of it may stand in its pack all the same: a flush that fails may have written everything, and a cut that was not
/// flushed may be lost. Until the pack is cut for sure, what they would say when the store is opened again is not what callers were told.
#[derive(Debug)]
pub(crate) struct Doubt {
    pack: u32,
    /// Where the group begins.
    len: u64,
    /// Blocks whose deletion may stand there. They stay marked as dying: a put writes them again, and a guard does not trust them.
    dying: Vec<Fingerprint>,
}

/// What the writing end works on.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) index: Arc<Index>,
    pub(crate) packs: Arc<Packs>,
    pub(crate) guards: Arc<Guards>,
    pub(crate) counters: Arc<Counters>,
}

impl World {
    /// Whether a put may leave a block as it is; renews its guard. What stands before a pack that was set aside may be buried by it, and is
    /// written again: it has to last also when that pack comes back.
    pub(crate) fn is_there_for_good(&self, fp: Fingerprint) -> bool {
        if self.index.renew(fp, &self.guards) != Renewed::Present {
            return false;
        }
        let aside = self.packs.last_aside();
        let stands_behind = |located: Located| located.place.pack() > aside;
        aside == 0 || self.index.locate(fp).is_some_and(stands_behind)
    }
}

impl Log {
    /// Carries out a group. Gives one result an operation, and the writer of a pack that is full now and wants a footer.
    pub(crate) fn flush(
        &mut self,
        ops: Vec<Op>,
        world: &World,
    ) -> (Vec<Result<Outcome, StoreError>>, Option<PackWriter>) {
        if let Err(e) = self.settle(world) {
            world.counters.failures.fetch_add(1, Ordering::Relaxed);
            return (ops.iter().map(|_| Err(e.clone())).collect(), None);
        }
        let mut plan = Plan::new(world.packs.disk_bytes(), self.limits);
        // While the ballast is given up, what room there is belongs to what makes room.
        let has_puts = ops.iter().any(|op| matches!(op, Op::Put(_)));
        let full = has_puts
            .then(|| self.ballast.regain(world.packs.disk().as_ref()))
            .flatten();
        let mut outcomes: Vec<Planned> = ops
            .into_iter()
            .map(|op| match (&op, &full) {
                (Op::Put(_), Some(full)) => Planned::refused(StoreError::Full(Arc::clone(full))),
                _ => plan.take(op, world),
            })
            .collect();
        let mut full_pack = None;
        let mut written = self.write(&plan, world, &mut full_pack);
        if let Err(StoreError::Full(e)) = &written
            && plan.has_more_than_puts()
            && self.ballast.give_up(world.packs.disk().as_ref())
        {
            // The room that was kept is for what makes room: puts of this group are refused.
            let refused = StoreError::Full(Arc::clone(e));
            plan.drop_puts();
            for planned in outcomes.iter_mut().filter(|p| p.needs_puts) {
                planned.result = Err(refused.clone());
            }
            let mut again = None;
            written = self.write(&plan, world, &mut again);
            full_pack = full_pack.or(again);
        }
        match written {
            Ok(Some((pack, offsets))) => plan.apply(pack, &offsets, world),
            Ok(None) => {}
            Err(e) => {
                world.counters.failures.fetch_add(1, Ordering::Relaxed);
                self.cancel(&plan, world);
                for planned in outcomes.iter_mut().filter(|p| p.leans) {
                    planned.result = Err(e.clone());
                }
            }
        }
        (outcomes.into_iter().map(|p| p.result).collect(), full_pack)
    }

    /// Writes what was planned; `None` if that is nothing.
    fn write(
        &mut self,
        plan: &Plan,
        world: &World,
        full: &mut Option<PackWriter>,
    ) -> Result<Option<(u32, Vec<u64>)>, StoreError> {
        if plan.frames.is_empty() {
            return Ok(None);
        }
        self.settle(world)?;
        self.commit(&plan.frames, world, full).map(Some)
    }

    /// Ends the pack that is written to, if it is this one, and begins the next. Gives the writer, which wants a footer.
    pub(crate) fn roll(
        &mut self,
        number: u32,
        world: &World,
    ) -> Result<Option<PackWriter>, StoreError> {
        match self.writer.take() {
            Some((current, writer)) if current == number => {
                match self.begin_pack(world) {
                    Ok(next) => self.writer = Some(next),
                    Err(e) => {
                        self.writer = Some((current, writer));
                        return Err(e);
                    }
                }
                world.packs.note(current, |pack| pack.closed = true);
                Ok(Some((current, writer)))
            }
            other => {
                self.writer = other;
                // No pack is written to, and none is larger: one that has this number for sure must stay behind it.
                if self.writer.is_none() && self.last_number == number {
                    self.writer = Some(self.begin_pack(world)?);
                }
                Ok(None)
            }
        }
    }

    /// Writes and flushes frames into one pack.
    fn commit(
        &mut self,
        frames: &[Frame<Bytes>],
        world: &World,
        full: &mut Option<PackWriter>,
    ) -> Result<(u32, Vec<u64>), StoreError> {
        let size: u64 = frames.iter().map(Frame::frame_len).sum();
        let has_room = |number, writer: &Writer| {
            let count = world.packs.get(number).map_or(0, |pack| pack.count);
            writer.end() + size <= self.pack_bytes && count < PACK_FRAMES
        };
        let (number, mut writer) = match self.writer.take() {
            Some((number, writer)) if has_room(number, &writer) => (number, writer),
            Some((number, writer)) if writer.end() <= gemba_segment::FILE_HEADER as u64 => {
                // A group larger than a pack gets a pack of its own.
                (number, writer)
            }
            other => {
                if let Some((number, _)) = &other {
                    world.packs.note(*number, |pack| pack.closed = true);
                }
                *full = other;
                self.begin_pack(world)?
            }
        };
        match writer.commit(frames) {
            Ok(offsets) => {
                world.packs.set_len(number, writer.end());
                let lens = |frame: &Frame<Bytes>| (frame.tag().len(), frame.frame_len());
                world.packs.add_frames(number, frames.iter().map(lens));
                world.counters.groups.fetch_add(1, Ordering::Relaxed);
                world.counters.written.fetch_add(size, Ordering::Relaxed);
                self.writer = Some((number, writer));
                Ok((number, offsets))
            }
            Err(e) => {
                self.doubt = Some(Doubt {
                    pack: number,
                    len: writer.end(),
                    dying: Vec::new(),
                });
                // A poisoned writer is given up: the next group gets a file of its own, written and flushed from scratch.
                if !writer.is_poisoned() {
                    self.writer = Some((number, writer));
                    return Err(e.into());
                }
                world.packs.note(number, |pack| pack.closed = true);
                if writer.end() <= gemba_segment::FILE_HEADER as u64 {
                    // Nothing is in it: the next try uses the same number.
                    self.last_number = number - 1;
                }
                Err(e.into())
            }
        }
    }

    /// The group was not written: deletions are undone, at once if nothing of it is left on the disk.
    fn cancel(&mut self, plan: &Plan, world: &World) {
        let dying = plan.deletions();
        match &mut self.doubt {
            Some(doubt) => doubt.dying.extend(dying),
            None => dying.for_each(|fp| world.index.cancel_delete(fp)),
        }
        // The error of the group is what its callers are told; the next group tries again.
        let _ = self.settle(world);
    }

    /// Cuts what a failed group left, and makes that durable. Nothing is written or told before.
    fn settle(&mut self, world: &World) -> Result<(), StoreError> {
        let Some(doubt) = &self.doubt else {
            return Ok(());
        };
        let path = world.packs.path(doubt.pack);
        let cut = || {
            let file = world.packs.disk().open(&path, Mode::Write)?;
            file.set_len(doubt.len)?;
            file.sync_data()
        };
        match cut() {
            // Compaction removed it meanwhile, and what it left with it.
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            cut => cut.map_err(StoreError::io)?,
        }
        for fp in &doubt.dying {
            world.index.cancel_delete(*fp);
        }
        self.doubt = None;
        Ok(())
    }

    fn begin_pack(&mut self, world: &World) -> Result<PackWriter, StoreError> {
        loop {
            let number = self.last_number + 1;
            if number > MAX_PACK_NUMBER {
                return Err(StoreError::TooManyPacks);
            }
            let writer = gemba_segment::create(
                world.packs.disk().as_ref(),
                &world.packs.path(number),
                world.packs.identity(number),
            );
            let writer = match writer {
                // Bounded by the frames of a pack: 3.3 MiB of small blocks, 60 KiB of large ones.
                Ok(writer) => writer.remembering(),
                // A pack that was given up after a failed flush, and could not be cut.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.last_number = number;
                    continue;
                }
                Err(e) => return Err(StoreError::io(e)),
            };
            self.last_number = number;
            world.packs.begin(number);
            world.packs.set_len(number, writer.end());
            world.packs.keep(number, writer.reader());
            return Ok((number, writer));
        }
    }
}

/// Gives a full pack its footer. Not while others wait: one that was begun before the store was opened is read once more for it.
pub(crate) fn seal(number: u32, writer: Writer, packs: &Packs) -> Result<(), StoreError> {
    let reader = writer.reader();
    let end = writer.durable();
    let len = writer.seal(|push| {
        let mut walk = reader.walk(end);
        while let Some(step) = walk.next_step()? {
            if let gemba_segment::Step::Frame(entry, _) = step
                && !entry.kind.is_internal()
            {
                push(&entry);
            }
        }
        Ok(())
    })?;
    packs.sealed(number, len);
    Ok(())
}

/// Gives a footer to a pack that was found without one when the store opened.
pub(crate) fn seal_found(
    number: u32,
    state: State,
    report: &gemba_segment::Report,
    packs: &Packs,
) -> Result<(), StoreError> {
    match state {
        State::Open {
            writer: Some(writer),
            ..
        } => seal(number, writer, packs),
        State::Damaged(damaged) => {
            if let Some(len) = damaged.seal(report)? {
                packs.sealed(number, len);
            }
            Ok(())
        }
        State::Unfinished | State::Open { writer: None, .. } | State::Sealed(_) => Ok(()),
    }
}

/// What is known of an operation before its group is written.
#[derive(Debug)]
struct Planned {
    result: Result<Outcome, StoreError>,
    /// Whether the result depends on the group being written.
    leans: bool,
    /// Whether it depends on the puts of the group being written: one of them, or a tombstone that was left where it is because of one.
    needs_puts: bool,
}

impl Planned {
    fn refused(error: StoreError) -> Self {
        Self {
            result: Err(error),
            leans: false,
            needs_puts: false,
        }
    }
}

/// What a group will write, and what that will mean.
#[derive(Debug)]
struct Plan {
    frames: Vec<Frame<Bytes>>,
    effects: Vec<Effect>,
    /// What this group makes of a block: there (`true`) or gone.
    fate: HashMap<Fingerprint, bool, AlreadyHashed>,
    /// Bytes on the disk when the group is written.
    used: u64,
    limits: Limits,
    /// The operation that was taken in last does not move a tombstone, because this group puts its block.
    leaves_tombstones: bool,
}

/// One for each frame.
#[derive(Clone, Copy, Debug)]
struct Effect {
    fp: Fingerprint,
    change: Change,
    frame_len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// A block of so many bytes.
    Put(u32),
    Delete,
    /// The block that stood there.
    Move(Place),
    /// A tombstone that is needed further on.
    Bury,
}

impl Plan {
    fn new(used: u64, limits: Limits) -> Self {
        Self {
            frames: Vec::new(),
            effects: Vec::new(),
            fate: HashMap::default(),
            used,
            limits,
            leaves_tombstones: false,
        }
    }

    /// Takes an operation in: what it will have done, and whether that depends on this group being written. An operation that
    /// goes beyond its limit is refused as a whole, and leaves no trace in the group.
    fn take(&mut self, op: Op, world: &World) -> Planned {
        let is_put = matches!(op, Op::Put(_));
        let limit = if is_put {
            self.limits.puts
        } else {
            self.limits.all
        };
        let (frames, used) = (self.frames.len(), self.used);
        let mut undo = Vec::new();
        self.leaves_tombstones = false;
        let (outcome, leans) = self.add(op, world, &mut undo);
        let needs_puts = leans && (is_put || self.leaves_tombstones);
        let result = if self.used > limit && self.used > used {
            let needed = self.used - used;
            self.take_back(frames, used, undo, world);
            Err(StoreError::NoSpace {
                needed,
                used,
                limit,
            })
        } else {
            Ok(outcome)
        };
        Planned {
            leans: leans && result.is_ok(),
            needs_puts: needs_puts && result.is_ok(),
            result,
        }
    }

    fn add(&mut self, op: Op, world: &World, undo: &mut Undo) -> (Outcome, bool) {
        let mut outcome = Outcome::default();
        let mut leans = false;
        match op {
            Op::Put(candidates) => {
                for candidate in candidates {
                    leans |= self.put(candidate, world, &mut outcome, undo);
                }
            }
            Op::Delete(why, keys) => {
                for (fp, key) in keys {
                    leans |= self.delete(fp, key, why, world, &mut outcome, undo);
                }
            }
            Op::Move(frames) => {
                for moving in frames {
                    leans |= self.relocate(moving, world, &mut outcome);
                }
            }
        }
        (outcome, leans)
    }

    /// Callers looked before they queued; meanwhile another one may have written the same block. The look that counts is here,
    /// where groups are one after the other.
    fn put(
        &mut self,
        candidate: Candidate,
        world: &World,
        outcome: &mut Outcome,
        undo: &mut Undo,
    ) -> bool {
        let Candidate { fp, frame } = candidate;
        match self.fate.get(&fp) {
            Some(true) => {
                outcome.idle += 1;
                return true;
            }
            Some(false) => {}
            None => {
                if world.is_there_for_good(fp) {
                    outcome.idle += 1;
                    return false;
                }
            }
        }
        outcome.done += 1;
        outcome.bytes += frame.payload().len() as u64;
        undo.push((fp, self.fate.insert(fp, true)));
        self.push(fp, Change::Put(frame.payload().len() as u32), frame);
        true
    }

    fn delete(
        &mut self,
        fp: Fingerprint,
        key: Vec<u8>,
        why: Reason,
        world: &World,
        outcome: &mut Outcome,
        undo: &mut Undo,
    ) -> bool {
        let bytes = match self.fate.get(&fp) {
            Some(false) => {
                outcome.idle += 1;
                return true;
            }
            // Put by this very group, so any guard there is protects it.
            Some(true) if world.guards.count() > 0 => {
                outcome.guarded += 1;
                return false;
            }
            Some(true) => 0,
            None => match world.index.begin_delete(fp, &world.guards, why) {
                Deleting::Absent if world.packs.last_aside() == 0 => {
                    outcome.idle += 1;
                    return false;
                }
                Deleting::Absent => {
                    // It may stand in a pack that was set aside, and must not come back with it.
                    outcome.idle += 1;
                    return self.bury(fp, key, undo);
                }
                Deleting::Guarded => {
                    outcome.guarded += 1;
                    return false;
                }
                Deleting::Begun(located) => u64::from(located.len),
            },
        };
        if !self.bury(fp, key, undo) {
            return false;
        }
        outcome.done += 1;
        outcome.bytes += bytes;
        true
    }

    fn bury(&mut self, fp: Fingerprint, key: Vec<u8>, undo: &mut Undo) -> bool {
        let Ok(frame) = Frame::new(TOMBSTONE, key, Bytes::new()) else {
            // A multihash is no longer than a tag.
            return false;
        };
        undo.push((fp, self.fate.insert(fp, false)));
        self.push(fp, Change::Delete, frame);
        true
    }

    /// A block moves only if it still stands where it was read and nothing is being done to it; a tombstone only if its block
    /// is not there.
    fn relocate(&mut self, moving: Moving, world: &World, outcome: &mut Outcome) -> bool {
        let Moving { fp, frame, from } = moving;
        let located = world.index.locate(fp);
        let change = match (from, located) {
            (Some(from), Some(located)) if located.place == from => {
                if located.bad || located.dying {
                    outcome.stuck += 1;
                    return false;
                }
                Change::Move(from)
            }
            (None, None) if !self.fate.contains_key(&fp) => Change::Bury,
            // Written again, deleted, or moved: what this group or an earlier one wrote says more than this frame does.
            _ => {
                outcome.idle += 1;
                self.leaves_tombstones |= self.fate.get(&fp) == Some(&true);
                return self.fate.contains_key(&fp);
            }
        };
        outcome.done += 1;
        outcome.bytes += frame.frame_len();
        self.push(fp, change, frame);
        true
    }

    fn push(&mut self, fp: Fingerprint, change: Change, frame: Frame<Bytes>) {
        let frame_len = frame.frame_len();
        self.used += frame_len;
        self.effects.push(Effect {
            fp,
            change,
            frame_len,
        });
        self.frames.push(frame);
    }

    /// Makes the group what it was before an operation.
    fn take_back(&mut self, frames: usize, used: u64, undo: Undo, world: &World) {
        for effect in &self.effects[frames..] {
            if effect.change == Change::Delete {
                world.index.cancel_delete(effect.fp);
            }
        }
        self.frames.truncate(frames);
        self.effects.truncate(frames);
        self.used = used;
        for (fp, before) in undo.into_iter().rev() {
            match before {
                Some(fate) => self.fate.insert(fp, fate),
                None => self.fate.remove(&fp),
            };
        }
    }

    fn has_more_than_puts(&self) -> bool {
        let is_put = |effect: &Effect| matches!(effect.change, Change::Put(_));
        !self.effects.iter().all(is_put)
    }

    /// Leaves out what puts wanted to write. A tombstone for a block that is then never written does no harm.
    fn drop_puts(&mut self) {
        let effects = std::mem::take(&mut self.effects);
        let frames = std::mem::take(&mut self.frames);
        for (effect, frame) in effects.into_iter().zip(frames) {
            if !matches!(effect.change, Change::Put(_)) {
                self.effects.push(effect);
                self.frames.push(frame);
            }
        }
    }

    /// The group is durable: shows it, in the order of the file.
    fn apply(&self, pack: u32, offsets: &[u64], world: &World) {
        let stamp = world.guards.now();
        let used = world.index.now();
        // Counted in before anything is counted out: a group may replace what it put itself.
        let mut blocks = 0;
        let mut bytes = 0;
        for effect in &self.effects {
            match effect.change {
                Change::Put(len) => {
                    world.packs.add_block(pack, effect.frame_len);
                    blocks += 1;
                    bytes += u64::from(len);
                }
                Change::Move(_) => world.packs.add_block(pack, effect.frame_len),
                Change::Delete | Change::Bury => {}
            }
        }
        world.counters.blocks.fetch_add(blocks, Ordering::Relaxed);
        world.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        for (effect, offset) in self.effects.iter().zip(offsets) {
            let place = Place::new(pack, *offset);
            let header = match effect.change {
                Change::Put(len) => effect.frame_len - u64::from(len),
                _ => effect.frame_len,
            };
            let replaced = match effect.change {
                Change::Put(len) => world.index.insert(effect.fp, place, len, stamp, used),
                Change::Delete => world.index.remove(effect.fp),
                Change::Bury => {
                    let moved = &world.counters.moved;
                    moved.fetch_add(effect.frame_len, Ordering::Relaxed);
                    None
                }
                Change::Move(from) => {
                    // Groups are one after the other, and within one a block is moved before it is deleted or written again.
                    let moved = world.index.relocate(effect.fp, from, place);
                    let dead = if moved { from.pack() } else { pack };
                    world.packs.sub_live(dead, effect.frame_len);
                    let moved = if moved { effect.frame_len } else { 0 };
                    world.counters.moved.fetch_add(moved, Ordering::Relaxed);
                    None
                }
            };
            if let Some(old) = replaced {
                // Both frames have the same tag; a tombstone is as long as a frame without payload.
                let dead = header + u64::from(old.len);
                world.packs.sub_live(old.place.pack(), dead);
                count_out(&world.counters, old.len);
            }
        }
    }

    /// The blocks whose deletion was begun.
    fn deletions(&self) -> impl Iterator<Item = Fingerprint> {
        let deletions = self.effects.iter();
        deletions
            .filter(|effect| effect.change == Change::Delete)
            .map(|effect| effect.fp)
    }
}

/// Fates that an operation changed, with what they were.
type Undo = Vec<(Fingerprint, Option<bool>)>;

pub(crate) fn count_in(counters: &Counters, len: u32) {
    counters.blocks.fetch_add(1, Ordering::Relaxed);
    counters.bytes.fetch_add(u64::from(len), Ordering::Relaxed);
}

pub(crate) fn count_out(counters: &Counters, len: u32) {
    counters.blocks.fetch_sub(1, Ordering::Relaxed);
    counters.bytes.fetch_sub(u64::from(len), Ordering::Relaxed);
}

/// A writer that [`Access::Write`] gave, if the pack can take more.
pub(crate) fn writable(state: State, pack_bytes: u64) -> Result<Writer, State> {
    match state {
        State::Open {
            end,
            writer: Some(writer),
        } if end < pack_bytes => Ok(writer),
        other => Err(other),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::path::Path;

    use gemba_block::Block;
    use gemba_testkit::disk::{Call, SimDisk};

    use super::*;
    use crate::format::BLOCK;
    use crate::{Config, Store};

    /// A group moved a tombstone and put its block. The disk was full, the put was refused, and the tombstone was told to be moved although
    /// nothing of it had been written: compaction then removed the pack with the only one, and an older frame of the block lived again.
    #[test]
    fn a_tombstone_that_waited_for_a_put_is_not_moved_without_it() {
        let sim = SimDisk::new(1);
        let disk: Arc<dyn gemba_segment::Disk> = Arc::new(sim.clone());
        let store = Store::open_on(disk, Path::new("/repo/blocks"), Config::default()).unwrap();
        let world = store.world();
        let mut log = Log {
            writer: None,
            last_number: 7,
            pack_bytes: 1 << 20,
            limits: Config::default().limits(),
            ballast: Ballast::new(&sim, "/repo/blocks/test".into(), 100_000),
            doubt: None,
        };
        let block = Block::raw("deleted, and put again").unwrap();
        let other = Block::raw("deleted").unwrap();
        let key = |block: &Block| block.cid().hash().to_bytes();
        let frame = |kind, block: &Block, payload| Frame::new(kind, key(block), payload).unwrap();
        let tombstone = |block: &Block| Moving {
            fp: world.index.fingerprint(&key(block)),
            frame: frame(TOMBSTONE, block, Bytes::new()),
            from: None,
        };
        let put = Candidate {
            fp: world.index.fingerprint(&key(&block)),
            frame: frame(BLOCK, &block, block.data().clone()),
        };
        let ops = vec![
            Op::Put(vec![put]),
            Op::Move(vec![tombstone(&block)]),
            Op::Move(vec![tombstone(&other)]),
        ];
        sim.fail(Call::WriteFull, 2, 1);
        let (results, _) = log.flush(ops, world);
        assert!(matches!(results[0], Err(StoreError::Full(_))));
        assert!(matches!(results[1], Err(StoreError::Full(_))));
        assert_eq!(results[2].as_ref().unwrap().done, 1);
    }
}
