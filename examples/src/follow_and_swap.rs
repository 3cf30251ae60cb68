//! Follow a version and swap a folder atomically: whoever looks into `current` sees the old version whole or the new one whole, at any
//! moment, and after a power cut too. The swarm is a map here; in the daemon it is `gemba name follow add`, and the event comes from
//! `gemba name watch`.
#![allow(clippy::print_stdout)]

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use gemba_block::{Block, Bytes, Cid, links};
use gemba_names::{
    Command, Config, Core, Event, Input, Keypair, Name, Output, Source, Unsigned, Wall,
};
use gemba_pins::{Walk, WalkConfig};
use gemba_unixfs::Profile;
use gemba_unixfs::fs::{ExportOptions, ImportOptions, export, import};

type Failure = Box<dyn std::error::Error>;
type Blocks = HashMap<Cid, Bytes>;

const NOW: Duration = Duration::ZERO;
const LIFETIME: &str = "2099-01-01T00:00:00Z";

/// The office: a folder, and a signed record that points to it.
fn publish(
    key: &Keypair,
    folder: &Path,
    number: u64,
    swarm: &mut Blocks,
) -> Result<Vec<u8>, Failure> {
    let mut sink = |blocks: Vec<Block>| {
        swarm.extend(blocks.into_iter().map(Block::into_parts));
        Ok(())
    };
    let profile = Profile::unixfs_v1_2025();
    let root = import(folder, &profile, &ImportOptions::default(), &mut sink)?.cid;
    let end: Wall = LIFETIME.parse()?;
    let record = Unsigned::new(Unsigned::value_of(&root), number, end).sign(key)?;
    Ok(record.bytes().to_vec())
}

/// The device: a book of names, its table on disk, and blocks.
struct Device {
    book: Core,
    table: BTreeMap<Vec<u8>, Vec<u8>>,
    blocks: Blocks,
}

impl Device {
    fn follow(name: Name) -> Result<Self, Failure> {
        let mut device = Self {
            book: Core::new(Config::default()),
            table: BTreeMap::new(),
            blocks: Blocks::new(),
        };
        device
            .book
            .handle(Input::Clock("2026-06-01T00:00:00Z".parse()?), NOW)?;
        device.run(Command::Follow(name))?;
        Ok(device)
    }

    fn run(&mut self, command: Command) -> Result<Vec<Event>, Failure> {
        self.book.handle(Input::Command { id: 1, command }, NOW)?;
        self.serve()
    }

    /// What the book wants of its owner: verify, persist. What it tells is durable.
    fn serve(&mut self) -> Result<Vec<Event>, Failure> {
        let mut events = Vec::new();
        while let Some(output) = self.book.poll() {
            let answer = match output {
                Output::Verify { ticket, candidate } => Input::Verified {
                    ticket,
                    result: candidate.verify(),
                },
                Output::Persist { ticket, key, value } => {
                    match value {
                        Some(value) => drop(self.table.insert(key, value)),
                        None => drop(self.table.remove(&key)),
                    }
                    Input::Persisted {
                        ticket,
                        result: Ok(()),
                    }
                }
                Output::Event(event) => {
                    events.push(event);
                    continue;
                }
                _ => continue,
            };
            self.book.handle(answer, NOW)?;
        }
        Ok(events)
    }

    /// A record came by whatever route: fetch what it points to, and only then say that it is here.
    fn hear(
        &mut self,
        name: Name,
        bytes: Vec<u8>,
        swarm: &Blocks,
        app: &Path,
    ) -> Result<(), Failure> {
        let source = Source::Topic(name.peer_id());
        let token = None;
        self.book.handle(
            Input::Record {
                name,
                bytes,
                source,
                token,
            },
            NOW,
        )?;
        for event in self.serve()? {
            let Event::Changed { now: newest, .. } = event else {
                continue;
            };
            let fetched = self.fetch(root_of(&newest.version.value)?, swarm)?;
            println!(
                "version {}: {fetched} blocks fetched",
                newest.version.sequence
            );
            let complete = Command::Complete {
                name,
                version: newest.version,
                rollback: false,
            };
            for event in self.run(complete)? {
                if let Event::Complete { version, .. } = event {
                    swap(&mut self.blocks, root_of(&version.value)?, app)?;
                }
            }
        }
        Ok(())
    }

    /// Only what is not here crosses the line.
    fn fetch(&mut self, root: Cid, swarm: &Blocks) -> Result<usize, Failure> {
        let (mut walk, mut fetched) = (Walk::new(root, WalkConfig::default()), 0);
        while let Some(cid) = walk.next_need() {
            if let Entry::Vacant(place) = self.blocks.entry(cid) {
                place.insert(swarm.get(&cid).ok_or("nobody has it")?.clone());
                fetched += 1;
            }
            let block = Block::new(cid, self.blocks[&cid].clone())?;
            walk.on_block(&cid, block.len() as u64, links(&block)?)?;
        }
        Ok(fetched)
    }
}

fn root_of(value: &[u8]) -> Result<Cid, Failure> {
    let path = std::str::from_utf8(value)?;
    Ok(path.strip_prefix("/ipfs/").ok_or("no content")?.parse()?)
}

/// `current` is a symbolic link, and a rename replaces it in one step: there is no moment without a version, and none with half of one.
fn swap(blocks: &mut Blocks, root: Cid, app: &Path) -> Result<(), Failure> {
    let version = app.join("versions").join(root.to_string());
    if !version.exists() {
        // What a power cut left of an earlier try has another name, and goes.
        let half = app.join("versions").join("half");
        if half.exists() {
            fs::remove_dir_all(&half)?;
        }
        export(blocks, root, &half, &ExportOptions::default(), &mut |_| {
            ControlFlow::Continue(())
        })?;
        fs::rename(&half, &version)?;
    }
    let next = app.join("next");
    let _none = fs::remove_file(&next);
    std::os::unix::fs::symlink(&version, &next)?;
    fs::rename(&next, app.join("current"))?;
    // A rename is durable when its folder is.
    fs::File::open(app)?.sync_all()?;
    Ok(())
}

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let (office, app) = (dir.path().join("office"), dir.path().join("app"));
    fs::create_dir_all(&office)?;
    fs::create_dir_all(app.join("versions"))?;
    let key = Keypair::generate_ed25519();
    let name = Name::of(&key.public());
    let (mut swarm, mut device) = (Blocks::new(), Device::follow(name)?);

    fs::write(office.join("video.bin"), vec![7; 3_000_000])?;
    fs::write(office.join("step-1.txt"), "Tighten both bolts to 12 Nm.")?;
    let first = publish(&key, &office, 0, &mut swarm)?;
    device.hear(name, first.clone(), &swarm, &app)?;
    let shown = || fs::read_to_string(app.join("current").join("step-1.txt"));
    assert_eq!(shown()?, "Tighten both bolts to 12 Nm.");

    fs::write(office.join("step-1.txt"), "Tighten both bolts to 14 Nm.")?;
    let second = publish(&key, &office, 1, &mut swarm)?;
    device.hear(name, second, &swarm, &app)?;
    assert_eq!(shown()?, "Tighten both bolts to 14 Nm.");

    // Somebody sends the old record again: the book has seen newer, and nothing moves.
    device.hear(name, first, &swarm, &app)?;
    assert_eq!(shown()?, "Tighten both bolts to 14 Nm.");
    println!("current: {}", shown()?);
    Ok(())
}
