//! The HTTP form of the event log (specs/log-http.md), spoken as a gateway of a PLC speaks it: bytes over a socket, no library of gemba.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use common::{Daemon, Node, id, noise, signal, until, within};
use data_encoding::BASE64;
use futures::StreamExt as _;
use gemba_node::client::Client;
use gemba_node::error::Fail;
use gemba_node::log::wire::{EventAck, EventLine};
use gemba_node::repo::Layout;
use hyper::Method;
use rustix::process::Signal;
use serde_json::{Value, json};

const STREAM: &str = "hall-1/line-3/press-7/count";
const EVENTS: &str = "/v1/streams/hall-1%2Fline-3%2Fpress-7%2Fcount/events";
const NDJSON: &str = "application/x-ndjson";

/// An answer that came to its end.
#[derive(Debug)]
struct Answer {
    status: u16,
    body: String,
}

impl Answer {
    /// Its lines, each an object.
    fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{self:?}");
        let lines = self.body.lines();
        lines
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// Its one object.
    fn object(&self) -> Value {
        let mut lines = self.lines();
        assert_eq!(lines.len(), 1, "{self:?}");
        lines.remove(0)
    }

    /// The cause, where it has failed.
    fn cause(&self, status: u16) -> String {
        assert_eq!(self.status, status, "{self:?}");
        cause(&serde_json::from_str(&self.body).unwrap())
    }
}

fn cause(failure: &Value) -> String {
    let cause = failure["error"]["cause"].as_str();
    cause.unwrap_or_else(|| panic!("{failure}")).to_owned()
}

/// Sends a request; the stream from which the answer comes. HTTP/1.0: the body is what comes until the end.
fn send(node: &Node, method: &str, path: &str, headers: &str, body: &[u8]) -> BufReader<TcpStream> {
    let api: Value =
        serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
    let (address, token) = (
        api["address"].as_str().unwrap(),
        api["token"].as_str().unwrap(),
    );
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    let head = format!(
        "{method} {path} HTTP/1.0\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n{headers}Content-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    stream.write_all(body).unwrap();
    BufReader::new(stream)
}

/// The status of an answer; its headers are passed over.
fn status_of(answer: &mut BufReader<TcpStream>) -> u16 {
    let mut line = String::new();
    answer.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap().parse().unwrap();
    while line != "\r\n" {
        line.clear();
        answer.read_line(&mut line).unwrap();
    }
    status
}

fn call(node: &Node, method: &str, path: &str, kind: &str, body: &[u8]) -> Answer {
    let mut answer = send(
        node,
        method,
        path,
        &format!("Content-Type: {kind}\r\n"),
        body,
    );
    let status = status_of(&mut answer);
    let mut body = String::new();
    answer.read_to_string(&mut body).unwrap();
    Answer { status, body }
}

fn get(node: &Node, path: &str) -> Answer {
    call(node, "GET", path, "text/plain", b"")
}

fn post(node: &Node, path: &str, body: &Value) -> Answer {
    let body = body.to_string();
    call(node, "POST", path, "application/json", body.as_bytes())
}

/// Lines of text, each an event.
fn append(node: &Node, query: &str, lines: &str) -> Vec<Value> {
    let path = format!("{EVENTS}{query}");
    call(node, "POST", &path, "text/plain", lines.as_bytes()).lines()
}

fn text(event: &Value) -> String {
    let data = BASE64.decode(event["data"].as_str().unwrap().as_bytes());
    String::from_utf8(data.unwrap()).unwrap()
}

fn texts(events: &[Value]) -> Vec<String> {
    events.iter().map(text).collect()
}

fn seqs(lines: &[Value]) -> Vec<u64> {
    let seq = |line: &Value| line["seq"].as_u64().unwrap();
    lines.iter().map(seq).collect()
}

/// Somebody who is told events as they come.
struct Push(BufReader<TcpStream>);

impl Push {
    fn of(node: &Node, path: &str, last: Option<&str>) -> Self {
        let last = last.map(|last| format!("Last-Event-ID: {last}\r\n"));
        let headers = format!("Accept: text/event-stream\r\n{}", last.unwrap_or_default());
        let mut stream = send(node, "GET", path, &headers, b"");
        assert_eq!(status_of(&mut stream), 200);
        Self(stream)
    }

    /// The next event with its id. Comments, which tell that somebody is there, are passed over.
    fn next(&mut self) -> (String, Value) {
        let (mut place, mut data) = (String::new(), None);
        loop {
            let mut line = String::new();
            assert!(self.0.read_line(&mut line).unwrap() > 0, "it ended");
            let line = line.trim_end_matches('\n');
            if let Some(text) = line.strip_prefix("id: ") {
                place = text.to_owned();
            } else if let Some(text) = line.strip_prefix("data: ") {
                data = Some(serde_json::from_str(text).unwrap());
            } else if line.is_empty()
                && let Some(data) = data.take()
            {
                return (place, data);
            }
        }
    }
}

/// specs/log-http.md §2: lines of text or of JSON are events, and each is answered by a line when it is on disk. S3.58: nothing but HTTP.
#[test]
fn s3_58_a_gateway_appends_lines_and_each_is_acknowledged() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let acks = append(&node, "", "17\n18\n19");
    assert_eq!(seqs(&acks), [0, 1, 2]);
    let author = id(&node);
    for ack in &acks {
        assert_eq!(
            (ack["stream"].as_str(), ack["author"].as_str()),
            (Some(STREAM), Some(author.as_str()))
        );
    }

    let line = json!({
        "data": BASE64.encode(&[0, 255]),
        "time_ms": 1_700_000_000_000_i64,
        "headers": {
            "content_type": "application/octet-stream",
            "user": {"order": "A-17"},
            "site": "hall-1", "device": "press-7", "service": "gateway",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        },
    });
    let body = format!("{line}\n{}\n", json!({"text": "20"}));
    let acks = call(&node, "POST", EVENTS, NDJSON, body.as_bytes()).lines();
    assert_eq!(seqs(&acks), [3, 4]);
    // A picture, say: line ends are nothing special in it.
    let whole = call(
        &node,
        "POST",
        &format!("{EVENTS}?whole=true"),
        "image/bmp",
        b"a\nb\n",
    );
    assert_eq!(whole.object()["seq"].as_u64(), Some(5));

    let events = get(&node, EVENTS).lines();
    assert_eq!(seqs(&events), [0, 1, 2, 3, 4, 5]);
    let event = &events[3];
    for (name, value) in line["headers"].as_object().unwrap() {
        assert_eq!(&event["headers"][name], value, "{event}");
    }
    assert_eq!(
        (&event["data"], &event["time_ms"], &event["time"]),
        (
            &line["data"],
            &line["time_ms"],
            &json!("2023-11-14T22:13:20.000Z")
        )
    );
    assert_eq!(
        (text(&events[4]), text(&events[5])),
        ("20".into(), "a\nb\n".into())
    );
    let verified = post(&node, "/v1/log/verify", &json!({})).object();
    assert_eq!(
        (&verified["ok"], verified["events"].as_u64()),
        (&json!(true), Some(6))
    );
}

