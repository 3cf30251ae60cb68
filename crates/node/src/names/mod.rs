//! Names over a repository: how the book is loaded, what its words become for people, and the book without a daemon.
//!
//! The daemon drives the same core in `daemon/flow/names`; here is what both share.

pub mod follows;
mod marks;
mod offline;

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use cid::Cid;
use gemba_names::{
    Config, Core, Damaged, Inspection, Name, NameError, Record, Refused, ResolveError, Resolved,
    RowError, Wall,
};

use crate::api::types::{NameInspected, NameResolved};
use crate::config::Names as Settings;
use crate::error::{Code, Fail};
use crate::keystore::Keystore;
use crate::meta::{Meta, Table};
use crate::repo::Layout;

pub use marks::Marks;
pub use offline::Book;

/// Names that point to names are followed so far, as a chain without an end must not be.
pub const DEPTH: usize = 8;

/// The book of a repository, and what in it could not be read.
///
/// # Errors
/// The disk's; a book of a newer gemba.
pub fn load(
    layout: &Layout,
    meta: &Meta,
    settings: &Settings,
) -> Result<(Core, Vec<Damaged>), Fail> {
    let rows = meta.rows(Table::Names)?;
    let marks = Marks::read(&layout.names_marks());
    let mut seed = [0; 8];
    getrandom::fill(&mut seed)
        .map_err(|e| Fail::new(Code::Failure, format!("no randomness: {e}")))?;
    let config = Config {
        seed: u64::from_ne_bytes(seed),
        resolve_timeout: settings.resolve_timeout,
        reannounce: settings.reannounce,
        pull: settings.pull,
        dht_put: settings.dht_put,
        dht_tend: settings.dht_tend,
        ..Config::default()
    };
    Core::load(config, rows, marks, false, Duration::ZERO).map_err(|e| match e {
        RowError::Newer { .. } => Fail::new(Code::Conflict, e)
            .hint("nothing was changed; `gemba --version` tells which gemba this is"),
        other => Fail::new(Code::Integrity, other).hint("put a copy of meta/ back"),
    })
}

/// What the wall clock shows. It may be wrong; the book knows how to judge it (specs/names.md §3.1).
#[must_use]
pub fn wall_clock() -> Wall {
    let nanos = |time: Duration| {
        (
            i64::try_from(time.as_secs()).unwrap_or(i64::MAX),
            time.subsec_nanos(),
        )
    };
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => {
            let (seconds, nanos) = nanos(since);
            Wall::from_unix(seconds, nanos)
        }
        Err(before) => Wall::from_unix(-nanos(before.duration()).0, 0),
    }
}

/// The same in milliseconds since 1970, for what people read.
#[must_use]
pub fn wall_ms() -> i64 {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match SystemTime::now().duration_since(UNIX_EPOCH) {
        Ok(since) => ms(since),
        Err(before) => -ms(before.duration()),
    }
}

/// A name as people write it: `k51…`, a base 58 id, either behind `/ipns/`, or the label of a key of this device.
///
/// # Errors
/// [`Code::Usage`] if it is neither.
pub fn parse(text: &str, keys: &Keystore) -> Result<Name, Fail> {
    let error = match text.parse() {
        Ok(name) => return Ok(name),
        Err(error) => error,
    };
    match keys.find(text) {
        Ok((key, _)) => Ok(key.name),
        Err(fail) if fail.code == Code::Integrity || fail.code == Code::Permission => Err(fail),
        Err(_) => Err(name_fail(&error)),
    }
}

/// As [`parse`], where labels of keys are not known: at the API.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_name(text: &str) -> Result<Name, Fail> {
    text.parse().map_err(|e| name_fail(&e))
}

fn name_fail(error: &NameError) -> Fail {
    Fail::new(Code::Usage, error).hint(
        "`gemba key ls` lists the names of this device, `gemba name follow ls` those it follows",
    )
}

/// A name at the beginning of a path, and what stands behind it; `None` where the text begins with a CID of content.
#[must_use]
pub fn split_path(text: &str) -> Option<(Name, &str)> {
    let is_ipns = text.starts_with("/ipns/");
    let bare = text.strip_prefix("/ipns/").unwrap_or(text);
    let end = bare.find('/').unwrap_or(bare.len());
    let (root, rest) = bare.split_at(end);
    // `Qm…` alone is a CID of content, which is what it nearly always is.
    if !is_ipns && (bare.starts_with('/') || root.starts_with("Qm")) {
        return None;
    }
    root.parse().ok().map(|name| (name, rest))
}

/// What a name may be made to point to: a CID, a path below one, or another name.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_value(text: &str) -> Result<String, Fail> {
    if let Some((name, rest)) = split_path(text) {
        return Ok(format!("/ipns/{name}{rest}"));
    }
    let path = crate::content::read::parse_path(text)?;
    let path = path.to_string();
    if path.starts_with("/ipfs/") {
        Ok(path)
    } else {
        Ok(format!("/ipfs/{path}"))
    }
}

