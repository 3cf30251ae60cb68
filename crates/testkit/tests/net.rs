//! What the virtual network promises.
#![allow(clippy::unwrap_used)]

use gemba_testkit::{
    Net, Rng, check,
    net::{CONNECT_TIMEOUT, Event, Fault, LinkId, NoStream, NodeId, Shape},
};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

fn opened(rng: &mut Rng, shape: Shape) -> (Net, LinkId) {
    let mut net = Net::new(rng.fork(), shape);
    let link = net.connect(0, 1);
    let first = net.next(SECOND).unwrap();
    assert_eq!(
        first,
        (
            1,
            Event::Open {
                link,
                peer: 0,
                dialer: false
            }
        )
    );
    assert_eq!(
        net.next(SECOND).unwrap(),
        (
            0,
            Event::Open {
                link,
                peer: 1,
                dialer: true
            }
        )
    );
    (net, link)
}

/// Everything a node reads of a stream up to `until`, and how it ended.
fn read(net: &mut Net, node: NodeId, until: Duration) -> (Vec<u8>, Option<Event>) {
    let mut got = Vec::new();
    while let Some((to, event)) = net.next(until) {
        match event {
            Event::Bytes { bytes, .. } if to == node => {
                assert!(!bytes.is_empty());
                got.extend(bytes);
            }
            Event::Eof { .. } | Event::Reset { .. } if to == node => return (got, Some(event)),
            _ => {}
        }
    }
    (got, None)
}

#[test]
fn a_stream_is_ordered_and_whole_in_other_pieces() {
    check!(100, |rng| {
        let shape = rng
            .pick(&[Shape::lan(), Shape::wifi(), Shape::site_line()])
            .clone();
        let (mut net, link) = opened(rng, shape);
        let sent = rng.bytes(100_000);
        let mut rest = sent.as_slice();
        while !rest.is_empty() {
            let len = 1 + rng.index(rest.len().min(20_000));
            assert_eq!(net.send(0, link, &rest[..len]), Ok(len));
            rest = &rest[len..];
        }
        net.close(0, link).unwrap();
        assert_eq!(net.send(0, link, b"after the end"), Err(NoStream));
        let (got, end) = read(&mut net, 1, 10 * SECOND);
        assert!(got == sent, "{} of {} bytes", got.len(), sent.len());
        assert_eq!(end, Some(Event::Eof { link }));
        // The other direction still works.
        assert_eq!(net.send(1, link, b"thanks"), Ok(6));
        let until = net.now() + SECOND;
        assert_eq!(read(&mut net, 0, until), (b"thanks".to_vec(), None));
    });
}

#[test]
fn a_reset_comes_at_exactly_that_byte_and_both_ends_see_it() {
    check!(200, |rng| {
        let (mut net, link) = opened(rng, Shape::lan());
        let sent = rng.bytes(10_000);
        let byte = rng.length(10_000);
        net.fault(link, Fault::ResetAt { from: 0, byte });
        if byte > 0 {
            net.send(0, link, &sent).unwrap();
        }
        let mut got = Vec::new();
        let mut resets = Vec::new();
        while let Some((node, event)) = net.next(SECOND * 10) {
            match event {
                Event::Bytes { bytes, .. } => {
                    assert!(!resets.contains(&1), "bytes after the reset");
                    got.extend(bytes);
                }
                Event::Reset { .. } => resets.push(node),
                _ => {}
            }
        }
        assert_eq!(got, sent[..byte as usize]);
        resets.sort_unstable();
        assert_eq!(resets, [0, 1]);
        assert_eq!(net.send(0, link, b"x"), Err(NoStream));
        assert_eq!(net.faults().count("stream reset"), 1);
    });
}

