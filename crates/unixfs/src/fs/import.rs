//! Walking a folder. Every step is relative to an open directory and follows no symlink, so that a folder that changes
//! under the walk cannot lead it elsewhere.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat, fstat, openat, readlinkat, statat,
};

use crate::config::{Meta, Profile};
use crate::dagpb::Mtime;
use crate::error::ImportError;
use crate::import::TreeImporter;
use crate::layout::Part;
use crate::tree::ImportSink;
use crate::walk::MAX_TREE_DEPTH;

/// What of a folder is taken, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImportOptions {
    /// Takes entries whose names begin with a dot. What the path itself names is always taken.
    pub hidden: bool,
    /// Takes what symlinks point to instead of the links. A link to a directory around it is refused.
    pub follow_symlinks: bool,
    /// Puts what is imported into a directory of its own, so that its name is kept.
    pub wrap: bool,
    /// Leaves out sockets, fifos and devices instead of refusing them.
    pub skip_special: bool,
    /// Threads that hash; 0 or 1: the caller's own.
    pub workers: usize,
}

impl Default for ImportOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        // More than four cores outrun any disk of the devices this is for.
        ImportOptions {
            hidden: false,
            follow_symlinks: false,
            wrap: false,
            skip_special: false,
            workers: cores.min(4),
        }
    }
}

/// Imports a file, folder or symlink. Entries are told to the sink as they are finished, in the order of their names,
/// the root last; they are named from the last segment of `path` on.
///
/// # Errors
/// See [`ImportError`]; whatever cannot be read is named with its path. The sink keeps what it was given before.
pub fn import(
    path: &Path,
    profile: &Profile,
    options: &ImportOptions,
    sink: &mut dyn ImportSink,
) -> Result<Part, ImportError> {
    let name = top_name(path)?;
    let mut importer = TreeImporter::new(profile, options.workers);
    let mut walk = FolderWalk {
        options,
        importer: &mut importer,
        sink,
        path: path.to_owned(),
        open: Vec::new(),
    };
    if options.wrap {
        walk.importer.enter_dir(b"", &Meta::default(), walk.sink)?;
    }
    let c_path = c_string(path.as_os_str().as_bytes(), path)?;
    walk.entry(None, &c_path, &name)?;
    walk.run()?;
    if options.wrap {
        walk.importer.leave_dir(walk.sink)?;
    }
    importer.finish(sink)
}

/// The name that a path's root gets: its last segment, or that of what `.` and `..` stand for.
fn top_name(path: &Path) -> Result<Vec<u8>, ImportError> {
    if let Some(name) = path.file_name() {
        return Ok(name.as_bytes().to_vec());
    }
    let real = path.canonicalize().map_err(|source| ImportError::Read {
        path: path.to_owned(),
        source,
    })?;
    Ok(real
        .file_name()
        .map(|name| name.as_bytes().to_vec())
        .unwrap_or_default())
}

struct FolderWalk<'a> {
    options: &'a ImportOptions,
    importer: &'a mut TreeImporter,
    sink: &'a mut dyn ImportSink,
    /// Where the walk is, for errors.
    path: PathBuf,
    open: Vec<OpenFolder>,
}

struct OpenFolder {
    fd: OwnedFd,
    /// Names still to visit, the next one last.
    names: Vec<CString>,
    device: u64,
    inode: u64,
}