/// specs/log-http.md §2: what is before a line that is no event is stored and answered; the failure is the last line, or the status if it is the first.
#[test]
fn s3_58_a_line_that_is_no_event_ends_the_append_behind_those_before_it() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let body = b"{\"text\":\"1\"}\n{\"text\":\"2\"}\n{\"txet\":\"3\"}\n{\"text\":\"4\"}\n";
    let mut lines = call(&node, "POST", EVENTS, NDJSON, body).lines();
    let last = lines.pop().unwrap();
    assert!(cause(&last).contains("txet"), "{last}");
    assert_eq!(seqs(&lines), [0, 1]);
    let refused = call(&node, "POST", EVENTS, NDJSON, b"{\"txet\":\"3\"}\n");
    assert!(refused.cause(400).contains("no event"));
    assert_eq!(texts(&get(&node, EVENTS).lines()), ["1", "2"]);

    for (wrong, status) in [
        ("/v1/streams/a%20b/events", 400),
        ("/v1/streams/$dead%2Fx/events", 400),
        ("/v1/streams/x/events?class=slow", 400),
    ] {
        let refused = call(&node, "POST", wrong, "text/plain", b"1\n");
        assert!(!refused.cause(status).is_empty());
    }
    let large = vec![b'x'; (512 << 10) + 500];
    let path = format!("{EVENTS}?whole=true");
    let refused = call(&node, "POST", &path, "text/plain", &large);
    assert!(refused.cause(400).contains("524288"));
}

/// specs/log-http.md §3: whoever lost the answer sends the same lines under the same numbers, also to a daemon that was killed meanwhile.
#[test]
fn s3_18_s3_58_lines_that_are_sent_again_are_answered_with_their_first_places() {
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let numbered = |from: u64| format!("?producer=plc-7&producer_seq={from}");
    let first = append(&node, &numbered(10), "a\nb\nc\n");
    for round in 0..3 {
        let again = append(&node, &numbered(10), "a\nb\nc\n");
        assert_eq!(seqs(&again), seqs(&first));
        assert!(again.iter().all(|ack| ack["repeated"] == true), "{round}");
        daemon.child.kill().unwrap();
        daemon.child.wait().unwrap();
        daemon = Daemon::start(&node, &[]);
    }
    // Some of them are new: those are appended, the others are not.
    let mixed = append(&node, &numbered(12), "c\nd\n");
    assert_eq!(
        (&mixed[0]["repeated"], &mixed[1]["repeated"]),
        (&json!(true), &Value::Null)
    );
    // The numbers may stand in the lines, too.
    let line = json!({"text": "d", "headers": {"producer": "plc-7", "producer_seq": 13}});
    let ack = call(&node, "POST", EVENTS, NDJSON, line.to_string().as_bytes()).object();
    assert_eq!(ack["repeated"], true);
    let half = call(
        &node,
        "POST",
        EVENTS,
        NDJSON,
        b"{\"headers\":{\"producer\":\"x\"}}",
    );
    assert!(half.cause(400).contains("go together"));
    let events = get(&node, &format!("{EVENTS}?author={}", id(&node))).lines();
    assert_eq!(texts(&events), ["a", "b", "c", "d"]);
    assert_eq!(events[3]["headers"]["producer_seq"].as_u64(), Some(13));
}

