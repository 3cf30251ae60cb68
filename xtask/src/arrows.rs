//! The arrows of the design: which crate may depend on which, and that every core stands without tokio and libp2p-swarm.
//!
//! Normal dependencies only: what tests use is free, except that nothing published reaches the testkit.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Outcome;
use crate::workspace::{Workspace, array, packages, text};

/// What one crate may depend on.
struct Arrow {
    /// Folder below `crates/`; the package is `gemba-<folder>`.
    from: &'static str,
    /// Other gemba crates it may use.
    to: &'static [&'static str],
    /// Whether it has driver files for libp2p, behind a feature.
    drives_libp2p: bool,
    /// libp2p crates that its core may name: plain data types only.
    vocabulary: &'static [&'static str],
}

const ARROWS: &[Arrow] = &[
    core("block", &[]),
    core("segment", &[]),
    core("store", &["block", "segment"]),
    core("unixfs", &["block"]),
    core("pins", &[]),
    core("log", &["block", "segment"]),
    driver("names", &[]),
    driver("pnet", &[]),
    driver("gossip", &[]),
    driver("exchange", &["block"]),
];

/// The only crate that knows more than one protocol or storage crate, and the test tools; both may use any of the others.
const KNOWS_ALL: &[&str] = &["node", "testkit"];

