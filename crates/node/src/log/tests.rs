//! What goes wrong with events: nothing is lost, hidden, or given to nobody.

use std::sync::Arc;

use gemba_log::{Batch, Config, MemorySigner, NewEvent, Retention};
use gemba_segment::RealDisk;
use gemba_testkit::disk::{Call, SimDisk};

use super::consumers::Goal;
use super::wire::{AckRequest, ClaimRequest, Claimed};
use super::*;

pub(super) fn open(dir: &std::path::Path, config: Config) -> Events {
    open_as(7, dir, config)
}

/// As another author.
fn open_as(author: u8, dir: &std::path::Path, config: Config) -> Events {
    let signer = Arc::new(MemorySigner::from_seed(&[author; 32]));
    Events::open_in(dir, Arc::new(RealDisk), config, signer).unwrap()
}

pub(super) fn append(events: &Events, stream: &str, payloads: impl IntoIterator<Item = Vec<u8>>) {
    let list: Vec<NewEvent> = payloads
        .into_iter()
        .map(|payload| NewEvent::new(1_000, payload))
        .collect();
    for ack in events.append(&parse_stream(stream).unwrap(), &list) {
        ack.unwrap();
    }
}

/// A page is bounded by bytes, too, and nothing is left out between two of them.
#[test]
fn a_reader_of_large_events_holds_a_page_of_a_mebibyte_and_one_event() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    let size = 300 << 10;
    append(&events, "hall/a", (0..20).map(|n| vec![n; size]));
    let query = Query {
        pattern: parse_pattern("hall/#").unwrap(),
        author: None,
        from: 0,
        since: None,
    };
    let mut cursor = events.begin(&query).unwrap();
    let (mut seen, mut more) = (Vec::new(), true);
    while more {
        let before = seen.len();
        let read = events.read(&query, &mut cursor, PAGE, |_, event| {
            seen.push(event.seq);
            Ok(())
        });
        more = read.unwrap();
        assert!((seen.len() - before) * size <= PAGE_BYTES + size);
    }
    assert_eq!(seen, (0..20).collect::<Vec<_>>());
}

/// A page is bounded whatever its events are made of: nothing but headers, of few large texts or of many small ones. Each author chooses that.
#[test]
fn a_reader_of_large_headers_holds_no_more() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    let headers = |pairs: usize, bytes: usize| {
        (0..pairs).fold(gemba_log::Headers::default(), |headers, n| {
            headers.pair(format!("{n:02}"), "v".repeat(bytes))
        })
    };
    for (pairs, bytes) in [(1, 6_000), (64, 200), (64, 1)] {
        let event = NewEvent::new(1, "").with(headers(pairs, bytes));
        let stream = parse_stream(&format!("hall/{pairs}-{bytes}")).unwrap();
        for ack in events.append(&stream, &vec![event; 1_024]) {
            ack.unwrap();
        }
        let query = Query {
            pattern: parse_pattern(&stream.to_string()).unwrap(),
            author: None,
            from: 0,
            since: None,
        };
        let (mut cursor, mut seen, mut more) = (Cursor::default(), 0, true);
        while more {
            let mut page = Vec::new();
            let read = events.read(&query, &mut cursor, PAGE, |part, event| {
                page.push(wire::line(part, event));
                Ok(())
            });
            more = read.unwrap();
            let held = page.iter().map(|line| {
                let user = &line.headers.as_ref().unwrap().user;
                let texts = user.iter().map(|(key, value)| key.len() + value.len() + 64);
                size_of::<wire::EventLine>() + texts.sum::<usize>()
            });
            assert!(held.sum::<usize>() <= 2 << 20, "{pairs} pairs of {bytes}");
            seen += page.len();
        }
        assert_eq!(seen, 1_024);
        // So is a portion of a consumer.
        let mut wish = request(1);
        wish.streams = vec![stream.to_string()];
        wish.batch = Some(1_024);
        let name = format!("c-{pairs}-{bytes}");
        let claimed = events.consumers().claim(&name, &wish).unwrap().unwrap();
        assert!(claimed.events.len() * (pairs * bytes) <= 5 << 20);
        events.consumers().leave(&name, 1).unwrap();
    }
}

fn request(worker: u64) -> ClaimRequest {
    ClaimRequest {
        worker,
        streams: vec!["hall/#".to_owned()],
        batch: Some(8),
        ..ClaimRequest::default()
    }
}

/// What a worker of a consumer of this name gets.
pub(super) fn claim_of(events: &Events, name: &str, stream: &str) -> Claimed {
    let wish = ClaimRequest {
        streams: vec![stream.to_owned()],
        ..request(1)
    };
    let claimed = events.consumers().claim(name, &wish).unwrap();
    claimed.unwrap_or_default()
}

fn claim(events: &Events, worker: u64) -> Claimed {
    let claimed = events.consumers().claim("c", &request(worker)).unwrap();
    claimed.unwrap_or_default()
}

fn seqs(claimed: &Claimed) -> Vec<u64> {
    claimed.events.iter().map(|event| event.event.seq).collect()
}

fn ack(events: &Events, token: u64, seq: u64) -> Result<(), Fail> {
    let request = AckRequest {
        token,
        seq,
        ..AckRequest::default()
    };
    events.consumers().acknowledge("c", request)
}

fn refuse(events: &Events, token: u64, seq: u64) {
    let request = AckRequest {
        token,
        seq,
        refused: Some("no".to_owned()),
        ..AckRequest::default()
    };
    events.consumers().acknowledge("c", request).unwrap();
}

fn small(n: u64) -> impl Iterator<Item = Vec<u8>> {
    (0..n).map(|n| n.to_string().into_bytes())
}

