//! The disk of the operating system. Thin: it translates calls and decides nothing.
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "this file is the one driver of std::fs in this crate"
)]

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, IoSlice, Read as _, Seek as _, Write as _};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::disk::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing};

/// [`Disk`] on `std::fs`. Reads are positional; writes are vectored, so that large payloads are not copied.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(mode != Mode::Read)
            .create(mode == Mode::Create)
            .truncate(false)
            .open(path)?;
        Ok(Arc::new(RealFile {
            file,
            cursor: Mutex::new(0),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        std::fs::create_dir_all(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            // Names that are not UTF-8 are none of ours.
            if let Ok(name) = entry?.file_name().into_string() {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        std::fs::rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        std::fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if cfg!(unix) {
            File::open(dir)?.sync_all()
        } else {
            // Windows has no such call; its file systems journal names by themselves.
            Ok(())
        }
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        let mut file = open_lock_file(path, sharing)?;
        let taken = match sharing {
            Sharing::Shared => file.try_lock_shared(),
            Sharing::Exclusive => file.try_lock(),
        };
        match taken {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let mut text = String::new();
                // Only a hint for people: unreadable or stale text costs nothing but the hint.
                let pid = match file.read_to_string(&mut text) {
                    Ok(_) => text.trim().parse().ok(),
                    Err(_) => None,
                };
                return Err(LockError::Held { pid });
            }
            Err(TryLockError::Error(e)) => return Err(e.into()),
        }
        if sharing == Sharing::Exclusive {
            file.set_len(0)?;
            // On a full disk the hint is missing, and the store opens all the same.
            let _ = write!(file, "{}", std::process::id());
        }
        Ok(Box::new(RealLock { _file: file }))
    }
}

/// A reader on a read-only medium can still take the shared lock, if the file is there.
fn open_lock_file(path: &Path, sharing: Sharing) -> io::Result<File> {
    let writable = || {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)
    };
    match sharing {
        Sharing::Exclusive => writable(),
        Sharing::Shared => match File::open(path) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => writable(),
            other => other,
        },
    }
}

#[derive(Debug)]
struct RealLock {
    _file: File,
}

impl LockGuard for RealLock {}

#[derive(Debug)]
struct RealFile {
    file: File,
    /// Where the file's cursor stands, so that appends need no seek. Positional reads do not move it on Unix.
    cursor: Mutex<u64>,
}

impl DiskFile for RealFile {
    #[cfg(unix)]
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::unix::fs::FileExt::read_at(&self.file, buf, at)
    }

    #[cfg(windows)]
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        std::os::windows::fs::FileExt::seek_read(&self.file, buf, at)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let mut cursor = self.cursor.lock().unwrap_or_else(PoisonError::into_inner);
        // On Windows a positional read moves the cursor, so it is set before every write there.
        if *cursor != at || cfg!(windows) {
            *cursor = u64::MAX;
            (&self.file).seek(io::SeekFrom::Start(at))?;
        }
        *cursor = u64::MAX;
        let written = (&self.file).write_vectored(first_piece(bufs))?;
        *cursor = at + written as u64;
        drop(cursor);
        if written >= PIECE / 4 {
            self.begin_writeback(at, written);
        }
        Ok(written)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        use rustix::fs::{FallocateFlags, fallocate};
        let flags = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        match fallocate(&self.file, flags, at, len) {
            // A file system without holes, or a kernel without the call: the same answer for both.
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => {
                Err(io::ErrorKind::Unsupported.into())
            }
            other => Ok(other?),
        }
    }

    #[cfg(unix)]
    fn allocated(&self) -> io::Result<u64> {
        // The unit is 512 bytes whatever the file system's block size is (stat(2)).
        Ok(std::os::unix::fs::MetadataExt::blocks(&self.file.metadata()?) * 512)
    }
}

/// Bytes of one write. A large one is made in pieces, so that the disk works on the first while the next is copied.
const PIECE: usize = 1024 * 1024;

impl RealFile {
    /// Has the kernel begin to write to the disk what lies in its cache, without waiting: the flush that follows has less left to do.
    /// Advice to forget the range does it on Linux; nothing is forgotten, for what is not written yet stays. A hint, so failures do
    /// not matter.
    #[cfg(any(target_os = "linux", target_os = "android"))]
    fn begin_writeback(&self, at: u64, len: usize) {
        let len = std::num::NonZeroU64::new(len as u64);
        let _hint = rustix::fs::fadvise(&self.file, at, len, rustix::fs::Advice::DontNeed);
    }

    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    fn begin_writeback(&self, _at: u64, _len: usize) {}
}

/// The buffers of one piece: at least one.
fn first_piece<'a, 'b>(bufs: &'a [IoSlice<'b>]) -> &'a [IoSlice<'b>] {
    let mut bytes = 0;
    let end = bufs.iter().position(|buf| {
        bytes += buf.len();
        bytes >= PIECE
    });
    &bufs[..end.map_or(bufs.len(), |last| last + 1)]
}
