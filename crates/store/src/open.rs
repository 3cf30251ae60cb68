//! Opening: lock, version, then every pack in order. A crash or damage never keeps a store from opening, and neither does a pack that the
//! medium does not give back: it is set aside.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_segment::{
    Access, Disk, Entry, Gap, HeaderFault, Kind, LockError, LockGuard, Mode, Reader, Report,
    Sharing, State, Step, is_unreadable,
};

use crate::ballast::Ballast;
use crate::config::Config;
use crate::error::OpenError;
use crate::format::{self, BLOCK, Layout, TOMBSTONE};
use crate::guard::Guards;
use crate::index::{Fingerprint, Index, MAX_LEN, MAX_OFFSET, Place};
use crate::log::{Counters, Log, World, count_in, count_out};
use crate::packs::{Pack, Packs};
use crate::uses::Uses;
use crate::version::{self, Migrated};

/// What opening found besides blocks. All empty after an orderly stop on a healthy disk by the same version.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct OpenReport {
    /// Stretches of packs that were durable once and are not whole now: blocks are lost. `verify` and a fetch repair.
    pub damage: Vec<PackGap>,
    /// Stretches in the last group before an unclean stop: a put that never returned, or damage; it cannot be told which.
    pub ambiguous: Vec<PackGap>,
    /// Packs whose end was cut, because an unfinished put stood there.
    pub cut: Vec<PackGap>,
    /// Packs that got no footer although they are full or damaged (the disk is full, perhaps). Opening takes longer, no more.
    pub unsealed: Vec<u32>,
    /// Packs that the disk cannot read, and that were set aside.
    pub unreadable: Vec<UnreadablePack>,
    /// The store was of an older format.
    pub migrated: Option<Migrated>,
}

/// A pack that the disk could not read when the store was opened. It stays where it is: nothing is written to it or removed from it, and
/// its blocks count as damaged, so that fetching and putting them again repairs them in another pack. Those that can be read all the same
/// are read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnreadablePack {
    /// The pack's number.
    pub pack: u32,
    /// Its file.
    pub path: PathBuf,
    /// What the disk answered.
    pub cause: String,
}

/// A stretch of bytes in a pack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PackGap {
    /// The pack's number.
    pub pack: u32,
    /// Where the stretch begins.
    pub offset: u64,
    /// Its length in bytes.
    pub len: u64,
}

/// A store that was opened, in parts.
pub(crate) struct Parts {
    pub(crate) world: World,
    pub(crate) log: Log,
    pub(crate) report: OpenReport,
    pub(crate) lock: Option<Box<dyn LockGuard>>,
}

