//! Key files in every form that Kubo reads, and in many that nobody should.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use gemba_pnet::{KeyError, SwarmKey};
use proptest::prelude::*;

const HEAD: &str = "/key/swarm/psk/1.0.0/\n";
const AB: &str = "abababababababababababababababababababababababababababababababab";

fn corpus() -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus/pnet_key_file");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| {
            let path = entry.unwrap().path();
            (
                path.file_name().unwrap().to_string_lossy().into_owned(),
                std::fs::read(&path).unwrap(),
            )
        })
        .collect();
    files.sort();
    files
}

#[test]
fn pnet_f1_fingerprint_is_kubos() {
    let key = SwarmKey::from_bytes([0xab; 32]);
    assert_eq!(
        key.fingerprint().to_string(),
        "fd957768903569d239aaec7c59b359e3"
    );
}

#[test]
fn pnet_k1_to_k5_every_form_kubo_reads_gives_the_same_key() {
    let good = [
        "base16",
        "base16-no-newline",
        "base16-upper",
        "base16-mixed",
        "base16-crlf",
        "base64",
        "base64-crlf",
        "base64-wrapped",
        "bin",
        "many-cr",
    ];
    let corpus = corpus();
    for name in good {
        let (_, file) = corpus
            .iter()
            .find(|(found, _)| found == name)
            .unwrap_or_else(|| panic!("{name} is missing"));
        assert_eq!(
            SwarmKey::parse(file),
            Ok(SwarmKey::from_bytes([0xab; 32])),
            "{name}"
        );
    }
    // Thirty-two line feeds are a key as well: nothing of a binary body is trimmed.
    let (_, file) = corpus
        .iter()
        .find(|(name, _)| name == "bin-newlines")
        .unwrap();
    assert_eq!(SwarmKey::parse(file), Ok(SwarmKey::from_bytes([b'\n'; 32])));
}

#[test]
fn every_other_form_is_refused_and_the_text_says_what_to_do() {
    for (name, text, advice) in [
        ("empty", String::new(), "swarm-key new"),
        ("raw hex", AB.into(), "add the two header lines"),
        (
            "version 2",
            format!("/key/swarm/psk/2.0.0/\n/base16/\n{AB}"),
            "version",
        ),
        (
            "BOM",
            format!("\u{feff}{HEAD}/base16/\n{AB}"),
            "byte order mark",
        ),
        (
            "blanks",
            format!(" {HEAD}/base16/\n{AB}"),
            "remove the blanks",
        ),
        ("PEM", "-----BEGIN X-----\n".into(), "PEM"),
        ("type only", HEAD.into(), "second line"),
        (
            "type without line end",
            HEAD.trim_end().into(),
            "second line",
        ),
        (
            "unknown encoding",
            format!("{HEAD}/base58/\n{AB}"),
            "/base64/",
        ),
        ("no key", format!("{HEAD}/base16/"), "missing"),
        (
            "empty key",
            format!("{HEAD}/base16/\n"),
            "0 of 64 hex digits",
        ),
        (
            "63 digits",
            format!("{HEAD}/base16/\n{}\n", &AB[1..]),
            "63 of 64 hex digits",
        ),
        (
            "not hex",
            format!("{HEAD}/base16/\ng{}", &AB[1..]),
            "character 1 ",
        ),
        (
            "not ASCII",
            format!("{HEAD}/base16/\n{}", "é".repeat(32)),
            "character 1 ",
        ),
        (
            "blank in the middle",
            format!("{HEAD}/base16/\n{} {}", &AB[..32], &AB[..32]),
            "character 33 ",
        ),
        (
            "short base64",
            format!("{HEAD}/base64/\nq6ur\n"),
            "4 of 44 base64 digits",
        ),
        (
            "not base64",
            format!("{HEAD}/base64/\n*{}", "A".repeat(43)),
            "character 1 ",
        ),
        (
            "short binary",
            format!("{HEAD}/bin/\n{}", &AB[..31]),
            "31 of 32 bytes",
        ),
        (
            "huge",
            format!("{HEAD}/base16/\n{AB}\n{}", "x".repeat(5000)),
            "another file",
        ),
    ] {
        let error = SwarmKey::parse(text.as_bytes())
            .expect_err(name)
            .to_string();
        assert!(error.contains(advice), "{name}: {error}");
        assert!(
            !error.contains(&AB[..16]),
            "{name} shows key digits: {error}"
        );
    }
}

