//! The book without a daemon: what makes sense offline, done at once and durable when it returns.

use std::time::Duration;

use gemba_names::{Command, Core, Done, Input, Keypair, Name, Output, Publish, Refused, Version};

use super::follows::{self, Follow};
use super::{Marks, load, refused, wall_clock};
use crate::api::types::FollowStatus;
use crate::error::Fail;
use crate::keystore::Keystore;
use crate::meta::{Meta, PinState as _, Row, Table};
use crate::repo::{Access, Repo};

/// Nothing here waits, so all happens at one moment.
const NOW: Duration = Duration::ZERO;

/// The book of a repository that no daemon has.
pub struct Book {
    /// What is known, for questions.
    pub core: Core,
    meta: Meta,
    marks: Marks,
    keys: Vec<Keypair>,
    ids: u64,
}

impl Book {
    /// Opens it.
    ///
    /// # Errors
    /// The disk's; a damaged row is told in the log, and its name is looked for anew.
    pub fn open(repo: &Repo) -> Result<Self, Fail> {
        let meta = repo.meta()?;
        let (mut core, damaged) = load(&repo.layout, &meta, &repo.config.names)?;
        for row in damaged {
            tracing::error!(error = %row.error, "a row of the book of names is damaged");
        }
        // Facts are never refused.
        let _ = core.handle(Input::Clock(wall_clock()), NOW);
        let keys = match repo.access() {
            Access::Write => {
                let keys = Keystore::of(&repo.layout).keys()?;
                keys.into_iter().map(|(_, keypair)| keypair).collect()
            }
            Access::Read => Vec::new(),
        };
        Ok(Self {
            core,
            meta,
            marks: Marks::open(repo.layout.names_marks()),
            keys,
            ids: 0,
        })
    }

    /// Publishes; returns the number. Whoever connects later is told.
    ///
    /// # Errors
    /// What the book refuses.
    pub fn publish(&mut self, publish: Publish, accept_fork: bool) -> Result<u64, Fail> {
        let name = publish.name;
        self.run(Command::Own(name))?;
        if accept_fork {
            self.run(Command::AcceptFork(name))?;
        }
        let value = publish.value.clone();
        match self.run(Command::Publish(publish))? {
            Done::Published { sequence } => {
                self.complete_own(name, Version { sequence, value })?;
                Ok(sequence)
            }
            Done::Ok => Err(Fail::internal("a publication without a number")),
        }
    }

    /// What is published here and pinned whole here is complete, unless the name is followed as well, which then says so.
    fn complete_own(&mut self, name: Name, version: Version) -> Result<(), Fail> {
        let Ok(root) = super::root_of(&version.value) else {
            return Ok(());
        };
        let is_whole = self
            .meta
            .pins()?
            .get(&root)?
            .is_some_and(|pin| super::is_whole(&pin));
        if is_whole && self.followed(&name)?.is_none() {
            self.run(Command::Complete {
                name,
                version,
                rollback: false,
            })?;
        }
        Ok(())
    }

    /// Runs a command of the book to its end.
    ///
    /// # Errors
    /// What the book refuses, or the disk.
    pub fn run(&mut self, command: Command) -> Result<Done, Fail> {
        self.ids += 1;
        let id = self.ids;
        self.core
            .handle(Input::Command { id, command }, NOW)
            .map_err(|e| refused(&e))?;
        let mut outcome = None;
        let mut marks = Vec::new();
        while let Some(output) = self.core.poll() {
            match output {
                Output::Sign {
                    ticket,
                    name,
                    unsigned,
                } => {
                    let result = self
                        .keys
                        .iter()
                        .find(|key| Name::of(&key.public()) == name)
                        .ok_or_else(|| "its key is not on this device".to_owned())
                        .and_then(|key| unsigned.sign(key).map_err(|e| e.to_string()));
                    self.feed(Input::Signed { ticket, result });
                }
                Output::Verify { ticket, candidate } => {
                    let result = candidate.verify();
                    self.feed(Input::Verified { ticket, result });
                }
                Output::Persist { ticket, key, value } => {
                    let row = Row {
                        table: Table::Names,
                        key,
                        value,
                    };
                    let written = self.meta.write_rows(std::slice::from_ref(&row));
                    let result = written.map_err(|fail| fail.cause);
                    self.feed(Input::Persisted { ticket, result });
                }
                Output::Mark { name, sequence } => marks.push((name, sequence)),
                Output::Done { id: done, result } if done == id => outcome = Some(result),
                // There is nobody to be told.
                _ => {}
            }
        }
        self.marks.note(marks)?;
        outcome
            .unwrap_or_else(|| Err(Refused::Disk("no answer of the book".to_owned())))
            .map_err(|e| refused(&e))
    }