pub(crate) fn open(
    disk: &Arc<dyn Disk>,
    dir: &Path,
    config: &Config,
    read_only: bool,
) -> Result<Parts, OpenError> {
    let layout = Layout::new(dir);
    if !read_only {
        disk.create_dir(dir).map_err(|e| io_error(dir, e))?;
    }
    // The version comes before the lock file is made: a newer store is not touched in any way.
    version::refuse_newer(disk.as_ref(), &layout)?;
    let lock = take_lock(disk.as_ref(), &layout, read_only)?;
    let numbers = list_packs(disk.as_ref(), dir)?;
    let (store_id, migrated) = version::settle(disk.as_ref(), &layout, &numbers, read_only)?;
    if !read_only {
        sync_names(disk.as_ref(), dir, numbers.is_empty()).map_err(|e| io_error(dir, e))?;
    }
    let world = World {
        index: Arc::new(Index::new()),
        packs: Arc::new(Packs::new(
            Arc::clone(disk),
            layout,
            store_id,
            config.open_packs,
        )),
        guards: Arc::new(Guards::default()),
        counters: Arc::new(Counters::default()),
    };
    let mut report = OpenReport {
        migrated,
        ..OpenReport::default()
    };
    let pack_bytes = config.effective_pack_bytes();
    let ballast = if read_only { 0 } else { config.ballast };
    let mut log = Log {
        writer: None,
        last_number: numbers.last().copied().unwrap_or(0),
        pack_bytes,
        limits: config.limits(),
        ballast: Ballast::new(disk.as_ref(), world.packs.layout().ballast(), ballast),
        doubt: None,
    };
    let mut uses = Uses::open(&world.packs);
    world.index.set_now(uses.now());
    let mut aside = Aside::default();
    for number in numbers {
        let loaded = load_pack(
            &world,
            number,
            read_only,
            &mut uses,
            &mut report,
            &mut aside,
        )?;
        let Some((state, found)) = loaded else {
            continue;
        };
        if read_only {
            continue;
        }
        let last = number == log.last_number;
        if matches!(state, State::Unfinished) && last {
            // Nothing is in it yet: the next pack is made under this number.
            log.last_number = number - 1;
            continue;
        }
        let state = match crate::log::writable(state, pack_bytes) {
            Ok(writer) if last => {
                log.writer = Some((number, writer));
                continue;
            }
            Ok(writer) => State::Open {
                end: writer.end(),
                writer: Some(writer),
            },
            Err(state) => state,
        };
        world.packs.note(number, |pack| pack.closed = true);
        if let Err(e) = crate::log::seal_found(number, state, &found, &world.packs) {
            tracing::warn!(pack = number, error = %e, "no footer could be written; opening takes longer");
            report.unsealed.push(number);
        }
    }
    // Last: whatever stands in another pack as well is whole there.
    aside.show(&world);
    Ok(Parts {
        world,
        log,
        report,
        lock,
    })
}

/// What is known of packs that were set aside.
#[derive(Default)]
struct Aside {
    /// Their numbers, and blocks that stand there as far as can be told.
    packs: Vec<(u32, Vec<Seen>)>,
    /// Tombstones in packs behind the first of them, and where the last of each stands.
    buried: HashMap<Fingerprint, u32>,
}

impl Aside {
    fn note(&mut self, number: u32, frame: &Seen) {
        if !self.packs.is_empty() && frame.kind == TOMBSTONE {
            self.buried.insert(frame.fp, number);
        }
    }

    /// Blocks that stand nowhere else: known to be there, and as good as damaged.
    fn show(&self, world: &World) {
        for (number, seen) in &self.packs {
            for frame in seen {
                let is_strange = frame.at >= MAX_OFFSET || frame.len > MAX_LEN;
                let is_gone = self.buried.get(&frame.fp).is_some_and(|by| by > number);
                if is_strange || is_gone || world.index.locate(frame.fp).is_some() {
                    continue;
                }
                let place = Place::new(*number, frame.at);
                world.index.insert(frame.fp, place, frame.len, 0, 0);
                world.index.mark_bad(frame.fp, place);
                count_in(&world.counters, frame.len);
            }
        }
    }
}

/// A frame that was seen in a pack.
struct Seen {
    fp: Fingerprint,
    kind: Kind,
    at: u64,
    len: u32,
    tag: usize,
}

impl Seen {
    fn of(entry: &Entry, world: &World) -> Self {
        Self {
            fp: world.index.fingerprint(&entry.tag),
            kind: entry.kind,
            at: entry.at,
            len: entry.len,
            tag: entry.tag.len(),
        }
    }

    fn frame_len(&self) -> u64 {
        gemba_segment::frame_len(self.tag, self.len as usize)
    }
}

