//! Reading content: files, ranges, listings, whole trees into a folder.

use std::io::{self, Write};
use std::ops::ControlFlow;
use std::path::Path as FsPath;

use bytes::Bytes;
use cid::Cid;
use gemba_block::{Block, codec};
use gemba_store::Store;
use gemba_unixfs::dagpb::Kind;
use gemba_unixfs::fs::{ExportError, ExportOptions, ExportReport, partial_path};
use gemba_unixfs::{
    BlockSource, DirEntry, DriveError, LOOK_AHEAD, ListStep, Listing, Path, ReadError, SourceError,
    Stat, StatKind,
};

use super::{StoreSource, drive_fail, io_fail, read_fail, source_fail};
use crate::error::{Code, Fail};
use crate::text;

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
/// [`Code::NotFound`] for a name that is not there, one below a file, or a block that does not come.
pub fn resolve(source: &mut dyn BlockSource, path: &Path) -> Result<Cid, Fail> {
    gemba_unixfs::resolve(source, path)
        .map(|resolved| resolved.cid)
        .map_err(|error| match error {
            // Only folders are looked into on the way: what was asked for is below something else, so it is not there.
            DriveError::Read(ReadError::WrongKind {
                cid,
                kind,
                wanted: "a directory",
            }) => nothing_below(path, &cid, kind),
            error => drive_fail(error),
        })
}

fn nothing_below(path: &Path, cid: &Cid, kind: Kind) -> Fail {
    let fail = |what: &str| {
        Fail::new(
            Code::NotFound,
            format!(
                "there is no {}: {cid} on the way is {what}",
                text::shown(&path.to_string())
            ),
        )
    };
    match kind {
        Kind::Symlink => fail("a symbolic link").hint(
            "links are not followed inside a path: `gemba ls --long` on the folder shows where it points",
        ),
        _ => fail("a file").hint("nothing lies below a file; `gemba ls` shows what a folder holds"),
    }
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
    /// Name, any bytes.
    pub name: Vec<u8>,
    /// Its root.
    pub cid: Cid,
    /// What its block says, if that was asked for, or if it could be told cheaply.
    pub stat: Option<Stat>,
    /// Claimed size of all its blocks in bytes.
    pub tsize: Option<u64>,
}

/// Where a listing learns what its entries are.
pub enum Kinds<'a> {
    /// From the root block of each, which may fetch it.
    All,
    /// From links, and from blocks that are here, as long as that costs little; the rest stay unknown.
    Cheap(&'a Store),
}

impl<'a> Kinds<'a> {
    /// All of them if that is asked for (`--long`).
    #[must_use]
    pub fn of(all: bool, store: &'a Store) -> Self {
        if all { Self::All } else { Self::Cheap(store) }
    }
}

/// Bytes of blocks that a listing reads in order to tell files from folders ([`Kinds::Cheap`]). Folders are small, and entries that are
/// large files say so in their first block, which is small as well; old imports have files in one large block.
const CHEAP_BYTES: u64 = 16 * 1024 * 1024;

/// Tells of every entry of a folder, or of the file itself if the path names one.
///
/// # Errors
/// As [`resolve`], and the callback's.
pub fn ls(
    source: &mut dyn BlockSource,
    path: &Path,
    kinds: &Kinds<'_>,
    each: &mut dyn FnMut(Listed) -> Result<(), Fail>,
) -> Result<(), Fail> {
    let root = resolve(source, path)?;
    let own = stat(source, &root)?;
    if !matches!(own.kind, StatKind::Directory { .. }) {
        let name = path
            .file_name()
            .map_or_else(|| root.to_string().into_bytes(), |name| name.to_vec());
        return each(Listed {
            name,
            cid: root,
            stat: Some(own),
            tsize: None,
        });
    }
    let mut listing = Listing::new(root);
    let mut budget = CHEAP_BYTES;
    loop {
        match listing.poll().map_err(|e| read_fail(&e))? {
            ListStep::NeedBlock(cid) => {
                source.prefetch(&listing.upcoming(LOOK_AHEAD));
                let block = source.get(&cid).map_err(source_fail)?;
                listing.block(&block).map_err(|e| read_fail(&e))?;
            }
            ListStep::Entry(entry) => each(listed(source, entry, kinds, &mut budget)?)?,
            ListStep::End => return Ok(()),
        }
    }
}

