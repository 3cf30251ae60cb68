//! The vectors of specs/vectors/log: bytes and their meaning. `GEMBA_LOG_WRITE_VECTORS=1` writes them anew, and the corpus of the fuzz target
//! that is made of them.
#![allow(clippy::unwrap_used)]

mod common;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use common::Other;
use gemba_log::{Batch, BatchError, Headers, NewEvent, Origin, Trace, UnverifiedBatch};

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .join(path)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut out, byte| {
        write!(out, "{byte:02x}").unwrap();
        out
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// The batches that the vectors are made of: a feed of nine, whose last has skip links; with headers, compressed and not.
fn made() -> Vec<(&'static str, Batch)> {
    let mut feed = Other::new(7, "hamburg/line-1/press");
    let headers = Headers {
        content_type: Some("text/plain".into()),
        origin: Some(Origin {
            site: "Hamburg".into(),
            device: "press-07".into(),
            service: "plc".into(),
        }),
        trace: Some(Trace {
            trace: [0xaa; 16],
            span: [0xbb; 8],
            flags: 1,
        }),
        ..Headers::default()
    }
    .pair("unit", "pieces")
    .produced_by("plc-7", 42);
    let mut made = vec![
        (
            "first",
            feed.next(&[NewEvent::new(1_700_000_000_000, "17")]),
        ),
        (
            "headers",
            feed.next(&[
                NewEvent::new(-1, "").with(headers),
                NewEvent::new(0, vec![0, 255]),
            ]),
        ),
    ];
    let repeated: Vec<_> = (0..20)
        .map(|i| NewEvent::new(i, format!("count {i} of the line")))
        .collect();
    made.push(("compressed", feed.next(&repeated)));
    for _ in 3..8 {
        feed.next(&[NewEvent::new(5, "x")]);
    }
    made.push(("skips", feed.next_at(&[NewEvent::new(5, "x")], 1 << 40)));
    made
}

/// Changes of the first that must be refused, each for its own reason.
fn refused(first: &Batch) -> Vec<(&'static str, Vec<u8>)> {
    let bytes = first.bytes().to_vec();
    let change = |at: usize, to: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = to;
        bytes
    };
    let find = |text: &str| {
        bytes
            .windows(text.len())
            .position(|window| window == text.as_bytes())
            .unwrap()
    };
    let mut longer = bytes.clone();
    longer.push(0);
    let mut wide = bytes.clone();
    // The version as a number of two bytes.
    wide.splice(3..4, [0x18, 1]);
    let last = bytes.len() - 1;
    vec![
        (
            "refused: the signature is not the author's",
            change(last, bytes[last] ^ 1),
        ),
        ("refused: version 2", change(3, 2)),
        ("refused: a byte behind", longer),
        ("refused: a number in a longer form", wide),
        (
            "refused: a key that is not known",
            change(find("epoch"), b'f'),
        ),
        (
            "refused: a name that no stream has",
            change(find("hamburg"), b' '),
        ),
        ("refused: cut", bytes[..bytes.len() / 2].to_vec()),
    ]
}

#[test]
fn log_10_log_14_the_vectors_mean_what_they_say() {
    let path = repository("specs/vectors/log/batches.txt");
    let made = made();
    let mut text = String::from(
        "# One a line: block in hex, CID, hash of the last event, meaning. See README.md.\n",
    );
    for (meaning, batch) in &made {
        let hash = batch.hashes().last().unwrap();
        writeln!(
            text,
            "{} {} {hash} {meaning}",
            hex(batch.bytes()),
            batch.cid()
        )
        .unwrap();
    }
    for (meaning, bytes) in refused(&made[0].1) {
        writeln!(text, "{} - - {meaning}", hex(&bytes)).unwrap();
    }
    if std::env::var_os("GEMBA_LOG_WRITE_VECTORS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, &text).unwrap();
        let corpus = repository("fuzz/corpus/log_batch");
        std::fs::create_dir_all(&corpus).unwrap();
        for (meaning, batch) in &made {
            std::fs::write(corpus.join(meaning), batch.bytes()).unwrap();
        }
        for (i, (_, bytes)) in refused(&made[0].1).into_iter().enumerate() {
            std::fs::write(corpus.join(format!("refused_{i}")), bytes).unwrap();
        }
    }
    // Written the same today as when the vectors were made: signatures and compression have one outcome here.
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
    for line in text.lines().skip(1) {
        let mut fields = line.splitn(4, ' ');
        let bytes = unhex(fields.next().unwrap());
        let (cid, hash, meaning) = (
            fields.next().unwrap(),
            fields.next().unwrap(),
            fields.next().unwrap(),
        );
        let read = Batch::decode(bytes.clone().into());
        if !meaning.starts_with("refused") {
            let batch = read.unwrap();
            assert_eq!(
                (
                    batch.cid().to_string().as_str(),
                    batch.hashes().last().unwrap().to_string().as_str()
                ),
                (cid, hash)
            );
            continue;
        }
        let error = read.unwrap_err();
        match meaning {
            "refused: version 2" => assert_eq!(error, BatchError::Newer(2)),
            "refused: the signature is not the author's" => {
                assert_eq!(error, BatchError::Signature);
                assert!(UnverifiedBatch::decode(bytes.into()).is_ok());
            }
            _ => assert!(
                matches!(error, BatchError::Malformed(_)),
                "{meaning}: {error}"
            ),
        }
    }
}
