//! An app that keeps its state under a name while offline: each change is signed and durable before it is shown, a restart finds the last one, and
//! when a neighbour is there again it gets the newest alone, not the history.
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use gemba_names::{
    Command, Config, Core, Event, Input, Keypair, Name, Output, PeerId, Publish, Resolved,
};

type Failure = Box<dyn std::error::Error>;

const NOW: Duration = Duration::ZERO;

/// A book of names in a folder: a file a row, replaced in one step.
struct Book {
    core: Core,
    folder: PathBuf,
    /// Only the publisher has one.
    key: Option<Keypair>,
    next: u64,
}

impl Book {
    fn open(folder: &Path, key: Option<Keypair>) -> Result<Self, Failure> {
        fs::create_dir_all(folder)?;
        let mut rows = Vec::new();
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.extension().is_none() {
                let name = path
                    .file_name()
                    .and_then(|n| n.to_str())
                    .unwrap_or_default();
                rows.push((unhex(name)?, fs::read(&path)?));
            }
        }
        let (core, _damaged) = Core::load(Config::default(), rows, BTreeMap::new(), false, NOW)?;
        let mut book = Self {
            core,
            folder: folder.to_owned(),
            key,
            next: 0,
        };
        book.core
            .handle(Input::Clock("2026-06-01T00:00:00Z".parse()?), NOW)?;
        Ok(book)
    }

    fn run(&mut self, command: Command) -> Result<(), Failure> {
        self.next += 1;
        let id = self.next;
        Ok(self.core.handle(Input::Command { id, command }, NOW)?)
    }

    /// Does what the book wants; what is for peers comes back, and what it tells is printed.
    fn serve(&mut self) -> Result<Vec<(PeerId, gemba_names::wire::Message)>, Failure> {
        let mut sent = Vec::new();
        while let Some(output) = self.core.poll() {
            let answer = match output {
                Output::Sign {
                    ticket, unsigned, ..
                } => {
                    let key = self.key.as_ref().ok_or("no key is here")?;
                    let result = unsigned.sign(key).map_err(|e| e.to_string());
                    Input::Signed { ticket, result }
                }
                Output::Verify { ticket, candidate } => Input::Verified {
                    ticket,
                    result: candidate.verify(),
                },
                Output::Persist { ticket, key, value } => {
                    let result = self.write(&key, value).map_err(|e| e.to_string());
                    Input::Persisted { ticket, result }
                }
                Output::Done { result, .. } => {
                    result?;
                    continue;
                }
                Output::Event(Event::Changed { now, source, .. }) => {
                    println!("version {} ({})", now.version.sequence, source.as_str());
                    continue;
                }
                Output::Send { peer, message } => {
                    sent.push((peer, message));
                    continue;
                }
                _ => continue,
            };
            self.core.handle(answer, NOW)?;
        }
        Ok(sent)
    }

    /// Durable when it returns.
    fn write(&self, key: &[u8], value: Option<Vec<u8>>) -> std::io::Result<()> {
        let path = self.folder.join(hex(key));
        match value {
            None => fs::remove_file(&path)?,
            Some(value) => {
                let half = path.with_extension("half");
                fs::write(&half, value)?;
                fs::File::open(&half)?.sync_all()?;
                fs::rename(&half, &path)?;
            }
        }
        fs::File::open(&self.folder)?.sync_all()
    }

    fn state(&self, name: &Name) -> Option<Resolved> {
        self.core.resolve(name, NOW)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Result<Vec<u8>, Failure> {
    (0..text.len() / 2)
        .map(|at| Ok(u8::from_str_radix(&text[2 * at..2 * at + 2], 16)?))
        .collect()
}

/// Both talk until neither has anything to say. How many messages carried a record is what crossed the line.
fn connect(a: (&mut Book, PeerId), b: (&mut Book, PeerId)) -> Result<usize, Failure> {
    a.0.core.handle(Input::Connected(b.1), NOW)?;
    b.0.core.handle(Input::Connected(a.1), NOW)?;
    let mut messages = 0;
    loop {
        let (from_a, from_b) = (a.0.serve()?, b.0.serve()?);
        if from_a.is_empty() && from_b.is_empty() {
            return Ok(messages);
        }
        messages += from_a.len() + from_b.len();
        for (_, message) in from_a {
            let peer = a.1;
            b.0.core.handle(Input::Message { peer, message }, NOW)?;
        }
        for (_, message) in from_b {
            let peer = b.1;
            a.0.core.handle(Input::Message { peer, message }, NOW)?;
        }
    }
}

fn main() -> Result<(), Failure> {
    let dir = tempfile::tempdir()?;
    let key = Keypair::generate_ed25519();
    let name = Name::of(&key.public());

    // A work cell without network counts pieces; each count is a version of its name.
    let cell = dir.path().join("cell");
    let mut book = Book::open(&cell, Some(key.clone()))?;
    book.run(Command::Own(name))?;
    for pieces in 1..=100 {
        let value = format!("/ipfs/bafkqaaa/pieces/{pieces}");
        book.run(Command::Publish(Publish::new(name, value)))?;
        book.serve()?;
    }
    drop(book);

    // It restarts: the last count is there, and the next number is above it.
    let mut book = Book::open(&cell, Some(key))?;
    let state = book.state(&name).ok_or("the state is lost")?;
    assert_eq!(state.version.value, b"/ipfs/bafkqaaa/pieces/100");
    book.run(Command::Publish(Publish::new(
        name,
        "/ipfs/bafkqaaa/pieces/101",
    )))?;
    book.serve()?;

    // The line is back: whoever follows the name gets the newest, once.
    let mut office = Book::open(&dir.path().join("office"), None)?;
    office.run(Command::Follow(name))?;
    let messages = connect(
        (&mut book, PeerId::random()),
        (&mut office, PeerId::random()),
    )?;
    let state = office.state(&name).ok_or("nothing came")?;
    assert_eq!(
        (state.version.sequence, state.version.value.as_slice()),
        (100, b"/ipfs/bafkqaaa/pieces/101".as_slice())
    );
    assert!(messages < 10, "a hundred versions, and {messages} messages");
    println!("the office has version 100 after {messages} messages");
    Ok(())
}
