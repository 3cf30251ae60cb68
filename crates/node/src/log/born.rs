//! Was the log copied? A copy may be older than what others have of this node: a backup that came back, a device that was cloned. Whoever goes on
//! writing where it ends gives places to events that other events have elsewhere (specs/log.md LOG-5).
//!
//! The file system tells: a file that was copied was made anew, whatever times the copy was given, so its time of birth is another one. It is noted
//! beside the log, and travels with a copy; with it goes the least epoch that this node may begin since it was one. Where a file system knows no
//! such time, and for images of whole disks, nothing is found out here; there is `gemba log restored`, and what others give back.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::error::Fail;
use crate::files;

/// Two numbers, a line each.
const MAX_BYTES: u64 = 64;

/// When the log's `version` file was made, and what was noted of that.
pub(super) struct Born {
    note: PathBuf,
    made: Option<String>,
    noted: Option<String>,
    least_epoch: u64,
}

impl Born {
    /// Of the log `events` in this folder.
    pub(super) fn read(dir: &Path) -> Self {
        let note = dir.join("events.born");
        let text = files::read_limited(&note, MAX_BYTES).unwrap_or_default();
        let text = String::from_utf8_lossy(&text).into_owned();
        let mut lines = text.lines();
        let noted = lines.next().filter(|made| *made != UNKNOWN);
        let noted = noted.map(str::to_owned);
        let least_epoch = lines.next().and_then(|least| least.parse().ok());
        let version = std::fs::metadata(dir.join("events/version"));
        Self {
            note,
            made: version.and_then(|file| file.created()).ok().map(written),
            noted,
            least_epoch: least_epoch.unwrap_or(0),
        }
    }

    /// The least epoch that a feed of this node may begin.
    pub(super) fn least_epoch(&self) -> u64 {
        self.least_epoch
    }

    /// Whether these are not the files that were noted.
    pub(super) fn is_copy(&self) -> bool {
        matches!((&self.made, &self.noted), (Some(made), Some(noted)) if made != noted)
    }

    /// Notes that these are the files, and that no epoch below `least` may begin.
    ///
    /// # Errors
    /// The disk's.
    pub(super) fn note(&self, least: u64) -> Result<(), Fail> {
        let least = least.max(self.least_epoch);
        if self.made == self.noted && least == self.least_epoch {
            return Ok(());
        }
        let made = self.made.as_deref().unwrap_or(UNKNOWN);
        files::replace(&self.note, format!("{made}\n{least}\n").as_bytes())
    }
}

/// Stands where the file system does not say.
const UNKNOWN: &str = "-";

/// Nanoseconds since 1970.
fn written(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}
