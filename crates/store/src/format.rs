//! Names and kinds on disk (specs/store.md §2, §3). Pure.

use std::path::{Path, PathBuf};

use gemba_segment::{Identity, Kind};

/// The format that is written. Format 1 had no checksum in the `version` file.
pub const FORMAT: u32 = 2;
/// A block: the tag is its multihash, the payload its bytes.
pub(crate) const BLOCK: Kind = Kind(16);
/// A deletion: the tag is the multihash, there is no payload.
pub(crate) const TOMBSTONE: Kind = Kind(17);
/// Marks of last use, in the file `uses`: the tag is the tick of its writing.
pub(crate) const USES: Kind = Kind(18);
/// Largest pack number: the index has 24 bits for it.
pub(crate) const MAX_PACK_NUMBER: u32 = (1 << 24) - 1;

const PURPOSE: [u8; 4] = *b"PACK";
const USES_PURPOSE: [u8; 4] = *b"USES";
const VERSION_WORD: &str = "gemba-store";

/// Where a store's files are.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) dir: PathBuf,
}

impl Layout {
    pub(crate) fn new(dir: &Path) -> Self {
        Self {
            dir: dir.to_path_buf(),
        }
    }

    pub(crate) fn version(&self) -> PathBuf {
        self.dir.join("version")
    }

    /// The `version` file of an older format, kept by a migration.
    pub(crate) fn version_of(&self, format: u32) -> PathBuf {
        self.dir.join(format!("version.{format}"))
    }

    pub(crate) fn version_temporary(&self) -> PathBuf {
        self.dir.join("version.tmp")
    }

    /// Marks of last use.
    pub(crate) fn uses(&self) -> PathBuf {
        self.dir.join("uses")
    }

    pub(crate) fn uses_temporary(&self) -> PathBuf {
        self.dir.join("uses.tmp")
    }

    /// A file that keeps space taken.
    pub(crate) fn ballast(&self) -> PathBuf {
        self.dir.join("ballast")
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }

    pub(crate) fn pack(&self, number: u32) -> PathBuf {
        self.dir.join(format!("{number:06}.pack"))
    }
}

/// The number of a pack by its file name; `None` for what is no pack. Numbers are written in one way only, so that no two
/// names are the same pack.
pub(crate) fn pack_number(name: &str) -> Option<u32> {
    let number: u32 = name.strip_suffix(".pack")?.parse().ok()?;
    (format!("{number:06}.pack") == name && (1..=MAX_PACK_NUMBER).contains(&number))
        .then_some(number)
}

/// Which file a pack is. Salts differ from pack to pack, so that a pack under another one's name is noticed by every frame.
pub(crate) fn identity(store_id: u64, number: u32) -> Identity {
    Identity {
        purpose: PURPOSE,
        number,
        salt: store_id ^ (u64::from(number) << 32),
    }
}

/// Which file the marks of last use are.
pub(crate) fn uses_identity(store_id: u64) -> Identity {
    Identity {
        purpose: USES_PURPOSE,
        number: 0,
        salt: store_id,
    }
}

/// The store's id out of the header of one of its packs.
pub(crate) fn id_of_pack(header: &[u8; gemba_segment::FILE_HEADER], number: u32) -> Option<u64> {
    let mut salt = [0; 8];
    salt.copy_from_slice(&header[16..24]);
    let id = u64::from_le_bytes(salt) ^ (u64::from(number) << 32);
    identity(id, number).check(header).is_ok().then_some(id)
}

/// Content of the `version` file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// A store of this format or an older one.
    Known { format: u32, id: u64 },
    /// A store of a newer format.
    Newer(u32),
}

/// The text of the `version` file.
pub(crate) fn version_text(id: u64) -> String {
    let lines = format!("{VERSION_WORD} {FORMAT}\nid {id:016x}\n");
    let crc = crc32c::crc32c(lines.as_bytes());
    format!("{lines}crc {crc:08x}\n")
}

/// The text that format 1 had.
fn version_text_1(id: u64) -> String {
    format!("{VERSION_WORD} 1\nid {id:016x}\n")
}

