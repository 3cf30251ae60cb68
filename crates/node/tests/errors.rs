//! The catalogue of errors (docs/errors.md): every fault that an operator can meet is brought about here, and what is said about it has a
//! text of its own, names what it happened to and says what to do.
#![allow(clippy::unwrap_used)]

mod common;
#[path = "common/kubo.rs"]
mod fake_kubo;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{
    Daemon, Done, Failure, Node, Swarm, address, http, http_with_body, id, noise, signal, status,
    until, wait,
};
use rustix::process::Signal;
use serde_json::Value;

/// A block that nobody has.
const ABSENT: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
/// A peer that is nowhere.
const NOBODY: &str = "12D3KooWDpp7U7W9Q8feMZPPEpPP5FKXTUakLgnVLbavfjb9mzrT";
/// What a text may not be alone, because it tells nothing.
const EMPTY_WORDS: [&str; 7] = [
    "backoff",
    "back-off",
    "deadline exceeded",
    "timed out",
    "timeout",
    "time-out",
    "refused",
];

/// What was said about a fault.
struct Said {
    fault: &'static str,
    /// As the catalogue writes it.
    exit: String,
    text: String,
    hint: String,
}

/// A row of the catalogue.
struct Row {
    id: String,
    pattern: String,
    exit: String,
    meaning: String,
    advice: String,
}

/// What was said so far in one scene.
#[derive(Default)]
struct Scene(Vec<Said>);

impl Scene {
    /// A command that fails.
    fn command(&mut self, fault: &'static str, node: &Node, args: &[&str]) {
        self.done(fault, node.run(&[args, &["--json"]].concat()));
    }

    fn done(&mut self, fault: &'static str, done: Done) {
        let exit = done.status.code().unwrap();
        assert_ne!(exit, 0, "{fault} did not fail: {done:?}");
        let Failure { cause, hint, .. } = done.fails(exit);
        self.0.push(Said {
            fault,
            exit: exit.to_string(),
            text: cause,
            hint,
        });
    }

    /// A failure as the node makes it.
    fn fail(&mut self, fault: &'static str, fail: gemba_node::error::Fail) {
        self.0.push(Said {
            fault,
            exit: fail.code.exit().to_string(),
            text: fail.cause,
            hint: fail.hint,
        });
    }

    /// An answer of the API that carries a failure.
    fn answer(&mut self, fault: &'static str, answer: (u16, String)) {
        let body = answer.1.split("\r\n\r\n").nth(1).unwrap();
        let body: Value = serde_json::from_str(body).unwrap();
        let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
        self.0.push(Said {
            fault,
            exit: format!("HTTP {}", answer.0),
            text: text("cause"),
            hint: text("hint"),
        });
    }

    /// A line of `status`, which has no hint: its text must do.
    fn trouble(&mut self, fault: &'static str, line: String) {
        self.0.push(Said {
            fault,
            exit: "status".to_owned(),
            text: line,
            hint: String::new(),
        });
    }
}

/// S0.58: each fault that is brought about has a text of its own; the catalogue knows it, and knows nothing that nobody can bring about.
#[test]
fn s0_58_each_fault_has_its_own_text_and_stands_in_the_catalogue() {
    let scenes = [
        repository as fn(&mut Scene),
        keys,
        settings,
        daemon_and_api,
        dials,
        limits_and_waits,
        blocks_without_a_daemon,
        blocks_of_others,
        silent_peers,
        too_many_reads,
        files,
        full,
        messages,
        names,
        pins,
        events,
        consumers,
        damaged_events,
        constructed,
        constructed_events,
    ];
    let said: Vec<Said> = std::thread::scope(|scope| {
        let run = |scene: fn(&mut Scene)| {
            scope.spawn(move || {
                let mut told = Scene::default();
                scene(&mut told);
                told.0
            })
        };
        // A few at a time: each starts daemons.
        scenes
            .chunks(4)
            .flat_map(|some| {
                let running: Vec<_> = some.iter().map(|scene| run(*scene)).collect();
                running
                    .into_iter()
                    .flat_map(|scene| scene.join().unwrap())
                    .collect::<Vec<_>>()
            })
            .collect()
    });
    let rows = catalogue();
    let mut wrong = Vec::new();
    for said in &said {
        wrong.extend(judge(said, &rows));
    }
    let shown: BTreeSet<&str> = said.iter().map(|said| said.fault).collect();
    for row in rows.values() {
        if !shown.contains(row.id.as_str()) {
            wrong.push(format!(
                "{} is in the catalogue, and nothing brings it about",
                row.id
            ));
        }
    }
    assert!(
        wrong.is_empty(),
        "{} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

/// What is wrong with a text.
fn judge(said: &Said, rows: &BTreeMap<String, Row>) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut find = |what: String| wrong.push(format!("{}: {what}: {:?}", said.fault, said.text));
    match rows.get(said.fault) {
        None => find("not in the catalogue".to_owned()),
        Some(row) if row.exit != said.exit => {
            find(format!("ends with {}, not {}", said.exit, row.exit));
        }
        Some(_) => {}
    }
    let mut fitting: Vec<&Row> = rows
        .values()
        .filter(|row| fits(&row.pattern, &said.text))
        .collect();
    let most = fitting.iter().map(|row| weight(&row.pattern)).max();
    fitting.retain(|row| Some(weight(&row.pattern)) == most);
    let fits: Vec<&str> = fitting.iter().map(|row| row.id.as_str()).collect();
    if fits != [said.fault] {
        find(format!("has the text of {fits:?}"));
    }
    // What to do stands in the hint, or as a command or question in the text itself.
    if said.hint.is_empty() && !said.text.contains(['`', '?']) {
        find("does not say what to do".to_owned());
    }
    for word in EMPTY_WORDS {
        let rest = said.text.to_lowercase().replace(word, "");
        if rest.len() != said.text.len() && rest.trim().len() < word.len() + 20 {
            find(format!("says {word:?} and hardly more"));
        }
    }
    if said.text.to_lowercase().contains("backoff") || said.text.contains("back-off") {
        let tells = said.text.contains("because") && said.text.contains("next");
        if !tells {
            find("says back-off without its cause and the time of the next try".to_owned());
        }
    }
    wrong
}

/// The rows of docs/errors.md.
fn catalogue() -> BTreeMap<String, Row> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    let text = std::fs::read_to_string(path).unwrap();
    let mut rows = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.trim_matches('|').split(" | ").map(str::trim).collect();
        let [id, pattern, exit, meaning, advice] = cells.as_slice() else {
            panic!("a row has not five cells: {line}");
        };
        let row = Row {
            id: id.trim_matches('`').to_owned(),
            pattern: (*pattern).to_owned(),
            exit: (*exit).to_owned(),
            meaning: (*meaning).to_owned(),
            advice: (*advice).to_owned(),
        };
        assert!(
            row.meaning.len() > 10 && row.advice.len() > 5,
            "{} is not explained",
            row.id
        );
        assert!(rows.insert(row.id.clone(), row).is_none(), "twice: {line}");
    }
    assert!(rows.len() > 60, "only {} rows were found", rows.len());
    rows
}

