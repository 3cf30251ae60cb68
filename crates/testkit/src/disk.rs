//! A disk that forgets: what was not synced is kept, dropped or torn at a power cut, and every call can be made to fail.
//!
//! The rules are the harshest that POSIX allows, not those of one file system: writes since the last sync survive sector by
//! sector (512 bytes) and in any order; a file may have grown although its bytes are lost (they are zeros or old rubbish
//! then); a name that was made, changed or removed survives only if its folder was synced; after a failed sync the bytes are
//! still to be read, but no later sync writes them; or it failed after it wrote them all.
//!
//! [`SimDisk::observe`] is the crash harness: after every call that changes something it shows the disk as it is, and
//! [`Moment::power_cut`] makes any number of disks that a power cut at that moment could leave behind.
//!
//! ```
//! use std::io::IoSlice;
//! use std::path::Path;
//! use gemba_segment::{Disk, Mode};
//! use gemba_testkit::{Rng, disk::SimDisk};
//!
//! let disk = SimDisk::new(1);
//! let file = disk.open(Path::new("a"), Mode::Create)?;
//! file.write_at(&[IoSlice::new(b"hello")], 0)?;
//! file.sync_data()?;
//! // The bytes are durable, but the name never was.
//! let after = disk.power_cut_with(&mut Rng::new(7), &mut |_| false);
//! assert!(after.open(Path::new("a"), Mode::Read).is_err());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing};

use crate::{Faults, Rng};
use errno::{EIO, EMFILE, ENOSPC};

/// Bytes that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// Error numbers as Linux has them, so that callers can tell a bad medium from a bad call.
pub mod errno {
    /// The medium is bad.
    pub const EIO: i32 = 5;
    /// The process has as many open files as it may have.
    pub const EMFILE: i32 = 24;
    /// No room is left.
    pub const ENOSPC: i32 = 28;
    /// The file system was made read-only.
    pub const EROFS: i32 = 30;
    /// No room is left for this user.
    pub const EDQUOT: i32 = 122;
}

/// A virtual disk. Cheap to clone; clones are the same disk.
#[derive(Clone)]
pub struct SimDisk {
    shared: Arc<Shared>,
}

/// Calls that can be made to fail. Each has an error of its own, which [`SimDisk::fail_with`] replaces by another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Call {
    /// `read_at`: EIO.
    Read,
    /// `write_at`: EIO, nothing is written.
    Write,
    /// `write_at`: ENOSPC, a part is written.
    WriteFull,
    /// `write_at`: writes a part and says so; no error.
    WriteShort,
    /// `sync_data`: EIO; what was written since the last sync is never written by a later one.
    Sync,
    /// `sync_data`: EIO, although what was written since the last sync is durable.
    SyncLanded,
    /// `sync_dir`: EIO.
    SyncDir,
    /// `open` with [`Mode::Create`] of a name that does not exist: ENOSPC.
    Create,
    /// `open` of a name that exists: EMFILE.
    Open,
    /// `rename`: EIO.
    Rename,
    /// `set_len`: EIO.
    SetLen,
    /// `punch`: EIO, nothing is punched.
    Punch,
    /// `unlink`: EIO.
    Unlink,
}

type Observer = Box<dyn FnMut(&Moment<'_>) + Send>;

struct Shared {
    world: Mutex<World>,
    observer: Mutex<Option<Observer>>,
}

/// The disk at one moment, after a call.
pub struct Moment<'a> {
    world: &'a World,
    /// Number of the call, from 1; only calls that change something count.
    pub op: u64,
    /// What the call was.
    pub name: &'static str,
}

#[derive(Clone)]
struct World {
    rng: Rng,
    files: Vec<FileState>,
    /// What names lead to now; and what they lead to for sure after a power cut.
    names: BTreeMap<PathBuf, usize>,
    durable_names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    durable_dirs: BTreeSet<PathBuf>,
    pending_names: Vec<NameOp>,
    locks: BTreeMap<PathBuf, (Sharing, usize)>,
    ops: u64,
    crash_at: Option<u64>,
    capacity: u64,
    plans: Vec<Plan>,
    calls: BTreeMap<Call, u64>,
    faults: Faults,
}

/// Calls that fail, by their numbers, and how: without an error number as such calls do.
#[derive(Clone)]
struct Plan {
    call: Call,
    numbers: Range<u64>,
    errno: Option<i32>,
}

