//! Entry points of the fuzz targets, replayed on stable by this crate's tests. Not part of the API.

use crate::{
    Cid, DesiredSet, Input, Kind, Operation, Output, Phase, Progress, Target, Ticket, Time,
    Tracker, TrackerConfig, decode_key, decode_record, encode_key, encode_record,
};
use cid::multihash::Multihash;
use std::collections::BTreeSet;

/// `data`: one byte length of the key, the key, the value.
///
/// What is read must be written back byte for byte, and a set loaded from it must hold exactly that pin.
pub fn record(data: &[u8]) {
    let Some((&len, rest)) = data.split_first() else {
        return;
    };
    let Some((key, value)) = rest.split_at_checked(usize::from(len)) else {
        return;
    };
    let Ok(cid) = decode_key(key) else { return };
    assert_eq!(encode_key(&cid), key);
    let Ok(pin) = decode_record(cid, value) else {
        return;
    };
    assert_eq!(encode_record(&pin), value);
    let set = DesiredSet::load([(key, value)]).expect("key and value were read above");
    assert_eq!(set.get(&cid), Some(&pin));
}

/// `data`: two bytes a step: what happens, and to which of eight roots or to which operation.
///
/// Whatever an owner says, in whatever order and however late: only walks that were begun are ended, each operation makes moves of the table
/// alone, and what is in memory is bounded.
pub fn script(data: &[u8]) {
    let config = TrackerConfig::default().in_flight(16).batch(4);
    let mut script = Script {
        tracker: Tracker::new(config),
        now: Time::ZERO,
        tickets: Vec::new(),
        walks: BTreeSet::new(),
    };
    script.drain();
    for step in data.chunks_exact(2).take(2_000) {
        script.step(step[0], step[1]);
        script.drain();
    }
}

struct Script {
    tracker: Tracker,
    now: Time,
    /// Whatever was given out, the last ones last.
    tickets: Vec<Ticket>,
    walks: BTreeSet<Ticket>,
}

impl Script {
    fn step(&mut self, what: u8, which: u8) {
        let root = root(which);
        let target = Target {
            cid: root,
            id: u64::from(which >> 3) + 1,
            reach: Kind::Recursive,
        };
        let last = self.tickets.len().checked_sub(1 + usize::from(which));
        let ticket = last.map(|at| self.tickets[at]);
        let input = match (what % 18, ticket) {
            (0, _) => Input::Pin(root),
            (1, _) => Input::Wanted {
                target,
                recent: what & 0x80 != 0,
            },
            (2, _) => Input::Unpin(root),
            (3, _) => Input::Cancel(root),
            (4, _) => Input::Gone(root),
            (5, _) => Input::Recover(Some(root)),
            (6, _) => Input::Recover(None),
            (7, _) => Input::Nudge,
            (8, _) => Input::Rest("no space".into()),
            (9, _) => Input::Here(vec![root]),
            (10, _) => Input::Drawn {
                targets: vec![target],
                more: which & 0x80 != 0,
            },
            (11, _) => Input::NotDrawn,
            (12, Some(ticket)) => Input::Whole(ticket, Progress::default()),
            (13, Some(ticket)) => Input::Refused(ticket, "too deep".into()),
            (14, Some(ticket)) => Input::Failed {
                ticket,
                cause: "nobody has it".into(),
                lacks: Some(root),
            },
            (15, Some(ticket)) => Input::NotNow(ticket, (which & 1 == 0).then(String::new)),
            (16, Some(ticket)) => Input::Recorded(
                ticket,
                if which & 1 == 0 {
                    Ok(())
                } else {
                    Err("no space".into())
                },
            ),
            _ => {
                self.now += Time::from_secs(u64::from(which));
                return self.tracker.expire(self.now);
            }
        };
        // A refused command changes nothing.
        let _refused = self.tracker.handle(input, self.now);
    }

    fn drain(&mut self) {
        while let Some(output) = self.tracker.poll() {
            match output {
                Output::Start(ticket, _) => {
                    assert!(self.walks.insert(ticket));
                    self.tickets.push(ticket);
                }
                // One that could not begin was begun by nobody.
                Output::Stop(ticket) => drop(self.walks.remove(&ticket)),
                Output::Complete(ticket, _) | Output::Remove(ticket) => self.tickets.push(ticket),
                _ => {}
            }
        }
        let is_walking = |op: &Operation| op.phase == Phase::Running && !op.recording;
        let walking = self.tracker.operations().filter(|op| is_walking(op));
        assert!(walking.count() <= 16 && self.tracker.len() <= 16);
        let tracker = &self.tracker;
        // What could not begin and was put back is begun again under the same name.
        self.walks.retain(|ticket| {
            let op = tracker.operation(&ticket.cid);
            op.is_some_and(|op| op.ticket == *ticket && is_walking(op))
        });
    }
}

fn root(which: u8) -> Cid {
    const SHA2_256: u64 = 0x12;
    let digest = [which % 8; 32];
    let hash = Multihash::<64>::wrap(SHA2_256, &digest).expect("32 bytes fit in 64");
    Cid::new_v1(0x70, hash)
}
