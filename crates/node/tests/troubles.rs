//! What a daemon does when something is in its way: nobody has a block, the disk is full or lies, a client stops in the middle, the end.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use common::{Daemon, Done, Node, Swarm, address, http, id, noise, signal, status, until, wait};
use rustix::process::Signal;
use serde_json::Value;

/// A block that nobody has.
const ABSENT: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

fn spawn(node: &Node, args: &[&str]) -> Child {
    node.command(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn troubles(node: &Node, kind: &str) -> Vec<Value> {
    let all = status(node)["troubles"].as_array().unwrap().clone();
    all.into_iter().filter(|t| t["kind"] == kind).collect()
}

/// Whoever runs out of time is told the block, and what is known of it: what `why` tells.
#[test]
fn a_timeout_names_the_block_and_who_was_asked() {
    let swarm = Swarm::of(2);
    let b = swarm.node(1);
    for args in [
        &["cat", ABSENT][..],
        &["get", ABSENT],
        &["pin", "add", ABSENT],
    ] {
        let args = [args, &["--timeout", "1500ms", "--json"]].concat();
        let failure = b.fails_in_time(&args);
        assert!(
            failure.cause.contains(ABSENT)
                && failure.cause.contains("the only peer asked does not have"),
            "{args:?}: {failure:?}"
        );
        assert!(failure.hint.contains("gemba why"), "{args:?}: {failure:?}");
    }
    b.ok(&["pin", "rm", ABSENT]);
}

/// Without --timeout a read ends by itself when nobody has the block, after the time that the help names.
#[test]
fn a_read_without_a_limit_ends_as_the_help_says() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let help = node.ok(&["cat", "--help"]);
    assert!(help.contains("8 s") && help.contains("30 s"), "{help}");
    let begun = Instant::now();
    let failure = node.fails(&["cat", ABSENT], 3);
    let took = begun.elapsed();
    assert!(
        failure.cause.contains(ABSENT) && failure.cause.contains("no peer is connected"),
        "{failure:?}"
    );
    assert!(
        (Duration::from_secs(7)..Duration::from_secs(20)).contains(&took),
        "{took:?}"
    );
}

/// While a request is open, its caller can ask what it waits for.
#[test]
fn a_waiting_request_can_be_asked_after() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    assert_eq!(http(&node, "GET", "/v1/waiting/mine", headers).0, 404);
    let reading = std::thread::scope(|scope| {
        let reading = scope.spawn(|| {
            let named = format!("{headers}X-Request-Id: mine\r\nX-Gemba-Patience-Ms: 2000\r\n");
            http(&node, "GET", &format!("/v1/cat?path={ABSENT}"), &named)
        });
        until("the request waits", || {
            http(&node, "GET", "/v1/waiting/mine", headers).0 == 200
        });
        let (_, answer) = http(&node, "GET", "/v1/waiting/mine", headers);
        let waits: Value = serde_json::from_str(answer.split("\r\n\r\n").nth(1).unwrap()).unwrap();
        assert_eq!(
            (&waits["what"], &waits["name"]),
            (&"block".into(), &ABSENT.into())
        );
        assert!(
            waits["cause"]
                .as_str()
                .unwrap()
                .contains("no peer is connected"),
            "{waits}"
        );
        reading.join().unwrap()
    });
    assert_eq!(reading.0, 504, "{}", reading.1);
    assert_eq!(http(&node, "GET", "/v1/waiting/mine", headers).0, 404);
}

