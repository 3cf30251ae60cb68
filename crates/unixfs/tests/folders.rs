//! Real folders: what is taken, what is refused, and that export gives back what import took.
#![cfg(all(feature = "fs", unix))]
#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use common::Memory;
use gemba_unixfs::fs::{
    ExportError, ExportOptions, ExportReport, ImportOptions, export, import, partial_path,
};
use gemba_unixfs::{Cid, ImportError, Profile};

fn import_into(path: &Path, profile: &Profile, options: &ImportOptions, store: &mut Memory) -> Cid {
    import(path, profile, options, store).unwrap().cid
}

fn go(_: &ExportReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn sample(at: &Path) {
    fs::create_dir_all(at.join("sub")).unwrap();
    fs::create_dir(at.join("empty")).unwrap();
    for (name, content) in [
        ("Z", "x"),
        ("a.txt", "hello world"),
        ("b.txt", "a"),
        ("é", "é"),
        ("sub/deep", "y"),
    ] {
        fs::write(at.join(name), content).unwrap();
    }
    fs::write(at.join(".hidden"), "h").unwrap();
    symlink("a.txt", at.join("link")).unwrap();
}

/// The folder vector of specs/unixfs.md, walked on a real disk; entries by name, the root last.
#[test]
fn s0_2_a_folder_has_the_cid_of_kubo_and_lists_its_entries() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    sample(&at);
    let mut store = Memory::default();
    let root = import_into(
        &at,
        &Profile::unixfs_v1_2025(),
        &ImportOptions::default(),
        &mut store,
    );
    assert_eq!(
        root.to_string(),
        "bafybeicx3xg5phy4fpnwvp7udaxp64rk2zb2wl3js5ktgu67iyhi3fzjne"
    );
    let names: Vec<String> = store
        .entries
        .iter()
        .map(|entry| String::from_utf8(entry.path.clone()).unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "d/Z",
            "d/a.txt",
            "d/b.txt",
            "d/empty",
            "d/link",
            "d/sub/deep",
            "d/sub",
            "d/é",
            "d"
        ]
    );

    let v0 = import_into(
        &at,
        &Profile::unixfs_v0_2015(),
        &ImportOptions::default(),
        &mut store,
    );
    assert_eq!(
        v0.to_string(),
        "QmVrWDh1uFmnstjEFfAXWH7V2xpM9yGY65H53BW4zpwHL3"
    );

    let hidden = ImportOptions {
        hidden: true,
        ..ImportOptions::default()
    };
    assert_ne!(
        import_into(&at, &Profile::unixfs_v1_2025(), &hidden, &mut store),
        root
    );
    let mut wrapped = Memory::default();
    let wrap = ImportOptions {
        wrap: true,
        ..ImportOptions::default()
    };
    import_into(
        &at.join("a.txt"),
        &Profile::unixfs_v1_2025(),
        &wrap,
        &mut wrapped,
    );
    assert_eq!(wrapped.entries.len(), 2);
    assert_eq!(wrapped.entries[0].path, b"a.txt");
    assert!(wrapped.entries[1].is_dir);
}

#[test]
fn export_gives_back_what_import_took() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    sample(&at);
    fs::set_permissions(at.join("sub/deep"), fs::Permissions::from_mode(0o750)).unwrap();
    let options = ImportOptions {
        hidden: true,
        ..ImportOptions::default()
    };
    for profile in [
        Profile::unixfs_v1_2025(),
        Profile::unixfs_v0_2015(),
        Profile::unixfs_v1_2025()
            .preserve_mode(true)
            .preserve_mtime(true),
    ] {
        let mut store = Memory::default();
        let root = import_into(&at, &profile, &options, &mut store);
        let target = dir.path().join("out");
        let report = export(
            &mut store,
            root,
            &target,
            &ExportOptions::default(),
            &mut go,
        )
        .unwrap();
        assert_eq!(report.entries, 10);
        assert_eq!(report.bytes, 1 + 11 + 1 + 2 + 1 + 1);
        assert_eq!(import_into(&target, &profile, &options, &mut store), root);
        let left: Vec<_> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name())
            .collect();
        assert_eq!(left.len(), 2, "{left:?}");
        fs::remove_dir_all(&target).unwrap();
    }
}

#[test]
fn export_refuses_to_overwrite_unless_told() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    sample(&at);
    let mut store = Memory::default();
    let profile = Profile::default();
    let root = import_into(&at, &profile, &ImportOptions::default(), &mut store);
    let file = import_into(
        &at.join("a.txt"),
        &profile,
        &ImportOptions::default(),
        &mut store,
    );
    let target = dir.path().join("out");
    fs::write(&target, "mine").unwrap();
    let refused = export(
        &mut store,
        root,
        &target,
        &ExportOptions::default(),
        &mut go,
    );
    assert!(matches!(refused, Err(ExportError::Exists(path)) if path == target));
    assert_eq!(fs::read(&target).unwrap(), b"mine");
    let over = ExportOptions {
        overwrite: true,
        ..ExportOptions::default()
    };
    // A file by a folder, a folder by a folder, a folder by a file.
    for (root, wanted) in [(root, true), (root, true), (file, false)] {
        export(&mut store, root, &target, &over, &mut go).unwrap();
        assert_eq!(target.is_dir(), wanted);
        assert_eq!(
            import_into(&target, &profile, &ImportOptions::default(), &mut store),
            root
        );
    }
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

