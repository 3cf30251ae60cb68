//! What somebody who makes blocks, CIDs and prefixes in bad faith can try, by somebody who did not write the crate.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use gemba_block::codec::{DAG_CBOR, DAG_PB, RAW};
use gemba_block::{
    Block, BlockError, Cid, Hasher, LinksError, MAX_BLOCK_BYTES, MhCode, Prefix, PrefixError, cbor,
    links,
};
use gemba_testkit::alloc::{CountingAlloc, measure};

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

/// CIDv1, raw, identity, nothing: the shortest name there is.
const SHORTEST: [u8; 4] = [0x01, 0x55, 0x00, 0x00];

fn varint(number: u64) -> Vec<u8> {
    unsigned_varint::encode::u64(number, &mut unsigned_varint::encode::u64_buffer()).to_vec()
}

/// One link of a dag-pb node whose Hash field holds `hash`.
fn pb_link(hash: &[u8]) -> Vec<u8> {
    let mut link = vec![0x0a];
    link.extend(varint(hash.len() as u64));
    link.extend(hash);
    let mut out = vec![0x12];
    out.extend(varint(link.len() as u64));
    out.extend(link);
    out
}

/// Two blocks that differ in bytes after a CID must not both be parents of the same child: boxo refuses the bytes, and so must
/// whoever decides what is kept.
#[test]
fn a_link_is_one_cid_and_nothing_after_it() {
    let child = Block::raw("child").unwrap();
    let hash = child.cid().to_bytes();
    let whole = Block::dag_pb(pb_link(&hash)).unwrap();
    assert_eq!(links(&whole).unwrap(), [*child.cid()]);
    for cut in 0..hash.len() {
        let block = Block::dag_pb(pb_link(&hash[..cut])).unwrap();
        assert_eq!(links(&block), Err(LinksError::BadLink(0)), "{cut} bytes");
    }
    for tail in [&[0_u8][..], &SHORTEST, &hash] {
        let block = Block::dag_pb(pb_link(&[&hash[..], tail].concat())).unwrap();
        assert_eq!(links(&block), Err(LinksError::BadLink(0)), "{tail:?}");
    }
}

/// The most links that 2 MiB can hold, in both formats; each costs its value once, and no more than a growing list does.
#[test]
fn a_block_of_nothing_but_links_costs_only_the_list_of_them() {
    let pb = pb_link(&SHORTEST).repeat(MAX_BLOCK_BYTES / 8);
    let one = [&[0xd8, 0x2a, 0x45, 0x00][..], &SHORTEST].concat();
    let count = MAX_BLOCK_BYTES / one.len() - 1;
    let mut cbor = vec![0x9a];
    cbor.extend((count as u32).to_be_bytes());
    cbor.extend(one.repeat(count));
    for (codec, bytes, count) in [(DAG_PB, pb, MAX_BLOCK_BYTES / 8), (DAG_CBOR, cbor, count)] {
        let block = Block::encode(codec, MhCode::Sha2_256, bytes).unwrap();
        let (found, used) = measure(|| links(&block).unwrap());
        assert_eq!(found.len(), count);
        let list = (count.next_power_of_two() * size_of::<Cid>()) as u64;
        assert!(used.peak <= list + list / 2 + 4096, "{used:?}");
    }
}

/// Every array and every map announces all the bytes that are left, 128 levels deep, then the largest numbers there are.
#[test]
fn announced_lengths_cost_nothing_until_the_bytes_are_there() {
    for major in [0x40, 0x60, 0x80, 0xa0] {
        for lie in [1_u64 << 16, 1 << 31, 1 << 32, 1 << 62, 1 << 63, u64::MAX] {
            let head = match u32::try_from(lie) {
                Ok(lie) => [&[major | 0x1a][..], &lie.to_be_bytes()].concat(),
                Err(_) => [&[major | 0x1b][..], &lie.to_be_bytes()].concat(),
            };
            let (refused, used) = measure(|| cbor::scan(&head));
            assert!(refused.is_err() && used.total == 0, "{head:x?}: {used:?}");
        }
    }
    // Each level says that it holds as many items as there are bytes left; only the innermost could be believed.
    let mut nested = Vec::new();
    for level in 0..cbor::MAX_DEPTH {
        nested.push(0x99);
        nested.extend(((60_000 - 3 * level) as u16).to_be_bytes());
    }
    nested.resize(60_003, 0x00);
    let (refused, used) = measure(|| cbor::scan(&nested));
    assert!(refused.is_err() && used.peak < 64 << 10, "{used:?}");
}

/// What a peer announces beside a block names the bytes that came or nothing: every version, function and length, with the
/// largest codec that exists.
#[test]
fn a_prefix_names_just_the_bytes_that_came_or_nothing() {
    let data = b"nineteen bytes long".as_slice();
    for version in 0..3_u64 {
        for codec in [0, RAW, DAG_PB, u64::MAX] {
            for code in [0x00, 0x11, 0x12, 0x13, 0x1e, 0x22, 0xb220, u64::MAX] {
                for len in (0..=129).chain([1 << 32, u64::MAX]) {
                    let bytes = [version, codec, code, len].map(varint).concat();
                    let Ok(prefix) = Prefix::from_bytes(&bytes) else {
                        assert!(version > 1 || len > 128);
                        continue;
                    };
                    let Ok(block) = prefix.block(data) else {
                        continue;
                    };
                    assert_eq!(Prefix::of(block.cid()), prefix);
                    assert_eq!(Prefix::of(block.cid()).to_bytes(), bytes);
                    assert_eq!(Block::new(*block.cid(), data), Ok(block.clone()));
                    assert_eq!(
                        Block::new(*block.cid(), &b"twenty bytes as long"[..]),
                        Err(BlockError::WrongHash)
                    );
                    assert_eq!(Cid::try_from(block.cid().to_bytes()).unwrap(), *block.cid());
                }
            }
        }
    }
    // Numbers of more than 64 bits and numbers with padding are no numbers.
    for odd in [&[0xff; 11][..], &[0x81, 0x00, 0x55, 0x12, 0x20]] {
        assert_eq!(Prefix::from_bytes(odd), Err(PrefixError::Truncated));
    }
}

/// Pieces of every odd size, empty ones too, and copies of a half-fed hash that go their own ways on other threads.
#[test]
fn a_hash_does_not_care_who_feeds_it_and_in_which_pieces() {
    let data: Vec<u8> = (0..40_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    for code in [0x11, 0x12, 0x13, 0x14, 0x16, 0x1e].map(|code| MhCode::from_code(code).unwrap()) {
        let mut half = Hasher::new(code);
        half.update(&[]);
        half.update(&data[..20_001]);
        let whole = code.digest(&data);
        std::thread::scope(|scope| {
            for size in [1, 63, 64, 65, 4096] {
                let (mut hasher, data) = (half.clone(), &data);
                scope.spawn(move || {
                    for piece in data[20_001..].chunks(size) {
                        hasher.update(piece);
                        hasher.update(&[]);
                    }
                    assert_eq!(hasher.finish(), whole);
                });
            }
        });
    }
}