/// A token of before a restart belongs to nobody, however many claims there are: a worker that comes late acknowledges nothing of another's.
#[test]
fn l8_a_token_of_before_is_not_one_of_another_worker() {
    let dir = tempfile::tempdir().unwrap();
    let old = {
        let events = open(dir.path(), Config::default());
        append(&events, "hall/a", small(8));
        let claimed = claim(&events, 1);
        assert_eq!(seqs(&claimed), (0..8).collect::<Vec<_>>());
        events.close();
        claimed.token
    };
    let events = open(dir.path(), Config::default());
    // What was given when the process ended comes in smaller portions, in order.
    let claimed = claim(&events, 2);
    assert_eq!(claimed.events[0].event.seq, 0);
    assert_eq!(ack(&events, old, 0).unwrap_err().code, Code::Conflict);
    assert_eq!(events.consumers().view("c").unwrap().lag, 8);
    ack(&events, claimed.token, 0).unwrap();
    assert_eq!(events.consumers().view("c").unwrap().lag, 7);
}

/// A worker whose claim never reached it asks again: it gets the same events, and an acknowledgement is not one of what it never saw.
#[test]
fn l8_an_answer_that_got_lost_loses_no_event() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(20));
    let lost = claim(&events, 1);
    let again = claim(&events, 1);
    assert_eq!(seqs(&again), seqs(&lost));
    assert_eq!(
        ack(&events, lost.token, 7).unwrap_err().code,
        Code::Conflict
    );
    ack(&events, again.token, 7).unwrap();
    assert_eq!(seqs(&claim(&events, 1)), (8..16).collect::<Vec<_>>());
}

/// A portion that is bounded by bytes and not by number is followed by the event behind it.
#[test]
fn l8_large_events_are_all_given() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default().compress(false));
    append(&events, "hall/a", (0..30).map(|n| vec![n; 400 << 10]));
    let mut seen = Vec::new();
    let mut wish = request(1);
    wish.batch = Some(16);
    while let Some(claimed) = events.consumers().claim("c", &wish).unwrap() {
        seen.extend(seqs(&claimed));
        ack(&events, claimed.token, *seen.last().unwrap()).unwrap();
    }
    assert_eq!(seen, (0..30).collect::<Vec<_>>());
}

/// The last of a portion is refused first: those before it are not done for that.
#[test]
fn l9_a_refusal_is_of_one_event_alone() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(8));
    let claimed = claim(&events, 1);
    refuse(&events, claimed.token, 7);
    events.consumers().leave("c", 1).unwrap();
    let mut open = seqs(&claim(&events, 2));
    open.truncate(7);
    assert_eq!(open, (0..7).collect::<Vec<_>>());
}

/// Refused ones at the end are passed when those before them are done, and come again by themselves, each to be acknowledged alone.
#[test]
fn l9_what_was_refused_comes_again_and_each_is_acknowledged() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(8));
    let claimed = claim(&events, 1);
    for seq in [5, 6, 7] {
        refuse(&events, claimed.token, seq);
    }
    ack(&events, claimed.token, 4).unwrap();
    let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let again = loop {
        let again = claim(&events, 1);
        if !again.events.is_empty() {
            break again;
        }
        assert!(std::time::Instant::now() < until);
        std::thread::sleep(std::time::Duration::from_millis(20));
    };
    assert_eq!(seqs(&again), [5, 6, 7]);
    ack(&events, again.token, 5).unwrap();
    ack(&events, again.token, 6).unwrap();
    ack(&events, again.token, 7).unwrap();
    let view = events.consumers().view("c").unwrap();
    assert_eq!((view.lag, view.feeds[0].waiting), (0, 0));
}

/// S3.4: a consumer that begins at the tail stays there, even if it is opened again before it had its first event.
#[test]
fn s3_4_a_tail_is_kept_over_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    {
        let events = open(dir.path(), Config::default());
        append(&events, "hall/a", small(5));
        let mut wish = request(1);
        wish.start = Some("tail".to_owned());
        assert!(events.consumers().claim("c", &wish).unwrap().is_none());
        events.close();
    }
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(1));
    assert_eq!(seqs(&claim(&events, 1)), [5]);
}

/// L11: retention keeps what a consumer of this node has not had, also when nobody has worked through it since the start.
#[test]
fn l11_retention_keeps_what_a_consumer_needs_that_is_not_open() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config::default().segment_bytes(1 << 20).compress(false);
    let fill = |events: &Events| {
        for n in 0..16 {
            append(events, "hall/a", [vec![n; 300 << 10]]);
        }
    };
    {
        let events = open(dir.path(), config());
        append(&events, "hall/a", small(1));
        assert_eq!(seqs(&claim(&events, 1)), [0]);
        fill(&events);
        events.close();
    }
    let events = open(dir.path(), config());
    let low = |events: &Events| {
        let feeds = events.log().feeds(&parse_pattern("hall/#").unwrap());
        events.log().head(&feeds[0]).unwrap().low
    };
    let keep = Some(std::time::Duration::ZERO);
    events.retain(keep, i64::MAX);
    assert_eq!(low(&events), 0);
    assert_eq!(claim(&events, 1).events[0].event.seq, 0);

    // It is the consumer that holds them, and nothing else.
    events.consumers().seek("c", Goal::Tail).unwrap();
    events.retain(keep, i64::MAX);
    assert!(low(&events) > 0);
}

