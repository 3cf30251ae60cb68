//! Rows U1, U2, U5 of the threat table: whatever a DAG holds, nothing outside the target's folder is touched.
#![cfg(all(feature = "fs", unix))]
#![allow(clippy::unwrap_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use common::Memory;
use gemba_testkit::{Rng, sim_scale};
use gemba_unixfs::dagpb::{self, FsData, Kind, Link, Mtime};
use gemba_unixfs::fs::{ExportError, ExportOptions, ExportReport, Symlinks, export};
use gemba_unixfs::{Block, Bytes, Cid, ReadError};

fn go(_: &ExportReport) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn directory(store: &mut Memory, entries: &[(&[u8], Cid)]) -> Cid {
    let links = entries.iter().map(|(name, cid)| Link::new(*cid, name, 1));
    store.put(Block::dag_pb(dagpb::encode(links, Some(&[8, 1]))).unwrap())
}

fn file(store: &mut Memory, content: &[u8]) -> Cid {
    // As dag-pb, so that no claimed size stands in the link.
    let mut data = FsData::new(Kind::File);
    data.data = Some(Bytes::copy_from_slice(content));
    store.put(Block::dag_pb(dagpb::encode(std::iter::empty(), Some(&data.encode()))).unwrap())
}

fn link(store: &mut Memory, target: &[u8]) -> Cid {
    let mut data = FsData::new(Kind::Symlink);
    data.data = Some(Bytes::copy_from_slice(target));
    store.put(Block::dag_pb(dagpb::encode(std::iter::empty(), Some(&data.encode()))).unwrap())
}

/// A sandbox: `outside/` with things that must not change, `inside/` to export into.
struct Sandbox {
    dir: tempfile::TempDir,
    before: BTreeMap<PathBuf, (u64, u32, i64, Vec<u8>)>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("outside/folder")).unwrap();
        fs::write(dir.path().join("outside/file"), "mine").unwrap();
        fs::write(dir.path().join("outside/folder/x"), "mine").unwrap();
        fs::create_dir(dir.path().join("inside")).unwrap();
        let before = Self::snapshot(&dir.path().join("outside"));
        Sandbox { dir, before }
    }

    fn snapshot(path: &Path) -> BTreeMap<PathBuf, (u64, u32, i64, Vec<u8>)> {
        let mut found = BTreeMap::new();
        let mut waiting = vec![path.to_owned()];
        while let Some(path) = waiting.pop() {
            let meta = fs::symlink_metadata(&path).unwrap();
            let content = if meta.is_file() {
                fs::read(&path).unwrap()
            } else {
                Vec::new()
            };
            if meta.is_dir() {
                waiting.extend(
                    fs::read_dir(&path)
                        .unwrap()
                        .map(|entry| entry.unwrap().path()),
                );
            }
            found.insert(path, (meta.ino(), meta.mode(), meta.mtime(), content));
        }
        found
    }

    fn target(&self) -> PathBuf {
        self.dir.path().join("inside/target")
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn export(
        &self,
        store: &mut Memory,
        root: Cid,
        options: &ExportOptions,
    ) -> Result<ExportReport, ExportError> {
        let done = export(store, root, &self.target(), options, &mut go);
        self.check();
        done
    }

    /// Nothing outside changed, and inside there is the target and its temporary folder at most.
    fn check(&self) {
        assert_eq!(Self::snapshot(&self.outside()), self.before);
        for entry in fs::read_dir(self.dir.path()).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(name == "inside" || name == "outside", "{name:?}");
        }
        for entry in fs::read_dir(self.dir.path().join("inside")).unwrap() {
            let name = entry.unwrap().file_name();
            assert!(
                name == "target" || name == ".target.gemba-partial",
                "{name:?}"
            );
        }
    }

    fn clear(&self) {
        for entry in fs::read_dir(self.dir.path().join("inside")).unwrap() {
            let path = entry.unwrap().path();
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                fs::remove_dir_all(path).unwrap();
            } else {
                fs::remove_file(path).unwrap();
            }
        }
    }
}

