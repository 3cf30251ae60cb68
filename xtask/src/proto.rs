//! Protobuf: every `.proto` below `crates/*/src` becomes a checked-in `.rs` beside it, named after the package.
//!
//! protox parses, prost-build writes, rustfmt formats: no protoc, no build script in the crates that integrators compile. All `bytes`
//! fields are `bytes::Bytes`, so that decoding a message does not copy the blocks in it.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::Outcome;
use crate::workspace::Workspace;

/// Writes the generated file of each source.
pub(crate) fn write(workspace: &Workspace) -> Outcome {
    let generated = generate_all(workspace)?;
    for (path, text) in &generated {
        fs::write(path, text).map_err(|e| vec![format!("{}: {e}", workspace.relative(path))])?;
    }
    Ok(format!("proto: {} files written", generated.len()))
}

/// Compares the generated file of each source with what is checked in.
pub(crate) fn check(workspace: &Workspace) -> Outcome {
    let generated = generate_all(workspace)?;
    let stale: Vec<String> = generated
        .iter()
        .filter(|(path, text)| fs::read_to_string(path).ok().as_ref() != Some(text))
        .map(|(path, _)| {
            format!(
                "{} is not what its .proto gives: run `cargo xtask proto`",
                workspace.relative(path)
            )
        })
        .collect();
    if stale.is_empty() {
        Ok(format!(
            "proto: {} files are what their sources give",
            generated.len()
        ))
    } else {
        Err(stale)
    }
}

fn generate_all(workspace: &Workspace) -> Result<Vec<(PathBuf, String)>, Vec<String>> {
    workspace
        .files("crates", "proto")
        .into_iter()
        .filter(|path| workspace.relative(path).contains("/src/"))
        .map(|source| {
            generate(&source).map_err(|e| vec![format!("{}: {e}", workspace.relative(&source))])
        })
        .collect()
}

/// The path of the generated file of `source`, and its text.
fn generate(source: &Path) -> Result<(PathBuf, String), String> {
    let folder = source.parent().ok_or("has no folder")?;
    let file_name = source.file_name().ok_or("has no name")?.to_string_lossy();
    let descriptors = protox::compile([source], [folder]).map_err(|e| format!("{e:?}"))?;
    let requests = descriptors
        .file
        .into_iter()
        .map(|file| {
            (
                prost_build::Module::from_protobuf_package_name(file.package()),
                file,
            )
        })
        .collect();
    let code = prost_build::Config::new()
        .bytes(["."])
        .generate(requests)
        .map_err(|e| e.to_string())?;
    // One source has one package: imports of other files would need a layout of modules that nothing here wants.
    let [(module, code)] = code
        .into_iter()
        .collect::<Vec<_>>()
        .try_into()
        .map_err(|all: Vec<_>| format!("gives {} modules, one is supported", all.len()))?;
    let text =
        format!("// @generated from {file_name} by `cargo xtask proto`. Do not edit.\n\n{code}");
    Ok((folder.join(module.to_file_name_or("_")), rustfmt(&text)?))
}

/// `text` as rustfmt leaves it, so that `cargo fmt --check` agrees with the generator.
fn rustfmt(text: &str) -> Result<String, String> {
    let mut child = Command::new("rustfmt")
        .args(["--edition", "2024", "--emit", "stdout"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("rustfmt: {e} (rustup component add rustfmt)"))?;
    // rustfmt reads all of its input before it writes, so writing first cannot block both.
    child
        .stdin
        .take()
        .expect("stdin was piped above")
        .write_all(text.as_bytes())
        .map_err(|e| format!("rustfmt: {e}"))?;
    let output = child
        .wait_with_output()
        .map_err(|e| format!("rustfmt: {e}"))?;
    if !output.status.success() {
        return Err("rustfmt refused the generated code".to_owned());
    }
    String::from_utf8(output.stdout).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const SOURCE: &str =
        "syntax = \"proto3\";\npackage a.b;\nmessage M { bytes data = 1; repeated int32 n = 2; }\n";

    fn workspace_with(source: &str) -> (tempfile::TempDir, Workspace) {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("crates/x/src/wire");
        fs::create_dir_all(&folder).unwrap();
        fs::write(folder.join("m.proto"), source).unwrap();
        let workspace = Workspace::at(root.path());
        (root, workspace)
    }

    #[test]
    fn a_missing_or_changed_file_is_found_and_writing_mends_it() {
        let (root, workspace) = workspace_with(SOURCE);
        let target = root.path().join("crates/x/src/wire/a.b.rs");
        let findings = check(&workspace).unwrap_err();
        assert!(
            findings[0].contains("crates/x/src/wire/a.b.rs")
                && findings[0].contains("cargo xtask proto")
        );

        write(&workspace).unwrap();
        check(&workspace).unwrap();
        let text = fs::read_to_string(&target).unwrap();
        assert!(text.starts_with("// @generated from m.proto"));
        assert!(
            text.contains("::prost::bytes::Bytes"),
            "bytes are not copied:\n{text}"
        );

        fs::write(&target, text.replace("tag = \"2\"", "tag = \"3\"")).unwrap();
        assert!(check(&workspace).is_err());
    }

    #[test]
    fn a_broken_source_is_named() {
        let (_root, workspace) = workspace_with("syntax = \"proto3\"; message {");
        assert!(check(&workspace).unwrap_err()[0].contains("m.proto"));
    }
}
