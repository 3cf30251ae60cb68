//! What somebody who makes DAGs, archives and paths in bad faith can try, by somebody who did not write the crate.
#![allow(clippy::unwrap_used)]

mod common;

use common::Memory;
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_unixfs::car::CarReader;
use gemba_unixfs::dagpb::{self, FsData, Kind, Link};
use gemba_unixfs::{
    Block, Bytes, Cid, DriveError, Meta, Path, Profile, ReadError, TreeImporter, TreeStep,
    TreeWalk, cat, import_reader, ls, resolve,
};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// A file node with children and the sizes it claims for them.
fn file(store: &mut Memory, children: &[(Cid, u64)]) -> Cid {
    let mut data = FsData::new(Kind::File);
    data.filesize = Some(
        children
            .iter()
            .fold(0, |sum, (_, size)| sum.wrapping_add(*size)),
    );
    data.blocksizes = children.iter().map(|(_, size)| *size).collect();
    let links = children.iter().map(|(cid, _)| Link::new(*cid, b"", 0));
    store.put(Block::dag_pb(dagpb::encode(links, Some(&data.encode()))).unwrap())
}

fn directory(store: &mut Memory, entries: &[(&[u8], Cid)]) -> Cid {
    let links = entries.iter().map(|(name, cid)| Link::new(*cid, name, 1));
    store.put(Block::dag_pb(dagpb::encode(links, Some(&[8, 1]))).unwrap())
}

/// Sizes at the end of the type, alone and so that their sum comes round: no byte beyond what the leaves hold, no panic.
#[test]
fn u3_sizes_that_add_up_past_the_largest_number_give_no_byte_too_many() {
    let mut store = Memory::default();
    let leaf = store.put(Block::raw(vec![7; 100]).unwrap());
    for sizes in [
        &[u64::MAX][..],
        &[u64::MAX, 1],
        &[u64::MAX, 101],
        &[1 << 63, 1 << 63, 100],
        &[100, u64::MAX - 99],
        &[u64::MAX, u64::MAX, u64::MAX, 103],
    ] {
        let children: Vec<_> = sizes.iter().map(|size| (leaf, *size)).collect();
        let root = file(&mut store, &children);
        for range in [0..u64::MAX, 99..101, u64::MAX - 1..u64::MAX, 5..5] {
            let mut out = Vec::new();
            let read = cat(&mut store, root, range.clone(), &mut out);
            assert!(out.len() as u64 <= 100 * sizes.len() as u64);
            assert!(out.len() as u64 <= range.end - range.start);
            if let Err(error) = read {
                assert!(matches!(error, DriveError::Read(_)), "{sizes:?}: {error}");
            }
        }
    }
}

/// A folder that holds itself by one more level each time, 40 levels of 8: 8^40 files in 41 blocks. A walk goes on in the memory of
/// one path, and whoever drives it may stop whenever he likes.
#[test]
fn u5_a_tree_of_more_entries_than_atoms_is_walked_in_the_memory_of_one_path() {
    let mut store = Memory::default();
    let mut below = store.put(Block::raw("leaf").unwrap());
    for _ in 0..40 {
        let names: Vec<_> = (b'a'..=b'h').map(|name| [name]).collect();
        let entries: Vec<_> = names.iter().map(|name| (&name[..], below)).collect();
        below = directory(&mut store, &entries);
    }
    let ((), used) = measure(|| {
        let mut walk = TreeWalk::new(below);
        for _ in 0..20_000 {
            match walk.poll().unwrap() {
                TreeStep::NeedBlock(cid) => {
                    let bytes = store.bytes(&cid).clone();
                    walk.block(&Block::danger_unchecked(cid, bytes)).unwrap();
                }
                TreeStep::End => panic!("8^40 entries in 20,000 steps"),
                _ => {}
            }
        }
    });
    assert!(used.peak < 2 << 20, "{used:?}");
}

/// Paths of every awkward shape: refused, or one that names the same thing when it is written and read again.
#[test]
fn a_path_is_refused_or_means_the_same_when_written_and_read_again() {
    let cid = Block::raw("x").unwrap().cid().to_string();
    for tail in [
        "",
        "/",
        "//",
        "/.",
        "/..",
        "/../..",
        "/a/../b",
        "/a//b",
        "/a/./b",
        "/%",
        "/%2",
        "/%2f..%2f",
        "/%00",
        "/\0",
        "/a?b#c",
        "/\u{202e}txt",
        "/\u{feff}",
        "/ ",
        "/\n",
        &"/a".repeat(10_000),
        &format!("/{}", "x".repeat(100_000)),
    ] {
        for head in [
            "", "/ipfs/", "ipfs/", "ipfs://", "/ipns/", "/ipfs//", "//ipfs/",
        ] {
            let text = format!("{head}{cid}{tail}");
            let Ok(path) = text.parse::<Path>() else {
                continue;
            };
            assert_eq!(path.root().to_string(), cid);
            assert!(
                path.segments()
                    .iter()
                    .all(|s| !s.is_empty() && !s.contains(&b'/'))
            );
            let again: Path = path.to_string().parse().unwrap();
            assert_eq!(
                (again.root(), again.segments()),
                (path.root(), path.segments())
            );
            // Nothing of it is a file system's path: a leaf has no names below it.
            let mut store = Memory::default();
            store.put(Block::raw("x").unwrap());
            assert_eq!(
                resolve(&mut store, &path).is_ok(),
                path.segments().is_empty()
            );
        }
    }
}