#[derive(Clone, Default)]
struct FileState {
    /// Shared with the disks that were made of this one until one of them writes: such disks are made by the million.
    live: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    pending: Vec<FileOp>,
    /// Stretches of `live` that take no room: punched out, or never written since the length was set beyond them.
    holes: Holes,
}

/// Stretches of bytes that do not overlap, by where they begin.
#[derive(Clone, Default)]
struct Holes(BTreeMap<usize, usize>);

impl Holes {
    fn add(&mut self, from: usize, to: usize) {
        self.fill(from, to);
        if from < to {
            self.0.insert(from, to);
        }
    }

    /// The bytes take room from now on.
    fn fill(&mut self, from: usize, to: usize) {
        let touched: Vec<_> = self.overlapping(from, to).collect();
        for (begin, end) in touched {
            self.0.remove(&begin);
            if begin < from {
                self.0.insert(begin, from);
            }
            if end > to {
                self.0.insert(to, end);
            }
        }
    }

    fn overlapping(&self, from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
        let before = self.0.range(..to).map(|(begin, end)| (*begin, *end));
        before.filter(move |(_, end)| *end > from)
    }

    /// Bytes of holes between two offsets.
    fn between(&self, from: usize, to: usize) -> u64 {
        self.overlapping(from, to)
            .map(|(begin, end)| (end.min(to) - begin.max(from)) as u64)
            .sum()
    }
}

#[derive(Clone)]
enum FileOp {
    Write { at: usize, data: Vec<u8> },
    SetLen(usize),
}

#[derive(Clone)]
enum NameOp {
    Create(PathBuf, usize),
    CreateDir(PathBuf),
    Rename(PathBuf, PathBuf, usize),
    Unlink(PathBuf),
}

impl SimDisk {
    /// An empty disk without faults.
    pub fn new(seed: u64) -> Self {
        Self::from_world(World {
            rng: Rng::new(seed),
            files: Vec::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            durable_dirs: BTreeSet::new(),
            pending_names: Vec::new(),
            locks: BTreeMap::new(),
            ops: 0,
            crash_at: None,
            capacity: u64::MAX,
            plans: Vec::new(),
            calls: BTreeMap::new(),
            faults: Faults::default(),
        })
    }

    fn from_world(world: World) -> Self {
        Self {
            shared: Arc::new(Shared {
                world: Mutex::new(world),
                observer: Mutex::new(None),
            }),
        }
    }

    /// Makes the `nth` call of a kind from now on fail (from 1), and the `times - 1` after it.
    pub fn fail(&self, call: Call, nth: u64, times: u64) {
        self.plan(call, nth, times, None);
    }

    /// As [`Self::fail`], with this error number in place of the call's own: EROFS, EDQUOT, EMFILE, … A write that fails for want of room
    /// ([`Call::WriteFull`]) has written a part, whatever number it tells.
    pub fn fail_with(&self, call: Call, nth: u64, times: u64, errno: i32) {
        self.plan(call, nth, times, Some(errno));
    }

    fn plan(&self, call: Call, nth: u64, times: u64, errno: Option<i32>) {
        let mut world = self.world();
        let done = world.calls.get(&call).copied().unwrap_or_default();
        let first = done + nth;
        world.plans.push(Plan {
            call,
            numbers: first..first.saturating_add(times),
            errno,
        });
    }

    /// Forgets all planned failures.
    pub fn heal(&self) {
        let mut world = self.world();
        world.plans.clear();
        world.capacity = u64::MAX;
    }

    /// How often a kind of call was made.
    pub fn calls(&self, call: Call) -> u64 {
        self.world().calls.get(&call).copied().unwrap_or_default()
    }

    /// Bytes that all files together may have.
    pub fn set_capacity(&self, bytes: u64) {
        self.world().capacity = bytes;
    }

    /// Bytes that all files together have.
    pub fn used(&self) -> u64 {
        self.world().used()
    }

    /// The power goes with the `nth` changing call from now on (from 1): it is not carried out, and nothing is after it.
    pub fn crash_at(&self, nth: u64) {
        let mut world = self.world();
        world.crash_at = Some(world.ops + nth);
    }

    /// How many calls that change something there were.
    pub fn ops(&self) -> u64 {
        self.world().ops
    }

