//! Where the engines differ, and why: each difference has a row with a script that shows it, and what exactly differs in it.

use std::collections::{BTreeMap, BTreeSet};

use gemba_gossip::wire::Version;

use super::script::{
    ALARMS, Act, Difference, FOREIGN, Id, PEERS, PRUNED, Script, Seen, Step, VALUES, Who, Word,
};

/// Why the engines differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Cause {
    Flood,
    CameBack,
    Stranger,
    SaidAgain,
    Greeting,
    NotRead,
    NotChecked,
    Promised,
    NoBackoffIn10,
    Forgotten,
    Direct,
    GraftBudget,
    UnneededBudget,
    IdLength,
    Useful,
}

/// One difference.
pub struct Row {
    pub cause: Cause,
    pub why: &'static str,
    pub script: Script,
    pub differs: Vec<Difference>,
}

const fn ours(step: usize, peer: Who, word: Word) -> Difference {
    Difference {
        step,
        peer,
        word,
        ours: 1,
        stock: 0,
    }
}

const fn stock(step: usize, peer: Who, word: Word) -> Difference {
    Difference {
        step,
        peer,
        word,
        ours: 0,
        stock: 1,
    }
}

fn a(acts: impl Into<Vec<Act>>) -> Step {
    Step::Rpc(Who::A, acts.into())
}

fn b(acts: impl Into<Vec<Act>>) -> Step {
    Step::Rpc(Who::B, acts.into())
}

