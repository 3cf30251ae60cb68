//! The entries of a directory, basic or HAMT: listed as a stream, or looked up by name along one path.

use bytes::Bytes;
use cid::Cid;
use gemba_block::Block;
use gemba_block::codec::{DAG_PB, RAW};

use crate::dagpb::{FsData, Kind, Mtime, Node, WireError};
use crate::dir::lossy;
use crate::error::ReadError;
use crate::hamt::HamtError;
use crate::hamt::shard::{Place, Shard, Slot};
use crate::source::identity;

/// One entry of a directory. What it is, only its own block tells: see [`Stat::of`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirEntry {
    /// Its name: any bytes, also ones that no file system takes.
    pub name: Bytes,
    /// Its root.
    pub cid: Cid,
    /// Claimed size of all its blocks in bytes.
    pub tsize: Option<u64>,
}

/// What a root block says about itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stat {
    /// File, directory or symlink.
    pub kind: StatKind,
    /// Bytes of content as claimed; 0 for directories, the target's length for symlinks.
    pub size: u64,
    /// Permission bits, if stored.
    pub mode: Option<u32>,
    /// Modification time, if stored.
    pub mtime: Option<Mtime>,
}

/// What an entry is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatKind {
    /// A file.
    File,
    /// A directory, basic or HAMT.
    Directory {
        /// Whether it is sharded.
        hamt: bool,
    },
    /// A symbolic link with its target, any bytes.
    Symlink {
        /// The target.
        target: Bytes,
    },
}

impl Stat {
    /// Reads a root block.
    ///
    /// # Errors
    /// [`ReadError::Wire`] or [`ReadError::Codec`] if it is not UnixFS.
    pub fn of(block: &Block) -> Result<Stat, ReadError> {
        let cid = *block.cid();
        if cid.codec() == RAW {
            return Ok(Stat {
                kind: StatKind::File,
                size: block.data().len() as u64,
                mode: None,
                mtime: None,
            });
        }
        let (_, data) = decode(block)?;
        let (kind, size) = match data.kind {
            Kind::Raw | Kind::File | Kind::Metadata => {
                let own = data.data.as_ref().map_or(0, |data| data.len() as u64);
                (StatKind::File, data.filesize.unwrap_or(own))
            }
            Kind::Directory => (StatKind::Directory { hamt: false }, 0),
            Kind::HamtShard => (StatKind::Directory { hamt: true }, 0),
            Kind::Symlink => {
                let target = data.data.clone().unwrap_or_default();
                let size = target.len() as u64;
                (StatKind::Symlink { target }, size)
            }
        };
        Ok(Stat {
            kind,
            size,
            mode: data.mode,
            mtime: data.mtime,
        })
    }
}

/// What a [`Listing`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListStep {
    /// Give this block to [`Listing::block`].
    NeedBlock(Cid),
    /// The next entry, in the order of the DAG: by name in a basic directory, by hash in a HAMT.
    Entry(DirEntry),
    /// All entries were given.
    End,
}

/// Streams the entries of a directory; one path of shards is in memory.
///
/// `poll` until `End`; after `NeedBlock`, hand the block to `block`. After an error it is of no further use.
#[derive(Debug)]
pub struct Listing {
    need: Option<(Cid, Option<Place>)>,
    stack: Vec<(Level, usize)>,
}

#[derive(Debug)]
enum Level {
    Basic(Node),
    Shard(Box<Shard>),
}