#[test]
fn the_text_form_is_kubos_byte_for_byte() {
    let key = SwarmKey::from_bytes([0xab; 32]);
    assert_eq!(*key.to_file_text(), format!("{HEAD}/base16/\n{AB}\n"));
}

#[test]
fn generated_keys_differ() {
    assert_ne!(SwarmKey::generate().unwrap(), SwarmKey::generate().unwrap());
}

#[test]
fn fuzz_corpus_is_replayed() {
    let corpus = corpus();
    assert!(corpus.len() >= 30);
    for (_, file) in corpus {
        gemba_pnet::fuzz::key_file(&file);
        // Every prefix, and every file with one bit changed.
        for end in 0..file.len().min(300) {
            gemba_pnet::fuzz::key_file(&file[..end]);
            let mut changed = file.clone();
            changed[end] ^= 1 << (end % 8);
            gemba_pnet::fuzz::key_file(&changed);
        }
    }
}

proptest! {
    #[test]
    fn s2_33_no_bytes_make_the_parser_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        gemba_pnet::fuzz::key_file(&bytes);
        for encoding in ["/base16/", "/base64/", "/bin/"] {
            gemba_pnet::fuzz::key_file(&[format!("{HEAD}{encoding}\n").as_bytes(), &bytes].concat());
        }
    }

    #[test]
    fn every_key_survives_its_file(bytes in any::<[u8; 32]>()) {
        let key = SwarmKey::from_bytes(bytes);
        prop_assert_eq!(SwarmKey::parse(key.to_file_text().as_bytes()), Ok(key.clone()));
        let encoded = data_encoding::BASE64.encode(&bytes);
        prop_assert_eq!(SwarmKey::parse(format!("{HEAD}/base64/\n{encoded}").as_bytes()), Ok(key.clone()));
        prop_assert_eq!(SwarmKey::parse(&[format!("{HEAD}/bin/\n").as_bytes(), &bytes].concat()), Ok(key));
    }
}

#[test]
fn pnet_k3_stray_bits_after_the_last_byte_are_ignored_as_go_does() {
    let file = format!("{HEAD}/base64/\n{}t=\n", "q6ur".repeat(10) + "q6");
    assert_eq!(
        SwarmKey::parse(file.as_bytes()),
        Ok(SwarmKey::from_bytes([0xab; 32]))
    );
}

/// Kubo takes the first of two keys and says nothing; then nobody knows which swarm a device is in.
#[test]
fn pnet_k3_nothing_but_blanks_may_follow_the_key() {
    let hex = format!("{HEAD}/base16/\n{AB}");
    let base64 = format!("{HEAD}/base64/\n{}s=", "q6ur".repeat(10) + "q6");
    let bin = format!("{HEAD}/bin/\n{}", "k".repeat(32));
    for file in [&hex, &base64, &bin] {
        for blanks in ["", "\n", "\r\n", "\n\n \t\r\n"] {
            let file = format!("{file}{blanks}");
            assert!(SwarmKey::parse(file.as_bytes()).is_ok(), "{file:?}");
        }
        for second in [&hex, &base64, &bin] {
            let two = format!("{file}\n{second}\n");
            assert_eq!(SwarmKey::parse(two.as_bytes()), Err(KeyError::SecondKey));
        }
        for (rest, bytes) in [("\n# mine", 6), ("ab", 2), ("\n\0", 1)] {
            assert_eq!(
                SwarmKey::parse(format!("{file}{rest}").as_bytes()),
                Err(KeyError::Trailing { bytes }),
                "{rest:?}"
            );
        }
    }
    let corpus = corpus();
    for name in ["base16-junk", "base16-glued-junk", "bin-junk"] {
        let (_, file) = corpus.iter().find(|(found, _)| found == name).unwrap();
        assert!(
            matches!(SwarmKey::parse(file), Err(KeyError::Trailing { .. })),
            "{name}"
        );
    }
}

#[test]
fn base64_padding_in_the_wrong_place_is_refused() {
    let file = format!("{HEAD}/base64/\nq6u={}\n", "q6ur".repeat(10));
    assert!(matches!(
        SwarmKey::parse(file.as_bytes()),
        Err(KeyError::BadDigit {
            encoding: "base64",
            ..
        })
    ));
}
