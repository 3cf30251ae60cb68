//! Budgets of lines (specs/bandwidth.md) between real processes. The rates here are functions, not figures: what is asserted of time is that a
//! budget was kept, which no slow machine can break.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::time::Instant;

use common::{Daemon, Node, address, noise, status, until};
use serde_json::Value;

/// Loopback is taken for the uplink.
const ELSEWHERE: [&str; 4] = ["config", "set", "bandwidth.lan_subnets", "192.0.2.0/24"];

fn start(first: Option<&Node>, settings: &[(&str, &str)]) -> (Node, Daemon) {
    let node = Node::bare();
    match first {
        None => drop(node.ok(&["init", "--new-swarm-key"])),
        Some(first) => {
            let key = first.repo.join("swarm.key");
            node.ok(&["init", "--swarm-key", key.to_str().unwrap()]);
        }
    }
    node.ok(&ELSEWHERE);
    for (key, value) in settings {
        node.ok(&["config", "set", key, value]);
    }
    let known: Vec<String> = first.iter().map(|first| address(first)).collect();
    let args: Vec<&str> = known
        .iter()
        .flat_map(|address| ["--bootstrap", address.as_str()])
        .collect();
    let daemon = Daemon::start(&node, &args);
    (node, daemon)
}

fn line(node: &Node, line: &str) -> Value {
    let status = status(node);
    let mut lines = status["lines"].as_array().unwrap().iter();
    let found = lines.find(|view| view["line"] == line).cloned();
    found.unwrap_or_else(|| panic!("{line} is not among {}", status["lines"]))
}

/// A device fetches over an uplink with a budget, of the origin's or of its own: no more than the budget goes over it, the
/// asset comes whole, and a name that is published meanwhile does not wait for it.
#[test]
fn pa_2_pa_5_a_budget_is_kept_either_way_and_names_go_first() {
    for (origin, device) in [("4 Mbit/s up", "none"), ("none", "4 Mbit/s down")] {
        let (rate, size) = (500_000.0, 3 << 20);
        let (a, _a) = start(None, &[("bandwidth.wan", origin)]);
        let (b, _b) = start(Some(&a), &[("bandwidth.wan", device)]);
        until("they are connected", || status(&b)["peers"] == 1);
        let file = a.write("asset", noise(7, size));
        let cid = a.add(&file, &[]);
        let name = a.ok(&["key", "new", "app"]).trim().to_owned();
        a.ok(&["name", "publish", "--key", "app", &format!("/ipfs/{cid}")]);

        let (sent, begun) = (
            line(&a, "wan")["bytes_out"].as_u64().unwrap(),
            Instant::now(),
        );
        let mut pin = b.command(&["pin", "add", &cid]).spawn().unwrap();
        until("bytes come", || {
            line(&b, "wan")["bytes_in"].as_u64() > Some(256 << 10)
        });
        let seen = b.json(&["name", "resolve", &name]);
        assert_eq!(seen["value"], format!("/ipfs/{cid}"));
        assert!(pin.wait().unwrap().success());
        let took = begun.elapsed().as_secs_f64();
        let sent = line(&a, "wan")["bytes_out"].as_u64().unwrap() - sent;
        // One burst: 50 ms outwards, a second and a block inwards; and what is control alone.
        let most = rate * (took + 1.1) + f64::from(1100 << 10);
        println!("figure: pa_2 {sent} bytes in {took:.2} s at {rate} a second");
        assert!(sent as f64 <= most, "{sent} of {most} in {took:.2} s");
        assert!(sent >= size as u64);
        assert_eq!(line(&a, "lan")["bytes_out"], 0);
        let out = b.path("out");
        b.ok(&["get", &cid, "-o", out.to_str().unwrap()]);
        assert!(std::fs::read(&out).unwrap() == std::fs::read(&file).unwrap());
    }
}

/// Which budget holds for the uplink is said to a running daemon.
#[test]
fn pa_1_the_uplink_becomes_metered_and_is_told() {
    let settings = [
        ("bandwidth.wan", "100 Mbit/s"),
        ("bandwidth.metered", "128 kbit/s up, 1 Mbit/s down"),
    ];
    let (node, _daemon) = start(None, &settings);
    assert_eq!(line(&node, "wan")["up_limit"], 12_500_000);
    let lines = node.lines(&["uplink", "metered"]);
    assert_eq!(
        (
            &lines[1]["line"],
            &lines[1]["up_limit"],
            &lines[1]["down_limit"]
        ),
        (&"metered".into(), &16_000.into(), &125_000.into())
    );
    assert_eq!(line(&node, "metered")["up_limit"], 16_000);
    let told = node.ok(&["status"]);
    assert!(
        told.contains("metered   128 kbit/s up, 1.0 Mbit/s down"),
        "{told}"
    );
    assert!(told.contains("lan       no limit"), "{told}");
    node.ok(&["uplink", "wan"]);
    assert_eq!(line(&node, "wan")["down_limit"], 12_500_000);
    let refused = node.fails(&["config", "set", "bandwidth.wan", "64 kbit/s"], 2);
    assert!(refused.cause.contains("128 kbit/s"), "{}", refused.cause);
}
