//! Opening: lock, version, then every pack in order. A crash or damage never keeps a store from opening.

use std::io;
use std::path::Path;
use std::sync::Arc;

use gemba_segment::{
    Access, Disk, Entry, Gap, HeaderFault, LockError, LockGuard, Report, Sharing, State,
};

use crate::ballast::Ballast;
use crate::config::Config;
use crate::error::OpenError;
use crate::format::{self, BLOCK, Layout, TOMBSTONE};
use crate::guard::Guards;
use crate::index::{Index, MAX_LEN, MAX_OFFSET, Place};
use crate::log::{Counters, Log, World, count_in, count_out};
use crate::packs::Packs;
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
    /// The store was of an older format.
    pub migrated: Option<Migrated>,
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
    };
    let mut uses = Uses::open(&world.packs);
    world.index.set_now(uses.now());
    for number in numbers {
        let (state, found) = load_pack(&world, number, read_only, &mut uses, &mut report)?;
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
    Ok(Parts {
        world,
        log,
        report,
        lock,
    })
}

/// Opens a pack and puts its blocks into the index.
fn load_pack(
    world: &World,
    number: u32,
    read_only: bool,
    uses: &mut Uses,
    report: &mut OpenReport,
) -> Result<(State, Report), OpenError> {
    let path = world.packs.path(number);
    world.packs.begin(number);
    let access = if read_only {
        Access::Read
    } else {
        Access::Write
    };
    let opened = gemba_segment::open(
        world.packs.disk().as_ref(),
        &path,
        world.packs.identity(number),
        access,
        &mut |entry| show(world, number, &entry, uses),
    )
    .map_err(|e| match e {
        gemba_segment::OpenError::Header(HeaderFault::Newer(found)) => OpenError::NewerFormat {
            path: path.clone(),
            found: u32::from(found),
            known: u32::from(gemba_segment::FORMAT),
        },
        gemba_segment::OpenError::Header(fault) => OpenError::ForeignPack {
            path: path.clone(),
            fault,
        },
        gemba_segment::OpenError::Io(e) => io_error(&path, e),
        other => io_error(&path, io::Error::other(other)),
    })?;
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
    Ok((opened.state, opened.report))
}

/// One frame, in the order of the files: the last word on a block counts.
fn show(world: &World, number: u32, entry: &Entry, uses: &mut Uses) {
    if entry.at >= MAX_OFFSET || entry.len > MAX_LEN {
        // No store writes there, or a block of that length: somebody made this file.
        world.packs.note(number, |pack| pack.strange = true);
        return;
    }
    let fp = world.index.fingerprint(&entry.tag);
    let is_block = entry.kind == BLOCK;
    world
        .packs
        .found(number, entry.tag.len(), entry.frame_len(), is_block);
    let replaced = match entry.kind {
        BLOCK => {
            count_in(&world.counters, entry.len);
            let place = Place::new(number, entry.at);
            let used = uses.of(place);
            world.index.insert(fp, place, entry.len, 0, used)
        }
        TOMBSTONE => world.index.remove(fp),
        // Kinds of later formats that do not change what blocks there are.
        _ => {
            world.packs.note(number, |pack| pack.strange = true);
            None
        }
    };
    if let Some(old) = replaced {
        let len = gemba_segment::frame_len(entry.tag.len(), old.len as usize);
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
