//! The store as its users see it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cid::Cid;
use gemba_block::{Block, MAX_BLOCK_BYTES};
use gemba_segment::{Disk, Frame, GroupCommit, LockGuard, ReadError, RealDisk, is_unreadable};

use crate::compact::Compactor;
use crate::config::{Config, VerifyOnRead};
use crate::error::{OpenError, StoreError};
use crate::format::BLOCK;
use crate::guard::Guard;
use crate::index::{AlreadyHashed, Fingerprint, Located, Place, Reason, Renewed};
use crate::log::{Candidate, Log, Op, Outcome, PackWriter, World, seal};
use crate::open::{OpenReport, Parts, open};
use crate::verify::{CorruptBlock, Found};

/// Most bytes of blocks that one flush takes from one call; larger calls take several.
const CALL_BYTES: usize = 32 << 20;
/// Most blocks that one flush takes from one call.
const CALL_BLOCKS: usize = 16 << 10;
/// Blocks that a listing looks up at a time.
const LISTED: usize = 4096;
/// How often a read looks again when its block was moved meanwhile: a block moves once in a compaction.
const LOOKS: usize = 8;
/// Most calls that share a flush.
const GROUP_CALLS: usize = 1024;
/// The code of the identity multihash: the CID is the block.
const IDENTITY: u64 = 0;
/// The raw codec, under which blocks are listed.
pub(crate) const RAW: u64 = 0x55;

/// A block store in one folder. Cheap to clone; all methods block on the disk and may be called from many threads at once.
///
/// Blocks are known by their multihash: the version and codec of a CID are the caller's affair, so the same bytes under
/// CIDv0 and CIDv1 are stored once.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    config: Config,
    world: World,
    /// `None` if the store is open for reading only.
    queue: Option<GroupCommit<Op, Result<Outcome, StoreError>>>,
    log: Mutex<Log>,
    compactor: Mutex<Compactor>,
    report: OpenReport,
    corrupt_reads: AtomicU64,
    found: Mutex<Found>,
    /// A collection is under way.
    collecting: AtomicBool,
    /// There are marks of last use that are worth writing down.
    ticked: AtomicBool,
    /// Last field: released after everything else is closed.
    _lock: Option<Box<dyn LockGuard>>,
}

/// What a put did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PutReport {
    /// Blocks that were written.
    pub new: u64,
    /// Blocks that were there already; their guards were renewed.
    pub present: u64,
    /// Bytes of the blocks that were written.
    pub bytes: u64,
}

/// What a deletion did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeleteReport {
    /// Blocks that are gone now.
    pub removed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blocks that were not there.
    pub absent: u64,
    /// Blocks that stay because a [`Guard`] protects them.
    pub guarded: u64,
}

/// Figures of a store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stat {
    /// Blocks.
    pub blocks: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes of all packs on the disk, without holes.
    pub disk_bytes: u64,
    /// Bytes of them that are no live blocks: dead ones, tombstones, footers. Compaction gives most of it back.
    pub dead_bytes: u64,
    /// Most bytes that the packs may take; `None` without a limit.
    pub max_bytes: Option<u64>,
    /// Bytes that puts may still take; `None` without a limit.
    pub room_bytes: Option<u64>,
    /// Packs.
    pub packs: u64,
    /// Packs of which frames were lost.
    pub damaged_packs: u64,
    /// Of those: packs that the disk could not read, and that were set aside.
    pub unreadable_packs: u64,
    /// Bytes that the index takes in memory.
    pub index_bytes: u64,
    /// Guards that are held.
    pub guards: u64,
    /// Flushes since the store was opened, each for one group of calls.
    pub flushes: u64,
    /// Bytes written in frames since the store was opened.
    pub written_bytes: u64,
    /// Bytes of them that compaction wrote.
    pub moved_bytes: u64,
    /// Bytes of packs that compaction removed since the store was opened.
    pub freed_bytes: u64,
    /// Groups that were not written because the disk refused.
    pub failed_groups: u64,
    /// Blocks that collections removed since the store was opened: what was evicted.
    pub collected_blocks: u64,
    /// Their bytes.
    pub collected_bytes: u64,
    /// Reads that found a damaged block since the store was opened.
    pub corrupt_reads: u64,
    /// How often a pack was opened for reading because it was not open any more.
    pub pack_opens: u64,
}

