//! What a rotten disk, absurd offsets and impatient callers can do, by somebody who did not write the crate.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use gemba_segment::{
    Access, Disk, EXTEND, Entry, FILE_HEADER, Frame, GroupCommit, Identity, Kind, LeaderDied,
    MAX_LISTED, MAX_PAYLOAD, MAX_TAG, Mode, Opened, ReadError, RealDisk, State, WriteError, create,
    frame_len, open,
};
use gemba_testkit::alloc::{CountingAlloc, measure};
use gemba_testkit::disk::SimDisk;

#[global_allocator]
static ALLOC: CountingAlloc = CountingAlloc;

const ID: Identity = Identity {
    purpose: *b"HOST",
    number: u32::MAX,
    salt: u64::MAX,
};

fn path() -> &'static Path {
    Path::new("f")
}

fn frame(tag: &[u8], payload: &[u8]) -> Frame<Vec<u8>> {
    Frame::new(Kind(255), tag.to_vec(), payload.to_vec()).unwrap()
}

fn look(disk: &dyn Disk, path: &Path, access: Access) -> (Opened, Vec<Entry>) {
    let mut seen = Vec::new();
    let opened = open(disk, path, ID, access, &mut |entry| seen.push(entry)).unwrap();
    (opened, seen)
}

/// A disk that rotted in more places than a report lists: the footer must not name a frame as whole that was not shown.
#[test]
fn seg_40_a_footer_names_no_damaged_frame_however_many_there_are() {
    let frames: Vec<_> = (0..3 * MAX_LISTED as u16)
        .map(|i| frame(&i.to_be_bytes(), &[0x11; 8]))
        .collect();
    let sim = SimDisk::new(1);
    create(&sim, path(), ID).unwrap().commit(&frames).unwrap();
    sim.edit(path(), |bytes| {
        for i in (0..frames.len()).step_by(2) {
            bytes[FILE_HEADER + (i + 1) * frame_len(2, 8) as usize - 1] ^= 1;
        }
    });
    let (opened, whole) = look(&sim, path(), Access::Write);
    assert_eq!(opened.report.ambiguous.len(), MAX_LISTED);
    assert_eq!(whole.len(), frames.len() / 2);
    let State::Damaged(damaged) = opened.state else {
        panic!("{:?}", opened.state);
    };
    damaged.seal(&opened.report).unwrap();

    let (sealed, named) = look(&sim, path(), Access::Read);
    assert!(matches!(sealed.state, State::Sealed(_)));
    assert_eq!(named, whole);
    assert_eq!(sealed.report, opened.report);
}

/// Nothing but beginnings of frames with the longest tag: one window of memory, and no frame.
#[test]
fn seg_2_a_file_of_nothing_but_magic_costs_one_window() {
    let mut bytes = ID.header().to_vec();
    bytes.extend([0xf7, b'g', b'm', b'f', 0xff, 0xff, 0, 0].repeat(128 << 10));
    let sim = SimDisk::new(1);
    sim.install(path(), bytes);
    let ((opened, seen), used) = measure(|| look(&sim, path(), Access::Read));
    assert!(seen.is_empty() && opened.report.cut.is_some());
    assert!(used.peak < 1 << 20, "{used:?}");
}

/// The largest frame there may be, the smallest, and offsets and lengths at the ends of their types, on a real disk.
#[test]
fn seg_22_every_offset_and_length_is_answered_and_none_is_believed() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("f");
    let tag = [0xf7; MAX_TAG];
    let mut writer = create(&RealDisk, &at, ID).unwrap();
    let offsets = writer
        .commit(&[
            frame(&tag, &vec![0xf7; MAX_PAYLOAD]),
            frame(&[], &[]),
            frame(&tag, &[]),
        ])
        .unwrap();
    assert!(matches!(
        Frame::new(Kind(16), vec![0; MAX_TAG + 1], []),
        Err(WriteError::TooLarge)
    ));
    assert!(matches!(
        Frame::new(Kind(16), vec![], vec![0; MAX_PAYLOAD + 1]),
        Err(WriteError::TooLarge)
    ));
    let end = writer.end();
    writer.close().unwrap();

    let (opened, seen) = look(&RealDisk, &at, Access::Write);
    assert_eq!(seen.iter().map(|e| e.at).collect::<Vec<_>>(), offsets);
    let read = |at, tag, len| opened.reader.read(at, tag, len, true);
    assert!(read(offsets[0], MAX_TAG, MAX_PAYLOAD).is_ok());
    for at in [
        0,
        1,
        offsets[1] + 1,
        end + 1,
        i64::MAX as u64,
        u64::MAX - 1,
        u64::MAX,
    ] {
        assert!(read(at, 0, 0).is_err(), "{at}");
    }
    for (tag, len) in [(usize::MAX, 0), (0, usize::MAX), (usize::MAX, usize::MAX)] {
        assert!(matches!(
            read(offsets[1], tag, len),
            Err(ReadError::Damaged { .. })
        ));
    }
    assert!(opened.reader.walk(0).next_step().unwrap().is_none());
}

