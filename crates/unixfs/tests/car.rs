//! Archives: the vector, both versions, and archives that were cut, bent or forged.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, counter, import_bytes};
use data_encoding::HEXLOWER;
use gemba_unixfs::car::{
    CarError, CarReadError, CarReader, CarWriter, DagWalk, Dups, MAX_HEADER_BYTES, WalkStep,
    export_dag,
};
use gemba_unixfs::dagpb::{self, Link};
use gemba_unixfs::{Block, Bytes, Cid, Meta, Profile, TreeImporter};

const HELLO: &str = "3aa265726f6f747381d82a58250001551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9\
     6776657273696f6e012f01551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde968656c6c6f20776f726c64";

fn hello() -> Vec<u8> {
    HEXLOWER.decode(HELLO.replace(' ', "").as_bytes()).unwrap()
}

fn read(bytes: &[u8]) -> Result<(Vec<Cid>, Vec<Block>), CarError> {
    let car = |error| match error {
        CarReadError::Car(error) => error,
        CarReadError::Io(error) => panic!("{error}"),
        _ => unreachable!(),
    };
    let reader = CarReader::new(bytes).map_err(car)?;
    let roots = reader.roots().to_vec();
    let blocks = reader.collect::<Result<Vec<_>, _>>().map_err(car)?;
    Ok((roots, blocks))
}

fn v2(inner: &[u8], padding: usize, index: &[u8]) -> Vec<u8> {
    let start = 51 + padding as u64;
    let end = start + inner.len() as u64;
    let mut out = HEXLOWER.decode(b"0aa16776657273696f6e02").unwrap();
    out.extend_from_slice(&[0; 16]);
    for number in [
        start,
        inner.len() as u64,
        if index.is_empty() { 0 } else { end },
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    out.extend_from_slice(&vec![0; padding]);
    out.extend_from_slice(inner);
    out.extend_from_slice(index);
    out
}

#[test]
fn u_car_1_the_vector_of_kubo_is_read_and_written() {
    let block = Block::raw("hello world").unwrap();
    let (roots, blocks) = read(&hello()).unwrap();
    assert_eq!(
        (roots.as_slice(), blocks.as_slice()),
        (&[*block.cid()][..], std::slice::from_ref(&block))
    );
    let mut writer = CarWriter::new(Vec::new(), &roots, Dups::Skip).unwrap();
    writer.write(&block).unwrap();
    assert_eq!(writer.finish().unwrap(), hello());
}

/// `ipfs dag export` of 0.42 and our export of the same DAG are the same bytes: depth first, each block once.
#[test]
fn s4_44_exports_equal_those_of_kubo_byte_for_byte() {
    for name in [
        "trickle-v0",
        "trickle-raw-leaves",
        "rabin-v1",
        "balanced-v0",
        "hamt-300",
    ] {
        let path = format!(
            "{}/../../specs/vectors/unixfs/{name}.car",
            env!("CARGO_MANIFEST_DIR")
        );
        let bytes = std::fs::read(path).unwrap();
        let (roots, blocks) = read(&bytes).unwrap();
        let mut store = Memory::default();
        for block in blocks {
            store.put(block);
        }
        let mut out = Vec::new();
        export_dag(&mut store, roots[0], &mut out, Dups::Skip).unwrap();
        assert_eq!(out, bytes, "{name}");
    }
}

#[test]
fn version_2_is_read_with_padding_and_index() {
    let wanted = read(&hello()).unwrap();
    for (padding, index) in [
        (0, &b""[..]),
        (13, b""),
        (0, b"\x80\x08 an index"),
        (100_000, b"\xff\xff\xff\xff\xff"),
    ] {
        assert_eq!(read(&v2(&hello(), padding, index)).unwrap(), wanted);
    }
    // The inner archive ends where the header says, whatever follows.
    let mut twice = v2(&hello(), 0, b"");
    twice.extend_from_slice(&hello());
    assert_eq!(read(&twice).unwrap(), wanted);
    let header = |start: u64, size: u64, index: u64| {
        let mut bytes = v2(&hello(), 0, b"");
        bytes[27..35].copy_from_slice(&start.to_le_bytes());
        bytes[35..43].copy_from_slice(&size.to_le_bytes());
        bytes[43..51].copy_from_slice(&index.to_le_bytes());
        read(&bytes)
    };
    assert_eq!(
        header(50, 107, 0),
        Err(CarError::V2Header),
        "data inside the header"
    );
    assert_eq!(header(0, 107, 0), Err(CarError::V2Header));
    assert_eq!(header(u64::MAX, 107, 0), Err(CarError::V2Header));
    assert_eq!(header(51, u64::MAX, 0), Err(CarError::V2Header));
    assert_eq!(header(51, 0, 0), Err(CarError::V2Header));
    assert_eq!(
        header(51, 107, 100),
        Err(CarError::V2Header),
        "index inside the data"
    );
    assert_eq!(
        header(51, 106, 0),
        Err(CarError::V2Header),
        "the last block reaches over the end"
    );
    assert!(matches!(
        header(51, 108, 0),
        Err(CarError::Truncated { .. })
    ));
    let nested = v2(&v2(&hello(), 0, b""), 0, b"");
    assert_eq!(read(&nested), Err(CarError::Version(2)));
}

/// An archive that was cut off anywhere but between two blocks is refused with the place; between two blocks, version 1
/// cannot know it, and whoever reads a DAG misses the block.
#[test]
fn u7_a_truncated_archive_is_refused_with_its_place() {
    let mut store = Memory::default();
    let mut importer = TreeImporter::new(&Profile::default(), 1);
    importer
        .enter_dir(b"", &Meta::default(), &mut store)
        .unwrap();
    for name in ["a", "b", "c"] {
        importer
            .file(
                name.as_bytes(),
                &Meta::default(),
                &mut name.as_bytes(),
                &mut store,
            )
            .unwrap();
    }
    importer.leave_dir(&mut store).unwrap();
    let root = importer.finish(&mut store).unwrap().cid;
    let mut whole = Vec::new();
    export_dag(&mut store, root, &mut whole, Dups::Skip).unwrap();
    let (_, blocks) = read(&whole).unwrap();
    let mut ends = vec![59usize];
    for block in &blocks {
        let length = block.cid().encoded_len() + block.data().len();
        ends.push(ends.last().unwrap() + length + if length < 128 { 1 } else { 2 });
    }
    assert_eq!(ends.last(), Some(&whole.len()));
    for cut in 0..whole.len() {
        let section = ends.iter().take_while(|end| **end <= cut).count() as u64;
        match read(&whole[..cut]) {
            Ok((_, found)) => {
                assert!(ends.contains(&cut));
                assert_eq!(found.len() as u64, section - 1);
            }
            Err(CarError::Truncated {
                offset,
                section: at,
                ..
            }) => {
                assert!(!ends.contains(&cut));
                assert_eq!((offset, at), (cut as u64, section));
            }
            Err(other) => panic!("{cut}: {other}"),
        }
    }
    // Version 2 says where it ends, so there every cut is seen.
    let inner = v2(&whole, 5, b"");
    for cut in 0..inner.len() {
        assert!(
            matches!(read(&inner[..cut]), Err(CarError::Truncated { .. })),
            "{cut}"
        );
    }
}

/// Row X2: any flipped bit of a block or its hash is found. One in the codec makes it another block of the same bytes,
/// which nobody asked for.
#[test]
fn x2_flipped_bits_are_found() {
    let good = hello();
    for bit in 60 * 8..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        match read(&bytes) {
            Err(_) => {}
            Ok((roots, blocks)) => {
                assert_eq!(bit / 8, 61, "bit {bit}");
                assert_ne!(blocks[0].cid(), &roots[0]);
            }
        }
    }
    let mut bytes = good;
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(
        read(&bytes),
        Err(CarError::Block {
            offset: 59,
            section: 1,
            ..
        })
    ));
}

