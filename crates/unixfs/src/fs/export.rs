//! Writing a tree out: into a temporary folder beside the target, and into place when it is whole.
//!
//! `.NAME.gemba-partial/` holds `origin` (the root CID and the boot it was begun in), `tree` (the part of the result
//! that is finished) and `part` (the file that is being written; it gets its name in `tree` when it is complete). An
//! export of the same root that finds this folder goes on where the last one stopped; another root begins anew.
//!
//! Durability: a file of at least 1 MiB is synced before it gets its name; the whole file system is synced before the
//! tree gets the target's name, and the target's folder after that. So a target that exists is whole, also after a
//! power cut, and after a power cut an export trusts only the large files of the unfinished one.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::ControlFlow;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use rustix::fs::FileType;
use rustix::io::Errno;

use super::confined::{Folder, Name, kind_of, link_target, set_attributes};
use crate::dir::lossy;
use crate::error::{ReadError, SourceError};
use crate::list::Stat;
use crate::read::{ReadStep, Reader};
use crate::source::{BlockSource, LOOK_AHEAD};
use crate::walk::{TreeStep, TreeWalk};

/// Files of at least this size are synced one by one.
const SYNC_BYTES: u64 = 1024 * 1024;

/// What is done with symlinks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Symlinks {
    /// Written as they are, wherever they point. They are never followed.
    #[default]
    Keep,
    /// Written if they are relative and stay below the target; others refuse the export.
    Inside,
    /// Any symlink refuses the export.
    Refuse,
}

/// How an export behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportOptions {
    /// Replaces what has the target's name, once the new tree is whole.
    pub overwrite: bool,
    /// Most bytes of content: the quota against a DAG that unfolds to more than any disk holds.
    pub max_bytes: u64,
    /// Most files, folders and symlinks.
    pub max_entries: u64,
    /// What is done with symlinks.
    pub symlinks: Symlinks,
    /// Sets permission bits and modification times where the DAG has them.
    pub attributes: bool,
    /// Makes everything durable before the target gets its name.
    pub sync: bool,
}

impl Default for ExportOptions {
    /// 64 GiB and a million entries at most, attributes set, durable, never overwriting.
    fn default() -> Self {
        ExportOptions {
            overwrite: false,
            max_bytes: 64 << 30,
            max_entries: 1_000_000,
            symlinks: Symlinks::Keep,
            attributes: true,
            sync: true,
        }
    }
}

/// How far an export is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Files, folders and symlinks that are in place.
    pub entries: u64,
    /// Bytes of content that are in place, including the ones that were already.
    pub bytes: u64,
    /// Of these, files that an earlier export had finished.
    pub resumed_files: u64,
}

/// Why an export stopped. Files that it finished stay in the temporary folder ([`partial_path`]) for the next try; where a next
/// try cannot succeed, or would begin anew all the same, nothing stays.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// There is something of the target's name already.
    #[error("{} exists: remove it, choose another name or allow overwriting", .0.display())]
    Exists(PathBuf),
    /// The target has no name of its own.
    #[error("{} cannot be the name of a target", .0.display())]
    Target(PathBuf),
    /// An entry's name would not stay in its folder, or fits no file system.
    #[error("{path:?} in the DAG holds a name that cannot be a file's")]
    UnsafeName {
        /// Where it is in the DAG.
        path: String,
    },
    /// Two entries of one folder have the same name on this file system.
    #[error(
        "{path:?} is in the DAG twice, or differs only in a way that this file system does not see"
    )]
    Clash {
        /// Where it is in the DAG.
        path: String,
    },
    /// A symlink that the options refuse, or that cannot be one.
    #[error("symlink {path:?} -> {target:?} is refused")]
    Symlink {
        /// Where it is in the DAG.
        path: String,
        /// Where it points.
        target: String,
    },
    /// The tree is larger than was allowed.
    #[error("{path:?}: the tree has more than {limit} {unit}")]
    Quota {
        /// Where it was given up.
        path: String,
        /// The limit.
        limit: u64,
        /// `bytes` or `entries`.
        unit: &'static str,
    },
    /// The DAG is not sound.
    #[error("{path:?}: {source}")]
    Read {
        /// Where in the DAG.
        path: String,
        /// What is wrong.
        source: ReadError,
    },
    /// A block did not come.
    #[error("{path:?}: {source}")]
    Source {
        /// Where in the DAG.
        path: String,
        /// Why.
        source: SourceError,
    },
    /// The file system refused.
    #[error("{path:?} could not be written: {source}")]
    Write {
        /// Where in the DAG, or beside the target.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The progress callback said so.
    #[error("the export was cancelled")]
    Cancelled,
}