fn quick() -> ExportOptions {
    ExportOptions {
        sync: false,
        ..ExportOptions::default()
    }
}

#[test]
fn u1_names_that_leave_the_folder_are_refused() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let evil = file(&mut store, b"evil");
    let long = vec![b'x'; 64 * 1024];
    let absolute = sandbox.outside().join("file");
    let names: Vec<&[u8]> = vec![
        b"",
        b".",
        b"..",
        b"/",
        b"../outside/file",
        b"../../outside/file",
        b"a/../../outside/file",
        b"sub/x",
        b"\0",
        b"x\0y",
        absolute.as_os_str().as_encoded_bytes(),
        &long,
        &long[..256],
    ];
    for name in names {
        for at in [
            evil,
            directory(&mut store, &[(b"x", evil)]),
            link(&mut store, b"x"),
        ] {
            let root = directory(&mut store, &[(name, at)]);
            let refused = sandbox.export(&mut store, root, &quick());
            assert!(
                matches!(refused, Err(ExportError::UnsafeName { .. })),
                "{refused:?}"
            );
            assert!(!sandbox.target().exists());
        }
    }
    // Odd but harmless names are written as they are.
    let odd: Vec<&[u8]> = vec![
        b"-rf",
        b"...",
        b" ",
        b"\\..\\x",
        b"CON",
        b"a:b",
        b"\xff\xfe",
        &long[..255],
        b"~",
        b"$HOME",
    ];
    let mut entries: Vec<(&[u8], Cid)> = odd.iter().map(|name| (*name, evil)).collect();
    entries.sort();
    let root = directory(&mut store, &entries);
    sandbox.clear();
    assert_eq!(
        sandbox.export(&mut store, root, &quick()).unwrap().entries,
        11
    );
    assert_eq!(fs::read_dir(sandbox.target()).unwrap().count(), 10);
}

/// Random names from the pieces that escapes are made of: 10,000 in full, a twentieth in `cargo test` … and never one
/// step outside.
#[test]
fn u1_ten_thousand_hostile_names() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let mut rng = Rng::from_env_or(0x0a1);
    let evil = file(&mut store, b"evil");
    let pieces: [&[u8]; 12] = [
        b"..",
        b"/",
        b".",
        b"a",
        b"\0",
        b"outside",
        b"file",
        b"//",
        b"\\",
        b"target",
        b"\xc0\xaf",
        b" ",
    ];
    let mut refused = 0;
    for _ in 0..sim_scale(10_000).max(500) {
        let mut entries = Vec::new();
        for _ in 0..20 {
            let name: Vec<u8> = (0..rng.below(6))
                .flat_map(|_| rng.pick(&pieces).to_vec())
                .collect();
            let target: Vec<u8> = (0..rng.below(6))
                .flat_map(|_| rng.pick(&pieces).to_vec())
                .collect();
            let cid = match rng.below(3) {
                0 => evil,
                1 => link(&mut store, &target),
                _ => directory(&mut store, &[(b"x", evil), (b"file", evil)]),
            };
            entries.push((name, cid));
        }
        let entries: Vec<(&[u8], Cid)> = entries
            .iter()
            .map(|(name, cid)| (name.as_slice(), *cid))
            .collect();
        let root = directory(&mut store, &entries);
        refused +=
            u32::from(export(&mut store, root, &sandbox.target(), &quick(), &mut go).is_err());
        sandbox.clear();
    }
    sandbox.check();
    assert!(refused > 100);
}