/// What is damaged on disk is passed over: a reader gets all before and all behind it, once, and learns the end.
#[test]
fn l7_a_reader_passes_over_what_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default().compress(false));
    for n in 0..12_u8 {
        append(&events, "hall/a", [vec![b'a' + n; 4_000]]);
        append(&events, "hall/b", [vec![b'A' + n; 100]]);
    }
    // Two batches of one feed are overwritten.
    let folder = dir.path().join("events");
    let mut hurt = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let Ok(mut bytes) = std::fs::read(&path) else {
            continue;
        };
        for letter in [b'e', b'f'] {
            let found = bytes.windows(64).position(|window| window == [letter; 64]);
            if let Some(at) = found {
                bytes[at + 10] ^= 0xff;
                hurt += 1;
            }
        }
        if hurt > 0 {
            use std::os::unix::fs::FileExt as _;
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.write_all_at(&bytes, 0).unwrap();
            break;
        }
    }
    assert_eq!(hurt, 2);
    let what = Query {
        pattern: parse_pattern("hall/#").unwrap(),
        author: None,
        from: 0,
        since: None,
    };
    for page in [1, 3, PAGE] {
        let mut cursor = events.begin(&what).unwrap();
        let mut seen = Vec::new();
        let mut pages = 0;
        while events
            .read(&what, &mut cursor, page, |part, event| {
                seen.push((part.feed.stream.to_string(), event.seq));
                Ok(())
            })
            .unwrap()
        {
            pages += 1;
            assert!(pages < 100, "a reader turns on the spot");
        }
        seen.sort();
        let whole = |stream: &str, seq: u64| (stream.to_owned(), seq);
        let a = (0..12).filter(|seq| ![4, 5].contains(seq));
        let expected: Vec<_> = a
            .map(|seq| whole("hall/a", seq))
            .chain((0..12).map(|seq| whole("hall/b", seq)))
            .collect();
        assert_eq!(seen, expected, "pages of {page}");
    }
    let counts = events.counts();
    assert!(counts.damaged >= 2, "{counts:?}");
    assert_eq!(events.troubles(&counts)[0].kind, "events_damaged");
    assert_eq!(counts.damaged_indexes, 0);
    let rotten = EventCounts {
        damaged_indexes: 1,
        ..EventCounts::default()
    };
    assert_eq!(events.troubles(&rotten)[0].kind, "events_index_damaged");
    // The newest ones are found in spite of it, over all feeds together.
    let mut cursor = events.tail(&what, 3);
    let mut newest = Vec::new();
    events
        .read(&what, &mut cursor, PAGE, |part, event| {
            newest.push((part.feed.stream.to_string(), event.seq));
            Ok(())
        })
        .unwrap();
    newest.sort();
    let of = |stream: &str, seq| (stream.to_owned(), seq);
    assert_eq!(
        newest,
        [of("hall/a", 11), of("hall/b", 10), of("hall/b", 11)]
    );
    // As many as anybody may ask for costs no memory for each.
    assert_eq!(events.tail(&what, u64::MAX).places().count(), 0);
}

/// Retention holds the log while it asks consumers: a consumer that is opened at that time does not wait for it for ever.
#[test]
fn retention_and_consumers_that_open_do_not_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(3));
    std::thread::scope(|scope| {
        for t in 0..2 {
            let events = &events;
            scope.spawn(move || {
                for n in 0..20 {
                    if t == 0 {
                        let name = format!("c-{n}");
                        events.consumers().claim(&name, &request(1)).unwrap();
                    } else {
                        events.retain(Some(std::time::Duration::ZERO), i64::MAX);
                    }
                }
            });
        }
    });
    let needs = events.consumers().needs();
    let held = |feed: &FeedId| needs.of(feed);
    let retention = Retention {
        max_bytes: Some(0),
        before: None,
        low_water: &held,
        danger_drop_needed: false,
    };
    events.log().retain(&retention).unwrap();
    assert_eq!(events.consumers().list().unwrap().len(), 20);
}

/// L11: a consumer that nobody needs any more held back retention for ever; it is forgotten, with what its workers kept, and one of its name begins anew.
#[test]
fn l11_a_consumer_that_is_forgotten_holds_back_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let config = || Config::default().segment_bytes(1 << 20).compress(false);
    let keep = Some(std::time::Duration::ZERO);
    let low = |events: &Events| {
        let heads = events.log().heads_of(&parse_pattern("hall/#").unwrap());
        heads[0].low
    };
    {
        let events = open(dir.path(), config());
        append(&events, "hall/a", small(1));
        let claimed = claim(&events, 1);
        let request = AckRequest {
            token: claimed.token,
            seq: 0,
            state: Some(serde_json::json!(17)),
            refused: None,
        };
        events.consumers().acknowledge("c", request).unwrap();
        for n in 0..16 {
            append(&events, "hall/a", [vec![n; 300 << 10]]);
        }
        // A worker holds events: it takes an explicit word.
        assert!(!claim(&events, 1).events.is_empty());
        let held = events.consumers().forget("c", false).unwrap_err();
        assert_eq!(held.code, Code::Conflict);
        assert!(held.hint.contains("--force"), "{held}");
        events.consumers().leave("c", 1).unwrap();
        // So it does while one waits for some.
        let waits = events.consumers().waits("c", 1);
        let held = events.consumers().forget("c", false).unwrap_err();
        assert!(held.cause.contains("wait"), "{held}");
        drop(waits);
        events.retain(keep, i64::MAX);
        assert_eq!(low(&events), 0);
        let nobody = events.consumers().forget("nobody", true).unwrap_err();
        assert_eq!(nobody.code, Code::NotFound);

        let lost = claim(&events, 1);
        events.consumers().forget("c", true).unwrap();
        assert_eq!(
            ack(&events, lost.token, 1).unwrap_err().code,
            Code::NotFound
        );
        events.retain(keep, i64::MAX);
        assert!(low(&events) > 0);
        assert!(events.consumers().list().unwrap().is_empty());
        events.close();
    }
    let events = open(dir.path(), config());
    assert!(events.consumers().list().unwrap().is_empty());
    let anew = claim(&events, 1);
    assert_eq!((anew.events[0].event.seq, anew.state), (low(&events), None));
    events.close();
    drop(events);
    // One that nobody has opened since the start.
    let events = open(dir.path(), config());
    events.consumers().forget("c", false).unwrap();
    assert_eq!(events.consumers().counts().0, 0);
}

