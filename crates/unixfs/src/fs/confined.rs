//! Folders by descriptor, names by single segment: the only way in which an export touches the file system.
//!
//! A [`Name`] is one segment that no file system reads as a path; every call is relative to an open folder and follows
//! no symlink. So nothing outside the folder can be reached, whatever the DAG's names are and whatever other programs
//! do to the folder meanwhile (reliability rows U1, U2).

use std::ffi::{CStr, CString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Stat, Timespec, Timestamps, fchmod, fstat,
    fsync, futimens, mkdirat, openat, readlinkat, renameat, renameat_with, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;

use crate::dagpb::Mtime;

/// Longest name that file systems take, in bytes.
const MAX_NAME: usize = 255;
/// Longest symlink target, in bytes (Linux PATH_MAX without its end).
const MAX_TARGET: usize = 4095;

/// One segment of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(CString);

impl Name {
    /// `None` for what is not a single plain segment: empty, `.`, `..`, with `/` or NUL inside, or too long.
    pub(super) fn new(bytes: &[u8]) -> Option<Self> {
        let plain = !matches!(bytes, b"" | b"." | b"..")
            && bytes.len() <= MAX_NAME
            && !bytes.contains(&b'/');
        if !plain {
            return None;
        }
        CString::new(bytes).ok().map(Name)
    }

    pub(super) fn as_c_str(&self) -> &CStr {
        &self.0
    }
}

/// A symlink's target, `None` for what no symlink can hold.
pub(super) fn link_target(bytes: &[u8]) -> Option<CString> {
    if bytes.is_empty() || bytes.len() > MAX_TARGET {
        return None;
    }
    CString::new(bytes).ok()
}

/// An open folder.
#[derive(Debug)]
pub(super) struct Folder(OwnedFd);

impl Folder {
    /// Opens a folder that the user named: here symlinks are the user's own and are followed.
    pub(super) fn open_path(path: &Path) -> Result<Self, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        openat(
            CWD,
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .map(Folder)
    }

    /// Opens a folder in this one.
    pub(super) fn open(&self, name: &Name) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.0, name.as_c_str(), flags, Mode::empty()).map(Folder)
    }

    /// Makes a folder, or opens the one that is there; whether it is new.
    pub(super) fn make(&self, name: &Name) -> Result<(Self, bool), Errno> {
        let new = match mkdirat(&self.0, name.as_c_str(), Mode::from_raw_mode(0o777)) {
            Ok(()) => true,
            Err(Errno::EXIST) => false,
            Err(error) => return Err(error),
        };
        self.open(name).map(|folder| (folder, new))
    }

    /// Makes an empty file in place of whatever is there: never opens what another program put there.
    pub(super) fn create(&self, name: &Name) -> Result<File, Errno> {
        match self.remove_file(name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        openat(&self.0, name.as_c_str(), flags, Mode::from_raw_mode(0o666)).map(File::from)
    }

    pub(super) fn open_file(&self, name: &Name) -> Result<File, Errno> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        openat(&self.0, name.as_c_str(), flags, Mode::empty()).map(File::from)
    }

    pub(super) fn symlink(&self, name: &Name, target: &CStr) -> Result<(), Errno> {
        symlinkat(target, &self.0, name.as_c_str())
    }

    pub(super) fn read_link(&self, name: &Name) -> Result<CString, Errno> {
        readlinkat(&self.0, name.as_c_str(), Vec::new())
    }

    /// What is there, without following it; `None`: nothing.
    pub(super) fn stat(&self, name: &Name) -> Result<Option<Stat>, Errno> {
        match statat(&self.0, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(super) fn own_stat(&self) -> Result<Stat, Errno> {
        fstat(&self.0)
    }

    pub(super) fn remove_file(&self, name: &Name) -> Result<(), Errno> {
        unlinkat(&self.0, name.as_c_str(), AtFlags::empty())
    }

    /// Moves an entry of this folder to a free place. `EXIST` if the place is taken.
    pub(super) fn place(&self, from: &Name, folder: &Folder, to: &Name) -> Result<(), Errno> {
        let (from, to) = (from.as_c_str(), to.as_c_str());
        match renameat_with(&self.0, from, &folder.0, to, RenameFlags::NOREPLACE) {
            // Some file systems do not know the flag; then a look must do, which another program could outrun.
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                match statat(&folder.0, to, AtFlags::SYMLINK_NOFOLLOW) {
                    Ok(_) => Err(Errno::EXIST),
                    Err(Errno::NOENT) => renameat(&self.0, from, &folder.0, to),
                    Err(error) => Err(error),
                }
            }
            done => done,
        }
    }

    /// Swaps an entry of this folder with one of another, at once if the file system can.
    pub(super) fn swap(
        &self,
        from: &Name,
        folder: &Folder,
        to: &Name,
        aside: &Name,
    ) -> Result<(), Errno> {
        let exchanged = renameat_with(
            &self.0,
            from.as_c_str(),
            &folder.0,
            to.as_c_str(),
            RenameFlags::EXCHANGE,
        );
        match exchanged {
            Err(Errno::INVAL | Errno::NOSYS | Errno::NOTSUP) => {
                renameat(&folder.0, to.as_c_str(), &self.0, aside.as_c_str())?;
                renameat(&self.0, from.as_c_str(), &folder.0, to.as_c_str())
            }
            done => done,
        }
    }

    pub(super) fn sync(&self) -> Result<(), Errno> {
        fsync(&self.0)
    }

    /// Makes everything written to this file system durable.
    pub(super) fn sync_all(&self) -> Result<(), Errno> {
        #[cfg(any(target_os = "linux", target_os = "android"))]
        {
            rustix::fs::syncfs(&self.0)
        }
        #[cfg(not(any(target_os = "linux", target_os = "android")))]
        {
            fsync(&self.0)
        }
    }

    /// Sets what the DAG says of this folder itself.
    pub(super) fn set_attributes(
        &self,
        mode: Option<u32>,
        mtime: Option<Mtime>,
    ) -> Result<(), Errno> {
        set_attributes(&self.0, mode, mtime)
    }

    /// Sets the modification time of a symlink itself.
    pub(super) fn set_link_mtime(&self, name: &Name, mtime: Mtime) -> Result<(), Errno> {
        utimensat(
            &self.0,
            name.as_c_str(),
            &timestamps(mtime),
            AtFlags::SYMLINK_NOFOLLOW,
        )
    }
}