impl FolderWalk<'_> {
    /// Visits everything below the folders that are open. Iterative: depth costs a descriptor, not a stack frame.
    fn run(&mut self) -> Result<(), ImportError> {
        while let Some(folder) = self.open.last_mut() {
            let Some(name) = folder.names.pop() else {
                self.open.pop();
                self.importer.leave_dir(self.sink)?;
                if !self.open.is_empty() {
                    self.path.pop();
                }
                continue;
            };
            let depth = self.open.len();
            self.path.push(std::ffi::OsStr::from_bytes(name.as_bytes()));
            self.entry(Some(depth - 1), &name, name.as_bytes())?;
            // A folder that was opened pops its own name when it is left.
            if self.open.len() == depth {
                self.path.pop();
            }
        }
        Ok(())
    }

    /// Adds one entry of the open folder at `parent`, or what the path itself names.
    fn entry(&mut self, parent: Option<usize>, at: &CStr, name: &[u8]) -> Result<(), ImportError> {
        let flags = if self.options.follow_symlinks {
            AtFlags::empty()
        } else {
            AtFlags::SYMLINK_NOFOLLOW
        };
        let stat = match parent {
            Some(parent) => statat(&self.open[parent].fd, at, flags),
            None => statat(CWD, at, flags),
        };
        let stat = stat.map_err(|error| self.unreadable(error))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => self.file(parent, at, name),
            FileType::Directory => self.folder(parent, at, name),
            FileType::Symlink => self.symlink(parent, at, name, &stat),
            special => self.special(special),
        }
    }

    fn file(&mut self, parent: Option<usize>, at: &CStr, name: &[u8]) -> Result<(), ImportError> {
        // NONBLOCK: should the file have become a fifo since, opening it must not wait for a writer.
        let fd = self.open_at(parent, at, OFlags::RDONLY | OFlags::NONBLOCK)?;
        let stat = fstat(&fd).map_err(|error| self.unreadable(error))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind != FileType::RegularFile {
            return self.special(kind);
        }
        let mut file = File::from(fd);
        let added = self.importer.file(name, &meta(&stat), &mut file, self.sink);
        added.map_err(|error| match error {
            ImportError::Read { source, .. } => ImportError::Read {
                path: self.path.clone(),
                source,
            },
            other => other,
        })
    }

    fn folder(&mut self, parent: Option<usize>, at: &CStr, name: &[u8]) -> Result<(), ImportError> {
        if self.open.len() >= MAX_TREE_DEPTH {
            return Err(ImportError::TooDeep {
                path: self.path.clone(),
                limit: MAX_TREE_DEPTH,
            });
        }
        let fd = self.open_at(parent, at, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let stat = fstat(&fd).map_err(|error| self.unreadable(error))?;
        let (device, inode) = (stat.st_dev as u64, stat.st_ino as u64);
        if self
            .open
            .iter()
            .any(|open| (open.device, open.inode) == (device, inode))
        {
            return Err(ImportError::Loop {
                path: self.path.clone(),
            });
        }
        let names = self.names(&fd)?;
        self.importer.enter_dir(name, &meta(&stat), self.sink)?;
        self.open.push(OpenFolder {
            fd,
            names,
            device,
            inode,
        });
        Ok(())
    }

    /// The names in a folder, last first.
    fn names(&self, fd: &OwnedFd) -> Result<Vec<CString>, ImportError> {
        let mut names = Vec::new();
        for entry in Dir::read_from(fd).map_err(|error| self.unreadable(error))? {
            let entry = entry.map_err(|error| self.unreadable(error))?;
            let name = entry.file_name();
            let bytes = name.to_bytes();
            let hidden = bytes.first() == Some(&b'.');
            if bytes == b"." || bytes == b".." || (hidden && !self.options.hidden) {
                continue;
            }
            names.push(name.to_owned());
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(names)
    }

    fn symlink(
        &mut self,
        parent: Option<usize>,
        at: &CStr,
        name: &[u8],
        stat: &Stat,
    ) -> Result<(), ImportError> {
        let target = match parent {
            Some(parent) => readlinkat(&self.open[parent].fd, at, Vec::new()),
            None => readlinkat(CWD, at, Vec::new()),
        };
        let target = target.map_err(|error| self.unreadable(error))?;
        self.importer
            .symlink(name, target.as_bytes(), &meta(stat), self.sink)
    }

    fn special(&mut self, kind: FileType) -> Result<(), ImportError> {
        let kind = match kind {
            FileType::Socket => "socket",
            FileType::Fifo => "fifo",
            FileType::CharacterDevice => "character device",
            FileType::BlockDevice => "block device",
            _ => "special file",
        };
        if self.options.skip_special && !self.open.is_empty() {
            self.sink.skipped(&self.path, kind);
            return Ok(());
        }
        Err(ImportError::Special {
            path: self.path.clone(),
            kind,
        })
    }

    fn open_at(
        &self,
        parent: Option<usize>,
        at: &CStr,
        flags: OFlags,
    ) -> Result<OwnedFd, ImportError> {
        let follow = if self.options.follow_symlinks {
            OFlags::empty()
        } else {
            OFlags::NOFOLLOW
        };
        let flags = flags | OFlags::CLOEXEC | follow;
        let opened = match parent {
            Some(parent) => openat(&self.open[parent].fd, at, flags, Mode::empty()),
            None => openat(CWD, at, flags, Mode::empty()),
        };
        opened.map_err(|error| self.unreadable(error))
    }

    fn unreadable(&self, error: rustix::io::Errno) -> ImportError {
        ImportError::Read {
            path: self.path.clone(),
            source: error.into(),
        }
    }
}

fn meta(stat: &Stat) -> Meta {
    // The kernel's nanoseconds are below 10^9.
    let mtime = Mtime {
        seconds: stat.st_mtime as i64,
        nanos: stat.st_mtime_nsec as u32,
    };
    Meta {
        mode: Some(stat.st_mode as u32 & 0o7777),
        mtime: Some(mtime),
    }
}

fn c_string(bytes: &[u8], path: &Path) -> Result<CString, ImportError> {
    CString::new(bytes).map_err(|error| ImportError::Read {
        path: path.to_owned(),
        source: error.into(),
    })
}
