//! The suite of connectors over one that has its world in memory; and that it finds one that lies.
#![allow(clippy::unwrap_used)]

use gemba_pins::suite::{Rig, connector};
use gemba_pins::{Begun, Cid, Connector, Input, Outlook, Progress, Target, Ticket, Time, Tracker};
use gemba_testkit::dag::fake_cid;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// Blocks of each DAG.
const BLOCKS: u64 = 3;

/// How it lies.
#[derive(Clone, Copy, Default, PartialEq)]
enum Lie {
    #[default]
    None,
    /// Everything is whole.
    Whole,
    /// Ending it does not end it.
    GoesOn,
    /// It gives no reason.
    Silent,
}

/// A store in memory.
#[derive(Default)]
struct Mock {
    had: BTreeSet<Cid>,
    /// Of these one block can be had.
    in_part: BTreeSet<Cid>,
    walks: BTreeMap<Ticket, u64>,
    lie: Lie,
}

impl Connector for Mock {
    type Around<'a> = ();

    fn begin(&mut self, ticket: Ticket, _: &Target, (): &mut ()) -> Begun {
        self.walks.insert(ticket, 0);
        Begun::Yes
    }

    fn end(&mut self, ticket: Ticket, (): &mut ()) {
        if self.lie != Lie::GoesOn {
            self.walks.remove(&ticket);
        }
    }

    fn advance(&mut self, _: &Tracker, (): &mut ()) -> (Vec<Input>, bool) {
        let mut facts = Vec::new();
        for (ticket, done) in &mut self.walks {
            let most = match self.had.contains(&ticket.cid) || self.lie == Lie::Whole {
                true => BLOCKS,
                false => u64::from(self.in_part.contains(&ticket.cid)),
            };
            if *done == most {
                continue;
            }
            *done += 1;
            let progress = Progress {
                blocks_done: *done,
                ..Progress::default()
            };
            facts.push(match *done {
                BLOCKS => Input::Whole(*ticket, progress),
                _ => Input::Progress(*ticket, progress),
            });
        }
        (facts, false)
    }

    fn standing(&mut self, (): &mut ()) -> Vec<Input> {
        let lacks = |ticket: &&Ticket| !self.had.contains(&ticket.cid);
        let told = |ticket: &Ticket| Input::Standing {
            ticket: *ticket,
            outlook: Outlook::Denied,
            cause: match self.lie {
                Lie::Silent => String::new(),
                _ => "nobody has it".to_owned(),
            },
            lacks: None,
        };
        self.walks.keys().filter(lacks).map(told).collect()
    }
}

#[derive(Default)]
struct Memory {
    mock: Mock,
    now: Time,
}

impl Rig for Memory {
    type Connector = Mock;

    fn with<T>(&mut self, run: impl FnOnce(&mut Mock, &mut ()) -> T) -> T {
        run(&mut self.mock, &mut ())
    }

    fn root(&mut self, n: u64) -> Cid {
        fake_cid(0x70, n)
    }

    fn provide_part(&mut self, n: u64) {
        self.mock.in_part.insert(fake_cid(0x70, n));
    }

    fn provide(&mut self, n: u64) {
        self.mock.had.insert(fake_cid(0x70, n));
    }

    fn now(&self) -> Time {
        self.now
    }

    fn pass(&mut self) {
        self.now += Duration::from_millis(50);
    }
}

#[test]
fn s1_3_a_connector_in_memory_passes_the_suite() {
    connector(&mut Memory::default());
}

#[test]
fn planted_lies_of_a_connector_are_found() {
    for lie in [Lie::Whole, Lie::GoesOn, Lie::Silent] {
        let lying = std::panic::catch_unwind(|| {
            let mut memory = Memory::default();
            memory.mock.lie = lie;
            connector(&mut memory);
        });
        assert!(lying.is_err());
    }
}
