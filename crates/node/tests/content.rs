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
    // As it is typed for Kubo.
    assert_eq!(node.ok(&["add", "-r", "f"]), hashed);
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
    for command in ["ls", "cat", "get"] {
        let failure = node.fails(&[command, &format!("{root}/a.txt/x")], 3);
        assert!(failure.cause.contains("is a file"), "{failure:?}");
        node.fails(&[command, &format!("{root}/link/x")], 3);
    }
    let failure = node.fails(&["block", "get", &format!("{root}/a.txt")], 2);
    assert!(failure.cause.contains("is a path"), "{failure:?}");
    let failure = node.fails(&["block", "get", &root[..20]], 2);
    assert!(failure.hint.contains("copied as a whole"), "{failure:?}");
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
        node.fails(&["get", &two, "-o", "x", "--max-bytes", "0"], 2)
            .hint
            .contains("--max-bytes")
    );
    node.fails(&["get", &two, "-o", "none/x"], 3);
}

/// What a failed export leaves is what the next one goes on from, and its error says where it is.
#[test]
fn a_failed_get_leaves_only_what_the_next_one_needs() {
    let node = Node::new();
    node.write("f/a", noise(1, 100_000));
    node.write("f/b", noise(2, 100_000));
    let root = node.add(&node.path("f"), &["--pin=false"]);
    let left = || {
        std::fs::read_dir(node.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .filter(|name| name.to_string_lossy().contains("partial"))
            .count()
    };
    let file = |name: &str| {
        let entries = node.lines(&["ls", &root]);
        let entry = entries.iter().find(|entry| entry["name"] == name).unwrap();
        entry["cid"].as_str().unwrap().to_owned()
    };
    let (a, b) = (file("a"), file("b"));
    for args in [
        &["get", &root, "-o", "out", "--max-bytes", "150000"][..],
        &["get", &format!("{root}/none"), "-o", "out"],
        &["get", &format!("{root}/../x"), "-o", "out"],
    ] {
        assert!(!node.run(args).status.success());
        assert_eq!(left(), 0, "{args:?}");
    }
    node.ok(&["block", "rm", &a, &b]);
    let failure = node.fails(&["get", &root, "-o", "out"], 3);
    assert!(!failure.hint.contains("goes on"), "{failure:?}");
    assert_eq!(left(), 0);
    node.add(&node.path("f/a"), &[]);
    let failure = node.fails(&["get", &root, "-o", "out"], 3);
    assert!(
        failure.hint.contains(".out.gemba-partial") && failure.hint.contains("goes on"),
        "{failure:?}"
    );
    node.add(&node.path("f/b"), &[]);
    let got = node.json(&["get", &root, "-o", "out"]);
    assert_eq!(got["resumed_files"], 1);
    assert_eq!(left(), 0);
    assert_eq!(tree(&node.path("out")), tree(&node.path("f")));
}

#[test]
fn a_file_is_got_to_standard_output_and_a_folder_is_not() {
    let node = Node::new();
    let root = node.add(&folder(&node), &[]);
    let file = format!("{root}/a.txt");
    assert_eq!(node.run(&["get", &file, "-o", "-"]).stdout, b"hello\n");
    assert_eq!(
        node.run(&["--json", "get", &file, "-o", "-"]).stdout,
        b"hello\n"
    );
    let failure = node.fails(&["get", &root, "-o", "-"], 2);
    assert!(
        failure.cause.contains("folder") && failure.hint.contains("-o PATH"),
        "{failure:?}"
    );
    node.fails(&["get", &file, "-o", "-", "--max-bytes", "3"], 2);
    assert!(!node.path("-").exists());
}

/// Names are made by others: on a terminal they are text and nothing else.
#[test]
fn names_are_shown_without_what_a_terminal_acts_upon() {
    use std::os::unix::ffi::OsStrExt as _;
    let node = Node::new();
    let name = |bytes: &[u8]| node.path("f").join(std::ffi::OsStr::from_bytes(bytes));
    std::fs::create_dir_all(name(b"")).unwrap();
    std::fs::write(name(b"\x1b[2J\nerror: all is lost"), "1").unwrap();
    std::fs::write(name(b"caf\xe9"), "2").unwrap();
    std::fs::write(name("plain ä".as_bytes()), "3").unwrap();
    let added = node.run(&["add", "f"]);
    let root = node.add(&node.path("f"), &[]);
    let listed = node.run(&["ls", &root]);
    let long = node.run(&["ls", "--long", &root]);
    let got = node.run(&["get", &format!("{root}/\u{1b}[2J\nerror: all is lost")]);
    let missing = node.run(&["cat", &format!("{root}/\u{1b}[31m")]);
    for done in [&added, &listed, &long, &got, &missing] {
        for output in [done.stdout.as_slice(), done.stderr.as_bytes()] {
            assert!(
                output.iter().all(|byte| *byte == b'\n' || *byte >= b' '),
                "{done:?}"
            );
        }
        assert!(
            !format!("{}{}", done.text(), done.stderr).contains("\nerror: all"),
            "{done:?}"
        );
    }
    missing.fails(3);
    for done in [&added, &listed, &long] {
        let text = done.text();
        assert!(
            ["\\u{1b}[2J\\u{a}error", "caf\\xe9", "plain ä"]
                .iter()
                .all(|name| text.contains(name)),
            "{text}"
        );
    }
    // JSON has the name itself, or its bytes where it is no text.
    let entries = node.lines(&["ls", &root]);
    let of = |name: &str| entries.iter().find(|entry| entry["name"] == name).unwrap();
    assert!(
        of("\u{1b}[2J\nerror: all is lost")
            .get("name_bytes")
            .is_none()
    );
    assert_eq!(of("caf\u{fffd}")["name_bytes"], "Y2Fm6Q==");
    let entries = node.lines(&["add", "f"]);
    let lossy = entries
        .iter()
        .find(|entry| entry["name"] == "f/caf\u{fffd}");
    assert_eq!(lossy.unwrap()["name_bytes"], "Zi9jYWbp");
}

/// A folder in which a program left its socket is added all the same, and what is missing in the copy is told.
#[test]
fn add_tells_what_it_left_out() {
    let node = Node::new();
    let from = folder(&node);
    let whole = node.add(&from, &[]);
    let _socket = std::os::unix::net::UnixListener::bind(from.join("sub/s")).unwrap();
    let done = node.run(&["add", "f"]);
    assert!(
        done.stderr.contains("f/sub/s is a socket")
            && done.stderr.contains("1 hidden entry")
            && done.stderr.contains("--hidden"),
        "{}",
        done.stderr
    );
    assert!(done.ok().contains(&whole));
    let entries = node.lines(&["add", "f"]);
    let root = entries.last().unwrap();
    assert_eq!((&root["skipped"], &root["hidden"]), (&json!(1), &json!(1)));
    assert_eq!(root["cid"], whole);
    assert!(entries[0].get("skipped").is_none());
    let quiet = node.run(&["add", "-Q", "f"]);
    assert!(
        quiet.stderr.contains("socket") && !quiet.stderr.contains("hidden"),
        "{}",
        quiet.stderr
    );
    let hidden = node.run(&["add", "--hidden", "f"]);
    assert!(!hidden.stderr.contains("left out"), "{}", hidden.stderr);
    let failure = node.fails(&["add", "f/sub/s"], 2);
    assert!(failure.cause.contains("socket"), "{failure:?}");
}

#[test]
fn folders_are_told_from_files_where_that_is_cheap() {
    let node = Node::new();
    let root = node.add(&folder(&node), &["--profile", "unixfs-v0-2015"]);
    let kinds: Vec<Value> = node
        .lines(&["ls", &root])
        .iter()
        .map(|entry| entry["type"].clone())
        .collect();
    assert_eq!(kinds, ["file", "directory", "symlink", "directory"]);
    let text = node.ok(&["ls", &root]);
    let ends = |end: &str| text.lines().any(|line| line.ends_with(end));
    assert!(ends(" sub/") && ends(" a.txt") && ends(" link"), "{text}");
    // A block that is not here says nothing, and the listing is none the worse.
    let sub = node.lines(&["ls", &root])[3]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    node.ok(&["pin", "rm", &root]);
    node.ok(&["block", "rm", &sub]);
    assert_eq!(node.lines(&["ls", &root])[3]["type"], Value::Null);
    node.fails(&["ls", "--long", &root], 3);
}

/// Without a daemon `why` sees what is here, and says what it cannot know.
#[test]
fn why_answers_from_the_store() {
    let node = Node::new();
    let file = node.write("a", "x");
    let root = node.add(&file, &[]);
    let said = node.json(&["why", &root]);
    assert_eq!(
        (&said["here"], &said["bytes"], &said["wanted"]),
        (&json!(true), &json!(1), &json!(false))
    );
    let text = node.ok(&["why", &root]);
    assert!(
        text.contains("is on this device (1 byte)")
            && text.contains("pinned")
            && !text.contains('{'),
        "{text}"
    );
    let absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    let failure = node.fails(&["why", absent], 5);
    assert!(
        failure.cause.contains(absent) && failure.hint.contains("gemba daemon"),
        "{failure:?}"
    );
}

#[test]
fn counts_of_one_are_singular() {
    let node = Node::new();
    let file = node.write("a", "x");
    let root = node.add(&file, &[]);
    for args in [
        &["repo", "verify"][..],
        &["pin", "add", &root],
        &["pin", "status", &root],
        &["get", &root, "-o", "out"],
        &["status"],
    ] {
        let text = node.ok(args);
        let wrong = ["1 blocks", "1 bytes", "1 entries", "1 entry, 1 bytes"];
        assert!(!wrong.iter().any(|wrong| text.contains(wrong)), "{text}");
    }
}

/// An archive of nothing has not even a header.
#[test]
fn an_export_of_what_is_not_here_writes_nothing() {
    let node = Node::new();
    let absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    let done = node.run(&["dag", "export", absent]);
    done.fails(3);
    assert_eq!(done.stdout, b"");
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
        .fails(3);
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

/// A block that is not here is not found, whichever command looks for it; a command that is about other nodes needs the daemon.
#[test]
fn what_must_be_fetched_needs_a_daemon() {
    let node = Node::new();
    let absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    for args in [
        &["pin", "add", absent][..],
        &["get", absent],
        &["block", "get", absent],
        &["dag", "get", absent],
    ] {
        let failure = node.fails(args, 3);
        assert!(failure.hint.contains("daemon"), "{args:?}: {failure:?}");
    }
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
    let pack = common::packs(&node.repo)
        .into_iter()
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