/// specs/log-http.md §4: the same stream by ranges, by asking again, and pushed; whoever is cut off goes on where it was, as often as it happens.
#[test]
fn s3_48_s3_44_a_stream_is_read_in_ranges_polled_and_pushed_with_resume() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let other = "/v1/streams/hall-1%2Fline-3%2Fpress-8%2Fcount/events";
    append(&node, "", "0\n1\n2\n3\n");
    call(&node, "POST", other, "text/plain", b"other 0\nother 1\n").lines();

    // Ranges.
    let range = |query: &str| texts(&get(&node, &format!("{EVENTS}?{query}")).lines());
    assert_eq!(range("from=1&limit=2"), ["1", "2"]);
    assert_eq!(range("tail=1"), ["3"]);
    assert_eq!(range("since_ms=32503680000000"), [""; 0]);
    assert_eq!(range("since_ms=0&limit=1"), ["0"]);
    // Polling: behind the last event that was read.
    let all = get(&node, EVENTS).lines();
    let place = |event: &Value| {
        let field = |name: &str| event[name].as_str().unwrap();
        format!(
            "{} {}:{}:{}",
            field("stream"),
            field("author"),
            event["epoch"],
            event["seq"]
        )
    };
    let encoded = |text: &str| {
        let of = |byte: u8| match byte {
            b'/' | b' ' | b',' | b':' => format!("%{byte:02X}"),
            _ => char::from(byte).to_string(),
        };
        text.bytes().map(of).collect::<String>()
    };
    let after = format!("after={}", encoded(&place(&all[2])));
    assert_eq!(range(&after), ["3"]);

    // Pushed, over two streams.
    let both = "/v1/streams/hall-1%2Fline-3%2F%2B%2Fcount/events";
    let mut push = Push::of(&node, both, None);
    let mut told = Vec::new();
    let mut last = String::new();
    for _ in 0..6 {
        let (place, event) = push.next();
        (last, _) = (place, told.push(text(&event)));
    }
    told.sort();
    assert_eq!(told, ["0", "1", "2", "3", "other 0", "other 1"]);
    append(&node, "", "4\n");
    assert_eq!(text(&push.next().1), "4");
    // Cut off before 4 was seen; then again and again. What the other stream had is never told again, though nothing comes of it.
    drop(push);
    for n in 4..8 {
        let mut push = Push::of(&node, both, Some(&last));
        let (place, event) = push.next();
        assert_eq!(text(&event), n.to_string());
        last = place;
        drop(push);
        append(&node, "", &format!("{}\n", n + 1));
    }
    let polled = get(&node, &format!("{both}?after={}", encoded(&last))).lines();
    assert_eq!(texts(&polled), ["8"]);
    // Only what comes: a reader that begins at the end, and is cut off before anything came of one of its streams.
    let mut push = Push::of(&node, &format!("{both}?tail=0"), None);
    append(&node, "", "9\n");
    let (last, event) = push.next();
    assert_eq!(text(&event), "9");
    let mut push = Push::of(&node, both, Some(&last));
    call(&node, "POST", other, "text/plain", b"other 2\n").lines();
    assert_eq!(text(&push.next().1), "other 2");

    // Lines that do not end.
    let mut follow = send(
        &node,
        "GET",
        &format!("{EVENTS}?follow=true&from=9"),
        "",
        b"",
    );
    assert_eq!(status_of(&mut follow), 200);
    let mut next = || {
        let mut line = String::new();
        follow.read_line(&mut line).unwrap();
        text(&serde_json::from_str(&line).unwrap())
    };
    assert_eq!(next(), "9");
    append(&node, "", "10\n");
    assert_eq!(next(), "10");

    let refused = get(&node, &format!("{EVENTS}?after=here"));
    assert!(refused.cause(400).contains("no place"));
    let refused = get(&node, &format!("{EVENTS}?author=me"));
    assert!(refused.cause(400).contains("no author"));
}

/// specs/log-http.md §1: the catalogue, and what streams say of themselves.
#[test]
fn s3_6_s3_14_streams_are_described_and_listed_over_http() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let about = "/v1/streams/hall-1%2Fline-3%2Fpress-7%2Fcount/about";
    assert_eq!(get(&node, about).object(), json!({}));
    append(&node, "", "1\n2\n");
    call(&node, "POST", "/v1/streams/x/events", "text/plain", b"1\n").lines();
    post(&node, about, &json!({"meaning": "pieces pressed"})).object();
    let whole = post(&node, about, &json!({"unit": "pieces"})).object();
    assert_eq!(
        whole,
        json!({"meaning": "pieces pressed", "unit": "pieces"})
    );
    assert_eq!(get(&node, about).object(), whole);
    let listed = get(&node, "/v1/streams?pattern=hall-1%2F%23").object();
    assert_eq!(
        (
            &listed["stream"],
            &listed["about"],
            listed["events"].as_u64()
        ),
        (&json!(STREAM), &whole, Some(2))
    );
    assert_eq!(listed["authors"], json!([id(&node)]));
    assert!(listed["rate"].as_f64().unwrap() > 0.0 && listed["last"].is_string());
    assert_eq!(get(&node, "/v1/streams").lines().len(), 2);
    post(&node, about, &json!({"class": "slow"})).cause(400);
}

/// specs/log-http.md §2, S3.54: events of the fast class are taken without waiting for the disk, and are read a moment later.
#[test]
fn s3_54_events_of_the_fast_class_are_taken_and_written_soon() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let taken = append(&node, "?class=fast", "1\n2\n3\n");
    let count: u64 = taken
        .iter()
        .map(|line| line["taken"].as_u64().unwrap())
        .sum();
    assert_eq!((count, &taken[0]["class"]), (3, &json!("fast")));
    until("they are written", || {
        texts(&get(&node, EVENTS).lines()) == ["1", "2", "3"]
    });
    // A stream may say so for all of its events; a writer may ask for more.
    let about = "/v1/streams/hall-1%2Fline-3%2Fpress-7%2Fcount/about";
    post(&node, about, &json!({"class": "fast"})).object();
    assert_eq!(append(&node, "", "4\n")[0]["class"], "fast");
    let durable = append(&node, "?class=durable", "5\n");
    assert!(durable[0]["seq"].is_u64(), "{durable:?}");
}

