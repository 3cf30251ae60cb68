#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
pub mod cbor;
pub mod codec;
mod hash;
mod links;
mod parse;
pub mod pb;
mod prefix;

#[doc(hidden)]
pub mod fuzz;

pub use block::{Block, BlockError};
pub use bytes::Bytes;
pub use cid::Cid;
pub use codec::{MAX_BLOCK_BYTES, MAX_CID_BYTES};
pub use hash::{CidError, Hasher, MhCode, check_cid};
pub use links::{LinksError, links};
pub use parse::{ParseCidError, parse_cid};
pub use prefix::{Prefix, PrefixError};
