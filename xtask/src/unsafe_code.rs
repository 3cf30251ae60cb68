//! `unsafe` appears only in the files that are allowed to have it.
//!
//! The lint `unsafe_code = "deny"` can be switched off beside any line; this cannot.

use std::fs;

use crate::Outcome;
use crate::rust::{Token, tokens};
use crate::workspace::Workspace;

/// File and reason. A file that no longer has `unsafe` must leave the list.
const ALLOWED: &[(&str, &str)] = &[
    (
        "crates/pnet/src/cipher/x86.rs",
        "vector instructions behind a proof that the processor has them",
    ),
    (
        "crates/testkit/src/alloc.rs",
        "a global allocator that counts, for tests of memory bounds",
    ),
];

const FOLDERS: &[&str] = &["crates", "xtask", "interop", "examples", "benches", "fuzz"];

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let mut findings = Vec::new();
    let mut seen = Vec::new();
    let mut files = 0;
    for path in FOLDERS.iter().flat_map(|f| workspace.files(f, "rs")) {
        let name = workspace.relative(&path);
        let Ok(source) = fs::read_to_string(&path) else {
            findings.push(format!("{name}: cannot be read"));
            continue;
        };
        files += 1;
        let Some(line) = first_unsafe(&source) else {
            continue;
        };
        if ALLOWED.iter().any(|(allowed, _)| *allowed == name) {
            seen.push(name);
        } else {
            findings.push(format!(
                "{name}:{line}: `unsafe` is allowed only in {ALLOWED:?}"
            ));
        }
    }
    for (allowed, _) in ALLOWED {
        if !seen.iter().any(|s| s == allowed) {
            findings.push(format!("{allowed} has no `unsafe` any more: take it off the list in xtask/src/unsafe_code.rs"));
        }
    }
    if findings.is_empty() {
        Ok(format!(
            "unsafe: {files} files, {} with `unsafe`, all allowed",
            seen.len()
        ))
    } else {
        Err(findings)
    }
}

/// The line of the first `unsafe` block, function, impl or attribute.
fn first_unsafe(source: &str) -> Option<usize> {
    let tokens = tokens(source);
    tokens
        .iter()
        .find(|t: &&Token| t.ident() == Some("unsafe"))
        .map(|t| t.line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_the_word_only_where_it_is_code() {
        assert_eq!(
            first_unsafe("// unsafe\nconst UNSAFE: &str = \"unsafe\";"),
            None
        );
        assert_eq!(first_unsafe("fn f() {\n    unsafe { g() }\n}"), Some(2));
    }
}