/// specs/log-http.md §2: with no room left an append says so in words, what was acknowledged stays, and reading goes on.
#[test]
fn s3_34_a_log_that_is_full_refuses_appends_in_words_and_is_read_on() {
    let node = Node::new();
    node.ok(&["config", "set", "events.max_size", "16MiB"]);
    let _daemon = Daemon::start(&node, &[]);
    let path = format!("{EVENTS}?whole=true");
    let mut acked = 0;
    let refused = loop {
        let payload = noise(acked, 200 << 10);
        let answer = call(&node, "POST", &path, "application/octet-stream", &payload);
        if answer.status != 200 {
            break answer;
        }
        assert_eq!(answer.object()["seq"].as_u64(), Some(acked));
        acked += 1;
        assert!(acked < 100, "16 MiB hold 20 MB");
    };
    assert!(acked > 3, "{refused:?}");
    assert!(refused.cause(500).contains("the log may take"));
    let events = get(&node, EVENTS).lines();
    assert_eq!(events.len() as u64, acked);
    for (event, n) in events.iter().zip(0..) {
        let data = BASE64.decode(event["data"].as_str().unwrap().as_bytes());
        assert_eq!(data.unwrap(), noise(n, 200 << 10));
    }
    // A consumer whose dead letter finds no room says what to do about it, too.
    let consume = ["log", "consume", "hall-1/#", "--consumer", "work", "--exec"];
    let more = ["exit 1", "--attempts", "1", "--drain"];
    let refused = node.fails(&[&consume[..], &more].concat(), 1);
    assert!(refused.hint.contains("events.max_size"), "{refused:?}");
}

fn claim(node: &Node, consumer: &str, worker: u64, more: &Value) -> Answer {
    let mut request = json!({"worker": worker, "streams": ["hall-1/#"]});
    for (name, value) in more.as_object().unwrap() {
        request[name] = value.clone();
    }
    post(node, &format!("/v1/consumers/{consumer}/claim"), &request)
}

/// specs/log-http.md §5: the total is kept in the transaction of the acknowledgement; workers and daemon are killed between work and acknowledgement.
/// Whoever comes next has the right total, and every piece counts once.
#[test]
fn s3_22_s3_27_a_total_kept_with_the_acknowledgement_is_right_after_every_kill() {
    let node = Node::new();
    let mut daemon = Daemon::start(&node, &[]);
    let pieces: Vec<u64> = (1..=60).collect();
    let lines: String = pieces.iter().map(|n| format!("{n}\n")).collect();
    append(&node, "", &lines);
    let ack = |request: Value| post(&node, "/v1/consumers/total/ack", &request);
    let mut round = 0;
    let mut total = 0;
    let is_done = |node: &Node| get(node, "/v1/consumers/total").object()["lag"] == 0;
    while round == 0 || !is_done(&node) {
        round += 1;
        assert!(round < 200, "no end: {total}");
        // Each worker is another one; the one before may be dead with its claim.
        let claimed = claim(
            &node,
            "total",
            round,
            // Short, since the next worker waits for it. It is over before many an acknowledgement, which counts all the same: nobody has asked meanwhile.
            &json!({"batch": 8, "lease_ms": 100, "wait_ms": 10_000}),
        )
        .object();
        let events = claimed["events"].as_array().unwrap().clone();
        let last = events.last().unwrap();
        let before = claimed["state"].as_u64().unwrap_or(0);
        assert_eq!(before, total, "what was kept is not what was acknowledged");
        let sum: u64 = texts(&events)
            .iter()
            .map(|text| text.parse::<u64>().unwrap())
            .sum();
        match round % 10 {
            // It dies before it acknowledges: its lease runs out.
            1 | 6 => continue,
            // The daemon dies before.
            2 => {
                daemon.child.kill().unwrap();
                daemon.child.wait().unwrap();
                daemon = Daemon::start(&node, &[]);
                continue;
            }
            _ => {}
        }
        total = before + sum;
        let request = json!({"token": claimed["token"], "seq": last["seq"], "state": total});
        assert_eq!(ack(request).object(), json!({"ok": true}));
        if round % 10 == 3 {
            // The daemon dies right behind the acknowledgement.
            daemon.child.kill().unwrap();
            daemon.child.wait().unwrap();
            daemon = Daemon::start(&node, &[]);
        }
    }
    assert_eq!(total, pieces.iter().sum::<u64>());
    let view = get(&node, "/v1/consumers/total").object();
    assert_eq!(
        (view["lag"].as_u64(), view["feeds"][0]["state"].as_u64()),
        (Some(0), Some(total))
    );
    assert_eq!(
        get(&node, "/v1/consumers").object()["streams"],
        json!(["hall-1/#"])
    );
    // What is larger than it may be is refused, and nothing is acknowledged with it.
    append(&node, "", "1\n");
    let claimed = claim(&node, "total", 999, &json!({"wait_ms": 5_000})).object();
    let large = json!({"token": claimed["token"], "seq": 60, "state": "x".repeat(70_000)});
    assert!(ack(large).cause(400).contains("65536"));
    assert_eq!(
        get(&node, "/v1/consumers/total").object()["lag"].as_u64(),
        Some(1)
    );
}

