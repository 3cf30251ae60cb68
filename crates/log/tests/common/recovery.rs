//! Segments that were changed by a script: what the fuzz target `log_segment_recover` and its replay run.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gemba_log::{
    Config, FeedId, Log, LogError, MemorySigner, NewEvent, OpenError, Seq, StreamName,
};
use gemba_segment::Disk;
use gemba_testkit::disk::SimDisk;

const DIR: &str = "/repo/log";

/// Files of a log are cut, overwritten, lengthened and exchanged: it opens or says why not, serves nothing but what was appended, and takes
/// events again.
///
/// # Panics
/// If one of that does not hold.
pub fn log_segment_recover(bytes: &[u8]) {
    let disk = SimDisk::new(7);
    let mut right: BTreeMap<(FeedId, Seq), Vec<u8>> = BTreeMap::new();
    {
        let log = open(&disk).expect("a new log opens");
        for i in 0..40_u8 {
            let stream = name(i % 3);
            let payload = vec![i; 1 + usize::from(i) * 37 % 600];
            let done = log.append(&stream, &[NewEvent::new(0, payload.clone())]);
            let done = done.expect("nothing fails yet");
            right.insert((done.feed, done.first_seq), payload);
        }
    }
    // Without an orderly end where the script begins with an odd byte.
    let disk = match bytes.first().is_some_and(|b| b % 2 == 1) {
        true => disk.kill(),
        false => disk.reopen(),
    };
    for act in bytes.chunks(6).skip(1).take(64) {
        change(&disk, act);
    }
    let Ok(log) = open(&disk) else {
        return;
    };
    check(&log, &right);
    let _ = log.verify(|_| ControlFlow::Continue(()));
    check(&log, &right);
    if let Ok(done) = log.append(&name(0), &[NewEvent::new(0, "more")]) {
        let read = log.read(&done.feed, done.first_seq, 1);
        assert!(
            matches!(&read, Ok(events) if events[0].payload == "more"),
            "{read:?}"
        );
        right.insert((done.feed, done.first_seq), b"more".to_vec());
    }
    drop(log);
    let again = open(&disk).expect("what opened once opens again");
    check(&again, &right);
}

fn name(which: u8) -> StreamName {
    ["a", "b/c", "d"][usize::from(which)]
        .parse()
        .expect("a name")
}

fn open(disk: &SimDisk) -> Result<Log, OpenError> {
    let disk: Arc<dyn Disk> = Arc::new(disk.clone());
    let config = Config::default().segment_bytes(4 << 10).reserve(0);
    let signer = Arc::new(MemorySigner::from_seed(&[1; 32]));
    Log::open(disk, Path::new(DIR), config, signer).map(|(log, _)| log)
}

/// Nothing but what was appended, where it was appended.
fn check(log: &Log, right: &BTreeMap<(FeedId, Seq), Vec<u8>>) {
    for head in log.heads() {
        let mut cursor = log.cursor(&head.feed, head.low);
        for _ in 0..1_000 {
            match cursor.next_batch() {
                Ok(Some(batch)) => {
                    for event in batch.events() {
                        let known = right.get(&(head.feed.clone(), event.seq));
                        assert_eq!(known.map(Vec::as_slice), Some(event.payload));
                    }
                }
                Ok(None) => break,
                Err(LogError::Damaged { from, to, .. }) => {
                    assert!(to > from);
                    cursor.seek(to);
                }
                Err(_) => break,
            }
        }
    }
}

/// One act: what, to which file, where, and a byte.
fn change(disk: &SimDisk, act: &[u8]) {
    let at = |i: usize| act.get(i).copied().unwrap_or_default();
    let file = |which: u8| -> PathBuf {
        match which % 8 {
            0 => Path::new(DIR).join("version"),
            which => Path::new(DIR).join(format!("{which:08}.seg")),
        }
    };
    let path = file(at(1));
    let Some(old) = disk.bytes(&path) else { return };
    let place = usize::from(at(2)) << 8 | usize::from(at(3));
    let place = place % old.len().max(1);
    match at(0) % 6 {
        0 => disk.edit(&path, |bytes| bytes.truncate(place)),
        1 if !old.is_empty() => disk.flip_bit(&path, place as u64 * 8 + u64::from(at(4) % 8)),
        2 => disk.edit(&path, |bytes| {
            bytes.extend(std::iter::repeat_n(at(4), usize::from(at(5)) * 16));
        }),
        3 => {
            // A piece of the file over another place of it.
            let len = usize::from(at(5)) * 4;
            let from = usize::from(at(4)) * 16 % old.len().max(1);
            disk.edit(&path, |bytes| {
                for i in 0..len {
                    if let Some(byte) = old.get(from + i)
                        && let Some(to) = bytes.get_mut(place + i)
                    {
                        *to = *byte;
                    }
                }
            });
        }
        4 => {
            // A file takes the name of another one.
            if let Some(other) = disk.bytes(&file(at(4))) {
                disk.install(&path, other);
            }
        }
        _ => {
            let _ = disk.unlink(&path);
        }
    }
}
