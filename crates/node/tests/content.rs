//! Content in and out without a daemon, command by command.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Node, noise, tree};
use serde_json::{Value, json};

/// A folder with everything a folder may hold, and its root.
fn folder(node: &Node) -> std::path::PathBuf {
    node.write("f/a.txt", "hello\n");
    node.write("f/sub/b", "world\n");
    node.write("f/sub/large", noise(1, 3 << 20));
    node.write("f/.hidden", "h");
    std::fs::create_dir_all(node.path("f/empty")).unwrap();
    std::os::unix::fs::symlink("../x", node.path("f/link")).unwrap();
    node.path("f")
}

#[test]
fn s0_2_a_folder_goes_in_and_comes_out_equal() {
    let node = Node::new();
    let from = folder(&node);
    let root = node.add(&from, &["--hidden"]);
    let said = node.json(&["get", &root, "-o", "out"]);
    assert_eq!((&said["cid"], &said["entries"]), (&json!(root), &json!(8)));
    assert_eq!(tree(&node.path("out")), tree(&from));
    // A range of a large file, as a video player asks for it.
    let large = std::fs::read(from.join("sub/large")).unwrap();
    let done = node.run(&[
        "cat",
        &format!("/ipfs/{root}/sub/large"),
        "--offset",
        "1048570",
        "--length",
        "20",
    ]);
    assert_eq!(done.stdout, large[1_048_570..1_048_590]);
    assert_eq!(
        node.run(&["cat", &format!("{root}/sub/large")]).stdout,
        large
    );
    assert_eq!(
        node.run(&["cat", &format!("{root}/a.txt"), "--offset", "100"])
            .stdout,
        b""
    );
}

#[test]
fn add_tells_every_entry_and_the_root_last() {
    let node = Node::new();
    folder(&node);
    let entries = node.lines(&["add", "f"]);
    let names: Vec<&str> = entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "f/a.txt",
            "f/empty",
            "f/link",
            "f/sub/b",
            "f/sub/large",
            "f/sub",
            "f"
        ]
    );
    assert_eq!(entries.last().unwrap()["size"], json!(12 + (3 << 20)));
    assert_eq!(entries[5]["size"], json!(6 + (3 << 20)));
    let root = entries.last().unwrap()["cid"].as_str().unwrap();
    let text = node.ok(&["add", "f"]);
    assert_eq!(text.lines().last().unwrap(), format!("added {root} f"));
    assert_eq!(node.ok(&["add", "-q", "f"]).lines().count(), 7);
    assert_eq!(node.ok(&["add", "-Q", "f"]).trim(), root);
    assert_eq!(node.ok(&["add", "-Q", "f/"]).trim(), root);
}

/// CIDs of wire/08, as Kubo gives them.
#[test]
fn add_gives_the_cids_of_kubo() {
    let node = Node::new();
    let file = node.write("hw", "hello world");
    for (options, cid) in [
        (
            &[][..],
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        ),
        (
            &["--chunker", "size-5"],
            "bafybeiby5et5f6iycdz6r5u2e7oj7izheiyowlqh6qa2l6j7pxb4m4i3fu",
        ),
        (
            &["--profile", "unixfs-v0-2015"],
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
        ),
        (
            &["--profile", "unixfs-v0-2015", "--cid-version", "1"],
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        ),
        (
            &["--profile", "unixfs-v0-2015", "--raw-leaves"],
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        ),
    ] {
        assert_eq!(node.add(&file, options), cid, "{options:?}");
        assert_eq!(node.ok(&["cat", cid]), "hello world");
    }
    for options in [
        &["--profile", "new"][..],
        &["--chunker", "rabin"],
        &["--chunker", "size-0"],
        &["--max-links", "1"],
        &["--cid-version", "2"],
    ] {
        let args: Vec<&str> = ["add", "hw"].iter().chain(options).copied().collect();
        node.fails(&args, 2);
    }
}

#[test]
fn only_hash_stores_nothing_and_gives_the_same_cids() {
    let node = Node::new();
    folder(&node);
    let hashed = node.ok(&["add", "-n", "f"]);
    assert_eq!(node.json(&["repo", "stat"])["blocks"], 0);
    assert_eq!(node.ok(&["pin", "ls"]), "");
    assert_eq!(node.ok(&["add", "f"]), hashed);
}

