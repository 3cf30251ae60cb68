//! The writing end: one group at a time is planned, written, flushed, and only then shown in the index.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use gemba_segment::{Frame, State, Writer};

use crate::error::StoreError;
use crate::format::{MAX_PACK_NUMBER, TOMBSTONE};
use crate::guard::Guards;
use crate::index::{AlreadyHashed, Deleting, Fingerprint, Index, Place, Renewed};
use crate::packs::Packs;

/// A pack and its writing side.
pub(crate) type PackWriter = (u32, Writer);

/// What a caller brings to a group.
#[derive(Debug)]
pub(crate) enum Op {
    Put(Vec<Candidate>),
    Delete(Vec<(Fingerprint, Vec<u8>)>),
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
}

/// Counters of the writing end, for `stat` and metrics.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) groups: AtomicU64,
    pub(crate) written: AtomicU64,
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
}

/// What the writing end works on.
#[derive(Clone, Debug)]
pub(crate) struct World {
    pub(crate) index: Arc<Index>,
    pub(crate) packs: Arc<Packs>,
    pub(crate) guards: Arc<Guards>,
    pub(crate) counters: Arc<Counters>,
}

impl Log {
    /// Carries out a group. Gives one result an operation, and the writer of a pack that is full now and wants a footer.
    pub(crate) fn flush(
        &mut self,
        ops: Vec<Op>,
        world: &World,
    ) -> (Vec<Result<Outcome, StoreError>>, Option<PackWriter>) {
        let mut plan = Plan::default();
        let outcomes: Vec<_> = ops.into_iter().map(|op| plan.add(op, world)).collect();
        if plan.frames.is_empty() {
            return (outcomes.into_iter().map(|(o, _)| Ok(o)).collect(), None);
        }
        let mut full = None;
        match self.commit(&plan.frames, world, &mut full) {
            Ok((pack, offsets)) => {
                plan.apply(pack, &offsets, world);
                (outcomes.into_iter().map(|(o, _)| Ok(o)).collect(), full)
            }
            Err(e) => {
                world.counters.failures.fetch_add(1, Ordering::Relaxed);
                plan.cancel(world);
                let results = outcomes
                    .into_iter()
                    .map(|(outcome, leans)| if leans { Err(e.clone()) } else { Ok(outcome) })
                    .collect();
                (results, full)
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
        let (number, mut writer) = match self.writer.take() {
            Some((number, writer)) if writer.end() + size <= self.pack_bytes => (number, writer),
            Some((number, writer)) if writer.end() <= gemba_segment::FILE_HEADER as u64 => {
                // A group larger than a pack gets a pack of its own.
                (number, writer)
            }
            other => {
                *full = other;
                self.begin_pack(world)?
            }
        };
        match writer.commit(frames) {
            Ok(offsets) => {
                world.packs.set_len(number, writer.end());
                world.counters.groups.fetch_add(1, Ordering::Relaxed);
                world.counters.written.fetch_add(size, Ordering::Relaxed);
                self.writer = Some((number, writer));
                Ok((number, offsets))
            }
            Err(e) => {
                // A poisoned writer is given up: the next group gets a file of its own, written and flushed from scratch.
                if !writer.is_poisoned() {
                    self.writer = Some((number, writer));
                } else if writer.end() <= gemba_segment::FILE_HEADER as u64 {
                    // Nothing is in it: the next try uses the same number.
                    self.last_number = number - 1;
                }
                Err(e.into())
            }
        }
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
                Ok(writer) => writer,
                // A pack that was given up after a failed flush, and could not be cut.
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
                    self.last_number = number;
                    continue;
                }
                Err(e) => return Err(StoreError::io(e)),
            };
            self.last_number = number;
            world.packs.set_len(number, writer.end());
            world.packs.keep(number, writer.reader());
            return Ok((number, writer));
        }
    }
}

/// Gives a full pack its footer. Not while others wait: it is read once more for it.
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
    packs.set_len(number, len);
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
                packs.set_len(number, len);
            }
            Ok(())
        }
        State::Unfinished | State::Open { writer: None, .. } | State::Sealed(_) => Ok(()),
    }
}

/// What a group will write, and what that will mean.
#[derive(Debug, Default)]
struct Plan {
    frames: Vec<Frame<Bytes>>,
    effects: Vec<Effect>,
    /// What this group makes of a block: there (`true`) or gone.
    fate: HashMap<Fingerprint, bool, AlreadyHashed>,
}

