//! The clauses of specs/segment.md, one by one.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;

use gemba_segment::{
    Access, Disk, Entry, FILE_HEADER, FRAME_HEADER, Frame, FrameHeader, Gap, HeaderFault, Identity,
    Kind, OpenError, Opened, ReadError, State, WriteError, Writer, create, frame_len, open,
};
use gemba_testkit::Rng;
use gemba_testkit::disk::{Call, SimDisk};
use proptest::prelude::*;

const KIND: Kind = Kind(16);
const ID: Identity = Identity {
    purpose: *b"TEST",
    number: 7,
    salt: 0x1234_5678_9abc_def0,
};

fn path() -> &'static Path {
    Path::new("f")
}

fn frame(tag: &[u8], payload: &[u8]) -> Frame<Vec<u8>> {
    Frame::new(KIND, tag.to_vec(), payload.to_vec()).unwrap()
}

/// A file of groups, each one flush; `close` or killed.
fn written(groups: &[&[Frame<Vec<u8>>]], close: bool) -> SimDisk {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    for group in groups {
        writer.commit(group).unwrap();
    }
    if close {
        writer.close().unwrap();
    }
    sim
}

fn reopen(sim: &SimDisk, access: Access) -> (Opened, Vec<Entry>) {
    let mut seen = Vec::new();
    let opened = open(sim, path(), ID, access, &mut |entry| seen.push(entry)).unwrap();
    (opened, seen)
}

fn tags(entries: &[Entry]) -> Vec<String> {
    entries
        .iter()
        .map(|e| String::from_utf8_lossy(&e.tag).into_owned())
        .collect()
}

fn writer(opened: Opened) -> Writer {
    match opened.state {
        State::Open {
            writer: Some(writer),
            ..
        } => writer,
        other => panic!("{other:?}"),
    }
}

/// Offset of the nth frame when every frame has a tag of 1 and a payload of 100 bytes.
fn nth(n: u64) -> u64 {
    FILE_HEADER as u64 + n * frame_len(1, 100)
}

fn hundred(tag: &str) -> Frame<Vec<u8>> {
    frame(tag.as_bytes(), &[tag.as_bytes()[0]; 100])
}

fn smash(sim: &SimDisk, at: u64) {
    sim.edit(path(), |bytes| bytes[at as usize] ^= 0x55);
}

#[test]
fn seg_1_groups_come_back_in_order_and_go_on() {
    let sim = written(&[&[hundred("a"), hundred("b")], &[hundred("c")]], false);
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "b", "c"]);
    assert!(opened.report.is_clean());
    for entry in &seen {
        let read = opened.reader.read(entry.at, 1, 100, true).unwrap();
        assert_eq!(read.payload(), [entry.tag[0]; 100]);
    }
    let mut writer = writer(opened);
    writer.commit(&[hundred("d")]).unwrap();
    drop(writer);
    assert_eq!(tags(&reopen(&sim, Access::Read).1), ["a", "b", "c", "d"]);
}

#[test]
fn seg_3_a_torn_end_is_cut_and_the_file_goes_on() {
    let sim = written(&[&[hundred("a")], &[hundred("b")]], false);
    sim.edit(path(), |bytes| bytes.truncate(nth(2) as usize - 10));
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a"]);
    assert_eq!(opened.report.cut.unwrap().at, nth(1));
    assert_eq!(opened.report.damaged_bytes, 0);
    let mut writer = writer(opened);
    assert_eq!(writer.commit(&[hundred("c")]).unwrap(), [nth(1)]);
    drop(writer);
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "c"]);
    assert!(opened.report.is_clean());
}

/// Reading only: the same is seen, nothing is changed.
#[test]
fn seg_3_readers_cut_nothing() {
    let sim = written(&[&[hundred("a")], &[hundred("b")]], false);
    sim.edit(path(), |bytes| bytes.truncate(nth(2) as usize - 10));
    let (before, ops) = (sim.bytes(path()), sim.ops());
    let (opened, seen) = reopen(&sim, Access::Read);
    assert_eq!(tags(&seen), ["a"]);
    assert!(opened.report.cut.is_some());
    assert_eq!((sim.bytes(path()), sim.ops()), (before, ops));
}