/// S3.29: a worker reads on without acknowledging what it has, and one acknowledgement at the end is for all of it.
#[test]
fn s3_29_a_worker_reads_on_and_acknowledges_once() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(20));
    let read_on = |token: u64, worker: u64| {
        let wish = ClaimRequest {
            read_on: Some(token),
            ..request(worker)
        };
        events.consumers().claim("c", &wish)
    };
    let first = claim(&events, 1);
    let second = read_on(first.token, 1).unwrap().unwrap();
    assert_eq!(seqs(&second), (8..16).collect::<Vec<_>>());
    let stranger = read_on(first.token, 2).unwrap_err();
    assert_eq!(stranger.code, Code::Conflict);
    // As if the second answer had been lost: what is behind it would be acknowledged with it.
    let again = read_on(first.token, 1).unwrap_err();
    assert_eq!(again.code, Code::Conflict);
    let third = read_on(second.token, 1).unwrap().unwrap();
    assert_eq!(seqs(&third), (16..20).collect::<Vec<_>>());
    assert!(read_on(third.token, 1).unwrap().is_none());
    // What comes meanwhile is read on, too.
    append(&events, "hall/a", small(1));
    let fourth = read_on(third.token, 1).unwrap().unwrap();
    assert_eq!(seqs(&fourth), [20]);
    assert_eq!(events.consumers().view("c").unwrap().lag, 21);
    ack(&events, second.token, 9).unwrap();
    assert_eq!(events.consumers().view("c").unwrap().lag, 11);
    ack(&events, fourth.token, 20).unwrap();
    assert_eq!(events.consumers().view("c").unwrap().lag, 0);
}

/// S3.29, LH-42: whoever reads on by a token that is over is told so. It gets neither what it was given before nor another feed, as if that stood behind.
#[test]
fn s3_29_nobody_reads_on_when_its_lease_is_over() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(2));
    append(&events, "hall/b", small(2));
    let wish = |worker, read_on| ClaimRequest {
        lease_ms: Some(100),
        read_on,
        ..request(worker)
    };
    let claim = |worker, read_on| events.consumers().claim("c", &wish(worker, read_on));
    let held = claim(1, None).unwrap().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    // Another one's claim finds that it has run out.
    let other = claim(2, None).unwrap().unwrap();
    assert_eq!(other.events[0].event.seq, 0);
    let over = claim(1, Some(held.token)).unwrap_err();
    assert_eq!(over.code, Code::Conflict);
    assert!(over.cause.contains("over"), "{over:?}");
    assert_eq!(
        ack(&events, held.token, 1).unwrap_err().code,
        Code::Conflict
    );
}

/// Batches of all feeds of the author, from one log to another.
fn copy(from: &Events, to: &Events) {
    for head in from.log().heads() {
        let chunk = from.log().range(&head.feed, head.low, 1 << 30).unwrap();
        for block in chunk.blocks {
            let batch = Batch::from_block(&block).unwrap();
            to.log().append_replica(batch).unwrap();
        }
    }
}

fn texts(name: &str, n: u64) -> Vec<Vec<u8>> {
    (0..n).map(|i| format!("{name}{i}").into_bytes()).collect()
}

/// Epoch, number, whether it is of a second history, payload.
type Seen = (u64, u64, bool, String);

fn seen(part: &Part, event: &Event) -> Seen {
    let text = String::from_utf8(event.payload.to_vec()).unwrap();
    (part.feed.epoch.0, event.seq, part.branch.is_some(), text)
}

