//! One signed record: written as Kubo writes it, read strictly, and of another type once its signature was found good.
//!
//! [`Unsigned`] → [`Record`] by signing; bytes → [`Candidate`] by decoding → [`Record`] by verifying. Whoever holds a `Record` need not ask
//! again. Whether it has passed its end is another question, asked of a clock each time: [`Record::is_expired`].

mod cbor;
pub(crate) mod proto;

pub use cbor::Meta;

use crate::{
    error::{RecordError, SignError},
    name::Name,
    wall::Wall,
};
use cid::Cid;
use libp2p_identity::{Keypair, PublicKey};
use std::{cmp::Ordering, collections::BTreeMap, fmt, ops::Deref, sync::Arc, time::Duration};

/// Most bytes of a record, as in boxo (`ipns.MaxRecordSize`). Wire clause 06.
pub const MAX_RECORD_BYTES: usize = 10 << 10;
/// Go reads sequence and TTL as signed numbers: beyond it a record is none to Kubo.
pub const MAX_SEQUENCE: u64 = i64::MAX as u64;
/// How long a record lives unless the publisher says otherwise: one year. A shop floor may be switched off for weeks, and Kubo's 48 hours
/// would let the name die meanwhile.
pub const DEFAULT_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// How long a resolver may answer from its memory: five minutes, as Kubo.
pub const DEFAULT_TTL: Duration = Duration::from_secs(300);

/// What the second signature covers besides the data.
const V2_PREFIX: &[u8] = b"ipns-signature:";
/// An empty value reads as the empty file.
const EMPTY_VALUE: &str = "/ipfs/bafkqaaa";

/// What a record says, before it is signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unsigned {
    /// What the name points to: a path as text (`/ipfs/…`, `/ipns/…`), or the bytes of a CID.
    pub value: Vec<u8>,
    /// Higher replaces lower.
    pub sequence: u64,
    /// The end of its life (EOL).
    pub validity: Wall,
    /// How long a resolver may answer from its memory, in nanoseconds.
    pub ttl_ns: u64,
    /// Keys of the publisher's own, signed with the rest.
    pub metadata: BTreeMap<String, Meta>,
    /// Whether to write the older form too, which resolvers from before 2021 need. Kubo does by default.
    pub v1: bool,
}

impl Unsigned {
    /// Kubo's defaults, but for the lifetime.
    pub fn new(value: impl Into<Vec<u8>>, sequence: u64, validity: Wall) -> Self {
        Self {
            value: value.into(),
            sequence,
            validity,
            ttl_ns: DEFAULT_TTL.as_nanos() as u64,
            metadata: BTreeMap::new(),
            v1: true,
        }
    }

    /// `/ipfs/<cid>` as a value.
    pub fn value_of(cid: &Cid) -> Vec<u8> {
        format!("/ipfs/{cid}").into_bytes()
    }

    /// Signs it for the name of `key`.
    ///
    /// # Errors
    /// [`SignError`]: too large, a number or a key that the format has no room for, or the key cannot sign.
    pub fn sign(&self, key: &Keypair) -> Result<Record, SignError> {
        for (what, number) in [("sequence", self.sequence), ("TTL", self.ttl_ns)] {
            if number > MAX_SEQUENCE {
                return Err(SignError::TooLarge { what, number });
            }
        }
        let data = cbor::encode(self)?;
        let validity = self.validity.to_string();
        let signed = |message: &[u8]| key.sign(message).map_err(|e| SignError::Key(e.to_string()));
        let signature_v2 = signed(&[V2_PREFIX, &data].concat())?;
        let signature_v1 = if self.v1 {
            Some(signed(&v1_message(&self.value, validity.as_bytes()))?)
        } else {
            None
        };
        let public = key.public();
        let name = Name::of(&public);
        let embedded = name
            .inline_key()
            .is_none()
            .then(|| public.encode_protobuf());
        let bytes = proto::encode(&proto::Parts {
            value: self.v1.then_some(self.value.as_slice()),
            signature_v1: signature_v1.as_deref(),
            validity_type: self.v1.then_some(0),
            validity: self.v1.then_some(validity.as_bytes()),
            sequence: self.v1.then_some(self.sequence),
            ttl: self.v1.then_some(self.ttl_ns),
            public_key: embedded.as_deref(),
            signature_v2: Some(&signature_v2),
            data: Some(&data),
        });
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(SignError::Oversized(bytes.len()));
        }
        // What was written is what would be read, or it is not signed: a key of the publisher's own may be none that a reader takes.
        Candidate::decode(name, &bytes)
            .map(|candidate| Record(candidate.0))
            .map_err(SignError::Unreadable)
    }
}

