//! The tracker's connector to a Kubo passes the suite of connectors, against a Kubo's RPC on loopback.
#![allow(clippy::unwrap_used)]

#[path = "common/kubo.rs"]
mod fake_kubo;

use std::time::{Duration, Instant};

use cid::Cid;
use fake_kubo::Kubo;
use gemba_node::content::kubo_connector::KuboConnector;
use gemba_pins::suite::{Rig, connector};
use gemba_pins::{
    Begun, Connector as _, Input, Kind, Target, Ticket, Time, Tracker, TrackerConfig,
};

struct Remote {
    kubo: Kubo,
    connector: KuboConnector,
    begun: Instant,
}

impl Remote {
    fn start() -> Self {
        let kubo = Kubo::start();
        let connector = KuboConnector::to(&kubo.url).unwrap();
        let mut remote = Self {
            kubo,
            connector: connector.patience(Duration::from_millis(200)),
            begun: Instant::now(),
        };
        for n in 0..10 {
            let root = remote.root(n).to_string();
            remote.kubo.held().missing.push(root);
        }
        remote
    }
}

impl Rig for Remote {
    type Connector = KuboConnector;

    fn with<T>(&mut self, run: impl FnOnce(&mut KuboConnector, &mut ()) -> T) -> T {
        run(&mut self.connector, &mut ())
    }

    fn root(&mut self, n: u64) -> Cid {
        let block = gemba_block::Block::raw(format!("root {n}").into_bytes());
        *block.unwrap().cid()
    }

    /// What lacks blocks has got one of them.
    fn provide_part(&mut self, _: u64) {}

    fn provide(&mut self, n: u64) {
        let root = self.root(n).to_string();
        self.kubo.held().missing.retain(|missing| *missing != root);
    }

    fn now(&self) -> Time {
        self.begun.elapsed()
    }

    fn pass(&mut self) {
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Runs one pin through the connector, to its end.
fn made(connector: &mut KuboConnector, cid: Cid, reach: Kind) -> Input {
    let op = gemba_pins::OpId(1);
    let target = Target { cid, id: 1, reach };
    assert_eq!(
        connector.begin(Ticket { cid, op }, &target, &mut ()),
        Begun::Yes
    );
    let tracker = Tracker::new(TrackerConfig::default());
    loop {
        let (facts, _) = connector.advance(&tracker, &mut ());
        let mut ends = facts.into_iter();
        if let Some(end) = ends.find(|fact| !matches!(fact, Input::Progress(..))) {
            return end;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Made anew a pin of a Kubo loses its name, and is away until its blocks are found; and a Kubo refuses a direct pin of what it holds recursively.
#[test]
fn s4_21_what_a_kubo_has_pinned_stays_as_it_is() {
    let mut remote = Remote::start();
    let roots = [0, 1, 2].map(|n| remote.root(n));
    remote.kubo.held().missing.clear();
    for (root, recursive) in roots.iter().zip([true, true, false]) {
        remote.kubo.pin(&root.to_string(), recursive, "theirs");
    }
    let wanted = [Kind::Recursive, Kind::Direct, Kind::Recursive];
    for (root, reach) in roots.iter().zip(wanted) {
        let end = made(&mut remote.connector, *root, reach);
        assert!(matches!(end, Input::Whole(..)), "{end:?}");
        let pin = remote.kubo.held().pins[&root.to_string()].clone();
        assert_eq!(pin, (true, "theirs".to_owned()));
    }
}

#[test]
fn s1_3_a_connector_to_a_kubo_passes_the_suite() {
    let mut remote = Remote::start();
    connector(&mut remote);
    // What became whole is pinned there, and what was ended is not.
    let pinned = |remote: &mut Remote, n| {
        let root = remote.root(n);
        remote.connector.pinned(&root).unwrap()
    };
    assert_eq!(pinned(&mut remote, 1), Some(Kind::Recursive));
    assert_eq!(pinned(&mut remote, 3), None);
    let root = remote.root(1);
    remote.connector.release(&root).unwrap();
    remote.connector.release(&root).unwrap();
    assert_eq!(pinned(&mut remote, 1), None);
}
