//! Import out of the files of a Kubo repository: all that is whole comes over, all that is not is told, nothing is written there.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cid::multibase::Base;
use gemba_block::{Block, MhCode};
use gemba_store::{Config, KuboError, KuboImport, SkipReason, Store};
use gemba_testkit::Rng;

/// Where flatfs puts a key: a folder of the next-to-last two letters.
fn place(repo: &Path, key: &[u8]) -> PathBuf {
    let name = Base::Base32Upper.encode(key);
    let shard = &name[name.len() - 3..name.len() - 1];
    repo.join("blocks").join(shard).join(format!("{name}.data"))
}

fn write(path: &Path, bytes: &[u8]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, bytes).unwrap();
}

/// A repository with blocks under the names of old and new versions.
fn repository(dir: &Path, count: usize) -> Vec<Block> {
    write(
        &dir.join("blocks/SHARDING"),
        b"/repo/flatfs/shard/v1/next-to-last/2\n",
    );
    write(&dir.join("blocks/_README"), b"This is a repository of ...");
    write(&dir.join("blocks/diskUsage.cache"), b"{}");
    write(&dir.join("blocks/.temp/CIQ"), b"half a block");
    let mut rng = Rng::new(4);
    (0..count)
        .map(|i| {
            let len = 1 + rng.below(3000) as usize;
            let data = rng.bytes(len);
            let block = match i % 3 {
                0 => Block::raw(data),
                1 => Block::v0(data),
                _ => Block::encode(0x55, MhCode::Blake3, data),
            };
            let block = block.unwrap();
            let key = if i % 5 == 0 {
                block.cid().to_bytes()
            } else {
                block.cid().hash().to_bytes()
            };
            write(&place(dir, &key), block.data());
            block
        })
        .collect()
}

/// Every file with its bytes.
fn snapshot(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut ahead = vec![dir.to_path_buf()];
    while let Some(dir) = ahead.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            if kind.is_dir() {
                ahead.push(path);
            } else if kind.is_file() {
                all.insert(path.clone(), fs::read(&path).unwrap());
            }
        }
    }
    all
}

/// S4.23: the blocks come over without a CAR between, in bounded batches, and once more costs nothing.
#[test]
fn s4_23_the_blocks_of_a_kubo_repository_come_over() {
    let (repo, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = repository(repo.path(), 300);
    let before = snapshot(repo.path());
    let store = Store::open(dir.path(), Config::default()).unwrap();
    for (round, from) in [repo.path().to_path_buf(), repo.path().join("blocks")]
        .iter()
        .enumerate()
    {
        let mut import = KuboImport::open(from).unwrap();
        let (mut new, mut present, mut steps, mut last) = (0, 0, 0, 0);
        loop {
            let step = import.step(&store, 20_000).unwrap();
            assert!(step.skipped.is_empty(), "{:?}", step.skipped);
            assert!(step.put.bytes < 23_000 && step.thousandths >= last);
            new += step.put.new;
            present += step.put.present;
            steps += 1;
            last = step.thousandths;
            if step.done {
                break;
            }
        }
        assert!(steps > 20 && last == 1000);
        assert_eq!((new, present), [(300, 0), (0, 300)][round]);
    }
    for block in &all {
        assert_eq!(store.get(block.cid()).unwrap().as_ref(), Some(block.data()));
    }
    assert_eq!(snapshot(repo.path()), before);
}

/// What is damaged, strange or hostile is left out, each with its reason; the rest comes over.
#[test]
fn s4_23_what_is_no_block_is_left_out_with_its_reason() {
    let (repo, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let all = repository(repo.path(), 20);
    let key = |text: &str| Block::raw(text.to_owned()).unwrap().cid().hash().to_bytes();
    let at = |key: &[u8]| place(repo.path(), key);
    write(&at(&key("damaged")), b"damaqed");
    write(&at(&key("cut")), b"");
    write(&at(&key("too large")), &vec![0; (2 << 20) + 1]);
    // sha1 of nothing in particular, cut to ten bytes.
    write(&at(&[&[0x11, 10][..], &[7; 10]].concat()), b"weak");
    write(&repo.path().join("blocks/AB/put-12345"), b"left behind");
    write(&repo.path().join("blocks/AB/notes.data"), b"somebody's");
    fs::create_dir_all(at(&key("folder"))).unwrap();
    let mut expected = vec![
        "Hash",
        "Name",
        "Name",
        "NotAFile",
        "TooLarge",
        "WrongBytes",
        "WrongBytes",
    ];
    #[cfg(unix)]
    {
        let link = at(&key("link"));
        fs::create_dir_all(link.parent().unwrap()).unwrap();
        std::os::unix::fs::symlink("/dev/zero", link).unwrap();
        expected.push("NotAFile");
    }
    let store = Store::open(dir.path(), Config::default()).unwrap();
    let step = KuboImport::open(repo.path())
        .unwrap()
        .step(&store, usize::MAX)
        .unwrap();
    assert!(step.done);
    assert_eq!(step.put.new, 20);
    assert_eq!(step.files as usize, 20 + expected.len());
    let mut reasons: Vec<_> = step
        .skipped
        .iter()
        .map(|file| match file.reason {
            SkipReason::Name => "Name",
            SkipReason::NotAFile => "NotAFile",
            SkipReason::TooLarge(_) => "TooLarge",
            SkipReason::Hash(_) => "Hash",
            SkipReason::WrongBytes => "WrongBytes",
            ref other => panic!("{other}"),
        })
        .collect();
    reasons.sort_unstable();
    expected.sort_unstable();
    assert_eq!(reasons, expected);
    assert_eq!(store.stat().blocks, all.len() as u64);
}

/// A repository whose blocks are not in files is told what else helps.
#[test]
fn another_datastore_is_told_the_way_by_car() {
    let dir = tempfile::tempdir().unwrap();
    let error = KuboImport::open(dir.path()).unwrap_err();
    assert!(matches!(error, KuboError::NoFlatfs(_)));
    assert!(error.to_string().contains("ipfs dag export"));
}
