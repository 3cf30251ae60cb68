//! Sequence numbers in a file, and those of others in another.
//!
//! ```text
//! gemba-gossip sequence 1
//! 1790000000000000000
//! 3f0c…                     the first 16 digits of BLAKE3 of the two lines above, in hex
//! ```
//!
//! It is replaced as a whole: written beside, flushed, renamed, and the folder flushed. So there is the old number or the new one,
//! whenever the power fails; a medium that does worse is found by the check sum.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::sequence::{AuthorNumber, ReplayStore, SequenceStore};

const FIRST_LINE: &str = "gemba-gossip sequence 1";

/// Keeps the reservation in a file of its own. One process at a time may use it.
#[derive(Clone, Debug)]
pub struct FileSequence {
    path: PathBuf,
}

impl FileSequence {
    /// The file need not be there; its folder must.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    fn damaged(&self, what: &str) -> io::Error {
        let text = format!(
            "{}: {what}; numbers that go back make this node mute, so nothing is published: restore the file, or delete it if the clock of \
             this machine was never ahead of now",
            self.path.display()
        );
        io::Error::new(io::ErrorKind::InvalidData, text)
    }
}

impl SequenceStore for FileSequence {
    fn load(&mut self) -> io::Result<Option<u64>> {
        let text = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8(bytes).map_err(|_| self.damaged("it is no text"))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut lines = text.lines();
        match lines.next() {
            Some(FIRST_LINE) => {}
            Some(line) if line.starts_with("gemba-gossip sequence ") => {
                return Err(self.damaged("it was written by a newer version of this program"));
            }
            _ => return Err(self.damaged("it is no file of sequence numbers")),
        }
        let number = lines
            .next()
            .and_then(|line| line.parse().ok())
            .ok_or_else(|| self.damaged("its number is missing"))?;
        if text != content(number) {
            return Err(self.damaged("its check sum is wrong"));
        }
        Ok(Some(number))
    }

    fn reserve(&mut self, upto: u64) -> io::Result<()> {
        let beside = self.path.with_added_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(content(upto).as_bytes())?;
        file.sync_all()?;
        drop(file);
        fs::rename(&beside, &self.path)?;
        sync_folder(&self.path)
    }
}

fn content(number: u64) -> String {
    let lines = format!("{FIRST_LINE}\n{number}\n");
    let sum = blake3::hash(lines.as_bytes()).to_hex();
    format!("{lines}{}\n", &sum[..16])
}

#[cfg(unix)]
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    File::open(folder)?.sync_all()
}

/// Windows has no folder to flush: a rename is in its journal.
#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> io::Result<()> {
    Ok(())
}

/// Keeps the highest numbers of authors in a file of its own. One process at a time may use it.
///
/// ```text
/// gemba-gossip authors 1\n
/// then one record a change: length of the id (1 byte), id, number (8, big endian), first 4 bytes of BLAKE3 of these
/// ```
///
/// Changes are appended; when more than 64 KiB and half of it is outdated, and at each start, it is written anew and flushed. What is
/// appended is not flushed: after a power cut some of it may be missing, and its end may be torn, which is cut off.
#[derive(Debug)]
pub struct FileReplay {
    path: PathBuf,
    most: usize,
    /// All that is in the file, and the order in which authors were heard.
    known: HashMap<Box<[u8]>, (u64, u64)>,
    clock: u64,
    /// Open since the file was read or written anew.
    file: Option<File>,
    bytes: usize,
}

const AUTHORS_LINE: &[u8] = b"gemba-gossip authors 1\n";
/// A file of this size is not worth being written anew.
const SMALL: usize = 64 * 1024;

impl FileReplay {
    /// Numbers of at most so many authors; those heard longest ago leave. The file need not be there; its folder must.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>, most: usize) -> Self {
        Self {
            path: path.into(),
            most,
            known: HashMap::new(),
            clock: 0,
            file: None,
            bytes: 0,
        }
    }

    fn note(&mut self, author: &[u8], highest: u64) {
        self.clock += 1;
        let known = self.known.entry(author.into()).or_default();
        *known = (known.0.max(highest), self.clock);
        if self.known.len() > self.most {
            let oldest = self.known.iter().min_by_key(|(_, (_, heard))| *heard);
            if let Some(oldest) = oldest.map(|(author, _)| author.clone()) {
                self.known.remove(&oldest);
            }
        }
    }

    /// All that is known, the author heard last at the end.
    fn all(&self) -> Vec<AuthorNumber> {
        let mut all: Vec<_> = self.known.iter().collect();
        all.sort_unstable_by_key(|(_, (_, heard))| *heard);
        let numbers = all.into_iter().map(|(author, (highest, _))| AuthorNumber {
            author: author.clone(),
            highest: *highest,
        });
        numbers.collect()
    }

    fn write_anew(&mut self) -> io::Result<()> {
        let mut bytes = AUTHORS_LINE.to_vec();
        for number in self.all() {
            bytes.extend(record(&number));
        }
        let beside = self.path.with_added_extension("new");
        let mut file = File::create(&beside)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &self.path)?;
        sync_folder(&self.path)?;
        self.bytes = bytes.len();
        self.file = Some(file);
        Ok(())
    }
}

