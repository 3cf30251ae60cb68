//! The dag-pb codec: what is taken is what boxo takes, what is written is what Kubo writes.
#![allow(clippy::unwrap_used)]

use data_encoding::HEXLOWER_PERMISSIVE as HEX;
use gemba_unixfs::dagpb::{self, FsData, Kind, Link, Mtime, Node, WireError};
use gemba_unixfs::{Bytes, Cid};
use proptest::prelude::*;

fn hex(text: &str) -> Bytes {
    HEX.decode(text.replace(' ', "").as_bytes()).unwrap().into()
}

fn decode(text: &str) -> Result<Node, WireError> {
    Node::decode(hex(text))
}

/// `01550000`: CIDv1, raw, identity, nothing.
const CID: &str = "0a0401550000";

/// Row U9 and go-codec-dagpb, unmarshal.go: one line a rule.
#[test]
fn u9_what_boxo_refuses_is_refused() {
    let table: &[(&str, String, Result<usize, WireError>)] = &[
        ("nothing at all is an empty node", String::new(), Ok(0)),
        (
            "Data before Links is taken",
            format!("0a0161 1206{CID}"),
            Ok(1),
        ),
        (
            "Links before Data is taken",
            format!("1206{CID} 0a0161"),
            Ok(1),
        ),
        (
            "Data twice",
            "0a0161 0a0162".into(),
            Err(WireError::Duplicate("Data")),
        ),
        (
            "Links, Data, Links",
            format!("1206{CID} 0a0161 1206{CID}"),
            Err(WireError::Duplicate("Links")),
        ),
        (
            "unknown field of a node",
            "1a0161".into(),
            Err(WireError::UnknownField(3)),
        ),
        (
            "Data as a varint",
            "0801".into(),
            Err(WireError::WireType(0)),
        ),
        (
            "field number 0",
            "020161".into(),
            Err(WireError::FieldNumber),
        ),
        ("cut in a length", "0a".into(), Err(WireError::Truncated)),
        (
            "cut in the bytes",
            "0a0261".into(),
            Err(WireError::Truncated),
        ),
        (
            "length of 2^64-1",
            "0affffffffffffffffff01".into(),
            Err(WireError::Truncated),
        ),
        (
            "length of more than 64 bits",
            "0affffffffffffffffff02".into(),
            Err(WireError::VarintOverflow),
        ),
        ("over-long varint is taken", "0a818000 61".into(), Ok(0)),
        (
            "link without Hash",
            "1202 1200".into(),
            Err(WireError::Missing("Hash")),
        ),
        ("empty link", "1200".into(), Err(WireError::Missing("Hash"))),
        (
            "Hash twice",
            format!("120c{CID}{CID}"),
            Err(WireError::Duplicate("Hash")),
        ),
        (
            "Name twice",
            format!("120a{CID}12001200"),
            Err(WireError::Duplicate("Name")),
        ),
        (
            "Tsize twice",
            format!("120a{CID}18001800"),
            Err(WireError::Duplicate("Tsize")),
        ),
        (
            "Name before Hash",
            format!("1208 1200{CID}"),
            Err(WireError::Order),
        ),
        (
            "Tsize before Hash",
            format!("1208 1800{CID}"),
            Err(WireError::Order),
        ),
        (
            "Tsize before Name",
            format!("120a{CID}18001200"),
            Err(WireError::Order),
        ),
        (
            "Tsize as bytes",
            format!("1208{CID}1a00"),
            Err(WireError::WireType(2)),
        ),
        (
            "Hash as a varint",
            "1202 0801".into(),
            Err(WireError::WireType(0)),
        ),
        (
            "unknown field of a link",
            format!("1208{CID}2000"),
            Err(WireError::UnknownField(4)),
        ),
        (
            "link that reaches beyond the node",
            format!("1207{CID}"),
            Err(WireError::Truncated),
        ),
        (
            "Hash that reaches beyond the link",
            "1206 0a0501550000 0a00".into(),
            Err(WireError::Truncated),
        ),
        (
            "bytes behind the CID are ignored",
            "1207 0a0501550000ff".into(),
            Ok(1),
        ),
        ("group", "0b0c".into(), Err(WireError::WireType(3))),
    ];
    for (what, bytes, wanted) in table {
        assert_eq!(decode(bytes).map(|node| node.len()), *wanted, "{what}");
    }
    assert!(matches!(decode("1204 0a02ffff"), Err(WireError::Cid(_))));
    let large = Node::decode(vec![0; 2 * 1024 * 1024 + 1].into());
    assert_eq!(
        large,
        Err(WireError::TooLarge {
            bytes: 2 * 1024 * 1024 + 1
        })
    );
}