/// A later frame says that this was durable: it is damage, and the file takes nothing more but a footer, which remembers.
#[test]
fn seg_4_damage_before_the_last_group_is_reported_for_ever() {
    let sim = written(&[&[hundred("a")], &[hundred("b")], &[hundred("c")]], false);
    smash(&sim, nth(1) + 9);
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "c"]);
    let gap = Gap {
        at: nth(1),
        len: frame_len(1, 100),
    };
    assert_eq!(opened.report.damage, [gap]);
    let State::Damaged(damaged) = opened.state else {
        panic!("it may be appended to");
    };
    damaged.seal(&opened.report).unwrap();
    let (opened, seen) = reopen(&sim, Access::Write);
    assert!(matches!(opened.state, State::Sealed(_)));
    assert_eq!(tags(&seen), ["a", "c"]);
    assert_eq!(opened.report.damage, [gap]);
}

/// Large payloads are passed over unread; a damaged header between them does not hide what stands behind it.
#[test]
fn seg_4_a_gap_between_large_frames_is_found() {
    let large = |tag: &str| frame(tag.as_bytes(), &[7; 300_000]);
    let groups = [[large("a")], [large("b")], [large("c")], [hundred("d")]];
    let groups: Vec<&[_]> = groups.iter().map(|group| &group[..]).collect();
    let sim = written(&groups, false);
    let second = FILE_HEADER as u64 + frame_len(1, 300_000);
    smash(&sim, second + 9);
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "c", "d"]);
    let gap = Gap {
        at: second,
        len: frame_len(1, 300_000),
    };
    assert_eq!(opened.report.damage, [gap]);
}

/// In the last group before an unclean stop nobody can tell; frames behind the gap are kept.
#[test]
fn seg_4_a_gap_in_the_last_group_is_called_ambiguous() {
    let group = [hundred("a"), hundred("b"), hundred("c")];
    for byte in [9, FRAME_HEADER as u64 + 50] {
        let sim = written(&[&group], false);
        smash(&sim, nth(1) + byte);
        let (opened, seen) = reopen(&sim, Access::Write);
        assert_eq!(tags(&seen), ["a", "c"]);
        assert_eq!(opened.report.ambiguous.len(), 1);
        assert_eq!(opened.report.damaged_bytes, 0);
        let State::Damaged(damaged) = opened.state else {
            panic!("it may be appended to");
        };
        damaged.seal(&opened.report).unwrap();
        let (opened, seen) = reopen(&sim, Access::Write);
        assert_eq!(tags(&seen), ["a", "c"]);
        assert_eq!(opened.report.ambiguous_bytes, frame_len(1, 100));
        assert_eq!(opened.report.damaged_bytes, 0);
    }
}

/// Regression: the power went while a file with an ambiguous gap got its footer; the half footer made damage of the gap.
#[test]
fn seg_21_a_half_written_footer_proves_nothing_about_a_gap() {
    let sim = written(&[&[hundred("a"), hundred("b"), hundred("c")]], false);
    smash(&sim, nth(1) + 9);
    let (opened, _) = reopen(&sim, Access::Write);
    let State::Damaged(damaged) = opened.state else {
        panic!("it may be appended to");
    };
    damaged.seal(&opened.report).unwrap();
    // All of the footer but its seal.
    sim.edit(path(), |bytes| bytes.truncate(bytes.len() - 20));
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "c"]);
    assert_eq!(
        (opened.report.damaged_bytes, opened.report.ambiguous.len()),
        (0, 1)
    );
}

/// Regression: the flush of a new file's header failed and the process died; the header was never written again.
#[test]
fn seg_30_the_header_of_a_new_file_is_written_again_too() {
    let sim = SimDisk::new(1);
    sim.fail(Call::Sync, 1, 1);
    assert!(create(&sim, path(), ID).is_err());
    sim.sync_dir(Path::new("")).unwrap();
    let sim = sim.kill();
    let (opened, _) = reopen(&sim, Access::Write);
    writer(opened).commit(&[hundred("a")]).unwrap();
    let after = sim.power_cut(&mut Rng::new(1));
    let (opened, seen) = reopen(&after, Access::Write);
    assert_eq!(tags(&seen), ["a"]);
    assert!(opened.report.is_clean());
}

/// After an orderly stop the same flip is damage, wherever it is.
#[test]
fn seg_4_after_a_close_all_damage_is_damage() {
    for n in 0..3 {
        let sim = written(&[&[hundred("a"), hundred("b"), hundred("c")]], true);
        smash(&sim, nth(n) + 9);
        let (opened, _) = reopen(&sim, Access::Write);
        assert_eq!(opened.report.damage.len(), 1, "frame {n}");
        assert_eq!(opened.report.ambiguous_bytes, 0);
        assert!(opened.report.cut.is_none());
    }
}

