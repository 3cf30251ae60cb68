//! deny.toml, enforced: licences, sources and bans against the locked graph.
//!
//! The file is cargo-deny's; this is the part of cargo-deny that the project uses (docs/decisions/004). A key that is not enforced here is
//! refused, so that no line of the file only looks as if it protected something.

use std::collections::BTreeMap;

use semver::{Version, VersionReq};
use serde_json::Value;
use toml::Table;

use crate::Outcome;
use crate::spdx;
use crate::workspace::{Workspace, array, packages, text};

pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let policy = Policy::parse(&workspace.read("deny.toml")?)?;
    let graph = graph(&workspace.metadata()?);
    let findings = policy.findings(&graph);
    if !findings.is_empty() {
        return Err(findings);
    }
    let warned = if policy.warn_duplicates {
        duplicates(&graph).len()
    } else {
        0
    };
    Ok(format!(
        "deny: {} packages; licences, sources and {} bans hold; {warned} crates are there in several versions",
        graph.len(),
        policy.bans.len()
    ))
}

/// The advisory ids that are ignored, each with its reason in the file.
pub(crate) fn ignored_advisories(workspace: &Workspace) -> Outcome {
    Ok(Policy::parse(&workspace.read("deny.toml")?)?
        .ignored
        .join("\n"))
}

/// One package of the locked graph.
#[derive(Debug, Default)]
struct Package {
    name: String,
    version: String,
    /// SPDX expression, empty if the manifest has none.
    license: String,
    /// Empty for a package of the workspace.
    source: String,
    /// Names of the packages that depend on it directly.
    parents: Vec<String>,
    /// Dependencies from a registry that any version would satisfy.
    wildcards: Vec<String>,
}

fn graph(metadata: &Value) -> Vec<Package> {
    let mut parents: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let names: BTreeMap<&str, &str> = packages(metadata)
        .iter()
        .map(|p| (text(&p["id"]), text(&p["name"])))
        .collect();
    for node in array(&metadata["resolve"]["nodes"]) {
        let parent = names.get(text(&node["id"])).copied().unwrap_or_default();
        for child in array(&node["dependencies"]) {
            parents
                .entry(text(child))
                .or_default()
                .push(parent.to_owned());
        }
    }
    packages(metadata)
        .iter()
        .map(|p| Package {
            name: text(&p["name"]).to_owned(),
            version: text(&p["version"]).to_owned(),
            license: text(&p["license"]).to_owned(),
            source: text(&p["source"]).to_owned(),
            parents: parents.remove(text(&p["id"])).unwrap_or_default(),
            wildcards: if p["source"].is_null() {
                wildcards(p)
            } else {
                Vec::new()
            },
        })
        .collect()
}

/// Dependencies of a workspace package with the requirement `*`; a path needs no version.
fn wildcards(package: &Value) -> Vec<String> {
    array(&package["dependencies"])
        .iter()
        .filter(|d| text(&d["req"]) == "*" && d["path"].is_null())
        .map(|d| text(&d["name"]).to_owned())
        .collect()
}

/// deny.toml, read and checked.
#[derive(Debug)]
struct Policy {
    allowed_licenses: Vec<String>,
    /// Crate and the further licences it may have.
    exceptions: Vec<(String, Vec<String>)>,
    allowed_registries: Vec<String>,
    bans: Vec<Ban>,
    warn_duplicates: bool,
    deny_wildcards: bool,
    ignored: Vec<String>,
}

/// One entry of `bans.deny`.
#[derive(Debug)]
struct Ban {
    name: String,
    versions: VersionReq,
    /// If given, the crate is tolerated where only these depend on it.
    wrappers: Option<Vec<String>>,
    /// The crate is allowed, but only once.
    only_duplicates: bool,
    reason: String,
}

impl Policy {
    fn parse(file: &str) -> Result<Policy, Vec<String>> {
        let table: Table = file.parse().map_err(|e| vec![format!("deny.toml: {e}")])?;
        let mut problems = unknown_keys(&table);
        let policy = Policy {
            allowed_licenses: strings(&table, "licenses", "allow"),
            exceptions: entries(&table, "licenses", "exceptions")
                .map(|e| (string_of(e, "crate"), strings_of(e, "allow")))
                .collect(),
            allowed_registries: strings(&table, "sources", "allow-registry"),
            bans: entries(&table, "bans", "deny")
                .filter_map(|e| Ban::parse(e).map_err(|problem| problems.push(problem)).ok())
                .collect(),
            warn_duplicates: value(&table, "bans", "multiple-versions") == "warn",
            deny_wildcards: value(&table, "bans", "wildcards") == "deny",
            ignored: entries(&table, "advisories", "ignore")
                .map(|e| string_of(e, "id"))
                .collect(),
        };
        for entry in entries(&table, "advisories", "ignore") {
            if string_of(entry, "reason").len() < 10 || string_of(entry, "id").is_empty() {
                problems.push(format!(
                    "deny.toml: an ignored advisory needs id and reason: {entry}"
                ));
            }
        }
        for (section, key) in [("sources", "unknown-registry"), ("sources", "unknown-git")] {
            if value(&table, section, key) != "deny" {
                problems.push(format!("deny.toml: {section}.{key} must be \"deny\""));
            }
        }
        if problems.is_empty() {
            Ok(policy)
        } else {
            Err(problems)
        }
    }