/// A full disk stops the fetching, is told in `status`, and what was acknowledged stays; with room it goes on by itself.
#[test]
fn a_full_disk_rests_the_pins_until_there_is_room() {
    let swarm = Swarm::of(1);
    let a = swarm.node(0);
    let content = noise(3, 40_000_000);
    let root = a.add(&a.write("big", &content), &[]);
    let b = Node::bare();
    let key = a.repo.join("swarm.key");
    b.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
    let kept = b.add(&b.write("small", "kept"), &[]);
    // Files cannot become larger than that: for whoever writes it is as if the disk were full.
    let daemon = limited_daemon(&b, &address(a), 12_000_000);
    let pinning = spawn(&b, &["pin", "add", &root, "--json"]);
    until("the trouble in status", || {
        !troubles(&b, "disk_full").is_empty()
    });
    let seen = status(&b);
    assert_eq!(seen["health"], "degraded", "{seen}");
    let failure = ended(pinning).fails(4);
    assert!(failure.cause.contains("cannot be stored"), "{failure:?}");
    let fetched = |node: &Node| status(node)["transfer"]["bytes_in"].as_u64().unwrap();
    assert!(b.run(&["cat", &kept]).stdout == b"kept");
    // What was under way may still come.
    let mut after = fetched(&b);
    until("rest, for a disk that is full", || {
        std::thread::sleep(Duration::from_millis(1500));
        std::mem::replace(&mut after, fetched(&b)) == after
    });
    assert!(after < content.len() as u64, "{after}");
    // Room again.
    let pid = rustix::process::Pid::from_raw(daemon.child.id() as i32);
    let unlimited = rustix::process::Rlimit {
        current: None,
        maximum: None,
    };
    rustix::process::prlimit(pid, rustix::process::Resource::Fsize, unlimited).unwrap();
    until("the rest", || {
        b.json(&["pin", "status", &root])["status"] == "pinned"
    });
    assert!(troubles(&b, "disk_full").is_empty());
    assert!(b.run(&["cat", &root]).stdout == content);
    assert!(b.run(&["cat", &kept]).stdout == b"kept");
    drop(daemon);
    b.ok(&["repo", "verify"]);
}

/// A daemon that can make no file larger than `bytes`, as long as nobody raises the limit.
fn limited_daemon(node: &Node, bootstrap: &str, bytes: u64) -> Daemon {
    let gemba = node.command(&[]);
    let program = gemba.get_program().to_str().unwrap();
    // The signal that comes with the limit is ignored, so that writes fail as on a full disk. The unit is 512 bytes.
    let script = format!(
        "trap '' XFSZ; ulimit -S -f {}; exec \"{program}\" \"$@\"",
        bytes / 512
    );
    let mut command = std::process::Command::new("sh");
    command
        .args([
            "-c",
            &script,
            "gemba",
            "--repo",
            node.repo.to_str().unwrap(),
        ])
        .args([
            "daemon",
            "--listen",
            "/ip4/127.0.0.1/tcp/0",
            "--api",
            "127.0.0.1:0",
        ])
        .args(["--no-mdns", "--bootstrap", bootstrap]);
    for (name, value) in gemba.get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let daemon = Daemon::of(command);
    until("a connection", || {
        status(node)["peers"].as_u64().unwrap() > 0
    });
    daemon
}

fn ended(child: Child) -> Done {
    let output = wait(child);
    Done::from_output("", output)
}

/// SIGTERM while a pin is followed: the daemon is gone at once, the caller is told, and the pin goes on at the next start.
#[test]
fn sigterm_ends_a_followed_pin_with_its_cause() {
    // A thread that waits on for a block is given up after 2 s, and would be each time; a busy machine takes so long now and then.
    let mut took = Vec::new();
    while took.len() < 3 && !took.iter().any(|took| *took < Duration::from_secs(2)) {
        took.push(ended_by_sigterm());
    }
    assert!(
        took.iter().any(|took| *took < Duration::from_secs(2)),
        "{took:?}"
    );
}

