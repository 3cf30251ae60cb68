//! Pins without a daemon: what is whole already can be pinned, the rest is the daemon's.

use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

use cid::Cid;
use gemba_block::{Block, codec};
use gemba_pins::{
    Add, Edit, Kind, MissingCause, Name, Pin, Progress, Size, State, Walk, WalkConfig,
};
use gemba_store::{Store, StoreError};

use crate::error::{Code, Fail};
use crate::meta::{Meta, PinEdit, PinRows, PinState as _};
use crate::names::follows;
use crate::repo::store_fail;

/// Missing blocks that are counted before a walk gives up.
const MAX_MISSING: usize = 10_000;

/// What of a DAG is on this device.
#[derive(Clone, Debug)]
pub struct Presence {
    /// Blocks and bytes that are here, and what is missing.
    pub progress: Progress,
    /// Some of the missing blocks; those that are damaged on disk are among them.
    pub missing: Vec<Cid>,
    /// The first of them that is damaged, and how.
    pub damaged: Option<Fail>,
}

impl Presence {
    /// Whether everything is here.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty()
    }
}

/// Walks a DAG over the blocks that are here.
///
/// # Errors
/// [`Code::Integrity`] for a block that cannot be read as its codec says, or a DAG over the limits; the disk's.
pub fn presence(store: &Store, root: &Cid, kind: Kind) -> Result<Presence, Fail> {
    look(store, root, kind, Look::Keep, || Ok(()))
}

/// The same, and every block is read and so checked, as long as `go_on` lets it.
///
/// # Errors
/// As [`presence`], and those of `go_on`, which is asked before each block.
pub fn inspect(
    store: &Store,
    root: &Cid,
    kind: Kind,
    go_on: impl Fn() -> Result<(), Fail>,
) -> Result<Presence, Fail> {
    look(store, root, kind, Look::Read, go_on)
}

fn look(
    store: &Store,
    root: &Cid,
    kind: Kind,
    look: Look,
    go_on: impl Fn() -> Result<(), Fail>,
) -> Result<Presence, Fail> {
    let mut key = [0; 16];
    getrandom::fill(&mut key)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    let config = WalkConfig::default()
        .max_missing(MAX_MISSING)
        .visited_key(key);
    let mut walk = Walk::of_kind(*root, kind, config);
    let mut damaged = None;
    while let Some(cid) = walk.next_need() {
        go_on()?;
        if let Some(damage) = visit(store, &mut walk, &cid, look)? {
            damaged.get_or_insert(damage);
        }
    }
    if let State::Refused(cause) = walk.state() {
        return Err(refused(cause));
    }
    Ok(Presence {
        progress: walk.progress(),
        missing: walk.missing().map(|(cid, _)| *cid).collect(),
        damaged,
    })
}

/// A DAG that nobody can walk, because of what it is.
fn refused(cause: impl std::fmt::Display) -> Fail {
    Fail::new(Code::Integrity, cause)
        .hint("whoever made it has to add it again; `gemba repo verify` tells whether the disk here is at fault")
}

/// How a walk looks at blocks without links.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// Whether they are here.
    Only,
    /// The same, and they count as used: whoever is about to pin them holds a guard, and only what was put, read or touched under it stays.
    Keep,
    /// They are read, and so checked.
    Read,
}

/// Looks one block up; what is wrong with it if it is damaged.
pub(super) fn visit(
    store: &Store,
    walk: &mut Walk,
    cid: &Cid,
    look: Look,
) -> Result<Option<Fail>, Fail> {
    const IDENTITY: u64 = 0;
    if cid.hash().code() == IDENTITY {
        let block = Block::danger_unchecked(*cid, cid.hash().digest().to_vec());
        return links_into(walk, &block, 0).map(|()| None);
    }
    // A raw block has no links: that it is there is all that need be known.
    if cid.codec() == codec::RAW && look != Look::Read {
        let is_there = look == Look::Only || store.touch(cid);
        let size = is_there.then(|| store.size(cid)).flatten();
        match size {
            Some(size) => walk.have(cid, size, []).map_err(refused)?,
            None => walk.on_missing(cid, MissingCause::NoPeers),
        }
        return Ok(None);
    }
    match store.get(cid) {
        // What can be read and counts as damaged all the same, in a pack that was set aside, is fetched again.
        Ok(Some(data)) if store.has(cid) => {
            let size = data.len() as u64;
            links_into(walk, &Block::danger_unchecked(*cid, data), size).map(|()| None)
        }
        Ok(_) => {
            walk.on_missing(cid, MissingCause::NoPeers);
            Ok(None)
        }
        // As good as missing: fetching it again repairs it.
        Err(e @ StoreError::Corrupt { .. }) => {
            walk.on_missing(cid, MissingCause::Local(e.to_string()));
            Ok(Some(store_fail(&e)))
        }
        Err(e) => Err(store_fail(&e)),
    }
}