    fn findings(&self, graph: &[Package]) -> Vec<String> {
        let mut findings = Vec::new();
        for package in graph {
            if !package.source.is_empty() {
                findings.extend(self.license_finding(package));
                findings.extend(self.source_finding(package));
            }
            findings.extend(self.bans.iter().filter_map(|b| b.finding(package)));
            if self.deny_wildcards {
                findings.extend(
                    package
                        .wildcards
                        .iter()
                        .map(|w| format!("{} depends on any version of {w}", package.name)),
                );
            }
        }
        for (name, versions) in duplicates(graph) {
            if let Some(ban) = self
                .bans
                .iter()
                .find(|b| b.only_duplicates && b.name == name)
            {
                findings.push(format!(
                    "{name} is there as {}: {}",
                    versions.join(" and "),
                    ban.reason
                ));
            }
        }
        findings
    }

    fn license_finding(&self, package: &Package) -> Option<String> {
        let said = format!("{} {}", package.name, package.version);
        if package.license.is_empty() {
            return Some(format!("{said} states no licence"));
        }
        let further = self
            .exceptions
            .iter()
            .find(|(name, _)| *name == package.name)
            .map(|(_, allow)| allow);
        let allowed = |id: &str| {
            let id = id.trim_end_matches('+');
            self.allowed_licenses
                .iter()
                .chain(further.into_iter().flatten())
                .any(|a| a == id)
        };
        match spdx::satisfied(&package.license, &allowed) {
            Ok(true) => None,
            Ok(false) => Some(format!(
                "{said}: licence {} is not allowed (deny.toml, licenses.allow)",
                package.license
            )),
            Err(why) => Some(format!("{said}: {why}")),
        }
    }

    fn source_finding(&self, package: &Package) -> Option<String> {
        let known = package
            .source
            .strip_prefix("registry+")
            .is_some_and(|registry| self.allowed_registries.iter().any(|a| a == registry));
        (!known).then(|| {
            format!(
                "{} {} comes from {}: only crates.io is allowed",
                package.name, package.version, package.source
            )
        })
    }
}

impl Ban {
    fn parse(entry: &Table) -> Result<Ban, String> {
        let (name, versions) = package_spec(&string_of(entry, "crate"))?;
        let reason = string_of(entry, "reason");
        if reason.is_empty() {
            return Err(format!("deny.toml: the ban of {name} has no reason"));
        }
        Ok(Ban {
            name,
            versions,
            wrappers: entry
                .contains_key("wrappers")
                .then(|| strings_of(entry, "wrappers")),
            only_duplicates: entry
                .get("deny-multiple-versions")
                .and_then(toml::Value::as_bool)
                == Some(true),
            reason,
        })
    }

    fn finding(&self, package: &Package) -> Option<String> {
        if self.only_duplicates || package.name != self.name {
            return None;
        }
        let version = match Version::parse(&package.version) {
            // A requirement never matches a pre-release of another version: without this, 0.13.0-rc.1 would slip below a floor of 0.14.
            Ok(version) => Version::new(version.major, version.minor, version.patch),
            Err(e) => return Some(format!("{} {}: {e}", package.name, package.version)),
        };
        if !self.versions.matches(&version) {
            return None;
        }
        if let Some(wrappers) = &self.wrappers
            && package.parents.iter().all(|p| wrappers.contains(p))
        {
            return None;
        }
        Some(format!(
            "{} {} is banned ({}), brought by {}: {}",
            package.name,
            package.version,
            self.versions,
            package.parents.join(", "),
            self.reason
        ))
    }
}

/// `name`, `name@1.2.3` (exactly that version) or `name:<requirement>`, as cargo-deny writes them.
fn package_spec(spec: &str) -> Result<(String, VersionReq), String> {
    let (name, requirement) = match (spec.split_once('@'), spec.split_once(':')) {
        (Some((name, version)), _) => (name, format!("={version}")),
        (None, Some((name, requirement))) => (name, requirement.to_owned()),
        (None, None) => (spec, "*".to_owned()),
    };
    if name.is_empty() {
        return Err(format!("deny.toml: a ban without a crate: {spec:?}"));
    }
    let versions =
        VersionReq::parse(&requirement).map_err(|e| format!("deny.toml: {spec}: {e}"))?;
    Ok((name.to_owned(), versions))
}