/// L5: a device was cloned, and both wrote on with the same numbers. Whoever reads gets both histories, each event once, and can tell them apart; a
/// reader that stops anywhere goes on there.
#[test]
fn l5_both_histories_of_a_forked_feed_are_read_and_flagged() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    // The same key twice, and the same beginning.
    let one = open(folders[0].path(), Config::default());
    let two = open(folders[1].path(), Config::default());
    for log in [&one, &two] {
        append(log, "hall/a", texts("both", 3));
    }
    append(&one, "hall/a", texts("one", 5));
    append(&two, "hall/a", texts("two", 5));
    append(&two, "hall/a", texts("late", 4));
    let reader = open_as(9, folders[2].path(), Config::default());
    copy(&one, &reader);
    let query = Query {
        pattern: parse_pattern("hall/#").unwrap(),
        author: None,
        from: 0,
        since: None,
    };
    // One that has read to the end of what there was.
    let mut early = reader.begin(&query).unwrap();
    let mut all = Vec::new();
    let take = |cursor: &mut Cursor, page: usize, into: &mut Vec<Seen>| {
        let read = reader.read(&query, cursor, page, |part, event| {
            into.push(seen(part, event));
            Ok(())
        });
        read.unwrap()
    };
    while take(&mut early, PAGE, &mut all) {}
    assert_eq!(all.len(), 8);
    copy(&two, &reader);

    let named = |name: &str, n: u64, first: u64, is_second: bool| {
        let one = |i: u64| (0, first + i, is_second, format!("{name}{i}"));
        (0..n).map(one).collect::<Vec<Seen>>()
    };
    let first = [named("both", 3, 0, false), named("one", 5, 3, false)].concat();
    let second = [named("two", 5, 3, true), named("late", 4, 8, true)].concat();
    while take(&mut early, PAGE, &mut all) {}
    assert_eq!(all, [first.clone(), second.clone()].concat());
    // From the start, in pages of any size, and by places that a client gives back.
    for page in [1, 4, PAGE] {
        let mut cursor = reader.begin(&query).unwrap();
        let mut all = Vec::new();
        while take(&mut cursor, page, &mut all) {
            let places: Vec<(Part, Seq)> = cursor
                .places()
                .map(|(part, seq)| (part.clone(), seq))
                .collect();
            cursor = reader.after(&query, &places).unwrap();
        }
        for is_second in [false, true] {
            let of: Vec<Seen> = all
                .iter()
                .filter(|one| one.2 == is_second)
                .cloned()
                .collect();
            assert_eq!(
                of,
                if is_second {
                    second.clone()
                } else {
                    first.clone()
                }
            );
        }
    }
    let mut newest = Vec::new();
    let mut cursor = reader.tail(&query, 4);
    while take(&mut cursor, PAGE, &mut newest) {}
    assert_eq!(newest, second[5..]);
    let since = Query {
        since: Some(2_000),
        ..query.clone()
    };
    let mut cursor = reader.begin(&since).unwrap();
    assert!(!take(&mut cursor, PAGE, &mut newest));

    // The catalogue and the verification tell of it, and the node's state.
    let streams = reader.catalogue(&parse_pattern("hall/a").unwrap(), 1_000);
    let branch = &streams[0].branches[0];
    assert_eq!((branch.from, branch.next, branch.epoch), (3, 12, 0));
    let verified = reader.verify().unwrap();
    assert!(verified.ok && verified.branches == streams[0].branches);
    // Whose, of which stream, and what to do, stand in it.
    let told = reader.troubles(&reader.counts()).remove(0);
    let by = format!("{} in hall/a, epoch 0, from event 3 on", branch.author);
    assert_eq!(told.kind, "events_forked");
    assert!(
        told.cause.contains(&by) && told.cause.contains("gemba init"),
        "{}",
        told.cause
    );
    let troubles = reader.troubles(&reader.counts());
    assert_eq!(troubles[0].kind, "events_forked");
    let line = wire::line(
        &Part {
            feed: reader.log().heads()[0].feed.clone(),
            branch: Some(branch.branch.parse().unwrap()),
        },
        &reader
            .log()
            .read(&reader.log().heads()[0].feed, 0, 1)
            .unwrap()[0],
    );
    assert_eq!(line.branch.as_ref(), Some(&branch.branch));
}

/// L5, S3.42: a backup of the repository came back and others have more of this node than it does. It writes no second event under a number that was
/// given, whether it has met anybody or not, and says so.
#[test]
fn l5_a_log_that_was_copied_goes_on_in_a_new_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let places = |events: &Events| {
        let acks = events.append(
            &parse_stream("hall/a").unwrap(),
            &[NewEvent::new(1, "x"), NewEvent::new(1, "y")],
        );
        acks.into_iter()
            .map(|ack| ack.map(|ack| (ack.epoch, ack.seq)).unwrap())
            .collect::<Vec<_>>()
    };
    for from in [0, 2] {
        // Opening it again where it is changes nothing.
        let events = open(&old, Config::default());
        assert_eq!(places(&events), [(0, from), (0, from + 1)]);
        assert!(events.troubles(&events.counts()).is_empty());
        events.close();
    }
    copy_folder(&old, &new);
    // The first one goes on after the backup was made.
    let events = open(&old, Config::default());
    assert_eq!(places(&events), [(0, 4), (0, 5)]);
    let restored = open(&new, Config::default());
    let kinds = |events: &Events| -> Vec<String> {
        let troubles = events.troubles(&events.counts()).into_iter();
        troubles.map(|trouble| trouble.kind).collect()
    };
    assert_eq!(kinds(&restored), ["events_copied"]);
    // No epoch that the first one begins when its end is in doubt: those count up.
    const DRAWN: u64 = 1 << 50;
    let (epoch, seq) = places(&restored)[0];
    assert!(epoch >= DRAWN && seq == 0, "{epoch} {seq}");
    // Others show what it had written: that is no fork.
    copy(&events, &restored);
    assert_eq!(kinds(&restored), ["events_returned", "events_copied"]);
    // What it writes to now nobody else has begun.
    assert_eq!(places(&restored), [(epoch, 2), (epoch, 3)]);
    assert_eq!(restored.log().stat().forks, 0);
    restored.close();
    drop(restored);
    // Once is enough, but for streams that are written to for the first time since.
    let restored = open(&new, Config::default());
    assert!(kinds(&restored).is_empty());
    assert_eq!(places(&restored)[0], (epoch, 4));
    let other = parse_stream("hall/b").unwrap();
    let ack = restored.append(&other, &[NewEvent::new(1, "x")]).remove(0);
    assert!(ack.unwrap().epoch >= DRAWN);
    // By hand, for copies that nothing tells from the first.
    restored.begin_epochs().unwrap();
    let (by_hand, seq) = places(&restored)[0];
    assert!(by_hand > epoch && seq == 0, "{by_hand} {seq}");
}