/// Readers ask for each frame the moment its offset is known, while the file grows, is set longer ahead, is closed and cut.
#[test]
fn a_frame_can_be_read_by_everybody_from_the_moment_its_offset_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("f");
    let mut writer = create(&RealDisk, &at, ID).unwrap();
    let (reader, known) = (writer.reader(), AtomicU64::new(0));
    let (len, count) = (EXTEND as usize / 20, 60);
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                let mut next = 0;
                while next < count {
                    if next == known.load(Ordering::Acquire) {
                        std::thread::yield_now();
                        continue;
                    }
                    let at = FILE_HEADER as u64 + next * frame_len(8, len);
                    let frame = reader.read(at, 8, len, true).unwrap();
                    assert_eq!(frame.tag(), next.to_be_bytes());
                    next += 1;
                }
            });
        }
        for i in 0..count {
            let mut payload = vec![i as u8; len];
            payload[0] = 0xf7;
            writer.append(&[frame(&i.to_be_bytes(), &payload)]).unwrap();
            known.fetch_add(1, Ordering::Release);
        }
        writer.close().unwrap();
    });
    let (opened, seen) = look(&RealDisk, &at, Access::Read);
    assert!(opened.report.is_clean() && seen.len() as u64 == count);
}

/// A flush that answers for fewer, or more, than it was given is the caller's mistake: it dies, and nobody else waits for ever.
#[test]
fn a_flush_that_miscounts_its_answers_leaves_nobody_asleep() {
    for answers in [0, 2, 5] {
        let commit = Arc::new(GroupCommit::<u32, u32>::new(usize::MAX));
        let (wrong, started) = (Arc::clone(&commit), Arc::new(AtomicU64::new(0)));
        let flag = Arc::clone(&started);
        let leader = std::thread::spawn(move || {
            wrong.submit(0, |_| {
                flag.store(1, Ordering::Release);
                while wrong.waiting() < 3 {
                    std::thread::yield_now();
                }
                vec![7; answers]
            })
        });
        while started.load(Ordering::Acquire) == 0 {
            std::thread::yield_now();
        }
        let others: Vec<_> = (1..4)
            .map(|i| {
                let commit = Arc::clone(&commit);
                std::thread::spawn(move || commit.submit(i, |items| items))
            })
            .collect();
        assert!(leader.join().is_err());
        for (i, other) in (1..4).zip(others) {
            assert!(
                matches!(other.join().unwrap(), Ok(n) if n == i),
                "{LeaderDied}"
            );
        }
        assert_eq!(commit.waiting(), 0);
    }
}

/// A folder where a file should be, a name below a file, and a name that cannot be: errors of the disk, nothing made.
#[test]
fn a_path_that_is_no_file_is_an_error_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(
        dir.path().join("taken"),
        b"somebody's notes, longer than a header",
    )
    .unwrap();
    for name in ["", "taken/below", "nul\0", &"x".repeat(256), "taken"] {
        let at = dir.path().join(name);
        assert!(create(&RealDisk, &at, ID).is_err(), "{name:?}");
    }
    assert!(RealDisk.open(dir.path(), Mode::Write).is_err());
    let missing = RealDisk.open(&dir.path().join("missing"), Mode::Write);
    assert_eq!(missing.unwrap_err().kind(), io::ErrorKind::NotFound);
    assert_eq!(RealDisk.list(dir.path()).unwrap(), ["taken"]);
    let notes = std::fs::read(dir.path().join("taken")).unwrap();
    assert_eq!(notes, b"somebody's notes, longer than a header");
}

/// Somebody stores the files of a segment in the segment: frames, marks and footers with the right identity lie inside payloads. Cut
/// behind any of them, and with the frame around them damaged at every byte of its head, nothing inside is ever taken for a frame or a
/// footer of the file.
#[test]
fn a_file_that_holds_itself_is_not_taken_for_its_content() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap().remembering();
    let first: Vec<_> = (0..20_u8).map(|i| frame(&[i], &[i; 100])).collect();
    writer.commit(&first).unwrap();
    let open_file = sim.bytes(path()).unwrap();
    writer.seal(|_| unreachable!("it remembers")).unwrap();
    let sealed_file = sim.bytes(path()).unwrap();

    for inner in [&open_file, &sealed_file] {
        let sim = SimDisk::new(2);
        let mut writer = create(&sim, path(), ID).unwrap();
        let mut offsets = writer.commit(&first).unwrap();
        let (around, after) = (frame(b"itself", inner), frame(b"after", b"it"));
        offsets.extend(writer.commit(&[around]).unwrap());
        let end_of_inner = writer.end();
        offsets.extend(writer.commit(&[after]).unwrap());
        let whole = sim.bytes(path()).unwrap();
        let outer = offsets[first.len()];
        let is_ours = |entry: &Entry| offsets.contains(&entry.at);

        // The file ends where the inner one ends, as if it were sealed; or anywhere in its last part.
        for less in (0..200).chain([1000, inner.len() as u64]) {
            let sim = SimDisk::new(3);
            sim.install(path(), whole[..(end_of_inner - less) as usize].to_vec());
            let (opened, seen) = look(&sim, path(), Access::Write);
            assert!(!matches!(opened.state, State::Sealed(_)), "{less}");
            assert!(seen.iter().all(is_ours) && seen.len() >= first.len());
        }
        // The head around it is damaged, and the search for the next frame goes through it.
        for at in outer..outer + frame_len(6, 0) {
            for bits in [0xff, 1] {
                let mut damaged = whole.clone();
                damaged[at as usize] ^= bits;
                let sim = SimDisk::new(4);
                sim.install(path(), damaged);
                let (_, seen) = look(&sim, path(), Access::Read);
                assert!(seen.iter().all(is_ours), "{at}");
                let last = seen.last().unwrap().at;
                assert_eq!(
                    last,
                    *offsets.last().unwrap(),
                    "{at}: what is behind it is found"
                );
            }
        }
    }
}