/// An archive that announces sections and headers of every length at every offset costs no more than what has come.
#[test]
fn u7_announced_lengths_of_an_archive_cost_nothing_until_the_bytes_come() {
    let mut car = vec![0x11, 0xa2, 0x65];
    car.extend(b"roots");
    car.push(0x80);
    car.push(0x67);
    car.extend(b"version");
    car.push(0x01);
    for lie in [1_u64 << 21, 1 << 32, 1 << 62, (1 << 63) - 1] {
        let mut announced = lie;
        let mut number = Vec::new();
        while announced >= 0x80 {
            number.push(announced as u8 | 0x80);
            announced >>= 7;
        }
        number.push(announced as u8);
        for head in [&[][..], &car] {
            let bytes = [head, &number, &[0x01, 0x55, 0x12, 0x20]].concat();
            let (refused, used) = measure(|| match CarReader::new(&bytes[..]) {
                Err(_) => true,
                Ok(mut reader) => reader.any(|block| block.is_err()),
            });
            assert!(refused && used.peak < 4 << 20, "{lie}: {used:?}");
        }
    }
}

/// A reader that gives one byte at a time, is interrupted, and fails in the end; a sink that fails at each batch in turn: an
/// error each time, and the same CID as ever when nothing fails.
#[test]
fn an_input_that_trickles_stutters_and_breaks_gives_the_one_cid_or_an_error() {
    struct Stutter<'a>(&'a [u8], u32, Option<std::io::ErrorKind>);
    impl std::io::Read for Stutter<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            if self.1.is_multiple_of(3) {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            match (self.0.split_first(), self.2) {
                (None, Some(kind)) => Err(kind.into()),
                (None, None) => Ok(0),
                (Some((byte, rest)), _) => {
                    buf[0] = *byte;
                    self.0 = rest;
                    Ok(1)
                }
            }
        }
    }
    let content = common::counter(5_000);
    let profile = Profile::unixfs_v1_2025();
    let want = common::import_bytes(&content, &profile, 1).1.cid;
    for workers in [0, 1, 2, 64] {
        let mut sink = Memory::default();
        let part = import_reader(Stutter(&content, 0, None), &profile, workers, &mut sink);
        assert_eq!(part.unwrap().cid, want);
        for kind in [
            std::io::ErrorKind::UnexpectedEof,
            std::io::ErrorKind::TimedOut,
        ] {
            let mut sink = Memory::default();
            let broken = Stutter(&content, 0, Some(kind));
            assert!(import_reader(broken, &profile, workers, &mut sink).is_err());
        }
    }
}

/// Names that only differ in case or in the form of a letter, the longest name, and one name twice.
#[test]
fn every_name_is_its_own_entry_or_the_whole_folder_is_refused() {
    let names = [
        "a",
        "A",
        "\u{e9}",
        "e\u{301}",
        " a",
        "a ",
        "a.",
        &"n".repeat(255),
        "\u{202e}a",
    ];
    let tree = |names: &[&str]| {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(&Profile::unixfs_v1_2025(), 1);
        importer.enter_dir(b"", &Meta::default(), &mut store)?;
        for name in names {
            let meta = Meta::default();
            importer.file(name.as_bytes(), &meta, &mut name.as_bytes(), &mut store)?;
        }
        importer.leave_dir(&mut store)?;
        Ok::<_, gemba_unixfs::ImportError>((importer.finish(&mut store)?.cid, store))
    };
    let (root, mut store) = tree(&names).unwrap();
    for name in names {
        let path: Path = format!("/ipfs/{root}/{name}").parse().unwrap();
        let found = resolve(&mut store, &path).unwrap();
        let mut out = Vec::new();
        cat(&mut store, found.cid, .., &mut out).unwrap();
        assert_eq!(out, name.as_bytes());
    }
    assert!(tree(&["a", "b", "a"]).is_err());
    // Of a stranger's folder with one name twice both are shown, or it is refused: never a third thing.
    let (one, two) = (Block::raw("1").unwrap(), Block::raw("2").unwrap());
    let twice = directory(&mut store, &[(b"a", *one.cid()), (b"a", *two.cid())]);
    let mut seen: Vec<(Bytes, Cid)> = Vec::new();
    let listed = ls(&mut store, twice, &mut |entry| {
        seen.push((entry.name, entry.cid));
        Ok(())
    });
    match listed {
        Ok(()) => assert_eq!(seen.len(), 2),
        Err(DriveError::Read(ReadError::NotFound { .. })) => panic!("it is there"),
        Err(_) => {}
    }
}
