//! Folders and DAGs to feed importers, walks and exchanges.

use crate::Rng;
use gemba_block::{Block, Cid, MhCode, codec};
use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

/// A file, a folder or a symlink, as a plain description.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tree {
    /// A file whose bytes are [`content`] of length and seed.
    File {
        /// Bytes.
        len: u64,
        /// Which bytes.
        seed: u64,
    },
    /// A folder, perhaps empty.
    Dir(BTreeMap<String, Tree>),
    /// A symlink with its target, which need not exist.
    Symlink(String),
}

/// How large random folders get.
#[derive(Debug, Clone)]
pub struct TreeShape {
    /// Folders within folders.
    pub depth: u32,
    /// Entries of one folder, at most.
    pub entries: u64,
    /// Bytes of one file, at most.
    pub file: u64,
    /// Whether symlinks occur.
    pub symlinks: bool,
}

impl Default for TreeShape {
    /// Four levels, 12 entries, files up to 300 KiB (more than one chunk of 256 KiB), symlinks.
    fn default() -> Self {
        Self {
            depth: 4,
            entries: 12,
            file: 300 << 10,
            symlinks: true,
        }
    }
}

impl Tree {
    /// A random folder. Names hold what names hold in the field: spaces, umlauts, kanji, emoji, leading dots and dashes, 255 bytes.
    pub fn random(rng: &mut Rng, shape: &TreeShape) -> Self {
        let entries = rng.length(shape.entries);
        Self::Dir(
            (0..entries)
                .map(|n| (name(rng, n), Self::random_entry(rng, shape)))
                .collect(),
        )
    }

    fn random_entry(rng: &mut Rng, shape: &TreeShape) -> Self {
        match rng.below(10) {
            0 if shape.symlinks => {
                Self::Symlink((*rng.pick(&["a", "../b", "./nowhere/ä", "/absolute"])).to_owned())
            }
            1..=3 if shape.depth > 0 => Self::random(
                rng,
                &TreeShape {
                    depth: shape.depth - 1,
                    ..shape.clone()
                },
            ),
            // Few different seeds, so that equal files occur.
            _ => Self::File {
                len: rng.length(shape.file),
                seed: rng.below(1_000),
            },
        }
    }

    /// A folder of `files` files of `len` bytes, all different: the "2,000 × 1 KiB" of the benches.
    pub fn flat(files: u64, len: u64) -> Self {
        Self::Dir(
            (0..files)
                .map(|n| (format!("file-{n:06}"), Self::File { len, seed: n }))
                .collect(),
        )
    }

    /// Writes the tree at `path`, which must not exist; its parent must.
    ///
    /// # Errors
    /// What the file system says. Symlinks need a Unix.
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::File { len, seed } => std::fs::write(path, content(*len, *seed)),
            Self::Symlink(target) => symlink(target, path),
            Self::Dir(entries) => {
                std::fs::create_dir(path)?;
                entries
                    .iter()
                    .try_for_each(|(name, entry)| entry.write_to(&path.join(name)))
            }
        }
    }

    /// Reads a folder back and tells the first path where it differs from this tree, in content or kind.
    ///
    /// # Errors
    /// What the file system says, apart from "not found", which is a difference.
    pub fn difference(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let kind = match std::fs::symlink_metadata(path) {
            Ok(meta) => meta.file_type(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Some(path.to_owned())),
            Err(e) => return Err(e),
        };
        let same = match self {
            Self::File { len, seed } => {
                kind.is_file() && std::fs::read(path)? == content(*len, *seed)
            }
            Self::Symlink(target) => {
                kind.is_symlink() && std::fs::read_link(path)? == Path::new(target)
            }
            Self::Dir(entries) => {
                if !kind.is_dir() {
                    return Ok(Some(path.to_owned()));
                }
                for (name, entry) in entries {
                    if let Some(at) = entry.difference(&path.join(name))? {
                        return Ok(Some(at));
                    }
                }
                for found in std::fs::read_dir(path)? {
                    let name = found?.file_name();
                    if name.to_str().is_none_or(|name| !entries.contains_key(name)) {
                        return Ok(Some(path.join(name)));
                    }
                }
                true
            }
        };
        Ok((!same).then(|| path.to_owned()))
    }

    /// Every entry below this one with its path, parents first, in the order of names.
    pub fn walk(&self) -> Vec<(PathBuf, &Self)> {
        let mut found = Vec::new();
        let mut queue = vec![(PathBuf::new(), self)];
        while let Some((path, tree)) = queue.pop() {
            if let Self::Dir(entries) = tree {
                queue.extend(
                    entries
                        .iter()
                        .rev()
                        .map(|(name, entry)| (path.join(name), entry)),
                );
            }
            if !path.as_os_str().is_empty() {
                found.push((path, tree));
            }
        }
        found
    }

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        match self {
            Self::File { len, .. } => *len,
            Self::Dir(entries) => entries.values().map(Self::bytes).sum(),
            Self::Symlink(_) => 0,
        }
    }
}

