//! A strict scan of dag-cbor: refuses what is not canonical, finds the links, allocates nothing but the links.
//! Source: ipld.io specs dag-cbor ("Strictness"): shortest heads, definite lengths, text keys sorted by length then bytes
//! without repetition, tag 42 only, 64-bit floats only and no NaN or infinity, no undefined.

use cid::Cid;

/// Deepest nesting that is read. Row U6: a hostile block must not cost stack; the scan is iterative anyway.
pub const MAX_DEPTH: usize = 128;

/// Why bytes are not canonical dag-cbor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("at byte {at}: {what}")]
pub struct CborError {
    /// Offset from the start of the block.
    pub at: usize,
    /// The rule that is broken.
    pub what: &'static str,
}

/// Checks that `bytes` are one canonical dag-cbor item and returns its links in the order in which they stand.
///
/// # Errors
/// [`CborError`] with the offset and the rule.
pub fn scan(bytes: &[u8]) -> Result<Vec<Cid>, CborError> {
    let mut scan = Scan {
        bytes,
        at: 0,
        links: Vec::new(),
        open: Vec::new(),
    };
    loop {
        scan.item()?;
        if scan.close_finished() {
            break;
        }
    }
    if scan.at != bytes.len() {
        return Err(CborError {
            at: scan.at,
            what: "bytes follow the item",
        });
    }
    Ok(scan.links)
}

/// An array or map whose items are still to come.
struct Open<'a> {
    /// Items still to come; for a map, keys and values count as one each.
    left: u64,
    /// For a map: the last key seen; the next item is a key when `left` is even.
    map: Option<Option<&'a [u8]>>,
}

struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
    links: Vec<Cid>,
    open: Vec<Open<'a>>,
}

impl<'a> Scan<'a> {
    fn fail<T>(&self, what: &'static str) -> Result<T, CborError> {
        Err(CborError { at: self.at, what })
    }

