//! Directories: listed, looked up, resolved; and HAMTs that break the rules.
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;

use common::Memory;
use gemba_unixfs::car::CarReader;
use gemba_unixfs::dagpb::{self, FsData, Kind, Link, Node};
use gemba_unixfs::{
    Block, Bytes, Cid, DriveError, Estimation, HamtError, ListStep, Listing, Lookup, LookupStep,
    Meta, Path, PathError, Profile, ReadError, Stat, StatKind, TreeImporter, ls, resolve,
};
use proptest::prelude::*;

fn list(store: &mut Memory, root: Cid) -> Result<Vec<(Vec<u8>, Cid)>, ReadError> {
    let mut found = Vec::new();
    let listed = ls(store, root, &mut |entry| {
        found.push((entry.name.to_vec(), entry.cid));
        Ok(())
    });
    match listed {
        Ok(()) => Ok(found),
        Err(DriveError::Read(error)) => Err(error),
        Err(other) => panic!("{other}"),
    }
}

/// The entry, and how many blocks the lookup needed.
fn look_up(store: &Memory, root: Cid, name: &[u8]) -> Result<(Option<Cid>, usize), ReadError> {
    let mut lookup = Lookup::new(root, Bytes::copy_from_slice(name));
    for asked in 0.. {
        match lookup.poll()? {
            LookupStep::NeedBlock(cid) => {
                lookup.block(&Block::new(cid, store.bytes(&cid).clone()).unwrap())?;
            }
            LookupStep::Found(entry) => return Ok((Some(entry.cid), asked)),
            LookupStep::Absent => return Ok((None, asked)),
        }
    }
    unreachable!()
}

fn directory(names: &[Vec<u8>], profile: &Profile) -> (Memory, Cid) {
    let mut store = Memory::default();
    let mut importer = TreeImporter::new(profile, 1);
    importer
        .enter_dir(b"", &Meta::default(), &mut store)
        .unwrap();
    for name in names {
        importer
            .file(name, &Meta::default(), &mut &name[..], &mut store)
            .unwrap();
    }
    importer.leave_dir(&mut store).unwrap();
    let root = importer.finish(&mut store).unwrap().cid;
    (store, root)
}

fn always_hamt() -> Profile {
    Profile::unixfs_v1_2025().hamt_threshold(1, Estimation::Links)
}

/// Written by Kubo 0.42 with a threshold of 1 KiB: 300 files named and filled with their four-digit index.
#[test]
fn s4_44_a_hamt_of_kubo_is_listed_and_looked_up() {
    let path = format!(
        "{}/../../specs/vectors/unixfs/hamt-300.car",
        env!("CARGO_MANIFEST_DIR")
    );
    let car = CarReader::new(std::fs::File::open(path).unwrap()).unwrap();
    let root = car.roots()[0];
    let mut store = Memory::default();
    for block in car {
        store.put(block.unwrap());
    }
    let mut entries = list(&mut store, root).unwrap();
    entries.sort();
    assert_eq!(entries.len(), 300);
    for (index, (name, cid)) in entries.iter().enumerate() {
        assert_eq!(name, format!("{index:04}").as_bytes());
        assert_eq!(cid, Block::raw(name.clone()).unwrap().cid());
        let (found, asked) = look_up(&store, root, name).unwrap();
        assert_eq!(found.as_ref(), Some(cid));
        assert!(asked <= 3, "{asked} blocks for one name of 300");
    }
    assert_eq!(look_up(&store, root, b"0300").unwrap().0, None);
    let names: Vec<Vec<u8>> = entries.into_iter().map(|(name, _)| name).collect();
    let v0 = Profile::unixfs_v0_2015().cid_version(gemba_unixfs::CidVersion::V1);
    let (_, ours) = directory(&names, &v0.hamt_threshold(1024, Estimation::Links));
    assert_eq!(ours, root);
}

