//! What can go wrong, one small enum an operation.

use crate::name::Name;
use std::time::Duration;

/// A text or bytes that are no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NameError {
    /// Caller: nothing was given.
    #[error("a name is missing: give its k51… form, as `gemba key ls` prints it")]
    Empty,
    /// Caller: longer than any name.
    #[error("a name has at most 128 characters, this text has {0}")]
    TooLong(usize),
    /// Caller: there is something behind the name.
    #[error(
        "{0:?} has a path behind the name: give the name alone, and resolve the path in what it points to"
    )]
    HasPath(String),
    /// Caller: neither a CID nor an id in base 58.
    #[error("{0:?} is no name: names look like k51… or 12D3Koo…; a domain name is none here")]
    Unreadable(String),
    /// Caller: a CID of something else.
    #[error(
        "{text:?} is the CID of content (codec 0x{codec:x}), not of a key: a name is made with `gemba key new`"
    )]
    NotOfAKey {
        /// What was given.
        text: String,
        /// Its codec.
        codec: u64,
    },
    /// Caller or peer: the bytes are no multihash of a key.
    #[error("these bytes are not the id of a key")]
    NotAKey,
}

/// A record that is none, or none of this name. The signer or the carrier is to blame; the record is dropped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// More than 10 KiB.
    #[error(
        "the record has {0} bytes, the limit is 10240: publish a CID and put the content behind it"
    )]
    Oversized(usize),
    /// The outer form is damaged.
    #[error("the record is no protobuf of IPNS: {0}")]
    Protobuf(&'static str),
    /// The signed data is not dag-cbor in its canonical form.
    #[error("the record's data is not canonical dag-cbor: {0}")]
    Cbor(&'static str),
    /// A field that must be there is not, or is empty.
    #[error(
        "the record has no {0}: it was made by a program older than the second signature, publish it again with a newer one"
    )]
    Missing(&'static str),
    /// A field of the data is of another kind than the format says.
    #[error("the record's {0} is not of the kind that the format gives it")]
    WrongKind(&'static str),
    /// A number that Kubo cannot read.
    #[error("the record's {field} is {number}, beyond 2^63 - 1, where other programs stop reading")]
    OutOfRange {
        /// Which one.
        field: &'static str,
        /// Its value.
        number: u64,
    },
    /// Another kind of validity than an end.
    #[error("the record's validity is of type {0}; only 0, the end of life, is known")]
    ValidityType(u64),
    /// The end is no moment.
    #[error("the record's end of life is not a time in RFC 3339")]
    Validity,
    /// The older form says something else than the signed data.
    #[error(
        "the record's {0} differs between its older, unsigned form and the signed data: somebody altered it"
    )]
    Mismatch(&'static str),
    /// The name does not hold its key and the record brings none.
    #[error(
        "the record has no public key and {0} does not hold its own: publish it again with a program that embeds RSA keys"
    )]
    NoKey(Name),
    /// The key in it cannot be read.
    #[error("the public key in the record cannot be read: {0}")]
    Key(String),
    /// The key in it belongs to another name.
    #[error("the record is signed for {key}, not for {name}")]
    WrongKey {
        /// The name it was offered for.
        name: Box<Name>,
        /// The name of its key.
        key: Box<Name>,
    },
    /// The signature is not that of the name's key.
    #[error("the record's signature is not that of {0}: it was altered, or made by somebody else")]
    BadSignature(Name),
}

/// A record that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SignError {
    /// Caller: more than 10 KiB.
    #[error(
        "the record would have {0} bytes, the limit is 10240: shorten the metadata, or publish a CID and put it behind that"
    )]
    Oversized(usize),
    /// Caller: a number beyond 2^63 − 1.
    #[error("{what} {number} is beyond 2^63 - 1, where other programs stop reading")]
    TooLarge {
        /// Which one.
        what: &'static str,
        /// Its value.
        number: u64,
    },
    /// Caller: the format uses this key itself.
    #[error(
        "the metadata key {0:?} belongs to the record itself: choose another, such as one that begins with _"
    )]
    ReservedKey(String),
    /// Caller: a value that Kubo cannot read.
    #[error(
        "the metadata value of {0:?} is none that other programs read: use a text, bytes, a number of 64 bits, or yes and no"
    )]
    MetaValue(String),
    /// Environment: the key cannot sign.
    #[error("the key cannot sign: {0}")]
    Key(String),
    /// Ourselves: what was written would not be read.
    #[error("the record that was made cannot be read back, so it is not used")]
    Unreadable(#[source] RecordError),
}