/// Sets what the DAG says of an open file. Set-uid, set-gid and sticky bits are never set: the DAG is a stranger's.
pub(super) fn set_attributes(
    fd: &impl std::os::fd::AsFd,
    mode: Option<u32>,
    mtime: Option<Mtime>,
) -> Result<(), Errno> {
    if let Some(mode) = mode {
        fchmod(fd, Mode::from_bits_truncate((mode & 0o777) as _))?;
    }
    if let Some(mtime) = mtime {
        futimens(fd, &timestamps(mtime))?;
    }
    Ok(())
}

pub(super) fn kind_of(stat: &Stat) -> FileType {
    FileType::from_raw_mode(stat.st_mode)
}

fn timestamps(mtime: Mtime) -> Timestamps {
    let nanos = i64::from(mtime.nanos.min(999_999_999));
    let time = Timespec {
        tv_sec: mtime.seconds as _,
        tv_nsec: nanos as _,
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn u1_only_single_plain_segments_are_names() {
        let long = vec![b'x'; 64 * 1024];
        let bad: [&[u8]; 9] = [
            b"", b".", b"..", b"/", b"a/b", b"/etc", b"../x", b"a\0b", &long,
        ];
        for name in bad {
            assert_eq!(Name::new(name), None, "{:?}", String::from_utf8_lossy(name));
        }
        let good: [&[u8]; 7] = [
            b"a",
            b"...",
            b"..a",
            b" ",
            b"-rf",
            b"\\..\\x",
            "é".as_bytes(),
        ];
        for name in good {
            assert!(Name::new(name).is_some());
        }
        assert!(Name::new(&[b'x'; 255]).is_some());
        assert!(Name::new(&[b'x'; 256]).is_none());
    }
}