/// Whether a text is of a pattern, in which `…` stands for anything that is not nothing.
fn fits(pattern: &str, text: &str) -> bool {
    match pattern.split_once('…') {
        None => pattern == text,
        Some((literal, more)) => text.strip_prefix(literal).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(at, c)| at + c.len_utf8());
            ends.into_iter().any(|end| fits(more, &rest[end..]))
        }),
    }
}

/// How much of a pattern is literal: of two that fit a text, the one that says more is its own.
fn weight(pattern: &str) -> usize {
    pattern.split('…').map(str::len).sum()
}

/// S1.38: the kinds of failed dials and of the store's refusals that the code knows all stand in the catalogue, by their names.
#[test]
fn s1_38_every_cause_that_the_code_knows_is_in_the_catalogue() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let text = std::fs::read_to_string(root.join("docs/errors.md")).unwrap();
    let names = |file: &str, begin: &str| -> Vec<String> {
        let code = std::fs::read_to_string(root.join(file)).unwrap();
        let body = code
            .split(begin)
            .nth(1)
            .unwrap()
            .split("\n}\n")
            .next()
            .unwrap();
        let variant = |line: &str| {
            let line = line.strip_prefix("    ")?;
            let name: String = line
                .chars()
                .take_while(char::is_ascii_alphanumeric)
                .collect();
            name.starts_with(|c: char| c.is_ascii_uppercase())
                .then_some(name)
        };
        body.lines().filter_map(variant).collect()
    };
    let mut missing = Vec::new();
    for (kind, file) in [
        ("DialCause", "crates/pnet/src/cause.rs"),
        ("ListenCause", "crates/pnet/src/cause.rs"),
        ("PolicyError", "crates/pnet/src/policy.rs"),
        ("OpenError", "crates/store/src/error.rs"),
        ("StoreError", "crates/store/src/error.rs"),
        ("log::OpenError", "crates/log/src/error.rs"),
        ("LogError", "crates/log/src/error.rs"),
    ] {
        let plain = kind.trim_start_matches("log::");
        let found = names(file, &format!("pub enum {plain} {{"));
        assert!(found.len() > 3, "{kind}: {found:?}");
        for name in found {
            if !text.contains(&format!("`{kind}::{name}`")) {
                missing.push(format!("{kind}::{name}"));
            }
        }
    }
    assert!(missing.is_empty(), "not in docs/errors.md: {missing:?}");
}

#[test]
fn a_pattern_fits_only_its_own_texts() {
    assert!(fits("block … is not here", "block x is not here"));
    assert!(!fits(
        "block … is not here",
        "block x is not here, and more"
    ));
    assert!(!fits("block … is not here", "block  is not here"));
    assert!(fits("… has no entry …", "bafy has no entry \"x\""));
    assert!(fits("plain", "plain") && !fits("plain", "plainer"));
    assert!(fits("ends with …", "ends with ä") && !fits("ends with …", "ends with "));
}

const API: &str = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";

fn post(node: &Node, path: &str, kind: &str, body: &[u8]) -> (u16, String) {
    let headers = format!("{API}Content-Type: {kind}\r\n");
    http_with_body(node, "POST", path, &headers, body)
}

fn post_json(node: &Node, path: &str, body: &Value) -> (u16, String) {
    post(node, path, "application/json", body.to_string().as_bytes())
}

fn events(said: &mut Scene) {
    let node = Node::new();
    let long = "x".repeat(5_000);
    for (fault, args) in [
        ("event-stream-name", &["log", "append", "a b", "x"][..]),
        ("event-own-stream", &["log", "append", "$dead/x", "x"]),
        ("event-author", &["log", "read", "x", "--author", "me"]),
        ("event-none-here", &["log", "read", "hall-1/count"]),
        ("event-undescribed", &["log", "describe", "hall-1/count"]),
        (
            "event-description-long",
            &["log", "describe", "x", "--meaning", &long],
        ),
        ("event-class", &["log", "describe", "x", "--class", "slow"]),
        (
            "event-fast-no-daemon",
            &["log", "append", "x", "1", "--fast"],
        ),
        (
            "event-header-length",
            &["log", "append", "x", "1", "--producer", &long[..200]],
        ),
        (
            "event-id",
            &["log", "ack", "c", "--stream", "x", "--event", "7"],
        ),
        (
            "events-subscribe",
            &["config", "set", "events.subscribe", "a//b"],
        ),
    ] {
        said.command(fault, &node, args);
    }
    std::fs::write(node.path("events.car"), b"no archive").unwrap();
    let file = node.path("events.car");
    said.command(
        "events-file",
        &node,
        &["log", "import", file.to_str().unwrap()],
    );
    let large = vec![b'x'; 600 << 10];
    let args = ["log", "append", "x", "--json"];
    said.done("event-input-long", node.run_with_input(&args, &large));

    let _daemon = Daemon::start(&node, &[]);
    let follow = ["log", "tail", "x", "--timeout", "300ms"];
    said.command("event-follow-late", &node, &follow);
    said.done("event-too-large", node.run_with_input(&args, &large));
    let path = "/v1/streams/x/events";
    let wrong = b"{\"txet\":\"1\"}\n";
    said.answer(
        "event-line",
        post(&node, path, "application/x-ndjson", wrong),
    );
    let endless = vec![b'x'; (1 << 20) + 24];
    said.answer("event-line-long", post(&node, path, "text/plain", &endless));
    let after = format!("{path}?after=here");
    said.answer("event-resume", http(&node, "GET", &after, API));
    crowds(said, &node);
}

/// More who follow events than may.
fn crowds(said: &mut Scene, node: &Node) {
    node.ok(&["log", "append", "x", "1"]);
    let follow = "/v1/streams/x/events?follow=true";
    let mut readers: Vec<_> = (0..64).map(|_| request(node, "GET", follow, "")).collect();
    // It ends by itself while there is room. A reader may have been refused while this one had the last place, so more of them come.
    let one = format!("{follow}&limit=1");
    let ask = || {
        if readers.len() < 128 {
            readers.push(request(node, "GET", follow, ""));
        }
        http(node, "GET", &one, API)
    };
    said.answer("events-followers", refused(ask));
    drop(readers);
}