/// Crates that are there in more than one version, with their versions.
fn duplicates(graph: &[Package]) -> BTreeMap<&str, Vec<&str>> {
    let mut versions: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for package in graph {
        versions
            .entry(&package.name)
            .or_default()
            .push(&package.version);
    }
    versions.retain(|_, v| v.len() > 1);
    versions
}

const KNOWN_KEYS: &[(&str, &[&str])] = &[
    ("graph", &["all-features"]),
    ("advisories", &["ignore"]),
    ("licenses", &["allow", "exceptions"]),
    (
        "sources",
        &["unknown-registry", "unknown-git", "allow-registry"],
    ),
    (
        "bans",
        &[
            "multiple-versions",
            "wildcards",
            "allow-wildcard-paths",
            "deny",
        ],
    ),
];

const KNOWN_BAN_KEYS: &[&str] = &["crate", "reason", "wrappers", "deny-multiple-versions"];

fn unknown_keys(table: &Table) -> Vec<String> {
    let mut problems = Vec::new();
    for (section, content) in table {
        let known = KNOWN_KEYS
            .iter()
            .find(|(name, _)| name == section)
            .map(|(_, keys)| *keys);
        let Some(known) = known else {
            problems.push(format!(
                "deny.toml: [{section}] is not enforced by xtask deny"
            ));
            continue;
        };
        for key in content.as_table().into_iter().flat_map(Table::keys) {
            if !known.contains(&key.as_str()) {
                problems.push(format!(
                    "deny.toml: {section}.{key} is not enforced by xtask deny"
                ));
            }
        }
    }
    for entry in entries(table, "bans", "deny") {
        for key in entry
            .keys()
            .filter(|k| !KNOWN_BAN_KEYS.contains(&k.as_str()))
        {
            problems.push(format!(
                "deny.toml: bans.deny has {key}, which is not enforced by xtask deny"
            ));
        }
    }
    problems
}

fn value<'a>(table: &'a Table, section: &str, key: &str) -> &'a str {
    table
        .get(section)
        .and_then(|s| s.get(key))
        .and_then(toml::Value::as_str)
        .unwrap_or_default()
}

fn strings(table: &Table, section: &str, key: &str) -> Vec<String> {
    table
        .get(section)
        .and_then(toml::Value::as_table)
        .map_or_else(Vec::new, |s| strings_of(s, key))
}

fn strings_of(table: &Table, key: &str) -> Vec<String> {
    let values = table.get(key).and_then(toml::Value::as_array);
    values
        .into_iter()
        .flatten()
        .filter_map(|v| v.as_str().map(str::to_owned))
        .collect()
}

fn string_of(table: &Table, key: &str) -> String {
    table
        .get(key)
        .and_then(toml::Value::as_str)
        .unwrap_or_default()
        .to_owned()
}