/// The bytes of a file of this length and seed: random, except that every fourth seed repeats a short pattern, so that equal chunks occur.
pub fn content(len: u64, seed: u64) -> Vec<u8> {
    let len = usize::try_from(len).expect("a test's file fits into memory");
    let mut rng = Rng::new(seed);
    if seed % 4 != 3 {
        return rng.bytes(len);
    }
    let pattern = rng.bytes(64);
    pattern.iter().copied().cycle().take(len).collect()
}

/// A DAG of blocks.
#[derive(Debug, Clone)]
pub struct Dag {
    /// Its root.
    pub root: Cid,
    /// Its blocks, each once, children before parents.
    pub blocks: Vec<Block>,
    links: BTreeMap<Cid, Vec<Cid>>,
    index: BTreeMap<Cid, usize>,
}

impl Dag {
    /// About `size` blocks of all three codecs; children are shared, and linked more than once. All are reachable from the root.
    pub fn random(rng: &mut Rng, size: usize) -> Self {
        let mut builder = Builder::default();
        let mut orphans = BTreeSet::new();
        for _ in 1..size.max(1) {
            let children = builder.random_children(rng, 5);
            for child in &children {
                orphans.remove(child);
            }
            orphans.insert(builder.random_node(rng, &children));
        }
        let mut rest: Vec<_> = orphans.into_iter().collect();
        rng.shuffle(&mut rest);
        let root = builder.random_parent(rng, &rest);
        builder.finish(root)
    }

    /// A chain: each block links to the next, `links` of them.
    pub fn chain(links: usize) -> Self {
        let mut builder = Builder::default();
        let mut root = builder.put(raw(b"the end of the chain"), &[]);
        for _ in 0..links {
            root = builder.put(dag_cbor(&[root], b""), &[root]);
        }
        builder.finish(root)
    }

    /// A root over `leaves` different raw leaves of `leaf_len` bytes (at least 8).
    pub fn wide(leaves: usize, leaf_len: usize) -> Self {
        Self::balanced(1, leaves, leaf_len)
    }

    /// A tree of `levels` levels of links with `fan_out` children each, over raw leaves of `leaf_len` bytes (at least 8), as a large file is laid out.
    pub fn balanced(levels: u32, fan_out: usize, leaf_len: usize) -> Self {
        let leaves = (0..fan_out.pow(levels)).map(|n| {
            let mut data = (n as u64).to_le_bytes().to_vec();
            data.resize(leaf_len.max(8), 0);
            raw(data)
        });
        let mut builder = Builder::default();
        let mut level: Vec<_> = leaves.map(|leaf| builder.put(leaf, &[])).collect();
        for _ in 0..levels {
            level = level
                .chunks(fan_out.max(1))
                .map(|children| builder.put(dag_pb(&named(children), b""), children))
                .collect();
        }
        let root = level[0];
        builder.finish(root)
    }

