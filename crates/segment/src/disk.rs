//! The small set of calls that the storage crates make to a file system: a trait, so that tests can give a disk that forgets.

use std::fmt::Debug;
use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

/// A file system, as far as segments need one. Twelve calls with [`DiskFile`], and two that a disk may lack; none of them
/// appends, maps or seeks.
///
/// What an implementation must hold (specs/segment.md §2): a name that was created, renamed or removed is sure to survive a
/// power cut only after [`Disk::sync_dir`] of its folder returned; bytes only after [`DiskFile::sync_data`] returned.
pub trait Disk: Send + Sync + Debug {
    /// Opens a file in the given way.
    ///
    /// # Errors
    /// As the operating system has it; [`io::ErrorKind::NotFound`] for a name that does not exist.
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>>;

    /// Makes a folder and those above it; no error if it exists.
    ///
    /// # Errors
    /// As the operating system has it.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// As the operating system has it.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Gives a file a new name in the same folder, replacing what had it.
    ///
    /// # Errors
    /// As the operating system has it.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a name.
    ///
    /// # Errors
    /// As the operating system has it.
    fn unlink(&self, path: &Path) -> io::Result<()>;

    /// Makes the names of a folder durable.
    ///
    /// # Errors
    /// As the operating system has it.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the advisory lock of a lock file without waiting. The lock ends with the returned value, and with the process.
    ///
    /// # Errors
    /// [`LockError::Held`] if another opening has it.
    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError>;
}

/// An open file. Many threads may read while one writes; two writers at once are the caller's mistake.
pub trait DiskFile: Send + Sync + Debug {
    /// Reads into `buf` from offset `at`; fewer bytes only at the end of the file.
    ///
    /// # Errors
    /// As the operating system has it.
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize>;

    /// Writes the slices one after the other from offset `at`; may write less, and says how much.
    ///
    /// # Errors
    /// As the operating system has it.
    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize>;

    /// Cuts the file, or extends it with zeros that take no space where the file system can.
    ///
    /// # Errors
    /// As the operating system has it.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Makes the bytes and the length durable.
    ///
    /// # Errors
    /// As the operating system has it. After an error nothing is known about what was written since the last success, and a
    /// second call may succeed without having written it: callers give the file up for writing.
    fn sync_data(&self) -> io::Result<()>;

    /// Length in bytes.
    ///
    /// # Errors
    /// As the operating system has it.
    fn len(&self) -> io::Result<u64>;

    /// Gives the space of a stretch back; it reads as zeros from then on, and the length stays. Nothing is durable before
    /// [`DiskFile::sync_data`]: after a power cut any part of the stretch may hold its old bytes or zeros.
    ///
    /// # Errors
    /// [`io::ErrorKind::Unsupported`] where the file system cannot, which is what this default says; else as the operating
    /// system has it.
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let _ = (at, len);
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Bytes that the file takes on the disk, as far as the file system tells; its length otherwise.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn allocated(&self) -> io::Result<u64> {
        self.len()
    }

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`DiskFile::len`].
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
}

/// Keeps a lock until it is dropped.
pub trait LockGuard: Send + Sync + Debug {}

/// How a file is opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    Write,
    /// For reading and writing; made if it does not exist, kept as it is if it does.
    Create,
}

/// Who else may hold a lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Other readers.
    Shared,
    /// Nobody.
    Exclusive,
}

/// Why a lock was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LockError {
    /// Another opening holds it, in this process or another one.
    #[error("held by {}", holder(.pid))]
    Held {
        /// The process that holds it exclusively, if it could be read.
        pid: Option<u32>,
    },
    /// The lock file could not be opened or locked.
    #[error(transparent)]
    Io(#[from] io::Error),
}

fn holder(pid: &Option<u32>) -> String {
    pid.map_or_else(
        || "another process".to_owned(),
        |pid| format!("process {pid}"),
    )
}

/// Whether an error says that there is no room left: the caller may free some and go on.
#[must_use]
pub fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    )
}

/// Whether an error says that the medium does not give these bytes back: they are damaged, and only another copy helps.
#[must_use]
pub fn is_unreadable(error: &io::Error) -> bool {
    const EIO: i32 = 5;
    // What file systems with checksums of their own answer.
    const EBADMSG: i32 = 74;
    const EUCLEAN: i32 = 117;
    const ERROR_CRC: i32 = 23;
    match error.raw_os_error() {
        Some(code) if cfg!(unix) => matches!(code, EIO | EBADMSG | EUCLEAN),
        Some(code) => code == ERROR_CRC,
        None => false,
    }
}

/// Fills `buf` from offset `at`.
pub(crate) fn read_exact_at(
    file: &dyn DiskFile,
    mut buf: &mut [u8],
    mut at: u64,
) -> io::Result<()> {
    while !buf.is_empty() {
        match file.read_at(buf, at) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes all of `bufs` from offset `at`, however often that takes.
pub(crate) fn write_all_at(
    file: &dyn DiskFile,
    mut bufs: &mut [IoSlice<'_>],
    mut at: u64,
) -> io::Result<()> {
    IoSlice::advance_slices(&mut bufs, 0);
    while !bufs.is_empty() {
        match file.write_at(bufs, at) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                IoSlice::advance_slices(&mut bufs, n);
                at += n as u64;
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}