fn entries<'a>(table: &'a Table, section: &str, key: &str) -> impl Iterator<Item = &'a Table> {
    let values = table
        .get(section)
        .and_then(|s| s.get(key))
        .and_then(toml::Value::as_array);
    values
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_table)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const POLICY: &str = r#"
        [licenses]
        allow = ["MIT", "Apache-2.0"]
        exceptions = [{ crate = "odd", allow = ["MPL-2.0"] }]
        [sources]
        unknown-registry = "deny"
        unknown-git = "deny"
        allow-registry = ["https://github.com/rust-lang/crates.io-index"]
        [bans]
        wildcards = "deny"
        deny = [
            { crate = "yamux:<0.14.1", reason = "floor" },
            { crate = "openssl-sys", reason = "C" },
            { crate = "exact@0.1.0", reason = "that one" },
            { crate = "wrapped", wrappers = ["oracle"], reason = "tests only" },
            { crate = "rand", deny-multiple-versions = true, reason = "one random source" },
        ]
    "#;

    fn package(name: &str, version: &str) -> Package {
        Package {
            name: name.to_owned(),
            version: version.to_owned(),
            license: "MIT OR Apache-2.0".to_owned(),
            source: "registry+https://github.com/rust-lang/crates.io-index".to_owned(),
            parents: vec!["parent".to_owned()],
            wildcards: Vec::new(),
        }
    }

    fn findings(graph: &[Package]) -> Vec<String> {
        Policy::parse(POLICY).unwrap().findings(graph)
    }

    #[test]
    fn the_projects_own_file_is_read_and_has_the_floors() {
        let policy = Policy::parse(include_str!("../../deny.toml")).unwrap();
        for floor in [
            "yamux",
            "redb",
            "bytes",
            "snow",
            "lru",
            "libp2p-gossipsub",
            "quinn-proto",
            "hickory-proto",
        ] {
            assert!(
                policy
                    .bans
                    .iter()
                    .any(|b| b.name == floor && !b.only_duplicates),
                "{floor}"
            );
        }
    }

    #[test]
    fn a_clean_graph_has_no_findings() {
        let graph = [
            package("yamux", "0.14.1"),
            package("rand", "0.10.3"),
            package("exact", "0.1.1"),
        ];
        assert_eq!(findings(&graph), Vec::<String>::new());
    }

    #[test]
    fn versions_below_a_floor_are_found_pre_releases_too() {
        for version in ["0.14.0", "0.13.9", "0.12.1", "0.13.0-rc.1"] {
            let found = findings(&[package("yamux", version)]);
            assert_eq!(found.len(), 1, "{version}");
            assert!(
                found[0].contains(version)
                    && found[0].contains("floor")
                    && found[0].contains("parent")
            );
        }
    }

    #[test]
    fn banned_crates_are_found_at_any_version_and_exact_ones_at_theirs() {
        assert_eq!(findings(&[package("openssl-sys", "0.9.1")]).len(), 1);
        assert_eq!(findings(&[package("exact", "0.1.0")]).len(), 1);
    }

    #[test]
    fn a_wrapped_crate_is_tolerated_below_its_wrapper_only() {
        let mut wrapped = package("wrapped", "1.0.0");
        assert_eq!(findings(std::slice::from_ref(&wrapped)).len(), 1);
        wrapped.parents = vec!["oracle".to_owned()];
        assert_eq!(findings(&[wrapped]), Vec::<String>::new());
    }

    #[test]
    fn two_versions_of_a_crate_that_must_be_one_are_found() {
        let found = findings(&[package("rand", "0.9.0"), package("rand", "0.10.3")]);
        assert_eq!(
            found,
            ["rand is there as 0.9.0 and 0.10.3: one random source"]
        );
    }

    #[test]
    fn foreign_licences_are_found_and_exceptions_hold_for_their_crate_only() {
        for (name, license, wanted) in [
            ("a", "GPL-3.0", 1),
            ("a", "", 1),
            ("a", "MPL-2.0", 1),
            ("odd", "MPL-2.0", 0),
            ("a", "MIT AND", 1),
            ("a", "MIT AND Apache-2.0", 0),
        ] {
            let found = findings(&[Package {
                license: license.to_owned(),
                ..package(name, "1.0.0")
            }]);
            assert_eq!(found.len(), wanted, "{name} {license}: {found:?}");
        }
    }

    #[test]
    fn git_and_foreign_registries_are_found() {
        for source in [
            "git+https://github.com/a/b?branch=main#0123",
            "registry+https://example.org/index",
        ] {
            let found = findings(&[Package {
                source: source.to_owned(),
                ..package("a", "1.0.0")
            }]);
            assert_eq!(found.len(), 1, "{source}");
        }
    }

    #[test]
    fn a_dependency_on_any_version_is_found() {
        let found = findings(&[Package {
            wildcards: vec!["b".to_owned()],
            ..package("a", "1.0.0")
        }]);
        assert_eq!(found, ["a depends on any version of b"]);
    }

    #[test]
    fn keys_that_nothing_enforces_are_refused() {
        for line in [
            "\n[bans.workspace-dependencies]\nunused = \"deny\"",
            "\n[output]\nfeature-depth = 1",
            "\n[advisories]\nyanked = \"deny\"",
        ] {
            assert!(Policy::parse(&format!("{POLICY}{line}")).is_err(), "{line}");
        }
        assert!(
            Policy::parse(
                &POLICY.replace("reason = \"C\"", "use-instead = \"rustls\", reason = \"C\"")
            )
            .is_err()
        );
        assert!(Policy::parse(&POLICY.replace(", reason = \"C\"", "")).is_err());
        assert!(
            Policy::parse(&POLICY.replace("unknown-git = \"deny\"", "unknown-git = \"allow\""))
                .is_err()
        );
    }

    #[test]
    fn parents_come_from_the_resolved_graph() {
        let metadata = serde_json::json!({
            "packages": [
                { "id": "p1", "name": "parent", "version": "1.0.0", "source": null, "dependencies": [{ "name": "any", "req": "*" }, { "name": "local", "req": "*", "path": "/x" }] },
                { "id": "c1", "name": "child", "version": "1.0.0", "source": "registry+x", "license": "MIT", "dependencies": [] },
            ],
            "resolve": { "nodes": [{ "id": "p1", "dependencies": ["c1"] }, { "id": "c1", "dependencies": [] }] }
        });
        let graph = graph(&metadata);
        assert_eq!(graph[1].parents, ["parent"]);
        assert_eq!(graph[0].wildcards, ["any"]);
    }
}