    /// Calls `observer` after every call that changes something. It must not use this disk, but may use those that
    /// [`Moment`] makes.
    pub fn observe(&self, observer: impl FnMut(&Moment<'_>) + Send + 'static) {
        *lock(&self.shared.observer) = Some(Box::new(observer));
    }

    /// Ends the observing.
    pub fn stop_observing(&self) {
        *lock(&self.shared.observer) = None;
    }

    /// What a power cut at this moment may leave, by the disk's own seed.
    pub fn reopen(&self) -> Self {
        let mut world = self.world();
        let mut rng = world.rng.fork();
        world.power_cut(&mut rng, None)
    }

    /// What a power cut at this moment may leave.
    pub fn power_cut(&self, rng: &mut Rng) -> Self {
        self.world().power_cut(rng, None)
    }

    /// As [`Self::power_cut`], but whether an unsynced name survives is told by `keep`.
    pub fn power_cut_with(&self, rng: &mut Rng, keep: &mut dyn FnMut(&Path) -> bool) -> Self {
        self.world().power_cut(rng, Some(keep))
    }

    /// What the death of the process leaves: all that was written is still to be read, and nothing more is durable.
    pub fn kill(&self) -> Self {
        self.world().kill()
    }

    /// Turns a bit of a file, durably.
    ///
    /// # Panics
    /// If there is no such bit.
    pub fn flip_bit(&self, path: &Path, bit: u64) {
        self.edit(path, |bytes| bytes[(bit / 8) as usize] ^= 1 << (bit % 8));
        self.world().faults.hit("bit flip");
    }

    /// Changes a file durably, behind everybody's back.
    ///
    /// # Panics
    /// If there is no such file.
    pub fn edit(&self, path: &Path, change: impl Fn(&mut Vec<u8>)) {
        let mut world = self.world();
        let id = *world.names.get(path).expect("the file exists");
        let file = &mut world.files[id];
        change(Arc::make_mut(&mut file.live));
        file.durable = Arc::clone(&file.live);
        file.pending.clear();
    }

    /// The bytes of a file as they are read now.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let world = self.world();
        let id = world.names.get(path)?;
        Some(world.files[*id].live.to_vec())
    }

    /// Makes a file with these bytes, durably.
    pub fn install(&self, path: &Path, bytes: Vec<u8>) {
        let mut world = self.world();
        let mut dir = path.parent();
        while let Some(parent) = dir {
            world.dirs.insert(parent.to_path_buf());
            world.durable_dirs.insert(parent.to_path_buf());
            dir = parent.parent();
        }
        let id = world.files.len();
        let bytes = Arc::new(bytes);
        world.files.push(FileState {
            live: Arc::clone(&bytes),
            durable: bytes,
            pending: Vec::new(),
            holes: Holes::default(),
        });
        world.names.insert(path.to_path_buf(), id);
        world.durable_names.insert(path.to_path_buf(), id);
    }

    /// Counts of what was done to callers: planned failures, and what became of unsynced writes at power cuts.
    pub fn faults(&self) -> Faults {
        self.world().faults.clone()
    }

    fn world(&self) -> MutexGuard<'_, World> {
        lock(&self.shared.world)
    }

    /// Carries out a call that changes something.
    fn change<R>(
        &self,
        name: &'static str,
        call: impl FnOnce(&mut World) -> io::Result<R>,
    ) -> io::Result<R> {
        let mut world = self.world();
        if world.is_crashed() {
            return Err(io::Error::other("the power is gone"));
        }
        world.ops += 1;
        if world.is_crashed() {
            world.faults.hit("power cut");
            return Err(io::Error::other("the power is gone"));
        }
        let result = call(&mut world);
        let mut observer = lock(&self.shared.observer);
        if let Some(observer) = observer.as_mut() {
            observer(&Moment {
                world: &world,
                op: world.ops,
                name,
            });
        }
        result
    }
}

impl std::fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SimDisk")
    }
}

impl Moment<'_> {
    /// What a power cut at this moment may leave.
    pub fn power_cut(&self, rng: &mut Rng) -> SimDisk {
        // Counts of survivors belong to the new disk; this one is only looked at.
        self.world.clone().power_cut(rng, None)
    }

    /// What the death of the process leaves.
    pub fn kill(&self) -> SimDisk {
        self.world.kill()
    }
}