/// Row U7: lengths are checked before anything is allocated, headers before anything is believed.
#[test]
fn u7_varint_bombs_and_bad_headers_are_refused() {
    let length = |bytes: &[u8]| match read(bytes) {
        Err(CarError::Length {
            part,
            offset,
            length,
            limit,
            ..
        }) => (part, offset, length, limit),
        other => panic!("{other:?}"),
    };
    assert_eq!(length(&[0]), ("the header", 0, 0, MAX_HEADER_BYTES as u64));
    assert_eq!(length(&[0x81, 0x80, 0x40]).2, MAX_HEADER_BYTES as u64 + 1);
    assert_eq!(length(&[0xff; 10]).2, u64::MAX);
    let mut bomb = hello()[..59].to_vec();
    bomb.extend_from_slice(&[0xff, 0xff, 0xff, 0x7f]);
    assert_eq!(length(&bomb).1, 59);
    bomb.truncate(59);
    bomb.push(0);
    assert_eq!(
        length(&bomb),
        ("a block", 59, 0, (2 * 1024 * 1024 + 168) as u64)
    );

    let header = |hex: &str| {
        let header = HEXLOWER.decode(hex.replace(' ', "").as_bytes()).unwrap();
        read(&[&[header.len() as u8][..], &header].concat())
    };
    assert_eq!(header("a1 6776657273696f6e 03"), Err(CarError::Version(3)));
    assert_eq!(
        header("a2 65726f6f7473 80 6776657273696f6e 00"),
        Err(CarError::Version(0))
    );
    assert_eq!(
        header("a2 65726f6f7473 80 6776657273696f6e 01"),
        Ok((Vec::new(), Vec::new()))
    );
    assert_eq!(
        header("a2 6776657273696f6e 01 65726f6f7473 80"),
        Ok((Vec::new(), Vec::new())),
        "either order"
    );
    for bad in [
        "",
        "80",
        "a0",
        "a1 6776657273696f6e 01",
        "a2 65726f6f7473 80 6776657273696f6e 01 00",
        "a2 65726f6f7473 80 65726f6f7473 80",
        "a3 65726f6f7473 80 6776657273696f6e 01 6161 01",
        "a2 65726f6f7473 81 01 6776657273696f6e 01",
        "a2 65726f6f7473 9b ffffffffffffffff",
        "a2 65726f6f7473 81 d82a 42 0000 6776657273696f6e 01",
        "a2 7b ffffffffffffffff",
        "bf 65726f6f7473 80 ff",
        "1f",
    ] {
        assert!(
            matches!(
                header(bad),
                Err(CarError::Header(_) | CarError::Length { .. })
            ),
            "{bad}"
        );
    }
    // Row U6: nesting is never followed; a list within lists is no link.
    let deep = vec![0x81; 100_000];
    let bytes = [
        &[0xa2 - 0x20, 0x8d, 0x06][..],
        &[0xa2, 0x65],
        b"roots",
        &deep,
    ]
    .concat();
    assert!(read(&bytes).is_err());
}