/// Row U2: a symlink and then something below it, in every order and kind.
#[test]
fn u2_nothing_is_written_through_a_symlink() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let outside = sandbox.outside();
    let evil = file(&mut store, b"evil");
    let folder = directory(&mut store, &[(b"file", evil), (b"x", evil)]);
    let targets: Vec<Vec<u8>> = vec![
        outside.as_os_str().as_encoded_bytes().to_vec(),
        b"../../../outside".to_vec(),
        b"../../../../outside".to_vec(),
        b"..".to_vec(),
        b".".to_vec(),
        b"/".to_vec(),
    ];
    for target in &targets {
        let to = link(&mut store, target);
        for second in [folder, evil, link(&mut store, b"other")] {
            let root = directory(&mut store, &[(b"a", to), (b"a", second)]);
            let clash = sandbox.export(&mut store, root, &quick());
            assert!(matches!(clash, Err(ExportError::Clash { .. })), "{clash:?}");
            let root = directory(&mut store, &[(b"a", second), (b"a", to)]);
            let clash = sandbox.export(&mut store, root, &quick());
            assert!(matches!(clash, Err(ExportError::Clash { .. })), "{clash:?}");
            assert!(!sandbox.target().exists());
        }
        // Alone it is written, and only as a link.
        sandbox.clear();
        let root = directory(&mut store, &[(b"a", to)]);
        sandbox.export(&mut store, root, &quick()).unwrap();
        assert!(
            fs::symlink_metadata(sandbox.target().join("a"))
                .unwrap()
                .is_symlink()
        );
        sandbox.clear();
    }
    // Two files, two folders, a file and a folder of one name.
    for (first, second) in [
        (evil, evil),
        (folder, folder),
        (evil, folder),
        (folder, evil),
    ] {
        let root = directory(&mut store, &[(b"a", first), (b"a", second)]);
        assert!(matches!(
            sandbox.export(&mut store, root, &quick()),
            Err(ExportError::Clash { .. })
        ));
        sandbox.clear();
    }
}

#[test]
fn u2_symlinks_are_refused_by_policy() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let inside = ExportOptions {
        symlinks: Symlinks::Inside,
        ..quick()
    };
    let none = ExportOptions {
        symlinks: Symlinks::Refuse,
        ..quick()
    };
    for (target, stays) in [
        (&b"x"[..], true),
        (b"../y", true),
        (b"../../y", false),
        (b"/etc", false),
        (b"x/../..", false),
    ] {
        let to = link(&mut store, target);
        let sub = directory(&mut store, &[(b"a", to)]);
        let root = directory(&mut store, &[(b"sub", sub)]);
        assert_eq!(sandbox.export(&mut store, root, &inside).is_ok(), stays);
        sandbox.clear();
        assert!(matches!(
            sandbox.export(&mut store, root, &none),
            Err(ExportError::Symlink { .. })
        ));
        sandbox.clear();
        sandbox.export(&mut store, root, &quick()).unwrap();
        sandbox.clear();
        // As the root itself it has no inside.
        assert!(sandbox.export(&mut store, to, &inside).is_err());
        sandbox.export(&mut store, to, &quick()).unwrap();
        sandbox.clear();
    }
    for target in [&b""[..], b"x\0y", &[b'x'; 5000]] {
        let to = link(&mut store, target);
        let root = directory(&mut store, &[(b"a", to)]);
        assert!(matches!(
            sandbox.export(&mut store, root, &quick()),
            Err(ExportError::Symlink { .. })
        ));
    }
}

/// Traps laid in the temporary folder by another program: symlinks where folders and files are to be.
#[test]
fn u2_a_prepared_temporary_folder_is_no_way_out() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let evil = file(&mut store, b"evil");
    let sub = directory(&mut store, &[(b"file", evil)]);
    let root = directory(&mut store, &[(b"file", evil), (b"folder", sub)]);
    let partial = sandbox.dir.path().join("inside/.target.gemba-partial");

    symlink(sandbox.outside(), &partial).unwrap();
    assert!(sandbox.export(&mut store, root, &quick()).is_err());
    fs::remove_file(&partial).unwrap();

    for trap in [
        "tree",
        "part",
        "origin",
        "origin.new",
        "tree/file",
        "tree/folder",
    ] {
        for to in ["outside", "outside/file", "outside/folder"] {
            fs::create_dir(&partial).unwrap();
            fs::write(partial.join("origin"), format!("{root}\n\n")).unwrap();
            if trap.contains('/') {
                fs::create_dir(partial.join("tree")).unwrap();
            }
            let _ = fs::remove_file(partial.join(trap));
            symlink(sandbox.dir.path().join(to), partial.join(trap)).unwrap();
            let _ = sandbox.export(&mut store, root, &quick());
            sandbox.clear();
        }
    }
}

