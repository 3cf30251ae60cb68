//! Codec numbers of the multicodec table, and the sizes everybody in the swarm agrees on.

/// Raw bytes, no links.
pub const RAW: u64 = 0x55;
/// MerkleDAG protobuf: UnixFS files and folders.
pub const DAG_PB: u64 = 0x70;
/// Canonical CBOR with links.
pub const DAG_CBOR: u64 = 0x71;
/// A libp2p public key, the codec of IPNS names.
pub const LIBP2P_KEY: u64 = 0x72;
/// JSON with links.
pub const DAG_JSON: u64 = 0x0129;

/// Largest block, in bytes. Bitswap: implementations MUST support 2 MiB; Kubo refuses bigger ones.
pub const MAX_BLOCK_BYTES: usize = 2 * 1024 * 1024;

/// Longest CID taken from the network, in bytes (boxo ignores longer ones in wantlists).
pub const MAX_CID_BYTES: usize = 168;

/// The table's name of a codec, where we know it.
#[must_use]
pub fn name(codec: u64) -> Option<&'static str> {
    Some(match codec {
        RAW => "raw",
        DAG_PB => "dag-pb",
        DAG_CBOR => "dag-cbor",
        LIBP2P_KEY => "libp2p-key",
        DAG_JSON => "dag-json",
        _ => return None,
    })
}

/// The codec of a name as people type it.
#[must_use]
pub fn from_name(name: &str) -> Option<u64> {
    Some(match name {
        "raw" => RAW,
        "dag-pb" | "protobuf" => DAG_PB,
        "dag-cbor" | "cbor" => DAG_CBOR,
        "libp2p-key" => LIBP2P_KEY,
        "dag-json" => DAG_JSON,
        _ => return None,
    })
}