impl ExportError {
    /// Whether the same DAG fails again however often it is tried.
    #[must_use]
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            ExportError::UnsafeName { .. }
                | ExportError::Clash { .. }
                | ExportError::Symlink { .. }
                | ExportError::Read { .. }
        )
    }
}

/// Where an export to `target` keeps what is not whole yet; `None` if the target has no name of its own.
#[must_use]
pub fn partial_path(target: &Path) -> Option<PathBuf> {
    let name = Name::new(target.file_name()?.as_bytes())?;
    let partial = partial_name(&name);
    Some(target.with_file_name(std::ffi::OsStr::from_bytes(partial.as_c_str().to_bytes())))
}

/// Writes the file, folder or symlink at `root` to `target`.
///
/// Blocks are asked for in the order of the DAG, and ahead of need. `progress` is called after each entry and each
/// block of content.
///
/// # Errors
/// See [`ExportError`]. Only a whole tree ever has the target's name.
pub fn export(
    source: &mut dyn BlockSource,
    root: Cid,
    target: &Path,
    options: &ExportOptions,
    progress: &mut dyn FnMut(&ExportReport) -> ControlFlow<()>,
) -> Result<ExportReport, ExportError> {
    let place = Place::open(target, options)?;
    let partial = Partial::open(&place, root)?;
    let mut export = Export {
        source,
        options,
        progress,
        partial: &partial,
        folders: Vec::new(),
        path: Vec::new(),
        report: ExportReport::default(),
        finished_files: 0,
        root_stat: None,
    };
    let run = export.run(root);
    let (report, finished) = (export.report, export.finished_files);
    let root_stat = export.root_stat.take();
    if let Err(error) = run {
        partial.give_up(&place, &error, finished);
        return Err(error);
    }
    place.finish(&partial, options, root_stat)?;
    Ok(report)
}

/// Where the result goes.
struct Place {
    target: PathBuf,
    parent_path: PathBuf,
    parent: Folder,
    name: Name,
}

impl Place {
    fn open(target: &Path, options: &ExportOptions) -> Result<Self, ExportError> {
        let bad = || ExportError::Target(target.to_owned());
        let name = target
            .file_name()
            .and_then(|name| Name::new(name.as_bytes()))
            .ok_or_else(bad)?;
        let parent_path = target.parent().map(Path::to_owned).unwrap_or_default();
        let parent = Folder::open_path(&parent_path)
            .map_err(|error| write_error(&parent_path.to_string_lossy(), error))?;
        let place = Place {
            target: target.to_owned(),
            parent_path,
            parent,
            name,
        };
        if !options.overwrite && place.taken()? {
            return Err(ExportError::Exists(target.to_owned()));
        }
        Ok(place)
    }

    fn taken(&self) -> Result<bool, ExportError> {
        let stat = self
            .parent
            .stat(&self.name)
            .map_err(|error| self.error(error))?;
        Ok(stat.is_some())
    }

    fn finish(
        &self,
        partial: &Partial,
        options: &ExportOptions,
        root: Option<Stat>,
    ) -> Result<(), ExportError> {
        let fail = |error| self.error(error);
        if options.sync {
            partial.folder.sync_all().map_err(fail)?;
        }
        match partial
            .folder
            .place(&partial.tree, &self.parent, &self.name)
        {
            Err(Errno::EXIST) if options.overwrite => {
                let aside = plain("old");
                partial
                    .folder
                    .swap(&partial.tree, &self.parent, &self.name, &aside)
                    .map_err(fail)?;
            }
            Err(Errno::EXIST) => return Err(ExportError::Exists(self.target.clone())),
            done => done.map_err(fail)?,
        }
        // A folder that its owner may not write could not have been moved: its attributes come last.
        if let (true, Some(stat)) = (options.attributes, root) {
            let folder = self.parent.open(&self.name).map_err(fail)?;
            folder.set_attributes(stat.mode, stat.mtime).map_err(fail)?;
        }
        if options.sync {
            self.parent.sync().map_err(fail)?;
        }
        partial.remove(self)
    }