proptest! {
    #[test]
    fn every_entry_is_listed_and_found(
        names in proptest::collection::btree_set("[^/\0]{1,20}", 0..80),
        fanout in prop_oneof![Just(8u32), Just(16), Just(256), Just(1024)],
        hamt: bool,
    ) {
        let names: Vec<Vec<u8>> =
            names.into_iter().filter(|name| name != "." && name != "..").map(String::into_bytes).collect();
        let profile = if hamt { always_hamt() } else { Profile::unixfs_v1_2025() };
        let (mut store, root) = directory(&names, &profile.hamt_fanout(fanout).unwrap());
        let wanted: BTreeMap<Vec<u8>, Cid> =
            names.iter().map(|name| (name.clone(), *Block::raw(name.clone()).unwrap().cid())).collect();
        let listed = list(&mut store, root).unwrap();
        prop_assert_eq!(listed.len(), wanted.len());
        prop_assert_eq!(listed.into_iter().collect::<BTreeMap<_, _>>(), wanted.clone());
        for (name, cid) in &wanted {
            prop_assert_eq!(look_up(&store, root, name).unwrap().0, Some(*cid));
        }
        prop_assert_eq!(look_up(&store, root, b"no/such").unwrap().0, None);
    }

    /// Whatever the order of the events, the directory is the same.
    #[test]
    fn u_dir_1_order_of_entries_does_not_matter(
        names in proptest::collection::btree_set("[a-z]{1,6}", 1..40).prop_map(|set| set.into_iter().map(String::into_bytes).collect::<Vec<_>>()),
        shuffled in any::<prop::sample::Index>(),
        hamt: bool,
    ) {
        let profile = if hamt { always_hamt() } else { Profile::unixfs_v0_2015() };
        let mut other = names.clone();
        let at = shuffled.index(other.len());
        other.rotate_left(at);
        prop_assert_eq!(directory(&names, &profile).1, directory(&other, &profile).1);
    }
}

#[test]
fn u_dir_2_names_that_cannot_be_entries_are_refused() {
    use gemba_unixfs::ImportError;
    for bad in ["", ".", "..", "a/b", "/", "a\0b"] {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(&Profile::default(), 1);
        importer
            .enter_dir(b"", &Meta::default(), &mut store)
            .unwrap();
        importer
            .file(bad.as_bytes(), &Meta::default(), &mut &b"x"[..], &mut store)
            .unwrap();
        importer.leave_dir(&mut store).unwrap();
        assert!(
            matches!(importer.finish(&mut store), Err(ImportError::BadName(_))),
            "{bad:?}"
        );
    }
    for hamt in [false, true] {
        let mut store = Memory::default();
        let profile = if hamt {
            always_hamt()
        } else {
            Profile::default()
        };
        let mut importer = TreeImporter::new(&profile, 1);
        importer
            .enter_dir(b"", &Meta::default(), &mut store)
            .unwrap();
        for name in ["b", "a", "b"] {
            importer
                .file(
                    name.as_bytes(),
                    &Meta::default(),
                    &mut &b"x"[..],
                    &mut store,
                )
                .unwrap();
        }
        importer.leave_dir(&mut store).unwrap();
        assert!(
            matches!(importer.finish(&mut store), Err(ImportError::DuplicateName(name)) if name == "b")
        );
    }
}

#[test]
fn events_that_make_no_tree_are_refused() {
    use gemba_unixfs::ImportError;
    let none = Meta::default();
    let refused = |drive: &dyn Fn(&mut TreeImporter, &mut Memory)| {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(&Profile::default(), 1);
        drive(&mut importer, &mut store);
        matches!(importer.finish(&mut store), Err(ImportError::Misuse(_)))
    };
    assert!(refused(&|_, _| {}));
    assert!(refused(&|importer, store| importer
        .enter_dir(b"", &none, store)
        .unwrap()));
    assert!(refused(&|importer, store| importer
        .leave_dir(store)
        .unwrap()));
    assert!(refused(&|importer, store| {
        importer.symlink(b"a", b"x", &none, store).unwrap();
        importer.symlink(b"b", b"x", &none, store).unwrap();
    }));
}