/// Opens a pack and puts its blocks into the index, all of them or none: half of a list would hide older copies behind what cannot be read.
/// `None` for a pack that was set aside.
fn load_pack(
    world: &World,
    number: u32,
    read_only: bool,
    uses: &mut Uses,
    report: &mut OpenReport,
    aside: &mut Aside,
) -> Result<Option<(State, Report)>, OpenError> {
    let path = world.packs.path(number);
    world.packs.begin(number);
    let access = if read_only {
        Access::Read
    } else {
        Access::Write
    };
    // At most 65,536 frames of 48 bytes, but for packs that somebody else made.
    let mut seen = Vec::new();
    let opened = gemba_segment::open(
        world.packs.disk().as_ref(),
        &path,
        world.packs.identity(number),
        access,
        &mut |entry| seen.push(Seen::of(&entry, world)),
    );
    let opened = match opened {
        Ok(opened) => opened,
        Err(gemba_segment::OpenError::Io(e)) if is_unreadable(&e) => {
            let seen = set_aside(world, number, path, &e, report);
            aside.packs.push((number, seen));
            return Ok(None);
        }
        Err(gemba_segment::OpenError::Header(HeaderFault::Newer(found))) => {
            return Err(OpenError::NewerFormat {
                path,
                found: u32::from(found),
                known: u32::from(gemba_segment::FORMAT),
            });
        }
        Err(gemba_segment::OpenError::Header(fault)) => {
            return Err(OpenError::ForeignPack { path, fault });
        }
        Err(gemba_segment::OpenError::Io(e)) => return Err(io_error(&path, e)),
        Err(other) => return Err(io_error(&path, io::Error::other(other))),
    };
    for frame in &seen {
        aside.note(number, frame);
        show(world, number, frame, uses);
    }
    drop(seen);
    let end = match &opened.state {
        State::Sealed(footer) => Some(footer.end()),
        State::Open { end, .. } => Some(*end),
        State::Damaged(damaged) => Some(damaged.end),
        State::Unfinished => None,
    };
    match end {
        Some(end) => {
            let sealed = matches!(opened.state, State::Sealed(_));
            let holes = if sealed {
                let allocated = opened.reader.file().allocated();
                end.saturating_sub(allocated.map_err(|e| io_error(&path, e))?)
            } else {
                0
            };
            world.packs.note(number, |pack| {
                pack.len = end;
                pack.holes = holes;
                pack.sealed = sealed;
                pack.damaged = !opened.report.damage.is_empty();
            });
            world.packs.keep(number, opened.reader);
        }
        None => world.packs.forget(number),
    }
    note(number, &opened.report, report);
    Ok(Some((opened.state, opened.report)))
}

/// Leaves a pack that the disk cannot read as it is, and tells what can still be seen of it.
fn set_aside(
    world: &World,
    number: u32,
    path: PathBuf,
    error: &io::Error,
    report: &mut OpenReport,
) -> Vec<Seen> {
    tracing::error!(pack = number, %error, "the disk cannot read a pack; it is set aside");
    let (len, seen) = what_can_be_seen(world, number, &path);
    world.packs.set_aside(
        number,
        Pack {
            len,
            live: len,
            blocks: len,
            frames: len,
            closed: true,
            // Nobody appends a footer, punches holes or copies.
            sealed: true,
            strange: true,
            damaged: true,
            ..Pack::default()
        },
    );
    report.unreadable.push(UnreadablePack {
        pack: number,
        path,
        cause: error.to_string(),
    });
    seen
}

/// Length of the file, and the blocks up to the place where reading ends.
fn what_can_be_seen(world: &World, number: u32, path: &Path) -> (u64, Vec<Seen>) {
    let file = world.packs.disk().open(path, Mode::Read);
    let Some((file, len)) = file.ok().and_then(|file| {
        let len = file.len().ok()?;
        Some((file, len))
    }) else {
        return (0, Vec::new());
    };
    let mut walk = Reader::new(file, world.packs.identity(number)).walk(len);
    let mut seen = Vec::new();
    while let Ok(Some(step)) = walk.next_step() {
        if let Step::Frame(entry, _) = step
            && entry.kind == BLOCK
        {
            seen.push(Seen::of(&entry, world));
        }
    }
    (len, seen)
}

