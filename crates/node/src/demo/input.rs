//! What the demo distributes: a copy of a real folder, so that it may change a file without touching the user's.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Code, Fail};

/// Build output and the like is not what anybody wants to see distributed.
const SKIPPED: [&str; 2] = ["target", "node_modules"];

/// A folder of the demo's own, with its size.
pub(super) struct Input {
    /// Where it is.
    pub folder: PathBuf,
    /// Files in it.
    pub files: u64,
    /// Their content in bytes.
    pub bytes: u64,
}

impl Input {
    /// Copies `from` (default: gemba's own sources) into `to`; hidden entries and build output stay behind.
    pub(super) fn copy(from: Option<&Path>, to: PathBuf) -> Result<Self, Fail> {
        let own = own_sources();
        let (from, trimmed) = match from {
            Some(given) => (given, false),
            None => (own.as_path(), true),
        };
        if !from.is_dir() {
            let hint = "give a folder with --input";
            return Err(Fail::new(
                Code::NotFound,
                format!("{} is no folder to distribute", from.display()),
            )
            .hint(hint));
        }
        let mut input = Self {
            folder: to.clone(),
            files: 0,
            bytes: 0,
        };
        input.copy_folder(from, &to, trimmed)?;
        if input.files == 0 {
            return Err(Fail::new(
                Code::Usage,
                format!("{} holds no file to distribute", from.display()),
            )
            .hint("give another folder with --input"));
        }
        Ok(input)
    }

    fn copy_folder(&mut self, from: &Path, to: &Path, trimmed: bool) -> Result<(), Fail> {
        fs::create_dir(to).map_err(|e| Fail::io(to, &e))?;
        for entry in fs::read_dir(from).map_err(|e| Fail::io(from, &e))? {
            let entry = entry.map_err(|e| Fail::io(from, &e))?;
            let (source, target) = (entry.path(), to.join(entry.file_name()));
            let name = entry.file_name();
            let skipped = name.to_string_lossy().starts_with('.')
                || (trimmed && SKIPPED.iter().any(|s| name == *s));
            let kind = entry.file_type().map_err(|e| Fail::io(&source, &e))?;
            if skipped {
                continue;
            }
            if kind.is_dir() {
                self.copy_folder(&source, &target, trimmed)?;
            } else if kind.is_symlink() {
                let link = fs::read_link(&source).map_err(|e| Fail::io(&source, &e))?;
                symlink(&link, &target)?;
            } else if kind.is_file() {
                self.bytes += fs::copy(&source, &target).map_err(|e| Fail::io(&source, &e))?;
                self.files += 1;
            }
        }
        Ok(())
    }

    /// Changes one file, the largest: a line more at its end. Returns its path below the folder.
    pub(super) fn change(&mut self) -> Result<String, Fail> {
        let largest = largest_file(&self.folder)?
            .ok_or_else(|| Fail::new(Code::Failure, "the folder holds no file any more"))?;
        let line = b"\nversion 2 of this file, published by `gemba demo`\n";
        let mut file = fs::OpenOptions::new()
            .append(true)
            .open(&largest)
            .map_err(|e| Fail::io(&largest, &e))?;
        std::io::Write::write_all(&mut file, line).map_err(|e| Fail::io(&largest, &e))?;
        self.bytes += line.len() as u64;
        Ok(largest
            .strip_prefix(&self.folder)
            .unwrap_or(&largest)
            .display()
            .to_string())
    }
}

fn own_sources() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[cfg(unix)]
fn symlink(link: &Path, target: &Path) -> Result<(), Fail> {
    std::os::unix::fs::symlink(link, target).map_err(|e| Fail::io(target, &e))
}

#[cfg(not(unix))]
fn symlink(_link: &Path, target: &Path) -> Result<(), Fail> {
    Err(Fail::new(
        Code::Failure,
        format!(
            "{}: symbolic links are copied on Unix only",
            target.display()
        ),
    ))
}

fn largest_file(folder: &Path) -> Result<Option<PathBuf>, Fail> {
    let mut found: Option<(u64, PathBuf)> = None;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).map_err(|e| Fail::io(&folder, &e))? {
            let path = entry.map_err(|e| Fail::io(&folder, &e))?.path();
            let meta = fs::symlink_metadata(&path).map_err(|e| Fail::io(&path, &e))?;
            if meta.is_dir() {
                folders.push(path);
            } else if meta.is_file() && found.as_ref().is_none_or(|(size, _)| meta.len() > *size) {
                found = Some((meta.len(), path));
            }
        }
    }
    Ok(found.map(|(_, path)| path))
}

