//! A command gives the same answer whether a daemon is up or not: it goes through the daemon, or reads the repository itself.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Daemon, Node, noise, tree};
use serde_json::Value;

/// The content both repositories get, the file of several blocks and the folder of many entries included.
fn content(node: &Node) {
    node.write("f/a.txt", "hello\n");
    node.write("f/sub/large", noise(3, (2 << 20) + 17));
    node.write("f/.hidden", "h");
    for i in 0..300 {
        node.write(&format!("f/many/{i:03}"), format!("{i}"));
    }
    std::fs::create_dir_all(node.path("f/empty")).unwrap();
    std::os::unix::fs::symlink("../x", node.path("f/link")).unwrap();
}

/// Runs the same commands on both and compares what they say: standard output, and exit code and cause of failures.
struct Both {
    without: Node,
    with: Node,
    _daemon: Daemon,
}

impl Both {
    fn new() -> Self {
        let (without, with) = (Node::new(), Node::new());
        content(&without);
        content(&with);
        let daemon = Daemon::start(&with, &[]);
        Self {
            without,
            with,
            _daemon: daemon,
        }
    }

    fn same(&self, args: &[&str]) -> Vec<u8> {
        self.same_with_input(args, b"")
    }

    fn same_with_input(&self, args: &[&str], input: &[u8]) -> Vec<u8> {
        let (without, with) = (
            self.without.run_with_input(args, input),
            self.with.run_with_input(args, input),
        );
        assert_eq!(
            without.status.code(),
            with.status.code(),
            "{args:?}: {} / {}",
            without.stderr,
            with.stderr
        );
        assert_eq!(
            String::from_utf8_lossy(&without.stdout),
            String::from_utf8_lossy(&with.stdout),
            "{args:?}"
        );
        without.stdout
    }

    fn same_text(&self, args: &[&str]) -> String {
        String::from_utf8(self.same(args))
            .unwrap()
            .trim()
            .to_owned()
    }
}

#[test]
fn adding_and_reading() {
    let both = Both::new();
    let root = both.same_text(&["add", "-Q", "f", "--hidden", "--name", "app"]);
    for args in [
        &["add", "f"][..],
        &["add", "--json", "f"],
        &["add", "-q", "--wrap", "f/a.txt", "f/sub"],
        &[
            "add",
            "-Q",
            "f",
            "--profile",
            "unixfs-v0-2015",
            "--preserve-mode",
            "--max-links",
            "5",
            "--chunker",
            "size-1000",
        ],
        &["add", "-n", "f"],
        &["ls", &root],
        &["ls", &root, "--long"],
        &["ls", &root, "--json"],
        &["ls", &root, "--long", "--json"],
        &["cat", &format!("{root}/sub/large")],
        &[
            "cat",
            &format!("{root}/sub/large"),
            "--offset",
            "1048570",
            "--length",
            "100",
        ],
        &["cat", &format!("{root}/sub/large"), "--offset", "99999999"],
        &["block", "get", &root],
        &["block", "stat", &root, "--json"],
        &["dag", "get", &root],
        &["dag", "get", &format!("{root}/a.txt")],
        &[
            "dag",
            "get",
            &format!("{root}/Links/0/Hash"),
            "--output-codec",
            "raw",
        ],
        &["dag", "export", &root],
        &["pin", "ls", "--json", "--name", "app"],
        &["pin", "rm", &root],
        &["pin", "ls", "--name", "app"],
        // Failures have the same exit code.
        &["cat", &root],
        &["ls", &format!("{root}/none")],
        &["ls", &format!("{root}/a.txt/x")],
        &["get", &root, "-o", "-"],
        &["get", &root, "-o", "x", "--max-bytes", "3"],
        &["get", &format!("{root}/a.txt"), "-o", "-"],
        &[
            "get",
            &format!("{root}/a.txt"),
            "-o",
            "-",
            "--max-bytes",
            "3",
        ],
        &["why", &root],
        &["why", &root, "--json"],
        &["dag", "get", &format!("{root}/none")],
        &["pin", "rm", &root],
        &["pin", "status", &root],
        &["add", "none"],
        &["cat", "nonsense"],
    ] {
        both.same(args);
    }
    let piped = both.same_with_input(&["add", "-"], &noise(5, 3 << 20));
    assert!(!piped.is_empty());
    both.same_with_input(&["add", "--wrap", "-"], b"x");
    both.same_with_input(&["block", "put", "--codec", "dag-cbor"], &[0xa0]);
    both.same_with_input(&["block", "put"], &vec![0; (2 << 20) + 1]);
    both.same_with_input(&["dag", "put"], b"{\"a\":1}");
    both.same(&["get", &root, "-o", "out"]);
    for node in [&both.without, &both.with] {
        assert_eq!(tree(&node.path("out")), tree(&node.path("f")));
    }
    both.same(&["get", &root, "-o", "out"]);
    both.same(&["get", &root, "-o", "out", "--overwrite"]);
    let stat = |node: &Node| {
        let stat = node.json(&["repo", "stat"]);
        (stat["blocks"].clone(), stat["bytes"].clone())
    };
    assert_eq!(stat(&both.without), stat(&both.with));
    both.same(&["repo", "verify"]);
}