/// How long a daemon that is waited for takes to end.
fn ended_by_sigterm() -> Duration {
    let node = Node::new();
    node.ok(&["config", "set", "reads.nobody_has_it", "1m"]);
    let mut daemon = Daemon::start(&node, &[]);
    let pinning = spawn(&node, &["pin", "add", ABSENT, "--json"]);
    let reading = spawn(&node, &["cat", ABSENT, "--json"]);
    until("the pin", || {
        node.run(&["pin", "status", ABSENT]).status.success()
    });
    let stream = open_request(
        &node,
        "POST",
        "/v1/pins",
        &format!("{{\"cid\":\"{ABSENT}\"}}"),
    );
    let mut lines = BufReader::new(stream).lines();
    assert!(lines.any(|line| line.unwrap().contains("\"pinning\"")));
    // The reader has asked for its block: nobody knows from outside, but it waits a minute for it.
    std::thread::sleep(Duration::from_secs(1));
    let begun = Instant::now();
    signal(daemon.child.id(), Signal::TERM);
    assert!(daemon.child.wait().unwrap().success());
    let took = begun.elapsed();
    let last = lines
        .map_while(Result::ok)
        .filter(|line| line.starts_with('{'))
        .last()
        .unwrap();
    let last: Value = serde_json::from_str(&last).unwrap();
    assert_eq!(last["error"]["code"], "no_daemon", "{last}");
    assert_eq!(
        last["error"]["cause"],
        "the daemon is ending; the pin stays wanted"
    );
    let failure = ended(pinning).fails(5);
    assert!(
        failure
            .cause
            .contains("the daemon is ending; the pin stays wanted"),
        "{failure:?}"
    );
    let failure = ended(reading).fails(5);
    assert!(failure.cause.contains("the daemon"), "{failure:?}");
    assert_eq!(node.lines(&["pin", "ls"])[0]["cid"], ABSENT);
    took
}

/// A request whose answer is read by the caller.
fn open_request(node: &Node, method: &str, path: &str, body: &str) -> TcpStream {
    let mut stream = begin_request(node, method, path, body.len());
    stream.write_all(body.as_bytes()).unwrap();
    stream
}

/// The head of a request with a body of so many bytes.
fn begin_request(node: &Node, method: &str, path: &str, length: usize) -> TcpStream {
    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let (address, token) = (
        api["address"].as_str().unwrap(),
        api["token"].as_str().unwrap(),
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(30)))
        .unwrap();
    write!(
        stream,
        "{method} {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n\
         Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    )
    .unwrap();
    stream
}

/// A daemon that does not run on, stopped by a person or starved by the device, holds nobody longer than he said.
#[test]
fn a_stopped_daemon_is_told_in_time() {
    let node = Node::new();
    let daemon = Daemon::start(&node, &[]);
    let cid = node.add(&node.write("f", "x"), &[]);
    signal(daemon.child.id(), Signal::STOP);
    for args in [
        &["status"][..],
        &["cat", &cid],
        &["pin", "add", &cid],
        &["peers"],
    ] {
        let begun = Instant::now();
        let failure = node.fails(&[args, &["--timeout", "1s", "--json"]].concat(), 4);
        let took = begun.elapsed();
        assert!(
            failure.cause.contains("does not answer")
                && failure.cause.contains(&daemon.child.id().to_string())
                && failure.hint.contains("stopped"),
            "{args:?}: {failure:?}"
        );
        assert!(took < Duration::from_secs(3), "{args:?}: {took:?}");
    }
    signal(daemon.child.id(), Signal::CONT);
    node.ok(&["status"]);
    // Also in the middle of an answer.
    let begun = Instant::now();
    let waiting = [&["cat", ABSENT][..], &["pin", "add", ABSENT]]
        .map(|args| spawn(&node, &[args, &["--timeout", "8s", "--json"]].concat()));
    until("the wants", || {
        node.json(&["why", ABSENT])["wanted"] == true
            && node.run(&["pin", "status", ABSENT]).status.success()
    });
    signal(daemon.child.id(), Signal::STOP);
    for child in waiting {
        let failure = ended(child).fails(4);
        assert!(failure.cause.contains("does not answer"), "{failure:?}");
    }
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(14), "{took:?}");
    signal(daemon.child.id(), Signal::CONT);
}