/// The first path at which two folders differ; `None` if every name, link and byte is the same.
pub(super) fn difference(a: &Path, b: &Path) -> Result<Option<PathBuf>, Fail> {
    let (names, others) = (names_in(a)?, names_in(b)?);
    if names != others {
        return Ok(Some(a.to_owned()));
    }
    for name in names {
        let (left, right) = (a.join(&name), b.join(&name));
        if !same_entry(&left, &right)? {
            return Ok(Some(left));
        }
        let is_folder = fs::symlink_metadata(&left).is_ok_and(|meta| meta.is_dir());
        if is_folder && let Some(deeper) = difference(&left, &right)? {
            return Ok(Some(deeper));
        }
    }
    Ok(None)
}

fn names_in(folder: &Path) -> Result<Vec<std::ffi::OsString>, Fail> {
    let entries = fs::read_dir(folder).map_err(|e| Fail::io(folder, &e))?;
    let names: Result<Vec<_>, _> = entries
        .map(|entry| entry.map(|entry| entry.file_name()))
        .collect();
    let mut names = names.map_err(|e| Fail::io(folder, &e))?;
    names.sort();
    Ok(names)
}

fn same_entry(a: &Path, b: &Path) -> Result<bool, Fail> {
    let (left, right) = (
        fs::symlink_metadata(a).map_err(|e| Fail::io(a, &e))?,
        fs::symlink_metadata(b).map_err(|e| Fail::io(b, &e))?,
    );
    if left.file_type() != right.file_type() {
        return Ok(false);
    }
    if left.is_symlink() {
        return Ok(fs::read_link(a).map_err(|e| Fail::io(a, &e))?
            == fs::read_link(b).map_err(|e| Fail::io(b, &e))?);
    }
    if left.is_file() {
        return same_content(a, b);
    }
    Ok(true)
}

fn same_content(a: &Path, b: &Path) -> Result<bool, Fail> {
    use std::io::Read as _;
    let open = |path: &Path| fs::File::open(path).map_err(|e| Fail::io(path, &e));
    let (mut left, mut right) = (open(a)?, open(b)?);
    let (mut one, mut other) = (vec![0; 64 * 1024], vec![0; 64 * 1024]);
    loop {
        let read = left.read(&mut one).map_err(|e| Fail::io(a, &e))?;
        if read == 0 {
            return Ok(right.read(&mut other[..1]).map_err(|e| Fail::io(b, &e))? == 0);
        }
        if right.read_exact(&mut other[..read]).is_err() || one[..read] != other[..read] {
            return Ok(false);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_byte_a_missing_name_and_another_link_are_differences() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a"), dir.path().join("b"));
        for root in [&a, &b] {
            fs::create_dir_all(root.join("sub")).unwrap();
            fs::write(root.join("sub/file"), vec![7; 200_000]).unwrap();
            symlink(Path::new("sub/file"), &root.join("link")).unwrap();
        }
        assert_eq!(difference(&a, &b).unwrap(), None);
        let mut bytes = vec![7; 200_000];
        bytes[199_999] = 8;
        fs::write(b.join("sub/file"), &bytes).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some(a.join("sub/file")));
        bytes.truncate(100);
        fs::write(b.join("sub/file"), &bytes).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some(a.join("sub/file")));
        fs::write(b.join("sub/file"), vec![7; 200_000]).unwrap();
        fs::remove_file(b.join("link")).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some(a.clone()));
        symlink(Path::new("elsewhere"), &b.join("link")).unwrap();
        assert_eq!(difference(&a, &b).unwrap(), Some(a.join("link")));
    }

    #[test]
    fn the_copy_leaves_hidden_entries_behind_and_changes_only_itself() {
        let dir = tempfile::tempdir().unwrap();
        let from = dir.path().join("from");
        fs::create_dir_all(from.join("sub/.git")).unwrap();
        fs::write(from.join("sub/big"), vec![1; 1000]).unwrap();
        fs::write(from.join("small"), "x").unwrap();
        fs::write(from.join(".hidden"), "x").unwrap();
        let mut input = Input::copy(Some(&from), dir.path().join("to")).unwrap();
        assert_eq!((input.files, input.bytes), (2, 1001));
        assert_eq!(input.change().unwrap(), "sub/big");
        assert_eq!(fs::metadata(from.join("sub/big")).unwrap().len(), 1000);
        assert!(Input::copy(Some(&dir.path().join("none")), dir.path().join("x")).is_err());
    }
}