impl Disk for SimDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let existing = {
            let world = self.world();
            if world.is_crashed() {
                return Err(io::Error::other("the power is gone"));
            }
            world.names.get(path).copied()
        };
        let id = match existing {
            Some(id) => {
                self.world().refuse(Call::Open, "emfile open", EMFILE)?;
                id
            }
            None if mode == Mode::Create => self.change("create", |world| world.create(path))?,
            None => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(Arc::new(SimFile {
            disk: self.clone(),
            id,
            writable: mode != Mode::Read,
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        if self.world().dirs.contains(path) {
            return Ok(());
        }
        self.change("create_dir", |world| {
            let mut missing: Vec<_> = path
                .ancestors()
                .take_while(|dir| !is_root(dir) && !world.dirs.contains(*dir))
                .map(Path::to_path_buf)
                .collect();
            missing.reverse();
            for dir in missing {
                world.dirs.insert(dir.clone());
                world.pending_names.push(NameOp::CreateDir(dir));
            }
            Ok(())
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let world = self.world();
        if !is_root(dir) && !world.dirs.contains(dir) {
            return Err(io::ErrorKind::NotFound.into());
        }
        let names = world.names.keys().chain(&world.dirs);
        let mut names: Vec<_> = names
            .filter(|path| path.parent() == Some(dir))
            .filter_map(|path| path.file_name()?.to_str().map(str::to_owned))
            .collect();
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.change("rename", |world| {
            world.refuse(Call::Rename, "eio rename", EIO)?;
            let id = world.names.remove(from).ok_or(io::ErrorKind::NotFound)?;
            world.names.insert(to.to_path_buf(), id);
            world
                .pending_names
                .push(NameOp::Rename(from.to_path_buf(), to.to_path_buf(), id));
            Ok(())
        })
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.change("unlink", |world| {
            world.refuse(Call::Unlink, "eio unlink", EIO)?;
            world.names.remove(path).ok_or(io::ErrorKind::NotFound)?;
            world.pending_names.push(NameOp::Unlink(path.to_path_buf()));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.change("sync_dir", |world| {
            world.refuse(Call::SyncDir, "eio sync_dir", EIO)?;
            let (mine, others) = std::mem::take(&mut world.pending_names)
                .into_iter()
                .partition(|op: &NameOp| op.dir() == Some(dir));
            world.pending_names = others;
            for op in mine {
                op.apply(&mut world.durable_names, &mut world.durable_dirs);
            }
            Ok(())
        })
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        // The lock file itself: a name like any other.
        self.open(path, Mode::Create)?;
        let mut world = self.world();
        let held = world
            .locks
            .entry(path.to_path_buf())
            .or_insert((sharing, 0));
        if held.1 > 0 && (held.0 == Sharing::Exclusive || sharing == Sharing::Exclusive) {
            return Err(LockError::Held { pid: Some(1) });
        }
        *held = (sharing, held.1 + 1);
        drop(world);
        Ok(Box::new(SimLock {
            disk: self.clone(),
            path: path.to_path_buf(),
        }))
    }
}

#[derive(Debug)]
struct SimLock {
    disk: SimDisk,
    path: PathBuf,
}

impl LockGuard for SimLock {}

impl Drop for SimLock {
    fn drop(&mut self) {
        if let Some(held) = self.disk.world().locks.get_mut(&self.path) {
            held.1 -= 1;
        }
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    id: usize,
    writable: bool,
}

impl SimFile {
    fn check_writable(&self) -> io::Result<()> {
        if self.writable {
            Ok(())
        } else {
            Err(io::ErrorKind::PermissionDenied.into())
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        let mut world = self.disk.world();
        if world.is_crashed() {
            return Err(io::Error::other("the power is gone"));
        }
        world.refuse(Call::Read, "eio read", EIO)?;
        let live = &world.files[self.id].live;
        let from = (at as usize).min(live.len());
        let len = buf.len().min(live.len() - from);
        buf[..len].copy_from_slice(&live[from..from + len]);
        Ok(len)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        self.check_writable()?;
        self.disk.change("write_at", |world| {
            let mut data: Vec<u8> = bufs.iter().flat_map(|buf| buf.iter().copied()).collect();
            world.refuse(Call::Write, "eio write", EIO)?;
            let mut refused = world.refuse(Call::WriteFull, "enospc write", ENOSPC);
            if refused.is_ok() && !world.has_room(self.id, at as usize, data.len()) {
                refused = Err(io::Error::from_raw_os_error(ENOSPC));
            }
            let short = world.refuse(Call::WriteShort, "short write", EIO).is_err();
            if refused.is_err() || short {
                let keep = world.rng.below(data.len() as u64) as usize;
                data.truncate(if short { keep.max(1) } else { keep });
            }
            let written = data.len();
            world.write(self.id, at as usize, data);
            refused.map(|()| written)
        })
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.disk.change("set_len", |world| {
            world.refuse(Call::SetLen, "eio set_len", EIO)?;
            let file = &mut world.files[self.id];
            let (before, len) = (file.live.len(), len as usize);
            Arc::make_mut(&mut file.live).resize(len, 0);
            file.holes.fill(len, usize::MAX);
            file.holes.add(before.min(len), len);
            file.pending.push(FileOp::SetLen(len));
            Ok(())
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.disk.change("sync_data", |world| {
            let refused = world.refuse(Call::Sync, "eio sync", EIO);
            let landed = world.refuse(Call::SyncLanded, "eio sync, bytes landed", EIO);
            let file = &mut world.files[self.id];
            let pending = std::mem::take(&mut file.pending);
            // The kernel marks the pages clean: they are read, but never written again.
            refused?;
            for op in pending {
                op.apply(Arc::make_mut(&mut file.durable));
            }
            landed
        })
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.disk.world().files[self.id].live.len() as u64)
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.disk.change("punch", |world| {
            world.refuse(Call::Punch, "eio punch", EIO)?;
            let (at, len) = (at as usize, len as usize);
            let file = &world.files[self.id];
            let end = (at + len).min(file.live.len());
            if at >= end {
                return Ok(());
            }
            // A power cut tears it like a write of zeros.
            world.write(self.id, at, vec![0; end - at]);
            world.files[self.id].holes.add(at, end);
            Ok(())
        })
    }

    fn allocated(&self) -> io::Result<u64> {
        Ok(self.disk.world().files[self.id].allocated())
    }
}

impl World {
    fn is_crashed(&self) -> bool {
        self.crash_at.is_some_and(|at| self.ops >= at)
    }

    fn used(&self) -> u64 {
        self.names
            .values()
            .map(|id| self.files[*id].allocated())
            .sum()
    }

    fn has_room(&self, id: usize, at: usize, len: usize) -> bool {
        let (file, end) = (&self.files[id], at + len);
        let more = end.saturating_sub(file.live.len()) as u64 + file.holes.between(at, end);
        more == 0 || self.used() + more <= self.capacity
    }

    /// Counts a call, and fails if that was planned.
    fn refuse(&mut self, call: Call, fault: &'static str, errno: i32) -> io::Result<()> {
        let count = self.calls.entry(call).or_default();
        *count += 1;
        let plan = self
            .plans
            .iter()
            .find(|plan| plan.call == call && plan.numbers.contains(count));
        let Some(plan) = plan else {
            return Ok(());
        };
        let errno = plan.errno.unwrap_or(errno);
        self.faults.hit(fault);
        Err(io::Error::from_raw_os_error(errno))
    }

    fn create(&mut self, path: &Path) -> io::Result<usize> {
        let parent = path.parent().unwrap_or(Path::new(""));
        if !is_root(parent) && !self.dirs.contains(parent) {
            return Err(io::ErrorKind::NotFound.into());
        }
        self.refuse(Call::Create, "enospc create", ENOSPC)?;
        let id = self.files.len();
        self.files.push(FileState::default());
        self.names.insert(path.to_path_buf(), id);
        self.pending_names
            .push(NameOp::Create(path.to_path_buf(), id));
        Ok(id)
    }

    fn write(&mut self, id: usize, at: usize, data: Vec<u8>) {
        if data.is_empty() {
            return;
        }
        let file = &mut self.files[id];
        file.holes.fill(at, at + data.len());
        let op = FileOp::Write { at, data };
        op.clone().apply(Arc::make_mut(&mut file.live));
        file.pending.push(op);
    }

    fn kill(&self) -> SimDisk {
        let mut world = self.clone();
        world.locks.clear();
        world.plans.clear();
        world.crash_at = None;
        SimDisk::from_world(world)
    }

    fn power_cut(
        &mut self,
        rng: &mut Rng,
        mut keep: Option<&mut dyn FnMut(&Path) -> bool>,
    ) -> SimDisk {
        let mut names = self.durable_names.clone();
        let mut dirs = self.durable_dirs.clone();
        for op in &self.pending_names {
            let kept = match &mut keep {
                Some(keep) => keep(op.path()),
                None => rng.coin(),
            };
            if kept {
                op.clone().apply(&mut names, &mut dirs);
            } else {
                self.faults.hit("name lost");
            }
        }
        let there = |path: &Path| {
            path.ancestors()
                .skip(1)
                .all(|dir| is_root(dir) || dirs.contains(dir))
        };
        names.retain(|path, _| there(path));
        let dirs: BTreeSet<_> = dirs.iter().filter(|dir| there(dir)).cloned().collect();
        let mut faults = std::mem::take(&mut self.faults);
        let files = self
            .files
            .iter()
            .map(|file| {
                let bytes = file.survive(rng, &mut faults);
                FileState {
                    live: Arc::clone(&bytes),
                    durable: bytes,
                    pending: Vec::new(),
                    holes: file.holes.clone(),
                }
            })
            .collect();
        self.faults = faults;
        SimDisk::from_world(World {
            rng: rng.fork(),
            files,
            durable_names: names.clone(),
            names,
            durable_dirs: dirs.clone(),
            dirs,
            pending_names: Vec::new(),
            locks: BTreeMap::new(),
            ops: 0,
            crash_at: None,
            capacity: u64::MAX,
            plans: Vec::new(),
            calls: BTreeMap::new(),
            faults: self.faults.clone(),
        })
    }
}

impl FileState {
    fn allocated(&self) -> u64 {
        let len = self.live.len();
        len as u64 - self.holes.between(0, len)
    }

    /// One way in which the file may look after a power cut.
    fn survive(&self, rng: &mut Rng, faults: &mut Faults) -> Arc<Vec<u8>> {
        let mut shared = Arc::clone(&self.durable);
        // Most cuts have a temper: everything got out, nothing did, or some of it.
        let temper = rng.below(4);
        if self.pending.is_empty() {
            return shared;
        }
        let bytes = Arc::make_mut(&mut shared);
        for op in &self.pending {
            match op {
                FileOp::SetLen(_) => {
                    if rng.coin() {
                        op.clone().apply(bytes);
                    }
                }
                FileOp::Write { at, data } => match (temper, rng.below(3)) {
                    (0, _) | (_, 0) => {
                        faults.hit("write kept");
                        op.clone().apply(bytes);
                    }
                    (1, _) | (_, 1) => {
                        faults.hit("write dropped");
                        if rng.chance(1, 3) {
                            grow_without_data(bytes, at + data.len(), rng, faults);
                        }
                    }
                    _ => {
                        faults.hit("write torn");
                        tear(bytes, *at, data, rng);
                    }
                },
            }
        }
        shared
    }
}

/// The length got out, the bytes did not.
fn grow_without_data(bytes: &mut Vec<u8>, len: usize, rng: &mut Rng, faults: &mut Faults) {
    let old = bytes.len();
    if len <= old {
        return;
    }
    bytes.resize(len, 0);
    if rng.coin() {
        faults.hit("length without data: rubbish");
        rng.fill(&mut bytes[old..]);
    } else {
        faults.hit("length without data: zeros");
    }
}

/// Keeps some of the sectors of a write.
fn tear(bytes: &mut Vec<u8>, at: usize, data: &[u8], rng: &mut Rng) {
    let mut from = 0;
    while from < data.len() {
        let sector_end = ((at + from) / SECTOR + 1) * SECTOR - at;
        let to = sector_end.min(data.len());
        if rng.coin() {
            FileOp::Write {
                at: at + from,
                data: data[from..to].to_vec(),
            }
            .apply(bytes);
        }
        from = to;
    }
}

impl FileOp {
    fn apply(self, bytes: &mut Vec<u8>) {
        match self {
            Self::SetLen(len) => bytes.resize(len, 0),
            Self::Write { at, data } => {
                let end = at + data.len();
                if bytes.len() < end {
                    bytes.resize(end, 0);
                }
                bytes[at..end].copy_from_slice(&data);
            }
        }
    }
}

impl NameOp {
    fn path(&self) -> &Path {
        match self {
            Self::Create(path, _) | Self::CreateDir(path) | Self::Unlink(path) => path,
            Self::Rename(_, to, _) => to,
        }
    }

    fn dir(&self) -> Option<&Path> {
        self.path().parent()
    }

    fn apply(self, names: &mut BTreeMap<PathBuf, usize>, dirs: &mut BTreeSet<PathBuf>) {
        match self {
            Self::Create(path, id) => {
                names.insert(path, id);
            }
            Self::CreateDir(path) => {
                dirs.insert(path);
            }
            Self::Rename(from, to, id) => {
                names.remove(&from);
                names.insert(to, id);
            }
            Self::Unlink(path) => {
                names.remove(&path);
            }
        }
    }
}

fn is_root(path: &Path) -> bool {
    path.parent().is_none() || path.as_os_str().is_empty()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn write(file: &dyn DiskFile, at: u64, bytes: &[u8]) {
        assert_eq!(
            file.write_at(&[IoSlice::new(bytes)], at).unwrap(),
            bytes.len()
        );
    }

    /// Every fate of an unsynced write is seen, and a synced one has only one.
    #[test]
    fn unsynced_writes_are_kept_dropped_or_torn_and_synced_ones_stay() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        write(file.as_ref(), 0, &[1; 4096]);
        file.sync_data().unwrap();
        write(file.as_ref(), 4096, &[2; 4096]);
        let mut rng = Rng::new(5);
        for _ in 0..200 {
            let after = disk.power_cut(&mut rng).bytes(Path::new("f")).unwrap();
            assert_eq!(after[..4096], [1; 4096]);
            assert!(after.len() <= 8192);
        }
        disk.faults().assert_fired(
            &[
                "write kept",
                "write dropped",
                "write torn",
                "length without data: zeros",
                "length without data: rubbish",
            ],
            10,
        );
    }

    #[test]
    fn names_survive_only_a_synced_folder() {
        let disk = SimDisk::new(1);
        disk.create_dir(Path::new("/d")).unwrap();
        disk.sync_dir(Path::new("/")).unwrap();
        disk.open(Path::new("/d/old"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        disk.open(Path::new("/d/new"), Mode::Create).unwrap();
        disk.rename(Path::new("/d/old"), Path::new("/d/moved"))
            .unwrap();
        let lost = disk.power_cut_with(&mut Rng::new(1), &mut |_| false);
        assert_eq!(lost.list(Path::new("/d")).unwrap(), ["old"]);
        let kept = disk.power_cut_with(&mut Rng::new(1), &mut |_| true);
        assert_eq!(kept.list(Path::new("/d")).unwrap(), ["moved", "new"]);
        disk.sync_dir(Path::new("/d")).unwrap();
        let synced = disk.power_cut_with(&mut Rng::new(1), &mut |_| false);
        assert_eq!(synced.list(Path::new("/d")).unwrap(), ["moved", "new"]);
    }

    #[test]
    fn a_folder_that_was_not_synced_takes_its_files_with_it() {
        let disk = SimDisk::new(1);
        disk.create_dir(Path::new("/d/e")).unwrap();
        disk.open(Path::new("/d/e/f"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("/d/e")).unwrap();
        disk.sync_dir(Path::new("/d")).unwrap();
        let lost = disk.power_cut_with(&mut Rng::new(1), &mut |_| false);
        assert!(lost.list(Path::new("/d")).is_err());
        assert!(lost.bytes(Path::new("/d/e/f")).is_none());
    }

    /// The worst known behaviour of kernels: the sync after a failed one says yes and has written nothing.
    #[test]
    fn a_failed_sync_loses_the_bytes_and_the_next_one_lies() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        disk.fail(Call::Sync, 1, 1);
        write(file.as_ref(), 0, b"lost");
        assert!(file.sync_data().is_err());
        assert!(file.sync_data().is_ok());
        assert_eq!(disk.bytes(Path::new("f")).unwrap(), b"lost");
        assert_eq!(disk.reopen().bytes(Path::new("f")).unwrap(), b"");
        // Written once more, the same bytes do get out.
        write(file.as_ref(), 0, b"lost");
        file.sync_data().unwrap();
        assert_eq!(disk.reopen().bytes(Path::new("f")).unwrap(), b"lost");
    }

    #[test]
    fn planned_failures_fire_and_are_counted() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        disk.fail(Call::Write, 2, 1);
        write(file.as_ref(), 0, b"one");
        assert!(file.write_at(&[IoSlice::new(b"two")], 3).is_err());
        write(file.as_ref(), 3, b"two");
        disk.fail(Call::WriteShort, 1, 1);
        let short = file.write_at(&[IoSlice::new(b"three")], 6).unwrap();
        assert!((1..5).contains(&short));
        disk.set_capacity(disk.used() + 2);
        let full = file.write_at(&[IoSlice::new(&[0; 99])], disk.used());
        assert_eq!(full.unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.heal();
        disk.fail(Call::Read, 1, 1);
        assert!(file.read_at(&mut [0; 3], 0).is_err());
        assert_eq!(file.read_at(&mut [0; 3], 0).unwrap(), 3);
        disk.flip_bit(Path::new("f"), 0);
        assert_eq!(disk.bytes(Path::new("f")).unwrap()[0], b'o' ^ 1);
        disk.faults()
            .assert_fired(&["eio write", "short write", "eio read", "bit flip"], 1);
    }

    #[test]
    fn holes_take_no_room_until_they_are_written() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        let write = |at| file.write_at(&[IoSlice::new(&[7; 100])], at);
        file.set_len(1000).unwrap();
        assert_eq!((file.allocated().unwrap(), disk.used()), (0, 0));
        write(200).unwrap();
        disk.set_capacity(150);
        assert_eq!(write(400).unwrap_err().kind(), io::ErrorKind::StorageFull);
        disk.set_capacity(1000);
        write(950).unwrap();
        file.punch(200, 50).unwrap();
        file.punch(240, 20).unwrap();
        let mut read = [1; 70];
        assert_eq!(file.read_at(&mut read, 200).unwrap(), 70);
        assert!(read[..60] == [0; 60] && read[60..] == [7; 10]);
        file.set_len(1020).unwrap();
        let rest = file.allocated().unwrap();
        file.set_len(210).unwrap();
        file.set_len(1020).unwrap();
        assert!(rest >= 110 && file.allocated().unwrap() == 0);
    }

    #[test]
    fn the_power_goes_at_the_nth_change_and_stays_away() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        disk.crash_at(3);
        write(file.as_ref(), 0, b"a");
        file.sync_data().unwrap();
        assert!(file.write_at(&[IoSlice::new(b"b")], 1).is_err());
        assert!(file.sync_data().is_err());
        assert!(disk.open(Path::new("f"), Mode::Read).is_err());
        assert_eq!(disk.reopen().bytes(Path::new("f")).unwrap(), b"a");
        disk.faults().assert_fired(&["power cut"], 1);
    }

    #[test]
    fn locks_exclude_and_end() {
        let disk = SimDisk::new(1);
        let path = Path::new("lock");
        let first = disk.lock(path, Sharing::Shared).unwrap();
        let second = disk.lock(path, Sharing::Shared).unwrap();
        assert!(matches!(
            disk.lock(path, Sharing::Exclusive),
            Err(LockError::Held { .. })
        ));
        drop((first, second));
        let alone = disk.lock(path, Sharing::Exclusive).unwrap();
        assert!(disk.lock(path, Sharing::Shared).is_err());
        drop(alone);
        assert!(disk.lock(path, Sharing::Shared).is_ok());
    }

    /// A killed process loses nothing that it wrote, until the power goes.
    #[test]
    fn a_kill_keeps_what_was_written_but_not_durably() {
        let disk = SimDisk::new(1);
        let file = disk.open(Path::new("f"), Mode::Create).unwrap();
        disk.sync_dir(Path::new("")).unwrap();
        write(file.as_ref(), 0, &[7; 100]);
        let killed = disk.kill();
        assert_eq!(killed.bytes(Path::new("f")).unwrap(), [7; 100]);
        let mut rng = Rng::new(3);
        let lost =
            (0..50).any(|_| killed.power_cut(&mut rng).bytes(Path::new("f")).unwrap() != [7; 100]);
        assert!(lost);
    }
}
