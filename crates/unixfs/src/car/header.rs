//! The header of version 1: a DAG-CBOR map of exactly this shape, so that no nesting is ever followed (row U6).

use cid::Cid;

use super::CarError;

/// DAG-CBOR tag of a link.
const TAG_LINK: u64 = 42;

pub(super) struct Header {
    pub(super) version: u64,
    /// Absent in the pragma of a version 2.
    pub(super) roots: Vec<Cid>,
}

pub(super) fn encode(roots: &[Cid]) -> Vec<u8> {
    let mut out = Vec::with_capacity(32 + roots.len() * 48);
    out.push(0xa2);
    put_text(&mut out, "roots");
    put_head(&mut out, 4, roots.len() as u64);
    for root in roots {
        put_head(&mut out, 6, TAG_LINK);
        put_head(&mut out, 2, root.encoded_len() as u64 + 1);
        out.push(0);
        root.write_bytes(&mut out)
            .expect("writing to a Vec cannot fail");
    }
    put_text(&mut out, "version");
    out.push(1);
    out
}

pub(super) fn decode(bytes: &[u8]) -> Result<Header, CarError> {
    let mut cbor = Cbor { rest: bytes };
    let (5, pairs) = cbor.head()? else {
        return Err(CarError::Header("it is not a map"));
    };
    let mut version = None;
    let mut roots = None;
    for _ in 0..pairs.min(3) {
        match cbor.text()? {
            b"version" if version.is_none() => {
                let (0, number) = cbor.head()? else {
                    return Err(CarError::Header("the version is not a number"));
                };
                version = Some(number);
            }
            b"roots" if roots.is_none() => roots = Some(cbor.links()?),
            _ => return Err(CarError::Header("a key occurs twice or is unknown")),
        }
    }
    if pairs > 2 || !cbor.rest.is_empty() {
        return Err(CarError::Header("there is something behind it"));
    }
    let version = version.ok_or(CarError::Header("the version is absent"))?;
    if version == 1 && roots.is_none() {
        return Err(CarError::Header("the roots are absent"));
    }
    Ok(Header {
        version,
        roots: roots.unwrap_or_default(),
    })
}

struct Cbor<'a> {
    rest: &'a [u8],
}

impl<'a> Cbor<'a> {
    /// Major type and argument.
    fn head(&mut self) -> Result<(u8, u64), CarError> {
        let first = self.take(1)?[0];
        let argument = match first & 0x1f {
            small @ 0..=23 => u64::from(small),
            width @ 24..=27 => {
                let bytes = self.take(1 << (width - 24))?;
                bytes
                    .iter()
                    .fold(0u64, |value, byte| value << 8 | u64::from(*byte))
            }
            _ => {
                return Err(CarError::Header(
                    "it has a length that DAG-CBOR does not know",
                ));
            }
        };
        Ok((first >> 5, argument))
    }

    fn text(&mut self) -> Result<&'a [u8], CarError> {
        let (3, length) = self.head()? else {
            return Err(CarError::Header("a key is not text"));
        };
        self.take(length)
    }

    fn links(&mut self) -> Result<Vec<Cid>, CarError> {
        let (4, count) = self.head()? else {
            return Err(CarError::Header("the roots are not a list"));
        };
        // Each root takes at least 5 bytes; nothing is reserved on the word of a count.
        let mut links = Vec::new();
        for _ in 0..count {
            links.push(self.link()?);
        }
        Ok(links)
    }

    fn link(&mut self) -> Result<Cid, CarError> {
        let bad = CarError::Header("a root is not a link");
        if self.head()? != (6, TAG_LINK) {
            return Err(bad);
        }
        let (2, length) = self.head()? else {
            return Err(bad);
        };
        let Some((0, mut cid)) = self
            .take(length)?
            .split_first()
            .map(|(zero, cid)| (*zero, cid))
        else {
            return Err(bad);
        };
        match Cid::read_bytes(&mut cid) {
            Ok(link) if cid.is_empty() => Ok(link),
            _ => Err(bad),
        }
    }

    fn take(&mut self, length: u64) -> Result<&'a [u8], CarError> {
        let length = usize::try_from(length)
            .ok()
            .filter(|length| *length <= self.rest.len());
        let length = length.ok_or(CarError::Header("it ends too early"))?;
        let (taken, rest) = self.rest.split_at(length);
        self.rest = rest;
        Ok(taken)
    }
}

fn put_head(out: &mut Vec<u8>, major: u8, argument: u64) {
    let major = major << 5;
    match argument {
        0..=23 => out.push(major | argument as u8),
        24..=0xff => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..=0xffff => {
            out.push(major | 25);
            out.extend_from_slice(&(argument as u16).to_be_bytes());
        }
        0x1_0000..=0xffff_ffff => {
            out.push(major | 26);
            out.extend_from_slice(&(argument as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&argument.to_be_bytes());
        }
    }
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    put_head(out, 3, text.len() as u64);
    out.extend_from_slice(text.as_bytes());
}
