//! The tracker's connector to a Kubo passes the suite of connectors, against a Kubo's RPC on loopback.
#![allow(clippy::unwrap_used)]

#[path = "common/kubo.rs"]
mod fake_kubo;

use std::time::{Duration, Instant};

use cid::Cid;
use fake_kubo::Kubo;
use gemba_node::content::kubo_connector::KuboConnector;
use gemba_pins::suite::{Rig, connector};
use gemba_pins::{Kind, Time};

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
