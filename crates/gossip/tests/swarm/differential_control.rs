//! The same RPCs to this engine and to libp2p-gossipsub: what each answers in control, and why they differ where they do.
//!
//! Payloads and malformed messages are in `differential.rs`. Both engines run without heartbeats here, where nothing is said of them, and with
//! the same numbers otherwise, so that an answer depends on the script alone.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::side_by_side::Act::{
    Graft, IDontWant, IHave, IWant, Prune, Send, Subscribe, Unsubscribe,
};
use crate::side_by_side::Who::{A, B, C};
use crate::side_by_side::script::{ALARMS, FOREIGN, LEFT, PEERS, PRUNED, VALUES};
use crate::side_by_side::{
    Act, Cause, Difference, Id, Ours, Row, Script, Seen, Step, Stock, Who, Word, causes,
    differences, explain, play,
};
use gemba_gossip::wire::Version;
use gemba_testkit::{Rng, sim_scale};

fn a(acts: impl Into<Vec<Act>>) -> Step {
    Step::Rpc(A, acts.into())
}

fn b(acts: impl Into<Vec<Act>>) -> Step {
    Step::Rpc(B, acts.into())
}

/// What both answer to a script whose answers do not differ, and that these are among it.
async fn both_answer(script: &Script, words: &[(usize, Who, Word, usize)]) {
    let (ours, stock) = (play::<Ours>(script).await, play::<Stock>(script).await);
    assert_eq!(differences(&ours, &stock), []);
    for (step, peer, word, count) in words {
        let said = ours[*step].get(&(*peer, *word)).copied().unwrap_or(0);
        assert_eq!(said, *count, "step {step}: {word:?} to {peer:?}");
    }
}

#[tokio::test]
async fn s4_44_what_the_node_reads_is_announced_alike_and_so_is_its_leaving() {
    let script = Script::new([
        a([Subscribe(ALARMS), Subscribe(FOREIGN)]),
        Step::Read(FOREIGN),
        Step::Leave(ALARMS),
        Step::Leave(FOREIGN),
        Step::Read(FOREIGN),
        b([Subscribe(FOREIGN)]),
    ]);
    both_answer(
        &script,
        &[
            (0, A, Word::Subscribed(ALARMS), 1),
            (0, B, Word::Subscribed(VALUES), 1),
            (1, A, Word::Graft(ALARMS), 1),
            (2, B, Word::Subscribed(FOREIGN), 1),
            (2, A, Word::Graft(FOREIGN), 1),
            (3, B, Word::Unsubscribed(ALARMS), 1),
            (3, A, Word::Prune(ALARMS, Some(LEFT)), 1),
            (3, B, Word::Prune(ALARMS, Some(LEFT)), 0),
            // Who was pruned is not asked again at once.
            (5, A, Word::Graft(FOREIGN), 0),
            (6, B, Word::Graft(FOREIGN), 1),
        ],
    )
    .await;
}

#[tokio::test]
async fn s4_44_a_graft_is_taken_ignored_or_refused_alike() {
    let script = Script::new([
        a([Subscribe(ALARMS)]),
        // Is in the mesh already.
        b([Subscribe(ALARMS)]),
        a([Graft(ALARMS)]),
        b([Graft(ALARMS)]),
        // Not read.
        b([Subscribe(FOREIGN), Graft(FOREIGN), Graft(FOREIGN)]),
        // During back-off, once an RPC.
        b([Prune(ALARMS, Some(2000))]),
        b([Graft(ALARMS)]),
        b([Graft(ALARMS), Graft(ALARMS)]),
        b([Subscribe(ALARMS)]),
    ])
    .with(|setup| setup.degrees = (1, 6, 12));
    both_answer(
        &script,
        &[
            (2, B, Word::Graft(ALARMS), 0),
            (3, B, Word::Mesh(ALARMS), 0),
            (4, B, Word::Mesh(ALARMS), 1),
            (4, B, Word::Prune(ALARMS, Some(PRUNED)), 0),
            (5, B, Word::Mesh(FOREIGN), 0),
            (6, B, Word::Mesh(ALARMS), 0),
            (7, B, Word::Prune(ALARMS, Some(PRUNED)), 1),
            (8, B, Word::Prune(ALARMS, Some(PRUNED)), 1),
            (9, B, Word::Graft(ALARMS), 0),
        ],
    )
    .await;
}