/// A record that was read and belongs to a name, and whose signature nobody has looked at. Reads like its [`Content`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Candidate(Arc<Content>);

/// A record whose signature is that of its name's key. Cheap to clone; reads like its [`Content`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record(Arc<Content>);

/// What stands in a record.
#[derive(PartialEq, Eq)]
pub struct Content {
    name: Name,
    key: PublicKey,
    bytes: Vec<u8>,
    signature_v2: Vec<u8>,
    data: Vec<u8>,
    has_v1: bool,
    fields: Fields,
}

/// The fields of the signed data.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Fields {
    value: Vec<u8>,
    sequence: u64,
    validity: Wall,
    validity_text: Vec<u8>,
    ttl_ns: u64,
    metadata: BTreeMap<String, Meta>,
}

impl Candidate {
    /// Reads a record of `name` as strictly as specs/names.md §2 says, and looks at no signature yet.
    ///
    /// # Errors
    /// [`RecordError`], which names the rule.
    pub fn decode(name: Name, bytes: &[u8]) -> Result<Self, RecordError> {
        if bytes.len() > MAX_RECORD_BYTES {
            return Err(RecordError::Oversized(bytes.len()));
        }
        let parts = proto::decode(bytes)?;
        let signature_v2 = present(parts.signature_v2, "signatureV2")?;
        let data = present(parts.data, "data")?;
        let fields = cbor::decode(data)?;
        // Wire clause 06: if either is there, every field of the older form must be the twin of a signed one.
        let has_v1 = present(parts.value, "").is_ok() || present(parts.signature_v1, "").is_ok();
        if has_v1 {
            check_twins(&parts, &fields)?;
        }
        Ok(Self(Arc::new(Content {
            name,
            key: key_of(name, parts.public_key)?,
            bytes: bytes.to_vec(),
            signature_v2: signature_v2.to_vec(),
            data: data.to_vec(),
            has_v1,
            fields,
        })))
    }

    /// Checks the second signature; nobody looks at the first, as in Kubo. The heavy step, some 30 µs for an Ed25519 key: pure, for any
    /// thread.
    ///
    /// # Errors
    /// [`RecordError::BadSignature`].
    pub fn verify(self) -> Result<Record, RecordError> {
        let message = [V2_PREFIX, &self.0.data].concat();
        if self.0.key.verify(&message, &self.0.signature_v2) {
            Ok(Record(self.0))
        } else {
            Err(RecordError::BadSignature(self.0.name))
        }
    }
}

impl Record {
    /// Decodes and verifies in one step.
    ///
    /// # Errors
    /// [`RecordError`], which names the rule.
    pub fn open(name: Name, bytes: &[u8]) -> Result<Self, RecordError> {
        Candidate::decode(name, bytes)?.verify()
    }
}

impl Record {
    /// The same, as it came.
    pub(crate) fn to_candidate(&self) -> Candidate {
        Candidate(Arc::clone(&self.0))
    }
}

impl Deref for Candidate {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

impl Deref for Record {
    type Target = Content;

    fn deref(&self) -> &Content {
        &self.0
    }
}

impl Content {
    /// The name it belongs to.
    pub fn name(&self) -> Name {
        self.name
    }

    /// The key whose signature it carries.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The record as it travels.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What the name points to, as it was signed.
    pub fn value(&self) -> &[u8] {
        &self.fields.value
    }

    /// What the name points to, as a path. A value that does not begin with `/` is the binary form of a CID, an empty one the empty file
    /// (wire clause 06); `None`: neither.
    pub fn path(&self) -> Option<String> {
        match self.fields.value.first() {
            None => Some(EMPTY_VALUE.to_owned()),
            Some(b'/') => String::from_utf8(self.fields.value.clone()).ok(),
            Some(_) => Cid::try_from(self.fields.value.as_slice())
                .ok()
                .map(|cid| format!("/ipfs/{cid}")),
        }
    }