/// What breaks off in the middle is the client's failure, and the answer says so.
#[test]
fn a_broken_upload_is_answered_with_400_and_its_cause() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let car = node.write("f", noise(1, 600_000));
    let root = node.add(&car, &[]);
    let archive = node.run(&["dag", "export", &root]).stdout;
    for (method, path, body) in [
        ("POST", "/v1/dag/import?pin_roots=true", &archive[..]),
        ("POST", "/v1/add", &[0; 1000]),
        ("PUT", "/v1/block", &[0; 1000]),
    ] {
        let mut stream = begin_request(&node, method, path, body.len());
        stream.write_all(&body[..body.len() / 2]).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{path}: {answer}");
        assert!(
            answer.contains("\"usage\"") || answer.contains("\"integrity\""),
            "{path}: {answer}"
        );
    }
    // What is whole and wrong is the client's failure, too.
    let mut wrong = archive.clone();
    *wrong.last_mut().unwrap() ^= 1;
    let mut stream = begin_request(&node, "POST", "/v1/dag/import", wrong.len());
    stream.write_all(&wrong).unwrap();
    let mut first = String::new();
    BufReader::new(stream).read_line(&mut first).unwrap();
    assert!(first.starts_with("HTTP/1.1 400"), "{first}");
    node.ok(&["status"]);
}