/// specs/log-http.md §5: a claim that is over acknowledges nothing, so a worker that was slow cannot undo what came after it.
#[test]
fn s3_27_s3_58_claims_are_renewed_left_and_end() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n3\n");
    let to = |what: &str| format!("/v1/consumers/work/{what}");
    assert!(
        get(&node, "/v1/consumers/work")
            .cause(404)
            .contains("no consumer work")
    );
    let lease = json!({"lease_ms": 3_000});
    let first = claim(&node, "work", 1, &lease).object();
    assert_eq!(texts(first["events"].as_array().unwrap()), ["1", "2", "3"]);
    // Nobody else is given them. Whoever lost the answer, or was started anew under its number, has them again, and never those behind
    // them, with which it would acknowledge what nobody worked on.
    let none = claim(&node, "work", 2, &lease).object();
    assert_eq!(none["events"], json!([]));
    append(&node, "", "4\n");
    let again = claim(&node, "work", 1, &lease).object();
    assert_eq!(again["events"][0]["seq"].as_u64(), Some(0));
    let old = json!({"token": first["token"], "seq": 2});
    assert!(post(&node, &to("ack"), &old).cause(409).contains("over"));
    let token = again["token"].clone();
    for _ in 0..4 {
        std::thread::sleep(Duration::from_millis(1_000));
        let renewed = post(&node, &to("renew"), &json!({"token": token}));
        assert_eq!(renewed.object(), json!({"ok": true}));
    }
    // A wrong place changes nothing.
    post(&node, &to("ack"), &json!({"token": token, "seq": 7})).cause(400);
    post(&node, &to("ack"), &json!({"token": token, "seq": 0})).object();
    // It ends in order: the rest goes to another at once.
    post(&node, &to("leave"), &json!({"worker": 1})).object();
    let second = claim(&node, "work", 2, &json!({"wait_ms": 5_000})).object();
    let events = second["events"].as_array().unwrap();
    // What has come since may be in this portion or in the next one.
    let seen = texts(events);
    assert_eq!(seen[..2], ["2", "3"]);
    let over = post(&node, &to("ack"), &json!({"token": token, "seq": 2}));
    assert!(over.cause(409).contains("over"));
    let done = |portion: &Value| {
        let last = portion["events"].as_array().unwrap().last().unwrap()["seq"].clone();
        post(
            &node,
            &to("ack"),
            &json!({"token": portion["token"], "seq": last}),
        )
        .object();
    };
    done(&second);
    if seen.len() == 2 {
        let third = claim(&node, "work", 2, &json!({"wait_ms": 5_000})).object();
        assert_eq!(texts(third["events"].as_array().unwrap()), ["4"]);
        done(&third);
    }
    let view = get(&node, "/v1/consumers/work").object();
    assert_eq!(view["lag"].as_u64(), Some(0), "{view}");
    post(&node, &to("leave"), &json!({"worker": 2})).object();

    // Moved: to the start, to one event, to a time, to the end.
    let seek = |request: Value| post(&node, &to("seek"), &request);
    assert_eq!(
        seek(json!({"to": "start"})).object()["lag"].as_u64(),
        Some(4)
    );
    let event = format!("{}:0:2", id(&node));
    let there = seek(json!({"stream": STREAM, "event": event})).object();
    assert_eq!(there["feeds"][0]["next"].as_u64(), Some(2));
    assert_eq!(
        seek(json!({"time_ms": 0})).object()["lag"].as_u64(),
        Some(4)
    );
    assert_eq!(
        seek(json!({"to": "tail"})).object()["lag"].as_u64(),
        Some(0)
    );
    seek(json!({"to": "start", "time_ms": 0})).cause(400);
    // Another consumer of this name would mean other streams.
    let other = json!({"worker": 3, "streams": ["x"]});
    assert!(
        post(&node, &to("claim"), &other)
            .cause(409)
            .contains("reads hall-1/#")
    );
    // A claim waits for what comes.
    let waiting = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| claim(&node, "work", 4, &json!({"wait_ms": 30_000})).object());
        std::thread::sleep(Duration::from_millis(200));
        append(&node, "", "5\n");
        waiting.join().unwrap()
    });
    assert_eq!(texts(waiting["events"].as_array().unwrap()), ["5"]);
}

/// specs/log-http.md §6: what fails again and again goes aside with its cause, and is tried again or dropped; the others are not held up.
#[test]
fn s3_53_what_is_refused_comes_again_and_becomes_a_dead_letter() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "good\nbad\nworse\ngood\n");
    let to = |what: &str| format!("/v1/consumers/work/{what}");
    let mut done = Vec::new();
    let mut work = |fails: &[&str]| {
        until("all of them are done or dead", || {
            let claimed = claim(&node, "work", 1, &json!({"attempts": 2, "wait_ms": 200})).object();
            for event in claimed["events"].as_array().unwrap() {
                let mut request = json!({"token": claimed["token"], "seq": event["seq"]});
                if fails.contains(&text(event).as_str()) {
                    let tries = event["attempts"].as_u64().unwrap() + 1;
                    request["refused"] = json!(format!("no room, try {tries}"));
                } else {
                    done.push(text(event));
                }
                post(&node, &to("ack"), &request).object();
            }
            let view = get(&node, "/v1/consumers/work").object();
            let waiting = view["feeds"][0]["waiting"].as_u64();
            (view["lag"].as_u64(), waiting) == (Some(0), Some(0))
        });
    };
    work(&["bad", "worse"]);
    let letters = get(&node, &to("dead")).lines();
    let what: Vec<(String, &str, u64)> = letters
        .iter()
        .map(|letter| {
            (
                text(letter),
                letter["cause"].as_str().unwrap(),
                letter["attempts"].as_u64().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        what,
        [
            ("bad".to_owned(), "no room, try 2", 2),
            ("worse".to_owned(), "no room, try 2", 2)
        ]
    );
    post(&node, &to("dead/drop"), &json!({"id": letters[1]["id"]})).object();
    post(&node, &to("dead/retry"), &json!({"id": letters[0]["id"]})).object();
    work(&[]);
    assert_eq!(done, ["good", "good", "bad"]);
    assert!(get(&node, &to("dead")).lines().is_empty());
    let unknown = post(&node, &to("dead/drop"), &json!({"id": letters[0]["id"]}));
    assert!(unknown.cause(404).contains("no dead letter"));
}

/// A worker of the command line that is ended in the middle of an event gives back what it holds: the next one has it at once, not when the lease of
/// 30 s is over.
#[test]
fn s3_27_a_command_that_is_ended_leaves_its_consumer() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n");
    for (name, ended, more) in [
        ("interrupted", Some(Signal::INT), &[][..]),
        ("terminated", Some(Signal::TERM), &[]),
        ("late", None, &["--timeout", "2s"]),
    ] {
        let begun = node.path(name);
        let handler = format!("touch {}; sleep 4", begun.display());
        let consume = ["log", "consume", "hall-1/#", "--consumer", name, "--exec"];
        let worker = node
            .command(&[&consume[..], &[&handler], more].concat())
            .spawn();
        let mut worker = worker.unwrap();
        if let Some(ended) = ended {
            until("the handler runs", || begun.exists());
            signal(worker.id(), ended);
        }
        let status = worker.wait().unwrap();
        assert_eq!(status.code(), Some(if ended.is_some() { 130 } else { 4 }));
        let claimed = claim(&node, name, 7, &json!({})).object();
        assert_eq!(
            texts(claimed["events"].as_array().unwrap()),
            ["1", "2"],
            "{name}"
        );
    }
}