impl ReplayStore for FileReplay {
    fn load(&mut self) -> io::Result<Vec<AuthorNumber>> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => AUTHORS_LINE.to_vec(),
            Err(error) => return Err(error),
        };
        let Some(mut rest) = bytes.strip_prefix(AUTHORS_LINE) else {
            let text = format!(
                "{}: it is no file of authors' numbers of this version; delete it: what neighbours still echo may then be delivered once more",
                self.path.display()
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, text));
        };
        while let Some((number, behind)) = read_record(rest) {
            self.note(&number.author, number.highest);
            rest = behind;
        }
        // Without what is outdated, and without a torn end.
        self.write_anew()?;
        Ok(self.all())
    }

    fn save(&mut self, grown: &[AuthorNumber]) -> io::Result<()> {
        let mut bytes = Vec::new();
        for number in grown.iter().filter(|number| number.author.len() < 256) {
            self.note(&number.author, number.highest);
            bytes.extend(record(number));
        }
        let whole = AUTHORS_LINE.len() + self.known.len() * 51;
        if self.bytes + bytes.len() > SMALL.max(2 * whole) {
            return self.write_anew();
        }
        let Some(file) = &mut self.file else {
            return self.write_anew();
        };
        if let Err(error) = file.write_all(&bytes) {
            // Perhaps a part of it is there: it is written anew the next time.
            self.file = None;
            return Err(error);
        }
        self.bytes += bytes.len();
        Ok(())
    }
}

fn record(number: &AuthorNumber) -> Vec<u8> {
    let mut record = vec![u8::try_from(number.author.len()).unwrap_or(u8::MAX)];
    record.extend_from_slice(&number.author);
    record.extend_from_slice(&number.highest.to_be_bytes());
    let sum = blake3::hash(&record);
    record.extend_from_slice(&sum.as_bytes()[..4]);
    record
}

/// The first record, and what is behind it; none at the end, or if it is damaged.
fn read_record(bytes: &[u8]) -> Option<(AuthorNumber, &[u8])> {
    let len = usize::from(*bytes.first()?);
    let record_len = 1 + len + 8 + 4;
    let (author, highest) = bytes.get(1..len + 9)?.split_at(len);
    let number = AuthorNumber {
        author: author.into(),
        highest: u64::from_be_bytes(highest.try_into().ok()?),
    };
    let (found, behind) = bytes.split_at_checked(record_len)?;
    (record(&number) == found).then_some((number, behind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_survives_and_a_damaged_file_is_never_taken_for_none() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("sequence");
        let mut store = FileSequence::new(&path);
        assert_eq!(store.load().unwrap(), None);
        for number in [7, 1_790_000_000_000_000_000, u64::MAX] {
            store.reserve(number).unwrap();
            assert_eq!(FileSequence::new(&path).load().unwrap(), Some(number));
        }
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 1;
            fs::write(&path, &bad).unwrap();
            let error = store.load().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{at}");
            fs::write(&path, &good[..at]).unwrap();
            assert!(store.load().is_err(), "cut at {at}");
        }
    }

    fn number(author: &[u8], highest: u64) -> AuthorNumber {
        AuthorNumber {
            author: author.into(),
            highest,
        }
    }

    #[test]
    fn go_9_numbers_of_others_survive_and_what_is_torn_is_cut_off() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authors");
        let mut store = FileReplay::new(&path, 3);
        assert_eq!(store.load().unwrap(), []);
        store.save(&[number(b"a", 7), number(b"bb", 9)]).unwrap();
        store.save(&[number(b"a", 8)]).unwrap();
        let whole = fs::read(&path).unwrap();
        let kept = || FileReplay::new(&path, 3).load().unwrap();
        assert_eq!(kept(), [number(b"bb", 9), number(b"a", 8)]);
        // Cut off anywhere, and damaged anywhere: what is before it stays, and nothing is invented.
        for cut in AUTHORS_LINE.len()..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let found = kept();
            assert!(
                found
                    .iter()
                    .all(|n| [number(b"bb", 9), number(b"a", 8), number(b"a", 7)].contains(n))
            );
            let mut damaged = whole.clone();
            damaged[cut] ^= 0x40;
            fs::write(&path, &damaged).unwrap();
            let found = kept();
            assert!(
                found
                    .iter()
                    .all(|n| [number(b"bb", 9), number(b"a", 8), number(b"a", 7)].contains(n)),
                "{cut}: {found:?}"
            );
        }
        fs::write(&path, "gemba-gossip authors 2\n").unwrap();
        assert!(FileReplay::new(&path, 3).load().is_err());
    }

    #[test]
    fn go_9_the_file_of_numbers_of_others_stays_small() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("authors");
        let mut store = FileReplay::new(&path, 100);
        store.load().unwrap();
        for n in 0..20_000_u64 {
            let author = (n % 150).to_be_bytes();
            store.save(&[number(&author, n)]).unwrap();
        }
        assert!(fs::metadata(&path).unwrap().len() <= SMALL as u64);
        let kept = FileReplay::new(&path, 100).load().unwrap();
        assert_eq!((kept.len(), kept.last().unwrap().highest), (100, 19_999));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
