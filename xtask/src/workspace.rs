//! The checkout: where it is, which files it has, what cargo says about it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

/// The root folder of the checkout.
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace that the current folder is in, else the one that this program was built in.
    pub(crate) fn find() -> Workspace {
        let here = std::env::current_dir().unwrap_or_default();
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).parent();
        let root = here
            .ancestors()
            .chain(built)
            .find(|folder| folder.join("xtask/Cargo.toml").is_file());
        Workspace {
            root: root.unwrap_or(&here).to_path_buf(),
        }
    }

    /// A workspace anywhere, for tests.
    #[cfg(test)]
    pub(crate) fn at(root: &Path) -> Workspace {
        Workspace {
            root: root.to_path_buf(),
        }
    }

    pub(crate) fn path(&self, relative: &str) -> PathBuf {
        self.root.join(relative)
    }

    /// `path` as it is written in messages: from the root, with slashes.
    pub(crate) fn relative(&self, path: &Path) -> String {
        path.strip_prefix(&self.root)
            .unwrap_or(path)
            .to_string_lossy()
            .replace('\\', "/")
    }

    pub(crate) fn read(&self, relative: &str) -> Result<String, Vec<String>> {
        fs::read_to_string(self.path(relative)).map_err(|e| vec![format!("{relative}: {e}")])
    }

    /// Every file below `folder` whose name ends in `.extension`, sorted by path; build output is left out.
    pub(crate) fn files(&self, folder: &str, extension: &str) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![self.path(folder)];
        while let Some(folder) = folders.pop() {
            let Ok(entries) = fs::read_dir(&folder) else {
                continue;
            };
            for entry in entries.flatten() {
                let path = entry.path();
                if path.is_dir() {
                    if entry.file_name() != "target" {
                        folders.push(path);
                    }
                } else if path.extension().is_some_and(|e| e == extension) {
                    found.push(path);
                }
            }
        }
        found.sort();
        found
    }

    /// The names of the folders right below `folder`, sorted.
    pub(crate) fn folders(&self, folder: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.path(folder)) else {
            return Vec::new();
        };
        let mut names: Vec<String> = entries
            .flatten()
            .filter(|e| e.path().is_dir())
            .map(|e| e.file_name().to_string_lossy().into_owned())
            .collect();
        names.sort();
        names
    }

    /// `cargo metadata` of the locked graph with all features, all platforms and all dependencies.
    pub(crate) fn metadata(&self) -> Result<Value, Vec<String>> {
        self.cargo_json(&[
            "metadata",
            "--format-version=1",
            "--locked",
            "--all-features",
        ])
    }

    /// `cargo metadata` of the workspace's own packages, as their manifests declare them.
    pub(crate) fn manifests(&self) -> Result<Value, Vec<String>> {
        self.cargo_json(&["metadata", "--format-version=1", "--locked", "--no-deps"])
    }

    fn cargo_json(&self, arguments: &[&str]) -> Result<Value, Vec<String>> {
        let text = self.cargo(arguments)?;
        serde_json::from_str(&text).map_err(|e| vec![format!("cargo {}: {e}", arguments.join(" "))])
    }

    /// Standard output of a cargo command that must succeed.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Result<String, Vec<String>> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let said = format!("cargo {}", arguments.join(" "));
        let output = Command::new(cargo)
            .args(arguments)
            .current_dir(&self.root)
            .output()
            .map_err(|e| vec![format!("{said}: {e}")])?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(vec![format!("{said} failed:\n{}", why.trim())]);
        }
        String::from_utf8(output.stdout).map_err(|e| vec![format!("{said}: {e}")])
    }
}

/// The packages in an answer of `cargo metadata`.
pub(crate) fn packages(metadata: &Value) -> &[Value] {
    array(&metadata["packages"])
}

pub(crate) fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(crate) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
