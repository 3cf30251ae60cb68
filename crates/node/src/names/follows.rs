//! What is kept of a followed name: which versions are on this device, and which one is on its way. One row a name, in JSON; the pointer itself, the
//! complete version, is in the book (specs/names.md NA-19).
//!
//! The row is written before what it names is pinned, and before what it no longer names is released. So whatever a power cut leaves, the rows tell which
//! pins belong to them: those with the label of a follow that no row needs are released at the next start.

use std::collections::BTreeSet;

use cid::Cid;
use gemba_names::{Name, Resolved, Version};
use serde::{Deserialize, Serialize};

use super::{root_of, value_text};
use crate::api::types::{FollowStatus, FollowVersion};
use crate::error::{Code, Fail};
use crate::meta::{Meta, Row as Stored, Table};

/// The form that is written.
const FORMAT: u32 = 1;
/// Versions that are kept, the present one among them, if nobody says otherwise.
pub const KEEP: usize = 2;
/// Most versions that can be kept.
pub const MOST_KEPT: usize = 100;
/// What the labels of pins begin with that belong to a follow.
pub const LABEL: &str = "follow:";

/// A version that is here, or on its way.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kept {
    /// Its number.
    pub sequence: u64,
    /// What the name pointed to: a path, or a CID in bytes, in base 64.
    value: String,
    /// What has to be whole for it.
    #[serde(with = "cid_text")]
    pub root: Cid,
}

impl Kept {
    /// The version, as far as a device can keep it.
    ///
    /// # Errors
    /// Why it cannot, in words.
    pub fn of(version: &Version) -> Result<Self, String> {
        Ok(Self {
            sequence: version.sequence,
            value: data_encoding::BASE64.encode(&version.value),
            root: root_of(&version.value)?,
        })
    }

    /// The version as the book knows it.
    #[must_use]
    pub fn version(&self) -> Version {
        // It was written from bytes, and a row that holds something else is refused.
        let value = data_encoding::BASE64.decode(self.value.as_bytes());
        Version {
            sequence: self.sequence,
            value: value.unwrap_or_default(),
        }
    }

    /// What it points to, as text.
    #[must_use]
    pub fn value(&self) -> String {
        value_text(&self.version().value)
    }
}

/// What is kept of one followed name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Follow {
    format: u32,
    /// Versions that are kept, the present one among them.
    pub keep: usize,
    /// Those that are whole here; the last is the present one.
    pub versions: Vec<Kept>,
    /// The one that is being fetched.
    pub target: Option<Kept>,
    /// After a rollback: only a version above this number moves the pointer again.
    pub held_at: Option<u64>,
}

impl Follow {
    /// A name of which nothing is here yet.
    #[must_use]
    pub fn new(keep: usize) -> Self {
        Self {
            format: FORMAT,
            keep: keep.clamp(1, MOST_KEPT),
            versions: Vec::new(),
            target: None,
            held_at: None,
        }
    }

    /// The present version.
    #[must_use]
    pub fn present(&self) -> Option<&Kept> {
        self.versions.last()
    }

    fn is_present(&self, version: &Version) -> bool {
        self.present()
            .is_some_and(|present| present.version() == *version)
    }

