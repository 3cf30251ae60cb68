//! `dag get` and `dag put`: blocks of dag-pb, dag-cbor, dag-json and raw as data, and paths through them.

use cid::Cid;
use gemba_block::{Block, Bytes, MhCode, codec};
use gemba_unixfs::BlockSource;
use gemba_unixfs::dagpb::{self, Node};
use ipld_core::ipld::Ipld;
use std::collections::BTreeMap;

use super::read;
use crate::error::{Code, Fail};

/// Most blocks that one path crosses.
const MAX_HOPS: usize = 128;
/// Deepest nesting of JSON that is taken, the limit of the JSON reader itself.
const MAX_NESTING: usize = 128;

/// The data at `CID/a/0/b`: links on the way are followed, a link at the end is followed too and its block read.
///
/// # Errors
/// [`Code::NotFound`] for a field that is not there, [`Code::Integrity`] for a block that is not what its codec says.
pub fn get(source: &mut dyn BlockSource, text: &str) -> Result<Ipld, Fail> {
    let (root, fields) = split(text)?;
    let mut cid = root;
    let mut value = load(source, &cid)?;
    let mut hops = 0;
    for field in fields {
        value = step(value, field).ok_or_else(|| {
            Fail::new(Code::NotFound, format!("{cid} has no field {field:?}"))
                .hint(format!("`gemba dag get {cid}` shows what it has"))
        })?;
        if let Ipld::Link(next) = value {
            hops += 1;
            if hops > MAX_HOPS {
                return Err(Fail::new(
                    Code::Usage,
                    format!("the path crosses more than {MAX_HOPS} blocks"),
                ));
            }
            cid = next;
            value = load(source, &cid)?;
        }
    }
    Ok(value)
}

fn split(text: &str) -> Result<(Cid, Vec<&str>), Fail> {
    let bare = text
        .strip_prefix("/ipfs/")
        .or_else(|| text.strip_prefix("/ipld/"))
        .unwrap_or(text);
    let mut parts = bare.split('/').filter(|part| !part.is_empty());
    let first = parts.next().unwrap_or_default();
    let root = super::parse_cid(first)?;
    Ok((root, parts.collect()))
}

/// One field down. A dag-pb node has `Data` and `Links`, and each link also by its own name.
fn step(value: Ipld, field: &str) -> Option<Ipld> {
    match value {
        Ipld::Map(mut map) => match map.remove(field) {
            Some(inner) => Some(inner),
            None => named_link(map, field),
        },
        Ipld::List(mut list) => {
            let index: usize = field.parse().ok()?;
            (index < list.len()).then(|| list.swap_remove(index))
        }
        _ => None,
    }
}

fn named_link(mut node: BTreeMap<String, Ipld>, name: &str) -> Option<Ipld> {
    let Ipld::List(links) = node.remove("Links")? else {
        return None;
    };
    links.into_iter().find_map(|link| match link {
        Ipld::Map(mut link) if matches!(link.get("Name"), Some(Ipld::String(own)) if own == name) => link.remove("Hash"),
        _ => None,
    })
}

fn load(source: &mut dyn BlockSource, cid: &Cid) -> Result<Ipld, Fail> {
    decode(&read::block(source, cid)?)
}

/// A block as data.
///
/// # Errors
/// [`Code::Integrity`], or [`Code::Usage`] for a codec that is not read.
pub fn decode(block: &Block) -> Result<Ipld, Fail> {
    let cid = block.cid();
    let broken = |e: &dyn std::fmt::Display| Fail::new(Code::Integrity, format!("{cid}: {e}"));
    match cid.codec() {
        codec::RAW => Ok(Ipld::Bytes(block.data().to_vec())),
        codec::DAG_PB => pb_to_ipld(block.data().clone()).map_err(|e| broken(&e)),
        codec::DAG_CBOR => {
            // The strict scanner bounds the depth before the recursive reader sees the bytes (row X9).
            gemba_block::cbor::scan(block.data()).map_err(|e| broken(&e))?;
            serde_ipld_dagcbor::from_slice(block.data()).map_err(|e| broken(&e))
        }
        codec::DAG_JSON => parse_json(block.data()).map_err(|e| broken(&e)),
        other => Err(Fail::new(
            Code::Usage,
            format!("{cid}: codec 0x{other:x} cannot be shown as data"),
        )
        .hint("`gemba block get` gives its bytes")),
    }
}