/// Row U5: 2^40 bytes from 40 blocks, 2^40 folders from 40 blocks: the quota ends both, before it is exceeded.
#[test]
fn u5_a_zip_bomb_meets_the_quota() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let mut top = store.put(Block::raw(vec![0; 1024]).unwrap());
    for level in 0..30u32 {
        let size = 1024u64 << level;
        let mut data = FsData::new(Kind::File);
        data.blocksizes = vec![size, size];
        data.filesize = Some(size * 2);
        let links = [Link::new(top, b"", size), Link::new(top, b"", size)];
        top = store
            .put(Block::dag_pb(dagpb::encode(links.into_iter(), Some(&data.encode()))).unwrap());
    }
    let options = ExportOptions {
        max_bytes: 1 << 20,
        max_entries: 1000,
        ..quick()
    };
    let root = directory(&mut store, &[(b"small", top)]);
    for root in [top, root] {
        let partial = sandbox.dir.path().join("inside/.target.gemba-partial");
        let mut largest = 0;
        let stopped = export(&mut store, root, &sandbox.target(), &options, &mut |_| {
            let part = fs::metadata(partial.join("part"));
            largest = largest.max(part.map_or(0, |part| part.len()));
            ControlFlow::Continue(())
        });
        assert!(
            matches!(
                stopped,
                Err(ExportError::Quota {
                    limit: 0x10_0000,
                    unit: "bytes",
                    ..
                })
            ),
            "{stopped:?}"
        );
        assert!((1..=1 << 20).contains(&largest), "{largest}");
        // The same limit stops it again: nothing is kept for a next try.
        assert!(!partial.exists());
        sandbox.check();
    }
    let mut top = directory(&mut store, &[]);
    for _ in 0..40 {
        top = directory(&mut store, &[(b"a", top), (b"b", top)]);
    }
    let stopped = sandbox.export(&mut store, top, &options);
    assert!(matches!(
        stopped,
        Err(ExportError::Quota {
            limit: 1000,
            unit: "entries",
            ..
        })
    ));
    sandbox.clear();
    let mut top = directory(&mut store, &[]);
    for _ in 0..100_000 {
        top = directory(&mut store, &[(b"a", top)]);
    }
    let stopped = sandbox.export(&mut store, top, &options);
    assert!(
        matches!(
            stopped,
            Err(ExportError::Read {
                source: ReadError::TooDeep { .. },
                ..
            })
        ),
        "{stopped:?}"
    );
}

/// Set-uid bits and odd times of a stranger's DAG do no harm; ordinary ones are set.
#[test]
fn attributes_of_strangers_are_tamed() {
    let sandbox = Sandbox::new();
    let mut store = Memory::default();
    let mut put = |mode, mtime| {
        let mut data = FsData::new(Kind::File);
        data.data = Some(Bytes::from_static(b"x"));
        data.mode = mode;
        data.mtime = mtime;
        store.put(Block::dag_pb(dagpb::encode(std::iter::empty(), Some(&data.encode()))).unwrap())
    };
    let suid = put(
        Some(0o6755),
        Some(Mtime {
            seconds: 1_000_000,
            nanos: 5,
        }),
    );
    let odd = put(
        Some(u32::MAX),
        Some(Mtime {
            seconds: 5,
            nanos: u32::MAX,
        }),
    );
    let root = directory(&mut store, &[(b"odd", odd), (b"suid", suid)]);
    sandbox.export(&mut store, root, &quick()).unwrap();
    let meta = fs::metadata(sandbox.target().join("suid")).unwrap();
    assert_eq!(
        (meta.mode() & 0o7777, meta.mtime(), meta.mtime_nsec()),
        (0o755, 1_000_000, 5)
    );
    assert_eq!(
        fs::metadata(sandbox.target().join("odd")).unwrap().mode() & 0o7000,
        0
    );
}
