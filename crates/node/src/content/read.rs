//! Reading content: files, ranges, listings, whole trees into a folder.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path as FsPath;

use bytes::Bytes;
use cid::Cid;
use gemba_block::{Block, codec};
use gemba_unixfs::fs::{ExportError, ExportOptions, ExportReport};
use gemba_unixfs::{
    BlockSource, DirEntry, LOOK_AHEAD, ListStep, Listing, Path, SourceError, Stat, StatKind,
};

use super::{drive_fail, io_fail, read_fail, source_fail};
use crate::error::{Code, Fail};

/// A path as people type it.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_path(text: &str) -> Result<Path, Fail> {
    let path: Path = text.parse().map_err(|e| {
        Fail::new(Code::Usage, e)
            .hint("a path looks like bafy…/folder/file.txt, with or without /ipfs/ before it")
    })?;
    gemba_block::check_cid(path.root())
        .map_err(|e| Fail::new(Code::Usage, format!("{}: {e}", path.root())))?;
    Ok(path)
}

/// What a path names.
///
/// # Errors
/// [`Code::NotFound`] for a name that is not there or a block that does not come.
pub fn resolve(source: &mut dyn BlockSource, path: &Path) -> Result<Cid, Fail> {
    gemba_unixfs::resolve(source, path)
        .map(|resolved| resolved.cid)
        .map_err(drive_fail)
}

/// Writes the bytes of a file from `offset`, at most `length` of them; how many there were.
///
/// # Errors
/// [`Code::Usage`] for a folder, and as [`resolve`]; the output's.
pub fn cat(
    source: &mut dyn BlockSource,
    path: &Path,
    offset: u64,
    length: Option<u64>,
    out: &mut dyn Write,
) -> Result<u64, Fail> {
    let root = resolve(source, path)?;
    let end = length.map_or(u64::MAX, |length| offset.saturating_add(length));
    gemba_unixfs::cat(source, root, offset..end, out).map_err(drive_fail)
}

/// An entry of a listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Name; bytes that are not UTF-8 are replaced.
    pub name: String,
    /// Its root.
    pub cid: Cid,
    /// What its block says, if that was asked for, or if the link alone tells.
    pub stat: Option<Stat>,
    /// Claimed size of all its blocks in bytes.
    pub tsize: Option<u64>,
}

/// Tells of every entry of a folder, or of the file itself if the path names one. With `long` the root block of each entry is
/// read, which may fetch it.
///
/// # Errors
/// As [`resolve`], and the callback's.
pub fn ls(
    source: &mut dyn BlockSource,
    path: &Path,
    long: bool,
    each: &mut dyn FnMut(Listed) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let root = resolve(source, path)?;
    let own = stat(source, &root)?;
    if !matches!(own.kind, StatKind::Directory { .. }) {
        let name = path
            .file_name()
            .map_or_else(|| root.to_string(), |name| lossy(name));
        return each(Listed {
            name,
            cid: root,
            stat: Some(own),
            tsize: None,
        });
    }
    let mut listing = Listing::new(root);
    loop {
        match listing.poll().map_err(|e| read_fail(&e))? {
            ListStep::NeedBlock(cid) => {
                source.prefetch(&listing.upcoming(LOOK_AHEAD));
                let block = source.get(&cid).map_err(source_fail)?;
                listing.block(&block).map_err(|e| read_fail(&e))?;
            }
            ListStep::Entry(entry) => each(listed(source, entry, long)?)?,
            ListStep::End => return Ok(()),
        }
    }
}

fn listed(source: &mut dyn BlockSource, entry: DirEntry, long: bool) -> Result<Listed, Fail> {
    let name = lossy(&entry.name);
    let stat = match entry.tsize {
        // A raw block is a file without links: the link to it says all.
        Some(size) if entry.cid.codec() == codec::RAW => Some(Stat {
            kind: StatKind::File,
            size,
            mode: None,
            mtime: None,
        }),
        _ if long => {
            let block = block(source, &entry.cid).map_err(|fail| fail.during(&name))?;
            // What is no file is shown without a kind: the folder that holds it is sound.
            Stat::of(&block).ok()
        }
        _ => None,
    };
    Ok(Listed {
        name,
        cid: entry.cid,
        stat,
        tsize: entry.tsize,
    })
}

