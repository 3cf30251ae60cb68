//! Numbers that were published, beside the book (specs/names.md NA-18): a book that came back from a backup is below them and is found out. One line a name.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use gemba_names::Name;

use crate::error::Fail;
use crate::files;

/// Own names are at most some hundred; a line has 90 bytes.
const MAX_BYTES: u64 = 1 << 20;

/// The file of marks.
#[derive(Clone, Debug)]
pub struct Marks {
    path: PathBuf,
    marks: BTreeMap<Name, u64>,
}

impl Marks {
    /// What the file holds. It may be lost: what cannot be read is as if it were not there.
    #[must_use]
    pub fn read(path: &Path) -> BTreeMap<Name, u64> {
        let text = files::read_limited(path, MAX_BYTES).unwrap_or_default();
        let text = String::from_utf8_lossy(&text);
        text.lines()
            .filter_map(|line| {
                let (name, number) = line.split_once(' ')?;
                Some((name.parse().ok()?, number.parse().ok()?))
            })
            .collect()
    }

    /// The marks of a file, to be added to.
    #[must_use]
    pub fn open(path: PathBuf) -> Self {
        let marks = Self::read(&path);
        Self { path, marks }
    }

    /// Notes numbers, whose rows are durable. A number never goes back.
    ///
    /// # Errors
    /// The file system refuses; the old file is untouched then.
    pub fn note(&mut self, noted: impl IntoIterator<Item = (Name, u64)>) -> Result<(), Fail> {
        let mut changed = false;
        for (name, number) in noted {
            let mark = self.marks.entry(name).or_insert(number);
            changed = true;
            *mark = (*mark).max(number);
        }
        if !changed {
            return Ok(());
        }
        let lines: String = self
            .marks
            .iter()
            .map(|(name, number)| format!("{name} {number}\n"))
            .collect();
        files::replace(&self.path, lines.as_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemba_names::Keypair;

    #[test]
    fn marks_survive_and_never_go_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("marks");
        let name = || Name::of(&Keypair::generate_ed25519().public());
        let (one, two) = (name(), name());
        let mut marks = Marks::open(path.clone());
        marks.note([(one, 5), (two, 0)]).unwrap();
        marks.note([(one, 4)]).unwrap();
        assert_eq!(Marks::read(&path), BTreeMap::from([(one, 5), (two, 0)]));
        std::fs::write(&path, format!("half\n{one} 7\n{two} x")).unwrap();
        assert_eq!(Marks::read(&path), BTreeMap::from([(one, 7)]));
        assert!(Marks::read(&dir.path().join("none")).is_empty());
    }
}
