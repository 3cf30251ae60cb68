//! Events as files, for devices that no network reaches: a CAR file of batches (specs/log.md §12), written here and taken in there.

use std::io::{Read, Write};

use gemba_log::{FeedId, Pattern, TransferError};
use serde::{Deserialize, Serialize};

use super::{Events, no_stream};
use crate::content::io_fail;
use crate::error::{Code, Fail};

/// What was taken from a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventsImported {
    /// Batches that were new.
    pub new: u64,
    /// Batches that were here.
    pub present: u64,
    /// Blocks that are no batches of events; they are passed over.
    pub foreign: u64,
    /// Batches that were not taken.
    pub refused: u64,
    /// Why the first of them was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

impl EventsImported {
    /// Some batches were not taken, which is no success.
    ///
    /// # Errors
    /// [`Code::Conflict`].
    pub fn check(&self) -> Result<(), Fail> {
        let Some(why) = self.why.as_ref().filter(|_| self.refused > 0) else {
            return Ok(());
        };
        let cause = format!(
            "batches of the file were not taken ({}): {why}",
            self.refused
        );
        Err(Fail::new(Code::Conflict, cause)
            .hint("all others are stored; a file that begins earlier may have what these follow"))
    }
}

impl Events {
    /// Writes all that is here of the streams that these patterns name.
    ///
    /// # Errors
    /// There are none; damage, which ends the file early; the disk's.
    pub fn export(&self, patterns: &[Pattern], to: &mut dyn Write) -> Result<(), Fail> {
        let feeds = patterns.iter().flat_map(|pattern| self.log.feeds(pattern));
        let feeds: std::collections::BTreeSet<FeedId> = feeds.collect();
        if feeds.is_empty() {
            let names: Vec<String> = patterns.iter().map(ToString::to_string).collect();
            return Err(no_stream(&names.join(", ")));
        }
        let feeds: Vec<FeedId> = feeds.into_iter().collect();
        self.log.export(&feeds, to).map(drop).map_err(transfer_fail)
    }

    /// Takes in the batches of a file, each after it was verified.
    ///
    /// # Errors
    /// It is no such file, or a broken one: what came before is kept. The log's limit, the disk's.
    pub fn import(&self, from: &mut dyn Read) -> Result<EventsImported, Fail> {
        let done = self.log.import(from).map_err(transfer_fail)?;
        Ok(EventsImported {
            new: done.new,
            present: done.present,
            foreign: done.foreign,
            refused: done.refused,
            why: done.why,
        })
    }
}

fn transfer_fail(error: TransferError) -> Fail {
    match error {
        TransferError::File(error) => io_fail(error),
        TransferError::Log(error) => super::fail(&error),
        wrong => Fail::new(Code::Integrity, format!("no events can be taken from this file: {wrong}"))
            .hint("`gemba log export` writes such files; what came before the damage is stored, and a whole copy may be imported again"),
    }
}