    fn feed(&mut self, input: Input) {
        // Facts are never refused.
        let _ = self.core.handle(input, NOW);
    }

    /// Follows a name from the next start of a daemon on.
    ///
    /// # Errors
    /// The book's, the disk's.
    pub fn follow(&mut self, name: Name, keep: usize) -> Result<FollowStatus, Fail> {
        self.run(Command::Follow(name))?;
        let mut follow = self.followed(&name)?.unwrap_or_else(|| Follow::new(keep));
        follow.keep = keep;
        follow.trim();
        self.meta.write_rows(&[follow.row(&name)?])?;
        Ok(self.status(&name, &follow))
    }

    /// Follows it no longer. The next daemon releases what was kept of it.
    ///
    /// # Errors
    /// It is not followed; as [`Book::follow`].
    pub fn unfollow(&mut self, name: Name) -> Result<FollowStatus, Fail> {
        let follow = self
            .followed(&name)?
            .ok_or_else(|| follows::not_followed(&name))?;
        let told = self.status(&name, &follow);
        self.meta.write_rows(&[follows::gone(&name)])?;
        self.run(Command::Unfollow(name))?;
        Ok(told)
    }

    /// Goes back to an earlier version that is here.
    ///
    /// # Errors
    /// It is not followed, or the version is not here; as [`Book::follow`].
    pub fn roll_back(&mut self, name: Name, to: Option<u64>) -> Result<FollowStatus, Fail> {
        let mut follow = self
            .followed(&name)?
            .ok_or_else(|| follows::not_followed(&name))?;
        let back = follow.earlier(&name, to)?;
        let newest = self.core.resolve(&name, NOW);
        follow.go_back(
            &back,
            newest.map_or(back.sequence, |newest| newest.version.sequence),
        );
        self.meta.write_rows(&[follow.row(&name)?])?;
        self.run(Command::Complete {
            name,
            version: back.version(),
            rollback: true,
        })?;
        Ok(self.status(&name, &follow))
    }

    /// Everything that is followed.
    ///
    /// # Errors
    /// The disk's.
    pub fn follows(&self) -> Result<Vec<FollowStatus>, Fail> {
        let all = follows::load(&self.meta)?;
        let told = all.iter().map(|(name, follow)| self.status(name, follow));
        Ok(told.collect())
    }

    fn followed(&self, name: &Name) -> Result<Option<Follow>, Fail> {
        let mut all = follows::load(&self.meta)?.into_iter();
        Ok(all
            .find(|(known, _)| known == name)
            .map(|(_, follow)| follow))
    }

    fn status(&self, name: &Name, follow: &Follow) -> FollowStatus {
        let newest = self.core.resolve(name, NOW);
        let whole = self.core.resolve_complete(name, NOW);
        follow.told(name, newest.as_ref(), whole.as_ref())
    }

    /// The raw record of a name.
    ///
    /// # Errors
    /// Nothing is known of it.
    pub fn record(&self, name: &Name) -> Result<Vec<u8>, Fail> {
        let record = self.core.record(name).ok_or_else(|| super::unknown(name))?;
        Ok(record.bytes().to_vec())
    }
}
