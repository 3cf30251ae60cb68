//! What a client of the API may throw at a daemon, over raw sockets, by somebody who did not write the crate.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use common::{Daemon, Node, noise, signal, until};
use serde_json::Value;

/// A repository with its daemon, and how to reach it.
struct Api {
    address: String,
    token: String,
    node: Node,
    daemon: Daemon,
}

impl Api {
    fn new() -> Self {
        let node = Node::new();
        let daemon = Daemon::start(&node, &[]);
        let api: Value =
            serde_json::from_slice(&std::fs::read(node.repo.join("api")).unwrap()).unwrap();
        let text = |name: &str| api[name].as_str().unwrap().to_owned();
        Self {
            address: text("address"),
            token: text("token"),
            node,
            daemon,
        }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(&self.address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(30)))
            .unwrap();
        stream
    }

    /// Head of a request with everything that the guard wants; the caller adds headers and the empty line.
    fn head(&self, method: &str, target: &str) -> String {
        format!(
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n",
            self.address, self.token
        )
    }

    /// The status of the answer; `None` if the connection was closed without one.
    fn send(&self, bytes: &[u8]) -> Option<u16> {
        self.send_and(bytes, false)
    }

    /// The same; `end` closes the sending side, which ends a request that is not whole.
    fn send_and(&self, bytes: &[u8], end: bool) -> Option<u16> {
        let mut stream = self.connect();
        // The daemon may refuse before everything is written.
        let _ = stream.write_all(bytes);
        if end {
            let _ = stream.shutdown(std::net::Shutdown::Write);
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        let answer = String::from_utf8_lossy(&answer).into_owned();
        answer.split(' ').nth(1).and_then(|code| code.parse().ok())
    }

    /// It is the same process as ever, and in order.
    fn is_well(&mut self) {
        let head = self.head("GET", "/readyz");
        assert_eq!(self.send(format!("{head}\r\n").as_bytes()), Some(200));
        assert!(self.daemon.child.try_wait().unwrap().is_none());
    }
}

/// Row H7: bytes that are no request, requests that contradict themselves, and heads without end: refused or cut off, none obeyed.
#[test]
fn h7_what_is_no_request_is_refused_and_harms_nobody() {
    let mut api = Api::new();
    let stop = api.head("POST", "/v1/shutdown");
    let id = api.head("GET", "/v1/id");
    let evil: Vec<Vec<u8>> = vec![
        Vec::new(),
        b"\r\n\r\n\r\n".to_vec(),
        noise(1, 100_000),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec(),
        b"GET /v1/id\r\n\r\n".to_vec(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(1 << 20)).into_bytes(),
        format!("{id}X: {}\r\n\r\n", "a".repeat(1 << 20)).into_bytes(),
        format!("{id}{}\r\n", "X: y\r\n".repeat(10_000)).into_bytes(),
        format!("{stop}Content-Length: -1\r\n\r\n").into_bytes(),
        format!("{stop}Content-Length: 18446744073709551616\r\n\r\n").into_bytes(),
        format!("{stop}Content-Length: 0\r\nContent-Length: 5\r\n\r\nhello").into_bytes(),
        format!("{stop}X\0: y\r\n\r\n").into_bytes(),
        format!("{stop} folded: y\r\n\r\n").into_bytes(),
        stop.replace("/v1/shutdown", "/v1/../v1/shutdown")
            .into_bytes(),
        format!("{}\r\n", stop.replace("/v1/shutdown", "//v1/shutdown")).into_bytes(),
        format!("{}\r\n", stop.replace("/v1/shutdown", "/v1/%73hutdown/")).into_bytes(),
        format!("{}\r\n", stop.replace("POST", "GET")).into_bytes(),
        format!("{}\r\n", stop.replace("Bearer ", "Bearer\t")).into_bytes(),
        format!(
            "{}\r\n",
            stop.replace("Host: ", "Host: evil.example\r\nHost: ")
        )
        .into_bytes(),
    ];
    for bytes in evil {
        let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
        let code = api.send_and(&bytes, true);
        assert!(
            code.is_none_or(|code| (400..500).contains(&code)),
            "{code:?}: {shown}"
        );
    }
    api.is_well();
}

