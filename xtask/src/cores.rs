//! Cores hold no clock, thread, file, socket, random source or unbounded queue (DESIGN §3).
//!
//! Every file of a library crate is a core unless it is listed here as a driver: a new file is held to the rule before anyone thinks of
//! it. Tests inside the files are free. Clippy cannot draw this line, because one clippy.toml serves a whole crate; where a crate is a
//! core through and through it has a strict clippy.toml as well, and this check sees to it that it repeats the root's entries.

use std::fs;

use toml::Table;

use crate::Outcome;
use crate::rust::{PathUse, paths, tokens, without_tests};
use crate::workspace::Workspace;

/// A library crate and its driver files: path below `src/`, a folder with a slash at its end, and what it is there for.
struct Crate {
    folder: &'static str,
    drivers: &'static [(&'static str, &'static str)],
}

const CRATES: &[Crate] = &[
    Crate {
        folder: "block",
        drivers: &[],
    },
    Crate {
        folder: "log",
        drivers: &[],
    },
    Crate {
        folder: "names",
        drivers: &[
            ("behaviour.rs", "the swarm's side"),
            ("handler/", "the connection's side"),
            ("kad/behaviour.rs", "libp2p-kad in a swarm"),
            ("kad/tables.rs", "reads addresses and protocol names"),
        ],
    },
    Crate {
        folder: "pins",
        drivers: &[],
    },
    Crate {
        folder: "segment",
        drivers: &[("real.rs", "the operating system's disk")],
    },
    Crate {
        folder: "store",
        drivers: &[
            ("kubo.rs", "the files of a Kubo repository"),
            ("verify.rs", "reads and hashes on all processors"),
        ],
    },
    Crate {
        folder: "unixfs",
        drivers: &[
            ("fs/", "real folders"),
            ("import.rs", "hashes on all processors while it reads"),
        ],
    },
    Crate {
        folder: "exchange",
        drivers: &[
            ("behaviour.rs", "the swarm's side"),
            ("carrier/", "both sides of /gemba/site/1"),
            ("handler/", "the connection's side"),
        ],
    },
    Crate {
        folder: "gossip",
        drivers: &[
            ("behaviour.rs", "the swarm's side"),
            ("disk.rs", "sequence numbers in a file"),
            ("handler/", "the connection's side"),
            ("subscription.rs", "queues to applications"),
            ("verify.rs", "threads that verify"),
        ],
    },
    Crate {
        folder: "pnet",
        drivers: &[
            ("awake.rs", "looks at the clocks"),
            ("cause.rs", "reads libp2p's errors"),
            ("connect.rs", "TCP"),
            ("crowd.rs", "incoming connections in set-up"),
            ("dialer/behaviour.rs", "the swarm's side of the dialer"),
            ("discovery/behaviour.rs", "mDNS"),
            ("key.rs", "a new key needs the system's randomness"),
            ("keyfile.rs", "the key's file"),
            ("limits/behaviour.rs", "the swarm's side of the limits"),
            ("line.rs", "counts and bounds sockets"),
            ("listener_process.rs", "who holds a port"),
            ("liveness.rs", "ping"),
            ("muxer/gate.rs", "stops reading a connection"),
            ("fuzz.rs", "entry points of fuzzers, of the streams too"),
            ("muxer/mod.rs", "the multiplexer and its streams"),
            ("stream.rs", "the key stream on a socket"),
            ("transport.rs", "TCP, key, Noise, Yamux"),
        ],
    },
];

/// No cores: the node drives them, the testkit is their world.
const OTHERS: &[&str] = &["node", "testkit"];

/// A forbidden path and what to do instead. `Head` matches from the path's start, `Inside` anywhere in it.
struct Rule {
    path: &'static [&'static str],
    place: Place,
    instead: &'static str,
}

#[derive(Clone, Copy)]
enum Place {
    Head,
    Inside,
}