/// Data in a codec by name: `dag-json`, `dag-cbor`, `dag-pb` or `raw`.
///
/// # Errors
/// [`Code::Usage`] if the codec cannot hold this data.
pub fn encode(value: &Ipld, codec_number: u64) -> Result<Vec<u8>, Fail> {
    let refused = |e: &dyn std::fmt::Display| Fail::new(Code::Usage, e);
    match codec_number {
        codec::DAG_JSON => serde_ipld_dagjson::to_vec(value).map_err(|e| refused(&e)),
        codec::DAG_CBOR => serde_ipld_dagcbor::to_vec(value).map_err(|e| refused(&e)),
        codec::DAG_PB => ipld_to_pb(value).ok_or_else(|| refused(&"this is no dag-pb node: {\"Data\": bytes, \"Links\": [{\"Hash\": link, \"Name\": text, \"Tsize\": number}]} is one")),
        codec::RAW => match value {
            Ipld::Bytes(bytes) => Ok(bytes.clone()),
            _ => Err(refused(&"only bytes can be a raw block")),
        },
        other => Err(refused(&format!("codec 0x{other:x} is not written: dag-cbor, dag-pb, dag-json and raw are"))),
    }
}

/// The block of `input`, read as one codec and stored as another.
///
/// # Errors
/// [`Code::Usage`] for input that is not what its codec says.
pub fn put(input: &[u8], input_codec: u64, store_codec: u64, hash: MhCode) -> Result<Block, Fail> {
    let wrong = |e: &dyn std::fmt::Display| {
        Fail::new(Code::Usage, format!("the input cannot be read: {e}"))
    };
    let value = match input_codec {
        codec::RAW => Ipld::Bytes(input.to_vec()),
        codec::DAG_JSON => parse_json(input).map_err(|e| wrong(&e))?,
        codec::DAG_CBOR => {
            gemba_block::cbor::scan(input).map_err(|e| wrong(&e))?;
            serde_ipld_dagcbor::from_slice(input).map_err(|e| wrong(&e))?
        }
        codec::DAG_PB => pb_to_ipld(Bytes::copy_from_slice(input)).map_err(|e| wrong(&e))?,
        other => return Err(wrong(&format!("codec 0x{other:x} is not known"))),
    };
    let data = encode(&value, store_codec)?;
    Block::encode(store_codec, hash, data).map_err(|e| Fail::new(Code::Usage, e))
}

fn parse_json(input: &[u8]) -> Result<Ipld, String> {
    if nesting(input) > MAX_NESTING {
        return Err(format!("nested more than {MAX_NESTING} deep"));
    }
    serde_ipld_dagjson::from_slice(input).map_err(|e| e.to_string())
}

/// Deepest nesting of JSON text, not counting brackets inside strings.
fn nesting(input: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0usize, 0usize, false, false);
    for byte in input {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'[' | b'{' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b']' | b'}' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// dag-pb in the data model: `Data` is absent if the node has none (dag-pb specification, logical format).
fn pb_to_ipld(data: Bytes) -> Result<Ipld, dagpb::WireError> {
    let node = Node::decode(data)?;
    let links = node.links().map(|link| {
        let mut map = BTreeMap::from([("Hash".to_owned(), Ipld::Link(link.cid))]);
        if let Some(name) = link.name {
            map.insert(
                "Name".to_owned(),
                Ipld::String(String::from_utf8_lossy(name).into_owned()),
            );
        }
        if let Some(tsize) = link.tsize {
            map.insert("Tsize".to_owned(), Ipld::Integer(i128::from(tsize)));
        }
        Ipld::Map(map)
    });
    let mut map = BTreeMap::from([("Links".to_owned(), Ipld::List(links.collect()))]);
    if let Some(data) = node.data() {
        map.insert("Data".to_owned(), Ipld::Bytes(data.to_vec()));
    }
    Ok(Ipld::Map(map))
}

fn ipld_to_pb(value: &Ipld) -> Option<Vec<u8>> {
    let Ipld::Map(node) = value else { return None };
    if node.keys().any(|key| key != "Data" && key != "Links") {
        return None;
    }
    let data = match node.get("Data") {
        None => None,
        Some(Ipld::Bytes(bytes)) => Some(bytes.as_slice()),
        Some(_) => return None,
    };
    let mut links = match node.get("Links") {
        None => Vec::new(),
        Some(Ipld::List(list)) => list.iter().map(pb_link).collect::<Option<Vec<_>>>()?,
        Some(_) => return None,
    };
    // dag-pb specification: links are sorted by name, bytewise, those of one name in the order given.
    links.sort_by_key(|link| link.name());
    Some(dagpb::encode(links.iter().copied(), data))
}

fn pb_link(value: &Ipld) -> Option<dagpb::Link<'_>> {
    let Ipld::Map(link) = value else { return None };
    let Some(Ipld::Link(cid)) = link.get("Hash") else {
        return None;
    };
    let name = match link.get("Name") {
        None => "",
        Some(Ipld::String(name)) => name,
        Some(_) => return None,
    };
    let tsize = match link.get("Tsize") {
        None => 0,
        Some(Ipld::Integer(size)) => u64::try_from(*size).ok()?,
        Some(_) => return None,
    };
    Some(dagpb::Link::new(*cid, name.as_bytes(), tsize))
}