/// What a root block says about itself.
///
/// # Errors
/// As [`resolve`].
pub fn stat(source: &mut dyn BlockSource, cid: &Cid) -> Result<Stat, Fail> {
    let block = block(source, cid)?;
    Stat::of(&block).map_err(|e| read_fail(&e))
}

/// A block; that of an identity CID is in the CID.
///
/// # Errors
/// [`Code::NotFound`].
pub fn block(source: &mut dyn BlockSource, cid: &Cid) -> Result<Block, Fail> {
    const IDENTITY: u64 = 0;
    if cid.hash().code() == IDENTITY {
        let content = Bytes::copy_from_slice(cid.hash().digest());
        return Block::new(*cid, content)
            .map_err(|e| Fail::new(Code::Usage, format!("{cid}: {e}")));
    }
    source.get(cid).map_err(source_fail)
}

/// Writes what `root` names to `target`, which gets its name when everything is there. Goes on where an earlier export of the same root stopped.
///
/// # Errors
/// [`Code::Conflict`] if the target exists, [`Code::Integrity`] for names that would leave the folder, and as [`resolve`].
pub fn export(
    source: &mut dyn BlockSource,
    root: Cid,
    target: &FsPath,
    options: &ExportOptions,
    check: &mut dyn FnMut(&ExportReport) -> Result<(), Fail>,
) -> Result<ExportReport, Fail> {
    let mut stopped = None;
    let outcome = gemba_unixfs::fs::export(
        source,
        root,
        target,
        options,
        &mut |report| match check(report) {
            Ok(()) => ControlFlow::Continue(()),
            Err(fail) => {
                stopped = Some(fail);
                ControlFlow::Break(())
            }
        },
    );
    match (outcome, stopped) {
        (Err(ExportError::Cancelled), Some(fail)) => Err(fail),
        (outcome, _) => outcome.map_err(export_fail),
    }
}

/// The failure for a target that is there already.
#[must_use]
pub fn exists(target: &FsPath) -> Fail {
    Fail::new(Code::Conflict, format!("{} exists", target.display()))
        .hint("name another place with -o, or replace what is there with --overwrite")
}

fn export_fail(error: ExportError) -> Fail {
    match error {
        ExportError::Exists(target) => exists(&target),
        ExportError::Target(_) => Fail::new(Code::Usage, error),
        ExportError::UnsafeName { .. }
        | ExportError::Clash { .. }
        | ExportError::Symlink { .. } => Fail::new(Code::Integrity, error)
            .hint("nothing outside the target was touched; `gemba ls` shows what the DAG holds"),
        ExportError::Quota { .. } => {
            Fail::new(Code::Failure, error).hint("--max-bytes allows more")
        }
        ExportError::Read { path, source } => at(&path, read_fail(&source)),
        ExportError::Source { path, source } => at(&path, source_fail(source)),
        ExportError::Write { path, source } => Fail::io(path, &source),
        ExportError::Cancelled => Fail::new(Code::Interrupted, error),
        other => Fail::new(Code::Failure, other),
    }
}

fn at(path: &str, fail: Fail) -> Fail {
    if path.is_empty() {
        fail
    } else {
        fail.during(path)
    }
}

fn lossy(name: &[u8]) -> String {
    String::from_utf8_lossy(name).into_owned()
}

/// A source that ends a read when `check` says so.
pub struct Checked<'a, F>(pub &'a mut dyn BlockSource, pub F);

impl<F: FnMut() -> io::Result<()>> BlockSource for Checked<'_, F> {
    fn get(&mut self, cid: &Cid) -> Result<Block, SourceError> {
        (self.1)().map_err(|e| SourceError::failed(cid, io_fail(e)))?;
        self.0.get(cid)
    }

    fn prefetch(&mut self, cids: &[Cid]) {
        self.0.prefetch(cids);
    }
}