const RULES: &[Rule] = &[
    inside(&["Instant", "now"], "take `now` as an argument"),
    inside(
        &["SystemTime", "now"],
        "wall-clock time is an input of its own and orders nothing",
    ),
    inside(&["thread", "sleep"], "return a deadline"),
    inside(
        &["thread", "spawn"],
        "let heavy work leave as an output and come back as an input",
    ),
    inside(
        &["thread", "scope"],
        "let heavy work leave as an output and come back as an input",
    ),
    inside(
        &["thread", "Builder"],
        "let heavy work leave as an output and come back as an input",
    ),
    inside(
        &["unbounded_channel"],
        "every queue has a size, a victim and a counter",
    ),
    inside(
        &["mpsc", "unbounded"],
        "every queue has a size, a victim and a counter",
    ),
    head(&["std", "fs"], "files belong to a driver"),
    head(
        &["std", "net"],
        "sockets belong to a driver; addresses are in core::net",
    ),
    head(&["std", "process"], "processes belong to the node"),
    head(&["std", "env"], "configuration is handed in"),
    head(&["std", "sync", "mpsc"], "queues belong to a driver"),
    head(&["tokio"], "the runtime belongs to a driver"),
    head(&["futures_timer"], "return a deadline"),
    head(
        &["libp2p_swarm"],
        "the swarm belongs to behaviour.rs and handler.rs",
    ),
    head(&["libp2p_core"], "the transport belongs to a driver"),
    head(&["rustix"], "system calls belong to a driver"),
    head(&["rand"], "randomness is handed in"),
    head(&["getrandom"], "randomness is handed in"),
];

/// Below forbidden heads, and still nothing but values.
const PLAIN_VALUES: &[&[&str]] = &[
    &["std", "net", "IpAddr"],
    &["std", "net", "Ipv4Addr"],
    &["std", "net", "Ipv6Addr"],
    &["std", "net", "SocketAddr"],
    &["libp2p_core", "PeerId"],
    &["libp2p_core", "Multiaddr"],
];

const fn head(path: &'static [&'static str], instead: &'static str) -> Rule {
    Rule {
        path,
        place: Place::Head,
        instead,
    }
}

const fn inside(path: &'static [&'static str], instead: &'static str) -> Rule {
    Rule {
        path,
        place: Place::Inside,
        instead,
    }
}

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let mut findings = Vec::new();
    let mut files = 0;
    findings.extend(unlisted(workspace));
    for library in CRATES {
        files += check_crate(workspace, library, &mut findings);
    }
    let strict = check_clippy_files(workspace, &mut findings)?;
    if findings.is_empty() {
        Ok(format!(
            "cores: {files} core files hold no clock, thread, file, socket or random source; {strict} strict clippy.toml repeat the root's entries"
        ))
    } else {
        Err(findings)
    }
}

/// The folders below `crates/` of libraries that nobody entered: a new crate begins with the rule, not without.
fn unlisted(workspace: &Workspace) -> Vec<String> {
    let listed =
        |folder: &str| OTHERS.contains(&folder) || CRATES.iter().any(|c| c.folder == folder);
    let folders = workspace
        .folders("crates")
        .into_iter()
        .filter(|folder| !listed(folder));
    folders.map(|folder| format!("crates/{folder} is not listed in xtask/src/cores.rs: enter it with its driver files")).collect()
}

/// Checks the core files of one crate and that its drivers exist; returns how many core files there are.
fn check_crate(workspace: &Workspace, library: &Crate, findings: &mut Vec<String>) -> usize {
    let source = format!("crates/{}/src/", library.folder);
    for (driver, _) in library.drivers {
        if !workspace.path(&source).join(driver).exists() {
            findings.push(format!(
                "{source}{driver} is listed as a driver in xtask/src/cores.rs and does not exist"
            ));
        }
    }
    let mut files = 0;
    for path in workspace.files(&source, "rs") {
        let name = workspace.relative(&path);
        let below = name.strip_prefix(&source).unwrap_or(&name);
        if library.drivers.iter().any(|(driver, _)| {
            below == *driver || driver.ends_with('/') && below.starts_with(driver)
        }) {
            continue;
        }
        files += 1;
        match fs::read_to_string(&path) {
            Ok(text) => findings.extend(
                forbidden(&text)
                    .into_iter()
                    .map(|(line, what)| format!("{name}:{line}: {what}")),
            ),
            Err(e) => findings.push(format!("{name}: {e}")),
        }
    }
    if files == 0 {
        findings.push(format!("{source} has no core file: is the crate gone?"));
    }
    files
}