/// A request whose answer nobody reads.
fn request(node: &Node, method: &str, path: &str, body: &str) -> TcpStream {
    let api = std::fs::read(node.repo.join("api")).unwrap();
    let api: Value = serde_json::from_slice(&api).unwrap();
    let text = |name: &str| api[name].as_str().unwrap();
    let mut stream = TcpStream::connect(text("address")).unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        text("address"),
        text("token"),
        body.len()
    )
    .unwrap();
    stream
}

/// The first answer that is a refusal.
fn refused(mut ask: impl FnMut() -> (u16, String)) -> (u16, String) {
    let mut answer = ask();
    until("a refusal", || {
        if answer.0 == 200 {
            answer = ask();
        }
        answer.0 != 200
    });
    answer
}

fn consumers(said: &mut Scene) {
    use serde_json::json;
    let mut swarm = Swarm::of(2);
    let node = swarm.node(0);
    node.run_with_input(&["log", "append", "x"], b"1\n2\n").ok();
    let consume = |stream: &'static str, consumer: &'static str| {
        [
            "log",
            "consume",
            stream,
            "--consumer",
            consumer,
            "--exec",
            "true",
            "--drain",
        ]
    };
    said.command("consumer-unknown", node, &["log", "dead", "ls", "nobody"]);
    said.command("consumer-name", node, &consume("x", "a b"));
    node.ok(&consume("x", "one"));
    said.command("consumer-other-streams", node, &consume("y", "one"));
    said.command(
        "dead-letter-unknown",
        node,
        &["log", "dead", "show", "one", "nothing"],
    );
    for stream in ["p/one", "p/two"] {
        node.ok(&["log", "append", stream, "bad"]);
    }
    let fails = [
        &["log", "consume", "p/#", "--consumer", "fails", "--exec"][..],
        &["false", "--attempts", "1", "--drain"],
    ];
    node.ok(&fails.concat());
    let letter = node.lines(&["log", "dead", "ls", "fails"]).swap_remove(0);
    let of_two = [
        "log",
        "dead",
        "show",
        "fails",
        letter["id"].as_str().unwrap(),
    ];
    said.command("dead-letters-several", node, &of_two);
    let other = swarm.node(1);
    until("the other node hears of the consumer", || {
        !other.lines(&["log", "ls", "$consumer/#"]).is_empty()
    });
    said.command("consumer-elsewhere", other, &consume("x", "one"));
    let retry = ["log", "dead", "retry", "one", "letter"];
    said.command("consumer-on-other-node", other, &retry);

    let to = |what: &str| format!("/v1/consumers/work/{what}");
    let claim = json!({"worker": 1, "streams": ["x"], "lease_ms": 60_000});
    let begin = json!({"worker": 1, "streams": ["x"], "start": "middle"});
    said.answer("consumer-start", post_json(node, &to("claim"), &begin));
    let never = json!({"worker": 1, "streams": ["x"], "attempts": 0});
    said.answer("number-out-of-range", post_json(node, &to("claim"), &never));
    said.answer(
        "request-unreadable",
        post_json(node, &to("claim"), &json!({})),
    );
    let (status, claimed) = post_json(node, &to("claim"), &claim);
    assert_eq!(status, 200, "{claimed}");
    let claimed: Value = serde_json::from_str(claimed.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let token = &claimed["token"];
    for (fault, ack) in [
        ("consumer-not-given", json!({"token": token, "seq": 99})),
        (
            "consumer-state-large",
            json!({"token": token, "seq": 1, "state": "x".repeat(70_000)}),
        ),
        ("consumer-claim-over", json!({"token": 77, "seq": 1})),
    ] {
        said.answer(fault, post_json(node, &to("ack"), &ack));
    }
    said.answer("consumer-places", post_json(node, &to("seek"), &json!({})));
    said.command("consumer-in-use", node, &["log", "consumers", "rm", "work"]);

    // Something else than a count is kept.
    let to = |what: &str| format!("/v1/consumers/odd/{what}");
    let (_, claimed) = post_json(node, &to("claim"), &claim);
    let claimed: Value = serde_json::from_str(claimed.split("\r\n\r\n").nth(1).unwrap()).unwrap();
    let ack = json!({"token": claimed["token"], "seq": 1, "state": {"pieces": 2}});
    assert_eq!(post_json(node, &to("ack"), &ack).0, 200);
    assert_eq!(post_json(node, &to("leave"), &json!({"worker": 1})).0, 200);
    node.ok(&["log", "append", "x", "3"]);
    said.command(
        "consumer-not-a-count",
        node,
        &["log", "count", "x", "--consumer", "odd"],
    );

    // Without a daemon.
    swarm.nodes[0].1 = None;
    let late = [
        "log",
        "consume",
        "x",
        "--consumer",
        "late",
        "--exec",
        "false",
        "--timeout",
        "500ms",
    ];
    said.command("consumer-late", swarm.node(0), &late);

    let full = Node::new();
    let _daemon = Daemon::start(&full, &[]);
    let refused = (0..=256).find_map(|n| {
        let claim = json!({"worker": 1, "streams": ["nothing"]});
        let answer = post_json(&full, &format!("/v1/consumers/many-{n}/claim"), &claim);
        (answer.0 != 200).then_some(answer)
    });
    said.answer("consumers-too-many", refused.unwrap());
}

fn damaged_events(said: &mut Scene) {
    let node = Node::new();
    let payload = noise(3, 4_000);
    for _ in 0..3 {
        let args = ["log", "append", "x", "--whole"];
        node.run_with_input(&args, &payload).ok();
    }
    let mut hit = false;
    for entry in std::fs::read_dir(node.repo.join("log/events")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let begin = &payload[..64];
        if let Some(at) = bytes.windows(64).position(|some| some == begin) {
            bytes[at] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            hit = true;
        }
    }
    assert!(hit, "the payload is not in the segments as it is");
    said.command("events-damaged", &node, &["log", "verify"]);
}

fn pins(said: &mut Scene) {
    const OTHER: &str = "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku";
    let node = Node::new();
    said.command("pin-no-daemon", &node, &["pin", "cancel", OTHER]);
    for (fault, list) in [
        ("pin-list-header", "{}\n"),
        ("pin-list-newer", "{\"gemba_pins\":2}\n"),
        (
            "pin-list-line",
            "{\"gemba_pins\":1}\n{\"cid\":\"x\",\"kind\":\"direct\",\"since_ms\":0}\n",
        ),
    ] {
        node.write("list", list);
        said.command(fault, &node, &["pin", "import", "list"]);
    }
    said.command("kubo-address", &node, &["pin", "import", "--kubo", "kubo"]);
    // Nothing listens on a port that was just given back.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    said.command("kubo-away", &node, &["pin", "import", "--kubo", &url]);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let silent = ["pin", "import", "--kubo", &url, "--timeout", "200ms"];
    said.command("kubo-silent", &node, &silent);
    let kubo = fake_kubo::Kubo::start();
    let pinned = node.put("raw", b"pinned here");
    node.ok(&["pin", "add", &pinned]);
    kubo.held().missing.push(pinned);
    said.command(
        "kubo-lacks-blocks",
        &node,
        &["pin", "export", "--kubo", &kubo.url, "--timeout", "200ms"],
    );
    let daemon = Daemon::start(&node, &[]);
    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let guarded = format!("http://{}", api["address"].as_str().unwrap());
    said.command(
        "kubo-guarded",
        &node,
        &["pin", "import", "--kubo", &guarded],
    );
    said.command("pin-no-operation", &node, &["pin", "cancel", OTHER]);
    drop(daemon);
}

fn names(said: &mut Scene) {
    const OTHER: &str = "k51qzi5uqu5dljtg5upm7x7ugan9lql3ewyknv4r4mhhkwzn8n7cnbd1unfwgq";
    let node = Node::new();
    said.command(
        "name-unreadable",
        &node,
        &["name", "resolve", "app.example"],
    );
    said.command("name-unknown", &node, &["name", "resolve", OTHER]);
    said.command(
        "name-not-whole",
        &node,
        &["name", "resolve", "--complete", OTHER],
    );
    said.command("not-followed", &node, &["name", "follow", "rm", OTHER]);
    let wait = ["name", "follow", "add", OTHER, "--wait"];
    said.command("follow-without-daemon", &node, &wait);
    node.ok(&["name", "follow", "rm", OTHER]);
    let root = node.add(&node.write("app", "1"), &[]);
    let published = node.json(&["name", "publish", &root]);
    let name = published["name"].as_str().unwrap();
    let old = node.run(&["name", "get", name]).stdout;
    let meta = node.repo.join("meta/meta.redb");
    let backup = std::fs::read(&meta).unwrap();
    node.json(&["name", "publish", ABSENT]);
    said.command(
        "name-sequence",
        &node,
        &["name", "publish", &root, "--sequence", "1"],
    );
    let old = node.write("old", old);
    let old = old.to_str().unwrap();
    said.command("name-older", &node, &["name", "put", name, old]);
    said.command("name-record", &node, &["name", "put", OTHER, old]);
    let newest = std::fs::read(&meta).unwrap();
    std::fs::write(&meta, backup).unwrap();
    said.command("name-restored", &node, &["name", "publish", &root]);
    std::fs::write(&meta, newest).unwrap();

    said.command("key-unknown", &node, &["key", "export", "nothing"]);
    node.ok(&["key", "new", "app"]);
    said.command("name-key-exists", &node, &["key", "new", "app"]);
    said.command("key-self", &node, &["key", "rm", "self"]);
    said.command("key-label", &node, &["key", "new", "a/b"]);
    said.command("name-key-unreadable", &node, &["key", "import", "x", old]);
    let file = node.path("app.key");
    let file = file.to_str().unwrap();
    node.ok(&["key", "export", "app", "-o", file]);
    said.command("key-here", &node, &["key", "import", "again", file]);

    let _daemon = Daemon::start(&node, &[]);
    let watch = ["name", "watch", "--timeout", "100ms"];
    said.command("watch-nothing-came", &node, &watch);
    said.command("name-nobody-has-it", &node, &["name", "resolve", OTHER]);
    node.ok(&["name", "publish", "--key", "app", &root]);
    node.ok(&["name", "follow", "add", "app", "--wait"]);
    node.ok(&["pin", "rm", &root]);
    said.command("pin-followed", &node, &["pin", "rm", &root]);
    said.command(
        "no-earlier-version",
        &node,
        &["name", "follow", "rollback", "app"],
    );
}

fn repository(said: &mut Scene) {
    let bare = Node::bare();
    said.command("no-repository", &bare, &["status"]);
    let node = Node::new();
    said.command("repository-exists", &node, &["init"]);
    let version = node.repo.join("version");
    let was = std::fs::read(&version).unwrap();
    std::fs::write(&version, "7\n").unwrap();
    said.command("repository-newer", &node, &["repo", "stat"]);
    std::fs::write(&version, "x").unwrap();
    said.command("version-unreadable", &node, &["repo", "stat"]);
    std::fs::write(&version, was).unwrap();
    let version = node.repo.join("blocks/version");
    let was = std::fs::read_to_string(&version).unwrap();
    let id = was.lines().find(|line| line.starts_with("id ")).unwrap();
    let word = was.split(' ').next().unwrap();
    std::fs::write(&version, format!("{word} 9\n{id}\n")).unwrap();
    said.command("store-newer", &node, &["repo", "stat"]);
    std::fs::write(&version, was).unwrap();
    std::fs::rename(node.repo.join("blocks"), node.path("away")).unwrap();
    said.command("store-missing", &node, &["repo", "stat"]);
    std::fs::rename(node.path("away"), node.repo.join("blocks")).unwrap();

    let other = Node::new();
    other.put("raw", b"elsewhere");
    let foreign = common::packs(&other.repo).remove(0);
    let name = foreign
        .file_name()
        .unwrap()
        .to_str()
        .unwrap()
        .replacen('0', "1", 1);
    std::fs::copy(&foreign, node.repo.join("blocks").join(&name)).unwrap();
    said.command("pack-foreign", &node, &["repo", "stat"]);
    std::fs::remove_file(node.repo.join("blocks").join(&name)).unwrap();

    let mut add = node
        .command(&["add", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = add.stdin.take().unwrap();
    // More than a pipe holds: once it is written, the command is reading, and so holds the lock.
    input.write_all(&noise(1, 1 << 20)).unwrap();
    said.command("locked-by-command", &node, &["repo", "stat"]);
    drop(input);
    assert!(add.wait().unwrap().success());
    let _daemon = Daemon::start(&node, &[]);
    let new_key = ["swarm-key", "new", "--replace"];
    said.command("locked-by-daemon", &node, &new_key);
    said.command("second-daemon", &node, &["daemon", "--no-mdns"]);
    said.command("adds-itself", &node, &["add", node.repo.to_str().unwrap()]);
}

fn keys(said: &mut Scene) {
    let daemon = [
        "daemon",
        "--listen",
        "/ip4/127.0.0.1/tcp/0",
        "--api",
        "127.0.0.1:0",
        "--no-mdns",
    ];
    let keyless = Node::bare();
    keyless.ok(&["init"]);
    said.command("no-key", &keyless, &daemon);
    let node = Node::new();
    let public = [&daemon[..], &["--public-network"]].concat();
    said.command("key-and-public", &node, &public);
    said.command("key-exists", &node, &["swarm-key", "new"]);
    said.command(
        "key-file-unusable",
        &node,
        &[
            "swarm-key",
            "import",
            node.repo.join("config.toml").to_str().unwrap(),
        ],
    );
    let key = node.repo.join("swarm.key");
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o644)).unwrap();
    said.command("key-exposed", &node, &daemon);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::write(&key, "no key").unwrap();
    said.command("key-damaged", &node, &daemon);
    let forced = [&daemon[..], &["--force-private"]].concat();
    let mut misspelt = keyless.command(&[&daemon[..], &["--json"]].concat());
    misspelt.env("LIBP2P_FORCE_PNET", "perhaps");
    said.done("force-variable-unknown", Done::of(misspelt, &[]));
    let mut misspelt = keyless.command(&[&daemon[..], &["--json"]].concat());
    misspelt.env("LIBP2P_FORCE_PSK", "1");
    said.done("force-variable-misspelt", Done::of(misspelt, &[]));
    let both = [&forced[..], &["--public-network"]].concat();
    said.command("public-forbidden", &keyless, &both);
    std::fs::rename(node.repo.join("swarm.key"), node.repo.join("swarm.key.txt")).unwrap();
    said.command("key-misnamed", &node, &daemon);
    std::fs::create_dir(node.repo.join("swarm.key")).unwrap();
    said.command("key-unreadable", &node, &daemon);
    std::fs::write(node.repo.join("identity.key"), "no key").unwrap();
    said.command("identity-damaged", &node, &["id"]);
}

fn settings(said: &mut Scene) {
    let node = Node::new();
    said.command(
        "setting-unknown",
        &node,
        &["config", "set", "store.size", "1"],
    );
    said.command(
        "setting-wrong",
        &node,
        &["config", "set", "store.max_size", "much"],
    );
    said.command("option-wrong", &node, &["cat", ABSENT, "--timeout", "soon"]);
    std::fs::write(node.repo.join("config.toml"), "[store\n").unwrap();
    said.command("config-damaged", &node, &["repo", "stat"]);
}

fn daemon_and_api(said: &mut Scene) {
    let node = Node::new();
    said.command("no-daemon", &node, &["peers"]);
    let occupied = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = occupied.local_addr().unwrap();
    let start = |listen: &str, api: &str| {
        let args = ["daemon", "--listen", listen, "--api", api, "--no-mdns"];
        args.map(str::to_owned)
    };
    let port = format!("/ip4/127.0.0.1/tcp/{}", taken.port());
    let any = "/ip4/127.0.0.1/tcp/0";
    for (fault, args) in [
        ("port-in-use", start(&port, "127.0.0.1:0")),
        (
            "address-not-ours",
            start("/ip4/203.0.113.9/tcp/0", "127.0.0.1:0"),
        ),
        ("api-port-in-use", start(any, &taken.to_string())),
        ("api-for-others", start(any, "0.0.0.0:0")),
    ] {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        said.command(fault, &node, &args);
    }
    drop(occupied);

    let mut daemon = Daemon::start(&node, &[]);
    let get = |headers: &str| http(&node, "GET", "/v1/id", headers);
    said.answer("token-missing", get("Host: ADDRESS\r\n"));
    said.answer(
        "token-wrong",
        get("Host: ADDRESS\r\nAuthorization: Bearer 00\r\n"),
    );
    let good = "Authorization: Bearer TOKEN\r\n";
    said.answer(
        "host-foreign",
        get(&format!("Host: evil.example\r\n{good}")),
    );
    said.answer(
        "origin-foreign",
        get(&format!(
            "Host: ADDRESS\r\n{good}Origin: http://evil.example\r\n"
        )),
    );
    said.answer(
        "no-such-route",
        http(
            &node,
            "GET",
            "/v1/nothing",
            &format!("Host: ADDRESS\r\n{good}"),
        ),
    );
    signal(daemon.child.id(), Signal::STOP);
    said.command("daemon-silent", &node, &["status", "--timeout", "1s"]);
    signal(daemon.child.id(), Signal::CONT);
    let pinning = node
        .command(&["pin", "add", ABSENT, "--json"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the pin", || {
        node.run(&["pin", "status", ABSENT]).status.success()
    });
    signal(daemon.child.id(), Signal::TERM);
    daemon.child.wait().unwrap();
    said.done("daemon-ending", Done::from_output("", wait(pinning)));
}

/// A listener that does with each connection what it is told.
fn listener(serve: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // It ends with the process.
    std::thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            serve(stream);
        }
    });
    address
}

