//! A name: the id of a public key, and everything that is derived from it.

use crate::error::NameError;
use cid::{
    Cid,
    multibase::{self, Base},
    multihash::Multihash,
};
use libp2p_identity::{PeerId, PublicKey};
use std::{fmt, str::FromStr};

/// Codec of a public key in a CID.
const LIBP2P_KEY: u64 = 0x72;
/// Code of a multihash that holds its input.
const IDENTITY: u64 = 0x00;
/// What stands before a name in a path and before its bytes in a routing key.
const PREFIX: &str = "/ipns/";
/// What stands before the routing key in the name of a pubsub topic.
const TOPIC_PREFIX: &str = "/record/";
/// The longest text of a name is below it, in any base but the one with two digits.
const MAX_TEXT: usize = 128;

/// An IPNS name: the multihash of a public key, at most 42 bytes of which are the key itself (Ed25519 and secp256k1), or its SHA-256.
///
/// Shown in base 36 (`k51…`), as Kubo shows it. The order is that of the bytes and means nothing.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(PeerId);

impl Name {
    /// The name that `key` signs for.
    pub fn of(key: &PublicKey) -> Self {
        Self(key.to_peer_id())
    }

    /// The bytes of the multihash.
    ///
    /// # Errors
    /// [`NameError::NotAKey`]: no multihash of a key.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, NameError> {
        PeerId::from_bytes(bytes)
            .map(Self)
            .map_err(|_| NameError::NotAKey)
    }

    /// The name in a routing key: `/ipns/` and the bytes of the multihash.
    ///
    /// # Errors
    /// [`NameError::NotAKey`]: another namespace, or bytes that are no multihash of a key.
    pub fn from_routing_key(key: &[u8]) -> Result<Self, NameError> {
        let bytes = key
            .strip_prefix(PREFIX.as_bytes())
            .ok_or(NameError::NotAKey)?;
        Self::from_bytes(bytes)
    }

    /// The name whose records a pubsub topic carries.
    ///
    /// # Errors
    /// [`NameError::NotAKey`]: no topic of records of names.
    pub fn from_topic(topic: &str) -> Result<Self, NameError> {
        let text = topic
            .strip_prefix(TOPIC_PREFIX)
            .filter(|text| text.len() <= MAX_TEXT)
            .ok_or(NameError::NotAKey)?;
        let key = Base::Base64Url
            .decode(text)
            .map_err(|_| NameError::NotAKey)?;
        let name = Self::from_routing_key(&key)?;
        // Of several spellings in base 64 only one is the topic.
        if name.topic() == topic {
            Ok(name)
        } else {
            Err(NameError::NotAKey)
        }
    }

    /// The id of the key.
    pub fn peer_id(&self) -> PeerId {
        self.0
    }

    /// The bytes of the multihash.
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.to_bytes()
    }

    /// The key of the DHT and of the fetch protocol: `/ipns/` and the bytes of the multihash. Binary, not text.
    pub fn routing_key(&self) -> Vec<u8> {
        [PREFIX.as_bytes(), &self.0.to_bytes()].concat()
    }

    /// The topic on which Kubo's IPNS over pubsub carries the records of this name.
    pub fn topic(&self) -> String {
        let text = Base::Base64Url.encode(self.routing_key());
        format!("{TOPIC_PREFIX}{text}")
    }

    /// `/ipns/k51…`.
    pub fn to_path(&self) -> String {
        format!("{PREFIX}{self}")
    }

    /// The form of older programs: `12D3Koo…`, `Qm…`.
    pub fn to_base58(&self) -> String {
        self.0.to_base58()
    }

    /// The CID of the key.
    pub fn to_cid(&self) -> Cid {
        Cid::new_v1(LIBP2P_KEY, *self.0.as_ref())
    }

    /// The key, if the name holds it; RSA keys are too long for that.
    pub(crate) fn inline_key(&self) -> Option<PublicKey> {
        let multihash: &Multihash<64> = self.0.as_ref();
        if multihash.code() != IDENTITY {
            return None;
        }
        PublicKey::try_decode_protobuf(multihash.digest()).ok()
    }
}

impl From<PeerId> for Name {
    fn from(id: PeerId) -> Self {
        Self(id)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&multibase::encode(
            Base::Base36Lower,
            self.to_cid().to_bytes(),
        ))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Name {
    type Err = NameError;

    /// Base 36, base 32 or any other base of a CID of a key, a base 58 id, with or without `/ipns/` before it.
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bare = text.strip_prefix(PREFIX).unwrap_or(text);
        if bare.is_empty() {
            return Err(NameError::Empty);
        }
        if bare.len() > MAX_TEXT {
            return Err(NameError::TooLong(bare.len()));
        }
        if bare.contains('/') {
            return Err(NameError::HasPath(bare.to_owned()));
        }
        // A base 58 id begins with Qm (SHA-256) or 1 (the key itself); no multibase has these letters.
        if bare.starts_with("Qm") || bare.starts_with('1') {
            return bare
                .parse()
                .map(Self)
                .map_err(|_| NameError::Unreadable(bare.to_owned()));
        }
        let cid = Cid::try_from(bare).map_err(|_| NameError::Unreadable(bare.to_owned()))?;
        if cid.codec() != LIBP2P_KEY {
            return Err(NameError::NotOfAKey {
                text: bare.to_owned(),
                codec: cid.codec(),
            });
        }
        PeerId::from_multihash(*cid.hash())
            .map(Self)
            .map_err(|_| NameError::NotAKey)
    }
}