fn links_into(walk: &mut Walk, block: &Block, size: u64) -> Result<(), Fail> {
    match gemba_block::links(block) {
        Ok(links) => walk.have(block.cid(), size, links).map_err(refused),
        Err(e) => walk
            .on_unreadable(block.cid(), e.to_string())
            .map_err(refused),
    }
}

/// Records that `root` is wanted and whole. The caller has seen to it that every block is durable, under a guard of the store that
/// it holds until this returns: else a collection may have taken some of them away again.
///
/// # Errors
/// [`Code::Conflict`] if it contradicts a pin that is there; the disk's.
pub fn record_whole(
    meta: &Meta,
    (root, kind): (Cid, Kind),
    name: Option<Name>,
    size: Option<Size>,
) -> Result<Pin, Fail> {
    // One transaction: the pin is never seen as wanted and not whole.
    let add = Add {
        cid: root,
        kind,
        name,
        now_ms: now_ms(),
    };
    let edited = meta.edit_one(PinEdit::Whole(add, size))?;
    edited
        .after
        .ok_or_else(|| Fail::internal("the pin vanished while it was written"))
}

/// Pins what is here already.
///
/// # Errors
/// [`Code::NotFound`] if blocks are missing, as for every command that does not find one here: only a daemon can fetch them.
pub fn add(
    store: &Store,
    meta: &Meta,
    root: Cid,
    kind: Kind,
    name: Option<Name>,
) -> Result<(Pin, Progress), Fail> {
    // From the first read until the pin is recorded nothing of it is collected.
    let _guard = store.guard();
    let presence = presence(store, &root, kind)?;
    if let Some(damage) = presence.damaged {
        return Err(damage);
    }
    if !presence.is_whole() {
        return Err(missing_fail(&root, &presence));
    }
    let size = Size {
        blocks: presence.progress.blocks_done,
        bytes: presence.progress.bytes_done,
    };
    let pin = record_whole(meta, (root, kind), name, Some(size))?;
    Ok((pin, presence.progress))
}

fn missing_fail(root: &Cid, presence: &Presence) -> Fail {
    let missing = presence.missing.len();
    let more = if missing >= MAX_MISSING {
        "at least "
    } else {
        ""
    };
    let cause = match presence.missing.as_slice() {
        [only] if only == root => format!("block {root} is not on this device"),
        [only] => format!("one of its blocks, {only}, is not on this device"),
        _ => format!("{more}{missing} of its blocks are not on this device"),
    };
    Fail::new(
        Code::NotFound,
        format!("{cause}, and no daemon runs to fetch what is missing"),
    )
    .hint(format!(
        "start one with `gemba daemon`, then `gemba pin add {root}`"
    ))
}

/// Kind and name of the pin that takes the place of this one.
///
/// # Errors
/// [`Code::Usage`] for a name that is none.
pub fn updated(older: &Pin, name: Option<String>) -> Result<(Kind, Option<String>), Fail> {
    if let Some(name) = name {
        parse_name(&name)?;
        return Ok((older.kind, Some(name)));
    }
    let own = older.name.as_ref().map(Name::as_str);
    // The label of a follow is that follow's.
    let own = own.filter(|name| !crate::names::follows::is_label(name));
    Ok((older.kind, own.map(str::to_owned)))
}