#[test]
fn a_half_open_stream_swallows_one_direction_until_its_buffer_is_full() {
    let (mut net, link) = opened(
        &mut Rng::new(1),
        Shape {
            buffer: 1_000,
            ..Shape::lan()
        },
    );
    net.send(0, link, &[1; 400]).unwrap();
    net.fault(link, Fault::HalfOpen { from: 0 });
    assert_eq!(net.send(0, link, &[2; 400]), Ok(400));
    assert_eq!(
        net.send(0, link, &[3; 400]),
        Ok(200),
        "nothing is ever acknowledged"
    );
    assert_eq!(net.send(0, link, &[3; 200]), Ok(0));
    net.send(1, link, b"the other way works").unwrap();
    let (to_1, end_1) = (Vec::<u8>::new(), None::<Event>);
    let until = 60 * SECOND;
    let mut got_0 = Vec::new();
    while let Some((node, event)) = net.next(until) {
        match (node, event) {
            (0, Event::Bytes { bytes, .. }) => got_0.extend(bytes),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(
        (got_0.as_slice(), to_1.is_empty(), end_1),
        (b"the other way works".as_slice(), true, None)
    );
    // The end that gives up is not heard either; the end that is heard is.
    net.reset(0, link).unwrap();
    assert_eq!(net.next(2 * until), None);
}

#[test]
fn a_stall_holds_back_and_then_everything_comes_in_order() {
    check!(50, |rng| {
        let (mut net, link) = opened(rng, Shape::wifi());
        let sent = rng.bytes(50_000);
        net.send(0, link, &sent[..20_000]).unwrap();
        net.fault(
            link,
            Fault::Stall {
                from: 0,
                time: 5 * SECOND,
            },
        );
        net.send(0, link, &sent[20_000..]).unwrap();
        let (early, _) = read(&mut net, 1, 5 * SECOND);
        assert_eq!(early, b"");
        let (late, _) = read(&mut net, 1, 10 * SECOND);
        assert!(late == sent);
        assert!(net.now() >= 5 * SECOND);
    });
}

#[test]
fn bytes_take_the_time_their_rate_says() {
    let (mut net, link) = opened(
        &mut Rng::new(3),
        Shape {
            jitter: Duration::ZERO,
            ..Shape::lan()
        },
    );
    let start = net.now();
    net.fault(
        link,
        Fault::Slow {
            from: 0,
            rate: 1_000,
        },
    );
    net.send(0, link, &[0; 5_000]).unwrap();
    assert_eq!(read(&mut net, 1, 60 * SECOND).0.len(), 5_000);
    let took = net.now() - start;
    assert!(
        (Duration::from_millis(5_000)..Duration::from_millis(5_010)).contains(&took),
        "{took:?}"
    );
}

#[test]
fn a_full_buffer_refuses_and_says_when_there_is_room() {
    let (mut net, link) = opened(
        &mut Rng::new(4),
        Shape {
            buffer: 10_000,
            ..Shape::lan()
        },
    );
    assert_eq!(net.send(0, link, &[0; 15_000]), Ok(10_000));
    assert_eq!(net.send(0, link, &[0; 1]), Ok(0));
    let mut writable = 0;
    let mut got = 0;
    while let Some((node, event)) = net.next(SECOND * 60) {
        match (node, event) {
            (0, Event::Writable { .. }) => {
                writable += 1;
                assert!(got > 0, "room comes from bytes that arrived");
            }
            (1, Event::Bytes { bytes, .. }) => got += bytes.len(),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((writable, got), (1, 10_000));
}

#[test]
fn a_node_that_is_down_refuses_and_its_streams_are_reset() {
    let (mut net, link) = opened(&mut Rng::new(5), Shape::lan());
    net.kill(1);
    assert_eq!(net.next(SECOND), Some((0, Event::Reset { link })));
    let second = net.connect(0, 1);
    assert_eq!(
        net.next(SECOND),
        Some((
            0,
            Event::Refused {
                link: second,
                peer: 1
            }
        ))
    );
    assert_eq!(net.send(0, second, b"x"), Err(NoStream));
    net.start(1);
    let third = net.connect(0, 1);
    assert_eq!(
        net.next(SECOND),
        Some((
            1,
            Event::Open {
                link: third,
                peer: 0,
                dialer: false
            }
        ))
    );
}

#[test]
fn a_node_that_vanishes_tells_nobody() {
    let (mut net, link) = opened(&mut Rng::new(6), Shape::lan());
    net.vanish(1);
    assert_eq!(net.send(0, link, b"hello?"), Ok(6));
    let second = net.connect(0, 1);
    let refused = Event::Refused {
        link: second,
        peer: 1,
    };
    assert_eq!(net.next(600 * SECOND), Some((0, refused)));
    assert!(net.now() >= CONNECT_TIMEOUT);
    assert_eq!(net.next(600 * SECOND), None);
}

#[test]
fn a_stream_lost_while_it_is_dialled_is_refused_to_the_dialer_alone() {
    let mut net = Net::new(Rng::new(9), Shape::lan());
    let link = net.connect(0, 1);
    net.fault(link, Fault::ResetAt { from: 0, byte: 0 });
    assert_eq!(
        net.next(SECOND),
        Some((0, Event::Refused { link, peer: 1 }))
    );
    assert_eq!(net.next(SECOND), None);
    let link = net.connect(0, 1);
    net.fault(link, Fault::HalfOpen { from: 1 });
    assert!(
        matches!(net.next(SECOND), Some((1, Event::Open { .. }))),
        "the way there works"
    );
    assert_eq!(
        net.next(60 * SECOND),
        Some((0, Event::Refused { link, peer: 1 }))
    );
}

#[test]
fn a_planned_fault_happens_at_its_time() {
    let (mut net, link) = opened(&mut Rng::new(7), Shape::lan());
    net.fault_at(5 * SECOND, link, Fault::ResetAt { from: 1, byte: 0 });
    assert_eq!(net.next(Duration::from_millis(4_999)), None);
    assert!(matches!(
        net.next(6 * SECOND),
        Some((_, Event::Reset { .. }))
    ));
    assert_eq!(net.now(), 5 * SECOND);
}

#[test]
fn datagrams_are_lost_doubled_and_reordered_as_often_as_said() {
    let mut net = Net::new(Rng::new(8), Shape::wifi());
    let mut arrived = Vec::new();
    for n in 0u32..10_000 {
        net.datagram(0, 1, &n.to_be_bytes());
        let until = net.now() + Duration::from_millis(50);
        while let Some((node, Event::Datagram { from, bytes })) = net.next(until) {
            assert_eq!((node, from), (1, 0));
            arrived.push(u32::from_be_bytes(bytes.try_into().unwrap()));
        }
        net.advance_to(until);
    }
    let lost = net.faults().count("datagram lost");
    let doubled = net.faults().count("datagram doubled");
    assert!((900..1_100).contains(&lost), "{lost}");
    assert!((140..220).contains(&doubled), "{doubled}");
    assert!(
        arrived.windows(2).filter(|pair| pair[0] > pair[1]).count() > 100,
        "some are overtaken"
    );
    net.faults().assert_fired(&["datagram reordered"], 500);
}