    /// The CID that a value of the form `/ipfs/<cid>`, without a path behind it, names.
    pub fn cid(&self) -> Option<Cid> {
        let path = self.path()?;
        Cid::try_from(path.strip_prefix("/ipfs/")?.trim_end_matches('/')).ok()
    }

    /// Its number among the versions of the name.
    pub fn sequence(&self) -> u64 {
        self.fields.sequence
    }

    /// The end of its life (EOL).
    pub fn validity(&self) -> Wall {
        self.fields.validity
    }

    /// How long a resolver may answer from its memory, in nanoseconds.
    pub fn ttl_ns(&self) -> u64 {
        self.fields.ttl_ns
    }

    /// The publisher's own keys.
    pub fn metadata(&self) -> &BTreeMap<String, Meta> {
        &self.fields.metadata
    }

    /// `V1+V2` or `V2`: which forms it carries, in the words of Kubo's `name inspect`.
    pub fn signature_type(&self) -> &'static str {
        if self.has_v1 { "V1+V2" } else { "V2" }
    }

    /// Whether its life has ended at `now`. At the very end it has not (boxo: `now.After(eol)`).
    pub fn is_expired(&self, now: Wall) -> bool {
        now > self.fields.validity
    }

    /// Whether both say the same under the same signed bytes. The rest of a record is not signed and may be varied by anybody, so it
    /// makes no other version (clause NA-8).
    pub fn is_same_version(&self, other: &Self) -> bool {
        self.name == other.name && self.data == other.data
    }

    /// Which of two records of one name is the newer one: higher sequence, then later end, then greater bytes (clause NA-7). Equal if both
    /// are the same version.
    pub fn order(&self, other: &Self) -> Ordering {
        if self.is_same_version(other) {
            return Ordering::Equal;
        }
        (self.sequence(), self.validity(), &self.bytes).cmp(&(
            other.sequence(),
            other.validity(),
            &other.bytes,
        ))
    }

    /// Whether one key has signed two values under one number (clause NA-9).
    pub fn contradicts(&self, other: &Self) -> bool {
        self.name == other.name
            && self.sequence() == other.sequence()
            && self.value() != other.value()
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record")
            .field("name", &self.name)
            .field("value", &String::from_utf8_lossy(self.value()))
            .field("sequence", &self.sequence())
            .field("validity", &self.validity().to_string())
            .finish_non_exhaustive()
    }
}

/// What the first signature covers: the kind of validity is written as the name of the enum's value, `EOL` (measured on Kubo's records).
fn v1_message(value: &[u8], validity: &[u8]) -> Vec<u8> {
    [value, validity, b"EOL"].concat()
}

fn present<'a>(bytes: Option<&'a [u8]>, field: &'static str) -> Result<&'a [u8], RecordError> {
    bytes
        .filter(|bytes| !bytes.is_empty())
        .ok_or(RecordError::Missing(field))
}

fn check_twins(parts: &proto::Parts<'_>, fields: &Fields) -> Result<(), RecordError> {
    let bytes = |part: Option<&[u8]>, twin: &[u8]| part.unwrap_or_default() == twin;
    let twins = [
        ("value", bytes(parts.value, &fields.value)),
        ("validity", bytes(parts.validity, &fields.validity_text)),
        ("validityType", parts.validity_type.unwrap_or(0) == 0),
        ("sequence", parts.sequence.unwrap_or(0) == fields.sequence),
        ("ttl", parts.ttl.unwrap_or(0) == fields.ttl_ns),
    ];
    match twins.iter().find(|(_, equal)| !equal) {
        Some((field, _)) => Err(RecordError::Mismatch(field)),
        None => Ok(()),
    }
}

/// The key in the record must be that of the name; where the name holds its key the record need not.
fn key_of(name: Name, embedded: Option<&[u8]>) -> Result<PublicKey, RecordError> {
    let Some(bytes) = embedded.filter(|bytes| !bytes.is_empty()) else {
        return name.inline_key().ok_or(RecordError::NoKey(name));
    };
    let key = PublicKey::try_decode_protobuf(bytes).map_err(|e| RecordError::Key(e.to_string()))?;
    if Name::of(&key) == name {
        Ok(key)
    } else {
        Err(RecordError::WrongKey {
            name: Box::new(name),
            key: Box::new(Name::of(&key)),
        })
    }
}