    fn error(&self, error: Errno) -> ExportError {
        write_error(&self.target.to_string_lossy(), error)
    }
}

/// `.NAME.gemba-partial`; a name too long for that is shortened to its hash.
fn partial_name(name: &Name) -> Name {
    let name = name.as_c_str().to_bytes();
    let whole = [b".", name, b".gemba-partial"].concat();
    Name::new(&whole).unwrap_or_else(|| {
        let short = format!(".{:016x}.gemba-partial", crate::hamt::hash(name));
        Name::new(short.as_bytes()).expect("a short plain name")
    })
}

/// The temporary folder.
struct Partial {
    folder: Folder,
    name: Name,
    /// An earlier export of the same root left it: it may hold finished files.
    resumed: bool,
    tree: Name,
    part: Name,
    /// Files smaller than this are not trusted: they may have lost their bytes in a power cut.
    trust_from: u64,
}

impl Partial {
    fn open(place: &Place, root: Cid) -> Result<Self, ExportError> {
        let name = partial_name(&place.name);
        let boot = boot_id();
        let mut trust_from = SYNC_BYTES;
        let mut resumed = false;
        let (mut folder, new) = place
            .parent
            .make(&name)
            .map_err(|error| place.error(error))?;
        if !new {
            match read_origin(&folder) {
                Some((begun, in_boot)) if begun == root.to_string() => {
                    resumed = true;
                    if boot.is_some() && boot == in_boot {
                        trust_from = 0;
                    }
                }
                // Another root, or not ours to read: begin anew.
                _ => {
                    drop(folder);
                    remove_all(place, &name)?;
                    folder = place
                        .parent
                        .make(&name)
                        .map_err(|error| place.error(error))?
                        .0;
                }
            }
        }
        let partial = Partial {
            folder,
            name,
            resumed,
            tree: plain("tree"),
            part: plain("part"),
            trust_from,
        };
        partial
            .write_origin(root, boot)
            .map_err(|error| write_error("origin", error))?;
        Ok(partial)
    }

    /// Written whole before anything is in `tree`, so that a tree always has its origin.
    fn write_origin(&self, root: Cid, boot: Option<String>) -> std::io::Result<()> {
        let (new, origin) = (plain("origin.new"), plain("origin"));
        let mut file = self.folder.create(&new)?;
        writeln!(file, "{root}\n{}", boot.unwrap_or_default())?;
        file.sync_all()?;
        rename_over(&self.folder, &new, &origin)
    }

    /// Leaves what helps the next try, and only that (U-EXP-3): finished files of a DAG that can be whole one day.
    fn give_up(&self, place: &Place, error: &ExportError, finished_files: u64) {
        let helps = match error {
            error if error.is_final() => false,
            // The same limit stops it again; what an earlier export had begun without it is not this one's to remove.
            ExportError::Quota { .. } => self.resumed,
            _ => self.resumed || finished_files > 0,
        };
        if !helps {
            // The export's own failure says more than one to clean up after it.
            let _left = self.remove(place);
        }
    }

    fn remove(&self, place: &Place) -> Result<(), ExportError> {
        remove_all(place, &self.name)
    }
}

fn rename_over(folder: &Folder, from: &Name, to: &Name) -> std::io::Result<()> {
    match folder.remove_file(to) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(error.into()),
    }
    folder.place(from, folder, to).map_err(Into::into)
}

fn read_origin(folder: &Folder) -> Option<(String, Option<String>)> {
    let mut text = String::new();
    let file = folder.open_file(&plain("origin")).ok()?;
    file.take(4096).read_to_string(&mut text).ok()?;
    let mut lines = text.lines().map(str::to_owned);
    Some((lines.next()?, lines.next().filter(|boot| !boot.is_empty())))
}

/// What the kernel calls this boot; after another one, unsynced files may be damaged.
fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned())
}

/// std's removal goes by descriptors and does not follow symlinks either.
fn remove_all(place: &Place, name: &Name) -> Result<(), ExportError> {
    let path = place
        .parent_path
        .join(std::ffi::OsStr::from_bytes(name.as_c_str().to_bytes()));
    std::fs::remove_dir_all(&path).map_err(|source| ExportError::Write {
        path: path.to_string_lossy().into_owned(),
        source,
    })
}