/// A back-off of 1.0 is not told.
#[tokio::test]
async fn go_1_to_a_peer_of_1_0_neither_says_what_it_does_not_know() {
    let script = Script::new([
        a([Subscribe(ALARMS)]),
        a([Prune(ALARMS, None)]),
        a([Graft(ALARMS)]),
        b([Subscribe(ALARMS)]),
        a([Send(0)]),
    ])
    .letter(A, ALARMS, true)
    .with(|setup| setup.version = Version::V1_0);
    both_answer(
        &script,
        &[
            (3, A, Word::Prune(ALARMS, None), 1),
            (5, B, Word::Message(Id::Of(0)), 1),
            (5, B, Word::IDontWant(Id::Of(0)), 0),
        ],
    )
    .await;
}

#[tokio::test]
async fn s4_44_a_stranger_is_refused_by_a_full_mesh_alike() {
    let script = Script::new([
        b([Subscribe(VALUES)]),
        a([Subscribe(VALUES)]),
        a([Graft(VALUES)]),
        b([Send(0)]),
        b([Unsubscribe(VALUES)]),
        a([Graft(VALUES)]),
    ])
    .letter(B, VALUES, true)
    .with(|setup| setup.degrees = (1, 1, 1));
    both_answer(
        &script,
        &[
            (1, B, Word::Graft(VALUES), 1),
            (2, A, Word::Graft(VALUES), 0),
            (3, A, Word::Prune(VALUES, Some(PRUNED)), 1),
            // It is outside.
            (4, A, Word::Message(Id::Of(0)), 0),
            (4, A, Word::IDontWant(Id::Of(0)), 0),
            (6, A, Word::Prune(VALUES, Some(PRUNED)), 1),
        ],
    )
    .await;
}

/// Whatever it says of the time, and whether it was in the mesh; the longest word counts.
#[tokio::test]
async fn s4_44_a_prune_begins_a_back_off_alike_and_none_makes_it_shorter() {
    for backoff in [None, Some(2000), Some(u64::MAX)] {
        let script = Script::new([
            a([Prune(ALARMS, backoff)]),
            a([Subscribe(ALARMS)]),
            a([Prune(ALARMS, Some(0))]),
            a([Graft(ALARMS)]),
            // Of no interest.
            b([Prune(FOREIGN, backoff)]),
            Step::Read(FOREIGN),
            b([Subscribe(FOREIGN)]),
        ]);
        both_answer(
            &script,
            &[
                (2, A, Word::Graft(ALARMS), 0),
                (4, A, Word::Prune(ALARMS, Some(PRUNED)), 1),
                (7, B, Word::Graft(FOREIGN), 1),
            ],
        )
        .await;
    }
}

#[tokio::test]
async fn s4_20_after_its_back_off_a_neighbour_is_grafted_again_by_both() {
    let script = Script::new([
        a([Subscribe(ALARMS)]),
        a([Prune(ALARMS, Some(1))]),
        Step::Await(A, Word::Graft(ALARMS)),
    ])
    .with(|setup| setup.heartbeat = Some(Duration::from_millis(200)));
    let (ours, stock) = (play::<Ours>(&script).await, play::<Stock>(&script).await);
    assert_eq!(in_all(&ours), in_all(&stock));
    assert!(ours[3].contains_key(&(A, Word::Mesh(ALARMS))));
}

/// At a heartbeat, and then it is served. The stock engine says it at three heartbeats, ours once (specs/gossip.md §4).
#[tokio::test]
async fn s4_20_who_is_outside_of_the_mesh_is_told_by_both_what_there_is() {
    let script = Script::new([
        b([Subscribe(ALARMS)]),
        a([Subscribe(ALARMS)]),
        b([Send(0)]),
        Step::Await(A, Word::IHave(ALARMS, Id::Of(0))),
        a([IWant(vec![Id::Of(0)])]),
    ])
    .letter(B, ALARMS, false)
    .with(|setup| {
        setup.degrees = (1, 1, 1);
        setup.heartbeat = Some(Duration::from_millis(200));
    });
    let (ours, stock) = (play::<Ours>(&script).await, play::<Stock>(&script).await);
    assert_eq!(in_all(&ours), in_all(&stock));
    assert!(ours[5].contains_key(&(A, Word::Message(Id::Of(0)))));
}

/// Everything that was said, whenever and however often: with heartbeats that is left to the clock.
fn in_all(answers: &[Seen]) -> Vec<(Who, Word)> {
    let mut all: Vec<_> = answers.iter().flat_map(BTreeMap::keys).copied().collect();
    all.retain(|(_, word)| !matches!(word, Word::Mesh(_)));
    all.sort();
    all.dedup();
    all
}

