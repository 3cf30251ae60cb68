//! CIDs as people and scripts write them.

use cid::{Cid, Version};

/// Why a text is no CID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseCidError {
    /// Not a CID in any base.
    #[error("not a CID: {0}")]
    Malformed(String),
    /// A CID and something after it: two names for one block, where there must be one.
    #[error("{0} bytes follow the CID")]
    Trailing(usize),
}

/// Reads a CID of version 0 (`Qm…`) or 1 (`bafy…`, any multibase), the whole text and nothing but it.
///
/// # Errors
/// See [`ParseCidError`]. The `cid` crate's own parser ignores what follows a CID; this one does not.
pub fn parse_cid(text: &str) -> Result<Cid, ParseCidError> {
    let malformed = |e: &dyn std::fmt::Display| ParseCidError::Malformed(e.to_string());
    let cid: Cid = text.parse().map_err(|e| malformed(&e))?;
    if cid.version() == Version::V1 {
        let (_base, bytes) = multibase::decode(text).map_err(|e| malformed(&e))?;
        match bytes.len().saturating_sub(cid.encoded_len()) {
            0 => {}
            more => return Err(ParseCidError::Trailing(more)),
        }
    }
    Ok(cid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_versions_are_read_and_nothing_after_them() {
        for good in [
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
            "f01550000",
        ] {
            assert_eq!(parse_cid(good).unwrap(), good.parse::<Cid>().unwrap());
        }
        assert_eq!(parse_cid("f01550000ff"), Err(ParseCidError::Trailing(1)));
        for bad in [
            "",
            "Qm",
            "b",
            "nonsense",
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfDxx",
            "/ipfs/f01550000",
        ] {
            assert!(parse_cid(bad).is_err(), "{bad}");
        }
    }
}