/// A value as text: the path, or that of the CID which it is in bytes.
#[must_use]
pub fn value_text(value: &[u8]) -> String {
    if value.first() != Some(&b'/')
        && let Ok(cid) = Cid::try_from(value)
    {
        return format!("/ipfs/{cid}");
    }
    String::from_utf8_lossy(value).into_owned()
}

/// Whether a pin says that all below its root is here. A direct one speaks of one block, which is all where it has no links.
pub fn is_whole(pin: &gemba_pins::Pin) -> bool {
    let reaches_all = pin.kind == gemba_pins::Kind::Recursive;
    pin.complete && (reaches_all || pin.cid.codec() == gemba_block::codec::RAW)
}

/// The root that a value needs on this device: of a path the root of it all, of another name none.
///
/// # Errors
/// Why a device cannot follow there, in words.
pub fn root_of(value: &[u8]) -> Result<Cid, String> {
    let text = value_text(value);
    let Some(path) = text.strip_prefix("/ipfs/") else {
        return Err(format!(
            "it points to {}, which is no content: follow that name itself",
            crate::text::shown(&text)
        ));
    };
    let root = path.split('/').next().unwrap_or_default();
    let cid = gemba_block::parse_cid(root).map_err(|_| {
        format!(
            "it points to {}, which is no CID",
            crate::text::shown(&text)
        )
    })?;
    gemba_block::check_cid(&cid).map_err(|e| format!("it points to {cid}: {e}"))?;
    Ok(cid)
}

/// What `resolve` tells.
#[must_use]
pub fn resolved(resolved: &Resolved) -> NameResolved {
    NameResolved {
        name: resolved.name.to_string(),
        value: value_text(&resolved.version.value),
        sequence: resolved.version.sequence,
        complete: resolved.complete,
        stale: resolved.stale,
        ttl_ns: resolved.ttl_ns,
    }
}

/// What `inspect` tells of a name in the book.
#[must_use]
pub fn inspected(seen: &Inspection) -> NameInspected {
    NameInspected {
        name: seen.name.to_string(),
        value: seen.value.clone(),
        sequence: seen.sequence,
        validity: seen.validity.to_string(),
        validity_type: "EOL".to_owned(),
        ttl_ns: seen.ttl_ns,
        signature: "valid".to_owned(),
        signature_type: seen.signature_type.to_owned(),
        key: seen.key.as_str().to_owned(),
        pb_size: seen.bytes as u64,
        source: seen.source.as_str().to_owned(),
        peer: seen.source.peer().map(|peer| peer.to_string()),
        age_s: seen.age.as_secs(),
        stale: seen.stale,
        own: seen.own,
        followed: seen.followed,
        unsure: seen.unsure,
        complete_sequence: seen.complete.as_ref().map(|version| version.sequence),
        complete_value: seen
            .complete
            .as_ref()
            .map(|version| value_text(&version.value)),
        contradicted: seen
            .contradicted_by
            .as_ref()
            .map(|other| value_text(other.value())),
        revision: seen.revision,
        neighbours: seen.neighbours as u64,
    }
}

/// What `inspect` tells of a record that is not in the book.
#[must_use]
pub fn inspected_record(record: &Record) -> NameInspected {
    NameInspected {
        name: record.name().to_string(),
        value: value_text(record.value()),
        sequence: record.sequence(),
        validity: record.validity().to_string(),
        validity_type: "EOL".to_owned(),
        ttl_ns: record.ttl_ns(),
        signature: "valid".to_owned(),
        signature_type: record.signature_type().to_owned(),
        key: key_kind(record),
        pb_size: record.bytes().len() as u64,
        source: "file".to_owned(),
        stale: record.is_expired(wall_clock()),
        ..NameInspected::default()
    }
}

fn key_kind(record: &Record) -> String {
    use gemba_names::KeyKind;
    KeyKind::of(record.key().key_type()).as_str().to_owned()
}