#[test]
fn seg_5_after_a_failed_flush_nothing_more_is_written() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    writer.commit(&[hundred("a")]).unwrap();
    sim.fail(Call::Sync, 1, 1);
    assert!(matches!(
        writer.commit(&[hundred("b")]),
        Err(WriteError::Poisoned(_))
    ));
    // The disk would say yes now.
    assert!(matches!(
        writer.commit(&[hundred("c")]),
        Err(WriteError::Poisoned(_))
    ));
    assert!(matches!(writer.sync(), Err(WriteError::Poisoned(_))));
    assert!(writer.is_poisoned());
    drop(writer);
    assert_eq!(tags(&reopen(&sim, Access::Write).1), ["a"]);
}

#[test]
fn a_write_that_finds_no_room_is_taken_back_and_the_next_one_works() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    writer.commit(&[hundred("a")]).unwrap();
    sim.fail(Call::WriteFull, 1, 1);
    assert!(matches!(
        writer.commit(&[hundred("b"), hundred("c")]),
        Err(WriteError::Full(_))
    ));
    sim.fail(Call::WriteShort, 1, 3);
    assert_eq!(writer.commit(&[hundred("d")]).unwrap(), [nth(1)]);
    sim.faults()
        .assert_fired(&["short write", "enospc write"], 1);
    drop(writer);
    assert_eq!(tags(&reopen(&sim, Access::Write).1), ["a", "d"]);
}

#[test]
fn seg_10_an_unfinished_creation_is_made_anew() {
    for len in [0, 5, FILE_HEADER] {
        let sim = SimDisk::new(1);
        sim.install(path(), vec![0; len]);
        let (opened, seen) = reopen(&sim, Access::Write);
        assert!(matches!(opened.state, State::Unfinished) && seen.is_empty());
        let mut writer = create(&sim, path(), ID).unwrap();
        writer.commit(&[hundred("a")]).unwrap();
        assert_eq!(tags(&reopen(&sim, Access::Write).1), ["a"]);
        assert!(create(&sim, path(), ID).is_err(), "frames are overwritten");
    }
}

#[test]
fn seg_11_newer_and_foreign_files_are_refused() {
    let sim = written(&[&[hundred("a")]], true);
    let other = Identity { number: 8, ..ID };
    let refused = open(&sim, path(), other, Access::Write, &mut |_| {});
    assert!(matches!(
        refused,
        Err(OpenError::Header(HeaderFault::Foreign(7)))
    ));
    sim.edit(path(), |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
    });
    let refused = open(&sim, path(), ID, Access::Write, &mut |_| {});
    assert!(matches!(
        refused,
        Err(OpenError::Header(HeaderFault::Newer(2)))
    ));
}

#[test]
fn seg_12_without_its_header_a_file_still_gives_its_frames_and_stays_as_it_is() {
    let sim = written(&[&[hundred("a")], &[hundred("b")]], true);
    smash(&sim, 3);
    let before = sim.bytes(path());
    let (opened, seen) = reopen(&sim, Access::Write);
    assert_eq!(tags(&seen), ["a", "b"]);
    assert_eq!(opened.report.damage[0].at, 0);
    let State::Damaged(damaged) = opened.state else {
        panic!("it may be appended to");
    };
    assert_eq!(damaged.seal(&opened.report).unwrap(), None);
    assert_eq!(sim.bytes(path()), before);
}

/// Frames inside payloads, of other files, or at another offset are no frames here, also where recovery searches.
#[test]
fn seg_20_only_frames_of_this_file_at_their_own_offset_count() {
    let payload = [9; 40];
    let fake = |identity: &Identity, at: u64| {
        let header = FrameHeader {
            kind: KIND,
            tag_len: 1,
            len: 40,
            payload_crc: crc32c::crc32c(&payload),
            durable: 32,
        };
        let mut bytes = header.encode(identity, at, b"x").to_vec();
        bytes.push(b'x');
        bytes.extend_from_slice(&payload);
        bytes
    };
    // The frame that carries them begins at 32, its payload at 61.
    let inside = FILE_HEADER as u64 + frame_len(1, 0);
    let other = Identity { salt: 1, ..ID };
    for hostile in [fake(&other, inside), fake(&ID, inside + 1)] {
        let sim = written(&[&[frame(b"a", &hostile)], &[hundred("b")]], false);
        smash(&sim, FILE_HEADER as u64 + 5);
        assert_eq!(tags(&reopen(&sim, Access::Write).1), ["b"]);
    }
    // The counter-proof: with salt and offset right it would have been taken.
    let sim = written(
        &[&[frame(b"a", &fake(&ID, inside))], &[hundred("b")]],
        false,
    );
    smash(&sim, FILE_HEADER as u64 + 5);
    assert_eq!(tags(&reopen(&sim, Access::Write).1), ["x", "b"]);
}