#[tokio::test]
async fn s4_44_what_is_advertised_is_asked_for_alike() {
    let script = Script::new([
        a([Subscribe(ALARMS), Send(0)]),
        // Known, unknown twice, of no interest.
        b([
            IHave(ALARMS, vec![Id::Of(0), Id::Unknown(1), Id::Unknown(1)]),
            IHave(VALUES, vec![Id::Unknown(1)]),
            IHave(FOREIGN, vec![Id::Unknown(2)]),
        ]),
        // Asked of one.
        a([IHave(ALARMS, vec![Id::Unknown(1), Id::Of(1)])]),
        b([Send(1)]),
        b([IHave(ALARMS, vec![Id::Of(1)])]),
    ])
    .letter(A, ALARMS, false)
    .letter(C, ALARMS, false);
    both_answer(
        &script,
        &[
            (2, B, Word::IWant(Id::Unknown(1)), 1),
            (2, B, Word::IWant(Id::Unknown(2)), 0),
            (2, B, Word::IWant(Id::Of(0)), 0),
            (3, A, Word::IWant(Id::Unknown(1)), 0),
            (3, A, Word::IWant(Id::Of(1)), 1),
            (4, A, Word::Message(Id::Of(1)), 1),
            (5, B, Word::IWant(Id::Of(1)), 0),
        ],
    )
    .await;
}

/// Kubo's numbers: ten RPCs and 5,000 ids between two heartbeats.
#[tokio::test]
async fn s4_44_more_than_is_allowed_is_not_asked_for_alike() {
    let one = |n| a([IHave(ALARMS, vec![Id::Unknown(n)])]);
    let many = |from| b([IHave(ALARMS, (from..from + 2400).map(Id::Bulk).collect())]);
    let mut steps: Vec<Step> = (1..=11).map(one).collect();
    steps.extend([many(0), many(2400), many(4800)]);
    both_answer(
        &Script::new(steps),
        &[
            (10, A, Word::IWant(Id::Unknown(10)), 1),
            (11, A, Word::IWant(Id::Unknown(11)), 0),
            (13, B, Word::IWant(Id::Bulk(0)), 2400),
            (14, B, Word::IWant(Id::Bulk(0)), 200),
        ],
    )
    .await;
}

/// Kubo says everything that it has at a heartbeat in one RPC, an entry a topic.
#[tokio::test]
async fn s4_44_an_rpc_that_advertises_in_many_entries_counts_once_alike() {
    let entries: Vec<Act> = (0..30)
        .map(|n| IHave([ALARMS, FOREIGN][n % 2], vec![Id::Unknown(n as u32)]))
        .collect();
    both_answer(
        &Script::new([a(entries)]),
        &[
            (1, A, Word::IWant(Id::Unknown(0)), 1),
            (1, A, Word::IWant(Id::Unknown(28)), 1),
        ],
    )
    .await;
}

#[tokio::test]
async fn s4_44_what_is_asked_for_is_served_three_times_alike() {
    let ask = || IWant(vec![Id::Of(0), Id::Unknown(1)]);
    let script = Script::new([
        a([ask()]),
        b([Send(0)]),
        a([ask(), ask()]),
        a([ask(), ask()]),
        a([ask()]),
        // Its sender may ask too.
        b([ask()]),
    ])
    .letter(B, ALARMS, false);
    let message = Word::Message(Id::Of(0));
    both_answer(
        &script,
        &[
            (1, A, message, 0),
            (3, A, message, 2),
            (4, A, message, 1),
            (5, A, message, 0),
            (6, B, message, 1),
        ],
    )
    .await;
}

#[tokio::test]
async fn s4_44_what_is_not_wanted_is_not_sent_alike() {
    let script = Script::new([
        a([
            Subscribe(ALARMS),
            IDontWant(vec![Id::Of(0), Id::Unknown(1)]),
        ]),
        b([Send(0)]),
        b([Send(1)]),
        // Nor when it is asked for.
        a([IWant(vec![Id::Of(0)])]),
        a([IWant(vec![Id::Of(1)]), IDontWant(vec![Id::Of(1)])]),
    ])
    .letter(B, ALARMS, false)
    .letter(B, ALARMS, true);
    both_answer(
        &script,
        &[
            (2, A, Word::Message(Id::Of(0)), 0),
            (3, A, Word::Message(Id::Of(1)), 1),
            (3, A, Word::IDontWant(Id::Of(1)), 1),
            (4, A, Word::Message(Id::Of(0)), 0),
            (5, A, Word::Message(Id::Of(1)), 0),
        ],
    )
    .await;
}

