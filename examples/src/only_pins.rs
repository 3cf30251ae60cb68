//! Pins as a library, without any network: what ought to be here is a small table, how far it is follows from it, and the blocks come from a USB
//! stick that is not in the socket at first.
#![allow(clippy::print_stdout)]

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use gemba_block::{Block, Bytes, Cid, links};
use gemba_pins::{
    Add, DesiredSet, Input, Kind, MissingCause, Output, Status, Target, Ticket, Tracker,
    TrackerConfig, Walk, WalkConfig,
};
use gemba_unixfs::Profile;
use gemba_unixfs::fs::{ImportOptions, import};

type Failure = Box<dyn std::error::Error>;
type Blocks = HashMap<Cid, Bytes>;

/// The application: a table on its disk, blocks on its disk, and what is being done.
struct App {
    table: BTreeMap<Vec<u8>, Vec<u8>>,
    blocks: Blocks,
    set: DesiredSet,
    tracker: Tracker,
    walks: Vec<(Ticket, Walk)>,
}

impl App {
    fn pin(&mut self, cid: Cid, now: Duration) -> Result<(), Failure> {
        let add = Add {
            cid,
            kind: Kind::Recursive,
            name: Some("instructions".parse()?),
            now_ms: 0,
        };
        // Planned, persisted, applied: the set never says more than the table.
        if let Some(change) = self.set.add(add)? {
            let record = change.record().ok_or("an addition writes")?;
            self.table.insert(change.key(), record);
            self.set.apply(change)?;
        }
        let id = self.set.get(&cid).ok_or("just added")?.id;
        let target = Target {
            cid,
            id,
            reach: Kind::Recursive,
        };
        self.tracker.handle(
            Input::Wanted {
                target,
                recent: true,
            },
            now,
        )?;
        Ok(())
    }

    /// As far as it goes with what is in the socket.
    fn advance(&mut self, stick: Option<&Blocks>, now: Duration) -> Result<(), Failure> {
        self.carry_out(now)?;
        for (ticket, walk) in &mut self.walks {
            while let Some(cid) = walk.next_need() {
                let found = self.blocks.get(&cid).or_else(|| stick?.get(&cid)).cloned();
                let Some(data) = found else {
                    walk.on_missing(&cid, MissingCause::NoPeers);
                    break;
                };
                // The stick may be damaged: a block is what its hash says, or none.
                let block = Block::new(cid, data.clone())?;
                self.blocks.insert(cid, data);
                walk.on_block(&cid, block.len() as u64, links(&block)?)?;
            }
            if walk.is_done() {
                self.tracker
                    .handle(Input::Whole(*ticket, walk.progress()), now)?;
            }
        }
        self.carry_out(now)
    }

    fn carry_out(&mut self, now: Duration) -> Result<(), Failure> {
        while let Some(output) = self.tracker.poll() {
            match output {
                Output::Start(ticket, target) => {
                    let walk = Walk::of_kind(ticket.cid, target.reach, WalkConfig::default());
                    self.walks.push((ticket, walk));
                }
                Output::Stop(ticket) => self.walks.retain(|(other, _)| *other != ticket),
                Output::Complete(ticket, id) => {
                    if let Some(change) = self.set.complete(&ticket.cid, id)? {
                        let record = change.record().ok_or("a pin that stays has a record")?;
                        self.table.insert(change.key(), record);
                        self.set.apply(change)?;
                    }
                    self.tracker.handle(Input::Recorded(ticket, Ok(())), now)?;
                }
                Output::Draw(..) => {
                    let (targets, more) = (Vec::new(), false);
                    self.tracker.handle(Input::Drawn { targets, more }, now)?;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Nothing keeps it: it follows from operation and record.
    fn status(&self, cid: &Cid) -> Status {
        Status::of(self.set.get(cid), self.tracker.operation(cid))
    }
}

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    std::fs::write(
        dir.path().join("step-1.txt"),
        "Tighten both bolts to 12 Nm.",
    )?;
    std::fs::write(dir.path().join("video.bin"), vec![7; 3_000_000])?;
    let mut stick = Blocks::new();
    let mut sink = |blocks: Vec<Block>| {
        stick.extend(blocks.into_iter().map(Block::into_parts));
        Ok(())
    };
    let profile = Profile::unixfs_v1_2025();
    let root = import(dir.path(), &profile, &ImportOptions::default(), &mut sink)?.cid;

    let table = BTreeMap::new();
    let mut app = App {
        set: DesiredSet::load(&table)?,
        table,
        blocks: Blocks::new(),
        tracker: Tracker::new(TrackerConfig::default()),
        walks: Vec::new(),
    };
    assert_eq!(app.status(&root), Status::Unpinned);
    app.pin(root, Duration::ZERO)?;
    app.advance(None, Duration::ZERO)?;
    println!("without the stick: {}", app.status(&root).as_str());
    assert_eq!(app.status(&root), Status::Pinning);

    // A restart keeps the wish, and nothing else has to be kept.
    app.set = DesiredSet::load(&app.table)?;
    (app.tracker, app.walks) = (Tracker::new(TrackerConfig::default()), Vec::new());
    assert_eq!(app.status(&root), Status::PinQueued);

    app.pin(root, Duration::ZERO)?;
    app.advance(Some(&stick), Duration::from_secs(1))?;
    println!(
        "with it: {}, {} blocks",
        app.status(&root).as_str(),
        app.blocks.len()
    );
    assert_eq!(app.status(&root), Status::Pinned);
    assert_eq!(app.blocks.len(), stick.len());
    Ok(())
}
