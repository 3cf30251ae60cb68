//! Two swarms on one Ethernet segment. mDNS names carry no key, so they see each other; they never connect, and gemba does not
//! dial strangers again and again.

use crate::failure::{Outcome, ensure};
use crate::rig::gemba::{self, Gemba};
use crate::rig::kubo;
use crate::rig::netns::Segment;
use crate::scenario::{Scenario, Stage, key, other_key};
use std::thread::sleep;
use std::time::Duration;

pub(super) const SCENARIO: Scenario = Scenario {
    name: "two_keys_on_one_segment",
    about: "two swarms with mDNS on one segment find their own, never connect with the other, dials stay few",
    limit: Duration::from_secs(60),
    play,
};

/// How long they are left alone: several rounds of everybody's mDNS queries.
const WINDOW: Duration = Duration::from_secs(16);
/// Dials of one gemba node in all that time, to three others of which two are strangers, with a few addresses each.
const MOST_DIALS: u64 = 16;
/// Dials in the second half, when everybody is known: what goes on for ever.
const MOST_DIALS_LATER: u64 = 6;

fn play(stage: &Stage) -> Outcome<String> {
    let segment = Segment::new(4)?;
    let kubo = stage.kubo_with(
        "kubo-1",
        &kubo::Options {
            listen: "/ip4/0.0.0.0/tcp/4001",
            mdns: true,
            netns: Some(segment.host(0).into()),
            ..kubo::Options::new(&key())
        },
    )?;
    let start = |host: usize, name: &str, key: &[u8]| {
        stage.gemba_with(
            name,
            &gemba::Options {
                listen: "/ip4/0.0.0.0/tcp/0",
                mdns: true,
                netns: Some(segment.host(host).into()),
                ..gemba::Options::new(key)
            },
        )
    };
    let one = start(1, "gemba-1", &key())?;
    let (two, other_two) = (
        start(2, "gemba-2", &other_key())?,
        start(3, "gemba-2b", &other_key())?,
    );
    let all = [&one, &two, &other_two];

    // No command runs meanwhile: a command's connection to the API counts as a dial in the same namespace.
    let count = |nodes: [&Gemba; 3]| {
        nodes
            .into_iter()
            .map(Gemba::active_opens)
            .collect::<Outcome<Vec<_>>>()
    };
    stage.step("leaving them alone, first half");
    sleep(WINDOW / 2);
    let half = count(all)?;
    stage.step("leaving them alone, second half");
    sleep(WINDOW / 2);
    let whole = count(all)?;

    stage.step("who is connected with whom");
    expect_peers(&one, &[&kubo.id])?;
    expect_peers(&two, &[&other_two.id])?;
    expect_peers(&other_two, &[&two.id])?;
    ensure!(
        kubo.peers()? == [one.id.as_str()],
        "Kubo has the peers {:?}",
        kubo.peers()?
    );
    for (n, node) in all.into_iter().enumerate() {
        let (early, late) = (half[n], whole[n] - half[n]);
        ensure!(
            early + late <= MOST_DIALS,
            "{} dialled {} times in {} s",
            node.name,
            early + late,
            WINDOW.as_secs()
        );
        ensure!(
            late <= MOST_DIALS_LATER,
            "{} still dialled {late} times in the last {} s",
            node.name,
            WINDOW.as_secs() / 2
        );
    }
    Ok(format!(
        "dials in {} s: {whole:?}, in its first half: {half:?}",
        WINDOW.as_secs()
    ))
}

fn expect_peers(node: &Gemba, expected: &[&str]) -> Outcome {
    let peers = node.peers()?;
    ensure!(
        peers == expected,
        "{} has the peers {peers:?} in place of {expected:?}",
        node.name
    );
    Ok(())
}
