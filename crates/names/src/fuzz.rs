//! Entry points of the fuzz targets, replayed on stable by this crate's tests. Not part of the API.

use crate::{
    Candidate, Command, Config, Core, Input, Keypair, Name, Output, Record, Source, Time, Unsigned,
    Wall,
    record::MAX_RECORD_BYTES,
    row::Row,
    wire::{Message, fetch},
};
use libp2p_identity::PeerId;
use std::time::Duration;

/// The key of the corpora and vectors: RFC 8032, test 1.
fn key() -> Keypair {
    let mut seed = [
        0x9d, 0x61, 0xb1, 0x9d, 0xef, 0xfd, 0x5a, 0x60, 0xba, 0x84, 0x4a, 0xf4, 0x92, 0xec, 0x2c,
        0xc4, 0x44, 0x49, 0xc5, 0x69, 0x7b, 0x32, 0x69, 0x19, 0x70, 0x3b, 0xac, 0x03, 0x1c, 0xae,
        0x7f, 0x60,
    ];
    Keypair::ed25519_from_bytes(&mut seed).expect("32 bytes are a seed")
}

/// `data`: one byte that says what the rest is: a record, a row, a message, a request or an answer of fetch, a name.
///
/// What is read is written back byte for byte where there is one form, and reads as the same again where there are several.
pub fn record(data: &[u8]) {
    let Some((&kind, bytes)) = data.split_first() else {
        return;
    };
    let name = Name::of(&key().public());
    match kind % 5 {
        0 => one_record(name, bytes),
        1 => {
            if let Ok(row) = Row::decode(name, bytes) {
                assert_eq!(row.encode(), bytes);
            }
        }
        2 => {
            if let Ok(message) = Message::decode(bytes) {
                let again = message.encode();
                assert_eq!(Message::decode(&again), Ok(message));
            }
        }
        3 => {
            if let Ok(asked) = fetch::decode_request(bytes) {
                assert_eq!(
                    fetch::decode_request(&fetch::encode_request(&asked)),
                    Ok(asked)
                );
            }
            if let Ok(answer) = fetch::decode_answer(bytes) {
                assert_eq!(
                    fetch::decode_answer(&fetch::encode_answer(&answer)),
                    Ok(answer)
                );
            }
        }
        _ => {
            if let Ok(text) = std::str::from_utf8(bytes) {
                if let Ok(name) = text.parse::<Name>() {
                    assert_eq!(name.to_string().parse(), Ok(name));
                    assert_eq!(Name::from_topic(&name.topic()), Ok(name));
                }
                if let Ok(wall) = text.parse::<Wall>() {
                    assert_eq!(wall.to_string().parse(), Ok(wall));
                }
            }
        }
    }
}

fn one_record(name: Name, bytes: &[u8]) {
    let Ok(candidate) = Candidate::decode(name, bytes) else {
        return;
    };
    assert!(bytes.len() <= MAX_RECORD_BYTES);
    assert_eq!(candidate.bytes(), bytes);
    assert!(candidate.order(&candidate).is_eq());
    let _ = candidate.path();
    // What only this key signs, it signs the same again.
    if let Ok(record) = candidate.verify() {
        let again = Unsigned {
            value: record.value().to_vec(),
            sequence: record.sequence(),
            validity: record.validity(),
            ttl_ns: record.ttl_ns(),
            metadata: record.metadata().clone(),
            v1: record.signature_type() == "V1+V2",
        };
        if let Ok(again) = again.sign(&key()) {
            assert!(again.sequence() == record.sequence() && again.value() == record.value());
        }
    }
}

/// A script against the book: records of a few versions in any order from any source, clocks that jump, power cuts. The number a reader sees
/// never falls, and what is told is what is on disk.
pub fn merge(data: &[u8]) {
    let key = key();
    let name = Name::of(&key.public());
    let peer = PeerId::from_bytes(&name.to_bytes()).expect("a name is an id");
    let mut disk: Option<Vec<u8>> = None;
    let mut core = Core::new(Config::default());
    let mut now = Time::ZERO;
    let mut seen: Option<u64> = None;
    let follow = Input::Command {
        id: 0,
        command: Command::Follow(name),
    };
    assert!(core.handle(follow, now).is_ok());
    run(&mut core, &key, &mut disk, now, usize::MAX);
    for step in data.chunks_exact(3).take(512) {
        let (kind, a, b) = (step[0], step[1], step[2]);
        now += Duration::from_millis(u64::from(b));
        match kind % 5 {
            0 | 1 => {
                let end = Wall::from_unix(1_767_225_600 + i64::from(b) * 86_400, 0);
                let value = format!("/ipfs/bafkqaaa/{}", kind / 5 % 3);
                let unsigned = Unsigned::new(value, u64::from(a % 32), end);
                let Ok(record) = unsigned.sign(&key) else {
                    return;
                };
                let mut bytes = record.bytes().to_vec();
                if kind >= 250 {
                    bytes[usize::from(a) % record.bytes().len()] ^= 1;
                }
                let source = [
                    Source::Peer(peer),
                    Source::Topic(peer),
                    Source::Dht(peer),
                    Source::Fetch(peer),
                ][usize::from(kind / 16) % 4];
                let input = Input::Record {
                    name,
                    bytes,
                    source,
                    token: None,
                };
                assert!(core.handle(input, now).is_ok());
            }
            2 => {
                let wall = Wall::from_unix(1_767_225_600 + (i64::from(a) - 128) * 2_592_000, 0);
                assert!(core.handle(Input::Clock(wall), now).is_ok());
            }
            // The power goes, perhaps before what was asked for is on disk.
            3 => {
                run(&mut core, &key, &mut disk, now, usize::from(b) % 3);
                let rows = disk.iter().map(|row| (name.to_bytes(), row.clone()));
                let (loaded, damaged) = Core::load(Config::default(), rows, [], false, now)
                    .expect("rows that this program wrote");
                assert!(damaged.is_empty());
                core = loaded;
            }
            _ => {
                now += Duration::from_secs(u64::from(a));
                core.expire(now);
            }
        }
        run(&mut core, &key, &mut disk, now, usize::from(kind / 64));
        let shown = core
            .resolve(&name, now)
            .map(|resolved| resolved.version.sequence);
        assert!(shown >= seen, "{shown:?} after {seen:?}");
        seen = shown;
    }
}

/// Answers outputs, at most `most` of them; what is left waits in the core, or is lost with it.
fn run(core: &mut Core, key: &Keypair, disk: &mut Option<Vec<u8>>, now: Time, most: usize) {
    for _ in 0..most {
        let Some(output) = core.poll() else { return };
        let answer = match output {
            Output::Verify { ticket, candidate } => Input::Verified {
                ticket,
                result: candidate.verify(),
            },
            Output::Persist { ticket, value, .. } => {
                *disk = value;
                Input::Persisted {
                    ticket,
                    result: Ok(()),
                }
            }
            Output::Sign {
                ticket, unsigned, ..
            } => Input::Signed {
                ticket,
                result: unsigned.sign(key).map_err(|e| e.to_string()),
            },
            _ => continue,
        };
        assert!(core.handle(answer, now).is_ok());
    }
}

/// For tests of rows.
pub fn reopen(name: Name, bytes: &[u8]) -> Option<Record> {
    Row::decode(name, bytes).ok()?.best.map(|held| held.record)
}