#[test]
fn u7_duplicate_roots_and_blocks_are_harmless() {
    let block = Block::raw("hello world").unwrap();
    let mut writer = CarWriter::new(Vec::new(), &[*block.cid(), *block.cid()], Dups::Keep).unwrap();
    for _ in 0..3 {
        writer.write(&block).unwrap();
    }
    let (roots, blocks) = read(&writer.finish().unwrap()).unwrap();
    assert_eq!((roots.len(), blocks.len()), (2, 3));
    let mut writer = CarWriter::new(Vec::new(), &roots, Dups::Skip).unwrap();
    for _ in 0..3 {
        writer.write(&block).unwrap();
    }
    assert_eq!(read(&writer.finish().unwrap()).unwrap().1.len(), 1);
}

#[test]
fn s4_23_a_dag_travels_through_an_archive() {
    let profile = Profile::unixfs_v1_2025()
        .chunk_size(100)
        .unwrap()
        .max_links(5)
        .unwrap();
    // Every chunk is the same: with duplicates kept it is written each time.
    let content = [counter(100), counter(100), counter(100)].concat();
    let (mut store, part) = import_bytes(&content, &profile, 1);
    for (dups, count) in [(Dups::Skip, 2), (Dups::Keep, 4)] {
        let mut out = Vec::new();
        assert_eq!(
            export_dag(&mut store, part.cid, &mut out, dups).unwrap(),
            count
        );
        let (roots, blocks) = read(&out).unwrap();
        assert_eq!(roots, [part.cid]);
        assert_eq!(blocks.len() as u64, count);
        assert_eq!(blocks[0].cid(), &part.cid, "the root comes first");
    }
}

/// 100,000 levels deep and walked without recursion; a raw and a dag-pb block of the same bytes are two nodes.
#[test]
fn u5_a_very_deep_dag_is_walked() {
    let mut store = Memory::default();
    let mut top = store.put(Block::raw("x").unwrap());
    for _ in 0..100_000 {
        let link = [Link::new(top, b"", 1)];
        top = store.put(Block::dag_pb(dagpb::encode(link.into_iter(), None)).unwrap());
    }
    let mut walk = DagWalk::new(top, Dups::Skip);
    let mut visited = 0;
    while let WalkStep::NeedBlock(cid) = walk.poll() {
        walk.block(&Block::new(cid, store.bytes(&cid).clone()).unwrap())
            .unwrap();
        visited += 1;
    }
    assert_eq!(visited, 100_001);

    let leaf = Block::raw("leaf").unwrap();
    let node = Block::dag_pb(dagpb::encode(
        [Link::new(*leaf.cid(), b"", 4)].into_iter(),
        None,
    ))
    .unwrap();
    let same = Block::raw(node.data().clone()).unwrap();
    let links = [
        Link::new(*same.cid(), b"a", 1),
        Link::new(*node.cid(), b"b", 1),
    ];
    let root = Block::dag_pb(dagpb::encode(links.into_iter(), None)).unwrap();
    let cid = *root.cid();
    for block in [leaf, node, same, root] {
        store.put(block);
    }
    let mut out = Vec::new();
    assert_eq!(
        export_dag(&mut store, cid, &mut out, Dups::Skip).unwrap(),
        4
    );
}

#[test]
fn a_missing_block_stops_an_export() {
    let mut store = Memory::default();
    let gone = *Block::raw("gone").unwrap().cid();
    let root = store
        .put(Block::dag_pb(dagpb::encode([Link::new(gone, b"", 4)].into_iter(), None)).unwrap());
    let stopped = export_dag(&mut store, root, Vec::new(), Dups::Skip);
    assert!(stopped.unwrap_err().to_string().contains(&gone.to_string()));
    let broken = store.put(Block::dag_pb(vec![1]).unwrap());
    assert!(export_dag(&mut store, broken, Vec::new(), Dups::Skip).is_err());
    store.blocks.insert(broken, Bytes::new());
    assert!(export_dag(&mut store, broken, Vec::new(), Dups::Skip).is_err());
}