/// Go's proto2 as UnixFS relies on it: unknown fields and foreign wire types are skipped, the last value wins.
#[test]
fn u9_unixfs_messages_are_read_as_proto2() {
    let read = |text: &str| FsData::decode(&hex(text));
    assert_eq!(read(""), Err(WireError::Missing("Type")));
    assert_eq!(
        read("0806"),
        Err(WireError::Missing("Type")),
        "an unknown value of a closed enum is an unknown field"
    );
    assert_eq!(read("0806 0802").unwrap().kind, Kind::File);
    assert_eq!(
        read("0801 0802").unwrap().kind,
        Kind::File,
        "the last value wins"
    );
    assert_eq!(
        read("0802 0a0161 100a 1a00").unwrap(),
        FsData::new(Kind::File),
        "wrong wire types are unknown fields"
    );
    assert_eq!(
        read("0802 220202ac"),
        Err(WireError::Truncated),
        "a packed number that is cut off"
    );
    assert_eq!(
        read("0802 2001 220302ac02 2003").unwrap().blocksizes,
        [1, 2, 300, 3],
        "packed and unpacked mix"
    );
    assert_eq!(
        read("0802 4b 0801 4b 4c 4c").unwrap(),
        FsData::new(Kind::File),
        "groups nest"
    );
    assert_eq!(read("0802 4b 0801"), Err(WireError::Truncated));
    assert_eq!(read("0802 4c"), Err(WireError::WireType(4)));
    assert_eq!(read("0802 4e"), Err(WireError::WireType(6)));
    assert_eq!(
        read("0802 4207 1505000000 1000"),
        Err(WireError::Missing("mtime seconds"))
    );
    assert_eq!(
        read("0802 38ffffffffff01").unwrap().mode,
        Some(u32::MAX),
        "uint32 keeps the low 32 bits"
    );
    let deep: String = "4b".repeat(100_000);
    assert_eq!(
        read(&format!("0802{deep}")),
        Err(WireError::Truncated),
        "nesting is counted, not recursed"
    );
}

#[test]
fn messages_are_written_as_kubo_writes_them() {
    let mut data = FsData::new(Kind::File);
    data.filesize = Some(11);
    data.blocksizes = vec![5, 5, 1];
    assert_eq!(data.encode(), hex("0802180b200520052001"));
    let mut data = FsData::new(Kind::File);
    // specs/unixfs.md §2: negative seconds take ten bytes, nanos of 0 are left out.
    data.mtime = Some(Mtime {
        seconds: -1,
        nanos: 0,
    });
    assert_eq!(data.encode(), hex("0802420b08ffffffffffffffffff01"));
    data.mtime = Some(Mtime {
        seconds: 1_700_000_000,
        nanos: 5,
    });
    assert_eq!(data.encode(), hex("0802420b0880e2cfaa061505000000"));
    assert_eq!(FsData::decode(&data.encode().into()).unwrap(), data);
}

fn any_cid() -> impl Strategy<Value = Cid> {
    (
        prop_oneof![Just(0x55u64), Just(0x70), Just(0x71)],
        any::<[u8; 32]>(),
        any::<bool>(),
    )
        .prop_map(|(codec, digest, v0)| {
            let hash = multihash::Multihash::wrap(0x12, &digest).unwrap();
            if v0 {
                Cid::new_v0(hash).unwrap()
            } else {
                Cid::new_v1(codec, hash)
            }
        })
}