/// All of them. Where nothing else is named the clauses are those of specs/gossip.md.
pub fn causes() -> Vec<Row> {
    use Act::{Graft, IDontWant, IHave, IWant, Prune, Send, Subscribe, Unsubscribe};
    use Who::{A, B, C};
    let row = |cause, why, script, differs| Row {
        cause,
        why,
        script,
        differs,
    };
    vec![
        row(
            Cause::Flood,
            "GO-13: where D or fewer neighbours subscribe, all of them are sent to, in the mesh or not; the stock engine leaves one that \
             pruned it to IHAVE",
            Script::new([
                a([Subscribe(ALARMS), Prune(ALARMS, None)]),
                b([Send(0)]),
                b([Send(1)]),
            ])
            .letter(B, ALARMS, false)
            .letter(B, ALARMS, true),
            vec![
                ours(2, A, Word::Message(Id::Of(0))),
                ours(3, A, Word::IDontWant(Id::Of(1))),
                ours(3, A, Word::Message(Id::Of(1))),
            ],
        ),
        row(
            Cause::CameBack,
            "§4: back-off comes of PRUNE; the stock engine also begins one when a neighbour in the mesh unsubscribes, and keeps it out for a \
             minute when it comes back",
            Script::new([
                a([Subscribe(ALARMS)]),
                a([Unsubscribe(ALARMS)]),
                a([Subscribe(ALARMS)]),
                a([Graft(ALARMS)]),
            ]),
            vec![
                ours(3, A, Word::Graft(ALARMS)),
                ours(3, A, Word::Mesh(ALARMS)),
                stock(4, A, Word::Prune(ALARMS, Some(PRUNED))),
                ours(4, A, Word::Mesh(ALARMS)),
            ],
        ),
        row(
            Cause::Stranger,
            "§4: who grafts subscribes, whether it was heard of or not, as in go-libp2p-pubsub, whose handleGraft asks for no subscription; \
             the stock engine drops the GRAFT without a word",
            Script::new([a([Graft(ALARMS)]), a([Subscribe(ALARMS)])]),
            vec![
                ours(1, A, Word::Graft(ALARMS)),
                ours(1, A, Word::Mesh(ALARMS)),
                stock(2, A, Word::Graft(ALARMS)),
            ],
        ),
        row(
            Cause::SaidAgain,
            "GO-13: a neighbour that subscribes is grafted; one that says again what is known is not news, and waits for the heartbeat",
            Script::new([
                a([Subscribe(ALARMS)]),
                b([Subscribe(ALARMS)]),
                a([Unsubscribe(ALARMS)]),
                b([Subscribe(ALARMS)]),
            ])
            .with(|setup| setup.degrees = (1, 6, 12)),
            vec![
                stock(4, B, Word::Graft(ALARMS)),
                stock(4, B, Word::Mesh(ALARMS)),
            ],
        ),
        row(
            Cause::Greeting,
            "§4: a neighbour that subscribes is told at once of all that is kept; the stock engine tells only who is outside of the mesh, at \
             heartbeats",
            Script::new([b([Send(0)]), a([Subscribe(ALARMS)])]).letter(B, ALARMS, false),
            vec![ours(2, A, Word::IHave(ALARMS, Id::Of(0)))],
        ),
        row(
            Cause::NotRead,
            "§3: topic of interest first; the stock engine keeps what it does not read, and serves it",
            Script::new([a([Send(0)]), b([IWant(vec![Id::Of(0)])])]).letter(A, FOREIGN, false),
            vec![stock(2, B, Word::Message(Id::Of(0)))],
        ),
        row(
            Cause::NotChecked,
            "GO-7: there is no id before its signature was found good, which is done beside the reading; the stock engine has done it when it \
             comes to the IWANT of the same RPC",
            Script::new([a([Send(0), IWant(vec![Id::Of(0)])])]).letter(A, ALARMS, false),
            vec![stock(1, A, Word::Message(Id::Of(0)))],
        ),
        row(
            Cause::Promised,
            "§4: IDONTWANT goes to who would be sent the message, as the text of gossipsub 1.2 has it; the stock engine also says it to who \
             was asked for it",
            Script::new([a([IHave(ALARMS, vec![Id::Of(0)])]), b([Send(0)])])
                .letter(B, ALARMS, true),
            vec![stock(2, A, Word::IDontWant(Id::Of(0)))],
        ),
        row(
            Cause::NoBackoffIn10,
            "§4: who was pruned is not grafted for a while, whatever it speaks; the stock engine begins no back-off for a peer of 1.0, since \
             it does not tell it of one",
            Script::new([
                a([Subscribe(ALARMS)]),
                Step::Leave(ALARMS),
                Step::Read(ALARMS),
            ])
            .with(|setup| setup.version = Version::V1_0),
            vec![
                stock(3, A, Word::Graft(ALARMS)),
                stock(3, A, Word::Mesh(ALARMS)),
            ],
        ),
        row(
            Cause::Forgotten,
            "G12: of a topic that neither this node nor a neighbour reads nothing is kept, back-offs neither",
            Script::new([
                a([Subscribe(ALARMS), Prune(ALARMS, None)]),
                a([Unsubscribe(ALARMS)]),
                Step::Leave(ALARMS),
                Step::Read(ALARMS),
                a([Subscribe(ALARMS)]),
            ]),
            vec![
                ours(5, A, Word::Graft(ALARMS)),
                ours(5, A, Word::Mesh(ALARMS)),
            ],
        ),
        row(
            Cause::Direct,
            "§4: a GRAFT of a direct peer is answered by PRUNE, as in go-libp2p-pubsub; the stock engine ignores it",
            Script::new([a([Subscribe(ALARMS)]), a([Graft(ALARMS)])])
                .with(|setup| setup.direct = true),
            vec![ours(2, A, Word::Prune(ALARMS, Some(PRUNED)))],
        ),
        row(
            Cause::GraftBudget,
            "§6: 64 GRAFT and PRUNE and two for each topic between two heartbeats; the stock engine counts none",
            Script::new([
                a([Subscribe(ALARMS), Prune(ALARMS, None)]),
                a(vec![Graft(ALARMS); 80]),
                a([Graft(ALARMS)]),
            ]),
            vec![stock(3, A, Word::Prune(ALARMS, Some(PRUNED)))],
        ),
        row(
            Cause::UnneededBudget,
            "§6: 1,000 ids of IDONTWANT between two heartbeats, as in go-libp2p-pubsub; the stock engine takes 10,000",
            Script::new([
                a([Subscribe(ALARMS)]),
                a([IDontWant((0..1000).map(Id::Bulk).collect())]),
                a([IDontWant(vec![Id::Of(0)])]),
                b([Send(0)]),
            ])
            .letter(B, ALARMS, false),
            vec![ours(4, A, Word::Message(Id::Of(0)))],
        ),
        row(
            Cause::IdLength,
            "GO-3: ids have 1 to 256 bytes; the stock engine asks for any",
            Script::new([a([IHave(
                ALARMS,
                vec![Id::Empty, Id::Unknown(1), Id::Long],
            )])]),
            vec![
                stock(1, A, Word::IWant(Id::Empty)),
                stock(1, A, Word::IWant(Id::Long)),
            ],
        ),
        row(
            Cause::Useful,
            "GO-20: who lately was first with something new is let into a full mesh; the stock engine asks only who dialled",
            Script::new([
                b([Subscribe(VALUES)]),
                a([Subscribe(VALUES)]),
                a([Send(0)]),
                a([Graft(VALUES)]),
            ])
            .letter(C, VALUES, false)
            .with(|setup| setup.degrees = (1, 1, 1)),
            vec![
                stock(4, A, Word::Prune(VALUES, Some(PRUNED))),
                ours(4, A, Word::Mesh(VALUES)),
            ],
        ),
    ]
}

