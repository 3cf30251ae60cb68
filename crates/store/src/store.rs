//! The store as its users see it.

use std::collections::HashSet;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use cid::Cid;
use cid::multihash::Multihash;
use gemba_block::{Block, MAX_BLOCK_BYTES};
use gemba_segment::{Disk, Frame, GroupCommit, LockGuard, ReadError, RealDisk, is_unreadable};

use crate::config::{Config, VerifyOnRead};
use crate::error::{OpenError, StoreError};
use crate::format::BLOCK;
use crate::guard::Guard;
use crate::index::{AlreadyHashed, Fingerprint, Located, Renewed};
use crate::log::{Candidate, Log, Op, Outcome, World, seal};
use crate::open::{OpenReport, Parts, open};

/// Most bytes of blocks that one flush takes from one call; larger calls take several.
const CALL_BYTES: usize = 32 << 20;
/// Most blocks that one flush takes from one call.
const CALL_BLOCKS: usize = 16 << 10;
/// Most calls that share a flush.
const GROUP_CALLS: usize = 1024;
/// The code of the identity multihash: the CID is the block.
const IDENTITY: u64 = 0;
/// The raw codec, under which blocks are listed.
const RAW: u64 = 0x55;

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
    report: OpenReport,
    corrupt_reads: AtomicU64,
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
    /// Bytes of all packs.
    pub disk_bytes: u64,
    /// Bytes of frames whose blocks are gone or were written again: what compaction can give back.
    pub dead_bytes: u64,
    /// Packs.
    pub packs: u64,
    /// Bytes that the index takes in memory.
    pub index_bytes: u64,
    /// Guards that are held.
    pub guards: u64,
    /// Flushes since the store was opened, each for one group of calls.
    pub flushes: u64,
    /// Bytes written in frames since the store was opened.
    pub written_bytes: u64,
    /// Groups that were not written because the disk refused.
    pub failed_groups: u64,
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
                report,
                corrupt_reads: AtomicU64::new(0),
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
        let fp = self.inner.world.index.fingerprint(&key);
        match self.inner.world.index.locate(fp) {
            Some(located) => self
                .read(cid, &key, fp, located, self.inner.config.verify_on_read)
                .map(Some),
            None => Ok(None),
        }
    }

    /// Whether a block is there and not known to be damaged. Never a reason to skip a put: see [`Store::put_many`].
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
            let outcome = self.submit(Op::Delete(keys))?;
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
        let world = &self.inner.world;
        let mut flow = ControlFlow::Continue(());
        for number in world.packs.numbers() {
            world
                .packs
                .entries(number, &mut |entry| {
                    if flow.is_break() || entry.kind != BLOCK {
                        return;
                    }
                    let fp = world.index.fingerprint(&entry.tag);
                    let place = crate::index::Place::new(number, entry.at);
                    let lives = world.index.locate(fp).is_some_and(|l| l.place == place);
                    if let (true, Ok(hash)) = (lives, Multihash::from_bytes(&entry.tag)) {
                        flow = visit(Cid::new_v1(RAW, hash), u64::from(entry.len));
                    }
                })
                .map_err(StoreError::io)?;
            if flow.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Protects all that is put or touched from now on, by anybody, from deletion until the guard is dropped.
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

    /// Figures. Cheap.
    #[must_use]
    pub fn stat(&self) -> Stat {
        let world = &self.inner.world;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let disk_bytes = world.packs.disk_bytes();
        Stat {
            blocks: load(&world.counters.blocks),
            bytes: load(&world.counters.bytes),
            disk_bytes,
            dead_bytes: disk_bytes.saturating_sub(world.packs.live_bytes()),
            packs: world.packs.numbers().len() as u64,
            index_bytes: world.index.memory() as u64,
            guards: world.guards.count() as u64,
            flushes: load(&world.counters.groups),
            written_bytes: load(&world.counters.written),
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
        if !seen.insert(fp) || world.index.renew(fp, &world.guards) == Renewed::Present {
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
    fn submit(&self, op: Op) -> Result<Outcome, StoreError> {
        let inner = &self.inner;
        let Some(queue) = &inner.queue else {
            return Err(StoreError::ReadOnly);
        };
        let mut full = None;
        let outcome = queue.submit(op, |ops| {
            let mut log = inner.log.lock().unwrap_or_else(PoisonError::into_inner);
            let (results, filled) = log.flush(ops, &inner.world);
            full = filled;
            results
        });
        if let Some((number, writer)) = full
            && let Err(error) = seal(number, writer, &inner.world.packs)
        {
            tracing::warn!(pack = number, %error, "no footer could be written; opening takes longer");
        }
        outcome.map_err(|_| StoreError::WriterDied)?
    }

    pub(crate) fn read(
        &self,
        cid: &Cid,
        key: &[u8],
        fp: Fingerprint,
        located: Located,
        verify: VerifyOnRead,
    ) -> Result<Bytes, StoreError> {
        let world = &self.inner.world;
        let (pack, offset) = (located.place.pack(), located.place.offset());
        let check = verify != VerifyOnRead::Off;
        let corrupt = |what| {
            world.index.mark_bad(fp, located.place);
            self.inner.corrupt_reads.fetch_add(1, Ordering::Relaxed);
            StoreError::Corrupt {
                cid: Box::new(*cid),
                pack,
                offset,
                what,
            }
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
    }
}

fn is_identity(cid: &Cid) -> bool {
    cid.hash().code() == IDENTITY
}