/// Names, numbers and bodies of every absurd kind on the routes, from a client that has the token: a refusal with a cause, never a crash.
#[test]
fn absurd_arguments_are_refused_with_a_cause_on_every_route() {
    let mut api = Api::new();
    let long = "b".repeat(20_000);
    for cid in [
        "%00",
        "..%2f..%2fswarm.key",
        "Qm",
        "bafk",
        &long,
        "%ff%fe",
        "f01550000ff",
        "\u{1f9ea}",
    ] {
        let encoded: String = cid
            .bytes()
            .map(|b| {
                if b.is_ascii() {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02x}")
                }
            })
            .collect();
        for (method, target) in [
            ("GET", format!("/v1/block/{encoded}")),
            ("DELETE", format!("/v1/block/{encoded}")),
            ("GET", format!("/v1/block/{encoded}/stat")),
            ("GET", format!("/v1/why/{encoded}")),
            ("GET", format!("/v1/pins/{encoded}")),
            ("DELETE", format!("/v1/pins/{encoded}")),
            ("GET", format!("/v1/cat?path={encoded}")),
            ("GET", format!("/v1/ls?path={encoded}")),
            ("GET", format!("/v1/get?path={encoded}")),
            ("GET", format!("/v1/dag/export?cid={encoded}")),
        ] {
            let code = api.send(format!("{}\r\n", api.head(method, &target)).as_bytes());
            assert!(
                code.is_some_and(|code| (400..500).contains(&code)),
                "{method} {}: {code:?}",
                &target[..target.len().min(60)]
            );
        }
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    for route in ["/v1/connect", "/v1/ping", "/v1/pins"] {
        for body in [
            "",
            "{",
            "null",
            "{\"address\":1e999}",
            &deep,
            "{\"address\":\"\\ud800\"}",
        ] {
            let head = api.head("POST", route);
            let request = format!(
                "{head}Content-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            );
            let code = api.send(request.as_bytes());
            assert!(
                code.is_some_and(|code| (400..500).contains(&code)),
                "{route} {}: {code:?}",
                &body[..body.len().min(40)]
            );
        }
    }
    api.is_well();
}

/// Uploads that announce more than there is, lie about chunks and break off, many at once: nothing is kept that is not whole, and the next
/// upload is as good as the first.
#[test]
fn uploads_that_break_off_leave_a_sound_store() {
    let mut api = Api::new();
    let content = noise(2, 300_000);
    std::thread::scope(|scope| {
        for (i, (method, route)) in [
            ("POST", "/v1/add"),
            ("POST", "/v1/dag/import"),
            ("PUT", "/v1/block"),
        ]
        .into_iter()
        .cycle()
        .take(24)
        .enumerate()
        {
            let (api, content) = (&api, &content);
            scope.spawn(move || {
                let head = api.head(method, route);
                let head = match i % 4 {
                    0 => format!("{head}Content-Length: {}\r\n\r\n", u64::MAX - 2),
                    1 => format!("{head}Transfer-Encoding: chunked\r\n\r\nffffffffffffffffff\r\n"),
                    2 => format!("{head}Transfer-Encoding: chunked\r\n\r\n493e0\r\n"),
                    _ => format!("{head}Content-Length: 300001\r\n\r\n"),
                };
                // A stream begins its answer before it fails, so the code says little.
                let _ = api.send_and(&[head.as_bytes(), content].concat(), true);
            });
        }
    });
    api.is_well();
    let file = api.node.write("content", &content);
    let cid = api.node.add(&file, &[]);
    assert_eq!(api.node.run(&["cat", &cid]).stdout, content);
    api.node.ok(&["repo", "verify"]);
}

/// Two hundred clients that say nothing, and some that ask for much and never read it: others are served, and the daemon ends when told.
#[test]
fn silent_clients_keep_neither_others_out_nor_the_daemon_alive() {
    let mut api = Api::new();
    let file = api.node.write("content", noise(3, 8 << 20));
    let cid = api.node.add(&file, &[]);
    let silent: Vec<_> = (0..200).map(|_| api.connect()).collect();
    let deaf: Vec<_> = (0..8)
        .map(|_| {
            let mut stream = api.connect();
            let head = api.head("GET", &format!("/v1/cat?path=/ipfs/{cid}"));
            stream.write_all(format!("{head}\r\n").as_bytes()).unwrap();
            stream
        })
        .collect();
    api.is_well();
    signal(api.daemon.child.id(), rustix::process::Signal::TERM);
    until("the end of the daemon", || {
        api.daemon.child.try_wait().unwrap().is_some()
    });
    assert!(!api.node.repo.join("api").exists());
    drop((silent, deaf));
    assert_eq!(api.node.run(&["cat", &cid]).stdout.len(), 8 << 20);
}