/// LH-2, LH-3: a name that is not known has no silent effect, and whatever cannot be read is refused in the one form of failures.
#[test]
fn s3_58_requests_that_cannot_be_read_are_refused_in_words() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n");
    let events = "/v1/streams/hall-1%2Fcount/events";
    for query in [
        "form=1",
        "from=abc",
        "limit=-1",
        "follow=maybe",
        "from=1&from=2",
    ] {
        let refused = get(&node, &format!("{events}?{query}"));
        assert!(refused.cause(400).contains("cannot be read"), "{query}");
    }
    get(&node, "/v1/streams?patern=x").cause(400);
    call(&node, "POST", &format!("{events}?clas=fast"), "", b"1\n").cause(400);
    for (path, body) in [
        ("claim", json!({})),
        ("claim", json!({"worker": 1, "streams": ["x"], "wait": 5})),
        ("claim", json!({"worker": "one", "streams": ["x"]})),
        ("ack", json!({"token": 1})),
        ("renew", json!({"token": 1, "seq": 1})),
        ("leave", json!({"worker": 1, "token": 1})),
        ("seek", json!({"to": "start", "author": "x"})),
        ("dead/drop", json!({"id": "x", "of": "x"})),
    ] {
        let refused = post(&node, &format!("/v1/consumers/work/{path}"), &body);
        assert!(
            refused.cause(400).contains("cannot be read"),
            "{path} {body}"
        );
    }
    let claim = "/v1/consumers/work/claim";
    for (kind, body) in [("", &b"{\"worker\":1}"[..]), ("application/json", b"{")] {
        call(&node, "POST", claim, kind, body).cause(400);
    }
    assert!(
        call(&node, "PUT", claim, "", b"")
            .cause(404)
            .contains("the API has no PUT")
    );
    assert_eq!(get(&node, "/v1/consumers").lines().len(), 0);
}

/// specs/log-http.md §5: a number that would mean something else than was asked for is refused, by its name, with what may be. A most that is above what there is
/// counts as that.
#[test]
fn s3_58_numbers_out_of_range_are_refused_by_their_names() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n");
    for (field, given, bounds) in [
        ("worker", json!(1_u64 << 53), "from 0 to 9007199254740991"),
        ("attempts", json!(0), "from 1 to 4294967295"),
        ("lease_ms", json!(99), "from 100 to 3600000"),
        ("lease_ms", json!(3_600_001), "from 100 to 3600000"),
        ("batch", json!(0), "from 1 to 4294967295"),
    ] {
        let mut more = json!({});
        more[field] = given.clone();
        let cause = claim(&node, "work", 1, &more).cause(400);
        let words = format!("{field} is {given}, and may be {bounds}");
        assert!(cause.contains(&words), "{cause}");
    }
    let many = json!({"streams": vec!["x"; 1_025]});
    assert!(claim(&node, "work", 1, &many).cause(400).contains("1024"));
    // Nothing of it made a consumer.
    assert_eq!(get(&node, "/v1/consumers").lines().len(), 0);
    for (n, more) in [
        json!({"lease_ms": 100, "attempts": 1, "batch": 1}),
        json!({"lease_ms": 3_600_000, "attempts": u32::MAX, "batch": 1_024, "wait_ms": 60_000}),
        json!({"batch": 5_000, "wait_ms": 600_000}),
    ]
    .iter()
    .enumerate()
    {
        let name = format!("good-{n}");
        let claimed = claim(&node, &name, 1, more).object();
        assert_ne!(claimed["events"], json!([]), "{more}");
    }

    // Numbers of a producer end: they do not begin anew at 0.
    let path = format!("{EVENTS}?producer=plc&producer_seq={}", u64::MAX);
    let refused = call(&node, "POST", &path, "", b"a\nb\nc\n");
    assert!(refused.cause(400).contains("2^53 - 1"));
    let path = format!("{EVENTS}?producer=plc&producer_seq={}", (1_u64 << 53) - 1);
    let lines = call(&node, "POST", &path, "", b"a\nb\n").lines();
    assert_eq!(lines[0]["seq"].as_u64(), Some(2));
    assert!(
        lines[1]["error"]["cause"]
            .as_str()
            .unwrap()
            .contains("2^53 - 1")
    );
    assert_eq!(get(&node, EVENTS).lines().len(), 3);
    let far = format!("{}:0:{}", lines[0]["author"].as_str().unwrap(), u64::MAX);
    let seek = json!({"stream": lines[0]["stream"], "event": far});
    let refused = post(&node, "/v1/consumers/good-0/seek", &seek);
    assert!(refused.cause(400).contains("is no event"));
}