type AnyLink = (Cid, Option<Vec<u8>>, Option<u64>);

fn any_link(utf8: bool) -> impl Strategy<Value = AnyLink> {
    let name = if utf8 {
        "\\PC{0,12}".prop_map(String::into_bytes).boxed()
    } else {
        proptest::collection::vec(any::<u8>(), 0..20).boxed()
    };
    (
        any_cid(),
        proptest::option::of(name),
        proptest::option::of(any::<u64>()),
    )
}

fn view(links: &[AnyLink]) -> impl Iterator<Item = Link<'_>> + Clone {
    links.iter().map(|(cid, name, tsize)| Link {
        cid: *cid,
        name: name.as_deref(),
        tsize: *tsize,
    })
}

proptest! {
    #[test]
    fn nodes_are_read_as_they_were_written(
        links in proptest::collection::vec(any_link(false), 0..20),
        data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
    ) {
        let bytes = Bytes::from(dagpb::encode(view(&links), data.as_deref()));
        let node = Node::decode(bytes.clone()).unwrap();
        prop_assert!(node.links().eq(view(&links)));
        let own = node.data();
        prop_assert_eq!(own.as_deref(), data.as_deref());
        let sizes: usize = node.links().map(|link| dagpb::encoded_link_len(&link)).sum();
        prop_assert_eq!(sizes + data.as_deref().map_or(0, dagpb::encoded_data_len), bytes.len());
        // Byte-exact: a node that was read is written as it was.
        prop_assert_eq!(dagpb::encode(node.links(), own.as_deref()), bytes);
    }

    /// Differential: `ipld-dagpb` reads what we write, and we read what it writes, to the same node.
    #[test]
    fn ipld_dagpb_agrees(
        links in proptest::collection::vec(any_link(true), 0..20),
        data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..100)),
    ) {
        // ipld-dagpb sorts when it writes, as a directory is sorted; we write what we are given.
        let mut links = links;
        links.sort_by(|a, b| a.1.as_deref().unwrap_or_default().cmp(b.1.as_deref().unwrap_or_default()));
        let bytes = dagpb::encode(view(&links), data.as_deref());
        let theirs = ipld_dagpb::PbNode::from_bytes(bytes.clone().into()).unwrap();
        prop_assert_eq!(theirs.links.len(), links.len());
        for (their, our) in theirs.links.iter().zip(&links) {
            prop_assert_eq!(&their.cid, &our.0);
            prop_assert_eq!(their.name.as_deref().map(str::as_bytes), our.1.as_deref());
            prop_assert_eq!(their.size, our.2);
        }
        prop_assert_eq!(theirs.data.as_deref(), data.as_deref());
        prop_assert_eq!(theirs.into_bytes().to_vec(), bytes);
    }

    #[test]
    fn unixfs_messages_are_read_as_they_were_written(
        kind in prop_oneof![Just(Kind::Raw), Just(Kind::Directory), Just(Kind::File), Just(Kind::Metadata), Just(Kind::Symlink), Just(Kind::HamtShard)],
        data in proptest::option::of(proptest::collection::vec(any::<u8>(), 0..50)),
        numbers in proptest::collection::vec(proptest::option::of(any::<u64>()), 3),
        blocksizes in proptest::collection::vec(any::<u64>(), 0..10),
        mode in proptest::option::of(any::<u32>()),
        mtime in proptest::option::of((any::<i64>(), any::<u32>())),
    ) {
        let message = FsData {
            kind,
            data: data.map(Bytes::from),
            filesize: numbers[0],
            blocksizes,
            hash_type: numbers[1],
            fanout: numbers[2],
            mode,
            mtime: mtime.map(|(seconds, nanos)| Mtime { seconds, nanos }),
        };
        prop_assert_eq!(FsData::decode(&message.encode().into()).unwrap(), message);
    }
}