#[test]
fn paths_are_read_as_kubo_reads_them() {
    let cid = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";
    let segments = |text: &str| {
        let path: Path = text.parse().unwrap();
        assert_eq!(path.root().to_string(), cid);
        path.segments()
            .iter()
            .map(|name| String::from_utf8(name.to_vec()).unwrap())
            .collect::<Vec<_>>()
    };
    let none: Vec<String> = Vec::new();
    assert_eq!(segments(cid), none);
    assert_eq!(segments(&format!("/ipfs/{cid}/")), none);
    assert_eq!(segments(&format!("{cid}/a/b.txt")), ["a", "b.txt"]);
    assert_eq!(segments(&format!("/ipfs/{cid}//a///b/")), ["a", "b"]);
    assert_eq!(segments(&format!("ipfs://{cid}/%20/é")), ["%20", "é"]);
    assert_eq!(
        format!("{cid}/a/../b").parse::<Path>(),
        Err(PathError::Dots("..".into()))
    );
    assert_eq!(
        format!("{cid}/./b").parse::<Path>(),
        Err(PathError::Dots(".".into()))
    );
    assert_eq!("/ipns/example.org".parse::<Path>(), Err(PathError::Mutable));
    assert_eq!("".parse::<Path>(), Err(PathError::Cid(String::new())));
    assert_eq!("a/b".parse::<Path>(), Err(PathError::Cid("a".into())));
    assert_eq!("x".repeat(100_000).parse::<Path>(), Err(PathError::TooLong));
}

#[test]
fn paths_are_resolved_through_both_kinds_of_directories() {
    let none = Meta::default();
    for profile in [Profile::unixfs_v1_2025(), always_hamt()] {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(&profile, 1);
        importer.enter_dir(b"", &none, &mut store).unwrap();
        importer.enter_dir(b"a", &none, &mut store).unwrap();
        importer
            .file(b"b.txt", &none, &mut &b"content"[..], &mut store)
            .unwrap();
        importer
            .symlink(b"link", b"b.txt", &none, &mut store)
            .unwrap();
        importer.leave_dir(&mut store).unwrap();
        importer.leave_dir(&mut store).unwrap();
        let root = importer.finish(&mut store).unwrap().cid;
        let mut at = |text: &str| {
            let path: Path = format!("{root}/{text}").parse().unwrap();
            resolve(&mut store, &path).map(|found| (found.cid, found.tsize))
        };
        let leaf = *Block::raw("content").unwrap().cid();
        assert_eq!(at("a/b.txt").unwrap(), (leaf, Some(7)));
        assert_eq!(at("").unwrap(), (root, None));
        let (link, _) = at("a/link").unwrap();
        assert!(
            matches!(at("a/none"), Err(DriveError::Read(ReadError::NotFound { name, .. })) if name == "none")
        );
        assert!(matches!(
            at("a/b.txt/c"),
            Err(DriveError::Read(ReadError::WrongKind {
                kind: Kind::Raw,
                ..
            }))
        ));
        assert!(matches!(
            at("a/link/c"),
            Err(DriveError::Read(ReadError::WrongKind {
                kind: Kind::Symlink,
                ..
            }))
        ));
        let stat = Stat::of(&Block::new(link, store.bytes(&link).clone()).unwrap()).unwrap();
        assert_eq!(
            stat.kind,
            StatKind::Symlink {
                target: Bytes::from_static(b"b.txt")
            }
        );
    }
}

fn shard(links: &[(&str, Cid)], bitfield: &[u8], edit: impl FnOnce(&mut FsData)) -> Block {
    let mut data = FsData::new(Kind::HamtShard);
    data.data = Some(Bytes::copy_from_slice(bitfield));
    data.hash_type = Some(0x22);
    data.fanout = Some(256);
    edit(&mut data);
    let links = links
        .iter()
        .map(|(name, cid)| Link::new(*cid, name.as_bytes(), 1));
    Block::dag_pb(dagpb::encode(links, Some(&data.encode()))).unwrap()
}