/// Whoever waits for a block gets it as soon as it is stored, by whatever way it came: another node's pin, and a reader of this one.
#[test]
fn what_is_stored_by_any_route_reaches_those_who_wait() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let other = Node::new();
    let block = other.put("raw", b"a block");
    let file = other.add(&other.write("file", "a file"), &[]);
    let folder = other.write("folder/inner", noise(9, 300_000));
    let archived = other.add(folder.parent().unwrap(), &[]);
    let car = other.run(&["dag", "export", &archived]).stdout;
    let mut waiting = Vec::new();
    for cid in [&block, &file, &archived] {
        waiting.push(spawn(b, &["pin", "add", cid, "--timeout", "30s"]));
        waiting.push(spawn(a, &["block", "get", cid, "--timeout", "30s"]));
    }
    until("the wants", || {
        [&block, &file, &archived].iter().all(|cid| {
            [a, b]
                .iter()
                .all(|node| node.json(&["why", cid])["wanted"] == true)
        })
    });
    let begun = Instant::now();
    assert_eq!(a.put("raw", b"a block"), block);
    assert_eq!(a.add(&a.write("file", "a file"), &[]), file);
    a.run_with_input(&["dag", "import", "-"], &car).ok();
    for child in waiting {
        let output = wait(child);
        assert!(
            output.status.success(),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    // Nobody had to ask again.
    let took = begun.elapsed();
    assert!(took < Duration::from_secs(8), "{took:?}");
}

/// Flips a bit of the largest pack, at so many percent of what is stored, under a daemon that has it open.
fn damage(node: &Node, percent: u64) {
    let pack = common::packs(&node.repo)
        .into_iter()
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .open(pack)
        .unwrap();
    // Files are extended ahead: a place in what was written.
    let at = status(node)["repo"]["bytes"].as_u64().unwrap() * percent / 100;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

/// A block that the disk gives back damaged is fetched from a peer while it is read, and stored anew.
#[test]
fn a_damaged_block_is_fetched_again_while_it_is_read() {
    let mut swarm = Swarm::of(2);
    let content = noise(5, 3_000_000);
    let root = swarm.node(0).add(&swarm.node(0).write("f", &content), &[]);
    let b = swarm.node(1);
    b.ok(&["pin", "add", &root]);
    damage(b, 50);
    assert!(b.run(&["cat", &root]).stdout == content);
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    until("the repair", || {
        http(b, "GET", "/metrics", headers)
            .1
            .contains("gemba_repaired_blocks_total 1")
    });
    assert!(troubles(b, "damaged_block").is_empty());
    // It is there without the others, and the pin is whole.
    swarm.nodes[0].1 = None;
    let b = swarm.node(1);
    assert!(b.run(&["cat", &root]).stdout == content);
    assert_eq!(b.json(&["pin", "status", &root])["status"], "pinned");
    // With nobody to ask it is damage, said as such, and it stays wanted until somebody comes who has it.
    damage(b, 10);
    let failure = b.fails(&["cat", &root, "--timeout", "2s"], 8);
    assert!(
        failure.cause.contains("damaged") || failure.cause.contains("checksum"),
        "{failure:?}"
    );
    assert_eq!(troubles(b, "damaged_block").len(), 1);
    assert_eq!(status(b)["health"], "degraded");
    let known = address(b);
    let daemon = Daemon::start(swarm.node(0), &["--bootstrap", &known]);
    swarm.nodes[0].1 = Some(daemon);
    let b = swarm.node(1);
    until("the repair", || troubles(b, "damaged_block").is_empty());
    assert!(b.run(&["cat", &root]).stdout == content);
    b.ok(&["repo", "verify"]);
}

/// A peer that asks for a damaged block does not get it, and the repair begins all the same.
#[test]
fn a_damaged_block_that_a_peer_asks_for_is_repaired() {
    let mut swarm = Swarm::of(3);
    let content = noise(6, 3_000_000);
    let root = swarm.node(0).add(&swarm.node(0).write("f", &content), &[]);
    swarm.node(1).ok(&["pin", "add", &root]);
    damage(swarm.node(0), 50);
    // The third knows only the damaged one at first; that one gets the block back from the second.
    let third = swarm.nodes.pop().unwrap();
    third.0.ok(&["pin", "add", &root, "--timeout", "30s"]);
    assert!(third.0.run(&["cat", &root]).stdout == content);
    until("the repair", || {
        swarm.node(0).run(&["repo", "verify"]).status.success()
    });
}

/// What is being received can be watched.
#[test]
fn receive_budgets_are_shown() {
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let root = a.add(&a.write("f", noise(8, 5_000_000)), &[]);
    b.ok(&["pin", "add", &root]);
    assert_eq!(b.lines(&["peers"])[0]["id"], id(a).as_str());
    until("quiet", || {
        let receiving = status(b)["receiving"].clone();
        ["unread_bytes", "exchange_bytes", "arriving_bytes"]
            .iter()
            .all(|name| receiving[name] == 0)
    });
    assert!(
        status(b)["receiving"]["unread_limit_bytes"]
            .as_u64()
            .unwrap()
            > 1 << 20
    );
    let headers = "Host: ADDRESS\r\nAuthorization: Bearer TOKEN\r\n";
    let (_, metrics) = http(b, "GET", "/metrics", headers);
    for name in [
        "gemba_receive_unread_bytes 0",
        "gemba_receive_unread_limit_bytes",
        "gemba_receive_exchange_bytes 0",
        "gemba_arriving_bytes 0",
    ] {
        assert!(metrics.contains(name), "{name}: {metrics}");
    }
}

/// What an `add` holds in memory does not grow with the file, and is given back.
#[test]
fn memory_of_an_add_is_bounded_and_given_back() {
    const MIB: u64 = 1 << 20;
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let path = node.path("big");
    let mut file = std::fs::File::create(&path).unwrap();
    for seed in 0..32 {
        file.write_all(&noise(seed, 8_000_000)).unwrap();
    }
    drop(file);
    let before = status(&node)["rss_bytes"].as_u64().unwrap();
    node.add(&path, &[]);
    let peak = status(&node)["rss_max_bytes"].as_u64().unwrap();
    assert!(peak < before + 26 * MIB, "{before}, then at most {peak}");
    until("what the add held is given back", || {
        status(&node)["rss_bytes"].as_u64().unwrap() < before + 10 * MIB
    });
}

/// Backpressure from end to end: a reader that is slower than the swarm and the disk, and stops now and then, has neither its own daemon nor the one
/// that serves hold what it did not take yet.
#[test]
fn a_reader_slower_than_the_swarm_costs_neither_daemon_memory() {
    const MIB: u64 = 1 << 20;
    let swarm = Swarm::of(2);
    let (a, b) = (swarm.node(0), swarm.node(1));
    let content: Vec<u8> = (0..12).flat_map(|seed| noise(seed, 8 << 20)).collect();
    let root = a.add(&a.write("big", &content), &[]);
    let before = [a, b].map(|node| status(node)["rss_bytes"].as_u64().unwrap());

    let mut stream = BufReader::new(open_request(b, "GET", &format!("/v1/cat?path={root}"), ""));
    let mut line = String::new();
    while line != "\r\n" {
        line.clear();
        assert!(stream.read_line(&mut line).unwrap() > 0);
    }
    let mut taken = vec![0; 1 << 20];
    let mut most = [0; 2];
    for _ in 0..8 {
        // A mebibyte, and then nothing for a while in which the swarm could bring all of it.
        stream.read_exact(&mut taken).unwrap();
        std::thread::sleep(Duration::from_millis(500));
        for (most, node) in most.iter_mut().zip([a, b]) {
            *most = status(node)["rss_bytes"].as_u64().unwrap().max(*most);
        }
    }
    for (before, most) in before.into_iter().zip(most) {
        assert!(most < before + 40 * MIB, "{before}, then at most {most}");
    }
    // What it took is what is there.
    let got = b.json(&["block", "stat", &root]);
    assert_eq!(got["cid"], root.as_str());
}

/// What a command shows on a terminal that is its standard error.
fn on_a_terminal(node: &Node, args: &[&str]) -> String {
    use rustix::pty;
    let flags = pty::OpenptFlags::RDWR | pty::OpenptFlags::NOCTTY;
    let controller = pty::openpt(flags).unwrap();
    pty::grantpt(&controller).unwrap();
    pty::unlockpt(&controller).unwrap();
    let name = pty::ptsname(&controller, Vec::new()).unwrap();
    let terminal = std::fs::File::options()
        .read(true)
        .write(true)
        .open(name.to_str().unwrap())
        .unwrap();
    let mut child = node
        .command(args)
        .env("TERM", "xterm")
        .stdout(Stdio::null())
        .stderr(terminal)
        .spawn()
        .unwrap();
    let mut controller = std::fs::File::from(controller);
    let (mut shown, mut some) = (Vec::new(), [0; 4096]);
    // The last handle on the other side is the child's: reading ends with it.
    while let Ok(length @ 1..) = controller.read(&mut some) {
        shown.extend_from_slice(&some[..length]);
    }
    let _status = child.wait().unwrap();
    String::from_utf8_lossy(&shown).into_owned()
}

/// Whoever looks at a terminal sees that it goes on, and what is waited for.
#[test]
fn progress_is_shown_on_a_terminal() {
    let node = Node::new();
    let cid = node.add(&node.write("f", noise(1, 20_000_000)), &[]);
    let car = node.write("car", node.run(&["dag", "export", &cid]).stdout);
    let car = car.to_str().unwrap();
    for daemon in [false, true] {
        let _daemon = daemon.then(|| Daemon::start(&node, &[]));
        for (args, doing) in [
            (&["cat", &cid][..], "reading"),
            (&["dag", "import", car], "importing"),
            (&["dag", "export", &cid], "exporting"),
        ] {
            let shown = on_a_terminal(&node, args);
            if daemon || doing != "exporting" {
                assert!(shown.contains(doing), "{args:?}: {shown}");
            }
        }
    }
    let _daemon = Daemon::start(&node, &[]);
    std::thread::scope(|scope| {
        for args in [&["cat", ABSENT][..], &["pin", "add", ABSENT]] {
            let node = &node;
            scope.spawn(move || {
                let shown = on_a_terminal(node, &[args, &["--timeout", "6s"]].concat());
                let before_the_end = shown.split("error: ").next().unwrap();
                assert!(
                    before_the_end.contains("no peer is connected"),
                    "{args:?}: {shown}"
                );
            });
        }
    });
}