    /// A diamond on a diamond, `levels` times: two blocks a level, each linking to both below. 2^levels paths, 2 × levels + 2 blocks.
    pub fn diamonds(levels: usize) -> Self {
        let mut builder = Builder::default();
        let mut pair = [b"left".as_slice(), b"right"].map(|data| builder.put(raw(data), &[]));
        for _ in 0..levels {
            pair = [b"left".as_slice(), b"right"]
                .map(|data| builder.put(dag_cbor(&pair, data), &pair));
        }
        let root = builder.put(dag_pb(&named(&pair), b"root"), &pair);
        builder.finish(root)
    }

    /// A block of it.
    pub fn get(&self, cid: &Cid) -> Option<&Block> {
        self.index.get(cid).map(|i| &self.blocks[*i])
    }

    /// The links of a block of it, in the block's order, with repetitions.
    ///
    /// # Panics
    /// If it has no such block.
    pub fn links(&self, cid: &Cid) -> &[Cid] {
        &self.links[cid]
    }

    /// Its blocks in reading order, each once: parents first, the first link first.
    pub fn reading_order(&self) -> Vec<Cid> {
        let mut seen = BTreeSet::from([self.root]);
        let mut stack = vec![self.root];
        let mut order = Vec::new();
        while let Some(cid) = stack.pop() {
            order.push(cid);
            let new: Vec<_> = self
                .links(&cid)
                .iter()
                .copied()
                .filter(|link| seen.insert(*link))
                .collect();
            stack.extend(new.into_iter().rev());
        }
        order
    }

    /// Sum of the blocks' bytes.
    pub fn bytes(&self) -> u64 {
        self.blocks
            .iter()
            .map(|block| block.data().len() as u64)
            .sum()
    }
}

/// A raw block.
///
/// # Panics
/// Beyond the 2 MiB of a block.
pub fn raw(data: impl Into<Vec<u8>>) -> Block {
    Block::raw(data.into()).expect("a test's block is below 2 MiB")
}

/// A dag-pb block (CIDv1) with these links (name, CID, cumulative size) and data, in canonical form: links before data.
///
/// # Panics
/// Beyond the 2 MiB of a block.
pub fn dag_pb(links: &[(String, Cid, u64)], data: &[u8]) -> Block {
    let mut node = Vec::new();
    for (name, cid, size) in links {
        let mut link = Vec::new();
        pb_bytes(&mut link, 1, &cid.to_bytes());
        pb_bytes(&mut link, 2, name.as_bytes());
        pb_varint(&mut link, 3 << 3);
        pb_varint(&mut link, *size);
        pb_bytes(&mut node, 2, &link);
    }
    if !data.is_empty() {
        pb_bytes(&mut node, 1, data);
    }
    Block::dag_pb(node).expect("a test's block is below 2 MiB")
}

/// A dag-cbor block: an array of the links, then the data as bytes.
///
/// # Panics
/// Beyond the 2 MiB of a block.
pub fn dag_cbor(links: &[Cid], data: &[u8]) -> Block {
    let mut out = Vec::new();
    cbor_head(&mut out, 4, links.len() as u64 + 1);
    for link in links {
        cbor_head(&mut out, 6, 42);
        let bytes = link.to_bytes();
        cbor_head(&mut out, 2, bytes.len() as u64 + 1);
        out.push(0);
        out.extend(bytes);
    }
    cbor_head(&mut out, 2, data.len() as u64);
    out.extend(data);
    Block::encode(codec::DAG_CBOR, MhCode::Sha2_256, out).expect("a test's block is below 2 MiB")
}

/// A CID that no block has: the number is its digest. For walks over DAGs too large to build.
pub fn fake_cid(codec: u64, number: u64) -> Cid {
    // Multihash: sha2-256, 32 bytes.
    let mut multihash = vec![0x12, 32];
    multihash.extend(number.to_be_bytes().repeat(4));
    let mut bytes = vec![1];
    pb_varint(&mut bytes, codec);
    bytes.extend(multihash);
    Cid::try_from(bytes).expect("version 1, a codec, a multihash of the right length")
}