/// LOG-5: the epochs of copies are drawn, of a copy of a copy, too, and of one that had no event of its own when it was copied. No two begin the same.
#[test]
fn l5_no_two_copies_of_a_repository_begin_the_same_epoch() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let first = open(&at("first"), Config::default());
    first.close();
    drop(first);
    copy_folder(&at("first"), &at("copy"));
    let place = |events: &Events, name: &str| {
        let mut acks = events.append(&parse_stream(name).unwrap(), &[NewEvent::new(1, "x")]);
        let ack = acks.remove(0).unwrap();
        (name.to_owned(), ack.epoch, ack.seq)
    };
    let mut given = std::collections::BTreeSet::new();
    for name in ["first", "copy"] {
        let events = open(&at(name), Config::default());
        // It has written nothing that others could have more of.
        assert!(events.troubles(&events.counts()).is_empty());
        let place = place(&events, "hall/a");
        assert!(given.insert(place.clone()), "{place:?} is given twice");
        events.close();
    }
    // As high as any that is drawn first.
    let born = at("copy").join("events.born");
    let noted = std::fs::read_to_string(&born).unwrap();
    let made = noted.lines().next().unwrap();
    std::fs::write(&born, format!("{made}\n{}\n", (1_u64 << 51) - 1)).unwrap();
    for n in 0..8 {
        let name = at(&format!("copy-{n}"));
        copy_folder(&at("copy"), &name);
        let events = open(&name, Config::default());
        assert_eq!(events.troubles(&events.counts())[0].kind, "events_copied");
        for stream in ["hall/a", "hall/new"] {
            let place = place(&events, stream);
            assert!(given.insert(place.clone()), "{place:?} is given twice");
        }
        events.close();
    }
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy_folder(&entry.path(), &to),
            false => drop(std::fs::copy(entry.path(), to).unwrap()),
        }
    }
}

/// L13, L4: that events are not written is told by the node's state, with the cause and what to do, and is over when they are.
#[test]
fn l13_a_log_that_cannot_write_says_so_in_the_state_of_the_node() {
    let dir = tempfile::tempdir().unwrap();
    let sim = SimDisk::new(1);
    let over = |config: Config| {
        let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
        Events::open_in(dir.path(), Arc::new(sim.clone()), config, signer).unwrap()
    };
    let told = |events: &Events| {
        let troubles = events.troubles(&events.counts()).into_iter();
        troubles
            .map(|trouble| (trouble.kind, trouble.cause))
            .collect::<Vec<_>>()
    };
    let events = over(Config::default().reserve(0).compress(false));
    append(&events, "hall/a", small(1));
    assert!(told(&events).is_empty());
    let stream = parse_stream("hall/a").unwrap();
    sim.set_capacity(sim.used() + 1_000);
    let large = [NewEvent::new(1, vec![b'x'; 100 << 10])];
    assert!(events.append(&stream, &large)[0].is_err());
    let (kind, cause) = told(&events).remove(0);
    assert_eq!(kind, "events_refused");
    assert!(
        cause.contains("disk is full") && cause.contains("free some space"),
        "{cause}"
    );
    sim.set_capacity(1 << 30);
    append(&events, "hall/a", small(1));
    assert!(told(&events).is_empty());

    sim.fail(Call::Sync, 1, 1);
    assert!(events.append(&stream, &large)[0].is_err());
    let stopped = told(&events);
    assert_eq!(stopped.len(), 1, "{stopped:?}");
    assert_eq!(stopped[0].0, "events_stopped");
    drop(events);

    let events = over(Config::default().max_bytes(1 << 20));
    assert_eq!(told(&events)[0].0, "events_over_limit");
}

/// L11: a consumer that another node has taken over holds back nothing here, although this node has it open still.
#[test]
fn l11_a_consumer_that_was_taken_over_holds_back_nothing() {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let config = Config::default().segment_bytes(1 << 20).compress(false);
    let one = open(folders[0].path(), config);
    let two = open_as(9, folders[1].path(), Config::default());
    append(&one, "hall/a", small(1));
    assert_eq!(seqs(&claim(&one, 1)), [0]);
    append(&one, "hall/a", (0..16).map(|n| vec![n; 300 << 10]));
    let low = || one.log().heads_of(&parse_pattern("hall/#").unwrap())[0].low;
    let keep = Some(std::time::Duration::ZERO);
    one.retain(keep, i64::MAX);
    assert_eq!(low(), 0);
    copy(&one, &two);
    let taken = ClaimRequest {
        take_over: true,
        ..request(1)
    };
    assert!(two.consumers().claim("c", &taken).unwrap().is_some());
    copy(&two, &one);
    one.retain(keep, i64::MAX);
    assert!(low() > 0);
    assert_eq!(claim_fails(&one), Code::Conflict);
}

fn claim_fails(events: &Events) -> Code {
    let claimed = events.consumers().claim("c", &request(1));
    claimed.unwrap_err().code
}

/// Claims until it is given something, as the API does; how often it was woken for it.
async fn wait_for_events(events: Events, worker: u64) -> (u64, Claimed, usize) {
    let mut waiting = events.consumers().waits("c", worker);
    for woken in 0.. {
        if let Some(claimed) = events.consumers().claim("c", &request(worker)).unwrap() {
            return (worker, claimed, woken);
        }
        waiting.woken().await;
    }
    unreachable!()
}

