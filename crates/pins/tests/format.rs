//! The record (specs/pins.md §2): vectors, damage, versions.
#![allow(clippy::unwrap_used)]

use gemba_pins::{
    DesiredSet, Kind, Name, Pin, RECORD_VERSION, RecordError, Size, decode_key, decode_record,
    encode_key, encode_record,
};
use gemba_testkit::{Rng, check, dag::fake_cid, sim_scale};
use std::path::{Path, PathBuf};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn hex(text: &str) -> Vec<u8> {
    assert!(text.len().is_multiple_of(2), "{text}");
    (0..text.len())
        .step_by(2)
        .map(|i| u8::from_str_radix(&text[i..i + 2], 16).unwrap())
        .collect()
}

fn random_pin(rng: &mut Rng) -> Pin {
    let len = rng.length(255) as usize;
    let name: String = (0..len)
        .map(|_| char::from(rng.range(32..127) as u8))
        .collect();
    let bits = rng.below(64);
    let complete = rng.coin();
    Pin {
        cid: fake_cid(*rng.pick(&[0x55, 0x70, 0x71]), rng.next_u64()),
        kind: if rng.coin() {
            Kind::Direct
        } else {
            Kind::Recursive
        },
        name: Name::new(name).ok(),
        complete,
        lacks: !complete && rng.coin(),
        id: rng.next_u64() >> bits,
        since_ms: rng.next_u64() >> bits,
        size: (complete && rng.coin()).then(|| Size {
            blocks: rng.next_u64() >> bits,
            bytes: rng.next_u64(),
        }),
    }
}

#[test]
fn pin_4_the_vectors_are_read_and_written_as_the_spec_says() {
    let text = std::fs::read_to_string(repository("specs/vectors/pins/records.txt")).unwrap();
    let (mut read, mut refused) = (0, 0);
    for line in text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        let (key, rest) = line.split_once(' ').unwrap();
        let (value, meaning) = rest.split_once(' ').unwrap();
        let (key, value) = (hex(key), hex(value));
        let loaded = DesiredSet::load([(&key, &value)]);
        if let Some(cause) = meaning.strip_prefix("refused: ") {
            assert_eq!(loaded.unwrap_err().to_string(), cause, "{line}");
            refused += 1;
            continue;
        }
        let set = loaded.unwrap();
        let pin = set.iter().next().unwrap();
        let said = format!(
            "{} {} {} id {} since {}{} name {:?}",
            pin.cid,
            pin.kind,
            match (pin.complete, pin.lacks) {
                (true, _) => "complete",
                (false, true) => "lacking",
                (false, false) => "incomplete",
            },
            pin.id,
            pin.since_ms,
            pin.size
                .map_or(String::new(), |Size { blocks, bytes }| format!(
                    " size {blocks} {bytes}"
                )),
            pin.name.as_ref().map_or("", Name::as_str)
        );
        assert_eq!(said, meaning);
        assert_eq!((encode_key(&pin.cid), encode_record(pin)), (key, value));
        read += 1;
    }
    assert!(read >= 5 && refused >= 8, "{read} {refused}");
}

#[test]
fn pin_4_what_is_written_is_read_back_and_no_part_of_it_is() {
    check!(sim_scale(4_000), |rng| {
        let pin = random_pin(rng);
        let value = encode_record(&pin);
        assert_eq!(decode_record(pin.cid, &value), Ok(pin.clone()));
        assert_eq!(decode_key(&encode_key(&pin.cid)), Ok(pin.cid));
        for cut in 0..value.len() {
            assert!(
                matches!(
                    decode_record(pin.cid, &value[..cut]),
                    Err(RecordError::Truncated(_))
                ),
                "{cut}"
            );
        }
        let longer = [value.as_slice(), &[0]].concat();
        assert_eq!(
            decode_record(pin.cid, &longer),
            Err(RecordError::Trailing(1))
        );
    });
}

/// S-rows of formats: a newer one is refused by its number, with what to do, and nothing is skipped.
#[test]
fn pin_5_a_newer_record_is_refused_and_says_what_to_do() {
    let mut rng = Rng::new(1);
    let (old, new) = (random_pin(&mut rng), random_pin(&mut rng));
    for version in RECORD_VERSION + 1..=u8::MAX {
        let mut value = encode_record(&new);
        value[0] = version;
        let records = [
            (encode_key(&old.cid), encode_record(&old)),
            (encode_key(&new.cid), value),
        ];
        let refused = DesiredSet::load(records).unwrap_err();
        assert_eq!(refused, RecordError::Newer { found: version });
        assert!(
            refused.to_string().contains("run the newer gemba"),
            "{refused}"
        );
    }
}

#[test]
fn a_root_twice_is_not_one_table() {
    let pin = random_pin(&mut Rng::new(2));
    let record = (encode_key(&pin.cid), encode_record(&pin));
    assert_eq!(
        DesiredSet::load([record.clone(), record]).unwrap_err(),
        RecordError::Duplicate(pin.cid)
    );
}

#[test]
fn names_have_1_to_255_bytes() {
    assert!(Name::new("").is_err() && Name::new("x".repeat(256)).is_err());
    assert!(
        Name::new("現".repeat(86)).is_err(),
        "258 bytes in 86 characters"
    );
    assert_eq!(Name::new("x".repeat(255)).unwrap().as_str().len(), 255);
    assert_eq!(
        "app stable".parse::<Name>().unwrap().to_string(),
        "app stable"
    );
}

/// The corpus of the fuzz target, and mutations of it.
#[test]
fn pins_record_corpus() {
    let mut seeds = 0;
    for entry in std::fs::read_dir(repository("fuzz/corpus/pins_record")).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        gemba_pins::fuzz::record(&seed);
        check!(sim_scale(20_000), |rng| {
            let mut bytes = seed.clone();
            for _ in 0..=rng.below(4) {
                let at = rng.index(bytes.len() + 1);
                match rng.below(4) {
                    0 if at < bytes.len() => bytes[at] = rng.next_u64() as u8,
                    1 if at < bytes.len() => bytes[at] ^= 1 << rng.below(8),
                    2 => bytes.insert(at, rng.next_u64() as u8),
                    _ => bytes.truncate(at),
                }
            }
            gemba_pins::fuzz::record(&bytes);
        });
    }
    assert!(seeds >= 3);
}