/// LH-31: a place that cannot be read is refused, whatever bytes it is made of. One that was no text was passed over, and its reader told everything again.
#[test]
fn s3_48_a_last_event_id_that_is_no_text_is_refused() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n");
    for id in [
        "hall-1/count \u{e4}:0:1",
        "\t",
        "x",
        ",",
        "hall-1/count a:0:1@b",
    ] {
        let headers = format!("Accept: text/event-stream\r\nLast-Event-ID: {id}\r\n");
        let path = format!("{EVENTS}?limit=2");
        let mut answer = send(&node, "GET", &path, &headers, b"");
        assert_eq!(status_of(&mut answer), 400, "{id:?}");
    }
}

/// A counter that ends before it has acknowledged, here since somebody else works under the name, gives back what it holds: nobody waits for its lease.
#[test]
fn s3_27_a_counter_that_ends_leaves_its_consumer() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n");
    let lease = json!({"lease_ms": 3_600_000});
    let held = claim(&node, "odd", 1, &lease).object();
    let ack = json!({"token": held["token"], "seq": 0, "state": {"pieces": 2}});
    post(&node, "/v1/consumers/odd/ack", &ack).object();
    post(&node, "/v1/consumers/odd/leave", &json!({"worker": 1})).object();
    append(&node, "", "2\n");
    let count = ["log", "count", "hall-1/#", "--consumer", "odd"];
    let refused = node.fails(&count, 7);
    assert!(
        refused.cause.contains("something else than a count"),
        "{refused:?}"
    );
    let claimed = claim(&node, "odd", 2, &json!({})).object();
    assert_eq!(texts(claimed["events"].as_array().unwrap()), ["2"]);
}

/// specs/log-http.md §4: readers that follow are bounded in number, in words; whoever ends gives his place back, also where nothing comes.
#[test]
fn readers_that_follow_are_bounded_and_give_back_when_they_end() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n");
    let follow = format!("{EVENTS}?follow=true");
    // Pushed events and lines by turns.
    let accepts = ["Accept: text/event-stream\r\n", ""];
    let begin = |n: usize| {
        let mut stream = send(&node, "GET", &follow, accepts[n % 2], b"");
        (status_of(&mut stream) == 200).then_some(stream)
    };
    let mut open: Vec<_> = (0..64).map(|n| begin(n).unwrap()).collect();
    let refused = get(&node, &follow);
    assert!(refused.cause(409).contains("64 readers follow"));
    // Whoever reads what is there is not counted.
    assert_eq!(get(&node, EVENTS).lines().len(), 1);
    for n in [0, 1] {
        drop(open.remove(n));
        until("a place is given back", || {
            let began = begin(n);
            let is_there = began.is_some();
            open.extend(began);
            is_there
        });
    }
    // All of them go at once, and as many come again.
    open.clear();
    until("all places are given back", || {
        open.extend(begin(open.len()));
        open.len() == 64
    });
    assert_eq!(get(&node, &follow).status, 409);
}

/// specs/log-http.md §5: claims that wait are bounded in number, and refused in words at once beyond it; whoever goes away while he waits gives his place back, and
/// an event goes to one of those who stay. A claim that waits sends nothing before it is over, not even a status.
#[test]
fn s3_29_claims_that_wait_are_bounded_and_give_back_when_their_clients_go() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    let wait = |worker: u64| {
        let request = json!({"worker": worker, "streams": ["hall-1/#"], "wait_ms": 60_000});
        let kind = "Content-Type: application/json\r\n";
        let body = request.to_string();
        let path = "/v1/consumers/many/claim";
        send(&node, "POST", path, kind, body.as_bytes())
    };
    let answered = |stream: &BufReader<TcpStream>| {
        let stream = stream.get_ref();
        stream.set_nonblocking(true).unwrap();
        let came = stream.peek(&mut [0]).is_ok();
        stream.set_nonblocking(false).unwrap();
        came
    };
    // It needs a place, too, and is over at once either way.
    let probe = || claim(&node, "many", 1_000, &json!({"wait_ms": 1}));
    let full = "96 workers wait";
    let is_full = || {
        let answer = probe();
        answer.status == 409 && answer.body.contains(full)
    };
    let mut workers = 0;
    // One of them may be refused while the question has the last place, or have waited long enough: another one comes instead.
    let mut fill = |open: &mut Vec<_>| {
        let mut answer = probe();
        until("96 wait", || {
            open.retain(|stream| !answered(stream));
            while open.len() < 96 {
                workers += 1;
                open.push(wait(workers));
            }
            answer = probe();
            answer.status == 409 && answer.body.contains(full)
        });
        answer
    };
    let soon = Duration::from_secs(30);

    // It is there before all of them ask for it at once.
    assert_eq!(claim(&node, "many", 1_000, &json!({})).status, 200);
    let mut open = Vec::new();
    let refused = fill(&mut open);
    assert!(refused.cause(409).contains(full));
    let refused: Value = serde_json::from_str(&refused.body).unwrap();
    let hint = refused["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("wait_ms"), "{hint}");
    // Whoever does not wait needs no place.
    let polled = claim(&node, "many", 1_000, &json!({}));
    assert_eq!(polled.object()["events"], json!([]));

    // One goes, and then all at once.
    open.pop();
    assert!(within(soon, || !is_full()), "one place is given back");
    open.clear();
    assert!(within(soon, || !is_full()), "places are given back");
    fill(&mut open);

    // One event is one answer. Who has it holds its feed: the others wait on.
    append(&node, "", "17\n");
    let mut told = 0;
    until("somebody is told of an event", || {
        let (over, waiting): (Vec<_>, Vec<_>) = open.drain(..).partition(&answered);
        open = waiting;
        for mut stream in over {
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            told += usize::from(answer.contains(&BASE64.encode(b"17")));
        }
        told > 0
    });
    assert!(within(soon, || !is_full()), "who is answered waits no more");
    assert_eq!(told, 1);
}