/// One for each frame.
#[derive(Clone, Copy, Debug)]
struct Effect {
    fp: Fingerprint,
    /// Payload bytes of a put; `None` for a deletion.
    put: Option<u32>,
    frame_len: u64,
}

impl Plan {
    /// Takes an operation in: what it will have done, and whether that depends on this group being written.
    fn add(&mut self, op: Op, world: &World) -> (Outcome, bool) {
        let mut outcome = Outcome::default();
        let mut leans = false;
        match op {
            Op::Put(candidates) => {
                for candidate in candidates {
                    leans |= self.put(candidate, world, &mut outcome);
                }
            }
            Op::Delete(keys) => {
                for (fp, key) in keys {
                    leans |= self.delete(fp, key, world, &mut outcome);
                }
            }
        }
        (outcome, leans)
    }

    /// Callers looked before they queued; meanwhile another one may have written the same block. The look that counts is here,
    /// where groups are one after the other.
    fn put(&mut self, candidate: Candidate, world: &World, outcome: &mut Outcome) -> bool {
        let Candidate { fp, frame } = candidate;
        match self.fate.get(&fp) {
            Some(true) => {
                outcome.idle += 1;
                return true;
            }
            Some(false) => {}
            None => {
                if world.index.renew(fp, &world.guards) == Renewed::Present {
                    outcome.idle += 1;
                    return false;
                }
            }
        }
        outcome.done += 1;
        outcome.bytes += frame.payload().len() as u64;
        self.fate.insert(fp, true);
        self.effects.push(Effect {
            fp,
            put: Some(frame.payload().len() as u32),
            frame_len: frame.frame_len(),
        });
        self.frames.push(frame);
        true
    }

    fn delete(
        &mut self,
        fp: Fingerprint,
        key: Vec<u8>,
        world: &World,
        outcome: &mut Outcome,
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
            None => match world.index.begin_delete(fp, &world.guards) {
                Deleting::Absent => {
                    outcome.idle += 1;
                    return false;
                }
                Deleting::Guarded => {
                    outcome.guarded += 1;
                    return false;
                }
                Deleting::Begun(located) => u64::from(located.len),
            },
        };
        let Ok(frame) = Frame::new(TOMBSTONE, key, Bytes::new()) else {
            // A multihash is no longer than a tag.
            return false;
        };
        outcome.done += 1;
        outcome.bytes += bytes;
        self.fate.insert(fp, false);
        self.effects.push(Effect {
            fp,
            put: None,
            frame_len: frame.frame_len(),
        });
        self.frames.push(frame);
        true
    }

    /// The group is durable: shows it, in the order of the file.
    fn apply(&self, pack: u32, offsets: &[u64], world: &World) {
        let stamp = world.guards.now();
        // Counted in before anything is counted out: a group may replace what it put itself.
        let puts = || {
            self.effects
                .iter()
                .filter_map(|e| Some((e.put?, e.frame_len)))
        };
        world.packs.add_live(pack, puts().map(|(_, len)| len).sum());
        let blocks = puts().count() as u64;
        let bytes = puts().map(|(len, _)| u64::from(len)).sum();
        world.counters.blocks.fetch_add(blocks, Ordering::Relaxed);
        world.counters.bytes.fetch_add(bytes, Ordering::Relaxed);
        for (effect, offset) in self.effects.iter().zip(offsets) {
            let replaced = match effect.put {
                Some(len) => {
                    let place = Place::new(pack, *offset);
                    world.index.insert(effect.fp, place, len, stamp)
                }
                None => world.index.remove(effect.fp),
            };
            if let Some(old) = replaced {
                // Both frames have the same tag; a tombstone is as long as a frame without payload.
                let header = effect.frame_len - u64::from(effect.put.unwrap_or(0));
                world
                    .packs
                    .sub_live(old.place.pack(), header + u64::from(old.len));
                count_out(&world.counters, old.len);
            }
        }
    }

    /// The group was not written: deletions are undone.
    fn cancel(&self, world: &World) {
        for effect in &self.effects {
            if effect.put.is_none() {
                world.index.cancel_delete(effect.fp);
            }
        }
    }
}

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