/// Removes a pin, but for what a followed name needs. The blocks stay until they are collected.
///
/// # Errors
/// [`Code::NotFound`]; [`Code::Conflict`] for what is kept because a name is followed.
pub fn remove(meta: &Meta, root: &Cid) -> Result<(), Fail> {
    let holder = follows::holder(meta, root)?;
    meta.edit_one(PinEdit::Release(*root, holder)).map(drop)
}

/// The pins that say that they are whole and miss a block, or have one that cannot be read.
///
/// # Errors
/// The pins cannot be read.
pub fn not_whole(store: &Store, pins: &PinRows) -> Result<Vec<Cid>, Fail> {
    let mut lacking = Vec::new();
    for pin in pins.iter() {
        let pin = pin?;
        let is_whole = || presence(store, &pin.cid, pin.kind).is_ok_and(|here| here.is_whole());
        if pin.complete && !is_whole() {
            lacking.push(pin.cid);
        }
    }
    Ok(lacking)
}

/// Strikes out the completeness of pins that miss a block; how many there were.
///
/// # Errors
/// The disk's.
pub fn strike_out(store: &Store, meta: &Meta) -> Result<u64, Fail> {
    let roots = not_whole(store, &meta.pins()?)?;
    let struck = |root: &Cid| PinEdit::Plain(*root, Edit::Incomplete);
    let edits: Vec<PinEdit> = roots.iter().map(struck).collect();
    if !edits.is_empty() {
        meta.edit(&edits)?;
    }
    Ok(edits.len() as u64)
}

/// A pin that needs this block, if there is one.
///
/// # Errors
/// The store's.
pub fn holder_of(store: &Store, pins: &PinRows, cid: &Cid) -> Result<Option<Cid>, Fail> {
    // What one pin visited, the next need not visit again: a DAG seen without the block cannot hold it.
    let mut seen = HashSet::new();
    for pin in pins.iter() {
        let pin = pin?;
        let mut open = vec![pin.cid];
        while let Some(next) = open.pop() {
            if next.hash() == cid.hash() {
                return Ok(Some(pin.cid));
            }
            // A direct pin says nothing of what is below: its root is not seen yet by the recursive ones.
            let is_end = next.codec() == codec::RAW || pin.kind == Kind::Direct;
            if is_end || !seen.insert(next) {
                continue;
            }
            if let Some(data) = store.get(&next).map_err(|e| store_fail(&e))? {
                open.extend(
                    gemba_block::links(&Block::danger_unchecked(next, data)).unwrap_or_default(),
                );
            }
        }
    }
    Ok(None)
}

/// The name of a pin as people type it.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_name(text: &str) -> Result<Name, Fail> {
    crate::names::follows::check_pin_name(text)?;
    Name::new(text).map_err(|e| Fail::new(Code::Usage, e))
}

/// For display only, never for order.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::cell::Cell;

    use gemba_block::Block;

    use super::*;

    /// A client that goes away ends the reading of a large pin at the next block.
    #[test]
    fn an_inspection_ends_when_it_is_no_longer_wanted() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), gemba_store::Config::default()).unwrap();
        let leaves = [0, 1, 2].map(|n: u8| Block::raw(vec![n]).unwrap());
        let links = leaves
            .iter()
            .map(|leaf| gemba_unixfs::dagpb::Link::new(*leaf.cid(), b"", 1));
        let root = Block::dag_pb(gemba_unixfs::dagpb::encode(links, None)).unwrap();
        store.put_many(&leaves).unwrap();
        store.put_many(std::slice::from_ref(&root)).unwrap();
        let asked = Cell::new(0);
        let most = |most| {
            asked.set(0);
            let go_on = || {
                asked.set(asked.get() + 1);
                match asked.get() > most {
                    true => Err(Fail::new(Code::Interrupted, "the client went away")),
                    false => Ok(()),
                }
            };
            inspect(&store, root.cid(), Kind::Recursive, go_on)
        };
        assert!(most(4).unwrap().is_whole());
        assert_eq!(most(2).unwrap_err().code, Code::Interrupted);
        assert_eq!(asked.get(), 3, "no block after that");
    }
}