/// 96 workers wait. An event wakes one of them, and so does whatever else gives one of them something: an acknowledgement behind which there is more, what is
/// given back, a lease that runs out, a pause that ends. The others sleep on.
#[test]
fn s3_29_of_those_who_wait_as_many_are_woken_as_are_given_something() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    let mut first = request(1);
    (first.batch, first.lease_ms) = (Some(1), Some(500));
    assert!(events.consumers().claim("c", &first).unwrap().is_none());
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let ending = tokio_util::sync::CancellationToken::new();
        let waking = tokio::spawn(waiting::wake(events.clone(), ending.clone()));
        let mut waiting = tokio::task::JoinSet::new();
        for worker in 1..=96 {
            waiting.spawn(wait_for_events(events.clone(), worker));
        }
        let mut woken = 0;
        let mut next = async |what: &str| {
            let next =
                tokio::time::timeout(std::time::Duration::from_secs(60), waiting.join_next());
            let next = next
                .await
                .unwrap_or_else(|_| panic!("nobody was woken: {what}"));
            let (worker, claimed, times) = next.unwrap().unwrap();
            woken += times;
            (worker, claimed)
        };
        let leave = |worker| events.consumers().leave("c", worker).unwrap();
        append(&events, "hall/a", small(3));
        let (worker, claimed) = next("an event").await;
        assert_eq!(seqs(&claimed), [0]);
        ack(&events, claimed.token, 0).unwrap();
        leave(worker);
        let (worker, claimed) = next("what comes behind what was acknowledged").await;
        assert_eq!(seqs(&claimed), [1]);
        leave(worker);
        assert_eq!(seqs(&next("what was given back").await.1), [1]);
        let (worker, claimed) = next("what a lease that ran out was about").await;
        assert_eq!(seqs(&claimed), [1]);
        refuse(&events, claimed.token, 1);
        leave(worker);
        let mut came = Vec::new();
        while came.len() < 2 {
            let (worker, claimed) = next("what was refused, and what is behind it").await;
            let seq = claimed.events[0].event.seq;
            // On a machine that is busy a lease may be over by now.
            if ack(&events, claimed.token, seq).is_ok() {
                came.push(seq);
            }
            leave(worker);
        }
        came.sort_unstable();
        assert_eq!(came, [1, 2]);
        let given = 96 - waiting.len();
        waiting.shutdown().await;
        // Now and then one is woken for what somebody has taken meanwhile: as many as it takes, not all of them each time.
        assert!(
            (given..given + 24).contains(&(woken + 1)),
            "{woken} were woken to give {given} something"
        );
        assert_eq!(events.consumers().waiters().count("c"), 0);
        ending.cancel();
        waking.await.unwrap();
    });
}

/// Very many feeds, read in small pages: a page opens the feeds whose turn comes, not all of them again. What comes is the one order, whatever the pages.
#[test]
fn s3_48_pages_over_many_feeds_open_each_feed_when_its_turn_comes() {
    const FEEDS: u64 = 300;
    let dir = tempfile::tempdir().unwrap();
    let sim = SimDisk::new(5);
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let disk = Arc::new(sim.clone());
    let events = Events::open_in(dir.path(), disk, Config::default(), signer).unwrap();
    let mut rng = gemba_testkit::Rng::new(48);
    let mut written = Vec::new();
    let mut write = |count: u64, written: &mut Vec<String>| {
        for _ in 0..count {
            let stream = format!("hall/{}", rng.below(FEEDS));
            append(&events, &stream, small(1));
            written.push(stream);
        }
    };
    write(6 * FEEDS, &mut written);
    let query = Query {
        pattern: parse_pattern("hall/#").unwrap(),
        author: None,
        from: 0,
        since: None,
    };
    let page = |cursor: &mut Cursor, limit| {
        let mut page = Vec::new();
        let more = events.read(&query, cursor, limit, |part, _| {
            page.push(part.feed.stream.to_string());
            Ok(())
        });
        (page, more.unwrap())
    };
    let before = sim.calls(Call::Read);
    let (mut read, mut cursor, mut more) = (Vec::new(), Cursor::default(), true);
    while more {
        let (page, is_more) = page(&mut cursor, 7);
        assert!(page.len() == 7 || !is_more);
        read.extend(page);
        more = is_more;
    }
    assert_eq!(read, written);
    let reads = sim.calls(Call::Read) - before;
    assert!(
        reads < 4 * written.len() as u64,
        "{reads} reads for {} events",
        written.len()
    );
    // At its end it reads nothing, and behind it only what came.
    let before = sim.calls(Call::Read);
    assert_eq!(page(&mut cursor, 7), (vec![], false));
    assert_eq!(sim.calls(Call::Read), before);
    write(20, &mut written);
    for _ in 0..4 {
        read.extend(page(&mut cursor, 5).0);
    }
    assert_eq!(read, written);

    // Pages that are as large as they may be, and pages that end in the middle of batches.
    let all = || {
        let (mut read, mut cursor, mut more) = (Vec::new(), Cursor::default(), true);
        while more {
            let (page, is_more) = page(&mut cursor, usize::MAX);
            read.extend(page);
            more = is_more;
        }
        read
    };
    assert!(all() == written);
    for n in 0..5 {
        append(&events, &format!("hall/{n}"), small(9));
    }
    let expected = all();
    for limit in [1, 2, 5, 300] {
        let (mut read, mut cursor) = (Vec::new(), Cursor::default());
        while read.len() < expected.len() {
            read.extend(page(&mut cursor, limit).0);
        }
        assert!(read == expected, "pages of {limit}");
    }
}

/// S3.53: the records that close a letter, and those that say who runs a consumer, have a time: they were shown as of 1970, and older than anything that
/// retention keeps.
#[test]
fn s3_53_records_that_close_a_letter_have_the_time_when_they_were_written() {
    let dir = tempfile::tempdir().unwrap();
    let events = open(dir.path(), Config::default());
    append(&events, "hall/a", small(2));
    let before = crate::names::wall_ms();
    let wish = ClaimRequest {
        attempts: Some(1),
        ..request(1)
    };
    let claimed = events.consumers().claim("c", &wish).unwrap().unwrap();
    for seq in [0, 1] {
        refuse(&events, claimed.token, seq);
    }
    let letters = events.consumers().dead("c").unwrap();
    let [dropped, retried] = &letters[..] else {
        panic!("{letters:?}");
    };
    // A letter stands at the time of its event.
    assert_eq!(dropped.time.as_deref(), Some("1970-01-01T00:00:01.000Z"));
    events
        .consumers()
        .drop_letter("c", (&dropped.id, None))
        .unwrap();
    events.consumers().retry("c", (&retried.id, None)).unwrap();
    let again = claim(&events, 1);
    ack(&events, again.token, again.events[0].event.seq).unwrap();
    assert!(events.consumers().dead("c").unwrap().is_empty());
    let times = |pattern: &str| {
        let query = Query {
            pattern: parse_pattern(pattern).unwrap(),
            author: None,
            from: 0,
            since: None,
        };
        let mut times = Vec::new();
        let mut cursor = events.begin(&query).unwrap();
        let read = events.read(&query, &mut cursor, PAGE, |_, event| {
            times.push(event.time);
            Ok(())
        });
        assert!(!read.unwrap());
        times
    };
    let records = times("$dead/#");
    assert_eq!((records.len(), &records[..2]), (4, &[1_000, 1_000][..]));
    let claims = times("$consumer/#");
    assert_eq!(claims.len(), 1);
    for time in records[2..].iter().chain(&claims) {
        assert!(*time >= before, "{time} is before {before}");
    }
}

