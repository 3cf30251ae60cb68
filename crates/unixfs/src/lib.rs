#![doc = include_str!("../README.md")]
#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod dagpb;

pub mod car;
#[cfg(all(feature = "fs", unix))]
pub mod fs;

#[doc(hidden)]
pub mod fuzz;

mod config;
mod dir;
mod error;
mod hamt;
mod import;
mod layout;
mod leaf;
mod list;
mod path;
mod read;
mod source;
mod tree;
mod walk;

pub use config::{
    CidVersion, Estimation, MAX_CHUNK_BYTES, MAX_FANOUT, MAX_FILE_LINKS, Meta, Profile,
};
pub use error::{BoxError, ImportError, ProfileError, ReadError, SourceError};
pub use gemba_block::{Block, Bytes, Cid};
pub use hamt::HamtError;
pub use import::{TreeImporter, import_reader};
pub use layout::Part;
pub use list::{DirEntry, ListStep, Listing, Lookup, LookupStep, Stat, StatKind};
pub use path::{Path, PathError, ResolveStep, Resolved, Resolver};
pub use read::{MAX_FILE_DEPTH, MAX_PATH_BYTES, ReadStep, Reader};
pub use source::{BlockSource, DriveError, LOOK_AHEAD, cat, ls, resolve};
pub use tree::{ImportSink, Imported};
pub use walk::{MAX_TREE_DEPTH, TreeStep, TreeWalk};
