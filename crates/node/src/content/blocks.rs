//! Single blocks: `block put|get|stat|rm`.

use cid::Cid;
use gemba_block::{Block, Bytes, MhCode, codec};
use gemba_store::Store;

use super::room::Puts;
use crate::error::{Code, Fail};
use crate::meta::PinRows;
use crate::repo::store_fail;

/// The block of `data` under a codec and a hash by name; codec `v0` makes a CIDv0.
///
/// # Errors
/// [`Code::Usage`] for unknown names and blocks over 2 MiB.
pub fn make(data: impl Into<Bytes>, codec_name: &str, hash_name: &str) -> Result<Block, Fail> {
    let hash = parse_hash(hash_name)?;
    if codec_name == "v0" {
        if hash != MhCode::Sha2_256 {
            return Err(
                Fail::new(Code::Usage, "a CIDv0 has the hash sha2-256 and no other")
                    .hint("leave the hash out, or name the codec dag-pb in place of v0"),
            );
        }
        return Block::v0(data).map_err(block_fail);
    }
    Block::encode(parse_codec(codec_name)?, hash, data).map_err(block_fail)
}

/// The number of a codec by name, or given as a number.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_codec(name: &str) -> Result<u64, Fail> {
    let number = match name.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => name.parse().ok(),
    };
    codec::from_name(name).or(number).ok_or_else(|| {
        Fail::new(Code::Usage, format!("unknown codec {name:?}"))
            .hint("raw, dag-pb, dag-cbor, dag-json, or a number such as 0x55")
    })
}

/// A hash by its name in the multicodec table.
///
/// # Errors
/// [`Code::Usage`].
pub fn parse_hash(name: &str) -> Result<MhCode, Fail> {
    MhCode::from_name(name).ok_or_else(|| {
        Fail::new(Code::Usage, format!("unknown hash {name:?}"))
            .hint("sha2-256, sha2-512 or blake3, for instance")
    })
}

/// Stores one block. Durable when it returns.
///
/// # Errors
/// The disk's.
pub fn put(puts: &Puts, block: &Block) -> Result<(), Fail> {
    puts.put_many(std::slice::from_ref(block))
        .map(drop)
        .map_err(|refusal| refusal.fail)
}

/// Size of a block that is here, in bytes.
///
/// # Errors
/// [`Code::NotFound`].
pub fn size(store: &Store, cid: &Cid) -> Result<u64, Fail> {
    store.size(cid).ok_or_else(|| not_here(cid))
}

/// Removes a block that no pin holds.
///
/// # Errors
/// [`Code::NotFound`]; [`Code::Conflict`] if a pin needs it, or if it is being added or fetched.
pub fn remove(store: &Store, pins: &PinRows, cid: &Cid) -> Result<(), Fail> {
    size(store, cid)?;
    if let Some(holder) = super::pins::holder_of(store, pins, cid)? {
        return Err(
            Fail::new(Code::Conflict, format!("{cid} belongs to the pin {holder}"))
                .hint(format!("`gemba pin rm {holder}` releases it")),
        );
    }
    let report = store.delete_many(&[*cid]).map_err(|e| store_fail(&e))?;
    match report.guarded {
        0 => Ok(()),
        _ => Err(Fail::new(
            Code::Conflict,
            format!("{cid} stays: something is being added or fetched at this moment"),
        )
        .hint("try again when that is done")),
    }
}

/// The failure for a block that is not on this device.
#[must_use]
pub fn not_here(cid: &Cid) -> Fail {
    Fail::new(Code::NotFound, format!("block {cid} is not on this device"))
        .hint("if it is on another one, `gemba block get` fetches it while a daemon runs here")
}

fn block_fail(error: gemba_block::BlockError) -> Fail {
    Fail::new(Code::Usage, error)
}