/// It has the message, and is neither sent it nor told not to send it.
#[tokio::test]
async fn s4_44_the_author_of_a_message_hears_nothing_of_it_alike() {
    let script = Script::new([a([Subscribe(ALARMS)]), b([Subscribe(ALARMS), Send(0)])])
        .letter(A, ALARMS, true);
    both_answer(
        &script,
        &[
            (2, A, Word::Message(Id::Of(0)), 0),
            (2, A, Word::IDontWant(Id::Of(0)), 0),
        ],
    )
    .await;
}

#[tokio::test]
async fn s4_44_many_kinds_in_one_rpc_and_all_of_it_twice_alike() {
    let all = || {
        vec![
            Subscribe(ALARMS),
            Subscribe(FOREIGN),
            Send(1),
            Send(1),
            Graft(ALARMS),
            Graft(ALARMS),
            Prune(VALUES, Some(2000)),
            IHave(VALUES, vec![Id::Unknown(1), Id::Of(1)]),
            IWant(vec![Id::Of(0)]),
            IDontWant(vec![Id::Of(2)]),
        ]
    };
    let script = Script::new([b([Send(0)]), b(all()), b(all()), a(all()), a([Send(2)])])
        .letter(C, VALUES, false)
        .letter(A, ALARMS, false)
        .letter(C, ALARMS, false);
    let (ours, stock) = (play::<Ours>(&script).await, play::<Stock>(&script).await);
    let differ = differences(&ours, &stock);
    let left = unexplained(&script, &stock, &differ, &causes());
    assert_eq!(left, [], "{differ:?}");
    let said = |step: usize, peer, word| ours[step].get(&(peer, word)).copied();
    assert_eq!(said(2, B, Word::Graft(ALARMS)), Some(1));
    assert_eq!(said(2, B, Word::IWant(Id::Unknown(1))), Some(1));
    assert_eq!(said(2, B, Word::Message(Id::Of(0))), Some(1));
    assert_eq!(said(3, B, Word::IWant(Id::Unknown(1))), None);
    // Not wanted by B.
    assert_eq!(said(5, B, Word::Message(Id::Of(2))), None);
}

/// The last word counts, and the GRAFT that follows a subscription is sent once.
#[tokio::test]
async fn g6_subscriptions_that_contradict_each_other_in_one_rpc_alike() {
    let script = Script::new([
        a([Subscribe(ALARMS), Unsubscribe(ALARMS)]),
        b([Subscribe(ALARMS)]),
        b([Unsubscribe(ALARMS), Subscribe(ALARMS)]),
    ]);
    let (ours, stock) = (play::<Ours>(&script).await, play::<Stock>(&script).await);
    assert_eq!(differences(&ours, &stock), []);
    let said = |step: usize, peer| ours[step].get(&(peer, Word::Graft(ALARMS))).copied();
    assert_eq!((said(1, A), said(2, B), said(3, B)), (None, Some(1), None));
}

