//! What an integrator finds on the registry: metadata, README with a compiled example, CHANGELOG.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::Outcome;
use crate::workspace::{Workspace, array, packages, text};

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let manifests = workspace.manifests()?;
    let published: Vec<&Value> = packages(&manifests)
        .iter()
        .filter(|p| is_published(p))
        .collect();
    let findings: Vec<String> = published.iter().flat_map(|p| missing(p)).collect();
    if findings.is_empty() {
        Ok(format!("packages: {} crates are complete", published.len()))
    } else {
        Err(findings)
    }
}

/// The names of the crates that are published, in an order in which each comes after what it depends on.
pub(crate) fn list(workspace: &Workspace) -> Outcome {
    let manifests = workspace.manifests()?;
    let mut waiting: Vec<&Value> = packages(&manifests)
        .iter()
        .filter(|p| is_published(p))
        .collect();
    let mut ordered: Vec<&str> = Vec::new();
    while !waiting.is_empty() {
        let (ready, rest): (Vec<&Value>, Vec<&Value>) = waiting
            .iter()
            .partition(|p| own_dependencies(p).all(|d| ordered.contains(&d)));
        if ready.is_empty() {
            return Err(rest
                .iter()
                .map(|p| format!("{} is in a circle of dependencies", text(&p["name"])))
                .collect());
        }
        ordered.extend(ready.iter().map(|p| text(&p["name"])));
        waiting = rest;
    }
    Ok(ordered.join("\n"))
}

fn is_published(package: &Value) -> bool {
    // Absent means any registry, an empty list means none.
    package["publish"]
        .as_array()
        .is_none_or(|registries| !registries.is_empty())
}

fn own_dependencies(package: &Value) -> impl Iterator<Item = &str> {
    array(&package["dependencies"])
        .iter()
        .filter(|d| text(&d["kind"]) != "dev")
        .map(|d| text(&d["name"]))
        .filter(|name| name.starts_with("gemba-"))
}

/// What one package lacks.
fn missing(package: &Value) -> Vec<String> {
    let name = text(&package["name"]);
    let mut findings = Vec::new();
    for key in [
        "description",
        "license",
        "repository",
        "readme",
        "rust_version",
    ] {
        if text(&package[key]).is_empty() {
            findings.push(format!("{name} has no {key}"));
        }
    }
    for key in ["keywords", "categories"] {
        if array(&package[key]).is_empty() {
            findings.push(format!("{name} has no {key}"));
        }
    }
    for dependency in array(&package["dependencies"]) {
        if text(&dependency["kind"]) != "dev" && text(&dependency["req"]) == "*" {
            findings.push(format!(
                "{name} depends on {} without a version",
                text(&dependency["name"])
            ));
        }
    }
    let folder = Path::new(text(&package["manifest_path"]))
        .parent()
        .unwrap_or(Path::new(""));
    findings.extend(missing_texts(name, folder));
    findings
}

fn missing_texts(name: &str, folder: &Path) -> Vec<String> {
    let read = |file: &str| fs::read_to_string(folder.join(file)).unwrap_or_default();
    let mut findings = Vec::new();
    let readme = read("README.md");
    if !readme.contains("```") {
        findings.push(format!("{name}: README.md shows no example"));
    }
    if !read("CHANGELOG.md").contains("## ") {
        findings.push(format!("{name}: CHANGELOG.md has no entry"));
    }
    // A binary's README shows commands; a library's example is compiled as a doc-test of the crate.
    let library = read("src/lib.rs");
    let is_program = folder.join("src/main.rs").exists();
    if !is_program && !library.contains("README.md") && !library.contains("//! ```") {
        findings.push(format!(
            "{name}: lib.rs neither includes README.md nor holds an example, so nothing compiles it"
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use serde_json::json;

    fn package(folder: &Path) -> Value {
        json!({
            "name": "gemba-x", "description": "d", "license": "MIT", "repository": "r", "readme": "README.md", "rust_version": "1.95",
            "keywords": ["k"], "categories": ["c"], "publish": null, "manifest_path": folder.join("Cargo.toml"),
            "dependencies": [{ "name": "gemba-block", "kind": null, "req": "^0.1.0" }, { "name": "gemba-testkit", "kind": "dev", "req": "*" }],
        })
    }

    #[test]
    fn each_missing_piece_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("src")).unwrap();
        fs::write(
            folder.path().join("README.md"),
            "# x\n```rust\nfn f() {}\n```\n",
        )
        .unwrap();
        fs::write(
            folder.path().join("CHANGELOG.md"),
            "# Changelog\n\n## 0.1.0\n",
        )
        .unwrap();
        fs::write(
            folder.path().join("src/lib.rs"),
            "#![doc = include_str!(\"../README.md\")]\n",
        )
        .unwrap();
        assert_eq!(missing(&package(folder.path())), Vec::<String>::new());

        fs::write(folder.path().join("src/lib.rs"), "//! x\n").unwrap();
        fs::write(folder.path().join("CHANGELOG.md"), "").unwrap();
        let mut bare = package(folder.path());
        bare["description"] = Value::Null;
        bare["keywords"] = json!([]);
        bare["dependencies"] = json!([{ "name": "gemba-block", "kind": null, "req": "*" }]);
        let found = missing(&bare).join("\n");
        for wanted in [
            "description",
            "keywords",
            "gemba-block without a version",
            "CHANGELOG",
            "lib.rs",
        ] {
            assert!(found.contains(wanted), "{wanted} not in:\n{found}");
        }
    }

    #[test]
    fn unpublished_packages_are_told_apart() {
        assert!(is_published(&json!({ "publish": null })));
        assert!(!is_published(&json!({ "publish": [] })));
    }
}