/// A stored row that is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RowError {
    /// Environment: a newer gemba wrote it.
    #[error(
        "row of names of version {found}, this program reads versions 1 to {}: run the newer gemba that wrote it",
        crate::row::ROW_VERSION
    )]
    Newer {
        /// The version in the row.
        found: u8,
    },
    /// The row ends inside a field.
    #[error("the row ends within its {0}")]
    Truncated(&'static str),
    /// A field holds what no writer writes.
    #[error("the {0} of the row is none that a writer writes")]
    Invalid(&'static str),
    /// Bytes behind the last field.
    #[error("the row has {0} bytes too many")]
    Trailing(usize),
    /// The key of the row is no name.
    #[error("the row's key is not the id of a key")]
    Key(#[source] NameError),
    /// A record in it does not verify any more.
    #[error("a stored record is damaged")]
    Record(#[source] RecordError),
}

/// A local command that is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refused {
    /// Caller: the name is not one of this device's own.
    #[error("the key of {0} is not on this device: only its holder publishes under it")]
    NotOwn(Name),
    /// Caller: nothing is known of the name.
    #[error("{0} is not followed, not one of this device's own, and was not resolved before")]
    Unknown(Name),
    /// Environment: the book comes from a backup, and what was published since is not known.
    #[error(
        "the book of names was restored from a backup (it knows sequence {known} of {name}, {published} may have been published): connect to a peer that follows the name, or publish with --accept-fork if the others are gone"
    )]
    RestoredBackup {
        /// The name.
        name: Name,
        /// Its sequence in the book, 0 if there is none.
        known: u64,
        /// What was published at least, as far as this device remembers.
        published: u64,
    },
    /// Caller: there are no more numbers.
    #[error(
        "{name} has used up its sequence numbers ({sequence}): make a new key, publish under it, and tell the followers"
    )]
    SequenceEnd {
        /// The name.
        name: Name,
        /// The last one.
        sequence: u64,
    },
    /// Caller: the sequence asked for is not above the one there is.
    #[error("sequence {asked} of {name} is not above {current}, which was published already")]
    SequenceNotAbove {
        /// The name.
        name: Name,
        /// What was asked for.
        asked: u64,
        /// What there is.
        current: u64,
    },
    /// Caller: what a name points to must be a path, or a CID in bytes.
    #[error("{0:?} is nothing that a name can point to: give /ipfs/CID or /ipns/NAME")]
    Value(String),
    /// Caller: the record is refused.
    #[error("the record is not taken")]
    Record(#[source] RecordError),
    /// Caller: the record's life has ended.
    #[error("the record passed its end of life on {0}: ask its publisher for a newer one")]
    Expired(crate::Wall),
    /// Caller: a newer record is there.
    #[error(
        "sequence {current} of {name} is known already, and this record has {offered}: an older one never replaces it"
    )]
    Older {
        /// The name.
        name: Name,
        /// What is known.
        current: u64,
        /// What was offered.
        offered: u64,
    },
    /// Environment: a bound is reached.
    #[error("{what} is full ({limit}): {instead}")]
    Full {
        /// What.
        what: &'static str,
        /// How many it holds.
        limit: usize,
        /// What to do.
        instead: &'static str,
    },
    /// Caller: the version is no version of this name that was told.
    #[error(
        "sequence {sequence} of {name} with that value was never told to anybody, so it cannot be the complete one"
    )]
    NeverTold {
        /// The name.
        name: Name,
        /// The sequence.
        sequence: u64,
    },
    /// Caller: the complete version would go back.
    #[error(
        "sequence {complete} of {name} is complete already; going back to {offered} is a rollback and must be called one"
    )]
    Backwards {
        /// The name.
        name: Name,
        /// What is complete.
        complete: u64,
        /// What was offered.
        offered: u64,
    },
    /// Environment: the book could not be written.
    #[error(
        "the book of names could not be written ({0}): nothing is accepted until the disk takes it"
    )]
    Disk(String),
    /// Environment: the key could not sign.
    #[error("the record could not be signed: {0}")]
    Sign(String),
    /// Environment: another writer was faster: a newer record came while this one was signed.
    #[error("a newer record of {0} arrived while this one was signed: publish again")]
    Overtaken(Name),
    /// Caller: the name was given up before the command ended.
    #[error("{0} was given up before the command ended")]
    GivenUp(Name),
}

/// A name that could not be resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ResolveError {
    /// Peers: nobody who was asked had a record.
    #[error("no record of {name}: {asked} peers were asked within {} s, {answers} answered, none had one{}", .waited.as_secs(), if *.asked == 0 { " (no peer that could be asked is connected)" } else { "" })]
    NotFound {
        /// The name.
        name: Name,
        /// How many were asked.
        asked: u32,
        /// How many answered.
        answers: u32,
        /// How long it was looked for.
        waited: Duration,
    },
    /// Peers: there were records, and each had passed its end of life.
    #[error(
        "every record of {name} that was found passed its end of life, the last on {eol}: its publisher must publish again (or the clock of this device is wrong)"
    )]
    Expired {
        /// The name.
        name: Name,
        /// The latest end that was seen.
        eol: crate::Wall,
    },
    /// Environment: the command was refused.
    #[error(transparent)]
    Refused(#[from] Refused),
}
