//! Small files that must be private, whole and durable: 0600 in folders of 0700, created exclusively, synced with their folder.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use crate::error::{Code, Fail};

/// Options that create with mode 0600.
#[must_use]
pub fn private_options() -> OpenOptions {
    let mut options = OpenOptions::new();
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    options
}

/// Makes a folder and those above it, with mode 0700; one that is there stays as it is.
///
/// # Errors
/// The file system refuses.
pub fn create_private_dir(path: &Path) -> Result<(), Fail> {
    if path.is_dir() {
        return Ok(());
    }
    let mut builder = DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(path).map_err(|e| Fail::io(path, &e))?;
    sync_parent(path)
}

/// Creates a file that must not exist yet, durable when this returns.
///
/// # Errors
/// [`Code::Conflict`] if it is there.
pub fn write_new(path: &Path, content: &[u8]) -> Result<(), Fail> {
    write_and_sync(
        private_options().write(true).create_new(true),
        path,
        content,
    )
    .map_err(|e| Fail::io(path, &e))?;
    sync_parent(path)
}

/// Replaces a file as a whole: readers see the old content or the new one, also after a power cut.
///
/// # Errors
/// The file system refuses; the old file is untouched then.
pub fn replace(path: &Path, content: &[u8]) -> Result<(), Fail> {
    let mut random = [0u8; 8];
    getrandom::fill(&mut random)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let part = path.with_file_name(format!(
        ".{name}-{}.part",
        data_encoding::HEXLOWER.encode(&random)
    ));
    let written = write_and_sync(
        private_options().write(true).create_new(true),
        &part,
        content,
    )
    .and_then(|()| fs::rename(&part, path));
    if let Err(e) = written {
        // The first error says more than a failure to clean up after it.
        let _ = fs::remove_file(&part);
        return Err(Fail::io(path, &e));
    }
    sync_parent(path)
}

/// Reads a file of at most `limit` bytes.
///
/// # Errors
/// It is not there, may not be read, or is longer.
pub fn read_limited(path: &Path, limit: u64) -> Result<Vec<u8>, Fail> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|e| Fail::io(path, &e))?;
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(|e| Fail::io(path, &e))?;
    if bytes.len() as u64 > limit {
        return Err(Fail::new(
            Code::Failure,
            format!(
                "{} has more than {limit} bytes: it is another file",
                path.display()
            ),
        ));
    }
    Ok(bytes)
}

/// Refuses a secret that others on this machine may read or change.
///
/// # Errors
/// [`Code::Permission`] with the command that mends it.
pub fn check_private(path: &Path) -> Result<(), Fail> {
    let metadata = fs::metadata(path).map_err(|e| Fail::io(path, &e))?;
    #[cfg(unix)]
    {
        let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
        if mode & 0o077 != 0 {
            return Err(Fail::new(
                Code::Permission,
                format!(
                    "{} has mode {mode:03o}: others on this machine may read or change it",
                    path.display()
                ),
            )
            .hint(format!("run: chmod 600 '{}'", path.display())));
        }
    }
    let _ = metadata;
    Ok(())
}

/// Makes a new or renamed entry durable.
///
/// # Errors
/// The file system refuses.
pub fn sync_parent(path: &Path) -> Result<(), Fail> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    #[cfg(unix)]
    File::open(parent)
        .and_then(|dir| dir.sync_all())
        .map_err(|e| Fail::io(parent, &e))?;
    let _ = parent;
    Ok(())
}

fn write_and_sync(options: &OpenOptions, path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = options.open(path)?;
    file.write_all(content)?;
    file.sync_all()
}
