//! What devices of one site tell each other: `/gemba/site/1` (specs/site.md §2).

use bytes::Bytes;
use gemba_block::{Cid, check_cid};
use prost::Message as _;

use crate::generated::site as proto;

/// The protocol's id.
pub const SITE_PROTOCOL: &str = "/gemba/site/1";
/// Longest message that is read or written, in bytes, without its length prefix (SI-3).
pub const MAX_SITE_MESSAGE_BYTES: usize = 64 * 1024;
/// Most CIDs of all lists of a message together (SI-3).
const MAX_CIDS: usize = 2048;
/// Longest label of a site, in bytes.
pub const MAX_LABEL_BYTES: usize = 64;

/// One message to or from a peer that speaks the protocol; each part may be empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SiteMessage {
    /// Who the sender says he is.
    pub hello: Option<Hello>,
    /// Roots that he begins to fetch.
    pub fetches: Vec<Cid>,
    /// Roots that he fetches no more.
    pub ends: Vec<Cid>,
    /// Roots of the receiver that he took note of.
    pub knows: Vec<Cid>,
    /// Blocks that he asks for outside from now on.
    pub takes: Vec<Cid>,
    /// Blocks that he asks for no more, and has not got.
    pub releases: Vec<Cid>,
    /// Bytes came to him from outside.
    pub progress: bool,
    /// Whether he is connected to anybody outside; `None`: as before.
    pub outside: Option<bool>,
}

/// Which site a peer belongs to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// The label of its site; `None`: it has no label.
    pub label: Option<String>,
    /// It reaches the receiver on one of its own subnets.
    pub near: bool,
}

/// Bytes that are no message, or beyond its limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no message of {SITE_PROTOCOL}: {0}")]
pub struct SiteDecodeError(String);

impl SiteMessage {
    /// The bytes of the message.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let bytes = |cids: &[Cid]| cids.iter().map(|cid| Bytes::from(cid.to_bytes())).collect();
        let hello = self.hello.as_ref().map(|hello| proto::message::Hello {
            label: hello.label.clone().unwrap_or_default(),
            near: hello.near,
        });
        let outside = match self.outside {
            None => proto::Outside::Unchanged,
            Some(true) => proto::Outside::Reached,
            Some(false) => proto::Outside::CutOff,
        };
        let message = proto::Message {
            hello,
            fetches: bytes(&self.fetches),
            ends: bytes(&self.ends),
            knows: bytes(&self.knows),
            takes: bytes(&self.takes),
            releases: bytes(&self.releases),
            progress: self.progress,
            outside: outside.into(),
        };
        message.encode_to_vec()
    }

    /// Reads a message within its limits (SI-3).
    ///
    /// # Errors
    /// [`SiteDecodeError`]: no such message, too long, too many CIDs, or one that is none or names what nobody may fetch.
    pub fn decode(bytes: &[u8]) -> Result<Self, SiteDecodeError> {
        if bytes.len() > MAX_SITE_MESSAGE_BYTES {
            return Err(SiteDecodeError("longer than 64 KiB".to_owned()));
        }
        let message = proto::Message::decode(bytes).map_err(|e| SiteDecodeError(e.to_string()))?;
        let lists = [
            &message.fetches,
            &message.ends,
            &message.knows,
            &message.takes,
            &message.releases,
        ];
        if lists.iter().map(|list| list.len()).sum::<usize>() > MAX_CIDS {
            return Err(SiteDecodeError(format!("more than {MAX_CIDS} CIDs")));
        }
        let outside = match message.outside() {
            proto::Outside::Unchanged => None,
            proto::Outside::Reached => Some(true),
            proto::Outside::CutOff => Some(false),
        };
        Ok(Self {
            hello: message.hello.map(hello).transpose()?,
            fetches: cids(&message.fetches)?,
            ends: cids(&message.ends)?,
            knows: cids(&message.knows)?,
            takes: cids(&message.takes)?,
            releases: cids(&message.releases)?,
            progress: message.progress,
            outside,
        })
    }

    /// Whether it says nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

fn hello(hello: proto::message::Hello) -> Result<Hello, SiteDecodeError> {
    if hello.label.len() > MAX_LABEL_BYTES {
        return Err(SiteDecodeError(format!(
            "a label of more than {MAX_LABEL_BYTES} bytes"
        )));
    }
    Ok(Hello {
        label: (!hello.label.is_empty()).then_some(hello.label),
        near: hello.near,
    })
}

fn cids(list: &[Bytes]) -> Result<Vec<Cid>, SiteDecodeError> {
    list.iter()
        .map(|bytes| {
            let cid = Cid::try_from(bytes.as_ref()).map_err(|e| SiteDecodeError(e.to_string()))?;
            check_cid(&cid).map_err(|e| SiteDecodeError(e.to_string()))?;
            Ok(cid)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use gemba_block::Block;

    fn cid(n: u8) -> Cid {
        *Block::raw(vec![n; 8]).unwrap().cid()
    }

    #[test]
    fn si_3_messages_come_as_they_went_and_none_beyond_the_limits() {
        let message = SiteMessage {
            hello: Some(Hello {
                label: Some("hall-1".to_owned()),
                near: true,
            }),
            fetches: vec![cid(1)],
            ends: vec![cid(2)],
            knows: vec![cid(3)],
            takes: vec![cid(4), cid(5)],
            releases: vec![cid(6)],
            progress: true,
            outside: Some(false),
        };
        assert_eq!(SiteMessage::decode(&message.encode()).unwrap(), message);
        assert!(SiteMessage::decode(&[]).unwrap().is_empty());
        let many = SiteMessage {
            takes: vec![cid(1); MAX_CIDS + 1],
            ..SiteMessage::default()
        };
        assert!(SiteMessage::decode(&many.encode()).is_err());
        let long = SiteMessage {
            hello: Some(Hello {
                label: Some("x".repeat(MAX_LABEL_BYTES + 1)),
                near: false,
            }),
            ..SiteMessage::default()
        };
        assert!(SiteMessage::decode(&long.encode()).is_err());
        let whole = message.encode();
        assert!(SiteMessage::decode(&whole[..whole.len() - 3]).is_err());
        assert!(SiteMessage::decode(&[0x12, 0x01, 0xff]).is_err());
        assert!(SiteMessage::decode(&[0; MAX_SITE_MESSAGE_BYTES + 1]).is_err());
    }
}
