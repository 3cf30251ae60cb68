//! docs/times.md lists every time-out and interval: those that are settings, with default and unit, and those that are none, as their source says (S1.25).
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The rows of a table of the document, by what its first two columns say.
fn rows(text: &str, heading: &str) -> BTreeMap<(String, String), String> {
    let begin = text.find(heading).unwrap_or_else(|| panic!("no {heading}"));
    text[begin + heading.len()..]
        .lines()
        .take_while(|line| !line.starts_with("## "))
        .filter(|line| line.starts_with("| `"))
        .map(|line| {
            let mut cells = line.trim_matches('|').split(" | ").map(str::trim);
            let key = cells.next().unwrap().to_owned();
            let value = cells.next().unwrap().to_owned();
            ((key, value), cells.collect::<Vec<_>>().join(" | "))
        })
        .collect()
}

/// Each setting is there with its default.
#[test]
fn s1_25_every_setting_that_is_a_time_is_listed_with_default_and_unit() {
    let text = std::fs::read_to_string(root().join("docs/times.md")).unwrap();
    let expected: BTreeMap<_, _> = gemba_node::config::times()
        .map(|time| {
            let off = if time.may_be_off { "; or off" } else { "" };
            let key = (format!("`{}`", time.key), time.default.to_owned());
            (key, format!("{}{off}", time.about))
        })
        .collect();
    let listed = rows(&text, "## Settings");
    for (key, about) in &expected {
        let row = format!("| {} | {} | {about} |", key.0, key.1);
        assert_eq!(listed.get(key), Some(about), "docs/times.md lacks:\n{row}");
    }
    assert_eq!(listed.len(), expected.len(), "{listed:#?}");
}

/// Constants of times in the sources of the crates that are published, beside tests and simulators: file, name, value, and what its comment says first.
fn constants() -> BTreeMap<(String, String), String> {
    let mut found = BTreeMap::new();
    let mut open = vec![root().join("crates")];
    while let Some(path) = open.pop() {
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let left_out = ["tests", "sim", "testkit", "benches", "crashes.rs"];
        if left_out.contains(&name.as_str()) {
            continue;
        }
        if path.is_dir() {
            let entries = std::fs::read_dir(&path).unwrap();
            open.extend(entries.map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|end| end == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let file = path.strip_prefix(root().join("crates")).unwrap();
            let file = file.to_string_lossy().replace("/src/", "/");
            for (name, value) in of_file(&text) {
                found.insert((format!("`{file}`"), format!("`{name}`")), value);
            }
        }
    }
    found
}

/// Those at the left margin: what is further in belongs to tests.
fn of_file(text: &str) -> Vec<(String, String)> {
    let (mut found, mut comment) = (Vec::new(), String::new());
    let (mut statement, mut in_comment) = (String::new(), false);
    for line in text.lines() {
        if let Some(more) = line.strip_prefix("///") {
            if !std::mem::replace(&mut in_comment, true) {
                comment.clear();
            }
            comment.push_str(more);
            continue;
        }
        in_comment = false;
        let is_const = [
            "const ",
            "pub const ",
            "pub(super) const ",
            "pub(crate) const ",
        ]
        .iter()
        .any(|word| line.starts_with(word));
        if is_const || !statement.is_empty() {
            statement.push_str(line.trim());
            if !line.ends_with(';') {
                continue;
            }
            let is_time = statement.contains(": Duration =")
                || statement.contains("std::time::Duration =")
                || statement.contains(": (Duration, Duration) =");
            if is_time {
                let name = statement.split("const ").nth(1).unwrap();
                let (name, _) = name.split_once(':').unwrap();
                found.push((name.to_owned(), comment.trim().to_owned()));
            }
            statement.clear();
        }
        // One comment may stand over several of them.
        if !is_const {
            comment.clear();
        }
    }
    found
}

/// Each constant is there, and says in its source what it is.
#[test]
fn s1_25_every_time_that_is_no_setting_is_listed_with_its_reason() {
    let text = std::fs::read_to_string(root().join("docs/times.md")).unwrap();
    let listed = rows(&text, "## Constants");
    let constants = constants();
    assert!(constants.len() > 60, "{}", constants.len());
    let mut lacking = String::new();
    for (key, about) in &constants {
        assert!(!about.is_empty(), "{key:?} says nothing of itself");
        if !listed.contains_key(key) {
            lacking.push_str(&format!("| {} | {} | {about} |\n", key.0, key.1));
        }
    }
    assert!(lacking.is_empty(), "docs/times.md lacks:\n{lacking}");
    let gone: Vec<_> = listed
        .keys()
        .filter(|key| !constants.contains_key(*key))
        .collect();
    assert!(
        gone.is_empty(),
        "docs/times.md lists what is no more: {gone:?}"
    );
}
