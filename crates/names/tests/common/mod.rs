//! What the tests of this crate share.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses a part of it"
)]

pub mod world;

use gemba_names::{Keypair, Name, Wall};
use std::path::{Path, PathBuf};

pub fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

pub fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(|c| !c.is_ascii_whitespace()).collect();
    assert!(digits.len().is_multiple_of(2), "{text}");
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

pub fn wall(text: &str) -> Wall {
    text.parse().unwrap()
}

/// 1 is the key of RFC 8032, test 1, which the vectors are made with; others are as good as random.
pub fn key(number: u8) -> Keypair {
    let mut seed = if number == 1 {
        unhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    } else {
        vec![number; 32]
    };
    Keypair::ed25519_from_bytes(&mut seed).unwrap()
}

pub fn name(number: u8) -> Name {
    Name::of(&key(number).public())
}
