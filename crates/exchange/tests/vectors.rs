//! `specs/vectors/exchange/messages.json`: bytes and their meaning.
#![allow(clippy::unwrap_used)]

use bytes::Bytes;
use gemba_block::{Block, Cid};
use gemba_exchange::wire::{
    self, DecodeError, Entry, Message, Presence, Version, WantKind, read_length,
};
use serde_json::Value;

fn vectors(kind: &str) -> Vec<Value> {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../specs/vectors/exchange/messages.json"
    );
    let all: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let list = all[kind].as_array().unwrap().clone();
    assert!(!list.is_empty());
    list
}

fn bytes(vector: &Value) -> Vec<u8> {
    data_encoding::HEXLOWER
        .decode(vector["hex"].as_str().unwrap().as_bytes())
        .unwrap()
}

fn decode(bytes: &[u8]) -> Result<Message, DecodeError> {
    let (len, at) = read_length(bytes)?.expect("a whole length");
    assert_eq!(bytes.len(), at + len);
    let mut message = wire::decode(Bytes::copy_from_slice(&bytes[at..]))?;
    message.wire_bytes = 0;
    Ok(message)
}

fn cid(value: &Value) -> Cid {
    value["cid"].as_str().unwrap().parse().unwrap()
}

fn list<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    value[key].as_array().into_iter().flatten()
}

fn meaning(vector: &Value) -> Message {
    let entries = list(vector, "entries").map(|e| Entry {
        cid: cid(e),
        priority: e["priority"].as_i64().unwrap().try_into().unwrap(),
        cancel: e["cancel"].as_bool().unwrap(),
        kind: match e["kind"].as_str().unwrap() {
            "have" => WantKind::Have,
            _ => WantKind::Block,
        },
        send_dont_have: e["sendDontHave"].as_bool().unwrap(),
    });
    let blocks = list(vector, "blocks").map(|b| {
        let data = b["text"].as_str().unwrap().as_bytes().to_vec();
        match b["cid"].as_str() {
            Some(cid) => Block::new(cid.parse().unwrap(), data).unwrap(),
            None => Block::v0(data).unwrap(),
        }
    });
    let presences = list(vector, "presences").map(|p| {
        let presence = match p["type"].as_str().unwrap() {
            "have" => Presence::Have,
            _ => Presence::DontHave,
        };
        (cid(p), presence)
    });
    Message {
        full: vector["full"].as_bool().unwrap_or(false),
        entries: entries.collect(),
        blocks: blocks.collect(),
        presences: presences.collect(),
        pending_bytes: vector["pendingBytes"].as_i64().unwrap_or(0) as i32,
        ..Message::default()
    }
}

#[test]
fn ex_2_accepted_vectors_mean_what_they_say_and_encode_to_the_same_bytes() {
    for vector in vectors("accepted") {
        let want = meaning(&vector);
        assert_eq!(decode(&bytes(&vector)).unwrap(), want, "{vector}");
        for version in list(&vector, "versions") {
            let version = match version.as_str().unwrap() {
                "1.0" => Version::V1_0,
                "1.1" => Version::V1_1,
                _ => Version::V1_2,
            };
            let frame = wire::encode(&want, version).unwrap();
            assert_eq!(frame.to_vec(), bytes(&vector), "{vector}");
        }
    }
}

#[test]
fn ex_3_refused_vectors_are_refused() {
    for vector in vectors("refused") {
        assert!(decode(&bytes(&vector)).is_err(), "{vector}");
    }
}

#[test]
fn ex_4_ignored_vectors_have_no_effect() {
    for vector in vectors("ignored") {
        assert!(decode(&bytes(&vector)).unwrap().is_empty(), "{vector}");
    }
}