impl Listing {
    /// A listing of the directory at `root`.
    pub fn new(root: Cid) -> Self {
        Listing {
            need: Some((root, None)),
            stack: Vec::new(),
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// What is wrong with the DAG, see [`ReadError`].
    pub fn poll(&mut self) -> Result<ListStep, ReadError> {
        loop {
            if let Some((cid, _)) = self.need {
                match identity(&cid) {
                    Some(block) => self.block(&block)?,
                    None => return Ok(ListStep::NeedBlock(cid)),
                }
                continue;
            }
            let Some((level, next)) = self.stack.last_mut() else {
                return Ok(ListStep::End);
            };
            let position = *next;
            *next += 1;
            match level {
                Level::Basic(node) => {
                    if let (Some(link), Some(name)) = (node.link(position), node.name(position)) {
                        return Ok(ListStep::Entry(DirEntry {
                            name,
                            cid: link.cid,
                            tsize: link.tsize,
                        }));
                    }
                }
                Level::Shard(shard) => match shard.slot(position) {
                    Some(Slot::Entry { name, cid, tsize }) => {
                        return Ok(ListStep::Entry(DirEntry { name, cid, tsize }));
                    }
                    Some(Slot::Shard { cid, place }) => {
                        self.need = Some((cid, Some(place)));
                        continue;
                    }
                    None => {}
                },
            }
            self.stack.pop();
        }
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// [`ReadError::WrongBlock`] for another one, else what is wrong with the DAG.
    pub fn block(&mut self, block: &Block) -> Result<(), ReadError> {
        let place = match self.need {
            Some((cid, place)) if cid == *block.cid() => place,
            other => {
                return Err(ReadError::wrong_block(block, other.map(|(cid, _)| cid)));
            }
        };
        self.need = None;
        self.stack.push((open(block, place)?, 0));
        Ok(())
    }

    /// Shards that will be needed after the one asked for, nearest first, at most `max`.
    pub fn upcoming(&self, max: usize) -> Vec<Cid> {
        let mut out = Vec::new();
        for (level, next) in self.stack.iter().rev() {
            let Level::Shard(shard) = level else { continue };
            for position in *next..shard.len() {
                if out.len() >= max {
                    return out;
                }
                if let Some(Slot::Shard { cid, .. }) = shard.slot(position) {
                    out.push(cid);
                }
            }
        }
        out
    }
}

impl Listing {
    /// Entries and shards after the current one, nearest first, at most `max`: for whoever reads the entries too.
    pub(crate) fn upcoming_all(&self, max: usize) -> Vec<Cid> {
        let mut out = Vec::new();
        for (level, next) in self.stack.iter().rev() {
            for position in *next.. {
                if out.len() >= max {
                    return out;
                }
                let cid = match level {
                    Level::Basic(node) => node.link(position).map(|link| link.cid),
                    Level::Shard(shard) => shard.slot(position).map(|slot| match slot {
                        Slot::Entry { cid, .. } | Slot::Shard { cid, .. } => cid,
                    }),
                };
                let Some(cid) = cid else { break };
                out.push(cid);
            }
        }
        out
    }
}

/// What a [`Lookup`] says next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LookupStep {
    /// Give this block to [`Lookup::block`].
    NeedBlock(Cid),
    /// The entry.
    Found(DirEntry),
    /// The directory has no such entry.
    Absent,
}

/// Looks one name up in a directory; of a HAMT only the shards on the name's path are needed.
#[derive(Debug)]
pub struct Lookup {
    name: Bytes,
    need: Option<(Cid, Option<Place>)>,
    found: Option<DirEntry>,
}

impl Lookup {
    /// A lookup of `name` in the directory at `root`.
    pub fn new(root: Cid, name: Bytes) -> Self {
        Lookup {
            name,
            need: Some((root, None)),
            found: None,
        }
    }

    /// What comes next.
    ///
    /// # Errors
    /// What is wrong with the DAG, see [`ReadError`].
    pub fn poll(&mut self) -> Result<LookupStep, ReadError> {
        while let Some((cid, _)) = self.need {
            match identity(&cid) {
                Some(block) => self.block(&block)?,
                None => return Ok(LookupStep::NeedBlock(cid)),
            }
        }
        Ok(self
            .found
            .clone()
            .map_or(LookupStep::Absent, LookupStep::Found))
    }

    /// Takes the block that was asked for.
    ///
    /// # Errors
    /// [`ReadError::WrongBlock`] for another one, else what is wrong with the DAG.
    pub fn block(&mut self, block: &Block) -> Result<(), ReadError> {
        let place = match self.need {
            Some((cid, place)) if cid == *block.cid() => place,
            other => {
                return Err(ReadError::wrong_block(block, other.map(|(cid, _)| cid)));
            }
        };
        self.need = None;
        match open(block, place)? {
            Level::Basic(node) => self.found = find_in(&node, &self.name),
            Level::Shard(shard) => {
                let cid = *block.cid();
                match shard.find(&self.name).map_err(|source| ReadError::Hamt {
                    cid: Box::new(cid),
                    source,
                })? {
                    Some(Slot::Entry { name, cid, tsize }) if name == self.name => {
                        self.found = Some(DirEntry { name, cid, tsize });
                    }
                    Some(Slot::Shard { cid, place }) => self.need = Some((cid, Some(place))),
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

/// The first link of that name, as boxo's GetNodeLink.
fn find_in(node: &Node, name: &Bytes) -> Option<DirEntry> {
    let link = node.links().find(|link| link.name() == name.as_ref())?;
    Some(DirEntry {
        name: name.clone(),
        cid: link.cid,
        tsize: link.tsize,
    })
}

/// Opens a directory block, or a shard at a known place.
fn open(block: &Block, place: Option<Place>) -> Result<Level, ReadError> {
    let cid = *block.cid();
    if cid.codec() == RAW {
        return Err(ReadError::WrongKind {
            cid: Box::new(cid),
            kind: Kind::Raw,
            wanted: "a directory",
        });
    }
    let (node, data) = decode(block)?;
    match (data.kind, place) {
        (Kind::Directory, None) => Ok(Level::Basic(node)),
        (Kind::HamtShard, place) => {
            if place.is_some() && node.is_empty() {
                // Kubo removes shards that lose their last entry; a DAG of empty ones would be an endless walk.
                return Err(ReadError::Hamt {
                    cid: Box::new(cid),
                    source: HamtError::Empty,
                });
            }
            let shard = Shard::new(node, &data, place.unwrap_or(Place::ROOT));
            shard
                .map(|shard| Level::Shard(Box::new(shard)))
                .map_err(|source| ReadError::Hamt {
                    cid: Box::new(cid),
                    source,
                })
        }
        (kind, None) => Err(ReadError::WrongKind {
            cid: Box::new(cid),
            kind,
            wanted: "a directory",
        }),
        (kind, Some(_)) => Err(ReadError::WrongKind {
            cid: Box::new(cid),
            kind,
            wanted: "a shard of a directory",
        }),
    }
}

fn decode(block: &Block) -> Result<(Node, FsData), ReadError> {
    let cid = *block.cid();
    if cid.codec() != DAG_PB {
        return Err(ReadError::Codec { cid: Box::new(cid) });
    }
    let wire = |source: WireError| ReadError::Wire {
        cid: Box::new(cid),
        source,
    };
    let node = Node::decode(block.data().clone()).map_err(wire)?;
    let data = FsData::decode(&node.data().unwrap_or_default()).map_err(wire)?;
    Ok((node, data))
}

impl ReadError {
    pub(crate) fn wrong_block(given: &Block, wanted: Option<Cid>) -> Self {
        ReadError::WrongBlock {
            given: Box::new(*given.cid()),
            wanted: wanted.map(Box::new),
        }
    }

    pub(crate) fn not_found(directory: Cid, name: &[u8]) -> Self {
        ReadError::NotFound {
            directory: Box::new(directory),
            name: lossy(name),
        }
    }
}