#[test]
fn several_paths_wrapping_and_standard_input() {
    let node = Node::new();
    let (a, b) = (node.write("a", "1"), node.write("b", "2"));
    let roots = node.ok(&["add", "-Q", "a", "b"]);
    assert_eq!(
        roots.lines().collect::<Vec<_>>(),
        [node.add(&a, &[]), node.add(&b, &[])]
    );
    let wrapped = node.lines(&["add", "--wrap", "a", "b"]);
    assert_eq!(
        wrapped
            .iter()
            .map(|entry| entry["name"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["a", "b", ""]
    );
    assert_eq!(wrapped[2]["size"], 2);
    let root = wrapped[2]["cid"].as_str().unwrap();
    assert_eq!(node.ok(&["cat", &format!("{root}/b")]), "2");
    let piped = node.run_with_input(&["add", "-"], b"1").ok();
    let cid = node.add(&a, &[]);
    assert_eq!(piped, format!("added {cid} {cid}\n"));
    node.fails(&["add", "--wrap", "a", "a"], 2);
}

#[test]
fn what_cannot_be_added_is_named() {
    let node = Node::new();
    let failure = node.fails(&["add", "none"], 3);
    assert!(failure.cause.contains("none"), "{failure:?}");
    let _socket = std::os::unix::net::UnixListener::bind(node.path("sock")).unwrap();
    let failure = node.fails(&["add", "sock"], 2);
    assert!(failure.cause.contains("socket"), "{failure:?}");
    node.fails(&["add", "--name", &"n".repeat(256), "."], 2);
}

#[test]
fn ls_shows_a_folder_in_both_forms() {
    let node = Node::new();
    let root = node.add(&folder(&node), &["--preserve-mode"]);
    let short = node.lines(&["ls", &root]);
    assert_eq!(short.len(), 4);
    assert!(
        short
            .iter()
            .all(|entry| entry["cid"].is_string() && entry["name"].is_string())
    );
    let long = node.lines(&["ls", "--long", &root]);
    let kinds: Vec<(&str, &str)> = long
        .iter()
        .map(|e| (e["name"].as_str().unwrap(), e["type"].as_str().unwrap()))
        .collect();
    assert_eq!(
        kinds,
        [
            ("a.txt", "file"),
            ("empty", "directory"),
            ("link", "symlink"),
            ("sub", "directory")
        ]
    );
    assert_eq!(
        (&long[0]["size"], &long[2]["target"]),
        (&json!(6), &json!("../x"))
    );
    assert_eq!(long[0]["mode"], json!(0o644));
    assert!(node.ok(&["ls", "--long", &root]).contains("link -> ../x"));
    assert_eq!(node.lines(&["ls", &format!("{root}/a.txt")]).len(), 1);
    let failure = node.fails(&["ls", &format!("{root}/nothing")], 3);
    assert!(failure.cause.contains("nothing"), "{failure:?}");
}

#[test]
fn reads_that_cannot_be_say_why() {
    let node = Node::new();
    let root = node.add(&folder(&node), &[]);
    let absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    for args in [["cat", absent], ["ls", absent], ["get", absent]] {
        let failure = node.fails(&args, 3);
        assert!(
            failure.cause.contains(absent) && failure.hint.contains("daemon"),
            "{args:?}: {failure:?}"
        );
    }
    assert!(node.fails(&["cat", &root], 2).hint.contains("gemba ls"));
    node.fails(&["cat", &format!("{root}/sub/../a.txt")], 2);
    node.fails(&["cat", "/ipns/name"], 2);
    node.fails(&["ls", &format!("{root}/a.txt/x")], 2);
}

#[test]
fn get_overwrites_only_when_told_to() {
    let node = Node::new();
    let (one, two) = (node.write("one", "1"), node.write("two", "2"));
    let (one, two) = (node.add(&one, &[]), node.add(&two, &[]));
    node.ok(&["get", &one, "-o", "out"]);
    let failure = node.fails(&["get", &two, "-o", "out"], 7);
    assert!(failure.hint.contains("--overwrite"), "{failure:?}");
    assert_eq!(std::fs::read(node.path("out")).unwrap(), b"1");
    node.ok(&["get", &two, "-o", "out", "--overwrite"]);
    assert_eq!(std::fs::read(node.path("out")).unwrap(), b"2");
    node.ok(&["get", &two]);
    assert_eq!(std::fs::read(node.path(&two)).unwrap(), b"2");
    std::fs::create_dir(node.path("in")).unwrap();
    node.ok(&["get", &two, "-o", "in/"]);
    assert_eq!(std::fs::read(node.path("in").join(&two)).unwrap(), b"2");
    assert!(
        node.fails(&["get", &two, "-o", "x", "--max-bytes", "0"], 1)
            .hint
            .contains("--max-bytes")
    );
}

#[test]
fn blocks_are_put_got_measured_and_removed() {
    let node = Node::new();
    let cid = node.put("raw", b"block");
    assert_eq!(node.run(&["block", "get", &cid]).stdout, b"block");
    assert_eq!(
        node.json(&["block", "stat", &cid]),
        json!({ "cid": cid, "size": 5 })
    );
    node.ok(&["block", "rm", &cid]);
    node.fails(&["block", "get", &cid], 3);
    node.fails(&["block", "stat", &cid], 3);
    node.fails(&["block", "rm", &cid], 3);
    assert_eq!(
        node.put("v0", &[10, 2, 8, 1]),
        "QmUNLLsPACCz1vLxQVkXqqLX5R1X345qqfHbsf67hvA3Nn"
    );
    let pinned = node
        .run_with_input(&["block", "put", "--pin"], b"kept")
        .ok();
    assert!(
        node.fails(&["block", "rm", pinned.trim()], 7)
            .hint
            .contains("pin rm")
    );
    let too_large = vec![0; (2 << 20) + 1];
    node.run_with_input(&["block", "put"], &too_large).fails(2);
    assert_eq!(
        node.run_with_input(&["block", "put"], &too_large[1..])
            .ok()
            .trim()
            .len(),
        59
    );
    node.run_with_input(&["block", "put", "--codec", "nonsense"], b"")
        .fails(2);
    node.run_with_input(&["block", "put", "--mhtype", "md5"], b"")
        .fails(2);
    // An identity CID holds its block.
    assert_eq!(
        node.run(&["block", "get", "bafkqabtimvwgy3yk"]).stdout,
        b"hello\n"
    );
}

#[test]
fn a_block_below_a_pin_is_not_removed() {
    let node = Node::new();
    let root = node.add(&folder(&node), &[]);
    let child = node.lines(&["ls", &root])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    let failure = node.fails(&["block", "rm", &child], 7);
    assert!(failure.cause.contains(&root), "{failure:?}");
    node.ok(&["pin", "rm", &root]);
    node.ok(&["block", "rm", &child]);
}

/// The CID of `{"hello":"world"}` as every implementation gives it.
#[test]
fn dag_put_and_get_speak_dag_json() {
    let node = Node::new();
    let put = |input: &[u8], options: &[&str]| {
        let args: Vec<&str> = ["dag", "put"].iter().chain(options).copied().collect();
        node.run_with_input(&args, input).ok().trim().to_owned()
    };
    let hello = put(b"{\"hello\": \"world\"}", &[]);
    assert_eq!(
        hello,
        "bafyreidykglsfhoixmivffc5uwhcgshx4j465xwqntbmu43nb2dzqwfvae"
    );
    let root = put(
        format!(
            "{{\"zz\": [1, {{\"/\": \"{hello}\"}}], \"b\": {{\"/\": {{\"bytes\": \"AQI\"}}}}}}"
        )
        .as_bytes(),
        &[],
    );
    assert_eq!(
        node.ok(&["dag", "get", &root]),
        format!("{{\"b\":{{\"/\":{{\"bytes\":\"AQI\"}}}},\"zz\":[1,{{\"/\":\"{hello}\"}}]}}\n")
    );
    assert_eq!(
        node.ok(&["dag", "get", &format!("{root}/zz/1/hello")]),
        "\"world\"\n"
    );
    assert_eq!(node.ok(&["dag", "get", &format!("{root}/zz/0")]), "1\n");
    // Canonical: keys sorted by length first, and a round trip through bytes gives the same CID.
    let bytes = node
        .run(&["dag", "get", &root, "--output-codec", "dag-cbor"])
        .stdout;
    assert_eq!(put(&bytes, &["--input-codec", "dag-cbor"]), root);
    for missing in ["x", "zz/2", "zz/1/hello/x", "b/0"] {
        node.fails(&["dag", "get", &format!("{root}/{missing}")], 3);
    }
    for (input, options) in [
        (&b"{"[..], &[][..]),
        (b"{\"/\": \"not a cid\"}", &[]),
        (b"1", &["--store-codec", "dag-pb"]),
        (b"1", &["--store-codec", "raw"]),
        (&[0xff; 8], &["--input-codec", "dag-cbor"]),
        (b"1", &["--input-codec", "bson"]),
    ] {
        let args: Vec<&str> = ["dag", "put"].iter().chain(options).copied().collect();
        node.run_with_input(&args, input).fails(2);
    }
    let deep = [b"[".repeat(100_000), b"]".repeat(100_000)].concat();
    node.run_with_input(&["dag", "put"], &deep).fails(2);
}

#[test]
fn dag_pb_has_the_form_of_its_specification() {
    let node = Node::new();
    let root = node.add(&folder(&node), &[]);
    let shown: Value = serde_json::from_str(&node.ok(&["dag", "get", &root])).unwrap();
    assert_eq!(shown["Data"], json!({ "/": { "bytes": "CAE" } }));
    assert_eq!(shown["Links"][0]["Name"], "a.txt");
    assert_eq!(shown["Links"][0]["Tsize"], 6);
    let input = shown.to_string();
    let again = node
        .run_with_input(&["dag", "put", "--store-codec", "dag-pb"], input.as_bytes())
        .ok();
    assert_eq!(again.trim(), root);
    assert_eq!(
        node.ok(&["dag", "get", &format!("{root}/a.txt")]),
        "{\"/\":{\"bytes\":\"aGVsbG8K\"}}\n"
    );
    assert_eq!(
        node.ok(&["dag", "get", &format!("{root}/Links/0/Name")]),
        "\"a.txt\"\n"
    );
}

/// S4.23: import by CAR, nothing rewritten, equal CIDs on both sides.
#[test]
fn s4_23_a_dag_moves_by_car() {
    let (from, to) = (Node::new(), Node::new());
    let root = from.add(&folder(&from), &["--hidden"]);
    let archive = from.run(&["dag", "export", &root]).stdout;
    let file = to.write("x.car", &archive);
    let said = to.json(&["dag", "import", file.to_str().unwrap()]);
    assert_eq!(said["roots"], json!([root]));
    assert_eq!(to.json(&["pin", "status", &root])["status"], "pinned");
    to.ok(&["get", &root, "-o", "out"]);
    assert_eq!(tree(&to.path("out")), tree(&from.path("f")));
    assert_eq!(to.run(&["dag", "export", &root]).stdout, archive);
    let piped = Node::new();
    piped
        .run_with_input(&["dag", "import", "--pin-roots=false", "-"], &archive)
        .ok();
    assert_eq!(piped.ok(&["pin", "ls"]), "");
}

#[test]
fn a_truncated_or_damaged_archive_is_refused_with_the_place() {
    let (from, to) = (Node::new(), Node::new());
    let root = from.add(&folder(&from), &[]);
    let archive = from.run(&["dag", "export", &root]).stdout;
    let cut = to.write("cut.car", &archive[..archive.len() / 2]);
    let failure = to.fails(&["dag", "import", cut.to_str().unwrap()], 8);
    assert!(
        failure.cause.contains("cut off") && failure.cause.contains("byte"),
        "{failure:?}"
    );
    let mut damaged = archive.clone();
    *damaged.last_mut().unwrap() ^= 1;
    let damaged = to.write("damaged.car", damaged);
    let failure = to.fails(&["dag", "import", damaged.to_str().unwrap()], 8);
    assert!(failure.cause.contains("section"), "{failure:?}");
    assert_eq!(to.ok(&["pin", "ls"]), "");
    // What was sound is kept, so the second try has less to do; the archive then makes it whole.
    assert!(to.json(&["repo", "stat"])["blocks"].as_u64().unwrap() > 0);
    let whole = to.write("whole.car", &archive);
    to.ok(&["dag", "import", whole.to_str().unwrap()]);
    // An archive without everything below its root stores what it has and says that the pin is not whole.
    let other = Node::new();
    let header_and_root = {
        let list = from.lines(&["ls", &root]);
        assert!(!list.is_empty());
        let one = from.run(&["block", "get", &root]).stdout;
        let mut bytes = archive[..usize::from(archive[0]) + 1].to_vec();
        let cid: cid::Cid = root.parse().unwrap();
        let name = cid.to_bytes();
        let length = name.len() + one.len();
        bytes.extend([(length & 0x7f) as u8 | 0x80, (length >> 7) as u8]);
        bytes.extend(name);
        bytes.extend(one);
        bytes
    };
    let failure = other
        .run_with_input(&["dag", "import", "-"], &header_and_root)
        .fails(4);
    assert!(
        failure.cause.contains("not pinned") && failure.cause.contains("4 of its blocks"),
        "{failure:?}"
    );
}

#[test]
fn pins_are_added_listed_named_and_removed() {
    let node = Node::new();
    let root = node.add(&folder(&node), &["--name", "app"]);
    let pins = node.lines(&["pin", "ls"]);
    assert_eq!(
        pins,
        [json!({ "cid": root, "kind": "recursive", "name": "app", "status": "pinned" })]
    );
    let status = node.json(&["pin", "status", &root]);
    for field in [
        "cid",
        "status",
        "blocks_done",
        "bytes_done",
        "attempts",
        "cause",
    ] {
        assert!(status.get(field).is_some(), "{field}");
    }
    // The folder, the empty one, the link, `sub`, both small files, the large one with its three leaves.
    assert_eq!(
        (&status["status"], &status["blocks_done"]),
        (&json!("pinned"), &json!(10))
    );
    assert_eq!(node.ok(&["pin", "ls", "--name", "other"]), "");
    assert_eq!(node.ok(&["pin", "ls", "-q"]).trim(), root);
    node.ok(&["pin", "rm", &root]);
    assert_eq!(node.ok(&["pin", "ls"]), "");
    node.fails(&["pin", "rm", &root], 3);
    node.fails(&["pin", "status", &root], 3);
    node.ok(&["pin", "add", &root, "--direct"]);
    assert_eq!(node.json(&["pin", "status", &root])["blocks_done"], 1);
    node.ok(&["pin", "add", &root]);
    node.fails(&["pin", "add", &root, "--direct"], 7);
    let unpinned = Node::new();
    let file = unpinned.write("x", "y");
    unpinned.add(&file, &["--pin=false"]);
    assert_eq!(unpinned.ok(&["pin", "ls"]), "");
}

#[test]
fn what_must_be_fetched_needs_a_daemon() {
    let node = Node::new();
    let failure = node.fails(
        &[
            "pin",
            "add",
            "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy",
        ],
        5,
    );
    assert!(failure.hint.contains("gemba daemon"), "{failure:?}");
    assert_eq!(node.ok(&["pin", "ls"]), "");
    for args in [
        &["peers"][..],
        &[
            "ping",
            "12D3KooWGzxzKZYveHXtpG6AsrUJBcWxHBFS2HsEoGTxrMLvKXtf",
        ],
        &["connect", "/ip4/127.0.0.1/tcp/1"],
    ] {
        node.fails(args, 5);
    }
}

#[test]
fn repo_stat_and_verify_count_and_find_damage() {
    let node = Node::new();
    let root = node.add(&folder(&node), &[]);
    let stat = node.json(&["repo", "stat"]);
    assert_eq!(stat["blocks"], 10);
    assert!(stat["bytes"].as_u64().unwrap() > 3 << 20);
    let sound = node.json(&["repo", "verify"]);
    assert_eq!(
        (&sound["checked"], &sound["corrupt"]),
        (&json!(10), &json!([]))
    );

    // One flipped bit in the middle of the large file.
    let pack = std::fs::read_dir(node.repo.join("blocks"))
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let pack = pack
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let mut bytes = std::fs::read(&pack).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    // A reader meets it first and is told what it is.
    node.fails(&["cat", &format!("{root}/sub/large")], 8);
    let done = node.run(&["repo", "verify", "--json"]);
    let failure = done.fails(8);
    assert!(failure.cause.contains("damaged"), "{failure:?}");
    let report: Value = serde_json::from_str(&done.text()).unwrap();
    assert_eq!(report["corrupt"].as_array().unwrap().len(), 1);
    // The damaged block is no block any more, everything else is read, and the pin is no longer called whole.
    node.fails(&["cat", &format!("{root}/sub/large")], 3);
    assert_eq!(node.ok(&["cat", &format!("{root}/a.txt")]), "hello\n");
    assert_eq!(node.json(&["pin", "ls"])["status"], "pin_queued");
    // Adding the same content again repairs it.
    node.add(&node.path("f"), &[]);
    node.ok(&["repo", "verify"]);
    assert_eq!(node.json(&["pin", "status", &root])["status"], "pinned");
}