fn listed(
    source: &mut dyn BlockSource,
    entry: DirEntry,
    kinds: &Kinds<'_>,
    budget: &mut u64,
) -> Result<Listed, Fail> {
    let stat = match (entry.tsize, kinds) {
        // A raw block is a file without links: the link to it says all.
        (Some(size), _) if entry.cid.codec() == codec::RAW => Some(Stat {
            kind: StatKind::File,
            size,
            mode: None,
            mtime: None,
        }),
        (_, Kinds::All) => {
            let block = block(source, &entry.cid)
                .map_err(|fail| fail.during(text::shown_bytes(&entry.name)))?;
            // What is no file is shown without a kind: the folder that holds it is sound.
            Stat::of(&block).ok()
        }
        (_, Kinds::Cheap(store)) => stat_if_cheap(store, &entry.cid, budget),
    };
    Ok(Listed {
        name: entry.name.to_vec(),
        cid: entry.cid,
        stat,
        tsize: entry.tsize,
    })
}

/// What a block says that is here. A damaged one says nothing: a listing of its folder needs none of it.
fn stat_if_cheap(store: &Store, cid: &Cid, budget: &mut u64) -> Option<Stat> {
    *budget = budget.checked_sub(store.size(cid)?)?;
    let block = block(&mut StoreSource(store.clone()), cid).ok()?;
    Stat::of(&block).ok()
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
        (outcome, _) => outcome.map_err(|error| export_fail(error, target)),
    }
}

/// The failure for a target that is there already.
#[must_use]
pub fn exists(target: &FsPath) -> Fail {
    let fail = Fail::new(Code::Conflict, format!("{} exists", text::path(target)));
    if target.is_dir() {
        return fail.hint("name another place with -o (with a slash at the end, as in -o DIR/, what is got is put into that folder), or replace what is there with --overwrite");
    }
    fail.hint("name another place with -o, or replace what is there with --overwrite")
}

/// A failed export to `target`, with what stays of it.
#[must_use]
pub fn with_partial(fail: Fail, target: &FsPath) -> Fail {
    // What a conflict or a wrong command line stopped was not begun.
    if matches!(fail.code, Code::Conflict | Code::Usage) {
        return fail;
    }
    let Some(partial) = partial_path(target).filter(|partial| partial.join("tree").exists()) else {
        return fail;
    };
    let stays = format!(
        "what is finished stays in {}, and the same command goes on where this one stopped",
        text::path(&partial)
    );
    let hint = match fail.hint.as_str() {
        "" => stays,
        hint => format!("{hint}; {stays}"),
    };
    fail.hint(hint)
}

fn export_fail(error: ExportError, target: &FsPath) -> Fail {
    match error {
        ExportError::Exists(target) => exists(&target),
        ExportError::Target(_) => {
            Fail::new(Code::Usage, error).hint("name a file or folder to make, as in -o out")
        }
        ExportError::UnsafeName { .. }
        | ExportError::Clash { .. }
        | ExportError::Symlink { .. } => Fail::new(Code::Integrity, error)
            .hint("nothing outside the target was touched; `gemba ls` shows what the DAG holds"),
        ExportError::Quota { path, limit, unit } => {
            let hint = match unit {
                "bytes" => "--max-bytes N allows more",
                _ => "get its folders one by one: `gemba ls` lists them",
            };
            let stopped = match path.as_str() {
                "" => String::new(),
                path => format!("; stopped at {}", text::shown(path)),
            };
            Fail::new(
                Code::Usage,
                format!("there are more than {limit} {unit} to write{stopped}"),
            )
            .hint(hint)
        }
        ExportError::Read { path, source } => at(&path, read_fail(&source)),
        ExportError::Source { path, source } => at(&path, source_fail(source)),
        ExportError::Write { path, source } => write_fail(&path, &source, target),
        ExportError::Cancelled => Fail::new(Code::Interrupted, error),
        other => Fail::new(Code::Failure, other),
    }
}

/// `path` is that of an entry below the target, empty for the target itself, or one beside it.
fn write_fail(path: &str, error: &io::Error, target: &FsPath) -> Fail {
    let named = FsPath::new(path);
    let beside = target
        .parent()
        .is_some_and(|parent| !parent.as_os_str().is_empty() && named.starts_with(parent));
    let place = if path.is_empty() {
        target.to_owned()
    } else if beside || target.starts_with(named) {
        named.to_owned()
    } else {
        target.join(named)
    };
    let fail = Fail::io(place, error);
    if gemba_segment::is_full(error) {
        return fail.hint("the disk is full: free some space, or write elsewhere with -o");
    }
    match error.kind() {
        io::ErrorKind::NotFound => fail.hint("the folder that it is to lie in must be there"),
        _ => fail,
    }
}

fn at(path: &str, fail: Fail) -> Fail {
    if path.is_empty() {
        fail
    } else {
        fail.during(text::shown(path))
    }
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