    /// Everything that is to stay on this device because of it.
    pub fn roots(&self) -> impl Iterator<Item = Cid> + '_ {
        self.versions
            .iter()
            .chain(&self.target)
            .map(|kept| kept.root)
    }

    /// Whether a version is to be fetched: it is newer than what is here, and not held back by a rollback.
    #[must_use]
    pub fn wants(&self, version: &Version) -> bool {
        let is = |kept: &Kept| kept.version() == *version;
        let held = self.held_at.is_some_and(|held| version.sequence <= held);
        !held && !self.present().is_some_and(is) && !self.target.as_ref().is_some_and(is)
    }

    /// A version is whole and is the present one from now on. Older ones go, but for those that are kept.
    pub fn arrived(&mut self, version: Kept) {
        self.target.take_if(|target| *target == version);
        self.versions.retain(|kept| *kept != version);
        self.versions.push(version);
        self.trim();
    }

    /// Lets go of the oldest versions beyond those that are kept.
    pub fn trim(&mut self) {
        let excess = self.versions.len().saturating_sub(self.keep);
        self.versions.drain(..excess);
    }

    /// The version to go back to: that number, or the one before the present.
    ///
    /// # Errors
    /// [`Code::NotFound`].
    pub fn earlier(&self, name: &Name, to: Option<u64>) -> Result<Kept, Fail> {
        let fail = |cause: String| {
            Fail::new(Code::NotFound, cause)
                .hint("`gemba name follow ls` shows the versions that are here; --keep says how many are kept")
        };
        match to {
            Some(to) => self
                .versions
                .iter()
                .find(|kept| kept.sequence == to)
                .cloned()
                .ok_or_else(|| fail(format!("version {to} of {name} is not on this device"))),
            None => self.versions.iter().rev().nth(1).cloned().ok_or_else(|| {
                fail(format!(
                    "there is no earlier version of {name} on this device"
                ))
            }),
        }
    }

    /// Goes back. Newer versions up to `newest` are left alone from now on.
    pub fn go_back(&mut self, to: &Kept, newest: u64) {
        self.held_at = Some(newest.max(to.sequence));
        self.target = None;
        self.versions.retain(|kept| kept != to);
        self.versions.push(to.clone());
    }

    /// How it is: what the name points to, what is whole, and what is kept. Progress is the daemon's to add.
    #[must_use]
    pub fn told(
        &self,
        name: &Name,
        newest: Option<&Resolved>,
        whole: Option<&Resolved>,
    ) -> FollowStatus {
        let held = |newest: &Resolved| {
            self.held_at
                .is_some_and(|held| newest.version.sequence <= held)
        };
        let status = match (newest, whole) {
            (None, _) => "unknown",
            // An own version may be whole before the follow keeps it.
            (Some(newest), Some(whole))
                if newest.version == whole.version && self.is_present(&whole.version) =>
            {
                "complete"
            }
            (Some(newest), _) if held(newest) => "held",
            _ => "fetching",
        };
        let value = |of: &Resolved| value_text(&of.version.value);
        let version = |kept: &Kept| FollowVersion {
            sequence: kept.sequence,
            value: kept.value(),
        };
        FollowStatus {
            name: name.to_string(),
            status: status.to_owned(),
            value: newest.map(value),
            sequence: newest.map(|newest| newest.version.sequence),
            complete_value: whole.map(value),
            complete_sequence: whole.map(|whole| whole.version.sequence),
            keep: self.keep as u64,
            versions: self.versions.iter().map(version).collect(),
            ..FollowStatus::default()
        }
    }

    /// The row that keeps it.
    ///
    /// # Errors
    /// None that can happen: the form has no case that JSON has not.
    pub fn row(&self, name: &Name) -> Result<Stored, Fail> {
        let value = serde_json::to_vec(self).map_err(Fail::internal)?;
        Ok(Stored {
            table: Table::Follows,
            key: name.to_bytes(),
            value: Some(value),
        })
    }
}

/// The row of a name that is followed no longer.
#[must_use]
pub fn gone(name: &Name) -> Stored {
    Stored {
        table: Table::Follows,
        key: name.to_bytes(),
        value: None,
    }
}

/// Everything that is followed.
///
/// # Errors
/// [`Code::Integrity`] for a row that cannot be read: what is overlooked would be released. [`Code::Conflict`] for one of a newer gemba.
pub fn load(meta: &Meta) -> Result<Vec<(Name, Follow)>, Fail> {
    let rows = meta.rows(Table::Follows)?;
    rows.iter().map(|(key, value)| read(key, value)).collect()
}

fn read(key: &[u8], value: &[u8]) -> Result<(Name, Follow), Fail> {
    let damaged = |cause: String| {
        Fail::new(
            Code::Integrity,
            format!("what is kept of a followed name is damaged: {cause}"),
        )
        .hint("put a copy of meta/ back; the versions themselves are pinned and not affected")
    };
    let name = Name::from_bytes(key).map_err(|e| damaged(e.to_string()))?;
    let follow: Follow = serde_json::from_slice(value).map_err(|e| damaged(e.to_string()))?;
    if follow.format > FORMAT {
        return Err(Fail::new(
            Code::Conflict,
            format!(
                "what is kept of {name} was written by a newer gemba (form {})",
                follow.format
            ),
        )
        .hint("nothing was changed; `gemba --version` tells which gemba this is"));
    }
    Ok((name, follow))
}

/// A name that is not followed.
#[must_use]
pub fn not_followed(name: &Name) -> Fail {
    Fail::new(Code::NotFound, format!("{name} is not followed"))
        .hint("`gemba name follow ls` lists the names that are; `gemba name follow add` begins")
}

/// The label of the follow that needs a root, if one does.
///
/// # Errors
/// As [`load`].
pub fn holder(meta: &Meta, root: &Cid) -> Result<Option<String>, Fail> {
    let mut all = load(meta)?.into_iter();
    let holder = all.find(|(_, follow)| follow.roots().any(|held| held == *root));
    Ok(holder.map(|(name, _)| label(&name)))
}

