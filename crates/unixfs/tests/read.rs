//! Reading files: ranges, foreign layouts, and DAGs that lie.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, counter, import_bytes};
use gemba_unixfs::car::CarReader;
use gemba_unixfs::dagpb::{self, FsData, Kind, Link};
use gemba_unixfs::{
    Block, BlockSource, Bytes, Cid, DriveError, MAX_FILE_DEPTH, Profile, ReadError, ReadStep,
    Reader, SourceError, cat,
};
use proptest::prelude::*;

fn read(store: &mut Memory, root: Cid, range: std::ops::Range<u64>) -> Result<Vec<u8>, ReadError> {
    let mut out = Vec::new();
    match cat(store, root, range, &mut out) {
        Ok(written) => {
            assert_eq!(written, out.len() as u64);
            Ok(out)
        }
        Err(DriveError::Read(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

fn all(store: &mut Memory, root: Cid) -> Result<Vec<u8>, ReadError> {
    read(store, root, 0..u64::MAX)
}

/// A file node over children with the sizes it shall claim.
fn node(store: &mut Memory, children: &[(Cid, u64)], edit: impl FnOnce(&mut FsData)) -> Cid {
    let mut data = FsData::new(Kind::File);
    data.blocksizes = children.iter().map(|(_, size)| *size).collect();
    data.filesize = Some(
        data.blocksizes
            .iter()
            .fold(0, |sum, size| sum.wrapping_add(*size)),
    );
    edit(&mut data);
    let links = children
        .iter()
        .map(|(cid, size)| Link::new(*cid, b"", *size));
    store.put(Block::dag_pb(dagpb::encode(links, Some(&data.encode()))).unwrap())
}

fn raw(store: &mut Memory, content: &[u8]) -> Cid {
    store.put(Block::raw(content.to_vec()).unwrap())
}

/// Trickle, content-defined chunks, dag-pb and raw leaves: archives written by Kubo 0.42, all of ctr20000.
#[test]
fn u_file_4_layouts_of_kubo_that_we_do_not_write_are_read() {
    let whole = counter(20_000);
    for (name, root) in [
        (
            "trickle-v0",
            "QmQFTaADkyeBeitaVrcyuSJHZDhb3Lo9TxFnBdfsS2wabq",
        ),
        (
            "trickle-raw-leaves",
            "QmYEo4PZzHL1nKzejCExjQnMJyxMuBmam3jgJVpQmdJDZq",
        ),
        (
            "rabin-v1",
            "bafybeidsaindhzwv3mvvdnwagj3zsjhweyvzhiqc2amer7qhgyvldpni2y",
        ),
        (
            "balanced-v0",
            "QmX4ccG8zxWmsHvR7pbk6YEjorKDhHHCm87Jfsz6q5gsyV",
        ),
    ] {
        let path = format!(
            "{}/../../specs/vectors/unixfs/{name}.car",
            env!("CARGO_MANIFEST_DIR")
        );
        let car = CarReader::new(std::fs::File::open(path).unwrap()).unwrap();
        assert_eq!(car.roots()[0].to_string(), root);
        let root = car.roots()[0];
        let mut store = Memory::default();
        for block in car {
            store.put(block.unwrap());
        }
        assert_eq!(all(&mut store, root).unwrap(), whole, "{name}");
        for (from, to) in [
            (0, 1),
            (511, 513),
            (7_777, 12_345),
            (19_999, 30_000),
            (20_000, 20_001),
            (5, 5),
        ] {
            let wanted = &whole[(from as usize).min(20_000)..(to as usize).min(20_000)];
            assert_eq!(
                read(&mut store, root, from..to).unwrap(),
                wanted,
                "{name} {from}..{to}"
            );
        }
    }
    // The same settings in our importer give the same balanced file.
    let profile = Profile::unixfs_v0_2015()
        .chunk_size(512)
        .unwrap()
        .max_links(5)
        .unwrap();
    let (_, part) = import_bytes(&whole, &profile, 2);
    assert_eq!(
        part.cid.to_string(),
        "QmX4ccG8zxWmsHvR7pbk6YEjorKDhHHCm87Jfsz6q5gsyV"
    );
}

proptest! {
    #[test]
    fn s0_2_ranges_are_slices(
        length in 0usize..5000,
        chunk in 1usize..300,
        links in 2usize..6,
        v0: bool,
        from in 0u64..6000,
        len in 0u64..6000,
    ) {
        let content = counter(length);
        let base = if v0 { Profile::unixfs_v0_2015() } else { Profile::unixfs_v1_2025() };
        let profile = base.chunk_size(chunk).unwrap().max_links(links).unwrap();
        let (mut store, part) = import_bytes(&content, &profile, 1);
        prop_assert_eq!(part.content, length as u64);
        let blocks: u64 = store.blocks.values().map(|data| data.len() as u64).sum();
        prop_assert!(part.tsize >= blocks, "a block that occurs twice counts twice");
        let slice = &content[(from as usize).min(length)..((from + len) as usize).min(length)];
        prop_assert_eq!(read(&mut store, part.cid, from..from + len).unwrap(), slice);
        prop_assert_eq!(all(&mut store, part.cid).unwrap(), content);
    }
}

/// A range needs the path to it and no other leaf.
#[test]
fn a_range_asks_for_no_more_than_it_needs() {
    let profile = Profile::unixfs_v1_2025()
        .chunk_size(10)
        .unwrap()
        .max_links(10)
        .unwrap();
    let (store, part) = import_bytes(&counter(10_000), &profile, 1);
    let mut reader = Reader::new(part.cid, 5_005..5_025);
    let mut asked = 0;
    loop {
        match reader.poll().unwrap() {
            ReadStep::NeedBlock(cid) => {
                // What comes after the needed block is known ahead, and nothing beyond the range.
                let upcoming = reader.upcoming(100);
                assert!(upcoming.len() <= 2, "{}", upcoming.len());
                asked += 1;
                reader
                    .block(&Block::new(cid, store.bytes(&cid).clone()).unwrap())
                    .unwrap();
            }
            ReadStep::Bytes(_) => {}
            ReadStep::End => break,
        }
    }
    // 10 levels of 10: root, two nodes, and the three leaves.
    assert_eq!(asked, 6);
}

#[test]
fn upcoming_blocks_are_named_before_they_are_needed() {
    let profile = Profile::unixfs_v1_2025()
        .chunk_size(10)
        .unwrap()
        .max_links(4)
        .unwrap();
    let (store, part) = import_bytes(&counter(640), &profile, 1);
    let mut reader = Reader::new(part.cid, ..);
    let mut told = std::collections::HashSet::from([part.cid]);
    loop {
        match reader.poll().unwrap() {
            ReadStep::NeedBlock(cid) => {
                assert!(
                    told.contains(&cid),
                    "asked for a block that was never announced"
                );
                reader
                    .block(&Block::new(cid, store.bytes(&cid).clone()).unwrap())
                    .unwrap();
                // Right behind a block, its children become known.
                if let ReadStep::NeedBlock(next) = reader.poll().unwrap() {
                    told.insert(next);
                }
                told.extend(reader.upcoming(3));
                assert!(reader.upcoming(3).len() <= 3);
            }
            ReadStep::Bytes(_) => {}
            ReadStep::End => break,
        }
    }
}

/// Row U3: every size that a node claims is checked against what is there.
#[test]
fn u3_sizes_that_lie_are_typed_errors() {
    let mut store = Memory::default();
    let five = raw(&mut store, b"hello");
    let six = raw(&mut store, b" world");

    let honest = node(&mut store, &[(five, 5), (six, 6)], |_| {});
    assert_eq!(all(&mut store, honest).unwrap(), b"hello world");

    let lie = |result: Result<Vec<u8>, ReadError>| match result {
        Err(ReadError::SizeLie {
            claim,
            claimed,
            actual,
            ..
        }) => (claim, claimed, actual),
        other => panic!("{other:?}"),
    };
    let more = node(&mut store, &[(five, 5), (six, 7)], |_| {});
    assert_eq!(lie(all(&mut store, more)), ("the parent", 7, 6));
    let less = node(&mut store, &[(five, 4), (six, 6)], |_| {});
    assert_eq!(lie(all(&mut store, less)), ("the parent", 4, 5));
    let filesize = node(&mut store, &[(five, 5), (six, 6)], |data| {
        data.filesize = Some(12);
    });
    assert_eq!(lie(all(&mut store, filesize)), ("filesize", 12, 11));
    let nested = node(&mut store, &[(honest, 12)], |_| {});
    assert_eq!(lie(all(&mut store, nested)), ("the parent", 12, 11));

    // A size of 2^64-1 twice: the sum must not wrap round to something small.
    let wrap = node(&mut store, &[(five, u64::MAX), (six, 6)], |_| {});
    assert!(matches!(
        all(&mut store, wrap),
        Err(ReadError::SizeOverflow { .. })
    ));
    let negative = node(&mut store, &[(five, (-5i64) as u64), (six, 16)], |_| {});
    assert!(matches!(
        all(&mut store, negative),
        Err(ReadError::SizeOverflow { .. })
    ));

    let few = node(&mut store, &[(five, 5), (six, 6)], |data| {
        data.blocksizes = vec![11];
    });
    assert!(matches!(
        all(&mut store, few),
        Err(ReadError::SizeCount {
            links: 2,
            sizes: 1,
            ..
        })
    ));
    let leaf = node(&mut store, &[], |data| data.blocksizes = vec![0]);
    assert!(matches!(
        all(&mut store, leaf),
        Err(ReadError::SizeCount {
            links: 0,
            sizes: 1,
            ..
        })
    ));

    // Without block sizes nothing can be checked ahead, so it is checked behind.
    let silent = node(&mut store, &[(five, 5), (six, 6)], |data| {
        data.blocksizes.clear();
    });
    assert_eq!(all(&mut store, silent).unwrap(), b"hello world");
    assert_eq!(read(&mut store, silent, 3..8).unwrap(), b"lo wo");
    let silent_lie = node(&mut store, &[(five, 5), (six, 6)], |data| {
        data.blocksizes.clear();
        data.filesize = Some(3);
    });
    assert_eq!(
        lie(all(&mut store, silent_lie)),
        ("the parent or filesize", 3, 11)
    );
    let silent_child = node(&mut store, &[(silent, 11), (five, 5)], |_| {});
    assert_eq!(all(&mut store, silent_child).unwrap(), b"hello worldhello");
}

/// Nodes with content of their own and links besides: the content comes first (specs/unixfs.md §3).
#[test]
fn u_file_4_content_beside_links_is_read_first() {
    let mut store = Memory::default();
    let child = raw(&mut store, b"child");
    let both = node(&mut store, &[(child, 5)], |data| {
        data.data = Some(Bytes::from_static(b"own "));
        data.filesize = Some(9);
    });
    assert_eq!(all(&mut store, both).unwrap(), b"own child");
    assert_eq!(read(&mut store, both, 2..6).unwrap(), b"n ch");
    let inline = Cid::new_v1(0x55, multihash::Multihash::wrap(0, b"id").unwrap());
    let mixed = node(&mut store, &[(inline, 2), (both, 9)], |_| {});
    assert_eq!(
        all(&mut store, mixed).unwrap(),
        b"idown child",
        "identity CIDs are read without a block"
    );
}

#[test]
fn only_files_are_read_as_files() {
    let mut store = Memory::default();
    let put = |store: &mut Memory, kind, links: &[Cid]| {
        let links = links.iter().map(|cid| Link::new(*cid, b"", 1));
        store.put(Block::dag_pb(dagpb::encode(links, Some(&FsData::new(kind).encode()))).unwrap())
    };
    let hello = raw(&mut store, b"hello");
    for kind in [Kind::Directory, Kind::Symlink, Kind::HamtShard] {
        let cid = put(&mut store, kind, &[]);
        // Whatever the range, also an empty one.
        for range in [0..u64::MAX, 0..0] {
            let refused = read(&mut store, cid, range);
            assert!(
                matches!(refused, Err(ReadError::WrongKind { kind: found, .. }) if found == kind)
            );
        }
        let below = node(&mut store, &[(cid, 5)], |_| {});
        assert!(matches!(
            all(&mut store, below),
            Err(ReadError::WrongKind { .. })
        ));
    }
    let wrapped = put(&mut store, Kind::Metadata, &[hello]);
    assert_eq!(all(&mut store, wrapped).unwrap(), b"hello");
    let empty = put(&mut store, Kind::Metadata, &[]);
    assert!(matches!(
        all(&mut store, empty),
        Err(ReadError::WrongKind { .. })
    ));
    let cbor = Cid::new_v1(0x71, *hello.hash());
    store.blocks.insert(cbor, Bytes::from_static(b"hello"));
    assert!(matches!(
        all(&mut store, cbor),
        Err(ReadError::Codec { .. })
    ));
    let broken = store.put(Block::dag_pb(vec![0xff]).unwrap());
    assert!(matches!(
        all(&mut store, broken),
        Err(ReadError::Wire { .. })
    ));
    let no_data = store.put(Block::dag_pb(Vec::new()).unwrap());
    assert!(matches!(
        all(&mut store, no_data),
        Err(ReadError::Wire { .. })
    ));
}

/// 100,000 levels cost neither the stack nor the memory; they are refused at the limit.
#[test]
fn u5_a_very_deep_file_is_refused() {
    let mut store = Memory::default();
    let mut top = raw(&mut store, b"x");
    let mut chain = vec![top];
    for _ in 0..100_000 {
        top = node(&mut store, &[(top, 1)], |_| {});
        chain.push(top);
    }
    assert_eq!(all(&mut store, chain[MAX_FILE_DEPTH - 1]).unwrap(), b"x");
    for level in [MAX_FILE_DEPTH, 100_000] {
        assert!(matches!(
            all(&mut store, chain[level]),
            Err(ReadError::TooDeep {
                limit: MAX_FILE_DEPTH,
                ..
            })
        ));
    }
}

/// 2^40 bytes from 40 blocks are streamed; 2^40 times nothing is refused instead of walked.
#[test]
fn u5_a_bomb_is_streamed_or_refused() {
    let mut store = Memory::default();
    let mut top = raw(&mut store, b"xx");
    for level in 0..39u32 {
        let size = 2u64 << level;
        top = node(&mut store, &[(top, size), (top, size)], |_| {});
    }
    assert_eq!(read(&mut store, top, 0..1000).unwrap(), vec![b'x'; 1000]);
    let end = 1u64 << 40;
    assert_eq!(read(&mut store, top, end - 3..u64::MAX).unwrap(), b"xxx");

    let mut nothing = raw(&mut store, b"");
    for _ in 0..40 {
        nothing = node(&mut store, &[(nothing, 0), (nothing, 0)], |data| {
            data.blocksizes.clear();
            data.filesize = None;
        });
    }
    assert!(matches!(
        all(&mut store, nothing),
        Err(ReadError::NoProgress { .. })
    ));
    // With sizes of 0 the children need not be read at all.
    let empty = raw(&mut store, b"");
    let zero = node(&mut store, &[(empty, 0), (empty, 0)], |_| {});
    assert_eq!(all(&mut store, zero).unwrap(), b"");
}

#[test]
fn wide_nodes_on_one_path_are_bounded() {
    let mut store = Memory::default();
    let leaf = raw(&mut store, b"x");
    let mut top = leaf;
    let mut size = 1;
    for _ in 0..20 {
        // About 1.2 MiB each, the deep child first.
        let mut children = vec![(top, size)];
        children.extend(std::iter::repeat_n((leaf, 1), 24_000));
        top = node(&mut store, &children, |_| {});
        size += 24_000;
    }
    assert!(matches!(
        all(&mut store, top),
        Err(ReadError::TooWide { .. })
    ));
}

#[test]
fn blocks_that_were_not_asked_for_are_refused() {
    let mut store = Memory::default();
    let hello = raw(&mut store, b"hello");
    let mut reader = Reader::new(hello, ..);
    let other = Block::raw("other").unwrap();
    assert!(matches!(
        reader.block(&other),
        Err(ReadError::WrongBlock { .. })
    ));
    reader.block(&Block::raw("hello").unwrap()).unwrap();
    assert!(matches!(
        reader.block(&Block::raw("hello").unwrap()),
        Err(ReadError::WrongBlock { wanted: None, .. })
    ));
    assert_eq!(
        reader.poll().unwrap(),
        ReadStep::Bytes(Bytes::from_static(b"hello"))
    );
    assert_eq!(reader.poll().unwrap(), ReadStep::End);
    assert_eq!(reader.size(), Some(5));
}

/// Row X2: a source whose bytes are wrong gives an error, not a file.
#[test]
fn x2_a_source_with_wrong_bytes_is_refused() {
    let mut store = Memory::default();
    let hello = raw(&mut store, b"hello");
    store.blocks.insert(hello, Bytes::from_static(b"jello"));
    assert!(matches!(store.get(&hello), Err(SourceError::Failed { .. })));
    let gone = *Block::raw("gone").unwrap().cid();
    let missing = cat(&mut store, gone, .., &mut Vec::new());
    assert!(matches!(missing, Err(DriveError::Source(SourceError::Missing(cid))) if *cid == gone));
}