impl Store {
    /// Opens the store in `dir` for reading and writing; makes it if there is none.
    ///
    /// # Errors
    /// See [`OpenError`]. A crash, a torn file or damaged blocks are no errors: see [`Store::open_report`].
    pub fn open(dir: impl AsRef<Path>, config: Config) -> Result<Self, OpenError> {
        Self::open_on(Arc::new(RealDisk), dir, config)
    }

    /// Opens the store in `dir` for reading. Nothing is written, not even a repair. Several processes may do so at once, but
    /// not beside one that writes.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_read_only(dir: impl AsRef<Path>, config: Config) -> Result<Self, OpenError> {
        Self::open_with(Arc::new(RealDisk), dir.as_ref(), config, true)
    }

    /// As [`Store::open`], on another disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_on(
        disk: Arc<dyn Disk>,
        dir: impl AsRef<Path>,
        config: Config,
    ) -> Result<Self, OpenError> {
        Self::open_with(disk, dir.as_ref(), config, false)
    }

    /// As [`Store::open_read_only`], on another disk.
    ///
    /// # Errors
    /// See [`OpenError`].
    pub fn open_read_only_on(
        disk: Arc<dyn Disk>,
        dir: impl AsRef<Path>,
        config: Config,
    ) -> Result<Self, OpenError> {
        Self::open_with(disk, dir.as_ref(), config, true)
    }

    fn open_with(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: Config,
        read_only: bool,
    ) -> Result<Self, OpenError> {
        let Parts {
            world,
            log,
            report,
            lock,
        } = open(&disk, dir, &config, read_only)?;
        Ok(Self {
            inner: Arc::new(Inner {
                dir: dir.to_path_buf(),
                config,
                world,
                queue: (!read_only).then(|| GroupCommit::new(GROUP_CALLS)),
                log: Mutex::new(log),
                compactor: Mutex::default(),
                report,
                corrupt_reads: AtomicU64::new(0),
                found: Mutex::default(),
                collecting: AtomicBool::new(false),
                ticked: AtomicBool::new(false),
                _lock: lock,
            }),
        })
    }

    /// Stores blocks. When it returns, all of them survive a power cut, whether they were new or there before.
    ///
    /// Callers on many threads share one write and one flush. A call of more than 32 MiB or 16,384 new blocks takes several,
    /// and may have stored a part when it fails. Always put what must be there: [`Store::has`] said what was true a moment
    /// ago, and only a put renews the protection of a [`Guard`].
    ///
    /// # Errors
    /// See [`StoreError`]: nothing of the failing flush counts as stored.
    pub fn put_many(&self, blocks: &[Block]) -> Result<PutReport, StoreError> {
        let mut report = PutReport::default();
        let mut pending = Vec::new();
        let mut pending_bytes = 0;
        let mut seen = HashSet::with_capacity_and_hasher(blocks.len(), AlreadyHashed::default());
        for block in blocks {
            let Some(candidate) = self.candidate(block, &mut seen)? else {
                report.present += 1;
                continue;
            };
            pending_bytes += block.len();
            pending.push(candidate);
            if pending_bytes >= CALL_BYTES || pending.len() >= CALL_BLOCKS {
                self.write(std::mem::take(&mut pending), &mut report)?;
                pending_bytes = 0;
            }
        }
        if !pending.is_empty() {
            self.write(pending, &mut report)?;
        } else if self.inner.queue.is_none() {
            return Err(StoreError::ReadOnly);
        }
        Ok(report)
    }

    /// Reads a block; `None` if it is not there. Never waits for a writer.
    ///
    /// # Errors
    /// [`StoreError::Corrupt`] if what is on disk is not the block; from then on [`Store::has`] denies it and the next put
    /// writes it again.
    pub fn get(&self, cid: &Cid) -> Result<Option<Bytes>, StoreError> {
        if is_identity(cid) {
            return Ok(Some(Bytes::copy_from_slice(cid.hash().digest())));
        }
        let key = cid.hash().to_bytes();
        let index = &self.inner.world.index;
        let fp = index.fingerprint(&key);
        let located = index.locate_for_use(fp, &self.inner.world.guards);
        self.get_at(cid, &key, located)
    }

    /// Reads a block that was looked up.
    pub(crate) fn get_at(
        &self,
        cid: &Cid,
        key: &[u8],
        mut located: Option<Located>,
    ) -> Result<Option<Bytes>, StoreError> {
        let index = &self.inner.world.index;
        let fp = index.fingerprint(key);
        for _ in 0..LOOKS {
            let Some(found) = located else {
                return Ok(None);
            };
            let read = self.read(cid, key, found, self.inner.config.verify_on_read);
            // Compaction may have moved the block in between, and have removed the pack or punched the frame.
            located = index.locate(fp);
            if located.map(|now| now.place) == Some(found.place) {
                return self.note_damage(fp, found, read).map(Some);
            }
        }
        Err(StoreError::Moving {
            cid: Box::new(*cid),
        })
    }

    /// Whether a block is there and not known to be damaged. Never a reason to skip a put: see [`Store::put_many`].
    ///
    /// While a pack is set aside ([`Stat::unreadable_packs`]) this and reads go by the packs that are read: a block that the absent pack deleted
    /// may be there again, and goes when it comes back (STO-27). Compare again then, or put what has to stay.
    #[must_use]
    pub fn has(&self, cid: &Cid) -> bool {
        self.size(cid).is_some()
    }

    /// Size of a block in bytes, under the conditions of [`Store::has`].
    #[must_use]
    pub fn size(&self, cid: &Cid) -> Option<u64> {
        if is_identity(cid) {
            return Some(cid.hash().digest().len() as u64);
        }
        let fp = self.inner.world.index.fingerprint(&cid.hash().to_bytes());
        let located = self.inner.world.index.locate(fp)?;
        (!located.bad).then_some(u64::from(located.len))
    }

    /// Deletes blocks, except those that a [`Guard`] protects. Durable when it returns.
    ///
    /// The space comes back later, by compaction.
    ///
    /// # Errors
    /// See [`StoreError`]: nothing of the failing flush counts as deleted.
    pub fn delete_many(&self, cids: &[Cid]) -> Result<DeleteReport, StoreError> {
        let mut report = DeleteReport::default();
        for chunk in cids.chunks(CALL_BLOCKS) {
            let keys: Vec<_> = chunk
                .iter()
                .filter(|cid| !is_identity(cid))
                .map(|cid| {
                    let key = cid.hash().to_bytes();
                    (self.inner.world.index.fingerprint(&key), key)
                })
                .collect();
            report.absent += (chunk.len() - keys.len()) as u64;
            let outcome = self.submit(Op::Delete(Reason::Asked, keys))?;
            report.removed += outcome.done;
            report.bytes += outcome.bytes;
            report.absent += outcome.idle;
            report.guarded += outcome.guarded;
        }
        Ok(report)
    }

    /// Shows every block as a CIDv1 of codec raw (the codec is not stored) and its size, until told to stop. In the order of
    /// the packs; blocks that come or go meanwhile may be shown or not.
    ///
    /// # Errors
    /// [`StoreError::Io`] if a pack cannot be read.
    pub fn for_each_cid(
        &self,
        mut visit: impl FnMut(Cid, u64) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let mut keys = self.keys();
        while let Some(page) = keys.next_page(LISTED)? {
            for key in page {
                if visit(key.cid, key.size).is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    /// Protects all that is put, read or touched from now on, by anybody, from deletion until the guard is dropped.
    pub fn guard(&self) -> Guard {
        self.inner.world.guards.take()
    }

    /// Renews the protection of a block that is there; whether it is. Under a [`Guard`] the block stays from here on.
    #[must_use]
    pub fn touch(&self, cid: &Cid) -> bool {
        let world = &self.inner.world;
        let fp = world.index.fingerprint(&cid.hash().to_bytes());
        is_identity(cid) || world.index.renew(fp, &world.guards) == Renewed::Present
    }

    /// Lets a unit of time pass for marks of last use; an hour is a good one. Every read, put or touch marks its block with the
    /// unit in which it happened. A store that is never told has no marks, and everything counts as used equally long ago.
    pub fn tick(&self) {
        self.inner.world.index.tick();
        self.inner.ticked.store(true, Ordering::Relaxed);
    }

    /// The current unit of [`Self::tick`], 0 to 255. It goes back now and then, and all marks with it.
    #[must_use]
    pub fn now(&self) -> u8 {
        self.inner.world.index.now()
    }

    /// Blocks and bytes by the unit in which they were used last: what is to be collected to reach a size. Looks at the whole
    /// index: some ten milliseconds for a million blocks.
    #[must_use]
    pub fn uses(&self) -> Box<[(u64, u64); 256]> {
        self.inner.world.index.uses()
    }

    /// Writes the marks of last use down, 9 bytes a block. Now and then is enough: a crash costs only marks. An orderly end
    /// does it too.
    ///
    /// # Errors
    /// See [`StoreError`].
    pub fn save_uses(&self) -> Result<(), StoreError> {
        if self.is_read_only() {
            return Err(StoreError::ReadOnly);
        }
        crate::uses::save(&self.inner.world.index, &self.inner.world.packs)
    }

    /// The blocks that reads, scrubs and compaction have found damaged since this was asked last, each once; at most the 1,024 that were
    /// found last. Whoever fetches and puts them repairs them; what [`Self::has`] knows again was repaired meanwhile.
    #[must_use]
    pub fn take_damaged(&self) -> Vec<CorruptBlock> {
        let found = &self.inner.found;
        found.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Figures. Cheap.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let world = &self.inner.world;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let packs = world.packs.all();
        let disk_bytes = packs.iter().map(|(_, pack)| pack.on_disk()).sum::<u64>();
        let used: u64 = packs.iter().map(|(_, pack)| pack.used()).sum();
        let limits = self.inner.config.limits();
        Stat {
            blocks: load(&world.counters.blocks),
            bytes: load(&world.counters.bytes),
            disk_bytes,
            dead_bytes: disk_bytes.saturating_sub(packs.iter().map(|(_, pack)| pack.live).sum()),
            max_bytes: (limits.all != u64::MAX).then_some(limits.all),
            room_bytes: (limits.all != u64::MAX).then(|| limits.puts.saturating_sub(used)),
            packs: packs.len() as u64,
            damaged_packs: packs.iter().filter(|(_, pack)| pack.damaged).count() as u64,
            unreadable_packs: packs.iter().filter(|(_, pack)| pack.aside).count() as u64,
            index_bytes: world.index.memory() as u64,
            guards: world.guards.count() as u64,
            flushes: load(&world.counters.groups),
            written_bytes: load(&world.counters.written),
            moved_bytes: load(&world.counters.moved),
            freed_bytes: load(&world.counters.freed),
            collected_blocks: load(&world.counters.collected),
            collected_bytes: load(&world.counters.collected_bytes),
            failed_groups: load(&world.counters.failures),
            corrupt_reads: load(&self.inner.corrupt_reads),
            pack_opens: world.packs.opened(),
        }
    }

    /// What was found when the store was opened.
    #[must_use]
    pub fn open_report(&self) -> &OpenReport {
        &self.inner.report
    }

    /// The folder.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    /// Whether the store was opened for reading only.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.inner.queue.is_none()
    }

    pub(crate) fn config(&self) -> &Config {
        &self.inner.config
    }

    pub(crate) fn collecting(&self) -> &AtomicBool {
        &self.inner.collecting
    }

    pub(crate) fn compactor(&self) -> &Mutex<Compactor> {
        &self.inner.compactor
    }

    /// Ends the pack that is written to, if it is this one, and gives it its footer.
    pub(crate) fn roll(&self, number: u32) -> Result<(), StoreError> {
        let mut log = self
            .inner
            .log
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let ended = log.roll(number, &self.inner.world)?;
        drop(log);
        self.seal_ended(ended);
        Ok(())
    }

    pub(crate) fn world(&self) -> &World {
        &self.inner.world
    }

    /// What has to be written of a block; `None` if nothing.
    fn candidate(
        &self,
        block: &Block,
        seen: &mut HashSet<Fingerprint, AlreadyHashed>,
    ) -> Result<Option<Candidate>, StoreError> {
        let too_large = || StoreError::TooLarge {
            cid: Box::new(*block.cid()),
            size: block.len(),
        };
        if block.len() > MAX_BLOCK_BYTES {
            return Err(too_large());
        }
        if is_identity(block.cid()) {
            return Ok(None);
        }
        let world = &self.inner.world;
        let key = block.cid().hash().to_bytes();
        let fp = world.index.fingerprint(&key);
        if !seen.insert(fp) || world.is_there_for_good(fp) {
            return Ok(None);
        }
        // The checksum is computed here, outside of every lock.
        let frame = Frame::new(BLOCK, key, block.data().clone()).map_err(|_| too_large())?;
        Ok(Some(Candidate { fp, frame }))
    }

    fn write(&self, candidates: Vec<Candidate>, report: &mut PutReport) -> Result<(), StoreError> {
        let outcome = self.submit(Op::Put(candidates))?;
        report.new += outcome.done;
        report.present += outcome.idle;
        report.bytes += outcome.bytes;
        Ok(())
    }

    /// Hands an operation to the next group. Whoever fills a pack gives it its footer afterwards, while others go on writing
    /// to the next one.
    pub(crate) fn submit(&self, op: Op) -> Result<Outcome, StoreError> {
        let inner = &self.inner;
        let Some(queue) = &inner.queue else {
            return Err(StoreError::ReadOnly);
        };
        let mut full = None;
        let patient = op.is_patient();
        let flush = |ops| {
            let mut log = inner.log.lock().unwrap_or_else(PoisonError::into_inner);
            let (results, filled) = log.flush(ops, &inner.world);
            full = filled;
            results
        };
        let outcome = if patient {
            queue.submit_patiently(op, flush)
        } else {
            queue.submit(op, flush)
        };
        self.seal_ended(full);
        outcome.map_err(|_| StoreError::WriterDied)?
    }

    fn seal_ended(&self, ended: Option<PackWriter>) {
        if let Some((number, writer)) = ended
            && let Err(error) = seal(number, writer, &self.inner.world.packs)
        {
            tracing::warn!(pack = number, %error, "no footer could be written; opening takes longer");
        }
    }

    /// Remembers what a read found, if it is damage at the place where the block still stands.
    pub(crate) fn note_damage(
        &self,
        fp: Fingerprint,
        located: Located,
        read: Result<Bytes, StoreError>,
    ) -> Result<Bytes, StoreError> {
        if let Err(StoreError::Corrupt {
            cid,
            pack,
            offset,
            what,
        }) = &read
        {
            self.inner.corrupt_reads.fetch_add(1, Ordering::Relaxed);
            self.found_damaged(
                fp,
                located.place,
                CorruptBlock {
                    cid: Some(**cid),
                    pack: *pack,
                    offset: *offset,
                    cause: (*what).to_owned(),
                },
            );
        }
        read
    }

    /// A block is damaged where it stands: it counts as absent from now on.
    pub(crate) fn found_damaged(&self, fp: Fingerprint, place: Place, block: CorruptBlock) {
        if self.inner.world.index.mark_bad(fp, place) {
            let found = &self.inner.found;
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.push(block);
        }
    }

    /// Reads what stands at a place. The block may have moved since it was looked up there: whoever calls looks again.
    pub(crate) fn read(
        &self,
        cid: &Cid,
        key: &[u8],
        located: Located,
        verify: VerifyOnRead,
    ) -> Result<Bytes, StoreError> {
        let world = &self.inner.world;
        let (pack, offset) = (located.place.pack(), located.place.offset());
        let check = verify != VerifyOnRead::Off;
        let corrupt = |what| StoreError::Corrupt {
            cid: Box::new(*cid),
            pack,
            offset,
            what,
        };
        let reader = match world.packs.reader(pack) {
            Ok(reader) => reader,
            // Somebody took the file away: to whoever wants the block that is as bad as damage, and the same helps.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(corrupt("its pack is gone"));
            }
            Err(e) => return Err(StoreError::io(e)),
        };
        let frame = match reader.read(offset, key.len(), located.len as usize, check) {
            Ok(frame) => frame,
            Err(ReadError::Damaged { what, .. }) => return Err(corrupt(what)),
            Err(ReadError::Io(e)) if is_unreadable(&e) => {
                return Err(corrupt("the disk cannot read it"));
            }
            Err(ReadError::Io(e)) => return Err(StoreError::io(e)),
            Err(other) => return Err(StoreError::io(std::io::Error::other(other))),
        };
        if frame.kind != BLOCK || frame.tag() != key {
            return Err(corrupt("another block stands there"));
        }
        let (bytes, at) = frame.into_bytes();
        let data = Bytes::from(bytes).slice(at..);
        if verify == VerifyOnRead::Hash && Block::new(*cid, data.clone()).is_err() {
            return Err(corrupt("its bytes do not hash to its name"));
        }
        Ok(data)
    }
}

impl Drop for Inner {
    /// Says in the last pack that the store was closed in order. If that fails, the next opening walks the pack.
    fn drop(&mut self) {
        let log = self.log.get_mut().unwrap_or_else(PoisonError::into_inner);
        if let Some((number, writer)) = log.writer.take()
            && let Err(error) = writer.close()
        {
            tracing::warn!(pack = number, %error, "the store was not closed in order");
        }
        if *self.ticked.get_mut()
            && let Err(error) = crate::uses::save(&self.world.index, &self.world.packs)
        {
            tracing::warn!(%error, "marks of last use were not written down");
        }
    }
}

pub(crate) fn is_identity(cid: &Cid) -> bool {
    cid.hash().code() == IDENTITY
}