/// S3.53: letters are listed on every node and closed on one. Whoever tries it elsewhere is told on which, and the command.
#[test]
fn s3_53_a_letter_of_a_consumer_elsewhere_names_the_node_and_the_command() {
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let here = open_as(7, folders[0].path(), Config::default());
    let there = open_as(8, folders[1].path(), Config::default());
    append(&here, "hall/a", small(1));
    let wish = ClaimRequest {
        attempts: Some(1),
        ..request(1)
    };
    let claimed = here.consumers().claim("c", &wish).unwrap().unwrap();
    refuse(&here, claimed.token, 0);
    copy(&here, &there);
    let id = there.consumers().dead("c").unwrap().remove(0).id;
    let (ours, theirs) = (
        author_text(&here.log().author()),
        author_text(&there.log().author()),
    );
    let told = |fail: Fail, code: Code, peer: &str, what: &str| {
        assert_eq!(fail.code, code, "{fail}");
        assert!(fail.to_string().contains(peer), "{fail}");
        let command = format!("on {peer} run `gemba log dead {what}`");
        assert!(fail.hint.contains(&command), "{fail}");
    };
    let retried = there.consumers().retry("c", (&id, None)).unwrap_err();
    assert!(
        retried.cause.contains("no consumer c on this node"),
        "{retried}"
    );
    told(retried, Code::NotFound, &ours, &format!("retry c {id}"));
    let dropped = there.consumers().drop_letter("c", (&id, Some("hall/a")));
    let command = format!("drop c {id} --stream hall/a");
    told(dropped.unwrap_err(), Code::NotFound, &ours, &command);
    let nobody = there.consumers().view("nobody").unwrap_err();
    assert!(!nobody.to_string().contains("12D3Koo"), "{nobody}");

    // The other one takes it over: the first hears of it, and says so.
    let wish = ClaimRequest {
        take_over: true,
        ..request(1)
    };
    there.consumers().claim("c", &wish).unwrap();
    copy(&there, &here);
    for what in ["retry", "drop"] {
        let which = (id.as_str(), None);
        let fail = match what {
            "retry" => here.consumers().retry("c", which),
            _ => here.consumers().drop_letter("c", which),
        };
        told(
            fail.unwrap_err(),
            Code::Conflict,
            &theirs,
            &format!("{what} c {id}"),
        );
    }
    let listed = here.consumers().list().unwrap().remove(0);
    assert_eq!((listed.elsewhere, listed.runs_on), (true, Some(theirs)));
    there.consumers().drop_letter("c", (&id, None)).unwrap();
    assert!(there.consumers().dead("c").unwrap().is_empty());
}

fn kinds(events: &Events) -> Vec<String> {
    let troubles = events.troubles(&events.counts()).into_iter();
    troubles.map(|trouble| trouble.kind).collect()
}

/// L5, LOG-7: a backup came back, and the clock of its device is behind: what it had written before it was lost is newer than this start, by the clock. Nobody
/// else runs on a copy, and no alarm says so. Then the lost disk turns up and is started beside it, with a clock that is behind, too: both say so.
#[test]
fn l5_the_alarm_about_a_clone_asks_no_clock() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let stream = parse_stream("hall/a").unwrap();
    let write = |events: &Events, time: i64| {
        let acks = events.append(&stream, &[NewEvent::new(time, "x")]);
        assert!(acks.iter().all(Result::is_ok));
    };
    let future = crate::names::wall_ms() + 50 * 365 * 86_400_000;
    let first = open(&old, Config::default());
    write(&first, future);
    copy_folder(&old, &new);
    for _ in 0..3 {
        write(&first, future);
    }
    let restored = open(&new, Config::default());
    restored.look_for_others();
    copy(&first, &restored);
    restored.look_for_others();
    assert_eq!(kinds(&restored), ["events_returned", "events_copied"]);
    // Whoever is in doubt says so once.
    let said = |events: &Events| {
        let heads = events.log().heads_of(&parse_pattern(OPENED).unwrap());
        heads.iter().map(|head| head.next).sum::<u64>()
    };
    for _ in 0..3 {
        restored.look_for_others();
    }
    assert_eq!((said(&first), said(&restored)), (0, 1));
    // Neither do the next starts, which come upon what those before have said, and have answered.
    let mut restored = restored;
    for _ in 0..2 {
        restored.close();
        drop(restored);
        restored = open(&new, Config::default());
        copy(&first, &restored);
        write(&first, future);
        copy(&first, &restored);
        restored.look_for_others();
        assert_eq!(kinds(&restored), ["events_returned"]);
    }

    for _ in 0..4 {
        for (from, to) in [(&first, &restored), (&restored, &first)] {
            write(from, 1);
            copy(from, to);
            to.look_for_others();
        }
    }
    for events in [&first, &restored] {
        assert_eq!(kinds(events), ["events_cloned"]);
        // And it costs a few events, not one for each that comes.
        assert!(said(events) <= 8, "{}", said(events));
    }
}
