//! Every CID of the vector tables in specs/unixfs.md, made by Kubo 0.42, must come out of our importer.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Memory, cid_of_bytes, counter, import_bytes};
use gemba_unixfs::dagpb::Mtime;
use gemba_unixfs::{CidVersion, Estimation, Meta, Profile, TreeImporter};

fn v0() -> Profile {
    Profile::unixfs_v0_2015()
}

fn v1() -> Profile {
    Profile::unixfs_v1_2025()
}

/// `ipfs add --cid-version=1` without a profile: raw leaves, but 256 KiB chunks and 174 links.
fn v0_as_v1() -> Profile {
    Profile::unixfs_v0_2015().cid_version(CidVersion::V1)
}

/// A file whose name is the zero-padded index and whose content is its own name, `count` times.
fn numbered(count: usize, width: usize, profile: &Profile) -> String {
    let mut store = Memory::default();
    let mut importer = TreeImporter::new(profile, 2);
    importer
        .enter_dir(b"", &Meta::default(), &mut store)
        .unwrap();
    for index in 0..count {
        let name = format!("{index:0width$}");
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
    importer.finish(&mut store).unwrap().cid.to_string()
}

#[test]
fn files_have_the_cids_of_kubo() {
    let rows: &[(Vec<u8>, &str, &str, &str)] = &[
        (
            b"hello world".to_vec(),
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        ),
        (
            Vec::new(),
            "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
            "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
            "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        ),
        (
            counter(262_144),
            "QmRvQEkbnu2aprD6rfbgZYFZ2HSZmd8vFti1VjXJqnXmGj",
            "bafkreier7lfxeszlyhgutxybbt55cid5cb7qy244he23l3hprouhzuav7e",
            "bafkreier7lfxeszlyhgutxybbt55cid5cb7qy244he23l3hprouhzuav7e",
        ),
        (
            counter(262_145),
            "QmXKXqyYA6Hsi9jcHjdtji8uAQAJye7AKXUBzav7r7TaMY",
            "bafkreib5dvevnm3gveaecvc62ytj3wc2rrfosszw4rwclxz7tjkcmbmtay",
            "bafybeidkhcxhy2m747g7g4nr35q6vke22sj5wqxkdaokmebq4nqm5vqtrq",
        ),
        (
            counter(1_048_577),
            "QmSaCPkLk6UfAP3HP1dFcsvH1rWLen3SPmtsmtq1QZkJ27",
            "bafybeic2ncjdsur6vnu2ksfw55sujrmufooudfzuneob2cygq3nc3rbndu",
            "bafybeigvlaaahylfkcisiembjumdwytpbowsfcydywj5dufqbljgmgbwce",
        ),
    ];
    for (content, in_v0, in_v1, in_v0_as_v1) in rows {
        for workers in [1, 2, 3] {
            assert_eq!(cid_of_bytes(content, &v0(), workers), *in_v0);
            assert_eq!(cid_of_bytes(content, &v1(), workers), *in_v1);
            assert_eq!(cid_of_bytes(content, &v0_as_v1(), workers), *in_v0_as_v1);
        }
    }
}

/// 174 chunks of 256 KiB are one full node in v0, one byte more opens a second level.
#[test]
fn u_file_1_two_levels_have_the_cids_of_kubo() {
    let full = counter(45_613_056);
    assert_eq!(
        cid_of_bytes(&full, &v0(), 2),
        "QmRNxV3qZRMPaZt49xzCHfGMQWVJpczvyqEWhH28TMDK85"
    );
    assert_eq!(
        cid_of_bytes(&full, &v1(), 2),
        "bafybeicmsrmm2hc7xd6wtrtpzozr2tjsiy4byvwxbl4adm6une2c3rmujy"
    );
    let over = counter(45_613_057);
    assert_eq!(
        cid_of_bytes(&over, &v0(), 2),
        "QmfWNpqiMNuR7cFBdU6FbSf4WuAYsBiCJwDBdgFU2Ha1AN"
    );
    assert_eq!(
        cid_of_bytes(&over, &v1(), 2),
        "bafybeiccbprunndksc3kzjmrkwwen2sl6rcerk4vs42rn26ov5h23otyfa"
    );
    assert_eq!(
        cid_of_bytes(&over, &v0_as_v1(), 2),
        "bafybeibgrwpm6i4wurtsb6wpj6wklcxgqq3melgtyucbvgyxfuutdejlv4"
    );
}

#[test]
fn small_chunks_and_few_links_have_the_cids_of_kubo() {
    let data = counter(1000);
    let shape = |profile: Profile| profile.chunker("size-16").unwrap().max_links(3).unwrap();
    assert_eq!(
        cid_of_bytes(&data, &shape(v0()), 2),
        "QmSLPt9DcuJWQCJTkKMYTU3DFDr43r5EF7xNNP1pbVsyCq"
    );
    assert_eq!(
        cid_of_bytes(&data, &shape(v1()), 2),
        "bafybeiawcsv64p2ikjsgiypo3tumq3ycpqfqswubda7eyurvhvx6uvw4lm"
    );
    let hello = b"hello world";
    let five = |profile: Profile| profile.chunker("size-5").unwrap();
    assert_eq!(
        cid_of_bytes(hello, &five(v0()), 1),
        "QmPmEUZXuWsXmvFr4TjhhABiEb54rAxZJZz8bVwEXFdeNp"
    );
    let (store, root) = import_bytes(hello, &five(v1()), 1);
    assert_eq!(
        root.cid.to_string(),
        "bafybeiby5et5f6iycdz6r5u2e7oj7izheiyowlqh6qa2l6j7pxb4m4i3fu"
    );
    assert_eq!(
        data_encoding::HEXLOWER.encode(store.bytes(&root.cid)),
        "122a0a24015512202cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b98241200180512\
         2a0a240155122043cf897720cc5a693b2508c9e95e8711942a96ed98d772fe37123d31603ce20f12001805122a\
         0a240155122018ac3e7343f016890c510e93f935261169d9e3f565436429830faf0934f4f8e4120018010a0a08\
         02180b200520052001"
            .replace(' ', "")
    );
    assert_eq!(
        cid_of_bytes(&counter(1_000_000), &v1().chunker("size-65536").unwrap(), 2),
        "bafybeig5tl24jhvaaivzgx54uo5nu7nsscyyxcquyf4a7sgxgnzmmgxm3i"
    );
}

#[test]
fn mode_and_mtime_have_the_cids_of_kubo() {
    let with = |profile: Profile, meta: Meta| {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(&profile, 1);
        importer
            .file(b"", &meta, &mut &b"hello world"[..], &mut store)
            .unwrap();
        let root = importer.finish(&mut store).unwrap();
        (
            data_encoding::HEXLOWER.encode(store.bytes(&root.cid)),
            root.cid.to_string(),
        )
    };
    let mode = Some(0o644);
    let mtime = Some(Mtime {
        seconds: 1_700_000_000,
        nanos: 5,
    });
    let (bytes, cid) = with(v0().preserve_mode(true), Meta { mode, mtime });
    assert_eq!(bytes, "0a140802120b68656c6c6f20776f726c64180b38a403");
    assert_eq!(cid, "QmYmcXFVE44PodRHmiaw941rdNir4eMwjT8JA3DGiKRKyk");
    let (bytes, cid) = with(v0().preserve_mtime(true), Meta { mode, mtime });
    assert!(bytes.ends_with("420b0880e2cfaa061505000000"), "{bytes}");
    assert_eq!(cid, "QmbUEYtvNTVAtw7NJwFPFofpyCt76HjnxjZ8zds9rJzSzd");
    let whole = Some(Mtime {
        seconds: 1_700_000_000,
        nanos: 0,
    });
    let (_, cid) = with(
        v1().preserve_mode(true).preserve_mtime(true),
        Meta { mode, mtime: whole },
    );
    assert_eq!(
        cid,
        "bafybeigi56nudchvoz76e72mdttist7dd3jel32kqg6r4iae4nhvoc5wxa"
    );
}

#[test]
fn folders_and_symlinks_have_the_cids_of_kubo() {
    let tree = |profile: &Profile| {
        let none = Meta::default();
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(profile, 2);
        importer.enter_dir(b"", &none, &mut store).unwrap();
        importer
            .symlink(b"link", b"a.txt", &none, &mut store)
            .unwrap();
        for (name, content) in [
            ("é", "é"),
            ("b.txt", "a"),
            ("Z", "x"),
            ("a.txt", "hello world"),
        ] {
            importer
                .file(name.as_bytes(), &none, &mut content.as_bytes(), &mut store)
                .unwrap();
        }
        importer.enter_dir(b"empty", &none, &mut store).unwrap();
        importer.leave_dir(&mut store).unwrap();
        importer.enter_dir(b"sub", &none, &mut store).unwrap();
        importer
            .file(b"deep", &none, &mut &b"y"[..], &mut store)
            .unwrap();
        importer.leave_dir(&mut store).unwrap();
        importer.leave_dir(&mut store).unwrap();
        importer.finish(&mut store).unwrap().cid.to_string()
    };
    assert_eq!(
        tree(&v0()),
        "QmVrWDh1uFmnstjEFfAXWH7V2xpM9yGY65H53BW4zpwHL3"
    );
    assert_eq!(
        tree(&v1()),
        "bafybeicx3xg5phy4fpnwvp7udaxp64rk2zb2wl3js5ktgu67iyhi3fzjne"
    );

    let symlink = |profile: &Profile| {
        let mut store = Memory::default();
        let mut importer = TreeImporter::new(profile, 1);
        importer
            .symlink(b"", b"a.txt", &Meta::default(), &mut store)
            .unwrap();
        let root = importer.finish(&mut store).unwrap();
        (
            data_encoding::HEXLOWER.encode(store.bytes(&root.cid)),
            root.cid.to_string(),
        )
    };
    assert_eq!(
        symlink(&v0()).1,
        "QmS9U51FvTAqDDVLJ5okMzeLjsEeg8JEG1rPmSq2oPahF6"
    );
    let (bytes, cid) = symlink(&v1());
    assert_eq!(bytes, "0a0908041205612e747874");
    assert_eq!(
        cid,
        "bafybeibysfkbozujnkzmx63h6nk4td2kmqcyhxhq67adb6vgr3mis24ble"
    );

    assert_eq!(
        numbered(0, 1, &v0()),
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    );
    assert_eq!(
        numbered(0, 1, &v1()),
        "bafybeiczsscdsbs7ffqz55asqdf3smv6klcw3gofszvwlyarci47bgf354"
    );
}

/// 4096 names of 30 bytes and 34-byte CIDs are exactly 262144 by links: equal stays basic, one more is a HAMT.
#[test]
fn u_dir_1_hamt_limits_have_the_cids_of_kubo() {
    assert_eq!(
        numbered(4096, 30, &v0()),
        "QmQbUBagvUwzusTv1r1oeE3M9HFH13MEGJFBBj5H68MTYW"
    );
    assert_eq!(
        numbered(4097, 30, &v0()),
        "QmNcAeqeiYoYHfGWnAvHtG12PgqCz8WRrJT4vJ8sCMbgPC"
    );
    assert_eq!(
        numbered(4096, 28, &v0_as_v1()),
        "bafybeihduldkfnsqu5t45vvdzszs7gvbchb3ixpe67y6zuvmxfzur4seuy"
    );
    assert_eq!(
        numbered(4097, 28, &v0_as_v1()),
        "bafybeiahryhg5zxuk5mfdzqu6llkmohpxyejol6btkzavlfbyihdprktsy"
    );
    assert_eq!(
        numbered(4096, 28, &v1()),
        "bafybeidk7erxedf7jc6z3fajn2cb7qe2zbtgeo6tsf5rcr2hpaemsqivw4"
    );
    assert_eq!(
        numbered(1000, 8, &v1()),
        "bafybeibwqjr3xfz2zijjp3rawlzeaouicwk2ik4w7graicp3dlu7b6xqii"
    );
    let small = v1().hamt_threshold(1024, Estimation::Block);
    assert_eq!(
        numbered(1000, 8, &small),
        "bafybeiauuy3uhdw4oec6og7lpeluj2lefwmedjppzlph6ulotedbjhzzsu"
    );
}
