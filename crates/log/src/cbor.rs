//! The few pieces of canonical dag-cbor that batches are made of (specs/log.md §3): shortest heads, definite lengths, keys in order.
//! Reading allocates nothing and believes no length that the bytes do not have.

use cid::Cid;

use crate::batch::{DIGEST, cid_of};

/// Why bytes were not read: where, and the rule they break.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {what}")]
pub struct Malformed {
    /// Offset from the beginning of what was read.
    pub at: usize,
    /// The rule.
    pub what: &'static str,
}

pub(crate) const UNSIGNED: u8 = 0;
pub(crate) const NEGATIVE: u8 = 1;
pub(crate) const BYTES: u8 = 2;
pub(crate) const TEXT: u8 = 3;
pub(crate) const LIST: u8 = 4;
pub(crate) const MAP: u8 = 5;
/// Head of a link to a sha2-256 dag-cbor CIDv1: tag 42, 37 bytes, the zero before a binary CID, and the CID up to its digest.
const LINK: [u8; 9] = [0xd8, 42, 0x58, 0x25, 0x00, 0x01, 0x71, 0x12, 0x20];

/// Reads items one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    /// Offset of what comes next.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn is_done(&self) -> bool {
        self.at == self.bytes.len()
    }

    pub(crate) fn wrong(&self, what: &'static str) -> Malformed {
        Malformed { at: self.at, what }
    }

    pub(crate) fn fail<T>(&self, what: &'static str) -> Result<T, Malformed> {
        Err(self.wrong(what))
    }

    /// What was read since `from`.
    pub(crate) fn since(&self, from: usize) -> &'a [u8] {
        &self.bytes[from..self.at]
    }

    pub(crate) fn take(&mut self, len: u64) -> Result<&'a [u8], Malformed> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = usize::try_from(len).ok().and_then(|len| rest.get(..len)) else {
            return self.fail("the bytes end within an item");
        };
        self.at += taken.len();
        Ok(taken)
    }

    /// Major type and argument, the argument in its shortest form.
    #[inline]
    pub(crate) fn head(&mut self) -> Result<(u8, u64), Malformed> {
        let Some(first) = self.bytes.get(self.at).copied() else {
            return self.fail("the bytes end where an item should begin");
        };
        let (major, info) = (first >> 5, first & 0x1f);
        if info < 24 {
            self.at += 1;
            return Ok((major, u64::from(info)));
        }
        if info > 27 {
            return self.fail("a length that is not given in advance, or a reserved head");
        }
        let start = self.at;
        self.at += 1;
        let argument = self
            .take(1 << (info - 24))?
            .iter()
            .fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        let least = match info {
            24 => 24,
            25 => 1 << 8,
            26 => 1 << 16,
            _ => 1 << 32,
        };
        if argument < least {
            self.at = start;
            return self.fail("a number in a longer form than it needs");
        }
        Ok((major, argument))
    }

    fn expect(&mut self, major: u8, what: &'static str) -> Result<u64, Malformed> {
        let start = self.at;
        match self.head()? {
            (found, argument) if found == major => Ok(argument),
            _ => Err(Malformed { at: start, what }),
        }
    }

    pub(crate) fn map(&mut self) -> Result<u64, Malformed> {
        self.expect(MAP, "this should be a map")
    }

    pub(crate) fn list(&mut self) -> Result<u64, Malformed> {
        self.expect(LIST, "this should be a list")
    }

    pub(crate) fn number(&mut self) -> Result<u64, Malformed> {
        self.expect(UNSIGNED, "this should be a number of zero or more")
    }

    /// A number of either sign.
    #[inline]
    pub(crate) fn integer(&mut self) -> Result<i64, Malformed> {
        let start = self.at;
        let (major, argument) = self.head()?;
        let number = i64::try_from(argument).ok();
        match (major, number) {
            (UNSIGNED, Some(number)) => Ok(number),
            (NEGATIVE, Some(number)) => Ok(-1 - number),
            _ => Err(Malformed {
                at: start,
                what: "this should be a number of at most 63 bits",
            }),
        }
    }

    #[inline]
    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], Malformed> {
        let len = self.expect(BYTES, "this should be bytes")?;
        self.take(len)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, Malformed> {
        let start = self.at;
        let len = self.expect(TEXT, "this should be text")?;
        std::str::from_utf8(self.take(len)?).map_err(|_| Malformed {
            at: start,
            what: "text that is not UTF-8",
        })
    }

    /// The digest of a link to a batch.
    pub(crate) fn link(&mut self) -> Result<[u8; DIGEST], Malformed> {
        let start = self.at;
        let wrong = Malformed {
            at: start,
            what: "this should be a link to a dag-cbor block with sha2-256",
        };
        let bytes = self.take((LINK.len() + DIGEST) as u64).map_err(|_| wrong)?;
        match bytes.split_first_chunk::<{ LINK.len() }>() {
            Some((&LINK, digest)) => digest.try_into().map_err(|_| wrong),
            _ => Err(wrong),
        }
    }
}

