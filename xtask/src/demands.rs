//! Every id in docs/closed.txt is carried by a test.
//!
//! An id is a user's demand (`S0.48`) or a row of the threat table (`T1`). A test carries it by beginning its name with it
//! (`s0_48_refuses_to_start_without_a_key`, `t1_s0_6_outsider_sees_nothing` carries two); an interop scenario by naming it in its doc
//! comment or in the `about` that it is listed with. An ignored test carries nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use crate::Outcome;
use crate::rust::{Token, attribute, tokens};
use crate::workspace::Workspace;

const LIST: &str = "docs/closed.txt";

/// Where tests live; in `SCENARIOS`, doc comments carry ids too.
const TESTS: &[&str] = &["crates", "interop", "examples", "xtask"];
const SCENARIOS: &str = "interop/";

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let wanted = ids_of_list(&workspace.read(LIST)?)?;
    let carriers = carriers(workspace);
    let mut lines = Vec::new();
    let mut missing = Vec::new();
    for id in &wanted {
        match carriers.get(id) {
            Some(tests) => lines.push(format!(
                "{id:7}{}",
                tests.iter().cloned().collect::<Vec<_>>().join("\n       ")
            )),
            None => missing.push(format!(
                "{id} is listed in {LIST} and no test carries it (name one {}…)",
                prefix(id)
            )),
        }
    }
    if !missing.is_empty() {
        return Err(missing);
    }
    lines.push(format!(
        "demands: {} ids, each carried by a test",
        wanted.len()
    ));
    Ok(lines.join("\n"))
}

/// The ids in the list file; `#` starts a comment.
fn ids_of_list(text: &str) -> Result<BTreeSet<String>, Vec<String>> {
    let words = text.lines().flat_map(|line| {
        line.split('#')
            .next()
            .unwrap_or_default()
            .split_whitespace()
    });
    let (good, bad): (Vec<&str>, Vec<&str>) =
        words.partition(|word| ids_of_name(&prefix(word)).contains(&(*word).to_owned()));
    if bad.is_empty() {
        Ok(good.into_iter().map(str::to_owned).collect())
    } else {
        Err(bad
            .iter()
            .map(|word| format!("{LIST}: {word} is neither a demand (S0.48) nor a threat row (T1)"))
            .collect())
    }
}

/// How a test name that carries `id` begins.
fn prefix(id: &str) -> String {
    format!("{}_", id.to_lowercase().replace('.', "_"))
}

/// All tests by the ids they carry.
fn carriers(workspace: &Workspace) -> BTreeMap<String, BTreeSet<String>> {
    let mut carriers: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in TESTS
        .iter()
        .flat_map(|folder| workspace.files(folder, "rs"))
    {
        let Ok(source) = fs::read_to_string(&path) else {
            continue;
        };
        let file = workspace.relative(&path);
        for name in test_names(&tokens(&source)) {
            for id in ids_of_name(&name) {
                carriers
                    .entry(id)
                    .or_default()
                    .insert(format!("{file} {name}"));
            }
        }
        if file.starts_with(SCENARIOS) {
            for id in ids_of_docs(&source) {
                carriers.entry(id).or_default().insert(file.clone());
            }
        }
    }
    carriers
}

/// Names of the functions that an attribute such as `#[test]` or `#[tokio::test(…)]` marks, without the ignored ones.
fn test_names(tokens: &[Token]) -> Vec<String> {
    let mut names = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let Some(mut end) = attribute(tokens, at) else {
            at += 1;
            continue;
        };
        let mut marks = vec![&tokens[at..end]];
        while let Some(next) = attribute(tokens, end) {
            marks.push(&tokens[end..next]);
            end = next;
        }
        let says = |word: &str| marks.iter().any(|mark| attribute_name(mark) == Some(word));
        if says("test") && !says("ignore") {
            names.extend(function_name(&tokens[end..]));
        }
        at = end;
    }
    names
}

/// The last segment of an attribute's path: `test` for both `#[test]` and `#[tokio::test(flavor = …)]`.
fn attribute_name(mark: &[Token]) -> Option<&str> {
    let path = mark.iter().skip_while(|t| !t.is('[')).skip(1);
    path.take_while(|t| t.ident().is_some() || t.is(':'))
        .filter_map(Token::ident)
        .last()
}

/// The name in `pub async fn name(…`.
fn function_name(tokens: &[Token]) -> Option<String> {
    let mut head = tokens
        .iter()
        .take(6)
        .skip_while(|t| t.ident() != Some("fn"));
    head.next()?;
    head.next()?.ident().map(str::to_owned)
}