    fn take(&mut self, len: u64) -> Result<&'a [u8], CborError> {
        let end = usize::try_from(len)
            .ok()
            .and_then(|l| self.at.checked_add(l))
            .filter(|end| *end <= self.bytes.len());
        let Some(end) = end else {
            return self.fail("the block ends inside an item");
        };
        let slice = &self.bytes[self.at..end];
        self.at = end;
        Ok(slice)
    }

    /// Major type and argument; the shortest form only, no indefinite lengths. For major 7 the argument is the raw one.
    fn head(&mut self) -> Result<(u8, u8, u64), CborError> {
        let start = self.at;
        let first = self.take(1)?[0];
        let (major, info) = (first >> 5, first & 0x1f);
        let argument = match info {
            0..=23 => u64::from(info),
            24..=27 => self
                .take(1 << (info - 24))?
                .iter()
                .fold(0, |n, b| n << 8 | u64::from(*b)),
            31 => {
                return Err(CborError {
                    at: start,
                    what: "indefinite lengths are not allowed",
                });
            }
            _ => {
                return Err(CborError {
                    at: start,
                    what: "a reserved head",
                });
            }
        };
        let shortest = match info {
            24 => argument > 23,
            25 => argument > 0xff,
            26 => argument > 0xffff,
            27 => argument > 0xffff_ffff,
            _ => true,
        };
        if major != 7 && !shortest {
            return Err(CborError {
                at: start,
                what: "a number is not in its shortest form",
            });
        }
        Ok((major, info, argument))
    }

    fn item(&mut self) -> Result<(), CborError> {
        let start = self.at;
        let (major, info, argument) = self.head()?;
        let is_key = self
            .open
            .last()
            .is_some_and(|open| open.map.is_some() && open.left % 2 == 0);
        if is_key {
            if major != 3 {
                return Err(CborError {
                    at: start,
                    what: "a map key is not text",
                });
            }
            let key = self.text(argument)?;
            return self.key(key, start);
        }
        match major {
            0 | 1 => {}
            2 => {
                self.take(argument)?;
            }
            3 => {
                self.text(argument)?;
            }
            4 => return self.enter(argument, None),
            5 => {
                let Some(items) = argument.checked_mul(2) else {
                    return self.fail("a map is longer than the block");
                };
                return self.enter(items, Some(None));
            }
            6 if argument == 42 => self.link()?,
            6 => {
                return Err(CborError {
                    at: start,
                    what: "a tag other than 42 (link)",
                });
            }
            _ => self.simple(info, argument, start)?,
        }
        self.count();
        Ok(())
    }

    fn text(&mut self, len: u64) -> Result<&'a [u8], CborError> {
        let bytes = self.take(len)?;
        match std::str::from_utf8(bytes) {
            Ok(_) => Ok(bytes),
            Err(_) => self.fail("text is not UTF-8"),
        }
    }

    /// Keys are sorted by length, then by bytes, and none repeats.
    fn key(&mut self, key: &'a [u8], start: usize) -> Result<(), CborError> {
        let Some(Open {
            map: Some(last), ..
        }) = self.open.last_mut()
        else {
            return Ok(());
        };
        if last.is_some_and(|last| (last.len(), last) >= (key.len(), key)) {
            return Err(CborError {
                at: start,
                what: "map keys are not in canonical order, or one repeats",
            });
        }
        *last = Some(key);
        self.count();
        Ok(())
    }

    fn enter(&mut self, items: u64, map: Option<Option<&'a [u8]>>) -> Result<(), CborError> {
        if items == 0 {
            self.count();
            return Ok(());
        }
        // Every item has at least one byte: a longer announcement is a lie.
        if items > (self.bytes.len() - self.at) as u64 {
            return self.fail("an array or map is longer than the block");
        }
        if self.open.len() >= MAX_DEPTH {
            return self.fail("nested deeper than 128 levels");
        }
        self.open.push(Open { left: items, map });
        Ok(())
    }

    /// Tag 42 holds bytes: 0x00 and a binary CID.
    fn link(&mut self) -> Result<(), CborError> {
        let start = self.at;
        let (major, _, len) = self.head()?;
        if major != 2 {
            return Err(CborError {
                at: start,
                what: "a link is not a byte string",
            });
        }
        let cid = self.take(len)?.strip_prefix(&[0]).and_then(|bytes| {
            Cid::try_from(bytes)
                .ok()
                .filter(|c| c.encoded_len() == bytes.len())
        });
        let Some(cid) = cid else {
            return Err(CborError {
                at: start,
                what: "a link is no CID",
            });
        };
        self.links.push(cid);
        Ok(())
    }

    fn simple(&mut self, info: u8, argument: u64, start: usize) -> Result<(), CborError> {
        match info {
            20..=22 => Ok(()),
            27 if f64::from_bits(argument).is_finite() => Ok(()),
            27 => Err(CborError {
                at: start,
                what: "NaN and infinity are not allowed",
            }),
            25 | 26 => Err(CborError {
                at: start,
                what: "floats have 64 bits",
            }),
            _ => Err(CborError {
                at: start,
                what: "a simple value other than false, true and null",
            }),
        }
    }

    /// One item of the innermost array or map is complete.
    fn count(&mut self) {
        if let Some(open) = self.open.last_mut() {
            open.left -= 1;
        }
    }

    /// Closes what is finished; an array that ends is itself an item of the one around it. True at the very end.
    fn close_finished(&mut self) -> bool {
        while self.open.last().is_some_and(|open| open.left == 0) {
            self.open.pop();
            self.count();
        }
        self.open.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use data_encoding::HEXLOWER;

    fn check(hex: &str) -> Result<usize, &'static str> {
        scan(&HEXLOWER.decode(hex.as_bytes()).unwrap())
            .map(|l| l.len())
            .map_err(|e| e.what)
    }

    #[test]
    fn canonical_items_are_taken() {
        for good in [
            "00",
            "17",
            "1818",
            "1903e8",
            "1a000f4240",
            "1b000000e8d4a51000",
            "20",
            "3863",
            "40",
            "4401020304",
            "60",
            "6449455446",
            "80",
            "83010203",
            "a0",
            "a2616101616202",
            "f4",
            "f5",
            "f6",
            "fb3ff199999999999a",
            "a1616181a0",
            "8180",
        ] {
            assert_eq!(check(good), Ok(0), "{good}");
        }
    }

    /// Row U6 and the strictness rules of the dag-cbor text, one line each.
    #[test]
    fn u6_what_is_not_canonical_is_refused() {
        for bad in [
            "",
            "1800",
            "190001",
            "1a00000001",
            "1b0000000000000001",
            "9fff",
            "bfff",
            "5fff",
            "7fff",
            "f7",
            "f0",
            "f93c00",
            "fa3f800000",
            "fb7ff8000000000000",
            "fb7ff0000000000000",
            "c100",
            "d82a00",
            "d82a4100",
            "d82a40",
            "0000",
            "a10102",
            "a2616201616102",
            "a2616101616102",
            "a262616101616202",
            "61ff",
            "82",
            "9bffffffffffffffff",
            "bbffffffffffffffff",
            "5bffffffffffffffff",
            "1c",
            "a1",
            "a16161",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn u6_depth_is_bounded_and_costs_no_stack() {
        let mut deep = vec![0x81; MAX_DEPTH];
        deep.push(0x00);
        assert!(scan(&deep).is_ok());
        let mut deeper = vec![0x81; 1_000_000];
        deeper.push(0x00);
        assert_eq!(
            scan(&deeper).unwrap_err().what,
            "nested deeper than 128 levels"
        );
    }

    #[test]
    fn a_link_is_tag_42_over_zero_and_cid() {
        let link =
            "d82a58250001551220b94d27b9934d3e08a52e52d7da7dabfac484efe37a5380ee9088f7ace2efcde9";
        assert_eq!(check(link), Ok(1));
        assert_eq!(
            check(&link.replace("58250001", "58250101")),
            Err("a link is no CID")
        );
        let short = &link[..link.len() - 2];
        assert!(check(short).is_err());
    }
}