/// The label of pins that belong to the follow of a name.
#[must_use]
pub fn label(name: &Name) -> String {
    format!("{LABEL}{name}")
}

/// Whether a pin's label says that it belongs to a follow. Anything else that begins alike is somebody's own.
#[must_use]
pub fn is_label(label: &str) -> bool {
    let name = label.strip_prefix(LABEL).map(str::parse::<Name>);
    matches!(name, Some(Ok(name)) if self::label(&name) == label)
}

/// Why a pin under the label of a follow cannot be taken away.
#[must_use]
pub fn held(cid: &Cid, label: &str) -> Fail {
    let name = label.strip_prefix(LABEL).unwrap_or(label);
    let fail = Fail::new(
        Code::Conflict,
        format!("{cid} is kept because {name} is followed"),
    );
    fail.hint(format!(
        "`gemba name follow rm {name}` releases all of its versions; --keep of `gemba name follow add` says how many are kept"
    ))
}

/// Refuses such a label for a pin that somebody makes himself: it would be released when nothing is followed that needs it.
///
/// # Errors
/// [`Code::Usage`].
pub fn check_pin_name(text: &str) -> Result<(), Fail> {
    if !is_label(text) {
        return Ok(());
    }
    let cause = format!("the pin name {text:?} is kept for what followed names need");
    Err(Fail::new(Code::Usage, cause)
        .hint("choose another; `gemba name follow add` keeps what a name points to"))
}

/// Everything that some follow needs.
#[must_use]
pub fn needed<'a>(follows: impl IntoIterator<Item = &'a Follow>) -> BTreeSet<Cid> {
    follows.into_iter().flat_map(Follow::roots).collect()
}

mod cid_text {
    use cid::Cid;
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(cid: &Cid, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(cid)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Cid, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use gemba_names::Keypair;

    fn version(sequence: u64) -> Version {
        let cid = *gemba_block::Block::raw(sequence.to_string()).unwrap().cid();
        Version {
            sequence,
            value: format!("/ipfs/{cid}").into_bytes(),
        }
    }

    fn sequences(follow: &Follow) -> Vec<u64> {
        follow.versions.iter().map(|kept| kept.sequence).collect()
    }

    #[test]
    fn the_newest_versions_stay_and_a_rollback_holds_until_something_newer_comes() {
        let name = Name::of(&Keypair::generate_ed25519().public());
        let mut follow = Follow::new(2);
        assert!(follow.earlier(&name, None).is_err());
        for n in 0..4 {
            assert!(follow.wants(&version(n)));
            let kept = Kept::of(&version(n)).unwrap();
            follow.target = Some(kept.clone());
            assert!(!follow.wants(&version(n)));
            follow.arrived(kept);
            assert!(!follow.wants(&version(n)) && follow.target.is_none());
        }
        assert_eq!(sequences(&follow), [2, 3]);
        let back = follow.earlier(&name, None).unwrap();
        assert_eq!((back.sequence, back.version()), (2, version(2)));
        follow.go_back(&back, 3);
        assert_eq!(sequences(&follow), [3, 2]);
        assert!(!follow.wants(&version(3)) && follow.wants(&version(4)));
        assert!(follow.earlier(&name, Some(7)).is_err());
        assert_eq!(follow.earlier(&name, Some(3)).unwrap().sequence, 3);

        let row = follow.row(&name).unwrap();
        assert_eq!(
            read(&row.key, row.value.as_ref().unwrap()).unwrap(),
            (name, follow.clone())
        );
        follow.format = 9;
        let row = follow.row(&name).unwrap();
        assert_eq!(
            read(&row.key, row.value.as_ref().unwrap())
                .unwrap_err()
                .code,
            Code::Conflict
        );
        assert_eq!(read(&row.key, b"{}").unwrap_err().code, Code::Integrity);
    }

    #[test]
    fn only_the_label_of_a_follow_is_one_and_nobody_else_gets_it() {
        let name = Name::of(&Keypair::generate_ed25519().public());
        assert!(is_label(&label(&name)) && check_pin_name(&label(&name)).is_err());
        for own in ["follow:", "follow:up", "app", &format!("{} ", label(&name))] {
            assert!(!is_label(own) && check_pin_name(own).is_ok(), "{own}");
        }
    }

    #[test]
    fn what_points_to_no_content_cannot_be_kept() {
        let name = Name::of(&Keypair::generate_ed25519().public());
        let value = format!("/ipns/{name}").into_bytes();
        assert!(Kept::of(&Version { sequence: 0, value }).is_err());
    }
}