/// Line and message of what is forbidden in the non-test part of `source`: once a rule, where it is broken first.
fn forbidden(source: &str) -> Vec<(usize, String)> {
    let paths = paths(&without_tests(tokens(source)));
    let mut found: Vec<(usize, String)> = RULES
        .iter()
        .filter_map(|rule| {
            let path = paths
                .iter()
                .filter(|path| rule.matches(path))
                .min_by_key(|path| path.line)?;
            Some((
                path.line,
                format!("`{}` in a core: {}", path.segments.join("::"), rule.instead),
            ))
        })
        .collect();
    found.sort();
    found
}

impl Rule {
    fn matches(&self, path: &PathUse) -> bool {
        match self.place {
            Place::Head => {
                begins(path, self.path) && !PLAIN_VALUES.iter().any(|plain| begins(path, plain))
            }
            Place::Inside => path
                .segments
                .windows(self.path.len())
                .any(|w| w.iter().zip(self.path).all(|(a, b)| a == b)),
        }
    }
}

fn begins(path: &PathUse, head: &[&str]) -> bool {
    path.segments.len() >= head.len() && head.iter().zip(&path.segments).all(|(a, b)| a == b)
}

/// A crate's own clippy.toml hides the root's: it must repeat all of its entries. Returns how many crates have one.
fn check_clippy_files(
    workspace: &Workspace,
    findings: &mut Vec<String>,
) -> Result<usize, Vec<String>> {
    let root = disallowed(&workspace.read("clippy.toml")?, "clippy.toml")?;
    let mut strict = 0;
    for folder in workspace.folders("crates") {
        let name = format!("crates/{folder}/clippy.toml");
        if !workspace.path(&name).exists() {
            continue;
        }
        strict += 1;
        let own = disallowed(&workspace.read(&name)?, &name)?;
        for path in root.iter().filter(|path| !own.contains(path)) {
            findings.push(format!("{name} hides the root's entry {path}"));
        }
    }
    Ok(strict)
}

/// The paths of `disallowed-methods`; each must give its reason.
fn disallowed(file: &str, name: &str) -> Result<Vec<String>, Vec<String>> {
    let table: Table = file.parse().map_err(|e| vec![format!("{name}: {e}")])?;
    let entries = table
        .get("disallowed-methods")
        .and_then(toml::Value::as_array)
        .cloned()
        .unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let field = |key| entry.get(key).and_then(toml::Value::as_str);
            match (field("path"), field("reason")) {
                (Some(path), Some(_)) => Ok(path.to_owned()),
                _ => Err(vec![format!(
                    "{name}: an entry lacks path or reason: {entry}"
                )]),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(source: &str) -> Vec<usize> {
        forbidden(source)
            .into_iter()
            .map(|(line, _)| line)
            .collect()
    }

    #[test]
    fn planted_calls_are_found_where_they_stand() {
        for source in [
            "use std::time::Instant;\nfn f() { let t = Instant::now(); }",
            "use std::time::Instant as Clock;\nfn f() { Clock::now(); }",
            "fn g() {}\nfn f() { std::thread::sleep(d) }",
            "fn g() {}\nuse std::{collections::BTreeMap, fs};",
            "\nuse tokio::sync::mpsc;",
            "// Instant::now()\nuse rand::Rng;",
            "\nfn f() { ::std::net::TcpStream::connect(a) }",
        ] {
            assert_eq!(lines(source), [2], "{source}");
        }
    }

    #[test]
    fn types_tests_and_names_that_only_look_alike_are_free() {
        for source in [
            "use std::time::{Duration, Instant};\nfn f(now: Instant) {}",
            "use std::net::{IpAddr, Ipv6Addr};\nfn f() { IpAddr::V6(Ipv6Addr::from(x)) }",
            "fn f() { self.fs.read(); crate::fs::read(); my::tokio::x(); brand::new() }",
            "//! std::fs::read\nconst S: &str = \"std::fs\";",
            "#[cfg(test)]\nmod tests {\n    use std::fs;\n}",
        ] {
            assert_eq!(forbidden(source), Vec::new(), "{source}");
        }
    }

    #[test]
    fn a_clippy_entry_without_reason_is_refused() {
        assert!(disallowed("disallowed-methods = [\"std::fs::read\"]", "x").is_err());
        assert_eq!(
            disallowed(
                "disallowed-methods = [{ path = \"a::b\", reason = \"c\" }]",
                "x"
            ),
            Ok(vec!["a::b".to_owned()])
        );
    }
}
