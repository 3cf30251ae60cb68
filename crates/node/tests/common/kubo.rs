//! A Kubo's RPC on loopback, as far as pins go: `pin/ls`, `pin/add`, `pin/rm`. It answers as Kubo 0.42 does, a line of
//! JSON at a time, and keeps connections open.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::json;

/// What it holds.
#[derive(Default)]
pub struct Held {
    /// Root → whether recursively, and the name.
    pub pins: BTreeMap<String, (bool, String)>,
    /// Roots for which it gets no block.
    pub missing: Vec<String>,
    /// What it was asked, in order.
    pub asked: Vec<String>,
}

/// See the module's text. Its threads end with the process.
pub struct Kubo {
    pub url: String,
    held: Arc<Mutex<Held>>,
}

impl Kubo {
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let held = Arc::new(Mutex::new(Held::default()));
        let shared = Arc::clone(&held);
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                // It answers in small pieces, each of which would wait for the one before.
                stream.set_nodelay(true).unwrap();
                let shared = Arc::clone(&shared);
                std::thread::spawn(move || serve(&stream, &shared));
            }
        });
        Self { url, held }
    }

    pub fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.held.lock().unwrap()
    }

    pub fn pin(&self, cid: &str, recursive: bool, name: &str) {
        let pin = (recursive, name.to_owned());
        self.held().pins.insert(cid.to_owned(), pin);
    }
}

fn serve(stream: &TcpStream, held: &Mutex<Held>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut first = String::new();
        if reader.read_line(&mut first).is_err() || first.is_empty() {
            return;
        }
        let mut line = String::new();
        while reader.read_line(&mut line).is_ok_and(|read| read > 2) {
            line.clear();
        }
        let path = first.split(' ').nth(1).unwrap().to_owned();
        if answer(&path, stream, held).is_err() {
            return;
        }
    }
}

fn answer(path: &str, stream: &TcpStream, held: &Mutex<Held>) -> std::io::Result<()> {
    let mut held = held.lock().unwrap();
    held.asked.push(path.to_owned());
    let (command, query) = path.split_once('?').unwrap_or((path, ""));
    let query: BTreeMap<String, String> = query
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), unquoted(value)))
        .collect();
    let of = |key: &str| query.get(key).cloned().unwrap_or_default();
    let arg = of("arg");
    match command.strip_prefix("/api/v0/").unwrap() {
        "pin/ls" => {
            let recursive = of("type") == "recursive";
            let listed: Vec<String> = held
                .pins
                .iter()
                .filter(|(cid, pin)| pin.0 == recursive && (arg.is_empty() || arg == **cid))
                .map(|(cid, pin)| {
                    json!({ "Cid": cid, "Type": of("type"), "Name": pin.1 }).to_string()
                })
                .collect();
            if listed.is_empty() && !arg.is_empty() {
                return refuse(stream, &format!("path '{arg}' is not pinned"));
            }
            say(stream, 200, &listed)
        }
        "pin/add" if held.missing.contains(&arg) => {
            drop(held);
            // As long as somebody listens it looks for it.
            chunked(stream, 200)?;
            for _ in 0..1000 {
                chunk(stream, &json!({ "Progress": 1 }).to_string())?;
                std::thread::sleep(std::time::Duration::from_millis(20));
            }
            end(stream)
        }
        "pin/add" => {
            let recursive = of("recursive") == "true";
            let before = held.pins.get(&arg).map(|pin| pin.0);
            if before == Some(true) && !recursive {
                return refuse(stream, &format!("{arg} already pinned recursively"));
            }
            held.pins.insert(arg.clone(), (recursive, of("name")));
            let progress = json!({ "Progress": 1 }).to_string();
            say(
                stream,
                200,
                &[progress, json!({ "Pins": [arg] }).to_string()],
            )
        }
        "pin/rm" => match held.pins.remove(&arg) {
            Some(_) => say(stream, 200, &[json!({ "Pins": [arg] }).to_string()]),
            None => refuse(stream, "not pinned or pinned indirectly"),
        },
        other => refuse(stream, &format!("no command {other}")),
    }
}

fn refuse(stream: &TcpStream, message: &str) -> std::io::Result<()> {
    let refusal = json!({ "Message": message, "Code": 0, "Type": "error" });
    say(stream, 500, &[refusal.to_string()])
}

fn say(stream: &TcpStream, code: u16, lines: &[String]) -> std::io::Result<()> {
    chunked(stream, code)?;
    for line in lines {
        chunk(stream, line)?;
    }
    end(stream)
}

fn chunked(mut stream: &TcpStream, code: u16) -> std::io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {code} X\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    )
}

fn chunk(mut stream: &TcpStream, line: &str) -> std::io::Result<()> {
    write!(stream, "{:x}\r\n{line}\n\r\n", line.len() + 1)
}

fn end(mut stream: &TcpStream) -> std::io::Result<()> {
    write!(stream, "0\r\n\r\n")
}

fn unquoted(text: &str) -> String {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let hex = String::from_utf8(vec![*high, *low]).unwrap();
                bytes.push(u8::from_str_radix(&hex, 16).unwrap());
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).unwrap()
}