/// Reads a `version` file; `None` if it is not one. Of a newer format only the first line is understood.
pub(crate) fn parse_version(text: &str) -> Option<Version> {
    let (first, rest) = text.split_once('\n')?;
    let (word, number) = first.split_once(' ')?;
    let format: u32 = number.parse().ok()?;
    if word != VERSION_WORD || format == 0 {
        return None;
    }
    let id = rest.strip_prefix("id ").and_then(|rest| rest.get(..16));
    let id = id.and_then(|id| u64::from_str_radix(id, 16).ok());
    if format > FORMAT {
        // With a checksum that is right for our format, the number is what is damaged.
        let ours = id.is_some_and(|id| version_text(id).ends_with(&format!("\n{rest}")));
        return (!ours).then_some(Version::Newer(format));
    }
    let id = id?;
    // One text for one store: whatever differs in any byte is damaged, or somebody's.
    let right = if format == 1 {
        version_text_1(id)
    } else {
        version_text(id)
    };
    (right == text).then_some(Version::Known { format, id })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn version_files_read_back_and_near_misses_do_not() {
        let text = version_text(0xfeed);
        assert_eq!(text, "gemba-store 2\nid 000000000000feed\ncrc 3886bfa2\n");
        let (format, id) = (2, 0xfeed);
        assert_eq!(parse_version(&text), Some(Version::Known { format, id }));
        let old = "gemba-store 1\nid 000000000000feed\n";
        let (format, id) = (1, 0xfeed);
        assert_eq!(parse_version(old), Some(Version::Known { format, id }));
        assert_eq!(
            parse_version("gemba-store 3\nanything"),
            Some(Version::Newer(3))
        );
        for bad in [
            "",
            "gemba-store 1",
            "gemba-store 0\nid 000000000000feed\n",
            "gemba-store 1\nid feed\n",
            "gemba-store 1\nid +00000000000feed\n",
            "gemba-store 1\nid 000000000000FEED\n",
            "gemba-stor 1\nid 000000000000feed\n",
            "gemba-store 1\nid 000000000000feed\n\n",
            "gemba-store 2\nid 000000000000feed\n",
            "gemba-store 1\nid 00000000000feédd\n",
        ] {
            assert_eq!(parse_version(bad), None, "{bad:?}");
        }
    }

    /// Row S3 for the name of the store: whichever bit turns, it is no other store's name that is believed.
    #[test]
    fn s3_every_flipped_bit_of_a_version_file_is_found() {
        let text = version_text(0x0123_4567_89ab_cdef);
        for bit in 0..text.len() * 8 {
            let mut bytes = text.clone().into_bytes();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let known = String::from_utf8(bytes).ok();
            let known = known.as_deref().and_then(parse_version);
            assert_eq!(known, None, "bit {bit}");
        }
    }

    /// Row S7: a file name comes from a number alone, and a number has one name.
    #[test]
    fn s7_only_canonical_names_are_packs() {
        assert_eq!(pack_number("000001.pack"), Some(1));
        assert_eq!(pack_number("1234567.pack"), Some(1_234_567));
        for bad in [
            "000000.pack",
            "1.pack",
            "0000001.pack",
            "+00001.pack",
            "000001.pac",
            "../001.pack",
            "16777216.pack",
        ] {
            assert_eq!(pack_number(bad), None, "{bad}");
        }
    }

    /// Row S8: every name that a store makes is one on every medium, and no two of them are one on a medium that ignores case.
    #[test]
    fn s8_every_name_is_one_on_every_medium() {
        let layout = Layout::new(Path::new("blocks"));
        let mut rng = gemba_testkit::Rng::from_env_or(8);
        let mut paths = vec![
            layout.version(),
            layout.version_temporary(),
            layout.uses(),
            layout.uses_temporary(),
            layout.ballast(),
            layout.lock(),
            layout.version_of(u32::MAX),
        ];
        paths.extend((1..FORMAT).map(|format| layout.version_of(format)));
        let numbers = (0..20_000).map(|_| rng.range(1..u64::from(MAX_PACK_NUMBER) + 1) as u32);
        let numbers: std::collections::BTreeSet<u32> = numbers
            .chain([1, 999_999, 1_000_000, MAX_PACK_NUMBER])
            .collect();
        paths.extend(numbers.into_iter().map(|number| layout.pack(number)));
        let mut seen = std::collections::BTreeSet::new();
        for path in paths {
            assert_eq!(path.parent(), Some(Path::new("blocks")));
            let name = path.file_name().unwrap().to_str().unwrap();
            assert_eq!(gemba_testkit::names::not_portable(name), None, "{name}");
            assert!(seen.insert(name.to_lowercase()), "{name} twice");
        }
    }

    #[test]
    fn a_pack_tells_the_id_of_its_store() {
        let header = identity(77, 5).header();
        assert_eq!(id_of_pack(&header, 5), Some(77));
        assert_eq!(id_of_pack(&header, 6), None);
    }
}