struct Export<'a> {
    source: &'a mut dyn BlockSource,
    options: &'a ExportOptions,
    progress: &'a mut dyn FnMut(&ExportReport) -> ControlFlow<()>,
    partial: &'a Partial,
    folders: Vec<OpenFolder>,
    /// Where in the DAG, for errors.
    path: Vec<u8>,
    report: ExportReport,
    /// Files that have their name and content, now or from an earlier export.
    finished_files: u64,
    /// Attributes of the root, if it is a folder.
    root_stat: Option<Stat>,
}

struct OpenFolder {
    folder: Folder,
    stat: Stat,
    path_len: usize,
    /// Inodes that entries of this folder have taken: a second entry that meets one of them clashes by name.
    taken: HashSet<u64>,
}

impl Export<'_> {
    fn run(&mut self, root: Cid) -> Result<(), ExportError> {
        let mut walk = TreeWalk::new(root);
        loop {
            let step = walk.poll().map_err(|source| self.read_error(source))?;
            match step {
                TreeStep::NeedBlock(cid) => {
                    self.source.prefetch(&walk.upcoming(LOOK_AHEAD));
                    let block = self.fetch(&cid)?;
                    walk.block(&block)
                        .map_err(|source| self.read_error(source))?;
                    continue;
                }
                TreeStep::Enter { name, stat } => self.enter(&name, stat)?,
                TreeStep::Leave => {
                    self.leave()?;
                    continue;
                }
                TreeStep::File {
                    name,
                    cid,
                    root,
                    stat,
                } => {
                    let ahead = walk.upcoming(LOOK_AHEAD);
                    self.file(&name, cid, root, &stat, &ahead)?;
                }
                TreeStep::Symlink { name, target, stat } => self.symlink(&name, &target, &stat)?,
                TreeStep::End => return Ok(()),
            }
            self.count_entry()?;
        }
    }

    fn enter(&mut self, name: &Bytes, stat: Stat) -> Result<(), ExportError> {
        let path_len = self.path.len();
        let name = self.step_into(name)?;
        let (folder, new) = match self.folders.last() {
            Some(open) => open.folder.make(&name),
            None => self.partial.folder.make(&name),
        }
        .map_err(|error| match error {
            // Something else has the name: a file or symlink of the same DAG.
            Errno::NOTDIR | Errno::LOOP => ExportError::Clash {
                path: lossy(&self.path),
            },
            error => self.write_error(error),
        })?;
        let inode = folder
            .own_stat()
            .map_err(|error| self.write_error(error))?
            .st_ino as u64;
        self.claim(inode, new)?;
        self.folders.push(OpenFolder {
            folder,
            stat,
            path_len,
            taken: HashSet::new(),
        });
        Ok(())
    }

    fn leave(&mut self) -> Result<(), ExportError> {
        let Some(open) = self.folders.pop() else {
            return Ok(());
        };
        if self.folders.is_empty() {
            self.root_stat = Some(open.stat);
        } else if self.options.attributes {
            let set = open.folder.set_attributes(open.stat.mode, open.stat.mtime);
            set.map_err(|error| self.write_error(error))?;
        }
        self.path.truncate(open.path_len);
        Ok(())
    }

    fn file(
        &mut self,
        name: &Bytes,
        cid: Cid,
        root: Option<Block>,
        stat: &Stat,
        ahead: &[Cid],
    ) -> Result<(), ExportError> {
        let path_len = self.path.len();
        let name = self.step_into(name)?;
        if !self.is_finished(&name, stat)? {
            let file = self.write_part(cid, root, ahead)?;
            self.finish_part(file, &name, stat)?;
        }
        self.finished_files += 1;
        self.path.truncate(path_len);
        Ok(())
    }

    /// Whether an earlier export finished this file: it got its name, has its size and is trusted.
    fn is_finished(&mut self, name: &Name, stat: &Stat) -> Result<bool, ExportError> {
        let found = self
            .folder()
            .stat(name)
            .map_err(|error| self.write_error(error))?;
        let Some(found) = found else { return Ok(false) };
        self.claim(found.st_ino as u64, false)?;
        let size = u64::try_from(found.st_size).unwrap_or_default();
        if kind_of(&found) != FileType::RegularFile {
            return Err(ExportError::Clash {
                path: lossy(&self.path),
            });
        }
        if size == stat.size && size >= self.partial.trust_from {
            self.report.resumed_files += 1;
            self.count_bytes(size)?;
            return Ok(true);
        }
        self.folder()
            .remove_file(name)
            .map_err(|error| self.write_error(error))?;
        Ok(false)
    }

    fn write_part(
        &mut self,
        cid: Cid,
        root: Option<Block>,
        ahead: &[Cid],
    ) -> Result<File, ExportError> {
        let part = &self.partial.part;
        let mut file = self
            .partial
            .folder
            .create(part)
            .map_err(|error| self.write_error(error))?;
        let mut reader = Reader::new(cid, ..);
        let mut root = root;
        loop {
            match reader.poll().map_err(|source| self.read_error(source))? {
                ReadStep::NeedBlock(cid) => {
                    let block = match root.take().filter(|root| *root.cid() == cid) {
                        Some(root) => root,
                        None => {
                            let mut upcoming = reader.upcoming(LOOK_AHEAD);
                            upcoming.extend(ahead.iter().take(LOOK_AHEAD - upcoming.len()));
                            self.source.prefetch(&upcoming);
                            self.fetch(&cid)?
                        }
                    };
                    reader
                        .block(&block)
                        .map_err(|source| self.read_error(source))?;
                }
                ReadStep::Bytes(bytes) => {
                    self.count_bytes(bytes.len() as u64)?;
                    file.write_all(&bytes)
                        .map_err(|source| ExportError::Write {
                            path: lossy(&self.path),
                            source,
                        })?;
                    self.tell()?;
                }
                ReadStep::End => return Ok(file),
            }
        }
    }

    /// Gives the written file its attributes and its name.
    fn finish_part(&mut self, file: File, name: &Name, stat: &Stat) -> Result<(), ExportError> {
        if self.options.attributes {
            set_attributes(&file, stat.mode, stat.mtime)
                .map_err(|error| self.write_error(error))?;
        }
        let written = rustix::fs::fstat(file.as_fd()).map_err(|error| self.write_error(error))?;
        if self.options.sync && u64::try_from(written.st_size).unwrap_or_default() >= SYNC_BYTES {
            file.sync_data().map_err(|source| ExportError::Write {
                path: lossy(&self.path),
                source,
            })?;
        }
        self.partial
            .folder
            .place(&self.partial.part, self.folder(), name)
            .map_err(|error| match error {
                Errno::EXIST => ExportError::Clash {
                    path: lossy(&self.path),
                },
                error => self.write_error(error),
            })?;
        self.claim(written.st_ino as u64, true)
    }

    fn symlink(&mut self, name: &Bytes, target: &Bytes, stat: &Stat) -> Result<(), ExportError> {
        let path_len = self.path.len();
        let name = self.step_into(name)?;
        let refused = || ExportError::Symlink {
            path: lossy(&self.path),
            target: lossy(target),
        };
        if !self.may_point(target) {
            return Err(refused());
        }
        let link = link_target(target).ok_or_else(refused)?;
        match self.folder().symlink(&name, &link) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let same = self
                    .folder()
                    .read_link(&name)
                    .is_ok_and(|found| found == link);
                if !same {
                    return Err(ExportError::Clash {
                        path: lossy(&self.path),
                    });
                }
            }
            Err(error) => return Err(self.write_error(error)),
        }
        let found = self
            .folder()
            .stat(&name)
            .map_err(|error| self.write_error(error))?;
        if let Some(found) = found {
            self.claim(found.st_ino as u64, false)?;
        }
        if let (true, Some(mtime)) = (self.options.attributes, stat.mtime) {
            self.folder()
                .set_link_mtime(&name, mtime)
                .map_err(|error| self.write_error(error))?;
        }
        self.path.truncate(path_len);
        Ok(())
    }

    fn may_point(&self, target: &[u8]) -> bool {
        match self.options.symlinks {
            Symlinks::Keep => true,
            Symlinks::Refuse => false,
            // A root that is a symlink has no inside.
            Symlinks::Inside => self
                .folders
                .len()
                .checked_sub(1)
                .is_some_and(|depth| stays_inside(target, depth)),
        }
    }

    /// Checks a name and adds it to the path. The root's is empty and becomes `tree`.
    fn step_into(&mut self, name: &Bytes) -> Result<Name, ExportError> {
        if self.folders.is_empty() {
            return Ok(self.partial.tree.clone());
        }
        if !self.path.is_empty() {
            self.path.push(b'/');
        }
        // A hostile name may have two megabytes: an error shows its beginning.
        self.path.extend_from_slice(&name[..name.len().min(256)]);
        Name::new(name).ok_or_else(|| ExportError::UnsafeName {
            path: lossy(&self.path),
        })
    }

    /// The folder that the current entry is in.
    fn folder(&self) -> &Folder {
        self.folders
            .last()
            .map_or(&self.partial.folder, |open| &open.folder)
    }

    /// Notes an entry's inode. One that is noted already was made by another entry of the same folder, under a name
    /// that this file system takes for the same.
    fn claim(&mut self, inode: u64, new: bool) -> Result<(), ExportError> {
        let Some(open) = self.folders.last_mut() else {
            return Ok(());
        };
        if !open.taken.insert(inode) && !new {
            return Err(ExportError::Clash {
                path: lossy(&self.path),
            });
        }
        Ok(())
    }

    fn count_entry(&mut self) -> Result<(), ExportError> {
        self.report.entries += 1;
        if self.report.entries > self.options.max_entries {
            return Err(self.quota(self.options.max_entries, "entries"));
        }
        self.tell()
    }

    /// Counts before writing, so that the quota is never exceeded.
    fn count_bytes(&mut self, bytes: u64) -> Result<(), ExportError> {
        let total = self.report.bytes.saturating_add(bytes);
        if total > self.options.max_bytes {
            return Err(self.quota(self.options.max_bytes, "bytes"));
        }
        self.report.bytes = total;
        Ok(())
    }

    fn tell(&mut self) -> Result<(), ExportError> {
        match (self.progress)(&self.report) {
            ControlFlow::Continue(()) => Ok(()),
            ControlFlow::Break(()) => Err(ExportError::Cancelled),
        }
    }

    fn fetch(&mut self, cid: &Cid) -> Result<Block, ExportError> {
        self.source.get(cid).map_err(|source| ExportError::Source {
            path: lossy(&self.path),
            source,
        })
    }

    fn quota(&self, limit: u64, unit: &'static str) -> ExportError {
        ExportError::Quota {
            path: lossy(&self.path),
            limit,
            unit,
        }
    }

    fn read_error(&self, source: ReadError) -> ExportError {
        ExportError::Read {
            path: lossy(&self.path),
            source,
        }
    }

    fn write_error(&self, error: Errno) -> ExportError {
        write_error(&lossy(&self.path), error)
    }
}