/// Each row of the table: its script, and exactly what differs in it.
#[tokio::test]
async fn each_difference_that_is_explained_is_there_and_no_other() {
    let mut wrong = Vec::new();
    for row in causes() {
        let (ours, stock) = (
            play::<Ours>(&row.script).await,
            play::<Stock>(&row.script).await,
        );
        let differ = differences(&ours, &stock);
        if differ != row.differs {
            wrong.push(format!("{:?} ({}): {differ:#?}", row.cause, row.why));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What no row of the table explains.
fn unexplained(
    script: &Script,
    stock: &[Seen],
    differ: &[Difference],
    rows: &[Row],
) -> Vec<Difference> {
    let has_row = |cause: Cause| rows.iter().any(|row| row.cause == cause);
    let explained = |d: &Difference| explain(script, stock, d).is_some_and(has_row);
    differ.iter().filter(|d| !explained(d)).copied().collect()
}

/// The same each time, two thousand in full: what two engines do on three tasks depends on turns in few of them, and those are no defect of either.
#[test]
fn random_scripts_are_answered_alike_but_for_what_is_explained() {
    let rows = causes();
    for seed in 0..sim_scale(2000) as u64 {
        let script = random(&mut Rng::new(seed));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        let (ours, stock) =
            runtime.block_on(async { (play::<Ours>(&script).await, play::<Stock>(&script).await) });
        let left = unexplained(&script, &stock, &differences(&ours, &stock), &rows);
        assert!(left.is_empty(), "seed {seed}: {left:#?}\n{script:#?}");
    }
}

/// Without its row a difference that chance meets is found, and so is a word too few or too many.
#[tokio::test]
async fn a_difference_without_its_row_is_found() {
    for lost in [
        Cause::Flood,
        Cause::CameBack,
        Cause::Stranger,
        Cause::SaidAgain,
        Cause::Greeting,
        Cause::NotRead,
        Cause::Promised,
        Cause::NoBackoffIn10,
        Cause::Forgotten,
    ] {
        let mut rows = causes();
        let at = rows.iter().position(|row| row.cause == lost).unwrap();
        let row = rows.remove(at);
        let script = row.script;
        let (mut ours, stock) = (play::<Ours>(&script).await, play::<Stock>(&script).await);
        let differ = differences(&ours, &stock);
        let left = unexplained(&script, &stock, &differ, &rows);
        assert!(!left.is_empty(), "{lost:?}");
        // With it nothing is left, until the engine says something else.
        let rows = causes();
        assert_eq!(unexplained(&script, &stock, &differ, &rows), []);
        *ours[1].entry((A, Word::IWant(Id::Unknown(9)))).or_default() += 1;
        ours[0].remove(&(B, Word::Subscribed(VALUES)));
        let differ = differences(&ours, &stock);
        assert_eq!(unexplained(&script, &stock, &differ, &rows).len(), 2);
    }
}

/// Any steps of two peers and the node, less what only a row of the table has: subscriptions that contradict each other in one RPC, IWANT of
/// a message in its own RPC, odd ids, and more than is allowed between two heartbeats.
fn random(rng: &mut Rng) -> Script {
    let mut script = Script::default();
    script.setup.version = *rng.pick(&Version::ALL);
    script.setup.degrees.0 = 5;
    for _ in 0..6 {
        let author = *rng.pick(&[A, B, C]);
        let topic = rng.index(3);
        script = script.letter(author, topic, rng.coin());
    }
    let mut reads = [true, true, false];
    // RPCs with IHAVE, of each peer.
    let mut told = [0; 2];
    let steps = rng.range(6..14);
    for _ in 0..steps {
        if rng.chance(1, 8) {
            let topic = rng.index(3);
            script.steps.push(match reads[topic] {
                true => Step::Leave(topic),
                false => Step::Read(topic),
            });
            reads[topic] = !reads[topic];
            continue;
        }
        let peer = rng.index(2);
        let mut acts = Vec::new();
        let mut announced = [false; 3];
        for _ in 0..rng.range(1..5) {
            let act = any_act(rng, &script);
            let is_too_much = match act {
                Subscribe(topic) | Unsubscribe(topic) => {
                    std::mem::replace(&mut announced[topic], true)
                }
                IHave(..) => told[peer] >= 10,
                _ => false,
            };
            if !is_too_much {
                acts.push(act);
            }
        }
        let sends = acts.iter().any(|act| matches!(act, Send(_)));
        acts.retain(|act| !sends || !matches!(act, IWant(_)));
        if acts.is_empty() {
            continue;
        }
        told[peer] += usize::from(acts.iter().any(|act| matches!(act, IHave(..))));
        if rng.chance(1, 6) {
            acts.extend(acts.clone());
        }
        script.steps.push(Step::Rpc(PEERS[peer], acts));
    }
    script
}

fn any_act(rng: &mut Rng, script: &Script) -> Act {
    let topic = *rng.pick(&[ALARMS, ALARMS, VALUES, FOREIGN]);
    let letters = script.letters.len();
    let id = |rng: &mut Rng| match rng.chance(3, 4) {
        true => Id::Of(rng.index(letters)),
        false => Id::Unknown(rng.index(4) as u32),
    };
    let ids = |rng: &mut Rng| (0..rng.range(1..4)).map(|_| id(rng)).collect::<Vec<_>>();
    match rng.index(12) {
        0..=2 => Subscribe(topic),
        3 => Unsubscribe(topic),
        4 => Graft(topic),
        5 => Prune(
            topic,
            *rng.pick(&[None, Some(0), Some(2000), Some(u64::MAX)]),
        ),
        6 => {
            // Of their own topic.
            let mut ids = ids(rng);
            ids.retain(|id| match id {
                Id::Of(letter) => script.letters[*letter].topic == topic,
                _ => true,
            });
            IHave(topic, ids)
        }
        7 | 8 => IWant(ids(rng)),
        9 => IDontWant(ids(rng)),
        _ => Send(rng.index(letters)),
    }
}