#[test]
fn seg_22_a_reader_gets_what_it_asks_for_or_an_error() {
    let sim = written(&[&[hundred("a"), hundred("b")]], true);
    let (opened, _) = reopen(&sim, Access::Read);
    let reader = &opened.reader;
    assert!(reader.read(nth(1), 1, 100, true).is_ok());
    for (at, tag, len) in [
        (nth(1), 1, 99),
        (nth(1), 2, 99),
        (nth(1) + 1, 1, 100),
        (nth(9), 1, 100),
        (nth(1), 1, usize::MAX),
    ] {
        let read = reader.read(at, tag, len, true);
        assert!(matches!(read, Err(ReadError::Damaged { .. })), "{at}");
    }
}

/// SEG-30 is shown by the store's crash harness with its planted bugs; here: it happens, and only for the last group.
#[test]
fn seg_30_the_last_group_is_written_again_before_it_is_relied_on() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    writer.commit(&[hundred("a")]).unwrap();
    writer.append(&[hundred("b")]).unwrap();
    let sim = sim.kill();
    assert_eq!(tags(&reopen(&sim, Access::Write).1), ["a", "b"]);
    for seed in 0..20 {
        let after = sim.power_cut(&mut Rng::new(seed));
        assert_eq!(tags(&reopen(&after, Access::Write).1), ["a", "b"]);
    }
}

#[test]
fn seg_40_a_sealed_file_opens_by_its_footer_and_without_it() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    let mut all = Vec::new();
    // More entries than one index frame holds.
    for i in 0..20_u32 {
        let group: Vec<_> = (0..1000_u32)
            .map(|j| frame(&[i.to_le_bytes(), j.to_le_bytes()].concat(), b"x"))
            .collect();
        let offsets = writer.commit(&group).unwrap();
        all.extend(offsets.into_iter().zip(group).map(|(at, frame)| Entry {
            at,
            kind: KIND,
            tag: frame.tag().to_vec(),
            len: 1,
        }));
    }
    writer
        .seal(|push| {
            all.iter().for_each(push);
            Ok(())
        })
        .unwrap();
    let (opened, seen) = reopen(&sim, Access::Write);
    let State::Sealed(footer) = opened.state else {
        panic!("it is not sealed");
    };
    assert_eq!((footer.entries(), &seen), (20_000, &all));
    // Any damage to the footer, and the file is walked.
    let len = sim.bytes(path()).unwrap().len() as u64;
    let mut rng = Rng::new(4);
    for _ in 0..5 {
        let hurt = sim.kill();
        smash(
            &hurt,
            footer.index_at() + rng.below(len - footer.index_at()),
        );
        let (opened, seen) = reopen(&hurt, Access::Read);
        assert!(!matches!(opened.state, State::Sealed(_)));
        assert_eq!(seen, all);
    }
}

/// A footer that was remembered is, byte for byte, the one that a walk finds; of a file that was begun earlier nothing is remembered.
#[test]
fn seg_40_a_remembered_footer_is_the_one_that_a_walk_gives() {
    let write = |remember: bool| {
        let sim = SimDisk::new(1);
        let mut writer = create(&sim, path(), ID).unwrap();
        if remember {
            writer = writer.remembering();
        }
        let mut all = Vec::new();
        // More entries than one index frame holds, in groups of many sizes; one group is refused by the disk.
        for i in 0..90_u32 {
            let group: Vec<_> = (0..i)
                .map(|j| frame(&[7; 99], &j.to_le_bytes()[..(j % 5) as usize]))
                .collect();
            if i == 40 {
                sim.set_capacity(sim.used() + 10);
                assert!(writer.commit(&group).is_err());
                sim.set_capacity(u64::MAX);
            }
            let offsets = writer.commit(&group).unwrap();
            all.extend(offsets.into_iter().zip(group).map(|(at, frame)| Entry {
                at,
                kind: KIND,
                tag: frame.tag().to_vec(),
                len: frame.payload().len() as u32,
            }));
        }
        writer
            .seal(|push| {
                assert!(!remember, "a writer that remembers does not ask");
                all.iter().for_each(push);
                Ok(())
            })
            .unwrap();
        sim.bytes(path()).unwrap()
    };
    let walked = write(false);
    assert!(walked.len() > 256 << 10);
    assert_eq!(write(true), walked);
}

