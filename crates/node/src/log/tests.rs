//! What goes wrong with events: nothing is lost, hidden, or given to nobody.

use std::sync::Arc;

use gemba_log::{Config, Log, MemorySigner, NewEvent, Retention};
use gemba_segment::RealDisk;

use super::consumers::Goal;
use super::wire::{AckRequest, ClaimRequest, Claimed};
use super::*;

fn open(dir: &std::path::Path, config: Config) -> Events {
    let signer = Arc::new(MemorySigner::from_seed(&[7; 32]));
    let (log, _) = Log::open(Arc::new(RealDisk), &dir.join("events"), config, signer).unwrap();
    Events::over(log, dir).unwrap()
}

fn append(events: &Events, stream: &str, payloads: impl IntoIterator<Item = Vec<u8>>) {
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

fn request(worker: u64) -> ClaimRequest {
    ClaimRequest {
        worker,
        streams: vec!["hall/#".to_owned()],
        batch: Some(8),
        ..ClaimRequest::default()
    }
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
            .read(&what, &mut cursor, page, |batch, event| {
                seen.push((batch.feed().stream.to_string(), event.seq));
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
    // The newest ones are found in spite of it, over all feeds together.
    let mut cursor = events.tail(&what, 3);
    let mut newest = Vec::new();
    events
        .read(&what, &mut cursor, PAGE, |batch, event| {
            newest.push((batch.feed().stream.to_string(), event.seq));
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