/// Major type and argument in the shortest form.
#[inline]
pub(crate) fn put_head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let first = major << 5;
    match argument {
        0..=23 => out.push(first | argument as u8),
        24..=0xff => out.extend_from_slice(&[first | 24, argument as u8]),
        0x100..=0xffff => {
            out.push(first | 25);
            out.extend_from_slice(&(argument as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(first | 26);
            out.extend_from_slice(&(argument as u32).to_be_bytes());
        }
        _ => {
            out.push(first | 27);
            out.extend_from_slice(&argument.to_be_bytes());
        }
    }
}

pub(crate) fn put_integer(out: &mut Vec<u8>, number: i64) {
    match u64::try_from(number) {
        Ok(number) => put_head(out, UNSIGNED, number),
        Err(_) => put_head(out, NEGATIVE, !number as u64),
    }
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_head(out, BYTES, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, TEXT, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}

pub(crate) fn put_link(out: &mut Vec<u8>, digest: &[u8; DIGEST]) {
    debug_assert_eq!(cid_of(digest).to_bytes().len(), DIGEST + 4);
    out.extend_from_slice(&LINK);
    out.extend_from_slice(digest);
}

/// The digest of a CID, if it is of a batch's kind: version 1, dag-cbor, sha2-256.
#[must_use]
pub(crate) fn digest_of(cid: &Cid) -> Option<[u8; DIGEST]> {
    let hash = cid.hash();
    let is_ours = cid.version() == cid::Version::V1
        && cid.codec() == gemba_block::codec::DAG_CBOR
        && hash.code() == 0x12;
    if !is_ours {
        return None;
    }
    hash.digest().try_into().ok()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn numbers_have_one_form() {
        for number in [
            0,
            23,
            24,
            255,
            256,
            65_535,
            65_536,
            1 << 32,
            i64::MAX,
            -1,
            -24,
            -25,
            i64::MIN,
        ] {
            let mut out = Vec::new();
            put_integer(&mut out, number);
            let mut reader = Reader::new(&out);
            assert_eq!(reader.integer(), Ok(number));
            assert!(reader.is_done());
        }
        for long in [
            &[0x18, 23][..],
            &[0x19, 0, 255],
            &[0x1a, 0, 0, 255, 255],
            &[0x3b, 0, 0, 0, 0, 255, 255, 255, 255],
            &[0x1f],
            &[0x1c],
        ] {
            assert!(Reader::new(long).integer().is_err(), "{long:?}");
        }
        assert!(
            Reader::new(&[0x1b, 255, 0, 0, 0, 0, 0, 0, 0])
                .integer()
                .is_err()
        );
    }

    #[test]
    fn links_are_those_of_dag_cbor() {
        let digest = [7; DIGEST];
        let mut out = Vec::new();
        put_link(&mut out, &digest);
        assert_eq!(
            gemba_block::cbor::scan(&out).unwrap(),
            vec![cid_of(&digest)]
        );
        assert_eq!(Reader::new(&out).link(), Ok(digest));
        assert_eq!(digest_of(&cid_of(&digest)), Some(digest));
        out[5] = 2;
        assert!(Reader::new(&out).link().is_err());
    }
}
