//! Folders on disk: seeded ones to add, and the comparison of what came back.

use super::rng::Rng;
use crate::failure::{Outcome, ensure, fail};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// A folder of `count` files of `size` bytes each.
pub(crate) fn many_files(folder: &Path, count: usize, size: usize, seed: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut bytes = vec![0; size];
    fs::create_dir_all(folder)?;
    for n in 0..count {
        rng.fill(&mut bytes);
        fs::write(folder.join(format!("part-{n:05}.bin")), &bytes)?;
    }
    Ok(())
}

/// One file of incompressible bytes.
pub(crate) fn big_file(file: &Path, size: u64, seed: u64) -> Outcome {
    let mut rng = Rng::new(seed);
    let mut out = File::create(file)?;
    let mut bytes = vec![0; 1 << 20];
    let mut left = size;
    while left > 0 {
        let n = left.min(bytes.len() as u64) as usize;
        rng.fill(&mut bytes[..n]);
        out.write_all(&bytes[..n])?;
        left -= n as u64;
    }
    Ok(())
}

/// Names that a sorter, an escaper or a hidden-file rule might treat differently.
const NAMES: [&str; 12] = [
    "Z",
    "a",
    "a.txt",
    "é",
    "über maß",
    "b c",
    "10",
    "9",
    "日本",
    "-dash",
    ".hidden",
    "long-name-that-goes-on-and-on-and-on",
];

/// Sizes around every edge of both profiles: nothing, one chunk, one byte more or less, several chunks.
const SIZES: [u64; 14] = [
    0, 1, 2, 100, 1024, 4095, 65_536, 262_143, 262_144, 262_145, 524_289, 1_048_575, 1_048_576,
    1_048_577,
];

/// A tree of up to `depth` levels with nested and empty folders, files of awkward sizes and names, symlinks.
pub(crate) fn random_tree(folder: &Path, rng: &mut Rng, depth: u32) -> Outcome {
    fs::create_dir_all(folder)?;
    for n in 0..rng.below(6) {
        let name = format!("{}{n}", rng.pick(&NAMES));
        let entry = folder.join(&name);
        match rng.below(8) {
            0 | 1 if depth > 0 => random_tree(&entry, rng, depth - 1)?,
            2 => symlink(*rng.pick(&["a.txt0", "../x", "."]), &entry)?,
            3 => random_file(&entry, *rng.pick(&SIZES), rng)?,
            _ => random_file(&entry, *rng.pick(&SIZES[..6]), rng)?,
        }
    }
    Ok(())
}

/// Half of them repeat one byte, so that equal chunks come up inside a file and between files.
fn random_file(file: &Path, size: u64, rng: &mut Rng) -> Outcome {
    let mut bytes = vec![rng.below(3) as u8; size as usize];
    if rng.below(2) == 0 {
        rng.fill(&mut bytes);
    }
    Ok(fs::write(file, bytes)?)
}

/// A flat folder wide enough to become a sharded directory: `count` files, each holding its own name.
pub(crate) fn wide_folder(folder: &Path, count: usize, digits: usize) -> Outcome {
    fs::create_dir_all(folder)?;
    for n in 0..count {
        let name = format!("{n:0digits$}");
        fs::write(folder.join(&name), &name)?;
    }
    Ok(())
}

/// Overwrites one byte in the middle of a file.
pub(crate) fn change_a_byte(file: &Path) -> Outcome {
    let mut bytes = fs::read(file)?;
    let middle = bytes.len() / 2;
    ensure!(!bytes.is_empty(), "{} is empty", file.display());
    bytes[middle] ^= 1;
    Ok(fs::write(file, bytes)?)
}