/// Whether a relative target, from a folder `depth` levels below the root, never climbs above the root.
///
/// `..` behind a name is refused too: the name may be another symlink, and then nobody knows what `..` leaves.
fn stays_inside(target: &[u8], depth: usize) -> bool {
    if target.first() == Some(&b'/') {
        return false;
    }
    let mut up = 0;
    let mut named = false;
    for segment in target.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." if named => return false,
            b".." => up += 1,
            _ => named = true,
        }
    }
    up <= depth
}

fn plain(name: &str) -> Name {
    Name::new(name.as_bytes()).expect("a plain name of ours")
}

fn write_error(path: &str, error: impl Into<std::io::Error>) -> ExportError {
    ExportError::Write {
        path: path.to_owned(),
        source: error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u2_a_target_stays_inside_whatever_its_names_stand_for() {
        let table: &[(&str, usize, bool)] = &[
            ("a", 0, true),
            ("./a/b", 0, true),
            ("..", 0, false),
            ("../a", 1, true),
            ("../../a", 1, false),
            ("/a", 5, false),
            // `a` may be a symlink to `..`; then `a/..` is two levels up.
            ("a/..", 1, false),
            ("a/../../..", 9, false),
            ("../..//./x", 2, true),
        ];
        for (target, depth, inside) in table {
            assert_eq!(
                stays_inside(target.as_bytes(), *depth),
                *inside,
                "{target} at {depth}"
            );
        }
    }
}