/// A listener whose queue is full: it answers nobody, like a device that is switched off.
fn unreachable() -> (SocketAddr, TcpListener, Vec<TcpStream>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let mut queue = Vec::new();
    while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
        queue.push(stream);
    }
    (address, listener, queue)
}

fn dials(said: &mut Scene) {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let at = |address: SocketAddr| format!("/ip4/127.0.0.1/tcp/{}", address.port());
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    said.command("peer-refused", &node, &["connect", &at(closed)]);
    said.command("address-malformed", &node, &["connect", "10.0.0.1:4001"]);
    said.command(
        "address-not-dialable",
        &node,
        &["connect", "/ip4/127.0.0.1/udp/1"],
    );
    said.command("peer-is-ourselves", &node, &["connect", &address(&node)]);
    said.command("not-connected", &node, &["ping", NOBODY]);
    said.command("peer-id-malformed", &node, &["ping", "nobody"]);

    let stranger = Swarm::of(1);
    said.command(
        "peer-wrong-key",
        &node,
        &["connect", &address(stranger.node(0))],
    );
    let (kept, held) = std::sync::mpsc::sync_channel(8);
    let silent = listener(move |stream| drop(kept.send(stream)));
    said.command("peer-says-nothing", &node, &["connect", &at(silent)]);
    drop(held);
    let member = Node::bare();
    let key = node.repo.join("swarm.key");
    member.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    let _member = Daemon::start(&member, &[]);
    let other = address(&member).replace(&id(&member), NOBODY);
    said.command("peer-is-another", &node, &["connect", &other]);

    let web = listener(|mut stream| drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")));
    said.command("peer-is-no-node", &node, &["connect", &at(web)]);
    let hanging_up = listener(drop);
    said.command("peer-hangs-up", &node, &["connect", &at(hanging_up)]);
    let (nowhere, _listener, _queue) = unreachable();
    said.command("peer-unreachable", &node, &["connect", &at(nowhere)]);
    said.command(
        "dial-late",
        &node,
        &["connect", &at(nowhere), "--timeout", "500ms"],
    );
}

fn limits_and_waits(said: &mut Scene) {
    let closed = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let known = format!("/ip4/127.0.0.1/tcp/{}/p2p/{NOBODY}", closed.port());
    let node = Node::new();
    let _daemon = Daemon::start(&node, &["--bootstrap", &known]);
    // After some failures the next try is seconds away.
    let waiting = || {
        let troubles = status(&node)["troubles"].as_array().unwrap().clone();
        troubles
            .into_iter()
            .find(|trouble| trouble["kind"] == "refused")
    };
    until("a dial that waits for its next try", || {
        waiting().is_some_and(|trouble| trouble["retry_in_s"].as_u64() > Some(1))
    });
    let line = |word: &str| {
        let shown = node.ok(&["status"]);
        let line = shown
            .lines()
            .find(|line| line.starts_with("trouble") && line.contains(word));
        line.unwrap_or_else(|| panic!("{shown}")).to_owned()
    };
    said.trouble("dial-backoff", line("nothing listens"));
    said.command(
        "nobody-connected",
        &node,
        &["cat", ABSENT, "--timeout", "500ms"],
    );

    let listen = address(&node)
        .split('/')
        .nth(4)
        .unwrap()
        .parse::<u16>()
        .unwrap();
    let silent: Vec<TcpStream> = (0..80)
        .map(|_| TcpStream::connect(("127.0.0.1", listen)).unwrap())
        .collect();
    until("the limit", || {
        let troubles = status(&node)["troubles"].as_array().unwrap().clone();
        troubles.iter().any(|trouble| trouble["kind"] == "limit")
    });
    said.trouble("connection-limit", line("a limit of this node"));
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = http(&node, "GET", "/metrics", headers);
    let counted = |line: &&str| {
        line.starts_with("gemba_connections_refused_pending_incoming") && !line.ends_with(" 0")
    };
    assert!(metrics.lines().any(|line| counted(&line)), "{metrics}");
    drop(silent);
}

fn blocks_without_a_daemon(said: &mut Scene) {
    let node = Node::new();
    node.write("folder/file", "content");
    let folder = node.add(&node.path("folder"), &[]);
    let below = |path: &str| format!("{folder}/{path}");
    for (fault, args) in [
        ("block-not-here", &["cat", ABSENT][..]),
        ("block-not-here-to-pin", &["pin", "add", ABSENT]),
        ("path-malformed", &["cat", "nonsense"]),
        ("cid-malformed", &["pin", "add", "nonsense"]),
        ("cid-is-a-path", &["pin", "add", &below("file")]),
        ("path-climbs", &["cat", &below("../file")]),
        ("path-not-in-folder", &["cat", &below("nothing")]),
        ("path-below-a-file", &["cat", &below("file/more")]),
        ("is-a-folder", &["cat", &folder]),
        ("not-pinned", &["pin", "rm", ABSENT]),
        ("target-exists", &["get", &folder, "-o", "folder"]),
        ("codec-unknown", &["block", "put", "--codec", "tape"]),
    ] {
        said.command(fault, &node, args);
    }
    said.command("block-is-pinned", &node, &["block", "rm", &folder]);
    let bad = node.put("dag-pb", b"no node");
    said.command("dag-malformed", &node, &["pin", "add", &bad]);
    let content = noise(1, 200_000);
    let file = node.add(&node.write("big", &content), &[]);
    damage(&node, &content);
    said.command("block-damaged", &node, &["cat", &file]);
    // A block with links: what is below it cannot be told any more.
    damage(&node, &node.run(&["block", "get", &folder]).stdout);
    said.command("gc-stopped-by-damage", &node, &["gc"]);
}

/// Turns a byte of this content in the packs.
fn damage(node: &Node, content: &[u8]) {
    for entry in std::fs::read_dir(node.repo.join("blocks")).unwrap() {
        let path = entry.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let begin = &content[..content.len().min(64)];
        let found = bytes.windows(begin.len()).position(|some| some == begin);
        if let Some(at) = found {
            bytes[at + begin.len() / 2] ^= 1;
            std::fs::write(&path, bytes).unwrap();
            return;
        }
    }
    panic!("the content is in no pack");
}

fn blocks_of_others(said: &mut Scene) {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    said.command("nobody-has", b, &["cat", ABSENT, "--timeout", "1s"]);
    said.command(
        "pin-not-whole",
        b,
        &["pin", "add", ABSENT, "--timeout", "1s"],
    );
    let root = a.add(&a.write("f", "x"), &[]);
    b.ok(&["pin", "add", &root]);
    let stored = b.put("raw", b"loose");
    let removing = b.run(&["block", "rm", &stored]);
    assert!(removing.status.success(), "{}", removing.stderr);
}

/// More reads than the daemon takes: one is told so at once, the others wait for their block.
fn too_many_reads(said: &mut Scene) {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\nX-Gemba-Patience-Ms: 2000\r\n";
    let path = format!("/v1/cat?path={ABSENT}");
    let answers: Vec<(u16, String)> = std::thread::scope(|scope| {
        let reads = (0..40).map(|_| scope.spawn(|| http(&node, "GET", &path, headers)));
        let reads: Vec<_> = reads.collect();
        reads.into_iter().map(|read| read.join().unwrap()).collect()
    });
    let told = answers.into_iter().find(|answer| answer.0 == 409).unwrap();
    said.answer("too-many-reads", told);
}

fn silent_peers(said: &mut Scene) {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let daemon = swarm.nodes[0].1.as_ref().unwrap().child.id();
    until("a round trip", || {
        b.lines(&["peers"])[0]["rtt_ms"].is_number()
    });
    signal(daemon, Signal::STOP);
    said.command("peer-silent", b, &["cat", ABSENT, "--timeout", "2s"]);
    said.command("ping-late", b, &["ping", &id_of(a, b), "--timeout", "1s"]);
    signal(daemon, Signal::CONT);
}

/// The id of a node whose daemon does not answer, as another one knows it.
fn id_of(_stopped: &Node, other: &Node) -> String {
    other.lines(&["peers"])[0]["id"]
        .as_str()
        .unwrap()
        .to_owned()
}

fn files(said: &mut Scene) {
    let node = Node::new();
    let file = node.write("file", "content");
    said.command("file-missing", &node, &["add", "nothing"]);
    said.command("file-in-the-way", &node, &["add", "file/below"]);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        node.path("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    said.command("file-special", &node, &["add", "pipe"]);
    said.command(
        "archive-cut",
        &node,
        &["dag", "import", file.to_str().unwrap()],
    );
    let large = node.write("large", vec![0; 3 << 20]);
    said.command(
        "block-too-large",
        &node,
        &["block", "put", large.to_str().unwrap()],
    );
}

/// A command that can make no file larger than this, as on a full disk.
fn on_a_full_disk(node: &Node, bytes: u64, args: &[&str]) -> Done {
    let gemba = node.command(args);
    let script = format!("trap '' XFSZ; ulimit -S -f {}; exec \"$@\"", bytes / 512);
    let mut command = Command::new("sh");
    command
        .args(["-c", &script, "sh"])
        .arg(gemba.get_program())
        .args(gemba.get_args())
        .current_dir(node.dir.path());
    for (name, value) in gemba.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    Done::of(command, &[])
}

fn full(said: &mut Scene) {
    let node = Node::new();
    let large = node.write("large", noise(1, 20_000_000));
    let large = large.to_str().unwrap();
    let failed = on_a_full_disk(&node, 8 << 20, &["add", large, "--json"]);
    said.done("disk-full", failed);
    let node = Node::new();
    node.ok(&["config", "set", "store.max_size", "16MiB"]);
    let large = node.write("large", noise(1, 20_000_000));
    let add = ["add", large.to_str().unwrap()];
    said.command("store-full", &node, &add);
    node.ok(&["config", "set", "store.gc", "false"]);
    said.command("store-full-not-collected", &node, &add);
}

/// Messages by topic.
fn messages(said: &mut Scene) {
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    said.command(
        "pubsub-no-reader",
        &node,
        &["pubsub", "pub", "alarms", "x", "--timeout", "300ms"],
    );
    let large = vec![b'x'; 1_100_000];
    let args = ["pubsub", "pub", "alarms", "--whole", "--json"];
    said.done("pubsub-too-large", node.run_with_input(&args, &large));
    said.command("topic-empty", &node, &["pubsub", "pub", "", "x"]);
    let long = "x".repeat(1025);
    said.command("topic-too-long", &node, &["pubsub", "sub", &long]);
    let briefly = ["pubsub", "sub", "alarms", "--timeout", "300ms"];
    said.command("pubsub-read-over", &node, &briefly);

    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let text = |name: &str| api[name].as_str().unwrap().to_owned();
    let open: Vec<TcpStream> = (0..64)
        .map(|n| {
            let mut stream = TcpStream::connect(text("address")).unwrap();
            write!(
                stream,
                "GET /v1/pubsub/sub?topic={n} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\n\r\n",
                text("address"),
                text("token")
            )
            .unwrap();
            std::io::Read::read_exact(&mut stream, &mut [0]).unwrap();
            stream
        })
        .collect();
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let refused = http(&node, "GET", "/v1/pubsub/sub?topic=more", headers);
    said.answer("pubsub-too-many-readers", refused);
    drop(open);

    signal(daemon.child.id(), Signal::TERM);
    daemon.child.wait().unwrap();
    std::fs::write(node.repo.join("pubsub.sequence"), "no number").unwrap();
    let daemon = Daemon::start(&node, &[]);
    until("the trouble", || {
        let troubles = status(&node)["troubles"].as_array().unwrap().clone();
        troubles
            .iter()
            .any(|trouble| trouble["kind"] == "pubsub_sequence")
    });
    said.command(
        "pubsub-numbers-lost",
        &node,
        &["pubsub", "pub", "alarms", "x"],
    );
    drop(daemon);
    said.command(
        "unsigned-topic-foreign",
        &node,
        &["config", "set", "pubsub.unsigned", "alarms"],
    );
    said.command(
        "direct-without-peer",
        &node,
        &["config", "set", "pubsub.direct", "/ip4/10.0.0.1/tcp/4001"],
    );
    node.ok(&["config", "set", "pubsub.enabled", "false"]);
    let _daemon = Daemon::start(&node, &[]);
    said.command("pubsub-off", &node, &["pubsub", "ls"]);
}

/// What takes a failing disk, a name server or another machine to bring about: the causes as the crates make them, in the words of the
/// node.
fn constructed(said: &mut Scene) {
    use gemba_gossip::{PublishError, WaitCause};
    use gemba_node::daemon::flow::pubsub::publish_fail;
    use gemba_node::daemon::{dial, listen};
    use gemba_node::repo::{open_fail, store_fail};
    use gemba_pnet::{DialCause, LimitKind, ListenCause, SwarmKey};
    use gemba_store::{OpenError, StoreError};
    let cid: Box<cid::Cid> = Box::new(ABSENT.parse().unwrap());
    let disk = || std::io::Error::from_raw_os_error(5);
    for (fault, error) in [
        ("disk-refuses", StoreError::Io(disk().into())),
        ("disk-not-durable", StoreError::NotDurable(disk().kind())),
        (
            "pack-unlisted",
            StoreError::Unlisted {
                pack: 3,
                source: disk().into(),
            },
        ),
        ("block-moving", StoreError::Moving { cid: cid.clone() }),
        ("gc-under-way", StoreError::Collecting),
        (
            "block-over-limit",
            StoreError::TooLarge { cid, size: 3 << 20 },
        ),
        ("store-read-only", StoreError::ReadOnly),
        ("writer-died", StoreError::WriterDied),
        ("packs-run-out", StoreError::TooManyPacks),
    ] {
        said.fail(fault, store_fail(&error));
    }
    let changed = gemba_node::content::pin_sync::changed;
    said.fail("pin-changed", changed(&ABSENT.parse().unwrap()));
    let topic = gemba_gossip::Topic::new("line-1/alarms").unwrap();
    for (fault, error) in [
        (
            "pubsub-slow-readers",
            PublishError::Expired {
                cause: WaitCause::Room,
            },
        ),
        (
            "pubsub-no-number",
            PublishError::Expired {
                cause: WaitCause::Sequence,
            },
        ),
        (
            "pubsub-backlog",
            PublishError::Backpressure {
                queued_bytes: 2_000_000,
            },
        ),
        ("pubsub-duplicate", PublishError::Duplicate),
    ] {
        let patience = Duration::from_secs(10);
        said.fail(fault, publish_fail(&topic, patience, &error));
    }
    let path = std::path::PathBuf::from("/srv/gemba/blocks/version");
    for (fault, error) in [
        (
            "store-locked",
            OpenError::LockHeld {
                path: path.clone(),
                pid: Some(4711),
            },
        ),
        (
            "store-version-damaged",
            OpenError::BadVersionFile(path.clone()),
        ),
        (
            "store-disk-refuses",
            OpenError::Io {
                path,
                source: disk(),
            },
        ),
    ] {
        said.fail(fault, open_fail(error));
    }
    let at: multiaddr::Multiaddr = "/ip4/192.0.2.20/tcp/4001".parse().unwrap();
    let ours = SwarmKey::generate().unwrap().fingerprint();
    for (fault, cause) in [
        (
            "peer-probably-wrong-key",
            DialCause::ProbablyWrongSwarmKey { ours },
        ),
        ("peer-not-private", DialCause::NotPrivate),
        (
            "peer-not-secured",
            DialCause::SecurityFailed("Noise gave up".into()),
        ),
        ("peer-reached-ourselves", DialCause::Ourselves),
        (
            "no-such-host",
            DialCause::NoSuchHost("press-7.plant".into()),
        ),
        ("peer-without-address", DialCause::NoAddress),
        ("dial-spared", DialCause::HostSpared),
        (
            "dial-over-limit",
            DialCause::Limit(LimitKind::PendingOutgoing),
        ),
        (
            "dial-failed",
            DialCause::Other("the dial was aborted".into()),
        ),
        (
            "dial-waits",
            DialCause::BackingOff {
                retry_in: Duration::from_secs(40),
                because: Box::new(DialCause::Unreachable),
            },
        ),
    ] {
        said.fail(fault, dial::fail(&at, &cause));
    }
    for (fault, cause) in [
        ("port-not-permitted", ListenCause::NotPermitted { port: 80 }),
        ("listen-malformed", ListenCause::Malformed(at.to_string())),
        (
            "listen-failed",
            ListenCause::Other("no buffer space available".into()),
        ),
    ] {
        said.fail(fault, listen::fail(&at, &cause));
    }
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    said.fail(
        "file-not-readable",
        gemba_node::error::Fail::io("/srv/parts.csv", &denied),
    );
    let read_only = std::io::Error::from(std::io::ErrorKind::ReadOnlyFilesystem);
    said.fail(
        "disk-read-only",
        gemba_node::error::Fail::io("/srv/out", &read_only),
    );
    let full = std::io::Error::from(std::io::ErrorKind::StorageFull);
    said.fail(
        "target-disk-full",
        gemba_node::error::Fail::io("/srv/out", &full),
    );
    said.trouble("pack-unreadable", unreadable_pack());
}

/// What `status` says of a pack that a disk did not read when its store was opened.
fn unreadable_pack() -> String {
    use gemba_testkit::disk::{Call, SimDisk};
    let sim = SimDisk::new(1);
    let open = || {
        let disk = std::sync::Arc::new(sim.clone());
        gemba_store::Store::open_on(disk, "/blocks", gemba_store::Config::default())
    };
    let block = gemba_block::Block::raw("content").unwrap();
    open().unwrap().put_many(&[block]).unwrap();
    let told = (1..20).find_map(|nth| {
        sim.fail(Call::Read, nth, 1);
        let store = open();
        sim.heal();
        let told = gemba_node::repo::unreadable_packs(&store.ok()?);
        Some(told.first()?.cause.clone())
    });
    told.unwrap()
}

/// What takes a failing disk or a hostile author, made of the causes that the log gives.
fn constructed_events(said: &mut Scene) {
    use gemba_log::{Author, Epoch, EventError, FeedId, HeadersError, LogError, OpenError};
    use gemba_node::log::transfer::EventsImported;
    use gemba_node::log::{fail, open_fail};
    let imported = EventsImported {
        refused: 2,
        why: Some("it comes too early".to_owned()),
        ..EventsImported::default()
    };
    said.fail("events-file-refused", imported.check().unwrap_err());
    let disk = || std::io::Error::from_raw_os_error(5);
    let feed = || FeedId {
        author: Author([7; 32]),
        stream: "hall-1/count".parse().unwrap(),
        epoch: Epoch(0),
    };
    for (fault, error) in [
        (
            "events-over-limit",
            LogError::NoSpace {
                needed: 4_096,
                used: 8 << 20,
                limit: 8 << 20,
            },
        ),
        (
            "events-disk-full",
            LogError::Full(std::sync::Arc::new(disk())),
        ),
        ("disk-refuses", LogError::Io(std::sync::Arc::new(disk()))),
        ("events-not-durable", LogError::Poisoned(disk().kind())),
        ("events-closed", LogError::Closed),
        (
            "event-old-number",
            LogError::OldProducer {
                id: "plc-7".into(),
                seq: 3,
                known: 900,
            },
        ),
        (
            "events-damaged-range",
            LogError::Damaged {
                feed: feed(),
                from: 3,
                to: 9,
            },
        ),
        (
            "events-trimmed",
            LogError::Trimmed {
                feed: feed(),
                low: 900,
            },
        ),
        ("feed-unknown", LogError::NoFeed(feed())),
        (
            "batch-too-early",
            LogError::Gap {
                feed: feed(),
                want: 3,
                got: 9,
            },
        ),
        (
            "batch-foreign",
            LogError::BadChain {
                feed: feed(),
                why: "its logical time is not later",
            },
        ),
        (
            "author-quota",
            LogError::Quota {
                feed: feed(),
                what: "bytes",
            },
        ),
        ("feed-at-end", LogError::Exhausted),
        ("events-writer-died", LogError::WriterDied),
        ("event-time", LogError::Event(EventError::Time)),
        (
            "event-pairs",
            LogError::Event(HeadersError::TooMany(70).into()),
        ),
        (
            "event-headers-large",
            LogError::Event(HeadersError::TooLarge(20_000).into()),
        ),
        ("event-number", LogError::Event(HeadersError::Number.into())),
    ] {
        said.fail(fault, fail(&error));
    }
    let path = std::path::PathBuf::from("/srv/gemba/log/events/version");
    for (fault, error) in [
        (
            "store-locked",
            OpenError::LockHeld {
                path: path.clone(),
                pid: Some(4711),
            },
        ),
        (
            "events-newer",
            OpenError::NewerFormat {
                path: path.clone(),
                found: 2,
                known: 1,
            },
        ),
        (
            "events-version-damaged",
            OpenError::BadVersionFile(path.clone()),
        ),
        (
            "events-foreign",
            OpenError::Foreign {
                path: path.clone(),
                cause: "it has another salt".into(),
            },
        ),
        (
            "store-disk-refuses",
            OpenError::Io {
                path,
                source: disk(),
            },
        ),
    ] {
        said.fail(fault, open_fail(&error));
    }
}