/// Why this difference is there, as far as one is to be met by chance.
pub fn explain(script: &Script, stock: &[Seen], difference: &Difference) -> Option<Cause> {
    let mut facts = Facts {
        read: [ALARMS, VALUES].into(),
        ..Facts::default()
    };
    for (step, before) in script.steps.iter().zip(stock).take(difference.step) {
        facts.add(script, step, before);
    }
    let Difference {
        step, peer, word, ..
    } = *difference;
    let more = difference.ours > difference.stock;
    let letter = match word {
        Word::IWant(Id::Of(n)) | Word::IDontWant(Id::Of(n)) | Word::Message(Id::Of(n)) => Some(n),
        Word::IHave(_, Id::Of(n)) => Some(n),
        _ => None,
    };
    if letter.is_some_and(|letter| facts.not_read.contains(&letter)) {
        return Some(Cause::NotRead);
    }
    let topic = match word {
        Word::Graft(topic) | Word::Prune(topic, _) | Word::Mesh(topic) => topic,
        Word::IHave(topic, _) => topic,
        Word::IDontWant(_) | Word::Message(_) => script.letters[letter?].topic,
        _ => return None,
    };
    let place = (peer, topic);
    let in_their_mesh = stock[step].contains_key(&(peer, Word::Mesh(topic)));
    match word {
        Word::IHave(..) if more && facts.came.contains(&place) => return Some(Cause::Greeting),
        Word::Message(_) | Word::IDontWant(_)
            if more && facts.announced.contains(&place) && !in_their_mesh =>
        {
            return Some(Cause::Flood);
        }
        Word::IDontWant(id) if !more && facts.advertised.contains(&(peer, id)) => {
            return Some(Cause::Promised);
        }
        _ => {}
    }
    facts.parted.get(&place).copied()
}

/// What a script says of itself, up to a step.
#[derive(Default)]
struct Facts {
    read: BTreeSet<usize>,
    announced: BTreeSet<(Who, usize)>,
    /// In the last step.
    came: BTreeSet<(Who, usize)>,
    advertised: BTreeSet<(Who, Id)>,
    /// Sent when its topic was not read.
    not_read: BTreeSet<usize>,
    /// Where the engines may hold other views of who is in the mesh and who may be, by the first reason.
    parted: BTreeMap<(Who, usize), Cause>,
}

impl Facts {
    fn part(&mut self, peer: Who, topic: usize, cause: Cause) {
        self.parted.entry((peer, topic)).or_insert(cause);
    }

    /// A step, and how things stood before it with the stock engine.
    fn add(&mut self, script: &Script, step: &Step, before: &Seen) {
        self.came.clear();
        match step {
            Step::Rpc(peer, acts) => self.add_rpc(script, *peer, acts, before),
            Step::Read(topic) => {
                self.read.insert(*topic);
            }
            Step::Leave(topic) => {
                self.read.remove(topic);
                if script.setup.version == Version::V1_0 {
                    for peer in PEERS {
                        self.part(peer, *topic, Cause::NoBackoffIn10);
                    }
                }
            }
            Step::Await(..) => {}
        }
        for topic in [ALARMS, VALUES, FOREIGN] {
            let nobody = !self.announced.iter().any(|(_, other)| *other == topic);
            if nobody && !self.read.contains(&topic) {
                for peer in PEERS {
                    self.part(peer, topic, Cause::Forgotten);
                }
            }
        }
    }

    fn add_rpc(&mut self, script: &Script, peer: Who, acts: &[Act], before: &Seen) {
        // As they are taken: subscriptions first.
        for act in acts {
            match act {
                Act::Subscribe(topic) => {
                    let new = self.announced.insert((peer, *topic));
                    if !new && script.setup.degrees.0 < PEERS.len() {
                        self.part(peer, *topic, Cause::SaidAgain);
                    }
                    self.came.insert((peer, *topic));
                }
                Act::Unsubscribe(topic) => {
                    self.announced.remove(&(peer, *topic));
                    if before.contains_key(&(peer, Word::Mesh(*topic))) {
                        self.part(peer, *topic, Cause::CameBack);
                    }
                }
                _ => {}
            }
        }
        for act in acts {
            match act {
                Act::Graft(topic)
                    if self.read.contains(topic) && !self.announced.contains(&(peer, *topic)) =>
                {
                    self.part(peer, *topic, Cause::Stranger);
                    self.came.insert((peer, *topic));
                }
                Act::IHave(_, ids) => self.advertised.extend(ids.iter().map(|id| (peer, *id))),
                Act::Send(letter) if !self.read.contains(&script.letters[*letter].topic) => {
                    self.not_read.insert(*letter);
                }
                _ => {}
            }
        }
    }
}