/// One frame, in the order of the files: the last word on a block counts.
fn show(world: &World, number: u32, frame: &Seen, uses: &mut Uses) {
    if frame.at >= MAX_OFFSET || frame.len > MAX_LEN {
        // No store writes there, or a block of that length: somebody made this file.
        world.packs.note(number, |pack| pack.strange = true);
        return;
    }
    let is_block = frame.kind == BLOCK;
    world
        .packs
        .found(number, frame.tag, frame.frame_len(), is_block);
    let replaced = match frame.kind {
        BLOCK => {
            count_in(&world.counters, frame.len);
            let place = Place::new(number, frame.at);
            let used = uses.of(place);
            world.index.insert(frame.fp, place, frame.len, 0, used)
        }
        TOMBSTONE => world.index.remove(frame.fp),
        // Kinds of later formats that do not change what blocks there are.
        _ => {
            world.packs.note(number, |pack| pack.strange = true);
            None
        }
    };
    if let Some(old) = replaced {
        let len = gemba_segment::frame_len(frame.tag, old.len as usize);
        world.packs.sub_live(old.place.pack(), len);
        count_out(&world.counters, old.len);
    }
}

fn note(pack: u32, found: &Report, report: &mut OpenReport) {
    if found.is_clean() {
        return;
    }
    tracing::warn!(
        pack,
        damaged_bytes = found.damaged_bytes,
        ambiguous_bytes = found.ambiguous_bytes,
        cut_bytes = found.cut.map_or(0, |gap| gap.len),
        "a pack did not end in order"
    );
    let place = |gap: &Gap| PackGap {
        pack,
        offset: gap.at,
        len: gap.len,
    };
    report.damage.extend(found.damage.iter().map(place));
    report.ambiguous.extend(found.ambiguous.iter().map(place));
    report.cut.extend(found.cut.iter().map(place));
}

fn take_lock(
    disk: &dyn Disk,
    layout: &Layout,
    read_only: bool,
) -> Result<Option<Box<dyn LockGuard>>, OpenError> {
    let path = layout.lock();
    let sharing = if read_only {
        Sharing::Shared
    } else {
        Sharing::Exclusive
    };
    match disk.lock(&path, sharing) {
        Ok(guard) => Ok(Some(guard)),
        Err(LockError::Held { pid }) => Err(OpenError::LockHeld { path, pid }),
        // A medium that cannot be written has no writer to be kept out.
        Err(LockError::Io(e)) if read_only && e.kind() == io::ErrorKind::ReadOnlyFilesystem => {
            Ok(None)
        }
        Err(LockError::Io(e)) if e.kind() == io::ErrorKind::NotFound => {
            Err(OpenError::Missing(layout.dir.clone()))
        }
        Err(LockError::Io(e)) => Err(io_error(&path, e)),
        Err(other) => Err(io_error(&path, io::Error::other(other))),
    }
}

fn list_packs(disk: &dyn Disk, dir: &Path) -> Result<Vec<u32>, OpenError> {
    let names = disk.list(dir).map_err(|e| io_error(dir, e))?;
    let mut numbers: Vec<_> = names
        .iter()
        .filter_map(|name| format::pack_number(name))
        .collect();
    numbers.sort_unstable();
    Ok(numbers)
}

/// Makes durable whatever names are there: a process may have died between making one and syncing it. Before the first pack
/// is made the folders above are made durable too; a store with packs has been through that.
fn sync_names(disk: &dyn Disk, dir: &Path, is_new: bool) -> io::Result<()> {
    disk.sync_dir(dir)?;
    if !is_new {
        return Ok(());
    }
    for above in dir.ancestors().skip(1) {
        let above = if above.as_os_str().is_empty() {
            Path::new(".")
        } else {
            above
        };
        match disk.sync_dir(above) {
            // A folder that we may not even open, or on a medium that is not written, was not made by us.
            Err(e)
                if matches!(
                    e.kind(),
                    io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem
                ) =>
            {
                return Ok(());
            }
            other => other?,
        }
    }
    Ok(())
}

pub(crate) fn io_error(path: &Path, source: io::Error) -> OpenError {
    OpenError::Io {
        path: path.to_path_buf(),
        source,
    }
}