/// A crash in the middle leaves finished files that are not written again, and nothing under the target's name.
#[test]
fn u_exp_3_an_interrupted_export_resumes_without_rewriting() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    fs::create_dir(&at).unwrap();
    for index in 0..20u8 {
        fs::write(at.join(format!("{index:02}")), vec![index; 5000]).unwrap();
    }
    let mut store = Memory::default();
    let root = import_into(
        &at,
        &Profile::default(),
        &ImportOptions::default(),
        &mut store,
    );
    let target = dir.path().join("out");
    let stopped = export(
        &mut store,
        root,
        &target,
        &ExportOptions::default(),
        &mut |report| {
            if report.entries > 10 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    assert!(matches!(stopped, Err(ExportError::Cancelled)));
    assert!(!target.exists());
    let first = dir.path().join(".out.gemba-partial/tree/00");
    let inode = fs::metadata(&first).unwrap().ino();
    let report = export(
        &mut store,
        root,
        &target,
        &ExportOptions::default(),
        &mut go,
    )
    .unwrap();
    assert_eq!(report.resumed_files, 10);
    assert_eq!(report.bytes, 20 * 5000);
    assert_eq!(fs::metadata(target.join("00")).unwrap().ino(), inode);
    assert_eq!(
        import_into(
            &target,
            &Profile::default(),
            &ImportOptions::default(),
            &mut store
        ),
        root
    );

    // Another root never takes over what a first one left behind.
    let left = dir.path().join(".out.gemba-partial");
    assert!(!left.exists());
    fs::remove_dir_all(&target).unwrap();
    let _ = export(
        &mut store,
        root,
        &target,
        &ExportOptions::default(),
        &mut |report| {
            if report.entries > 5 {
                ControlFlow::Break(())
            } else {
                ControlFlow::Continue(())
            }
        },
    );
    fs::write(at.join("00"), vec![9; 5000]).unwrap();
    let other = import_into(
        &at,
        &Profile::default(),
        &ImportOptions::default(),
        &mut store,
    );
    let report = export(
        &mut store,
        other,
        &target,
        &ExportOptions::default(),
        &mut go,
    )
    .unwrap();
    assert_eq!(report.resumed_files, 0);
    assert_eq!(fs::read(target.join("00")).unwrap(), vec![9; 5000]);
}

/// What stays of an export that failed is what the next one needs, and nothing else.
#[test]
fn u_exp_3_only_what_helps_the_next_try_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    fs::create_dir(&at).unwrap();
    for name in ["a", "b", "c"] {
        fs::write(at.join(name), name.repeat(5000)).unwrap();
    }
    let mut whole = Memory::default();
    let root = import_into(
        &at,
        &Profile::default(),
        &ImportOptions::default(),
        &mut whole,
    );
    let target = dir.path().join("out");
    let partial = partial_path(&target).unwrap();
    assert_eq!(partial, dir.path().join(".out.gemba-partial"));
    let get = |blocks: &Memory, options: ExportOptions| {
        export(&mut blocks.clone(), root, &target, &options, &mut go)
    };
    let without = |content: &str| {
        let mut some = whole.clone();
        let leaf = *gemba_block::Block::raw(content.repeat(5000)).unwrap().cid();
        assert!(some.blocks.remove(&leaf).is_some());
        some
    };
    let few = || ExportOptions {
        max_bytes: 7000,
        ..ExportOptions::default()
    };

    // Nothing was finished: nothing to go on from.
    assert!(matches!(
        get(&without("a"), ExportOptions::default()),
        Err(ExportError::Source { .. })
    ));
    assert!(!partial.exists());
    // The limit would stop the next one, too.
    assert!(matches!(get(&whole, few()), Err(ExportError::Quota { .. })));
    assert!(!partial.exists());
    // A finished file is kept, also by an export with a limit.
    assert!(get(&without("b"), ExportOptions::default()).is_err());
    assert!(partial.join("tree/a").exists());
    assert!(get(&whole, few()).is_err());
    assert!(partial.join("tree/a").exists());
    assert_eq!(
        get(&whole, ExportOptions::default()).unwrap().resumed_files,
        1
    );
    assert!(!partial.exists());
}

#[test]
fn what_cannot_be_read_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("d");
    fs::create_dir(&at).unwrap();
    fs::write(at.join("a"), "a").unwrap();
    let mut store = Memory::default();
    let missing = import(
        &at.join("none"),
        &Profile::default(),
        &ImportOptions::default(),
        &mut store,
    );
    assert!(matches!(missing, Err(ImportError::Read { path, .. }) if path == at.join("none")));

    let pipe = at.join("pipe");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let refused = import(
        &at,
        &Profile::default(),
        &ImportOptions::default(),
        &mut store,
    );
    assert!(matches!(refused, Err(ImportError::Special { path, kind: "fifo" }) if path == pipe));
    let skip = ImportOptions {
        skip_special: true,
        ..ImportOptions::default()
    };
    let with = import_into(&at, &Profile::default(), &skip, &mut store);
    fs::remove_file(&pipe).unwrap();
    assert_eq!(
        import_into(
            &at,
            &Profile::default(),
            &ImportOptions::default(),
            &mut store
        ),
        with
    );

    symlink("..", at.join("up")).unwrap();
    symlink("a", at.join("same")).unwrap();
    let follow = ImportOptions {
        follow_symlinks: true,
        ..ImportOptions::default()
    };
    // `up` is the folder around: entering it means entering `d` again.
    let looped = import(&at, &Profile::default(), &follow, &mut store);
    assert!(
        matches!(looped, Err(ImportError::Loop { .. })),
        "{looped:?}"
    );
    fs::remove_file(at.join("up")).unwrap();
    let mut followed = Memory::default();
    import_into(&at, &Profile::default(), &follow, &mut followed);
    assert_eq!(followed.entries[0].part.cid, followed.entries[1].part.cid);
}