#[test]
fn archives_and_blocks() {
    let both = Both::new();
    let source = Node::new();
    content(&source);
    let root = source.add(&source.path("f"), &[]);
    let archive = source.run(&["dag", "export", &root]).stdout;
    both.same_with_input(&["dag", "import", "-", "--json"], &archive);
    both.same(&["pin", "ls", "--json"]);
    both.same_with_input(&["dag", "import", "-"], &archive[..archive.len() - 10]);
    both.same_with_input(&["dag", "import", "-"], b"no archive");
    let child = source.lines(&["ls", &root])[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    // Held by the pin of its folder, until that is gone.
    both.same(&["block", "rm", &child]);
    both.same(&["pin", "rm", &root]);
    both.same(&["block", "rm", &child]);
    both.same(&["block", "rm", &child]);
}

/// The fields of DESIGN §5 that scripts rely on, from a daemon and from the repository alone.
#[test]
fn s0_7_status_and_id_have_the_fields_of_the_contract() {
    let both = Both::new();
    let has = |object: &Value, path: &str| {
        path.split('.')
            .try_fold(object, |at, field| at.get(field))
            .is_some()
    };
    for (node, up) in [(&both.without, false), (&both.with, true)] {
        let status = node.json(&["status"]);
        for field in [
            "id",
            "peers",
            "private",
            "fingerprint",
            "repo.blocks",
            "repo.bytes",
            "transfer.bytes_in",
            "transfer.bytes_out",
            "health",
        ] {
            assert!(has(&status, field), "{field} in {status}");
        }
        assert_eq!(
            (&status["daemon"], &status["private"]),
            (&up.into(), &true.into())
        );
        let id = node.json(&["id"]);
        for field in ["id", "addresses", "agent"] {
            assert!(has(&id, field), "{field} in {id}");
        }
        let addresses = id["addresses"].as_array().unwrap();
        assert_eq!(!addresses.is_empty(), up);
        assert!(addresses.iter().all(|address| {
            address
                .as_str()
                .unwrap()
                .ends_with(&format!("/p2p/{}", id["id"].as_str().unwrap()))
        }));
        assert!(
            node.ok(&["status"])
                .contains(status["fingerprint"].as_str().unwrap())
        );
    }
    assert_eq!(both.with.lines(&["peers"]), [] as [Value; 0]);
}

/// Mode and time of files are listed where they are kept, and left out where they are not.
#[test]
fn listings_tell_mode_and_time_where_they_are_kept() {
    use std::os::unix::fs::PermissionsExt as _;
    let both = Both::new();
    for node in [&both.with, &both.without] {
        let file = node.write("kept/file", "content");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
        let at = std::time::UNIX_EPOCH + std::time::Duration::new(1_700_000_000, 123_456_789);
        std::fs::File::options()
            .write(true)
            .open(&file)
            .unwrap()
            .set_modified(at)
            .unwrap();
        let folder = node.path("kept");
        let root = node.add(&folder, &["--preserve-mode", "--preserve-mtime"]);
        for args in [&["ls", &root][..], &["ls", "--long", &root]] {
            let listed = node.json(args);
            assert_eq!(
                (&listed["mode"], &listed["mtime"], &listed["mtime_nsecs"]),
                (&0o640.into(), &1_700_000_000.into(), &123_456_789.into()),
                "{listed}"
            );
        }
        let plain = node.add(&folder, &[]);
        let listed = node.json(&["ls", "--long", &plain]);
        assert!(listed.get("mode").is_none() && listed.get("mtime").is_none());
    }
}

/// What nobody has ends with a cause when time is up, and the exit code says so.
#[test]
fn timeouts_end_with_4_and_a_cause() {
    let both = Both::new();
    let absent = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
    let failure = both
        .with
        .fails(&["pin", "add", absent, "--timeout", "300ms"], 4);
    assert!(failure.cause.contains(absent), "{failure:?}");
    let failure = both.with.fails(&["cat", absent, "--timeout", "300ms"], 4);
    assert!(
        failure.cause.contains(absent)
            && failure.cause.contains("no peer is connected")
            && failure.hint.contains("gemba connect"),
        "{failure:?}"
    );
    assert!(
        both.with
            .ok(&["why", absent])
            .contains("nobody is connected")
    );
    assert!(both.with.ok(&["peers"]).contains("no peer is connected"));
    both.with.fails(&["ping", "nonsense"], 2);
    both.with.fails(&["connect", "nonsense"], 2);
}

/// A second daemon on the same repository is refused, and the first one goes on.
#[test]
fn one_daemon_a_repository() {
    let both = Both::new();
    let process = both._daemon.child.id().to_string();
    let failure = both.with.fails(&["daemon", "--no-mdns"], 7);
    assert!(
        failure.cause.contains("a daemon runs")
            && failure.cause.contains(&process)
            && failure.hint.contains("--repo DIR"),
        "{failure:?}"
    );
    both.with.ok(&["id"]);
    // What no daemon does for the caller is told so, and what to do: nothing is wrong with the API.
    let key = both.without.repo.join("swarm.key");
    for args in [
        &["swarm-key", "new", "--replace"][..],
        &["swarm-key", "import", key.to_str().unwrap()],
    ] {
        let failure = both.with.fails(args, 7);
        assert!(
            failure
                .cause
                .contains(&format!("the daemon (process {process})"))
                && failure.hint.contains("stop the daemon")
                && !failure.hint.contains("API"),
            "{failure:?}"
        );
    }
    let failure = both.with.fails(&["init"], 7);
    assert!(failure.cause.contains("already holds"), "{failure:?}");
    // The token lies where only its owner can read it.
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &both.with.repo.join("api").metadata().unwrap().permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
}