#[derive(Default)]
struct Builder {
    blocks: Vec<Block>,
    links: BTreeMap<Cid, Vec<Cid>>,
}

impl Builder {
    fn put(&mut self, block: Block, links: &[Cid]) -> Cid {
        let cid = *block.cid();
        if self.links.insert(cid, links.to_vec()).is_none() {
            self.blocks.push(block);
        }
        cid
    }

    fn random_children(&mut self, rng: &mut Rng, most: u64) -> Vec<Cid> {
        if self.blocks.is_empty() {
            return Vec::new();
        }
        // Mostly recent ones, so that depth grows; some from anywhere, so that they are shared.
        (0..rng.below(most + 1))
            .map(|_| {
                let back = if rng.chance(3, 4) {
                    self.blocks.len().min(8)
                } else {
                    self.blocks.len()
                };
                *self.blocks[self.blocks.len() - 1 - rng.index(back)].cid()
            })
            .collect()
    }

    fn random_node(&mut self, rng: &mut Rng, children: &[Cid]) -> Cid {
        if !children.is_empty() {
            return self.random_parent(rng, children);
        }
        let len = rng.length(512) as usize;
        let block = match rng.below(4) {
            0 => dag_cbor(&[], &rng.bytes(len)),
            1 => dag_pb(&[], &rng.bytes(len)),
            _ => raw(rng.bytes(len)),
        };
        self.put(block, &[])
    }

    fn random_parent(&mut self, rng: &mut Rng, children: &[Cid]) -> Cid {
        let len = rng.length(64) as usize;
        let data = rng.bytes(len);
        let block = if rng.coin() {
            dag_cbor(children, &data)
        } else {
            dag_pb(&named(children), &data)
        };
        self.put(block, children)
    }

    fn finish(self, root: Cid) -> Dag {
        let index = self
            .blocks
            .iter()
            .enumerate()
            .map(|(i, block)| (*block.cid(), i))
            .collect();
        Dag {
            root,
            blocks: self.blocks,
            links: self.links,
            index,
        }
    }
}

/// Names that keep the children in their order when a codec sorts links by name.
fn named(children: &[Cid]) -> Vec<(String, Cid, u64)> {
    children
        .iter()
        .enumerate()
        .map(|(i, cid)| (format!("{i:08}"), *cid, 0))
        .collect()
}

fn name(rng: &mut Rng, number: u64) -> String {
    match rng.below(12) {
        0 => format!(".hidden {number}"),
        1 => format!("-dash{number}"),
        2 => format!("Prüfbericht {number}"),
        3 => format!("現場{number}"),
        4 => format!("🏭 {number}.txt"),
        5 => format!("{number:0>255}"),
        6 => format!("{number}.tar.gz"),
        7 => format!("UPPER{number}"),
        _ => format!("f{number}"),
    }
}

fn pb_bytes(out: &mut Vec<u8>, field: u64, bytes: &[u8]) {
    pb_varint(out, field << 3 | 2);
    pb_varint(out, bytes.len() as u64);
    out.extend(bytes);
}

fn pb_varint(out: &mut Vec<u8>, mut n: u64) {
    while n >= 0x80 {
        out.push(n as u8 | 0x80);
        n >>= 7;
    }
    out.push(n as u8);
}

fn cbor_head(out: &mut Vec<u8>, major: u8, n: u64) {
    let major = major << 5;
    match n {
        0..24 => out.push(major | n as u8),
        24..0x100 => out.extend([major | 24, n as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend((n as u16).to_be_bytes());
        }
        0x1_0000..0x1_0000_0000 => {
            out.push(major | 26);
            out.extend((n as u32).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend(n.to_be_bytes());
        }
    }
}

#[cfg(unix)]
fn symlink(target: &str, path: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, path)
}

#[cfg(not(unix))]
fn symlink(_: &str, _: &Path) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
