//! Paths such as `CID/a/b.txt` and `/ipfs/CID/a/b.txt`, resolved one name at a time.

use std::str::FromStr;

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;

use crate::error::ReadError;
use crate::list::{Lookup, LookupStep};

/// Longest path that is taken, in bytes (Linux PATH_MAX, generously).
const MAX_PATH: usize = 64 * 1024;

/// A root and the names below it.
///
/// Names are taken as they are: no percent-decoding, no globbing. Empty segments are dropped, as Kubo does; `.` and
/// `..` are refused, because a DAG may hold entries of these names and Kubo would have cleaned them away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path {
    root: Cid,
    segments: Vec<Bytes>,
}

/// Text that is not a path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PathError {
    /// The first segment is not a CID.
    #[error("{0:?} is not a CID")]
    Cid(String),
    /// A mutable path; its name has to be resolved first.
    #[error("an /ipns/ path names something that changes: resolve the name first")]
    Mutable,
    /// `.` or `..` inside.
    #[error("a path must not contain {0:?}")]
    Dots(String),
    /// Longer than 64 KiB.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
}

impl Path {
    /// A root with nothing below.
    pub fn root_only(root: Cid) -> Self {
        Path {
            root,
            segments: Vec::new(),
        }
    }

    /// The root.
    pub fn root(&self) -> &Cid {
        &self.root
    }

    /// The names below it.
    pub fn segments(&self) -> &[Bytes] {
        &self.segments
    }

    /// The last name, if there is one.
    pub fn file_name(&self) -> Option<&Bytes> {
        self.segments.last()
    }
}

impl FromStr for Path {
    type Err = PathError;

    fn from_str(text: &str) -> Result<Self, PathError> {
        if text.len() > MAX_PATH {
            return Err(PathError::TooLong);
        }
        if text.starts_with("/ipns/") || text.starts_with("ipns://") {
            return Err(PathError::Mutable);
        }
        let text = text
            .strip_prefix("ipfs://")
            .or(text.strip_prefix("/ipfs/"))
            .unwrap_or(text);
        let mut parts = text.split('/').filter(|part| !part.is_empty());
        let first = parts.next().unwrap_or_default();
        let root = gemba_block::parse_cid(first).map_err(|_| PathError::Cid(first.to_owned()))?;
        let mut segments = Vec::new();
        for part in parts {
            if part == "." || part == ".." {
                return Err(PathError::Dots(part.to_owned()));
            }
            segments.push(Bytes::copy_from_slice(part.as_bytes()));
        }
        Ok(Path { root, segments })
    }
}

impl std::fmt::Display for Path {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", self.root)?;
        self.segments
            .iter()
            .try_for_each(|segment| write!(f, "/{}", String::from_utf8_lossy(segment)))
    }
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its root block.
    pub cid: Cid,
    /// Claimed size of all its blocks, from the link to it; unknown for a bare CID.
    pub tsize: Option<u64>,
}

/// What a [`Resolver`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResolveStep {
    /// Give this block to [`Resolver::block`].
    NeedBlock(Cid),
    /// The end of the path.
    Done(Resolved),
}

/// Walks a path name by name. A symlink on the way is not followed: it is not a directory, and says so.
#[derive(Debug)]
pub struct Resolver {
    segments: std::vec::IntoIter<Bytes>,
    current: Resolved,
    lookup: Option<(Lookup, Bytes)>,
}

impl Resolver {
    /// A resolver of `path`. A bare CID resolves to itself without any block.
    pub fn new(path: &Path) -> Self {
        Resolver {
            segments: path.segments.clone().into_iter(),
            current: Resolved {
                cid: path.root,
                tsize: None,
            },
            lookup: None,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// [`ReadError::NotFound`], or what is wrong with the DAG.
    pub fn poll(&mut self) -> Result<ResolveStep, ReadError> {
        loop {
            let Some((lookup, name)) = &mut self.lookup else {
                let Some(name) = self.segments.next() else {
                    return Ok(ResolveStep::Done(self.current.clone()));
                };
                self.lookup = Some((Lookup::new(self.current.cid, name.clone()), name));
                continue;
            };
            match lookup.poll()? {
                LookupStep::NeedBlock(cid) => return Ok(ResolveStep::NeedBlock(cid)),
                LookupStep::Absent => return Err(ReadError::not_found(self.current.cid, name)),
                LookupStep::Found(entry) => {
                    self.current = Resolved {
                        cid: entry.cid,
                        tsize: entry.tsize,
                    };
                    self.lookup = None;
                }
            }
        }
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// [`ReadError::WrongBlock`] for another one, else what is wrong with the DAG.
    pub fn block(&mut self, block: &Block) -> Result<(), ReadError> {
        match &mut self.lookup {
            Some((lookup, _)) => lookup.block(block),
            None => Err(ReadError::wrong_block(block, None)),
        }
    }
}