/// Row U4: wrong fanout, hash, bitfield, names, places and depth are typed errors.
#[test]
fn u4_shards_that_break_the_rules_are_typed_errors() {
    let leaf = *Block::raw("x").unwrap().cid();
    let refused = |block: Block| {
        let mut store = Memory::default();
        let root = store.put(block);
        match list(&mut store, root) {
            Err(ReadError::Hamt { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    // murmur3 of "file" begins with 0x18: bit 0 of byte 3 from the end.
    let good = [("18file", leaf)];
    let bits = [1, 0, 0, 0];
    let mut store = Memory::default();
    let root = store.put(shard(&good, &bits, |_| {}));
    assert_eq!(list(&mut store, root).unwrap(), [(b"file".to_vec(), leaf)]);

    assert_eq!(
        refused(shard(&good, &bits, |data| data.hash_type = None)),
        HamtError::HashType(0)
    );
    assert_eq!(
        refused(shard(&good, &bits, |data| data.hash_type = Some(0x12))),
        HamtError::HashType(0x12)
    );
    for fanout in [
        0,
        1,
        2,
        4,
        7,
        255,
        257,
        2048,
        u64::from(u32::MAX),
        u64::MAX,
        1 << 33,
    ] {
        assert_eq!(
            refused(shard(&good, &bits, |data| data.fanout = Some(fanout))),
            HamtError::Fanout(fanout)
        );
    }
    assert_eq!(
        refused(shard(&good, &bits, |data| data.fanout = None)),
        HamtError::Fanout(0)
    );
    assert_eq!(refused(shard(&good, &[], |_| {})), HamtError::Bitfield);
    assert_eq!(refused(shard(&good, &[1; 33], |_| {})), HamtError::Bitfield);
    assert_eq!(
        refused(shard(&good, &[2, 0, 0, 0], |_| {})),
        HamtError::Bitfield
    );
    assert_eq!(
        refused(shard(&good, &[3, 0, 0, 0], |_| {})),
        HamtError::Bitfield
    );
    assert_eq!(refused(shard(&[], &[1], |_| {})), HamtError::Bitfield);
    assert_eq!(
        refused(shard(&[("1", leaf)], &[1], |_| {})),
        HamtError::LinkName
    );
    assert_eq!(
        refused(shard(&[("", leaf)], &[1], |_| {})),
        HamtError::LinkName
    );
    assert_eq!(
        refused(shard(&[("zzfile", leaf)], &[1], |_| {})),
        HamtError::LinkName
    );
    assert_eq!(
        refused(shard(&[("1afile", leaf)], &[4, 0, 0, 0], |_| {})),
        HamtError::LinkName,
        "lower case"
    );
    assert_eq!(
        refused(shard(&[("19file", leaf)], &[2, 0, 0, 0], |_| {})),
        HamtError::Misplaced
    );
    let twice = [("18file", leaf), ("18file", leaf)];
    assert_eq!(
        refused(shard(&twice, &[3, 0, 0, 0], |_| {})),
        HamtError::LinkName
    );

    let mut below = |child: Block| {
        let root = shard(&[("18", *child.cid())], &bits, |_| {});
        store.put(child);
        let root = store.put(root);
        match list(&mut store, root) {
            Err(ReadError::Hamt { source, .. }) => source,
            other => panic!("{other:?}"),
        }
    };
    // The second byte of the hash is 0xe6.
    assert_eq!(below(shard(&[], &[], |_| {})), HamtError::Empty);
    assert_eq!(
        below(shard(&[("18file", leaf)], &bits, |_| {})),
        HamtError::Misplaced
    );
    let narrow = shard(&[("7file", leaf)], &[0x80], |data| data.fanout = Some(8));
    assert_eq!(
        below(narrow),
        HamtError::FanoutChanged {
            shard: 8,
            root: 256
        }
    );

    let mut store = Memory::default();
    let child = store.put(shard(
        &[("E6file", leaf)],
        &[vec![0x40], vec![0; 28]].concat(),
        |_| {},
    ));
    let root = store.put(shard(&[("18", child)], &bits, |_| {}));
    assert_eq!(list(&mut store, root).unwrap().len(), 1);
    let basic = store.put(Block::dag_pb(vec![0x0a, 2, 8, 1]).unwrap());
    let wrong = store.put(shard(&[("18", basic)], &bits, |_| {}));
    assert!(matches!(
        list(&mut store, wrong),
        Err(ReadError::WrongKind {
            kind: Kind::Directory,
            ..
        })
    ));
    store.put(Block::raw("x").unwrap());
    assert!(matches!(
        list(&mut store, leaf),
        Err(ReadError::WrongKind {
            kind: Kind::Raw,
            ..
        })
    ));
}

/// A chain of shards longer than the hash ends in an error, and shards that all share one child are not 256^8 walks.
#[test]
fn u4_depth_and_width_bombs_end_at_once() {
    let mut store = Memory::default();
    let mut top = *Block::raw("x").unwrap().cid();
    for _ in 0..20 {
        top = store.put(shard(&[("00", top)], &[1], |_| {}));
    }
    assert!(matches!(
        list(&mut store, top),
        Err(ReadError::Hamt {
            source: HamtError::TooDeep,
            ..
        })
    ));

    let names: Vec<String> = (0..256).map(|index| format!("{index:02X}")).collect();
    let mut child = store.put(shard(&[], &[], |_| {}));
    for _ in 0..7 {
        let links: Vec<(&str, Cid)> = names.iter().map(|name| (name.as_str(), child)).collect();
        child = store.put(shard(&links, &[0xff; 32], |_| {}));
    }
    let mut listing = Listing::new(child);
    for asked in 0.. {
        match listing.poll() {
            Ok(ListStep::NeedBlock(cid)) => {
                assert!(asked < 10);
                let block = Block::new(cid, store.bytes(&cid).clone()).unwrap();
                if let Err(error) = listing.block(&block) {
                    assert!(matches!(
                        error,
                        ReadError::Hamt {
                            source: HamtError::Empty,
                            ..
                        }
                    ));
                    return;
                }
            }
            other => panic!("{other:?}"),
        }
    }
}

/// A shard whose node the profile wrote is what Kubo would have written: names, bitfield and places are checked by the
/// reader, so reading our own is a check of the writer.
#[test]
fn all_fanouts_are_written_so_that_they_are_read() {
    let names: Vec<Vec<u8>> = (0..2000)
        .map(|index| format!("name {index}").into_bytes())
        .collect();
    for fanout in [8, 16, 32, 64, 128, 256, 512, 1024] {
        let (mut store, root) = directory(&names, &always_hamt().hamt_fanout(fanout).unwrap());
        assert_eq!(list(&mut store, root).unwrap().len(), 2000, "{fanout}");
        let node = Node::decode(store.bytes(&root).clone()).unwrap();
        let data = FsData::decode(&node.data().unwrap()).unwrap();
        assert_eq!(data.fanout, Some(u64::from(fanout)));
    }
}

#[test]
fn profiles_refuse_what_kubo_refuses() {
    let size = |text: &str| {
        Profile::default()
            .chunker(text)
            .map(|profile| profile.chunk_bytes())
    };
    assert_eq!(size("size-1").unwrap(), 1);
    assert_eq!(size("size-2096896").unwrap(), 2 * 1024 * 1024 - 256);
    assert_eq!(size("default").unwrap(), 1024 * 1024);
    for bad in [
        "size-0",
        "size-2096897",
        "size-99999999999999999999",
        "size-",
        "size--5",
        "size-1-2",
        "rabin",
        "buzhash",
        "x",
    ] {
        assert!(size(bad).is_err(), "{bad}");
    }
    assert!(Profile::default().max_links(1).is_err());
    assert!(Profile::default().max_links(2).is_ok());
    assert!(Profile::default().hamt_fanout(4).is_err());
    assert!(Profile::default().hamt_fanout(100).is_err());
    assert_eq!(Profile::from_name("unixfs-v1-2025"), Ok(Profile::default()));
    assert_eq!(
        Profile::from_name("legacy-cid-v0"),
        Ok(Profile::unixfs_v0_2015())
    );
    assert!(Profile::from_name("test-cid-v1").is_err());
}