/// Fails, naming the first difference, unless both paths hold the same file, symlink or folder (hidden entries included).
pub(crate) fn same(expected: &Path, found: &Path) -> Outcome {
    let (a, b) = (
        fs::symlink_metadata(expected)?,
        fs::symlink_metadata(found)?,
    );
    ensure!(
        a.file_type() == b.file_type(),
        "{} is of another kind than {}",
        found.display(),
        expected.display()
    );
    if a.is_symlink() {
        let (to, other) = (fs::read_link(expected)?, fs::read_link(found)?);
        ensure!(
            to == other,
            "{} points to {} in place of {}",
            found.display(),
            other.display(),
            to.display()
        );
    } else if a.is_dir() {
        let (expected, found_entries) = (entries(expected)?, entries(found)?);
        for name in expected.keys().chain(found_entries.keys()) {
            match (expected.get(name), found_entries.get(name)) {
                (Some(a), Some(b)) => same(a, b)?,
                (a, _) => fail!(
                    "{}: {name} is {}",
                    found.display(),
                    if a.is_some() { "missing" } else { "too much" }
                ),
            }
        }
    } else {
        ensure!(
            a.len() == b.len(),
            "{} has {} bytes in place of {}",
            found.display(),
            b.len(),
            a.len()
        );
        same_bytes(File::open(expected)?, File::open(found)?)?;
    }
    Ok(())
}

/// Compares two streams to their ends.
pub(crate) fn same_bytes(expected: impl Read, found: impl Read) -> Outcome {
    let (mut a, mut b) = (
        BufReader::with_capacity(1 << 20, expected),
        BufReader::with_capacity(1 << 20, found),
    );
    let mut position = 0u64;
    let (mut x, mut y) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let (n, m) = (read_full(&mut a, &mut x)?, read_full(&mut b, &mut y)?);
        if let Some(at) = x[..n].iter().zip(&y[..m]).position(|(x, y)| x != y) {
            fail!("the content differs at byte {}", position + at as u64);
        }
        ensure!(
            n == m,
            "the content ends at byte {} in place of {}",
            position + m as u64,
            position + n as u64
        );
        if n == 0 {
            return Ok(());
        }
        position += n as u64;
    }
}

fn read_full(from: &mut impl Read, out: &mut [u8]) -> Outcome<usize> {
    let mut n = 0;
    while n < out.len() {
        match from.read(&mut out[n..])? {
            0 => break,
            more => n += more,
        }
    }
    Ok(n)
}

fn entries(folder: &Path) -> Outcome<BTreeMap<String, PathBuf>> {
    let mut entries = BTreeMap::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        entries.insert(
            entry.file_name().to_string_lossy().into_owned(),
            entry.path(),
        );
    }
    Ok(entries)
}

/// Copies a folder of plain files.
pub(crate) fn copy_files(from: &Path, to: &Path) -> Outcome {
    fs::create_dir_all(to)?;
    for (name, path) in entries(from)? {
        let mut out = BufWriter::new(File::create(to.join(name))?);
        std::io::copy(&mut File::open(path)?, &mut out)?;
        out.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_comparison_sees_every_kind_of_difference() {
        let base = std::env::temp_dir().join(format!("gemba-interop-tree-{}", std::process::id()));
        let (a, b) = (base.join("a"), base.join("b"));
        many_files(&a, 3, 10, 7).unwrap();
        many_files(&b, 3, 10, 7).unwrap();
        same(&a, &b).unwrap();
        change_a_byte(&b.join("part-00001.bin")).unwrap();
        assert!(
            same(&a, &b)
                .unwrap_err()
                .to_string()
                .contains("differs at byte 5")
        );
        change_a_byte(&b.join("part-00001.bin")).unwrap();
        fs::write(b.join("more"), "").unwrap();
        assert!(same(&a, &b).unwrap_err().to_string().contains("too much"));
        fs::write(a.join("more"), "x").unwrap();
        assert!(
            same(&a, &b)
                .unwrap_err()
                .to_string()
                .contains("0 bytes in place of 1")
        );
        fs::remove_file(b.join("more")).unwrap();
        assert!(same(&a, &b).unwrap_err().to_string().contains("missing"));
        symlink("x", b.join("more")).unwrap();
        assert!(
            same(&a, &b)
                .unwrap_err()
                .to_string()
                .contains("another kind")
        );
        fs::remove_dir_all(base).unwrap();
    }

    #[test]
    fn equal_seeds_give_equal_trees() {
        let base = std::env::temp_dir().join(format!("gemba-interop-seed-{}", std::process::id()));
        for folder in ["a", "b"] {
            random_tree(&base.join(folder), &mut Rng::new(11), 3).unwrap();
        }
        same(&base.join("a"), &base.join("b")).unwrap();
        fs::remove_dir_all(base).unwrap();
    }
}
