//! The `version` file: which format a store has and which store it is; and the change from older formats (specs/store.md §2, §10).
//!
//! A migration changes small files only, never packs. It happens when a store is opened for writing, under the lock: what it
//! changes is first kept under another name, durable, and the new `version` file is the last thing to appear. So a crash leaves
//! the old format or the new one, and the next opening goes on from there.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, IoSlice};
use std::path::{Path, PathBuf};

use gemba_segment::{Disk, FILE_HEADER, Mode};

use crate::error::OpenError;
use crate::format::{self, FORMAT, Layout, Version};
use crate::open::io_error;

/// A store was of an older format, and is not any more.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Migrated {
    /// The format that it had.
    pub from: u32,
    /// The `version` file of that format: with it in the place of `version` an older gemba opens the store again.
    pub backup: PathBuf,
}

/// Refuses a store of a newer format, before anything is touched.
pub(crate) fn refuse_newer(disk: &dyn Disk, layout: &Layout) -> Result<(), OpenError> {
    let text = read(disk, layout)?;
    check(layout, text.as_deref()).map(drop)
}

/// What a `version` file says; an error if it is a newer gemba's.
fn check(layout: &Layout, text: Option<&str>) -> Result<Option<(u32, u64)>, OpenError> {
    match text.and_then(format::parse_version) {
        Some(Version::Newer(found)) => Err(OpenError::NewerFormat {
            path: layout.version(),
            found,
            known: FORMAT,
        }),
        Some(Version::Known { format, id }) => Ok(Some((format, id))),
        None => Ok(None),
    }
}

/// The id of the store, under its lock. An older format is migrated, unless the store is only read. Without a good `version` file
/// the id is taken from a pack, and the file is written anew; without packs it is a new store.
pub(crate) fn settle(
    disk: &dyn Disk,
    layout: &Layout,
    numbers: &[u32],
    read_only: bool,
) -> Result<(u64, Option<Migrated>), OpenError> {
    let text = read(disk, layout)?;
    // Asked again: somebody may have migrated it before we had the lock.
    match check(layout, text.as_deref())? {
        Some((FORMAT, id)) => Ok((id, None)),
        Some((format, id)) => {
            let id = id_of_first_format(disk, layout, numbers, id);
            if read_only {
                return Ok((id, None));
            }
            let text = text.unwrap_or_default();
            migrate(disk, layout, format, &text, id).map(|migrated| (id, Some(migrated)))
        }
        None => {
            let id = id_without_version(disk, layout, numbers, text.is_some(), read_only)?;
            if !read_only {
                write(disk, layout, &layout.version(), &format::version_text(id))
                    .map_err(|e| io_error(&layout.version(), e))?;
            }
            Ok((id, None))
        }
    }
}

/// From format 1 to 2: the `version` file gets a checksum.
fn migrate(
    disk: &dyn Disk,
    layout: &Layout,
    from: u32,
    text: &str,
    id: u64,
) -> Result<Migrated, OpenError> {
    let backup = layout.version_of(from);
    let run = || -> io::Result<()> {
        write(disk, layout, &backup, text)?;
        // The backup is there for sure before anything changes.
        disk.sync_dir(&layout.dir)?;
        write(disk, layout, &layout.version(), &format::version_text(id))?;
        disk.sync_dir(&layout.dir)
    };
    run().map_err(|e| io_error(&layout.version(), e))?;
    tracing::info!(from, to = FORMAT, backup = %backup.display(), "the store has a newer format now");
    Ok(Migrated { from, backup })
}

/// The `version` file of format 1 has no checksum. So where all packs agree on another id, they are right.
fn id_of_first_format(disk: &dyn Disk, layout: &Layout, numbers: &[u32], id: u64) -> u64 {
    let mut ids = numbers
        .iter()
        .filter_map(|number| id_from_pack(disk, &layout.pack(*number), *number));
    match ids.next() {
        Some(first) if first != id && ids.all(|other| other == first) => first,
        _ => id,
    }
}

fn id_without_version(
    disk: &dyn Disk,
    layout: &Layout,
    numbers: &[u32],
    is_damaged: bool,
    read_only: bool,
) -> Result<u64, OpenError> {
    let from_packs = numbers
        .iter()
        .find_map(|number| id_from_pack(disk, &layout.pack(*number), *number));
    match from_packs {
        Some(id) => Ok(id),
        // The version file is durable before the first pack is made; so without it there were never blocks, or it was lost
        // by other means than a crash.
        None if numbers.is_empty() && !read_only => Ok(fresh_id()),
        None if numbers.is_empty() && !is_damaged => Err(OpenError::Missing(layout.dir.clone())),
        None => Err(OpenError::BadVersionFile(layout.version())),
    }
}

fn id_from_pack(disk: &dyn Disk, path: &Path, number: u32) -> Option<u64> {
    let file = disk.open(path, Mode::Read).ok()?;
    let mut header = [0; FILE_HEADER];
    let read = file.read_at(&mut header, 0).ok()?;
    if read < FILE_HEADER {
        return None;
    }
    format::id_of_pack(&header, number)
}

/// A value that no other store has. Not a secret; it only must not be known to whoever supplied blocks before.
fn fresh_id() -> u64 {
    RandomState::new().build_hasher().finish()
}

/// The text of the `version` file; `None` if there is none. What is not text is no version.
fn read(disk: &dyn Disk, layout: &Layout) -> Result<Option<String>, OpenError> {
    let path = layout.version();
    let read = || -> io::Result<String> {
        let file = disk.open(&path, Mode::Read)?;
        // Any version file of any format is short; only its first line must be understood.
        let mut bytes = vec![0; 4096];
        let mut len = 0;
        while len < bytes.len() {
            match file.read_at(&mut bytes[len..], len as u64)? {
                0 => break,
                n => len += n,
            }
        }
        Ok(String::from_utf8_lossy(&bytes[..len]).into_owned())
    };
    match read() {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(io_error(&path, e)),
    }
}

/// Writes a small file whole: it is there with its bytes, or not. Its name is durable after the folder is synced.
fn write(disk: &dyn Disk, layout: &Layout, path: &Path, text: &str) -> io::Result<()> {
    let temporary = layout.version_temporary();
    let file = disk.open(&temporary, Mode::Create)?;
    file.set_len(0)?;
    let mut at = 0;
    while at < text.len() {
        match file.write_at(&[IoSlice::new(&text.as_bytes()[at..])], at as u64)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            n => at += n,
        }
    }
    file.sync_data()?;
    disk.rename(&temporary, path)
}