/// What the book refused, with the code scripts expect.
#[must_use]
pub fn refused(error: &Refused) -> Fail {
    let at = |code| Fail::new(code, error);
    match error {
        Refused::NotOwn(_) => at(Code::NotFound).hint("`gemba key ls` lists the keys of this device"),
        Refused::Unknown(_) => at(Code::NotFound).hint("`gemba name follow ls` lists the names that are followed"),
        Refused::RestoredBackup { .. } => at(Code::Conflict).hint("nothing was published; with --accept-fork the next number is far above all that is known here"),
        Refused::SequenceEnd { .. } => at(Code::Conflict).hint("`gemba key new` makes the new key"),
        Refused::SequenceNotAbove { .. } => at(Code::Conflict).hint("without --sequence the next number is taken"),
        Refused::Value(_) => at(Code::Usage).hint("`gemba add` prints the CID of what was added"),
        Refused::Record(source) => {
            Fail::new(Code::Integrity, format!("the record is not taken: {source}"))
                .hint("nothing was changed; was it made for this name, and copied as a whole?")
        }
        Refused::Expired(_) => at(Code::Integrity).hint("nothing was changed; if the clock of this device is wrong, set it"),
        Refused::Older { .. } => at(Code::Conflict).hint("nothing was changed; `gemba name inspect` shows what is known"),
        Refused::Full { .. } | Refused::Overtaken(_) => at(Code::Conflict).hint("repeat the command"),
        Refused::NeverTold { .. } | Refused::Backwards { .. } => at(Code::Conflict).hint("`gemba name follow ls` shows the versions that are here"),
        Refused::Disk(_) => at(Code::Failure).hint("free space there, or look at the system's log (`dmesg`); a daemon tries again by itself, and what was told before stays true"),
        Refused::Sign(_) => at(Code::Failure).hint("`gemba key ls` tells whether the key can be read"),
        Refused::GivenUp(_) => at(Code::Conflict).hint("`gemba key ls` lists the keys of this device"),
        _ => at(Code::Failure).hint("see the daemon's log"),
    }
}

/// A name that could not be resolved.
#[must_use]
pub fn unresolved(error: &ResolveError) -> Fail {
    match error {
        ResolveError::NotFound { .. } => Fail::new(Code::NotFound, error).hint(
            "is its publisher, somebody who follows it, or a server of the DHT connected? `gemba peers` lists who is, `gemba status` how many servers are known",
        ),
        ResolveError::Expired { .. } => Fail::new(Code::NotFound, error)
            .hint("the publisher's `gemba daemon` signs anew in time by itself"),
        ResolveError::Refused(refusal) => refused(refusal),
        _ => Fail::new(Code::Failure, error).hint("see the daemon's log"),
    }
}

/// A name of which nothing is known on this device.
#[must_use]
pub fn unknown(name: &Name) -> Fail {
    Fail::new(
        Code::NotFound,
        format!("nothing is known of {name} on this device"),
    )
    .hint(
        "`gemba name resolve` with a running daemon looks for it; `gemba name follow add` keeps it",
    )
}

/// A name none of whose versions is whole here.
#[must_use]
pub fn not_whole(name: &Name) -> Fail {
    Fail::new(
        Code::NotFound,
        format!("no version of {name} is whole on this device"),
    )
    .hint("`gemba name follow add` fetches it, `gemba name follow ls` tells how far it is")
}

#[cfg(test)]
mod tests {
    use super::*;

    const NAME: &str = "k51qzi5uqu5dljtg5upm7x7ugan9lql3ewyknv4r4mhhkwzn8n7cnbd1unfwgq";
    const CID: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";

    #[test]
    fn names_are_told_from_content_where_a_path_begins() {
        let told =
            |text: &str| split_path(text).map(|(name, rest)| (name.to_string(), rest.to_owned()));
        let name = |rest: &str| Some((NAME.to_owned(), rest.to_owned()));
        assert_eq!(told(NAME), name(""));
        assert_eq!(told(&format!("/ipns/{NAME}/a/b")), name("/a/b"));
        assert_eq!(told(&format!("{NAME}/a")), name("/a"));
        assert_eq!(
            told("12D3KooWQK1wnefoLrcVHbbnf5tLzbopUd3K3bFAoJpA7YJgL5pV"),
            name("")
        );
        for content in [
            CID,
            "/ipfs/x",
            "QmYwAPJzv5CZsnA625s3Xf2nemtYgPpHdWEz79ojWnPbdG",
            "",
            "/",
        ] {
            assert_eq!(told(content), None, "{content}");
        }
    }

    #[test]
    fn values_are_paths() {
        assert_eq!(parse_value(CID).unwrap(), format!("/ipfs/{CID}"));
        assert_eq!(
            parse_value(&format!("/ipfs/{CID}/a")).unwrap(),
            format!("/ipfs/{CID}/a")
        );
        assert_eq!(parse_value(NAME).unwrap(), format!("/ipns/{NAME}"));
        assert_eq!(parse_value("nothing").unwrap_err().code, Code::Usage);
        let cid: Cid = CID.parse().unwrap();
        assert_eq!(value_text(&cid.to_bytes()), format!("/ipfs/{CID}"));
        assert_eq!(root_of(&cid.to_bytes()), Ok(cid));
        assert_eq!(root_of(format!("/ipfs/{CID}/a/b").as_bytes()), Ok(cid));
        assert!(
            root_of(format!("/ipns/{NAME}").as_bytes())
                .unwrap_err()
                .contains("follow that name")
        );
    }
}