const fn core(from: &'static str, to: &'static [&'static str]) -> Arrow {
    Arrow {
        from,
        to,
        drives_libp2p: false,
        vocabulary: &[],
    }
}

const fn driver(from: &'static str, to: &'static [&'static str]) -> Arrow {
    Arrow {
        from,
        to,
        drives_libp2p: true,
        vocabulary: &["libp2p-identity"],
    }
}

/// Never in the graph of a core that is built without its drivers.
const RUNTIMES: &[&str] = &["tokio", "libp2p-swarm", "async-io", "smol"];

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let manifests = workspace.manifests()?;
    let mut findings = Vec::new();
    let mut edges = 0;
    for package in packages(&manifests) {
        edges += check_package(package, &mut findings);
    }
    check_folders(workspace, &mut findings);
    let cores = check_cores(workspace, &mut findings)?;
    if findings.is_empty() {
        Ok(format!(
            "arrows: {edges} edges between gemba crates, all drawn in DESIGN §2; {cores} cores stand without tokio and libp2p-swarm"
        ))
    } else {
        Err(findings)
    }
}

/// Checks the declared dependencies of one package; returns how many of them are gemba crates.
fn check_package(package: &Value, findings: &mut Vec<String>) -> usize {
    let name = text(&package["name"]);
    let Some(folder) = name.strip_prefix("gemba-") else {
        return 0;
    };
    let arrow = ARROWS.iter().find(|a| a.from == folder);
    let mut edges = 0;
    for dependency in array(&package["dependencies"]) {
        let to = text(&dependency["name"]);
        if text(&dependency["kind"]) == "dev" {
            continue;
        }
        if let Some(to) = to.strip_prefix("gemba-") {
            edges += 1;
            check_edge(folder, arrow, to, findings);
        } else if to.starts_with("libp2p") {
            check_libp2p(
                name,
                folder,
                arrow,
                to,
                dependency["optional"] == Value::Bool(true),
                findings,
            );
        }
    }
    edges
}

fn check_edge(from: &str, arrow: Option<&Arrow>, to: &str, findings: &mut Vec<String>) {
    let published = arrow.is_some() || from == "node";
    if to == "testkit" && published {
        findings.push(format!(
            "gemba-{from} → gemba-testkit: the testkit is a dev-dependency only"
        ));
        return;
    }
    if to == "node" && published {
        findings.push(format!(
            "gemba-{from} → gemba-node: nothing depends on the node"
        ));
        return;
    }
    if let Some(arrow) = arrow
        && !arrow.to.contains(&to)
    {
        findings.push(format!("gemba-{from} → gemba-{to} is no arrow of DESIGN §2: let the node carry a Cid, Bytes or PeerId between them"));
    }
}

fn check_libp2p(
    name: &str,
    folder: &str,
    arrow: Option<&Arrow>,
    to: &str,
    optional: bool,
    findings: &mut Vec<String>,
) {
    let Some(arrow) = arrow else {
        if folder == "testkit" {
            findings.push(format!(
                "{name} → {to}: the testkit simulates links, it does not open them"
            ));
        }
        return;
    };
    if arrow.vocabulary.contains(&to) {
        return;
    }
    if !arrow.drives_libp2p {
        findings.push(format!(
            "{name} → {to}: libp2p's types appear only in pnet, gossip, exchange, names and node"
        ));
    } else if !optional {
        findings.push(format!(
            "{name} → {to} must be optional: the core is built without its drivers"
        ));
    }
}

/// Each folder below `crates/` is one that the design knows.
fn check_folders(workspace: &Workspace, findings: &mut Vec<String>) {
    for folder in workspace.folders("crates") {
        if !KNOWS_ALL.contains(&folder.as_str()) && !ARROWS.iter().any(|a| a.from == folder) {
            findings.push(format!(
                "crates/{folder} has no arrows: draw them in DESIGN §2 and in xtask/src/arrows.rs"
            ));
        }
    }
}

/// Looks for a runtime in what `cargo tree` says of every core; returns how many there are.
fn check_cores(workspace: &Workspace, findings: &mut Vec<String>) -> Result<usize, Vec<String>> {
    let present: Vec<&Arrow> = ARROWS
        .iter()
        .filter(|a| workspace.path("crates").join(a.from).is_dir())
        .collect();
    for arrow in &present {
        let package = format!("gemba-{}", arrow.from);
        let mut arguments = vec![
            "tree",
            "--locked",
            "--edges=normal",
            "--target=all",
            "--prefix=none",
            "--format={p}",
            "--package",
            &package,
        ];
        // A crate without libp2p drivers has no feature that may bring a runtime either.
        if arrow.drives_libp2p {
            arguments.push("--no-default-features");
        } else {
            arguments.push("--all-features");
        }
        let tree = workspace.cargo(&arguments)?;
        for runtime in runtimes_in(&tree) {
            findings.push(format!(
                "{package} reaches {runtime}: cargo tree -e normal {} -p {package} -i {runtime}",
                arguments[arguments.len() - 1]
            ));
        }
    }
    Ok(present.len())
}

/// The forbidden packages among the lines `name vX.Y.Z …` of a flat tree.
fn runtimes_in(tree: &str) -> BTreeSet<&str> {
    tree.lines()
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| RUNTIMES.contains(name))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn findings_of(name: &str, dependencies: Value) -> Vec<String> {
        let mut findings = Vec::new();
        check_package(
            &json!({ "name": name, "dependencies": dependencies }),
            &mut findings,
        );
        findings
    }

    #[test]
    fn arrows_of_the_design_pass() {
        for (from, to) in [
            ("store", "segment"),
            ("store", "block"),
            ("exchange", "block"),
            ("node", "exchange"),
            ("node", "store"),
        ] {
            let found = findings_of(
                &format!("gemba-{from}"),
                json!([{ "name": format!("gemba-{to}"), "kind": null }]),
            );
            assert_eq!(found, Vec::<String>::new(), "{from} → {to}");
        }
    }

    #[test]
    fn sideways_upward_and_testkit_edges_are_named() {
        for (from, to) in [
            ("exchange", "store"),
            ("pins", "block"),
            ("block", "segment"),
            ("store", "node"),
            ("unixfs", "testkit"),
            ("node", "testkit"),
        ] {
            let found = findings_of(
                &format!("gemba-{from}"),
                json!([{ "name": format!("gemba-{to}"), "kind": null }]),
            );
            assert_eq!(found.len(), 1, "{from} → {to}: {found:?}");
            assert!(
                found[0].starts_with(&format!("gemba-{from} → gemba-{to}")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn tests_may_use_anything() {
        let found = findings_of(
            "gemba-store",
            json!([{ "name": "gemba-testkit", "kind": "dev" }, { "name": "libp2p-swarm", "kind": "dev" }]),
        );
        assert_eq!(found, Vec::<String>::new());
    }

    #[test]
    fn libp2p_stays_in_drivers_behind_a_feature() {
        let dependency = |optional: bool| json!([{ "name": "libp2p-swarm", "kind": null, "optional": optional }]);
        assert_eq!(
            findings_of("gemba-exchange", dependency(true)),
            Vec::<String>::new()
        );
        assert!(findings_of("gemba-exchange", dependency(false))[0].contains("must be optional"));
        assert!(findings_of("gemba-store", dependency(true))[0].contains("appear only in"));
        assert_eq!(
            findings_of("gemba-node", dependency(false)),
            Vec::<String>::new()
        );
        assert_eq!(
            findings_of(
                "gemba-names",
                json!([{ "name": "libp2p-identity", "kind": null }])
            ),
            Vec::<String>::new()
        );
    }

    #[test]
    fn a_runtime_in_the_tree_is_seen_by_its_whole_name() {
        let tree = "gemba-x v0.1.0 (/src)\ntokio-macros v2.0.0\ntokio v1.54.0\nbytes v1.0.0 (*)\n";
        assert_eq!(runtimes_in(tree).into_iter().collect::<Vec<_>>(), ["tokio"]);
    }
}