/// The ids at the beginning of a test's name, in a run: `t1_s0_6_…` has two.
fn ids_of_name(name: &str) -> Vec<String> {
    let words: Vec<&str> = name.split('_').collect();
    let mut ids = Vec::new();
    let mut at = 0;
    while at < words.len() {
        if is_report(words[at]) && words.get(at + 1).is_some_and(|w| is_number(w)) {
            ids.push(format!("{}.{}", words[at].to_uppercase(), words[at + 1]));
            at += 2;
        } else if is_threat(words[at]) {
            ids.push(words[at].to_uppercase());
            at += 1;
        } else {
            break;
        }
    }
    ids
}

/// The demands and threat rows that doc comments and `about` lines of `source` name.
fn ids_of_docs(source: &str) -> Vec<String> {
    let comments = source.lines().map(str::trim_start).filter(|line| {
        ["//!", "///", "about:"]
            .iter()
            .any(|mark| line.starts_with(mark))
    });
    comments
        .flat_map(|line| line.split(|c: char| !c.is_ascii_alphanumeric() && c != '.'))
        .map(|word| word.trim_end_matches('.'))
        .filter(|word| is_upper_id(word))
        .map(str::to_owned)
        .collect()
}

fn is_upper_id(word: &str) -> bool {
    let lower = word.to_lowercase();
    lower != word
        && match lower.split_once('.') {
            Some((report, number)) => is_report(report) && is_number(number),
            None => is_threat(&lower),
        }
}

/// `s0` to `s4`: one of the field reports.
fn is_report(word: &str) -> bool {
    matches!(word.as_bytes(), [b's', b'0'..=b'4'])
}

/// A row of the threat table: transport, gossip, exchange, names, pins, log, unixfs, host, maintenance.
fn is_threat(word: &str) -> bool {
    let mut letters = word.chars();
    letters.next().is_some_and(|c| "tgxnplsuhm".contains(c)) && is_number(letters.as_str())
}

fn is_number(word: &str) -> bool {
    (1..=2).contains(&word.len()) && word.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn names_carry_ids_at_their_beginning_only() {
        for (name, wanted) in [
            ("s0_48_no_key_no_socket", &["S0.48"][..]),
            ("t1_s0_6_outsider_sees_nothing", &["T1", "S0.6"]),
            ("x2_wrong_bytes_are_never_found", &["X2"]),
            ("reads_u8_values", &[]),
            ("s3_every_flipped_byte_is_found", &["S3"]),
            ("s1_s2_nothing_is_lost", &["S1", "S2"]),
            ("s4_49_s1_27_both", &["S4.49", "S1.27"]),
            ("stores_s3_buckets", &[]),
            ("u128_is_no_row", &[]),
        ] {
            assert_eq!(ids_of_name(name), wanted, "{name}");
        }
    }

    #[test]
    fn only_tests_that_run_count() {
        let source = "#[test] fn a() {} #[tokio::test(flavor = \"x\")]\nasync fn b() {} fn c() {} #[test] #[ignore = \"later\"] fn d() {} #[cfg(test)] fn e() {} proptest! { #[test] fn f(x in 0..1) {} }\n// #[test] fn g() {}";
        assert_eq!(test_names(&tokens(source)), ["a", "b", "f"]);
    }

    #[test]
    fn docs_of_scenarios_carry_ids() {
        assert_eq!(
            ids_of_docs(
                "//! Wrong key (S0.56, S2.41).\n/// T1: nothing. U8\n    about: \"both ways (S4.44)\",\n// S0.99\nfn s0_1() {} // X2"
            ),
            ["S0.56", "S2.41", "T1", "U8", "S4.44"]
        );
    }

    #[test]
    fn an_id_without_a_test_is_a_finding_and_one_with_a_test_is_not() {
        let root = tempfile::tempdir().unwrap();
        for folder in ["docs", "crates/x/tests"] {
            fs::create_dir_all(root.path().join(folder)).unwrap();
        }
        fs::write(root.path().join(LIST), "S0.48 # the wall\nT1\n").unwrap();
        fs::write(
            root.path().join("crates/x/tests/a.rs"),
            "#[test]\nfn s0_48_refuses() {}\n",
        )
        .unwrap();
        let workspace = Workspace::at(root.path());
        let findings = check(&workspace).unwrap_err();
        assert_eq!(findings.len(), 1);
        assert!(findings[0].starts_with("T1 "), "{findings:?}");

        fs::write(
            root.path().join("crates/x/tests/b.rs"),
            "#[test]\nfn t1_outsiders() {}\n",
        )
        .unwrap();
        check(&workspace).unwrap();
    }

    #[test]
    fn a_word_that_is_no_id_is_refused() {
        assert!(ids_of_list("S0.48 Z9").is_err());
    }
}
