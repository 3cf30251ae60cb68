//! A disk that plants a mistake between the store and the virtual disk.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;

use gemba_segment::{Disk, DiskFile, LockError, LockGuard, Mode, Sharing};
use gemba_testkit::disk::SimDisk;

/// Mistakes that a storage engine may make, planted between the store and the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lie {
    /// Acknowledged before the flush.
    NoSync,
    /// New names are not made durable.
    NoSyncDir,
    /// A failed flush is asked again, and its yes believed.
    RetrySync,
    /// Recovery trusts the kernel's cache: it flushes, but does not write the last group again.
    NoRewrite,
    /// The `version` file is renamed before it is flushed.
    NoSyncVersion,
    /// Only the first part of a write is flushed: its end is written after the flush.
    LateTail,
    /// A hole goes a page beyond the dead block.
    WideHole,
}

/// A disk that plants one.
#[derive(Debug)]
pub struct Lying {
    pub sim: SimDisk,
    pub lie: Lie,
}

#[derive(Debug)]
struct LyingFile {
    file: Arc<dyn DiskFile>,
    lie: Lie,
    is_version: bool,
    late: std::sync::Mutex<Option<(u64, Vec<u8>)>>,
}

impl Disk for Lying {
    fn open(&self, path: &Path, mode: Mode) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(LyingFile {
            file: self.sim.open(path, mode)?,
            lie: self.lie,
            is_version: path.ends_with("version.tmp"),
            late: std::sync::Mutex::default(),
        }))
    }

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.sim.create_dir(path)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.sim.list(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.sim.rename(from, to)
    }

    fn unlink(&self, path: &Path) -> io::Result<()> {
        self.sim.unlink(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        if self.lie == Lie::NoSyncDir {
            return Ok(());
        }
        self.sim.sync_dir(dir)
    }

    fn lock(&self, path: &Path, sharing: Sharing) -> Result<Box<dyn LockGuard>, LockError> {
        self.sim.lock(path, sharing)
    }
}

impl DiskFile for LyingFile {
    fn read_at(&self, buf: &mut [u8], at: u64) -> io::Result<usize> {
        self.file.read_at(buf, at)
    }

    fn write_at(&self, bufs: &[IoSlice<'_>], at: u64) -> io::Result<usize> {
        let all: Vec<u8> = bufs.iter().flat_map(|buf| buf.to_vec()).collect();
        if self.lie == Lie::NoRewrite {
            let mut there = vec![0; all.len()];
            if self.file.read_at(&mut there, at)? == all.len() && there == all {
                return Ok(all.len());
            }
        }
        if self.lie == Lie::LateTail && all.len() > 64 {
            let (now, late) = all.split_at(all.len() - 1);
            let written = self.file.write_at(&[IoSlice::new(now)], at)?;
            *self.late.lock().unwrap() = Some((at + now.len() as u64, late.to_vec()));
            return Ok(written + 1);
        }
        self.file.write_at(bufs, at)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        match self.lie {
            Lie::NoSync => Ok(()),
            Lie::NoSyncVersion if self.is_version => Ok(()),
            Lie::RetrySync => self.file.sync_data().or_else(|_| self.file.sync_data()),
            Lie::LateTail => {
                self.file.sync_data()?;
                if let Some((at, late)) = self.late.lock().unwrap().take() {
                    self.file.write_at(&[IoSlice::new(&late)], at)?;
                }
                Ok(())
            }
            _ => self.file.sync_data(),
        }
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn punch(&self, at: u64, len: u64) -> io::Result<()> {
        let more = if self.lie == Lie::WideHole { 4096 } else { 0 };
        self.file.punch(at, len + more)
    }

    fn allocated(&self) -> io::Result<u64> {
        self.file.allocated()
    }
}
