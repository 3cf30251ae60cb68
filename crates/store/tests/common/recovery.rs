//! Packs that were changed by a script: what the fuzz target `pack_recovery` and its replay run.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_block::Block;
use gemba_segment::Disk;
use gemba_store::{Config, Store};
use gemba_testkit::disk::SimDisk;

const DIR: &str = "/repo/blocks";

/// Files of a store are cut, overwritten, lengthened and exchanged: it opens or says why not, gives out nothing but the right bytes,
/// and takes blocks again.
///
/// # Panics
/// If one of that does not hold.
pub fn pack_recovery(bytes: &[u8]) {
    let blocks: Vec<Block> = (0..40_u8)
        .map(|n| Block::raw(vec![n; 1 + usize::from(n) * 37 % 900]).expect("small"))
        .collect();
    let disk = SimDisk::new(7);
    let config = Config::default().pack_bytes(8 << 10);
    {
        let store = open(&disk, &config).expect("a new store opens");
        for some in blocks.chunks(7) {
            store.put_many(some).expect("nothing fails yet");
        }
        let cids: Vec<_> = blocks.iter().step_by(5).map(|b| *b.cid()).collect();
        store.delete_many(&cids).expect("nothing fails yet");
    }
    // Without a clean shutdown where the script begins with an odd byte.
    let disk = match bytes.first().is_some_and(|b| b % 2 == 1) {
        true => disk.kill(),
        false => disk.reopen(),
    };
    for act in bytes.chunks(6).skip(1).take(64) {
        change(&disk, act);
    }
    let Ok(store) = open(&disk, &config) else {
        return;
    };
    let right = |found: Option<bytes::Bytes>, block: &Block| {
        assert!(
            found.is_none_or(|found| found == *block.data()),
            "{block:?}"
        );
    };
    for block in &blocks {
        right(store.get(block.cid()).unwrap_or_default(), block);
    }
    let _ = store.verify(&mut |_| ControlFlow::Continue(()));
    if store.put_many(&blocks).is_ok() {
        for block in &blocks {
            let found = store.get(block.cid());
            assert!(
                matches!(&found, Ok(Some(f)) if f == block.data()),
                "{found:?}"
            );
        }
        drop(store);
        let store = open(&disk.kill(), &config).expect("what was put opens again");
        for block in &blocks {
            let found = store.get(block.cid());
            assert!(
                matches!(&found, Ok(Some(f)) if f == block.data()),
                "{found:?}"
            );
        }
    }
}

fn open(disk: &SimDisk, config: &Config) -> Result<Store, gemba_store::OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    Store::open_on(disk, DIR, config.clone())
}

/// One act of the script on one file.
fn change(disk: &SimDisk, act: &[u8]) {
    let at = |n: usize| act.get(n).copied().unwrap_or(0);
    let mut files: Vec<PathBuf> = disk
        .list(Path::new(DIR))
        .unwrap_or_default()
        .into_iter()
        .map(|name| Path::new(DIR).join(name))
        .collect();
    files.sort();
    let (Some(file), Some(other)) = (
        files.get(usize::from(at(1)) % files.len().max(1)),
        files.get(usize::from(at(2)) % files.len().max(1)),
    ) else {
        return;
    };
    let offset = usize::from(u16::from_be_bytes([at(3), at(4)]));
    let value = at(5);
    let place = |len: usize| offset % len.max(1);
    match at(0) % 6 {
        0 => disk.edit(file, |bytes| {
            let place = place(bytes.len());
            if let Some(byte) = bytes.get_mut(place) {
                *byte ^= value.max(1);
            }
        }),
        1 => disk.edit(file, |bytes| bytes.truncate(place(bytes.len()))),
        2 => disk.edit(file, |bytes| {
            bytes.resize(bytes.len() + offset % 5000, value);
        }),
        3 => {
            let taken = disk.bytes(other).unwrap_or_default();
            disk.install(file, taken);
        }
        4 => disk.edit(file, |bytes| {
            let place = place(bytes.len());
            let end = bytes.len().min(place + usize::from(value));
            bytes[place..end].fill(0);
        }),
        _ => {
            let taken = disk.bytes(file).unwrap_or_default();
            disk.edit(other, |bytes| {
                let place = place(bytes.len());
                let piece = taken.iter().skip(place).take(usize::from(value) * 8);
                bytes.extend(piece);
            });
        }
    }
}