/// A length that was set ahead is no damage, costs nothing at the end, and is gone after an orderly stop.
#[test]
fn the_length_is_set_ahead_for_small_groups_only() {
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    writer.commit(&[hundred("a")]).unwrap();
    let ahead = sim.bytes(path()).unwrap().len() as u64;
    assert!(ahead > writer.end());
    let (opened, _) = reopen(&sim.kill(), Access::Write);
    assert!(opened.report.is_clean());
    writer.close().unwrap();
    assert_eq!(
        sim.bytes(path()).unwrap().len() as u64,
        nth(1) + frame_len(0, 0)
    );
    let sim = SimDisk::new(1);
    let mut writer = create(&sim, path(), ID).unwrap();
    writer.commit(&[frame(b"a", &[1; 9000])]).unwrap();
    assert_eq!(sim.bytes(path()).unwrap().len() as u64, writer.end());
}

/// Regression: the flush of a close mark failed and the process died; the mark was believed to be on disk.
#[test]
fn a_close_mark_that_was_never_flushed_harms_nothing() {
    for seed in 0..20 {
        let sim = written(&[&[hundred("a")]], false);
        let (opened, _) = reopen(&sim, Access::Write);
        sim.sync_dir(Path::new("")).unwrap();
        sim.fail(Call::Sync, 1, 1);
        sim.fail(Call::SetLen, 1, 9);
        assert!(writer(opened).close().is_err());
        let sim = sim.kill();
        let (opened, _) = reopen(&sim, Access::Write);
        writer(opened).commit(&[hundred("b")]).unwrap();
        let after = sim.power_cut(&mut Rng::new(seed));
        let (opened, seen) = reopen(&after, Access::Write);
        assert_eq!(tags(&seen), ["a", "b"]);
        assert!(opened.report.is_clean());
    }
}

/// Closing twice in a row adds one mark only.
#[test]
fn an_untouched_file_is_not_marked_again() {
    let sim = written(&[&[hundred("a")]], true);
    let bytes = sim.bytes(path());
    for _ in 0..3 {
        let (opened, _) = reopen(&sim, Access::Write);
        writer(opened).close().unwrap();
        assert_eq!(sim.bytes(path()), bytes);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// SEG-2, SEG-6: any bytes behind a good header open; no frame is shown that was not written.
    #[test]
    fn seg_2_any_bytes_open(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        let sim = SimDisk::new(1);
        let mut file = ID.header().to_vec();
        file.extend_from_slice(&bytes);
        sim.install(path(), file);
        let (_, seen) = reopen(&sim, Access::Write);
        prop_assert!(seen.is_empty());
        let disk: Arc<dyn Disk> = Arc::new(sim);
        let again = open(disk.as_ref(), path(), ID, Access::Write, &mut |_| {});
        prop_assert!(again.is_ok());
    }

    /// Headers read back as they were written, and no other bit pattern is taken for them.
    #[test]
    fn a_header_reads_back(kind: u8, tag: Vec<u8>, len in 0_u32..(16 << 20), crc: u32, at in 32_u64..1 << 50, bit: usize) {
        let tag = &tag[..tag.len().min(255)];
        let header = FrameHeader {
            kind: Kind(kind),
            tag_len: tag.len() as u8,
            len,
            payload_crc: crc,
            durable: at / 2,
        };
        let mut bytes = header.encode(&ID, at, tag).to_vec();
        bytes.extend_from_slice(tag);
        prop_assert_eq!(FrameHeader::decode(&ID, at, &bytes), Some((header, tag)));
        prop_assert_eq!(FrameHeader::decode(&ID, at + 1, &bytes), None);
        let bit = bit % (bytes.len() * 8);
        bytes[bit / 8] ^= 1 << (bit % 8);
        prop_assert_eq!(FrameHeader::decode(&ID, at, &bytes), None);
    }
}