/// specs/log-http.md §5: a consumer is forgotten; not while somebody works for it, unless that is said, and who waits for its events learns of it.
#[test]
fn l11_a_consumer_is_forgotten_over_http() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n");
    let delete = |query: &str| {
        let path = format!("/v1/consumers/pieces{query}");
        call(&node, "DELETE", &path, "text/plain", b"")
    };
    assert!(delete("").cause(404).contains("no consumer pieces"));
    let held = claim(&node, "pieces", 1, &json!({"wait_ms": 0})).object();
    assert!(delete("").cause(409).contains("in use"));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| claim(&node, "pieces", 2, &json!({"wait_ms": 60_000})));
        until("a worker waits", || {
            delete("").cause(409).contains("wait for events")
        });
        let ack = json!({"token": held["token"], "seq": 1});
        assert_eq!(post(&node, "/v1/consumers/pieces/ack", &ack).status, 200);
        assert!(delete("").cause(409).contains("wait for events"));
        assert_eq!(delete("?force=true").object()["ok"], true);
        assert!(waiting.join().unwrap().cause(404).contains("no consumer"));
    });
    assert!(get(&node, "/v1/consumers").body.is_empty());
    // One of its name begins anew.
    let anew = claim(&node, "pieces", 1, &json!({})).object();
    assert_eq!(seqs(anew["events"].as_array().unwrap()), [0, 1]);
    // A worker that has acknowledged all holds nothing, although its lease lasts on.
    let ack = json!({"token": anew["token"], "seq": 1});
    assert_eq!(post(&node, "/v1/consumers/pieces/ack", &ack).status, 200);
    assert_eq!(delete("").object()["ok"], true);
}

/// S3.29: a worker elsewhere reads on without acknowledging what it has, and one acknowledgement is for all.
#[test]
fn s3_29_a_worker_reads_on_over_http() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n3\n4\n5\n");
    let mut claimed = claim(&node, "pieces", 1, &json!({"batch": 2})).object();
    let mut read = seqs(claimed["events"].as_array().unwrap());
    while read.len() < 5 {
        let on = json!({"read_on": claimed["token"], "wait_ms": 10_000});
        claimed = claim(&node, "pieces", 1, &on).object();
        read.extend(seqs(claimed["events"].as_array().unwrap()));
    }
    assert_eq!(read, [0, 1, 2, 3, 4]);
    let lag = || get(&node, "/v1/consumers/pieces").object()["lag"].clone();
    assert_eq!(lag(), 5);
    let ack = json!({"token": claimed["token"], "seq": 4});
    assert_eq!(post(&node, "/v1/consumers/pieces/ack", &ack).status, 200);
    assert_eq!(lag(), 0);
    let over = json!({"read_on": claimed["token"]});
    assert!(claim(&node, "pieces", 1, &over).cause(409).contains("over"));
}

/// specs/log-http.md §5: a request that reads on waits longer than the lease lasts. What the worker has in hands stays its own: it is given nothing twice, and
/// acknowledges it behind the wait.
#[test]
fn s3_29_a_worker_that_waits_to_read_on_keeps_what_it_has() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "1\n2\n");
    // A machine that stood still for as long as the lease lasts ends it, which says nothing of the wait: then once more.
    for round in 0..10 {
        let name = format!("pieces-{round}");
        let held = claim(&node, &name, 1, &json!({"lease_ms": 1_000})).object();
        assert_eq!(seqs(held["events"].as_array().unwrap()), [0, 1]);
        let on = json!({"read_on": held["token"], "wait_ms": 2_500});
        let waited = claim(&node, &name, 1, &on);
        if waited.status == 409 {
            continue;
        }
        let events = waited.object()["events"].clone();
        assert_eq!(events, json!([]), "they are in its hands");
        let ack = json!({"token": held["token"], "seq": 1, "state": 2});
        let acked = post(&node, &format!("/v1/consumers/{name}/ack"), &ack);
        if acked.status == 409 {
            continue;
        }
        let view = get(&node, &format!("/v1/consumers/{name}")).object();
        assert_eq!(
            (&view["lag"], &view["feeds"][0]["state"]),
            (&json!(0), &json!(2))
        );
        return;
    }
    panic!("the lease of a worker that waits runs out");
}

/// S0.41: what connects machines and offices writes and reads events, by HTTP alone and by the client for Rust, each what the other wrote. The example
/// that takes orders in and gives counts out is run by examples/tests/run.rs.
#[test]
fn s0_41_events_are_written_and_read_over_http_and_by_the_rust_client() {
    let node = Node::new();
    let _daemon = Daemon::start(&node, &[]);
    append(&node, "", "order A-17\n");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let (acks, events) = runtime.block_on(async {
        let layout = Layout::new(&node.repo);
        let client = Client::require(&layout, None).await.unwrap();
        let acks = client.upload::<EventAck, _>(EVENTS, |out| {
            out.write_all(b"17 pieces\n18 pieces\n")
                .map_err(Fail::internal)
        });
        let acks: Vec<EventAck> = acks.await.unwrap().map(Result::unwrap).collect().await;
        let lines = client.lines::<(), EventLine>(Method::GET, EVENTS, None);
        let events: Vec<EventLine> = lines.await.unwrap().map(Result::unwrap).collect().await;
        (acks, events)
    });
    assert_eq!(acks.iter().map(|ack| ack.seq).collect::<Vec<_>>(), [1, 2]);
    let expected = ["order A-17", "17 pieces", "18 pieces"];
    let read: Vec<_> = events.iter().map(EventLine::payload).collect();
    assert_eq!(read, expected.map(|text| text.as_bytes().to_vec()));
    assert_eq!(texts(&get(&node, EVENTS).lines()), expected);
}
